//! When a session's keys are erased, no byte of them is left in this process: the whole writable memory is searched for
//! them, after real handshakes and real traffic, with each AEAD backend.
//!
//! One test and one thread, so that nothing else runs while memory is read.

mod common;

use std::fs::{File, read_to_string};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use patronus_crypto::aead;
use patronus_engine::channel::Command;
use patronus_mem::Secret;

use crate::common::{A, B, FRAMES, MASK, Net, SessionKeys, Setup, ms, packet, secs};

/// The writable parts of this process's memory.
fn writable() -> Vec<Range<u64>> {
    let maps = read_to_string("/proc/self/maps").unwrap();
    let rights = |line: &&str| {
        line.split(' ')
            .nth(1)
            .is_some_and(|rights| rights.starts_with("rw"))
    };
    maps.lines()
        .filter(rights)
        .map(|line| {
            let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
            u64::from_str_radix(start, 16).unwrap()..u64::from_str_radix(end, 16).unwrap()
        })
        .collect()
}

/// The addresses of every eight bytes in a row of one of the masked keys. The keys are known only behind the mask, so
/// that the search does not find itself.
fn copies(masked: &[[u8; 32]]) -> Vec<u64> {
    const STEP: usize = 1 << 18;
    const PAGE: usize = 1 << 12;
    let first = |byte: u8| masked.iter().any(|key| key.iter().step_by(8).any(|k| *k == byte));
    let starts: [bool; 256] = std::array::from_fn(|byte| first(byte as u8 ^ MASK));
    let memory = File::open("/proc/self/mem").unwrap();
    let mut buf = vec![0; STEP + 8];
    let own = buf.as_ptr() as u64..buf.as_ptr() as u64 + buf.len() as u64;
    let mut found = Vec::new();
    for region in writable() {
        for start in region.clone().step_by(STEP) {
            let len = ((region.end - start) as usize).min(buf.len());
            if memory.read_exact_at(&mut buf[..len], start).is_err() {
                continue; // A page that may be mapped and not read.
            }
            for (number, page) in buf[..len].chunks(PAGE).enumerate() {
                // Most pages of a process were never written.
                if *page == [0; PAGE][..page.len()] {
                    continue;
                }
                for at in (number * PAGE..).take(page.len()) {
                    if !starts[usize::from(buf[at])] || own.contains(&(start + at as u64)) {
                        continue;
                    }
                    let Some(window) = buf[..len].get(at..at + 8) else {
                        continue;
                    };
                    let here = |part: &[u8]| window.iter().zip(part).all(|(seen, key)| seen ^ MASK == *key);
                    if masked.iter().any(|key| key.chunks(8).any(here)) {
                        found.push(start + at as u64);
                    }
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

fn keys(sessions: &[SessionKeys]) -> Vec<[u8; 32]> {
    sessions.iter().flat_map(|s| [s.send, s.receive]).collect()
}

/// Session after session with traffic both ways, then the end of all of them in each of the ways there are.
fn no_key_outlives_its_session(number: usize, how: usize) {
    let aead = aead::all()[number];
    let setup = Setup {
        aead,
        ..Setup::default()
    };
    let mut net = Net::pair_with(&setup);
    net.logging = false;
    deep(|| {
        for round in 0..4 {
            for (from, to) in [(A, B), (B, A)] {
                for id in 0..20 {
                    net.offer(
                        from,
                        &packet::between(from, to, round * 100 + id, 60 + 60 * id as usize),
                    );
                }
                net.run(secs(1));
            }
            net.run(secs(120));
        }
    });
    let sessions: Vec<_> = net.sites[A].sessions.clone();
    assert!(
        sessions.len() >= 4,
        "{}: {} sessions",
        aead.name(),
        sessions.len()
    );
    assert_eq!(net.sites[A].drops(), []);

    // Both sites are in this process and have both keys, in locked memory: of the last two sessions.
    let (old, live) = sessions.split_at(sessions.len() - 2);
    assert_eq!(copies(&keys(old)), [], "{}: retired sessions", aead.name());
    let found = copies(&keys(live)).len();
    assert_eq!(
        found,
        2 * 2 * 2 * 4,
        "{}: two sites, two sessions, two keys",
        aead.name()
    );

    deep(|| match how {
        0 => {
            for (site, other) in [(A, B), (B, A)] {
                let peer = net.peer(site, other);
                net.command(site, peer, Command::EraseKeys(peer));
                net.settle();
            }
        }
        1 => {
            for (site, other) in [(A, B), (B, A)] {
                net.remove_peer(site, net.peer(site, other));
                net.settle();
            }
        }
        2 => {
            for site in [A, B] {
                net.set_up(site, false);
            }
        }
        // C54: nothing for 540 seconds.
        _ => {
            net.run(secs(550));
        }
    });
    net.run(ms(1));
    assert_eq!(copies(&keys(&sessions)), [], "{}: all are erased", aead.name());
    net.finish();
}

fn the_search_finds_copies() {
    let masked: [u8; 32] = std::array::from_fn(|n| (n as u8).wrapping_mul(73) ^ 0x5b);
    assert_eq!(copies(&[masked]), []);
    let secret = Secret::<32>::with(|out| {
        for (out, byte) in out.iter_mut().zip(&masked) {
            *out = byte ^ MASK;
        }
    });
    assert_eq!(copies(&[masked]).len(), 4, "four times eight bytes");
    let on_heap = Box::new(secret[8..24].to_vec());
    assert_eq!(copies(&[masked]).len(), 6);
    drop(secret);
    assert_eq!(copies(&[masked]).len(), 2);
    std::hint::black_box(on_heap);
}

#[test]
fn c54_c75_no_session_key_is_left_when_it_is_erased() {
    // Less to search.
    FRAMES.store(1024, Ordering::Relaxed);
    the_search_finds_copies();
    for how in 0..4 {
        no_key_outlives_its_session(0, how);
    }
    for number in 1..aead::all().len() {
        no_key_outlives_its_session(number, 0);
    }
}
