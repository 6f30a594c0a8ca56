//! ChaCha20-Poly1305 and X25519 of AWS-LC over keys that the caller owns.
//!
//! `aws-lc-rs` keeps a key inside objects of its own; here a key is borrowed for the length of a call, so that the only
//! lasting copy is the caller's locked one. `patronus-crypto` wraps this package as one of its backends; workers and the
//! slow-path thread come here through it.
//!
//! What the C code does with memory (read in aws-lc-sys 0.47, `crypto/cipher_extra/e_chacha20poly1305.c`,
//! `crypto/fipsmodule/cipher/aead.c` and `crypto/fipsmodule/curve25519`): setting a key copies 32 bytes into the context
//! and allocates nothing; sealing and opening allocate nothing, keep their own copy of the key on the stack and
//! cleanse it; X25519 allocates nothing. A wrong tag puts an entry into the thread's error ring, whose first
//! use in a thread allocates that ring, once. The assembly's spilled registers stay on the stack below the caller: that is
//! what `patronus_mem::wipe_stack` is for.

use aws_lc_sys as ffi;
use std::ptr;

const TAG: usize = 16;

/// Room for one key on the stack of [`ChaCha20Poly1305::scope`].
pub struct ChaCha20Poly1305 {
    ctx: ffi::EVP_AEAD_CTX,
}

impl ChaCha20Poly1305 {
    /// Runs `f` with room for a key, and wipes it afterwards. The value cannot be moved out, so no copy of the key
    /// can be left anywhere else.
    #[inline]
    pub fn scope<R>(f: impl FnOnce(&mut ChaCha20Poly1305) -> R) -> R {
        let mut room = ChaCha20Poly1305 {
            ctx: ffi::EVP_AEAD_CTX {
                aead: ptr::null(),
                state: ffi::evp_aead_ctx_st_state { opaque: [0; _] },
                state_offset: 0,
                tag_len: 0,
            },
        };
        f(&mut room)
    }

    /// Sets the key that the returned cipher works with. Cheap: nothing is expanded ahead.
    #[inline]
    pub fn with_key(&mut self, key: &[u8; 32]) -> Keyed<'_> {
        // SAFETY: `ctx` is a live context that owns nothing outside itself (this cipher's clean-up does nothing, so it may be
        // initialized again without one); `key` is readable for the length passed; the AEAD is a static of the library.
        let ok = unsafe {
            ffi::EVP_AEAD_CTX_init(
                &mut self.ctx,
                ffi::EVP_aead_chacha20_poly1305(),
                key.as_ptr(),
                key.len(),
                TAG,
                ptr::null_mut(),
            )
        };
        // It fails only for another key or tag length than this cipher's, and both are constants here.
        assert_eq!(ok, 1, "ChaCha20-Poly1305 refused a 32-byte key");
        Keyed { ctx: &self.ctx }
    }
}

impl Drop for ChaCha20Poly1305 {
    fn drop(&mut self) {
        // SAFETY: the context is live, exclusively borrowed, and as long as its own type says. No destructor of the library
        // is skipped by overwriting it: this cipher's clean-up does nothing.
        unsafe {
            ffi::OPENSSL_cleanse(
                ptr::from_mut(&mut self.ctx).cast(),
                size_of::<ffi::EVP_AEAD_CTX>(),
            )
        }
    }
}

/// A cipher with its key set.
pub struct Keyed<'a> {
    ctx: &'a ffi::EVP_AEAD_CTX,
}

impl Keyed<'_> {
    /// Encrypts all but the last 16 bytes of `buf` in place and writes the tag there (RFC 8439, section 2.8). False, and
    /// `buf` untouched, if it is shorter than a tag.
    #[inline]
    pub fn seal(&self, nonce: &[u8; 12], aad: &[u8], buf: &mut [u8]) -> bool {
        let Some((text, tag)) = buf.split_last_chunk_mut::<TAG>() else {
            return false;
        };
        let mut tag_len = 0;
        // SAFETY: the context was initialized by `with_key`. `text` and `tag` are disjoint and exclusively borrowed; input and
        // output are the same range, which the library allows; every length is its slice's own. No extra input.
        let ok = unsafe {
            ffi::EVP_AEAD_CTX_seal_scatter(
                self.ctx,
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
        ok == 1
    }

    /// Checks the tag in the last 16 bytes of `buf` and decrypts what is before it in place. False if the tag is wrong or
    /// missing; the text is then wiped (by the library, which decrypts while it authenticates).
    #[inline]
    pub fn open(&self, nonce: &[u8; 12], aad: &[u8], buf: &mut [u8]) -> bool {
        let Some((text, tag)) = buf.split_last_chunk_mut::<TAG>() else {
            return false;
        };
        // SAFETY: as in `seal`; the tag is only read.
        let ok = unsafe {
            ffi::EVP_AEAD_CTX_open_gather(
                self.ctx,
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
