//! One worker's share of an interface's frames, as a [`Port`]. Belongs to one worker thread.
//!
//! Receiving: several messages per call, each into a buffer of its own, from which a frame is copied into the arena and a super-packet is cut
//! into frames. What does not fit the burst waits in the buffers for the next call.
//!
//! Sending: a burst is one call, straight from the arena.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use arrayvec::ArrayVec;
use patronus_mem::{BURST_MAX, Burst, FrameCache};

use crate::offload::split::{SuperPacket, complete_checksum};
use crate::offload::{Gso, SUPER_MAX, VNET_HEADER, VnetHeader};
use crate::scratch::Scratch;
use crate::{PORT_FDS, Port, PortCounters, PortError, packet, sys};

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;

/// Messages received per call at most.
const MESSAGES: usize = 32;

/// Bytes received per message at most: the largest super-packet with its headers.
const MESSAGE: usize = VNET_HEADER + ETHERNET + SUPER_MAX;

/// Distance of the messages' buffers: with a power of two their beginnings would share one set of the first-level cache.
const STRIDE: usize = (MESSAGE + 3 * 64).next_multiple_of(64);

/// Calls for one burst at most: frames that are dropped take no room.
const CALLS_MAX: usize = 8;

/// Bursts between two looks at what the kernel had to drop.
const STATISTICS_EVERY: u32 = 1024;

/// A packet socket's share of an interface. Packets are whole frames, with their link header.
pub struct PacketPort {
    /// Shared with the tap, which only changes its filter.
    receive: Arc<OwnedFd>,
    transmit: OwnedFd,
    inbox: Inbox,
    outbox: Headers<BURST_MAX>,
    /// The interface is down, as far as receiving has shown.
    down: bool,
    bursts: u32,
    counters: Arc<PortCounters>,
}

/// Arguments of a system call for `N` messages. The pointers are written before each call and not used after it.
struct Headers<const N: usize> {
    messages: Box<[libc::mmsghdr; N]>,
    vectors: Box<[libc::iovec; N]>,
}

// SAFETY: the pointers are dead between calls.
unsafe impl<const N: usize> Send for Headers<N> {}

impl<const N: usize> Headers<N> {
    fn new() -> Headers<N> {
        Headers {
            // SAFETY: both are plain structures of integers and pointers, for which zero is a value.
            messages: Box::new(unsafe { std::mem::zeroed() }),
            // SAFETY: as above.
            vectors: Box::new(unsafe { std::mem::zeroed() }),
        }
    }

    /// Message `index` is these bytes.
    fn set(&mut self, index: usize, start: *mut u8, len: usize) {
        self.vectors[index] = libc::iovec {
            iov_base: start.cast(),
            iov_len: len,
        };
        let header = &mut self.messages[index].msg_hdr;
        header.msg_iov = &raw mut self.vectors[index];
        header.msg_iovlen = 1;
    }
}

/// What the last call received.
struct Inbox {
    buffers: Scratch,
    headers: Headers<MESSAGES>,
    /// Bytes of each message; 0 if it was cut off.
    lens: [usize; MESSAGES],
    /// Messages before this one are finished.
    next: usize,
    received: usize,
    /// The super-packet that message `next` is, if it is not fully cut yet.
    cutting: Option<SuperPacket>,
    /// Frames that they were.
    handed_on: usize,
}

/// What a message turned out to be.
enum Found<'a> {
    /// One frame, whose checksum may have to be completed.
    Frame(VnetHeader, &'a [u8]),
    /// A super-packet behind its link header.
    Super(SuperPacket),
}

/// Takes a message apart; `None` if it is no frame.
fn open(message: &[u8]) -> Option<Found<'_>> {
    let (header, frame) = message.split_first_chunk()?;
    let vnet = VnetHeader::decode(header);
    let packet = frame.get(ETHERNET..).filter(|packet| !packet.is_empty())?;
    match vnet.gso {
        Gso::None => Some(Found::Frame(vnet, frame)),
        _ => SuperPacket::parse(&vnet, packet).ok().map(Found::Super),
    }
}

impl Inbox {
    fn new() -> Inbox {
        Inbox {
            buffers: Scratch::new(MESSAGES * STRIDE),
            headers: Headers::new(),
            lens: [0; MESSAGES],
            next: 0,
            received: 0,
            cutting: None,
            handed_on: 0,
        }
    }

    fn is_empty(&self) -> bool {
        self.next == self.received
    }

    /// Messages that should fit this many frames, if they are like those of the last call.
    fn appetite(&self, room: usize) -> usize {
        let per_message = self.handed_on.div_ceil(self.received.max(1)).max(1);
        (room / per_message).clamp(1, MESSAGES)
    }

