//! Windows against what was really sent, lost and measured.

use patronus_abi::channel::{PathName, PathState, PathWhy};
use proptest::prelude::*;

use super::*;

const SECOND_NS: u64 = 10 * TENTH;

pub fn report() -> PathReport {
    PathReport {
        state: PathState::Up,
        why: PathWhy::Heard,
        ..PathReport::new([1; 32], PathName { local: 1, remote: 1 })
    }
}

fn measure(report: &mut PathReport, rtt: u32) {
    report.recent[(report.samples % SAMPLES as u64) as usize] = rtt;
    report.samples += 1;
    report.probes_received += 1;
}

#[test]
fn what_was_not_measured_is_not_there() {
    let mut window = Window::default();
    for tenth in 1..700 {
        window.take(tenth * TENTH, &report());
    }
    for seconds in [1, 10, 60] {
        let summary = window.summary(700 * TENTH, seconds);
        assert_eq!(summary, Summary::default(), "{seconds} s");
    }
    let measured = window.measured(700 * TENTH);
    let reading = measured.reading;
    assert_eq!(
        measured,
        Measured {
            reading,
            ..Measured::default()
        }
    );
    assert_eq!(window.history(700 * TENTH, 3), [None; 3]);
}

#[test]
fn what_was_there_before_the_first_look_is_of_no_window() {
    let mut window = Window::default();
    let mut report = report();
    (report.in_sent, report.in_received) = (1_000_000, 900_000);
    (0..50).for_each(|_| measure(&mut report, 40_000));
    window.take(TENTH, &report);
    assert_eq!(window.summary(TENTH, 60).packets.inward, None);
    assert_eq!(window.summary(TENTH, 60).samples, 0);
    // A pause makes a new beginning, and says how much was not seen.
    (0..20).for_each(|_| measure(&mut report, 50_000));
    report.in_sent += 500;
    window.take(TENTH + 3 * SECOND_NS, &report);
    let summary = window.summary(TENTH + 3 * SECOND_NS, 60);
    assert_eq!((summary.samples, summary.missed), (0, 20));
    assert_eq!(summary.packets.inward, None);
}

#[test]
fn a_path_that_was_made_anew_counts_from_there() {
    let mut window = Window::default();
    let mut report = report();
    (report.in_sent, report.in_received) = (1000, 1000);
    (0..30).for_each(|_| measure(&mut report, 40_000));
    window.take(TENTH, &report);
    report = super::tests::report();
    (report.in_sent, report.in_received) = (10, 8);
    measure(&mut report, 7_000);
    window.take(2 * TENTH, &report);
    (report.in_sent, report.in_received) = (30, 27);
    window.take(3 * TENTH, &report);
    let summary = window.summary(3 * TENTH, 1);
    let packets = Counted {
        sent: 20,
        received: 19,
    };
    assert_eq!(summary.packets.inward, Some(packets));
    assert_eq!((summary.samples, summary.p99), (1, Some(7_000)));
}

/// Our engine was started anew, and heard nothing until after the first look; the other side's goes on counting.
#[test]
fn what_was_sent_to_an_engine_that_is_gone_is_not_lost() {
    let mut window = Window::default();
    let mut report = report();
    window.take(TENTH, &report);
    (report.in_sent, report.in_received) = (1_000_000, 3);
    (report.out_sent, report.out_received) = (5, 700_000);
    window.take(2 * TENTH, &report);
    assert_eq!(window.measured(2 * TENTH).one, EachWay::default());
    (report.in_sent, report.in_received) = (1_000_020, 22);
    (report.out_sent, report.out_received) = (25, 700_020);
    window.take(3 * TENTH, &report);
    let one = window.measured(3 * TENTH).one;
    assert_eq!((one.inward.sent, one.inward.lost()), (20, 1));
    assert_eq!((one.outward.sent, one.outward.lost()), (20, 0));
}

#[test]
fn a_packet_that_comes_late_was_not_lost() {
    let mut window = Window::default();
    let mut report = report();
    (report.in_sent, report.in_received) = (1, 1);
    window.take(TENTH, &report);
    (report.in_sent, report.in_received) = (101, 91);
    window.take(2 * TENTH, &report);
    (report.in_sent, report.in_received) = (201, 201);
    window.take(3 * TENTH, &report);
    let packets = window.summary(3 * TENTH, 1).packets.inward.expect("some");
    assert_eq!((packets.sent, packets.lost()), (200, 0));
}

