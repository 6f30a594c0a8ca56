//! Inner packets to datagrams: route, make fit, order, number, pad, seal.
//!
//! Runs on a worker, for packets from the TUN whose peers it owns. One burst is one call of the AEAD, whatever peers
//! its packets go to.

mod fit;

use std::mem::take;

use arrayvec::ArrayVec;
use patronus_abi::site::{Mode, Sticky};
use patronus_crypto::aead::Job;
use patronus_crypto::messages::{DATA_MIN, DataHeader, HEADER, TAG};
use patronus_crypto::timers::Wake;
use patronus_crypto::{PeerId, Time};
use patronus_io::ip::{ECN_MASK, FlowKey, Packet};
use patronus_mem::{BURST_MAX, Burst, PktBuf, SMALL_MAX};
use patronus_observe::Point;

use super::order::{self, Flow, Likeness, Order};
use super::{Context, JUMBO_SHARE, PeerSlot, Role, Wg};
use crate::channel::Notice;
use crate::crew::Handing;
use crate::icmp::IcmpError;
use crate::mss;
use crate::observe::{Seen, View};
use crate::path::Paths;
use crate::probe::PROBER;
use crate::remote::message::{DOUBLED, Sizing};
use crate::route::{Aim, Bound};
use crate::stats::{DropReason, Lap, Stage};
use crate::steer::{Moved, bucket_of, bucket_of_source, outer_tos};

/// By which session a packet leaves, and as what.
#[derive(Clone, Copy)]
struct Dress {
    session: PeerId,
    class: u8,
    form: Form,
    /// The outer traffic class, once the packet is admitted.
    tos: u8,
}

/// What a packet is on its way to being sealed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// As it came.
    Plain,
    /// In front of it stands what tells it from other packets that go twice.
    Doubled,
    /// It goes twice in pieces, because whole there is no room for what stands in front: it is to be cut up.
    InPieces,
}

impl Dress {
    /// The inner packet.
    fn inner<'a>(&self, packet: &'a PktBuf) -> &'a [u8] {
        let data = packet.data();
        match self.form {
            Form::Doubled => &data[DOUBLED..],
            Form::Plain | Form::InPieces => data,
        }
    }
}

/// Packets whose sessions are known, all of them this worker's.
#[derive(Default)]
pub(super) struct Outgoing {
    packets: Burst,
    dresses: ArrayVec<Dress, BURST_MAX>,
}

impl Outgoing {
    #[inline]
    fn push(&mut self, packet: PktBuf, dress: Dress) {
        self.packets.push(packet);
        self.dresses.push(dress);
    }

    /// True if there are none.
    #[inline]
    fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Puts them into another order: first the one that is in the place `order[0]` now, and so on.
    fn put_in(&mut self, order: &Order) {
        let mut packets: ArrayVec<_, BURST_MAX> = self.packets.drain(..).map(Some).collect();
        let dresses = take(&mut self.dresses);
        for at in order.iter().map(|at| usize::from(*at)) {
            if let Some(packet) = packets[at].take() {
                self.push(packet, dresses[at]);
            }
        }
    }

    /// Takes those out whose bits are set.
    #[cold]
    fn take_out(&mut self, bits: u64) -> Outgoing {
        let (all, mut out) = (take(self), Outgoing::default());
        let Outgoing { mut packets, dresses } = all;
        for (at, (packet, dress)) in packets.drain(..).zip(dresses).enumerate() {
            match bits & 1 << at {
                0 => self.push(packet, dress),
                _ => out.push(packet, dress),
            }
        }
        out
    }

    /// Takes the first `n` out.
    fn drain(&mut self, n: usize) -> impl Iterator<Item = (PktBuf, Dress)> {
        self.packets.drain(..n).zip(self.dresses.drain(..n))
    }
}

/// A packet's permission to be sent: whose current session, and which counter of it.
struct Grant {
    peer: PeerId,
    counter: u64,
}

