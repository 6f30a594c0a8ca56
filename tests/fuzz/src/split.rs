//! Super-packets from the kernel: the first ten bytes are the virtio-net header.

use patronus_io::ip::Packet;
use patronus_io::offload::split::{SuperPacket, complete_checksum};
use patronus_io::offload::{Gso, SUPER_MAX, VNET_HEADER, VnetHeader};

use crate::packets::Shape;

/// What is accepted is cut into valid packets whose payloads are the super-packet's, in order.
pub fn check(data: &[u8]) {
    let Some((front, packet)) = data.split_first_chunk::<VNET_HEADER>() else {
        return;
    };
    let vnet = VnetHeader::decode(front);
    let mut single = packet.to_vec();
    let _ = complete_checksum(&vnet, &mut single);
    assert_eq!(single.len(), packet.len());

    let Ok(mut whole) = SuperPacket::parse(&vnet, packet) else {
        return;
    };
    let (mut out, mut payload, mut headers) = (vec![0; SUPER_MAX], Vec::new(), None);
    while whole.remaining() > 0 {
        let (expected, left) = (whole.next_len(), whole.remaining());
        assert!((1..=packet.len()).contains(&expected));
        assert_eq!(
            whole.write_next(packet, &mut out[..expected - 1]),
            0,
            "no room, no packet"
        );
        assert_eq!(whole.write_next(packet, &mut out), expected);
        assert_eq!(whole.remaining(), left - 1);
        let segment = Packet::parse(&out[..expected]).expect("a piece is a packet");
        assert_eq!(segment.total_len(), expected);
        let offset = segment.transport().expect("with a transport header").offset;
        let start = *headers.get_or_insert_with(|| offset + transport_header(&vnet, &packet[offset..]));
        payload.extend_from_slice(&out[start..expected]);
    }
    assert_eq!(whole.next_len(), 0);
    assert_eq!(payload, packet[headers.unwrap_or(packet.len())..]);
}

fn transport_header(vnet: &VnetHeader, header: &[u8]) -> usize {
    if vnet.gso == Gso::Udp {
        8
    } else {
        usize::from(header[12] >> 4) * 4
    }
}

/// A super-packet of each kind, and a single packet whose checksum is unfinished.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (v6, tcp) in [(false, false), (false, true), (true, false), (true, true)] {
        let transport = if v6 { 40 } else { 20 };
        let vnet = VnetHeader {
            needs_csum: true,
            gso: match (tcp, v6) {
                (true, false) => Gso::TcpV4,
                (true, true) => Gso::TcpV6,
                (false, _) => Gso::Udp,
            },
            hdr_len: transport + if tcp { 20 } else { 8 },
            gso_size: 100,
            csum_start: transport,
            csum_offset: if tcp { 16 } else { 6 },
        };
        for (vnet, payload) in [
            (vnet, 350),
            (
                VnetHeader {
                    gso: Gso::None,
                    ..vnet
                },
                20,
            ),
        ] {
            seeds.push([&vnet.encode()[..], &Shape::new(v6, tcp, payload).build()].concat());
        }
    }
    seeds
}
