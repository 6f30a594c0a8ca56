//! The engine's pipelines without devices: nanoseconds a packet, beside the AEAD alone, or DPDK's forwarder, in the same run.
//!
//! * `encrypt`, `decrypt`, `both`: two workers' WireGuard states face each other in memory and one thread runs both. Bursts are refilled outside of
//!   the measured time. AEAD and pipelines take turns burst by burst, over the same sessions, keys, frames and sizes, so that a slow
//!   moment of the machine hits both.
//! * `forward`, `route`: whole turns of workers between two ports in memory, the making of packets included; [`lan`].
//! * `macswap`, `tunnel`, with `--port`: the same over devices of DPDK's, beside its own programs; [`ports`].

mod cryptoperf;
mod lan;
mod latency;
mod pair;
pub mod pipelines;
mod ports;
mod route;
pub mod size;
mod testpmd;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use patronus_mem::BURST_MAX;
use patronus_netns::{Error, Result};
use serde::Serialize;

use crate::machine;
use crate::report::median;
use pair::Pair;
use size::Size;

/// Bursts in a round of one pipeline.
const BURSTS: usize = 1000;

/// Options of `patronus-bench engine`.
#[derive(clap::Args)]
pub struct Options {
    /// Packet sizes, bytes of the inner IP packet; `imix` is a mix of 64, 576 and 1,420, in the ratio 7 to 4 to 1.
    #[arg(long, value_name = "SIZES", value_delimiter = ',', default_values_t = [Size::Bytes(64), Size::Bytes(128), Size::Bytes(512), Size::Bytes(1420), Size::Imix])]
    sizes: Vec<Size>,
    /// Pipelines to measure.
    #[arg(long, value_name = "PIPELINES", value_delimiter = ',', default_values_t = [Pipelines::Crypto, Pipelines::Route])]
    pipelines: Vec<Pipelines>,
    /// Flows that routed packets are of.
    #[arg(long, value_name = "FLOWS", value_delimiter = ',', default_values_t = [1000, 1_000_000])]
    flows: Vec<u32>,
    /// Compares `route` with dpdk-testpmd's macswap over a net_null port on one core. Needs Debian's dpdk-dev and 256 free huge pages.
    #[arg(long)]
    testpmd: bool,
    /// Measures `macswap` and `tunnel` over these devices of DPDK's, beside dpdk-testpmd and dpdk-test-crypto-perf, and no other pipelines. Needs a build with
    /// `--features dpdk`, Debian's dpdk-dev and 384 free huge pages.
    #[arg(long = "port", value_name = "PORTS", value_delimiter = ',')]
    ports: Vec<ports::PortKind>,
    /// Peers that the packets are spread over, one after the other.
    #[arg(long, value_name = "PEERS", value_delimiter = ',', default_values_t = [1, 1000])]
    peers: Vec<usize>,
    /// Rounds; figures are medians over them.
    #[arg(long, default_value_t = 11)]
    rounds: usize,
    /// Writes the rows as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Which pipelines belong together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Pipelines {
    /// `encrypt`, `decrypt`, `both`.
    Crypto,
    /// `forward`, `route`.
    Route,
}

impl std::fmt::Display for Pipelines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Pipelines::Crypto => "crypto",
            Pipelines::Route => "route",
        })
    }
}

/// One line of the report. `None` is `null`: not measured.
#[derive(Clone, Debug, Serialize)]
struct Row {
    /// `encrypt`: inner packet to datagram; `decrypt`: datagram to inner packet; `both`: one after the other; `forward`: from port to port and nothing
    /// else; `route`: with flow table, FIB and time to live between; `macswap`: out where it came from, with the link addresses exchanged; `tunnel`: with flow
    /// table, FIB and encryption between.
    pipeline: &'static str,
    /// Bytes of the inner packet.
    size: Size,
    /// What packets come from and go to: `memory`, or a kind of DPDK's devices.
    port: &'static str,
    /// Flows; of encrypted packets one for each peer.
    flows: usize,
    /// 0 where nothing is encrypted.
    peers: usize,
    workers: usize,
    /// Part of the packets that another worker took in.
    handoff: f64,
    /// Millions of packets a second, of all workers together.
    mpps: f64,
    /// Gigabits of inner packets a second, of all workers together.
    gbps: f64,
    /// Of each worker's time; at a load, the time between packets.
    ns_per_packet: f64,
    /// The same packets' AEAD alone.
    aead_ns_per_packet: Option<f64>,
    /// Of a device: what DPDK's own program does on it, of `tunnel`: its cryptography alone, both on one core, millions of packets a second.
    reference_mpps: Option<f64>,
    /// Part of the highest rate without loss that was offered; `None`: as much as goes, and rate and costs are of that.
    load: Option<f64>,
    /// Time from arrival to departure at that load.
    lat_p50_us: Option<f64>,
    lat_p99_us: Option<f64>,
    lat_p999_us: Option<f64>,
}

