//! Stock peers and the links: carries out what each peer's [`Standby`] says, and tells it what happens.
//!
//! What changes here only marks whom it concerns. They are judged once in a turn, with the protocol's timers, so that nothing that the
//! protocol asks for comes in between.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use patronus_abi::channel::Event;
use patronus_crypto::timeouts::Timeouts;
use patronus_crypto::{Duration, PeerId, PublicKey, Time};

use super::{Core, Sockets};
use crate::channel::{Command, PingAnswer};
use crate::standby::asking::Asking;
use crate::standby::{CONFIRM, HOLD, Health, Move, Rank, Standby, Step, echo};

/// Peers that are pinged at most.
pub const PINGED_MAX: usize = 256;
/// A peer that answers on no link is pinged at most this often.
const PING_BACKOFF: Duration = Duration::from_secs(1);
/// Moves that wait to be told at most: who does not ask for them misses the rest.
const MOVES_MAX: usize = 4096;

/// How a peer is reached by a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Way {
    /// The host has a route to it there.
    pub routed: bool,
    /// To whom packets go first, and from which of our addresses.
    pub gateway: Option<(IpAddr, Option<IpAddr>)>,
}

impl Way {
    /// Nobody has asked.
    pub const UNKNOWN: Way = Way {
        routed: true,
        gateway: None,
    };
}

/// Whom to ping through the tunnel, from where, and how often.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PingPlan {
    /// From an address that the peer sends back to us.
    pub from: IpAddr,
    /// An address behind the peer.
    pub to: IpAddr,
    /// How often.
    pub interval: Duration,
}

/// How a gateway is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GatewayUse {
    /// From which of our addresses it is asked.
    pub source: Option<IpAddr>,
    /// A session goes there; otherwise one might.
    pub in_use: bool,
}

/// A peer's session has gone over to another link. Links are named by their places.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerMoved {
    /// When.
    pub at: Time,
    /// Whose.
    pub peer: PublicKey,
    /// From where to where, and why.
    pub moved: Move,
}

/// What is known of the links that a peer is reached by.
pub(super) struct Standing {
    standby: Standby,
    ways: Vec<Way>,
    pings: Option<Pings>,
    /// The interface that the session was moved away from, and until when nothing there says where the peer is.
    shunned: Option<(u32, Time)>,
    /// When it is looked at next.
    due: Option<Time>,
}

struct Pings {
    plan: PingPlan,
    secret: [u8; echo::SECRET],
    asking: Asking,
    /// That there are no answers has been judged.
    lost: bool,
}

/// All of them.
pub(super) struct Standbys {
    ranks: Vec<Rank>,
    silent: BTreeSet<(usize, IpAddr)>,
    due: BTreeSet<(Time, PeerId)>,
    marked: BTreeSet<PeerId>,
    all_marked: bool,
    moves: Vec<PeerMoved>,
    pinged: usize,
    /// Somebody's ways have not been looked for.
    ways_wanted: bool,
    /// Other gateways are in use than before, perhaps.
    gateways_changed: bool,
}

impl Standbys {
    /// For so many links, none of which is known.
    pub(super) fn new(links: usize) -> Standbys {
        let rank = |at: usize| Rank {
            metered: false,
            cost: 0,
            id: at as u8 + 1,
        };
        Standbys {
            ranks: (0..links).map(rank).collect(),
            silent: BTreeSet::new(),
            due: BTreeSet::new(),
            marked: BTreeSet::new(),
            all_marked: false,
            moves: Vec::new(),
            pinged: 0,
            ways_wanted: false,
            gateways_changed: false,
        }
    }
}

impl Standing {
    /// When there is something to do, if nothing happens before.
    fn deadline(&self, now: Time) -> Option<Time> {
        let pings = self.pings.as_ref().and_then(|pings| pings.asking.deadline(now));
        let shunned = self.shunned.map(|(_, until)| until);
        let standby = self.standby.deadline(now);
        standby.into_iter().chain(pings).chain(shunned).min()
    }
}

impl<S: Sockets> Core<S> {
    /// How much each link is wanted.
    pub fn set_ranks(&mut self, ranks: Vec<Rank>) {
        if ranks.len() == self.links.len() && ranks != self.standbys.ranks {
            for peer in self.peers.iter_mut().flatten() {
                if let Some(standing) = &mut peer.standing {
                    standing.standby.set_ranks(&ranks);
                }
            }
            self.standbys.ranks = ranks;
            self.mark_all();
        }
    }

