//! MACs, cookies and load (conformance items 21 to 30 and 68).

mod common;

use std::net::SocketAddr;

use common::*;
use patronus_crypto::messages::{self, COOKIE_REPLY_LEN, INITIATION_LEN, Kind, RESPONSE_LEN};
use patronus_crypto::{Limits, Refusal, x25519};

/// A site B under load, a valid initiation of A, and where it comes from.
fn loaded() -> (Net, Vec<u8>, SocketAddr) {
    let mut net = Net::pair();
    let message = net.captured_initiation(A);
    let from = net.sites[A].addr;
    net.sites[B].queue_len = 512;
    (net, message, from)
}

#[test]
fn c21_mac1_checked_first() {
    let mut net = Net::pair();
    let message = net.captured_initiation(A);
    let from = net.sites[A].addr;
    let before = net.device(B).dh_operations();
    for bit in (4 * 8)..(132 * 8) {
        let mut forged = message.clone();
        forged[bit / 8] ^= 1 << (bit % 8);
        net.receive(B, from, &forged);
    }
    assert_eq!(net.refused(B, Refusal::Mac1), 128 * 8);
    assert_eq!(net.device(B).dh_operations(), before);
    assert!(net.log.is_empty());
}

#[test]
fn c22_without_a_valid_mac1_there_is_no_answer_whatever_the_load() {
    for queue_len in [0, 511, 512, 100_000] {
        let mut net = Net::pair();
        net.sites[B].queue_len = queue_len;
        let from = net.sites[A].addr;
        let mut message = net.captured_initiation(A);
        message[120] ^= 1;
        net.receive(B, from, &message);
        let mut response = vec![0; RESPONSE_LEN];
        response[0] = 2;
        net.receive(B, from, &response);
        assert_eq!(net.refused(B, Refusal::Mac1), 2);
        assert!(net.log.is_empty());
    }
}

#[test]
fn c23_mac2_is_ignored_without_load() {
    let mut net = Net::pair();
    let mut message = net.captured_initiation(A);
    let from = net.sites[A].addr;
    message[INITIATION_LEN - 16..].fill(0x77);
    net.receive(B, from, &message);
    assert_eq!(net.count(B, Kind::Response), 1);
}

#[test]
fn c23_under_load_a_message_without_cookie_costs_no_dh() {
    let (mut net, message, from) = loaded();
    let before = net.device(B).dh_operations();
    net.receive(B, from, &message);
    let mut wrong = message.clone();
    wrong[INITIATION_LEN - 1] = 1;
    net.receive(B, from, &wrong);
    assert_eq!(net.device(B).dh_operations(), before);
    assert_eq!(net.refused(B, Refusal::CookieRequired), 2);
    let kinds: Vec<Kind> = net.log.iter().map(|datagram| datagram.kind()).collect();
    assert_eq!(kinds, [Kind::CookieReply, Kind::CookieReply]);
    assert_eq!(net.log[0].bytes.len(), COOKIE_REPLY_LEN);
    assert_eq!(net.log[0].to, from);
    // It answers the sender index of what it answers.
    assert_eq!(net.log[0].bytes[4..8], message[4..8]);
}

#[test]
fn c23_under_load_responses_need_a_cookie_too() {
    let mut net = Net::pair();
    net.sites[A].queue_len = 512;
    net.data(A, b"x");
    net.run(secs(1));
    assert_eq!(net.refused(A, Refusal::CookieRequired), 1);
    assert_eq!(net.count(A, Kind::CookieReply), 1);
    // With the cookie, B's next response passes.
    net.run(secs(6));
    assert_eq!(net.link(B).received, [b"x"]);
}

