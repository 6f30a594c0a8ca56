//! UDP ports where the system is made difficult: in a network namespace of their own with a small MTU or a routing rule, and without one of
//! the address families. What needs privileges is skipped, with a word, where there are none.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use patronus_io::Port;
use patronus_io::udp::{UdpConfig, UdpPort, UdpSockets};
use patronus_mem::{Arena, ArenaConfig, Burst, FrameCache, Outer};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter,
};

const CONFIG: UdpConfig = UdpConfig {
    port: 0,
    workers: 1,
    fwmark: 0,
    buffer_bytes: 4 << 20,
    offload: true,
};

fn ip(args: &str) {
    let status = Command::new("ip")
        .args(args.split_whitespace())
        .status()
        .expect("run ip");
    assert!(status.success(), "ip {args}");
}

/// Runs a test on a thread in a network namespace of its own, with the loopback device up.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        // SAFETY: only this thread moves to the new namespace; no descriptors or memory change.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            eprintln!(
                "skipped: no right to make a network namespace ({})",
                io::Error::last_os_error()
            );
            return;
        }
        ip("link set lo up");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
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
            let client = UdpSocket::bind(address).expect("client");
            client
                .set_read_timeout(Some(Duration::from_secs(1)))
                .expect("timeout");
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
fn c64_mark_decides_the_route() {
    in_namespace(|| {
        ip("rule add fwmark 7 prohibit pref 0");
        ip("rule del pref 0 lookup local");
        ip("rule add pref 1 lookup local");
        let client = UdpSocket::bind("127.0.0.1:0").expect("client");
        client
            .set_read_timeout(Some(Duration::from_secs(1)))
            .expect("timeout");
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
        let client = UdpSocket::bind("127.0.0.1:0").expect("client");
        client
            .set_read_timeout(Some(Duration::from_secs(1)))
            .expect("timeout");
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

#[test]
fn c60_c64_the_path_socket_follows_addresses_routes_and_the_mark() {
    in_namespace(|| {
        // Our own address of choice for 192.0.2.9 is 192.0.2.5.
        ip("link add veth-a type veth peer name veth-b");
        ip("addr add 192.0.2.5/24 dev veth-a");
        ip("link set veth-a up");
        ip("link set veth-b up");
        ip("addr add 192.0.2.9/32 dev lo");
        ip("route change table local local 192.0.2.9 dev lo src 192.0.2.5");
        let client = UdpSocket::bind("192.0.2.9:0").expect("client");
        client
            .set_read_timeout(Some(Duration::from_secs(1)))
            .expect("timeout");
        let sockets = UdpSockets::bind(&CONFIG).expect("sockets");
        let (mut port, mut frames) = (sockets.worker_port(0), frames());
        let mut outer = Outer::new(client.local_addr().expect("address"));
        outer.set_local("192.0.2.5".parse().ok(), 0);
        let arrives = |port: &mut UdpPort, frames: &mut FrameCache| {
            send(port, frames, &outer, 1, 100);
            client.recv(&mut [0; 200]).expect("a datagram");
        };
        (0..300).for_each(|_| arrives(&mut port, &mut frames));
        let connected = |port: &UdpPort| {
            let peer = |fd| rustix::net::getpeername(fd).ok().flatten();
            port.wait_fds().into_iter().filter_map(peer).count()
        };
        assert_eq!(connected(&port), 1);
        // A mark that a rule forbids holds for this socket too.
        ip("rule add fwmark 7 prohibit pref 0");
        ip("rule del pref 0 lookup local");
        ip("rule add pref 1 lookup local");
        sockets.set_fwmark(7).expect("mark");
        send(&mut port, &mut frames, &outer, 1, 100);
        assert_eq!(port.counters().tx_forbidden.get(), 1);
        sockets.set_fwmark(0).expect("mark");
        (0..300).for_each(|_| arrives(&mut port, &mut frames));
        assert_eq!(connected(&port), 1);
        // The address goes: nothing is lost, and whoever holds on to it hears of it.
        ip("addr del 192.0.2.5/24 dev veth-a");
        arrives(&mut port, &mut frames);
        assert_eq!(port.take_stale_source(), outer.local());
        assert_eq!(connected(&port), 0);
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
