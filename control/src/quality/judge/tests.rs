//! Orders of one class over paths of any kind. A day of paths with troubles is in tests/quality.rs.

use proptest::prelude::*;

use super::*;
use crate::quality::verdict::What;
use crate::quality::window::Counted;

const SECOND: u64 = 1_000_000_000;

fn class(mode: Mode) -> Class {
    Class {
        name: "voice".to_owned(),
        mode,
        latency_us: Some(150_000),
        jitter_us: Some(30_000),
        loss_ppm: Some(10_000),
        hold_ms: 30_000,
        ..Class::default()
    }
}

fn path(local: u8) -> PathName {
    PathName { local, remote: 1 }
}

fn rtt(micros: u32) -> Measured {
    Measured {
        rtt: Some(micros),
        rtt_ten: Some(micros),
        ..Measured::default()
    }
}

/// Paths 1, 2, ... with these costs.
fn paths<'a>(measured: &'a [Measured], costs: &[u16]) -> Vec<Now<'a>> {
    let paths = measured.iter().zip(costs).zip(1..);
    let now = |((measured, cost), local): ((&'a Measured, &u16), u8)| Now {
        path: path(local),
        state: PathState::Up,
        why: PathWhy::Heard,
        was_down: false,
        measured,
        links: Links {
            cost: *cost,
            ..Links::default()
        },
    };
    paths.map(now).collect()
}

fn order(judge: &Judge, mode: Mode) -> Vec<(u8, u8)> {
    let ranked = judge.ranked(mode);
    ranked.map(|ranked| (ranked.path.local, ranked.grade)).collect()
}

#[test]
fn the_cheapest_is_first_and_the_others_follow() {
    let measured = [rtt(10_000), rtt(20_000), rtt(30_000)];
    let mut judge = Judge::default();
    let turn = judge.turn(&class(Mode::Pinned), SECOND, &paths(&measured, &[9, 5, 7]));
    assert_eq!(order(&judge, Mode::Pinned), [(2, 1), (3, 1), (1, 1)]);
    let moved = turn.moved.expect("the first one");
    assert_eq!((moved.from, moved.to, moved.why), (None, path(2), Why::First));
    assert!(turn.graded.is_empty());
}

#[test]
fn a_path_is_left_at_once_and_comes_back_after_the_hold() {
    let class = class(Mode::Pinned);
    let (good, bad) = ([rtt(10_000), rtt(20_000)], [rtt(160_000), rtt(20_000)]);
    let mut judge = Judge::default();
    judge.turn(&class, SECOND, &paths(&good, &[1, 2]));
    let turn = judge.turn(&class, 2 * SECOND, &paths(&bad, &[1, 2]));
    let why = turn.moved.expect("it moves").why;
    let Why::Fault(Fault::Broken(broken)) = why else {
        panic!("{why:?}");
    };
    assert_eq!(
        (broken.what, broken.measured, broken.limit),
        (What::Latency, 160_000, 150_000)
    );
    assert_eq!(why.word(), "latency");
    assert_eq!(order(&judge, Mode::Pinned), [(2, 1), (1, 0)]);
    let at = |judge: &mut Judge, seconds: u64| judge.turn(&class, seconds * SECOND, &paths(&good, &[1, 2]));
    assert_eq!(at(&mut judge, 31).moved, None);
    let turn = at(&mut judge, 32);
    assert_eq!(turn.moved.map(|moved| moved.why), Some(Why::Cheaper));
    assert_eq!(
        turn.graded,
        [Graded {
            path: path(1),
            fault: None
        }]
    );
}

/// The loss of the last ten seconds is the limit that is kept least, and is of seconds ago; the round trip is too long to the end.
#[test]
fn a_hold_begins_when_the_last_limit_is_kept_again() {
    let class = class(Mode::Pinned);
    let mut bad = rtt(160_000);
    let lost = Counted {
        sent: 20,
        received: 16,
    };
    bad.ten.inward = Counted {
        sent: 200,
        received: 196,
    };
    bad.seconds.inward[6] = lost;
    let good = [rtt(10_000), rtt(20_000)];
    let mut judge = Judge::default();
    judge.turn(&class, SECOND, &paths(&good, &[1, 2]));
    for second in 20..=40 {
        let measured = [bad, rtt(20_000)];
        judge.turn(&class, second * SECOND, &paths(&measured, &[1, 2]));
    }
    let mut at = |seconds: u64| judge.turn(&class, seconds * SECOND, &paths(&good, &[1, 2])).moved;
    assert_eq!(at(69), None);
    assert_eq!(at(70).map(|moved| moved.to), Some(path(1)));
}

