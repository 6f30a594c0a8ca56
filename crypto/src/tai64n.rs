//! TAI64N timestamps: what makes an initiation newer than the ones before.
//!
//! Made and compared by the [`Device`](crate::Device) on the slow-path thread. A responder needs no clock: it takes the 12 bytes
//! as an opaque string and asks only for "greater". Ours carry a tag in their low 16 bits, which tells a site's
//! sessions apart; the base session's tag, and the only one a stock peer ever sees, is 0.

use crate::{Duration, Time, WallClock};

/// The label of 1970-01-01 00:00:00 UTC: 2^62, and the 10 seconds that TAI was ahead by then.
const UNIX_EPOCH: u64 = 0x4000_0000_0000_000a;

/// Nanoseconds are rounded down to a multiple of this, so that a timestamp tells little about our clock: 16.8 ms.
const STEP: u32 = 1 << 24;

const SECOND: u32 = 1_000_000_000;

/// A TAI64N timestamp: 8 bytes of seconds and 4 of nanoseconds, big-endian. Orders as its bytes do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Tai64n(pub [u8; 12]);

impl Tai64n {
    /// The timestamp for `wall`, rounded down, with `tag`.
    pub fn new(wall: WallClock, tag: u16) -> Tai64n {
        let seconds = UNIX_EPOCH.saturating_add(wall.secs);
        let nanos = wall.nanos.min(SECOND - 1) & !(STEP - 1);
        Tai64n::from_parts(seconds, nanos | u32::from(tag))
    }

    /// The tag in the low 16 bits. Meaningful only in timestamps of our own sites.
    pub fn tag(self) -> u16 {
        u16::from_be_bytes([self.0[10], self.0[11]])
    }

    /// The same time with another tag.
    fn with_tag(self, tag: u16) -> Tai64n {
        let (seconds, nanos) = self.parts();
        Tai64n::from_parts(seconds, nanos & !u32::from(u16::MAX) | u32::from(tag))
    }

    /// Whether `newest` is later by more than `lead`.
    pub(crate) fn is_behind(self, newest: Tai64n, lead: Duration) -> bool {
        let nanos = |stamp: Tai64n| {
            let (seconds, nanos) = stamp.parts();
            u128::from(seconds) * u128::from(SECOND) + u128::from(nanos)
        };
        nanos(newest).saturating_sub(nanos(self)) > lead.as_nanos()
    }

    /// The least timestamp of ours with the same tag that is greater.
    fn next(self) -> Tai64n {
        let (seconds, nanos) = self.parts();
        let stepped = (nanos & !(STEP - 1)).saturating_add(STEP);
        match stepped < SECOND {
            true => Tai64n::from_parts(seconds, stepped | u32::from(self.tag())),
            false => Tai64n::from_parts(seconds.saturating_add(1), u32::from(self.tag())),
        }
    }

    fn from_parts(seconds: u64, nanos: u32) -> Tai64n {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&seconds.to_be_bytes());
        bytes[8..].copy_from_slice(&nanos.to_be_bytes());
        Tai64n(bytes)
    }

    fn parts(self) -> (u64, u32) {
        let [a, b, c, d, e, f, g, h, nanos @ ..] = self.0;
        (
            u64::from_be_bytes([a, b, c, d, e, f, g, h]),
            u32::from_be_bytes(nanos),
        )
    }
}

/// The newest timestamps of one (peer, tag), both ways. They outlive handshakes, keys and endpoints.
#[derive(Default)]
pub(crate) struct Stamps {
    tag: u16,
    sent: Option<Tai64n>,
    accepted: Option<Tai64n>,
}

impl Stamps {
    /// None yet, for the session with this tag.
    pub(crate) fn tagged(tag: u16) -> Stamps {
        Stamps {
            tag,
            ..Stamps::default()
        }
    }

    /// Whose they are.
    pub(crate) fn tag(&self) -> u16 {
        self.tag
    }

    /// The newest one accepted.
    pub(crate) fn newest(&self) -> Option<Tai64n> {
        self.accepted
    }

    /// As [`stamp`](Self::stamp), and not earlier than `newest`, which the other side has perhaps accepted in another session: it would take
    /// a much older one for one that somebody withheld.
    pub(crate) fn stamp_after(&mut self, wall: WallClock, newest: Option<Tai64n>) -> Tai64n {
        let stamp = self.stamp(wall);
        let stamp = newest.map_or(stamp, |newest| stamp.max(newest.with_tag(self.tag)));
        self.sent = Some(stamp);
        stamp
    }

    /// The timestamp for an initiation sent now: greater than every one before, even if the wall clock stepped back.
    pub(crate) fn stamp(&mut self, wall: WallClock) -> Tai64n {
        let by_clock = Tai64n::new(wall, self.tag);
        let stamp = self.sent.map_or(by_clock, |last| by_clock.max(last.next()));
        self.sent = Some(stamp);
        stamp
    }

