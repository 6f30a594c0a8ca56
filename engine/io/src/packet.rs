//! Packet sockets: whole frames taken from and put into an interface, past the host's own network stack (packet(7)). The bench sends
//! through one as a router does that forwards, as do the ports of [`afpacket`](crate::afpacket); the impairment hop of the tests joins two interfaces by two of each.
//!
//! A [`Receiver`] belongs to one thread. It says with every frame what the sender's kernel left undone for the network card (checksum,
//! segmentation), because nobody between two ends of a veth does it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::time::{ClockId, clock_gettime};

use crate::offload::{VNET_HEADER, VnetHeader};
use crate::scratch::Scratch;
use crate::sys;

/// Frames received per call at most.
pub const FRAMES_MAX: usize = 32;
/// Bytes of a frame at most: a super-packet, an Ethernet header and one byte more, by which a longer one shows.
const FRAME: usize = 65536 + 14;
/// Distance of the frames' buffers: with a power of two their beginnings would share one set of the first-level cache.
const STRIDE: usize = VNET_HEADER + FRAME + 3 * 64;
/// Bytes of control messages: the time of arrival and `struct tpacket_auxdata`, with their headers.
const CONTROL: usize = 128;
/// Bytes that may wait in the kernel for a receiver.
const RECEIVE_BUFFER: usize = 16 << 20;

/// A socket that sends frames, link header included, through an interface, and receives nothing. Needs `CAP_NET_RAW` in the
/// calling thread's network namespace.
pub fn sender(ifindex: u32) -> io::Result<OwnedFd> {
    let socket = socket()?;
    bind(socket.as_fd(), ifindex, 0)?;
    Ok(socket)
}

/// A packet socket that receives nothing until it is bound to a protocol.
pub(crate) fn socket() -> io::Result<OwnedFd> {
    let socket =
        rustix::net::socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    Ok(socket)
}

/// Puts frames, link header included and complete as on a wire, into the interface of a [`sender`]. Returns how many were taken, from
/// the front, at least one; an error is that of the first one. Does not wait. At most [`FRAMES_MAX`] go in one call.
pub fn send(socket: BorrowedFd<'_>, frames: &[&[u8]]) -> io::Result<usize> {
    let count = frames.len().min(FRAMES_MAX);
    let mut pieces = [EMPTY_PIECE; FRAMES_MAX];
    let mut headers = [empty_header(); FRAMES_MAX];
    for ((frame, piece), header) in frames.iter().zip(&mut pieces).zip(&mut headers) {
        // The kernel only reads what a message that is sent points to.
        piece.iov_base = frame.as_ptr().cast_mut().cast();
        piece.iov_len = frame.len();
        header.msg_hdr.msg_iov = piece;
        header.msg_hdr.msg_iovlen = 1;
    }
    // SAFETY: each of the first `count` headers points to a piece that points to a borrowed frame of that length.
    unsafe { sys::send_messages(socket, &mut headers[..count]) }
}

/// What was received, but for the bytes.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// What the sending kernel left undone; offsets count from the link header.
    pub vnet: VnetHeader,
    /// The VLAN tag that the kernel took out of the frame, as its two numbers stand on a wire: protocol and tag.
    pub vlan: Option<[u8; 4]>,
    /// Nanoseconds since it arrived at the interface.
    pub age: u64,
    /// It was longer than any frame can be, and is cut off.
    pub cut_off: bool,
    len: usize,
}

/// Takes all frames that arrive at an interface, whatever their link-layer destination; none that leave it.
pub struct Receiver {
    socket: OwnedFd,
    buffers: Scratch,
    controls: Box<[Control; FRAMES_MAX]>,
    received: [Received; FRAMES_MAX],
    count: usize,
    missed: u64,
}

#[derive(Clone, Copy)]
#[repr(align(8))]
struct Control([u8; CONTROL]);

