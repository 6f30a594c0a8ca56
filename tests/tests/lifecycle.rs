//! The engine as a process: how it starts, goes to the background, says why it cannot, and ends.

use patronus_netns::{
    Config, Daemon, Kind, Namespace, Peer, RUNTIME_DIR, prepare_runtime_dir, probe, unique_name,
};
use patronus_tests::{
    Flow, LIMIT, Need, background_pid, engine_options, engine_program, eventually, may_run, sites, uapi,
};
use rustix::process::Signal;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

fn socket_of(interface: &str) -> PathBuf {
    Path::new(RUNTIME_DIR).join(format!("{interface}.sock"))
}

fn start(namespace: &Namespace, interface: &str) -> Daemon {
    Daemon::start(namespace, Kind::Engine, interface, &engine_options(&[])).unwrap()
}

fn has_interface(namespace: &Namespace, interface: &str) -> bool {
    namespace.ip(&format!("link show {interface}")).is_ok()
}

/// Runs the engine to its end with these arguments.
fn run(namespace: &Namespace, arguments: &[&str]) -> Output {
    let mut command = Command::new(engine_program());
    command.args(arguments);
    namespace.run(|| command.output()).unwrap().unwrap()
}

/// Removes the socket of an engine in the background, which ends it.
struct Leftover(String);

impl Drop for Leftover {
    fn drop(&mut self) {
        let _ = fs::remove_file(socket_of(&self.0));
    }
}

#[test]
fn c71_ends_when_the_interface_is_deleted() {
    if !may_run(&[]) {
        return;
    }
    let namespace = Namespace::new("gone").unwrap();
    for up in [false, true] {
        let name = unique_name("pn");
        let mut daemon = start(&namespace, &name);
        if up {
            namespace.ip(&format!("link set {name} up")).unwrap();
        }
        namespace.ip(&format!("link delete {name}")).unwrap();
        let status = daemon.process().wait(LIMIT).expect("it ends");
        assert!(status.success(), "{status}: {}", daemon.process().log());
        assert!(!socket_of(&name).exists());
    }
}

#[test]
fn c71_ends_under_traffic_when_the_interface_is_deleted() {
    if !may_run(&[]) {
        return;
    }
    let mut tunnel = sites(Kind::Engine, Kind::Engine).up().unwrap();
    tunnel.probe(false, LIMIT).unwrap();
    let flow = Flow::start(&tunnel.b, &tunnel.a, false, Duration::from_millis(1)).unwrap();
    let name = tunnel.a.interface.clone();
    tunnel.a.namespace.ip(&format!("link delete {name}")).unwrap();
    let daemon = tunnel.a.daemon().unwrap();
    let status = daemon.process().wait(LIMIT).expect("it ends");
    assert!(status.success(), "{status}");
    drop(flow.finish());
}

#[test]
fn c82_ends_when_the_socket_is_removed() {
    if !may_run(&[]) {
        return;
    }
    let namespace = Namespace::new("gone").unwrap();
    let name = unique_name("pn");
    let mut daemon = start(&namespace, &name);
    fs::remove_file(socket_of(&name)).unwrap();
    let status = daemon.process().wait(LIMIT).expect("it ends");
    assert!(status.success(), "{status}");
    assert!(!has_interface(&namespace, &name));
}

#[test]
fn c82_signals_clean_up() {
    if !may_run(&[]) {
        return;
    }
    let namespace = Namespace::new("signal").unwrap();
    for signal in [Signal::TERM, Signal::INT] {
        let name = unique_name("pn");
        let mut daemon = start(&namespace, &name);
        namespace.ip(&format!("link set {name} up")).unwrap();
        daemon.process().signal(signal);
        let status = daemon.process().wait(LIMIT).expect("it ends");
        assert!(status.success(), "{signal:?}: {status}");
        assert!(!socket_of(&name).exists() && !has_interface(&namespace, &name));
    }
}

/// A socket that a killed engine left is replaced; one that somebody listens on is not.
#[test]
fn c82_stale_socket_is_replaced_and_a_live_one_refused() {
    if !may_run(&[]) {
        return;
    }
    let namespace = Namespace::new("stale").unwrap();
    let name = unique_name("pn");
    let mut daemon = start(&namespace, &name);
    // Another namespace has room for an interface of that name; the socket is one for all.
    let elsewhere = Namespace::new("live").unwrap();
    let refused = run(&elsewhere, &["--foreground", &name]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1));
    assert!(said.contains("in use"), "{said}");
    assert!(!has_interface(&elsewhere, &name), "it left an interface");
    assert!(uapi(&name, "get=1\n\n").is_ok(), "the first one is still served");

    daemon.process().signal(Signal::KILL);
    daemon.process().wait(LIMIT).expect("it was killed");
    assert!(socket_of(&name).exists(), "nobody cleaned up");
    let again = start(&elsewhere, &name);
    assert!(uapi(&name, "get=1\n\n").is_ok());
    drop(again);
    assert!(!socket_of(&name).exists());
}

