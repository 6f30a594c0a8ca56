//! A worker: one thread that takes packets and runs them to completion.
//!
//! A turn of the loop is: obey the slow path, LAN -> WAN, WAN -> LAN, what other workers handed over, probes that are due. When a turn finds
//! nothing, the worker goes down the idle ladder: spin for a while if configured, then block until a packet or a
//! command comes, or a probe is due. It never waits for another thread.
//!
//! * this file: the loop, and what a worker is made from
//! * `poller`: how it sleeps
//! * `outbound`: LAN -> WAN, and what the worker has to say itself
//! * `inbound`: WAN -> LAN, and what other workers handed over
//! * `ports`: where packets leave
//! * `orders`: what the slow path says and asks
//! * `sight`: what a trace or a capture sees

mod inbound;
mod orders;
mod outbound;
mod poller;
mod ports;
mod sight;

use std::sync::Arc;

use patronus_crypto::{Duration, Time};
use patronus_io::Port;
use patronus_mem::{BURST_MAX, Burst, FrameCache};
use rustix::event::Timespec;

use self::poller::Poller;
use self::ports::Cut;
use crate::channel::{Drill, Families, Notice, ToSlowPath, ToWorker, WanPort};
use crate::clock::Clock;
use crate::crew::{Crew, Taken};
use crate::observe::{Observer, Observing};
use crate::route::{Bound, Exits, Router};
use crate::stats::{Placed, WorkerStats};
use crate::wg::{Context, Wg};

/// Bursts that one port may take before the others have their turn.
const BURSTS_PER_TURN: usize = 4;
/// Packets that are taken in a turn from the ring of each other worker, at most and if there are as many.
pub const HANDED_PER_TURN: usize = BURSTS_PER_TURN * BURST_MAX;
/// How long to wait for the slow path to make room in the notice queue.
const BACKOFF: Duration = Duration::from_millis(1);

/// LAN ports, and WAN ports, that a worker has at most.
pub const PORTS_MAX: usize = 16;

/// What to do when there is nothing to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IdleLadder {
    /// Look again for this long after the last packet before blocking. Zero: block at once.
    pub spin: Duration,
}

/// Where inner packets come from and go to.
pub struct LanPort {
    /// The port.
    pub port: Box<dyn Port + Send>,
    /// Packets are Ethernet frames and we are their router; otherwise they are IP packets of the host's.
    pub ethernet: bool,
}

/// What a worker is made from.
pub struct Parts {
    /// Sessions, allowed-ips and what waits.
    pub wg: Wg,
    /// At most [`PORTS_MAX`]; none where an interface is not there yet.
    pub lans: Vec<Option<LanPort>>,
    /// A place for each link, at most [`PORTS_MAX`].
    pub wans: Vec<Option<WanPort>>,
    /// Says where inner packets go. Without one there is one LAN port, and the allowed-ips say.
    pub router: Option<Router>,
    /// Frames at hand.
    pub frames: FrameCache,
    /// The other workers.
    pub crew: Crew,
    /// Counters.
    pub stats: Placed<WorkerStats>,
    /// The slow path's inbox.
    pub slow: Arc<ToSlowPath>,
    /// Where the time comes from.
    pub clock: Box<dyn Clock>,
    /// What to do when idle.
    pub idle: IdleLadder,
}

/// One worker and all that it owns.
pub struct Worker {
    wg: Wg,
    /// None where a port is gone.
    lans: Vec<Option<LanPort>>,
    wans: Vec<Option<WanPort>>,
    /// What each link has routes for.
    sends: Vec<Families>,
    /// While somebody wants to see what becomes of a link's flows.
    drill: Option<Drill>,
    router: Option<Router>,
    /// What the router has sorted, until it leaves.
    exits: Exits,
    /// The same for datagrams, by link, where there are several.
    by_wan: Vec<Burst>,
    frames: FrameCache,
    crew: Crew,
    /// By worker, a burst of what it has handed over, on its way here until it is its turn. Boxed: they change places.
    expected: Box<[Box<Taken>]>,
    /// An empty one, to be filled while another is worked off.
    spare: Option<Box<Taken>>,
    stats: Placed<WorkerStats>,
    slow: Arc<ToSlowPath>,
    clock: Box<dyn Clock>,
    idle: IdleLadder,
    /// While a trace or a capture is on.
    observer: Option<Box<Observer>>,
}

/// Where packets may be found: a bit for each port. A port leaves the set when it was found empty and comes back when its
/// descriptor is readable, so that no system call asks in vain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Ready(u32);

