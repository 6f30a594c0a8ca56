//! The classifier against the first match in a list.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use patronus_engine::allowedips::Prefix;
use patronus_engine::classify::{Classifier, CompileError, Match, POLICIES_MAX};
use patronus_engine::flow::HashKeys;
use patronus_io::ip::FlowKey;
use proptest::prelude::*;

fn keys() -> HashKeys {
    HashKeys::new(
        [1, 22, 333, 4444, 55555, 666_666, 7_777_777].map(|n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
    )
}

/// A flow as a policy sees it.
#[derive(Clone, Copy, Debug)]
struct Flow {
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    src_port: u16,
    dst_port: u16,
    dscp: u8,
}

impl Flow {
    fn key(&self) -> FlowKey {
        let Flow {
            protocol,
            src_port,
            dst_port,
            ..
        } = *self;
        let key = match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                FlowKey::v4(src.octets(), dst.octets(), protocol, src_port, dst_port)
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                FlowKey::v6(src.octets(), dst.octets(), protocol, src_port, dst_port)
            }
            _ => unreachable!("one family"),
        };
        key.with_dscp(self.dscp)
    }
}

fn contains(prefix: &Option<Prefix>, addr: IpAddr) -> bool {
    prefix.is_none_or(|prefix| Prefix::new(addr, prefix.cidr()) == Some(prefix))
}

fn matches(policy: &Match, flow: &Flow) -> bool {
    let has_ports = matches!(flow.protocol, 6 | 17);
    if !has_ports && (policy.src_ports.is_some() || policy.dst_ports.is_some()) {
        return false;
    }
    contains(&policy.src, flow.src)
        && contains(&policy.dst, flow.dst)
        && policy.protocol.is_none_or(|protocol| protocol == flow.protocol)
        && policy
            .src_ports
            .as_ref()
            .is_none_or(|ports| ports.contains(&flow.src_port))
        && policy
            .dst_ports
            .as_ref()
            .is_none_or(|ports| ports.contains(&flow.dst_port))
        && policy.dscps.is_none_or(|set| set & 1 << flow.dscp != 0)
}

/// Addresses of which many are in the same networks.
fn address(ipv6: bool) -> impl Strategy<Value = IpAddr> {
    let octet = prop_oneof![Just(0u8), Just(1), Just(0x80), any::<u8>()];
    prop::collection::vec(octet, 4).prop_map(move |o| {
        if ipv6 {
            let [a, b, c, d] = [o[0], o[1], o[2], o[3]].map(u16::from);
            IpAddr::V6(Ipv6Addr::new(0x2001, a << 8 | b, 0, c, 0, 0, d << 8, a))
        } else {
            IpAddr::V4(Ipv4Addr::new(10, o[1], o[2], o[3]))
        }
    })
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![
        Just(53u16),
        Just(443),
        Just(0),
        Just(u16::MAX),
        1000..1100u16,
        any::<u16>()
    ]
}

fn ports() -> impl Strategy<Value = Option<std::ops::RangeInclusive<u16>>> {
    prop::option::of(prop_oneof![
        port().prop_map(|port| port..=port),
        (port(), port()).prop_map(|(a, b)| a.min(b)..=a.max(b)),
        (port(), 0..16u32).prop_map(|(port, bits)| {
            let within = ((1u32 << bits) - 1) as u16;
            port & !within..=port | within
        }),
    ])
}

fn policy() -> impl Strategy<Value = Match> {
    any::<bool>().prop_flat_map(|ipv6| {
        let longest: u8 = if ipv6 { 128 } else { 32 };
        let prefix = move || {
            prop::option::of(
                (address(ipv6), prop_oneof![0..=longest, Just(longest), Just(24u8)])
                    .prop_map(|(addr, len)| Prefix::new(addr, len).expect("a length of the family")),
            )
        };
        let protocol = prop::option::of(prop_oneof![Just(6u8), Just(17), Just(1)]);
        let dscps = prop::option::of(prop_oneof![Just(1u64), Just(1 << 46), 1..=u64::MAX]);
        (prefix(), prefix(), protocol, ports(), ports(), dscps).prop_map(
            |(src, dst, protocol, src_ports, dst_ports, dscps)| {
                let has_ports = protocol != Some(1);
                Match {
                    src,
                    dst,
                    protocol,
                    src_ports: src_ports.filter(|_| has_ports),
                    dst_ports: dst_ports.filter(|_| has_ports),
                    dscps,
                }
            },
        )
    })
}