    /// A peer may be reached by several links from now on, if there are several.
    pub(super) fn stand_by(&mut self, id: PeerId) {
        if self.links.len() < 2 {
            return;
        }
        let standing = Standing {
            standby: Standby::new(&self.standbys.ranks, self.hold(), self.clock.mono()),
            ways: vec![Way::UNKNOWN; self.links.len()],
            pings: None,
            shunned: None,
            due: None,
        };
        if let Some(peer) = self.peer_mut(id) {
            peer.standing = Some(Box::new(standing));
            self.standbys.ways_wanted = true;
            self.mark(id);
        }
    }

    /// How long a link has to have worked, shorter where tests have the protocol's times shorter.
    fn hold(&self) -> Duration {
        let whole = Timeouts::protocol().reject_after_time.as_nanos();
        let here = self.device.timeouts().reject_after_time.as_nanos();
        HOLD / (whole / here.max(1)) as u32
    }

    /// It is no stock peer, or none any more.
    pub(super) fn stand_down(&mut self, id: PeerId) {
        let Some(standing) = self.peer_mut(id).and_then(|peer| peer.standing.take()) else {
            return;
        };
        self.standbys.pinged -= usize::from(standing.pings.is_some());
        self.standbys.marked.remove(&id);
        if let Some(due) = standing.due {
            self.standbys.due.remove(&(due, id));
        }
        self.standbys.gateways_changed = true;
    }

    /// Whether a peer's session may go by several links.
    pub fn stands_by(&self, id: PeerId) -> bool {
        self.peer(id).is_some_and(|peer| peer.standing.is_some())
    }

    /// The place of the link that a peer's session goes by, if it may go by several.
    pub fn link_of(&self, id: PeerId) -> Option<usize> {
        self.peer(id)?.standing.as_ref()?.standby.current()
    }

    pub(super) fn mark(&mut self, id: PeerId) {
        if self.stands_by(id) {
            self.standbys.marked.insert(id);
        }
    }

    pub(super) fn mark_all(&mut self) {
        self.standbys.all_marked = true;
    }

    /// How a peer is reached may be another way than before.
    pub(super) fn ways_changed(&mut self, id: PeerId) {
        if self.stands_by(id) {
            self.standbys.ways_wanted = true;
            self.mark(id);
        }
    }

    /// A link has sockets: it may be used, and who is to be asked there is not known.
    pub(super) fn link_opened(&mut self) {
        self.standbys.ways_wanted = true;
        self.mark_all();
    }

    /// Says how a peer is reached by each link.
    pub fn set_ways(&mut self, id: PeerId, ways: Vec<Way>) {
        let standing = self.peer_mut(id).and_then(|peer| peer.standing.as_mut());
        if let Some(standing) = standing.filter(|standing| standing.ways != ways) {
            standing.ways = ways;
            self.standbys.gateways_changed = true;
            self.mark(id);
        }
    }

    /// Whether somebody's ways have to be looked for, since the last call.
    pub fn take_ways_wanted(&mut self) -> bool {
        std::mem::take(&mut self.standbys.ways_wanted)
    }

    /// The gateways of the links that there are, if they may be others than at the last call.
    pub fn take_gateways(&mut self) -> Option<BTreeMap<(usize, IpAddr), GatewayUse>> {
        if !std::mem::take(&mut self.standbys.gateways_changed) {
            return None;
        }
        let mut gateways = BTreeMap::new();
        for standing in self
            .peers
            .iter()
            .flatten()
            .filter_map(|peer| peer.standing.as_ref())
        {
            let ways = standing.ways.iter().enumerate();
            for (at, (gateway, source)) in ways.filter_map(|(at, way)| Some((at, way.gateway?))) {
                if self.links[at].is_some() {
                    let entry = gateways.entry((at, gateway)).or_insert(GatewayUse {
                        source,
                        in_use: false,
                    });
                    entry.in_use |= standing.standby.current() == Some(at);
                }
            }
        }
        Some(gateways)
    }

    /// Says whether a link's gateway does not answer.
    pub fn set_gateway_silent(&mut self, at: usize, gateway: IpAddr, silent: bool) {
        let changed = match silent {
            true => self.standbys.silent.insert((at, gateway)),
            false => self.standbys.silent.remove(&(at, gateway)),
        };
        if changed {
            self.mark_all();
        }
    }

    /// Whether packets of a peer's have come through this gateway since `since`: then it is there, whatever it answers.
    pub fn was_heard_through(&self, at: usize, gateway: IpAddr, since: Time) -> bool {
        let peers = (0..).map(PeerId).zip(&self.peers);
        let mut peers = peers.filter_map(|(id, peer)| Some((id, peer.as_ref()?.standing.as_ref()?)));
        peers.any(|(id, standing)| {
            let is_there = standing.ways[at].gateway.is_some_and(|(ip, _)| ip == gateway);
            let heard = self.device.traffic(id).last_received();
            is_there && standing.standby.current() == Some(at) && heard.is_some_and(|heard| heard > since)
        })
    }

