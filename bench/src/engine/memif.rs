//! `tunnel` over net_memif: two engines, each a process with a core and a network namespace of its own, and shared memory between them as their WAN link. In each there
//! is a generator on the LAN side, whose packets the other one's LAN side swallows.
//!
//! Nothing is left out of a packet's way: LAN port, flow table, FIB, encryption, Ethernet, IP and UDP headers with checksums, the device, there the sieve, decryption, flow
//! table, FIB, LAN port. Neighbours are found by the kernels through the host interfaces of both ends. What it is compared with is the *pipeline* of the slower end: the same
//! stages of one side, with ports in memory that cost next to nothing; measured by the same two processes in turn.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use patronus_netns::{Error, Result};

use super::size::Size;
use super::{Options, Row};
use crate::goals::{Goal, Outcome};
use crate::report::median;

/// Flows from each end.
const FLOWS: u32 = 1000;
/// How long each is measured in a round, milliseconds.
const SLICE: u64 = 300;
/// What the tunnel has to reach of the slower end's pipeline.
const SHARE: f64 = 0.8;

/// Options of one end.
#[derive(clap::Args)]
pub struct End {
    /// The socket that the ends meet at.
    socket: PathBuf,
    /// 0 or 1, and the core that it runs on.
    side: u8,
    /// Bytes of the inner packets.
    size: usize,
}

/// An end that runs, and does what it is told.
struct Running {
    process: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// What both ends have, packets a second, by round.
#[derive(Default)]
struct Rates {
    seal: [Vec<f64>; 2],
    open: [Vec<f64>; 2],
    /// Frames that the sieve alone looks at.
    sieve: Vec<f64>,
    /// Delivered at this end, while only the other one sends.
    one_way: [Vec<f64>; 2],
    /// While both do.
    both: [Vec<f64>; 2],
}

impl Running {
    fn start(socket: &Path, side: u8, size: usize) -> Result<Running> {
        let mut command = Command::new("unshare");
        command.arg("--net").arg(std::env::current_exe()?);
        command.arg("tunnel-end").arg(socket);
        command.args([side.to_string(), size.to_string()]);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let missing = || Error::new("a process without its pipes");
        let orders = process.stdin.take().ok_or_else(missing)?;
        let answers = BufReader::new(process.stdout.take().ok_or_else(missing)?);
        let mut running = Running {
            process,
            orders,
            answers,
        };
        running.answer()?;
        Ok(running)
    }

    fn order(&mut self, order: &str) -> Result<()> {
        Ok(writeln!(self.orders, "{order} {SLICE}")?)
    }

    /// Packets a second.
    fn answer(&mut self) -> Result<f64> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        line.trim()
            .parse()
            .map_err(|_| Error::new("an end of the tunnel has given up; what it said is above"))
    }

