//! What a site takes from a peer, and what it refuses: counters, lengths, source addresses, congestion marks.

use std::net::IpAddr;

use patronus_crypto::timeouts::REJECT_AFTER_MESSAGES;
use patronus_engine::stats::DropReason;

use crate::common::packet::{self, Builder, checksum};
use crate::common::{A, B, C, Datagram, Net, Seeded, Setup, ms, secs};

/// A session between A and B, and from where A's packets come.
fn connected() -> (Net, std::net::SocketAddr) {
    let mut net = Net::pair();
    net.connect();
    let from = net.sites[A].addr;
    (net, from)
}

#[test]
fn c31_a_copy_is_not_delivered_twice() {
    let (mut net, from) = connected();
    let inner = packet::between(A, B, 1, 100);
    net.send(A, &inner);
    let datagram = net.log.last().unwrap().bytes.clone();
    net.run(ms(100));
    net.inject(B, from, &datagram);
    assert_eq!(net.delivered(B), [inner]);
    assert_eq!(net.sites[B].dropped(DropReason::DecapReplay), 1);
    // Two copies in one burst.
    let inner = packet::between(A, B, 2, 100);
    let twice = net.forge(B, 0, 100, &inner);
    for _ in 0..2 {
        let to = net.sites[B].addr;
        let datagram = Datagram {
            at: net.now,
            from,
            to,
            tos: 0,
            bytes: twice.clone(),
        };
        net.inject_on(B, 0, &datagram);
    }
    net.settle();
    assert_eq!(net.delivered(B), [inner]);
    assert_eq!(net.sites[B].dropped(DropReason::DecapReplay), 2);
    net.finish();
}

#[test]
fn c32_r12_packets_up_to_8128_behind_the_newest_are_taken() {
    let (mut net, from) = connected();
    let inner = packet::between(A, B, 1, 100);
    let newest = 1_000_000;
    for (counter, taken) in [
        (newest, true),
        (newest - 8128, true),
        (newest - 8129, false),
        (newest - 1, true),
        (newest - 1, false),
        (newest - 8128, false),
        (0, false),
        (newest + 1, true),
        (newest - 8127, true),
    ] {
        let datagram = net.forge(B, 0, counter, &inner);
        net.inject(B, from, &datagram);
        assert_eq!(net.delivered(B).len(), usize::from(taken), "counter {counter}");
    }
    assert_eq!(net.sites[B].drops(), [(DropReason::DecapReplay, 4)]);
    net.finish();
}

#[test]
fn c32_the_window_moves_only_for_what_is_authentic() {
    let (mut net, from) = connected();
    let inner = packet::between(A, B, 1, 100);
    let mut forged = net.forge(B, 0, 1 << 40, &inner);
    *forged.last_mut().unwrap() ^= 1;
    net.inject(B, from, &forged);
    assert_eq!(net.sites[B].drops(), [(DropReason::DecapBadTag, 1)]);
    let datagram = net.forge(B, 0, 5, &inner);
    net.inject(B, from, &datagram);
    assert_eq!(net.delivered(B), std::slice::from_ref(&inner));
    // Nor does a forgery take the place of the packet whose counter it uses.
    let right = net.forge(B, 0, 6, &inner);
    let mut wrong = right.clone();
    wrong[20] ^= 0x80;
    net.inject(B, from, &wrong);
    net.inject(B, from, &right);
    assert_eq!(net.delivered(B), [inner]);
    net.finish();
}

#[test]
fn c33_r03_counters_at_the_hard_limit_are_refused() {
    let (mut net, from) = connected();
    let inner = packet::between(A, B, 1, 100);
    for counter in [
        REJECT_AFTER_MESSAGES,
        REJECT_AFTER_MESSAGES + 1,
        u64::MAX - 1,
        u64::MAX,
    ] {
        let datagram = net.forge(B, 0, counter, &inner);
        net.inject(B, from, &datagram);
    }
    assert_eq!(net.sites[B].drops(), [(DropReason::DecapExpired, 4)]);
    assert_eq!(net.delivered(B).len(), 0);
    let last = net.forge(B, 0, REJECT_AFTER_MESSAGES - 1, &inner);
    net.inject(B, from, &last);
    assert_eq!(net.delivered(B), [inner]);
    net.finish();
}

