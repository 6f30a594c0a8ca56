//! A pair of a device's queues as a port.

use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use patronus_dpdk_sys as sys;
use patronus_mem::{Arena, BURST_MAX, Burst, FrameCache, FreeStack, PktBuf, SMALL_MAX, TAILROOM};

use super::{Device, lent};
use crate::{Port, PortCounters, PortError};

/// Frames that one packet is sent in at most.
const PIECES_MAX: usize = 8;

/// Polls that find nothing between two looks at whether the device is still there.
const LOOK_EVERY: u32 = 4096;

/// One pair of a device's queues. Packets are whole frames, with their link header.
pub struct DpdkPort {
    device: Arc<Device>,
    queue: u16,
    arena: &'static Arena,
    /// What goes to the shim or comes from it; means nothing between calls.
    batch: Box<[sys::Frame]>,
    empty_polls: u32,
    counters: Arc<PortCounters>,
}

/// A cache as the shim wants it, for one call.
#[inline]
fn cache(frames: &mut FrameCache) -> sys::Cache {
    let cache = ptr::from_mut(frames);
    // SAFETY: the cache is borrowed by the caller until after the call that this is for.
    let FreeStack { len, limit, frames } = unsafe { FrameCache::free_stack(cache) };
    sys::Cache {
        cache: cache.cast(),
        len,
        limit,
        free: frames,
    }
}

/// Takes packets from a queue. The frames are the engine's then, but for those that go on.
pub(super) fn receive<'a>(
    port: u16,
    queue: u16,
    frames: &mut FrameCache,
    into: &'a mut [sys::Frame],
) -> &'a [sys::Frame] {
    let room = into.len().min(BURST_MAX) as u16;
    let cache = cache(frames);
    // SAFETY: the queue exists and is the caller's; there is room for so many; the cache is not used before the call returns.
    let count = unsafe { sys::pd_receive(port, queue, &cache, into.as_mut_ptr(), room) };
    &into[..usize::from(count)]
}

/// Frees what was received.
pub(super) fn discard(frame: &sys::Frame, frames: &mut FrameCache) {
    if frame.flags & sys::FRAME_MORE != 0 {
        gather(frame, frames, &mut []);
        return;
    }
    // SAFETY: the shim has seen that the frame was lent, and nobody else was told of it.
    unsafe { frames.take_back_free(&[frame.frame]) };
}

/// Copies a packet that came in several frames, which are free then; false if it does not fit.
fn gather(frame: &sys::Frame, frames: &mut FrameCache, to: &mut [u8]) -> bool {
    let (room, cache) = (to.len() as u32, cache(frames));
    // SAFETY: `frame` is from a call that said that it goes on, and this is the one place that ends that; there is so much room; the cache is not used
    // before the call returns.
    let len = unsafe { sys::pd_gather(frame.frame, &cache, to.as_mut_ptr().cast(), room) };
    len > 0
}

impl DpdkPort {
    pub(super) fn new(device: Arc<Device>, queue: u16, arena: &'static Arena) -> DpdkPort {
        DpdkPort {
            device,
            queue,
            arena,
            batch: vec![sys::Frame::default(); BURST_MAX + PIECES_MAX].into(),
            empty_polls: 0,
            counters: Arc::default(),
        }
    }

    /// Goes on counting where another port has stopped.
    pub fn count_into(&mut self, counters: Arc<PortCounters>) {
        self.counters = counters;
    }

    /// The device.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// What was received, as a packet; `None`, and counted, if it is none.
    #[inline]
    fn packet(&self, frame: &sys::Frame, frames: &mut FrameCache) -> Option<PktBuf> {
        if frame.flags != 0 {
            return self.unusual_packet(frame, frames);
        }
        // SAFETY: the shim has seen that the frame was lent, and has given it up to this call alone.
        match unsafe { self.arena.take_back(lent(frame)) } {
            Some(pkt) if pkt.tailroom() >= TAILROOM => Some(pkt),
            too_long => {
                self.counters.rx_malformed.add(1);
                too_long.into_iter().for_each(|pkt| frames.free(pkt));
                None
            }
        }
    }

    #[cold]
    fn unusual_packet(&self, frame: &sys::Frame, frames: &mut FrameCache) -> Option<PktBuf> {
        if frame.flags & sys::FRAME_BAD != 0 {
            self.counters.rx_malformed.add(1);
            discard(frame, frames);
            return None;
        }
        let Some(mut pkt) = frames.alloc_for(frame.len as usize) else {
            self.counters.rx_no_frame.add(1);
            discard(frame, frames);
            return None;
        };
        if gather(frame, frames, pkt.append(frame.len as usize)) {
            return Some(pkt);
        }
        self.counters.rx_malformed.add(1);
        frames.free(pkt);
        None
    }

    /// Puts a packet into the batch from `at` on: its own frame, or copies of its pieces. Returns how many frames; 0, and counted, if it
    /// cannot be sent.
    #[inline]
    fn batch(&mut self, pkt: PktBuf, at: usize, frames: &mut FrameCache) -> usize {
        if pkt.len() > self.device.longest || pkt.is_empty() {
            let reason = match pkt.is_empty() {
                true => &self.counters.tx_error,
                false => &self.counters.tx_too_big,
            };
            reason.add(1);
            frames.free(pkt);
            return 0;
        }
        match self.arena.lend(pkt) {
            Ok(lent) => {
                self.batch[at] = sys::Frame {
                    frame: lent.frame,
                    len: lent.len,
                    // A frame has fewer bytes than a u16 counts.
                    offset: lent.offset as u16,
                    flags: 0,
                };
                1
            }
            Err(pkt) => self.batch_pieces(pkt, at, frames),
        }
    }

