//! Addresses and control messages of a datagram, as the kernel writes and reads them: sockaddr_in, sockaddr_in6 and the
//! cmsg chain (ip(7), ipv6(7), RFC 3542). Pure, safe code: whatever the bytes are, nothing outside of them is read.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use patronus_mem::Outer;

/// Bytes of the larger of the two socket addresses.
pub(super) const NAME: usize = size_of::<libc::sockaddr_in6>();
const NAME_V4: usize = size_of::<libc::sockaddr_in>();

/// Bytes of control messages at most: on receive addresses, DSCP and the segment size; on send the same.
pub(super) const CONTROL: usize = 128;

/// A buffer for a socket address.
#[derive(Clone, Copy)]
#[repr(align(4))]
pub(super) struct Name(pub(super) [u8; NAME]);

/// A buffer for control messages.
#[derive(Clone, Copy)]
#[repr(align(8))]
pub(super) struct Control(pub(super) [u8; CONTROL]);

impl Name {
    pub(super) const EMPTY: Name = Name([0; NAME]);

    /// Writes an address; returns its length in bytes.
    pub(super) fn set(&mut self, address: SocketAddr) -> usize {
        self.0[2..4].copy_from_slice(&address.port().to_be_bytes());
        match address {
            SocketAddr::V4(v4) => {
                self.0[..2].copy_from_slice(&(libc::AF_INET as libc::sa_family_t).to_ne_bytes());
                self.0[4..8].copy_from_slice(&v4.ip().octets());
                self.0[8..NAME_V4].fill(0);
                NAME_V4
            }
            SocketAddr::V6(v6) => {
                self.0[..2].copy_from_slice(&(libc::AF_INET6 as libc::sa_family_t).to_ne_bytes());
                self.0[4..8].copy_from_slice(&v6.flowinfo().to_be_bytes());
                self.0[8..24].copy_from_slice(&v6.ip().octets());
                self.0[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
                NAME
            }
        }
    }
}

/// Reads a socket address; `None` if it is of no known family or too short for its family.
pub(super) fn read_name(name: &[u8]) -> Option<SocketAddr> {
    let family = libc::c_int::from(libc::sa_family_t::from_ne_bytes(field(name, 0)?));
    let port = u16::from_be_bytes(field(name, 2)?);
    if family == libc::AF_INET && name.len() >= NAME_V4 {
        return Some(SocketAddr::new(Ipv4Addr::from(field::<4>(name, 4)?).into(), port));
    }
    if family == libc::AF_INET6 && name.len() >= NAME {
        let ip = Ipv6Addr::from(field::<16>(name, 8)?);
        let scope = u32::from_ne_bytes(field(name, 24)?);
        return Some(SocketAddrV6::new(ip, port, 0, scope).into());
    }
    None
}

/// `N` bytes from byte `at`, if there are so many.
fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// What the kernel says about a received datagram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ancillary {
    /// Our own address: where it arrived.
    pub(super) local: Option<IpAddr>,
    /// The interface that it arrived on; 0 if not said.
    pub(super) ifindex: u32,
    /// The DSCP and ECN byte.
    pub(super) tos: u8,
    /// The size of the datagrams that were coalesced into this one; 0 if it is a single one.
    pub(super) segment: usize,
}

const HEADER: usize = size_of::<libc::cmsghdr>();
const LEVEL: usize = size_of::<usize>();
const KIND: usize = LEVEL + 4;

const fn aligned(len: usize) -> usize {
    len.next_multiple_of(align_of::<libc::cmsghdr>())
}

/// Reads the chain of control messages. It ends at the first one whose length is impossible; unknown ones are skipped.
pub(super) fn read_control(mut chain: &[u8]) -> Ancillary {
    let mut found = Ancillary::default();
    while let Some((level, kind, data, rest)) = next_message(chain) {
        read_message(level, kind, data, &mut found);
        chain = rest;
    }
    found
}

