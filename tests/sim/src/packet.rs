//! Inner packets: what hosts send, and how to know them again. Built and read without the engine's own parser.
//!
//! A packet with room for it carries a tag behind its UDP header: who sent it, in which flow, at which place, and a checksum over
//! everything that no router may change.

use std::net::IpAddr;

use patronus_crypto::Random;

use crate::rng::Seeded;

const MAGIC: [u8; 4] = *b"PSIM";
const UDP: u8 = 17;
const UDP_HEADER: usize = 8;
/// Magic, origin, nothing, flow, sequence, checksum.
const TAG: usize = 20;

/// Who sent a packet, and its place in the flow.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Tag {
    /// The site whose host sent it, whatever its source address says.
    pub origin: u8,
    /// Number of the flow.
    pub flow: u16,
    /// Place in the flow, from 0.
    pub sequence: u32,
}

/// What a received packet is.
#[derive(PartialEq, Eq, Debug)]
pub enum Known {
    /// One of ours, whole.
    Tagged(Tag),
    /// Too short for a tag.
    Short,
    /// An ICMP error of an engine's.
    Icmp,
    /// Something that nobody has sent like this.
    Broken(&'static str),
}

/// Length of the IP header of a packet between such addresses.
pub fn header_len(ip: IpAddr) -> usize {
    if ip.is_ipv4() { 20 } else { 40 }
}

/// The shortest packet with a tag.
pub fn tagged_len(ip: IpAddr) -> usize {
    header_len(ip) + UDP_HEADER + TAG
}

/// How a packet is addressed.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// Source address.
    pub src: IpAddr,
    /// Destination address, of the same family.
    pub dst: IpAddr,
    /// UDP port of the source.
    pub port: u16,
    /// Time to live.
    pub ttl: u8,
    /// ECN field.
    pub ecn: u8,
}

/// A packet of `len` bytes, at least its IP header.
pub fn build(way: &Way, tag: Tag, len: usize) -> Vec<u8> {
    let header = header_len(way.src);
    let mut packet = vec![0; len];
    match (way.src, way.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            packet[0] = 0x45;
            packet[1] = way.ecn;
            packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            // Fragments are told apart by it. Between two hosts there are few flows, and no flow has so many packets: with fewer bits for them, what is
            // left of a packet would be put together with a much later one (RFC 4963).
            let id = tag.flow & 0x8000 | (tag.flow & 7) << 12 | tag.sequence as u16 & 0xfff;
            packet[4..6].copy_from_slice(&id.to_be_bytes());
            packet[8] = way.ttl;
            packet[9] = UDP;
            packet[12..16].copy_from_slice(&src.octets());
            packet[16..20].copy_from_slice(&dst.octets());
            let sum = !ones_sum(&packet[..20]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let word = 6 << 28 | u32::from(way.ecn) << 20 | tag.sequence & 0xf_ffff;
            packet[..4].copy_from_slice(&word.to_be_bytes());
            packet[4..6].copy_from_slice(&(len as u16 - 40).to_be_bytes());
            packet[6] = UDP;
            packet[7] = way.ttl;
            packet[8..24].copy_from_slice(&src.octets());
            packet[24..40].copy_from_slice(&dst.octets());
        }
        _ => unreachable!("addresses of one family"),
    }
    let body = &mut packet[header..];
    if body.len() >= UDP_HEADER {
        Seeded(u64::from(tag.sequence) << 16 | u64::from(tag.flow)).fill(&mut body[UDP_HEADER..]);
        body[..2].copy_from_slice(&way.port.to_be_bytes());
        body[2..4].copy_from_slice(&2000u16.to_be_bytes());
        let udp_len = body.len() as u16;
        body[4..6].copy_from_slice(&udp_len.to_be_bytes());
    }
    if len >= tagged_len(way.src) {
        let place = &mut packet[header + UDP_HEADER..][..TAG];
        place[..4].copy_from_slice(&MAGIC);
        place[4] = tag.origin;
        place[5] = 0;
        place[6..8].copy_from_slice(&tag.flow.to_be_bytes());
        place[8..12].copy_from_slice(&tag.sequence.to_be_bytes());
        place[12..20].fill(0);
        let sum = fingerprint(&packet);
        packet[header + UDP_HEADER + 12..][..8].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// What a delivered packet is.
pub fn recognize(packet: &[u8]) -> Known {
    let version = packet.first().map_or(0, |first| first >> 4);
    let (header, protocol, len) = match version {
        4 if packet.len() >= 20 => (
            20,
            packet[9],
            usize::from(u16::from_be_bytes([packet[2], packet[3]])),
        ),
        6 if packet.len() >= 40 => (
            40,
            packet[6],
            40 + usize::from(u16::from_be_bytes([packet[4], packet[5]])),
        ),
        _ => return Known::Broken("neither IPv4 nor IPv6"),
    };
    if len != packet.len() {
        return Known::Broken("its header says another length");
    }
    if version == 4 && ones_sum(&packet[..20]) != 0xffff {
        return Known::Broken("wrong header checksum");
    }
    if matches!((version, protocol), (4, 1) | (6, 58)) {
        return Known::Icmp;
    }
    let Some(place) = packet.get(header + UDP_HEADER..header + UDP_HEADER + TAG) else {
        return Known::Short;
    };
    if place[..4] != MAGIC {
        return Known::Broken("no tag in it");
    }
    let mut unsummed = packet.to_vec();
    unsummed[header + UDP_HEADER + 12..][..8].fill(0);
    if fingerprint(&unsummed).to_be_bytes() != place[12..20] {
        return Known::Broken("altered");
    }
    Known::Tagged(Tag {
        origin: place[4],
        flow: u16::from_be_bytes([place[6], place[7]]),
        sequence: u32::from_be_bytes([place[8], place[9], place[10], place[11]]),
    })
}

/// A piece of an IPv4 packet.
pub struct Fragment<'a> {
    /// What the pieces of one packet have in common: addresses, protocol and number.
    pub whole: [u8; 11],
    /// Where the piece belongs, bytes of payload.
    pub offset: usize,
    /// It is the last one.
    pub last: bool,
    /// The header, as that of the whole packet but for the length.
    pub header: [u8; 20],
    /// The piece.
    pub payload: &'a [u8],
}

/// A packet that is a piece of one.
pub fn fragment(packet: &[u8]) -> Option<Fragment<'_>> {
    let (header, payload) = packet.split_first_chunk::<20>()?;
    let word = u16::from_be_bytes([header[6], header[7]]);
    if header[0] != 0x45 || word & 0x3fff == 0 || ones_sum(header) != 0xffff {
        return None;
    }
    let mut whole = [0; 11];
    whole[..8].copy_from_slice(&header[12..20]);
    whole[8..10].copy_from_slice(&header[4..6]);
    whole[10] = header[9];
    let mut header = *header;
    header[6..8].fill(0);
    Some(Fragment {
        whole,
        offset: usize::from(word & 0x1fff) * 8,
        last: word & 0x2000 == 0,
        header,
        payload,
    })
}

