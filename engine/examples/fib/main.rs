//! Measures the FIB beside the tables that it was chosen from: nanoseconds a lookup, bytes a route, and the price of changes.
//!
//! ```text
//! cargo run --release -p patronus-engine --example fib [ROUNDS]
//! ```
//!
//! Addresses are looked up in bursts of 32, subjects take turns, figures are medians of the rounds in the thread's own CPU time.
//! "random": addresses drawn evenly from all routes' networks; "skewed": the route of rank r with a frequency of 1/r (Zipf), an
//! address in it at random. The routes have the lengths of the internet's tables (see `routes`). The second core, if there is one, makes the
//! changes in the last measurement.

#[path = "../common/mod.rs"]
mod common;
mod routes;
mod yardsticks;

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Numbers, cpu_time, median};
use patronus_engine::fib::{FibV4, FibWriter, Group, Limits};
use patronus_sync::{Domain, Reader};
use routes::Route;

/// Addresses that are looked up in one measurement, and in one call.
const LOOKUPS: usize = 1 << 20;
const BURST: usize = 32;

/// Changes a second in the last measurement.
const CHANGES: u32 = 10_000;

/// Nanoseconds a lookup, over all addresses in bursts.
fn time<const N: usize>(addrs: &[[u8; N]], mut lookup: impl FnMut(&[[u8; N]], &mut [Option<Group>])) -> f64 {
    let mut groups = [None; BURST];
    let before = cpu_time();
    for burst in addrs.chunks(BURST) {
        lookup(black_box(burst), &mut groups);
        black_box(&groups);
    }
    (cpu_time() - before).as_nanos() as f64 / addrs.len() as f64
}

/// The last of so many measurements.
fn last(passes: usize, mut measure: impl FnMut() -> f64) -> f64 {
    (0..passes).fold(0.0, |_, _| measure())
}

/// A table with all routes in it, its domain, and how long one change took on average.
struct Loaded<const N: usize, const SLOTS: usize> {
    writer: FibWriter<N, SLOTS>,
    domain: Domain,
    reader: Reader,
    change: Duration,
}

fn load<const N: usize, const SLOTS: usize>(routes: &[Route<N>], nodes: usize) -> Loaded<N, SLOTS> {
    let (domain, mut readers) = Domain::new(1);
    let limits = Limits {
        routes: routes.len(),
        nodes,
    };
    let mut writer = FibWriter::new(&domain, limits).expect("memory");
    let before = cpu_time();
    for route in routes {
        writer
            .insert(&domain, route.prefix, route.len, route.group)
            .expect("room");
    }
    let change = (cpu_time() - before) / routes.len() as u32;
    let mut reader = readers.remove(0);
    reader.resume();
    Loaded {
        writer,
        domain,
        reader,
        change,
    }
}

/// Bytes that lookups can touch.
fn bytes<const N: usize, const SLOTS: usize>(writer: &FibWriter<N, SLOTS>) -> usize {
    4 * ((1 << 16) + SLOTS * writer.nodes())
}

fn ipv4(rounds: usize) {
    let mut numbers = Numbers::new();
    let routes = routes::internet_v4(&mut numbers);
    let loaded = load::<4, 256>(&routes, 70_000);
    let fib = Arc::clone(loaded.writer.fib());
    let dir = yardsticks::Dir24::build(&routes);
    let strides = yardsticks::Strides::build(&dir);
    let popcount = yardsticks::Popcount::build(&dir);
    println!("IPv4: {} routes, set in {:.2?} each", routes.len(), loaded.change);
    let row = |name: &str, bytes: usize| {
        println!(
            "  {name:<28} {:>6.1} MiB, {:>5.1} bytes a route",
            bytes as f64 / f64::from(1 << 20),
            bytes as f64 / routes.len() as f64
        );
    };
    println!("  {} nodes", loaded.writer.nodes());
    row("this one (16-8-8)", bytes(&loaded.writer));
    row("DIR-24-8", dir.bytes());
    row("16-8-8, never changed", strides.bytes());
    row("16-8-8 with popcounts", popcount.bytes());

    for (kind, addrs) in [
        ("random", routes::random(&mut numbers, &routes, LOOKUPS)),
        ("skewed", routes::skewed(&mut numbers, &routes, LOOKUPS)),
    ] {
        for addr in &addrs {
            let expected = dir.lookup(addr);
            assert_eq!(fib.lookup(&loaded.reader, addr), expected);
            assert_eq!(
                (strides.lookup(addr), popcount.lookup(addr)),
                (expected, expected)
            );
        }
        // Cold: the others have had the caches since. Warm: each has just looked all of it up.
        for (passes, how) in [(1, "cold"), (2, "warm")] {
            let mut found: [Vec<f64>; 4] = Default::default();
            for _ in 0..rounds {
                found[0].push(last(passes, || {
                    time(&addrs, |a, g| fib.lookup_burst(&loaded.reader, a, g))
                }));
                found[1].push(last(passes, || time(&addrs, |a, g| dir.lookup_burst(a, g))));
                found[2].push(last(passes, || time(&addrs, |a, g| strides.lookup_burst(a, g))));
                found[3].push(last(passes, || time(&addrs, |a, g| popcount.lookup_burst(a, g))));
            }
            let [ours, dir, strides, popcount] = found.map(median);
            println!(
                "  {kind}, {how}: ours {ours:.2} ns, DIR-24-8 {dir:.2}, 16-8-8 {strides:.2}, popcount {popcount:.2}; \
                 lookups of DIR-24-8's: {:.2}",
                dir / ours
            );
        }
        under_changes(rounds, &routes, &addrs, kind);
    }
}

