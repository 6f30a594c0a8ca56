//! The TUN port against the running kernel: real devices, each in a network namespace of its own.
//!
//! Needs root and `/dev/net/tun`; without them every test says so and passes.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use patronus_io::netlink::{LinkEvent, LinkWatch};
use patronus_io::tun::{Tun, TunConfig, TunDevice, TunPort};
use patronus_io::{Port, PortCounters, PortError};
use patronus_mem::{Arena, ArenaConfig, Burst, FrameCache};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::UnshareFlags;

/// How long anything here may take before it is a failure.
const PATIENCE: Duration = Duration::from_secs(20);

/// Whether TUN devices can be made here; says so if not.
fn possible(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    let device = std::fs::metadata("/dev/net/tun").is_ok();
    let ip = Command::new("ip").arg("-V").output().is_ok();
    if !(root && device && ip) {
        eprintln!("{test}: skipped, needs root, /dev/net/tun and the ip command");
    }
    root && device && ip
}

/// Runs `inside` on a thread that lives in a network namespace of its own.
fn in_namespace<T: Send + 'static>(inside: impl FnOnce() -> T + Send + 'static) -> T {
    start_in_namespace(inside)
        .join()
        .expect("the namespace's thread panicked")
}

fn start_in_namespace<T: Send + 'static>(
    inside: impl FnOnce() -> T + Send + 'static,
) -> thread::JoinHandle<T> {
    thread::spawn(|| {
        // SAFETY: the thread takes a namespace of its own and keeps its file descriptor table.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.expect("unshare");
        inside()
    })
}

/// The `ip` command, in the calling thread's namespace.
fn ip(arguments: &str) {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .expect("ip");
    assert!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn create(name: &str) -> (TunDevice, TunPort) {
    let config = TunConfig {
        name,
        mtu: Some(1420),
        ..TunConfig::default()
    };
    let (device, mut ports) = Tun::create(&config).expect("create");
    assert_eq!(ports.len(), 1);
    (device, ports.remove(0))
}

fn arena() -> &'static Arena {
    Arena::new(&ArenaConfig {
        frames: 1024,
        jumbo_frames: 4,
    })
    .expect("arena")
}