    /// Whether a received timestamp is greater than every one accepted before.
    pub(crate) fn is_newer(&self, stamp: Tai64n) -> bool {
        self.accepted.is_none_or(|newest| stamp > newest)
    }

    /// Takes a timestamp that is newer and whose message is authentic.
    pub(crate) fn accept(&mut self, stamp: Tai64n) {
        debug_assert!(self.is_newer(stamp));
        self.accepted = Some(stamp);
    }
}

/// Whether the wall clock is to be believed, as far as sending goes.
///
/// Whoever sets a machine's clock far ahead (a forged NTP answer is enough) makes its next initiation carry a far future
/// timestamp, and the responder then refuses everything until that time has come: the key is dead (CVE-2021-46873). So
/// an initiation is sent only if the wall clock is at most [`LEAD`](Self::LEAD) ahead of where a known good time and the
/// boot clock since then put it; the damage is bounded to that. The known good time is the first one seen that lies between
/// [`FLOOR`](Self::FLOOR) and [`CEILING`](Self::CEILING). A clock before the floor (a machine without a battery, before NTP)
/// is harmless, is used, and is no reference; one beyond the ceiling is refused. A clock that is behind is always believed.
pub(crate) struct ClockGuard {
    known: Option<(Time, WallClock)>,
}

impl ClockGuard {
    /// How far ahead of its expected value the wall clock may be: 30 days, more than a snapshot of a virtual machine usually
    /// sleeps.
    const LEAD: Duration = Duration::from_secs(30 * 86_400);
    /// 2025-01-01 00:00:00 UTC: before this, the clock has not been set.
    const FLOOR: u64 = 1_735_689_600;
    /// Thirty years later: nobody runs this then.
    const CEILING: u64 = Self::FLOOR + 30 * 365 * 86_400;

    pub(crate) const fn new() -> Self {
        ClockGuard { known: None }
    }

    /// Whether a timestamp made from `wall` may be sent.
    pub(crate) fn plausible(&mut self, now: Time, wall: WallClock) -> bool {
        match self.known {
            Some((then, known)) => {
                let expected = known.secs.saturating_add(now.since(then).as_secs());
                wall.secs <= expected.saturating_add(Self::LEAD.as_secs())
            }
            None if wall.secs < Self::FLOOR => true,
            None if wall.secs < Self::CEILING => {
                self.known = Some((now, wall));
                true
            }
            None => false,
        }
    }

