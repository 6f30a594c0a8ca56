//! Receiver index -> peer, as a worker looks it up for every datagram.
//!
//! Open addressing over a power of two. The indices are uniformly random numbers that the slow path drew, so their low
//! bits are the hash: nobody outside can choose which indices exist, only which ones to probe in vain.

use patronus_crypto::PeerId;

const EMPTY: u32 = u32::MAX;

/// Sessions that one peer can have at the same time: previous, current, next, and one on its way in or out.
const SESSIONS_PER_PEER: usize = 4;

#[derive(Clone, Copy)]
struct Entry {
    index: u32,
    peer: u32,
}

/// A fixed-capacity map from receiver indices to peers.
pub struct IndexTable {
    entries: Box<[Entry]>,
    len: usize,
}

impl IndexTable {
    /// Room for the sessions of `max_peers` peers at a load of at most one half.
    pub fn new(max_peers: usize) -> Self {
        let capacity = (2 * SESSIONS_PER_PEER * max_peers.max(1)).next_power_of_two();
        IndexTable {
            entries: vec![
                Entry {
                    index: 0,
                    peer: EMPTY
                };
                capacity
            ]
            .into_boxed_slice(),
            len: 0,
        }
    }

    fn home(&self, index: u32) -> usize {
        index as usize & (self.entries.len() - 1)
    }

    /// Where `index` stands, or the empty place where it would.
    fn find(&self, index: u32) -> usize {
        let mask = self.entries.len() - 1;
        let mut at = self.home(index);
        while self.entries[at].peer != EMPTY && self.entries[at].index != index {
            at = (at + 1) & mask;
        }
        at
    }

    /// The peer whose session has this index.
    #[inline]
    pub fn get(&self, index: u32) -> Option<PeerId> {
        let entry = self.entries[self.find(index)];
        (entry.peer != EMPTY).then_some(PeerId(entry.peer))
    }

    /// Adds or replaces an entry. False, and nothing changed, if the table is full.
    #[must_use]
    pub fn insert(&mut self, index: u32, peer: PeerId) -> bool {
        let at = self.find(index);
        if self.entries[at].peer == EMPTY {
            // One place stays empty for ever, so that every search ends.
            if self.len + 1 >= self.entries.len() {
                return false;
            }
            self.len += 1;
        }
        self.entries[at] = Entry { index, peer: peer.0 };
        true
    }

    /// Removes an entry if it is there, and closes the gap so that no search stops short.
    pub fn remove(&mut self, index: u32) {
        let mask = self.entries.len() - 1;
        let mut gap = self.find(index);
        if self.entries[gap].peer == EMPTY {
            return;
        }
        self.len -= 1;
        let mut at = gap;
        loop {
            at = (at + 1) & mask;
            if self.entries[at].peer == EMPTY {
                break;
            }
            // An entry may move into the gap if its home is not between the gap (excluded) and where it stands.
            let home = self.home(self.entries[at].index);
            if (at.wrapping_sub(home) & mask) >= (at.wrapping_sub(gap) & mask) {
                self.entries[gap] = self.entries[at];
                gap = at;
            }
        }
        self.entries[gap].peer = EMPTY;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    /// A full table of random indices is searched in a few steps: every place is a home.
    #[test]
    fn indices_stand_near_their_homes() {
        let peers = 1000;
        let mut table = IndexTable::new(peers);
        let mut random = 1u32;
        let indices: Vec<u32> = std::iter::repeat_with(|| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            random.reverse_bits()
        })
        .take(peers * SESSIONS_PER_PEER)
        .collect();
        assert!(indices.iter().all(|&index| table.insert(index, PeerId(1))));
        let mask = table.entries.len() - 1;
        let steps = |index: u32| table.find(index).wrapping_sub(table.home(index)) & mask;
        let total: usize = indices.iter().map(|&index| steps(index)).sum();
        // Linear probing at a load of one half: half a step on average (Knuth, volume 3, section 6.4).
        assert!(
            total < indices.len(),
            "{total} steps for {} indices",
            indices.len()
        );
    }

    proptest! {
        /// Against a HashMap, with indices that collide on purpose.
        #[test]
        fn behaves_like_a_map(ops in proptest::collection::vec((0u32..64, 0u32..4, any::<bool>()), 0..400)) {
            let mut table = IndexTable::new(8);
            let mut oracle = HashMap::new();
            for (low, high, insert) in ops {
                let index = low | high << 20;
                if insert {
                    if table.insert(index, PeerId(low)) {
                        oracle.insert(index, PeerId(low));
                    } else {
                        prop_assert_eq!(oracle.len(), 63);
                    }
                } else {
                    table.remove(index);
                    oracle.remove(&index);
                }
                prop_assert_eq!(table.len, oracle.len());
                for probe in (0..64).flat_map(|l| (0..4).map(move |h| l | h << 20)) {
                    prop_assert_eq!(table.get(probe), oracle.get(&probe).copied());
                }
            }
        }
    }
}
