//! How large a packet gets through a path: searched for by packets of that size, as datagram packetization layer path MTU discovery does (RFC 8899).
//!
//! A [`PathMtu`] is the worker's that owns lane 0 of the path, beside what it keeps of the path's liveness. It does nothing itself: it is told the time and what the
//! remote has acknowledged, and says which [`Size`] to ask for next. No ICMP message is needed and none is believed.
//!
//! Sizes are those of inner packets. Packets are padded to multiples of 16 before they are sealed, so only those are told apart, and the tunnel's own MTU, which padding
//! does not exceed.
//!
//! * A search asks for the largest size first, and if that does not come back soon, for others below, all at once: what passes is known after one round trip, and
//!   what does not after three tries. RFC 8899 leaves the algorithm open (section 5.3.2).
//! * While packets flow, the size that passed last is asked for every few seconds: a path that swallows it is noticed while small packets still pass.
//! * What did not pass is asked for again after a while, less and less often, at last every ten minutes (`PMTU_RAISE_TIMER`).

use arrayvec::ArrayVec;
use patronus_crypto::{Duration, Time};

use crate::remote::message::Size;
use crate::snapshot::MTU_MIN;

/// Only every so many bytes there is a size: what padding leaves of the others.
const STEP: u16 = 16;
/// Sizes that are asked for at once.
const LADDER: usize = 12;
/// How often a size is asked for that is not acknowledged (RFC 8899, section 5.1.2, `MAX_PROBES`).
const TRIES: u8 = 3;
/// How long an answer may take, at least, and in round trips (`PROBE_TIMER`, RFC 8899, section 5.1.1).
const TIMER: Duration = Duration::from_secs(1);
const TIMER_ROUND_TRIPS: u32 = 3;
/// How long the largest size is waited for before others are asked for, in round trips, and while none is measured.
const AHEAD_ROUND_TRIPS: u32 = 2;
const AHEAD: Duration = Duration::from_millis(200);
/// Between two probes, so that they fill no queue.
const GAP: Duration = Duration::from_millis(10);
/// How often what passed is asked for again while packets flow, and while none do.
const CONFIRM: Duration = Duration::from_secs(3);
const CONFIRM_IDLE: Duration = RAISE;
/// When what did not pass is asked for again: first, and at last. In between it takes four times as long each time.
const RAISE_FIRST: Duration = Duration::from_secs(10);
const RAISE: Duration = Duration::from_secs(600);

/// What else is known of the path.
#[derive(Clone, Copy, Default, Debug)]
pub struct Conditions {
    /// Its round trip, if that was measured.
    pub rtt: Option<Duration>,
    /// Packets go by it.
    pub in_use: bool,
}

/// Place of a size among all of them. Place 0 is none of a packet: whether the remote answers at all.
type Place = u16;

/// What is known of one path's MTU, and how it is being found out.
#[derive(Debug)]
pub struct PathMtu {
    /// The largest size of interest, bytes.
    max: u16,
    is_up: bool,
    told: Option<u16>,
    /// The largest that has passed since this was last in doubt.
    low: Option<Place>,
    /// The smallest that has not, or the one behind the last.
    high: Place,
    doing: Doing,
    /// When what did not pass is asked for again, if there is such a size, and how long it is from one time to the next.
    raise_at: Option<Time>,
    pause: Duration,
    conditions: Conditions,
    next_id: u32,
    /// Earlier ones were asked in another search.
    first_id: u32,
}

#[derive(Debug)]
enum Doing {
    /// The path is not up, or there is nothing to find out.
    Nothing,
    Search(Search),
    /// Nothing is in doubt, since then.
    Rest(Time),
}

#[derive(Debug)]
struct Search {
    why: Why,
    /// What is asked for in this round, the largest first.
    ladder: ArrayVec<Place, LADDER>,
    tries: u8,
    /// Which of the ladder is next, and when.
    next: usize,
    next_at: Time,
    /// When the answers of this try are all there.
    ends_at: Time,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Why {
    /// Nothing is known, or the path was away and may be another one.
    Unknown,
    /// Whether this still passes.
    Confirm(Place),
    /// How much of what is known not to be all passes.
    Less,
    /// Whether more passes than did.
    Raise,
}

impl PathMtu {
    /// A path of which nothing is known and that is not up yet; packets of more than `max` bytes do not matter. 0: none do, there is nothing to find out.
    pub fn new(max: u16) -> PathMtu {
        PathMtu {
            max,
            is_up: false,
            told: None,
            low: None,
            high: 0,
            doing: Doing::Nothing,
            raise_at: None,
            pause: RAISE_FIRST,
            conditions: Conditions::default(),
            next_id: 0,
            first_id: 0,
        }
    }

