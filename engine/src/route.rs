//! Route: what becomes of an inner packet, from a LAN port or out of a tunnel.
//!
//! Runs on a worker, on whole bursts:
//!
//! 1. *parse*: the headers, once; the flow and its hash; whose flow it is
//! 2. *judge*: the flow table has what the policies say about the flow; a new flow is classified
//! 3. *look up*: the longest prefix around the destination -> next-hop group
//! 4. *dispatch*: the flow's next hop of the group; time to live, length; into the burst of the exit
//!
//! The flow table is the worker's own. Policies and groups are a [`Snapshot`], the prefixes two [`Fib`](crate::fib::Fib)s; both are read under
//! the worker's [`Reader`] and changed by somebody else at any time.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use arrayvec::ArrayVec;
use patronus_crypto::{Duration, PeerId, Time};
use patronus_io::ip::{self, FlowKey, Malformed, Packet, Version};
use patronus_mem::{BURST_MAX, Burst, PktBuf};
use patronus_observe::{Exit as Shown, Point};
use patronus_sync::{Published, Reader};

use crate::crew::Handing;
use crate::ethernet;
use crate::explain::{Explained, Whither};
use crate::fib::{FibV4, FibV6, Group};
use crate::flow::{Flow, FlowTable, Full, HashKeys, HashedKey};
use crate::icmp::{Icmp, IcmpError};
use crate::neighbour::{Addressed, Waiting};
use crate::observe::{Seen, View};
use crate::snapshot::{Action, Exit, Hop, Judgement, Snapshot};
use crate::stats::{DropReason, Lap, Stage};
use crate::steer::bucket_of;
use crate::wg::Context;

/// Nanoseconds of a unit of the flow table's time, as a power of two.
const COARSE_BITS: u32 = 20;
/// A flow without packets for this long is forgotten.
const FLOW_IDLE: u32 = coarse(Time::from_secs(120));
/// In this time every place of the flow table is looked at.
const EXPIRE_ROUND: u32 = coarse(Time::from_secs(1));
/// Places that are looked at in a turn at most.
const EXPIRE_MAX: usize = 1024;

/// Where a packet came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ingress {
    /// From a TUN: the host has routed it already.
    Tun,
    /// From an Ethernet port: we are its router.
    Ethernet,
    /// Out of a tunnel.
    Tunnel,
    /// Made here.
    Own,
}

/// Whether flows are spread over the workers: not those that another worker has handed over already, nor what came out of a tunnel, whose lane is
/// this worker's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spread {
    /// A packet goes to its flow's worker.
    Yes,
    /// A packet stays.
    No,
}

/// To whom a packet goes in a tunnel, and what says by which path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Aim {
    /// The peer.
    pub peer: PeerId,
    /// The class of the packet's flow.
    pub class: u8,
    /// The bucket of the flow.
    pub bucket: u8,
}

/// Packets that leave in tunnels, and whose tunnels.
#[derive(Default)]
pub struct Bound {
    /// The packets.
    pub packets: Burst,
    /// For each where it is to go.
    pub aims: ArrayVec<Aim, BURST_MAX>,
}

impl Bound {
    /// Puts a packet at the end; there is room.
    #[inline]
    pub fn push(&mut self, packet: PktBuf, aim: Aim) {
        self.packets.push(packet);
        self.aims.push(aim);
    }
}

/// What leaves, by exit.
#[derive(Default)]
pub struct Exits {
    /// In tunnels.
    pub tunnels: Bound,
    /// By LAN port.
    pub lans: Vec<Burst>,
}

/// What a worker remembers of a flow.
#[derive(Clone, Copy, Default)]
struct Remembered {
    /// The group that the policies name, [`ROUTED`] or [`DROPPED`].
    group: u32,
    class: u8,
}

const ROUTED: u32 = 0;
const DROPPED: u32 = u32::MAX;
const _: () = assert!(Group::MAX < DROPPED);

/// Packets whose headers have been read, and for each its flow: what the steps after the first need, and what a packet takes along to another worker.
#[derive(Default)]
pub struct Parsed {
    packets: Burst,
    flows: ArrayVec<HashedKey, BURST_MAX>,
}

