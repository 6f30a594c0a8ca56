//! When the worker was away: what it did not hear then was not silence.

use patronus_crypto::{Duration, Time};

/// Stalls that are remembered, the last ones. What is judged lies no further back than some probes, and each stall lasts [`STALL_MIN`] at least.
const REMEMBERED: usize = 64;
/// Being later than this is a stall; less is what waking takes.
const STALL_MIN: Duration = Duration::from_millis(1);

/// The last stalls.
pub struct Stalls {
    /// When each was over, and how long it took.
    last: [(Time, Duration); REMEMBERED],
    count: usize,
}

impl Default for Stalls {
    fn default() -> Self {
        Stalls {
            last: [(Time(0), Duration::ZERO); REMEMBERED],
            count: 0,
        }
    }
}

impl Stalls {
    /// The worker is there at `now`, and should have been at `due`.
    pub fn note(&mut self, due: Time, now: Time) {
        let late = now.since(due);
        if late >= STALL_MIN {
            self.last[self.count % REMEMBERED] = (now, late);
            self.count += 1;
        }
    }

    /// How long it was away since then, all in all.
    pub fn since(&self, then: Time) -> Duration {
        let later = self.last.iter().filter(|(over, _)| *over > then);
        later.map(|(over, late)| (*late).min(over.since(then))).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stalls_add_up_and_small_ones_do_not_count() {
        let at = |millis: u64| Time(millis * 1_000_000);
        let mut stalls = Stalls::default();
        stalls.note(at(100), at(150));
        stalls.note(at(199), at(199));
        stalls.note(at(200), Time(at(200).0 + 900_000));
        stalls.note(at(300), at(310));
        assert_eq!(stalls.since(at(90)), Duration::from_millis(60));
        assert_eq!(
            stalls.since(at(120)),
            Duration::from_millis(40),
            "of the first as much as is later"
        );
        assert_eq!(stalls.since(at(150)), Duration::from_millis(10));
        assert_eq!(stalls.since(at(310)), Duration::ZERO);
        (0..1000).for_each(|n| stalls.note(at(400 + 10 * n), at(405 + 10 * n)));
        assert_eq!(
            stalls.since(at(400)),
            Duration::from_millis(5) * REMEMBERED as u32
        );
    }
}