impl Wg {
    /// Turns the packets of `inner` into sealed datagrams in `wire`, both at most a burst; `inner` is empty
    /// afterwards. The allowed-ips say to which peers, also for packets that another worker handed over: it may have known those of a moment
    /// ago. What cannot be sent is staged, handed over, or dropped under a name. From the first packet on that is too long for its tunnel, they are left for
    /// [`encap_later`](Self::encap_later).
    pub fn encap(&mut self, cx: &mut Context<'_>, inner: &mut Burst, wire: &mut Burst) {
        let mut ours = Outgoing::default();
        for packet in inner.drain(..) {
            let peer = match self.route(&packet) {
                Ok(peer) => peer,
                Err(reason) => {
                    self.refuse(cx, reason, packet);
                    continue;
                }
            };
            let aim = Aim {
                peer,
                class: 0,
                bucket: self.bucket(peer, &packet),
            };
            match self.bind(cx, &packet, aim) {
                Ok(place) => self.take_in(cx, packet, aim, place, &mut ours),
                Err(worker) => cx.hand_over(worker, packet, Handing::Encap),
            }
        }
        self.encap_sessions(cx, &mut ours, wire);
    }

    /// The same for packets of which the router has said to which peers they go.
    pub fn encap_bound(&mut self, cx: &mut Context<'_>, bound: &mut Bound, wire: &mut Burst) {
        let mut ours = Outgoing::default();
        for (packet, aim) in bound.packets.drain(..).zip(&bound.aims) {
            match self.bind(cx, &packet, *aim) {
                Ok(place) => self.take_in(cx, packet, *aim, place, &mut ours),
                Err(worker) => cx.hand_over(worker, packet, Handing::Seal(*aim)),
            }
        }
        bound.aims.clear();
        self.encap_sessions(cx, &mut ours, wire);
    }

    /// Whether packets that go twice have left once.
    #[inline]
    pub fn has_copies(&self) -> bool {
        !self.copies.is_empty()
    }

    /// The second ones of packets that go twice, at most a burst; their first ones have left.
    #[cold]
    pub fn encap_copies(&mut self, cx: &mut Context<'_>, wire: &mut Burst) {
        let mut copies = take(&mut self.copies);
        self.encap_sessions(cx, &mut copies, wire);
    }

    /// A packet, by which of our sessions it leaves, and how long it may be for that.
    #[inline(always)]
    fn take_in(
        &mut self,
        cx: &mut Context<'_>,
        packet: PktBuf,
        aim: Aim,
        (session, longest): (PeerId, usize),
        ours: &mut Outgoing,
    ) {
        self.prefetch_slot(session);
        let is_plain = packet.len() <= longest
            && !mss::may_be_syn(packet.data())
            && self.later.is_empty()
            && self.manners.get(aim.class).mode != Mode::Duplicate;
        match is_plain {
            true => {
                let dress = Dress {
                    session,
                    class: aim.class,
                    form: Form::Plain,
                    tos: 0,
                };
                ours.push(packet, dress);
            }
            false => self.take_in_with_care(cx, packet, aim, (session, longest), ours),
        }
    }

    /// The same for one that may be changed, cut up or sent twice, or comes behind such a one.
    #[inline(never)]
    fn take_in_with_care(
        &mut self,
        cx: &mut Context<'_>,
        mut packet: PktBuf,
        aim: Aim,
        (session, longest): (PeerId, usize),
        ours: &mut Outgoing,
    ) {
        let twice = self.manners.get(aim.class).mode == Mode::Duplicate;
        if mss::may_be_syn(packet.data()) {
            self.clamp(cx, &mut packet, aim.peer, twice);
        }
        let mut dress = Dress {
            session,
            class: aim.class,
            form: Form::Plain,
            tos: 0,
        };
        if twice && session != aim.peer {
            dress.form = self.double(cx, &mut packet, &dress);
        }
        let fits = dress.form != Form::InPieces && packet.len() <= longest;
        if fits && self.later.is_empty() {
            ours.push(packet, dress);
        } else {
            self.later.push(packet, dress);
        }
    }

