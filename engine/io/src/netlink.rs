//! What the kernel says about interfaces, addresses and routes (rtnetlink).
//!
//! A [`LinkWatch`] belongs to the slow-path thread, which waits for its descriptor and reads
//! [`LinkEvent`]s. It follows one interface closely; of everything else it only says that something
//! changed, which is when source addresses learned from packets may have become wrong.
//!
//! Sources: RFC 3549; Linux `include/uapi/linux/{netlink,rtnetlink,if_link}.h`.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// Messages are multiples of this long, in bytes; so are attributes.
const ALIGN: usize = 4;
/// `struct nlmsghdr`, in bytes.
const MESSAGE_HEADER: usize = 16;
/// `struct ifinfomsg`, in bytes.
const LINK_HEADER: usize = 16;
/// `struct rtmsg`, in bytes.
const ROUTE_HEADER: usize = 12;
/// `struct rtattr`, in bytes.
const ATTRIBUTE_HEADER: usize = 4;
/// The longest value of an attribute that is sent, in bytes: an IPv6 address.
const VALUE_MAX: usize = 16;
/// Attributes of a request at most.
const ATTRIBUTES_MAX: usize = 3;

/// The kernel makes messages of at most this size for sockets that read with buffers like ours.
const BUFFER: usize = 32 * 1024;
/// Datagrams that one [`LinkWatch::read`] takes at most; the descriptor stays readable for the rest.
const READS_MAX: usize = 64;

const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const RTM_GETLINK: u16 = 18;
const IFLA_MTU: u16 = 4;
const IFLA_TXQLEN: u16 = 13;
const IFLA_NEW_NETNSID: u16 = 45;
const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_MARK: u16 = 16;
/// The bits of an attribute's type that are not flags.
const ATTRIBUTE_TYPE: u16 = 0x3fff;

/// A change that concerns a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// The interface was set up.
    Up,
    /// The interface was set down.
    Down,
    /// The interface has this MTU, in bytes.
    Mtu(u32),
    /// The interface was deleted.
    Gone,
    /// The interface went to another network namespace: it lives on, but nothing more is heard of it.
    Moved,
    /// A route, an address, or another interface changed, or so much happened that some of it was
    /// not heard.
    RouteOrAddressChanged,
}

/// Follows one interface, and changes of routes and addresses, in the namespace it was made in.
#[derive(Debug)]
pub struct LinkWatch {
    socket: OwnedFd,
    buffer: Box<[u8]>,
    seen: Seen,
    /// Messages were lost, so the interface's state has to be asked for.
    lost: bool,
}

impl LinkWatch {
    /// Starts watching. The first events that are read tell the interface's present state.
    pub fn new(ifindex: u32) -> io::Result<LinkWatch> {
        let groups = libc::RTMGRP_LINK
            | libc::RTMGRP_IPV4_IFADDR
            | libc::RTMGRP_IPV6_IFADDR
            | libc::RTMGRP_IPV4_ROUTE
            | libc::RTMGRP_IPV6_ROUTE;
        let watch = LinkWatch {
            socket: open(groups as u32)?,
            buffer: vec![0; BUFFER].into(),
            seen: Seen {
                ifindex,
                up: None,
                mtu: None,
                changed: false,
            },
            lost: false,
        };
        watch.ask()?;
        Ok(watch)
    }

