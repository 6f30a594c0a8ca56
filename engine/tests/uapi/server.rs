//! The socket: where it stands, who may connect, and what a client can do to others.
//!
//! One thread plays both sides, so that every test runs in a fixed order, and time passes when the test says so.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use patronus_crypto::Time;
use patronus_engine::uapi::server::{MAX_CLIENTS, MAX_LINE, STALL};
use patronus_engine::uapi::{Errno, Limits, UapiServer};
use proptest::prelude::*;

use crate::device::MemoryDevice;

/// A directory of its own for each test, removed with everything in it.
pub struct Directory(PathBuf);

impl Directory {
    pub fn new() -> Self {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("patronus-uapi-{}-{number}", std::process::id()));
        fs::create_dir(&path).expect("a directory");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("its mode");
        Directory(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    fn socket(&self) -> PathBuf {
        self.0.join("wg0.sock")
    }

    fn bind(&self) -> std::io::Result<UapiServer> {
        UapiServer::bind(&self.0, "wg0")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A server with its device, and the time.
pub struct Bench {
    pub server: UapiServer,
    pub device: MemoryDevice,
    pub now: Time,
    dir: Directory,
}

/// The other end of a connection.
pub struct Peer(UnixStream);

impl Bench {
    pub fn new(device: MemoryDevice) -> Self {
        let dir = Directory::new();
        Bench {
            server: dir.bind().expect("a server"),
            device,
            now: Time::from_secs(1000),
            dir,
        }
    }

    pub fn connect(&mut self) -> Peer {
        let stream = UnixStream::connect(self.dir.socket()).expect("a connection");
        stream.set_nonblocking(true).expect("nonblocking");
        self.service();
        Peer(stream)
    }

    pub fn service(&mut self) {
        self.server.service(&mut self.device, self.now);
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now.after(time);
        self.service();
    }

    /// Sends a request in whatever pieces the socket takes and returns what comes back.
    pub fn exchange(&mut self, peer: &mut Peer, request: &str) -> String {
        let mut rest = request.as_bytes();
        let mut answer = Vec::new();
        while !rest.is_empty() {
            match peer.0.write(rest) {
                Ok(n) => rest = &rest[n..],
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) if e.kind() == ErrorKind::BrokenPipe => break,
                Err(e) => panic!("{e}"),
            }
            self.service();
        }
        self.read_all(peer, &mut answer);
        String::from_utf8(answer).expect("text")
    }

    /// Serves and reads until nothing comes any more. True at the end of the connection.
    fn read_all(&mut self, peer: &mut Peer, answer: &mut Vec<u8>) -> bool {
        let mut idle = 0;
        while idle < 3 {
            self.service();
            match peer.0.read_to_end(answer) {
                Ok(_) => return true,
                Err(e) if e.kind() == ErrorKind::WouldBlock => idle += 1,
                // What the server has not read before it hung up.
                Err(e) if e.kind() == ErrorKind::ConnectionReset => return true,
                Err(e) => panic!("{e}"),
            }
            if self.is_readable() {
                idle = 0;
            }
        }
        false
    }

    pub fn read_to_end(&mut self, peer: &mut Peer) -> String {
        let mut answer = Vec::new();
        assert!(self.read_all(peer, &mut answer), "the connection goes on");
        String::from_utf8(answer).expect("text")
    }

    pub fn is_closed(&mut self, peer: &mut Peer) -> bool {
        self.read_all(peer, &mut Vec::new())
    }

    /// Whether the server wants to be called.
    fn is_readable(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, poll};
        let fd = self.server.fd();
        let ready = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&Default::default()));
        ready.expect("a poll") > 0
    }
}

impl Peer {
    pub fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).expect("room in the socket's buffer");
    }

    pub fn shutdown_write(&mut self) {
        self.0
            .shutdown(std::net::Shutdown::Write)
            .expect("an open connection");
    }
}

fn bench() -> Bench {
    Bench::new(MemoryDevice {
        listen_port: 7,
        ..Default::default()
    })
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("a file").permissions().mode() & 0o7777
}

const GET: &str = "get=1\n\n";
const SEVEN: &str = "listen_port=7\nerrno=0\n\n";

#[test]
fn c76_directory_and_socket_are_for_the_owner_only() {
    let dir = Directory::new();
    let inner = dir.path().join("wireguard");
    let server = UapiServer::bind(&inner, "wg0").expect("a server");
    assert_eq!(mode(&inner), 0o700);
    assert_eq!(mode(&inner.join("wg0.sock")), 0o600);
    drop(server);
    assert!(!inner.join("wg0.sock").exists());
}