impl Parsed {
    /// Puts a packet at the end; there is room.
    #[inline]
    pub fn push(&mut self, packet: PktBuf, flow: HashedKey) {
        self.packets.push(packet);
        self.flows.push(flow);
    }

    /// True if there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// The packets, writable.
    pub fn packets_mut(&mut self) -> &mut Burst {
        &mut self.packets
    }

    /// Takes the packets out whose bits are set.
    #[cold]
    fn remove(&mut self, bits: u64, judged: &mut Judged, mut gone: impl FnMut(PktBuf)) {
        let mut kept = 0;
        for at in 0..self.packets.len() {
            if bits & 1 << at == 0 {
                self.packets.swap(kept, at);
                self.flows.swap(kept, at);
                judged.groups.swap(kept, at);
                judged.classes.swap(kept, at);
                kept += 1;
            }
        }
        self.packets.drain(kept..).for_each(&mut gone);
        self.flows.truncate(kept);
    }
}

/// For each packet of a burst a group.
type Groups = [Option<Group>; BURST_MAX];

/// What policies say of the packets of a burst.
struct Judged {
    groups: Groups,
    classes: [u8; BURST_MAX],
}

/// By what a worker routes.
pub struct Rules {
    /// Policies and next hops.
    pub snapshot: Published<Snapshot>,
    /// Routes of IPv4.
    pub v4: Arc<FibV4>,
    /// Routes of IPv6.
    pub v6: Arc<FibV6>,
    /// This worker, as a reader of all three.
    pub reader: Reader,
}

/// One worker's router.
pub struct Router {
    flows: FlowTable<Remembered>,
    rules: Rules,
    /// When flows that have ended were last looked for.
    tended: u32,
    /// Errors about packets that could not be routed, to be routed themselves.
    pub icmp: Icmp,
    /// Packets to neighbours that are being looked for.
    waiting: Waiting,
}

/// The time in the flow table's units, of a little more than a millisecond.
const fn coarse(time: Time) -> u32 {
    (time.0 >> COARSE_BITS) as u32
}

impl Router {
    /// A router that remembers up to `flows` flows. All routers that hand packets to each other have the same keys.
    ///
    /// # Panics
    ///
    /// If the reader is not one of the rules' domain.
    pub fn new(flows: usize, keys: HashKeys, mut rules: Rules) -> io::Result<Router> {
        rules.reader.resume();
        rules.snapshot.get(&rules.reader);
        rules.v4.lookup(&rules.reader, &[0; 4]);
        rules.v6.lookup(&rules.reader, &[0; 16]);
        Ok(Router {
            flows: FlowTable::new(flows, keys)?,
            rules,
            tended: 0,
            icmp: Icmp::default(),
            waiting: Waiting::default(),
        })
    }

    /// Flows that are remembered.
    pub fn flows(&self) -> usize {
        self.flows.len()
    }

    /// Once a turn: lets go of what was looked at, and of flows that have ended. Every place of the table is looked at once in
    /// [`EXPIRE_ROUND`], unless turns are so rare that that would take too long.
    pub fn tend(&mut self, now: Time) {
        self.rules.reader.quiescent();
        let now = coarse(now);
        let passed = now.wrapping_sub(self.tended).min(EXPIRE_ROUND) as usize;
        if passed > 0 {
            self.tended = now;
            let places = (self.flows.limit() * passed).div_ceil(EXPIRE_ROUND as usize);
            self.flows.expire(now, FLOW_IDLE, places.min(EXPIRE_MAX));
        }
    }

    /// Before the worker sleeps: it looks at nothing meanwhile.
    pub fn park(&mut self) {
        self.rules.reader.park();
    }

    /// After it has slept.
    pub fn resume(&mut self) {
        self.rules.reader.resume();
    }