/// Nothing is followed and nothing replaced but a socket.
#[test]
fn c76_c82_sockets_place_is_looked_at() {
    if !may_run(&[]) {
        return;
    }
    let namespace = Namespace::new("place").unwrap();
    let name = unique_name("pn");
    let dir = std::env::temp_dir().join(format!("patronus-{name}"));
    let (real, link) = (dir.join("real"), dir.join("link"));
    fs::create_dir_all(&real).unwrap();
    fs::set_permissions(&real, PermissionsExt::from_mode(0o700)).unwrap();
    symlink(&real, &link).unwrap();
    let with_dir = |place: &Path| {
        run(
            &namespace,
            &["--foreground", "--uapi-dir", place.to_str().unwrap(), &name],
        )
    };
    let refused = |place: &Path| {
        let output = with_dir(place);
        assert_eq!(output.status.code(), Some(1), "{}", place.display());
        assert!(!has_interface(&namespace, &name));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(said.lines().count(), 1, "one sentence: {said}");
        said
    };
    refused(&link);
    fs::write(real.join(format!("{name}.sock")), "a file").unwrap();
    refused(&real);
    assert_eq!(
        fs::read_to_string(real.join(format!("{name}.sock"))).unwrap(),
        "a file"
    );
    let open = dir.join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, PermissionsExt::from_mode(0o777)).unwrap();
    let said = refused(&open);
    assert!(said.contains("others may write"), "{said}");
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn c76_socket_and_directory_are_the_owners() {
    if !may_run(&[]) {
        return;
    }
    prepare_runtime_dir().unwrap();
    let namespace = Namespace::new("mode").unwrap();
    let daemon = start(&namespace, &unique_name("pn"));
    let meta = fs::symlink_metadata(daemon.socket()).unwrap();
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    // A directory that it makes itself.
    let name = unique_name("pn");
    let dir = std::env::temp_dir().join(format!("patronus-{name}"));
    let place = dir.to_str().unwrap();
    let mut command = Command::new(engine_program());
    command.args(["--foreground", "--uapi-dir", place, &name]);
    let process = namespace.spawn(command).unwrap();
    assert!(eventually(|| dir.join(format!("{name}.sock")).exists()));
    assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
    drop(process);
    fs::remove_dir(&dir).unwrap();
}

/// The command returns when the interface can be used, and not before; its descriptors are not held by what stays.
#[test]
fn background_start_returns_when_ready() {
    if !may_run(&[]) {
        return;
    }
    prepare_runtime_dir().unwrap();
    let namespace = Namespace::new("back").unwrap();
    for _ in 0..5 {
        let name = unique_name("pn");
        let _leftover = Leftover(name.clone());
        let begun = Instant::now();
        // Output is read to its end: it would hang if the process in the background kept the pipes.
        let output = run(&namespace, &[&name]);
        assert!(output.status.success(), "{output:?}");
        assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
        assert!(uapi(&name, "get=1\n\n").unwrap().contains("errno=0"));
        assert!(has_interface(&namespace, &name));
        assert!(begun.elapsed() < LIMIT);
        let pid = background_pid(&name).expect("it runs");
        let proc = PathBuf::from(format!("/proc/{pid}"));
        assert_eq!(fs::read_link(proc.join("cwd")).unwrap(), Path::new("/"));
        for fd in ["0", "1", "2"] {
            assert_eq!(
                fs::read_link(proc.join("fd").join(fd)).unwrap(),
                Path::new("/dev/null")
            );
        }
        let stat = fs::read_to_string(proc.join("stat")).unwrap();
        let session = stat.rsplit(") ").next().unwrap().split(' ').nth(3).unwrap();
        assert_eq!(session, pid.to_string(), "a session of its own");
        namespace.ip(&format!("link delete {name}")).unwrap();
        assert!(eventually(|| !proc.exists()));
    }
}