    /// The largest inner packet that passes, bytes. `None`: nobody knows. Never less than every link of IPv6 takes: where not even that passes, datagrams have to be cut up
    /// on their way.
    pub fn mtu(&self) -> Option<u16> {
        self.told
    }

    /// The path is up, or up again.
    pub fn up(&mut self, now: Time) {
        self.is_up = true;
        if matches!(self.doing, Doing::Nothing) && self.max > 0 {
            self.pause = RAISE_FIRST;
            self.begin(now, Why::Unknown);
        }
    }

    /// The path is down: nothing is to be learnt.
    pub fn down(&mut self) {
        self.is_up = false;
        self.doing = Doing::Nothing;
    }

    /// Packets of more than this do not matter from now on.
    pub fn set_max(&mut self, now: Time, max: u16) {
        if std::mem::replace(&mut self.max, max) == max {
            return;
        }
        self.told = self.told.map(|told| told.min(max));
        if self.is_up {
            self.down();
            self.up(now);
        }
    }

    /// When [`poll`](Self::poll) has something to do next.
    pub fn next_deadline(&self) -> Option<Time> {
        match &self.doing {
            Doing::Nothing => None,
            Doing::Search(search) => Some(match search.next_above(self.low) {
                Some(_) => search.next_at,
                None => search.ends_at,
            }),
            Doing::Rest(since) => Some(self.due(*since).0),
        }
    }

    /// What else is known of the path now. It may bring the deadline forward.
    pub fn observe(&mut self, conditions: Conditions) {
        self.conditions = conditions;
    }

    /// What to send now, if anything; to be asked until there is nothing.
    pub fn poll(&mut self, now: Time) -> Option<Size> {
        // From rest to a search, from a try or a round to the next.
        for _ in 0..4 {
            match &self.doing {
                Doing::Nothing => return None,
                Doing::Rest(since) => match self.due(*since) {
                    (at, why) if at <= now => self.begin(now, why),
                    _ => return None,
                },
                Doing::Search(search) => match search.next_above(self.low) {
                    Some(place) if search.next_at <= now => return Some(self.ask(now, place)),
                    None if search.ends_at <= now => self.end_try(now),
                    _ => return None,
                },
            }
        }
        None
    }

    /// The remote says that a probe has arrived, whole.
    pub fn take(&mut self, now: Time, answer: Size) {
        let Doing::Search(search) = &self.doing else {
            return;
        };
        let why = search.why;
        let is_of_this_search =
            answer.id.wrapping_sub(self.first_id) < self.next_id.wrapping_sub(self.first_id);
        let mut asked = search.ladder.iter().copied();
        let place = asked.find(|place| self.size(*place) == answer.size);
        let Some(place) = place.filter(|place| is_of_this_search && Some(*place) > self.low) else {
            return;
        };
        self.low = Some(place);
        if self.told.is_some_and(|told| told < self.passing(place)) {
            self.told = Some(self.passing(place));
        }
        if place + 1 == self.high {
            self.conclude(now, why);
        }
    }

    /// What is due next for a path at rest, and when.
    fn due(&self, since: Time) -> (Time, Why) {
        let confirm = self.low.map(|low| {
            let after = match self.conditions.in_use {
                true => CONFIRM,
                false => CONFIRM_IDLE,
            };
            (since.after(after), Why::Confirm(low))
        });
        let again = match self.low {
            Some(_) => Why::Raise,
            None => Why::Unknown,
        };
        let again = self.raise_at.map(|at| (at, again));
        let first = again.into_iter().chain(confirm).min_by_key(|(at, _)| *at);
        first.unwrap_or((since.after(RAISE), Why::Unknown))
    }

    fn begin(&mut self, now: Time, why: Why) {
        let behind_last = self.last() + 1;
        (self.low, self.high) = match why {
            Why::Unknown => (None, behind_last),
            Why::Confirm(low) => (None, low + 1),
            Why::Less => (self.low, self.high),
            Why::Raise => (self.low, behind_last),
        };
        self.first_id = self.next_id;
        self.doing = Doing::Search(Search {
            why,
            ladder: ladder(self.low, self.high),
            tries: 0,
            next: 0,
            next_at: now,
            ends_at: now,
        });
    }

