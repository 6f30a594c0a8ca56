//! WAN links by AF_XDP (adr/0013): our engine with one, against a stock peer and against itself.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use patronus_io::ip::{PROTO_UDP, Sum};
use patronus_io::netlink::Addresses;
use patronus_io::packet;
use patronus_netns::{Kind, Tunnel};
use patronus_tests::{
    Capture, LIMIT, MessageKind, Need, Stats, engine_options, eventually, may_run, ping, sites, stats, tcp,
};

const LINK: [&str; 2] = ["--link", "path,af_xdp"];

/// A tunnel whose first site has an AF_XDP link.
fn up(other: Kind, v6_outer: bool, more: &[&str]) -> Tunnel {
    let mut plan = sites(Kind::Engine, other);
    plan.v6_outer = v6_outer;
    let args: Vec<&str> = LINK.iter().chain(more).copied().collect();
    plan.options_a = engine_options(&args);
    if other == Kind::Engine {
        plan.options_b = engine_options(&args);
    }
    plan.up().unwrap()
}

fn counters(tunnel: &Tunnel) -> Stats {
    stats(tunnel.a.daemon.as_ref().unwrap()).unwrap()
}

/// Small and large packets, both ways, in both families.
fn exchange(tunnel: &Tunnel) {
    for v6 in [false, true] {
        tunnel.probe(v6, LIMIT).unwrap();
        tcp(&tunnel.a, &tunnel.b, v6, 8 << 20).unwrap();
        tcp(&tunnel.b, &tunnel.a, v6, 8 << 20).unwrap();
    }
    ping(
        &tunnel.a.namespace,
        &format!("-c 3 -i 0.2 -s 1300 {}", tunnel.b.inner_v4),
    )
    .unwrap();
}

/// The traffic goes by the queue, in both directions.
fn assert_by_queue(tunnel: &Tunnel) {
    let all = counters(tunnel);
    assert!(all.sum("queue0.rx_packets") > 1000, "{all:?}");
    assert!(all.sum("queue0.tx_packets") > 1000, "{all:?}");
}

fn exchanges_by_queue(other: Kind, v6_outer: bool) {
    let tunnel = up(other, v6_outer, &[]);
    exchange(&tunnel);
    assert_by_queue(&tunnel);
}

#[test]
fn with_a_stock_peer_v4() {
    if may_run(&[Need::Daemon(Kind::WireguardGo)]) {
        exchanges_by_queue(Kind::WireguardGo, false);
    }
}

#[test]
fn with_a_stock_peer_v6() {
    if may_run(&[Need::Daemon(Kind::WireguardGo)]) {
        exchanges_by_queue(Kind::WireguardGo, true);
    }
}

/// Who called first, by what is on the wire at the stock peer's site, where the kernel sees all of it; and data both ways then.
fn first_call_from(a_calls: bool) {
    if !may_run(&[Need::Daemon(Kind::WireguardGo)]) {
        return;
    }
    let tunnel = up(Kind::WireguardGo, false, &[]);
    let capture = Capture::start(&tunnel.b.namespace).unwrap();
    let (caller, called) = if a_calls {
        (&tunnel.a, &tunnel.b)
    } else {
        (&tunnel.b, &tunnel.a)
    };
    patronus_netns::probe(caller, called, false, 32, LIMIT).unwrap();
    let handshake: Vec<_> = capture
        .seen()
        .into_iter()
        .filter(|message| matches!(message.kind(), MessageKind::Initiation | MessageKind::Response))
        .map(|message| (message.kind(), message.source))
        .collect();
    let expected = [
        (MessageKind::Initiation, caller.outer),
        (MessageKind::Response, called.outer),
    ];
    assert_eq!(handshake, expected);
    drop(capture);
    exchange(&tunnel);
    assert_by_queue(&tunnel);
}

#[test]
fn a_stock_peer_is_called() {
    first_call_from(true);
}

#[test]
fn a_stock_peer_calls() {
    first_call_from(false);
}

#[test]
fn with_itself() {
    if may_run(&[]) {
        exchanges_by_queue(Kind::Engine, false);
    }
}

