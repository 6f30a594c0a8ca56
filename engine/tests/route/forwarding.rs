//! What a router says about packets that it cannot forward, and what it remembers of flows.

use patronus_engine::allowedips::Prefix;
use patronus_engine::channel::{Command, Notice};
use patronus_engine::classify::Match;
use patronus_engine::explain::{Asked, FLOWS_PER_QUERY, Query, Whither};
use patronus_engine::fib::Group;
use patronus_engine::snapshot::{Action, Exit, GROUP_HOPS_MAX, Hop, Plan, PlanError, Policy, Snapshot};
use patronus_engine::stats::{DropReason, Stage};
use patronus_io::ip::FlowKey;

use crate::common::packet::{self, Builder, checksum};
use crate::rig::{ETH0, ETH1, LANS, Rig, TUN, keys, lans, out};

/// Networks 1 and 2 on Ethernet, the second with an MTU of 1,280; 3 behind the TUN.
fn plan(epoch: u32, policies: Vec<Policy>) -> Plan {
    Plan {
        epoch,
        policies,
        groups: vec![vec![out(ETH0, 1500)], vec![out(ETH1, 1280)], vec![out(TUN, 1500)]],
        lans: lans(),
        spread_over: 0,
    }
}

fn dropping(prefix: &str, len: u8) -> Policy {
    Policy {
        matching: Match {
            dst: Prefix::new(prefix.parse().unwrap(), len),
            ..Match::ANY
        },
        class: 0,
        action: Action::Drop,
    }
}

/// Type, code and second word of the only ICMP error that came out of a port, with both checksums right, and what it quotes.
fn error(rig: &mut Rig, lan: usize) -> ([u8; 2], u32, Vec<u8>) {
    let taken = rig.taken(0, lan);
    assert_eq!(taken.len(), 1, "one packet out of LAN port {lan}");
    let packet = if lan == TUN {
        &taken[0][..]
    } else {
        &taken[0][14..]
    };
    let icmp = if packet[0] >> 4 == 4 {
        assert_eq!(packet[9], 1);
        assert_eq!(checksum(&[&packet[..20]]), 0);
        assert_eq!(checksum(&[&packet[20..]]), 0);
        &packet[20..]
    } else {
        assert_eq!(packet[6], 58);
        let pseudo = [0, 0, packet[4], packet[5], 0, 0, 0, 58];
        assert_eq!(checksum(&[&packet[8..40], &pseudo, &packet[40..]]), 0);
        &packet[40..]
    };
    let word = u32::from_be_bytes(icmp[4..8].try_into().unwrap());
    ([icmp[0], icmp[1]], word, icmp[8..].to_vec())
}

#[test]
fn the_last_hop_is_told_to_the_sender() {
    let mut rig = Rig::with_routes(1, &plan(1, Vec::new()));
    let mut sent = packet::between(1, 2, 1, 100);
    sent[8] = 1;
    rig.offer(0, ETH0, &sent);
    rig.settle();
    let (kind, word, quoted) = error(&mut rig, ETH0);
    assert_eq!((kind, word), ([11, 0], 0));
    assert_eq!(quoted, sent, "as it came");
    let mut sent = packet::between_v6(1, 2, 1, 100);
    sent[7] = 1;
    rig.offer(0, ETH0, &sent);
    rig.settle();
    assert_eq!(error(&mut rig, ETH0), ([3, 0], 0, sent));
    assert_eq!(rig.drops(), [(DropReason::RouteTtl, 2)]);
    // Behind a TUN is the host, which counts for itself.
    for (from, to, lan) in [(1, 3, TUN), (3, 2, ETH1)] {
        let mut sent = packet::between(from, to, 1, 100);
        sent[8] = 1;
        rig.offer(0, if from == 1 { ETH0 } else { TUN }, &sent);
        rig.settle();
        let taken = rig.taken(0, lan);
        assert!(taken[0].ends_with(&sent), "as it came");
    }
    rig.finish();
}

#[test]
fn a_network_that_nobody_knows_is_told_to_the_sender() {
    let mut rig = Rig::with_routes(1, &plan(1, Vec::new()));
    rig.offer(0, TUN, &packet::between(3, 9, 1, 100));
    rig.settle();
    assert_eq!(error(&mut rig, TUN).0, [3, 0]);
    rig.offer(0, TUN, &packet::between_v6(3, 9, 1, 100));
    rig.settle();
    assert_eq!(error(&mut rig, TUN).0, [1, 0]);
    assert_eq!(rig.drops(), [(DropReason::RouteNone, 2)]);
    rig.finish();
}