    /// Receives up to `want` messages. All earlier ones are finished.
    fn fill(&mut self, socket: &OwnedFd, want: usize) -> io::Result<usize> {
        (self.next, self.received, self.handed_on) = (0, 0, 0);
        for (index, buffer) in self.buffers.chunks_exact_mut(STRIDE).take(want).enumerate() {
            self.headers.set(index, buffer.as_mut_ptr(), MESSAGE);
        }
        let messages = &mut self.headers.messages[..want];
        // SAFETY: every header points to a part of the buffers of at least the length beside it, and they live until the call returns.
        let received = unsafe { sys::recvmmsg(socket.as_fd(), messages)? };
        for (len, message) in self.lens.iter_mut().zip(&messages[..received]) {
            let whole = message.msg_hdr.msg_flags & libc::MSG_TRUNC == 0;
            *len = if whole { message.msg_len as usize } else { 0 };
        }
        self.received = received;
        Ok(received)
    }

    /// Moves frames into the burst until it is full or nothing is left. A super-packet that does not fit as a whole waits for the next
    /// burst, unless this one would stay empty for it, so that its packets stay together.
    fn hand_on(&mut self, frames: &mut FrameCache, burst: &mut Burst, counters: &PortCounters) {
        let before = burst.len();
        let mut bytes = 0;
        while self.next < self.received && burst.room() > 0 {
            let message = &self.buffers[self.next * STRIDE..][..self.lens[self.next]];
            let found = match self.cutting.take() {
                Some(packet) => Some(Found::Super(packet)),
                None => open(message),
            };
            match found {
                None => counters.rx_malformed.add(1),
                Some(Found::Frame(vnet, frame)) => bytes += take_frame(&vnet, frame, frames, burst, counters),
                Some(Found::Super(packet)) if packet.remaining() > burst.room() && !burst.is_empty() => {
                    self.cutting = Some(packet);
                    break;
                }
                Some(Found::Super(mut packet)) => {
                    bytes += cut(&mut packet, &message[VNET_HEADER..], frames, burst, counters);
                    if packet.remaining() > 0 && burst.room() == 0 {
                        self.cutting = Some(packet);
                        break;
                    }
                }
            }
            self.next += 1;
        }
        let packets = burst.len() - before;
        self.handed_on += packets;
        counters.rx_packets.add(packets as u64);
        counters.rx_bytes.add(bytes);
    }
}

/// Copies one frame; the bytes that went into the burst.
fn take_frame(
    vnet: &VnetHeader,
    frame: &[u8],
    frames: &mut FrameCache,
    burst: &mut Burst,
    counters: &PortCounters,
) -> u64 {
    // The link header goes into the headroom, so that a frame takes what its packet does.
    let Some(mut pkt) = frames.alloc_for(frame.len() - ETHERNET) else {
        counters.rx_no_frame.add(1);
        return 0;
    };
    pkt.prepend(ETHERNET);
    pkt.append(frame.len() - ETHERNET);
    pkt.data_mut().copy_from_slice(frame);
    if vnet.needs_csum && complete_checksum(vnet, pkt.data_mut()).is_err() {
        counters.rx_malformed.add(1);
        frames.free(pkt);
        return 0;
    }
    burst.push(pkt);
    frame.len() as u64
}

/// Cuts a super-packet into frames, as many as there is room for; the bytes that went into the burst. If there is no frame, the rest of it is
/// lost: frames come back only when others are done with theirs.
fn cut(
    packet: &mut SuperPacket,
    frame: &[u8],
    frames: &mut FrameCache,
    burst: &mut Burst,
    counters: &PortCounters,
) -> u64 {
    let (link, bytes) = frame.split_at(ETHERNET);
    let mut taken = 0;
    while burst.room() > 0 && packet.remaining() > 0 {
        let Some(mut pkt) = frames.alloc_for(packet.next_len()) else {
            counters.rx_no_frame.add(packet.remaining() as u64);
            break;
        };
        let len = packet.write_next(bytes, pkt.spare_mut());
        pkt.set_len(len);
        pkt.prepend(ETHERNET).copy_from_slice(link);
        taken += pkt.len() as u64;
        burst.push(pkt);
    }
    taken
}

impl PacketPort {
    /// The port over two sockets of a [tap](super::PacketTap::sockets) in another process.
    pub fn over(receive: OwnedFd, transmit: OwnedFd) -> PacketPort {
        PacketPort::new(Arc::new(receive), transmit)
    }

    pub(super) fn new(receive: Arc<OwnedFd>, transmit: OwnedFd) -> PacketPort {
        PacketPort {
            receive,
            transmit,
            inbox: Inbox::new(),
            outbox: Headers::new(),
            down: false,
            bursts: 0,
            counters: Arc::default(),
        }
    }

