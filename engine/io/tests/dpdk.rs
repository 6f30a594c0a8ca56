//! DPDK ports over DPDK's virtual devices: rings of its own, a source and sink, shared memory between two processes, and packet sockets
//! on a veth pair. With PATRONUS_DPDK_NO_HUGE=1 everything runs without huge pages.
//!
//! DPDK starts once in a process and has one pool, so tests that share one take turns.
#![cfg(feature = "dpdk")]

mod common;

use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use common::frame::numbered;
use common::{packet_socket, receive, send};
use patronus_io::dpdk::{Device, DeviceConfig, Dpdk, DpdkError, DpdkPort, Options};
use patronus_io::ip::{Sum, pseudo_sum};
use patronus_io::{Port, PortCounters};
use patronus_mem::{Arena, ArenaConfig, BURST_MAX, Burst, FrameCache, PktBuf, SMALL_MAX, Unfinished};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// What this binary is told when it is the other process.
const SOCKET: &str = "PATRONUS_TEST_MEMIF";

struct Bench {
    dpdk: &'static Dpdk,
    arena: &'static Arena,
    frames: FrameCache,
    _turn: MutexGuard<'static, ()>,
}

fn started() -> (&'static Dpdk, &'static Arena) {
    static STARTED: OnceLock<(&'static Dpdk, &'static Arena)> = OnceLock::new();
    *STARTED.get_or_init(|| {
        let config = ArenaConfig {
            frames: 8192,
            jumbo_frames: 16,
        };
        let arena = Arena::new(&config).expect("arena");
        let options = Options {
            huge_pages: std::env::var_os("PATRONUS_DPDK_NO_HUGE").is_none(),
            ..Options::default()
        };
        (Dpdk::start(&options, arena).expect("DPDK starts"), arena)
    })
}

fn bench() -> Bench {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (dpdk, arena) = started();
    Bench {
        dpdk,
        arena,
        frames: FrameCache::new(arena),
        _turn: turn,
    }
}

impl Bench {
    fn open(&self, device: &str) -> (Arc<Device>, DpdkPort) {
        self.open_with(&DeviceConfig::new(device))
    }

    fn open_with(&self, config: &DeviceConfig) -> (Arc<Device>, DpdkPort) {
        let (device, mut ports) = self.dpdk.open(config).expect("a device");
        (device, ports.pop().expect("a port"))
    }

    fn refused(&self, config: &DeviceConfig) -> DpdkError {
        match self.dpdk.open(config) {
            Ok(_) => panic!("{} was not refused", config.device),
            Err(error) => error,
        }
    }

    fn give(&mut self, port: &mut DpdkPort, packets: &[Vec<u8>]) {
        for chunk in packets.chunks(BURST_MAX) {
            let mut burst = Burst::new();
            for bytes in chunk {
                let mut pkt = self.frames.alloc_for(bytes.len()).expect("a frame");
                pkt.append(bytes.len()).copy_from_slice(bytes);
                burst.push(pkt);
            }
            port.tx_burst(&mut self.frames, &mut burst).expect("tx");
            assert!(burst.is_empty());
        }
    }

    /// So many packets, or what came before patience ended.
    fn take(&mut self, port: &mut DpdkPort, count: usize) -> Vec<Vec<u8>> {
        let (mut got, mut burst, start) = (Vec::new(), Burst::new(), Instant::now());
        while got.len() < count && start.elapsed() < PATIENCE {
            port.rx_burst(&mut self.frames, &mut burst).expect("rx");
            got.extend(burst.iter().map(|pkt| pkt.data().to_vec()));
            burst.clear_into(&mut self.frames);
        }
        got
    }

    /// How many packets are there now; they are dropped.
    fn look(&mut self, port: &mut DpdkPort) -> usize {
        let mut burst = Burst::new();
        let received = port.rx_burst(&mut self.frames, &mut burst).expect("rx");
        burst.clear_into(&mut self.frames);
        received
    }

