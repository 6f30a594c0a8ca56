//! Several workers: flows are spread over them, packets change hands in order, and who sleeps is woken.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use patronus_crypto::{PeerId, aead};
use patronus_engine::channel::{Command, ToSlowPath};
use patronus_engine::clock::SystemClock;
use patronus_engine::crew::{Crew, HANDOFF_MAX};
use patronus_engine::fib::{FibWriterV4, FibWriterV6, Group, Limits};
use patronus_engine::route::{Router, Rules};
use patronus_engine::snapshot::{Exit, Hop, Plan, Snapshot};
use patronus_engine::stats::Placed;
use patronus_engine::stats::{DropReason, Stage};
use patronus_engine::wg::Wg;
use patronus_engine::worker::{IdleLadder, LanPort, Parts, Worker};
use patronus_io::loopback::LoopbackPort;
use patronus_io::{PORT_FDS, Port, PortCounters, PortError};
use patronus_mem::{Arena, ArenaConfig, Burst, FrameCache};
use patronus_sync::{Domain, publish};
use rustix::event::{EventfdFlags, eventfd};

use crate::common::Seeded;
use crate::common::packet::{self, Builder};
use crate::rig::{ETH0, Rig, TUN, keys, lans, link, out};

/// One network behind the TUN, one in a tunnel of worker 1.
fn plan(workers: usize) -> Plan {
    let tunnel = Hop {
        exit: Exit::Tunnel(PeerId(1)),
        mtu: 1420,
    };
    Plan {
        epoch: 1,
        policies: Vec::new(),
        groups: vec![vec![out(TUN, 1500)], vec![tunnel]],
        lans: lans(),
        spread_over: workers,
    }
}

fn flow_packet(flow: u16, id: u64) -> Vec<u8> {
    let builder = Builder {
        src_port: flow,
        ..Builder::new(packet::v4(5), packet::v4(1), id, 64)
    };
    builder.build()
}

fn order_within_flows(workers: usize) {
    let mut rig = Rig::with_routes(workers, &plan(workers));
    let mut rng = Seeded(workers as u64);
    let mut sent: HashMap<u16, Vec<u64>> = HashMap::new();
    let mut received: HashMap<u16, Vec<u64>> = HashMap::new();
    let mut owners: HashMap<u16, usize> = HashMap::new();
    for id in 0..3000 {
        // The NIC puts each flow into one queue, of whichever worker.
        let flow = rng.pick(0..40) as u16;
        rig.offer(usize::from(flow) % workers, ETH0, &flow_packet(flow, id));
        sent.entry(flow).or_default().push(id);
        if rng.chance(30) {
            let worker = rng.pick(0..workers);
            assert!(rig.workers[worker].step(crate::rig::NOW));
        }
        if rng.chance(5) || id == 2999 {
            rig.settle();
            for worker in 0..workers {
                for bytes in rig.taken(worker, TUN) {
                    let flow = packet::src_port(&bytes);
                    assert_eq!(
                        *owners.entry(flow).or_insert(worker),
                        worker,
                        "a flow has one worker"
                    );
                    received.entry(flow).or_default().push(packet::id(&bytes));
                }
            }
        }
    }
    assert_eq!(received, sent);
    assert_eq!(rig.drops(), []);
    let handed: u64 = rig
        .stats
        .iter()
        .map(|s| s.stage(Stage::Handoff).packets.get())
        .sum();
    assert_eq!(handed > 0, workers > 1);
    let busy = owners.values().copied().collect::<std::collections::HashSet<_>>();
    assert_eq!(busy.len(), workers, "all have something to do");
    rig.finish();
}

#[test]
fn flows_keep_their_order_with_one_worker() {
    order_within_flows(1);
}

#[test]
fn flows_keep_their_order_with_two_workers() {
    order_within_flows(2);
}

#[test]
fn flows_keep_their_order_with_four_workers() {
    order_within_flows(4);
}

#[test]
fn a_tunnel_is_left_to_its_worker() {
    let mut rig = Rig::with_routes(3, &plan(0));
    for worker in 0..3 {
        for id in 0..10 {
            rig.offer(worker, ETH0, &packet::between(5, 2, id, 100));
        }
    }
    rig.settle();
    // Nobody has told the workers of the peer.
    let dropped: Vec<u64> = rig
        .stats
        .iter()
        .map(|s| s.dropped(DropReason::EncapNoPeer))
        .collect();
    assert_eq!(dropped, [0, 30, 0]);
    rig.finish();
}

#[test]
fn a_ring_that_is_full_is_a_counted_drop() {
    let mut rig = Rig::with_routes(2, &plan(2));
    // To worker 0 only, which has none of its own flows to do: it hands on and worker 1 does not move.
    let mut id = 0;
    while rig.dropped(DropReason::HandoffFull) == 0 {
        for _ in 0..64 {
            rig.offer(0, ETH0, &flow_packet(id as u16 % 500, id));
            id += 1;
        }
        assert!(rig.workers[0].step(crate::rig::NOW));
        rig.taken(0, TUN);
        assert!(id < 4 * HANDOFF_MAX as u64, "the ring has a bound");
    }
    rig.settle();
    let dropped = rig.dropped(DropReason::HandoffFull);
    assert_eq!(rig.drops(), [(DropReason::HandoffFull, dropped)]);
    let handed: u64 = rig.stats[0].stage(Stage::Handoff).packets.get();
    assert!(handed >= HANDOFF_MAX as u64 / 2, "{handed} fitted");
    rig.finish();
}

