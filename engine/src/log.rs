//! Messages for people, on standard error or in the system's log: few, and never from the data path.

use std::fmt;
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;

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
    system: Option<Arc<UnixDatagram>>,
}

impl Log {
    /// Messages about `interface`.
    pub fn new(interface: &str, level: Level) -> Self {
        Log {
            interface: interface.to_owned(),
            level,
            system: None,
        }
    }

    /// From now on to the system's log too, for a process whose standard error nobody sees. Called before system calls are
    /// filtered. Where nobody listens at `socket` (`/dev/log`, as syslog(3) has it), nothing changes.
    pub fn add_system_log(&mut self, socket: &Path) {
        let connect = || {
            let log = UnixDatagram::unbound()?;
            log.connect(socket)?;
            // A log that is stuck must not hold the slow path up.
            log.set_nonblocking(true)?;
            Ok::<_, io::Error>(log)
        };
        self.system = connect().ok().map(Arc::new);
    }

    /// Something that somebody must act on.
    pub fn error(&self, message: fmt::Arguments<'_>) {
        self.write(Level::Error, message);
    }

    /// The answer to what somebody has asked for by a signal.
    pub fn notice(&self, message: fmt::Arguments<'_>) {
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
            if let Some(system) = &self.system {
                // Facility 3, daemons; severity 3, error, or 6, information (RFC 3164).
                let priority = 3 * 8 + if level == Level::Error { 3 } else { 6 };
                let line = format!("<{priority}>patronus-engine: {}: {message}", self.interface);
                let _ = system.send(line.as_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_log_hears_what_is_important_enough() {
        let path = std::env::temp_dir().join(format!("patronus-log-{}", std::process::id()));
        let listener = UnixDatagram::bind(&path).expect("a socket of our own");
        listener.set_nonblocking(true).expect("a socket takes that");
        let mut log = Log::new("wg7", Level::Error);
        log.add_system_log(&path);
        std::fs::remove_file(&path).expect("made above");
        log.verbose(format_args!("detail"));
        log.error(format_args!("no {}", "port"));
        let mut said = [0; 100];
        let len = listener.recv(&mut said).expect("one message");
        assert_eq!(said[..len], *b"<27>patronus-engine: wg7: no port");
        assert!(listener.recv(&mut said).is_err(), "and no other");
    }

    #[test]
    fn nobody_need_listen() {
        let mut log = Log::new("wg7", Level::Error);
        log.add_system_log(Path::new("/nonexistent/log"));
        log.error(format_args!("said on standard error only"));
    }
}
