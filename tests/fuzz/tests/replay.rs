//! The everyday part of fuzzing: seeds, kept inputs and a fixed sequence of mutations of each target.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use patronus_fuzz::mutate::{Sequence, mutate};
use patronus_fuzz::{TARGETS, Target};

/// Inputs that once broke something, `regressions/TARGET/*`.
fn kept(target: &Target) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("regressions")
        .join(target.name);
    let Ok(files) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut paths: Vec<_> = files
        .map(|file| file.expect("a readable folder").path())
        .collect();
    paths.sort();
    paths
        .iter()
        .map(|path| std::fs::read(path).expect("a readable file"))
        .collect()
}

fn replay(name: &str) {
    let target = TARGETS
        .iter()
        .find(|target| target.name == name)
        .expect("a target");
    let mut inputs = (target.seeds)();
    assert!(!inputs.is_empty());
    inputs.extend(kept(target));
    for input in &inputs {
        attempt(target, input);
    }
    let mut sequence = Sequence::new(0x9e37_79b9_7f4a_7c15);
    for _ in 0..target.mutations {
        let (one, other) = (sequence.below(inputs.len()), sequence.below(inputs.len()));
        attempt(target, &mutate(&mut sequence, &inputs[one], &inputs[other]));
    }
}

/// Shows the input that breaks the property, so that it can be kept.
fn attempt(target: &Target, input: &[u8]) {
    let outcome = catch_unwind(AssertUnwindSafe(|| (target.check)(input)));
    assert!(outcome.is_ok(), "{} fails for {input:02x?}", target.name);
}

#[test]
fn c02_c03_messages_of_any_shape() {
    replay("messages");
}

#[test]
fn c22_c41_r32_handshake_messages_of_any_content() {
    replay("handshake");
}

#[test]
fn c35_c66_inner_headers_of_any_content() {
    replay("ip");
}

#[test]
fn c46_super_packets_of_any_content() {
    replay("split");
}

#[test]
fn c46_bursts_of_any_content() {
    replay("coalesce");
}

#[test]
fn c80_r44_uapi_text_of_any_content() {
    replay("uapi");
}

#[test]
fn mutations_are_the_same_everywhere() {
    let mut sequence = Sequence::new(1);
    let first = mutate(&mut sequence, b"some input", b"other");
    assert_eq!(first, mutate(&mut Sequence::new(1), b"some input", b"other"));
    let different = (0..100)
        .map(|_| mutate(&mut sequence, b"some input", b"other"))
        .filter(|m| *m != first)
        .count();
    assert!(different > 90);
}
