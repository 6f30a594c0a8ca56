//! The flow table: what was decided for a connection, found again for each of its packets.
//!
//! Each worker has its own and is the only one to touch it, so nothing here is shared or atomic. The memory is fixed at the start.
//!
//! An index of buckets, one cache line each, leads to the flows. A flow may stand in two buckets of eight slots; a slot
//! remembers 16 bits of the flow's hash, so that a look at the bucket nearly always tells which flow to compare, if any. A full
//! bucket makes room by moving one of its flows to that one's other bucket (B. Fan et al., "MemC3", NSDI 2013). A
//! lookup is one or two lines of the index and one line of the flow, and in a burst those of different packets overlap.
//!
//! The hash is NH (J. Black et al., "UMAC", CRYPTO 1999) under keys drawn at the start, and two multiplications that spread it. Two different
//! flows have the same sum with a chance of at most 2^-32, whatever the flows are: who wants to make flows that fall together
//! has to know the keys, or to learn of them by measuring.

use std::io;

use patronus_io::ip::FlowKey;
use patronus_mem::{BURST_MAX, Table, prefetch};

/// Slots of a bucket.
const SLOTS: usize = 8;

/// Of the slots, so many in a hundred are used at most: beyond that making room takes long.
pub const LOAD_PERCENT: usize = 95;

/// Moves that an insertion makes at most to get a free slot.
const MOVES: usize = 256;

/// Random numbers for the hash.
#[derive(Clone)]
pub struct HashKeys {
    /// Two for each word of a key.
    nh: [u32; 10],
    /// What the three words add that are 0 in every flow of IPv4.
    nh_v4: u64,
    /// Odd.
    factors: [u64; 2],
}

impl HashKeys {
    /// From 56 random bytes.
    pub fn new(random: [u64; 7]) -> HashKeys {
        let mut nh = [0; 10];
        for (pair, word) in nh.chunks_exact_mut(2).zip(random) {
            (pair[0], pair[1]) = (word as u32, (word >> 32) as u32);
        }
        HashKeys {
            nh,
            nh_v4: (1..4).fold(0, |sum, at| nh_add(sum, &nh, at, 0)),
            factors: [random[5] | 1, random[6] | 1],
        }
    }

    /// The hash of a flow.
    #[inline]
    pub fn hash(&self, key: &FlowKey) -> u64 {
        let words = key.words();
        let add = |sum, at: usize| nh_add(sum, &self.nh, at, words[at]);
        self.spread(match key.is_ipv6() {
            true => (0..5).fold(0, add),
            false => add(add(self.nh_v4, 0), 4),
        })
    }

    #[inline]
    fn spread(&self, mut sum: u64) -> u64 {
        // Flows that count up make sums at equal distances. After one multiplication they still are, and fill some buckets more than
        // others; after two, with the halves laid over each other, they are spread as random numbers are.
        for factor in self.factors {
            let wide = u128::from(sum) * u128::from(factor);
            sum = (wide >> 64) as u64 ^ wide as u64;
        }
        sum
    }
}

/// What NH adds for one word of a key.
#[inline(always)]
fn nh_add(sum: u64, nh: &[u32; 10], at: usize, word: u64) -> u64 {
    let low = (word as u32).wrapping_add(nh[2 * at]);
    let high = ((word >> 32) as u32).wrapping_add(nh[2 * at + 1]);
    sum.wrapping_add(u64::from(low).wrapping_mul(u64::from(high)))
}

/// A flow and what was decided for it.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
pub struct Flow<V> {
    key: FlowKey,
    /// When its last packet came, in the caller's units; wraps.
    pub seen: u32,
    /// The snapshot that `value` comes from: of another one it means nothing.
    pub epoch: u32,
    /// What was decided.
    pub value: V,
    /// Bytes of its packets, without link headers.
    pub bytes: u64,
}

impl<V> Flow<V> {
    /// Which flow it is.
    pub fn key(&self) -> &FlowKey {
        &self.key
    }
}

