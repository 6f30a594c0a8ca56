//! What happens to packets: sizes on the wire, whose addresses are let through, errors, queues, DSCP and ECN, order.

use nix::sys::socket::{setsockopt, sockopt};
use patronus_netns::{Daemon, Kind, Namespace, Site, Tunnel, probe};
use patronus_tests::{
    Capture, Flow, LIMIT, MessageKind, Star, divided, engine_options, eventually, may_run, ping, sites,
    stats, tcp,
};
use std::net::UdpSocket;
use std::time::Duration;

fn daemon(site: &Site) -> &Daemon {
    site.daemon
        .as_ref()
        .expect("every site of these tests has a daemon")
}

fn tunnel() -> Tunnel {
    sites(Kind::Engine, Kind::Engine).up().unwrap()
}

/// Ten pings and a handshake, counted as Linux counts them: the whole UDP payload, handshake messages included.
#[test]
fn c34_c81_byte_counts_are_the_kernels() {
    if !may_run(&[]) {
        return;
    }
    let tunnel = tunnel();
    let said = ping(&tunnel.a.namespace, "-c 10 -i 0.02 -W 5 10.77.0.2").unwrap();
    assert!(said.contains("10 received"), "{said}");
    let counts = |site: &Site| {
        let peer = &daemon(site).peers().unwrap()[0];
        (peer.rx_bytes, peer.tx_bytes)
    };
    // 10 * (16 + 96 + 16), and 148 sent or 92 received; 32 more if a keepalive confirmed the session.
    let (received, sent) = counts(&tunnel.a);
    assert!(
        received == 1372 && (sent == 1428 || sent == 1460),
        "{received} {sent}"
    );
    assert_eq!(counts(&tunnel.b), (sent, received));
}

/// Padded to 16, but not beyond the MTU.
#[test]
fn c34_padding_on_the_wire() {
    if !may_run(&[]) {
        return;
    }
    let mut plan = sites(Kind::Engine, Kind::Engine);
    plan.mtu = 1299;
    let tunnel = plan.up().unwrap();
    tunnel.probe(false, LIMIT).unwrap();
    for (size, padded) in [
        (0, 32),
        (4, 32),
        (5, 48),
        (1260, 1296),
        (1268, 1296),
        (1269, 1299),
        (1271, 1299),
    ] {
        let capture = Capture::start(&tunnel.b.namespace).unwrap();
        probe(&tunnel.a, &tunnel.b, false, size, LIMIT).unwrap();
        let of_data = |d: &patronus_tests::Datagram| {
            d.source == tunnel.a.outer && d.kind() == MessageKind::Data && d.payload.len() == 32 + padded
        };
        assert!(
            eventually(|| capture.count(of_data) > 0),
            "{size}: {:?}",
            capture.seen().iter().map(|d| d.payload.len()).collect::<Vec<_>>()
        );
    }
}

/// A peer may not use an address that a more specific prefix gives to another one, and may use the rest of its own.
#[test]
fn c37_r02_more_specific_prefix_of_another_peer() {
    if !may_run(&[]) {
        return;
    }
    let plan = [
        (Kind::Engine, &["10.200.0.0/16"][..]),
        (Kind::Engine, &["10.200.5.0/24"][..]),
    ];
    let star = Star::up(&plan, &[]).unwrap();
    let [wide, narrow] = &star.spokes[..] else {
        unreachable!("two spokes were planned")
    };
    let hub = daemon(&star.hub);
    let refused = || stats(hub).unwrap().sum(".drop.decap-source-not-allowed");
    let from = |spoke: &Site, address: &str| {
        let interface = &spoke.interface;
        spoke
            .namespace
            .address(interface, &format!("{address}/32"))
            .unwrap();
        let said = ping(
            &spoke.namespace,
            &format!("-c 2 -i 0.05 -W 1 -I {address} 10.88.0.254"),
        );
        said.unwrap()
    };
    probe(wide, &star.hub, false, 10, LIMIT).unwrap();
    probe(narrow, &star.hub, false, 10, LIMIT).unwrap();
    assert_eq!(refused(), 0);
    assert!(
        from(wide, "10.200.4.1").contains(" 2 received"),
        "its own network"
    );
    assert!(from(narrow, "10.200.5.1").contains(" 2 received"));
    assert_eq!(refused(), 0);
    assert!(from(wide, "10.200.5.2").contains(" 0 received"), "the other's");
    assert_eq!(refused(), 2);
    assert!(
        from(narrow, "10.200.4.2").contains(" 0 received"),
        "less specific"
    );
    assert_eq!(refused(), 4);
}

