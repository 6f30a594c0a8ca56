//! What a handshake's cryptography costs on this machine: X25519 of every backend, and mac1. The AEAD is `patronus-bench aead`'s.
//!
//! `cargo run --release -p patronus-crypto --example primitives [ROUNDS]`
//!
//! Rounds are interleaved (each operation in turn, then again), so that a noisy neighbour hits all of them alike, and timed
//! by this thread's CPU clock; printed are the median and, in brackets, the least over all rounds. The figures in docs/adr/0004 come from here.

#![forbid(unsafe_code)]

use blake2::Blake2sMac;
use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput, KeyInit, Update};
use patronus_crypto::x25519;
use patronus_mem::Secret;
use std::hint::black_box;
use std::time::Duration;

/// Least time that one sample takes.
const SAMPLE: Duration = Duration::from_micros(500);

/// An operation that is timed.
struct Subject<'a> {
    name: String,
    call: Box<dyn FnMut() + 'a>,
}

fn main() {
    let rounds = std::env::args()
        .nth(1)
        .map_or(101, |n| n.parse().expect("a number of rounds"));
    println!("ns an operation, median (least)\n");
    println!("| operation | ns |\n|---|---|");
    let mut subjects = Vec::new();
    for &dh in x25519::all() {
        let private = Secret::with(|out| out.fill(0x42));
        let public = dh.public(&Secret::with(|out| out.fill(0x24)));
        subjects.push(Subject {
            name: format!("X25519 shared, {}", dh.name()),
            call: Box::new(move || drop(black_box(dh.shared(black_box(&private), &public)))),
        });
    }
    for &dh in x25519::all() {
        let private = Secret::with(|out| out.fill(0x42));
        subjects.push(Subject {
            name: format!("X25519 public, {}", dh.name()),
            call: Box::new(move || {
                black_box(dh.public(black_box(&private)));
            }),
        });
    }
    subjects.push(Subject {
        name: "mac1 of 116 B, blake2".to_owned(),
        call: Box::new(|| {
            let mut state = Blake2sMac::<U16>::new(black_box(&[7; 32]).into());
            state.update(black_box(&[1; 116]));
            black_box(state.finalize_fixed());
        }),
    });
    for (name, figures) in measure(&mut subjects, rounds) {
        println!("| {name} | {figures} |");
    }
}

/// Times every subject in turn, `rounds` times over.
fn measure(subjects: &mut [Subject<'_>], rounds: usize) -> Vec<(String, String)> {
    let repeats: Vec<u32> = subjects.iter_mut().map(repeats).collect();
    let mut samples = vec![Vec::with_capacity(rounds); subjects.len()];
    for _ in 0..rounds {
        for ((subject, &repeats), samples) in subjects.iter_mut().zip(&repeats).zip(&mut samples) {
            let begun = cpu_time();
            for _ in 0..repeats {
                (subject.call)();
            }
            samples.push((cpu_time() - begun).as_nanos() as f64 / f64::from(repeats));
        }
    }
    subjects
        .iter()
        .zip(samples)
        .map(|(subject, mut samples)| {
            samples.sort_by(f64::total_cmp);
            (
                subject.name.clone(),
                format!("{:.0} ({:.0})", samples[samples.len() / 2], samples[0]),
            )
        })
        .collect()
}

/// How many calls make a sample; warms up on the way.
fn repeats(subject: &mut Subject<'_>) -> u32 {
    let mut repeats = 1;
    loop {
        let begun = cpu_time();
        for _ in 0..repeats {
            (subject.call)();
        }
        if cpu_time() - begun >= SAMPLE {
            return repeats;
        }
        repeats *= 2;
    }
}

/// The CPU time that this thread has used.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
