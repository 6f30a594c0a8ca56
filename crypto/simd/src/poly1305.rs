//! Poly1305 (RFC 8439, section 2.5), one block after another, on 64-bit words; and what its state is in limbs of 44, 44 and 42 bits.
//!
//! For the portable kernel, for additional data and for short texts in the others. The words are reduced as OpenSSL's assembly does it: a
//! block is a chain of one multiplication and eight additions, and needs no power of `r` beforehand.

/// The low 44 bits.
const M44: u64 = (1 << 44) - 1;
/// The low 42 bits.
const M42: u64 = (1 << 42) - 1;

/// What of the two words of `r` is used (RFC 8439, section 2.5.1).
pub(crate) const CLAMP: [u64; 2] = [0x0fff_fffc_0fff_ffff, 0x0fff_fffc_0fff_fffc];

/// A one-time key: the two halves as RFC 8439 takes them from the key stream, `r` clamped, and the state.
pub(crate) struct Poly1305 {
    r: [u64; 2],
    /// 5/4 of the upper word of `r`, whose last two bits are zero: what it counts as when a product has gone round past 2^130.
    s: u64,
    /// Below 2^130 and a little: the last word is at most 4.
    h: [u64; 3],
    pad: [u64; 2],
}

impl Poly1305 {
    /// A state before the first block, from the first 32 bytes of the key stream as four little-endian words.
    #[inline(always)]
    pub(crate) fn new(key: [u64; 4]) -> Self {
        let r = [key[0] & CLAMP[0], key[1] & CLAMP[1]];
        Poly1305 {
            r,
            s: r[1] + (r[1] >> 2),
            h: [0; 3],
            pad: [key[2], key[3]],
        }
    }

    /// Takes in one block of 16 bytes, as two little-endian words.
    #[inline(always)]
    pub(crate) fn block(&mut self, block: [u64; 2]) {
        let [r0, r1] = self.r;
        let (h0, over) = sum(self.h[0], block[0], 0);
        let (h1, over) = sum(self.h[1], block[1], over);
        let h2 = self.h[2] + 1 + over;
        // `h2` is at most 6, and the words of `r` are below 2^60: no sum overflows.
        let d0 = mul(h0, r0) + mul(h1, self.s);
        let d1 = mul(h0, r1) + mul(h1, r0) + u128::from(h2 * self.s) + (d0 >> 64);
        let d2 = h2 * r0 + (d1 >> 64) as u64;
        // What is past 2^130 comes back in at the bottom, five times.
        let round = (d2 & !3) + (d2 >> 2);
        let (h0, over) = sum(d0 as u64, round, 0);
        let (h1, over) = sum(d1 as u64, 0, over);
        self.h = [h0, h1, (d2 & 3) + over];
    }

    /// Takes in blocks.
    #[inline(always)]
    pub(crate) fn whole(&mut self, blocks: &[u8]) {
        for block in blocks.as_chunks::<16>().0 {
            self.block(words(block));
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

    /// The state in limbs of 44, 44 and 42 bits, of which the last may be a little longer.
    #[inline(always)]
    pub(crate) fn limbs(&self) -> [u64; 3] {
        let [h0, h1, h2] = self.h;
        let [low, middle, high] = limbs([h0, h1]);
        [low, middle, high + (h2 << 40)]
    }

    /// The reverse, from loose limbs.
    #[inline(always)]
    pub(crate) fn set_limbs(&mut self, h: [u64; 3]) {
        let [low, middle, high] = carry(h);
        let h = u128::from(low) | u128::from(middle) << 44 | u128::from(high & ((1 << 40) - 1)) << 88;
        self.h = [h as u64, (h >> 64) as u64, high >> 40];
    }

    /// The tag of what was taken in.
    #[inline(always)]
    pub(crate) fn tag(&self) -> [u8; 16] {
        let [h0, h1, h2] = self.h;
        // Less 2^130 - 5, if that leaves something: plus 5, and the carry out of the top says which.
        let (g0, over) = sum(h0, 5, 0);
        let (g1, over) = sum(h1, 0, over);
        let reduced = 0u64.wrapping_sub((h2 + over) >> 2);
        let pick = |h: u64, g: u64| (h & !reduced) | (g & reduced);
        // What is above 2^128 does not count.
        padded([pick(h0, g0), pick(h1, g1)], self.pad)
    }
}

/// The sum of two words and a carry, and the carry out of it.
#[inline(always)]
fn sum(a: u64, b: u64, over: u64) -> (u64, u64) {
    let sum = u128::from(a) + u128::from(b) + u128::from(over);
    (sum as u64, (sum >> 64) as u64)
}

/// The tag: a state and the second half of the key.
#[inline(always)]
fn padded(h: [u64; 2], pad: [u64; 2]) -> [u8; 16] {
    let both = |words: [u64; 2]| u128::from(words[0]) | u128::from(words[1]) << 64;
    both(h).wrapping_add(both(pad)).to_le_bytes()
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

/// The tag that follows from a state in loose limbs.
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
    padded([h as u64, (h >> 64) as u64], pad)
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
