//! Bursts on their way to the kernel. The input is a sequence of packets, each behind its length (two bytes, big-endian).

use patronus_io::ip::Sum;
use patronus_io::offload::coalesce::{Accepts, Planner};
use patronus_io::offload::split::SuperPacket;
use patronus_io::offload::{VNET_HEADER, VnetHeader};
use patronus_mem::BURST_MAX;

use crate::packets::{ACK, Shape, samples};

/// Every packet is in exactly one write, in order within it, and what was merged is cut into the very same packets.
pub fn check(data: &[u8]) {
    let packets = packets(data);
    for accepts in [(true, true), (true, false), (false, true), (false, false)] {
        let mut planner = Planner::new(Accepts {
            tcp: accepts.0,
            udp: accepts.1,
        });
        // Twice: a planner is used again for the next burst.
        for _ in 0..2 {
            planner.plan(&packets);
            verify(&planner, &packets);
        }
    }
}

fn verify(planner: &Planner, packets: &[&[u8]]) {
    let mut seen = vec![false; packets.len()];
    for group in 0..planner.len() {
        let members: Vec<usize> = planner.members(group).collect();
        assert_eq!(members.len(), planner.count(group));
        assert!(members.is_sorted() && !members.is_empty());
        for &member in &members {
            assert!(!std::mem::replace(&mut seen[member], true), "in two writes");
        }
        let Some(headers) = planner.super_headers(group, packets) else {
            assert_eq!(members.len(), 1);
            continue;
        };
        let mut whole = headers.bytes().to_vec();
        members
            .iter()
            .for_each(|&member| whole.extend_from_slice(&packets[member][headers.skip()..]));
        split_again(&whole, &members, packets);
    }
    assert!(seen.iter().all(|&seen| seen), "in no write");
}

/// The kernel, in place of which stands our own splitter, must see the original packets.
fn split_again(whole: &[u8], members: &[usize], packets: &[&[u8]]) {
    let (front, packet) = whole
        .split_first_chunk::<VNET_HEADER>()
        .expect("a virtio-net header");
    let mut pieces = SuperPacket::parse(&VnetHeader::decode(front), packet).expect("a valid super-packet");
    assert_eq!(pieces.remaining(), members.len());
    let mut out = vec![0; packet.len()];
    for &member in members {
        let length = pieces.write_next(packet, &mut out);
        assert_eq!(comparable(&out[..length]), comparable(packets[member]));
    }
}

/// The packet, without the IPv4 identification and the header checksum over it where the field means nothing: under DF
/// (RFC 6864), packets that all have the same one come back counted up.
fn comparable(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 4 && packet[6] & 0x40 != 0 {
        assert!(Sum::of(&packet[..20]).is_valid());
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

fn packets(mut data: &[u8]) -> Vec<&[u8]> {
    let mut packets = Vec::new();
    while let Some((length, rest)) = data.split_first_chunk()
        && packets.len() < BURST_MAX
    {
        let (packet, rest) = rest.split_at(usize::from(u16::from_be_bytes(*length)).min(rest.len()));
        packets.push(packet);
        data = rest;
    }
    packets
}

fn joined(packets: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    let framed = |packet: Vec<u8>| [&(packet.len() as u16).to_be_bytes(), &packet[..]].concat();
    packets.into_iter().flat_map(framed).collect()
}

/// Runs of mergeable packets of each kind, two flows interleaved, and one of everything.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![joined(samples())];
    for (v6, tcp) in [(false, false), (false, true), (true, false), (true, true)] {
        let run = || {
            (0..5u32).map(move |i| {
                let shape = Shape {
                    seq: 1000 + i * 60,
                    id: 7 + i as u16,
                    flags: ACK,
                    ..Shape::new(v6, tcp, if i == 4 { 30 } else { 60 })
                };
                shape.build()
            })
        };
        seeds.push(joined(run()));
        seeds.push(joined(run().zip(samples()).flat_map(|(one, other)| [one, other])));
    }
    seeds
}
