//! A pair of a device's queues as a port.

use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use patronus_dpdk_sys as sys;
use patronus_mem::{
    Annex, Arena, BURST_MAX, Burst, FrameCache, PktBuf, RawPacket, SMALL_MAX, TAILROOM, Unfinished,
};

use super::{Device, lent};
use crate::ip::{IPV4_HEADER, IPV6_HEADER, Sum};
use crate::{Port, PortCounters, PortError};

/// Frames that one packet is sent in at most.
const PIECES_MAX: usize = 8;

/// Bytes of the Ethernet header.
const ETHERNET: usize = 14;

/// Polls that find nothing between two looks at whether the device is still there.
const LOOK_EVERY: u32 = 4096;

/// One pair of a device's queues. Packets are whole frames, with their link header.
pub struct DpdkPort {
    device: Arc<Device>,
    queue: sys::Queue,
    arena: &'static Arena,
    /// What is more than a packet in a frame, on its way from the shim or there; means nothing between calls.
    unusual: Box<[sys::Frame; BURST_MAX]>,
    empty_polls: u32,
    counters: Arc<PortCounters>,
}

// The shim writes and reads handles of packets.
const _: () = assert!(size_of::<RawPacket>() == size_of::<sys::Packet>());
const _: () = assert!(std::mem::offset_of!(RawPacket, place) == std::mem::offset_of!(sys::Packet, place));
const _: () = assert!(PIECES_MAX <= BURST_MAX);

/// The kinds of [`Unfinished`] that a device finishes which makes the checksums of IPv4 headers, UDP, and TCP.
fn checksums([ipv4, udp, _]: [bool; 3]) -> u32 {
    let v4 = u32::from(ipv4 && udp) << Unfinished::UdpV4 as u32;
    v4 | u32::from(udp) << Unfinished::UdpV6 as u32
}

/// Finishes a packet's checksums. One that is shorter than its headers stays as it is.
fn finish(pkt: &mut PktBuf, unfinished: Unfinished) {
    pkt.leave_unfinished(None);
    let Some(packet) = pkt.data_mut().get_mut(ETHERNET..) else {
        return;
    };
    let header = match unfinished {
        Unfinished::UdpV4 => IPV4_HEADER,
        Unfinished::UdpV6 => IPV6_HEADER,
    };
    let Some((ip, udp)) = packet.split_at_mut_checked(header) else {
        return;
    };
    if unfinished == Unfinished::UdpV4 {
        let checksum = Sum::of(ip).checksum();
        ip[10..12].copy_from_slice(&checksum);
    }
    let checksum = Sum::of(udp).transport_checksum();
    if let Some(field) = udp.get_mut(6..8) {
        field.copy_from_slice(&checksum);
    }
}

/// A worker as the shim wants it, for one call. The first time it gets a cache in the pool.
#[inline]
fn worker(arena: &Arena, frames: &mut FrameCache) -> sys::Worker {
    let number = match frames.annex() {
        Some(number) => number,
        None => attach(arena, frames),
    };
    let cache = ptr::from_mut(frames).cast();
    sys::Worker { cache, number }
}

#[cold]
fn attach(arena: &Arena, frames: &mut FrameCache) -> u32 {
    assert!(
        ptr::eq(frames.arena(), arena),
        "a cache of the arena that DPDK was started with"
    );
    // SAFETY: the pool exists.
    let number = unsafe { sys::pd_open_cache() };
    let annex = Annex {
        number,
        empty: empty_annex,
        close: close_annex,
    };
    // SAFETY: the functions are as they should be, below.
    unsafe { frames.attach(annex) };
    number
}

/// # Safety
/// `number` is that of the cache's annex, and nobody else uses the cache.
unsafe fn empty_annex(number: u32, cache: *mut FrameCache) {
    let cache = cache.cast();
    // SAFETY: the pool exists; its cache of this number is used by whoever has the other cache, alone.
    unsafe { sys::pd_empty_cache(sys::Worker { cache, number }) };
}