    /// The same for a packet that is in a frame that devices do not reach.
    #[cold]
    fn batch_pieces(&mut self, pkt: PktBuf, at: usize, frames: &mut FrameCache) -> usize {
        let count = pkt.len().div_ceil(SMALL_MAX);
        if count > PIECES_MAX || count > 1 && !self.device.segments {
            self.counters.tx_too_big.add(1);
            frames.free(pkt);
            return 0;
        }
        for (piece, bytes) in pkt.data().chunks(SMALL_MAX).enumerate() {
            let lent = frames.alloc().and_then(|mut part| {
                part.append(bytes.len()).copy_from_slice(bytes);
                self.arena.lend(part).ok()
            });
            let Some(lent) = lent else {
                // SAFETY: lent a moment ago, and nobody was told of them.
                self.batch[at..at + piece]
                    .iter()
                    .for_each(|part| unsafe { frames.take_back_free(&[part.frame]) });
                self.counters.tx_no_buffer.add(1);
                frames.free(pkt);
                return 0;
            };
            self.batch[at + piece] = sys::Frame {
                frame: lent.frame,
                len: lent.len,
                offset: lent.offset as u16,
                flags: if piece + 1 < count { sys::FRAME_MORE } else { 0 },
            };
        }
        frames.free(pkt);
        count
    }

    /// Sends `packets` packets that are in the first `count` frames of the batch.
    fn send(&mut self, packets: usize, count: usize, frames: &mut FrameCache) {
        if packets == 0 {
            return;
        }
        let (batch, cache) = (&self.batch[..count], cache(frames));
        // SAFETY: the queue exists and is this port's; the frames are lent and nobody else's; the cache is not used before the call returns.
        let sent =
            unsafe { sys::pd_send(self.device.port, self.queue, &cache, batch.as_ptr(), count as u16) };
        let sent = usize::from(sent);
        if sent < packets {
            // Perhaps because there is no carrier any more.
            self.device.look_at_link();
            self.counters.tx_no_buffer.add((packets - sent) as u64);
        }
        if sent == 0 {
            return;
        }
        let of_sent = match sent == packets {
            true => batch,
            false => first(batch, sent),
        };
        let bytes = of_sent.iter().map(|frame| u64::from(frame.len)).sum();
        self.counters.tx_calls.add(1);
        self.counters.tx_packets.add(sent as u64);
        self.counters.tx_bytes.add(bytes);
    }

    /// Whether the device is still there. Asked when nothing comes.
    #[cold]
    fn look(&mut self) -> Result<usize, PortError> {
        match self.device.is_removed() {
            false => Ok(0),
            true => Err(PortError::Gone),
        }
    }
}

/// The frames of the first `packets` packets.
fn first(batch: &[sys::Frame], packets: usize) -> &[sys::Frame] {
    let ends = batch.iter().enumerate();
    let mut ends = ends.filter(|(_, frame)| frame.flags & sys::FRAME_MORE == 0);
    let end = ends.nth(packets - 1).map_or(batch.len(), |(at, _)| at + 1);
    &batch[..end]
}

impl Port for DpdkPort {
    fn rx_burst(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Result<usize, PortError> {
        let before = burst.len();
        let room = burst.room();
        let mut batch = std::mem::take(&mut self.batch);
        let received = receive(self.device.port, self.queue, frames, &mut batch[..room]);
        let found = received.len();
        let mut bytes = 0;
        for frame in received {
            if let Some(pkt) = self.packet(frame, frames) {
                bytes += pkt.len() as u64;
                burst.push(pkt);
            }
        }
        self.batch = batch;
        if found == 0 {
            self.empty_polls = self.empty_polls.wrapping_add(1);
            return match self.empty_polls.is_multiple_of(LOOK_EVERY) {
                true => self.look(),
                false => Ok(0),
            };
        }
        let packets = burst.len() - before;
        self.counters.rx_calls.add(1);
        self.counters.rx_packets.add(packets as u64);
        self.counters.rx_bytes.add(bytes);
        Ok(packets)
    }

    fn tx_burst(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Result<(), PortError> {
        if !self.device.up.load(Ordering::Relaxed) && !self.device.look_at_link() {
            self.counters.tx_down.add(burst.len() as u64);
            burst.clear_into(frames);
            return self.look().map(|_| ());
        }
        let (mut packets, mut count) = (0, 0);
        for pkt in burst.drain(..) {
            if count + PIECES_MAX > self.batch.len() || packets == BURST_MAX {
                self.send(packets, count, frames);
                (packets, count) = (0, 0);
            }
            let taken = self.batch(pkt, count, frames);
            packets += usize::from(taken > 0);
            count += taken;
        }
        self.send(packets, count, frames);
        Ok(())
    }

    fn counters(&self) -> &Arc<PortCounters> {
        &self.counters
    }
}

impl Drop for DpdkPort {
    fn drop(&mut self) {
        self.device.drain(self.queue);
    }
}
