//! When somebody was away. What this worker did not hear while it was away itself was not silence; and what nobody sends on any path, because the remote's worker is away, says
//! nothing about one of them.

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
    /// Who was waited for is there at `now`, and should have been at `due`.
    pub fn note(&mut self, due: Time, now: Time) {
        let late = now.since(due);
        if late >= STALL_MIN {
            self.last[self.count % REMEMBERED] = (now, late);
            self.count += 1;
        }
    }

    /// How long they lasted since then, all in all.
    pub fn since(&self, then: Time) -> Duration {
        let later = self.last.iter().filter(|(over, _)| *over > then);
        later.map(|(over, late)| (*late).min(over.since(then))).sum()
    }
}

/// When nothing was heard of a remote, on any path, although it was time.
pub struct Absence {
    stalls: Stalls,
    /// When it was heard last, and when it is to be heard again at the latest.
    heard_at: Time,
    due: Time,
}

impl Default for Absence {
    fn default() -> Self {
        Absence {
            stalls: Stalls::default(),
            heard_at: Time(0),
            due: Time(u64::MAX),
        }
    }
}

impl Absence {
    /// When it was heard last.
    pub fn heard_at(&self) -> Time {
        self.heard_at
    }

    /// It was heard at `at`, and is to be heard again by `due`. While `own` says that this worker was away it could not be heard.
    pub fn heard(&mut self, at: Time, due: Time, own: &Stalls) {
        self.stalls.note(self.excused(own), at);
        (self.heard_at, self.due) = (at, due);
    }

    /// How long it was away since `then`, until `now`.
    pub fn since(&self, then: Time, now: Time, own: &Stalls) -> Duration {
        self.stalls.since(then) + now.since(self.excused(own).max(then))
    }

    /// Whether it is away.
    pub fn lasts(&self, now: Time) -> bool {
        self.due < now
    }

    fn excused(&self, own: &Stalls) -> Time {
        self.due.after(own.since(self.due))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_heard_late_was_away_unless_we_were() {
        let at = |millis: u64| Time(millis * 1_000_000);
        let ms = Duration::from_millis;
        let (mut absence, mut own) = (Absence::default(), Stalls::default());
        assert_eq!(
            absence.since(at(0), at(1000), &own),
            ms(0),
            "nobody was waited for"
        );
        absence.heard(at(1000), at(1010), &own);
        assert_eq!(absence.since(at(1000), at(1009), &own), ms(0));
        assert_eq!(absence.since(at(1000), at(1050), &own), ms(40));
        absence.heard(at(1050), at(1060), &own);
        assert_eq!(absence.since(at(1000), at(1055), &own), ms(40));
        assert_eq!(absence.since(at(1000), at(1061), &own), ms(41));
        assert_eq!(absence.since(at(1050), at(1061), &own), ms(1));
        own.note(at(1058), at(1158));
        assert_eq!(absence.since(at(1050), at(1158), &own), ms(0));
        absence.heard(at(1158), at(1168), &own);
        assert_eq!(absence.since(at(1000), at(1160), &own), ms(40));
    }

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
