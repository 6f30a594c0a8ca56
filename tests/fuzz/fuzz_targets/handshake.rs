//! cargo-fuzz's entry to [`patronus_fuzz::handshake`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| patronus_fuzz::handshake::check(data));
