//! What is known of a path over the last second, the last ten and the last sixty: round trips, jitter, and loss each way.
//!
//! The engine's table holds counters and the last [`SAMPLES`] round trips of a path; a [`Window`] is fed with one reading after the other and keeps what they have in common with none.
//! Nothing is made up: what was not measured is `None`, and round trips that were measured and not seen (more than [`SAMPLES`] between two readings) are counted.
//!
//! Loss comes from pairs of counters as of one moment, what one side had sent and the other received: differences between readings add up, so that no packet is counted twice and
//! none is forgotten, whenever the table was read. A pair that goes back belongs to a path that was made anew: counting goes on from there. So it does from the first pair that there is: what the other side has
//! counted until then may be all that it has sent to the engine that was here before.
//!
//! A path takes [`MEMORY_MAX`] bytes at most. Plain values, times passed in: no threads, no clock.

use std::collections::VecDeque;

use patronus_abi::channel::{PathReport, SAMPLES};

/// Nanoseconds of the shortest time that is told apart.
const TENTH: u64 = 100_000_000;
/// Readings that are further apart have nothing to do with each other, nanoseconds: what has happened between them belongs to no window.
const GAP: u64 = 1_000_000_000;
/// Tenths of a second that are kept one by one.
const TENTHS: usize = 10;
/// Seconds that are kept one by one.
const SECONDS: usize = 60;
/// Round trips of the last second at most; the engine's table has no more for a reading in each tenth.
const RECENT: usize = TENTHS * SAMPLES;
/// Round trips that are kept of a second that is over: evenly from the shortest to the longest.
const KEPT: usize = 20;
/// Round trips that the last second's median wants; otherwise it is of the last few.
const ENOUGH: usize = 5;
/// How many those are, and how old the oldest of them may be, seconds.
const FEW: usize = 3;
const FEW_AGE: u32 = 5;

/// Bytes that the window of one path takes at most.
pub const MEMORY_MAX: usize = size_of::<Window>()
    + (TENTHS + 1).next_power_of_two() * size_of::<Slot>()
    + RECENT.next_power_of_two() * size_of::<(u32, u32)>()
    + SECONDS.next_power_of_two() * size_of::<Second>()
    + (SECONDS * KEPT + (RECENT + SAMPLES).next_power_of_two()) * size_of::<u32>();

const _: () = assert!(MEMORY_MAX < 16 << 10);

/// Packets of one direction in some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Sent.
    pub sent: u32,
    /// Of those and the ones before, received.
    pub received: u32,
}

impl Counted {
    /// Those that did not arrive. One that arrives late is lost first and found again.
    pub fn lost(self) -> u32 {
        self.sent.saturating_sub(self.received)
    }

    /// Whether more than so many of a million were lost, or as many.
    pub fn reaches(self, ppm: u32) -> bool {
        self.lost() > 0 && u64::from(self.lost()) * 1_000_000 >= u64::from(self.sent) * u64::from(ppm)
    }

    /// Of a million, so many were lost; `None`: none was sent.
    pub fn ppm(self) -> Option<u32> {
        let ppm = (u64::from(self.lost()) * 1_000_000).checked_div(self.sent.into())?;
        Some(ppm as u32)
    }

    /// Half of them.
    pub fn halved(self) -> Counted {
        Counted {
            sent: self.sent / 2,
            received: self.received / 2,
        }
    }

    /// And so many more.
    pub fn add(&mut self, other: Counted) {
        self.sent = self.sent.saturating_add(other.sent);
        self.received = self.received.saturating_add(other.received);
    }
}

/// One value for each direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EachWay<T> {
    /// Towards us.
    pub inward: T,
    /// Towards the remote.
    pub outward: T,
}

impl<T> EachWay<T> {
    /// What that makes of both.
    pub fn map<U>(self, to: impl Fn(T) -> U) -> EachWay<U> {
        EachWay {
            inward: to(self.inward),
            outward: to(self.outward),
        }
    }
}

/// A window, summed up. Microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Round trips that were seen.
    pub samples: usize,
    /// Round trips that were measured and not seen.
    pub missed: u64,
    /// Half of the round trips were no longer than this.
    pub p50: Option<u32>,
    /// Of a hundred, 95 were no longer.
    pub p95: Option<u32>,
    /// Of a hundred, 99.
    pub p99: Option<u32>,
    /// Jitter (RFC 3550, section 6.4.1): the mean of its seconds.
    pub jitter: EachWay<Option<u32>>,
    /// Packets.
    pub packets: EachWay<Option<Counted>>,
}

