//! Any bytes as an IP packet: what is found lies inside it, and setting its DSCP and ECN changes nothing else.

use patronus_engine::mss;
use patronus_io::ip::{self, Packet, Sum, Version};

/// The first byte is a type of service, the rest a packet.
pub fn run(data: &[u8]) {
    let Some((tos, bytes)) = data.split_first() else {
        return;
    };
    let Ok(packet) = Packet::parse(bytes) else {
        return;
    };
    assert!(packet.header_len() <= packet.total_len() && packet.total_len() <= bytes.len());
    assert_eq!(packet.bytes(), &bytes[..packet.total_len()]);
    assert_eq!(packet.src().is_ipv4(), packet.version() == Version::V4);
    assert_eq!(packet.dst().is_ipv4(), packet.version() == Version::V4);
    let flow = packet.flow();
    if let Ok(transport) = packet.transport() {
        assert!(transport.offset >= packet.header_len() && transport.offset <= packet.total_len());
        assert!(
            transport.fragment || transport.first,
            "a whole packet has its transport header"
        );
    }
    let _ = packet.pseudo_sum(flow.protocol(), packet.total_len());

    let mut clamped = bytes.to_vec();
    if mss::clamp(&mut clamped, 1280) {
        assert!(mss::may_be_syn(bytes), "what is changed is looked at");
        let changed = bytes
            .iter()
            .zip(&clamped)
            .filter(|(before, after)| before != after);
        assert!(changed.count() <= 4, "the segment size and the checksum");
        assert_eq!(Packet::parse(&clamped).map(|after| after.flow()), Ok(flow));
    }

    for ecn_only in [false, true] {
        let mut changed = bytes.to_vec();
        let expected = if ecn_only {
            ip::set_ecn(&mut changed, tos & 3);
            packet.tos() & !3 | tos & 3
        } else {
            ip::set_tos(&mut changed, *tos);
            *tos
        };
        let after = Packet::parse(&changed).expect("still a packet");
        assert_eq!(after.tos(), expected);
        assert_eq!(after.flow(), flow);
        if packet.version() == Version::V4 {
            let header = |packet: &Packet<'_>| Sum::of(&packet.bytes()[..packet.header_len()]).is_valid();
            assert_eq!(
                header(&packet),
                header(&after),
                "the checksum is as right as it was"
            );
        }
    }
}
