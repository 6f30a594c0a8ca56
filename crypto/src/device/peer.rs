//! What the slow path keeps about one peer, or about one lane towards it.

use std::sync::Arc;

use patronus_mem::Secret;

use crate::cookie::Generator;
use crate::noise::Waiting;
use crate::tai64n::Stamps;
use crate::timeouts::Timeouts;
use crate::timers::{PeerTimers, Traffic};
use crate::{PeerId, PublicKey, Time, WallClock};

use super::lanes::{Kin, Lane, Remote};

/// A peer's base session: identity, the handshake in progress, and what limits the next one. A lane is the same without the keys, which
/// are those of its base.
pub(super) struct Peer {
    pub(super) public: PublicKey,
    /// The secret of both static keys; `None` while we have no private key, for good if the peer's key is of low order, and for lanes.
    pub(super) shared: Option<Secret<32>>,
    pub(super) psk: Option<Secret<32>>,
    /// What there is to know of a remote or a lane; `None`: a stock peer's only session.
    pub(super) kin: Option<Box<Kin>>,
    pub(super) macs: Generator,
    pub(super) stamps: Stamps,
    /// Our initiation that waits for a response.
    pub(super) waiting: Option<Waiting>,
    /// When we last sent an initiation or a response.
    pub(super) last_handshake_sent: Option<Time>,
    /// When an initiation of the peer was last accepted.
    pub(super) last_initiation: Option<Time>,
    /// When the last handshake completed, by the wall clock.
    pub(super) last_handshake: Option<WallClock>,
    /// When the newest session was made that the worker may send under.
    pub(super) session: Option<Time>,
    /// When the newest session was made that the peer has not used yet.
    pub(super) unconfirmed: Option<Time>,
    pub(super) timers: PeerTimers,
    pub(super) traffic: Arc<Traffic>,
}

impl Peer {
    pub(super) fn new(public: PublicKey, shared: Option<Secret<32>>) -> Peer {
        Peer {
            public,
            shared,
            psk: None,
            kin: None,
            macs: Generator::new(&public),
            stamps: Stamps::default(),
            waiting: None,
            last_handshake_sent: None,
            last_initiation: None,
            last_handshake: None,
            session: None,
            unconfirmed: None,
            timers: PeerTimers::default(),
            traffic: Arc::default(),
        }
    }

    /// A lane towards the peer with this key.
    pub(super) fn lane(public: PublicKey, lane: Lane, stamps: Stamps) -> Peer {
        Peer {
            stamps,
            kin: Some(Box::new(Kin::Lane(lane))),
            ..Peer::new(public, None)
        }
    }

    /// Which lane of whose this is; `None`: it is a base session.
    pub(super) fn as_lane(&self) -> Option<&Lane> {
        match self.kin.as_deref() {
            Some(Kin::Lane(lane)) => Some(lane),
            _ => None,
        }
    }

    /// What a remote's base session knows of the lanes.
    pub(super) fn as_remote(&self) -> Option<&Remote> {
        match self.kin.as_deref() {
            Some(Kin::Remote(remote)) => Some(remote),
            _ => None,
        }
    }

    pub(super) fn as_remote_mut(&mut self) -> Option<&mut Remote> {
        match self.kin.as_deref_mut() {
            Some(Kin::Remote(remote)) => Some(remote),
            _ => None,
        }
    }

    /// Whose keys this session's handshakes use: those of its base, or its own.
    pub(super) fn base(&self, own: PeerId) -> PeerId {
        self.as_lane().map_or(own, |lane| lane.base)
    }

    /// No session may be sent under any more. True if there was one.
    pub(super) fn forget_session(&mut self) -> bool {
        self.session.take().is_some() | self.unconfirmed.take().is_some()
    }

    /// Whether the worker has a session that it may send under now.
    pub(super) fn has_session(&self, times: &Timeouts, now: Time) -> bool {
        self.session
            .is_some_and(|made| now.since(made) < times.reject_after_time)
    }

    /// Whether a handshake message may not be sent yet, because one was sent just now.
    pub(super) fn must_pause(&self, times: &Timeouts, now: Time) -> bool {
        self.last_handshake_sent
            .is_some_and(|sent| now.since(sent) < times.rekey_timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_one_until_it_is_too_old_or_forgotten() {
        let times = Timeouts::protocol();
        let mut peer = Peer::new(PublicKey([1; 32]), None);
        let made = Time::from_secs(1000);
        assert!(!peer.has_session(&times, made));
        assert!(!peer.forget_session(), "there is none");
        peer.session = Some(made);
        assert!(peer.has_session(&times, made));
        assert!(!peer.has_session(&times, made.after(times.reject_after_time)));
        // Forgotten once, whichever there was, and both.
        assert!(peer.forget_session());
        assert!(!peer.has_session(&times, made) && !peer.forget_session());
        (peer.session, peer.unconfirmed) = (Some(made), Some(made));
        assert!(peer.forget_session() && !peer.forget_session());
    }

    /// What docs and [`Limits`](crate::Limits) say: a peer costs about a kibibyte, its two or three locked slots included.
    #[test]
    fn c67_what_a_peer_costs() {
        let tables = 14 * 9 + 4 * 8 + 16 + 4 + 24;
        let peer = size_of::<Option<Peer>>() + size_of::<Traffic>() + 16;
        assert!(
            peer + 3 * 64 + tables <= 1024,
            "{peer} bytes and {tables} in tables"
        );
    }
}
