//! The real `wg` (package wireguard-tools) against the server, over a socket where it looks for one.
//!
//! Needs root, since that place is /var/run/wireguard; skipped with a message elsewhere.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Instant;

use patronus_crypto::{PublicKey, Time, WallClock};
use patronus_engine::uapi::{Errno, UapiServer};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::device::MemoryDevice;
use crate::server::Directory;

const DIRECTORY: &str = "/var/run/wireguard";

/// An interface that only `wg` sees, served by a thread of its own.
struct Interface {
    name: String,
    device: Arc<Mutex<MemoryDevice>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    files: Directory,
}

impl Interface {
    /// `None`, with a message, where the tests cannot run.
    fn new() -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root may make a socket in {DIRECTORY}");
            return None;
        }
        if Command::new("wg")
            .arg("--version")
            .stdout(Stdio::null())
            .status()
            .is_err()
        {
            eprintln!("skipped: no `wg` (package wireguard-tools)");
            return None;
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ptu{:x}-{number}", std::process::id());
        let mut server = UapiServer::bind(Path::new(DIRECTORY), &name).expect("a server");
        let device = Arc::new(Mutex::new(MemoryDevice::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, stopped) = (Arc::clone(&device), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let start = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                let timeout = Timespec {
                    tv_sec: 0,
                    tv_nsec: 20_000_000,
                };
                let _ = poll(&mut [PollFd::new(&server.fd(), PollFlags::IN)], Some(&timeout));
                let now = Time::default().after(start.elapsed());
                server.service(&mut *shared.lock().expect("the device"), now);
            }
        });
        Some(Interface {
            name,
            device,
            stop,
            thread: Some(thread),
            files: Directory::new(),
        })
    }

    fn device(&self) -> MutexGuard<'_, MemoryDevice> {
        self.device.lock().expect("the device")
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.files.path().join(name);
        fs::write(&path, text).expect("a file");
        path
    }

    /// `wg COMMAND INTERFACE ARGUMENTS`: what it printed, or what it complained about.
    fn try_wg(&self, command: &str, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new("wg")
            .arg(command)
            .arg(&self.name)
            .args(arguments)
            .env("WG_HIDE_KEYS", "never")
            .env("WG_COLOR_MODE", "never")
            .output()
            .expect("wg runs");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        if output.status.success() {
            Ok(text(output.stdout))
        } else {
            Err(text(output.stderr))
        }
    }

    fn wg(&self, command: &str, arguments: &[&str]) -> String {
        self.try_wg(command, arguments)
            .unwrap_or_else(|e| panic!("wg {command} {arguments:?}: {e}"))
    }

    /// `wg COMMAND INTERFACE FILE` with a file of this text.
    fn wg_file(&self, command: &str, text: &str) {
        let path = self.file("config", text);
        self.wg(command, &[path.to_str().expect("a path")]);
    }
}

impl Drop for Interface {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn base64(bytes: &[u8; 32]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let mut bits = [0; 4];
        bits[1..=three.len()].copy_from_slice(three);
        let bits = u32::from_be_bytes(bits);
        for digit in 0..4 {
            let used = digit <= three.len();
            text.push(if used {
                char::from(DIGITS[(bits >> (18 - 6 * digit) & 63) as usize])
            } else {
                '='
            });
        }
    }
    text
}

/// A peer's public key: `n` and zeros.
fn key(n: u32) -> [u8; 32] {
    let mut key = [0; 32];
    key[..4].copy_from_slice(&n.to_be_bytes());
    key[31] = 1;
    key
}

fn name(n: u32) -> String {
    base64(&key(n))
}

const PRIVATE: &str = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";
const PRESHARED: &str = "FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE=";

