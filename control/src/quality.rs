//! How good paths are, and by which of them each class goes.
//!
//! * [`window`]: what was measured of a path lately
//! * [`verdict`]: whether that is what a class asks
//! * [`trial`]: whether it loses more than that, by as few packets as can be
//! * [`suspects`]: of which paths more has to be known
//! * [`judge`]: the order of paths for a class and a remote
//! * [`kept`]: what has to survive this process
//!
//! [`Quality`] keeps all of it. The main thread feeds it with the engine's table of paths every [`EVERY`] and passes its orders on; threads of connections look at it, so it is
//! behind a lock, which they hold for one remote at a time. Nothing in here does anything but compute: times are passed in (nanoseconds of CLOCK_BOOTTIME), orders and changes come out.

pub mod judge;
pub mod kept;
pub mod suspects;
pub mod trial;
pub mod verdict;
pub mod window;

use std::collections::HashMap;
use std::collections::hash_map::Entry as Place;
use std::time::Duration;

use patronus_abi::Site;
use patronus_abi::channel::{PATHS_MAX, PathName, PathReport, PathState, PathWhy, Ranked};
pub use patronus_abi::site::{Class, Mode};

use judge::{Graded, Judge, Links, Move, Now};
use kept::{OfClass, OfRemote};
use suspects::{Budget, Suspicion, Told};
use window::{Measured, Window};

/// How often the table of paths is read.
pub const EVERY: Duration = Duration::from_millis(100);
/// Nanoseconds for which paths are measured before anything is ordered: an engine that is there already has an order, and a better one than a look at nothing would make.
const WARM: u64 = SECOND;
/// Nanoseconds of a second.
const SECOND: u64 = 1_000_000_000;
/// Readings without a path after which it is gone: the engine may be writing its record just when it is read.
const UNSEEN: u64 = 3;
/// Numbers that links can have.
const LINKS: usize = 16;

/// What the configuration says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The classes by their numbers.
    pub classes: Vec<Class>,
    /// Of each of our links, by its number.
    pub links: [Links; LINKS],
}

impl Wanted {
    /// What a site says. The weights of links are in proportion to their rates; one whose rate is not known has the smallest.
    pub fn of(site: &Site) -> Wanted {
        let mut links = [Links::default(); LINKS];
        let most = site.links.iter().map(|link| link.rate_up).max().unwrap_or(0);
        for link in &site.links {
            let weight = (u128::from(link.rate_up) * 255).checked_div(most.into());
            links[usize::from(link.id) % LINKS] = Links {
                cost: link.cost,
                metered: link.metered,
                weight: weight.map_or(1, |weight| weight.max(1) as u8),
                capped: false,
            };
        }
        Wanted {
            classes: site.classes.clone(),
            links,
        }
    }
}

/// An order that the engine does not have yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// The remote's public key.
    pub remote: [u8; 32],
    /// The number of the class.
    pub class: u8,
    /// Each path once.
    pub paths: Vec<Ranked>,
}

/// Something that somebody may want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// When, nanoseconds of CLOCK_BOOTTIME.
    pub at: u64,
    /// The remote's public key.
    pub remote: [u8; 32],
    /// The number of the class.
    pub class: u8,
    /// What.
    pub kind: ChangeKind,
}

/// What has changed for a class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It goes by another path.
    Moved(Move),
    /// A path is good or poor.
    Graded(Graded),
}

/// Everything that is known of paths.
#[derive(Debug, Default)]
pub struct Quality {
    wanted: Wanted,
    remotes: HashMap<[u8; 32], Remote>,
    reading: u64,
    /// What is known from before of remotes that have not been seen yet.
    resumed: HashMap<[u8; 32], Vec<OfClass>>,
}

/// What is known of the paths to a remote.
#[derive(Debug, Default)]
pub struct Remote {
    paths: Vec<Path>,
    /// One for each class.
    judges: Vec<Seat>,
    begun: u64,
    /// Which paths the engine was told to probe faster.
    told: Told,
    /// The engine has said something of it since it was judged.
    is_noted: bool,
}

/// The judge of a class, and what the engine has of it.
#[derive(Debug, Default)]
struct Seat {
    judge: Judge,
    ordered: Vec<Ranked>,
}

/// What is known of a path.
#[derive(Debug)]
pub struct Path {
    /// As the engine's table had it last.
    pub report: PathReport,
    /// What was measured.
    pub window: Window,
    measured: Measured,
    /// It was down since the judges looked last.
    was_down: bool,
    seen: u64,
    budget: Budget,
}

