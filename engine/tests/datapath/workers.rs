//! Several workers: packets go to the owner of their peer, keep their order, and are not lost on the way.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use patronus_engine::channel::Notice;
use patronus_engine::crew::HANDOFF_MAX;
use patronus_engine::stats::{DropReason, Stage};
use patronus_engine::worker::Worker;

use crate::common::packet::Builder;
use crate::common::{A, B, Datagram, Net, Seeded, Setup, ms, packet, secs};

/// The packets of each flow, which its source port names, in the order in which they came.
fn by_flow(packets: impl IntoIterator<Item = Vec<u8>>) -> HashMap<u16, Vec<u64>> {
    let mut flows: HashMap<u16, Vec<u64>> = HashMap::new();
    for packet in packets {
        let flow = flows.entry(packet::src_port(&packet)).or_default();
        flow.push(packet::id(&packet));
    }
    flows
}

fn flow_packet(from: usize, to: usize, flow: u16, id: u64) -> Vec<u8> {
    let len = 60 + (id as usize * 37) % 1300;
    Builder {
        src_port: flow,
        ..Builder::new(packet::v4(from), packet::v4(to), id, len)
    }
    .build()
}

/// Many flows between one site of several workers and branches of two. A flow's packets come through one queue of the TUN and of
/// the socket each, as the kernel hashes them; their peer's owner is another worker most of the time.
fn order_within_flows(workers: usize) {
    let setup = Setup {
        workers,
        ..Setup::default()
    };
    let mut net = Net::empty();
    net.add_site(&setup);
    let branches = 1..=5;
    for branch in branches.clone() {
        net.add_site(&Setup {
            workers: 2,
            ..Setup::default()
        });
        net.introduce(A, branch);
        net.introduce(branch, A);
    }
    net.logging = false;
    let mut rng = Seeded(workers as u64);
    let mut sent: HashMap<usize, Vec<Vec<u8>>> = HashMap::new();
    for round in 0..40 {
        for n in 0..50 {
            let id = round * 100 + n;
            let branch = rng.pick(branches.clone().start().to_owned()..6);
            let flow = rng.pick(1..4) as u16;
            let (from, to) = if rng.pick(0..2) == 0 {
                (A, branch)
            } else {
                (branch, A)
            };
            // Ports differ from peer to peer, so that A's host can tell flows apart.
            let packet = flow_packet(from, to, branch as u16 * 100 + flow, id);
            let queue = packet::hash(flow) % net.sites[from].workers.len();
            net.offer_on(from, queue, &packet);
            sent.entry(to).or_default().push(packet);
        }
        net.run(ms(rng.pick(0..30) as u64));
    }
    net.run(secs(2));
    for (to, packets) in sent {
        assert_eq!(by_flow(net.delivered(to)), by_flow(packets), "to site {to}");
    }
    let handed = net.sites[A].stage(Stage::Handoff);
    assert_eq!(handed > 0, workers > 1, "{handed} packets changed hands");
    for site in &net.sites {
        assert_eq!(site.drops(), []);
    }
    net.finish();
}

#[test]
fn c45_order_within_flows_with_one_worker() {
    order_within_flows(1);
}

#[test]
fn c45_order_within_flows_with_two_workers() {
    order_within_flows(2);
}

#[test]
fn c45_order_within_flows_with_four_workers() {
    order_within_flows(4);
}

