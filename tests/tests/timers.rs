//! When the engine speaks although nobody told it to, and when it keeps silent. Times are the protocol's divided.

use patronus_netns::{Site, Tunnel, preshared_key};
use patronus_tests::{Capture, Datagram, LIMIT, MessageKind, divided, engine_options, eventually, may_run};
use std::net::UdpSocket;
use std::time::{Duration, Instant};

fn bind(site: &Site, port: u16) -> UdpSocket {
    let bound = site.namespace.run(|| UdpSocket::bind((site.inner(false), port)));
    bound.unwrap().unwrap()
}

fn kind(wanted: MessageKind) -> impl Fn(&Datagram) -> bool {
    move |datagram| datagram.kind() == wanted
}

/// Drops what reaches the sites' UDP port at b.
fn blackhole(tunnel: &Tunnel) {
    let rules = "table inet hole {\n chain in {\n type filter hook input priority 0;\n \
        iifname path udp dport 51820 drop\n }\n}\n";
    tunnel
        .b
        .namespace
        .exec_with_input("nft", &["-f", "-"], rules.as_bytes())
        .unwrap();
}

/// Two peers with nothing to say are silent: not a packet in 150 seconds of the protocol's time.
#[test]
fn c49_r13_idle_peers_are_silent() {
    if !may_run(&[]) {
        return;
    }
    let tunnel = divided(50).up().unwrap();
    tunnel.probe(false, LIMIT).unwrap();
    // The keepalives that the last data packets are owed, after 10 s / 50.
    std::thread::sleep(Duration::from_millis(800));
    let capture = Capture::start(&tunnel.a.namespace).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    let seen = capture.seen();
    let ours: Vec<_> = seen.iter().filter(|d| d.source.port() == 51820).collect();
    assert!(ours.is_empty(), "{ours:?}");
}

/// 15 s after the first packet without an answer there is a new handshake; more packets meanwhile do not put it off.
#[test]
fn c47_r28_r34_new_handshake_when_the_peer_is_silent() {
    if !may_run(&[]) {
        return;
    }
    let tunnel = divided(10).up().unwrap();
    tunnel.probe(false, LIMIT).unwrap();
    blackhole(&tunnel);
    let capture = Capture::start(&tunnel.a.namespace).unwrap();
    let near = bind(&tunnel.a, 0);
    let start = Instant::now();
    let initiations = || capture.count(kind(MessageKind::Initiation));
    while initiations() == 0 && start.elapsed() < LIMIT {
        near.send_to(b"hello?", (tunnel.b.inner(false), 7000)).unwrap();
        std::thread::sleep(Duration::from_millis(100));
    }
    let waited = start.elapsed();
    assert!(waited > Duration::from_millis(1400), "{waited:?}: too early");
    assert!(waited < Duration::from_millis(4000), "{waited:?}: put off");
}

/// Data that is not answered by data is answered by one empty packet after 10 s; further data by another.
#[test]
fn c48_passive_keepalive() {
    if !may_run(&[]) {
        return;
    }
    let tunnel = divided(20).up().unwrap();
    tunnel.probe(false, LIMIT).unwrap();
    std::thread::sleep(Duration::from_millis(1200));
    let near = bind(&tunnel.a, 0);
    let _far = bind(&tunnel.b, 7000);
    let capture = Capture::start(&tunnel.a.namespace).unwrap();
    let keepalives = || capture.count(|d| d.kind() == MessageKind::Keepalive && d.source == tunnel.b.outer);
    for round in 1..=2 {
        near.send_to(b"listen", (tunnel.b.inner(false), 7000)).unwrap();
        assert!(eventually(|| keepalives() == round));
        let seen = capture.seen();
        let data = seen.iter().rfind(|d| d.kind() == MessageKind::Data).unwrap();
        let answer = seen.iter().rfind(|d| d.kind() == MessageKind::Keepalive).unwrap();
        let after = answer.at - data.at;
        assert!(after > Duration::from_millis(400), "{after:?}");
    }
    std::thread::sleep(Duration::from_millis(1200));
    assert_eq!(keepalives(), 2, "one packet was answered twice");
}

