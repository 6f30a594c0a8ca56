//! What anybody can send, floods, load, and what the engine costs when there is nothing to do.

use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};
use patronus_netns::{Daemon, Kind, Site, Tunnel, probe};
use patronus_tests::{
    Capture, Flow, Initiations, LIMIT, MessageKind, OUTER, SCHED_BATCH, SCHED_OTHER, engine_options,
    eventually, may_run, on_busy_cores, sites, stats, tcp, uapi_value, worker_policies,
};
use std::collections::BTreeSet;
use std::io::IoSlice;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

fn daemon(site: &Site) -> &Daemon {
    site.daemon
        .as_ref()
        .expect("every site of these tests has a daemon")
}

/// A socket at a's end of the path, on an address of its own.
fn stranger(tunnel: &Tunnel) -> UdpSocket {
    tunnel.a.namespace.address(OUTER, "192.0.2.50/24").unwrap();
    let socket = tunnel.a.namespace.run(|| UdpSocket::bind("192.0.2.50:0"));
    socket.unwrap().unwrap()
}

/// Datagrams of every small length and some large ones, of every type, from a stranger: counted, unanswered, survived.
#[test]
fn c65_c02_r01_r32_datagrams_of_any_size() {
    if !may_run(&[]) {
        return;
    }
    let mut plan = sites(Kind::Engine, Kind::Engine);
    plan.outer_mtu = 65535;
    let tunnel = plan.up().unwrap();
    tunnel.probe(false, LIMIT).unwrap();
    let stranger = stranger(&tunnel);
    let capture = Capture::start(&tunnel.a.namespace).unwrap();
    let received = || stats(daemon(&tunnel.b)).unwrap().sum(".stage.wan-rx.packets");
    let before = received();
    let mut sent = 0;
    let large = [1420, 1500, 1856, 1857, 2048, 4096, 9000, 32768, 65000, 65507];
    let mut datagram = vec![0x5a; 65507];
    for kind in 0..6u32 {
        datagram[..4].copy_from_slice(&kind.to_le_bytes());
        for length in (0..=200).chain(large) {
            stranger.send_to(&datagram[..length], tunnel.b.outer).unwrap();
            sent += 1;
            // Bounded by the socket's buffer, which large datagrams fill.
            if sent % 50 == 0 || length > 9000 {
                assert!(eventually(|| received() >= before + sent), "at {length}");
            }
        }
    }
    assert!(eventually(|| received() >= before + sent));
    let counters = stats(daemon(&tunnel.b)).unwrap();
    assert!(counters.sum(".drop.decap-not-wireguard") >= 4 * 211);
    assert!(counters.sum(".drop.decap-unknown-index") > 0);
    assert_eq!(
        capture.count(|d| d.target.ip() == stranger.local_addr().unwrap().ip()),
        0,
        "somebody was answered"
    );
    tunnel.probe(false, LIMIT).unwrap();
    tunnel.probe(true, LIMIT).unwrap();
}

/// Trains that the kernel hands over as one buffer (UDP_SEGMENT here, UDP_GRO there), of even and of mixed sizes.
#[test]
fn c65_trains_of_datagrams() {
    if !may_run(&[]) {
        return;
    }
    let tunnel = sites(Kind::Engine, Kind::Engine).up().unwrap();
    tunnel.probe(false, LIMIT).unwrap();
    let stranger = stranger(&tunnel);
    let target = SockaddrStorage::from(tunnel.b.outer);
    let received = || stats(daemon(&tunnel.b)).unwrap().sum(".stage.wan-rx.packets");
    let (before, mut sent) = (received(), 0u64);
    for (segment, length) in [
        (1, 60),
        (31, 900),
        (32, 2048),
        (100, 6350),
        (1400, 60_000),
        (1472, 20_000),
    ] {
        let mut train = vec![0xa5u8; length];
        for (i, one) in train.chunks_mut(usize::from(segment)).enumerate() {
            let kind = [i as u8 % 6, 0, 0, 0];
            let part = one.len().min(4);
            one[..part].copy_from_slice(&kind[..part]);
        }
        let cmsg = [ControlMessage::UdpGsoSegments(&segment)];
        let data = [IoSlice::new(&train)];
        sendmsg(
            stranger.as_raw_fd(),
            &data,
            &cmsg,
            MsgFlags::empty(),
            Some(&target),
        )
        .unwrap();
        sent += length.div_ceil(usize::from(segment)) as u64;
        assert!(eventually(|| received() >= before + sent), "{segment} {length}");
    }
    tunnel.probe(false, LIMIT).unwrap();
    tcp(&tunnel.a, &tunnel.b, false, 1_000_000).unwrap();
}

