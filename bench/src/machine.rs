//! The machine and its settings, printed at the head of a run, because figures mean nothing without them.

use patronus_netns::{Error, Result};
use std::fs;
use std::time::{Duration, Instant};

/// Socket buffer limits that `--set-sysctls` sets, bytes.
const BUFFER_MAX: u32 = 4 << 20;

fn read(path: &str) -> String {
    fs::read_to_string(path)
        .unwrap_or_default()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

/// Kernel, processor and load, as lines `name: value`.
pub fn processor() -> Vec<(&'static str, String)> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = cpuinfo
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_default();
        line.split(": ").nth(1).unwrap_or("unknown").to_owned()
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    vec![
        ("kernel", read("/proc/sys/kernel/osrelease")),
        (
            "cpu",
            format!(
                "{} (family {}, model {}), {cores} cores",
                field("model name"),
                field("cpu family"),
                field("model\t")
            ),
        ),
        ("load before", read("/proc/loadavg")),
    ]
}

/// The same and the network's settings.
pub fn settings() -> Vec<(&'static str, String)> {
    let sysctl = |key: &str| read(&format!("/proc/sys/net/{}", key.replace('.', "/")));
    let mut settings = processor();
    settings.extend([
        (
            "net.core.rmem_max wmem_max",
            format!("{} {}", sysctl("core.rmem_max"), sysctl("core.wmem_max")),
        ),
        (
            "net.core.rmem_default wmem_default",
            format!("{} {}", sysctl("core.rmem_default"), sysctl("core.wmem_default")),
        ),
        ("net.ipv4.tcp_rmem", sysctl("ipv4.tcp_rmem")),
        ("net.ipv4.tcp_wmem", sysctl("ipv4.tcp_wmem")),
        ("congestion control", sysctl("ipv4.tcp_congestion_control")),
        ("net.core.default_qdisc", sysctl("core.default_qdisc")),
    ]);
    settings
}

/// The machine in one line, for the picture.
pub fn summary() -> String {
    let settings = settings();
    let value = |name| settings.iter().find(|s| s.0 == name).map_or("", |s| s.1.as_str());
    format!("{}; Linux {}", value("cpu"), value("kernel"))
}

/// Processes that wanted a CPU in the last minute, on average.
pub fn load() -> f64 {
    read("/proc/loadavg")
        .split(' ')
        .next()
        .and_then(|field| field.parse().ok())
        .unwrap_or(0.0)
}

/// Sets the machine's socket buffer limits.
pub fn set_sysctls() -> Result<()> {
    for key in ["rmem_max", "wmem_max"] {
        let path = format!("/proc/sys/net/core/{key}");
        fs::write(&path, BUFFER_MAX.to_string()).map_err(|e| Error::new(format!("net.core.{key}: {e}")))?;
    }
    Ok(())
}

/// How much of the machine's CPUs was unused until now.
pub struct Unused {
    at: Instant,
    /// Clock ticks of 10 ms, all CPUs together.
    ticks: u64,
}

impl Unused {
    /// Until now. Idle time is what the kernel measures; it samples what it says of the busy time's parts.
    pub fn now() -> Unused {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        Unused {
            at: Instant::now(),
            ticks: unused_ticks(&stat),
        }
    }

    /// The CPU time that everything together has used since, softirqs included.
    pub fn used_since(&self) -> Duration {
        let now = Unused::now();
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as u32;
        let unused = Duration::from_millis(10 * now.ticks.saturating_sub(self.ticks));
        ((now.at - self.at) * cores).saturating_sub(unused)
    }
}

/// `idle`, `iowait` and `steal` of /proc/stat (proc_stat(5)).
fn unused_ticks(stat: &str) -> u64 {
    let fields: Vec<u64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    [3, 4, 7].iter().filter_map(|at| fields.get(*at)).sum()
}

/// Time that the host took from this machine's CPUs so far (`steal` of /proc/stat), in clock ticks of 10 ms.
pub fn stolen_ticks() -> u64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let steal = stat
        .split_whitespace()
        .nth(8)
        .and_then(|field| field.parse().ok());
    steal.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unused_is_idle_waiting_and_stolen() {
        assert_eq!(
            unused_ticks("cpu  1 2 4 8 16 32 64 128 0 0\ncpu0 1 1 1 1\n"),
            8 + 16 + 128
        );
        assert_eq!(unused_ticks(""), 0);
    }

    #[test]
    fn a_moment_uses_no_more_than_there_is() {
        let before = Unused::now();
        std::thread::sleep(Duration::from_millis(30));
        let cores = std::thread::available_parallelism().unwrap().get() as u32;
        assert!(before.used_since() <= before.at.elapsed() * cores);
    }
}