    /// Every frame is free: neither a packet nor a driver has one.
    fn all_frames_are_free(&mut self) {
        self.frames.flush();
        assert_eq!(self.dpdk.held(), 0, "a driver has frames");
        assert_eq!(
            self.arena.free_frames(),
            self.arena.frames(),
            "somebody has frames"
        );
    }
}

fn counts(counters: &PortCounters) -> Vec<(&'static str, u64)> {
    counters.named().filter(|(_, value)| *value > 0).collect()
}

fn numbers(range: std::ops::Range<u16>) -> Vec<Vec<u8>> {
    range.map(numbered).collect()
}

#[test]
fn a_ring_returns_packets_in_order_and_every_frame_comes_back() {
    let mut bench = bench();
    let (device, mut port) = bench.open("net_ring0");
    assert!(port.wait_fds().is_empty() && !port.has_pending());
    assert!(device.link().up);
    let sent = numbers(0..300);
    bench.give(&mut port, &sent);
    assert_eq!(bench.dpdk.held(), 300, "what is in the ring is the device's");
    assert_eq!(bench.take(&mut port, 300), sent);
    assert_eq!(bench.look(&mut port), 0);
    let counters = Arc::clone(port.counters());
    assert_eq!(
        counts(&counters),
        [
            ("rx_packets", 300),
            ("rx_bytes", 18_000),
            ("rx_calls", 5),
            ("tx_packets", 300),
            ("tx_bytes", 18_000),
            ("tx_calls", 5)
        ]
    );
    let statistics = device.statistics();
    assert_eq!((statistics.rx_packets, statistics.tx_packets), (300, 300));
    // What nobody has taken comes back when the device is closed.
    bench.give(&mut port, &numbers(0..100));
    drop((device, port));
    bench.all_frames_are_free();
}

#[test]
fn a_full_ring_is_a_counted_drop() {
    let mut bench = bench();
    let (device, mut port) = bench.open("net_ring0");
    bench.give(&mut port, &numbers(0..4096));
    let counters = Arc::clone(port.counters());
    let (sent, dropped) = (counters.tx_packets.get(), counters.tx_no_buffer.get());
    assert_eq!(sent + dropped, 4096);
    assert!(dropped > 0 && sent > 0);
    assert_eq!(bench.dpdk.held() as u64, sent, "what was dropped is free");
    let got = bench.take(&mut port, sent as usize);
    assert_eq!(got, numbers(0..4096)[..sent as usize], "the first ones, in order");
    drop((device, port));
    bench.all_frames_are_free();
}

#[test]
fn packets_that_no_frame_takes_come_and_go_in_several() {
    let mut bench = bench();
    let config = DeviceConfig {
        mtu: 9000,
        ..DeviceConfig::new("net_ring0")
    };
    let (device, mut port) = bench.open_with(&config);
    assert!(device.info().tx_segments, "{:?}", device.info());
    let long: Vec<u8> = (0..9000u32).map(|n| (n % 251) as u8).collect();
    let sent = vec![
        long.clone(),
        numbered(1),
        long[..SMALL_MAX + 1].to_vec(),
        long[..SMALL_MAX].to_vec(),
    ];
    bench.give(&mut port, &sent);
    assert_eq!(bench.take(&mut port, 4), sent);
    bench.give(&mut port, &[vec![0; 9019]]);
    assert_eq!(
        port.counters().tx_too_big.get(),
        1,
        "longer than the MTU and two link headers"
    );
    // Without a free jumbo frame it is a drop with a name.
    bench.give(&mut port, std::slice::from_ref(&long));
    let all: Vec<_> = std::iter::from_fn(|| bench.frames.alloc_for(9000)).collect();
    assert_eq!(bench.look(&mut port), 0);
    assert_eq!(port.counters().rx_no_frame.get(), 1);
    drop(all);
    drop((device, port));
    bench.all_frames_are_free();
}

#[test]
fn a_device_without_room_for_them_sends_no_packets_in_several_frames() {
    let mut bench = bench();
    let (device, mut port) = bench.open("net_ring0");
    bench.give(&mut port, &[vec![1; 1518], vec![1; 1519], vec![1; 9000]]);
    let counters = port.counters();
    assert_eq!((counters.tx_packets.get(), counters.tx_too_big.get()), (1, 2));
    drop((device, port));
    bench.all_frames_are_free();
}