#[test]
fn there_is_no_move_without_a_better_path() {
    let class = class(Mode::Pinned);
    let mut judge = Judge::default();
    judge.turn(&class, SECOND, &paths(&[rtt(10_000), rtt(10_000)], &[1, 2]));
    // Both are poor: the other has to be less bad by a fifth.
    for (seconds, second, moves) in [(2, 180_000, false), (3, 165_000, false), (4, 155_000, true)] {
        let measured = [rtt(200_000), rtt(second)];
        let turn = judge.turn(&class, seconds * SECOND, &paths(&measured, &[1, 2]));
        assert_eq!(turn.moved.is_some(), moves, "{second}");
    }
    // Back it does not go, however good the first may be, unless the second is down.
    let measured = [rtt(10_000), rtt(400_000)];
    let mut now = paths(&measured, &[1, 2]);
    assert_eq!(judge.turn(&class, 10 * SECOND, &now).moved, None);
    (now[1].state, now[1].why) = (PathState::Down, PathWhy::Silent);
    let why = judge.turn(&class, 11 * SECOND, &now).moved.map(|moved| moved.why);
    assert_eq!(why, Some(Why::Fault(Fault::Down(PathWhy::Silent))));
}

#[test]
fn a_path_that_was_down_is_on_probation() {
    let class = class(Mode::ActiveBackup);
    let measured = [rtt(10_000), rtt(10_000)];
    let mut judge = Judge::default();
    let mut now = paths(&measured, &[1, 2]);
    judge.turn(&class, SECOND, &now);
    // Down and up again between two turns.
    now[0].was_down = true;
    let turn = judge.turn(&class, 2 * SECOND, &now);
    assert_eq!(turn.moved.map(|moved| moved.to), Some(path(2)));
    assert_eq!(turn.moved.map(|moved| moved.why.word()), Some("down"));
    now[0].was_down = false;
    assert_eq!(judge.turn(&class, 31 * SECOND, &now).moved, None);
    assert_eq!(
        judge.turn(&class, 32 * SECOND, &now).moved.map(|moved| moved.to),
        Some(path(1))
    );
}

/// A link that is away for longer than the hold and back for a moment, again and again, moves nothing.
#[test]
fn a_path_that_was_gone_is_on_probation() {
    let class = class(Mode::ActiveBackup);
    let measured = [rtt(10_000), rtt(10_000)];
    let mut judge = Judge::default();
    let now = paths(&measured, &[1, 2]);
    judge.turn(&class, SECOND, &now);
    let turn = judge.turn(&class, 2 * SECOND, &now[1..]);
    assert_eq!(turn.moved.map(|moved| moved.to), Some(path(2)));
    judge.turn(&class, 100 * SECOND, &now[1..]);
    assert_eq!(judge.turn(&class, 101 * SECOND, &now).moved, None);
    assert_eq!(judge.turn(&class, 130 * SECOND, &now).moved, None);
    assert_eq!(
        judge.turn(&class, 131 * SECOND, &now).moved.map(|moved| moved.to),
        Some(path(1))
    );
}

/// It is there again long before anything is heard on it: the hold begins then.
#[test]
fn a_path_that_is_back_and_not_heard_is_on_probation() {
    let class = class(Mode::ActiveBackup);
    let measured = [rtt(10_000), rtt(10_000)];
    let mut judge = Judge::default();
    let mut now = paths(&measured, &[1, 2]);
    judge.turn(&class, SECOND, &now);
    judge.turn(&class, 2 * SECOND, &now[1..]);
    now[0].state = PathState::Unknown;
    judge.turn(&class, 3 * SECOND, &now);
    judge.turn(&class, 100 * SECOND, &now);
    now[0].state = PathState::Up;
    assert_eq!(judge.turn(&class, 101 * SECOND, &now).moved, None);
    assert_eq!(
        judge.turn(&class, 130 * SECOND, &now).moved.map(|moved| moved.to),
        Some(path(1))
    );
}

#[test]
fn the_lowest_latency_is_followed_by_steps_and_not_to_and_fro() {
    let class = class(Mode::LowestLatency);
    let mut judge = Judge::default();
    let mut turn = |seconds: u64, first, second| {
        let measured = [rtt(first), rtt(second)];
        judge
            .turn(&class, seconds * SECOND, &paths(&measured, &[1, 2]))
            .moved
    };
    turn(1, 50_000, 48_000);
    assert_eq!(turn(2, 50_000, 44_000), None, "by less than 10 % and 2 ms");
    let moved = turn(3, 50_000, 43_000).expect("it moves");
    assert_eq!(moved.why, Why::Faster(50_000, 43_000));
    assert_eq!(turn(4, 10_000, 43_000), None, "it was passed a second ago");
    assert!(turn(33, 10_000, 43_000).is_some());
    assert_eq!(turn(34, 10_000, 43_000), None);
}

