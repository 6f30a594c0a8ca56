//! The FIB against a list of routes, and while it changes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Barrier};

use patronus_engine::fib::{FibWriter, FibWriterV4, Group, Limits, RouteError};
use patronus_sync::{Domain, Reader};
use proptest::prelude::*;

const LIMITS: Limits = Limits {
    routes: 1000,
    nodes: 4000,
};

fn group(number: u32) -> Group {
    Group::new(number).expect("a group")
}

/// A writer, its domain, and a reader that is awake.
fn table<const N: usize, const SLOTS: usize>(limits: Limits) -> (FibWriter<N, SLOTS>, Domain, Reader) {
    let (domain, mut readers) = Domain::new(1);
    let mut reader = readers.remove(0);
    reader.resume();
    (FibWriter::new(&domain, limits).expect("memory"), domain, reader)
}

/// The oracle.
#[derive(Default)]
struct List(BTreeMap<(u128, u8), u32>);

fn bits<const N: usize>(addr: &[u8; N]) -> u128 {
    addr.iter().fold(0, |bits, octet| bits << 8 | u128::from(*octet))
}

/// The first bits of an address as a number.
fn head<const N: usize>(addr: &[u8; N], len: u8) -> u128 {
    bits(addr).checked_shr(8 * N as u32 - u32::from(len)).unwrap_or(0)
}

impl List {
    fn lookup<const N: usize>(&self, addr: &[u8; N]) -> Option<Group> {
        let longest_first = (0..=8 * N as u8).rev();
        longest_first
            .filter_map(|len| self.0.get(&(head(addr, len), len)))
            .map(|number| group(*number))
            .next()
    }
}

#[derive(Clone, Debug)]
enum Change<const N: usize> {
    Insert([u8; N], u8, u32),
    Remove([u8; N], u8),
}

/// Addresses that share their first bits often.
fn address<const N: usize>() -> impl Strategy<Value = [u8; N]> {
    let octet = prop_oneof![Just(0), Just(0x10), Just(0x80), Just(0xff), any::<u8>()];
    prop::collection::vec(octet, N).prop_map(|octets| octets.try_into().expect("N octets"))
}

fn change<const N: usize>() -> impl Strategy<Value = Change<N>> {
    let len = prop_oneof![0..=8 * N as u8, 18..=26u8, Just(8 * N as u8)];
    prop_oneof![
        3 => (address(), len.clone(), 1..50u32).prop_map(|(addr, len, group)| Change::Insert(addr, len, group)),
        1 => (address(), len).prop_map(|(addr, len)| Change::Remove(addr, len)),
    ]
}

/// The neighbours of a prefix and its ends: where an answer may change.
fn edges<const N: usize>(prefix: &[u8; N], len: u8) -> Vec<[u8; N]> {
    let width = 8 * N as u32;
    let host = u128::MAX.checked_shr(128 - width + u32::from(len)).unwrap_or(0);
    let mask = u128::MAX >> (128 - width);
    let first = bits(prefix) & !host & mask;
    let last = first | host;
    [
        first,
        last,
        first.wrapping_sub(1) & mask,
        last.wrapping_add(1) & mask,
        bits(prefix),
    ]
    .map(|bits| bits.to_be_bytes()[16 - N..].try_into().expect("N octets"))
    .to_vec()
}

fn follows_the_list<const N: usize, const SLOTS: usize>(
    changes: Vec<Change<N>>,
) -> Result<(), TestCaseError> {
    let (mut writer, mut domain, mut reader) = table::<N, SLOTS>(LIMITS);
    let fib = Arc::clone(writer.fib());
    let mut list = List::default();
    let mut watched = Vec::new();
    for (n, change) in changes.into_iter().enumerate() {
        if n % 2 == 0 {
            // So that nodes are used again.
            reader.quiescent();
        }
        let (addr, len) = match change {
            Change::Insert(addr, len, number) => {
                let before = list.0.insert((head(&addr, len), len), number);
                prop_assert_eq!(
                    writer.insert(&domain, addr, len, group(number)),
                    Ok(before.map(group))
                );
                (addr, len)
            }
            Change::Remove(addr, len) => {
                // One that is there, if there is any.
                let nth = usize::from(addr[0]) % list.0.len().max(1);
                let (addr, len) = match list.0.keys().nth(nth) {
                    Some((head, len)) => {
                        let bits = head.checked_shl(8 * N as u32 - u32::from(*len)).unwrap_or(0);
                        (bits.to_be_bytes()[16 - N..].try_into().expect("N octets"), *len)
                    }
                    None => (addr, len),
                };
                let before = list.0.remove(&(head(&addr, len), len));
                prop_assert_eq!(writer.remove(&mut domain, addr, len), before.map(group));
                (addr, len)
            }
        };
        prop_assert_eq!(writer.routes(), list.0.len());
        prop_assert_eq!(
            writer.get(addr, len).map(Group::number),
            list.0.get(&(head(&addr, len), len)).copied()
        );
        watched.extend(edges(&addr, len));
        let mut answers = vec![None; watched.len()];
        fib.lookup_burst(&reader, &watched, &mut answers);
        for (addr, answer) in watched.iter().zip(answers) {
            prop_assert_eq!(answer, list.lookup(addr), "{:?}", addr);
            prop_assert_eq!(fib.lookup(&reader, addr), answer);
        }
        let mut fewer = [Some(group(7)); 40];
        fib.lookup_burst(&reader, &watched[..1], &mut fewer);
        prop_assert_eq!(&fewer[1..], &[Some(group(7)); 39]);
    }
    for (head, len) in list.0.into_keys() {
        let bits = head.checked_shl(8 * N as u32 - u32::from(len)).unwrap_or(0);
        let addr = bits.to_be_bytes()[16 - N..].try_into().expect("N octets");
        prop_assert!(writer.remove(&mut domain, addr, len).is_some());
    }
    for addr in &watched {
        prop_assert_eq!(fib.lookup(&reader, addr), None);
    }
    reader.quiescent();
    writer.collect(&domain);
    prop_assert_eq!(
        (writer.routes(), writer.nodes()),
        (0, 0),
        "everything is free again"
    );
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn ipv4_follows_the_list(changes in prop::collection::vec(change::<4>(), 0..60)) {
        follows_the_list::<4, 256>(changes)?;
    }

    #[test]
    fn ipv6_follows_the_list(changes in prop::collection::vec(change::<16>(), 0..60)) {
        follows_the_list::<16, 16>(changes)?;
    }
}

