//! Tells the program which compiler made it: instruction counts are that compiler's.

use std::process::Command;

fn main() {
    let rustc = std::env::var("RUSTC").expect("cargo says which compiler");
    let output = Command::new(rustc)
        .arg("--version")
        .output()
        .expect("the compiler runs");
    let version = String::from_utf8_lossy(&output.stdout);
    println!("cargo::rustc-env=PATRONUS_RUSTC={}", version.trim());
    println!("cargo::rerun-if-changed=build.rs");
}