#[test]
fn c34_padding_of_any_length_and_content_is_cut_off() {
    let (mut net, from) = connected();
    let mut rng = Seeded(3);
    for counter in 10..300 {
        let inner = match rng.chance(50) {
            true => packet::between(A, B, counter, rng.pick(20..1400)),
            false => packet::between_v6(A, B, counter, rng.pick(40..1400)),
        };
        let mut text = inner.clone();
        let padding = rng.pick(0..64);
        text.extend(rng.bytes(padding));
        let datagram = net.forge(B, 0, counter, &text);
        net.inject(B, from, &datagram);
        assert_eq!(net.delivered(B), [inner]);
    }
    assert_eq!(net.sites[B].drops(), []);
    net.finish();
}

#[test]
fn c35_inner_lengths_that_do_not_fit_are_dropped_and_counted() {
    let (mut net, from) = connected();
    let v4 = packet::between(A, B, 1, 100);
    let v6 = packet::between_v6(A, B, 1, 100);
    let with = |packet: &[u8], at: usize, value: u8| {
        let mut packet = packet.to_vec();
        packet[at] = value;
        packet
    };
    let mut bad_length = vec![
        with(&v4, 3, 101), // longer than what arrived
        with(&v4, 2, 0xff),
        with(&v4, 3, 19),   // shorter than a header
        with(&v4, 0, 0x44), // a header of 16 bytes
        with(&v4, 0, 0x4f), // a header that is longer than the packet says
        with(&v6, 5, 61),
        with(&v6, 4, 1),
        v4[..19].to_vec(),
        v6[..39].to_vec(),
        v4[..1].to_vec(),
    ];
    bad_length[4][3] = 40;
    let not_ip: Vec<Vec<u8>> = (0..16u8)
        .filter(|version| ![4, 6].contains(version))
        .map(|version| with(&v4, 0, version << 4 | 5))
        .chain([vec![0], vec![0; 16], vec![0; 1420]])
        .collect();
    let (lengths, kinds) = (bad_length.len() as u64, not_ip.len() as u64);
    let received = net.sites[B]
        .core
        .device()
        .traffic(net.peer(B, A))
        .received_bytes();
    let mut bytes = 0;
    for (counter, text) in bad_length.iter().chain(&not_ip).enumerate() {
        let datagram = net.forge(B, 0, 10 + counter as u64, text);
        bytes += datagram.len() as u64;
        net.inject(B, from, &datagram);
    }
    assert_eq!(net.delivered(B), Vec::<Vec<u8>>::new());
    assert_eq!(
        net.sites[B].drops(),
        [
            (DropReason::DecapNotIp, kinds),
            (DropReason::DecapBadLength, lengths)
        ]
    );
    // They came from the peer all the same.
    let traffic = net.sites[B].core.device().traffic(net.peer(B, A));
    assert_eq!(traffic.received_bytes() - received, bytes);
    net.finish();
}

