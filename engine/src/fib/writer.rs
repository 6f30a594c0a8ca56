//! Changing the table while it is read.
//!
//! Beside each entry the writer remembers the length of the prefix that owns it, 0 for the default route as for none. A route paints
//! the entries under its prefix that no longer prefix owns; a route that goes hands those that it owns to the longest
//! prefix around it. A node is made full of the answer that it takes the place of, so it may be seen at once, and
//! goes when all its entries again belong to prefixes no longer than its own.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use patronus_mem::Table;
use patronus_sync::{Domain, Grace};

use super::{Fib, Group, NODE, Node, ROOT_BITS, root_slot};

/// How much a table may hold. What is read is allocated at the start; what only the writer needs grows with the routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Prefixes.
    pub routes: usize,
    /// Nodes: of 1 KiB for IPv4, of 64 bytes for IPv6.
    pub nodes: usize,
}

/// Why a route was not taken. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteError {
    /// The prefix is longer than the family's addresses.
    Length(u8),
    /// There are as many routes as there may be.
    Routes(usize),
    /// There are not as many free nodes as this route may take. Some may become free when readers have gone on.
    Nodes(usize),
}

impl fmt::Display for RouteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RouteError::Length(len) => write!(f, "a prefix of {len} bits is longer than an address"),
            RouteError::Routes(limit) => write!(f, "the table is full: {limit} routes"),
            RouteError::Nodes(limit) => write!(f, "the table is full: {limit} nodes"),
        }
    }
}

impl std::error::Error for RouteError {}

/// The only one who changes a [`Fib`].
pub struct FibWriter<const N: usize, const SLOTS: usize> {
    fib: Arc<Fib<N, SLOTS>>,
    /// The length of the prefix that owns each entry.
    root_owners: Box<[u8]>,
    node_owners: Box<[[u8; SLOTS]]>,
    /// The routes by the length of their prefix.
    routes: Vec<HashMap<[u8; N], Group>>,
    route_count: usize,
    limits: Limits,
    /// Nodes that nobody is led to. Those from `fresh` on were never used.
    free: Vec<u32>,
    fresh: u32,
    /// Nodes that nobody is led to any more, but somebody may still be in.
    retired: VecDeque<(Grace, u32)>,
}

/// A place for an entry.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Root(usize),
    Node(u32, usize),
}

/// Changes a [`FibV4`](super::FibV4).
pub type FibWriterV4 = FibWriter<4, 256>;
/// Changes a [`FibV6`](super::FibV6).
pub type FibWriterV6 = FibWriter<16, 16>;

impl<const N: usize, const SLOTS: usize> FibWriter<N, SLOTS> {
    /// An empty table for the readers of `domain`.
    pub fn new(domain: &Domain, limits: Limits) -> io::Result<Self> {
        const { assert!(N == 4 || N == 16, "IPv4 or IPv6") };
        if limits.nodes > NODE as usize {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many nodes"));
        }
        let fib = Fib {
            root: Table::new(1 << ROOT_BITS, Default::default)?,
            nodes: Table::new(limits.nodes, Node::empty)?,
            domain: domain.id(),
        };
        Ok(FibWriter {
            fib: Arc::new(fib),
            root_owners: vec![0; 1 << ROOT_BITS].into(),
            node_owners: vec![[0; SLOTS]; limits.nodes].into(),
            routes: vec![HashMap::new(); 8 * N + 1],
            route_count: 0,
            limits,
            free: Vec::with_capacity(limits.nodes),
            fresh: 0,
            retired: VecDeque::with_capacity(limits.nodes),
        })
    }

    /// What workers read.
    pub fn fib(&self) -> &Arc<Fib<N, SLOTS>> {
        &self.fib
    }

    /// How much the table may hold.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// How many routes there are.
    pub fn routes(&self) -> usize {
        self.route_count
    }

    /// How many nodes lead to answers or may still be read.
    pub fn nodes(&self) -> usize {
        self.fresh as usize - self.free.len()
    }

    /// The group of exactly this prefix.
    pub fn get(&self, prefix: [u8; N], len: u8) -> Option<Group> {
        self.routes
            .get(usize::from(len))?
            .get(&network(prefix, len))
            .copied()
    }

