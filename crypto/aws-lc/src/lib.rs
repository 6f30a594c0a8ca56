//! ChaCha20-Poly1305 and X25519 of AWS-LC over keys that the caller owns.
//!
//! `aws-lc-rs` keeps a key inside objects of its own; here a key is borrowed for the length of a call, so that the only
//! lasting copy is the caller's locked one. `patronus-crypto` wraps this package as one of its backends; workers and the
//! slow-path thread come here through it. Nothing here allocates.
//!
//! There are two ways to the same cipher: `direct` to the assembly, and `evp`, the library's portable interface, for
//! processors that the assembly is not for. docs/adr/0003-aead-backend.md says what the first saves.

use aws_lc_sys as ffi;

#[cfg(target_arch = "x86_64")]
mod direct;
mod evp;

const TAG: usize = 16;

/// Longest text that the cipher's 32-bit block counter is good for, less the block that makes the Poly1305 key.
const TEXT_MAX: u64 = (1 << 32) * 64 - 64;

/// Room on the stack for one key and what follows from it, and the cipher over it. Used through [`scope`](Self::scope).
pub struct ChaCha20Poly1305(Way);

#[allow(clippy::large_enum_variant, reason = "a key is not to lie on the heap")]
enum Way {
    #[cfg(target_arch = "x86_64")]
    Direct(direct::Block),
    Evp(evp::Context),
}

impl ChaCha20Poly1305 {
    /// Runs `f` with a cipher, and wipes afterwards what it left on the stack, the library's registers spilled below the
    /// caller's frame included. The cipher is only lent, so that what it holds cannot be moved elsewhere.
    #[inline]
    pub fn scope<R>(f: impl FnOnce(&mut ChaCha20Poly1305) -> R) -> R {
        #[cfg(target_arch = "x86_64")]
        if direct::possible() {
            let result = f(&mut ChaCha20Poly1305(Way::Direct(direct::Block::keyless())));
            wipe_below::<{ direct::STACK }>();
            return result;
        }
        let result = f(&mut ChaCha20Poly1305(Way::Evp(evp::Context::keyless())));
        wipe_below::<{ evp::STACK }>();
        result
    }

    /// Encrypts all but the last 16 bytes of `buf` in place and writes the tag there (RFC 8439, section 2.8). False, and
    /// nothing done, if `buf` is shorter than a tag or longer than the cipher allows (256 GiB).
    #[inline]
    pub fn seal(&mut self, key: &[u8; 32], nonce: &[u8; 12], aad: &[u8], buf: &mut [u8]) -> bool {
        let Some((text, tag)) = parts(buf) else {
            return false;
        };
        match &mut self.0 {
            #[cfg(target_arch = "x86_64")]
            Way::Direct(block) => block.seal(key, nonce, aad, text, tag),
            Way::Evp(context) => context.seal(key, nonce, aad, text, tag),
        }
        true
    }

    /// Checks the tag in the last 16 bytes of `buf` and decrypts what is before it in place. False if the tag is wrong or
    /// missing, and then no plain text is left: the assembly decrypts while it authenticates, so the text is zeroed.
    #[inline]
    pub fn open(&mut self, key: &[u8; 32], nonce: &[u8; 12], aad: &[u8], buf: &mut [u8]) -> bool {
        let Some((text, tag)) = parts(buf) else {
            return false;
        };
        match &mut self.0 {
            #[cfg(target_arch = "x86_64")]
            Way::Direct(block) => block.open(key, nonce, aad, text, tag),
            Way::Evp(context) => context.open(key, nonce, aad, text, tag),
        }
    }
}

/// `buf` as text and tag, if it can be that.
#[inline]
fn parts(buf: &mut [u8]) -> Option<(&mut [u8], &mut [u8; TAG])> {
    buf.split_last_chunk_mut()
        .filter(|(text, _)| text.len() as u64 <= TEXT_MAX)
}

/// Overwrites `N` bytes of dead stack below the caller's frame.
#[inline(never)]
fn wipe_below<const N: usize>() {
    let mut below = std::mem::MaybeUninit::<[u8; N]>::zeroed();
    // SAFETY: no instruction at all. That it might read what the pointer points to is why the zeros have to be stored.
    unsafe {
        std::arch::asm!("/* {} */", in(reg) below.as_mut_ptr(), options(readonly, nostack, preserves_flags));
    }
}

/// The public key of `private` (RFC 7748, section 6.1).
pub fn x25519_public(private: &[u8; 32]) -> [u8; 32] {
    let mut public = [0; 32];
    // SAFETY: both arrays have the 32 bytes that the function reads and writes.
    unsafe { ffi::X25519_public_from_private(public.as_mut_ptr(), private.as_ptr()) }
    public
}

/// Writes the secret shared by `private` and the owner of `public` (RFC 7748, section 6.1) to `shared`. Whether that is
/// zero, as it is for a public key of low order, is the caller's to check.
pub fn x25519(shared: &mut [u8; 32], private: &[u8; 32], public: &[u8; 32]) {
    // SAFETY: the three arrays have the 32 bytes that the function reads and writes. Its result says no more than whether
    // the output is zero.
    unsafe { ffi::X25519(shared.as_mut_ptr(), private.as_ptr(), public.as_ptr()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ways() -> Vec<ChaCha20Poly1305> {
        let mut ways = vec![ChaCha20Poly1305(Way::Evp(evp::Context::keyless()))];
        #[cfg(target_arch = "x86_64")]
        if direct::possible() {
            ways.push(ChaCha20Poly1305(Way::Direct(direct::Block::keyless())));
        }
        ways
    }

    /// Both ways agree, for every length around the assembly's block sizes, with and without additional data.
    #[test]
    fn both_ways_are_one_cipher() {
        let key = std::array::from_fn(|n| n as u8);
        for len in (0..700).chain([1420, 2047, 8900, 65_535]) {
            let nonce = std::array::from_fn(|n| (len + n) as u8);
            let aad = vec![7; len % 40];
            let text: Vec<u8> = (0..len).map(|n| (n * 31) as u8).collect();
            let mut sealed = Vec::new();
            for mut way in ways() {
                let mut buf = [&text[..], &[0; TAG]].concat();
                assert!(way.seal(&key, &nonce, &aad, &mut buf));
                sealed.push(buf.clone());
                assert!(way.open(&key, &nonce, &aad, &mut buf));
                assert_eq!(buf[..len], text);
            }
            assert!(sealed.windows(2).all(|pair| pair[0] == pair[1]), "{len} bytes");
            for (mut way, mut buf) in ways().into_iter().zip(sealed) {
                buf[len] ^= 1;
                assert!(!way.open(&key, &nonce, &aad, &mut buf));
                assert!(
                    buf[..len].iter().all(|&b| b == 0),
                    "{len} bytes: something is left"
                );
            }
        }
    }

    #[test]
    fn too_short_for_a_tag() {
        for mut way in ways() {
            let mut buf = [3; TAG - 1];
            assert!(!way.seal(&[1; 32], &[2; 12], &[], &mut buf));
            assert!(!way.open(&[1; 32], &[2; 12], &[], &mut buf));
            assert_eq!(buf, [3; TAG - 1]);
        }
    }
}