/// What the judge asks every time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// The median of the round trips of the last second, or of the last few; microseconds.
    pub rtt: Option<u32>,
    /// The median of the last ten seconds.
    pub rtt_ten: Option<u32>,
    /// The jitter that was not undercut in the last second, microseconds.
    pub jitter: EachWay<Option<u32>>,
    /// The last reading: its number, and what has passed since the one before.
    pub reading: u64,
    /// See [`reading`](Self::reading).
    pub fresh: EachWay<Counted>,
    /// The last second.
    pub one: EachWay<Counted>,
    /// The last ten, and each second of them by its age: the first is not over.
    pub ten: EachWay<Counted>,
    /// See [`ten`](Self::ten).
    pub seconds: EachWay<[Counted; 10]>,
}

/// A tenth of a second.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    at: u32,
    packets: EachWay<Counted>,
    jitter: EachWay<Option<u32>>,
}

/// A second.
#[derive(Clone, Debug, Default)]
struct Second {
    at: u32,
    packets: EachWay<Counted>,
    jitter: EachWay<Option<u32>>,
    rtts: Vec<u32>,
    missed: u32,
}

/// Two counters, as read last.
#[derive(Clone, Copy, Debug, Default)]
struct Pair {
    sent: u64,
    received: u64,
}

impl Pair {
    /// What has come since; nothing if the counting has begun, or begun anew.
    fn since(&mut self, sent: u64, received: u64) -> Counted {
        let before = std::mem::replace(self, Pair { sent, received });
        if (before.sent, before.received) == (0, 0) {
            return Counted::default();
        }
        match (
            sent.checked_sub(before.sent),
            received.checked_sub(before.received),
        ) {
            (Some(sent), Some(received)) => Counted {
                sent: u32::try_from(sent).unwrap_or(u32::MAX),
                received: u32::try_from(received).unwrap_or(u32::MAX),
            },
            _ => Counted::default(),
        }
    }
}

/// What has been measured of one path.
#[derive(Clone, Debug, Default)]
pub struct Window {
    /// When the table was read last; 0: never.
    read_at: u64,
    reading: u64,
    fresh: EachWay<Counted>,
    inward: Pair,
    outward: Pair,
    samples: u64,
    probes_received: u64,
    /// The tenth of a second, and the round trip.
    recent: VecDeque<(u32, u32)>,
    tenths: VecDeque<Slot>,
    seconds: VecDeque<Second>,
    /// The median of the ten seconds before this one.
    rtt_ten: Option<u32>,
    /// Bytes in the last whole second, and what the counters said when this one began.
    rate: EachWay<Option<u64>>,
    bytes: Option<(u32, EachWay<u64>)>,
}

impl Window {
    /// Takes what the table says at `now`, nanoseconds of CLOCK_BOOTTIME.
    pub fn take(&mut self, now: u64, report: &PathReport) {
        let is_apart = self.read_at == 0 || now.saturating_sub(self.read_at) > GAP;
        self.read_at = now;
        self.begin(now);
        self.take_round_trips(now, report, is_apart);
        let packets = self.take_packets(report, is_apart);
        (self.reading, self.fresh) = (self.reading + 1, packets);
        self.take_bytes(tenth_of(now) / 10, report);
        let is_new = report.probes_received != self.probes_received;
        self.probes_received = report.probes_received;
        let jitter = EachWay {
            inward: report.jitter_in,
            outward: report.jitter_out,
        };
        // Of the first probe there is none.
        let jitter = jitter.map(|jitter| (is_new && report.probes_received > 1).then_some(jitter));
        if let (Some(slot), Some(second)) = (self.tenths.back_mut(), self.seconds.back_mut()) {
            slot.packets.inward.add(packets.inward);
            slot.packets.outward.add(packets.outward);
            slot.jitter = newer(jitter, slot.jitter);
            second.packets.inward.add(packets.inward);
            second.packets.outward.add(packets.outward);
            second.jitter = newer(jitter, second.jitter);
        }
    }

    /// Makes places for this moment, and forgets what is too old.
    fn begin(&mut self, now: u64) {
        let tenth = tenth_of(now);
        let is_old = |slot: &Slot| slot.at + TENTHS as u32 <= tenth;
        while self.tenths.front().is_some_and(is_old) {
            self.tenths.pop_front();
        }
        if self.tenths.back().is_none_or(|slot| slot.at != tenth) {
            self.tenths.push_back(Slot {
                at: tenth,
                ..Slot::default()
            });
        }
        let at = tenth / 10;
        if self.seconds.back().is_some_and(|second| second.at == at) {
            return;
        }
        let is_old = |second: &Second| second.at + SECONDS as u32 <= at;
        while self.seconds.front().is_some_and(is_old) {
            self.seconds.pop_front();
        }
        if let Some(last) = self.seconds.back_mut() {
            thin(&mut last.rtts);
        }
        self.rtt_ten = self.median(at, 11);
        self.seconds.push_back(Second {
            at,
            ..Second::default()
        });
    }

