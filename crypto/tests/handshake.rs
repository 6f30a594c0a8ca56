//! Handshakes between two sites on a virtual clock (conformance items 2, 3 and 7 to 20).

mod common;

use common::*;
use patronus_crypto::messages::{self, INITIATION_LEN, Kind, RESPONSE_LEN};
use patronus_crypto::{
    AddPeerError, Device, Limits, Output, Outputs, PublicKey, Random, Refusal, Time, x25519,
};
use patronus_mem::Secret;

/// Points of low order on Curve25519 and its twist, with their non-canonical encodings (RFC 7748, section 7, and the usual list).
fn low_order_keys() -> Vec<[u8; 32]> {
    let hex = [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ];
    let byte = |text: &str, n: usize| u8::from_str_radix(&text[2 * n..2 * n + 2], 16).unwrap();
    hex.iter()
        .map(|text| std::array::from_fn(|n| byte(text, n)))
        .collect()
}

/// Gives `message` a valid mac1 for the owner of `public`.
fn authorize(message: &mut [u8], public: &PublicKey) {
    use blake2::digest::{KeyInit, Mac, consts::U16};
    use blake2::{Blake2s256, Blake2sMac, Digest};
    let key = Blake2s256::new_with_prefix(b"mac1----")
        .chain_update(public.0)
        .finalize();
    let body = message.len() - 32;
    let mut mac = Blake2sMac::<U16>::new_from_slice(&key).unwrap();
    Mac::update(&mut mac, &message[..body]);
    let mac = mac.finalize().into_bytes();
    message[body..body + 16].copy_from_slice(&mac);
    message[body + 16..].fill(0);
}

#[test]
fn c07_a_handshake_and_data_both_ways() {
    for dh in x25519::all() {
        let mut net = Net::pair_with(Limits::default(), *dh);
        net.data(A, b"there");
        net.run(ms(100));
        net.data(B, b"and back");
        net.run(ms(100));
        assert_eq!(net.link(B).received, [b"there"]);
        assert_eq!(net.link(A).received, [b"and back"]);
        let kinds: Vec<Kind> = net.log.iter().map(|datagram| datagram.kind()).collect();
        assert_eq!(kinds, [Kind::Initiation, Kind::Response, Kind::Data, Kind::Data]);
        let lengths: Vec<usize> = net.log.iter().map(|datagram| datagram.bytes.len()).collect();
        assert_eq!(lengths[..2], [INITIATION_LEN, RESPONSE_LEN]);
        for site in [A, B] {
            assert_eq!(net.device(site).counters().total(), 0);
        }
    }
}

#[test]
fn c07_with_a_pre_shared_key() {
    let mut net = Net::pair();
    for site in [A, B] {
        let peer = net.link(site).peer;
        net.device(site).set_psk(peer, Some(private_key(99)));
    }
    net.connect();
}

#[test]
fn c02_other_lengths_are_dropped_before_any_work() {
    let mut net = Net::pair();
    let right = net.captured_initiation(A);
    let from = net.sites[A].addr;
    let before = net.device(B).dh_operations();
    let mut wrong = 0;
    for len in (0..=1500).filter(|&len| len != INITIATION_LEN) {
        let mut message = right.clone();
        message.resize(len, 0);
        net.receive(B, from, &message);
        wrong += 1;
    }
    assert_eq!(net.refused(B, Refusal::Length), wrong);
    assert_eq!(net.device(B).dh_operations(), before);
    assert!(net.log.is_empty());
    net.receive(B, from, &right);
    assert_eq!(net.count(B, Kind::Response), 1);
    assert!(net.device(B).dh_operations() > before, "the count counts");
}

#[test]
fn c03_a_reserved_byte_that_is_not_zero() {
    let mut net = Net::pair();
    let from = net.sites[A].addr;
    let key = net.device(B).public_key().unwrap();
    for at in 1..4 {
        let mut message = net.captured_initiation(A);
        message[at] = 1;
        // Even a sender who takes the trouble to authenticate it.
        authorize(&mut message, &key);
        net.receive(B, from, &message);
        net.wait(secs(6));
    }
    assert_eq!(net.refused(B, Refusal::Type), 3);
    assert_eq!(net.count(B, Kind::Response), 0);
}

#[test]
fn c08_a_peer_with_a_low_order_key_is_unusable() {
    for dh in x25519::all() {
        for key in low_order_keys() {
            let mut net = Net::empty();
            net.add_site(1, Limits::default(), *dh);
            let peer = net.add_peer(A, PublicKey(key), Some("192.0.2.2:1".parse().unwrap()));
            net.send(A, peer, b"never");
            net.run(secs(30));
            assert!(net.log.is_empty(), "{}: {key:02x?}", dh.name());
        }
    }
}

