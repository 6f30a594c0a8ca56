//! A stock peer, and two links of ours by which it is reached: where its session goes.

use patronus_crypto::Duration;
use patronus_engine::slowpath::core::PingPlan;
use patronus_engine::standby::{HOLD, Rank, Why};

use super::pair::{A, B, Kind, Pair, kind, ms, secs};

/// Site A has two links, and B one: a peer like any other.
fn pair(behind_nat: bool) -> Pair {
    let a = Kind {
        remote: false,
        ..kind(2, 2)
    };
    let b = Kind {
        links: vec![(0, behind_nat)],
        remote: false,
        ..kind(1, 1)
    };
    Pair::new(a, b)
}

fn link(pair: &Pair) -> Option<usize> {
    pair.sites[A].core.link_of(pair.base(A))
}

fn ping(pair: &mut Pair) {
    let plan = PingPlan {
        from: [10, A as u8, 0, 9].into(),
        to: [10, B as u8, 0, 9].into(),
        interval: ms(200),
    };
    let id = pair.base(A);
    assert!(pair.sites[A].core.set_ping(id, Some(plan)));
}

#[test]
fn a_session_goes_by_one_link_and_leaves_it_with_its_carrier() {
    let mut pair = pair(false);
    pair.send(A, 1, 0);
    pair.run(secs(1));
    pair.exchange();
    assert_eq!((link(&pair), pair.used(A, 1)), (Some(0), vec![0]));
    let handshake = |pair: &Pair| pair.sites[A].core.device().last_handshake(pair.base(A));
    let before = handshake(&pair);
    pair.sites[A].close_link(0);
    // What was sent to the old address is on its way for 20 ms, and the way to the peer takes as long.
    pair.run(ms(50));
    pair.exchange();
    assert_eq!((link(&pair), pair.used(A, 1)), (Some(1), vec![1]));
    assert_eq!(handshake(&pair), before, "the session went along");
    pair.sites[A].open_link(0);
    pair.run(HOLD - secs(2));
    assert_eq!(link(&pair), Some(1));
    pair.exchange();
    pair.run(secs(3));
    assert_eq!(link(&pair), Some(0), "it has worked for long enough");
    pair.exchange();
    let moves = pair.sites[A].core.take_moves();
    let whys: Vec<Why> = moves.iter().map(|moved| moved.moved.why).collect();
    assert_eq!(whys, [Why::First, Why::LinkGone, Why::Preferred]);
}

/// A path dies beyond the gateway. Three pings of 200 ms later the session is elsewhere; as long as the path is dead, tries of it are rare.
#[test]
fn pings_find_a_dead_path() {
    let mut pair = pair(false);
    ping(&mut pair);
    pair.run(secs(60));
    pair.exchange();
    assert_eq!(link(&pair), Some(0));
    pair.sites[A].core.take_moves();
    for phase in [0, 70, 140, 199] {
        pair.run(ms(phase));
        let dead = link(&pair).unwrap();
        pair.dead.insert(dead);
        pair.run(ms(801));
        assert_eq!(link(&pair), Some(1 - dead), "{phase}");
        pair.exchange();
        pair.dead.clear();
        // Until what failed is forgotten, and the session is back at its best link.
        pair.run(secs(200));
        assert_eq!(link(&pair), Some(0), "{phase}");
        pair.exchange();
    }
    pair.sites[A].core.take_moves();
    pair.dead.insert(0);
    pair.run(secs(4 * 3600));
    let moves = pair.sites[A].core.take_moves();
    assert!(moves.len() < 2 * (16 + 6), "{} moves in four hours", moves.len());
    assert_eq!(link(&pair), Some(1));
    pair.exchange();
}

/// Nothing is answered by any link: the session does not wander about, and no keys are worn out by it.
#[test]
fn a_peer_that_is_away_costs_little() {
    let mut pair = pair(false);
    ping(&mut pair);
    pair.run(secs(60));
    pair.dead.extend([0, 1]);
    pair.sites[A].core.take_moves();
    pair.run(secs(3600));
    let moves = pair.sites[A].core.take_moves().len();
    assert!(moves < 3600 / 30, "{moves} moves in an hour");
    pair.dead.clear();
    pair.run(secs(60));
    pair.exchange();
}

/// A peer that calls us from behind a NAT hears us from nowhere else. Whatever link we would like better, nothing moves.
#[test]
fn who_calls_us_is_answered_where_he_calls() {
    let mut pair = pair(true);
    let rank = |id: u8, cost| Rank {
        metered: false,
        cost,
        id,
    };
    pair.sites[A].core.set_ranks(vec![rank(1, 10), rank(2, 0)]);
    pair.run(secs(1));
    pair.send(B, 1, 0);
    pair.run(secs(1));
    assert_eq!(link(&pair), Some(0));
    pair.exchange();
    pair.sites[A].core.take_moves();
    pair.run(Duration::from_secs(600));
    assert_eq!(pair.sites[A].core.take_moves(), []);
    pair.send(B, 1, 0);
    pair.run(secs(1));
    pair.exchange();
}