    /// Receives up to `want` messages; whether there may be more.
    fn fill(&mut self, want: usize) -> Result<bool, PortError> {
        match self.inbox.fill(&self.receive, want) {
            Ok(received) => {
                self.down = false;
                self.counters.rx_calls.add(1);
                Ok(received == want)
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN) if self.down => self.check_gone(),
                Some(libc::EAGAIN) => Ok(false),
                Some(libc::ENETDOWN) => {
                    self.down = true;
                    self.check_gone()
                }
                // The kernel took a message and could not describe it: a super-packet of a kind that its header does not know.
                Some(libc::EINVAL) => {
                    self.counters.rx_malformed.add(1);
                    Ok(true)
                }
                Some(libc::ENOMEM | libc::ENOBUFS) => Ok(false),
                _ => Err(PortError::Io(error)),
            },
        }
    }

    /// An interface that is down comes up again, unless it is no more.
    #[cold]
    fn check_gone(&self) -> Result<bool, PortError> {
        match packet::is_gone(self.receive.as_fd()) {
            true => Err(PortError::Gone),
            false => Ok(false),
        }
    }

    /// Counts what the kernel had no room for.
    #[cold]
    fn look_at_drops(&mut self) {
        let mut found = libc::tpacket_stats {
            tp_packets: 0,
            tp_drops: 0,
        };
        let mut len = size_of::<libc::tpacket_stats>() as libc::socklen_t;
        // SAFETY: the pointers describe `found` and its length, which live until the call returns.
        let rc = unsafe {
            libc::getsockopt(
                self.receive.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut found).cast(),
                &raw mut len,
            )
        };
        if rc == 0 {
            // Each look begins the count anew.
            self.counters.rx_no_frame.add(u64::from(found.tp_drops));
        }
    }

    /// Sends what it can of the burst, from the packet at `at` on; how many. An error is that of the first one.
    fn send_from(&mut self, at: usize, burst: &Burst) -> io::Result<usize> {
        let messages = &mut self.outbox.messages[at..burst.len()];
        // SAFETY: every header points to a packet of the burst, which is borrowed until the call returns; the kernel only reads them.
        unsafe { sys::send_messages(self.transmit.as_fd(), messages) }
    }

    /// Sends or counts every packet of the burst.
    fn send(&mut self, burst: &Burst) -> Result<(), PortError> {
        for (index, pkt) in burst.iter().enumerate() {
            self.outbox.set(index, pkt.data().as_ptr().cast_mut(), pkt.len());
        }
        let (mut at, mut waited) = (0, false);
        while at < burst.len() {
            match self.send_from(at, burst) {
                Ok(sent) => {
                    let bytes: usize = burst.as_slice()[at..at + sent].iter().map(|pkt| pkt.len()).sum();
                    self.counters.tx_calls.add(1);
                    self.counters.tx_packets.add(sent as u64);
                    self.counters.tx_bytes.add(bytes as u64);
                    at += sent;
                }
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && !waited => {
                    waited = true;
                    sys::wait_writable(&self.transmit);
                }
                Err(error) => at += self.refused(&error, burst.len() - at)?,
            }
        }
        Ok(())
    }

    /// Counts the packets that an error costs, of those that are left: how many.
    #[cold]
    fn refused(&self, error: &io::Error, left: usize) -> Result<usize, PortError> {
        let counters = &self.counters;
        let (counter, lost) = match error.raw_os_error() {
            Some(libc::ENXIO | libc::ENODEV) => {
                counters.tx_down.add(left as u64);
                return Err(PortError::Gone);
            }
            // No packet will fare better.
            Some(libc::EAGAIN) => (&counters.tx_no_buffer, left),
            Some(libc::ENETDOWN) => (&counters.tx_down, left),
            Some(libc::ENOBUFS | libc::ENOMEM) => (&counters.tx_no_buffer, 1),
            Some(libc::EMSGSIZE) => (&counters.tx_too_big, 1),
            Some(libc::EPERM | libc::EACCES) => (&counters.tx_forbidden, 1),
            _ => (&counters.tx_error, 1),
        };
        counter.add(lost as u64);
        Ok(lost)
    }
}

impl Port for PacketPort {
    fn rx_burst(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Result<usize, PortError> {
        let before = burst.len();
        self.inbox.hand_on(frames, burst, &self.counters);
        for _ in 0..CALLS_MAX {
            if burst.room() == 0 || !self.inbox.is_empty() {
                break;
            }
            let more = self.fill(self.inbox.appetite(burst.room()))?;
            self.inbox.hand_on(frames, burst, &self.counters);
            if !more {
                break;
            }
        }
        self.bursts = self.bursts.wrapping_add(1);
        if self.bursts.is_multiple_of(STATISTICS_EVERY) {
            self.look_at_drops();
        }
        Ok(burst.len() - before)
    }

    fn tx_burst(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Result<(), PortError> {
        let result = self.send(burst);
        burst.clear_into(frames);
        result
    }

    fn wait_fds(&self) -> ArrayVec<BorrowedFd<'_>, PORT_FDS> {
        ArrayVec::from_iter([self.receive.as_fd()])
    }

    fn has_pending(&self) -> bool {
        !self.inbox.is_empty()
    }

    fn counters(&self) -> &Arc<PortCounters> {
        &self.counters
    }
}
