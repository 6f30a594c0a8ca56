//! WireGuard's data path, as one worker runs it.
//!
//! The worker owns everything here: the sessions of its peers, the packets that wait for one, the table of receiver
//! indices. The slow path makes sessions and sends them over; nothing is shared but [`Traffic`](patronus_crypto::timers::Traffic)'s counters
//! and the routing table, which is immutable.
//!
//! * [`encap`]: inner packet -> peer by allowed-ips -> order -> counter -> seal -> datagram
//! * [`decap`]: datagram -> session by index -> open -> replay window -> allowed-ips -> inner packet
//!
//! Towards a remote there are lanes beside the base session, each like a peer of its own.

mod decap;
mod ecn;
mod encap;
mod index;
mod order;
mod peer;

use arrayvec::ArrayVec;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use patronus_abi::site::Sticky;
use patronus_crypto::aead::Aead;
use patronus_crypto::keypair::Keypair;
use patronus_crypto::messages::DATA_MIN;
use patronus_crypto::{PeerId, Time};
use patronus_io::ip::FlowKey;
use patronus_mem::{BURST_MAX, FrameCache, Outer, PktBuf, SMALL_MAX};

pub use self::decap::{Claim, Claimed};
use self::encap::Outgoing;
use self::index::IndexTable;
pub use self::peer::{PeerSlot, Role, STAGED_MAX};
use crate::allowedips::AllowedIps;
use crate::channel::{Command, Notice, ToSlowPath};
use crate::clock::Clock;
use crate::crew::{Crew, Handing};
use crate::explain::{Explained, Steered, Whither};
use crate::icmp::Icmp;
use crate::observe::{Observing, View};
use crate::path::Paths;
use crate::probe::{PROBER, PathChange, ProbeSet, Prober};
use crate::remote::message::Size;
use crate::snapshot::Exit;
use crate::snapshot::MTU_MIN;
use crate::stats::{DropReason, WorkerStats};
use crate::steer::{self, Manners};

/// What a stage needs besides its packets, made anew for each burst.
pub struct Context<'a> {
    /// The time of this burst.
    pub now: Time,
    /// Where frames come from and go to.
    pub frames: &'a mut FrameCache,
    /// The worker's counters.
    pub stats: &'a WorkerStats,
    /// The slow path's inbox. The worker has made sure of room for this burst's notices.
    pub slow: &'a ToSlowPath,
    /// Set when the slow path must be woken once the burst is done.
    pub wake_slow: bool,
    /// For what has to be known more exactly than the time of the burst.
    pub clock: &'a dyn Clock,
    /// The other workers. What is handed to them leaves once the burst is done.
    pub crew: &'a mut Crew,
    /// Sees packets while a trace or a capture is on.
    pub observing: Option<Observing<'a>>,
}

impl Context<'_> {
    /// Gives a packet up under a name.
    pub fn discard(&mut self, reason: DropReason, mut packet: PktBuf) {
        if let Some(observing) = &mut self.observing {
            observing.dropped(&mut packet, reason, View::Any);
        }
        self.stats.drop(reason);
        self.frames.free(packet);
    }

    /// Hands a packet to another worker; it is dropped if too many wait for that one.
    #[inline(always)]
    pub fn hand_over(&mut self, worker: usize, packet: PktBuf, left: Handing) {
        if let Err(packet) = self.crew.hand_over(worker, packet, left) {
            self.discard(DropReason::HandoffFull, packet);
        }
    }

    /// Tells the slow path of a path. What finds the queue full is not told: the path's board says it as well.
    pub fn tell_of_path(&mut self, change: PathChange) {
        let _ = self.slow.paths.push(change);
        self.wake_slow = true;
    }

    /// Leaves a notice for the slow path.
    pub fn tell(&mut self, notice: Notice) {
        let left = self.slow.notices.push(notice);
        debug_assert!(left.is_ok(), "a burst begins only with room for its notices");
        self.wake_slow = true;
    }
}

/// So many small frames there are for a jumbo frame.
pub const JUMBO_SHARE: usize = 32;

/// The largest size that fits a UDP datagram over IPv4, sealed.
const SIZE_MAX: usize = 65_535 - 20 - 8 - DATA_MIN;