    /// Sorts the packets of `inner` into `exits`, which has room for as many; `inner` is empty afterwards. What cannot go on is handed to the
    /// flow's worker or dropped under a name.
    pub fn route(
        &mut self,
        cx: &mut Context<'_>,
        inner: &mut Burst,
        from: Ingress,
        spread: Spread,
        exits: &mut Exits,
    ) {
        let (lap, packets) = (Lap::start(), inner.len());
        let mut parsed = Parsed::default();
        let snapshot = self.rules.snapshot.get(&self.rules.reader);
        parse(cx, &self.flows, snapshot, inner, from, spread, &mut parsed);
        self.sort(cx, &mut parsed, from, exits);
        cx.stats.burst(Stage::Route, packets, lap);
    }

    /// The same for packets that another worker has parsed: the flows are this one's.
    pub fn route_parsed(
        &mut self,
        cx: &mut Context<'_>,
        parsed: &mut Parsed,
        from: Ingress,
        exits: &mut Exits,
    ) {
        let (lap, packets) = (Lap::start(), parsed.packets.len());
        self.sort(cx, parsed, from, exits);
        cx.stats.burst(Stage::Route, packets, lap);
    }

    /// What comes after parsing; `parsed` is empty afterwards.
    #[inline]
    fn sort(&mut self, cx: &mut Context<'_>, parsed: &mut Parsed, from: Ingress, exits: &mut Exits) {
        // Looked at once, so that one burst is judged and dispatched by one snapshot.
        let snapshot = self.rules.snapshot.get(&self.rules.reader);
        let mut judged = Judged {
            groups: [None; BURST_MAX],
            classes: [0; BURST_MAX],
        };
        judge(cx, &mut self.flows, snapshot, parsed, &mut judged);
        look_up(&self.rules, &parsed.flows, &mut judged.groups);
        if cx.observing.is_some() {
            observe_routed(cx, snapshot, parsed, &judged.groups);
        }
        let mut onward = Onward {
            icmp: &mut self.icmp,
            waiting: &mut self.waiting,
            snapshot,
            exits,
        };
        onward.dispatch(cx, parsed, &judged, from);
    }

    /// What becomes of a flow. Changes nothing.
    pub fn explain(&self, now: Time, key: FlowKey) -> Explained {
        let HashedKey { hash, .. } = self.flows.hashed(key);
        let reader = &self.rules.reader;
        let snapshot = self.rules.snapshot.get(reader);
        let Judgement { action, class } = snapshot.judge(&key);
        let group = match action {
            Action::Drop => None,
            Action::Via(group) => Some(group),
            Action::Route if key.is_ipv6() => self.rules.v6.lookup(reader, &key.dst_v6()),
            Action::Route => self.rules.v4.lookup(reader, &key.dst_v4()),
        };
        let hop = group.and_then(|group| snapshot.hop(group, hash));
        let idle = |flow: &Flow<Remembered>| {
            let units = coarse(now).wrapping_sub(flow.seen);
            Duration::from_nanos(u64::from(units) << COARSE_BITS)
        };
        let flow = self.flows.find(&key).map(|id| self.flows.get(id));
        Explained {
            key,
            idle: flow.map(idle),
            bytes: flow.map(|flow| flow.bytes),
            owner: snapshot.worker(hash),
            policy: snapshot.policy(&key).map(|at| at as u32),
            class,
            whither: match (action, hop) {
                (Action::Drop, _) => Whither::Dropped,
                (_, None) => Whither::NoRoute,
                (_, Some(hop)) => Whither::Exit(hop.exit),
            },
            bucket: Some(bucket_of(hash)),
            steered: None,
        }
    }

    /// The flow in a place of the table, if there is one; `None` behind the last place.
    pub fn flow_at(&self, place: u32) -> Option<Option<FlowKey>> {
        let is_place = (place as usize) < self.flows.limit();
        is_place.then(|| self.flows.at(place).map(|flow| *flow.key()))
    }

