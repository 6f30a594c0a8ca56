//! Whether a worker that wakes may interrupt whoever runs on its core.
//!
//! It should not: who hands a worker a packet is about to go to sleep, and if it may finish, the whole way of
//! the packet stays on one core. But if other work keeps every core busy, a worker that never interrupts waits for the end of that
//! work's time slice. So the worker measures how long it waits: a timer wakes it now and then while there is a little traffic, and how late it
//! finds itself running decides ([`Judge`]). With much traffic it mostly waits for those that feed it, and is right to. docs/adr/0008 has the figures.
//!
//! Even a worker that interrupts has to wait where several others have a claim to the core, for tens of milliseconds. To a remote that is the silence of all paths. So one that probes and is
//! once too late for it runs in real time for a while ([`Urgency`]), if the process may, as long as it sleeps now and then: real time takes the core from everybody else, the kernel's own
//! threads included, and the kernel takes it back for 50 ms of each second from whoever does not sleep at all. docs/adr/0042 has the figures.
//!
//! Belongs to one worker and is called on its thread.

use std::os::fd::{AsFd, OwnedFd};

use patronus_crypto::{Duration, Time};
use patronus_io::schedule::{Wakeup, set_wakeup, wakeup};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::process::{getpriority_process, setpriority_process};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// How often to measure while there is traffic.
const INTERVAL: Duration = Duration::from_millis(50);

/// Packets in an interval with which a worker is busy: 10,000 a second.
const BUSY: u64 = 500;

/// A worker that runs so long after its timer was due had to wait for somebody.
const LATE: Duration = Duration::from_micros(500);

/// So many late wake-ups among the last eight, and the worker interrupts from then on.
const LATE_MAX: u32 = 3;

/// For how long it does so before it tries again to be polite; doubled each time that this was too early.
const PAUSE: Duration = Duration::from_secs(10);
const PAUSE_MAX: Duration = Duration::from_secs(160);

/// For how long a worker that was too late for its probes runs in real time before it tries again without; doubled each time that this was too early.
const URGENT: Duration = Duration::from_secs(10);
const URGENT_MAX: Duration = Duration::from_secs(640);

/// A worker that has not slept for so long does not run in real time any more,
const SLEEPLESS_MAX: Duration = Duration::from_millis(100);

/// where less than this was no sleep: what was waited for was there already. The way into the kernel and back alone takes a hundredth of that, giving up the core most of it.
const NAP: Duration = Duration::from_micros(20);

/// and not again for so long.
const CALM: Duration = Duration::from_secs(1);

/// The least nice that there is (setpriority(2)).
const LEAST_NICE: i32 = -20;

/// Measures, judges and sets the worker thread's scheduling policy.
pub struct Courtesy {
    timer: OwnedFd,
    judge: Judge,
    urgency: Urgency,
    /// How nice the thread was at its beginning.
    nice: i32,
    /// When the timer fires, if it is set.
    due: Option<Time>,
    /// When the worker last went to sleep, and how many packets it had received until then.
    asleep: Time,
    packets: u64,
    /// How many it had received when the timer was set.
    packets_before: u64,
}