/// R42: the check was missing in some of the four places.
#[test]
fn c08_r42_a_low_order_ephemeral_key_is_refused() {
    for dh in x25519::all() {
        let mut net = Net::pair_with(Limits::default(), *dh);
        let (a, b) = (net.sites[A].addr, net.sites[B].addr);
        let to = net.device(B).public_key().unwrap();
        for (n, key) in (1..).zip(low_order_keys()) {
            let mut message = vec![0; INITIATION_LEN];
            message[0] = 1;
            message[8..40].copy_from_slice(&key);
            authorize(&mut message, &to);
            net.receive(B, a, &message);
            assert_eq!(net.refused(B, Refusal::LowOrderKey), n);
        }
        // The same in a response: refused, and the handshake it was meant to end goes on.
        net.pass = Box::new(|datagram| datagram.kind() != Kind::Response);
        net.data(A, b"x");
        net.run(ms(50));
        let genuine = net.sent(B, Kind::Response).pop().unwrap();
        let to = net.device(A).public_key().unwrap();
        for (n, key) in (1..).zip(low_order_keys()) {
            let mut message = genuine.bytes.clone();
            message[12..44].copy_from_slice(&key);
            authorize(&mut message, &to);
            net.receive(A, b, &message);
            assert_eq!(net.refused(A, Refusal::LowOrderKey), n);
        }
        net.pass = Box::new(|_| true);
        net.receive(A, b, &genuine.bytes);
        net.run(ms(50));
        assert_eq!(net.link(B).received, [b"x"]);
    }
}

#[test]
fn c09_an_unknown_key_gets_no_reply_and_leaves_no_state() {
    let mut net = Net::pair();
    let stranger = net.add_site(3, Limits::default(), x25519::default());
    net.introduce(stranger, B);
    let indices = net.device(B).indices_in_use();
    net.data(stranger, b"let me in");
    net.run(secs(100));
    assert_eq!(net.refused(B, Refusal::UnknownPeer), 20);
    assert!(net.log.iter().all(|datagram| datagram.from != net.sites[B].addr));
    assert_eq!(net.device(B).indices_in_use(), indices);
    assert_eq!(net.device(B).next_deadline(), None);
    assert_eq!(net.link(B).moved, 0);
}

#[test]
fn c10_timestamps_only_go_up() {
    let mut net = Net::pair();
    let from = net.sites[A].addr;
    let first = net.captured_initiation(A);
    net.wait(secs(6));
    let second = net.captured_initiation(A);
    net.wait(secs(6));
    let third = net.captured_initiation(A);

    net.receive(B, from, &second);
    assert_eq!(net.count(B, Kind::Response), 1);
    net.wait(secs(1));
    net.receive(B, from, &second);
    net.receive(B, from, &first);
    assert_eq!(net.refused(B, Refusal::OldTimestamp), 2);
    // From another place it is no newer, and a session in between makes it no newer.
    net.receive(B, "203.0.113.9:9".parse().unwrap(), &second);
    assert_eq!(net.refused(B, Refusal::OldTimestamp), 3);
    net.receive(B, from, &third);
    assert_eq!(net.count(B, Kind::Response), 2);
    net.wait(secs(600));
    net.receive(B, from, &second);
    assert_eq!(net.refused(B, Refusal::OldTimestamp), 4);
    assert_eq!(net.count(B, Kind::Response), 2);
    assert_eq!(net.link(B).endpoint, Some(from));
}

#[test]
fn c11_handshakes_go_on_after_our_wall_clock_stepped_back() {
    let mut net = Net::pair();
    net.connect();
    for hours in 1..20 {
        net.sites[A].wall_offset = -3600 * hours;
        net.run(secs(200));
        net.data(A, &[hours as u8]);
        net.run(secs(1));
        assert_eq!(net.link(B).received.last().unwrap(), &[hours as u8]);
    }
    assert_eq!(net.refused(B, Refusal::OldTimestamp), 0);
}

#[test]
fn c12_a_second_initiation_within_20_ms() {
    let mut net = Net::pair();
    let from = net.sites[A].addr;
    let messages: Vec<Vec<u8>> = (0..4)
        .map(|_| {
            net.wait(secs(6));
            net.captured_initiation(A)
        })
        .collect();
    net.receive(B, from, &messages[0]);
    net.wait(ms(19));
    net.receive(B, from, &messages[1]);
    assert_eq!(
        (net.count(B, Kind::Response), net.refused(B, Refusal::Flood)),
        (1, 1)
    );
    // Counted from the last that was accepted, not from the last that came.
    net.wait(ms(1));
    net.receive(B, from, &messages[2]);
    assert_eq!(
        (net.count(B, Kind::Response), net.refused(B, Refusal::Flood)),
        (2, 1)
    );
    net.wait(ms(20));
    net.receive(B, from, &messages[3]);
    assert_eq!(
        (net.count(B, Kind::Response), net.refused(B, Refusal::Flood)),
        (3, 1)
    );
}

