//! The configuration of a site, as people write it: one TOML file.
//!
//! * [`Config`] and what it is made of: the schema
//! * [`value`]: durations, keys, networks, endpoints; [`matching`]: what policies and routes are made of; [`Number`]: what has a range
//! * [`steering`]: classes; [`services`]: what the control process does beside
//! * [`Error`]: where in the file something is wrong, what was expected, and what may have been meant
//! * [`Warning`]: what is not wrong, and should be looked at
//! * [`key_file`]: secrets, which never stand in the file itself
//! * [`json_schema`], [`keys`]: what editors are told
//! * [`import_wg_quick`]: from the file that people have
//! * [`diff`]: what it takes to get from one to another, in words
//! * [`Config::compile`]: what an engine takes, as `patronus_abi` has it
//!
//! [`parse`] is sans-IO; [`load`] reads a file. What parses is complete and consistent: nobody has to check it again.
//! Read at the engine's start, and by the process beside it that reads the file again (SIGHUP).

#![forbid(unsafe_code)]

mod check;
mod compile;
mod describe;
mod dpdk;
mod error;
mod hints;
pub mod import;
pub mod key_file;
pub mod keys;
pub mod matching;
mod number;
mod on_link;
pub mod plan;
mod schema;
mod schema_for_editors;
pub mod services;
pub mod steering;
pub mod value;
mod warning;

use std::io::Read;
use std::path::Path;

pub use toml::Spanned;

pub use check::{AEADS, HOST};
pub use error::Error;
pub use import::{Imported, import_wg_quick};
pub use number::Number;
pub use plan::{Plan, diff};
pub use schema::{
    Action, Config, Dpdk, Engine, Lan, Link, LinkPort, Neighbour, Peer, Policy, PortKind, Route, Site,
    Workers,
};
pub use schema_for_editors::json_schema;
pub use warning::Warning;

/// Bytes of a file at most.
pub const FILE_MAX: u64 = 16 << 20;

/// Reads a configuration. Relative paths in it are looked for beside the file.
pub fn load(path: &Path) -> Result<Config, Error> {
    parse_file(path, &read(path)?)
}

/// The text of a file.
pub fn read(path: &Path) -> Result<String, Error> {
    let wrong = |message: &str| Error::of_file(path, message);
    let mut text = String::new();
    let mut file = key_file::open_regular(path).map_err(|error| wrong(&error.to_string()))?;
    let read = file.by_ref().take(FILE_MAX + 1).read_to_string(&mut text);
    read.map_err(|error| wrong(&error.to_string()))?;
    if text.len() as u64 > FILE_MAX {
        let limit = FILE_MAX >> 20;
        return Err(wrong(&format!("longer than {limit} MiB")));
    }
    Ok(text)
}

/// Understands the text of the file `path`.
pub fn parse_file(path: &Path, text: &str) -> Result<Config, Error> {
    let mut config = parse(text).map_err(|error| error.in_file(path))?;
    config.resolve_paths(path.parent().unwrap_or(Path::new("")));
    let warnings = config.warnings.0.into_iter();
    config.warnings.0 = warnings.map(|warning| warning.in_file(path)).collect();
    Ok(config)
}

/// Understands the text of a configuration.
pub fn parse(text: &str) -> Result<Config, Error> {
    understand(text).map_err(|error| error.with_example(text))
}

fn understand(text: &str) -> Result<Config, Error> {
    let mut config: Config = toml::from_str(text).map_err(|error| Error::of_toml(text, &error))?;
    config.gather_remotes();
    check::check(text, &config)?;
    config.warnings = warning::of(text, &config);
    Ok(config)
}
