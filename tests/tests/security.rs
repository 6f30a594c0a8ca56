//! What a running engine has given up, and what its memory holds.

use patronus_netns::{Daemon, Kind, Namespace, Site, preshared_key, unique_name};
use patronus_tests::{
    LIMIT, Memory, Need, divided, engine_options, eventually, may_run, sites, stats, uapi_value,
};
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

fn daemon(site: &Site) -> &Daemon {
    site.daemon
        .as_ref()
        .expect("every site of these tests has a daemon")
}

fn status_of(task: &str) -> impl Fn(&str) -> String {
    let status = fs::read_to_string(format!("{task}/status")).unwrap();
    move |key| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap_or_default().trim_start_matches(':').trim().to_owned()
    }
}

/// CAP_NET_ADMIN and CAP_NET_BIND_SERVICE, capabilities number 12 and 10.
const KEPT: u64 = 1 << 12 | 1 << 10;

#[test]
fn privileges_are_given_up_by_every_thread() {
    if !may_run(&[]) {
        return;
    }
    let namespace = Namespace::new("jail").unwrap();
    let options = engine_options(&["--workers", "2"]);
    let daemon = Daemon::start(&namespace, Kind::Engine, &unique_name("pn"), &options).unwrap();
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    let tasks: Vec<_> = tasks.map(|task| task.unwrap().path()).collect();
    assert!(tasks.len() >= 3, "two workers and the slow path");
    for task in tasks {
        let status = status_of(task.to_str().unwrap());
        let caps = |set: &str| u64::from_str_radix(&status(set), 16).unwrap();
        assert_eq!(caps("CapEff"), KEPT);
        assert_eq!(caps("CapPrm"), KEPT);
        assert_eq!(caps("CapBnd") & !KEPT, 0);
        assert_eq!((caps("CapInh"), caps("CapAmb")), (0, 0));
        assert_eq!(status("NoNewPrivs"), "1");
        assert_eq!(status("Seccomp"), "2", "a filter");
    }
    let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.pid())).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    let words: Vec<_> = core.split_whitespace().collect();
    assert_eq!(words[4..6], ["0", "0"], "{core}");
}

/// The process beside the engine that takes interfaces keeps what that needs, and ends with the engine however that ends.
#[test]
fn the_keeper_has_only_its_rights_and_ends_with_the_engine() {
    if !may_run(&[Need::Root]) {
        return;
    }
    let namespace = Namespace::new("keeper").unwrap();
    let options = engine_options(&["--link", "lo,af_xdp"]);
    let mut daemon = Daemon::start(&namespace, Kind::Engine, &unique_name("pn"), &options).unwrap();
    let pid = daemon.pid();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let keeper: u32 = children.trim().parse().expect("one child");
    let task = format!("/proc/{keeper}");
    let status = status_of(&task);
    let caps = |set: &str| u64::from_str_radix(&status(set), 16).unwrap();
    // CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF.
    let kept = 1 << 12 | 1 << 13 | 1 << 39;
    assert_eq!((caps("CapEff"), caps("CapPrm")), (kept, kept));
    assert_eq!(
        (caps("CapBnd") & !kept, caps("CapInh"), caps("CapAmb")),
        (0, 0, 0)
    );
    assert_eq!(
        (status("NoNewPrivs"), status("Seccomp")),
        ("1".to_owned(), "2".to_owned())
    );
    // A terminal's signals end the engine, not this.
    for signal in [Signal::INT, Signal::HUP] {
        rustix::process::kill_process(rustix::process::Pid::from_raw(keeper as i32).unwrap(), signal)
            .unwrap();
    }
    std::thread::sleep(Duration::from_millis(200));
    let is_there =
        || fs::read_to_string(format!("/proc/{keeper}/cmdline")).is_ok_and(|line| !line.is_empty());
    assert!(is_there());
    daemon.process().signal(Signal::KILL);
    assert!(eventually(|| !is_there()));
}

