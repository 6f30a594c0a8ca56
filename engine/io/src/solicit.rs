//! Asks a gateway whether it is there: ARP (RFC 826) and neighbour discovery (RFC 4861, section 7.2), beside the kernel's own, which asks far more rarely
//! than a link has to be left.
//!
//! Belongs to the slow path, one [`Solicitor`] for each link. It is made before privileges are given up, and put on its link's interface as
//! often as that is another one, which takes none. Nothing of what it hears is believed but that somebody is there: where frames go stays the kernel's to say,
//! which hears the same answers.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, sockopt};

use crate::packet;
use crate::sys;

/// Ethernet header: destination, source, EtherType.
const ETHERNET: usize = 14;
/// An ARP message for IPv4 over Ethernet.
const ARP: usize = 28;
const ARP_KIND: [u8; 6] = [0, 1, 8, 0, 6, 4];
const ARP_REQUEST: [u8; 2] = [0, 1];
const ARP_REPLY: [u8; 2] = [0, 2];
const BROADCAST: [u8; 6] = [0xff; 6];
/// ICMPv6 types (RFC 4861, sections 4.3 and 4.4), and the option with the sender's link address.
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const SOURCE_LINK_ADDRESS: u8 = 1;
/// Bytes in front of a target address in both.
const ND_HEADER: usize = 8;
/// Both are from a neighbour only with this hop limit.
const HOP_LIMIT: u8 = 255;
/// Datagrams that one read takes at most; the descriptor stays readable for the rest.
const READS_MAX: usize = 64;
/// Of a filter of ICMPv6 types (RFC 3542, section 3.2): a bit is a type that is kept away. Linux: linux/icmpv6.h.
const ICMPV6_FILTER: libc::c_int = 1;
/// Which interface unicast datagrams leave by (linux/in6.h), in network byte order.
const IPV6_UNICAST_IF: libc::c_int = 76;

/// A question.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Solicitation {
    /// Who is asked.
    pub target: IpAddr,
    /// From which of our addresses; IPv6: the kernel chooses.
    pub source: Option<IpAddr>,
    /// The interface's Ethernet address.
    pub mac: [u8; 6],
    /// The target's, if it is known: then nobody else is asked.
    pub known: Option<[u8; 6]>,
}

/// Asks by one interface.
#[derive(Debug)]
pub struct Solicitor {
    arp: OwnedFd,
    /// None where the host has no IPv6.
    nd: Option<OwnedFd>,
    ifindex: u32,
}

impl Solicitor {
    /// On no interface yet. Takes CAP_NET_RAW.
    pub fn new() -> io::Result<Solicitor> {
        Ok(Solicitor {
            arp: packet::socket()?,
            nd: advertisements().ok(),
            ifindex: 0,
        })
    }

    /// Asks by this interface from now on.
    pub fn set_interface(&mut self, ifindex: u32) -> io::Result<()> {
        packet::bind(self.arp.as_fd(), ifindex, libc::ETH_P_ARP as u16)?;
        if let Some(nd) = &self.nd {
            let index = ifindex.to_be().cast_signed();
            sys::set_option(nd.as_fd(), libc::IPPROTO_IPV6, IPV6_UNICAST_IF, index)?;
        }
        self.ifindex = ifindex;
        Ok(())
    }

    /// Asks. What the network does not take is as good as a question without an answer.
    pub fn ask(&self, question: &Solicitation) -> io::Result<()> {
        match (question.target, question.source, &self.nd) {
            (IpAddr::V4(target), Some(IpAddr::V4(source)), _) => {
                let frame = arp_request(target, source, question.mac, question.known);
                rustix::net::send(&self.arp, &frame, SendFlags::DONTWAIT)?;
            }
            (IpAddr::V6(target), _, Some(nd)) => {
                let scope = if target.is_unicast_link_local() {
                    self.ifindex
                } else {
                    0
                };
                let to = SocketAddrV6::new(target, 0, 0, scope);
                rustix::net::sendto(nd, &solicitation(target, question.mac), SendFlags::DONTWAIT, &to)?;
            }
            _ => return Err(io::ErrorKind::Unsupported.into()),
        }
        Ok(())
    }

    /// Reads who has answered, without waiting, and appends them to `answers`.
    pub fn read(&self, answers: &mut Vec<IpAddr>) {
        let mut buffer = [0; 128];
        drain(&self.arp, &mut buffer, |frame, _| {
            answers.extend(arp_sender(frame).map(IpAddr::V4));
        });
        let Some(nd) = &self.nd else { return };
        drain(nd, &mut buffer, |message, from| {
            // The socket hears all interfaces. The same link-local address may be somebody's on each.
            let elsewhere = from.is_some_and(|scope| scope != 0 && scope != self.ifindex);
            answers.extend(advertised(message).filter(|_| !elsewhere).map(IpAddr::V6));
        });
    }