fn wait_for(fds: &[BorrowedFd<'_>], timeout: Duration) {
    let mut polled: Vec<PollFd<'_>> = fds
        .iter()
        .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
        .collect();
    let timeout = Timespec {
        tv_sec: timeout.as_secs() as i64,
        tv_nsec: i64::from(timeout.subsec_nanos()),
    };
    let _ = poll(&mut polled, Some(&timeout));
}

/// Everything that leaves one device enters the other, until told to stop. Returns the ports.
fn join(mut a: TunPort, mut b: TunPort, stop: Arc<AtomicBool>) -> thread::JoinHandle<(TunPort, TunPort)> {
    thread::spawn(move || {
        let arena = arena();
        let total = arena.free_frames();
        let mut frames = FrameCache::new(arena);
        let mut burst = Burst::new();
        while !stop.load(Ordering::Relaxed) {
            let mut moved = 0;
            moved += a.rx_burst(&mut frames, &mut burst).expect("receive");
            b.tx_burst(&mut frames, &mut burst).expect("send");
            moved += b.rx_burst(&mut frames, &mut burst).expect("receive");
            a.tx_burst(&mut frames, &mut burst).expect("send");
            if moved == 0 {
                wait_for(&[a.wait_fds()[0], b.wait_fds()[0]], Duration::from_millis(50));
            }
        }
        drop(frames);
        assert_eq!(arena.free_frames(), total, "frames leaked");
        (a, b)
    })
}

/// Two devices in two namespaces, joined; `client` and `server` run in one namespace each.
struct Pair {
    client: thread::JoinHandle<()>,
    server: thread::JoinHandle<()>,
    stop: Arc<AtomicBool>,
    joined: thread::JoinHandle<(TunPort, TunPort)>,
    counters: (Arc<PortCounters>, Arc<PortCounters>),
}

impl Pair {
    fn start(
        client: impl FnOnce() + Send + 'static,
        server: impl FnOnce(Box<dyn FnOnce() + Send>) + Send + 'static,
    ) -> Pair {
        let (give_port, take_port) = std::sync::mpsc::channel();
        let (give_ready, take_ready) = std::sync::mpsc::channel::<()>();
        let (give_client, take_client) = std::sync::mpsc::channel();
        let server = start_in_namespace(move || {
            let (device, port) = create("tun0");
            set_up(&device, 2);
            give_port.send(port).unwrap();
            server(Box::new(move || give_ready.send(()).unwrap()));
        });
        let client = start_in_namespace(move || {
            let (device, port) = create("tun0");
            set_up(&device, 1);
            give_client.send(port).unwrap();
            take_ready.recv().expect("the server is not ready");
            client();
        });
        let (a, b) = (take_client.recv().unwrap(), take_port.recv().unwrap());
        let counters = (a.counters().clone(), b.counters().clone());
        let stop = Arc::new(AtomicBool::new(false));
        let joined = join(a, b, stop.clone());
        Pair {
            client,
            server,
            stop,
            joined,
            counters,
        }
    }

    /// Waits for both ends; returns the counters of the client's and the server's device.
    fn finish(self) -> (Arc<PortCounters>, Arc<PortCounters>) {
        let ends = [self.client.join(), self.server.join()];
        self.stop.store(true, Ordering::Relaxed);
        self.joined.join().expect("the ports failed");
        for end in ends {
            end.expect("an end failed");
        }
        for counters in [&self.counters.0, &self.counters.1] {
            assert_eq!(counters.drops().map(|(_, n)| n).sum::<u64>(), 0, "{counters:?}");
        }
        self.counters
    }
}

fn set_up(device: &TunDevice, host: u8) {
    let name = device.name();
    ip(&format!("address add 10.9.0.{host}/24 dev {name}"));
    ip(&format!("address add fd00:9::{host}/64 dev {name} nodad"));
    assert!(!device.is_up().unwrap());
    ip(&format!("link set {name} up"));
    assert!(device.is_up().unwrap());
}

/// Bytes that repeat only after 4 GiB, so that nothing that is lost or moved goes unseen.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32 / 4)
        .flat_map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes())
        .collect()
}

fn tcp_transfer(server_address: &'static str) {
    let to: SocketAddr = server_address.parse().unwrap();
    let content = Arc::new(pattern(24 << 20));
    let expected = content.clone();
    let pair = Pair::start(
        move || {
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE).expect("connect");
            stream.set_write_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(&content).expect("write");
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut last = Vec::new();
            stream.read_to_end(&mut last).expect("read");
            assert_eq!(last, b"done");
        },
        move |ready| {
            let listener = TcpListener::bind(to).expect("bind");
            ready();
            let (mut stream, _) = listener.accept().expect("accept");
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut received = Vec::new();
            stream.read_to_end(&mut received).expect("read");
            assert_eq!(received.len(), expected.len());
            assert!(received == *expected, "the bytes differ");
            stream.write_all(b"done").unwrap();
        },
    );
    let (client, server) = pair.finish();
    let per_read = client.rx_packets.get() / client.rx_calls.get();
    let per_write = server.tx_packets.get() / server.tx_calls.get();
    assert!(per_read >= 4, "no super-packets from the kernel: {client:?}");
    assert!(per_write >= 4, "no super-packets to the kernel: {server:?}");
}

#[test]
fn c46_tcp_v4_goes_through_super_packets_unchanged() {
    if possible("c46_tcp_v4") {
        tcp_transfer("10.9.0.2:5000");
    }
}

#[test]
fn c46_tcp_v6_goes_through_super_packets_unchanged() {
    if possible("c46_tcp_v6") {
        tcp_transfer("[fd00:9::2]:5000");
    }
}

