//! The replay window: against a plain set of counters, and around its edges.

use patronus_crypto::replay::ReplayWindow;
use patronus_crypto::timeouts::{REJECT_AFTER_MESSAGES, REPLAY_REACH};
use proptest::prelude::*;
use std::collections::HashSet;

/// What the window has to do, said plainly: remember everything, look at the distance.
struct Oracle {
    reach: u64,
    highest: Option<u64>,
    seen: HashSet<u64>,
}

impl Oracle {
    fn new(reach: u64) -> Self {
        Oracle {
            reach,
            highest: None,
            seen: HashSet::new(),
        }
    }

    fn accept(&mut self, counter: u64) -> bool {
        let too_old = self
            .highest
            .is_some_and(|highest| highest.saturating_sub(counter) > self.reach);
        if counter >= REJECT_AFTER_MESSAGES || too_old || !self.seen.insert(counter) {
            return false;
        }
        self.highest = self.highest.max(Some(counter));
        true
    }
}

/// Asks, then marks, as the data path does; the two must agree.
fn accept(window: &mut ReplayWindow, counter: u64) -> bool {
    let expected = window.check(counter);
    assert_eq!(
        window.mark(counter),
        expected,
        "check and mark disagree on {counter}"
    );
    expected
}

/// A step of a sequence of counters: from the highest so far, forwards, backwards or around the edge of the window.
#[derive(Clone, Debug)]
enum Step {
    Forward(u64),
    Back(u64),
    Edge(i64),
    Repeat,
    Anywhere(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1u64..4).prop_map(Step::Forward),
        2 => (1u64..100).prop_map(Step::Forward),
        1 => (1u64..20_000).prop_map(Step::Forward),
        4 => (0u64..9000).prop_map(Step::Back),
        3 => (-70i64..70).prop_map(Step::Edge),
        1 => Just(Step::Repeat),
        1 => any::<u64>().prop_map(Step::Anywhere),
    ]
}

