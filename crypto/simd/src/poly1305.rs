//! Poly1305 (RFC 8439, section 2.5), one block after another, on 64-bit words: three limbs of 44, 44 and 42 bits.
//!
//! For the portable kernel, for additional data and for short texts in the others.

/// The low 44 bits.
const M44: u64 = (1 << 44) - 1;
/// Blocks from which on two at a time are worth their power.
const PAIRS: usize = 4;
/// The low 42 bits.
const M42: u64 = (1 << 42) - 1;

/// What of the two words of `r` is used (RFC 8439, section 2.5.1).
pub(crate) const CLAMP: [u64; 2] = [0x0fff_fffc_0fff_ffff, 0x0fff_fffc_0fff_fffc];

/// A one-time key: the two halves as RFC 8439 takes them from the key stream, `r` clamped, and the state.
pub(crate) struct Poly1305 {
    r: [u64; 3],
    /// 20 times the upper two limbs of `r`: what they count as when a product has gone round past 2^130.
    s: [u64; 2],
    pub(crate) h: [u64; 3],
    pad: [u64; 2],
}

impl Poly1305 {
    /// A state before the first block, from the first 32 bytes of the key stream as four little-endian words.
    #[inline(always)]
    pub(crate) fn new(key: [u64; 4]) -> Self {
        let r = limbs([key[0] & CLAMP[0], key[1] & CLAMP[1]]);
        Poly1305 {
            r,
            s: [r[1] * 20, r[2] * 20],
            h: [0; 3],
            pad: [key[2], key[3]],
        }
    }

    /// Takes in one block of 16 bytes, as two little-endian words.
    #[inline(always)]
    pub(crate) fn block(&mut self, block: [u64; 2]) {
        let h = self.with(block);
        self.h = reduce(product(h, self.r, self.s));
    }

    /// The state and a block.
    #[inline(always)]
    fn with(&self, block: [u64; 2]) -> [u64; 3] {
        let m = numbered(block);
        [self.h[0] + m[0], self.h[1] + m[1], self.h[2] + m[2]]
    }

    /// Takes in blocks.
    #[inline(always)]
    pub(crate) fn whole(&mut self, blocks: &[u8]) {
        let mut blocks = blocks.as_chunks::<16>().0;
        if blocks.len() >= PAIRS {
            let (pairs, rest) = blocks.as_chunks::<2>();
            self.pairs(pairs);
            blocks = rest;
        }
        for block in blocks {
            self.block(words(block));
        }
    }

    /// Takes in blocks by two: `(h + first) r^2 + second r`, of which the second product does not wait for `h`.
    #[inline(always)]
    fn pairs(&mut self, pairs: &[[[u8; 16]; 2]]) {
        let r2 = carry(reduce(product(self.r, self.r, self.s)));
        let s2 = [r2[1] * 20, r2[2] * 20];
        for [first, second] in pairs {
            let late = product(self.with(words(first)), r2, s2);
            let early = product(numbered(words(second)), self.r, self.s);
            self.h = reduce([late[0] + early[0], late[1] + early[1], late[2] + early[2]]);
        }
    }

    /// Takes in `bytes`, the last block filled up with zeros (RFC 8439, section 2.8).
    #[inline(always)]
    pub(crate) fn padded(&mut self, bytes: &[u8]) {
        let (_, rest) = bytes.as_chunks::<16>();
        self.whole(bytes);
        if !rest.is_empty() {
            let mut block = [0; 16];
            block[..rest.len()].copy_from_slice(rest);
            self.block(words(&block));
        }
    }

    /// The tag of what was taken in.
    #[inline(always)]
    pub(crate) fn tag(&self) -> [u8; 16] {
        finish(self.h, self.pad)
    }
}

/// Carries what loose limbs have too many bits into the next ones, and round from the last to the first: the last one may still be 2^42.
/// Limbs may have up to 62 bits.
#[inline(always)]
pub(crate) fn carry(mut h: [u64; 3]) -> [u64; 3] {
    // Twice round: what is carried out of the top comes back in at the bottom.
    for _ in 0..2 {
        h[1] += h[0] >> 44;
        h[0] &= M44;
        h[2] += h[1] >> 44;
        h[1] &= M44;
        h[0] += (h[2] >> 42) * 5;
        h[2] &= M42;
    }
    h[1] += h[0] >> 44;
    h[0] &= M44;
    h[2] += h[1] >> 44;
    h[1] &= M44;
    h
}

/// The tag that follows from a state.
#[inline(always)]
pub(crate) fn finish(h: [u64; 3], pad: [u64; 2]) -> [u8; 16] {
    let h = carry(h);
    // Less 2^130 - 5, if that leaves something: plus 5, and the carry out of the top says which.
    let g0 = h[0] + 5;
    let g1 = h[1] + (g0 >> 44);
    let g2 = h[2] + (g1 >> 44);
    let reduced = 0u64.wrapping_sub(g2 >> 42);
    let pick = |h: u64, g: u64| (h & !reduced) | (g & reduced);
    let [h0, h1, h2] = [pick(h[0], g0 & M44), pick(h[1], g1 & M44), pick(h[2], g2 & M42)];
    // What is above 2^128 does not count.
    let h = u128::from(h0) | u128::from(h1) << 44 | u128::from(h2) << 88;
    let pad = u128::from(pad[0]) | u128::from(pad[1]) << 64;
    h.wrapping_add(pad).to_le_bytes()
}

/// `a b`, not reduced: `s` is 20 times the upper two limbs of `b`.
#[inline(always)]
fn product(a: [u64; 3], b: [u64; 3], s: [u64; 2]) -> [u128; 3] {
    [
        mul(a[0], b[0]) + mul(a[1], s[1]) + mul(a[2], s[0]),
        mul(a[0], b[1]) + mul(a[1], b[0]) + mul(a[2], s[1]),
        mul(a[0], b[2]) + mul(a[1], b[1]) + mul(a[2], b[0]),
    ]
}

/// Loose limbs of the same number modulo 2^130 - 5.
#[inline(always)]
fn reduce([d0, d1, d2]: [u128; 3]) -> [u64; 3] {
    let d1 = d1 + (d0 >> 44);
    let d2 = d2 + (d1 >> 44);
    let h0 = (d0 as u64 & M44) + (d2 >> 42) as u64 * 5;
    [h0 & M44, (d1 as u64 & M44) + (h0 >> 44), d2 as u64 & M42]
}

/// A block with the bit behind it set.
#[inline(always)]
fn numbered(block: [u64; 2]) -> [u64; 3] {
    let m = limbs(block);
    [m[0], m[1], m[2] | 1 << 40]
}

#[inline(always)]
fn mul(a: u64, b: u64) -> u128 {
    u128::from(a) * u128::from(b)
}

/// 128 bits in limbs of 44, 44 and 40.
#[inline(always)]
fn limbs([low, high]: [u64; 2]) -> [u64; 3] {
    [low & M44, (low >> 44 | high << 20) & M44, high >> 24]
}

/// 16 bytes as two little-endian words.
#[inline(always)]
pub(crate) fn words(block: &[u8; 16]) -> [u64; 2] {
    let both = u128::from_le_bytes(*block);
    [both as u64, (both >> 64) as u64]
}
