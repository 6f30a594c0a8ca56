//! The router against the same written down plainly: lists for policies and routes, one packet at a time.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use patronus_engine::allowedips::Prefix;
use patronus_engine::classify::Match;
use patronus_engine::fib::Group;
use patronus_engine::snapshot::{Action, Exit, Hop, Plan, Policy};
use patronus_engine::stats::DropReason;
use proptest::prelude::*;

use crate::common::packet::{Builder, checksum};
use crate::rig::{ETH0, ETH1, LANS, Rig, TUN, lans, link, out};

/// Groups by number: the LAN ports, a tunnel to nobody, nothing, and a short one.
fn groups() -> Vec<Vec<Hop>> {
    let exit = |exit| vec![Hop { exit, mtu: 1500 }];
    vec![
        vec![out(ETH0, 1500)],
        vec![out(ETH1, 1500)],
        vec![out(TUN, 1500)],
        exit(Exit::Tunnel(patronus_crypto::PeerId(3))),
        exit(Exit::Discard),
        vec![out(ETH1, 1280)],
    ]
}

/// A packet and where it comes in.
#[derive(Clone, Debug)]
struct Sent {
    lan: usize,
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    dscp: u8,
    ttl: u8,
    len: usize,
    id: u64,
}

impl Sent {
    fn build(&self) -> Vec<u8> {
        let mut packet = Builder {
            tos: self.dscp << 2,
            protocol: self.protocol,
            ..Builder::new(self.src, self.dst, self.id, self.len)
        }
        .build();
        if self.src.is_ipv4() {
            (packet[8], packet[10], packet[11]) = (self.ttl, 0, 0);
            let sum = checksum(&[&packet[..20]]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            packet[7] = self.ttl;
        }
        packet
    }
}

fn addr() -> impl Strategy<Value = IpAddr> {
    // Few of them, so that they meet policies and routes; some that nobody routes.
    prop_oneof![
        8 => (0..3u8, 0..4u8).prop_map(|(b, d)| IpAddr::V4(Ipv4Addr::new(10, b, 0, d))),
        6 => (0..3u16, 0..4u16).prop_map(|(b, h)| IpAddr::V6(Ipv6Addr::new(0xfd00, b, 0, 0, 0, 0, 0, h))),
        1 => prop_oneof![
            Just("127.0.0.1"), Just("0.0.0.1"), Just("169.254.1.1"), Just("224.0.0.5"), Just("224.0.1.5"), Just("240.0.0.1"), Just("255.255.255.255"),
            Just("::"), Just("::1"), Just("fe80::1"), Just("ff02::1"), Just("ff05::1")
        ].prop_map(|text| text.parse().unwrap()),
    ]
}

fn sent() -> impl Strategy<Value = Sent> {
    let addrs = (addr(), addr()).prop_filter("of one family", |(src, dst)| src.is_ipv4() == dst.is_ipv4());
    (
        0..LANS,
        addrs,
        prop_oneof![Just(6u8), Just(17), Just(89)],
        prop_oneof![Just(0u8), Just(46)],
        prop_oneof![4 => 2..=255u8, 1 => 0..=1u8],
        prop_oneof![Just(60usize), Just(1280), Just(1281), 60..1501usize],
    )
        .prop_map(|(lan, (src, dst), protocol, dscp, ttl, len)| Sent {
            lan,
            src,
            dst,
            protocol,
            dscp,
            ttl,
            len,
            id: 0,
        })
}

fn prefix() -> impl Strategy<Value = Prefix> {
    (addr(), 0..=128u8).prop_map(|(addr, len)| {
        let len = if addr.is_ipv4() { len % 33 } else { len };
        Prefix::new(addr, len).unwrap()
    })
}

fn policy() -> impl Strategy<Value = Policy> {
    let action = prop_oneof![
        2 => Just(Action::Route),
        2 => (1..=6u32).prop_map(|n| Action::Via(Group::new(n).unwrap())),
        1 => Just(Action::Drop),
    ];
    let side = || proptest::option::of(prefix());
    let protocol = proptest::option::of(prop_oneof![Just(6u8), Just(17)]);
    let dscps = proptest::option::of(prop_oneof![Just(1u64), Just(1 << 46)]);
    (side(), side(), protocol, dscps, action)
        .prop_filter("of one family", |(src, dst, ..)| match (src, dst) {
            (Some(src), Some(dst)) => src.addr().is_ipv4() == dst.addr().is_ipv4(),
            _ => true,
        })
        .prop_map(|(src, dst, protocol, dscps, action)| Policy {
            matching: Match {
                src,
                dst,
                protocol,
                dscps,
                ..Match::ANY
            },
            class: 0,
            action,
        })
}

fn contains(prefix: &Prefix, addr: IpAddr) -> bool {
    Prefix::new(addr, prefix.cidr()) == Some(*prefix)
}

fn is_martian(addr: IpAddr, is_source: bool) -> bool {
    match addr {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            let of_link = (a, b, c) == (224, 0, 0) || a >= 240;
            a == 0 || ip.is_loopback() || ip.is_link_local() || of_link || is_source && ip.is_multicast()
        }
        IpAddr::V6(ip) => {
            let of_link = ip.is_multicast() && ip.segments()[0] & 0xf <= 2;
            ip.is_unspecified()
                || ip.is_loopback()
                || ip.is_unicast_link_local()
                || of_link
                || is_source && ip.is_multicast()
        }
    }
}

