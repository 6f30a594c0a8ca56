//! Which link the session with a stock peer goes by: the rules of [`patronus_engine::standby`], against sequences of events.

use patronus_crypto::{Duration, Time};
use patronus_engine::standby::{CONFIRM, HOLD, Health, Move, Rank, Standby, Step, Why};
use proptest::prelude::*;

fn at(ms: u64) -> Time {
    Time(ms * 1_000_000)
}

/// Links in the order of their places, the last one metered.
fn ranks(count: usize) -> Vec<Rank> {
    let rank = |at: usize| Rank {
        metered: at + 1 == count && count > 2,
        cost: 10,
        id: at as u8 + 1,
    };
    (0..count).map(rank).collect()
}

fn standby(count: usize) -> Standby {
    let mut standby = Standby::new(&ranks(count), HOLD, at(0));
    standby.set_calls_us(false);
    (0..count).for_each(|link| standby.set_health(link, Health::Good, at(0)));
    standby
}

fn moved(standby: &mut Standby, now: Time) -> Option<(usize, Why)> {
    match standby.poll(now) {
        Some(Step::Move(Move { to, why, .. })) => Some((to, why)),
        _ => None,
    }
}

#[test]
fn the_best_by_rank_is_first() {
    let mut ranks = ranks(3);
    ranks[0].cost = 20;
    ranks[2].cost = 1;
    let mut standby = Standby::new(&ranks, HOLD, at(0));
    assert_eq!(standby.poll(at(0)), None, "none works");
    standby.set_health(2, Health::Good, at(1));
    assert_eq!(
        moved(&mut standby, at(1)),
        Some((2, Why::First)),
        "metered is better than none"
    );
    (0..2).for_each(|link| standby.set_health(link, Health::Good, at(2)));
    assert_eq!(moved(&mut standby, at(30_001)), None);
    assert_eq!(moved(&mut standby, at(30_002)), Some((1, Why::Preferred)));
}

#[test]
fn a_link_that_does_not_work_is_left_at_once_and_returned_to_after_the_hold() {
    for (health, why) in [
        (Health::Gone, Why::LinkGone),
        (Health::NoRoute, Why::NoRoute),
        (Health::GatewaySilent, Why::GatewaySilent),
    ] {
        let mut standby = standby(2);
        assert_eq!(moved(&mut standby, at(0)), Some((0, Why::First)));
        standby.set_health(0, health, at(1000));
        assert_eq!(moved(&mut standby, at(1000)), Some((1, why)));
        standby.set_health(0, Health::Good, at(2000));
        assert_eq!(standby.deadline(at(2000)), Some(at(32_000)));
        // It flaps: the time begins anew.
        standby.set_health(0, health, at(20_000));
        standby.set_health(0, Health::Good, at(21_000));
        assert_eq!(moved(&mut standby, at(50_999)), None);
        assert_eq!(moved(&mut standby, at(51_000)), Some((0, Why::Preferred)));
    }
}

#[test]
fn without_a_better_link_nothing_moves() {
    let mut standby = standby(2);
    moved(&mut standby, at(0));
    standby.set_health(1, Health::GatewaySilent, at(1));
    standby.set_health(0, Health::Gone, at(1));
    assert_eq!(standby.poll(at(100_000)), None);
    assert_eq!(standby.current(), Some(0));
    standby.set_health(1, Health::Good, at(100_000));
    assert_eq!(moved(&mut standby, at(100_000)), Some((1, Why::LinkGone)));
}

#[test]
fn each_link_is_tried_once_when_pings_are_lost_everywhere() {
    let mut standby = standby(3);
    moved(&mut standby, at(0));
    for (now, to) in [(60_000, 1), (60_600, 2)] {
        standby.ping_lost(at(now));
        assert_eq!(moved(&mut standby, at(now)), Some((to, Why::PingLost)));
    }
    standby.ping_lost(at(61_200));
    assert_eq!(standby.poll(at(61_200)), None, "it stays");
    // The first is tried again after the hold, the others in their turn; and the pauses become longer.
    assert_eq!(standby.deadline(at(61_200)), Some(at(90_000)));
    assert_eq!(moved(&mut standby, at(90_000)), Some((0, Why::PingLost)));
    standby.ping_lost(at(90_600));
    assert_eq!(moved(&mut standby, at(90_600)), Some((1, Why::PingLost)));
    standby.ping_lost(at(91_200));
    assert_eq!(moved(&mut standby, at(91_200)), Some((2, Why::PingLost)));
    standby.ping_lost(at(91_800));
    assert_eq!(standby.deadline(at(91_800)), Some(at(90_600 + 60_000)));
    // Somebody answers: all is well.
    standby.ping_answered();
    assert_eq!(standby.poll(at(92_000)), None);
}

