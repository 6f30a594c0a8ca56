//! How long packets are under way at a given rate: they arrive by the clock, whether or not the worker is ready for them, so that a packet
//! that has to wait counts its wait; what finds the port's queue full is lost. (RFC 2544, section 26.1: the highest rate without loss; RFC 1242,
//! section 3.8: latency.)

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use patronus_engine::stats::DropReason;
use patronus_io::{Port, PortCounters, PortError};
use patronus_mem::{Arena, Burst, FrameCache};

use super::lan::{Arrivals, Lan, Ports, Source, now};
use super::pin;
use super::size::Size;

/// Packets that the port holds for the worker, as a NIC's ring does.
pub const QUEUE: u64 = 1024;
/// How long a rate is tried.
const TRIAL: Duration = Duration::from_millis(100);
/// From when threads are made until packets arrive.
const BEGIN: Duration = Duration::from_millis(2);
/// How often the range of rates is halved.
const STEPS: usize = 6;
/// The longest latency that is told from longer ones, nanoseconds.
const LONGEST: u64 = 1_000_000_000;

/// Latencies, microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
}

impl Latency {
    pub fn of(times: &Histogram<u64>) -> Latency {
        let at = |quantile| times.value_at_quantile(quantile) as f64 / 1e3;
        Latency {
            p50_us: at(0.5),
            p99_us: at(0.99),
            p999_us: at(0.999),
        }
    }
}

/// Of nanoseconds.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST, 3).expect("bounds that a histogram can have")
}

/// The highest rate, up to `most`, at which `lost` says that nothing is.
pub fn without_loss(most: f64, mut lost: impl FnMut(f64) -> u64) -> f64 {
    // The first packets find everything cold.
    lost(most);
    let (mut good, mut bad) = (0.0, most);
    let mut rate = most;
    for _ in 0..STEPS {
        if lost(rate) == 0 {
            good = rate;
        } else {
            bad = rate;
        }
        rate = (good + bad) / 2.0;
    }
    good
}

/// What the two ports of a worker know of each other.
struct Trial {
    /// Since when arrivals are counted.
    start: Instant,
    /// Packets a second.
    rate: f64,
    /// Packets that have arrived since the start, lost ones included.
    arrived: u64,
    lost: u64,
    times: Histogram<u64>,
}

type Shared = Arc<Mutex<Trial>>;

fn lock(trial: &Shared) -> std::sync::MutexGuard<'_, Trial> {
    trial.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a packet says when it arrived: its last eight bytes.
fn stamp(packet: &mut [u8]) -> &mut [u8; 8] {
    packet.last_chunk_mut().expect("longer than a stamp")
}

struct Paced {
    source: Source,
    trial: Shared,
    /// Stamps are nanoseconds since then.
    epoch: Instant,
}