#[test]
fn c13_a_response_counts_once_and_only_for_its_handshake() {
    let mut net = Net::pair();
    net.pass = Box::new(|datagram| datagram.kind() != Kind::Response);
    net.data(A, b"x");
    net.run(ms(50));
    let response = net.sent(B, Kind::Response).pop().unwrap();
    let from = response.from;
    let key = net.device(A).public_key().unwrap();

    let mut elsewhere = response.bytes.clone();
    elsewhere[8] ^= 1;
    authorize(&mut elsewhere, &key);
    net.receive(A, from, &elsewhere);
    assert_eq!(net.refused(A, Refusal::ResponseIndex), 1);

    net.pass = Box::new(|_| true);
    net.receive(A, from, &response.bytes);
    net.receive(A, from, &response.bytes);
    assert_eq!(net.refused(A, Refusal::ResponseState), 1);
    net.run(ms(50));
    assert_eq!(net.link(B).received, [b"x"]);

    // A response to a handshake that was replaced by a newer one.
    let mut net = Net::pair();
    net.pass = Box::new(|datagram| datagram.kind() != Kind::Response);
    net.data(A, b"x");
    net.run(secs(6));
    let responses = net.sent(B, Kind::Response);
    assert_eq!(responses.len(), 2);
    net.receive(A, from, &responses[0].bytes);
    assert_eq!(net.refused(A, Refusal::ResponseIndex), 1);
    net.receive(A, from, &responses[1].bytes);
    assert!(net.link(A).keypairs.current().is_some());
}

#[test]
fn c13_a_forged_response_does_not_end_a_handshake() {
    let mut net = Net::pair();
    net.pass = Box::new(|datagram| datagram.kind() != Kind::Response);
    net.data(A, b"x");
    net.run(ms(50));
    let response = net.sent(B, Kind::Response).pop().unwrap();
    let key = net.device(A).public_key().unwrap();
    for at in [12, 44, 59] {
        let mut forged = response.bytes.clone();
        forged[at] ^= 1;
        authorize(&mut forged, &key);
        net.receive(A, response.from, &forged);
    }
    assert_eq!(net.refused(A, Refusal::ResponseTag), 3);
    assert_eq!(net.link(A).moved, 0);
    net.receive(A, response.from, &response.bytes);
    assert!(net.link(A).keypairs.current().is_some());
}

#[test]
fn c14_indices_are_uniform_unique_and_freed() {
    // A million draws of the device's indices, seen from outside: the sender field of initiations costs a handshake each, so
    // this looks at a few thousand, and the table's own test at collisions.
    let mut net = Net::pair();
    let peer = net.link(A).peer;
    let mut seen = std::collections::HashSet::new();
    let mut bins = [0u32; 16];
    let count = 4000;
    net.pass = Box::new(|_| false);
    for _ in 0..count {
        net.wait(secs(6));
        net.want_handshake(A, peer);
        let message = net.log.pop().unwrap();
        let index = u32::from_le_bytes(message.bytes[4..8].try_into().unwrap());
        assert!(seen.insert(index));
        bins[(index >> 28) as usize] += 1;
        assert_eq!(
            net.device(A).indices_in_use(),
            1,
            "each handshake frees the index of the one before"
        );
    }
    // Chi-square with 15 degrees of freedom: 37.7 is exceeded once in a thousand.
    let expected = f64::from(count) / 16.0;
    let chi: f64 = bins
        .iter()
        .map(|&n| (f64::from(n) - expected).powi(2) / expected)
        .sum();
    assert!(chi < 37.7, "{chi}");
}

#[test]
fn c14_an_index_is_free_again_when_its_key_is_erased() {
    let mut net = Net::pair();
    for round in 0..10 {
        net.run(secs(200));
        net.data(A, b"x");
        net.run(secs(1));
        for site in [A, B] {
            let in_use = net.device(site).indices_in_use();
            assert!((1..=3).contains(&in_use), "{in_use} in round {round}");
        }
    }
    net.run(secs(600));
    for site in [A, B] {
        assert_eq!(net.device(site).indices_in_use(), 0);
    }
}

/// Both sites send in the same session: what is the sender index for the one is the receiver index for the other.
fn assert_one_session(net: &Net) {
    let (a, b) = (
        net.link(A).keypairs.current().unwrap(),
        net.link(B).keypairs.current().unwrap(),
    );
    assert_eq!((a.local_index, a.remote_index), (b.remote_index, b.local_index));
    assert_ne!(a.initiator, b.initiator);
}

#[test]
fn c15_simultaneous_initiations_converge_at_once() {
    for (first, second) in [(A, B), (B, A)] {
        for offset in [0, 1, 10, 19] {
            let mut net = Net::pair();
            net.data(first, b"x");
            net.run(ms(offset));
            net.data(second, b"x");
            // A round trip for the handshake, half of one to confirm it, and half of one for what the responder had staged.
            net.run(ms(80));
            for site in [A, B] {
                assert_eq!(
                    net.link(site).received,
                    [b"x"],
                    "{first} first, {offset} ms apart"
                );
            }
            assert_one_session(&net);
            // No storm: nothing more is exchanged but what keeps both sides content.
            net.run(secs(100));
            for site in [A, B] {
                assert_eq!(
                    net.count(site, Kind::Initiation),
                    1,
                    "{first} first, {offset} ms apart"
                );
                assert_eq!(
                    net.count(site, Kind::Response),
                    1,
                    "{first} first, {offset} ms apart"
                );
            }
        }
    }
}

