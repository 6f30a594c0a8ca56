//! A worker: one thread that takes packets and runs them to completion.
//!
//! A turn of the loop is: obey the slow path, LAN -> WAN, WAN -> LAN, what other workers handed over, probes that are due. When a turn finds
//! nothing, the worker goes down the idle ladder: spin for a while if configured, then block until a packet or a
//! command comes, or a probe is due. It never waits for another thread.

use std::io;
use std::sync::Arc;

use arrayvec::ArrayVec;
use patronus_crypto::{Duration, PeerId, Time};
use patronus_io::ip::FlowKey;
use patronus_io::{PORT_FDS, Port, PortError};
use patronus_mem::{BURST_MAX, Burst, FrameCache, PktBuf};
use patronus_observe::Point;
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::{AsFd, OwnedFd};

use crate::channel::{Command, Drill, Families, Notice, ToSlowPath, ToWorker, WanPort};
use crate::clock::Clock;
use crate::courtesy::Courtesy;
use crate::crew::{Crew, Taken};
use crate::ethernet;
use crate::explain::{Asked, Explained, PLACES_PER_QUERY, Query};
use crate::observe::{Observer, Observing, Seen, View};
use crate::route::{Bound, Exits, Ingress, Parsed, Router, Spread};
use crate::stats::{DropReason, Lap, Placed, Stage, WorkerStats};
use crate::wg::{Context, Wg};

/// Bursts that one port may take before the others have their turn.
const BURSTS_PER_TURN: usize = 4;
/// Packets that are taken in a turn from the ring of each other worker, at most and if there are as many.
pub const HANDED_PER_TURN: usize = BURSTS_PER_TURN * BURST_MAX;
/// Commands obeyed in a turn.
const COMMANDS_PER_TURN: usize = 32;
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

/// Peers whose session a burst has confirmed.
type Confirmed = ArrayVec<PeerId, BURST_MAX>;