    /// Reads what has happened, without waiting, and appends it to `events` in order.
    /// [`LinkEvent::RouteOrAddressChanged`] occurs at most once, at the end.
    pub fn read(&mut self, events: &mut Vec<LinkEvent>) -> io::Result<()> {
        self.seen.changed = false;
        for _ in 0..READS_MAX {
            match receive(&self.socket, &mut self.buffer) {
                Ok(message) => self.seen.read_all(message, &mut |event| events.push(event)),
                // Both mean that messages are lost.
                Err(Errno::NOBUFS | Errno::MSGSIZE) => {
                    self.seen.changed = true;
                    self.lost = true;
                }
                Err(Errno::INTR) => {}
                // Asked any sooner, the answer would find the socket's buffer full.
                Err(Errno::AGAIN) if self.lost => {
                    self.lost = false;
                    self.ask()?;
                }
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        if self.seen.changed {
            events.push(LinkEvent::RouteOrAddressChanged);
        }
        Ok(())
    }

    /// Asks for the interface's state; the answer comes among the events.
    fn ask(&self) -> io::Result<()> {
        let kernel = SocketAddrNetlink::new(0, 0);
        let question = Request::link(RTM_GETLINK, NLM_F_REQUEST, self.seen.ifindex);
        rustix::net::sendto(&self.socket, question.bytes(), SendFlags::empty(), &kernel)?;
        Ok(())
    }
}

impl AsFd for LinkWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Sets how many packets an interface's queue holds. The ioctl for the same needs rights over the whole machine; this needs
/// them over the network namespace only.
pub fn set_txqueuelen(ifindex: u32, packets: u32) -> io::Result<()> {
    let socket = open(0)?;
    let mut request = Request::link(libc::RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK, ifindex);
    request.attribute(IFLA_TXQLEN, &packets.to_ne_bytes());
    let kernel = SocketAddrNetlink::new(0, 0);
    rustix::net::sendto(&socket, request.bytes(), SendFlags::empty(), &kernel)?;
    // The kernel has answered when the send returns.
    let mut buffer = [0; 512];
    match answer(receive(&socket, &mut buffer)?) {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(error)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Asks for routes, in the namespace it was made in.
#[derive(Debug)]
pub struct RouteQuery {
    socket: OwnedFd,
}

impl RouteQuery {
    /// Takes no rights.
    pub fn new() -> io::Result<RouteQuery> {
        Ok(RouteQuery { socket: open(0)? })
    }

    /// The interface through which a packet from `src` to `dst` with this firewall mark leaves. `None` if there is no route, or
    /// `src` is not an address of this host (IPv4 only: for IPv6 the kernel does not say).
    pub fn egress(&self, src: IpAddr, dst: IpAddr, mark: u32) -> io::Result<Option<u32>> {
        let request = Request::route(src, dst, mark);
        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::net::sendto(&self.socket, request.bytes(), SendFlags::empty(), &kernel)?;
        let mut buffer = [0; 2048];
        // The kernel has answered when the send returns.
        let datagram = receive(&self.socket, &mut buffer)?;
        let Some((libc::RTM_NEWROUTE, body, _)) = next_message(datagram) else {
            return Ok(None);
        };
        let attributes = body.get(ROUTE_HEADER..).unwrap_or_default();
        Ok(find_attribute(attributes, RTA_OIF).and_then(|value| word(value, 0)))
    }
}

/// What is known of the watched interface.
#[derive(Debug)]
struct Seen {
    ifindex: u32,
    up: Option<bool>,
    mtu: Option<u32>,
    changed: bool,
}

impl Seen {
    /// Reads all messages of one datagram. Bytes that make no sense end the reading.
    fn read_all(&mut self, mut datagram: &[u8], emit: &mut dyn FnMut(LinkEvent)) {
        while let Some((kind, body, rest)) = next_message(datagram) {
            datagram = rest;
            match kind {
                libc::RTM_NEWLINK | libc::RTM_DELLINK => self.read_link(kind, body, emit),
                libc::RTM_NEWADDR | libc::RTM_DELADDR | libc::RTM_NEWROUTE | libc::RTM_DELROUTE => {
                    self.changed = true;
                }
                // The answer to our question about an interface that is no more.
                NLMSG_ERROR if word(body, 0) == Some((-libc::ENODEV) as u32) => emit(LinkEvent::Gone),
                _ => {}
            }
        }
    }

    fn read_link(&mut self, kind: u16, body: &[u8], emit: &mut dyn FnMut(LinkEvent)) {
        let (Some(attributes), Some(ifindex), Some(flags)) =
            (body.get(LINK_HEADER..), word(body, 4), word(body, 8))
        else {
            return;
        };
        // Other families tell of a bridge's ports or of IPv6 settings, not of the link itself.
        if body[0] != libc::AF_UNSPEC as u8 {
            return;
        }
        if ifindex != self.ifindex {
            // Routes vanish with their interface without being told one by one.
            self.changed = true;
            return;
        }
        if kind == libc::RTM_DELLINK {
            let moved = find_attribute(attributes, IFLA_NEW_NETNSID).is_some();
            emit(if moved { LinkEvent::Moved } else { LinkEvent::Gone });
            return;
        }
        let up = flags & libc::IFF_UP as u32 != 0;
        if self.up.replace(up) != Some(up) {
            emit(if up { LinkEvent::Up } else { LinkEvent::Down });
        }
        if let Some(mtu) = find_attribute(attributes, IFLA_MTU).and_then(|value| word(value, 0))
            && self.mtu.replace(mtu) != Some(mtu)
        {
            emit(LinkEvent::Mtu(mtu));
        }
    }
}

/// Splits the first message off: its type, its body, and what follows it.
fn next_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let len = word(bytes, 0)? as usize;
    let kind = u16::from_ne_bytes([*bytes.get(4)?, *bytes.get(5)?]);
    let body = bytes.get(MESSAGE_HEADER..len)?;
    let rest = bytes.get(len.next_multiple_of(ALIGN)..).unwrap_or_default();
    Some((kind, body, rest))
}

fn find_attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
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

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|word| u32::from_ne_bytes(*word))
}

/// The error number in an acknowledgement; 0 is success.
fn answer(datagram: &[u8]) -> Option<i32> {
    match next_message(datagram)? {
        (NLMSG_ERROR, body, _) => Some((word(body, 0)? as i32).wrapping_neg()),
        _ => None,
    }
}

/// A message to the kernel, with room for a few attributes.
struct Request {
    bytes: [u8; MESSAGE_HEADER + LINK_HEADER + ATTRIBUTES_MAX * (ATTRIBUTE_HEADER + VALUE_MAX)],
    len: usize,
}

impl Request {
    /// About an interface.
    fn link(kind: u16, flags: u16, ifindex: u32) -> Request {
        let mut request = Request::new(kind, flags, LINK_HEADER);
        request.put(MESSAGE_HEADER + 4, &ifindex.to_ne_bytes());
        request
    }

