//! AF_PACKET over a veth pair in a network namespace of its own: one end is the port's, the other one a packet socket that plays the network,
//! or a host with a socket of its own. What needs privileges is skipped, with a word, where there are none.

mod common;

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use common::frame::{SENDER, ethernet, ipv4, ipv6, numbered, udp};
use common::{OURS, ifindex, ip, packet_socket, readable, receive};
use patronus_io::afpacket::{ADDRESSES_MAX, PacketPort, PacketTap};
use patronus_io::ip::Sum;
use patronus_io::{Port, PortError};
use patronus_mem::{Arena, ArenaConfig, Burst, FrameCache};

const OURS_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const OURS_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const FAR_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const FAR_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 1);

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

struct Bench {
    arena: &'static Arena,
    frames: FrameCache,
    /// A packet socket on the network's end.
    network: OwnedFd,
}

fn in_namespace(test: impl FnOnce(Bench) + Send + 'static) {
    common::in_namespace(|| {
        common::veth();
        let config = ArenaConfig {
            frames: 4096,
            jumbo_frames: 8,
        };
        let arena = Arena::new(&config).expect("arena");
        test(Bench {
            arena,
            frames: FrameCache::new(arena),
            network: packet_socket("vb"),
        });
    });
}

fn addresses() -> Vec<IpAddr> {
    vec![OURS_V4.into(), OURS_V6.into()]
}

fn attach(ports: usize) -> PacketTap {
    PacketTap::attach(ifindex("va"), ports, &addresses()).expect("attach")
}

impl Bench {
    fn send(&self, frame: &[u8]) {
        common::send(&self.network, frame);
    }

    /// What the port has.
    fn got(&mut self, port: &mut PacketPort) -> Vec<Vec<u8>> {
        let mut burst = Burst::new();
        let (mut taken, mut empty) = (Vec::new(), 0);
        while empty < 20 {
            if port.rx_burst(&mut self.frames, &mut burst).expect("rx") == 0 {
                empty += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
            taken.extend(burst.iter().map(|pkt| pkt.data().to_vec()));
            burst.clear_into(&mut self.frames);
        }
        taken
    }

    fn give(&mut self, port: &mut PacketPort, frames: &[Vec<u8>]) {
        for chunk in frames.chunks(64) {
            let mut burst = Burst::new();
            for frame in chunk {
                let mut pkt = self.frames.alloc_for(frame.len()).expect("a frame");
                pkt.append(frame.len()).copy_from_slice(frame);
                burst.push(pkt);
            }
            port.tx_burst(&mut self.frames, &mut burst).expect("tx");
            assert!(burst.is_empty());
        }
    }

    fn all_frames_are_free(&mut self) {
        self.frames.flush();
        assert_eq!(self.arena.free_frames(), self.arena.frames());
    }
}

/// A counter of the host's IP: what came in, for one of its two families.
fn host_received(key: &str) -> u64 {
    let (file, name) = key.split_once(' ').expect("a file and a name");
    let text = std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).expect("counters");
    if let Some(line) = text.lines().find(|line| line.starts_with(name)) {
        return line
            .split_whitespace()
            .nth(1)
            .and_then(|n| n.parse().ok())
            .expect("a number");
    }
    let mut ip = text.lines().filter(|line| line.starts_with("Ip: "));
    let (names, values) = (ip.next().expect("names"), ip.next().expect("values"));
    let at = names.split(' ').position(|n| n == name).expect("the counter");
    values
        .split(' ')
        .nth(at)
        .and_then(|n| n.parse().ok())
        .expect("a number")
}

fn host_counts() -> [u64; 2] {
    ["snmp InReceives", "snmp6 Ip6InReceives"].map(host_received)
}

fn transit() -> Vec<Vec<u8>> {
    vec![
        ipv4(FAR_V4, 6, 0, &[0; 20]),
        ipv4(FAR_V4, 17, 0x2000, &udp(1, b"fragments too")),
        ipv4(Ipv4Addr::new(169, 255, 0, 1), 17, 0, b"nearly link-local"),
        ipv6(FAR_V6, 44, &[0; 20]),
        ipv6("fec0::1".parse().expect("address"), 59, b"nearly link-local"),
    ]
}

