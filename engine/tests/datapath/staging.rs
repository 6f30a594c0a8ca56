//! Packets that wait for a session: how many, in which order, and until when.

use patronus_crypto::messages::Kind;
use patronus_engine::channel::Command;
use patronus_engine::stats::DropReason;
use patronus_engine::wg::JUMBO_SHARE;
use patronus_engine::wg::STAGED_MAX;
use patronus_mem::SMALL_MAX;

use crate::common::{A, B, Net, Setup, ms, packet, perfect, secs};

#[test]
fn c40_the_newest_128_wait_and_leave_in_order() {
    assert_eq!(STAGED_MAX, 128);
    let mut net = Net::pair();
    let packets: Vec<_> = (0..300).map(|id| packet::between(A, B, id, 100)).collect();
    for packet in &packets {
        net.offer(A, packet);
    }
    net.settle();
    assert_eq!(net.sites[A].staged(), 128);
    assert_eq!(net.sites[A].drops(), [(DropReason::StagedOverflow, 172)]);
    net.run(ms(100));
    assert_eq!(net.delivered(B), packets[172..]);
    assert_eq!(net.sites[A].staged(), 0);
    assert_eq!(net.count(A, Kind::Initiation), 1, "one handshake for all of them");
    assert_eq!(net.sites[A].noticed.want_handshake, 1, "asked for once");
    net.finish();
}

#[test]
fn c40_exactly_128_lose_nothing() {
    let mut net = Net::pair();
    for id in 0..128 {
        net.offer(A, &packet::between(A, B, id, 100));
    }
    net.settle();
    assert_eq!((net.sites[A].staged(), net.sites[A].drops().len()), (128, 0));
    net.offer(A, &packet::between(A, B, 128, 100));
    net.settle();
    assert_eq!(net.sites[A].staged(), 128);
    assert_eq!(net.sites[A].drops(), [(DropReason::StagedOverflow, 1)]);
    net.finish();
}

/// Packets that come while others still wait do not overtake them.
#[test]
fn c40_order_is_kept_while_the_session_comes() {
    for gap in 0..60 {
        let mut net = Net::pair();
        let packets: Vec<_> = (0..80).map(|id| packet::between(A, B, id, 100)).collect();
        for (n, packet) in packets.iter().enumerate() {
            net.send(A, packet);
            if n == 30 {
                net.run(ms(gap));
            } else {
                net.advance(ms(1));
            }
        }
        net.run(secs(1));
        assert_eq!(net.delivered(B), packets, "{gap} ms");
        net.finish();
    }
}

#[test]
fn c40_what_waits_is_purged_when_the_handshake_is_given_up() {
    let mut net = Net::pair();
    net.wire = Box::new(|_| vec![]);
    for id in 0..10 {
        net.send(A, &packet::between(A, B, id, 100));
    }
    net.run(secs(85));
    assert_eq!(net.sites[A].staged(), 10, "still trying");
    net.run(secs(25));
    assert_eq!(net.sites[A].staged(), 0);
    assert_eq!(net.sites[A].drops(), [(DropReason::StagedPurged, 10)]);
    let tried = net.count(A, Kind::Initiation);
    net.run(secs(100));
    assert_eq!(net.count(A, Kind::Initiation), tried, "given up");
    // New data starts over, and only that is delivered.
    net.wire = perfect(ms(20));
    net.send(A, &packet::between(A, B, 50, 100));
    net.run(ms(100));
    assert_eq!(net.delivered(B), [packet::between(A, B, 50, 100)]);
    net.finish();
}

/// Many silent peers do not take every frame: the limit of all of them together, and what it does to each.
#[test]
fn c40_all_peers_together_have_a_limit() {
    let setup = Setup {
        staged_limit: 100,
        ..Setup::default()
    };
    let mut net = Net::star(3, &setup);
    net.wire = Box::new(|_| vec![]);
    for id in 0..60 {
        net.send(A, &packet::between(A, 1, id, 100));
        net.send(A, &packet::between(A, 2, id, 100));
    }
    assert_eq!(net.sites[A].staged(), 100);
    // 20 of each were too many: their own oldest made room.
    assert_eq!(net.sites[A].drops(), [(DropReason::StagedOverflow, 20)]);
    // Who has nothing to give up gets no place.
    net.send(A, &packet::between(A, 3, 0, 100));
    assert_eq!(net.sites[A].dropped(DropReason::StagedNoFrame), 1);
    assert_eq!(net.sites[A].staged(), 100);
    assert_eq!(net.count(A, Kind::Initiation), 3, "but its session is asked for");
    net.wire = perfect(ms(20));
    net.run(secs(6));
    for branch in [1, 2] {
        let expected: Vec<_> = (10..60).map(|id| packet::between(A, branch, id, 100)).collect();
        assert_eq!(net.delivered(branch), expected);
    }
    assert_eq!(net.sites[A].staged(), 0);
    net.send(A, &packet::between(A, 3, 1, 100));
    net.run(ms(100));
    assert_eq!(net.delivered(3).len(), 1);
    net.finish();
}

