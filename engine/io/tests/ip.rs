//! Headers and checksums against implementations that are too simple to be wrong.

use std::net::IpAddr;

use patronus_io::ip::{self, FlowKey, Malformed, Packet, Sum, Version};
use proptest::prelude::*;

/// RFC 1071 word by word.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum = 0u64;
    for pair in bytes.chunks(2) {
        sum += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

fn v4(total: u16, header_len: usize, len: usize) -> Vec<u8> {
    let mut packet = vec![0; len];
    packet[0] = 0x40 | (header_len / 4) as u8;
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    packet
}

fn v6(next: u8, behind: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 40];
    packet[0] = 0x60;
    packet[4..6].copy_from_slice(&(behind.len() as u16).to_be_bytes());
    packet[6] = next;
    packet.extend_from_slice(behind);
    packet
}

#[test]
fn c35_lengths_that_contradict_are_refused() {
    let kind = |bytes: &[u8]| Packet::parse(bytes).map(|p| p.total_len());
    assert_eq!(kind(&[]), Err(Malformed::NotIp));
    for nibble in (0..16u8).filter(|n| !matches!(n, 4 | 6)) {
        assert_eq!(
            kind(&[nibble << 4; 60]),
            Err(Malformed::NotIp),
            "version {nibble}"
        );
    }
    assert_eq!(kind(&v4(20, 20, 20)), Ok(20));
    assert_eq!(kind(&v4(20, 20, 32)), Ok(20), "padding");
    assert_eq!(kind(&v4(20, 20, 20)[..19]), Err(Malformed::Truncated));
    assert_eq!(kind(&v4(19, 20, 40)), Err(Malformed::TotalLength));
    assert_eq!(kind(&v4(0, 20, 40)), Err(Malformed::TotalLength));
    assert_eq!(kind(&v4(41, 20, 40)), Err(Malformed::TotalLength));
    assert_eq!(kind(&v4(23, 24, 40)), Err(Malformed::TotalLength));
    assert_eq!(kind(&v4(40, 16, 40)), Err(Malformed::HeaderLength));
    assert_eq!(kind(&v4(40, 0, 40)), Err(Malformed::HeaderLength));
    assert_eq!(kind(&v4(40, 44, 40)), Err(Malformed::HeaderLength));
    assert_eq!(kind(&v4(60, 60, 60)), Ok(60));
    assert_eq!(kind(&v6(59, &[])), Ok(40));
    assert_eq!(kind(&v6(59, &[0; 9])), Ok(49));
    assert_eq!(kind(&v6(59, &[0; 9])[..48]), Err(Malformed::TotalLength));
    assert_eq!(kind(&v6(59, &[])[..39]), Err(Malformed::Truncated));
    let mut padded = v6(59, &[1; 9]);
    padded.extend([0; 7]);
    assert_eq!(Packet::parse(&padded).unwrap().bytes(), &padded[..49]);
}

