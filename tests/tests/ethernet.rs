//! Ethernet LANs of a running engine: frames that are wrong, and several queues.

use patronus_io::ip::{PROTO_UDP, Sum};
use patronus_io::netlink::Addresses;
use patronus_io::packet;
use patronus_netns::{Keys, Namespace};
use patronus_tests::{Edge, Flow, Need, Stats, eventually, host_on, may_run, ping};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

const FROM_V4: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 2);
const TO_V4: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 2);
const FROM_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 2);
const TO_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 2);

fn link_address(namespace: &Namespace, name: &'static str) -> (u32, [u8; 6]) {
    let found = namespace.run(|| {
        let ifindex = nix::net::if_::if_nametoindex(name).unwrap();
        let mac = Addresses::new().unwrap().interface(ifindex).unwrap().mac;
        (ifindex, mac.unwrap())
    });
    found.unwrap()
}

/// What becomes of a frame.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// It leaves by the other LAN.
    Forwarded,
    /// The engine counts it under this name.
    Counted(&'static str),
    /// The engine does not take it: it is the host's, like everything that is no whole IP packet to another host.
    Hosts,
}

use Fate::{Counted, Forwarded, Hosts};

/// A UDP datagram, or what is said to be one: `claimed` is the length in its header.
fn udp(claimed: u16, payload: usize) -> Vec<u8> {
    let mut bytes = [[0x9c, 0x40], [0x23, 0x28], claimed.to_be_bytes(), [0, 0]].concat();
    bytes.resize(8 + payload, 7);
    bytes
}

fn ipv4(fragment: u16, payload: &[u8]) -> Vec<u8> {
    let total = (20 + payload.len()) as u16;
    let mut bytes = vec![0x45, 0, 0, 0, 0, 9, 0, 0, 64, PROTO_UDP, 0, 0];
    bytes[2..4].copy_from_slice(&total.to_be_bytes());
    bytes[6..8].copy_from_slice(&fragment.to_be_bytes());
    bytes.extend(FROM_V4.octets());
    bytes.extend(TO_V4.octets());
    let checksum = Sum::of(&bytes).checksum();
    bytes[10..12].copy_from_slice(&checksum);
    bytes.extend(payload);
    bytes
}

fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x60, 0, 0, 0, 0, 0, next, 64];
    bytes[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
    bytes.extend(FROM_V6.octets());
    bytes.extend(TO_V6.octets());
    bytes.extend(payload);
    bytes
}

/// With one byte or several changed, and the IPv4 header's checksum right again.
fn changed(mut packet: Vec<u8>, at: usize, with: &[u8]) -> Vec<u8> {
    packet[at..at + with.len()].copy_from_slice(with);
    packet[10..12].fill(0);
    let checksum = Sum::of(&packet[..20]).checksum();
    packet[10..12].copy_from_slice(&checksum);
    packet
}

/// Extension headers, each of eight bytes, before a UDP datagram: destination options (60) that say nothing.
fn extensions(count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for left in (0..count).rev() {
        let next = if left == 0 { PROTO_UDP } else { 60 };
        bytes.extend([next, 0, 1, 4, 0, 0, 0, 0]);
    }
    bytes.extend(udp(12, 4));
    bytes
}

/// What the kernel had no frame for, which it tells when it is asked.
const BY_KERNEL: &str = ".rx_no_frame";
const BAD_LENGTH: Fate = Counted(".drop.route-bad-length");

