//! The model under a virtual clock: shares within their confidence bounds, order, an exact rate, and the same again from the same seed.

use patronus_hop::Time;
use patronus_hop::dice::Chance;
use patronus_hop::link::{Leaving, Link, PACKETS_MAX, Packet};
use patronus_hop::model::{Drop, Impair, Verdict};
use patronus_hop::settings::{Delay, Loss, Rate, Reorder, Settings, Shape};
use proptest::prelude::*;

const MILLISECOND: Time = 1_000_000;

fn impair(seed: u64, settings: Settings) -> Impair {
    let mut impair = Impair::new(seed, 0);
    impair.set(settings);
    impair
}

/// Verdicts of `count` frames of this length, one each time `gap` has passed.
fn offered(impair: &mut Impair, count: u64, gap: Time, frame: usize) -> Vec<Verdict> {
    (0..count)
        .map(|i| impair.offer(i * gap, frame, frame - 14))
        .collect()
}

fn lost(verdicts: &[Verdict]) -> Vec<bool> {
    verdicts
        .iter()
        .map(|verdict| *verdict == Verdict::Drop(Drop::Lost))
        .collect()
}

fn exits(verdicts: &[Verdict]) -> Vec<Time> {
    let exit = |verdict: &Verdict| match verdict {
        Verdict::Pass(pass) => Some(pass.at),
        Verdict::Drop(_) => None,
    };
    verdicts.iter().filter_map(exit).collect()
}

/// Whether a share of `n` trials is what a probability says, within five standard errors (one wrong alarm in two million).
fn is_share(count: usize, n: u64, p: f64) -> bool {
    let error = (p * (1.0 - p) / n as f64).sqrt();
    (count as f64 / n as f64 - p).abs() <= 5.0 * error
}

fn chance() -> impl Strategy<Value = Chance> {
    (0..=1_000_000_000u32).prop_map(Chance::billionths)
}

fn settings() -> impl Strategy<Value = Settings> {
    let loss = prop_oneof![
        chance().prop_map(Loss::Independent),
        (chance(), chance(), chance(), chance()).prop_map(|(enter, leave, bad, good)| Loss::Bursts {
            enter,
            leave,
            bad,
            good
        }),
    ];
    let delay =
        (0..50 * MILLISECOND, 0..20 * MILLISECOND, any::<bool>()).prop_map(|(fixed, jitter, normal)| Delay {
            fixed,
            jitter,
            shape: if normal { Shape::Normal } else { Shape::Uniform },
        });
    let rate = (1_000..1_000_000_000u64, 0..200_000u64, 1..100u32).prop_map(|(rate, bytes, packets)| Rate {
        bits_per_second: rate,
        queue_bytes: bytes,
        queue_packets: packets,
    });
    let reorder = (chance(), 0..20 * MILLISECOND).prop_map(|(chance, by)| Reorder { chance, by });
    let rest = (chance(), chance(), prop::option::of(100..1500u32));
    (
        loss,
        delay,
        prop::option::of(rate),
        prop::option::of(reorder),
        rest,
    )
        .prop_map(
            |(loss, delay, rate, reorder, (duplicate, corrupt, mtu))| Settings {
                delay,
                loss,
                rate,
                reorder,
                duplicate,
                corrupt,
                mtu,
                cut: false,
            },
        )
}

