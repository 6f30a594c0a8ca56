//! Small files in the state folder that have to survive this process: each is written whole, beside the one of before, and takes its place then.
//!
//! The main thread says what is to be kept and never waits for the disk: a thread of its own writes the newest of each file. What is read at the start is believed no more
//! than the network is: it is bounded, and whoever reads it looks at every value.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::warn;

/// Bytes of a file at most.
const FILE_MAX: u64 = 16 << 20;

/// Writes `NAME.json` in this folder. When this returns, it survives whatever comes; before, the one of before does.
pub fn write(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let beside = folder.join(format!("{name}.new"));
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, file_of(folder, name))?;
    File::open(folder)?.sync_all()
}

/// Where it is.
pub fn file_of(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.json"))
}

/// What a file holds, if it can be understood; what is wrong with it is said.
pub fn read<T: DeserializeOwned>(folder: &Path, name: &str) -> Option<T> {
    let file = file_of(folder, name);
    let read = || {
        let mut bytes = Vec::new();
        let taken = File::open(&file)?.take(FILE_MAX + 1).read_to_end(&mut bytes)?;
        if taken as u64 > FILE_MAX {
            return Err(io::Error::other(format!("longer than {} MiB", FILE_MAX >> 20)));
        }
        serde_json::from_slice(&bytes).map_err(io::Error::from)
    };
    match read() {
        Ok(value) => Some(value),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            warn!(%error, file = %file.display(), "what was kept there is lost");
            None
        }
    }
}

/// What is to be written.
#[derive(Default)]
struct Desk {
    wanted: BTreeMap<&'static str, Vec<u8>>,
    is_writing: bool,
}

#[derive(Default)]
struct Shared {
    desk: Mutex<Desk>,
    bell: Condvar,
}

impl Shared {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The main thread's end.
pub struct Keeper {
    folder: PathBuf,
    shared: Arc<Shared>,
}

/// Writes what is to be kept.
pub struct Writer {
    folder: PathBuf,
    shared: Arc<Shared>,
}

impl Keeper {
    /// Of files in this folder, which is there, and what writes them.
    pub fn open(folder: &Path) -> (Keeper, Writer) {
        let (folder, shared) = (folder.to_owned(), Arc::new(Shared::default()));
        let writer = Writer {
            folder: folder.clone(),
            shared: Arc::clone(&shared),
        };
        (Keeper { folder, shared }, writer)
    }

    /// What the file of this name holds.
    pub fn read<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        read(&self.folder, name)
    }

    /// Has the file of this name hold that, soon.
    pub fn put(&self, name: &'static str, value: &impl Serialize) {
        match serde_json::to_vec(value) {
            Ok(bytes) if bytes.len() as u64 <= FILE_MAX => {
                self.shared.desk().wanted.insert(name, bytes);
                self.shared.bell.notify_all();
            }
            Ok(_) => warn!(name, "this is too much to be kept"),
            Err(error) => warn!(%error, name, "this cannot be kept"),
        }
    }

    /// Waits until all is written, but no longer than that.
    pub fn finish(&self, within: Duration) {
        let until = Instant::now() + within;
        let mut desk = self.shared.desk();
        while !desk.wanted.is_empty() || desk.is_writing {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.shared.bell.wait_timeout(desk, left);
            desk = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Writer {
    /// Starts the thread, which ends with the process.
    pub fn start(self) -> io::Result<()> {
        let thread = std::thread::Builder::new().name("keeper".to_owned());
        thread.spawn(move || self.write_all()).map(drop)
    }

    fn write_all(self) {
        let mut has_failed = false;
        loop {
            let mut desk = self.shared.desk();
            let (name, bytes) = loop {
                if let Some(wanted) = desk.wanted.pop_first() {
                    break wanted;
                }
                let waited = self.shared.bell.wait(desk);
                desk = waited.unwrap_or_else(PoisonError::into_inner);
            };
            desk.is_writing = true;
            drop(desk);
            let written = write(&self.folder, name, &bytes);
            if let Err(error) = &written
                && !has_failed
            {
                warn!(%error, name, "what is to be kept cannot be written down");
            }
            has_failed = written.is_err();
            self.shared.desk().is_writing = false;
            self.shared.bell.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_is_kept_and_what_is_wrong_is_lost() {
        let folder = std::env::temp_dir().join(format!("patronus-kept-{}", std::process::id()));
        fs::create_dir(&folder).expect("a folder");
        let (keeper, writer) = Keeper::open(&folder);
        assert_eq!(keeper.read::<Vec<u32>>("numbers"), None);
        for number in 0..100u32 {
            keeper.put("numbers", &[number]);
        }
        writer.start().expect("a thread");
        keeper.put("others", &"text");
        keeper.finish(Duration::from_secs(30));
        assert_eq!(keeper.read::<Vec<u32>>("numbers"), Some(vec![99]));
        assert_eq!(keeper.read::<String>("others").as_deref(), Some("text"));
        let file = file_of(&folder, "numbers");
        fs::write(&file, "[1").expect("a folder of ours");
        assert_eq!(keeper.read::<Vec<u32>>("numbers"), None, "cut off");
        let long = format!("[{}1]", " ".repeat(FILE_MAX as usize));
        fs::write(&file, long).expect("a folder of ours");
        assert_eq!(keeper.read::<Vec<u32>>("numbers"), None, "too long");
        fs::remove_dir_all(&folder).expect("made above");
    }
}
