//! A UDP NAT between the two sides: packets of one direction get another source port, and another source address if one is set, and
//! what comes back to that port finds its way. On command it forgets its ports and gives others, as a router does that was restarted or
//! whose table is short.
//!
//! Called by [`crate::bridge`] on its one thread, before the impairments. Everything but UDP goes through as it is, but for requests about
//! the NAT's own address. Ports are the same for the same seed and order of flows.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use patronus_io::ip::{self, PROTO_UDP, Packet, Transport};

use crate::Direction;
use crate::dice::{Dice, Purpose, below};
use crate::wire::ETHERNET;

/// Flows that the NAT knows at most.
pub const FLOWS_MAX: usize = 4096;
/// The lowest port that it gives.
const PORT_MIN: u16 = 1024;
/// Ports that are tried for a flow.
const TRIES: u64 = 64;

const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const ARP: [u8; 2] = [0x08, 0x06];
const UDP_CHECKSUM: usize = 6;

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It goes on.
    On,
    /// No mapping, or nothing that can be mapped.
    Drop,
    /// It was a question and is its own answer now: back where it came from.
    Answer,
}

/// The sender of a flow, inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Inside {
    ip: IpAddr,
    port: u16,
}

/// The NAT.
#[derive(Debug)]
pub struct Nat {
    outward: Direction,
    address: Option<Ipv4Addr>,
    dice: Dice,
    /// Ports given so far, which numbers the next one.
    given: u64,
    ports: HashMap<Inside, u16>,
    insides: HashMap<u16, Inside>,
    /// The link address that the last flow came from.
    mac: Option<[u8; 6]>,
}

impl Nat {
    /// For packets that go `outward`; IPv4 packets get the source `address` if there is one, and otherwise keep theirs.
    pub fn new(seed: u64, outward: Direction, address: Option<Ipv4Addr>) -> Nat {
        Nat {
            outward,
            address,
            dice: Dice::new(seed, outward.index()),
            given: 0,
            ports: HashMap::new(),
            insides: HashMap::new(),
            mac: None,
        }
    }

    /// Forgets every flow: each gets another port with its next packet, and what is sent to the old ones is dropped.
    pub fn rebind(&mut self) {
        self.ports.clear();
        self.insides.clear();
    }

    /// Translates a frame, checksums included.
    pub fn translate(&mut self, direction: Direction, frame: &mut [u8]) -> Outcome {
        let outward = direction == self.outward;
        match frame.get(12..ETHERNET) {
            Some(kind) if kind == ARP && !outward => self.answer(frame),
            Some(kind) if kind == IPV4 || kind == IPV6 => self.datagram(outward, frame),
            _ => Outcome::On,
        }
    }

    fn datagram(&mut self, outward: bool, frame: &mut [u8]) -> Outcome {
        let (header, bytes) = frame.split_at_mut(ETHERNET);
        let Ok(packet) = Packet::parse(bytes) else {
            return Outcome::On;
        };
        let Ok(found) = packet.transport() else {
            return Outcome::On;
        };
        if found.protocol != PROTO_UDP {
            return Outcome::On;
        }
        if !found.first || packet.total_len() < found.offset + ip::UDP_HEADER {
            // Without a port there is nothing to look up, and without an address of our own nothing to change.
            return if self.address.is_none() {
                Outcome::On
            } else {
                Outcome::Drop
            };
        }
        let (source, target) = (packet.src(), packet.dst());
        let port = |at: usize| u16::from_be_bytes([bytes[found.offset + at], bytes[found.offset + at + 1]]);
        if outward {
            let inside = Inside {
                ip: source,
                port: port(0),
            };
            self.mac = header[6..12].try_into().ok();
            let Some(port) = self.port_of(inside) else {
                return Outcome::Drop;
            };
            rewrite(bytes, found, Field::Source, self.outside(source), port);
            return Outcome::On;
        }
        match self.insides.get(&port(2)) {
            Some(inside) if self.outside(inside.ip) == target => {
                rewrite(bytes, found, Field::Target, inside.ip, inside.port);
                Outcome::On
            }
            _ => Outcome::Drop,
        }
    }

    /// What an inside address looks like from the outside.
    fn outside(&self, inside: IpAddr) -> IpAddr {
        match (inside, self.address) {
            (IpAddr::V4(_), Some(address)) => address.into(),
            _ => inside,
        }
    }

    fn port_of(&mut self, inside: Inside) -> Option<u16> {
        if let Some(port) = self.ports.get(&inside) {
            return Some(*port);
        }
        if self.ports.len() >= FLOWS_MAX {
            return None;
        }
        // A few thousand of 64 thousand are taken at most, so some of the tries finds a free one.
        let first = self.given;
        self.given += TRIES;
        let port = (first..self.given)
            .map(|n| {
                PORT_MIN
                    + below(
                        self.dice.roll(n, Purpose::Port),
                        u64::from(u16::MAX - PORT_MIN) + 1,
                    ) as u16
            })
            .find(|port| *port != inside.port && !self.insides.contains_key(port))?;
        self.ports.insert(inside, port);
        self.insides.insert(port, inside);
        Some(port)
    }

