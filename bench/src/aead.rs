//! `patronus-bench aead`: every implementation of ChaCha20-Poly1305 side by side on one core, by burst, in place, in the engine's frames.
//!
//! A round seals and opens a set of packets with each implementation in turn, many times over; figures are medians over the rounds. Opening
//! undoes what sealing did, so nothing has to be brought back between the two.

mod backend;
mod goals;
mod packets;
mod sweep;
mod table;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use patronus_netns::{Error, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::Serialize;

use crate::engine::size::Size;
use crate::machine;
use crate::report::median;
use backend::Backend;
use packets::Packets;

/// Sizes that can be measured: texts, bytes.
const BOUNDS: std::ops::RangeInclusive<usize> = 1..=9000;
/// Least time of a round for one implementation, sealing and opening together.
const SAMPLE: Duration = Duration::from_millis(2);

/// Options of `patronus-bench aead`.
#[derive(clap::Args)]
pub struct Options {
    /// Text sizes, bytes; `imix` is a mix of 64, 576 and 1,420, in the ratio 7 to 4 to 1.
    #[arg(long, value_name = "SIZES", value_delimiter = ',', value_parser = |text: &str| Size::parse(text, BOUNDS),
        default_value = "64,128,256,512,1024,1420,8900,imix")]
    sizes: Vec<Size>,
    /// Packets in a call, at most 64.
    #[arg(long, value_name = "BURSTS", value_delimiter = ',', default_value = "1,8,32,64",
        value_parser = clap::value_parser!(u8).range(1..=64))]
    bursts: Vec<u8>,
    /// What is shown.
    #[arg(long, value_name = "OPS", value_delimiter = ',', default_value = "seal,open")]
    ops: Vec<Op>,
    /// Implementations, with commas [default: all; with --sweep the engine's default and ring].
    #[arg(long, value_name = "BACKENDS", value_delimiter = ',')]
    backends: Option<Vec<String>>,
    /// Rounds; figures are medians over them.
    #[arg(long, default_value_t = 21)]
    rounds: usize,
    /// The core to run on [default: the last one that this program may use].
    #[arg(long, value_name = "NUMBER")]
    core: Option<usize>,
    /// Instead of the table: 40 sizes between 16 and 9,000 bytes, bursts of 1 and 32, and where the first implementation is worst
    /// against ring.
    #[arg(long, conflicts_with_all = ["sizes", "bursts"])]
    sweep: bool,
    /// Writes the rows as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Which way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
enum Op {
    /// Encrypt and make the tag.
    Seal,
    /// Check the tag and decrypt.
    Open,
}

impl Op {
    fn name(self) -> &'static str {
        match self {
            Op::Seal => "seal",
            Op::Open => "open",
        }
    }
}

/// One line of the report.
#[derive(Clone, Debug, Serialize)]
struct Row {
    backend: String,
    op: Op,
    /// Bytes of the text, or `imix`.
    size: Size,
    /// Packets in a call.
    burst: usize,
    /// Median over the rounds.
    ns_per_packet: f64,
    /// Least of the rounds.
    ns_per_packet_min: f64,
    /// Text, 10^9 bytes a second.
    gb_per_s: f64,
}

/// What is measured in turns: packets of these sizes in calls of so many.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Cell {
    size: Size,
    burst: usize,
}

/// Runs it and writes what was asked for.
pub fn run(options: &Options) -> Result<()> {
    let processor = machine::processor();
    let core = pin(options.core)?;
    let ours_and_ring = vec![
        patronus_crypto::aead::default().name().to_owned(),
        "ring".to_owned(),
    ];
    let wanted = match &options.backends {
        None if options.sweep => Some(ours_and_ring),
        named => named.clone(),
    };
    let (mut backends, left_out) = backend::choose(wanted.as_deref())?;
    for (name, value) in processor {
        println!("{name}: {value}");
    }
    println!("on core {core}; {} rounds in turn", options.rounds);
    println!(
        "the engine's default: {}",
        patronus_crypto::aead::default().name()
    );
    for backend in &backends {
        println!("{}: {}", backend.name(), backend.describe());
    }
    for reason in &left_out {
        println!("{reason}");
    }
    let mut packets = Packets::new()?;
    for backend in &mut backends {
        backend::check(backend.as_mut(), &mut packets)?;
    }
    let rows = if options.sweep {
        sweep::run(options, &mut backends, &mut packets)
    } else {
        matrix(options, &mut backends, &mut packets)
    };
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&rows).map_err(|e| Error::new(e.to_string()))?;
        std::fs::write(path, text).map_err(|e| Error::new(format!("{}: {e}", path.display())))?;
    }
    Ok(())
}

