//! In which order a class uses the paths of a remote: what control thinks of them, and what configuration says of those that it says nothing of.
//!
//! The slow path makes orders, a worker has one for each class and remote.

use arrayvec::ArrayVec;
use patronus_abi::channel::{PATHS_MAX, PathName, Ranked};

/// What configuration says of a path towards a remote, as far as one side knows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Standing {
    /// Traffic costs money at one end or the other: after all those of which it does not.
    pub metered: bool,
    /// The cost of our link.
    pub cost: u16,
    /// What both sides call it: the upper byte of its lanes' tags.
    pub tag: u8,
}

impl Standing {
    /// Whether neither is to be preferred.
    pub(super) fn is_equal(&self, other: &Standing) -> bool {
        (self.metered, self.cost) == (other.metered, other.cost)
    }
}

/// In which order a class uses the paths of a remote.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Order {
    /// Places of paths, the first one first; poor ones behind good ones.
    pub(super) rank: ArrayVec<u8, PATHS_MAX>,
    /// Those that are good: a bit for each place.
    pub(super) good: u64,
    /// By place, 1 to 255.
    pub(super) weights: [u8; PATHS_MAX],
}

impl Order {
    /// What control says of these paths; what it says nothing of comes last, and is poor: it is there since control has looked, and may have been gone for a good reason. If control says nothing
    /// at all, all are good. `paths` are the board's, by place, with their standings.
    pub fn new(ranked: &[Ranked], paths: &[(PathName, Standing)]) -> Order {
        let mut order = Order {
            rank: ArrayVec::new(),
            good: 0,
            weights: [1; PATHS_MAX],
        };
        let mut by_standing: Vec<usize> = (0..paths.len().min(PATHS_MAX)).collect();
        by_standing.sort_by_key(|at| paths[*at].1);
        let told = ranked.iter().filter_map(|ranked| {
            let at = paths.iter().position(|(name, _)| *name == ranked.path)?;
            Some((at, ranked.grade))
        });
        let told: Vec<(usize, u8)> = told.filter(|(at, _)| *at < PATHS_MAX).collect();
        let grade = u8::from(ranked.is_empty());
        let untold = by_standing
            .into_iter()
            .filter(|at| told.iter().all(|(other, _)| other != at))
            .map(|at| (at, grade));
        let (good, poor): (Vec<_>, Vec<_>) = told
            .iter()
            .copied()
            .chain(untold)
            .partition(|(_, grade)| *grade > 0);
        for (at, grade) in good {
            order.good |= 1 << at;
            order.weights[at] = grade;
            order.rank.push(at as u8);
        }
        order.rank.extend(poor.into_iter().map(|(at, _)| at as u8));
        order
    }

    /// The places, the first one first.
    pub fn rank(&self) -> &[u8] {
        &self.rank
    }

    /// The places of those that are good.
    pub fn good(&self) -> u64 {
        self.good
    }

    /// The first of these that is good, or else the first.
    pub fn first(&self, among: u64) -> Option<u8> {
        // Good ones stand before poor ones.
        self.rank.iter().copied().find(|at| among & 1 << at != 0)
    }
}