    /// About the route from `src` to `dst`.
    fn route(src: IpAddr, dst: IpAddr, mark: u32) -> Request {
        let mut request = Request::new(libc::RTM_GETROUTE, NLM_F_REQUEST, ROUTE_HEADER);
        let (family, bits) = match dst {
            IpAddr::V4(_) => (libc::AF_INET, 32),
            IpAddr::V6(_) => (libc::AF_INET6, 128),
        };
        request.put(MESSAGE_HEADER, &[family as u8, bits, bits]);
        for (kind, ip) in [(RTA_DST, dst), (RTA_SRC, src)] {
            match ip {
                IpAddr::V4(ip) => request.attribute(kind, &ip.octets()),
                IpAddr::V6(ip) => request.attribute(kind, &ip.octets()),
            }
        }
        request.attribute(RTA_MARK, &mark.to_ne_bytes());
        request
    }

    fn new(kind: u16, flags: u16, header: usize) -> Request {
        let len = MESSAGE_HEADER + header;
        let mut request = Request {
            bytes: [0; MESSAGE_HEADER + LINK_HEADER + ATTRIBUTES_MAX * (ATTRIBUTE_HEADER + VALUE_MAX)],
            len,
        };
        request.put(4, &kind.to_ne_bytes());
        request.put(6, &flags.to_ne_bytes());
        request.put(0, &(len as u32).to_ne_bytes());
        request
    }

    /// Adds an attribute, of whose value every length is a multiple of [`ALIGN`].
    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let at = self.len;
        self.put(at, &((ATTRIBUTE_HEADER + value.len()) as u16).to_ne_bytes());
        self.put(at + 2, &kind.to_ne_bytes());
        self.put(at + ATTRIBUTE_HEADER, value);
        self.len = at + ATTRIBUTE_HEADER + value.len();
        let len = self.len as u32;
        self.put(0, &len.to_ne_bytes());
    }