/// Persistent keepalives begin when the interface comes up, keep their interval, and are put off by traffic.
#[test]
fn c55_r15_persistent_keepalive() {
    if !may_run(&[]) {
        return;
    }
    // The interval of persistent keepalives is nobody's but the user's: not divided.
    let mut plan = divided(10);
    plan.keepalive_a = Some(1);
    let tunnel = plan.up().unwrap();
    let capture = Capture::start(&tunnel.b.namespace).unwrap();
    let keepalives = || capture.count(|d| d.kind() == MessageKind::Keepalive && d.source == tunnel.a.outer);
    assert!(eventually(|| keepalives() >= 1));
    capture.clear();
    std::thread::sleep(Duration::from_millis(4300));
    let idle = keepalives();
    assert!((3..=5).contains(&idle), "{idle} in 4.3 s");
    capture.clear();
    let near = bind(&tunnel.a, 0);
    let _far = bind(&tunnel.b, 7000);
    for _ in 0..12 {
        near.send_to(b"busy", (tunnel.b.inner(false), 7000)).unwrap();
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(keepalives(), 0);
}

/// A changed pre-shared key leaves the session alone and is used by the next handshake.
#[test]
fn c19_r16_psk_change_waits_for_the_next_handshake() {
    if !may_run(&[]) {
        return;
    }
    let mut plan = divided(60);
    plan.psk = true;
    let tunnel = plan.up().unwrap();
    tunnel.probe(false, LIMIT).unwrap();
    let capture = Capture::start(&tunnel.a.namespace).unwrap();
    let psk = preshared_key().unwrap();
    let set = |site: &Site, peer: &Site| {
        let interface = &site.interface;
        let key = &peer.keys.as_ref().unwrap().public;
        let words = ["set", interface, "peer", key, "preshared-key", "/dev/stdin"];
        site.namespace
            .exec_with_input("wg", &words, psk.as_bytes())
            .unwrap();
    };
    set(&tunnel.a, &tunnel.b);
    tunnel.probe(false, LIMIT).unwrap();
    assert_eq!(
        capture.count(kind(MessageKind::Initiation)),
        0,
        "the session was torn"
    );
    // One side has it, the other not: once the session is over (180 s / 60), nothing goes.
    std::thread::sleep(Duration::from_millis(3300));
    assert!(tunnel.probe(false, Duration::from_millis(700)).is_err());
    set(&tunnel.b, &tunnel.a);
    tunnel.probe(false, LIMIT).unwrap();
}

/// Both sides with persistent keepalive, through several lives of a session: one of them initiates at a time.
#[test]
fn c58_persistent_peers_do_not_fight() {
    if !may_run(&[]) {
        return;
    }
    let mut plan = divided(60);
    (plan.keepalive_a, plan.keepalive_b) = (Some(1), Some(1));
    let tunnel = plan.up().unwrap();
    let capture = Capture::start(&tunnel.a.namespace).unwrap();
    std::thread::sleep(Duration::from_secs(8));
    let initiations = capture.count(kind(MessageKind::Initiation));
    let responses = capture.count(kind(MessageKind::Response));
    // A session is renewed after 2 s at the earliest and lives for 3.
    assert!((2..=7).contains(&initiations), "{initiations} initiations in 8 s");
    assert!(responses + 2 >= initiations, "{responses} responses");
}

/// An interface that is down sends and answers nothing; one that comes up calls those with persistent keepalive.
#[test]
fn c70_r43_r52_interface_down_and_up() {
    if !may_run(&[]) {
        return;
    }
    let mut plan = divided(20);
    plan.keepalive_a = Some(10);
    let tunnel = plan.up().unwrap();
    tunnel.probe(false, LIMIT).unwrap();
    let set = |site: &Site, state: &str| {
        let interface = &site.interface;
        site.namespace
            .ip(&format!("link set {interface} {state}"))
            .unwrap();
    };
    set(&tunnel.a, "down");
    let capture = Capture::start(&tunnel.a.namespace).unwrap();
    let calls_of_b = || capture.count(|d| d.kind() == MessageKind::Initiation && d.source == tunnel.b.outer);
    let near = bind(&tunnel.b, 0);
    assert!(eventually(|| {
        near.send_to(b"anybody?", (tunnel.a.inner(false), 7000)).unwrap();
        calls_of_b() >= 2
    }));
    assert_eq!(capture.count(|d| d.source == tunnel.a.outer), 0, "it is down");
    let up = Instant::now();
    set(&tunnel.a, "up");
    let own_call = |d: &Datagram| d.kind() == MessageKind::Initiation && d.source == tunnel.a.outer;
    assert!(eventually(|| capture.count(own_call) >= 1), "no call");
    let after = up.elapsed();
    assert!(
        after < Duration::from_secs(4),
        "{after:?}: not at once, but when it was due"
    );
    tunnel.probe(false, LIMIT).unwrap();
}

/// Options of the test hook that would lengthen times are refused.
#[test]
fn the_test_hook_cannot_lengthen() {
    if !may_run(&[]) {
        return;
    }
    let program = engine_options(&[]).program.unwrap();
    for bad in ["0", "-1", "0.5", "1001"] {
        let output = std::process::Command::new(&program)
            .args(["--foreground", "--test-timer-divisor", bad, "pnx"])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{bad}");
    }
}