    /// One that is asked for now.
    fn ask(&mut self, now: Time, place: Place) -> Size {
        let rtt = self.conditions.rtt;
        let timer = rtt.map_or(TIMER, |rtt| TIMER.max(rtt * TIMER_ROUND_TRIPS));
        let ahead = rtt.map_or(AHEAD, |rtt| timer.min(rtt * AHEAD_ROUND_TRIPS));
        if let Doing::Search(search) = &mut self.doing {
            let is_first = search.tries == 0 && search.next == 0;
            search.next += 1;
            search.next_at = now.after(if is_first { ahead } else { GAP });
            search.ends_at = now.after(timer);
        }
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        Size {
            id,
            size: self.size(place),
        }
    }

    /// What is not acknowledged by now does not come back from this try.
    fn end_try(&mut self, now: Time) {
        let Doing::Search(search) = &mut self.doing else {
            return;
        };
        search.tries += 1;
        let why = search.why;
        if search.tries < TRIES {
            (search.next, search.next_at) = (0, now);
            // Who knows nothing better goes by what has passed so far.
            if let (Why::Unknown, Some(low)) = (why, self.low) {
                self.told = Some(self.passing(low));
            }
            return;
        }
        // Of those above what has passed, each was sent in every try.
        let swallowed = search
            .ladder
            .iter()
            .copied()
            .filter(|place| Some(*place) > self.low)
            .min();
        self.high = swallowed.unwrap_or(self.high);
        let why = match (self.low, why) {
            // Not even what any path lets pass: that says nothing about sizes.
            (None, Why::Confirm(low)) => {
                (self.low, self.high) = (Some(low), low + 1);
                why
            }
            (Some(_), Why::Confirm(_)) => {
                self.pause = RAISE_FIRST;
                Why::Less
            }
            _ => why,
        };
        match self.low {
            Some(low) if low + 1 < self.high => {
                self.told = Some(self.passing(low));
                let ladder = ladder(self.low, self.high);
                if let Doing::Search(search) = &mut self.doing {
                    (search.why, search.ladder) = (why, ladder);
                    (search.tries, search.next, search.next_at) = (0, 0, now);
                }
            }
            _ => self.conclude(now, why),
        }
    }

    /// What passes is known.
    fn conclude(&mut self, now: Time, why: Why) {
        if let Some(low) = self.low {
            self.told = Some(self.passing(low));
        }
        self.doing = Doing::Rest(now);
        if matches!(why, Why::Confirm(_)) {
            return;
        }
        self.raise_at = (self.low != Some(self.last())).then(|| now.after(self.pause));
        self.pause = RAISE.min(self.pause * 4);
    }

    /// The place of the largest size.
    fn last(&self) -> Place {
        1 + self.max.saturating_sub(MTU_MIN).div_ceil(STEP)
    }

    fn size(&self, place: Place) -> u16 {
        match place.checked_sub(1) {
            None => 0,
            Some(steps) => self.max.min(MTU_MIN.saturating_add(steps.saturating_mul(STEP))),
        }
    }

