//! The compiled table: longest-prefix match for the workers, once or twice per packet.
//!
//! Nested prefixes cut the address space into ranges, each with one answer: the owner of the longest prefix around it.
//! The table is the sorted list of the ranges' first addresses under a static tree of wide nodes. A lookup
//! descends one node a level and compares with all of a node's keys at once, without a branch that depends on the address. Its
//! cost is the depth, log16 of the number of ranges (log8 for IPv6), whatever the prefixes are: five nodes for 100,000
//! scattered ones. A radix trie is as deep as its prefixes are nested, up to 128 levels for IPv6.

use std::cmp::Reverse;
use std::net::IpAddr;

use arrayvec::ArrayVec;
use patronus_crypto::PeerId;

use super::Prefix;

/// Which peer an inner address belongs to. Immutable; a change builds a new table.
pub struct AllowedIps {
    v4: Ranges<u32, 16>,
    v6: Ranges<u128, 8>,
}

impl AllowedIps {
    /// Compiles prefixes in any order. Host bits are ignored, of equal prefixes the last one wins, a length that the
    /// family does not have counts as the longest it has.
    pub fn build(prefixes: impl Iterator<Item = (IpAddr, u8, PeerId)>) -> AllowedIps {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (addr, cidr, peer) in prefixes {
            let prefix = Prefix::new(addr, cidr.min(if addr.is_ipv4() { 32 } else { 128 }));
            match prefix.map(|prefix| (prefix.addr(), prefix.cidr())) {
                Some((IpAddr::V4(ip), cidr)) => {
                    let first = ip.to_bits();
                    let last = first | u32::MAX.unbounded_shr(u32::from(cidr));
                    v4.push(Interval { first, last, peer });
                }
                Some((IpAddr::V6(ip), cidr)) => {
                    let first = ip.to_bits();
                    let last = first | u128::MAX.unbounded_shr(u32::from(cidr));
                    v6.push(Interval { first, last, peer });
                }
                None => {}
            }
        }
        AllowedIps {
            v4: Ranges::build(v4),
            v6: Ranges::build(v6),
        }
    }

    /// The owner of the longest prefix that contains this IPv4 address (octets in network order).
    #[inline]
    pub fn lookup_v4(&self, addr: [u8; 4]) -> Option<PeerId> {
        self.v4.lookup(u32::from_be_bytes(addr))
    }

    /// The owner of the longest prefix that contains this IPv6 address (octets in network order).
    #[inline]
    pub fn lookup_v6(&self, addr: [u8; 16]) -> Option<PeerId> {
        self.v6.lookup(u128::from_be_bytes(addr))
    }

    /// The owner of the longest prefix that contains this address.
    #[inline]
    pub fn lookup(&self, addr: IpAddr) -> Option<PeerId> {
        match addr {
            IpAddr::V4(ip) => self.lookup_v4(ip.octets()),
            IpAddr::V6(ip) => self.lookup_v6(ip.octets()),
        }
    }

    /// Looks a burst of IPv4 addresses up: the memory accesses of different addresses overlap, which pays when the table
    /// is larger than the cache. As many answers are written as the shorter slice has room for.
    pub fn lookup_v4_burst(&self, addrs: &[[u8; 4]], owners: &mut [Option<PeerId>]) {
        self.v4.lookup_burst(addrs, owners, u32::from_be_bytes);
    }

    /// As [`lookup_v4_burst`](Self::lookup_v4_burst), for IPv6.
    pub fn lookup_v6_burst(&self, addrs: &[[u8; 16]], owners: &mut [Option<PeerId>]) {
        self.v6.lookup_burst(addrs, owners, u128::from_be_bytes);
    }

    /// Bytes of memory that the table takes.
    pub fn memory(&self) -> usize {
        self.v4.memory() + self.v6.memory()
    }
}

/// An empty table: nobody owns anything.
impl Default for AllowedIps {
    fn default() -> Self {
        AllowedIps::build(std::iter::empty())
    }
}

/// An address as a number.
trait Address: Copy + Ord {
    const ZERO: Self;
    const MAX: Self;
    /// The address after this one, unless it is the last.
    fn next(self) -> Option<Self>;
}

impl Address for u32 {
    const ZERO: Self = 0;
    const MAX: Self = u32::MAX;
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
}

impl Address for u128 {
    const ZERO: Self = 0;
    const MAX: Self = u128::MAX;
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
}

/// A prefix as the addresses that it covers, both ends included.
#[derive(Clone, Copy)]
struct Interval<K> {
    first: K,
    last: K,
    peer: PeerId,
}

/// The answer of a range that belongs to nobody; `Device` numbers its peers from 0 and never gets here.
const NOBODY: u32 = u32::MAX;

/// Deepest possible nesting: an IPv6 prefix of each length from 0 to 128 around one address.
const MAX_NESTING: usize = 129;

/// The keys of a tree node, as long as one or two cache lines.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Node<K, const B: usize>([K; B]);

/// Where one level of the tree stands among the nodes.
#[derive(Clone, Copy)]
struct Level {
    start: usize,
    last: usize,
}

/// More levels than a tree of any size that fits into memory has: 8 for u32 in sixteens, 14 for 2^42 keys in eights.
const MAX_LEVELS: usize = 16;

