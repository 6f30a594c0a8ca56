//! Two sites with streams both ways, and one fault after the other: what each did to them.

use super::stream::{Arrival, INTERVAL, Stream, Tally, longest_silence};
use patronus_netns::{Error, Result, Site};
use std::time::{Duration, Instant};

/// How often the wires' counters are read and what came is taken: times at which flows move are this exact.
pub const LOOK: Duration = Duration::from_millis(25);
/// After a fault, streams count as back when they had no silence longer than `PAUSE` for so long.
const SETTLED: Duration = Duration::from_millis(250);
const PAUSE: Duration = Duration::from_millis(50);
/// Before a fault, at least so long without one, and at most so much more: what the fault finds the probes at is chance.
const CALM: Duration = Duration::from_millis(100);
const PHASE: Duration = Duration::from_millis(250);
/// Paths of a remote that nothing went to are probed once a second. That packets go to it now, both sides know within two of these.
const IN_USE: Duration = Duration::from_secs(3);
/// A datagram that has not come for so long since the fault was mended is lost.
const LATE: Duration = Duration::from_millis(300);

/// Two sites and the wires between them.
pub trait Ground {
    fn sites(&self) -> &[Site; 2];

    /// Packets so far that each wire was given, by direction: those that it lost as well.
    fn packets(&mut self) -> Result<Vec<[u64; 2]>>;

    /// Does something to a wire.
    fn command(&mut self, wire: usize, command: &str) -> Result<()>;

    /// Whether every wire carries packets again.
    fn has_recovered(&mut self) -> bool;

    /// The error, with what the programs have said.
    fn told(&self, error: &Error) -> Error;
}

/// What is done to the wire that carries the stream.
#[derive(Clone, Debug)]
pub struct Fault {
    /// The wire's commands.
    pub begin: String,
    pub end: String,
    /// Whether it is over when the streams flow again; otherwise when they have left the wire.
    pub silences: bool,
    /// How long that may take.
    pub limit: Duration,
}

/// What one fault did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trial {
    /// The longest silence, of both streams.
    pub gap: Duration,
    /// From the fault until the last of the streams had left the wire; `None`: one has not.
    pub moved: Option<Duration>,
    pub lost: u64,
    pub duplicated: u64,
    /// Moves away from wires that had nothing.
    pub false_moves: u64,
}

/// A stream that goes by another wire than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    pub at: Duration,
    /// 0: from a to b.
    pub direction: usize,
    pub from: usize,
    pub to: usize,
}

/// The ground under its streams.
pub struct Course {
    ground: Box<dyn Ground>,
    streams: [Stream; 2],
    tallies: [Tally; 2],
    /// What came since the last fault was over.
    arrivals: [Vec<Arrival>; 2],
    clock: Instant,
    /// Packets by wire and direction when they were read last.
    counted: Vec<[u64; 2]>,
    /// Packets by wire and direction from then to the reading before.
    recent: Vec<[u64; 2]>,
    /// The wire that carries each stream.
    carriers: [Option<usize>; 2],
    moves: Vec<Move>,
    chance: u64,
}

impl Course {
    /// Starts the streams. `seed`: where chance begins.
    pub fn start(mut ground: Box<dyn Ground>, seed: u64) -> Result<Course> {
        let clock = Instant::now();
        let [a, b] = ground.sites();
        let streams = [
            Stream::start(a, b, clock, INTERVAL)?,
            Stream::start(b, a, clock, INTERVAL)?,
        ];
        let counted = ground.packets()?;
        let mut course = Course {
            recent: vec![[0; 2]; counted.len()],
            ground,
            streams,
            tallies: Default::default(),
            arrivals: Default::default(),
            clock,
            counted,
            carriers: [None; 2],
            moves: Vec::new(),
            chance: seed,
        };
        course.until("the streams", Duration::from_secs(20), |course| course.flows())?;
        course.pass(IN_USE)?;
        course.next_tally();
        Ok(course)
    }

