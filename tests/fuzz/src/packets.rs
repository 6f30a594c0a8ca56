//! Inner packets to start from: valid, small, and of every kind that the ports treat in a way of its own.

use patronus_io::ip::{PROTO_TCP, PROTO_UDP, Sum, pseudo_sum};

/// TCP flags PSH and ACK.
const PSH_ACK: u8 = 0x18;
/// TCP flag ACK.
pub const ACK: u8 = 0x10;

/// A TCP or UDP packet in IPv4 or IPv6 with valid checksums.
#[derive(Clone, Copy)]
pub struct Shape {
    /// IPv6 in place of IPv4.
    pub v6: bool,
    /// TCP in place of UDP.
    pub tcp: bool,
    /// TCP sequence number.
    pub seq: u32,
    /// IPv4 identification.
    pub id: u16,
    /// TCP flags.
    pub flags: u8,
    /// Payload bytes.
    pub payload: usize,
}

impl Shape {
    /// A packet with `payload` bytes.
    pub fn new(v6: bool, tcp: bool, payload: usize) -> Shape {
        Shape {
            v6,
            tcp,
            seq: 1000,
            id: 7,
            flags: PSH_ACK,
            payload,
        }
    }

    /// Its bytes.
    pub fn build(self) -> Vec<u8> {
        let mut segment = if self.tcp {
            self.tcp_header()
        } else {
            self.udp_header()
        };
        segment.extend((0..self.payload).map(|i| i as u8));
        let mut packet = if self.v6 {
            self.v6_header(segment.len())
        } else {
            self.v4_header(segment.len())
        };
        let protocol = if self.tcp { PROTO_TCP } else { PROTO_UDP };
        let addresses = if self.v6 { &packet[8..40] } else { &packet[12..20] };
        let sum = pseudo_sum(addresses, protocol, segment.len())
            .bytes(&segment)
            .transport_checksum();
        let at = if self.tcp { 16 } else { 6 };
        segment[at..at + 2].copy_from_slice(&sum);
        packet.extend_from_slice(&segment);
        packet
    }

    fn v4_header(self, length: usize) -> Vec<u8> {
        let mut header = vec![
            0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 0, 0, 0, 10, 77, 0, 1, 10, 77, 0, 2,
        ];
        header[2..4].copy_from_slice(&((20 + length) as u16).to_be_bytes());
        header[4..6].copy_from_slice(&self.id.to_be_bytes());
        header[9] = if self.tcp { PROTO_TCP } else { PROTO_UDP };
        let sum = Sum::of(&header).checksum();
        header[10..12].copy_from_slice(&sum);
        header
    }

    fn v6_header(self, length: usize) -> Vec<u8> {
        let mut header = vec![
            0x60,
            0,
            0,
            0,
            0,
            0,
            if self.tcp { PROTO_TCP } else { PROTO_UDP },
            64,
        ];
        header[4..6].copy_from_slice(&(length as u16).to_be_bytes());
        for host in [1, 2] {
            header.extend([0xfd, 0, 0, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]);
        }
        header
    }

    fn tcp_header(self) -> Vec<u8> {
        let mut header = vec![0; 20];
        header[..4].copy_from_slice(&[0x30, 0x39, 0x00, 0x50]);
        header[4..8].copy_from_slice(&self.seq.to_be_bytes());
        header[8..12].copy_from_slice(&1u32.to_be_bytes());
        header[12] = 0x50;
        header[13] = self.flags;
        header[14..16].copy_from_slice(&[0xff, 0xff]);
        header
    }

    fn udp_header(self) -> Vec<u8> {
        let mut header = vec![0x30, 0x39, 0x00, 0x35, 0, 0, 0, 0];
        header[4..6].copy_from_slice(&((8 + self.payload) as u16).to_be_bytes());
        header
    }
}

/// One packet of each shape, and some that are not whole: fragments, extension headers, options.
pub fn samples() -> Vec<Vec<u8>> {
    let mut samples = Vec::new();
    for (v6, tcp) in [(false, false), (false, true), (true, false), (true, true)] {
        samples.extend([0, 1, 40].map(|payload| Shape::new(v6, tcp, payload).build()));
    }
    // A first and a later IPv4 fragment.
    for offset in [[0x20, 0x00], [0x20, 0x10]] {
        let mut fragment = Shape::new(false, false, 16).build();
        fragment[6..8].copy_from_slice(&offset);
        samples.push(fragment);
    }
    // IPv4 with options: a longer header in front of the same segment.
    let plain = Shape::new(false, true, 4).build();
    let mut options = plain[..20].to_vec();
    options[0] = 0x47;
    options.extend([1; 8]);
    options.extend_from_slice(&plain[20..]);
    let total = options.len() as u16;
    options[2..4].copy_from_slice(&total.to_be_bytes());
    samples.push(options);
    // IPv6 with a hop-by-hop, a routing and a fragment header.
    for extension in [0u8, 43, 44] {
        let plain = Shape::new(true, false, 4).build();
        let mut long = plain[..40].to_vec();
        long[6] = extension;
        long.extend([PROTO_UDP, 0, 0, 0, 0, 0, 0, 0]);
        long.extend_from_slice(&plain[40..]);
        let length = (long.len() - 40) as u16;
        long[4..6].copy_from_slice(&length.to_be_bytes());
        samples.push(long);
    }
    samples
}
