//! The classifier: which policy a new flow comes under.
//!
//! Policies are tried in order and the first that matches decides; a flow's answer is remembered in the flow table, so this runs
//! once for each flow and snapshot. It is a tuple space search (V. Srinivasan, S. Suri, G. Varghese, "Packet Classification using
//! Tuple Space Search", SIGCOMM 1999): policies that look at the same bits of a flow's key share a hash table. The tables are
//! tried in the order of the first policy in each, and the search ends when that one comes after the best found. What is no mask,
//! a range of UDP or TCP ports that is no power of two or a set of several DSCPs, is compared afterwards.
//!
//! A [`Classifier`] is compiled by the builder thread and never changes; any thread may ask it.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use hashbrown::HashTable;
use patronus_io::ip::{FlowKey, PROTO_TCP, PROTO_UDP};

use crate::allowedips::Prefix;
use crate::flow::HashKeys;

/// Policies that a classifier takes.
pub const POLICIES_MAX: usize = 1 << 16;

/// What a policy asks of a flow. What is `None` is not asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// Source addresses.
    pub src: Option<Prefix>,
    /// Destination addresses.
    pub dst: Option<Prefix>,
    /// IP protocol.
    pub protocol: Option<u8>,
    /// Source ports; only UDP and TCP have any.
    pub src_ports: Option<RangeInclusive<u16>>,
    /// Destination ports; only UDP and TCP have any.
    pub dst_ports: Option<RangeInclusive<u16>>,
    /// Bit n: DSCP n (RFC 2474).
    pub dscps: Option<u64>,
}

impl Match {
    /// Every flow.
    pub const ANY: Match = Match {
        src: None,
        dst: None,
        protocol: None,
        src_ports: None,
        dst_ports: None,
        dscps: None,
    };
}

/// Why policies cannot be compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompileError {
    /// There are more than [`POLICIES_MAX`].
    TooMany(usize),
    /// Source and destination of this policy are of different families.
    Families(usize),
    /// A range of this policy ends before it begins, or its set of DSCPs is empty.
    Nothing(usize),
    /// This policy asks for ports of a protocol that has none.
    Ports(usize),
}

impl std::fmt::Display for CompileError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CompileError::TooMany(count) => {
                write!(f, "{count} policies, at most {POLICIES_MAX} are possible")
            }
            CompileError::Families(at) => {
                write!(
                    f,
                    "policy {at}: source and destination are not of the same address family"
                )
            }
            CompileError::Nothing(at) => {
                write!(
                    f,
                    "policy {at}: a range of ports that ends before it begins, or no DSCP at all"
                )
            }
            CompileError::Ports(at) => write!(f, "policy {at}: only TCP (6) and UDP (17) have ports"),
        }
    }
}

impl std::error::Error for CompileError {}

/// Policies, compiled.
pub struct Classifier {
    /// By the first policy in each.
    tuples: Vec<Tuple>,
    keys: HashKeys,
}

/// All policies that look at the same bits.
struct Tuple {
    mask: FlowKey,
    first: u32,
    /// By the bits: a part of `policies`.
    cells: HashTable<Cell>,
    /// In order within each cell.
    policies: Vec<Compared>,
}

struct Cell {
    bits: FlowKey,
    start: u32,
    end: u32,
}

/// What is left to compare of a policy.
struct Compared {
    number: u32,
    src_ports: (u16, u16),
    dst_ports: (u16, u16),
    dscps: u64,
}

impl Compared {
    #[inline]
    fn matches(&self, key: &FlowKey) -> bool {
        let within = |ports: (u16, u16), port| ports.0 <= port && port <= ports.1;
        within(self.src_ports, key.src_port())
            && within(self.dst_ports, key.dst_port())
            && self.dscps & 1 << key.dscp() != 0
    }
}

impl Classifier {
    /// Compiles policies, the first having the last word.
    pub fn compile(policies: &[Match], keys: HashKeys) -> Result<Classifier, CompileError> {
        if policies.len() > POLICIES_MAX {
            return Err(CompileError::TooMany(policies.len()));
        }
        let mut masked = Vec::new();
        for (number, policy) in policies.iter().enumerate() {
            check(number, policy)?;
            let one_family = policy.src.or(policy.dst).map(|prefix| prefix.addr().is_ipv6());
            for ipv6 in [false, true] {
                if one_family.is_none_or(|family| family == ipv6) {
                    for protocol in protocols(policy) {
                        let (mask, bits) = mask_and_bits(policy, ipv6, protocol);
                        masked.push((mask, bits, number as u32));
                    }
                }
            }
        }
        masked.sort_unstable();
        let mut tuples: Vec<Tuple> = masked
            .chunk_by(|a, b| a.0 == b.0)
            .map(|alike| Tuple::new(alike, policies, &keys))
            .collect();
        tuples.sort_by_key(|tuple| tuple.first);
        Ok(Classifier { tuples, keys })
    }

    /// The number of the first policy that a flow comes under, its DSCP included.
    pub fn classify(&self, key: &FlowKey) -> Option<usize> {
        let mut best = u32::MAX;
        for tuple in &self.tuples {
            if tuple.first >= best {
                break;
            }
            let bits = key.masked(&tuple.mask);
            let Some(cell) = tuple.cells.find(self.keys.hash(&bits), |cell| cell.bits == bits) else {
                continue;
            };
            let of_cell = &tuple.policies[cell.start as usize..cell.end as usize];
            let mut better = of_cell.iter().take_while(|policy| policy.number < best);
            if let Some(found) = better.find(|policy| policy.matches(key)) {
                best = found.number;
            }
        }
        (best != u32::MAX).then_some(best as usize)
    }

