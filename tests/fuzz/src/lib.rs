//! What is done with an input, one module for each fuzz target.
//!
//! libFuzzer calls these functions from `fuzz_targets/`; `engine/tests/fuzz_replay.rs` includes the same files and runs the
//! seeds and a fixed set of mutations of them in every `cargo test`.

pub mod aead;
pub mod config;
pub mod control;
pub mod handshake;
pub mod ip;
pub mod messages;
pub mod observe;
pub mod offload;
pub mod site;
pub mod uapi;
pub mod wg_quick;

mod input;
