//! The main thread's part in the quality of paths: reads the engine's table of them, has them judged, tells the engine the orders and which paths are suspect, and writes down what was decided.
//!
//! Called in each round of the main loop. Threads of connections look at the same [`Quality`] meanwhile, for one remote at a time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use patronus_abi::Site;
use patronus_abi::channel::{PathName, PathState};
use patronus_config::Config;
use patronus_link::{Command, Event, Statistics};

use crate::caps::{Caps, Usages};
use crate::decisions::{Decisions, Lately, Limit, Record};
use crate::engine::Engine;
use crate::history::{boot_time, called};
use crate::keep::Keeper;
use crate::quality::judge::Why;
use crate::quality::kept::Kept;
use crate::quality::verdict::Fault;
use crate::quality::{Change, ChangeKind, EVERY, Quality, Wanted};

/// How often somebody looks whether there are paths.
const NONE: Duration = Duration::from_secs(1);
/// Numbers of links are below this.
const LINKS_MAX: u8 = 16;
/// How often what has to survive is looked at.
const KEPT_EVERY: Duration = Duration::from_secs(1);
/// The name of its file.
const NAME: &str = "holds";
/// How long the end of this process waits for the disk.
const PATIENCE: Duration = Duration::from_secs(2);

/// What main thread and connections share of it.
#[derive(Clone, Default)]
pub struct Shared(Arc<Mutex<Quality>>);

impl Shared {
    /// To look at it. Nobody holds it for longer than one remote takes.
    pub fn lock(&self) -> MutexGuard<'_, Quality> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The main thread's part.
pub struct Paths {
    quality: Shared,
    decisions: Arc<Decisions>,
    /// Of the engine that the quality is of.
    boot: [u8; 16],
    again_at: Instant,
    /// The engine has said something of a path that its table did not have yet: until then it is looked for often.
    expected_until: Instant,
    /// The engine has said something of paths since they were judged.
    is_noted: bool,
    keeper: Keeper,
    /// What was kept last. At first by the process before this one.
    kept: Kept,
    keep_at: Instant,
    caps: Caps,
}

impl Paths {
    /// Nothing is known yet but what was kept.
    pub fn new(quality: Shared, decisions: Arc<Decisions>, keeper: Keeper) -> Paths {
        Paths {
            kept: keeper.read(NAME).unwrap_or_default(),
            keep_at: Instant::now(),
            caps: Caps::new(&keeper),
            keeper,
            quality,
            decisions,
            boot: [0; 16],
            again_at: Instant::now(),
            expected_until: Instant::now(),
            is_noted: false,
        }
    }

    /// What threads of connections look at.
    pub fn shared(&self) -> &Shared {
        &self.quality
    }

    /// The same of what was decided.
    pub fn decisions(&self) -> &Arc<Decisions> {
        &self.decisions
    }

    /// And of what has gone by links with a data cap.
    pub fn usages(&self) -> &Usages {
        self.caps.usages()
    }

    /// This is what the engine has, or will have when it comes. Its classes may have other numbers than before, so it is told every order again.
    pub fn configure(&mut self, site: &Site, config: &Config) {
        self.caps.configure(config);
        self.look_at_caps();
        let mut quality = self.quality.lock();
        quality.configure(Wanted::of(site));
        quality.order_again();
    }

    /// An engine is there, perhaps the one of before.
    pub fn attached(&mut self, boot: [u8; 16]) {
        let mut quality = self.quality.lock();
        match self.boot == boot {
            true => quality.order_again(),
            false => {
                quality.forget();
                if self.kept.engine == boot {
                    quality.resume(boot_time(), std::mem::take(&mut self.kept.remotes));
                }
            }
        }
        self.boot = boot;
        self.again_at = Instant::now();
    }

    /// When to [look](Self::look).
    pub fn again_at(&self) -> Instant {
        self.again_at
    }

    /// When to [look at caps](Self::look_at_caps).
    pub fn caps_at(&self) -> Option<Instant> {
        self.caps.again_at()
    }

    /// Counts what goes by links with a data cap, if that is due.
    pub fn look_at_caps(&mut self) {
        let Some(caps) = self.caps.look(&self.keeper) else {
            return;
        };
        let mut quality = self.quality.lock();
        for link in 1..LINKS_MAX {
            let is_used_up = caps
                .iter()
                .any(|(capped, is_used_up)| *capped == link && *is_used_up);
            quality.cap(link, is_used_up);
        }
    }

    /// Has written down what has to survive, if it is something else than before.
    fn keep(&mut self) {
        self.keep_at = Instant::now() + KEPT_EVERY;
        let kept = Kept {
            engine: self.boot,
            remotes: self.quality.lock().keep(boot_time()),
        };
        if kept != self.kept {
            self.keeper.put(NAME, &kept);
            self.kept = kept;
        }
    }

    /// This process ends.
    pub fn finish(&mut self) {
        if self.boot != [0; 16] {
            self.keep();
        }
        self.caps.write(&self.keeper);
        self.keeper.finish(PATIENCE);
    }

