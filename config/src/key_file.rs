//! Files with one secret key each, in base64 as `patronus keygen`, `patronus genpsk` and `wg` write them.
//!
//! Read by the engine's slow path. The text passes through locked memory only, and what is checked is the file that was opened, not its name.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use base64ct::{Base64, Encoding};
use patronus_mem::Secret;
use serde::Deserialize;
use toml::Spanned;

use crate::error::Error;

/// Characters of a key.
const KEY_TEXT: usize = 44;

/// Why a key could not be had.
#[derive(Debug)]
pub enum KeyError {
    /// The file cannot be read.
    Io(PathBuf, io::Error),
    /// Others may read or change the file.
    Open(PathBuf, u32),
    /// The file belongs to this user, who is neither root nor the one that we run as.
    Owner(PathBuf, u32),
    /// The file holds something else.
    NotAKey(PathBuf),
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyError::Io(path, error) => write!(f, "key file {}: {error}", path.display()),
            KeyError::Open(path, mode) => {
                let path = path.display();
                write!(
                    f,
                    "key file {path}: others may use it (mode {mode:04o}): `chmod 600 {path}`"
                )
            }
            KeyError::Owner(path, owner) => {
                let path = path.display();
                write!(
                    f,
                    "key file {path}: belongs to user {owner}, who may change it: `chown root {path}`"
                )
            }
            KeyError::NotAKey(path) => write!(
                f,
                "key file {}: expected a key in base64, as `patronus keygen` writes it, and nothing else",
                path.display()
            ),
        }
    }
}

impl std::error::Error for KeyError {}

impl KeyError {
    /// The file.
    pub fn path(&self) -> &Path {
        match self {
            KeyError::Io(path, _)
            | KeyError::Open(path, _)
            | KeyError::Owner(path, _)
            | KeyError::NotAKey(path) => path,
        }
    }

    /// The same as an error of the site's file `file`, whose text this is: at the line that names the key's file, with what to do.
    pub fn in_file(&self, file: &Path, text: &str) -> Error {
        let path = self.path().display();
        let (said, hint) = match self {
            KeyError::Io(_, error) if error.kind() == io::ErrorKind::NotFound => (
                "there is no such file".to_owned(),
                format!("`patronus keygen {path}` makes a key"),
            ),
            KeyError::Io(_, error) if error.kind() == io::ErrorKind::PermissionDenied => (
                error.to_string(),
                format!(
                    "run this as root, or let the control process open it: `chgrp patronus-control {path} && chmod 640 {path}`"
                ),
            ),
            KeyError::Io(_, error) => (
                error.to_string(),
                "expected an ordinary file that holds a key".to_owned(),
            ),
            KeyError::Open(_, mode) => (
                format!("others may use this file (mode {mode:04o})"),
                format!("`chmod 600 {path}`"),
            ),
            KeyError::Owner(_, owner) => (
                format!("this file belongs to user {owner}, who may change it"),
                format!("`chown root {path}`"),
            ),
            KeyError::NotAKey(_) => (
                "this file holds something else than a key in base64".to_owned(),
                "as `patronus keygen` writes it, and nothing else".to_owned(),
            ),
        };
        let error = match named_at(file, text, self.path()) {
            Some(span) => Error::at(text, span, said),
            None => Error::nowhere(format!("key file {path}: {said}")),
        };
        error.with_hint(hint).in_file(file)
    }
}

/// What of a site's file names files with keys.
#[derive(Deserialize)]
struct Named {
    site: Own,
    #[serde(default)]
    peer: Vec<Shared>,
    #[serde(default)]
    remote: Vec<Shared>,
}

#[derive(Deserialize)]
struct Own {
    private_key_file: Spanned<PathBuf>,
}

#[derive(Deserialize)]
struct Shared {
    preshared_key_file: Option<Spanned<PathBuf>>,
}

/// Where the text of `file` first names the file `path`.
fn named_at(file: &Path, text: &str, path: &Path) -> Option<Range<usize>> {
    let named: Named = toml::from_str(text).ok()?;
    let shared = named.peer.into_iter().chain(named.remote);
    let shared = shared.filter_map(|peer| peer.preshared_key_file);
    let folder = file.parent().unwrap_or(Path::new(""));
    let mut all = std::iter::once(named.site.private_key_file).chain(shared);
    all.find(|one| folder.join(one.get_ref()) == path)
        .map(|one| one.span())
}

/// Opens a file to be read, if it is an ordinary one. Never waits: for a FIFO nobody may ever come.
pub fn open_regular(path: &Path) -> io::Result<File> {
    use rustix::fs::{CWD, Mode, OFlags, openat};
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(openat(CWD, path, flags, Mode::empty())?);
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not an ordinary file",
        ))
    }
}

/// Opens a key file, if nobody else may read it. Looks at what was opened, whatever stands under the name meanwhile, and reads nothing.
pub fn open(path: &Path) -> Result<File, KeyError> {
    let file = open_regular(path).map_err(|error| KeyError::Io(path.to_owned(), error))?;
    check_open(&file, path).map(|()| file)
}

/// Reads the key in a file.
pub fn read(path: &Path) -> Result<Secret<32>, KeyError> {
    let file = open_regular(path).map_err(|error| KeyError::Io(path.to_owned(), error))?;
    read_open(file, path)
}

/// Whether a file that was opened as `path` may hold a key: nobody but its owner can change it or read it, but a group that is let in to read.
pub fn check_open(file: &File, path: &Path) -> Result<(), KeyError> {
    let meta = file
        .metadata()
        .map_err(|error| KeyError::Io(path.to_owned(), error))?;
    let mode = meta.mode() & 0o7777;
    // The owner alone; a group may be let in to read, as secrets of services often are.
    if mode & 0o037 != 0 {
        return Err(KeyError::Open(path.to_owned(), mode));
    }
    if meta.uid() != 0 && meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(KeyError::Owner(path.to_owned(), meta.uid()));
    }
    Ok(())
}

/// Reads the key in a file that was opened as `path`, wherever that was.
pub fn read_open(file: File, path: &Path) -> Result<Secret<32>, KeyError> {
    check_open(&file, path)?;
    let io_error = |error| KeyError::Io(path.to_owned(), error);
    let mut text = Secret::<64>::zeroed();
    let mut len = 0;
    while len < text.len() {
        // From its beginning, wherever who opened it or read it before has left off.
        match file.read_at(&mut text[len..], len as u64).map_err(io_error)? {
            0 => break,
            more => len += more,
        }
    }
    let not_a_key = || KeyError::NotAKey(path.to_owned());
    let (key, rest) = text[..len].split_at_checked(KEY_TEXT).ok_or_else(not_a_key)?;
    if !rest.iter().all(u8::is_ascii_whitespace) {
        return Err(not_a_key());
    }
    let mut secret = Secret::<32>::zeroed();
    match Base64::decode(key, &mut *secret) {
        Ok(decoded) if decoded.len() == 32 => Ok(secret),
        _ => Err(not_a_key()),
    }
}