#[test]
fn c15_nothing_is_lost_at_the_rekeys_that_follow() {
    let mut net = Net::pair();
    net.data(A, b"from a");
    net.data(B, b"from b");
    net.run(secs(1));
    for n in 0..600u32 {
        net.run(ms(500));
        net.data(A, &n.to_le_bytes());
        net.run(ms(u64::from(n % 60)));
        net.data(B, &n.to_le_bytes());
    }
    net.run(secs(1));
    assert_one_session(&net);
    for site in [A, B] {
        assert_eq!(net.link(site).received.len(), 601);
    }
}

#[test]
fn c15_a_stock_peer_gives_way_and_is_met() {
    // A stock peer has one handshake at a time: when it receives ours, its own is forgotten, and it drops our response to that.
    // That is what the site with the larger key does too, so whichever is smaller is in our role here.
    let mut net = Net::pair();
    let ours = if public_key(1) < public_key(2) { A } else { B };
    let stock = net.sites[1 - ours].addr;
    net.pass = Box::new(move |datagram| datagram.kind() != Kind::Response || datagram.to != stock);
    net.data(A, b"from a");
    net.data(B, b"from b");
    net.run(ms(100));
    assert_eq!(net.link(B).received, [b"from a"]);
    assert_eq!(net.link(A).received, [b"from b"]);
}

#[test]
fn c16_the_responder_waits_for_the_key_to_be_confirmed() {
    let mut net = Net::pair();
    net.pass = Box::new(|datagram| datagram.kind() != Kind::Data);
    net.data(A, b"first");
    net.run(ms(100));
    net.data(B, b"too early");
    net.run(ms(100));
    assert_eq!(
        net.count(B, Kind::Data),
        0,
        "nothing is sent under an unconfirmed key"
    );
    assert_eq!(net.link(B).staged.len(), 1);
    assert_eq!(net.count(A, Kind::Data), 1, "the initiator sends at once");
    net.pass = Box::new(|_| true);
    net.data(A, b"second");
    net.run(ms(100));
    assert_eq!(net.link(A).received, [b"too early"]);
}

#[test]
fn c16_without_data_the_initiator_confirms_by_a_keepalive() {
    let mut net = Net::pair();
    let peer = net.link(A).peer;
    net.want_handshake(A, peer);
    net.run(ms(100));
    let data = net.sent(A, Kind::Data);
    assert_eq!(data.len(), 1);
    assert!(data[0].is_keepalive());
    assert!(net.link(B).keypairs.current().is_some());
    assert!(net.device(B).last_handshake(patronus_crypto::PeerId(0)).is_some());
}

#[test]
fn c17_packets_under_the_previous_key_still_open() {
    let mut net = Net::pair();
    net.connect();
    net.latency = ms(500);
    net.run(secs(121));
    // This packet starts the rekey, and arrives before it is through; the next one is delayed until after.
    net.data(A, b"under the old key");
    net.run(ms(499));
    let old = net.link(A).sent_under;
    net.data(A, b"late, under the old key");
    assert_eq!(net.link(A).sent_under, old);
    net.latency = secs(3);
    net.run(secs(1));
    net.latency = ms(10);
    net.run(secs(3));
    assert_eq!(net.link(B).received.len(), 2);
    assert_eq!(
        net.link(B)
            .keypairs
            .previous()
            .map(|keypair| keypair.remote_index),
        old
    );
}

#[test]
fn c18_a_peer_with_our_own_key_is_not_added_and_is_removed() {
    let mut net = Net::pair();
    let own = net.device(A).public_key().unwrap();
    assert_eq!(net.device(A).add_peer(own), Err(AddPeerError::OwnKey));
    let peer = net.link(A).peer;
    // The private key of our only peer.
    net.set_private_key(A, Some(private_key(2)));
    assert_eq!(net.sites[A].gone, [peer]);
    assert_eq!(net.device(A).peers(), 0);
    assert_eq!(net.device(A).peer(&public_key(2)), None);
}

#[test]
fn c18_a_new_private_key_stops_sending_and_the_next_handshake_works_at_once() {
    let mut net = Net::pair();
    net.connect();
    net.set_private_key(A, Some(private_key(7)));
    net.data(A, b"staged");
    assert_eq!(net.count(A, Kind::Data), 0);
    // B still knows the old key; what it sends is still opened.
    net.data(B, b"old session");
    net.run(ms(100));
    assert_eq!(net.link(A).received, [b"old session"]);
    // B learns the new one.
    let peer = net.link(B).peer;
    net.device(B).remove_peer(peer);
    net.sites[B].links.clear();
    net.introduce(B, A);
    net.link_mut(B).endpoint = None;
    net.run(secs(6));
    assert_eq!(net.link(B).received, [b"staged"]);
}

