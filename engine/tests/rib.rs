//! Dynamic routes against the plainest idea of them: a list of what everybody has said.

use std::net::Ipv4Addr;

use patronus_abi::channel::NextHop;
use patronus_engine::allowedips::Prefix;
use patronus_engine::rib::Rib;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Add(Prefix, u16, u32, u32, u8),
    Delete(Prefix, u16),
    /// Owner, epoch, and whether it is done at once.
    Sweep(u16, u32, bool),
    Go(usize),
}

fn prefix() -> impl Strategy<Value = Prefix> {
    (0..4u8, 8..10u8).prop_map(|(a, len)| Prefix::new(Ipv4Addr::new(a, 0, 0, 0).into(), len).unwrap())
}

fn step() -> impl Strategy<Value = Step> {
    let owner = || 0..3u16;
    let epoch = || 1..3u32;
    prop_oneof![
        6 => (prefix(), owner(), epoch(), 0..3u32, any::<u8>()).prop_map(|(a, b, c, d, e)| Step::Add(a, b, c, d, e)),
        2 => (prefix(), owner()).prop_map(|(a, b)| Step::Delete(a, b)),
        1 => (owner(), epoch(), any::<bool>()).prop_map(|(a, b, c)| Step::Sweep(a, b, c)),
        1 => (1..4usize).prop_map(Step::Go),
    ]
}

/// What somebody has said: prefix, owner, epoch, preference, where to, when.
type Said = (Prefix, u16, u32, u32, u8, usize);

const LIMIT: usize = 12;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn what_counts_is_what_the_best_owner_said_last(steps in prop::collection::vec(step(), 0..80)) {
        let mut rib = Rib::new(LIMIT);
        let mut said: Vec<Said> = Vec::new();
        // Sweeps that are not done, and when they were asked for.
        let mut sweeps: Vec<(u16, u32, usize)> = Vec::new();
        for (now, step) in steps.into_iter().enumerate() {
            match step {
                Step::Add(prefix, owner, epoch, preference, to) => {
                    let mut before = said.clone();
                    before.retain(|other| (other.0, other.1) != (prefix, owner));
                    let fits = before.len() < said.len() || said.len() < LIMIT || !sweeps.is_empty();
                    let hops = vec![NextHop::Peer([to; 32])];
                    let added = rib.add(prefix, owner, epoch, preference, hops);
                    // In the middle of a sweep some is gone already that is on the list.
                    prop_assert!(added.is_ok() || before.len() == said.len() || !sweeps.is_empty());
                    prop_assert!(fits || added.is_err());
                    if added.is_ok() {
                        said = before;
                        said.push((prefix, owner, epoch, preference, to, now));
                    }
                }
                Step::Delete(prefix, owner) => {
                    rib.delete(&prefix, owner);
                    said.retain(|other| (other.0, other.1) != (prefix, owner));
                }
                Step::Sweep(owner, epoch, at_once) => {
                    if rib.sweep(owner, epoch).is_ok() {
                        sweeps.push((owner, epoch, now));
                    }
                    if at_once {
                        while rib.is_busy() {
                            rib.step(2);
                        }
                    }
                }
                Step::Go(most) => drop(rib.step(most)),
            }
            if !rib.is_busy() {
                for (owner, epoch, at) in sweeps.drain(..) {
                    said.retain(|other| other.1 != owner || other.2 == epoch || other.5 > at);
                }
                prop_assert_eq!(rib.len(), said.len());
                for prefix in said.iter().map(|one| one.0) {
                    let best = said.iter().filter(|one| one.0 == prefix).min_by_key(|one| (one.3, one.1));
                    let hops = best.map(|best| vec![NextHop::Peer([best.4; 32])]);
                    prop_assert_eq!(rib.best(&prefix), hops.as_deref());
                }
            }
        }
    }
}