fn not_transit() -> Vec<Vec<u8>> {
    let [mut broadcast, mut elsewhere] = [transit()[0].clone(), transit()[0].clone()];
    broadcast[..6].fill(0xff);
    elsewhere[5] ^= 1;
    let tagged = [&transit()[0][..12], &[0x81, 0, 0, 5], &transit()[0][12..]].concat();
    vec![
        ipv4(OURS_V4, 6, 0, b"ssh"),
        ipv6(OURS_V6, 6, b"ssh"),
        ipv4(Ipv4Addr::new(224, 0, 0, 5), 89, 0, b"ospf"),
        ipv4(Ipv4Addr::new(169, 254, 1, 1), 17, 0, b"link-local"),
        ipv4(Ipv4Addr::BROADCAST, 17, 0, b"dhcp"),
        ipv6("fe80::1".parse().expect("address"), 58, b"neighbour"),
        ipv6("ff02::1".parse().expect("address"), 58, b"all nodes"),
        ethernet(0x0806, &[0; 28]),
        ethernet(0x0800, &[0x45; 19]),
        ethernet(0x86dd, &[0x60; 39]),
        broadcast,
        elsewhere,
        tagged,
    ]
}

#[test]
fn the_engine_gets_what_is_for_others_and_the_host_all_else() {
    in_namespace(|mut bench| {
        let mut tap = attach(1);
        assert!(tap.is_guarded(), "the test's kernel has programs at the ingress");
        let mut port = tap.port().expect("a port");
        let before = host_counts();
        transit().iter().for_each(|frame| bench.send(frame));
        assert_eq!(bench.got(&mut port), transit());
        assert_eq!(host_counts(), before, "the host's own stack has seen none of it");
        not_transit().iter().for_each(|frame| bench.send(frame));
        assert_eq!(bench.got(&mut port), Vec::<Vec<u8>>::new());
        let after = host_counts();
        assert!(
            after[0] >= before[0] + 4 && after[1] >= before[1] + 3,
            "{before:?} {after:?}"
        );
        // Another address becomes the host's, and one is its own no longer.
        tap.set(&[FAR_V4.into()]).expect("set");
        let [was, is] = [
            ipv4(FAR_V4, 17, 0, b"was transit"),
            ipv4(OURS_V4, 17, 0, b"is transit"),
        ];
        bench.send(&was);
        bench.send(&is);
        assert_eq!(bench.got(&mut port), std::slice::from_ref(&is));
        assert_eq!(port.counters().rx_packets.get(), 6);
        assert_eq!(port.counters().drops().map(|(_, n)| n).sum::<u64>(), 0);
        // Without the port nobody gets it, and without the tap the host does.
        drop(port);
        let before = host_counts();
        bench.send(&is);
        assert_eq!(host_counts(), before);
        drop(tap);
        bench.send(&is);
        assert_eq!(host_counts()[0], before[0] + 1);
        bench.all_frames_are_free();
    });
}

#[test]
fn a_host_that_forwards_does_not_forward_a_second_time() {
    in_namespace(|mut bench| {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("a setting of this namespace");
        ip("route add 198.51.100.0/24 via 192.0.2.77");
        ip("neigh add 192.0.2.77 lladdr 02:00:00:00:00:77 dev va nud permanent");
        let forwarded = |bench: &Bench| {
            let frames = std::iter::from_fn(|| receive(&bench.network));
            frames
                .filter(|frame| frame[6..12] == OURS && frame[12..14] == [8, 0])
                .count()
        };
        let mut frame = transit().swap_remove(2);
        frame[30..34].copy_from_slice(&FAR_V4.octets());
        let sum = Sum::of(&frame[14..34]).checksum();
        frame[24..26].copy_from_slice(&sum);
        bench.send(&frame);
        assert!(forwarded(&bench) > 0, "the host forwards");
        let mut tap = attach(1);
        let mut port = tap.port().expect("a port");
        bench.send(&frame);
        assert_eq!(bench.got(&mut port), [frame]);
        assert_eq!(forwarded(&bench), 0);
    });
}

