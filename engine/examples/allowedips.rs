//! Measures the allowed-ips table: time to build it, its size, and nanoseconds per lookup.
//!
//! `cargo run --release -p patronus-engine --example allowedips`
//!
//! Addresses are drawn from the prefixes, in random order, so that every lookup goes another way through the table.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use patronus_crypto::PeerId;
use patronus_engine::allowedips::{AllowedIpsConfig, Prefix};
use rustix::time::{ClockId, clock_gettime};

/// Addresses looked up in one measurement.
const LOOKUPS: usize = 1 << 18;

/// Measurements of which the fastest counts.
const ROUNDS: usize = 15;

/// xorshift64*: the same table in every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn address(&mut self, v6: bool) -> IpAddr {
        if v6 {
            IpAddr::V6(Ipv6Addr::from_bits(
                u128::from(self.next()) << 64 | u128::from(self.next()),
            ))
        } else {
            IpAddr::V4(Ipv4Addr::from_bits(self.next() as u32))
        }
    }

    /// A prefix of a length as in the internet's tables: half of them /24 (or /48), others from /8 (or /16) on.
    fn prefix(&mut self, v6: bool) -> Prefix {
        let (short, long) = if v6 { (16, 48) } else { (8, 24) };
        let cidr = if self.next().is_multiple_of(2) {
            long
        } else {
            short + self.next() % (long - short)
        };
        Prefix::new(self.address(v6), cidr as u8).expect("a length that the family has")
    }

    /// An address of this network.
    fn inside(&mut self, prefix: Prefix) -> IpAddr {
        let cidr = u32::from(prefix.cidr());
        match (prefix.addr(), self.address(prefix.addr().is_ipv6())) {
            (IpAddr::V4(net), IpAddr::V4(host)) => {
                IpAddr::V4(net | Ipv4Addr::from_bits(host.to_bits() & u32::MAX.unbounded_shr(cidr)))
            }
            (IpAddr::V6(net), IpAddr::V6(host)) => {
                IpAddr::V6(net | Ipv6Addr::from_bits(host.to_bits() & u128::MAX.unbounded_shr(cidr)))
            }
            (net, _) => net,
        }
    }
}

fn main() {
    println!("{:<22} {:>9} {:>9} {:>9}", "table", "build ms", "KiB", "ns");
    for v6 in [false, true] {
        for count in [1, 16, 1_000, 10_000, 100_000, 1_000_000] {
            measure(v6, count);
        }
    }
}

fn measure(v6: bool, count: usize) {
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let mut config = AllowedIpsConfig::new();
    let prefixes: Vec<Prefix> = (0..count).map(|_| numbers.prefix(v6)).collect();
    for prefix in &prefixes {
        config.insert(*prefix, PeerId((numbers.next() % 10_000) as u32));
    }
    let (build, table) = fastest(|| config.compile());

    let addrs: Vec<IpAddr> = (0..LOOKUPS)
        .map(|_| {
            let prefix = prefixes[numbers.next() as usize % count];
            numbers.inside(prefix)
        })
        .collect();
    let per_lookup = if v6 {
        let addrs = addrs.iter().filter_map(|addr| match addr {
            IpAddr::V6(ip) => Some(ip.octets()),
            IpAddr::V4(_) => None,
        });
        lookups(&addrs.collect::<Vec<_>>(), |addr| table.lookup_v6(addr))
    } else {
        let addrs = addrs.iter().filter_map(|addr| match addr {
            IpAddr::V4(ip) => Some(ip.octets()),
            IpAddr::V6(_) => None,
        });
        lookups(&addrs.collect::<Vec<_>>(), |addr| table.lookup_v4(addr))
    };
    println!(
        "{:<22} {:>9.2} {:>9} {per_lookup:>9.1}",
        format!("IPv{} {count}", if v6 { 6 } else { 4 }),
        build.as_secs_f64() * 1e3,
        table.memory() >> 10,
    );
}

/// Nanoseconds per lookup, each of which depends on the one before, as nothing else would hide it.
fn lookups<A: Copy>(addrs: &[A], lookup: impl Fn(A) -> Option<PeerId>) -> f64 {
    let (time, _) = fastest(|| {
        let mut never = 0;
        for at in 0..LOOKUPS {
            // Peers are below 10,000.
            never += usize::from(lookup(addrs[(at + never) % LOOKUPS]) == Some(PeerId(20_000)));
        }
        never
    });
    time.as_secs_f64() * 1e9 / LOOKUPS as f64
}

fn fastest<T>(mut work: impl FnMut() -> T) -> (Duration, T) {
    let mut timed = || {
        let start = cpu_time();
        let result = black_box(work());
        (cpu_time() - start, result)
    };
    let mut best = timed();
    for _ in 1..ROUNDS {
        let next = timed();
        if next.0 < best.0 {
            best = next;
        }
    }
    best
}

/// Of this thread: other programs on the machine do not count.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