impl Row {
    fn new(pipeline: &'static str, size: Size, peers: usize, ns: f64, aead: f64) -> Row {
        Row {
            pipeline,
            size,
            port: "memory",
            reference_mpps: None,
            flows: peers,
            peers,
            workers: 1,
            handoff: 0.0,
            mpps: 1e3 / ns,
            gbps: 8.0 * size.sum(BURST_MAX) as f64 / BURST_MAX as f64 / ns,
            ns_per_packet: ns,
            aead_ns_per_packet: Some(aead),
            load: None,
            lat_p50_us: None,
            lat_p99_us: None,
            lat_p999_us: None,
        }
    }
}

/// Times of one round, nanoseconds a packet.
#[derive(Clone, Copy, Default)]
struct Round {
    encrypt: f64,
    decrypt: f64,
    seal: f64,
    open: f64,
}

/// Runs it and writes what was asked for.
pub fn run(options: &Options) -> Result<()> {
    if let Some(peers) = options.peers.iter().find(|peers| !(1..=10_000).contains(*peers)) {
        return Err(Error::new(format!("--peers {peers}: 1 to 10,000 are possible")));
    }
    for (name, value) in machine::settings() {
        println!("{name}: {value}");
    }
    let mut rows = Vec::new();
    if !options.ports.is_empty() {
        ports::run(options, &options.ports, &mut rows)?;
    } else {
        if options.pipelines.contains(&Pipelines::Crypto) {
            crypto(options, &mut rows);
        }
        if options.pipelines.contains(&Pipelines::Route) {
            route::run(options, &mut rows)?;
        }
    }
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&rows).map_err(|e| Error::new(e.to_string()))?;
        std::fs::write(path, text).map_err(|e| Error::new(format!("{}: {e}", path.display())))?;
    }
    Ok(())
}

fn crypto(options: &Options, rows: &mut Vec<Row>) {
    println!(
        "\nbursts of {BURST_MAX}, {} rounds of {BURSTS} bursts, medians\n",
        options.rounds
    );
    println!("pipeline  size  peers    Mpps    Gb/s  ns/packet  AEAD alone  of its rate  beyond it, ns");
    for &size in &options.sizes {
        let mut pairs: Vec<(usize, Pair)> = options
            .peers
            .iter()
            .map(|&peers| (peers, Pair::new(peers)))
            .collect();
        let mut rounds = vec![Vec::new(); pairs.len()];
        for _ in 0..options.rounds.max(1) {
            for ((_, pair), rounds) in pairs.iter_mut().zip(&mut rounds) {
                rounds.push(round(pair, size));
            }
        }
        for ((peers, _), rounds) in pairs.iter().zip(&rounds) {
            for row in summarize(size, *peers, rounds) {
                print(&row);
                rows.push(row);
            }
        }
    }
}

/// One round: burst by burst, each measured in turn.
fn round(pair: &mut Pair, size: Size) -> Round {
    let mut spent = [Duration::ZERO; 4];
    let timed = |spent: &mut Duration, work: &mut dyn FnMut()| {
        let start = Instant::now();
        work();
        *spent += start.elapsed();
    };
    for _ in 0..BURSTS {
        pair.refill(size);
        timed(&mut spent[0], &mut || pair.encrypt());
        timed(&mut spent[1], &mut || pair.decrypt());
        pair.check(size);
        pair.refill_aead(size);
        timed(&mut spent[2], &mut || pair.seal());
        timed(&mut spent[3], &mut || pair.open());
    }
    let [encrypt, decrypt, seal, open] =
        spent.map(|time| time.as_nanos() as f64 / (BURSTS * BURST_MAX) as f64);
    Round {
        encrypt,
        decrypt,
        seal,
        open,
    }
}

fn summarize(size: Size, peers: usize, rounds: &[Round]) -> [Row; 3] {
    let of = |figure: fn(&Round) -> f64| median(rounds.iter().map(figure)).unwrap_or(f64::NAN);
    [
        Row::new("encrypt", size, peers, of(|r| r.encrypt), of(|r| r.seal)),
        Row::new("decrypt", size, peers, of(|r| r.decrypt), of(|r| r.open)),
        Row::new(
            "both",
            size,
            peers,
            of(|r| r.encrypt + r.decrypt),
            of(|r| r.seal + r.open),
        ),
    ]
}

fn print(row: &Row) {
    let aead = row.aead_ns_per_packet.unwrap_or(f64::NAN);
    println!(
        "{:<8} {:>5} {:>6} {:>7.3} {:>7.2} {:>10.1} {:>11.1} {:>11.0}% {:>14.1}",
        row.pipeline,
        row.size,
        row.peers,
        row.mpps,
        row.gbps,
        row.ns_per_packet,
        aead,
        100.0 * aead / row.ns_per_packet,
        row.ns_per_packet - aead
    );
}
