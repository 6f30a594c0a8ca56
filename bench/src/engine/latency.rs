//! How long packets are under way at a given rate: they arrive by the clock, whether or not the worker is ready for them, so that a packet
//! that has to wait counts its wait; what finds the port's queue full is lost. (RFC 2544, section 26.1: the highest rate without loss; RFC 1242,
//! section 3.8: latency.)

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use patronus_io::{Port, PortCounters, PortError};
use patronus_mem::{Arena, Burst, FrameCache};

use super::lan::{Arrivals, Lan, Ports, Source, now};
use super::size::Size;

/// Packets that the port holds for the worker, as a NIC's ring does.
const QUEUE: u64 = 1024;
/// How long a rate is tried.
const TRIAL: Duration = Duration::from_millis(100);
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

/// What the two ports of a trial know of each other.
struct Trial {
    start: Instant,
    /// Packets a second.
    rate: f64,
    /// Packets that have arrived since the start, lost ones included.
    arrived: u64,
    lost: u64,
    /// When each packet under way arrived, nanoseconds since the start, in order.
    under_way: VecDeque<u64>,
    times: Histogram<u64>,
}

type Shared = Arc<Mutex<Trial>>;

fn lock(trial: &Shared) -> std::sync::MutexGuard<'_, Trial> {
    trial.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Paced {
    source: Source,
    trial: Shared,
}

impl Port for Paced {
    fn rx_burst(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Result<usize, PortError> {
        let mut trial = lock(&self.trial);
        let due = (trial.start.elapsed().as_secs_f64() * trial.rate) as u64;
        let overflow = (due - trial.arrived).saturating_sub(QUEUE);
        trial.lost += overflow;
        trial.arrived += overflow;
        let made = self.source.make(frames, burst, (due - trial.arrived) as usize);
        for _ in 0..made {
            let at = (trial.arrived as f64 * 1e9 / trial.rate) as u64;
            trial.under_way.push_back(at);
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
    counters: Arc<PortCounters>,
}

impl Port for Timed {
    fn rx_burst(&mut self, _: &mut FrameCache, _: &mut Burst) -> Result<usize, PortError> {
        Ok(0)
    }

    /// One worker, one way and one exit: packets leave in the order of their arrival.
    fn tx_burst(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Result<(), PortError> {
        let mut trial = lock(&self.trial);
        let left = trial.start.elapsed().as_nanos() as u64;
        for _ in 0..burst.len() {
            let arrived = trial.under_way.pop_front().unwrap_or(left);
            trial.times.saturating_record(left.saturating_sub(arrived).max(1));
        }
        burst.clear_into(frames);
        Ok(())
    }

    fn counters(&self) -> &Arc<PortCounters> {
        &self.counters
    }
}

/// A routing worker that can be given packets at any rate.
pub struct Subject {
    lan: Lan,
    trial: Shared,
}

impl Subject {
    pub fn new(arena: &'static Arena, flows: u32, size: Size) -> Subject {
        let trial = Arc::new(Mutex::new(Trial {
            start: Instant::now(),
            rate: 0.0,
            arrived: 0,
            lost: 0,
            under_way: VecDeque::new(),
            times: Histogram::new_with_bounds(1, LONGEST, 3).expect("bounds that a histogram can have"),
        }));
        let lan = Lan::with_ports(arena, 1, flows, Arrivals::Aligned, |flows| {
            let counters = Arc::<PortCounters>::default();
            Ports {
                source: Box::new(Paced {
                    source: Source::new(size, flows),
                    trial: Arc::clone(&trial),
                }),
                sink: Box::new(Timed {
                    trial: Arc::clone(&trial),
                    counters: Arc::clone(&counters),
                }),
                sent: counters,
            }
        });
        Subject { lan, trial }
    }

    /// Offers `rate` packets a second for a while: how many were lost.
    fn offer(&mut self, rate: f64, length: Duration) -> u64 {
        {
            let mut trial = lock(&self.trial);
            trial.start = Instant::now();
            (trial.rate, trial.arrived, trial.lost) = (rate, 0, 0);
            trial.under_way.clear();
            trial.times.reset();
        }
        let start = Instant::now();
        while start.elapsed() < length {
            for worker in &mut self.lan.workers {
                assert!(worker.step(now()));
            }
        }
        lock(&self.trial).lost
    }

    /// The highest rate without loss, up to `most` packets a second.
    pub fn without_loss(&mut self, most: f64) -> f64 {
        // The first packets find everything cold.
        self.offer(most, TRIAL);
        let (mut good, mut bad) = (0.0, most);
        let mut rate = most;
        for _ in 0..STEPS {
            if self.offer(rate, TRIAL) == 0 {
                good = rate;
            } else {
                bad = rate;
            }
            rate = (good + bad) / 2.0;
        }
        good
    }

    /// Latency at `rate` packets a second.
    pub fn latency(&mut self, rate: f64) -> Latency {
        self.offer(rate, 5 * TRIAL);
        let trial = lock(&self.trial);
        let at = |quantile| trial.times.value_at_quantile(quantile) as f64 / 1e3;
        Latency {
            p50_us: at(0.5),
            p99_us: at(0.99),
            p999_us: at(0.999),
        }
    }
}