    /// Sorts the packets that waited for a neighbour of whom more is known now into `exits`, which is empty.
    pub fn release(&mut self, cx: &mut Context<'_>, exits: &mut Exits) {
        let snapshot = self.rules.snapshot.get(&self.rules.reader);
        let answered = self.waiting.answered(cx, snapshot.neighbours());
        let mut onward = Onward {
            icmp: &mut self.icmp,
            waiting: &mut self.waiting,
            snapshot,
            exits,
        };
        for (lan, addressed) in answered {
            onward.finish(cx, lan, addressed);
        }
    }
}

fn parse(
    cx: &mut Context<'_>,
    flows: &FlowTable<Remembered>,
    snapshot: &Snapshot,
    inner: &mut Burst,
    from: Ingress,
    spread: Spread,
    parsed: &mut Parsed,
) {
    for mut packet in inner.drain(..) {
        let (key, len) = match examine(packet.data()) {
            Ok(found) => found,
            Err(reason) => {
                cx.discard(reason, packet);
                continue;
            }
        };
        let flow = flows.hashed(key);
        // Ethernet makes short packets longer.
        packet.truncate(len);
        if spread == Spread::Yes
            && let Some(worker) = snapshot.worker(flow.hash)
            && worker != cx.crew.me()
        {
            let ethernet = from == Ingress::Ethernet;
            cx.hand_over(worker, packet, Handing::Route { ethernet, flow });
            continue;
        }
        parsed.push(packet, flow);
    }
}

/// Asks the flow table, and the policies about flows that are new or were judged by others.
fn judge(
    cx: &mut Context<'_>,
    flows: &mut FlowTable<Remembered>,
    snapshot: &Snapshot,
    parsed: &mut Parsed,
    judged: &mut Judged,
) {
    let mut found = [None; BURST_MAX];
    let found = &mut found[..parsed.packets.len()];
    flows.find_burst(&parsed.flows, found);
    let mut dropped = 0;
    let to = judged.groups.iter_mut().zip(&mut judged.classes);
    let all = found.iter().zip(&parsed.flows).zip(to);
    for (at, ((id, HashedKey { key, .. }), (group, class))) in all.enumerate() {
        let len = parsed.packets[at].len();
        // An earlier packet of this burst may have been the flow's first.
        let id = id.or_else(|| flows.find(key));
        let known = match id {
            Some(id) => {
                let flow = flows.get_mut(id);
                if flow.epoch != snapshot.epoch() {
                    flow.epoch = snapshot.epoch();
                    flow.value = pack(snapshot.judge(key));
                }
                flow.seen = coarse(cx.now);
                flow.bytes += len as u64;
                flow.value
            }
            None => {
                let judged = pack(snapshot.judge(key));
                match flows.insert(*key, coarse(cx.now), snapshot.epoch(), judged) {
                    Ok(id) => flows.get_mut(id).bytes = len as u64,
                    Err(Full) => cx.stats.flows_unremembered.add(1),
                }
                judged
            }
        };
        *group = Group::new(known.group);
        *class = known.class;
        if known.group == DROPPED {
            dropped |= 1 << at;
        }
    }
    if dropped != 0 {
        if cx.observing.is_some() {
            observe_refused(cx, snapshot, parsed, dropped);
        }
        parsed.remove(dropped, judged, |packet| {
            cx.discard(DropReason::RoutePolicy, packet)
        });
    }
}

/// Asks the FIB about packets that no policy has sent elsewhere.
fn look_up(rules: &Rules, flows: &[HashedKey], groups: &mut Groups) {
    let wanted = flows.iter().zip(&*groups);
    let v4_alone = wanted.fold(true, |all, (flow, group)| {
        all & group.is_none() & !flow.key.is_ipv6()
    });
    if v4_alone {
        let destination = |flow: &HashedKey| flow.key.dst_v4();
        rules
            .v4
            .lookup_burst_of(&rules.reader, flows, destination, groups);
    } else {
        look_up_mixed(rules, flows, groups);
    }
}