/// One worker's WireGuard state.
pub struct Wg {
    aead: &'static dyn Aead,
    routes: Arc<AllowedIps>,
    peers: Vec<Option<Box<PeerSlot>>>,
    index: IndexTable,
    /// By remote: the paths towards it. Empty without remotes.
    paths: Vec<Option<Box<Paths>>>,
    /// Probes those of which this worker owns lane 0.
    pub(crate) prober: Prober,
    manners: Manners,
    /// The second ones of packets that go twice, which leave behind the burst of the first ones.
    copies: Outgoing,
    /// Acknowledgements of sizes that are to be sent, and in which lanes.
    size_acks: ArrayVec<(PeerId, Size), BURST_MAX>,
    /// Remotes for whose base session packets wait that could leave by a lane by now.
    unblocked: ArrayVec<PeerId, BURST_MAX>,
    mtu: usize,
    /// Packets are held to the MTU here: they come from a router, not out of a TUN that has seen to it.
    routed: bool,
    /// What follows from that for the length of packets, bytes.
    most: usize,
    /// What comes behind a packet that is too long for its tunnel, and that packet: with their sessions, in order. Empty between bursts.
    later: Outgoing,
    staged_total: usize,
    /// Those of them in jumbo frames.
    staged_jumbos: usize,
    staged_limit: usize,
    /// Errors for packets that cannot be sent, on their way back into the TUN.
    pub icmp: Icmp,
}

impl Wg {
    /// A worker without peers. At most `staged_limit` packets of all peers together wait for sessions, and a
    /// [`JUMBO_SHARE`]th of that in jumbo frames, so that those of silent peers cannot take every frame.
    pub fn new(aead: &'static dyn Aead, max_peers: usize, mtu: usize, staged_limit: usize) -> Self {
        let mut wg = Wg {
            aead,
            routes: Arc::new(AllowedIps::default()),
            peers: (0..max_peers).map(|_| None).collect(),
            index: IndexTable::new(max_peers),
            paths: Vec::new(),
            prober: Prober::default(),
            manners: Manners::default(),
            copies: Outgoing::default(),
            size_acks: ArrayVec::new(),
            unblocked: ArrayVec::new(),
            mtu,
            routed: false,
            most: usize::MAX,
            later: Outgoing::default(),
            staged_total: 0,
            staged_jumbos: 0,
            staged_limit,
            icmp: Icmp::default(),
        };
        wg.set_mtu(Time(0), mtu);
        wg
    }

    /// Packets that wait for sessions.
    pub fn staged(&self) -> usize {
        self.staged_total
    }

    /// One of the remotes for whom packets wait that could leave by a lane: they go with [`encap_staged`](Self::encap_staged).
    pub fn take_unblocked(&mut self) -> Option<PeerId> {
        self.unblocked.pop()
    }

    /// Packets come from a router: those that are longer than the MTU are cut up, or refused.
    pub fn hold_to_mtu(&mut self) {
        self.routed = true;
        self.bound_by_mtu();
    }

    fn bound_by_mtu(&mut self) {
        if self.routed {
            self.most = self.mtu.max(MTU_MIN.into());
        }
    }

    /// Packets that go to a peer may be so long, bytes: what the paths to a remote let pass, and what a router may ask of a tunnel.
    #[inline]
    fn longest(&self, peer: PeerId) -> usize {
        match self.paths.get(peer.0 as usize) {
            Some(Some(paths)) => match paths.board.mtu() {
                // Not less than a link of IPv6 takes, whatever anybody says.
                Some(pass) => self.most.min(pass.max(MTU_MIN).into()),
                None => self.most,
            },
            _ => self.most,
        }
    }

    /// The MTU of the tunnel to a peer, bytes.
    fn tunnel_mtu(&self, peer: PeerId) -> usize {
        self.mtu.min(self.longest(peer))
    }

    fn forget_staged(&mut self, packet: &PktBuf) {
        self.staged_total -= 1;
        self.staged_jumbos -= usize::from(packet.len() > SMALL_MAX);
    }

    fn slot(&self, peer: PeerId) -> Option<&PeerSlot> {
        self.peers.get(peer.0 as usize)?.as_deref()
    }

    /// Packets of a burst are gone through several times: each time asks for what the next one looks at.
    #[inline]
    fn prefetch_slot(&self, peer: PeerId) {
        if let Some(slot) = self.slot(peer) {
            slot.prefetch();
        }
    }

    fn slot_mut(&mut self, peer: PeerId) -> Option<&mut PeerSlot> {
        self.peers.get_mut(peer.0 as usize)?.as_deref_mut()
    }

