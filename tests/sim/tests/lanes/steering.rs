//! Classes between two engines: which links their packets take, and that of two copies one arrives.

use std::collections::{BTreeMap, BTreeSet};

use patronus_abi::channel::{PathName, Ranked};
use patronus_abi::site::{Class, Mode};
use patronus_engine::stats::DropReason;
use patronus_engine::steer::RETURN;
use patronus_sim::packet::{self, Tag, Way};

use crate::pair::{A, B, Kind, Pair, kind, ms, secs};

/// Both sites have this class, and their second links cost more.
fn pair(mode: Mode, workers: (usize, usize)) -> Pair {
    let mut pair = Pair::new(kind(workers.0, 2), kind(workers.1, 2));
    let class = Class {
        mode,
        ..Class::default()
    };
    for site in [A, B] {
        let class = class.clone();
        pair.sites[site].core.set_classes(&[class], [(1, 0), (2, 10)]);
    }
    pair.run(secs(6));
    pair
}

fn link(number: u8) -> PathName {
    PathName {
        local: number,
        remote: number,
    }
}

fn order(pair: &mut Pair, ranked: &[(u8, u8)]) {
    for site in [A, B] {
        let ranked = ranked.iter().map(|(number, grade)| Ranked {
            path: link(*number),
            grade: *grade,
        });
        let (base, ranked) = (pair.base(site), ranked.collect());
        pair.sites[site].core.order_paths(base, 0, ranked).unwrap();
    }
    pair.run(ms(1));
}

fn used(pair: &mut Pair) -> Vec<usize> {
    pair.carried.clear();
    pair.exchange();
    pair.used(A, 200)
}

#[test]
fn the_cheapest_link_carries_all_and_others_while_it_is_down() {
    let mut pair = pair(Mode::Pinned, (2, 1));
    assert_eq!(used(&mut pair), [0]);
    pair.dead.insert(0);
    pair.run(secs(2));
    assert_eq!(used(&mut pair), [1]);
    pair.dead.clear();
    pair.run(secs(60));
    // Each flow goes back in the pause before its first packet.
    assert_eq!(used(&mut pair), [0]);
}

#[test]
fn flows_go_where_control_says_and_stay_in_order() {
    let mut pair = pair(Mode::ActiveBackup, (2, 2));
    assert_eq!(used(&mut pair), [0]);
    order(&mut pair, &[(2, 1), (1, 0)]);
    assert_eq!(used(&mut pair), [1]);
    // A better one moves flows that never pause bit by bit, and every packet arrives in its order: both links are equally long.
    order(&mut pair, &[(1, 1), (2, 1)]);
    pair.delivered = [Vec::new(), Vec::new()];
    let rounds = RETURN.as_millis() as u32 / 10 + 20;
    for sequence in 0..rounds {
        for flow in 0..32 {
            pair.send(A, flow, sequence);
        }
        pair.run(ms(10));
    }
    pair.run(secs(1));
    let mut next = BTreeMap::<u16, u32>::new();
    for tag in &pair.delivered[B] {
        let next = next.entry(tag.flow).or_default();
        assert_eq!(tag.sequence, *next, "flow {}", tag.flow);
        *next += 1;
    }
    assert!(next.len() == 32 && next.values().all(|count| *count == rounds));
    assert_eq!(used(&mut pair), [0]);
    // For a class that is not there, or to nobody: refused.
    let base = pair.base(A);
    let core = &mut pair.sites[A].core;
    assert!(core.order_paths(base, 1, Vec::new()).is_err());
    assert!(
        core.order_paths(patronus_crypto::PeerId(63), 0, Vec::new())
            .is_err()
    );
}

/// There are more lanes than numbers: the second worker has one on the first link only. While that link is down its flows go by the first worker's lane on the other one.
#[test]
fn a_worker_without_a_lane_on_what_is_up_hands_over() {
    let few = Kind {
        peers: 3,
        ..kind(2, 2)
    };
    let mut pair = Pair::new(few.clone(), few);
    pair.run(secs(6));
    let lanes = pair.sites[A].core.lanes(pair.base(A)).count();
    assert_eq!(lanes, 3);
    pair.exchange();
    pair.dead.insert(0);
    pair.run(secs(5));
    assert_eq!(used(&mut pair), [1]);
    pair.dead.clear();
    pair.run(secs(60));
    pair.exchange();
}

