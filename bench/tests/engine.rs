//! The program as people run it: a short run of the stages alone.

use std::process::Command;

const KEYS: [&str; 18] = [
    "pipeline",
    "size",
    "port",
    "reference_mpps",
    "flows",
    "peers",
    "workers",
    "handoff",
    "mpps",
    "gbps",
    "ns_per_packet",
    "aead",
    "aead_ns_per_packet",
    "stages",
    "load",
    "lat_p50_us",
    "lat_p99_us",
    "lat_p999_us",
];

#[test]
fn a_short_run_writes_every_pipeline_and_key() {
    let json = std::env::temp_dir().join(format!("patronus-bench-engine-{}.json", std::process::id()));
    let output = Command::new(env!("CARGO_BIN_EXE_patronus-bench"))
        .args([
            "engine", "--sizes", "64,imix", "--flows", "100", "--peers", "1", "--rounds", "1", "--json",
        ])
        .arg(&json)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("unshare") {
        eprintln!("skipped: no rights to make namespaces");
        return;
    }
    assert!(output.status.success(), "{said}");
    let rows: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    std::fs::remove_file(&json).unwrap();
    let rows = rows.as_array().unwrap();
    for row in rows {
        for key in KEYS {
            assert!(row.get(key).is_some(), "{key} is missing in {row}");
        }
    }
    let is = |name: &'static str| move |row: &&serde_json::Value| row["pipeline"] == name;
    for pipeline in ["forward", "route", "encrypt", "decrypt", "both"] {
        assert!(rows.iter().any(|row| is(pipeline)(&row)), "no {pipeline}");
    }
    let counts = std::thread::available_parallelism().map_or(1, |cores| cores.get().min(2));
    for workers in 1..=counts {
        let of_workers = |row: &&serde_json::Value| row["workers"] == workers;
        for pipeline in ["route", "encrypt", "decrypt", "both"] {
            let of = rows.iter().filter(is(pipeline)).filter(of_workers);
            let of: Vec<_> = of.filter(|row| row["handoff"] == 0.0).collect();
            let loads: Vec<f64> = of.iter().filter_map(|row| row["load"].as_f64()).collect();
            assert_eq!(loads, [0.5, 0.8, 0.95].repeat(2), "{pipeline}, {workers}");
            // At a load there are latencies, in order; otherwise there are stages.
            for row in of {
                let latencies = ["lat_p50_us", "lat_p99_us", "lat_p999_us"].map(|key| row[key].as_f64());
                assert_eq!(row["load"].is_null(), latencies[0].is_none(), "{row}");
                assert!(latencies.is_sorted(), "{row}");
                let stages = row["stages"].as_object().unwrap();
                assert_eq!(row["load"].is_null(), !stages.is_empty(), "{row}");
            }
        }
        let forward = rows.iter().filter(is("forward")).filter(of_workers);
        assert_eq!(forward.count(), 2, "a row for each size");
    }
    let handed = rows.iter().filter(|row| row["handoff"] == 0.5);
    assert_eq!(
        handed.count(),
        if counts == 2 { 8 } else { 0 },
        "rates and loads of two sizes"
    );
    assert!(rows.iter().any(|row| row["size"] == "imix"), "no mix");
    assert!(
        rows.iter()
            .filter(is("encrypt"))
            .all(|row| row["aead_ns_per_packet"].is_number() == row["load"].is_null())
    );
}

fn free_huge_pages() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("HugePages_Free:"));
    line.map_or(0, |count| count.trim().parse().unwrap())
}

#[test]
fn a_port_of_dpdks_stands_beside_its_own_programs() {
    let json = std::env::temp_dir().join(format!("patronus-bench-port-{}.json", std::process::id()));
    if cfg!(feature = "dpdk") && free_huge_pages() < 384 {
        eprintln!("skipped: fewer than 384 free huge pages");
        return;
    }
    let output = Command::new(env!("CARGO_BIN_EXE_patronus-bench"))
        .args([
            "engine", "--port", "net_null", "--sizes", "64", "--rounds", "1", "--json",
        ])
        .arg(&json)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("unshare") {
        eprintln!("skipped: no rights to make namespaces");
        return;
    }
    if !cfg!(feature = "dpdk") {
        assert!(
            !output.status.success() && said.contains("--features dpdk"),
            "{said}"
        );
        return;
    }
    assert!(output.status.success(), "{said}");
    let rows: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    std::fs::remove_file(&json).unwrap();
    for pipeline in ["macswap", "tunnel"] {
        let of = |port: &str| {
            let rows = rows.as_array().unwrap().iter();
            let mut rows = rows.filter(|row| row["pipeline"] == pipeline && row["port"] == port);
            rows.next()
                .cloned()
                .unwrap_or_else(|| panic!("no {pipeline} over {port}"))
        };
        assert!(of("memory")["mpps"].is_number() && of("net_null")["mpps"].is_number());
        assert!(of("net_null")["reference_mpps"].is_number());
        assert!(of("memory")["reference_mpps"].is_null());
    }
}