/// As another user with just the one capability: a process that may be dumped would belong to that user in /proc.
#[test]
fn c75_not_dumpable() {
    if !may_run(&[Need::Root]) {
        return;
    }
    use std::os::unix::fs::MetadataExt;
    const NOBODY: u32 = 65534;
    let namespace = Namespace::new("dump").unwrap();
    let name = unique_name("pn");
    let dir = std::env::temp_dir().join(format!("patronus-{name}"));
    fs::create_dir(&dir).unwrap();
    std::os::unix::fs::chown(&dir, Some(NOBODY), None).unwrap();
    // Where anybody may run it.
    let program = dir.join("patronus-engine");
    fs::copy(patronus_tests::engine_program(), &program).unwrap();
    let sockets = dir.join("sockets");
    // With a device that anybody may open, as most systems have it, whatever this one has.
    let script = r#"mknod -m 666 "$1/tun" c 10 200 && mount --bind "$1/tun" /dev/net/tun && shift && exec setpriv \
        --reuid 65534 --clear-groups --inh-caps -all,+net_admin --ambient-caps -all,+net_admin "$@""#;
    let mut command = std::process::Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(&dir)
        .arg(&program);
    command.args(["--foreground", "--uapi-dir", sockets.to_str().unwrap(), &name]);
    let process = namespace.spawn(command).unwrap();
    let ready = eventually(|| sockets.join(format!("{name}.sock")).exists());
    assert!(ready, "{}", process.log());
    let proc = format!("/proc/{}", process.pid());
    assert_eq!(status_of(&proc)("Uid").split_whitespace().next(), Some("65534"));
    assert_eq!(fs::metadata(format!("{proc}/mem")).unwrap().uid(), 0);
    assert_eq!(fs::metadata(format!("{proc}/environ")).unwrap().uid(), 0);
    drop(process);
    fs::remove_dir_all(&dir).unwrap();
}

/// A key as it may stand in memory: its bytes, its hex digits, its base64.
fn forms(hex: &str, base64: &str) -> Vec<Vec<u8>> {
    let digit = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    vec![
        (0..64).step_by(2).map(digit).collect(),
        hex.as_bytes().to_vec(),
        base64.trim_end_matches('=').as_bytes().to_vec(),
    ]
}

fn found(memory: &Memory, forms: &[Vec<u8>]) -> Vec<usize> {
    forms.iter().map(|form| memory.count(form)).collect()
}

/// The private key and the pre-shared key are in memory once each, as bytes, while they are in use, and nowhere afterwards.
#[test]
fn c75_configured_keys_are_gone_when_taken_away() {
    if !may_run(&[]) {
        return;
    }
    let mut plan = sites(Kind::Engine, Kind::Engine);
    plan.psk = true;
    let tunnel = plan.up().unwrap();
    tunnel.probe(false, LIMIT).unwrap();
    let (site, name) = (&tunnel.a, tunnel.a.interface.as_str());
    let pid = daemon(site).pid();
    let keys = site.keys.as_ref().unwrap();
    let private = forms(&uapi_value(name, "private_key").unwrap(), &keys.private);
    let shown = site
        .namespace
        .exec("wg", &["show", name, "preshared-keys"])
        .unwrap();
    let psk = forms(
        &uapi_value(name, "preshared_key").unwrap(),
        shown.split_whitespace().nth(1).unwrap(),
    );
    let memory = Memory::of(pid).unwrap();
    assert_eq!(found(&memory, &private), [1, 0, 0], "the private key in use");
    assert_eq!(found(&memory, &psk), [1, 0, 0], "the pre-shared key in use");

    let peer = &tunnel.b.keys.as_ref().unwrap().public;
    daemon(site).set(&format!("peer {peer} remove")).unwrap();
    let gone = |key: &[Vec<u8>]| eventually(|| found(&Memory::of(pid).unwrap(), key) == [0, 0, 0]);
    assert!(gone(&psk), "the pre-shared key stays after its peer");
    site.namespace
        .exec("wg", &["set", name, "private-key", "/dev/null"])
        .unwrap();
    assert!(gone(&private), "the private key stays after it was taken away");
}

