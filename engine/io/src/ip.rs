//! Inner IP, TCP and UDP headers, and the Internet checksum.
//!
//! Everything here reads bytes that somebody else wrote: a packet from the kernel's TUN queue or the
//! plaintext that a peer sealed. Nothing panics and nothing allocates, whatever the bytes are. The
//! TUN port's offload code and the engine's stages call these functions per packet on their worker
//! thread; the functions themselves know nothing of threads or ports.
//!
//! Sources: RFC 791 (IPv4), RFC 8200 (IPv6), RFC 1071 and RFC 1624 (checksum), RFC 3168 (ECN).

mod checksum;
mod flow;

use core::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use checksum::{Sum, copy_and_sum, pseudo_sum, update};
pub use flow::FlowKey;

/// Length of an IPv4 header without options, in bytes (RFC 791).
pub const IPV4_HEADER: usize = 20;
/// Length of the fixed IPv6 header, in bytes (RFC 8200).
pub const IPV6_HEADER: usize = 40;
/// Length of a UDP header, in bytes (RFC 768).
pub const UDP_HEADER: usize = 8;
/// Length of a TCP header without options, in bytes (RFC 9293).
pub const TCP_HEADER: usize = 20;

/// Protocol number of ICMP for IPv4.
pub const PROTO_ICMP: u8 = 1;
/// Protocol number of TCP.
pub const PROTO_TCP: u8 = 6;
/// Protocol number of UDP.
pub const PROTO_UDP: u8 = 17;
/// Protocol number of ICMP for IPv6.
pub const PROTO_ICMPV6: u8 = 58;

/// How many IPv6 extension headers are followed before a packet is given up as malformed. RFC 8200
/// lets each kind occur once (destination options twice), which makes eight.
const EXTENSIONS_MAX: usize = 8;

/// Whether a next-header number of IPv6 is that of an extension header, which another header follows (RFC 8200, section 4; RFC 4302; RFC 7045).
#[inline]
pub fn is_extension(next: u8) -> bool {
    matches!(next, 0 | 43 | 44 | 51 | 60 | 135 | 139 | 140)
}

/// The two ECN bits of the traffic class byte (RFC 3168, section 5).
pub const ECN_MASK: u8 = 0b11;

/// Which IP a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Why bytes are not a usable IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// The first nibble is neither 4 nor 6, or there is no first nibble.
    NotIp,
    /// Shorter than the header of its version.
    Truncated,
    /// IPv4 header length below 20, or more than the packet.
    HeaderLength,
    /// The declared total length is below the header's length or above what was received.
    TotalLength,
    /// A chain of IPv6 extension headers that is too long or runs off the packet.
    Extensions,
    /// A TCP or UDP header that does not fit or contradicts the packet's length.
    Transport,
    /// Offload metadata that does not describe the packet it came with.
    Offload,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Malformed::NotIp => "not an IP packet",
            Malformed::Truncated => "shorter than its IP header",
            Malformed::HeaderLength => "bad IP header length",
            Malformed::TotalLength => "bad IP total length",
            Malformed::Extensions => "bad chain of IPv6 extension headers",
            Malformed::Transport => "bad TCP or UDP header",
            Malformed::Offload => "bad offload metadata",
        })
    }
}

impl std::error::Error for Malformed {}

/// An IP packet whose lengths were checked: exactly the bytes that its header declares.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    bytes: &'a [u8],
    header_len: usize,
    version: Version,
}