    /// Takes `wall` for good, because a person says so. A clock that was never set says nothing: it may be set once.
    pub(crate) fn trust(&mut self, now: Time, wall: WallClock) {
        self.known = (wall.secs >= Self::FLOOR).then_some((now, wall));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wall(secs: u64, nanos: u32) -> WallClock {
        WallClock { secs, nanos }
    }

    #[test]
    fn c11_label_and_rounding() {
        let stamp = Tai64n::new(wall(1, 0x0123_4567), 0);
        assert_eq!(stamp.0, [0x40, 0, 0, 0, 0, 0, 0, 0x0b, 0x01, 0, 0, 0]);
        assert_eq!(Tai64n::new(wall(0, STEP - 1), 0).0[8..], [0; 4]);
        assert_eq!(Tai64n::new(wall(0, STEP), 0).0[8..], [1, 0, 0, 0]);
    }

    #[test]
    fn the_tag_stands_in_the_low_16_bits() {
        let stamp = Tai64n::new(wall(5, 999_999_999), 0xabcd);
        assert_eq!(stamp.0[8..], [59, 0, 0xab, 0xcd]);
        assert_eq!(stamp.tag(), 0xabcd);
        assert_eq!(stamp.next().tag(), 0xabcd);
        assert_eq!(stamp.next().parts().0, UNIX_EPOCH + 6);
    }

    #[test]
    fn c10_equal_or_older_is_not_newer() {
        let mut stamps = Stamps::default();
        let at = |secs, nanos| Tai64n::new(wall(secs, nanos), 0);
        assert!(stamps.is_newer(Tai64n::default()), "the first may be anything");
        stamps.accept(at(100, STEP));
        assert!(!stamps.is_newer(at(100, STEP)));
        assert!(!stamps.is_newer(at(100, 0)));
        assert!(!stamps.is_newer(at(99, 50 * STEP)));
        assert!(stamps.is_newer(at(100, 2 * STEP)));
        let mut one_more = at(100, STEP);
        one_more.0[11] += 1;
        assert!(stamps.is_newer(one_more), "all twelve bytes count");
    }

    #[test]
    fn c11_strictly_monotonic_when_the_clock_steps_back() {
        let mut stamps = Stamps::default();
        let mut last = stamps.stamp(wall(1000, 0));
        for n in 0..200 {
            let next = stamps.stamp(wall(1000 - n, 0));
            assert!(next > last);
            last = next;
        }
        assert_eq!(
            stamps.stamp(wall(5000, 0)),
            Tai64n::new(wall(5000, 0), 0),
            "back to the clock when it is ahead"
        );
    }

    /// A clock that steps back between two sessions' handshakes: the second one is not taken for withheld.
    #[test]
    fn a_session_is_never_stamped_long_before_another_one() {
        let (mut base, mut lane) = (Stamps::default(), Stamps::tagged(0x1203));
        let first = base.stamp_after(wall(5000, 3 * STEP), None);
        let second = lane.stamp_after(wall(1000, 0), Some(first));
        assert_eq!((second.tag(), second.parts().0), (0x1203, first.parts().0));
        assert!(!second.is_behind(first, Duration::ZERO));
        let third = lane.stamp_after(wall(1000, 0), Some(second));
        assert!(third > second, "greater all the same");
        let fourth = lane.stamp_after(wall(6000, 0), Some(third));
        assert_eq!(fourth, Tai64n::new(wall(6000, 0), 0x1203));
    }

    #[test]
    fn behind_is_by_more_than_the_lead() {
        let at = |secs, nanos| Tai64n::new(wall(secs, nanos), 0);
        let lead = Duration::from_secs(90);
        assert!(!at(10, 0).is_behind(at(100, 0), lead));
        assert!(at(10, 0).is_behind(at(100, STEP), lead));
        assert!(!at(10, STEP).is_behind(at(100, STEP), lead));
        assert!(!at(100, 0).is_behind(at(10, 0), lead));
        assert!(Tai64n([0; 12]).is_behind(Tai64n([0xff; 12]), lead));
    }

    proptest! {
        #[test]
        fn r46_nanoseconds_stay_in_range(clocks in prop::collection::vec((any::<u64>(), any::<u32>()), 1..50)) {
            let mut stamps = Stamps::default();
            let mut last: Option<Tai64n> = None;
            for (secs, nanos) in clocks {
                let stamp = stamps.stamp(wall(secs % (1 << 62), nanos));
                prop_assert!(stamp.parts().1 < SECOND);
                prop_assert_eq!(stamp.parts().1 % STEP, 0);
                prop_assert!(last.is_none_or(|last| stamp > last));
                last = Some(stamp);
            }
        }
    }

    #[test]
    fn r46_the_next_timestamp_is_one_step_on_and_keeps_its_tag() {
        const TAG: u32 = 0xabcd;
        for (seconds, steps, next_seconds, next_steps) in
            [(7, 0, 7, 1), (7, 3, 7, 4), (7, 58, 7, 59), (7, 59, 8, 0)]
        {
            let stamp = Tai64n::from_parts(seconds, (steps * STEP) | TAG);
            assert_eq!(stamp.next().parts(), (next_seconds, (next_steps * STEP) | TAG));
        }
    }

    #[test]
    fn r55_what_no_clock_shows() {
        // 2025 and thirty years of 365 days later.
        for (secs, plausible) in [
            (1_735_689_599, true),
            (2_681_769_599, true),
            (2_681_769_600, false),
        ] {
            let mut guard = ClockGuard::new();
            assert_eq!(
                guard.plausible(Time::from_secs(1), wall(secs, 0)),
                plausible,
                "{secs}"
            );
        }
    }

    #[test]
    fn r55_a_clock_far_ahead_is_not_believed() {
        const DAY: u64 = 86_400;
        let good = ClockGuard::FLOOR + 1000 * DAY;
        let mut guard = ClockGuard::new();
        assert!(guard.plausible(Time::from_secs(1), wall(good, 0)));
        assert!(guard.plausible(Time::from_secs(1), wall(good + 30 * DAY, 0)));
        assert!(!guard.plausible(Time::from_secs(1), wall(good + 30 * DAY + 1, 0)));
        assert!(!guard.plausible(Time::from_secs(1), wall(u64::MAX, 0)));
        assert!(
            guard.plausible(Time::from_secs(1), wall(0, 0)),
            "behind is harmless"
        );
        // A month of running allows a month more, and being ahead within bounds moves no bound.
        assert!(guard.plausible(Time::from_secs(1 + 30 * DAY), wall(good + 60 * DAY, 0)));
        assert!(!guard.plausible(Time::from_secs(1 + 30 * DAY), wall(good + 61 * DAY, 0)));
        guard.trust(Time::from_secs(2), wall(good + 400 * DAY, 0));
        assert!(guard.plausible(Time::from_secs(2), wall(good + 401 * DAY, 0)));
        guard.trust(Time::from_secs(3), wall(0, 0));
        assert!(
            guard.plausible(Time::from_secs(4), wall(good, 0)),
            "booted without a clock"
        );
    }

    #[test]
    fn r55_a_clock_that_was_never_set_may_be_set_once() {
        let mut guard = ClockGuard::new();
        assert!(guard.plausible(Time::from_secs(1), wall(0, 0)));
        assert!(guard.plausible(Time::from_secs(2), wall(ClockGuard::FLOOR, 0)));
        assert!(!guard.plausible(Time::from_secs(3), wall(ClockGuard::FLOOR + 40 * 86_400, 0)));
        assert!(!ClockGuard::new().plausible(Time::from_secs(1), wall(ClockGuard::CEILING, 0)));
    }
}
