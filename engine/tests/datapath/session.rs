//! Sessions from the first packet to the last: key confirmation, the three places of key pairs, age, keepalives.

use std::sync::{Arc, Mutex};

use patronus_crypto::messages::Kind;
use patronus_engine::channel::Command;
use patronus_engine::stats::{DropReason, Stage};
use patronus_io::loopback::LoopbackPort;

use crate::common::port::Interrupted;
use crate::common::{A, B, Net, ms, packet, perfect, secs};

#[test]
fn a_packet_each_way() {
    let mut net = Net::pair();
    let (there, back) = (packet::between(A, B, 1, 500), packet::between_v6(B, A, 2, 1420));
    net.send(A, &there);
    net.run(secs(1));
    net.send(B, &back);
    net.run(secs(1));
    assert_eq!(net.delivered(B), [there]);
    assert_eq!(net.delivered(A), [back]);
    assert_eq!(net.count(A, Kind::Initiation), 1);
    assert_eq!(net.count(B, Kind::Response), 1);
    assert_eq!(net.count(B, Kind::Initiation), 0);
    assert_eq!(net.sites[A].drops(), []);
    assert_eq!(net.sites[B].drops(), []);
    net.finish();
}

#[test]
fn c16_responder_sends_nothing_before_the_initiator_has_used_the_key() {
    let mut net = Net::pair();
    // A's first data message, which would confirm the key, is lost.
    let mut lost = false;
    net.wire = Box::new(move |d| {
        if d.kind() == Kind::Data && !std::mem::replace(&mut lost, true) {
            return vec![];
        }
        vec![ms(20)]
    });
    net.send(A, &packet::between(A, B, 1, 100));
    net.run(ms(100));
    assert_eq!(net.count(B, Kind::Response), 1);
    let waiting: Vec<_> = (0..100).map(|n| packet::between(B, A, 10 + n, 100)).collect();
    for packet in &waiting {
        net.send(B, packet);
    }
    net.run(secs(1));
    assert_eq!(net.count(B, Kind::Data), 0, "the key is not confirmed");
    assert_eq!(net.sites[B].staged(), 100);

    net.send(A, &packet::between(A, B, 2, 100));
    net.run(ms(100));
    assert_eq!(net.delivered(B), [packet::between(A, B, 2, 100)]);
    assert_eq!(net.delivered(A), waiting, "all of them, in order");
    assert_eq!(net.sites[B].noticed.confirmed, 1);
    net.finish();
}

#[test]
fn c16_initiator_with_nothing_to_send_confirms_by_a_keepalive_at_once() {
    let mut net = Net::pair();
    net.want_handshake(A);
    net.run(ms(30));
    net.send(B, &packet::between(B, A, 1, 100));
    net.run(ms(50));
    // Initiation, response, keepalive, and B's packet: 20 ms each.
    let sent: Vec<_> = net.sent(A).map(|d| (d.kind(), d.bytes.len())).collect();
    assert_eq!(sent, [(Kind::Initiation, 148), (Kind::Data, 32)]);
    assert_eq!(net.sites[B].keepalives_received(), 1);
    assert_eq!(net.delivered(A), [packet::between(B, A, 1, 100)]);
    net.finish();
}

#[test]
fn c16_staged_packets_confirm_instead_of_a_keepalive() {
    let mut net = Net::pair();
    net.connect();
    assert_eq!(net.sites[B].keepalives_received(), 0);
    assert_eq!(net.sites[A].counts.keepalives_out, 0);
    net.finish();
}

#[test]
fn c17_packets_under_the_previous_key_are_opened_until_the_next_but_one_comes() {
    let mut net = Net::pair();
    net.connect();
    // Two packets leave under the first key and arrive after the second is in use, one after the third.
    for id in [1, 2, 3] {
        net.send(A, &packet::between(A, B, id, 100));
    }
    let late: Vec<_> = net.flying.drain(..).map(|(_, d)| d).collect();
    let first = net.sites[B].sessions[0].local_index;
    assert!(late.iter().all(|d| d.header().receiver == first));

    net.run(secs(6));
    net.want_handshake(A);
    net.run(secs(1));
    assert_eq!(net.sites[B].sessions.len(), 2);
    net.inject(B, late[0].from, &late[0].bytes);
    net.inject(B, late[1].from, &late[1].bytes);
    assert_eq!(
        net.delivered(B),
        [packet::between(A, B, 1, 100), packet::between(A, B, 2, 100)]
    );
    // What B sends goes under the current key all the same.
    net.send(B, &packet::between(B, A, 9, 100));
    let current = net.sites[B].sessions[1].remote_index;
    let sent: Vec<_> = net
        .sent(B)
        .filter(|d| d.is_data())
        .map(|d| d.header().receiver)
        .collect();
    assert_eq!(sent, [current]);

    net.run(secs(6));
    net.want_handshake(A);
    net.run(secs(1));
    net.inject(B, late[2].from, &late[2].bytes);
    assert_eq!(net.delivered(B), Vec::<Vec<u8>>::new());
    assert_eq!(net.sites[B].dropped(DropReason::DecapUnknownIndex), 1);
    assert_eq!(
        net.sites[B].core.device().indices_in_use(),
        2,
        "the oldest key's index is free"
    );
    net.finish();
}