/// Disjoint ranges that cover the whole address space, by their first addresses, under a search tree.
struct Ranges<K, const B: usize> {
    /// The nodes of all levels, from the root (one node) to the leaves (all first addresses). Key i of a level is the first key
    /// of node i of the next one. Unused keys at the end of a level are the highest address.
    nodes: Vec<Node<K, B>>,
    levels: ArrayVec<Level, MAX_LEVELS>,
    /// The peer of each range, as many as the leaves have keys: an unused key has the last range's answer.
    owners: Vec<u32>,
}

impl<K: Address, const B: usize> Ranges<K, B> {
    fn build(intervals: Vec<Interval<K>>) -> Self {
        let (starts, mut owners) = Sweep::over(intervals);
        let mut levels = vec![Self::level(starts)];
        while levels[levels.len() - 1].len() > 1 {
            let firsts = levels[levels.len() - 1].iter().map(|node| node.0[0]).collect();
            levels.push(Self::level(firsts));
        }
        owners.resize(levels[0].len() * B, owners[owners.len() - 1]);
        let mut ranges = Ranges {
            nodes: Vec::new(),
            levels: ArrayVec::new(),
            owners,
        };
        for level in levels.iter().rev() {
            let start = ranges.nodes.len();
            ranges.nodes.extend_from_slice(level);
            ranges.levels.push(Level {
                start,
                last: ranges.nodes.len() - 1,
            });
        }
        ranges
    }

    fn level(keys: Vec<K>) -> Vec<Node<K, B>> {
        let node = |keys: &[K]| {
            let mut node = Node([K::MAX; B]);
            node.0[..keys.len()].copy_from_slice(keys);
            node
        };
        keys.chunks(B).map(node).collect()
    }

    /// From key `at` of the level above, to the key of this level that starts the part `addr` is in.
    #[inline]
    fn descend(&self, level: Level, at: usize, addr: K) -> usize {
        // Only the highest address matches unused keys, which lead past the end of the level below: to its last node.
        let node = (level.start + at).min(level.last);
        // Counted in 32 bits: as wide as the keys of IPv4, so that four of them are counted at once.
        let keys = self.nodes[node].0.iter();
        let not_above: u32 = keys.map(|key| u32::from(*key <= addr)).sum();
        (node - level.start) * B + not_above.saturating_sub(1) as usize
    }

    #[inline]
    fn owner(&self, at: usize) -> Option<PeerId> {
        let owner = self.owners[at];
        (owner != NOBODY).then_some(PeerId(owner))
    }

    #[inline]
    fn lookup(&self, addr: K) -> Option<PeerId> {
        let mut at = 0;
        for level in &self.levels {
            at = self.descend(*level, at, addr);
        }
        self.owner(at)
    }

    fn lookup_burst<O: Copy>(&self, addrs: &[O], owners: &mut [Option<PeerId>], address: impl Fn(O) -> K) {
        const LANES: usize = 8;
        for (addrs, owners) in addrs.chunks(LANES).zip(owners.chunks_mut(LANES)) {
            let mut at = [0; LANES];
            for level in &self.levels {
                for (at, addr) in at.iter_mut().zip(addrs) {
                    *at = self.descend(*level, *at, address(*addr));
                }
            }
            for ((owner, at), _) in owners.iter_mut().zip(at).zip(addrs) {
                *owner = self.owner(at);
            }
        }
    }

    fn memory(&self) -> usize {
        size_of_val(self.nodes.as_slice()) + size_of_val(self.owners.as_slice())
    }
}

/// Cuts the address space at the ends of prefixes, going from its first address to its last.
struct Sweep<K> {
    starts: Vec<K>,
    owners: Vec<u32>,
    /// The prefixes around the current address, innermost last.
    around: ArrayVec<Interval<K>, MAX_NESTING>,
}

impl<K: Address> Sweep<K> {
    /// The ranges' first addresses, ascending from zero, and their owners.
    fn over(mut intervals: Vec<Interval<K>>) -> (Vec<K>, Vec<u32>) {
        // Prefixes are nested or disjoint, so that in this order each comes after all those around it. The sort keeps the
        // order of equal ones.
        intervals.sort_by_key(|interval| (interval.first, Reverse(interval.last)));
        intervals.dedup_by(|later, earlier| {
            let same = (later.first, later.last) == (earlier.first, earlier.last);
            if same {
                earlier.peer = later.peer;
            }
            same
        });
        let mut sweep = Sweep {
            starts: vec![K::ZERO],
            owners: vec![NOBODY],
            around: ArrayVec::new(),
        };
        for interval in intervals {
            while sweep
                .around
                .last()
                .is_some_and(|inner| inner.last < interval.first)
            {
                sweep.end_innermost();
            }
            sweep.begin(interval.first, interval.peer.0);
            sweep.around.push(interval);
        }
        while !sweep.around.is_empty() {
            sweep.end_innermost();
        }
        (sweep.starts, sweep.owners)
    }

    fn end_innermost(&mut self) {
        let ended = self.around.pop();
        let owner = self.around.last().map_or(NOBODY, |outer| outer.peer.0);
        if let Some(after) = ended.and_then(|interval| interval.last.next()) {
            self.begin(after, owner);
        }
    }

    /// From `start` on the answer is `owner`, until told otherwise. Never goes back, but may stay at the same address.
    fn begin(&mut self, start: K, owner: u32) {
        if self.starts.last() == Some(&start) {
            self.starts.pop();
            self.owners.pop();
        }
        if self.owners.last() != Some(&owner) {
            self.starts.push(start);
            self.owners.push(owner);
        }
    }
}
