//! The engine's pipelines without devices: nanoseconds a packet, beside the AEAD alone, or DPDK's forwarder, in the same run.
//!
//! * `encrypt`, `decrypt`, `both`: two workers' WireGuard states face each other in memory and one thread runs both; with two workers, two threads do so for
//!   half of the peers each. Bursts are refilled outside of the measured time. AEAD and pipelines take turns burst by burst, over the same sessions,
//!   keys, frames and sizes, so that a slow moment of the machine hits both.
//! * `forward`, `route`: whole turns of workers between two ports in memory, the making of packets included; [`lan`].
//! * `macswap`, `tunnel`, with `--port`: the same over devices of DPDK's, beside its own programs; [`ports`]. With `--port net_memif` a tunnel between two engines; [`memif`].

mod cryptoperf;
mod lan;
mod latency;
mod memif;
mod pair;
pub mod pipelines;
mod ports;
mod queue;
mod route;
pub mod size;
mod stages;
mod testpmd;

use std::path::PathBuf;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use patronus_crypto::aead::{self, Aead};
use patronus_mem::BURST_MAX;
use patronus_netns::{Error, Result};
use rustix::thread::{CpuSet, sched_setaffinity};
use serde::Serialize;

use crate::goals::{Goal, Outcome};
use crate::machine;
use crate::report::median;
use latency::Latency;
pub use memif::{End, end};
use pair::{Pair, Way};
use size::Size;
use stages::Stages;

/// Bursts in a round of one pipeline.
const BURSTS: usize = 1000;
/// Size of the packets whose `encrypt` is judged, bytes, and the part of the AEAD's own rate that it has to reach.
const LARGE: usize = 1420;
const AEAD_SHARE: f64 = 0.85;

/// Parts of the highest rate without loss at which latency is measured.
const LOADS: [f64; 3] = [0.5, 0.8, 0.95];

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
    /// The AEAD of `crypto`'s pipelines, in them and alone [default: the engine's].
    #[arg(long, value_name = "NAME")]
    aead: Option<String>,
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
    /// Flows, of all workers together; of encrypted packets one for each peer.
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
    /// The AEAD, where packets are encrypted.
    aead: Option<&'static str>,
    /// The same packets' AEAD alone.
    aead_ns_per_packet: Option<f64>,
    /// Of a device: what DPDK's own program does on it, of `tunnel`: its cryptography alone, both on one core, millions of packets a second. Of a tunnel between two engines: what
    /// the slower end does with ports in memory.
    reference_mpps: Option<f64>,
    /// Nanoseconds of each stage by its name, for a packet that it takes in; empty at a load, and where there are no stages.
    stages: Stages,
    /// Part of the highest rate without loss that was offered; `None`: as much as goes, and rate and costs are of that.
    load: Option<f64>,
    /// Time from arrival to departure at that load.
    lat_p50_us: Option<f64>,
    lat_p99_us: Option<f64>,
    lat_p999_us: Option<f64>,
}

impl Row {
    /// Of workers that take `ns` nanoseconds for a packet each.
    fn new(pipeline: &'static str, size: Size, workers: usize, ns: f64) -> Row {
        let mpps = 1e3 * workers as f64 / ns;
        Row {
            pipeline,
            size,
            port: "memory",
            reference_mpps: None,
            flows: 0,
            peers: 0,
            workers,
            handoff: 0.0,
            mpps,
            gbps: 8e-3 * size.mean() * mpps,
            ns_per_packet: ns,
            aead: None,
            aead_ns_per_packet: None,
            stages: Stages::new(),
            load: None,
            lat_p50_us: None,
            lat_p99_us: None,
            lat_p999_us: None,
        }
    }

    /// A row of the same at a part of the highest rate without loss, in packets a second.
    fn at_load(&self, load: f64, highest: f64, latency: Latency) -> Row {
        let ns = 1e9 * self.workers as f64 / (load * highest);
        Row {
            flows: self.flows,
            peers: self.peers,
            handoff: self.handoff,
            aead: self.aead,
            load: Some(load),
            lat_p50_us: Some(latency.p50_us),
            lat_p99_us: Some(latency.p99_us),
            lat_p999_us: Some(latency.p999_us),
            ..Row::new(self.pipeline, self.size, self.workers, ns)
        }
    }
}

/// Keeps this thread on a core. Where that is not allowed the scheduler keeps threads apart, more or less.
fn pin(core: usize) {
    let mut cpus = CpuSet::new();
    cpus.set(core);
    let _ = sched_setaffinity(None, &cpus);
}

/// Numbers of workers that there are cores for: one, and two.
fn worker_counts() -> impl Iterator<Item = usize> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    [1, 2].into_iter().filter(move |workers| *workers <= cores)
}

/// Times of one round, nanoseconds a packet.
#[derive(Clone, Default)]
struct Round {
    encrypt: f64,
    decrypt: f64,
    seal: f64,
    open: f64,
    stages: Stages,
}

impl Round {
    fn pipeline(&self, way: Way) -> f64 {
        way.sum(self.encrypt, self.decrypt)
    }

