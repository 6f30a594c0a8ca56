//! The filter against a matcher that takes its time, and its parser against anything.

use std::net::IpAddr;

use patronus_observe::{Filter, Headers, Subject};
use proptest::prelude::*;

/// A filter as somebody would think of it.
#[derive(Clone, Debug)]
enum Thought {
    And(Vec<Thought>),
    Or(Vec<Thought>),
    Not(Box<Thought>),
    Net(&'static str, String, u8),
    Port(&'static str, u16, u16),
    ProtocolPort(&'static str, &'static str, u16),
    Word(&'static str),
    Proto(u8),
    Peer(u32),
}

impl Thought {
    fn text(&self) -> String {
        let join = |all: &[Thought], word: &str| {
            let all: Vec<_> = all.iter().map(|one| format!("({})", one.text())).collect();
            all.join(word)
        };
        match self {
            Thought::And(all) => join(all, " and "),
            Thought::Or(all) => join(all, " || "),
            Thought::Not(one) => format!("not ({})", one.text()),
            Thought::Net(end, address, len) => format!("{end} net {address}/{len}"),
            Thought::Port(end, low, high) => format!("{end} port {low}-{high}"),
            Thought::ProtocolPort(protocol, end, port) => format!("{protocol} {end} port {port}"),
            Thought::Word(word) => (*word).to_owned(),
            Thought::Proto(number) => format!("proto {number}"),
            Thought::Peer(number) => format!("peer key{number}"),
        }
    }

    /// All answers that are possible, over all peers that it may be.
    fn holds(&self, subject: &Subject, peer: u32) -> bool {
        let either = |end: &str, src: bool, dst: bool| match end {
            "src" => src,
            "dst" => dst,
            _ => src || dst,
        };
        let on = |ask: &dyn Fn(&Headers) -> bool| subject.headers.as_ref().is_some_and(ask);
        match self {
            Thought::And(all) => all.iter().all(|one| one.holds(subject, peer)),
            Thought::Or(all) => all.iter().any(|one| one.holds(subject, peer)),
            Thought::Not(one) => !one.holds(subject, peer),
            Thought::Net(end, address, len) => on(&|h| {
                let net: IpAddr = address.parse().unwrap();
                either(end, same_bits(h.src, net, *len), same_bits(h.dst, net, *len))
            }),
            Thought::Port(end, low, high) => on(&|h| {
                h.ports.is_some_and(|(src, dst)| {
                    either(end, *low <= src && src <= *high, *low <= dst && dst <= *high)
                })
            }),
            Thought::ProtocolPort(protocol, end, port) => on(&|h| {
                let number = if *protocol == "tcp" { 6 } else { 17 };
                h.protocol == number
                    && h.ports
                        .is_some_and(|(src, dst)| either(end, src == *port, dst == *port))
            }),
            Thought::Word("ip") => on(&|h| h.src.is_ipv4()),
            Thought::Word("ip6") => on(&|h| h.src.is_ipv6()),
            Thought::Word("tcp") => on(&|h| h.protocol == 6),
            Thought::Word("udp") => on(&|h| h.protocol == 17),
            Thought::Word("icmp") => on(&|h| h.protocol == 1),
            Thought::Word("inbound") => subject.inbound,
            Thought::Word(_) => !subject.inbound,
            Thought::Proto(number) => on(&|h| h.protocol == *number),
            Thought::Peer(number) => *number == peer,
        }
    }
}

/// Bit by bit.
fn same_bits(one: IpAddr, other: IpAddr, len: u8) -> bool {
    let bits = |ip: IpAddr| -> Vec<bool> {
        let octets = match ip {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        octets
            .iter()
            .flat_map(|octet| (0..8).rev().map(move |bit| octet >> bit & 1 == 1))
            .collect()
    };
    one.is_ipv4() == other.is_ipv4() && bits(one)[..usize::from(len)] == bits(other)[..usize::from(len)]
}

fn end() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["src", "dst", ""])
}

fn address() -> impl Strategy<Value = (String, u8)> {
    let v4 = (0..4_u8, 0..4_u8, 0..=32_u8).prop_map(|(a, b, len)| (format!("10.{a}.0.{b}"), len));
    let v6 = (0..4_u16, 0..=128_u8).prop_map(|(a, len)| (format!("2001:db8::{a}"), len));
    prop_oneof![v4, v6]
}

fn thought() -> impl Strategy<Value = Thought> {
    let leaf = prop_oneof![
        (end(), address()).prop_map(|(end, (address, len))| Thought::Net(end, address, len)),
        (end(), 0..6_u16, 0..6_u16).prop_map(|(end, a, b)| Thought::Port(end, a.min(b), a.max(b))),
        (prop::sample::select(vec!["tcp", "udp"]), end(), 0..6_u16)
            .prop_map(|(protocol, end, port)| Thought::ProtocolPort(protocol, end, port)),
        prop::sample::select(vec!["ip", "ip6", "tcp", "udp", "icmp", "inbound", "outbound"])
            .prop_map(Thought::Word),
        (0..20_u8).prop_map(Thought::Proto),
        (0..3_u32).prop_map(Thought::Peer),
    ];
    leaf.prop_recursive(4, 24, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 1..4).prop_map(Thought::And),
            prop::collection::vec(inner.clone(), 1..4).prop_map(Thought::Or),
            inner.prop_map(|one| Thought::Not(Box::new(one))),
        ]
    })
}

fn subject() -> impl Strategy<Value = Subject> {
    let v4 = (0..4_u8, 0..4_u8).prop_map(|(a, b)| IpAddr::from([10, a, 0, b]));
    let v6 = (0..4_u16).prop_map(|a| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, a]));
    let ends = prop_oneof![(v4.clone(), v4), (v6.clone(), v6)];
    let headers =
        (ends, 0..20_u8, prop::option::of((0..6_u16, 0..6_u16))).prop_map(|((src, dst), protocol, ports)| {
            Headers {
                src,
                dst,
                protocol,
                ports: ports.filter(|_| matches!(protocol, 6 | 17)),
            }
        });
    (
        prop::option::weighted(0.9, headers),
        any::<bool>(),
        prop::option::of(0..3_u32),
    )
        .prop_map(|(headers, inbound, peer)| Subject {
            headers,
            inbound,
            peer,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn it_says_what_was_thought(thought in thought(), subject in subject()) {
        let text = thought.text();
        let Ok(mut filter) = Filter::parse(&text) else {
            // Too many tests, or too long.
            prop_assume!(false);
            unreachable!()
        };
        filter.resolve(|key| key.strip_prefix("key").unwrap().parse().map_err(|_| String::new())).unwrap();
        match (filter.test(&subject), subject.peer) {
            (said, Some(peer)) => prop_assert_eq!(said, Some(thought.holds(&subject, peer)), "{}", text),
            // What it is sure of without knowing whose it is holds for everybody's.
            (Some(said), None) => {
                for peer in 0..4 {
                    prop_assert_eq!(said, thought.holds(&subject, peer), "{} {}", text, peer);
                }
            }
            (None, None) => prop_assert!(text.contains("peer"), "{}", text),
        }
    }

    #[test]
    fn nothing_that_is_typed_is_too_strange(text in "[a-z0-9!()&|./: -]{0,60}|\\PC{0,60}") {
        if let Err(error) = Filter::parse(&text) {
            prop_assert!(error.at <= text.len() && text.is_char_boundary(error.at), "{error}");
        }
    }
}