impl Quality {
    /// What is to be in force from now on.
    pub fn configure(&mut self, wanted: Wanted) {
        let before = std::mem::replace(&mut self.wanted, wanted);
        for (now, before) in self.wanted.links.iter_mut().zip(&before.links) {
            now.capped = before.capped;
        }
        if before.classes == self.wanted.classes {
            return;
        }
        let name = |classes: &[Class], at: usize| classes.get(at).map(|class| class.name.clone());
        for remote in self.remotes.values_mut() {
            let mut seats: Vec<Option<Seat>> = remote.judges.drain(..).map(Some).collect();
            // A class keeps its judge; what the engine has of it may be another one's now, so it is told again.
            let judges = self.wanted.classes.iter().map(|class| {
                let at = (0..seats.len()).find(|at| name(&before.classes, *at).as_ref() == Some(&class.name));
                let seat = at.and_then(|at| seats[at].take());
                Seat {
                    judge: seat.unwrap_or_default().judge,
                    ordered: Vec::new(),
                }
            });
            remote.judges = judges.collect();
        }
    }

    /// The data cap of our link of this number is used up, or is not.
    pub fn cap(&mut self, link: u8, is_used_up: bool) {
        self.wanted.links[usize::from(link) % LINKS].capped = is_used_up;
    }

    /// Another engine: nothing of what was measured is of its paths.
    pub fn forget(&mut self) {
        self.remotes.clear();
        self.resumed.clear();
    }

    /// Goes on where another process was, with the same engine. Nothing has been read yet.
    pub fn resume(&mut self, now: u64, kept: Vec<OfRemote>) {
        let kept = kept.into_iter().map(|remote| remote.checked(now));
        self.resumed = kept.map(|remote| (remote.key, remote.classes)).collect();
    }

    /// What has to be known to go on from here, by keys.
    pub fn keep(&self, now: u64) -> Vec<OfRemote> {
        let seen = self.remotes.iter().map(|(key, remote)| OfRemote {
            key: *key,
            classes: remote.keep(&self.wanted.classes, now),
        });
        let unseen = self.resumed.iter().map(|(key, classes)| OfRemote {
            key: *key,
            classes: classes.clone(),
        });
        let mut all: Vec<OfRemote> = seen.chain(unseen).collect();
        all.retain(|remote| !remote.classes.is_empty());
        all.sort_unstable_by_key(|remote| remote.key);
        all
    }

    /// The engine may have none of the orders that it was told, or of the classes that they are for.
    pub fn order_again(&mut self) {
        let seats = self.remotes.values_mut().flat_map(|remote| &mut remote.judges);
        seats.for_each(|seat| seat.ordered.clear());
    }

    /// Takes the table of paths as it is `now`.
    pub fn take(&mut self, now: u64, table: impl Iterator<Item = PathReport>) {
        self.reading += 1;
        for report in table {
            let remote = match self.remotes.entry(report.remote) {
                Place::Occupied(remote) => remote.into_mut(),
                Place::Vacant(place) => {
                    let kept = self.resumed.remove(place.key()).unwrap_or_default();
                    place.insert(Remote::resume(now, &self.wanted.classes, kept))
                }
            };
            remote.take(now, report, self.reading);
        }
        let reading = self.reading;
        self.remotes.retain(|_, remote| {
            remote.paths.retain(|path| path.seen + UNSEEN > reading);
            !remote.paths.is_empty()
        });
    }

    /// The engine says that a path is up or down since `at`, before its table does.
    pub fn note(&mut self, at: u64, remote: &[u8; 32], path: PathName, state: PathState, why: PathWhy) {
        let Some(remote) = self.remotes.get_mut(remote) else {
            return;
        };
        let known = remote.paths.iter_mut().find(|known| known.report.path == path);
        if let Some(path) = known {
            remote.is_noted = true;
            path.was_down |= state == PathState::Down;
            let report = &mut path.report;
            (report.since, report.state, report.why) = (at, state, why);
        }
    }

    /// Judges the paths of all remotes for all classes, or those only of which the engine has [said something](Self::note).
    pub fn judge(&mut self, now: u64, all: bool) -> Vec<Change> {
        let mut changes = Vec::new();
        for (key, remote) in &mut self.remotes {
            // The table may not have all of its paths yet, and the windows nothing in them.
            if now.saturating_sub(remote.begun) < WARM || !remote.is_noted && !all {
                continue;
            }
            remote.is_noted = false;
            remote.judge(&self.wanted, now, |class, kind| {
                changes.push(Change {
                    at: now,
                    remote: *key,
                    class,
                    kind,
                });
            });
        }
        changes
    }

    /// Passes on the orders that the engine does not have. `send` says whether there was room for it; those for which there was none come again.
    pub fn order(&mut self, now: u64, mut send: impl FnMut(Order) -> bool) {
        for (key, remote) in &mut self.remotes {
            if now.saturating_sub(remote.begun) < WARM {
                continue;
            }
            for (number, (seat, class)) in remote.judges.iter_mut().zip(&self.wanted.classes).enumerate() {
                if seat.judge.ranked(class.mode).eq(seat.ordered.iter().copied()) {
                    continue;
                }
                let paths: Vec<Ranked> = seat.judge.ranked(class.mode).collect();
                let order = Order {
                    remote: *key,
                    class: number as u8,
                    paths: paths.clone(),
                };
                if !send(order) {
                    return;
                }
                seat.ordered = paths;
            }
        }
    }