/// What it is, EtherType, packet, and what becomes of it by AF_XDP and by packet sockets.
type Frame = (&'static str, [u8; 2], Vec<u8>, [Fate; 2]);

fn frames() -> Vec<Frame> {
    let (v4, v6) = ([0x08, 0x00], [0x86, 0xdd]);
    let whole = ipv4(0, &udp(12, 4));
    let both = |fate| [fate, fate];
    vec![
        ("a whole packet", v4, whole.clone(), both(Forwarded)),
        ("no packet at all", v4, vec![], both(Hosts)),
        ("half an IPv4 header", v4, whole[..10].to_vec(), both(Hosts)),
        (
            "half an IPv6 header",
            v6,
            ipv6(17, &udp(12, 4))[..30].to_vec(),
            both(Hosts),
        ),
        (
            "no version of IP",
            v4,
            changed(whole.clone(), 0, &[0x55]),
            both(Counted(".drop.route-not-ip")),
        ),
        (
            "a header of 16 bytes",
            v4,
            changed(whole.clone(), 0, &[0x44]),
            both(BAD_LENGTH),
        ),
        (
            "a header longer than the packet",
            v4,
            changed(whole.clone(), 0, &[0x4f]),
            both(BAD_LENGTH),
        ),
        (
            "an IPv4 length above the frame's",
            v4,
            changed(whole.clone(), 2, &[5, 0]),
            both(BAD_LENGTH),
        ),
        (
            "an IPv4 length below the header's",
            v4,
            changed(whole.clone(), 2, &[0, 19]),
            both(BAD_LENGTH),
        ),
        (
            "an IPv6 length above the frame's",
            v6,
            {
                let mut packet = ipv6(17, &udp(12, 4));
                packet[4] = 4;
                packet
            },
            both(BAD_LENGTH),
        ),
        // A router looks at IP headers alone (RFC 1812, section 5.2.2).
        (
            "a UDP length above the packet's",
            v4,
            ipv4(0, &udp(999, 4)),
            both(Forwarded),
        ),
        (
            "a UDP length below its header's",
            v4,
            ipv4(0, &udp(3, 4)),
            both(Forwarded),
        ),
        (
            "half a UDP header",
            v4,
            ipv4(0, &udp(12, 0)[..5]),
            both(Forwarded),
        ),
        (
            "padding behind the packet",
            v4,
            [whole.clone(), vec![0xee; 30]].concat(),
            both(Forwarded),
        ),
        (
            "the first fragment",
            v4,
            ipv4(0x2000, &udp(1000, 8)),
            both(Forwarded),
        ),
        ("a later fragment", v4, ipv4(0x2001, &[5; 16]), both(Forwarded)),
        (
            "an extension header",
            v6,
            ipv6(60, &extensions(1)),
            both(Forwarded),
        ),
        (
            "a fragment header",
            v6,
            ipv6(44, &[&[17, 0, 0, 1, 0, 0, 0, 9][..], &udp(12, 4)].concat()),
            both(Forwarded),
        ),
        (
            "more extension headers than anybody needs",
            v6,
            ipv6(60, &extensions(40)),
            both(BAD_LENGTH),
        ),
        (
            "extension headers that run off the packet",
            v6,
            ipv6(60, &[17, 200, 0, 0, 0, 0, 0, 0]),
            both(BAD_LENGTH),
        ),
        (
            "a VLAN's",
            [0x81, 0x00],
            [&[0, 5, 0x08, 0x00][..], &whole].concat(),
            both(Hosts),
        ),
        (
            "a provider's VLAN's",
            [0x88, 0xa8],
            [&[0, 5, 0x08, 0x00][..], &whole].concat(),
            both(Hosts),
        ),
        ("another protocol", [0x88, 0xb5], whole.clone(), both(Hosts)),
        (
            "a time to live that ends here",
            v4,
            changed(whole.clone(), 8, &[1]),
            both(Counted(".drop.route-ttl")),
        ),
        // The queue's frames are too short for it; the kernel drops it and counts it for us.
        (
            "longer than any frame of an Ethernet",
            v4,
            ipv4(0, &udp(2008, 2000)),
            [Counted(BY_KERNEL), Counted(".drop.route-too-big")],
        ),
    ]
}

/// What counters count, but for the way there: packets forwarded, and packets that disappeared by their reason.
fn told(after: &Stats, before: &Stats) -> BTreeMap<String, u64> {
    let mut told = after.since(before);
    told.retain(|name, _| {
        name.contains(".drop.")
            || name.starts_with("right.") && name.ends_with(".tx_packets")
            || ["rx_malformed", "rx_no_frame", "tx_too_big", "tx_error"]
                .iter()
                .any(|end| name.ends_with(end))
    });
    told
}

struct Bench {
    edge: Edge,
    left: Namespace,
    _right: Namespace,
    socket: OwnedFd,
    link: Vec<u8>,
}

impl Bench {
    /// An engine with two LANs, and a host on each. The left one's end takes packets of `mtu` bytes.
    fn new(port: &str, mtu: u32) -> Bench {
        let site = Namespace::new("site").unwrap();
        let left = host_on(&site, "left", 1, 1).unwrap();
        let right = host_on(&site, "right", 2, 1).unwrap();
        // So that a frame may be too long for the other LAN, and for a queue's frames.
        site.ip("link set left mtu 3000").unwrap();
        left.ip(&format!("link set eth0 mtu {mtu}")).unwrap();
        let lan = |name: &str| format!("[[lan]]\nname = '{name}'\nport = '{port}'\ninterface = '{name}'\n");
        let keys = Keys::generate().unwrap();
        let edge = Edge::start(&site, &keys, &format!("{}{}", lan("left"), lan("right"))).unwrap();
        let (_, gateway) = link_address(&site, "left");
        let (ifindex, own) = link_address(&left, "eth0");
        let socket = left.run(|| packet::sender(ifindex)).unwrap().unwrap();
        let bench = Bench {
            edge,
            left,
            _right: right,
            socket,
            link: [gateway, own].concat(),
        };
        bench.works();
        bench
    }

    fn works(&self) {
        for to in [IpAddr::from(TO_V4), TO_V6.into()] {
            let reaches = || {
                let said = ping(&self.left, &format!("-c 1 -W 1 {to}")).unwrap();
                said.contains(" 0% packet loss")
            };
            assert!(eventually(reaches), "{to}: {}", self.edge.log());
        }
    }

    fn send(&self, kind: [u8; 2], packet: &[u8]) {
        let frame = [&self.link[..], &kind, packet].concat();
        assert_eq!(packet::send(self.socket.as_fd(), &[&frame]).unwrap(), 1);
    }

    /// What a frame changed, once there is something or, where there should be nothing, a moment later.
    fn changes(&self, kind: [u8; 2], packet: &[u8], fate: Fate) -> BTreeMap<String, u64> {
        let before = self.edge.stats().unwrap();
        self.send(kind, packet);
        let told_now = || told(&self.edge.stats().unwrap(), &before);
        match fate {
            Hosts => std::thread::sleep(Duration::from_millis(20)),
            Forwarded => assert!(eventually(|| !told_now().is_empty())),
            // The kernel is asked every so many bursts, so there have to be some.
            Counted(BY_KERNEL) => {
                let counted = || told_now().keys().any(|name| name.ends_with(BY_KERNEL));
                assert!(eventually(|| {
                    for _ in 0..50 {
                        self.send([0x08, 0x00], &ipv4(0, &udp(12, 4)));
                        std::thread::sleep(Duration::from_micros(200));
                    }
                    counted()
                }));
                let mut told = told_now();
                told.retain(|name, _| !name.ends_with(".tx_packets"));
                return told;
            }
            Counted(_) => assert!(eventually(|| !told_now().is_empty())),
        }
        told_now()
    }
}

fn bad_frames(port: &str, which: usize) {
    if !may_run(&[Need::Root]) {
        return;
    }
    let mut bench = Bench::new(port, 3000);
    for (what, kind, packet, fates) in frames() {
        let changes = bench.changes(kind, &packet, fates[which]);
        let expected: Vec<&str> = match fates[which] {
            Forwarded => vec![".tx_packets"],
            Counted(name) => vec![name],
            Hosts => vec![],
        };
        let names: Vec<&String> = changes.keys().collect();
        let right = names.len() == expected.len()
            && names.iter().zip(&expected).all(|(name, end)| name.ends_with(end));
        assert!(right, "{what}: expected {expected:?}, counted {changes:?}");
    }
    bench.works();
    assert!(bench.edge.runs(), "{}", bench.edge.log());
}

#[test]
fn bad_frames_are_counted_by_name_by_af_xdp() {
    bad_frames("af_xdp", 0);
}

#[test]
fn bad_frames_are_counted_by_name_by_packet_sockets() {
    bad_frames("af_packet", 1);
}

/// A veth whose other end has long packets runs no program in its driver: the generic path does, and that is said.
#[test]
fn where_the_driver_cannot_it_is_said_and_works() {
    if !may_run(&[Need::Root]) {
        return;
    }
    let bench = Bench::new("af_xdp", 9000);
    let said = bench.edge.log();
    let generic = "LAN left is used through AF_XDP: its program runs in the kernel's generic path";
    assert!(said.contains(generic) && !said.contains("LAN right"), "{said}");
    assert!(bench.edge.stats().unwrap().sum("left.queue0.rx_packets") > 0);
}

/// A site with two workers, whose LAN and link have two queues each.
fn with_two_queues(number: u8, other: u8, keys: &Keys, other_keys: &Keys, site: &Namespace) -> Edge {
    let text = format!(
        "workers = 2\n[[link]]\nid = 1\ninterface = 'path'\nport = 'af_xdp'\n\
         [[lan]]\nname = 'inside'\nport = 'af_xdp'\ninterface = 'lan'\n\
         [[remote]]\nname = 'other'\npublic_key = '{}'\nendpoint = '192.0.2.{other}:51820'\n\
         allowed_ips = ['192.168.{other}.0/24', 'fd00:{other}::/64']\n",
        other_keys.public
    );
    let edge = Edge::start(site, keys, &text).unwrap();
    assert!(!edge.log().contains("cannot be had"), "{number}: {}", edge.log());
    edge
}

/// Flows of a LAN's hosts come in by either queue and leave by either; each stays in order.
#[test]
fn workers_have_queues_of_their_own() {
    if !may_run(&[Need::Root]) {
        return;
    }
    let sites = [(); 2].map(|()| Namespace::new("site").unwrap());
    sites[0]
        .veth_with_queues("path", &sites[1], "path", 1500, 2)
        .unwrap();
    for (site, number) in sites.iter().zip(1..) {
        site.address("path", &format!("192.0.2.{number}/24")).unwrap();
    }
    let left = host_on(&sites[0], "lan", 1, 2).unwrap();
    let right = host_on(&sites[1], "lan", 2, 2).unwrap();
    let keys = [(); 2].map(|()| Keys::generate().unwrap());
    let edges = [
        with_two_queues(1, 2, &keys[0], &keys[1], &sites[0]),
        with_two_queues(2, 1, &keys[1], &keys[0], &sites[1]),
    ];
    // Who is asked for the way to a neighbour drops what it has no room for meanwhile.
    for to in [IpAddr::from(TO_V4), TO_V6.into()] {
        let reaches =
            || ping(&left, &format!("-c 1 -W 1 {to}")).is_ok_and(|said| said.contains(" 0% packet loss"));
        assert!(eventually(reaches), "{to}: {}{}", edges[0].log(), edges[1].log());
    }
    // Lanes of every worker, and ways of every path, before anything has to be in order.
    std::thread::sleep(Duration::from_millis(500));
    // So many that they do not all happen to be one queue's.
    let flows: Vec<Flow> = (0..32)
        .map(|number| {
            let (near, far): (IpAddr, IpAddr) = match number % 3 {
                0 => (FROM_V6.into(), TO_V6.into()),
                _ => (FROM_V4.into(), TO_V4.into()),
            };
            let (from, to) = match number % 2 {
                0 => ((&left, near), (&right, far)),
                _ => ((&right, far), (&left, near)),
            };
            Flow::between(from, &[to], Duration::from_millis(2)).unwrap()
        })
        .collect();
    std::thread::sleep(Duration::from_secs(1));
    // All at once: each waits for its last packets.
    let ends: Vec<_> = flows
        .into_iter()
        .map(|flow| std::thread::spawn(|| flow.finish()))
        .collect();
    for (number, end) in ends.into_iter().enumerate() {
        let flow = end.join().unwrap();
        let seen = (flow.lost(), flow.duplicated(), flow.in_order());
        assert_eq!(seen, (0, false, true), "flow {number}, {} sent", flow.sent);
    }
    for edge in &edges {
        let stats = edge.stats().unwrap();
        for queue in ["lan.queue0", "lan.queue1", "path.queue0", "path.queue1"] {
            for counter in ["rx_packets", "tx_packets"] {
                let some = stats.sum(&format!("{queue}.{counter}"));
                assert!(some > 100, "{queue}.{counter} is {some}: {stats:?}");
            }
        }
    }
}