fn flow() -> impl Strategy<Value = Flow> {
    any::<bool>().prop_flat_map(|ipv6| {
        let protocol = prop_oneof![Just(6u8), Just(17), Just(1)];
        let dscp = prop_oneof![Just(0u8), Just(46), 0..64u8];
        (address(ipv6), address(ipv6), protocol, port(), port(), dscp).prop_map(
            |(src, dst, protocol, src_port, dst_port, dscp)| Flow {
                src,
                dst,
                protocol,
                src_port,
                dst_port,
                dscp,
            },
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_first_policy_that_matches_decides(
        policies in prop::collection::vec(policy(), 0..60),
        flows in prop::collection::vec(flow(), 1..60),
    ) {
        let classifier = Classifier::compile(&policies, keys()).expect("valid policies");
        for flow in &flows {
            let first = policies.iter().position(|policy| matches(policy, flow));
            prop_assert_eq!(classifier.classify(&flow.key()), first, "{:?}", flow);
        }
    }

    #[test]
    fn every_policy_is_found_by_a_flow_of_its_own(policies in prop::collection::vec(policy(), 1..40)) {
        // A flow inside each policy, so that policies are hit and not only missed.
        let classifier = Classifier::compile(&policies, keys()).expect("valid policies");
        for policy in &policies {
            let some = policy.src.or(policy.dst).map_or(Ipv4Addr::new(10, 9, 8, 7).into(), |prefix| prefix.addr());
            let flow = Flow {
                src: policy.src.map_or(some, |prefix| prefix.addr()),
                dst: policy.dst.map_or(some, |prefix| prefix.addr()),
                protocol: policy.protocol.unwrap_or(6),
                src_port: policy.src_ports.as_ref().map_or(1, |ports| *ports.end()),
                dst_port: policy.dst_ports.as_ref().map_or(1, |ports| *ports.start()),
                dscp: policy.dscps.map_or(0, |set| set.trailing_zeros() as u8 % 64),
            };
            let first = policies.iter().position(|policy| matches(policy, &flow));
            prop_assert!(first.is_some());
            prop_assert_eq!(classifier.classify(&flow.key()), first, "{:?}", flow);
        }
    }
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let prefix = |addr: &str, len| Prefix::new(addr.parse().unwrap(), len);
    let both = Match {
        src: prefix("10.0.0.0", 8),
        dst: prefix("2001:db8::", 32),
        ..Match::ANY
    };
    let compile = |policies: &[Match]| Classifier::compile(policies, keys()).map(|_| ());
    assert_eq!(compile(&[Match::ANY, both]), Err(CompileError::Families(1)));
    #[allow(clippy::reversed_empty_ranges)]
    let backwards = Match {
        dst_ports: Some(10..=9),
        ..Match::ANY
    };
    let error = compile(&[backwards]).expect_err("an empty range");
    assert_eq!(error, CompileError::Nothing(0));
    assert!(error.to_string().contains("policy 0"));
    let no_dscp = Match {
        dscps: Some(0),
        ..Match::ANY
    };
    assert_eq!(compile(&[no_dscp]), Err(CompileError::Nothing(0)));
    let icmp_ports = Match {
        protocol: Some(1),
        dst_ports: Some(0..=5),
        ..Match::ANY
    };
    assert_eq!(compile(&[icmp_ports]), Err(CompileError::Ports(0)));
    assert_eq!(compile(&vec![Match::ANY; POLICIES_MAX]), Ok(()));
    assert_eq!(
        compile(&vec![Match::ANY; POLICIES_MAX + 1]),
        Err(CompileError::TooMany(POLICIES_MAX + 1))
    );
}