#[test]
fn what_is_sent_arrives() {
    in_namespace(|mut bench| {
        let mut tap = attach(1);
        let mut port = tap.port().expect("a port");
        for round in 0..100u16 {
            let all: Vec<_> = (0..64).map(|n| numbered(round * 64 + n)).collect();
            bench.give(&mut port, &all);
            let sent: Vec<_> = std::iter::from_fn(|| receive(&bench.network))
                .filter(|frame| frame[..12] == [2; 12])
                .collect();
            assert_eq!(sent, all, "round {round}");
        }
        let counters = std::sync::Arc::clone(port.counters());
        assert_eq!(
            [&counters.tx_packets, &counters.tx_bytes, &counters.tx_calls].map(|c| c.get()),
            [6400, 6400 * 60, 100]
        );
        // One that is too long and an empty one cost no other packet.
        let mixed = [numbered(1), vec![2; 1600], numbered(2), vec![], numbered(3)];
        bench.give(&mut port, &mixed);
        let sent: Vec<_> = std::iter::from_fn(|| receive(&bench.network))
            .filter(|frame| frame[..12] == [2; 12])
            .collect();
        assert_eq!(sent, [numbered(1), numbered(2), numbered(3)]);
        assert_eq!((counters.tx_too_big.get(), counters.tx_error.get()), (1, 1));
        // A link that is down, and up again.
        ip("link set va down");
        bench.give(&mut port, &[numbered(4), numbered(5)]);
        assert_eq!(counters.tx_down.get(), 2);
        assert_eq!(bench.got(&mut port).len(), 0);
        ip("link set va up");
        bench.give(&mut port, &[numbered(6)]);
        assert_eq!(counters.tx_packets.get(), 6404);
        // The kernel drops what the other end sends until it has noticed, some time later, that there is a carrier.
        let end = Instant::now() + PATIENCE;
        while bench.got(&mut port).is_empty() {
            assert!(Instant::now() < end, "it receives again");
            bench.send(&transit()[0]);
        }
        drop((tap, port));
        bench.all_frames_are_free();
    });
}

#[test]
fn an_interface_that_is_deleted_is_gone() {
    in_namespace(|mut bench| {
        let mut tap = attach(1);
        let mut port = tap.port().expect("a port");
        assert_eq!(bench.got(&mut port).len(), 0);
        ip("link del va");
        let mut burst = Burst::new();
        let end = Instant::now() + PATIENCE;
        let error = loop {
            assert!(Instant::now() < end, "never told");
            if let Err(error) = port.rx_burst(&mut bench.frames, &mut burst) {
                break error;
            }
        };
        assert!(matches!(error, PortError::Gone), "{error}");
        let mut pkt = bench.frames.alloc().expect("a frame");
        pkt.append(60).copy_from_slice(&numbered(1));
        burst.push(pkt);
        let error = port.tx_burst(&mut bench.frames, &mut burst).expect_err("gone");
        assert!(matches!(error, PortError::Gone), "{error}");
        assert!(burst.is_empty());
        assert_eq!(port.counters().tx_down.get(), 1);
        drop((tap, port));
        bench.all_frames_are_free();
    });
}

#[test]
fn jumbo_frames_go_both_ways() {
    in_namespace(|mut bench| {
        ip("link set va mtu 9000");
        ip("link set vb mtu 9000");
        let mut tap = attach(1);
        let mut port = tap.port().expect("a port");
        let frame = ipv4(FAR_V4, 17, 0, &udp(9, &[7; 8972]));
        assert_eq!(frame.len(), 9014);
        bench.send(&frame);
        assert_eq!(bench.got(&mut port), std::slice::from_ref(&frame));
        let mut back = frame;
        back[..12].fill(2);
        bench.give(&mut port, std::slice::from_ref(&back));
        let sent = std::iter::from_fn(|| receive(&bench.network)).find(|frame| frame[..12] == [2; 12]);
        assert_eq!(sent, Some(back));
        // More of them than there are frames for.
        let again = ipv4(FAR_V4, 17, 0, &udp(9, &[8; 8972]));
        let held: Vec<_> = std::iter::from_fn(|| bench.frames.alloc_for(9000)).collect();
        bench.send(&again);
        assert_eq!(bench.got(&mut port).len(), 0);
        assert_eq!(port.counters().rx_no_frame.get(), 1);
        drop(held);
    });
}

