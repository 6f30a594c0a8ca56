//! Inner packets for tests, built and checked without the engine's own parser.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;

use patronus_crypto::Random;

use super::Seeded;

const UDP: u8 = 17;

/// A packet to be built.
#[derive(Clone)]
pub struct Builder {
    pub src: IpAddr,
    pub dst: IpAddr,
    /// Makes the packet unlike every other one: in the IP header and in the payload.
    pub id: u64,
    /// Bytes, header included.
    pub len: usize,
    pub tos: u8,
    pub protocol: u8,
    pub src_port: u16,
}

impl Builder {
    pub fn new(src: impl Into<IpAddr>, dst: impl Into<IpAddr>, id: u64, len: usize) -> Builder {
        Builder {
            src: src.into(),
            dst: dst.into(),
            id,
            len,
            tos: 0,
            protocol: UDP,
            src_port: 1000,
        }
    }

    pub fn build(&self) -> Vec<u8> {
        let mut packet = vec![0; self.len];
        let header = match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                packet[0] = 0x45;
                packet[1] = self.tos;
                packet[2..4].copy_from_slice(&(self.len as u16).to_be_bytes());
                packet[4..6].copy_from_slice(&(self.id as u16).to_be_bytes());
                packet[8] = 64;
                packet[9] = self.protocol;
                packet[12..16].copy_from_slice(&src.octets());
                packet[16..20].copy_from_slice(&dst.octets());
                let sum = checksum(&[&packet[..20]]);
                packet[10..12].copy_from_slice(&sum.to_be_bytes());
                20
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let word = 6 << 28 | u32::from(self.tos) << 20 | self.id as u32 & 0xf_ffff;
                packet[..4].copy_from_slice(&word.to_be_bytes());
                packet[4..6].copy_from_slice(&(self.len as u16 - 40).to_be_bytes());
                packet[6] = self.protocol;
                packet[7] = 64;
                packet[8..24].copy_from_slice(&src.octets());
                packet[24..40].copy_from_slice(&dst.octets());
                40
            }
            _ => panic!("addresses of two families"),
        };
        let body = &mut packet[header..];
        Seeded(self.id).fill(body);
        // The transport header as far as there is room: ports, length, no checksum; then the number.
        let mut start = Vec::new();
        start.extend(self.src_port.to_be_bytes());
        start.extend(2000u16.to_be_bytes());
        start.extend((body.len() as u16).to_be_bytes());
        start.extend([0, 0]);
        start.extend(self.id.to_be_bytes());
        for (byte, value) in body.iter_mut().zip(start) {
            *byte = value;
        }
        packet
    }
}

/// The inner IPv4 address of a site's host.
pub fn v4(site: usize) -> IpAddr {
    IpAddr::from([10, site as u8, 0, 1])
}

/// The inner IPv6 address of a site's host.
pub fn v6(site: usize) -> IpAddr {
    IpAddr::from([0xfd00, site as u16, 0, 0, 0, 0, 0, 1])
}

/// An IPv4 packet of `len` bytes (20 or more) from one site's host to another's.
pub fn between(from: usize, to: usize, id: u64, len: usize) -> Vec<u8> {
    Builder::new(v4(from), v4(to), id, len).build()
}

/// An IPv6 packet of `len` bytes (40 or more).
pub fn between_v6(from: usize, to: usize, id: u64, len: usize) -> Vec<u8> {
    Builder::new(v6(from), v6(to), id, len).build()
}

/// The number of a packet with room for one, IPv4 or IPv6.
pub fn id(packet: &[u8]) -> u64 {
    let header = if packet[0] >> 4 == 4 { 20 } else { 40 };
    u64::from_be_bytes(packet[header + 8..header + 16].try_into().unwrap())
}

pub fn src_port(packet: &[u8]) -> u16 {
    let header = if packet[0] >> 4 == 4 { 20 } else { 40 };
    u16::from_be_bytes([packet[header], packet[header + 1]])
}

/// The Internet checksum over the parts, each of even length but the last (RFC 1071).
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A number that depends on `what` alone.
pub fn hash(what: impl Hash) -> usize {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish() as usize
}
