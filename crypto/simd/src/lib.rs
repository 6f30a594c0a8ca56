//! ChaCha20-Poly1305 (RFC 8439) over bursts of packets with keys of their own, in vector registers that are filled across packets.
//!
//! `patronus-crypto` wraps each [`Kernel`] as one of its AEAD backends; workers and the slow path's thread come here through it. Nothing
//! here allocates, nothing is shared between threads, and no branch or address depends on a key, a text or a tag: only on lengths and counts.
//! docs/adr/0022-vector-aead.md says why it is as it is, and what it costs.

#![allow(
    clippy::needless_range_loop,
    reason = "indices that walk several arrays of registers at once read as the formulas do"
)]

#[cfg(target_arch = "x86_64")]
mod burst;
#[cfg(target_arch = "x86_64")]
mod chacha;
#[cfg(target_arch = "x86_64")]
mod field;
#[cfg(target_arch = "x86_64")]
mod one;
mod poly1305;
mod portable;
#[cfg(target_arch = "x86_64")]
mod tags;
#[cfg(target_arch = "x86_64")]
mod vector;
mod wipe;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "x86_64")]
use x86::{avx2::Avx2, avx512::Avx512};

/// Length of the authentication tag behind a sealed text, bytes.
pub const TAG: usize = 16;

/// Packets that a kernel looks at together. Longer bursts are cut.
pub const BURST: usize = 64;

/// Longest text that the cipher's 32-bit block counter is good for, less the block that makes the Poly1305 key, bytes.
const TEXT_MAX: u64 = (1 << 32) * 64 - 64;

/// One packet to seal or open.
#[derive(Debug)]
pub struct Packet<'a> {
    /// The key. Not copied to anywhere but registers and a stack that is wiped.
    pub key: &'a [u8; 32],
    /// The nonce: never twice with the same key.
    pub nonce: [u8; 12],
    /// Additional data, authenticated and not encrypted.
    pub aad: &'a [u8],
    /// To seal: the plain text and [`TAG`] bytes of room behind it. To open: cipher text and tag.
    pub buf: &'a mut [u8],
    /// Set by the call: whether `buf` now holds what was asked for. Never so if `buf` is shorter than a tag or longer than the cipher
    /// allows (256 GiB); nothing is done then.
    pub ok: bool,
}

impl<'a> Packet<'a> {
    /// A packet that has not been worked on.
    pub fn new(key: &'a [u8; 32], nonce: [u8; 12], aad: &'a [u8], buf: &'a mut [u8]) -> Self {
        Packet {
            key,
            nonce,
            aad,
            buf,
            ok: false,
        }
    }

    /// Length of the text, bytes; none if the buffer cannot be that of a packet.
    fn text_len(&self) -> Option<usize> {
        let len = self.buf.len().checked_sub(TAG)?;
        (len as u64 <= TEXT_MAX).then_some(len)
    }
}

/// Code for one kind of processor. A value exists only for what this machine can run; get it once and keep it, because looking at the
/// processor is slow in a virtual machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kernel(Code);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Code {
    #[cfg(target_arch = "x86_64")]
    Avx512Ifma(Avx512<true>),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512<false>),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    Portable,
}

/// What a kernel is written for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Isa {
    /// AVX-512 with its 52-bit multiplier: F, BW, VL and IFMA.
    Avx512Ifma,
    /// AVX-512 without it: F, BW and VL.
    Avx512,
    /// AVX2.
    Avx2,
    /// Any processor.
    Portable,
}

impl Isa {
    /// All of them, the fastest first.
    pub const ALL: [Isa; 4] = [Isa::Avx512Ifma, Isa::Avx512, Isa::Avx2, Isa::Portable];

    /// What a processor needs for it, in the words of `/proc/cpuinfo`.
    pub const fn needs(self) -> &'static str {
        match self {
            Isa::Avx512Ifma => "avx512f, avx512bw, avx512vl and avx512ifma",
            Isa::Avx512 => "avx512f, avx512bw and avx512vl",
            Isa::Avx2 => "avx2",
            Isa::Portable => "nothing in particular",
        }
    }
}

impl Kernel {
    /// The kernel for `isa`, if this machine can run it.
    pub fn new(isa: Isa) -> Option<Kernel> {
        let code = match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Ifma => Code::Avx512Ifma(Avx512::detect()?),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => Code::Avx512(Avx512::detect()?),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Code::Avx2(Avx2::detect()?),
            Isa::Portable => Code::Portable,
            #[cfg(not(target_arch = "x86_64"))]
            _ => return None,
        };
        Some(Kernel(code))
    }

    /// What it is written for.
    pub fn isa(self) -> Isa {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Code::Avx512Ifma(_) => Isa::Avx512Ifma,
            #[cfg(target_arch = "x86_64")]
            Code::Avx512(_) => Isa::Avx512,
            #[cfg(target_arch = "x86_64")]
            Code::Avx2(_) => Isa::Avx2,
            Code::Portable => Isa::Portable,
        }
    }

    /// Encrypts each packet in place and writes its tag behind it.
    pub fn seal(self, packets: &mut [Packet<'_>]) {
        for packets in packets.chunks_mut(BURST) {
            match self.0 {
                #[cfg(target_arch = "x86_64")]
                Code::Avx512Ifma(s) => burst::seal(s, packets),
                #[cfg(target_arch = "x86_64")]
                Code::Avx512(s) => burst::seal(s, packets),
                #[cfg(target_arch = "x86_64")]
                Code::Avx2(s) => burst::seal(s, packets),
                Code::Portable => portable::seal(packets),
            }
        }
    }

    /// Checks each packet's tag, and decrypts it in place if that is right. Where it is wrong, the cipher text is left as it was.
    pub fn open(self, packets: &mut [Packet<'_>]) {
        for packets in packets.chunks_mut(BURST) {
            match self.0 {
                #[cfg(target_arch = "x86_64")]
                Code::Avx512Ifma(s) => burst::open(s, packets),
                #[cfg(target_arch = "x86_64")]
                Code::Avx512(s) => burst::open(s, packets),
                #[cfg(target_arch = "x86_64")]
                Code::Avx2(s) => burst::open(s, packets),
                Code::Portable => portable::open(packets),
            }
        }
    }
}