#[test]
fn c17_a_session_that_nobody_confirmed_does_not_replace_the_current_one() {
    let mut net = Net::pair();
    net.connect();
    net.run(secs(6));
    // A's side of the second session never comes about: the response is lost, and A does not try again meanwhile.
    net.wire = Box::new(|d| {
        if d.kind() == Kind::Response {
            vec![]
        } else {
            vec![ms(20)]
        }
    });
    net.want_handshake(A);
    net.run(secs(1));
    assert_eq!(net.sites[B].sessions.len(), 2);
    net.send(B, &packet::between(B, A, 1, 100));
    net.run(ms(100));
    assert_eq!(net.delivered(A), [packet::between(B, A, 1, 100)]);
    net.send(A, &packet::between(A, B, 2, 100));
    net.run(ms(100));
    assert_eq!(net.delivered(B), [packet::between(A, B, 2, 100)]);
    net.finish();
}

#[test]
fn c31_counters_start_at_zero_and_each_is_used_once() {
    let mut net = Net::pair();
    net.connect();
    for id in 0..200 {
        net.offer(A, &packet::between(A, B, id, 60));
    }
    net.settle();
    let counters: Vec<_> = net.sent(A).map(|d| d.header().counter).collect();
    // Counter 0 carried the packet that set the session up.
    assert_eq!(counters, (1..=200).collect::<Vec<u64>>());
    net.run(ms(100));
    assert_eq!(net.delivered(B).len(), 200);

    net.run(secs(6));
    net.log.clear();
    net.want_handshake(A);
    net.run(ms(100));
    let counters: Vec<_> = net
        .sent(A)
        .filter(|d| d.kind() == Kind::Data)
        .map(|d| d.header().counter)
        .collect();
    assert_eq!(counters, [0], "a new key starts anew");
    net.finish();
}

#[test]
fn c36_r13_keepalives_are_not_delivered_and_not_answered() {
    let mut net = Net::pair();
    net.connect();
    net.send(B, &packet::between(B, A, 1, 100));
    net.run(secs(1));
    net.delivered(A);
    // A owes B something for its packet: one keepalive, 10 seconds later. Nothing follows from that.
    net.log.clear();
    net.run(secs(100));
    let log: Vec<_> = net.log.iter().map(|d| (d.from, d.is_keepalive())).collect();
    assert_eq!(log, [(net.sites[A].addr, true)]);
    assert_eq!(net.sites[B].keepalives_received(), 1);
    assert_eq!(net.delivered(B), Vec::<Vec<u8>>::new());
    assert_eq!(
        net.sites[B].stage(Stage::LanTx),
        1,
        "the packet that set the session up"
    );
    net.finish();
}

#[test]
fn r13_two_sites_with_keepalives_do_not_ping_pong() {
    let mut net = Net::pair();
    net.connect();
    for (site, other) in [(A, B), (B, A)] {
        let peer = net.peer(site, other);
        net.sites[site].set_peer(peer, |change| change.persistent_keepalive = Some(25));
    }
    net.run(secs(5));
    net.log.clear();
    net.run(secs(100));
    let keepalives = net.log.iter().filter(|d| d.is_keepalive()).count();
    assert_eq!(keepalives, net.log.len());
    assert!((4..=8).contains(&keepalives), "{keepalives} in 100 seconds");
    net.finish();
}

#[test]
fn c53_a_key_is_dead_at_180_seconds_both_ways() {
    let mut net = Net::pair();
    net.connect();
    // No rekey: handshakes are lost. A's key was made 40 ms after the start, B's 20 ms after.
    net.wire = Box::new(|d| {
        if d.kind() == Kind::Data {
            vec![ms(0)]
        } else {
            vec![]
        }
    });
    net.run(secs(180) - ms(200 - 20) - ms(1));
    net.send(A, &packet::between(A, B, 1, 100));
    assert_eq!(net.delivered(B), [packet::between(A, B, 1, 100)], "still good");
    net.run(ms(1));
    net.send(A, &packet::between(A, B, 2, 100));
    assert_eq!(
        net.sites[B].dropped(DropReason::DecapExpired),
        1,
        "B's side is 180 s old, A's is not"
    );
    assert_eq!(net.delivered(B), Vec::<Vec<u8>>::new());
    net.run(ms(20));
    net.send(A, &packet::between(A, B, 3, 100));
    assert_eq!(net.sites[A].staged(), 1, "A's side is 180 s old");
    net.finish();
}

