//! The slow path's end of the command queues.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;

use patronus_crypto::{Duration, PeerId};

use crate::channel::{Command, ToSlowPath, ToWorker};
use crate::crew::Places;

/// Commands that wait for room in a worker's queue, beyond which it does not keep up.
const BEHIND: usize = 4096;
/// How often to look whether a worker has ended.
const STOP_CHECK: Duration = Duration::from_millis(1);

struct Link {
    inbox: Arc<ToWorker>,
    backlog: VecDeque<Command>,
    wake: bool,
    thread: Option<JoinHandle<()>>,
}

/// All workers, as the slow path sees them.
pub struct Workers {
    links: Vec<Link>,
    places: Places,
}

impl Workers {
    /// The workers behind `inboxes`; `threads` are joined at the end.
    pub fn new(inboxes: &[Arc<ToWorker>], threads: Vec<JoinHandle<()>>) -> Self {
        let mut threads = threads.into_iter();
        let link = |inbox: &Arc<ToWorker>| Link {
            inbox: Arc::clone(inbox),
            backlog: VecDeque::new(),
            wake: false,
            thread: threads.next(),
        };
        Workers {
            links: inboxes.iter().map(link).collect(),
            places: Places::default(),
        }
    }

    /// To the worker that owns `peer`.
    pub fn tell_owner(&mut self, peer: PeerId, command: Command) {
        let owner = self.places.owner(peer, self.links.len());
        self.links[owner].send(command);
    }

    /// To this worker.
    pub fn tell(&mut self, worker: usize, command: Command) {
        self.links[worker].send(command);
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.links.len()
    }

    /// Says to which worker a session belongs from now on; `None`: to the one that its number says.
    pub fn place(&mut self, peer: PeerId, worker: Option<u8>) {
        self.places.set(peer, worker);
        self.tell_all(|| Command::Place(peer, worker));
    }

    /// The same to every worker.
    pub fn tell_all(&mut self, mut command: impl FnMut() -> Command) {
        self.each(|_| command());
    }

    /// To every worker its own.
    pub fn each(&mut self, mut command: impl FnMut(usize) -> Command) {
        for (i, link) in self.links.iter_mut().enumerate() {
            link.send(command(i));
        }
    }

    /// Tells the workers that do not own `peer` whom to hand its datagrams to.
    pub fn add_index(&mut self, peer: PeerId, index: u32) {
        self.tell_others(peer, || Command::IndexAdded(index, peer));
    }

    /// The reverse of [`add_index`](Self::add_index).
    pub fn forget_index(&mut self, peer: PeerId, index: u32) {
        self.tell_others(peer, || Command::IndexRemoved(index));
    }

    fn tell_others(&mut self, peer: PeerId, command: impl Fn() -> Command) {
        let owner = self.places.owner(peer, self.links.len());
        for (i, link) in self.links.iter_mut().enumerate() {
            if i != owner {
                link.send(command());
            }
        }
    }

    /// Whether workers take what they are told. Who tells them much without need, as control can, does not tell them more before they do.
    pub fn keep_up(&self) -> bool {
        self.links.iter().all(|link| link.backlog.len() < BEHIND)
    }

    /// Moves what waits into the queues and wakes whom it concerns. False if something still waits.
    pub fn flush(&mut self) -> bool {
        let mut done = true;
        for link in &mut self.links {
            done &= link.flush();
        }
        done
    }

    /// Ends the workers and waits for their threads.
    /// Their last notices are taken from `inbox`, so that none of them waits for room.
    pub fn stop(&mut self, inbox: &ToSlowPath) {
        for link in &mut self.links {
            // What still waited no longer matters.
            link.backlog.clear();
            while link.inbox.commands.push(Command::Stop).is_err() {
                let _ = link.inbox.commands.pop();
            }
            link.inbox.waker.wake();
            let Some(thread) = link.thread.take() else {
                continue;
            };
            while !thread.is_finished() {
                while inbox.notices.pop().is_some() {}
                std::thread::sleep(STOP_CHECK);
            }
            let _ = thread.join();
        }
    }
}

impl Link {
    fn send(&mut self, command: Command) {
        self.wake = true;
        self.backlog.push_back(command);
        self.fill();
    }

    /// In order: nothing overtakes what found the queue full.
    fn fill(&mut self) {
        while let Some(command) = self.backlog.pop_front() {
            if let Err(command) = self.inbox.commands.push(command) {
                self.backlog.push_front(command);
                return;
            }
        }
    }

    fn flush(&mut self) -> bool {
        self.fill();
        if std::mem::take(&mut self.wake) || !self.backlog.is_empty() {
            self.inbox.waker.wake();
        }
        self.backlog.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::COMMAND_QUEUE;

    #[test]
    fn a_worker_that_takes_nothing_does_not_keep_up() {
        let inbox = Arc::new(ToWorker::new().unwrap());
        let mut workers = Workers::new(&[Arc::clone(&inbox)], Vec::new());
        for _ in 0..COMMAND_QUEUE + BEHIND - 1 {
            workers.tell(0, Command::Drill(None));
        }
        assert!(workers.keep_up());
        workers.tell(0, Command::Drill(None));
        assert!(!workers.keep_up());
        while inbox.commands.pop().is_some() {}
        assert!(workers.flush());
        assert!(workers.keep_up());
    }
}