/// A link dies between two packets, and is back between two others: nothing is missing, and nothing comes twice.
#[test]
fn of_two_copies_one_arrives() {
    let mut pair = pair(Mode::Duplicate, (2, 3));
    pair.delivered = [Vec::new(), Vec::new()];
    let rounds = 400;
    for sequence in 0..rounds {
        match sequence {
            100 => drop(pair.dead.insert(0)),
            250 => pair.dead.clear(),
            _ => {}
        }
        for flow in 0..16 {
            pair.send(A, flow, sequence);
            pair.send(B, flow, sequence);
        }
        pair.run(ms(10));
    }
    pair.run(secs(1));
    for site in [A, B] {
        let mut seen = BTreeMap::<(u16, u32), u32>::new();
        for tag in &pair.delivered[site] {
            *seen.entry((tag.flow, tag.sequence)).or_default() += 1;
        }
        assert_eq!(seen.len(), 16 * rounds as usize, "every packet at site {site}");
        assert!(seen.values().all(|count| *count == 1), "once");
        let second = pair.sites[site].dropped(DropReason::DecapDoubled);
        assert!(second > 16 * 100, "{second}");
    }
}

/// Each length that needs care, with a link that dies and comes back: what a TCP sends that was asked for what fits is as long as goes twice whole; what is longer goes twice
/// in pieces.
#[test]
fn of_two_copies_one_arrives_however_long_they_are() {
    for (len, pieces) in [(1412, 1), (1413, 2), (1420, 2)] {
        let mut pair = pair(Mode::Duplicate, (2, 1));
        pair.delivered = [Vec::new(), Vec::new()];
        let (rounds, flows) = (300, 8);
        for sequence in 0..rounds {
            match sequence {
                100 => drop(pair.dead.insert(0)),
                200 => pair.dead.clear(),
                _ => {}
            }
            for (flow, site) in (0..flows).flat_map(|flow| [(flow, A), (flow, B)]) {
                pair.send_long(site, flow, sequence, len);
            }
            pair.run(ms(10));
        }
        pair.run(secs(1));
        for site in [A, B] {
            let seen: BTreeSet<(u16, u32)> = pair.delivered[site]
                .iter()
                .map(|tag| (tag.flow, tag.sequence))
                .collect();
            let sent = usize::from(flows) * rounds as usize;
            assert_eq!(
                (seen.len(), pair.delivered[site].len()),
                (sent, sent),
                "{len} bytes"
            );
            let stats = pair.sites[site].workers.iter().map(|worker| worker.stats());
            let twice: u64 = stats.clone().map(|stats| stats.doubled.get()).sum();
            let once: u64 = stats.map(|stats| stats.undoubled.get()).sum();
            assert_eq!((twice, once), (pieces * sent as u64, 0), "{len} bytes");
        }
    }
}

/// What must not be cut up, like all of IPv6, goes once if there is no room to tell it from others, and is counted.
#[test]
fn what_has_no_room_and_must_stay_whole_goes_once() {
    let mut pair = pair(Mode::Duplicate, (1, 1));
    pair.delivered = [Vec::new(), Vec::new()];
    let host = |site: usize| [0xfd00, site as u16, 0, 0, 0, 0, 0, 9].into();
    let way = Way {
        src: host(A),
        dst: host(B),
        port: 1000,
        ttl: 64,
        ecn: 0,
    };
    for (sequence, len) in [(0, 1412), (1, 1413), (2, 1420)] {
        let tag = Tag {
            origin: A as u8,
            flow: 0,
            sequence,
        };
        pair.offer(A, 0, &packet::build(&way, tag, len));
    }
    pair.run(secs(1));
    let seen: Vec<u32> = pair.delivered[B].iter().map(|tag| tag.sequence).collect();
    assert_eq!(seen, [0, 1, 2]);
    let stats = pair.sites[A].workers[0].stats();
    assert_eq!((stats.doubled.get(), stats.undoubled.get()), (1, 2));
}

/// Who is started anew begins to count anew, and so does who has lost count.
#[test]
fn copies_are_told_apart_after_a_restart() {
    let mut pair = pair(Mode::Duplicate, (1, 1));
    pair.exchange();
    for restarted in [A, B] {
        pair.restart(restarted);
        let class = Class {
            mode: Mode::Duplicate,
            ..Class::default()
        };
        pair.sites[restarted].core.set_classes(&[class], []);
        pair.run(secs(20));
        pair.exchange();
    }
}
