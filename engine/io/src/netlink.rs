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
const ATTRIBUTES_MAX: usize = 4;
/// `struct ndmsg`, in bytes.
const NEIGHBOUR_HEADER: usize = 12;

/// The kernel makes messages of at most this size for sockets that read with buffers like ours.
const BUFFER: usize = 32 * 1024;
/// Datagrams that one [`LinkWatch::read`] takes at most; the descriptor stays readable for the rest.
const READS_MAX: usize = 64;

const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const RTM_GETLINK: u16 = 18;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_TXQLEN: u16 = 13;
const IFLA_NEW_NETNSID: u16 = 45;
const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTAX_MTU: u16 = 2;
const RTA_MARK: u16 = 16;
const RTA_VIA: u16 = 18;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
/// States in which a neighbour's link address is to be used (linux/neighbour.h): reachable, stale, delay, probe, noarp, permanent.
const NUD_VALID: u16 = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80;
/// Rules of both families: groups 8 and 19.
const RTMGRP_RULES: libc::c_int = 1 << 7 | 1 << 18;
/// A route to another host.
const RTN_UNICAST: u8 = 1;
/// An interface that is up and has a carrier (IFF_UP and IFF_RUNNING, netdevice(7)).
const RUNNING: u32 = libc::IFF_UP as u32 | libc::IFF_RUNNING as u32;
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

    /// The interface through which a packet from `src` to `dst` with this firewall mark leaves, from a socket that is bound to interface
    /// `bound` if it is. `None` if there is no route, or `src` is not an address of this host (IPv4 only: for IPv6 the kernel does not
    /// say).
    pub fn egress(&self, src: IpAddr, dst: IpAddr, mark: u32, bound: Option<u32>) -> io::Result<Option<u32>> {
        let request = Request::route(Some(src), dst, bound, mark);
        let mut buffer = [0; 2048];
        let Some((libc::RTM_NEWROUTE, body)) = self.ask(&request, &mut buffer)? else {
            return Ok(None);
        };
        let attributes = body.get(ROUTE_HEADER..).unwrap_or_default();
        Ok(find_attribute(attributes, RTA_OIF).and_then(|value| word(value, 0)))
    }
}

/// Where a packet goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// The interface that it leaves by.
    pub ifindex: u32,
    /// The neighbour: a gateway, or the destination itself.
    pub address: IpAddr,
    /// The address that the kernel would send from.
    pub source: Option<IpAddr>,
    /// The longest packet that the path is known to take, if the route or the network has said so, bytes.
    pub mtu: Option<u32>,
}

impl RouteQuery {
    /// The first hop of packets to `dst`, from `src` if there is one, through interface `ifindex` if there is one. `None` if there is no route to
    /// another host.
    pub fn next_hop(
        &self,
        src: Option<IpAddr>,
        dst: IpAddr,
        ifindex: Option<u32>,
        mark: u32,
    ) -> io::Result<Option<NextHop>> {
        let request = Request::route(src, dst, ifindex, mark);
        let mut buffer = [0; 2048];
        let Some((libc::RTM_NEWROUTE, body)) = self.ask(&request, &mut buffer)? else {
            return Ok(None);
        };
        let (Some(header), Some(attributes)) = (body.get(..ROUTE_HEADER), body.get(ROUTE_HEADER..)) else {
            return Ok(None);
        };
        let found = |kind| find_attribute(attributes, kind).and_then(ip_address);
        // An IPv4 route may lead over an IPv6 gateway (RFC 8950): two bytes of family, then the address.
        let via = find_attribute(attributes, RTA_VIA).and_then(|value| ip_address(value.get(2..)?));
        let oif = find_attribute(attributes, RTA_OIF).and_then(|value| word(value, 0));
        Ok(oif.filter(|_| header[7] == RTN_UNICAST).map(|ifindex| NextHop {
            ifindex,
            address: found(RTA_GATEWAY).or(via).unwrap_or(dst),
            source: found(RTA_PREFSRC),
            mtu: find_attribute(attributes, RTA_METRICS)
                .and_then(|metrics| find_attribute(metrics, RTAX_MTU))
                .and_then(|value| word(value, 0)),
        }))
    }

    /// The index of the interface with this name, if it is there, up, and has a carrier.
    pub fn running(&self, name: &str) -> io::Result<Option<u32>> {
        let mut padded = [0; VALUE_MAX];
        // The name ends with a zero.
        let Some(room) = padded[..VALUE_MAX - 1].get_mut(..name.len()) else {
            return Ok(None);
        };
        room.copy_from_slice(name.as_bytes());
        let mut request = Request::new(RTM_GETLINK, NLM_F_REQUEST, LINK_HEADER);
        request.attribute(IFLA_IFNAME, &padded);
        let mut buffer = vec![0; BUFFER];
        let Some((libc::RTM_NEWLINK, body)) = self.ask(&request, &mut buffer)? else {
            return Ok(None);
        };
        let (ifindex, flags) = (word(body, 4), word(body, 8).unwrap_or(0));
        Ok(ifindex.filter(|_| flags & RUNNING == RUNNING))
    }

