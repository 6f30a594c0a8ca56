//! The way straight to AWS-LC's assembly for x86-64, past the library's generic layers.
//!
//! Those layers cost 30 to 50 ns a packet and put an entry into an error queue, which allocates, for every forged one.
//! The two functions are the library's own and internal (`crypto/cipher_extra/internal.h`): their names carry the
//! library's version and their arguments could change with it. Hence the exact version in the workspace's Cargo.toml;
//! with another one the names do not link, and the test vectors run over what links.

use super::{TAG, ffi};
use std::sync::OnceLock;

/// Stack that the assembly uses below its caller, bytes: its frame is 424, and this function's callers' in between.
pub(super) const STACK: usize = 1024;

unsafe extern "C" {
    #[link_name = "aws_lc_0_47_0_chacha20_poly1305_seal"]
    fn chacha20_poly1305_seal(
        out: *mut u8,
        text: *const u8,
        text_len: usize,
        aad: *const u8,
        aad_len: usize,
        block: *mut Block,
    );

    #[link_name = "aws_lc_0_47_0_chacha20_poly1305_open"]
    fn chacha20_poly1305_open(
        out: *mut u8,
        text: *const u8,
        text_len: usize,
        aad: *const u8,
        aad_len: usize,
        block: *mut Block,
    );
}

/// What the assembly takes besides the text. It returns the tag in the first 16 bytes. (`chacha20_poly1305_seal_data`;
/// that for opening is the same without the last two fields.)
#[repr(C, align(16))]
pub(super) struct Block {
    key: [u8; 32],
    /// Number of the first key stream block: the one that makes the Poly1305 key.
    counter: u32,
    nonce: [u8; 12],
    /// More cipher text to authenticate. Not used here.
    extra: *const u8,
    extra_len: usize,
}

const _: () = assert!(size_of::<Block>() == 64 && align_of::<Block>() == 16);

/// Whether this processor can run the assembly. Asked once; also makes sure that the library has looked at the
/// processor, as the assembly chooses its AVX2 half by that.
#[inline]
pub(super) fn possible() -> bool {
    static POSSIBLE: OnceLock<bool> = OnceLock::new();
    *POSSIBLE.get_or_init(|| {
        // SAFETY: takes nothing, and may be called any number of times.
        unsafe { ffi::CRYPTO_library_init() };
        std::arch::is_x86_feature_detected!("sse4.1")
    })
}

impl Block {
    /// Room for a key.
    #[inline]
    pub(super) fn keyless() -> Self {
        Block {
            key: [0; 32],
            counter: 0,
            nonce: [0; 12],
            extra: std::ptr::null(),
            extra_len: 0,
        }
    }

    #[inline]
    fn load(&mut self, key: &[u8; 32], nonce: &[u8; 12]) {
        self.key = *key;
        self.counter = 0;
        self.nonce = *nonce;
    }

    /// The caller has made sure that `text` is not longer than `TEXT_MAX`.
    #[inline]
    pub(super) fn seal(
        &mut self,
        key: &[u8; 32],
        nonce: &[u8; 12],
        aad: &[u8],
        text: &mut [u8],
        tag: &mut [u8; TAG],
    ) {
        self.load(key, nonce);
        // SAFETY: SSE4.1 is there, or there would be no `Block`. Input and output are the same range, as the library itself
        // calls it; the lengths are the slices' own; the block has the size and alignment that the library asserts of its own.
        unsafe {
            chacha20_poly1305_seal(
                text.as_mut_ptr(),
                text.as_ptr(),
                text.len(),
                aad.as_ptr(),
                aad.len(),
                self,
            );
        }
        tag.copy_from_slice(&self.key[..TAG]);
    }

    /// The caller has made sure that `text` is not longer than `TEXT_MAX`.
    #[inline]
    pub(super) fn open(
        &mut self,
        key: &[u8; 32],
        nonce: &[u8; 12],
        aad: &[u8],
        text: &mut [u8],
        tag: &[u8; TAG],
    ) -> bool {
        self.load(key, nonce);
        // SAFETY: as in `seal`.
        unsafe {
            chacha20_poly1305_open(
                text.as_mut_ptr(),
                text.as_ptr(),
                text.len(),
                aad.as_ptr(),
                aad.len(),
                self,
            );
        }
        // SAFETY: both ranges have 16 bytes. The comparison takes the same time wherever they differ.
        let differs = unsafe { ffi::CRYPTO_memcmp(self.key.as_ptr().cast(), tag.as_ptr().cast(), TAG) };
        if differs != 0 {
            text.fill(0);
        }
        differs == 0
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: the key is this value's own; a volatile store is not left out for being the last.
        unsafe { std::ptr::from_mut(&mut self.key).write_volatile([0; 32]) };
    }
}