    /// The same for packets whose sessions, which are ours, are known.
    fn encap_sessions(&mut self, cx: &mut Context<'_>, ours: &mut Outgoing, wire: &mut Burst) {
        debug_assert!(wire.is_empty());
        let (lap, packets) = (Lap::start(), ours.packets.len());
        self.admit_all(cx, ours);
        self.arrange(ours);
        let mut grants = ArrayVec::<Grant, BURST_MAX>::new();
        for (mut packet, dress) in ours.packets.drain(..).zip(&ours.dresses) {
            match self.grant(cx.now, dress.session) {
                Some(grant) => {
                    self.dress(&mut packet, &grant, dress.tos);
                    wire.push(packet);
                    grants.push(grant);
                }
                None => self.stage(cx, dress.session, packet),
            }
        }
        ours.dresses.clear();
        if cx.observing.is_some() {
            self.observe_sealing(cx, wire, &grants);
        }
        self.seal(wire, &grants);
        self.account_sent(cx, wire, &grants, true);
        cx.stats.burst(Stage::Encap, packets, lap);
    }

    /// Finds out the outer traffic class of each packet, and refuses those that cannot be sent.
    fn admit_all(&mut self, cx: &mut Context<'_>, ours: &mut Outgoing) {
        let mut refused = 0;
        for (at, (packet, dress)) in ours.packets.iter().zip(&mut ours.dresses).enumerate() {
            match self.admit(packet, dress) {
                Ok(tos) => dress.tos = tos,
                Err(_) => refused |= 1 << at,
            }
        }
        if refused != 0 {
            let mut refused = ours.take_out(refused);
            for (packet, dress) in refused.packets.drain(..).zip(refused.dresses) {
                if let Err(reason) = self.admit(&packet, &dress) {
                    self.refuse(cx, reason, packet);
                }
            }
        }
    }

    /// Puts like packets next to each other.
    fn arrange(&self, ours: &mut Outgoing) {
        let all = ours.packets.iter().zip(&ours.dresses);
        let likeness: ArrayVec<Likeness, BURST_MAX> = all
            .map(|(packet, dress)| {
                Likeness::new(dress.session, padded_len(packet.len(), self.mtu), dress.tos)
            })
            .collect();
        let order = order::arrange(&likeness, |i| {
            let inner = ours.dresses[i].inner(&ours.packets[i]);
            Flow::of(&Packet::parse(inner).ok()?)
        });
        if let Some(order) = order {
            ours.put_in(&order);
        }
    }

    /// Sends what waits for a session with `peer`, or, if nothing does and `keepalive` is wanted, an empty packet.
    /// At most a burst; true if more waits.
    pub fn encap_staged(
        &mut self,
        cx: &mut Context<'_>,
        peer: PeerId,
        keepalive: bool,
        wire: &mut Burst,
    ) -> bool {
        debug_assert!(wire.is_empty());
        let lap = Lap::start();
        let mut grants = ArrayVec::<Grant, BURST_MAX>::new();
        if self.slot(peer).and_then(|slot| slot.endpoint.remote()).is_none() {
            return false;
        }
        while wire.room() > 0
            && let Some((packet, grant)) = self.unstage(cx, peer)
        {
            self.forget_staged(&packet);
            wire.push(packet);
            grants.push(grant);
        }
        let more = self.slot(peer).is_some_and(|slot| slot.staged() > 0);
        if wire.is_empty() && keepalive && !self.grant_keepalive(cx, peer, wire, &mut grants) {
            self.ask_for_session(cx, peer);
        }
        for (packet, grant) in wire.iter_mut().zip(&grants) {
            // A keepalive has no header to copy from.
            let ecn = Packet::parse(packet.data()).map_or(0, |inner| inner.tos() & ECN_MASK);
            self.dress(packet, grant, ecn);
        }
        if cx.observing.is_some() {
            self.observe_sealing(cx, wire, &grants);
        }
        self.seal(wire, &grants);
        self.account_sent(cx, wire, &grants, true);
        cx.stats.burst(Stage::Encap, wire.len(), lap);
        more
    }

