//! Workers with a router each, and a hand on everything around them.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use patronus_crypto::{Time, aead};
use patronus_engine::channel::ToSlowPath;
use patronus_engine::clock::SystemClock;
use patronus_engine::crew::Crew;
use patronus_engine::ethernet::LinkAddresses;
use patronus_engine::fib::{FibWriterV4, FibWriterV6, Group, Limits};
use patronus_engine::flow::HashKeys;
use patronus_engine::route::{Router, Rules};
use patronus_engine::snapshot::{Exit, Hop, Plan, Snapshot};
use patronus_engine::stats::{DropReason, Placed, WorkerStats};
use patronus_engine::wg::Wg;
use patronus_engine::worker::{IdleLadder, LanPort, Parts, Worker};
use patronus_io::Port;
use patronus_io::loopback::LoopbackPort;
use patronus_mem::{Arena, ArenaConfig, Burst, FrameCache};
use patronus_sync::{Domain, Publisher, publish};

/// LAN ports by number: two of Ethernet and a TUN.
pub const ETH0: usize = 0;
pub const ETH1: usize = 1;
pub const TUN: usize = 2;
pub const LANS: usize = 3;

/// Which LAN ports are Ethernet.
pub fn lans() -> Vec<bool> {
    (0..LANS).map(|lan| lan != TUN).collect()
}

pub const NOW: Time = Time::from_secs(1_000_000);

