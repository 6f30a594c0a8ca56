//! Orders for the main thread, from the threads of connections, and what wakes it up for them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use serde_json::Value;

use crate::message::{Code, Failure, Order};

/// How long the main thread may take to carry an order out.
const PATIENCE: Duration = Duration::from_secs(25);

/// What comes of an order.
pub type Outcome = Result<Value, Failure>;

/// Where the outcome goes.
pub type Reply = SyncSender<Outcome>;

/// An order on its way.
pub struct Job {
    /// What is wanted.
    pub order: Order,
    /// Where the outcome goes. Who asked may have given up since.
    pub reply: Reply,
}

/// The connections' end.
#[derive(Clone)]
pub struct Desk {
    jobs: Sender<Job>,
    bell: Arc<OwnedFd>,
}

/// The main thread's end.
pub struct Inbox {
    jobs: Receiver<Job>,
    bell: Arc<OwnedFd>,
}

/// Both ends.
pub fn desk() -> io::Result<(Desk, Inbox)> {
    let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let (sender, jobs) = mpsc::channel();
    let desk = Desk {
        jobs: sender,
        bell: Arc::clone(&bell),
    };
    Ok((desk, Inbox { jobs, bell }))
}

impl Desk {
    /// Has the main thread carry it out, and waits for that.
    pub fn order(&self, order: Order) -> Outcome {
        let (reply, outcome) = mpsc::sync_channel(1);
        let ended = || Failure::new(Code::System, "the control process is ending");
        self.jobs.send(Job { order, reply }).map_err(|_| ended())?;
        // It cannot fail but when the count is at its limit, and then the main thread wakes up as well.
        let _ = rustix::io::write(&*self.bell, &1u64.to_ne_bytes());
        match outcome.recv_timeout(PATIENCE) {
            Ok(outcome) => outcome,
            Err(RecvTimeoutError::Timeout) => {
                Err(Failure::new(Code::Timeout, "the engine has not answered yet"))
            }
            Err(RecvTimeoutError::Disconnected) => Err(ended()),
        }
    }
}

impl Inbox {
    /// The next order.
    pub fn take(&self) -> Option<Job> {
        self.jobs.try_recv().ok()
    }

    /// Forgets that somebody has rung. To be called before [`take`](Self::take).
    pub fn hear(&self) {
        let _ = rustix::io::read(&*self.bell, &mut [0; 8]);
    }
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