#[test]
fn c18_the_same_private_key_again_changes_nothing() {
    let mut net = Net::pair();
    net.connect();
    net.set_private_key(A, Some(private_key(1)));
    net.data(A, b"still there");
    net.run(ms(100));
    assert_eq!(net.link(B).received, [b"still there"]);
    assert_eq!(net.count(A, Kind::Initiation), 0);
}

#[test]
fn c18_without_a_private_key_nothing_is_taken_or_sent() {
    let mut net = Net::pair();
    let message = net.captured_initiation(B);
    net.set_private_key(A, None);
    assert!(net.device(A).public_key().is_none());
    net.data(A, b"x");
    let from = net.sites[B].addr;
    net.receive(A, from, &message);
    assert_eq!(net.refused(A, Refusal::NoPrivateKey), 1);
    assert!(net.log.is_empty());
    // Zero is no key.
    net.set_private_key(A, Some(Secret::zeroed()));
    assert!(net.device(A).private_key().is_none());
}

#[test]
fn c19_a_new_psk_counts_from_the_next_handshake() {
    let mut net = Net::pair();
    net.connect();
    for site in [A, B] {
        let peer = net.link(site).peer;
        net.device(site).set_psk(peer, Some(private_key(50)));
    }
    net.data(A, b"old session");
    net.run(ms(100));
    assert_eq!(net.link(B).received, [b"old session"]);
    net.run(secs(130));
    net.data(A, b"rekeys");
    net.run(ms(100));
    net.data(A, b"new session");
    net.run(ms(100));
    assert_eq!(net.link(B).received.len(), 3);
    assert_eq!(net.refused(A, Refusal::ResponseTag), 0);
}

/// R16: a changed pre-shared key has to be used, on both sides.
#[test]
fn c19_r16_a_psk_on_one_side_only_makes_no_session() {
    let mut net = Net::pair();
    let peer = net.link(B).peer;
    net.device(B).set_psk(peer, Some(private_key(50)));
    net.data(A, b"x");
    net.run(secs(1));
    assert_eq!(net.refused(A, Refusal::ResponseTag), 1);
    assert!(net.link(B).received.is_empty());
    // All zero is none.
    net.device(B).set_psk(peer, Some(Secret::zeroed()));
    assert!(net.device(B).psk(peer).is_none());
    net.run(secs(6));
    assert_eq!(net.link(B).received, [b"x"]);
}

#[test]
fn c20_every_bit_of_an_initiation_is_authenticated() {
    let mut net = Net::pair();
    let from = net.sites[A].addr;
    let key = net.device(B).public_key().unwrap();
    let message = net.captured_initiation(A);
    // All but the type; the sender index is authenticated by mac1 alone, which whoever knows our public key can make.
    for bit in 8 * 8..116 * 8 {
        let mut forged = message.clone();
        forged[bit / 8] ^= 1 << (bit % 8);
        if bit == 39 * 8 + 7 {
            // The top bit of a public key is ignored by X25519, but not by the transcript.
            assert_ne!(forged, message);
        }
        authorize(&mut forged, &key);
        net.receive(B, from, &forged);
    }
    assert_eq!(net.count(B, Kind::Response), 0);
    let sum = net.refused(B, Refusal::StaticKey) + net.refused(B, Refusal::Timestamp);
    assert_eq!(sum, 108 * 8);
    net.receive(B, from, &message);
    assert_eq!(net.count(B, Kind::Response), 1);
}

#[test]
fn c20_an_initiation_meant_for_another_is_not_ours() {
    let mut net = Net::pair();
    let other = net.add_site(3, Limits::default(), x25519::default());
    net.introduce(other, A);
    let mut message = net.captured_initiation(A);
    let key = net.device(other).public_key().unwrap();
    let from = net.sites[A].addr;
    net.receive(other, from, &message);
    assert_eq!(net.refused(other, Refusal::Mac1), 1);
    authorize(&mut message, &key);
    net.receive(other, from, &message);
    assert_eq!(net.refused(other, Refusal::StaticKey), 1);
}

