//! The outer side: which address answers, what moves an endpoint, UDP ports, marks, and loops of routes.

use patronus_netns::{Daemon, Kind, Site, probe};
use patronus_tests::{
    Capture, Datagram, Flow, LIMIT, MessageKind, OUTER, endpoint_of, eventually, may_run, sites, stats,
};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

fn daemon(site: &Site) -> &Daemon {
    site.daemon
        .as_ref()
        .expect("every site of these tests has a daemon")
}

fn set_endpoint(site: &Site, peer: &Site, endpoint: SocketAddr) {
    let key = &peer.keys.as_ref().unwrap().public;
    daemon(site)
        .set(&format!("peer {key} endpoint {endpoint}"))
        .unwrap();
}

/// Answers leave from the address that was called; when that address goes, from another one, and the peer follows.
fn sticky_source(v6: bool) {
    let mut plan = sites(Kind::Engine, Kind::Engine);
    plan.v6_outer = v6;
    let tunnel = plan.up().unwrap();
    let (called, length) = match v6 {
        false => ("192.0.2.99", 24),
        true => ("2001:db8::99", 64),
    };
    let b = &tunnel.b.namespace;
    b.address(OUTER, &format!("{called}/{length}")).unwrap();
    let called: SocketAddr = (called.parse::<IpAddr>().unwrap(), 51820).into();
    set_endpoint(&tunnel.a, &tunnel.b, called);

    let capture = Capture::start(&tunnel.a.namespace).unwrap();
    tunnel.probe(false, LIMIT).unwrap();
    probe(&tunnel.b, &tunnel.a, true, 100, LIMIT).unwrap();
    let from_b = |d: &Datagram| d.target == tunnel.a.outer;
    assert!(capture.count(from_b) >= 2);
    assert_eq!(
        capture.count(|d| from_b(d) && d.source != called),
        0,
        "answered from another address"
    );

    b.ip(&format!("address del {}/{length} dev {OUTER}", called.ip()))
        .unwrap();
    capture.clear();
    // Not too sticky: b goes on from the address that is left, and a follows it.
    probe(&tunnel.b, &tunnel.a, false, 100, LIMIT).unwrap();
    let other = |d: &Datagram| from_b(d) && d.source == tunnel.b.outer;
    assert!(eventually(|| capture.count(other) > 0));
    assert_eq!(endpoint_of(daemon(&tunnel.a)), Some(tunnel.b.outer));
    assert_eq!(capture.count(|d| d.kind() == MessageKind::Initiation), 0);
}

/// Initiations leave from the address that the peer knows as well.
#[test]
fn c60_an_initiation_leaves_from_the_address_that_was_called() {
    if !may_run(&[]) {
        return;
    }
    let mut plan = sites(Kind::Engine, Kind::Engine);
    plan.options_a = patronus_tests::engine_options(&["--test-timer-divisor", "60"]);
    plan.options_b = plan.options_a.clone();
    let tunnel = plan.up().unwrap();
    let called: SocketAddr = "192.0.2.99:51820".parse().unwrap();
    let b = &tunnel.b.namespace;
    b.address(OUTER, "192.0.2.99/24").unwrap();
    set_endpoint(&tunnel.a, &tunnel.b, called);
    tunnel.probe(false, LIMIT).unwrap();
    // The session is a's; once it is too old, what b has to send makes b the initiator.
    std::thread::sleep(Duration::from_secs(180) / 60 + Duration::from_millis(200));
    let capture = Capture::start(&tunnel.a.namespace).unwrap();
    probe(&tunnel.b, &tunnel.a, false, 100, LIMIT).unwrap();
    let initiation = |d: &Datagram| d.target == tunnel.a.outer && d.kind() == MessageKind::Initiation;
    assert!(capture.count(initiation) > 0);
    assert_eq!(capture.count(|d| initiation(d) && d.source != called), 0);
}

#[test]
fn c60_r45_sticky_source_v4() {
    if may_run(&[]) {
        sticky_source(false);
    }
}

#[test]
fn c60_r45_sticky_source_v6() {
    if may_run(&[]) {
        sticky_source(true);
    }
}

