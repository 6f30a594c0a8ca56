//! One packet: a handle to a frame of the arena and to the metadata line beside it. Made by a
//! [`FrameCache`](crate::FrameCache), moved from stage to stage, given back by dropping it or, faster, to a cache.

use std::fmt;
use std::ptr::NonNull;

use crate::{Arena, FRAME, HEADROOM, Outer, RawPacket};

/// What is known of a frame: one cache line, in an array of its own so that looking at many packets does not touch their frames.
///
/// `base`, `index` and `capacity` never change after the arena is made, and the `capacity` bytes from `base` belong to this frame alone. Where the packet is
/// in the frame says its handle. So a line is written only for outer addresses, and a packet that has none takes its line from one core to another
/// without a fight for it: both may have it.
#[repr(C, align(64))]
pub(crate) struct Line {
    pub(crate) base: NonNull<u8>,
    pub(crate) index: u32,
    pub(crate) capacity: u32,
    pub(crate) outer: Outer,
}

const _: () = assert!(size_of::<Line>() == 64);

/// A packet in a frame of the arena. The frame has exactly one owner: this handle.
///
/// The packet lies somewhere in the frame with room before it ([`headroom`](PktBuf::headroom)) and behind it
/// ([`tailroom`](PktBuf::tailroom)). The frame's memory is always initialised: bytes that nobody wrote yet are zero or
/// an earlier packet's.
#[repr(C)]
pub struct PktBuf {
    line: NonNull<Line>,
    /// Where in the frame the packet begins, in the upper half, with [`ADDRESSED`], [`UNFINISHED`] and the [mark](MARK); its length in the lower half. `offset + len <= capacity` always holds.
    /// One word, so that a handle is two registers: as three fields it would go through memory in one piece, and wait there for the parts that were
    /// just written.
    place: u64,
}

/// The line's outer addresses are this packet's. Otherwise they are an earlier one's, and this one has none.
const ADDRESSED: u64 = 1 << 63;

/// An [`Unfinished`], or 0.
const UNFINISHED: u64 = 3 << UNFINISHED_AT;
const UNFINISHED_AT: u32 = 61;

/// One byte of the offset.
const OFFSET: u64 = 1 << 32;

/// One of the mark, which has the bits between the offset and [`UNFINISHED`].
const MARK: u64 = 1 << MARK_SHIFT;
const MARK_SHIFT: u32 = 52;

/// The bits of the mark.
const MARK_MASK: u64 = (1 << UNFINISHED_AT) - MARK;

/// The bits of the offset.
const OFFSET_MASK: u64 = MARK - OFFSET;

/// The packet of a fresh frame.
const FRESH: u64 = HEADROOM as u64 * OFFSET;

const _: () = assert!(size_of::<Option<PktBuf>>() == 16);
// A handle is the same bytes as numbers.
const _: () = assert!(size_of::<RawPacket>() == size_of::<PktBuf>());
const _: () = assert!(std::mem::offset_of!(RawPacket, place) == std::mem::offset_of!(PktBuf, place));

// SAFETY: a PktBuf owns its line and its frame; the free lists through which indices travel between threads order the
// accesses of the old owner before those of the new one.
unsafe impl Send for PktBuf {}
// SAFETY: through a shared reference the line and the frame can only be read.
unsafe impl Sync for PktBuf {}

/// Checksums that whoever sends the packet has to finish: of a frame that is an Ethernet header of 14 bytes, an IP header without options or extension
/// headers, and a UDP datagram up to its end. UDP's field has the sum of the pseudo header, not complemented; that of the IPv4 header is 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Unfinished {
    /// Of an IPv4 header, and UDP's.
    UdpV4 = 1,
    /// UDP's, over IPv6.
    UdpV6 = 2,
}

impl PktBuf {
    /// Takes ownership of the frame that `line` describes.
    ///
    /// # Safety
    /// `line` must point to an initialised line of an arena, and its index must have been taken from a free list or back from whom it was
    /// lent to: no other `PktBuf` has it.
    #[inline]
    pub(crate) unsafe fn from_line(line: NonNull<Line>) -> PktBuf {
        PktBuf { line, place: FRESH }
    }

