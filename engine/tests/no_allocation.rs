//! Once its peers and sessions are there, a worker asks the global allocator for nothing and gives nothing back, whatever happens to
//! the packets it moves.

mod common;

use std::sync::Arc;

use allocation_counter::measure;
use arrayvec::ArrayVec;
use patronus_abi::site::{Class, Mode};
use patronus_crypto::{PeerId, Random, Time};
use patronus_engine::channel::{Command, Notice};
use patronus_engine::flow::HashKeys;
use patronus_engine::observe::{Limits, Task, Told, observer};
use patronus_engine::path::{PathBoard, PathLanes, PathName};
use patronus_engine::probe::{ProbeSet, ProbedPath, Prober};
use patronus_engine::remote::message::Probe;
use patronus_engine::stats::Stage;
use patronus_engine::steer::{Manners, Order, Plan, Standing, Steering};
use patronus_mem::{Burst, FrameCache};
use patronus_observe::{Filter, Kind, Sides};

use crate::common::{A, Datagram, Net, Seeded, Setup, ms, packet, secs};

const PEERS: usize = 5;

/// How often `run` calls the allocator, on this thread.
fn calls(run: impl FnOnce()) -> u64 {
    let counted = measure(run);
    counted.count_total + counted.count_current.unsigned_abs()
}

/// Steps every worker of the middle site and returns how often the allocator was called meanwhile.
fn step(net: &mut Net) -> u64 {
    let now = net.now;
    calls(|| {
        for _ in 0..4 {
            for worker in &mut net.sites[A].workers {
                worker.step(now);
            }
        }
    })
}

fn connected(workers: usize) -> Net {
    let setup = Setup {
        workers,
        staged_limit: 300,
        ..Setup::default()
    };
    let mut net = Net::star(PEERS, &setup);
    for branch in 1..=PEERS {
        net.send(branch, &packet::between(branch, A, 0, 100));
    }
    net.run(secs(1));
    for branch in 1..=PEERS {
        net.send(A, &packet::between(A, branch, 0, 100));
    }
    net.run(secs(1));
    net.logging = false;
    net
}

/// Packets for several peers, of mixed sizes, from the host: known and unknown destinations, and what is no packet.
fn outward(net: &mut Net, rng: &mut Seeded, queue: usize) {
    for _ in 0..100 {
        let len = rng.pick(40..1421);
        let branch = rng.pick(1..PEERS + 2);
        let mut packet = match rng.chance(50) {
            true => packet::between(A, branch, rng.u32().into(), len),
            false => packet::between_v6(A, branch, rng.u32().into(), len),
        };
        if rng.chance(3) {
            packet[0] = 0;
        }
        net.offer_on(A, queue, &packet);
    }
}

/// Packets of several peers from the network, some of them from new addresses, some forged, some copies.
fn inward(net: &mut Net, rng: &mut Seeded, queue: usize, counter: &mut u64) {
    for _ in 0..100 {
        *counter += u64::from(!rng.chance(5));
        let session = rng.pick(0..PEERS);
        let branch = session + 1;
        let len = rng.pick(40..1421);
        let inner = match rng.pick(0..10) {
            0 => Vec::new(),
            1 => rng.bytes(len),
            2 => packet::between(A, branch, 1, len),
            _ => packet::between(branch, A, *counter, len),
        };
        let mut bytes = net.forge(A, session, *counter, &inner);
        if rng.chance(5) {
            bytes[20] ^= 1;
        }
        if rng.chance(3) {
            bytes = rng.bytes(148);
            bytes[..4].copy_from_slice(&[1, 0, 0, 0]);
        }
        let from = net.sites[branch].addr;
        let roamed = ([198, 51, 100, 1], 1 + rng.pick(0..60000) as u16).into();
        let from = if rng.chance(5) { roamed } else { from };
        let to = net.sites[A].addr;
        let datagram = Datagram {
            at: net.now,
            from,
            to,
            tos: rng.u32() as u8 & 3,
            bytes,
        };
        net.inject_on(A, queue, &datagram);
    }
}

fn moved(net: &Net) -> u64 {
    net.sites[A].stage(Stage::LanTx) + net.sites[A].stage(Stage::WanTx)
}