/// Sessions end and begin anew while packets flow.
#[test]
fn sessions_are_renewed() {
    if !may_run(&[]) {
        return;
    }
    let tunnel = up(Kind::Engine, false, &["--test-timer-divisor", "60"]);
    tunnel.probe(false, LIMIT).unwrap();
    let ended = std::time::Instant::now() + Duration::from_secs(7);
    while std::time::Instant::now() < ended {
        ping(&tunnel.a.namespace, &format!("-c 5 -i 0.1 {}", tunnel.b.inner_v4)).unwrap();
    }
    assert!(counters(&tunnel).sum("queue0.rx_packets") > 20);
}

/// The other end's address changes: what is sent there goes by the queue again, with another way.
#[test]
fn the_peer_may_roam() {
    if !may_run(&[]) {
        return;
    }
    let tunnel = up(Kind::Engine, false, &[]);
    exchange(&tunnel);
    let IpAddr::V4(old) = tunnel.b.outer.ip() else {
        panic!("an IPv4 tunnel");
    };
    let [a, b, c, _] = old.octets();
    let before = counters(&tunnel).sum("queue0.tx_packets");
    let inside = &tunnel.b.namespace;
    inside.ip(&format!("addr del {old}/24 dev path")).unwrap();
    inside
        .ip(&format!("addr add {a}.{b}.{c}.77/24 dev path"))
        .unwrap();
    let from_there = || ping(inside, &format!("-c 1 -W 1 {}", tunnel.a.inner_v4));
    assert!(eventually(
        || from_there().is_ok_and(|said| said.contains(" 0% packet loss"))
    ));
    exchange(&tunnel);
    assert!(counters(&tunnel).sum("queue0.tx_packets") > before + 1000);
}

/// Datagrams in pieces are the kernel's to put together, and reach us by its socket.
#[test]
fn datagrams_may_come_in_pieces() {
    if !may_run(&[Need::Daemon(Kind::WireguardGo)]) {
        return;
    }
    let tunnel = up(Kind::WireguardGo, false, &[]);
    exchange(&tunnel);
    let before = counters(&tunnel).sum("udp0.rx_packets");
    tunnel.b.namespace.ip("link set path mtu 900").unwrap();
    // One way only: the other end takes nothing that is longer than its MTU.
    tcp(&tunnel.b, &tunnel.a, false, 1 << 20).unwrap();
    let all = counters(&tunnel);
    assert!(all.sum("udp0.rx_packets") > before + 500, "{all:?}");
}

/// Frames that the program lets through and that are no datagrams: lengths that contradict each other, a damaged header, a source that nobody can
/// have. Each is counted, and the tunnel goes on.
#[test]
fn what_is_no_datagram_is_counted() {
    if !may_run(&[Need::Root]) {
        return;
    }
    let tunnel = up(Kind::Engine, false, &[]);
    exchange(&tunnel);
    let [(_, there), (ifindex, own)] = [&tunnel.a, &tunnel.b].map(|site| {
        let found = site.namespace.run(|| {
            let ifindex = nix::net::if_::if_nametoindex("path").unwrap();
            let mac = Addresses::new().unwrap().interface(ifindex).unwrap().mac;
            (ifindex, mac.unwrap())
        });
        found.unwrap()
    });
    let (IpAddr::V4(from), IpAddr::V4(to)) = (tunnel.b.outer.ip(), tunnel.a.outer.ip()) else {
        panic!("an IPv4 tunnel");
    };
    let socket = tunnel
        .b
        .namespace
        .run(|| packet::sender(ifindex))
        .unwrap()
        .unwrap();
    let frame = |total: u16, udp_length: u16, source_port: u16, damage: u8| {
        let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, PROTO_UDP, 0, 0];
        ip[2..4].copy_from_slice(&total.to_be_bytes());
        ip.extend([from.octets(), to.octets()].concat());
        let checksum = Sum::of(&ip).checksum();
        ip[10..12].copy_from_slice(&checksum);
        ip[10] ^= damage;
        let ports = [source_port, tunnel.a.outer.port(), udp_length, 0].map(u16::to_be_bytes);
        let link = [&there[..], &own, &[0x08, 0x00]].concat();
        [link, ip, ports.concat(), vec![4; 64]].concat()
    };
    let wrong = [
        ("an IP length above the frame's", frame(1000, 72, 9, 0)),
        ("an IP length without room for UDP", frame(27, 72, 9, 0)),
        ("an IP length below its header's", frame(19, 72, 9, 0)),
        ("a UDP length above the packet's", frame(92, 73, 9, 0)),
        ("a UDP length below its header's", frame(92, 7, 9, 0)),
        ("a damaged header", frame(92, 72, 9, 1)),
        ("no source port", frame(92, 72, 0, 0)),
    ];
    for (what, frame) in &wrong {
        let before = counters(&tunnel).sum("rx_malformed");
        packet::send(socket.as_fd(), &[frame]).unwrap();
        let counted = || counters(&tunnel).sum("rx_malformed") == before + 1;
        assert!(eventually(counted), "{what}: {:?}", counters(&tunnel));
    }
    let before = counters(&tunnel).sum(".drop.decap-not-wireguard");
    packet::send(socket.as_fd(), &[&frame(92, 72, 9, 0)]).unwrap();
    assert!(eventually(
        || counters(&tunnel).sum(".drop.decap-not-wireguard") == before + 1
    ));
    exchange(&tunnel);
}