#[test]
fn addresses_and_fields_are_where_they_belong() {
    let mut packet = v4(28, 20, 28);
    packet[1] = 0xb9;
    packet[6] = 0x40;
    packet[8] = 61;
    packet[9] = 17;
    packet[12..20].copy_from_slice(&[10, 1, 2, 3, 192, 168, 4, 5]);
    packet[20..24].copy_from_slice(&[0x12, 0x34, 0xab, 0xcd]);
    let parsed = Packet::parse(&packet).unwrap();
    assert_eq!(
        (parsed.version(), parsed.header_len(), parsed.tos()),
        (Version::V4, 20, 0xb9)
    );
    assert_eq!(parsed.src(), "10.1.2.3".parse::<IpAddr>().unwrap());
    assert_eq!(parsed.dst(), "192.168.4.5".parse::<IpAddr>().unwrap());
    let flow = parsed.flow();
    assert_eq!(
        (flow.protocol(), flow.src_port(), flow.dst_port()),
        (17, 0x1234, 0xabcd)
    );

    let mut packet = v6(6, &[0x12, 0x34, 0xab, 0xcd, 0, 0, 0, 0]);
    packet[0] = 0x6b;
    packet[1] = 0x9f;
    packet[7] = 3;
    packet[8..24].copy_from_slice(&[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    packet[24..40].copy_from_slice(&[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    let parsed = Packet::parse(&packet).unwrap();
    assert_eq!(
        (parsed.version(), parsed.header_len(), parsed.tos()),
        (Version::V6, 40, 0xb9)
    );
    assert_eq!(parsed.src(), "fd00::1".parse::<IpAddr>().unwrap());
    assert_eq!(parsed.dst(), "fd00::2".parse::<IpAddr>().unwrap());
    let flow = parsed.flow();
    assert_eq!(
        (flow.protocol(), flow.src_port(), flow.dst_port()),
        (6, 0x1234, 0xabcd)
    );
    assert_ne!(
        flow,
        Packet::parse(&v6(6, &[0x12, 0x34, 0xab, 0xcd, 0, 0, 0, 0]))
            .unwrap()
            .flow()
    );
}

#[test]
fn c66_fragments_have_no_ports() {
    for (word, fragment, first) in [
        (0x0000u16, false, true),
        (0x4000, false, true),
        (0x2000, true, true),
        (0x0001, true, false),
        (0x3fff, true, false),
    ] {
        let mut packet = v4(28, 20, 28);
        packet[9] = 17;
        packet[6..8].copy_from_slice(&word.to_be_bytes());
        packet[20..24].fill(9);
        let parsed = Packet::parse(&packet).unwrap();
        let found = parsed.transport().unwrap();
        assert_eq!((found.fragment, found.first), (fragment, first), "{word:#x}");
        assert_eq!(
            parsed.flow().src_port(),
            if fragment { 0 } else { 0x0909 },
            "{word:#x}"
        );
    }
    for (word, fragment, first) in [
        (0u16, false, true),
        (1, true, true),
        (8, true, false),
        (9, true, false),
    ] {
        let [hi, lo] = word.to_be_bytes();
        let packet = v6(44, &[17, 0, hi, lo, 0, 0, 0, 0, 9, 9, 9, 9, 0, 8, 0, 0]);
        let parsed = Packet::parse(&packet).unwrap();
        let found = parsed.transport().unwrap();
        assert_eq!((found.protocol, found.offset), (17, 48));
        assert_eq!((found.fragment, found.first), (fragment, first), "{word:#x}");
        assert_eq!(
            parsed.flow().src_port(),
            if fragment { 0 } else { 0x0909 },
            "{word:#x}"
        );
    }
}

#[test]
fn c66_extension_headers_are_followed_within_bounds() {
    let found = |bytes: &[u8]| {
        Packet::parse(bytes)
            .unwrap()
            .transport()
            .map(|t| (t.protocol, t.offset))
    };
    // Hop-by-hop of 8, destination options of 16, authentication of 12, then TCP.
    let mut chain = vec![60, 0, 0, 0, 0, 0, 0, 0];
    chain.extend([51, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    chain.extend([6, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    chain.extend([0; 20]);
    assert_eq!(found(&v6(0, &chain)), Ok((6, 40 + 8 + 16 + 12)));
    // The header ends where the packet does, or behind it.
    assert_eq!(found(&v6(0, &[59, 0, 0, 0, 0, 0, 0, 0])), Ok((59, 48)));
    assert_eq!(
        found(&v6(0, &[59, 1, 0, 0, 0, 0, 0, 0])),
        Err(Malformed::Extensions)
    );
    assert_eq!(found(&v6(0, &[59])), Err(Malformed::Extensions));
    assert_eq!(found(&v6(0, &[])), Err(Malformed::Extensions));
    assert_eq!(found(&v6(44, &[6, 0, 0])), Err(Malformed::Extensions));
    assert_eq!(found(&v6(44, &[6, 0, 0, 0])), Err(Malformed::Extensions));
    // Eight are followed, nine are not.
    let long = |headers: usize| {
        let mut behind = vec![0; headers * 8];
        behind.iter_mut().step_by(8).for_each(|next| *next = 60);
        behind[(headers - 1) * 8] = 17;
        v6(60, &behind)
    };
    assert_eq!(found(&long(8)), Ok((17, 104)));
    assert_eq!(found(&long(9)), Err(Malformed::Extensions));
}

/// A packet that mostly parses: any bytes behind a first byte that says 4 or 6, and any lengths.
fn almost_ip() -> impl Strategy<Value = Vec<u8>> {
    (
        proptest::collection::vec(any::<u8>(), 0..200),
        prop_oneof![Just(4u8), Just(6), 0..16u8],
        0..16u8,
        any::<bool>(),
    )
        .prop_map(|(mut bytes, version, low, fit)| {
            let len = bytes.len() as u16;
            if let Some(first) = bytes.first_mut() {
                *first = version << 4 | low;
            }
            if fit && bytes.len() >= 6 {
                bytes[2..4].copy_from_slice(&len.to_be_bytes());
                bytes[4..6].copy_from_slice(&len.saturating_sub(40).to_be_bytes());
            }
            bytes
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn c35_parsing_any_bytes_agrees_with_the_oracle(bytes in almost_ip()) {
        let declared = match bytes.first().map(|b| b >> 4) {
            Some(4) if bytes.len() >= 20 => {
                let header = usize::from(bytes[0] & 15) * 4;
                let total = usize::from(bytes[2]) * 256 + usize::from(bytes[3]);
                (header >= 20 && header <= total && total <= bytes.len()).then_some((header, total))
            }
            Some(6) if bytes.len() >= 40 => {
                let total = 40 + usize::from(bytes[4]) * 256 + usize::from(bytes[5]);
                (total <= bytes.len()).then_some((40, total))
            }
            _ => None,
        };
        let parsed = Packet::parse(&bytes);
        prop_assert_eq!(parsed.ok().map(|p| (p.header_len(), p.total_len())), declared);
        if let Ok(packet) = parsed {
            // None of these may panic, and offsets stay inside the packet.
            let _ = (packet.src(), packet.dst(), packet.tos(), packet.flow());
            if let Ok(found) = packet.transport() {
                prop_assert!(found.offset >= packet.header_len() && found.offset <= packet.total_len());
            }
        }
    }

    #[test]
    fn c42_setting_the_traffic_class_keeps_the_checksum(mut bytes in almost_ip(), tos: u8, ecn in 0..4u8) {
        let before = bytes.clone();
        if Packet::parse(&bytes).is_err() {
            ip::set_tos(&mut bytes, tos);
            ip::set_ecn(&mut bytes, ecn);
            return Ok(());
        }
        let v4 = bytes[0] >> 4 == 4;
        if v4 {
            bytes[10..12].fill(0);
            let header = usize::from(bytes[0] & 15) * 4;
            let sum = checksum(&bytes[..header]);
            bytes[10..12].copy_from_slice(&sum);
        }
        for (set, expected) in [(true, tos), (false, (tos & 0xfc) | ecn)] {
            if set { ip::set_tos(&mut bytes, tos) } else { ip::set_ecn(&mut bytes, ecn) }
            let packet = Packet::parse(&bytes).unwrap();
            prop_assert_eq!(packet.tos(), expected);
            if v4 {
                prop_assert_eq!(checksum(&bytes[..packet.header_len()]), [0, 0]);
            }
        }
        // Nothing else changed.
        if v4 {
            bytes[1] = before[1];
            bytes[10..12].copy_from_slice(&before[10..12]);
        } else {
            bytes[0] = before[0];
            prop_assert_eq!(bytes[1] & 0x0f, before[1] & 0x0f);
            bytes[1] = before[1];
        }
        prop_assert_eq!(bytes, before);
    }

    #[test]
    fn the_checksum_agrees_with_the_oracle(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
        prop_assert_eq!(Sum::of(&bytes).checksum(), checksum(&bytes));
        let half = bytes.len() / 4 * 2;
        prop_assert_eq!(Sum::of(&bytes[..half]).bytes(&bytes[half..]).checksum(), checksum(&bytes));
        prop_assert_eq!((Sum::of(&bytes[..half]) + Sum::of(&bytes[half..])).checksum(), checksum(&bytes));
        let mut copy = vec![0x55; bytes.len()];
        prop_assert_eq!(ip::copy_and_sum(&mut copy, &bytes).checksum(), checksum(&bytes));
        prop_assert_eq!(copy, bytes);
    }

    #[test]
    fn one_changed_word_updates_the_checksum(mut bytes in proptest::collection::vec(any::<u8>(), 4..64), at: usize, new: [u8; 2]) {
        bytes.truncate(bytes.len() / 2 * 2);
        // A sum of nothing but zeros has two representations; headers are never that.
        bytes[0] = 0x45;
        let at = 2 + at % (bytes.len() / 2 - 1) * 2;
        let before = checksum(&bytes);
        let old = [bytes[at], bytes[at + 1]];
        bytes[at..at + 2].copy_from_slice(&new);
        prop_assert_eq!(ip::update(before, old, new), checksum(&bytes));
    }
}

#[test]
fn the_checksum_of_every_length_and_extreme_agrees_with_the_oracle() {
    for value in [0x00, 0x01, 0x80, 0xff] {
        let bytes = vec![value; 300];
        for len in 0..=bytes.len() {
            assert_eq!(
                Sum::of(&bytes[..len]).checksum(),
                checksum(&bytes[..len]),
                "{len} bytes of {value:#x}"
            );
            let mut copy = vec![0x55; len];
            assert_eq!(
                ip::copy_and_sum(&mut copy, &bytes[..len]).checksum(),
                checksum(&bytes[..len])
            );
            assert_eq!(copy, bytes[..len]);
        }
    }
    // The most that anything here sums at once.
    let large = vec![0xff; 65_575];
    assert_eq!(Sum::of(&large).checksum(), checksum(&large));
    assert_eq!(Sum::of(&[]).transport_checksum(), [0xff, 0xff]);
    assert_eq!(Sum::of(&[0xff, 0xff]).transport_checksum(), [0xff, 0xff]);
    assert!(
        Sum::of(&[0xff, 0xff]).is_valid() && !Sum::of(&[0xff, 0xfe]).is_valid() && !Sum::of(&[]).is_valid()
    );
}

#[test]
fn copying_into_a_different_length_copies_the_shorter() {
    let from: Vec<u8> = (0..200).collect();
    let mut to = vec![0; 150];
    assert_eq!(
        ip::copy_and_sum(&mut to, &from).checksum(),
        checksum(&from[..150])
    );
    assert_eq!(to, from[..150]);
    let mut to = vec![0; 250];
    assert_eq!(ip::copy_and_sum(&mut to, &from).checksum(), checksum(&from));
    assert_eq!((&to[..200], &to[200..]), (&from[..], &[0; 50][..]));
}

#[test]
fn the_pseudo_header_is_the_rfcs() {
    let mut packet = v4(32, 20, 32);
    packet[9] = 17;
    packet[12..20].copy_from_slice(&[10, 9, 0, 1, 10, 9, 0, 2]);
    packet[20..32].copy_from_slice(&[0x0f, 0xa0, 0x13, 0x88, 0, 12, 0, 0, b'p', b'i', b'n', b'g']);
    let mut pseudo = packet[12..20].to_vec();
    pseudo.extend([0, 17, 0, 12]);
    pseudo.extend(&packet[20..]);
    let parsed = Packet::parse(&packet).unwrap();
    assert_eq!(
        parsed.pseudo_sum(17, 12).bytes(&packet[20..]).checksum(),
        checksum(&pseudo)
    );

    let mut packet = v6(6, &[7; 24]);
    packet[8..40].copy_from_slice(&std::array::from_fn::<u8, 32, _>(|i| i as u8 * 7));
    let mut pseudo = packet[8..40].to_vec();
    pseudo.extend([0, 0, 0, 24, 0, 0, 0, 6]);
    pseudo.extend(&packet[40..]);
    let parsed = Packet::parse(&packet).unwrap();
    assert_eq!(
        parsed.pseudo_sum(6, 24).bytes(&packet[40..]).checksum(),
        checksum(&pseudo)
    );
}

/// Headers of all kinds, most of them nearly plain.
fn nearly_plain() -> impl Strategy<Value = Vec<u8>> {
    let first = prop_oneof![8 => Just(0x45u8), 1 => Just(0x46), 1 => Just(0x60), 1 => any::<u8>()];
    let protocol = prop_oneof![4 => Just(17u8), 4 => Just(6), 1 => any::<u8>()];
    let fragment = prop_oneof![8 => Just(0x4000u16), 4 => Just(0), 1 => any::<u16>()];
    let bytes = proptest::collection::vec(any::<u8>(), 20..80);
    (first, protocol, fragment, bytes, 0..60i32).prop_map(|(first, protocol, fragment, mut bytes, less)| {
        let total = (bytes.len() as i32 - less / 10 + 1) as u16;
        bytes[0] = first;
        bytes[2..4].copy_from_slice(&total.to_be_bytes());
        bytes[6..8].copy_from_slice(&fragment.to_be_bytes());
        bytes[9] = protocol;
        bytes
    })
}

proptest! {
    /// What the short way finds is what the long one finds, and it finds all that it is for.
    #[test]
    fn a_plain_packet_has_the_flow_that_any_packet_has(bytes in nearly_plain()) {
        let any = Packet::parse(&bytes).ok().and_then(|packet| {
            let flow = packet.try_flow().ok()?.with_dscp(packet.tos() >> 2);
            Some((flow, packet.total_len()))
        });
        let plain = FlowKey::of_plain(&bytes);
        prop_assert!(plain.is_none() || plain == any);
        let is_plain = any.is_some_and(|(flow, total)| {
            bytes[0] == 0x45 && flow.is_whole() && matches!(flow.protocol(), 6 | 17) && total >= 24
        });
        // A reserved bit makes no fragment.
        prop_assert_eq!(plain.is_some(), is_plain);
    }

    /// The checksum is as right afterwards as before.
    #[test]
    fn one_hop_less_to_go(mut header in proptest::collection::vec(any::<u8>(), 20), whole in any::<bool>()) {
        header[0] = 0x45;
        if whole {
            header[10..12].fill(0);
            let sum = checksum(&header);
            header[10..12].copy_from_slice(&sum);
        }
        let (before, error) = (header.clone(), checksum(&header));
        prop_assert_eq!(ip::may_go_further(&before), before[8] > 1);
        prop_assert_eq!(ip::take_hop(&mut header), before[8] > 1);
        prop_assert_eq!(header[8], before[8] - u8::from(before[8] > 1));
        prop_assert_eq!((&header[..8], header[9], &header[12..]), (&before[..8], before[9], &before[12..]));
        // The two zeros of ones' complement are the same error.
        let same = |sum: [u8; 2]| u16::from_be_bytes(sum) % 0xffff;
        prop_assert_eq!(same(checksum(&header)), same(error));
    }
}