    /// The round trips that are new.
    fn take_round_trips(&mut self, now: u64, report: &PathReport, is_apart: bool) {
        // A count that goes back belongs to a path that was made anew.
        let is_anew = report.samples < self.samples;
        let before = if is_anew { 0 } else { self.samples };
        let is_first = self.samples == 0 && is_apart;
        self.samples = report.samples;
        let new = report.samples - before;
        let seen = if is_apart { 0 } else { new.min(SAMPLES as u64) };
        let tenth = tenth_of(now);
        let Some(second) = self.seconds.back_mut() else {
            return;
        };
        if !is_first {
            second.missed = second
                .missed
                .saturating_add((new - seen).min(u32::MAX.into()) as u32);
        }
        for number in report.samples - seen..report.samples {
            let rtt = report.recent[(number % SAMPLES as u64) as usize];
            if self.recent.len() == RECENT {
                self.recent.pop_front();
            }
            self.recent.push_back((tenth, rtt));
            if second.rtts.len() < RECENT + SAMPLES {
                second.rtts.push(rtt);
            }
        }
        let is_old = |at: u32| at + TENTHS as u32 <= tenth;
        while self.recent.len() > FEW && is_old(self.recent[0].0) {
            self.recent.pop_front();
        }
    }

    fn take_packets(&mut self, report: &PathReport, is_apart: bool) -> EachWay<Counted> {
        let packets = EachWay {
            inward: self.inward.since(report.in_sent, report.in_received),
            outward: self.outward.since(report.out_sent, report.out_received),
        };
        match is_apart {
            true => EachWay::default(),
            false => packets,
        }
    }

    fn take_bytes(&mut self, second: u32, report: &PathReport) {
        let now = EachWay {
            inward: report.received_bytes,
            outward: report.sent_bytes,
        };
        let Some((at, before)) = self.bytes else {
            self.bytes = Some((second, now));
            return;
        };
        if at == second {
            return;
        }
        let seconds = u64::from(second.saturating_sub(at));
        let rate = |now: u64, before: u64| now.checked_sub(before)?.checked_div(seconds);
        self.rate = EachWay {
            inward: rate(now.inward, before.inward),
            outward: rate(now.outward, before.outward),
        };
        self.bytes = Some((second, now));
    }

    /// Bytes a second, of the last whole second.
    pub fn rate(&self) -> EachWay<Option<u64>> {
        self.rate
    }

    /// What the judge asks.
    pub fn measured(&self, now: u64) -> Measured {
        let tenth = tenth_of(now);
        let mut measured = Measured {
            rtt: self.latest_median(tenth),
            rtt_ten: self.rtt_ten,
            jitter: self.steady_jitter(tenth),
            reading: self.reading,
            fresh: self.fresh,
            ..Measured::default()
        };
        for slot in self.tenths.iter().filter(|slot| slot.at + TENTHS as u32 > tenth) {
            measured.one.inward.add(slot.packets.inward);
            measured.one.outward.add(slot.packets.outward);
        }
        for second in self.last_seconds(tenth / 10, 10) {
            let age = (tenth / 10 - second.at) as usize;
            measured.ten.inward.add(second.packets.inward);
            measured.ten.outward.add(second.packets.outward);
            measured.seconds.inward[age] = second.packets.inward;
            measured.seconds.outward[age] = second.packets.outward;
        }
        measured
    }

    fn latest_median(&self, tenth: u32) -> Option<u32> {
        let newer_than = |age: u32| {
            let newer = self.recent.iter().rev();
            newer.take_while(move |(at, _)| at + age > tenth)
        };
        let mut rtts = [0; RECENT];
        let mut len = 0;
        for (to, (_, rtt)) in rtts.iter_mut().zip(newer_than(TENTHS as u32)) {
            *to = *rtt;
            len += 1;
        }
        if len < ENOUGH {
            let few = newer_than(FEW_AGE * TENTHS as u32)
                .skip(len)
                .take(FEW.saturating_sub(len));
            for (to, (_, rtt)) in rtts[len..].iter_mut().zip(few) {
                *to = *rtt;
                len += 1;
            }
        }
        let rtts = &mut rtts[..len];
        (len >= FEW).then(|| *rtts.select_nth_unstable((len - 1) / 2).1)
    }

    fn median(&self, second: u32, count: u32) -> Option<u32> {
        let seconds = self.last_seconds(second, count);
        let mut rtts: Vec<u32> = seconds.flat_map(|second| second.rtts.iter().copied()).collect();
        let middle = rtts.len().checked_sub(1)? / 2;
        Some(*rtts.select_nth_unstable(middle).1)
    }