    /// What to tell if this passes.
    fn passing(&self, place: Place) -> u16 {
        self.size(place.max(1))
    }
}

impl Search {
    /// The next of the ladder, if it is larger than what has passed.
    fn next_above(&self, low: Option<Place>) -> Option<Place> {
        let next = self.ladder.get(self.next).copied();
        next.filter(|place| Some(*place) > low)
    }
}

/// Places between the two, evenly spread: the largest first, the smallest last.
fn ladder(low: Option<Place>, high: Place) -> ArrayVec<Place, LADDER> {
    let smallest = low.map_or(0, |low| low + 1);
    let span = usize::from(high - smallest).saturating_sub(1);
    let steps = span.clamp(1, LADDER - 1);
    let down = (0..=span.min(LADDER - 1)).map(|step| high - 1 - (span * step / steps) as Place);
    down.collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: Time = Time::from_secs(1000);

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// A path that swallows what is larger than it takes, and loses some of the rest, both as told.
    struct Wire {
        now: Time,
        path: PathMtu,
        takes: u16,
        /// Of a thousand.
        loss: u32,
        /// Nothing comes back at all.
        mute: bool,
        rtt: Duration,
        in_use: bool,
        random: u64,
        under_way: Vec<(Time, Size)>,
        asked: Vec<(Time, u16)>,
    }

    impl Wire {
        fn new(max: u16, takes: u16) -> Wire {
            let mut path = PathMtu::new(max);
            path.up(START);
            Wire {
                now: START,
                path,
                takes,
                loss: 0,
                mute: false,
                rtt: ms(20),
                in_use: true,
                random: 1,
                under_way: Vec::new(),
                asked: Vec::new(),
            }
        }

        fn is_lost(&mut self) -> bool {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            self.random >> 20 & 0x3ff < u64::from(self.loss) * 1024 / 1000
        }

        /// Does what there is to do until then, deadline by deadline.
        fn run(&mut self, time: Duration) {
            let end = self.now.after(time);
            loop {
                let conditions = Conditions {
                    rtt: Some(self.rtt),
                    in_use: self.in_use,
                };
                self.path.observe(conditions);
                while let Some(probe) = self.path.poll(self.now) {
                    self.asked.push((self.now, probe.size));
                    if !self.mute && probe.size <= self.takes && !self.is_lost() {
                        self.under_way.push((self.now.after(self.rtt), probe));
                    }
                }
                let deadline = self.path.next_deadline();
                assert!(deadline.is_none_or(|at| at > self.now), "nothing is left undone");
                let answer = self.under_way.iter().map(|(at, _)| *at).min();
                let next = deadline.into_iter().chain(answer).min();
                let Some(next) = next.filter(|next| *next <= end) else {
                    self.now = end;
                    return;
                };
                self.now = next;
                while let Some(at) = self.under_way.iter().position(|(at, _)| *at <= next) {
                    let (_, probe) = self.under_way.remove(at);
                    self.path.take(next, probe);
                }
            }
        }

        fn mtu(&self) -> Option<u16> {
            self.path.mtu()
        }
    }

    /// What is to be found for a path that takes so much.
    fn expected(max: u16, takes: u16) -> u16 {
        match takes {
            _ if takes >= max => max,
            _ if takes < MTU_MIN => MTU_MIN.min(max),
            _ => takes / STEP * STEP,
        }
    }

    #[test]
    fn a_path_without_a_fault_costs_one_probe_and_a_round_trip() {
        let mut wire = Wire::new(1420, 1500);
        wire.run(ms(19));
        assert_eq!(wire.mtu(), None);
        wire.run(ms(1));
        assert_eq!(wire.mtu(), Some(1420));
        assert_eq!(wire.asked, [(START, 1420)]);
        wire.run(Duration::from_secs(30));
        assert_eq!(wire.asked.len(), 1 + 9, "every three seconds");
        wire.in_use = false;
        wire.run(Duration::from_secs(600));
        assert_eq!(wire.asked.len(), 1 + 9 + 1, "nothing goes by it");
        wire.in_use = true;
        wire.run(Duration::from_secs(1));
        assert_eq!(wire.asked.len(), 1 + 9 + 2, "at once: that was long ago");
    }

    #[test]
    fn what_passes_is_known_after_a_second_and_what_does_not_after_three() {
        let mut wire = Wire::new(1420, 1345);
        wire.run(ms(1000));
        assert_eq!(wire.mtu(), None, "as if there were nothing to find");
        wire.run(ms(300));
        assert_eq!(wire.mtu(), Some(1344));
        wire.run(ms(5000));
        assert_eq!(wire.mtu(), Some(1344));
        assert!(wire.asked.len() < 40, "{:?}", wire.asked);
    }

    #[test]
    fn a_black_hole_is_noticed_while_packets_flow() {
        let mut wire = Wire::new(1420, 1500);
        wire.run(Duration::from_secs(60));
        assert_eq!(wire.mtu(), Some(1420));
        wire.takes = 1300;
        wire.run(Duration::from_secs(7));
        assert_eq!(wire.mtu(), Some(1296));
        // And when it is gone.
        wire.takes = 1500;
        wire.run(Duration::from_secs(15));
        assert_eq!(wire.mtu(), Some(1420));
    }

    #[test]
    fn what_does_not_pass_is_asked_for_less_and_less_often() {
        let mut wire = Wire::new(1420, 1300);
        wire.in_use = false;
        wire.run(Duration::from_secs(3600));
        let larger = wire.asked.iter().filter(|(_, size)| *size == 1420);
        let mut starts: Vec<u64> = larger.map(|(at, _)| at.since(START).as_secs()).collect();
        starts.dedup_by(|later, earlier| *later - *earlier < 8);
        let pauses: Vec<u64> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(
            matches!(pauses[..5], [10..=16, 40..=46, 160..=166, 600..=606, 600..=606]),
            "{pauses:?}"
        );
    }

    #[test]
    fn a_remote_that_never_answers_leaves_everything_as_it_is() {
        let mut wire = Wire::new(1420, 1500);
        wire.mute = true;
        wire.run(Duration::from_secs(3600));
        assert_eq!(wire.mtu(), None);
        assert!(wire.asked.len() < 500, "{}", wire.asked.len());
        // A remote that has answered, and is cut off: that is no black hole.
        wire.mute = false;
        wire.run(Duration::from_secs(700));
        assert_eq!(wire.mtu(), Some(1420));
        wire.mute = true;
        wire.run(Duration::from_secs(3600));
        assert_eq!(wire.mtu(), Some(1420));
    }

    #[test]
    fn a_path_that_comes_up_again_may_be_another_one() {
        let mut wire = Wire::new(1420, 1500);
        wire.run(Duration::from_secs(60));
        wire.path.down();
        wire.takes = 1290;
        assert_eq!(wire.path.next_deadline(), None);
        wire.run(Duration::from_secs(60));
        assert_eq!(wire.mtu(), Some(1420));
        wire.path.up(wire.now);
        wire.run(ms(1300));
        assert_eq!(wire.mtu(), Some(1280));
        // An answer to what was asked before says nothing about this one.
        let before = Size { id: 0, size: 1420 };
        wire.path.take(wire.now, before);
        assert_eq!(wire.mtu(), Some(1280));
    }

    #[test]
    fn another_mtu_of_the_tunnel_is_searched_for_anew() {
        let mut wire = Wire::new(1420, 8000);
        wire.run(Duration::from_secs(60));
        wire.path.set_max(wire.now, 9000);
        assert_eq!(wire.mtu(), Some(1420));
        wire.run(Duration::from_secs(20));
        assert_eq!(wire.mtu(), Some(8000));
        wire.path.set_max(wire.now, 1300);
        assert_eq!(wire.mtu(), Some(1300));
        wire.run(Duration::from_secs(20));
        assert_eq!(wire.mtu(), Some(1300));
    }

    #[test]
    fn sizes_are_what_padding_leaves() {
        for max in [68, 1279, 1280, 1281, 1295, 1296, 1297, 1420, 9000, u16::MAX] {
            let path = PathMtu::new(max);
            let sizes: Vec<u16> = (0..=path.last()).map(|place| path.size(place)).collect();
            assert_eq!((sizes[0], sizes.last()), (0, Some(&max)));
            assert!(
                sizes
                    .windows(2)
                    .all(|pair| pair[0] < pair[1] && (pair[1] % 16 == 0 || pair[1] == max))
            );
        }
    }

    proptest! {
        #[test]
        fn ladders_span_what_is_open(low in prop::option::of(0..600u16), more in 1..600u16) {
            let smallest = low.map_or(0, |low| low + 1);
            let high = smallest + more;
            let ladder = ladder(low, high);
            prop_assert_eq!((ladder[0], *ladder.last().unwrap()), (high - 1, smallest));
            prop_assert!(ladder.windows(2).all(|pair| pair[0] > pair[1]));
            prop_assert_eq!(ladder.len(), usize::from(more).min(LADDER));
        }

        #[test]
        fn whatever_a_path_takes_is_found(max in 1280..9300u16, takes in 100..9300u16, rtt in 1..3000u64) {
            let mut wire = Wire::new(max, takes);
            wire.rtt = ms(rtt);
            // Three rounds of three tries.
            wire.run(9 * (Duration::from_secs(1).max(3 * ms(rtt)) + ms(rtt) * 2 + ms(200)));
            prop_assert_eq!(wire.mtu(), Some(expected(max, takes)));
        }

        #[test]
        fn changes_are_followed_under_loss(
            seed: u64, loss in 0..100u32, takes in prop::collection::vec(prop_oneof![1280..1500u16, Just(1500)], 1..5),
        ) {
            let mut wire = Wire::new(1420, 1500);
            (wire.random, wire.loss) = (seed | 1, loss);
            for takes in takes {
                wire.takes = takes;
                wire.run(Duration::from_secs(20));
                prop_assert!(wire.mtu() <= Some(expected(1420, takes)), "{:?} of {}", wire.mtu(), takes);
                wire.loss = 0;
                wire.run(Duration::from_secs(640));
                prop_assert_eq!(wire.mtu(), Some(expected(1420, takes)));
                wire.loss = loss;
            }
        }

        #[test]
        fn no_answer_is_too_strange(
            max: u16, steps in prop::collection::vec((0..5_000_000u64, 0..4u8, any::<u32>(), any::<u16>()), 0..200),
        ) {
            let mut path = PathMtu::new(max);
            let mut now = START;
            for (us, what, id, size) in steps {
                now = now.after(Duration::from_micros(us));
                match what {
                    0 => path.up(now),
                    1 => path.down(),
                    2 => path.take(now, Size { id: id % 64, size }),
                    _ => path.set_max(now, size),
                }
                for _ in 0..3 {
                    if let Some(probe) = path.poll(now) {
                        path.take(now, Size { id: probe.id, ..probe });
                    }
                }
                prop_assert!(path.mtu().is_none_or(|mtu| mtu <= path.max));
            }
        }
    }
}
