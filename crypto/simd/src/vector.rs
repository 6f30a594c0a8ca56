//! What the kernels ask of a processor's vector registers.
//!
//! A value of a type that implements these traits is proof that the processor has the instructions: its module makes one only after it has
//! looked. Every method is inlined into one of the functions that [`Entries`] names, which are compiled for those instructions.

use crate::BURST;
use crate::TAG;
use crate::burst::{Keys, Lanes, Work, Works};

/// Registers of 32-bit words, as ChaCha20 uses them: one word of several blocks (*upright*), or four words of each of several blocks (*rows*).
pub(crate) trait Words: Copy {
    /// Words in a register.
    const LANES: usize;
    /// Blocks that a pass works on upright: once or twice the lanes.
    const PASSES: usize;
    /// A register.
    type V: Copy;

    fn splat(self, word: u32) -> Self::V;
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn xor(self, a: Self::V, b: Self::V) -> Self::V;
    /// Each word turned left by 16, 12, 8 or 7 bits.
    fn rotate<const BY: i32>(self, v: Self::V) -> Self::V;
    /// In each row of four words, the word `BY` places further on comes first.
    fn turn<const BY: i32>(self, v: Self::V) -> Self::V;
    /// The same four words in every row.
    fn row(self, words: [u32; 4]) -> Self::V;
    /// The words of `counters`, one at the start of each row, with zeros behind.
    fn counters(self, counters: &[u32]) -> Self::V;

    /// The first row.
    fn first_row(self, v: Self::V) -> [u64; 2];

    /// The first [`LANES`](Self::LANES) words of `words`.
    fn load(self, words: &[u32]) -> Self::V;
    /// The reverse.
    fn store(self, words: &mut [u32], v: Self::V);

    /// Four words from each of the addresses.
    ///
    /// # Safety
    /// Each address can be read for 16 bytes.
    unsafe fn rows(self, from: &[*const u8]) -> Self::V;
    /// Eight words from each of the addresses, upright: the first words of all, the second words of all.
    ///
    /// # Safety
    /// Each address can be read for 32 bytes.
    unsafe fn upright8(self, from: &[*const u8; 16]) -> [Self::V; 8];
    /// The last three of four words from each of the addresses, upright.
    ///
    /// # Safety
    /// Each address can be read for 16 bytes.
    unsafe fn upright3(self, from: &[*const u8; 16]) -> [Self::V; 3];
    /// Words of `v`, but in the lanes of `mask` the word.
    fn splat_some(self, v: Self::V, mask: u16, word: u32) -> Self::V;

    /// XORs blocks that stand upright onto up to [`LANES`](Self::LANES) places.
    ///
    /// # Safety
    /// Each place can be read and written for its length, which is at most 64.
    unsafe fn xor_upright(self, x: [Self::V; 16], to: &[*mut u8], len: &[u8]);
    /// XORs blocks that lie in rows onto up to [`LANES`](Self::LANES)` / 4` places.
    ///
    /// # Safety
    /// As of [`xor_upright`](Self::xor_upright).
    unsafe fn xor_rows(self, x: [Self::V; 4], to: &[*mut u8], len: &[u8]);
}

/// What of a packet's 64 bytes at an address is its own, in bytes from there; the rest counts as zeros.
#[derive(Clone, Copy)]
pub(crate) struct Window {
    pub(crate) at: *const u8,
    pub(crate) from: u8,
    pub(crate) to: u8,
}

/// A place in a register of 64-bit words for each of several packets, or of several blocks of one.
pub(crate) const WIDE: usize = 8;

/// Registers of 64-bit words, as Poly1305 uses them.
pub(crate) trait Wide: Copy {
    /// Words in a register: at most [`WIDE`].
    const LANES: usize;
    /// A register.
    type W: Copy;

