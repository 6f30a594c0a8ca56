//! No copy of a key is left behind: the whole writable memory of this process is searched for it.
//!
//! One test and one thread, so that nothing else runs while memory is read.

use patronus_crypto::aead::{self, Job, TAG};
use patronus_crypto::keypair::{Keypair, Session};
use patronus_crypto::timeouts::Timeouts;
use patronus_crypto::{PeerId, Time, x25519};
use patronus_mem::Secret;
use std::fs::{File, read_to_string};
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// What keys are hidden behind while they are only looked for.
const MASK: u8 = 0xa5;

/// 32 bytes that appear nowhere by chance, masked, so that the searching code holds no copy of its own.
fn masked(seed: u64) -> [u8; 32] {
    let mut state = seed;
    std::array::from_fn(|_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
}

fn unmask(out: &mut [u8; 32], masked: &[u8; 32]) {
    for (out, byte) in out.iter_mut().zip(masked) {
        *out = byte ^ MASK;
    }
}

fn place(secret: &Secret<32>) -> Range<usize> {
    let start = secret.as_ptr() as usize;
    start..start + 32
}

/// The writable parts of this process's memory.
fn writable() -> Vec<Range<usize>> {
    let maps = read_to_string("/proc/self/maps").unwrap();
    maps.lines()
        .filter(|line| {
            line.split(' ')
                .nth(1)
                .is_some_and(|rights| rights.starts_with("rw"))
        })
        .map(|line| {
            let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
            usize::from_str_radix(start, 16).unwrap()..usize::from_str_radix(end, 16).unwrap()
        })
        .collect()
}

/// Addresses of every eight bytes in a row of the key that stand anywhere but in `known` places.
fn copies(masked: &[u8; 32], known: &[Range<usize>]) -> Vec<usize> {
    const STEP: usize = 1 << 16;
    let memory = File::open("/proc/self/mem").unwrap();
    let mut buf = vec![0; STEP + 8];
    let own = buf.as_ptr() as usize..buf.as_ptr() as usize + buf.len();
    let mut found = Vec::new();
    for region in writable() {
        for start in region.clone().step_by(STEP) {
            let len = (region.end - start).min(buf.len());
            if memory.read_exact_at(&mut buf[..len], start as u64).is_err() {
                continue; // A page that may be mapped and not read.
            }
            for (offset, window) in buf[..len].windows(8).enumerate() {
                let address = start + offset;
                let here = |part: &[u8]| window.iter().zip(part).all(|(seen, key)| seen ^ MASK == *key);
                if window[0] ^ MASK != masked[0]
                    && window[0] ^ MASK != masked[8]
                    && window[0] ^ MASK != masked[16]
                    && window[0] ^ MASK != masked[24]
                {
                    continue;
                }
                if masked.chunks(8).any(here)
                    && !own.contains(&address)
                    && !known.iter().any(|place| place.contains(&address))
                {
                    found.push(address);
                }
            }
        }
    }
    buf.fill(0);
    found.sort_unstable();
    found.dedup();
    found
}

/// Runs `f` far down the stack, where the search itself does not overwrite what `f` leaves.
#[inline(never)]
fn deep<R>(f: impl FnOnce() -> R) -> R {
    let above = std::hint::black_box([0u8; 256 << 10]);
    let result = f();
    std::hint::black_box(&above);
    result
}

/// Leaves a copy of a secret on the stack, as careless code would.
#[inline(never)]
fn careless(secret: &Secret<32>) {
    std::hint::black_box(**secret);
}

/// The search sees what it is meant to see: on the stack, on the heap and in a secret.
fn the_search_finds_copies() {
    let key = masked(1);
    assert_eq!(copies(&key, &[]), []);
    let secret = Secret::with(|out| unmask(out, &key));
    assert_eq!(copies(&key, &[]).len(), 4, "four times eight bytes");
    assert_eq!(copies(&key, &[place(&secret)]), []);
    let mut on_heap = Box::new([0; 32]);
    unmask(&mut on_heap, &key);
    let mut on_stack = [0; 32];
    unmask(&mut on_stack, &key);
    std::hint::black_box((&mut on_heap, &mut on_stack));
    assert!(copies(&key, &[place(&secret)]).len() >= 8);
    std::hint::black_box((&mut on_heap, &mut on_stack));

    let other = masked(2);
    let secret = Secret::with(|out| unmask(out, &other));
    deep(|| careless(&secret));
    assert_ne!(
        copies(&other, &[place(&secret)]),
        [],
        "what a function leaves when it has returned"
    );
}

fn no_copy_outlives_a_burst() {
    for (number, aead) in aead::all().iter().enumerate() {
        let key = masked(100 + number as u64);
        let secret = Secret::with(|out| unmask(out, &key));
        for len in [0, 64, 1420] {
            let mut bufs: [Vec<u8>; 4] = std::array::from_fn(|_| vec![3; len + TAG]);
            let mut counter = 0;
            let mut jobs = bufs.each_mut().map(|buf| {
                counter += 1;
                Job::new(&secret, counter, buf)
            });
            deep(|| aead.seal(&mut jobs));
            assert_eq!(
                copies(&key, &[place(&secret)]),
                [],
                "{}: after sealing {len} bytes",
                aead.name()
            );
            jobs[1].buf[0] ^= 1;
            deep(|| aead.open(&mut jobs));
            assert_eq!(jobs.each_ref().map(|job| job.ok), [true, false, true, true]);
            assert_eq!(
                copies(&key, &[place(&secret)]),
                [],
                "{}: after opening {len} bytes",
                aead.name()
            );
        }
        assert!(deep(|| aead.seal_one(&secret, &[1; 12], b"aad", &mut [0; 100])));
        assert_eq!(copies(&key, &[place(&secret)]), [], "{}: after one", aead.name());
        drop(secret);
        assert_eq!(copies(&key, &[]), [], "{}: after the key is dropped", aead.name());
    }
}

fn no_copy_outlives_a_key_agreement() {
    for (number, dh) in x25519::all().iter().enumerate() {
        let key = masked(200 + number as u64);
        let private = Secret::with(|out| unmask(out, &key));
        let public = deep(|| dh.public(&private));
        assert_eq!(
            copies(&key, &[place(&private)]),
            [],
            "{}: after the public key",
            dh.name()
        );
        let shared = deep(|| dh.shared(&private, &public)).unwrap();
        assert_eq!(
            copies(&key, &[place(&private)]),
            [],
            "{}: after the shared secret",
            dh.name()
        );
        // The shared secret is in its own place and nowhere else.
        let mut masked_shared = [0; 32];
        unmask(&mut masked_shared, &shared);
        assert_eq!(
            copies(&masked_shared, &[place(&shared)]),
            [],
            "{}: of the shared secret",
            dh.name()
        );
    }
}

fn no_copy_outlives_a_keypair() {
    let key = masked(300);
    let mut keypair = Keypair::vacant(128);
    let session = Session {
        peer: PeerId(0),
        local_index: 1,
        remote_index: 2,
        initiator: true,
        created: Time(0),
    };
    let secret = Secret::with(|out| unmask(out, &key));
    deep(|| keypair.arm(session, &Timeouts::protocol(), &secret, &secret));
    drop(secret);
    let known = [place(keypair.send_key()), place(keypair.receive_key())];
    assert_eq!(copies(&key, &known), []);
    assert_eq!(copies(&key, &[]).len(), 8, "two keys of four times eight bytes");
    deep(|| keypair.wipe());
    assert_eq!(copies(&key, &[]), []);
}

#[test]
fn c75_no_copy_of_a_key_is_left_in_memory() {
    the_search_finds_copies();
    no_copy_outlives_a_burst();
    no_copy_outlives_a_key_agreement();
    no_copy_outlives_a_keypair();
}