/// With nothing left of its cap the best path is the last, and used if nothing else is up; with more to use it is good at once.
#[test]
fn what_is_used_up_is_the_last_resort() {
    let class = class(Mode::Pinned);
    let measured = [rtt(10_000), rtt(20_000), rtt(160_000)];
    let mut now = paths(&measured, &[1, 2, 3]);
    let mut judge = Judge::default();
    judge.turn(&class, SECOND, &now);
    now[0].links.capped = true;
    let turn = judge.turn(&class, 2 * SECOND, &now);
    let moved = turn.moved.expect("it moves");
    assert_eq!((moved.to, moved.why), (path(2), Why::Fault(Fault::Cap)));
    assert_eq!(moved.why.word(), "cap");
    assert_eq!(order(&judge, Mode::Pinned), [(2, 1), (3, 0), (1, 0)]);
    // One that is poor and up is used rather, also within its hold.
    now[1].state = PathState::Down;
    let moved = judge.turn(&class, 3 * SECOND, &now).moved;
    assert_eq!(moved.map(|moved| moved.to), Some(path(3)));
    now[2].state = PathState::Down;
    let moved = judge.turn(&class, 4 * SECOND, &now).moved;
    assert_eq!(moved.map(|moved| moved.to), Some(path(1)));
    now[2].state = PathState::Up;
    let moved = judge.turn(&class, 5 * SECOND, &now).moved;
    assert_eq!(moved.map(|moved| moved.to), Some(path(3)));
    // No hold follows a cap.
    now[0].links.capped = false;
    let moved = judge.turn(&class, 6 * SECOND, &now).moved;
    assert_eq!(moved.map(|moved| moved.to), Some(path(1)));
}

/// A judge that is started anew with what the one before has written down orders as that would have.
#[test]
fn a_judge_goes_on_where_another_was() {
    let class = class(Mode::Pinned);
    let (good, bad) = ([rtt(10_000), rtt(20_000)], [rtt(160_000), rtt(20_000)]);
    let mut before = Judge::default();
    before.turn(&class, SECOND, &paths(&good, &[1, 2]));
    before.turn(&class, 2 * SECOND, &paths(&bad, &[1, 2]));
    before.turn(&class, 3 * SECOND, &paths(&good, &[1, 2]));
    let kept = before.keep(&class, 3 * SECOND);
    let text = serde_json::to_string(&kept).expect("values");
    let kept: OfClass = serde_json::from_str(&text).expect("what was written");
    let mut judge = Judge::resume(kept.checked(4 * SECOND));
    let mut at = |seconds: u64, count: usize| {
        let now = paths(&good, &[1, 2]);
        let now = &now[2 - count..];
        judge.turn(&class, seconds * SECOND, now)
    };
    // The table has not all of them yet.
    assert_eq!(at(4, 1), Turn::default());
    assert_eq!(at(5, 2).moved, None);
    assert_eq!(at(31, 2).moved, None);
    assert_eq!(at(32, 2).moved.map(|moved| moved.to), Some(path(1)));
    let (first, since, why) = judge.first().expect("a path");
    assert_eq!((first, since, why), (path(1), 32 * SECOND, Why::Cheaper));
    assert_eq!(judge.keep(&class, 90 * SECOND).paths, []);
}

/// What was wrong when it was written down was so until somebody looks again.
#[test]
fn what_is_kept_is_not_believed_more_than_it_has_to_be() {
    let class = class(Mode::Pinned);
    let mut judge = Judge::default();
    judge.turn(&class, SECOND, &paths(&[rtt(10_000), rtt(20_000)], &[1, 2]));
    judge.turn(&class, 2 * SECOND, &paths(&[rtt(160_000), rtt(20_000)], &[1, 2]));
    let mut kept = judge.keep(&class, 2 * SECOND);
    assert!(kept.paths[0].is_bad && kept.paths[0].bad_at.is_none());
    judge.turn(&class, 3 * SECOND, &paths(&[rtt(170_000), rtt(20_000)], &[1, 2]));
    assert_eq!(
        judge.keep(&class, 3 * SECOND),
        kept,
        "nothing to be written again"
    );
    kept.paths[0].left_at = Some(u64::MAX);
    kept.paths.push(OfPath {
        links: [0, 16],
        ..kept.paths[0].clone()
    });
    let many = kept.paths.iter().cycle().take(1000).cloned();
    kept.paths = many.collect();
    let kept = kept.checked(50 * SECOND);
    assert_eq!(kept.paths.len(), PATHS_MAX);
    assert!(kept.paths.iter().all(|path| path.links == [1, 1]));
    assert_eq!(
        (kept.paths[0].bad_at, kept.paths[0].left_at),
        (Some(50 * SECOND), Some(50 * SECOND))
    );
}

