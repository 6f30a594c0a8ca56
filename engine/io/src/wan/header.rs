//! Ethernet, IP and UDP headers of the datagrams on a WAN link: put in front of a packet, and taken off.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use patronus_mem::{Outer, PktBuf, Unfinished};

use crate::ip::{
    IPV4_HEADER as IPV4, IPV6_HEADER as IPV6, PROTO_UDP, Sum, UDP_HEADER as UDP, pseudo_sum, update,
};

pub(super) const ETHERNET: usize = 14;
const TTL: u8 = 64;

/// How every frame on a path begins, but for lengths, checksums, and the DSCP and ECN byte.
#[derive(Clone, Debug)]
pub(super) struct Way {
    bytes: [u8; ETHERNET + IPV6 + UDP],
    ipv6: bool,
    /// Longest IP packet, bytes.
    mtu: usize,
    /// The next IPv4 packet's identification: routers may cut it up, as with the kernel's sockets.
    identification: u16,
    /// Of what all packets have in their IPv4 headers, in their pseudo headers, and in these and the UDP headers.
    ip_sum: Sum,
    pseudo_sum: Sum,
    udp_sum: Sum,
}

/// Where they lead, not how far they got.
impl PartialEq for Way {
    fn eq(&self, other: &Way) -> bool {
        (self.bytes, self.mtu) == (other.bytes, other.mtu)
    }
}

impl Way {
    /// `None` if the addresses are not of the same family.
    pub(super) fn new(
        own: [u8; 6],
        neighbour: [u8; 6],
        mtu: usize,
        from: SocketAddr,
        to: SocketAddr,
    ) -> Option<Way> {
        let mut bytes = [0; ETHERNET + IPV6 + UDP];
        bytes[..6].copy_from_slice(&neighbour);
        bytes[6..12].copy_from_slice(&own);
        let ip = &mut bytes[ETHERNET..];
        let (ipv6, udp) = match (from.ip(), to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                (ip[0], ip[8], ip[9]) = (0x45, TTL, PROTO_UDP);
                ip[12..16].copy_from_slice(&from.octets());
                ip[16..20].copy_from_slice(&to.octets());
                (false, IPV4)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                (ip[0], ip[6], ip[7]) = (0x60, PROTO_UDP, TTL);
                ip[8..24].copy_from_slice(&from.octets());
                ip[24..40].copy_from_slice(&to.octets());
                (true, IPV6)
            }
            _ => return None,
        };
        ip[udp..udp + 2].copy_from_slice(&from.port().to_be_bytes());
        ip[udp + 2..udp + 4].copy_from_slice(&to.port().to_be_bytes());
        let ethertype = if ipv6 { 0x86ddu16 } else { 0x0800 };
        bytes[12..14].copy_from_slice(&ethertype.to_be_bytes());
        let (header, after) = bytes[ETHERNET..].split_at(udp);
        let addresses = if ipv6 { &header[8..40] } else { &header[12..20] };
        let pseudo_sum = pseudo_sum(addresses, PROTO_UDP, 0);
        Some(Way {
            ipv6,
            mtu,
            identification: 0,
            ip_sum: Sum::of(header),
            pseudo_sum,
            udp_sum: pseudo_sum.bytes(&after[..4]),
            bytes,
        })
    }

    /// Puts the headers in front of a datagram's payload; false, and nothing is changed, if that would be too long for the path. The checksums of IPv4 and
    /// of IPv6 packets are left to the port if it `finishes` them.
    #[inline]
    pub(super) fn wrap(&mut self, pkt: &mut PktBuf, finishes: [bool; 2]) -> bool {
        match self.ipv6 {
            false => self.wrap_v4(pkt, finishes[0]),
            true => self.wrap_v6(pkt, finishes[1]),
        }
    }

    #[inline]
    fn wrap_v4(&mut self, pkt: &mut PktBuf, port_finishes: bool) -> bool {
        const HEADERS: usize = ETHERNET + IPV4 + UDP;
        let datagram = UDP + pkt.len();
        let total = IPV4 + datagram;
        if total > self.mtu || pkt.headroom() < HEADERS {
            return false;
        }
        let (tos, id) = (pkt.outer().tos(), self.identification.to_be_bytes());
        self.identification = self.identification.wrapping_add(1);
        let (total, datagram) = ((total as u16).to_be_bytes(), (datagram as u16).to_be_bytes());
        let udp_checksum = self.udp_checksum(pkt, datagram, port_finishes);
        let headers: &mut [u8; HEADERS] = prepend(pkt);
        headers.copy_from_slice(&self.bytes[..HEADERS]);
        headers[15] = tos;
        headers[16..18].copy_from_slice(&total);
        headers[18..20].copy_from_slice(&id);
        if !port_finishes {
            let sum = self.ip_sum.word([0, tos]).word(total).word(id);
            headers[24..26].copy_from_slice(&sum.checksum());
        }
        headers[38..40].copy_from_slice(&datagram);
        headers[40..42].copy_from_slice(&udp_checksum);
        true
    }

    #[inline]
    fn wrap_v6(&mut self, pkt: &mut PktBuf, port_finishes: bool) -> bool {
        const HEADERS: usize = ETHERNET + IPV6 + UDP;
        let datagram = UDP + pkt.len();
        if IPV6 + datagram > self.mtu || pkt.headroom() < HEADERS {
            return false;
        }
        let (tos, datagram) = (pkt.outer().tos(), (datagram as u16).to_be_bytes());
        let udp_checksum = self.udp_checksum(pkt, datagram, port_finishes);
        let headers: &mut [u8; HEADERS] = prepend(pkt);
        headers.copy_from_slice(&self.bytes);
        headers[14] |= tos >> 4;
        headers[15] = tos << 4;
        headers[18..20].copy_from_slice(&datagram);
        headers[58..60].copy_from_slice(&datagram);
        headers[60..62].copy_from_slice(&udp_checksum);
        true
    }

    /// What stands in the UDP checksum's place: the checksum, or the pseudo header's sum if the port goes on from there.
    #[inline]
    fn udp_checksum(&self, pkt: &mut PktBuf, datagram: [u8; 2], port_finishes: bool) -> [u8; 2] {
        if port_finishes {
            pkt.leave_unfinished(Some(match self.ipv6 {
                false => Unfinished::UdpV4,
                true => Unfinished::UdpV6,
            }));
            return self.pseudo_sum.word(datagram).partial();
        }
        // The length is in the pseudo header as well.
        let sum = self.udp_sum.word(datagram).word(datagram) + Sum::of(pkt.data());
        sum.transport_checksum()
    }
}