    /// The oldest packet that waits for a session with `peer`, and by what it may leave: that session, or a lane, if there is either.
    fn unstage(&mut self, cx: &Context<'_>, peer: PeerId) -> Option<(PktBuf, Grant)> {
        let now = cx.now;
        let slot = self.slot_mut(peer)?;
        if let Some((packet, counter)) = slot.unstage_granted(now) {
            return Some((packet, Grant { peer, counter }));
        }
        // What a packet was beside itself is not kept while it waits.
        let oldest = self.slot(peer)?.oldest_staged()?;
        let bucket = self.bucket(peer, oldest);
        let aim = Aim {
            peer,
            class: 0,
            bucket,
        };
        let lane = self.choose(cx, self.steered(oldest, aim))?;
        let counter = self.slot_mut(lane)?.keypairs.current_mut()?.next_counter(now)?;
        let packet = self.slot_mut(peer)?.unstage()?;
        Some((packet, Grant { peer: lane, counter }))
    }

    /// A control message for a remote, sealed in its base session. Without a session, nothing.
    pub fn encap_control(&mut self, cx: &mut Context<'_>, peer: PeerId, bytes: &[u8], wire: &mut Burst) {
        if self.encap_own(cx, peer, bytes, wire) {
            cx.stats.controls_sent.add(1);
        }
    }

    /// A ping for a peer, sealed in its session. Without a session, nothing.
    pub fn encap_ping(&mut self, cx: &mut Context<'_>, peer: PeerId, ping: &[u8], wire: &mut Burst) {
        if self.encap_own(cx, peer, ping, wire) {
            cx.stats.pings_sent.add(1);
        }
    }

    /// What we have to say ourselves, sealed in a peer's own session; false if there is none.
    fn encap_own(&mut self, cx: &mut Context<'_>, peer: PeerId, bytes: &[u8], wire: &mut Burst) -> bool {
        let Some(counter) = self
            .slot_mut(peer)
            .filter(|slot| !slot.endpoint.is_none())
            .and_then(|slot| slot.keypairs.current_mut()?.next_counter(cx.now))
        else {
            return false;
        };
        // Without a frame it is lost like a datagram.
        let Some(mut packet) = cx.frames.alloc_for(bytes.len()) else {
            return false;
        };
        packet.append(bytes.len()).copy_from_slice(bytes);
        let grants = [Grant { peer, counter }];
        self.dress(&mut packet, &grants[0], 0);
        wire.push(packet);
        self.seal(wire, &grants);
        self.account_sent(cx, wire, &grants, false);
        true
    }

    /// Whether probes are due.
    #[inline]
    pub fn has_probes_due(&self, now: Time) -> bool {
        !self.size_acks.is_empty() || self.prober.next_deadline().is_some_and(|at| at <= now)
    }

    /// Judges the paths that are due to be judged, and seals the probes that are due to be sent, at most a burst; and those that find out what size passes, as many, which
    /// must not be cut up on their way.
    #[cold]
    pub fn encap_probes(&mut self, cx: &mut Context<'_>, wire: &mut Burst, whole: &mut Burst) {
        let (now, mut due) = (cx.now, ArrayVec::new());
        let peers = &self.peers;
        let may_send = |lane: PeerId| {
            let slot = peers.get(lane.0 as usize).and_then(Option::as_deref);
            slot.is_some_and(|slot| slot.has_session(now))
        };
        let tell = |change| cx.tell_of_path(change);
        self.prober.due(now, may_send, tell, &mut due);
        let mut grants = ArrayVec::<Grant, BURST_MAX>::new();
        for due in due {
            // As late as that can be known here.
            let Some((lane, probe)) = self.prober.next(due, cx.clock.mono()) else {
                continue;
            };
            self.put_in_lane(cx, lane, &probe.encode(), 0, wire, &mut grants);
        }
        let probes = wire.len();
        while wire.room() > 0
            && let Some((lane, size)) = self.size_acks.pop()
        {
            self.put_in_lane(cx, lane, &Sizing::Ack(size).encode(), 0, wire, &mut grants);
        }
        let acks = wire.len() - probes;
        self.seal(wire, &grants);
        self.account_sent(cx, wire, &grants, false);
        grants.clear();
        while let Some((lane, size)) = self.prober.next_size() {
            let ask = Sizing::Ask(size).encode();
            self.put_in_lane(cx, lane, &ask, size.size.into(), whole, &mut grants);
        }
        self.seal(whole, &grants);
        self.account_sizes(cx, whole, &grants);
        cx.stats.probes_sent.add(probes as u64);
        cx.stats.sizes_sent.add((acks + whole.len()) as u64);
    }

