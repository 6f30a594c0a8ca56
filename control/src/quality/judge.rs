//! The order of paths to one remote for one class, and why it is so.
//!
//! A path is *good* or *poor*. It becomes poor at once when it is down or a limit of the class is broken ([`verdict`]); it becomes good again when it has been neither for
//! the whole hold, and has been left for as long. An order is made from the one before: a path passes the one in front of it only if it is clearly better, so that nothing moves for
//! nothing. Good ones stand before poor ones; the engine takes the first that is good and up, or else the first that is up, so a poor path is left only if there is a better one.
//!
//! The first path is *left* when it is poor, and nothing but the loss of all others leads back to it within the hold. It is *passed* when a better one is there; then the same time has
//! to be over before it passes that one in turn, unless that is poor.
//!
//! Plain values, times passed in (nanoseconds of CLOCK_BOOTTIME): no threads, no clock.

use patronus_abi::channel::{PATHS_MAX, PathName, PathState, PathWhy, Ranked};
use patronus_abi::site::{Class, Mode};
use serde::{Deserialize, Serialize};

use super::SECOND;
use super::kept::{self, OfClass, OfFirst, OfPath};
use super::trial::Trial;
use super::verdict::{self, Fault};
use super::window::{EachWay, Measured};

/// How much shorter a round trip has to be, where it is what counts: part of a hundred, microseconds.
const SHORTER: (u64, u64) = (10, 2_000);
/// And where it only tells apart paths of the same cost.
const MUCH_SHORTER: (u64, u64) = (25, 10_000);
/// How long a path that is gone is remembered, nanoseconds, whatever the hold is: back within that, it is the same path, and on probation.
const REMEMBERED: u64 = 3600 * 1_000_000_000;
/// How long before a path may be used again it is looked at closely, nanoseconds: time enough for its trial. Where probes are paid for there are fewer of them.
const LOOK: u64 = 10 * SECOND;
const LOOK_METERED: u64 = 25 * SECOND;
/// When a path has been up for so long, nothing that is read is of the time when it was down, nanoseconds.
const SETTLED: u64 = SECOND / 2;
/// The grade of a good path where weights do not matter.
const GOOD: u8 = 1;

/// A path, as it is now.
#[derive(Clone, Copy, Debug)]
pub struct Now<'a> {
    /// Which one.
    pub path: PathName,
    /// Whether it is up.
    pub state: PathState,
    /// Why.
    pub why: PathWhy,
    /// It has been down since the last turn, and is up.
    pub was_down: bool,
    /// What was measured.
    pub measured: &'a Measured,
    /// What the configuration says of its links.
    pub links: Links,
}

/// What the configuration says of a path's links.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Links {
    /// The lower, the sooner it is used.
    pub cost: u16,
    /// Packets on it are paid for.
    pub metered: bool,
    /// Its share among weighted paths, 1 to 255; 0 stands for 1.
    pub weight: u8,
    /// The data cap of our link is used up.
    pub capped: bool,
}

/// What has come of a turn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Another path is the first now.
    pub moved: Option<Move>,
    /// Paths that are good or poor now, and were not.
    pub graded: Vec<Graded>,
}

/// Another path is the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// The one before.
    pub from: Option<PathName>,
    /// The one now.
    pub to: PathName,
    /// Why.
    pub why: Why,
}

/// Why another path is the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// There was none.
    First,
    /// The one before is not what the class needs, or is worse than the other.
    Fault(Fault),
    /// The one before is not there any more.
    Gone,
    /// Only the one now is good.
    Good,
    /// It costs less.
    Cheaper,
    /// Its round trips are shorter, microseconds: of the one before, and of the one now.
    Faster(u32, u32),
}

impl Why {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Why::First => "first",
            Why::Fault(Fault::Down(_)) => "down",
            Why::Fault(fault) => fault.word(),
            Why::Gone => "gone",
            Why::Good => "good",
            Why::Cheaper => "cheaper",
            Why::Faster(..) => "faster",
        }
    }
}

/// A path is good or poor now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Graded {
    /// Which one.
    pub path: PathName,
    /// Why it is poor; none: it is good.
    pub fault: Option<Fault>,
}

