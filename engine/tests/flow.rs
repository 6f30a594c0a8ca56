//! The flow table against a map.

use std::collections::HashMap;

use patronus_engine::flow::{FlowId, FlowTable, Full, HashKeys, LOAD_PERCENT};
use patronus_io::ip::FlowKey;
use proptest::prelude::*;

/// As different as needed and the same in every run.
fn keys(seed: u64) -> HashKeys {
    HashKeys::new(std::array::from_fn(|at| {
        seed.wrapping_add(1)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(11 * at as u32)
            ^ at as u64
    }))
}

fn flow(n: u32) -> FlowKey {
    let [a, b, c, d] = n.to_be_bytes();
    match n % 3 {
        0 => FlowKey::v4([10, a, b, c], [192, 0, 2, d], 17, n as u16, 443),
        1 => FlowKey::v4([10, 0, 0, 1], [10, 0, 0, 2], 6, (n >> 16) as u16, n as u16),
        _ => {
            let mut src = [0x20; 16];
            src[12..].copy_from_slice(&[a, b, c, d]);
            FlowKey::v6(src, [0xfd; 16], 6, 1000, 443)
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Insert(u32),
    Remove(usize),
    Touch(usize),
    Expire { after: u32, budget: usize },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..200u32).prop_map(Step::Insert),
        1 => any::<usize>().prop_map(Step::Remove),
        1 => any::<usize>().prop_map(Step::Touch),
        1 => (0..50u32, 0..300usize).prop_map(|(after, budget)| Step::Expire { after, budget }),
    ]
}

fn nth(model: &HashMap<FlowKey, (FlowId, u32)>, n: usize) -> Option<FlowKey> {
    let mut all: Vec<_> = model.keys().copied().collect();
    all.sort_unstable();
    (!all.is_empty()).then(|| all[n % all.len()])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_table_is_a_map(
        limit in 1..150usize,
        seed in any::<u64>(),
        start in any::<u32>(),
        steps in prop::collection::vec(step(), 0..400),
    ) {
        let mut table = FlowTable::<u64>::new(limit, keys(seed)).expect("memory");
        let mut model: HashMap<FlowKey, (FlowId, u32)> = HashMap::new();
        for (now, step) in steps.into_iter().enumerate() {
            let now = start.wrapping_add(now as u32);
            match step {
                Step::Insert(n) if !model.contains_key(&flow(n)) => {
                    match table.insert(flow(n), now, 7, n.into()) {
                        Ok(id) => {
                            prop_assert!(model.values().all(|(other, _)| *other != id));
                            model.insert(flow(n), (id, now));
                        }
                        // Four or more buckets may have no way to make room a little before the limit.
                        Err(Full) => {
                            let full_enough = if limit <= 15 { model.len() == limit } else { 100 * model.len() >= 60 * limit };
                            prop_assert!(full_enough, "{} of {}", model.len(), limit);
                        }
                    }
                }
                Step::Insert(_) => {}
                Step::Remove(n) => if let Some(key) = nth(&model, n) {
                    let (id, seen) = model.remove(&key).expect("known");
                    let removed = table.remove(id);
                    prop_assert_eq!((*removed.key(), removed.seen, removed.epoch), (key, seen, 7));
                },
                Step::Touch(n) => if let Some(key) = nth(&model, n) {
                    let entry = model.get_mut(&key).expect("known");
                    table.get_mut(entry.0).seen = now;
                    entry.1 = now;
                },
                Step::Expire { after, budget } => {
                    let old = |seen: u32| (after..1 << 31).contains(&now.wrapping_sub(seen));
                    let before = model.len();
                    let gone = table.expire(now, after, budget);
                    model.retain(|key, (id, seen)| table.find(key) == Some(*id) || !old(*seen));
                    prop_assert_eq!(before - model.len(), gone);
                    if budget >= limit {
                        prop_assert!(model.values().all(|(_, seen)| !old(*seen)));
                    }
                }
            }
            prop_assert_eq!(table.len(), model.len());
            let all: Vec<FlowKey> = (0..200).map(flow).collect();
            for keys in all.chunks(64) {
                let mut found = vec![None; keys.len()];
                let hashed: Vec<_> = keys.iter().map(|key| table.hashed(*key)).collect();
                table.find_burst(&hashed, &mut found);
                for (key, found) in keys.iter().zip(found) {
                    prop_assert_eq!(found, model.get(key).map(|(id, _)| *id));
                    prop_assert_eq!(table.find(key), found);
                }
            }
        }
    }
}

