//! Segmentation offload of the TUN port, as pure functions over bytes.
//!
//! The kernel hands a TUN device with a virtio-net header *super-packets*: one IP header, one TCP or
//! UDP header, and up to 64 KiB of payload that stand for many packets (TSO, USO). [`split`] cuts one
//! into the packets that it stands for; [`coalesce`] finds packets of a burst that may be given to
//! the kernel as one super-packet. The two are each other's inverse, byte for byte.
//!
//! Called by [`crate::tun`] on the worker's thread. No system calls, no unsafe code, no allocation.
//!
//! Sources: the virtio specification 1.2, section 5.1.6 (`struct virtio_net_hdr`); RFC 9293, RFC 3168
//! section 6.1.2 (CWR), RFC 6864 (IPv4 identification), RFC 768.

pub mod coalesce;
pub mod split;

/// Length of the virtio-net header that precedes each packet on a TUN descriptor, in bytes.
pub const VNET_HEADER: usize = 10;

/// Largest super-packet: an IP packet's length is a 16-bit field.
pub const SUPER_MAX: usize = 65535;

const F_NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// Offset of the checksum in a TCP header.
const TCP_CHECKSUM: usize = 16;
/// Offset of the checksum in a UDP header.
const UDP_CHECKSUM: usize = 6;
/// Offset of the flags byte in a TCP header.
const TCP_FLAGS: usize = 13;

const TCP_FIN: u8 = 0x01;
const TCP_PSH: u8 = 0x08;
const TCP_ACK: u8 = 0x10;
const TCP_CWR: u8 = 0x80;

/// What a packet on a TUN descriptor is, as its virtio-net header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gso {
    /// One packet.
    None,
    /// A TCP super-packet over IPv4.
    TcpV4,
    /// A TCP super-packet over IPv6.
    TcpV6,
    /// A super-packet of UDP datagrams, over either.
    Udp,
    /// A kind that was never asked for.
    Other(u8),
}

/// The virtio-net header. Offsets and sizes are in bytes; offsets count from the IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VnetHeader {
    /// The checksum field holds the pseudo header's sum only and the rest is left to us.
    pub needs_csum: bool,
    /// Kind of super-packet.
    pub gso: Gso,
    /// Length of all headers; from the kernel only a hint.
    pub hdr_len: u16,
    /// Payload bytes in each packet of a super-packet but the last.
    pub gso_size: u16,
    /// Where checksumming starts.
    pub csum_start: u16,
    /// Where the checksum goes, counted from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// The header of a single packet that is complete as it is.
    pub const SINGLE: VnetHeader = VnetHeader {
        needs_csum: false,
        gso: Gso::None,
        hdr_len: 0,
        gso_size: 0,
        csum_start: 0,
        csum_offset: 0,
    };

    /// Reads a header as it stands on the descriptor, in the machine's byte order.
    #[inline]
    pub fn decode(bytes: &[u8; VNET_HEADER]) -> VnetHeader {
        let [flags, kind, a, b, c, d, e, f, g, h] = *bytes;
        VnetHeader {
            needs_csum: flags & F_NEEDS_CSUM != 0,
            gso: match kind & !GSO_ECN {
                GSO_NONE => Gso::None,
                GSO_TCPV4 => Gso::TcpV4,
                GSO_TCPV6 => Gso::TcpV6,
                GSO_UDP_L4 => Gso::Udp,
                other => Gso::Other(other),
            },
            hdr_len: u16::from_ne_bytes([a, b]),
            gso_size: u16::from_ne_bytes([c, d]),
            csum_start: u16::from_ne_bytes([e, f]),
            csum_offset: u16::from_ne_bytes([g, h]),
        }
    }

    /// The header as it stands on the descriptor.
    #[inline]
    pub fn encode(&self) -> [u8; VNET_HEADER] {
        let kind = match self.gso {
            Gso::None => GSO_NONE,
            Gso::TcpV4 => GSO_TCPV4,
            Gso::TcpV6 => GSO_TCPV6,
            Gso::Udp => GSO_UDP_L4,
            Gso::Other(other) => other,
        };
        let [a, b] = self.hdr_len.to_ne_bytes();
        let [c, d] = self.gso_size.to_ne_bytes();
        let [e, f] = self.csum_start.to_ne_bytes();
        let [g, h] = self.csum_offset.to_ne_bytes();
        [
            if self.needs_csum { F_NEEDS_CSUM } else { 0 },
            kind,
            a,
            b,
            c,
            d,
            e,
            f,
            g,
            h,
        ]
    }
}
