//! The builder against the plainest idea of it: what is wanted is what workers find, at every step they find something that they know, and a
//! number never means two things to anybody.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use patronus_crypto::PeerId;
use patronus_engine::allowedips::Prefix;
use patronus_engine::classify::Match;
use patronus_engine::flow::HashKeys;
use patronus_engine::plan::{BuildError, Builder, Frame, Lan, Ruled, Verdict, Via, Wanted};
use patronus_engine::route::Rules;
use patronus_engine::snapshot::{Action, Exit, PlanError, Snapshot};
use patronus_io::ip::FlowKey;
use proptest::prelude::*;

/// A TUN, and an Ethernet port.
const LANS: [Lan; 2] = [
    Lan {
        mac: None,
        mtu: u16::MAX,
    },
    Lan {
        mac: Some([2, 0, 0, 0, 0, 1]),
        mtu: 1500,
    },
];

fn frame(workers: usize, routes: usize) -> Frame {
    Frame {
        lans: LANS.to_vec(),
        routes,
        workers,
        keys: HashKeys::new([1, 2, 3, 4, 5, 6, 7]),
    }
}

fn neighbour(number: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, number).into()
}

fn prefix(addr: IpAddr, len: u8) -> Prefix {
    Prefix::new(addr, len).unwrap()
}

/// Where a worker sends a packet; `None`: it does not know.
fn sent(rules: &Rules, dst: IpAddr) -> Option<Exit> {
    sent_by(rules, rules.snapshot.get(&rules.reader), dst)
}

/// The same in the middle of a burst, which is sent by the snapshot of its beginning.
fn sent_by(rules: &Rules, snapshot: &Snapshot, dst: IpAddr) -> Option<Exit> {
    let key = match dst {
        IpAddr::V4(ip) => FlowKey::v4([10, 9, 9, 9], ip.octets(), 17, 1, 2),
        IpAddr::V6(ip) => FlowKey::v6([0xfc; 16], ip.octets(), 17, 1, 2),
    };
    let group = match snapshot.judge(&key).action {
        Action::Drop => return Some(Exit::Discard),
        Action::Via(group) => Some(group),
        Action::Route => match dst {
            IpAddr::V4(ip) => rules.v4.lookup(&rules.reader, &ip.octets()),
            IpAddr::V6(ip) => rules.v6.lookup(&rules.reader, &ip.octets()),
        },
    };
    Some(snapshot.hop(group?, 0)?.exit)
}

/// Where it is to go: the first policy that asks for this destination, or the longest prefix around it.
fn meant(wanted: &Wanted, dst: IpAddr, known: &[u8]) -> Option<Exit> {
    let inside = |prefix: &Prefix| Prefix::new(dst, prefix.cidr()).is_some_and(|around| around == *prefix);
    let policy = wanted
        .policies
        .iter()
        .find(|ruled| ruled.matching.dst.as_ref().is_none_or(inside));
    let vias = match policy.map(|ruled| &ruled.verdict) {
        Some(Verdict::Drop) => return Some(Exit::Discard),
        Some(Verdict::Via(vias)) => vias,
        Some(Verdict::Route) | None => {
            let around = wanted.routes.iter().filter(|(prefix, _)| inside(prefix));
            around.max_by_key(|(prefix, _)| prefix.cidr())?.1
        }
    };
    let mut usable = vias.iter().filter_map(|via| match *via {
        Via::Tunnel(peer) => Some(Exit::Tunnel(peer)),
        Via::Discard => Some(Exit::Discard),
        Via::Lan(lan, None) => Some(Exit::Lan(lan, None)),
        Via::Connected(lan) => Some(Exit::Neighbour(lan, [2, 0, 0, 0, 0, 1])),
        Via::Lan(lan, Some(address)) => {
            let number = known.iter().find(|number| neighbour(**number) == address)?;
            let addresses = [2, 9, 9, 9, 9, *number, 2, 0, 0, 0, 0, 1];
            Some(Exit::Lan(lan, Some(addresses)))
        }
    });
    // A flow with a hash of 0 takes the first.
    Some(usable.next().unwrap_or(Exit::Unreachable))
}

