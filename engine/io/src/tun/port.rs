//! One queue of a TUN device as a [`Port`]. Belongs to one worker thread.
//!
//! Receiving: each read goes to a scratch buffer of 64 KiB, from which a packet is copied into a frame
//! and a super-packet is cut into frames. What does not fit the burst waits in the scratch for the
//! next call. (Reading a small packet straight into its frame, with the scratch as a second buffer
//! behind it, measured slower: the kernel takes 120 ns longer over two buffers than over one, a copy
//! of 1,400 bytes takes 20.)
//!
//! Sending: packets that may leave as one super-packet are written with one call: copied together
//! when they are few bytes, gathered from their frames when they are many.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use arrayvec::ArrayVec;
use patronus_mem::{BURST_MAX, Burst, FrameCache};
use rustix::io::Errno;

use crate::offload::coalesce::{Accepts, Planner, SuperHeaders};
use crate::offload::split::{SuperPacket, complete_checksum};
use crate::offload::{Gso, SUPER_MAX, VNET_HEADER, VnetHeader};
use crate::scratch::Scratch;
use crate::{PORT_FDS, Port, PortCounters, PortError};

/// The scratch holds the largest super-packet and one byte more, which tells one that was cut off.
const SCRATCH: usize = VNET_HEADER + SUPER_MAX + 1;

/// Super-packets up to this size, in bytes, are copied together before they are written. The kernel
/// takes longer over many buffers than over one: 46 packets of 64 bytes cost 3.3 microseconds
/// gathered and 2.2 copied, two of 1,400 bytes 2.8 and 2.7, but 46 of those 8.2 and 9.0.
const COPY_MAX: usize = 32 * 1024;

/// One queue of a TUN device.
pub struct TunPort {
    queue: OwnedFd,
    counters: Arc<PortCounters>,
    planner: Planner,
    /// What was read last, behind its virtio-net header.
    scratch: Scratch,
    /// Where super-packets to the kernel are put together.
    outgoing: Scratch,
    /// The super-packet in the scratch that is not fully cut yet.
    pending: Option<SuperPacket>,
    /// Bytes of it.
    pending_len: usize,
    /// Packets of the burst being sent that were sent or counted as dropped.
    settled: usize,
}

/// What one read gave.
enum Received {
    /// Nothing: the queue is empty.
    Nothing,
    /// One packet, which is in the burst, or was dropped and counted.
    Single,
    /// A super-packet, which is in the scratch.
    Super(SuperPacket),
}

impl TunPort {
    pub(super) fn new(queue: OwnedFd, accepts: Accepts) -> TunPort {
        TunPort {
            queue,
            counters: Arc::default(),
            planner: Planner::new(accepts),
            scratch: Scratch::new(SCRATCH),
            outgoing: Scratch::new(VNET_HEADER + COPY_MAX),
            pending: None,
            pending_len: 0,
            settled: 0,
        }
    }

    /// Moves packets of the pending super-packet to the burst, as many as there is room for.
    fn cut_pending(&mut self, frames: &mut FrameCache, burst: &mut Burst) {
        let Some(mut packet) = self.pending.take() else {
            return;
        };
        let bytes = &self.scratch[VNET_HEADER..VNET_HEADER + self.pending_len];
        let mut taken = 0;
        while burst.room() > 0 && packet.remaining() > 0 {
            let Some(mut pkt) = frames.alloc_for(packet.next_len()) else {
                // Frames come back only when others are done with theirs: waiting here would mean
                // that the kernel's queue fills instead, out of sight.
                self.counters.rx_no_frame.add(packet.remaining() as u64);
                break;
            };
            let len = packet.write_next(bytes, pkt.spare_mut());
            pkt.set_len(len);
            taken += len as u64;
            burst.push(pkt);
            self.counters.rx_packets.add(1);
        }
        self.counters.rx_bytes.add(taken);
        if burst.room() == 0 && packet.remaining() > 0 {
            self.pending = Some(packet);
        }
    }