fn look_up_mixed(rules: &Rules, flows: &[HashedKey], groups: &mut Groups) {
    let mut v4 = ArrayVec::<(u8, [u8; 4]), BURST_MAX>::new();
    let mut v6 = ArrayVec::<(u8, [u8; 16]), BURST_MAX>::new();
    for (at, HashedKey { key, .. }) in flows.iter().enumerate() {
        if groups[at].is_some() {
            continue;
        }
        if key.is_ipv6() {
            v6.push((at as u8, key.dst_v6()));
        } else {
            v4.push((at as u8, key.dst_v4()));
        }
    }
    let mut found = [None; BURST_MAX];
    rules
        .v4
        .lookup_burst_of(&rules.reader, &v4, |(_, addr)| *addr, &mut found);
    for ((at, _), group) in v4.iter().zip(found) {
        groups[usize::from(*at)] = group;
    }
    rules
        .v6
        .lookup_burst_of(&rules.reader, &v6, |(_, addr)| *addr, &mut found);
    for ((at, _), group) in v6.iter().zip(found) {
        groups[usize::from(*at)] = group;
    }
}

/// Has an observer see where packets go.
#[cold]
fn observe_routed(cx: &mut Context<'_>, snapshot: &Snapshot, parsed: &mut Parsed, groups: &Groups) {
    let Some(observing) = &mut cx.observing else {
        return;
    };
    for ((packet, flow), group) in parsed.packets.iter_mut().zip(&parsed.flows).zip(groups) {
        let hop = group.and_then(|group| snapshot.hop(group, flow.hash));
        let seen = Seen {
            policy: snapshot.policy(&flow.key).map_or(0, |at| at as u32 + 1),
            group: group.map_or(0, Group::number),
            ..Seen::at(Point::Route, View::Ip, 0)
        };
        observing.see(packet, &with_exit(seen, hop));
    }
}

fn with_exit(seen: Seen, hop: Option<&Hop>) -> Seen {
    let (exit, place) = match hop.map(|hop| hop.exit) {
        None => (Shown::NoRoute, 0),
        Some(Exit::Tunnel(peer)) => {
            return Seen {
                exit: Shown::Tunnel,
                session: Some((peer, peer)),
                ..seen
            };
        }
        Some(Exit::Lan(lan, _)) => (Shown::Lan, lan),
        Some(Exit::Neighbour(lan, _)) => (Shown::Neighbour, lan),
        Some(Exit::Unreachable) => (Shown::Unreachable, 0),
        Some(Exit::Discard) => (Shown::Discard, 0),
    };
    Seen { exit, place, ..seen }
}

/// The same for packets that a policy has stopped: those whose bits are set.
#[cold]
fn observe_refused(cx: &mut Context<'_>, snapshot: &Snapshot, parsed: &mut Parsed, dropped: u64) {
    let Some(observing) = &mut cx.observing else {
        return;
    };
    let packets = parsed.packets.iter_mut().zip(&parsed.flows).enumerate();
    for (_, (packet, flow)) in packets.filter(|(at, _)| dropped & 1 << at != 0) {
        let seen = Seen {
            policy: snapshot.policy(&flow.key).map_or(0, |at| at as u32 + 1),
            exit: Shown::Policy,
            ..Seen::at(Point::Route, View::Ip, 0)
        };
        observing.see(packet, &seen);
    }
}

/// The last step, and what it needs.
struct Onward<'a> {
    icmp: &'a mut Icmp,
    waiting: &'a mut Waiting,
    snapshot: &'a Snapshot,
    exits: &'a mut Exits,
}

/// Why a packet does not get to its next hop, and what its sender is told.
type Refusal = (DropReason, Option<IcmpError>);

const NO_ROUTE: Refusal = (DropReason::RouteNone, Some(IcmpError::NoRoute));

fn too_big(hop: &Hop) -> Refusal {
    (DropReason::RouteTooBig, Some(IcmpError::TooBig(hop.mtu)))
}

