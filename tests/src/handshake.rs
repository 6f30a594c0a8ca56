//! Handshake messages of nobody, for floods.

use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput, KeyInit, Update};
use blake2::{Blake2s256, Blake2sMac, Digest};

/// Makes initiations of random content. Their mac1 is right (WireGuard paper, section 5.4.4), which takes no more than
/// the responder's public key; nothing else in them is.
pub struct Initiations {
    key: [u8; 32],
    state: u64,
}

impl Initiations {
    /// For the responder with this public key, in hex as the control socket shows it.
    pub fn to(public_key: &str) -> Initiations {
        let digit = |at: usize| u8::from_str_radix(&public_key[at..at + 2], 16).expect("hex");
        let public: Vec<u8> = (0..64).step_by(2).map(digit).collect();
        let mut hash = Blake2s256::new();
        Digest::update(&mut hash, b"mac1----");
        Digest::update(&mut hash, &public);
        Initiations {
            key: hash.finalize().into(),
            state: 0x9e37_79b9_7f4a_7c15,
        }
    }

    /// One more, with a good mac1 or without.
    pub fn next(&mut self, good: bool) -> [u8; 148] {
        let mut message = [0; 148];
        for chunk in message.chunks_mut(8) {
            chunk.copy_from_slice(&self.random().to_le_bytes()[..chunk.len()]);
        }
        message[..4].copy_from_slice(&1u32.to_le_bytes());
        // No mac2: we have no cookie.
        message[132..].fill(0);
        if good {
            let mut mac = Blake2sMac::<U16>::new((&self.key).into());
            mac.update(&message[..116]);
            message[116..132].copy_from_slice(&mac.finalize_fixed());
        }
        message
    }

    /// Xorshift64*: any sequence that does not repeat will do.
    fn random(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}