/// What cannot work is said in one sentence, by the command itself, with a status that scripts see.
#[test]
fn background_failure_says_why() {
    if !may_run(&[]) {
        return;
    }
    prepare_runtime_dir().unwrap();
    let namespace = Namespace::new("fail").unwrap();
    namespace.ip("link add taken type veth peer name other").unwrap();
    let busy = unique_name("pn");
    let _daemon = start(&namespace, &busy);
    let cases: [(&[&str], &str, i32); 7] = [
        (&["taken"], "taken", 1),
        (&[&busy], "exists already", 1),
        (&["a-name-much-too-long"], "interface name", 1),
        (&["a/b"], "interface name", 1),
        (&["--workers", "0", "pnx"], "--workers", 2),
        (&["--aead", "rot13", "pnx"], "rot13", 1),
        (&[], "which interface", 2),
    ];
    for (arguments, expected, code) in cases {
        let output = run(&namespace, arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(expected), "{arguments:?}: {said}");
        assert_eq!(said.trim().lines().count(), 1, "one sentence: {said}");
    }
}

/// Without the rights or the device: one sentence that says what to do.
#[test]
fn missing_rights_are_named() {
    if !may_run(&[Need::Root]) {
        return;
    }
    let namespace = Namespace::new("rights").unwrap();
    let mut command = Command::new("setpriv");
    let program = engine_program().to_str().unwrap();
    // As root without the right: whether other users may run the program is not the question.
    command.args(["--bounding-set", "-net_admin", "--inh-caps", "-all"]);
    command.args([program, "--foreground", "pnx"]);
    let output = namespace.run(|| command.output()).unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("CAP_NET_ADMIN"), "{said}");

    let hidden = format!("mount --bind /dev/null /dev/net && exec {program} --foreground pnx");
    let hidden = hidden.replace("--bind /dev/null", "-t tmpfs none");
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &hidden]);
    let output = namespace.run(|| command.output()).unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("/dev/net/tun") && said.contains("modprobe"),
        "{said}"
    );
}

#[test]
fn a_strict_reverse_path_filter_on_a_link_is_named() {
    if !may_run(&[Need::Root]) {
        return;
    }
    let namespace = Namespace::new("filter").unwrap();
    namespace.ip("link add wan0 type veth peer name wan1").unwrap();
    for (name, filter) in [("all", 0), ("wan0", 1), ("wan1", 2)] {
        let setting = format!("echo {filter} > /proc/sys/net/ipv4/conf/{name}/rp_filter");
        namespace.exec("sh", &["-c", &setting]).unwrap();
    }
    let name = unique_name("pn");
    let mut command = Command::new(engine_program());
    command.args(["--foreground", "--link", "wan0", "--link", "wan1", &name]);
    let mut process = namespace.spawn(command).unwrap();
    assert!(eventually(|| socket_of(&name).exists()), "{}", process.log());
    let log = process.log();
    assert!(
        log.contains("conf.wan0.rp_filter=2") && !log.contains("conf.wan1"),
        "{log}"
    );
    process.stop().unwrap();
}

/// What memory packets are in is said once at the start, and keys that come later are locked whatever packets have taken of the limit.
#[test]
fn the_memory_of_packets_is_named() {
    if !may_run(&[Need::Root]) {
        return;
    }
    let namespace = Namespace::new("memory").unwrap();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap();
    let free = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("HugePages_Free:"));
    let huge = free.is_some_and(|pages| pages.trim() != "0");
    let program = engine_program().to_str().unwrap();
    let without = "exec setpriv --bounding-set -ipc_lock,-sys_resource --inh-caps -all";
    // With the right to lock memory, whatever the limit is; without it and within a limit; with a limit that the process may raise itself.
    let cases = [
        (format!("exec {program}"), "in locked memory"),
        (format!("ulimit -l 64; exec {program}"), "in locked memory"),
        (
            format!("ulimit -l 1024; {without} {program}"),
            "the limit is 1 MiB",
        ),
        (
            format!("ulimit -S -l 64; ulimit -H -l 4096; {without} {program}"),
            "the limit is 4 MiB",
        ),
    ];
    for (script, expected) in cases {
        let name = unique_name("pn");
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{script} --foreground {name}")]);
        command.env("LOG_LEVEL", "verbose");
        let mut process = namespace.spawn(command).unwrap();
        assert!(eventually(|| socket_of(&name).exists()), "{}", process.log());
        let keys = |n: u32| format!("public_key={n:064x}\n");
        let peers: String = (2..1002).map(keys).collect();
        let request = format!("set=1\nprivate_key={:064x}\n{peers}\n", 0x5a5a5a5a_u32);
        let answer = uapi(&name, &request).unwrap();
        assert!(answer.contains("errno=0"), "{answer}");

        let log = process.log();
        assert_eq!(log.matches("packets are in").count(), 1, "{log}");
        assert!(huge || log.contains(expected), "{script}: {log}");
        assert!(!log.contains("key memory"), "{script}: {log}");
        process.stop().unwrap();
    }
}