    /// Tells timers of questions about sizes. They are no part of what is counted to find out what is lost: those that are too long for a path are meant to be.
    fn account_sizes(&mut self, cx: &mut Context<'_>, whole: &Burst, grants: &[Grant]) {
        for (packet, grant) in whole.iter().zip(grants) {
            let slot = self
                .slot_mut(grant.peer)
                .expect("a grant names a peer that is there");
            if slot.traffic.sent(cx.now, packet.len() as u64, true) == Wake::Due {
                cx.tell(Notice::Watch(grant.peer));
            }
        }
    }

    /// Puts a message, made longer by zeros to so many bytes, at the end of a burst, to be sealed in a lane. Without a frame or a session it is lost like a datagram.
    fn put_in_lane(
        &mut self,
        cx: &mut Context<'_>,
        lane: PeerId,
        message: &[u8],
        len: usize,
        wire: &mut Burst,
        grants: &mut ArrayVec<Grant, BURST_MAX>,
    ) {
        let len = len.max(message.len());
        let Some(mut packet) = cx.frames.alloc_for(len) else {
            return;
        };
        let (start, rest) = packet.append(len).split_at_mut(message.len());
        start.copy_from_slice(message);
        rest.fill(0);
        let keypair = self.slot_mut(lane).and_then(|slot| slot.keypairs.current_mut());
        let Some(counter) = keypair.and_then(|keypair| keypair.next_counter(cx.now)) else {
            return cx.frames.free(packet);
        };
        let grant = Grant { peer: lane, counter };
        self.dress(&mut packet, &grant, 0);
        wire.push(packet);
        grants.push(grant);
    }

    /// An empty packet for `peer`. False if there is no session to send it in.
    fn grant_keepalive(
        &mut self,
        cx: &mut Context<'_>,
        peer: PeerId,
        wire: &mut Burst,
        grants: &mut ArrayVec<Grant, BURST_MAX>,
    ) -> bool {
        let now = cx.now;
        // Without a frame there is load enough that a keepalive is not needed.
        let Some(frame) = cx.frames.alloc() else {
            return true;
        };
        let keypair = self.slot_mut(peer).and_then(|s| s.keypairs.current_mut());
        match keypair.and_then(|k| k.next_counter(now)) {
            Some(counter) => {
                wire.push(frame);
                grants.push(Grant { peer, counter });
                true
            }
            None => {
                cx.frames.free(frame);
                false
            }
        }
    }

    fn ask_for_session(&mut self, cx: &mut Context<'_>, peer: PeerId) {
        let now = cx.now;
        if self
            .slot_mut(peer)
            .is_some_and(|slot| slot.ask_for_handshake(now))
        {
            cx.tell(Notice::WantHandshake(peer));
        }
    }

    /// Whose an inner packet is by its destination.
    fn route(&self, packet: &PktBuf) -> Result<PeerId, DropReason> {
        let header = Packet::parse(packet.data()).map_err(|_| DropReason::EncapNotIp)?;
        self.routes.lookup(header.dst()).ok_or(DropReason::EncapNoPeer)
    }

    /// By which session of ours a packet goes to a peer, and how long it may be for that: a lane if there are any to send by, or the base session. An error is the worker
    /// that has such a session.
    #[inline(always)]
    fn bind(&mut self, cx: &Context<'_>, packet: &PktBuf, aim: Aim) -> Result<(PeerId, usize), usize> {
        if self.has_paths(aim.peer) {
            return self.bind_to_remote(cx, packet, aim);
        }
        let owner = cx.crew.other_owner(aim.peer);
        owner.map_or(Ok((aim.peer, self.most)), Err)
    }