    fn measure(&mut self, order: &str) -> Result<f64> {
        self.order(order)?;
        self.answer()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Both ends work at once; what each delivers.
fn together(ends: &mut [Running; 2], orders: [&str; 2]) -> Result<[f64; 2]> {
    for (end, order) in ends.iter_mut().zip(orders) {
        end.order(order)?;
    }
    let [a, b] = ends;
    Ok([a.answer()?, b.answer()?])
}

/// Measures and prints; the rows go behind those that there are.
pub fn run(options: &Options, rows: &mut Vec<Row>) -> Result<()> {
    println!(
        "\na tunnel between two engines over net_memif, one core each, {} rounds, medians\n",
        options.rounds
    );
    println!("way    size  delivered, Mpps  slower end's pipeline, Mpps  of that");
    let mut outcomes = Vec::new();
    for &size in &options.sizes {
        let Size::Bytes(bytes) = size else { continue };
        let rates = measure(bytes, options.rounds)?;
        let of = |rates: &[f64]| median(rates.iter().copied()).unwrap_or(f64::NAN);
        let seal = rates.seal.each_ref().map(|rates| of(rates));
        let open = rates.open.each_ref().map(|rates| of(rates));
        let (sieve, open_ns) = (1e9 / of(&rates.sieve), 1e9 / open[1]);
        println!(
            "{size} B: the sieve alone takes {sieve:.1} ns a packet, the receiver's stages {open_ns:.0}"
        );
        let one_way = |to: usize| (of(&rates.one_way[to]), seal[1 - to].min(open[to]));
        // An end that does both needs the time of both for one packet there and one back.
        let both = (0..2).map(|end| 1.0 / (1.0 / seal[end] + 1.0 / open[end]));
        let both = (
            rates.both.iter().map(|rates| of(rates)).fold(f64::MAX, f64::min),
            both.fold(f64::MAX, f64::min),
        );
        for (pipeline, (rate, slower)) in [("there", one_way(1)), ("back", one_way(0)), ("both", both)] {
            println!(
                "{pipeline:<6} {size:>4} {:>16.2} {:>28.2} {:>8.2}",
                rate / 1e6,
                slower / 1e6,
                rate / slower
            );
            rows.push(Row {
                port: "net_memif",
                reference_mpps: Some(slower / 1e6),
                peers: 1,
                flows: FLOWS as usize,
                aead: Some(patronus_crypto::aead::default().name()),
                ..Row::new(pipeline, size, 1, 1e9 / rate)
            });
            outcomes.push(Outcome {
                what: format!("net_memif, {pipeline}, {size} B: of the slower end"),
                detail: format!("{:.2} Mpps, {:.2}", rate / 1e6, slower / 1e6),
                value: rate / slower,
                goal: Goal::AtLeast(SHARE),
            });
        }
    }
    println!();
    outcomes.iter().for_each(|outcome| println!("{}", outcome.line()));
    Ok(())
}

fn measure(bytes: usize, rounds: usize) -> Result<Rates> {
    let folder = std::env::temp_dir().join(format!("patronus-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let socket = folder.join("memif");
    let result = measure_at(&socket, bytes, rounds);
    let _ = std::fs::remove_dir_all(folder);
    result
}

fn measure_at(socket: &Path, bytes: usize, rounds: usize) -> Result<Rates> {
    let mut ends = [
        Running::start(socket, 0, bytes)?,
        Running::start(socket, 1, bytes)?,
    ];
    wait_for_tunnel(&mut ends)?;
    let mut rates = Rates::default();
    for _ in 0..rounds.max(1) {
        for (at, end) in ends.iter_mut().enumerate() {
            rates.seal[at].push(end.measure("seal")?);
            rates.open[at].push(end.measure("open")?);
        }
        rates.sieve.push(ends[1].measure("sieve")?);
        let there = together(&mut ends, ["tunnel-send", "tunnel-listen"])?;
        rates.one_way[1].push(there[1]);
        let back = together(&mut ends, ["tunnel-listen", "tunnel-send"])?;
        rates.one_way[0].push(back[0]);
        let both = together(&mut ends, ["tunnel-send", "tunnel-send"])?;
        for (rates, rate) in rates.both.iter_mut().zip(both) {
            rates.push(rate);
        }
    }
    Ok(rates)
}

/// Until packets arrive both ways: the ends have met, neighbours are known, and ways.
fn wait_for_tunnel(ends: &mut [Running; 2]) -> Result<()> {
    for _ in 0..20 {
        let rates = together(ends, ["tunnel-send", "tunnel-send"])?;
        if rates.iter().all(|rate| *rate > 0.0) {
            // Once more, so that nothing is cold.
            return together(ends, ["tunnel-send", "tunnel-send"]).map(drop);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Err(Error::new("nothing comes through the tunnel"))
}

#[cfg(feature = "dpdk")]
mod end;
#[cfg(feature = "dpdk")]
pub use end::end;

/// There is no end without DPDK.
#[cfg(not(feature = "dpdk"))]
pub fn end(_: &End) -> Result<()> {
    Err(Error::new(
        "--port needs DPDK, which this program was built without: cargo build --release -p patronus-bench --features dpdk",
    ))
}
