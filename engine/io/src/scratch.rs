//! Buffers that the kernel copies large messages into.
//!
//! Their place within a page matters: the string copy that the kernel uses on current x86-64 (`rep movsb`) is five to eight times slower
//! when the destination lies 1 to 31 bytes behind the source modulo 4,096, and a message's bytes mostly begin with a page. A
//! large block of the system's allocator begins 16 bytes behind a page.

use std::ops::{Deref, DerefMut};

const PAGE: usize = 4096;

/// Zeroed bytes that begin in the middle of a page. They take memory only where they are touched.
pub(crate) struct Scratch {
    block: Vec<u8>,
    start: usize,
    len: usize,
}

impl Scratch {
    pub(crate) fn new(len: usize) -> Scratch {
        let block = vec![0; len + 2 * PAGE];
        let to_page = (block.as_ptr() as usize).wrapping_neg() % PAGE;
        Scratch {
            block,
            start: to_page + PAGE / 2,
            len,
        }
    }
}

impl Deref for Scratch {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.block[self.start..self.start + self.len]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.block[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn begins_in_the_middle_of_a_page() {
        for len in [0, 1, 65536, 1 << 21] {
            let mut scratch = Scratch::new(len);
            assert_eq!((scratch.len(), scratch.as_ptr() as usize % PAGE), (len, PAGE / 2));
            scratch.fill(1);
        }
    }
}