#[test]
fn c38_unreachable_is_told_by_icmp() {
    if !may_run(&[]) {
        return;
    }
    let tunnel = tunnel();
    let (a, interface) = (&tunnel.a.namespace, &tunnel.a.interface);
    a.ip(&format!("route add 10.99.0.0/16 dev {interface}")).unwrap();
    a.ip(&format!("-6 route add fd99::/16 dev {interface}")).unwrap();
    let said = ping(a, "-c 1 -W 2 10.99.0.1").unwrap();
    assert!(said.contains("Destination Host Unreachable"), "{said}");
    let said = ping(a, "-c 1 -W 2 fd99::1").unwrap();
    assert!(said.contains("Address unreachable"), "{said}");
    // A peer that nobody knows where to find.
    let key = patronus_netns::Keys::generate().unwrap().public;
    daemon(&tunnel.a)
        .set(&format!("peer {key} allowed-ips 10.99.1.0/24"))
        .unwrap();
    let said = ping(a, "-c 1 -W 2 10.99.1.1").unwrap();
    assert!(said.contains("Destination Host Unreachable"), "{said}");
    let stats = stats(daemon(&tunnel.a)).unwrap();
    assert_eq!(stats.sum(".drop.encap-no-endpoint"), 1);
    assert!(stats.sum(".drop.encap-no-peer") >= 2);
    assert_eq!(stats.sum(".icmp-sent"), 3);
}

/// One address moves between two peers fifty times while datagrams flow to it: each arrives at one of them.
#[test]
fn c39_moving_an_allowed_ip_under_traffic() {
    if !may_run(&[]) {
        return;
    }
    let star = Star::up(&[(Kind::Engine, &["10.200.0.1/32"]), (Kind::Engine, &[])], &[]).unwrap();
    for spoke in &star.spokes {
        spoke
            .namespace
            .address(&spoke.interface, "10.200.0.1/32")
            .unwrap();
        probe(&star.hub, spoke, false, 10, LIMIT).unwrap();
    }
    let shared = "10.200.0.1".parse().unwrap();
    let to: Vec<(&Namespace, _)> = star.spokes.iter().map(|s| (&s.namespace, shared)).collect();
    let from = (&star.hub.namespace, star.hub.inner(false));
    let flow = Flow::between(from, &to, Duration::from_micros(500)).unwrap();
    let hub = daemon(&star.hub);
    for round in 0..50 {
        let spoke = &star.spokes[(round + 1) % 2];
        let key = &spoke.keys.as_ref().unwrap().public;
        let (v4, v6) = (spoke.inner_v4, spoke.inner_v6);
        hub.set(&format!("peer {key} allowed-ips {v4}/32,{v6}/128,10.200.0.1/32"))
            .unwrap();
    }
    let received = flow.finish();
    assert_eq!(received.lost(), 0, "it belonged to neither");
    assert!(!received.duplicated(), "it belonged to both");
    assert!(received.numbers.iter().all(|numbers| numbers.len() > 10));
}

/// 200 packets for a peer that does not answer yet: the newest 128 arrive, in order, once it does.
#[test]
fn c40_packets_wait_for_the_session() {
    if !may_run(&[]) {
        return;
    }
    let tunnel = divided(20).up().unwrap();
    let interface = &tunnel.b.interface;
    tunnel
        .b
        .namespace
        .ip(&format!("link set {interface} down"))
        .unwrap();
    let near = bind(&tunnel.a, 0);
    let far_port = 7000;
    for number in 0..200u8 {
        near.send_to(&[number], (tunnel.b.inner(false), far_port))
            .unwrap();
    }
    let evicted = || stats(daemon(&tunnel.a)).unwrap().sum(".drop.staged-overflow");
    assert!(eventually(|| evicted() == 72), "{}", evicted());
    tunnel
        .b
        .namespace
        .ip(&format!("link set {interface} up"))
        .unwrap();
    let far = bind(&tunnel.b, far_port);
    far.set_read_timeout(Some(LIMIT)).unwrap();
    let mut buffer = [0; 10];
    for number in 72..200u8 {
        assert_eq!(far.recv(&mut buffer).unwrap(), 1);
        assert_eq!(buffer[0], number);
    }
}

