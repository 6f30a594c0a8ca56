//! What an engine counts and holds at a moment, and what became of it: for runs that must drop nothing and must not grow.

use patronus_netns::{Error, Namespace, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// Resident memory may differ by this part.
pub const MEMORY_TOLERANCE: f64 = 0.02;

/// What one engine counts and holds.
pub struct Reading {
    /// Every counter, by name.
    counters: BTreeMap<String, u64>,
    /// Resident memory, KiB.
    pub resident: u64,
}

impl Reading {
    /// Reads the engine with this TUN and process id, by the program `engine`.
    pub fn take(namespace: &Namespace, interface: &str, pid: u32, engine: &Path) -> Result<Reading> {
        let text = namespace.exec(&engine.to_string_lossy(), &["--stats", interface])?;
        Ok(Reading {
            counters: counters(&text),
            resident: resident_of(pid)?,
        })
    }

    /// The counters of packets that disappeared that have risen, and by how much.
    pub fn drops_since<'a>(&'a self, before: &'a Reading) -> impl Iterator<Item = (&'a str, u64)> {
        let drops = self.counters.iter().filter(|(name, _)| is_drop(name));
        let risen = drops.map(|(name, value)| {
            let old = *before.counters.get(name).unwrap_or(&0);
            (name.as_str(), value.saturating_sub(old))
        });
        risen.filter(|(_, more)| *more > 0)
    }

    /// Whether there are counters of drops at all: else nothing is said by their silence.
    pub fn has_drop_counters(&self) -> bool {
        self.counters.keys().any(|name| is_drop(name))
    }

    /// By which part resident memory has grown.
    pub fn growth_since(&self, before: &Reading) -> f64 {
        self.resident as f64 / before.resident.max(1) as f64 - 1.0
    }
}

/// Resident memory of a process, KiB.
pub fn resident_of(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    resident(&status).ok_or_else(|| Error::new("no VmRSS in /proc/PID/status"))
}

/// `VmRSS` of /proc/PID/status, KiB.
fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Lines `name=value`.
fn counters(text: &str) -> BTreeMap<String, u64> {
    let pair = |line: &str| {
        let (name, value) = line.split_once('=')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}

/// Whether a counter counts packets that disappeared: the stages' reasons, and at the ports all that is not traffic.
fn is_drop(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    let port = last.starts_with("rx_") || last.starts_with("tx_");
    let traffic = ["_packets", "_bytes", "_calls"]
        .iter()
        .any(|end| last.ends_with(end));
    name.contains(".drop.") || (port && !traffic)
}

#[cfg(test)]
pub fn reading(text: &str, resident: u64) -> Reading {
    Reading {
        counters: counters(text),
        resident,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_told_from_traffic() {
        for name in [
            "worker0.drop.decap-replay",
            "tun0.tx_no_buffer",
            "udp0.rx_no_frame",
        ] {
            assert!(is_drop(name), "{name}");
        }
        for name in [
            "worker0.stage.encap.packets",
            "tun0.rx_packets",
            "udp0.tx_calls",
            "worker0.sleeps",
        ] {
            assert!(!is_drop(name), "{name}");
        }
    }

    #[test]
    fn what_has_risen_is_named() {
        let before = reading("w.drop.x=3\nw.drop.y=1\nw.sleeps=5\n", 1000);
        let after = reading("w.drop.x=5\nw.drop.y=1\nw.sleeps=9\ntun0.tx_no_buffer=1\n", 1010);
        let risen: Vec<_> = after.drops_since(&before).collect();
        assert_eq!(risen, [("tun0.tx_no_buffer", 1), ("w.drop.x", 2)]);
        assert!((after.growth_since(&before) - 0.01).abs() < 1e-9);
    }

    #[test]
    fn resident_memory_is_found() {
        assert_eq!(resident("Name:\tx\nVmRSS:\t   12345 kB\n"), Some(12345));
        assert_eq!(resident("Name:\tx\n"), None);
    }
}
