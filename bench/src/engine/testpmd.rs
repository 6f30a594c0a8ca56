//! DPDK's own forwarder as a yardstick: dpdk-testpmd exchanging link addresses of what a device brings and takes.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use patronus_netns::{Error, Result};

use crate::report::median;

/// How long it runs, seconds, and how often it says how fast.
const SECONDS: u64 = 4;

/// Packets a second of one core, from each device's port to itself, all together: `net_null0,size=64`, for instance.
pub fn macswap(devices: &[String]) -> Result<f64> {
    let mut child = Command::new("dpdk-testpmd")
        .args([
            "--lcores=0@0,1@1",
            "--no-pci",
            "--in-memory",
            "-m",
            "256",
            "--log-level=3",
        ])
        .args(devices.iter().map(|device| format!("--vdev={device}")))
        .args([
            "--",
            "-a",
            "--stats-period=1",
            "--forward-mode=macswap",
            "--port-topology=loop",
            // What a ring returns has to be there first. A source has it anyway.
            "--tx-first",
            "--total-num-mbufs=16384",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| {
            Error::new(format!(
                "dpdk-testpmd does not start ({e}): install Debian's dpdk-dev"
            ))
        })?;
    std::thread::sleep(Duration::from_secs(SECONDS));
    // Asked to end, it says what it has not said yet.
    let pid = Pid::from_raw(child.id() as i32);
    kill(pid, Signal::SIGINT).map_err(|e| Error::new(format!("dpdk-testpmd: {e}")))?;
    let (mut said, mut complained) = (String::new(), String::new());
    let read = |from: Option<&mut dyn Read>, into: &mut String| {
        // What cannot be read is as good as nothing said.
        let _ = from.map(|from| from.read_to_string(into));
    };
    read(child.stdout.as_mut().map(|out| out as _), &mut said);
    read(child.stderr.as_mut().map(|err| err as _), &mut complained);
    let _ = child.wait();
    let rates: Vec<f64> = said
        .lines()
        .filter_map(|line| {
            line.split_once("Tx-pps:")?
                .1
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .collect();
    // It speaks of one port after the other.
    let rates = rates.chunks_exact(devices.len()).map(|ports| ports.iter().sum());
    median(rates.filter(|rate| *rate > 0.0)).ok_or_else(|| {
        Error::new(format!(
            "dpdk-testpmd forwarded nothing; are there 128 free huge pages (/proc/sys/vm/nr_hugepages)? It said: {}",
            complained.trim()
        ))
    })
}
