//! Quality over simulated paths: a day of them in seconds, for many seeds.
//!
//! Paths have delay, jitter, loss and outages of their own; a small engine probes them, keeps its table and follows orders as the real one does; control reads the table every 100 ms.
//! Everyday runs are short. The long one, on seeds that nothing was tried out on: `PATRONUS_FIRST_SEED=1000000 PATRONUS_SEEDS=100 PATRONUS_HOURS=24 cargo test --release -p patronus-control --test quality -- --nocapture`.

mod simulated;

use patronus_abi::channel::PathName;
use simulated::{MILLI, Rng, SECOND, Site, Trouble, class};

/// How many seeds, and how many simulated hours each.
fn extent(seeds: u64, hours: f64) -> (u64, u64) {
    let given = |name: &str| std::env::var(name).ok();
    let seeds = given("PATRONUS_SEEDS").map_or(seeds, |seeds| seeds.parse().expect("a number"));
    let hours = given("PATRONUS_HOURS").map_or(hours, |hours| hours.parse().expect("a number"));
    (seeds, (hours * 3600.0) as u64)
}

/// The first of the seeds: rules are tried out on those from 0 on, and verified on others.
fn first_seed() -> u64 {
    std::env::var("PATRONUS_FIRST_SEED").map_or(0, |seed| seed.parse().expect("a number"))
}

fn percentile(times: &mut [u64], of: usize) -> u64 {
    times.sort_unstable();
    times[(times.len() * of).div_ceil(100) - 1]
}

/// How long it takes until the first path is left after this has begun, for each seed; `None`: not within a minute.
fn times_to_leave(seeds: u64, rate: u32, trouble: Trouble) -> Vec<Option<u64>> {
    let time = |seed| {
        let mut site = Site::new(seed, vec![class("voice", 100, 30, 10_000)], 3, rate);
        site.run(40 * SECOND + Rng::new(seed).below(SECOND));
        let first = site.chosen(0).expect("a path");
        let begin = site.now();
        site.trouble(first, trouble);
        while site.now() < begin + 60 * SECOND {
            site.step();
            if site.chosen(0) != Some(first) {
                return Some(site.now() - begin);
            }
        }
        None
    };
    (first_seed()..first_seed() + seeds).map(time).collect()
}

fn told(what: &str, times: &[Option<u64>], within: u64) -> f64 {
    let mut all: Vec<u64> = times.iter().map(|time| time.unwrap_or(60 * SECOND)).collect();
    let in_time = all.iter().filter(|time| **time <= within).count() as f64 / all.len() as f64;
    let millis = |of, all: &mut [u64]| percentile(all, of) / MILLI;
    println!(
        "{what}: {} runs, ms p50 {} p95 {} p99 {}; within {} ms: {:.1} %",
        times.len(),
        millis(50, &mut all),
        millis(95, &mut all),
        millis(99, &mut all),
        within / MILLI,
        100.0 * in_time
    );
    in_time
}

#[test]
fn a_brown_out_is_left_within_a_second_and_a_half() {
    let (seeds, _) = extent(100, 0.0);
    let limit = 1500 * MILLI;
    let delay = times_to_leave(seeds, 1000, Trouble::Delay(80 * MILLI));
    assert!(told("+80 ms, 1,000 packets/s", &delay, limit) >= 0.95);
    let delay = times_to_leave(seeds, 0, Trouble::Delay(80 * MILLI));
    assert!(told("+80 ms, probes only", &delay, limit) >= 0.95);
    let loss = times_to_leave(seeds, 1000, Trouble::Loss(20_000, 0));
    assert!(told("2 % towards us, 1,000 packets/s", &loss, limit) >= 0.95);
    let loss = times_to_leave(seeds, 1000, Trouble::Loss(0, 20_000));
    assert!(told("2 % towards the remote, 1,000 packets/s", &loss, limit) >= 0.95);
    let loss = times_to_leave(seeds, 0, Trouble::Loss(20_000, 20_000));
    assert!(told("2 % both ways, probes only", &loss, 10 * SECOND) >= 0.95);
    let jitter = times_to_leave(seeds, 0, Trouble::Jitter(60 * MILLI));
    told("jitter, probes only", &jitter, 2 * SECOND);
}

