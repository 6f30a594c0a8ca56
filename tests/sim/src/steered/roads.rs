//! The paths between two sites, and what is wrong with each: the truth, which neither site is told.

use patronus_crypto::{Duration, Time};

use crate::rng::Seeded;

/// A path without trouble for so long is known as good by everybody: its lanes are made anew, it has been heard again, every hold is over, and all flows are back.
pub const CALM: Duration = Duration::from_secs(45);
/// And for so long after it has lost some of what went by it, where a class has a limit of loss: who has found that has 250 packets to see pass without a loss (a path that is metered, or whose
/// probes are capped, is probed little even while it is suspect).
pub const PROVEN: Duration = Duration::from_secs(250);
/// No trouble delays by more than this.
pub const DELAY_MAX: Duration = Duration::from_millis(150);

/// What may be wrong, in one direction or in both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// Nothing gets through.
    Dead,
    /// Nothing gets through for the first time, everything for the second, and so on.
    Flapping(Duration, Duration),
    /// So many of a hundred are lost, and the others are late by up to as many milliseconds.
    Noisy(usize, usize),
    /// Everything is later by this.
    Slow(Duration),
    /// The NAT in front of it has given out another port, which is known when something has been sent from there.
    Rebound,
    /// One of its links has no interface.
    Unplugged,
}

/// One path: between link `links[0]` of the first site and `links[1]` of the second.
#[derive(Debug)]
pub struct Road {
    /// Its ends.
    pub links: [usize; 2],
    /// One way, by sender.
    delay: [Duration; 2],
    /// The longest datagram that passes, UDP header and all not counted.
    pub longest: usize,
    /// It has trouble in the directions of these senders, since then and until then.
    trouble: Option<(Trouble, [bool; 2], Time, Time)>,
    /// The end of its last trouble, or what counts as that.
    calm_since: Time,
    /// Its losses are judged.
    pub judged: bool,
    /// The same of the last one that makes packets late.
    smooth_since: Time,
    /// When it was dead last, for long enough that everybody has noticed.
    pub outage: Option<(Time, Time)>,
}

impl Road {
    /// A path that has been without trouble for ever.
    pub fn new(rng: &mut Seeded, links: [usize; 2]) -> Road {
        Road {
            links,
            delay: [0, 1].map(|_| Duration::from_millis(rng.pick(5..40) as u64)),
            longest: if rng.chance(30) {
                rng.pick(1330..1452)
            } else {
                1500
            },
            trouble: None,
            calm_since: Time(0),
            judged: false,
            smooth_since: Time(0),
            outage: None,
        }
    }

    /// Begins trouble, in the place of the one that there is.
    pub fn begin(&mut self, now: Time, trouble: Trouble, senders: [bool; 2], until: Time) {
        self.end(now);
        self.trouble = Some((trouble, senders, now, until));
    }

    /// Ends what is over by now.
    pub fn tend(&mut self, now: Time) {
        if let Some((.., until)) = self.trouble.filter(|(.., until)| *until <= now) {
            self.end(until.max(now));
        }
    }

    /// Ends its trouble.
    pub fn end(&mut self, now: Time) {
        let Some((trouble, _, since, _)) = self.trouble.take() else {
            return;
        };
        let is_lossy = self.judged && matches!(trouble, Trouble::Noisy(..) | Trouble::Flapping(..));
        let proof = if is_lossy { PROVEN } else { Duration::ZERO };
        // What was lost before has still to be proven, whatever has come since.
        self.calm_since = self.calm_since.max(now.after(proof));
        match trouble {
            Trouble::Dead | Trouble::Unplugged => self.outage = Some((since, now)),
            _ => self.smooth_since = now,
        }
    }

    /// When something changes.
    pub fn next_change(&self) -> Option<Time> {
        self.trouble.map(|(.., until)| until)
    }

    /// Whether one of its links has no interface.
    pub fn is_unplugged(&self) -> bool {
        matches!(self.trouble, Some((Trouble::Unplugged, ..)))
    }

    /// Whether nothing has been wrong with it for so long.
    pub fn is_calm_for(&self, now: Time, time: Duration) -> bool {
        self.trouble.is_none() && self.calm_since.after(time) <= now
    }

    /// Whether nothing has been wrong with it for long, so that everybody must know it as good.
    pub fn is_calm(&self, now: Time) -> bool {
        self.is_calm_for(now, CALM)
    }

    /// Whether its probes came in time for a minute before `then`, as far as it is to blame.
    pub fn was_smooth(&self, then: Time) -> bool {
        let rough =
            matches!(self.trouble, Some((trouble, _, since, _)) if since < then && trouble != Trouble::Dead);
        !rough && self.smooth_since.after(Duration::from_secs(60)) <= then
    }

    /// Since when nothing at all has got through in one direction or the other.
    pub fn dead_since(&self, now: Time) -> Option<Time> {
        let (trouble, _, since, _) = self.trouble?;
        match trouble {
            Trouble::Dead | Trouble::Unplugged => Some(since),
            Trouble::Flapping(dead, alive) => {
                let period = (dead + alive).as_nanos() as u64;
                let into = (now.0 - since.0) % period;
                (into < dead.as_nanos() as u64).then_some(Time(now.0 - into))
            }
            _ => None,
        }
    }

    /// When a datagram arrives that is sent by `sender` now, if it does.
    pub fn carry(&self, now: Time, sender: usize, len: usize, rng: &mut Seeded) -> Option<Time> {
        let mut delay = self.delay[sender];
        if len > self.longest {
            return None;
        }
        if let Some((trouble, senders, ..)) = self.trouble
            && (senders[sender] || trouble == Trouble::Unplugged)
        {
            match trouble {
                _ if self.dead_since(now).is_some() => return None,
                Trouble::Noisy(loss, _) if rng.chance(loss) => return None,
                Trouble::Noisy(_, jitter) => delay += Duration::from_millis(rng.pick(0..jitter + 1) as u64),
                Trouble::Slow(by) => delay += by,
                _ => {}
            }
        }
        Some(now.after(delay))
    }

    /// How long a datagram takes there and back without trouble.
    pub fn round_trip(&self) -> Duration {
        self.delay[0] + self.delay[1]
    }
}