const fn lan_bit(lan: usize) -> u32 {
    lan as u32
}

const fn wan_bit(wan: usize) -> u32 {
    (PORTS_MAX + wan) as u32
}

impl Ready {
    const NONE: Ready = Ready(0);

    fn has(self, bit: u32) -> bool {
        self.0 & 1 << bit != 0
    }

    fn set(&mut self, bit: u32, ready: bool) {
        self.0 = self.0 & !(1 << bit) | u32::from(ready) << bit;
    }

    fn or(self, other: Ready) -> Ready {
        Ready(self.0 | other.0)
    }
}

/// The slow path has said that the loop is to end.
struct Told;

impl Worker {
    /// A worker that has not begun.
    ///
    /// # Panics
    ///
    /// If there are too many ports, or anything but one TUN where there is no router.
    pub fn new(parts: Parts) -> Worker {
        let (lans, wans) = (parts.lans.len(), parts.wans.len());
        assert!(lans <= PORTS_MAX && wans <= PORTS_MAX);
        let only_tun = matches!(&parts.lans[..], [Some(lan)] if !lan.ethernet);
        assert!(parts.router.is_some() || only_tun);
        let mut wg = parts.wg;
        if parts.router.is_some() {
            wg.hold_to_mtu();
        }
        let bursts = |count: usize| (0..count).map(|_| Burst::new()).collect::<Vec<_>>();
        Worker {
            wg,
            lans: parts.lans,
            wans: parts.wans,
            sends: vec![Families::BOTH; wans],
            drill: None,
            router: parts.router,
            exits: Exits {
                tunnels: Bound::default(),
                lans: bursts(lans),
            },
            by_wan: bursts(wans),
            frames: parts.frames,
            expected: (0..parts.crew.workers()).map(|_| Box::default()).collect(),
            spare: Some(Box::default()),
            crew: parts.crew,
            stats: parts.stats,
            slow: parts.slow,
            clock: parts.clock,
            idle: parts.idle,
            observer: None,
        }
    }

    /// What is counted.
    pub fn stats(&self) -> &Placed<WorkerStats> {
        &self.stats
    }

    /// The WireGuard state.
    pub fn wg(&self) -> &Wg {
        &self.wg
    }

    /// The router, if there is one.
    pub fn router(&self) -> Option<&Router> {
        self.router.as_ref()
    }

    /// Where commands come in.
    pub fn inbox(&self) -> &Arc<ToWorker> {
        self.crew.inbox()
    }

    /// The ports that there are at the moment, LAN ports first.
    pub fn ports(&self) -> impl Iterator<Item = &(dyn Port + Send)> {
        let lans = self.lans.iter().flatten().map(|lan| &*lan.port);
        lans.chain(self.wans.iter().flatten().map(|wan| &*wan.port))
    }

    /// Whether the slow path or another worker has left something to do.
    pub fn is_called(&mut self) -> bool {
        !self.crew.inbox().commands.is_empty()
            || self.crew.has_handed()
            || self.expected.iter().any(|taken| !taken.is_empty())
    }

    /// Runs until told to stop.
    pub fn run(mut self) {
        // Without a way to sleep there is no worker; the slow path ends the process.
        match Poller::new(&self) {
            Ok(mut poller) => {
                let Told = self.run_until(&mut poller);
            }
            Err(error) => {
                let now = self.clock.mono();
                self.with_context(now, |_, cx| cx.tell(Notice::Failed(error)));
            }
        }
    }