/// The same on threads of their own, which take turns as the scheduler likes.
#[test]
fn c45_order_within_flows_on_threads() {
    let setup = Setup {
        workers: 2,
        ring: 512,
        ..Setup::default()
    };
    let mut net = Net::pair_with(&setup);
    net.wire = Box::new(|_| vec![]);
    // A session whose worker is the first one of each site.
    net.wire = crate::common::perfect(ms(1));
    net.connect();
    let packets: Vec<_> = (0..6000)
        .map(|id| flow_packet(A, B, (id % 3) as u16, id))
        .collect();
    // A: flows 0 and 2 enter at the owner, flow 1 at the other worker.
    let mut left = packets.iter();
    on_threads(&mut net, A, packets.len(), |net| {
        let Some(packet) = left.next() else { return false };
        let flow = packet::src_port(packet);
        net.offer_on(A, usize::from(flow == 1), packet);
        true
    });
    let datagrams: Vec<_> = net
        .flying
        .drain(..)
        .map(|(_, d)| d)
        .filter(|d| d.is_data())
        .collect();
    let inner: Vec<_> = datagrams.iter().map(|d| net.reveal(A, d)).collect();
    assert_eq!(by_flow(inner), by_flow(packets.clone()));
    // B: everything arrives at the worker that is not the owner.
    let mut left = datagrams.iter();
    on_threads(&mut net, B, datagrams.len(), |net| {
        let Some(datagram) = left.next() else { return false };
        net.inject_on(B, 1, datagram);
        true
    });
    assert_eq!(net.sites[B].stage(Stage::Handoff), datagrams.len() as u64 + 1);
    assert_eq!(by_flow(net.delivered(B)), by_flow(packets));
    assert_eq!((net.sites[A].drops(), net.sites[B].drops()), (vec![], vec![]));
    net.finish();
}

