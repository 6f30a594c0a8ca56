//! The configuration of a site, as people write it: one TOML file.
//!
//! * [`Config`] and what it is made of: the schema
//! * [`value`]: durations, keys, networks, endpoints
//! * [`Error`]: where in the file something is wrong, what was expected, and what may have been meant
//! * [`key_file`]: secrets, which never stand in the file itself
//!
//! [`parse`] is sans-IO; [`load`] reads a file. What parses is complete and consistent: nobody has to check it again.
//! Read by the engine at its start and when it is told to (SIGHUP).

#![forbid(unsafe_code)]

mod check;
mod error;
pub mod key_file;
mod schema;
pub mod value;

use std::io::Read;
use std::path::Path;

pub use error::Error;
pub use schema::{Config, Engine, Link, Peer, Site};

/// Bytes of a file at most.
pub const FILE_MAX: u64 = 16 << 20;

/// Reads a configuration. Relative paths in it are looked for beside the file.
pub fn load(path: &Path) -> Result<Config, Error> {
    let mut text = String::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(FILE_MAX + 1).read_to_string(&mut text));
    if let Err(error) = read {
        return Err(Error::of_file(path, &error.to_string()));
    }
    if text.len() as u64 > FILE_MAX {
        let limit = FILE_MAX >> 20;
        return Err(Error::of_file(path, &format!("longer than {limit} MiB")));
    }
    let mut config = parse(&text).map_err(|error| error.in_file(path))?;
    config.resolve_paths(path.parent().unwrap_or(Path::new("")));
    Ok(config)
}

/// Understands the text of a configuration.
pub fn parse(text: &str) -> Result<Config, Error> {
    let config = toml::from_str(text).map_err(|error| Error::of_toml(text, &error))?;
    check::check(text, &config)?;
    Ok(config)
}
