//! Up to [`BURST_MAX`] packets: what ports return and take, and what every stage works on.

use std::ops::{Index, IndexMut, RangeBounds};

use arrayvec::ArrayVec;

use crate::{BURST_MAX, FrameCache, PktBuf, RawPacket};

/// Up to [`BURST_MAX`] packets in order. Dropping it gives the frames back.
#[derive(Debug, Default)]
pub struct Burst {
    packets: ArrayVec<PktBuf, BURST_MAX>,
}

impl Burst {
    /// An empty burst.
    pub fn new() -> Burst {
        Burst::default()
    }

    /// Packets in the burst.
    #[inline]
    pub fn len(&self) -> usize {
        self.packets.len()
    }

    /// True if there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Packets that still fit.
    #[inline]
    pub fn room(&self) -> usize {
        self.packets.remaining_capacity()
    }

    /// Puts a packet at the end.
    ///
    /// # Panics
    /// If there is no room.
    #[inline]
    pub fn push(&mut self, pkt: PktBuf) {
        self.packets.push(pkt);
    }

    /// Puts a packet at the end, or gives it back if there is no room.
    #[inline]
    pub fn try_push(&mut self, pkt: PktBuf) -> Result<(), PktBuf> {
        self.packets.try_push(pkt).map_err(|full| full.element())
    }

    /// Takes the last packet.
    #[inline]
    pub fn pop(&mut self) -> Option<PktBuf> {
        self.packets.pop()
    }

    /// Exchanges two packets.
    ///
    /// # Panics
    /// If one of them does not exist.
    #[inline]
    pub fn swap(&mut self, a: usize, b: usize) {
        self.packets.swap(a, b);
    }

    /// The packets in order.
    pub fn iter(&self) -> std::slice::Iter<'_, PktBuf> {
        self.packets.iter()
    }

    /// The packets in order, writable.
    pub fn iter_mut(&mut self) -> std::slice::IterMut<'_, PktBuf> {
        self.packets.iter_mut()
    }

    /// The packets in order.
    #[inline]
    pub fn as_slice(&self) -> &[PktBuf] {
        &self.packets
    }

    /// The packets in order, writable.
    #[inline]
    pub fn as_mut_slice(&mut self) -> &mut [PktBuf] {
        &mut self.packets
    }

    /// Takes a range of packets out, in order; the ones behind it close up.
    ///
    /// # Panics
    /// If the range reaches beyond the end.
    pub fn drain(&mut self, range: impl RangeBounds<usize>) -> arrayvec::Drain<'_, PktBuf, BURST_MAX> {
        self.packets.drain(range)
    }

    /// Where C code may put handles behind the packets that there are, and how many fit; [`grow`](Burst::grow) tells the burst of them.
    #[inline]
    pub fn spare(&mut self) -> (*mut RawPacket, usize) {
        let (len, room) = (self.len(), self.room());
        // SAFETY: the array has room for as many packets as it says, so this is within it or at its end.
        let end = unsafe { self.packets.as_mut_ptr().add(len) };
        (end.cast(), room)
    }

    /// Makes the burst longer by `n` packets that were put behind it.
    ///
    /// # Safety
    /// `n` handles were written to [`spare`](Burst::spare), no more than fit. Each is of a small frame that was lent and that nobody else takes back, and the packet
    /// ends within the frame.
    #[inline]
    pub unsafe fn grow(&mut self, n: usize) {
        debug_assert!(n <= self.room());
        // SAFETY: the caller vouches for it.
        unsafe { self.packets.set_len(self.len() + n) };
    }

    /// Gives the packets up without giving their frames back. Each frame is lent with this, or the handle becomes a [packet](PktBuf::from_raw) again.
    #[inline]
    pub fn hand_over(&mut self) -> &[RawPacket] {
        let len = self.len();
        // SAFETY: the array forgets its packets, whose handles stay where they are as long as it is borrowed.
        unsafe {
            self.packets.set_len(0);
            std::slice::from_raw_parts(self.packets.as_ptr().cast(), len)
        }
    }

    /// Keeps the packets for which `keep` says true, in order, and gives the others to the cache.
    pub fn retain_or_free(&mut self, frames: &mut FrameCache, mut keep: impl FnMut(&mut PktBuf) -> bool) {
        let mut kept = 0;
        for index in 0..self.packets.len() {
            if keep(&mut self.packets[index]) {
                // Nearly always all are kept.
                if kept != index {
                    self.packets.swap(kept, index);
                }
                kept += 1;
            }
        }
        for pkt in self.packets.drain(kept..) {
            frames.free(pkt);
        }
    }

    /// Gives all frames to the cache; the burst is empty afterwards.
    pub fn clear_into(&mut self, frames: &mut FrameCache) {
        for pkt in self.packets.drain(..) {
            frames.free(pkt);
        }
    }
}

impl Index<usize> for Burst {
    type Output = PktBuf;

    #[inline]
    fn index(&self, index: usize) -> &PktBuf {
        &self.packets[index]
    }
}

impl IndexMut<usize> for Burst {
    #[inline]
    fn index_mut(&mut self, index: usize) -> &mut PktBuf {
        &mut self.packets[index]
    }
}

impl<'a> IntoIterator for &'a Burst {
    type Item = &'a PktBuf;
    type IntoIter = std::slice::Iter<'a, PktBuf>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<'a> IntoIterator for &'a mut Burst {
    type Item = &'a mut PktBuf;
    type IntoIter = std::slice::IterMut<'a, PktBuf>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter_mut()
    }
}
