//! `forward` and `route`: workers on cores of their own between a port that makes packets and one that swallows them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use patronus_mem::{Arena, ArenaConfig};
use patronus_netns::{Error, Result};

use super::lan::{Arrivals, Lan, Wire, now};
use super::size::Size;
use super::stages::{Counted, Stages};
use super::{LOADS, Options, Row, latency, pin, testpmd, worker_counts};
use crate::report::median;

/// How long one set-up runs in a round.
pub const SLICE: Duration = Duration::from_millis(100);

/// What is measured in turns.
struct Setup {
    pipeline: &'static str,
    flows: u32,
    workers: usize,
    handoff: f64,
    subject: Subject,
    /// Packets a second, by round.
    rates: Vec<f64>,
    /// Of the last round.
    stages: Stages,
}

enum Subject {
    /// One for each worker.
    Wires(Vec<Wire>),
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
                yardstick.push(testpmd::macswap(&[format!("net_null0,size={bytes}")])?);
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
        stages: Stages::new(),
    };
    let mut setups = Vec::new();
    for workers in worker_counts() {
        let wires = (0..workers).map(|_| Wire::new(arena, few, size)).collect();
        setups.push(setup("forward", few, workers, 0.0, Subject::Wires(wires)));
        for &flows in &options.flows {
            let lan = Lan::new(arena, workers, flows, size, Arrivals::Aligned);
            setups.push(setup("route", flows, workers, 0.0, Subject::Lan(Box::new(lan))));
        }
        if workers > 1 {
            let lan = Lan::new(arena, workers, few, size, Arrivals::Mixed);
            let handoff = 1.0 - 1.0 / workers as f64;
            setups.push(setup("route", few, workers, handoff, Subject::Lan(Box::new(lan))));
        }
    }
    setups
}

impl Setup {
    /// Packets a second over a slice of time.
    fn measure(&mut self) -> f64 {
        match &mut self.subject {
            Subject::Wires(wires) => forward(wires),
            Subject::Lan(lan) => {
                let counted = |lan: &Lan| Counted::of(lan.workers.iter().map(|w| &**w.stats()));
                let before = counted(lan);
                let rate = measure(lan);
                self.stages = counted(lan).since(&before);
                rate
            }
        }
    }

    /// A row of its rate and, where packets are routed, a row for each load.
    fn rows(&self, arena: &'static Arena, size: Size) -> Vec<Row> {
        let rate = median(self.rates.iter().copied()).unwrap_or(f64::NAN);
        let row = Row {
            flows: self.flows as usize,
            handoff: self.handoff,
            stages: self.stages.clone(),
            ..Row::new(
                self.pipeline,
                size,
                self.workers,
                1e9 * self.workers as f64 / rate,
            )
        };
        let mut rows = vec![row.clone()];
        if self.pipeline == "route" {
            let arrivals = match self.handoff {
                0.0 => Arrivals::Aligned,
                _ => Arrivals::Mixed,
            };
            let mut subject = latency::Subject::new(arena, self.workers, arrivals, self.flows, size);
            let highest = subject.without_loss(rate);
            let loads = LOADS.map(|load| row.at_load(load, highest, subject.latency(load * highest)));
            rows.extend(loads);
        }
        rows
    }
}

/// From port to port, each worker on a core of its own.
fn forward(wires: &mut [Wire]) -> f64 {
    std::thread::scope(|scope| {
        let workers = wires.iter_mut().enumerate().map(|(core, wire)| {
            scope.spawn(move || {
                pin(core);
                measure_wire(wire)
            })
        });
        let workers: Vec<_> = workers.collect();
        workers.into_iter().map(|w| w.join().expect("a worker")).sum()
    })
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
                pin(core);
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
    let mut ratios = Vec::new();
    let all = || setups.iter().filter(|s| s.workers == 1).map(|s| s.flows);
    let (few, many) = (all().min(), all().max());
    let Some(one) = rate(&|s| s.workers == 1 && Some(s.flows) == few) else {
        return;
    };
    for (what, rate) in [
        (
            "the most flows",
            rate(&|s| s.workers == 1 && Some(s.flows) == many),
        ),
        (
            "two workers",
            rate(&|s| s.workers == 2 && s.handoff == 0.0 && Some(s.flows) == few),
        ),
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