#[test]
fn tries_of_a_preferred_link_that_fails_become_rare() {
    let mut standby = standby(2);
    moved(&mut standby, at(0));
    standby.ping_lost(at(60_000));
    assert_eq!(moved(&mut standby, at(60_000)), Some((1, Why::PingLost)));
    let (mut tries, mut now) = (Vec::new(), 60_000);
    while now < 4 * 3_600_000 {
        standby.ping_answered();
        now += 100;
        if let Some((to, why)) = moved(&mut standby, at(now)) {
            assert_eq!((to, why), (0, Why::Preferred));
            tries.push(now);
            standby.ping_lost(at(now + 600));
            assert_eq!(moved(&mut standby, at(now + 600)), Some((1, Why::PingLost)));
        }
    }
    assert!(
        (tries[0], tries[1] - tries[0] >= 60_000) == (90_000, true),
        "{tries:?}"
    );
    assert!(tries.len() < 4 * 4 + 6, "{tries:?}");
}

#[test]
fn a_move_that_is_not_heard_of_is_taken_back() {
    let mut standby = standby(2);
    moved(&mut standby, at(0));
    standby.set_health(0, Health::Gone, at(100_000));
    assert_eq!(moved(&mut standby, at(100_000)), Some((1, Why::LinkGone)));
    standby.expect(at(100_000));
    standby.set_health(0, Health::Good, at(100_100));
    let mut steps = Vec::new();
    for now in (100_100..100_000 + CONFIRM.as_millis() as u64).step_by(10) {
        steps.extend(standby.poll(at(now)).map(|step| (now, step)));
    }
    let expected = [
        (100_200, Step::Nudge),
        (100_500, Step::Nudge),
        (101_000, Step::Call),
    ];
    assert_eq!(steps, expected);
    let end = at(100_000).after(CONFIRM);
    assert_eq!(moved(&mut standby, end), Some((0, Why::NotHeard)));
    // Heard: nothing more is to be done.
    standby.expect(end);
    assert_eq!(standby.heard(0, end), None);
    assert_eq!(standby.poll(end.after(CONFIRM)), None);
}

#[test]
fn where_the_peer_was_heard_is_where_the_session_is() {
    let mut standby = standby(2);
    moved(&mut standby, at(0));
    let moved_by_peer = standby
        .heard(1, at(50_000))
        .map(|moved| (moved.from, moved.to, moved.why));
    assert_eq!(moved_by_peer, Some((Some(0), 1, Why::Heard)));
    assert_eq!(
        moved(&mut standby, at(79_999)),
        None,
        "it has been away from there for less than the hold"
    );
    assert_eq!(moved(&mut standby, at(80_000)), Some((0, Why::Preferred)));
}

#[test]
fn a_peer_that_calls_us_stays_where_it_calls() {
    let mut standby = standby(2);
    standby.set_calls_us(true);
    moved(&mut standby, at(0));
    assert!(standby.heard(1, at(1000)).is_some());
    assert_eq!(moved(&mut standby, at(100_000)), None);
    standby.set_health(1, Health::GatewaySilent, at(100_000));
    assert_eq!(moved(&mut standby, at(100_000)), Some((0, Why::GatewaySilent)));
    // Heard where it was moved to: there it can be reached. Whether it still can elsewhere, nobody knows.
    assert_eq!(standby.heard(0, at(100_020)), None);
    standby.set_health(1, Health::Good, at(110_000));
    assert_eq!(moved(&mut standby, at(400_000)), None);
}

#[derive(Clone, Debug)]
enum Happens {
    Nothing,
    Health(usize, Health),
    Heard(usize),
    Lost,
    Answered,
    Expect,
}

fn happens() -> impl Strategy<Value = Happens> {
    let health = prop_oneof![
        3 => Just(Health::Good),
        1 => Just(Health::GatewaySilent),
        1 => Just(Health::NoRoute),
        1 => Just(Health::Gone),
    ];
    prop_oneof![
        4 => Just(Happens::Nothing),
        4 => (0..3usize, health).prop_map(|(link, health)| Happens::Health(link, health)),
        1 => (0..3usize).prop_map(Happens::Heard),
        2 => Just(Happens::Lost),
        3 => Just(Happens::Answered),
        1 => Just(Happens::Expect),
    ]
}

/// What the rules say of a move, by a memory of everything that has happened.
struct Oracle {
    health: [Health; 3],
    good_since: [u64; 3],
    left: [Option<u64>; 3],
    /// When the link that the session is on has failed to bring answers.
    failing: Option<u64>,
    /// When each that it is not on has.
    failed: [Option<u64>; 3],
}

