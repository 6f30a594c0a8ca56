//! Memory that two processes share: a memfd that nobody can resize any more, mapped whole or in part.
//!
//! What the other process can write may change at any moment, so there is no reference to its bytes, only loads and stores of words as atomics
//! ([`Words`], [`WordsMut`]): whatever stands there is a number. Where only one process may write, the other has a [`RegionReader`], which cannot store.
//!
//! Any thread may own a region. A mapping is sound to use for as long as it lives: the file cannot shrink, which is looked at before mapping it, so there is
//! no page behind its end to be met.

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::shared_ring::{Words, WordsMut};

/// A new file in memory of `len` zero bytes, sealed against resizing. What is not written takes no memory.
pub fn create(name: &str, len: usize) -> io::Result<OwnedFd> {
    let fd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&fd, len as u64)?;
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW)?;
    Ok(fd)
}

/// A shared mapping.
pub(crate) struct Mapping {
    start: NonNull<AtomicU64>,
    len: usize,
}

// SAFETY: the mapping belongs to the process and not to a thread; what is in it is reached by atomics only.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes (a multiple of 8) of a sealed file in memory.
    pub(crate) fn new(fd: BorrowedFd<'_>, len: usize, protection: ProtFlags) -> io::Result<Mapping> {
        let invalid = |what| io::Error::new(io::ErrorKind::InvalidInput, what);
        let seals = fcntl_get_seals(fd)?;
        if !seals.contains(SealFlags::SHRINK) {
            return Err(invalid("shared memory that can shrink"));
        }
        let size = u64::try_from(fstat(fd)?.st_size).unwrap_or(0);
        if len == 0 || !len.is_multiple_of(8) || size < len as u64 {
            return Err(invalid("shared memory of another size than was agreed upon"));
        }
        // SAFETY: a new mapping at an address that the kernel chooses touches no existing object.
        let start = unsafe { mmap(std::ptr::null_mut(), len, protection, MapFlags::SHARED, fd, 0)? };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Mapping { start, len })
    }

    /// Where `bytes` bytes at `at` are, if they are inside.
    pub(crate) fn place(&self, at: usize, bytes: usize) -> Option<NonNull<u8>> {
        let end = at.checked_add(bytes)?;
        // SAFETY: `at` is inside of the mapping, as was just checked.
        (end <= self.len).then(|| unsafe { self.start.cast::<u8>().add(at) })
    }

    /// Asks for every page now, and not when it is met.
    fn fault_in(&self) {
        for at in (0..self.len).step_by(rustix::param::page_size()) {
            self.word(at).load(Ordering::Relaxed);
        }
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at.is_multiple_of(8), "words are aligned");
        let place = self.place(at, 8).expect("inside of the region");
        // SAFETY: inside of the mapping, which lives as long as this, and aligned, since mappings begin with a page. Any bytes are a word.
        // In this process everybody reaches it by atomics: a mapping with values in it, which may be of other types, is a `Segment`'s alone.
        unsafe { place.cast::<AtomicU64>().as_ref() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made by `new` with this length; nothing borrows from it any more.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// A region that this process writes and others read.
#[derive(Clone)]
pub struct Region(Arc<Mapping>);

impl Region {
    /// A new file in memory of `len` zero bytes, sealed against resizing and, for everybody who maps it from now on, against writing (`F_SEAL_FUTURE_WRITE`,
    /// Linux 5.1).
    pub fn create(name: &str, len: usize) -> io::Result<(Region, OwnedFd)> {
        let (mapping, fd) = own(name, len)?;
        Ok((Region(Arc::new(mapping)), fd))
    }

    /// Maps the first `len` bytes of what [`create`] has made in another process, which lets this one write.
    ///
    /// # Errors
    /// `InvalidInput` if it can shrink, or is shorter.
    pub fn map(fd: impl AsFd, len: usize) -> io::Result<Region> {
        let mapping = Mapping::new(fd.as_fd(), len, ProtFlags::READ | ProtFlags::WRITE)?;
        Ok(Region(Arc::new(mapping)))
    }

    /// Takes the memory of the whole region now: for one that will be used up and down, so that nobody waits for a page of it later, and the process has its
    /// size from the beginning.
    pub fn fault_in(&self) {
        self.0.fault_in();
    }
}

/// Memory that nobody else can write.
pub(crate) fn own(name: &str, len: usize) -> io::Result<(Mapping, OwnedFd)> {
    let fd = create(name, len)?;
    let mapping = Mapping::new(fd.as_fd(), len, ProtFlags::READ | ProtFlags::WRITE)?;
    fcntl_add_seals(&fd, SealFlags::FUTURE_WRITE | SealFlags::SEAL)?;
    Ok((mapping, fd))
}

/// A region that another process writes.
#[derive(Clone)]
pub struct RegionReader(Arc<Mapping>);

impl RegionReader {
    /// Maps the first `len` bytes of what somebody else has made.
    ///
    /// # Errors
    /// `InvalidInput` if it can shrink, or is shorter.
    pub fn map(fd: impl AsFd, len: usize) -> io::Result<RegionReader> {
        let mapping = Mapping::new(fd.as_fd(), len, ProtFlags::READ)?;
        Ok(RegionReader(Arc::new(mapping)))
    }

    /// Takes the memory of the whole region now: for one that will be used up and down, so that nobody waits for a page of it later, and the process has its
    /// size from the beginning.
    pub fn fault_in(&self) {
        self.0.fault_in();
    }
}

impl Words for Region {
    fn load(&self, at: usize, order: Ordering) -> u64 {
        self.0.word(at).load(order)
    }
}

impl WordsMut for Region {
    fn store(&self, at: usize, value: u64, order: Ordering) {
        self.0.word(at).store(value, order);
    }
}

impl Words for RegionReader {
    fn load(&self, at: usize, order: Ordering) -> u64 {
        self.0.word(at).load(order)
    }
}
