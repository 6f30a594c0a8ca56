//! The topologies, with the peers that are installed. Needs `CAP_NET_ADMIN`; without it the tests say so and pass.

use patronus_netns::{Kind, Namespace, NatTimeouts, RUNTIME_DIR, TwoSites, probe};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(10);

fn may_make_namespaces() -> bool {
    let made = Namespace::new("try");
    if let Err(error) = &made {
        eprintln!("skipped: {error}");
    }
    made.is_ok()
}

#[test]
fn namespace_is_private_and_leaves_nothing() {
    if !may_make_namespaces() {
        return;
    }
    let namespace = Namespace::new("one").unwrap();
    namespace
        .ip("link add probe0 type veth peer name probe1")
        .unwrap();
    assert!(namespace.ip("link show probe0").is_ok());
    assert!(!Path::new("/sys/class/net/probe0").exists());
    namespace.sysctl("net.ipv4.ip_forward", "1").unwrap();
    let read = namespace
        .run(|| std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward"))
        .unwrap()
        .unwrap();
    assert_eq!(read.trim(), "1");
    assert!(namespace.path().exists());
    let name = namespace.name().to_owned();
    assert!(threads().iter().any(|thread| name.starts_with(thread)));
    drop(namespace);
    // A thread that was joined leaves the kernel's list a moment later.
    let deadline = Instant::now() + LIMIT;
    while threads().iter().any(|thread| name.starts_with(thread)) {
        assert!(Instant::now() < deadline, "its thread stayed");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The names of this process's threads, as far as the kernel keeps them (15 characters).
fn threads() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    names
        .map(|name| name.trim().to_owned())
        .filter(|name| name.starts_with("pn"))
        .collect()
}

#[test]
fn failing_tools_are_quoted() {
    if !may_make_namespaces() {
        return;
    }
    let error = Namespace::new("bad")
        .unwrap()
        .ip("link set nonesuch up")
        .unwrap_err()
        .to_string();
    assert!(error.contains("nonesuch"), "{error}");
}

#[test]
fn processes_end_with_their_guard() {
    if !may_make_namespaces() {
        return;
    }
    let namespace = Namespace::new("proc").unwrap();
    let mut command = Command::new("sh");
    // Deaf to SIGTERM: SIGKILL must follow.
    command.args(["-c", "trap '' TERM; echo deaf; while :; do sleep 0.1; done"]);
    let process = namespace.spawn(command).unwrap();
    let entry = format!("/proc/{}", process.pid());
    while !process.log().contains("deaf") {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(Path::new(&entry).exists());
    drop(process);
    assert!(!Path::new(&entry).exists());
}

#[test]
fn plain_sites_reach_each_other() {
    if !may_make_namespaces() {
        return;
    }
    let tunnel = TwoSites::new(Kind::Plain, Kind::Plain).up().unwrap();
    for v6 in [false, true] {
        tunnel.probe(v6, LIMIT).unwrap();
    }
}

#[test]
fn every_installed_peer_carries_both_versions() {
    if !may_make_namespaces() {
        return;
    }
    for kind in Kind::ALL {
        if kind == Kind::Engine || kind.find().is_none() {
            eprintln!("skipped: {}", kind.name());
            continue;
        }
        let mut plan = TwoSites::new(kind, kind);
        plan.psk = true;
        plan.v6_outer = true;
        let mut tunnel = plan.up().unwrap();
        for v6 in [false, true] {
            tunnel.probe(v6, LIMIT).unwrap();
            probe(&tunnel.b, &tunnel.a, v6, 1300, LIMIT).unwrap();
        }
        let daemon = tunnel.a.daemon().unwrap();
        assert!(daemon.peers().unwrap()[0].rx_bytes > 0);
        assert!(daemon.cpu_time().unwrap() > Duration::ZERO);
        let (entry, socket) = (format!("/proc/{}", daemon.pid()), daemon.socket());
        assert!(socket.starts_with(RUNTIME_DIR) && socket.exists());
        drop(tunnel);
        assert!(
            !Path::new(&entry).exists() && !socket.exists(),
            "{} left something",
            kind.name()
        );
    }
}

#[test]
fn nat_hides_site_a_and_forgets() {
    if !may_make_namespaces() || Kind::WireguardGo.find().is_none() {
        return;
    }
    let mut plan = TwoSites::new(Kind::WireguardGo, Kind::WireguardGo);
    plan.nat = Some(NatTimeouts::default());
    let tunnel = plan.up().unwrap();
    tunnel.probe(false, LIMIT).unwrap();
    let seen =
        |tunnel: &patronus_netns::Tunnel| tunnel.b.daemon.as_ref().unwrap().peers().unwrap()[0].endpoint;
    let first = seen(&tunnel).expect("learnt");
    assert_ne!(first.ip(), tunnel.a.outer.ip(), "not behind a NAT");
    // Longer than the table's two seconds and shorter than the keepalive that could follow, 10 s: silence, after which
    // the next packet from a leaves by another port.
    std::thread::sleep(Duration::from_secs(5));
    tunnel.probe(false, LIMIT).unwrap();
    assert_ne!(seen(&tunnel), Some(first), "the router remembered");
}
