//! Anonymous memory mappings: for the arena and the key slabs, which live until the process ends, and for tables.

use std::io;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;

/// Size of a huge page on x86-64 and the usual one on AArch64, in bytes.
pub(crate) const HUGE_PAGE: usize = 2 << 20;

/// Size of the largest pages, which a machine has only if they were reserved, in bytes.
pub(crate) const GIANT_PAGE: usize = 1 << 30;

/// Bytes of the smallest page of any machine that we run on; guards and locks are rounded to the real page size.
#[cfg(not(miri))]
pub(crate) fn page_size() -> usize {
    // SAFETY: sysconf reads a constant of the system.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}

#[cfg(not(miri))]
fn map(len: usize, protection: libc::c_int, flags: libc::c_int) -> io::Result<NonNull<u8>> {
    let flags = flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new anonymous mapping at an address that the kernel chooses touches no existing object.
    let ptr = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
    if ptr == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(ptr.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))
}

/// Gives advice about a range that lies within one of our mappings; true if the kernel took it.
#[cfg(not(miri))]
pub(crate) fn advise(start: NonNull<u8>, len: usize, advice: libc::c_int) -> bool {
    // SAFETY: callers pass ranges of their own mappings, and none of the kinds of advice used in this package
    // (huge pages, populate, dump, fork) changes bytes that this process sees.
    unsafe { libc::madvise(start.as_ptr().cast(), len, advice) == 0 }
}

/// Zeroed bytes that are given back when this is dropped.
pub(crate) struct Mapping {
    start: NonNull<u8>,
    /// What was mapped, which begins before `start` where that had to be aligned.
    whole: NonNull<u8>,
    len: usize,
    /// Bytes of the reserved huge pages that it is on, if it is.
    reserved: Option<usize>,
}

impl Mapping {
    /// The first byte, aligned to pages, and to huge pages if it is as long as one.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Bytes of the pages that it is on, if they are huge ones that the machine has reserved.
    pub(crate) fn reserved(&self) -> Option<usize> {
        self.reserved
    }

    /// Keeps the bytes until the process ends.
    pub(crate) fn leak(self) -> NonNull<u8> {
        ManuallyDrop::new(self).start
    }
}

#[cfg(not(miri))]
impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `resident`, and whoever owned this pointed into it alone.
        unsafe { libc::munmap(self.whole.as_ptr().cast(), self.len) };
    }
}

/// The same on pages of 1 GiB, if there are free ones.
#[cfg(not(miri))]
pub(crate) fn resident_on_giant(len: usize) -> io::Result<Mapping> {
    match on_reserved(len, GIANT_PAGE) {
        Some(mapping) => Ok(mapping),
        None => resident(len),
    }
}

/// The same on reserved pages of this size; `None` if there are too few free ones.
#[cfg(not(miri))]
fn on_reserved(len: usize, page: usize) -> Option<Mapping> {
    let rounded = len.checked_next_multiple_of(page)?;
    let size = (page.trailing_zeros() as libc::c_int) << libc::MAP_HUGE_SHIFT;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let start = map(rounded, protection, libc::MAP_HUGETLB | size).ok()?;
    let mapping = Mapping {
        start,
        whole: start,
        len: rounded,
        reserved: Some(page),
    };
    // Touching the pages here turns a limit on huge pages into an error now instead of a signal later.
    if !advise(start, rounded, libc::MADV_POPULATE_WRITE) {
        return None;
    }
    advise(start, rounded, libc::MADV_DONTDUMP);
    Some(mapping)
}

/// Maps `len` zeroed bytes, resident from the start and on huge pages where the machine has them: reserved ones
/// first, transparent ones otherwise.
#[cfg(not(miri))]
pub(crate) fn resident(len: usize) -> io::Result<Mapping> {
    const READ_WRITE: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;
    let rounded = len
        .checked_next_multiple_of(HUGE_PAGE)
        .filter(|rounded| *rounded <= isize::MAX as usize - HUGE_PAGE)
        .ok_or(io::ErrorKind::OutOfMemory)?;
    if len >= HUGE_PAGE
        && let Some(mapping) = on_reserved(len, HUGE_PAGE)
    {
        return Ok(mapping);
    }
    let slack = if len >= HUGE_PAGE { HUGE_PAGE } else { 0 };
    let whole = map(rounded + slack, READ_WRITE, 0)?;
    let mut start = whole;
    if slack > 0 {
        let skip = whole.as_ptr().align_offset(HUGE_PAGE);
        // SAFETY: the mapping is longer than `rounded` by one huge page and an alignment skips less than that.
        start = unsafe { whole.add(skip) };
        advise(start, rounded, libc::MADV_HUGEPAGE);
    }
    advise(start, rounded, libc::MADV_DONTDUMP);
    advise(
        start,
        len.next_multiple_of(page_size()),
        libc::MADV_POPULATE_WRITE,
    );
    Ok(Mapping {
        start,
        whole,
        len: rounded + slack,
        reserved: None,
    })
}

