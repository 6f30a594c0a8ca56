//! A worker: one thread that takes packets and runs them to completion.
//!
//! A turn of the loop is: obey the slow path, TUN -> UDP, UDP -> TUN, what other workers handed over. When a turn finds
//! nothing, the worker goes down the idle ladder: spin for a while if configured, then block until a packet or a
//! command comes. It never waits for another thread.

use std::io;
use std::sync::Arc;

use arrayvec::ArrayVec;
use crossbeam_queue::ArrayQueue;
use patronus_crypto::{Duration, PeerId, Time};
use patronus_io::{Port, PortError};
use patronus_mem::{BURST_MAX, Burst, FrameCache, PktBuf};
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::{AsFd, OwnedFd};

use crate::channel::{Command, Notice, ToSlowPath, ToWorker};
use crate::clock::Clock;
use crate::courtesy::Courtesy;
use crate::stats::{Stage, WorkerStats};
use crate::wg::{Context, Wg};

/// Bursts that one direction may take before the other has its turn.
const BURSTS_PER_TURN: usize = 4;
/// Commands obeyed in a turn.
const COMMANDS_PER_TURN: usize = 32;
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

/// Where packets may be found. A port leaves the set when it was found empty and comes back when its descriptor is
/// readable, so that no system call asks in vain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Ready {
    tun: bool,
    udp: bool,
}

impl Ready {
    const ALL: Ready = Ready { tun: true, udp: true };
    const NONE: Ready = Ready {
        tun: false,
        udp: false,
    };

    fn or(self, other: Ready) -> Ready {
        Ready {
            tun: self.tun | other.tun,
            udp: self.udp | other.udp,
        }
    }
}

/// Why the loop ends.
enum Stop {
    /// The slow path said so.
    Told,
    /// The TUN is gone, or cannot be used any more for this reason.
    TunGone(Option<io::Error>),
}

impl From<PortError> for Stop {
    fn from(error: PortError) -> Self {
        match error {
            PortError::Gone => Stop::TunGone(None),
            PortError::Io(error) => Stop::TunGone(Some(error)),
        }
    }
}

impl Worker {
    /// Runs until told to stop or until the TUN is gone.
    pub fn run(mut self) {
        // Without a way to sleep there is no worker; the slow path ends the process.
        let end = match Poller::new(&self) {
            Ok(mut poller) => self.run_until(&mut poller),
            Err(error) => Stop::TunGone(Some(error)),
        };
        if let Stop::TunGone(why) = end {
            let now = self.clock.mono();
            self.with_context(now, |_, cx| cx.tell(Notice::TunGone(why)));
        }
    }

    fn run_until(&mut self, poller: &mut Poller) -> Stop {
        let mut ready = Ready::ALL;
        let mut last_work = None;
        loop {
            let now = self.clock.mono();
            if ready != Ready::NONE {
                last_work = Some(now);
            }
            let since = *last_work.get_or_insert(now);
            if let Err(stop) = self.turn(now, &mut ready, Some(poller)) {
                return stop;
            }
            if ready != Ready::NONE && self.has_room() {
                // The other port may have found packets meanwhile, and this one may never run empty.
                if ready != Ready::ALL {
                    ready = ready.or(poller.look(Some(&Timespec::default())));
                }
                continue;
            }
            let block = now.since(since) >= self.idle.spin;
            ready = self.look(poller, block);
            if block {
                // Whatever ended the sleep counts as work.
                last_work = None;
            }
        }
    }

    /// One turn without a poller, for a caller that brings its own loop and clock. False once the worker has ended.
    pub fn step(&mut self, now: Time) -> bool {
        let mut ready = Ready::ALL;
        self.turn(now, &mut ready, None).is_ok()
    }

