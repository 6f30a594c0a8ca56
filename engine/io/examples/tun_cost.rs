//! What the TUN port costs on this machine, in nanoseconds a packet.
//!
//! `cargo run --release -p patronus-io --example tun_cost` as root. Makes a device in a network
//! namespace of its own, which ends with the program. Every line is the minimum and the median of
//! its rounds: processor time of the calling thread, around calls of the port only.

use std::hint::black_box;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::thread;

use patronus_io::Port;
use patronus_io::ip::{self, Sum};
use patronus_io::offload::coalesce::{Accepts, Planner};
use patronus_io::offload::split::SuperPacket;
use patronus_io::offload::{Gso, VnetHeader};
use patronus_io::tun::{Tun, TunConfig, TunPort};
use patronus_mem::{Arena, ArenaConfig, BURST_MAX, Burst, FrameCache};
use rustix::thread::UnshareFlags;
use rustix::time::{ClockId, clock_gettime};

const ROUNDS: usize = 41;
/// Packets that wait in the device's queue in each round of a read.
const QUEUED: usize = 1024;

fn main() {
    functions();
    let device = thread::spawn(|| {
        // SAFETY: the thread takes a namespace of its own and keeps its file descriptor table.
        if let Err(error) = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) } {
            eprintln!("no network namespace ({error}): the device is not measured; run as root");
            return;
        }
        match Tun::create(&TunConfig {
            name: "tun0",
            mtu: Some(1420),
            ..TunConfig::default()
        }) {
            Ok((_device, mut ports)) => ports.drain(..).for_each(measure_device),
            Err(error) => eprintln!("no TUN device ({error}): it is not measured; run as root"),
        }
    });
    device.join().expect("the measurement panicked");
}

/// Nanoseconds that the calling thread has run.
fn cpu_time() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// One line of the report: `round` returns nanoseconds and how many packets they were for.
fn report(what: &str, mut round: impl FnMut() -> (u64, u64)) {
    let mut costs: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let (nanos, packets) = round();
            nanos as f64 / packets as f64
        })
        .collect();
    costs.sort_by(f64::total_cmp);
    println!("{what:<58} {:>8.1} {:>8.1}", costs[0], costs[ROUNDS / 2]);
}

fn functions() {
    println!("{:<58} {:>8} {:>8}", "pure functions, ns", "min", "median");
    const TIMES: u64 = 20_000;
    let timed = |f: &mut dyn FnMut()| {
        let start = cpu_time();
        (0..TIMES).for_each(|_| f());
        (cpu_time() - start, TIMES)
    };
    for len in [64usize, 1400] {
        let from = vec![7u8; len];
        let mut to = vec![0u8; len];
        report(&format!("checksum, {len} B"), || {
            timed(&mut || {
                black_box(Sum::of(black_box(&from)).checksum());
            })
        });
        report(&format!("copy and checksum, {len} B"), || {
            timed(&mut || {
                black_box(ip::copy_and_sum(black_box(&mut to), black_box(&from)).checksum());
            })
        });
        report(&format!("copy, {len} B"), || {
            timed(&mut || black_box(&mut to).copy_from_slice(black_box(&from)))
        });
    }
    let whole = udp(0, 45 * 1372);
    let vnet = VnetHeader {
        gso: Gso::Udp,
        gso_size: 1372,
        ..VnetHeader::SINGLE
    };
    let mut out = vec![0; 2048];
    report("split a super-packet of 45 x 1,400 B, a packet", || {
        let start = cpu_time();
        for _ in 0..100 {
            let mut cut = SuperPacket::parse(&vnet, black_box(&whole)).expect("a super-packet");
            while cut.write_next(&whole, black_box(&mut out)) > 0 {}
        }
        (cpu_time() - start, 4500)
    });
    for (flows, what) in [
        (1u16, "one flow"),
        (4, "4 flows"),
        (16, "16 flows"),
        (64, "64 flows"),
    ] {
        for len in [36, 1372] {
            let packets: Vec<Vec<u8>> = (0..BURST_MAX as u16).map(|i| udp(i % flows, len)).collect();
            let slices: Vec<&[u8]> = packets.iter().map(Vec::as_slice).collect();
            let mut planner = Planner::new(Accepts { tcp: true, udp: true });
            report(
                &format!("plan a burst of 64 x {} B, {what}, a packet", len + 28),
                || {
                    let start = cpu_time();
                    (0..100).for_each(|_| planner.plan(black_box(&slices)));
                    (cpu_time() - start, 100 * BURST_MAX as u64)
                },
            );
        }
    }
}

/// A whole UDP packet from 10.9.0.2 to 10.9.0.1.
fn udp(flow: u16, payload: usize) -> Vec<u8> {
    to_host(1, flow, payload)
}

