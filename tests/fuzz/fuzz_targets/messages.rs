//! cargo-fuzz's entry to [`patronus_fuzz::messages`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| patronus_fuzz::messages::check(data));
