//! ICMP errors for inner packets that go no further (RFC 792; RFC 4443), so that an application learns at once
//! instead of timing out.
//!
//! Built by a worker into a frame and given to the TUN, or routed where there is a router. The source address is the one that could not be reached:
//! the engine has no address of its own. Limited to some a second: they are a courtesy, not a service.

use std::net::IpAddr;

use patronus_crypto::{Duration, Time};
use patronus_io::ip;
use patronus_io::ip::{IPV4_HEADER, IPV6_HEADER, PROTO_ICMP, PROTO_ICMPV6, Packet, Sum, Version};
use patronus_mem::{Burst, PktBuf};

use crate::wg::Context;

/// Errors in a row before the limit bites.
const BURST: u32 = 20;
/// One more error is allowed each time this passes: 100 a second.
const INTERVAL: Duration = Duration::from_millis(10);

/// Length of an ICMP error's own header.
const ICMP_HEADER: usize = 8;
/// How much of the offending packet is quoted: what fits the smallest IPv4 MTU that every host takes.
const QUOTE_MAX: usize = 576 - IPV4_HEADER - ICMP_HEADER;

/// What a sender is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IcmpError {
    /// There is a route, but nobody to take the packet.
    HostUnreachable,
    /// There is no route.
    NoRoute,
    /// Its time to live has run out.
    TimeExceeded,
    /// It is longer than this many bytes, and may not be cut up.
    TooBig(u16),
}

impl IcmpError {
    /// Type and code (RFC 792; RFC 4443, section 3), and the second word of the header: the MTU where one is told (RFC 1191, section 4).
    fn header(self, version: Version) -> ([u8; 2], [u8; 4]) {
        let kind = match (self, version) {
            (IcmpError::HostUnreachable, Version::V4) => [3, 1],
            (IcmpError::HostUnreachable, Version::V6) => [1, 3],
            (IcmpError::NoRoute, Version::V4) => [3, 0],
            (IcmpError::NoRoute, Version::V6) => [1, 0],
            (IcmpError::TimeExceeded, Version::V4) => [11, 0],
            (IcmpError::TimeExceeded, Version::V6) => [3, 0],
            (IcmpError::TooBig(_), Version::V4) => [3, 4],
            (IcmpError::TooBig(_), Version::V6) => [2, 0],
        };
        let mtu = match self {
            IcmpError::TooBig(mtu) => u32::from(mtu),
            _ => 0,
        };
        (kind, mtu.to_be_bytes())
    }
}

/// The errors waiting to be sent, and the limit on them.
#[derive(Default)]
pub struct Icmp {
    /// At most a burst, taken by the worker after each encapsulation.
    pub waiting: Burst,
    /// Lengths that are too big are news of their own: without them a sender never gets through.
    too_big: Bucket,
    others: Bucket,
}

impl Icmp {
    /// Prepares an error about `original` unless the limit, the burst or the original forbids it.
    pub fn answer(&mut self, cx: &mut Context<'_>, original: &[u8], error: IcmpError) {
        let Ok(original) = Packet::parse(original) else {
            return;
        };
        // A packet that may be cut up is no mistake of its sender's.
        let needless = matches!(error, IcmpError::TooBig(_)) && !original.must_not_be_cut();
        if needless || self.waiting.room() == 0 || !deserves_error(&original) {
            return;
        }
        let bucket = match error {
            IcmpError::TooBig(_) => &mut self.too_big,
            _ => &mut self.others,
        };
        if !bucket.take(cx.now) {
            return;
        }
        let Some(mut frame) = cx.frames.alloc() else {
            return;
        };
        write_error(&original, error, &mut frame);
        cx.stats.icmp_sent.add(1);
        self.waiting.push(frame);
    }
}

/// Some in a row, then one for each interval.
#[derive(Default)]
struct Bucket {
    tokens: u32,
    filled: Option<Time>,
}

impl Bucket {
    fn take(&mut self, now: Time) -> bool {
        let filled = *self.filled.get_or_insert_with(|| {
            self.tokens = BURST;
            now
        });
        let earned = (now.since(filled).as_nanos() / INTERVAL.as_nanos()).min(u128::from(BURST)) as u32;
        if earned > 0 {
            self.tokens = (self.tokens + earned).min(BURST);
            self.filled = Some(now);
        }
        let ok = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        ok
    }
}

/// Never about an ICMP error, a later fragment, or a packet from or to a group (RFC 1122, section 3.2.2; RFC 4443,
/// section 2.4). Echo requests do deserve one, other ICMP is not worth telling apart.
fn deserves_error(original: &Packet<'_>) -> bool {
    let single = |addr: IpAddr| !addr.is_multicast() && !addr.is_unspecified();
    if !single(original.src()) || !single(original.dst()) || original.dst() == IpAddr::from([255; 4]) {
        return false;
    }
    let Ok(transport) = original.transport() else {
        return false;
    };
    let kind = original.bytes().get(transport.offset);
    match transport.protocol {
        _ if !transport.first => false,
        PROTO_ICMP => kind == Some(&8),
        PROTO_ICMPV6 => kind == Some(&128),
        _ => true,
    }
}

/// Writes the error with its IP header into the empty `frame`.
fn write_error(original: &Packet<'_>, error: IcmpError, frame: &mut PktBuf) {
    let quote = &original.bytes()[..original.total_len().min(QUOTE_MAX)];
    let body = ICMP_HEADER + quote.len();
    let header = match original.version() {
        Version::V4 => IPV4_HEADER,
        Version::V6 => IPV6_HEADER,
    };
    let packet = frame.append(header + body);
    packet.fill(0);
    let (ip_header, icmp) = packet.split_at_mut(header);
    icmp[ICMP_HEADER..].copy_from_slice(quote);
    let (kind, word) = error.header(original.version());
    icmp[..2].copy_from_slice(&kind);
    icmp[4..8].copy_from_slice(&word);
    match (original.src(), original.dst()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            ip_header[0] = 0x45;
            ip_header[2..4].copy_from_slice(&((header + body) as u16).to_be_bytes());
            ip_header[8] = 64;
            ip_header[9] = PROTO_ICMP;
            ip_header[12..16].copy_from_slice(&dst.octets());
            ip_header[16..20].copy_from_slice(&src.octets());
            let sum = Sum::of(ip_header).checksum();
            ip_header[10..12].copy_from_slice(&sum);
            let sum = Sum::of(icmp).checksum();
            icmp[2..4].copy_from_slice(&sum);
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            ip_header[0] = 0x60;
            ip_header[4..6].copy_from_slice(&(body as u16).to_be_bytes());
            ip_header[6] = PROTO_ICMPV6;
            ip_header[7] = 64;
            ip_header[8..24].copy_from_slice(&dst.octets());
            ip_header[24..40].copy_from_slice(&src.octets());
            let sum = ip::pseudo_sum(&ip_header[8..40], PROTO_ICMPV6, body)
                .bytes(icmp)
                .checksum();
            icmp[2..4].copy_from_slice(&sum);
        }
        _ => unreachable!("both addresses of a packet are of its version"),
    }
}
