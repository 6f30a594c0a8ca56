//! AF_XDP over a veth pair in a network namespace of its own: one end is the port, the other one a packet socket that plays
//! the network. What needs privileges is skipped, with a word, where there are none.

mod common;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use common::frame::{SENDER, ethernet, ipv4, ipv6, numbered, udp};
use common::{OURS, ifindex, ip, packet_socket, readable, receive};
use patronus_io::Port;
use patronus_io::xdp::{NAMES_MAX, Take, XdpMode, XdpPort, XdpProgram};
use patronus_mem::{Arena, ArenaConfig, Burst, FrameCache};

const OURS_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const OURS_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const UDP_PORT: u16 = 51820;

/// Runs a test beside a veth pair.
fn in_namespace(test: impl FnOnce(Bench) + Send + 'static) {
    common::in_namespace(|| {
        common::veth();
        test(Bench::new());
    });
}

struct Bench {
    arena: &'static Arena,
    frames: FrameCache,
    ifindex: u32,
    /// A packet socket on the network's end, and one on ours that sees what the host gets.
    network: OwnedFd,
    host: OwnedFd,
}

impl Bench {
    fn new() -> Bench {
        let config = ArenaConfig {
            frames: 8192,
            jumbo_frames: 2,
        };
        let arena = Arena::new(&config).expect("arena");
        Bench {
            arena,
            frames: FrameCache::new(arena),
            ifindex: ifindex("va"),
            network: packet_socket("vb"),
            host: packet_socket("va"),
        }
    }

    fn attach(&mut self, take: &Take) -> (XdpProgram, XdpPort) {
        let program = XdpProgram::attach(self.ifindex, 1, take).expect("attach");
        let port = program.port(0, &mut self.frames).expect("a port");
        (program, port)
    }

    fn send(&self, frame: &[u8]) {
        common::send(&self.network, frame);
    }

    /// What the port has, and what of ours the host got.
    fn got(&mut self, port: &mut XdpPort) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        let mut burst = Burst::new();
        let (mut taken, mut empty) = (Vec::new(), 0);
        // A busy machine may take its time.
        while empty < 20 {
            if port.rx_burst(&mut self.frames, &mut burst).expect("rx") == 0 {
                empty += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
            taken.extend(burst.iter().map(|pkt| pkt.data().to_vec()));
            burst.clear_into(&mut self.frames);
        }
        (taken, self.host())
    }

    /// What of ours the host got.
    fn host(&self) -> Vec<Vec<u8>> {
        let ours = |frame: &Vec<u8>| frame[6..12] == SENDER;
        std::iter::from_fn(|| receive(&self.host)).filter(ours).collect()
    }

    /// What the network got of what was sent.
    fn sent(&self) -> Vec<Vec<u8>> {
        let ours = |frame: &Vec<u8>| frame[..12] == [2; 12];
        std::iter::from_fn(|| receive(&self.network))
            .filter(ours)
            .collect()
    }

    fn all_frames_are_free(&mut self) {
        self.frames.flush();
        assert_eq!(self.arena.free_frames(), self.arena.frames());
    }
}

fn addresses() -> Vec<IpAddr> {
    vec![OURS_V4.into(), OURS_V6.into()]
}

fn datagrams(ports: &[u16]) -> Take {
    Take::Datagrams {
        addresses: addresses(),
        ports: ports.to_vec(),
    }
}