/// Takes the first message apart: level, type, data, and the chain behind it.
fn next_message(chain: &[u8]) -> Option<(libc::c_int, libc::c_int, &[u8], &[u8])> {
    let len = usize::from_ne_bytes(field(chain, 0)?);
    let level = libc::c_int::from_ne_bytes(field(chain, LEVEL)?);
    let kind = libc::c_int::from_ne_bytes(field(chain, KIND)?);
    let data = chain.get(HEADER..len)?;
    let next = len.checked_next_multiple_of(align_of::<libc::cmsghdr>())?;
    Some((level, kind, data, chain.get(next..).unwrap_or(&[])))
}

fn read_message(level: libc::c_int, kind: libc::c_int, data: &[u8], found: &mut Ancillary) {
    match (level, kind) {
        (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
            // struct in_pktinfo: interface, the address to answer from, the address in the header.
            if let (Some(ifindex), Some(ip)) = (field(data, 0), field::<4>(data, 4)) {
                found.ifindex = u32::from_ne_bytes(ifindex);
                found.local = Some(Ipv4Addr::from(ip).into());
            }
        }
        (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
            // struct in6_pktinfo: address, interface.
            if let (Some(ip), Some(ifindex)) = (field::<16>(data, 0), field(data, 16)) {
                found.ifindex = u32::from_ne_bytes(ifindex);
                found.local = Some(Ipv6Addr::from(ip).into());
            }
        }
        (libc::IPPROTO_IP, libc::IP_TOS) => found.tos = data.first().copied().unwrap_or(0),
        (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
            found.tos = field(data, 0).map_or(0, |value| libc::c_int::from_ne_bytes(value) as u8);
        }
        (libc::SOL_UDP, libc::UDP_GRO) => {
            let size = field(data, 0).map_or(0, libc::c_int::from_ne_bytes);
            found.segment = usize::try_from(size).unwrap_or(0);
        }
        _ => {}
    }
}

impl Control {
    pub(super) const EMPTY: Control = Control([0; CONTROL]);

    /// Writes what a datagram to `outer.remote()` needs: the source address if `source` is set, the DSCP and ECN byte if it is
    /// not 0, and the segment size if `segment` is not 0. Returns the length in bytes, 0 if nothing is needed.
    pub(super) fn set(&mut self, outer: &Outer, source: bool, segment: u16) -> usize {
        let mut end = 0;
        match outer.local().filter(|_| source) {
            Some(IpAddr::V4(ip)) => {
                let mut info = [0; size_of::<libc::in_pktinfo>()];
                info[4..8].copy_from_slice(&ip.octets());
                end = self.put(end, libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            }
            Some(IpAddr::V6(ip)) => {
                let mut info = [0; size_of::<libc::in6_pktinfo>()];
                info[..16].copy_from_slice(&ip.octets());
                // Only a link-local address needs an interface; for the others routing decides.
                if ip.is_unicast_link_local() {
                    info[16..20].copy_from_slice(&outer.ifindex().to_ne_bytes());
                }
                end = self.put(end, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
            None => {}
        }
        if outer.tos() != 0 {
            let (level, kind) = match outer.is_ipv6() {
                false => (libc::IPPROTO_IP, libc::IP_TOS),
                true => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
            };
            end = self.put(end, level, kind, &libc::c_int::from(outer.tos()).to_ne_bytes());
        }
        if segment != 0 {
            end = self.put(end, libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
        }
        end
    }

    /// Writes one message at `start`; returns where the next one begins.
    fn put(&mut self, start: usize, level: libc::c_int, kind: libc::c_int, data: &[u8]) -> usize {
        let message = &mut self.0[start..];
        message[..LEVEL].copy_from_slice(&(HEADER + data.len()).to_ne_bytes());
        message[LEVEL..KIND].copy_from_slice(&level.to_ne_bytes());
        message[KIND..KIND + 4].copy_from_slice(&kind.to_ne_bytes());
        message[HEADER..HEADER + data.len()].copy_from_slice(data);
        start + HEADER + aligned(data.len())
    }
}

/// The longest chain that `set` writes fits.
const _: () =
    assert!(3 * HEADER + aligned(size_of::<libc::in6_pktinfo>()) + aligned(4) + aligned(2) <= CONTROL);
