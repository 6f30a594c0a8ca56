//! `forward` and `route`: workers on cores of their own between a port that makes packets and one that swallows them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use patronus_mem::{Arena, ArenaConfig};
use patronus_netns::{Error, Result};
use rustix::thread::{CpuSet, sched_setaffinity};

use super::lan::{Arrivals, Lan, Wire, now};
use super::size::Size;
use super::{Options, Row, latency, testpmd};
use crate::report::median;

/// Parts of the highest rate without loss at which latency is measured.
const LOADS: [f64; 3] = [0.5, 0.8, 0.95];

/// How long one set-up runs in a round.
const SLICE: Duration = Duration::from_millis(100);

/// What is measured in turns.
struct Setup {
    pipeline: &'static str,
    flows: u32,
    workers: usize,
    handoff: f64,
    subject: Subject,
    /// Packets a second, by round.
    rates: Vec<f64>,
}

enum Subject {
    Wire(Box<Wire>),
    Lan(Box<Lan>),
}

/// Measures and prints; the rows go behind those that there are.
pub fn run(options: &Options, rows: &mut Vec<Row>) -> Result<()> {
    let arena = Arena::new(&ArenaConfig {
        frames: 16384,
        jumbo_frames: 0,
    });
    let arena = arena.map_err(|e| Error::new(format!("memory for packets: {e}")))?;
    println!(
        "\n{} rounds of {} ms each in turn, medians\n",
        options.rounds,
        SLICE.as_millis()
    );
    println!("pipeline  size    flows  workers  handed over    Mpps  ns/packet  p50 p99 p99.9 at a load, us");
    for &size in &options.sizes {
        let mut setups = setups(arena, options, size);
        let mut yardstick = Vec::new();
        for round in 0..options.rounds.max(1) {
            for setup in &mut setups {
                let rate = setup.measure();
                setup.rates.push(rate);
            }
            // Three times in a run: it takes seconds to start. Its packets are all alike.
            if let Size::Bytes(bytes) = size
                && options.testpmd
                && round % options.rounds.div_ceil(3) == 0
            {
                yardstick.push(testpmd::macswap(&format!("net_null0,size={bytes}"))?);
            }
        }
        for setup in &mut setups {
            for row in setup.rows(arena, size) {
                print(&row);
                rows.push(row);
            }
        }
        compare(&setups, median(yardstick));
    }
    Ok(())
}

fn setups(arena: &'static Arena, options: &Options, size: Size) -> Vec<Setup> {
    let few = options.flows.iter().copied().min().unwrap_or(1);
    let setup = |pipeline, flows, workers, handoff, subject| Setup {
        pipeline,
        flows,
        workers,
        handoff,
        subject,
        rates: Vec::new(),
    };
    let mut setups = vec![setup(
        "forward",
        few,
        1,
        0.0,
        Subject::Wire(Box::new(Wire::new(arena, few, size))),
    )];
    for &flows in &options.flows {
        let lan = Lan::new(arena, 1, flows, size, Arrivals::Aligned);
        setups.push(setup("route", flows, 1, 0.0, Subject::Lan(Box::new(lan))));
    }
    if std::thread::available_parallelism().is_ok_and(|cores| cores.get() >= 2) {
        for (arrivals, handoff) in [(Arrivals::Aligned, 0.0), (Arrivals::Mixed, 0.5)] {
            let lan = Lan::new(arena, 2, few, size, arrivals);
            setups.push(setup("route", few, 2, handoff, Subject::Lan(Box::new(lan))));
        }
    }
    setups
}

impl Setup {
    /// Packets a second over a slice of time.
    fn measure(&mut self) -> f64 {
        match &mut self.subject {
            Subject::Wire(wire) => measure_wire(wire),
            Subject::Lan(lan) => measure(lan),
        }
    }

    /// A row of its rate and, of one routing worker, a row for each load.
    fn rows(&self, arena: &'static Arena, size: Size) -> Vec<Row> {
        let rate = median(self.rates.iter().copied()).unwrap_or(f64::NAN);
        let mut rows = vec![self.row(size, rate)];
        if self.pipeline == "route" && self.workers == 1 {
            let mut subject = latency::Subject::new(arena, self.flows, size);
            let highest = subject.without_loss(rate);
            for load in LOADS {
                let latency = subject.latency(load * highest);
                rows.push(Row {
                    load: Some(load),
                    lat_p50_us: Some(latency.p50_us),
                    lat_p99_us: Some(latency.p99_us),
                    lat_p999_us: Some(latency.p999_us),
                    ..self.row(size, load * highest)
                });
            }
        }
        rows
    }

