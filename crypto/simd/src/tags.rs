//! Poly1305 tags of a group of packets (RFC 8439, section 2.8): one packet in each place of a register, or the blocks of one packet.

use crate::TAG;
use crate::burst::{KEYS, Keys, Work};
use crate::field::{Field, WideOf};
use crate::poly1305::{self, Poly1305};
use crate::vector::{Entries, WIDE, Wide, Window};

/// Bytes of one packet, times the places of a register, from which on its blocks are worked on side by side.
const SIDE_BY_SIDE: usize = 4096;
/// Chunks of one packet from which on four at a time are worth their powers.
const FOUR_CHUNKS: usize = 13;

/// Clears what is not part of an `r`.
#[inline(always)]
fn clamp<F: Field>(f: F, low: WideOf<F>, high: WideOf<F>) -> F::Number {
    let s = f.wide();
    let low = s.and(low, s.wide(poly1305::CLAMP[0]));
    let high = s.and(high, s.wide(poly1305::CLAMP[1]));
    f.number(low, high, s.wide(0))
}

/// `(h + m[0]) r^4 + m[1] r^3 + m[2] r^2 + m[3] r`: what depends on `h` comes last.
#[inline(always)]
fn absorb_four<F: Field>(f: F, h: F::Number, m: [F::Number; 4], powers: &[F::Factor; 4]) -> F::Number {
    let mut sum = f.nothing();
    for n in 1..4 {
        sum = f.add_product(sum, m[n], &powers[n]);
    }
    f.reduce(f.add_product(sum, f.add(h, m[0]), &powers[0]))
}