/// R6 and R7: the load rule is about the queue, not about how many handshakes there were.
#[test]
fn c24_load_begins_at_an_eighth_of_the_queue_and_lasts_a_second() {
    let mut net = Net::pair();
    let from = net.sites[A].addr;
    let mut cookies = 0;
    let mut probe = |net: &mut Net, queue_len: usize, under_load: bool| {
        let message = net.captured_initiation(A);
        net.sites[B].queue_len = queue_len;
        net.receive(B, from, &message);
        cookies += u64::from(under_load);
        assert_eq!(
            net.refused(B, Refusal::CookieRequired),
            cookies,
            "queue of {queue_len}"
        );
    };
    probe(&mut net, 511, false);
    net.wait(secs(6));
    probe(&mut net, 512, true);
    net.wait(secs(6));
    probe(&mut net, 0, false);
    net.wait(secs(6));

    // A second after the queue was last long, it is over; a wrong message keeps the queue as long as a right one.
    let message = net.captured_initiation(A);
    net.sites[B].queue_len = 512;
    net.receive(B, from, &message);
    net.sites[B].queue_len = 0;
    net.wait(ms(999));
    net.receive(B, from, &message);
    assert_eq!(net.refused(B, Refusal::CookieRequired), cookies + 2);
    net.wait(ms(1));
    net.receive(B, from, &message);
    assert_eq!(net.refused(B, Refusal::CookieRequired), cookies + 2);
}

#[test]
fn r07_any_number_of_handshakes_is_no_load() {
    let mut net = Net::pair();
    let from = net.sites[A].addr;
    for _ in 0..300 {
        net.wait(secs(6));
        let message = net.captured_initiation(A);
        net.receive(B, from, &message);
    }
    assert_eq!(net.refused(B, Refusal::CookieRequired), 0);
    assert_eq!(net.count(B, Kind::Response), 300);
}

/// A's initiation with the cookie that B gave out for it.
fn with_cookie(net: &mut Net) -> Vec<u8> {
    let from = net.sites[A].addr;
    let message = net.captured_initiation(A);
    net.receive(B, from, &message);
    let reply = net.log.pop().unwrap();
    assert_eq!(reply.kind(), Kind::CookieReply);
    net.flying.clear();
    net.receive(A, reply.from, &reply.bytes);
    net.wait(secs(5));
    net.captured_initiation(A)
}

/// R5: the cookie was the address's alone.
#[test]
fn c25_r05_cookie_mac_covers_address_and_port() {
    let mut net = Net::pair();
    net.sites[B].queue_len = 512;
    let message = with_cookie(&mut net);
    let right = net.sites[A].addr;
    let mut elsewhere: Vec<SocketAddr> = vec!["192.0.2.77:51820".parse().unwrap()];
    elsewhere.extend([51819, 51821, 0x6cca].map(|port| SocketAddr::new(right.ip(), port)));
    elsewhere.push("[2001:db8::1]:51820".parse().unwrap());
    for (n, from) in (2..).zip(elsewhere) {
        net.receive(B, from, &message);
        assert_eq!(net.refused(B, Refusal::CookieRequired), n, "{from}");
    }
    net.receive(B, right, &message);
    assert_eq!(net.count(B, Kind::Response), 1);
}

#[test]
fn c25_the_secret_changes_every_120_seconds() {
    for (age, accepted) in [(114, 1), (115, 0)] {
        // The secret is as old as the cookie here, plus the 5 s that pass in `with_cookie`.
        let mut net = Net::pair();
        net.sites[B].queue_len = 512;
        let message = with_cookie(&mut net);
        let from = net.sites[A].addr;
        net.wait(secs(age));
        net.receive(B, from, &message);
        assert_eq!(net.count(B, Kind::Response), accepted, "{age} s");
    }
}

#[test]
fn c25_a_cookie_is_used_for_115_seconds() {
    for (age, used) in [(109, true), (110, false)] {
        let mut net = Net::pair();
        net.sites[B].queue_len = 512;
        with_cookie(&mut net);
        net.wait(secs(age));
        let message = net.captured_initiation(A);
        assert_eq!(message[INITIATION_LEN - 16..] != [0; 16], used, "{} s", age + 5);
    }
}

