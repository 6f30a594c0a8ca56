//! Where a peer is believed to be: moved by authentic packets that are not copies, and by nothing else.

use std::net::SocketAddr;

use patronus_crypto::messages::{COOKIE_REPLY_LEN, Kind};
use patronus_engine::stats::DropReason;

use crate::common::{A, B, C, Net, Seeded, Setup, ms, packet, secs};

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Where B's next packet to A goes.
fn next_from_b(net: &mut Net) -> SocketAddr {
    net.send(B, &packet::between(B, A, 77, 64));
    net.sent(B).filter(|d| d.is_data()).last().unwrap().to
}

#[test]
fn c59_r10_data_and_keepalives_move_the_endpoint() {
    let mut net = Net::pair();
    net.connect();
    let peer = net.peer(B, A);
    let noticed = net.sites[B].noticed.endpoint;
    let roamed = addr("198.51.100.1:4000");
    let data = net.forge(B, 0, 10, &packet::between(A, B, 1, 100));
    net.inject(B, roamed, &data);
    assert_eq!(net.sites[B].endpoint(peer), Some(roamed), "the slow path knows");
    assert_eq!(next_from_b(&mut net), roamed, "and the worker");
    // Only the UDP port differs.
    let roamed = addr("198.51.100.1:4001");
    let keepalive = net.forge(B, 0, 11, &[]);
    net.inject(B, roamed, &keepalive);
    assert_eq!(next_from_b(&mut net), roamed);
    // To IPv6, in one burst with a packet from the old address that comes first.
    let roamed = addr("[2001:db8::5]:4001");
    let data = net.forge(B, 0, 12, &packet::between(A, B, 2, 100));
    net.inject(B, roamed, &data);
    assert_eq!(next_from_b(&mut net), roamed);
    assert_eq!(net.sites[B].noticed.endpoint - noticed, 3);
    // What is not for us inside is still authentic.
    let roamed = addr("198.51.100.3:1");
    let foreign = net.forge(B, 0, 13, &packet::between(B, A, 3, 100));
    net.inject(B, roamed, &foreign);
    assert_eq!(net.sites[B].drops(), [(DropReason::DecapSource, 1)]);
    assert_eq!(next_from_b(&mut net), roamed);
    net.finish();
}

#[test]
fn c59_r10_a_whole_site_that_moves_is_followed() {
    let mut net = Net::pair();
    net.connect();
    net.sites[A].addr = addr("198.51.100.9:999");
    net.send(A, &packet::between(A, B, 1, 100));
    net.run(ms(100));
    net.send(B, &packet::between(B, A, 2, 100));
    net.run(ms(100));
    assert_eq!(net.delivered(A), [packet::between(B, A, 2, 100)]);
    net.finish();
}

#[test]
fn c59_handshake_messages_move_the_endpoint() {
    let mut net = Net::pair();
    let peer_a = net.peer(B, A);
    let peer_b = net.peer(A, B);
    // A calls from an address that B did not know, and B answers from one that A did not know.
    net.sites[A].addr = addr("198.51.100.20:20");
    net.want_handshake(A);
    let initiation = net.flying.remove(0).1;
    net.inject(B, initiation.from, &initiation.bytes);
    assert_eq!(net.sites[B].endpoint(peer_a), Some(initiation.from));
    let response = net.flying.remove(0).1;
    assert_eq!((response.kind(), response.to), (Kind::Response, initiation.from));
    let elsewhere = addr("198.51.100.21:21");
    net.inject(A, elsewhere, &response.bytes);
    assert_eq!(net.sites[A].endpoint(peer_b), Some(elsewhere));
    assert_eq!(
        net.log.last().unwrap().to,
        elsewhere,
        "the confirming keepalive goes there"
    );
    net.finish();
}

#[test]
fn c59_c61_a_replayed_packet_moves_nothing() {
    let mut net = Net::pair();
    net.connect();
    net.send(A, &packet::between(A, B, 1, 100));
    net.run(ms(100));
    let (captured, peer) = (net.log.last().unwrap().clone(), net.peer(B, A));
    let before = net.sites[B].endpoint(peer);
    let attacker = addr("203.0.113.66:666");
    net.inject(B, attacker, &captured.bytes);
    assert_eq!(net.sites[B].drops(), [(DropReason::DecapReplay, 1)]);
    assert_eq!(net.sites[B].endpoint(peer), before);
    assert_eq!(next_from_b(&mut net), captured.from);
    // The copy and the original in one burst: the one that is first counts.
    let datagram = net.forge(B, 0, 500, &packet::between(A, B, 2, 100));
    for from in [captured.from, attacker] {
        let copy = crate::common::Datagram {
            from,
            bytes: datagram.clone(),
            ..captured.clone()
        };
        net.inject_on(B, 0, &copy);
    }
    net.settle();
    assert_eq!(next_from_b(&mut net), captured.from);
    net.finish();
}

