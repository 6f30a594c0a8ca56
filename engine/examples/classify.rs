//! Measures the classifier: nanoseconds a new flow with 10, 1,000 and 10,000 policies, beside trying one after the other.
//!
//! ```text
//! cargo run --release -p patronus-engine --example classify [ROUNDS]
//! ```
//!
//! Policies are drawn as an administrator writes them: networks of sites and single servers, well-known UDP and TCP ports, a few ranges,
//! some DSCPs; those that say less come later, and one for the rest comes last. Each flow is drawn from a random policy. Medians of the rounds in the
//! thread's own CPU time, subjects in turn.

mod common;

use std::hint::black_box;
use std::net::Ipv4Addr;

use common::{Numbers, cpu_time, median};
use patronus_engine::allowedips::Prefix;
use patronus_engine::classify::{Classifier, Match};
use patronus_engine::flow::HashKeys;
use patronus_io::ip::FlowKey;

/// Flows in one measurement.
const FLOWS: usize = 1 << 14;

/// Of the linear search fewer: it takes long.
const LINEAR_FLOWS: usize = 1 << 9;

/// Draws policies.
struct Drawer(Numbers);

impl Drawer {
    fn below(&mut self, end: usize) -> usize {
        self.0.below(end)
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// A network of one of 4,000 sites, or a server there.
    fn network(&mut self) -> Option<Prefix> {
        let len = self.of(&[0, 0, 16, 20, 24, 24, 24, 32, 32]);
        let addr = Ipv4Addr::from_bits(10 << 24 | (self.below(4000) as u32) << 12 | self.below(4096) as u32);
        (len > 0).then(|| Prefix::new(addr.into(), len).expect("a length of the family"))
    }

    fn policy(&mut self) -> Match {
        let dst_ports = match self.below(10) {
            0..5 => Some(self.of(&[22, 25, 53, 80, 123, 443, 445, 3389, 5060, 8080])).map(|port| port..=port),
            5 => Some(1024..=u16::MAX),
            6 => Some(16_384..=32_767),
            7 => Some(5060..=5090),
            _ => None,
        };
        Match {
            src: self.network(),
            dst: self.network(),
            protocol: self.of(&[Some(6), Some(6), Some(17), None]),
            src_ports: None,
            dst_ports,
            dscps: self.of(&[None, None, None, None, None, Some(1 << 46), Some(1 << 34)]),
        }
    }
}

/// A flow and how the oracle sees it.
struct Flow {
    src: Ipv4Addr,
    dst: Ipv4Addr,
    protocol: u8,
    src_port: u16,
    dst_port: u16,
    dscp: u8,
}

impl Flow {
    /// One that comes under a policy.
    fn of(policy: &Match, numbers: &mut Drawer) -> Flow {
        let mut inside = |prefix: &Option<Prefix>| {
            let any = numbers.0.next() as u32;
            match prefix.map(|prefix| (prefix.addr(), prefix.cidr())) {
                Some((std::net::IpAddr::V4(addr), len)) => Ipv4Addr::from_bits(
                    addr.to_bits() | any & u32::MAX.checked_shr(u32::from(len)).unwrap_or(0),
                ),
                _ => Ipv4Addr::from_bits(any),
            }
        };
        Flow {
            src: inside(&policy.src),
            dst: inside(&policy.dst),
            protocol: policy.protocol.unwrap_or(17),
            src_port: 50_000,
            dst_port: policy.dst_ports.as_ref().map_or(7, |ports| *ports.start()),
            dscp: policy.dscps.map_or(0, |set| set.trailing_zeros() as u8),
        }
    }

    fn key(&self) -> FlowKey {
        FlowKey::v4(
            self.src.octets(),
            self.dst.octets(),
            self.protocol,
            self.src_port,
            self.dst_port,
        )
        .with_dscp(self.dscp)
    }

    fn matches(&self, policy: &Match) -> bool {
        let inside = |prefix: &Option<Prefix>, addr: Ipv4Addr| {
            prefix.is_none_or(|prefix| Prefix::new(addr.into(), prefix.cidr()) == Some(prefix))
        };
        policy.protocol.is_none_or(|protocol| protocol == self.protocol)
            && policy
                .dst_ports
                .as_ref()
                .is_none_or(|ports| ports.contains(&self.dst_port))
            && inside(&policy.dst, self.dst)
            && inside(&policy.src, self.src)
            && policy.dscps.is_none_or(|set| set & 1 << self.dscp != 0)
    }
}

/// How much a policy leaves open.
fn breadth(policy: &Match) -> u8 {
    let of = |prefix: &Option<Prefix>| 32 - prefix.map_or(0, |prefix| prefix.cidr());
    of(&policy.src) + of(&policy.dst) + 16 * u8::from(policy.dst_ports.is_none())
}

fn main() {
    let rounds = std::env::args()
        .nth(1)
        .and_then(|rounds| rounds.parse().ok())
        .unwrap_or(7);
    let mut numbers = Drawer(Numbers::new());
    for count in [10, 1000, 10_000] {
        let mut policies: Vec<Match> = (1..count).map(|_| numbers.policy()).collect();
        policies.sort_by_key(breadth);
        policies.push(Match::ANY);
        let before = cpu_time();
        let keys = HashKeys::new(std::array::from_fn(|_| numbers.0.next()));
        let classifier = Classifier::compile(&policies, keys).expect("valid policies");
        let compiled = cpu_time() - before;
        let (mut ours, mut linear) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let flows: Vec<Flow> = (0..FLOWS)
                .map(|_| {
                    let at = numbers.below(policies.len());
                    Flow::of(&policies[at], &mut numbers)
                })
                .collect();
            let keys: Vec<FlowKey> = flows.iter().map(Flow::key).collect();
            let before = cpu_time();
            for key in &keys {
                black_box(classifier.classify(black_box(key)));
            }
            ours.push((cpu_time() - before).as_nanos() as f64 / FLOWS as f64);
            let before = cpu_time();
            for flow in &flows[..LINEAR_FLOWS] {
                black_box(policies.iter().position(|policy| flow.matches(policy)));
            }
            linear.push((cpu_time() - before).as_nanos() as f64 / LINEAR_FLOWS as f64);
            for (key, flow) in keys.iter().zip(&flows[..LINEAR_FLOWS]) {
                let first = policies.iter().position(|policy| flow.matches(policy));
                assert_eq!(classifier.classify(key), first);
            }
        }
        println!(
            "{count:>6} policies in {:>3} tables, compiled in {compiled:.1?}: {:.0} ns a new flow; one after the other {:.0}",
            classifier.tuples(),
            median(ours),
            median(linear)
        );
    }
}
