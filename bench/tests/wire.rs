//! `patronus-bench wire` as people run it, on the subject that needs no engine: the generator's two ends on one veth.

use std::process::Command;

fn wire(arguments: &[&str]) -> (String, String, bool) {
    let output = Command::new(env!("CARGO_BIN_EXE_patronus-bench"))
        .arg("wire")
        .args(arguments)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        text(&output.stdout),
        text(&output.stderr),
        output.status.success(),
    )
}

#[test]
fn a_short_run_writes_rows_and_a_table() {
    let folder = std::env::temp_dir().join(format!("patronus-wire-test-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let json = folder.join("rows.json");
    let (table, said, success) = wire(&[
        "--subjects",
        "direct",
        "--tests",
        "cpu,latency",
        "--sizes",
        "64,1400",
        "--rounds",
        "1",
        "--trial",
        "0.2",
        "--rate",
        "5000",
        "--json",
        json.to_str().unwrap(),
    ]);
    if said.contains("unshare") || said.contains("not permitted") {
        eprintln!("skipped: no rights to make namespaces and AF_XDP ports");
        return;
    }
    assert!(success, "{said}");
    let rows: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), 4, "{rows:?}");
    for row in rows {
        assert_eq!(row["subject"], "direct");
        assert!(row["pps"].as_f64().unwrap() > 100.0, "{row}");
        let latency = row["test"] == "latency";
        assert_eq!(row["lat_p50_us"].is_number(), latency, "{row}");
        assert_eq!(row["machine_cpu_us_per_packet"].is_number(), !latency, "{row}");
        assert!(row["daemons_cpu_us_per_packet"].is_null(), "{row}");
    }
    assert!(
        table.contains("cpu, 64 B") && table.contains("latency, 1400 B"),
        "{table}"
    );
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn what_cannot_be_is_told() {
    for (arguments, expected) in [
        (["--subjects", "nonesuch"], "wireguard-go"),
        (["--tests", "nonesuch"], "latency"),
        (["--sizes", "20"], "from 48 to 1420 bytes"),
    ] {
        let (_, said, success) = wire(&arguments);
        assert!(!success);
        assert!(said.contains(expected) || said.contains("unshare"), "{said}");
    }
}
