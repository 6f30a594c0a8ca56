//! Which frames of an interface are the engine's: the program that the kernel runs for each.
//!
//! What it does not take goes on to the host's own network stack, so that SSH, ARP, neighbour discovery and routing protocols of the
//! host keep working, and on a WAN also the datagrams that this program is too simple for: with options or extension headers, in fragments, behind
//! a VLAN tag. Addresses and UDP ports are part of the program's text, and it is replaced when they change; or they stand in memory that it
//! shares with us ([`Names`]), for who may not load programs any more.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use crate::bpf::{Assembler, Instruction, Label, Reg, Width};
use crate::ip;

use super::names::{self, Names};

/// What the engine takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Take {
    /// UDP datagrams to one of these addresses and UDP ports, whole and without options: what a WAN link brings.
    Datagrams {
        /// The host's addresses on the link.
        addresses: Vec<IpAddr>,
        /// The engine's UDP ports.
        ports: Vec<u16>,
    },
    /// IP packets to other hosts, in frames to us: what a LAN sends through us.
    Transit {
        /// The interface's own link address. The program sees frames for other stations as well.
        mac: [u8; 6],
        /// The host's own addresses, whose packets it keeps.
        addresses: Vec<IpAddr>,
    },
}

/// Addresses and UDP ports that a program names at most.
pub const NAMES_MAX: usize = 64;

/// Results of a program, and of the helper that hands a frame to a socket (linux/bpf.h).
const XDP_PASS: i32 = 2;
const HELPER_REDIRECT_MAP: i32 = 51;

/// Offsets in the context that a program gets.
const CONTEXT_DATA: i16 = 0;
const CONTEXT_DATA_END: i16 = 4;
const CONTEXT_QUEUE: i16 = 16;

/// Offsets in a frame.
const ETHERTYPE: i16 = 12;
const IP: i16 = 14;
const IPV4_HEADER: i16 = ip::IPV4_HEADER as i16;
const IPV6_HEADER: i16 = ip::IPV6_HEADER as i16;
const UDP_HEADER: i16 = ip::UDP_HEADER as i16;

const PROTOCOL_UDP: u32 = ip::PROTO_UDP as u32;

/// Network order as a load on this machine sees it.
fn half(value: u16) -> u32 {
    u32::from(u16::from_ne_bytes(value.to_be_bytes()))
}

fn word(octets: &[u8]) -> u32 {
    u32::from_ne_bytes([octets[0], octets[1], octets[2], octets[3]])
}