/// A path in the order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which one.
    pub path: PathName,
    /// Whether it is up.
    pub state: PathState,
    /// What the configuration says.
    pub links: Links,
    /// What is wrong with it at this moment.
    pub fault: Option<Fault>,
    /// Why it is poor: what was wrong with it last. None: it is good.
    pub poor: Option<Fault>,
    /// When something was wrong with it last.
    pub bad_at: Option<u64>,
    /// When it was left last: it was the first, and poor.
    pub left_at: Option<u64>,
    /// When a better one passed it last.
    pub passed_at: Option<u64>,
    rtt: Option<u32>,
    is_gone: bool,
    /// Whether it loses too much, and the reading that this is as of.
    trials: EachWay<Trial>,
    reading: u64,
}

impl Entry {
    fn is_up(&self) -> bool {
        self.state == PathState::Up
    }

    fn is_good(&self) -> bool {
        self.poor.is_none()
    }
}

/// The judge of one class and one remote.
#[derive(Clone, Debug, Default)]
pub struct Judge {
    order: Vec<Entry>,
    first: Option<PathName>,
    /// Since when that is the first, and why.
    since: u64,
    why: Option<Why>,
    /// Of paths that have not been seen since this process was started.
    kept: Vec<OfPath>,
}

impl Judge {
    /// One that goes on where another one was. What is kept has been [checked](OfClass::checked).
    pub fn resume(kept: OfClass) -> Judge {
        let first = kept.first;
        Judge {
            order: Vec::new(),
            first: first.as_ref().and_then(|first| kept::name(first.links)),
            since: first.as_ref().map_or(0, |first| first.since),
            why: first.map(|first| first.why),
            kept: kept.paths,
        }
    }

    /// What has to be known to go on from here.
    pub fn keep(&self, class: &Class, now: u64) -> OfClass {
        let hold = u64::from(class.hold_ms) * 1_000_000;
        let is_lately = |at: Option<u64>| at.is_some_and(|at| now.saturating_sub(at) < hold);
        let seen = self.order.iter().map(Entry::keep);
        let paths = seen.chain(self.kept.iter().cloned());
        // One that is not there any more is forgotten in the end.
        let is_bad_still = |at: u64| now.saturating_sub(at) < REMEMBERED;
        let paths = paths.filter(|path| {
            let times = [path.bad_at, path.left_at, path.passed_at];
            path.is_bad && path.bad_at.is_none_or(is_bad_still) || times.into_iter().any(is_lately)
        });
        OfClass {
            class: class.name.clone(),
            first: self.first().map(|(path, since, why)| OfFirst {
                links: kept::links(path),
                since,
                why,
            }),
            paths: paths.collect(),
        }
    }