fn ipv6(rounds: usize) {
    let mut numbers = Numbers::new();
    let routes = routes::internet_v6(&mut numbers);
    let loaded = load::<16, 16>(&routes, 1_200_000);
    let fib = Arc::clone(loaded.writer.fib());
    let bytes = bytes(&loaded.writer);
    println!(
        "IPv6: {} routes, set in {:.2?} each; {:.1} MiB, {:.1} bytes a route",
        routes.len(),
        loaded.change,
        bytes as f64 / f64::from(1 << 20),
        bytes as f64 / routes.len() as f64
    );
    for (kind, addrs) in [
        ("random", routes::random(&mut numbers, &routes, LOOKUPS)),
        ("skewed", routes::skewed(&mut numbers, &routes, LOOKUPS)),
    ] {
        let once = |_| time(&addrs, |a, g| fib.lookup_burst(&loaded.reader, a, g));
        println!("  {kind}: {:.2} ns", median((0..rounds).map(once).collect()));
    }
}

/// Lookups while another thread takes routes away and sets them again, alternating with lookups while it does not.
fn under_changes(rounds: usize, routes: &[Route<4>], addrs: &[[u8; 4]], kind: &str) {
    let Loaded {
        mut writer,
        mut domain,
        mut reader,
        ..
    } = load::<4, 256>(routes, 70_000);
    let fib: Arc<FibV4> = Arc::clone(writer.fib());
    let (changing, end) = (AtomicBool::new(false), AtomicBool::new(false));
    let (mut quiet, mut changed) = (Vec::new(), Vec::new());
    let made = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let mut numbers = Numbers::new();
            let (mut made, mut next) = (0u64, Instant::now());
            while !end.load(Ordering::Relaxed) {
                if changing.load(Ordering::Relaxed) {
                    let route = &routes[numbers.below(routes.len())];
                    writer.remove(&mut domain, route.prefix, route.len);
                    let again = writer.insert(&domain, route.prefix, route.len, route.group);
                    again.expect("room for what was just taken away");
                    made += 2;
                }
                next += Duration::from_secs(2) / CHANGES;
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
            }
            made
        });
        let mut measure = |into: &mut Vec<f64>| {
            into.push(time(addrs, |a, g| {
                reader.quiescent();
                fib.lookup_burst(&reader, a, g);
            }));
        };
        for _ in 0..rounds {
            changing.store(false, Ordering::Relaxed);
            measure(&mut quiet);
            changing.store(true, Ordering::Relaxed);
            measure(&mut changed);
        }
        end.store(true, Ordering::Relaxed);
        thread.join().expect("the writer")
    });
    let (quiet, changed) = (median(quiet), median(changed));
    println!(
        "  {kind}, {made} changes meanwhile: {changed:.2} ns, without {quiet:.2}; lookups of those without: {:.2}",
        quiet / changed
    );
}

fn main() {
    let rounds = std::env::args()
        .nth(1)
        .and_then(|rounds| rounds.parse().ok())
        .unwrap_or(11);
    ipv4(rounds);
    ipv6(rounds);
}
