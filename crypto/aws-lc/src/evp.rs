//! The portable way: AWS-LC's `EVP_AEAD` interface, over a context on the stack.
//!
//! Read in aws-lc-sys 0.47 (`crypto/cipher_extra/e_chacha20poly1305.c`, `crypto/fipsmodule/cipher/aead.c`): setting a key
//! copies 32 bytes into the context and allocates nothing; sealing and opening allocate nothing. A wrong tag puts an entry
//! into the thread's ring of 16 errors, whose first use in a thread allocates it.

use super::{TAG, ffi};
use std::ptr;

/// Stack that the library uses below its caller, bytes, with room to spare.
pub(super) const STACK: usize = 4096;

/// A context that owns nothing outside itself: this cipher's clean-up does nothing.
pub(super) struct Context(ffi::EVP_AEAD_CTX);

impl Context {
    /// Room for a key.
    pub(super) fn keyless() -> Self {
        Context(ffi::EVP_AEAD_CTX {
            aead: ptr::null(),
            state: ffi::evp_aead_ctx_st_state { opaque: [0; _] },
            state_offset: 0,
            tag_len: 0,
        })
    }

    fn load(&mut self, key: &[u8; 32]) {
        // SAFETY: the context is live and owns nothing, so it may be initialized again; `key` is readable for the length
        // passed; the AEAD is a static of the library.
        let ok = unsafe {
            ffi::EVP_AEAD_CTX_init(
                &mut self.0,
                ffi::EVP_aead_chacha20_poly1305(),
                key.as_ptr(),
                key.len(),
                TAG,
                ptr::null_mut(),
            )
        };
        // It fails only for another key or tag length than this cipher's, and both are constants here.
        assert_eq!(ok, 1, "ChaCha20-Poly1305 refused a key of 32 bytes");
    }

    /// The caller has made sure that `text` is not longer than `TEXT_MAX`.
    pub(super) fn seal(
        &mut self,
        key: &[u8; 32],
        nonce: &[u8; 12],
        aad: &[u8],
        text: &mut [u8],
        tag: &mut [u8; TAG],
    ) {
        self.load(key);
        let mut tag_len = 0;
        // SAFETY: the context is initialized. `text` and `tag` are disjoint and exclusively borrowed; input and output are the
        // same range, which the library allows; every length is its slice's own. No extra input.
        let ok = unsafe {
            ffi::EVP_AEAD_CTX_seal_scatter(
                &self.0,
                text.as_mut_ptr(),
                tag.as_mut_ptr(),
                &mut tag_len,
                tag.len(),
                nonce.as_ptr(),
                nonce.len(),
                text.as_ptr(),
                text.len(),
                ptr::null(),
                0,
                aad.as_ptr(),
                aad.len(),
            )
        };
        // It fails only for lengths that the caller excludes.
        assert_eq!(ok, 1, "ChaCha20-Poly1305 refused a text");
    }

    /// The caller has made sure that `text` is not longer than `TEXT_MAX`. The library zeroes it if the tag is wrong.
    pub(super) fn open(
        &mut self,
        key: &[u8; 32],
        nonce: &[u8; 12],
        aad: &[u8],
        text: &mut [u8],
        tag: &[u8; TAG],
    ) -> bool {
        self.load(key);
        // SAFETY: as in `seal`; the tag is only read.
        let ok = unsafe {
            ffi::EVP_AEAD_CTX_open_gather(
                &self.0,
                text.as_mut_ptr(),
                nonce.as_ptr(),
                nonce.len(),
                text.as_ptr(),
                text.len(),
                tag.as_ptr(),
                tag.len(),
                aad.as_ptr(),
                aad.len(),
            )
        };
        ok == 1
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the context is live, exclusively borrowed and as long as its own type says; it owns nothing that overwriting
        // it would lose.
        unsafe { ffi::OPENSSL_cleanse(ptr::from_mut(&mut self.0).cast(), size_of::<ffi::EVP_AEAD_CTX>()) }
    }
}
