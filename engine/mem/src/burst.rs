//! Up to [`BURST_MAX`] packets: what ports return and take, and what every stage works on.

use std::ops::{Index, IndexMut, RangeBounds};

use arrayvec::ArrayVec;

use crate::{BURST_MAX, FrameCache, PktBuf};

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