/// How long after its trouble the first path was returned to, nanoseconds; less than 0 s: before the trouble was over.
fn time_to_return(seed: u64, hold_ms: u32, trouble: Trouble) -> i64 {
    let mut voice = class("voice", 100, 30, 10_000);
    voice.hold_ms = hold_ms;
    let mut site = Site::new(seed, vec![voice], 2, 1000);
    // The first is cheaper, so that there is somewhere to return to.
    site.run(20 * SECOND);
    let first = site.chosen(0).expect("a path");
    site.trouble(first, trouble);
    let begun = site.now();
    // Traffic shows the trouble at first, and only probes once it has gone elsewhere.
    while site.chosen(0) == Some(first) {
        site.step();
        assert!(site.now() - begun < 20 * SECOND, "{trouble:?}, seed {seed}");
    }
    site.rate(first, 0);
    let left = site.now();
    let end = begun + 20 * SECOND + Rng::new(seed).below(20 * SECOND);
    let mut is_over = false;
    while site.chosen(0) != Some(first) {
        if !is_over && site.now() >= end {
            site.trouble(first, Trouble::None);
            is_over = true;
        }
        site.step();
        let now = site.now();
        assert!(now < end + 90 * SECOND, "{trouble:?}, seed {seed}");
    }
    let hold = u64::from(hold_ms) * MILLI;
    assert!(site.now() - left >= hold, "{trouble:?}, seed {seed}");
    site.now() as i64 - end as i64
}

const TROUBLES: [Trouble; 5] = [
    Trouble::Delay(80 * MILLI),
    Trouble::Loss(20_000, 20_000),
    Trouble::Loss(200_000, 200_000),
    Trouble::DelayAndLoss(80 * MILLI, 20_000),
    Trouble::Down,
];

#[test]
fn what_has_recovered_is_returned_to_after_its_hold() {
    let (seeds, _) = extent(20, 0.0);
    for hold in [30, 10, 5] {
        let (mut early, mut late, mut all) = (0, 0, 0);
        for trouble in TROUBLES {
            let times =
                (first_seed()..first_seed() + seeds).map(|seed| time_to_return(seed, hold * 1000, trouble));
            let times: Vec<i64> = times.collect();
            let seconds = |time: i64| time as f64 / SECOND as f64;
            let (least, most) = (times.iter().min(), times.iter().max());
            println!(
                "hold {hold} s, {trouble:?}: returned to {:.1} to {:.1} s after the end",
                seconds(*least.expect("runs")),
                seconds(*most.expect("runs"))
            );
            let hold = i64::from(hold) * SECOND as i64;
            // A second's median and the table's pace.
            let slack = SECOND as i64;
            // Whatever shows in every second is seen to its end. Loss shows in probes by chance.
            let shows = !matches!(trouble, Trouble::Loss(20_000, _));
            let too_early = times.iter().filter(|time| **time < hold - slack).count();
            assert!(!shows || too_early == 0, "hold {hold}, {trouble:?}: {times:?}");
            early += times.iter().filter(|time| **time < 0).count();
            late += times
                .iter()
                .filter(|time| **time > hold + 5 * SECOND as i64)
                .count();
            all += times.len();
        }
        println!(
            "hold {hold} s: {all} recoveries, {early} returned to before the end, {late} later than 5 s after the hold"
        );
        // A packet that is lost while ten seconds still hold the trouble begins the hold anew. A shorter hold than that is over before they are.
        assert!(hold < 10 || 20 * late <= all);
        assert!(hold < 10 || 20 * early <= all);
    }
}

#[test]
fn nothing_moves_where_nothing_is_wrong() {
    let (seeds, seconds) = extent(8, 0.5);
    for rate in [0, 1000] {
        for seed in first_seed()..first_seed() + seeds {
            let classes = vec![
                class("default", 0, 0, 0),
                class("voice", 150, 30, 10_000),
                class("video", 200, 50, 5_000),
                class("interactive", 200, 0, 30_000),
            ];
            let mut site = Site::new(seed, classes, 3, rate);
            site.run(5 * SECOND);
            let chosen: Vec<Option<PathName>> = (0..4).map(|class| site.chosen(class)).collect();
            for _ in 0..seconds {
                site.run(SECOND);
                for (class, chosen) in chosen.iter().enumerate() {
                    let now = site.now() / SECOND;
                    assert_eq!(
                        site.chosen(class),
                        *chosen,
                        "seed {seed}, {rate} packets/s, class {class}, second {now}: {:?}",
                        site.last_move
                    );
                }
            }
        }
    }
}

