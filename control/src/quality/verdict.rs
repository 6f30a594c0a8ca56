//! Whether a path does what a class asks, by what was measured of it lately.
//!
//! It takes little to say that it does not: a second is enough where there is traffic. The limits of evidence below, and those of a [`trial`](super::trial), keep what is not lasting from
//! counting: one burst of lost packets, one late packet, a path that loses less than it may. docs/quality.md has all of them, ADR 0038 why they are so. Plain functions.

use patronus_abi::channel::PathWhy;
use patronus_abi::site::Class;
use serde::{Deserialize, Serialize};

use super::SECOND;
use super::trial::Trial;
use super::window::{Counted, EachWay, Measured};

/// Lost packets of one direction within ten seconds that say something.
const LOST_TEN: u32 = 5;
/// So many of these seconds reach the limit by themselves: a burst or two, which cost many of the probes of a path that is suspect, do not come again and again.
const LOSSY_SECONDS: usize = 5;
/// By how many standard deviations the loss of ten seconds has to be above what the limit would make of it (of a Poisson distribution: the square root of the mean).
const SURE: f64 = 4.0;

/// What is asked of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// Round trips no longer than the limit, microseconds.
    Latency,
    /// Jitter towards us no larger than the limit, microseconds.
    JitterIn,
    /// Jitter towards the remote.
    JitterOut,
    /// Packets towards us lost less often than the limit, parts per million.
    LossIn,
    /// Packets towards the remote.
    LossOut,
}

impl What {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            What::Latency => "latency",
            What::JitterIn => "jitter-in",
            What::JitterOut => "jitter-out",
            What::LossIn => "loss-in",
            What::LossOut => "loss-out",
        }
    }
}

/// Why a path is not what a class needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// It is not up.
    Down(#[serde(with = "super::kept::word")] PathWhy),
    /// It does not keep a limit.
    Broken(Broken),
    /// The data cap of our link is used up: it is the last resort, however good it is.
    Cap,
}

impl Fault {
    /// The same without what is measured anew each time.
    pub fn lasting(self) -> Fault {
        match self {
            Fault::Broken(broken) => Fault::Broken(Broken {
                measured: broken.limit,
                seconds: 0,
                seen: 0,
                ..broken
            }),
            other => other,
        }
    }

    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Fault::Down(why) => why.word(),
            Fault::Broken(broken) => broken.what.word(),
            Fault::Cap => "cap",
        }
    }
}

/// A limit that is not kept. Microseconds, or parts per million.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Broken {
    /// Which one.
    pub what: What,
    /// What was measured.
    pub measured: u32,
    /// What may be.
    pub limit: u32,
    /// Over how many seconds.
    pub seconds: u32,
    /// When it was seen last, nanoseconds.
    pub seen: u64,
}

impl Broken {
    /// How much worse than allowed it is, in thousandths.
    pub fn badness(&self) -> u64 {
        1000 * u64::from(self.measured) / u64::from(self.limit.max(1))
    }
}

/// The limit of a class that a path keeps least, if there is one that it does not keep; seen last is when any of them was.
pub fn broken(class: &Class, measured: &Measured, trials: &EachWay<Trial>, now: u64) -> Option<Broken> {
    let latency = over(What::Latency, measured.rtt, class.latency_us, now);
    let jitter = measured.jitter;
    let jitter_in = over(What::JitterIn, jitter.inward, class.jitter_us, now);
    let jitter_out = over(What::JitterOut, jitter.outward, class.jitter_us, now);
    let all = [latency, jitter_in, jitter_out].into_iter();
    let all = all.chain(losses(class.loss_ppm, measured, trials, now)).flatten();
    let seen = all.clone().map(|broken| broken.seen).max()?;
    let worst = all.max_by_key(Broken::badness)?;
    Some(Broken { seen, ..worst })
}

fn over(what: What, measured: Option<u32>, limit: Option<u32>, now: u64) -> Option<Broken> {
    let (measured, limit) = (measured?, limit?);
    (measured > limit).then_some(Broken {
        what,
        measured,
        limit,
        seconds: 1,
        seen: now,
    })
}

/// Loss that lasts is found by the trial; what comes in bursts, with quiet between them, by the ten seconds.
fn losses(limit: Option<u32>, measured: &Measured, trials: &EachWay<Trial>, now: u64) -> [Option<Broken>; 2] {
    let Some(limit) = limit else { return [None; 2] };
    let (ten, each) = (measured.ten, &measured.seconds);
    let of = |what, trial: &Trial, ten: Counted, each: &[Counted; 10]| {
        let convicted = trial.convicted(now);
        let convicted = convicted.map(|found| (found.packets, found.seconds, found.seen));
        let bursts = is_sure(ten, each, limit).then(|| (ten, 10, last_reached(each, limit, now)));
        let (packets, seconds, seen) = match (convicted, bursts) {
            (Some(convicted), Some(bursts)) => (convicted.0, convicted.1, convicted.2.max(bursts.2)),
            (one, other) => one.or(other)?,
        };
        Some(Broken {
            what,
            measured: packets.ppm()?,
            limit,
            seconds,
            seen,
        })
    };
    [
        of(What::LossIn, &trials.inward, ten.inward, &each.inward),
        of(What::LossOut, &trials.outward, ten.outward, &each.outward),
    ]
}

/// The end of the last second that reached the limit by itself. Those after it are good, and count for the hold already.
fn last_reached(each: &[Counted; 10], limit: u32, now: u64) -> u64 {
    let age = each.iter().position(|second| second.reaches(limit)).unwrap_or(0);
    match age {
        0 => now,
        age => (now / SECOND + 1 - age as u64) * SECOND,
    }
}

/// Whether the loss of ten seconds is more than a path makes that keeps the limit.
fn is_sure(ten: Counted, each: &[Counted; 10], limit: u32) -> bool {
    let lost = ten.lost();
    let mean = f64::from(ten.sent) * f64::from(limit) / 1e6;
    let lossy = each.iter().filter(|second| second.reaches(limit)).count();
    lost >= LOST_TEN && lossy >= LOSSY_SECONDS && f64::from(lost) > mean + SURE * mean.sqrt()
}

/// Whether `this` is so much less bad that a move is worth it: a fifth.
pub fn is_clearly_less_bad(this: u64, than: u64) -> bool {
    5 * this < 4 * than
}

/// Whether one round trip is so much shorter than another that a move is worth it: by this part of a hundred and so many microseconds.
pub fn is_clearly_shorter(this: Option<u32>, than: Option<u32>, percent: u64, micros: u64) -> bool {
    let (Some(this), Some(than)) = (this, than) else {
        return false;
    };
    u64::from(this) * (100 + percent) / 100 + micros < u64::from(than)
}