#[test]
fn c78_show_every_field() {
    let Some(interface) = Interface::new() else { return };
    assert!(
        interface
            .wg("show", &[])
            .starts_with(&format!("interface: {}\n", interface.name))
    );

    let private = interface.file("private", PRIVATE);
    let preshared = interface.file("preshared", PRESHARED);
    let (private, preshared) = (
        private.to_str().expect("a path"),
        preshared.to_str().expect("a path"),
    );
    interface.wg(
        "set",
        &["listen-port", "51820", "fwmark", "0xca6c", "private-key", private],
    );
    let peer = name(1);
    let allowed = "10.0.0.0/8,192.0.2.1/32,2001:db8::/32,::/0";
    interface.wg(
        "set",
        &[
            "peer",
            &peer,
            "preshared-key",
            preshared,
            "endpoint",
            "[2001:db8::1]:9",
            "persistent-keepalive",
            "25",
            "allowed-ips",
            allowed,
        ],
    );
    interface.wg("set", &["peer", &name(2), "endpoint", "192.0.2.7:51820"]);
    if let Some(peer) = interface.device().peers.get_mut(&PublicKey(key(1))) {
        peer.last_handshake = Some(WallClock {
            secs: 1_700_000_000,
            nanos: 999_999_999,
        });
        (peer.tx_bytes, peer.rx_bytes) = (1428, 1460);
    }
    // C81, R39: received comes before sent in `wg`'s table.
    let expected = format!(
        "{PRIVATE}\tHIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=\t51820\t0xca6c\n\
         {peer}\t{PRESHARED}\t[2001:db8::1]:9\t10.0.0.0/8,192.0.2.1/32,::/0,2001:db8::/32\t1700000000\t1460\t1428\t25\n\
         {}\t(none)\t192.0.2.7:51820\t(none)\t0\t0\t0\toff\n",
        name(2)
    );
    let mut dump = interface.wg("show", &["dump"]);
    // `wg` computes the public key; only its place is checked here.
    if let Some(line) = dump.find('\t').zip(dump.find("\t51820")) {
        dump.replace_range(line.0 + 1..line.1, "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=");
    }
    assert_eq!(dump, expected);
    let shown = interface.wg("show", &[]);
    for part in [
        "fwmark: 0xca6c",
        "latest handshake:",
        "transfer: 1.43 KiB received, 1.39 KiB sent",
        "persistent keepalive: every 25 seconds",
    ] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
}

#[test]
fn c79_wg_reads_the_zone_of_an_endpoint() {
    let Some(interface) = Interface::new() else { return };
    interface.wg("set", &["peer", &name(1), "endpoint", "[fe80::1%lo]:9"]);
    assert_eq!(
        interface.wg("show", &["endpoints"]),
        format!("{}\t[fe80::1%lo]:9\n", name(1))
    );
}

#[test]
fn c78_set_clears_and_removes() {
    let Some(interface) = Interface::new() else { return };
    let preshared = interface.file("preshared", PRESHARED);
    let preshared = preshared.to_str().expect("a path");
    let peer = name(1);
    interface.wg(
        "set",
        &[
            "fwmark",
            "5",
            "private-key",
            interface.file("p", PRIVATE).to_str().expect("a path"),
        ],
    );
    interface.wg(
        "set",
        &[
            "peer",
            &peer,
            "preshared-key",
            preshared,
            "allowed-ips",
            "10.0.0.0/8",
            "persistent-keepalive",
            "1",
        ],
    );
    interface.wg("set", &["peer", &name(2), "allowed-ips", "11.0.0.0/8"]);
    assert!(interface.device().private_key.is_some());

    interface.wg(
        "set",
        &[
            "fwmark",
            "off",
            "private-key",
            "/dev/null",
            "peer",
            &peer,
            "preshared-key",
            "/dev/null",
        ],
    );
    interface.wg(
        "set",
        &["peer", &peer, "persistent-keepalive", "off", "allowed-ips", ""],
    );
    {
        let device = interface.device();
        assert!(device.private_key.is_none() && device.fwmark == 0);
        let peer = &device.peers[&PublicKey(key(1))];
        assert!(peer.preshared_key.is_none() && peer.persistent_keepalive == 0);
        assert_eq!(device.allowed_ips.len(), 1);
    }
    // C39: what another peer had moves.
    interface.wg("set", &["peer", &peer, "allowed-ips", "11.0.0.0/8"]);
    assert_eq!(
        interface.wg("show", &["allowed-ips"]),
        format!("{peer}\t11.0.0.0/8\n{}\t(none)\n", name(2))
    );
    interface.wg("set", &["peer", &peer, "remove"]);
    assert_eq!(interface.wg("show", &["peers"]), format!("{}\n", name(2)));
}

/// The message is the error's own: its number goes over the socket with the sign that `wg` expects.
#[test]
fn c78_wg_names_the_devices_error() {
    let Some(interface) = Interface::new() else { return };
    interface.device().refuse = Some(Errno::PERM);
    let error = interface
        .try_wg("set", &["listen-port", "1"])
        .expect_err("refused");
    assert_eq!(error, "Unable to modify interface: Operation not permitted\n");
}

fn config(peers: &[(u32, &str)]) -> String {
    let mut text = format!("[Interface]\nListenPort = 51820\nFwMark = 0xca6c\nPrivateKey = {PRIVATE}\n");
    for (n, allowed_ips) in peers {
        let _ = write!(
            text,
            "\n[Peer]\nPublicKey = {}\nAllowedIPs = {allowed_ips}\nEndpoint = 192.0.2.1:{n}\n",
            name(*n)
        );
    }
    text
}

