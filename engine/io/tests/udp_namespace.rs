//! UDP ports where the system is made difficult: in a network namespace of their own with a small MTU or a routing rule, and without one of
//! the address families. What needs privileges is skipped, with a word, where there are none.

mod common;

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use common::{in_namespace, ip, run};
use patronus_io::Port;
use patronus_io::udp::{UdpConfig, UdpPort, UdpSockets};
use patronus_mem::{Arena, ArenaConfig, Burst, FrameCache, Outer};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter,
};

const CONFIG: UdpConfig = UdpConfig {
    ifindex: 0,
    port: 0,
    workers: 1,
    fwmark: 0,
    buffer_bytes: 4 << 20,
    offload: true,
};

/// A client that gives up after a second, so that a lost datagram fails the test.
fn client(address: &str) -> UdpSocket {
    let client = UdpSocket::bind(address).expect("client");
    client
        .set_read_timeout(Some(Duration::from_secs(1)))
        .expect("timeout");
    client
}

fn burst(frames: &mut FrameCache, outer: &Outer, count: usize, len: usize) -> Burst {
    let mut burst = Burst::new();
    for n in 0..count {
        let mut pkt = frames.alloc_for(len).expect("a frame");
        pkt.append(len).fill(n as u8);
        *pkt.outer_mut() = *outer;
        burst.push(pkt);
    }
    burst
}

fn send(port: &mut UdpPort, frames: &mut FrameCache, outer: &Outer, count: usize, len: usize) {
    let mut burst = burst(frames, outer, count, len);
    port.tx_burst(frames, &mut burst).expect("tx");
}

fn frames() -> FrameCache {
    FrameCache::new(
        Arena::new(&ArenaConfig {
            frames: 200,
            jumbo_frames: 70,
        })
        .expect("arena"),
    )
}

#[test]
fn c43_c72_segments_longer_than_the_mtu_are_fragmented_not_lost() {
    in_namespace(|| {
        ip("link set lo mtu 1400");
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let client = client(address);
            let outer = Outer::new(client.local_addr().expect("address"));
            let mut port = UdpSockets::bind(&CONFIG).expect("sockets").worker_port(0);
            let mut frames = frames();
            let mut calls = 0;
            for _ in 0..2 {
                calls = port.counters().tx_calls.get();
                send(&mut port, &mut frames, &outer, 10, 3000);
                for n in 0..10 {
                    let mut data = [0; 4000];
                    assert_eq!(client.recv(&mut data).expect("a datagram"), 3000);
                    assert_eq!(data[..3000], [n; 3000]);
                }
            }
            assert_eq!(
                port.counters().tx_calls.get() - calls,
                1,
                "ten single messages in one call"
            );
            // Shorter segments still go together.
            send(&mut port, &mut frames, &outer, 10, 1000);
            assert!(port.segments(outer.is_ipv6()));
            assert_eq!(port.counters().drops().map(|(_, value)| value).sum::<u64>(), 0);
        }
    });
}

#[test]
fn c43_what_is_to_stay_whole_is_not_fragmented_and_the_rest_is_as_before() {
    in_namespace(|| {
        ip("link set lo mtu 1400");
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let client = client(address);
            let outer = Outer::new(client.local_addr().expect("address"));
            let mut port = UdpSockets::bind(&CONFIG).expect("sockets").worker_port(0);
            let mut frames = frames();
            let mut all = Burst::new();
            for len in [3000, 1300, 1401, 1352] {
                burst(&mut frames, &outer, 1, len)
                    .drain(..)
                    .for_each(|pkt| all.push(pkt));
            }
            port.tx_whole(&mut frames, &mut all).expect("tx");
            let mut data = [0; 4000];
            for len in [1300, 1352] {
                assert_eq!(client.recv(&mut data).expect("a datagram"), len);
            }
            let counters = port.counters();
            assert_eq!((counters.tx_too_big.get(), counters.tx_packets.get()), (2, 2));
            send(&mut port, &mut frames, &outer, 1, 3000);
            assert_eq!(client.recv(&mut data).expect("fragments, put together"), 3000);
        }
    });
}

#[test]
fn c64_mark_decides_the_route() {
    in_namespace(|| {
        ip("rule add fwmark 7 prohibit pref 0");
        ip("rule del pref 0 lookup local");
        ip("rule add pref 1 lookup local");
        let client = client("127.0.0.1:0");
        let outer = Outer::new(client.local_addr().expect("address"));
        let sockets = UdpSockets::bind(&UdpConfig { fwmark: 7, ..CONFIG }).expect("sockets");
        let mut port = sockets.worker_port(0);
        let mut frames = frames();
        send(&mut port, &mut frames, &outer, 10, 100);
        assert_eq!(port.counters().tx_forbidden.get(), 10);
        sockets.set_fwmark(0).expect("mark");
        send(&mut port, &mut frames, &outer, 10, 100);
        assert_eq!(port.counters().tx_packets.get(), 10);
        sockets.set_fwmark(7).expect("mark");
        assert!(sockets.sender().send(&outer, b"x").is_err());
    });
}