#[test]
fn a_source_without_free_frames_brings_nothing_and_loses_nothing() {
    let mut bench = bench();
    let (device, mut port) = bench.open("net_null0,size=64");
    let mut burst = Burst::new();
    assert_eq!(
        port.rx_burst(&mut bench.frames, &mut burst).expect("rx"),
        BURST_MAX
    );
    assert!(burst.iter().all(|pkt| pkt.len() == 64 && pkt.headroom() == 128));
    port.tx_burst(&mut bench.frames, &mut burst).expect("tx");
    let mut all: Vec<_> = std::iter::from_fn(|| bench.frames.alloc()).collect();
    assert_eq!(all.len(), 8192, "a device that holds nothing");
    assert_eq!(port.rx_burst(&mut bench.frames, &mut burst).expect("rx"), 0);
    all.truncate(8192 - 32);
    bench.frames.flush();
    let received = port.rx_burst(&mut bench.frames, &mut burst).expect("rx");
    assert!(received <= 32, "all or nothing");
    drop((all, burst, device, port));
    bench.all_frames_are_free();
}

/// A datagram in an Ethernet frame, as a packet that leaves its checksums to the port.
fn unfinished(frames: &mut FrameCache, kind: Unfinished, payload: &[u8]) -> PktBuf {
    let datagram = common::frame::udp(4000, payload);
    let to: std::net::Ipv6Addr = "2001:db8::2".parse().expect("an address");
    let (mut frame, addresses) = match kind {
        Unfinished::UdpV4 => (
            common::frame::ipv4([192, 0, 2, 2].into(), 17, 0, &datagram),
            26..34,
        ),
        Unfinished::UdpV6 => (common::frame::ipv6(to, 17, &datagram), 22..54),
    };
    let partial = pseudo_sum(&frame[addresses], 17, datagram.len()).partial();
    let udp = frame.len() - datagram.len();
    frame[udp + 6..udp + 8].copy_from_slice(&partial);
    let mut pkt = frames.alloc().expect("a frame");
    pkt.append(frame.len()).copy_from_slice(&frame);
    pkt.leave_unfinished(Some(kind));
    pkt
}

/// Whether the checksums of a frame of [`unfinished`] are right.
fn is_finished(frame: &[u8]) -> bool {
    let (ip, addresses, udp) = match frame[12] {
        0x08 => (&frame[14..34], &frame[26..34], &frame[34..]),
        _ => (&[0xff, 0xff][..], &frame[22..54], &frame[54..]),
    };
    Sum::of(ip).is_valid() && pseudo_sum(addresses, 17, udp.len()).bytes(udp).is_valid()
}

#[test]
fn checksums_that_a_device_does_not_make_are_finished_by_the_port() {
    let mut bench = bench();
    let (device, mut port) = bench.open("net_ring0");
    assert!(!port.finishes(Unfinished::UdpV4) && !port.finishes(Unfinished::UdpV6));
    let mut burst = Burst::new();
    for n in 0..20u16 {
        let payload = vec![n as u8; 100 + usize::from(n)];
        let mut pkt = match n % 5 {
            1 => unfinished(&mut bench.frames, Unfinished::UdpV4, &payload),
            3 | 4 => unfinished(&mut bench.frames, Unfinished::UdpV6, &payload),
            _ => bench.frames.alloc().expect("a frame"),
        };
        if pkt.is_empty() {
            pkt.append(60).copy_from_slice(&numbered(n));
        }
        burst.push(pkt);
    }
    port.tx_burst(&mut bench.frames, &mut burst).expect("tx");
    assert_eq!(port.counters().tx_packets.get(), 20);
    let got = bench.take(&mut port, 20);
    for (n, frame) in (0..).zip(&got) {
        match n % 5 {
            0 | 2 => assert_eq!(*frame, numbered(n), "untouched"),
            _ => assert!(is_finished(frame) && frame.ends_with(&[n as u8]), "packet {n}"),
        }
    }
    let bytes: usize = got.iter().map(Vec::len).sum();
    assert_eq!(port.counters().tx_bytes.get(), bytes as u64);
    drop((burst, device, port));
    bench.all_frames_are_free();
}

