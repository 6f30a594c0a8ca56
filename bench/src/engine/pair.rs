//! Two workers' WireGuard states with sessions between them, in one thread.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use patronus_crypto::aead::{Aead, Job, TAG};
use patronus_crypto::keypair::{Keypair, Session};
use patronus_crypto::timeouts::Timeouts;
use patronus_crypto::timers::Traffic;
use patronus_crypto::{PeerId, Time};
use patronus_engine::allowedips::AllowedIps;
use patronus_engine::channel::ToSlowPath;
use patronus_engine::clock::SystemClock;
use patronus_engine::crew::Crew;
use patronus_engine::stats::{Stage, WorkerStats};
use patronus_engine::wg::{Context, PeerSlot, Wg};
use patronus_mem::{Arena, ArenaConfig, BURST_MAX, Burst, FrameCache, Outer};

use super::size::Size;
use super::stages::Counted;

/// As much disorder as WireGuard takes: the window of the stock implementations.
const WINDOW: u32 = 8192;
const MTU: usize = 1420;
const NOW: Time = Time(1_000_000_000);

/// One side: a worker's state and what it needs.
struct Side {
    wg: Wg,
    crew: Crew,
    stats: WorkerStats,
    slow: ToSlowPath,
}

impl Side {
    fn new(aead: &'static dyn Aead, peers: usize) -> Side {
        let mut crews = Crew::assemble(1).expect("a descriptor");
        Side {
            wg: Wg::new(aead, peers, MTU, 0),
            crew: crews.pop().expect("one worker"),
            stats: WorkerStats::default(),
            slow: ToSlowPath::new(1).expect("a descriptor"),
        }
    }

    fn with<R>(&mut self, frames: &mut FrameCache, step: impl FnOnce(&mut Wg, &mut Context<'_>) -> R) -> R {
        let mut cx = Context {
            now: NOW,
            frames,
            stats: &self.stats,
            slow: &self.slow,
            wake_slow: false,
            clock: &SystemClock,
            crew: &mut self.crew,
            observing: None,
        };
        step(&mut self.wg, &mut cx)
    }
}

/// What to seal and open with nothing around it.
struct Bare {
    aead: &'static dyn Aead,
    keypairs: Box<[Keypair]>,
    counter: u64,
    bufs: Vec<Vec<u8>>,
}

/// Which part of a packet's way is looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// An inner packet becomes a datagram.
    Encrypt,
    /// A datagram becomes an inner packet.
    Decrypt,
    /// One after the other.
    Both,
}

impl Way {
    pub const ALL: [Way; 3] = [Way::Encrypt, Way::Decrypt, Way::Both];

    /// What it is called in reports.
    pub fn name(self) -> &'static str {
        match self {
            Way::Encrypt => "encrypt",
            Way::Decrypt => "decrypt",
            Way::Both => "both",
        }
    }

    /// Of a figure for encryption and one for decryption, what concerns this part.
    pub fn sum(self, encrypt: f64, decrypt: f64) -> f64 {
        match self {
            Way::Encrypt => encrypt,
            Way::Decrypt => decrypt,
            Way::Both => encrypt + decrypt,
        }
    }

    /// Names of its stages.
    pub fn stages(self) -> impl Iterator<Item = &'static str> {
        let stages = [
            (self != Way::Decrypt).then_some(Stage::Encap),
            (self != Way::Encrypt).then_some(Stage::Decap),
        ];
        stages.into_iter().flatten().map(Stage::name)
    }
}

/// Two sides, and bursts on their way from one to the other.
pub struct Pair {
    near: Side,
    far: Side,
    frames: FrameCache,
    inner: Burst,
    wire: Burst,
    bare: Bare,
    peers: usize,
    /// The peer of the next packet.
    next: usize,
}

/// Where the hosts behind a peer are: `side` is 1 or 2.
fn host(side: u8, peer: usize) -> Ipv4Addr {
    let [_, _, high, low] = (peer as u32).to_be_bytes();
    Ipv4Addr::new(10, side, high, low)
}

/// Not random: nothing is secret here, and every key is another one.
fn key(peer: usize, direction: u8) -> [u8; 32] {
    std::array::from_fn(|at| (peer >> (8 * (at % 2))) as u8 ^ (at as u8).wrapping_mul(37) ^ direction)
}

fn keypair(peer: usize, near: bool, created: Time) -> Box<Keypair> {
    let (out, back) = (key(peer, 0x55), key(peer, 0xaa));
    let (near_index, far_index) = (2 * peer as u32 + 7, 2 * peer as u32 + 8);
    let (local_index, remote_index) = if near {
        (near_index, far_index)
    } else {
        (far_index, near_index)
    };
    let (send, receive) = if near { (&out, &back) } else { (&back, &out) };
    let session = Session {
        peer: PeerId(peer as u32),
        local_index,
        remote_index,
        initiator: near,
        created,
    };
    let mut keypair = Keypair::vacant(WINDOW);
    keypair.arm(session, &Timeouts::protocol(), send, receive);
    keypair
}

/// Gives a worker's state its first peer, which everything is accepted from, and a session with it that begins now: one end of it, or the other one.
pub fn add_peer(wg: &mut Wg, cx: &mut Context<'_>, near: bool, endpoint: SocketAddr) {
    let endpoint = Outer::new(endpoint);
    let everything = std::iter::once((IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0, PeerId(0)));
    wg.set_routes(cx, Arc::new(AllowedIps::build(everything)));
    let slot = PeerSlot::new(PeerId(0), Arc::<Traffic>::default(), endpoint);
    wg.add_peer(cx, Box::new(slot));
    wg.install(cx, keypair(0, near, cx.now));
}

