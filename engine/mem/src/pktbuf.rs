//! One packet: a handle to a frame of the arena and to the metadata line beside it. Made by a
//! [`FrameCache`](crate::FrameCache), moved from stage to stage, given back by dropping it or, faster, to a cache.

use std::fmt;
use std::ptr::NonNull;

use crate::{Arena, HEADROOM, Outer};

/// A frame's metadata: one cache line, in an array of its own so that looking at many packets does not touch their frames.
///
/// `base`, `index` and `capacity` never change after the arena is made. `offset + len <= capacity` always holds, and the
/// `capacity` bytes from `base` belong to this frame alone.
#[repr(C, align(64))]
pub(crate) struct Line {
    pub(crate) base: NonNull<u8>,
    pub(crate) index: u32,
    pub(crate) capacity: u32,
    pub(crate) offset: u32,
    pub(crate) len: u32,
    pub(crate) outer: Outer,
}

const _: () = assert!(size_of::<Line>() == 64);

/// A packet in a frame of the arena. The frame has exactly one owner: this handle.
///
/// The packet lies somewhere in the frame with room before it ([`headroom`](PktBuf::headroom)) and behind it
/// ([`tailroom`](PktBuf::tailroom)). The frame's memory is always initialised: bytes that nobody wrote yet are zero or
/// an earlier packet's.
pub struct PktBuf {
    line: NonNull<Line>,
}

const _: () = assert!(size_of::<Option<PktBuf>>() == 8);

// SAFETY: a PktBuf owns its line and its frame; the free lists through which indices travel between threads order the
// accesses of the old owner before those of the new one.
unsafe impl Send for PktBuf {}
// SAFETY: through a shared reference the line and the frame can only be read.
unsafe impl Sync for PktBuf {}

impl PktBuf {
    /// Takes ownership of the frame that `line` describes.
    ///
    /// # Safety
    /// `line` must point to an initialised line of an arena, and its index must have been taken from a free list or back from whom it was
    /// lent to: no other `PktBuf` has it.
    #[inline]
    pub(crate) unsafe fn from_line(line: NonNull<Line>) -> PktBuf {
        let mut pkt = PktBuf { line };
        pkt.reset();
        pkt
    }

    /// The same with a packet at `offset`; `None` if that is not in the frame, whose owner is still the caller.
    ///
    /// # Safety
    /// As for [`from_line`](PktBuf::from_line).
    #[inline]
    pub(crate) unsafe fn from_line_at(line: NonNull<Line>, offset: u32, len: u32) -> Option<PktBuf> {
        // SAFETY: the line is initialised and nobody else has it.
        let it = unsafe { &mut *line.as_ptr() };
        if offset.checked_add(len)? > it.capacity {
            return None;
        }
        (it.offset, it.len, it.outer) = (offset, len, Outer::NONE);
        Some(PktBuf { line })
    }

    /// Gives up ownership without returning the frame to a free list.
    #[inline]
    pub(crate) fn into_line(self) -> NonNull<Line> {
        std::mem::ManuallyDrop::new(self).line
    }

    pub(crate) fn line_ptr(&self) -> NonNull<Line> {
        self.line
    }

    #[inline]
    fn line(&self) -> &Line {
        // SAFETY: the line is valid for the life of the process and this handle is its only owner.
        unsafe { self.line.as_ref() }
    }

    #[inline]
    fn line_mut(&mut self) -> &mut Line {
        // SAFETY: as in `line`, and the handle is borrowed exclusively.
        unsafe { self.line.as_mut() }
    }

    /// Bytes in the packet.
    #[inline]
    pub fn len(&self) -> usize {
        self.line().len as usize
    }