    /// The same for a small frame with a packet at `offset`; `None` if that is not in the frame, whose owner is still the caller. The line is not looked at.
    ///
    /// # Safety
    /// As for [`from_line`](PktBuf::from_line).
    #[inline]
    pub(crate) unsafe fn from_small_line(line: NonNull<Line>, offset: u32, len: u32) -> Option<PktBuf> {
        let fits = offset.checked_add(len)? <= FRAME as u32;
        let place = (u64::from(offset) * OFFSET) | u64::from(len);
        fits.then_some(PktBuf { line, place })
    }

    /// Gives the packet up without giving its frame back.
    #[inline]
    pub fn into_raw(self) -> RawPacket {
        let place = self.place;
        let line = self.into_line().as_ptr().cast();
        RawPacket { line, place }
    }

    /// The packet of a handle that was [handed over](crate::Burst::hand_over).
    ///
    /// # Safety
    /// Its frame was not lent since, and nobody else makes a packet of it.
    #[inline]
    pub unsafe fn from_raw(raw: RawPacket) -> PktBuf {
        // SAFETY: a handle's line is not null, and the caller vouches that it was one.
        let line = unsafe { NonNull::new_unchecked(raw.line) };
        PktBuf {
            line: line.cast(),
            place: raw.place,
        }
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
    fn capacity(&self) -> usize {
        self.line().capacity as usize
    }

    /// Where the packet begins in the frame.
    #[inline]
    fn offset(&self) -> usize {
        ((self.place & OFFSET_MASK) >> 32) as usize
    }

    /// The packet's first byte.
    #[inline]
    fn first(&self) -> *mut u8 {
        // SAFETY: the offset is within the frame (the handle's invariant).
        unsafe { self.line().base.as_ptr().add(self.offset()) }
    }

    /// Bytes in the packet.
    #[inline]
    pub fn len(&self) -> usize {
        self.place as u32 as usize
    }

    /// True if the packet has no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The packet's bytes.
    #[inline]
    pub fn data(&self) -> &[u8] {
        // SAFETY: offset + len <= capacity (the handle's invariant), the frame is initialised and owned by this handle.
        unsafe { std::slice::from_raw_parts(self.first(), self.len()) }
    }

    /// The packet's bytes, writable.
    #[inline]
    pub fn data_mut(&mut self) -> &mut [u8] {
        self.range_mut(0, self.len())
    }

    /// `len` bytes from byte `start` of the packet; the caller has checked that they end within the capacity.
    #[inline]
    fn range_mut(&mut self, start: usize, len: usize) -> &mut [u8] {
        debug_assert!(self.offset() + start + len <= self.capacity());
        // SAFETY: the range lies within the frame (checked by all callers), which is initialised and exclusively
        // borrowed through this handle.
        unsafe { std::slice::from_raw_parts_mut(self.first().add(start), len) }
    }

    /// Free bytes before the packet.
    #[inline]
    pub fn headroom(&self) -> usize {
        self.offset()
    }

    /// Free bytes behind the packet.
    #[inline]
    pub fn tailroom(&self) -> usize {
        self.capacity() - self.offset() - self.len()
    }

    /// Makes the packet longer by `n` bytes at its front and returns them; what they hold is unspecified.
    ///
    /// # Panics
    /// If there are fewer than `n` bytes of headroom.
    #[inline]
    pub fn prepend(&mut self, n: usize) -> &mut [u8] {
        assert!(n <= self.headroom(), "prepend beyond the headroom");
        // Never carries from one half into the other: both stay within the frame.
        self.place = self.place - n as u64 * OFFSET + n as u64;
        self.range_mut(0, n)
    }

    /// Makes the packet longer by `n` bytes at its tail and returns them; what they hold is unspecified.
    ///
    /// # Panics
    /// If there are fewer than `n` bytes of tailroom.
    #[inline]
    pub fn append(&mut self, n: usize) -> &mut [u8] {
        assert!(n <= self.tailroom(), "append beyond the tailroom");
        let end = self.len();
        self.place += n as u64;
        self.range_mut(end, n)
    }

    /// Drops the first `n` bytes; they become headroom.
    ///
    /// # Panics
    /// If the packet is shorter than `n`.
    #[inline]
    pub fn trim_front(&mut self, n: usize) {
        assert!(n <= self.len(), "trim beyond the packet");
        self.place = self.place + n as u64 * OFFSET - n as u64;
    }

    /// Shortens the packet to `len` bytes at its tail; does nothing if it is not longer.
    #[inline]
    pub fn truncate(&mut self, len: usize) {
        if len < self.len() {
            self.write_len(len);
        }
    }

    /// Makes the packet empty, with the headroom and the addresses of a fresh frame.
    #[inline]
    pub fn reset(&mut self) {
        self.place = FRESH;
    }

    /// Everything from the packet's first byte to the end of the frame, for a port to read into; then
    /// [`set_len`](PktBuf::set_len) says how much of it is the packet.
    #[inline]
    pub fn spare_mut(&mut self) -> &mut [u8] {
        self.range_mut(0, self.capacity() - self.offset())
    }

    /// Sets the packet's length, counted from its first byte; bytes beyond the old length are unspecified.
    ///
    /// # Panics
    /// If that many bytes do not fit behind the packet's first byte.
    #[inline]
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity() - self.offset(), "longer than the frame");
        self.write_len(len);
    }

    /// The caller has checked that the packet still ends within the capacity.
    #[inline]
    fn write_len(&mut self, len: usize) {
        self.place = self.place & !(OFFSET - 1) | len as u64;
    }

    /// Leaves checksums to the port that sends the packet; `None`: there are none to finish. Only ports that say so do that.
    #[inline]
    pub fn leave_unfinished(&mut self, unfinished: Option<Unfinished>) {
        let bits = unfinished.map_or(0, |unfinished| unfinished as u64);
        self.place = self.place & !UNFINISHED | bits << UNFINISHED_AT;
    }

    /// The checksums that were left.
    #[inline]
    pub fn unfinished(&self) -> Option<Unfinished> {
        match (self.place & UNFINISHED) >> UNFINISHED_AT {
            0 => None,
            1 => Some(Unfinished::UdpV4),
            _ => Some(Unfinished::UdpV6),
        }
    }

    /// A number that the packet carries for whoever follows packets on their way, below [`MARKS`](PktBuf::MARKS); 0 in a fresh frame.
    #[inline]
    pub fn mark(&self) -> u16 {
        ((self.place & MARK_MASK) >> MARK_SHIFT) as u16
    }

    /// Marks a packet.
    ///
    /// # Panics
    /// If the mark is [`MARKS`](PktBuf::MARKS) or more.
    pub fn set_mark(&mut self, mark: u16) {
        assert!(mark < Self::MARKS);
        self.place = self.place & !MARK_MASK | (u64::from(mark) * MARK);
    }

    /// How many different marks there are.
    pub const MARKS: u16 = 1 << (UNFINISHED_AT - MARK_SHIFT);

    /// The number of the frame: as long as this packet is there, no other has it.
    pub fn frame(&self) -> u32 {
        self.line().index
    }

    /// The outer addresses: where the packet came from, or where it goes.
    #[inline]
    pub fn outer(&self) -> &Outer {
        match self.place & ADDRESSED {
            0 => &Outer::NONE,
            _ => &self.line().outer,
        }
    }

    /// The outer addresses, writable.
    #[inline]
    pub fn outer_mut(&mut self) -> &mut Outer {
        // SAFETY: as in `line`, and the handle is borrowed exclusively.
        let outer = unsafe { &mut self.line.as_mut().outer };
        if self.place & ADDRESSED == 0 {
            self.place |= ADDRESSED;
            *outer = Outer::NONE;
        }
        outer
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
