//! The site's file: its text, what it means, and the key files that it names, opened and never read.
//!
//! Called on the main thread. A file is taken as a whole: whatever is wrong with it or with a key file, nothing of it counts.

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use patronus_abi::Site;
use patronus_config::Config;
use patronus_config::key_file::{self, KeyError};
use tracing::warn;

use crate::message::{Code, Failure};

/// A site as its file says.
#[derive(Clone)]
pub struct Loaded {
    /// The file, which may hold another text by now.
    pub path: PathBuf,
    /// The text that it comes from.
    pub text: Arc<str>,
    /// What it means.
    pub config: Arc<Config>,
    /// What an engine takes.
    pub site: Arc<Site>,
}

/// Reads the file.
pub fn load(path: &Path) -> Result<Loaded, Failure> {
    let text = patronus_config::read(path).map_err(|error| wrong(&error))?;
    understand(path, &text)
}

/// Understands a text as if it stood in the file at `path`.
pub fn understand(path: &Path, text: &str) -> Result<Loaded, Failure> {
    let config = patronus_config::parse_file(path, text).map_err(|error| wrong(&error))?;
    Ok(Loaded {
        path: path.to_owned(),
        text: text.into(),
        site: Arc::new(config.compile()),
        config: Arc::new(config),
    })
}

/// What tells key files from others: which ones they are, how long, and when they were changed.
pub fn identity(keys: &[File]) -> io::Result<u64> {
    let mut hasher = DefaultHasher::new();
    for key in keys {
        let meta = key.metadata()?;
        let changed = (meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec());
        (meta.dev(), meta.ino(), meta.len(), changed).hash(&mut hasher);
    }
    Ok(hasher.finish())
}

fn wrong(error: &patronus_config::Error) -> Failure {
    Failure::new(Code::BadConfig, error.to_string())
}

impl Loaded {
    /// Logs what should be looked at in it.
    pub fn log_warnings(&self) {
        for warning in self.config.warnings() {
            warn!("{warning}");
        }
    }

    /// Its key files, opened for the engine, in the order that it expects.
    pub fn open_keys(&self) -> Result<Vec<File>, Failure> {
        let opened: Result<Vec<File>, KeyError> = self.config.key_files().map(key_file::open).collect();
        opened.map_err(|error| wrong(&error.in_file(&self.path, &self.text)))
    }
}
