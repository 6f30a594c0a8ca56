//! What must take the same time whatever a secret is, measured: two classes of input in random order, and Welch's t over
//! their times (the method of dudect, Reparaz, Balasch and Verbauwhede 2016).

use patronus_crypto::aead::{self, Job, TAG};
use patronus_mem::Secret;
use std::hint::black_box;
use std::sync::atomic::{Ordering, fence};
use std::time::Instant;

/// Calls a class and an attempt.
const SAMPLES: usize = 20_000;
/// Above this, two classes differ. The method's usual bound is 4.5; a shared machine gets some slack, which a
/// comparison that stops at the first difference exceeds many times over.
const DIFFERENT: f64 = 10.0;
/// Means that are closer than this, nanoseconds, are the same: three cycles, as where a byte lies in its line may cost. A comparison of 16
/// bytes that stops early saves some fifteen.
const NOTHING: f64 = 1.0;

/// Welch's t between the times that `work` takes after `prepare(false)` and after `prepare(true)`.
fn t_value<S>(state: &mut S, prepare: impl Fn(&mut S, bool), work: impl Fn(&mut S)) -> f64 {
    let mut times = [Vec::with_capacity(SAMPLES * 2), Vec::with_capacity(SAMPLES * 2)];
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..2 * SAMPLES {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let class = random & 1 == 1;
        prepare(state, class);
        // Which byte was written last must not be told by how it reaches the first load: the store buffer is emptied.
        fence(Ordering::SeqCst);
        let begun = Instant::now();
        work(state);
        times[usize::from(class)].push(begun.elapsed().as_nanos() as f64);
    }
    // The slowest tenth is interrupts and other people's work.
    let mut all: Vec<f64> = times.concat();
    all.sort_by(f64::total_cmp);
    let limit = all[all.len() * 9 / 10];
    let [a, b] = times.map(|times| {
        let kept: Vec<f64> = times.into_iter().filter(|&time| time <= limit).collect();
        let count = kept.len() as f64;
        let mean = kept.iter().sum::<f64>() / count;
        let variance = kept.iter().map(|time| (time - mean).powi(2)).sum::<f64>() / (count - 1.0);
        (mean, variance / count)
    });
    let difference = a.0 - b.0;
    if difference.abs() < NOTHING {
        return 0.0;
    }
    difference / (a.1 + b.1).sqrt().max(1e-9)
}

/// Whether the classes differ, the same way round, in each of five attempts: chance and neighbours do not repeat.
fn differs<S>(mut state: S, prepare: impl Fn(&mut S, bool), work: impl Fn(&mut S)) -> bool {
    let mut first = 0.0;
    for attempt in 0..5 {
        let t = t_value(&mut state, &prepare, &work);
        if attempt == 0 {
            first = t;
        }
        if t.abs() < DIFFERENT || (t > 0.0) != (first > 0.0) {
            return false;
        }
    }
    true
}

#[test]
fn c77_the_measurement_finds_a_comparison_that_stops_early() {
    let prepare = |state: &mut ([u8; 256], [u8; 256]), late: bool| {
        state.1 = state.0;
        state.1[if late { 255 } else { 0 }] ^= 1;
    };
    let early_exit = |state: &mut ([u8; 256], [u8; 256])| {
        for (a, b) in state.0.iter().zip(&state.1) {
            if black_box(a) != black_box(b) {
                break;
            }
        }
    };
    assert!(differs(([7; 256], [0; 256]), prepare, early_exit));
}

/// A tag that is wrong in its first byte takes as long to refuse as one that is wrong in its last.
#[test]
fn c77_tags_are_compared_in_constant_time() {
    for aead in aead::all() {
        let key = Secret::with(|key| key.fill(5));
        let mut sealed = vec![0; 32 + TAG];
        let mut jobs = [Job::new(&key, 1, &mut sealed)];
        aead.seal(&mut jobs);
        assert!(jobs[0].ok);
        let prepare = |buf: &mut Vec<u8>, late: bool| {
            buf.copy_from_slice(&sealed);
            let len = buf.len();
            buf[if late { len - 1 } else { len - TAG }] ^= 1;
        };
        let work = |buf: &mut Vec<u8>| {
            let mut jobs = [Job::new(&key, 1, buf)];
            aead.open(&mut jobs);
            assert!(!jobs[0].ok);
        };
        assert!(!differs(vec![0; 32 + TAG], prepare, work), "{}", aead.name());
    }
}

/// Sealing and opening take as long with a key and a text of zeros as with ones that look random, for every backend, alone and in bursts: no
/// branch, no address and no multiplication depends on them. Takes a quiet minute, hence not among the others:
/// `cargo test --release -p patronus-crypto --test timing -- --ignored`.
#[test]
#[ignore = "takes a minute, and a machine that is left alone"]
fn c77_keys_and_texts_do_not_change_the_time() {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    for aead in aead::all() {
        for (count, len) in [(1, 64), (1, 1420), (32, 64), (16, 200)] {
            let classes = [false, true].map(|drawn| {
                let key = Secret::with(|key| {
                    key.iter_mut()
                        .for_each(|byte| *byte = if drawn { random() } else { 0 })
                });
                let text: Vec<u8> = (0..len).map(|_| if drawn { random() } else { 0 }).collect();
                let mut sealed = [&text[..], &[0; TAG]].concat();
                let mut jobs = [Job::new(&key, 1, &mut sealed)];
                aead.seal(&mut jobs);
                (key, [&text[..], &[0; TAG]].concat(), sealed)
            });
            for open in [false, true] {
                let prepare = |state: &mut (Vec<Vec<u8>>, Secret<32>), class: bool| {
                    let (key, text, sealed) = &classes[usize::from(class)];
                    state
                        .0
                        .iter_mut()
                        .for_each(|buf| buf.copy_from_slice(if open { sealed } else { text }));
                    let key: &[u8; 32] = key;
                    state.1 = Secret::with(|own| *own = *key);
                };
                let work = |state: &mut (Vec<Vec<u8>>, Secret<32>)| {
                    let (bufs, key) = state;
                    let mut jobs: arrayvec::ArrayVec<Job<'_>, 32> =
                        bufs.iter_mut().map(|buf| Job::new(key, 1, buf)).collect();
                    if open {
                        aead.open(&mut jobs)
                    } else {
                        aead.seal(&mut jobs)
                    }
                    assert!(jobs[0].ok);
                };
                let fresh = (vec![vec![0; len + TAG]; count], Secret::with(|key| key.fill(1)));
                let different = differs(fresh, prepare, work);
                println!(
                    "{:18} {} {count:2} x {len:4} B: {}",
                    aead.name(),
                    if open { "open" } else { "seal" },
                    if different { "DIFFERS" } else { "alike" }
                );
                assert!(!different, "{}", aead.name());
            }
        }
    }
}