#[test]
fn c78_c83_setconf_addconf_syncconf_showconf() {
    let Some(interface) = Interface::new() else { return };
    interface.wg_file(
        "setconf",
        &config(&[
            (1, "10.1.0.0/16"),
            (2, "10.2.0.0/16, 2001:db8:2::/48"),
            (3, "10.3.0.0/16"),
        ]),
    );
    assert_eq!(interface.device().peers.len(), 3);
    let added = |interface: &Interface| interface.device().added;
    assert_eq!(added(&interface), 3);

    // What it prints is what it reads.
    let shown = interface.wg("showconf", &[]);
    let before = interface.device().text();
    interface.wg_file("setconf", &shown);
    assert_eq!(interface.device().text(), before);
    assert_eq!(added(&interface), 6, "setconf starts over");

    interface.wg_file(
        "addconf",
        &format!("[Peer]\nPublicKey = {}\nAllowedIPs = 10.4.0.0/16\n", name(4)),
    );
    assert_eq!(interface.device().peers.len(), 4);
    assert_eq!(added(&interface), 7);

    // Peers 1 and 2 stay the peers they were, and so would their sessions; 3 goes, 4 changes, 5 is new.
    let ids = |interface: &Interface, n| {
        interface
            .device()
            .peers
            .get(&PublicKey(key(n)))
            .and_then(|peer| peer.id)
    };
    let before: Vec<_> = (1..=4).map(|n| ids(&interface, n)).collect();
    interface.wg_file(
        "syncconf",
        &config(&[
            (1, "10.1.0.0/16"),
            (2, "10.2.0.0/16, 2001:db8:2::/48"),
            (4, "10.44.0.0/16"),
            (5, "10.5.0.0/16"),
        ]),
    );
    assert_eq!(
        [1, 2, 4].map(|n| ids(&interface, n)),
        [before[0], before[1], before[3]]
    );
    assert_eq!(ids(&interface, 3), None);
    assert_eq!(added(&interface), 8);
    let allowed = interface.wg("show", &["allowed-ips"]);
    let expected: String = [
        (1, "10.1.0.0/16"),
        (2, "10.2.0.0/16 2001:db8:2::/48"),
        (4, "10.44.0.0/16"),
        (5, "10.5.0.0/16"),
    ]
    .map(|(n, prefixes)| format!("{}\t{prefixes}\n", name(n)))
    .concat();
    assert_eq!(allowed, expected);
}

#[test]
fn c80_65000_allowed_ips_on_one_peer() {
    let Some(interface) = Interface::new() else { return };
    let prefixes: Vec<String> = (0..65_000u32)
        .map(|n| format!("10.{}.{}.0/24", n >> 8, n & 255))
        .collect();
    let start = Instant::now();
    interface.wg_file("setconf", &config(&[(1, &prefixes.join(", "))]));
    let set = start.elapsed();
    assert_eq!(interface.device().allowed_ips.len(), 65_000);
    let shown = interface.wg("show", &["allowed-ips"]);
    assert_eq!(shown, format!("{}\t{}\n", name(1), prefixes.join(" ")));
    eprintln!(
        "65,000 allowed-ips: setconf {set:.2?}, show {:.2?}",
        start.elapsed() - set
    );
    interface.wg("set", &["peer", &name(1), "remove"]);
    assert!(interface.device().allowed_ips.is_empty());
}

#[test]
fn c80_r38_10000_peers() {
    let Some(interface) = Interface::new() else { return };
    let prefixes: Vec<String> = (0..10_000u32)
        .map(|n| format!("10.{}.{}.1/32, fd00::{n:x}/128", n >> 8, n & 255))
        .collect();
    let peers: Vec<(u32, &str)> = prefixes
        .iter()
        .enumerate()
        .map(|(n, text)| (n as u32 + 1, text.as_str()))
        .collect();
    let text = config(&peers);
    let start = Instant::now();
    interface.wg_file("setconf", &text);
    let set = start.elapsed();
    assert_eq!(interface.device().peers.len(), 10_000);
    let dump = interface.wg("show", &["dump"]);
    let show = start.elapsed() - set;
    let listed: Vec<&str> = dump.lines().skip(1).collect();
    assert_eq!(listed.len(), 10_000);
    for (line, (n, _)) in listed.iter().zip(&peers) {
        let expected = format!(
            "{}\t(none)\t192.0.2.1:{n}\t10.{}.{}.1/32,fd00::{:x}/128\t0\t0\t0\toff",
            name(*n),
            (n - 1) >> 8,
            (n - 1) & 255,
            n - 1,
        );
        assert_eq!(line.replace("fd00::/128", "fd00::0/128"), expected);
    }
    let start = Instant::now();
    interface.wg_file("syncconf", &text);
    eprintln!(
        "10,000 peers: setconf {set:.2?}, show {show:.2?}, syncconf without a change {:.2?}",
        start.elapsed()
    );
    assert_eq!(interface.device().added, 10_000, "all stayed");
}