/// When the route to the peer moves to another link, the source address moves too, although the old one is still there.
#[test]
fn c60_source_follows_a_changed_route() {
    if !may_run(&[]) {
        return;
    }
    let tunnel = sites(Kind::Engine, Kind::Engine).up().unwrap();
    let (a, b) = (&tunnel.a.namespace, &tunnel.b.namespace);
    a.veth("second", b, "second", 1500).unwrap();
    a.address("second", "203.0.113.1/24").unwrap();
    b.address("second", "203.0.113.2/24").unwrap();
    for namespace in [a, b] {
        for interface in [OUTER, "second", "all"] {
            namespace
                .sysctl(&format!("net.ipv4.conf.{interface}.rp_filter"), "0")
                .unwrap();
        }
    }
    tunnel.probe(false, LIMIT).unwrap();
    let capture = Capture::start(b).unwrap();
    a.ip("route add 192.0.2.2/32 dev second via 203.0.113.2 src 203.0.113.1")
        .unwrap();
    let moved: SocketAddr = "203.0.113.1:51820".parse().unwrap();
    let follows = || {
        let _ = probe(&tunnel.a, &tunnel.b, false, 100, Duration::from_millis(200));
        capture.count(|d| d.source == moved) > 0 && endpoint_of(daemon(&tunnel.b)) == Some(moved)
    };
    assert!(eventually(follows), "{:?}", endpoint_of(daemon(&tunnel.b)));
    tunnel.probe(false, LIMIT).unwrap();
}

/// Neither a replayed data packet nor a replayed initiation, nor garbage, nor somebody else's cookie moves the endpoint.
#[test]
fn c61_c59_r11_replays_from_elsewhere_move_nothing() {
    if !may_run(&[]) {
        return;
    }
    let tunnel = sites(Kind::Engine, Kind::Engine).up().unwrap();
    let capture = Capture::start(&tunnel.b.namespace).unwrap();
    tunnel.probe(false, LIMIT).unwrap();
    tunnel.a.namespace.address(OUTER, "192.0.2.66/24").unwrap();
    let thief = tunnel.a.namespace.run(|| UdpSocket::bind("192.0.2.66:6666"));
    let thief = thief.unwrap().unwrap();
    let captured = capture.seen();
    let from_a = captured.iter().filter(|d| d.source == tunnel.a.outer);
    let messages: Vec<&Datagram> = from_a.filter(|d| d.kind() != MessageKind::Other).collect();
    let data = messages.iter().filter(|d| d.kind() == MessageKind::Data).count();
    assert!(data >= 1 && messages.len() > data);
    capture.clear();
    for message in &messages {
        thief.send_to(&message.payload, tunnel.b.outer).unwrap();
    }
    let mut cookie = [7; 64];
    cookie[..4].copy_from_slice(&3u32.to_le_bytes());
    thief.send_to(&cookie, tunnel.b.outer).unwrap();
    let replays = || stats(daemon(&tunnel.b)).unwrap().sum(".drop.decap-replay");
    assert!(eventually(|| replays() as usize >= data), "{}", replays());
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(endpoint_of(daemon(&tunnel.b)), Some(tunnel.a.outer));
    assert_eq!(
        capture.count(|d| d.target.port() == 6666),
        0,
        "the thief was answered"
    );
    tunnel.probe(false, LIMIT).unwrap();
}

/// The UDP ports that the sockets of a namespace are bound to, of one table in /proc/net.
fn bound(site: &Site, table: &str) -> Vec<u16> {
    let text = site
        .namespace
        .run(|| std::fs::read_to_string(format!("/proc/thread-self/net/{table}")))
        .unwrap()
        .unwrap();
    let local = text
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().nth(1));
    let port = |address: &str| u16::from_str_radix(address.rsplit(':').next()?, 16).ok();
    local.filter_map(port).collect()
}

#[test]
fn c63_one_port_for_both_versions() {
    if !may_run(&[]) {
        return;
    }
    let tunnel = sites(Kind::Engine, Kind::Engine).up().unwrap();
    assert_eq!(bound(&tunnel.b, "udp"), [51820]);
    assert_eq!(bound(&tunnel.b, "udp6"), [51820]);
    let b = daemon(&tunnel.b);
    // 0 chooses one, the same for both, and shows it.
    b.set("listen-port 0").unwrap();
    let chosen = || {
        let shown = tunnel
            .b
            .namespace
            .exec("wg", &["show", b.interface(), "listen-port"]);
        shown.unwrap().trim().parse::<u16>().unwrap()
    };
    assert!(eventually(|| ![0, 51820].contains(&chosen())));
    assert!(eventually(|| bound(&tunnel.b, "udp") == [chosen()]));
    assert!(eventually(|| bound(&tunnel.b, "udp6") == [chosen()]));
    // A port that is taken is refused, and the old one goes on.
    let before = chosen();
    let taken = tunnel.b.namespace.run(|| UdpSocket::bind("0.0.0.0:0"));
    let taken = taken.unwrap().unwrap();
    let port = taken.local_addr().unwrap().port();
    assert!(b.set(&format!("listen-port {port}")).is_err());
    assert_eq!(chosen(), before);
    // A port of the system's, after privileges were given up.
    b.set("listen-port 443").unwrap();
    assert!(eventually(|| bound(&tunnel.b, "udp").contains(&443)));
    // Down, no port is bound.
    tunnel
        .b
        .namespace
        .ip(&format!("link set {} down", tunnel.b.interface))
        .unwrap();
    drop(taken);
    assert!(eventually(|| bound(&tunnel.b, "udp").is_empty()));
}

