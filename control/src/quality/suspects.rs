//! Which paths the engine is asked to probe faster: those of which it is not known yet whether they lose too much, or that are to be used again soon, if there are too few packets to tell.
//!
//! What that costs is bounded: so many paths of a remote at once, a third of the time in the long run, and every request ends by itself when it is not made again. Called on the main thread;
//! plain values, times passed in (nanoseconds of CLOCK_BOOTTIME).

use patronus_abi::channel::{PathName, PathState, SUSPECTS_MAX};

use super::window::Measured;
use super::{Remote, SECOND, Wanted};

/// How long a request holds.
const LENGTH: u64 = 3 * SECOND;
/// When it is made again.
const AGAIN: u64 = SECOND;
/// Packets of a second, each way, that faster probes would add little to.
const MANY: u32 = 400;
/// For how long a path may be suspect at a time, and one nanosecond in so many after that.
const BUDGET: u64 = 30 * SECOND;
const PART: u64 = 3;

/// What the engine is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspicion {
    /// The remote's public key.
    pub remote: [u8; 32],
    /// Each path once, [`SUSPECTS_MAX`] at most; those of before are suspect no more.
    pub paths: Vec<PathName>,
    /// For how long, milliseconds.
    pub length: u32,
}

/// What was said last of a remote.
#[derive(Debug, Default)]
pub(super) struct Told {
    paths: Vec<PathName>,
    at: u64,
}

/// For how long a path may still be suspect.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    left: u64,
    at: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Budget { left: BUDGET, at: 0 }
    }
}

impl Budget {
    /// Time has passed, and the path was suspect or not. Whether it may be from now on.
    fn pass(&mut self, now: u64, was_suspect: bool) -> bool {
        let passed = now.saturating_sub(self.at);
        self.at = now;
        self.left = match was_suspect {
            true => self.left.saturating_sub(passed),
            false => self.left.saturating_add(passed / PART).min(BUDGET),
        };
        // What has just begun to be suspect stays so for a while.
        self.left > if was_suspect { 0 } else { SECOND }
    }
}

impl Remote {
    /// The paths that are suspect now, those first that flows go by.
    fn suspects(&mut self, wanted: &Wanted, now: u64) -> Vec<PathName> {
        let (judges, told) = (&self.judges, &self.told);
        let mut found = Vec::new();
        for path in &mut self.paths {
            let name = path.report.path;
            let may = path.budget.pass(now, told.paths.contains(&name));
            if !may || path.report.state != PathState::Up || has_many(&path.measured) {
                continue;
            }
            let classes = judges.iter().zip(&wanted.classes);
            let doubts = classes.filter_map(|(seat, class)| seat.judge.doubt(class, now, name));
            if let Some(doubt) = doubts.max() {
                found.push((doubt, name));
            }
        }
        found.sort_unstable_by_key(|(doubt, name)| (std::cmp::Reverse(*doubt), *name));
        found.truncate(SUSPECTS_MAX);
        let mut names: Vec<PathName> = found.into_iter().map(|(_, name)| name).collect();
        names.sort_unstable();
        names
    }

    /// What the engine is to be told, if that is something else than it knows, or it is time to say it again. `send` says whether there was room for it.
    pub(super) fn suspect(
        &mut self,
        key: [u8; 32],
        wanted: &Wanted,
        now: u64,
        send: &mut impl FnMut(Suspicion) -> bool,
    ) {
        let paths = self.suspects(wanted, now);
        let is_known = paths == self.told.paths;
        if is_known && (paths.is_empty() || now.saturating_sub(self.told.at) < AGAIN) {
            return;
        }
        let suspicion = Suspicion {
            remote: key,
            paths: paths.clone(),
            length: (LENGTH / 1_000_000) as u32,
        };
        if send(suspicion) {
            self.told = Told { paths, at: now };
        }
    }
}

/// Whether enough passes both ways without it.
fn has_many(measured: &Measured) -> bool {
    let one = measured.one;
    one.inward.sent.min(one.outward.sent) >= MANY
}
