//! From the kernel: cuts a super-packet into the packets that it stands for, and completes the
//! checksum of a packet that the kernel left unfinished.

use super::{Gso, TCP_CHECKSUM, TCP_CWR, TCP_FIN, TCP_FLAGS, TCP_PSH, UDP_CHECKSUM, VnetHeader};
use crate::ip::{self, Malformed, PROTO_TCP, PROTO_UDP, Packet, Sum, TCP_HEADER, UDP_HEADER, Version};

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;

/// Completes the checksum of a single packet: sums from `csum_start` to the end, the partial sum in
/// the field among it, and stores the complement at `csum_offset`.
#[inline]
pub fn complete_checksum(vnet: &VnetHeader, packet: &mut [u8]) -> Result<(), Malformed> {
    let start = usize::from(vnet.csum_start);
    let at = usize::from(vnet.csum_offset);
    let covered = packet.get_mut(start..).ok_or(Malformed::Offload)?;
    let sum = Sum::of(covered).transport_checksum();
    let field = covered.get_mut(at..at + 2).ok_or(Malformed::Offload)?;
    field.copy_from_slice(&sum);
    Ok(())
}

/// The same for an IP packet of which nobody says whether its checksum is complete, as frames of a veth's other end come out of AF_XDP. A TCP
/// or UDP checksum field that holds the sum of the pseudo header alone is taken for unfinished. A complete one may have that value too; it is then what
/// completing it makes of it again. So only a damaged packet can become another one, one in 65,536 of them: then nobody notices the damage.
#[inline]
pub fn complete_unfinished(packet: &mut [u8]) {
    let Some((start, at, end)) = unfinished(packet) else {
        return;
    };
    let sum = Sum::of(&packet[start..end]).transport_checksum();
    packet[at..at + 2].copy_from_slice(&sum);
}

/// The same for an Ethernet frame with an IP packet in it.
#[inline]
pub fn complete_unfinished_frame(frame: &mut [u8]) {
    if let Some((header, packet)) = frame.split_at_mut_checked(ETHERNET)
        && matches!(header[ETHERNET - 2..], [0x08, 0x00] | [0x86, 0xdd])
    {
        complete_unfinished(packet);
    }
}

/// Where the transport header of a packet begins whose checksum is unfinished, where the checksum stands, and where the packet ends.
#[inline]
fn unfinished(packet: &[u8]) -> Option<(usize, usize, usize)> {
    let ip = Packet::parse(packet).ok()?;
    let found = ip.transport().ok().filter(|found| !found.fragment)?;
    let at = found.offset
        + match found.protocol {
            PROTO_TCP => TCP_CHECKSUM,
            PROTO_UDP => UDP_CHECKSUM,
            _ => return None,
        };
    let end = ip.total_len();
    let field = packet[..end].get(at..at + 2)?;
    let addresses = match ip.version() {
        Version::V4 => &packet[12..20],
        Version::V6 => &packet[8..40],
    };
    let pseudo = ip::pseudo_sum(addresses, found.protocol, end - found.offset).partial();
    (field == pseudo).then_some((found.offset, at, end))
}

/// A super-packet under way: what is the same for all its packets, and which comes next. It does not
/// hold the bytes; the caller passes the same ones to each [`SuperPacket::write_next`].
#[derive(Clone, Copy, Debug)]
pub struct SuperPacket {
    version: Version,
    tcp: bool,
    /// Where the TCP or UDP header starts, and where the payload does.
    transport: usize,
    payload: usize,
    /// Bytes of the whole super-packet, and payload bytes in each packet but the last.
    total: usize,
    mss: usize,
    segments: usize,
    next: usize,
    /// Sum of the IPv4 header without length, identification and checksum.
    ip_sum: Sum,
    /// Sum of pseudo header without length, and of the transport header without what changes.
    transport_sum: Sum,
}

impl SuperPacket {
    /// Checks that `packet` is the super-packet that `vnet` describes. Lengths come from the packet's
    /// own headers, which must agree with the number of bytes received: `hdr_len` in `vnet` is not
    /// trusted, it has meant different things in different kernels.
    pub fn parse(vnet: &VnetHeader, packet: &[u8]) -> Result<SuperPacket, Malformed> {
        let ip = Packet::parse(packet)?;
        let found = ip.transport()?;
        let tcp = match (vnet.gso, ip.version()) {
            (Gso::TcpV4, Version::V4) | (Gso::TcpV6, Version::V6) => true,
            (Gso::Udp, _) => false,
            _ => return Err(Malformed::Offload),
        };
        let protocol = if tcp { PROTO_TCP } else { PROTO_UDP };
        if found.protocol != protocol
            || found.fragment
            || ip.total_len() != packet.len()
            || vnet.gso_size == 0
        {
            return Err(Malformed::Offload);
        }
        let header = packet.get(found.offset..).unwrap_or_default();
        let header_len = if tcp { tcp_header_len(header)? } else { UDP_HEADER };
        if header_len >= header.len() {
            return Err(Malformed::Transport);
        }
        let payload = found.offset + header_len;
        let mss = usize::from(vnet.gso_size);
        Ok(SuperPacket {
            version: ip.version(),
            tcp,
            transport: found.offset,
            payload,
            total: packet.len(),
            mss,
            segments: (packet.len() - payload).div_ceil(mss),
            next: 0,
            ip_sum: constant_ip_sum(&ip),
            transport_sum: ip.pseudo_sum(protocol, 0) + constant_transport_sum(&header[..header_len], tcp),
        })
    }