    fn put(&mut self, at: usize, value: &[u8]) {
        self.bytes[at..at + value.len()].copy_from_slice(value);
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

fn open(groups: u32) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    // No protocol number is NETLINK_ROUTE.
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    Ok(socket)
}

/// One datagram. Those of other processes, which may send to us, are empty.
fn receive<'a>(socket: &OwnedFd, buffer: &'a mut [u8]) -> Result<&'a [u8], Errno> {
    let (_, len, from) = rustix::net::recvfrom(socket, &mut *buffer, RecvFlags::DONTWAIT | RecvFlags::TRUNC)?;
    let from_kernel = from
        .and_then(|from| SocketAddrNetlink::try_from(from).ok())
        .is_some_and(|from| from.pid() == 0);
    if !from_kernel {
        return Ok(&[]);
    }
    buffer.get(..len).ok_or(Errno::MSGSIZE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A message about interface 7: kind, family, flags, and an attribute each for MTU and `more`.
    fn link(kind: u16, family: u8, flags: u32, mtu: u32, more: Option<u16>) -> Vec<u8> {
        let mut bytes = vec![0; MESSAGE_HEADER + LINK_HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[16] = family;
        bytes[20..24].copy_from_slice(&7u32.to_ne_bytes());
        bytes[24..28].copy_from_slice(&flags.to_ne_bytes());
        // An attribute of odd length first: a name.
        bytes.extend([7, 0, 3, 0, b'w', b'g', 0, 0]);
        bytes.extend([8u16.to_ne_bytes(), IFLA_MTU.to_ne_bytes()].concat());
        bytes.extend(mtu.to_ne_bytes());
        if let Some(more) = more {
            bytes.extend([8u16.to_ne_bytes(), more.to_ne_bytes(), [0, 0], [0, 0]].concat());
        }
        let len = bytes.len() as u32;
        bytes[..4].copy_from_slice(&len.to_ne_bytes());
        bytes
    }

    fn seen() -> Seen {
        Seen {
            ifindex: 7,
            up: None,
            mtu: None,
            changed: false,
        }
    }

    fn read(seen: &mut Seen, datagram: &[u8]) -> Vec<LinkEvent> {
        let mut events = Vec::new();
        seen.read_all(datagram, &mut |event| events.push(event));
        events
    }

    const UP: u32 = libc::IFF_UP as u32;
    const BRIDGE: u8 = libc::AF_BRIDGE as u8;

    #[test]
    fn only_changes_are_told() {
        let mut seen = seen();
        let both = [link(16, 0, 0, 1420, None), link(16, 0, UP, 1420, None)].concat();
        assert_eq!(
            read(&mut seen, &both),
            [LinkEvent::Down, LinkEvent::Mtu(1420), LinkEvent::Up]
        );
        assert_eq!(read(&mut seen, &link(16, 0, UP, 1420, None)), []);
        assert_eq!(
            read(&mut seen, &link(16, 0, UP, 1300, None)),
            [LinkEvent::Mtu(1300)]
        );
        assert!(!seen.changed);
    }

    #[test]
    fn deletion_is_told_apart_from_what_looks_like_it() {
        assert_eq!(read(&mut seen(), &link(17, 0, 0, 1420, None)), [LinkEvent::Gone]);
        assert_eq!(
            read(&mut seen(), &link(17, 0, 0, 1420, Some(IFLA_NEW_NETNSID))),
            [LinkEvent::Moved]
        );
        assert_eq!(
            read(&mut seen(), &link(17, BRIDGE, 0, 1420, None)),
            [],
            "left a bridge"
        );
        let mut other = Seen { ifindex: 8, ..seen() };
        assert_eq!(read(&mut other, &link(17, 0, 0, 1420, None)), []);
        assert!(other.changed, "another interface's routes went with it");
    }

    #[test]
    fn messages_that_are_cut_off_are_not_read() {
        let whole = link(16, 0, UP, 1420, None);
        for len in 0..whole.len() {
            assert_eq!(read(&mut seen(), &whole[..len]), [], "{len}");
        }
        // The header is whole but declares less than the interface's part.
        for declared in 0..(MESSAGE_HEADER + LINK_HEADER) as u32 {
            let mut short = whole.clone();
            short[..4].copy_from_slice(&declared.to_ne_bytes());
            assert_eq!(read(&mut seen(), &short), [], "{declared}");
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..400),
            kind in 16..30u8, fit: bool, family: bool,
        ) {
            let len = bytes.len() as u32;
            if bytes.len() > 24 {
                bytes[4..6].copy_from_slice(&[kind, 0]);
                bytes[20..24].copy_from_slice(&7u32.to_ne_bytes());
                if fit { bytes[..4].copy_from_slice(&len.to_ne_bytes()) }
                if family { bytes[16] = 0 }
            }
            read(&mut seen(), &bytes);
        }
    }
}