#[inline]
fn prepend<const N: usize>(pkt: &mut PktBuf) -> &mut [u8; N] {
    pkt.prepend(N).try_into().expect("so many bytes")
}

/// Says in a frame that was [wrapped](Way::wrap), its checksums made, that no router may cut the packet up. Nobody may in IPv6 anyway.
#[cold]
pub(super) fn keep_whole(pkt: &mut PktBuf) {
    const DF: u8 = 0x40;
    let frame = pkt.data_mut();
    if frame[12..14] == [0x08, 0x00] {
        let header = &mut frame[ETHERNET..ETHERNET + IPV4];
        let (old, new) = ([header[6], header[7]], [header[6] | DF, header[7]]);
        let sum = update([header[10], header[11]], old, new);
        header[6] = new[0];
        header[10..12].copy_from_slice(&sum);
    }
}

/// Takes the headers off a frame with a datagram to us, and writes down where it came from. False for a frame
/// whose lengths contradict each other, whose IPv4 header does not verify, or that comes from an address that nobody can have. The UDP checksum is not looked at: what is in the
/// datagram is authenticated by stronger means, and frames from a veth may not have it yet.
#[inline]
pub(super) fn unwrap(pkt: &mut PktBuf, ifindex: u32) -> bool {
    let Some((payload, outer)) = read(pkt.data(), ifindex) else {
        return false;
    };
    pkt.truncate(payload.end);
    pkt.trim_front(payload.start);
    *pkt.outer_mut() = outer;
    true
}

