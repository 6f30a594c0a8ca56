//! The program as people run it, on the run without a tunnel, which needs no daemon.

use std::process::Command;

#[test]
fn a_quick_run_writes_rows_and_a_picture() {
    let folder = std::env::temp_dir().join(format!("patronus-bench-test-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (json, svg) = (folder.join("rows.json"), folder.join("rows.svg"));
    let output = Command::new(env!("CARGO_BIN_EXE_patronus-bench"))
        .args([
            "peers",
            "--quick",
            "--subjects",
            "no-tunnel",
            "--tests",
            "tcp1,udp64-80k,rtt-loaded",
        ])
        .args(["--trial", "0.3", "--tcp", "0.3", "--pace", "50", "--json"])
        .arg(&json)
        .arg("--plot")
        .arg(&svg)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("unshare") {
        eprintln!("skipped: no rights to make namespaces");
        return;
    }
    assert!(output.status.success(), "{said}");
    let rows: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    let row = |test: &str| {
        rows.as_array()
            .unwrap()
            .iter()
            .find(|row| row["test"] == test)
            .unwrap()
            .clone()
    };
    assert!(row("tcp1")["mbps"].as_f64().unwrap() > 1.0);
    assert!(row("udp64-80k")["pps"].as_f64().unwrap() > 100.0);
    assert!(row("udp64-80k")["daemon_cpu_us_per_packet"].is_null());
    assert!(row("rtt-loaded")["rtt_p50_us"].as_f64().unwrap() > 0.0);
    assert!(std::fs::read_to_string(&svg).unwrap().ends_with("</svg>\n"));
    assert!(String::from_utf8_lossy(&output.stdout).contains("| no-tunnel "));
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn unknown_names_are_told() {
    let output = Command::new(env!("CARGO_BIN_EXE_patronus-bench"))
        .args(["peers", "--tests", "nonesuch"])
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("nonesuch") && said.contains("tcp1") || said.contains("unshare"),
        "{said}"
    );
}