impl Onward<'_> {
    fn dispatch(&mut self, cx: &mut Context<'_>, parsed: &mut Parsed, judged: &Judged, from: Ingress) {
        let flows = parsed.flows.iter().zip(&judged.groups).zip(&judged.classes);
        for (packet, ((flow, group), class)) in parsed.packets.drain(..).zip(flows) {
            let hop = group.and_then(|group| self.snapshot.hop(group, flow.hash));
            match hop {
                Some(hop) => self.leave_by(cx, hop, packet, from, (flow, *class)),
                None => self.refuse(cx, packet, NO_ROUTE),
            }
        }
        parsed.flows.clear();
    }

    #[inline]
    fn leave_by(
        &mut self,
        cx: &mut Context<'_>,
        hop: &Hop,
        packet: PktBuf,
        from: Ingress,
        (HashedKey { key, hash }, class): (&HashedKey, u8),
    ) {
        match &hop.exit {
            Exit::Lan(lan, Some(addresses)) => {
                if let Some(mut packet) = self.take_hop(cx, hop, packet, from) {
                    let version = if key.is_ipv6() { Version::V6 } else { Version::V4 };
                    ethernet::dress(&mut packet, addresses, version);
                    self.leave(cx, *lan, packet);
                }
            }
            Exit::Tunnel(peer) => {
                if let Some(packet) = self.take_hop(cx, hop, packet, from) {
                    let aim = Aim {
                        peer: *peer,
                        class,
                        bucket: bucket_of(*hash),
                    };
                    self.exits.tunnels.push(packet, aim);
                }
            }
            Exit::Neighbour(lan, own) => {
                if let Some(packet) = self.take_hop(cx, hop, packet, from) {
                    let to = (*lan, destination(key));
                    let neighbours = self.snapshot.neighbours();
                    let addressed = self.waiting.address(cx, neighbours, to, *own, packet);
                    self.finish(cx, *lan, addressed);
                }
            }
            // The host would send it here again.
            Exit::Lan(_, None) if from == Ingress::Tun => self.refuse(cx, packet, NO_ROUTE),
            // Behind a TUN is the host, which takes the hop itself.
            Exit::Lan(lan, None) if packet.len() <= usize::from(hop.mtu) => self.leave(cx, *lan, packet),
            Exit::Lan(_, None) => self.refuse(cx, packet, too_big(hop)),
            Exit::Unreachable => {
                let unknown = (DropReason::NeighbourUnknown, Some(IcmpError::HostUnreachable));
                self.refuse(cx, packet, unknown);
            }
            Exit::Discard => self.refuse(cx, packet, (DropReason::RouteDiscard, None)),
        }
    }

    /// The packet, with one hop less to go, if it has one and fits. From a TUN, the host has taken the hop already.
    #[inline]
    fn take_hop(
        &mut self,
        cx: &mut Context<'_>,
        hop: &Hop,
        mut packet: PktBuf,
        from: Ingress,
    ) -> Option<PktBuf> {
        let is_router = matches!(from, Ingress::Ethernet | Ingress::Tunnel);
        if packet.len() <= usize::from(hop.mtu) && (!is_router || ip::take_hop(packet.data_mut())) {
            return Some(packet);
        }
        self.take_hop_otherwise(cx, hop, packet, is_router)
    }

    /// The same for one that does not fit, or has no hop left.
    #[cold]
    fn take_hop_otherwise(
        &mut self,
        cx: &mut Context<'_>,
        hop: &Hop,
        mut packet: PktBuf,
        is_router: bool,
    ) -> Option<PktBuf> {
        let refusal = if is_router && !ip::may_go_further(packet.data()) {
            (DropReason::RouteTtl, Some(IcmpError::TimeExceeded))
        } else if may_be_cut(hop, &packet) {
            if is_router {
                ip::take_hop(packet.data_mut());
            }
            return Some(packet);
        } else {
            // It is quoted as it came.
            too_big(hop)
        };
        self.refuse(cx, packet, refusal);
        None
    }

    #[cold]
    fn refuse(&mut self, cx: &mut Context<'_>, packet: PktBuf, (reason, error): Refusal) {
        if let Some(error) = error {
            self.icmp.answer(cx, packet.data(), error);
        }
        cx.discard(reason, packet);
    }

    fn leave(&mut self, cx: &mut Context<'_>, lan: u16, packet: PktBuf) {
        match self.exits.lans.get_mut(usize::from(lan)) {
            Some(burst) => burst.push(packet),
            None => cx.discard(DropReason::LanGone, packet),
        }
    }

    fn finish(&mut self, cx: &mut Context<'_>, lan: u16, addressed: Addressed) {
        match addressed {
            Addressed::Ready(packet) => self.leave(cx, lan, packet),
            Addressed::Held => {}
            Addressed::Silent(packet) => {
                let silent = (DropReason::NeighbourSilent, Some(IcmpError::HostUnreachable));
                self.refuse(cx, packet, silent);
            }
        }
    }
}