    /// Lets the fault happen to the wire that carries the stream from a to b, and gives what it did.
    pub fn trial(&mut self, fault: &Fault) -> Result<Trial> {
        let phase = PHASE.mul_f64(self.random());
        self.pass(CALM + phase)?;
        let victim = self.victim()?;
        self.moves.clear();
        let begun = self.clock.elapsed();
        self.ground.command(victim, &fault.begin)?;
        let over = |course: &Course| match fault.silences {
            true => course.clock.elapsed() > begun + SETTLED && course.flows(),
            false => course.left(victim).is_some(),
        };
        // One that does not get over it is counted with all the time that it had.
        let _ = self.until("the streams", fault.limit, over);
        let moved = self.left(victim).map(|at| at.saturating_sub(begun));
        let gap = self.gap(begun);
        self.ground.command(victim, &fault.end)?;
        let mended = self.clock.elapsed();
        self.pass(LATE)?;
        self.until(
            "the streams, after the fault",
            Duration::from_secs(60),
            |course| course.flows(),
        )?;
        self.recover()?;
        let (lost, duplicated) = self.next_tally();
        let false_moves = unfounded(&self.moves, victim, mended);
        Ok(Trial {
            gap,
            moved,
            lost,
            duplicated,
            false_moves,
        })
    }

    /// So long without a fault: gives how often a stream moved.
    pub fn quiet(&mut self, length: Duration) -> Result<Trial> {
        self.moves.clear();
        let begun = self.clock.elapsed();
        self.pass(length)?;
        let gap = self.gap(begun);
        self.pass(LATE)?;
        let (lost, duplicated) = self.next_tally();
        let false_moves = self.moves.len() as u64;
        Ok(Trial {
            gap,
            moved: None,
            lost,
            duplicated,
            false_moves,
        })
    }

    /// The wire of the stream from a to b; where both streams go by two each, one of them.
    fn victim(&mut self) -> Result<usize> {
        let busiest = self.recent.iter().map(|packets| packets[0]).max().unwrap_or(0);
        let carry: Vec<usize> = (0..self.recent.len())
            .filter(|at| self.recent[*at][0] * 2 > busiest)
            .collect();
        let chosen = (self.random() * carry.len() as f64) as usize;
        let victim = self.carriers[0].or(carry.get(chosen).copied());
        victim.ok_or_else(|| Error::new("no wire carries the stream"))
    }

    /// When the last of the streams left a wire, if both have.
    fn left(&self, wire: usize) -> Option<Duration> {
        let away = self
            .carriers
            .iter()
            .all(|carrier| carrier.is_some_and(|carrier| carrier != wire));
        let last = self.moves.iter().rfind(|change| change.from == wire);
        last.filter(|_| away).map(|change| change.at)
    }

    /// The longest silence of both streams from a moment on, one that still lasts included.
    fn gap(&self, from: Duration) -> Duration {
        let now = self.clock.elapsed();
        let of = |arrivals: &Vec<Arrival>| {
            let last = arrivals.last().map_or(from, |arrival| arrival.came);
            longest_silence(arrivals, from).max(now.saturating_sub(last))
        };
        self.arrivals.iter().map(of).max().unwrap_or_default()
    }

    /// Whether both streams have been flowing for some time.
    fn flows(&self) -> bool {
        let from = self.clock.elapsed().saturating_sub(SETTLED);
        self.arrivals.iter().all(|arrivals| {
            let there = arrivals.first().is_some_and(|first| first.came < from);
            there && longest_silence(arrivals, from) < PAUSE
        }) && self.gap(from) < PAUSE
    }

    /// Waits until every wire can be gone to.
    fn recover(&mut self) -> Result<()> {
        let start = Instant::now();
        while !self.ground.has_recovered() {
            if start.elapsed() > Duration::from_secs(60) {
                return Err(self
                    .ground
                    .told(&Error::new("a path that was mended is not up after 60 s")));
            }
            self.pass(LOOK * 4)?;
        }
        Ok(())
    }

    /// Looks, again and again, until it is so.
    fn until(&mut self, what: &str, limit: Duration, is_so: impl Fn(&Course) -> bool) -> Result<()> {
        let start = Instant::now();
        while !is_so(self) {
            if start.elapsed() > limit {
                return Err(self
                    .ground
                    .told(&Error::new(format!("{what}: not within {limit:?}"))));
            }
            self.look()?;
        }
        Ok(())
    }

    /// Looks for so long.
    fn pass(&mut self, length: Duration) -> Result<()> {
        let end = Instant::now() + length;
        while Instant::now() < end {
            self.look()?;
        }
        Ok(())
    }

