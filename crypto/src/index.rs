//! The indices by which peers address our handshakes and sessions.
//!
//! Held by the [`Device`](crate::Device) on the slow-path thread. Over all peers and over handshakes and sessions alike, no
//! number stands for two things at a time; each is drawn at random, so that it tells nobody how many there are.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::BuildHasherDefault;

use crate::fnv::Fnv;
use crate::{PeerId, Random};

/// Which peer each index in use belongs to.
#[derive(Default)]
pub(crate) struct IndexTable {
    peers: HashMap<u32, PeerId, BuildHasherDefault<Fnv>>,
}

impl IndexTable {
    /// Makes room for `count` indices in all.
    pub(crate) fn reserve(&mut self, count: usize) {
        self.peers.reserve(count.saturating_sub(self.peers.len()));
    }

    /// Room that there is in all.
    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.peers.capacity()
    }

    /// A fresh index for `peer`.
    pub(crate) fn allocate(&mut self, peer: PeerId, rng: &mut dyn Random) -> u32 {
        loop {
            if let Entry::Vacant(place) = self.peers.entry(rng.u32()) {
                let index = *place.key();
                place.insert(peer);
                return index;
            }
        }
    }

    /// The peer that `index` belongs to.
    pub(crate) fn peer(&self, index: u32) -> Option<PeerId> {
        self.peers.get(&index).copied()
    }

    /// Gives `index` back.
    pub(crate) fn free(&mut self, index: u32) {
        self.peers.remove(&index);
    }

    /// Indices in use.
    pub(crate) fn len(&self) -> usize {
        self.peers.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts up, so that collisions can be arranged.
    struct Listed(Vec<u32>);

    impl Random for Listed {
        fn fill(&mut self, buf: &mut [u8]) {
            buf.copy_from_slice(&self.0.remove(0).to_le_bytes()[..buf.len()]);
        }
    }

    #[test]
    fn c14_an_index_in_use_is_not_given_again() {
        let mut table = IndexTable::default();
        let mut rng = Listed(vec![7, 7, 7, 8, 7]);
        assert_eq!(table.allocate(PeerId(1), &mut rng), 7);
        assert_eq!(table.allocate(PeerId(2), &mut rng), 8);
        assert_eq!(
            (table.peer(7), table.peer(8), table.peer(9)),
            (Some(PeerId(1)), Some(PeerId(2)), None)
        );
        table.free(7);
        assert_eq!(table.peer(7), None);
        assert_eq!(table.allocate(PeerId(3), &mut rng), 7, "freed indices are free");
        assert_eq!(table.len(), 2);
    }

    /// SplitMix64, as good as random for this.
    struct Mixed(u64);

    impl Random for Mixed {
        fn fill(&mut self, buf: &mut [u8]) {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            buf.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes()[..buf.len()]);
        }
    }

    #[test]
    fn c14_a_million_indices_are_uniform_and_unique() {
        let mut table = IndexTable::default();
        let mut rng = Mixed(1);
        let mut bins = [[0u32; 256]; 4];
        let count = 1_000_000;
        for _ in 0..count {
            let index = table.allocate(PeerId(0), &mut rng);
            for (bins, byte) in bins.iter_mut().zip(index.to_le_bytes()) {
                bins[usize::from(byte)] += 1;
            }
        }
        assert_eq!(table.len(), count);
        // Chi-square with 255 degrees of freedom: 350 is exceeded once in ten thousand.
        let expected = count as f64 / 256.0;
        for bins in bins {
            let chi: f64 = bins
                .iter()
                .map(|&n| (f64::from(n) - expected).powi(2) / expected)
                .sum();
            assert!(chi < 350.0, "{chi}");
        }
    }
}