#[test]
fn weights_are_grades_where_flows_are_weighted() {
    let measured = [rtt(10_000), rtt(10_000)];
    let mut now = paths(&measured, &[0, 0]);
    (now[0].links.weight, now[1].links.weight) = (0, 200);
    let mut judge = Judge::default();
    judge.turn(&class(Mode::Weighted), SECOND, &now);
    assert_eq!(order(&judge, Mode::Weighted), [(1, 1), (2, 200)]);
    assert_eq!(order(&judge, Mode::Pinned), [(1, 1), (2, 1)]);
}

fn any_measured() -> impl Strategy<Value = Measured> {
    let rtt = prop::option::of(1u32..400_000);
    let jitter = prop::option::of(0u32..60_000);
    (rtt, jitter, 0u32..200, 0u32..20, any::<u64>()).prop_map(|(rtt, jitter, sent, lost, reading)| {
        let packets = Counted {
            sent,
            received: sent.saturating_sub(lost),
        };
        let mut measured = Measured {
            rtt,
            rtt_ten: rtt,
            ..Measured::default()
        };
        measured.jitter.inward = jitter;
        (measured.reading, measured.fresh.outward) = (reading, packets);
        (measured.one.outward, measured.ten.outward) = (packets, packets);
        measured
    })
}

type AnyTurn = Vec<(Measured, u8, bool)>;

fn any_turns() -> impl Strategy<Value = Vec<AnyTurn>> {
    let path = (any_measured(), 0u8..8, prop::bool::weighted(0.1));
    prop::collection::vec(prop::collection::vec(path, 4), 1..100)
}

fn any_mode() -> impl Strategy<Value = Mode> {
    prop::sample::select(vec![
        Mode::Pinned,
        Mode::ActiveBackup,
        Mode::LowestLatency,
        Mode::Weighted,
        Mode::Duplicate,
    ])
}

proptest! {
    #[test]
    fn an_order_has_each_path_once_and_good_ones_first(turns in any_turns(), mode in any_mode()) {
        let class = class(mode);
        let mut judge = Judge::default();
        let mut left = [0u64; 5];
        for (at, turn) in turns.iter().enumerate() {
            let now = (40 + at as u64) * SECOND;
            let measured: Vec<Measured> = turn.iter().map(|path| path.0).collect();
            let mut paths = paths(&measured, &[1, 1, 2, 3]);
            for (path, (_, state, was_down)) in paths.iter_mut().zip(turn) {
                path.was_down = *was_down;
                path.state = match state {
                    0 => PathState::Down,
                    1 => PathState::Unknown,
                    _ => PathState::Up,
                };
            }
            // One of them is not there at times.
            if at % 7 == 6 {
                paths.pop();
            }
            let before = judge.first();
            let told = judge.turn(&class, now, &paths);
            let mut names: Vec<PathName> = judge.order().map(|entry| entry.path).collect();
            let is_good: Vec<bool> = judge.order().map(|entry| entry.poor.is_none()).collect();
            prop_assert!(is_good.is_sorted_by(|a, b| a >= b), "{:?}", judge);
            names.sort_unstable();
            let expected: Vec<PathName> = paths.iter().map(|path| path.path).collect();
            prop_assert_eq!(names, expected);
            // What control takes for the first is what the engine makes of its order.
            let ranked: Vec<Ranked> = judge.ranked(mode).collect();
            let is_up = |path: PathName| paths.iter().any(|now| now.path == path && now.state == PathState::Up);
            let up = || ranked.iter().filter(|ranked| is_up(ranked.path));
            let engine = up().find(|ranked| ranked.grade > 0).or_else(|| up().next());
            if let Some(engine) = engine {
                prop_assert_eq!(judge.first().map(|first| first.0), Some(engine.path));
            }
            // Looking twice changes nothing.
            let again: Vec<Now<'_>> = paths.iter().map(|path| Now { was_down: false, ..*path }).collect();
            let told_again = judge.turn(&class, now, &again);
            prop_assert_eq!(told_again, Turn::default());
            // Nothing leads back within the hold while the one before is up.
            if let (Some(moved), Some((from, ..))) = (told.moved, before) {
                if is_up(from) && moved.from.is_some() {
                    prop_assert!(now - left[usize::from(moved.to.local)] >= 30 * SECOND, "{:?}", moved);
                }
                let was_poor = judge.order().any(|entry| entry.path == from && entry.poor.is_some());
                if was_poor {
                    left[usize::from(from.local)] = now;
                }
            }
        }
    }
}
