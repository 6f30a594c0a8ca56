//! What datagrams look like from outside: padding, header, DSCP and ECN.

use std::net::IpAddr;

use patronus_crypto::messages::{DATA_MIN, Kind, TAG};
use patronus_engine::channel::Command;
use patronus_engine::stats::DropReason;

use crate::common::packet::Builder;
use crate::common::{A, B, Net, Seeded, Setup, ms, packet, secs};

#[test]
fn c34_r09_padding_is_zeros_up_to_16_and_never_beyond_the_mtu() {
    let mut net = Net::pair();
    net.connect();
    let sizes = (20..=80).chain([576, 1280]).chain(1388..=1420);
    for len in sizes {
        let inner = packet::between(A, B, len as u64, len);
        net.log.clear();
        net.send(A, &inner);
        let datagram = net.sent(A).next().expect("one datagram").clone();
        let text = net.reveal(A, &datagram);
        assert_eq!(text.len(), len.next_multiple_of(16).min(1420), "{len} bytes");
        assert_eq!(datagram.bytes.len(), DATA_MIN + text.len());
        assert_eq!(text[..len], inner, "what was there is still there");
        assert!(
            text[len..].iter().all(|&b| b == 0),
            "{len} bytes: padding of zeros"
        );
        net.run(ms(40));
        assert_eq!(
            net.delivered(B),
            [inner],
            "cut to the length that the IP header tells"
        );
    }
    net.finish();
}

/// The case of Linux's netns.sh: with an MTU of 1299, a packet of that size must not grow to 1312.
#[test]
fn c34_a_changed_mtu_bounds_the_padding() {
    let mut net = Net::pair();
    net.connect();
    let peer = net.peer(A, B);
    for (mtu, len, padded) in [
        (1299, 1298, 1299),
        (1299, 1299, 1299),
        (1299, 1280, 1280),
        (1299, 1420, 1424),
        (9000, 1420, 1424),
        (9000, 8990, 8992),
        (9000, 8999, 9000),
        (65535, 65470, 65472),
    ] {
        net.command(A, peer, Command::Mtu(mtu));
        net.settle();
        net.log.clear();
        let inner = packet::between(A, B, 7, len);
        net.send(A, &inner);
        let got = net.sent(A).next().unwrap().bytes.len() - DATA_MIN;
        assert_eq!(got, padded, "MTU {mtu}, {len} bytes");
        net.run(ms(40));
        assert_eq!(net.delivered(B), [inner]);
    }
    net.finish();
}

#[test]
fn r26_no_mtu_is_too_strange() {
    let mut net = Net::pair();
    net.connect();
    let peer = net.peer(A, B);
    for mtu in [
        0,
        1,
        15,
        16,
        19,
        20,
        67,
        68,
        1279,
        65535,
        65536,
        1 << 20,
        usize::MAX,
    ] {
        net.command(A, peer, Command::Mtu(mtu));
        net.settle();
        for len in [20, 21, 1000, 1420, 1856, 1857, 65472, 65520, 65535] {
            let inner = packet::between(A, B, 1, len);
            net.send(A, &inner);
            net.run(ms(40));
            // The largest packets make datagrams that no network carries.
            let expected: &[_] = if len <= 65472 { &[inner] } else { &[] };
            assert_eq!(net.delivered(B), expected, "MTU {mtu}, {len} bytes");
        }
    }
    assert_eq!(net.sites[A].drops(), []);
    assert_eq!(net.sites[B].drops(), []);
    net.finish();
}

