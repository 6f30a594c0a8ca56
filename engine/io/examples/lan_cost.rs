//! What an Ethernet LAN port costs on this machine, in nanoseconds a packet: AF_PACKET beside AF_XDP, 64-byte frames over a veth pair.
//!
//! `cargo run --release -p patronus-io --example lan_cost` as root. Makes the pair in a network namespace of its own, which ends with the
//! program. One thread plays the network and has the port, so that everything the kernel does for a packet, in softirqs too, is in its
//! processor time. Subjects take turns; a line has the minimum and the median of its rounds, and packets a second by the median.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::thread;

use patronus_io::Port;
use patronus_io::afpacket::PacketTap;
use patronus_io::packet;
use patronus_io::xdp::{Take, XdpProgram};
use patronus_mem::{Arena, ArenaConfig, Burst, FrameCache};
use rustix::thread::UnshareFlags;
use rustix::time::{ClockId, clock_gettime};

const ROUNDS: usize = 41;
/// Packets of a round.
const PACKETS: usize = 1024;
const OURS: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
const OWN: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

fn main() {
    let measured = thread::spawn(|| {
        // SAFETY: the thread takes a namespace of its own and keeps its file descriptor table.
        match unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) } {
            Ok(()) => measure(),
            Err(error) => eprintln!("no network namespace ({error}): nothing is measured; run as root"),
        }
    });
    measured.join().expect("the measurement panicked");
}

fn ip(arguments: &str) {
    let status = Command::new("ip")
        .args(arguments.split(' '))
        .status()
        .expect("run ip");
    assert!(status.success(), "ip {arguments}");
}

/// Nanoseconds that the calling thread has run.
fn cpu_time() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// A UDP packet for another host, in a frame to us.
fn frame() -> Vec<u8> {
    let mut frame = [OURS, [2, 0, 0, 0, 0, 0xb]].concat();
    frame.extend([
        8, 0, 0x45, 0, 0, 50, 0, 0, 0x40, 0, 64, 17, 0, 0, 192, 0, 2, 9, 198, 51, 100, 1,
    ]);
    frame.extend([0x10, 0, 0x20, 0, 0, 30, 0, 0]);
    frame.resize(64, 5);
    frame
}

/// The network's end of the pair.
struct Network {
    socket: OwnedFd,
    frame: Vec<u8>,
}

impl Network {
    /// Sends a round's packets; nanoseconds.
    fn send(&self) -> u64 {
        let mut vector = libc::iovec {
            iov_base: self.frame.as_ptr().cast_mut().cast(),
            iov_len: self.frame.len(),
        };
        // SAFETY: plain numbers and pointers, for which zero is a value.
        let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
        message.msg_hdr.msg_iov = &raw mut vector;
        message.msg_hdr.msg_iovlen = 1;
        let mut messages = [message; 64];
        let start = cpu_time();
        for _ in 0..PACKETS / messages.len() {
            // SAFETY: every header points to the vector and that to the frame, both of which outlive the call.
            let sent = unsafe {
                libc::sendmmsg(
                    self.socket.as_raw_fd(),
                    messages.as_mut_ptr(),
                    messages.len() as libc::c_uint,
                    0,
                )
            };
            assert_eq!(sent as usize, messages.len(), "{}", io::Error::last_os_error());
        }
        cpu_time() - start
    }
}

/// The costs of one line of the report.
struct Line {
    what: &'static str,
    costs: Vec<f64>,
}

fn add(lines: &mut Vec<Line>, what: &'static str, nanos: u64) {
    let cost = nanos as f64 / PACKETS as f64;
    match lines.iter_mut().find(|line| line.what == what) {
        Some(line) => line.costs.push(cost),
        None => lines.push(Line {
            what,
            costs: vec![cost],
        }),
    }
}

/// Takes a round's packets; nanoseconds.
fn receive(port: &mut impl Port, frames: &mut FrameCache) -> u64 {
    let mut burst = Burst::new();
    let (mut received, start) = (0, cpu_time());
    // What is under way on another processor arrives a moment later.
    for _ in 0..100_000 {
        received += port.rx_burst(frames, &mut burst).expect("rx");
        burst.clear_into(frames);
        if received == PACKETS {
            break;
        }
    }
    let nanos = cpu_time() - start;
    assert_eq!(received, PACKETS, "packets were lost");
    nanos
}

