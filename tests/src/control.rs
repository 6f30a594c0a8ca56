//! The engine's control socket, spoken without `wg`, and its counters.

use patronus_netns::{Daemon, Error, RUNTIME_DIR, Result};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Sends `request` to the control socket of `interface` and gives everything that comes back.
pub fn uapi(interface: &str, request: &str) -> Result<String> {
    let path = Path::new(RUNTIME_DIR).join(format!("{interface}.sock"));
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(request.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    Ok(reply)
}

/// The value of the first line `key=value` in the answer to `get=1`.
pub fn uapi_value(interface: &str, key: &str) -> Result<String> {
    let reply = uapi(interface, "get=1\n\n")?;
    let value = reply
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    value
        .map(str::to_owned)
        .ok_or_else(|| Error::new(format!("{interface} has no {key}")))
}

/// The counters of an engine.
#[derive(Clone, Debug)]
pub struct Stats(BTreeMap<String, u64>);

/// The counters of a running engine, as `patronus-engine --stats NAME` prints them.
pub fn stats(daemon: &Daemon) -> Result<Stats> {
    stats_of(daemon.interface())
}

/// The same, by the name of its TUN.
pub fn stats_of(interface: &str) -> Result<Stats> {
    let program = crate::engine_program();
    let output = std::process::Command::new(program)
        .args(["--stats", interface])
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let counters = text.lines().filter_map(|line| {
        let (name, value) = line.split_once('=')?;
        Some((name.to_owned(), value.parse().ok()?))
    });
    let counters = Stats(counters.collect());
    if !output.status.success() || counters.0.is_empty() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Error::new(format!("--stats: {}: {said}{text}", output.status)));
    }
    Ok(counters)
}

impl Stats {
    /// The sum of the counters whose names end like this, over workers and ports.
    pub fn sum(&self, end: &str) -> u64 {
        let matching = self.0.iter().filter(|(name, _)| name.ends_with(end));
        let values: Vec<u64> = matching.map(|(_, value)| *value).collect();
        assert!(!values.is_empty(), "there is no counter {end}");
        values.iter().sum()
    }

    /// Whether there is a counter of which the name ends like this.
    pub fn has(&self, end: &str) -> bool {
        self.0.iter().any(|(name, _)| name.ends_with(end))
    }

    /// What is greater than in `before`, with how much.
    pub fn since(&self, before: &Stats) -> BTreeMap<String, u64> {
        let greater = self.0.iter().filter_map(|(name, value)| {
            let more = value.checked_sub(before.0.get(name).copied().unwrap_or(0))?;
            (more > 0).then(|| (name.clone(), more))
        });
        greater.collect()
    }

    /// The packets that the workers dropped, with their reasons.
    pub fn drops(&self) -> Vec<(&str, u64)> {
        let drops = self
            .0
            .iter()
            .filter(|(name, value)| name.contains(".drop.") && **value > 0);
        drops.map(|(name, value)| (name.as_str(), *value)).collect()
    }
}

/// The process that serves `interface`, found by its command line: for one that went to the background by itself.
pub fn background_pid(interface: &str) -> Option<u32> {
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    let mut ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    // It started itself again, by its real path.
    let program = std::fs::canonicalize(crate::engine_program()).ok()?;
    ids.find(|id| {
        let line = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        words
            .next()
            .is_some_and(|word| program.as_os_str().as_bytes() == word)
            && words.any(|word| word == interface.as_bytes())
    })
}