/// Sends trains of datagrams as one UDP super-packet each; every datagram arrives whole, in order.
fn udp_trains(server_address: &'static str, size: usize) {
    const DATAGRAMS: usize = 20;
    const TRAINS: usize = 200;
    let to: SocketAddr = server_address.parse().unwrap();
    let from = SocketAddr::new(
        match to.ip() {
            IpAddr::V4(_) => "10.9.0.1".parse().unwrap(),
            IpAddr::V6(_) => "fd00:9::1".parse().unwrap(),
        },
        4000,
    );
    let train = move |number: usize| -> Vec<u8> {
        let mut bytes = pattern(DATAGRAMS * size);
        bytes.truncate((DATAGRAMS - 1) * size + size / 2);
        bytes
            .chunks_mut(size)
            .enumerate()
            .for_each(|(i, datagram)| datagram[0] = (number * DATAGRAMS + i) as u8);
        bytes
    };
    let pair = Pair::start(
        move || {
            let socket = UdpSocket::bind(from).expect("bind");
            set_segment(&socket, size as libc::c_int);
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            for number in 0..TRAINS {
                socket.send_to(&train(number), to).expect("send");
                // One train at a time: the receiver's buffer is the kernel's default.
                socket.recv(&mut [0; 16]).expect("acknowledgement");
            }
        },
        move |ready| {
            let socket = UdpSocket::bind(to).expect("bind");
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            ready();
            let mut buffer = [0; 2048];
            for number in 0..TRAINS {
                for datagram in train(number).chunks(size) {
                    let (len, sender) = socket.recv_from(&mut buffer).expect("receive");
                    assert_eq!(sender, from);
                    assert!(&buffer[..len] == datagram, "train {number}: the bytes differ");
                }
                socket.send_to(b"ok", from).unwrap();
            }
        },
    );
    let (client, server) = pair.finish();
    assert!(
        client.rx_packets.get() >= 4 * client.rx_calls.get(),
        "no super-packets from the kernel: {client:?}"
    );
    assert!(
        server.tx_packets.get() >= 4 * server.tx_calls.get(),
        "no super-packets to the kernel: {server:?}"
    );
}

fn set_segment(socket: &UdpSocket, size: libc::c_int) {
    // SAFETY: UDP_SEGMENT reads an int.
    let result = unsafe {
        let value = std::ptr::from_ref(&size).cast();
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            value,
            size_of_val(&size) as u32,
        )
    };
    assert_eq!(result, 0, "UDP_SEGMENT: {}", std::io::Error::last_os_error());
}

#[test]
fn c46_udp_v4_goes_through_super_packets_unchanged() {
    if possible("c46_udp_v4") {
        udp_trains("10.9.0.2:5000", 1200);
    }
}

#[test]
fn c46_tiny_datagrams_go_through_super_packets_unchanged() {
    if possible("c46_tiny_datagrams") {
        udp_trains("10.9.0.2:5000", 2);
    }
}

#[test]
fn c46_udp_v6_goes_through_super_packets_unchanged() {
    if possible("c46_udp_v6") {
        udp_trains("[fd00:9::2]:5000", 64);
    }
}

#[test]
fn c71_a_deleted_device_is_gone() {
    if !possible("c71_a_deleted_device_is_gone") {
        return;
    }
    in_namespace(|| {
        let (device, mut port) = create("tun0");
        set_up(&device, 1);
        let mut frames = FrameCache::new(arena());
        let mut burst = Burst::new();
        // The interface's own neighbour messages, if any.
        port.rx_burst(&mut frames, &mut burst).expect("receive");
        burst.clear_into(&mut frames);
        ip("link delete tun0");
        wait_for(&port.wait_fds(), PATIENCE);
        assert!(matches!(
            port.rx_burst(&mut frames, &mut burst),
            Err(PortError::Gone)
        ));
        (0..3).for_each(|_| burst.push(udp_packet(&mut frames)));
        assert!(matches!(
            port.tx_burst(&mut frames, &mut burst),
            Err(PortError::Gone)
        ));
        assert!(burst.is_empty());
        assert_eq!(port.counters().tx_down.get(), 3);
        assert!(device.mtu().is_err());
    });
}