/// Where the payload is, and the addresses.
fn read(frame: &[u8], ifindex: u32) -> Option<(std::ops::Range<usize>, Outer)> {
    let packet = frame.get(ETHERNET..)?;
    let (version, header) = match frame[12..14] {
        [0x08, 0x00] => (4, IPV4),
        [0x86, 0xdd] => (6, IPV6),
        _ => return None,
    };
    let (ip, rest) = packet.split_at_checked(header)?;
    if ip[0] >> 4 != version {
        return None;
    }
    let be = |bytes: &[u8], at: usize| usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
    let ip_payload = match version {
        4 if ip[0] != 0x45 || !Sum::of(ip).is_valid() => return None,
        4 => be(ip, 2).checked_sub(IPV4)?,
        _ => be(ip, 4),
    };
    let (udp, after) = rest.get(..ip_payload)?.split_at_checked(UDP)?;
    let len = be(udp, 4).checked_sub(UDP)?;
    if len > after.len() {
        return None;
    }
    let port = be(udp, 0) as u16;
    let (remote, local, tos) = if version == 4 {
        let address = |at: usize| Ipv4Addr::new(ip[at], ip[at + 1], ip[at + 2], ip[at + 3]);
        (
            SocketAddr::new(address(12).into(), port),
            address(16).into(),
            ip[1],
        )
    } else {
        let address = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&ip[at..at + 16]).expect("16 octets"));
        let remote = SocketAddrV6::new(address(8), port, 0, ifindex);
        (remote.into(), IpAddr::V6(address(24)), ip[0] << 4 | ip[1] >> 4)
    };
    if port == 0 || !may_send(remote.ip()) {
        return None;
    }
    let mut outer = Outer::new(remote);
    outer.set_local(Some(local), ifindex);
    outer.set_tos(tos);
    let start = ETHERNET + header + UDP;
    Some((start..start + len, outer))
}

/// Whether an address can be that of a host on a network (RFC 1122, section 3.2.1.3; RFC 4291).
fn may_send(ip: IpAddr) -> bool {
    let never = match ip {
        IpAddr::V4(ip) => ip.octets()[0] == 0 || ip.octets()[0] >= 224 || ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_unspecified() || ip.is_multicast() || ip.is_loopback(),
    };
    !never
}

#[cfg(test)]
mod tests {
    use super::*;
    use patronus_mem::{Arena, ArenaConfig, FrameCache};
    use proptest::prelude::*;

    fn way(v6: bool) -> Way {
        let (from, to) = if v6 {
            ("[2001:db8::1]:51820", "[2001:db8::2]:4000")
        } else {
            ("192.0.2.1:51820", "192.0.2.2:4000")
        };
        let [from, to] = [from, to].map(|a| a.parse().expect("address"));
        Way::new([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2], 1500, from, to).expect("one family")
    }

    fn frames() -> FrameCache {
        let config = ArenaConfig {
            frames: 4,
            jumbo_frames: 0,
        };
        FrameCache::new(Arena::new(&config).expect("arena"))
    }

    #[test]
    fn what_is_wrapped_verifies_and_unwraps() {
        let mut frames = frames();
        for v6 in [false, true] {
            for len in [0, 1, 31, 32, 100, 1400] {
                let mut pkt = frames.alloc().expect("a frame");
                let payload: Vec<u8> = (0..len).map(|n| (n * 7) as u8).collect();
                pkt.append(len).copy_from_slice(&payload);
                pkt.outer_mut().set_tos(0xb9);
                assert!(way(v6).wrap(&mut pkt, [false; 2]));
                let frame = pkt.data().to_vec();
                let header = if v6 { IPV6 } else { IPV4 };
                let (ip, udp) = frame[ETHERNET..].split_at(header);
                assert!(v6 || Sum::of(ip).is_valid());
                let addresses = if v6 { &ip[8..40] } else { &ip[12..20] };
                assert!(pseudo_sum(addresses, 17, udp.len()).bytes(udp).is_valid());
                // Ethernet pads short frames.
                pkt.append(9).fill(0xee);
                assert!(unwrap(&mut pkt, 3));
                assert_eq!(pkt.data(), payload);
                let outer = pkt.outer();
                assert_eq!(outer.remote().expect("remote").port(), 51820);
                assert_eq!((outer.tos(), outer.ifindex()), (0xb9, 3));
                let own = if v6 { "2001:db8::2" } else { "192.0.2.2" };
                assert_eq!(outer.local(), own.parse().ok());
                frames.free(pkt);
            }
        }
    }

