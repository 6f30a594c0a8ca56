//! AF_XDP: whole frames between an interface's queue and our own packet memory, past the kernel's network stack.
//!
//! [`XdpProgram`] decides which frames of an interface are ours and belongs to whoever owns the configuration; [`XdpPort`] is one queue
//! of the interface and belongs to a worker. The arena is the sockets' packet memory, so a frame that arrives is a packet without a
//! copy by us, and a packet leaves the same way. The kernel copies between its own buffers and ours; drivers that read and write our frames
//! themselves would need frames that never cross a page. Closing the program's descriptor, also by dying, gives the interface back
//! to the host.
//!
//! With datagrams it is the queue of a WAN link's [`LinkPort`](crate::wan::LinkPort).

mod names;
mod program;
mod ring;

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use patronus_mem::{Arena, Burst, FRAME, FrameCache, FrameRegion, HEADROOM, Lent, PktBuf, TAILROOM};

pub use names::Names;
use program::By;
pub use program::{NAMES_MAX, Take};
use ring::{DrainRing, FillRing};

pub use crate::bpf::XdpMode;
use crate::bpf::{self, Kind};
use crate::offload::split::complete_unfinished_frame;
use crate::wan::Queue as LinkQueue;
use crate::{PORT_FDS, Port, PortCounters, PortError, sys};

/// Entries of each ring. So many frames wait in the kernel for what will arrive.
const RING: u32 = 2048;

/// Bytes that the kernel leaves free before a packet that arrives (XDP_PACKET_HEADROOM).
const KERNEL_HEADROOM: usize = 256;

/// How many packets one call may send (linux/if_xdp.h, from Linux 6.17 on); without it, and before, 32.
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;

/// Bytes of packets that may be on their way out at a time.
const SEND_BUFFER: libc::c_int = 8 << 20;

/// Calls that a burst makes at most to get out.
const KICKS: usize = 8;

/// How long a queue may still be taken by a socket that was closed.
const RELEASE: Duration = Duration::from_secs(1);

/// How long a port that is dropped waits for what it was sending.
const DRAIN_MILLISECONDS: u32 = 100;

/// Bursts between two looks at what the kernel had to drop: a call that costs less than a thousandth of the packets, and soon enough where
/// there are few.
const STATISTICS_EVERY: u32 = 128;

const _: () = assert!(KERNEL_HEADROOM >= HEADROOM);

/// In addresses of the kernel's: where the offset in the frame begins (XSK_UNALIGNED_BUF_OFFSET_SHIFT).
const OFFSET_SHIFT: u32 = 48;

/// The program on an interface, and the sockets that it hands frames to.
pub struct XdpProgram {
    link: OwnedFd,
    sockets: OwnedFd,
    mode: XdpMode,
    ifindex: u32,
    queues: u32,
}

impl XdpProgram {
    /// Puts a program on an interface, in the driver if that can run it and otherwise in the generic path. Until queues have ports,
    /// every frame goes to the host. Needs CAP_NET_ADMIN and CAP_BPF; ports also need CAP_NET_RAW, and the right to lock the arena's memory.
    pub fn attach(ifindex: u32, queues: u32, take: &Take) -> io::Result<XdpProgram> {
        let sockets = bpf::socket_map(queues)?;
        let program = load(take, sockets.as_fd())?;
        XdpProgram::put(ifindex, queues, sockets, &program)
    }

    /// The same for a program that takes datagrams to what stands in its names, nothing at first. They can be changed without any privilege.
    pub fn attach_named(ifindex: u32, queues: u32) -> io::Result<(XdpProgram, Names)> {
        let (sockets, names) = (bpf::socket_map(queues)?, Names::new()?);
        let text = program::assemble(&By::Names(&names), sockets.as_fd());
        let program = bpf::load(Kind::Xdp, &text)?;
        Ok((XdpProgram::put(ifindex, queues, sockets, &program)?, names))
    }

    fn put(ifindex: u32, queues: u32, sockets: OwnedFd, program: &OwnedFd) -> io::Result<XdpProgram> {
        let attach = |mode| bpf::attach(program.as_fd(), ifindex, mode).map(|link| (link, mode));
        // What the driver has against it is the better reason.
        let (link, mode) =
            attach(XdpMode::Native).or_else(|native| attach(XdpMode::Generic).map_err(|_| native))?;
        Ok(XdpProgram {
            link,
            sockets,
            mode,
            ifindex,
            queues,
        })
    }