/// What a program compares with.
pub(super) enum By<'a> {
    /// Constants in its text.
    Text(&'a Take),
    /// What stands in the memory that it shares with us.
    Names(&'a Names),
}

/// The program: `sockets` is the map of sockets by queue.
pub(super) fn assemble(by: &By<'_>, sockets: BorrowedFd<'_>) -> Vec<Instruction> {
    let mut a = Assembler::default();
    let [v4, v6, taken, pass] = std::array::from_fn(|_| a.label());
    // r6 keeps the context, r2 is the frame, r3 its end, r5 what was read last.
    a.copy(Reg::R6, Reg::R1);
    a.load(Width::Word, Reg::R2, Reg::R6, CONTEXT_DATA);
    a.load(Width::Word, Reg::R3, Reg::R6, CONTEXT_DATA_END);
    require(&mut a, IP + IPV4_HEADER, pass);
    a.load(Width::Half, Reg::R5, Reg::R2, ETHERTYPE);
    a.if_equal(Reg::R5, half(0x0800), v4);
    a.if_equal(Reg::R5, half(0x86dd), v6);
    a.go(pass);

    a.place(v4);
    match by {
        By::Text(Take::Datagrams { addresses, ports }) => {
            datagrams_v4(&mut a, addresses, ports, taken, pass);
        }
        By::Text(Take::Transit { mac, addresses }) => transit_v4(&mut a, *mac, addresses, taken, pass),
        By::Names(names) => named_v4(&mut a, names, taken, pass),
    }
    a.place(v6);
    require(&mut a, IP + IPV6_HEADER, pass);
    match by {
        By::Text(Take::Datagrams { addresses, ports }) => {
            datagrams_v6(&mut a, addresses, ports, taken, pass);
        }
        By::Text(Take::Transit { mac, addresses }) => transit_v6(&mut a, *mac, addresses, taken, pass),
        By::Names(names) => named_v6(&mut a, names, taken, pass),
    }

    if a.is_used(taken) {
        a.place(taken);
        a.map(Reg::R1, sockets);
        a.load(Width::Word, Reg::R2, Reg::R6, CONTEXT_QUEUE);
        // What to do where the queue has no socket.
        a.set(Reg::R3, XDP_PASS);
        a.call(HELPER_REDIRECT_MAP);
        a.exit();
    }
    a.place(pass);
    a.set(Reg::R0, XDP_PASS);
    a.exit();
    a.finish()
}

/// Goes on only if the frame has that many bytes.
fn require(a: &mut Assembler, bytes: i16, otherwise: Label) {
    a.copy(Reg::R4, Reg::R2);
    a.add(Reg::R4, i32::from(bytes));
    a.if_above(Reg::R4, Reg::R3, otherwise);
}

fn datagrams_v4(a: &mut Assembler, addresses: &[IpAddr], ports: &[u16], taken: Label, pass: Label) {
    if ports.is_empty() || !addresses.iter().any(IpAddr::is_ipv4) {
        return a.go(pass);
    }
    let ours = a.label();
    whole_v4(a, pass);
    a.load(Width::Word, Reg::R5, Reg::R2, IP + 16);
    for address in addresses {
        if let IpAddr::V4(ip) = address {
            a.if_equal(Reg::R5, word(&ip.octets()), ours);
        }
    }
    a.go(pass);
    a.place(ours);
    udp_ports(a, IP + IPV4_HEADER, ports, taken, pass);
}

/// Goes on only for UDP in one piece and without options.
fn whole_v4(a: &mut Assembler, pass: Label) {
    require(a, IP + IPV4_HEADER + UDP_HEADER, pass);
    a.load(Width::Byte, Reg::R5, Reg::R2, IP);
    a.if_not_equal(Reg::R5, 0x45, pass);
    // More fragments, or not the first one.
    a.load(Width::Half, Reg::R5, Reg::R2, IP + 6);
    a.and(Reg::R5, half(0x3fff) as i32);
    a.if_not_equal(Reg::R5, 0, pass);
    a.load(Width::Byte, Reg::R5, Reg::R2, IP + 9);
    a.if_not_equal(Reg::R5, PROTOCOL_UDP, pass);
}

fn datagrams_v6(a: &mut Assembler, addresses: &[IpAddr], ports: &[u16], taken: Label, pass: Label) {
    if ports.is_empty() || !addresses.iter().any(IpAddr::is_ipv6) {
        return a.go(pass);
    }
    let ours = a.label();
    require(a, IP + IPV6_HEADER + UDP_HEADER, pass);
    a.load(Width::Byte, Reg::R5, Reg::R2, IP + 6);
    a.if_not_equal(Reg::R5, PROTOCOL_UDP, pass);
    for address in addresses {
        if_destination_v6(a, address, ours);
    }
    a.go(pass);
    a.place(ours);
    udp_ports(a, IP + IPV6_HEADER, ports, taken, pass);
}

/// Of an array of words in the shared memory: the offset of one.
const fn named(word: usize) -> i16 {
    4 * word as i16
}

fn named_v4(a: &mut Assembler, names: &Names, taken: Label, pass: Label) {
    let ours = a.label();
    whole_v4(a, pass);
    a.map_value(Reg::R7, names.map());
    a.load(Width::Word, Reg::R5, Reg::R2, IP + 16);
    for at in 0..names::ADDRESSES {
        a.load(Width::Word, Reg::R4, Reg::R7, named(names::V4 + at));
        a.if_same(Reg::R5, Reg::R4, ours);
    }
    a.go(pass);
    a.place(ours);
    named_port(a, IP + IPV4_HEADER, taken, pass);
}

fn named_v6(a: &mut Assembler, names: &Names, taken: Label, pass: Label) {
    let ours = a.label();
    require(a, IP + IPV6_HEADER + UDP_HEADER, pass);
    a.load(Width::Byte, Reg::R5, Reg::R2, IP + 6);
    a.if_not_equal(Reg::R5, PROTOCOL_UDP, pass);
    a.map_value(Reg::R7, names.map());
    for at in 0..names::ADDRESSES {
        let next = a.label();
        for word in 0..4 {
            a.load(Width::Word, Reg::R5, Reg::R2, IP + 24 + named(word));
            a.load(Width::Word, Reg::R4, Reg::R7, named(names::V6 + 4 * at + word));
            a.if_not_same(Reg::R5, Reg::R4, next);
        }
        a.go(ours);
        a.place(next);
    }
    a.go(pass);
    a.place(ours);
    named_port(a, IP + IPV6_HEADER, taken, pass);
}

fn named_port(a: &mut Assembler, udp: i16, taken: Label, pass: Label) {
    a.load(Width::Half, Reg::R5, Reg::R2, udp + 2);
    a.load(Width::Word, Reg::R4, Reg::R7, 0);
    a.if_same(Reg::R5, Reg::R4, taken);
    a.go(pass);
}

fn udp_ports(a: &mut Assembler, udp: i16, ports: &[u16], taken: Label, pass: Label) {
    a.load(Width::Half, Reg::R5, Reg::R2, udp + 2);
    for port in ports {
        a.if_equal(Reg::R5, half(*port), taken);
    }
    a.go(pass);
}

fn transit_v4(a: &mut Assembler, mac: [u8; 6], addresses: &[IpAddr], taken: Label, pass: Label) {
    only_to(a, mac, pass);
    // Multicast, reserved and broadcast: 224.0.0.0 and up; link-local: 169.254.0.0/16 (RFC 3927).
    a.load(Width::Byte, Reg::R5, Reg::R2, IP + 16);
    a.and(Reg::R5, 0xe0);
    a.if_equal(Reg::R5, 0xe0, pass);
    a.load(Width::Half, Reg::R5, Reg::R2, IP + 16);
    a.if_equal(Reg::R5, half(0xa9fe), pass);
    a.load(Width::Word, Reg::R5, Reg::R2, IP + 16);
    for address in addresses {
        if let IpAddr::V4(ip) = address {
            a.if_equal(Reg::R5, word(&ip.octets()), pass);
        }
    }
    a.go(taken);
}

fn transit_v6(a: &mut Assembler, mac: [u8; 6], addresses: &[IpAddr], taken: Label, pass: Label) {
    only_to(a, mac, pass);
    // Multicast: ff00::/8; link-local: fe80::/10 (RFC 4291).
    a.load(Width::Byte, Reg::R5, Reg::R2, IP + 24);
    a.if_equal(Reg::R5, 0xff, pass);
    a.load(Width::Half, Reg::R5, Reg::R2, IP + 24);
    a.and(Reg::R5, half(0xffc0) as i32);
    a.if_equal(Reg::R5, half(0xfe80), pass);
    for address in addresses {
        if_destination_v6(a, address, pass);
    }
    a.go(taken);
}

/// Broadcast and multicast frames are the host's, and those to other stations are nobody's.
fn only_to(a: &mut Assembler, mac: [u8; 6], pass: Label) {
    a.load(Width::Word, Reg::R5, Reg::R2, 0);
    a.if_not_equal(Reg::R5, word(&mac), pass);
    a.load(Width::Half, Reg::R5, Reg::R2, 4);
    a.if_not_equal(Reg::R5, half(u16::from_be_bytes([mac[4], mac[5]])), pass);
}

fn if_destination_v6(a: &mut Assembler, address: &IpAddr, to: Label) {
    let IpAddr::V6(ip) = address else { return };
    let next = a.label();
    for (at, octets) in ip.octets().chunks_exact(4).enumerate() {
        a.load(Width::Word, Reg::R5, Reg::R2, IP + 24 + 4 * at as i16);
        a.if_not_equal(Reg::R5, word(octets), next);
    }
    a.go(to);
    a.place(next);
}
