//! The kernels for x86-64.

pub(crate) mod avx2;
pub(crate) mod avx512;

/// Implements [`Entries`](crate::vector::Entries) for a processor: each function compiled for its instructions, once.
macro_rules! entries {
    ($token:ty, $field:ident, $features:literal, $stack:literal, $chunks:literal) => {
        impl crate::vector::Entries for $token {
            const STACK: usize = $stack;
            const STACK_CHUNKS: usize = $chunks;

            crate::x86::entries! { @ $token, $features,
                fn keys(works: &Works<'_>, keys: &mut [Keys]) -> () = |s| crate::chacha::keys(s, works, keys);
                fn two_upright(works: &Works<'_>, lanes: &Lanes, at: usize) -> () = |s| crate::chacha::mixed::<_, 2, 0>(s, works, lanes, at);
                fn upright_and_rows(works: &Works<'_>, lanes: &Lanes, at: usize) -> () = |s| crate::chacha::mixed::<_, 1, 3>(s, works, lanes, at);
                fn upright(works: &Works<'_>, lanes: &Lanes, at: usize) -> () = |s| crate::chacha::mixed::<_, 1, 0>(s, works, lanes, at);
                fn rows_only(works: &Works<'_>, lanes: &Lanes, at: usize) -> () = |s| crate::chacha::rows_only(s, works, lanes, at);
                fn side_by_side(group: &[Work<'_>], keys: &[Keys], first: usize, tags: &mut [[u8; TAG]; WIDE]) -> ()
                    = |s| crate::tags::side_by_side($field(s), group, keys, first, tags);
                fn seal_one(work: &mut Work<'_>) -> bool = |s| crate::one::one::<_, true>(s, work);
                fn open_one(work: &mut Work<'_>) -> bool = |s| crate::one::one::<_, false>(s, work);
                fn chunks(h: [u64; 3], key: [u64; 2], text: &[u8]) -> [u64; 3]
                    = |s| crate::tags::chunks($field(s), h, key, text);
                fn sort(lens: &[u32], order: &mut [u8; BURST]) -> () = |_s| crate::burst::sort(lens, order);
            }
        }
    };
    (@ $token:ty, $features:literal, $(
        fn $name:ident($($arg:ident: $type:ty),*) -> $result:ty = |$s:ident| $body:expr;
    )*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: $type),*) -> $result {
            #[target_feature(enable = $features)]
            #[inline(never)]
            fn run($s: $token, $($arg: $type),*) -> $result {
                $body
            }
            // SAFETY: a token is proof of the features.
            unsafe { run(self, $($arg),*) }
        }
    )*};
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