    fn row(&self, size: Size, rate: f64) -> Row {
        Row {
            pipeline: self.pipeline,
            size,
            port: "memory",
            reference_mpps: None,
            flows: self.flows as usize,
            peers: 0,
            workers: self.workers,
            handoff: self.handoff,
            mpps: rate / 1e6,
            gbps: 8.0 * size.mean() * rate / 1e9,
            ns_per_packet: 1e9 * self.workers as f64 / rate,
            aead_ns_per_packet: None,
            load: None,
            lat_p50_us: None,
            lat_p99_us: None,
            lat_p999_us: None,
        }
    }
}

/// Packets a second between two ports, over a slice of time.
pub fn measure_wire(wire: &mut Wire) -> f64 {
    let (start, mut packets) = (Instant::now(), 0);
    while start.elapsed() < SLICE {
        for _ in 0..64 {
            packets += wire.burst();
        }
    }
    packets as f64 / start.elapsed().as_secs_f64()
}

/// Lets the workers run, each on a core of its own, and counts what leaves while all of them do.
pub fn measure(lan: &mut Lan) -> f64 {
    let done = AtomicBool::new(false);
    let sinks = lan.sinks.clone();
    let sent = || sinks.iter().map(|sink| sink.tx_packets.get()).sum::<u64>();
    std::thread::scope(|scope| {
        for (core, worker) in lan.workers.iter_mut().enumerate() {
            let done = &done;
            scope.spawn(move || {
                let mut cpus = CpuSet::new();
                cpus.set(core);
                // Where that is not allowed the scheduler keeps them apart, more or less.
                let _ = sched_setaffinity(None, &cpus);
                while !done.load(Ordering::Relaxed) {
                    assert!(worker.step(now()));
                }
            });
        }
        std::thread::sleep(SLICE / 10);
        let (before, start) = (sent(), Instant::now());
        std::thread::sleep(SLICE);
        let (after, elapsed) = (sent(), start.elapsed());
        done.store(true, Ordering::Relaxed);
        (after - before) as f64 / elapsed.as_secs_f64()
    })
}

fn print(row: &Row) {
    let latencies = [row.lat_p50_us, row.lat_p99_us, row.lat_p999_us];
    let latencies: Vec<String> = latencies
        .into_iter()
        .flatten()
        .map(|us| format!("{us:.1}"))
        .collect();
    println!(
        "{:<8} {:>5} {:>8} {:>8} {:>11.0}% {:>7.3} {:>10.1}  {}",
        row.pipeline,
        row.size,
        row.flows,
        row.workers,
        100.0 * row.handoff,
        row.mpps,
        row.ns_per_packet,
        row.load.map_or(String::new(), |load| format!(
            "at {:.0} %: {}",
            100.0 * load,
            latencies.join(" ")
        ))
    );
}

/// The ratios that the figures are for.
fn compare(setups: &[Setup], yardstick: Option<f64>) {
    let rate = |want: &dyn Fn(&Setup) -> bool| {
        let found = setups.iter().find(|s| s.pipeline == "route" && want(s))?;
        median(found.rates.iter().copied())
    };
    let Some(one) = rate(&|s| s.workers == 1) else {
        return;
    };
    let mut ratios = Vec::new();
    let many = setups.iter().filter(|s| s.workers == 1).map(|s| s.flows).max();
    for (what, rate) in [
        (
            "the most flows",
            rate(&|s| s.workers == 1 && Some(s.flows) == many),
        ),
        ("two workers", rate(&|s| s.workers == 2 && s.handoff == 0.0)),
        (
            "two workers, half handed over",
            rate(&|s| s.workers == 2 && s.handoff > 0.0),
        ),
    ] {
        ratios.extend(rate.map(|rate| format!("{what} {:.2}", rate / one)));
    }
    println!(
        "   route against one worker with the fewest flows: {}",
        ratios.join(", ")
    );
    if let Some(yardstick) = yardstick {
        println!(
            "   route against testpmd's macswap over net_null, one core ({:.1} Mpps): {:.2}",
            yardstick / 1e6,
            one / yardstick
        );
    }
}
