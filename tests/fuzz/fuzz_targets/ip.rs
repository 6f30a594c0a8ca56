//! cargo-fuzz's entry to [`patronus_fuzz::ip`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| patronus_fuzz::ip::check(data));