#[test]
fn a_device_is_asked_for_the_checksums_that_are_left() {
    let mut bench = bench();
    let (device, mut port) = bench.open("net_ring0");
    port.ask_for_all_checksums();
    assert!(port.finishes(Unfinished::UdpV4) && port.finishes(Unfinished::UdpV6));
    let mut burst = Burst::new();
    burst.push(unfinished(&mut bench.frames, Unfinished::UdpV4, b"four"));
    burst.push(unfinished(&mut bench.frames, Unfinished::UdpV6, b"six"));
    let mut plain = bench.frames.alloc().expect("a frame");
    plain.append(60).copy_from_slice(&numbered(7));
    burst.push(plain);
    port.tx_burst(&mut bench.frames, &mut burst).expect("tx");
    port.rx_burst(&mut bench.frames, &mut burst).expect("rx");
    let mut asked = |pkt| port.asked(pkt, &mut bench.frames).expect("a frame of the pool's");
    let all: Vec<_> = burst.drain(..).map(&mut asked).collect();
    assert_eq!(all[0], (true, true, [4, 14, 20]));
    assert_eq!(all[1], (false, true, [6, 14, 40]));
    let (ip, udp, [version, ..]) = all[2];
    assert_eq!((ip, udp, version), (false, false, 0));
    drop((device, port));
    bench.all_frames_are_free();
}

/// DPDK's driver of TUN devices makes checksums.
#[test]
fn a_device_makes_the_checksums_that_are_left() {
    started();
    common::in_namespace(|| {
        let mut bench = bench();
        let (device, mut port) = bench.open("net_tap0,iface=pt0");
        assert!(port.finishes(Unfinished::UdpV4) && port.finishes(Unfinished::UdpV6));
        common::ip("link set pt0 up");
        device.look_at_link();
        let kernel = packet_socket("pt0");
        for kind in [Unfinished::UdpV4, Unfinished::UdpV6] {
            let mut burst = Burst::new();
            burst.push(unfinished(&mut bench.frames, kind, b"the payload"));
            port.tx_burst(&mut bench.frames, &mut burst).expect("tx");
            let start = Instant::now();
            let found = std::iter::repeat_with(|| receive(&kernel))
                .take_while(|_| start.elapsed() < PATIENCE)
                .flatten()
                .find(|frame| frame.ends_with(b"the payload"));
            assert!(found.is_some_and(|frame| is_finished(&frame)), "{kind:?}");
        }
        assert_eq!(port.counters().tx_packets.get(), 2);
        drop((device, port));
        bench.all_frames_are_free();
    });
}

#[test]
fn more_workers_than_the_pool_has_caches_for() {
    let mut bench = bench();
    let (device, mut port) = bench.open("net_null0,size=64");
    let (arena, mut burst) = (bench.arena, Burst::new());
    let mut workers: Vec<_> = (0..200).map(|_| FrameCache::new(arena)).collect();
    for frames in &mut workers {
        let received = port.rx_burst(frames, &mut burst).expect("rx");
        assert_eq!(received, BURST_MAX, "workers with and without one");
        port.tx_burst(frames, &mut burst).expect("tx");
        // In an arena of this size, 200 of them do not fit.
        frames.flush();
    }
    drop(workers);
    let again = port.rx_burst(&mut bench.frames, &mut burst).expect("rx");
    assert_eq!(again, BURST_MAX);
    drop((burst, device, port));
    bench.all_frames_are_free();
}

#[test]
fn frames_that_only_come_or_only_go_are_not_stuck_in_the_pool() {
    let mut bench = bench();
    let (device, mut port) = bench.open("net_null0,size=64");
    let mut burst = Burst::new();
    for _ in 0..1000 {
        // Received by the device, and freed by a stage.
        port.rx_burst(&mut bench.frames, &mut burst).expect("rx");
        burst.clear_into(&mut bench.frames);
    }
    for _ in 0..1000 {
        // From elsewhere, and sent by the device.
        for _ in 0..BURST_MAX {
            let mut pkt = bench.frames.alloc().expect("a frame");
            pkt.append(60).fill(1);
            burst.push(pkt);
        }
        port.tx_burst(&mut bench.frames, &mut burst).expect("tx");
    }
    assert_eq!(bench.dpdk.held(), 0, "what is in the pool's caches is free");
    drop((device, port));
    bench.all_frames_are_free();
}