/// Whether routers may cut up a datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cut {
    /// If it is too long for the rest of the way.
    OnTheWay,
    /// It is to be lost then.
    Never,
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

    /// One burst from a LAN port. True if there may be more.
    fn outbound(&mut self, now: Time, lan: usize) -> bool {
        let Some(LanPort { port, ethernet }) = &mut self.lans[lan] else {
            return false;
        };
        let (lap, ethernet) = (Lap::start(), *ethernet);
        let mut inner = Burst::new();
        if let Err(error) = port.rx_burst(&mut self.frames, &mut inner) {
            self.lan_gone(now, lan, error);
            return false;
        }
        let more = inner.room() == 0 || port.has_pending();
        if inner.is_empty() {
            return more;
        }
        self.stats.burst(Stage::LanRx, inner.len(), lap);
        if self.observer.is_some() {
            let view = if ethernet { View::Ethernet } else { View::Ip };
            self.observe(&mut inner, &Seen::at(Point::LanRx, view, lan));
        }
        if self.router.is_none() {
            self.seal_and_send(now, &mut inner);
        } else if ethernet {
            self.with_context(now, |_, cx| ethernet::strip(cx, &mut inner));
            self.route(now, &mut inner, Ingress::Ethernet, Spread::Yes);
        } else {
            self.route(now, &mut inner, Ingress::Tun, Spread::Yes);
        }
        more
    }

    /// Sends packets to the peers that the allowed-ips say.
    fn seal_and_send(&mut self, now: Time, inner: &mut Burst) {
        self.seal_by(now, |stages, cx, wire| stages.wg.encap(cx, inner, wire));
        self.send_errors(now);
    }

    /// Sends what `seal` makes, and what has to come behind it.
    fn seal_by(&mut self, now: Time, seal: impl FnOnce(Stages<'_>, &mut Context<'_>, &mut Burst)) {
        let mut wire = Burst::new();
        self.with_context(now, |stages, cx| seal(stages, cx, &mut wire));
        self.send(&mut wire);
        self.send_copies(now);
        while self.wg.has_later() {
            self.with_context(now, |stages, cx| stages.wg.encap_later(cx, &mut wire));
            self.send(&mut wire);
            self.send_copies(now);
        }
        self.send_unblocked(now);
    }

    /// Sends packets to where the router says.
    fn route(&mut self, now: Time, inner: &mut Burst, from: Ingress, spread: Spread) {
        if inner.is_empty() {
            return;
        }
        self.sort_and_send(now, inner, from, spread);
        self.send_errors(now);
    }

    /// Sends packets to where the router says that another worker has parsed.
    fn route_parsed(&mut self, now: Time, parsed: &mut Parsed, from: Ingress) {
        if parsed.is_empty() {
            return;
        }
        self.with_context(now, |stages, cx| {
            let router = stages.router.expect("only a worker with a router routes");
            router.route_parsed(cx, parsed, from, stages.exits);
        });
        self.send_exits(now);
        self.send_errors(now);
    }

    fn sort_and_send(&mut self, now: Time, inner: &mut Burst, from: Ingress, spread: Spread) {
        self.with_context(now, |stages, cx| {
            let router = stages.router.expect("only a worker with a router routes");
            router.route(cx, inner, from, spread, stages.exits);
        });
        self.send_exits(now);
    }

    /// Sends what the router has sorted.
    fn send_exits(&mut self, now: Time) {
        if !self.exits.tunnels.packets.is_empty() {
            self.seal_by(now, |stages, cx, wire| {
                stages.wg.encap_bound(cx, &mut stages.exits.tunnels, wire);
            });
        }
        for lan in 0..self.exits.lans.len() {
            if !self.exits.lans[lan].is_empty() {
                let mut burst = std::mem::take(&mut self.exits.lans[lan]);
                self.deliver(now, lan, &mut burst);
            }
        }
    }

    /// Sends packets that waited for neighbours of whom more is known now.
    fn send_waiting(&mut self, now: Time) {
        self.with_context(now, |stages, cx| {
            if let Some(router) = stages.router {
                router.release(cx, stages.exits);
            }
        });
        self.send_exits(now);
        self.send_errors(now);
    }

    /// Tells senders why their packets went no further. There are no errors about errors, so this ends.
    fn send_errors(&mut self, now: Time) {
        if !self.wg.icmp.waiting.is_empty() {
            let mut errors = std::mem::take(&mut self.wg.icmp.waiting);
            match self.router {
                None => self.deliver(now, 0, &mut errors),
                Some(_) => self.sort_and_send(now, &mut errors, Ingress::Own, Spread::No),
            }
        }
        if let Some(router) = &mut self.router
            && !router.icmp.waiting.is_empty()
        {
            let mut errors = std::mem::take(&mut router.icmp.waiting);
            self.sort_and_send(now, &mut errors, Ingress::Own, Spread::No);
        }
    }

    /// One burst from a WAN port. True if there may be more.
    fn inbound(&mut self, now: Time, wan: usize, poller: Option<&mut Poller>) -> Result<bool, Told> {
        let Some(WanPort { port, .. }) = &mut self.wans[wan] else {
            return Ok(false);
        };
        let lap = Lap::start();
        let mut wire = Burst::new();
        // A UDP socket's errors are about single datagrams or peers; the port has counted them.
        let _ = port.rx_burst(&mut self.frames, &mut wire);
        let more = wire.room() == 0 || port.has_pending();
        if !wire.is_empty() {
            self.stats.burst(Stage::WanRx, wire.len(), lap);
            if self.observer.is_some() {
                self.observe(&mut wire, &Seen::at(Point::WanRx, View::Received, wan));
            }
            if self.is_cut(wan) {
                self.drop_in_drill(&mut wire, DropReason::DrillReceived, View::Received);
            }
            // A packet of a session that was installed after this turn began may be here already: its sender was faster
            // than the turn. The command came before the packet, so obeying now makes the session known.
            self.obey(now, poller)?;
            self.open_and_deliver(now, |wg, cx, inner, confirmed| {
                wg.decap(cx, &mut wire, inner, confirmed);
            });
        }
        Ok(more)
    }

    /// Gives on what `open` makes of datagrams.
    fn open_and_deliver(
        &mut self,
        now: Time,
        open: impl FnOnce(&mut Wg, &mut Context<'_>, &mut Burst, &mut Confirmed),
    ) {
        let mut inner = Burst::new();
        let mut confirmed = Confirmed::new();
        self.with_context(now, |stages, cx| open(stages.wg, cx, &mut inner, &mut confirmed));
        match self.router {
            None => self.deliver(now, 0, &mut inner),
            Some(_) => self.route(now, &mut inner, Ingress::Tunnel, Spread::No),
        }
        for peer in confirmed {
            self.send_staged(now, peer, false);
        }
    }

    /// What other workers took in for flows and sessions of this one.
    fn handed_over(&mut self, now: Time, mut poller: Option<&mut Poller>) -> Result<(), Told> {
        for number in 0..self.crew.workers() {
            for _ in 0..BURSTS_PER_TURN {
                if !self.has_room() {
                    return Ok(());
                }
                if self.expected[number].is_empty() && !self.take(number) {
                    break;
                }
                let spare = self.spare.take().unwrap_or_default();
                let mut taken = std::mem::replace(&mut self.expected[number], spare);
                // The next ones come while these are worked off.
                self.take(number);
                if self.observer.is_some() {
                    self.observe_taken(&mut taken, number);
                }
                self.work_off(now, &mut taken, poller.as_deref_mut())?;
                self.spare = Some(taken);
            }
        }
        Ok(())
    }

    /// Takes a burst from each of the other workers. The packets come out of those workers' caches while this one's own are worked on.
    fn expect(&mut self) {
        for number in 0..self.expected.len() {
            if self.expected[number].is_empty() {
                self.take(number);
            }
        }
    }

    fn take(&mut self, number: usize) -> bool {
        self.crew
            .take(number, &mut self.expected[number], self.frames.arena())
    }

    fn work_off(&mut self, now: Time, taken: &mut Taken, poller: Option<&mut Poller>) -> Result<(), Told> {
        self.route_parsed(now, &mut taken.from_tun, Ingress::Tun);
        self.route_parsed(now, &mut taken.from_ethernet, Ingress::Ethernet);
        if !taken.encap.is_empty() {
            self.seal_and_send(now, &mut taken.encap);
        }
        if !taken.seal.packets.is_empty() {
            self.seal_by(now, |stages, cx, wire| {
                stages.wg.encap_bound(cx, &mut taken.seal, wire);
            });
            self.send_errors(now);
        }
        if !taken.decap.is_empty() {
            // As in `inbound`: the session may be newer than this turn.
            self.obey(now, poller)?;
            self.open_and_deliver(now, |wg, cx, inner, confirmed| {
                wg.decap_claimed(cx, &mut taken.decap, inner, confirmed);
            });
        }
        Ok(())
    }

    /// Gives datagrams to the links that they go to.
    fn send(&mut self, wire: &mut Burst) {
        self.send_as(Cut::OnTheWay, wire);
    }

    fn send_as(&mut self, cut: Cut, wire: &mut Burst) {
        if let [_] = self.wans[..] {
            return self.send_on(0, cut, wire);
        }
        for mut packet in wire.drain(..) {
            let way = self.own_way(&packet).or_else(|| {
                // Heard on a link that is gone, or nowhere: by another one, from an address of that one's.
                packet.outer_mut().leave_link();
                self.any_way(&packet)
            });
            match way {
                Some(wan) => self.by_wan[wan].push(packet),
                None => {
                    self.stats.drop_many(DropReason::EncapDown, 1);
                    let mut lost = Burst::new();
                    lost.push(packet);
                    self.observe_leaving(&mut lost, None, DropReason::EncapDown, View::Sent);
                    lost.clear_into(&mut self.frames);
                }
            }
        }
        for wan in 0..self.wans.len() {
            if !self.by_wan[wan].is_empty() {
                let mut burst = std::mem::take(&mut self.by_wan[wan]);
                self.send_on(wan, cut, &mut burst);
            }
        }
    }

    /// The link that a datagram's endpoint was heard on, if that is there.
    fn own_way(&self, packet: &PktBuf) -> Option<usize> {
        let ifindex = packet.outer().ifindex();
        let is_it = |wan: &WanPort| wan.ifindex == 0 || ifindex != 0 && wan.ifindex == ifindex;
        self.wans.iter().position(|wan| wan.as_ref().is_some_and(is_it))
    }

    /// The first link that has routes for it; if none has, the first.
    fn any_way(&self, packet: &PktBuf) -> Option<usize> {
        let open = |at: &usize| self.wans[*at].is_some();
        let mut links = (0..self.wans.len()).filter(open);
        let routed = links.clone().find(|at| self.sends[*at].has(packet.outer()));
        routed.or_else(|| links.next())
    }

    /// Gives datagrams to the network. Nothing can be done about an error here but to count it, as the port does.
    fn send_on(&mut self, wan: usize, cut: Cut, wire: &mut Burst) {
        if wire.is_empty() {
            return;
        }
        if self.is_cut(wan) {
            return self.drop_in_drill(wire, DropReason::DrillSent, View::Sent);
        }
        let (lap, packets) = (Lap::start(), wire.len());
        if self.observer.is_some() {
            let to = self.wans[wan].as_ref().map(|_| (Point::WanTx, wan));
            self.observe_leaving(wire, to, DropReason::EncapDown, View::Sent);
        }
        let Some(WanPort { port, .. }) = &mut self.wans[wan] else {
            self.stats.drop_many(DropReason::EncapDown, packets);
            return wire.clear_into(&mut self.frames);
        };
        let _ = match cut {
            Cut::OnTheWay => port.tx_burst(&mut self.frames, wire),
            Cut::Never => port.tx_whole(&mut self.frames, wire),
        };
        while let Some(address) = port.take_stale_source() {
            self.wg.clear_stale_source(address);
        }
        self.stats.burst(Stage::WanTx, packets, lap);
    }

    /// Whether nothing is to go by a link.
    #[inline]
    fn is_cut(&self, wan: usize) -> bool {
        self.drill.is_some_and(|drill| drill.wan == wan)
    }

    #[cold]
    fn drop_in_drill(&mut self, wire: &mut Burst, reason: DropReason, view: View) {
        self.observe_leaving(wire, None, reason, view);
        self.stats.drop_many(reason, wire.len());
        wire.clear_into(&mut self.frames);
    }

    /// Gives inner packets to a LAN port.
    fn deliver(&mut self, now: Time, lan: usize, inner: &mut Burst) {
        if inner.is_empty() {
            return;
        }
        let (lap, packets) = (Lap::start(), inner.len());
        if self.observer.is_some() {
            let ethernet = self.lans[lan].as_ref().is_some_and(|lan| lan.ethernet);
            let view = if ethernet { View::Ethernet } else { View::Ip };
            let to = self.lans[lan].as_ref().map(|_| (Point::LanTx, lan));
            self.observe_leaving(inner, to, DropReason::LanGone, view);
        }
        let Some(LanPort { port, .. }) = &mut self.lans[lan] else {
            self.stats.drop_many(DropReason::LanGone, packets);
            return inner.clear_into(&mut self.frames);
        };
        let sent = port.tx_burst(&mut self.frames, inner);
        self.stats.burst(Stage::LanTx, packets, lap);
        // What concerns single packets the port has counted.
        if let Err(PortError::Gone) = sent {
            self.lan_gone(now, lan, PortError::Gone);
        }
    }

    /// Lets go of a LAN port that cannot be used any more.
    #[cold]
    fn lan_gone(&mut self, now: Time, lan: usize, error: PortError) {
        let old = self.lans[lan].take();
        let why = match error {
            PortError::Gone => None,
            PortError::Io(error) => Some(error),
        };
        self.with_context(now, |_, cx| {
            old.into_iter().for_each(|old| cx.tell(Notice::Lan(old.port)));
            cx.tell(Notice::LanGone(lan, why));
        });
    }

    /// Sends what waited for a session with `peer`.
    fn send_staged(&mut self, now: Time, peer: PeerId, keepalive: bool) {
        let mut more = true;
        while more {
            let mut wire = Burst::new();
            more = self.with_context(now, |stages, cx| {
                stages.wg.encap_staged(cx, peer, keepalive, &mut wire)
            });
            more &= !wire.is_empty();
            self.send(&mut wire);
        }
    }

    /// Sends the second ones of packets that go twice.
    #[inline]
    fn send_copies(&mut self, now: Time) {
        if self.wg.has_copies() {
            let mut wire = Burst::new();
            self.with_context(now, |stages, cx| stages.wg.encap_copies(cx, &mut wire));
            self.send(&mut wire);
        }
    }

    /// Sends what waited for the base session of remotes to which there are lanes by now.
    fn send_unblocked(&mut self, now: Time) {
        while let Some(remote) = self.wg.take_unblocked() {
            self.send_staged(now, remote, false);
        }
    }

    /// Sends a control message; without a session it is lost, and repeated like one.
    fn send_control(&mut self, now: Time, peer: PeerId, bytes: &[u8]) {
        let mut wire = Burst::new();
        self.with_context(now, |stages, cx| {
            stages.wg.encap_control(cx, peer, bytes, &mut wire);
        });
        self.send(&mut wire);
    }

    /// Sends a ping; without a session it is lost, and so is its answer.
    fn send_ping(&mut self, now: Time, peer: PeerId, ping: &[u8]) {
        let mut wire = Burst::new();
        self.with_context(now, |stages, cx| stages.wg.encap_ping(cx, peer, ping, &mut wire));
        self.send(&mut wire);
    }

    /// Commands of the slow path.
    fn obey(&mut self, now: Time, mut poller: Option<&mut Poller>) -> Result<(), Told> {
        if self.crew.inbox().commands.is_empty() {
            return Ok(());
        }
        let inbox = Arc::clone(self.crew.inbox());
        for _ in 0..COMMANDS_PER_TURN {
            if !self.has_room() {
                break;
            }
            let Some(command) = inbox.commands.pop() else {
                break;
            };
            match command {
                Command::Stop => return Err(Told),
                Command::Wan(link, port) => self.replace_wan(now, link, port, poller.as_deref_mut()),
                Command::Sends(link, families) => self.sends[link] = families,
                Command::Drill(drill) => self.drill = drill,
                Command::Lan(lan, port) => self.replace_lan(now, lan, port, poller.as_deref_mut()),
                Command::Install(keypair) => {
                    let peer = keypair.peer;
                    if self.with_context(now, |stages, cx| stages.wg.install(cx, keypair)) {
                        self.send_staged(now, peer, true);
                    }
                }
                Command::Keepalive(peer) => self.send_staged(now, peer, true),
                Command::Control(peer, bytes) => self.send_control(now, peer, &bytes),
                Command::Ping(peer, ping) => self.send_ping(now, peer, &ping),
                Command::Place(peer, worker) => self.crew.place(peer, worker),
                Command::Neighbours => self.send_waiting(now),
                Command::Ask(query) => self.explain(now, query),
                Command::Observe(observer) => self.replace_observer(now, observer),
                other => self.with_context(now, |stages, cx| apply(stages.wg, cx, other)),
            }
        }
        Ok(())
    }

    /// Says what becomes of flows.
    #[cold]
    fn explain(&mut self, now: Time, mut query: Box<Query>) {
        match query.asked {
            Asked::Flow(key) => query.told.push(self.explain_flow(now, key)),
            Asked::Flows(from) => query.next = self.tell_flows(now, from, &mut query.told),
        }
        self.with_context(now, |_, cx| cx.tell(Notice::Told(query)));
    }

    fn explain_flow(&self, now: Time, key: FlowKey) -> Explained {
        let mut told = match &self.router {
            Some(router) => router.explain(now, key),
            None => self.wg.explain(key),
        };
        self.wg.explain_path(now, &mut told);
        told
    }

    /// Tells of flows from a place of the table on, as many as there is room for; returns where to go on, if there is more.
    fn tell_flows(&self, now: Time, from: u32, told: &mut Vec<Explained>) -> Option<u32> {
        let router = self.router.as_ref()?;
        for place in from..from.saturating_add(PLACES_PER_QUERY) {
            if told.len() == told.capacity() {
                return Some(place);
            }
            let key = router.flow_at(place)?;
            told.extend(key.map(|key| self.explain_flow(now, key)));
        }
        Some(from.saturating_add(PLACES_PER_QUERY))
    }

    fn replace_observer(&mut self, now: Time, observer: Option<Box<Observer>>) {
        let old = std::mem::replace(&mut self.observer, observer);
        self.tell_observer_of_links();
        if let Some(old) = old {
            self.with_context(now, |_, cx| cx.tell(Notice::Observer(old)));
        }
    }

    fn tell_observer_of_links(&mut self) {
        if let Some(observer) = &mut self.observer {
            // A link that is not there has no datagrams.
            let ifindex = |wan: &Option<WanPort>| wan.as_ref().map_or(u32::MAX, |wan| wan.ifindex);
            observer.set_links(self.wans.iter().map(ifindex));
        }
    }

    /// Has the observer see a burst.
    #[cold]
    fn observe(&mut self, burst: &mut Burst, seen: &Seen) {
        if let Some(mut observing) = Observing::of(self.observer.as_deref_mut(), &*self.clock) {
            observing.see_all(burst, seen);
        }
    }

    /// The same for what another worker has handed over.
    #[cold]
    fn observe_taken(&mut self, taken: &mut Taken, number: usize) {
        for (burst, view) in taken.packets_mut() {
            self.observe(burst, &Seen::at(Point::TakeOver, view, number));
        }
    }

    /// The same for what is about to leave by a port, or does not because that is not there.
    #[cold]
    fn observe_leaving(
        &mut self,
        burst: &mut Burst,
        to: Option<(Point, usize)>,
        reason: DropReason,
        view: View,
    ) {
        let seen = match to {
            Some((point, place)) => Seen::at(point, view, place),
            None => Seen {
                reason: Some(reason),
                ..Seen::at(Point::Drop, view, 0)
            },
        };
        self.observe(burst, &seen);
    }

    fn replace_wan(&mut self, now: Time, link: usize, port: Option<WanPort>, poller: Option<&mut Poller>) {
        if let Some(poller) = poller {
            let [old, new] = [&self.wans[link], &port].map(|wan| wan.as_ref().map(|wan| &*wan.port));
            poller.replace(wan_bit(link), old, new);
        }
        let old = std::mem::replace(&mut self.wans[link], port);
        self.tell_observer_of_links();
        if let Some(old) = old {
            self.with_context(now, |_, cx| cx.tell(Notice::Wan(old.port)));
        }
    }

    fn replace_lan(&mut self, now: Time, lan: usize, port: Option<LanPort>, poller: Option<&mut Poller>) {
        let [old, new] = [&self.lans[lan], &port].map(|lan| lan.as_ref().map(|lan| &*lan.port));
        if let Some(poller) = poller {
            poller.replace(lan_bit(lan), old, new);
        }
        if let Some(old) = std::mem::replace(&mut self.lans[lan], port) {
            self.with_context(now, |_, cx| cx.tell(Notice::Lan(old.port)));
        }
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

/// The commands that only concern WireGuard's state.
fn apply(wg: &mut Wg, cx: &mut Context<'_>, command: Command) {
    match command {
        Command::AddPeer(slot) => wg.add_peer(cx, slot),
        Command::RemovePeer(peer) => wg.remove_peer(cx, peer),
        Command::Routes(routes) => wg.set_routes(cx, routes),
        Command::IndexAdded(index, peer) => wg.add_foreign_index(index, peer),
        Command::IndexRemoved(index) => wg.remove_foreign_index(index),
        Command::Endpoint(peer, endpoint) => wg.set_endpoint(cx, peer, endpoint),
        Command::Follow(lane, from, to) => wg.follow(lane, from, to),
        Command::ClearSource(peer) => wg.clear_source(peer),
        Command::LeaveLink(ifindex) => wg.leave_link(ifindex),
        Command::Shun(peer, ifindex) => wg.shun(peer, ifindex),
        Command::Pinged(peer, pinged) => wg.set_pinged(peer, pinged),
        Command::Remote(peer) => wg.set_remote(peer),
        Command::Paths(remote, paths) => wg.set_paths(cx, remote, paths),
        Command::Probe(remote, set) => wg.probe(cx, remote, set),
        Command::Probing(probing) => wg.prober.set_probing(probing),
        Command::Suspect(remote, suspects) => wg.prober.suspect(cx.now, remote, &suspects),
        Command::Used(remote) => wg.prober.used(cx.now, remote),
        Command::Classes(manners) => wg.set_classes(manners),
        Command::Order(remote, class, order) => wg.set_order(cx, remote, class, order),
        Command::Restarted(remote) => wg.restarted(remote),
        Command::Silent(lane) => wg.set_silent(lane),
        Command::DropStaged(peer) => wg.drop_staged(cx, peer),
        Command::EraseKeys(peer) => wg.erase_keys(cx, peer),
        Command::ExpireSending(peer) => wg.expire_sending(peer),
        Command::Mtu(mtu) => wg.set_mtu(cx.now, mtu),
        Command::Install(_)
        | Command::Keepalive(_)
        | Command::Control(..)
        | Command::Ping(..)
        | Command::Place(..)
        | Command::Neighbours
        | Command::Wan(..)
        | Command::Sends(..)
        | Command::Drill(_)
        | Command::Lan(..)
        | Command::Ask(_)
        | Command::Observe(_)
        | Command::Stop => unreachable!("obeyed by the worker itself"),
    }
}

/// The descriptors that a worker sleeps on.
struct Poller {
    epoll: OwnedFd,
    /// What a look finds that went wrong: as good as an event from everywhere.
    every_port: Ready,
    /// Ports without descriptors, which nothing wakes us for.
    polled: Ready,
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

/// What a descriptor in the poller stands for, besides the ports, which are known by their bits.
const INBOX: u64 = 32;
const TIMER: u64 = 33;

impl Poller {
    fn new(worker: &Worker) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let mut poller = Poller {
            events: Vec::with_capacity(2 * PORT_FDS),
            every_port: worker.every_port(),
            polled: Ready::NONE,
            called: false,
            timer_fired: false,
            traffic: false,
            courtesy: Courtesy::begin(&epoll, EventData::new_u64(TIMER)),
            epoll,
        };
        poller.add(worker.crew.inbox().waker.as_fd(), INBOX)?;
        for (at, lan) in worker.lans.iter().enumerate() {
            for fd in lan.iter().flat_map(|lan| lan.port.wait_fds()) {
                poller.add(fd, lan_bit(at).into())?;
            }
            let is_polled = lan.as_ref().is_some_and(|lan| lan.port.wait_fds().is_empty());
            poller.polled.set(lan_bit(at), is_polled);
        }
        for (at, wan) in worker.wans.iter().enumerate() {
            poller.replace(wan_bit(at), None, wan.as_ref().map(|wan| &*wan.port));
        }
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

    fn replace(&mut self, bit: u32, old: Option<&(dyn Port + Send)>, new: Option<&(dyn Port + Send)>) {
        for fd in old.iter().flat_map(|port| port.wait_fds()) {
            let _ = epoll::delete(&self.epoll, fd);
        }
        for fd in new.iter().flat_map(|port| port.wait_fds()) {
            // Out of memory for a watch: the port is still read whenever something else wakes the worker.
            let _ = self.add(fd, bit.into());
        }
        let is_polled = new.is_some_and(|port| port.wait_fds().is_empty());
        self.polled.set(bit, is_polled);
    }

    /// A turn begins.
    fn turn(&mut self, now: Time) {
        if let Some(courtesy) = &mut self.courtesy {
            courtesy.turn(now);
        }
    }

    /// Waits for something to do, until then at the latest, and for the timer that tells how long waking takes. With how much too late does no harm.
    fn sleep(
        &mut self,
        clock: &dyn Clock,
        stats: &WorkerStats,
        (due, bearable): (Option<Time>, Duration),
    ) -> Ready {
        if self.traffic
            && let Some(courtesy) = &mut self.courtesy
        {
            courtesy.before_sleep(clock.mono(), stats.received());
        }
        // What is overdue already says nothing about waking.
        let begun = clock.mono();
        let alarm = due.filter(|due| *due > begun);
        let most = due.map(|due| due.since(begun));
        let most = most.and_then(|most| Timespec::try_from(most).ok());
        let ready = self.look(most.as_ref());
        if let Some(courtesy) = &mut self.courtesy {
            let now = clock.mono();
            if courtesy.woke(now, alarm.map_or(Duration::ZERO, |due| now.since(due)), bearable) {
                stats.realtime.add(1);
            }
            if self.timer_fired {
                courtesy.timer_fired(now);
            }
        }
        self.traffic = ready != Ready::NONE || self.called;
        ready
    }

    fn look(&mut self, timeout: Option<&Timespec>) -> Ready {
        self.events.clear();
        (self.called, self.timer_fired) = (false, false);
        if epoll::wait(&self.epoll, spare_capacity(&mut self.events), timeout).is_err() {
            // Interrupted.
            return self.every_port;
        }
        let mut ready = self.polled;
        for event in &self.events {
            match event.data.u64() {
                INBOX => self.called = true,
                TIMER => self.timer_fired = true,
                bit => ready.set(bit as u32, true),
            }
        }
        ready
    }
}