fn udp_packet(frames: &mut FrameCache) -> patronus_mem::PktBuf {
    let mut pkt = frames.alloc().unwrap();
    let mut packet = [0u8; 32];
    packet[..20].copy_from_slice(&[0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 10, 9, 0, 2, 10, 9, 0, 1]);
    packet[20..28].copy_from_slice(&[0, 9, 0, 9, 0, 12, 0, 0]);
    pkt.append(32).copy_from_slice(&packet);
    pkt
}

#[test]
fn c72_writing_to_a_device_that_is_down_is_a_counted_drop() {
    if !possible("c72_writing_to_a_device_that_is_down") {
        return;
    }
    in_namespace(|| {
        let (_device, mut port) = create("tun0");
        let mut frames = FrameCache::new(arena());
        let mut burst = Burst::new();
        burst.push(udp_packet(&mut frames));
        burst.push(udp_packet(&mut frames));
        port.tx_burst(&mut frames, &mut burst).expect("down is no error");
        assert!(burst.is_empty());
        assert_eq!(
            (port.counters().tx_down.get(), port.counters().tx_packets.get()),
            (2, 0)
        );
        assert_eq!(
            port.rx_burst(&mut frames, &mut burst).expect("down is no error"),
            0
        );
    });
}

#[test]
fn c72_what_is_no_packet_is_a_counted_drop() {
    if !possible("c72_what_is_no_packet") {
        return;
    }
    in_namespace(|| {
        let (device, mut port) = create("tun0");
        set_up(&device, 1);
        let mut frames = FrameCache::new(arena());
        let mut burst = Burst::new();
        for bytes in [&b"\x00junk"[..], &b""[..], &b"\xff"[..]] {
            let mut pkt = frames.alloc().unwrap();
            pkt.append(bytes.len()).copy_from_slice(bytes);
            burst.push(pkt);
        }
        port.tx_burst(&mut frames, &mut burst).expect("junk is no error");
        assert_eq!(
            (port.counters().tx_error.get(), port.counters().tx_packets.get()),
            (3, 0)
        );
    });
}

/// A device with an address, and a socket whose datagrams go into it.
fn with_sender(mtu: u32, queues: usize, then: impl FnOnce(Vec<TunPort>, UdpSocket) + Send + 'static) {
    in_namespace(move || {
        let config = TunConfig {
            name: "tun0",
            mtu: Some(mtu),
            queues,
            ..TunConfig::default()
        };
        let (device, ports) = Tun::create(&config).expect("create");
        // Without IPv6 the kernel has nothing of its own to send.
        let _ = std::fs::write("/proc/sys/net/ipv6/conf/tun0/disable_ipv6", "1");
        ip(&format!("address add 10.9.0.1/24 dev {}", device.name()));
        ip("link set tun0 up");
        let socket = UdpSocket::bind("10.9.0.1:4000").expect("bind");
        socket.connect("10.9.0.2:5000").expect("connect");
        then(ports, socket);
    });
}

#[test]
fn c46_super_packets_stay_whole_where_a_burst_has_room() {
    if !possible("c46_super_packets_stay_whole") {
        return;
    }
    with_sender(1420, 1, |mut ports, socket| {
        let port = &mut ports[0];
        let (mut frames, mut burst) = (FrameCache::new(arena()), Burst::new());
        let mut sizes = |port: &mut TunPort, rounds: usize, room: usize| -> Vec<usize> {
            (0..rounds)
                .map(|_| {
                    while burst.room() > room {
                        burst.push(frames.alloc().expect("a frame"));
                    }
                    let received = port.rx_burst(&mut frames, &mut burst).expect("receive");
                    burst.clear_into(&mut frames);
                    received
                })
                .collect()
        };
        set_segment(&socket, 100);
        let train = |datagrams: usize| assert!(socket.send(&pattern(datagrams * 100)).is_ok());
        (0..3).for_each(|_| train(40));
        assert_eq!(sizes(port, 1, 64), [40]);
        assert!(port.has_pending());
        assert_eq!(sizes(port, 3, 64), [40, 40, 0]);
        assert!(!port.has_pending());
        // More than any burst holds.
        train(100);
        assert_eq!(sizes(port, 3, 64), [64, 36, 0]);
        // Little room from the start.
        train(40);
        train(2);
        assert_eq!(sizes(port, 5, 15), [15, 15, 12, 0, 0]);
        assert_eq!(sizes(port, 2, 0), [0, 0]);
    });
}