    fn paths_mut(&mut self, remote: PeerId) -> Option<&mut Paths> {
        self.paths.get_mut(remote.0 as usize)?.as_deref_mut()
    }

    /// A session is over: its index is forgotten here, and the slow path frees it and clears the keys.
    fn retire(&mut self, cx: &mut Context<'_>, keypair: Box<Keypair>) {
        self.index.remove(keypair.local_index);
        cx.tell(Notice::Retired(keypair));
    }
}

/// What the slow path orders. Called by the worker between bursts, with room for the notices.
impl Wg {
    /// Adds a peer that this worker owns.
    pub fn add_peer(&mut self, cx: &mut Context<'_>, slot: Box<PeerSlot>) {
        let id = slot.id;
        debug_assert_eq!(cx.crew.other_owner(id), None);
        self.remove_peer(cx, id);
        self.peers[id.0 as usize] = Some(slot);
    }

    /// Forgets a peer, its sessions and what waits for one.
    pub fn remove_peer(&mut self, cx: &mut Context<'_>, peer: PeerId) {
        self.drop_staged(cx, peer);
        self.erase_keys(cx, peer);
        if let Some(slot) = self.peers[peer.0 as usize].take() {
            cx.tell(Notice::Slot(slot));
        }
    }

    /// The peer is a site of our own.
    pub fn set_remote(&mut self, peer: PeerId) {
        if let Some(slot) = self.slot_mut(peer) {
            slot.role = Role::Remote;
        }
    }

    /// Takes the paths by which packets to a remote are sent from here. Flows stay on theirs, as far as there are the same.
    pub fn set_paths(&mut self, cx: &mut Context<'_>, remote: PeerId, mut paths: Box<Paths>) {
        let at = remote.0 as usize;
        if self.paths.len() <= at {
            self.paths.resize_with(at + 1, || None);
        }
        if let Some(mut old) = self.paths[at].take() {
            paths.take_over(&mut old);
            cx.tell(Notice::Paths(old));
        }
        self.paths[at] = Some(paths);
    }

    /// Takes the manners of all classes.
    pub fn set_classes(&mut self, manners: Manners) {
        self.manners = manners;
    }

    /// Takes the order in which a class uses the paths to a remote.
    pub fn set_order(&mut self, cx: &mut Context<'_>, remote: PeerId, class: u8, order: Box<steer::Order>) {
        let old = match self.paths_mut(remote) {
            Some(paths) => paths.steering.set_order(class, order),
            None => order,
        };
        cx.tell(Notice::Order(old));
    }

    /// What becomes of a flow where the allowed-ips say it. Changes nothing.
    pub fn explain(&self, key: FlowKey) -> Explained {
        let dst: IpAddr = match key.is_ipv6() {
            true => key.dst_v6().into(),
            false => key.dst_v4().into(),
        };
        let peer = self.routes.lookup(dst);
        Explained {
            key,
            bytes: None,
            idle: None,
            owner: None,
            policy: None,
            class: 0,
            whither: peer.map_or(Whither::NoRoute, |peer| Whither::Exit(Exit::Tunnel(peer))),
            bucket: None,
            steered: None,
        }
    }

    /// By which path a flow's packets go that take a tunnel. Changes nothing.
    pub fn explain_path(&self, now: Time, told: &mut Explained) {
        let paths = told.peer().and_then(|peer| self.paths.get(peer.0 as usize));
        let Some(Some(paths)) = paths else { return };
        let (key, keys) = (&told.key, paths.steering.keys());
        let source: IpAddr = match key.is_ipv6() {
            true => key.src_v6().into(),
            false => key.src_v4().into(),
        };
        let by_flow = || steer::bucket_of(keys.hash(&key.without_dscp()));
        let bucket = match self.manners.get(told.class).sticky {
            Sticky::Source => steer::bucket_of_source(keys, source),
            Sticky::Flow => told.bucket.unwrap_or_else(by_flow),
        };
        told.bucket = Some(bucket);
        let name = |place: u8| paths.each().get(usize::from(place)).map(|path| path.name);
        let found = paths.steering.tell(told.class, bucket, now, paths.board.up());
        told.steered = found.map(|found| Steered {
            path: found.path.and_then(name),
            home: found.home.and_then(name),
            second: found.second.and_then(name),
            since: found.since,
            seen: found.seen,
        });
    }

