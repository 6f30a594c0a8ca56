//! ICMP errors for inner packets that no peer takes (RFC 792; RFC 4443), so that an application learns at once
//! instead of timing out.
//!
//! Built by a worker into a frame and given back to the TUN. The source address is the one that could not be reached:
//! the engine has no address of its own on the TUN. Limited to some a second: they are a courtesy, not a service.

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

/// Destination unreachable, host unreachable (RFC 792).
const ICMP_HOST_UNREACHABLE: [u8; 2] = [3, 1];
/// Destination unreachable, address unreachable (RFC 4443, section 3.1).
const ICMPV6_ADDRESS_UNREACHABLE: [u8; 2] = [1, 3];

/// The errors waiting to be given to the TUN, and the limit on them.
#[derive(Default)]
pub struct Icmp {
    /// At most a burst, taken by the worker after each encapsulation.
    pub waiting: Burst,
    tokens: u32,
    filled: Option<Time>,
}

impl Icmp {
    /// Prepares an error about `original` unless the limit, the burst or the original forbids it.
    pub fn answer(&mut self, cx: &mut Context<'_>, original: &[u8]) {
        let Ok(original) = Packet::parse(original) else {
            return;
        };
        if self.waiting.room() == 0 || !deserves_error(&original) || !self.may(cx.now) {
            return;
        }
        let Some(mut frame) = cx.frames.alloc() else {
            return;
        };
        write_unreachable(&original, &mut frame);
        cx.stats.icmp_sent.add(1);
        self.waiting.push(frame);
    }

    /// A token bucket.
    fn may(&mut self, now: Time) -> bool {
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
fn write_unreachable(original: &Packet<'_>, frame: &mut PktBuf) {
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
            icmp[..2].copy_from_slice(&ICMP_HOST_UNREACHABLE);
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
            icmp[..2].copy_from_slice(&ICMPV6_ADDRESS_UNREACHABLE);
            let sum = ip::pseudo_sum(&ip_header[8..40], PROTO_ICMPV6, body)
                .bytes(icmp)
                .checksum();
            icmp[2..4].copy_from_slice(&sum);
        }
        _ => unreachable!("both addresses of a packet are of its version"),
    }
}