/// As wireguard-go leaves it behind. What others can only list needs no repair.
#[test]
fn c76_an_existing_directory_is_used_as_it_is() {
    let dir = Directory::new();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("a mode");
    let _server = dir.bind().expect("a server");
    assert_eq!(mode(dir.path()), 0o755);
}

#[test]
fn c76_a_directory_that_others_may_write_to_is_refused() {
    for bits in [0o770, 0o702, 0o1777] {
        let dir = Directory::new();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(bits)).expect("a mode");
        assert_eq!(
            dir.bind().err().map(|e| e.kind()),
            Some(ErrorKind::PermissionDenied),
            "{bits:o}"
        );
        assert!(!dir.socket().exists());
    }
}

/// Root may share the directory with a group whose members cannot remove each other's files.
#[test]
fn c76_a_sticky_directory_of_root_may_be_a_groups() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root's directory may be shared");
        return;
    }
    let dir = Directory::new();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o1770)).expect("a mode");
    let _server = dir.bind().expect("a server");
    assert_eq!(mode(dir.path()), 0o1770);
    assert_eq!(mode(&dir.socket()), 0o600);
}

#[test]
fn c76_a_directory_of_another_user_is_refused() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can give a directory away");
        return;
    }
    let dir = Directory::new();
    std::os::unix::fs::chown(dir.path(), Some(65534), None).expect("a new owner");
    assert_eq!(
        dir.bind().err().map(|e| e.kind()),
        Some(ErrorKind::PermissionDenied)
    );
}

#[test]
fn c76_symbolic_links_are_not_followed() {
    let dir = Directory::new();
    let (real, link) = (dir.path().join("real"), dir.path().join("link"));
    fs::create_dir(&real).expect("a directory");
    symlink(&real, &link).expect("a link");
    assert!(UapiServer::bind(&link, "wg0").is_err());
    assert_eq!(fs::read_dir(&real).expect("a directory").count(), 0);

    let target = dir.path().join("target");
    let _listener = UnixListener::bind(&target).expect("a socket");
    symlink(&target, dir.socket()).expect("a link");
    assert_eq!(dir.bind().err().map(|e| e.kind()), Some(ErrorKind::AlreadyExists));
    assert!(target.exists() && dir.socket().exists(), "nothing was removed");
}

#[test]
fn c82_what_is_no_socket_is_not_replaced() {
    let dir = Directory::new();
    fs::write(dir.socket(), "precious").expect("a file");
    assert_eq!(dir.bind().err().map(|e| e.kind()), Some(ErrorKind::AlreadyExists));
    assert_eq!(fs::read_to_string(dir.socket()).expect("the file"), "precious");
}

#[test]
fn c82_a_stale_socket_is_replaced() {
    let dir = Directory::new();
    drop(UnixListener::bind(dir.socket()).expect("a socket"));
    let stale = fs::metadata(dir.socket())
        .expect("std leaves the file")
        .ctime_nsec();
    let _server = dir.bind().expect("a server");
    assert_ne!(fs::metadata(dir.socket()).expect("a socket").ctime_nsec(), stale);
    assert_eq!(mode(&dir.socket()), 0o600);
}

/// Left behind by an engine that was killed just before its socket was ready.
#[test]
fn c82_a_half_made_socket_is_replaced() {
    let dir = Directory::new();
    let unready = dir.path().join(".wg0.sock.new");
    drop(UnixListener::bind(&unready).expect("a socket"));
    let _server = dir.bind().expect("a server");
    assert!(dir.socket().exists() && !unready.exists());
}

/// To `wg` a socket that refuses connections is one left behind, which it removes: there must be no such moment.
#[test]
fn c82_a_socket_is_ready_when_it_appears() {
    let dir = Directory::new();
    let path = dir.socket();
    let done = std::sync::atomic::AtomicBool::new(false);
    let refused = std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let which = || {
                fs::metadata(&path)
                    .map(|file| (file.ino(), file.ctime(), file.ctime_nsec()))
                    .ok()
            };
            let mut refused = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let before = which();
                let error = UnixStream::connect(&path).err().map(|e| e.kind());
                let in_place = before.is_some() && which() == before;
                refused += usize::from(error == Some(ErrorKind::ConnectionRefused) && in_place);
            }
            refused
        });
        // The old socket is removed before it is closed, so it never refuses either.
        for _ in 0..300 {
            let server = dir.bind().expect("a server");
            let _ = fs::remove_file(&path);
            drop(server);
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        client.join().expect("the client")
    });
    assert_eq!(refused, 0);
}