fn close_annex(number: u32) {
    // SAFETY: the pool exists, and the engine's cache is gone and has emptied this one.
    unsafe { sys::pd_close_cache(number) };
}

/// What a call has found: packets behind those in the burst, and how many frames that are more than that.
#[derive(Clone, Copy, Default)]
struct Found {
    packets: usize,
    bytes: u64,
    unusual: usize,
}

/// Takes packets from a queue. The frames in `unusual` are the engine's then, but for those that go on.
#[inline]
fn receive(
    (port, queue): (u16, u16),
    arena: &Arena,
    frames: &mut FrameCache,
    burst: &mut Burst,
    unusual: &mut [sys::Frame; BURST_MAX],
) -> Found {
    let worker = worker(arena, frames);
    let (packets, room) = burst.spare();
    let mut received = sys::Received {
        packets: packets.cast(),
        frames: unusual.as_mut_ptr(),
        bytes: 0,
        count: room as u16,
        unusual: 0,
    };
    // SAFETY: the queue exists and is the caller's; there is room for so many; the cache is not used before the call returns.
    unsafe { sys::pd_receive(port, queue, worker, &mut received) };
    let packets = usize::from(received.count);
    // SAFETY: so many handles were written, to frames that the shim has seen to be lent and has given up to this call alone; the packets end before what
    // `Memory::room` said.
    unsafe { burst.grow(packets) };
    Found {
        packets,
        bytes: received.bytes,
        unusual: received.unusual.into(),
    }
}

/// Takes what is there and drops it. False if there was nothing.
pub(super) fn drain(queue: (u16, u16), arena: &Arena, frames: &mut FrameCache) -> bool {
    let mut burst = Burst::new();
    let mut unusual = [sys::Frame::default(); BURST_MAX];
    let found = receive(queue, arena, frames, &mut burst, &mut unusual);
    burst.clear_into(frames);
    for frame in &unusual[..found.unusual] {
        discard(frame, arena, frames);
    }
    found.packets + found.unusual > 0
}

/// Frees what was received.
fn discard(frame: &sys::Frame, arena: &Arena, frames: &mut FrameCache) {
    if frame.flags & sys::FRAME_MORE != 0 {
        gather(frame, arena, frames, &mut []);
        return;
    }
    // SAFETY: the shim has seen that the frame was lent, and nobody else was told of it.
    unsafe { frames.take_back_free(&[frame.frame]) };
}

/// Copies a packet that came in several frames, which are free then; false if it does not fit.
fn gather(frame: &sys::Frame, arena: &Arena, frames: &mut FrameCache, to: &mut [u8]) -> bool {
    let (room, worker) = (to.len() as u32, worker(arena, frames));
    // SAFETY: `frame` is from a call that said that it goes on, and this is the one place that ends that; there is so much room; the cache is not used
    // before the call returns.
    let len = unsafe { sys::pd_gather(frame.frame, worker, to.as_mut_ptr().cast(), room) };
    len > 0
}

