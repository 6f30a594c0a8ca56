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

/// Control messages of one remote that go to the slow path within a second: several times what a link that comes and goes takes.
pub const CONTROLS_PER_SECOND: u8 = 16;

/// How often a worker repeats its request for a handshake. The slow path has a limit of its own; this one keeps the
/// notice queue free.
const ASK_INTERVAL: Duration = Duration::from_millis(500);

/// Whose session it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Any WireGuard peer's.
    Peer,
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
    /// The interface of a lane's own link.
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
            ifindex: 0,
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
    /// where the other end is.
    #[inline]
    pub fn heard(&mut self, outer: &Outer) -> bool {
        self.silent = false;
        let on_own_link = self.role != Role::Lane || outer.ifindex() == self.ifindex;
        if !on_own_link || self.endpoint.same_path(outer) {
            return false;
        }
        self.endpoint = *outer;
        self.endpoint.set_tos(0);
        true
    }

    /// Whether a control message of this remote may go to the slow path, which all remotes share.
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
    pub fn is_own_datagram(&self, packet: &Packet<'_>, port: u16) -> bool {
        let Some(session) = self.keypairs.current() else {
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
            && ports[2..4] == port.to_be_bytes()
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