#[test]
fn queues_are_ports_of_their_own_and_work_on_any_thread() {
    let mut bench = bench();
    let config = DeviceConfig {
        queues: 4,
        ..DeviceConfig::new("net_ring0")
    };
    let (device, ports) = bench.dpdk.open(&config).expect("a device");
    assert_eq!(ports.len(), 4);
    let arena = bench.arena;
    std::thread::scope(|scope| {
        for (number, mut port) in ports.into_iter().enumerate() {
            scope.spawn(move || {
                let mut frames = FrameCache::new(arena);
                let mut burst = Burst::new();
                for round in 0..200u16 {
                    for n in 0..32 {
                        let mut pkt = frames.alloc().expect("a frame");
                        pkt.append(60).copy_from_slice(&numbered(round * 32 + n));
                        pkt.data_mut()[0] = 2 * number as u8;
                        burst.push(pkt);
                    }
                    port.tx_burst(&mut frames, &mut burst).expect("tx");
                    assert_eq!(port.rx_burst(&mut frames, &mut burst).expect("rx"), 32);
                    for (n, pkt) in burst.iter().enumerate() {
                        let mut expected = numbered(round * 32 + n as u16);
                        expected[0] = 2 * number as u8;
                        assert_eq!(pkt.data(), expected);
                    }
                    burst.clear_into(&mut frames);
                }
            });
        }
    });
    drop(device);
    bench.all_frames_are_free();
}

#[test]
fn a_device_that_was_closed_can_be_opened_again() {
    let mut bench = bench();
    for _ in 0..3 {
        let (device, mut port) = bench.open("net_ring7");
        bench.give(&mut port, &numbers(0..10));
        assert_eq!(bench.take(&mut port, 10).len(), 10);
        drop((port, device));
        bench.all_frames_are_free();
    }
}

#[test]
fn what_cannot_be_had_is_said_with_what_to_do() {
    let mut bench = bench();
    let refused = |config: DeviceConfig, word: &str| {
        let error = bench.refused(&config).to_string();
        assert!(error.contains(word), "{error}");
    };
    refused(DeviceConfig::new("0000:ff:1f.7"), "lspci -D");
    refused(DeviceConfig::new("net_nosuch0"), "no driver for it");
    refused(
        DeviceConfig::new("net_memif0,role=referee"),
        "refused its arguments",
    );
    let queues = DeviceConfig {
        queues: 17,
        ..DeviceConfig::new("net_ring0")
    };
    refused(queues, "set fewer workers");
    let mtu = DeviceConfig {
        mtu: 20,
        ..DeviceConfig::new("net_ring0")
    };
    refused(mtu, "takes MTUs from");
    let open = bench.open("net_ring0");
    refused(DeviceConfig::new("net_ring0"), "named twice");
    drop(open);
    let again = Dpdk::start(&Options::default(), bench.arena).map(|_| ());
    assert!(matches!(again, Err(DpdkError::Again)));
    assert!(Dpdk::version().starts_with("DPDK "));
    bench.all_frames_are_free();
}

/// The other process of a test: sends back what arrives until it is told to end.
#[test]
fn memif_echo() {
    let Some(socket) = std::env::var_os(SOCKET) else {
        return;
    };
    let mut bench = bench();
    let device = format!(
        "net_memif0,role=client,id=0,socket={},socket-abstract=no",
        socket.display()
    );
    let (device, mut port) = bench.open(&device);
    let mut burst = Burst::new();
    let start = Instant::now();
    while start.elapsed() < 3 * PATIENCE {
        port.rx_burst(&mut bench.frames, &mut burst).expect("rx");
        let end = burst.iter().any(|pkt| pkt.data() == b"the end");
        port.tx_burst(&mut bench.frames, &mut burst).expect("tx");
        if end {
            break;
        }
    }
    drop((device, port));
    bench.all_frames_are_free();
}

