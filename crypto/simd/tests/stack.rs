//! What a burst leaves on the stack: no word of a key, and none of the key stream.
//!
//! One test and one thread, so that nothing else runs while memory is read.

use patronus_crypto_simd::{Isa, Kernel, Packet, TAG};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// What keys are hidden behind while they are only looked for.
const MASK: u32 = 0xa5a5_a5a5;
/// Stack below a burst's caller that is looked at, bytes: more than any kernel uses.
const DEPTH: usize = 40 << 10;

/// Words that are nowhere by chance.
fn masked(seed: u32) -> Vec<u32> {
    let mut state = seed;
    (0..8)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state ^ state >> 15 | 0x0101_0100) ^ MASK
        })
        .collect()
}

/// The stack below this function's caller.
#[inline(never)]
fn below() -> Vec<u32> {
    let here = 0u8;
    let end = std::hint::black_box(&raw const here) as usize;
    let mut bytes = vec![0; DEPTH];
    let memory = File::open("/proc/self/mem").unwrap();
    memory.read_exact_at(&mut bytes, (end - DEPTH) as u64).unwrap();
    // At every place, as a copy may lie at any.
    bytes
        .windows(4)
        .map(|word| u32::from_ne_bytes(word.try_into().unwrap()))
        .collect()
}

/// Touches the stack, so that all of it is there to be looked at, and nothing of what was before.
#[inline(never)]
fn clean() {
    std::hint::black_box(&mut [0x11u8; DEPTH + 4096]);
}

#[inline(never)]
fn work(kernel: Kernel, packets: &mut [Packet<'_>], open: bool) {
    if open {
        kernel.open(packets)
    } else {
        kernel.seal(packets)
    }
}

/// Leaves words of a key behind, as careless code would.
#[inline(never)]
fn careless(key: &[u8; 32]) {
    let words: [u32; 8] = std::array::from_fn(|n| u32::from_ne_bytes(key[4 * n..][..4].try_into().unwrap()));
    std::hint::black_box([[words; 4]; 4]);
}

#[test]
fn c75_no_word_of_a_key_or_of_the_key_stream_is_left() {
    let secret = masked(99);
    let key: Box<[u8; 32]> = Box::new(std::array::from_fn(|n| {
        (secret[n / 4] ^ MASK).to_ne_bytes()[n % 4]
    }));
    clean();
    careless(&key);
    let left = below();
    assert!(
        left.iter().any(|word| secret.contains(&(word ^ MASK))),
        "the search finds what is left"
    );

    for kernel in Isa::ALL.into_iter().filter_map(Kernel::new) {
        for (round, (count, len)) in [
            (1, 0),
            (1, 64),
            (1, 300),
            (1, 959),
            (1, 1420),
            (1, 9000),
            (2, 64),
            (5, 1420),
            (12, 300),
            (13, 64),
            (32, 64),
            (33, 576),
            (64, 1420),
        ]
        .into_iter()
        .enumerate()
        {
            let secrets: Vec<Vec<u32>> = (0..count).map(|n| masked((round * 100 + n) as u32)).collect();
            let keys: Vec<[u8; 32]> = secrets
                .iter()
                .map(|secret| std::array::from_fn(|n| (secret[n / 4] ^ MASK).to_ne_bytes()[n % 4]))
                .collect();
            // Sealed zeros are the key stream.
            let mut bufs = vec![vec![0; len + TAG]; count];
            for open in [false, true] {
                let mut packets: Vec<Packet<'_>> = keys
                    .iter()
                    .zip(&mut bufs)
                    .map(|(key, buf)| Packet::new(key, [7; 12], &[], buf))
                    .collect();
                clean();
                work(kernel, &mut packets, open);
                let left = below();
                assert!(packets.iter().all(|packet| packet.ok));
                drop(packets);
                if open {
                    continue;
                }
                let stream = bufs.iter().flat_map(|buf| buf[..len].chunks_exact(4).step_by(3));
                let stream: std::collections::HashSet<u32> = stream
                    .map(|word| u32::from_ne_bytes(word.try_into().unwrap()))
                    .collect();
                let secrets: std::collections::HashSet<u32> =
                    secrets.iter().flatten().map(|word| word ^ MASK).collect();
                let of_keys = left.iter().filter(|word| secrets.contains(word)).count();
                // Among so many words, one or two may be the same by chance.
                let of_stream = left.iter().filter(|word| stream.contains(word)).count();
                assert!(
                    of_keys == 0,
                    "{kernel:?}, {count} of {len} bytes: {of_keys} words of keys"
                );
                assert!(
                    of_stream <= 2,
                    "{kernel:?}, {count} of {len} bytes: {of_stream} words of key stream"
                );
            }
        }
    }
}