/// `watched`: a trace is on, or a capture, in turn.
fn packets_allocate_nothing(workers: usize, watched: bool) {
    let mut net = connected(workers);
    let limits = Arc::new(Limits::new(u64::MAX, u64::MAX));
    let mut told = Vec::new();
    if watched {
        let task = Task {
            kind: if workers == 1 { Kind::Trace } else { Kind::Capture },
            filter: Filter::parse("ip or (ip6 and not port 9)").unwrap(),
            sides: Sides::Both,
            snap: 1000,
            udp_port: 51820,
            round: 0,
        };
        net.sites[A].core.tell_each(|worker| {
            let (observer, end) = observer(&task, worker, &limits, 256);
            told.push(end);
            Command::Observe(Some(Box::new(observer)))
        });
        net.settle();
    }
    let mut records = 0;
    let mut rng = Seeded(workers as u64);
    let mut counter = 1000;
    for round in 0..60 {
        let queue = round % workers;
        outward(&mut net, &mut rng, queue);
        inward(&mut net, &mut rng, queue, &mut counter);
        let before = moved(&net);
        let allocations = step(&mut net);
        assert!(moved(&net) > before + 50, "{} packets", moved(&net) - before);
        // The first rounds may fill caches.
        assert!(
            round < 2 || allocations == 0,
            "{allocations} calls in round {round}"
        );
        for Told { free, full } in &mut told {
            // Not all, so that some find no room.
            for entry in full.drain(100) {
                records += 1;
                assert!(free.push(entry).is_ok());
            }
        }
        net.slow_turn(A);
        net.advance(ms(7));
    }
    assert_eq!((records > 1000, limits.lost() > 1000), (watched, watched));
    net.sites[A].core.tell_all(|| Command::Observe(None));
    assert!(net.sites[A].icmp_sent() > 0);
    assert!(net.sites[A].drops().len() >= 6, "{:?}", net.sites[A].drops());
    assert_eq!(net.sites[A].stage(Stage::Handoff) > 0, workers > 1);
    net.settle();
    net.finish();
}

/// Packets that wait, sessions that come, are confirmed and go, keepalives: neither of them costs the worker an allocation.
fn sessions_allocate_nothing() {
    let mut net = connected(1);
    let mut total = 0;
    for round in 0..6 {
        net.run(secs(185));
        // The keys are dead: packets wait, more of them than there is room for.
        for id in 0..200 {
            for branch in 1..=PEERS {
                if id < 40 || branch == 1 {
                    net.offer(A, &packet::between(A, branch, id, 60));
                }
            }
        }
        let allocations = step(&mut net);
        assert!(round == 0 || allocations == 0, "staging: {allocations} calls");
        net.sites[A].slow_path_asleep = false;
        // Handshakes, key by key; the worker's part of each turn is measured.
        for _ in 0..10 {
            net.slow_turn(A);
            total += step(&mut net);
            net.run(ms(20));
        }
        assert!(round == 0 || total == 0, "sessions: {total} calls");
        total = 0;
        for branch in 1..=PEERS {
            assert!(net.delivered(branch).len() >= 40);
            net.send(branch, &packet::between(branch, A, 1, 100));
        }
        net.run(secs(1));
    }
    assert!(net.sites[A].noticed.retired >= 5);
    net.finish();
}

/// One side's prober of four paths towards `REMOTE`.
fn prober(now: Time) -> Prober {
    const REMOTE: PeerId = PeerId(3);
    let name = |path: u8| PathName {
        local: path,
        remote: 1,
    };
    let board = Arc::new(PathBoard::new((1..=4).map(name), None));
    let path = |path: u8| {
        let traffic = [Arc::default()].into();
        ProbedPath::new(name(path), path, Some(PeerId(path.into())), false, traffic)
    };
    let set = ProbeSet::new(board, (1..=4).map(path).collect(), 1);
    let mut prober = Prober::default();
    prober.follow(now, REMOTE, Box::new(set));
    (1..=4).for_each(|lane| prober.opened(now, REMOTE, PeerId(lane)));
    prober
}