    #[test]
    fn what_is_left_to_the_port_makes_the_same_frame() {
        let mut frames = frames();
        for (v6, kind) in [(false, Unfinished::UdpV4), (true, Unfinished::UdpV6)] {
            let mut wrapped = [[false; 2], [true; 2]].map(|finishes| {
                let mut pkt = frames.alloc().expect("a frame");
                pkt.append(77).fill(0xa7);
                pkt.outer_mut().set_tos(0xb9);
                assert!(way(v6).wrap(&mut pkt, finishes));
                assert_eq!(pkt.unfinished(), finishes[0].then_some(kind));
                pkt
            });
            let udp = ETHERNET + if v6 { IPV6 } else { IPV4 };
            let frame = wrapped[1].data_mut();
            let checksum = Sum::of(&frame[udp..]).transport_checksum();
            frame[udp + 6..udp + 8].copy_from_slice(&checksum);
            if !v6 {
                let checksum = Sum::of(&frame[ETHERNET..udp]).checksum();
                frame[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&checksum);
            }
            assert_eq!(wrapped[0].data(), wrapped[1].data());
            wrapped.into_iter().for_each(|pkt| frames.free(pkt));
        }
    }

    #[test]
    fn what_is_to_stay_whole_says_so_and_verifies() {
        let mut frames = frames();
        for v6 in [false, true] {
            let mut pkt = frames.alloc().expect("a frame");
            pkt.append(100).fill(7);
            assert!(way(v6).wrap(&mut pkt, [false; 2]));
            let before = pkt.data().to_vec();
            keep_whole(&mut pkt);
            match v6 {
                false => assert_eq!(pkt.data()[ETHERNET + 6..][..2], [0x40, 0]),
                true => assert_eq!(pkt.data(), before),
            }
            assert!(unwrap(&mut pkt, 3), "the header verifies");
            frames.free(pkt);
        }
    }

    #[test]
    fn what_is_too_long_is_left_as_it_is() {
        let mut frames = frames();
        let mut pkt = frames.alloc().expect("a frame");
        pkt.append(1473);
        assert!(!way(false).wrap(&mut pkt, [false; 2]));
        assert_eq!(pkt.len(), 1473);
        pkt.truncate(1472);
        assert!(way(false).wrap(&mut pkt, [false; 2]));
    }

    #[test]
    fn nobody_sends_from_these_addresses() {
        let mut frames = frames();
        for from in [
            "0.0.0.1",
            "127.0.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "ff02::1",
        ] {
            let from: IpAddr = from.parse().expect("address");
            let to = if from.is_ipv4() {
                "192.0.2.2"
            } else {
                "2001:db8::2"
            };
            let to = SocketAddr::new(to.parse().expect("address"), 4000);
            let mut pkt = frames.alloc().expect("a frame");
            let mut way = Way::new([2; 6], [2; 6], 1500, SocketAddr::new(from, 5), to).expect("one family");
            assert!(way.wrap(&mut pkt, [false; 2]) && !unwrap(&mut pkt, 3), "{from}");
            frames.free(pkt);
        }
    }

    proptest! {
        #[test]
        fn no_frame_panics_and_no_damage_of_an_ipv4_header_is_missed(
            v6: bool, len in 0..200usize, cut in 0..262usize, at in 0..62usize, flip in 1..=255u8,
        ) {
            static ARENA: std::sync::OnceLock<&Arena> = std::sync::OnceLock::new();
            let mut frames = FrameCache::new(ARENA.get_or_init(|| frames().arena()));
            let mut pkt = frames.alloc().expect("a frame");
            pkt.append(len).fill(5);
            prop_assert!(way(v6).wrap(&mut pkt, [false; 2]));
            let whole = pkt.len();
            let header = whole - len;
            if at < header {
                pkt.data_mut()[at] ^= flip;
            }
            pkt.truncate(cut);
            let damaged_ip = (ETHERNET..ETHERNET + IPV4).contains(&at) && !v6;
            let taken = unwrap(&mut pkt, 3);
            prop_assert!(!(taken && damaged_ip), "the IPv4 header verifies");
            prop_assert!(!taken || pkt.len() <= len + 255);
            if taken && cut >= whole && !(12..14).contains(&at) && at < ETHERNET {
                prop_assert_eq!(pkt.len(), len);
            }
        }
    }
}
