//! What is in force and what is only tried, on disk: the text that was applied last, and beside it the one that has to be confirmed, with its deadline.
//!
//! The record is written before a text that has to be confirmed is told to anybody. Whatever happens to this process or the machine afterwards, the next control process
//! finds it: it goes on waiting, or goes back. Once gone back, the record stays as long as the site's file still holds the text that was not confirmed,
//! so that a restart does not bring it back. Called on the main thread.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::keep;

/// The name of the record's file.
const NAME: &str = "applied";

/// What was applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// For good.
    pub applied: String,
    /// To be confirmed, or not confirmed in time.
    pub tried: Option<Tried>,
    /// Which key files were told last, and to whom.
    #[serde(default)]
    pub told: Option<Told>,
}

/// Key files, as an engine was told them: what it has in force does not show them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// The engine.
    pub boot: [u8; 16],
    /// What tells them from others, but not what is in them.
    pub keys: u64,
}

/// A text that was applied and is not confirmed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tried {
    /// The text.
    pub text: String,
    /// Until when it can be confirmed. None: it was not, and what was applied before is in force again.
    pub until: Option<Deadline>,
}

/// A time of this run of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deadline {
    /// The kernel's boot id, as random(4) has it.
    boot: String,
    /// Milliseconds since it was booted, those asleep among them.
    at: u64,
}

impl Deadline {
    /// So long from now.
    pub fn after(time: Duration) -> Deadline {
        Deadline {
            boot: boot_id(),
            at: now() + time.as_millis() as u64,
        }
    }

    /// How long that is from now. It is over if the machine was booted since.
    pub fn left(&self) -> Duration {
        if self.boot != boot_id() {
            return Duration::ZERO;
        }
        Duration::from_millis(self.at.saturating_sub(now()))
    }
}

/// The kernel's boot id, as random(4) has it.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

fn now() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// Where the record is kept.
pub struct Store {
    folder: PathBuf,
}

impl Store {
    /// In this folder, which is there.
    pub fn new(folder: &Path) -> Store {
        Store {
            folder: folder.to_owned(),
        }
    }

    fn file(&self) -> PathBuf {
        keep::file_of(&self.folder, NAME)
    }

    /// The record, if there is one.
    pub fn read(&self) -> io::Result<Option<Record>> {
        match fs::read(self.file()) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes the record: when this returns, it survives whatever comes.
    pub fn write(&self, record: &Record) -> io::Result<()> {
        keep::write(&self.folder, NAME, &serde_json::to_vec(record)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_found_again() {
        let folder = std::env::temp_dir().join(format!("patronus-record-{}", std::process::id()));
        fs::create_dir(&folder).expect("a folder");
        let store = Store::new(&folder);
        assert_eq!(store.read().expect("nothing there"), None);
        let mut record = Record {
            applied: "old".to_owned(),
            tried: Some(Tried {
                text: "new \u{0}".to_owned(),
                until: Some(Deadline::after(Duration::from_secs(60))),
            }),
            told: Some(Told {
                boot: [7; 16],
                keys: u64::MAX,
            }),
        };
        for _ in 0..2 {
            store.write(&record).expect("a folder of ours");
            assert_eq!(store.read().expect("written"), Some(record.clone()));
            record.tried = None;
        }
        fs::write(store.file(), "{").expect("a folder of ours");
        store.read().expect_err("cut off");
        fs::remove_dir_all(&folder).expect("made above");
    }

    #[test]
    fn a_deadline_is_over_after_the_machine_was_booted() {
        let mut deadline = Deadline::after(Duration::from_secs(60));
        let left = deadline.left();
        assert!(left > Duration::from_secs(30) && left <= Duration::from_secs(60));
        deadline.boot = "another".to_owned();
        assert_eq!(deadline.left(), Duration::ZERO);
        assert_eq!(Deadline::after(Duration::ZERO).left(), Duration::ZERO);
    }
}
