//! One queue of a TUN device as a [`Port`]. Belongs to one worker thread.
//!
//! Receiving: each read offers the kernel a fresh frame and, behind it, a scratch buffer of 64 KiB. A
//! packet lands in its frame and is done; a super-packet runs over into the scratch, from where it is
//! cut into frames. What does not fit the burst waits in the scratch for the next call.
//!
//! Sending: packets that may leave as one super-packet are written with one gathered write, straight
//! from their frames.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use arrayvec::ArrayVec;
use patronus_mem::{BURST_MAX, Burst, FrameCache, PktBuf, SMALL_MAX};
use rustix::io::Errno;

use crate::ip::Malformed;
use crate::offload::coalesce::{Accepts, Planner, SuperHeaders};
use crate::offload::split::{SuperPacket, complete_checksum};
use crate::offload::{Gso, SUPER_MAX, VNET_HEADER, VnetHeader};
use crate::{PORT_FDS, Port, PortCounters, PortError};

/// The scratch holds the largest super-packet and one byte more, which tells one that was cut off.
const SCRATCH: usize = SUPER_MAX + 1;

/// One queue of a TUN device.
pub struct TunPort {
    queue: OwnedFd,
    counters: Arc<PortCounters>,
    planner: Planner,
    scratch: Box<[u8; SCRATCH]>,
    /// The super-packet in the scratch that is not fully cut yet.
    pending: Option<SuperPacket>,
    /// Bytes of it.
    pending_len: usize,
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
            scratch: Box::new([0; SCRATCH]),
            pending: None,
            pending_len: 0,
        }
    }

    /// The super-packets that the kernel exchanges with us.
    pub fn offloads(&self) -> Accepts {
        self.planner.accepts()
    }

    /// Whether packets wait in the port that [`Port::rx_burst`] returns without the descriptor being
    /// readable.
    pub fn has_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// Moves packets of the pending super-packet to the burst, as many as there is room for.
    fn cut_pending(&mut self, frames: &mut FrameCache, burst: &mut Burst) {
        let Some(mut packet) = self.pending.take() else {
            return;
        };
        let bytes = &self.scratch[..self.pending_len];
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
        let Some(mut pkt) = frames.alloc() else {
            return self.read_and_drop();
        };
        // The virtio-net header goes right before the packet, so that both are one piece of memory.
        pkt.prepend(VNET_HEADER);
        let front = &mut pkt.spare_mut()[..VNET_HEADER + SMALL_MAX];
        let read = match read(&self.queue, front, &mut self.scratch[SMALL_MAX..]) {
            Ok(Some(read)) => read,
            other => {
                frames.free(pkt);
                return other.map(|_| Received::Nothing);
            }
        };
        let header: [u8; VNET_HEADER] = pkt.data().first_chunk().copied().unwrap_or_default();
        let vnet = VnetHeader::decode(&header);
        let len = read.saturating_sub(VNET_HEADER);
        pkt.set_len(VNET_HEADER + len.min(SMALL_MAX));
        pkt.trim_front(VNET_HEADER);
        if vnet.gso == Gso::None && len <= SMALL_MAX {
            self.finish_single(&vnet, pkt, frames, burst);
            return Ok(Received::Single);
        }
        self.scratch[..pkt.len()].copy_from_slice(pkt.data());
        frames.free(pkt);
        let bytes = &self.scratch[..len];
        if len > SUPER_MAX {
            self.counters.rx_malformed.add(1);
        } else if vnet.gso == Gso::None {
            match frames.alloc_for(len) {
                Some(mut pkt) => {
                    pkt.append(len).copy_from_slice(bytes);
                    self.finish_single(&vnet, pkt, frames, burst);
                }
                None => self.counters.rx_no_frame.add(1),
            }
        } else {
            match SuperPacket::parse(&vnet, bytes) {
                Ok(packet) => {
                    self.pending_len = len;
                    return Ok(Received::Super(packet));
                }
                Err(_) => self.counters.rx_malformed.add(1),
            }
        }
        Ok(Received::Single)
    }

    fn finish_single(
        &mut self,
        vnet: &VnetHeader,
        mut pkt: PktBuf,
        frames: &mut FrameCache,
        burst: &mut Burst,
    ) {
        let finished: Result<(), Malformed> = if vnet.needs_csum {
            complete_checksum(vnet, pkt.data_mut())
        } else {
            Ok(())
        };
        if finished.is_err() || pkt.is_empty() {
            self.counters.rx_malformed.add(1);
            frames.free(pkt);
            return;
        }
        self.counters.rx_packets.add(1);
        self.counters.rx_bytes.add(pkt.len() as u64);
        burst.push(pkt);
    }

    /// Takes a packet from the kernel although there is no frame for it: a full queue would keep the
    /// descriptor readable and the worker busy with nothing.
    fn read_and_drop(&mut self) -> Result<Received, PortError> {
        let mut header = [0; VNET_HEADER];
        let Some(read) = read(&self.queue, &mut header, &mut self.scratch[..])? else {
            return Ok(Received::Nothing);
        };
        let vnet = VnetHeader::decode(&header);
        let bytes = &self.scratch[..read.saturating_sub(VNET_HEADER)];
        let packets = SuperPacket::parse(&vnet, bytes).map_or(1, |packet| packet.remaining());
        self.counters.rx_no_frame.add(packets as u64);
        Ok(Received::Single)
    }

    /// Writes one packet, which stands behind its virtio-net header.
    fn write_single(&mut self, packet: &[u8]) -> Result<(), PortError> {
        match retry(|| rustix::io::write(&self.queue, packet)) {
            Ok(_) => {
                self.counters.tx_calls.add(1);
                self.counters.tx_packets.add(1);
                self.counters.tx_bytes.add((packet.len() - VNET_HEADER) as u64);
                Ok(())
            }
            Err(error) => self.dropped(error, 1),
        }
    }

    /// Writes planned group number `group`; `packets` are the burst's, without virtio-net headers.
    fn write_group(&mut self, group: usize, packets: &[&[u8]], burst: &Burst) -> Result<(), PortError> {
        let headers = self.planner.super_headers(group, packets);
        let Some(headers) = headers else {
            return self.write_each(group, burst);
        };
        let mut parts: ArrayVec<IoSlice<'_>, { BURST_MAX + 1 }> = ArrayVec::new();
        parts.push(IoSlice::new(headers.bytes()));
        let mut bytes = 0;
        for member in self.planner.members(group) {
            bytes += packets[member].len();
            parts.push(IoSlice::new(&packets[member][headers.skip()..]));
        }
        match retry(|| rustix::io::writev(&self.queue, &parts)) {
            Ok(_) => {
                self.counters.tx_calls.add(1);
                self.counters.tx_packets.add(parts.len() as u64 - 1);
                self.counters.tx_bytes.add(bytes as u64);
                Ok(())
            }
            Err(Errno::INVAL) => self.refused(&headers, group, burst),
            Err(error) => self.dropped(error, self.planner.count(group)),
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

    /// Counts packets that the kernel did not take, or finds that the device is no more.
    fn dropped(&self, error: Errno, packets: usize) -> Result<(), PortError> {
        let counter = match error {
            Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM => &self.counters.tx_no_buffer,
            Errno::IO => &self.counters.tx_down,
            Errno::PERM | Errno::ACCESS => &self.counters.tx_forbidden,
            _ => &self.counters.tx_error,
        };
        counter.add(packets as u64);
        if is_gone(error) {
            Err(PortError::Gone)
        } else {
            Ok(())
        }
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
        let result = self.write_burst(burst);
        burst.clear_into(frames);
        result
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

impl TunPort {
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
}

/// Reads one packet into two buffers, one after the other. `None` when there is none.
fn read(queue: &OwnedFd, front: &mut [u8], rest: &mut [u8]) -> Result<Option<usize>, PortError> {
    let mut parts = [IoSliceMut::new(front), IoSliceMut::new(rest)];
    match retry(|| rustix::io::readv(queue, &mut parts)) {
        Ok(read) => Ok(Some(read)),
        Err(Errno::AGAIN) => Ok(None),
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
