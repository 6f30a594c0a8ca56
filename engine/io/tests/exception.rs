//! The exception path beside a NIC that is a ring in memory: its host interface is a real one in a network namespace, the test plays the network. What
//! needs privileges is skipped, with a word, where there are none.

mod common;

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use common::frame::{SENDER, ethernet, ipv4, ipv6, numbered, udp};
use common::{OURS, ip};
use patronus_io::exception::{
    Exception, ExceptionPath, HostInterface, INJECTED_MAX, NAMES_MAX, Nic, RING, Rule, RunningPath,
    SplitPort, Take,
};
use patronus_io::loopback::LoopbackPort;
use patronus_io::{Port, PortCounters};
use patronus_mem::{Arena, ArenaConfig, BURST_MAX, Burst, FrameCache};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

const OURS_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const OURS_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
/// Where a packet to another host goes.
const BEYOND_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

/// A NIC whose link and limits the test sets.
struct Card {
    up: AtomicBool,
    mtu: AtomicU32,
    largest: u32,
}

struct CardOf(Arc<Card>);

impl Nic for CardOf {
    fn mac(&self) -> [u8; 6] {
        OURS
    }

    fn mtu(&self) -> u32 {
        self.0.mtu.load(Ordering::Relaxed)
    }

    fn set_mtu(&self, mtu: u32) -> io::Result<()> {
        if mtu > self.0.largest {
            return Err(io::Error::other("too large for this card"));
        }
        self.0.mtu.store(mtu, Ordering::Relaxed);
        Ok(())
    }

    fn is_up(&self) -> bool {
        self.0.up.load(Ordering::Relaxed)
    }
}

struct Bench {
    arena: &'static Arena,
    frames: FrameCache,
    card: Arc<Card>,
    rule: Rule,
    port: SplitPort<LoopbackPort>,
    network: LoopbackPort,
    /// None until it is started.
    path: Option<ExceptionPath>,
}

impl Bench {
    /// A host interface `eth7` with our addresses, which is up; nothing runs yet.
    fn new() -> Bench {
        let config = ArenaConfig {
            frames: 4096,
            jumbo_frames: 4,
        };
        let arena = Arena::new(&config).expect("arena");
        let card = Arc::new(Card {
            up: AtomicBool::new(true),
            mtu: AtomicU32::new(1500),
            largest: 2000,
        });
        let nic = Box::new(CardOf(Arc::clone(&card)));
        let (path, mut sides) = ExceptionPath::create("eth7", nic, 1, arena).expect("a host interface");
        ip("link set eth7 addrgenmode none");
        ip("addr add 192.0.2.1/24 dev eth7");
        ip("addr add 2001:db8::1/64 dev eth7 nodad");
        ip("link set eth7 up");
        let mut rule = Rule::new();
        rule.set(&transit()).expect("a rule");
        let (queue, network) = LoopbackPort::pair(2048);
        Bench {
            arena,
            frames: FrameCache::new(arena),
            card,
            port: SplitPort::new(queue, rule.sieve(), sides.pop().expect("one queue")),
            rule,
            network,
            path: Some(path),
        }
    }

    fn start(&mut self) -> (RunningPath, mpsc::Receiver<Exception>) {
        let (said, heard) = mpsc::channel();
        let path = self.path.take().expect("not started before");
        let running = path.start(Instant::now, move |event| {
            let _ = said.send(event);
        });
        let running = running.expect("a thread");
        self.path = None;
        (running, heard)
    }

    /// Frames arrive by the NIC.
    fn arrive(&mut self, frames: &[Vec<u8>]) {
        for chunk in frames.chunks(BURST_MAX) {
            let mut burst = Burst::new();
            for bytes in chunk {
                let mut pkt = self.frames.alloc_for(bytes.len()).expect("a frame");
                pkt.append(bytes.len()).copy_from_slice(bytes);
                burst.push(pkt);
            }
            self.network.tx_burst(&mut self.frames, &mut burst).expect("tx");
        }
    }

    /// One poll of the worker's: the engine's frames.
    fn poll(&mut self) -> Vec<Vec<u8>> {
        let mut burst = Burst::new();
        let count = self.port.rx_burst(&mut self.frames, &mut burst).expect("rx");
        assert_eq!(count, burst.len());
        let got = burst.iter().map(|pkt| pkt.data().to_vec()).collect();
        burst.clear_into(&mut self.frames);
        got
    }