    /// Passes on which paths are suspect, as far as the engine does not know. `send` says whether there was room for it; what there was none for comes again.
    pub fn suspect(&mut self, now: u64, mut send: impl FnMut(Suspicion) -> bool) {
        for (key, remote) in &mut self.remotes {
            remote.suspect(*key, &self.wanted, now, &mut send);
        }
    }

    /// Whom there are paths to.
    pub fn remotes(&self) -> impl Iterator<Item = &[u8; 32]> {
        self.remotes.keys()
    }

    /// What is known of the paths to one of them.
    pub fn remote(&self, key: &[u8; 32]) -> Option<&Remote> {
        self.remotes.get(key)
    }

    /// What the configuration says of our link of this number.
    pub fn link(&self, number: u8) -> Links {
        self.wanted.links[usize::from(number) % LINKS]
    }

    /// The classes by their numbers.
    pub fn classes(&self) -> &[Class] {
        &self.wanted.classes
    }
}

impl Remote {
    /// One that is there since `now`.
    fn resume(now: u64, classes: &[Class], mut kept: Vec<OfClass>) -> Remote {
        let seat = |class: &Class| {
            let at = kept.iter().position(|kept| kept.class == class.name);
            let judge = at.map(|at| Judge::resume(kept.swap_remove(at)));
            Seat {
                judge: judge.unwrap_or_default(),
                ordered: Vec::new(),
            }
        };
        Remote {
            begun: now,
            judges: classes.iter().map(seat).collect(),
            ..Remote::default()
        }
    }

    fn keep(&self, classes: &[Class], now: u64) -> Vec<OfClass> {
        let judges = self.judges.iter().zip(classes);
        let kept = judges.map(|(seat, class)| seat.judge.keep(class, now));
        kept.filter(|kept| kept.first.is_some()).collect()
    }

    fn take(&mut self, now: u64, report: PathReport, reading: u64) {
        let known = self.paths.iter().position(|path| path.report.path == report.path);
        let at = known.unwrap_or(self.paths.len());
        if at == PATHS_MAX {
            return;
        }
        if known.is_none() {
            self.paths.push(Path::new(report));
        }
        let path = &mut self.paths[at];
        let before = std::mem::replace(&mut path.report, report);
        if report.since < before.since && report.samples >= before.samples {
            // The table is older than what the engine has said meanwhile.
            let now = &mut path.report;
            (now.since, now.state, now.why) = (before.since, before.state, before.why);
        } else if report.since != before.since {
            path.was_down |= before.state == PathState::Up && report.state == PathState::Up;
        }
        path.seen = reading;
        path.window.take(now, &report);
        path.measured = path.window.measured(now);
    }

    fn judge(&mut self, wanted: &Wanted, now: u64, mut tell: impl FnMut(u8, ChangeKind)) {
        let paths: Vec<Now<'_>> = self.paths.iter().map(|path| path.now(&wanted.links)).collect();
        self.judges.resize_with(wanted.classes.len(), Seat::default);
        for (number, (seat, class)) in self.judges.iter_mut().zip(&wanted.classes).enumerate() {
            let turn = seat.judge.turn(class, now, &paths);
            let graded = turn.graded.into_iter().map(ChangeKind::Graded);
            let moved = turn.moved.map(ChangeKind::Moved);
            graded.chain(moved).for_each(|kind| tell(number as u8, kind));
        }
        self.paths.iter_mut().for_each(|path| path.was_down = false);
    }

    /// What was measured of a path of this name.
    pub fn measured(&self, path: PathName) -> Option<&Measured> {
        let found = self.paths.iter().find(|known| known.report.path == path);
        found.map(|path| &path.measured)
    }

    /// Its paths.
    pub fn paths(&self) -> &[Path] {
        &self.paths
    }

    /// The judge of this class.
    pub fn judge_of(&self, class: usize) -> Option<&Judge> {
        self.judges.get(class).map(|seat| &seat.judge)
    }
}

impl Path {
    fn new(report: PathReport) -> Path {
        Path {
            report,
            window: Window::default(),
            measured: Measured::default(),
            was_down: false,
            seen: 0,
            budget: Budget::default(),
        }
    }

    fn now(&self, links: &[Links; LINKS]) -> Now<'_> {
        Now {
            path: self.report.path,
            state: self.report.state,
            why: self.report.why,
            was_down: self.was_down,
            measured: &self.measured,
            links: links[usize::from(self.report.path.local) % LINKS],
        }
    }
}
