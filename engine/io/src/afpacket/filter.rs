//! Which frames of an interface are the engine's, twice from one text: a filter of the packet socket (classic instructions, which take no
//! rights) that takes them, and a program at the host's ingress that keeps the host's own stack from having them too.
//!
//! The counterpart of the program for AF_XDP (`xdp/program.rs`). The kernel has looked at a frame before either of the two runs: it has
//! said for whom the frame is by its link address, and has taken a VLAN's tag out.

use std::net::IpAddr;

use crate::bpf::{Assembler, Instruction, Label, Reg, Width};
use crate::ip;

/// What a program at the ingress says (linux/bpf.h): whoever is next decides, or nobody gets the packet.
const TCX_NEXT: i32 = -1;
const TCX_DROP: i32 = 2;

/// Of a context of such a program: offsets of length, kind of destination, and whether there was a VLAN's tag.
const CONTEXT_LENGTH: i16 = 0;
const CONTEXT_KIND: i16 = 4;
const CONTEXT_TAGGED: i16 = 20;

/// A frame to this host's link address (PACKET_HOST, linux/if_packet.h).
const TO_US: u32 = 0;

const ETHERTYPE: u32 = 12;
const IP: u32 = 14;
const IPV4_DESTINATION: u32 = IP + 16;
const IPV6_DESTINATION: u32 = IP + 24;

/// What both kinds of instructions can do with a frame. Jumps go forward only.
trait Machine {
    fn label(&mut self) -> Label;
    fn place(&mut self, label: Label);
    fn go(&mut self, to: Label);
    /// Loads the frame's length.
    fn length(&mut self);
    /// Loads for whom the frame is.
    fn kind(&mut self);
    /// Loads whether the frame had a VLAN's tag.
    fn tagged(&mut self);
    /// Loads bytes of the frame.
    fn load(&mut self, width: Width, at: u32);
    fn and(&mut self, mask: u32);
    fn if_equal(&mut self, value: u32, to: Label);
    fn if_not_equal(&mut self, value: u32, to: Label);
    fn if_below(&mut self, value: u32, to: Label);
    /// The end: the frame is ours, or it is not.
    fn end(&mut self, ours: bool);
}

/// IP packets to other hosts, in frames to us: what a network sends through us. All else stays with the host.
fn transit(m: &mut impl Machine, addresses: &[IpAddr]) {
    let [v4, v6, ours, not_ours] = std::array::from_fn(|_| m.label());
    m.kind();
    m.if_not_equal(TO_US, not_ours);
    m.tagged();
    m.if_not_equal(0, not_ours);
    m.length();
    m.if_below(IP + ip::IPV4_HEADER as u32, not_ours);
    m.load(Width::Half, ETHERTYPE);
    m.if_equal(0x0800, v4);
    m.if_equal(0x86dd, v6);
    m.go(not_ours);

    m.place(v4);
    // Multicast, reserved and broadcast: 224.0.0.0 and up; link-local: 169.254.0.0/16 (RFC 3927).
    m.load(Width::Byte, IPV4_DESTINATION);
    m.and(0xe0);
    m.if_equal(0xe0, not_ours);
    m.load(Width::Half, IPV4_DESTINATION);
    m.if_equal(0xa9fe, not_ours);
    m.load(Width::Word, IPV4_DESTINATION);
    for address in addresses {
        if let IpAddr::V4(ip) = address {
            m.if_equal(u32::from(*ip), not_ours);
        }
    }
    m.go(ours);

    m.place(v6);
    m.length();
    m.if_below(IP + ip::IPV6_HEADER as u32, not_ours);
    // Multicast: ff00::/8; link-local: fe80::/10 (RFC 4291).
    m.load(Width::Byte, IPV6_DESTINATION);
    m.if_equal(0xff, not_ours);
    m.load(Width::Half, IPV6_DESTINATION);
    m.and(0xffc0);
    m.if_equal(0xfe80, not_ours);
    for address in addresses {
        if_destination_v6(m, address, not_ours);
    }

    m.place(ours);
    m.end(true);
    m.place(not_ours);
    m.end(false);
}

fn if_destination_v6(m: &mut impl Machine, address: &IpAddr, to: Label) {
    let IpAddr::V6(ip) = address else { return };
    let next = m.label();
    for (at, word) in (0..).step_by(4).zip(ip.octets().as_chunks::<4>().0) {
        m.load(Width::Word, IPV6_DESTINATION + at);
        m.if_not_equal(u32::from_be_bytes(*word), next);
    }
    m.go(to);
    m.place(next);
}

/// The socket's filter: takes transit frames.
pub(super) fn takes(addresses: &[IpAddr]) -> Vec<libc::sock_filter> {
    let mut classic = Classic::default();
    transit(&mut classic, addresses);
    classic.finish()
}

/// A socket's filter that takes nothing.
pub(super) fn takes_nothing() -> Vec<libc::sock_filter> {
    let mut classic = Classic::default();
    classic.end(false);
    classic.finish()
}

