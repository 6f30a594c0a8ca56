//! The `chacha20poly1305` crate: the reference, and the oracle that other backends are held against. It wipes its own
//! objects; what its functions spilled is wiped off the stack after each burst.

use super::{Aead, Job, TAG, nonce};
use chacha20poly1305::{AeadInOut, ChaCha20Poly1305, KeyInit};

pub(super) struct RustCrypto;

impl Aead for RustCrypto {
    fn name(&self) -> &'static str {
        "rustcrypto"
    }

    fn seal(&self, burst: &mut [Job<'_>]) {
        for job in burst {
            job.ok = seal(job.key, &nonce(job.counter), &[], job.buf);
        }
        patronus_mem::wipe_stack();
    }

    fn open(&self, burst: &mut [Job<'_>]) {
        for job in burst {
            job.ok = open(job.key, &nonce(job.counter), &[], job.buf);
        }
        patronus_mem::wipe_stack();
    }

    fn seal_one(&self, key: &[u8; 32], nonce: &[u8; 12], aad: &[u8], buf: &mut [u8]) -> bool {
        let ok = seal(key, nonce, aad, buf);
        patronus_mem::wipe_stack();
        ok
    }

    fn open_one(&self, key: &[u8; 32], nonce: &[u8; 12], aad: &[u8], buf: &mut [u8]) -> bool {
        let ok = open(key, nonce, aad, buf);
        patronus_mem::wipe_stack();
        ok
    }
}

// Not inlined, so that all it leaves on the stack is below the frame of the caller, which wipes from there.
#[inline(never)]
fn seal(key: &[u8; 32], nonce: &[u8; 12], aad: &[u8], buf: &mut [u8]) -> bool {
    let Some((text, tag)) = buf.split_last_chunk_mut::<TAG>() else {
        return false;
    };
    let cipher = ChaCha20Poly1305::new(key.into());
    match cipher.encrypt_inout_detached(nonce.into(), aad, text.into()) {
        Ok(computed) => {
            tag.copy_from_slice(&computed);
            true
        }
        // Longer than the cipher allows: nothing was done.
        Err(_) => false,
    }
}

#[inline(never)]
fn open(key: &[u8; 32], nonce: &[u8; 12], aad: &[u8], buf: &mut [u8]) -> bool {
    let Some((text, tag)) = buf.split_last_chunk_mut::<TAG>() else {
        return false;
    };
    let cipher = ChaCha20Poly1305::new(key.into());
    // The crate compares the tag in constant time before it decrypts: a failure leaves the cipher text as it was.
    cipher
        .decrypt_inout_detached(nonce.into(), aad, text.into(), (&*tag).into())
        .is_ok()
}
