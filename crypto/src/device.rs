//! The slow path's half of the protocol: our identity, the peers, their handshakes and their timers.
//!
//! One [`Device`] per engine, owned by the slow-path thread. It takes handshake datagrams, the workers' requests and the time, and
//! says what is to be done through [`Outputs`]. It holds no session: a finished handshake's [`Keypair`] goes out to the peer's
//! worker and comes back when it is worn out.
//!
//! * this file: what is configured, and the tables
//! * `peer`: what is kept about one peer
//! * `handshake`: messages in and out
//! * `lanes`: further sessions with sites of our own
//! * `expiry`: deadlines
//! * `output`: what a device asks for

mod expiry;
mod handshake;
mod lanes;
mod output;
mod peer;

use std::collections::HashMap;
use std::fmt;
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use patronus_mem::{Secret, wipe_stack};
use subtle::ConstantTimeEq;

use crate::cookie::Checker;
use crate::fnv::Fnv;
use crate::hash;
use crate::index::IndexTable;
use crate::keypair::Keypair;
use crate::noise::{self, Curve, Identity};
use crate::ratelimit::RateLimiter;
use crate::refusal::DropCounters;
use crate::replay::ReplayWindow;
use crate::tai64n::ClockGuard;
use crate::timeouts::Timeouts;
use crate::timers::{Schedule, Traffic};
use crate::x25519::Dh;
use crate::{Duration, Now, PeerId, PublicKey, Random, Time, WallClock};

pub use lanes::AddLaneError;
pub use output::{Output, Outputs, To};

use peer::Peer;

/// Indices that a peer uses at most at a time: a handshake of ours, three sessions, and three on their way back.
const INDICES_PER_PEER: usize = 7;

/// Secrets ([`patronus_mem::Secret`]) that a peer or a lane has at most at a time: its own two (static-static and preshared), two of a handshake,
/// and two of each session. For who reserves locked memory.
pub const SECRETS_PER_PEER: usize = 2 + 2 + 2 * (INDICES_PER_PEER - 1);

/// Places for them: twice as many, because a hash table that is less than half full cleans itself up without growing.
const INDICES_RESERVED_PER_PEER: usize = 2 * INDICES_PER_PEER;

/// Sizes and limits, chosen at set-up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Most peers and lanes. Memory grows with the peers there are, by about 1 KiB each and two replay windows for a session in use.
    pub max_peers: u32,
    /// Handshake messages waiting at which we are under load.
    pub load_threshold: usize,
    /// Sources that are counted separately while under load, about 200 KiB for the default.
    pub rate_limited_sources: usize,
    /// Bits of each session's replay window, a power of two.
    pub window_bits: u32,
    /// All protocol times are divided by this. For tests: 0 and 1 are the protocol's times, and nothing lengthens them.
    pub timer_divisor: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_peers: 1 << 20,
            // An eighth of a queue of 4,096, as Linux does.
            load_threshold: 512,
            rate_limited_sources: 8192,
            window_bits: ReplayWindow::DEFAULT_BITS,
            timer_divisor: 1,
        }
    }
}

/// Why a peer was not added.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AddPeerError {
    /// There are [`Limits::max_peers`] already.
    Full,
    /// The key is our own.
    OwnKey,
    /// The key is a peer's already.
    Exists,
}

impl fmt::Display for AddPeerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AddPeerError::Full => "the limit on peers is reached",
            AddPeerError::OwnKey => "the key is our own public key",
            AddPeerError::Exists => "there is a peer with this key",
        })
    }
}

impl std::error::Error for AddPeerError {}

/// The slow-path half of a WireGuard interface. Starts down, without a key and without peers.
pub struct Device {
    limits: Limits,
    times: Timeouts,
    curve: Curve,
    up: bool,
    /// Our key pair, and what checks messages sent to it.
    local: Option<Local>,
    peers: Vec<Option<Peer>>,
    vacant: Vec<PeerId>,
    /// Peers by a keyed hash of their public key, so that the time of a lookup tells nothing about the keys.
    by_key: HashMap<u128, PeerId, BuildHasherDefault<Fnv>>,
    by_key_secret: Secret<32>,
    indices: IndexTable,
    schedule: Schedule,
    /// The time at the last call that told it.
    latest: Time,
    limiter: RateLimiter,
    under_load: Option<Time>,
    clock: ClockGuard,
    jitter: Jitter,
    /// Keypairs that came back, to be used again.
    #[expect(
        clippy::vec_box,
        reason = "the boxes themselves go to the workers and come back"
    )]
    spare: Vec<Box<Keypair>>,
    counters: DropCounters,
}

struct Local {
    identity: Identity,
    checker: Checker,
}

