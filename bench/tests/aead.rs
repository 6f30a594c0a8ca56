//! The program as people run it: a short run of the AEADs, which are held against the reference first.

use std::process::Command;

use patronus_crypto::aead;

const KEYS: [&str; 6] = ["backend", "op", "size", "burst", "ns_per_packet", "gb_per_s"];

fn rows(arguments: &[&str]) -> Vec<serde_json::Value> {
    let name = format!(
        "patronus-bench-aead-{}-{}.json",
        std::process::id(),
        arguments.len()
    );
    let json = std::env::temp_dir().join(name);
    let output = Command::new(env!("CARGO_BIN_EXE_patronus-bench"))
        .args(["aead", "--rounds", "1", "--json"])
        .arg(&json)
        .args(arguments)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let rows: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    std::fs::remove_file(&json).unwrap();
    rows.as_array().unwrap().clone()
}

#[test]
fn a_short_run_writes_every_backend_and_key() {
    let rows = rows(&["--sizes", "64,imix", "--bursts", "1,32"]);
    for row in &rows {
        for key in KEYS {
            assert!(row.get(key).is_some(), "{key} is missing in {row}");
        }
        assert!(row["ns_per_packet"].as_f64().unwrap() > 0.0, "{row}");
    }
    let mut backends: Vec<&str> = aead::all().iter().map(|aead| aead.name()).collect();
    backends.extend(["ring", "aws-lc-rs"]);
    if patronus_bench_ipsec_mb::Manager::new().is_ok() {
        backends.extend(["ipsec-mb", "ipsec-mb-direct"]);
    } else {
        assert!(
            std::env::var_os("PATRONUS_REQUIRE_ALL").is_none() || cfg!(not(target_arch = "x86_64")),
            "libipsec-mb-dev is not installed"
        );
    }
    for backend in &backends {
        for op in ["seal", "open"] {
            let of_both = rows
                .iter()
                .filter(|row| row["backend"] == *backend && row["op"] == op);
            assert_eq!(of_both.count(), 4, "{backend}, {op}");
        }
    }
    assert_eq!(rows.len(), 8 * backends.len());
    assert!(rows.iter().any(|row| row["size"] == "imix" && row["burst"] == 32));
}

#[test]
fn a_sweep_has_forty_sizes() {
    let rows = rows(&["--sweep"]);
    let mut sizes: Vec<u64> = rows.iter().map(|row| row["size"].as_u64().unwrap()).collect();
    sizes.sort_unstable();
    sizes.dedup();
    assert_eq!((sizes.len(), sizes[0], sizes[39]), (40, 16, 9000));
}

#[test]
fn what_is_not_there_is_told() {
    let said = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_patronus-bench"))
            .arg("aead")
            .args(arguments)
            .output()
            .unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(said(&["--backends", "nonesuch"]).contains("aws-lc"));
    assert!(said(&["--sizes", "9001"]).contains("1 to 9000"));
    assert!(said(&["--bursts", "65"]).contains("64"));
}
