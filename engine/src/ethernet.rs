//! Ethernet frames (IEEE 802.3), as LAN ports give and take them: the link header comes off before a packet is routed and goes on afterwards.
//!
//! Runs on a worker. Which frames arrive here at all is up to the port: what is for the host itself stays with the host.

use patronus_io::ip::Version;
use patronus_mem::{Burst, PktBuf};

use crate::observe::View;
use crate::stats::DropReason;
use crate::wg::Context;

/// Bytes of a link header.
pub const ETHERNET_HEADER: usize = 14;

const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
/// Customer and service tags of VLANs (IEEE 802.1Q).
const VLAN: [[u8; 2]; 2] = [[0x81, 0x00], [0x88, 0xa8]];

/// The bit of an address's first octet that says that it is of several stations.
const GROUP: u8 = 1;

/// A link header without the type: destination and source address.
pub type LinkAddresses = [u8; 12];

/// Takes the link headers off. What carries no IP packet is dropped under a name.
pub fn strip(cx: &mut Context<'_>, frames: &mut Burst) {
    let mut refused = None;
    frames.retain_or_free(cx.frames, |frame| {
        refused = refusal(frame.data());
        match refused {
            None => frame.trim_front(ETHERNET_HEADER),
            Some(reason) => {
                if let Some(observing) = &mut cx.observing {
                    observing.dropped(frame, reason, View::Ethernet);
                }
                cx.stats.drop(reason);
            }
        }
        refused.is_none()
    });
}

fn refusal(frame: &[u8]) -> Option<DropReason> {
    match frame {
        [to, _, _, _, _, _, _, _, _, _, _, _, a, b, _, ..] => match [*a, *b] {
            // RFC 1812, section 5.3.4.
            IPV4 | IPV6 if to & GROUP != 0 => Some(DropReason::EthernetGroup),
            IPV4 | IPV6 => None,
            kind if VLAN.contains(&kind) => Some(DropReason::EthernetVlan),
            _ => Some(DropReason::EthernetNotIp),
        },
        _ => Some(DropReason::EthernetRunt),
    }
}

/// Puts a link header before an IP packet.
#[inline]
pub fn dress(packet: &mut PktBuf, addresses: &LinkAddresses, version: Version) {
    let header = packet.prepend(ETHERNET_HEADER);
    header[..12].copy_from_slice(addresses);
    header[12..].copy_from_slice(match version {
        Version::V4 => &IPV4,
        Version::V6 => &IPV6,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_ip_packet_is_refused_by_name() {
        let mut frame = [0; 60];
        for (kind, expected) in [
            ([0x08, 0x00], None),
            ([0x86, 0xdd], None),
            ([0x08, 0x06], Some(DropReason::EthernetNotIp)),
            ([0x00, 0x2e], Some(DropReason::EthernetNotIp)),
            ([0x81, 0x00], Some(DropReason::EthernetVlan)),
            ([0x88, 0xa8], Some(DropReason::EthernetVlan)),
        ] {
            frame[12..14].copy_from_slice(&kind);
            assert_eq!(refusal(&frame), expected, "{kind:02x?}");
            assert_eq!(
                refusal(&frame[..14]),
                Some(DropReason::EthernetRunt),
                "nothing in it"
            );
        }
        assert_eq!(refusal(&[]), Some(DropReason::EthernetRunt));
        frame[..14].copy_from_slice(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 8, 0]);
        assert_eq!(refusal(&frame), Some(DropReason::EthernetGroup));
    }
}