/// A flow's key with the [hash](FlowTable::hash) that the table has for it.
#[derive(Clone, Copy, Debug)]
pub struct HashedKey {
    /// Which flow.
    pub key: FlowKey,
    /// Its hash.
    pub hash: u64,
}

/// A flow's number, as long as it is in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowId(u32);

/// There is no room for another flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Bucket slots that are not used lead nowhere.
const NOBODY: u32 = u32::MAX;

#[derive(Clone, Copy, PartialEq, Debug)]
#[repr(align(64))]
struct Bucket {
    /// Four tags each: those of the even slots from the lowest bits up, and those of the odd ones.
    tags: [u64; 2],
    flows: [u32; SLOTS],
}

const EMPTY: Bucket = Bucket {
    tags: [0; 2],
    flows: [NOBODY; SLOTS],
};

/// The lowest bit of each tag of a word.
const LANES: u64 = 0x0001_0001_0001_0001;

/// Slots of a bucket: the lowest bit of a byte for each of them.
#[derive(Clone, Copy)]
struct Tagged(u64);

impl Iterator for Tagged {
    type Item = usize;

    #[inline(always)]
    fn next(&mut self) -> Option<usize> {
        let slot = self.0.trailing_zeros() as usize / 8;
        self.0 &= self.0.wrapping_sub(1);
        (slot < SLOTS).then_some(slot)
    }
}

impl Bucket {
    /// The slots with this tag, four at a time: a tag that is the same leaves 0 in its lane of the difference, and 0 is the only value whose
    /// addition to the lane's greatest signed number does not reach the highest bit.
    #[inline(always)]
    fn tagged(&self, tag: u16) -> Tagged {
        const GREATEST: u64 = 0x7fff * LANES;
        let zero = |lanes: u64| !(((lanes & GREATEST) + GREATEST) | lanes | GREATEST);
        let tags = u64::from(tag) * LANES;
        Tagged(zero(self.tags[0] ^ tags) >> 15 | zero(self.tags[1] ^ tags) >> 7)
    }

    fn tag(&self, slot: usize) -> u16 {
        (self.tags[slot % 2] >> (16 * (slot / 2))) as u16
    }

    fn set(&mut self, slot: usize, tag: u16, flow: u32) {
        let (word, at) = (&mut self.tags[slot % 2], 16 * (slot / 2));
        *word = *word & !(0xffff << at) | u64::from(tag) << at;
        self.flows[slot] = flow;
    }

    #[inline]
    fn vacancy(&self) -> Option<usize> {
        self.flows.iter().position(|flow| *flow == NOBODY)
    }
}

/// Where a flow may stand, from its hash.
#[derive(Clone, Copy, Default)]
struct Home {
    bucket: u32,
    tag: u16,
}

/// All flows of a worker.
pub struct FlowTable<V> {
    buckets: Table<Bucket>,
    /// Length of a bucket number in bits.
    bits: u32,
    flows: Table<Flow<V>>,
    /// Numbers of unused flows.
    free: Vec<u32>,
    /// A bit for each flow that is used.
    used: Box<[u64]>,
    keys: HashKeys,
    /// Which slot gives way next.
    turn: usize,
    /// Where the search for idle flows goes on.
    hand: usize,
}

impl<V: Copy + Default> FlowTable<V> {
    /// An empty table for up to `limit` flows.
    pub fn new(limit: usize, keys: HashKeys) -> io::Result<FlowTable<V>> {
        let error = |what| io::Error::new(io::ErrorKind::InvalidInput, what);
        if limit == 0 || limit > 1 << 30 {
            return Err(error("a flow table takes 1 to 2^30 flows"));
        }
        let slots = (limit * 100).div_ceil(LOAD_PERCENT);
        // Two at least: a flow's other bucket is another one.
        let buckets = slots.div_ceil(SLOTS).next_power_of_two().max(2);
        Ok(FlowTable {
            buckets: Table::new(buckets, || EMPTY)?,
            bits: buckets.trailing_zeros(),
            flows: Table::new(limit, Flow::default)?,
            free: (0..limit as u32).rev().collect(),
            used: vec![0; limit.div_ceil(64)].into(),
            keys,
            turn: 0,
            hand: 0,
        })
    }

