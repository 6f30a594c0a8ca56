//! Frames in the hands of somebody who reads and writes them by address: the kernel behind a shared ring, or a device.

use std::ptr::NonNull;

use crate::{Arena, PktBuf};

/// Where the small frames lie, for those who get them by address.
#[derive(Clone, Copy, Debug)]
pub struct FrameRegion {
    /// The first byte, aligned to pages.
    pub start: NonNull<u8>,
    /// Bytes from there to the end of the last frame.
    pub len: usize,
    /// Bytes from one frame to the next.
    pub stride: usize,
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
        }
    }

    /// Whether the packet's frame can be lent: a small one of this arena.
    #[inline]
    pub fn lends(&self, pkt: &PktBuf) -> bool {
        self.owns_small(pkt)
    }

    /// Lends a packet's frame; a jumbo frame, or one of another arena, is not for lending and comes back.
    pub fn lend(&self, pkt: PktBuf) -> Result<Lent, PktBuf> {
        if !self.owns_small(&pkt) {
            return Err(pkt);
        }
        let (offset, len) = (pkt.headroom() as u32, pkt.len() as u32);
        let frame = self.index_of(pkt);
        Ok(Lent { frame, offset, len })
    }

    /// Takes a lent frame back with the packet that now lies at `lent.offset`. `None` if the frame has no such place: the frame is back
    /// all the same, and free.
    ///
    /// # Safety
    /// The frame was lent by this arena and has not been taken back since, and nobody reads or writes it any more.
    pub unsafe fn take_back(&self, lent: Lent) -> Option<PktBuf> {
        // SAFETY: the caller vouches for the frame.
        let mut pkt = unsafe { self.by_index(lent.frame) };
        pkt.place(lent.offset as usize, lent.len as usize).then_some(pkt)
    }
}
