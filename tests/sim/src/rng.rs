//! The one source of randomness of a run: everything that happens is decided by it, so a seed is a run.

use std::ops::Range;

use patronus_crypto::Random;

/// Random bytes that a seed determines (SplitMix64, Steele and others 2014).
#[derive(Clone)]
pub struct Seeded(pub u64);

impl Seeded {
    /// Another generator, which neither disturbs this one nor is disturbed by it later.
    pub fn fork(&mut self) -> Seeded {
        Seeded(self.word())
    }

    /// The next 64 bits.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from `range`, which is not empty.
    pub fn pick(&mut self, range: Range<usize>) -> usize {
        range.start + (self.word() % (range.end - range.start) as u64) as usize
    }

    /// True `percent` times in a hundred.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.pick(0..100) < percent
    }

    /// One of them.
    pub fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.pick(0..of.len())]
    }

    /// Puts them into another order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, self.pick(0..at + 1));
        }
    }
}

impl Random for Seeded {
    fn fill(&mut self, buf: &mut [u8]) {
        for chunk in buf.chunks_mut(8) {
            let bytes = self.word().to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }
}