/// A is in the middle; B and C are its peers with networks of their own. Each sends packets with all kinds of sources.
#[test]
fn c37_r02_a_source_must_belong_to_the_peer_that_sent_it() {
    let mut net = Net::star(2, &Setup::default());
    let (b, c) = (net.peer(A, B), net.peer(A, C));
    // C has a piece of B's network, and B a piece of that piece; C has everything that nobody else has.
    net.allow(A, c, IpAddr::from([10, 1, 128, 0]), 24);
    net.allow(A, b, IpAddr::from([10, 1, 128, 64]), 26);
    net.allow(A, c, IpAddr::from([0, 0, 0, 0]), 0);
    net.allow(A, c, IpAddr::from([0xfd00, 1, 0x8000, 0, 0, 0, 0, 0]), 48);
    for branch in [B, C] {
        net.send(branch, &packet::between(branch, A, 0, 100));
    }
    net.run(secs(1));
    net.delivered(A);
    let session = |net: &Net, peer| net.sites[A].sessions.iter().position(|s| s.peer == peer).unwrap();
    let v4 = |a, b, c, d| IpAddr::from([a, b, c, d]);
    let v6 = |third| IpAddr::from([0xfd00, 1, third, 0, 0, 0, 0, 9]);
    let cases = [
        (v4(10, 1, 0, 1), b),
        (v4(10, 1, 255, 255), b),
        (v4(10, 1, 127, 255), b),
        (v4(10, 1, 128, 0), c),
        (v4(10, 1, 128, 63), c),
        (v4(10, 1, 128, 64), b),
        (v4(10, 1, 128, 127), b),
        (v4(10, 1, 128, 128), c),
        (v4(10, 1, 129, 0), b),
        (v4(10, 2, 0, 1), c),
        (v4(8, 8, 8, 8), c),
        (v4(0, 0, 0, 0), c),
        (v6(0), b),
        (v6(0x8000), c),
        (v6(0x8001), b),
    ];
    let mut refused = 0;
    for (counter, (src, owner)) in (100..).zip(cases) {
        for (sender, from) in [(b, B), (c, C)] {
            let dst = if src.is_ipv4() {
                packet::v4(A)
            } else {
                packet::v6(A)
            };
            let inner = Builder::new(src, dst, counter, 100).build();
            let session = session(&net, sender);
            let datagram = net.forge(A, session, counter, &inner);
            let from = net.sites[from].addr;
            net.inject(A, from, &datagram);
            let delivered = net.delivered(A);
            if sender == owner {
                assert_eq!(delivered, [inner], "{src} from its owner");
            } else {
                assert_eq!(delivered, Vec::<Vec<u8>>::new(), "{src} from somebody else");
                refused += 1;
            }
        }
    }
    // Nobody's address is nobody's, also of IPv6.
    let inner = Builder::new(
        IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]),
        packet::v6(A),
        1,
        100,
    )
    .build();
    let datagram = net.forge(A, session(&net, b), 1000, &inner);
    let from = net.sites[B].addr;
    net.inject(A, from, &datagram);
    assert_eq!(net.sites[A].drops(), [(DropReason::DecapSource, refused + 1)]);
    net.finish();
}

#[test]
fn c39_a_prefix_that_moves_is_obeyed_from_the_next_packet_on() {
    let mut net = Net::star(2, &Setup::default());
    let c = net.peer(A, C);
    for branch in [B, C] {
        net.send(branch, &packet::between(branch, A, 0, 100));
    }
    net.run(secs(1));
    net.delivered(A);
    net.send(A, &packet::between(A, B, 1, 100));
    net.run(ms(100));
    assert_eq!((net.delivered(B).len(), net.delivered(C).len()), (1, 0));
    net.allow(A, c, IpAddr::from([10, 1, 0, 0]), 16);
    net.send(A, &packet::between(A, B, 2, 100));
    net.send(B, &packet::between(B, A, 3, 100));
    net.run(ms(100));
    assert_eq!((net.delivered(B).len(), net.delivered(C).len()), (0, 1));
    assert_eq!(net.sites[A].drops(), [(DropReason::DecapSource, 1)]);
    assert_eq!(net.delivered(A).len(), 0);
    net.finish();
}

/// RFC 6040, figure 4: inner and outer ECN field, and what the inner one becomes.
const COMBINED: [(u8, [Option<u8>; 4]); 4] = [
    (0, [Some(0), Some(0), Some(0), None]),
    (2, [Some(2), Some(2), Some(1), Some(3)]),
    (1, [Some(1), Some(1), Some(1), Some(3)]),
    (3, [Some(3), Some(3), Some(3), Some(3)]),
];

#[test]
fn c42_congestion_marks_are_combined_or_tell_by_a_loss() {
    let (mut net, from) = connected();
    let to = net.sites[B].addr;
    let mut counter = 10;
    for (inner_ecn, row) in COMBINED {
        for (outer_ecn, expected) in [0, 2, 1, 3].into_iter().zip(row) {
            for v6 in [false, true] {
                counter += 1;
                let (src, dst) = match v6 {
                    true => (packet::v6(A), packet::v6(B)),
                    false => (packet::v4(A), packet::v4(B)),
                };
                let packet = |ecn| {
                    let tos = 0xb8 | ecn;
                    Builder {
                        tos,
                        ..Builder::new(src, dst, 7, 120)
                    }
                    .build()
                };
                let datagram = Datagram {
                    at: net.now,
                    from,
                    to,
                    // The outer DSCP says nothing.
                    tos: 0x48 | outer_ecn,
                    bytes: net.forge(B, 0, counter, &packet(inner_ecn)),
                };
                net.inject_on(B, 0, &datagram);
                net.settle();
                let expected: Vec<_> = expected.map(packet).into_iter().collect();
                let delivered = net.delivered(B);
                assert_eq!(
                    delivered, expected,
                    "outer {outer_ecn:02b}, inner {inner_ecn:02b}"
                );
                for packet in delivered.iter().filter(|_| !v6) {
                    assert_eq!(checksum(&[&packet[..20]]), 0, "the header's checksum is right");
                }
            }
        }
    }
    assert_eq!(net.sites[B].drops(), [(DropReason::DecapCongestion, 2)]);
    net.finish();
}

