//! Anything from anyone: nothing panics, nothing is answered, and everything has a counter.

use std::net::SocketAddr;

use patronus_crypto::Random;
use patronus_crypto::messages::{self, DataHeader, HEADER, Kind};
use patronus_engine::channel::HANDSHAKE_QUEUE;
use patronus_engine::stats::DropReason;

use crate::common::packet::{self, Builder};
use crate::common::{A, B, Datagram, Net, Seeded, Setup, ms, secs};

/// A datagram that looks like a message, more or less.
fn nonsense(rng: &mut Seeded, index: u32) -> Vec<u8> {
    let len = match rng.pick(0..6) {
        0 => [
            0, 1, 3, 4, 15, 16, 31, 32, 33, 63, 64, 65, 91, 92, 93, 147, 148, 149,
        ][rng.pick(0..18)],
        1 => rng.pick(0..65536),
        2 => rng.pick(1400..2100),
        _ => rng.pick(0..256),
    };
    let mut bytes = rng.bytes(len);
    if rng.chance(80) && len >= 4 {
        bytes[..4].copy_from_slice(&(rng.pick(0..6) as u32).to_le_bytes());
    }
    // Data for a session that exists.
    if rng.chance(40)
        && let Some(header) = bytes.first_chunk_mut::<HEADER>()
    {
        DataHeader {
            receiver: index,
            counter: rng.u32().into(),
        }
        .write(header);
    }
    bytes
}

#[test]
fn c65_c22_r01_datagrams_of_any_length_and_content() {
    let mut net = Net::pair();
    net.connect();
    net.run(secs(20));
    let sent = net.log.len();
    let index = net.sites[B].sessions[0].local_index;
    let mut rng = Seeded(65);
    let mut expected: Vec<(DropReason, u64)> = Vec::new();
    let mut handshakes = net.sites[B].counts.handshakes;
    for round in 0..3000 {
        let from: SocketAddr = (
            [203, 0, 113, rng.pick(1..255) as u8],
            1 + rng.pick(0..60000) as u16,
        )
            .into();
        let bytes = nonsense(&mut rng, index);
        let reason = match messages::kind(&bytes) {
            Err(_) => Some(DropReason::DecapNotWireguard),
            Ok(Kind::Data) if DataHeader::read(bytes.first_chunk().unwrap()).receiver == index => {
                Some(DropReason::DecapBadTag)
            }
            Ok(Kind::Data) => Some(DropReason::DecapUnknownIndex),
            Ok(_) => None,
        };
        match reason {
            Some(reason) => match expected.iter_mut().find(|(r, _)| *r == reason) {
                Some((_, n)) => *n += 1,
                None => expected.push((reason, 1)),
            },
            None => handshakes += 1,
        }
        let to = net.sites[B].addr;
        let datagram = Datagram {
            at: net.now,
            from,
            to,
            tos: rng.pick(0..256) as u8,
            bytes,
        };
        net.inject_on(B, 0, &datagram);
        if round % 40 == 39 {
            net.settle();
        }
    }
    net.settle();
    for (reason, count) in &expected {
        assert_eq!(net.sites[B].dropped(*reason), *count, "{reason:?}");
        assert!(*count > 50, "{reason:?} was tried");
    }
    assert_eq!(net.sites[B].drops().len(), expected.len());
    assert_eq!(net.sites[B].counts.handshakes, handshakes);
    assert_eq!(
        net.sites[B].core.device().counters().total(),
        handshakes - 1,
        "each is refused by name"
    );
    assert_eq!(net.log.len(), sent, "nothing is answered");
    assert_eq!(net.delivered(B).len(), 0);
    // The tunnel is as it was.
    net.send(A, &packet::between(A, B, 1, 100));
    net.run(ms(100));
    assert_eq!(net.delivered(B), [packet::between(A, B, 1, 100)]);
    net.finish();
}

/// Handshake messages faster than the slow path takes them: the rest is dropped, and data goes on.
#[test]
fn c68_a_flood_of_handshakes_fills_a_queue_and_stops_there() {
    let setup = Setup {
        ring: 8192,
        ..Setup::default()
    };
    let mut net = Net::pair_with(&setup);
    net.connect();
    let mut initiation = vec![0; 148];
    initiation[0] = 1;
    net.sites[B].slow_path_asleep = true;
    for batch in 0..5 {
        for n in 0..1000 {
            let (from, to) = (([203, 0, 113, batch], 1000 + n).into(), net.sites[B].addr);
            let datagram = Datagram {
                at: net.now,
                from,
                to,
                tos: 0,
                bytes: initiation.clone(),
            };
            net.inject_on(B, 0, &datagram);
        }
        net.settle();
    }
    assert_eq!(net.sites[B].inbox.handshakes.len(), HANDSHAKE_QUEUE);
    let lost = 5000 - HANDSHAKE_QUEUE as u64;
    assert_eq!(net.sites[B].drops(), [(DropReason::HandshakeQueueFull, lost)]);
    net.send(A, &packet::between(A, B, 1, 100));
    net.run(ms(100));
    assert_eq!(net.delivered(B), [packet::between(A, B, 1, 100)]);
    net.sites[B].slow_path_asleep = false;
    net.settle();
    assert_eq!(net.count(B, Kind::CookieReply), 0, "mac1 is wrong");
    net.finish();
}

