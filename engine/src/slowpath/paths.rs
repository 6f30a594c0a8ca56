//! The slow path shows control what is known of paths: from the boards, where workers write it, into the table in the statistics segment.

use patronus_crypto::{Duration, PeerId, Time};

use super::SlowPath;
use crate::control::Control;
use crate::stats::PathTable;

/// How often the table is made anew while control is attached.
const ROUND: Duration = Duration::from_millis(100);
/// Paths that are copied in a turn, and a few more.
const PATHS_PER_TURN: usize = 512;

/// The table, and how far the round that is on has come.
pub(super) struct Shown {
    table: PathTable,
    /// The next remote; none: a new round begins at that time.
    from: Option<PeerId>,
    again_at: Time,
}

impl Shown {
    pub(super) fn new(table: PathTable) -> Shown {
        Shown {
            table,
            from: None,
            again_at: Time(0),
        }
    }
}

impl SlowPath {
    /// When there is more to copy.
    pub(super) fn paths_deadline(&self) -> Option<Time> {
        let is_attached = self.control.as_ref().is_some_and(Control::is_attached);
        let shown = self.shown_paths.as_ref().filter(|_| is_attached)?;
        if shown.table.is_empty() && !self.core.has_paths() {
            return None;
        }
        // In the middle of a round at once.
        Some(shown.from.map_or(shown.again_at, |_| Time(0)))
    }

    /// Copies what is due.
    pub(super) fn show_paths(&mut self) {
        let now = self.core.mono();
        if self.paths_deadline().is_none_or(|at| at > now) {
            return;
        }
        let Some(shown) = &mut self.shown_paths else {
            return;
        };
        let mut from = shown.from.take().unwrap_or(PeerId(0));
        let mut copied = 0;
        while let Some(base) = self.core.next_with_paths(from) {
            if copied >= PATHS_PER_TURN {
                shown.from = Some(base);
                return;
            }
            for report in self.core.path_reports(base) {
                shown.table.set(&report);
                copied += 1;
            }
            from = PeerId(base.0 + 1);
        }
        shown.table.end_round();
        shown.again_at = now.after(ROUND);
    }
}