impl Oracle {
    fn check(&self, moved: &Move, now: u64) -> Result<(), TestCaseError> {
        let hold = HOLD.as_millis() as u64;
        prop_assert_eq!(
            self.health[moved.to],
            Health::Good,
            "never to one that does not work"
        );
        prop_assert!(moved.from != Some(moved.to));
        let ranks = ranks(3);
        match moved.why {
            Why::First => prop_assert_eq!(moved.from, None),
            Why::Preferred => {
                let from = moved.from.expect("there is another one");
                prop_assert!(ranks[moved.to] < ranks[from]);
                prop_assert!(now >= self.good_since[moved.to] + hold, "worked for the hold");
                prop_assert!(
                    self.left[moved.to].is_none_or(|left| now >= left + hold),
                    "away for the hold"
                );
            }
            Why::PingLost | Why::NotHeard => {
                prop_assert!(self.failing.is_some(), "never without a better link");
                prop_assert!(self.failed[moved.to].is_none_or(|failed| now >= failed + hold));
            }
            Why::LinkGone | Why::NoRoute | Why::GatewaySilent => {
                let from = moved.from.expect("it was on one");
                prop_assert!(self.health[from] != Health::Good);
            }
            Why::Heard => prop_assert!(false, "not by itself"),
        }
        Ok(())
    }

    /// What comes of a step.
    fn take(&mut self, step: Step, now: u64) -> Result<(), TestCaseError> {
        let Step::Move(moved) = step else { return Ok(()) };
        self.check(&moved, now)?;
        if let Some(from) = moved.from {
            (self.left[from], self.failed[from]) = (Some(now), self.failing);
        }
        (self.failing, self.failed[moved.to]) = (None, None);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens: moves are as the rules say; after each event the session is on a link that works if there is one; and nothing is due
    /// that the deadline did not say.
    #[test]
    fn the_rules_hold(events in proptest::collection::vec((happens(), 1u64..40_000), 1..120)) {
        let mut standby = Standby::new(&ranks(3), HOLD, at(0));
        standby.set_calls_us(false);
        let mut oracle = Oracle {
            health: [Health::Gone; 3], good_since: [0; 3], left: [None; 3], failing: None, failed: [None; 3],
        };
        let (mut now, mut expecting) = (0u64, None);
        for (event, pause) in events {
            // Time passes from deadline to deadline.
            let end = now + pause;
            loop {
                let next = standby.deadline(at(now)).map_or(u64::MAX, |next| next.0.div_ceil(1_000_000));
                now = next.clamp(now, end);
                if expecting.is_some_and(|until| now >= until) {
                    (oracle.failing, expecting) = (Some(now), None);
                }
                let mut turns = 0;
                while let Some(step) = standby.poll(at(now)) {
                    turns += 1;
                    prop_assert!(turns < 8, "it comes to an end");
                    if matches!(step, Step::Move(_)) { expecting = None }
                    oracle.take(step, now)?;
                }
                if next >= end { break }
                prop_assert!(standby.deadline(at(now)).is_none_or(|next| next > at(now)), "no deadline twice");
            }
            now = end;
            match event {
                Happens::Nothing => {}
                Happens::Health(link, health) => {
                    if oracle.health[link] != health {
                        (oracle.health[link], oracle.good_since[link]) = (health, now);
                        if health == Health::Gone {
                            oracle.failed[link] = None;
                            if standby.current() == Some(link) { oracle.failing = None }
                        }
                    }
                    standby.set_health(link, health, at(now));
                }
                Happens::Heard(link) => {
                    if let Some(Move { from: Some(from), .. }) = standby.heard(link, at(now)) {
                        (oracle.left[from], oracle.failed[from]) = (Some(now), oracle.failing);
                        (oracle.failing, oracle.failed[link]) = (None, None);
                    }
                    expecting = None;
                }
                Happens::Lost if standby.current().is_some() => {
                    (oracle.failing, expecting) = (Some(now), None);
                    standby.ping_lost(at(now));
                }
                Happens::Answered => {
                    (oracle.failing, expecting) = (None, None);
                    standby.ping_answered();
                }
                Happens::Expect if standby.current().is_some() => {
                    expecting = Some(now + CONFIRM.as_millis() as u64);
                    standby.expect(at(now));
                }
                Happens::Lost | Happens::Expect => {}
            }
            while let Some(step) = standby.poll(at(now)) {
                if matches!(step, Step::Move(_)) { expecting = None }
                oracle.take(step, now)?;
            }
            if oracle.health.contains(&Health::Good) {
                let current = standby.current().expect("there is one that works");
                prop_assert_eq!(oracle.health[current], Health::Good);
            }
        }
    }
}

/// A minute of noise costs few moves, however bad it is.
#[test]
fn a_link_that_flaps_moves_the_session_once_in_a_hold_time() {
    let mut standby = standby(2);
    moved(&mut standby, at(0));
    let mut moves = 0;
    for second in 1..600 {
        let health = if second % 2 == 0 {
            Health::Good
        } else {
            Health::GatewaySilent
        };
        standby.set_health(0, health, at(second * 1000));
        moves += u64::from(moved(&mut standby, at(second * 1000)).is_some());
    }
    assert_eq!(moves, 1);
    assert!(Duration::from_secs(600) > HOLD);
}