/// The packet whose pieces were these.
pub fn put_together(mut header: [u8; 20], payload: &[u8]) -> Vec<u8> {
    let len = (header.len() + payload.len()) as u16;
    header[2..4].copy_from_slice(&len.to_be_bytes());
    header[10..12].fill(0);
    let sum = !ones_sum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [&header, payload].concat()
}

/// The packet without what routers change: time to live, ECN, header checksum.
pub fn lasting(packet: &[u8]) -> Vec<u8> {
    let mut lasting = packet.to_vec();
    match lasting.first().map_or(0, |first| first >> 4) {
        4 if lasting.len() >= 20 => {
            lasting[1] &= !3;
            lasting[8] = 0;
            lasting[10..12].fill(0);
        }
        6 if lasting.len() >= 40 => {
            lasting[1] &= !0x30;
            lasting[7] = 0;
        }
        _ => {}
    }
    lasting
}

/// Source and destination of a packet that was [recognized](recognize).
pub fn addresses(packet: &[u8]) -> (IpAddr, IpAddr) {
    let v6 = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).expect("16 bytes"));
    let v4 = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).expect("4 bytes"));
    match packet[0] >> 4 {
        4 => (v4(12), v4(16)),
        _ => (v6(8), v6(24)),
    }
}

/// FNV-1a over what lasts.
fn fingerprint(packet: &[u8]) -> u64 {
    lasting(packet).iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn ones_sum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_known_again_and_any_other_bit_is_noticed() {
        let tag = Tag {
            origin: 3,
            flow: 700,
            sequence: 80_000,
        };
        let addresses: [[IpAddr; 2]; 2] = [
            [[10, 1, 0, 1].into(), [10, 2, 0, 1].into()],
            [
                [0xfd00, 1, 0, 0, 0, 0, 0, 1].into(),
                [0xfd00, 2, 0, 0, 0, 0, 0, 1].into(),
            ],
        ];
        for [src, dst] in addresses {
            let way = Way {
                src,
                dst,
                port: 9,
                ttl: 64,
                ecn: 2,
            };
            let packet = build(&way, tag, 200);
            assert_eq!(recognize(&packet), Known::Tagged(tag));
            assert_eq!(super::addresses(&packet), (src, dst));
            for bit in 0..8 * packet.len() {
                let mut other = packet.clone();
                other[bit / 8] ^= 1 << (bit % 8);
                // What routers change is a matter of its own: only an IPv4 header has a checksum over it.
                if lasting(&other) != lasting(&packet) {
                    assert_ne!(recognize(&other), Known::Tagged(tag), "bit {bit}");
                }
            }
            assert_eq!(recognize(&build(&way, tag, header_len(src))), Known::Short);
        }
    }
}