    fn aead(&self, way: Way) -> f64 {
        way.sum(self.seal, self.open)
    }
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
            crypto(options, aead(options.aead.as_deref())?, &mut rows);
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

/// Workers that share the peers, and what was measured of them.
struct Crypto {
    aead: &'static dyn Aead,
    peers: usize,
    pairs: Vec<Pair>,
    rounds: Vec<Round>,
}

impl Crypto {
    /// Each worker has the same number of peers, one at least.
    fn new(aead: &'static dyn Aead, peers: usize, workers: usize) -> Crypto {
        let each = peers.div_ceil(workers);
        Crypto {
            aead,
            peers: each * workers,
            pairs: (0..workers).map(|_| Pair::new(aead, each)).collect(),
            rounds: Vec::new(),
        }
    }

    /// A round of all workers at once, each on its core.
    fn measure(&mut self, size: Size) {
        let begin = Barrier::new(self.pairs.len());
        std::thread::scope(|scope| {
            let workers = self.pairs.iter_mut().enumerate().map(|(core, pair)| {
                let begin = &begin;
                scope.spawn(move || {
                    pin(core);
                    begin.wait();
                    round(pair, size)
                })
            });
            let workers: Vec<_> = workers.collect();
            let rounds = workers.into_iter().map(|w| w.join().expect("a worker"));
            self.rounds.extend(rounds);
        });
    }

    /// For each pipeline a row of its rate and one for each load.
    fn rows(&mut self, size: Size) -> Vec<Row> {
        let rounds = std::mem::take(&mut self.rounds);
        let of = |figure: &dyn Fn(&Round) -> f64| median(rounds.iter().map(figure)).unwrap_or(f64::NAN);
        let mut rows = Vec::new();
        for way in Way::ALL {
            let ns = of(&|round| round.pipeline(way));
            let row = Row {
                flows: self.peers,
                peers: self.peers,
                aead: Some(self.aead.name()),
                aead_ns_per_packet: Some(of(&|round| round.aead(way))),
                stages: way
                    .stages()
                    .map(|stage| (stage, of(&|round| round.stages[stage])))
                    .collect(),
                ..Row::new(way.name(), size, self.pairs.len(), ns)
            };
            let highest = queue::highest(&mut self.pairs, way, size, 1e6 * row.mpps);
            let loads = LOADS.map(|load| {
                let latency = queue::latency(&mut self.pairs, way, size, load * highest);
                row.at_load(load, highest, latency)
            });
            rows.push(row);
            rows.extend(loads);
        }
        rows
    }
}

/// The AEAD of this name.
fn aead(name: Option<&str>) -> Result<&'static dyn Aead> {
    name.map_or(Ok(aead::default()), |name| {
        aead::by_name(name).map_err(|e| Error::new(format!("--aead: {e}")))
    })
}

fn crypto(options: &Options, aead: &'static dyn Aead, rows: &mut Vec<Row>) {
    println!(
        "\n{}, bursts of {BURST_MAX}, {} rounds of {BURSTS} bursts, medians\n",
        aead.name(),
        options.rounds
    );
    let begun = rows.len();
    println!(
        "pipeline  size  peers  workers    Mpps    Gb/s  ns/packet  AEAD alone  of its rate  beyond it, ns  p50 p99 p99.9 at a load, us"
    );
    let mut subjects = Vec::new();
    for &peers in &options.peers {
        subjects.extend(worker_counts().map(|workers| Crypto::new(aead, peers, workers)));
    }
    for &size in &options.sizes {
        for _ in 0..options.rounds.max(1) {
            subjects.iter_mut().for_each(|subject| subject.measure(size));
        }
        for row in subjects.iter_mut().flat_map(|subject| subject.rows(size)) {
            print(&row);
            rows.push(row);
        }
    }
    if let Some(outcome) = judge(&rows[begun..]) {
        println!("\n{}", outcome.line());
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
    let before = pair.counted();
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
        stages: pair.counted().since(&before),
    }
}

/// Whether large packets leave the AEAD enough of the time, with the fewest peers.
fn judge(rows: &[Row]) -> Option<Outcome> {
    let of_large = rows
        .iter()
        .filter(|row| row.pipeline == "encrypt" && row.size == Size::Bytes(LARGE) && row.load.is_none());
    let row = of_large.min_by_key(|row| (row.workers, row.peers))?;
    let alone = row.aead_ns_per_packet?;
    Some(Outcome {
        what: format!("encrypt, {LARGE} B: of the AEAD's rate"),
        detail: format!("{:.0} ns, {} {alone:.0} ns", row.ns_per_packet, row.aead?),
        value: alone / row.ns_per_packet,
        goal: Goal::AtLeast(AEAD_SHARE),
    })
}

fn print(row: &Row) {
    let latencies = [row.lat_p50_us, row.lat_p99_us, row.lat_p999_us];
    let latencies = latencies.into_iter().flatten().map(|us| format!("{us:.1}"));
    let latencies = latencies.collect::<Vec<_>>().join(" ");
    let [aead, share, beyond] = match row.aead_ns_per_packet {
        Some(aead) => [
            format!("{aead:.1}"),
            format!("{:.0}%", 100.0 * aead / row.ns_per_packet),
            format!("{:.1}", row.ns_per_packet - aead),
        ],
        None => Default::default(),
    };
    println!(
        "{:<8} {:>5} {:>6} {:>8} {:>7.3} {:>7.2} {:>10.1} {aead:>11} {share:>12} {beyond:>14}  {}",
        row.pipeline,
        row.size,
        row.peers,
        row.workers,
        row.mpps,
        row.gbps,
        row.ns_per_packet,
        row.load.map_or(String::new(), |load| format!(
            "at {:.0} %: {latencies}",
            100.0 * load
        ))
    );
}