pub fn keys() -> HashKeys {
    HashKeys::new(
        [9, 88, 777, 6666, 55555, 444_444, 3_333_333].map(|n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
    )
}

/// The link addresses of what leaves through an Ethernet port.
pub fn link(lan: usize) -> LinkAddresses {
    [2, 0, 0, 0, 1, lan as u8, 2, 0, 0, 0, 0, lan as u8]
}

/// Out of a LAN port.
pub fn out(lan: usize, mtu: u16) -> Hop {
    Hop {
        exit: Exit::Lan(lan as u16, (lan != TUN).then(|| link(lan))),
        mtu,
    }
}

/// Arenas live for ever, so tests of one process use them one after another.
static ARENAS: Mutex<Vec<&'static Arena>> = Mutex::new(Vec::new());

pub struct Rig {
    pub workers: Vec<Worker>,
    pub stats: Vec<Placed<WorkerStats>>,
    /// The far ends of each worker's LAN ports.
    pub far: Vec<Vec<LoopbackPort>>,
    pub frames: FrameCache,
    pub arena: &'static Arena,
    pub domain: Domain,
    pub publisher: Publisher<Snapshot>,
    pub v4: FibWriterV4,
    pub v6: FibWriterV6,
    pub slow: Arc<ToSlowPath>,
}

impl Rig {
    pub fn new(workers: usize, flows: usize, plan: &Plan) -> Rig {
        let arena = ARENAS.lock().unwrap().pop().unwrap_or_else(|| {
            let config = ArenaConfig {
                frames: 2048,
                jumbo_frames: 16,
            };
            Arena::new(&config).unwrap()
        });
        let (domain, readers) = Domain::new(workers);
        let snapshot = Snapshot::compile(plan, keys()).unwrap();
        let (publisher, published) = publish(&domain, Box::new(snapshot));
        let limits = Limits {
            routes: 1000,
            nodes: 4000,
        };
        let v4 = FibWriterV4::new(&domain, limits).unwrap();
        let v6 = FibWriterV6::new(&domain, limits).unwrap();
        let slow = Arc::new(ToSlowPath::new(workers).unwrap());
        let mut rig = Rig {
            workers: Vec::new(),
            stats: Vec::new(),
            far: Vec::new(),
            frames: FrameCache::new(arena),
            arena,
            domain,
            publisher,
            v4,
            v6,
            slow: Arc::clone(&slow),
        };
        for (crew, reader) in Crew::assemble(workers).unwrap().into_iter().zip(readers) {
            let rules = Rules {
                snapshot: published.clone(),
                v4: Arc::clone(rig.v4.fib()),
                v6: Arc::clone(rig.v6.fib()),
                reader,
            };
            let (near, far): (Vec<_>, Vec<_>) = (0..LANS).map(|_| LoopbackPort::pair(2048)).unzip();
            let lans = near.into_iter().enumerate().map(|(lan, port)| {
                Some(LanPort {
                    port: Box::new(port),
                    ethernet: lan != TUN,
                })
            });
            let stats = Placed::<WorkerStats>::default();
            rig.workers.push(Worker::new(Parts {
                wg: Wg::new(aead::default(), 8, 1420, 16),
                lans: lans.collect(),
                wans: vec![None],
                router: Some(Router::new(flows, keys(), rules).unwrap()),
                frames: FrameCache::new(arena),
                crew,
                stats: Placed::clone(&stats),
                slow: Arc::clone(&slow),
                clock: Box::new(SystemClock),
                idle: IdleLadder {
                    spin: std::time::Duration::ZERO,
                },
            }));
            rig.stats.push(stats);
            rig.far.push(far);
        }
        rig
    }

    /// A rig with routes: 10.N.0.0/16 and fd00:N::/32 to group N.
    pub fn with_routes(workers: usize, plan: &Plan) -> Rig {
        let mut rig = Rig::new(workers, 1000, plan);
        for group in 1..=plan.groups.len() {
            rig.route(IpAddr::from([10, group as u8, 0, 0]), 16, group as u32);
            let v6 = [0xfd00, group as u16, 0, 0, 0, 0, 0, 0];
            rig.route(IpAddr::from(v6), 32, group as u32);
        }
        rig
    }

    pub fn publish(&mut self, plan: &Plan) {
        let snapshot = Snapshot::compile(plan, keys()).unwrap();
        self.publisher.replace(&mut self.domain, Box::new(snapshot));
    }

    pub fn route(&mut self, prefix: IpAddr, len: u8, group: u32) {
        let group = Group::new(group).unwrap();
        match prefix {
            IpAddr::V4(ip) => self.v4.insert(&self.domain, ip.octets(), len, group).unwrap(),
            IpAddr::V6(ip) => self.v6.insert(&self.domain, ip.octets(), len, group).unwrap(),
        };
    }

    /// Puts bytes into a LAN port as they are.
    pub fn inject(&mut self, worker: usize, lan: usize, bytes: &[u8]) {
        let mut frame = self.frames.alloc_for(bytes.len()).expect("a frame");
        frame.append(bytes.len()).copy_from_slice(bytes);
        let mut burst = Burst::new();
        burst.push(frame);
        self.far[worker][lan]
            .tx_burst(&mut self.frames, &mut burst)
            .unwrap();
    }

    /// Puts an IP packet into a LAN port, as the LAN would.
    pub fn offer(&mut self, worker: usize, lan: usize, packet: &[u8]) {
        if lan == TUN {
            return self.inject(worker, lan, packet);
        }
        let kind: [u8; 2] = if packet[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] };
        let mut frame = vec![0x54; 12];
        frame.extend(kind);
        frame.extend(packet);
        // The shortest frame there is, without its checksum.
        frame.resize(frame.len().max(60), 0);
        self.inject(worker, lan, &frame);
    }

    /// Lets every worker have some turns.
    pub fn settle(&mut self) {
        for _ in 0..20 {
            for worker in &mut self.workers {
                assert!(worker.step(NOW));
            }
        }
    }

    /// What came out of a LAN port, as bytes.
    pub fn taken(&mut self, worker: usize, lan: usize) -> Vec<Vec<u8>> {
        let (mut all, mut burst) = (Vec::new(), Burst::new());
        while self.far[worker][lan]
            .rx_burst(&mut self.frames, &mut burst)
            .unwrap()
            > 0
        {
            all.extend(burst.iter().map(|packet| packet.data().to_vec()));
            burst.clear_into(&mut self.frames);
        }
        all
    }

    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.stats.iter().map(|stats| stats.dropped(reason)).sum()
    }

    pub fn drops(&self) -> Vec<(DropReason, u64)> {
        let all = DropReason::ALL
            .iter()
            .map(|&reason| (reason, self.dropped(reason)));
        all.filter(|&(_, count)| count > 0).collect()
    }

    pub fn icmp_sent(&self) -> u64 {
        self.stats.iter().map(|stats| stats.icmp_sent.get()).sum()
    }

    /// Every frame is back once the workers and ports are gone.
    pub fn finish(self) {
        let arena = self.arena;
        drop(self);
        assert_eq!(arena.free_frames(), arena.frames(), "every frame is back");
        ARENAS.lock().unwrap().push(arena);
    }
}
