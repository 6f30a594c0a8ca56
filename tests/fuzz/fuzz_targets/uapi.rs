//! cargo-fuzz's entry to [`patronus_fuzz::uapi`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| patronus_fuzz::uapi::check(data));