/// Sends initiations from a stranger's address until told to stop, at most some thousand a second.
fn flood(socket: &UdpSocket, target: SocketAddr, key: &str, stop: &AtomicBool, sent: &AtomicU64) {
    let mut initiations = Initiations::to(key);
    while !stop.load(Ordering::Relaxed) {
        for i in 0..50 {
            let _ = socket.send_to(&initiations.next(i % 2 == 0), target);
        }
        sent.fetch_add(50, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Half of the flood with a good mac1. The tunnel that is up goes on, a new one can be made, and strangers without a
/// good mac1 hear nothing.
#[test]
fn c68_c22_c23_flood_of_initiations() {
    if !may_run(&[]) {
        return;
    }
    let tunnel = sites(Kind::Engine, Kind::Engine).up().unwrap();
    tunnel.probe(false, LIMIT).unwrap();
    let key_b = uapi_value(&tunnel.a.interface, "public_key").unwrap();
    let stranger = stranger(&tunnel);
    let rate = || {
        let took = tcp(&tunnel.a, &tunnel.b, false, 15_000_000).unwrap();
        15_000_000.0 / took.as_secs_f64()
    };
    let quiet = rate().max(rate());
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| flood(&stranger, tunnel.b.outer, &key_b, &stop, &sent));
        let flooded = rate().max(rate());
        println!("TCP {:.0} MB/s, flooded {:.0} MB/s", quiet / 1e6, flooded / 1e6);
        // The flood's sender takes its share of the two cores as well.
        assert!(flooded > quiet / 10.0, "{quiet} -> {flooded}");
        // A peer that comes now gets its session: its retry has the cookie.
        let key = &tunnel.a.keys.as_ref().unwrap().public;
        let b = daemon(&tunnel.b);
        b.set(&format!("peer {key} remove")).unwrap();
        b.set(&format!(
            "peer {key} endpoint {} allowed-ips 10.77.0.1/32,fd00:77::1/128",
            tunnel.a.outer
        ))
        .unwrap();
        probe(&tunnel.b, &tunnel.a, false, 100, LIMIT).unwrap();
        stop.store(true, Ordering::Relaxed);
    });
    assert!(sent.load(Ordering::Relaxed) > 1000);
    tunnel.probe(true, LIMIT).unwrap();
}

/// An answer goes to a good mac1 only, and under load it is a cookie.
#[test]
fn c22_c23_answers_to_strangers() {
    if !may_run(&[]) {
        return;
    }
    let tunnel = sites(Kind::Engine, Kind::Engine).up().unwrap();
    let key_b = uapi_value(&tunnel.a.interface, "public_key").unwrap();
    let stranger = stranger(&tunnel);
    let capture = Capture::start(&tunnel.a.namespace).unwrap();
    let mut initiations = Initiations::to(&key_b);
    let received = || stats(daemon(&tunnel.b)).unwrap().sum(".stage.wan-rx.packets");
    let before = received();
    for _ in 0..2000 {
        stranger
            .send_to(&initiations.next(false), tunnel.b.outer)
            .unwrap();
    }
    assert!(eventually(|| received() >= before + 2000));
    let answers = || {
        capture
            .seen()
            .into_iter()
            .filter(|d| d.source == tunnel.b.outer)
            .collect::<Vec<_>>()
    };
    assert_eq!(answers().len(), 0);
    // More at once than an eighth of the queue: load, and so cookies.
    let begun = Instant::now();
    while answers().is_empty() && begun.elapsed() < LIMIT {
        for _ in 0..2000 {
            stranger.send_to(&initiations.next(true), tunnel.b.outer).unwrap();
        }
    }
    let answers = answers();
    assert!(!answers.is_empty());
    assert!(
        answers.iter().all(|d| d.kind() == MessageKind::Cookie),
        "{:?}",
        answers.iter().map(|d| d.kind()).collect::<Vec<_>>()
    );
}