/// Packets of any length at any times, in order.
fn traffic() -> impl Strategy<Value = Vec<(Time, usize)>> {
    let packet = (0..3 * MILLISECOND, 60..1514usize);
    prop::collection::vec(packet, 1..300).prop_map(|gaps| {
        let arrive = |time: &mut Time, (gap, len)| {
            *time += gap;
            Some((*time, len))
        };
        gaps.into_iter().scan(0, arrive).collect()
    })
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Numbered {
    number: usize,
    len: usize,
    flipped: bool,
}

impl Packet for Numbered {
    fn frame_len(&self) -> usize {
        self.len
    }
    fn ip_len(&self) -> usize {
        self.len - 14
    }
    fn copy(&self) -> Numbered {
        self.clone()
    }
    fn flip(&mut self, _: u64) {
        self.flipped = true;
    }
}

/// Everything that leaves a link, in order, with the time of leaving.
fn carried(link: &mut Link<Numbered>, traffic: &[(Time, usize)]) -> Vec<(Time, Numbered)> {
    let mut left = Vec::new();
    let mut drain = |link: &mut Link<Numbered>, now| {
        while let Some(Leaving::On(at, packet)) = link.take(now) {
            left.push((at, packet));
            link.counters.sent += 1;
        }
    };
    for (number, (time, len)) in traffic.iter().enumerate() {
        drain(link, *time);
        link.came(*len);
        link.offer(
            *time,
            Numbered {
                number,
                len: *len,
                flipped: false,
            },
        );
    }
    drain(link, Time::MAX);
    left
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn shares_are_the_chances(seed: u64, p in chance()) {
        let n = 20_000;
        let settings = Settings { loss: Loss::Independent(p), ..Settings::default() };
        let verdicts = offered(&mut impair(seed, settings), n, 1000, 100);
        prop_assert!(is_share(lost(&verdicts).iter().filter(|lost| **lost).count(), n, p.fraction()));

        let settings = Settings { duplicate: p, corrupt: p, reorder: Some(Reorder { chance: p, by: 5 }), ..Settings::default() };
        let verdicts = offered(&mut impair(seed, settings), n, 1000, 100);
        let passes: Vec<_> = verdicts.iter().filter_map(|v| match v { Verdict::Pass(pass) => Some(*pass), _ => None }).collect();
        prop_assert_eq!(passes.len() as u64, n);
        for count in [
            passes.iter().filter(|pass| pass.twice).count(),
            passes.iter().filter(|pass| pass.held_back).count(),
            passes.iter().filter(|pass| pass.flip.is_some()).count(),
        ] {
            prop_assert!(is_share(count, n, p.fraction()));
        }
    }

    #[test]
    fn the_same_seed_does_the_same(seed: u64, settings in settings(), traffic in traffic()) {
        let run = |seed| {
            let mut link = Link::new(seed, 0);
            link.set(settings);
            let left = carried(&mut link, &traffic);
            (left, link.counters)
        };
        prop_assert_eq!(run(seed), run(seed));
    }

    #[test]
    fn losses_depend_on_nothing_but_ordinals(seed: u64, settings in settings(), gap in 0..MILLISECOND) {
        let quiet = Settings { loss: settings.loss, ..Settings::default() };
        let alone = lost(&offered(&mut impair(seed, quiet), 500, 7, 100));
        let open = Settings { mtu: None, rate: None, ..settings };
        prop_assert_eq!(alone, lost(&offered(&mut impair(seed, open), 500, gap, 1000)));
    }

    #[test]
    fn nothing_is_unaccounted_for(settings in settings(), traffic in traffic(), cut in any::<bool>()) {
        let mut link = Link::new(1, 0);
        link.set(Settings { cut, ..settings });
        let left = carried(&mut link, &traffic);
        let counters = link.counters;
        prop_assert_eq!(left.len() as u64, counters.sent);
        prop_assert_eq!(link.waiting(), 0);
        prop_assert_eq!(counters.packets, traffic.len() as u64);
        prop_assert_eq!(counters.packets + counters.duplicated, counters.sent + counters.dropped());
        prop_assert_eq!(left.iter().filter(|(_, packet)| packet.flipped).count() >= counters.corrupted as usize, true);
        prop_assert!(!cut || left.is_empty());
    }

    #[test]
    fn order_is_kept_unless_asked(settings in settings(), traffic in traffic()) {
        let mut link = Link::new(1, 0);
        link.set(Settings { reorder: None, ..settings });
        let left = carried(&mut link, &traffic);
        prop_assert!(left.is_sorted_by_key(|(_, packet)| packet.number));
        prop_assert!(left.is_sorted_by_key(|(at, _)| *at));
    }

    #[test]
    fn nothing_leaves_before_it_came_and_its_delay(settings in settings(), traffic in traffic()) {
        let mut link = Link::new(1, 0);
        link.set(settings);
        let least = settings.delay.fixed.saturating_sub(settings.delay.jitter * if settings.delay.shape == Shape::Normal { 6 } else { 1 });
        for (at, packet) in carried(&mut link, &traffic) {
            prop_assert!(at >= traffic[packet.number].0 + least);
        }
    }

    /// An oracle in exact fractions: each frame leaves `8 * len / rate` after the later of its arrival and the one before, rounded down.
    #[test]
    fn a_rate_is_exact(bits in 1_000..2_000_000_000u64, queue in 0..60_000u64, packets in 1..50u32, traffic in traffic()) {
        let rate = Rate { bits_per_second: bits, queue_bytes: queue, queue_packets: packets };
        let mut impair = impair(1, Settings { rate: Some(rate), ..Settings::default() });
        let unit = u128::from(bits);
        // In units of 1 / rate nanoseconds.
        let mut free: u128 = 0;
        let mut waiting: Vec<(u128, u64)> = Vec::new();
        for (time, len) in traffic {
            let now = u128::from(time) * unit;
            waiting.retain(|(left, _)| *left / unit > u128::from(time));
            let bytes: u64 = waiting.iter().map(|(_, len)| len).sum();
            let room = waiting.is_empty() || bytes + len as u64 <= queue && waiting.len() < packets as usize;
            let verdict = impair.offer(time, len, len - 14);
            if !room {
                prop_assert_eq!(verdict, Verdict::Drop(Drop::Queue));
                continue;
            }
            // A nanosecond that has begun counts as over, as it does for a clock.
            free = if free / unit < u128::from(time) { now } else { free };
            free += len as u128 * 8 * 1_000_000_000;
            waiting.push((free, len as u64));
            prop_assert_eq!(exits(&[verdict]), vec![(free / unit) as Time]);
        }
    }
}

#[test]
fn bursts_have_the_share_and_the_length_of_their_model() {
    let n = 400_000;
    for (enter, leave) in [(0.01, 0.25), (0.05, 0.5), (0.001, 0.1)] {
        let chance = |p: f64| Chance::billionths((p * 1e9) as u32);
        let loss = Loss::Bursts {
            enter: chance(enter),
            leave: chance(leave),
            bad: Chance::ALWAYS,
            good: Chance::NEVER,
        };
        let settings = Settings {
            loss,
            ..Settings::default()
        };
        let lost = lost(&offered(&mut impair(3, settings), n, 1000, 100));
        let share = lost.iter().filter(|lost| **lost).count() as f64 / n as f64;
        let bursts = lost.windows(2).filter(|pair| !pair[0] && pair[1]).count() as f64;
        let expected = enter / (enter + leave);
        // The number of bursts is about binomial; lengths are geometric with mean and deviation of about 1 / leave.
        let error = 5.0 / bursts.sqrt();
        assert!(
            (share / expected - 1.0).abs() < 1.5 * error,
            "{share} for {expected}"
        );
        let mean = share * n as f64 / bursts;
        assert!((mean * leave - 1.0).abs() < error, "{mean} for {}", 1.0 / leave);
    }
}

#[test]
fn uniform_jitter_covers_its_width() {
    let settings = Settings {
        delay: Delay {
            fixed: 10 * MILLISECOND,
            jitter: 4 * MILLISECOND,
            shape: Shape::Uniform,
        },
        ..Settings::default()
    };
    let n = 10_000;
    // So far apart that none waits for the one before.
    let gap = 20 * MILLISECOND;
    let exits = exits(&offered(&mut impair(1, settings), n, gap, 100));
    let delays: Vec<Time> = exits.iter().zip(0..).map(|(at, i)| at - i * gap).collect();
    let (least, most) = (delays.iter().min().unwrap(), delays.iter().max().unwrap());
    assert!((6 * MILLISECOND..6_010_000).contains(least), "{least}");
    assert!((13_990_000..=14 * MILLISECOND).contains(most), "{most}");
    let mean = delays.iter().sum::<Time>() as f64 / n as f64 / 1e6;
    // The deviation of an even distribution is its width / sqrt(12).
    assert!((mean - 10.0).abs() < 5.0 * 8.0 / 12f64.sqrt() / 100.0, "{mean}");
}

#[test]
fn held_back_packets_are_overtaken() {
    let settings = Settings {
        reorder: Some(Reorder {
            chance: Chance::billionths(100_000_000),
            by: 10 * MILLISECOND,
        }),
        ..Settings::default()
    };
    let mut link = Link::new(1, 0);
    link.set(settings);
    let traffic: Vec<_> = (0..1000).map(|i| (i * MILLISECOND, 100)).collect();
    let left = carried(&mut link, &traffic);
    let late = left
        .iter()
        .filter(|(at, packet)| *at == packet.number as Time * MILLISECOND + 10 * MILLISECOND);
    assert_eq!(late.count() as u64, link.counters.reordered);
    assert!(
        (50..150).contains(&link.counters.reordered),
        "{:?}",
        link.counters
    );
    let overtaken = left
        .windows(2)
        .filter(|pair| pair[0].1.number > pair[1].1.number)
        .count();
    assert!(overtaken > 30, "{overtaken}");
}

#[test]
fn a_cut_takes_what_is_under_way() {
    let mut link = Link::new(1, 0);
    let delay = Delay {
        fixed: MILLISECOND,
        ..Delay::default()
    };
    let settings = Settings {
        delay,
        ..Settings::default()
    };
    let packet = |number| Numbered {
        number,
        len: 100,
        flipped: false,
    };
    link.set(settings);
    assert_eq!(link.offer(0, packet(0)), None);
    link.set(Settings {
        cut: true,
        ..settings
    });
    assert_eq!(link.offer(10, packet(1)), Some(packet(1)));
    assert_eq!(link.take(MILLISECOND - 1), None);
    assert_eq!(link.take(MILLISECOND), Some(Leaving::Cut(packet(0))));
    link.set(settings);
    assert_eq!(link.offer(MILLISECOND, packet(2)), None);
    assert_eq!(
        link.take(2 * MILLISECOND),
        Some(Leaving::On(2 * MILLISECOND, packet(2)))
    );
    assert_eq!(link.counters.cut, 2);
}

#[test]
fn what_is_under_way_is_bounded() {
    let mut link = Link::new(1, 0);
    link.set(Settings {
        delay: Delay {
            fixed: MILLISECOND,
            ..Delay::default()
        },
        ..Settings::default()
    });
    for number in 0..PACKETS_MAX + 10 {
        link.offer(
            0,
            Numbered {
                number,
                len: 60,
                flipped: false,
            },
        );
    }
    assert_eq!((link.waiting(), link.counters.dropped_full), (PACKETS_MAX, 10));
}