impl<'a> Packet<'a> {
    /// Checks version, header length and total length of the packet at the front of `bytes`. Bytes
    /// behind the declared total length (WireGuard's padding) are legal and cut off.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Packet<'a>, Malformed> {
        match bytes.first().map(|b| b >> 4) {
            Some(4) => Self::parse_v4(bytes),
            Some(6) => Self::parse_v6(bytes),
            _ => Err(Malformed::NotIp),
        }
    }

    #[inline]
    fn parse_v4(bytes: &'a [u8]) -> Result<Packet<'a>, Malformed> {
        if bytes.len() < IPV4_HEADER {
            return Err(Malformed::Truncated);
        }
        let header_len = usize::from(bytes[0] & 0x0f) * 4;
        if header_len < IPV4_HEADER || header_len > bytes.len() {
            return Err(Malformed::HeaderLength);
        }
        let total = usize::from(be16(bytes, 2));
        if total < header_len || total > bytes.len() {
            return Err(Malformed::TotalLength);
        }
        Ok(Packet {
            bytes: &bytes[..total],
            header_len,
            version: Version::V4,
        })
    }

    #[inline]
    fn parse_v6(bytes: &'a [u8]) -> Result<Packet<'a>, Malformed> {
        if bytes.len() < IPV6_HEADER {
            return Err(Malformed::Truncated);
        }
        let total = IPV6_HEADER + usize::from(be16(bytes, 4));
        if total > bytes.len() {
            return Err(Malformed::TotalLength);
        }
        Ok(Packet {
            bytes: &bytes[..total],
            header_len: IPV6_HEADER,
            version: Version::V6,
        })
    }

    /// IPv4 or IPv6.
    #[inline]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The packet's bytes, header included, without anything behind the declared length.
    #[inline]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Bytes of IP header: with options for IPv4, the fixed 40 for IPv6.
    #[inline]
    pub fn header_len(&self) -> usize {
        self.header_len
    }

    /// Bytes of the whole packet as its header declares them.
    #[inline]
    pub fn total_len(&self) -> usize {
        self.bytes.len()
    }

    /// The source address.
    #[inline]
    pub fn src(&self) -> IpAddr {
        match self.version {
            Version::V4 => IpAddr::V4(v4_at(self.bytes, 12)),
            Version::V6 => IpAddr::V6(v6_at(self.bytes, 8)),
        }
    }

    /// The destination address.
    #[inline]
    pub fn dst(&self) -> IpAddr {
        match self.version {
            Version::V4 => IpAddr::V4(v4_at(self.bytes, 16)),
            Version::V6 => IpAddr::V6(v6_at(self.bytes, 24)),
        }
    }

    /// The type of service or traffic class byte: DSCP in the upper six bits, ECN in the lower two.
    #[inline]
    pub fn tos(&self) -> u8 {
        match self.version {
            Version::V4 => self.bytes[1],
            Version::V6 => (self.bytes[0] << 4) | (self.bytes[1] >> 4),
        }
    }

    /// Whether routers may not cut the packet up: all of IPv6, and IPv4 with the DF bit.
    #[inline]
    pub fn must_not_be_cut(&self) -> bool {
        self.version == Version::V6 || self.bytes[6] & 0x40 != 0
    }

    /// Finds the transport header, behind IPv4 options or IPv6 extension headers.
    #[inline]
    pub fn transport(&self) -> Result<Transport, Malformed> {
        match self.version {
            Version::V4 => {
                let fragment_word = be16(self.bytes, 6) & 0x3fff;
                Ok(Transport {
                    protocol: self.bytes[9],
                    offset: self.header_len,
                    fragment: fragment_word != 0,
                    first: fragment_word & 0x1fff == 0,
                })
            }
            Version::V6 => self.transport_v6(),
        }
    }

    fn transport_v6(&self) -> Result<Transport, Malformed> {
        let mut found = Transport {
            protocol: self.bytes[6],
            offset: IPV6_HEADER,
            fragment: false,
            first: true,
        };
        for _ in 0..=EXTENSIONS_MAX {
            let rest = self.bytes.get(found.offset..).unwrap_or_default();
            let len = match (found.protocol, rest) {
                // Hop-by-hop, routing, destination options, mobility, HIP, shim6: units of 8 behind the first 8.
                (0 | 43 | 60 | 135 | 139 | 140, [_, units, ..]) => (usize::from(*units) + 1) * 8,
                // Authentication header: units of 4 less 2 (RFC 4302).
                (51, [_, units, ..]) => (usize::from(*units) + 2) * 4,
                (44, [_, _, hi, lo, ..]) => {
                    found.fragment |= (hi, lo & 0xf9) != (&0, 0);
                    found.first = (*hi, lo & 0xf8) == (0, 0);
                    8
                }
                (next, _) if is_extension(next) => return Err(Malformed::Extensions),
                _ => return Ok(found),
            };
            if len > rest.len() {
                return Err(Malformed::Extensions);
            }
            found.protocol = rest[0];
            found.offset += len;
            if !found.first {
                // What follows is the middle of somebody's payload.
                return Ok(found);
            }
        }
        Err(Malformed::Extensions)
    }

    /// What identifies the packet's flow. Ports are zero where there are none to read: other
    /// protocols, fragments (all of them, so that they stay together) and cut-off headers.
    #[inline]
    pub fn flow(&self) -> FlowKey {
        // What cannot be followed stays together, as fragments do.
        self.try_flow()
            .unwrap_or_else(|_| self.key(0, 0, 0).of_fragment())
    }

    #[inline]
    fn key(&self, protocol: u8, src_port: u16, dst_port: u16) -> FlowKey {
        match self.version {
            Version::V4 => FlowKey::v4(
                v4_at(self.bytes, 12).octets(),
                v4_at(self.bytes, 16).octets(),
                protocol,
                src_port,
                dst_port,
            ),
            Version::V6 => FlowKey::v6(
                v6_at(self.bytes, 8).octets(),
                v6_at(self.bytes, 24).octets(),
                protocol,
                src_port,
                dst_port,
            ),
        }
    }

    /// The same, or why the headers cannot be followed.
    #[inline]
    pub fn try_flow(&self) -> Result<FlowKey, Malformed> {
        let Transport {
            protocol,
            offset,
            fragment,
            ..
        } = self.transport()?;
        if fragment {
            return Ok(self.key(protocol, 0, 0).of_fragment());
        }
        Ok(match self.bytes.get(offset..offset + 4) {
            Some(&[a, b, c, d]) if matches!(protocol, PROTO_TCP | PROTO_UDP) => {
                self.key(protocol, u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
            }
            _ => self.key(protocol, 0, 0),
        })
    }

    /// The checksum contribution of the pseudo header for `len` bytes of `protocol` between the
    /// packet's addresses (RFC 9293 section 3.1, RFC 8200 section 8.1).
    #[inline]
    pub fn pseudo_sum(&self, protocol: u8, len: usize) -> Sum {
        let addresses = match self.version {
            Version::V4 => &self.bytes[12..20],
            Version::V6 => &self.bytes[8..40],
        };
        pseudo_sum(addresses, protocol, len)
    }
}

/// Where a packet's transport header is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    /// Protocol number of what stands at `offset`.
    pub protocol: u8,
    /// Bytes from the start of the packet, at most the packet's length.
    pub offset: usize,
    /// The packet is a fragment: not the whole datagram, or not alone.
    pub fragment: bool,
    /// The transport header itself is here: true for whole packets and first fragments.
    pub first: bool,
}

/// Sets the type of service or traffic class byte of a packet and keeps an IPv4 header's checksum
/// right (RFC 1624). Bytes that are not IP are left alone.
#[inline]
pub fn set_tos(packet: &mut [u8], tos: u8) {
    match packet {
        [first, old, _, _, _, _, _, _, _, _, sum_hi, sum_lo, ..] if *first >> 4 == 4 => {
            let sum = update([*sum_hi, *sum_lo], [*first, *old], [*first, tos]);
            (*old, *sum_hi, *sum_lo) = (tos, sum[0], sum[1]);
        }
        [first, second, ..] if *first >> 4 == 6 => {
            *first = 0x60 | (tos >> 4);
            *second = (tos << 4) | (*second & 0x0f);
        }
        _ => {}
    }
}

/// Sets the two ECN bits of a packet and leaves the DSCP as it is; see [`set_tos`].
#[inline]
pub fn set_ecn(packet: &mut [u8], ecn: u8) {
    let tos = match packet {
        [first, tos, ..] if *first >> 4 == 4 => *tos,
        [first, second, ..] if *first >> 4 == 6 => (*first << 4) | (*second >> 4),
        _ => return,
    };
    set_tos(packet, (tos & !ECN_MASK) | (ecn & ECN_MASK));
}

/// Whether a router may send the packet on: its time to live or hop limit is more than one (RFC 1812, section 5.3.1; RFC 8200, section 3).
#[inline]
pub fn may_go_further(packet: &[u8]) -> bool {
    match packet {
        [first, _, _, _, _, _, _, _, ttl, ..] if *first >> 4 == 4 => *ttl > 1,
        [first, _, _, _, _, _, _, hop_limit, ..] if *first >> 4 == 6 => *hop_limit > 1,
        _ => false,
    }
}

/// Takes one from the time to live or hop limit and keeps an IPv4 header's checksum right. False, and nothing changed, if the packet [may not go
/// further](may_go_further).
#[inline]
pub fn take_hop(packet: &mut [u8]) -> bool {
    match packet {
        [first, _, _, _, _, _, _, _, ttl, _, sum_hi, sum_lo, ..] if *first >> 4 == 4 && *ttl > 1 => {
            *ttl -= 1;
            // RFC 1624, equation 3, for a word that has become smaller by 0x100.
            let sum = u32::from(!u16::from_be_bytes([*sum_hi, *sum_lo])) + 0xfeff;
            [*sum_hi, *sum_lo] = (!(sum + (sum >> 16)) as u16).to_be_bytes();
            true
        }
        [first, _, _, _, _, _, _, hop_limit, ..] if *first >> 4 == 6 && *hop_limit > 1 => {
            *hop_limit -= 1;
            true
        }
        _ => false,
    }
}

/// The big-endian word at `at`, 0 where the bytes end before it.
#[inline]
pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    match bytes.get(at..at + 2) {
        Some(&[hi, lo]) => u16::from_be_bytes([hi, lo]),
        _ => 0,
    }
}

#[inline]
fn v4_at(bytes: &[u8], at: usize) -> Ipv4Addr {
    let octets: [u8; 4] = bytes
        .get(at..at + 4)
        .and_then(|s| s.try_into().ok())
        .unwrap_or_default();
    Ipv4Addr::from(octets)
}

#[inline]
fn v6_at(bytes: &[u8], at: usize) -> Ipv6Addr {
    let octets: [u8; 16] = bytes
        .get(at..at + 16)
        .and_then(|s| s.try_into().ok())
        .unwrap_or_default();
    Ipv6Addr::from(octets)
}