#[test]
fn counters_of_no_engine() {
    if !may_run(&[]) {
        return;
    }
    let output = Command::new(engine_program())
        .args(["--stats", "pn-nobody"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("pn-nobody.sock"), "{said}");
    // Somebody who is no engine.
    prepare_runtime_dir().unwrap();
    let name = unique_name("pn");
    let listener = UnixListener::bind(socket_of(&name)).unwrap();
    let _leftover = Leftover(name.clone());
    for answer in ["", "errno=-71\n\n", "errno=0\n\n"] {
        let listener = listener.try_clone().unwrap();
        std::thread::spawn(move || listener.accept().unwrap().0.write_all(answer.as_bytes()));
        let output = Command::new(engine_program())
            .args(["--stats", &name])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{answer:?}");
        assert!(output.stdout.is_empty(), "{answer:?}");
    }
}

#[test]
fn a_core_that_is_not_there_is_named() {
    if !may_run(&[]) {
        return;
    }
    let namespace = Namespace::new("cores").unwrap();
    let program = engine_program().to_str().unwrap();
    let mut command = Command::new(program);
    command.args(["--foreground", "--cores", "0,1023", "pnx"]);
    let output = namespace.run(|| command.output()).unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("core 1023") && said.contains("[0"), "{said}");
}

/// Made in one network namespace and moved to another, as containers do: the sockets stay where the engine was started.
#[test]
fn interface_works_in_another_namespace() {
    if !may_run(&[]) {
        return;
    }
    let tunnel = sites(Kind::Engine, Kind::Engine).up().unwrap();
    tunnel.probe(false, LIMIT).unwrap();
    let inside = Namespace::new("inside").unwrap();
    let name = &tunnel.a.interface;
    let path = inside.path();
    let (outside, address) = (&tunnel.a.namespace, format!("{}/24", tunnel.a.inner_v4));
    outside
        .ip(&format!("link set {name} netns {}", path.display()))
        .unwrap();
    inside.address(name, &address).unwrap();
    inside.ip(&format!("link set {name} up")).unwrap();
    let mut moved = tunnel;
    moved.a.namespace = inside;
    moved.probe(false, LIMIT).unwrap();
    probe(&moved.b, &moved.a, false, 1000, LIMIT).unwrap();
    // Down and up again over there.
    let inside = &moved.a.namespace;
    inside
        .ip(&format!("link set {name} down", name = moved.a.interface))
        .unwrap();
    inside
        .ip(&format!("link set {name} up", name = moved.a.interface))
        .unwrap();
    moved.probe(false, LIMIT).unwrap();
    // And deleted over there.
    inside.ip(&format!("link delete {}", moved.a.interface)).unwrap();
    let daemon = moved.a.daemon.as_mut().unwrap();
    let status = daemon.process().wait(LIMIT).expect("it ends");
    assert!(status.success(), "{status}");
}

/// The same before it was ever up.
#[test]
fn interface_moved_before_it_is_up() {
    if !may_run(&[]) {
        return;
    }
    let tunnel = sites(Kind::Engine, Kind::Engine).up().unwrap();
    let (outside, inside) = (&tunnel.a.namespace, Namespace::new("inside").unwrap());
    let name = unique_name("pn");
    let daemon = start(outside, &name);
    let peer = &tunnel.b.keys.as_ref().unwrap().public;
    let key = &tunnel.a.keys.as_ref().unwrap().private;
    outside
        .ip(&format!("link set {name} netns {}", inside.path().display()))
        .unwrap();
    outside
        .ip(&format!("link set {} down", tunnel.a.interface))
        .unwrap();
    daemon
        .setconf(&Config {
            private: key.clone(),
            listen_port: Some(51820),
            fwmark: None,
            peers: vec![Peer {
                public: peer.clone(),
                endpoint: Some(tunnel.b.outer),
                allowed_ips: vec!["10.77.0.2/32".to_owned()],
                ..Peer::default()
            }],
        })
        .unwrap();
    inside.address(&name, "10.77.0.1/24").unwrap();
    inside.ip(&format!("link set {name} up")).unwrap();
    let mut moved = tunnel;
    moved.a.namespace = inside;
    moved.probe(false, LIMIT).unwrap();
}