    /// The Ethernet address of a neighbour, if the kernel knows it.
    pub fn neighbour(&self, ifindex: u32, address: IpAddr) -> io::Result<Option<[u8; 6]>> {
        let mut request = Request::new(libc::RTM_GETNEIGH, NLM_F_REQUEST, NEIGHBOUR_HEADER);
        request.put(MESSAGE_HEADER, &[family(address)]);
        request.put(MESSAGE_HEADER + 4, &ifindex.to_ne_bytes());
        request.address(NDA_DST, address);
        let mut buffer = [0; 2048];
        let Some((libc::RTM_NEWNEIGH, body)) = self.ask(&request, &mut buffer)? else {
            return Ok(None);
        };
        let state = body.get(8..10).map_or(0, |s| u16::from_ne_bytes([s[0], s[1]]));
        let attributes = body.get(NEIGHBOUR_HEADER..).unwrap_or_default();
        let mac = find_attribute(attributes, NDA_LLADDR).and_then(|mac| mac.try_into().ok());
        Ok(mac.filter(|_| state & NUD_VALID != 0))
    }

    /// Sends a question; the kind and the body of the answer.
    fn ask<'a>(&self, request: &Request, buffer: &'a mut [u8]) -> io::Result<Option<(u16, &'a [u8])>> {
        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::net::sendto(&self.socket, request.bytes(), SendFlags::empty(), &kernel)?;
        // The kernel has answered when the send returns.
        let datagram = receive(&self.socket, buffer)?;
        Ok(next_message(datagram).map(|(kind, body, _)| (kind, body)))
    }
}

/// Hears of neighbours, routes and addresses that change, in the namespace it was made in.
#[derive(Debug)]
pub struct NeighbourWatch {
    socket: OwnedFd,
    buffer: Box<[u8]>,
}

/// What has changed.
#[derive(Debug, Default)]
pub struct NeighbourChanges {
    /// Neighbours by interface and address.
    pub neighbours: Vec<(u32, IpAddr)>,
    /// A route, an address or an interface, or so much that some of it was not heard.
    pub routes: bool,
}

impl NeighbourWatch {
    /// Starts listening.
    pub fn new() -> io::Result<NeighbourWatch> {
        let groups = RTMGRP_RULES
            | libc::RTMGRP_NEIGH
            | libc::RTMGRP_LINK
            | libc::RTMGRP_IPV4_IFADDR
            | libc::RTMGRP_IPV6_IFADDR
            | libc::RTMGRP_IPV4_ROUTE
            | libc::RTMGRP_IPV6_ROUTE;
        Ok(NeighbourWatch {
            socket: open(groups as u32)?,
            buffer: vec![0; BUFFER].into(),
        })
    }

    /// Reads what has happened, without waiting; the descriptor stays readable if that was not all.
    pub fn read(&mut self) -> io::Result<NeighbourChanges> {
        let mut changes = NeighbourChanges::default();
        for _ in 0..READS_MAX {
            match receive(&self.socket, &mut self.buffer) {
                Ok(mut datagram) => {
                    while let Some((kind, body, rest)) = next_message(datagram) {
                        datagram = rest;
                        match kind {
                            libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => {
                                let attributes = body.get(NEIGHBOUR_HEADER..).unwrap_or_default();
                                let address = find_attribute(attributes, NDA_DST).and_then(ip_address);
                                changes.neighbours.extend(word(body, 4).zip(address));
                            }
                            _ => changes.routes = true,
                        }
                    }
                }
                Err(Errno::NOBUFS | Errno::MSGSIZE) => changes.routes = true,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(changes)
    }
}

impl AsFd for NeighbourWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn family(ip: IpAddr) -> u8 {
    (if ip.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    }) as u8
}

/// The value of an attribute that is an address.
fn ip_address(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
        _ => None,
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

    /// About the route to `dst`, from `src` and through interface `ifindex` if there are such.
    fn route(src: Option<IpAddr>, dst: IpAddr, ifindex: Option<u32>, mark: u32) -> Request {
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

    fn address(&mut self, kind: u16, ip: IpAddr) {
        match ip {
            IpAddr::V4(ip) => self.attribute(kind, &ip.octets()),
            IpAddr::V6(ip) => self.attribute(kind, &ip.octets()),
        }
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