    fn run_until(&mut self, poller: &mut Poller) -> Told {
        let mut ready = self.every_port();
        let mut last_work = None;
        loop {
            let now = self.clock.mono();
            if ready != Ready::NONE {
                last_work = Some(now);
            }
            let since = *last_work.get_or_insert(now);
            poller.turn(now);
            if let Err(told) = self.turn(now, &mut ready, Some(poller)) {
                return told;
            }
            if ready != Ready::NONE && self.has_room() {
                // Another port may have found packets meanwhile, and this one may never run empty.
                if ready != poller.every_port {
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
        let mut ready = self.every_port();
        self.turn(now, &mut ready, None).is_ok()
    }

    fn turn(&mut self, now: Time, ready: &mut Ready, poller: Option<&mut Poller>) -> Result<(), Told> {
        let done = self.take_turn(now, ready, poller);
        self.crew.wake();
        if let Some(observer) = &mut self.observer
            && observer.take_told()
        {
            self.slow.waker.wake();
        }
        done
    }

    fn take_turn(
        &mut self,
        now: Time,
        ready: &mut Ready,
        mut poller: Option<&mut Poller>,
    ) -> Result<(), Told> {
        self.wg.prober.begin_turn(now);
        self.obey(now, poller.as_deref_mut())?;
        self.drill = self.drill.filter(|drill| now < drill.until);
        if let Some(router) = &mut self.router {
            router.tend(now);
        }
        self.expect();
        for lan in 0..self.lans.len() {
            for _ in 0..BURSTS_PER_TURN {
                if !ready.has(lan_bit(lan)) || !self.has_room() {
                    break;
                }
                ready.set(lan_bit(lan), self.outbound(now, lan));
            }
        }
        for wan in 0..self.wans.len() {
            for _ in 0..BURSTS_PER_TURN {
                if !ready.has(wan_bit(wan)) || !self.has_room() {
                    break;
                }
                let more = self.inbound(now, wan, poller.as_deref_mut())?;
                ready.set(wan_bit(wan), more);
            }
        }
        if self.crew.workers() > 1 {
            self.handed_over(now, poller)?;
        }
        // Behind what has arrived: who was heard just now is not silent.
        if self.wg.has_probes_due(now) && self.has_room() {
            let (mut wire, mut whole) = (Burst::new(), Burst::new());
            self.with_context(now, |stages, cx| {
                stages.wg.encap_probes(cx, &mut wire, &mut whole);
            });
            self.send(&mut wire);
            self.send_as(Cut::Never, &mut whole);
        }
        Ok(())
    }

    /// When the worker has something to do that nobody wakes it for.
    pub fn next_deadline(&self) -> Option<Time> {
        self.wg.prober.next_deadline()
    }

    /// Lends out what the stages need, and wakes those whom the step gave work.
    fn with_context<R>(&mut self, now: Time, step: impl FnOnce(Stages<'_>, &mut Context<'_>) -> R) -> R {
        let mut cx = Context {
            now,
            frames: &mut self.frames,
            stats: &self.stats,
            slow: &self.slow,
            wake_slow: false,
            clock: &*self.clock,
            crew: &mut self.crew,
            observing: Observing::of(self.observer.as_deref_mut(), &*self.clock),
        };
        let stages = Stages {
            wg: &mut self.wg,
            router: self.router.as_mut(),
            exits: &mut self.exits,
        };
        let result = step(stages, &mut cx);
        if cx.wake_slow {
            self.slow.waker.wake();
        }
        self.crew.flush(&self.stats);
        result
    }

    fn has_room(&self) -> bool {
        self.slow.has_room()
    }

    fn every_port(&self) -> Ready {
        let mut every = Ready::NONE;
        (0..self.lans.len()).for_each(|lan| every.set(lan_bit(lan), true));
        (0..self.wans.len()).for_each(|wan| every.set(wan_bit(wan), true));
        every
    }

    /// Whether there are ports that no descriptor tells of: then there is no sleep.
    fn has_polled_ports(&self, poller: &mut Poller) -> bool {
        for lan in (0..self.lans.len()).filter(|lan| self.lans[*lan].is_none()) {
            poller.polled.set(lan_bit(lan), false);
        }
        poller.polled != Ready::NONE
    }

    /// Looks which ports have something, and waits for one of them or another thread if `block`.
    fn look(&mut self, poller: &mut Poller, block: bool) -> Ready {
        if !self.has_room() {
            // The slow path is behind. It is awake and working; packets wait in the kernel meanwhile.
            std::thread::sleep(BACKOFF);
            return poller.every_port;
        }
        if !block || self.has_polled_ports(poller) {
            // Whoever else wants this core goes first: the packet that we look for may have to come from there.
            std::thread::yield_now();
            return poller.look(Some(&Timespec::default()));
        }
        let inbox = Arc::clone(self.crew.inbox());
        inbox.waker.announce_sleep();
        let (mut ready, mut called) = (Ready::NONE, false);
        if !self.is_called() {
            self.stats.sleeps.add(1);
            self.router.iter_mut().for_each(Router::park);
            let due = (self.next_deadline(), self.wg.prober.bearable());
            ready = poller.sleep(&*self.clock, &self.stats, due);
            self.router.iter_mut().for_each(Router::resume);
            called = poller.called;
        }
        inbox.waker.awake(called);
        ready
    }
}

/// The stages of a worker, lent to a step.
struct Stages<'a> {
    wg: &'a mut Wg,
    router: Option<&'a mut Router>,
    exits: &'a mut Exits,
}