/// An idle tunnel costs less than 1 % of a core; also with the option for low latency, once it is idle again.
#[test]
fn idle_costs_nothing() {
    if !may_run(&[]) {
        return;
    }
    for args in [&[][..], &["--spin", "3000"], &["--workers", "2"]] {
        let mut plan = sites(Kind::Engine, Kind::Engine);
        plan.options_a = engine_options(args);
        let tunnel = plan.up().unwrap();
        tunnel.probe(false, LIMIT).unwrap();
        for _ in 0..20 {
            probe(&tunnel.a, &tunnel.b, true, 100, LIMIT).unwrap();
        }
        std::thread::sleep(Duration::from_millis(100));
        let (a, seconds) = (daemon(&tunnel.a), 2);
        let before = a.cpu_time().unwrap();
        std::thread::sleep(Duration::from_secs(seconds));
        let used = a.cpu_time().unwrap() - before;
        assert!(
            used < Duration::from_secs(seconds) / 100,
            "{args:?}: {used:?} in {seconds} s"
        );
    }
}

/// A worker interrupts nobody, but only as long as it does not have to wait for that (docs/adr/0008).
#[test]
fn workers_interrupt_only_under_contention() {
    if !may_run(&[]) {
        return;
    }
    let tunnel = sites(Kind::Engine, Kind::Engine).up().unwrap();
    tunnel.probe(false, LIMIT).unwrap();
    let policies = || worker_policies(daemon(&tunnel.a).pid());
    assert_eq!(policies(), BTreeSet::from([SCHED_BATCH]));
    // For as long as it takes the worker to notice.
    on_busy_cores(1, || {
        let flow = Flow::start(&tunnel.a, &tunnel.b, false, Duration::from_millis(5)).unwrap();
        let noticed = eventually(|| policies() == BTreeSet::from([SCHED_OTHER]));
        flow.finish();
        assert!(noticed, "{:?}", policies());
    });
}

/// With the option, packets that come within the time find the worker awake.
#[test]
fn spinning_stays_awake_between_packets() {
    if !may_run(&[]) {
        return;
    }
    let sleeps = |args: &[&str]| {
        let mut plan = sites(Kind::Engine, Kind::Engine);
        plan.options_a = engine_options(args);
        let tunnel = plan.up().unwrap();
        tunnel.probe(false, LIMIT).unwrap();
        let count = || stats(daemon(&tunnel.a)).unwrap().sum(".sleeps");
        let before = count();
        for _ in 0..50 {
            probe(&tunnel.a, &tunnel.b, false, 100, LIMIT).unwrap();
        }
        count() - before
    };
    let (blocking, spinning) = (sleeps(&[]), sleeps(&["--spin", "100000"]));
    assert!(blocking >= 50, "{blocking}");
    assert!(spinning < blocking / 2, "{spinning} of {blocking}");
}

/// Every option that changes how packets are worked on, with traffic through it.
#[test]
fn options_carry_traffic() {
    if !may_run(&[]) {
        return;
    }
    for args in [
        &["--aead", "rustcrypto"][..],
        &["--cores", "0,1", "--workers", "2"],
        &["--cores", "0"],
        &["--spin", "1000", "--no-offload"],
    ] {
        let mut plan = sites(Kind::Engine, Kind::Engine);
        plan.options_a = engine_options(args);
        let tunnel = plan.up().unwrap();
        tcp(&tunnel.a, &tunnel.b, false, 1_000_000).unwrap();
        tcp(&tunnel.b, &tunnel.a, true, 1_000_000).unwrap();
    }
}
