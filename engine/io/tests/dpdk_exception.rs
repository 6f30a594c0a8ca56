//! The exception path of a DPDK port: one end of a veth pair is the NIC, which DPDK takes by packet sockets; the other one is the network, a host in a namespace of
//! its own that answers as hosts do. With PATRONUS_DPDK_NO_HUGE=1 everything runs without huge pages.
#![cfg(feature = "dpdk")]

mod common;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::{OURS, ip};
use patronus_io::dpdk::{DeviceConfig, Dpdk, DpdkPort, Options};
use patronus_io::exception::{Exception, ExceptionPath, Rule, RunningPath, SplitPort, Take};
use patronus_io::udp::{UdpConfig, UdpSockets};
use patronus_io::wan::{Link, LinkPort, QueuePlace, ways};
use patronus_io::{Port, PortCounters};
use patronus_mem::{Arena, ArenaConfig, Burst, FrameCache};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

const HOST_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const HOST_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const UDP_PORT: u16 = 51820;
const DEVICE: &str = "net_af_packet0,iface=va,blocksz=28672,framesz=1792,framecnt=512";

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

/// Runs a test in a namespace of its own, where nothing is left of it, one after the other: there is one DPDK.
fn alone(test: impl FnOnce(&mut Network) + Send + 'static) {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    // DPDK's own threads stay in the namespace in which it is started.
    let (dpdk, arena) = started();
    common::in_namespace(move || {
        test(&mut Network::new());
        assert_eq!(dpdk.held(), 0, "a driver has frames");
        assert_eq!(arena.free_frames(), arena.frames(), "somebody has frames");
    });
}

/// A host in a namespace of its own, at the other end `vb` of a veth pair. Our end `va` is the NIC, and has nothing of the kernel's.
struct Network(Child);

