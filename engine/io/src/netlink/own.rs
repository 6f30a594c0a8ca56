//! Addresses and routes that we have set at an interface, apart from those of others: the kernel keeps with each who has set it (a number), and shows it.
//!
//! [`OwnSettings`] belongs to the slow path. Whoever replaces this process finds what it has set, and goes on from there.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use rustix::io::Errno;

use super::message::{
    ADDRESS_HEADER, Asker, BUFFER, LINK_HEADER, MESSAGE_HEADER, Message, Messages, NLM_F_ACK, NLM_F_CREATE,
    NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, ROUTE_HEADER, RTA_DST,
    RTA_OIF, Request, family, find_attribute, ip_address, open, receive, send, word,
};

/// By which our addresses and routes are known: a number that `rt_protos` and `rt_addrprotos` of iproute2 give to nobody.
const PROTOCOL: u8 = 112;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// Linux 5.18 and later; older ones forget whose an address is.
const IFA_PROTO: u16 = 11;
/// Table, scope and kind of a route to a network that is on the link (`rtnetlink(7)`).
const RT_TABLE_MAIN: u8 = 254;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;
/// Datagrams of a table at most: as many as a million routes take.
const DATAGRAMS_MAX: usize = 1 << 16;

/// An address and the bits of its network's prefix, or a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPrefix {
    /// The address.
    pub addr: IpAddr,
    /// Bits of the prefix.
    pub len: u8,
}

/// Sets addresses and routes of one interface, in the namespace that it was made in. Takes CAP_NET_ADMIN there.
#[derive(Debug)]
pub struct OwnSettings {
    asker: Asker,
    ifindex: u32,
}

impl OwnSettings {
    /// For this interface.
    pub fn new(ifindex: u32) -> io::Result<OwnSettings> {
        Ok(OwnSettings {
            asker: Asker::new()?,
            ifindex,
        })
    }

    /// Sets the interface up, as its administrator would.
    pub fn set_up(&self) -> io::Result<()> {
        let up = (libc::IFF_UP as u32).to_ne_bytes();
        let mut request = Request::link(libc::RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK, self.ifindex);
        request.put(MESSAGE_HEADER + 8, &up);
        request.put(MESSAGE_HEADER + 12, &up);
        self.asker.order(request)
    }

    /// Our addresses that are there.
    pub fn addresses(&self) -> io::Result<BTreeSet<HostPrefix>> {
        self.table(libc::RTM_GETADDR, ADDRESS_HEADER, |message| {
            let attributes = message.body.get(ADDRESS_HEADER..)?;
            let is_ours = find_attribute(attributes, IFA_PROTO) == Some(&[PROTOCOL]);
            let is_here = word(message.body, 4) == Some(self.ifindex);
            let value =
                find_attribute(attributes, IFA_LOCAL).or_else(|| find_attribute(attributes, IFA_ADDRESS));
            let is_address = message.kind == libc::RTM_NEWADDR && is_ours && is_here;
            is_address.then_some(HostPrefix {
                addr: ip_address(value?)?,
                len: message.body[1],
            })
        })
    }

    /// Our routes that are there.
    pub fn routes(&self) -> io::Result<BTreeSet<HostPrefix>> {
        self.table(libc::RTM_GETROUTE, ROUTE_HEADER, |message| {
            let attributes = message.body.get(ROUTE_HEADER..)?;
            let [family, len, _, _, table, protocol, ..] = message.body[..] else {
                return None;
            };
            let oif = find_attribute(attributes, RTA_OIF).and_then(|value| word(value, 0));
            let is_ours = table == RT_TABLE_MAIN && protocol == PROTOCOL && oif == Some(self.ifindex);
            // The default route has no destination, and is never ours.
            let addr = ip_address(find_attribute(attributes, RTA_DST)?)?;
            let is_whole = self::family(addr) == family && message.kind == libc::RTM_NEWROUTE;
            (is_ours && is_whole).then_some(HostPrefix { addr, len })
        })
    }