    /// Takes other frames from now on.
    pub fn set(&self, take: &Take) -> io::Result<()> {
        let program = load(take, self.sockets.as_fd())?;
        bpf::replace(self.link.as_fd(), program.as_fd())
    }

    /// Where the program runs.
    pub fn mode(&self) -> XdpMode {
        self.mode
    }

    /// What attaches the program to the interface: it stays as long as anybody has this open.
    pub fn link(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }

    /// The port of one queue: its frames come from `frames`' arena.
    pub fn port(&self, queue: u32, frames: &mut FrameCache) -> io::Result<XdpPort> {
        self.check(queue)?;
        let end = Instant::now() + RELEASE;
        let port = loop {
            match XdpPort::over(socket()?, self.ifindex, queue, frames) {
                // The kernel lets go of a closed socket's queue a moment later.
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < end => {
                    std::thread::sleep(RELEASE / 100);
                }
                made => break made?,
            }
        };
        bpf::set_socket(self.sockets.as_fd(), queue, port.queue.socket.as_fd())?;
        Ok(port)
    }

    /// A socket for [`XdpPort::over`], maybe in another process. What the program takes from the queue is lost until it is a port.
    pub fn socket(&self, queue: u32) -> io::Result<OwnedFd> {
        self.check(queue)?;
        let socket = socket()?;
        bpf::set_socket(self.sockets.as_fd(), queue, socket.as_fd())?;
        Ok(socket)
    }

    fn check(&self, queue: u32) -> io::Result<()> {
        match queue < self.queues {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::InvalidInput, "no such queue")),
        }
    }
}

fn socket() -> io::Result<OwnedFd> {
    // SAFETY: plain system call; the descriptor is new.
    unsafe {
        match libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) {
            fd @ 0.. => Ok(OwnedFd::from_raw_fd(fd)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

fn load(take: &Take, sockets: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let names = match take {
        Take::Datagrams { addresses, ports } => addresses.len().max(ports.len()),
        Take::Transit { addresses, .. } => addresses.len(),
    };
    if names > NAMES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{names} addresses or UDP ports on an interface, at most {NAMES_MAX} are possible"),
        ));
    }
    bpf::load(Kind::Xdp, &program::assemble(&By::Text(take), sockets))
}

/// What is shared with the kernel. Nothing arrives in our frames any more once this is dropped.
struct Queue {
    receive: DrainRing<libc::xdp_desc>,
    transmit: FillRing<libc::xdp_desc>,
    /// Frames for what will arrive.
    fill: FillRing<u64>,
    /// Frames of what has left.
    done: DrainRing<u64>,
    socket: OwnedFd,
}

/// One queue of an interface. Packets are whole frames, with their link header.
pub struct XdpPort {
    queue: ManuallyDrop<Queue>,
    arena: &'static Arena,
    stride: u64,
    /// A bit for each frame that the kernel has.
    lent: Box<[u64]>,
    /// How many of them will come back with something that arrived.
    filled: u32,
    /// And how many when they have been sent.
    sending: u32,
    /// The device is down: what is handed over does not leave.
    down: bool,
    bursts: u32,
    /// Packets that the kernel had to drop, when last looked at.
    dropped: u64,
    /// Frames arrive with unfinished checksums.
    unfinished: bool,
    counters: Arc<PortCounters>,
}