    /// Looks at all paths of the remote, [`PATHS_MAX`] at most.
    pub fn turn(&mut self, class: &Class, now: u64, paths: &[Now<'_>]) -> Turn {
        let mut turn = Turn::default();
        let hold = u64::from(class.hold_ms) * 1_000_000;
        for entry in &mut self.order {
            if !paths.iter().any(|path| path.path == entry.path) {
                entry.vanish(now);
            }
        }
        self.order
            .retain(|entry| !entry.is_gone || entry.was_within(hold.max(REMEMBERED), now));
        for path in paths.iter().take(PATHS_MAX) {
            let entry = self.entry(path.path);
            let grade = entry.grade(class, hold, now, path);
            turn.graded.extend(grade);
        }
        self.sort(class.mode, hold, now);
        turn.moved = self.choose(now);
        if turn.moved.is_some() {
            // The one that was left stands behind others from now on.
            self.sort(class.mode, hold, now);
        }
        turn
    }

    fn entry(&mut self, path: PathName) -> &mut Entry {
        let at = self.order.iter().position(|entry| entry.path == path);
        let at = at.unwrap_or_else(|| {
            let kept = self.kept.iter().position(|kept| kept.links == kept::links(path));
            let kept = kept.map(|at| self.kept.swap_remove(at));
            self.order
                .push(kept.map_or_else(|| Entry::new(path), |kept| Entry::resume(path, &kept)));
            self.order.len() - 1
        });
        &mut self.order[at]
    }

    fn sort(&mut self, mode: Mode, hold: u64, now: u64) {
        let rules = Rules {
            mode,
            hold,
            now,
            first: self.first,
        };
        for from in 1..self.order.len() {
            let mut at = from;
            while at > 0 && rules.passes(&self.order[at], &self.order[at - 1]) {
                self.order.swap(at, at - 1);
                at -= 1;
            }
        }
        let poor = self.order.iter().position(|entry| !entry.is_good());
        if let Some(poor) = poor.filter(|at| !self.order[..*at].iter().any(Entry::is_up))
            && let Some(at) = rules.least_bad(&self.order[poor..])
        {
            self.order[poor..=poor + at].rotate_right(1);
        }
    }

    /// The first that is good and up, or else the first that is up, as the engine does it. If none is, all stays.
    fn choose(&mut self, now: u64) -> Option<Move> {
        let up = || self.order.iter().filter(|entry| entry.is_up());
        let chosen = up().find(|entry| entry.is_good()).or_else(|| up().next())?;
        let (to, from) = (chosen.path, self.first);
        if from == Some(to) {
            return None;
        }
        let before = self.order.iter().find(|entry| Some(entry.path) == from);
        let why = why(before, from, chosen);
        let left = self.order.iter_mut().find(|entry| Some(entry.path) == from);
        if let Some(left) = left {
            match (left.is_good(), left.fault) {
                (true, _) => left.passed_at = Some(now),
                // No hold follows that.
                (false, Some(Fault::Cap)) => {}
                (false, _) => left.left_at = Some(now),
            }
        }
        (self.first, self.since, self.why) = (Some(to), now, Some(why));
        Some(Move { from, to, why })
    }

    /// What the engine is to be told.
    pub fn ranked(&self, mode: Mode) -> impl Iterator<Item = Ranked> {
        let grade = move |entry: &Entry| match (entry.is_good(), mode) {
            (false, _) => 0,
            (true, Mode::Weighted) => entry.links.weight.max(1),
            (true, _) => GOOD,
        };
        self.order().map(move |entry| Ranked {
            path: entry.path,
            grade: grade(entry),
        })
    }

    /// Whether more has to be known of a path than passes by it, and then whether it is the one that flows go by.
    pub fn doubt(&self, class: &Class, now: u64, path: PathName) -> Option<bool> {
        let hold = u64::from(class.hold_ms) * 1_000_000;
        let entry = self.order().find(|entry| entry.path == path)?;
        let is_in_doubt = class.loss_ppm.is_some() && entry.is_in_doubt(hold, now);
        is_in_doubt.then_some(self.first == Some(path))
    }

    /// The paths in their order.
    pub fn order(&self) -> impl Iterator<Item = &Entry> {
        self.order.iter().filter(|entry| !entry.is_gone)
    }

    /// The paths that the class's flows go by, the first one first, as far as that follows from our links (docs/steering.md): a remote's link that is metered has no share
    /// either.
    pub fn used(&self, mode: Mode) -> impl Iterator<Item = PathName> {
        let first = self.order().find(|entry| Some(entry.path) == self.first);
        let others = self.order().filter(move |entry| {
            let Some(first) = first.filter(|first| first.path != entry.path && entry.is_up()) else {
                return false;
            };
            let cost = |entry: &Entry| (entry.links.cost, entry.links.metered);
            match mode {
                Mode::Pinned => first.is_good() && entry.is_good() && cost(first) == cost(entry),
                Mode::Weighted => first.is_good() && entry.is_good(),
                Mode::Duplicate => true,
                Mode::ActiveBackup | Mode::LowestLatency => false,
            }
        });
        let at_most = if mode == Mode::Duplicate { 1 } else { PATHS_MAX };
        let first = first.map(|entry| entry.path).into_iter();
        first.chain(others.map(|entry| entry.path).take(at_most))
    }

    /// The path that the class goes by, since when, and why.
    pub fn first(&self) -> Option<(PathName, u64, Why)> {
        Some((self.first?, self.since, self.why?))
    }
}

impl Entry {
    fn new(path: PathName) -> Entry {
        Entry {
            path,
            state: PathState::Unknown,
            links: Links::default(),
            fault: None,
            poor: None,
            bad_at: None,
            left_at: None,
            passed_at: None,
            rtt: None,
            is_gone: false,
            trials: EachWay::default(),
            reading: 0,
        }
    }

    /// One of which something is known from before.
    fn resume(path: PathName, kept: &OfPath) -> Entry {
        Entry {
            poor: kept.poor,
            bad_at: kept.bad_at,
            left_at: kept.left_at,
            passed_at: kept.passed_at,
            // Whatever was wrong with it, it was so until now.
            is_gone: kept.is_bad,
            ..Entry::new(path)
        }
    }

