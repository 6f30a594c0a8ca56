//! Asks somebody again and again whether he is there, and says when he is not.
//!
//! Who is asked is a link's gateway (ARP, neighbour discovery) or a host behind a peer (an inner ping); how is the owner's. Here is only the
//! counting, on the slow path's thread. A question without an answer is missed, and [`MISSES`] of them in a row mean that he is lost. A slow path that
//! was away for a while has asked nothing meanwhile, so it misses nothing; what has been answered meanwhile it takes in before it [polls](Asking::poll).

use std::collections::VecDeque;

use patronus_crypto::{Duration, Time};

/// So many questions in a row without an answer.
pub const MISSES: usize = 3;
/// Questions that an answer may still come for. Older ones have none.
const ASKED_MAX: usize = 32;
/// How long to wait for the answer to the last question at least while nobody knows how long it takes.
const PATIENCE: Duration = Duration::from_millis(500);

/// Questions and answers.
#[derive(Debug)]
pub struct Asking {
    interval: Duration,
    /// The next question is due; none: nothing is asked.
    next: Option<Time>,
    /// The number of the next question.
    sequence: u16,
    /// Questions without an answer since the last one that had one, oldest first.
    open: VecDeque<(u16, Time)>,
    /// The time that answers take, smoothed as TCP does (RFC 6298, section 2).
    round_trip: Option<Duration>,
    /// There was an answer once.
    known: bool,
    /// That he is lost was found out, and no answer came since.
    lost: bool,
}

impl Asking {
    /// Asks every `interval` from `first` on.
    pub fn new(interval: Duration, first: Time) -> Asking {
        Asking {
            interval,
            next: Some(first),
            sequence: 0,
            open: VecDeque::with_capacity(ASKED_MAX),
            round_trip: None,
            known: false,
            lost: false,
        }
    }

    /// Asks as often as this from now on, and at once if it is more often.
    pub fn set_interval(&mut self, interval: Duration, now: Time) {
        if interval < self.interval {
            self.next = self.next.map(|next| next.min(now));
        }
        self.interval = interval;
    }

    /// Begins again: what was asked before counts no more, and how long answers take may be another time. The next question is due at once.
    pub fn restart(&mut self, now: Time) {
        self.forget();
        self.round_trip = None;
        self.next = Some(now);
    }

    /// What was asked is not to be judged: it cannot have reached anybody.
    pub fn forget(&mut self) {
        self.open.clear();
        self.lost = false;
    }

    /// The number of a question that is to be asked now, if one is due.
    pub fn poll(&mut self, now: Time) -> Option<u16> {
        self.next.filter(|next| *next <= now)?;
        self.next = Some(now.after(self.interval));
        let sequence = self.sequence;
        self.sequence = sequence.wrapping_add(1);
        // Those that count are kept: the third decides.
        if self.open.len() == ASKED_MAX {
            self.open.remove(MISSES);
        }
        self.open.push_back((sequence, now));
        Some(sequence)
    }

    /// The question with this number was answered. False if nobody has asked that, or not lately.
    pub fn answered(&mut self, sequence: u16, now: Time) -> bool {
        let Some(at) = self.open.iter().position(|(asked, _)| *asked == sequence) else {
            return false;
        };
        let took = now.since(self.open[at].1);
        let before = self.round_trip.unwrap_or(took);
        self.round_trip = Some((before * 7 + took) / 8);
        self.open.drain(..=at);
        (self.known, self.lost) = (true, false);
        true
    }

    /// There was an answer, nobody knows to which question.
    pub fn answered_any(&mut self, now: Time) {
        match self.open.back() {
            Some((sequence, _)) => {
                self.answered(*sequence, now);
            }
            None => self.known = true,
        }
    }

    /// Whether there was an answer once.
    pub fn is_known(&self) -> bool {
        self.known
    }

    /// Questions since the last one that was answered.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// Whether the last question has no answer yet.
    pub fn is_waiting(&self) -> bool {
        !self.open.is_empty()
    }

    /// When [`MISSES`] questions will have had no answer, if none comes.
    pub fn lost_at(&self) -> Option<Time> {
        let (_, last) = self.open.get(MISSES - 1)?;
        let patience = match self.round_trip {
            Some(round_trip) => round_trip + round_trip / 2,
            None => PATIENCE,
        };
        Some(last.after(patience.max(self.interval)))
    }