#[test]
fn c53_what_waits_when_the_key_dies_goes_under_the_next_one() {
    let mut net = Net::pair();
    net.connect();
    net.run(secs(200));
    let packets: Vec<_> = (0..70).map(|id| packet::between(A, B, id, 100)).collect();
    for packet in &packets {
        net.send(A, packet);
    }
    net.run(ms(100));
    assert_eq!(net.delivered(B), packets);
    assert_eq!(net.count(A, Kind::Initiation), 1);
    net.finish();
}

#[test]
fn c50_a_busy_session_is_renewed_without_a_loss() {
    let mut net = Net::pair();
    net.connect();
    let mut sent = Vec::new();
    for second in 0..400 {
        let packet = packet::between(A, B, second, 100);
        net.send(A, &packet);
        sent.push(packet);
        net.run(secs(1));
    }
    assert_eq!(net.delivered(B), sent);
    assert_eq!(net.count(A, Kind::Initiation), 3, "every 120 s");
    assert_eq!(net.count(B, Kind::Initiation), 0);
    assert_eq!(net.sites[A].drops(), []);
    assert_eq!(net.sites[B].drops(), []);
    net.finish();
}

#[test]
fn c50_an_initiator_that_receives_renews_from_165_seconds_on() {
    for (age, renews) in [(164, false), (166, true)] {
        let mut net = Net::pair();
        net.connect();
        net.run(secs(age));
        net.send(B, &packet::between(B, A, 1, 100));
        net.run(ms(100));
        assert_eq!(net.count(A, Kind::Initiation), usize::from(renews), "at {age} s");
        assert_eq!(net.count(B, Kind::Initiation), 0);
        assert_eq!(net.delivered(A).len(), 1);
        net.finish();
    }
}

#[test]
fn c18_a_new_private_key_stops_sending_at_once() {
    let mut net = Net::pair();
    net.connect();
    let peer = net.peer(A, B);
    net.command(A, peer, Command::ExpireSending(peer));
    net.settle();
    net.run(secs(6));
    net.log.clear();
    net.send(B, &packet::between(B, A, 1, 100));
    net.run(ms(100));
    assert_eq!(
        net.delivered(A),
        [packet::between(B, A, 1, 100)],
        "it still receives"
    );
    net.send(A, &packet::between(A, B, 2, 100));
    assert_eq!(
        net.sent(A).map(|d| d.kind()).collect::<Vec<_>>(),
        [Kind::Initiation]
    );
    net.finish();
}

/// The other side may be so quick that its first packet is here before this turn's commands were looked at again.
#[test]
fn r24_a_packet_that_arrives_together_with_its_session_is_opened() {
    let mut net = Net::pair();
    let inbox = Arc::clone(net.sites[B].workers[0].inbox());
    let held = Arc::new(Mutex::new(None));
    let (udp, wan) = LoopbackPort::pair(64);
    let given = Arc::clone(&held);
    let port = Interrupted {
        port: udp,
        then: move |received| {
            if received > 0
                && let Some(command) = given.lock().unwrap().take()
            {
                assert!(inbox.commands.push(command).is_ok());
            }
        },
    };
    net.replace_wan(B, Box::new(port), wan);
    // B's session goes to its worker only when the worker has taken A's first packet from the socket.
    net.sites[B].hold_install = Some(Arc::clone(&held));
    net.send(A, &packet::between(A, B, 1, 100));
    net.run(ms(200));
    assert!(held.lock().unwrap().is_none());
    assert_eq!(net.delivered(B), [packet::between(A, B, 1, 100)]);
    assert_eq!(net.sites[B].drops(), []);
    net.finish();
}

#[test]
fn interface_down_and_up_again() {
    let mut net = Net::pair();
    net.connect();
    net.send(A, &packet::between(A, B, 1, 100));
    net.set_up(B, false);
    net.run(secs(1));
    assert_eq!(net.delivered(B), Vec::<Vec<u8>>::new());
    assert_eq!(net.sites[B].noticed.retired, 1, "down, there are no keys");
    net.send(B, &packet::between(B, A, 2, 100));
    net.run(secs(1));
    assert_eq!(net.sent(B).count(), 0, "and nothing is sent");
    net.set_up(B, true);
    net.wire = perfect(ms(20));
    net.run(secs(10));
    net.send(B, &packet::between(B, A, 3, 100));
    net.run(ms(200));
    assert_eq!(
        net.delivered(A),
        [packet::between(B, A, 2, 100), packet::between(B, A, 3, 100)]
    );
    net.finish();
}