/// A tunnel whose own datagrams are routed back into it would feed on itself. What only looks similar goes its way.
#[test]
fn own_datagrams_do_not_enter_their_tunnel_again() {
    let mut net = Net::pair();
    net.connect();
    let peer = net.peer(A, B);
    let (own, other) = (net.sites[A].addr, net.sites[B].addr);
    let elsewhere = IpAddr::from([192, 0, 2, 77]);
    net.allow(A, peer, other.ip(), 32);
    net.allow(A, peer, elsewhere, 32);
    net.send(A, &packet::between(A, B, 1, 100));
    let datagram = net.log.last().unwrap().bytes.clone();
    let outer = |dst, payload: &[u8]| {
        let mut packet = Builder::new(own.ip(), dst, 5, 28 + payload.len()).build();
        packet[22..24].copy_from_slice(&other.port().to_be_bytes());
        packet[28..].copy_from_slice(payload);
        packet
    };
    let with = |at: usize, value: u8| {
        let mut packet = outer(other.ip(), &datagram);
        packet[at] = value;
        packet
    };
    let carried = [
        outer(elsewhere, &datagram),
        // To another UDP port.
        with(23, other.port() as u8 ^ 1),
        // In another session.
        with(32, !datagram[4]),
        // A handshake message; no message at all.
        with(28, 1),
        with(29, 1),
        // TCP.
        with(9, 6),
        // A later fragment.
        with(7, 1),
        // Cut short.
        outer(other.ip(), &datagram[..31]),
        outer(other.ip(), &datagram[..8]),
        outer(other.ip(), &[]),
    ];
    for (at, packet) in carried.iter().enumerate() {
        let before = net.log.len();
        net.send(A, packet);
        assert_eq!(net.log.len(), before + 1, "{at}");
    }
    assert_eq!(net.sites[A].drops(), []);
    for again in [outer(other.ip(), &datagram), outer(other.ip(), &datagram[..32])] {
        let before = net.log.len();
        net.send(A, &again);
        assert_eq!(net.log.len(), before);
    }
    assert_eq!(net.sites[A].drops(), [(DropReason::EncapLoop, 2)]);
    // Without a session nobody can have sealed it.
    net.command(A, peer, Command::EraseKeys(peer));
    net.run(secs(6));
    net.send(A, &outer(other.ip(), &datagram));
    assert_eq!(net.sites[A].drops(), [(DropReason::EncapLoop, 2)]);
    net.finish();
}

/// RFC 6040, section 4.1: ECN is copied out. DSCP is not: data goes as best effort, handshakes as AF41.
#[test]
fn c42_ecn_is_copied_to_the_outer_header_and_dscp_is_not() {
    let mut net = Net::pair();
    net.send(A, &packet::between(A, B, 1, 100));
    net.run(ms(200));
    for datagram in &net.log {
        let expected = if datagram.kind() == Kind::Data { 0 } else { 0x88 };
        assert_eq!(datagram.tos, expected, "{:?}", datagram.kind());
    }
    net.log.clear();
    for tos in 0..=255 {
        let v4 = Builder {
            tos,
            ..Builder::new(packet::v4(A), packet::v4(B), 1, 100)
        };
        let v6 = Builder {
            tos,
            ..Builder::new(packet::v6(A), packet::v6(B), 1, 100)
        };
        for inner in [v4.build(), v6.build()] {
            net.send(A, &inner);
            let datagram = net.log.pop().unwrap();
            assert_eq!(datagram.tos, tos & 3, "inner {tos:#04x}");
            assert_eq!(net.reveal(A, &datagram)[..100], inner, "the inner field stays");
        }
    }
    // Keepalives are not ECN capable, and packets that waited for a session are treated as others are.
    net.run(secs(200));
    net.log.clear();
    let marked = Builder {
        tos: 0xb9,
        ..Builder::new(packet::v4(A), packet::v4(B), 2, 100)
    };
    net.send(A, &marked.build());
    net.run(secs(12));
    let tos = |keepalive| -> Vec<u8> {
        let data = net.log.iter().filter(|d| d.kind() == Kind::Data);
        data.filter(|d| d.is_keepalive() == keepalive)
            .map(|d| d.tos)
            .collect()
    };
    assert_eq!(tos(false), [1]);
    assert_eq!(tos(true), [0]);
    net.finish();
}