#[test]
fn c82_a_live_socket_is_not() {
    let dir = Directory::new();
    let first = dir.bind().expect("a server");
    for _ in 0..40 {
        // The first one never accepts: its queue fills up, and it is alive all the same.
        assert_eq!(dir.bind().err().map(|e| e.kind()), Some(ErrorKind::AddrInUse));
    }
    assert!(dir.socket().exists());
    drop(first);
    dir.bind().expect("a server after the first has gone");
}

#[test]
fn c82_another_interface_has_another_socket() {
    let dir = Directory::new();
    let _first = dir.bind().expect("a server");
    let _second = UapiServer::bind(dir.path(), "wg1").expect("another");
}

#[test]
fn c82_only_our_own_socket_is_removed() {
    let dir = Directory::new();
    let server = dir.bind().expect("a server");
    fs::remove_file(dir.socket()).expect("our socket");
    let _successor = UnixListener::bind(dir.socket()).expect("another's socket");
    drop(server);
    assert!(dir.socket().exists());
}

#[test]
fn c82_removal_of_the_socket_is_noticed() {
    type Removal = fn(&Directory);
    let ways: [(&str, Removal); 4] = [
        ("removed", |dir| fs::remove_file(dir.socket()).expect("a socket")),
        ("renamed", |dir| {
            fs::rename(dir.socket(), dir.path().join("x")).expect("a socket")
        }),
        ("with its directory", |dir| {
            fs::remove_dir_all(dir.path()).expect("a directory")
        }),
        ("overwritten", |dir| {
            let other = dir.path().join("other");
            drop(UnixListener::bind(&other).expect("a socket"));
            fs::rename(other, dir.socket()).expect("a socket");
        }),
    ];
    for (how, remove) in ways {
        let mut bench = bench();
        bench.service();
        assert!(!bench.server.removed());
        assert!(!bench.is_readable());
        let unrelated = bench.dir.path().join("unrelated");
        fs::write(&unrelated, "").expect("a file");
        fs::remove_file(&unrelated).expect("the file");
        bench.service();
        assert!(!bench.server.removed(), "another file's removal");
        remove(&bench.dir);
        assert!(bench.is_readable(), "{how}");
        bench.service();
        assert!(bench.server.removed(), "{how}");
        assert!(!bench.is_readable(), "the news is told once");
    }
}

#[test]
fn c82_names_that_are_no_interfaces() {
    let dir = Directory::new();
    let long = "a".repeat(16);
    for name in [
        "", ".", "..", "a/b", "../a", "a b", "a\n", "\u{e9}", "a\0b", &long,
    ] {
        let error = UapiServer::bind(dir.path(), name).err().map(|e| e.kind());
        assert_eq!(error, Some(ErrorKind::InvalidInput), "{name:?}");
    }
    UapiServer::bind(dir.path(), &"a".repeat(15)).expect("the longest name");
}

#[test]
fn c78_many_operations_over_one_connection() {
    let mut bench = bench();
    let mut client = bench.connect();
    for port in 1..20 {
        assert_eq!(
            bench.exchange(&mut client, &format!("set=1\nlisten_port={port}\n\n")),
            "errno=0\n\n"
        );
        assert_eq!(
            bench.exchange(&mut client, GET),
            format!("listen_port={port}\nerrno=0\n\n")
        );
    }
    assert_eq!(bench.exchange(&mut client, "set=1\n\n"), "errno=0\n\n");
}

/// Each call serves one operation of a client, so that nobody else has to wait for the rest.
#[test]
fn c78_operations_sent_at_once() {
    let mut bench = bench();
    let mut client = bench.connect();
    client.send(GET.repeat(20).as_bytes());
    for done in 1..=20 {
        assert!(bench.is_readable());
        bench.service();
        let mut answer = vec![0; 10_000];
        let len = client.0.read(&mut answer).expect("an answer");
        assert_eq!(std::str::from_utf8(&answer[..len]), Ok(SEVEN), "answer {done}");
    }
    bench.service();
    assert!(!bench.is_readable(), "nothing is left to do");
}

#[test]
fn c80_short_reads() {
    let mut bench = bench();
    let mut client = bench.connect();
    for byte in "set=1\nlisten_port=9\n\nget=1\n".bytes() {
        client.send(&[byte]);
        bench.service();
    }
    assert_eq!(
        bench.exchange(&mut client, "\n"),
        "errno=0\n\nlisten_port=9\nerrno=0\n\n"
    );
}

