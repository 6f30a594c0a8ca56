//! The WireGuard protocol, sans-IO.
//!
//! Nothing here opens a socket, reads a clock or draws a random number: datagrams, [`Now`] and [`Random`] are
//! passed in and what is to be done comes out. The same code therefore runs in the engine, under test vectors and in
//! a simulator with a virtual clock.
//!
//! The protocol is cut in two along the engine's threads:
//!
//! * `device` and what it stands on (`noise`, `cookie`, `tai64n`, `ratelimit`, `timers`) is the slow path's half: handshakes, cookies
//!   and the timers of every peer.
//! * `keypair`, `replay` and `aead` are the data path's half: what a worker needs to seal and open packets without
//!   asking anybody. `timers::Traffic` is the one thing both see: counters and times that the worker writes.
#![forbid(unsafe_code)]

pub mod aead;
mod clock;
mod cookie;
mod device;
mod fnv;
mod hash;
mod index;
pub mod keypair;
pub mod messages;
mod noise;
mod ratelimit;
mod refusal;
pub mod replay;
mod tag;
pub mod tai64n;
pub mod timeouts;
pub mod timers;
pub mod x25519;

pub use clock::{Duration, Now, Random, Time, WallClock};
pub use device::{AddLaneError, AddPeerError, Device, Limits, Output, Outputs, SECRETS_PER_PEER, To};
pub use refusal::{DropCounters, Refusal};
pub use tag::{LinkId, Path, Tag};

/// A Curve25519 public key: the identity of a site or peer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

impl std::fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for byte in &self.0[..4] {
            write!(f, "{byte:02x}")?;
        }
        f.write_str("..")
    }
}

/// The slot number of a peer, or of a lane towards one: dense, chosen when it is added, reused after it is removed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PeerId(pub u32);

#[cfg(test)]
mod tests {
    use super::PublicKey;

    /// Messages name a peer by the start of its key.
    #[test]
    fn a_key_is_shown_by_its_start() {
        let mut key = PublicKey([0x5a; 32]);
        key.0[..4].copy_from_slice(&[0x01, 0xab, 0x00, 0xff]);
        assert_eq!(format!("{key:?}"), "01ab00ff..");
    }
}
