//! cargo-fuzz's entry to [`patronus_fuzz::split`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| patronus_fuzz::split::check(data));