    /// The same for a remote to which there are paths.
    fn bind_to_remote(
        &mut self,
        cx: &Context<'_>,
        packet: &PktBuf,
        aim: Aim,
    ) -> Result<(PeerId, usize), usize> {
        let peer = aim.peer;
        let longest = self.longest(peer);
        match self.choose(cx, self.steered(packet, aim)) {
            Some(lane) if self.slot(peer).is_none_or(|base| base.staged() == 0) => {
                return Ok((lane, longest));
            }
            // Packets have waited for the base session since there was no lane: this one goes behind them, and then all go.
            Some(_) if !self.unblocked.contains(&peer) => {
                let _ = self.unblocked.try_push(peer);
            }
            Some(_) => {}
            None => return self.bind_elsewhere(cx, aim).map(|session| (session, longest)),
        }
        cx.crew.other_owner(peer).map_or(Ok((peer, longest)), Err)
    }

    /// The same when none of this worker's lanes can be sent by on a path that is up. The worker that probes has a lane on each: it sends the packet, and where the session of
    /// that lane has just run out, the packet waits there for the next one. With no path up it goes by the base session.
    #[cold]
    fn bind_elsewhere(&self, cx: &Context<'_>, aim: Aim) -> Result<PeerId, usize> {
        let paths = self.paths.get(aim.peer.0 as usize).and_then(Option::as_deref);
        if let Some(paths) = paths.filter(|paths| paths.board.up() != 0) {
            if cx.crew.me() != PROBER {
                cx.stats.moved(Moved::Lane);
                return Err(PROBER);
            }
            if let Some(lane) = paths.lane_to_come(aim.class) {
                return Ok(lane);
            }
        }
        cx.crew.other_owner(aim.peer).map_or(Ok(aim.peer), Err)
    }

    /// The bucket of a packet's flow, where that says by which path it goes.
    #[inline(always)]
    fn bucket(&self, peer: PeerId, packet: &PktBuf) -> u8 {
        match self.paths.get(peer.0 as usize) {
            Some(Some(paths)) => bucket_among(paths, packet),
            _ => 0,
        }
    }

    /// Where a packet is to go if all of its source's stay together, where its class says so.
    #[inline]
    fn steered(&self, packet: &PktBuf, aim: Aim) -> Aim {
        match self.manners.get(aim.class).sticky {
            Sticky::Flow => aim,
            Sticky::Source => self.steered_by_source(packet, aim),
        }
    }

    #[cold]
    fn steered_by_source(&self, packet: &PktBuf, aim: Aim) -> Aim {
        match (self.paths.get(aim.peer.0 as usize), Packet::parse(packet.data())) {
            (Some(Some(paths)), Ok(inner)) => Aim {
                bucket: bucket_of_source(paths.steering.keys(), inner.src()),
                ..aim
            },
            _ => aim,
        }
    }

    /// The lane of a packet, if there is one to send by.
    #[inline]
    fn choose(&mut self, cx: &Context<'_>, aim: Aim) -> Option<PeerId> {
        let Wg { paths, peers, .. } = self;
        let paths = paths.get_mut(aim.peer.0 as usize)?.as_deref_mut()?;
        let may_carry = |lane: PeerId| carries(peers, lane, cx.now);
        let chosen = paths.choose((aim.class, aim.bucket), cx.now, may_carry)?;
        if let Some(why) = chosen.moved {
            cx.stats.moved(why);
        }
        Some(chosen.lane)
    }

    /// Whether there are paths to a peer, which then is a remote.
    #[inline(always)]
    fn has_paths(&self, peer: PeerId) -> bool {
        matches!(self.paths.get(peer.0 as usize), Some(Some(_)))
    }

    /// Whether an inner packet can be sent by this session, or wait for that, and the outer traffic class.
    #[inline(always)]
    fn admit(&self, packet: &PktBuf, dress: &Dress) -> Result<u8, DropReason> {
        let header = Packet::parse(dress.inner(packet)).map_err(|_| DropReason::EncapNotIp)?;
        let slot = self.slot(dress.session).ok_or(DropReason::EncapNoPeer)?;
        if slot.endpoint.is_none() {
            return Err(DropReason::EncapNoEndpoint);
        }
        if slot.endpoint.is_to(header.dst()) && slot.is_own_datagram(&header) {
            return Err(DropReason::EncapLoop);
        }
        slot.prefetch_session();
        Ok(outer_tos(self.manners.get(dress.class).dscp, header.tos()))
    }

