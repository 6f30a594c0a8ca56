//! No key stays behind in the engine's memory: neither as text in a buffer nor as bytes on the stack.
//!
//! The keys must not be in this process to begin with, so another process (this test binary again) is the client.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use patronus_crypto::Time;
use patronus_engine::uapi::{Errno, UapiServer};

use crate::device::MemoryDevice;
use crate::server::Directory;

/// Where the helper finds the socket; unset in every other run.
const SOCKET: &str = "PATRONUS_UAPI_TEST_SOCKET";

/// The key of a request, made in such a way that the key itself is no constant of this program.
fn key_byte(at: usize, salt: u8) -> u8 {
    (at as u8).wrapping_mul(0x3d) ^ salt.wrapping_add(std::hint::black_box(0x51))
}

const PRIVATE: u8 = 1;
const PRESHARED: u8 = 2;
const REFUSED: u8 = 3;

fn hex_byte(at: usize, salt: u8) -> u8 {
    b"0123456789abcdef"[usize::from(key_byte(at / 2, salt) >> (4 - at % 2 * 4) & 15)]
}

/// Runs in the other process: sends keys and reads them back.
#[test]
#[ignore = "a helper of c75_no_key_stays_behind, in a process of its own"]
fn client() {
    let Ok(socket) = std::env::var(SOCKET) else { return };
    let hex = |salt| {
        (0..64)
            .map(|at| char::from(hex_byte(at, salt)))
            .collect::<String>()
    };
    let mut stream = UnixStream::connect(socket).expect("the server");
    let mut exchange = |request: String, answer: &str| {
        stream.write_all(request.as_bytes()).expect("sent");
        let mut text = String::new();
        while !text.ends_with("\n\n") {
            let mut bytes = [0; 4096];
            let len = stream.read(&mut bytes).expect("an answer");
            assert!(len > 0);
            text += std::str::from_utf8(&bytes[..len]).expect("text");
        }
        assert!(text.contains(answer), "{text}");
    };
    let peer = "1b".repeat(32);
    let (private, preshared) = (hex(PRIVATE), hex(PRESHARED));
    exchange(
        format!("set=1\nprivate_key={private}\npublic_key={peer}\npreshared_key={preshared}\n\n"),
        "errno=0",
    );
    exchange("get=1\n\n".into(), &preshared);
    exchange(
        format!(
            "set=1\nprivate_key={0}\npublic_key={peer}\npreshared_key={0}\nnonsense=1\n\n",
            hex(REFUSED)
        ),
        "errno=-22",
    );
    // Cut off in the middle of a line with a key.
    stream
        .write_all(format!("set=1\nprivate_key={}", hex(REFUSED)).as_bytes())
        .expect("sent");
}

/// How often `len` bytes, of which number `at` is `byte(at)`, stand in the writable memory of this process.
fn occurrences(len: usize, byte: impl Fn(usize) -> u8) -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("the mappings");
    let memory = File::open("/proc/self/mem").expect("the memory");
    let mut found = 0;
    let mut chunk = vec![0; 1 << 20];
    for line in maps.lines() {
        let mut fields = line.split_whitespace();
        let (range, access) = (
            fields.next().unwrap_or_default(),
            fields.next().unwrap_or_default(),
        );
        let bounds = range
            .split_once('-')
            .map(|(a, b)| (u64::from_str_radix(a, 16), u64::from_str_radix(b, 16)));
        let Some((Ok(mut at), Ok(end))) = bounds else {
            continue;
        };
        if !access.starts_with("rw") {
            continue;
        }
        while at < end {
            let most = chunk.len().min((end - at) as usize);
            let Ok(read) = memory.read_at(&mut chunk[..most], at) else {
                break;
            };
            let matches = |window: &&[u8]| window.iter().enumerate().all(|(at, b)| *b == byte(at));
            found += chunk[..read].windows(len).filter(matches).count();
            if read < most || read < len {
                break;
            }
            at += (read - len + 1) as u64;
        }
        // What was read is not to be found in the next mapping.
        chunk.fill(0);
    }
    found
}

fn text_occurrences(salt: u8) -> usize {
    // Half of the digits: also what a moved or half overwritten buffer leaves.
    occurrences(32, |at| hex_byte(at, salt)) + occurrences(32, |at| hex_byte(at + 32, salt))
}

fn byte_occurrences(salt: u8) -> usize {
    // Without the ends that clamping changes.
    occurrences(30, |at| key_byte(at + 1, salt))
}

#[test]
fn c75_no_key_stays_behind() {
    // The scan finds what is there.
    let planted: Vec<u8> = (0..64).map(|at| hex_byte(at, 99)).collect();
    assert!(text_occurrences(99) >= 2);
    drop(std::hint::black_box(planted));

    let dir = Directory::new();
    let mut server = UapiServer::bind(dir.path(), "wg0").expect("a server");
    let mut device = MemoryDevice::default();
    let mut client = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "memory::client", "--ignored"])
        .env(SOCKET, dir.path().join("wg0.sock"))
        .stdout(Stdio::null())
        .spawn()
        .expect("the client");
    let mut time = Time::from_secs(1);
    while client.try_wait().expect("the client").is_none() {
        time = time.after(Duration::from_millis(1));
        server.service(&mut device, time);
        std::thread::sleep(Duration::from_millis(1));
    }
    server.service(&mut device, time);
    assert!(client.wait().expect("the client").success());
    assert_eq!((device.sets, device.refuse), (1, None::<Errno>));

    for salt in [PRIVATE, PRESHARED, REFUSED] {
        assert_eq!(text_occurrences(salt), 0, "text of key {salt}");
    }
    assert_eq!(
        (byte_occurrences(PRIVATE), byte_occurrences(PRESHARED)),
        (1, 1),
        "in the device and nowhere else"
    );
    assert_eq!(byte_occurrences(REFUSED), 0);
    drop(device);
    assert_eq!((byte_occurrences(PRIVATE), byte_occurrences(PRESHARED)), (0, 0));
}