    /// Adds a route or gives it another group; host bits do not count. Returns the group that it had.
    ///
    /// # Panics
    ///
    /// If it is not the table's domain; [`remove`](FibWriter::remove) and [`collect`](FibWriter::collect) as well.
    pub fn insert(
        &mut self,
        domain: &Domain,
        prefix: [u8; N],
        len: u8,
        group: Group,
    ) -> Result<Option<Group>, RouteError> {
        if usize::from(len) > 8 * N {
            return Err(RouteError::Length(len));
        }
        let prefix = network(prefix, len);
        let known = self.routes[usize::from(len)].contains_key(&prefix);
        if !known && self.route_count == self.limits.routes {
            return Err(RouteError::Routes(self.limits.routes));
        }
        self.collect(domain);
        if self.limits.nodes - self.nodes() < Self::depth(len) - self.made(&prefix, Self::depth(len)) {
            return Err(RouteError::Nodes(self.limits.nodes));
        }
        let before = self.routes[usize::from(len)].insert(prefix, group);
        self.route_count += usize::from(!known);
        for place in self.reach(&prefix, len) {
            self.paint(place, &|owner| owner <= len, group.number(), len);
        }
        Ok(before)
    }

    /// Takes a route away; returns the group that it had.
    pub fn remove(&mut self, domain: &mut Domain, prefix: [u8; N], len: u8) -> Option<Group> {
        assert!(domain.is(&self.fib.domain), "one domain");
        let prefix = network(prefix, len);
        let before = self.routes.get_mut(usize::from(len))?.remove(&prefix)?;
        self.route_count -= 1;
        let (value, owner) = self.around(&prefix, len);
        for place in self.reach(&prefix, len) {
            self.paint(place, &|owner| owner == len, value, owner);
        }
        self.prune(domain, &prefix, len);
        Some(before)
    }

    /// Takes back the nodes that nobody can be in any more.
    pub fn collect(&mut self, domain: &Domain) {
        assert!(domain.is(&self.fib.domain), "one domain");
        while let Some((_, node)) = self.retired.pop_front_if(|(grace, _)| domain.is_over(*grace)) {
            self.free.push(node);
        }
    }

    /// The answer of the longest prefix around this one, and its length.
    fn around(&self, prefix: &[u8; N], len: u8) -> (u32, u8) {
        let shorter = (0..len).rev().find_map(|len| {
            let routes = &self.routes[usize::from(len)];
            // Most lengths have no route at all.
            (!routes.is_empty())
                .then(|| routes.get(&network(*prefix, len)))
                .flatten()
                .map(|group| (group.number(), len))
        });
        shorter.unwrap_or((0, 0))
    }

    /// The entries that together are the prefix, after making the nodes that lead to them.
    fn reach(&mut self, prefix: &[u8; N], len: u8) -> impl Iterator<Item = Place> + use<N, SLOTS> {
        let first = root_slot(prefix);
        let mut node = None;
        for level in 0..Self::depth(len) {
            let place = Self::at(node, first, level, prefix);
            node = Some(self.child(place));
        }
        let covered = ROOT_BITS + Fib::<N, SLOTS>::STRIDE * Self::depth(len);
        let count = 1 << (covered - usize::from(len));
        let last_level = Self::depth(len);
        let start = match node {
            None => first,
            Some(_) => Fib::<N, SLOTS>::slot(prefix, last_level - 1),
        };
        (start..start + count).map(move |slot| match node {
            None => Place::Root(slot),
            Some(node) => Place::Node(node, slot),
        })
    }

    /// The node that the entry leads to, after making it lead to one.
    fn child(&mut self, place: Place) -> u32 {
        let entry = self.entry(place);
        if entry & NODE != 0 {
            return entry & !NODE;
        }
        // `insert` has made sure that there are enough.
        let node = self.free.pop().unwrap_or_else(|| {
            self.fresh += 1;
            self.fresh - 1
        });
        assert!((node as usize) < self.limits.nodes, "nodes were counted");
        for slot in &self.fib.nodes[node as usize].0 {
            slot.store(entry, Ordering::Relaxed);
        }
        self.node_owners[node as usize] = [self.owner(place); SLOTS];
        // Release: whoever is led to the node finds it filled.
        self.store(place, NODE | node);
        node
    }