/// Lets the workers of a site run on threads while `feed` puts packets in, and until `expected` of them came out.
fn on_threads(net: &mut Net, site: usize, expected: usize, mut feed: impl FnMut(&mut Net) -> bool) {
    const IN_FLIGHT: u64 = 256;
    let now = net.now;
    let done = AtomicBool::new(false);
    let out = |net: &Net| net.sites[site].counts.tun_out + net.sites[site].counts.wan_out;
    let (start, end) = (out(net), out(net) + expected as u64);
    let workers = std::mem::take(&mut net.sites[site].workers);
    let workers = std::thread::scope(|scope| {
        let (done, now) = (&done, now);
        let run = move |mut worker: Worker| {
            while !done.load(Ordering::Relaxed) {
                assert!(worker.step(now));
                std::thread::yield_now();
            }
            worker
        };
        let threads: Vec<_> = workers.into_iter().map(|w| scope.spawn(move || run(w))).collect();
        let mut fed = start;
        let began = std::time::Instant::now();
        while out(net) < end && began.elapsed() < secs(60) {
            while fed < out(net) + IN_FLIGHT && feed(net) {
                fed += 1;
            }
            net.slow_turn(site);
            std::thread::yield_now();
        }
        done.store(true, Ordering::Relaxed);
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    net.sites[site].workers = workers;
    assert!(out(net) >= end, "{} of {expected} came out", out(net) - start);
}

#[test]
fn a_full_handoff_ring_is_a_counted_drop() {
    let setup = Setup {
        workers: 2,
        ring: 4096,
        ..Setup::default()
    };
    let mut net = Net::empty();
    net.add_site(&setup);
    net.add_site(&Setup { workers: 1, ..setup });
    net.introduce(A, B);
    net.introduce(B, A);
    net.connect();
    // All into the worker that does not own the peer, while the one that does stands still.
    for id in 0..2500 {
        net.offer_on(A, 1, &packet::between(A, B, id, 100));
    }
    for _ in 0..10 {
        let now = net.now;
        assert!(net.sites[A].workers[1].step(now));
    }
    net.settle();
    let lost = net.sites[A].dropped(DropReason::HandoffFull);
    assert!(lost > 0, "there is room for {HANDOFF_MAX} at most");
    assert_eq!(net.sites[A].drops(), [(DropReason::HandoffFull, lost)]);
    net.run(secs(1));
    let delivered: Vec<_> = net.delivered(B).iter().map(|p| packet::id(p)).collect();
    assert_eq!(delivered.len() as u64, 2500 - lost);
    assert!(delivered.is_sorted(), "what was not lost is in order");
    net.finish();
}

/// A session's index is known to every worker while it lives, and to none afterwards.
#[test]
fn c69_every_worker_forgets_a_removed_peers_index() {
    let setup = Setup {
        workers: 3,
        ..Setup::default()
    };
    let mut net = Net::pair_with(&setup);
    net.connect();
    let inner = packet::between(A, B, 1, 100);
    let from = net.sites[A].addr;
    let to = net.sites[B].addr;
    let mut counter = 100;
    let mut inject_everywhere = |net: &mut Net| {
        for queue in 0..3 {
            counter += 1;
            let datagram = Datagram {
                at: net.now,
                from,
                to,
                tos: 0,
                bytes: net.forge(B, 0, counter, &inner),
            };
            net.inject_on(B, queue, &datagram);
        }
        net.settle();
    };
    inject_everywhere(&mut net);
    assert_eq!(net.delivered(B).len(), 3);
    let handed = net.sites[B].stage(Stage::Handoff);
    net.remove_peer(B, net.peer(B, A));
    net.settle();
    inject_everywhere(&mut net);
    assert_eq!(net.delivered(B).len(), 0);
    assert_eq!(net.sites[B].drops(), [(DropReason::DecapUnknownIndex, 3)]);
    assert_eq!(
        net.sites[B].stage(Stage::Handoff),
        handed,
        "no worker knew where to hand them"
    );
    net.finish();
}

/// Everything at once that a worker has to tell about one burst, with a queue that the slow path has let fill up.
#[test]
fn no_notice_is_lost_when_the_slow_path_is_behind() {
    const PEERS: usize = 64;
    let setup = Setup {
        max_peers: PEERS,
        ring: 4096,
        staged_limit: 4096,
        ..Setup::default()
    };
    let mut net = Net::star(PEERS, &setup);
    // A has answered each peer's handshake, and the packets that confirm the keys do not arrive. Packets wait for that.
    for branch in 1..=PEERS {
        net.want_handshake(branch);
    }
    net.run(ms(40));
    net.flying.clear();
    for branch in 1..=PEERS {
        let waiting = if branch <= 40 { 65 } else { 1 };
        for id in 0..waiting {
            net.offer(A, &packet::between(A, branch, id, 60));
        }
        net.settle();
    }
    // All of them from another address, while the queue has just room enough for one more step.
    net.sites[A].slow_path_asleep = true;
    let mut filling = 0;
    let anybody = net.peer(A, 1);
    while net.sites[A].inbox.has_room() {
        assert!(net.sites[A].inbox.notices.push(Notice::Watch(anybody)).is_ok());
        filling += 1;
    }
    assert!(net.sites[A].inbox.notices.pop().is_some());
    let roamed = "203.0.113.5:5".parse().unwrap();
    for session in 0..PEERS {
        let branch = session + 1;
        assert_eq!(net.sites[A].sessions[session].peer, net.peer(A, branch));
        let datagram = Datagram {
            at: net.now,
            from: roamed,
            to: net.sites[A].addr,
            tos: 0,
            bytes: net.forge(A, session, 0, &packet::between(branch, A, 1, 60)),
        };
        net.inject_on(A, 0, &datagram);
    }
    let before = net.sites[A].noticed;
    net.turn(A);
    net.turn(A);
    net.sites[A].slow_path_asleep = false;
    net.settle();
    let noticed = net.sites[A].noticed;
    assert_eq!(noticed.confirmed - before.confirmed, PEERS as u64);
    assert_eq!(noticed.endpoint - before.endpoint, PEERS as u64);
    assert_eq!(
        noticed.watch - before.watch,
        filling - 1 + PEERS as u64,
        "a timer for each"
    );
    assert_eq!(net.delivered(A).len(), PEERS);
    net.flying.clear();
    net.finish();
}

/// While there is no room for notices a worker takes no packets, and goes on as soon as there is.
#[test]
fn a_worker_waits_for_the_slow_path_rather_than_lose_a_notice() {
    for workers in [1, 64] {
        let setup = Setup {
            workers,
            ..Setup::default()
        };
        let mut net = Net::pair_with(&setup);
        net.connect();
        let peer = net.peer(B, A);
        net.sites[B].slow_path_asleep = true;
        while net.sites[B].inbox.has_room() {
            assert!(net.sites[B].inbox.notices.push(Notice::Watch(peer)).is_ok());
        }
        net.send(A, &packet::between(A, B, 1, 100));
        net.run(ms(100));
        assert_eq!(net.delivered(B).len(), 0);
        net.sites[B].slow_path_asleep = false;
        net.settle();
        assert_eq!(
            net.delivered(B),
            [packet::between(A, B, 1, 100)],
            "{workers} workers"
        );
        net.finish();
    }
}