    /// A remote has been started anew.
    pub fn restarted(&mut self, remote: PeerId) {
        if let Some(paths) = self.paths_mut(remote) {
            paths.steering.forget_doubles();
        }
    }

    /// Takes the paths to a remote to probe.
    pub fn probe(&mut self, cx: &mut Context<'_>, remote: PeerId, set: Box<ProbeSet>) {
        if let Some(old) = self.prober.follow(cx.now, remote, set) {
            cx.tell(Notice::Probe(old));
        }
    }

    /// What arrives on this interface says no more where a peer is; none: everything does.
    pub fn shun(&mut self, peer: PeerId, ifindex: Option<u32>) {
        if let Some(slot) = self.slot_mut(peer) {
            slot.shun(ifindex);
        }
    }

    /// Whether the slow path waits for a peer's answers to pings.
    pub fn set_pinged(&mut self, peer: PeerId, pinged: bool) {
        if let Some(slot) = self.slot_mut(peer) {
            slot.set_pinged(pinged);
        }
    }

    /// Packets of hosts go to or come from a remote, the first ones for a while.
    #[cold]
    fn begin_use(&mut self, cx: &Context<'_>, remote: PeerId) {
        if cx.crew.me() == PROBER {
            return self.prober.used(cx.now, remote);
        }
        let inbox = &cx.crew.inboxes()[PROBER];
        if inbox.commands.push(Command::Used(remote)).is_ok() {
            inbox.waker.wake();
        }
    }

    /// Nothing has been heard on a lane for a while.
    pub fn set_silent(&mut self, lane: PeerId) {
        if let Some(slot) = self.slot_mut(lane) {
            slot.set_silent();
        }
    }

    /// Takes the new routing table.
    pub fn set_routes(&mut self, cx: &mut Context<'_>, routes: Arc<AllowedIps>) {
        cx.tell(Notice::Routes(std::mem::replace(&mut self.routes, routes)));
    }

    /// Takes a new session. True if it may be sent under at once: we began it, so the other side knows it.
    pub fn install(&mut self, cx: &mut Context<'_>, keypair: Box<Keypair>) -> bool {
        let (peer, index, initiator) = (keypair.peer, keypair.local_index, keypair.initiator);
        if self.slot(peer).is_none() || !self.index.insert(index, peer) {
            cx.tell(Notice::Retired(keypair));
            return false;
        }
        let slot = self.slot_mut(peer).expect("looked at above");
        slot.answered();
        let tunnel = slot.tunnel();
        for retired in slot.keypairs.install(keypair) {
            self.retire(cx, retired);
        }
        if initiator && tunnel != peer {
            self.prober.opened(cx.now, tunnel, peer);
        }
        initiator
    }

    /// Notes which worker to hand an index's packets to.
    pub fn add_foreign_index(&mut self, index: u32, peer: PeerId) {
        // A full table makes the packets of that session unknown here, and counted as such.
        let _ = self.index.insert(index, peer);
    }

    /// Forgets an index of another worker's.
    pub fn remove_foreign_index(&mut self, index: u32) {
        self.index.remove(index);
    }

    /// Where the peer is from now on.
    ///
    /// Told back to the slow path: if the peer was heard elsewhere meanwhile, both sides end with what came last here.
    pub fn set_endpoint(&mut self, cx: &mut Context<'_>, peer: PeerId, endpoint: Outer) {
        if let Some(slot) = self.slot_mut(peer) {
            slot.endpoint = endpoint;
            cx.tell(Notice::Endpoint(peer, endpoint));
        }
    }

    /// A lane goes where another one of its path was heard, if it is where that was before. Nothing is told back: if it is elsewhere, that was told already, and what is told
    /// would make the others follow again, and so on for ever.
    pub fn follow(&mut self, lane: PeerId, from: SocketAddr, to: Outer) {
        if let Some(slot) = self
            .slot_mut(lane)
            .filter(|slot| slot.endpoint.remote() == Some(from))
        {
            slot.endpoint = to;
        }
    }

    /// Forgets from which of our addresses a peer, or every peer, was answered; the kernel chooses anew.
    pub fn clear_source(&mut self, peer: Option<PeerId>) {
        match peer {
            Some(peer) => {
                if let Some(slot) = self.slot_mut(peer) {
                    slot.endpoint.forget_source();
                }
            }
            None => self
                .peers
                .iter_mut()
                .flatten()
                .for_each(|slot| slot.endpoint.forget_source()),
        }
    }

