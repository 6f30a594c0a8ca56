//! What a packet costs in the UDP port: CPU nanoseconds of sending and of receiving, over the loopback device.
//!
//! `cargo run --release -p patronus-io --example udp_cost [ROUNDS]`
//!
//! One thread sends a burst and then receives it, so that both halves can be measured apart by the thread's CPU clock. Sending
//! over the loopback device includes the kernel's half of receiving, up to the socket's queue. Prints median and minimum of the rounds; the
//! variants take turns within each round.

use std::net::SocketAddr;

use patronus_io::Port;
use patronus_io::udp::{UdpConfig, UdpPort, UdpSockets};
use patronus_mem::{Arena, ArenaConfig, BURST_MAX, Burst, FrameCache, Outer};
use rustix::time::{ClockId, clock_gettime};

/// Bursts per round and variant.
const BURSTS: usize = 2000;

struct Variant {
    len: usize,
    offload: bool,
    tx: UdpPort,
    rx: UdpPort,
    outer: Outer,
    costs: Vec<(f64, f64)>,
}

impl Variant {
    fn new(len: usize, offload: bool) -> Variant {
        let config = UdpConfig {
            ifindex: 0,
            port: 0,
            workers: 1,
            fwmark: 0,
            buffer_bytes: 8 << 20,
            offload,
        };
        let sockets = [(), ()].map(|()| UdpSockets::bind(&config).expect("sockets"));
        let to = SocketAddr::from(([127, 0, 0, 1], sockets[1].port()));
        let mut outer = Outer::new(to);
        outer.set_local(Some(to.ip()), 0);
        let (tx, rx) = (sockets[0].worker_port(0), sockets[1].worker_port(0));
        Variant {
            len,
            offload,
            tx,
            rx,
            outer,
            costs: Vec::new(),
        }
    }

    fn round(&mut self, frames: &mut FrameCache) {
        let (mut tx_ns, mut rx_ns, mut packets) = (0, 0, 0);
        let mut burst = Burst::new();
        for _ in 0..BURSTS {
            while burst.room() > 0 {
                let mut pkt = frames.alloc().expect("a frame");
                pkt.append(self.len);
                *pkt.outer_mut() = self.outer;
                burst.push(pkt);
            }
            let begin = cpu_ns();
            self.tx.tx_burst(frames, &mut burst).expect("send");
            let sent = cpu_ns();
            let mut received = 0;
            while received < BURST_MAX {
                let n = self.rx.rx_burst(frames, &mut burst).expect("receive");
                assert_ne!(n, 0, "packets of {} B were lost", self.len);
                assert!(burst.iter().all(|pkt| pkt.len() == self.len));
                received += n;
                burst.clear_into(frames);
            }
            tx_ns += sent - begin;
            rx_ns += cpu_ns() - sent;
            packets += received;
        }
        self.costs
            .push((tx_ns as f64 / packets as f64, rx_ns as f64 / packets as f64));
    }

    fn print(&self) {
        let median_and_least = |mut values: Vec<f64>| {
            values.sort_by(f64::total_cmp);
            (values[values.len() / 2], values[0])
        };
        let tx = median_and_least(self.costs.iter().map(|cost| cost.0).collect());
        let rx = median_and_least(self.costs.iter().map(|cost| cost.1).collect());
        let offload = if self.offload { "yes" } else { "no" };
        println!(
            "{:>5} {offload:>8} {:>7.0} {:>5.0} {:>8.0} {:>5.0}",
            self.len, tx.0, tx.1, rx.0, rx.1
        );
    }
}

/// CPU time of this thread in nanoseconds.
fn cpu_ns() -> u64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn main() {
    let rounds = std::env::args()
        .nth(1)
        .map_or(5, |text| text.parse().expect("a number of rounds"));
    let arena = Arena::new(&ArenaConfig {
        frames: 4096,
        jumbo_frames: 0,
    })
    .expect("arena");
    let mut frames = FrameCache::new(arena);
    let mut variants: Vec<Variant> = [(96, true), (96, false), (1452, true), (1452, false)]
        .map(|(len, offload)| Variant::new(len, offload))
        .into();
    for _ in 0..rounds {
        for variant in &mut variants {
            variant.round(&mut frames);
        }
    }
    println!("CPU ns a packet, bursts of {BURST_MAX}, {rounds} rounds");
    println!("bytes  offload  tx median  min  rx median  min");
    variants.iter().for_each(Variant::print);
}
