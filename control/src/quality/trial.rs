//! Whether a path loses more than it may: a sequential test, which ends as soon as it is sure, however few or many packets that takes.
//!
//! What counts is the *excess*: packets lost, less what the limit allows of those that were sent. A test begins with a loss and goes on with every reading. When the excess has reached
//! what is asked for the path is *convicted*; when it has fallen far enough below none it is *acquitted*, and the next loss begins another one. That is Wald's sequential probability ratio test
//! (A. Wald, "Sequential Tests of Statistical Hypotheses", 1945) of 2.35 times the limit against 0.3 times: each packet's logarithm of the ratio of likelihoods is its part of the excess times 2.06.
//!
//! Each further test within an hour asks for more: all that a path loses rarely, a whole day long, is to convict it as rarely as the first loss would. And what a single reading says is
//! bounded, so that a queue that overflows once is one piece of evidence, whatever it costs.
//!
//! What a later reading makes good was not lost: where the other side has several workers, packets that another one has not counted yet when a probe comes are missing in one reading, and too many in the
//! next. They are taken out of the excess again, and a test of nothing else never was.
//!
//! Of one direction of a path for one class. Plain values, times passed in (nanoseconds of CLOCK_BOOTTIME): no threads, no clock.

use super::SECOND;
use super::window::Counted;

/// The unit of an excess: a packet is a million of it, so that limits in parts of a million are whole.
const PACKET: i64 = 1_000_000;
/// A reading adds no more than this.
const STEP_MAX: i64 = 3 * PACKET;
/// The excess that convicts, at least.
const CONVICTS: f64 = 3.2;
/// So much more if nothing says that the path did not always lose something: what came before the test without a loss was less than what may lose [`CLEAN`] packets.
const CONVICTS_UNKNOWN: f64 = 1.5;
const CLEAN: i64 = 6 * PACKET;
/// And so many times the logarithm of the tests in an hour: with the chance that one test convicts a path without fault, e^-(2.06 x excess), that of all of them together stays a fifth above that of the first.
const CONVICTS_MORE: f64 = 1.5;
/// So many readings with a loss are asked for: one that is long, or two, are no lasting loss.
const LOSSY: u32 = 4;
/// The excess that acquits, and the one that acquits a path that was convicted.
const ACQUITS: i64 = -2 * PACKET;
const ACQUITS_AGAIN: i64 = -3 * PACKET;
/// The excess that a convicted path has at most: what is asked of it is to lose little from now on, and not to make up for what was.
const CONVICTED_MAX: i64 = 2 * PACKET;
/// The least limit, parts per million: none at all could not be kept by anybody, nor be found to be.
const LIMIT_MIN: u32 = 100;
/// What a path loses is of about so many nanoseconds.
const FADES: u64 = 10 * SECOND;
/// In which tests are counted.
const HOUR: u64 = 3600 * SECOND;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Nothing was lost lately.
    #[default]
    Quiet,
    /// A test is on.
    Open,
    /// It loses too much.
    Convicted,
}

/// The test of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trial {
    state: State,
    excess: i64,
    lossy: u32,
    /// What was lost and not made good, and what that has added to the excess.
    lost: u32,
    added: i64,
    /// What it is about.
    packets: Counted,
    since: u64,
    /// When something was lost last that says that it is still so.
    seen: u64,
    /// Tests begun in this hour and in the one before.
    hour: u64,
    tests: [u32; 2],
    /// What might have been lost since something was, and how much that was when the test began.
    clean: i64,
    clean_before: i64,
}

/// What a path loses that loses too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Convicted {
    /// Lately.
    pub packets: Counted,
    /// In how many seconds.
    pub seconds: u32,
    /// When that was seen last.
    pub seen: u64,
}

impl Trial {
    /// Takes what has passed since the last reading.
    pub fn take(&mut self, now: u64, packets: Counted, limit: u32) {
        let is_lossy = packets.lost() > 0;
        let allowed = i64::from(packets.sent) * i64::from(limit.max(LIMIT_MIN));
        let step = (i64::from(packets.lost()) * PACKET - allowed).min(STEP_MAX);
        let clean = self.clean;
        self.clean = if is_lossy {
            0
        } else {
            clean.saturating_add(allowed)
        };
        match self.state {
            State::Quiet if step <= 0 => return,
            State::Quiet => self.begin(now, clean),
            State::Open | State::Convicted => {}
        }
        let before = self.excess;
        self.excess += step;
        self.lossy += u32::from(is_lossy);
        self.packets.add(packets);
        match self.state {
            State::Convicted => {
                if is_lossy && self.excess >= CONVICTED_MAX {
                    self.seen = now;
                }
                self.excess = self.excess.min(CONVICTED_MAX);
            }
            _ if self.excess >= self.convicts() && self.lossy >= LOSSY => {
                (self.state, self.excess, self.seen) = (State::Convicted, CONVICTED_MAX, now);
            }
            _ => {}
        }
        if is_lossy {
            self.lost = self.lost.saturating_add(packets.lost());
            self.added += (self.excess - before + allowed).max(0);
        } else {
            self.make_good(packets.received.saturating_sub(packets.sent));
        }
        let acquits = match self.state {
            State::Convicted => ACQUITS_AGAIN,
            State::Quiet | State::Open => ACQUITS,
        };
        if self.excess <= acquits {
            self.state = State::Quiet;
        }
        if now.saturating_sub(self.since) >= FADES {
            self.since += FADES / 2;
            self.packets = self.packets.halved();
        }
    }