#[test]
fn a_wan_link_gives_the_engine_its_datagrams_and_the_host_the_rest() {
    in_namespace(|mut bench| {
        let (program, mut port) = bench.attach(&datagrams(&[UDP_PORT, UDP_PORT + 1]));
        let ours = [
            ipv4(OURS_V4, 17, 0, &udp(UDP_PORT, b"one")),
            ipv4(OURS_V4, 17, 0x4000, &udp(UDP_PORT + 1, &[7; 1400])),
            ipv6(OURS_V6, 17, &udp(UDP_PORT, b"three")),
        ];
        let mut options = ipv4(
            OURS_V4,
            17,
            0,
            &[&[1; 4][..], &udp(UDP_PORT, b"options")].concat(),
        );
        options[14] = 0x46;
        let vlan = [&ours[0][..12], &[0x81, 0, 0, 5], &ours[0][12..]].concat();
        let others = [
            ipv4(OURS_V4, 17, 0, &udp(UDP_PORT + 2, b"another UDP port")),
            ipv4(
                Ipv4Addr::new(192, 0, 2, 2),
                17,
                0,
                &udp(UDP_PORT, b"another host"),
            ),
            ipv4(OURS_V4, 6, 0, &udp(UDP_PORT, b"TCP")),
            ipv4(OURS_V4, 17, 0x2000, &udp(UDP_PORT, b"first fragment")),
            ipv4(OURS_V4, 17, 0x0010, &udp(UDP_PORT, b"a later one")),
            options,
            ipv6(OURS_V6, 17, &udp(UDP_PORT + 2, b"another UDP port")),
            ipv6(Ipv6Addr::LOCALHOST, 17, &udp(UDP_PORT, b"another host")),
            ipv6(OURS_V6, 44, &udp(UDP_PORT, b"a fragment header")),
            ethernet(0x0806, &[0; 28]),
            ipv4(OURS_V4, 17, 0, &[])[..34].to_vec(),
        ];
        for frame in ours.iter().chain(&others) {
            bench.send(frame);
        }
        bench.send(&vlan);
        let (taken, host) = bench.got(&mut port);
        assert_eq!(taken, ours);
        // The kernel takes the tag out before a packet socket sees the frame; the others are as they were.
        assert_eq!(host[..others.len()], others);
        assert_eq!(host.len(), others.len() + 1);
        // Other UDP ports from now on.
        program.set(&datagrams(&[UDP_PORT + 2])).expect("replace");
        bench.send(&ours[0]);
        bench.send(&others[0]);
        let (taken, host) = bench.got(&mut port);
        assert_eq!((taken.as_slice(), host.as_slice()), (&others[..1], &ours[..1]));
        assert_eq!(port.counters().rx_packets.get(), 4);
        // Without the port, and then without the program, everything is the host's.
        drop(port);
        bench.send(&others[0]);
        assert_eq!(bench.host(), &others[..1]);
        drop(program);
        bench.send(&others[0]);
        assert_eq!(bench.host(), &others[..1]);
        bench.all_frames_are_free();
    });
}

#[test]
fn a_lan_gives_the_engine_what_is_for_others() {
    in_namespace(|mut bench| {
        let take = Take::Transit {
            mac: OURS,
            addresses: addresses(),
        };
        let (_program, mut port) = bench.attach(&take);
        let far_v6 = Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 1);
        let transit = [
            ipv4(Ipv4Addr::new(198, 51, 100, 1), 6, 0, &[0; 20]),
            ipv4(
                Ipv4Addr::new(198, 51, 100, 1),
                17,
                0x2000,
                &udp(1, b"fragments too"),
            ),
            ipv6(far_v6, 44, &[0; 20]),
        ];
        let [mut broadcast, mut elsewhere] = [transit[0].clone(), transit[0].clone()];
        broadcast[..6].fill(0xff);
        elsewhere[5] ^= 1;
        let others = [
            ipv4(OURS_V4, 6, 0, b"ssh"),
            ipv6(OURS_V6, 6, b"ssh"),
            ipv4(Ipv4Addr::new(224, 0, 0, 5), 89, 0, b"ospf"),
            ipv4(Ipv4Addr::new(169, 254, 1, 1), 17, 0, b"link-local"),
            ipv4(Ipv4Addr::BROADCAST, 17, 0, b"dhcp"),
            ipv6("fe80::1".parse().expect("address"), 58, b"neighbour"),
            ipv6("ff02::1".parse().expect("address"), 58, b"all nodes"),
            ethernet(0x0806, &[0; 28]),
            broadcast,
            elsewhere,
        ];
        for frame in transit.iter().chain(&others) {
            bench.send(frame);
        }
        let (taken, host) = bench.got(&mut port);
        assert_eq!(taken, transit);
        assert_eq!(host, others);
    });
}

