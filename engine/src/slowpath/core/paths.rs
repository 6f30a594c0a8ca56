//! What the worker that probes has found out about paths, for people and control.

use std::collections::{BTreeMap, BTreeSet};

use patronus_abi::channel::{Event, SUSPECTS_MAX};
use patronus_crypto::{Duration, PeerId, Time};

use super::{Core, Sockets};
use crate::channel::Command;
use crate::path::{PathName, PathPulse, PathReport, PathState, PathWhy};
use crate::probe::{PROBER, PathChange, Probing, Suspects};

/// Changes of paths told in a turn.
const CHANGES_PER_TURN: usize = 256;
/// Lines about them in a second: on a hub whose own line goes down all of them change.
const LINES_PER_SECOND: u32 = 10;

/// The names before and behind all others.
const FIRST: PathName = PathName { local: 0, remote: 0 };
const LAST: PathName = PathName {
    local: u8::MAX,
    remote: u8::MAX,
};

/// What was said about paths: which are up, and to people in this second.
#[derive(Default)]
pub(super) struct Said {
    up: BTreeSet<(PeerId, PathName)>,
    second: u64,
    lines: u32,
}

impl Said {
    /// Whether there may be another line, and whether it is the first that there may not.
    fn may_speak(&mut self, now: Time) -> (bool, bool) {
        let second = now.0 / 1_000_000_000;
        if self.second != second {
            (self.second, self.lines) = (second, 0);
        }
        self.lines = self.lines.saturating_add(1);
        (self.lines <= LINES_PER_SECOND, self.lines == LINES_PER_SECOND + 1)
    }
}

impl<S: Sockets> Core<S> {
    /// How often paths are probed from now on.
    pub fn set_probing(&mut self, probing: Probing) {
        self.tell_all(|| Command::Probing(probing));
    }

    /// Has these paths to a remote, and no others, probed faster for so many milliseconds.
    pub fn suspect_paths(
        &mut self,
        remote: PeerId,
        paths: &[PathName],
        length: u32,
    ) -> Result<(), &'static str> {
        let board = self.board(remote).ok_or("a suspicion of what has no paths")?;
        // One that is gone since is nobody's fault.
        let there = paths.iter().filter(|path| board.place(**path).is_some());
        let suspects = Suspects {
            paths: there.take(SUSPECTS_MAX).copied().collect(),
            until: self.clock.mono().after(Duration::from_millis(length.into())),
        };
        self.workers.tell(PROBER, Command::Suspect(remote, suspects));
        Ok(())
    }

    /// Tells of the changes that the worker has left.
    pub(super) fn take_path_changes(&mut self) {
        for _ in 0..CHANGES_PER_TURN {
            let Some(change) = self.inbox.paths.pop() else {
                return;
            };
            // Of a path that is gone since, that was told.
            let board = self.board(change.remote);
            if board.is_some_and(|board| board.place(change.path).is_some()) {
                self.note_path(&change);
            }
        }
    }

    /// The paths to a remote that were told as up last. What workers have said of those that are gone since is not told any more.
    pub(super) fn told_as_up(&self, remote: PeerId) -> impl Iterator<Item = PathName> + '_ {
        let told = self.said_of_paths.up.range((remote, FIRST)..=(remote, LAST));
        told.map(|(_, path)| *path)
    }

    /// A path that was told as up is no more on the board: a link of it is gone, or they agree on no path.
    pub(super) fn note_gone_path(&mut self, remote: PeerId, path: PathName) {
        self.note_path(&PathChange {
            remote,
            path,
            before: PathState::Up,
            state: PathState::Down,
            why: PathWhy::LinkGone,
            at: self.clock.mono(),
            silence: Duration::ZERO,
        });
    }

    /// A remote is gone, and nobody wants to know that its paths are.
    pub(super) fn forget_paths(&mut self, remote: PeerId) {
        self.said_of_paths.up.retain(|(of, _)| *of != remote);
    }

    fn note_path(&mut self, change: &PathChange) {
        let Some(remote) = self.peer(change.remote).map(|peer| peer.key.0) else {
            return;
        };
        let told = (change.remote, change.path);
        match change.state {
            PathState::Up => self.said_of_paths.up.insert(told),
            _ => self.said_of_paths.up.remove(&told),
        };
        self.news.add(Event::PathState {
            at: change.at.0,
            remote,
            path: change.path,
            state: change.state,
            why: change.why,
        });
        self.note_paths(change.remote);
        let is_up = self.board(change.remote).is_some_and(|board| board.up() != 0);
        if change.why == PathWhy::Silent && !is_up {
            self.ask_remote(change.remote);
        }
        self.tell_people(change);
    }

    fn tell_people(&mut self, change: &PathChange) {
        let (name, path) = (self.peer_name(change.remote), change.path);
        if change.before == PathState::Unknown {
            let state = change.state.word();
            let log = &self.log;
            return log.verbose(format_args!("path {path} to {name}: {state}"));
        }
        let (may_speak, is_last) = self.said_of_paths.may_speak(change.at);
        if is_last {
            self.log
                .notice(format_args!("more paths are up or down than people are told"));
        }
        if !may_speak {
            return;
        }
        match (change.state, change.why) {
            (PathState::Down, PathWhy::Silent) => self.log.notice(format_args!(
                "path {path} to {name}: down, nothing heard for {} ms",
                change.silence.as_millis()
            )),
            (PathState::Down, why) => self
                .log
                .notice(format_args!("path {path} to {name}: down, {}", reason(why))),
            (state, _) => self
                .log
                .notice(format_args!("path {path} to {name}: {}", state.word())),
        }
    }

    /// What is known of each path to a remote.
    pub fn path_reports(&self, base: PeerId) -> Vec<PathReport> {
        let (Some(board), Some(peer)) = (self.board(base), self.peer(base)) else {
            return Vec::new();
        };
        let mut bytes = BTreeMap::<PathName, (u64, u64)>::new();
        for (_, id) in self.device.lanes(base) {
            let Some(path) = self.path_of(id) else { continue };
            let (sent, received) = bytes.entry(path).or_default();
            *sent += self.device.traffic(id).sent_bytes();
            *received += self.device.traffic(id).received_bytes();
        }
        let reports = board.pulses().iter().filter_map(PathPulse::read);
        let reports = reports.map(|report| {
            let (sent_bytes, received_bytes) = bytes.get(&report.path).copied().unwrap_or_default();
            PathReport {
                remote: peer.key.0,
                sent_bytes,
                received_bytes,
                ..report
            }
        });
        reports.collect()
    }

    fn path_of(&self, lane: PeerId) -> Option<PathName> {
        let path = self.peer(lane)?.lane.as_ref()?.path();
        Some(PathName {
            local: path.local.number(),
            remote: path.remote.number(),
        })
    }
}

/// Why a path is down, in words.
fn reason(why: PathWhy) -> &'static str {
    match why {
        PathWhy::NotHeard => "the remote hears nothing on it",
        PathWhy::NoSession => "there is no session",
        PathWhy::LinkGone => "its link is gone, or another one than before",
        PathWhy::Silent => "nothing is heard",
        PathWhy::New | PathWhy::Heard => "it is new",
    }
}