/// With nobody there the handshake is given up after its attempts (90 s / 40), and what waited is dropped; a new packet begins anew.
#[test]
fn c40_c51_handshake_is_given_up_and_begun_anew() {
    if !may_run(&[]) {
        return;
    }
    let tunnel = divided(40).up().unwrap();
    tunnel
        .b
        .namespace
        .ip(&format!("link set {} down", tunnel.b.interface))
        .unwrap();
    let capture = Capture::start(&tunnel.a.namespace).unwrap();
    let near = bind(&tunnel.a, 0);
    let target = (tunnel.b.inner(false), 7000);
    for _ in 0..5 {
        near.send_to(b"x", target).unwrap();
    }
    let purged = || stats(daemon(&tunnel.a)).unwrap().sum(".drop.staged-purged");
    assert!(eventually(|| purged() == 5), "{}", purged());
    let initiations = || capture.count(|d| d.kind() == MessageKind::Initiation);
    let first = initiations();
    assert!((15..=21).contains(&first), "{first} initiations");
    // Retries are no closer together than 5 s / 40.
    let sent: Vec<_> = capture
        .seen()
        .into_iter()
        .filter(|d| d.kind() == MessageKind::Initiation)
        .collect();
    for pair in sent.windows(2) {
        let apart = pair[1].at - pair[0].at;
        assert!(apart > Duration::from_millis(90), "{apart:?}");
    }
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(initiations(), first, "it was not given up");
    near.send_to(b"x", target).unwrap();
    assert!(eventually(|| initiations() > first), "it did not begin anew");
}

fn bind(site: &Site, port: u16) -> UdpSocket {
    let bound = site.namespace.run(|| UdpSocket::bind((site.inner(false), port)));
    bound.unwrap().unwrap()
}

/// Outer DSCP: AF41 (0x88) for handshakes, 0 for data whatever is inside. Outer ECN: the inner one's. DF clear.
#[test]
fn c42_c43_outer_tos_and_df_v4() {
    if may_run(&[]) {
        outer_tos(false);
    }
}

#[test]
fn c42_outer_traffic_class_v6() {
    if may_run(&[]) {
        outer_tos(true);
    }
}

fn outer_tos(v6_outer: bool) {
    let mut plan = sites(Kind::Engine, Kind::Engine);
    plan.v6_outer = v6_outer;
    let tunnel = plan.up().unwrap();
    let capture = Capture::start(&tunnel.b.namespace).unwrap();
    tunnel.probe(false, LIMIT).unwrap();
    let is_ours = |d: &patronus_tests::Datagram| d.source == tunnel.a.outer || d.source == tunnel.b.outer;
    let outer = || capture.seen().into_iter().filter(is_ours).collect::<Vec<_>>();
    let handshakes: Vec<_> = outer()
        .into_iter()
        .filter(|d| matches!(d.kind(), MessageKind::Initiation | MessageKind::Response))
        .collect();
    assert!(handshakes.len() >= 2);
    assert!(handshakes.iter().all(|d| d.tos == 0x88), "{handshakes:?}");

    let near = bind(&tunnel.a, 0);
    let far = bind(&tunnel.b, 7000);
    far.set_read_timeout(Some(LIMIT)).unwrap();
    // Expedited forwarding with each value of ECN that a sender may set.
    for tos in [0xb8u8, 0xba, 0xb9, 0x02] {
        capture.clear();
        setsockopt(&near, sockopt::Ipv4Tos, &i32::from(tos)).unwrap();
        near.send_to(b"marked", (tunnel.b.inner(false), 7000)).unwrap();
        far.recv(&mut [0; 10]).unwrap();
        let data = |d: &patronus_tests::Datagram| d.kind() == MessageKind::Data && is_ours(d);
        assert!(eventually(|| capture.count(data) > 0));
        let data: Vec<_> = outer().into_iter().filter(data).collect();
        assert!(data.iter().all(|d| d.tos == tos & 3), "{tos:#x}: {data:?}");
        assert!(data.iter().all(|d| !d.dont_fragment));
        let inner = capture.seen().into_iter().find(|d| d.target.port() == 7000);
        assert_eq!(inner.unwrap().tos, tos, "the inner packet changed");
    }
}

/// A router on the way marks congestion: passed on to a packet that can carry the mark, a drop to one that cannot.
#[test]
fn c42_congestion_marks_come_through() {
    if !may_run(&[]) {
        return;
    }
    let tunnel = tunnel();
    tunnel.probe(false, LIMIT).unwrap();
    let rules = "table ip congested {\n chain in {\n type filter hook prerouting priority mangle;\n \
        iifname path udp dport 51820 ip ecn set ce\n }\n}\n";
    tunnel
        .b
        .namespace
        .exec_with_input("nft", &["-f", "-"], rules.as_bytes())
        .unwrap();
    let near = bind(&tunnel.a, 0);
    let far = bind(&tunnel.b, 7000);
    far.set_read_timeout(Some(LIMIT)).unwrap();
    let capture = Capture::start(&tunnel.b.namespace).unwrap();
    near.send_to(b"not capable", (tunnel.b.inner(false), 7000))
        .unwrap();
    let dropped = || {
        stats(daemon(&tunnel.b))
            .unwrap()
            .sum(".drop.decap-congestion-not-ect")
    };
    assert!(eventually(|| dropped() == 1));
    setsockopt(&near, sockopt::Ipv4Tos, &2).unwrap();
    near.send_to(b"capable", (tunnel.b.inner(false), 7000)).unwrap();
    let mut buffer = [0; 20];
    let length = far.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"capable");
    let inner = |d: &patronus_tests::Datagram| d.target.port() == 7000 && d.tos == 3;
    assert!(eventually(|| capture.count(inner) == 1));
}