impl DpdkPort {
    pub(super) fn new(device: Arc<Device>, queue: u16, arena: &'static Arena) -> DpdkPort {
        let queue = sys::Queue {
            port: device.port,
            queue,
            longest: device.longest as u32,
            checksums: checksums(device.info().tx_checksums),
        };
        DpdkPort {
            device,
            queue,
            arena,
            unusual: Box::new([sys::Frame::default(); BURST_MAX]),
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

    /// Makes packets of those that are more than that and of what came behind them.
    #[cold]
    fn take_unusual(&mut self, count: usize, frames: &mut FrameCache, burst: &mut Burst) -> u64 {
        let mut bytes = 0;
        for at in 0..count {
            let frame = self.unusual[at];
            if let Some(pkt) = self.packet(&frame, frames) {
                bytes += pkt.len() as u64;
                burst.push(pkt);
            }
        }
        bytes
    }

    /// What was received, as a packet; `None`, and counted, if it is none.
    fn packet(&self, frame: &sys::Frame, frames: &mut FrameCache) -> Option<PktBuf> {
        if frame.flags & sys::FRAME_BAD != 0 {
            self.counters.rx_malformed.add(1);
            discard(frame, self.arena, frames);
            return None;
        }
        if frame.flags & sys::FRAME_MORE != 0 {
            return self.long_packet(frame, frames);
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

    /// A packet in several frames, in one.
    fn long_packet(&self, frame: &sys::Frame, frames: &mut FrameCache) -> Option<PktBuf> {
        let Some(mut pkt) = frames.alloc_for(frame.len as usize) else {
            self.counters.rx_no_frame.add(1);
            discard(frame, self.arena, frames);
            return None;
        };
        if gather(frame, self.arena, frames, pkt.append(frame.len as usize)) {
            return Some(pkt);
        }
        self.counters.rx_malformed.add(1);
        frames.free(pkt);
        None
    }

    /// Whether the device finishes these checksums. If not, the port does, which costs more than having them finished before: packet by packet.
    pub fn finishes(&self, unfinished: Unfinished) -> bool {
        self.queue.checksums & 1 << unfinished as u32 != 0
    }

    /// For tests: has the device asked for checksums that it does not make.
    #[doc(hidden)]
    pub fn ask_for_all_checksums(&mut self) {
        self.queue.checksums = checksums([true; 3]);
    }

    /// For tests: what the header of a packet's frame asks for, or has asked for: checksums of IP and UDP, the IP version, bytes of the link header and the
    /// IP header.
    #[doc(hidden)]
    pub fn asked(&self, pkt: PktBuf, frames: &mut FrameCache) -> Option<(bool, bool, [u8; 3])> {
        let lent = self.arena.lend(pkt).ok()?;
        let mut found = sys::Asked::default();
        // SAFETY: a frame of the pool's, and a value that lives until the call returns.
        unsafe { sys::pd_look(lent.frame, &mut found) };
        // SAFETY: lent a moment ago, and nobody was told of it.
        unsafe { frames.take_back_free(&[lent.frame]) };
        let sys::Asked {
            ip,
            udp,
            version,
            l2_len,
            l3_len,
        } = found;
        Some((ip != 0, udp != 0, [version, l2_len, l3_len]))
    }

    /// Sends the packet at which a call has stopped.
    #[cold]
    fn send_stopped(&mut self, mut pkt: PktBuf, frames: &mut FrameCache) {
        if let Some(unfinished) = pkt.unfinished() {
            finish(&mut pkt, unfinished);
            let finished = pkt.into_raw();
            if self.send(&[finished], frames) > 0 {
                return;
            }
            // SAFETY: made of the packet a moment ago, and not taken by the shim.
            pkt = unsafe { PktBuf::from_raw(finished) };
        }
        self.send_unusual(pkt, frames);
    }

    /// Sends a packet that is not in a frame that devices reach, or cannot be sent at all.
    fn send_unusual(&mut self, pkt: PktBuf, frames: &mut FrameCache) {
        let count = pkt.len().div_ceil(SMALL_MAX);
        let refused = if pkt.is_empty() {
            Some(&self.counters.tx_error)
        } else if pkt.len() > self.device.longest || count > PIECES_MAX || count > 1 && !self.device.segments
        {
            Some(&self.counters.tx_too_big)
        } else if !self.cut(&pkt, frames) {
            Some(&self.counters.tx_no_buffer)
        } else {
            None
        };
        if let Some(reason) = refused {
            reason.add(1);
            frames.free(pkt);
            return;
        }
        let (pieces, worker) = (self.unusual.as_ptr(), worker(self.arena, frames));
        // SAFETY: the queue exists and is this port's; the frames are lent and nobody else's; the cache is not used before the call returns.
        let sent = unsafe { sys::pd_send_pieces(&self.queue, worker, pieces, count as u16) };
        self.count(1, u64::from(sent), u64::from(sent) * pkt.len() as u64);
        frames.free(pkt);
    }

    /// Copies a packet's pieces into frames that are lent then. False, and none is, if there are too few.
    fn cut(&mut self, pkt: &PktBuf, frames: &mut FrameCache) -> bool {
        for (at, bytes) in pkt.data().chunks(SMALL_MAX).enumerate() {
            let lent = frames.alloc().and_then(|mut piece| {
                piece.append(bytes.len()).copy_from_slice(bytes);
                self.arena.lend(piece).ok()
            });
            let Some(lent) = lent else {
                self.unusual[..at].iter().for_each(|piece| {
                    // SAFETY: lent a moment ago, and nobody was told of it.
                    unsafe { frames.take_back_free(&[piece.frame]) }
                });
                return false;
            };
            self.unusual[at] = sys::Frame {
                frame: lent.frame,
                len: lent.len,
                // A frame has fewer bytes than a u16 counts.
                offset: lent.offset as u16,
                flags: 0,
            };
        }
        true
    }

    /// Sends packets up to the first unusual one, or as many as go at once. Returns how many.
    #[inline]
    fn send(&mut self, packets: &[RawPacket], frames: &mut FrameCache) -> usize {
        let worker = worker(self.arena, frames);
        let (first, count) = (packets.as_ptr().cast(), packets.len() as u16);
        let mut sent = sys::Sent::default();
        // SAFETY: the queue exists and is this port's; the handles were handed over, and those that the shim takes are forgotten; the cache is not used before
        // the call returns.
        let taken = unsafe { sys::pd_send(&self.queue, worker, first, count, &mut sent) };
        if taken > 0 {
            self.count(taken.into(), sent.packets.into(), sent.bytes);
        }
        taken.into()
    }

    /// Counts what the driver was given and what it took.
    #[inline]
    fn count(&self, given: u64, sent: u64, bytes: u64) {
        if sent < given {
            // Perhaps because there is no carrier any more.
            self.device.look_at_link();
            self.counters.tx_no_buffer.add(given - sent);
        }
        if sent > 0 {
            self.counters.tx_calls.add(1);
            self.counters.tx_packets.add(sent);
            self.counters.tx_bytes.add(bytes);
        }
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

impl Port for DpdkPort {
    fn rx_burst(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Result<usize, PortError> {
        let before = burst.len();
        let queue = (self.queue.port, self.queue.queue);
        let mut found = receive(queue, self.arena, frames, burst, &mut self.unusual);
        if found.packets + found.unusual == 0 {
            self.empty_polls = self.empty_polls.wrapping_add(1);
            return match self.empty_polls.is_multiple_of(LOOK_EVERY) {
                true => self.look(),
                false => Ok(0),
            };
        }
        if found.unusual > 0 {
            found.bytes += self.take_unusual(found.unusual, frames, burst);
        }
        let packets = burst.len() - before;
        self.counters.rx_calls.add(1);
        self.counters.rx_packets.add(packets as u64);
        self.counters.rx_bytes.add(found.bytes);
        Ok(packets)
    }

    fn tx_burst(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Result<(), PortError> {
        if !self.device.up.load(Ordering::Relaxed) && !self.device.look_at_link() {
            self.counters.tx_down.add(burst.len() as u64);
            burst.clear_into(frames);
            return self.look().map(|_| ());
        }
        let mut packets = burst.hand_over();
        while !packets.is_empty() {
            let taken = self.send(packets, frames);
            packets = &packets[taken..];
            if taken == 0
                && let Some((first, others)) = packets.split_first()
            {
                // SAFETY: handed over, and not taken by the shim.
                let pkt = unsafe { PktBuf::from_raw(*first) };
                self.send_stopped(pkt, frames);
                packets = others;
            }
        }
        Ok(())
    }

    fn counters(&self) -> &Arc<PortCounters> {
        &self.counters
    }
}

impl Drop for DpdkPort {
    fn drop(&mut self) {
        self.device.drain(self.queue.queue);
    }
}
