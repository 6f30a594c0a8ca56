//! Moving frames through a DPDK port, with all that stands before it on a WAN link, asks the allocator for nothing. (What the driver does in C is not seen.)
#![cfg(feature = "dpdk")]

mod common;

use std::net::{SocketAddr, UdpSocket};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use allocation_counter::measure;
use common::{OURS, Steady, ip};
use patronus_io::Port;
use patronus_io::dpdk::{DeviceConfig, Dpdk, Options};
use patronus_io::exception::{ExceptionPath, Rule, SplitPort, Take};
use patronus_io::udp::{UdpConfig, UdpSockets};
use patronus_io::wan::{Link, LinkPort, QueuePlace, ways};
use patronus_mem::{Arena, ArenaConfig, Burst, FrameCache, Outer, PktBuf};

fn started() -> (&'static Dpdk, &'static Arena) {
    static STARTED: OnceLock<(&'static Dpdk, &'static Arena)> = OnceLock::new();
    *STARTED.get_or_init(|| {
        let config = ArenaConfig {
            frames: 8192,
            jumbo_frames: 64,
        };
        let arena = Arena::new(&config).expect("arena");
        let options = Options {
            huge_pages: false,
            ..Options::default()
        };
        (Dpdk::start(&options, arena).expect("DPDK starts"), arena)
    })
}

#[test]
fn a_burst_each_way_allocates_nothing() {
    let (dpdk, arena) = started();
    let config = DeviceConfig {
        mtu: 5000,
        ..DeviceConfig::new("net_ring0")
    };
    let (_device, mut ports) = dpdk.open(&config).expect("a device");
    let port = &mut ports[0];
    let mut frames = FrameCache::new(arena);
    let mut burst = Burst::new();
    let allocations = measure(|| {
        for _ in 0..300 {
            // One in four comes and goes in several frames, one in ten is too long for the device.
            for n in 0..40usize {
                let len = if n.is_multiple_of(10) {
                    5100
                } else {
                    [60, 1400, 5000, 64][n % 4]
                };
                let mut pkt = frames.alloc_for(len).expect("a frame");
                pkt.append(len).fill(2);
                burst.push(pkt);
            }
            port.tx_burst(&mut frames, &mut burst).expect("tx");
            while port.rx_burst(&mut frames, &mut burst).expect("rx") > 0 {
                burst.clear_into(&mut frames);
            }
        }
    });
    assert_eq!(allocations.count_total, 0);
    let counters = port.counters();
    assert_eq!(counters.rx_packets.get(), 300 * 36);
    assert_eq!(
        [counters.tx_packets.get(), counters.tx_too_big.get()],
        [300 * 36, 300 * 4]
    );
}

/// What the link sends comes back by the ring and is received; what the host sends comes back and is punted.
#[test]
fn a_link_beside_the_host_allocates_nothing() {
    started();
    common::in_namespace(|| {
        let (dpdk, arena) = started();
        let (device, mut ports) = dpdk.open(&DeviceConfig::new("net_ring1")).expect("a device");
        let (path, mut sides) =
            ExceptionPath::create("eth7", Box::new(Steady), 1, arena).expect("a host interface");
        let ifindex = path.host().ifindex();
        let path = path.start(Instant::now, |_| {}).expect("a thread");
        ip("link set eth7 addrgenmode none");
        ip("addr add 192.0.2.1/24 dev eth7");
        ip("link set eth7 up");
        ip("neigh replace 192.0.2.9 lladdr 02:00:00:00:00:0a dev eth7 nud permanent");
        let link = Link {
            ifindex,
            mac: OURS,
            mtu: 1500,
            udp_port: 51820,
            fwmark: 0,
        };
        let (ways, mut finder) = ways(link).expect("ways");
        let config = UdpConfig {
            port: link.udp_port,
            ifindex,
            workers: 1,
            fwmark: 0,
            buffer_bytes: 1 << 20,
            offload: true,
        };
        let sockets = UdpSockets::bind(&config).expect("sockets");
        let mut rule = Rule::new();
        rule.set(&Take::Datagrams {
            addresses: vec!["192.0.2.9".parse().expect("an address")],
            ports: vec![4000],
        })
        .expect("a rule");
        let (queue, side) = (ports.pop().expect("a queue"), sides.pop().expect("a side"));
        let place = QueuePlace::new(SplitPort::new(queue, rule.sieve(), side));
        let queue = place.borrow().expect("the queue");
        let mut port = LinkPort::new(queue, sockets.worker_port(0), ways, ifindex);
        let host = UdpSocket::bind("192.0.2.1:0").expect("a socket");
        let discard: SocketAddr = "192.0.2.9:9".parse().expect("an address");
        let to = Outer::new("192.0.2.9:4000".parse().expect("an address"));
        let (mut frames, mut burst) = (FrameCache::new(arena), Burst::new());
        // Of those with this content, how many came back.
        let mut round = |on_the_way: usize, content: u8| {
            for _ in 0..on_the_way {
                let mut pkt = frames.alloc().expect("a frame");
                pkt.append(100).fill(content);
                *pkt.outer_mut() = to;
                burst.push(pkt);
            }
            let _ = host.send_to(b"of the host's", discard);
            port.tx_burst(&mut frames, &mut burst).expect("tx");
            let mut received = 0;
            while port.rx_burst(&mut frames, &mut burst).expect("rx") > 0 {
                let of_these = |pkt: &&PktBuf| pkt.data().last() == Some(&content);
                received += burst.iter().filter(of_these).count();
                burst.clear_into(&mut frames);
            }
            received
        };
        // Until the way is known, and the host has been heard. What goes by the kernel before that may come back later, hence
        // another content than what is counted.
        let start = Instant::now();
        while round(1, 1) == 0 || path.counters().rx_packets.get() == 0 {
            assert!(start.elapsed() < Duration::from_secs(30), "a way");
            finder.serve(start);
        }
        let (mut received, punted) = (0, path.counters().tx_packets.get());
        let allocations = measure(|| received = (0..500).map(|_| round(40, 2)).sum());
        assert_eq!(allocations.count_total, 0);
        assert_eq!(received, 500 * 40, "past the kernel");
        while path.counters().tx_packets.get() == punted {
            assert!(start.elapsed() < Duration::from_secs(30), "nothing was punted");
            round(0, 2);
        }
        drop((port, place, sockets, finder, rule));
        frames.flush();
        drop((path, device));
    });
}