/// Packets of two peers in one burst, in runs and one by one: each peer's bytes are its own.
#[test]
fn c81_bytes_of_a_mixed_burst_are_counted_for_their_senders() {
    let mut net = Net::star(2, &Setup::default());
    for branch in [B, C] {
        net.send(branch, &packet::between(branch, A, 0, 100));
    }
    net.run(secs(1));
    let peers = [net.peer(A, B), net.peer(A, C)];
    let received = |net: &Net| peers.map(|peer| net.sites[A].core.device().traffic(peer).received_bytes());
    let mut expected = received(&net);
    for (counter, which) in (100..).zip([0, 0, 1, 0, 1, 1, 1, 0]) {
        let session = net.sites[A].sessions.iter().position(|s| s.peer == peers[which]);
        let inner = packet::between(which + 1, A, counter, 100 + counter as usize);
        let datagram = Datagram {
            at: net.now,
            from: net.sites[which + 1].addr,
            to: net.sites[A].addr,
            tos: 0,
            bytes: net.forge(A, session.unwrap(), counter, &inner),
        };
        expected[which] += datagram.bytes.len() as u64;
        net.inject_on(A, 0, &datagram);
    }
    net.settle();
    assert_eq!(received(&net), expected);
    net.finish();
}

/// What an attacker without the keys can send changes nothing and is answered by nothing.
#[test]
fn c41_c61_unknown_index_or_wrong_tag_change_nothing() {
    let (mut net, _) = connected();
    net.run(secs(20));
    let stranger = "203.0.113.9:7".parse().unwrap();
    let inner = packet::between(A, B, 1, 100);
    let peer = net.peer(B, A);
    let state = |net: &Net| {
        let site = &net.sites[B];
        (
            site.endpoint(peer),
            site.core.device().traffic(peer).received_bytes(),
            site.core.device().next_deadline(),
            site.noticed,
            site.core.device().indices_in_use(),
        )
    };
    let (before, sent) = (state(&net), net.log.len());

    let good = net.forge(B, 0, 50, &inner);
    for bit in 0..8 * 4 {
        // One bit of the index.
        let mut unknown = good.clone();
        unknown[4 + bit / 8] ^= 1 << (bit % 8);
        net.inject(B, stranger, &unknown);
    }
    assert_eq!(net.sites[B].drops(), [(DropReason::DecapUnknownIndex, 32)]);
    for at in 16..good.len() {
        let mut altered = good.clone();
        altered[at] ^= 0x10;
        net.inject(B, stranger, &altered);
    }
    // Cut short, drawn out, under another counter.
    net.inject(B, stranger, &good[..good.len() - 1]);
    net.inject(B, stranger, &[&good[..], &[0]].concat());
    net.inject(B, stranger, &good[..32]);
    let mut other = good.clone();
    other[8] ^= 1;
    net.inject(B, stranger, &other);
    let wrong = (good.len() - 16) as u64 + 4;
    assert_eq!(net.sites[B].dropped(DropReason::DecapBadTag), wrong);
    net.run(secs(60));
    assert_eq!(net.log.len(), sent, "no reply, now or later");
    assert_eq!(state(&net), before);
    assert_eq!(net.delivered(B), Vec::<Vec<u8>>::new());

    // The packet itself is still good, and does all that.
    net.inject(B, stranger, &good);
    assert_eq!(net.delivered(B), [inner]);
    assert_eq!(net.sites[B].endpoint(peer), Some(stranger));
    net.finish();
}
