//! Two sites with streams both ways, and one fault after the other: what each did to them.

use super::stream::{Arrival, INTERVAL, Stream, Tally, longest_silence};
use patronus_netns::{Error, Result, Site};
use std::ops::Range;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How often the wires' counters are read and what came is taken: times at which flows move are this exact. A move is one that two looks in a row have seen.
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
    /// How long the streams may take to be back on the wire once it is mended, where that is waited for.
    pub returns: Option<Duration>,
}

/// What one fault did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trial {
    /// The longest silence, of both streams, where that was measured.
    pub gap: Option<Duration>,
    /// From the fault until the last of the streams had left the wire; `None`: one has not.
    pub moved: Option<Duration>,
    /// From its end until both streams were back on the wire, if that was waited for and has happened.
    pub returned: Option<Duration>,
    pub lost: u64,
    pub duplicated: u64,
    /// Moves away from wires that had nothing.
    pub false_moves: u64,
}

/// Wires, a bit each.
type Wires = u16;

/// A stream has left a wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Move {
    at: Duration,
    /// 0: from a to b.
    direction: usize,
    from: usize,
    /// By which it goes now.
    to: Wires,
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
    /// The wires that carry each stream; none: nothing is known yet.
    carriers: [Wires; 2],
    /// Other ones than those, as the last look had it, and when: one look alone may be wrong.
    seen: [Option<(Wires, Duration)>; 2],
    /// Those that have not been judged yet.
    moves: Vec<Move>,
    /// Wires that had a fault and that each stream has not gone to since.
    owed: [Wires; 2],
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
            carriers: [0; 2],
            seen: [None; 2],
            owed: [0; 2],
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
        let begun = self.clock.elapsed();
        self.ground.command(victim, &fault.begin)?;
        let over = |course: &Course| match fault.silences {
            true => course.clock.elapsed() > begun + SETTLED && course.flows(),
            false => course.left(victim).is_some(),
        };
        // One that does not get over it is counted with all the time that it had.
        let _ = self.until("the streams", fault.limit, over);
        let moved = self.left(victim).map(|at| at.saturating_sub(begun));
        let gap = Some(self.gap(begun));
        self.ground.command(victim, &fault.end)?;
        let mended = self.clock.elapsed();
        self.pass(LATE)?;
        self.until(
            "the streams, after the fault",
            Duration::from_secs(60),
            |course| course.flows(),
        )?;
        self.recover()?;
        let returned = match fault.returns {
            Some(limit) => self.returned(victim, mended, limit)?,
            None => None,
        };
        let (lost, duplicated) = self.next_tally();
        let moves = std::mem::take(&mut self.moves);
        let unfounded = unfounded(&moves, victim, begun..mended, &mut self.owed);
        let false_moves = self.count(&unfounded);
        Ok(Trial {
            gap,
            moved,
            returned,
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
        let gap = Some(self.gap(begun));
        self.pass(LATE)?;
        let (lost, duplicated) = self.next_tally();
        let false_moves = self.count(&self.moves);
        Ok(Trial {
            gap,
            moved: None,
            returned: None,
            lost,
            duplicated,
            false_moves,
        })
    }

    /// How many these are; each is said, so that it can be looked for in the programs' logs.
    fn count(&self, unfounded: &[Move]) -> u64 {
        for change in unfounded {
            let ago = self.clock.elapsed().saturating_sub(change.at);
            let at = SystemTime::now() - ago;
            let at = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
            let Move {
                direction, from, to, ..
            } = change;
            let to: Vec<usize> = members(*to).map(|wire| wire + 1).collect();
            let stream = ["a->b", "b->a"][*direction];
            eprintln!(
                "false move at {at:.3}: {stream} left link {}, goes by {to:?}",
                from + 1
            );
        }
        unfounded.len() as u64
    }

    /// The wire of the stream from a to b; where it goes by several, one of them.
    fn victim(&mut self) -> Result<usize> {
        let carry: Vec<usize> = members(self.carriers[0]).collect();
        let chosen = (self.random() * carry.len() as f64) as usize;
        let victim = carry.get(chosen).copied();
        victim.ok_or_else(|| Error::new("no wire carries the stream"))
    }

    /// When the last of the streams left a wire, if both have.
    fn left(&self, wire: usize) -> Option<Duration> {
        let away = self
            .carriers
            .iter()
            .all(|carriers| *carriers != 0 && carriers & 1 << wire == 0);
        let last = self.moves.iter().rfind(|change| change.from == wire);
        last.filter(|_| away).map(|change| change.at)
    }

    /// Waits until the streams are back on a wire, and on no other, and gives how long that took.
    fn returned(&mut self, wire: usize, mended: Duration, limit: Duration) -> Result<Option<Duration>> {
        let only: Wires = 1 << wire;
        let back = |course: &Course| course.carriers.iter().all(|carriers| *carriers == only);
        if self.until("the streams, back", limit, back).is_err() {
            return Ok(None);
        }
        let returned = self.clock.elapsed().saturating_sub(mended);
        self.pass(SETTLED)?;
        Ok(Some(returned))
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
            let to = carriers(self.recent.iter().map(|packets| packets[direction]));
            if to == 0 || to == self.carriers[direction] {
                self.seen[direction] = None;
                continue;
            }
            let Some((_, at)) = self.seen[direction].filter(|(seen, _)| *seen == to) else {
                self.seen[direction] = Some((to, at));
                continue;
            };
            let before = std::mem::replace(&mut self.carriers[direction], to);
            for from in members(before & !to) {
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

/// The wires that carry a stream: each more than half as many packets as the busiest. None: there are too few to say.
fn carriers(packets: impl Iterator<Item = u64> + Clone) -> Wires {
    let most = packets.clone().max().unwrap_or(0);
    // Of a stream that pauses nothing is seen, and probes alone say nothing.
    let enough = LOOK.as_millis() as u64 / INTERVAL.as_millis() as u64 / 2;
    if most < enough {
        return 0;
    }
    let carry = packets.enumerate().filter(|(_, count)| count * 2 > most);
    carry.fold(0, |wires, (at, _)| wires | 1 << at)
}

fn members(wires: Wires) -> impl Iterator<Item = usize> {
    (0..Wires::BITS as usize).filter(move |at| wires & 1 << at != 0)
}

/// Moves that nothing has brought about: neither away from the wire with the fault, nor, once and not before it was mended, to one that had a fault before.
fn unfounded(moves: &[Move], victim: usize, fault: Range<Duration>, owed: &mut [Wires; 2]) -> Vec<Move> {
    let bit: Wires = 1 << victim;
    // The other stream may have been elsewhere, and prefer this one once it is good again.
    owed.iter_mut().for_each(|owed| *owed |= bit);
    let mut is_founded = |change: &Move| {
        let owed = &mut owed[change.direction];
        if change.from == victim && (fault.start..fault.end + LOOK * 2).contains(&change.at) {
            *owed |= bit;
            return true;
        }
        let is_bad = change.at >= fault.start && change.at < fault.end;
        let back = change.to & *owed & if is_bad { !bit } else { Wires::MAX };
        *owed &= !back;
        back != 0
    };
    moves
        .iter()
        .filter(|change| !is_founded(change))
        .copied()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carriers_have_most_of_the_packets() {
        assert_eq!(carriers([25, 2, 1].into_iter()), 0b001);
        assert_eq!(carriers([1, 2, 25].into_iter()), 0b100);
        assert_eq!(carriers([24, 26, 1].into_iter()), 0b011, "two carry it");
        assert_eq!(carriers([3, 0, 0].into_iter()), 0, "probes");
    }

    #[test]
    fn moves_that_nothing_has_brought_about_are_told() {
        let change = |at, direction, from, to| Move {
            at: Duration::from_millis(at),
            direction,
            from,
            to: 1u16 << to,
        };
        let at = Duration::from_millis;
        let count = |moves: &[Move]| unfounded(moves, 0, at(50)..at(500), &mut [0; 2]).len();
        let away = [change(100, 0, 0, 1), change(110, 1, 0, 1)];
        assert_eq!(count(&away), 0);
        let back = [change(100, 0, 0, 1), change(900, 0, 1, 0)];
        assert_eq!(count(&back), 0);
        let flaps = [change(100, 0, 0, 1), change(900, 0, 1, 0), change(950, 0, 0, 1)];
        assert_eq!(count(&flaps), 1);
        let early = [change(100, 0, 0, 1), change(200, 0, 1, 0)];
        assert_eq!(count(&early), 1, "it is still bad");
        assert_eq!(count(&[change(100, 1, 1, 2)]), 1, "it has nothing");
        assert_eq!(count(&[change(20, 0, 0, 1)]), 1, "it has nothing yet");
        // Back to one that was left for an earlier fault.
        let mut owed = [1 << 3, 0];
        assert_eq!(
            unfounded(&[change(700, 0, 1, 3)], 0, at(50)..at(500), &mut owed),
            []
        );
        assert_eq!(owed, [0b1, 0b1], "the fault's, which nothing has gone to");
        // To one that the other stream was on.
        let mut owed = [0; 2];
        let moves = [
            change(100, 0, 0, 1),
            change(700, 1, 2, 0),
            change(800, 1, 0, 2),
            change(900, 1, 2, 0),
        ];
        assert_eq!(unfounded(&moves, 0, at(50)..at(500), &mut owed), moves[2..]);
    }
}