#[test]
fn what_is_sent_arrives_and_its_frames_come_back() {
    in_namespace(|mut bench| {
        let (program, mut port) = bench.attach(&datagrams(&[UDP_PORT]));
        for round in 0..100u16 {
            let mut burst = Burst::new();
            for n in 0..64u16 {
                let mut pkt = bench.frames.alloc().expect("a frame");
                let frame = numbered(round * 64 + n);
                pkt.append(frame.len()).copy_from_slice(&frame);
                burst.push(pkt);
            }
            port.tx_burst(&mut bench.frames, &mut burst).expect("tx");
            assert!(burst.is_empty());
            let all: Vec<_> = (0..64).map(|n| numbered(round * 64 + n)).collect();
            assert_eq!(bench.sent(), all, "round {round}");
        }
        assert_eq!(port.counters().tx_packets.get(), 6400);
        // Too long for a small frame: it cannot be lent.
        let mut burst = Burst::new();
        let mut jumbo = bench.frames.alloc_for(9000).expect("a frame");
        jumbo.append(9000);
        burst.push(jumbo);
        port.tx_burst(&mut bench.frames, &mut burst).expect("tx");
        assert_eq!(port.counters().tx_too_big.get(), 1);
        burst.push(bench.frames.alloc().expect("a frame"));
        port.tx_burst(&mut bench.frames, &mut burst).expect("tx");
        assert_eq!(port.counters().tx_error.get(), 1, "nothing is not a frame");
        // A link that is down.
        ip("link set va down");
        for _ in 0..3 {
            let mut pkt = bench.frames.alloc().expect("a frame");
            pkt.append(60).copy_from_slice(&numbered(1));
            burst.push(pkt);
            port.tx_burst(&mut bench.frames, &mut burst).expect("tx");
        }
        assert_eq!(port.counters().tx_down.get(), 2, "the first was handed over");
        assert!(!port.has_pending());
        drop((program, port));
        bench.all_frames_are_free();
    });
}

#[test]
fn more_than_fits_is_lost_by_name_and_nothing_leaks() {
    in_namespace(|mut bench| {
        let (program, mut port) = bench.attach(&datagrams(&[UDP_PORT]));
        let frame = ipv4(OURS_V4, 17, 0, &udp(UDP_PORT, b"flood"));
        let mut received = 0;
        for round in 0..3 {
            for _ in 0..5000 {
                bench.send(&frame);
            }
            let (taken, _) = bench.got(&mut port);
            assert!(
                (1000..5000).contains(&taken.len()),
                "round {round}: {}",
                taken.len()
            );
            assert!(taken.iter().all(|got| *got == frame));
            received += taken.len() as u64;
        }
        // The kernel is asked now and then.
        let mut burst = Burst::new();
        (0..2000).for_each(|_| assert_eq!(port.rx_burst(&mut bench.frames, &mut burst).expect("rx"), 0));
        assert_eq!(port.counters().rx_no_frame.get(), 15_000 - received);
        drop((program, port));
        bench.all_frames_are_free();
    });
}

#[test]
fn a_worker_sleeps_until_something_arrives() {
    in_namespace(|mut bench| {
        let (_program, mut port) = bench.attach(&datagrams(&[UDP_PORT]));
        let readable = |port: &XdpPort| readable(port.wait_fds()[0]);
        assert!(!readable(&port) && !port.has_pending());
        bench.send(&ipv4(OURS_V4, 17, 0, &udp(UDP_PORT, b"wake up")));
        assert!(readable(&port) && port.has_pending());
        assert_eq!(bench.got(&mut port).0.len(), 1);
        assert!(!readable(&port) && !port.has_pending());
    });
}

#[test]
fn every_number_of_addresses_and_ports_makes_a_program() {
    in_namespace(|mut bench| {
        let v4 = |n: usize| IpAddr::from([10, 0, 0, n as u8]);
        let v6 = |n: usize| IpAddr::from([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n as u8]);
        let (program, _port) = bench.attach(&datagrams(&[UDP_PORT]));
        for count in [0, 1, NAMES_MAX] {
            let some_v4: Vec<_> = (0..count).map(v4).collect();
            let some_v6: Vec<_> = (0..count).map(v6).collect();
            let half: Vec<_> = (0..count / 2).flat_map(|n| [v4(n), v6(n)]).collect();
            for addresses in [some_v4, some_v6, half] {
                for ports in [0, 1, NAMES_MAX] {
                    let take = Take::Datagrams {
                        addresses: addresses.clone(),
                        ports: (0..ports as u16).collect(),
                    };
                    program
                        .set(&take)
                        .unwrap_or_else(|e| panic!("{count} addresses, {ports} ports: {e}"));
                }
                let take = Take::Transit {
                    mac: [2; 6],
                    addresses,
                };
                program
                    .set(&take)
                    .unwrap_or_else(|e| panic!("{count} addresses: {e}"));
            }
        }
    });
}