    fn keep(&self) -> OfPath {
        // While it is so every turn says it anew: that is not worth writing down.
        let is_bad = self.is_gone || self.fault.is_some_and(|fault| fault != Fault::Cap);
        OfPath {
            links: kept::links(self.path),
            poor: self.poor.map(|poor| if is_bad { poor.lasting() } else { poor }),
            is_bad,
            bad_at: self.bad_at.filter(|_| !is_bad),
            left_at: self.left_at,
            passed_at: self.passed_at,
        }
    }

    /// The path is not there any more.
    fn vanish(&mut self, now: u64) {
        if !self.is_gone {
            let fault = Some(Fault::Down(PathWhy::LinkGone));
            (self.is_gone, self.state) = (true, PathState::Down);
            (self.fault, self.poor, self.bad_at) = (fault, fault, Some(now));
        }
    }

    /// How it is now; something if it is good or poor now and was not.
    fn grade(&mut self, class: &Class, hold: u64, now: u64, path: &Now<'_>) -> Option<Graded> {
        (self.state, self.links) = (path.state, path.links);
        self.rtt = match class.mode {
            Mode::LowestLatency => path.measured.rtt,
            _ => path.measured.rtt_ten,
        };
        self.try_loss(class, now, path);
        self.fault = match path.state {
            PathState::Down => Some(Fault::Down(path.why)),
            PathState::Up => verdict::broken(class, path.measured, &self.trials, now).map(Fault::Broken),
            PathState::Unknown => None,
        };
        self.fault = self.fault.or(path.links.capped.then_some(Fault::Cap));
        let (was_good, was_gone) = (self.is_good(), std::mem::take(&mut self.is_gone));
        if was_gone {
            self.bad_at = Some(now);
        }
        let wrong = self
            .fault
            .or(path.was_down.then_some(Fault::Down(PathWhy::Silent)));
        match wrong {
            Some(fault) => {
                self.poor = Some(fault);
                let bad_at = match fault {
                    Fault::Broken(broken) => Some(broken.seen),
                    Fault::Down(_) => Some(now),
                    // That is nothing to prove itself from: once there is more to use, it is good.
                    Fault::Cap => None,
                };
                self.bad_at = self.bad_at.max(bad_at);
            }
            // It is back, and nothing has been heard on it yet.
            None if self.state == PathState::Unknown && !was_good => self.bad_at = Some(now),
            None if self.was_within(hold, now) => {}
            // Something was lost just now: soon it is known what that means.
            None if !was_good && self.is_tried() => {}
            None => self.poor = None,
        }
        (was_good != self.is_good()).then_some(Graded {
            path: self.path,
            fault: self.poor,
        })
    }

    /// Goes on with the trials of its loss, once for each reading.
    fn try_loss(&mut self, class: &Class, now: u64, path: &Now<'_>) {
        let measured = path.measured;
        // What an outage has cost is read only after it.
        let was_down = matches!(self.poor, Some(Fault::Down(_)));
        let is_back = was_down && self.bad_at.is_some_and(|at| now.saturating_sub(at) < SETTLED);
        if path.state != PathState::Up || is_back {
            self.trials.inward.dismiss();
            self.trials.outward.dismiss();
        } else if let Some(limit) = class.loss_ppm.filter(|_| measured.reading != self.reading) {
            self.trials.inward.take(now, measured.fresh.inward, limit);
            self.trials.outward.take(now, measured.fresh.outward, limit);
        }
        self.reading = measured.reading;
    }

    /// Whether it is not known yet if it loses too much.
    fn is_tried(&self) -> bool {
        self.trials.inward.is_open() || self.trials.outward.is_open()
    }

    /// Whether more has to be known of it soon: it is being tried, or may be used again before long.
    fn is_in_doubt(&self, hold: u64, now: u64) -> bool {
        let look = if self.links.metered { LOOK_METERED } else { LOOK };
        // Nothing that could be found out would bring packets to one whose data cap is used up.
        let may_matter = !self.links.capped;
        may_matter
            && match self.is_good() {
                true => self.is_tried(),
                false => !self.was_within(hold.saturating_sub(look), now),
            }
    }

