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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Puts the kernel's side of a message together.
    fn chain(messages: &[(libc::c_int, libc::c_int, &[u8])]) -> Vec<u8> {
        let mut all = Vec::new();
        for (level, kind, data) in messages {
            all.resize(aligned(all.len()), 0xee);
            all.extend((HEADER + data.len()).to_ne_bytes());
            all.extend(level.to_ne_bytes());
            all.extend(kind.to_ne_bytes());
            all.extend(*data);
        }
        all
    }

    const V4_INFO: [u8; 12] = [0, 0, 0, 0, 192, 0, 2, 1, 203, 0, 113, 9];

    fn v6_info(ifindex: u32) -> Vec<u8> {
        let ip: Ipv6Addr = "2001:db8::1".parse().expect("address");
        [&ip.octets()[..], &ifindex.to_ne_bytes()].concat()
    }

    #[test]
    fn r21_names_of_both_families() {
        for text in ["192.0.2.1:51820", "[2001:db8:1:2:3:4:5:6]:65535", "[fe80::1%7]:1"] {
            let address: SocketAddr = text.parse().expect("address");
            let mut name = Name([0xff; NAME]);
            let len = name.set(address);
            assert_eq!(len, if address.is_ipv4() { 16 } else { 28 });
            assert_eq!(read_name(&name.0[..len]), Some(address));
            (0..len).for_each(|short| assert_eq!(read_name(&name.0[..short]), None));
        }
        assert_eq!(read_name(&[0xff; NAME]), None);
    }

    #[test]
    fn everything_the_kernel_says_is_read() {
        let v4 = chain(&[
            (libc::IPPROTO_IP, libc::IP_PKTINFO, &V4_INFO),
            (libc::SOL_SOCKET, 29, &[1; 16]),
            (libc::IPPROTO_IP, libc::IP_TOS, &[0x8b]),
            (libc::SOL_UDP, libc::UDP_GRO, &1452_i32.to_ne_bytes()),
        ]);
        let local = Some([192, 0, 2, 1].into());
        assert_eq!(
            read_control(&v4),
            Ancillary {
                local,
                ifindex: 0,
                tos: 0x8b,
                segment: 1452
            }
        );
        let v6 = chain(&[
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &0x8b_i32.to_ne_bytes()),
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &v6_info(7)),
        ]);
        let local = "2001:db8::1".parse().ok();
        assert_eq!(
            read_control(&v6),
            Ancillary {
                local,
                ifindex: 7,
                tos: 0x8b,
                segment: 0
            }
        );
    }

    #[test]
    fn r47_impossible_lengths_end_the_chain() {
        let good = chain(&[(libc::IPPROTO_IP, libc::IP_TOS, &[3])]);
        for len in [0, 1, HEADER - 1, 1000, usize::MAX, usize::MAX - 6] {
            let mut bad = chain(&[(libc::IPPROTO_IP, libc::IP_PKTINFO, &V4_INFO)]);
            bad[..LEVEL].copy_from_slice(&len.to_ne_bytes());
            bad.resize(aligned(bad.len()), 0);
            assert_eq!(
                read_control(&[&bad[..], &good].concat()),
                Ancillary::default(),
                "length {len}"
            );
        }
        // Data too short for what it claims to be, negative sizes, and a chain cut off anywhere.
        let short = chain(&[
            (libc::IPPROTO_IP, libc::IP_PKTINFO, &V4_INFO[..7]),
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &[1; 19]),
            (libc::IPPROTO_IP, libc::IP_TOS, &[]),
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &[1; 3]),
            (libc::SOL_UDP, libc::UDP_GRO, &(-1_i32).to_ne_bytes()),
        ]);
        assert_eq!(read_control(&short), Ancillary::default());
        let whole = chain(&[
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &v6_info(7)),
            (libc::SOL_UDP, libc::UDP_GRO, &100_i32.to_ne_bytes()),
        ]);
        for end in 0..whole.len() {
            let found = read_control(&whole[..end]);
            assert_eq!((found.local.is_some(), found.segment), (end >= HEADER + 20, 0));
        }
    }

    #[test]
    fn what_is_sent_reads_back() {
        let remotes: [SocketAddr; 2] =
            ["192.0.2.9:1", "[2001:db8::9]:1"].map(|text| text.parse().expect("address"));
        let locals: [IpAddr; 2] = ["192.0.2.1", "2001:db8::1"].map(|text| text.parse().expect("address"));
        for (remote, local) in remotes.into_iter().zip(locals) {
            let mut outer = Outer::new(remote);
            let mut control = Control::EMPTY;
            assert_eq!(control.set(&outer, true, 0), 0, "nothing to say");
            outer.set_local(Some(local), 9);
            outer.set_tos(0x2e);
            let len = control.set(&outer, true, 1452);
            assert!(len <= CONTROL);
            // The interface is not forced; the segment size has another type on the way out.
            let expected = Ancillary {
                local: Some(local),
                ifindex: 0,
                tos: 0x2e,
                segment: 0,
            };
            assert_eq!(read_control(&control.0[..len]), expected);
            let segment = chain(&[(libc::SOL_UDP, libc::UDP_SEGMENT, &1452_u16.to_ne_bytes())]);
            let last = len - aligned(segment.len());
            assert_eq!(control.0[last..][..segment.len()], segment);
            let len = control.set(&outer, false, 0);
            assert_eq!(
                read_control(&control.0[..len]),
                Ancillary {
                    tos: 0x2e,
                    ..Ancillary::default()
                }
            );
        }
    }

    #[test]
    fn link_local_source_names_its_interface() {
        let mut outer = Outer::new("[fe80::9%4]:1".parse().expect("address"));
        outer.set_local("fe80::1".parse().ok(), 4);
        let mut control = Control::EMPTY;
        let len = control.set(&outer, true, 0);
        assert_eq!(read_control(&control.0[..len]).ifindex, 4);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn r47_any_bytes_are_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..300), small in any::<bool>()) {
            let mut bytes = bytes;
            if small {
                // Lengths that look possible reach deeper.
                bytes.chunks_mut(24).for_each(|chunk| chunk.iter_mut().take(8).skip(1).for_each(|byte| *byte = 0));
            }
            read_control(&bytes);
            read_name(&bytes);
        }
    }
}
