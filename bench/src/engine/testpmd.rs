//! DPDK's own forwarder as a yardstick: dpdk-testpmd exchanging link addresses of what a device brings and takes, and two of them that do nothing but send and
//! receive over shared memory.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use patronus_mem::BURST_MAX;
use patronus_netns::{Error, Result};

use crate::report::median;

/// How long it runs and says each second how fast.
const RUN: Duration = Duration::from_secs(4);

/// How many packets it takes and sends at a time if nobody says otherwise.
pub const BURST: usize = 32;

/// How long a server may take until it listens.
const START: Duration = Duration::from_secs(1);

/// Packets a second of one core, from each device's port to itself, all together: `net_null0,size=64`, for instance.
/// With bursts of so many, of which it has [`BURST`] if nobody says otherwise.
pub fn macswap(devices: &[String], burst: usize) -> Result<f64> {
    // What a ring returns has to be there first. A source has it anyway.
    let more = ["--tx-first", &format!("--burst={burst}")];
    let forwarder = Forwarder::start("0@0,1@1", devices, "macswap", &more)?;
    std::thread::sleep(RUN);
    forwarder.stop("Tx-pps:")
}

/// Packets a second of `frame` bytes with their link header that one core makes, another one swallows, and net_memif moves between them.
pub fn memif(socket: &Path, frame: usize) -> Result<f64> {
    let end = |core: u8, role: &str, mode: &str, more: &[&str]| {
        let device = format!(
            "net_memif0,role={role},id=0,socket={},socket-abstract=no",
            socket.display()
        );
        let burst = format!("--burst={BURST_MAX}");
        let more = [&[burst.as_str()], more].concat();
        Forwarder::start(&format!("0@{core},1@{core}"), &[device], mode, &more)
    };
    let receiver = end(0, "server", "rxonly", &[])?;
    std::thread::sleep(START);
    let sender = end(1, "client", "txonly", &[&format!("--txpkts={frame}")])?;
    std::thread::sleep(RUN);
    let rate = receiver.stop("Rx-pps:");
    sender.stop("Tx-pps:").and(rate)
}

/// dpdk-testpmd, which runs until it is stopped.
struct Forwarder {
    process: Child,
    ports: usize,
}

impl Forwarder {
    /// The first lcore only waits.
    fn start(lcores: &str, devices: &[String], mode: &str, more: &[&str]) -> Result<Forwarder> {
        let mut command = Command::new("dpdk-testpmd");
        command.args(["--no-pci", "--in-memory", "-m", "256", "--log-level=3"]);
        command.arg(format!("--lcores={lcores}"));
        command.args(devices.iter().map(|device| format!("--vdev={device}")));
        command.args(["--", "-a", "--stats-period=1", "--port-topology=loop"]);
        command.arg("--total-num-mbufs=16384");
        command.arg(format!("--forward-mode={mode}")).args(more);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let process = command.spawn().map_err(|e| {
            Error::new(format!(
                "dpdk-testpmd does not start ({e}): install Debian's dpdk-dev"
            ))
        })?;
        Ok(Forwarder {
            process,
            ports: devices.len(),
        })
    }

    /// Packets a second of all ports together, of those that `count` stands before.
    fn stop(mut self, count: &str) -> Result<f64> {
        // Asked to end, it says what it has not said yet.
        let pid = Pid::from_raw(self.process.id() as i32);
        kill(pid, Signal::SIGINT).map_err(|e| Error::new(format!("dpdk-testpmd: {e}")))?;
        let (mut said, mut complained) = (String::new(), String::new());
        let read = |from: Option<&mut dyn Read>, into: &mut String| {
            // What cannot be read is as good as nothing said.
            let _ = from.map(|from| from.read_to_string(into));
        };
        read(self.process.stdout.as_mut().map(|out| out as _), &mut said);
        read(self.process.stderr.as_mut().map(|err| err as _), &mut complained);
        let _ = self.process.wait();
        let rate = |line: &str| line.split_once(count)?.1.split_whitespace().next()?.parse().ok();
        let rates: Vec<f64> = said.lines().filter_map(rate).collect();
        // It speaks of one port after the other.
        let rates = rates.chunks_exact(self.ports).map(|ports| ports.iter().sum());
        median(rates.filter(|rate| *rate > 0.0)).ok_or_else(|| {
            Error::new(format!(
                "dpdk-testpmd moved nothing; are there 256 free huge pages (/proc/sys/vm/nr_hugepages)? It said: {}",
                complained.trim()
            ))
        })
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