    /// Hash tables that a flow may have to be looked up in.
    pub fn tuples(&self) -> usize {
        self.tuples.len()
    }
}

impl Tuple {
    /// From policies with the same mask, sorted by bits and then by number.
    fn new(alike: &[(FlowKey, FlowKey, u32)], policies: &[Match], keys: &HashKeys) -> Tuple {
        let mut tuple = Tuple {
            mask: alike[0].0,
            first: u32::MAX,
            cells: HashTable::new(),
            policies: Vec::with_capacity(alike.len()),
        };
        for same in alike.chunk_by(|a, b| a.1 == b.1) {
            let bits = same[0].1;
            let start = tuple.policies.len() as u32;
            tuple.first = tuple.first.min(same[0].2);
            tuple.policies.extend(
                same.iter()
                    .map(|(_, _, number)| compared(*number, &policies[*number as usize])),
            );
            let end = tuple.policies.len() as u32;
            let hash = |cell: &Cell| keys.hash(&cell.bits);
            tuple
                .cells
                .insert_unique(keys.hash(&bits), Cell { bits, start, end }, hash);
        }
        tuple
    }
}

/// Refuses a policy that cannot be meant.
fn check(number: usize, policy: &Match) -> Result<(), CompileError> {
    let [src, dst] = [&policy.src, &policy.dst].map(|p| p.map(|p| p.addr().is_ipv6()));
    if src.is_some() && dst.is_some() && src != dst {
        return Err(CompileError::Families(number));
    }
    let ranges = [&policy.src_ports, &policy.dst_ports];
    if ranges.into_iter().flatten().any(RangeInclusive::is_empty) || policy.dscps == Some(0) {
        return Err(CompileError::Nothing(number));
    }
    let portless = |protocol| !matches!(protocol, PROTO_TCP | PROTO_UDP);
    if asks_for_ports(policy) && policy.protocol.is_some_and(portless) {
        return Err(CompileError::Ports(number));
    }
    Ok(())
}

fn asks_for_ports(policy: &Match) -> bool {
    policy.src_ports.is_some() || policy.dst_ports.is_some()
}

/// The protocols that a policy is compiled for; `None`: whichever.
fn protocols(policy: &Match) -> impl Iterator<Item = Option<u8>> {
    let several = asks_for_ports(policy) && policy.protocol.is_none();
    let one = (!several).then_some(policy.protocol);
    let both = several.then_some([Some(PROTO_TCP), Some(PROTO_UDP)]);
    one.into_iter().chain(both.into_iter().flatten())
}

fn bounds(ports: &Option<RangeInclusive<u16>>) -> (u16, u16) {
    ports
        .as_ref()
        .map_or((0, u16::MAX), |ports| (*ports.start(), *ports.end()))
}

fn compared(number: u32, policy: &Match) -> Compared {
    Compared {
        number,
        src_ports: bounds(&policy.src_ports),
        dst_ports: bounds(&policy.dst_ports),
        dscps: policy.dscps.unwrap_or(u64::MAX),
    }
}

/// The bits of a key that a policy looks at, and what they have to be.
fn mask_and_bits(policy: &Match, ipv6: bool, protocol: Option<u8>) -> (FlowKey, FlowKey) {
    let prefix = |prefix: &Option<Prefix>| match prefix {
        None => (0, 0),
        Some(prefix) => {
            let (bits, width) = match prefix.addr() {
                IpAddr::V4(ip) => (u128::from(ip.to_bits()), 32),
                IpAddr::V6(ip) => (ip.to_bits(), 128),
            };
            let host = u128::MAX
                .checked_shr(128 - width + u32::from(prefix.cidr()))
                .unwrap_or(0);
            (u128::MAX >> (128 - width) & !host, bits)
        }
    };
    let ports = |ports: &Option<RangeInclusive<u16>>| {
        let (start, end) = bounds(ports);
        let within = start ^ end;
        // All ports that begin with the same bits, and no others?
        let aligned = within & within.wrapping_add(1) == 0 && start & within == 0;
        if aligned { (!within, start) } else { (0, 0) }
    };
    let (src, dst) = (prefix(&policy.src), prefix(&policy.dst));
    let (src_ports, dst_ports) = (ports(&policy.src_ports), ports(&policy.dst_ports));
    let protocol = protocol.map_or((0, 0), |protocol| (u8::MAX, protocol));
    let one_dscp = policy.dscps.filter(|set| set.is_power_of_two());
    let dscp = one_dscp.map_or((0, 0), |set| (63, set.trailing_zeros() as u8));
    let key = |src: u128, dst: u128, protocol, src_port, dst_port| match ipv6 {
        false => FlowKey::v4(
            (src as u32).to_be_bytes(),
            (dst as u32).to_be_bytes(),
            protocol,
            src_port,
            dst_port,
        ),
        true => FlowKey::v6(src.to_be_bytes(), dst.to_be_bytes(), protocol, src_port, dst_port),
    };
    let mask = key(src.0, dst.0, protocol.0, src_ports.0, dst_ports.0);
    let bits = key(src.1, dst.1, protocol.1, src_ports.1, dst_ports.1);
    (mask.with_version_mask().with_dscp(dscp.0), bits.with_dscp(dscp.1))
}