    /// Makes a question for the NAT's address its answer (RFC 826): the link address is that of the inside.
    fn answer(&self, frame: &mut [u8]) -> Outcome {
        let (Some(address), Some(mac)) = (self.address, self.mac) else {
            return Outcome::On;
        };
        let Some(request) = frame.get_mut(..ETHERNET + 28) else {
            return Outcome::On;
        };
        let asked = request[20..22] == [0, 1] && request[38..42] == address.octets();
        if !asked {
            return Outcome::On;
        }
        let asker: [u8; 10] = std::array::from_fn(|i| request[22 + i]);
        request[..6].copy_from_slice(&asker[..6]);
        request[6..12].copy_from_slice(&mac);
        request[21] = 2;
        request[22..28].copy_from_slice(&mac);
        request[28..32].copy_from_slice(&address.octets());
        request[32..42].copy_from_slice(&asker);
        Outcome::Answer
    }
}

/// Which address and port of a packet.
#[derive(Clone, Copy)]
enum Field {
    Source,
    Target,
}

/// Puts another address and port into a UDP packet and keeps its checksums right (RFC 1624).
fn rewrite(bytes: &mut [u8], found: Transport, field: Field, ip: IpAddr, port: u16) {
    let second = matches!(field, Field::Target);
    let sum_at = found.offset + UDP_CHECKSUM;
    let mut sum = [bytes[sum_at], bytes[sum_at + 1]];
    let summed = sum != [0, 0];
    if let IpAddr::V4(ip) = ip {
        let start = if second { 16 } else { 12 };
        for (i, new) in ip.octets().as_chunks::<2>().0.iter().enumerate() {
            let at = start + 2 * i;
            let old = [bytes[at], bytes[at + 1]];
            let header = ip::update([bytes[10], bytes[11]], old, *new);
            bytes[10..12].copy_from_slice(&header);
            sum = ip::update(sum, old, *new);
            bytes[at..at + 2].copy_from_slice(new);
        }
    }
    let at = found.offset + if second { 2 } else { 0 };
    let new = port.to_be_bytes();
    sum = ip::update(sum, [bytes[at], bytes[at + 1]], new);
    bytes[at..at + 2].copy_from_slice(&new);
    if summed {
        // Zero would mean that there is no checksum (RFC 768).
        let sum = if sum == [0, 0] { [0xff, 0xff] } else { sum };
        bytes[sum_at..sum_at + 2].copy_from_slice(&sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use patronus_io::ip::{IPV4_HEADER, Sum, UDP_HEADER, pseudo_sum};

    const A: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const B: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
    const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    /// A frame with a UDP datagram, complete.
    fn frame(source: (IpAddr, u16), target: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
        let udp_len = (UDP_HEADER + payload.len()) as u16;
        let (kind, mut header, addresses) = match (source.0, target.0) {
            (IpAddr::V4(s), IpAddr::V4(t)) => {
                let mut header = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, PROTO_UDP, 0, 0];
                header[2..4].copy_from_slice(&(IPV4_HEADER as u16 + udp_len).to_be_bytes());
                (IPV4, header, [s.octets(), t.octets()].concat())
            }
            (IpAddr::V6(s), IpAddr::V6(t)) => {
                let [hi, lo] = udp_len.to_be_bytes();
                let header = vec![0x60, 0, 0, 0, hi, lo, PROTO_UDP, 64];
                (IPV6, header, [s.octets(), t.octets()].concat())
            }
            _ => unreachable!("one family"),
        };
        header.extend(&addresses);
        if kind == IPV4 {
            let sum = Sum::of(&header).checksum();
            header[10..12].copy_from_slice(&sum);
        }
        let mut udp = [source.1, target.1, udp_len, 0].map(u16::to_be_bytes).concat();
        udp.extend(payload);
        let sum = (pseudo_sum(&addresses, PROTO_UDP, udp.len()) + Sum::of(&udp)).transport_checksum();
        udp[6..8].copy_from_slice(&sum);
        [&[2, 0, 0, 0, 0, 2][..], &MAC, &kind, &header, &udp].concat()
    }

    /// Source and target of a frame whose checksums verify.
    fn ends(frame: &[u8]) -> ((IpAddr, u16), (IpAddr, u16)) {
        let packet = Packet::parse(&frame[ETHERNET..]).expect("a packet");
        let header = packet.header_len();
        let bytes = packet.bytes();
        if header == IPV4_HEADER {
            assert!(Sum::of(&bytes[..header]).is_valid(), "IPv4 header checksum");
        }
        let udp = &bytes[header..];
        assert!(
            (packet.pseudo_sum(PROTO_UDP, udp.len()) + Sum::of(udp)).is_valid(),
            "UDP checksum"
        );
        let port = |at: usize| u16::from_be_bytes([udp[at], udp[at + 1]]);
        ((packet.src(), port(0)), (packet.dst(), port(2)))
    }

    fn there_and_back(nat: &mut Nat, inside: (IpAddr, u16), far: (IpAddr, u16)) -> (IpAddr, u16) {
        let mut out = frame(inside, far, b"out");
        assert_eq!(nat.translate(Direction::AToB, &mut out), Outcome::On);
        let (outside, target) = ends(&out);
        assert_eq!(target, far);
        let mut back = frame(far, outside, b"and back");
        assert_eq!(nat.translate(Direction::BToA, &mut back), Outcome::On);
        assert_eq!(ends(&back), (far, inside));
        outside
    }

    #[test]
    fn ports_change_and_answers_find_their_way() {
        let v6: [IpAddr; 2] = ["2001:db8::1", "2001:db8::2"].map(|text| text.parse().expect("address"));
        for (a, b) in [(A.into(), B.into()), (v6[0], v6[1])] {
            let mut nat = Nat::new(1, Direction::AToB, None);
            let one = there_and_back(&mut nat, (a, 51820), (b, 51821));
            let two = there_and_back(&mut nat, (a, 51822), (b, 51821));
            assert_eq!((one.0, two.0), (a, a), "addresses stay");
            assert!(one.1 != 51820 && one.1 != two.1);
            assert_eq!(
                there_and_back(&mut nat, (a, 51820), (b, 9)),
                one,
                "one port for all targets"
            );

            nat.rebind();
            let again = there_and_back(&mut nat, (a, 51820), (b, 51821));
            assert_ne!(again, one);
            let mut late = frame((b, 51821), one, b"late");
            assert_eq!(nat.translate(Direction::BToA, &mut late), Outcome::Drop);
        }
    }

    #[test]
    fn addresses_change_and_are_asked_for() {
        let mut nat = Nat::new(1, Direction::AToB, Some(OUTSIDE));
        let outside = there_and_back(&mut nat, (A.into(), 1), (B.into(), 2));
        assert_eq!(outside.0, IpAddr::from(OUTSIDE));
        // To the port, but to the address behind the NAT.
        let mut around = frame((B.into(), 2), (A.into(), outside.1), b"");
        assert_eq!(nat.translate(Direction::BToA, &mut around), Outcome::Drop);

        let asker = [2, 0, 0, 0, 0, 2];
        let mut request = [
            &[0xff; 6][..],
            &asker,
            &ARP,
            &[0, 1, 8, 0, 6, 4, 0, 1],
            &asker,
            &B.octets(),
        ]
        .concat();
        request.extend([0; 6]);
        request.extend(OUTSIDE.octets());
        let mut other = request.clone();
        other[41] = 1;
        assert_eq!(nat.translate(Direction::BToA, &mut other), Outcome::On);
        assert_eq!(nat.translate(Direction::BToA, &mut request), Outcome::Answer);
        let mut answer = [
            &asker[..],
            &MAC,
            &ARP,
            &[0, 1, 8, 0, 6, 4, 0, 2],
            &MAC,
            &OUTSIDE.octets(),
        ]
        .concat();
        answer.extend(asker);
        answer.extend(B.octets());
        assert_eq!(request, answer);
    }

    #[test]
    fn strangers_are_dropped_and_other_protocols_pass() {
        let mut nat = Nat::new(1, Direction::AToB, None);
        let mut stranger = frame((B.into(), 5), (A.into(), 6), b"");
        assert_eq!(nat.translate(Direction::BToA, &mut stranger), Outcome::Drop);
        let mut tcp = stranger.clone();
        tcp[ETHERNET + 9] = 6;
        let before = tcp.clone();
        assert_eq!(nat.translate(Direction::AToB, &mut tcp), Outcome::On);
        assert_eq!(tcp, before);
        // Cut off anywhere, nothing panics.
        for end in 0..stranger.len() {
            nat.translate(Direction::AToB, &mut stranger[..end].to_vec());
        }
    }

    #[test]
    fn a_missing_checksum_stays_missing() {
        let mut nat = Nat::new(1, Direction::AToB, Some(OUTSIDE));
        let mut out = frame((A.into(), 1), (B.into(), 2), b"x");
        let at = ETHERNET + IPV4_HEADER + UDP_CHECKSUM;
        out[at..at + 2].fill(0);
        assert_eq!(nat.translate(Direction::AToB, &mut out), Outcome::On);
        assert_eq!(out[at..at + 2], [0, 0]);
        assert!(Sum::of(&out[ETHERNET..ETHERNET + IPV4_HEADER]).is_valid());
    }

    #[test]
    fn flows_are_bounded() {
        let mut nat = Nat::new(1, Direction::AToB, None);
        for port in 1..=FLOWS_MAX as u16 {
            let mut out = frame((A.into(), port), (B.into(), 2), b"");
            assert_eq!(nat.translate(Direction::AToB, &mut out), Outcome::On);
        }
        let mut more = frame((A.into(), 60_000), (B.into(), 2), b"");
        assert_eq!(nat.translate(Direction::AToB, &mut more), Outcome::Drop);
    }
}