    /// The least jitter of the last second if it was measured in half of its tenths, or else of the last few seconds in which it was.
    fn steady_jitter(&self, tenth: u32) -> EachWay<Option<u32>> {
        let tenths = || self.tenths.iter().filter(|slot| slot.at + TENTHS as u32 > tenth);
        let seconds = || self.last_seconds(tenth / 10, FEW_AGE);
        let least = |of: fn(&EachWay<Option<u32>>) -> Option<u32>| {
            let lately = tenths().filter_map(|slot| of(&slot.jitter));
            if lately.clone().count() >= ENOUGH {
                return lately.min();
            }
            let before = seconds().filter_map(|second| of(&second.jitter));
            (before.clone().count() >= FEW).then(|| before.min())?
        };
        EachWay {
            inward: least(|jitter| jitter.inward),
            outward: least(|jitter| jitter.outward),
        }
    }

    fn last_seconds(&self, second: u32, count: u32) -> impl Iterator<Item = &Second> + Clone {
        let seconds = self.seconds.iter().rev();
        seconds.take_while(move |slot| slot.at + count > second)
    }

    /// The last `seconds`, 1 to 60, summed up.
    pub fn summary(&self, now: u64, seconds: u32) -> Summary {
        let tenth = tenth_of(now);
        let mut sum = Sum::default();
        if seconds == 1 {
            let is_lately = |at: u32| at + TENTHS as u32 > tenth;
            let recent = self.recent.iter().filter(|(at, _)| is_lately(*at));
            sum.rtts = recent.map(|(_, rtt)| *rtt).collect();
            for slot in self.tenths.iter().filter(|slot| is_lately(slot.at)) {
                sum.add(slot.packets, slot.jitter);
            }
            sum.missed = self
                .last_seconds(tenth / 10, 1)
                .map(|second| u64::from(second.missed))
                .sum();
        } else {
            for second in self.last_seconds(tenth / 10, seconds) {
                sum.rtts.extend(&second.rtts);
                sum.missed += u64::from(second.missed);
                sum.add(second.packets, second.jitter);
            }
        }
        sum.up()
    }

    /// Medians of the last seconds, the oldest first, as many as `count`; `None` where nothing was measured. Microseconds.
    pub fn history(&self, now: u64, count: usize) -> Vec<Option<u32>> {
        let last = tenth_of(now) / 10;
        let median = |at: u32| {
            let mut rtts = self.seconds.iter().find(|second| second.at == at)?.rtts.clone();
            let middle = rtts.len().checked_sub(1)? / 2;
            Some(*rtts.select_nth_unstable(middle).1)
        };
        // The second that is not over would have a median of less than the others.
        (1..=count as u32)
            .rev()
            .map(|ago| median(last.checked_sub(ago)?))
            .collect()
    }
}

/// A window on its way to be summed up.
#[derive(Default)]
struct Sum {
    rtts: Vec<u32>,
    missed: u64,
    packets: EachWay<Counted>,
    jitter: EachWay<(u64, u64)>,
}

impl Sum {
    fn add(&mut self, packets: EachWay<Counted>, jitter: EachWay<Option<u32>>) {
        self.packets.inward.add(packets.inward);
        self.packets.outward.add(packets.outward);
        for (sum, jitter) in [
            (&mut self.jitter.inward, jitter.inward),
            (&mut self.jitter.outward, jitter.outward),
        ] {
            if let Some(jitter) = jitter {
                *sum = (sum.0 + u64::from(jitter), sum.1 + 1);
            }
        }
    }

    fn up(mut self) -> Summary {
        self.rtts.sort_unstable();
        let rtts = &self.rtts;
        // The nearest rank: the smallest value that so many are no larger than.
        let percentile = |of: usize| {
            let rank = (rtts.len() * of).div_ceil(100);
            rtts.get(rank.checked_sub(1)?).copied()
        };
        Summary {
            samples: rtts.len(),
            missed: self.missed,
            p50: percentile(50),
            p95: percentile(95),
            p99: percentile(99),
            jitter: self
                .jitter
                .map(|(sum, count)| sum.checked_div(count).map(|mean| mean as u32)),
            packets: self.packets.map(|packets| (packets.sent > 0).then_some(packets)),
        }
    }
}

fn newer(new: EachWay<Option<u32>>, old: EachWay<Option<u32>>) -> EachWay<Option<u32>> {
    EachWay {
        inward: new.inward.or(old.inward),
        outward: new.outward.or(old.outward),
    }
}

fn tenth_of(now: u64) -> u32 {
    (now / TENTH) as u32
}

/// As many as are kept, which stand for all.
fn thin(rtts: &mut Vec<u32>) {
    let len = rtts.len();
    if len > KEPT {
        rtts.sort_unstable();
        *rtts = (0..KEPT)
            .map(|nth| rtts[(2 * nth + 1) * len / (2 * KEPT)])
            .collect();
    }
    rtts.shrink_to_fit();
}

#[cfg(test)]
mod tests;
