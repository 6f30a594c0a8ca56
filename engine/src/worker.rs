//! A worker: one thread that takes packets and runs them to completion.
//!
//! A turn of the loop is: obey the slow path, TUN -> UDP, UDP -> TUN, what other workers handed over. When a turn finds
//! nothing, the worker goes down the idle ladder: spin for a while if configured, then block until a packet or a
//! command comes. It never waits for another thread.

use std::sync::Arc;

use arrayvec::ArrayVec;
use crossbeam_queue::ArrayQueue;
use patronus_crypto::{Duration, PeerId, Time};
use patronus_io::{Port, PortError};
use patronus_mem::{BURST_MAX, Burst, FrameCache, PktBuf};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::{AsFd, OwnedFd};

use crate::channel::{Command, Notice, ToSlowPath, ToWorker};
use crate::clock::Clock;
use crate::stats::{Stage, WorkerStats};
use crate::wg::{Context, Wg};

/// Bursts that one direction may take before the other has its turn.
const BURSTS_PER_TURN: usize = 4;
/// Commands obeyed in a turn.
const COMMANDS_PER_TURN: usize = 32;
/// Room in the notice queue without which a worker takes neither packets nor commands. The most that one burst or
/// command can cause: a confirmed session, a retired one, a moved endpoint, a rekey and a timer per packet.
const NOTICES_PER_STEP: usize = 5 * BURST_MAX;
/// How long to wait for the slow path to make room in the notice queue.
const BACKOFF: Duration = Duration::from_millis(1);

/// What to do when there is nothing to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IdleLadder {
    /// Look again for this long after the last packet before blocking. Zero: block at once.
    pub spin: Duration,
}

/// One worker and all that it owns.
pub struct Worker {
    /// Sessions, routes and what waits.
    pub wg: Wg,
    /// The inner side.
    pub tun: Box<dyn Port + Send>,
    /// The outer side; none while the interface is down.
    pub udp: Option<Box<dyn Port + Send>>,
    /// Frames at hand.
    pub frames: FrameCache,
    /// Counters.
    pub stats: Arc<WorkerStats>,
    /// The slow path's inbox.
    pub slow: Arc<ToSlowPath>,
    /// Where the time comes from.
    pub clock: Box<dyn Clock>,
    /// What to do when idle.
    pub idle: IdleLadder,
}

/// Whether the thread goes on.
#[derive(PartialEq, Eq)]
enum Flow {
    Go,
    Stop,
}

impl Worker {
    /// Runs until told to stop or until the TUN is gone.
    pub fn run(mut self) {
        let mut poller = match Poller::new(&self) {
            Ok(poller) => poller,
            // Without a way to sleep there is no worker; the slow path ends the process.
            Err(_) => return self.report_gone(),
        };
        let mut last_work = self.clock.mono();
        loop {
            let now = self.clock.mono();
            let Ok((busy, flow)) = self.turn(now, Some(&mut poller)) else {
                return self.report_gone();
            };
            if flow == Flow::Stop {
                return;
            }
            if busy {
                last_work = now;
            } else if now.since(last_work) >= self.idle.spin {
                self.sleep(&mut poller);
                last_work = self.clock.mono();
            } else {
                std::hint::spin_loop();
            }
        }
    }

    /// One turn without a poller, for a caller that brings its own loop and clock. True if there was work.
    pub fn step(&mut self, now: Time) -> Result<bool, PortError> {
        self.turn(now, None).map(|(busy, _)| busy)
    }

    fn turn(&mut self, now: Time, poller: Option<&mut Poller>) -> Result<(bool, Flow), PortError> {
        let (mut busy, flow) = self.obey(now, poller);
        if flow == Flow::Stop {
            return Ok((true, flow));
        }
        for _ in 0..BURSTS_PER_TURN {
            if !self.has_room() || !self.outbound(now)? {
                break;
            }
            busy = true;
        }
        for _ in 0..BURSTS_PER_TURN {
            if !self.has_room() || !self.inbound(now)? {
                break;
            }
            busy = true;
        }
        if self.wg.crew().inboxes.len() > 1 && self.has_room() {
            busy |= self.handed_over(now)?;
        }
        Ok((busy, Flow::Go))
    }

    /// One burst from the TUN to the network. True if there was one.
    fn outbound(&mut self, now: Time) -> Result<bool, PortError> {
        let mut inner = Burst::new();
        self.tun.rx_burst(&mut self.frames, &mut inner)?;
        if inner.is_empty() {
            return Ok(false);
        }
        self.stats.burst(Stage::TunRx, inner.len());
        self.seal_and_send(now, &mut inner)?;
        Ok(true)
    }