#[test]
fn c59_c61_replayed_handshake_messages_move_nothing() {
    let mut net = Net::pair();
    net.send(A, &packet::between(A, B, 1, 100));
    net.run(secs(1));
    let attacker = addr("203.0.113.66:666");
    let handshakes: Vec<_> = net
        .log
        .iter()
        .filter(|d| d.kind() != Kind::Data)
        .cloned()
        .collect();
    assert_eq!(handshakes.len(), 2);
    for captured in &handshakes {
        let site = net.sites.iter().position(|s| s.addr == captured.to).unwrap();
        let peer = net.peer(site, 1 - site);
        let (before, sent) = (net.sites[site].endpoint(peer), net.log.len());
        net.inject(site, attacker, &captured.bytes);
        assert_eq!(net.sites[site].endpoint(peer), before, "{:?}", captured.kind());
        assert_eq!(net.log.len(), sent, "and are not answered");
    }
    net.finish();
}

#[test]
fn r11_a_cookie_reply_moves_nothing() {
    // B is always under load: A's first initiation is answered by a cookie.
    let mut setup = Setup::default();
    setup.limits.load_threshold = 0;
    let mut net = Net::empty();
    net.add_site(&Setup::default());
    net.add_site(&setup);
    net.introduce(A, B);
    net.introduce(B, A);
    net.send(A, &packet::between(A, B, 1, 100));
    net.run(ms(30));
    let reply = net.flying.remove(0).1;
    assert_eq!(
        (reply.kind(), reply.bytes.len()),
        (Kind::CookieReply, COOKIE_REPLY_LEN)
    );
    let peer = net.peer(A, B);
    let (before, deadline) = (
        net.sites[A].endpoint(peer),
        net.sites[A].core.device().next_deadline(),
    );
    net.inject(A, addr("203.0.113.66:666"), &reply.bytes);
    assert_eq!(net.sites[A].endpoint(peer), before);
    assert_eq!(net.sites[A].core.device().next_deadline(), deadline);
    // It was taken: the next try has a cookie and is answered by a response.
    net.run(secs(7));
    assert_eq!(net.count(B, Kind::Response), 1);
    assert_eq!(net.delivered(B), [packet::between(A, B, 1, 100)]);
    net.finish();
}

#[test]
fn c62_a_packet_of_one_peer_never_moves_anothers_endpoint() {
    let mut net = Net::star(2, &Setup::default());
    for branch in [B, C] {
        net.send(branch, &packet::between(branch, A, 0, 100));
    }
    net.run(secs(1));
    let peers = [net.peer(A, B), net.peer(A, C)];
    let mut expected = peers.map(|peer| net.sites[A].endpoint(peer));
    let mut rng = Seeded(5);
    for counter in 100..300 {
        // Packets of both peers from any address, some of them from the other peer's.
        let which = rng.pick(0..2);
        let from = match rng.pick(0..3) {
            0 => expected[1 - which].unwrap(),
            _ => SocketAddr::from(([198, 51, 100, rng.pick(1..5) as u8], 1000)),
        };
        let session = net.sites[A]
            .sessions
            .iter()
            .position(|s| s.peer == peers[which])
            .unwrap();
        let mut datagram = net.forge(A, session, counter, &packet::between(which + 1, A, counter, 100));
        if rng.chance(30) {
            datagram[30] ^= 1;
        } else {
            expected[which] = Some(from);
        }
        net.inject(A, from, &datagram);
        assert_eq!(peers.map(|peer| net.sites[A].endpoint(peer)), expected);
    }
    for (number, expected) in [B, C].into_iter().zip(expected) {
        net.send(A, &packet::between(A, number, 1, 100));
        assert_eq!(net.log.last().map(|d| d.to), expected);
    }
    net.finish();
}

/// The slow path and the worker agree about the endpoint whatever order their news cross in.
#[test]
fn c60_forgetting_the_source_address_keeps_the_endpoint() {
    let mut net = Net::pair();
    net.connect();
    let peer = net.peer(B, A);
    let (before, noticed) = (net.sites[B].endpoint(peer), net.sites[B].noticed.endpoint);
    assert!(
        net.sites[B].outer(peer).local().is_some(),
        "it answers from where it was called"
    );
    net.command(B, peer, patronus_engine::channel::Command::ClearSource(None));
    net.settle();
    assert_eq!(next_from_b(&mut net), before.unwrap());
    // The next packet of A tells it again.
    net.send(A, &packet::between(A, B, 1, 100));
    net.run(ms(100));
    assert!(net.sites[B].outer(peer).local().is_some());
    assert_eq!(net.sites[B].noticed.endpoint - noticed, 1);
    net.finish();
}
