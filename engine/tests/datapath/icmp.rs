//! Packets that no peer takes: dropped, and where somebody can use the news, answered by ICMP.

use std::net::IpAddr;

use patronus_engine::stats::DropReason;

use crate::common::packet::{self, Builder, checksum};
use crate::common::{A, B, Net, Setup, ms, secs};

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

fn nowhere_v4() -> IpAddr {
    IpAddr::from([203, 0, 113, 1])
}

fn nowhere_v6() -> IpAddr {
    "2001:db8::1".parse().unwrap()
}

fn to_nowhere(len: usize) -> Builder {
    Builder::new(packet::v4(A), nowhere_v4(), 1, len)
}

fn to_nowhere_v6(len: usize) -> Builder {
    Builder::new(packet::v6(A), nowhere_v6(), 1, len)
}

/// One site without peers.
fn alone() -> Net {
    let mut net = Net::empty();
    net.add_site(&Setup::default());
    net
}

#[test]
fn c38_no_peer_is_answered_by_host_unreachable() {
    for len in [20, 28, 100, 548, 549, 1420] {
        let mut net = alone();
        let original = to_nowhere(len).build();
        net.send(A, &original);
        let delivered = net.delivered(A);
        let [error] = delivered.as_slice() else {
            panic!("one error, not {}", delivered.len())
        };
        let quoted = len.min(548);
        assert_eq!(error.len(), 28 + quoted);
        assert_eq!(error[0], 0x45);
        assert_eq!(usize::from(u16::from_be_bytes([error[2], error[3]])), error.len());
        assert_eq!((error[8], error[9]), (64, ICMP));
        assert_eq!(checksum(&[&error[..20]]), 0);
        assert_eq!(error[12..16], original[16..20], "from what was called");
        assert_eq!(error[16..20], original[12..16], "to who called");
        assert_eq!(error[20..22], [3, 1], "host unreachable");
        assert_eq!(error[24..28], [0; 4]);
        assert_eq!(checksum(&[&error[20..]]), 0);
        assert_eq!(error[28..], original[..quoted]);
        assert_eq!(net.sites[A].drops(), [(DropReason::EncapNoPeer, 1)]);
        net.finish();
    }
}

#[test]
fn c38_no_peer_is_answered_by_address_unreachable() {
    for len in [40, 48, 549, 1280] {
        let mut net = alone();
        let original = to_nowhere_v6(len).build();
        net.send(A, &original);
        let delivered = net.delivered(A);
        let [error] = delivered.as_slice() else {
            panic!("one error, not {}", delivered.len())
        };
        let quoted = len.min(548);
        assert_eq!(error.len(), 48 + quoted);
        assert!(error.len() <= 1280);
        assert_eq!(error[..4], [0x60, 0, 0, 0]);
        assert_eq!(usize::from(u16::from_be_bytes([error[4], error[5]])), 8 + quoted);
        assert_eq!((error[6], error[7]), (ICMPV6, 64));
        assert_eq!(error[8..24], original[24..40]);
        assert_eq!(error[24..40], original[8..24]);
        assert_eq!(error[40..42], [1, 3], "address unreachable");
        assert_eq!(error[44..48], [0; 4]);
        let length = ((error.len() - 40) as u32).to_be_bytes();
        let pseudo = [&error[8..40], &length, &[0, 0, 0, ICMPV6], &error[40..]];
        assert_eq!(checksum(&pseudo), 0);
        assert_eq!(error[48..], original[..quoted]);
        net.finish();
    }
}

#[test]
fn c38_a_peer_without_an_endpoint_is_unreachable_until_it_calls() {
    let mut net = Net::empty();
    net.add_site(&Setup::default());
    net.add_site(&Setup::default());
    let key = net.key(B);
    let peer = net.add_peer(A, key, None);
    net.allow(A, peer, IpAddr::from([10, 1, 0, 0]), 16);
    net.introduce(B, A);
    net.send(A, &packet::between(A, B, 1, 100));
    let error = net.delivered(A).pop().expect("an error");
    assert_eq!((error[9], &error[20..22]), (ICMP, &[3, 1][..]));
    assert_eq!(net.sites[A].drops(), [(DropReason::EncapNoEndpoint, 1)]);
    assert_eq!(net.sites[A].staged(), 0);
    net.run(secs(1));
    assert_eq!(net.log.len(), 0, "nobody to call");
    net.send(B, &packet::between(B, A, 2, 100));
    net.run(ms(100));
    net.send(A, &packet::between(A, B, 3, 100));
    net.run(ms(100));
    assert_eq!(net.delivered(B), [packet::between(A, B, 3, 100)]);
    net.finish();
}

