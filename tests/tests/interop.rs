//! The engine with the daemons that people run: both roles, with and without pre-shared key, both versions outside and
//! inside, both ways over TCP; then through changes of address, a forgetful NAT, and rekeys under traffic.

use patronus_netns::{Kind, NatTimeouts, Tunnel, TwoSites, probe};
use patronus_tests::{
    Capture, Flow, LIMIT, MessageKind, Need, OUTER, Star, endpoint_of, engine_options, may_run, sites, tcp,
};
use std::time::Duration;

/// Payloads around the steps of the padding, and the largest for the MTU of 1420.
const SIZES: [usize; 7] = [0, 1, 4, 5, 100, 1371, 1372];
const TCP_BYTES: usize = 1_500_000;

/// Site a speaks first and so initiates. `engine_first` says which side is ours.
fn interop(peer: Kind, engine_first: bool) {
    if !may_run(&[Need::Daemon(peer)]) {
        return;
    }
    // The other two of the four cases with the other role.
    for (psk, v6_outer) in [(!engine_first, false), (engine_first, true)] {
        let mut plan = match engine_first {
            true => sites(Kind::Engine, peer),
            false => sites(peer, Kind::Engine),
        };
        plan.psk = psk;
        plan.v6_outer = v6_outer;
        one_tunnel(&plan);
    }
}

fn one_tunnel(plan: &TwoSites) {
    let tunnel = plan.up().unwrap();
    let capture = Capture::start(&tunnel.a.namespace).unwrap();
    tunnel.probe(false, LIMIT).unwrap();
    let first = capture
        .seen()
        .into_iter()
        .find(|d| d.kind() != MessageKind::Other);
    let first = first.expect("a handshake was on the wire");
    assert_eq!(first.kind(), MessageKind::Initiation);
    assert_eq!(first.source, tunnel.a.outer, "the wrong side initiated");
    drop(capture);
    // The smallest IPv6 packet is 20 bytes longer.
    for (v6, less) in [(false, 0), (true, 20)] {
        for size in SIZES.map(|size| size.saturating_sub(less)) {
            probe(&tunnel.a, &tunnel.b, v6, size, LIMIT).unwrap();
            probe(&tunnel.b, &tunnel.a, v6, size, LIMIT).unwrap();
        }
    }
    tcp(&tunnel.a, &tunnel.b, plan.v6_outer, TCP_BYTES).unwrap();
    tcp(&tunnel.b, &tunnel.a, !plan.v6_outer, TCP_BYTES).unwrap();
}

#[test]
fn c07_interop_wireguard_go_as_initiator() {
    interop(Kind::WireguardGo, true);
}

#[test]
fn c07_interop_wireguard_go_as_responder() {
    interop(Kind::WireguardGo, false);
}

#[test]
fn c07_interop_boringtun_as_initiator() {
    interop(Kind::Boringtun, true);
}

#[test]
fn c07_interop_boringtun_as_responder() {
    interop(Kind::Boringtun, false);
}

#[test]
fn c07_interop_wireguard_go_new_with_offloads() {
    if may_run(&[Need::Daemon(Kind::WireguardGoNew)]) {
        one_tunnel(&sites(Kind::Engine, Kind::WireguardGoNew));
        one_tunnel(&sites(Kind::WireguardGoNew, Kind::Engine));
    }
}

#[test]
fn c07_interop_gotatun() {
    if may_run(&[Need::Daemon(Kind::Gotatun)]) {
        one_tunnel(&sites(Kind::Engine, Kind::Gotatun));
        one_tunnel(&sites(Kind::Gotatun, Kind::Engine));
    }
}

#[test]
fn c07_interop_with_itself() {
    if !may_run(&[]) {
        return;
    }
    let mut plan = sites(Kind::Engine, Kind::Engine);
    plan.psk = true;
    one_tunnel(&plan);
    plan.v6_outer = true;
    one_tunnel(&plan);
}

/// Packets up to what the largest path carries: sealed in frames of 64 KiB.
fn big_mtu(peer: Kind) {
    if !may_run(&[Need::Daemon(peer)]) {
        return;
    }
    let mut plan = sites(Kind::Engine, peer);
    (plan.outer_mtu, plan.mtu) = (65535, 65535 - 80);
    let tunnel = plan.up().unwrap();
    tunnel.probe(false, LIMIT).unwrap();
    for (v6, header) in [(false, 28), (true, 48)] {
        for size in [1420, 1900, 9000, 60_000, 65535 - 80 - header] {
            probe(&tunnel.a, &tunnel.b, v6, size, LIMIT).unwrap();
        }
        tcp(&tunnel.a, &tunnel.b, v6, 3 * TCP_BYTES).unwrap();
        tcp(&tunnel.b, &tunnel.a, v6, 3 * TCP_BYTES).unwrap();
    }
}

#[test]
fn c07_big_mtu_with_wireguard_go() {
    big_mtu(Kind::WireguardGo);
}

#[test]
fn r50_big_mtu_with_itself() {
    big_mtu(Kind::Engine);
}

