//! Splitting and coalescing against a builder that makes every packet from nothing.

use patronus_io::offload::coalesce::{Accepts, Planner};
use patronus_io::offload::split::{SuperPacket, complete_checksum, complete_unfinished};
use patronus_io::offload::{Gso, VNET_HEADER, VnetHeader};
use proptest::prelude::*;

const ALL: Accepts = Accepts { tcp: true, udp: true };
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const CWR: u8 = 0x80;

/// One packet's headers in readable form: the oracle's side of every comparison.
#[derive(Clone, Debug)]
struct Spec {
    v4: bool,
    tcp: bool,
    tos: u8,
    ttl: u8,
    id: u16,
    df: bool,
    flow_label: u32,
    src: u8,
    dst: u8,
    ports: (u16, u16),
    seq: u32,
    ack: u32,
    flags: u8,
    window: u16,
    options: Vec<u8>,
    payload: Vec<u8>,
}

impl Spec {
    fn simple(v4: bool, tcp: bool, payload: Vec<u8>) -> Spec {
        Spec {
            v4,
            tcp,
            tos: 0,
            ttl: 64,
            id: 1000,
            df: true,
            flow_label: 0x12345,
            src: 1,
            dst: 2,
            ports: (4000, 443),
            seq: 0xffff_f000,
            ack: 77,
            flags: ACK,
            window: 512,
            options: if tcp {
                vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]
            } else {
                Vec::new()
            },
            payload,
        }
    }

    fn transport_len(&self) -> usize {
        if self.tcp {
            20 + self.options.len() + self.payload.len()
        } else {
            8 + self.payload.len()
        }
    }

    fn ip_len(&self) -> usize {
        if self.v4 { 20 } else { 40 }
    }

    /// The packet with a field of zero where the transport's checksum goes, and that field's place.
    fn unsummed(&self) -> (Vec<u8>, usize) {
        let mut p = Vec::new();
        if self.v4 {
            p.extend([0x45, self.tos]);
            p.extend(((20 + self.transport_len()) as u16).to_be_bytes());
            p.extend(self.id.to_be_bytes());
            p.extend([
                if self.df { 0x40 } else { 0 },
                0,
                self.ttl,
                if self.tcp { 6 } else { 17 },
                0,
                0,
            ]);
            p.extend([10, 0, 0, self.src, 10, 0, 1, self.dst]);
            let sum = !sum(&p, 0);
            p[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            p.extend((6 << 28 | u32::from(self.tos) << 20 | self.flow_label & 0xfffff).to_be_bytes());
            p.extend((self.transport_len() as u16).to_be_bytes());
            p.extend([if self.tcp { 6 } else { 17 }, self.ttl]);
            p.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, self.src]);
            p.extend([0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, self.dst]);
        }
        let at = p.len();
        p.extend(self.ports.0.to_be_bytes());
        p.extend(self.ports.1.to_be_bytes());
        let field = if self.tcp {
            p.extend(self.seq.to_be_bytes());
            p.extend(self.ack.to_be_bytes());
            p.extend([(((20 + self.options.len()) / 4) << 4) as u8, self.flags]);
            p.extend(self.window.to_be_bytes());
            p.extend([0, 0, 0, 0]);
            p.extend(&self.options);
            at + 16
        } else {
            p.extend((self.transport_len() as u16).to_be_bytes());
            p.extend([0, 0]);
            at + 6
        };
        p.extend(&self.payload);
        (p, field)
    }

    fn pseudo(&self) -> u16 {
        let (packet, _) = self.unsummed();
        let addresses = if self.v4 { &packet[12..20] } else { &packet[8..40] };
        sum(
            addresses,
            self.transport_len() as u64 + if self.tcp { 6 } else { 17 },
        )
    }

    /// As it goes over a wire.
    fn packet(&self) -> Vec<u8> {
        let (mut packet, field) = self.unsummed();
        let sum = !sum(&packet[self.ip_len()..], u64::from(self.pseudo()));
        let sum = if sum == 0 && !self.tcp { 0xffff } else { sum };
        packet[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    /// As the kernel gives it when it leaves the checksum to us.
    fn partial(&self) -> Vec<u8> {
        let (mut packet, field) = self.unsummed();
        packet[field..field + 2].copy_from_slice(&self.pseudo().to_be_bytes());
        packet
    }

    fn vnet(&self, mss: usize) -> VnetHeader {
        VnetHeader {
            needs_csum: true,
            gso: match (self.tcp, self.v4) {
                (true, true) => Gso::TcpV4,
                (true, false) => Gso::TcpV6,
                (false, _) => Gso::Udp,
            },
            hdr_len: (self.ip_len() + self.transport_len() - self.payload.len()) as u16,
            gso_size: mss as u16,
            csum_start: self.ip_len() as u16,
            csum_offset: if self.tcp { 16 } else { 6 },
        }
    }

    /// The packets that this one stands for when it is a super-packet.
    fn segments(&self, mss: usize) -> Vec<Spec> {
        let count = self.payload.len().div_ceil(mss);
        self.payload
            .chunks(mss)
            .enumerate()
            .map(|(i, payload)| {
                let mut one = Spec {
                    payload: payload.to_vec(),
                    ..self.clone()
                };
                one.id = self.id.wrapping_add(i as u16);
                one.seq = self.seq.wrapping_add((i * mss) as u32);
                if i + 1 < count {
                    one.flags &= !(FIN | PSH);
                }
                if i > 0 {
                    one.flags &= !CWR;
                }
                one
            })
            .collect()
    }
}

/// Ones' complement sum, folded, not complemented.
fn sum(bytes: &[u8], start: u64) -> u16 {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        sum += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn split(vnet: &VnetHeader, packet: &[u8]) -> Vec<Vec<u8>> {
    let mut cut = SuperPacket::parse(vnet, packet).expect("a super-packet");
    let mut packets = Vec::new();
    while cut.remaining() > 0 {
        let mut out = vec![0xaa; cut.next_len() + 3];
        let len = cut.write_next(packet, &mut out);
        assert_eq!(out[len..], [0xaa; 3], "wrote behind its packet");
        out.truncate(len);
        packets.push(out);
    }
    packets
}

/// What a plan would write: for each write its virtio-net header and packet.
fn writes(planner: &mut Planner, packets: &[Vec<u8>]) -> Vec<(Option<VnetHeader>, Vec<u8>, Vec<usize>)> {
    let slices: Vec<&[u8]> = packets.iter().map(Vec::as_slice).collect();
    planner.plan(&slices);
    (0..planner.len())
        .map(|group| {
            let members: Vec<usize> = planner.members(group).collect();
            assert_eq!(members.len(), planner.count(group));
            let Some(headers) = planner.super_headers(group, &slices) else {
                assert_eq!(members.len(), 1);
                return (None, packets[members[0]].clone(), members);
            };
            let vnet = VnetHeader::decode(headers.bytes().first_chunk().unwrap());
            let mut bytes = headers.bytes()[VNET_HEADER..].to_vec();
            members
                .iter()
                .for_each(|member| bytes.extend(&packets[*member][headers.skip()..]));
            (Some(vnet), bytes, members)
        })
        .collect()
}

/// How many writes the packets take.
fn write_count(packets: &[Vec<u8>]) -> usize {
    writes(&mut Planner::new(ALL), packets).len()
}

fn super_packet() -> impl Strategy<Value = (Spec, usize)> {
    let fields = (
        any::<(bool, bool, u8, u8, u16, bool, u32)>(),
        any::<(u8, u8, (u16, u16), u32, u32, u16)>(),
    );
    let flags = prop_oneof![
        Just(ACK),
        Just(ACK | PSH),
        Just(ACK | PSH | FIN),
        Just(ACK | CWR),
        any::<u8>()
    ];
    let options = proptest::collection::vec(any::<u32>(), 0..=10);
    let sizes = prop_oneof![
        (1..1500usize, 1..20_000usize),
        (1..3usize, 1..200usize),
        (500..1500usize, 60_000..65_400usize)
    ];
    (fields, flags, options, sizes, any::<u8>()).prop_map(|(fields, flags, options, (mss, len), seed)| {
        let ((v4, tcp, tos, ttl, id, df, flow_label), (src, dst, ports, seq, ack, window)) = fields;
        let mut spec = Spec {
            options: if tcp {
                options.iter().flat_map(|o| o.to_be_bytes()).collect()
            } else {
                Vec::new()
            },
            payload: (0..len).map(|i| (i * 31 + i / 251) as u8 ^ seed).collect(),
            ..Spec::simple(v4, tcp, Vec::new())
        };
        (spec.tos, spec.ttl, spec.id, spec.df, spec.flow_label) = (tos, ttl, id, df, flow_label);
        (spec.src, spec.dst, spec.ports, spec.seq, spec.ack, spec.window) =
            (src, dst, ports, seq, ack, window);
        spec.flags = flags;
        let room = 65_535 - spec.ip_len() - (spec.transport_len() - spec.payload.len());
        spec.payload.truncate(room);
        (spec, mss)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn c46_a_super_packet_is_cut_as_the_oracle_cuts_it((spec, mss) in super_packet()) {
        let expected: Vec<_> = spec.segments(mss).iter().map(Spec::packet).collect();
        let cut = split(&spec.vnet(mss), &spec.partial());
        prop_assert_eq!(cut.len(), expected.len());
        for (got, wanted) in cut.iter().zip(&expected) {
            prop_assert_eq!(got, wanted);
        }
        // What stands in the checksum field, and what the kernel says of the headers, is not used.
        let vnet = VnetHeader { hdr_len: 1, csum_start: 3, csum_offset: 5, needs_csum: false, ..spec.vnet(mss) };
        prop_assert_eq!(split(&vnet, &spec.packet()), expected);
    }

    #[test]
    fn c46_cutting_and_coalescing_gives_the_super_packet_back((mut spec, mss) in super_packet()) {
        spec.flags = ACK | spec.flags & PSH;
        // What one burst holds.
        spec.payload.truncate(mss * 64);
        let original = spec.partial();
        let packets = split(&spec.vnet(mss), &original);
        let written = writes(&mut Planner::new(ALL), &packets);
        prop_assert_eq!(written.len(), 1);
        let (vnet, bytes, members) = &written[0];
        if packets.len() == 1 {
            prop_assert_eq!(*vnet, None);
            prop_assert_eq!(bytes, &spec.packet());
        } else {
            prop_assert_eq!(*vnet, Some(spec.vnet(mss)));
            prop_assert_eq!(bytes, &original);
            prop_assert_eq!(members, &(0..packets.len()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn c45_c46_interleaved_flows_stay_in_order_and_byte_identical(
        picks in proptest::collection::vec((0..6usize, 0..10u8), 1..=64),
        sizes in proptest::collection::vec(1..1400usize, 6),
    ) {
        let mut next: Vec<Spec> = (0..6u8)
            .map(|i| {
                let mut spec = Spec::simple(i % 2 == 0, i < 4, vec![i; sizes[usize::from(i)]]);
                spec.ports.0 += u16::from(i);
                spec
            })
            .collect();
        let mut packets = Vec::new();
        for (flow, event) in picks {
            let mut spec = next[flow].clone();
            match event {
                0 => spec.flags = ACK | PSH,
                1 => spec.flags = ACK | FIN,
                2 => spec.payload.truncate(spec.payload.len() / 2),
                3 => spec.payload.push(0),
                4 => spec.seq = spec.seq.wrapping_add(1),
                _ => {}
            }
            next[flow].seq = spec.seq.wrapping_add(spec.payload.len() as u32);
            next[flow].id = spec.id.wrapping_add(1);
            packets.push((flow, spec.packet()));
        }
        let (flows, packets): (Vec<_>, Vec<_>) = packets.into_iter().unzip();
        let written = writes(&mut Planner::new(ALL), &packets);
        let mut order: Vec<usize> = Vec::new();
        for (vnet, bytes, members) in &written {
            prop_assert!(bytes.len() <= 65_535);
            let cut = vnet.map_or_else(|| vec![bytes.clone()], |vnet| split(&vnet, bytes));
            let originals: Vec<_> = members.iter().map(|member| packets[*member].clone()).collect();
            prop_assert_eq!(cut, originals);
            order.extend(members);
        }
        for flow in 0..6 {
            let sent: Vec<_> = order.iter().filter(|member| flows[**member] == flow).collect();
            prop_assert!(sent.is_sorted(), "flow {} was reordered", flow);
        }
        order.sort_unstable();
        prop_assert_eq!(order, (0..packets.len()).collect::<Vec<_>>());
    }

    #[test]
    fn c66_random_bytes_are_neither_cut_nor_merged_wrongly(
        packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..120), 0..64),
        header: [u8; VNET_HEADER],
        version in prop_oneof![Just(0x45u8), Just(0x60), any::<u8>()],
    ) {
        let packets: Vec<Vec<u8>> = packets
            .into_iter()
            .map(|mut packet| {
                if let Some(first) = packet.first_mut() {
                    *first = version;
                }
                packet
            })
            .collect();
        let written = writes(&mut Planner::new(ALL), &packets);
        // Random checksums are right once in 65,536: everything goes alone.
        prop_assert_eq!(written.len(), packets.len());
        let vnet = VnetHeader::decode(&header);
        for packet in &packets {
            if let Ok(cut) = SuperPacket::parse(&vnet, packet) {
                prop_assert!(cut.remaining() <= packet.len());
                split(&vnet, packet);
            }
            let mut packet = packet.clone();
            let _ = complete_checksum(&vnet, &mut packet);
            complete_unfinished(&mut packet);
        }
    }

    #[test]
    fn a_damaged_super_packet_never_panics((spec, mss) in super_packet(), at: usize, value: u8, cut: usize) {
        let mut bytes = spec.partial();
        let headers = bytes.len() - spec.payload.len();
        bytes[at % headers] = value;
        let whole = bytes.len();
        bytes.truncate(whole - cut % 50.min(whole));
        let vnet = spec.vnet(mss);
        if let Ok(cut) = SuperPacket::parse(&vnet, &bytes) {
            prop_assert!(cut.remaining() <= bytes.len());
            split(&vnet, &bytes);
        }
    }

    #[test]
    fn a_lone_packets_checksum_is_completed((mut spec, _) in super_packet()) {
        spec.payload.truncate(1400);
        let mut packet = spec.partial();
        complete_checksum(&spec.vnet(0), &mut packet).unwrap();
        let (field, transport) = (spec.unsummed().1, spec.ip_len());
        let verified = sum(&packet[transport..], u64::from(spec.pseudo()));
        prop_assert_eq!(verified, 0xffff);
        prop_assert_ne!(&packet[field..field + 2], &[0, 0]);
        // Without being told, once and not again.
        let mut untold = spec.partial();
        for _ in 0..2 {
            complete_unfinished(&mut untold);
            prop_assert_eq!(&untold, &packet);
        }
        packet[field..field + 2].copy_from_slice(&spec.partial()[field..field + 2]);
        prop_assert_eq!(packet, spec.partial());
    }

    #[test]
    fn a_checksum_that_is_wrong_stays_wrong((mut spec, _) in super_packet(), change in 1..0xffff_u16) {
        spec.payload.truncate(1400);
        let field = spec.unsummed().1;
        let mut packet = spec.partial();
        let partial = u16::from_be_bytes([packet[field], packet[field + 1]]);
        packet[field..field + 2].copy_from_slice(&partial.wrapping_add(change).to_be_bytes());
        let before = packet.clone();
        complete_unfinished(&mut packet);
        prop_assert_eq!(packet, before);
    }
}

#[test]
fn checksums_outside_the_packet_are_refused() {
    let mut packet = vec![1; 40];
    let vnet = |csum_start, csum_offset| VnetHeader {
        needs_csum: true,
        csum_start,
        csum_offset,
        ..VnetHeader::SINGLE
    };
    assert!(complete_checksum(&vnet(20, 18), &mut packet).is_ok());
    for (start, offset) in [(20, 19), (41, 0), (40, 0), (u16::MAX, u16::MAX), (0, u16::MAX)] {
        let before = packet.clone();
        assert!(
            complete_checksum(&vnet(start, offset), &mut packet).is_err(),
            "{start} {offset}"
        );
        assert_eq!(packet, before);
    }
}

#[test]
fn the_virtio_header_has_the_kernels_layout() {
    let spec = Spec::simple(true, true, vec![0; 100]);
    let expected: Vec<u8> = [
        [1, 1],
        52u16.to_ne_bytes(),
        10u16.to_ne_bytes(),
        20u16.to_ne_bytes(),
        16u16.to_ne_bytes(),
    ]
    .concat();
    assert_eq!(spec.vnet(10).encode().to_vec(), expected);
    assert_eq!(VnetHeader::SINGLE.encode(), [0; VNET_HEADER]);
    // The ECN bit of the kind does not hide the kind.
    let decoded = VnetHeader::decode(&[1, 0x81, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!((decoded.gso, decoded.needs_csum), (Gso::TcpV4, true));
    for kind in [Gso::None, Gso::TcpV4, Gso::TcpV6, Gso::Udp, Gso::Other(3)] {
        let header = VnetHeader {
            gso: kind,
            ..VnetHeader::SINGLE
        };
        assert_eq!(VnetHeader::decode(&header.encode()), header);
    }
}

#[test]
fn c66_super_packets_that_contradict_themselves_are_refused() {
    let spec = Spec::simple(true, true, vec![0; 3000]);
    let (vnet, packet) = (spec.vnet(1000), spec.partial());
    assert!(SuperPacket::parse(&vnet, &packet).is_ok());
    let refused = |vnet: VnetHeader, change: &dyn Fn(&mut Vec<u8>)| {
        let mut packet = packet.clone();
        change(&mut packet);
        SuperPacket::parse(&vnet, &packet).is_err()
    };
    assert!(refused(VnetHeader { gso_size: 0, ..vnet }, &|_| ()));
    assert!(refused(
        VnetHeader {
            gso: Gso::TcpV6,
            ..vnet
        },
        &|_| ()
    ));
    assert!(refused(
        VnetHeader {
            gso: Gso::Udp,
            ..vnet
        },
        &|_| ()
    ));
    assert!(refused(
        VnetHeader {
            gso: Gso::None,
            ..vnet
        },
        &|_| ()
    ));
    assert!(refused(
        VnetHeader {
            gso: Gso::Other(3),
            ..vnet
        },
        &|_| ()
    ));
    assert!(refused(vnet, &|p| p.push(0)), "longer than it says");
    assert!(refused(vnet, &|p| p.truncate(2000)), "shorter than it says");
    assert!(refused(vnet, &|p| p[6] = 0x20), "a fragment");
    assert!(refused(vnet, &|p| p[9] = 17), "not TCP");
    assert!(refused(vnet, &|p| p[32] = 0x40), "a TCP header of 16");
    let empty = Spec::simple(true, true, Vec::new());
    assert!(SuperPacket::parse(&vnet, &empty.partial()).is_err(), "no payload");
    let short = [&Spec::simple(true, false, Vec::new()).partial()[..]].concat();
    assert!(
        SuperPacket::parse(
            &VnetHeader {
                gso: Gso::Udp,
                ..vnet
            },
            &short
        )
        .is_err(),
        "no payload"
    );
}

#[test]
fn a_segment_that_does_not_fit_is_not_written() {
    let spec = Spec::simple(false, true, vec![7; 2500]);
    let packet = spec.partial();
    let mut cut = SuperPacket::parse(&spec.vnet(1000), &packet).unwrap();
    let mut out = vec![0; cut.next_len() - 1];
    assert_eq!((cut.write_next(&packet, &mut out), cut.remaining()), (0, 3));
    let mut out = vec![0; cut.next_len()];
    assert_eq!(
        cut.write_next(&packet[1..], &mut out),
        0,
        "other bytes than those that were parsed"
    );
    assert_eq!((cut.write_next(&packet, &mut out), cut.remaining()), (1072, 2));
    assert_eq!((cut.write_next(&packet, &mut out), cut.remaining()), (1072, 1));
    assert_eq!(
        (cut.next_len(), cut.write_next(&packet, &mut out), cut.remaining()),
        (572, 572, 0)
    );
    assert_eq!((cut.next_len(), cut.write_next(&packet, &mut out)), (0, 0));
}

/// Two packets of which the second continues the first, but for what `change` does to it.
fn merges(v4: bool, tcp: bool, change: impl Fn(&mut Spec)) -> bool {
    let first = Spec::simple(v4, tcp, vec![1; 1000]);
    let mut second = Spec {
        id: 1001,
        seq: first.seq.wrapping_add(1000),
        ..first.clone()
    };
    change(&mut second);
    match write_count(&[first.packet(), second.packet()]) {
        1 => true,
        2 => false,
        other => panic!("{other} writes of two packets"),
    }
}

#[test]
fn c46_only_what_can_be_cut_again_is_merged() {
    for v4 in [true, false] {
        for tcp in [true, false] {
            let kind = format!("v4 {v4} tcp {tcp}");
            assert!(merges(v4, tcp, |_| ()), "{kind}");
            assert!(
                merges(v4, tcp, |s| s.payload.truncate(1)),
                "{kind}: a short last packet"
            );
            assert!(!merges(v4, tcp, |s| s.payload.clear()), "{kind}: no payload");
            assert!(!merges(v4, tcp, |s| s.payload.push(0)), "{kind}: a longer packet");
            assert!(!merges(v4, tcp, |s| s.tos = 4), "{kind}: class");
            assert!(!merges(v4, tcp, |s| s.tos = 3), "{kind}: congestion experienced");
            assert!(!merges(v4, tcp, |s| s.ttl = 63), "{kind}: TTL");
            assert!(!merges(v4, tcp, |s| s.src = 9), "{kind}: source");
            assert!(!merges(v4, tcp, |s| s.dst = 9), "{kind}: destination");
            assert!(!merges(v4, tcp, |s| s.ports.0 += 1), "{kind}: source port");
            assert!(!merges(v4, tcp, |s| s.ports.1 += 1), "{kind}: destination port");
            assert_eq!(merges(v4, tcp, |s| s.df = false), !v4, "{kind}: DF");
            assert_eq!(merges(v4, tcp, |s| s.id += 1), !v4, "{kind}: identification");
            assert!(
                merges(v4, tcp, |s| s.id -= 1),
                "{kind}: constant identification under DF"
            );
            assert_eq!(merges(v4, tcp, |s| s.flow_label += 1), v4, "{kind}: flow label");
            assert!(
                !merges(v4, tcp, |s| (s.v4, s.id) = (!v4, 1001)),
                "{kind}: version"
            );
            assert!(!merges(v4, tcp, |s| s.tcp = !tcp), "{kind}: protocol");
        }
        assert!(merges(v4, true, |s| s.flags = ACK | PSH));
        for flags in [
            0,
            ACK | FIN,
            ACK | SYN,
            ACK | CWR,
            ACK | 0x40,
            ACK | 0x20,
            ACK | 0x04,
            FIN,
            SYN,
        ] {
            assert!(!merges(v4, true, |s| s.flags = flags), "flags {flags:#x}");
        }
        assert!(!merges(v4, true, |s| s.seq += 1), "a hole");
        assert!(!merges(v4, true, |s| s.seq -= 1), "an overlap");
        assert!(!merges(v4, true, |s| s.ack += 1), "acknowledgement");
        assert!(!merges(v4, true, |s| s.window += 1), "window");
        assert!(!merges(v4, true, |s| s.options[11] = 9), "timestamp");
        assert!(!merges(v4, true, |s| s.options.clear()), "header length");
    }
}

#[test]
fn identifications_count_up_or_stay() {
    let train = |ids: &[u16], df| -> usize {
        let packets: Vec<_> = ids
            .iter()
            .map(|id| {
                Spec {
                    id: *id,
                    df,
                    ..Spec::simple(true, false, vec![1; 100])
                }
                .packet()
            })
            .collect();
        write_count(&packets)
    };
    assert_eq!(train(&[5, 6, 7, 8], true), 1);
    assert_eq!(train(&[5, 6, 7, 8], false), 1);
    assert_eq!(train(&[0xfffe, 0xffff, 0, 1], true), 1);
    assert_eq!(train(&[5, 5, 5, 5], true), 1);
    assert_eq!(train(&[5, 5, 5, 5], false), 4);
    assert_eq!(train(&[5, 5, 6, 7], true), 2);
    assert_eq!(train(&[5, 6, 5, 6], true), 2);
    assert_eq!(train(&[5, 6, 6], true), 2);
}

#[test]
fn c44_bad_checksums_are_never_made_good() {
    for (v4, tcp) in [(true, true), (true, false), (false, true), (false, false)] {
        let spec = Spec::simple(v4, tcp, vec![1; 4000]);
        let good: Vec<_> = spec.segments(1000).iter().map(Spec::packet).collect();
        assert_eq!(write_count(&good), 1);
        for damaged in 0..4 {
            let transport = spec.ip_len();
            let places = [transport + 8, good[damaged].len() - 1]
                .into_iter()
                .chain(v4.then_some(10));
            for place in places {
                let mut packets = good.clone();
                packets[damaged][place] ^= 0x10;
                for (vnet, _, members) in writes(&mut Planner::new(ALL), &packets) {
                    assert!(
                        vnet.is_none() || !members.contains(&damaged),
                        "packet {damaged}, byte {place}"
                    );
                }
            }
        }
    }
    // No checksum at all: the kernel would have to make one up.
    let mut packets: Vec<_> = Spec::simple(true, false, vec![1; 2000])
        .segments(1000)
        .iter()
        .map(Spec::packet)
        .collect();
    packets.iter_mut().for_each(|packet| packet[26..28].fill(0));
    assert_eq!(write_count(&packets), 2);
}

#[test]
fn push_and_short_packets_end_a_super_packet() {
    let mut spec = Spec::simple(true, true, vec![1; 6000]);
    spec.flags = ACK | PSH;
    let mut packets: Vec<_> = spec.segments(1000);
    packets[2].flags |= PSH;
    let packets: Vec<_> = packets.iter().map(Spec::packet).collect();
    let written = writes(&mut Planner::new(ALL), &packets);
    assert_eq!(
        written.iter().map(|w| w.2.clone()).collect::<Vec<_>>(),
        [vec![0, 1, 2], vec![3, 4, 5]]
    );
    let flags = 33;
    assert_eq!((written[0].1[flags], written[1].1[flags]), (ACK | PSH, ACK | PSH));

    let datagrams: Vec<_> = [500, 500, 300, 300, 300, 301]
        .iter()
        .enumerate()
        .map(|(i, len)| {
            Spec {
                id: i as u16,
                ..Spec::simple(true, false, vec![1; *len])
            }
            .packet()
        })
        .collect();
    let written = writes(&mut Planner::new(ALL), &datagrams);
    assert_eq!(
        written.iter().map(|w| w.2.clone()).collect::<Vec<_>>(),
        [vec![0, 1, 2], vec![3, 4], vec![5]]
    );
}

#[test]
fn a_super_packet_holds_no_more_than_the_length_field() {
    let one = Spec::simple(true, false, vec![1; 1400]);
    let packets: Vec<_> = (0..64).map(|i| Spec { id: i, ..one.clone() }.packet()).collect();
    let written = writes(&mut Planner::new(ALL), &packets);
    let counts: Vec<_> = written.iter().map(|w| w.2.len()).collect();
    assert_eq!(counts, [46, 18]);
    assert_eq!(written[0].1.len(), 28 + 46 * 1400);
}

#[test]
fn c45_what_goes_alone_does_not_overtake_its_flow() {
    let spec = Spec::simple(true, true, vec![1; 4000]);
    let mut packets: Vec<_> = spec.segments(1000).iter().map(Spec::packet).collect();
    // A pure acknowledgement of the same flow in the middle.
    packets.insert(
        2,
        Spec {
            payload: Vec::new(),
            ..spec.clone()
        }
        .packet(),
    );
    let groups = |packets: &[Vec<u8>]| {
        writes(&mut Planner::new(ALL), packets)
            .into_iter()
            .map(|w| w.2)
            .collect::<Vec<_>>()
    };
    assert_eq!(groups(&packets), [vec![0, 1], vec![2], vec![3, 4]]);
    // Fragments have no ports to tell their flow by.
    packets[2] = spec.segments(1000)[0].packet();
    packets[2][6] = 0x20;
    assert_eq!(groups(&packets), [vec![0, 1], vec![2], vec![3, 4]]);
    // Other protocols, and other flows, do not matter.
    packets[2] = Spec {
        payload: Vec::new(),
        src: 77,
        ..spec.clone()
    }
    .packet();
    assert_eq!(groups(&packets), [vec![0, 1, 3, 4], vec![2]]);
    packets[2][9] = 47;
    assert_eq!(groups(&packets), [vec![0, 1, 3, 4], vec![2]]);
}

#[test]
fn as_many_flows_as_are_open_are_merged_at_once() {
    let train = |flows: u16| -> usize {
        let packets: Vec<_> = (0..64)
            .map(|i| {
                let mut spec = Spec::simple(true, true, vec![1; 100]);
                spec.ports.0 += i % flows;
                spec.seq = spec.seq.wrapping_add(u32::from(i / flows) * 100);
                spec.id = i / flows;
                spec.packet()
            })
            .collect();
        write_count(&packets)
    };
    assert_eq!((train(1), train(2), train(16)), (1, 2, 16));
    assert_eq!(train(17), 64, "more flows than are kept open");
}

#[test]
fn what_the_kernel_does_not_take_is_not_made() {
    let trains = |tcp| -> Vec<_> {
        Spec::simple(true, tcp, vec![1; 3000])
            .segments(1000)
            .iter()
            .map(Spec::packet)
            .collect()
    };
    let mut planner = Planner::new(ALL);
    let mut count = |gso: Option<Gso>| {
        if let Some(gso) = gso {
            planner.refuse(gso);
        }
        (
            writes(&mut planner, &trains(true)).len(),
            writes(&mut planner, &trains(false)).len(),
        )
    };
    assert_eq!(count(None), (1, 1));
    assert_eq!(count(Some(Gso::Udp)), (1, 3));
    assert_eq!(count(Some(Gso::TcpV6)), (3, 3));
    assert_eq!(
        planner.accepts(),
        Accepts {
            tcp: false,
            udp: false
        }
    );
}