/// There are few jumbo frames: those that wait have a limit of their own.
#[test]
fn c40_waiting_packets_leave_jumbo_frames_for_others() {
    let setup = Setup {
        mtu: 9000,
        staged_limit: 8 * JUMBO_SHARE,
        ..Setup::default()
    };
    let mut net = Net::pair_with(&setup);
    net.wire = Box::new(|_| vec![]);
    for id in 0..12 {
        net.send(A, &packet::between(A, B, id, 4000));
    }
    assert_eq!(net.sites[A].drops(), [(DropReason::StagedNoFrame, 4)]);
    net.send(A, &packet::between(A, B, 12, 100));
    assert_eq!(net.sites[A].staged(), 9, "small frames there are enough");
    net.wire = perfect(ms(20));
    net.run(secs(6));
    assert_eq!(net.delivered(B).len(), 9);
    // Their places are free again.
    net.wire = Box::new(|_| vec![]);
    net.run(secs(600));
    for id in 20..28 {
        net.send(A, &packet::between(A, B, id, 4000));
    }
    assert_eq!(net.sites[A].dropped(DropReason::StagedNoFrame), 4);
    net.finish();
}

/// The longest packet of a small frame is no jumbo, neither when it begins to wait nor when it leaves.
#[test]
fn c40_the_longest_small_packets_leave_the_places_of_jumbo_frames_alone() {
    let setup = Setup {
        mtu: 9000,
        staged_limit: 2 * JUMBO_SHARE,
        ..Setup::default()
    };
    let mut net = Net::pair_with(&setup);
    for id in 0..5 {
        net.send(A, &packet::between(A, B, id, SMALL_MAX));
    }
    assert_eq!(net.sites[A].staged(), 5);
    net.run(ms(100));
    assert_eq!(net.delivered(B).len(), 5);
    // The places of jumbo frames are as many as before.
    net.wire = Box::new(|_| vec![]);
    net.run(secs(600));
    for id in 5..8 {
        net.send(A, &packet::between(A, B, id, SMALL_MAX + 1));
    }
    assert_eq!(net.sites[A].drops(), [(DropReason::StagedNoFrame, 1)]);
    assert_eq!(net.sites[A].staged(), 2);
    net.finish();
}

/// The worker repeats its request, not with every packet but often enough that a lost chance is not a lost session.
#[test]
fn a_session_is_asked_for_at_most_twice_a_second() {
    let mut net = Net::pair();
    net.wire = Box::new(|_| vec![]);
    let asked = |net: &Net| net.sites[A].noticed.want_handshake;
    net.send(A, &packet::between(A, B, 1, 100));
    assert_eq!(asked(&net), 1);
    for _ in 0..4 {
        net.advance(ms(100));
        net.send(A, &packet::between(A, B, 2, 100));
    }
    net.advance(ms(99));
    net.send(A, &packet::between(A, B, 3, 100));
    assert_eq!(asked(&net), 1);
    net.advance(ms(1));
    net.send(A, &packet::between(A, B, 4, 100));
    assert_eq!(asked(&net), 2);
    assert_eq!(
        net.count(A, Kind::Initiation),
        1,
        "the slow path has a limit of its own"
    );
    net.finish();
}

/// The interval is about requests that go unanswered. A session that came and went is an answer.
#[test]
fn a_new_session_may_be_asked_for_soon_after_the_last_one_came() {
    for answers in [A, B] {
        let mut net = Net::pair();
        net.send(1 - answers, &packet::between(1 - answers, answers, 1, 100));
        // B asks as well: the session that A began will have answered that, or the other way round.
        net.send(answers, &packet::between(answers, 1 - answers, 1, 100));
        net.run(ms(100));
        for site in [A, B] {
            assert_eq!(net.sites[site].noticed.want_handshake, 1);
            let peer = net.peer(site, 1 - site);
            net.command(site, peer, Command::EraseKeys(peer));
            net.send(site, &packet::between(site, 1 - site, 2, 100));
            assert_eq!(net.sites[site].noticed.want_handshake, 2, "site {site}");
        }
        net.run(secs(20));
        for site in [A, B] {
            assert_eq!(net.delivered(site).len(), 2);
        }
        net.finish();
    }
}

/// What waits for a peer whose endpoint is taken away stays, and leaves with the next session.
#[test]
fn an_endpoint_that_is_forgotten_meanwhile_loses_nothing() {
    let mut net = Net::pair();
    let peer = net.peer(A, B);
    net.send(A, &packet::between(A, B, 1, 100));
    net.command(A, peer, Command::Endpoint(peer, patronus_mem::Outer::NONE));
    net.settle();
    // The response says where B is.
    net.run(ms(100));
    assert_eq!(net.delivered(B), [packet::between(A, B, 1, 100)]);
    net.finish();
}

#[test]
fn c40_a_keepalive_command_sends_what_waits_instead() {
    let mut net = Net::pair();
    net.connect();
    let peer = net.peer(A, B);
    net.log.clear();
    net.command(A, peer, Command::Keepalive(peer));
    net.settle();
    assert!(net.log[0].is_keepalive());
    // Without a session, it asks for one.
    net.command(A, peer, Command::EraseKeys(peer));
    net.run(secs(6));
    net.log.clear();
    net.command(A, peer, Command::Keepalive(peer));
    net.settle();
    let kinds: Vec<_> = net.log.iter().map(|d| d.kind()).collect();
    assert_eq!(kinds, [Kind::Initiation]);
    net.finish();
}
