//! What identifies a flow, in the form in which it is hashed, compared and matched: five words.

use super::{PROTO_TCP, PROTO_UDP};

/// A flow: addresses, UDP or TCP ports, IP version and protocol, and where asked for the DSCP.
///
/// The first four words are the addresses (an IPv4 flow has both in the first one). The fifth is, from the top: source port, destination port, one bit for
/// fragments, the DSCP, the version, the protocol.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialOrd, Ord)]
#[expect(clippy::derived_hash_with_manual_eq, reason = "both are about all five words")]
pub struct FlowKey([u64; 5]);

/// All words at once, and no call of a function that compares any number of bytes.
impl PartialEq for FlowKey {
    #[inline]
    fn eq(&self, other: &FlowKey) -> bool {
        let words = self.0.iter().zip(&other.0);
        words.fold(0, |differences, (a, b)| differences | (a ^ b)) == 0
    }
}

const FRAGMENT: u64 = 1 << 23;
const DSCP_SHIFT: u32 = 16;
const VERSION: u64 = 0xff << 8;

impl FlowKey {
    /// An IPv4 flow; addresses in network order, ports as numbers.
    #[inline]
    pub fn v4(src: [u8; 4], dst: [u8; 4], protocol: u8, src_port: u16, dst_port: u16) -> FlowKey {
        let addresses = u64::from(u32::from_be_bytes(src)) << 32 | u64::from(u32::from_be_bytes(dst));
        FlowKey([addresses, 0, 0, 0, fifth(4, protocol, src_port, dst_port)])
    }

    /// The flow and the length of the commonest of packets: TCP or UDP over IPv4, without options and in one piece. The same as the longer way through
    /// [`Packet`](super::Packet) finds, DSCP included; `None` is for everything else, and says nothing about it.
    #[inline]
    pub fn of_plain(packet: &[u8]) -> Option<(FlowKey, usize)> {
        let header: &[u8; 24] = packet.first_chunk()?;
        let word = |at: usize| u64::from_be_bytes(std::array::from_fn(|n| header[at + n]));
        // Version and length, type of service, total length, identification, fragment.
        let (first, addresses, protocol) = (word(0), word(12), header[9]);
        let ports = u32::from_be_bytes([header[20], header[21], header[22], header[23]]);
        let total = (first >> 32) as u16 as usize;
        let is_plain =
            first >> 56 == 0x45 && first & 0x3fff == 0 && matches!(protocol, PROTO_TCP | PROTO_UDP);
        if !is_plain || total < header.len() || total > packet.len() {
            return None;
        }
        let dscp = first >> 50 & 63;
        let fifth = u64::from(ports) << 32 | dscp << DSCP_SHIFT | 4 << 8 | u64::from(protocol);
        Some((FlowKey([addresses, 0, 0, 0, fifth]), total))
    }

    /// An IPv6 flow.
    #[inline]
    pub fn v6(src: [u8; 16], dst: [u8; 16], protocol: u8, src_port: u16, dst_port: u16) -> FlowKey {
        let (src, dst) = (u128::from_be_bytes(src), u128::from_be_bytes(dst));
        FlowKey([
            (src >> 64) as u64,
            src as u64,
            (dst >> 64) as u64,
            dst as u64,
            fifth(6, protocol, src_port, dst_port),
        ])
    }

    /// The part of the flow that has this DSCP (RFC 2474).
    #[inline]
    #[must_use]
    pub fn with_dscp(mut self, dscp: u8) -> FlowKey {
        self.0[4] |= u64::from(dscp & 63) << DSCP_SHIFT;
        self
    }

    /// The whole flow, whatever its packets' DSCP.
    #[inline]
    #[must_use]
    pub fn without_dscp(mut self) -> FlowKey {
        self.0[4] &= !(63 << DSCP_SHIFT);
        self
    }

    /// As the flow of fragments, whose ports nobody knows.
    #[inline]
    #[must_use]
    pub fn of_fragment(mut self) -> FlowKey {
        self.0[4] |= FRAGMENT;
        self
    }

    /// As a mask: the whole version counts, and not only the bits that are set in its number.
    #[must_use]
    pub fn with_version_mask(mut self) -> FlowKey {
        self.0[4] |= VERSION;
        self
    }

    /// The bits that a mask lets through.
    #[inline]
    #[must_use]
    pub fn masked(&self, mask: &FlowKey) -> FlowKey {
        FlowKey(std::array::from_fn(|at| self.0[at] & mask.0[at]))
    }

    /// False for fragments, and for packets whose headers cannot be followed: their flow is not known.
    #[inline]
    pub fn is_whole(&self) -> bool {
        self.0[4] & FRAGMENT == 0
    }

    /// Whether it is a flow of IPv6.
    #[inline]
    pub fn is_ipv6(&self) -> bool {
        self.0[4] & VERSION == 6 << 8
    }

    /// Source address of an IPv4 flow, network order.
    #[inline]
    pub fn src_v4(&self) -> [u8; 4] {
        ((self.0[0] >> 32) as u32).to_be_bytes()
    }

    /// Destination address of an IPv4 flow, network order.
    #[inline]
    pub fn dst_v4(&self) -> [u8; 4] {
        (self.0[0] as u32).to_be_bytes()
    }

    /// Source address of an IPv6 flow, network order.
    #[inline]
    pub fn src_v6(&self) -> [u8; 16] {
        (u128::from(self.0[0]) << 64 | u128::from(self.0[1])).to_be_bytes()
    }

    /// Destination address of an IPv6 flow, network order.
    #[inline]
    pub fn dst_v6(&self) -> [u8; 16] {
        (u128::from(self.0[2]) << 64 | u128::from(self.0[3])).to_be_bytes()
    }

    /// Protocol number.
    #[inline]
    pub fn protocol(&self) -> u8 {
        self.0[4] as u8
    }

    /// Source port, 0 if there is none.
    #[inline]
    pub fn src_port(&self) -> u16 {
        (self.0[4] >> 48) as u16
    }

    /// Destination port, 0 if there is none.
    #[inline]
    pub fn dst_port(&self) -> u16 {
        (self.0[4] >> 32) as u16
    }

    /// DSCP, 0 if it was not asked for.
    #[inline]
    pub fn dscp(&self) -> u8 {
        (self.0[4] >> DSCP_SHIFT) as u8 & 63
    }

    /// All of it, to be hashed.
    #[inline]
    pub fn words(&self) -> &[u64; 5] {
        &self.0
    }
}

#[inline]
fn fifth(version: u8, protocol: u8, src_port: u16, dst_port: u16) -> u64 {
    u64::from(src_port) << 48 | u64::from(dst_port) << 32 | u64::from(version) << 8 | u64::from(protocol)
}
