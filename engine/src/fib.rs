//! The forwarding information base: which next-hop group a destination belongs to, by its longest prefix.
//!
//! A trie with one step of 20 bits and then steps of 4: a node is 16 entries of 4 bytes, one cache line. Every entry holds the
//! answer of the longest prefix around it, or leads to a node, so a lookup is one load for each level and nothing is
//! remembered on the way. An IPv4 route of the internet's table (up to /24) takes two loads, wherever it is.
//!
//! * [`Fib`] is what workers read, on any thread. Its entries are atomic words; a lookup needs no lock and never waits.
//! * [`FibWriter`] is the one thread that changes it, while workers read. Each address goes from its old answer to its new one in
//!   one store. Nodes that are no longer led to are used again when no reader can be in them ([`patronus_sync::Domain`]).
//!
//! Answers are groups and not next hops, so a path that fails changes one group and no route.
//!
//! [`adr/0011`](../../../docs/adr/0011-fib.md) has the alternatives and the measurement.

mod writer;

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};

use patronus_mem::Table;
use patronus_sync::{DomainId, Reader};

pub use writer::{FibWriter, Limits, RouteError};

/// Addresses whose loads overlap in a lookup of a burst.
const LANES: usize = 32;

/// Bits of the first step.
const ROOT_BITS: usize = 20;
/// Bits of all others.
const STRIDE: usize = 4;
/// Entries of a node.
const SLOTS: usize = 1 << STRIDE;

/// An entry with this bit leads to the node whose number is in the others; without it, it is a group.
const NODE: u32 = 1 << 31;

/// A next-hop group by number, from 1 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group(NonZeroU32);

impl Group {
    /// The highest number.
    pub const MAX: u32 = NODE - 1;

    /// `None` if the number is 0 or more than [`Group::MAX`].
    pub const fn new(number: u32) -> Option<Group> {
        match NonZeroU32::new(number) {
            Some(number) if number.get() <= Group::MAX => Some(Group(number)),
            _ => None,
        }
    }

    /// The number.
    pub const fn number(self) -> u32 {
        self.0.get()
    }

    /// What an entry that leads no further says.
    #[inline(always)]
    fn of_entry(entry: u32) -> Option<Group> {
        debug_assert!(entry & NODE == 0);
        NonZeroU32::new(entry).map(Group)
    }
}

/// One cache line.
#[repr(align(64))]
struct Node([AtomicU32; SLOTS]);

impl Node {
    fn empty() -> Node {
        Node([const { AtomicU32::new(0) }; SLOTS])
    }
}

/// Routes to addresses of `N` octets: 4 for IPv4, 16 for IPv6.
pub struct Fib<const N: usize> {
    root: Table<AtomicU32>,
    /// Node 0 is empty: it is where lookups go that have their answer already.
    nodes: Table<Node>,
    /// Whose readers may look.
    domain: DomainId,
}

/// The entry of the root for an address.
#[inline(always)]
fn root_slot<const N: usize>(addr: &[u8; N]) -> usize {
    usize::from(addr[0]) << 12 | usize::from(addr[1]) << 4 | usize::from(addr[2]) >> 4
}

/// The four bits of an address that choose the entry of a node on level `level`, the first below the root being 0.
#[inline(always)]
fn slot<const N: usize>(addr: &[u8; N], level: usize) -> usize {
    let nibble = ROOT_BITS / STRIDE + level;
    let octet = addr[nibble / 2];
    usize::from(if nibble.is_multiple_of(2) {
        octet >> 4
    } else {
        octet & 15
    })
}

/// Levels below the root for addresses of `N` octets.
const fn levels<const N: usize>() -> usize {
    (8 * N - ROOT_BITS) / STRIDE
}

impl<const N: usize> Fib<N> {
    /// The group of the longest prefix around an address (octets in network order).
    ///
    /// # Panics
    ///
    /// If the reader is parked or not of the table's domain: nodes could be used again under its eyes.
    #[inline]
    pub fn lookup(&self, reader: &Reader, addr: &[u8; N]) -> Option<Group> {
        assert!(reader.is_awake_in(&self.domain));
        let mut entry = self.root[root_slot(addr)].load(Ordering::Acquire);
        for level in 0..levels::<N>() {
            if entry & NODE == 0 {
                break;
            }
            entry = self.nodes[(entry & !NODE) as usize].0[slot(addr, level)].load(Ordering::Acquire);
        }
        Group::of_entry(entry)
    }

    /// The same for a burst, level by level, so that the loads of different addresses overlap. As many answers are written as the
    /// shorter slice has room for.
    ///
    /// # Panics
    ///
    /// As [`lookup`](Fib::lookup).
    pub fn lookup_burst(&self, reader: &Reader, addrs: &[[u8; N]], groups: &mut [Option<Group>]) {
        assert!(reader.is_awake_in(&self.domain));
        for (addrs, groups) in addrs.chunks(LANES).zip(groups.chunks_mut(LANES)) {
            let mut entries = [0; LANES];
            let mut deeper = 0;
            for (entry, addr) in entries.iter_mut().zip(addrs) {
                *entry = self.root[root_slot(addr)].load(Ordering::Acquire);
                deeper |= *entry;
            }
            for level in 0..levels::<N>() {
                if deeper & NODE == 0 {
                    break;
                }
                deeper = self.descend(level, addrs, &mut entries);
            }
            for (group, entry) in groups.iter_mut().zip(&entries[..addrs.len()]) {
                *group = Group::of_entry(*entry);
            }
        }
    }

    /// One level for all addresses of a chunk. Returns the union of the entries, to tell whether any leads further.
    #[inline(always)]
    fn descend(&self, level: usize, addrs: &[[u8; N]], entries: &mut [u32; LANES]) -> u32 {
        let mut deeper = 0;
        for (entry, addr) in entries.iter_mut().zip(addrs) {
            // All ones if it leads further. Masks and no branch, which would be mispredicted for every other address and then stop the
            // loads behind it: those that have their answer load from node 0 and keep it.
            let leads = (*entry as i32 >> 31) as u32;
            let node = *entry & leads & !NODE;
            let next = self.nodes[node as usize].0[slot(addr, level)].load(Ordering::Acquire);
            *entry = (next & leads) | (*entry & !leads);
            deeper |= *entry;
        }
        deeper
    }
}