    /// Says whom to ping behind a peer. False if there are too many already.
    pub fn set_ping(&mut self, id: PeerId, plan: Option<PingPlan>) -> bool {
        let (now, pinged) = (self.clock.mono(), self.standbys.pinged);
        let mut secret = [0; echo::SECRET];
        self.random.fill(&mut secret);
        let Some(standing) = self.peer_mut(id).and_then(|peer| peer.standing.as_mut()) else {
            return true;
        };
        let before = standing.pings.as_ref().map(|pings| pings.plan);
        if before == plan {
            return true;
        }
        if before.is_none() && pinged == PINGED_MAX {
            return false;
        }
        standing.pings = plan.map(|plan| Pings {
            plan,
            secret,
            asking: Asking::new(plan.interval, now),
            lost: false,
        });
        self.standbys.pinged = pinged - usize::from(before.is_some()) + usize::from(plan.is_some());
        self.workers.tell_owner(id, Command::Pinged(id, plan.is_some()));
        self.mark(id);
        true
    }

    /// The moves since the last call.
    pub fn take_moves(&mut self) -> Vec<PeerMoved> {
        std::mem::take(&mut self.standbys.moves)
    }

    /// A worker or a handshake says where a peer is: true if that counts.
    pub(super) fn standby_heard(&mut self, id: PeerId, ifindex: u32, by_itself: bool) -> bool {
        let place = self.links.iter().position(|link| {
            let link = link.as_ref();
            link.is_some_and(|link| link.ifindex() == ifindex)
        });
        let now = self.clock.mono();
        let Some(peer) = self.peer_mut(id) else {
            return true;
        };
        let Some(standing) = &mut peer.standing else {
            return true;
        };
        if standing.shunned.is_some_and(|(shunned, _)| shunned == ifindex) {
            return false;
        }
        if let Some(at) = place.filter(|_| by_itself) {
            let moved = standing.standby.heard(at, now);
            let key = peer.key;
            self.note_move(key, moved);
        }
        self.mark(id);
        true
    }

    fn note_move(&mut self, peer: PublicKey, moved: Option<Move>) {
        let at = self.clock.mono();
        if let Some(moved) = moved {
            self.standbys.gateways_changed = true;
            let number = |at: usize| self.standbys.ranks[at].id;
            let event = Event::PeerMoved {
                at: at.0,
                peer: peer.0,
                from: moved.from.map(number),
                to: number(moved.to),
                why: moved.why,
            };
            self.news.add(event);
            if self.standbys.moves.len() < MOVES_MAX {
                self.standbys.moves.push(PeerMoved { at, peer, moved });
            }
        }
    }

    /// Takes the answers to pings.
    pub(super) fn take_answers(&mut self) {
        let now = self.clock.mono();
        while let Some(PingAnswer { peer: id, answer }) = self.inbox.answers.pop() {
            let standing = self.peer_mut(id).and_then(|peer| peer.standing.as_mut());
            let Some(standing) = standing else { continue };
            let Some(pings) = &mut standing.pings else {
                continue;
            };
            if pings.secret == answer.secret && pings.asking.answered(answer.sequence, now) {
                if std::mem::take(&mut pings.lost) {
                    pings.asking.set_interval(pings.plan.interval, now);
                }
                standing.standby.ping_answered();
                self.mark(id);
            }
        }
    }

    /// When there is something to do.
    pub(super) fn standby_deadline(&self) -> Option<Time> {
        let marked = self.standbys.all_marked || !self.standbys.marked.is_empty();
        let due = self.standbys.due.first().map(|(at, _)| *at);
        if marked { Some(Time(0)) } else { due }
    }

    /// Judges those whom something concerns.
    pub(super) fn tend_standbys(&mut self) {
        self.take_answers();
        let now = self.clock.mono();
        let mut marked = std::mem::take(&mut self.standbys.marked);
        if std::mem::take(&mut self.standbys.all_marked) {
            marked.extend((0..self.peers.len() as u32).map(PeerId));
        }
        let due = self.standbys.due.iter().take_while(|(at, _)| *at <= now);
        marked.extend(due.map(|(_, id)| *id));
        for id in marked {
            self.judge(id, now);
        }
    }

