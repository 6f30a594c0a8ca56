//! The compiled table: longest-prefix match for the workers, once or twice per packet.
//!
//! Nested prefixes cut the address space into ranges, each with one answer: the owner of the longest prefix around it.
//! The table is the sorted list of the ranges' first addresses. Where in the list an address belongs is
//! [guessed](super::guide) from how far it is between the first and the last of them, and a few neighbours are then compared
//! at once, without a branch that depends on the address. So a lookup costs the same for one prefix as for the ten thousand of
//! a hub whose sites were numbered with some plan, and up to three guesses for prefixes that lie in clusters. A radix trie is as deep as its
//! prefixes are nested, up to 128 levels for IPv6.

use std::cmp::Reverse;
use std::net::IpAddr;

use arrayvec::ArrayVec;
use patronus_crypto::PeerId;

use super::Prefix;
use super::guide::{Address, Guide, NEAR};

/// Which peer an inner address belongs to. Immutable; a change builds a new table.
pub struct AllowedIps {
    v4: Ranges<u32>,
    v6: Ranges<u128>,
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

/// Disjoint ranges that cover the whole address space, by their first addresses.
struct Ranges<K> {
    /// Ascending from zero, and then [`NEAR`] times the highest address, so that as many can be compared with wherever the guess
    /// ends.
    starts: Box<[K]>,
    /// The peer of each range. A start at the end that is none has the last range's.
    owners: Box<[u32]>,
    guide: Guide<K>,
}

impl<K: Address> Ranges<K> {
    fn build(intervals: Vec<Interval<K>>) -> Self {
        let (mut starts, mut owners) = Sweep::over(intervals);
        let guide = Guide::build(&starts);
        let padded = starts.len() + NEAR;
        starts.resize(padded, K::MAX);
        owners.resize(padded, owners[owners.len() - 1]);
        Ranges {
            starts: starts.into(),
            owners: owners.into(),
            guide,
        }
    }

    #[inline]
    fn lookup(&self, addr: K) -> Option<PeerId> {
        let owner = self.owners[self.guide.range(&self.starts, addr)];
        (owner != NOBODY).then_some(PeerId(owner))
    }

    fn memory(&self) -> usize {
        size_of_val(&*self.starts) + size_of_val(&*self.owners) + self.guide.memory()
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
