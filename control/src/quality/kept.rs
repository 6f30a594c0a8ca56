//! What is known of paths that has to survive this process: which are on probation, by which each class goes, and why.
//!
//! Without it a control process that is started anew knows nothing of what was wrong a second ago, and leads flows back to where they have just left. It belongs to one life of the
//! engine, whose boot id it has; that life is within one of the machine, so its times, nanoseconds of CLOCK_BOOTTIME, mean the same. It comes from a file: times of the future are
//! taken for now, names that no path can have are passed over, and so is what there is too much of.

use patronus_abi::channel::{PATHS_MAX, PathName};
use serde::{Deserialize, Serialize};

use super::judge::Why;
use super::verdict::Fault;

/// Classes of a remote that are taken from a file at most.
const CLASSES_MAX: usize = 256;

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// The engine whose paths they are.
    pub engine: [u8; 16],
    /// By remotes, those of which there is something to say.
    pub remotes: Vec<OfRemote>,
}

/// Of a remote.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OfRemote {
    /// Its public key.
    pub key: [u8; 32],
    /// By classes.
    pub classes: Vec<OfClass>,
}

/// Of a class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OfClass {
    /// Its name.
    pub class: String,
    /// By which path it goes.
    pub first: Option<OfFirst>,
    /// Paths on probation, and those that were passed lately.
    pub paths: Vec<OfPath>,
}

/// The path that a class goes by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OfFirst {
    /// The numbers of its links, ours first.
    pub links: [u8; 2],
    /// Since when.
    pub since: u64,
    /// Why.
    pub why: Why,
}

/// A path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OfPath {
    /// The numbers of its links, ours first.
    pub links: [u8; 2],
    /// What was wrong with it last; none: it is good.
    pub poor: Option<Fault>,
    /// That was still so. Then it was so until it is seen again.
    pub is_bad: bool,
    /// See [`Entry`](super::judge::Entry).
    pub bad_at: Option<u64>,
    /// See [`Entry`](super::judge::Entry).
    pub left_at: Option<u64>,
    /// See [`Entry`](super::judge::Entry).
    pub passed_at: Option<u64>,
}

impl OfClass {
    /// The same as somebody may rely on it at this time.
    pub fn checked(mut self, now: u64) -> OfClass {
        self.first = self.first.filter(|first| name(first.links).is_some());
        self.first
            .iter_mut()
            .for_each(|first| first.since = first.since.min(now));
        self.paths.retain(|path| name(path.links).is_some());
        self.paths.truncate(PATHS_MAX);
        for path in &mut self.paths {
            let times = [&mut path.bad_at, &mut path.left_at, &mut path.passed_at];
            times.into_iter().flatten().for_each(|at| *at = (*at).min(now));
            if path.is_bad {
                path.bad_at = path.bad_at.or(Some(now));
            }
        }
        self
    }
}

impl OfRemote {
    /// The same as somebody may rely on it at this time.
    pub fn checked(mut self, now: u64) -> OfRemote {
        self.classes.truncate(CLASSES_MAX);
        let classes = std::mem::take(&mut self.classes).into_iter();
        self.classes = classes.map(|class| class.checked(now)).collect();
        self
    }
}

/// The path over these links, if there can be one.
pub fn name(links: [u8; 2]) -> Option<PathName> {
    let [local, remote] = links;
    links
        .iter()
        .all(|link| (1..=15).contains(link))
        .then_some(PathName { local, remote })
}

/// The numbers of a path's links.
pub fn links(path: PathName) -> [u8; 2] {
    [path.local, path.remote]
}

/// Why a path is up or down, by its word.
pub mod word {
    use patronus_abi::channel::PathWhy;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    const ALL: [PathWhy; 6] = [
        PathWhy::New,
        PathWhy::Heard,
        PathWhy::Silent,
        PathWhy::NotHeard,
        PathWhy::NoSession,
        PathWhy::LinkGone,
    ];

    /// As a word.
    pub fn serialize<S: Serializer>(why: &PathWhy, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(why.word())
    }

    /// From a word.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathWhy, D::Error> {
        let word = String::deserialize(deserializer)?;
        let found = ALL.into_iter().find(|why| why.word() == word);
        found.ok_or_else(|| D::Error::custom("no such word"))
    }
}