/// An inner packet of any content from a peer that has the keys.
fn odd_packet(rng: &mut Seeded, src: usize, dst: usize) -> Vec<u8> {
    let len = rng.pick(0..200);
    let mut bytes = rng.bytes(len);
    if rng.chance(70) {
        // Nearly right: a packet with some bytes turned over.
        bytes = match rng.chance(50) {
            true => Builder::new(packet::v4(src), packet::v4(dst), rng.u32().into(), 20 + len).build(),
            false => Builder::new(packet::v6(src), packet::v6(dst), rng.u32().into(), 40 + len).build(),
        };
        for _ in 0..rng.pick(0..3) {
            let at = rng.pick(0..bytes.len().min(40));
            bytes[at] = rng.u32() as u8;
        }
        if rng.chance(20) {
            bytes.truncate(rng.pick(0..bytes.len()));
        }
    }
    bytes
}

#[test]
fn c66_inner_packets_of_any_content_from_a_peer() {
    let mut net = Net::pair();
    net.connect();
    let mut rng = Seeded(66);
    let from = net.sites[A].addr;
    let mut delivered = 0;
    for counter in 100..3100 {
        let inner = odd_packet(&mut rng, A, B);
        let datagram = net.forge(B, 0, counter, &inner);
        net.inject(B, from, &datagram);
        for packet in net.delivered(B) {
            delivered += 1;
            assert!(inner.len() >= packet.len());
            // Whole, from an address of A's.
            match packet[0] >> 4 {
                4 => {
                    assert_eq!(
                        usize::from(u16::from_be_bytes([packet[2], packet[3]])),
                        packet.len()
                    );
                    assert_eq!(packet[12..14], [10, A as u8]);
                }
                6 => {
                    assert_eq!(
                        usize::from(u16::from_be_bytes([packet[4], packet[5]])),
                        packet.len() - 40
                    );
                    assert_eq!(packet[8..12], [0xfd, 0, 0, A as u8]);
                }
                version => panic!("delivered a packet of version {version}"),
            }
        }
    }
    let site = &net.sites[B];
    let refused = [
        DropReason::DecapNotIp,
        DropReason::DecapBadLength,
        DropReason::DecapSource,
    ];
    assert!(
        refused.iter().all(|&reason| site.dropped(reason) > 20),
        "{:?}",
        site.drops()
    );
    let refused: u64 = refused.iter().map(|&reason| site.dropped(reason)).sum();
    assert_eq!(refused + delivered + site.keepalives_received(), 3000);
    assert_eq!(site.drops().len(), 3);
    net.finish();
}

#[test]
fn c66_packets_of_any_content_from_the_host() {
    for seed in 0..20 {
        let mut net = Net::pair();
        net.connect();
        let mut rng = Seeded(seed);
        for _ in 0..200 {
            let packet = odd_packet(&mut rng, A, B);
            net.send(A, &packet);
            if rng.chance(5) {
                net.run(ms(500));
            }
        }
        net.run(secs(1));
        let site = &net.sites[A];
        assert!(site.dropped(DropReason::EncapNotIp) > 0);
        for (reason, _) in site.drops() {
            assert!(
                matches!(reason, DropReason::EncapNotIp | DropReason::EncapNoPeer),
                "{reason:?}"
            );
        }
        net.finish();
    }
}

/// Without frames left, packets that come are not lost track of, and everything goes on when there are some again.
#[test]
fn no_frame_left_for_a_keepalive() {
    let mut net = Net::pair();
    let held: Vec<_> = {
        let mut frames = patronus_mem::FrameCache::new(net.arena);
        std::iter::from_fn(|| frames.alloc()).collect()
    };
    // The caches of the workers are empty as well: no confirming keepalive is sent.
    net.want_handshake(A);
    let initiation = net.flying.remove(0).1;
    drop(held);
    net.inject(B, initiation.from, &initiation.bytes);
    let response = net.flying.remove(0).1;
    assert_eq!(response.kind(), Kind::Response);
    let held: Vec<_> = {
        let mut frames = patronus_mem::FrameCache::new(net.arena);
        std::iter::from_fn(|| frames.alloc()).collect()
    };
    drop(held);
    net.inject(A, response.from, &response.bytes);
    net.run(ms(100));
    assert_eq!(net.sites[B].keepalives_received(), 1);
    net.finish();
}
