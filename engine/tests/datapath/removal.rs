//! Peers that go while something of theirs is still on its way.

use std::sync::{Arc, Mutex};

use patronus_crypto::messages::Kind;
use patronus_engine::channel::Command;
use patronus_engine::stats::DropReason;

use crate::common::{A, B, Net, Seeded, Setup, ms, packet, secs};

#[test]
fn c69_packets_of_a_removed_peer_find_no_session() {
    let mut net = Net::pair();
    net.connect();
    let peer = net.peer(B, A);
    for id in 0..5 {
        net.send(A, &packet::between(A, B, id, 100));
    }
    assert_eq!(net.sites[B].core.device().indices_in_use(), 1);
    // In the same turn: some packets are in the socket, some on the wire.
    let (_, first) = net.flying.remove(0);
    net.inject_on(B, 0, &first);
    net.remove_peer(B, peer);
    net.run(ms(100));
    assert_eq!(net.delivered(B).len(), 0);
    assert_eq!(net.sites[B].drops(), [(DropReason::DecapUnknownIndex, 5)]);
    assert_eq!(
        net.sites[B].core.device().indices_in_use(),
        0,
        "the index is free"
    );
    assert_eq!(net.sites[B].noticed.slots, 1, "the slot came back");
    net.finish();
}

#[test]
fn c69_what_waits_for_a_removed_peer_is_dropped_and_counted() {
    let mut net = Net::pair();
    let peer = net.peer(A, B);
    for id in 0..50 {
        net.send(A, &packet::between(A, B, id, 100));
    }
    net.remove_peer(A, peer);
    net.settle();
    assert_eq!(net.sites[A].drops(), [(DropReason::StagedPurged, 50)]);
    net.send(A, &packet::between(A, B, 60, 100));
    assert_eq!(net.sites[A].dropped(DropReason::EncapNoPeer), 1);
    net.run(secs(10));
    assert_eq!(net.count(A, Kind::Data), 0);
    net.finish();
}

/// At every moment of a handshake, on either side.
#[test]
fn c69_r41_a_peer_is_removed_during_its_handshake() {
    for after in 0..80 {
        for site in [A, B] {
            let mut net = Net::pair();
            let peer = net.peer(site, 1 - site);
            net.send(A, &packet::between(A, B, 1, 100));
            net.run(ms(after));
            net.remove_peer(site, peer);
            net.run(secs(3));
            assert_eq!(
                net.sites[site].core.device().indices_in_use(),
                0,
                "{after} ms, site {site}"
            );
            // It may come back, and works.
            net.introduce(site, 1 - site);
            for id in 0..25 {
                net.send(B, &packet::between(B, A, id, 100));
                net.run(secs(1));
            }
            assert_eq!(net.delivered(A).last(), Some(&packet::between(B, A, 24, 100)));
            net.finish();
        }
    }
}

/// A session that was on its way to the worker when its peer was removed.
#[test]
fn r41_a_session_for_a_peer_that_is_gone_goes_back() {
    let mut net = Net::pair();
    let peer = net.peer(A, B);
    let held = Arc::new(Mutex::new(None));
    net.sites[A].hold_install = Some(Arc::clone(&held));
    net.want_handshake(A);
    net.run(ms(50));
    net.remove_peer(A, peer);
    net.settle();
    assert_eq!(net.sites[A].core.device().indices_in_use(), 1);
    let install = held.lock().unwrap().take().expect("a session");
    net.command(A, peer, install);
    net.settle();
    assert_eq!(net.sites[A].noticed.retired, 1);
    assert_eq!(net.sites[A].core.device().indices_in_use(), 0);
    assert_eq!(net.count(A, Kind::Data), 0);
    net.finish();
}

/// A number is given to the next peer only after the worker let go of the old one, so nothing of one reaches the other.
#[test]
fn c69_a_new_peer_in_the_place_of_an_old_one_inherits_nothing() {
    let mut net = Net::empty();
    let setup = Setup {
        max_peers: 1,
        ..Setup::default()
    };
    net.add_site(&setup);
    net.add_site(&Setup::default());
    net.add_site(&Setup::default());
    let old = net.introduce(A, 1);
    net.introduce(1, A);
    net.introduce(2, A);
    net.send(A, &packet::between(A, 1, 1, 100));
    net.run(secs(1));
    net.send(A, &packet::between(A, 1, 2, 100));
    let (late, _) = (
        net.forge(A, 0, 9, &packet::between(1, A, 3, 100)),
        net.delivered(1),
    );
    net.remove_peer(A, old);
    net.settle();
    let new = net.introduce(A, 2);
    assert_eq!(new, old, "the only number there is");
    let from = net.sites[1].addr;
    net.inject(A, from, &late);
    assert_eq!(net.sites[A].drops(), [(DropReason::DecapUnknownIndex, 1)]);
    net.send(A, &packet::between(A, 2, 4, 100));
    net.run(secs(1));
    assert_eq!(net.delivered(2), [packet::between(A, 2, 4, 100)]);
    assert_eq!(net.delivered(1), [packet::between(A, 1, 2, 100)]);
    assert_eq!(
        net.sites[A].core.device().traffic(new).received_bytes(),
        92,
        "the response only"
    );
    net.finish();
}

/// Any order of adding, removing, erasing and sending.
#[test]
fn c69_r41_any_order_of_events_loses_no_frame_and_no_index() {
    for seed in 0..60 {
        let mut rng = Seeded(seed);
        let workers = rng.pick(1..4);
        let setup = Setup {
            workers,
            staged_limit: 64,
            ..Setup::default()
        };
        let mut net = Net::star(3, &setup);
        net.logging = false;
        for id in 0..150 {
            let branch = rng.pick(1..4);
            let known = net.sites[A].core.device().peer(&net.key(branch));
            match (rng.pick(0..12), known) {
                (0, Some(peer)) => net.remove_peer(A, peer),
                (0 | 1, None) => drop(net.introduce(A, branch)),
                (2, Some(peer)) => net.command(A, peer, Command::EraseKeys(peer)),
                (3, Some(peer)) => net.command(A, peer, Command::DropStaged(peer)),
                (4, Some(peer)) => net.command(A, peer, Command::ExpireSending(peer)),
                (5, Some(peer)) => net.command(A, peer, Command::Keepalive(peer)),
                (6, _) => net.run(secs(rng.pick(1..12) as u64)),
                (7, _) => net.send(branch, &packet::between(branch, A, id, 200)),
                (8, _) => net.run(ms(rng.pick(1..60) as u64)),
                _ => {
                    let queue = rng.pick(0..workers);
                    net.offer_on(A, queue, &packet::between(A, branch, id, 100));
                    net.settle();
                }
            }
        }
        net.finish();
    }
}
