//! Keys and what follows from them lie on the stack while a burst is worked on. Afterwards that stack is overwritten.

use std::mem::MaybeUninit;

/// Overwrites `N` bytes of dead stack below the caller's frame.
#[inline(never)]
pub(crate) fn below<const N: usize>() {
    let mut below = MaybeUninit::<[u8; N]>::zeroed();
    if cfg!(miri) {
        // Nothing to see there, and no inline assembly.
        std::hint::black_box(&mut below);
        return;
    }
    // SAFETY: no instruction at all. That it might read what the pointer points to is why the zeros have to be stored.
    unsafe {
        std::arch::asm!("/* {} */", in(reg) below.as_mut_ptr(), options(readonly, nostack, preserves_flags));
    }
}