#[test]
fn c07_hub_with_peers_of_every_kind() {
    if !may_run(&[Need::Daemon(Kind::WireguardGo), Need::Daemon(Kind::Boringtun)]) {
        return;
    }
    let kinds = [Kind::Engine, Kind::WireguardGo, Kind::Boringtun];
    let star = Star::up(&kinds.map(|kind| (kind, &[][..])), &[]).unwrap();
    for v6 in [false, true] {
        for (i, spoke) in star.spokes.iter().enumerate() {
            probe(spoke, &star.hub, v6, 500, LIMIT).unwrap();
            probe(&star.hub, spoke, v6, 500, LIMIT).unwrap();
            for other in &star.spokes[i + 1..] {
                probe(spoke, other, v6, 500, LIMIT).unwrap();
            }
        }
    }
    tcp(&star.spokes[0], &star.spokes[1], false, TCP_BYTES).unwrap();
    tcp(&star.spokes[2], &star.spokes[0], true, TCP_BYTES).unwrap();
    let peers = star.hub.daemon.as_ref().unwrap().peers().unwrap();
    assert!(
        peers.iter().all(|peer| peer.rx_bytes > 0 && peer.tx_bytes > 0),
        "{peers:?}"
    );
}

/// Site a takes another address while packets flow; b answers to the new one.
fn roam(tunnel: &Tunnel, new: &str) {
    let address = new.split('/').next().unwrap();
    let old = match tunnel.a.outer.is_ipv4() {
        true => format!("{}/24", tunnel.a.outer.ip()),
        false => format!("{}/64", tunnel.a.outer.ip()),
    };
    tunnel.probe(false, LIMIT).unwrap();
    let b = tunnel.b.daemon.as_ref().unwrap();
    assert_eq!(endpoint_of(b), Some(tunnel.a.outer));
    // The old address does not take the new one along.
    tunnel
        .a
        .namespace
        .sysctl("net.ipv4.conf.path.promote_secondaries", "1")
        .unwrap();
    tunnel.a.namespace.address(OUTER, new).unwrap();
    tunnel
        .a
        .namespace
        .ip(&format!("address del {old} dev {OUTER}"))
        .unwrap();
    tunnel.probe(false, LIMIT).unwrap();
    let seen = endpoint_of(b).unwrap();
    assert_eq!(seen.ip().to_string(), address);
    assert_eq!(seen.port(), tunnel.a.outer.port());
}

#[test]
fn c59_roaming_engine_is_followed_by_wireguard_go() {
    if !may_run(&[Need::Daemon(Kind::WireguardGo)]) {
        return;
    }
    let mut plan = sites(Kind::Engine, Kind::WireguardGo);
    roam(&plan.up().unwrap(), "192.0.2.201/24");
    plan.v6_outer = true;
    roam(&plan.up().unwrap(), "2001:db8::c9/64");
}

#[test]
fn c59_roaming_peers_are_followed() {
    if !may_run(&[Need::Daemon(Kind::Boringtun)]) {
        return;
    }
    roam(&sites(Kind::Engine, Kind::Engine).up().unwrap(), "192.0.2.201/24");
    let mut plan = sites(Kind::Boringtun, Kind::Engine);
    // A connected socket could not leave its address.
    plan.options_a.args.push("--disable-connected-udp".to_owned());
    plan.v6_outer = true;
    roam(&plan.up().unwrap(), "2001:db8::c9/64");
}

/// (Debian 12's wireguard-go does not survive the loss of the address that it sends from, so it moves by port.)
#[test]
fn c59_wireguard_go_on_another_port_is_followed() {
    if !may_run(&[Need::Daemon(Kind::WireguardGo)]) {
        return;
    }
    let tunnel = sites(Kind::WireguardGo, Kind::Engine).up().unwrap();
    tunnel.probe(false, LIMIT).unwrap();
    let (a, b) = (&tunnel.a.daemon, &tunnel.b.daemon);
    a.as_ref().unwrap().set("listen-port 4000").unwrap();
    tunnel.probe(false, LIMIT).unwrap();
    assert_eq!(endpoint_of(b.as_ref().unwrap()).unwrap().port(), 4000);
}

/// From IPv4 to IPv6: the peer is told the other endpoint, and follows with its answers.
#[test]
fn c59_roaming_between_the_versions() {
    if !may_run(&[]) {
        return;
    }
    let tunnel = sites(Kind::Engine, Kind::Engine).up().unwrap();
    tunnel.probe(false, LIMIT).unwrap();
    for (site, address) in [(&tunnel.a, "2001:db8::1/64"), (&tunnel.b, "2001:db8::2/64")] {
        site.namespace.address(OUTER, address).unwrap();
    }
    let capture = Capture::start(&tunnel.b.namespace).unwrap();
    let (a, b) = (
        tunnel.a.daemon.as_ref().unwrap(),
        tunnel.b.daemon.as_ref().unwrap(),
    );
    let key_b = &tunnel.b.keys.as_ref().unwrap().public;
    a.set(&format!("peer {key_b} endpoint [2001:db8::2]:51820"))
        .unwrap();
    tunnel.probe(true, LIMIT).unwrap();
    assert_eq!(endpoint_of(b), Some("[2001:db8::1]:51820".parse().unwrap()));
    // The session went along.
    assert_eq!(capture.count(|d| d.kind() == MessageKind::Initiation), 0);
}

