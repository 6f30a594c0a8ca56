//! Frames from the network to us, built without the code under test.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::OURS;

/// The link address that frames to us come from.
pub const SENDER: [u8; 6] = [2, 0, 0, 0, 0, 0xb];

/// A frame to us.
pub fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = OURS.to_vec();
    frame.extend(SENDER);
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A UDP datagram without a checksum.
pub fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
    let mut datagram = 4000u16.to_be_bytes().to_vec();
    datagram.extend(port.to_be_bytes());
    datagram.extend((8 + payload.len() as u16).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    datagram
}

/// An IPv4 packet; `fragment` are its flags and offset.
pub fn ipv4(dst: Ipv4Addr, protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend((20 + payload.len() as u16).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0, 192, 0, 2, 9]);
    packet.extend(dst.octets());
    packet.extend(payload);
    ethernet(0x0800, &packet)
}

/// An IPv6 packet.
pub fn ipv6(dst: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, 64]);
    packet.extend(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9).octets());
    packet.extend(dst.octets());
    packet.extend(payload);
    ethernet(0x86dd, &packet)
}

/// A frame for the network that no protocol knows: 60 bytes, told apart by their number.
pub fn numbered(number: u16) -> Vec<u8> {
    let mut frame = vec![2; 12];
    frame.extend([8, 0, 0x45, 0]);
    frame.extend(number.to_be_bytes());
    frame.resize(60, number as u8);
    frame
}