    /// How many packets have not been written yet.
    #[inline]
    pub fn remaining(&self) -> usize {
        self.segments - self.next
    }

    /// Length of the next packet in bytes; 0 when there is none.
    #[inline]
    pub fn next_len(&self) -> usize {
        if self.next == self.segments {
            0
        } else {
            self.payload + self.payload_range().len()
        }
    }

    fn payload_range(&self) -> core::ops::Range<usize> {
        let start = self.payload + self.next * self.mss;
        start..(start + self.mss).min(self.total)
    }

    /// Writes the next packet to the front of `out`, complete and with valid checksums, and returns
    /// its length. `packet` is what [`SuperPacket::parse`] saw. Returns 0 when all packets have been
    /// written or `out` is shorter than [`SuperPacket::next_len`].
    #[inline]
    pub fn write_next(&mut self, packet: &[u8], out: &mut [u8]) -> usize {
        let len = self.next_len();
        if len == 0 || out.len() < len || packet.len() != self.total {
            return 0;
        }
        let (headers, payload) = out[..len].split_at_mut(self.payload);
        headers.copy_from_slice(&packet[..self.payload]);
        let sum = ip::copy_and_sum(payload, &packet[self.payload_range()]);
        self.finish_ip(headers, len);
        let header = &mut headers[self.transport..];
        let transport_len = (len - self.transport) as u16;
        let sum = (self.transport_sum + sum).word(transport_len.to_be_bytes());
        if self.tcp {
            self.finish_tcp(header, sum);
        } else {
            // The length stands in the pseudo header and in the UDP header.
            header[4..6].copy_from_slice(&transport_len.to_be_bytes());
            let sum = sum.word(transport_len.to_be_bytes()).transport_checksum();
            header[UDP_CHECKSUM..UDP_CHECKSUM + 2].copy_from_slice(&sum);
        }
        self.next += 1;
        len
    }

    #[inline]
    fn finish_ip(&self, headers: &mut [u8], len: usize) {
        match self.version {
            Version::V4 => {
                let total = (len as u16).to_be_bytes();
                let id = ip::be16(headers, 4).wrapping_add(self.next as u16).to_be_bytes();
                headers[2..4].copy_from_slice(&total);
                headers[4..6].copy_from_slice(&id);
                headers[10..12].copy_from_slice(&self.ip_sum.word(total).word(id).checksum());
            }
            Version::V6 => {
                headers[4..6].copy_from_slice(&((len - ip::IPV6_HEADER) as u16).to_be_bytes());
            }
        }
    }

    #[inline]
    fn finish_tcp(&self, header: &mut [u8], sum: Sum) {
        let advance = (self.next * self.mss) as u32;
        let seq = match *header {
            [_, _, _, _, a, b, c, d, ..] => u32::from_be_bytes([a, b, c, d]),
            _ => 0,
        };
        let seq = seq.wrapping_add(advance).to_be_bytes();
        header[4..8].copy_from_slice(&seq);
        let mut flags = header[TCP_FLAGS];
        if self.next + 1 < self.segments {
            flags &= !(TCP_FIN | TCP_PSH);
        }
        if self.next > 0 {
            flags &= !TCP_CWR;
        }
        header[TCP_FLAGS] = flags;
        let sum = sum
            .word([seq[0], seq[1]])
            .word([seq[2], seq[3]])
            .word([header[TCP_FLAGS - 1], flags]);
        header[TCP_CHECKSUM..TCP_CHECKSUM + 2].copy_from_slice(&sum.checksum());
    }
}

fn tcp_header_len(header: &[u8]) -> Result<usize, Malformed> {
    let len = header.get(12).map_or(0, |b| usize::from(b >> 4) * 4);
    if len < TCP_HEADER || len > header.len() {
        Err(Malformed::Transport)
    } else {
        Ok(len)
    }
}

/// The IPv4 header's words but total length, identification and checksum.
fn constant_ip_sum(ip: &Packet<'_>) -> Sum {
    let header = &ip.bytes()[..ip.header_len()];
    match ip.version() {
        Version::V4 => Sum::of(&header[..2]).bytes(&header[6..10]).bytes(&header[12..]),
        Version::V6 => Sum::default(),
    }
}

/// The transport header's words but those that differ between the packets, and the checksum.
fn constant_transport_sum(header: &[u8], tcp: bool) -> Sum {
    if tcp {
        // Sequence number, and data offset with flags, differ.
        Sum::of(&header[..4])
            .bytes(&header[8..12])
            .bytes(&header[14..TCP_CHECKSUM])
            .bytes(&header[TCP_CHECKSUM + 2..])
    } else {
        Sum::of(&header[..4])
    }
}