impl Network {
    fn new() -> Network {
        let host = Command::new("unshare").args(["-n", "sleep", "600"]).spawn();
        let host = Network(host.expect("a process in a namespace of its own"));
        let ours = namespace("thread-self");
        let start = Instant::now();
        while namespace(&host.0.id().to_string()) == ours && start.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(2));
        }
        ip("link add va address 02:00:00:00:00:0a type veth peer name vb");
        ip("link set va addrgenmode none");
        ip(&format!("link set vb netns {}", host.0.id()));
        host.ip("link set lo up");
        host.ip("link set vb addrgenmode none");
        // No super-packets, which packet sockets cut off.
        host.ip("link set vb gso_max_segs 1");
        host.ip("addr add 192.0.2.9/24 dev vb");
        host.ip("addr add 2001:db8::9/64 dev vb nodad");
        host.ip("link set vb up");
        ip("link set va up");
        host
    }

    /// Runs `ip` there.
    fn ip(&self, args: &str) {
        assert!(self.run(&format!("ip {args}")), "ip {args}");
    }

    /// Whether a command succeeds there.
    fn run(&self, command: &str) -> bool {
        let mut run = Command::new("nsenter");
        run.args(["-t", &self.0.id().to_string(), "-n"]);
        let status = run
            .args(command.split_whitespace())
            .stdout(Stdio::null())
            .status();
        status.expect("nsenter").success()
    }

    /// Runs something on a thread that is there.
    fn thread<R: Send + 'static>(&self, work: impl FnOnce() -> R + Send + 'static) -> JoinHandle<R> {
        let there = std::fs::File::open(format!("/proc/{}/ns/net", self.0.id())).expect("a namespace");
        std::thread::spawn(move || {
            // SAFETY: only this thread moves; no descriptors or memory change.
            let moved = unsafe { libc::setns(there.as_raw_fd(), libc::CLONE_NEWNET) };
            assert_eq!(moved, 0, "{}", std::io::Error::last_os_error());
            work()
        })
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn namespace(process: &str) -> String {
    let link = std::fs::read_link(format!("/proc/{process}/ns/net"));
    link.map(|path| path.display().to_string()).unwrap_or_default()
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn carrier(name: &str) -> bool {
    let output = Command::new("ip").args(["-o", "link", "show", name]).output();
    let text = String::from_utf8(output.expect("ip runs").stdout).expect("text");
    !text.contains("NO-CARRIER")
}

/// The NIC `va` over DPDK, and `eth7` that stands for it in this namespace.
struct Card {
    rule: Rule,
    port: SplitPort<DpdkPort>,
    path: RunningPath,
    heard: mpsc::Receiver<Exception>,
    ifindex: u32,
}

impl Card {
    fn new(take: &Take) -> Card {
        let (dpdk, arena) = started();
        let (device, mut ports) = dpdk.open(&DeviceConfig::new(DEVICE)).expect("a device");
        let (path, mut sides) =
            ExceptionPath::create("eth7", Box::new(Arc::clone(&device)), 1, arena).expect("a host interface");
        let ifindex = path.host().ifindex();
        let (said, heard) = mpsc::channel();
        let path = path.start(Instant::now, move |event| {
            let _ = said.send(event);
        });
        ip("link set eth7 addrgenmode none");
        ip("addr add 192.0.2.1/24 dev eth7");
        ip("addr add 2001:db8::1/64 dev eth7 nodad");
        ip("link set eth7 up");
        until("a carrier", || carrier("eth7"));
        let mut rule = Rule::new();
        rule.set(take).expect("a rule");
        let (queue, side) = (ports.pop().expect("a queue"), sides.pop().expect("a side"));
        let unfinished = device.has_unfinished_checksums();
        Card {
            port: SplitPort::new(queue, rule.sieve(), side).with_unfinished_checksums(unfinished),
            rule,
            path: path.expect("a thread"),
            heard,
            ifindex,
        }
    }

    /// Lets a worker's loop run on a thread of its own until this is dropped, which is given each burst of the engine's.
    fn work(port: impl Port + Send + 'static, mut each: impl FnMut(&Burst) + Send + 'static) -> Work {
        let stop = Arc::new(AtomicBool::new(false));
        let counters = Arc::clone(port.counters());
        let thread = std::thread::spawn({
            let stop = Arc::clone(&stop);
            let mut port = port;
            move || {
                let mut frames = FrameCache::new(started().1);
                let mut burst = Burst::new();
                while !stop.load(Ordering::Relaxed) {
                    if port.rx_burst(&mut frames, &mut burst).expect("rx") == 0 {
                        std::thread::yield_now();
                    }
                    each(&burst);
                    burst.clear_into(&mut frames);
                }
            }
        });
        Work {
            stop,
            counters,
            thread: Some(thread),
        }
    }
}

struct Work {
    stop: Arc<AtomicBool>,
    counters: Arc<PortCounters>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Work {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) && !std::thread::panicking() {
            panic!("the worker");
        }
    }
}

fn addresses() -> Vec<IpAddr> {
    vec![HOST_V4.into(), HOST_V6.into()]
}

fn transit() -> Take {
    Take::Transit {
        mac: OURS,
        addresses: addresses(),
    }
}

#[test]
fn the_host_is_reached_beside_a_loaded_engine() {
    alone(|network| {
        let card = Card::new(&transit());
        let engine = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&engine);
        let work = Card::work(card.port, move |burst| {
            count.fetch_add(burst.len() as u64, Ordering::Relaxed);
        });
        // ARP and neighbour discovery, both ways.
        assert!(network.run("ping -c 3 -i 0.05 -W 5 192.0.2.1"));
        assert!(network.run("ping -6 -c 3 -i 0.05 -W 5 2001:db8::1"));
        assert_eq!(engine.load(Ordering::Relaxed), 0, "none of it was the engine's");

        // As a DHCP client asks (RFC 2131, section 4.1).
        let server = UdpSocket::bind("0.0.0.0:67").expect("a socket");
        server.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let client = network.thread(|| {
            let client = UdpSocket::bind("0.0.0.0:68").expect("a socket");
            client.set_broadcast(true).expect("broadcasts");
            let sent = client.send_to(b"discover", "192.0.2.255:67");
            sent.expect("a broadcast");
        });
        let mut data = [0; 64];
        let (len, _) = server.recv_from(&mut data).expect("a broadcast");
        assert_eq!(&data[..len], b"discover");
        client.join().expect("the client");

        // A transfer each way, while the network sends the engine as much as it can.
        network.ip("route add 198.51.100.0/24 via 192.0.2.1");
        let over = Arc::new(AtomicBool::new(false));
        let load = network.thread({
            let over = Arc::clone(&over);
            move || {
                let socket = UdpSocket::bind("192.0.2.9:0").expect("a socket");
                while !over.load(Ordering::Relaxed) {
                    let _ = socket.send_to(&[0; 200], "198.51.100.7:9");
                }
            }
        });
        until("load", || engine.load(Ordering::Relaxed) > 1000);
        let listener = TcpListener::bind((HOST_V4, 22)).expect("a listener");
        let client = network.thread(|| {
            let mut connection = TcpStream::connect((HOST_V4, 22)).expect("a connection");
            connection.write_all(&vec![1; 1 << 20]).expect("there");
            let mut back = vec![0; 1 << 20];
            connection.read_exact(&mut back).expect("and back");
            back.iter().all(|byte| *byte == 2)
        });
        let (mut connection, _) = listener.accept().expect("a connection");
        let mut there = vec![0; 1 << 20];
        connection.read_exact(&mut there).expect("there");
        assert!(there.iter().all(|byte| *byte == 1));
        connection.write_all(&vec![2; 1 << 20]).expect("and back");
        assert!(client.join().expect("the client"));
        over.store(true, Ordering::Relaxed);
        load.join().expect("the load");
        assert!(card.path.counters().tx_packets.get() > 700);
        assert!(work.counters.rx_packets.get() > engine.load(Ordering::Relaxed));
        drop((work, card.path));
        assert_eq!(common::ifindex("eth7"), 0);
    });
}