    /// So many that were missing have come.
    fn make_good(&mut self, late: u32) {
        let late = late.min(self.lost);
        if late == 0 {
            return;
        }
        let part = (i128::from(self.added) * i128::from(late) / i128::from(self.lost)) as i64;
        (self.lost, self.added, self.excess) = (self.lost - late, self.added - part, self.excess - part);
        self.lossy = self.lossy.min(self.lost);
        if self.lost == 0 && self.state == State::Open {
            self.state = State::Quiet;
            self.tests[0] = self.tests[0].saturating_sub(1);
            self.clean = self.clean.saturating_add(self.clean_before);
        }
    }

    /// What was lost until now says nothing: the path was down.
    pub fn dismiss(&mut self) {
        self.state = State::Quiet;
    }

    fn begin(&mut self, now: u64, clean_before: i64) {
        let hour = now / HOUR;
        let [this, last] = self.tests;
        self.tests = match hour.saturating_sub(self.hour) {
            0 => [this, last],
            1 => [0, this],
            _ => [0, 0],
        };
        self.hour = hour;
        self.tests[0] = self.tests[0].saturating_add(1);
        self.clean_before = clean_before;
        (self.state, self.excess, self.lossy) = (State::Open, 0, 0);
        (self.lost, self.added) = (0, 0);
        (self.packets, self.since) = (Counted::default(), now);
    }

    /// The excess that convicts.
    fn convicts(&self) -> i64 {
        let tests = f64::from(self.tests[0]) + f64::from(self.tests[1]);
        let was_clean = self.clean_before >= CLEAN;
        let unknown = if was_clean { 0.0 } else { CONVICTS_UNKNOWN };
        ((CONVICTS + unknown + CONVICTS_MORE * tests.ln()) * PACKET as f64) as i64
    }