/// TCP and fragments, with and without the ports' offloads, and with one side of each.
#[test]
fn c46_bytes_are_the_same_with_and_without_offload() {
    if !may_run(&[]) {
        return;
    }
    let plain = engine_options(&["--no-offload"]);
    for (without_a, without_b) in [(true, true), (true, false), (false, false)] {
        let mut plan = sites(Kind::Engine, Kind::Engine);
        if without_a {
            plan.options_a = plain.clone();
        }
        if without_b {
            plan.options_b = plain.clone();
        }
        let tunnel = plan.up().unwrap();
        for v6 in [false, true] {
            let t = tcp(&tunnel.a, &tunnel.b, v6, 8_000_000).unwrap();
            let u = tcp(&tunnel.b, &tunnel.a, v6, 8_000_000).unwrap();
            eprintln!(
                "{without_a} {without_b} {v6} {t:?} {u:?} {:?}\n{:?}",
                stats(daemon(&tunnel.a)).unwrap().drops(),
                stats(daemon(&tunnel.b)).unwrap().drops()
            );
        }
    }
}

/// Datagrams longer than the MTU cross as inner fragments; so do they with the outer packets in fragments.
#[test]
fn c66_fragments_inside_and_outside() {
    if !may_run(&[]) {
        return;
    }
    let tunnel = tunnel();
    for v6 in [false, true] {
        for size in [1500, 5000, 30_000] {
            probe(&tunnel.a, &tunnel.b, v6, size, LIMIT).unwrap();
        }
    }
    let mut plan = sites(Kind::Engine, Kind::Engine);
    plan.outer_mtu = 1280;
    let tunnel = plan.up().unwrap();
    probe(&tunnel.a, &tunnel.b, false, 1392, LIMIT).unwrap();
    probe(&tunnel.b, &tunnel.a, true, 1300, LIMIT).unwrap();
}

/// A steady flow in both directions under the load of others keeps its order.
#[test]
fn c45_order_is_kept_under_load() {
    if !may_run(&[]) {
        return;
    }
    let tunnel = tunnel();
    tunnel.probe(false, LIMIT).unwrap();
    let every = Duration::from_micros(300);
    let there = Flow::start(&tunnel.a, &tunnel.b, false, every).unwrap();
    let back = Flow::start(&tunnel.b, &tunnel.a, true, every).unwrap();
    tcp(&tunnel.a, &tunnel.b, false, 20_000_000).unwrap();
    tcp(&tunnel.b, &tunnel.a, false, 20_000_000).unwrap();
    for flow in [there, back] {
        let received = flow.finish();
        assert!(received.in_order() && !received.duplicated());
    }
}

/// Two workers: peers of both, each with TCP both ways, and the packets that one worker takes in for the other.
#[test]
fn c45_two_workers_carry_tcp_both_ways() {
    if !may_run(&[]) {
        return;
    }
    let star = Star::up(&[(Kind::Engine, &[]), (Kind::Engine, &[])], &["--workers", "2"]).unwrap();
    for (i, spoke) in star.spokes.iter().enumerate() {
        let v6 = i == 1;
        probe(spoke, &star.hub, v6, 100, LIMIT).unwrap();
        tcp(spoke, &star.hub, v6, 8_000_000).unwrap();
        tcp(&star.hub, spoke, v6, 8_000_000).unwrap();
    }
    tcp(&star.spokes[0], &star.spokes[1], false, 8_000_000).unwrap();
    tcp(&star.spokes[1], &star.spokes[0], true, 8_000_000).unwrap();
    let [first, second] = &star.spokes[..] else {
        unreachable!("two spokes were planned")
    };
    let every = Duration::from_micros(500);
    let flow = Flow::start(first, second, false, every).unwrap();
    let received = flow.run_for(Duration::from_secs(1));
    assert_eq!(received.lost(), 0);
    assert!(received.in_order());
}
