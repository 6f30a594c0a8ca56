//! How long packets wait for a stage and are in it at a given rate, for stages whose packets somebody has to make first: a queue in front of the stage whose
//! clock runs while the stage works and stands still while its next packets are made. (RFC 2544, section 26.1: the highest rate without loss; RFC
//! 1242, section 3.8: latency.)

use std::sync::Barrier;

use hdrhistogram::Histogram;
use patronus_mem::BURST_MAX;

use super::latency::{Latency, QUEUE, histogram, without_loss};
use super::pair::{Pair, Way};
use super::pin;
use super::size::Size;

/// How long a rate is tried, nanoseconds of the stage's time.
const TRIAL: f64 = 20e6;
/// How long latency is measured.
const LONG: f64 = 100e6;

/// What a rate led to.
struct Outcome {
    lost: u64,
    times: Histogram<u64>,
}

/// Offers one worker a packet each `gap` nanoseconds for `length` of its time.
fn offer_one(pair: &mut Pair, way: Way, size: Size, gap: f64, length: f64) -> Outcome {
    let (mut now, mut next, mut lost) = (0.0f64, 0, 0);
    let mut times = histogram();
    let arrival = |number: u64| number as f64 * gap;
    while now < length {
        // Idle until the next one comes; packet 0 arrives at 0.
        now = now.max(arrival(next));
        let arrived = ((now / gap) as u64 + 1).max(next + 1);
        let overflow = (arrived - next).saturating_sub(QUEUE);
        lost += overflow;
        next += overflow;
        let count = (arrived - next).min(BURST_MAX as u64);
        now += pair.serve(way, size, count as usize).as_nanos() as f64;
        for number in next..next + count {
            times.saturating_record(((now - arrival(number)) as u64).max(1));
        }
        next += count;
    }
    Outcome { lost, times }
}

/// The same for workers on a core of their own each, which share the rate.
fn offer(pairs: &mut [Pair], way: Way, size: Size, rate: f64, length: f64) -> Outcome {
    let gap = 1e9 * pairs.len() as f64 / rate;
    let begin = Barrier::new(pairs.len());
    let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let workers = pairs.iter_mut().enumerate().map(|(core, pair)| {
            let begin = &begin;
            scope.spawn(move || {
                pin(core);
                begin.wait();
                offer_one(pair, way, size, gap, length)
            })
        });
        let workers: Vec<_> = workers.collect();
        workers.into_iter().map(|w| w.join().expect("a worker")).collect()
    });
    let mut sum = Outcome {
        lost: 0,
        times: histogram(),
    };
    for Outcome { lost, times } in outcomes {
        sum.lost += lost;
        sum.times.add(times).expect("the same bounds");
    }
    sum
}

/// The highest rate without loss, up to `most` packets a second of all workers together.
pub fn highest(pairs: &mut [Pair], way: Way, size: Size, most: f64) -> f64 {
    without_loss(most, |rate| offer(pairs, way, size, rate, TRIAL).lost)
}

/// Latency at `rate` packets a second of all workers together.
pub fn latency(pairs: &mut [Pair], way: Way, size: Size, rate: f64) -> Latency {
    Latency::of(&offer(pairs, way, size, rate, LONG).times)
}
