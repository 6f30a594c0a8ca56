//! The longest segment that TCP's ends ask each other for, made to fit the tunnel (RFC 9293, section 3.7.1).
//!
//! Called by a worker for every inner packet, on its way into a tunnel and out of one: each end says in its SYN what it wants to be sent, and the other end
//! of the tunnel may not do this. So the ends never send what does not fit, even where nobody listens to ICMP.

use patronus_io::ip::{self, IPV4_HEADER, IPV6_HEADER, PROTO_TCP, Packet, TCP_HEADER, Version};

/// The bit of a segment that begins a connection, in byte 13 of the TCP header (RFC 9293, section 3.1).
const SYN: u8 = 1 << 1;
const FLAGS: usize = 13;
const CHECKSUM: usize = 16;

/// Kinds of options (RFC 9293, section 3.2).
const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const MAXIMUM_SEGMENT: u8 = 2;

/// What every receiver takes, bytes of payload (RFC 9293, section 3.7.1): nobody is asked for less.
const LEAST: [usize; 2] = [536, 1220];

/// Whether a packet may begin a connection: no is sure, and for nearly every packet it is no after a comparison or two.
#[inline]
pub fn may_be_syn(packet: &[u8]) -> bool {
    let Some(start) = packet.first_chunk::<{ IPV4_HEADER + TCP_HEADER }>() else {
        return false;
    };
    match start[0] {
        0x45 => start[9] == PROTO_TCP && start[IPV4_HEADER + FLAGS] & SYN != 0,
        0x60..=0x6f if start[6] == PROTO_TCP => packet
            .get(IPV6_HEADER + FLAGS)
            .is_some_and(|flags| flags & SYN != 0),
        0x46..=0x4f => start[9] == PROTO_TCP,
        0x60..=0x6f => ip::is_extension(start[6]),
        _ => false,
    }
}

/// Makes the segment size that a SYN asks for fit packets of `mtu` bytes: less the headers without options, as RFC 9293 (section 3.7.1) counts it. True if it was
/// more. The checksum is kept as right as it was.
#[cold]
pub fn clamp(packet: &mut [u8], mtu: usize) -> bool {
    let Some((tcp, most)) = syn(packet, mtu) else {
        return false;
    };
    let tcp = &mut packet[tcp];
    let options = usize::from(tcp[12] >> 4) * 4;
    let Some(at) = segment_size(&tcp[..options.min(tcp.len())]) else {
        return false;
    };
    let (old, new) = ([tcp[at], tcp[at + 1]], most.to_be_bytes());
    if u16::from_be_bytes(old) <= most {
        return false;
    }
    tcp[at..at + 2].copy_from_slice(&new);
    let field = [tcp[CHECKSUM], tcp[CHECKSUM + 1]];
    // At an odd place the two bytes stand in two words, each where the other one would.
    let in_words = |[high, low]: [u8; 2]| if at % 2 == 0 { [high, low] } else { [low, high] };
    let field = ip::update(field, in_words(old), in_words(new));
    tcp[CHECKSUM..CHECKSUM + 2].copy_from_slice(&field);
    true
}

/// Where in a packet a SYN is, and the longest segment that fits the MTU.
fn syn(packet: &[u8], mtu: usize) -> Option<(std::ops::Range<usize>, u16)> {
    let parsed = Packet::parse(packet).ok()?;
    let transport = parsed.transport().ok()?;
    let tcp = transport.offset..parsed.total_len();
    let is_syn = transport.protocol == PROTO_TCP
        && transport.first
        && tcp.len() >= TCP_HEADER
        && packet[tcp.start + FLAGS] & SYN != 0;
    let (header, least) = match parsed.version() {
        Version::V4 => (IPV4_HEADER, LEAST[0]),
        Version::V6 => (IPV6_HEADER, LEAST[1]),
    };
    let most = mtu.saturating_sub(header + TCP_HEADER).max(least);
    // No segment is longer than a packet can be.
    is_syn.then_some((tcp, most.min(usize::from(u16::MAX)) as u16))
}