    fn judge(&mut self, id: PeerId, now: Time) {
        let Some(mut standing) = self.peer_mut(id).and_then(|peer| peer.standing.take()) else {
            return;
        };
        self.see_links(id, &mut standing, now);
        self.ping(id, &mut standing, now);
        if standing.shunned.is_some_and(|(_, until)| until <= now) {
            standing.shunned = None;
            self.workers.tell_owner(id, Command::Shun(id, None));
        }
        // Where nobody has said where it is, there is nothing to send by any link.
        while self.peer(id).is_some_and(|peer| !peer.endpoint.is_none())
            && let Some(step) = standing.standby.poll(now)
        {
            match step {
                Step::Move(moved) => self.carry_out_move(id, &mut standing, moved, now),
                Step::Nudge => self.workers.tell_owner(id, Command::Keepalive(id)),
                Step::Call => self.want_handshake(id),
            }
        }
        self.aim(id, &standing);
        let due = standing.deadline(now);
        if let Some(before) = std::mem::replace(&mut standing.due, due) {
            self.standbys.due.remove(&(before, id));
        }
        self.standbys.due.extend(due.map(|due| (due, id)));
        if let Some(peer) = self.peer_mut(id) {
            peer.standing = Some(standing);
        }
    }

    fn see_links(&self, id: PeerId, standing: &mut Standing, now: Time) {
        let Some(peer) = self.peer(id) else { return };
        standing.standby.set_calls_us(!peer.is_called);
        for (at, way) in standing.ways.iter().enumerate() {
            let is_silent = |gateway| self.standbys.silent.contains(&(at, gateway));
            let health = if self.links[at].is_none() {
                Health::Gone
            } else if !way.routed || !peer.endpoint.is_none() && !self.sends[at].has(&peer.endpoint) {
                Health::NoRoute
            } else if way.gateway.is_some_and(|(gateway, _)| is_silent(gateway)) {
                Health::GatewaySilent
            } else {
                Health::Good
            };
            standing.standby.set_health(at, health, now);
        }
    }

    /// Sends a ping if one is due, and judges whether they are answered. Without a session there is nothing to judge, but one is wanted.
    fn ping(&mut self, id: PeerId, standing: &mut Standing, now: Time) {
        let has_session = self.has_session(id);
        let Some(pings) = &mut standing.pings else { return };
        if has_session && !pings.lost && pings.asking.is_lost(now) {
            pings.lost = true;
            pings
                .asking
                .set_interval(pings.plan.interval.max(PING_BACKOFF), now);
            standing.standby.ping_lost(now);
        }
        let Some(sequence) = pings.asking.poll(now) else {
            return;
        };
        if !has_session {
            pings.asking.forget();
            self.want_handshake(id);
        } else if let Some(ping) = echo::request(pings.plan.from, pings.plan.to, sequence, &pings.secret) {
            self.workers.tell_owner(id, Command::Ping(id, Box::new(ping)));
        }
    }

    fn carry_out_move(&mut self, id: PeerId, standing: &mut Standing, moved: Move, now: Time) {
        let left = moved.from.and_then(|from| self.ifindex(from));
        standing.shunned = left.map(|left| (left, now.after(CONFIRM)));
        self.workers.tell_owner(id, Command::Shun(id, left));
        self.aim(id, standing);
        if let Some(peer) = self.peer_mut(id) {
            peer.tries = 0;
            let key = peer.key;
            self.note_move(key, Some(moved));
        }
        if let Some(pings) = &mut standing.pings {
            pings.asking.restart(now);
            pings.asking.set_interval(pings.plan.interval, now);
            pings.lost = false;
        }
        if self.has_session(id) {
            self.workers.tell_owner(id, Command::Keepalive(id));
            // Who has said nothing for a while is left in peace: a session that nobody uses ends by itself.
            let heard = self.device.traffic(id).last_received();
            if heard.is_some_and(|at| now.since(at) < self.device.timeouts().keepalive_timeout) {
                standing.standby.expect(now);
            }
            // The first one tells the peer where we are, too.
            self.ping(id, standing, now);
        }
    }

    /// Has what goes to a peer leave by the link that its session is on, if it does not.
    fn aim(&mut self, id: PeerId, standing: &Standing) {
        let ifindex = standing.standby.current().and_then(|at| self.ifindex(at));
        let Some(peer) = self.peer_mut(id) else { return };
        if let Some(ifindex) = ifindex.filter(|ifindex| *ifindex != peer.endpoint.ifindex())
            && !peer.endpoint.is_none()
        {
            peer.endpoint.set_local(None, ifindex);
            let endpoint = peer.endpoint;
            self.workers.tell_owner(id, Command::Endpoint(id, endpoint));
        }
    }

    fn want_handshake(&mut self, id: PeerId) {
        let now = self.clock.now();
        self.device
            .want_handshake(id, &now, &mut *self.random, &mut self.outputs);
    }
}