/// What becomes of a packet: out of this LAN port, or dropped.
fn expected(
    sent: &Sent,
    policies: &[Policy],
    routes: &[(Prefix, u32)],
) -> Result<(usize, Vec<u8>), DropReason> {
    if is_martian(sent.src, true) || is_martian(sent.dst, false) {
        return Err(DropReason::RouteMartian);
    }
    let comes_under = |policy: &&Policy| {
        let Match {
            src,
            dst,
            protocol,
            dscps,
            ..
        } = &policy.matching;
        src.as_ref().is_none_or(|prefix| contains(prefix, sent.src))
            && dst.as_ref().is_none_or(|prefix| contains(prefix, sent.dst))
            && protocol.is_none_or(|protocol| protocol == sent.protocol)
            && dscps.is_none_or(|set| set & 1 << sent.dscp != 0)
    };
    let around = routes.iter().filter(|(prefix, _)| contains(prefix, sent.dst));
    let group = match policies.iter().find(comes_under).map(|policy| policy.action) {
        Some(Action::Drop) => return Err(DropReason::RoutePolicy),
        Some(Action::Via(group)) => Some(group.number()),
        // Of equal prefixes the last one put in.
        _ => around
            .max_by_key(|(prefix, _)| prefix.cidr())
            .map(|(_, group)| *group),
    };
    let hop = groups()[group.ok_or(DropReason::RouteNone)? as usize - 1][0];
    let mut packet = sent.build();
    let lan = match hop.exit {
        Exit::Discard => return Err(DropReason::RouteDiscard),
        Exit::Unreachable => return Err(DropReason::NeighbourUnknown),
        Exit::Lan(lan, _) | Exit::Neighbour(lan, _) => Some(usize::from(lan)),
        Exit::Tunnel(_) => None,
    };
    if sent.lan == TUN && lan == Some(TUN) {
        return Err(DropReason::RouteNone);
    }
    let is_router = sent.lan != TUN && lan != Some(TUN);
    if is_router && sent.ttl <= 1 {
        return Err(DropReason::RouteTtl);
    }
    if packet.len() > usize::from(hop.mtu) {
        return Err(DropReason::RouteTooBig);
    }
    if is_router {
        packet = Sent {
            ttl: sent.ttl - 1,
            ..sent.clone()
        }
        .build();
    }
    let lan = lan.ok_or(DropReason::EncapNoPeer)?;
    if lan != TUN {
        let kind: [u8; 2] = if sent.src.is_ipv4() { [8, 0] } else { [0x86, 0xdd] };
        packet = [&link(lan)[..], &kind, &packet].concat();
    }
    Ok((lan, packet))
}

