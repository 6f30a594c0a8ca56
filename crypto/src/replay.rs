//! The window of counters that were received: each is accepted once, and none that is far behind.
//!
//! One per keypair, written by the worker that owns it. A ring of bits in the manner of RFC 6479: moving on clears whole
//! words and shifts nothing. Asking and marking are two steps, because only an authenticated packet may move the window.

use crate::timeouts::REJECT_AFTER_MESSAGES;

const WORD_BITS: u64 = u64::BITS as u64;

/// Counters received under one key.
pub struct ReplayWindow {
    /// Bit `c % bits` is set if counter `c` was received, for the counters in reach. A power of two of words.
    ring: Box<[u64]>,
    /// One more than the highest counter received, 0 for none.
    next: u64,
}

impl ReplayWindow {
    /// Bits of the window that reaches as far back as the protocol's does.
    pub const DEFAULT_BITS: u32 = 8192;

    /// A window of `bits` bits, rounded up to a power of two and at least 128. One word of it is always being reused: the
    /// window reaches [`reach`](Self::reach) back. Allocates; nothing after it does.
    pub fn new(bits: u32) -> Self {
        let words = u64::from(bits).div_ceil(WORD_BITS).next_power_of_two().max(2);
        ReplayWindow {
            ring: vec![0; words as usize].into_boxed_slice(),
            next: 0,
        }
    }

    /// How far behind the highest counter received a packet may be, in packets.
    pub fn reach(&self) -> u64 {
        (self.ring.len() as u64 - 1) * WORD_BITS
    }

    /// Forgets everything, for another key.
    pub fn clear(&mut self) {
        self.ring.fill(0);
        self.next = 0;
    }

    /// Whether a packet with this counter could be accepted now. Changes nothing: the packet is not authenticated yet.
    #[inline]
    pub fn check(&self, counter: u64) -> bool {
        // No overflow: `counter` is below REJECT_AFTER_MESSAGES, and a reach above what is left to 2^64 saturates.
        if counter >= REJECT_AFTER_MESSAGES || (counter + 1).saturating_add(self.reach()) < self.next {
            return false;
        }
        let (word, bit) = self.place(counter);
        counter >= self.next || self.ring[word] & bit == 0
    }

    /// Marks an authenticated packet's counter as received. False if it may not be accepted (it was marked since it was
    /// checked, as a copy in the same burst is).
    #[inline]
    pub fn mark(&mut self, counter: u64) -> bool {
        if !self.check(counter) {
            return false;
        }
        if counter >= self.next {
            self.advance(counter);
        }
        let (word, bit) = self.place(counter);
        self.ring[word] |= bit;
        true
    }

    /// Asks for the word of this counter.
    #[inline]
    pub fn prefetch(&self, counter: u64) {
        patronus_mem::prefetch(&self.ring[self.place(counter).0]);
    }

    /// Moves the top of the window up to `counter`, clearing the words that come into use again.
    #[inline]
    fn advance(&mut self, counter: u64) {
        // The word of the highest counter so far stays; before the first packet, every word is clear anyway.
        let newest = self.next.saturating_sub(1) / WORD_BITS;
        let steps = (counter / WORD_BITS - newest).min(self.ring.len() as u64);
        let mask = self.ring.len() - 1;
        for step in 1..=steps {
            self.ring[(newest + step) as usize & mask] = 0;
        }
        self.next = counter + 1;
    }

    #[inline]
    fn place(&self, counter: u64) -> (usize, u64) {
        let word = (counter / WORD_BITS) as usize & (self.ring.len() - 1);
        (word, 1 << (counter % WORD_BITS))
    }
}