    /// Readable when somebody has answered.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.arp.as_fd()).chain(self.nd.as_ref().map(AsFd::as_fd))
    }
}

/// Takes what waits, with the scope that it came from, if that is known. A link that is down says so: then there is nothing.
fn drain(socket: &OwnedFd, buffer: &mut [u8], mut take: impl FnMut(&[u8], Option<u32>)) {
    for _ in 0..READS_MAX {
        match rustix::net::recvfrom(socket, &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((_, len, from)) => {
                let from = from.and_then(|from| SocketAddr::try_from(from).ok());
                let scope = match from {
                    Some(SocketAddr::V6(from)) => Some(from.scope_id()),
                    _ => None,
                };
                take(&buffer[..len.min(buffer.len())], scope);
            }
            Err(Errno::INTR | Errno::NETDOWN) => {}
            Err(_) => return,
        }
    }
}

/// A socket that hears neighbour advertisements and nothing else.
fn advertisements() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let protocol = Some(ipproto::ICMPV6);
    let socket = rustix::net::socket_with(AddressFamily::INET6, SocketType::RAW, flags, protocol)?;
    let mut filter = [u32::MAX; 8];
    filter[usize::from(ADVERTISEMENT >> 5)] &= !(1 << (ADVERTISEMENT & 31));
    sys::set_option_words(socket.as_fd(), libc::IPPROTO_ICMPV6, ICMPV6_FILTER, &filter)?;
    sockopt::set_ipv6_unicast_hops(&socket, Some(HOP_LIMIT))?;
    Ok(socket)
}

fn arp_request(target: Ipv4Addr, source: Ipv4Addr, mac: [u8; 6], known: Option<[u8; 6]>) -> Vec<u8> {
    let mut frame = Vec::with_capacity(ETHERNET + ARP);
    frame.extend(known.unwrap_or(BROADCAST));
    frame.extend(mac);
    frame.extend((libc::ETH_P_ARP as u16).to_be_bytes());
    frame.extend(ARP_KIND);
    frame.extend(ARP_REQUEST);
    frame.extend(mac);
    frame.extend(source.octets());
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame
}

/// Who says where he is, in a frame that is an ARP reply.
fn arp_sender(frame: &[u8]) -> Option<Ipv4Addr> {
    let message = frame.get(ETHERNET..ETHERNET + ARP)?;
    let is_reply = message[..6] == ARP_KIND && message[6..8] == ARP_REPLY;
    let sender: [u8; 4] = message[14..18].try_into().ok()?;
    is_reply.then_some(sender.into())
}

/// The kernel adds the check sum.
fn solicitation(target: Ipv6Addr, mac: [u8; 6]) -> Vec<u8> {
    let mut message = vec![0; ND_HEADER];
    message[0] = SOLICITATION;
    message.extend(target.octets());
    message.extend([SOURCE_LINK_ADDRESS, 1]);
    message.extend(mac);
    message
}

/// Whose link address a neighbour advertisement tells.
fn advertised(message: &[u8]) -> Option<Ipv6Addr> {
    let target = message.get(ND_HEADER..)?.first_chunk::<16>()?;
    (message[..2] == [ADVERTISEMENT, 0]).then_some((*target).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    #[test]
    fn a_request_is_not_taken_for_a_reply() {
        let (target, source) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2));
        let mut frame = arp_request(target, source, MAC, None);
        assert_eq!((frame.len(), &frame[..6]), (42, &BROADCAST[..]));
        assert_eq!(arp_request(target, source, MAC, Some(MAC))[..6], MAC);
        assert_eq!(arp_sender(&frame), None);
        frame[ETHERNET + 7] = 2;
        assert_eq!(arp_sender(&frame), Some(source));
    }

    #[test]
    fn a_solicitation_asks_for_its_target() {
        let target: Ipv6Addr = "fe80::1".parse().expect("an address");
        let mut message = solicitation(target, MAC);
        assert_eq!(message.len(), 32);
        assert_eq!(advertised(&message), None);
        message[0] = ADVERTISEMENT;
        assert_eq!(advertised(&message), Some(target));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            arp_sender(&bytes);
            advertised(&bytes);
        }
    }
}