fn follow(bits: u32, start: u64, steps: &[Step]) {
    let mut window = ReplayWindow::new(bits);
    let mut oracle = Oracle::new(window.reach());
    let mut last = start;
    let mut highest = start;
    for step in steps {
        let counter = match *step {
            Step::Forward(by) => highest.saturating_add(by),
            Step::Back(by) => highest.saturating_sub(by),
            Step::Edge(by) => highest.saturating_sub(oracle.reach).saturating_add_signed(by),
            Step::Repeat => last,
            Step::Anywhere(counter) => counter,
        };
        assert_eq!(
            accept(&mut window, counter),
            oracle.accept(counter),
            "{counter}, highest {highest}"
        );
        last = counter;
        highest = oracle.highest.unwrap_or(highest);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn c32_window_is_a_set_of_counters(
        bits in prop::sample::select(vec![128u32, 256, 1024, 8192, 65_536]),
        start in prop_oneof![
            Just(0),
            0u64..100_000,
            any::<u64>(),
            (REJECT_AFTER_MESSAGES - 30_000)..=REJECT_AFTER_MESSAGES,
        ],
        steps in prop::collection::vec(step(), 1..300),
    ) {
        follow(bits, start, &steps);
    }
}

#[test]
fn c31_counter_zero_is_accepted_first_and_once() {
    let mut window = ReplayWindow::new(ReplayWindow::DEFAULT_BITS);
    assert!(accept(&mut window, 0));
    assert!(!accept(&mut window, 0));
    assert!(accept(&mut window, 1));
    // A later start does not shut zero out, as long as it is in reach.
    window.clear();
    assert!(accept(&mut window, REPLAY_REACH));
    assert!(accept(&mut window, 0));
    assert!(!accept(&mut window, 0));
}

#[test]
fn r12_window_reaches_8128_back() {
    let window = ReplayWindow::new(ReplayWindow::DEFAULT_BITS);
    assert_eq!(window.reach(), 8128);
    assert_eq!(window.reach(), REPLAY_REACH);
}

#[test]
fn window_size_is_rounded_up() {
    for (bits, reach) in [
        (0, 64),
        (1, 64),
        (128, 64),
        (129, 192),
        (8192, 8128),
        (8193, 16_320),
        (1 << 20, (1 << 20) - 64),
    ] {
        assert_eq!(ReplayWindow::new(bits).reach(), reach, "{bits} bits");
    }
}

/// A sequence through every edge of the window: what the Linux self-test looks at, in the terms of this window. `T` is
/// the first distance that is out of reach.
#[test]
fn c32_edges_of_the_window() {
    const T: u64 = REPLAY_REACH + 1;
    const END: u64 = REJECT_AFTER_MESSAGES;
    let steps = [
        // In order, out of order, and twice.
        (0, true),
        (1, true),
        (1, false),
        (9, true),
        (8, true),
        (7, true),
        (7, false),
        // The top moves to T: 1 is the last in reach, 0 is out.
        (T, true),
        (T - 1, true),
        (T - 1, false),
        (T - 2, true),
        (2, true),
        (2, false),
        (1, false),
        (0, false),
        // 16 further: 16 is out of reach, 17 is in.
        (T + 16, true),
        (16, false),
        (17, true),
        (17, false),
        (T + 16, false),
        // A jump over more than the whole ring forgets all that was seen, and nothing seen comes back into reach.
        (4 * T, true),
        (4 * T - (T - 1), true),
        (4 * T - (T - 1), false),
        (10, false),
        (T + 16, false),
        (4 * T - T, false),
        (4 * T - (T + 1), false),
        (4 * T - (T - 2), true),
        (4 * T + 1 - T, false),
        (0, false),
        // The end of the numbers.
        (END, false),
        (END - 1, true),
        (END, false),
        (END - 1, false),
        (END - 2, true),
        (END + 1, false),
        (END + 2, false),
        (u64::MAX, false),
        (END - 2, false),
        (END - 3, true),
        (END - T, true),
        (END - T, false),
        (END - T - 1, false),
        (0, false),
    ];
    let mut window = ReplayWindow::new(ReplayWindow::DEFAULT_BITS);
    for (number, (counter, expected)) in steps.into_iter().enumerate() {
        assert_eq!(accept(&mut window, counter), expected, "step {number}: {counter}");
    }
}

/// Every counter of one window, in each order that a network or an attacker could make of it.
#[test]
fn c32_sweeps_of_the_whole_window() {
    let reach = REPLAY_REACH;
    let fresh = || ReplayWindow::new(ReplayWindow::DEFAULT_BITS);
    let every = |window: &mut ReplayWindow, counters: &mut dyn Iterator<Item = u64>, expected: bool| {
        for counter in counters {
            assert_eq!(accept(window, counter), expected, "{counter}");
        }
    };

    // Upwards from 1, then 0 as the last that is in reach, once.
    let mut window = fresh();
    every(&mut window, &mut (1..=reach), true);
    every(&mut window, &mut [0].into_iter(), true);
    every(&mut window, &mut (0..=reach), false);

    // Upwards one too far: 0 is gone.
    let mut window = fresh();
    every(&mut window, &mut (1..=reach + 1), true);
    every(&mut window, &mut [0].into_iter(), false);

    // Downwards from the highest to 0.
    let mut window = fresh();
    every(&mut window, &mut (0..=reach).rev(), true);
    every(&mut window, &mut (0..=reach).rev(), false);

    // Downwards with 0 just out of reach.
    let mut window = fresh();
    every(&mut window, &mut (1..=reach + 1).rev(), true);
    every(&mut window, &mut [0].into_iter(), false);

    // Downwards, then one more at the top, which the bottom then misses.
    let mut window = fresh();
    every(&mut window, &mut (1..=reach).rev(), true);
    every(&mut window, &mut [reach + 1].into_iter(), true);
    every(&mut window, &mut [0].into_iter(), false);

    // Downwards, then 0, then one more at the top.
    let mut window = fresh();
    every(&mut window, &mut (1..=reach).rev(), true);
    every(&mut window, &mut [0, reach + 1].into_iter(), true);
    every(&mut window, &mut (0..=reach + 1), false);
}

#[test]
fn c33_counters_at_and_above_the_limit_are_refused() {
    let mut window = ReplayWindow::new(1 << 20);
    let reach = window.reach();
    for counter in [
        REJECT_AFTER_MESSAGES,
        REJECT_AFTER_MESSAGES + 1,
        u64::MAX - 1,
        u64::MAX,
    ] {
        assert!(!accept(&mut window, counter));
    }
    // A window larger than what lies above the limit: sums that would not fit into 64 bits.
    assert!(accept(&mut window, REJECT_AFTER_MESSAGES - 1));
    assert!(accept(&mut window, REJECT_AFTER_MESSAGES - 1 - reach));
    assert!(!accept(&mut window, REJECT_AFTER_MESSAGES - 2 - reach));
}

/// Asking alone changes nothing: a forged packet with a huge counter cannot shut the real ones out.
#[test]
fn c32_window_moves_only_after_authentication() {
    let mut window = ReplayWindow::new(ReplayWindow::DEFAULT_BITS);
    assert!(accept(&mut window, 5));
    for _ in 0..2 {
        assert!(window.check(REJECT_AFTER_MESSAGES - 1));
        assert!(window.check(6));
        assert!(!window.check(5));
    }
    assert!(accept(&mut window, 6));
    assert!(accept(&mut window, 0));
}

/// Each two packets change places, for many times the ring: what an earlier round left in a word must be gone when the
/// word is used again, wherever in it the first packet falls.
#[test]
fn c32_swapped_packets_all_the_way_round() {
    for start in [0, 1, 62, 63] {
        let mut window = ReplayWindow::new(256);
        for counter in (start..start + 3000).step_by(2) {
            assert!(accept(&mut window, counter + 1), "{counter} + 1");
            assert!(accept(&mut window, counter), "{counter}");
        }
    }
}

#[test]
fn a_cleared_window_is_a_new_one() {
    let mut window = ReplayWindow::new(256);
    for counter in 0..1000 {
        accept(&mut window, counter);
    }
    window.clear();
    follow_through(&mut window, 0..1000);
}

fn follow_through(window: &mut ReplayWindow, counters: std::ops::Range<u64>) {
    for counter in counters {
        assert!(accept(window, counter));
        assert!(!accept(window, counter));
    }
}

/// Where a pointer has 32 bits, counters still have 64 (they are never narrowed before the ring's index is taken).
#[test]
fn r04_counters_above_32_bits_are_distinct() {
    let mut window = ReplayWindow::new(ReplayWindow::DEFAULT_BITS);
    let low = 17;
    assert!(accept(&mut window, low));
    assert!(accept(&mut window, low + (1 << 32)));
    assert!(!accept(&mut window, low + (1 << 32)));
    assert!(accept(&mut window, low + (1 << 33)));
    assert!(!accept(&mut window, low));
}