    /// Whether he does not answer any more. That stays so until he does, however often he is asked meanwhile.
    pub fn is_lost(&mut self, now: Time) -> bool {
        self.lost |= self.lost_at().is_some_and(|at| at <= now);
        self.lost
    }

    /// When there is something to do: a question, or a verdict that is not there yet.
    pub fn deadline(&self, now: Time) -> Option<Time> {
        let verdict = self.lost_at().filter(|at| *at > now);
        self.next.into_iter().chain(verdict).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const INTERVAL: Duration = Duration::from_millis(200);

    fn ms(ms: u64) -> Time {
        Time(ms * 1_000_000)
    }

    #[test]
    fn three_missed_answers_are_a_loss() {
        let mut asking = Asking::new(INTERVAL, ms(0));
        for n in 0..10 {
            let sequence = asking.poll(ms(n * 200)).unwrap();
            assert_eq!(asking.poll(ms(n * 200 + 1)), None, "one at a time");
            assert!(asking.answered(sequence, ms(n * 200 + 20)));
            assert!(!asking.answered(sequence, ms(n * 200 + 21)), "twice");
            assert_eq!(asking.lost_at(), None);
        }
        for n in 10..13 {
            assert!(asking.poll(ms(n * 200)).is_some());
        }
        assert_eq!(asking.lost_at(), Some(ms(2600)), "an interval after the third");
        assert!(!asking.is_lost(ms(2599)) && asking.is_lost(ms(2600)));
        assert_eq!(asking.deadline(ms(2500)), Some(ms(2600)));
        asking.set_interval(INTERVAL * 10, ms(2600));
        assert!(
            asking.is_lost(ms(2601)),
            "asked less often, he is there no more than before"
        );
        asking.answered_any(ms(3000));
        assert!(!asking.is_lost(ms(9000)));
    }

    #[test]
    fn who_was_away_has_missed_nothing() {
        let mut asking = Asking::new(INTERVAL, ms(0));
        assert!(asking.poll(ms(0)).is_some());
        asking.answered_any(ms(1));
        assert!(asking.poll(ms(10_000)).is_some());
        assert!(!asking.is_lost(ms(11_000)), "one question, however late");
    }

    #[test]
    fn answers_may_take_longer_than_the_interval() {
        let (mut asking, mut answers) = (Asking::new(INTERVAL, ms(0)), VecDeque::new());
        // 600 ms; known from the first answer on.
        for now in (0..20_000).step_by(10).map(ms) {
            if let Some(sequence) = asking.poll(now) {
                answers.push_back((now.after(Duration::from_millis(600)), sequence));
            }
            while answers.front().is_some_and(|(at, _)| *at <= now) {
                let (_, sequence) = answers.pop_front().unwrap();
                assert!(asking.answered(sequence, now));
            }
            assert!(!asking.is_lost(now), "{now:?}");
        }
    }

    proptest! {
        /// Whatever is lost on the way: nobody is given up who has answered one of the last three questions in time, and whoever answers
        /// nothing more is given up within three intervals and the patience for the last answer.
        #[test]
        fn a_loss_is_found_and_nothing_else(
            heard in proptest::collection::vec(any::<bool>(), 0..60), took in 0u64..190, polled in 1u64..50,
        ) {
            let mut asking = Asking::new(INTERVAL, ms(0));
            asking.poll(ms(0));
            asking.answered_any(ms(took));
            let (mut asked, mut missed, mut answers) = (0, 0, VecDeque::new());
            let mut now = took;
            let mut silent_since = None;
            loop {
                now += polled;
                while answers.front().is_some_and(|(at, _)| *at <= now) {
                    let (_, sequence): (u64, u16) = answers.pop_front().unwrap();
                    asking.answered(sequence, ms(now));
                    missed = 0;
                }
                if asking.is_lost(ms(now)) {
                    prop_assert!(missed >= MISSES);
                    if asked > heard.len() { break }
                }
                if let Some(sequence) = asking.poll(ms(now)) {
                    if heard.get(asked).copied().unwrap_or(false) {
                        answers.push_back((now + took, sequence));
                    }
                    missed += 1;
                    asked += 1;
                    if asked > heard.len() { silent_since.get_or_insert(now); }
                }
                if let Some(since) = silent_since {
                    prop_assert!(now <= since + took + 3 * (200 + polled) + 285 + polled, "{now} {since}");
                }
            }
        }
    }
}