/// A port that can be waited for.
struct Belled {
    port: LoopbackPort,
    bell: Arc<OwnedFd>,
}

impl Port for Belled {
    fn rx_burst(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Result<usize, PortError> {
        let _ = rustix::io::read(&*self.bell, &mut [0; 8]);
        self.port.rx_burst(frames, burst)
    }

    fn tx_burst(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Result<(), PortError> {
        self.port.tx_burst(frames, burst)
    }

    fn wait_fds(&self) -> ArrayVec<BorrowedFd<'_>, PORT_FDS> {
        ArrayVec::from_iter([self.bell.as_fd()])
    }

    fn counters(&self) -> &Arc<PortCounters> {
        self.port.counters()
    }
}

/// Workers on threads of their own that sleep when there is nothing to do. Each packet arrives when both are asleep and has to wake its
/// port's worker, which wakes the flow's.
#[test]
fn a_sleeping_worker_is_woken_by_another() {
    const PACKETS: u64 = 300;
    let config = ArenaConfig {
        frames: 1024,
        jumbo_frames: 0,
    };
    let arena = Arena::new(&config).unwrap();
    let (domain, readers) = Domain::new(2);
    let one_lan = Plan {
        lans: vec![true],
        groups: vec![vec![Hop {
            exit: Exit::Lan(0, Some(link(0))),
            mtu: 1500,
        }]],
        ..plan(2)
    };
    let snapshot = Snapshot::compile(&one_lan, keys()).unwrap();
    let (_publisher, published) = publish(&domain, Box::new(snapshot));
    let limits = Limits {
        routes: 10,
        nodes: 10,
    };
    let mut v4 = FibWriterV4::new(&domain, limits).unwrap();
    let v6 = FibWriterV6::new(&domain, limits).unwrap();
    v4.insert(&domain, [0; 4], 0, Group::new(1).unwrap()).unwrap();
    let slow = Arc::new(ToSlowPath::new(2).unwrap());
    let (mut workers, mut far, mut bells, mut inboxes, mut stats) = (vec![], vec![], vec![], vec![], vec![]);
    for (crew, reader) in Crew::assemble(2).unwrap().into_iter().zip(readers) {
        let (port, other) = LoopbackPort::pair(64);
        let bell = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap());
        let rules = Rules {
            snapshot: published.clone(),
            v4: Arc::clone(v4.fib()),
            v6: Arc::clone(v6.fib()),
            reader,
        };
        inboxes.push(Arc::clone(crew.inbox()));
        let worker = Worker::new(Parts {
            wg: Wg::new(aead::default(), 1, 1420, 16),
            lans: vec![Some(LanPort {
                port: Box::new(Belled {
                    port,
                    bell: Arc::clone(&bell),
                }),
                ethernet: true,
            })],
            wans: vec![None],
            router: Some(Router::new(100, keys(), rules).unwrap()),
            frames: FrameCache::new(arena),
            crew,
            stats: Placed::default(),
            slow: Arc::clone(&slow),
            clock: Box::new(SystemClock),
            idle: IdleLadder { spin: Duration::ZERO },
        });
        stats.push(Placed::clone(worker.stats()));
        workers.push(worker);
        far.push(other);
        bells.push(bell);
    }
    let mut frames = FrameCache::new(arena);
    let mut come_out_of = [0, 0];
    std::thread::scope(|scope| {
        for worker in workers {
            scope.spawn(|| worker.run());
        }
        for id in 0..PACKETS {
            let sleeps = || stats.iter().map(|s| s.sleeps.get()).sum::<u64>();
            let before = sleeps();
            let mut burst = Burst::new();
            let mut frame = frames.alloc().unwrap();
            let bytes = [&[0x54; 12][..], &[8, 0], &flow_packet(id as u16, id)].concat();
            frame.append(bytes.len()).copy_from_slice(&bytes);
            burst.push(frame);
            far[0].tx_burst(&mut frames, &mut burst).unwrap();
            rustix::io::write(&*bells[0], &1u64.to_ne_bytes()).unwrap();
            let deadline = Instant::now() + Duration::from_secs(20);
            'wait: loop {
                for (worker, far) in far.iter_mut().enumerate() {
                    if far.rx_burst(&mut frames, &mut burst).unwrap() > 0 {
                        come_out_of[worker] += burst.len() as u64;
                        burst.clear_into(&mut frames);
                        break 'wait;
                    }
                }
                assert!(Instant::now() < deadline, "packet {id} of {PACKETS} got stuck");
                std::thread::yield_now();
            }
            // Mostly until somebody sleeps again; now and then into the middle of that.
            while id % 4 != 0 && sleeps() == before && Instant::now() < deadline {
                std::thread::yield_now();
            }
        }
        for inbox in &inboxes {
            assert!(inbox.commands.push(Command::Stop).is_ok());
            inbox.waker.wake();
        }
    });
    assert_eq!(come_out_of[0] + come_out_of[1], PACKETS);
    assert!(come_out_of.iter().all(|&n| n > PACKETS / 4), "{come_out_of:?}");
}
