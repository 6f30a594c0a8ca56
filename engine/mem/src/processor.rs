//! What only the processor can do.

/// Asks the processor to bring the cache line of `at` closer. It changes nothing but time.
#[inline(always)]
pub fn prefetch<T>(at: &T) {
    prefetch_at(at);
}

/// The same for an address where there may be nothing.
#[inline(always)]
pub(crate) fn prefetch_at<T>(at: *const T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a prefetch of any address has no effect that a program can see.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = at;
}

/// [`prefetch`] of what is going to be written as well, so that it comes for this core alone.
#[inline(always)]
pub fn prefetch_write<T>(at: &T) {
    prefetch_write_at(at);
}

/// The same for an address where there may be nothing.
#[inline(always)]
pub(crate) fn prefetch_write_at<T>(at: *const T) {
    // Not `_mm_prefetch` with `_MM_HINT_ET0`: unless the whole program is compiled for processors that are sure to have the instruction, that is a
    // prefetch for reading, after which the write waits for the line once more. Those that do not have it do nothing instead.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: as for `prefetch`.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = at;
}

/// The processor's time stamp counter, which goes up at a constant rate; only differences mean something, and only on one core. 0 where there
/// is none that a program may read.
#[inline(always)]
pub fn cycles() -> u64 {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: reading the counter has no effect; every x86-64 processor has it.
    return unsafe { std::arch::x86_64::_rdtsc() };
    #[cfg(all(target_arch = "aarch64", not(miri)))]
    return {
        let count: u64;
        // SAFETY: reads the virtual counter, which Linux lets programs read.
        unsafe { std::arch::asm!("mrs {}, cntvct_el0", out(reg) count, options(nomem, nostack)) };
        count
    };
    #[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
    0
}