impl Receiver {
    /// Needs `CAP_NET_RAW` in the calling thread's network namespace; with `CAP_NET_ADMIN` more may wait in the kernel.
    pub fn new(ifindex: u32) -> io::Result<Receiver> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // Without a protocol nothing is received before the socket is bound to its interface.
        let socket = rustix::net::socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)?;
        let fd = socket.as_fd();
        for option in [
            libc::PACKET_VNET_HDR,
            libc::PACKET_AUXDATA,
            PACKET_IGNORE_OUTGOING,
        ] {
            sys::set_option(fd, libc::SOL_PACKET, option, 1)?;
        }
        sys::set_option(fd, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1)?;
        let forced = rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER);
        forced.or_else(|_| rustix::net::sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER))?;
        receive_everything(fd, ifindex)?;
        bind(fd, ifindex, libc::ETH_P_ALL as u16)?;
        let nothing = Received {
            vnet: VnetHeader::SINGLE,
            vlan: None,
            age: 0,
            cut_off: false,
            len: 0,
        };
        Ok(Receiver {
            socket,
            buffers: Scratch::new(FRAMES_MAX * STRIDE),
            controls: Box::new([Control([0; CONTROL]); FRAMES_MAX]),
            received: [nothing; FRAMES_MAX],
            count: 0,
            missed: 0,
        })
    }

    /// Takes what has arrived, up to [`FRAMES_MAX`] frames, without waiting; returns how many. What was received before is forgotten.
    pub fn receive(&mut self) -> io::Result<usize> {
        self.count = 0;
        let mut pieces = [EMPTY_PIECE; FRAMES_MAX];
        let mut headers = [empty_header(); FRAMES_MAX];
        let slots = self
            .buffers
            .chunks_exact_mut(STRIDE)
            .zip(self.controls.iter_mut());
        for (((buffer, control), piece), header) in slots.zip(&mut pieces).zip(&mut headers) {
            piece.iov_base = buffer.as_mut_ptr().cast();
            piece.iov_len = VNET_HEADER + FRAME;
            header.msg_hdr.msg_iov = piece;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = CONTROL as _;
        }
        // SAFETY: each header points to a piece and a control buffer of its own, which live until the call returns.
        let count = match unsafe { sys::recvmmsg(self.socket.as_fd(), &mut headers) } {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        let now = clock_gettime(ClockId::Realtime);
        for (i, header) in headers[..count].iter().enumerate() {
            let control = self.controls[i].0.get(..header.msg_hdr.msg_controllen);
            let said = said_of(control.unwrap_or_default());
            let age = said.arrived.map_or(0, |at| since(at, (now.tv_sec, now.tv_nsec)));
            let buffer = &self.buffers[i * STRIDE..];
            let vnet = buffer.first_chunk().map(VnetHeader::decode);
            self.received[i] = Received {
                vnet: vnet.unwrap_or(VnetHeader::SINGLE),
                vlan: said.vlan,
                age,
                cut_off: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
                len: (header.msg_len as usize).saturating_sub(VNET_HEADER),
            };
        }
        self.count = count;
        Ok(count)
    }

    /// The frames of the last [`Receiver::receive`], which the caller may change.
    pub fn frames(&mut self) -> impl Iterator<Item = (Received, &mut [u8])> {
        let buffers = self.buffers.chunks_exact_mut(STRIDE);
        let received = &self.received[..self.count];
        received.iter().zip(buffers).map(|(frame, buffer)| {
            (
                *frame,
                &mut buffer[VNET_HEADER..VNET_HEADER + frame.len.min(FRAME)],
            )
        })
    }

    /// Frames so far that found no room in the kernel.
    pub fn missed(&mut self) -> io::Result<u64> {
        let mut statistics = libc::tpacket_stats {
            tp_packets: 0,
            tp_drops: 0,
        };
        let mut len = size_of::<libc::tpacket_stats>() as libc::socklen_t;
        // SAFETY: the pointer and the length describe `statistics`, which lives until the call returns.
        let rc = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut statistics).cast(),
                &raw mut len,
            )
        };
        if rc != 0 {
            return Err(io::Error::last_os_error());
        }
        // Reading sets the kernel's count to zero.
        self.missed += u64::from(statistics.tp_drops);
        Ok(self.missed)
    }
}

impl AsFd for Receiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Not in the C library's headers of all systems (linux/if_packet.h, since Linux 4.20).
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;

const EMPTY_PIECE: libc::iovec = libc::iovec {
    iov_base: std::ptr::null_mut(),
    iov_len: 0,
};

