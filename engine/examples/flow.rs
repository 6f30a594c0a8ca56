//! Measures the flow table: nanoseconds a lookup and an insertion at 95 % load, beside the standard library's map.
//!
//! ```text
//! cargo run --release -p patronus-engine --example flow [ROUNDS]
//! ```
//!
//! Flows are looked up in random order in bursts of 32, subjects take turns, figures are medians of the rounds in the thread's own CPU
//! time. "Map" is `std::collections::HashMap` with its default hash, which resists crafted keys as ours does; it is looked up key
//! by key, as it has no other way.

mod common;

use std::collections::HashMap;
use std::hint::black_box;

use arrayvec::ArrayVec;
use common::{Numbers, cpu_time, median};
use patronus_engine::flow::{Flow, FlowTable, HashKeys, LOAD_PERCENT};
use patronus_io::ip::FlowKey;

const BURST: usize = 32;
/// Lookups in one measurement.
const LOOKUPS: usize = 1 << 20;

/// Nanoseconds for each of `count`.
fn time(count: usize, work: impl FnOnce()) -> f64 {
    let before = cpu_time();
    work();
    (cpu_time() - before).as_nanos() as f64 / count as f64
}

/// Flow number `n`: clients of a /16 and their UDP ports.
fn flow(n: usize, ipv6: bool) -> FlowKey {
    let [_, _, a, b] = (n as u32 / 16).to_be_bytes();
    let port = 40_000 + (n % 16) as u16 + 16 * (n >> 20) as u16;
    if ipv6 {
        let mut src = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b];
        src[5] = (n >> 20) as u8;
        FlowKey::v6(src, [0xfd; 16], 6, port, 443)
    } else {
        FlowKey::v4([10, 1, a, b], [192, 0, 2, 1], 6, port, 443)
    }
}

fn measure(limit: usize, ipv6: bool, rounds: usize, numbers: &mut Numbers) {
    let keys = HashKeys::new(std::array::from_fn(|_| numbers.next()));
    let all: Vec<FlowKey> = (0..limit).map(|n| flow(n, ipv6)).collect();
    let mut table = FlowTable::<[u32; 4]>::new(limit, keys).expect("memory");
    let mut map = HashMap::new();
    let (mut ours, mut theirs): ([Vec<f64>; 3], [Vec<f64>; 3]) = Default::default();
    for round in 0..rounds {
        if round > 0 {
            table.expire(100, 1, limit);
            map.clear();
        }
        ours[0].push(time(limit, || {
            for key in &all {
                table.insert(*key, 0, 0, [1; 4]).expect("room");
            }
        }));
        theirs[0].push(time(limit, || {
            for key in &all {
                map.insert(*key, Flow::<[u32; 4]>::default());
            }
        }));
        let hits: Vec<FlowKey> = (0..LOOKUPS).map(|_| all[numbers.below(limit)]).collect();
        let misses: Vec<FlowKey> = (0..LOOKUPS)
            .map(|_| flow((1 << 24) + (numbers.next() & 0xf_ffff) as usize, ipv6))
            .collect();
        for (kind, looked_up) in [&hits, &misses].into_iter().enumerate() {
            ours[kind + 1].push(time(LOOKUPS, || {
                let mut found = [None; BURST];
                for burst in looked_up.chunks(BURST) {
                    let keys = black_box(burst).iter().map(|key| table.hashed(*key));
                    let keys: ArrayVec<_, BURST> = keys.collect();
                    table.find_burst(&keys, &mut found[..keys.len()]);
                    assert!(found.iter().all(|id| id.is_some() == (kind == 0)));
                    // What a packet does with its flow.
                    for id in found.into_iter().flatten() {
                        table.get_mut(id).seen = round as u32;
                    }
                }
            }));
            theirs[kind + 1].push(time(LOOKUPS, || {
                for key in looked_up {
                    let found = map.get_mut(black_box(key));
                    assert!(found.is_some() == (kind == 0));
                    if let Some(flow) = found {
                        flow.seen = round as u32;
                    }
                }
            }));
        }
    }
    let [insert, hit, miss] = ours.map(median);
    let [map_insert, map_hit, map_miss] = theirs.map(median);
    println!(
        "{limit:>8} flows, {}: hit {hit:.1} ns (map {map_hit:.1}), miss {miss:.1} ({map_miss:.1}), insertion {insert:.1} ({map_insert:.1})",
        if ipv6 { "IPv6" } else { "IPv4" }
    );
}

fn main() {
    let rounds = std::env::args()
        .nth(1)
        .and_then(|rounds| rounds.parse().ok())
        .unwrap_or(7);
    let mut numbers = Numbers::new();
    for bits in [10, 14, 17, 20] {
        for ipv6 in [false, true] {
            // Such that exactly the allowed part of a power of two is used.
            measure((1 << bits) * LOAD_PERCENT / 100, ipv6, rounds, &mut numbers);
        }
    }
}
