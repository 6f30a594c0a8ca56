//! Measures what it costs to give cache lines from one core to another: the floor under every way of handing packets over.
//!
//! ```text
//! cargo run --release -p patronus-engine --example lines [ROUNDS]
//! ```
//!
//! *There and back*: two threads on two cores pass one line to and fro, so nothing overlaps. *Streams*: two threads give each other bursts of 64
//! frames of so many lines, as two workers do that hand over everything: who takes a frame asks for its lines, reads and writes them, and fills the
//! same frame for the other side next. "Alone" is the same with frames that stay on their core. Medians over the rounds, nanoseconds a frame of one
//! core's time.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use patronus_mem::{Table, prefetch, prefetch_write};
use patronus_sync::{Consumer, Producer, ring};
use rustix::thread::{CpuSet, sched_setaffinity};

const BURST: usize = 64;
const BURSTS: usize = 4000;
const FRAMES: usize = 2048;
const LINES_MAX: usize = 4;
const TRIPS: u64 = 100_000;

#[derive(Default)]
#[repr(align(64))]
struct Line(AtomicU64);

/// Lines of frames as far apart as those of packets.
struct Frames([Table<[Line; 3]>; LINES_MAX]);

fn pin(core: usize) {
    let mut cpus = CpuSet::new();
    cpus.set(core);
    // Where that is not allowed the scheduler keeps them apart, more or less.
    let _ = sched_setaffinity(None, &cpus);
}

fn there_and_back() -> f64 {
    let line = Line::default();
    let answer = |remainder: u64| {
        move |line: &Line| {
            for trip in 0..TRIPS {
                while line.0.load(Ordering::Acquire) != 2 * trip + remainder {
                    std::hint::spin_loop();
                }
                line.0.store(2 * trip + remainder + 1, Ordering::Release);
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pin(1);
            answer(1)(&line);
        });
        pin(0);
        let start = Instant::now();
        answer(0)(&line);
        start.elapsed().as_nanos() as f64 / (2 * TRIPS) as f64
    })
}

#[derive(Clone, Copy, PartialEq)]
enum Ask {
    Not,
    Read,
    Write,
}

fn side(
    frames: &Frames,
    lines: usize,
    ask: Ask,
    mine: std::ops::Range<u32>,
    to: &mut Producer<u32>,
    from: &mut Consumer<u32>,
) -> f64 {
    let mut free: Vec<u32> = mine.collect();
    let touch = |frame: u32, by: u64| {
        for table in &frames.0[..lines] {
            let line = &table[frame as usize][0].0;
            line.store(line.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
        }
    };
    let mut taken = Vec::with_capacity(BURST);
    let (mut given, mut got) = (0, 0);
    let start = Instant::now();
    while got < BURSTS * BURST {
        let fitting = to
            .room(BURST)
            .min(free.len())
            .min(BURSTS * BURST - given)
            .min(BURST);
        for frame in &free[free.len() - fitting..] {
            touch(*frame, 1);
        }
        let at = free.len() - fitting;
        given += to.push_some(&mut free.drain(at..));
        taken.extend(from.drain(BURST));
        for frame in &taken {
            for table in &frames.0[..lines] {
                match ask {
                    Ask::Not => {}
                    Ask::Read => prefetch(&table[*frame as usize][0]),
                    Ask::Write => prefetch_write(&table[*frame as usize][0]),
                }
            }
        }
        for frame in &taken {
            touch(*frame, 2);
        }
        got += taken.len();
        free.append(&mut taken);
    }
    start.elapsed().as_nanos() as f64 / (BURSTS * BURST) as f64
}

fn stream(frames: &Frames, lines: usize, ask: Ask, cores: usize) -> f64 {
    let (mut ab, mut ba) = (ring(1024), ring(1024));
    if cores == 1 {
        pin(0);
        return side(frames, lines, ask, 0..FRAMES as u32 / 2, &mut ab.0, &mut ab.1);
    }
    let barrier = Barrier::new(2);
    let half = FRAMES as u32 / 2;
    std::thread::scope(|scope| {
        let (barrier, to, from) = (&barrier, &mut ba.0, &mut ab.1);
        let other = scope.spawn(move || {
            pin(1);
            barrier.wait();
            side(frames, lines, ask, half..2 * half, to, from)
        });
        pin(0);
        barrier.wait();
        let here = side(frames, lines, ask, 0..half, &mut ab.0, &mut ba.1);
        here.max(other.join().expect("the other side"))
    })
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

fn main() {
    let rounds = std::env::args()
        .nth(1)
        .and_then(|rounds| rounds.parse().ok())
        .unwrap_or(11);
    let table = || Table::new(FRAMES, Default::default).expect("memory");
    let frames = Frames(std::array::from_fn(|_| table()));
    let trips = (0..rounds).map(|_| there_and_back()).collect();
    println!("there and back: {:.1} ns each way", median(trips));
    println!("lines a frame     alone   not asked for   asked for to read   asked for to write");
    for lines in 0..=LINES_MAX {
        let mut found = [const { Vec::new() }; 4];
        for _ in 0..rounds {
            let subjects = [(Ask::Not, 1), (Ask::Not, 2), (Ask::Read, 2), (Ask::Write, 2)];
            for (found, (ask, cores)) in found.iter_mut().zip(subjects) {
                found.push(stream(&frames, lines, ask, cores));
            }
        }
        let [alone, not, read, write] = found.map(median);
        println!("{lines:>13} {alone:>9.1} {not:>15.1} {read:>19.1} {write:>20.1}");
    }
}
