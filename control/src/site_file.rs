//! The site's file: its text, what it means, and the key files that it names, opened and never read.
//!
//! Called on the main thread. A file is taken as a whole: whatever is wrong with it or with a key file, nothing of it counts.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use patronus_abi::Site;
use patronus_config::{Config, key_file};

use crate::message::{Code, Failure};

/// A site as its file says.
#[derive(Clone)]
pub struct Loaded {
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
        text: text.into(),
        site: Arc::new(config.compile()),
        config: Arc::new(config),
    })
}

fn wrong(error: &patronus_config::Error) -> Failure {
    Failure::new(Code::BadConfig, error.to_string())
}

impl Loaded {
    /// Its key files, opened for the engine, in the order that it expects.
    pub fn open_keys(&self) -> Result<Vec<File>, Failure> {
        self.config.key_files().map(open_key).collect()
    }
}

/// Opens a key file, if nobody else may read it. Looks at the file that was opened, whatever stands under the name meanwhile.
fn open_key(path: &Path) -> Result<File, Failure> {
    let unreadable = |error| key_file::KeyError::Io(PathBuf::from(path), error);
    let opened = key_file::open_regular(path).map_err(unreadable);
    let checked = opened.and_then(|file| key_file::check_open(&file, path).map(|()| file));
    checked.map_err(|error| {
        let failure = Failure::new(Code::BadConfig, error.to_string());
        match error {
            key_file::KeyError::Io(_, error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                let path = path.display();
                failure.hint(format!(
                    "let the control process open it: `chgrp patronus-control {path} && chmod 640 {path}`"
                ))
            }
            _ => failure,
        }
    })
}