/// The router forgets a flow after 2 s. With a keepalive each second b can always call; without, not after the silence.
fn nat(a: Kind, b: Kind) {
    if !may_run(&[Need::Daemon(a), Need::Daemon(b), Need::Tool("conntrack")]) {
        return;
    }
    let mut plan = sites(a, b);
    plan.nat = Some(NatTimeouts { udp_secs: 2 });
    let tunnel = plan.up().unwrap();
    tunnel.probe(false, LIMIT).unwrap();
    let daemon_b = tunnel.b.daemon.as_ref().unwrap();
    let daemon_a = tunnel.a.daemon.as_ref().unwrap();
    let key_b = &tunnel.b.keys.as_ref().unwrap().public;
    daemon_a
        .set(&format!("peer {key_b} persistent-keepalive 1"))
        .unwrap();
    std::thread::sleep(Duration::from_millis(3500));
    probe(&tunnel.b, &tunnel.a, false, 100, LIMIT).unwrap();
    let seen = endpoint_of(daemon_b).unwrap();
    assert_eq!(
        seen.ip().to_string(),
        "198.51.100.1",
        "b sees the router's address"
    );

    daemon_a
        .set(&format!("peer {key_b} persistent-keepalive off"))
        .unwrap();
    std::thread::sleep(Duration::from_millis(3500));
    let silence = probe(&tunnel.b, &tunnel.a, false, 100, Duration::from_millis(600));
    assert!(silence.is_err(), "the router did not forget: {silence:?}");
    // Speaking first, a gets another port on the router and b follows.
    tunnel.probe(false, LIMIT).unwrap();
    assert_ne!(endpoint_of(daemon_b), Some(seen));
}

#[test]
fn c55_keepalive_holds_the_nat_open_to_wireguard_go() {
    nat(Kind::Engine, Kind::WireguardGo);
}

#[test]
fn c59_wireguard_go_behind_a_nat_is_followed() {
    nat(Kind::WireguardGo, Kind::Engine);
}

/// Sessions of a second and a half instead of two minutes: several rekeys under TCP and under numbered datagrams, none lost.
fn rekey_under_traffic(a: Kind, b: Kind) {
    if !may_run(&[Need::Daemon(a), Need::Daemon(b)]) {
        return;
    }
    let mut plan = sites(a, b);
    let hurried = engine_options(&["--test-timer-divisor", "80"]);
    if a == Kind::Engine {
        plan.options_a = hurried.clone();
    }
    if b == Kind::Engine {
        plan.options_b = hurried;
    }
    let tunnel = plan.up().unwrap();
    tunnel.probe(false, LIMIT).unwrap();
    let capture = Capture::start(&tunnel.a.namespace).unwrap();
    let every = Duration::from_millis(2);
    let there = Flow::start(&tunnel.a, &tunnel.b, false, every).unwrap();
    let back = Flow::start(&tunnel.b, &tunnel.a, true, every).unwrap();
    std::thread::sleep(Duration::from_secs(4));
    for flow in [there, back] {
        let received = flow.finish();
        assert!(received.sent > 100);
        assert_eq!(received.lost(), 0, "lost while the keys changed");
        assert!(received.in_order());
    }
    let responses = capture.count(|d| d.kind() == MessageKind::Response);
    assert!(responses >= 2, "{responses} rekeys are too few");
    drop(capture);
    tcp(&tunnel.a, &tunnel.b, false, 15_000_000).unwrap();
    tcp(&tunnel.b, &tunnel.a, false, 15_000_000).unwrap();
}

#[test]
fn c50_rekey_under_traffic_with_itself() {
    rekey_under_traffic(Kind::Engine, Kind::Engine);
}

#[test]
fn c50_rekey_under_traffic_of_wireguard_go() {
    rekey_under_traffic(Kind::Engine, Kind::WireguardGo);
}

#[test]
fn c50_rekey_under_traffic_of_boringtun() {
    rekey_under_traffic(Kind::Engine, Kind::Boringtun);
}

/// Both sides speak first at the same moment, again and again: one session each time, soon, and no storm.
#[test]
fn c15_simultaneous_initiation_converges() {
    if !may_run(&[]) {
        return;
    }
    let tunnel = sites(Kind::Engine, Kind::Engine).up().unwrap();
    let capture = Capture::start(&tunnel.a.namespace).unwrap();
    let every = Duration::from_millis(5);
    let there = Flow::start(&tunnel.a, &tunnel.b, false, every).unwrap();
    let back = Flow::start(&tunnel.b, &tunnel.a, false, every).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let initiations = capture.count(|d| d.kind() == MessageKind::Initiation);
    assert!((1..=3).contains(&initiations), "{initiations} initiations");
    for flow in [there, back] {
        let received = flow.finish();
        assert_eq!(received.lost(), 0);
        assert!(received.in_order());
    }
}
