//! Keys and what follows from them lie on the stack while a burst is worked on. Afterwards that stack is overwritten.

use std::mem::MaybeUninit;

/// Bytes more than what is asked for: code with checks in it takes more stack.
const CHECKS: usize = if cfg!(debug_assertions) { 4096 } else { 0 };

/// Overwrites at least `len` bytes, up to 12 KiB, of dead stack below the caller's frame.
#[inline(always)]
pub(crate) fn below(len: usize) {
    match len + CHECKS {
        0..=2560 => exactly::<2560>(),
        2561..=4096 => exactly::<4096>(),
        4097..=7168 => exactly::<7168>(),
        7169..=9216 => exactly::<9216>(),
        9217..=11264 => exactly::<11264>(),
        _ => exactly::<16384>(),
    }
}

/// Overwrites `N` bytes.
#[inline(never)]
fn exactly<const N: usize>() {
    let mut below = MaybeUninit::<[u8; N]>::zeroed();
    // That these bytes might be looked at is why the zeros have to be stored.
    std::hint::black_box(&mut below);
}
