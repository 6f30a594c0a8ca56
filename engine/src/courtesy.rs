//! Whether a worker that wakes may interrupt whoever runs on its core.
//!
//! It should not: who hands a worker a packet is about to go to sleep, and if it may finish, the whole way of
//! the packet stays on one core. But if other work keeps every core busy, a worker that never interrupts waits for the end of that
//! work's time slice. So the worker measures how long it waits: a timer wakes it now and then while there is traffic, and how late it
//! finds itself running decides ([`Judge`]). docs/adr/0008 has the figures.
//!
//! Belongs to one worker and is called on its thread.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use patronus_crypto::{Duration, Time};
use patronus_io::schedule::{Wakeup, set_wakeup, wakeup};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// How often to measure while there is traffic.
const INTERVAL: Duration = Duration::from_millis(50);

/// A worker that runs so long after its timer was due had to wait for somebody.
const LATE: Duration = Duration::from_micros(500);

/// So many late wake-ups among the last eight, and the worker interrupts from then on.
const LATE_MAX: u32 = 3;

/// For how long it does so before it tries again to be polite; doubled each time that this was too early.
const PAUSE: Duration = Duration::from_secs(10);
const PAUSE_MAX: Duration = Duration::from_secs(160);

/// Measures, judges and sets the worker thread's scheduling policy.
pub struct Courtesy {
    timer: OwnedFd,
    judge: Judge,
    /// When the timer fires, if it is set.
    due: Option<Time>,
}

impl Courtesy {
    /// Makes the calling thread polite. `None` if whoever started it gave it another policy than the default one, or
    /// if the system has no such policy or timer: then it stays as it is.
    pub fn begin() -> Option<Courtesy> {
        if wakeup() != Some(Wakeup::Preempting) {
            return None;
        }
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Boottime, flags).ok()?;
        set_wakeup(Wakeup::Waiting).ok()?;
        Some(Courtesy {
            timer,
            judge: Judge::new(),
            due: None,
        })
    }

    /// The worker is about to sleep after there was traffic.
    pub fn before_sleep(&mut self, now: Time) {
        if self.judge.forgive(now) {
            self.apply();
        }
        if self.due.is_none() && self.judge.wakeup() == Wakeup::Waiting {
            let due = now.after(INTERVAL);
            self.due = self.set_timer(due).then_some(due);
        }
    }

    /// The timer's descriptor was readable at `now`, at the end of a sleep that began at `asleep`.
    pub fn timer_fired(&mut self, asleep: Time, now: Time) {
        let Some(due) = self.due.take() else { return };
        // A timer that was due before the worker slept says nothing about waking.
        if due >= asleep && self.judge.woke(now, now.since(due)) {
            self.apply();
        }
    }

    fn apply(&self) {
        // Refused, the worker goes on as it did.
        let _ = set_wakeup(self.judge.wakeup());
    }

    fn set_timer(&self, due: Time) -> bool {
        let nanos = due.0;
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec {
                tv_sec: (nanos / 1_000_000_000).cast_signed(),
                tv_nsec: (nanos % 1_000_000_000).cast_signed(),
            },
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &once).is_ok()
    }
}

impl AsFd for Courtesy {
    /// To be watched edge-triggered: nobody reads it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

/// Decides from how late the worker woke. No system calls: time and delays are passed in.
struct Judge {
    /// The last eight wake-ups, a set bit for a late one.
    history: u8,
    /// Until when the worker interrupts, if it does.
    until: Option<Time>,
    /// Since when it does not.
    since: Time,
    pause: Duration,
}

impl Judge {
    fn new() -> Judge {
        Judge {
            history: 0,
            until: None,
            since: Time(0),
            pause: PAUSE,
        }
    }

    fn wakeup(&self) -> Wakeup {
        match self.until {
            None => Wakeup::Waiting,
            Some(_) => Wakeup::Preempting,
        }
    }

    /// The worker woke `delay` after it should have. True if the answer of `wakeup` changed.
    fn woke(&mut self, now: Time, delay: Duration) -> bool {
        if self.until.is_some() {
            return false;
        }
        self.history = self.history << 1 | u8::from(delay > LATE);
        if self.history.count_ones() < LATE_MAX {
            return false;
        }
        // Polite for longer than the last pause: that other work has nothing to do with this one.
        if now.since(self.since) > self.pause {
            self.pause = PAUSE;
        }
        self.until = Some(now.after(self.pause));
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        true
    }

    /// Ends the pause if it is over. True if the answer of `wakeup` changed.
    fn forgive(&mut self, now: Time) -> bool {
        if self.until.is_none_or(|until| now < until) {
            return false;
        }
        (self.until, self.history, self.since) = (None, 0, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const EARLY: Duration = Duration::from_micros(60);
    const WAITED: Duration = Duration::from_millis(2);

    /// Wake-ups every tenth of a second with the delays that `delay` gives for each second; returns how many of them
    /// found the worker polite.
    fn run(judge: &mut Judge, seconds: std::ops::Range<u64>, delay: impl Fn(u64) -> Duration) -> usize {
        let mut polite = 0;
        for tenth in seconds.start * 10..seconds.end * 10 {
            let now = Time(tenth * SECOND / 10);
            judge.forgive(now);
            polite += usize::from(judge.wakeup() == Wakeup::Waiting);
            judge.woke(now, delay(tenth));
        }
        polite
    }

    #[test]
    fn polite_while_it_wakes_in_time() {
        let mut judge = Judge::new();
        assert_eq!(run(&mut judge, 1..100, |_| EARLY), 990);
        // A hiccup now and then is no contention.
        let hiccup = |tenth| if tenth % 5 == 0 { WAITED } else { EARLY };
        assert_eq!(run(&mut judge, 100..200, hiccup), 1000);
    }

    #[test]
    fn interrupts_under_contention_and_seldom_asks_again() {
        let mut judge = Judge::new();
        assert_eq!(run(&mut judge, 1..2, |_| WAITED), LATE_MAX as usize);
        // Asks after 10, 20, 40, 80, 160, 160... seconds, three wake-ups each.
        let polite = run(&mut judge, 2..1000, |_| WAITED);
        assert!((20..=30).contains(&polite), "{polite}");
    }

    #[test]
    fn polite_again_when_the_others_are_done() {
        let mut judge = Judge::new();
        run(&mut judge, 1..1000, |_| WAITED);
        let polite = run(&mut judge, 1000..2000, |_| EARLY);
        assert!(polite >= 10 * (1000 - 160), "{polite}");
        // The next contention is a new one.
        run(&mut judge, 2000..2001, |_| WAITED);
        assert_eq!(run(&mut judge, 2001..2012, |_| EARLY), 18);
    }

    #[test]
    fn a_given_policy_is_kept() {
        // On threads of their own: a policy stays.
        let begin = |given: Option<Wakeup>| {
            let thread = std::thread::spawn(move || {
                given
                    .into_iter()
                    .for_each(|given| set_wakeup(given).expect("set"));
                (Courtesy::begin().is_some(), wakeup())
            });
            thread.join().expect("thread")
        };
        assert_eq!(begin(None), (true, Some(Wakeup::Waiting)));
        assert_eq!(begin(Some(Wakeup::Waiting)), (false, Some(Wakeup::Waiting)));
    }
}