/// Our own addition: counters that `wg` knows nothing about.
#[test]
fn c78_statistics() {
    let mut bench = bench();
    let mut client = bench.connect();
    assert_eq!(
        bench.exchange(&mut client, "get=stats\n\n"),
        "counted=42\nerrno=0\n\n"
    );
    for word in ["peers", "lanes", "routes", "links", "memory"] {
        let answer = bench.exchange(&mut client, &format!("get={word}\n\n"));
        assert_eq!(answer, "other=1\nerrno=0\n\n");
    }
    assert_eq!(bench.exchange(&mut client, GET), SEVEN);
    assert_eq!(
        bench.exchange(&mut client, "get=stats\nlisten_port=1\n\n"),
        "errno=-22\n\n"
    );
    assert!(bench.is_closed(&mut client));
}

#[test]
fn c78_a_client_that_has_finished_writing_gets_its_answer() {
    let mut bench = bench();
    let mut client = bench.connect();
    client.send(GET.as_bytes());
    client.shutdown_write();
    assert_eq!(bench.read_to_end(&mut client), SEVEN);
    assert!(!bench.is_readable());
}

#[test]
fn c78_the_devices_error_is_passed_on() {
    let mut bench = bench();
    bench.device.refuse = Some(Errno::PERM);
    let mut client = bench.connect();
    assert_eq!(
        bench.exchange(&mut client, "set=1\nlisten_port=9\n\n"),
        "errno=-1\n\n"
    );
    assert_eq!(bench.exchange(&mut client, GET), SEVEN);
}

#[test]
fn c80_the_longest_line() {
    let mut bench = bench();
    let mut client = bench.connect();
    let line = |len: usize| format!("set=1\nlisten_port={:0>1$}\n\n", 5, len - "listen_port=".len());
    assert_eq!(bench.exchange(&mut client, &line(MAX_LINE)), "errno=0\n\n");
    assert_eq!(bench.device.listen_port, 5);
    assert_eq!(bench.exchange(&mut client, &line(MAX_LINE + 1)), "errno=-22\n\n");
    assert!(bench.is_closed(&mut client));
}

#[test]
fn c80_a_request_of_too_many_bytes_is_cut_off() {
    let mut bench = bench();
    bench.server.set_limits(Limits {
        bytes: 100_000,
        ..Limits::default()
    });
    for line in ["listen_port=9\n", "nonsense\n"] {
        let mut client = bench.connect();
        let mut answer = bench.exchange(&mut client, &format!("set=1\n{}", line.repeat(100_000)));
        answer.truncate(11);
        assert_eq!(answer, "errno=-7\n\n");
        assert!(bench.is_closed(&mut client));
    }
    assert_eq!(bench.device.sets, 0);
}

#[test]
fn c80_sixteen_clients_at_a_time() {
    let mut bench = bench();
    let mut clients: Vec<Peer> = (0..MAX_CLIENTS).map(|_| bench.connect()).collect();
    let mut waiting = bench.connect();
    waiting.send(GET.as_bytes());
    bench.service();
    assert!(
        !bench.is_readable(),
        "a client that has to wait keeps nobody awake"
    );
    assert_eq!(
        waiting.0.read(&mut [0; 100]).err().map(|e| e.kind()),
        Some(ErrorKind::WouldBlock)
    );
    assert_eq!(bench.exchange(&mut clients[0], GET), SEVEN);

    drop(clients.pop());
    assert_eq!(bench.exchange(&mut waiting, ""), SEVEN);
    for client in &mut clients {
        assert_eq!(bench.exchange(client, GET), SEVEN);
    }
}

/// Out of file descriptors: the connection waits, the server does not spin, and a second later it tries again.
#[test]
fn c80_no_descriptor_for_a_connection() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    // The limit is the whole process's, so this happens in a process of its own.
    if std::env::var_os("PATRONUS_UAPI_TEST_DESCRIPTORS").is_none() {
        let helper = std::process::Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "server::c80_no_descriptor_for_a_connection"])
            .env("PATRONUS_UAPI_TEST_DESCRIPTORS", "1")
            .output()
            .expect("the helper");
        assert!(
            helper.status.success(),
            "{}",
            String::from_utf8_lossy(&helper.stdout)
        );
        return;
    }
    let mut bench = bench();
    let stream = UnixStream::connect(bench.dir.socket()).expect("a connection");
    stream.set_nonblocking(true).expect("nonblocking");
    let mut client = Peer(stream);
    client.send(GET.as_bytes());
    let limit = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(0),
            ..limit
        },
    )
    .expect("a lower limit");
    bench.service();
    setrlimit(Resource::Nofile, limit).expect("the limit");
    assert!(!bench.is_readable());
    assert_eq!(
        bench.server.next_deadline(),
        Some(bench.now.after(Duration::from_secs(1)))
    );
    bench.pass(Duration::from_secs(1));
    assert_eq!(bench.exchange(&mut client, ""), SEVEN);
    assert_eq!(bench.server.next_deadline(), Some(bench.now.after(STALL)));
}