    /// Reads one packet or super-packet. The burst has room for one packet.
    fn read_one(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Result<Received, PortError> {
        let read = match read(&self.queue, &mut self.scratch[..])? {
            Read::Bytes(read) => read,
            Read::Nothing => return Ok(Received::Nothing),
            Read::Refused => {
                self.counters.rx_malformed.add(1);
                return Ok(Received::Single);
            }
        };
        let Some((header, packet)) = self.scratch[..read].split_first_chunk() else {
            self.counters.rx_malformed.add(1);
            return Ok(Received::Single);
        };
        let vnet = VnetHeader::decode(header);
        if packet.is_empty() || packet.len() > SUPER_MAX {
            self.counters.rx_malformed.add(1);
        } else if vnet.gso == Gso::None {
            self.take_single(&vnet, packet, frames, burst);
        } else {
            match SuperPacket::parse(&vnet, packet) {
                Ok(parsed) => {
                    self.pending_len = packet.len();
                    return Ok(Received::Super(parsed));
                }
                Err(_) => self.counters.rx_malformed.add(1),
            }
        }
        Ok(Received::Single)
    }

    fn take_single(&self, vnet: &VnetHeader, packet: &[u8], frames: &mut FrameCache, burst: &mut Burst) {
        let Some(mut pkt) = frames.alloc_for(packet.len()) else {
            // The packet is taken from the kernel all the same: a full queue would keep the
            // descriptor readable and the worker busy with nothing.
            self.counters.rx_no_frame.add(1);
            return;
        };
        pkt.append(packet.len()).copy_from_slice(packet);
        if vnet.needs_csum && complete_checksum(vnet, pkt.data_mut()).is_err() {
            self.counters.rx_malformed.add(1);
            frames.free(pkt);
            return;
        }
        self.counters.rx_packets.add(1);
        self.counters.rx_bytes.add(packet.len() as u64);
        burst.push(pkt);
    }

    /// Writes packets that stand behind virtio-net headers.
    fn write_burst(&mut self, burst: &Burst) -> Result<(), PortError> {
        let Accepts { tcp, udp } = self.planner.accepts();
        if burst.len() == 1 || !(tcp || udp) {
            return burst.iter().try_for_each(|pkt| self.write_single(pkt.data()));
        }
        let packets: ArrayVec<&[u8], BURST_MAX> =
            burst.iter().map(|pkt| &pkt.data()[VNET_HEADER..]).collect();
        self.planner.plan(&packets);
        (0..self.planner.len()).try_for_each(|group| self.write_group(group, &packets, burst))
    }

    /// Writes one packet, which stands behind its virtio-net header.
    fn write_single(&mut self, packet: &[u8]) -> Result<(), PortError> {
        match retry(|| rustix::io::write(&self.queue, packet)) {
            Ok(_) => {
                self.sent(1, packet.len() - VNET_HEADER);
                Ok(())
            }
            Err(error) => self.dropped(error, 1),
        }
    }

    /// Writes planned group number `group`; `packets` are the burst's, without virtio-net headers.
    fn write_group(&mut self, group: usize, packets: &[&[u8]], burst: &Burst) -> Result<(), PortError> {
        let Some(headers) = self.planner.super_headers(group, packets) else {
            return self.write_each(group, burst);
        };
        let payloads = self
            .planner
            .members(group)
            .map(|member| &packets[member][headers.skip()..]);
        let written = if headers.total() <= COPY_MAX {
            let mut end = headers.bytes().len();
            self.outgoing[..end].copy_from_slice(headers.bytes());
            for payload in payloads {
                self.outgoing[end..end + payload.len()].copy_from_slice(payload);
                end += payload.len();
            }
            retry(|| rustix::io::write(&self.queue, &self.outgoing[..end]))
        } else {
            let mut parts: ArrayVec<IoSlice<'_>, { BURST_MAX + 1 }> = ArrayVec::new();
            parts.push(IoSlice::new(headers.bytes()));
            parts.extend(payloads.map(IoSlice::new));
            retry(|| rustix::io::writev(&self.queue, &parts))
        };
        let count = self.planner.count(group);
        match written {
            Ok(_) => {
                self.sent(count, headers.total() + (count - 1) * headers.skip());
                Ok(())
            }
            Err(Errno::INVAL) => self.refused(&headers, group, burst),
            Err(error) => self.dropped(error, count),
        }
    }

    /// The kernel does not take this kind of super-packet: the packets go one by one, and later
    /// bursts do not try again.
    fn refused(&mut self, headers: &SuperHeaders, group: usize, burst: &Burst) -> Result<(), PortError> {
        self.planner.refuse(headers.gso);
        self.write_each(group, burst)
    }

    fn write_each(&mut self, group: usize, burst: &Burst) -> Result<(), PortError> {
        let members: ArrayVec<usize, BURST_MAX> = self.planner.members(group).collect();
        for member in members {
            self.write_single(burst[member].data())?;
        }
        Ok(())
    }

    /// Counts packets that went out with one call.
    fn sent(&mut self, packets: usize, bytes: usize) {
        self.counters.tx_calls.add(1);
        self.counters.tx_packets.add(packets as u64);
        self.counters.tx_bytes.add(bytes as u64);
        self.settled += packets;
    }

    /// Counts packets that the kernel did not take, or finds that the device is no more.
    fn dropped(&mut self, error: Errno, packets: usize) -> Result<(), PortError> {
        let counter = match error {
            _ if is_gone(error) => return Err(PortError::Gone),
            Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM => &self.counters.tx_no_buffer,
            Errno::IO => &self.counters.tx_down,
            Errno::PERM | Errno::ACCESS => &self.counters.tx_forbidden,
            _ => &self.counters.tx_error,
        };
        counter.add(packets as u64);
        self.settled += packets;
        Ok(())
    }
}

impl Port for TunPort {
    /// Reads until the queue is empty or the burst is full. A super-packet that does not fit as a
    /// whole is left for the next call, unless the burst would stay empty for it, so that its packets
    /// stay together. Call again until the result is 0 before waiting for the descriptor.
    fn rx_burst(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Result<usize, PortError> {
        let before = burst.len();
        self.cut_pending(frames, burst);
        let mut reads = 0;
        // Packets that are dropped take no room, so the reads are limited as well.
        while burst.room() > 0 && reads < BURST_MAX {
            match self.read_one(frames, burst)? {
                Received::Nothing => break,
                Received::Single => reads += 1,
                Received::Super(packet) => {
                    reads += 1;
                    let whole = packet.remaining() <= burst.room();
                    self.pending = Some(packet);
                    if !whole && burst.len() > before {
                        break;
                    }
                    self.cut_pending(frames, burst);
                }
            }
        }
        self.counters.rx_calls.add(reads as u64);
        Ok(burst.len() - before)
    }

    fn tx_burst(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Result<(), PortError> {
        let unsent = burst.len();
        burst.retain_or_free(frames, |pkt| {
            let room = pkt.headroom() >= VNET_HEADER && !pkt.is_empty();
            if room {
                pkt.prepend(VNET_HEADER).fill(0);
            }
            room
        });
        self.counters.tx_error.add((unsent - burst.len()) as u64);
        self.settled = 0;
        let result = self.write_burst(burst);
        // What is left when the device is gone.
        self.counters.tx_down.add((burst.len() - self.settled) as u64);
        burst.clear_into(frames);
        result
    }

    fn has_pending(&self) -> bool {
        self.pending.is_some()
    }

    fn wait_fds(&self) -> ArrayVec<BorrowedFd<'_>, PORT_FDS> {
        let mut fds = ArrayVec::new();
        fds.push(self.queue.as_fd());
        fds
    }

    fn counters(&self) -> &Arc<PortCounters> {
        &self.counters
    }
}

/// What a read came to.
enum Read {
    /// So many bytes.
    Bytes(usize),
    /// The queue is empty.
    Nothing,
    /// The kernel took a packet from the queue and could not hand it over: it has no virtio-net header for this kind, or no
    /// memory at this moment.
    Refused,
}

fn read(queue: &OwnedFd, buffer: &mut [u8]) -> Result<Read, PortError> {
    match retry(|| rustix::io::read(queue, &mut *buffer)) {
        Ok(read) => Ok(Read::Bytes(read)),
        Err(Errno::AGAIN) => Ok(Read::Nothing),
        Err(Errno::INVAL | Errno::NOMEM) => Ok(Read::Refused),
        Err(error) if is_gone(error) => Err(PortError::Gone),
        Err(error) => Err(PortError::Io(error.into())),
    }
}

/// The errors of a descriptor whose device was deleted.
fn is_gone(error: Errno) -> bool {
    matches!(error, Errno::BADFD | Errno::NODEV | Errno::NXIO | Errno::BADF)
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}
