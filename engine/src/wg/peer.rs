//! What a worker knows of a peer, or of a lane towards one: its sessions, where it is, and the packets that wait for a session.
//!
//! Owned by one worker. The slow path makes a slot, sends it over, and gets it back when the peer is removed.

use std::collections::VecDeque;
use std::num::NonZero;
use std::sync::Arc;

use patronus_crypto::keypair::Keypairs;
use patronus_crypto::messages::{self, DataHeader, Kind};
use patronus_crypto::timers::Traffic;
use patronus_crypto::{Duration, PeerId, Time};
use patronus_io::ip::{PROTO_UDP, Packet, UDP_HEADER};
use patronus_mem::{Outer, PktBuf, prefetch};

/// Packets of one peer that may wait for a session; when another comes, the oldest goes (as in Linux).
pub const STAGED_MAX: usize = 128;

/// Control messages of one remote, or answers of one peer to pings, that go to the slow path within a second: several times what a link that comes and goes takes, and more
/// than a peer is pinged.
pub const CONTROLS_PER_SECOND: u8 = 16;

/// How often a worker repeats its request for a handshake. The slow path has a limit of its own; this one keeps the
/// notice queue free.
const ASK_INTERVAL: Duration = Duration::from_millis(500);

/// The number of no interface (rtnetlink(7) has them as positive 32-bit numbers).
const NOWHERE: u32 = u32::MAX;

/// Whose session it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Any WireGuard peer's.
    Peer,
    /// Likewise, and the slow path waits for its answers to pings.
    Pinged,
    /// The base session of a site of our own.
    Remote,
    /// A lane towards a site of our own.
    Lane,
}

/// A peer, as its worker sees it. Two cache lines: with a thousand peers, each packet waits for every line of another one.
#[repr(C, align(64))]
pub struct PeerSlot {
    /// Which peer.
    pub id: PeerId,
    /// What it is.
    pub role: Role,
    /// A lane that has not been heard for a while.
    silent: bool,
    /// In which second control messages were counted last, and how many.
    spoke_at: u8,
    spoken: u8,
    /// Whose allowed-ips hold here: a lane's base, or the peer itself.
    tunnel: PeerId,
    /// Of a lane: the interface of its own link, and only what arrives there says where the other end is. Of all others: the one that
    /// the session has just been moved away from, where nothing says that any more; [`NOWHERE`]: none.
    ifindex: u32,
    /// Its sessions.
    pub keypairs: Keypairs,
    /// Where it is, and from which of our addresses it is answered. `Outer::NONE` if unknown.
    pub endpoint: Outer,
    /// Times and bytes, shared with the slow path's timers.
    pub traffic: Arc<Traffic>,
    staged: VecDeque<PktBuf>,
    /// When a handshake was asked for last, nanoseconds as in [`Time`].
    asked: Option<NonZero<u64>>,
}

const _: () = assert!(size_of::<PeerSlot>() == 128);

impl PeerSlot {
    /// A peer without a session.
    pub fn new(id: PeerId, traffic: Arc<Traffic>, endpoint: Outer) -> Self {
        PeerSlot {
            id,
            role: Role::Peer,
            silent: false,
            spoke_at: 0,
            spoken: 0,
            tunnel: id,
            ifindex: NOWHERE,
            keypairs: Keypairs::default(),
            endpoint,
            traffic,
            // All the room at once: the worker allocates nothing later.
            staged: VecDeque::with_capacity(STAGED_MAX),
            asked: None,
        }
    }

    /// A lane without a session.
    pub fn lane(id: PeerId, base: PeerId, ifindex: u32, traffic: Arc<Traffic>, endpoint: Outer) -> Self {
        PeerSlot {
            role: Role::Lane,
            tunnel: base,
            ifindex,
            ..PeerSlot::new(id, traffic, endpoint)
        }
    }

    /// Asks for both lines, before they are looked at.
    #[inline]
    pub fn prefetch(&self) {
        prefetch(&self.id);
        prefetch(&self.asked);
    }

    /// The same for what the slot leads to.
    #[inline]
    pub fn prefetch_session(&self) {
        if let Some(session) = self.keypairs.current() {
            session.prefetch();
        }
        prefetch(&*self.traffic);
    }

    /// The peer whose allowed-ips hold here.
    #[inline]
    pub fn tunnel(&self) -> PeerId {
        self.tunnel
    }

    /// An authentic packet arrived by `outer`. True if it moves the endpoint: a lane stays on its own link, and only what arrives there says
    /// where the other end is; a session that was moved to another link is not taken back by what was still under way.
    #[inline]
    pub fn heard(&mut self, outer: &Outer) -> bool {
        self.silent = false;
        let counts = (outer.ifindex() == self.ifindex) == (self.role == Role::Lane);
        if !counts || self.endpoint.same_path(outer) {
            return false;
        }
        self.endpoint = *outer;
        self.endpoint.set_tos(0);
        true
    }

    /// What arrives on this interface says no more where the peer is; none: everything does.
    pub fn shun(&mut self, ifindex: Option<u32>) {
        if self.role != Role::Lane {
            self.ifindex = ifindex.unwrap_or(NOWHERE);
        }
    }

    /// Whether the slow path waits for answers to pings.
    pub fn set_pinged(&mut self, pinged: bool) {
        if matches!(self.role, Role::Peer | Role::Pinged) {
            self.role = if pinged { Role::Pinged } else { Role::Peer };
        }
    }