impl Courtesy {
    /// Makes the calling thread polite; `epoll` will report the timer as `event`. `None` if whoever started the thread gave
    /// it another policy than the default one, or if the system has no such policy or timer: then it stays as it is.
    pub fn begin(epoll: impl AsFd, event: EventData) -> Option<Courtesy> {
        if wakeup() != Some(Wakeup::Preempting) {
            return None;
        }
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Boottime, flags).ok()?;
        // Only the edge counts: nobody reads the timer.
        epoll::add(epoll, &timer, event, EventFlags::IN | EventFlags::ET).ok()?;
        set_wakeup(Wakeup::Waiting).ok()?;
        Some(Courtesy {
            timer,
            judge: Judge::new(),
            urgency: Urgency::new(),
            nice: getpriority_process(None).unwrap_or(0),
            due: None,
            asleep: Time(0),
            packets: 0,
            packets_before: 0,
        })
    }

    /// The worker goes to sleep at `now`, after there was traffic; it has received `packets` so far.
    pub fn before_sleep(&mut self, now: Time, packets: u64) {
        if self.judge.forgive(now) {
            self.apply();
        }
        (self.asleep, self.packets) = (now, packets);
        // One that is overdue fired while the worker was awake, which says nothing about waking.
        let set = self.due.is_some_and(|due| due > now);
        if !set && self.wakeup() == Wakeup::Waiting {
            let due = now.after(INTERVAL);
            self.due = self.set_timer(due).then_some(due);
            self.packets_before = packets;
        }
    }

    /// The timer was found to have fired at `now`, at the end of a sleep.
    pub fn timer_fired(&mut self, now: Time) {
        let Some(due) = self.due.take() else { return };
        let busy = self.packets - self.packets_before >= BUSY;
        if due >= self.asleep && !busy && self.judge.woke(now, now.since(due)) {
            self.apply();
        }
    }

    /// A sleep of this length ended at `now`; if it was to end by itself before, by so much later than that, and probes bear so much. True if the worker is in real time from
    /// now on.
    #[inline]
    pub fn woke(&mut self, now: Time, slept: Duration, late: Duration, bearable: Duration) -> bool {
        let is_over = self.urgency.forgive(now);
        let begins = self.urgency.woke(now, slept, late, bearable);
        if is_over || begins {
            self.apply();
        }
        begins
    }

    /// The worker takes a turn, at `now`.
    #[inline]
    pub fn turn(&mut self, now: Time) {
        if self.urgency.is_sleepless(now) {
            self.apply();
        }
    }

    fn wakeup(&self) -> Wakeup {
        match self.urgency.until {
            Some(_) => Wakeup::Realtime,
            None => self.judge.wakeup(),
        }
    }

    fn apply(&self) {
        let wakeup = self.wakeup();
        let is_urgent = wakeup == Wakeup::Realtime;
        // Refused, the worker goes on as it did, and is less nice than others if it may be that.
        if set_wakeup(wakeup).is_err() && is_urgent {
            let _ = set_wakeup(Wakeup::Preempting);
        }
        let _ = setpriority_process(None, if is_urgent { LEAST_NICE } else { self.nice });
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
        // Polite for longer than the next pause would be: the last contention has nothing to do with this one.
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

/// Decides whether the worker runs in real time, by how late it woke for its probes.
struct Urgency {
    /// Until when, if it does.
    until: Option<Time>,
    /// Not before.
    not_before: Time,
    /// Since when it does not.
    since: Time,
    /// When it slept last.
    slept: Time,
    pause: Duration,
}

impl Urgency {
    fn new() -> Urgency {
        Urgency {
            until: None,
            not_before: Time(0),
            since: Time(0),
            slept: Time(0),
            pause: URGENT,
        }
    }

    /// The worker woke so much too late for what it has to do, of which so much does no harm. True if it is urgent from now on.
    fn woke(&mut self, now: Time, slept: Duration, late: Duration, bearable: Duration) -> bool {
        if slept >= NAP {
            self.slept = now;
        }
        if late <= bearable || self.until.is_some() || now < self.not_before {
            return false;
        }
        if now.since(self.since) > self.pause {
            self.pause = URGENT;
        }
        self.until = Some(now.after(self.pause));
        self.pause = (self.pause * 2).min(URGENT_MAX);
        true
    }

    /// Ends it once it is over. True if it has.
    fn forgive(&mut self, now: Time) -> bool {
        let is_over = self.until.is_some_and(|until| now >= until);
        if is_over {
            (self.until, self.since) = (None, now);
        }
        is_over
    }

    /// Ends it for a worker that does not sleep. True if it has.
    fn is_sleepless(&mut self, now: Time) -> bool {
        let is_sleepless = self.until.is_some() && now.since(self.slept) > SLEEPLESS_MAX;
        if is_sleepless {
            (self.until, self.since, self.not_before) = (None, now, now.after(CALM));
        }
        is_sleepless
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, SystemClock};

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
    fn once_too_late_for_probes_is_urgent_and_seldom_tried_again() {
        let bearable = Duration::from_millis(5);
        let late = |millis: u64| Duration::from_millis(millis);
        let mut urgency = Urgency::new();
        assert!(
            !urgency.woke(Time(SECOND), NAP, late(5), bearable),
            "not too late"
        );
        // Late whenever it is not urgent, for 2,000 seconds.
        let mut begun = Vec::new();
        for second in 1..=2_000 {
            let now = Time(second * SECOND);
            urgency.forgive(now);
            if urgency.woke(now, NAP, late(6), bearable) {
                begun.push(second);
            }
        }
        assert_eq!(begun, [1, 11, 31, 71, 151, 311, 631, 1271, 1911]);
        // A long time later it is another trouble.
        let now = Time(10_000 * SECOND);
        assert!(urgency.forgive(now));
        let later = Time(20_000 * SECOND);
        assert!(urgency.woke(later, NAP, late(6), bearable));
        assert!(!urgency.forgive(Time(20_009 * SECOND)));
        assert!(urgency.forgive(Time(20_010 * SECOND)));
    }

    #[test]
    fn who_does_not_sleep_is_not_urgent() {
        let (late, bearable) = (Duration::from_millis(6), Duration::from_millis(5));
        let mut urgency = Urgency::new();
        let begun = Time(SECOND);
        assert!(!urgency.is_sleepless(begun));
        assert!(urgency.woke(begun, NAP, late, bearable));
        assert!(!urgency.is_sleepless(begun.after(SLEEPLESS_MAX)));
        urgency.woke(begun.after(SLEEPLESS_MAX), NAP, Duration::ZERO, bearable);
        assert!(!urgency.is_sleepless(begun.after(SLEEPLESS_MAX * 2)));
        // It asked whether there was something, and there was.
        let asked = begun.after(SLEEPLESS_MAX * 2);
        urgency.woke(asked, NAP / 2, Duration::ZERO, bearable);
        let ended = begun.after(SLEEPLESS_MAX * 3);
        assert!(urgency.is_sleepless(ended));
        assert!(!urgency.woke(ended, NAP, late, bearable), "not at once");
        assert!(urgency.woke(ended.after(CALM), NAP, late, bearable));
    }

    #[test]
    fn without_the_right_to_it_nothing_fails() {
        use rustix::process::{Resource, getrlimit};
        let measure = || {
            let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("epoll");
            let mut courtesy = Courtesy::begin(&epoll, EventData::new_u64(0)).expect("courtesy");
            let now = SystemClock.mono();
            assert!(courtesy.woke(now, NAP, WAITED, EARLY));
            let urgent = wakeup();
            courtesy.turn(now.after(SLEEPLESS_MAX * 2));
            let sleepless = wakeup();
            // Or it is over, and no packet has come meanwhile.
            assert!(courtesy.woke(now.after(CALM * 2), NAP, WAITED, EARLY));
            courtesy.woke(now.after(CALM * 2).after(URGENT * 2), NAP, Duration::ZERO, EARLY);
            assert_eq!(wakeup(), sleepless);
            (urgent, sleepless)
        };
        let (urgent, sleepless) = std::thread::spawn(measure).join().expect("thread");
        let may = rustix::process::geteuid().is_root() || getrlimit(Resource::Rtprio).current != Some(0);
        let wanted = if may { Wakeup::Realtime } else { Wakeup::Preempting };
        // Root in a container may be refused too.
        assert!(
            urgent == Some(wanted) || urgent == Some(Wakeup::Preempting),
            "{urgent:?}"
        );
        assert_eq!(sleepless, Some(Wakeup::Waiting));
    }

    #[test]
    fn a_given_policy_is_kept() {
        // On threads of their own: a policy stays.
        let begin = |given: Option<Wakeup>| {
            let thread = std::thread::spawn(move || {
                given
                    .into_iter()
                    .for_each(|given| set_wakeup(given).expect("set"));
                let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("epoll");
                (Courtesy::begin(&epoll, EventData::new_u64(0)).is_some(), wakeup())
            });
            thread.join().expect("thread")
        };
        assert_eq!(begin(None), (true, Some(Wakeup::Waiting)));
        assert_eq!(begin(Some(Wakeup::Waiting)), (false, Some(Wakeup::Waiting)));
    }

    #[test]
    fn a_timer_that_fires_while_the_worker_is_awake_is_set_again() {
        let measure = || {
            let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("epoll");
            let mut courtesy = Courtesy::begin(&epoll, EventData::new_u64(0)).expect("courtesy");
            let now = || SystemClock.mono();
            courtesy.before_sleep(now(), 0);
            let first = courtesy.due.expect("set");
            // Nobody asks until it is long over.
            while now() < first.after(EARLY) {
                std::thread::sleep(EARLY);
            }
            courtesy.before_sleep(now(), 0);
            let second = courtesy.due.expect("set again");
            assert!(second > first);
            let mut events = Vec::with_capacity(1);
            epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None).expect("wait");
            assert!(now() >= second, "the event of the first is gone");
            courtesy.timer_fired(now());
            assert_eq!(courtesy.due, None);
        };
        std::thread::spawn(measure).join().expect("thread");
    }
}