#[test]
fn c60_address_that_is_taken_away_is_reported() {
    in_namespace(|| {
        ip("addr add 192.0.2.5/32 dev lo");
        let client = client("127.0.0.1:0");
        let mut port = UdpSockets::bind(&CONFIG).expect("sockets").worker_port(0);
        let mut frames = frames();
        let mut outer = Outer::new(client.local_addr().expect("address"));
        outer.set_local("192.0.2.5".parse().ok(), 0);
        for stale in [None, outer.local()] {
            send(&mut port, &mut frames, &outer, 5, 100);
            assert_eq!(port.take_stale_source(), stale);
            for _ in 0..5 {
                let (_, from) = client.recv_from(&mut [0; 200]).expect("a datagram");
                assert_eq!(from.ip() == outer.local().expect("a source"), stale.is_none());
            }
            if stale.is_none() {
                ip("addr del 192.0.2.5/32 dev lo");
            }
        }
    });
}

/// How many sockets of the port are connected.
fn connected(port: &UdpPort) -> usize {
    let peer = |fd| rustix::net::getpeername(fd).ok().flatten();
    port.wait_fds().into_iter().filter_map(peer).count()
}

/// A message of one packet, which arrives.
fn send_one(port: &mut UdpPort, frames: &mut FrameCache, outer: &Outer, client: &UdpSocket) {
    send(port, frames, outer, 1, 100);
    client.recv(&mut [0; 200]).expect("a datagram");
}

/// Enough messages in a row for the path socket.
fn connect(port: &mut UdpPort, frames: &mut FrameCache, outer: &Outer, client: &UdpSocket) {
    (0..300).for_each(|_| send_one(port, frames, outer, client));
    assert_eq!(connected(port), 1);
}

#[test]
fn c60_c64_the_path_socket_follows_addresses_routes_and_the_mark() {
    for (v, own, net, other, len) in [
        ("-4", "192.0.2.5", 24, "192.0.2.9", 32),
        ("-6", "2001:db8::5", 64, "2001:db8::9", 128),
    ] {
        in_namespace(move || {
            // Our address of choice for the other one is our own.
            ip("link add veth-a type veth peer name veth-b");
            let nodad = if v == "-6" { "nodad" } else { "" };
            ip(&format!("{v} addr add {own}/{net} dev veth-a {nodad}"));
            ip("link set veth-a up");
            ip("link set veth-b up");
            ip(&format!("{v} addr add {other}/{len} dev lo {nodad}"));
            ip(&format!("{v} route del table local local {other} dev lo"));
            ip(&format!(
                "{v} route add table local local {other} dev lo src {own}"
            ));
            let client = client(&SocketAddr::new(other.parse().expect("address"), 0).to_string());
            let sockets = UdpSockets::bind(&CONFIG).expect("sockets");
            let (mut port, mut frames) = (sockets.worker_port(0), frames());
            let mut outer = Outer::new(client.local_addr().expect("address"));
            outer.set_local(own.parse().ok(), 0);
            connect(&mut port, &mut frames, &outer, &client);
            // A mark that a rule forbids holds for this socket too.
            ip(&format!("{v} rule add fwmark 7 prohibit pref 0"));
            ip(&format!("{v} rule del pref 0 lookup local"));
            ip(&format!("{v} rule add pref 1 lookup local"));
            sockets.set_fwmark(7).expect("mark");
            send(&mut port, &mut frames, &outer, 1, 100);
            assert_eq!(port.counters().tx_forbidden.get(), 1);
            sockets.set_fwmark(0).expect("mark");
            connect(&mut port, &mut frames, &outer, &client);
            // The address goes: nothing is lost, and whoever holds on to it hears of it.
            ip(&format!("{v} addr del {own}/{net} dev veth-a"));
            send_one(&mut port, &mut frames, &outer, &client);
            assert_eq!(port.take_stale_source(), outer.local());
            assert_eq!(connected(&port), 0);
        });
    }
}

#[test]
fn c72_a_full_buffer_does_not_cost_the_path_socket() {
    in_namespace(|| {
        // A link so slow that everything waits in the socket's buffer.
        ip("link add veth-a type veth peer name veth-b");
        ip("addr add 192.0.2.5/24 dev veth-a");
        ip("link set veth-a up");
        ip("link set veth-b up");
        ip("neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev veth-a nud permanent");
        run(
            "tc",
            "qdisc add dev veth-a root tbf rate 8kbit burst 2000 limit 100000000",
        );
        let config = UdpConfig {
            buffer_bytes: 1 << 17,
            ..CONFIG
        };
        let mut port = UdpSockets::bind(&config).expect("sockets").worker_port(0);
        let mut frames = frames();
        let mut outer = Outer::new("192.0.2.9:4000".parse().expect("address"));
        outer.set_local("192.0.2.5".parse().ok(), 0);
        let mut was_connected = false;
        for _ in 0..2000 {
            send(&mut port, &mut frames, &outer, 1, 100);
            was_connected |= connected(&port) == 1;
            if port.counters().tx_no_buffer.get() >= 3 {
                break;
            }
        }
        assert!(was_connected && port.counters().tx_no_buffer.get() >= 3);
        assert_eq!(connected(&port), 1, "it is not the path's fault");
        let drops = port
            .counters()
            .drops()
            .filter(|(name, _)| *name != "tx_no_buffer");
        assert_eq!(drops.map(|(_, count)| count).sum::<u64>(), 0);
    });
}

