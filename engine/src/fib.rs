//! The forwarding information base: which next-hop group a destination belongs to, by its longest prefix.
//!
//! A trie with one step of 16 bits and then steps of 8 for IPv4 and of 4 for IPv6. Every entry holds the answer of the longest
//! prefix around it, or leads to a node, so a lookup is one load for each level and nothing is remembered on the way. What costs is
//! how many places outside the caches a lookup visits: the root stays inside, so an IPv4 route of the internet's table (up to /24) is one
//! such place, wherever it is.
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

use patronus_mem::{Table, prefetch};
use patronus_sync::{DomainId, Reader};

pub use writer::{FibWriter, FibWriterV4, FibWriterV6, Limits, RouteError};

/// Addresses whose loads overlap in a lookup of a burst.
const LANES: usize = 32;

/// Bits of the first step.
const ROOT_BITS: usize = 16;

/// The FIB of IPv4: nodes of 1 KiB, of which a lookup touches one line.
pub type FibV4 = Fib<4, 256>;
/// The FIB of IPv6: nodes of one line. Its routes are longer and lie further apart, so that larger nodes would mostly say the same.
pub type FibV6 = Fib<16, 16>;

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

/// As many entries as the bits of a step can choose.
#[repr(align(64))]
struct Node<const SLOTS: usize>([AtomicU32; SLOTS]);

impl<const SLOTS: usize> Node<SLOTS> {
    fn empty() -> Self {
        Node([const { AtomicU32::new(0) }; SLOTS])
    }
}

/// Routes to addresses of `N` octets, with nodes of `SLOTS` entries: [`FibV4`] or [`FibV6`].
pub struct Fib<const N: usize, const SLOTS: usize> {
    root: Table<AtomicU32>,
    nodes: Table<Node<SLOTS>>,
    /// Whose readers may look.
    domain: DomainId,
}

/// The entry of the root for an address.
#[inline(always)]
fn root_slot<const N: usize>(addr: &[u8; N]) -> usize {
    usize::from(addr[0]) << 8 | usize::from(addr[1])
}

impl<const N: usize, const SLOTS: usize> Fib<N, SLOTS> {
    /// Bits of a step.
    const STRIDE: usize = {
        assert!(SLOTS == 16 || SLOTS == 256, "steps of 4 or 8 bits");
        SLOTS.ilog2() as usize
    };

    /// Levels below the root.
    const LEVELS: usize = (8 * N - ROOT_BITS) / Self::STRIDE;

    /// The bits of an address that choose the entry of a node on level `level`, the first below the root being 0.
    #[inline(always)]
    fn slot(addr: &[u8; N], level: usize) -> usize {
        let bit = ROOT_BITS + Self::STRIDE * level;
        let octet = usize::from(addr[bit / 8]);
        (octet >> (8 - Self::STRIDE - bit % 8)) & (SLOTS - 1)
    }

    /// The group of the longest prefix around an address (octets in network order).
    ///
    /// # Panics
    ///
    /// If the reader is parked or not of the table's domain: nodes could be used again under its eyes.
    #[inline]
    pub fn lookup(&self, reader: &Reader, addr: &[u8; N]) -> Option<Group> {
        assert!(reader.is_awake_in(&self.domain));
        let mut entry = self.root[root_slot(addr)].load(Ordering::Acquire);
        for level in 0..Self::LEVELS {
            if entry & NODE == 0 {
                break;
            }
            entry = self.place(entry, addr, level).load(Ordering::Acquire);
        }
        Group::of_entry(entry)
    }

    /// The same for a burst, level by level, so that the loads of different addresses overlap. As many answers are written as the
    /// shorter slice has room for.
    ///
    /// # Panics
    ///
    /// As [`lookup`](Fib::lookup).
    #[inline]
    pub fn lookup_burst(&self, reader: &Reader, addrs: &[[u8; N]], groups: &mut [Option<Group>]) {
        self.lookup_burst_of(reader, addrs, |addr| *addr, groups);
    }

    /// The same for what has an address.
    ///
    /// # Panics
    ///
    /// As [`lookup`](Fib::lookup).
    #[inline]
    pub fn lookup_burst_of<T>(
        &self,
        reader: &Reader,
        all: &[T],
        addr: impl Fn(&T) -> [u8; N],
        groups: &mut [Option<Group>],
    ) {
        assert!(reader.is_awake_in(&self.domain));
        for (some, groups) in all.chunks(LANES).zip(groups.chunks_mut(LANES)) {
            // Where the second level's answers stand, or the root's own if it leads no further. They are asked for at once, and the processor goes
            // on to the next address whatever it takes.
            let mut places = [&self.root[0]; LANES];
            for (place, one) in places.iter_mut().zip(some) {
                let addr = addr(one);
                *place = &self.root[root_slot(&addr)];
                let entry = place.load(Ordering::Acquire);
                if entry & NODE != 0 {
                    *place = self.place(entry, &addr, 0);
                    prefetch(*place);
                }
            }
            let mut entries = [0; LANES];
            let mut deeper = 0;
            for (entry, place) in entries.iter_mut().zip(&places[..some.len()]) {
                *entry = place.load(Ordering::Acquire);
                deeper |= *entry;
            }
            for level in 1..Self::LEVELS {
                if deeper & NODE == 0 {
                    break;
                }
                deeper = self.descend(level, some, &addr, &mut entries);
            }
            for (group, entry) in groups.iter_mut().zip(&entries[..some.len()]) {
                *group = Group::of_entry(*entry);
            }
        }
    }

    /// Where in the node that an entry leads to the next entry for an address stands.
    #[inline(always)]
    fn place(&self, entry: u32, addr: &[u8; N], level: usize) -> &AtomicU32 {
        &self.nodes[(entry & !NODE) as usize].0[Self::slot(addr, level)]
    }

    /// One level for all addresses of a chunk. Returns the union of the entries, to tell whether any leads further.
    #[inline(always)]
    fn descend<T>(
        &self,
        level: usize,
        some: &[T],
        addr: impl Fn(&T) -> [u8; N],
        entries: &mut [u32; LANES],
    ) -> u32 {
        let mut deeper = 0;
        for (entry, one) in entries.iter_mut().zip(some) {
            // A branch and not masks: on one level nearly all addresses go the same way, and the processor does not wait for the entry.
            if *entry & NODE != 0 {
                *entry = self.place(*entry, &addr(one), level).load(Ordering::Acquire);
            }
            deeper |= *entry;
        }
        deeper
    }
}