    fn seal_and_send(&mut self, now: Time, inner: &mut Burst) -> Result<(), PortError> {
        let mut wire = Burst::new();
        self.with_context(now, |wg, cx| wg.encap(cx, inner, &mut wire));
        self.send(&mut wire);
        let mut errors = std::mem::take(&mut self.wg.icmp.waiting);
        self.deliver(&mut errors)
    }

    /// One burst from the network to the TUN. True if there was one.
    fn inbound(&mut self, now: Time) -> Result<bool, PortError> {
        let Some(udp) = &mut self.udp else {
            return Ok(false);
        };
        let mut wire = Burst::new();
        // A UDP socket's errors are about single datagrams or peers; the port has counted them.
        let _ = udp.rx_burst(&mut self.frames, &mut wire);
        if wire.is_empty() {
            return Ok(false);
        }
        self.stats.burst(Stage::UdpRx, wire.len());
        // A packet of a session that was installed after this turn began may be here already: its sender was faster
        // than the turn. The command came before the packet, so obeying now makes the session known.
        if self.obey(now, None).1 == Flow::Stop {
            wire.clear_into(&mut self.frames);
            return Err(PortError::Gone);
        }
        self.open_and_deliver(now, &mut wire)?;
        Ok(true)
    }

    fn open_and_deliver(&mut self, now: Time, wire: &mut Burst) -> Result<(), PortError> {
        let mut inner = Burst::new();
        let mut confirmed = ArrayVec::<PeerId, BURST_MAX>::new();
        self.with_context(now, |wg, cx| wg.decap(cx, wire, &mut inner, &mut confirmed));
        self.deliver(&mut inner)?;
        for peer in confirmed {
            self.send_staged(now, peer, false);
        }
        Ok(())
    }

    /// What other workers took in for peers of this one.
    fn handed_over(&mut self, now: Time) -> Result<bool, PortError> {
        let inbox = Arc::clone(self.inbox());
        let (mut inner, mut wire) = (Burst::new(), Burst::new());
        take(&inbox.encap, &mut inner);
        take(&inbox.decap, &mut wire);
        let busy = !inner.is_empty() || !wire.is_empty();
        if !inner.is_empty() {
            self.seal_and_send(now, &mut inner)?;
        }
        if !wire.is_empty() {
            self.open_and_deliver(now, &mut wire)?;
        }
        Ok(busy)
    }

    /// Gives datagrams to the network. Nothing can be done about an error here but to count it, as the port does.
    fn send(&mut self, wire: &mut Burst) {
        if wire.is_empty() {
            return;
        }
        self.stats.burst(Stage::UdpTx, wire.len());
        let Some(udp) = &mut self.udp else {
            self.stats
                .drop_many(crate::stats::DropReason::EncapDown, wire.len());
            return wire.clear_into(&mut self.frames);
        };
        let _ = udp.tx_burst(&mut self.frames, wire);
        if udp.take_stale_source().is_some() {
            self.wg.clear_source(None);
        }
    }

    /// Gives inner packets to the TUN.
    fn deliver(&mut self, inner: &mut Burst) -> Result<(), PortError> {
        if inner.is_empty() {
            return Ok(());
        }
        self.stats.burst(Stage::TunTx, inner.len());
        match self.tun.tx_burst(&mut self.frames, inner) {
            Err(PortError::Io(_)) => Ok(()),
            other => other,
        }
    }

    /// Sends what waited for a session with `peer`.
    fn send_staged(&mut self, now: Time, peer: PeerId, keepalive: bool) {
        let mut more = true;
        while more {
            let mut wire = Burst::new();
            more = self.with_context(now, |wg, cx| wg.encap_staged(cx, peer, keepalive, &mut wire));
            more &= !wire.is_empty();
            self.send(&mut wire);
        }
    }

    /// Commands of the slow path.
    fn obey(&mut self, now: Time, mut poller: Option<&mut Poller>) -> (bool, Flow) {
        let inbox = Arc::clone(self.inbox());
        let mut busy = false;
        for _ in 0..COMMANDS_PER_TURN {
            if !self.has_room() {
                break;
            }
            let Some(command) = inbox.commands.pop() else {
                break;
            };
            busy = true;
            match command {
                Command::Stop => return (true, Flow::Stop),
                Command::Wan(udp) => self.replace_udp(now, udp, poller.as_deref_mut()),
                Command::Install(keypair) => {
                    let peer = keypair.peer;
                    if self.with_context(now, |wg, cx| wg.install(cx, keypair)) {
                        self.send_staged(now, peer, true);
                    }
                }
                Command::Keepalive(peer) => self.send_staged(now, peer, true),
                other => self.with_context(now, |wg, cx| apply(wg, cx, other)),
            }
        }
        (busy, Flow::Go)
    }