    /// Whether a control message of this remote, or an answer to a ping, may go to the slow path, which all share.
    pub fn may_speak(&mut self, now: Time) -> bool {
        // Of the seconds only the low bits: who is silent for just 256 of them may find his share used up.
        let second = (now.0 / 1_000_000_000) as u8;
        if self.spoke_at != second {
            (self.spoke_at, self.spoken) = (second, 0);
        }
        let may = self.spoken < CONTROLS_PER_SECOND;
        self.spoken += u8::from(may);
        may
    }

    /// Nothing has been heard for a while.
    pub fn set_silent(&mut self) {
        self.silent = true;
    }

    /// Whether a lane is one to send by: it has a session, an endpoint, and is heard.
    #[inline]
    pub fn may_carry(&self, now: Time) -> bool {
        !self.silent && self.has_session(now)
    }

    /// Whether there is a session, and an endpoint.
    #[inline]
    pub fn has_session(&self, now: Time) -> bool {
        !self.endpoint.is_none()
            && self
                .keypairs
                .current()
                .is_some_and(|session| !session.sending_expired(now))
    }

    /// Keeps `packet` until there is a session; there is room.
    pub fn stage(&mut self, packet: PktBuf) {
        debug_assert!(!self.is_full());
        self.staged.push_back(packet);
    }

    /// Whether as many packets wait as may.
    pub fn is_full(&self) -> bool {
        self.staged.len() == STAGED_MAX
    }

    /// The oldest packet that waits and a counter of the current session for it, if there are both.
    pub fn unstage_granted(&mut self, now: Time) -> Option<(PktBuf, u64)> {
        if self.staged.is_empty() {
            return None;
        }
        let counter = self.keypairs.current_mut()?.next_counter(now)?;
        Some((self.staged.pop_front()?, counter))
    }

    /// A look at the oldest packet that waits.
    pub fn oldest_staged(&self) -> Option<&PktBuf> {
        self.staged.front()
    }

    /// The oldest packet that waits.
    pub fn unstage(&mut self) -> Option<PktBuf> {
        self.staged.pop_front()
    }

    /// Whether an inner packet to the peer's own address is one of our datagrams to its UDP port, come back because the
    /// route to the peer leads into the tunnel. Sealed again it would come back again, ever longer and for ever.
    #[cold]
    pub fn is_own_datagram(&self, packet: &Packet<'_>) -> bool {
        let (Some(session), Some(to)) = (self.keypairs.current(), self.endpoint.remote()) else {
            return false;
        };
        let Ok(transport) = packet.transport() else {
            return false;
        };
        let udp = packet.bytes().get(transport.offset..).unwrap_or_default();
        let Some((ports, message)) = udp.split_first_chunk::<UDP_HEADER>() else {
            return false;
        };
        let Some(header) = message.first_chunk() else {
            return false;
        };
        transport.protocol == PROTO_UDP
            && transport.first
            && ports[2..4] == to.port().to_be_bytes()
            && messages::kind(message) == Ok(Kind::Data)
            && DataHeader::read(header).receiver == session.remote_index
    }

    /// How many packets wait.
    pub fn staged(&self) -> usize {
        self.staged.len()
    }

    /// Whether to ask the slow path for a handshake now; true at most once per interval.
    pub fn ask_for_handshake(&mut self, now: Time) -> bool {
        let just_asked = |asked: NonZero<u64>| now.since(Time(asked.get())) < ASK_INTERVAL;
        if self.asked.is_some_and(just_asked) {
            return false;
        }
        self.asked = NonZero::new(now.0);
        true
    }

    /// A new session came: the next request need not wait for the interval.
    pub fn answered(&mut self) {
        self.asked = None;
        self.silent = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard_on(ifindex: u32) -> Outer {
        let mut outer = Outer::new("192.0.2.1:51820".parse().unwrap());
        outer.set_local(Some("198.51.100.1".parse().unwrap()), ifindex);
        outer
    }

    #[test]
    fn a_session_that_was_moved_is_not_taken_back_by_late_packets() {
        let mut slot = PeerSlot::new(PeerId(1), Arc::default(), Outer::NONE);
        assert!(slot.heard(&heard_on(0)), "no interface in particular is one, too");
        assert!(slot.heard(&heard_on(7)));
        slot.shun(Some(7));
        slot.endpoint = heard_on(8);
        assert!(!slot.heard(&heard_on(7)));
        assert_eq!(slot.endpoint, heard_on(8));
        assert!(slot.heard(&heard_on(9)), "another one is");
        slot.shun(None);
        assert!(slot.heard(&heard_on(7)));
        let mut lane = PeerSlot::lane(PeerId(2), PeerId(1), 7, Arc::default(), Outer::NONE);
        lane.shun(None);
        assert!(
            !lane.heard(&heard_on(8)) && lane.heard(&heard_on(7)),
            "a lane has its own link"
        );
    }

    #[test]
    fn a_remote_has_a_share_of_the_slow_path_in_each_second() {
        let mut slot = PeerSlot::new(PeerId(1), Arc::default(), Outer::NONE);
        for second in [1000, 1001, 1255, 1256] {
            let mut said = 0;
            for n in 0..1000 {
                said += u8::from(slot.may_speak(Time(second * 1_000_000_000 + n * 999_999)));
            }
            assert_eq!(said, CONTROLS_PER_SECOND, "second {second}");
        }
    }
}
