//! ChaCha20-Poly1305 of Intel's ipsec-mb (BSD-3-Clause), for `patronus-bench aead` and nothing else: the vector AEAD that VPP and DPDK
//! use. On the thread that measures.
//!
//! Where Debian's `libipsec-mb-dev` was not installed when this was built, there is no [`Manager`] to be had.

use std::marker::PhantomData;

#[cfg(ipsec_mb)]
mod binding;
#[cfg(not(ipsec_mb))]
mod missing;

#[cfg(ipsec_mb)]
pub use binding::Manager;
#[cfg(not(ipsec_mb))]
pub use missing::Manager;

/// Most packets in a call.
pub const BURST_MAX: usize = 64;

/// Length of a tag, bytes.
pub const TAG: usize = 16;

/// How the library is called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Api {
    /// Packet after packet.
    Direct,
    /// All packets as one burst of jobs.
    Burst,
}

/// Which way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// Encrypt, and write the tag.
    Seal,
    /// Decrypt, and compare the tag. The text of a packet that is not authentic is decrypted too.
    Open,
}

/// One packet to seal or open in place. The fields are those of `struct patronus_packet` in shim.c.
#[repr(C)]
pub struct Packet<'a> {
    key: &'a [u8; 32],
    nonce: [u8; 12],
    /// `len` bytes and [`TAG`] behind them, borrowed for `'a`.
    text: *mut u8,
    len: u64,
    buf: PhantomData<&'a mut [u8]>,
}

impl<'a> Packet<'a> {
    /// A packet of a text and its tag behind it.
    ///
    /// # Panics
    ///
    /// If `buf` is shorter than a tag.
    pub fn new(key: &'a [u8; 32], nonce: [u8; 12], buf: &'a mut [u8]) -> Packet<'a> {
        let len = buf.len().checked_sub(TAG).expect("room for a tag");
        Packet {
            key,
            nonce,
            text: buf.as_mut_ptr(),
            len: len as u64,
            buf: PhantomData,
        }
    }
}

#[cfg(all(test, ipsec_mb))]
mod tests {
    use super::*;

    /// That it is the right cipher, the bench sees before it measures.
    #[test]
    fn what_was_sealed_opens_and_forgeries_do_not() {
        let mut manager = Manager::new().expect("a manager");
        let key: [u8; 32] = std::array::from_fn(|n| n as u8);
        for api in [Api::Direct, Api::Burst] {
            let mut bufs: Vec<Vec<u8>> = (0..BURST_MAX).map(|n| vec![7; 100 * n + TAG]).collect();
            let mut work = |op, bufs: &mut [Vec<u8>]| {
                let packets = bufs.iter_mut().map(|buf| Packet::new(&key, [3; 12], buf));
                manager.work(api, op, &mut packets.collect::<Vec<_>>())
            };
            assert_eq!(work(Op::Seal, &mut bufs), 0);
            let mut forged = bufs.clone();
            assert!(bufs[5][..500].iter().any(|b| *b != 7));
            assert_eq!(work(Op::Open, &mut bufs), 0);
            let is_plain = |buf: &Vec<u8>| buf[..buf.len() - TAG].iter().all(|b| *b == 7);
            assert!(bufs.iter().all(is_plain));
            forged[5][17] ^= 1;
            forged[0][0] ^= 1;
            assert_eq!(work(Op::Open, &mut forged), 2, "{api:?}");
        }
    }
}