    /// Takes a counter of the peer's session. `None` if there is no session, or packets wait already: they go first, or this
    /// one would overtake them.
    fn grant(&mut self, now: Time, peer: PeerId) -> Option<Grant> {
        let slot = self.slot_mut(peer).filter(|slot| slot.staged() == 0)?;
        let keypair = slot.keypairs.current_mut()?;
        let counter = keypair.next_counter(now)?;
        keypair.prefetch_send();
        Some(Grant { peer, counter })
    }

    /// Writes header and padding around the inner packet and says where it goes.
    fn dress(&self, packet: &mut PktBuf, grant: &Grant, tos: u8) {
        let slot = self.slot(grant.peer).expect("a grant names a peer that is there");
        let keypair = slot
            .keypairs
            .current()
            .expect("a grant names a session that is there");
        let len = packet.len();
        let padding = padded_len(len, self.mtu) - len;
        // What seals writes the tag.
        let behind = packet.append(padding + TAG);
        if padding > 0 {
            behind[..padding].fill(0);
        }
        let header = DataHeader {
            receiver: keypair.remote_index,
            counter: grant.counter,
        };
        let room = packet
            .prepend(HEADER)
            .first_chunk_mut()
            .expect("prepend gives as much as was asked for");
        header.write(room);
        let outer = packet.outer_mut();
        *outer = slot.endpoint;
        outer.set_tos(tos);
    }

    /// Has an observer see what is about to be sealed.
    #[cold]
    fn observe_sealing(&self, cx: &mut Context<'_>, wire: &mut Burst, grants: &[Grant]) {
        let Some(observing) = &mut cx.observing else {
            return;
        };
        for (packet, grant) in wire.iter_mut().zip(grants) {
            let tunnel = self.slot(grant.peer).map_or(grant.peer, PeerSlot::tunnel);
            let seen = Seen {
                session: Some((grant.peer, tunnel)),
                ..Seen::at(Point::Encap, View::Sealing, 0)
            };
            observing.see(packet, &seen);
        }
    }

    /// One call of the AEAD for the whole burst.
    fn seal(&self, wire: &mut Burst, grants: &[Grant]) {
        debug_assert_eq!(wire.len(), grants.len());
        let mut jobs = ArrayVec::<Job<'_>, BURST_MAX>::new();
        for (packet, grant) in wire.iter_mut().zip(grants) {
            let slot = self.slot(grant.peer).expect("a grant names a peer that is there");
            let keypair = slot
                .keypairs
                .current()
                .expect("a grant names a session that is there");
            let buf = &mut packet.data_mut()[HEADER..];
            jobs.push(Job::new(keypair.send_key(), grant.counter, buf));
        }
        if !jobs.is_empty() {
            self.aead.seal(&mut jobs);
        }
    }

    /// Tells each peer's timers what was sent, once per run of packets to the same peer. `of_hosts`: what was not empty came from hosts.
    fn account_sent(&mut self, cx: &mut Context<'_>, wire: &Burst, grants: &[Grant], of_hosts: bool) {
        let (mut messages, mut bytes, mut data, mut begun) = (0, 0, false, None);
        for (at, (packet, grant)) in wire.iter().zip(grants).enumerate() {
            messages += 1;
            bytes += packet.len() as u64;
            data |= packet.len() > DATA_MIN;
            let peer = grant.peer;
            if grants.get(at + 1).is_some_and(|next| next.peer == peer) {
                continue;
            }
            let slot = self.slot_mut(peer).expect("a grant names a peer that is there");
            if slot.role == Role::Lane {
                let begins = slot.traffic.tally_sent(cx.now, messages, data && of_hosts);
                begun = begun.or(begins.then_some(slot.tunnel()));
            }
            messages = 0;
            let wake = slot.traffic.sent(cx.now, take(&mut bytes), take(&mut data));
            let rekey = slot
                .keypairs
                .current_mut()
                .is_some_and(|k| k.rekey_due_on_send(cx.now));
            let rekey = rekey && slot.ask_for_handshake(cx.now);
            if wake == Wake::Due {
                cx.tell(Notice::Watch(peer));
            }
            if rekey {
                cx.tell(Notice::WantHandshake(peer));
            }
        }
        // Of several remotes in one burst one is told: those of the others find it with their next probe.
        if let Some(remote) = begun {
            self.begin_use(cx, remote);
        }
    }