impl Device {
    /// A device that computes with `dh`. `now` is the first look at the wall clock; see [`trust_clock`](Self::trust_clock).
    pub fn new(limits: Limits, dh: &'static dyn Dh, now: Now, rng: &mut dyn Random) -> Device {
        let mut clock = ClockGuard::new();
        clock.plausible(now.mono, now.wall);
        Device {
            limits,
            times: Timeouts::shortened(limits.timer_divisor),
            curve: Curve::new(dh),
            up: false,
            local: None,
            peers: Vec::new(),
            vacant: Vec::new(),
            by_key: HashMap::default(),
            by_key_secret: Secret::with(|key| rng.fill(key)),
            indices: IndexTable::default(),
            schedule: Schedule::default(),
            latest: now.mono,
            limiter: RateLimiter::new(limits.rate_limited_sources, rng),
            under_load: None,
            clock,
            jitter: Jitter::new(rng),
            spare: Vec::new(),
            counters: DropCounters::new(),
        }
    }

    /// The times in force.
    pub fn timeouts(&self) -> &Timeouts {
        &self.times
    }

    /// Sets our private key, or takes it away; all zero counts as none. Handshakes in progress end, sessions may receive but not send
    /// any more ([`Output::ExpireSending`]), and a peer that has our own public key is removed ([`Output::PeerGone`]).
    /// The same key again changes nothing.
    pub fn set_private_key(&mut self, key: Option<Secret<32>>, out: &mut Outputs) {
        self.replace_private_key(key.filter(|key| !bool::from(key.ct_eq(&[0; 32]))), out);
        wipe_stack();
    }

    /// Whether this is our private key, clamped or not.
    pub fn has_private_key(&self, key: &Secret<32>) -> bool {
        let same = self.local.as_ref().is_some_and(|local| {
            let clamped = Secret::with(|copy| {
                copy.copy_from_slice(&**key);
                noise::clamp(copy);
            });
            local.identity.private.ct_eq(&*clamped).into()
        });
        wipe_stack();
        same
    }

    #[inline(never)]
    fn replace_private_key(&mut self, key: Option<Secret<32>>, out: &mut Outputs) {
        if key.as_ref().is_some_and(|key| self.has_private_key(key)) {
            return;
        }
        let key = key.map(|mut key| {
            noise::clamp(&mut key);
            key
        });
        self.local = key.map(|private| {
            let public = self.curve.public(&private);
            Local {
                identity: Identity { private, public },
                checker: Checker::new(&public),
            }
        });
        if let Some(own) = self.public_key().and_then(|own| self.peer(&own)) {
            let lanes: Vec<PeerId> = self.lanes(own).map(|(_, id)| id).collect();
            for peer in lanes.into_iter().chain([own]) {
                self.remove_peer(peer);
                out.push(Output::PeerGone { peer });
            }
        }
        for (id, peer) in (0..).map(PeerId).zip(&mut self.peers) {
            let Some(peer) = peer else { continue };
            let local = self.local.as_ref().filter(|_| peer.as_lane().is_none());
            peer.shared =
                local.and_then(|local| self.curve.shared(&local.identity.private, &peer.public.0).ok());
            if let Some(waiting) = peer.waiting.take() {
                self.indices.free(waiting.index);
            }
            peer.last_handshake_sent = None;
            if peer.forget_session() {
                out.push(Output::ExpireSending { peer: id });
            }
        }
    }

    /// Our public key.
    pub fn public_key(&self) -> Option<PublicKey> {
        self.local.as_ref().map(|local| local.identity.public)
    }

    /// Our private key, clamped, for showing it to who is allowed to see it.
    pub fn private_key(&self) -> Option<&Secret<32>> {
        self.local.as_ref().map(|local| &local.identity.private)
    }

    /// Adds a peer.
    pub fn add_peer(&mut self, public: PublicKey) -> Result<PeerId, AddPeerError> {
        if self.public_key() == Some(public) {
            return Err(AddPeerError::OwnKey);
        }
        if self.peer(&public).is_some() {
            return Err(AddPeerError::Exists);
        }
        let id = self.vacancy().ok_or(AddPeerError::Full)?;
        let shared = self
            .local
            .as_ref()
            .and_then(|local| self.curve.shared(&local.identity.private, &public.0).ok());
        wipe_stack();
        self.peers[id.0 as usize] = Some(Peer::new(public, shared));
        self.by_key.insert(self.key_hash(&public), id);
        self.make_room();
        Ok(id)
    }

    /// A number that nobody has.
    fn vacancy(&mut self) -> Option<PeerId> {
        self.vacant.pop().or_else(|| {
            let more = self.peers.len() < self.limits.max_peers as usize;
            more.then(|| {
                self.peers.push(None);
                PeerId(self.peers.len() as u32 - 1)
            })
        })
    }