impl Pair {
    /// Sides with sessions between `peers` peers each.
    pub fn new(aead: &'static dyn Aead, peers: usize) -> Pair {
        let arena = Arena::new(&ArenaConfig {
            frames: 16384,
            jumbo_frames: 0,
        });
        let mut frames = FrameCache::new(arena.expect("memory for packets"));
        let (mut near, mut far) = (Side::new(aead, peers), Side::new(aead, peers));
        for (side, is_near, theirs) in [(&mut near, true, 2), (&mut far, false, 1)] {
            let prefixes = (0..peers).map(|peer| (IpAddr::V4(host(theirs, peer)), 32, PeerId(peer as u32)));
            let routes = Arc::new(AllowedIps::build(prefixes));
            side.with(&mut frames, |wg, cx| {
                wg.set_routes(cx, routes);
                for peer in 0..peers {
                    let endpoint = Outer::new(SocketAddr::from(([192, 0, 2, 1], 4000)));
                    let slot = PeerSlot::new(PeerId(peer as u32), Arc::<Traffic>::default(), endpoint);
                    wg.add_peer(cx, Box::new(slot));
                    wg.install(cx, keypair(peer, is_near, NOW));
                    while cx.slow.notices.pop().is_some() {}
                }
            });
        }
        Pair {
            near,
            far,
            frames,
            inner: Burst::new(),
            wire: Burst::new(),
            bare: Bare {
                aead,
                keypairs: (0..peers).map(|peer| *keypair(peer, true, NOW)).collect(),
                counter: 0,
                bufs: vec![Vec::new(); BURST_MAX],
            },
            peers,
            next: 0,
        }
    }

    /// A fresh burst of inner packets, each for the next peer.
    pub fn refill(&mut self, size: Size) {
        self.refill_some(size, BURST_MAX);
    }

    fn refill_some(&mut self, size: Size, count: usize) {
        while self.near.slow.notices.pop().is_some() || self.far.slow.notices.pop().is_some() {}
        self.inner.clear_into(&mut self.frames);
        self.wire.clear_into(&mut self.frames);
        for at in 0..count {
            let size = size.of(at);
            let mut pkt = self.frames.alloc().expect("a frame");
            let data = pkt.append(size);
            data.fill(0x5a);
            data[..20].fill(0);
            data[0] = 0x45;
            data[2..4].copy_from_slice(&(size as u16).to_be_bytes());
            data[8..10].copy_from_slice(&[64, 17]);
            data[12..16].copy_from_slice(&host(1, self.next).octets());
            data[16..20].copy_from_slice(&host(2, self.next).octets());
            self.next = (self.next + 1) % self.peers;
            self.inner.push(pkt);
        }
    }

    /// Inner packets to datagrams.
    pub fn encrypt(&mut self) {
        let (inner, wire) = (&mut self.inner, &mut self.wire);
        self.near
            .with(&mut self.frames, |wg, cx| wg.encap(cx, inner, wire));
    }

    /// Datagrams to inner packets.
    pub fn decrypt(&mut self) {
        let (inner, wire) = (&mut self.inner, &mut self.wire);
        let mut confirmed = ArrayVec::new();
        self.far.with(&mut self.frames, |wg, cx| {
            wg.decap(cx, wire, inner, &mut confirmed)
        });
    }

    /// Makes so many packets, lets them go a part of their way, and says how long that part took.
    pub fn serve(&mut self, way: Way, size: Size, count: usize) -> Duration {
        self.refill_some(size, count);
        let start = Instant::now();
        self.encrypt();
        if way == Way::Encrypt {
            return start.elapsed();
        }
        let encrypted = Instant::now();
        self.decrypt();
        assert_eq!(self.inner.len(), count, "every packet went all the way");
        match way {
            Way::Both => start.elapsed(),
            _ => encrypted.elapsed(),
        }
    }

    /// What the stages have counted, of both sides.
    pub fn counted(&self) -> Counted {
        Counted::of([&self.near.stats, &self.far.stats])
    }

    /// What went in came out.
    ///
    /// # Panics
    ///
    /// If not: then nothing that was measured means anything.
    pub fn check(&self, size: Size) {
        assert_eq!(self.inner.len(), BURST_MAX, "every packet went all the way");
        let bytes: usize = self.inner.iter().map(|pkt| pkt.len()).sum();
        assert_eq!(bytes, size.sum(BURST_MAX));
    }

    /// Buffers as long as what is sealed in the pipeline.
    pub fn refill_aead(&mut self, size: Size) {
        for (at, buf) in self.bare.bufs.iter_mut().enumerate() {
            let size = size.of(at);
            let padded = size.next_multiple_of(16).min(size.max(MTU));
            buf.clear();
            buf.resize(padded + TAG, 0x5a);
        }
    }

    /// The AEAD alone, on a burst of as many sessions.
    pub fn seal(&mut self) {
        self.bare.work(|aead, jobs| aead.seal(jobs));
    }

    /// The same, opened.
    pub fn open(&mut self) {
        self.bare.work(|aead, jobs| aead.open(jobs));
        self.bare.counter += BURST_MAX as u64;
    }
}

impl Bare {
    fn work(&mut self, call: impl FnOnce(&dyn Aead, &mut [Job<'_>])) {
        let peers = self.keypairs.len();
        let mut jobs = ArrayVec::<Job<'_>, BURST_MAX>::new();
        for (at, buf) in self.bufs.iter_mut().enumerate() {
            let number = self.counter + at as u64;
            let keypair = &self.keypairs[number as usize % peers];
            jobs.push(Job::new(keypair.send_key(), number, buf));
        }
        call(self.aead, &mut jobs);
        assert!(jobs.iter().all(|job| job.ok));
    }
}