#[test]
fn seconds_that_are_over_keep_their_shape_and_no_more() {
    let mut window = Window::default();
    let mut report = report();
    for tenth in 1..=1200 {
        for sample in 0..SAMPLES as u32 {
            measure(&mut report, 1000 * (sample + 1));
        }
        window.take(tenth * TENTH, &report);
    }
    let now = 1200 * TENTH;
    let summary = window.summary(now, 60);
    assert!(summary.samples <= SECONDS * KEPT + RECENT);
    assert_eq!(summary.missed, 0);
    let p50 = summary.p50.expect("measured");
    assert!((8_000..=9_000).contains(&p50), "{p50}");
    assert_eq!(summary.p99, Some(16_000));
    assert!(window.seconds.capacity() <= SECONDS.next_power_of_two());
    assert!(window.recent.capacity() <= RECENT.next_power_of_two());
    assert!(window.tenths.capacity() <= (TENTHS + 1).next_power_of_two());
    // And what comes faster than it can be read is said.
    (0..40).for_each(|_| measure(&mut report, 1));
    window.take(now + TENTH, &report);
    assert_eq!(window.summary(now + TENTH, 1).missed, 24);
}

/// What happens between two readings: packets sent and how many of them lost, each way, round trips.
type Turn = ((u16, u16), (u16, u16), Vec<u32>);

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let packets = || (0u16..500, 0u16..20).prop_map(|(sent, lost)| (sent, lost.min(sent)));
    let rtts = prop::collection::vec(1u32..1_000_000, 0..=5);
    prop::collection::vec((packets(), packets(), rtts), 1..250)
}

proptest! {
    #[test]
    fn windows_are_sums_of_what_happened(turns in turns()) {
        let mut window = Window::default();
        let mut report = report();
        // Something was counted before, or the first turn would be of no window.
        (report.in_sent, report.in_received) = (1, 1);
        (report.out_sent, report.out_received) = (1, 1);
        // Begins with a second, so that seconds of the window are those of the turns.
        window.take(SECOND_NS - TENTH, &report);
        for (at, (inward, outward, rtts)) in turns.iter().enumerate() {
            report.in_sent += u64::from(inward.0);
            report.in_received += u64::from(inward.0 - inward.1);
            report.out_sent += u64::from(outward.0);
            report.out_received += u64::from(outward.0 - outward.1);
            rtts.iter().for_each(|rtt| measure(&mut report, *rtt));
            window.take(SECOND_NS + at as u64 * TENTH, &report);
        }
        let now = SECOND_NS + (turns.len() as u64 - 1) * TENTH;
        let into = (turns.len() - 1) % 10 + 1;
        for (seconds, tenths) in [(1, 10), (10, 90 + into), (60, 590 + into)] {
            let last = &turns[turns.len().saturating_sub(tenths)..];
            let summary = window.summary(now, seconds);
            let sent: u32 = last.iter().map(|turn| u32::from(turn.0.0)).sum();
            let lost: u32 = last.iter().map(|turn| u32::from(turn.0.1)).sum();
            let counted = summary.packets.inward;
            prop_assert_eq!(counted.map_or(0, |counted| counted.sent), sent);
            prop_assert_eq!(counted.map_or(0, Counted::lost), lost);
            let lost: u32 = last.iter().map(|turn| u32::from(turn.1.1)).sum();
            prop_assert_eq!(summary.packets.outward.map_or(0, Counted::lost), lost);
            prop_assert_eq!(summary.missed, 0);
            let mut rtts: Vec<u32> = last.iter().flat_map(|turn| turn.2.iter().copied()).collect();
            rtts.sort_unstable();
            if seconds == 1 {
                prop_assert_eq!(summary.samples, rtts.len());
                prop_assert_eq!(summary.p50, rtts.get(rtts.len().div_ceil(2).wrapping_sub(1)).copied());
            }
            // Thinned out, each window still lies within what was measured.
            prop_assert_eq!(summary.p50.is_some(), !rtts.is_empty());
            if let (Some(low), Some(high)) = (summary.p50, summary.p99) {
                prop_assert!(rtts.first() <= Some(&low) && low <= high && Some(&high) <= rtts.last());
            }
        }
        let measured = window.measured(now);
        prop_assert_eq!(measured.one.inward.lost(), window.summary(now, 1).packets.inward.map_or(0, Counted::lost));
    }

    #[test]
    fn no_table_panics(readings in prop::collection::vec((0u64..4_000_000_000, any::<[u64; 5]>(), any::<[u32; 4]>()), 1..20)) {
        let mut window = Window::default();
        let mut now = 0;
        for (after, counters, values) in readings {
            now += after;
            let mut report = report();
            [report.in_sent, report.in_received, report.out_sent, report.out_received, report.samples] = counters;
            [report.jitter_in, report.jitter_out, report.recent[0], report.recent[7]] = values;
            report.probes_received = counters[0];
            window.take(now, &report);
            window.measured(now);
            window.summary(now, 60);
            window.history(now, 60);
        }
    }
}