    /// After a moment, takes what came and reads the wires' counters.
    fn look(&mut self) -> Result<()> {
        std::thread::sleep(LOOK);
        for ((stream, tally), kept) in self.streams.iter().zip(&mut self.tallies).zip(&mut self.arrivals) {
            let arrivals = stream.take();
            tally.add(&arrivals);
            kept.extend(arrivals);
        }
        let counted = self.ground.packets()?;
        let differences = counted.iter().zip(&self.counted);
        self.recent = differences
            .map(|(now, before)| [now[0] - before[0], now[1] - before[1]])
            .collect();
        self.counted = counted;
        let at = self.clock.elapsed();
        for direction in 0..2 {
            let Some(to) = carrier(self.recent.iter().map(|packets| packets[direction])) else {
                continue;
            };
            if let Some(from) = self.carriers[direction].replace(to).filter(|from| *from != to) {
                self.moves.push(Move {
                    at,
                    direction,
                    from,
                    to,
                });
            }
        }
        Ok(())
    }

    /// Judges what was sent until a while ago, and begins anew: gives what was lost and what came twice.
    fn next_tally(&mut self) -> (u64, u64) {
        let late = LATE.as_millis() as u64;
        let mut sum = (0, 0);
        for (stream, tally) in self.streams.iter().zip(&mut self.tallies) {
            tally.judge(stream.next().saturating_sub(late));
            sum = (sum.0 + tally.lost, sum.1 + tally.duplicated);
            (tally.lost, tally.duplicated) = (0, 0);
        }
        let now = self.clock.elapsed();
        for arrivals in &mut self.arrivals {
            // What shows that the streams flow stays.
            arrivals.retain(|arrival| arrival.came + SETTLED * 2 > now);
        }
        sum
    }

    /// From 0 to 1 (xorshift64*, Vigna 2016, section 3).
    fn random(&mut self) -> f64 {
        self.chance ^= self.chance >> 12;
        self.chance ^= self.chance << 25;
        self.chance ^= self.chance >> 27;
        let number = self.chance.wrapping_mul(0x2545_f491_4f6c_dd1d);
        (number >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The wire that carries more than half of all packets. `None`: there are too few to say, or they go by several.
fn carrier(packets: impl Iterator<Item = u64> + Clone) -> Option<usize> {
    let all: u64 = packets.clone().sum();
    // Of a stream that pauses nothing is seen, and probes alone say nothing.
    let enough = LOOK.as_millis() as u64 / INTERVAL.as_millis() as u64 / 2;
    packets
        .enumerate()
        .find(|(_, count)| *count >= enough && count * 2 > all)
        .map(|(at, _)| at)
}

/// Moves that nothing has brought about: neither away from the wire with the fault, nor, once and after it was mended, back to it.
fn unfounded(moves: &[Move], victim: usize, mended: Duration) -> u64 {
    let mut back = [false; 2];
    let founded = |change: &&Move| {
        if change.from == victim && change.at < mended + LOOK && !back[change.direction] {
            return true;
        }
        change.to == victim && change.at >= mended && !std::mem::replace(&mut back[change.direction], true)
    };
    let mut founded = founded;
    moves.iter().filter(|change| !founded(change)).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_carrier_has_most_of_the_packets() {
        assert_eq!(carrier([25, 2, 1].into_iter()), Some(0));
        assert_eq!(carrier([1, 2, 25].into_iter()), Some(2));
        assert_eq!(carrier([13, 13, 1].into_iter()), None, "two carry it");
        assert_eq!(carrier([3, 0, 0].into_iter()), None, "probes");
    }

    #[test]
    fn moves_that_nothing_has_brought_about_are_told() {
        let change = |at, direction, from, to| Move {
            at: Duration::from_millis(at),
            direction,
            from,
            to,
        };
        let mended = Duration::from_millis(500);
        let away = [change(100, 0, 0, 1), change(110, 1, 0, 1)];
        assert_eq!(unfounded(&away, 0, mended), 0);
        let back = [change(100, 0, 0, 1), change(900, 0, 1, 0)];
        assert_eq!(unfounded(&back, 0, mended), 0);
        let flaps = [change(100, 0, 0, 1), change(900, 0, 1, 0), change(950, 0, 0, 1)];
        assert_eq!(unfounded(&flaps, 0, mended), 1);
        let early = [change(100, 0, 0, 1), change(200, 0, 1, 0)];
        assert_eq!(unfounded(&early, 0, mended), 1, "it is still bad");
        assert_eq!(unfounded(&[change(100, 1, 1, 2)], 0, mended), 1, "it has nothing");
    }
}