    /// Something was wrong with it, or it was left, so short a time ago.
    fn was_within(&self, hold: u64, now: u64) -> bool {
        let last = self.bad_at.max(self.left_at);
        last.is_some_and(|at| now.saturating_sub(at) < hold)
    }

    /// How bad it is, in thousandths of what is allowed. Nothing may be wrong with it now.
    fn badness(&self) -> u64 {
        match self.fault {
            None | Some(Fault::Cap) => 0,
            Some(Fault::Down(_)) => u64::MAX / 8,
            Some(Fault::Broken(broken)) => broken.badness(),
        }
    }

    fn is_less_bad(&self, than: &Entry) -> bool {
        verdict::is_clearly_less_bad(self.badness(), than.badness())
    }
}

/// When a path passes another one.
struct Rules {
    mode: Mode,
    hold: u64,
    now: u64,
    first: Option<PathName>,
}

impl Rules {
    /// Whether `this` passes the one in front of it.
    fn passes(&self, this: &Entry, other: &Entry) -> bool {
        match (this.is_good(), other.is_good()) {
            (true, false) => true,
            (false, true) => false,
            (true, true) if self.is_lately(this.passed_at) => false,
            (true, true) => is_preferred(this, other, self.mode),
            (false, false) => self.is_rather(this, other),
        }
    }

    /// The same of two poor ones.
    fn is_rather(&self, this: &Entry, other: &Entry) -> bool {
        if this.is_up() != other.is_up() {
            return this.is_up();
        }
        if this.links.capped != other.links.capped {
            return other.links.capped;
        }
        match (self.is_held(this), self.is_held(other)) {
            (false, false) => this.is_less_bad(other),
            (is_held, is_other_held) => !is_held && is_other_held,
        }
    }

    /// Where the one is by which flows go if none is good: the first as long as it is up, unless another is clearly less bad; never back to one that is held, but for want of others. One whose
    /// data cap is used up comes behind all of them.
    fn least_bad(&self, poor: &[Entry]) -> Option<usize> {
        let up = || poor.iter().enumerate().filter(|(_, entry)| entry.is_up());
        let by_badness =
            |(_, entry): &(usize, &Entry)| (entry.links.capped, self.is_held(entry), entry.badness());
        let (best, least) = up().min_by_key(by_badness)?;
        let first = up().find(|(_, entry)| Some(entry.path) == self.first);
        match first {
            Some((_, first)) if first.links.capped && !least.links.capped => Some(best),
            Some((at, first)) if self.is_held(least) || !least.is_less_bad(first) => Some(at),
            _ => Some(best),
        }
    }

    fn is_held(&self, entry: &Entry) -> bool {
        Some(entry.path) != self.first && self.is_lately(entry.left_at)
    }

    fn is_lately(&self, at: Option<u64>) -> bool {
        at.is_some_and(|at| self.now.saturating_sub(at) < self.hold)
    }
}

/// Whether it is to be used rather than the other one where both are good.
fn is_preferred(this: &Entry, other: &Entry, mode: Mode) -> bool {
    let (percent, micros) = match mode {
        Mode::LowestLatency => SHORTER,
        _ => MUCH_SHORTER,
    };
    let is_shorter = verdict::is_clearly_shorter(this.rtt, other.rtt, percent, micros);
    let (cost, other_cost) = (
        (this.links.cost, this.links.metered),
        (other.links.cost, other.links.metered),
    );
    match mode {
        Mode::LowestLatency => is_shorter,
        _ => cost < other_cost || cost == other_cost && is_shorter,
    }
}

fn why(before: Option<&Entry>, from: Option<PathName>, chosen: &Entry) -> Why {
    let Some(before) = before else {
        return match from {
            None => Why::First,
            Some(_) => Why::Gone,
        };
    };
    if let Some(fault) = before.fault.or(before.poor) {
        return Why::Fault(fault);
    }
    if !before.is_up() {
        return Why::Gone;
    }
    let is_cheaper = (chosen.links.cost, chosen.links.metered) < (before.links.cost, before.links.metered);
    match (before.rtt, chosen.rtt) {
        _ if is_cheaper => Why::Cheaper,
        (Some(before), Some(now)) => Why::Faster(before, now),
        _ => Why::Good,
    }
}

#[cfg(test)]
mod tests;