/// Whether a packet that is longer than its hop takes is cut up later, in front of the tunnel.
fn may_be_cut(hop: &Hop, packet: &PktBuf) -> bool {
    let inner = Packet::parse(packet.data());
    matches!(hop.exit, Exit::Tunnel(_)) && inner.is_ok_and(|inner| !inner.must_not_be_cut())
}

fn destination(key: &FlowKey) -> IpAddr {
    if key.is_ipv6() {
        key.dst_v6().into()
    } else {
        key.dst_v4().into()
    }
}

fn pack(judgement: Judgement) -> Remembered {
    let group = match judgement.action {
        Action::Route => ROUTED,
        Action::Via(group) => group.number(),
        Action::Drop => DROPPED,
    };
    Remembered {
        group,
        class: judgement.class,
    }
}

/// The flow of a packet, and its length without what stands behind it.
#[inline]
fn examine(bytes: &[u8]) -> Result<(FlowKey, usize), DropReason> {
    match FlowKey::of_plain(bytes) {
        Some((key, _)) if is_martian_v4(&key) => Err(DropReason::RouteMartian),
        Some(plain) => Ok(plain),
        None => examine_any(bytes),
    }
}

fn examine_any(bytes: &[u8]) -> Result<(FlowKey, usize), DropReason> {
    let packet = Packet::parse(bytes).map_err(|malformed| match malformed {
        Malformed::NotIp => DropReason::RouteNotIp,
        _ => DropReason::RouteBadLength,
    })?;
    // Headers that cannot be followed would hide from policies what they lead to.
    let key = packet.try_flow().map_err(|_| DropReason::RouteBadLength)?;
    let key = key.with_dscp(packet.tos() >> 2);
    if is_martian(&key) {
        return Err(DropReason::RouteMartian);
    }
    Ok((key, packet.total_len()))
}

/// Addresses that no router forwards from or to: loopback, link-local, this network, what is reserved, groups of the link alone, and as a source any
/// group (RFC 1812, section 5.3.7; RFC 4291, sections 2.5.6 and 2.7). Other groups as destinations are left to the routes.
fn is_martian(key: &FlowKey) -> bool {
    if !key.is_ipv6() {
        return is_martian_v4(key);
    }
    let [src, dst] = [key.src_v6(), key.dst_v6()].map(u128::from_be_bytes);
    let local = |ip: u128| ip <= 1 || ip >> 118 == 0xfe80 >> 6;
    // The scope of a group is the low half of its second octet: 2 is the link.
    local(src) || local(dst) || src >> 120 == 0xff || dst >> 120 == 0xff && dst >> 112 & 0xf <= 2
}

/// The first octets that addresses among the martians begin with: nearly no packet has one.
const MARTIAN_FIRST: [bool; 256] = {
    let mut first = [false; 256];
    (first[0], first[127], first[169]) = (true, true, true);
    let mut octet = 224;
    while octet < 256 {
        first[octet] = true;
        octet += 1;
    }
    first
};

#[inline]
fn is_martian_v4(key: &FlowKey) -> bool {
    let (src, dst) = (key.src_v4(), key.dst_v4());
    if !MARTIAN_FIRST[usize::from(src[0])] && !MARTIAN_FIRST[usize::from(dst[0])] {
        return false;
    }
    let local = |[a, b, ..]: [u8; 4]| a == 0 || a == 127 || a == 169 && b == 254 || a >= 240;
    local(src) || local(dst) || src[0] >= 224 || dst[..3] == [224, 0, 0]
}