impl XdpPort {
    /// The port of a queue over a [socket](XdpProgram::socket) of its interface's program. Takes no rights but that to lock the arena's memory.
    pub fn over(socket: OwnedFd, ifindex: u32, queue: u32, frames: &mut FrameCache) -> io::Result<XdpPort> {
        let arena = frames.arena();
        let region = arena.region();
        register(socket.as_fd(), &region)?;
        for ring in [
            libc::XDP_UMEM_FILL_RING,
            libc::XDP_UMEM_COMPLETION_RING,
            libc::XDP_RX_RING,
            libc::XDP_TX_RING,
        ] {
            set(socket.as_fd(), ring, &RING)?;
        }
        // Both only save calls.
        let _ = set(socket.as_fd(), XDP_MAX_TX_SKB_BUDGET, &RING);
        let _ = sys::set_option(
            socket.as_fd(),
            libc::SOL_SOCKET,
            libc::SO_SNDBUFFORCE,
            SEND_BUFFER,
        );
        // SAFETY: the option is of this type, which is plain numbers.
        let at: libc::xdp_mmap_offsets = unsafe { get(socket.as_fd(), libc::XDP_MMAP_OFFSETS)? };
        let fd = socket.as_fd();
        let shared = Queue {
            receive: DrainRing::new(fd, libc::XDP_PGOFF_RX_RING, &at.rx, RING)?,
            transmit: FillRing::new(fd, libc::XDP_PGOFF_TX_RING, &at.tx, RING)?,
            fill: FillRing::new(fd, libc::XDP_UMEM_PGOFF_FILL_RING as _, &at.fr, RING)?,
            done: DrainRing::new(fd, libc::XDP_UMEM_PGOFF_COMPLETION_RING as _, &at.cr, RING)?,
            socket,
        };
        let mut port = XdpPort {
            queue: ManuallyDrop::new(shared),
            arena,
            stride: region.stride as u64,
            lent: vec![0; (region.len / region.stride).div_ceil(64)].into(),
            filled: 0,
            sending: 0,
            down: false,
            bursts: 0,
            dropped: 0,
            unfinished: false,
            counters: Arc::default(),
        };
        port.refill(frames);
        port.bind(ifindex, queue)?;
        Ok(port)
    }

    /// With `unfinished`, the port completes checksums of what arrives: a kernel that sends frames to a veth leaves them to a wire that never comes, and AF_XDP does
    /// not say so.
    #[must_use]
    pub fn with_unfinished_checksums(self, unfinished: bool) -> XdpPort {
        let mut port = self;
        port.unfinished = unfinished;
        port
    }