impl Port for Paced {
    fn rx_burst(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Result<usize, PortError> {
        let mut trial = lock(&self.trial);
        let due = (trial.start.elapsed().as_secs_f64() * trial.rate) as u64;
        let overflow = due.saturating_sub(trial.arrived + QUEUE);
        trial.lost += overflow;
        trial.arrived += overflow;
        let before = burst.len();
        let most = due.saturating_sub(trial.arrived);
        let made = self.source.make(frames, burst, most as usize);
        let started = trial.start.duration_since(self.epoch).as_nanos() as u64;
        for packet in &mut burst.as_mut_slice()[before..] {
            let at = started + (trial.arrived as f64 * 1e9 / trial.rate) as u64;
            *stamp(packet.data_mut()) = at.to_ne_bytes();
            trial.arrived += 1;
        }
        Ok(made)
    }

    fn tx_burst(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Result<(), PortError> {
        burst.clear_into(frames);
        Ok(())
    }

    fn counters(&self) -> &Arc<PortCounters> {
        self.source.counters()
    }
}

struct Timed {
    trial: Shared,
    epoch: Instant,
    counters: Arc<PortCounters>,
}

impl Port for Timed {
    fn rx_burst(&mut self, _: &mut FrameCache, _: &mut Burst) -> Result<usize, PortError> {
        Ok(0)
    }

    fn tx_burst(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Result<(), PortError> {
        let mut trial = lock(&self.trial);
        let left = self.epoch.elapsed().as_nanos() as u64;
        for packet in burst.iter_mut() {
            let arrived = u64::from_ne_bytes(*stamp(packet.data_mut()));
            trial.times.saturating_record(left.saturating_sub(arrived).max(1));
        }
        burst.clear_into(frames);
        Ok(())
    }

    fn counters(&self) -> &Arc<PortCounters> {
        &self.counters
    }
}

/// Turns after a trial in which nothing arrives, so that what is under way leaves.
const LAST_TURNS: usize = 64;

/// Routing workers that can be given packets at any rate.
pub struct Subject {
    lan: Lan,
    trials: Vec<Shared>,
}

impl Subject {
    pub fn new(arena: &'static Arena, workers: usize, arrivals: Arrivals, flows: u32, size: Size) -> Subject {
        let epoch = Instant::now();
        let mut trials = Vec::new();
        let lan = Lan::with_ports(arena, workers, flows, arrivals, |flows| {
            let counters = Arc::<PortCounters>::default();
            let trial = Arc::new(Mutex::new(Trial {
                start: epoch,
                rate: 0.0,
                arrived: 0,
                lost: 0,
                times: histogram(),
            }));
            trials.push(Arc::clone(&trial));
            Ports {
                source: Box::new(Paced {
                    source: Source::new(size, flows),
                    trial: Arc::clone(&trial),
                    epoch,
                }),
                sink: Box::new(Timed {
                    trial,
                    epoch,
                    counters: Arc::clone(&counters),
                }),
                sent: counters,
            }
        });
        Subject { lan, trials }
    }

    /// Offers `rate` packets a second, to each worker its part, for a while: how many were lost.
    fn offer(&mut self, rate: f64, length: Duration) -> u64 {
        let refused = |lan: &Lan| {
            let stats = lan.workers.iter().map(|worker| worker.stats());
            stats
                .map(|stats| stats.dropped(DropReason::HandoffFull))
                .sum::<u64>()
        };
        let before = refused(&self.lan);
        // Threads begin before packets do.
        let start = Instant::now() + BEGIN;
        for trial in &self.trials {
            let mut trial = lock(trial);
            (trial.start, trial.rate) = (start, rate / self.trials.len() as f64);
            (trial.arrived, trial.lost) = (0, 0);
            trial.times.reset();
        }
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for (core, worker) in self.lan.workers.iter_mut().enumerate() {
                let done = &done;
                scope.spawn(move || {
                    pin(core);
                    while !done.load(Ordering::Relaxed) {
                        assert!(worker.step(now()));
                    }
                });
            }
            std::thread::sleep(BEGIN + length);
            done.store(true, Ordering::Relaxed);
        });
        let lost = self.trials.iter().map(|trial| lock(trial).lost).sum::<u64>();
        let lost = lost + refused(&self.lan) - before;
        self.trials.iter().for_each(|trial| lock(trial).rate = 0.0);
        for _ in 0..LAST_TURNS {
            for worker in &mut self.lan.workers {
                assert!(worker.step(now()));
            }
        }
        lost
    }

    /// The highest rate without loss, up to `most` packets a second.
    pub fn without_loss(&mut self, most: f64) -> f64 {
        without_loss(most, |rate| self.offer(rate, TRIAL))
    }

    /// Latency at `rate` packets a second.
    pub fn latency(&mut self, rate: f64) -> Latency {
        self.offer(rate, 5 * TRIAL);
        let mut times = histogram();
        for trial in &self.trials {
            times.add(&lock(trial).times).expect("the same bounds");
        }
        Latency::of(&times)
    }
}