    /// True if the packet has no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.line().len == 0
    }

    /// The packet's bytes.
    #[inline]
    pub fn data(&self) -> &[u8] {
        let line = self.line();
        // SAFETY: offset + len <= capacity (the line's invariant), the frame is initialised and owned by this handle.
        unsafe { std::slice::from_raw_parts(line.base.as_ptr().add(line.offset as usize), line.len as usize) }
    }

    /// The packet's bytes, writable.
    #[inline]
    pub fn data_mut(&mut self) -> &mut [u8] {
        let (start, len) = (self.line().offset as usize, self.line().len as usize);
        self.range_mut(start, len)
    }

    /// `len` bytes of the frame from byte `start`; the caller has checked that they end within the capacity.
    #[inline]
    fn range_mut(&mut self, start: usize, len: usize) -> &mut [u8] {
        debug_assert!(start + len <= self.line().capacity as usize);
        // SAFETY: the range lies within the frame (checked by all callers), which is initialised and exclusively
        // borrowed through this handle.
        unsafe { std::slice::from_raw_parts_mut(self.line().base.as_ptr().add(start), len) }
    }

    /// Free bytes before the packet.
    #[inline]
    pub fn headroom(&self) -> usize {
        self.line().offset as usize
    }

    /// Free bytes behind the packet.
    #[inline]
    pub fn tailroom(&self) -> usize {
        let line = self.line();
        (line.capacity - line.offset - line.len) as usize
    }

    /// Makes the packet longer by `n` bytes at its front and returns them; what they hold is unspecified.
    ///
    /// # Panics
    /// If there are fewer than `n` bytes of headroom.
    #[inline]
    pub fn prepend(&mut self, n: usize) -> &mut [u8] {
        assert!(n <= self.headroom(), "prepend beyond the headroom");
        let line = self.line_mut();
        line.offset -= n as u32;
        line.len += n as u32;
        let start = line.offset as usize;
        self.range_mut(start, n)
    }

    /// Makes the packet longer by `n` bytes at its tail and returns them; what they hold is unspecified.
    ///
    /// # Panics
    /// If there are fewer than `n` bytes of tailroom.
    #[inline]
    pub fn append(&mut self, n: usize) -> &mut [u8] {
        assert!(n <= self.tailroom(), "append beyond the tailroom");
        let line = self.line_mut();
        let start = (line.offset + line.len) as usize;
        line.len += n as u32;
        self.range_mut(start, n)
    }

    /// Drops the first `n` bytes; they become headroom.
    ///
    /// # Panics
    /// If the packet is shorter than `n`.
    #[inline]
    pub fn trim_front(&mut self, n: usize) {
        assert!(n <= self.len(), "trim beyond the packet");
        let line = self.line_mut();
        line.offset += n as u32;
        line.len -= n as u32;
    }

    /// Shortens the packet to `len` bytes at its tail; does nothing if it is not longer.
    #[inline]
    pub fn truncate(&mut self, len: usize) {
        if len < self.len() {
            self.line_mut().len = len as u32;
        }
    }

    /// Makes the packet empty, with the headroom and the addresses of a fresh frame.
    #[inline]
    pub fn reset(&mut self) {
        let line = self.line_mut();
        line.offset = HEADROOM as u32;
        line.len = 0;
        line.outer = Outer::NONE;
    }

    /// Everything from the packet's first byte to the end of the frame, for a port to read into; then
    /// [`set_len`](PktBuf::set_len) says how much of it is the packet.
    #[inline]
    pub fn spare_mut(&mut self) -> &mut [u8] {
        let (start, end) = (self.line().offset as usize, self.line().capacity as usize);
        self.range_mut(start, end - start)
    }

    /// Sets the packet's length, counted from its first byte; bytes beyond the old length are unspecified.
    ///
    /// # Panics
    /// If that many bytes do not fit behind the packet's first byte.
    #[inline]
    pub fn set_len(&mut self, len: usize) {
        let line = self.line_mut();
        assert!(
            len <= (line.capacity - line.offset) as usize,
            "longer than the frame"
        );
        line.len = len as u32;
    }

    /// The outer addresses: where the packet came from, or where it goes.
    #[inline]
    pub fn outer(&self) -> &Outer {
        &self.line().outer
    }

    /// The outer addresses, writable.
    #[inline]
    pub fn outer_mut(&mut self) -> &mut Outer {
        &mut self.line_mut().outer
    }
}

impl Drop for PktBuf {
    /// Gives the frame straight back to the arena: one contended operation. A thread that has a
    /// [`FrameCache`](crate::FrameCache) gives it to that instead.
    fn drop(&mut self) {
        Arena::of_line(self.line).release(self.line().index);
    }
}

impl fmt::Debug for PktBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PktBuf")
            .field("index", &self.line().index)
            .field("len", &self.len())
            .field("headroom", &self.headroom())
            .field("outer", self.outer())
            .finish_non_exhaustive()
    }
}
