//! A packet that comes alone: its Poly1305 key and all of its key stream from one pass in rows, if it is short enough for that.

use crate::burst::Work;
use crate::chacha::first_rows;
use crate::tags::{alone, has_chunks, short};
use crate::vector::{Entries, Words};

/// Registers for each row of the state that a short packet's pass has at most.
const SHORT: usize = 2;

/// Rows in a register, times registers for each row of the state: blocks of a pass, the first of them the Poly1305 key.
pub(crate) const fn blocks_max<S: Words>() -> usize {
    let registers = if S::LANES == 16 { 4 } else { 3 };
    registers * (S::LANES / 4) - 1
}

/// Whether a packet is so short that its registers are few: functions of their own, which use little stack, are for these.
#[inline(always)]
pub(crate) fn is_short<S: Words>(work: &Work<'_>) -> bool {
    work.blocks() < SHORT * (S::LANES / 4)
}

/// Seals the packet, or opens it: whether it was. `row` is the last row of the state with a counter of zero.
#[inline(always)]
pub(crate) fn one<S: Entries, const SEAL: bool>(s: S, work: &mut Work<'_>, row: u128) -> bool {
    match registers::<S>(work) {
        1 => pass::<S, SEAL, true, 1>(s, work, row),
        2 => pass::<S, SEAL, true, 2>(s, work, row),
        3 => pass::<S, SEAL, true, 3>(s, work, row),
        _ => pass::<S, SEAL, true, 4>(s, work, row),
    }
}

/// The same for a short one.
#[inline(always)]
pub(crate) fn short_one<S: Entries, const SEAL: bool>(s: S, work: &mut Work<'_>, row: u128) -> bool {
    match registers::<S>(work) {
        1 => pass::<S, SEAL, false, 1>(s, work, row),
        _ => pass::<S, SEAL, false, SHORT>(s, work, row),
    }
}

/// Registers that the packet's blocks and the one before them need for each row.
#[inline(always)]
fn registers<S: Words>(work: &Work<'_>) -> usize {
    (work.blocks() + 1).div_ceil(S::LANES / 4)
}

#[inline(always)]
fn pass<S: Entries, const SEAL: bool, const CHUNKS: bool, const Q: usize>(
    s: S,
    work: &mut Work<'_>,
    row: u128,
) -> bool {
    let x = first_rows::<S, Q>(s, work, row);
    let [low, high] = [s.first_row(x[0][0]), s.first_row(x[0][1])];
    let key = [low[0], low[1], high[0], high[1]];
    let mut tail = [0; 64];
    let (text, len) = work.place();
    if SEAL {
        // SAFETY: the text belongs to a packet that is exclusively borrowed.
        unsafe { s.xor_text(&x, text, len, &mut tail) };
        let tag = if CHUNKS && has_chunks::<S>(work) {
            alone::<S, CHUNKS>(s, work, key)
        } else {
            short(work, key, &tail)
        };
        work.set_tag(tag);
        return true;
    }
    let right = work.has_tag(&alone::<S, CHUNKS>(s, work, key));
    if right {
        // SAFETY: as above.
        unsafe { s.xor_text(&x, text, len, &mut tail) };
    }
    right
}