/// One packet in each place. Texts end together, so that all of them are multiplied by the same powers; what a shorter one has in front
/// of its first block counts as zero.
#[inline(always)]
pub(crate) fn side_by_side<F: Field>(
    f: F,
    group: &[Work<'_>],
    keys: &[Keys],
    first: usize,
    tags: &mut [[u8; TAG]; WIDE],
) {
    let s = f.wide();
    let r = clamp(f, upright(s, keys, 0, first), upright(s, keys, 2, first));
    let one = f.factor(r);
    // The longest is the first.
    let steps = group[0].len.div_ceil(64);
    let mut windows = Windows::new(group, steps);
    let mut h = f.zero();
    if steps > 0 {
        let squared = f.multiply(r, &one);
        let two = f.factor(squared);
        let three = f.factor(f.multiply(squared, &one));
        let four = f.factor(f.multiply(squared, &two));
        let powers = [four, three, two, one];
        for step in 0..steps {
            let m = if windows.ragged(step) {
                windows.take::<F, true>(f)
            } else {
                windows.take::<F, false>(f)
            };
            h = absorb_four(f, h, m, &powers);
        }
    }
    let lens = windows.lens.map(|len| len as u64);
    let m = f.number(s.wide(0), s.wide_load(&lens), s.wide(1));
    h = f.multiply(f.add(h, m), &one);
    for (n, (tag, h)) in tags.iter_mut().zip(f.export(h)).enumerate().take(group.len()) {
        let [_, _, low, high] = Keys::get(keys, first + n);
        *tag = poly1305::finish(h, [low, high]);
    }
}

/// Where each packet of a group is in its text. A step takes 64 bytes of each, four blocks.
struct Windows {
    /// Of the next step.
    at: [*const u8; WIDE],
    lens: [usize; WIDE],
    /// Steps to go when a packet's text begins.
    steps: [usize; WIDE],
    left: usize,
    /// Steps before this one have packets that have not begun.
    begun: usize,
    /// Whether the last step has packets that end in the middle of a block.
    ends_inside: bool,
}

impl Windows {
    #[inline(always)]
    fn new(group: &[Work<'_>], steps: usize) -> Windows {
        let mut windows = Windows {
            at: [std::ptr::null(); WIDE],
            lens: [0; WIDE],
            steps: [0; WIDE],
            left: steps,
            begun: 0,
            ends_inside: false,
        };
        for n in 0..WIDE {
            // Places without a packet do what the first one does.
            let work = group.get(n).unwrap_or(&group[0]);
            let len = work.len;
            windows.lens[n] = len;
            windows.steps[n] = len.div_ceil(64);
            // The last window ends with the last block.
            windows.at[n] = work
                .text()
                .as_ptr()
                .wrapping_add(len.next_multiple_of(16))
                .wrapping_sub(64 * steps);
        }
        for n in 0..WIDE {
            let len = windows.lens[n];
            let whole = len.is_multiple_of(64) && len > 0;
            let begun = steps - windows.steps[n] + usize::from(!whole);
            windows.begun = windows.begun.max(begun);
            windows.ends_inside |= !len.is_multiple_of(16) || len == 0;
        }
        windows
    }

    #[inline(always)]
    fn ragged(&self, step: usize) -> bool {
        step < self.begun || self.left == 1 && self.ends_inside
    }

    /// The four blocks of each packet in the next step.
    #[inline(always)]
    fn take<F: Field, const RAGGED: bool>(&mut self, f: F) -> [F::Number; 4] {
        let s = f.wide();
        let mut windows = [Window {
            at: std::ptr::null(),
            from: 0,
            to: 64,
        }; WIDE];
        let mut tops = [[1; WIDE]; 4];
        for n in 0..WIDE {
            windows[n].at = self.at[n];
            if RAGGED {
                let (from, to) = self.part(n);
                windows[n].from = from;
                windows[n].to = to;
                for (block, top) in tops.iter_mut().enumerate() {
                    top[n] = u64::from(16 * block as u8 >= from);
                }
            }
            self.at[n] = self.at[n].wrapping_add(64);
        }
        self.left -= 1;
        // SAFETY: windows lie in texts that stay borrowed, or say that they do not.
        let blocks = unsafe { s.windows::<RAGGED>(&windows) };
        let mut numbers = [f.zero(); 4];
        for n in 0..4 {
            let top = if RAGGED { s.wide_load(&tops[n]) } else { s.wide(1) };
            numbers[n] = f.number(blocks[n][0], blocks[n][1], top);
        }
        numbers
    }

    /// What of the next window is a packet's own: from where to where.
    #[inline(always)]
    fn part(&self, n: usize) -> (u8, u8) {
        let len = self.lens[n];
        let end = if self.left == 1 {
            64 - (len.wrapping_neg() % 16) as u8
        } else {
            64
        };
        let begin = if self.left > self.steps[n] {
            64
        } else if self.left == self.steps[n] {
            64 * self.steps[n] - len.next_multiple_of(16)
        } else {
            0
        };
        (begin as u8, end)
    }
}

/// One packet: as many blocks of it side by side as there are places, if it has enough of them.
#[inline(always)]
pub(crate) fn alone<E: Entries>(e: E, work: &Work<'_>, key: [u64; 4]) -> [u8; TAG] {
    let mut poly = Poly1305::new(key);
    poly.padded(work.aad());
    let text = work.text();
    let chunk = 16 * E::GROUP;
    let (mut whole, _) = text.split_at(text.len() / 16 * 16);
    if has_chunks::<E>(work) {
        // Blocks that are too few for a chunk come first.
        let (first, chunks) = whole.split_at(whole.len() % chunk);
        poly.whole(first);
        poly.h = e.chunks(poly.h, [key[0], key[1]], chunks);
        whole = &[];
    }
    poly.whole(whole);
    if let Some(block) = work.rest() {
        poly.block(block);
    }
    poly.block([work.aad().len() as u64, work.len as u64]);
    poly.tag()
}

/// Whether blocks of the packet are worked on side by side.
#[inline(always)]
pub(crate) fn has_chunks<E: Entries>(work: &Work<'_>) -> bool {
    work.len >= SIDE_BY_SIDE / E::GROUP
}

/// The state after whole chunks of as many blocks as there are places.
#[inline(always)]
pub(crate) fn chunks<F: Field>(f: F, h: [u64; 3], key: [u64; 2], text: &[u8]) -> [u64; 3] {
    let s = f.wide();
    let lanes = <F::Wide as Wide>::LANES;
    let chunk = 16 * lanes;
    let r1 = clamp(f, s.wide(key[0]), s.wide(key[1]));
    let one = f.factor(r1);
    let r2 = f.multiply(r1, &one);
    let two = f.factor(r2);
    let r4 = f.multiply(r2, &two);
    let mut last = f.select(exponent_bit::<F>(0), r1, r2);
    last = f.select(exponent_bit::<F>(1), last, f.multiply(last, &two));
    let mut power = r4;
    if lanes == 8 {
        let four = f.factor(r4);
        last = f.select(exponent_bit::<F>(2), last, f.multiply(last, &four));
        power = f.multiply(r4, &four);
    }
    let step = f.factor(power);
    let chunks = text.len() / chunk;
    let mut sum = f.add(first_place(f, h), chunk_at(f, text, 0));
    let mut next = 1;
    if F::FOUR && chunks >= FOUR_CHUNKS {
        // Four chunks at a time: their products do not wait for each other.
        let squared = f.multiply(power, &step);
        let two = f.factor(squared);
        let three = f.factor(f.multiply(squared, &step));
        let four = f.factor(f.multiply(squared, &two));
        let powers = [four, three, two, step];
        while next + 4 <= chunks {
            let m = [
                sum,
                chunk_at(f, text, next),
                chunk_at(f, text, next + 1),
                chunk_at(f, text, next + 2),
            ];
            sum = f.add(absorb_four(f, f.zero(), m, &powers), chunk_at(f, text, next + 3));
            next += 4;
        }
    }
    while next < chunks {
        sum = f.add(f.multiply(sum, &step), chunk_at(f, text, next));
        next += 1;
    }
    let lanes = f.export(f.multiply(sum, &f.factor(last)));
    let mut h = [0; 3];
    for lane in &lanes[..<F::Wide as Wide>::LANES] {
        for n in 0..3 {
            h[n] += lane[n];
        }
    }
    poly1305::carry(h)
}

/// Which places have a block whose power of `r`, counted from 0 for the last block, has this bit set.
#[inline(always)]
fn exponent_bit<F: Field>(bit: u8) -> u8 {
    let lanes = <F::Wide as Wide>::LANES as u8;
    let mut mask = 0;
    for n in 0..lanes {
        let exponent = lanes - 1 - <F::Wide as Wide>::ORDER[usize::from(n)];
        mask |= (exponent >> bit & 1) << n;
    }
    mask
}

/// A state in the first place, which has the first block, and zeros in the others.
#[inline(always)]
fn first_place<F: Field>(f: F, h: [u64; 3]) -> F::Number {
    let s = f.wide();
    // Loose limbs may add up to more than they have bits.
    let h = poly1305::carry(h);
    let all = u128::from(h[0]) + (u128::from(h[1]) << 44) + (u128::from(h[2] & ((1 << 40) - 1)) << 88);
    let words = [
        [all as u64, 0, 0, 0, 0, 0, 0, 0],
        [(all >> 64) as u64, 0, 0, 0, 0, 0, 0, 0],
    ];
    let mut number = f.number(s.wide_load(&words[0]), s.wide_load(&words[1]), s.wide(0));
    // What is at 2^128 and above: a few times the bit there.
    for bit in 0..4 {
        let top = [u64::from(h[2] >> 40 > bit), 0, 0, 0, 0, 0, 0, 0];
        number = f.add(number, f.number(s.wide(0), s.wide(0), s.wide_load(&top)));
    }
    number
}

/// Two words of each packet's key, as one.
#[inline(always)]
fn upright<S: Wide>(s: S, keys: &[Keys], word: usize, first: usize) -> S::W {
    let (words, at) = (&keys[first / KEYS].words, first % KEYS);
    s.zip(&words[word][at..], &words[word + 1][at..])
}

/// The blocks of a text's chunk.
#[inline(always)]
fn chunk_at<F: Field>(f: F, text: &[u8], number: usize) -> F::Number {
    let s = f.wide();
    let chunk = 16 * <F::Wide as Wide>::LANES;
    // SAFETY: a chunk is in the text.
    let [low, high] = unsafe { s.blocks(text[number * chunk..][..chunk].as_ptr()) };
    f.number(low, high, s.wide(1))
}

#[cfg(test)]
mod tests {
    //! Poly1305 where its arithmetic is at its limits, with keys as they are wanted: no key stream gives those.

    use super::*;
    use crate::burst::tests::works;
    use crate::x86::{avx2::Avx2, avx512::Avx512};

    /// A number below 2^130 - 5, in two halves: from bit 0 and from bit 65.
    type Plain = [u128; 2];
    const HALF: u128 = (1 << 65) - 1;

    fn reduced(mut n: Plain) -> Plain {
        for _ in 0..2 {
            n[1] += n[0] >> 65;
            n[0] = (n[0] & HALF) + 5 * (n[1] >> 65);
            n[1] &= HALF;
        }
        n[1] += n[0] >> 65;
        n[0] &= HALF;
        if n[1] == HALF && n[0] >= HALF - 4 {
            [n[0] - (HALF - 4), 0]
        } else {
            n
        }
    }

    /// RFC 8439, section 2.5, to the letter, by doubling and adding.
    fn reference(key: [u64; 4], text: &[u8]) -> [u8; 16] {
        let r = u128::from(key[0] & 0x0fff_fffc_0fff_ffff) | u128::from(key[1] & 0x0fff_fffc_0fff_fffc) << 64;
        let mut h = [0, 0];
        let lens = [[0; 8], (text.len() as u64).to_le_bytes()].concat();
        for part in text.chunks(16).chain([&lens[..]]) {
            let mut block = [0; 16];
            block[..part.len()].copy_from_slice(part);
            let block = u128::from_le_bytes(block);
            let n = reduced([h[0] + (block & HALF), h[1] + (block >> 65) + (1 << 63)]);
            h = [0, 0];
            for bit in (0..128).rev() {
                h = reduced([2 * h[0], 2 * h[1]]);
                if r >> bit & 1 == 1 {
                    h = reduced([h[0] + n[0], h[1] + n[1]]);
                }
            }
        }
        let s = u128::from(key[2]) | u128::from(key[3]) << 64;
        (h[0] | h[1] << 65).wrapping_add(s).to_le_bytes()
    }

    /// The tags of texts, each with a key, in every way that a kernel has.
    fn check<E: Entries>(e: E, cases: &[([u64; 4], Vec<u8>)]) {
        for group in cases.chunks(E::GROUP) {
            let mut bufs: Vec<Vec<u8>> = group
                .iter()
                .map(|(_, text)| [text, &[0x77; 16][..]].concat())
                .collect();
            let mut keys = [Keys::NONE];
            works(&mut bufs, |works, order| {
                for (at, from) in order.iter().enumerate() {
                    let block: Vec<u8> = group[*from]
                        .0
                        .iter()
                        .flat_map(|word| word.to_le_bytes())
                        .collect();
                    keys[0].set(at, &[&block[..], &[0; 32]].concat().try_into().unwrap());
                }
                let mut tags = [[0; TAG]; WIDE];
                e.side_by_side(works, &keys, 0, &mut tags);
                for (at, from) in order.iter().enumerate() {
                    let (key, text) = &group[*from];
                    let expected = reference(*key, text);
                    assert_eq!(tags[at], expected, "side by side: {key:x?} {text:x?}");
                    assert_eq!(alone(e, &works[at], *key), expected, "alone: {key:x?} {text:x?}");
                    // However short: all of it in chunks that can be.
                    let mut poly = Poly1305::new(*key);
                    let whole = text.len() / (16 * E::GROUP) * 16 * E::GROUP;
                    if whole > 0 {
                        poly.h = e.chunks(poly.h, [key[0], key[1]], &text[..whole]);
                    }
                    poly.padded(&text[whole..]);
                    poly.block([0, text.len() as u64]);
                    assert_eq!(poly.tag(), expected, "in chunks: {key:x?} {text:x?}");
                }
            });
        }
    }

    fn on_all(cases: &[([u64; 4], Vec<u8>)]) {
        if let Some(e) = Avx512::<true>::detect() {
            check(e, cases);
        }
        if let Some(e) = Avx512::<false>::detect() {
            check(e, cases);
        }
        if let Some(e) = Avx2::detect() {
            check(e, cases);
        }
    }

    const R_MAX: [u64; 2] = poly1305::CLAMP;
    /// Bits at and beside the borders of limbs of 26 and of 44 bits.
    const BORDERS: [u32; 24] = [
        0, 1, 24, 25, 26, 27, 42, 43, 44, 45, 51, 52, 63, 64, 77, 78, 86, 87, 88, 103, 104, 105, 126, 127,
    ];

    fn bytes(blocks: &[u128]) -> Vec<u8> {
        blocks.iter().flat_map(|block| block.to_le_bytes()).collect()
    }

    /// RFC 8439, appendix A.3, vectors 7 to 9: sums and products just below, at and above 2^130 - 5. (The length block is ours.)
    #[test]
    fn the_accumulator_wraps_around_at_2_130_minus_5() {
        let mut cases = Vec::new();
        for r in [[1, 0], [2, 0], [4, 0], [5, 0]] {
            for last in [0xf0u128, 0xfa, 0xfb, 0xfc, 0xfd, 0xfe, 0xff] {
                let near = u128::MAX - 0xff + last;
                for blocks in [
                    vec![near],
                    vec![u128::MAX, near],
                    vec![u128::MAX, near, 0x11],
                    vec![
                        u128::MAX,
                        u128::MAX - 0xfe,
                        0x0101_0101_0101_0101_0101_0101_0101_0101,
                        near,
                    ],
                ] {
                    // In front of it, so that it also comes late: zeros count as 2^128.
                    for before in [0, 7, 13, 40] {
                        let blocks = [vec![0; before], blocks.clone()].concat();
                        cases.push(([r[0], r[1], 0, 0], bytes(&blocks)));
                    }
                }
            }
        }
        on_all(&cases);
    }

    #[test]
    fn carries_cross_every_border_of_limbs() {
        let mut cases = Vec::new();
        for at in BORDERS {
            for r in BORDERS {
                let r = 1u128 << r;
                for block in [1 << at, (1 << at) - 1, u128::MAX << at, !(1 << at)] {
                    let count = 1 + (at as usize * 7 + r.trailing_zeros() as usize) % 37;
                    cases.push(([r as u64, (r >> 64) as u64, 0, 0], bytes(&vec![block; count])));
                    cases.push(([R_MAX[0], R_MAX[1], !0, 0], bytes(&vec![block; count])));
                }
            }
        }
        on_all(&cases);
    }

    #[test]
    fn blocks_of_all_ones_with_the_largest_r() {
        let cases: Vec<_> = (0..300).map(|len| ([!0, !0, !0, !0], vec![0xff; len])).collect();
        on_all(&cases);
        let long: Vec<_> = (0..24)
            .map(|n| ([!0, !0, 0, 0], vec![0xff; 8000 + 37 * n]))
            .collect();
        on_all(&long);
    }

    #[test]
    fn the_extremes_of_r_and_s() {
        let mut cases = Vec::new();
        for r in [[0, 0], [1, 0], [!0, !0], [0, !0], [!0, 0], [R_MAX[0], R_MAX[1]]] {
            for s in [[0, 0], [!0, !0], [1, 0], [0, 1 << 63], [!0, 0]] {
                for len in [0, 1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 511, 512, 513, 1420] {
                    let text = (0..len).map(|n| (n * 73 + len) as u8).collect();
                    cases.push(([r[0], r[1], s[0], s[1]], text));
                }
            }
        }
        on_all(&cases);
    }
}