#[test]
fn c65_packets_of_every_size_are_received_whole() {
    if !possible("c65_packets_of_every_size") {
        return;
    }
    with_sender(65_000, 1, |mut ports, socket| {
        let (mut frames, mut burst) = (FrameCache::new(arena()), Burst::new());
        for size in [0, 1, 36, 1392, 1827, 1828, 1829, 1830, 2000, 9000, 60_000] {
            let content = pattern(size + 4)[..size].to_vec();
            assert_eq!(socket.send(&content).expect("send"), size);
            assert_eq!(
                ports[0].rx_burst(&mut frames, &mut burst).expect("receive"),
                1,
                "{size}"
            );
            let packet = burst[0].data();
            assert_eq!(packet.len(), size + 28);
            assert!(packet[28..] == content, "{size}: the bytes differ");
            let parsed = patronus_io::ip::Packet::parse(packet).expect("a packet");
            assert!(
                parsed.pseudo_sum(17, size + 8).bytes(&packet[20..]).is_valid(),
                "{size}: the checksum"
            );
            burst.clear_into(&mut frames);
        }
    });
}

#[test]
fn c72_without_frames_packets_are_counted_drops() {
    if !possible("c72_without_frames") {
        return;
    }
    with_sender(1420, 1, |mut ports, socket| {
        let small = Arena::new(&ArenaConfig {
            frames: 64,
            jumbo_frames: 0,
        })
        .expect("arena");
        let (mut frames, mut burst) = (FrameCache::new(small), Burst::new());
        let hoard: Vec<_> = std::iter::from_fn(|| frames.alloc()).collect();
        assert!(socket.send(&[1; 100]).is_ok());
        set_segment(&socket, 100);
        assert!(socket.send(&[1; 3000]).is_ok());
        assert_eq!(ports[0].rx_burst(&mut frames, &mut burst).expect("receive"), 0);
        assert_eq!(ports[0].counters().rx_no_frame.get(), 31);
        // The kernel's queue is empty: nobody spins on it.
        assert!(!ports[0].has_pending());
        assert_eq!(ports[0].rx_burst(&mut frames, &mut burst).expect("receive"), 0);
        assert_eq!(ports[0].counters().rx_no_frame.get(), 31);
        hoard.into_iter().for_each(|pkt| frames.free(pkt));
        assert!(socket.send(&[1; 3000]).is_ok());
        assert_eq!(ports[0].rx_burst(&mut frames, &mut burst).expect("receive"), 30);
    });
}

#[test]
fn several_queues_share_the_packets() {
    if !possible("several_queues") {
        return;
    }
    with_sender(1420, 3, |mut ports, _socket| {
        for flow in 0..60 {
            let socket = UdpSocket::bind(("10.9.0.1", 6000 + flow)).expect("bind");
            socket.send_to(b"hello", "10.9.0.2:5000").expect("send");
        }
        let (mut frames, mut burst) = (FrameCache::new(arena()), Burst::new());
        let counts: Vec<_> = ports
            .iter_mut()
            .map(|port| {
                let received = port.rx_burst(&mut frames, &mut burst).expect("receive");
                burst.clear_into(&mut frames);
                received
            })
            .collect();
        assert_eq!(counts.iter().sum::<usize>(), 60, "{counts:?}");
        assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    });
}

