//! The rings that a socket shares with the kernel: an array, and a number of each side that counts up for ever. One end is the
//! kernel's, the other one belongs to the thread that has the ring.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// A mapping of the socket's, for as long as a ring is in it.
struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

impl Mapping {
    fn new(socket: BorrowedFd<'_>, len: usize, offset: libc::off_t) -> io::Result<Mapping> {
        // SAFETY: a new mapping at an address that the kernel chooses touches no existing object.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                socket.as_raw_fd(),
                offset,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Mapping { start, len })
    }

    /// Something at an offset that the kernel gave for this mapping.
    fn at<T>(&self, offset: u64, count: usize) -> NonNull<T> {
        let end = offset as usize + count * size_of::<T>();
        assert!(end <= self.len && (offset as usize).is_multiple_of(align_of::<T>()));
        // SAFETY: the place lies within the mapping.
        unsafe { self.start.add(offset as usize) }.cast()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new`, and only the ring that owns this points into it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// The parts of a ring.
struct Shared<T> {
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    entries: NonNull<T>,
    /// Number of entries, a power of two, less one.
    mask: u32,
    _mapping: Mapping,
    owns: PhantomData<T>,
}

// SAFETY: the ring's own end belongs to whoever has it; the kernel's end is another thread already.
unsafe impl<T: Send> Send for Shared<T> {}

impl<T: Copy> Shared<T> {
    fn new(
        socket: BorrowedFd<'_>,
        offset: libc::off_t,
        at: &libc::xdp_ring_offset,
        entries: u32,
    ) -> io::Result<Shared<T>> {
        assert!(entries.is_power_of_two());
        let len = at.desc as usize + entries as usize * size_of::<T>();
        let mapping = Mapping::new(socket, len, offset)?;
        Ok(Shared {
            producer: mapping.at(at.producer, 1),
            consumer: mapping.at(at.consumer, 1),
            flags: mapping.at(at.flags, 1),
            entries: mapping.at(at.desc, entries as usize),
            mask: entries - 1,
            _mapping: mapping,
            owns: PhantomData,
        })
    }

    #[inline]
    fn producer(&self) -> &AtomicU32 {
        // SAFETY: it lies in the mapping, which lives as long as `self`, and both sides access it atomically.
        unsafe { self.producer.as_ref() }
    }

    #[inline]
    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { self.consumer.as_ref() }
    }

    #[inline]
    fn entry(&self, number: u32) -> NonNull<T> {
        // SAFETY: the masked number is below the number of entries in the mapping.
        unsafe { self.entries.add((number & self.mask) as usize) }
    }
}

/// A ring that we fill: frames for what will arrive, or packets to send.
pub(super) struct FillRing<T> {
    shared: Shared<T>,
    next: u32,
    /// The kernel's number when it was last looked at.
    taken: u32,
}

impl<T: Copy> FillRing<T> {
    pub(super) fn new(
        socket: BorrowedFd<'_>,
        offset: libc::off_t,
        at: &libc::xdp_ring_offset,
        entries: u32,
    ) -> io::Result<FillRing<T>> {
        Ok(FillRing {
            shared: Shared::new(socket, offset, at, entries)?,
            next: 0,
            taken: 0,
        })
    }

    /// How many entries are free.
    #[inline]
    pub(super) fn room(&mut self, wanted: u32) -> u32 {
        let size = self.shared.mask + 1;
        let mut room = size - self.next.wrapping_sub(self.taken);
        if room < wanted {
            // Acquire: the kernel has read what was in the entries.
            self.taken = self.shared.consumer().load(Ordering::Acquire);
            room = size - self.next.wrapping_sub(self.taken);
        }
        room
    }

    /// Fills an entry; the kernel sees it after [`publish`](FillRing::publish).
    ///
    /// # Panics
    /// If there is no room.
    #[inline]
    pub(super) fn push(&mut self, entry: T) {
        assert!(
            self.next.wrapping_sub(self.taken) <= self.shared.mask,
            "room was asked for"
        );
        // SAFETY: the entry lies in the mapping, and between `taken` and `next` plus the size it is ours.
        unsafe { self.shared.entry(self.next).write(entry) };
        self.next = self.next.wrapping_add(1);
    }

    /// How many entries the kernel has not taken yet.
    #[inline]
    pub(super) fn waiting(&self) -> u32 {
        self.next
            .wrapping_sub(self.shared.consumer().load(Ordering::Relaxed))
    }

    /// Whether the kernel has taken everything.
    #[inline]
    pub(super) fn is_drained(&self) -> bool {
        self.waiting() == 0
    }

    /// Hands over what was pushed.
    #[inline]
    pub(super) fn publish(&self) {
        // Release: the entries are written before the kernel sees the number.
        self.shared.producer().store(self.next, Ordering::Release);
    }

    /// Whether the kernel sleeps and wants to be called.
    #[inline]
    pub(super) fn needs_wakeup(&self) -> bool {
        // SAFETY: it lies in the mapping, and both sides access it atomically.
        let flags = unsafe { self.shared.flags.as_ref() };
        flags.load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }
}

/// A ring that the kernel fills: what arrived, or frames that have been sent.
pub(super) struct DrainRing<T> {
    shared: Shared<T>,
    next: u32,
    /// The kernel's number when it was last looked at.
    filled: u32,
}

impl<T: Copy> DrainRing<T> {
    pub(super) fn new(
        socket: BorrowedFd<'_>,
        offset: libc::off_t,
        at: &libc::xdp_ring_offset,
        entries: u32,
    ) -> io::Result<DrainRing<T>> {
        Ok(DrainRing {
            shared: Shared::new(socket, offset, at, entries)?,
            next: 0,
            filled: 0,
        })
    }

    /// The oldest entry, whose place the kernel has again after [`publish`](DrainRing::publish).
    #[inline]
    pub(super) fn pop(&mut self) -> Option<T> {
        if self.filled == self.next {
            // Acquire: the entries are written before the number.
            self.filled = self.shared.producer().load(Ordering::Acquire);
            if self.filled == self.next {
                return None;
            }
        }
        // SAFETY: the entry lies in the mapping, and between `next` and `filled` it is ours.
        let entry = unsafe { self.shared.entry(self.next).read() };
        self.next = self.next.wrapping_add(1);
        Some(entry)
    }

    /// Whether there is an entry.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.shared.producer().load(Ordering::Relaxed) == self.next
    }

    /// Gives back the places of what was popped.
    #[inline]
    pub(super) fn publish(&self) {
        // Release: the entries are read before the kernel sees the number.
        self.shared.consumer().store(self.next, Ordering::Release);
    }
}