#[test]
fn more_than_fits_is_lost_by_name_and_nothing_leaks() {
    in_namespace(|mut bench| {
        let mut tap = attach(1);
        let mut port = tap.port().expect("a port");
        let frame = ipv4(FAR_V4, 17, 0, &udp(9, &[1; 1400]));
        for _ in 0..20_000 {
            bench.send(&frame);
        }
        let taken = bench.got(&mut port);
        assert!((1000..20_000).contains(&taken.len()), "{}", taken.len());
        assert!(taken.iter().all(|got| *got == frame));
        // The kernel is asked now and then.
        let mut burst = Burst::new();
        (0..2000).for_each(|_| assert_eq!(port.rx_burst(&mut bench.frames, &mut burst).expect("rx"), 0));
        assert_eq!(port.counters().rx_no_frame.get(), 20_000 - taken.len() as u64);
        drop((tap, port));
        bench.all_frames_are_free();
    });
}

#[test]
fn a_worker_sleeps_until_something_arrives() {
    in_namespace(|mut bench| {
        let mut tap = attach(1);
        let mut port = tap.port().expect("a port");
        bench.send(&not_transit()[0]);
        assert!(!readable(port.wait_fds()[0]) && !port.has_pending());
        bench.send(&transit()[0]);
        assert!(readable(port.wait_fds()[0]));
        assert_eq!(bench.got(&mut port).len(), 1);
        assert!(!readable(port.wait_fds()[0]) && !port.has_pending());
    });
}

#[test]
fn several_ports_share_the_flows() {
    in_namespace(|mut bench| {
        let mut tap = attach(3);
        let mut ports: Vec<_> = (0..3).map(|_| tap.port().expect("a port")).collect();
        assert!(tap.port().is_err(), "three were planned");
        // Each flow four times, and once with its ends exchanged.
        let flow = |n: u8| {
            let mut frame = ipv4(FAR_V4, 17, 0, &udp(9, b"there"));
            frame[26..30].copy_from_slice(&[10, 0, 0, n]);
            frame
        };
        let back = |mut frame: Vec<u8>| {
            let (src, dst) = (frame[26..30].to_vec(), frame[30..34].to_vec());
            frame[26..34].copy_from_slice(&[dst, src].concat());
            let ports = [&frame[36..38], &frame[34..36]].concat();
            frame[34..38].copy_from_slice(&ports);
            frame
        };
        for n in 0..=255 {
            (0..4).for_each(|_| bench.send(&flow(n)));
            bench.send(&back(flow(n)));
        }
        let all: Vec<Vec<Vec<u8>>> = ports.iter_mut().map(|port| bench.got(port)).collect();
        assert_eq!(
            all.iter().map(Vec::len).sum::<usize>(),
            256 * 5,
            "each frame once"
        );
        let mut seen = HashSet::new();
        for got in &all {
            assert!(got.len() > 100, "a share: {}", got.len());
            let here: HashSet<_> = got
                .iter()
                .map(|f| if f[26] == 10 { f[29] } else { f[33] })
                .collect();
            assert_eq!(got.len(), here.len() * 5, "flows are not torn");
            assert!(here.iter().all(|flow| seen.insert(*flow)));
        }
        // One that goes leaves its flows to the others.
        ports.pop();
        (0..=255).for_each(|n| bench.send(&flow(n)));
        let left: usize = ports.iter_mut().map(|port| bench.got(port).len()).sum();
        assert_eq!(left, 256);
        // And another one can be had in its place.
        ports.push(tap.port().expect("a port"));
        (0..=255).for_each(|n| bench.send(&flow(n)));
        let shares: Vec<_> = ports.iter_mut().map(|port| bench.got(port).len()).collect();
        assert!(shares.iter().all(|share| *share > 20), "{shares:?}");
        assert_eq!(shares.iter().sum::<usize>(), 256);
    });
}

/// Whether the checksums of an IP packet with TCP or UDP in it are right.
fn checksums_verify(packet: &[u8]) -> bool {
    let (header, addresses) = match packet[0] >> 4 {
        4 => (20, &packet[12..20]),
        _ => (40, &packet[8..40]),
    };
    let protocol = if header == 20 { packet[9] } else { packet[6] };
    let ip = header == 40 || Sum::of(&packet[..20]).is_valid();
    let sum =
        patronus_io::ip::pseudo_sum(addresses, protocol, packet.len() - header).bytes(&packet[header..]);
    ip && sum.is_valid()
}

