//! cargo-fuzz's entry to [`patronus_fuzz::coalesce`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| patronus_fuzz::coalesce::check(data));