/// Everything about the reply, checked against the paper by other means.
#[test]
fn c26_the_reply_is_sealed_for_who_sent_just_this_message() {
    use blake2::{Blake2s256, Digest};
    use chacha20poly1305::{AeadInOut, KeyInit, XChaCha20Poly1305};
    let (mut net, message, from) = loaded();
    net.receive(B, from, &message);
    net.receive(B, from, &message);
    let public = net.device(B).public_key().unwrap();
    let key = Blake2s256::new_with_prefix(b"cookie--")
        .chain_update(public.0)
        .finalize();
    let cipher = XChaCha20Poly1305::new(&key);
    let open = |reply: &[u8], aad: &[u8]| {
        let nonce: [u8; 24] = reply[8..32].try_into().unwrap();
        let tag: [u8; 16] = reply[48..].try_into().unwrap();
        let mut cookie: [u8; 16] = reply[32..48].try_into().unwrap();
        let opened =
            cipher.decrypt_inout_detached(&nonce.into(), aad, cookie.as_mut_slice().into(), &tag.into());
        opened.ok().map(|()| cookie)
    };
    let mac1 = &message[116..132];
    let (first, second) = (&net.log[0].bytes, &net.log[1].bytes);
    let cookie = open(first, mac1).expect("sealed as the paper says");
    assert_eq!(open(second, mac1), Some(cookie));
    assert_ne!(first[8..32], second[8..32], "a nonce of its own each time");
    assert_eq!(open(first, &[0; 16]), None, "bound to the message's mac1");
}

#[test]
fn c27_only_the_first_reply_to_our_last_message_counts() {
    let (mut net, _, from) = loaded();
    net.wait(secs(6));
    let first = net.captured_initiation(A);
    net.receive(B, from, &first);
    let stale = net.log.pop().unwrap();
    net.flying.clear();
    net.wait(secs(6));
    let second = net.captured_initiation(A);
    net.receive(B, from, &second);
    let reply = net.log.pop().unwrap();
    net.flying.clear();

    let mut elsewhere = reply.bytes.clone();
    elsewhere[4] ^= 1;
    net.receive(A, reply.from, &elsewhere);
    assert_eq!(net.refused(A, Refusal::CookieIndex), 1);
    for at in [8, 32, 63] {
        let mut forged = reply.bytes.clone();
        forged[at] ^= 1;
        net.receive(A, reply.from, &forged);
    }
    assert_eq!(net.refused(A, Refusal::CookieTag), 3);
    // The answer to the message before the last, under the last one's index.
    let mut stale = stale.bytes.clone();
    stale[4..8].copy_from_slice(&reply.bytes[4..8]);
    net.receive(A, reply.from, &stale);
    assert_eq!(net.refused(A, Refusal::CookieTag), 4);

    net.receive(A, reply.from, &reply.bytes);
    assert_eq!(net.device(A).counters().total(), 5);
    net.receive(A, reply.from, &reply.bytes);
    assert_eq!(net.refused(A, Refusal::CookieUnexpected), 1);
}

/// R11 and R18: a cookie reply moved the endpoint and counted as a packet received.
#[test]
fn c27_r11_r18_a_cookie_moves_no_endpoint_and_no_timer() {
    let mut net = Net::pair();
    net.connect();
    let endpoint = net.link(A).endpoint;
    net.run(secs(125));
    net.data(A, b"rekeys");
    let message = net.sent(A, Kind::Initiation).pop().unwrap().bytes;
    net.flying.clear();
    net.sites[B].queue_len = 512;
    let from = net.sites[A].addr;
    net.receive(B, from, &message);
    let reply = net.sent(B, Kind::CookieReply).pop().unwrap();
    net.flying.clear();

    let peer = net.link(A).peer;
    let traffic = net.device(A).traffic(peer).clone();
    let bytes = traffic.received_bytes();
    net.run(ms(10));
    let deadline = net.device(A).next_deadline();
    let moved = net.link(A).moved;
    net.receive(A, "203.0.113.5:5".parse().unwrap(), &reply.bytes);
    assert_eq!(net.refused(A, Refusal::CookieTag), 0);
    assert_eq!((net.link(A).endpoint, net.link(A).moved), (endpoint, moved));
    assert_eq!(net.device(A).next_deadline(), deadline);
    assert_eq!(traffic.received_bytes(), bytes);
}