/// Where in a TCP header with its options the segment size is.
fn segment_size(header: &[u8]) -> Option<usize> {
    let mut at = TCP_HEADER;
    loop {
        match *header.get(at..)? {
            [NO_OPERATION, ..] => at += 1,
            [MAXIMUM_SEGMENT, 4, _, _, ..] => return Some(at + 2),
            [END, ..] | [_, 0 | 1, ..] | [_] | [] => return None,
            [_, len, ..] => at += usize::from(len),
        }
    }
}

#[cfg(test)]
mod tests {
    use patronus_io::ip::pseudo_sum;
    use proptest::prelude::*;

    use super::*;

    /// A TCP segment with these options and flags, its checksum right.
    fn segment(v6: bool, ip_options: &[u8], flags: u8, options: &[u8], payload: usize) -> Vec<u8> {
        let mut options = options.to_vec();
        options.resize(options.len().next_multiple_of(4), END);
        let mut tcp = vec![0; TCP_HEADER];
        tcp[..4].copy_from_slice(&[0x9c, 0x40, 0x01, 0xbb]);
        tcp[12] = ((TCP_HEADER + options.len()) as u8 / 4) << 4;
        tcp[FLAGS] = flags;
        tcp.extend(options);
        tcp.extend((0..payload).map(|n| n as u8));
        let mut packet = match v6 {
            false => {
                let header = IPV4_HEADER + ip_options.len();
                let mut ip = vec![0; header];
                ip[0] = 0x40 | (header / 4) as u8;
                ip[2..4].copy_from_slice(&((header + tcp.len()) as u16).to_be_bytes());
                (ip[8], ip[9]) = (64, PROTO_TCP);
                ip[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 1, 0, 1]);
                ip[20..].copy_from_slice(ip_options);
                ip
            }
            true => {
                let mut ip = vec![0; IPV6_HEADER];
                ip[0] = 0x60;
                ip[4..6].copy_from_slice(&((ip_options.len() + tcp.len()) as u16).to_be_bytes());
                ip[6] = if ip_options.is_empty() { PROTO_TCP } else { 60 };
                (ip[8], ip[39]) = (0xfd, 1);
                ip.extend(ip_options);
                ip
            }
        };
        let addresses = if v6 { &packet[8..40] } else { &packet[12..20] };
        let sum = pseudo_sum(addresses, PROTO_TCP, tcp.len()).bytes(&tcp).checksum();
        tcp[CHECKSUM..CHECKSUM + 2].copy_from_slice(&sum);
        packet.extend(tcp);
        packet
    }

    /// Whether a segment's checksum verifies.
    fn verifies(packet: &[u8]) -> bool {
        let parsed = Packet::parse(packet).unwrap();
        let tcp = &packet[parsed.transport().unwrap().offset..];
        parsed.pseudo_sum(PROTO_TCP, tcp.len()).bytes(tcp).is_valid()
    }

    /// The segment size that a packet asks for.
    fn asked(packet: &[u8]) -> Option<u16> {
        let parsed = Packet::parse(packet).unwrap();
        let tcp = &packet[parsed.transport().unwrap().offset..];
        let mut options = &tcp[TCP_HEADER..usize::from(tcp[12] >> 4) * 4];
        while let Some((kind, rest)) = options.split_first() {
            match (kind, rest) {
                (0, _) => return None,
                (1, _) => options = rest,
                (2, [4, high, low, ..]) => return Some(u16::from_be_bytes([*high, *low])),
                (_, [len, ..]) if *len >= 2 => options = options.get(usize::from(*len)..)?,
                _ => return None,
            }
        }
        None
    }

    fn clamped(mut packet: Vec<u8>, mtu: usize) -> Vec<u8> {
        if may_be_syn(&packet) {
            clamp(&mut packet, mtu);
        }
        packet
    }

    #[test]
    fn a_syn_asks_for_what_fits() {
        for (v6, mtu, size) in [
            (false, 1420, 1380),
            (true, 1420, 1360),
            (false, 1280, 1240),
            (true, 1280, 1220),
            // Nobody is asked for less than what everybody takes.
            (false, 300, 536),
            (true, 300, 1220),
            (false, 0, 536),
        ] {
            let syn = segment(v6, &[], SYN, &[2, 4, 0x23, 0x28, 4, 2], 0);
            assert_eq!(asked(&syn), Some(9000));
            let changed = clamped(syn, mtu);
            assert_eq!(asked(&changed), Some(size), "MTU {mtu}");
            assert!(verifies(&changed));
            let answer = segment(v6, &[], SYN | 0x10, &[2, 4, 0x23, 0x28], 0);
            assert_eq!(asked(&clamped(answer, mtu)), Some(size), "the answer too");
        }
    }

    #[test]
    fn everything_else_stays_as_it_is() {
        let mss = [2, 4, 0x23, 0x28];
        let same = [
            segment(false, &[], 0x10, &mss, 0),
            segment(false, &[], SYN, &[2, 4, 0x02, 0x00], 0),
            segment(false, &[], SYN, &[], 10),
            segment(false, &[], SYN, &[0, 2, 4, 0x23, 0x28], 0),
            segment(false, &[], SYN, &[3, 0, 2, 4, 0x23, 0x28], 0),
            segment(false, &[], SYN, &[3, 1, 2, 4, 0x23, 0x28], 0),
            segment(false, &[], SYN, &[2, 5, 0x23, 0x28, 9], 0),
            segment(true, &[], 0x10, &mss, 0),
        ];
        for packet in same {
            assert_eq!(clamped(packet.clone(), 1420), packet);
        }
        // Of another protocol; a later fragment, whose payload looks like it; a UDP packet in IPv6.
        for (v6, at, value) in [(false, 9, 17), (false, 7, 5), (true, 6, 17), (true, 6, 59)] {
            let mut packet = segment(v6, &[], SYN, &mss, 0);
            packet[at] = value;
            assert_eq!(clamped(packet.clone(), 1420), packet);
        }
    }

    #[test]
    fn headers_with_options_are_followed() {
        let ip_options = [1, 1, 1, 0];
        let changed = clamped(segment(false, &ip_options, SYN, &[2, 4, 0x23, 0x28], 0), 1420);
        assert_eq!((asked(&changed), verifies(&changed)), (Some(1380), true));
        let destination = [6, 0, 1, 4, 0, 0, 0, 0];
        let changed = clamped(segment(true, &destination, SYN, &[2, 4, 0x23, 0x28], 0), 1420);
        assert_eq!((asked(&changed), verifies(&changed)), (Some(1360), true));
        // The first of several fragments has the options, and a checksum of the whole.
        let mut first = segment(false, &[], SYN, &[2, 4, 0x23, 0x28], 32);
        first[6] = 0x20;
        assert_eq!(asked(&clamped(first, 1420)), Some(1380));
    }

    proptest! {
        #[test]
        fn no_checksum_is_broken(
            v6: bool, before in 0..8usize, size: u16, mtu in 1280..9000usize, payload in 0..100usize, flags: u8,
        ) {
            let mut options = vec![NO_OPERATION; before];
            options.extend([2, 4]);
            options.extend(size.to_be_bytes());
            let packet = segment(v6, &[], flags, &options, payload);
            let changed = clamped(packet.clone(), mtu);
            prop_assert!(verifies(&changed));
            let most = (mtu - if v6 { 60 } else { 40 }) as u16;
            let expected = if flags & SYN != 0 { size.min(most) } else { size };
            prop_assert_eq!(asked(&changed), Some(expected));
            let differ = packet.iter().zip(&changed).filter(|(a, b)| a != b).count();
            prop_assert!(differ <= 4, "the size and the checksum");
        }

        #[test]
        fn no_bytes_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..120), first in prop::option::of(0x45..0x70u8), tcp: bool) {
            if let (Some(first), [start, ..]) = (first, &mut bytes[..]) {
                *start = first;
            }
            let len = bytes.len();
            for at in [6, 9].into_iter().filter(|at| tcp && *at < len) {
                bytes[at] = PROTO_TCP;
            }
            let before = bytes.clone();
            if clamp(&mut bytes, 1420) {
                prop_assert!(may_be_syn(&before));
            }
        }
    }
}