#[test]
fn c67_peers_are_limited_and_numbers_reused() {
    let limits = Limits {
        max_peers: 1000,
        ..Limits::default()
    };
    let mut net = Net::empty();
    let site = net.add_site(1, limits, x25519::default());
    net.set_private_key(site, None);
    let device = net.device(site);
    let key = |n: u32| {
        let mut key = [0x5a; 32];
        key[..4].copy_from_slice(&n.to_le_bytes());
        PublicKey(key)
    };
    for n in 0..1000 {
        assert_eq!(device.add_peer(key(n)).unwrap().0, n);
    }
    let reasons =
        [AddPeerError::Full, AddPeerError::OwnKey, AddPeerError::Exists].map(|error| error.to_string());
    assert!(
        reasons
            .iter()
            .zip(["limit", "our own", "there is a peer"])
            .all(|(said, of)| said.contains(of)),
        "{reasons:?}"
    );
    assert_eq!(device.add_peer(key(1000)), Err(AddPeerError::Full));
    assert_eq!(device.add_peer(key(7)), Err(AddPeerError::Exists));
    let seven = device.peer(&key(7)).unwrap();
    device.remove_peer(seven);
    device.remove_peer(seven);
    assert_eq!((device.peer(&key(7)), device.peers()), (None, 999));
    // The number is not free before the worker has let go of it.
    assert_eq!(device.add_peer(key(1000)), Err(AddPeerError::Full));
    device.release(seven);
    assert_eq!(device.add_peer(key(1000)), Ok(seven));
    assert_eq!(device.peer(&key(1000)), Some(seven));
    for n in (0..1001).filter(|&n| n != 7) {
        assert!(device.peer(&key(n)).is_some());
    }
}

#[test]
fn c67_a_hundred_thousand_peers() {
    let mut rng = Seeded(1);
    let mut device = Device::new(
        Limits::default(),
        x25519::default(),
        Net::empty().now_at(0),
        &mut rng,
    );
    let mut keys = vec![PublicKey([0; 32]); 100_000];
    for key in &mut keys {
        rng.fill(&mut key.0);
        device.add_peer(*key).unwrap();
    }
    for (n, key) in (0..).zip(&keys) {
        assert_eq!(device.peer(key).map(|peer| peer.0), Some(n));
    }
}

/// R41: the peer goes while its handshake is under way.
#[test]
fn c69_r41_a_peer_is_removed_in_the_middle_of_a_handshake() {
    let mut net = Net::pair();
    net.data(A, b"x");
    let peer = net.link(A).peer;
    net.run(ms(30));
    net.device(A).remove_peer(peer);
    net.sites[A].links.clear();
    assert_eq!(net.device(A).indices_in_use(), 0);
    assert_eq!(net.device(A).next_deadline(), None);
    net.run(secs(10));
    assert_eq!(net.refused(A, Refusal::ResponseIndex), 1);
    // The worker was late to ask for things.
    let now = net.now_of(A);
    let mut out = Outputs::new();
    let device = net.device(A);
    device.want_handshake(peer, &now, &mut Seeded(1), &mut out);
    device.key_confirmed(peer, &now);
    device.watch(peer);
    device.set_persistent_keepalive(peer, 1);
    device.set_psk(peer, None);
    device.poll(&now, &mut Seeded(1), &mut out);
    assert!(out.is_empty());
    assert_eq!(device.persistent_keepalive(peer), 0);
}

#[test]
fn c69_a_session_given_back_after_its_peer_is_gone() {
    let mut net = Net::pair();
    net.connect();
    let peer = net.link(A).peer;
    let keypairs = std::mem::take(&mut net.link_mut(A).keypairs).clear();
    net.device(A).remove_peer(peer);
    net.sites[A].links.clear();
    assert_eq!(net.device(A).indices_in_use(), 1);
    net.introduce(A, B);
    keypairs
        .into_iter()
        .for_each(|keypair| net.device(A).retire(keypair));
    assert_eq!(net.device(A).indices_in_use(), 0);
    // And the number's new owner is not disturbed.
    net.data(A, b"again");
    net.run(secs(1));
    assert_eq!(net.link(B).received, [b"again"]);
}

/// R43 and R52: a handshake was taken, or sent, by an interface that is down.
#[test]
fn c70_r43_r52_an_interface_that_is_down_takes_and_sends_no_handshake() {
    let mut net = Net::pair();
    net.connect();
    net.wait(secs(6));
    let message = net.captured_initiation(A);
    let from = net.sites[A].addr;
    assert!(net.device(B).is_up());
    net.set_up(B, false);
    assert!(!net.device(B).is_up());
    assert_eq!((net.link(B).erased, net.device(B).indices_in_use()), (1, 0));
    net.receive(B, from, &message);
    assert_eq!(net.refused(B, Refusal::Down), 1);
    net.data(B, b"x");
    let peer = net.link(B).peer;
    net.device(B).set_persistent_keepalive(peer, 1);
    net.run(secs(100));
    assert!(net.log.iter().all(|datagram| datagram.from == from));
    assert_eq!(net.device(B).next_deadline(), None);
    // Not consumed: the same message is good once the interface is up.
    net.device(B).set_persistent_keepalive(peer, 0);
    net.set_up(B, true);
    net.receive(B, from, &message);
    assert_eq!(net.count(B, Kind::Response), 1);
}