#[test]
fn a_table_takes_as_many_flows_as_it_says() {
    for seed in 0..3 {
        // As full as it may be: 95 of 100 slots.
        let limit = (1 << 17) * LOAD_PERCENT / 100;
        let mut table = FlowTable::<()>::new(limit, keys(seed)).expect("memory");
        for n in 0..limit as u32 {
            assert!(
                table.insert(flow(n), 0, 0, ()).is_ok(),
                "{n} of {limit}, seed {seed}"
            );
        }
        assert_eq!(table.insert(flow(u32::MAX), 0, 0, ()), Err(Full));
        assert!((0..limit as u32).all(|n| table.find(&flow(n)).is_some()));
        assert!(table.find(&flow(u32::MAX)).is_none());
        assert_eq!(table.expire(10, 10, limit), limit);
        assert!(table.is_empty() && table.find(&flow(1)).is_none());
    }
}

#[test]
fn a_flow_seen_a_moment_after_now_is_not_old() {
    let mut table = FlowTable::<()>::new(4, keys(1)).expect("memory");
    for (n, seen) in [(0, 101), (1, 100), (2, 99)] {
        table.insert(flow(n), seen, 0, ()).expect("room");
    }
    assert_eq!(table.expire(100, 1, 4), 1);
    assert_eq!((table.find(&flow(2)), table.len()), (None, 2));
}

#[test]
fn other_keys_other_places() {
    let placed = |seed| {
        let keys = keys(seed);
        (0..100).map(|n| keys.hash(&flow(n)) >> 48).collect::<Vec<_>>()
    };
    let same = placed(1).iter().zip(placed(2)).filter(|(a, b)| **a == *b).count();
    assert!(same < 3, "{same} of 100 in the same place");
}

/// As many flows as slots are allowed, counting up as clients, NATs and scanners do.
fn alike(n: usize, kind: usize) -> FlowKey {
    let [_, a, b, c] = (n as u32).to_be_bytes();
    match kind {
        // Ports of one client, then the next one.
        0 => FlowKey::v4([10, 0, a, b], [192, 0, 2, 1], 6, 40_000 + u16::from(c), 443),
        // Hosts of a network.
        1 => FlowKey::v4([10, a, b, c], [192, 0, 2, 1], 17, 5000, 53),
        // And of an IPv6 one.
        2 => FlowKey::v6(
            [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c],
            [0xfd; 16],
            6,
            40_000,
            443,
        ),
        // Both ends count.
        _ => FlowKey::v4([10, 0, b, c], [192, 0, a, c], 6, u16::from(b), u16::from(c)),
    }
}

#[test]
fn flows_that_count_up_fill_a_table_as_others_do() {
    let limit = (1 << 14) * LOAD_PERCENT / 100;
    for (kind, seed) in (0..4).flat_map(|kind| (10..20).map(move |seed| (kind, seed))) {
        let mut table = FlowTable::<()>::new(limit, keys(seed)).expect("memory");
        for n in 0..limit {
            assert!(
                table.insert(alike(n, kind), 0, 0, ()).is_ok(),
                "{n} of {limit}, kind {kind}, seed {seed}"
            );
        }
    }
}

#[test]
fn like_flows_spread_as_random_numbers_do() {
    const BUCKETS: usize = 1 << 10;
    const FLOWS: usize = 16 * BUCKETS;
    for (kind, seed) in (0..4).flat_map(|kind| (10..20).map(move |seed| (kind, seed))) {
        let keys = keys(seed);
        let mut counts = vec![0f64; BUCKETS];
        for n in 0..FLOWS {
            counts[(keys.hash(&alike(n, kind)) >> 54) as usize] += 1.0;
        }
        let mean = (FLOWS / BUCKETS) as f64;
        // Of random numbers the variance is the mean, give or take 5 % of it.
        let variance = counts.iter().map(|n| (n - mean) * (n - mean)).sum::<f64>() / BUCKETS as f64;
        assert!(
            (0.75..1.25).contains(&(variance / mean)),
            "{:.2}, kind {kind}, seed {seed}",
            variance / mean
        );
    }
}