    fn wide(self, word: u64) -> Self::W;
    fn wide_load(self, words: &[u64; WIDE]) -> Self::W;
    fn wide_store(self, words: &mut [u64; WIDE], w: Self::W);
    /// The 32-bit words of the first as the low, those of the second as the high half.
    fn zip(self, low: &[u32], high: &[u32]) -> Self::W;
    fn plus(self, a: Self::W, b: Self::W) -> Self::W;
    fn and(self, a: Self::W, b: Self::W) -> Self::W;
    fn or(self, a: Self::W, b: Self::W) -> Self::W;
    fn left<const BY: u32>(self, w: Self::W) -> Self::W;
    fn right<const BY: u32>(self, w: Self::W) -> Self::W;
    /// The product of the low 32 bits.
    fn times(self, a: Self::W, b: Self::W) -> Self::W;
    /// In the lanes of `mask` the second, in the others the first.
    fn select(self, mask: u8, a: Self::W, b: Self::W) -> Self::W;

    /// The four blocks of each packet's window: low and high words of the first blocks, of the second ones, and so on.
    ///
    /// # Safety
    /// Each window can be read where it is its packet's own, and on to the end of that block of 16 bytes; where not `RAGGED`, that is all 64 bytes.
    unsafe fn windows<const RAGGED: bool>(self, windows: &[Window; WIDE]) -> [[Self::W; 2]; 4];
    /// As many blocks of one text as there are lanes, low and high words; lane `n` has block [`ORDER`](Self::ORDER)`[n]`.
    ///
    /// # Safety
    /// The address can be read for 16 bytes a lane.
    unsafe fn blocks(self, at: *const u8) -> [Self::W; 2];
    /// Which block [`blocks`](Self::blocks) puts into which lane.
    const ORDER: [u8; WIDE];
}

/// [`Wide`] registers with the 52-bit multiplier.
pub(crate) trait Multiply52: Wide {
    /// `sum` and the low 52 bits of the product of the low 52 bits of both.
    fn low52(self, sum: Self::W, a: Self::W, b: Self::W) -> Self::W;
    /// `sum` and the high 52 bits of that product.
    fn high52(self, sum: Self::W, a: Self::W, b: Self::W) -> Self::W;
}

/// The functions that are compiled for a processor's instructions.
pub(crate) trait Entries: Words + Wide {
    /// Packets that are authenticated side by side.
    const GROUP: usize = <Self as Wide>::LANES;

    /// Stack that any of the functions uses, bytes.
    const STACK: usize;
    /// Stack that [`chunks`](Self::chunks) uses, bytes.
    const STACK_CHUNKS: usize;

    /// Makes the Poly1305 keys of all packets.
    fn keys(self, works: &Works<'_>, keys: &mut [Keys]);
    /// XORs the key stream onto what `lanes` lists from `at` on: a pass of twice [`Words::LANES`] blocks.
    fn two_upright(self, works: &Works<'_>, lanes: &Lanes, at: usize);
    /// The same for up to three quarters of the lanes more than once.
    fn upright_and_rows(self, works: &Works<'_>, lanes: &Lanes, at: usize);
    /// The same for once.
    fn upright(self, works: &Works<'_>, lanes: &Lanes, at: usize);
    /// The same for up to three quarters.
    fn rows_only(self, works: &Works<'_>, lanes: &Lanes, at: usize);
    /// The tags of a group of packets without additional data, up to [`GROUP`](Self::GROUP), the first of which has number `first` among the keys.
    fn side_by_side(self, group: &[Work<'_>], keys: &[Keys], first: usize, tags: &mut [[u8; TAG]; WIDE]);
    /// The whole of one packet, if it is short enough ([`blocks_max`](crate::one::blocks_max)): encrypted and its tag, or decrypted if its tag is right. Whether it was.
    fn seal_one(self, work: &mut Work<'_>) -> bool;
    fn open_one(self, work: &mut Work<'_>) -> bool;
    /// The state of Poly1305 after a whole number of chunks, at least one: a chunk is 16 bytes for each of [`Wide::LANES`].
    fn chunks(self, h: [u64; 3], key: [u64; 2], text: &[u8]) -> [u64; 3];
    /// Puts `lens` in order: `order[n]` is the place in `lens` of the `n`-th longest.
    fn sort(self, lens: &[u32], order: &mut [u8; BURST]);
}