    /// Whether it is not known yet if the path loses too much.
    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Something if it does.
    pub fn convicted(&self, now: u64) -> Option<Convicted> {
        let is_convicted = self.state == State::Convicted;
        is_convicted.then(|| Convicted {
            packets: self.packets,
            seconds: (now.saturating_sub(self.since).div_ceil(SECOND)).max(1) as u32,
            seen: self.seen,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u32 = 10_000;
    const TENTH: u64 = SECOND / 10;

    fn reading(sent: u32, lost: u32) -> Counted {
        Counted {
            sent,
            received: sent - lost,
        }
    }

    /// Readings of 20 packets each, of which so many were lost.
    fn after(trial: &mut Trial, from: u64, lost: &[u32]) {
        for (at, lost) in (from..).zip(lost) {
            trial.take(at * TENTH, reading(20, *lost), LIMIT);
        }
    }

    #[test]
    fn nothing_lost_is_no_case() {
        let mut trial = Trial::default();
        after(&mut trial, 10, &[0; 1000]);
        assert!(!trial.is_open());
        // One lost of a thousand is what the limit allows ten times.
        trial.take(TENTH, reading(1000, 1), LIMIT);
        assert!(!trial.is_open());
    }

    #[test]
    fn one_loss_is_acquitted_and_five_are_not() {
        let mut trial = Trial::default();
        after(&mut trial, 10, &[1]);
        assert!(trial.is_open());
        after(&mut trial, 11, &[0; 13]);
        assert!(trial.is_open(), "1 lost of 280: 1.8 below the limit");
        after(&mut trial, 24, &[0]);
        assert!(!trial.is_open() && trial.convicted(24 * TENTH).is_none());
        // Six packets might have been lost before: it was a good path.
        let losses = [1, 0, 1, 0, 1, 1, 0, 0, 0, 1];
        let mut trial = Trial::default();
        after(&mut trial, 10, &[0; 30]);
        after(&mut trial, 40, &losses[..9]);
        assert!(trial.is_open(), "4 lost of 180: 2.2 above it");
        after(&mut trial, 49, &losses[9..]);
        assert!(trial.is_open(), "5 of 200: 3 above it");
        after(&mut trial, 50, &[1]);
        let convicted = trial.convicted(50 * TENTH).expect("6 of 220");
        assert_eq!((convicted.packets, convicted.seconds), (reading(220, 6), 1));
        assert_eq!(convicted.seen, 50 * TENTH);
        // Of one that nobody knows more is asked.
        let mut trial = Trial::default();
        after(&mut trial, 10, &losses);
        after(&mut trial, 20, &[1]);
        assert!(trial.is_open(), "6 of 220: 3.8 above it");
        after(&mut trial, 21, &[2]);
        assert!(trial.convicted(0).is_some(), "8 of 240");
    }

    #[test]
    fn a_burst_counts_once() {
        let mut trial = Trial::default();
        after(&mut trial, 10, &[20, 20, 20]);
        assert!(trial.is_open(), "however much it costs");
        after(&mut trial, 13, &[0; 60]);
        assert!(!trial.is_open());
    }

    /// Packets that another worker has not counted yet when a probe comes.
    #[test]
    fn what_is_made_good_was_not_lost() {
        let pair = |late: u32, lost: u32| {
            let missing = Counted {
                sent: 110,
                received: 110 - late - lost,
            };
            let found = Counted {
                sent: 110,
                received: 110 + late,
            };
            [missing, found]
        };
        let mut trial = Trial::default();
        after(&mut trial, 10, &[0; 30]);
        for at in 0..500 {
            // Sometimes a reading later.
            let [missing, found] = pair(3, 0);
            let between = [missing, reading(110, 0), found];
            let late = if at % 5 == 0 {
                &between[..]
            } else {
                &pair(3, 0)[..]
            };
            for packets in late {
                trial.take((40 + at) * TENTH, *packets, LIMIT);
                assert!(trial.convicted(0).is_none());
            }
            assert!(!trial.is_open(), "nothing is missing");
        }
        assert_eq!(trial.tests[0], 0, "no further test asks for more");
        // What else is lost is found as without it.
        let takes = |late: u32| {
            let mut trial = Trial::default();
            after(&mut trial, 10, &[0; 30]);
            let convicts = |at: &u64| {
                pair(late, 5)
                    .into_iter()
                    .for_each(|packets| trial.take((40 + at) * TENTH, packets, LIMIT));
                trial.convicted(0).is_some()
            };
            (0..100).find(convicts)
        };
        assert_eq!(takes(0), Some(3), "5 lost of 220 each time");
        assert!(takes(1).is_some_and(|at| at <= 5) && takes(3).is_some_and(|at| at <= 10));
    }

    #[test]
    fn who_was_convicted_has_to_prove_itself() {
        let mut trial = Trial::default();
        after(&mut trial, 10, &[1; 6]);
        let seen = trial.convicted(0).expect("6 lost of 120").seen;
        after(&mut trial, 16, &[0; 20]);
        assert_eq!(trial.convicted(0).map(|convicted| convicted.seen), Some(seen));
        // Five packets below where it was: 500 without a loss.
        after(&mut trial, 36, &[0; 4]);
        assert!(trial.convicted(0).is_some());
        after(&mut trial, 40, &[0; 1]);
        assert!(trial.convicted(0).is_none());
        // What is still lost begins the hold anew.
        after(&mut trial, 50, &[1; 10]);
        let seen = trial.convicted(0).expect("10 lost of 200").seen;
        assert_eq!(seen, 59 * TENTH);
    }

    #[test]
    fn every_further_test_in_an_hour_asks_for_more() {
        let convicts_after = |tests: u32, from: u64| {
            let mut trial = Trial::default();
            for test in 0..tests {
                let begin = from + u64::from(test);
                trial.take(begin * SECOND, reading(20, 1), LIMIT);
                trial.take(begin * SECOND, reading(1000, 0), LIMIT);
                assert!(!trial.is_open());
            }
            trial.take(3 * HOUR - 1, reading(1000, 0), LIMIT);
            trial.take(3 * HOUR - 1, reading(1, 1), LIMIT);
            trial.convicts()
        };
        let of = |tests: f64| ((CONVICTS + CONVICTS_MORE * tests.ln()) * PACKET as f64) as i64;
        assert_eq!(convicts_after(0, 0), of(1.0));
        assert_eq!(convicts_after(99, 7300), of(100.0));
        assert_eq!(convicts_after(99, 3700), of(100.0), "an hour ago");
        assert_eq!(convicts_after(99, 100), of(1.0), "two");
    }
}