fn echo_process(socket: &std::path::Path) -> Child {
    Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "memif_echo", "--nocapture"])
        .env(SOCKET, socket)
        .stdout(Stdio::null())
        .spawn()
        .expect("another process")
}

#[test]
fn two_processes_share_memory_and_one_may_go_and_come_back() {
    let mut bench = bench();
    let folder = std::env::temp_dir().join(format!("patronus-memif-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let socket = folder.join("memif");
    let device = format!(
        "net_memif0,role=server,id=0,socket={},socket-abstract=no",
        socket.display()
    );
    let (device, mut port) = bench.open(&device);
    assert!(!device.look_at_link(), "nobody is there yet");
    bench.give(&mut port, &numbers(0..2));
    assert_eq!(port.counters().tx_down.get(), 2, "no carrier, no packets");
    for _ in 0..2 {
        let mut child = echo_process(&socket);
        let start = Instant::now();
        while !device.look_at_link() && start.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(device.link().up, "connected");
        // The other end says so a little later, and drops what comes before.
        let mut answers = 0;
        while answers == 0 && start.elapsed() < PATIENCE {
            bench.give(&mut port, &[b"hello".to_vec()]);
            std::thread::sleep(Duration::from_millis(20));
            answers = bench.look(&mut port);
        }
        std::thread::sleep(Duration::from_millis(50));
        while bench.look(&mut port) > 0 {}
        for from in (0..1000).step_by(100) {
            let sent = numbers(from..from + 100);
            bench.give(&mut port, &sent);
            assert_eq!(bench.take(&mut port, 100), sent);
        }
        bench.give(&mut port, &[b"the end".to_vec()]);
        assert!(child.wait().expect("the other process ends").success());
        let start = Instant::now();
        while device.look_at_link() && start.elapsed() < PATIENCE {
            bench.look(&mut port);
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(!device.link().up, "it is gone");
    }
    drop((device, port));
    bench.all_frames_are_free();
    let _ = std::fs::remove_dir_all(folder);
}

#[test]
fn packet_sockets_of_dpdk_move_frames_over_a_veth() {
    // DPDK's own threads stay in the namespace in which it is started.
    started();
    common::in_namespace(|| {
        common::veth();
        let mut bench = bench();
        let network = packet_socket("vb");
        let (device, mut port) =
            bench.open("net_af_packet0,iface=va,blocksz=28672,framesz=1792,framecnt=512");
        assert_eq!(device.info().driver, "net_af_packet");
        assert_eq!(device.info().mac, common::OURS);
        // No IPv4: the driver lets the kernel put fragments together.
        let mut sent = numbers(0..50);
        sent.iter_mut()
            .for_each(|frame| frame[12..14].copy_from_slice(&[0x88, 0xb5]));
        let ours = |frame: &Vec<u8>| frame.len() == 60 && frame[12..14] == [0x88, 0xb5];
        bench.give(&mut port, &sent);
        let (mut got, start) = (Vec::new(), Instant::now());
        while got.len() < 50 && start.elapsed() < PATIENCE {
            got.extend(std::iter::from_fn(|| receive(&network)).filter(ours));
        }
        assert_eq!(got, sent);
        sent.iter().for_each(|frame| send(&network, frame));
        let mut got = Vec::new();
        while got.len() < 50 && start.elapsed() < PATIENCE {
            got.extend(bench.take(&mut port, 1).into_iter().filter(ours));
        }
        assert_eq!(got, sent);
        drop((device, port));
        bench.all_frames_are_free();
    });
}

#[test]
fn dpdks_own_af_xdp_is_refused_because_its_packets_lie_elsewhere() {
    started();
    common::in_namespace(|| {
        common::veth();
        let mut bench = bench();
        let error = bench
            .refused(&DeviceConfig::new("net_af_xdp0,iface=va"))
            .to_string();
        assert!(error.contains("af_xdp"), "{error}");
        bench.all_frames_are_free();
    });
}