    fn bind(&self, ifindex: u32, queue: u32) -> io::Result<()> {
        let address = libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as _,
            sxdp_flags: libc::XDP_USE_NEED_WAKEUP | libc::XDP_COPY,
            sxdp_ifindex: ifindex,
            sxdp_queue_id: queue,
            sxdp_shared_umem_fd: 0,
        };
        // SAFETY: the pointer and the length describe `address`, which lives until the call returns.
        let rc = unsafe {
            libc::bind(
                self.queue.socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_xdp>() as libc::socklen_t,
            )
        };
        match rc {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn lend(&mut self, pkt: PktBuf) -> Result<Lent, PktBuf> {
        let lent = self.arena.lend(pkt)?;
        self.lent[lent.frame as usize / 64] |= 1 << (lent.frame % 64);
        Ok(lent)
    }

    /// Takes a frame back that the kernel is done with.
    fn take_back(&mut self, lent: Lent) -> Option<PktBuf> {
        let bit = 1 << (lent.frame % 64);
        let word = &mut self.lent[lent.frame as usize / 64];
        assert!(*word & bit != 0, "the kernel gives back what it was lent");
        *word &= !bit;
        // SAFETY: the bit said that the frame was lent and not taken back, and the kernel has just given it back.
        unsafe { self.arena.take_back(lent) }
    }

    /// Gives the kernel frames for what will arrive.
    fn refill(&mut self, frames: &mut FrameCache) {
        let mut room = self.queue.fill.room(RING);
        let wanted = room;
        while room > 0
            && let Some(pkt) = frames.alloc()
        {
            let Ok(lent) = self.lend(pkt) else { break };
            self.queue.fill.push(u64::from(lent.frame) * self.stride);
            room -= 1;
        }
        if room < wanted {
            self.queue.fill.publish();
            self.filled += wanted - room;
        }
    }

    /// Frees the frames of what has been sent.
    fn reap(&mut self, frames: &mut FrameCache) {
        while let Some(address) = self.queue.done.pop() {
            self.sending -= 1;
            if let Some(pkt) = self.take_back(self.place(address, 0)) {
                frames.free(pkt);
            }
        }
        self.queue.done.publish();
    }

    /// Which frame an address of the kernel's is in, and where. Of what was sent only the frame counts.
    fn place(&self, address: u64, len: u32) -> Lent {
        // The base that we gave, and the kernel's offset from there.
        let offset = address >> OFFSET_SHIFT;
        let base = address & ((1 << OFFSET_SHIFT) - 1);
        Lent {
            frame: (base / self.stride) as u32,
            offset: (base % self.stride + offset) as u32,
            len,
        }
    }

    /// Lets the kernel go on until it has taken everything or can take no more.
    fn kick(&mut self) -> Result<(), PortError> {
        for _ in 0..KICKS {
            if self.queue.transmit.is_drained() || !self.queue.transmit.needs_wakeup() {
                break;
            }
            // SAFETY: a send of nothing.
            let sent = unsafe {
                libc::sendto(
                    self.queue.socket.as_raw_fd(),
                    std::ptr::null(),
                    0,
                    libc::MSG_DONTWAIT,
                    std::ptr::null(),
                    0,
                )
            };
            let error = io::Error::last_os_error();
            self.down = sent < 0 && error.raw_os_error() == Some(libc::ENETDOWN);
            match error.raw_os_error() {
                _ if sent >= 0 => {}
                // So many and no more at a time, or the device's queue was full.
                Some(libc::EAGAIN | libc::EBUSY | libc::EINTR) => {}
                Some(libc::ENXIO) => return Err(PortError::Gone),
                _ => break,
            }
        }
        Ok(())
    }

    /// Packets that the kernel has taken and not yet said to have sent.
    fn leaving(&self) -> u32 {
        self.sending - self.queue.transmit.waiting()
    }

    /// Counts what the kernel had no room for.
    #[cold]
    fn look_at_drops(&mut self) {
        // SAFETY: the option is of this type, which is plain numbers.
        let found = unsafe { get::<libc::xdp_statistics>(self.queue.socket.as_fd(), libc::XDP_STATISTICS) };
        if let Ok(found) = found {
            let dropped = found.rx_dropped + found.rx_ring_full;
            self.counters.rx_no_frame.add(dropped - self.dropped);
            self.dropped = dropped;
        }
    }

    /// Hands one packet over; the kernel sees it when the ring is published.
    fn hand_over(&mut self, frames: &mut FrameCache, pkt: PktBuf) -> Option<u32> {
        if pkt.is_empty() {
            self.counters.tx_error.add(1);
            frames.free(pkt);
            return None;
        }
        match self.lend(pkt) {
            Ok(lent) => {
                self.queue.transmit.push(libc::xdp_desc {
                    addr: u64::from(lent.frame) * self.stride + u64::from(lent.offset),
                    len: lent.len,
                    options: 0,
                });
                Some(lent.len)
            }
            Err(pkt) => {
                self.counters.tx_too_big.add(1);
                frames.free(pkt);
                None
            }
        }
    }
}

impl Drop for XdpPort {
    fn drop(&mut self) {
        let mut frames = FrameCache::new(self.arena);
        let mut leaving = self.leaving();
        for _ in 0..DRAIN_MILLISECONDS {
            if leaving == 0 {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
            self.reap(&mut frames);
            leaving = self.leaving();
        }
        // SAFETY: not used after this. The rings' mappings hold on to the socket, so both go before the frames are free.
        unsafe { ManuallyDrop::drop(&mut self.queue) };
        if leaving > 0 {
            // Some drivers send from our frames without a copy, and no one will say when: none of the lent frames is used again.
            return;
        }
        for (at, word) in self.lent.iter().enumerate() {
            for bit in (0..64).filter(|bit| word & 1 << bit != 0) {
                let lent = Lent {
                    frame: (64 * at + bit) as u32,
                    offset: 0,
                    len: 0,
                };
                // SAFETY: the bit says that the frame was lent and not taken back, and with the socket gone nobody uses it.
                drop(unsafe { self.arena.take_back(lent) });
            }
        }
    }
}

impl Port for XdpPort {
    fn rx_burst(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Result<usize, PortError> {
        let (before, mut bytes) = (burst.len(), 0);
        while burst.room() > 0
            && let Some(descriptor) = self.queue.receive.pop()
        {
            self.filled -= 1;
            match self.take_back(self.place(descriptor.addr, descriptor.len)) {
                Some(mut pkt) if pkt.tailroom() >= TAILROOM => {
                    if self.unfinished {
                        complete_unfinished_frame(pkt.data_mut());
                    }
                    bytes += pkt.len() as u64;
                    burst.push(pkt);
                }
                too_long => {
                    self.counters.rx_malformed.add(1);
                    too_long.into_iter().for_each(|pkt| frames.free(pkt));
                }
            }
        }
        self.queue.receive.publish();
        let received = burst.len() - before;
        if received > 0 {
            self.counters.rx_calls.add(1);
            self.counters.rx_packets.add(received as u64);
            self.counters.rx_bytes.add(bytes);
        }
        if self.sending > 0 {
            self.kick()?;
            self.reap(frames);
        }
        if self.filled < RING / 2 {
            self.refill(frames);
        }
        self.bursts = self.bursts.wrapping_add(1);
        if self.bursts.is_multiple_of(STATISTICS_EVERY) {
            self.look_at_drops();
        }
        Ok(received)
    }

    fn tx_burst(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Result<(), PortError> {
        if self.sending > 0 {
            self.reap(frames);
        }
        let mut room = self.queue.transmit.room(burst.len() as u32);
        if (room as usize) < burst.len() {
            self.kick()?;
            self.reap(frames);
            room = self.queue.transmit.room(burst.len() as u32);
        }
        if self.down {
            // What was handed over before is all that will be old when it is up again.
            self.kick()?;
        }
        if self.down {
            self.counters.tx_down.add(burst.len() as u64);
            burst.clear_into(frames);
            return Ok(());
        }
        let (mut packets, mut bytes) = (0, 0);
        for pkt in burst.drain(..) {
            if packets == room {
                self.counters.tx_no_buffer.add(1);
                frames.free(pkt);
            } else if let Some(len) = self.hand_over(frames, pkt) {
                packets += 1;
                bytes += u64::from(len);
            }
        }
        if packets > 0 {
            self.queue.transmit.publish();
            self.sending += packets;
            self.counters.tx_calls.add(1);
            self.counters.tx_packets.add(u64::from(packets));
            self.counters.tx_bytes.add(bytes);
            self.kick()?;
        }
        Ok(())
    }

    fn wait_fds(&self) -> ArrayVec<BorrowedFd<'_>, PORT_FDS> {
        ArrayVec::from_iter([self.queue.socket.as_fd()])
    }

    /// Also while something is left to send, which only another call gets out.
    fn has_pending(&self) -> bool {
        !self.queue.receive.is_empty() || !self.down && !self.queue.transmit.is_drained()
    }

    fn counters(&self) -> &Arc<PortCounters> {
        &self.counters
    }
}

impl LinkQueue for XdpPort {
    /// Small frames of the arena only.
    #[inline]
    fn takes(&self, pkt: &PktBuf) -> bool {
        self.arena.lends(pkt)
    }
}

/// Makes the arena's small frames the socket's packet memory.
fn register(socket: BorrowedFd<'_>, region: &FrameRegion) -> io::Result<()> {
    let memory = libc::xdp_umem_reg {
        addr: region.start.as_ptr() as u64,
        len: region.len as u64,
        chunk_size: FRAME as u32,
        headroom: 0,
        // Frames are not at multiples of a power of two: their first lines would share few sets of the cache.
        flags: libc::XDP_UMEM_UNALIGNED_CHUNK_FLAG,
        tx_metadata_len: 0,
    };
    set(socket, libc::XDP_UMEM_REG, &memory)
}

fn set<T>(socket: BorrowedFd<'_>, option: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the pointer and the length describe `value`, which lives until the call returns.
    let rc = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_XDP,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    match rc {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// An option.
///
/// # Safety
/// The option is of type `T`, which is plain numbers.
unsafe fn get<T: Copy>(socket: BorrowedFd<'_>, option: libc::c_int) -> io::Result<T> {
    // SAFETY: zero is a value of plain numbers.
    let mut value: T = unsafe { std::mem::zeroed() };
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the pointers describe `value` and its length, which live until the call returns.
    let rc = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_XDP,
            option,
            (&raw mut value).cast(),
            &raw mut len,
        )
    };
    match rc {
        0 if len as usize == size_of::<T>() => Ok(value),
        0 => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "the kernel's AF_XDP is older than this program",
        )),
        _ => Err(io::Error::last_os_error()),
    }
}
