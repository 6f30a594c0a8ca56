//! AVX2.

use super::{entries, instructions};
use crate::burst::{Keys, Lanes, Work, Works};
use crate::field::Limbs26;
use crate::vector::{WIDE, Wide, Window, Words};
use crate::{BURST, TAG};
use std::arch::x86_64::*;

/// Proof of AVX2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// The proof, if this machine has it.
    pub(crate) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("bmi2")).then_some(Avx2(()))
    }

    /// In each place of a row, four words of four registers transposed.
    #[inline(always)]
    fn words(self, [a, b, c, d]: [__m256i; 4]) -> [__m256i; 4] {
        // SAFETY: as in `instructions`.
        unsafe {
            let ab_low = _mm256_unpacklo_epi32(a, b);
            let ab_high = _mm256_unpackhi_epi32(a, b);
            let cd_low = _mm256_unpacklo_epi32(c, d);
            let cd_high = _mm256_unpackhi_epi32(c, d);
            [
                _mm256_unpacklo_epi64(ab_low, cd_low),
                _mm256_unpackhi_epi64(ab_low, cd_low),
                _mm256_unpacklo_epi64(ab_high, cd_high),
                _mm256_unpackhi_epi64(ab_high, cd_high),
            ]
        }
    }

    /// The first and the second rows of two registers.
    #[inline(always)]
    fn halves(self, a: __m256i, b: __m256i) -> [__m256i; 2] {
        // SAFETY: as in `instructions`.
        unsafe {
            [
                _mm256_permute2x128_si256::<0x20>(a, b),
                _mm256_permute2x128_si256::<0x31>(a, b),
            ]
        }
    }

    /// # Safety
    /// As of [`Words::xor_upright`].
    #[inline(always)]
    unsafe fn xor(self, to: *mut u8, len: u8, block: [__m256i; 2]) {
        // SAFETY: reads and writes no more than `len` bytes.
        unsafe {
            if len == 64 {
                let at = to.cast::<__m256i>();
                _mm256_storeu_si256(at, _mm256_xor_si256(_mm256_loadu_si256(at), block[0]));
                let at = at.add(1);
                _mm256_storeu_si256(at, _mm256_xor_si256(_mm256_loadu_si256(at), block[1]));
            } else {
                let stream = std::slice::from_raw_parts(block.as_ptr().cast::<u8>(), len.into());
                let text = std::slice::from_raw_parts_mut(to, len.into());
                text.iter_mut().zip(stream).for_each(|(byte, key)| *byte ^= key);
            }
        }
    }

    /// # Safety
    /// Both can be read for 16 bytes.
    #[inline(always)]
    unsafe fn two_rows(self, a: *const u8, b: *const u8) -> __m256i {
        // SAFETY: as the caller promises.
        unsafe {
            let low = _mm256_castsi128_si256(_mm_loadu_si128(a.cast()));
            _mm256_inserti128_si256::<1>(low, _mm_loadu_si128(b.cast()))
        }
    }

    /// Half a key of each of two lanes.
    ///
    /// # Safety
    /// Both keys have 32 bytes.
    #[inline(always)]
    unsafe fn half(self, keys: &[*const u8; 16], lane: usize, at: usize) -> __m256i {
        // SAFETY: as the caller promises.
        unsafe { self.two_rows(keys[lane].wrapping_add(at), keys[lane + 4].wrapping_add(at)) }
    }

    /// Two blocks of each packet, of a whole window.
    ///
    /// # Safety
    /// Each can be read for 32 bytes.
    #[inline(always)]
    unsafe fn two_blocks(self, from: [*const u8; 4]) -> [[__m256i; 2]; 2] {
        // SAFETY: as the caller promises.
        unsafe {
            let [a, b, c, d] = [
                _mm256_loadu_si256(from[0].cast()),
                _mm256_loadu_si256(from[1].cast()),
                _mm256_loadu_si256(from[2].cast()),
                _mm256_loadu_si256(from[3].cast()),
            ];
            let low = self.halves(_mm256_unpacklo_epi64(a, b), _mm256_unpacklo_epi64(c, d));
            let high = self.halves(_mm256_unpackhi_epi64(a, b), _mm256_unpackhi_epi64(c, d));
            [[low[0], high[0]], [low[1], high[1]]]
        }
    }
}

impl Words for Avx2 {
    const LANES: usize = 8;
    const PASSES: usize = 1;
    type V = __m256i;

