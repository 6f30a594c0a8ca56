//! Inner pings: ICMP echoes between an address of ours inside the tunnel and one behind the peer (RFC 792; RFC 4443, section 4).
//!
//! The slow path makes the requests, a worker seals them like any packet to that peer, and the worker that opens the answer tells it by its content and
//! gives it to the slow path, which believes it only if it has the peer's secret: nobody but who has seen a request of ours has that.

use std::net::IpAddr;

use arrayvec::ArrayVec;
use patronus_io::ip::{IPV4_HEADER, IPV6_HEADER, PROTO_ICMP, PROTO_ICMPV6, Packet, Sum, pseudo_sum};

/// What every ping of an engine's begins with.
const MAGIC: [u8; 8] = *b"patronus";
/// Bytes of a peer's secret.
pub const SECRET: usize = 16;
const ICMP: usize = 8;
const CONTENT: usize = MAGIC.len() + SECRET;
/// Bytes of a ping at most.
pub const PING_MAX: usize = IPV6_HEADER + ICMP + CONTENT;
/// Types of echoes and their answers.
const V4: [u8; 2] = [8, 0];
const V6: [u8; 2] = [128, 129];
const TTL: u8 = 64;

/// A ping, headers and all.
pub type Ping = ArrayVec<u8, PING_MAX>;

/// An answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answer {
    /// To which ping.
    pub sequence: u16,
    /// What was in it.
    pub secret: [u8; SECRET],
}

/// The ping with this number. `None` if the addresses are not of one family.
pub fn request(from: IpAddr, to: IpAddr, sequence: u16, secret: &[u8; SECRET]) -> Option<Ping> {
    let mut ping = Ping::new();
    let (len, kind) = (ICMP + CONTENT, if from.is_ipv4() { V4[0] } else { V6[0] });
    let pseudo = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let total = ((IPV4_HEADER + len) as u16).to_be_bytes();
            let mut header = [0x45, 0, total[0], total[1], 0, 0, 0, 0, TTL, PROTO_ICMP, 0, 0];
            let sum = Sum::of(&header).bytes(&from.octets()).bytes(&to.octets());
            header[10..].copy_from_slice(&sum.checksum());
            ping.extend(header.into_iter().chain(from.octets()).chain(to.octets()));
            Sum::default()
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let header = [0x60, 0, 0, 0, 0, len as u8, PROTO_ICMPV6, TTL];
            ping.extend(header.into_iter().chain(from.octets()).chain(to.octets()));
            pseudo_sum(&ping[8..], PROTO_ICMPV6, len)
        }
        _ => return None,
    };
    let mut icmp = [0; ICMP];
    icmp[0] = kind;
    icmp[4..6].copy_from_slice(&secret[..2]);
    icmp[6..].copy_from_slice(&sequence.to_be_bytes());
    let sum = pseudo.bytes(&icmp).bytes(&MAGIC).bytes(secret);
    icmp[2..4].copy_from_slice(&sum.checksum());
    ping.extend(icmp.into_iter().chain(MAGIC).chain(*secret));
    Some(ping)
}

/// What this inner packet answers, if it answers a ping. Its check sum need not be looked at: it came authentic, and it has to have the secret.
pub fn answer(packet: &Packet<'_>) -> Option<Answer> {
    let transport = packet.transport().ok()?;
    let kind = match transport.protocol {
        PROTO_ICMP => V4[1],
        PROTO_ICMPV6 => V6[1],
        _ => return None,
    };
    let icmp = packet.bytes().get(transport.offset..packet.total_len())?;
    let (header, content) = icmp.split_first_chunk::<ICMP>()?;
    let secret = content.strip_prefix(&MAGIC)?.try_into().ok()?;
    let is_whole = !transport.fragment && header[..2] == [kind, 0];
    is_whole.then_some(Answer {
        sequence: u16::from_be_bytes([header[6], header[7]]),
        secret,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What a host makes of a ping.
    fn answered(ping: &Ping) -> Vec<u8> {
        let mut answer = ping.to_vec();
        let at = if ping[0] >> 4 == 4 {
            IPV4_HEADER
        } else {
            IPV6_HEADER
        };
        answer[at] = if at == IPV4_HEADER { V4[1] } else { V6[1] };
        answer
    }

    #[test]
    fn a_ping_is_a_packet_that_a_host_takes() {
        for (from, to) in [("10.0.0.1", "10.9.0.1"), ("fd00::1", "fd00::9")] {
            let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
            let ping = request(from, to, 0x1234, &[7; SECRET]).unwrap();
            let packet = Packet::parse(&ping).unwrap();
            assert_eq!((packet.src(), packet.dst()), (from, to));
            assert_eq!(packet.total_len(), ping.len());
            let transport = packet.transport().unwrap();
            let icmp = &ping[transport.offset..];
            let sum = match from {
                IpAddr::V4(_) => {
                    assert!(Sum::of(&ping[..IPV4_HEADER]).is_valid());
                    Sum::default()
                }
                IpAddr::V6(_) => packet.pseudo_sum(PROTO_ICMPV6, icmp.len()),
            };
            assert!(sum.bytes(icmp).is_valid());
            assert_eq!(answer(&packet), None, "a request is no answer");
            let bytes = answered(&ping);
            let secret = [7; SECRET];
            let sequence = 0x1234;
            assert_eq!(
                answer(&Packet::parse(&bytes).unwrap()),
                Some(Answer { sequence, secret })
            );
        }
        assert_eq!(
            request(
                "10.0.0.1".parse().unwrap(),
                "fd00::1".parse().unwrap(),
                0,
                &[0; SECRET]
            ),
            None
        );
    }

    proptest! {
        /// What is cut off or longer is somebody else's.
        #[test]
        fn only_whole_answers_are_answers(v6: bool, cut in 1usize..30, more in 1usize..30, flip in 0usize..8) {
            let [from, to] = if v6 { ["fd00::1", "fd00::2"] } else { ["10.0.0.1", "10.0.0.2"] };
            let ping = request(from.parse().unwrap(), to.parse().unwrap(), 1, &[9; SECRET]).unwrap();
            let whole = answered(&ping);
            for len in [whole.len() - cut, whole.len() + more] {
                let mut other = whole.clone();
                other.resize(len, 0);
                let at = if v6 { 4 } else { 2 };
                let said = (len - if v6 { IPV6_HEADER } else { 0 }) as u16;
                other[at..at + 2].copy_from_slice(&said.to_be_bytes());
                if let Ok(packet) = Packet::parse(&other) {
                    prop_assert_eq!(answer(&packet), None);
                }
            }
            let mut other = whole.clone();
            let content = whole.len() - CONTENT;
            other[content + flip] ^= 1;
            prop_assert_eq!(answer(&Packet::parse(&other).unwrap()), None);
        }
    }
}
