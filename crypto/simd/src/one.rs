//! A packet that comes alone: its Poly1305 key and all of its key stream from one pass in rows, if it is short enough for that.

use crate::burst::Work;
use crate::chacha::first_rows;
use crate::tags::alone;
use crate::vector::{Entries, Words};

/// Rows in a register, times registers for each row of the state: blocks of a pass, the first of them the Poly1305 key.
pub(crate) const fn blocks_max<S: Words>() -> usize {
    let registers = if S::LANES == 16 { 4 } else { 3 };
    registers * (S::LANES / 4) - 1
}

/// Seals the packet, or opens it: whether it was.
#[inline(always)]
pub(crate) fn one<S: Entries, const SEAL: bool>(s: S, work: &mut Work<'_>) -> bool {
    match (work.blocks() + 1).div_ceil(<S as Words>::LANES / 4) {
        1 => pass::<S, SEAL, 1>(s, work),
        2 => pass::<S, SEAL, 2>(s, work),
        3 => pass::<S, SEAL, 3>(s, work),
        _ => pass::<S, SEAL, 4>(s, work),
    }
}

#[inline(always)]
fn pass<S: Entries, const SEAL: bool, const Q: usize>(s: S, work: &mut Work<'_>) -> bool {
    let x = first_rows::<S, Q>(s, work);
    let [low, high] = [s.first_row(x[0][0]), s.first_row(x[0][1])];
    let key = [low[0], low[1], high[0], high[1]];
    if SEAL {
        xor(s, &x, work);
        let tag = alone(s, work, key);
        work.set_tag(tag);
        return true;
    }
    let right = work.has_tag(&alone(s, work, key));
    if right {
        xor(s, &x, work);
    }
    right
}

/// XORs the key stream behind block 0 onto the text.
#[inline(always)]
fn xor<S: Words, const Q: usize>(s: S, x: &[[S::V; 4]; Q], work: &Work<'_>) {
    let rows = <S as Words>::LANES / 4;
    let blocks = work.blocks();
    for (q, x) in x.iter().enumerate() {
        // Block 0 is XORed onto none of the first bytes.
        let mut to = [work.block(0).0; 4];
        let mut len = [0; 4];
        let mut count = 0;
        for n in 0..rows {
            if let Some(block) = (q * rows + n).checked_sub(1)
                && block < blocks
            {
                (to[n], len[n]) = work.block(block);
            }
            if q * rows + n <= blocks {
                count = n + 1;
            }
        }
        // SAFETY: the places belong to a packet that is exclusively borrowed.
        unsafe { s.xor_rows(*x, &to[..count], &len[..count]) };
    }
}