    /// Keeps a packet for a session to come and asks for that session.
    fn stage(&mut self, cx: &mut Context<'_>, peer: PeerId, mut packet: PktBuf) {
        let now = cx.now;
        if let Some(observing) = &mut cx.observing {
            let tunnel = self.slot(peer).map_or(peer, PeerSlot::tunnel);
            let seen = Seen {
                session: Some((peer, tunnel)),
                ..Seen::at(Point::Stage, View::Ip, 0)
            };
            observing.see(&mut packet, &seen);
        }
        let jumbo = packet.len() > SMALL_MAX;
        let full = self.staged_total >= self.staged_limit;
        let no_jumbo = jumbo && self.staged_jumbos >= self.staged_limit / JUMBO_SHARE;
        let Some(slot) = self.slot_mut(peer) else {
            return cx.discard(DropReason::EncapNoPeer, packet);
        };
        let ask = slot.ask_for_handshake(now);
        if no_jumbo || full && slot.staged() == 0 {
            cx.discard(DropReason::StagedNoFrame, packet);
        } else {
            // At the limit of all peers as at its own, a peer's oldest packet makes room.
            let evicted = if full || slot.is_full() {
                slot.unstage()
            } else {
                None
            };
            slot.stage(packet);
            self.staged_total += 1;
            self.staged_jumbos += usize::from(jumbo);
            if let Some(evicted) = evicted {
                self.forget_staged(&evicted);
                cx.discard(DropReason::StagedOverflow, evicted);
            }
        }
        if ask {
            cx.tell(Notice::WantHandshake(peer));
        }
    }

    /// Drops a packet and, where the sender can use the news, says so by ICMP.
    fn refuse(&mut self, cx: &mut Context<'_>, reason: DropReason, packet: PktBuf) {
        if matches!(reason, DropReason::EncapNoPeer | DropReason::EncapNoEndpoint) {
            self.icmp.answer(cx, packet.data(), IcmpError::HostUnreachable);
        }
        cx.discard(reason, packet);
    }
}

fn bucket_among(paths: &Paths, packet: &PktBuf) -> u8 {
    let flow = FlowKey::of_plain(packet.data()).map(|(flow, _)| flow);
    let flow = flow.or_else(|| Some(Packet::parse(packet.data()).ok()?.flow()));
    flow.map_or(0, |flow| {
        bucket_of(paths.steering.keys().hash(&flow.without_dscp()))
    })
}

/// Whether packets can be sent by a lane.
#[inline]
fn carries(peers: &[Option<Box<PeerSlot>>], lane: PeerId, now: Time) -> bool {
    let slot = peers.get(lane.0 as usize).and_then(Option::as_deref);
    slot.is_some_and(|slot| slot.may_carry(now))
}

/// The length of the plaintext that carries an inner packet of `len` bytes: rounded up to 16, but not beyond the MTU,
/// so that a packet that fits the path still fits when it is padded.
fn padded_len(len: usize, mtu: usize) -> usize {
    let padded = len.next_multiple_of(16);
    if len <= mtu { padded.min(mtu) } else { padded }
}

#[cfg(test)]
mod tests {
    use super::padded_len;

    #[test]
    fn c34_padding_to_16_capped_at_the_mtu() {
        assert_eq!(padded_len(0, 1420), 0);
        assert_eq!(padded_len(1, 1420), 16);
        assert_eq!(padded_len(16, 1420), 16);
        assert_eq!(padded_len(1409, 1420), 1420);
        assert_eq!(padded_len(1420, 1420), 1420);
        // The route MTU 1299 case of Linux's netns.sh: 1298 bytes do not become 1312.
        assert_eq!(padded_len(1298, 1299), 1299);
        assert_eq!(padded_len(1299, 1299), 1299);
        // The MTU shrank while the packet was on its way.
        assert_eq!(padded_len(1430, 1420), 1440);
    }
}
