//! DPDK's own cryptography as a yardstick: dpdk-test-crypto-perf sealing buffers with ChaCha20-Poly1305, by Intel's vector library.

use std::process::Command;

use patronus_netns::{Error, Result};

/// Operations of a run.
const OPERATIONS: &str = "3000000";

/// Buffers of `size` bytes that one core seals in a second, in bursts of 32, nothing but the cryptography.
pub fn seal(size: usize) -> Result<f64> {
    let output = Command::new("dpdk-test-crypto-perf")
        .args(["--lcores", "0@0,1@1", "--no-pci", "--in-memory", "-m", "256"])
        .args([
            "--log-level=3",
            "--vdev",
            "crypto_aesni_mb0",
            "--",
            "--devtype",
            "crypto_aesni_mb",
        ])
        .args([
            "--optype",
            "aead",
            "--aead-algo",
            "chacha20-poly1305",
            "--aead-op",
            "encrypt",
        ])
        .args(["--aead-key-sz", "32", "--aead-iv-sz", "12", "--aead-aad-sz", "0"])
        .args(["--digest-sz", "16", "--burst-sz", "32", "--pool-sz", "8192"])
        .args([
            "--total-ops",
            OPERATIONS,
            "--ptest",
            "throughput",
            "--silent",
            "--csv-friendly",
        ])
        .args(["--buffer-sz", &size.to_string()])
        .output()
        .map_err(|e| {
            Error::new(format!(
                "dpdk-test-crypto-perf does not start ({e}): install Debian's dpdk-dev"
            ))
        })?;
    let said = String::from_utf8_lossy(&output.stdout);
    // Core, size, burst, enqueued, dequeued, two kinds of failures, millions a second.
    let rate = said
        .lines()
        .filter(|line| !line.starts_with('#'))
        .find_map(|line| {
            let field = line.split(',').nth(7)?;
            field.trim().parse::<f64>().ok()
        });
    rate.map(|millions| 1e6 * millions).ok_or_else(|| {
        Error::new(format!(
            "dpdk-test-crypto-perf measured nothing; are there 128 free huge pages (/proc/sys/vm/nr_hugepages)? It said: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ))
    })
}