fn to_host(host: u8, flow: u16, payload: usize) -> Vec<u8> {
    let mut packet = vec![
        0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 9, 0, 2, 10, 9, 0, host,
    ];
    packet[2..4].copy_from_slice(&((28 + payload) as u16).to_be_bytes());
    let sum = Sum::of(&packet).checksum();
    packet[10..12].copy_from_slice(&sum);
    packet.extend((2000 + flow).to_be_bytes());
    packet.extend(9000u16.to_be_bytes());
    packet.extend(((8 + payload) as u16).to_be_bytes());
    packet.extend([0, 0]);
    packet.resize(28 + payload, 5);
    let sum = ip::pseudo_sum(&packet[12..20], 17, 8 + payload)
        .bytes(&packet[20..])
        .transport_checksum();
    packet[26..28].copy_from_slice(&sum);
    packet
}

fn measure_device(mut port: TunPort) {
    for arguments in [
        "address add 10.9.0.1/24 dev tun0",
        "link set tun0 up",
        "route add 10.8.0.0/16 dev tun0",
    ] {
        let status = Command::new("ip")
            .args(arguments.split(' '))
            .status()
            .expect("ip");
        assert!(status.success(), "ip {arguments}");
    }
    let mut frames = FrameCache::new(
        Arena::new(&ArenaConfig {
            frames: 4096,
            jumbo_frames: 4,
        })
        .expect("arena"),
    );
    println!("\n{:<58} {:>8} {:>8}", "device, ns a packet", "min", "median");
    measure_reads(&mut port, &mut frames);
    measure_writes(&mut port, &mut frames);
    let drops: Vec<_> = port.counters().drops().filter(|(_, n)| *n > 0).collect();
    println!("drops: {drops:?}");
}

fn measure_reads(port: &mut TunPort, frames: &mut FrameCache) {
    let socket = UdpSocket::bind("10.9.0.1:4000").expect("bind");
    socket.connect("10.9.0.2:9000").expect("connect");
    set(&socket, libc::SOL_SOCKET, libc::SO_SNDBUF, 64 << 20);
    for (what, segment, datagram, sends) in [
        ("read, single, 64 B", 0, 36, QUEUED),
        ("read, single, 1,400 B", 0, 1372, QUEUED),
        ("read, super-packets of 45 x 1,400 B", 1372, 1372 * 45, 100),
        ("read, super-packets of 45 x 64 B", 36, 36 * 45, 100),
    ] {
        set(&socket, libc::SOL_UDP, libc::UDP_SEGMENT, segment);
        let payload = vec![3u8; datagram];
        report(what, || {
            (0..sends).for_each(|_| assert_eq!(socket.send(&payload).expect("send"), datagram));
            drain(port, frames)
        });
    }
    let start = cpu_time();
    let mut burst = Burst::new();
    (0..10_000).for_each(|_| drop(black_box(port.rx_burst(frames, &mut burst))));
    println!(
        "{:<58} {:>8} {:>8.1}",
        "read, nothing there, a call",
        "",
        (cpu_time() - start) as f64 / 1e4
    );
}

fn set(socket: &UdpSocket, level: libc::c_int, option: libc::c_int, value: libc::c_int) {
    // SAFETY: the options set here read an int.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(&value).cast(),
            size_of_val(&value) as u32,
        )
    };
    assert_eq!(result, 0, "setsockopt: {}", io::Error::last_os_error());
}

/// Reads until there is nothing: nanoseconds and packets.
fn drain(port: &mut TunPort, frames: &mut FrameCache) -> (u64, u64) {
    let mut burst = Burst::new();
    let (mut nanos, mut packets) = (0, 0);
    loop {
        let start = cpu_time();
        let received = port.rx_burst(frames, &mut burst).expect("receive");
        nanos += cpu_time() - start;
        packets += received as u64;
        if received == 0 {
            return (nanos, packets.max(1));
        }
        burst.clear_into(frames);
    }
}

fn measure_writes(port: &mut TunPort, frames: &mut FrameCache) {
    // Nobody reads it: what comes in is dropped once the buffer is full, at the end of its way.
    let _sink = UdpSocket::bind("10.9.0.1:9000").expect("bind");
    for (where_to, host) in [("to a socket", 1), ("to no route", 77)] {
        for (what, flows) in [("single", 64u16), ("coalesced, 4 flows", 4), ("coalesced", 1)] {
            for len in [64usize, 1400] {
                let packets: Vec<Vec<u8>> = (0..BURST_MAX as u16)
                    .map(|i| to_host(host, i % flows, len - 28))
                    .collect();
                report(&format!("write, {what}, {len} B, {where_to}"), || {
                    write(port, frames, &packets)
                });
            }
        }
    }
}

fn write(port: &mut TunPort, frames: &mut FrameCache, packets: &[Vec<u8>]) -> (u64, u64) {
    let mut burst = Burst::new();
    let mut nanos = 0;
    for _ in 0..16 {
        for packet in packets {
            let mut pkt = frames.alloc().expect("a frame");
            pkt.append(packet.len()).copy_from_slice(packet);
            burst.push(pkt);
        }
        let start = cpu_time();
        port.tx_burst(frames, &mut burst).expect("send");
        nanos += cpu_time() - start;
    }
    (nanos, 16 * packets.len() as u64)
}