#[test]
fn a_packet_that_is_too_long_is_told_the_length_that_is_not() {
    let mut rig = Rig::with_routes(1, &plan(1, Vec::new()));
    for (len, fits) in [(1280, true), (1281, false)] {
        let mut sent = packet::between(1, 2, 1, len);
        sent[6] = 0x40;
        (sent[10], sent[11]) = (0, 0);
        let sum = checksum(&[&sent[..20]]);
        sent[10..12].copy_from_slice(&sum.to_be_bytes());
        rig.offer(0, ETH0, &sent);
        rig.offer(0, ETH0, &packet::between_v6(1, 2, 1, len));
        rig.settle();
        assert_eq!(rig.taken(0, ETH1).len(), if fits { 2 } else { 0 });
        assert_eq!(rig.dropped(DropReason::RouteTooBig), if fits { 0 } else { 2 });
    }
    let taken = rig.taken(0, ETH0);
    let of = |taken: &[u8]| (taken[0], taken[1], taken[4..8].to_vec());
    assert_eq!(of(&taken[0][14 + 20..]), (3, 4, 1280u32.to_be_bytes().to_vec()));
    assert_eq!(of(&taken[1][14 + 40..]), (2, 0, 1280u32.to_be_bytes().to_vec()));
    // One that may be cut up: its sender has done nothing wrong.
    rig.offer(0, ETH0, &packet::between(1, 2, 1, 1281));
    rig.settle();
    assert_eq!(
        (rig.taken(0, ETH0).len(), rig.dropped(DropReason::RouteTooBig)),
        (0, 3)
    );
    rig.finish();
}

#[test]
fn new_policies_hold_for_flows_that_there_are() {
    let mut rig = Rig::with_routes(1, &plan(1, Vec::new()));
    let sent = packet::between(1, 3, 1, 100);
    for (epoch, policies, passes) in [
        (2, vec![dropping("10.3.0.0", 24)], false),
        (3, vec![dropping("10.3.9.0", 24)], true),
        (4, vec![dropping("0.0.0.0", 0)], false),
        (5, Vec::new(), true),
    ] {
        rig.offer(0, ETH0, &sent);
        rig.settle();
        rig.taken(0, TUN);
        rig.publish(&plan(epoch, policies));
        rig.offer(0, ETH0, &sent);
        rig.settle();
        assert_eq!(rig.taken(0, TUN).len(), usize::from(passes), "epoch {epoch}");
        assert_eq!(
            rig.publisher.collect(&rig.domain),
            0,
            "nobody looks at the old one any more"
        );
    }
    assert_eq!(rig.workers[0].router().unwrap().flows(), 1);
    rig.finish();
}

#[test]
fn flows_beyond_the_table_are_routed_all_the_same() {
    let mut rig = Rig::new(1, 10, &plan(1, vec![dropping("10.3.9.0", 24)]));
    rig.route("10.3.0.0".parse().unwrap(), 16, 3);
    for flow in 0..50 {
        let sent = Builder {
            src_port: flow,
            ..Builder::new(packet::v4(1), packet::v4(3), u64::from(flow), 100)
        };
        rig.offer(0, ETH0, &sent.build());
    }
    rig.settle();
    assert_eq!(rig.taken(0, TUN).len(), 50);
    let router = rig.workers[0].router().unwrap();
    assert!(router.flows() <= 10);
    let unremembered = rig.stats[0].flows_unremembered.get();
    assert_eq!(unremembered, 50 - router.flows() as u64);
    assert_eq!(rig.drops(), []);
    rig.finish();
}

#[test]
fn frames_that_carry_no_ip_packet_are_dropped_by_name() {
    let mut rig = Rig::with_routes(1, &plan(1, Vec::new()));
    let frame = |kind: [u8; 2], packet: &[u8]| [&[0x54; 12][..], &kind, packet].concat();
    let packet = packet::between(1, 3, 1, 100);
    rig.inject(0, ETH0, &frame([0x81, 0], &packet));
    rig.inject(0, ETH0, &frame([0x08, 0x06], &[0; 46]));
    rig.inject(0, ETH0, &[0x55; 13]);
    rig.inject(0, ETH0, &frame([8, 0], &[0x15; 46]));
    rig.inject(0, ETH0, &frame([8, 0], &packet[..99]));
    rig.inject(0, ETH0, &[&[0xff; 6][..], &frame([8, 0], &packet)[6..]].concat());
    rig.inject(0, ETH0, &frame([8, 0], &packet));
    rig.settle();
    assert_eq!(rig.taken(0, TUN).len(), 1);
    assert_eq!(
        rig.drops(),
        [
            (DropReason::EthernetRunt, 1),
            (DropReason::EthernetVlan, 1),
            (DropReason::EthernetNotIp, 1),
            (DropReason::EthernetGroup, 1),
            (DropReason::RouteNotIp, 1),
            (DropReason::RouteBadLength, 1)
        ]
    );
    let stage = |stage| rig.stats[0].stage(stage);
    assert_eq!(stage(Stage::LanRx).packets.get(), 7);
    assert_eq!(stage(Stage::Route).packets.get(), 3);
    assert!(
        stage(Stage::Route).cycles.get() > 0
            || cfg!(not(any(target_arch = "x86_64", target_arch = "aarch64")))
    );
    rig.finish();
}