    fn replace_udp(&mut self, now: Time, udp: Option<Box<dyn Port + Send>>, poller: Option<&mut Poller>) {
        if let Some(poller) = poller {
            poller.replace_udp(self.udp.as_deref(), udp.as_deref());
        }
        if let Some(old) = std::mem::replace(&mut self.udp, udp) {
            self.with_context(now, |_, cx| cx.tell(Notice::Wan(old)));
        }
    }

    /// Lends out what the stages need, and wakes those whom the step gave work.
    fn with_context<R>(&mut self, now: Time, step: impl FnOnce(&mut Wg, &mut Context<'_>) -> R) -> R {
        let mut cx = Context {
            now,
            frames: &mut self.frames,
            stats: &self.stats,
            slow: &self.slow,
            wake_slow: false,
            handed_to: 0,
        };
        let result = step(&mut self.wg, &mut cx);
        let (wake_slow, handed_to) = (cx.wake_slow, cx.handed_to);
        if wake_slow {
            self.slow.waker.wake();
        }
        for (i, inbox) in self.wg.crew().inboxes.iter().enumerate() {
            if handed_to & 1 << i != 0 {
                inbox.waker.wake();
            }
        }
        result
    }

    fn has_room(&self) -> bool {
        self.slow.has_room(NOTICES_PER_STEP, self.wg.crew().inboxes.len())
    }

    fn inbox(&self) -> &Arc<ToWorker> {
        &self.wg.crew().inboxes[self.wg.crew().me]
    }

    /// Blocks until a port or another thread has something.
    fn sleep(&mut self, poller: &mut Poller) {
        let inbox = Arc::clone(self.inbox());
        if !self.has_room() {
            // The slow path is behind. It is awake and working; packets wait in the kernel meanwhile.
            std::thread::sleep(BACKOFF);
            return;
        }
        inbox.waker.announce_sleep();
        if inbox.commands.is_empty() && inbox.encap.is_empty() && inbox.decap.is_empty() {
            self.stats.sleeps.add(1);
            poller.wait();
        }
        inbox.waker.awake();
    }

    fn report_gone(mut self) {
        let now = self.clock.mono();
        self.with_context(now, |_, cx| cx.tell(Notice::TunGone));
    }
}

/// The commands that only concern WireGuard's state.
fn apply(wg: &mut Wg, cx: &mut Context<'_>, command: Command) {
    match command {
        Command::AddPeer(slot) => wg.add_peer(cx, slot),
        Command::RemovePeer(peer) => wg.remove_peer(cx, peer),
        Command::Routes(routes) => wg.set_routes(cx, routes),
        Command::IndexAdded(index, peer) => wg.add_foreign_index(index, peer),
        Command::IndexRemoved(index) => wg.remove_foreign_index(index),
        Command::Endpoint(peer, endpoint) => wg.set_endpoint(peer, endpoint),
        Command::ClearSource(peer) => wg.clear_source(peer),
        Command::DropStaged(peer) => wg.drop_staged(cx, peer),
        Command::EraseKeys(peer) => wg.erase_keys(cx, peer),
        Command::ExpireSending(peer) => wg.expire_sending(peer),
        Command::Mtu(mtu) => wg.set_mtu(mtu),
        Command::Install(_) | Command::Keepalive(_) | Command::Wan(_) | Command::Stop => {
            unreachable!("obeyed by the worker itself")
        }
    }
}

/// Moves at most a burst out of a hand-off ring.
fn take(ring: &ArrayQueue<PktBuf>, burst: &mut Burst) {
    while burst.room() > 0 {
        let Some(packet) = ring.pop() else { return };
        burst.push(packet);
    }
}

/// The descriptors that a worker sleeps on.
struct Poller {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

impl Poller {
    fn new(worker: &Worker) -> std::io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let poller = Poller {
            epoll,
            events: Vec::with_capacity(8),
        };
        poller.add(worker.inbox().waker.as_fd())?;
        for fd in worker.tun.wait_fds() {
            poller.add(fd)?;
        }
        poller.replace_udp(None, worker.udp.as_deref());
        Ok(poller)
    }

    fn add(&self, fd: impl AsFd) -> std::io::Result<()> {
        Ok(epoll::add(
            &self.epoll,
            fd,
            EventData::new_u64(0),
            EventFlags::IN,
        )?)
    }

    fn replace_udp(&self, old: Option<&(dyn Port + Send)>, new: Option<&(dyn Port + Send)>) {
        for fd in old.iter().flat_map(|port| port.wait_fds()) {
            let _ = epoll::delete(&self.epoll, fd);
        }
        for fd in new.iter().flat_map(|port| port.wait_fds()) {
            // Out of memory for a watch: the port is still read whenever something else wakes the worker.
            let _ = self.add(fd);
        }
    }

    fn wait(&mut self) {
        // An interruption is as good as an event: the next turn looks at everything.
        let _ = epoll::wait(&self.epoll, spare_capacity(&mut self.events), None);
        self.events.clear();
    }
}