/// A change of the listen port keeps the sessions: no handshake, and the peer follows to the new port.
#[test]
fn c63_change_of_port_keeps_sessions() {
    if !may_run(&[]) {
        return;
    }
    let tunnel = sites(Kind::Engine, Kind::Engine).up().unwrap();
    tunnel.probe(false, LIMIT).unwrap();
    let capture = Capture::start(&tunnel.a.namespace).unwrap();
    for port in [7001, 7002, 7003] {
        daemon(&tunnel.a).set(&format!("listen-port {port}")).unwrap();
        tunnel.probe(false, LIMIT).unwrap();
        let seen = endpoint_of(daemon(&tunnel.b)).unwrap();
        assert_eq!(seen.port(), port);
    }
    assert_eq!(capture.count(|d| d.kind() == MessageKind::Initiation), 0);
}

#[test]
fn c64_fwmark_on_every_outgoing_packet() {
    if !may_run(&[]) {
        return;
    }
    for v6_outer in [false, true] {
        let mut plan = sites(Kind::Engine, Kind::Engine);
        plan.v6_outer = v6_outer;
        let tunnel = plan.up().unwrap();
        let rules = "table inet marks {\n counter with { }\n counter without { }\n chain out {\n \
            type filter hook output priority 0;\n udp sport 51820 meta mark 0x1234 counter name with\n \
            udp sport 51820 meta mark != 0x1234 counter name without\n }\n}\n";
        let a = &tunnel.a.namespace;
        a.exec_with_input("nft", &["-f", "-"], rules.as_bytes()).unwrap();
        daemon(&tunnel.a).set("fwmark 0x1234").unwrap();
        tunnel.probe(false, LIMIT).unwrap();
        let packets = |counter: &str| {
            let said = a
                .exec("nft", &["list", "counter", "inet", "marks", counter])
                .unwrap();
            let mut words = said.split_whitespace().skip_while(|word| *word != "packets");
            words.nth(1).unwrap().parse::<u64>().unwrap()
        };
        assert!(packets("with") >= 2, "handshake and data");
        assert_eq!(packets("without"), 0);
        // Taken back: the sockets that are open lose it.
        daemon(&tunnel.a).set("fwmark 0").unwrap();
        let marked = packets("with");
        tunnel.probe(false, LIMIT).unwrap();
        assert_eq!(packets("with"), marked);
        assert!(packets("without") > 0);
    }
}

/// The endpoint's route leads into the tunnel itself. What that costs is bounded, whether or not there is a session.
#[test]
fn c64_routing_loops_are_bounded() {
    if !may_run(&[]) {
        return;
    }
    let tunnel = sites(Kind::Engine, Kind::Engine).up().unwrap();
    let (a, interface) = (&tunnel.a.namespace, &tunnel.a.interface);
    let key_b = &tunnel.b.keys.as_ref().unwrap().public;
    tunnel.probe(false, LIMIT).unwrap();
    let sent = || daemon(&tunnel.a).peers().unwrap()[0].tx_bytes;
    // With a session: everything towards b's outer address goes into the tunnel.
    daemon(&tunnel.a)
        .set(&format!(
            "peer {key_b} allowed-ips 10.77.0.2/32,192.0.2.2/32,198.18.0.1/32"
        ))
        .unwrap();
    a.ip(&format!("route add 192.0.2.2/32 dev {interface}")).unwrap();
    let before = sent();
    let near = a.run(|| UdpSocket::bind("10.77.0.1:0")).unwrap().unwrap();
    for length in [10, 1300, 1392, 4000] {
        let _ = near.send_to(&vec![1; length], "10.77.0.2:7000");
    }
    std::thread::sleep(Duration::from_secs(1));
    let cost = sent() - before;
    assert!(cost < 70_000, "{cost} bytes for four packets, with a session");
    // Without one: the endpoint is an address of the peer's own, as in Linux's test.
    daemon(&tunnel.a).set(&format!("peer {key_b} remove")).unwrap();
    daemon(&tunnel.a)
        .set(&format!(
            "peer {key_b} allowed-ips 10.77.0.2/32 endpoint 10.77.0.2:7"
        ))
        .unwrap();
    for _ in 0..10 {
        let _ = near.send_to(&[1; 100], "10.77.0.2:7000");
    }
    std::thread::sleep(Duration::from_secs(1));
    let cost = sent();
    assert!(cost < 70_000, "{cost} bytes for ten packets, without a session");
}