#[test]
fn limits_are_kept_and_said() {
    let (mut writer, mut domain, mut reader) = table::<4, 256>(Limits { routes: 2, nodes: 3 });
    assert_eq!(
        writer.insert(&domain, [1; 4], 33, group(1)),
        Err(RouteError::Length(33))
    );
    assert_eq!(
        writer.insert(&domain, [1; 4], 32, group(1)),
        Ok(None),
        "two nodes"
    );
    assert_eq!(
        writer.insert(&domain, [2; 4], 32, group(1)),
        Err(RouteError::Nodes(3))
    );
    assert_eq!(writer.insert(&domain, [2; 4], 24, group(1)), Ok(None), "one");
    assert_eq!(
        writer.insert(&domain, [3; 4], 8, group(1)),
        Err(RouteError::Routes(2))
    );
    assert_eq!(
        writer.insert(&domain, [2; 4], 24, group(2)),
        Ok(Some(group(1))),
        "known ones fit"
    );
    // What was taken out is free when the reader has gone on.
    assert_eq!(writer.remove(&mut domain, [1; 4], 32), Some(group(1)));
    assert_eq!(
        writer.insert(&domain, [3; 4], 32, group(3)),
        Err(RouteError::Nodes(3))
    );
    assert_eq!(writer.fib().lookup(&reader, &[3; 4]), None);
    reader.quiescent();
    assert_eq!(writer.insert(&domain, [3; 4], 32, group(3)), Ok(None));
    assert_eq!(writer.fib().lookup(&reader, &[3; 4]), Some(group(3)));
    assert!(RouteError::Routes(2).to_string().contains("2 routes"));
}

#[test]
#[should_panic(expected = "is_awake_in")]
fn a_parked_reader_looks_nothing_up() {
    let (writer, _domain, mut reader) = table::<4, 256>(LIMITS);
    reader.park();
    writer.fib().lookup(&reader, &[1; 4]);
}

/// Sets a route; while all nodes are taken, waits for the reader.
fn insert(writer: &mut FibWriterV4, domain: &Domain, prefix: [u8; 4], len: u8, number: u32) {
    for _ in 0..100_000 {
        match writer.insert(domain, prefix, len, group(number)) {
            Ok(_) => return,
            Err(RouteError::Nodes(_)) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the reader does not go on");
}

#[test]
fn a_reader_sees_old_or_new_and_nothing_else() {
    let (mut writer, mut domain, mut reader) = table::<4, 256>(LIMITS);
    let fib = Arc::clone(writer.fib());
    insert(&mut writer, &domain, [10, 0, 0, 0], 8, 1);
    let (started, end) = (Barrier::new(2), AtomicBool::new(false));
    // The answers that were seen, a bit each.
    let seen = AtomicU32::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let addrs: Vec<[u8; 4]> = (0..64).map(|n| [10, 1, 2 + n / 32, 8 * (n % 32)]).collect();
            let mut answers = vec![None; addrs.len()];
            started.wait();
            while !end.load(Ordering::Relaxed) {
                reader.quiescent();
                fib.lookup_burst(&reader, &addrs, &mut answers);
                for (addr, answer) in addrs.iter().zip(&answers) {
                    let number = answer.expect("always inside 10.0.0.0/8").number();
                    let allowed: &[u32] = match addr {
                        [10, 1, 2, 16..32] => &[1, 2, 3, 4],
                        [10, 1, 2, _] => &[1, 2, 3],
                        _ => &[1, 2],
                    };
                    assert!(allowed.contains(&number), "{addr:?}: {number}");
                    seen.fetch_or(1 << number, Ordering::Relaxed);
                }
            }
            reader.park();
        });
        started.wait();
        for round in 0..2_000_000 {
            if round >= 20_000 && seen.load(Ordering::Relaxed) == 0b11110 {
                break;
            }
            insert(&mut writer, &domain, [10, 1, 0, 0], 16, 2);
            insert(&mut writer, &domain, [10, 1, 2, 0], 24, 3);
            insert(&mut writer, &domain, [10, 1, 2, 16], 28, 4);
            for (prefix, len) in [([10, 1, 2, 0], 24), ([10, 1, 0, 0], 16), ([10, 1, 2, 16], 28)] {
                assert!(writer.remove(&mut domain, prefix, len).is_some());
            }
        }
        end.store(true, Ordering::Relaxed);
    });
    assert_eq!(seen.load(Ordering::Relaxed), 0b11110, "every answer was met");
}