#[test]
fn c38_what_deserves_no_error_gets_none() {
    let v4 = |edit: &dyn Fn(&mut Builder)| {
        let mut builder = to_nowhere(100);
        edit(&mut builder);
        builder.build()
    };
    let v6 = |edit: &dyn Fn(&mut Builder)| {
        let mut builder = to_nowhere_v6(100);
        edit(&mut builder);
        builder.build()
    };
    let with = |mut packet: Vec<u8>, at: usize, value: u8| {
        packet[at] = value;
        packet
    };
    let icmp = v4(&|b| b.protocol = ICMP);
    let icmpv6 = v6(&|b| b.protocol = ICMPV6);
    let broken_chain = with(to_nowhere_v6(48).build(), 6, 0);
    let silent = [
        // ICMP errors, and ICMP that is not an echo request.
        with(icmp.clone(), 20, 3),
        with(icmp.clone(), 20, 0),
        with(icmpv6.clone(), 40, 1),
        with(icmpv6.clone(), 40, 129),
        // Too short to tell what it is.
        with(to_nowhere(20).build(), 9, ICMP),
        // Later fragments.
        with(v4(&|_| ()), 7, 10),
        with(v4(&|_| ()), 6, 0x1f),
        // To and from groups, to everybody, from nobody.
        v4(&|b| b.dst = IpAddr::from([224, 0, 0, 5])),
        v4(&|b| b.dst = IpAddr::from([255; 4])),
        v4(&|b| b.src = IpAddr::from([224, 0, 0, 5])),
        v4(&|b| b.src = IpAddr::from([0; 4])),
        v4(&|b| b.dst = IpAddr::from([0; 4])),
        v6(&|b| b.dst = "ff02::1".parse().unwrap()),
        v6(&|b| b.src = "::".parse().unwrap()),
        v6(&|b| b.src = "ff02::1".parse().unwrap()),
        with(broken_chain, 41, 0xff),
    ];
    for packet in &silent {
        let mut net = alone();
        net.send(A, packet);
        assert_eq!(net.delivered(A), Vec::<Vec<u8>>::new(), "{packet:02x?}");
        assert_eq!(net.sites[A].drops(), [(DropReason::EncapNoPeer, 1)]);
        net.finish();
    }
    let answered = [
        with(icmp, 20, 8),
        with(icmpv6, 40, 128),
        v4(&|b| b.protocol = 6),
        v6(&|b| b.protocol = 6),
        // A first fragment.
        with(v4(&|_| ()), 6, 0x20),
    ];
    for packet in &answered {
        let mut net = alone();
        net.send(A, packet);
        assert_eq!(net.delivered(A).len(), 1, "{packet:02x?}");
        net.finish();
    }
}

#[test]
fn c38_what_is_not_ip_is_dropped_without_a_word() {
    let mut net = Net::pair();
    let mut cases: Vec<Vec<u8>> = vec![vec![], vec![0x45], vec![0x60; 39], vec![0xff; 1500]];
    let right = packet::between(A, B, 1, 100);
    for (at, value) in [(0, 0x55), (0, 0x44), (3, 101), (3, 19)] {
        let mut wrong = right.clone();
        wrong[at] = value;
        cases.push(wrong);
    }
    for packet in &cases {
        net.send(A, packet);
    }
    assert_eq!(
        net.sites[A].drops(),
        [(DropReason::EncapNotIp, cases.len() as u64)]
    );
    assert_eq!((net.delivered(A).len(), net.log.len()), (0, 0));
    net.finish();
}

#[test]
fn c38_errors_are_limited_to_100_a_second() {
    let mut net = alone();
    let original = to_nowhere(100).build();
    let burst = |net: &mut Net, n: usize| {
        for _ in 0..n {
            net.offer(A, &original);
        }
        net.settle();
        net.delivered(A).len()
    };
    assert_eq!(burst(&mut net, 500), 20);
    assert_eq!(burst(&mut net, 10), 0);
    net.advance(ms(9));
    assert_eq!(burst(&mut net, 10), 0);
    net.advance(ms(1));
    assert_eq!(burst(&mut net, 10), 1);
    net.advance(ms(55));
    assert_eq!(burst(&mut net, 10), 5);
    net.advance(secs(1000));
    assert_eq!(burst(&mut net, 500), 20);
    // A second of packets every millisecond.
    let mut answered = 0;
    for _ in 0..1000 {
        net.advance(ms(1));
        answered += burst(&mut net, 1);
    }
    assert_eq!(answered, 100);
    assert_eq!(net.sites[A].icmp_sent(), 20 + 1 + 5 + 20 + 100);
    net.finish();
}

#[test]
fn the_more_specific_of_two_peers_gets_the_packet() {
    let mut net = Net::star(2, &Setup::default());
    let c = net.peer(A, 2);
    net.allow(A, c, IpAddr::from([10, 1, 7, 0]), 24);
    net.allow(A, c, IpAddr::from([0; 4]), 0);
    for (dst, branch) in [
        ([10, 1, 6, 255], 1),
        ([10, 1, 7, 0], 2),
        ([10, 1, 7, 255], 2),
        ([10, 1, 8, 0], 1),
        ([10, 2, 0, 0], 2),
        ([203, 0, 113, 1], 2),
    ] {
        net.run(secs(1));
        net.log.clear();
        net.send(A, &Builder::new(packet::v4(A), IpAddr::from(dst), 1, 100).build());
        net.run(ms(100));
        let to = net
            .sent(A)
            .filter(|d| d.is_data())
            .map(|d| d.to)
            .collect::<Vec<_>>();
        assert_eq!(to, [net.sites[branch].addr], "{dst:?}");
    }
    net.finish();
}
