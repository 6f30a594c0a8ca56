//! Keys and what follows from them lie on the stack while a burst is worked on. Afterwards that stack is overwritten.

use std::mem::MaybeUninit;

/// Most that can be wiped, bytes.
const MAX: usize = 16 << 10;

/// Overwrites `len` bytes of dead stack below the caller's frame.
#[inline(never)]
pub(crate) fn below(len: usize) {
    let mut below = [const { MaybeUninit::<u8>::uninit() }; MAX];
    // The end of the array is next to the caller's frame.
    below[MAX - len..].fill(MaybeUninit::new(0));
    // That these bytes might be looked at is why the zeros have to be stored.
    std::hint::black_box(&mut below);
}
