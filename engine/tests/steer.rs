//! Steering against the same written down plainly, and what has to hold whatever happens: no packet on a path that is down or poor while there is a better one, no move
//! without a reason, no packet overtaken by one that came after a pause, every packet of two once.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use patronus_abi::channel::{PathName, PathReport, PathState, PathWhy, Ranked};
use patronus_abi::site::{Class, Mode, OuterDscp, Sticky};
use patronus_crypto::{Duration, PeerId, Time};
use patronus_engine::flow::HashKeys;
use patronus_engine::path::{PathBoard, PathLanes};
use patronus_engine::steer::{
    Doubles, Manners, Moved, Order, Plan, RETURN, Standing, Steering, bucket_of, bucket_of_source, outer_tos,
};
use patronus_io::ip::Packet;
use proptest::prelude::*;

/// Paths in most tests.
const PATHS: usize = 4;
/// A bucket's time has units of a little more than a millisecond.
const UNIT: Duration = Duration::from_nanos(1 << 20);

fn name(at: usize) -> PathName {
    PathName {
        local: at as u8 + 1,
        remote: 1,
    }
}

fn lane(at: usize) -> PeerId {
    PeerId(100 + at as u32)
}

fn keys() -> Arc<HashKeys> {
    Arc::new(HashKeys::new(std::array::from_fn(|at| {
        (at as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    })))
}

/// One remote with these paths; one lane on each, but for those that are missing.
struct Rig {
    board: PathBoard,
    lanes: Vec<PathLanes>,
    paths: Vec<(PathName, Standing)>,
    steering: Steering,
}

fn lanes(names: &[usize]) -> Vec<PathLanes> {
    let each = |at: &usize| PathLanes {
        name: name(*at),
        lanes: Box::new([lane(*at)]),
        numbers: Box::new([0]),
    };
    names.iter().map(each).collect()
}

fn standings(costs: &[u16]) -> Vec<(PathName, Standing)> {
    let each = |(at, cost): (usize, &u16)| {
        let standing = Standing {
            metered: false,
            cost: *cost,
            tag: at as u8,
        };
        (name(at), standing)
    };
    costs.iter().enumerate().map(each).collect()
}

fn manners(mode: Mode) -> Manners {
    Manners::of(&[Class {
        mode,
        ..Class::default()
    }])
}

impl Rig {
    fn new(mode: Mode, costs: &[u16]) -> Rig {
        let paths = standings(costs);
        let all: Vec<usize> = (0..costs.len()).collect();
        let lanes = lanes(&all);
        let steering = Steering::new(Plan {
            paths: &paths,
            lanes: &lanes,
            orders: vec![Order::new(&[], &paths)],
            manners: &manners(mode),
            classes: 1,
            keys: keys(),
        });
        Rig {
            board: PathBoard::new(paths.iter().map(|(name, _)| *name), None),
            lanes,
            paths,
            steering,
        }
    }

    fn set_up(&self, up: u64) {
        (0..self.paths.len()).for_each(|at| self.board.set_up(at, up & 1 << at != 0));
    }

    fn order(&mut self, ranked: &[(usize, u8)]) -> Order {
        let ranked: Vec<Ranked> = ranked
            .iter()
            .map(|(at, grade)| Ranked {
                path: name(*at),
                grade: *grade,
            })
            .collect();
        let order = Order::new(&ranked, &self.paths);
        self.steering.set_order(0, Box::new(order.clone()));
        order
    }

    fn choose(&mut self, bucket: u8, now: Time) -> (usize, Option<Moved>) {
        self.choose_among(bucket, now, |_| true).expect("a lane")
    }

    fn choose_among(
        &mut self,
        bucket: u8,
        now: Time,
        may_carry: impl Fn(PeerId) -> bool,
    ) -> Option<(usize, Option<Moved>)> {
        let chosen = self
            .steering
            .choose((0, bucket), now, &self.board, &self.lanes, may_carry)?;
        Some((chosen.lane.0 as usize - 100, chosen.moved))
    }

    /// How many buckets are on each path, with a packet for each.
    fn spread(&mut self, now: Time) -> BTreeMap<usize, usize> {
        let mut spread = BTreeMap::new();
        for bucket in 0..=255 {
            *spread.entry(self.choose(bucket, now).0).or_default() += 1;
        }
        spread
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// These paths are up from now on.
    Up(u64),
    /// Control's order: places, the first one first, and grades.
    Order(Vec<(usize, u8)>),
    /// A packet of a bucket, so many milliseconds later.
    Packet(u8, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let order = Just((0..PATHS).collect::<Vec<usize>>()).prop_shuffle();
    let order = (order, prop::collection::vec(0u8..4, PATHS), 0..=PATHS);
    prop_oneof![
        1 => (0u64..1 << PATHS).prop_map(Step::Up),
        1 => order.prop_map(|(places, grades, len)| {
            Step::Order(places.into_iter().zip(grades).take(len).collect())
        }),
        8 => (0u8..6, prop_oneof![0u64..30, 30u64..200, 1000u64..5000]).prop_map(|(bucket, later)| Step::Packet(bucket * 51, later)),
    ]
}

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![
        Just(Mode::Pinned),
        Just(Mode::ActiveBackup),
        Just(Mode::LowestLatency),
        Just(Mode::Weighted)
    ]
}

/// What one bucket is known to have done.
#[derive(Clone, Copy)]
struct Known {
    path: usize,
    seen: Time,
}

/// Where a packet may go, the plainest way: the good paths that are up, or all that are up; of these the first, or those as cheap as the first, or all.
fn may_be_home(mode: Mode, costs: &[u16], order: &[(usize, u8)], up: u64) -> Vec<usize> {
    let usable: Vec<(usize, u8)> = order
        .iter()
        .copied()
        .filter(|(at, _)| up & 1 << at != 0)
        .collect();
    let good: Vec<usize> = usable
        .iter()
        .filter(|(_, grade)| *grade > 0)
        .map(|(at, _)| *at)
        .collect();
    let Some(first) = good.first() else {
        return usable.first().map(|(at, _)| *at).into_iter().collect();
    };
    match mode {
        Mode::Pinned => good
            .iter()
            .copied()
            .filter(|at| costs[*at] == costs[*first])
            .collect(),
        Mode::Weighted => good,
        _ => vec![*first],
    }
}

/// Control's order, and behind it, as poor, what it has said nothing of, by cost and name; without an order all are good.
fn whole_order(told: &[(usize, u8)], costs: &[u16]) -> Vec<(usize, u8)> {
    let mut untold: Vec<usize> = (0..costs.len())
        .filter(|at| told.iter().all(|(other, _)| other != at))
        .collect();
    untold.sort_by_key(|at| (costs[*at], *at));
    let grade = u8::from(told.is_empty());
    let all = told
        .iter()
        .copied()
        .chain(untold.into_iter().map(|at| (at, grade)));
    let (good, poor): (Vec<_>, Vec<_>) = all.partition(|(_, grade)| *grade > 0);
    good.into_iter().chain(poor).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn packets_go_where_they_may_and_stay_where_they_can(
        mode in mode(),
        costs in prop::collection::vec(0u16..2, PATHS),
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut rig = Rig::new(mode, &costs);
        let mut known = BTreeMap::<u8, Known>::new();
        let (mut up, mut told, mut now) = (0u64, Vec::new(), Time::from_secs(1000));
        let mut changed_at = now;
        for step in steps {
            match step {
                Step::Up(paths) => {
                    rig.set_up(paths);
                    (up, changed_at) = (paths, now);
                }
                Step::Order(order) => {
                    rig.order(&order);
                    (told, changed_at) = (order, now);
                }
                Step::Packet(bucket, later) => {
                    now = now.after(Duration::from_millis(later));
                    let (path, moved) = rig.choose(bucket, now);
                    let order = whole_order(&told, &costs);
                    let all = if up == 0 { (1 << PATHS) - 1 } else { up };
                    let homes = may_be_home(mode, &costs, &order, all);
                    let grade = |at: usize| order.iter().find(|(other, _)| *other == at).unwrap().1;
                    let some_good = homes.iter().any(|at| grade(*at) > 0);
                    match known.get(&bucket) {
                        None => prop_assert!(homes.contains(&path) && moved.is_none()),
                        Some(before) if up == 0 => {
                            prop_assert_eq!((path, moved), (before.path, None), "none is up: no move");
                        }
                        Some(before) => {
                            let quiet = now.since(before.seen);
                            let stays = path == before.path;
                            let is_lost = up & 1 << before.path == 0;
                            let is_poor = grade(before.path) == 0 && some_good;
                            prop_assert_eq!(stays, moved.is_none());
                            prop_assert!(stays || homes.contains(&path), "a move is to where it belongs");
                            prop_assert!(!stays || !is_lost && !is_poor);
                            match moved {
                                None => prop_assert!(
                                    homes.contains(&path) || quiet <= Duration::from_millis(50) + 2 * UNIT
                                ),
                                Some(Moved::Down) => prop_assert!(is_lost),
                                Some(Moved::Poor) => prop_assert!(!is_lost && is_poor),
                                Some(Moved::Pause) => prop_assert!(quiet > Duration::from_millis(50)),
                                Some(Moved::Turn) => prop_assert!(quiet <= Duration::from_millis(50) + 2 * UNIT),
                                Some(Moved::Lane) => prop_assert!(false, "every lane can be sent by"),
                            }
                        }
                    }
                    if up != 0 && now.since(changed_at) > RETURN {
                        prop_assert!(homes.contains(&path), "everything is back after a while");
                    }
                    known.insert(bucket, Known { path, seen: now });
                }
            }
        }
    }

    /// Two paths, the slower one left in a pause: what came before the pause arrives before what comes after it. Both ways of a path take the same time, and packets come at
    /// any distance.
    #[test]
    fn nothing_is_overtaken_in_a_pause(
        slow in 1u64..400,
        fast in 1u64..400,
        gaps in prop::collection::vec(0u64..1000, 2..60),
        change in 0usize..50,
    ) {
        let mut rig = Rig::new(Mode::ActiveBackup, &[0, 0]);
        let delays = [slow.max(fast), slow.min(fast)];
        for (pulse, delay) in rig.board.pulses().iter().zip(delays) {
            pulse.write(&report(pulse.name(), Some(2000 * delay as u32)));
        }
        rig.set_up(0b11);
        rig.order(&[(0, 1), (1, 1)]);
        let (mut now, mut last) = (Time::from_secs(1), Time::default());
        for (at, gap) in gaps.into_iter().enumerate() {
            now = now.after(Duration::from_millis(gap));
            if at == change {
                rig.order(&[(1, 1), (0, 1)]);
            }
            let (path, moved) = rig.choose(7, now);
            let arrives = now.after(Duration::from_millis(delays[path]));
            prop_assert!(arrives >= last || moved == Some(Moved::Turn), "{moved:?}");
            last = arrives;
        }
    }

    /// Rendezvous: who is on a path that stays good, stays.
    #[test]
    fn only_those_of_a_path_that_goes_are_moved(weights in prop::collection::vec(1u8.., PATHS), gone in 0..PATHS) {
        let mut rig = Rig::new(Mode::Weighted, &[0; PATHS]);
        let order: Vec<(usize, u8)> = weights.iter().copied().enumerate().collect();
        rig.order(&order);
        rig.set_up(0b1111);
        let now = Time::from_secs(1);
        let before: Vec<usize> = (0..=255).map(|bucket| rig.choose(bucket, now).0).collect();
        rig.set_up(0b1111 & !(1 << gone));
        for (bucket, was) in (0..=255).zip(before) {
            let (is, moved) = rig.choose(bucket, now);
            prop_assert_eq!(is == was, was != gone);
            prop_assert_eq!(moved, (was == gone).then_some(Moved::Down));
        }
    }

    #[test]
    fn a_packet_of_two_is_taken_once(
        start: u32,
        arrivals in prop::collection::vec((0u32..300, any::<bool>()), 1..600),
    ) {
        let (mut doubles, mut taken) = (Doubles::new(0), HashSet::new());
        // The first one that arrives decides what is old.
        prop_assert!(doubles.accept(start));
        taken.insert(0);
        for (sequence, _) in arrivals {
            let first = doubles.accept(start.wrapping_add(sequence));
            prop_assert_eq!(first, taken.insert(sequence), "{}", sequence);
        }
    }
}

fn report(path: PathName, rtt: Option<u32>) -> PathReport {
    PathReport {
        state: PathState::Up,
        why: PathWhy::Heard,
        in_use: true,
        rtt,
        ..PathReport::new([0; 32], path)
    }
}

#[test]
fn without_an_order_the_cheapest_are_used_alike() {
    let mut rig = Rig::new(Mode::Pinned, &[7, 3, 3, 9]);
    rig.set_up(0b1111);
    let spread = rig.spread(Time::from_secs(1));
    assert_eq!(spread.keys().copied().collect::<Vec<_>>(), [1, 2]);
    assert!(
        spread.values().all(|count| (96..=160).contains(count)),
        "{spread:?}"
    );
    rig.set_up(0b1001);
    assert_eq!(rig.spread(Time::from_secs(2)), BTreeMap::from([(0, 256)]));
    let mut rig = Rig::new(Mode::ActiveBackup, &[7, 3, 3, 9]);
    rig.set_up(0b1111);
    assert_eq!(rig.spread(Time::from_secs(1)), BTreeMap::from([(1, 256)]));
}

#[test]
fn what_is_metered_comes_last() {
    let mut paths = standings(&[0, 5]);
    paths[0].1.metered = true;
    assert_eq!(Order::new(&[], &paths).rank(), [1, 0]);
}

#[test]
fn what_an_order_does_not_have_comes_last_and_is_poor() {
    let mut rig = Rig::new(Mode::ActiveBackup, &[0, 0, 0]);
    let order = rig.order(&[(1, 1), (2, 0)]);
    assert_eq!((order.rank(), order.good()), (&[1, 2, 0][..], 0b010));
    // It is there again, and the next order is not.
    rig.set_up(0b110);
    assert_eq!(rig.spread(Time::from_secs(1)), BTreeMap::from([(1, 256)]));
    rig.set_up(0b111);
    assert_eq!(rig.spread(Time::from_secs(9)), BTreeMap::from([(1, 256)]));
    rig.set_up(0b001);
    assert_eq!(rig.spread(Time::from_secs(10)), BTreeMap::from([(0, 256)]));
    // Nothing is said: nothing is poor.
    assert_eq!(rig.order(&[]).good(), 0b111);
}

#[test]
fn weights_are_kept_as_well_as_buckets_can() {
    let mut rig = Rig::new(Mode::Weighted, &[0; 3]);
    rig.set_up(0b111);
    rig.order(&[(0, 60), (1, 30), (2, 10)]);
    let spread = rig.spread(Time::from_secs(1));
    for (path, share) in [(0, 0.6), (1, 0.3), (2, 0.1)] {
        let found = spread[&path] as f64 / 256.0;
        assert!((found - share).abs() < 0.08, "{path}: {found}");
    }
}

/// Without a pause, and in no burst: of 256 buckets each has its own moment within four seconds.
#[test]
fn who_never_pauses_comes_back_bit_by_bit() {
    let mut rig = Rig::new(Mode::ActiveBackup, &[0, 1]);
    rig.set_up(0b10);
    let begin = Time::from_secs(50);
    rig.spread(begin);
    rig.set_up(0b11);
    let mut back = Vec::new();
    for tenth in 0..=41 {
        let mut spread = BTreeMap::new();
        // Packets every 20 ms.
        for part in 0..5 {
            spread = rig.spread(begin.after(Duration::from_millis(tenth * 100 + part * 20)));
        }
        back.push(spread.get(&0).copied().unwrap_or(0));
    }
    assert!(back.windows(2).all(|pair| pair[1] - pair[0] <= 8), "{back:?}");
    assert_eq!(back.last(), Some(&256));
}

#[test]
fn a_lane_without_a_session_is_passed_over() {
    let mut rig = Rig::new(Mode::Pinned, &[0, 1, 2]);
    rig.set_up(0b011);
    let now = Time::from_secs(1);
    let up = |rig: &Rig| rig.board.up();
    let without = |gone: &'static [usize]| move |id: PeerId| !gone.contains(&(id.0 as usize - 100));
    assert_eq!(rig.choose_among(3, now, without(&[])), Some((0, None)));
    assert_eq!(
        rig.choose_among(3, now, without(&[0])),
        Some((1, Some(Moved::Lane)))
    );
    // One that is not up would lose what another worker can send.
    assert_eq!(rig.choose_among(3, now, without(&[0, 1])), None);
    assert_eq!(rig.steering.lane_to_come(0, up(&rig), &rig.lanes), Some(lane(0)));
    rig.set_up(0b100);
    assert_eq!(rig.choose_among(3, now, without(&[2])), None);
    // With none up, any is better than none.
    rig.set_up(0);
    assert_eq!(
        rig.choose_among(3, now, without(&[0, 2])),
        Some((1, Some(Moved::Lane)))
    );
    assert_eq!(rig.choose_among(3, now, without(&[0, 1, 2])), None);
    rig.set_up(0b011);
    assert_eq!(
        rig.choose_among(3, now, without(&[])),
        Some((0, Some(Moved::Down)))
    );
}

/// The worker has lanes on some paths only: what is up elsewhere is another worker's, and what is down here is nobody's.
#[test]
fn a_path_that_is_down_is_not_used_while_one_is_up_without_lanes_here() {
    for mode in [Mode::Pinned, Mode::ActiveBackup, Mode::Weighted, Mode::Duplicate] {
        let mut rig = Rig::new(mode, &[0, 0]);
        rig.lanes[1].lanes = Box::default();
        rig.lanes[1].numbers = Box::default();
        rig.steering = Steering::new(Plan {
            paths: &rig.paths,
            lanes: &rig.lanes,
            orders: vec![Order::new(&[], &rig.paths)],
            manners: &manners(mode),
            classes: 1,
            keys: keys(),
        });
        let now = Time::from_secs(1);
        let mut ask = |up: u64| {
            rig.set_up(up);
            (0..=255)
                .map(|bucket| rig.choose_among(bucket, now, |_| true))
                .collect::<Vec<_>>()
        };
        assert!(ask(0b11).iter().all(|chosen| *chosen == Some((0, None))));
        assert!(ask(0b10).iter().all(Option::is_none), "{mode:?}");
        assert!(ask(0b10).iter().all(Option::is_none), "nor the second time");
        assert!(
            ask(0).iter().all(|chosen| *chosen == Some((0, None))),
            "none is up"
        );
        assert!(ask(0b01).iter().all(|chosen| *chosen == Some((0, None))));
    }
}

/// Paths of the same cost: of each flow is told by which of them it goes, before its first packet as well as after it.
#[test]
fn what_is_told_of_a_bucket_is_where_its_next_packet_goes() {
    for mode in [Mode::Pinned, Mode::Weighted, Mode::ActiveBackup, Mode::Duplicate] {
        let mut rig = Rig::new(mode, &[0, 0, 0]);
        for (up, at) in [(0b111, 1), (0b101, 2), (0b010, 3), (0b011, 4)] {
            rig.set_up(up);
            let now = Time::from_secs(at);
            for bucket in (0..=255u8).step_by(3) {
                // Of a bucket with a packet behind it: a pause later it is at home.
                let told = rig.steering.tell(0, bucket, now, up).unwrap();
                let (path, _) = rig.choose(bucket, now);
                assert_eq!(told.home, Some(path as u8), "{mode:?}, up {up:b}");
                assert_ne!(told.second, Some(path as u8));
                assert_eq!(
                    told.second.is_some(),
                    mode == Mode::Duplicate && up.count_ones() > 1
                );
                let told = rig.steering.tell(0, bucket, now, up).unwrap();
                assert_eq!((told.path, told.home), (Some(path as u8), Some(path as u8)));
            }
        }
    }
}

/// Paths come and go; who is on one that stays notices nothing.
#[test]
fn other_paths_take_over_from_those_of_before() {
    let mut rig = Rig::new(Mode::Pinned, &[0; PATHS]);
    rig.set_up(0b1111);
    let now = Time::from_secs(1);
    let before: Vec<usize> = (0..=255).map(|bucket| rig.choose(bucket, now).0).collect();
    let (first, _) = rig
        .steering
        .double(0, lane(2), 0b1111, &rig.lanes, |_| true)
        .unwrap();
    // The second one is gone, and places are others.
    let stays = [3, 0, 2];
    let all = standings(&[0; PATHS]);
    let paths: Vec<_> = stays.iter().map(|at| all[*at]).collect();
    let now_lanes = lanes(&stays);
    let mut steering = Steering::new(Plan {
        paths: &paths,
        lanes: &now_lanes,
        orders: vec![Order::new(&[], &paths)],
        manners: &manners(Mode::Pinned),
        classes: 1,
        keys: keys(),
    });
    steering.take_over(&mut rig.steering, &rig.lanes, &now_lanes);
    let board = PathBoard::new(paths.iter().map(|(name, _)| *name), Some(&rig.board));
    let mut rig = Rig {
        board,
        lanes: now_lanes,
        paths,
        steering,
    };
    for (bucket, was) in (0..=255).zip(before) {
        let (is, moved) = rig.choose(bucket, now);
        assert_eq!((is == was, moved), (was != 1, None), "{bucket}");
    }
    let (next, _) = rig
        .steering
        .double(0, lane(2), 0b111, &rig.lanes, |_| true)
        .unwrap();
    assert_eq!(next, first + 1, "sequence numbers go on");
}

#[test]
fn what_goes_twice_goes_by_the_first_two_that_are_up() {
    let mut rig = Rig::new(Mode::Duplicate, &[0, 1, 2]);
    rig.set_up(0b110);
    let now = Time::from_secs(1);
    let (first, _) = rig.choose(9, now);
    assert_eq!(first, 1);
    let double =
        |rig: &mut Rig, at: usize, up: u64| rig.steering.double(0, lane(at), up, &rig.lanes, |_| true);
    assert_eq!(double(&mut rig, 1, 0b110), Some((0, Some(lane(2)))));
    assert_eq!(
        double(&mut rig, 1, 0b010),
        Some((1, None)),
        "alone, and still counted"
    );
    assert_eq!(double(&mut rig, 1, 0b111), Some((2, Some(lane(0)))));
}

#[test]
fn who_is_started_anew_counts_anew() {
    let mut doubles = Doubles::new(0);
    assert!(doubles.accept(u32::MAX));
    assert!(doubles.accept(0), "it wraps");
    assert!(!doubles.accept(u32::MAX));
    assert!(doubles.accept(u32::MAX - 5), "not seen yet, and not long ago");
    assert!(!doubles.accept(0u32.wrapping_sub(20_000)), "too long ago to tell");
}

#[test]
fn outer_traffic_class_is_as_the_class_says() {
    assert_eq!(outer_tos(OuterDscp::None, 0xb9), 1);
    assert_eq!(outer_tos(OuterDscp::Copy, 0xb9), 0xb9);
    assert_eq!(outer_tos(OuterDscp::Set(10), 0xb9), 10 << 2 | 1);
}

#[test]
fn a_source_is_an_address_or_a_subnet() {
    let keys = keys();
    let v4 = |src: [u8; 4], port: u8| {
        let mut packet = [0; 28];
        (packet[0], packet[3], packet[9], packet[21]) = (0x45, 28, 17, port);
        packet[12..16].copy_from_slice(&src);
        bucket_of_source(&keys, Packet::parse(&packet).unwrap().src())
    };
    assert_eq!(v4([10, 0, 0, 1], 1), v4([10, 0, 0, 1], 2));
    let of = |n: u8| v4([10, 0, 0, n], 1);
    assert!((2..20).any(|n| of(n) != of(1)));
    let v6 = |subnet: u8, host: u8| {
        let mut packet = [0; 40];
        (packet[0], packet[6], packet[15], packet[23]) = (0x60, 59, subnet, host);
        bucket_of_source(&keys, Packet::parse(&packet).unwrap().src())
    };
    assert_eq!(v6(1, 1), v6(1, 2));
    assert!((2..20).any(|n| v6(n, 1) != v6(1, 1)));
    assert_eq!(bucket_of(0x1234_5678_9abc_def0), 0x56);
    assert_eq!(Manners::default().get(200).sticky, Sticky::Flow);
}