    instructions! {
        fn splat(word: u32) -> __m256i { _mm256_set1_epi32(word as i32) }
        fn add(a: __m256i, b: __m256i) -> __m256i { _mm256_add_epi32(a, b) }
        fn xor(a: __m256i, b: __m256i) -> __m256i { _mm256_xor_si256(a, b) }
        fn rotate<const BY: i32>(v: __m256i) -> __m256i {
            match BY {
                16 => _mm256_shuffle_epi8(v, _mm256_setr_epi8(
                    2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13,
                )),
                12 => _mm256_or_si256(_mm256_slli_epi32::<12>(v), _mm256_srli_epi32::<20>(v)),
                8 => _mm256_shuffle_epi8(v, _mm256_setr_epi8(
                    3, 0, 1, 2, 7, 4, 5, 6, 11, 8, 9, 10, 15, 12, 13, 14, 3, 0, 1, 2, 7, 4, 5, 6, 11, 8, 9, 10, 15, 12, 13, 14,
                )),
                _ => _mm256_or_si256(_mm256_slli_epi32::<7>(v), _mm256_srli_epi32::<25>(v)),
            }
        }
        fn turn<const BY: i32>(v: __m256i) -> __m256i {
            match BY {
                1 => _mm256_shuffle_epi32::<0b00_11_10_01>(v),
                2 => _mm256_shuffle_epi32::<0b01_00_11_10>(v),
                _ => _mm256_shuffle_epi32::<0b10_01_00_11>(v),
            }
        }
        fn row(words: [u32; 4]) -> __m256i { _mm256_broadcastsi128_si256(_mm_loadu_si128(words.as_ptr().cast())) }
        fn counters(counters: &[u32]) -> __m256i {
            _mm256_setr_epi32(counters[0] as i32, 0, 0, 0, counters[1] as i32, 0, 0, 0)
        }
        fn first_row(v: __m256i) -> [u64; 2] {
            {
                let row = _mm256_castsi256_si128(v);
                [_mm_cvtsi128_si64(row) as u64, _mm_extract_epi64::<1>(row) as u64]
            }
        }
        fn load(words: &[u32]) -> __m256i { _mm256_loadu_si256(words[..8].as_ptr().cast()) }
        fn splat_some(v: __m256i, mask: u16, word: u32) -> __m256i {
            {
                let bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
                let chosen = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(mask.into()), bits), bits);
                _mm256_blendv_epi8(v, _mm256_set1_epi32(word as i32), chosen)
            }
        }
    }

    #[inline(always)]
    fn store(self, words: &mut [u32], v: __m256i) {
        // SAFETY: the slice has the 32 bytes.
        unsafe { _mm256_storeu_si256(words[..8].as_mut_ptr().cast(), v) }
    }

    #[inline(always)]
    unsafe fn rows(self, from: &[*const u8]) -> __m256i {
        // SAFETY: as the caller promises.
        unsafe { self.two_rows(from[0], from[1]) }
    }

    #[inline(always)]
    unsafe fn upright8(self, from: &[*const u8; 16]) -> [__m256i; 8] {
        // SAFETY: 32 bytes of each, as the caller promises.
        unsafe {
            let low = self.words([
                self.half(from, 0, 0),
                self.half(from, 1, 0),
                self.half(from, 2, 0),
                self.half(from, 3, 0),
            ]);
            let high = self.words([
                self.half(from, 0, 16),
                self.half(from, 1, 16),
                self.half(from, 2, 16),
                self.half(from, 3, 16),
            ]);
            [low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]]
        }
    }

    #[inline(always)]
    unsafe fn upright3(self, from: &[*const u8; 16]) -> [__m256i; 3] {
        // SAFETY: 16 bytes of each, as the caller promises.
        let x = unsafe {
            [
                self.two_rows(from[0], from[4]),
                self.two_rows(from[1], from[5]),
                self.two_rows(from[2], from[6]),
                self.two_rows(from[3], from[7]),
            ]
        };
        let [_, one, two, three] = self.words(x);
        [one, two, three]
    }

    #[inline(always)]
    unsafe fn xor_upright(self, x: [__m256i; 16], to: &[*mut u8], len: &[u8]) {
        let a = self.words([x[0], x[1], x[2], x[3]]);
        let b = self.words([x[4], x[5], x[6], x[7]]);
        let c = self.words([x[8], x[9], x[10], x[11]]);
        let d = self.words([x[12], x[13], x[14], x[15]]);
        for n in 0..4 {
            let first = self.halves(a[n], b[n]);
            let second = self.halves(c[n], d[n]);
            for q in 0..2 {
                let lane = 4 * q + n;
                if lane < to.len() {
                    // SAFETY: as the caller promises.
                    unsafe { self.xor(to[lane], len[lane], [first[q], second[q]]) };
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn xor_rows(self, [a, b, c, d]: [__m256i; 4], to: &[*mut u8], len: &[u8]) {
        let (first, second) = (self.halves(a, b), self.halves(c, d));
        for (n, (to, len)) in to.iter().zip(len).enumerate() {
            // SAFETY: as the caller promises.
            unsafe { self.xor(*to, *len, [first[n], second[n]]) };
        }
    }
}

impl Wide for Avx2 {
    const LANES: usize = 4;
    const ORDER: [u8; WIDE] = [0, 2, 1, 3, 0, 0, 0, 0];
    type W = __m256i;

    instructions! {
        fn wide(word: u64) -> __m256i { _mm256_set1_epi64x(word as i64) }
        fn wide_load(words: &[u64; WIDE]) -> __m256i { _mm256_loadu_si256(words.as_ptr().cast()) }
        fn zip(low: &[u32], high: &[u32]) -> __m256i {
            {
                let low = _mm256_cvtepu32_epi64(_mm_loadu_si128(low[..4].as_ptr().cast()));
                let high = _mm256_cvtepu32_epi64(_mm_loadu_si128(high[..4].as_ptr().cast()));
                _mm256_or_si256(low, _mm256_slli_epi64::<32>(high))
            }
        }
        fn plus(a: __m256i, b: __m256i) -> __m256i { _mm256_add_epi64(a, b) }
        fn and(a: __m256i, b: __m256i) -> __m256i { _mm256_and_si256(a, b) }
        fn or(a: __m256i, b: __m256i) -> __m256i { _mm256_or_si256(a, b) }
        fn left<const BY: u32>(w: __m256i) -> __m256i { _mm256_sll_epi64(w, _mm_cvtsi32_si128(BY as i32)) }
        fn right<const BY: u32>(w: __m256i) -> __m256i { _mm256_srl_epi64(w, _mm_cvtsi32_si128(BY as i32)) }
        fn times(a: __m256i, b: __m256i) -> __m256i { _mm256_mul_epu32(a, b) }
        fn select(mask: u8, a: __m256i, b: __m256i) -> __m256i {
            {
                let bits = _mm256_setr_epi64x(1, 2, 4, 8);
                let chosen = _mm256_cmpeq_epi64(_mm256_and_si256(_mm256_set1_epi64x(mask.into()), bits), bits);
                _mm256_blendv_epi8(a, b, chosen)
            }
        }
    }

    #[inline(always)]
    fn wide_store(self, words: &mut [u64; WIDE], w: __m256i) {
        // SAFETY: the array has the 32 bytes.
        unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), w) }
    }

    #[inline(always)]
    unsafe fn windows<const RAGGED: bool>(self, windows: &[Window; WIDE]) -> [[__m256i; 2]; 4] {
        let mut whole = [[0u128; 4]; 4];
        let mut from = [std::ptr::null(); 4];
        for ((from, whole), window) in from.iter_mut().zip(&mut whole).zip(windows) {
            *from = window.at;
            if RAGGED && (window.from, window.to) != (0, 64) {
                // Blocks are there or not; only the last one can end inside.
                for block in usize::from(window.from / 16)..4 {
                    // SAFETY: behind a text there is room for a tag.
                    whole[block] =
                        unsafe { window.at.wrapping_add(16 * block).cast::<u128>().read_unaligned() };
                }
                if window.from < 64 {
                    whole[3] &= !0 >> (8 * (64 - u32::from(window.to)));
                }
                *from = whole.as_ptr().cast();
            }
        }
        // SAFETY: each of them is a whole window now.
        let [first, second] = unsafe {
            [
                self.two_blocks(from),
                self.two_blocks(from.map(|from| from.wrapping_add(32))),
            ]
        };
        [first[0], first[1], second[0], second[1]]
    }

    #[inline(always)]
    unsafe fn blocks(self, at: *const u8) -> [__m256i; 2] {
        // SAFETY: 64 bytes, as the caller promises.
        unsafe {
            let first = _mm256_loadu_si256(at.cast());
            let second = _mm256_loadu_si256(at.wrapping_add(32).cast());
            [
                _mm256_unpacklo_epi64(first, second),
                _mm256_unpackhi_epi64(first, second),
            ]
        }
    }
}

entries!(Avx2, Limbs26, "avx2,bmi2", 4096, 2048);
