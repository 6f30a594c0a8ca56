//! What the cryptography costs on this machine: AEAD bursts, X25519 and mac1, every backend.
//!
//! `cargo run --release -p patronus-crypto --example primitives [ROUNDS]`
//!
//! Rounds are interleaved (each backend in turn, then again), so that a noisy neighbour hits all of them alike, and timed
//! by this thread's CPU clock; printed are the median and, in brackets, the least over all rounds. `ring` is here to compare with, and is no backend: it keeps
//! copies of keys that it does not clear. The figures in docs/adr/0003 and 0004 come from here.

#![forbid(unsafe_code)]

use blake2::Blake2sMac;
use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput, KeyInit, Update};
use patronus_crypto::aead::{self, Aead, Job, TAG};
use patronus_crypto::x25519;
use patronus_mem::Secret;
use std::hint::black_box;
use std::time::Duration;

/// Plain text sizes, bytes.
const SIZES: [usize; 6] = [64, 256, 512, 1024, 1420, 8900];
/// Packets in flight, each with a key of its own.
const KEYS: usize = 32;
/// Least time that one sample takes.
const SAMPLE: Duration = Duration::from_micros(500);

/// Something that is timed: how many operations it does a call, and the call.
struct Subject<'a> {
    name: String,
    per_call: u32,
    call: Box<dyn FnMut() + 'a>,
}

fn main() {
    let rounds = std::env::args()
        .nth(1)
        .map_or(101, |n| n.parse().expect("a number of rounds"));
    aead_table("seal", 1, rounds);
    aead_table("seal", KEYS, rounds);
    aead_table("open", 1, rounds);
    aead_table("open", KEYS, rounds);
    handshake_table(rounds);
}

fn aead_table(what: &str, burst: usize, rounds: usize) {
    println!("\n{what}, bursts of {burst}, {KEYS} keys: ns a packet, median (least)\n");
    println!("| backend |{}", SIZES.map(|size| format!(" {size} B |")).concat());
    println!("|---|{}", "---|".repeat(SIZES.len()));
    let mut rows: Vec<(String, String)> = Vec::new();
    for size in SIZES {
        let mut subjects: Vec<_> = aead::all()
            .iter()
            .map(|&aead| backend(aead, what, burst, size))
            .collect();
        subjects.push(ring(what, size));
        for (n, (name, figures)) in measure(&mut subjects, rounds).into_iter().enumerate() {
            if rows.len() <= n {
                rows.push((name, String::new()));
            }
            rows[n].1 += &format!(" {figures} |");
        }
    }
    for (name, figures) in rows {
        println!("| {name} |{figures}");
    }
}

fn keys() -> Vec<[u8; 32]> {
    (0..KEYS)
        .map(|n| std::array::from_fn(|i| (n * 32 + i) as u8))
        .collect()
}

/// Seals every buffer again and again, or opens copies of sealed ones. Opening includes bringing the cipher text
/// back (a copy), sealing does not need to.
fn backend<'a>(aead: &'static dyn Aead, what: &str, burst: usize, size: usize) -> Subject<'a> {
    let keys: Vec<Secret<32>> = keys().iter_mut().map(Secret::new).collect();
    let mut bufs: Vec<Vec<u8>> = vec![vec![0; size + TAG]; KEYS];
    let opening = what == "open";
    if opening {
        let mut jobs: Vec<_> = keys
            .iter()
            .zip(&mut bufs)
            .map(|(key, buf)| Job::new(key, 1, buf))
            .collect();
        aead.seal(&mut jobs);
    }
    let sealed = bufs.clone();
    let call = move || {
        for first in (0..KEYS).step_by(burst) {
            let packets = first..first + burst;
            let mut jobs: arrayvec::ArrayVec<Job<'_>, KEYS> = arrayvec::ArrayVec::new();
            for ((key, buf), sealed) in keys[packets.clone()]
                .iter()
                .zip(&mut bufs[packets.clone()])
                .zip(&sealed[packets])
            {
                if opening {
                    buf.copy_from_slice(sealed);
                }
                jobs.push(Job::new(key, 1, buf));
            }
            if opening {
                aead.open(&mut jobs);
            } else {
                aead.seal(&mut jobs);
            }
            assert!(jobs.iter().all(|job| job.ok));
        }
        black_box(&bufs);
    };
    Subject {
        name: aead.name().to_owned(),
        per_call: KEYS as u32,
        call: Box::new(call),
    }
}

/// The same with ring, its keys set up beforehand.
fn ring<'a>(what: &str, size: usize) -> Subject<'a> {
    use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
    let keys: Vec<_> = keys()
        .iter()
        .map(|key| LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).expect("a key of 32 bytes")))
        .collect();
    let nonce = || Nonce::assume_unique_for_key([0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    let mut bufs: Vec<Vec<u8>> = vec![vec![0; size + TAG]; KEYS];
    let seal = move |key: &LessSafeKey, buf: &mut [u8]| {
        let (text, tag) = buf.split_at_mut(size);
        let computed = key
            .seal_in_place_separate_tag(nonce(), Aad::empty(), text)
            .expect("sealed");
        tag.copy_from_slice(computed.as_ref());
    };
    let opening = what == "open";
    if opening {
        keys.iter().zip(&mut bufs).for_each(|(key, buf)| seal(key, buf));
    }
    let sealed = bufs.clone();
    let call = move || {
        for ((key, buf), sealed) in keys.iter().zip(&mut bufs).zip(&sealed) {
            if opening {
                buf.copy_from_slice(sealed);
                key.open_in_place(nonce(), Aad::empty(), buf).expect("opened");
            } else {
                seal(key, buf);
            }
        }
        black_box(&bufs);
    };
    Subject {
        name: "(ring)".to_owned(),
        per_call: KEYS as u32,
        call: Box::new(call),
    }
}

fn handshake_table(rounds: usize) {
    println!("\nhandshake primitives: ns an operation, median (least)\n");
    println!("| operation | ns |\n|---|---|");
    let mut subjects = Vec::new();
    for &dh in x25519::all() {
        let private = Secret::with(|out| out.fill(0x42));
        let public = dh.public(&Secret::with(|out| out.fill(0x24)));
        subjects.push(Subject {
            name: format!("X25519 shared, {}", dh.name()),
            per_call: 1,
            call: Box::new(move || drop(black_box(dh.shared(black_box(&private), &public)))),
        });
    }
    for &dh in x25519::all() {
        let private = Secret::with(|out| out.fill(0x42));
        subjects.push(Subject {
            name: format!("X25519 public, {}", dh.name()),
            per_call: 1,
            call: Box::new(move || {
                black_box(dh.public(black_box(&private)));
            }),
        });
    }
    subjects.push(Subject {
        name: "mac1 of 116 B, blake2".to_owned(),
        per_call: 1,
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
            let calls = f64::from(repeats) * f64::from(subject.per_call);
            samples.push((cpu_time() - begun).as_nanos() as f64 / calls);
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