/// Sends a round's packets; nanoseconds.
fn transmit(port: &mut impl Port, frames: &mut FrameCache, frame: &[u8]) -> u64 {
    let mut burst = Burst::new();
    let mut nanos = 0;
    for _ in 0..PACKETS / 64 {
        while burst.room() > 0 {
            let mut pkt = frames.alloc().expect("a frame");
            pkt.append(frame.len()).copy_from_slice(frame);
            burst.push(pkt);
        }
        let start = cpu_time();
        port.tx_burst(frames, &mut burst).expect("tx");
        nanos += cpu_time() - start;
    }
    // What is left of the last burst, and its frames.
    let start = cpu_time();
    port.rx_burst(frames, &mut burst).expect("rx");
    nanos += cpu_time() - start;
    burst.clear_into(frames);
    nanos
}

fn measure() {
    ip("link add va address 02:00:00:00:00:0a type veth peer name vb address 02:00:00:00:00:0b");
    for end in ["va", "vb"] {
        ip(&format!("link set {end} addrgenmode none"));
        ip(&format!("link set {end} up"));
    }
    let index = |name| rustix::net::netdevice::name_to_index(packet::sender(1).expect("socket"), name);
    let (va, vb) = (index("va").expect("va"), index("vb").expect("vb"));
    let network = Network {
        socket: packet::sender(vb).expect("a packet socket"),
        frame: frame(),
    };
    let mut away = frame();
    away[..6].copy_from_slice(&[2, 0, 0, 0, 0, 0xb]);
    let config = ArenaConfig {
        frames: 8192,
        jumbo_frames: 4,
    };
    let mut frames = FrameCache::new(Arena::new(&config).expect("arena"));
    let (mut lines, mut drops) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        add(
            &mut lines,
            "the network's sending alone, to a host that drops",
            network.send(),
        );
        let mut tap = PacketTap::attach(va, 1, &[OWN]).expect("a tap");
        let mut port = tap.port().expect("a port");
        round(&mut lines, &PACKET, &network, &mut port, &mut frames, &away);
        drops.extend(port.counters().drops().filter(|(_, count)| *count > 0));
        drop((port, tap));
        let take = Take::Transit {
            mac: OURS,
            addresses: vec![OWN],
        };
        let program = XdpProgram::attach(va, 1, &take).expect("a program");
        let mut port = program.port(0, &mut frames).expect("a port");
        round(&mut lines, &XDP, &network, &mut port, &mut frames, &away);
        drops.extend(port.counters().drops().filter(|(_, count)| *count > 0));
    }
    report(&mut lines);
    println!("drops: {drops:?}");
}

/// Names of a subject's lines.
const PACKET: [&str; 3] = [
    "AF_PACKET: sending and receiving",
    "AF_PACKET: of it in rx_burst",
    "AF_PACKET: tx_burst",
];
const XDP: [&str; 3] = [
    "AF_XDP: sending and receiving",
    "AF_XDP: of it in rx_burst",
    "AF_XDP: tx_burst",
];

fn round(
    lines: &mut Vec<Line>,
    names: &[&'static str; 3],
    network: &Network,
    port: &mut impl Port,
    frames: &mut FrameCache,
    away: &[u8],
) {
    // Once to touch everything.
    network.send();
    receive(port, frames);
    let sent = network.send();
    let received = receive(port, frames);
    add(lines, names[0], sent + received);
    add(lines, names[1], received);
    transmit(port, frames, away);
    add(lines, names[2], transmit(port, frames, away));
}

fn report(lines: &mut [Line]) {
    println!(
        "{:<55} {:>8} {:>8} {:>8}",
        "64 B, ns of one core a packet", "min", "median", "kpps"
    );
    for line in lines {
        line.costs.sort_by(f64::total_cmp);
        let median = line.costs[line.costs.len() / 2];
        println!(
            "{:<55} {:>8.0} {:>8.0} {:>8.0}",
            line.what,
            line.costs[0],
            median,
            1e6 / median
        );
    }
}