#[test]
fn without_offload_every_packet_goes_alone() {
    if !possible("without_offload") {
        return;
    }
    in_namespace(|| {
        let config = TunConfig {
            name: "tun0",
            offload: false,
            ..TunConfig::default()
        };
        let (device, mut ports) = Tun::create(&config).expect("create");
        set_up(&device, 1);
        let socket = UdpSocket::bind("10.9.0.1:5000").expect("bind");
        set_segment(&socket, 100);
        let (mut frames, mut burst) = (FrameCache::new(arena()), Burst::new());
        let counters = ports[0].counters().clone();
        socket.send_to(&pattern(2000), "10.9.0.2:5000").expect("send");
        ports[0].rx_burst(&mut frames, &mut burst).expect("receive");
        assert!(counters.rx_packets.get() >= 20);
        assert_eq!(counters.rx_packets.get(), counters.rx_calls.get());
        burst.clear_into(&mut frames);
        (0..4).for_each(|_| burst.push(udp_packet(&mut frames)));
        ports[0].tx_burst(&mut frames, &mut burst).expect("send");
        assert_eq!((counters.tx_packets.get(), counters.tx_calls.get()), (4, 4));
    });
}

#[test]
fn the_device_is_made_as_configured() {
    if !possible("the_device_is_made_as_configured") {
        return;
    }
    in_namespace(|| {
        let config = TunConfig {
            name: "patronus%d",
            queues: 3,
            mtu: Some(1280),
            ..TunConfig::default()
        };
        let (device, ports) = Tun::create(&config).expect("create");
        assert_eq!(ports.len(), 3);
        assert_eq!(device.name(), "patronus0");
        assert_eq!(device.mtu().unwrap(), 1280);
        let read = |file: &str| {
            let path = format!(
                "/proc/self/task/{}/net/dev",
                rustix::thread::gettid().as_raw_nonzero()
            );
            assert!(std::fs::read_to_string(path).unwrap().contains("patronus0"));
            let shown = Command::new("ip")
                .args(["-d", "link", "show", "patronus0"])
                .output()
                .unwrap();
            let shown = String::from_utf8(shown.stdout).unwrap();
            let mut words = shown.split_whitespace();
            words
                .find(|word| *word == file)
                .and_then(|_| words.next().map(str::to_owned))
                .expect("shown by ip")
        };
        assert_eq!(read("qlen"), "4000");
        // A limit would have the kernel take forwarded super-packets apart.
        assert_eq!(read("gso_max_segs"), "65535");
        device.set_mtu(8920).unwrap();
        assert_eq!(device.mtu().unwrap(), 8920);
        assert!(device.set_mtu(70_000).is_err());
        // A renamed interface is still the same interface.
        ip("link set patronus0 name other");
        assert_eq!((device.mtu().unwrap(), device.is_up().unwrap()), (8920, false));
    });
}

#[test]
fn errors_of_creation_keep_their_kind() {
    if !possible("errors_of_creation_keep_their_kind") {
        return;
    }
    in_namespace(|| {
        let (_device, _port) = create("tun0");
        let kind = |name| {
            Tun::create(&TunConfig {
                name,
                ..TunConfig::default()
            })
            .map(drop)
            .unwrap_err()
            .kind()
        };
        assert_eq!(kind("tun0"), ErrorKind::ResourceBusy);
        assert_eq!(kind("lo"), ErrorKind::AlreadyExists);
        assert_eq!(kind("a/b"), ErrorKind::InvalidInput);
    });
}

/// Reads events until `wanted` is among them.
fn expect_event(watch: &mut LinkWatch, wanted: LinkEvent) -> Vec<LinkEvent> {
    use std::os::fd::AsFd;
    let until = Instant::now() + PATIENCE;
    let mut events = Vec::new();
    while !events.contains(&wanted) {
        assert!(Instant::now() < until, "no {wanted:?} but {events:?}");
        wait_for(&[watch.as_fd()], Duration::from_millis(100));
        watch.read(&mut events).expect("read");
    }
    events
}