    /// Grows every table to what the peers there are can need, so that handshakes allocate nothing.
    fn make_room(&mut self) {
        let peers = self.peers.len().next_power_of_two();
        self.schedule.reserve(peers);
        self.indices.reserve(INDICES_RESERVED_PER_PEER * peers);
        self.vacant.reserve(peers.saturating_sub(self.vacant.len()));
        self.spare.reserve((4 * peers).saturating_sub(self.spare.len()));
    }

    /// Removes a peer or a lane, its handshake and its timers. Its sessions are the worker's to [give back](Self::retire). Its number is
    /// not given to another peer before [`release`](Self::release), because the worker may still speak of it.
    ///
    /// # Panics
    /// If the peer has lanes: they are removed first.
    pub fn remove_peer(&mut self, peer: PeerId) {
        let Some(mut gone) = self.peers.get_mut(peer.0 as usize).and_then(Option::take) else {
            return;
        };
        let stamps = std::mem::take(&mut gone.stamps);
        if let Some(waiting) = &gone.waiting {
            self.indices.free(waiting.index);
        }
        match gone.as_lane() {
            Some(lane) => self.forget_lane(lane, stamps),
            None => {
                let lanes = gone.as_remote().is_some_and(|remote| !remote.is_empty());
                assert!(!lanes, "a peer's lanes are removed first");
                self.by_key.remove(&self.key_hash(&gone.public));
            }
        }
        self.schedule.set(peer, None);
    }

    /// The worker has forgotten a removed peer and will say nothing more about it: its number may be used again.
    pub fn release(&mut self, peer: PeerId) {
        debug_assert!(self.get(peer).is_none() && !self.vacant.contains(&peer));
        self.vacant.push(peer);
    }

    /// The peer with this public key.
    pub fn peer(&self, public: &PublicKey) -> Option<PeerId> {
        let id = *self.by_key.get(&self.key_hash(public))?;
        let found = self.get(id)?;
        bool::from(found.public.0.ct_eq(&public.0)).then_some(id)
    }

    fn key_hash(&self, public: &PublicKey) -> u128 {
        u128::from_le_bytes(hash::mac(&self.by_key_secret, &[&public.0]))
    }

    fn get(&self, peer: PeerId) -> Option<&Peer> {
        self.peers.get(peer.0 as usize)?.as_ref()
    }

    fn get_mut(&mut self, peer: PeerId) -> Option<&mut Peer> {
        self.peers.get_mut(peer.0 as usize)?.as_mut()
    }

    /// Number of peers.
    pub fn peers(&self) -> usize {
        self.by_key.len()
    }

    /// The traffic of a peer's base session, or of a lane, which its worker writes.
    ///
    /// # Panics
    /// If there is no such peer.
    pub fn traffic(&self, peer: PeerId) -> &Arc<Traffic> {
        &self.get(peer).expect("a peer of this device").traffic
    }

    /// Sets the pre-shared key, from the next handshake on; all zero counts as none.
    pub fn set_psk(&mut self, peer: PeerId, psk: Option<Secret<32>>) {
        if let Some(peer) = self.get_mut(peer) {
            peer.psk = psk.filter(|psk| !bool::from(psk.ct_eq(&[0; 32])));
        }
    }

    /// The pre-shared key.
    pub fn psk(&self, peer: PeerId) -> Option<&Secret<32>> {
        self.get(peer)?.psk.as_ref()
    }

    /// Sets the interval of persistent keepalives, seconds; 0 for none. Where there was none, the first is due at once.
    pub fn set_persistent_keepalive(&mut self, peer: PeerId, secs: u16) {
        let Some(found) = self.get_mut(peer) else { return };
        if found.timers.persistent.is_zero() {
            found.timers.persistent_at_once();
        }
        found.timers.persistent = Duration::from_secs(secs.into());
        self.reschedule(peer);
    }

    /// The interval of persistent keepalives, seconds; 0 for none.
    pub fn persistent_keepalive(&self, peer: PeerId) -> u16 {
        self.get(peer)
            .map_or(0, |peer| peer.timers.persistent.as_secs() as u16)
    }

    /// When the last handshake with the peer completed.
    pub fn last_handshake(&self, peer: PeerId) -> Option<WallClock> {
        self.get(peer)?.last_handshake
    }

    /// Tells whether the interface is up. Down, it takes and sends no handshake, and every session and handshake is erased. Up again,
    /// peers with a persistent keepalive are called at once.
    pub fn set_up(&mut self, up: bool, out: &mut Outputs) {
        if up == self.up {
            return;
        }
        self.up = up;
        for id in (0..self.peers.len() as u32).map(PeerId) {
            let Some(peer) = self.peers[id.0 as usize].as_mut() else {
                continue;
            };
            peer.timers.stop(&peer.traffic);
            if let Some(waiting) = peer.waiting.take() {
                self.indices.free(waiting.index);
            }
            peer.last_handshake_sent = None;
            peer.forget_session();
            if !up {
                out.push(Output::DropStaged { peer: id });
                out.push(Output::EraseKeys { peer: id });
            }
            self.reschedule(id);
        }
        wipe_stack();
    }

