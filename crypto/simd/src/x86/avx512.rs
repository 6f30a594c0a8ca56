//! AVX-512, with and without the 52-bit multiplier.

use super::{entries, instructions};
use crate::burst::{Keys, Lanes, Work, Works};
use crate::field::{Limbs26, Limbs44};
use crate::vector::{Multiply52, WIDE, Wide, Window, Words};
use crate::{BURST, TAG};
use std::arch::x86_64::*;

/// Proof of AVX-512 F, BW and VL, and of IFMA.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Avx512<const IFMA: bool>(());

impl<const IFMA: bool> Avx512<IFMA> {
    /// The proof, if this machine has it.
    pub(crate) fn detect() -> Option<Self> {
        let base = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("bmi2");
        (base && (!IFMA || is_x86_feature_detected!("avx512ifma"))).then_some(Avx512(()))
    }

    /// Takes the four rows of each register apart: the first rows of all, the second ones, and so on.
    #[inline(always)]
    fn quarters(self, [a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
        // SAFETY: as in `instructions`.
        unsafe {
            let ab_low = _mm512_shuffle_i64x2::<0x44>(a, b);
            let ab_high = _mm512_shuffle_i64x2::<0xee>(a, b);
            let cd_low = _mm512_shuffle_i64x2::<0x44>(c, d);
            let cd_high = _mm512_shuffle_i64x2::<0xee>(c, d);
            [
                _mm512_shuffle_i64x2::<0x88>(ab_low, cd_low),
                _mm512_shuffle_i64x2::<0xdd>(ab_low, cd_low),
                _mm512_shuffle_i64x2::<0x88>(ab_high, cd_high),
                _mm512_shuffle_i64x2::<0xdd>(ab_high, cd_high),
            ]
        }
    }

    /// In each place of a row, four words of four registers transposed.
    #[inline(always)]
    fn words(self, [a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
        // SAFETY: as in `instructions`.
        unsafe {
            let ab_low = _mm512_unpacklo_epi32(a, b);
            let ab_high = _mm512_unpackhi_epi32(a, b);
            let cd_low = _mm512_unpacklo_epi32(c, d);
            let cd_high = _mm512_unpackhi_epi32(c, d);
            [
                _mm512_unpacklo_epi64(ab_low, cd_low),
                _mm512_unpackhi_epi64(ab_low, cd_low),
                _mm512_unpacklo_epi64(ab_high, cd_high),
                _mm512_unpackhi_epi64(ab_high, cd_high),
            ]
        }
    }

    /// # Safety
    /// Both can be read for 32 bytes.
    #[inline(always)]
    unsafe fn pair(self, a: *const u8, b: *const u8) -> __m512i {
        // SAFETY: as the caller promises.
        unsafe {
            let low = _mm512_castsi256_si512(_mm256_loadu_si256(a.cast()));
            _mm512_inserti64x4::<1>(low, _mm256_loadu_si256(b.cast()))
        }
    }

    /// # Safety
    /// As of [`Words::xor_upright`].
    #[inline(always)]
    unsafe fn xor(self, to: *mut u8, len: u8, block: __m512i) {
        // SAFETY: reads and writes no more than `len` bytes: a masked access touches no others.
        unsafe {
            if len == 64 {
                let text = _mm512_loadu_si512(to.cast());
                _mm512_storeu_si512(to.cast(), _mm512_xor_si512(text, block));
            } else {
                let mask = _bzhi_u64(!0, len.into());
                let text = _mm512_maskz_loadu_epi8(mask, to.cast());
                _mm512_mask_storeu_epi8(to.cast(), mask, _mm512_xor_si512(text, block));
            }
        }
    }
}

impl<const IFMA: bool> Words for Avx512<IFMA> {
    const LANES: usize = 16;
    const PASSES: usize = 2;
    type V = __m512i;

    instructions! {
        fn splat(word: u32) -> __m512i { _mm512_set1_epi32(word as i32) }
        fn add(a: __m512i, b: __m512i) -> __m512i { _mm512_add_epi32(a, b) }
        fn xor(a: __m512i, b: __m512i) -> __m512i { _mm512_xor_si512(a, b) }
        fn rotate<const BY: i32>(v: __m512i) -> __m512i { _mm512_rol_epi32::<BY>(v) }
        fn turn<const BY: i32>(v: __m512i) -> __m512i {
            match BY {
                1 => _mm512_shuffle_epi32::<0b00_11_10_01>(v),
                2 => _mm512_shuffle_epi32::<0b01_00_11_10>(v),
                _ => _mm512_shuffle_epi32::<0b10_01_00_11>(v),
            }
        }
        fn row(words: [u32; 4]) -> __m512i { _mm512_broadcast_i32x4(_mm_loadu_si128(words.as_ptr().cast())) }
        fn counters(counters: &[u32]) -> __m512i {
            _mm512_maskz_expand_epi32(0x1111, _mm512_castsi128_si512(_mm_loadu_si128(counters[..4].as_ptr().cast())))
        }
        fn first_row(v: __m512i) -> [u64; 2] {
            {
                let row = _mm512_castsi512_si128(v);
                [_mm_cvtsi128_si64(row) as u64, _mm_extract_epi64::<1>(row) as u64]
            }
        }
        fn load(words: &[u32]) -> __m512i { _mm512_loadu_si512(words[..16].as_ptr().cast()) }
        fn splat_some(v: __m512i, mask: u16, word: u32) -> __m512i { _mm512_mask_set1_epi32(v, mask, word as i32) }
    }

    #[inline(always)]
    fn store(self, words: &mut [u32], v: __m512i) {
        // SAFETY: the slice has the 64 bytes.
        unsafe { _mm512_storeu_si512(words[..16].as_mut_ptr().cast(), v) }
    }

    #[inline(always)]
    unsafe fn rows(self, from: &[*const u8]) -> __m512i {
        // SAFETY: 16 bytes of each, as the caller promises.
        unsafe {
            let v = _mm512_castsi128_si512(_mm_loadu_si128(from[0].cast()));
            let v = _mm512_inserti32x4::<1>(v, _mm_loadu_si128(from[1].cast()));
            let v = _mm512_inserti32x4::<2>(v, _mm_loadu_si128(from[2].cast()));
            _mm512_inserti32x4::<3>(v, _mm_loadu_si128(from[3].cast()))
        }
    }

    #[inline(always)]
    unsafe fn upright8(self, from: &[*const u8; 16]) -> [__m512i; 8] {
        // SAFETY: 32 bytes of each, as the caller promises.
        unsafe {
            let a = self.words([
                self.pair(from[0], from[4]),
                self.pair(from[1], from[5]),
                self.pair(from[2], from[6]),
                self.pair(from[3], from[7]),
            ]);
            let b = self.words([
                self.pair(from[8], from[12]),
                self.pair(from[9], from[13]),
                self.pair(from[10], from[14]),
                self.pair(from[11], from[15]),
            ]);
            [
                _mm512_shuffle_i64x2::<0x88>(a[0], b[0]),
                _mm512_shuffle_i64x2::<0x88>(a[1], b[1]),
                _mm512_shuffle_i64x2::<0x88>(a[2], b[2]),
                _mm512_shuffle_i64x2::<0x88>(a[3], b[3]),
                _mm512_shuffle_i64x2::<0xdd>(a[0], b[0]),
                _mm512_shuffle_i64x2::<0xdd>(a[1], b[1]),
                _mm512_shuffle_i64x2::<0xdd>(a[2], b[2]),
                _mm512_shuffle_i64x2::<0xdd>(a[3], b[3]),
            ]
        }
    }

    #[inline(always)]
    unsafe fn upright3(self, from: &[*const u8; 16]) -> [__m512i; 3] {
        // SAFETY: 16 bytes of each, as the caller promises.
        let x = unsafe {
            [
                self.rows(&[from[0], from[4], from[8], from[12]]),
                self.rows(&[from[1], from[5], from[9], from[13]]),
                self.rows(&[from[2], from[6], from[10], from[14]]),
                self.rows(&[from[3], from[7], from[11], from[15]]),
            ]
        };
        let [_, one, two, three] = self.words(x);
        [one, two, three]
    }

    #[inline(always)]
    unsafe fn xor_upright(self, x: [__m512i; 16], to: &[*mut u8], len: &[u8]) {
        let a = self.words([x[0], x[1], x[2], x[3]]);
        let b = self.words([x[4], x[5], x[6], x[7]]);
        let c = self.words([x[8], x[9], x[10], x[11]]);
        let d = self.words([x[12], x[13], x[14], x[15]]);
        for n in 0..4 {
            let blocks = self.quarters([a[n], b[n], c[n], d[n]]);
            for (q, block) in blocks.into_iter().enumerate() {
                let lane = 4 * q + n;
                if lane < to.len() {
                    // SAFETY: as the caller promises.
                    unsafe { self.xor(to[lane], len[lane], block) };
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn xor_rows(self, x: [__m512i; 4], to: &[*mut u8], len: &[u8]) {
        let blocks = self.quarters(x);
        for ((to, len), block) in to.iter().zip(len).zip(blocks) {
            // SAFETY: as the caller promises.
            unsafe { self.xor(*to, *len, block) };
        }
    }
}

impl<const IFMA: bool> Wide for Avx512<IFMA> {
    const LANES: usize = 8;
    const ORDER: [u8; WIDE] = [0, 4, 1, 5, 2, 6, 3, 7];
    type W = __m512i;

    instructions! {
        fn wide(word: u64) -> __m512i { _mm512_set1_epi64(word as i64) }
        fn wide_load(words: &[u64; WIDE]) -> __m512i { _mm512_loadu_si512(words.as_ptr().cast()) }
        fn zip(low: &[u32], high: &[u32]) -> __m512i {
            {
                let low = _mm512_cvtepu32_epi64(_mm256_loadu_si256(low[..8].as_ptr().cast()));
                let high = _mm512_cvtepu32_epi64(_mm256_loadu_si256(high[..8].as_ptr().cast()));
                _mm512_or_si512(low, _mm512_slli_epi64::<32>(high))
            }
        }
        fn plus(a: __m512i, b: __m512i) -> __m512i { _mm512_add_epi64(a, b) }
        fn and(a: __m512i, b: __m512i) -> __m512i { _mm512_and_si512(a, b) }
        fn or(a: __m512i, b: __m512i) -> __m512i { _mm512_or_si512(a, b) }
        fn left<const BY: u32>(w: __m512i) -> __m512i { _mm512_slli_epi64::<BY>(w) }
        fn right<const BY: u32>(w: __m512i) -> __m512i { _mm512_srli_epi64::<BY>(w) }
        fn times(a: __m512i, b: __m512i) -> __m512i { _mm512_mul_epu32(a, b) }
        fn select(mask: u8, a: __m512i, b: __m512i) -> __m512i { _mm512_mask_blend_epi64(mask, a, b) }
    }

    #[inline(always)]
    fn wide_store(self, words: &mut [u64; WIDE], w: __m512i) {
        // SAFETY: the array has the 64 bytes.
        unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), w) }
    }

    #[inline(always)]
    unsafe fn windows<const RAGGED: bool>(self, windows: &[Window; WIDE]) -> [[__m512i; 2]; 4] {
        let mut x = [self.wide(0); 8];
        for (x, window) in x.iter_mut().zip(windows) {
            // SAFETY: reads what is the packet's own, as the caller promises: a masked access touches nothing else.
            *x = unsafe {
                if RAGGED {
                    let mask = _bzhi_u64(!0, window.to.into()) & !_bzhi_u64(!0, window.from.into());
                    _mm512_maskz_loadu_epi8(mask, window.at.cast())
                } else {
                    _mm512_loadu_si512(window.at.cast())
                }
            };
        }
        // SAFETY: as in `instructions`.
        let (low, high) = unsafe {
            (
                [
                    _mm512_unpacklo_epi64(x[0], x[1]),
                    _mm512_unpacklo_epi64(x[2], x[3]),
                    _mm512_unpacklo_epi64(x[4], x[5]),
                    _mm512_unpacklo_epi64(x[6], x[7]),
                ],
                [
                    _mm512_unpackhi_epi64(x[0], x[1]),
                    _mm512_unpackhi_epi64(x[2], x[3]),
                    _mm512_unpackhi_epi64(x[4], x[5]),
                    _mm512_unpackhi_epi64(x[6], x[7]),
                ],
            )
        };
        let (low, high) = (self.quarters(low), self.quarters(high));
        [
            [low[0], high[0]],
            [low[1], high[1]],
            [low[2], high[2]],
            [low[3], high[3]],
        ]
    }

    #[inline(always)]
    unsafe fn blocks(self, at: *const u8) -> [__m512i; 2] {
        // SAFETY: 128 bytes, as the caller promises.
        unsafe {
            let first = _mm512_loadu_si512(at.cast());
            let second = _mm512_loadu_si512(at.wrapping_add(64).cast());
            [
                _mm512_unpacklo_epi64(first, second),
                _mm512_unpackhi_epi64(first, second),
            ]
        }
    }
}

impl Multiply52 for Avx512<true> {
    instructions! {
        fn low52(sum: __m512i, a: __m512i, b: __m512i) -> __m512i { _mm512_madd52lo_epu64(sum, a, b) }
        fn high52(sum: __m512i, a: __m512i, b: __m512i) -> __m512i { _mm512_madd52hi_epu64(sum, a, b) }
    }
}

entries!(
    Avx512<true>,
    Limbs44,
    "avx512f,avx512bw,avx512vl,avx512ifma,avx2,bmi2",
    4864,
    1536
);
entries!(
    Avx512<false>,
    Limbs26,
    "avx512f,avx512bw,avx512vl,avx2,bmi2",
    6656,
    4352
);