#[test]
fn c28_a_valid_cookie_buys_twenty_handshakes_a_second() {
    // Peers behind one address, so that no peer's own limit is in the way.
    let mut net = Net::empty();
    let hub = net.add_site(1, Limits::default(), x25519::default());
    let mut branches = Vec::new();
    for seed in 0..40 {
        let branch = net.add_site(100 + seed, Limits::default(), x25519::default());
        net.introduce(branch, hub);
        net.introduce(hub, branch);
        branches.push(branch);
    }
    let from: SocketAddr = "198.51.100.1:1000".parse().unwrap();
    net.sites[hub].queue_len = 512;
    let mut messages = Vec::new();
    for &branch in &branches {
        let message = net.captured_initiation(branch);
        net.receive(hub, from, &message);
        let reply = net.log.pop().unwrap();
        net.flying.clear();
        net.receive(branch, reply.from, &reply.bytes);
    }
    net.wait(secs(6));
    for &branch in &branches {
        messages.push(net.captured_initiation(branch));
    }
    for message in &messages[..10] {
        net.receive(hub, from, message);
    }
    assert_eq!(
        (
            net.count(hub, Kind::Response),
            net.refused(hub, Refusal::RateLimited)
        ),
        (5, 5)
    );
    // Evenly, one every 50 ms.
    net.wait(ms(40));
    for message in &messages[10..30] {
        net.wait(ms(25));
        net.receive(hub, from, message);
    }
    assert_eq!(net.count(hub, Kind::Response), 5 + 10);
    // Without load, the limit is off.
    net.sites[hub].queue_len = 0;
    net.wait(secs(1));
    for message in &messages[30..] {
        net.receive(hub, from, message);
    }
    assert_eq!(net.count(hub, Kind::Response), 5 + 10 + 10);
}

#[test]
fn c29_r06_one_flooder_does_not_put_others_into_cookie_mode() {
    let mut net = Net::pair();
    let other = net.add_site(3, Limits::default(), x25519::default());
    net.introduce(other, B);
    net.introduce(B, other);
    let from = net.sites[A].addr;
    let message = net.captured_initiation(A);
    // A thousand messages a second; the queue stays short because each is refused cheaply.
    for _ in 0..5000 {
        net.wait(ms(1));
        net.receive(B, from, &message);
    }
    net.data(other, b"hello");
    net.run(secs(1));
    assert_eq!(net.refused(B, Refusal::CookieRequired), 0);
    assert_eq!(net.sites[B].links[1].received, [b"hello"]);
}

#[test]
fn c30_a_cookie_is_used_at_the_next_retry_and_not_before() {
    let mut net = Net::pair();
    net.sites[B].queue_len = 512;
    net.data(A, b"x");
    net.run(secs(4));
    assert_eq!(net.count(B, Kind::CookieReply), 1);
    assert_eq!(
        net.count(A, Kind::Initiation),
        1,
        "no resend because of the cookie"
    );
    net.run(secs(2));
    let sent = net.sent(A, Kind::Initiation);
    assert_eq!(sent.len(), 2);
    assert_eq!(sent[0].bytes[132..], [0; 16]);
    assert_ne!(sent[1].bytes[132..], [0; 16]);
    assert_eq!(net.link(B).received, [b"x"]);
    assert_eq!(net.count(B, Kind::CookieReply), 1);
}

#[test]
fn c68_a_flood_of_initiations_costs_a_bounded_number_of_dh() {
    // From whoever does not know our key: nothing. From whoever does, and claims addresses: a cookie each. From a real
    // address: its share.
    let mut net = Net::pair();
    net.sites[B].queue_len = 512;
    let message = with_cookie(&mut net);
    let before = net.device(B).dh_operations();
    let indices = net.device(B).indices_in_use();
    let mut rng = Seeded(9);
    let mut junk = [0; INITIATION_LEN];
    for n in 0..20_000u32 {
        patronus_crypto::Random::fill(&mut rng, &mut junk);
        junk[..4].copy_from_slice(&messages::MSG_INITIATION.to_le_bytes());
        let claimed = SocketAddr::from((n.to_be_bytes(), n as u16));
        net.receive(B, claimed, &junk);
        net.receive(B, claimed, &message);
    }
    assert_eq!(net.device(B).dh_operations(), before);
    assert_eq!(net.device(B).indices_in_use(), indices);
    assert_eq!(net.refused(B, Refusal::Mac1), 20_000);
    assert_eq!(net.refused(B, Refusal::CookieRequired), 20_001);
    // The same message again and again from where it belongs: five, then twenty a second.
    let from = net.sites[A].addr;
    for _ in 0..1000 {
        net.wait(ms(1));
        net.receive(B, from, &message);
    }
    let spent = net.device(B).dh_operations() - before;
    assert!(spent <= 4 + 25, "{spent} operations in a second");
    assert_eq!(net.count(B, Kind::Response), 1);
}
