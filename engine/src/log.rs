//! Messages for people, on standard error: few, and never from the data path.

use std::fmt;
use std::io::{self, Write};

/// How much is said.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Level {
    /// Nothing.
    Silent,
    /// What somebody must act on.
    #[default]
    Error,
    /// Sessions and state changes too.
    Verbose,
}

impl Level {
    /// From the environment variable that wireguard-go reads too: `silent`, `error`, or `verbose` (also `debug`).
    pub fn from_env(value: Option<&str>) -> Level {
        match value {
            Some("silent") => Level::Silent,
            Some("verbose" | "debug") => Level::Verbose,
            _ => Level::Error,
        }
    }
}

/// Writes messages that are important enough, with the interface's name in front.
#[derive(Clone, Debug)]
pub struct Log {
    interface: String,
    level: Level,
}

impl Log {
    /// Messages about `interface`.
    pub fn new(interface: &str, level: Level) -> Self {
        Log {
            interface: interface.to_owned(),
            level,
        }
    }

    /// Something that somebody must act on.
    pub fn error(&self, message: fmt::Arguments<'_>) {
        self.write(Level::Error, message);
    }

    /// Something that helps to understand what the engine does.
    pub fn verbose(&self, message: fmt::Arguments<'_>) {
        self.write(Level::Verbose, message);
    }

    fn write(&self, level: Level, message: fmt::Arguments<'_>) {
        if level <= self.level {
            // The terminal may be gone: then nobody reads this, and nothing depends on it.
            let _ = writeln!(io::stderr(), "patronus-engine {}: {message}", self.interface);
        }
    }
}