    /// How many flows there are.
    pub fn len(&self) -> usize {
        self.flows.len() - self.free.len()
    }

    /// How many flows there may be.
    pub fn limit(&self) -> usize {
        self.flows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The hash by which a flow is found here. Its lowest 16 bits play no part in that.
    #[inline]
    pub fn hash(&self, key: &FlowKey) -> u64 {
        self.keys.hash(key)
    }

    /// A key with its hash.
    #[inline]
    pub fn hashed(&self, key: FlowKey) -> HashedKey {
        HashedKey {
            hash: self.hash(&key),
            key,
        }
    }

    #[inline]
    fn home(&self, hash: u64) -> Home {
        Home {
            bucket: (hash >> (64 - self.bits)) as u32,
            // Bits that the bucket's number does not use, for up to 2^28 buckets.
            tag: (hash >> 16) as u16,
        }
    }

    /// The other bucket of a flow: the same step leads there and back, and is never 0.
    #[inline]
    fn other(&self, home: Home) -> Home {
        let step = ((u32::from(home.tag) + 1).wrapping_mul(0x9e37_79b1) >> (32 - self.bits)).max(1);
        Home {
            bucket: home.bucket ^ step,
            tag: home.tag,
        }
    }

    #[inline(always)]
    fn in_bucket(&self, home: Home, key: &FlowKey) -> Option<FlowId> {
        let bucket = &self.buckets[home.bucket as usize];
        bucket.tagged(home.tag).find_map(|slot| {
            let flow = bucket.flows[slot];
            (flow != NOBODY && self.flows[flow as usize].key == *key).then_some(FlowId(flow))
        })
    }

    /// The flow with this key.
    #[inline]
    pub fn find(&self, key: &FlowKey) -> Option<FlowId> {
        let home = self.home(self.hash(key));
        self.in_bucket(home, key)
            .or_else(|| self.in_bucket(self.other(home), key))
    }

    /// The flows of a burst of up to [`BURST_MAX`]: all buckets are asked for before the first is looked at, and then all flows that they lead to. As many
    /// answers are written as the shorter slice has room for.
    ///
    /// # Panics
    ///
    /// If there are more keys.
    pub fn find_burst(&self, keys: &[HashedKey], found: &mut [Option<FlowId>]) {
        assert!(keys.len() <= BURST_MAX);
        let mut homes = [Home::default(); BURST_MAX];
        for (home, key) in homes.iter_mut().zip(keys) {
            *home = self.home(key.hash);
            prefetch(&self.buckets[home.bucket as usize]);
        }
        // The first flow that each may be, which it nearly always is.
        let mut likely = [0; BURST_MAX];
        for ((likely, home), _) in likely.iter_mut().zip(&homes).zip(keys) {
            let bucket = &self.buckets[home.bucket as usize];
            match bucket.tagged(home.tag).next() {
                // An unused slot leads to the last flow, which is as wrong as any other.
                Some(slot) => *likely = bucket.flows[slot].min(self.flows.len() as u32 - 1),
                None => prefetch(&self.buckets[self.other(*home).bucket as usize]),
            }
            prefetch(&self.flows[*likely as usize]);
        }
        for (((found, HashedKey { key, .. }), home), likely) in
            found.iter_mut().zip(keys).zip(homes).zip(likely)
        {
            // An unused place has the key of no packet.
            *found = match self.flows[likely as usize].key == *key {
                true => Some(FlowId(likely)),
                false => self
                    .in_bucket(home, key)
                    .or_else(|| self.in_bucket(self.other(home), key)),
            };
        }
    }

    #[inline]
    fn is_used(&self, number: u32) -> bool {
        self.used[number as usize / 64] & 1 << (number % 64) != 0
    }

    /// A flow.
    ///
    /// # Panics
    ///
    /// If the number is of another table. A flow that was removed is whatever came in its place.
    #[inline]
    pub fn get(&self, id: FlowId) -> &Flow<V> {
        &self.flows[id.0 as usize]
    }

    /// A flow, to be changed.
    #[inline]
    pub fn get_mut(&mut self, id: FlowId) -> &mut Flow<V> {
        &mut self.flows[id.0 as usize]
    }

    /// Adds a flow that is not in the table, of either version of IP.
    pub fn insert(&mut self, key: FlowKey, seen: u32, epoch: u32, value: V) -> Result<FlowId, Full> {
        debug_assert!(
            key != FlowKey::default() && self.find(&key).is_none(),
            "each flow once"
        );
        let number = *self.free.last().ok_or(Full)?;
        let home = self.home(self.hash(&key));
        if !self.place(home, number) && !self.place(self.other(home), number) && !self.make_room(home, number)
        {
            return Err(Full);
        }
        self.free.pop();
        self.used[number as usize / 64] |= 1 << (number % 64);
        self.flows[number as usize] = Flow {
            key,
            seen,
            epoch,
            value,
            bytes: 0,
        };
        Ok(FlowId(number))
    }

    /// Puts a flow into a free slot of a bucket.
    fn place(&mut self, home: Home, number: u32) -> bool {
        let bucket = &mut self.buckets[home.bucket as usize];
        let Some(slot) = bucket.vacancy() else {
            return false;
        };
        bucket.set(slot, home.tag, number);
        true
    }

    /// Moves flows to their other buckets until there is a slot for this one; otherwise all are where they were.
    #[cold]
    fn make_room(&mut self, home: Home, number: u32) -> bool {
        let (mut at, mut number) = (home, number);
        let mut moved = [(0, 0); MOVES];
        for moved in &mut moved {
            self.turn = (self.turn + 1) % SLOTS;
            *moved = (at.bucket, self.turn);
            let out = self.swap(at, self.turn, number);
            (at, number) = (self.other(out.0), out.1);
            if self.place(at, number) {
                return true;
            }
        }
        for (bucket, slot) in moved.into_iter().rev() {
            let back = Home { bucket, tag: at.tag };
            let out = self.swap(back, slot, number);
            (at, number) = out;
        }
        false
    }

    /// Puts a flow in the place of another one: that one, and the bucket that it stood in.
    fn swap(&mut self, home: Home, slot: usize, number: u32) -> (Home, u32) {
        let bucket = &mut self.buckets[home.bucket as usize];
        let (tag, out) = (bucket.tag(slot), bucket.flows[slot]);
        bucket.set(slot, home.tag, number);
        (
            Home {
                bucket: home.bucket,
                tag,
            },
            out,
        )
    }

    /// Takes a flow out.
    ///
    /// # Panics
    ///
    /// If it is not in the table.
    pub fn remove(&mut self, id: FlowId) -> Flow<V> {
        let flow = self.flows[id.0 as usize];
        let home = self.home(self.hash(&flow.key));
        let bit = 1 << (id.0 % 64);
        let used = &mut self.used[id.0 as usize / 64];
        assert!(*used & bit != 0, "a flow that is in the table");
        *used &= !bit;
        let other = self.other(home);
        let gone = self.clear(home, id.0) || self.clear(other, id.0);
        debug_assert!(gone, "a flow stands in one of its two buckets");
        self.flows[id.0 as usize].key = FlowKey::default();
        self.free.push(id.0);
        flow
    }

    fn clear(&mut self, home: Home, number: u32) -> bool {
        let bucket = &mut self.buckets[home.bucket as usize];
        let Some(slot) = bucket.flows.iter().position(|flow| *flow == number) else {
            return false;
        };
        bucket.set(slot, 0, NOBODY);
        true
    }

    /// The flow in a place of the table, if there is one.
    pub fn at(&self, place: u32) -> Option<&Flow<V>> {
        let flow = self.flows.get(place as usize)?;
        self.is_used(place).then_some(flow)
    }

    /// Looks at up to `budget` places for flows, going on where the last call ended, and takes those out that were last seen `idle` or more
    /// before `now`; at most 2^31 either way, so a flow seen after `now` is not old. Returns how many.
    pub fn expire(&mut self, now: u32, idle: u32, budget: usize) -> usize {
        let mut gone = 0;
        for _ in 0..budget.min(self.flows.len()) {
            let number = self.hand as u32;
            self.hand = (self.hand + 1) % self.flows.len();
            if !self.is_used(number) {
                continue;
            }
            let age = now.wrapping_sub(self.flows[number as usize].seen);
            if age >= idle && age < 1 << 31 {
                self.remove(FlowId(number));
                gone += 1;
            }
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Flows that may stand in the same two buckets as the first, that one included.
    fn of_one_pair(table: &FlowTable<u32>, count: usize) -> Vec<FlowKey> {
        let pair = |key: &FlowKey| {
            let home = table.home(table.hash(key));
            let [a, b] = [home.bucket, table.other(home).bucket];
            (a.min(b), a.max(b))
        };
        let flows = (0..).map(|n: u32| FlowKey::v4(n.to_be_bytes(), [10, 0, 0, 1], 17, 1, 2));
        let first = pair(&FlowKey::v4([0; 4], [10, 0, 0, 1], 17, 1, 2));
        flows.filter(|key| pair(key) == first).take(count).collect()
    }

    #[test]
    fn what_is_added_up_beforehand_makes_no_difference() {
        let keys = HashKeys::new(std::array::from_fn(|at| {
            (at as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        }));
        let key = FlowKey::v4([10, 1, 2, 3], [192, 0, 2, 77], 6, 40_000, 443);
        let sum = (0..5).fold(0, |sum, at| nh_add(sum, &keys.nh, at, key.words()[at]));
        assert_eq!(keys.hash(&key), keys.spread(sum));
    }

    #[test]
    fn every_slot_is_found_by_its_tag_and_no_other() {
        let tags = [0, 1, 0x7fff, 0x8000, 0x8001, 0xfffe, 0xffff, 0x0100];
        for turned in 0..SLOTS {
            let mut bucket = EMPTY;
            let of = |slot: usize| tags[(slot + turned) % SLOTS];
            for slot in (0..SLOTS).rev() {
                bucket.set(slot, of(slot), slot as u32);
            }
            for slot in 0..SLOTS {
                assert_eq!(bucket.tag(slot), of(slot));
                assert_eq!(bucket.tagged(of(slot)).collect::<Vec<_>>(), [slot]);
            }
            assert_eq!(bucket.tagged(2).next(), None);
            (0..SLOTS).for_each(|slot| bucket.set(slot, 7, 0));
            assert!(bucket.tagged(7).eq(0..SLOTS));
        }
    }

    #[test]
    fn when_no_room_can_be_made_everything_is_where_it_was() {
        for seed in 1..50u64 {
            let keys = HashKeys::new(std::array::from_fn(|at| {
                (seed + at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
            }));
            // Four buckets, two of which get more flows than they have slots.
            let mut table = FlowTable::<u32>::new(30, keys).expect("memory");
            let flows = of_one_pair(&table, 17);
            for (n, key) in flows[..16].iter().enumerate() {
                assert!(table.insert(*key, 0, 0, n as u32).is_ok(), "{n} of 16");
            }
            let slots = |table: &FlowTable<u32>| table.buckets.to_vec();
            let before = slots(&table);
            assert_eq!(table.insert(flows[16], 0, 0, 16), Err(Full));
            assert_eq!(slots(&table), before);
            assert_eq!((table.len(), table.find(&flows[16])), (16, None));
            for (n, key) in flows[..16].iter().enumerate() {
                let id = table.find(key).expect("still there");
                assert_eq!(table.get(id).value, n as u32);
            }
        }
    }
}
