//! For any processor, one packet after another: safe code, and what the vector kernels are read against.

use crate::poly1305::Poly1305;
use crate::{Packet, TAG, wipe};
use subtle::ConstantTimeEq;

/// Stack that a burst uses, bytes, with room to spare.
const STACK: usize = 2048;

/// Key stream blocks that are made together.
const LANES: usize = 4;

/// One word of each of the blocks.
type Words = [u32; LANES];

pub(crate) fn seal(burst: &mut [Packet<'_>]) {
    seal_all(burst);
    wipe::below(STACK);
}

pub(crate) fn open(burst: &mut [Packet<'_>]) {
    open_all(burst);
    wipe::below(STACK);
}

#[inline(never)]
fn seal_all(burst: &mut [Packet<'_>]) {
    for packet in burst {
        packet.ok = false;
        let Some(len) = packet.text_len() else { continue };
        let (text, tag) = packet.buf.split_at_mut(len);
        let key = crypt(packet.key, &packet.nonce, text);
        tag.copy_from_slice(&authenticate(key, packet.aad, text));
        packet.ok = true;
    }
}

#[inline(never)]
fn open_all(burst: &mut [Packet<'_>]) {
    for packet in burst {
        packet.ok = false;
        let Some(len) = packet.text_len() else { continue };
        let (text, tag) = packet.buf.split_at_mut(len);
        let key = crypt(packet.key, &packet.nonce, &mut []);
        packet.ok = authenticate(key, packet.aad, text).ct_eq(tag).into();
        if packet.ok {
            crypt(packet.key, &packet.nonce, text);
        }
    }
}

/// The tag of a cipher text (RFC 8439, section 2.8).
fn authenticate(key: [u64; 4], aad: &[u8], text: &[u8]) -> [u8; TAG] {
    let mut poly = Poly1305::new(key);
    poly.padded(aad);
    poly.padded(text);
    poly.block([aad.len() as u64, text.len() as u64]);
    poly.tag()
}

/// XORs the key stream onto `text`. Returns the Poly1305 key: the first half of the block before.
fn crypt(key: &[u8; 32], nonce: &[u8; 12], text: &mut [u8]) -> [u64; 4] {
    let mut state = initial(key, nonce);
    let stream = blocks(&state);
    let (first, text) = text.split_at_mut(text.len().min(64 * (LANES - 1)));
    xor(first, &stream[1..]);
    for part in text.chunks_mut(64 * LANES) {
        state[12]
            .iter_mut()
            .for_each(|counter| *counter = counter.wrapping_add(LANES as u32));
        xor(part, &blocks(&state));
    }
    let word = |n| u64::from(stream[0][n]) | u64::from(stream[0][n + 1]) << 32;
    [word(0), word(2), word(4), word(6)]
}

fn xor(text: &mut [u8], stream: &[[u32; 16]]) {
    for (part, block) in text.chunks_mut(64).zip(stream) {
        for (bytes, word) in part.chunks_mut(4).zip(block) {
            bytes
                .iter_mut()
                .zip(word.to_le_bytes())
                .for_each(|(byte, key)| *byte ^= key);
        }
    }
}

/// The state before the rounds (RFC 8439, section 2.3) of blocks 0 to 3, words side by side.
fn initial(key: &[u8; 32], nonce: &[u8; 12]) -> [Words; 16] {
    let mut state = [[0; LANES]; 16];
    let constants = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];
    for (words, constant) in state.iter_mut().zip(constants) {
        *words = [constant; LANES];
    }
    for (words, bytes) in state[4..12].iter_mut().zip(key.as_chunks::<4>().0) {
        *words = [u32::from_le_bytes(*bytes); LANES];
    }
    state[12] = std::array::from_fn(|block| block as u32);
    for (words, bytes) in state[13..].iter_mut().zip(nonce.as_chunks::<4>().0) {
        *words = [u32::from_le_bytes(*bytes); LANES];
    }
    state
}

/// The key stream blocks that follow from `state`.
fn blocks(state: &[Words; 16]) -> [[u32; 16]; LANES] {
    let mut x = *state;
    for _ in 0..10 {
        for [a, b, c, d] in [[0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15]] {
            quarter_round(&mut x, a, b, c, d);
        }
        for [a, b, c, d] in [[0, 5, 10, 15], [1, 6, 11, 12], [2, 7, 8, 13], [3, 4, 9, 14]] {
            quarter_round(&mut x, a, b, c, d);
        }
    }
    std::array::from_fn(|lane| std::array::from_fn(|word| x[word][lane].wrapping_add(state[word][lane])))
}

/// RFC 8439, section 2.1, in every lane.
#[inline(always)]
fn quarter_round(x: &mut [Words; 16], a: usize, b: usize, c: usize, d: usize) {
    let mut step = |to: usize, from: usize, turned: usize, by: u32| {
        for lane in 0..LANES {
            x[to][lane] = x[to][lane].wrapping_add(x[from][lane]);
            x[turned][lane] = (x[turned][lane] ^ x[to][lane]).rotate_left(by);
        }
    };
    step(a, b, d, 16);
    step(c, d, b, 12);
    step(a, b, d, 8);
    step(c, d, b, 7);
}
