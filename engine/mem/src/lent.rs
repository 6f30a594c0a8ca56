//! Frames in the hands of somebody who reads and writes them by address: the kernel behind a shared ring, or a device.

use std::ptr::NonNull;

use crate::pktbuf::Line;
use crate::{Arena, FrameCache, PktBuf};

/// Where the small frames lie, for those who get them by address.
#[derive(Clone, Copy, Debug)]
pub struct FrameRegion {
    /// The first byte, aligned to pages.
    pub start: NonNull<u8>,
    /// Bytes from there to the end of the last frame.
    pub len: usize,
    /// Bytes from one frame to the next.
    pub stride: usize,
    /// Bytes of the pages that they are on. The last page is all theirs.
    pub page: usize,
    /// What is known of the first one; of the others behind it.
    pub lines: NonNull<u8>,
    /// Bytes from one to the next.
    pub line: usize,
}

/// A packet's handle as plain numbers, for C code that makes packets of frames that are lent, or lends the frames of packets.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RawPacket {
    /// The frame's line: the frame's number times [`FrameRegion::line`] bytes behind [`FrameRegion::lines`].
    pub line: *mut u8,
    /// Bits 0 to 31: bytes of the packet; 32 to 47: where it begins in a small frame; 61 and 62: its [`Unfinished`](crate::Unfinished), or 0. What else there is is
    /// not for others to look at, and 0 in a new handle.
    pub place: u64,
}

/// Free small frames that are a cache's and lie elsewhere: in the pool of a driver, which wants them there.
#[derive(Clone, Copy, Debug)]
pub struct Annex {
    /// What its owner calls it.
    pub number: u32,
    /// Gives all of them to the cache. Called when it has no others, and before it gives back what it has.
    pub empty: unsafe fn(number: u32, cache: *mut FrameCache),
    /// The cache is gone.
    pub close: fn(number: u32),
}

/// A lent frame by its number. It belongs to nobody else until it is [taken back](Arena::take_back).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a lent frame is lost until it is taken back"]
pub struct Lent {
    /// The frame's number: it starts at this many strides in the [region](FrameRegion).
    pub frame: u32,
    /// Where the packet starts in the frame.
    pub offset: u32,
    /// Bytes of the packet.
    pub len: u32,
}

impl Arena {
    /// Where the small frames lie.
    pub fn region(&self) -> FrameRegion {
        let (start, stride) = self.small_frames();
        FrameRegion {
            start,
            len: stride * self.small_count(),
            stride,
            page: self.page(),
            lines: self.first_line().cast(),
            line: size_of::<Line>(),
        }
    }

    /// Whether the packet's frame can be lent: a small one of this arena.
    #[inline]
    pub fn lends(&self, pkt: &PktBuf) -> bool {
        self.small_index(pkt).is_some()
    }

    /// Lends a packet's frame; a jumbo frame, or one of another arena, is not for lending and comes back.
    #[inline]
    pub fn lend(&self, pkt: PktBuf) -> Result<Lent, PktBuf> {
        let Some(frame) = self.small_index(&pkt) else {
            return Err(pkt);
        };
        let (offset, len) = (pkt.headroom() as u32, pkt.len() as u32);
        // The frame has no owner among us from here on.
        let _ = pkt.into_line();
        Ok(Lent { frame, offset, len })
    }

    /// Takes a lent frame back with the packet that now lies at `lent.offset`. `None` if the frame has no such place: the frame is back
    /// all the same, and free.
    ///
    /// # Safety
    /// The frame was lent by this arena and has not been taken back since, and nobody reads or writes it any more.
    #[inline]
    pub unsafe fn take_back(&self, lent: Lent) -> Option<PktBuf> {
        // SAFETY: the caller vouches for the frame.
        unsafe { self.by_index(lent.frame, lent.offset, lent.len) }
    }
}

impl FrameCache {
    /// Lends free small frames, as many as `frames` has room for or none: their numbers. True if there were so many. Their metadata is not looked at.
    #[inline]
    pub fn lend_free(&mut self, frames: &mut [u32]) -> bool {
        for at in 0..frames.len() {
            match self.pop_small() {
                Some(frame) => frames[at] = frame,
                None => {
                    frames[..at].iter().for_each(|frame| self.push_small(*frame));
                    return false;
                }
            }
        }
        true
    }

    /// Gives the cache an annex, which it has until it is dropped.
    ///
    /// # Safety
    /// `empty` takes frames [back](FrameCache::take_back_free) by the pointer that it gets, and does nothing else with it; both functions may be called on any
    /// thread.
    pub unsafe fn attach(&mut self, annex: Annex) {
        debug_assert!(self.annex.is_none(), "one annex");
        self.annex = Some(annex);
    }

    /// Its number, if there is one.
    #[inline]
    pub fn annex(&self) -> Option<u32> {
        self.annex.map(|annex| annex.number)
    }

    /// Takes lent frames back that are free now.
    ///
    /// # Safety
    /// As for [`Arena::take_back`], for each of them; they were lent by this cache's arena.
    #[inline]
    pub unsafe fn take_back_free(&mut self, frames: &[u32]) {
        frames.iter().for_each(|frame| self.push_small(*frame));
    }
}