/// Two sides probe four paths for a minute; one path is dead for a third of it.
fn probes_allocate_nothing() {
    let mut now = Time::from_secs(1000);
    let mut sides = [prober(now), prober(now)];
    let (mut heard, mut changed) = (0, 0);
    let counted = calls(|| {
        for tick in 0..60_000 {
            now = Time(now.0 + 1_000_000);
            for side in [0, 1] {
                sides[side].begin_turn(now);
                let mut due = ArrayVec::new();
                sides[side].due(now, |_| true, |_| changed += 1, &mut due);
                for due in due {
                    let (lane, probe) = sides[side].next(due, now).expect("a path that is there");
                    let bytes = probe.encode();
                    if lane == PeerId(2) && (20_000..40_000).contains(&tick) {
                        continue;
                    }
                    let probe = Probe::decode(&bytes).expect("a probe");
                    let of = (PeerId(3), lane);
                    heard += u64::from(sides[1 - side].hear(now, of, &probe, 1, |_| changed += 1).is_ok());
                }
            }
        }
    });
    assert_eq!(counted, 0, "allocator calls");
    assert!(
        heard > 400 && changed >= 8 + 4,
        "{heard} probes, {changed} changes"
    );
}

/// What the tests around the worker do is not counted as the worker's.
fn the_tests_hands_allocate_nothing() {
    let net = Net::pair();
    let mut frames = FrameCache::new(net.arena);
    let counted = calls(|| {
        let mut burst = Burst::new();
        burst.push(frames.alloc().unwrap());
        burst.clear_into(&mut frames);
        assert!(net.sites[A].inbox.notices.push(Notice::LanGone(0, None)).is_ok());
    });
    assert_eq!(counted, 0);
    let _ = net.sites[A].inbox.notices.pop();
    drop(frames);
    net.finish();
}

/// Whatever becomes of paths and orders: what steers has its memory from the beginning.
fn steering_allocates_nothing() {
    let name = |at: usize| PathName {
        local: at as u8 + 1,
        remote: 1,
    };
    let standing = |at: usize| Standing {
        metered: false,
        cost: at as u16 % 2,
        tag: at as u8,
    };
    let paths: Vec<(PathName, Standing)> = (0..9).map(|at| (name(at), standing(at))).collect();
    let lanes: Vec<PathLanes> = (0..9)
        .map(|at| PathLanes {
            name: name(at),
            lanes: Box::new([PeerId(at as u32)]),
            numbers: Box::new([0]),
        })
        .collect();
    let modes = [Mode::Pinned, Mode::Weighted, Mode::ActiveBackup, Mode::Duplicate];
    let classes = modes.map(|mode| Class {
        mode,
        ..Class::default()
    });
    let fresh = || {
        Steering::new(Plan {
            paths: &paths,
            lanes: &lanes,
            orders: modes.map(|_| Order::new(&[], &paths)).into(),
            manners: &Manners::of(&classes),
            classes: 1,
            keys: Arc::new(HashKeys::new([3; 7])),
        })
    };
    let (mut steering, mut other) = (fresh(), fresh());
    let board = PathBoard::new(paths.iter().map(|(name, _)| *name), None);
    let mut rng = Seeded(5);
    let mut sent = 0;
    let counted = calls(|| {
        for n in 0..20_000u64 {
            let now = Time(n << 20);
            if rng.chance(2) {
                board.set_up(rng.pick(0..9), rng.chance(60));
            }
            let class = rng.pick(0..4) as u8;
            let gone = PeerId(rng.u32() % 12);
            let chosen = steering.choose((class, rng.u32() as u8), now, &board, &lanes, |lane| lane != gone);
            // Unless it is the only one that is up.
            let lane = chosen.map(|chosen| chosen.lane);
            sent += u32::from(lane.is_some());
            if let Some(lane) = lane.filter(|_| class == 3) {
                let doubled = steering.double(3, lane, board.up(), &lanes, |_| true);
                steering.accept(lane, doubled.expect("a lane of ours").0);
            }
            if n % 1000 == 0 {
                other.take_over(&mut steering, &lanes, &lanes);
                std::mem::swap(&mut steering, &mut other);
            }
        }
    });
    assert_eq!(counted, 0);
    assert!(sent > 19_000, "{sent}");
}

#[test]
fn a_worker_allocates_nothing_per_packet() {
    steering_allocates_nothing();
    the_tests_hands_allocate_nothing();
    packets_allocate_nothing(1, false);
    packets_allocate_nothing(2, false);
    packets_allocate_nothing(4, false);
    packets_allocate_nothing(1, true);
    packets_allocate_nothing(2, true);
    sessions_allocate_nothing();
    probes_allocate_nothing();
}