    fn turn(&mut self, now: Time, ready: &mut Ready, mut poller: Option<&mut Poller>) -> Result<(), Stop> {
        self.obey(now, poller.as_deref_mut())?;
        for _ in 0..BURSTS_PER_TURN {
            if !ready.tun || !self.has_room() {
                break;
            }
            ready.tun = self.outbound(now)?;
        }
        for _ in 0..BURSTS_PER_TURN {
            if !ready.udp || !self.has_room() {
                break;
            }
            ready.udp = self.inbound(now, poller.as_deref_mut())?;
        }
        if self.wg.crew().inboxes.len() > 1 {
            self.handed_over(now, poller)?;
        }
        Ok(())
    }

    /// One burst from the TUN to the network. True if there may be more.
    fn outbound(&mut self, now: Time) -> Result<bool, PortError> {
        let mut inner = Burst::new();
        self.tun.rx_burst(&mut self.frames, &mut inner)?;
        let more = inner.room() == 0 || self.tun.has_pending();
        if !inner.is_empty() {
            self.stats.burst(Stage::TunRx, inner.len());
            self.seal_and_send(now, &mut inner)?;
        }
        Ok(more)
    }

    fn seal_and_send(&mut self, now: Time, inner: &mut Burst) -> Result<(), PortError> {
        let mut wire = Burst::new();
        self.with_context(now, |wg, cx| wg.encap(cx, inner, &mut wire));
        self.send(&mut wire);
        let mut errors = std::mem::take(&mut self.wg.icmp.waiting);
        self.deliver(&mut errors)
    }