/// Stays on one core, whose number it returns.
fn pin(wanted: Option<usize>) -> Result<usize> {
    let usable = sched_getaffinity(None).map_err(|e| Error::new(format!("usable cores: {e}")))?;
    let last = (0..CpuSet::MAX_CPU).rev().find(|core| usable.is_set(*core));
    let core = wanted.or(last).unwrap_or(0);
    if core >= CpuSet::MAX_CPU || !usable.is_set(core) {
        return Err(Error::new(format!(
            "--core {core}: this program may not use that core"
        )));
    }
    let mut cpus = CpuSet::new();
    cpus.set(core);
    sched_setaffinity(None, &cpus).map_err(|e| Error::new(format!("core {core}: {e}")))?;
    Ok(core)
}

/// Every size with every burst, then the verdict.
fn matrix(options: &Options, backends: &mut [Box<dyn Backend>], packets: &mut Packets) -> Vec<Row> {
    let mut rows = Vec::new();
    for &burst in &options.bursts {
        let burst = usize::from(burst);
        let begun = rows.len();
        for &size in &options.sizes {
            rows.extend(measure(backends, packets, Cell { size, burst }, options.rounds));
        }
        rows.retain(|row| options.ops.contains(&row.op));
        for &op in &options.ops {
            table::print(&rows[begun..], op, &options.sizes);
        }
    }
    let outcomes = goals::judge(&rows);
    if !outcomes.is_empty() {
        println!("\nGoals, bursts of {}: times as fast\n", goals::BURST);
    }
    for outcome in &outcomes {
        println!("{}", outcome.line());
    }
    rows
}

/// Times of one round, nanoseconds a packet.
#[derive(Clone, Copy)]
struct Round {
    seal: f64,
    open: f64,
}

/// Rounds of every implementation, in turn.
fn measure(backends: &mut [Box<dyn Backend>], packets: &mut Packets, cell: Cell, rounds: usize) -> Vec<Row> {
    let clock = clock_cost();
    let mut found = vec![Vec::new(); backends.len()];
    let passes: Vec<u32> = backends
        .iter_mut()
        .map(|backend| passes(backend.as_mut(), packets, cell))
        .collect();
    for round in 0..rounds.max(1) {
        // Nobody is always behind the same one.
        for turn in 0..backends.len() {
            let at = (round + turn) % backends.len();
            found[at].push(sample(backends[at].as_mut(), packets, cell, passes[at], clock));
        }
    }
    let rows = backends.iter().zip(&found).flat_map(|(backend, rounds)| {
        let row = |op, figure: fn(&Round) -> f64| {
            let ns = median(rounds.iter().map(figure)).unwrap_or(f64::NAN);
            Row {
                backend: backend.name().to_owned(),
                op,
                size: cell.size,
                burst: cell.burst,
                ns_per_packet: ns,
                ns_per_packet_min: rounds.iter().map(figure).fold(f64::INFINITY, f64::min),
                gb_per_s: cell.size.sum(packets.len()) as f64 / packets.len() as f64 / ns,
            }
        };
        [row(Op::Seal, |r| r.seal), row(Op::Open, |r| r.open)]
    });
    rows.collect()
}

/// Seals all packets and opens them again, so many times.
fn sample(
    backend: &mut dyn Backend,
    packets: &mut Packets,
    cell: Cell,
    passes: u32,
    clock: Duration,
) -> Round {
    packets.fill(cell);
    let mut spent = [Duration::ZERO; 2];
    for _ in 0..passes {
        for (op, spent) in [Op::Seal, Op::Open].into_iter().zip(&mut spent) {
            let start = Instant::now();
            let bad = packets.work(backend, op, cell.burst);
            *spent += start.elapsed().saturating_sub(clock);
            assert_eq!(
                bad,
                0,
                "{} {}: packets that were not done",
                backend.name(),
                op.name()
            );
        }
    }
    let [seal, open] = spent.map(|time| time.as_nanos() as f64 / f64::from(passes) / packets.len() as f64);
    Round { seal, open }
}

/// How many passes make a sample; warms up on the way.
fn passes(backend: &mut dyn Backend, packets: &mut Packets, cell: Cell) -> u32 {
    let mut passes = 1;
    loop {
        let start = Instant::now();
        sample(backend, packets, cell, passes, Duration::ZERO);
        if start.elapsed() >= SAMPLE {
            return passes;
        }
        passes *= 2;
    }
}

/// What reading the clock twice takes.
fn clock_cost() -> Duration {
    let mut costs: Vec<Duration> = (0..1001)
        .map(|_| {
            let start = Instant::now();
            start.elapsed()
        })
        .collect();
    costs.sort();
    costs[costs.len() / 2]
}