#[test]
fn c70_up_and_down_of_the_device_are_seen() {
    if !possible("c70_up_and_down") {
        return;
    }
    in_namespace(|| {
        let (device, _port) = create("tun0");
        let mut watch = LinkWatch::new(device.ifindex()).unwrap();
        let events = expect_event(&mut watch, LinkEvent::Mtu(1420));
        assert_eq!(events, [LinkEvent::Down, LinkEvent::Mtu(1420)]);
        ip("link set tun0 up");
        expect_event(&mut watch, LinkEvent::Up);
        ip("link set tun0 mtu 1300");
        assert!(
            !expect_event(&mut watch, LinkEvent::Mtu(1300)).contains(&LinkEvent::Up),
            "told twice"
        );
        ip("address add 10.9.0.1/24 dev tun0");
        expect_event(&mut watch, LinkEvent::RouteOrAddressChanged);
        ip("route add 10.10.0.0/16 dev tun0");
        expect_event(&mut watch, LinkEvent::RouteOrAddressChanged);
        ip("link set lo up");
        expect_event(&mut watch, LinkEvent::RouteOrAddressChanged);
        ip("link set tun0 down");
        expect_event(&mut watch, LinkEvent::Down);
        ip("link delete tun0");
        expect_event(&mut watch, LinkEvent::Gone);
        let mut late = LinkWatch::new(device.ifindex()).unwrap();
        expect_event(&mut late, LinkEvent::Gone);
    });
}

#[test]
fn a_device_that_moves_to_another_namespace_is_not_gone() {
    if !possible("a_device_that_moves") {
        return;
    }
    in_namespace(|| {
        let (device, mut port) = create("tun0");
        let mut watch = LinkWatch::new(device.ifindex()).unwrap();
        let (give, take) = std::sync::mpsc::channel();
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let other = start_in_namespace(move || {
            give.send(rustix::thread::gettid().as_raw_nonzero()).unwrap();
            wait.recv().unwrap();
        });
        ip(&format!("link set tun0 netns {}", take.recv().unwrap()));
        assert!(!expect_event(&mut watch, LinkEvent::Moved).contains(&LinkEvent::Gone));
        let (mut frames, mut burst) = (FrameCache::new(arena()), Burst::new());
        assert_eq!(port.rx_burst(&mut frames, &mut burst).expect("lives on"), 0);
        done.send(()).unwrap();
        other.join().unwrap();
    });
}

#[test]
fn an_overrun_of_the_watch_is_told() {
    if !possible("an_overrun_of_the_watch") {
        return;
    }
    in_namespace(|| {
        let (device, _port) = create("tun0");
        let mut watch = LinkWatch::new(device.ifindex()).unwrap();
        expect_event(&mut watch, LinkEvent::Down);
        ip("link set tun0 up");
        // More routes than the socket's buffer holds; the link goes down where nobody hears it.
        let batch: String = (0..4000)
            .map(|i| format!("route add 10.{}.{}.0/24 dev tun0\n", i / 256, i % 256))
            .collect();
        let path = std::env::temp_dir().join(format!("patronus-routes-{}", std::process::id()));
        std::fs::write(&path, batch).unwrap();
        ip(&format!("-batch {}", path.display()));
        std::fs::remove_file(&path).unwrap();
        ip("link set tun0 down");
        let events = expect_event(&mut watch, LinkEvent::Down);
        assert!(events.contains(&LinkEvent::RouteOrAddressChanged));
    });
}

/// What is persistent stays without anybody who serves it, and the next one takes it as it is, with another number of queues.
#[test]
fn a_persistent_interface_is_taken_again() {
    if !possible("a_persistent_interface_is_taken_again") {
        return;
    }
    in_namespace(|| {
        let config = |queues| TunConfig {
            name: "tun0",
            mtu: Some(1420),
            queues,
            persistent: true,
            ..TunConfig::default()
        };
        let (device, ports) = Tun::create(&config(1)).expect("create");
        let ifindex = device.ifindex();
        ip("address add 192.0.2.1/24 dev tun0");
        ip("link set tun0 up mtu 1300");
        drop((device, ports));
        let (device, ports) = Tun::create(&config(2)).expect("take");
        assert_eq!(ports.len(), 2);
        assert_eq!(device.ifindex(), ifindex);
        assert_eq!(device.mtu().expect("an MTU"), 1300, "as it was left");
        assert!(device.is_up().expect("a state"));
        drop((device, ports));
        Tun::remove("tun0").expect("remove");
        assert_eq!(Tun::remove("tun0").expect_err("gone").kind(), ErrorKind::NotFound);
    });
}