    /// Forgets that peers were heard on this interface.
    pub fn leave_link(&mut self, ifindex: u32) {
        let slots = self.peers.iter_mut().flatten();
        slots
            .filter(|slot| slot.endpoint.ifindex() == ifindex)
            .for_each(|slot| slot.endpoint.leave_link());
    }

    /// Forgets a source address that the kernel refused, with every peer that has it.
    pub fn clear_stale_source(&mut self, address: IpAddr) {
        let slots = self.peers.iter_mut().flatten();
        slots
            .filter(|slot| slot.endpoint.local() == Some(address))
            .for_each(|slot| slot.endpoint.forget_source());
    }

    /// Drops what waits for a session with the peer.
    pub fn drop_staged(&mut self, cx: &mut Context<'_>, peer: PeerId) {
        while let Some(packet) = self.slot_mut(peer).and_then(PeerSlot::unstage) {
            self.forget_staged(&packet);
            cx.discard(DropReason::StagedPurged, packet);
        }
    }

    /// Ends all sessions of the peer.
    pub fn erase_keys(&mut self, cx: &mut Context<'_>, peer: PeerId) {
        let Some(slot) = self.slot_mut(peer) else { return };
        let tunnel = slot.tunnel();
        for retired in slot.keypairs.clear() {
            self.retire(cx, retired);
        }
        if tunnel != peer {
            let now = cx.now;
            let tell = |change| cx.tell_of_path(change);
            self.prober.erased(now, tunnel, peer, tell);
        }
        patronus_mem::wipe_stack();
    }

    /// Our own key changed: what is under way may still arrive, nothing more is sent under it.
    pub fn expire_sending(&mut self, peer: PeerId) {
        if let Some(slot) = self.slot_mut(peer) {
            slot.keypairs.expire_sending();
        }
    }

    /// The TUN's MTU changed.
    pub fn set_mtu(&mut self, now: Time, mtu: usize) {
        self.mtu = mtu;
        self.bound_by_mtu();
        self.prober.set_mtu_max(now, mtu.min(SIZE_MAX) as u16);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A worker whose peers have these endpoints.
    fn with_endpoints(endpoints: &[Outer]) -> Wg {
        let mut wg = Wg::new(patronus_crypto::aead::default(), endpoints.len(), 1420, 16);
        for (at, endpoint) in endpoints.iter().enumerate() {
            let slot = PeerSlot::new(PeerId(at as u32), Arc::default(), *endpoint);
            wg.peers[at] = Some(Box::new(slot));
        }
        wg
    }

    fn endpoints(wg: &Wg) -> Vec<Outer> {
        wg.peers.iter().flatten().map(|slot| slot.endpoint).collect()
    }

    fn heard(remote: &str, local: &str, ifindex: u32) -> Outer {
        let mut outer = Outer::new(remote.parse().unwrap());
        outer.set_local(Some(local.parse().unwrap()), ifindex);
        outer
    }

    #[test]
    fn a_link_is_left_by_those_who_were_heard_there() {
        let before = [
            heard("192.0.2.1:1", "198.51.100.1", 7),
            heard("192.0.2.1:2", "198.51.100.1", 8),
            heard("[2001:db8::1]:1", "2001:db8::9", 7),
            Outer::new("192.0.2.3:1".parse().unwrap()),
        ];
        let mut wg = with_endpoints(&before);
        wg.leave_link(7);
        let after = endpoints(&wg);
        for at in [0, 2] {
            assert_eq!((after[at].ifindex(), after[at].local()), (0, None));
            assert_eq!(after[at].remote(), before[at].remote());
        }
        assert_eq!((after[1], after[3]), (before[1], before[3]));
    }

    #[test]
    fn a_refused_source_is_forgotten_by_those_who_have_it() {
        let before = [
            heard("192.0.2.1:1", "198.51.100.1", 7),
            heard("192.0.2.2:1", "198.51.100.2", 7),
            heard("[2001:db8::1]:1", "2001:db8::9", 7),
            Outer::new("192.0.2.3:1".parse().unwrap()),
        ];
        let mut wg = with_endpoints(&before);
        wg.clear_stale_source("198.51.100.1".parse().unwrap());
        let after = endpoints(&wg);
        assert_eq!((after[0].local(), after[0].ifindex()), (None, 7));
        assert_eq!(after[0].remote(), before[0].remote());
        assert_eq!(after[1..], before[1..]);
    }
}