/// The hosts of the network are real ones: their stacks leave checksums, and the cutting of super-packets, to the interface.
#[test]
fn what_the_kernel_left_undone_is_done() {
    in_namespace(|mut bench| {
        let mut tap = attach(1);
        let mut port = tap.port().expect("a port");
        // The other end routes what is for far away over us.
        ip("addr add 192.0.2.9/24 dev vb");
        ip("addr add 2001:db8::9/64 dev vb nodad");
        for (v, net, via) in [
            ("-4", "198.51.100.0/24", "192.0.2.50"),
            ("-6", "2001:db8:9::/48", "2001:db8::50"),
        ] {
            ip(&format!(
                "{v} neigh add {via} lladdr 02:00:00:00:00:0a dev vb nud permanent"
            ));
            ip(&format!("{v} route add {net} via {via} dev vb"));
        }
        for (from, to) in [
            ("192.0.2.9:0", "198.51.100.1:9"),
            ("[2001:db8::9]:0", "[2001:db8:9::1]:9"),
        ] {
            let socket = std::net::UdpSocket::bind(from).expect("bind");
            socket.connect(to).expect("connect");
            socket.send(&[5; 700]).expect("send");
            let got = bench.got(&mut port);
            assert_eq!(got.len(), 1);
            assert!(checksums_verify(&got[0][14..]), "{to}: a partial checksum");
            rustix::net::sockopt::set_socket_send_buffer_size(&socket, 1 << 20).expect("room");
            let segment: libc::c_int = 500;
            // SAFETY: the option reads an int.
            let rc = unsafe {
                use std::os::fd::AsRawFd;
                let value = (&raw const segment).cast();
                libc::setsockopt(socket.as_raw_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, value, 4)
            };
            assert_eq!(rc, 0);
            // More packets than a burst holds, and one that is shorter.
            let payload: Vec<u8> = (0..500 * 64 + 77u32).map(|n| (n % 251) as u8).collect();
            let (one, two) = payload.split_at(500 * 40);
            let calls = port.counters().rx_calls.get();
            socket.send(one).expect("send");
            socket.send(two).expect("send");
            let got = bench.got(&mut port);
            assert_eq!(got.len(), 65, "{to}");
            assert!(
                port.counters().rx_calls.get() < calls + 10,
                "they came as super-packets"
            );
            let header = 14 + if to.starts_with('[') { 40 } else { 20 } + 8;
            let all: Vec<u8> = got.iter().flat_map(|frame| frame[header..].to_vec()).collect();
            assert_eq!(all, payload);
            for frame in &got {
                assert!(checksums_verify(&frame[14..]), "{to}: {} bytes", frame.len());
                assert_eq!(frame[..6], OURS);
            }
        }
        assert_eq!(port.counters().drops().map(|(_, n)| n).sum::<u64>(), 0);
    });
}

/// A TCP connection through the port, which sends everything back to where it came from with addresses exchanged: the kernel talks to
/// itself over us, with all its offloads.
#[test]
fn tcp_runs_through_the_port() {
    use std::io::{Read, Write};
    in_namespace(|mut bench| {
        let mut tap = attach(1);
        let mut port = tap.port().expect("a port");
        ip("addr add 192.0.2.9/24 dev vb");
        ip("neigh add 192.0.2.50 lladdr 02:00:00:00:00:0a dev vb nud permanent");
        ip("route add 198.51.100.0/24 via 192.0.2.50 dev vb src 192.0.2.9");
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let done = std::sync::Arc::clone(&stop);
        let listener = std::net::TcpListener::bind("192.0.2.9:7000").expect("listen");
        // What is for 198.51.100.1 comes from there to 192.0.2.9, on the same port.
        let client = std::thread::spawn(move || {
            let mut stream = std::net::TcpStream::connect("198.51.100.1:7000").expect("connect");
            let data: Vec<u8> = (0..4_000_000u32).map(|n| (n % 253) as u8).collect();
            stream.write_all(&data).expect("write");
            stream.shutdown(std::net::Shutdown::Write).expect("shut down");
            let mut end = Vec::new();
            stream.read_to_end(&mut end).expect("read");
            data
        });
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accept");
            let mut data = Vec::new();
            stream.read_to_end(&mut data).expect("read");
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            data
        });
        let (mut burst, end) = (Burst::new(), Instant::now() + 3 * PATIENCE);
        let mut quiet = 0;
        while quiet < 50 {
            assert!(
                Instant::now() < end,
                "{:?}",
                port.counters().named().collect::<Vec<_>>()
            );
            if port.rx_burst(&mut bench.frames, &mut burst).expect("rx") == 0 {
                readable(port.wait_fds()[0]);
                quiet += usize::from(stop.load(std::sync::atomic::Ordering::Relaxed));
            }
            for pkt in burst.iter_mut() {
                turn_round(pkt.data_mut());
            }
            port.tx_burst(&mut bench.frames, &mut burst).expect("tx");
        }
        let (sent, got) = (client.join().expect("client"), server.join().expect("server"));
        assert!(sent == got, "{} of {} bytes", got.len(), sent.len());
        let counters = port.counters();
        let unsent: u64 = ["rx_malformed", "tx_too_big", "tx_error"]
            .map(|name| counters.named().find(|(n, _)| *n == name).expect("a counter").1)
            .iter()
            .sum();
        assert_eq!(unsent, 0, "{:?}", counters.named().collect::<Vec<_>>());
    });
}