fn settle(builder: &mut Builder, rules: &mut [Rules]) -> Vec<PeerId> {
    let mut released = Vec::new();
    for _ in 0..200 {
        released.extend(builder.advance());
        rules.iter_mut().for_each(|rules| rules.reader.quiescent());
    }
    assert!(!builder.is_busy(), "it comes to an end");
    released
}

fn start(workers: usize, routes: usize) -> (Builder, Vec<Rules>) {
    let (builder, mut rules) = Builder::new(frame(workers, routes), 1420).unwrap();
    rules.iter_mut().for_each(|rules| rules.reader.resume());
    (builder, rules)
}

fn route(addr: [u8; 4], len: u8, via: Via) -> (Prefix, Vec<Via>) {
    (prefix(addr.into(), len), vec![via])
}

fn wanted(routes: impl IntoIterator<Item = (Prefix, Vec<Via>)>) -> Wanted {
    Wanted {
        routes: routes.into_iter().collect(),
        policies: Vec::new(),
    }
}

fn any_via() -> impl Strategy<Value = Via> {
    prop_oneof![
        (0..4u32).prop_map(|peer| Via::Tunnel(PeerId(peer))),
        (1..4u8).prop_map(|number| Via::Lan(1, Some(neighbour(number)))),
        Just(Via::Lan(0, None)),
        Just(Via::Discard),
        Just(Via::Connected(1)),
    ]
}

fn any_prefix() -> impl Strategy<Value = Prefix> {
    prop_oneof![
        (0..4u8, 0..4u8, prop_oneof![Just(0), Just(8), 14..=32u8])
            .prop_map(|(a, b, len)| prefix(Ipv4Addr::new(10, a, b, 3).into(), len)),
        (0..4u16, prop_oneof![Just(0), 30..=128u8])
            .prop_map(|(a, len)| prefix(Ipv6Addr::new(0xfd00, a, 0, 0, 0, 0, 0, 3).into(), len)),
    ]
}

fn any_wanted() -> impl Strategy<Value = Wanted> {
    let vias = || prop::collection::vec(any_via(), 1..4);
    let verdict = prop_oneof![
        Just(Verdict::Route),
        Just(Verdict::Drop),
        vias().prop_map(Verdict::Via)
    ];
    let policy = (any_prefix(), verdict).prop_map(|(dst, verdict)| {
        let matching = Match {
            dst: Some(dst),
            ..Match::ANY
        };
        Ruled {
            matching,
            class: 0,
            verdict,
        }
    });
    let routes = prop::collection::btree_map(any_prefix(), vias(), 0..12);
    (routes, prop::collection::vec(policy, 0..3)).prop_map(|(routes, policies)| Wanted { routes, policies })
}

