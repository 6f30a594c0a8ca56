//! What a worker knows of a peer: its sessions, where it is, and the packets that wait for a session.
//!
//! Owned by one worker. The slow path makes a slot, sends it over, and gets it back when the peer is removed.

use std::collections::VecDeque;
use std::sync::Arc;

use patronus_crypto::keypair::Keypairs;
use patronus_crypto::messages::{self, DataHeader, Kind};
use patronus_crypto::timers::Traffic;
use patronus_crypto::{Duration, PeerId, Time};
use patronus_io::ip::{PROTO_UDP, Packet, UDP_HEADER};
use patronus_mem::{Outer, PktBuf};

/// Packets of one peer that may wait for a session; when another comes, the oldest goes (as in Linux).
pub const STAGED_MAX: usize = 128;

/// How often a worker repeats its request for a handshake. The slow path has a limit of its own; this one keeps the
/// notice queue free.
const ASK_INTERVAL: Duration = Duration::from_millis(500);

/// A peer, as its worker sees it.
pub struct PeerSlot {
    /// Which peer.
    pub id: PeerId,
    /// Its sessions.
    pub keypairs: Keypairs,
    /// Where it is, and from which of our addresses it is answered. `Outer::NONE` if unknown.
    pub endpoint: Outer,
    /// Times and bytes, shared with the slow path's timers.
    pub traffic: Arc<Traffic>,
    staged: VecDeque<PktBuf>,
    asked: Option<Time>,
}

impl PeerSlot {
    /// A peer without a session.
    pub fn new(id: PeerId, traffic: Arc<Traffic>, endpoint: Outer) -> Self {
        PeerSlot {
            id,
            keypairs: Keypairs::default(),
            endpoint,
            traffic,
            // All the room at once: the worker allocates nothing later.
            staged: VecDeque::with_capacity(STAGED_MAX),
            asked: None,
        }
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
        if self.asked.is_some_and(|asked| now.since(asked) < ASK_INTERVAL) {
            return false;
        }
        self.asked = Some(now);
        true
    }

    /// A new session came: the next request need not wait for the interval.
    pub fn answered(&mut self) {
        self.asked = None;
    }
}