    /// The engine has said something.
    pub fn hear(&mut self, event: &Event, config: &Config) {
        let Event::PathState {
            at,
            remote,
            path,
            state,
            why,
        } = event
        else {
            return;
        };
        let mut quality = self.quality.lock();
        quality.note(*at, remote, *path, *state, *why);
        self.is_noted = true;
        let known = quality.remote(remote).and_then(|remote| remote.measured(*path));
        let measured = known.map(Lately::of);
        drop(quality);
        if measured.is_none() {
            let now = Instant::now();
            self.expected_until = now + NONE;
            self.again_at = self.again_at.min(now + EVERY);
        }
        if *state != PathState::Unknown {
            self.decisions.add(Record {
                at: clock_of(*at),
                kind: state.word().to_owned(),
                remote: called(config, remote),
                path: Some(path.to_string()),
                why: why.word().to_owned(),
                measured,
                ..Record::default()
            });
        }
    }

    /// Reads the table if that is due, judges, and orders. `may_order`: the engine has the classes that are judged here.
    pub fn look(&mut self, engine: &mut Engine, table: &Statistics, config: &Config, may_order: bool) {
        let is_due = self.again_at <= Instant::now();
        if !is_due && !self.is_noted {
            return;
        }
        self.is_noted = false;
        let now = boot_time();
        let mut quality = self.quality.lock();
        if is_due {
            quality.take(now, table.paths());
            let there_are = quality.remotes().next().is_some();
            let now = Instant::now();
            self.again_at = now
                + match there_are || now < self.expected_until {
                    true => EVERY,
                    false => NONE,
                };
        }
        for change in quality.judge(now, is_due) {
            self.decisions.add(record(&quality, config, &change));
        }
        if may_order {
            quality.order(now, |order| {
                engine.command(&Command::Order {
                    remote: order.remote,
                    class: order.class,
                    paths: order.paths,
                })
            });
        }
        if is_due {
            quality.suspect(now, |suspicion| {
                engine.command(&Command::Suspect {
                    remote: suspicion.remote,
                    paths: suspicion.paths,
                    length: suspicion.length,
                })
            });
        }
        drop(quality);
        if self.keep_at <= Instant::now() {
            self.keep();
        }
    }
}

fn record(quality: &Quality, config: &Config, change: &Change) -> Record {
    let class = quality.classes().get(usize::from(change.class));
    let measured = |path: PathName| {
        let remote = quality.remote(&change.remote)?;
        remote.measured(path).map(Lately::of)
    };
    let of = Record {
        at: clock_of(change.at),
        remote: called(config, &change.remote),
        class: class.map(|class| class.name.clone()),
        ..Record::default()
    };
    let limit = |fault: Option<Fault>| match fault? {
        Fault::Broken(broken) => Some(Limit::of(&broken)),
        Fault::Down(_) | Fault::Cap => None,
    };
    match &change.kind {
        ChangeKind::Moved(moved) => Record {
            kind: "moved".to_owned(),
            from: moved.from.map(|path| path.to_string()),
            to: Some(moved.to.to_string()),
            why: moved.why.word().to_owned(),
            limit: match moved.why {
                Why::Fault(fault) => limit(Some(fault)),
                _ => None,
            },
            measured: moved.from.and_then(measured),
            measured_to: measured(moved.to),
            ..of
        },
        ChangeKind::Graded(graded) => Record {
            kind: if graded.fault.is_some() { "poor" } else { "good" }.to_owned(),
            path: Some(graded.path.to_string()),
            why: graded.fault.map_or("hold-over", Fault::word).to_owned(),
            limit: limit(graded.fault),
            measured: measured(graded.path),
            ..of
        },
    }
}

/// Seconds from 1970 to a time of CLOCK_BOOTTIME.
pub fn clock_of(at: u64) -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let ago = boot_time().saturating_sub(at) as f64 / 1e9;
    let seconds = now.map_or(0.0, |now| now.as_secs_f64()) - ago;
    (seconds * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use patronus_abi::channel::PathWhy;

    use super::*;

    /// Whoever asks right after the first path is up is not told that there is none.
    #[test]
    fn a_path_that_is_told_of_is_looked_for_at_once() {
        let config = patronus_config::parse_file(Path::new("site.toml"), "[site]\nprivate_key_file = 'k'\n");
        let config = config.expect("a site");
        let mut paths = Paths::new(
            Shared::default(),
            Arc::default(),
            Keeper::open(Path::new("/nonexistent")).0,
        );
        paths.again_at = Instant::now() + NONE;
        let event = Event::PathState {
            at: boot_time(),
            remote: [7; 32],
            path: PathName { local: 1, remote: 1 },
            state: PathState::Up,
            why: PathWhy::Heard,
        };
        paths.hear(&event, &config);
        assert!(paths.again_at <= Instant::now() + EVERY);
        assert!(paths.expected_until > paths.again_at);
    }
}