/// An ICMP error of type 3 and this code (RFC 792) about a datagram between these addresses.
fn icmp_unreachable(code: u8, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let octets = |address: SocketAddr| match address.ip() {
        std::net::IpAddr::V4(ip) => ip.octets(),
        std::net::IpAddr::V6(_) => panic!("IPv4 only"),
    };
    let mut message = vec![3, code, 0, 0, 0, 0, 0, 0];
    // The IP header and the first 8 bytes of what it is about.
    message.extend([0x45, 0, 0, 128, 0, 0, 0, 0, 64, libc::IPPROTO_UDP as u8, 0, 0]);
    message.extend(octets(from));
    message.extend(octets(to));
    message.extend(from.port().to_be_bytes());
    message.extend(to.port().to_be_bytes());
    message.extend([0, 108, 0, 0]);
    let words = message
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let sum = words.sum::<u32>();
    let sum = (sum & 0xffff) + (sum >> 16);
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    message
}

#[test]
fn c72_a_forged_icmp_error_costs_no_message() {
    use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto, sendto, socket};
    in_namespace(|| {
        let client = client("127.0.0.1:0");
        let sockets = UdpSockets::bind(&CONFIG).expect("sockets");
        let (mut port, mut frames) = (sockets.worker_port(0), frames());
        let remote = client.local_addr().expect("address");
        let own = SocketAddr::new(remote.ip(), sockets.port());
        let mut outer = Outer::new(remote);
        outer.set_local(Some(own.ip()), 1);
        let raw = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP)).expect("raw socket");
        // Protocol, port and host unreachable for administrative reasons: what the kernel tells a connected socket.
        for code in [2, 3, 10] {
            connect(&mut port, &mut frames, &outer, &client);
            let forged = icmp_unreachable(code, own, remote);
            sendto(&raw, &forged, SendFlags::empty(), &SocketAddr::new(own.ip(), 0)).expect("forge");
            send_one(&mut port, &mut frames, &outer, &client);
        }
        assert_eq!(port.counters().drops().map(|(_, value)| value).sum::<u64>(), 0);
    });
}

/// Lets no socket of this family be made on the calling thread from now on.
fn forbid(family: libc::c_int) {
    let condition = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, family as u64)
        .expect("condition");
    let rule = SeccompRule::new(vec![condition]).expect("rule");
    let filter = SeccompFilter::new(
        BTreeMap::from([(libc::SYS_socket, vec![rule])]),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EAFNOSUPPORT as u32),
        std::env::consts::ARCH.try_into().expect("a known architecture"),
    );
    let program: BpfProgram = filter.expect("filter").try_into().expect("program");
    apply_filter(&program).expect("apply the filter");
}

#[test]
fn r27_one_family_is_enough() {
    for (missing, ipv6, there) in [(libc::AF_INET6, false, "127.0.0.1"), (libc::AF_INET, true, "::1")] {
        let thread = std::thread::spawn(move || {
            forbid(missing);
            let sockets = UdpSockets::bind(&CONFIG).expect("one family");
            assert_ne!(sockets.port(), 0);
            let mut port = sockets.worker_port(0);
            assert_eq!(port.wait_fds().len(), 2);
            let to = SocketAddr::new(there.parse().expect("address"), sockets.port());
            let mut frames = frames();
            // To itself, and to the family that is missing.
            let mut out = burst(&mut frames, &Outer::new(to), 10, 100);
            *out[0].outer_mut() = match ipv6 {
                true => Outer::new(([127, 0, 0, 1], 9).into()),
                false => Outer::new("[::1]:9".parse().expect("address")),
            };
            port.tx_burst(&mut frames, &mut out).expect("tx");
            let mut got = Burst::new();
            assert_eq!(port.rx_burst(&mut frames, &mut got).expect("rx"), 9);
            assert_eq!(port.counters().tx_unreachable.get(), 1);
            forbid(libc::AF_INET + libc::AF_INET6 - missing);
            let neither = UdpSockets::bind(&CONFIG).expect_err("no family");
            assert_eq!(neither.raw_os_error(), Some(libc::EAFNOSUPPORT));
        });
        thread.join().expect("test thread");
    }
}