/// From 192.0.2.9 to 198.51.100.1 becomes from 198.51.100.1 to 192.0.2.9: the checksums stay right.
fn turn_round(frame: &mut [u8]) {
    let (to, from) = frame[..12].split_at_mut(6);
    to.swap_with_slice(from);
    let (src, dst) = frame[26..34].split_at_mut(4);
    src.swap_with_slice(dst);
}

#[test]
fn every_number_of_addresses_makes_a_filter() {
    in_namespace(|mut bench| {
        let mut tap = attach(1);
        let mut port = tap.port().expect("a port");
        let v4 = |n: usize| IpAddr::from([10, 0, 0, n as u8]);
        let v6 = |n: usize| IpAddr::from([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n as u8]);
        for count in [0, 1, ADDRESSES_MAX] {
            let some_v4: Vec<_> = (0..count).map(v4).collect();
            let some_v6: Vec<_> = (0..count).map(v6).collect();
            let half: Vec<_> = (0..count / 2).flat_map(|n| [v4(n), v6(n)]).collect();
            for addresses in [some_v4, some_v6, half] {
                tap.set(&addresses)
                    .unwrap_or_else(|e| panic!("{count} addresses: {e}"));
                // The last of them is the host's, and one that is none is not.
                for at in (0..ADDRESSES_MAX + 1).flat_map(|n| [v4(n), v6(n)]) {
                    let frame = match at {
                        IpAddr::V4(to) => ipv4(to, 17, 0, b"to"),
                        IpAddr::V6(to) => ipv6(to, 59, b"to"),
                    };
                    bench.send(&frame);
                }
                let got = bench.got(&mut port).len();
                assert_eq!(got, 2 * (ADDRESSES_MAX + 1) - addresses.len(), "{count}");
            }
        }
    });
}

#[test]
fn what_is_wrong_is_said() {
    in_namespace(|_| {
        let refused = |ports, addresses: &[IpAddr]| match PacketTap::attach(ifindex("va"), ports, addresses) {
            Ok(_) => panic!("taken"),
            Err(error) => error.to_string(),
        };
        let many = vec![OURS_V4.into(); ADDRESSES_MAX + 1];
        assert!(refused(1, &many).contains("at most 64"));
        assert!(refused(0, &[]).contains("1 to 64"));
        assert!(refused(65, &[]).contains("1 to 64"));
        assert!(PacketTap::attach(999, 1, &[]).is_err(), "no such interface");
        let mut tap = attach(1);
        assert!(tap.set(&many).is_err());
        let _port = tap.port().expect("a port");
        assert!(tap.port().is_err(), "one was planned");
    });
}

#[test]
fn frames_from_others_do_not_come_from_us() {
    in_namespace(|mut bench| {
        let mut tap = attach(1);
        let mut port = tap.port().expect("a port");
        let mut own = transit().swap_remove(0);
        own[6..12].copy_from_slice(&OURS);
        bench.give(&mut port, &[own]);
        assert_eq!(bench.got(&mut port).len(), 0, "what we send is not received");
        bench.send(&transit()[0]);
        assert_eq!(bench.got(&mut port)[0][6..12], SENDER);
    });
}