fn destinations() -> impl Iterator<Item = IpAddr> {
    let v4 = (0..4).flat_map(|a| (0..4).map(move |b| Ipv4Addr::new(10, a, b, 3).into()));
    let v6 = (0..4).map(|a| Ipv6Addr::new(0xfd00, a, 0, 0, 0, 0, 0, 3).into());
    v4.chain(v6).chain([Ipv4Addr::new(11, 0, 0, 1).into()])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// What is wanted is found when it has settled; on the way there, by every worker whenever it looks, either what was or what will be.
    #[test]
    fn workers_find_what_is_wanted(
        steps in prop::collection::vec((any_wanted(), 1..4u8, any::<bool>(), prop::collection::vec(0..2usize, 0..12)), 1..6),
    ) {
        let (mut builder, mut rules) = start(2, 64);
        let mut before = Wanted::default();
        let mut known = Vec::new();
        for (wants, number, is_known, turns) in steps {
            builder.set_neighbour(1, neighbour(number), is_known.then_some([2, 9, 9, 9, 9, number]));
            known.retain(|other| *other != number);
            known.extend(is_known.then_some(number));
            settle(&mut builder, &mut rules);
            let mut wanting = Some(wants.clone());
            for turn in turns {
                // In the middle of a burst: what the snapshot was is looked at until its end.
                let held: Vec<&Snapshot> = rules.iter().map(|rules| rules.snapshot.get(&rules.reader)).collect();
                if let Some(wants) = wanting.take() {
                    prop_assert_eq!(builder.want(wants), Ok(()));
                }
                for _ in 0..3 {
                    builder.advance();
                }
                for (rules, snapshot) in rules.iter().zip(held) {
                    for dst in destinations() {
                        let found = sent_by(rules, snapshot, dst);
                        // Policies and routes of one packet may be from either side of the change.
                        let mixed = Wanted { routes: before.routes.clone(), policies: wants.policies.clone() };
                        let either = [&before, &wants, &mixed].map(|wanted| meant(wanted, dst, &known));
                        prop_assert!(either.contains(&found), "{dst}: {found:?} of {either:?}");
                    }
                }
                rules[turn].reader.quiescent();
            }
            if let Some(wants) = wanting.take() {
                prop_assert_eq!(builder.want(wants), Ok(()));
            }
            settle(&mut builder, &mut rules);
            for dst in destinations() {
                prop_assert_eq!(sent(&rules[0], dst), meant(&wants, dst, &known), "{}", dst);
            }
            before = wants;
        }
    }
}