/// The program at the ingress: drops transit frames.
pub(super) fn drops(addresses: &[IpAddr]) -> Vec<Instruction> {
    let mut a = Assembler::default();
    // Loads from packets want the context there.
    a.copy(Reg::R6, Reg::R1);
    transit(&mut a, addresses);
    a.finish()
}

impl Machine for Assembler {
    fn label(&mut self) -> Label {
        Assembler::label(self)
    }

    fn place(&mut self, label: Label) {
        Assembler::place(self, label);
    }

    fn go(&mut self, to: Label) {
        Assembler::go(self, to);
    }

    fn length(&mut self) {
        Assembler::load(self, Width::Word, Reg::R0, Reg::R6, CONTEXT_LENGTH);
    }

    fn kind(&mut self) {
        Assembler::load(self, Width::Word, Reg::R0, Reg::R6, CONTEXT_KIND);
    }

    fn tagged(&mut self) {
        Assembler::load(self, Width::Word, Reg::R0, Reg::R6, CONTEXT_TAGGED);
    }

    fn load(&mut self, width: Width, at: u32) {
        self.load_packet(width, at);
    }

    fn and(&mut self, mask: u32) {
        Assembler::and(self, Reg::R0, mask as i32);
    }

    fn if_equal(&mut self, value: u32, to: Label) {
        Assembler::if_equal(self, Reg::R0, value, to);
    }

    fn if_not_equal(&mut self, value: u32, to: Label) {
        Assembler::if_not_equal(self, Reg::R0, value, to);
    }

    fn if_below(&mut self, value: u32, to: Label) {
        Assembler::if_below(self, Reg::R0, value, to);
    }

    fn end(&mut self, ours: bool) {
        self.set(Reg::R0, if ours { TCX_DROP } else { TCX_NEXT });
        self.exit();
    }
}

/// Classic instructions (bpf(4) of BSD, linux/filter.h): one register, and conditions that reach 255 instructions only. So each condition
/// skips a jump, which reaches everything.
#[derive(Default)]
struct Classic {
    code: Vec<libc::sock_filter>,
    /// Where each label is.
    labels: Vec<Option<usize>>,
    /// Jumps that have to learn where their label is.
    jumps: Vec<(usize, Label)>,
}

impl Classic {
    const LOAD_LENGTH: u16 = 0x80;
    const LOAD_WORD: u16 = 0x20;
    const LOAD_HALF: u16 = 0x28;
    const LOAD_BYTE: u16 = 0x30;
    const AND: u16 = 0x54;
    const JUMP: u16 = 0x05;
    const IF_EQUAL: u16 = 0x15;
    const IF_NOT_BELOW: u16 = 0x35;
    const RETURN: u16 = 0x06;
    /// Loads that are about the frame and not from it.
    const KIND: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE) as u32;
    const TAGGED: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_VLAN_TAG_PRESENT) as u32;

    fn push(&mut self, code: u16, jt: u8, jf: u8, k: u32) {
        self.code.push(libc::sock_filter { code, jt, jf, k });
    }

    fn finish(mut self) -> Vec<libc::sock_filter> {
        for (at, label) in self.jumps {
            let place = self.labels[label.0].expect("the label was placed");
            let distance = place.checked_sub(at + 1).expect("jumps go forward");
            self.code[at].k = distance.try_into().expect("programs are short");
        }
        self.code
    }
}

impl Machine for Classic {
    fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    fn place(&mut self, label: Label) {
        self.labels[label.0] = Some(self.code.len());
    }

    fn go(&mut self, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.push(Classic::JUMP, 0, 0, 0);
    }

    fn length(&mut self) {
        self.push(Classic::LOAD_LENGTH, 0, 0, 0);
    }

    fn kind(&mut self) {
        self.push(Classic::LOAD_WORD, 0, 0, Classic::KIND);
    }

    fn tagged(&mut self) {
        self.push(Classic::LOAD_WORD, 0, 0, Classic::TAGGED);
    }

    fn load(&mut self, width: Width, at: u32) {
        let code = match width {
            Width::Word => Classic::LOAD_WORD,
            Width::Half => Classic::LOAD_HALF,
            Width::Byte => Classic::LOAD_BYTE,
        };
        self.push(code, 0, 0, at);
    }

    fn and(&mut self, mask: u32) {
        self.push(Classic::AND, 0, 0, mask);
    }

    fn if_equal(&mut self, value: u32, to: Label) {
        self.push(Classic::IF_EQUAL, 0, 1, value);
        self.go(to);
    }

    fn if_not_equal(&mut self, value: u32, to: Label) {
        self.push(Classic::IF_EQUAL, 1, 0, value);
        self.go(to);
    }

    fn if_below(&mut self, value: u32, to: Label) {
        self.push(Classic::IF_NOT_BELOW, 1, 0, value);
        self.go(to);
    }

    fn end(&mut self, ours: bool) {
        self.push(Classic::RETURN, 0, 0, if ours { u32::MAX } else { 0 });
    }
}