#[test]
fn c70_peers_with_a_keepalive_are_called_when_the_interface_comes_up() {
    let mut net = Net::pair();
    let peer = net.link(A).peer;
    net.set_up(A, false);
    net.device(A).set_persistent_keepalive(peer, 25);
    net.run(secs(100));
    assert!(net.log.is_empty());
    net.set_up(A, true);
    net.run(ms(100));
    assert_eq!((net.count(A, Kind::Initiation), net.count(A, Kind::Data)), (1, 1));
}

/// R1: an oversized datagram panicked the receiver.
#[test]
fn c65_r01_datagrams_of_every_size_and_any_content() {
    let mut net = Net::pair();
    net.connect();
    let from = net.sites[A].addr;
    let indices: Vec<u32> = net.sites[B]
        .links
        .iter()
        .map(|l| l.keypairs.current().unwrap().local_index)
        .collect();
    let mut rng = Seeded(5);
    let mut datagram = vec![0; 65535];
    let now = net.now_of(B);
    let site = &mut net.sites[B];
    for len in (0..2000).chain((2000..=65535).step_by(997)).chain([65535]) {
        for kind in 0..=5 {
            let datagram = &mut datagram[..len];
            rng.fill(&mut datagram[..len.min(200)]);
            if len >= 12 {
                datagram[..4].copy_from_slice(&[kind, 0, 0, 0]);
                datagram[4..8].copy_from_slice(&indices[0].to_le_bytes());
                datagram[8..12].copy_from_slice(&indices[0].to_le_bytes());
            }
            site.device
                .receive(&now, &from, datagram, 0, &mut rng, &mut site.out);
        }
    }
    assert!(site.out.is_empty(), "nobody gets an answer without a valid mac1");
    assert!(site.device.counters().get(Refusal::Mac1) > 0);
    assert!(site.device.counters().get(Refusal::CookieTag) > 0);
    net.data(A, b"alive");
    net.run(secs(1));
    assert_eq!(net.link(B).received, [b"alive"]);
}

#[test]
fn c73_the_counter_has_64_bits_everywhere() {
    let counter = u64::from(u32::MAX) + 5;
    let mut header = [0; messages::HEADER];
    messages::DataHeader { receiver: 1, counter }.write(&mut header);
    assert_eq!(messages::DataHeader::read(&header).counter, counter);
}

/// R23 too: a clock that goes backwards panicked.
#[test]
fn c74_r23_a_clock_that_jumps_about() {
    let mut net = Net::pair();
    let mut rng = Seeded(3);
    net.connect();
    for n in 0..3000 {
        net.now = match rng.below(20) {
            0 => Time(0),
            1 => Time(u64::MAX),
            2 => START,
            _ => Time(START.0 + u64::from(rng.u32())),
        };
        let site = n % 2;
        let now = net.now_of(site);
        match rng.below(4) {
            0 => net.data(site, b"x"),
            1 => {
                let peer = net.link(site).peer;
                net.want_handshake(site, peer);
            }
            2 => {
                let site = &mut net.sites[site];
                site.device.poll(&now, &mut site.rng, &mut site.out);
                site.out.drain().for_each(drop);
            }
            _ => {
                while let Some(datagram) = net.flying.pop() {
                    net.deliver(&datagram);
                }
            }
        }
    }
}

/// R36: "54 years ago".
#[test]
fn r25_r36_the_time_of_the_last_handshake_is_the_wall_clocks() {
    let mut net = Net::pair();
    let (a, b) = (net.link(A).peer, net.link(B).peer);
    assert_eq!(net.device(A).last_handshake(a), None);
    net.run(secs(77));
    net.connect();
    for (site, peer) in [(A, a), (B, b)] {
        let last = net.device(site).last_handshake(peer).unwrap();
        assert_eq!(last.secs, WALL + 77);
    }
}

/// R39: sent and received bytes were exchanged. Also: handshakes count.
#[test]
fn c81_r39_bytes_sent_and_received() {
    let mut net = Net::pair();
    net.data(A, &[0; 100]);
    net.run(secs(1));
    net.data(B, &[0; 10]);
    net.data(B, &[0; 10]);
    net.run(secs(1));
    let (a, b) = (net.link(A).peer, net.link(B).peer);
    let (up, down) = (148 + 132, 92 + 2 * 42);
    let traffic = net.device(A).traffic(a).clone();
    assert_eq!((traffic.sent_bytes(), traffic.received_bytes()), (up, down));
    let traffic = net.device(B).traffic(b).clone();
    assert_eq!((traffic.sent_bytes(), traffic.received_bytes()), (down, up));
}