/// Both layers at once, the plainest way: what the configuration does not say of a prefix, a dynamic route does.
fn both(wanted: &Wanted, dynamic: &BTreeMap<Prefix, Vec<Via>>) -> Wanted {
    let mut routes = dynamic.clone();
    routes.extend(wanted.routes.clone());
    Wanted {
        routes,
        policies: wanted.policies.clone(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Configurations and dynamic routes that change in any order, in the middle of each other: in the end both are found, and on the way nothing that neither says.
    #[test]
    fn dynamic_routes_are_a_second_layer(
        steps in prop::collection::vec(
            (
                prop::option::of(any_wanted()),
                prop::collection::vec((any_prefix(), prop::option::of(prop::collection::vec(any_via(), 1..4))), 0..6),
                0..4usize,
                any::<bool>(),
            ),
            1..12,
        ),
    ) {
        let (mut builder, mut rules) = start(2, 64);
        let (mut config, mut dynamic) = (Wanted::default(), BTreeMap::new());
        let known: Vec<u8> = (1..4).collect();
        for number in &known {
            builder.set_neighbour(1, neighbour(*number), Some([2, 9, 9, 9, 9, *number]));
        }
        for (wants, changes, turns, settles) in steps {
            if let Some(wants) = wants {
                prop_assert_eq!(builder.want(wants.clone()), Ok(()));
                config = wants;
            }
            for (prefix, vias) in changes {
                prop_assert_eq!(builder.change(prefix, vias.clone()), Ok(()));
                match vias {
                    Some(vias) => dynamic.insert(prefix, vias),
                    None => dynamic.remove(&prefix),
                };
                prop_assert_eq!(builder.dynamic(&prefix), dynamic.get(&prefix).map(Vec::as_slice));
            }
            for _ in 0..turns {
                builder.advance();
                rules.iter_mut().for_each(|rules| rules.reader.quiescent());
                for dst in destinations() {
                    // Whatever it is: a group that it finds is one that its snapshot has.
                    sent(&rules[0], dst);
                }
            }
            if settles {
                settle(&mut builder, &mut rules);
                let all = both(&config, &dynamic);
                for dst in destinations() {
                    prop_assert_eq!(sent(&rules[0], dst), meant(&all, dst, &known), "{}", dst);
                }
                prop_assert_eq!(builder.dynamic_len(), dynamic.len());
            }
        }
        prop_assert_eq!(builder.take_unplaced(), 0);
        // Nothing is left of what is gone.
        for prefix in dynamic.keys() {
            prop_assert_eq!(builder.change(*prefix, None), Ok(()));
        }
        builder.want(Wanted::default()).unwrap();
        settle(&mut builder, &mut rules);
        prop_assert_eq!(builder.groups(), 0);
        for dst in destinations() {
            prop_assert_eq!(sent(&rules[0], dst), None);
        }
    }
}

/// A dynamic route that finds no room is counted and is not there; a configuration that fits is had all the same, or refused before anything changes.
#[test]
fn dynamic_routes_without_room() {
    let (mut builder, mut rules) = start(1, 64);
    let host = |n: u16| {
        let addr = Ipv6Addr::new(n.reverse_bits(), n, 1, 2, 3, 4, 5, 6);
        (prefix(addr.into(), 128), vec![Via::Discard])
    };
    for n in 0..200 {
        let (prefix, vias) = host(n);
        builder.change(prefix, Some(vias)).unwrap();
    }
    settle(&mut builder, &mut rules);
    let placed = builder.dynamic_len();
    assert_eq!(builder.take_unplaced(), 200 - placed);
    assert!((50..200).contains(&placed), "{placed}");
    assert!(matches!(
        builder.want(wanted((1000..1050).map(host))),
        Err(BuildError::Nodes(..))
    ));
    let fits = wanted([route([10, 0, 0, 0], 32, Via::Lan(0, None))]);
    builder.want(fits.clone()).unwrap();
    settle(&mut builder, &mut rules);
    let dst = Ipv4Addr::new(10, 0, 0, 0).into();
    assert_eq!(sent(&rules[0], dst), meant(&fits, dst, &[]));
}

/// A worker that stands still keeps what it may be looking at from becoming something else.
#[test]
fn numbers_wait_for_those_who_may_come_across_them() {
    let (mut builder, mut rules) = start(2, 64);
    let peer = |number| Via::Tunnel(PeerId(number));
    builder.want(wanted([route([10, 0, 0, 0], 8, peer(1))])).unwrap();
    settle(&mut builder, &mut rules);
    builder.want(wanted([route([10, 0, 0, 0], 8, peer(2))])).unwrap();
    builder.leave(PeerId(1));
    // Worker 1 stands still in the middle of a burst; it may have looked the old group up.
    for _ in 0..100 {
        assert_eq!(builder.advance(), [], "worker 1 may be about to seal for it");
        rules[0].reader.quiescent();
    }
    assert!(builder.is_busy());
    assert_eq!(
        sent(&rules[1], Ipv4Addr::new(10, 1, 1, 1).into()),
        Some(Exit::Tunnel(PeerId(1)))
    );
    assert_eq!(settle(&mut builder, &mut rules), [PeerId(1)]);
}

/// After the snapshot without a peer, packets for it may still be in the rings: they are emptied before its number is free.
#[test]
fn a_peers_number_is_free_when_the_rings_are_empty() {
    for (workers, least) in [(1, 1), (2, 9)] {
        let (mut builder, mut rules) = start(workers, 64);
        builder.leave(PeerId(7));
        let mut graces = 0;
        while builder.advance().is_empty() {
            graces += 1;
            rules.iter_mut().for_each(|rules| rules.reader.quiescent());
            assert!(graces < 100);
        }
        assert!(graces >= least, "{graces} with {workers} workers");
    }
}

/// A peer that routes still lead to keeps its number, however long its worker has forgotten it.
#[test]
fn a_peer_that_routes_lead_to_keeps_its_number() {
    let (mut builder, mut rules) = start(1, 64);
    builder
        .want(wanted([route([10, 0, 0, 0], 8, Via::Tunnel(PeerId(1)))]))
        .unwrap();
    builder.leave(PeerId(1));
    for _ in 0..100 {
        assert_eq!(builder.advance(), []);
        rules[0].reader.quiescent();
    }
    builder.want(Wanted::default()).unwrap();
    assert_eq!(settle(&mut builder, &mut rules), [PeerId(1)]);
}

#[test]
fn what_cannot_be_had_changes_nothing() {
    let (mut builder, mut rules) = start(1, 64);
    let good = wanted([route([10, 0, 0, 0], 8, Via::Lan(0, None))]);
    builder.want(good.clone()).unwrap();
    settle(&mut builder, &mut rules);
    let many = |count: u32, len: u8| {
        let each = move |n: u32| {
            let addr = Ipv4Addr::from_bits(n.reverse_bits() | 1);
            (prefix(addr.into(), len), vec![Via::Discard])
        };
        wanted((0..count).map(each))
    };
    let scattered = |count: u16| {
        let each = |n: u16| {
            let addr = Ipv6Addr::new(n.reverse_bits(), n, 1, 2, 3, 4, 5, 6);
            (prefix(addr.into(), 128), vec![Via::Discard])
        };
        wanted((0..count).map(each))
    };
    let policy = |matching: Match, verdict| Wanted {
        policies: vec![Ruled {
            matching,
            class: 0,
            verdict,
        }],
        ..Wanted::default()
    };
    let ports = Match {
        protocol: Some(1),
        dst_ports: Some(1..=2),
        ..Match::ANY
    };
    for (wrong, expected) in [
        (many(321, 16), BuildError::Routes(321, 320)),
        (scattered(100), BuildError::Nodes(2800, 2560)),
        (
            wanted([route([10, 0, 0, 0], 8, Via::Lan(2, None))]),
            BuildError::Plan(PlanError::NoLan(2)),
        ),
        (
            wanted([route([10, 0, 0, 0], 8, Via::Lan(1, None))]),
            BuildError::Plan(PlanError::NoLan(1)),
        ),
        (
            wanted([(prefix([10, 0, 0, 0].into(), 8), Vec::new())]),
            BuildError::Hops(0),
        ),
        (
            policy(Match::ANY, Verdict::Via(vec![Via::Discard; 65])),
            BuildError::Hops(65),
        ),
    ] {
        assert_eq!(builder.want(wrong), Err(expected));
    }
    assert!(matches!(
        builder.want(policy(ports, Verdict::Drop)),
        Err(BuildError::Plan(_))
    ));
    settle(&mut builder, &mut rules);
    let dst = Ipv4Addr::new(10, 1, 1, 1).into();
    assert_eq!(sent(&rules[0], dst), meant(&good, dst, &[]));
    // As many as fit take the place of as many others.
    for count in [80, 79] {
        builder
            .want(scattered(count))
            .unwrap_or_else(|error| panic!("{count}: {error}"));
        settle(&mut builder, &mut rules);
    }
    let full: BTreeMap<_, _> = many(320, 32).routes;
    builder.want(wanted(full)).unwrap();
    settle(&mut builder, &mut rules);
}

#[test]
fn an_mtu_and_a_neighbour_that_change_are_published() {
    let (mut builder, mut rules) = start(1, 64);
    let to = Via::Lan(1, Some(neighbour(1)));
    let routes = [
        route([10, 0, 0, 0], 8, to),
        route([11, 0, 0, 0], 8, Via::Tunnel(PeerId(0))),
    ];
    builder.want(wanted(routes)).unwrap();
    settle(&mut builder, &mut rules);
    let dst = Ipv4Addr::new(10, 1, 1, 1).into();
    assert_eq!(
        sent(&rules[0], dst),
        Some(Exit::Unreachable),
        "nobody knows where it is"
    );
    builder.set_neighbour(1, neighbour(1), Some([2, 7, 7, 7, 7, 7]));
    settle(&mut builder, &mut rules);
    assert_eq!(
        sent(&rules[0], dst),
        Some(Exit::Lan(1, Some([2, 7, 7, 7, 7, 7, 2, 0, 0, 0, 0, 1])))
    );
    builder.set_tunnel_mtu(1300);
    builder.set_neighbour(1, neighbour(1), None);
    settle(&mut builder, &mut rules);
    assert_eq!(sent(&rules[0], dst), Some(Exit::Unreachable));
    let rules = &rules[0];
    let group = rules.v4.lookup(&rules.reader, &[11, 1, 1, 1]).unwrap();
    let hop = rules.snapshot.get(&rules.reader).hop(group, 0).unwrap();
    assert_eq!((hop.exit, hop.mtu), (Exit::Tunnel(PeerId(0)), 1300));
}