#[test]
fn a_burst_to_several_peers_is_sealed_for_each() {
    let mut net = Net::star(5, &Setup::default());
    for branch in 1..=5 {
        net.send(A, &packet::between(A, branch, 0, 100));
    }
    net.run(secs(1));
    let mut rng = Seeded(7);
    let mut expected = vec![Vec::new(); 6];
    for id in 0..200 {
        let branch = rng.pick(1..6);
        let inner = packet::between(A, branch, id, rng.pick(36..1421));
        net.offer(A, &inner);
        expected[branch].push(inner);
    }
    (1..=5).for_each(|branch| drop(net.delivered(branch)));
    net.run(secs(1));
    for (branch, expected) in expected.iter().enumerate().skip(1) {
        assert_eq!(net.delivered(branch), *expected);
    }
    net.finish();
}

/// What the counters behind `wg show` say is what was on the wire: UDP payload, handshakes and keepalives included.
#[test]
fn c81_bytes_are_counted_as_they_are_on_the_wire() {
    let mut net = Net::pair();
    for (from, to, id) in [(A, B, 1), (B, A, 2), (A, B, 3)] {
        net.send(from, &packet::between(from, to, id, 1000 + id as usize));
        net.run(secs(11));
    }
    for (site, other) in [(A, B), (B, A)] {
        let bytes = |of: usize| net.sent(of).map(|d| d.bytes.len() as u64).sum::<u64>();
        let traffic = net.sites[site].core.device().traffic(net.peer(site, other));
        assert_eq!(traffic.sent_bytes(), bytes(site));
        assert_eq!(traffic.received_bytes(), bytes(other));
    }
    assert!(net.log.iter().any(|d| d.is_keepalive()));
    assert_eq!(
        net.log
            .iter()
            .filter(|d| d.is_data())
            .map(|d| d.bytes.len())
            .max(),
        Some(DATA_MIN + 1008)
    );
    assert_eq!(TAG, 16);
    net.finish();
}

/// Three flows of a size each, interleaved: three rows of equal datagrams, numbered in the order in which they leave.
#[test]
fn like_packets_of_several_flows_leave_together() {
    let mut net = Net::pair();
    net.connect();
    let sizes = [64, 576, 64, 64, 576, 64, 1400, 64, 576, 64, 64, 576];
    let packets: Vec<_> = (0..60)
        .map(|i| {
            let len = sizes[i % sizes.len()];
            let flow = Builder::new(packet::v4(A), packet::v4(B), i as u64, len);
            Builder {
                src_port: len as u16,
                ..flow
            }
            .build()
        })
        .collect();
    net.log.clear();
    packets.iter().for_each(|packet| net.offer(A, packet));
    net.settle();
    let sent: Vec<_> = net.sent(A).map(|d| (d.header().counter, d.bytes.len())).collect();
    assert!(sent.windows(2).all(|pair| pair[1].0 == pair[0].0 + 1), "{sent:?}");
    let changes = sent.windows(2).filter(|pair| pair[0].1 != pair[1].1).count();
    assert_eq!(changes, 2, "{sent:?}");
    net.run(ms(40));
    let delivered = net.delivered(B);
    assert_eq!(delivered.len(), packets.len());
    for port in [64, 576, 1400] {
        let of_flow = delivered.iter().filter(|packet| packet::src_port(packet) == port);
        assert!(
            of_flow.map(|packet| packet::id(packet)).is_sorted(),
            "flow {port}"
        );
    }
    net.finish();
}

#[test]
fn packets_of_one_flow_never_pass_each_other() {
    let mut net = Net::pair();
    net.connect();
    let packets: Vec<_> = (0..60)
        .map(|i| packet::between(A, B, i, [60, 1400, 300][i as usize % 3]))
        .collect();
    packets.iter().for_each(|packet| net.offer(A, packet));
    net.settle();
    net.run(ms(40));
    assert_eq!(net.delivered(B), packets);
    net.finish();
}