#[test]
fn the_carrier_follows_the_other_end_and_the_mtu_the_administrator() {
    alone(|network| {
        let card = Card::new(&transit());
        let work = Card::work(card.port, |_| {});
        let hear = || card.heard.recv_timeout(PATIENCE).expect("something is said");
        assert!(matches!(hear(), Exception::Carrier(true)));
        ip("route add 198.51.100.0/24 via 192.0.2.9");
        network.ip("link set vb down");
        assert!(matches!(hear(), Exception::Carrier(false)));
        assert!(!carrier("eth7"));
        network.ip("link set vb up");
        assert!(matches!(hear(), Exception::Carrier(true)));
        until("the host is reached again", || {
            network.run("ping -c 1 -W 1 192.0.2.1")
        });
        ip("link set eth7 mtu 1400");
        assert!(matches!(hear(), Exception::Mtu(1400)));
        ip("link set eth7 mtu 1500");
        assert!(matches!(hear(), Exception::Mtu(1500)));
        ip("link set eth7 mtu 9000");
        assert!(matches!(hear(), Exception::MtuRefused(9000, _, 1500)));
        drop((work, card.path));
    });
}

#[test]
fn a_wan_link_has_its_datagrams_past_the_kernel_and_the_rest_through_it() {
    alone(|network| {
        let take = Take::Datagrams {
            addresses: addresses(),
            ports: vec![UDP_PORT],
        };
        let card = Card::new(&take);
        let ifindex = card.ifindex;
        let link = Link {
            ifindex,
            mac: OURS,
            mtu: 1500,
            udp_port: UDP_PORT,
            fwmark: 0,
        };
        let (ways, mut finder) = ways(link).expect("ways");
        let config = UdpConfig {
            port: UDP_PORT,
            ifindex,
            workers: 1,
            fwmark: 0,
            buffer_bytes: 1 << 20,
            offload: true,
        };
        let sockets = UdpSockets::bind(&config).expect("sockets");
        let place = QueuePlace::new(card.port);
        let mut port = LinkPort::new(
            place.borrow().expect("the queue"),
            sockets.worker_port(0),
            ways,
            ifindex,
        );
        assert!(port.wait_fds().is_empty(), "it is polled");
        let [queue, udp] = port.parts().map(Arc::clone);
        let mut frames = FrameCache::new(started().1);
        let mut burst = Burst::new();
        let peer = network.thread(|| {
            let peers = ["192.0.2.9:4000", "[2001:db8::9]:4000"];
            let peers = peers.map(|address| UdpSocket::bind(address).expect("a socket"));
            for (peer, to) in peers.iter().zip([IpAddr::from(HOST_V4), HOST_V6.into()]) {
                peer.set_read_timeout(Some(PATIENCE)).expect("a timeout");
                peer.send_to(b"hello", (to, UDP_PORT)).expect("hello");
                let (mut data, mut seen) = ([0; 4096], 0);
                // What comes back, and is sent back.
                while seen < 20 {
                    let (len, from) = peer.recv_from(&mut data).expect("an answer");
                    seen += 1;
                    peer.send_to(&data[..len], from).expect("again");
                }
            }
            // In two fragments, which are the host's. IPv4's are put together by the driver's packet sockets, into more than fits their frames.
            let long = peers[1].send_to(&[9; 2000], (HOST_V6, UDP_PORT));
            long.expect("a long one");
        });
        let (start, mut long, mut heard) = (Instant::now(), 0, 0);
        while long < 1 && start.elapsed() < PATIENCE {
            finder.serve(Instant::now());
            port.rx_burst(&mut frames, &mut burst).expect("rx");
            heard += burst.len();
            long += burst.iter().filter(|pkt| pkt.data() == [9; 2000]).count();
            // Answers to where it came from, from where it went to.
            port.tx_burst(&mut frames, &mut burst).expect("tx");
            std::thread::yield_now();
        }
        peer.join().expect("the peer");
        assert_eq!((long, heard), (1, 43), "2 greetings, 40 answers, a long one");
        assert!(
            queue.tx_packets.get() > 30,
            "most go by the queue: {}",
            queue.tx_packets.get()
        );
        assert!(port.counters().rx_packets.get() >= 42, "and come by it");
        assert!(udp.rx_packets.get() == 1, "but for what was in fragments");
        let _ = card.rule;
        drop((port, sockets, place, finder));
        frames.flush();
        drop(card.path);
    });
}