    /// Whether the interface is up.
    pub fn is_up(&self) -> bool {
        self.up
    }

    /// Takes the wall clock as it is for a known good time: for use when a person set it on purpose, after initiations were
    /// refused because it was far ahead ([`Refusal::ClockAhead`](crate::Refusal::ClockAhead)).
    pub fn trust_clock(&mut self, now: &Now) {
        self.clock.trust(now.mono, now.wall);
    }

    /// Takes a worn-out keypair back: wipes its keys, frees its index and keeps the box.
    pub fn retire(&mut self, mut keypair: Box<Keypair>) {
        self.indices.free(keypair.local_index);
        keypair.wipe();
        if self.spare.len() < self.spare.capacity() {
            self.spare.push(keypair);
        }
    }

    /// Diffie-Hellman operations so far.
    pub fn dh_operations(&self) -> u64 {
        self.curve.operations()
    }

    /// How often handshake messages were refused, by reason.
    pub fn counters(&self) -> &DropCounters {
        &self.counters
    }

    /// Indices in use by handshakes and sessions.
    pub fn indices_in_use(&self) -> usize {
        self.indices.len()
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device")
            .field("public_key", &self.public_key())
            .field("up", &self.up)
            .field("peers", &self.peers())
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

/// Random delays. They need to differ from machine to machine and not to be unknowable, so the random source is asked only once.
struct Jitter(u64);

impl Jitter {
    fn new(rng: &mut dyn Random) -> Jitter {
        let mut seed = [0; 8];
        rng.fill(&mut seed);
        Jitter(u64::from_le_bytes(seed))
    }

    /// Uniform between zero and `bound`, inclusive (SplitMix64).
    fn draw(&mut self, bound: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let width = bound.as_nanos() as u64 + 1;
        Duration::from_nanos(((u128::from(z) * u128::from(width)) >> 64) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Now = Now {
        mono: Time::from_secs(1000),
        wall: WallClock {
            secs: 1_780_000_000,
            nanos: 0,
        },
    };

    struct Zeros;

    impl Random for Zeros {
        fn fill(&mut self, buf: &mut [u8]) {
            buf.fill(0);
        }
    }

    fn device() -> Device {
        Device::new(Limits::default(), crate::x25519::default(), NOW, &mut Zeros)
    }

    #[test]
    fn there_is_room_for_all_that_the_peers_can_need() {
        let mut device = device();
        for n in 1..=33 {
            device.add_peer(PublicKey([n; 32])).unwrap();
            let peers = usize::from(n).next_power_of_two();
            assert!(
                device.indices.capacity() >= 2 * INDICES_PER_PEER * peers,
                "{n} peers"
            );
            assert!(device.vacant.capacity() >= peers, "{n} peers");
            assert!(device.spare.capacity() >= 4 * peers, "{n} peers");
        }
    }

    #[test]
    fn no_more_keypairs_are_kept_than_there_is_room_for() {
        let mut device = device();
        device.add_peer(PublicKey([1; 32])).unwrap();
        let room = device.spare.capacity();
        for _ in 0..=room {
            device.retire(Keypair::vacant(128));
        }
        assert_eq!((device.spare.len(), device.spare.capacity()), (room, room));
    }

    #[test]
    fn without_a_session_a_keepalive_is_a_handshake() {
        let (mut device, mut out) = (device(), Outputs::new());
        device.set_private_key(Some(Secret::with(|key| key.fill(7))), &mut out);
        device.set_up(true, &mut out);
        let peer = device.add_peer(PublicKey([9; 32])).unwrap();
        device.set_persistent_keepalive(peer, 25);
        device.poll(&NOW, &mut Zeros, &mut out);
        let asked: Vec<_> = out.drain().collect();
        assert!(asked.iter().any(|output| matches!(output, Output::Send { .. })));
        assert!(
            !asked
                .iter()
                .any(|output| matches!(output, Output::Keepalive { .. }))
        );
    }

    /// S. Vigna's reference implementation of SplitMix64, seeded with 0.
    #[test]
    fn jitter_is_splitmix64() {
        let mut jitter = Jitter::new(&mut Zeros);
        // A multiplication by the largest number there is: one less than what was drawn.
        let widest = Duration::from_nanos(u64::MAX - 1);
        for drawn in [
            0xe220_a839_7b1d_cdaf,
            0x6e78_9e6a_a1b9_65f4,
            0x06c4_5d18_8009_454f,
        ] {
            assert_eq!(jitter.draw(widest), Duration::from_nanos(drawn - 1));
        }
        assert_eq!(jitter.draw(Duration::ZERO), Duration::ZERO);
    }
}
