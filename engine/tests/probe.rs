//! Two probers with a network between them that loses, delays and cuts, and with workers that are away at times. Time is virtual; each side has a clock of its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrayvec::ArrayVec;
use patronus_crypto::timers::Traffic;
use patronus_crypto::{Duration, PeerId, Time};
use patronus_engine::path::{PathBoard, PathName, PathReport, PathState, PathWhy};
use patronus_engine::probe::{FLOOR, PathChange, ProbeSet, ProbedPath, Prober, Probing, Suspects};
use patronus_engine::remote::message::Probe;
use patronus_engine::stats::DropReason;

const REMOTE: PeerId = PeerId(3);
const SEEDS: u64 = 40;

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

struct Dice(u64);

impl Dice {
    /// SplitMix64.
    fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    fn below(&mut self, n: u64) -> u64 {
        self.word() % n.max(1)
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

fn lane(path: usize) -> PeerId {
    PeerId(100 + path as u32)
}

fn name(path: usize) -> PathName {
    PathName {
        local: path as u8 + 1,
        remote: 1,
    }
}

struct Side {
    prober: Prober,
    board: Arc<PathBoard>,
    traffic: Vec<Arc<Traffic>>,
    /// What its clock shows more than the time.
    ahead: u64,
    /// It does nothing until then.
    away_until: Time,
    changes: Vec<(Time, PathChange)>,
    sent: Vec<Vec<Time>>,
}

impl Side {
    fn new(paths: usize, metered: &[usize], probing: Probing, ahead: u64) -> Side {
        let board = Arc::new(PathBoard::new((0..paths).map(name), None));
        let mut side = Side {
            prober: Prober::default(),
            board,
            traffic: (0..paths).map(|_| Arc::default()).collect(),
            ahead,
            away_until: Time(0),
            changes: Vec::new(),
            sent: vec![Vec::new(); paths],
        };
        side.prober.set_probing(probing);
        let set = side.set(metered);
        assert!(side.prober.follow(side.clock(Time(0)), REMOTE, set).is_none());
        (0..paths).for_each(|path| side.prober.opened(side.clock(Time(0)), REMOTE, lane(path)));
        side
    }

    fn set(&self, metered: &[usize]) -> Box<ProbeSet> {
        let paths = self.traffic.iter().enumerate().map(|(path, traffic)| {
            let traffic = [Arc::clone(traffic)].into();
            ProbedPath::new(
                name(path),
                path as u8 + 1,
                Some(lane(path)),
                metered.contains(&path),
                traffic,
            )
        });
        Box::new(ProbeSet::new(
            Arc::clone(&self.board),
            paths.collect(),
            7 + self.ahead,
        ))
    }

    fn clock(&self, now: Time) -> Time {
        Time(now.0 + self.ahead)
    }

    /// Packets of hosts go by this path; they are not counted here.
    fn carry(&mut self, now: Time, path: usize) {
        let clock = self.clock(now);
        if self.traffic[path].tally_sent(clock, 0, true) {
            self.prober.used(clock, REMOTE);
        }
    }

    /// Its control says that these paths are suspect.
    fn suspect(&mut self, now: Time, paths: &[usize], length: Duration) {
        let suspects = Suspects {
            paths: paths.iter().map(|path| name(*path)).collect(),
            until: self.clock(now).after(length),
        };
        self.prober.suspect(self.clock(now), REMOTE, &suspects);
    }

    fn sent_within(&self, path: usize, from: Time, time: Duration) -> usize {
        let times = from..from.after(time);
        self.sent[path].iter().filter(|at| times.contains(at)).count()
    }

    fn report(&self, path: usize) -> PathReport {
        self.board.pulses()[path].read().expect("written")
    }

    /// Downs after that time.
    fn downs(&self, after: Time) -> Vec<(Time, PathChange)> {
        let downs = self
            .changes
            .iter()
            .filter(|(at, change)| *at > after && change.state == PathState::Down);
        downs.copied().collect()
    }

    fn down_at(&self, path: usize, after: Time) -> Option<(Duration, PathWhy)> {
        let downs = self.downs(after);
        let first = downs.iter().find(|(_, change)| change.path == name(path));
        first.map(|(at, change)| (at.since(after), change.why))
    }
}

/// What one direction of a path does.
#[derive(Clone, Copy)]
struct Weather {
    delay: Duration,
    jitter: Duration,
    loss: u64,
    cut: bool,
}

struct Net {
    sides: [Side; 2],
    /// By path and sender.
    weather: Vec<[Weather; 2]>,
    /// To whom, by which path, and the probe; a packet of a host has none.
    under_way: BTreeMap<(Time, u64), (usize, usize, Option<Probe>)>,
    launched: u64,
    /// Hosts' packets are heard as well, one every so long.
    stream: Option<Duration>,
    now: Time,
    dice: Dice,
}

impl Net {
    fn new(seed: u64, paths: usize, metered: &[usize], probing: Probing, weather: Weather) -> Net {
        let mut dice = Dice(seed);
        let ahead = [dice.below(1 << 40) + 1, dice.below(1 << 40) + 1];
        Net {
            sides: ahead.map(|ahead| Side::new(paths, metered, probing, ahead)),
            weather: vec![[weather; 2]; paths],
            under_way: BTreeMap::new(),
            launched: 0,
            stream: None,
            now: Time(0),
            dice,
        }
    }

    fn next_event(&self) -> Option<Time> {
        let sides = self.sides.iter().filter(|side| side.away_until <= self.now);
        let due = sides.filter_map(|side| {
            side.prober
                .next_deadline()
                .map(|at| Time(at.0.saturating_sub(side.ahead)))
        });
        let back = self
            .sides
            .iter()
            .map(|side| side.away_until)
            .filter(|at| *at > self.now);
        let arrival = self.under_way.keys().map(|(at, _)| *at).find(|at| *at > self.now);
        due.chain(back).chain(arrival).min()
    }

    /// Lets time pass; each side's hosts send something by path 0 now and then if `used`.
    fn pass(&mut self, time: Duration, used: bool) {
        let end = self.now.after(time);
        let mut carry_at = self.now;
        loop {
            let next = self
                .next_event()
                .unwrap_or(end)
                .max(self.now)
                .min(carry_at.max(self.now));
            if next >= end {
                self.now = end;
                return;
            }
            self.now = next;
            if carry_at <= self.now {
                if used {
                    (0..2).for_each(|from| self.carry(from));
                }
                carry_at = self.now.after(self.stream.unwrap_or(ms(20)));
            }
            (0..2).for_each(|side| self.turn(side));
        }
    }

    /// A host behind a side sends something; while the side is away it is lost.
    fn carry(&mut self, from: usize) {
        let side = &mut self.sides[from];
        let is_away = side.away_until > self.now;
        if self.stream.is_none() || !is_away {
            side.carry(self.now, 0);
        }
        if self.stream.is_some() && !is_away {
            self.launch(from, 0, None);
        }
    }

    fn launch(&mut self, from: usize, path: usize, probe: Option<Probe>) {
        let weather = self.weather[path][from];
        if weather.cut || self.dice.chance(weather.loss) {
            return;
        }
        let extra = self.dice.below(weather.jitter.as_nanos() as u64);
        let at = self.now.after(weather.delay).after(Duration::from_nanos(extra));
        self.launched += 1;
        self.under_way
            .insert((at, self.launched), (1 - from, path, probe));
    }

    fn turn(&mut self, which: usize) {
        let (now, side) = (self.now, &mut self.sides[which]);
        if side.away_until > now {
            return;
        }
        let clock = side.clock(now);
        side.prober.begin_turn(clock);
        let changes = &mut side.changes;
        let mut tell = |change| changes.push((now, change));
        let landed = self
            .under_way
            .extract_if(..=(now, u64::MAX), |_, (to, ..)| *to == which);
        for (_, (_, path, probe)) in landed {
            if let Some(probe) = probe {
                let heard = side
                    .prober
                    .hear(clock, (REMOTE, lane(path)), &probe, 1, &mut tell);
                assert_eq!(heard, Ok(()), "nobody sends too often");
                side.traffic[path].tally_received(clock, 1, false);
            }
            let _ = side.traffic[path].received(clock, 112, true);
        }
        if side.prober.next_deadline().is_none_or(|at| at > clock) {
            return;
        }
        let mut due = ArrayVec::new();
        side.prober.due(clock, |_| true, &mut tell, &mut due);
        for due in due {
            let side = &mut self.sides[which];
            let (of, probe) = side.prober.next(due, clock).expect("a path that is there");
            let path = (of.0 - lane(0).0) as usize;
            side.traffic[path].tally_sent(clock, 1, false);
            side.sent[path].push(now);
            self.launch(which, path, Some(probe));
        }
    }

    fn cut(&mut self, path: usize, directions: &[usize], cut: bool) {
        directions
            .iter()
            .for_each(|from| self.weather[path][*from].cut = cut);
    }
}

fn fair(delay: Duration) -> Weather {
    Weather {
        delay,
        jitter: Duration::ZERO,
        loss: 0,
        cut: false,
    }
}

fn probing(interval: Duration) -> Probing {
    Probing {
        interval,
        ..Probing::default()
    }
}

/// Paths that are up, with traffic, for a while.
fn settled(seed: u64, paths: usize, metered: &[usize], interval: Duration, weather: Weather) -> Net {
    let mut net = Net::new(seed, paths, metered, probing(interval), weather);
    net.pass(ms(12_000), true);
    for side in &net.sides {
        assert_eq!(side.board.up().count_ones() as usize, paths, "all are up");
    }
    net
}

/// How long it may take until a silent path is down: three intervals, four times the jitter, and what is on its way.
fn bound(interval: Duration, weather: Weather) -> Duration {
    interval * 3 + (weather.jitter + interval / 8 + ms(1)) * 4 + weather.delay + weather.jitter
}

fn intervals(dice: &mut Dice) -> Duration {
    ms([5, 10, 20, 50, 100, 1000][dice.below(6) as usize])
}

#[test]
fn in_fair_weather_no_path_goes_down_and_probes_are_as_many_as_were_announced() {
    for seed in 0..SEEDS {
        let mut dice = Dice(seed + 1000);
        let (paths, interval) = (1 + dice.below(4) as usize, intervals(&mut dice));
        let mut weather = fair(ms(dice.below(200)));
        weather.jitter = interval / 2;
        let mut net = settled(seed, paths, &[], interval, weather);
        let from = net.now;
        net.pass(ms(20_000), true);
        net.pass(ms(30_000), false);
        for side in &net.sides {
            assert_eq!(side.downs(Time(0)), [], "seed {seed}");
            for sent in &side.sent {
                let count = sent
                    .iter()
                    .filter(|at| **at > from && **at <= from.after(ms(20_000)))
                    .count();
                let most = 20_000_000_000 / interval.as_nanos() as usize;
                assert!(
                    count <= most * 8 / 7 + 2 && count + 2 >= most,
                    "seed {seed}: {count} of {most}"
                );
            }
        }
    }
}

#[test]
fn probes_become_rare_without_traffic_and_frequent_with_it() {
    let mut net = settled(1, 2, &[1], ms(50), fair(ms(10)));
    let count =
        |net: &Net, path: usize, from: Time| net.sides[0].sent[path].iter().filter(|at| **at > from).count();
    let from = net.now;
    net.pass(ms(10_000), true);
    let [used, metered] = [0, 1].map(|path| count(&net, path, from));
    assert!(used > 190, "{used}");
    assert!(
        (9..=13).contains(&metered),
        "{metered} on a path that costs money and is not used"
    );
    net.pass(ms(12_000), false);
    let from = net.now;
    net.pass(ms(10_000), false);
    assert!(
        (9..=13).contains(&count(&net, 0, from)),
        "{}",
        count(&net, 0, from)
    );
    assert!(
        net.sides.iter().all(|side| side.downs(Time(0)).is_empty()),
        "slower by agreement"
    );
}

/// Traffic begins on one side, where nothing went for a while: both probe often from then on, and notice what happens right afterwards.
#[test]
fn what_has_just_begun_is_watched_closely() {
    let mut net = settled(1, 2, &[], ms(50), fair(ms(20)));
    net.pass(ms(30_000), false);
    let now = net.now;
    net.sides[0].carry(now, 0);
    net.pass(ms(200), false);
    let from = net.now;
    net.cut(0, &[0, 1], true);
    net.pass(ms(1_000), false);
    let most = bound(ms(50), net.weather[0][0]);
    for side in &net.sides {
        let (after, _) = side.down_at(0, from).expect("down");
        assert!(after <= most, "{after:?}");
    }
}

#[test]
fn a_path_that_is_dead_both_ways_is_down_at_both_ends_in_time() {
    for seed in 0..SEEDS {
        let mut dice = Dice(seed);
        let (paths, interval) = (1 + dice.below(4) as usize, intervals(&mut dice));
        let mut weather = fair(ms(dice.below(100)));
        weather.jitter = interval / 4;
        let mut net = settled(seed, paths, &[], interval, weather);
        net.pass(Duration::from_micros(dice.below(100_000)), true);
        let from = net.now;
        net.cut(0, &[0, 1], true);
        net.pass(ms(20_000), true);
        for side in &net.sides {
            let (after, why) = side.down_at(0, from).expect("down");
            assert!(
                after <= bound(interval, weather),
                "seed {seed}: {after:?} at {interval:?}"
            );
            // Who hears it first from the other side need not wait for the silence.
            assert!(why == PathWhy::Silent || why == PathWhy::NotHeard && paths > 1);
            assert_eq!(side.downs(from).len(), 1, "seed {seed}: the others stay");
            assert_eq!(side.board.up().count_ones() as usize, paths - 1);
        }
        let from = net.now;
        net.cut(0, &[0, 1], false);
        net.pass(ms(5_000) + interval * 8 + weather.delay * 10, true);
        for side in &net.sides {
            assert_eq!(side.board.up().count_ones() as usize, paths, "seed {seed}: back");
            assert_eq!(side.downs(from), [], "seed {seed}");
        }
    }
}

#[test]
fn a_path_that_is_dead_one_way_is_down_at_both_ends_in_time() {
    for seed in 0..SEEDS {
        let mut dice = Dice(seed);
        let (paths, interval) = (2 + dice.below(3) as usize, intervals(&mut dice));
        let mut net = settled(seed, paths, &[], interval, fair(ms(dice.below(100))));
        let delay = net.weather[0][0].delay;
        let deaf = dice.below(2) as usize;
        let from = net.now;
        net.cut(0, &[1 - deaf], true);
        net.pass(ms(10_000), true);
        let [silent, told] = [deaf, 1 - deaf].map(|side| net.sides[side].down_at(0, from).expect("down"));
        let most = bound(interval, net.weather[0][0]);
        assert_eq!(
            (silent.1, told.1),
            (PathWhy::Silent, PathWhy::NotHeard),
            "seed {seed}"
        );
        assert!(
            silent.0 <= most && told.0 <= silent.0 + delay + ms(2),
            "seed {seed}: {silent:?} {told:?}"
        );
        net.cut(0, &[1 - deaf], false);
        net.pass(ms(5_000) + interval * 8 + delay * 10, true);
        assert!(
            net.sides
                .iter()
                .all(|side| side.board.up().count_ones() as usize == paths),
            "seed {seed}"
        );
    }
}

/// A path that is dead one way, and then the other way instead: who hears it again is told that it is heard, by somebody who misses its rare probes much later.
#[test]
fn who_is_heard_again_waits_for_an_answer() {
    for seed in 0..SEEDS {
        let mut dice = Dice(seed);
        let delay = ms(dice.below(100));
        let mut net = settled(seed, 2, &[], ms(50), fair(delay));
        let from = net.now;
        net.cut(0, &[1], true);
        // Probes come every five seconds by then.
        net.pass(ms(20_000 + dice.below(5_000)), true);
        net.cut(0, &[1], false);
        net.cut(0, &[0], true);
        net.pass(ms(60_000), true);
        for side in &net.sides {
            let mut later = side.changes.iter().filter(|(at, _)| *at > from);
            let ups = later.clone().filter(|(_, change)| change.state == PathState::Up);
            assert_eq!(ups.count(), 0, "seed {seed}");
            assert!(
                later.any(|(_, change)| change.state == PathState::Down),
                "seed {seed}"
            );
        }
        net.cut(0, &[0], false);
        net.pass(ms(6_000) + delay * 10, true);
        assert!(
            net.sides.iter().all(|side| side.board.up() == 0b11),
            "seed {seed}"
        );
    }
}

/// With one path there is nobody to tell it by; the probes that still arrive say it.
#[test]
fn who_is_not_heard_on_the_only_path_is_told_on_it() {
    let mut net = settled(1, 1, &[], ms(50), fair(ms(20)));
    let from = net.now;
    net.cut(0, &[0], true);
    net.pass(ms(3_000), true);
    let (silent, told) = (net.sides[1].down_at(0, from), net.sides[0].down_at(0, from));
    assert!(silent.is_some_and(|(_, why)| why == PathWhy::Silent));
    assert!(
        told.is_some_and(|(after, why)| why == PathWhy::NotHeard && after < ms(1_500)),
        "{told:?}"
    );
}

#[test]
fn when_all_paths_are_dead_all_are_down() {
    let mut net = settled(1, 3, &[], ms(50), fair(ms(20)));
    let from = net.now;
    (0..3).for_each(|path| net.cut(path, &[0, 1], true));
    net.pass(ms(2_000), true);
    for side in &net.sides {
        assert_eq!(side.board.up(), 0);
        for path in 0..3 {
            let (after, _) = side.down_at(path, from).expect("down");
            assert!(after <= bound(ms(50), net.weather[0][0]) * 2, "{after:?}");
        }
    }
    // Rarely probed then.
    let sent = net.sides[0].sent[0].len();
    net.pass(ms(60_000), true);
    assert!((11..16).contains(&(net.sides[0].sent[0].len() - sent)));
}

/// A metered path is heard once a second: that nothing was heard there for a moment does not excuse the other.
#[test]
fn a_path_that_is_rarely_heard_is_no_excuse() {
    let mut net = settled(1, 2, &[1], ms(50), fair(ms(20)));
    let from = net.now;
    net.cut(0, &[0, 1], true);
    net.pass(ms(1_000), true);
    let most = bound(ms(50), net.weather[0][0]);
    assert!(
        net.sides
            .iter()
            .all(|side| side.down_at(0, from).is_some_and(|(after, _)| after <= most))
    );
}

#[test]
fn who_was_away_takes_nobody_for_silent() {
    for seed in 0..SEEDS {
        let mut dice = Dice(seed);
        let (paths, interval) = (1 + dice.below(3) as usize, intervals(&mut dice));
        let mut net = settled(seed, paths, &[], interval, fair(ms(dice.below(50))));
        for _ in 0..20 {
            // Longer than anything that the other side would take for silence.
            net.sides[0].away_until = net.now.after(interval / 8 * dice.below(80) as u32);
            net.pass(interval * 20, true);
        }
        let silent = |(_, change): &(Time, PathChange)| change.why == PathWhy::Silent;
        assert!(!net.sides[0].downs(Time(0)).iter().any(silent), "seed {seed}");
    }
}

#[test]
fn a_remote_that_is_away_for_a_moment_moves_nothing_if_there_is_a_choice() {
    for seed in 0..SEEDS {
        let mut dice = Dice(seed);
        let (paths, interval) = (2 + dice.below(3) as usize, intervals(&mut dice));
        let mut net = settled(seed, paths, &[], interval, fair(ms(dice.below(50))));
        for _ in 0..20 {
            let away = interval / 8 * dice.below(32) as u32;
            net.sides[0].away_until = net.now.after(away);
            net.pass(interval * 20, true);
        }
        assert_eq!(net.sides[1].downs(Time(0)), [], "seed {seed}");
        assert_eq!(net.sides[0].downs(Time(0)), [], "seed {seed}");
    }
}

/// A worker that gets no processor at times, as on a machine whose every core is busy: packets of hosts were heard on one path until the last moment, and delays differ a little.
#[test]
fn stalls_of_either_side_move_nothing_at_the_shortest_intervals() {
    for seed in 0..SEEDS {
        let mut dice = Dice(seed);
        let (paths, interval) = (
            2 + dice.below(3) as usize,
            ms([5, 10, 50][dice.below(3) as usize]),
        );
        let mut net = settled(seed, paths, &[], interval, fair(ms(5)));
        net.stream = Some(ms(1));
        for path in 0..paths {
            net.weather[path] = [fair(ms(3) + interval / 16 * dice.below(10) as u32); 2];
        }
        net.pass(interval * 40, true);
        let from = net.now;
        for _ in 0..40 {
            let side = &mut net.sides[dice.below(2) as usize];
            side.away_until = net.now.after(interval / 8 * dice.below(36) as u32);
            net.pass(interval * 8 + interval / 8 * dice.below(64) as u32, true);
        }
        for side in &net.sides {
            assert_eq!(side.downs(from), [], "seed {seed}: {paths} paths, {interval:?}");
        }
    }
}

/// That the remote was away lately excuses nobody for longer than is waited anyway.
#[test]
fn a_path_that_dies_while_the_remote_is_away_is_down_in_time() {
    for seed in 0..SEEDS {
        let mut dice = Dice(seed);
        let interval = ms([5, 10, 50][dice.below(3) as usize]);
        let mut net = settled(seed, 3, &[], interval, fair(ms(5)));
        net.stream = Some(ms(1));
        net.pass(interval * 40, true);
        let from = net.now;
        net.sides[0].away_until = from.after(interval * 5);
        net.cut(0, &[0, 1], true);
        net.pass(ms(3000), true);
        let most = bound(interval, net.weather[0][0]);
        for (side, most) in net.sides.iter().zip([most + interval * 5, most * 2]) {
            let (after, _) = side.down_at(0, from).expect("down");
            assert!(after <= most, "seed {seed}: {after:?} at {interval:?}");
            assert_eq!(side.downs(from).len(), 1, "seed {seed}: the others stay");
        }
    }
}

#[test]
fn loss_delays_and_does_not_deceive() {
    for seed in 0..SEEDS {
        let mut dice = Dice(seed);
        let interval = intervals(&mut dice);
        let mut net = Net::new(
            seed,
            2,
            &[],
            probing(interval),
            Weather {
                loss: 20,
                jitter: interval,
                ..fair(ms(dice.below(100)))
            },
        );
        net.pass(ms(60_000), true);
        for (which, side) in net.sides.iter().enumerate() {
            for path in 0..2 {
                let report = side.report(path);
                // Whatever was lost: counters are pairs, and the measured loss is that of the weather.
                assert!(report.in_received <= report.in_sent && report.out_received <= report.out_sent);
                if report.in_sent > 1000 {
                    let lost = 100 * (report.in_sent - report.in_received) / report.in_sent;
                    assert!((15..26).contains(&lost), "seed {seed}: {lost} %");
                }
                let delay = net.weather[path][which].delay;
                let least = 2 * delay.as_micros() as u32;
                assert!(report.rtt_min.is_none_or(|rtt| rtt >= least), "seed {seed}");
            }
        }
        // Rates hold whatever is lost.
        for side in &net.sides {
            for sent in &side.sent {
                let most = 60_000_000_000 / interval.min(ms(50)).as_nanos() as usize;
                assert!(sent.len() <= most * 3 / 2, "seed {seed}: {}", sent.len());
                assert!(
                    sent.windows(2).all(|pair| pair[1].since(pair[0]) >= ms(1)),
                    "seed {seed}"
                );
            }
        }
    }
}

#[test]
fn what_is_measured_is_what_the_network_does() {
    let weather = [fair(ms(30)), fair(ms(10))];
    let mut net = Net::new(1, 1, &[], probing(ms(20)), weather[0]);
    net.weather[0] = weather;
    net.pass(ms(20_000), true);
    for side in &net.sides {
        let report = side.report(0);
        assert_eq!((report.state, report.why), (PathState::Up, PathWhy::Heard));
        assert_eq!(
            (report.rtt, report.rtt_min),
            (Some(40_000), Some(40_000)),
            "whatever the clocks show"
        );
        assert_eq!((report.jitter_in, report.jitter_out), (0, 0));
        assert!(report.samples > 500 && report.recent.iter().all(|rtt| *rtt == 40_000));
        assert_eq!(report.in_sent, report.in_received);
        assert_eq!(report.out_sent, report.out_received);
        assert_eq!(
            (report.interval, report.remote_interval),
            (Some(20_000), Some(20_000))
        );
        assert!(report.in_use && report.probes_received > 500);
    }
    // Variation is jitter: uniform over 8 ms, two differ by 2.7 ms on average.
    net.weather[0]
        .iter_mut()
        .for_each(|weather| weather.jitter = ms(8));
    net.pass(ms(20_000), true);
    for side in &net.sides {
        let report = side.report(0);
        assert!((1_500..4_500).contains(&report.jitter_in), "{}", report.jitter_in);
        assert!(
            (1_500..4_500).contains(&report.jitter_out),
            "{}",
            report.jitter_out
        );
    }
}

#[test]
fn all_intervals_grow_when_there_are_too_many_paths() {
    let probing = Probing {
        interval: ms(10),
        rate: 50,
        ..Probing::default()
    };
    let mut net = Net::new(1, 4, &[], probing, fair(ms(5)));
    net.pass(ms(20_000), true);
    let from = net.now;
    net.pass(ms(20_000), true);
    for side in &net.sides {
        let sent = side.sent.iter().flatten().filter(|at| **at > from).count();
        assert!(
            (900..1200).contains(&sent),
            "{sent} in 20 s, 50 a second are allowed"
        );
        assert_eq!(side.downs(Time(0)), []);
        assert!(side.report(0).interval.is_some_and(|interval| interval > 60_000));
    }
}

/// One side's control suspects a path: both probe it ten times as often for as long as was said, and the other paths as before.
#[test]
fn a_suspect_path_is_probed_faster_by_both_for_a_while() {
    for delay in [ms(5), ms(200)] {
        let mut net = settled(3, 2, &[], ms(50), fair(delay));
        let from = net.now;
        net.sides[0].suspect(from, &[1], ms(4_000));
        net.pass(ms(10_000), true);
        for side in &net.sides {
            // What is asked for is on its way once; and half a second later all is over.
            let during = side.sent_within(1, from.after(ms(1_000)), ms(2_000));
            assert!((400..470).contains(&during), "{during} of 400");
            let after = side.sent_within(1, from.after(ms(5_000)), ms(5_000));
            assert!((98..120).contains(&after), "{after} of 100");
            let other = side.sent_within(0, from, ms(10_000));
            assert!((198..235).contains(&other), "{other} of 200");
            assert_eq!(side.downs(Time(0)), []);
            let report = side.report(1);
            assert_eq!(
                (report.interval, report.remote_interval),
                (Some(50_000), Some(50_000)),
                "silence is judged as ever"
            );
        }
    }
}

/// What is suspect loses something: with probes that often, silence that was three of the short intervals would be found where there is none.
#[test]
fn a_suspect_path_that_loses_is_not_taken_for_silent() {
    for seed in 0..SEEDS {
        let mut net = settled(seed, 2, &[], ms(50), fair(ms(20)));
        net.weather[1][0].loss = 20;
        let from = net.now;
        for _ in 0..10 {
            let now = net.now;
            net.sides[0].suspect(now, &[1], ms(2_000));
            net.pass(ms(1_000), true);
        }
        for (which, side) in net.sides.iter().enumerate() {
            assert_eq!(side.downs(from), [], "seed {seed}");
            let sent = side.sent_within(1, from.after(ms(1_000)), ms(9_000));
            assert!(sent > 1_400, "seed {seed}: {sent} by side {which}");
        }
    }
}

#[test]
fn who_is_suspect_no_more_is_probed_as_ever() {
    let mut net = settled(5, 3, &[], ms(50), fair(ms(20)));
    let now = net.now;
    net.sides[0].suspect(now, &[0, 1], ms(10_000));
    net.pass(ms(1_000), true);
    let now = net.now;
    net.sides[0].suspect(now, &[1, 2], ms(10_000));
    net.pass(ms(500), true);
    let from = net.now;
    net.pass(ms(2_000), true);
    for side in &net.sides {
        let sent = [0, 1, 2].map(|path| side.sent_within(path, from, ms(2_000)));
        assert!((38..50).contains(&sent[0]), "{sent:?}");
        assert!(sent[1] > 390 && sent[2] > 390, "{sent:?}");
    }
}

/// Where packets are paid for, suspicion makes of a path that is not used one that is probed as if it were, and no more.
#[test]
fn suspicion_costs_little_on_metered_paths() {
    let mut net = settled(6, 2, &[0, 1], ms(50), fair(ms(20)));
    let from = net.now;
    net.sides[0].suspect(from, &[0, 1], ms(10_000));
    net.pass(ms(10_000), true);
    for side in &net.sides {
        let sent = [0, 1].map(|path| side.sent_within(path, from, ms(10_000)));
        assert!(sent.iter().all(|sent| (190..240).contains(sent)), "{sent:?}");
    }
}

/// A remote with so many paths, all up, that wants so much and says so every 10 ms; nothing is sent to it.
struct Extra {
    remote: PeerId,
    paths: usize,
    probe: Probe,
    board: Arc<PathBoard>,
    traffic: Arc<Traffic>,
    /// When each path was sent the last probe.
    sent_at: Vec<Time>,
    sent: usize,
}

impl Extra {
    fn new(prober: &mut Prober, number: u32, paths: usize, wanted: Duration, used: bool) -> Extra {
        let remote = PeerId(number);
        let board = Arc::new(PathBoard::new((0..paths).map(name), None));
        let traffic = Arc::<Traffic>::default();
        let of = |path| PeerId(1000 * number + path as u32);
        let probed = (0..paths).map(|path| {
            let traffic = [Arc::clone(&traffic)].into();
            ProbedPath::new(name(path), path as u8 + 1, Some(of(path)), false, traffic)
        });
        let set = ProbeSet::new(Arc::clone(&board), probed.collect(), u64::from(number) + 11);
        assert!(prober.follow(Time(0), remote, Box::new(set)).is_none());
        (0..paths).for_each(|path| prober.opened(Time(0), remote, of(path)));
        Extra {
            remote,
            paths,
            probe: Probe {
                sequence: 0,
                time: Time(0),
                echo: Time(0),
                hold: Duration::ZERO,
                interval: ms(10),
                wanted,
                jitter: Duration::ZERO,
                sent: 0,
                echo_sent: 0,
                echo_received: 0,
                heard: true,
                used,
                unheard: ArrayVec::new(),
            },
            board,
            traffic,
            sent_at: vec![Time(0); paths],
            sent: 0,
        }
    }
}

/// Probes that each remote is sent in a second, of those: paths, wanted interval, in use, suspect paths.
fn shares_of(rate: u32, remotes: &[(usize, Duration, bool, usize)]) -> Vec<usize> {
    let mut prober = Prober::default();
    prober.set_probing(Probing {
        rate,
        ..Probing::default()
    });
    let mut all: Vec<Extra> = (1..)
        .zip(remotes)
        .map(|(number, (paths, wanted, used, _))| Extra::new(&mut prober, number, *paths, *wanted, *used))
        .collect();
    const SECONDS: u64 = 8;
    for now in (1..=(2 + SECONDS) * 1000).map(|n| Time(0).after(ms(n))) {
        for (one, (_, _, used, suspects)) in all.iter_mut().zip(remotes) {
            if now.0.is_multiple_of(10_000_000) {
                one.probe.sequence += 1;
                one.probe.time = now;
                for path in 0..one.paths {
                    let of = PeerId(1000 * one.remote.0 + path as u32);
                    one.probe.echo = one.sent_at[path];
                    let heard = prober.hear(now, (one.remote, of), &one.probe, 0, |_| ());
                    assert_eq!(heard, Ok(()));
                }
                one.traffic.tally_received(now, 1, *used);
                if *used {
                    one.traffic.tally_sent(now, 0, true);
                }
            }
            if now.0.is_multiple_of(1_000_000_000) {
                let paths = (0..*suspects).map(name).collect();
                let until = now.after(ms(2_000));
                prober.suspect(now, one.remote, &Suspects { paths, until });
            }
        }
        let mut due = ArrayVec::new();
        prober.begin_turn(now);
        prober.due(now, |_| true, |_| (), &mut due);
        for due in due {
            drop(prober.next(due, now).expect("a path"));
            all[due.0.0 as usize - 1].sent_at[usize::from(due.1)] = now;
            if now > Time(0).after(ms(2_000)) {
                all[due.0.0 as usize - 1].sent += 1;
            }
        }
    }
    for one in &all {
        assert_eq!(one.board.up().count_ones() as usize, one.paths);
    }
    all.iter().map(|one| one.sent / SECONDS as usize).collect()
}

/// A remote that asks for much, or has many paths, takes nothing from one that needs little.
#[test]
fn what_there_is_of_probes_is_shared_by_remotes() {
    let second = ms(1_000);
    // In use: 20 a second and path. The first two get all that they need, the others the rest in equal parts.
    let sent = shares_of(
        300,
        &[
            (1, second, true, 0),
            (2, second, true, 0),
            (16, second, true, 0),
            (2, ms(10), true, 0),
        ],
    );
    assert!(
        (19..24).contains(&sent[0]) && (38..47).contains(&sent[1]),
        "{sent:?}"
    );
    assert!(sent[2..].iter().all(|sent| (95..140).contains(sent)), "{sent:?}");
    // Without traffic a remote counts a twentieth: however many there are, those in use are watched closely.
    let mut remotes = vec![(8, second, false, 0); 50];
    remotes.push((4, second, true, 0));
    let sent = shares_of(300, &remotes);
    assert!((76..95).contains(&sent[50]), "{sent:?}");
    assert!(sent[..50].iter().all(|sent| (3..7).contains(sent)), "{sent:?}");
    assert!(sent.iter().sum::<usize>() <= 330, "{sent:?}");
}

/// Suspicion gets what is left over, in equal parts, and takes nothing from what all paths need.
#[test]
fn suspects_share_what_is_left() {
    let second = ms(1_000);
    let remotes = [(4, second, true, 4), (4, second, true, 1), (4, second, true, 0)];
    let sent = shares_of(20_000, &remotes);
    assert!(
        sent[0] > 790 && (255..300).contains(&sent[1]) && sent[2] < 95,
        "{sent:?}"
    );
    // 240 are needed always, 160 are left: 80 each.
    let sent = shares_of(400, &remotes);
    assert!(sent[..2].iter().all(|sent| (145..190).contains(sent)), "{sent:?}");
    assert!((76..95).contains(&sent[2]), "{sent:?}");
    // There is nothing left.
    let sent = shares_of(150, &remotes);
    assert!(sent.iter().all(|sent| (46..60).contains(sent)), "{sent:?}");
}

#[test]
fn a_path_without_a_session_is_down_and_back_with_one() {
    let mut net = settled(1, 2, &[], ms(50), fair(ms(20)));
    let (from, clock) = (net.now, net.sides[0].clock(net.now));
    let side = &mut net.sides[0];
    side.prober.erased(clock, REMOTE, lane(0), |change| {
        side.changes.push((from.after(ms(1)), change))
    });
    assert_eq!(
        side.down_at(0, from).map(|(_, why)| why),
        Some(PathWhy::NoSession)
    );
    assert_eq!(side.board.up(), 0b10);
    side.prober.opened(clock, REMOTE, lane(0));
    net.pass(ms(2_000), true);
    assert!(net.sides.iter().all(|side| side.board.up() == 0b11));
}

#[test]
fn what_is_known_of_a_path_stays_known_when_others_come_and_go() {
    let mut net = settled(1, 3, &[], ms(50), fair(ms(20)));
    let before = net.sides[0].report(1);
    let clock = net.sides[0].clock(net.now);
    let board = Arc::new(PathBoard::new([name(1), name(5)], Some(&net.sides[0].board)));
    let traffic = Arc::clone(&net.sides[0].traffic[1]);
    let path = |path, lane| {
        ProbedPath::new(
            name(path),
            path as u8 + 1,
            Some(lane),
            false,
            [Arc::clone(&traffic)].into(),
        )
    };
    let set = ProbeSet::new(Arc::clone(&board), [path(1, lane(1)), path(5, lane(9))].into(), 1);
    let old = net.sides[0].prober.follow(clock, REMOTE, Box::new(set));
    assert!(old.is_some());
    assert_eq!(board.up(), 0b01);
    let after = board.pulses()[0].read().expect("written");
    assert_eq!(
        (after.samples, after.since, after.state),
        (before.samples, before.since, PathState::Up)
    );
    assert_eq!(
        board.pulses()[1].read().map(|new| new.state),
        Some(PathState::Unknown)
    );
    // A lane that is another one knows nothing, whatever it is called.
    let again = Arc::new(PathBoard::new([name(1)], Some(&board)));
    let set = ProbeSet::new(Arc::clone(&again), [path(1, lane(7))].into(), 1);
    net.sides[0].prober.follow(clock, REMOTE, Box::new(set));
    assert_eq!(
        (again.up(), again.pulses()[0].read().map(|new| new.samples)),
        (0, Some(0))
    );
}

#[test]
fn a_remote_that_probes_too_often_is_not_listened_to() {
    let mut net = settled(1, 1, &[], ms(50), fair(ms(20)));
    let clock = net.sides[0].clock(net.now).after(ms(1_000));
    let mut due = ArrayVec::new();
    let sender = &mut net.sides[1];
    let now = sender.clock(net.now).after(ms(1_000));
    sender.prober.due(now, |_| true, |_| (), &mut due);
    let (_, mut probe) = sender.prober.next((REMOTE, 0), now).expect("a path");
    let mut heard = Vec::new();
    for n in 0..1000 {
        (probe.sequence, probe.time) = (probe.sequence + 1, Time(probe.time.0 + n));
        heard.push(
            net.sides[0]
                .prober
                .hear(clock, (REMOTE, lane(0)), &probe, 1, |_| ()),
        );
    }
    let most = 2 * (1000 / FLOOR.as_millis() as usize);
    assert!(heard[..most - 50].iter().all(Result::is_ok));
    assert!(
        heard[most..]
            .iter()
            .all(|heard| *heard == Err(DropReason::ProbeFlood))
    );
    let unknown = net.sides[0]
        .prober
        .hear(clock, (REMOTE, lane(9)), &probe, 1, |_| ());
    assert_eq!(unknown, Err(DropReason::ProbeUnknownPath));
}

/// What a remote says first that wants many probes and sends few.
fn first_probe() -> Probe {
    Probe {
        sequence: 1,
        time: Time(1),
        echo: Time(0),
        hold: Duration::ZERO,
        interval: Duration::from_secs(60),
        wanted: FLOOR,
        jitter: Duration::ZERO,
        sent: 1,
        echo_sent: 0,
        echo_received: 0,
        heard: true,
        used: false,
        unheard: ArrayVec::new(),
    }
}

/// A remote that says now that it hears a path and now that it does not: what follows from that, on all workers and in the slow path, follows a few times in a second.
#[test]
fn a_path_comes_up_a_few_times_in_a_second_at_most() {
    let mut side = Side::new(1, &[], Probing::default(), 0);
    let (mut probe, mut changes) = (first_probe(), Vec::new());
    let mut hear = |ms_now: u64, heard: bool| {
        let now = Time(0).after(ms(ms_now));
        (probe.sequence, probe.time, probe.heard) = (probe.sequence + 1, now, heard);
        let told = |change| changes.push(change);
        let result = side.prober.hear(now, (REMOTE, lane(0)), &probe, 1, told);
        assert_eq!(result, Ok(()));
        side.board.up() != 0
    };
    for n in 0..600 {
        hear(1000 + 5 * n, n % 2 == 0);
    }
    // And is up when it says so for good.
    assert!(hear(4000, true) && hear(4005, true));
    let ups = changes.iter().filter(|change| change.state == PathState::Up);
    let mut by_second = std::collections::BTreeMap::<u64, u32>::new();
    ups.for_each(|up| *by_second.entry(up.at.0 / 1_000_000_000).or_default() += 1);
    assert_eq!(by_second.into_values().collect::<Vec<_>>(), [4, 4, 4, 1]);
    assert_eq!(changes.len(), 3 * 8 + 1);
}

/// Who asks for many probes and sends few, perhaps from an address that is not its own, gets few.
#[test]
fn nobody_is_sent_more_probes_than_it_sends() {
    let mut side = Side::new(1, &[], Probing::default(), 0);
    let mut sent = 0;
    let probe = first_probe();
    let heard = side
        .prober
        .hear(Time(0).after(ms(1)), (REMOTE, lane(0)), &probe, 0, |_| ());
    assert_eq!((heard, side.board.up()), (Ok(()), 1));
    for now in (1..=10_000).map(|n| Time(0).after(ms(n))) {
        let mut due = ArrayVec::new();
        side.prober.begin_turn(now);
        side.prober.due(now, |_| true, |_| (), &mut due);
        sent += due.len();
        due.into_iter().for_each(|due| drop(side.prober.next(due, now)));
    }
    assert!((8..=40).contains(&sent), "{sent} in 10 s");
}

/// The same of who says that it is often heard, and is not.
#[test]
fn a_wish_counts_as_far_as_its_own_probes_come() {
    let mut net = settled(8, 1, &[], ms(50), fair(ms(20)));
    let (from, clock) = (net.now, net.sides[0].clock(net.now));
    let sender = &mut net.sides[1];
    let mut due = ArrayVec::new();
    let then = sender.clock(from).after(ms(60));
    sender.prober.due(then, |_| true, |_| (), &mut due);
    let (_, mut probe) = sender.prober.next((REMOTE, 0), then).expect("a path");
    (probe.wanted, probe.interval) = (FLOOR, ms(50));
    let (mut sent, mut came) = (0, 0);
    for now in (1..=10_000).map(|n| clock.after(ms(n))) {
        let side = &mut net.sides[0];
        if now.since(clock).as_millis().is_multiple_of(40) {
            came += 1;
            (probe.sequence, probe.time) = (probe.sequence + 1, Time(probe.time.0 + 40_000_000));
            let heard = side.prober.hear(now, (REMOTE, lane(0)), &probe, 1, |_| ());
            assert_eq!(heard, Ok(()));
        }
        side.traffic[0].tally_sent(now, 0, true);
        side.prober.begin_turn(now);
        let mut due = ArrayVec::new();
        side.prober.due(now, |_| true, |_| (), &mut due);
        sent += due.len();
        due.into_iter().for_each(|due| drop(side.prober.next(due, now)));
    }
    assert!(
        (200..=came + 220 + 30).contains(&sent),
        "{sent} for {came} in 10 s"
    );
}