/// R55, CVE-2021-46873: an initiation with a far future timestamp makes the key useless once the clock is right again.
#[test]
fn r55_no_initiation_while_the_wall_clock_is_far_ahead() {
    let mut net = Net::pair();
    net.connect();
    net.sites[A].wall_offset = 86_400 * 365 * 70;
    net.run(secs(200));
    net.data(A, b"x");
    net.run(secs(10));
    assert_eq!(net.count(A, Kind::Initiation), 0);
    // It is tried again as often as an initiation that gets no answer.
    assert!(net.refused(A, Refusal::ClockAhead) > 1);
    // As the responder it needs no clock.
    net.data(B, b"y");
    net.run(secs(1));
    assert_eq!(net.link(A).received, [b"y"]);
    // The clock is put right.
    net.sites[A].wall_offset = 0;
    net.run(secs(200));
    net.data(A, b"z");
    net.run(secs(1));
    assert_eq!(net.link(B).received.last().unwrap(), b"z");
    assert_eq!(net.refused(B, Refusal::OldTimestamp), 0);
    // Or the user says that it is right.
    net.sites[A].wall_offset = 86_400 * 365;
    let now = net.now_of(A);
    net.device(A).trust_clock(&now);
    net.run(secs(200));
    net.data(A, b"z");
    net.run(secs(1));
    assert_eq!(net.refused(B, Refusal::OldTimestamp), 0);
    assert_eq!(net.link(B).received.len(), 3);
}

/// R8: session numbers gave away how many peers there are.
#[test]
fn r08_indices_of_consecutive_handshakes_have_no_pattern() {
    let mut net = Net::pair();
    let peer = net.link(A).peer;
    net.pass = Box::new(|_| false);
    let mut indices = Vec::new();
    for _ in 0..2000 {
        net.wait(secs(6));
        net.want_handshake(A, peer);
        indices.push(u32::from_le_bytes(
            net.log.pop().unwrap().bytes[4..8].try_into().unwrap(),
        ));
    }
    // Half of the bits change from one to the next, and half of the steps go up.
    let flipped: u32 = indices
        .windows(2)
        .map(|pair| (pair[0] ^ pair[1]).count_ones())
        .sum();
    assert!((15.7..16.3).contains(&(f64::from(flipped) / 1999.0)));
    let up = indices.windows(2).filter(|pair| pair[1] > pair[0]).count();
    assert!((900..1100).contains(&up));
    // A shift register's step is linear: the same difference never follows the same difference.
    let mut steps: Vec<u32> = indices.windows(2).map(|pair| pair[1] ^ pair[0]).collect();
    steps.sort_unstable();
    steps.dedup();
    assert!(steps.len() > 1990);
}

/// R24: the first packet of a session came before the session.
#[test]
fn r24_a_session_is_handed_out_before_the_message_that_lets_the_peer_use_it() {
    let mut net = Net::pair();
    let message = net.captured_initiation(A);
    let now = net.now_of(B);
    let from = net.sites[A].addr;
    let site = &mut net.sites[B];
    site.device
        .receive(&now, &from, &message, 0, &mut site.rng, &mut site.out);
    let order: Vec<&str> = site
        .out
        .drain()
        .map(|output| match output {
            Output::MoveEndpoint { .. } => "endpoint",
            Output::Install { .. } => "session",
            Output::Send { .. } => "message",
            _ => "something else",
        })
        .collect();
    assert_eq!(order, ["endpoint", "session", "message"]);
}

/// R10: only an initiation moved the endpoint.
#[test]
fn c59_r10_initiations_and_responses_move_the_endpoint() {
    let mut net = Net::pair();
    let message = net.captured_initiation(A);
    let elsewhere = "203.0.113.1:1".parse().unwrap();
    net.receive(B, elsewhere, &message);
    assert_eq!(net.link(B).endpoint, Some(elsewhere));
    let response = net.sent(B, Kind::Response).pop().unwrap();
    net.receive(A, elsewhere, &response.bytes);
    assert_eq!(net.link(A).endpoint, Some(elsewhere));
}

/// R32: whatever is refused is refused without a trace.
#[test]
fn c61_r32_a_message_replayed_from_elsewhere_moves_nothing() {
    let mut net = Net::pair();
    net.connect();
    let endpoints = [A, B].map(|site| net.link(site).endpoint);
    net.run(secs(125));
    net.data(A, b"rekeys");
    net.run(ms(100));
    let moved = [A, B].map(|site| net.link(site).moved);
    let elsewhere = "203.0.113.1:1".parse().unwrap();
    for datagram in net.log.clone() {
        for site in [A, B] {
            net.receive(site, elsewhere, &datagram.bytes);
        }
    }
    assert_eq!([A, B].map(|site| net.link(site).endpoint), endpoints);
    assert_eq!([A, B].map(|site| net.link(site).moved), moved);
}

#[test]
fn c75_debug_output_shows_no_key() {
    let mut net = Net::pair();
    let peer = net.link(A).peer;
    net.device(A).set_psk(peer, Some(private_key(9)));
    let shown = format!("{0:?} {0:#?}", net.device(A));
    for key in [private_key(1), private_key(9)] {
        let hex: String = key[..4].iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(!shown.contains(&hex));
        assert!(!shown.contains(&format!("{:?}", &key[..4])));
        assert_eq!(format!("{key:?}"), "Secret<32>(..)");
    }
    assert!(shown.contains("public_key"), "{shown}");
}
