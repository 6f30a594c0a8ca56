//! The kernels for x86-64.

pub(crate) mod avx2;
pub(crate) mod avx512;

/// Implements [`Entries`](crate::vector::Entries) for a processor: each function compiled for its instructions, once.
macro_rules! entries {
    ($token:ty, $field:ident, $features:literal) => {
        impl crate::vector::Entries for $token {
            fn keys(self, works: &Works<'_>, keys: &mut Keys) {
                #[target_feature(enable = $features)]
                #[inline(never)]
                fn run(s: $token, works: &Works<'_>, keys: &mut Keys) {
                    crate::chacha::keys(s, works, keys);
                }
                // SAFETY: a token is proof of the features.
                unsafe { run(self, works, keys) }
            }

            fn flush(self, works: &Works<'_>, lanes: &mut Lanes) {
                #[target_feature(enable = $features)]
                #[inline(never)]
                fn run(s: $token, works: &Works<'_>, lanes: &mut Lanes) {
                    crate::chacha::flush(s, works, lanes);
                }
                // SAFETY: a token is proof of the features.
                unsafe { run(self, works, lanes) }
            }

            fn tags(self, works: &Works<'_>, keys: &Keys, first: usize, tags: &mut [[u8; TAG]; WIDE]) {
                #[target_feature(enable = $features)]
                #[inline(never)]
                fn run(
                    s: $token,
                    works: &Works<'_>,
                    keys: &Keys,
                    first: usize,
                    tags: &mut [[u8; TAG]; WIDE],
                ) {
                    crate::tags::tags($field(s), works, keys, first, tags);
                }
                // SAFETY: a token is proof of the features.
                unsafe { run(self, works, keys, first, tags) }
            }

            fn sort(self, lens: &[u32], order: &mut [u8; BURST]) {
                #[target_feature(enable = $features)]
                #[inline(never)]
                fn run(lens: &[u32], order: &mut [u8; BURST]) {
                    crate::burst::sort(lens, order);
                }
                // SAFETY: a token is proof of the features.
                unsafe { run(lens, order) }
            }
        }
    };
}
use entries;

/// Methods that are one intrinsic, or a few.
macro_rules! instructions {
    ($(fn $name:ident$(<const $by:ident: $kind:ty>)?($($arg:ident: $type:ty),*) -> $result:ty { $body:expr })*) => {
        $(
            #[inline(always)]
            fn $name$(<const $by: $kind>)?(self, $($arg: $type),*) -> $result {
                // SAFETY: a token is proof that the processor has the instructions, and they touch no memory but through references.
                unsafe { $body }
            }
        )*
    };
}
use instructions;