    /// Gives the entries at and under `place` whose owner is `of` another answer and owner.
    fn paint(&mut self, place: Place, of: &impl Fn(u8) -> bool, value: u32, owner: u8) {
        let entry = self.entry(place);
        if entry & NODE != 0 {
            for slot in 0..SLOTS {
                self.paint(Place::Node(entry & !NODE, slot), of, value, owner);
            }
        } else if of(self.owner(place)) {
            self.store(place, value);
            match place {
                Place::Root(slot) => self.root_owners[slot] = owner,
                Place::Node(node, slot) => self.node_owners[node as usize][slot] = owner,
            }
        }
    }

    /// Takes nodes on the way to a prefix out, from the last one up, as long as they say nothing that the entry above would not.
    fn prune(&mut self, domain: &mut Domain, prefix: &[u8; N], len: u8) {
        for level in (0..Self::depth(len)).rev() {
            let (place, node) = self
                .way(prefix, level)
                .expect("a route's nodes are there until the last of them is pruned");
            let covers = (ROOT_BITS + Fib::<N, SLOTS>::STRIDE * level) as u8;
            let entries = &self.fib.nodes[node as usize].0;
            let owners = self.node_owners[node as usize];
            let needed = entries
                .iter()
                .zip(owners)
                .any(|(entry, owner)| entry.load(Ordering::Relaxed) & NODE != 0 || owner > covers);
            if needed {
                return;
            }
            // All entries belong to the same prefix: the longest around the node.
            let value = entries[0].load(Ordering::Relaxed);
            self.store(place, value);
            match place {
                Place::Root(slot) => self.root_owners[slot] = owners[0],
                Place::Node(above, slot) => self.node_owners[above as usize][slot] = owners[0],
            }
            self.retired.push_back((domain.begin_grace(), node));
        }
    }

    /// How many of the first `levels` nodes on the way to an address there are.
    fn made(&self, addr: &[u8; N], levels: usize) -> usize {
        (0..levels)
            .take_while(|level| self.way(addr, *level).is_some())
            .count()
    }

    /// The node on a level on the way to an address, and the entry that leads to it.
    fn way(&self, addr: &[u8; N], level: usize) -> Option<(Place, u32)> {
        let first = root_slot(addr);
        let mut node = None;
        let mut place = Place::Root(first);
        for above in 0..=level {
            place = Self::at(node, first, above, addr);
            let entry = self.entry(place);
            if entry & NODE == 0 {
                return None;
            }
            node = Some(entry & !NODE);
        }
        node.map(|node| (place, node))
    }

    /// The entry that leads from `node` (or the root) to level `level` on the way to an address.
    fn at(node: Option<u32>, first: usize, level: usize, addr: &[u8; N]) -> Place {
        match node {
            None => Place::Root(first),
            Some(node) => Place::Node(node, Fib::<N, SLOTS>::slot(addr, level - 1)),
        }
    }

    /// Nodes on the way to the entries of a prefix of this length.
    fn depth(len: u8) -> usize {
        usize::from(len)
            .saturating_sub(ROOT_BITS)
            .div_ceil(Fib::<N, SLOTS>::STRIDE)
    }

    /// For each node on the way to a prefix of this length, the number of bits by which it is found.
    pub fn nodes_above(len: u8) -> impl Iterator<Item = u32> {
        (0..Self::depth(len)).map(|level| (ROOT_BITS + Fib::<N, SLOTS>::STRIDE * level) as u32)
    }

    fn entry(&self, place: Place) -> u32 {
        // Relaxed: this thread wrote it.
        match place {
            Place::Root(slot) => self.fib.root[slot].load(Ordering::Relaxed),
            Place::Node(node, slot) => self.fib.nodes[node as usize].0[slot].load(Ordering::Relaxed),
        }
    }

    fn owner(&self, place: Place) -> u8 {
        match place {
            Place::Root(slot) => self.root_owners[slot],
            Place::Node(node, slot) => self.node_owners[node as usize][slot],
        }
    }

    fn store(&self, place: Place, entry: u32) {
        match place {
            Place::Root(slot) => self.fib.root[slot].store(entry, Ordering::Release),
            Place::Node(node, slot) => self.fib.nodes[node as usize].0[slot].store(entry, Ordering::Release),
        }
    }
}

/// The address with all bits behind the prefix cleared.
fn network<const N: usize>(mut addr: [u8; N], len: u8) -> [u8; N] {
    for (at, octet) in addr.iter_mut().enumerate() {
        let kept = usize::from(len).saturating_sub(8 * at).min(8) as u32;
        *octet &= !u8::MAX.checked_shr(kept).unwrap_or(0);
    }
    addr
}
