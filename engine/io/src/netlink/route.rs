//! Asks for single routes, interfaces and neighbours.

use std::io;
use std::net::IpAddr;

use super::message::{
    Asker, BUFFER, LINK_HEADER, NLM_F_REQUEST, ROUTE_HEADER, RTA_OIF, Request, VALUE_MAX, find_attribute,
    ip_address, word,
};
use super::neighbour::{self, Entry};

const RTM_GETLINK: u16 = libc::RTM_GETLINK;
const IFLA_IFNAME: u16 = 3;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTAX_MTU: u16 = 2;
const RTA_VIA: u16 = 18;
/// A route to another host.
const RTN_UNICAST: u8 = 1;
/// An interface that is up and has a carrier (IFF_UP and IFF_RUNNING, netdevice(7)).
const RUNNING: u32 = libc::IFF_UP as u32 | libc::IFF_RUNNING as u32;

/// Asks for routes, in the namespace it was made in.
#[derive(Debug)]
pub struct RouteQuery {
    asker: Asker,
}

impl RouteQuery {
    /// Takes no rights.
    pub fn new() -> io::Result<RouteQuery> {
        Ok(RouteQuery { asker: Asker::new()? })
    }

    /// The interface through which a packet from `src` to `dst` with this firewall mark leaves, from a socket that is bound to interface
    /// `bound` if it is. `None` if there is no route, or `src` is not an address of this host (IPv4 only: for IPv6 the kernel does not
    /// say).
    pub fn egress(&self, src: IpAddr, dst: IpAddr, mark: u32, bound: Option<u32>) -> io::Result<Option<u32>> {
        let request = Request::route(Some(src), dst, bound, mark);
        let mut buffer = [0; 2048];
        let answer = self.asker.ask(request, &mut buffer)?;
        if answer.kind != libc::RTM_NEWROUTE {
            return Ok(None);
        }
        let body = answer.body;
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
        let answer = self.asker.ask(request, &mut buffer)?;
        if answer.kind != libc::RTM_NEWROUTE {
            return Ok(None);
        }
        let body = answer.body;
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

    /// Whether the host has a route to `dst`, another host, through interface `ifindex`. (Sent by a socket that is bound to it, a packet without one would
    /// be taken for one to a neighbour.)
    pub fn leads_to(&self, dst: IpAddr, ifindex: u32, mark: u32) -> io::Result<bool> {
        let mut buffer = [0; 2048];
        let answer = self
            .asker
            .ask(Request::matching_route(dst, ifindex, mark), &mut buffer)?;
        Ok(answer.kind == libc::RTM_NEWROUTE && answer.body.get(7) == Some(&RTN_UNICAST))
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
        let answer = self.asker.ask(request, &mut buffer)?;
        if answer.kind != libc::RTM_NEWLINK {
            return Ok(None);
        }
        let body = answer.body;
        let (ifindex, flags) = (word(body, 4), word(body, 8).unwrap_or(0));
        Ok(ifindex.filter(|_| flags & RUNNING == RUNNING))
    }

    /// The Ethernet address of a neighbour, if the kernel knows it.
    pub fn neighbour(&self, ifindex: u32, address: IpAddr) -> io::Result<Option<[u8; 6]>> {
        let mut buffer = [0; 2048];
        let answer = self
            .asker
            .ask(neighbour::question(ifindex, address), &mut buffer)?;
        Ok(Entry::read(&answer).and_then(|entry| entry.link_address()))
    }
}