    /// The host has this address there from now on.
    pub fn add_address(&self, address: HostPrefix) -> io::Result<()> {
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        let mut request = self.about_address(libc::RTM_NEWADDR, flags, address);
        request.attribute(IFA_PROTO, &[PROTOCOL]);
        self.asker.order(request)
    }

    /// And no longer. One that is not there is as good.
    pub fn remove_address(&self, address: HostPrefix) -> io::Result<()> {
        gone(
            self.asker
                .order(self.about_address(libc::RTM_DELADDR, 0, address)),
            libc::EADDRNOTAVAIL,
        )
    }

    /// The host routes this network into the interface from now on. `AlreadyExists` if it routes it already.
    pub fn add_route(&self, network: HostPrefix) -> io::Result<()> {
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        self.asker
            .order(self.about_route(libc::RTM_NEWROUTE, flags, network))
    }

    /// And no longer. One that is not there is as good.
    pub fn remove_route(&self, network: HostPrefix) -> io::Result<()> {
        gone(
            self.asker.order(self.about_route(libc::RTM_DELROUTE, 0, network)),
            libc::ESRCH,
        )
    }

    fn about_address(&self, kind: u16, flags: u16, address: HostPrefix) -> Request {
        let mut request = Request::new(kind, NLM_F_REQUEST | NLM_F_ACK | flags, ADDRESS_HEADER);
        request.put(MESSAGE_HEADER, &[family(address.addr), address.len]);
        request.put(MESSAGE_HEADER + 4, &self.ifindex.to_ne_bytes());
        request.address(IFA_LOCAL, address.addr);
        request.address(IFA_ADDRESS, address.addr);
        request
    }

    fn about_route(&self, kind: u16, flags: u16, network: HostPrefix) -> Request {
        let mut request = Request::new(kind, NLM_F_REQUEST | NLM_F_ACK | flags, ROUTE_HEADER);
        let scope = if network.addr.is_ipv4() {
            RT_SCOPE_LINK
        } else {
            RT_SCOPE_UNIVERSE
        };
        let header = [
            family(network.addr),
            network.len,
            0,
            0,
            RT_TABLE_MAIN,
            PROTOCOL,
            scope,
            RTN_UNICAST,
        ];
        request.put(MESSAGE_HEADER, &header);
        request.address(RTA_DST, network.addr);
        request.attribute(RTA_OIF, &self.ifindex.to_ne_bytes());
        request
    }

    /// What `read` finds in a table of the kernel's. It answers as it is read, so nothing waits here.
    fn table(
        &self,
        kind: u16,
        header: usize,
        read: impl Fn(&Message<'_>) -> Option<HostPrefix>,
    ) -> io::Result<BTreeSet<HostPrefix>> {
        let socket = open(0)?;
        send(&socket, &Request::new(kind, NLM_F_REQUEST | NLM_F_DUMP, header))?;
        let (mut buffer, mut found) = (vec![0; BUFFER], BTreeSet::new());
        for _ in 0..DATAGRAMS_MAX {
            let datagram = match receive(&socket, &mut buffer) {
                Ok(datagram) => datagram,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            for message in Messages(datagram) {
                match message.kind {
                    NLMSG_DONE => return Ok(found),
                    NLMSG_ERROR => {
                        let error = message.error().unwrap_or(libc::EPROTO);
                        return Err(io::Error::from_raw_os_error(error));
                    }
                    _ => found.extend(read(&message)),
                }
            }
        }
        Err(Errno::MSGSIZE.into())
    }
}

const _: () = assert!(LINK_HEADER >= 16, "flags and their mask are in it");

/// What is not there any more has gone by itself.
fn gone(removed: io::Result<()>, absent: i32) -> io::Result<()> {
    match removed {
        Err(error) if error.raw_os_error() == Some(absent) => Ok(()),
        other => other,
    }
}
