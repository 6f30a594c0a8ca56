//! Any bytes as what a TUN descriptor with offloads gives, and any packets as what is put together for it: what is cut apart is
//! complete, and what is put together falls apart into the same bytes.

use patronus_io::ip::{PROTO_TCP, PROTO_UDP, Packet, Sum};
use patronus_io::offload::coalesce::{Accepts, Planner};
use patronus_io::offload::split::{SuperPacket, complete_checksum};
use patronus_io::offload::{VNET_HEADER, VnetHeader};
use patronus_mem::BURST_MAX;

use super::input::Input;

/// The first byte chooses: a virtio-net header and a super-packet, or several packets, each after its length.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    if input.u8() & 1 == 0 {
        let Some((header, packet)) = input.0.split_first_chunk::<VNET_HEADER>() else {
            return;
        };
        cut(&VnetHeader::decode(header), packet);
    } else {
        let mut packets = Vec::new();
        while !input.is_empty() && packets.len() < BURST_MAX + 1 {
            let len = usize::from(input.u16());
            packets.push(input.take(len).to_vec());
        }
        merge(&packets);
    }
}

fn cut(vnet: &VnetHeader, packet: &[u8]) {
    assert_eq!(VnetHeader::decode(&vnet.encode()).gso_size, vnet.gso_size);
    let mut single = packet.to_vec();
    if complete_checksum(vnet, &mut single).is_ok() {
        assert_eq!(single.len(), packet.len());
    }
    let Ok(mut rest) = SuperPacket::parse(vnet, packet) else {
        return;
    };
    let mut packets = Vec::new();
    let mut out = vec![0; usize::from(u16::MAX)];
    let mut payload = 0;
    while rest.remaining() > 0 && packets.len() < 4 * BURST_MAX {
        let (expected, before) = (rest.next_len(), rest.remaining());
        assert_eq!(rest.write_next(packet, &mut out[..expected - 1]), 0, "no room");
        assert_eq!(rest.write_next(packet, &mut out), expected);
        assert_eq!(rest.remaining(), before - 1);
        payload += expected;
        assert!(is_complete(&out[..expected]), "{:02x?}", &out[..expected]);
        packets.push(out[..expected].to_vec());
    }
    assert!(payload >= packet.len() || rest.remaining() > 0);
    merge(&packets);
}

/// Whether the packet's lengths and checksums are right.
fn is_complete(bytes: &[u8]) -> bool {
    let Ok(packet) = Packet::parse(bytes) else {
        return false;
    };
    let Ok(transport) = packet.transport() else {
        return false;
    };
    let segment = &packet.bytes()[transport.offset..];
    let sum = packet.pseudo_sum(transport.protocol, segment.len());
    let pseudo = sum.partial();
    let header_is_right = !packet.src().is_ipv4() || Sum::of(&bytes[..packet.header_len()]).is_valid();
    let sum_is_right = Sum::of(segment).word(pseudo).is_valid();
    packet.total_len() == bytes.len()
        && matches!(transport.protocol, PROTO_TCP | PROTO_UDP)
        && header_is_right
        && sum_is_right
}

fn merge(packets: &[Vec<u8>]) {
    let packets: Vec<&[u8]> = packets.iter().map(Vec::as_slice).collect();
    let mut planner = Planner::new(Accepts { tcp: true, udp: true });
    for packets in packets.chunks(BURST_MAX) {
        planner.plan(packets);
        let mut seen = [false; BURST_MAX];
        for group in 0..planner.len() {
            let members: Vec<usize> = planner.members(group).collect();
            assert_eq!(members.len(), planner.count(group));
            for member in &members {
                assert!(
                    !std::mem::replace(&mut seen[*member], true),
                    "a packet in two groups"
                );
            }
            if let Some(headers) = planner.super_headers(group, packets) {
                let mut whole = headers.bytes()[VNET_HEADER..].to_vec();
                for member in &members {
                    whole.extend_from_slice(&packets[*member][headers.skip()..]);
                }
                assert_eq!(whole.len(), headers.total());
                let vnet = headers
                    .bytes()
                    .first_chunk::<VNET_HEADER>()
                    .expect("a virtio-net header");
                falls_apart(
                    &VnetHeader::decode(vnet),
                    &whole,
                    members.iter().map(|member| packets[*member]),
                );
            }
        }
        assert!(
            seen[..packets.len()].iter().all(|seen| *seen),
            "a packet in no group"
        );
    }
}

/// Cutting the super-packet gives these packets again. Only their IPv4 identification may differ where it means nothing: whoever cuts
/// counts it up, and with DF set it may have been the same in all (RFC 6864).
fn falls_apart<'a>(vnet: &VnetHeader, whole: &[u8], packets: impl Iterator<Item = &'a [u8]>) {
    let mut rest = SuperPacket::parse(vnet, whole).expect("a super-packet");
    let mut out = vec![0; usize::from(u16::MAX)];
    let mut first_id = None;
    for packet in packets {
        let len = rest.write_next(whole, &mut out);
        let mut expected = packet.to_vec();
        if let [0x45, _, _, _, hi, lo, flags, ..] = *packet {
            let constant = flags & 0x40 != 0 && *first_id.get_or_insert([hi, lo]) == [hi, lo];
            if constant {
                expected[4..6].copy_from_slice(&out[4..6]);
                expected[10..12].copy_from_slice(&out[10..12]);
                assert!(Sum::of(&out[..20]).is_valid());
            }
        }
        assert_eq!(out[..len], expected);
    }
    assert_eq!(rest.remaining(), 0);
}