/// What is not WireGuard's is the host's.
#[test]
fn the_host_keeps_the_rest() {
    if !may_run(&[]) {
        return;
    }
    let tunnel = up(Kind::Engine, false, &[]);
    exchange(&tunnel);
    ping(
        &tunnel.b.namespace,
        &format!("-c 3 -i 0.2 -s 4000 {}", tunnel.a.outer.ip()),
    )
    .unwrap();
}

/// A changed UDP port reaches the program, and the queue stays in use.
#[test]
fn the_udp_port_may_change() {
    if !may_run(&[]) {
        return;
    }
    let tunnel = up(Kind::Engine, false, &[]);
    exchange(&tunnel);
    let before = counters(&tunnel).sum("queue0.rx_packets");
    let wg = format!("set {} listen-port 51999", tunnel.a.interface);
    let arguments: Vec<&str> = wg.split(' ').collect();
    tunnel.a.namespace.exec("wg", &arguments).unwrap();
    exchange(&tunnel);
    assert!(
        eventually(|| {
            tunnel.probe(false, LIMIT).unwrap();
            counters(&tunnel).sum("queue0.rx_packets") > before
        }),
        "the ports are renewed once the old ones are given back"
    );
    exchange(&tunnel);
    assert_by_queue(&tunnel);
}

/// The interface goes and comes back: the queue is used again.
#[test]
fn the_interface_may_go_down_and_up() {
    if !may_run(&[]) {
        return;
    }
    let tunnel = up(Kind::Engine, false, &[]);
    exchange(&tunnel);
    let before = counters(&tunnel).sum("queue0.rx_packets");
    tunnel.b.namespace.ip("link set path down").unwrap();
    let log = || tunnel.a.daemon.as_ref().unwrap().log();
    assert!(eventually(|| log().contains("link path does not run")));
    tunnel.b.namespace.ip("link set path up").unwrap();
    tunnel.probe(false, LIMIT).unwrap();
    exchange(&tunnel);
    assert!(counters(&tunnel).sum("queue0.rx_packets") > before + 1000);
}

/// Two workers and one queue: the link works by its socket.
#[test]
fn without_a_queue_for_each_worker_it_is_the_socket() {
    if !may_run(&[]) {
        return;
    }
    let tunnel = up(Kind::Engine, false, &["--workers", "2"]);
    exchange(&tunnel);
    let all = counters(&tunnel);
    assert!(!all.has("queue0.rx_packets"), "{all:?}");
    assert!(
        all.sum("udp0.tx_packets") + all.sum("udp1.tx_packets") > 1000,
        "{all:?}"
    );
}