/// A veth whose other end has long packets runs no program in its driver.
#[test]
fn where_the_driver_cannot_the_generic_path_does() {
    in_namespace(|mut bench| {
        let native = bench.attach(&datagrams(&[UDP_PORT]));
        assert_eq!(native.0.mode(), XdpMode::Native);
        drop(native);
        ip("link set vb mtu 9000");
        let (program, mut port) = bench.attach(&datagrams(&[UDP_PORT]));
        assert_eq!(program.mode(), XdpMode::Generic);
        let ours = ipv4(OURS_V4, 17, 0, &udp(UDP_PORT, b"ours"));
        let other = ipv4(OURS_V4, 17, 0, &udp(UDP_PORT + 1, b"the host's"));
        bench.send(&ours);
        bench.send(&other);
        assert_eq!(bench.got(&mut port), (vec![ours], vec![other]));
        let mut burst = Burst::new();
        let mut pkt = bench.frames.alloc().expect("a frame");
        pkt.append(60).copy_from_slice(&numbered(7));
        burst.push(pkt);
        port.tx_burst(&mut bench.frames, &mut burst).expect("tx");
        assert_eq!(bench.sent(), [numbered(7)]);
        drop((program, port));
        bench.all_frames_are_free();
    });
}

#[test]
fn what_is_wrong_is_said() {
    in_namespace(|mut bench| {
        let many = Take::Datagrams {
            addresses: vec![OURS_V4.into(); NAMES_MAX + 1],
            ports: vec![1],
        };
        let Err(error) = XdpProgram::attach(bench.ifindex, 1, &many) else {
            panic!("too many addresses")
        };
        assert!(error.to_string().contains("at most 64"), "{error}");
        let (program, _port) = bench.attach(&datagrams(&[UDP_PORT]));
        assert!(program.port(1, &mut bench.frames).is_err(), "there is one queue");
        assert!(program.port(0, &mut bench.frames).is_err(), "which is taken");
        assert!(
            XdpProgram::attach(999, 1, &datagrams(&[1])).is_err(),
            "no such interface"
        );
    });
}

/// A number of a sequence that is the same each time (G. Marsaglia, "Xorshift RNGs", 2003).
fn next(state: &mut u64) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state as usize
}

/// Frames that differ from those of either rule in a byte, or are cut off.
fn frames_near_the_rules() -> Vec<Vec<u8>> {
    let mut state = 0x9e37_79b9_7f4a_7c15;
    let beyond = (
        Ipv4Addr::new(198, 51, 100, 7),
        Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, 7),
    );
    let whole = [
        ipv4(OURS_V4, 17, 0, &udp(UDP_PORT, b"datagram")),
        ipv6(OURS_V6, 17, &udp(UDP_PORT, b"datagram")),
        ipv4(beyond.0, 6, 0, &[0; 20]),
        ipv6(beyond.1, 6, &[0; 20]),
    ];
    let mut frames = Vec::new();
    for round in 0..1200 {
        let mut frame = whole[round % whole.len()].clone();
        // The sender's address is how the test knows its own.
        let at = match next(&mut state) % (frame.len() - 6) {
            at @ 0..6 => at,
            at => at + 6,
        };
        frame[at] = match next(&mut state) % 4 {
            0 => [0, 0x45, 17, 0xe0, 0xff, 0xfe, 0xa9, 0x08][next(&mut state) % 8],
            1 => frame[at] ^ 1 << (next(&mut state) % 8),
            _ => next(&mut state) as u8,
        };
        if round % 3 == 0 {
            frame.truncate(14 + next(&mut state) % (frame.len() - 13));
        }
        frames.push(frame);
    }
    frames.extend(whole);
    frames
}

#[test]
fn a_sieve_takes_what_the_program_takes() {
    in_namespace(|mut bench| {
        let transit = Take::Transit {
            mac: OURS,
            addresses: addresses(),
        };
        for take in [datagrams(&[UDP_PORT, 9]), transit] {
            let (program, mut port) = bench.attach(&take);
            let mut rule = patronus_io::exception::Rule::new();
            rule.set(&take).expect("a rule");
            let mut sieve = rule.sieve();
            sieve.refresh();
            let (mut taken, frames) = (Vec::new(), frames_near_the_rules());
            for chunk in frames.chunks(64) {
                chunk.iter().for_each(|frame| bench.send(frame));
                taken.extend(bench.got(&mut port).0);
            }
            taken.retain(|frame| frame[6..12] == SENDER);
            let expected: Vec<_> = frames.into_iter().filter(|frame| sieve.takes(frame)).collect();
            assert!(expected.len() > 100, "{}", expected.len());
            assert_eq!(taken, expected);
            drop((port, program));
        }
        bench.all_frames_are_free();
    });
}