/// Outages, brown-outs of every kind, flapping, all at random, on all paths: the invariants are looked at with each step of [`Site`].
#[test]
fn a_bad_day_keeps_the_invariants() {
    let (seeds, seconds) = extent(10, 0.5);
    let mut moves = 0;
    let mut forced = 0;
    for seed in first_seed()..first_seed() + seeds {
        let mut classes = vec![class("default", 0, 0, 0), class("voice", 150, 30, 10_000)];
        classes.push(class("video", 200, 50, 5_000));
        classes[2].hold_ms = 10_000;
        let mut site = Site::new(seed, classes, 3, 200);
        let mut weather = Rng::new(seed ^ 0x5eed);
        let mut next = [0; 3];
        while site.now() < seconds * SECOND {
            for (at, next) in next.iter_mut().enumerate() {
                if *next <= site.now() {
                    let path = site.path(at);
                    site.trouble(path, Trouble::random(&mut weather));
                    // Mostly minutes, at times fractions of a second.
                    let mean = if weather.below(4) == 0 {
                        2 * SECOND
                    } else {
                        60 * SECOND
                    };
                    *next = site.now() + weather.exponential(mean);
                }
            }
            site.step();
        }
        moves += site.moves;
        forced += site.forced;
    }
    println!(
        "{seeds} seeds of {seconds} s: {moves} moves, {forced} of them back within the hold because no other path was up"
    );
    assert!(moves > 0);
}

/// Nothing but probes passes: a loss that is seen makes the path suspect, and what its faster probes show is enough to go by.
#[test]
fn loss_is_found_by_probes_alone() {
    let (seeds, _) = extent(500, 0.0);
    for (what, trouble) in [
        ("2 % towards us, probes only", Trouble::Loss(20_000, 0)),
        ("2 % towards the remote, probes only", Trouble::Loss(0, 20_000)),
    ] {
        let times = times_to_leave(seeds, 0, trouble);
        assert!(told(what, &times, 10 * SECOND) >= 0.95);
    }
}

/// What a path loses that loses less than its limit, all day long, moves nothing, and its probes stay few.
#[test]
fn a_path_that_loses_a_little_is_kept() {
    let (seeds, seconds) = extent(4, 0.5);
    for (ppm, rate, most) in [
        (20, 0, 23.0),
        (1_000, 0, 50.0),
        (3_000, 0, 85.0),
        (3_000, 200, 85.0),
        (3_000, 1000, 23.0),
    ] {
        let (mut moves, mut probes) = (0, 0);
        for seed in first_seed()..first_seed() + seeds {
            let classes = vec![class("voice", 0, 0, 10_000), class("interactive", 0, 0, 30_000)];
            let mut site = Site::new(seed, classes, 2, rate);
            site.lose(ppm);
            site.run(5 * SECOND);
            let before = (site.moves, site.probes());
            site.run(seconds * SECOND);
            moves += site.moves - before.0;
            probes += site.probes() - before.1;
        }
        // Two paths, two sides.
        let mean = probes as f64 / (seeds * seconds * 4) as f64;
        println!(
            "{ppm} ppm, {rate} packets/s: {seeds} seeds of {seconds} s, {moves} moves, {mean:.1} probes/s of each side on a path"
        );
        assert!(moves == 0 && mean < most);
    }
}

/// Judged by probes alone, a path that still loses 2 % is not used again after the hold, nor after some more of them; and one that has recovered is, once it is over.
#[test]
fn the_way_back_is_judged_by_probes_alone() {
    let (seeds, _) = extent(100, 0.0);
    for trouble in [
        Trouble::Loss(20_000, 0),
        Trouble::Loss(0, 20_000),
        Trouble::Loss(20_000, 20_000),
        Trouble::Loss(200_000, 200_000),
    ] {
        let (mut back, mut late) = (0, 0);
        let mut after = Vec::new();
        for seed in first_seed()..first_seed() + seeds {
            let mut site = Site::new(seed, vec![class("voice", 100, 30, 10_000)], 2, 0);
            site.run(20 * SECOND);
            let first = site.chosen(0).expect("a path");
            site.trouble(first, trouble);
            while site.chosen(0) == Some(first) {
                site.step();
                assert!(site.now() < 200 * SECOND, "{trouble:?}, seed {seed}");
            }
            // Two holds and a part of one.
            let until = site.now() + 70 * SECOND + Rng::new(seed).below(30 * SECOND);
            while site.now() < until && site.chosen(0) != Some(first) {
                site.step();
            }
            if site.chosen(0) == Some(first) {
                back += 1;
                continue;
            }
            site.trouble(first, Trouble::None);
            let recovered = site.now();
            while site.chosen(0) != Some(first) {
                site.step();
                assert!(site.now() - recovered < 120 * SECOND, "{trouble:?}, seed {seed}");
            }
            after.push(site.now() - recovered);
            late += u64::from(site.now() - recovered > 35 * SECOND);
        }
        let seconds = |of, after: &mut [u64]| percentile(after, of) as f64 / SECOND as f64;
        println!(
            "{trouble:?}, probes only: {seeds} runs, {back} returned to within 70 to 100 s while it lasts; after it s p50 {:.1} p95 {:.1}, {late} later than 5 s after the hold",
            seconds(50, &mut after),
            seconds(95, &mut after),
        );
        assert!(100 * back <= 5 * seeds && 100 * late <= 5 * seeds);
    }
}