    /// One burst from the network to the TUN. True if there may be more.
    fn inbound(&mut self, now: Time, poller: Option<&mut Poller>) -> Result<bool, Stop> {
        let Some(udp) = &mut self.udp else {
            return Ok(false);
        };
        let mut wire = Burst::new();
        // A UDP socket's errors are about single datagrams or peers; the port has counted them.
        let _ = udp.rx_burst(&mut self.frames, &mut wire);
        let more = wire.room() == 0 || udp.has_pending();
        if !wire.is_empty() {
            self.stats.burst(Stage::UdpRx, wire.len());
            // A packet of a session that was installed after this turn began may be here already: its sender was faster
            // than the turn. The command came before the packet, so obeying now makes the session known.
            self.obey(now, poller)?;
            self.open_and_deliver(now, &mut wire)?;
        }
        Ok(more)
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
    fn handed_over(&mut self, now: Time, poller: Option<&mut Poller>) -> Result<(), Stop> {
        let inbox = Arc::clone(self.inbox());
        if !inbox.encap.is_empty() && self.has_room() {
            let mut inner = Burst::new();
            take(&inbox.encap, &mut inner);
            self.seal_and_send(now, &mut inner)?;
        }
        if !inbox.decap.is_empty() && self.has_room() {
            let mut wire = Burst::new();
            take(&inbox.decap, &mut wire);
            // As in `inbound`: the session may be newer than this turn.
            self.obey(now, poller)?;
            self.open_and_deliver(now, &mut wire)?;
        }
        Ok(())
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
        while let Some(address) = udp.take_stale_source() {
            self.wg.clear_stale_source(address);
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
    fn obey(&mut self, now: Time, mut poller: Option<&mut Poller>) -> Result<(), Stop> {
        if self.inbox().commands.is_empty() {
            return Ok(());
        }
        let inbox = Arc::clone(self.inbox());
        for _ in 0..COMMANDS_PER_TURN {
            if !self.has_room() {
                break;
            }
            let Some(command) = inbox.commands.pop() else {
                break;
            };
            match command {
                Command::Stop => return Err(Stop::Told),
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
        Ok(())
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
        self.slow.has_room()
    }

    fn inbox(&self) -> &Arc<ToWorker> {
        &self.wg.crew().inboxes[self.wg.crew().me]
    }

    /// Looks which ports have something, and waits for one of them or another thread if `block`.
    fn look(&mut self, poller: &mut Poller, block: bool) -> Ready {
        let inbox = Arc::clone(self.inbox());
        if !self.has_room() {
            // The slow path is behind. It is awake and working; packets wait in the kernel meanwhile.
            std::thread::sleep(BACKOFF);
            return Ready::ALL;
        }
        if !block {
            // Whoever else wants this core goes first: the packet that we look for may have to come from there.
            std::thread::yield_now();
            return poller.look(Some(&Timespec::default()));
        }
        inbox.waker.announce_sleep();
        let (mut ready, mut called) = (Ready::NONE, false);
        if inbox.commands.is_empty() && inbox.encap.is_empty() && inbox.decap.is_empty() {
            self.stats.sleeps.add(1);
            ready = poller.sleep(&*self.clock, &self.stats);
            called = poller.called;
        }
        inbox.waker.awake(called);
        ready
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
        Command::Endpoint(peer, endpoint) => wg.set_endpoint(cx, peer, endpoint),
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
    /// Whether the last look found a call of another thread.
    called: bool,
    /// Whether the last look found the timer of `courtesy`.
    timer_fired: bool,
    /// Whether the last sleep ended with work: an idle tunnel is not measured.
    traffic: bool,
    /// None where the system or whoever started the process has another idea of how to wake.
    courtesy: Option<Courtesy>,
}

/// What a descriptor in the poller stands for.
const INBOX: u64 = 0;
const TUN: u64 = 1;
const UDP: u64 = 2;
const TIMER: u64 = 3;

impl Poller {
    fn new(worker: &Worker) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let poller = Poller {
            events: Vec::with_capacity(8),
            called: false,
            timer_fired: false,
            traffic: false,
            courtesy: Courtesy::begin(&epoll, EventData::new_u64(TIMER)),
            epoll,
        };
        poller.add(worker.inbox().waker.as_fd(), INBOX)?;
        for fd in worker.tun.wait_fds() {
            poller.add(fd, TUN)?;
        }
        poller.replace_udp(None, worker.udp.as_deref());
        Ok(poller)
    }

    fn add(&self, fd: impl AsFd, what: u64) -> io::Result<()> {
        Ok(epoll::add(
            &self.epoll,
            fd,
            EventData::new_u64(what),
            EventFlags::IN,
        )?)
    }

    fn replace_udp(&self, old: Option<&(dyn Port + Send)>, new: Option<&(dyn Port + Send)>) {
        for fd in old.iter().flat_map(|port| port.wait_fds()) {
            let _ = epoll::delete(&self.epoll, fd);
        }
        for fd in new.iter().flat_map(|port| port.wait_fds()) {
            // Out of memory for a watch: the port is still read whenever something else wakes the worker.
            let _ = self.add(fd, UDP);
        }
    }

    /// Waits for something to do, and for the timer that tells how long waking takes.
    fn sleep(&mut self, clock: &dyn Clock, stats: &WorkerStats) -> Ready {
        if self.traffic
            && let Some(courtesy) = &mut self.courtesy
        {
            courtesy.before_sleep(clock.mono(), stats.received());
        }
        let ready = self.look(None);
        if self.timer_fired
            && let Some(courtesy) = &mut self.courtesy
        {
            courtesy.timer_fired(clock.mono());
        }
        self.traffic = ready != Ready::NONE || self.called;
        ready
    }

    fn look(&mut self, timeout: Option<&Timespec>) -> Ready {
        self.events.clear();
        (self.called, self.timer_fired) = (false, false);
        if epoll::wait(&self.epoll, spare_capacity(&mut self.events), timeout).is_err() {
            // Interrupted: as good as an event from everywhere.
            return Ready::ALL;
        }
        let mut ready = Ready::NONE;
        for event in &self.events {
            match event.data.u64() {
                TUN => ready.tun = true,
                UDP => ready.udp = true,
                TIMER => self.timer_fired = true,
                _ => self.called = true,
            }
        }
        ready
    }
}
