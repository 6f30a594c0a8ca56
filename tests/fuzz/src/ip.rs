//! Inner packets: headers, extension headers, flow keys, congestion marks.

use patronus_io::ip::{ECN_MASK, Packet, set_ecn, set_tos};

/// Whatever is accepted lies inside the input, and its marks can be changed without harm to the rest.
pub fn check(data: &[u8]) {
    let Ok(packet) = Packet::parse(data) else { return };
    assert!(packet.header_len() <= packet.total_len());
    assert!(packet.total_len() <= data.len());
    assert_eq!(packet.bytes(), &data[..packet.total_len()]);
    let flow = packet.flow();
    match packet.transport() {
        Ok(transport) => {
            assert!(transport.offset <= packet.total_len());
            assert!(transport.offset >= packet.header_len());
            assert_eq!(flow.protocol, transport.protocol);
            assert!(transport.first || transport.fragment);
        }
        Err(_) => assert_eq!((flow.src_port, flow.dst_port), (0, 0)),
    }
    for tos in [0, 0xff, packet.tos()] {
        let mut marked = packet.bytes().to_vec();
        set_tos(&mut marked, tos);
        let again = Packet::parse(&marked).expect("marking keeps a packet valid");
        assert_eq!(again.tos(), tos);
        assert_eq!(
            (again.src(), again.dst(), again.total_len()),
            (packet.src(), packet.dst(), packet.total_len())
        );
        set_ecn(&mut marked, 1);
        let again = Packet::parse(&marked).expect("marking keeps a packet valid");
        assert_eq!(again.tos(), tos & !ECN_MASK | 1);
    }
}

/// Packets of every kind.
pub fn seeds() -> Vec<Vec<u8>> {
    crate::packets::samples()
}