/// An error of ours about a packet; no packet of the test is ICMP.
fn is_icmp(lan: usize, bytes: &[u8]) -> bool {
    let packet = if lan == TUN { bytes } else { &bytes[14..] };
    if packet[0] >> 4 == 4 {
        packet[9] == 1
    } else {
        packet[6] == 58
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_router_does_what_the_lists_say(
        policies in proptest::collection::vec(policy(), 0..8),
        routes in proptest::collection::vec((prefix(), 1..=6u32), 0..12),
        mut packets in proptest::collection::vec(sent(), 1..300),
        flows in prop_oneof![Just(4usize), Just(1000)],
    ) {
        let plan = Plan { epoch: 1, policies: policies.clone(), groups: groups(), lans: lans(), spread_over: 0 };
        let mut rig = Rig::new(1, flows, &plan);
        let mut kept: Vec<(Prefix, u32)> = Vec::new();
        for (prefix, group) in &routes {
            rig.route(prefix.addr(), prefix.cidr(), *group);
            kept.retain(|(other, _)| other != prefix);
            kept.push((*prefix, *group));
        }
        let mut leaving = vec![vec![Vec::new(); LANS]; LANS];
        let mut reasons = std::collections::HashMap::<&str, u64>::new();
        for (id, packet) in packets.iter_mut().enumerate() {
            packet.id = id as u64;
            rig.offer(0, packet.lan, &packet.build());
            match expected(packet, &policies, &kept) {
                Ok((lan, bytes)) => leaving[packet.lan][lan].push(bytes),
                Err(reason) => *reasons.entry(reason.name()).or_default() += 1,
            }
        }
        rig.settle();
        let mut out = 0;
        for lan in 0..LANS {
            let taken = rig.taken(0, lan);
            out += taken.len() as u64;
            let mut taken: Vec<_> = taken.into_iter().filter(|bytes| !is_icmp(lan, bytes)).collect();
            // In order of arrival from each port; ports take turns.
            for from in &leaving {
                let mut wanted = from[lan].iter().peekable();
                taken.retain(|bytes| wanted.next_if_eq(&bytes).is_none());
                prop_assert_eq!(wanted.next(), None, "out of LAN port {}", lan);
            }
            prop_assert!(taken.is_empty(), "{:?} came out of LAN port {}", taken, lan);
        }
        for (reason, count) in &reasons {
            let named = patronus_engine::stats::DropReason::ALL.iter().find(|r| r.name() == *reason).unwrap();
            prop_assert!(rig.dropped(*named) >= *count, "{}: {} of {}", reason, rig.dropped(*named), count);
        }
        let dropped: u64 = rig.drops().iter().map(|(_, count)| count).sum();
        prop_assert_eq!(packets.len() as u64 + rig.icmp_sent(), out + dropped, "{:?}", rig.drops());
        rig.finish();
    }

    #[test]
    fn whatever_arrives_is_sent_on_or_dropped_under_a_name(
        frames in proptest::collection::vec((0..LANS, proptest::collection::vec(any::<u8>(), 0..100), any::<bool>()), 1..100),
    ) {
        let plan = Plan { epoch: 1, policies: Vec::new(), groups: groups(), lans: lans(), spread_over: 0 };
        let mut rig = Rig::new(1, 100, &plan);
        rig.route("0.0.0.0".parse().unwrap(), 0, 2);
        rig.route("::".parse().unwrap(), 0, 3);
        for (lan, bytes, plausible) in &frames {
            let mut bytes = bytes.clone();
            let at = if *lan == TUN { 0 } else { 14 };
            if *plausible && bytes.len() > at {
                if at == 14 {
                    bytes[12..14].copy_from_slice(&[8, 0]);
                }
                bytes[at] = if bytes[at] & 1 == 0 { 0x45 } else { 0x60 };
            }
            rig.inject(0, *lan, &bytes);
        }
        rig.settle();
        let out: usize = (0..LANS).map(|lan| rig.taken(0, lan).len()).sum();
        let dropped: u64 = rig.drops().iter().map(|(_, count)| count).sum();
        prop_assert_eq!(frames.len() as u64 + rig.icmp_sent(), out as u64 + dropped);
        rig.finish();
    }
}
