//! Dynamic routes: what routing daemons, by way of control, say beside the configuration.
//!
//! Every route has an owner (who says so) and an epoch (in which of its lives). An owner that comes back says everything again under another epoch and then sweeps
//! what it did not say again; meanwhile the old routes hold. Of several owners' routes with one prefix the one with the lowest preference counts, then the lowest owner.
//! Next hops are named by what they are and resolved when it matters: a peer may come and go.
//!
//! Belongs to the slow path. A change costs what it changes; a sweep goes over the table in pieces ([`Rib::step`]).

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use patronus_abi::channel::NextHop;

use crate::allowedips::Prefix;

/// Sweeps that may be under way.
const SWEEPS_MAX: usize = 16;

/// Why a route is not taken, or not swept.
pub type Refused = &'static str;

/// What an owner has said.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Said {
    preference: u32,
    owner: u16,
    epoch: u32,
    /// When, counted in commands: a sweep is about what was said before it.
    at: u64,
    hops: Vec<NextHop>,
}

/// A sweep that is under way.
struct Sweep {
    owner: u16,
    epoch: u32,
    at: u64,
    /// The prefix that was looked at last.
    done: Option<Prefix>,
}

/// All dynamic routes.
pub struct Rib {
    /// By prefix; for each the best first.
    routes: BTreeMap<Prefix, Vec<Said>>,
    count: usize,
    limit: usize,
    now: u64,
    sweeps: VecDeque<Sweep>,
}

impl Rib {
    /// No routes, and room for so many.
    pub fn new(limit: usize) -> Rib {
        Rib {
            routes: BTreeMap::new(),
            count: 0,
            limit,
            now: 0,
            sweeps: VecDeque::new(),
        }
    }

    /// How many routes there are, those that do not count among them.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The prefixes that there are routes to.
    pub fn prefixes(&self) -> impl Iterator<Item = &Prefix> {
        self.routes.keys()
    }

    /// The next hops that count for exactly this prefix.
    pub fn best(&self, prefix: &Prefix) -> Option<&[NextHop]> {
        Some(&self.routes.get(prefix)?.first()?.hops)
    }

    /// An owner's route. What it said of the prefix before is forgotten.
    pub fn add(
        &mut self,
        prefix: Prefix,
        owner: u16,
        epoch: u32,
        preference: u32,
        hops: Vec<NextHop>,
    ) -> Result<(), Refused> {
        self.now += 1;
        let said = Said {
            preference,
            owner,
            epoch,
            at: self.now,
            hops,
        };
        let known = self.routes.get_mut(&prefix);
        let had = known.and_then(|all| {
            let at = all.iter().position(|other| other.owner == owner)?;
            Some(all.remove(at))
        });
        if had.is_none() && self.count == self.limit {
            return Err("there are as many dynamic routes as there may be: raise `routes` in [engine]");
        }
        self.count += usize::from(had.is_none());
        let all = self.routes.entry(prefix).or_default();
        let rank = |said: &Said| (said.preference, said.owner);
        let at = all.partition_point(|other| rank(other) < rank(&said));
        all.insert(at, said);
        Ok(())
    }

    /// The owner has no route to this prefix any more.
    pub fn delete(&mut self, prefix: &Prefix, owner: u16) {
        self.now += 1;
        self.retain(prefix, |said| said.owner != owner);
    }

    /// What the owner has said before, in other lives, is void after some calls of [`step`](Rib::step).
    pub fn sweep(&mut self, owner: u16, epoch: u32) -> Result<(), Refused> {
        self.now += 1;
        if self.sweeps.len() == SWEEPS_MAX {
            return Err("too many sweeps at a time");
        }
        self.sweeps.push_back(Sweep {
            owner,
            epoch,
            at: self.now,
            done: None,
        });
        Ok(())
    }

    /// Whether a sweep is under way.
    pub fn is_busy(&self) -> bool {
        !self.sweeps.is_empty()
    }

    /// Goes on sweeping, over so many prefixes. Returns those whose routes have changed.
    pub fn step(&mut self, most: usize) -> Vec<Prefix> {
        let Some(sweep) = self.sweeps.front_mut() else {
            return Vec::new();
        };
        let from = sweep.done.map_or(Bound::Unbounded, Bound::Excluded);
        let some: Vec<Prefix> = self
            .routes
            .range((from, Bound::Unbounded))
            .map(|(prefix, _)| *prefix)
            .take(most)
            .collect();
        let (owner, epoch, at) = (sweep.owner, sweep.epoch, sweep.at);
        match some.last() {
            Some(last) if some.len() == most => sweep.done = Some(*last),
            _ => drop(self.sweeps.pop_front()),
        }
        let swept = |said: &Said| said.owner == owner && said.epoch != epoch && said.at < at;
        some.into_iter()
            .filter(|prefix| self.retain(prefix, |said| !swept(said)))
            .collect()
    }

    /// True if something has gone.
    fn retain(&mut self, prefix: &Prefix, keep: impl Fn(&Said) -> bool) -> bool {
        let Some(all) = self.routes.get_mut(prefix) else {
            return false;
        };
        let before = all.len();
        all.retain(keep);
        let gone = before - all.len();
        self.count -= gone;
        if all.is_empty() {
            self.routes.remove(prefix);
        }
        gone > 0
    }
}