fn empty_header() -> libc::mmsghdr {
    // SAFETY: struct mmsghdr is numbers and pointers, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

/// What the kernel says of a frame beside it.
#[derive(Default)]
struct Said {
    /// Wall-clock time: seconds, nanoseconds.
    arrived: Option<(i64, i64)>,
    vlan: Option<[u8; 4]>,
}

/// Reads the chain of control messages. It ends at the first one whose length is impossible.
fn said_of(mut chain: &[u8]) -> Said {
    const HEADER: usize = size_of::<libc::cmsghdr>();
    let mut said = Said::default();
    while let Some((header, _)) = chain.split_at_checked(HEADER) {
        let word = |at: usize| libc::c_int::from_ne_bytes(std::array::from_fn(|i| header[at + i]));
        let len = usize::from_ne_bytes(std::array::from_fn(|i| header[i]));
        let Some(data) = chain.get(HEADER..len) else { break };
        match (word(8), word(12)) {
            (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) => {
                let number = |at: usize| data.get(at..)?.first_chunk().map(|b| i64::from_ne_bytes(*b));
                said.arrived = number(0).zip(number(8));
            }
            (libc::SOL_PACKET, libc::PACKET_AUXDATA) => said.vlan = vlan_of(data),
            _ => {}
        }
        chain = chain.get(len.next_multiple_of(8)..).unwrap_or_default();
    }
    said
}

/// The tag in a `struct tpacket_auxdata`: status at byte 0, tag at 16, its protocol at 18.
fn vlan_of(data: &[u8]) -> Option<[u8; 4]> {
    let status = u32::from_ne_bytes(*data.first_chunk()?);
    let half = |at: usize| data.get(at..)?.first_chunk().map(|b| u16::from_ne_bytes(*b));
    let (tag, protocol) = (half(16)?.to_be_bytes(), half(18)?.to_be_bytes());
    (status & libc::TP_STATUS_VLAN_VALID != 0).then_some([protocol[0], protocol[1], tag[0], tag[1]])
}

/// Nanoseconds from one time to another; 0 where the wall clock was set back in between.
fn since((from_secs, from_nanos): (i64, i64), (secs, nanos): (i64, i64)) -> u64 {
    let nanos = (secs - from_secs).saturating_mul(1_000_000_000) + nanos - from_nanos;
    u64::try_from(nanos).unwrap_or(0)
}

/// Frames to other link-layer addresses too (promiscuous mode, as long as the socket lives).
fn receive_everything(fd: BorrowedFd<'_>, ifindex: u32) -> io::Result<()> {
    let request = libc::packet_mreq {
        mr_ifindex: ifindex.try_into().map_err(|_| io::ErrorKind::InvalidInput)?,
        mr_type: libc::PACKET_MR_PROMISC as libc::c_ushort,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    // SAFETY: the pointer and the length describe `request`, which lives until the call returns.
    let rc = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_ADD_MEMBERSHIP,
            (&raw const request).cast(),
            size_of::<libc::packet_mreq>() as libc::socklen_t,
        )
    };
    match rc {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Binds a packet socket to an interface and an EtherType; 0 is none.
pub(crate) fn bind(socket: BorrowedFd<'_>, ifindex: u32, protocol: u16) -> io::Result<()> {
    // SAFETY: struct sockaddr_ll is plain numbers, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as libc::c_ushort;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = ifindex.try_into().map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the pointer and the length describe `address`, which lives until the call returns.
    let rc = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    match rc {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether the interface that a packet socket was bound to is no more.
pub(crate) fn is_gone(socket: BorrowedFd<'_>) -> bool {
    // SAFETY: struct sockaddr_ll is plain numbers, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the pointers describe `address` and its length, which live until the call returns.
    let rc = unsafe { libc::getsockname(socket.as_raw_fd(), (&raw mut address).cast(), &raw mut len) };
    // The kernel takes the number away with the interface.
    rc == 0 && address.sll_ifindex <= 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(level: libc::c_int, kind: libc::c_int, data: &[u8]) -> Vec<u8> {
        let mut bytes = (16 + data.len()).to_ne_bytes().to_vec();
        bytes.extend(level.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    #[test]
    fn time_and_tag_are_read_and_impossible_lengths_end_the_chain() {
        let time = [7i64.to_ne_bytes(), 9i64.to_ne_bytes()].concat();
        let mut data = [0; 20];
        data[..4].copy_from_slice(&libc::TP_STATUS_VLAN_VALID.to_ne_bytes());
        data[16..18].copy_from_slice(&5u16.to_ne_bytes());
        data[18..].copy_from_slice(&0x8100u16.to_ne_bytes());
        let tag = message(libc::SOL_PACKET, libc::PACKET_AUXDATA, &data);
        let chain = [message(libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS, &time), tag].concat();
        let said = said_of(&chain);
        assert_eq!((said.arrived, said.vlan), (Some((7, 9)), Some([0x81, 0, 0, 5])));
        for end in 0..chain.len() {
            assert_eq!(said_of(&chain[..end]).arrived.is_some(), end >= 32);
        }
        for len in [0usize, 15, 1000, usize::MAX] {
            let mut bad = chain.clone();
            bad[..8].copy_from_slice(&len.to_ne_bytes());
            assert!(said_of(&bad).vlan.is_none(), "length {len}");
        }
    }

    #[test]
    fn an_age_is_never_negative() {
        assert_eq!(since((1, 999_999_999), (2, 1)), 2);
        assert_eq!(since((2, 1), (1, 999_999_999)), 0);
    }
}