/// Maps `len` zeroed bytes that take memory only where they are touched.
#[cfg(not(miri))]
pub(crate) fn sparse(len: usize) -> io::Result<NonNull<u8>> {
    let start = map(len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_NORESERVE)?;
    advise(start, len, libc::MADV_DONTDUMP);
    Ok(start)
}

/// Maps `len` bytes (a multiple of the page size) between two inaccessible pages.
#[cfg(not(miri))]
pub(crate) fn guarded(len: usize) -> io::Result<NonNull<u8>> {
    let guard = page_size();
    let outer = closed(len + 2 * guard)?;
    // SAFETY: the mapping is two guards longer than `len`.
    let start = unsafe { outer.add(guard) };
    open(start, len).inspect_err(|_| unmap(outer, len + 2 * guard))?;
    Ok(start)
}

/// Maps `len` bytes (a multiple of the page size) that nobody can use before they are [opened](open()).
#[cfg(not(miri))]
pub(crate) fn closed(len: usize) -> io::Result<NonNull<u8>> {
    map(len, libc::PROT_NONE, 0)
}

/// Makes pages of a [closed] mapping usable.
#[cfg(not(miri))]
pub(crate) fn open(start: NonNull<u8>, len: usize) -> io::Result<()> {
    // SAFETY: callers pass ranges of their own mappings into which nothing points yet.
    match unsafe { libc::mprotect(start.as_ptr().cast(), len, libc::PROT_READ | libc::PROT_WRITE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives a mapping back that nothing points into.
#[cfg(not(miri))]
pub(crate) fn unmap(start: NonNull<u8>, len: usize) {
    // SAFETY: callers pass mappings of their own, whole, which they forget.
    unsafe { libc::munmap(start.as_ptr().cast(), len) };
}

/// Keeps pages in memory once they are touched. True if they are locked.
#[cfg(not(miri))]
pub(crate) fn lock(start: NonNull<u8>, len: usize) -> bool {
    // SAFETY: the range is a mapping of the caller's; locking changes no bytes.
    unsafe { libc::mlock2(start.as_ptr().cast(), len, libc::MLOCK_ONFAULT as _) == 0 }
}

/// Keeps pages out of core dumps and of forked children.
#[cfg(not(miri))]
pub(crate) fn never_copied(start: NonNull<u8>, len: usize) {
    advise(start, len, libc::MADV_DONTDUMP);
    advise(start, len, libc::MADV_WIPEONFORK);
}

// The interpreter that checks this package for undefined behaviour knows no mappings: it gets plain zeroed memory.
#[cfg(miri)]
pub(crate) fn zeroed(len: usize) -> io::Result<NonNull<u8>> {
    let layout = std::alloc::Layout::from_size_align(len.max(1), 4096).map_err(io::Error::other)?;
    // SAFETY: the layout's size is not zero.
    NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) }).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}
#[cfg(miri)]
pub(crate) fn resident(len: usize) -> io::Result<Mapping> {
    let start = zeroed(len)?;
    Ok(Mapping {
        start,
        whole: start,
        len,
        reserved: None,
    })
}
#[cfg(miri)]
impl Drop for Mapping {
    fn drop(&mut self) {
        // What was made by the layout of `zeroed`.
        if let Ok(layout) = std::alloc::Layout::from_size_align(self.len.max(1), 4096) {
            // SAFETY: allocated by `resident` with this layout, and whoever owned this pointed into it alone.
            unsafe { std::alloc::dealloc(self.whole.as_ptr(), layout) };
        }
    }
}
#[cfg(miri)]
pub(crate) use {resident as resident_on_giant, zeroed as closed, zeroed as guarded, zeroed as sparse};
#[cfg(miri)]
pub(crate) fn open(_: NonNull<u8>, _: usize) -> io::Result<()> {
    Ok(())
}
#[cfg(miri)]
pub(crate) fn lock(_: NonNull<u8>, _: usize) -> bool {
    true
}
#[cfg(miri)]
pub(crate) fn never_copied(_: NonNull<u8>, _: usize) {}
#[cfg(miri)]
pub(crate) fn unmap(_: NonNull<u8>, _: usize) {}
#[cfg(miri)]
pub(crate) fn page_size() -> usize {
    4096
}