/// Replaced keys go too: another pre-shared key, another private key.
#[test]
fn c75_replaced_keys_are_gone() {
    if !may_run(&[]) {
        return;
    }
    let mut plan = sites(Kind::Engine, Kind::Engine);
    plan.psk = true;
    let tunnel = plan.up().unwrap();
    tunnel.probe(false, LIMIT).unwrap();
    let (site, name) = (&tunnel.a, tunnel.a.interface.as_str());
    let old = [("private_key", ""), ("preshared_key", "")]
        .map(|(key, _)| forms(&uapi_value(name, key).unwrap(), &"-".repeat(44)));
    let peer = &tunnel.b.keys.as_ref().unwrap().public;
    let with_stdin = |words: &[&str], key: &str| {
        site.namespace
            .exec_with_input("wg", words, key.as_bytes())
            .unwrap();
    };
    with_stdin(
        &["set", name, "peer", peer, "preshared-key", "/dev/stdin"],
        &preshared_key().unwrap(),
    );
    let new = patronus_netns::Keys::generate().unwrap().private;
    with_stdin(&["set", name, "private-key", "/dev/stdin"], &new);
    let pid = daemon(site).pid();
    for key in old {
        assert!(eventually(|| found(&Memory::of(pid).unwrap(), &key) == [0, 0, 0]));
    }
}

/// The session keys, recognised as what key memory holds during a session and not before it, are nowhere in memory once 540 s
/// (divided) have passed without a new one.
fn session_keys_are_erased(aead: &str) {
    if !may_run(&[]) {
        return;
    }
    let mut plan = divided(100);
    for options in [&mut plan.options_a, &mut plan.options_b] {
        options.args.extend(["--aead".to_owned(), aead.to_owned()]);
    }
    let tunnel = plan.up().unwrap();
    let pid = daemon(&tunnel.a).pid();
    let before = Memory::of(pid).unwrap().secrets();
    assert!(!before.is_empty(), "no key memory found");
    tunnel.probe(false, LIMIT).unwrap();
    let during: BTreeSet<_> = Memory::of(pid)
        .unwrap()
        .secrets()
        .difference(&before)
        .copied()
        .collect();
    assert!(during.len() >= 2, "two session keys at least: {}", during.len());
    // Nothing more is said; 5.4 s.
    std::thread::sleep(Duration::from_millis(5600));
    let left = || {
        let memory = Memory::of(pid).unwrap();
        during.iter().map(|key| memory.count(key)).sum::<usize>()
    };
    assert!(
        eventually(|| left() == 0),
        "{} of {} keys are left",
        left(),
        during.len()
    );
    // Nothing was in the way of the tunnel.
    tunnel.probe(false, LIMIT).unwrap();
    assert_eq!(stats(daemon(&tunnel.a)).unwrap().sum(".drop.decap-bad-tag"), 0);
}

#[test]
fn c54_c75_session_keys_are_erased_aws_lc() {
    session_keys_are_erased("aws-lc");
}

#[test]
fn c54_c75_session_keys_are_erased_rustcrypto() {
    session_keys_are_erased("rustcrypto");
}

/// An interface that goes down forgets its sessions.
#[test]
fn c75_session_keys_go_when_the_interface_goes_down() {
    if !may_run(&[]) {
        return;
    }
    let tunnel = sites(Kind::Engine, Kind::Engine).up().unwrap();
    let pid = daemon(&tunnel.a).pid();
    let before = Memory::of(pid).unwrap().secrets();
    tunnel.probe(false, LIMIT).unwrap();
    let during = Memory::of(pid).unwrap().secrets();
    let keys: Vec<_> = during.difference(&before).collect();
    assert!(keys.len() >= 2);
    tunnel
        .a
        .namespace
        .ip(&format!("link set {} down", tunnel.a.interface))
        .unwrap();
    let left = || {
        let memory = Memory::of(pid).unwrap();
        keys.iter().map(|key| memory.count(*key)).sum::<usize>()
    };
    assert!(eventually(|| left() == 0), "{} keys are left", left());
}
