//! BLAKE2s as WireGuard uses it: hash, keyed MAC, HMAC and the key derivation built on it (WireGuard paper, section 5.4).
//!
//! Called by the handshake and the cookies, on the slow-path thread.

use blake2::digest::KeyInit;
use blake2::digest::consts::U16;
use blake2::{Blake2s256, Blake2sMac, Digest};
use zeroize::{Zeroize, Zeroizing};

/// Bytes that BLAKE2s takes at a time.
const BLOCK: usize = 64;

/// Hash(a || b || ..).
pub(crate) fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut state = Blake2s256::new();
    for part in parts {
        Digest::update(&mut state, part);
    }
    state.finalize().into()
}

/// Mac(key, a || b || ..): keyed BLAKE2s with 16 bytes of output.
pub(crate) fn mac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 16] {
    keyed(Blake2sMac::new(key.into()), parts)
}

/// Mac with a key of 16 bytes, as a cookie is.
pub(crate) fn mac_by_cookie(key: &[u8; 16], parts: &[&[u8]]) -> [u8; 16] {
    // The crate's fixed-size constructor would pad the key, and BLAKE2s hashes the key's length.
    let state = Blake2sMac::new_from_slice(key).expect("16 bytes are a key for BLAKE2s");
    keyed(state, parts)
}

fn keyed(mut state: Blake2sMac<U16>, parts: &[&[u8]]) -> [u8; 16] {
    use blake2::digest::{FixedOutput, Update};
    for part in parts {
        Update::update(&mut state, part);
    }
    state.finalize_fixed().into()
}

/// HMAC-BLAKE2s (RFC 2104).
fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let mut pad = [0x36; BLOCK];
    for (pad, key) in pad.iter_mut().zip(key) {
        *pad ^= key;
    }
    let mut state = Blake2s256::new_with_prefix(pad);
    for part in parts {
        Digest::update(&mut state, part);
    }
    let inner: Zeroizing<[u8; 32]> = Zeroizing::new(state.finalize().into());
    for pad in &mut pad {
        *pad ^= 0x36 ^ 0x5c;
    }
    let outer = Zeroizing::new(
        Blake2s256::new_with_prefix(pad)
            .chain_update(*inner)
            .finalize()
            .into(),
    );
    pad.zeroize();
    outer
}

/// The first half of Kdf_n: the key from which [`expand`] makes its outputs.
pub(crate) fn extract(key: &[u8; 32], input: &[u8]) -> Zeroizing<[u8; 32]> {
    hmac(key, &[input])
}

/// The second half of Kdf_n: fills `outputs`, each from the one before.
pub(crate) fn expand<const N: usize>(key: &[u8; 32], outputs: [&mut [u8; 32]; N]) {
    let mut before = Zeroizing::new([0; 32]);
    for (number, output) in (1..).zip(outputs) {
        before = match number {
            1 => hmac(key, &[&[number]]),
            _ => hmac(key, &[&*before, &[number]]),
        };
        output.copy_from_slice(&*before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len())
            .step_by(2)
            .map(|n| u8::from_str_radix(&text[n..n + 2], 16).unwrap())
            .collect()
    }

    /// RFC 7693, appendix B.
    #[test]
    fn blake2s_of_abc() {
        let expected = hex("508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982");
        assert_eq!(hash(&[b"abc"])[..], expected);
        assert_eq!(hash(&[b"a", b"", b"bc"])[..], expected);
    }

    /// HMAC against the definition of RFC 2104, spelt out.
    #[test]
    fn hmac_is_what_the_rfc_says() {
        let key: [u8; 32] = std::array::from_fn(|n| n as u8);
        let mut inner = vec![0x36; 64];
        let mut outer = vec![0x5c; 64];
        for n in 0..32 {
            inner[n] ^= key[n];
            outer[n] ^= key[n];
        }
        inner.extend_from_slice(b"text");
        let digest = hash(&[&inner]);
        outer.extend_from_slice(&digest);
        assert_eq!(*hmac(&key, &[b"te", b"xt"]), hash(&[&outer]));
    }

    #[test]
    fn every_output_follows_from_the_one_before() {
        let key = [7; 32];
        let (mut a, mut b, mut c) = ([0; 32], [0; 32], [0; 32]);
        expand(&key, [&mut a, &mut b, &mut c]);
        assert_eq!(a, *hmac(&key, &[&[1]]));
        assert_eq!(b, *hmac(&key, &[&a, &[2]]));
        assert_eq!(c, *hmac(&key, &[&b, &[3]]));
    }

    #[test]
    fn a_short_key_is_not_a_padded_one() {
        let mut padded = [0; 32];
        padded[..16].copy_from_slice(&[9; 16]);
        assert_ne!(mac_by_cookie(&[9; 16], &[b"x"]), mac(&padded, &[b"x"]));
    }
}