#[test]
fn c79_an_endpoints_zone_is_an_interface() {
    let mut bench = bench();
    let mut client = bench.connect();
    let set = format!(
        "set=1\npublic_key={}\nendpoint=[fe80::1%lo]:9\n\n",
        "1b".repeat(32)
    );
    assert_eq!(bench.exchange(&mut client, &set), "errno=0\n\n");
    let index = fs::read_to_string("/sys/class/net/lo/ifindex").expect("an index");
    assert!(
        bench
            .device
            .text()
            .contains(&format!("\nendpoint=[fe80::1%{}]:9\n", index.trim()))
    );
}

#[test]
fn c80_a_stalled_client_is_dropped() {
    let mut bench = bench();
    assert_eq!(bench.server.next_deadline(), None);
    let mut idle = bench.connect();
    let mut halfway = bench.connect();
    halfway.send(b"set=1\nlisten_port=9\n");
    bench.service();
    assert_eq!(bench.server.next_deadline(), Some(bench.now.after(STALL)));
    bench.pass(STALL - Duration::from_nanos(1));
    assert!(!bench.is_closed(&mut idle) && !bench.is_closed(&mut halfway));

    halfway.send(b"fwmark=1\n");
    bench.service();
    bench.pass(Duration::from_nanos(1));
    assert!(bench.is_closed(&mut idle));
    assert_eq!(bench.exchange(&mut halfway, "\n"), "errno=0\n\n");
    bench.pass(STALL);
    assert!(bench.is_closed(&mut halfway));
    assert_eq!(bench.server.next_deadline(), None);
}

/// A device whose reply does not fit into a socket's buffer.
fn large_device() -> MemoryDevice {
    let mut device = MemoryDevice::default();
    for n in 0..10_000u16 {
        let mut public_key = [0; 32];
        public_key[..2].copy_from_slice(&n.to_be_bytes());
        device
            .peers
            .insert(patronus_crypto::PublicKey(public_key), Default::default());
    }
    device
}

#[test]
fn c80_a_client_that_does_not_read_holds_nobody_up() {
    let mut bench = Bench::new(large_device());
    let mut slow = bench.connect();
    slow.send(GET.as_bytes());
    bench.service();
    bench.service();
    assert!(!bench.is_readable());
    let mut quick = bench.connect();
    let answer = bench.exchange(&mut quick, GET);
    assert!(answer.len() > 1_000_000 && answer.ends_with("\nerrno=0\n\n"));
    // Not even a byte has been lost to the slow one.
    assert!(bench.exchange(&mut slow, "") == answer);

    slow.send(GET.as_bytes());
    bench.service();
    bench.pass(STALL);
    assert!(bench.is_closed(&mut slow));
}

#[test]
fn c80_a_client_may_vanish_at_any_time() {
    let mut bench = Bench::new(large_device());
    for request in ["", "g", "get=1\n", GET, "set=1\n", "set=1\nlisten_port=9"] {
        for reads in [false, true] {
            let mut client = bench.connect();
            client.send(request.as_bytes());
            if reads {
                bench.service();
                let _ = client.0.read(&mut [0; 1000]);
            }
            drop(client);
            bench.service();
            bench.service();
            assert!(!bench.is_readable(), "{request:?}");
            assert_eq!(bench.server.next_deadline(), None, "{request:?}");
        }
    }
    assert_eq!(bench.device.sets, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Any bytes in any pieces: an answer or none, and never a hang, a panic, or a request that nobody made.
    #[test]
    fn c80_any_bytes(pieces in prop::collection::vec(
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..300),
            "(get=1|set=[12]|listen_port=[0-9]{1,6}|\n|\n\n|replace_peers=true|[a-z_]{1,20}=.{0,20}|\n){0,12}"
                .prop_map(String::into_bytes),
        ],
        0..8,
    )) {
        let mut bench = bench();
        let mut client = bench.connect();
        for piece in &pieces {
            if client.0.write_all(piece).is_err() {
                break;
            }
            bench.service();
        }
        let _ = client.0.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        prop_assert!(bench.read_all(&mut client, &mut answer), "the connection ends");
        let sent = pieces.concat();
        let operations = sent.windows(6).filter(|w| w == b"set=1\n").count();
        prop_assert!(bench.device.sets <= operations);
        if !sent.is_empty() {
            prop_assert!(answer.ends_with(b"\n\n"));
        }
    }
}