#[test]
fn a_group_spreads_its_flows_and_keeps_each_together() {
    let mut groups = plan(1, Vec::new());
    groups.groups[0] = vec![out(ETH0, 1500), out(ETH1, 1500), out(TUN, 1500)];
    let mut rig = Rig::with_routes(1, &groups);
    for round in 0..3 {
        for flow in 0..300 {
            let sent = Builder {
                src_port: flow,
                ..Builder::new(packet::v4(2), packet::v4(1), round, 100)
            };
            rig.offer(0, ETH1, &sent.build());
        }
        rig.settle();
    }
    let mut seen = 0;
    for lan in 0..LANS {
        let taken = rig.taken(0, lan);
        let at = if lan == TUN { 20 } else { 34 };
        let mut flows: Vec<[u8; 2]> = taken.iter().map(|p| [p[at], p[at + 1]]).collect();
        assert!(flows.len() > 200, "{} of 900 out of LAN port {lan}", flows.len());
        flows.sort_unstable();
        assert!(flows.chunk_by(|a, b| a == b).all(|flow| flow.len() == 3));
        seen += flows.len();
    }
    assert_eq!(seen, 900);
    rig.finish();
}

#[test]
fn what_a_plan_cannot_mean_is_said() {
    let hop = |exit, mtu| vec![vec![Hop { exit, mtu }]];
    let link = Some(crate::rig::link(ETH0));
    let compile = |plan: &Plan| Snapshot::compile(plan, keys()).err();
    let with_groups = |groups| Plan {
        groups,
        ..plan(1, Vec::new())
    };
    for (groups, error) in [
        (hop(Exit::Lan(TUN as u16, None), 1280), None),
        (hop(Exit::Discard, 0), None),
        (hop(Exit::Lan(3, None), 1500), Some(PlanError::NoLan(3))),
        (hop(Exit::Lan(ETH0 as u16, None), 1500), Some(PlanError::NoLan(0))),
        (hop(Exit::Lan(TUN as u16, link), 1500), Some(PlanError::NoLan(2))),
        (
            hop(Exit::Lan(ETH0 as u16, link), 1279),
            Some(PlanError::Mtu(1279)),
        ),
        (vec![Vec::new()], Some(PlanError::Hops(1))),
        (
            vec![vec![out(TUN, 1500); GROUP_HOPS_MAX + 1]],
            Some(PlanError::Hops(1)),
        ),
    ] {
        assert_eq!(compile(&with_groups(groups)), error);
    }
    assert_eq!(compile(&plan(0, Vec::new())), Some(PlanError::Epoch));
    let group = Group::new(4).unwrap();
    let policy = Policy {
        matching: Match::ANY,
        class: 0,
        action: Action::Via(group),
    };
    assert_eq!(compile(&plan(1, vec![policy])), Some(PlanError::NoGroup(group)));
    let many = Plan {
        spread_over: 256,
        ..plan(1, Vec::new())
    };
    assert_eq!(compile(&many), Some(PlanError::Workers(256)));
}

/// What a worker tells of flows is what it does with their packets, and what it remembers.
#[test]
fn what_is_explained_is_what_happens() {
    let classed = Policy {
        class: 3,
        action: Action::Route,
        ..dropping("10.3.0.0", 16)
    };
    let mut rig = Rig::with_routes(1, &plan(1, vec![dropping("10.2.0.0", 16), classed]));
    let ask = |rig: &mut Rig, asked: Asked| {
        let query = Box::new(Query::new(9, 0, asked));
        assert!(rig.workers[0].inbox().commands.push(Command::Ask(query)).is_ok());
        rig.settle();
        match rig.slow.notices.pop() {
            Some(Notice::Told(query)) => query,
            _ => panic!("an answer"),
        }
    };
    let flow = |dst: [u8; 4]| FlowKey::v4([10, 1, 0, 9], dst, 17, 1, 2);
    let told = |rig: &mut Rig, dst| ask(rig, Asked::Flow(flow(dst))).told[0];
    let to_eth1 = told(&mut rig, [10, 2, 0, 1]);
    assert_eq!(
        (to_eth1.whither, to_eth1.policy, to_eth1.class),
        (Whither::Dropped, Some(0), 0)
    );
    let to_tun = told(&mut rig, [10, 3, 0, 1]);
    assert_eq!(to_tun.whither, Whither::Exit(out(TUN, 1500).exit));
    assert_eq!((to_tun.policy, to_tun.class, to_tun.idle), (Some(1), 3, None));
    let nowhere = told(&mut rig, [10, 99, 0, 1]);
    assert_eq!((nowhere.whither, nowhere.policy), (Whither::NoRoute, None));
    // Packets of some flows: those are remembered, once each.
    for n in 0..200u16 {
        let mut sent = packet::between(1, 3, n.into(), 100);
        sent[20..22].copy_from_slice(&n.to_be_bytes());
        rig.offer(0, ETH0, &sent);
    }
    rig.settle();
    let (mut from, mut flows) = (Some(0), Vec::new());
    while let Some(place) = from {
        let query = ask(&mut rig, Asked::Flows(place));
        assert!(query.told.len() <= FLOWS_PER_QUERY);
        assert!(
            query
                .told
                .iter()
                .all(|told| told.class == 3 && told.idle.is_some())
        );
        flows.extend(query.told.iter().map(|told| *told.key.words()));
        from = query.next;
    }
    let count = flows.len();
    flows.sort_unstable();
    flows.dedup();
    assert_eq!((flows.len(), count), (200, 200), "each once");
}
