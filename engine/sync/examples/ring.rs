//! Measures the ring beside crossbeam's queue of fixed size: nanoseconds a value, in bursts of 32.
//!
//! ```text
//! cargo run --release -p patronus-sync --example ring [ROUNDS]
//! ```
//!
//! "One core": the same thread fills and empties, as cheap as it gets. "Two threads": one fills and the other empties, each as fast as it
//! can; on a machine with two cores that is all there is. Medians; subjects in turn.

use std::hint::black_box;
use std::thread;
use std::time::Instant;

use crossbeam_queue::ArrayQueue;
use patronus_sync::ring;

const BURST: usize = 32;
const CAPACITY: usize = 1024;
const VALUES: usize = 1 << 22;

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

fn time(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_nanos() as f64 / VALUES as f64
}

fn ring_on_one_core() {
    let (mut producer, mut consumer) = ring::<u64>(CAPACITY);
    for first in (0..VALUES as u64).step_by(BURST) {
        producer.push_some(&mut (0..BURST).map(|n| first + n as u64));
        consumer.drain(BURST).for_each(|value| {
            black_box(value);
        });
    }
}

fn queue_on_one_core() {
    let queue = ArrayQueue::new(CAPACITY);
    for first in (0..VALUES as u64).step_by(BURST) {
        for n in 0..BURST as u64 {
            let _ = queue.push(first + n);
        }
        for _ in 0..BURST {
            black_box(queue.pop());
        }
    }
}

fn ring_between_threads() {
    let (mut producer, mut consumer) = ring::<u64>(CAPACITY);
    let filler = thread::spawn(move || {
        let mut first = 0;
        while first < VALUES as u64 {
            let end = (first + BURST as u64).min(VALUES as u64);
            first += producer.push_some(&mut (0..(end - first) as usize).map(|n| first + n as u64)) as u64;
        }
    });
    let mut seen = 0;
    while seen < VALUES {
        seen += consumer
            .drain(BURST)
            .inspect(|value| {
                black_box(value);
            })
            .count();
    }
    filler.join().expect("the filler");
}

fn queue_between_threads() {
    let queue = std::sync::Arc::new(ArrayQueue::new(CAPACITY));
    let other = std::sync::Arc::clone(&queue);
    let filler = thread::spawn(move || {
        for value in 0..VALUES as u64 {
            while other.push(value).is_err() {}
        }
    });
    let mut seen = 0;
    while seen < VALUES {
        seen += usize::from(black_box(queue.pop()).is_some());
    }
    filler.join().expect("the filler");
}

fn main() {
    let rounds = std::env::args()
        .nth(1)
        .and_then(|rounds| rounds.parse().ok())
        .unwrap_or(11);
    let subjects: [(&str, fn()); 4] = [
        ("ring, one core", ring_on_one_core),
        ("queue, one core", queue_on_one_core),
        ("ring, two threads", ring_between_threads),
        ("queue, two threads", queue_between_threads),
    ];
    let mut found = subjects.map(|_| Vec::new());
    for _ in 0..rounds {
        for (times, (_, subject)) in found.iter_mut().zip(subjects) {
            times.push(time(subject));
        }
    }
    for (times, (name, _)) in found.into_iter().zip(subjects) {
        println!("{name:<20} {:6.2} ns a value", median(times));
    }
}