    /// What has left by the NIC.
    fn left(&mut self) -> Vec<Vec<u8>> {
        let (mut burst, mut left) = (Burst::new(), Vec::new());
        while self.network.rx_burst(&mut self.frames, &mut burst).expect("rx") > 0 {
            left.extend(burst.iter().map(|pkt| pkt.data().to_vec()));
            burst.clear_into(&mut self.frames);
        }
        left
    }

    /// Works until a frame leaves that `is` it.
    fn wait_for(&mut self, what: &str, is: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            assert_eq!(self.poll(), Vec::<Vec<u8>>::new(), "nothing of the engine's");
            if let Some(frame) = self.left().into_iter().find(|frame| is(frame)) {
                return frame;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("{what} did not come");
    }

    fn counters(&self) -> Arc<PortCounters> {
        Arc::clone(self.port.counters())
    }
}

fn addresses() -> Vec<IpAddr> {
    vec![OURS_V4.into(), OURS_V6.into()]
}

fn transit() -> Take {
    Take::Transit {
        mac: OURS,
        addresses: addresses(),
    }
}

fn arp_request() -> Vec<u8> {
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
    arp.extend(SENDER);
    arp.extend([192, 0, 2, 9]);
    arp.extend([0; 6]);
    arp.extend(OURS_V4.octets());
    let mut frame = ethernet(0x0806, &arp);
    frame[..6].fill(0xff);
    frame
}

fn carrier(name: &str) -> bool {
    let output = std::process::Command::new("ip")
        .args(["-o", "link", "show", name])
        .output();
    let text = String::from_utf8(output.expect("ip runs").stdout).expect("text");
    !text.contains("NO-CARRIER")
}

fn exists(name: &str) -> bool {
    common::ifindex(name) != 0
}

/// Waits until something is so.
fn until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn hear(heard: &mpsc::Receiver<Exception>) -> Exception {
    heard.recv_timeout(PATIENCE).expect("something is said")
}

#[test]
fn a_host_interface_is_an_ethernet_that_goes_with_its_owner() {
    common::in_namespace(|| {
        let host = HostInterface::create("eth7", OURS, 1400).expect("a host interface");
        assert_eq!((host.name(), host.mtu().expect("MTU")), ("eth7", 1400));
        assert_eq!(host.ifindex(), common::ifindex("eth7"));
        let output = std::process::Command::new("ip")
            .args(["link", "show", "eth7"])
            .output();
        let text = String::from_utf8(output.expect("ip runs").stdout).expect("text");
        assert!(text.contains("link/ether 02:00:00:00:00:0a"), "{text}");
        ip("link set eth7 up");
        assert!(!carrier("eth7"), "none before the NIC has one");
        host.set_carrier(true).expect("a carrier");
        assert!(carrier("eth7"));
        host.set_carrier(false).expect("no carrier");
        assert!(!carrier("eth7"));
        host.set_mtu(9000).expect("another MTU");
        assert_eq!(host.mtu().expect("MTU"), 9000);
        let error = HostInterface::create("eth7", OURS, 1500).expect_err("the name is taken");
        assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
        let error = HostInterface::create("lo", OURS, 1500).expect_err("the name is taken");
        assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
        let error = HostInterface::create("a name", OURS, 1500).expect_err("no name");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        let error = HostInterface::create("eth8", [1; 6], 1500).expect_err("an address of several stations");
        assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
        assert!(!exists("eth8"), "nothing is left of what failed");
        drop(host);
        assert!(!exists("eth7"));
    });
}

#[test]
fn the_engine_gets_transit_and_the_host_the_rest() {
    common::in_namespace(|| {
        let mut bench = Bench::new();
        let (running, _heard) = bench.start();
        until("carrier", || carrier("eth7"));
        let socket = UdpSocket::bind((OURS_V4, 4000)).expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let ours = ipv4(BEYOND_V4, 17, 0, &udp(7, b"to another host"));
        let mut to_host = ipv4(OURS_V4, 17, 0, &udp(4000, b"to the host"));
        let checksum = checksum(&to_host[14..34]);
        to_host[24..26].copy_from_slice(&checksum);
        bench.arrive(&[
            to_host.clone(),
            ours.clone(),
            arp_request(),
            ours.clone(),
            to_host,
        ]);
        assert_eq!(bench.poll(), [ours.clone(), ours]);
        let mut data = [0; 64];
        for _ in 0..2 {
            let (len, from) = socket.recv_from(&mut data).expect("a datagram");
            assert_eq!(&data[..len], b"to the host");
            assert_eq!(from.to_string(), "192.0.2.9:4000");
        }
        let answer = bench.wait_for("an ARP reply", |frame| frame[12..14] == [8, 6] && frame[21] == 2);
        assert_eq!(answer[..12], [SENDER, OURS].concat());
        // Neighbour discovery is to a multicast address (RFC 4861, section 7.2.2).
        socket
            .send_to(b"from the host", "192.0.2.9:4000")
            .expect("the neighbour is known from its question");
        let sent = bench.wait_for("a datagram", |frame| frame.ends_with(b"from the host"));
        assert_eq!(sent[..12], [SENDER, OURS].concat());
        // An address that the host gets later is the host's from then on.
        let mut more = addresses();
        more.push(BEYOND_V4.into());
        let take = Take::Transit {
            mac: OURS,
            addresses: more,
        };
        bench.rule.set(&take).expect("a rule");
        bench.arrive(&[ipv4(BEYOND_V4, 17, 0, &udp(7, b"to the host"))]);
        assert!(bench.poll().is_empty());
        let counters = running.counters();
        assert!(counters.tx_packets.get() >= 3 && counters.rx_packets.get() >= 2);
        drop(running);
        assert!(!exists("eth7"));
    });
}

fn checksum(header: &[u8]) -> [u8; 2] {
    let words = header.chunks_exact(2);
    let sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    (!((sum & 0xffff) as u16 + (sum >> 16) as u16)).to_be_bytes()
}

#[test]
fn what_the_host_has_no_time_for_is_a_counted_drop_and_costs_the_engine_nothing() {
    common::in_namespace(|| {
        let mut bench = Bench::new();
        // Nobody runs the path.
        let ours = ipv4(BEYOND_V4, 17, 0, &udp(7, b"to another host"));
        let (mut got, flood) = (0, vec![arp_request(); 60]);
        for _ in 0..10 {
            bench.arrive(&flood);
            bench.arrive(std::slice::from_ref(&ours));
            got += bench.poll().len();
        }
        assert_eq!(got, 10, "all of the engine's");
        let counters = bench.counters();
        assert_eq!(counters.punt_no_room.get(), 600 - RING as u64);
        assert_eq!(
            counters.drops().map(|(_, count)| count).sum::<u64>(),
            600 - RING as u64
        );
        // Their frames come back with the ports.
        let (arena, mut frames) = (bench.arena, FrameCache::new(bench.arena));
        drop(bench);
        frames.flush();
        assert_eq!(arena.free_frames(), arena.frames());
    });
}

#[test]
fn a_host_that_sends_much_does_so_a_little_at_a_time() {
    common::in_namespace(|| {
        let mut bench = Bench::new();
        let (running, _heard) = bench.start();
        until("carrier", || carrier("eth7"));
        ip("neigh add 192.0.2.9 lladdr 02:00:00:00:00:0b dev eth7");
        let socket = UdpSocket::bind((OURS_V4, 4000)).expect("a socket");
        let send = || {
            for _ in 0..400 {
                let _ = socket.send_to(b"from the host", "192.0.2.9:4000");
            }
        };
        send();
        until("the ring is full", || {
            running.counters().rx_packets.get() >= RING as u64
        });
        let ours = vec![ipv4(BEYOND_V4, 17, 0, &udp(7, b"to another host")); BURST_MAX];
        let mut sent = 0;
        while sent < 200 {
            bench.arrive(&ours);
            assert_eq!(
                bench.poll().len(),
                BURST_MAX,
                "the engine's come whole bursts at a time"
            );
            let left = bench.left().len();
            assert!(left <= INJECTED_MAX);
            sent += left;
        }
        assert_eq!(bench.counters().drops().map(|(_, count)| count).sum::<u64>(), 0);
    });
}

#[test]
fn carrier_and_mtu_follow() {
    common::in_namespace(|| {
        let mut bench = Bench::new();
        bench.card.up.store(false, Ordering::Relaxed);
        let (running, heard) = bench.start();
        ip("route add 198.51.100.0/24 via 192.0.2.9");
        std::thread::sleep(Duration::from_millis(100));
        assert!(!carrier("eth7"), "the card has none");
        bench.card.up.store(true, Ordering::Relaxed);
        assert!(matches!(hear(&heard), Exception::Carrier(true)));
        assert!(carrier("eth7"));
        bench.card.up.store(false, Ordering::Relaxed);
        assert!(matches!(hear(&heard), Exception::Carrier(false)));
        let dead = || {
            let output = std::process::Command::new("ip").args(["route", "show"]).output();
            let text = String::from_utf8(output.expect("ip runs").stdout).expect("text");
            text.lines()
                .any(|line| line.starts_with("198.51.100.0/24") && line.contains("linkdown"))
        };
        until("the route is dead", dead);
        ip("link set eth7 mtu 1400");
        assert!(matches!(hear(&heard), Exception::Mtu(1400)));
        assert_eq!(bench.card.mtu.load(Ordering::Relaxed), 1400);
        ip("link set eth7 mtu 9000");
        match hear(&heard) {
            Exception::MtuRefused(9000, error, 1400) => {
                assert_eq!(error.to_string(), "too large for this card")
            }
            other => panic!("{other:?}"),
        }
        let mtu = std::process::Command::new("ip")
            .args(["link", "show", "eth7"])
            .output();
        let text = String::from_utf8(mtu.expect("ip runs").stdout).expect("text");
        assert!(text.contains("mtu 1400"), "{text}");
        drop(running);
        assert!(!exists("eth7"));
    });
}

#[test]
fn an_interface_that_somebody_deletes_is_said() {
    common::in_namespace(|| {
        let mut bench = Bench::new();
        let (_running, heard) = bench.start();
        assert!(matches!(hear(&heard), Exception::Carrier(true)));
        ip("link del eth7");
        assert!(matches!(hear(&heard), Exception::Gone));
        bench.arrive(&[arp_request()]);
        assert!(bench.poll().is_empty());
    });
}

#[test]
fn a_connection_goes_by_the_host_interface_while_the_engine_is_busy() {
    common::in_namespace(|| {
        let mut bench = Bench::new();
        let (running, _heard) = bench.start();
        until("carrier", || carrier("eth7"));
        ip("neigh add 192.0.2.9 lladdr 02:00:00:00:00:0a dev eth7");
        let listener = TcpListener::bind((OURS_V4, 22)).expect("a listener");
        let done = Arc::new(Mutex::new(None));
        let server = std::thread::spawn({
            let done = Arc::clone(&done);
            move || {
                let (mut connection, _) = listener.accept().expect("a connection");
                let mut data = Vec::new();
                connection.read_to_end(&mut data).expect("data");
                *done.lock().expect("lock") = Some(data.len());
            }
        });
        let client = std::thread::spawn(|| {
            let mut connection = std::net::TcpStream::connect(("192.0.2.9", 22)).expect("connect");
            connection.write_all(&vec![7; 1 << 20]).expect("data");
        });
        let ours = vec![ipv4(BEYOND_V4, 17, 0, &udp(7, &[0; 1000])); 48];
        let (start, mut engine) = (Instant::now(), 0u64);
        while done.lock().expect("lock").is_none() && start.elapsed() < PATIENCE {
            bench.arrive(&ours);
            engine += bench.poll().len() as u64;
            let turned: Vec<_> = bench.left().into_iter().map(turn_round).collect();
            bench.arrive(&turned);
            engine += bench.poll().len() as u64;
        }
        client.join().expect("the client");
        server.join().expect("the server");
        assert_eq!(*done.lock().expect("lock"), Some(1 << 20));
        assert!(engine > 1000, "{engine}");
        drop(running);
    });
}

/// The network turns frames round: what the host sends to 192.0.2.9, as if 192.0.2.9 sent it to the host: both addresses change places, and no checksum changes.
fn turn_round(mut frame: Vec<u8>) -> Vec<u8> {
    if frame[12..14] == [8, 0] {
        let (from, to) = frame[26..34].split_at_mut(4);
        from.swap_with_slice(to);
    }
    frame
}

#[test]
fn a_rule_has_its_limits() {
    let mut rule = Rule::new();
    let many = Take::Transit {
        mac: OURS,
        addresses: vec![OURS_V4.into(); NAMES_MAX + 1],
    };
    assert!(
        rule.set(&many)
            .expect_err("too many")
            .to_string()
            .contains("at most 64")
    );
    let ports = Take::Datagrams {
        addresses: addresses(),
        ports: vec![1, 2, 3, 4, 5],
    };
    assert!(
        rule.set(&ports)
            .expect_err("too many")
            .to_string()
            .contains("at most 4")
    );
    let mut sieve = rule.sieve();
    sieve.refresh();
    assert!(
        !sieve.takes(&ipv4(BEYOND_V4, 17, 0, &[])),
        "nothing before there is a rule"
    );
    rule.set(&transit()).expect("a rule");
    sieve.refresh();
    assert!(sieve.takes(&ipv4(BEYOND_V4, 17, 0, &[])));
    assert!(!sieve.takes(&numbered(1)) && !sieve.takes(&ipv6(OURS_V6, 17, &[])));
    rule.clear();
    sieve.refresh();
    assert!(!sieve.takes(&ipv4(BEYOND_V4, 17, 0, &[])));
}