/// A route that is missing for a while: sending fails, nothing ends, and it goes on when the route is back.
#[test]
fn c72_unreachable_network_is_survived() {
    if !may_run(&[]) {
        return;
    }
    let tunnel = sites(Kind::Engine, Kind::Engine).up().unwrap();
    tunnel.probe(false, LIMIT).unwrap();
    let a = &tunnel.a.namespace;
    for (take, give) in [
        (
            "route del 192.0.2.0/24 dev path",
            "route add 192.0.2.0/24 dev path",
        ),
        ("link set path down", "link set path up"),
        (
            "route add unreachable 192.0.2.2/32",
            "route del unreachable 192.0.2.2/32",
        ),
        (
            "route add prohibit 192.0.2.2/32",
            "route del prohibit 192.0.2.2/32",
        ),
    ] {
        a.ip(take).unwrap();
        let silent = probe(&tunnel.a, &tunnel.b, false, 100, Duration::from_millis(300));
        assert!(silent.is_err(), "{take} did not cut the path");
        a.ip(give).unwrap();
        if take.starts_with("link") {
            a.ip("route replace 192.0.2.0/24 dev path").unwrap();
        }
        tunnel.probe(false, LIMIT).unwrap();
    }
}

/// A flow goes on while addresses and routes that have nothing to do with it come and go.
#[test]
fn c60_unrelated_changes_lose_nothing() {
    if !may_run(&[]) {
        return;
    }
    let tunnel = sites(Kind::Engine, Kind::Engine).up().unwrap();
    tunnel.probe(false, LIMIT).unwrap();
    let flow = Flow::start(&tunnel.a, &tunnel.b, false, Duration::from_millis(1)).unwrap();
    let a = &tunnel.a.namespace;
    for i in 0..20 {
        a.ip(&format!("address add 198.18.0.{i}/32 dev lo")).unwrap();
        a.ip(&format!("route add blackhole 198.19.{i}.0/24")).unwrap();
        a.ip(&format!("link add other{i} type veth peer name rehto{i}"))
            .unwrap();
    }
    let received = flow.finish();
    assert_eq!(received.lost(), 0);
    assert!(received.in_order());
}

/// A peer that called a second address of ours goes on to be answered from there, whatever changes elsewhere on this host.
#[test]
fn c60_unrelated_changes_keep_the_source() {
    if !may_run(&[]) {
        return;
    }
    let tunnel = sites(Kind::Engine, Kind::Engine).up().unwrap();
    let (a, b) = (&tunnel.a, &tunnel.b);
    b.namespace.address(OUTER, "192.0.2.77/24").unwrap();
    let public = &b.keys.as_ref().unwrap().public;
    daemon(a)
        .set(&format!("peer {public} endpoint 192.0.2.77:51820"))
        .unwrap();
    tunnel.probe(false, LIMIT).unwrap();
    let capture = Capture::start(&a.namespace).unwrap();
    b.namespace.ip("address add 198.18.0.1/32 dev lo").unwrap();
    b.namespace.ip("route add blackhole 198.19.0.0/24").unwrap();
    b.namespace
        .ip("link add other type veth peer name rehto")
        .unwrap();
    b.namespace.ip("link delete other").unwrap();
    std::thread::sleep(Duration::from_millis(600));
    probe(b, a, false, 100, LIMIT).unwrap();
    let from = |ip: &str| capture.count(|d| d.source.ip().to_string() == ip);
    assert!(from("192.0.2.77") > 0);
    assert_eq!(from("192.0.2.2"), 0, "answered from another address");
    // That address itself goes: the peer is answered from what is left.
    b.namespace
        .ip(&format!("address delete 192.0.2.77/24 dev {OUTER}"))
        .unwrap();
    let moved = || {
        let _ = probe(b, a, false, 100, Duration::from_millis(200));
        from("192.0.2.2") > 0
    };
    assert!(eventually(moved));
}
