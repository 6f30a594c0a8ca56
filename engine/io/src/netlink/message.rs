//! Messages of rtnetlink: taken apart, put together, sent and received. Whatever the bytes are, nothing outside of them is read.

use std::cell::Cell;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// Messages are multiples of this long, in bytes; so are attributes.
const ALIGN: usize = 4;
/// `struct nlmsghdr`, in bytes.
pub(super) const MESSAGE_HEADER: usize = 16;
/// `struct ifinfomsg`, in bytes.
pub(super) const LINK_HEADER: usize = 16;
/// `struct ifaddrmsg`, in bytes.
pub(super) const ADDRESS_HEADER: usize = 8;
/// `struct rtmsg`, in bytes.
pub(super) const ROUTE_HEADER: usize = 12;
/// `struct ndmsg`, in bytes.
pub(super) const NEIGHBOUR_HEADER: usize = 12;
/// `struct rtattr`, in bytes.
const ATTRIBUTE_HEADER: usize = 4;
/// The longest value of an attribute that is sent, in bytes: an IPv6 address.
pub(super) const VALUE_MAX: usize = 16;
/// Attributes of a request at most.
const ATTRIBUTES_MAX: usize = 4;
const REQUEST_MAX: usize = MESSAGE_HEADER + LINK_HEADER + ATTRIBUTES_MAX * (ATTRIBUTE_HEADER + VALUE_MAX);

/// The kernel makes messages of at most this size for sockets that read with buffers like ours.
pub(super) const BUFFER: usize = 32 * 1024;
/// Datagrams that one look at a socket takes at most; the descriptor stays readable for the rest.
pub(super) const READS_MAX: usize = 64;

pub(super) const NLMSG_ERROR: u16 = 2;
pub(super) const NLMSG_DONE: u16 = 3;
pub(super) const NLM_F_REQUEST: u16 = 1;
pub(super) const NLM_F_ACK: u16 = 4;
/// In an answer: what it tells of changed meanwhile.
pub(super) const NLM_F_DUMP_INTR: u16 = 0x10;
pub(super) const NLM_F_DUMP: u16 = 0x300;
pub(super) const NLM_F_REPLACE: u16 = 0x100;
pub(super) const NLM_F_EXCL: u16 = 0x200;
pub(super) const NLM_F_CREATE: u16 = 0x400;
pub(super) const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
pub(super) const RTA_OIF: u16 = 4;
const RTA_MARK: u16 = 16;
pub(super) const NDA_DST: u16 = 1;
pub(super) const NDA_LLADDR: u16 = 2;
/// The bits of an attribute's type that are not flags.
const ATTRIBUTE_TYPE: u16 = 0x3fff;

/// A message of the kernel's.
#[derive(Clone, Copy)]
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    /// The number of the request that it answers; 0 if none was asked.
    pub(super) sequence: u32,
    pub(super) body: &'a [u8],
}

/// The messages of a datagram. Bytes that make no sense end them.
pub(super) struct Messages<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let bytes = self.0;
        let len = word(bytes, 0)? as usize;
        let message = Message {
            kind: half(bytes, 4)?,
            flags: half(bytes, 6)?,
            sequence: word(bytes, 8)?,
            body: bytes.get(MESSAGE_HEADER..len)?,
        };
        self.0 = bytes.get(len.next_multiple_of(ALIGN)..).unwrap_or_default();
        Some(message)
    }
}

impl Message<'_> {
    /// The error that the message reports, by its number, if it is such a message; 0 is success.
    pub(super) fn error(&self) -> Option<i32> {
        match self.kind {
            NLMSG_ERROR => word(self.body, 0).map(|error| (error as i32).wrapping_neg()),
            _ => None,
        }
    }
}

pub(super) fn find_attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let header = bytes.first_chunk::<ATTRIBUTE_HEADER>()?;
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & ATTRIBUTE_TYPE;
        let value = bytes.get(ATTRIBUTE_HEADER..len)?;
        if kind == wanted {
            return Some(value);
        }
        bytes = bytes.get(len.next_multiple_of(ALIGN)..)?;
    }
}

pub(super) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|word| u32::from_ne_bytes(*word))
}

pub(super) fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|half| u16::from_ne_bytes(*half))
}

pub(super) fn family(ip: IpAddr) -> u8 {
    (if ip.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    }) as u8
}

/// The value of an attribute that is an address.
pub(super) fn ip_address(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
        _ => None,
    }
}

/// A message to the kernel, with room for a few attributes.
pub(super) struct Request {
    bytes: [u8; REQUEST_MAX],
    len: usize,
}

impl Request {
    /// About an interface.
    pub(super) fn link(kind: u16, flags: u16, ifindex: u32) -> Request {
        let mut request = Request::new(kind, flags, LINK_HEADER);
        request.put(MESSAGE_HEADER + 4, &ifindex.to_ne_bytes());
        request
    }

    /// About the route to `dst`, from `src` and through interface `ifindex` if there are such.
    pub(super) fn route(src: Option<IpAddr>, dst: IpAddr, ifindex: Option<u32>, mark: u32) -> Request {
        let mut request = Request::new(libc::RTM_GETROUTE, NLM_F_REQUEST, ROUTE_HEADER);
        let bits = if dst.is_ipv4() { 32 } else { 128 };
        let source_bits = if src.is_some() { bits } else { 0 };
        request.put(MESSAGE_HEADER, &[family(dst), bits, source_bits]);
        request.address(RTA_DST, dst);
        if let Some(src) = src {
            request.address(RTA_SRC, src);
        }
        request.attribute(RTA_MARK, &mark.to_ne_bytes());
        if let Some(ifindex) = ifindex {
            request.attribute(RTA_OIF, &ifindex.to_ne_bytes());
        }
        request
    }

    /// The same about the entry of the routing tables that matches: without one there is none, while a route is made up through an interface
    /// without one (IPv4 only).
    pub(super) fn matching_route(dst: IpAddr, ifindex: u32, mark: u32) -> Request {
        const RTM_F_FIB_MATCH: u32 = 0x2000;
        let mut request = Request::route(None, dst, Some(ifindex), mark);
        request.put(MESSAGE_HEADER + 8, &RTM_F_FIB_MATCH.to_ne_bytes());
        request
    }

    pub(super) fn address(&mut self, kind: u16, ip: IpAddr) {
        match ip {
            IpAddr::V4(ip) => self.attribute(kind, &ip.octets()),
            IpAddr::V6(ip) => self.attribute(kind, &ip.octets()),
        }
    }

    pub(super) fn new(kind: u16, flags: u16, header: usize) -> Request {
        let len = MESSAGE_HEADER + header;
        let mut request = Request {
            bytes: [0; REQUEST_MAX],
            len,
        };
        request.put(4, &kind.to_ne_bytes());
        request.put(6, &flags.to_ne_bytes());
        request.put(0, &(len as u32).to_ne_bytes());
        request
    }

    /// Adds an attribute.
    pub(super) fn attribute(&mut self, kind: u16, value: &[u8]) {
        let at = self.len;
        self.put(at, &((ATTRIBUTE_HEADER + value.len()) as u16).to_ne_bytes());
        self.put(at + 2, &kind.to_ne_bytes());
        self.put(at + ATTRIBUTE_HEADER, value);
        // What is between this and the next one is zero.
        self.len = (at + ATTRIBUTE_HEADER + value.len()).next_multiple_of(ALIGN);
        let len = self.len as u32;
        self.put(0, &len.to_ne_bytes());
    }

    pub(super) fn put(&mut self, at: usize, value: &[u8]) {
        self.bytes[at..at + value.len()].copy_from_slice(value);
    }

    /// Gives the request a number, which the answer will have.
    pub(super) fn number(&mut self, sequence: u32) {
        self.put(8, &sequence.to_ne_bytes());
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

pub(super) fn open(groups: u32) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    // No protocol number is NETLINK_ROUTE.
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    Ok(socket)
}

/// One datagram. Those of other processes, which may send to us, are empty.
pub(super) fn receive<'a>(socket: &OwnedFd, buffer: &'a mut [u8]) -> Result<&'a [u8], Errno> {
    let (_, len, from) = rustix::net::recvfrom(socket, &mut *buffer, RecvFlags::DONTWAIT | RecvFlags::TRUNC)?;
    let from_kernel = from
        .and_then(|from| SocketAddrNetlink::try_from(from).ok())
        .is_some_and(|from| from.pid() == 0);
    if !from_kernel {
        return Ok(&[]);
    }
    buffer.get(..len).ok_or(Errno::MSGSIZE)
}

/// Sends to the kernel.
pub(super) fn send(socket: &OwnedFd, request: &Request) -> io::Result<()> {
    let kernel = SocketAddrNetlink::new(0, 0);
    rustix::net::sendto(socket, request.bytes(), SendFlags::empty(), &kernel)?;
    Ok(())
}

/// Asks single questions. The kernel answers before the question's send returns, so nothing waits here.
#[derive(Debug)]
pub(super) struct Asker {
    socket: OwnedFd,
    /// Of the last question, from which its answer is known.
    sequence: Cell<u32>,
}

impl Asker {
    pub(super) fn new() -> io::Result<Asker> {
        Ok(Asker {
            socket: open(0)?,
            sequence: Cell::new(0),
        })
    }

    /// Sends a question; the answer. What answers an earlier question is passed over.
    pub(super) fn ask<'a>(&self, mut request: Request, buffer: &'a mut [u8]) -> io::Result<Message<'a>> {
        let sequence = next_sequence(self.sequence.get());
        self.sequence.set(sequence);
        request.number(sequence);
        send(&self.socket, &request)?;
        for _ in 0..READS_MAX {
            let len = match receive(&self.socket, buffer) {
                Ok(datagram) if answers(datagram, sequence) => datagram.len(),
                Ok(_) | Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let answer = Messages(&buffer[..len]).find(|message| message.sequence == sequence);
            return answer.ok_or_else(no_answer);
        }
        Err(no_answer())
    }

    /// Asks for something to be done.
    pub(super) fn order(&self, request: Request) -> io::Result<()> {
        let mut buffer = [0; 1024];
        match self.ask(request, &mut buffer)?.error() {
            Some(0) => Ok(()),
            Some(error) => Err(io::Error::from_raw_os_error(error)),
            None => Err(no_answer()),
        }
    }
}

/// Requests are numbered from 1 on: 0 is what nobody asked for.
pub(super) fn next_sequence(last: u32) -> u32 {
    last.checked_add(1).unwrap_or(1)
}

fn answers(datagram: &[u8], sequence: u32) -> bool {
    Messages(datagram).any(|message| message.sequence == sequence)
}

fn no_answer() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the kernel's answer is none to the question",
    )
}
