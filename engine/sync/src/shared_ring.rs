//! A bounded ring of records from one process to one other, neither of which believes the other.
//!
//! The sender's region has the slots and the tail, the receiver's has the head; each reads what is the other's and writes what is its own. Both count up for
//! ever and wrap. Each keeps its own number by itself and only publishes it: what it reads of the other's is compared with that, and a number that cannot be
//! (more in the ring than it holds, less than nothing) costs what is in the ring, and no more. Records are copied out word by word, so one that is changed
//! while it is copied is a mixture, which is for whoever reads it to refuse; the copy does not change any more.
//!
//! Not for packets: a record is a few hundred bytes of words.

use crate::facade::{Ordering, fence};

/// Memory by words that may be another process's to write. Places are in bytes and multiples of 8.
pub trait Words {
    /// The word in this place.
    ///
    /// # Panics
    /// If there is no such place.
    fn load(&self, at: usize, order: Ordering) -> u64;
}

/// The same, ours to write.
pub trait WordsMut: Words {
    /// Replaces the word in this place.
    ///
    /// # Panics
    /// If there is no such place.
    fn store(&self, at: usize, value: u64, order: Ordering);
}

/// Where a ring is in its regions.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// The tail, in the sender's region.
    pub tail: usize,
    /// The head, in the receiver's region.
    pub head: usize,
    /// The first slot, in the sender's region.
    pub slots: usize,
    /// How many slots: a power of two.
    pub count: usize,
}

impl Layout {
    fn slot(&self, position: u64, words: usize) -> usize {
        debug_assert!(self.count.is_power_of_two());
        let at = position as usize & (self.count - 1);
        self.slots + at * words * 8
    }
}

/// The end that fills a ring of records of `N` words.
pub struct RingSender<M, T, const N: usize> {
    mine: M,
    theirs: T,
    layout: Layout,
    tail: u64,
}

impl<M: WordsMut, T: Words, const N: usize> RingSender<M, T, N> {
    /// An empty ring in regions that are all zero.
    pub fn new(mine: M, theirs: T, layout: Layout) -> Self {
        RingSender {
            mine,
            theirs,
            layout,
            tail: 0,
        }
    }

    /// Puts a record in. `None` if the ring is full, or the receiver says what cannot be; otherwise whether the receiver has to be told: it had taken all of before
    /// and may have gone to sleep.
    pub fn send(&mut self, record: [u64; N]) -> Option<bool> {
        self.send_leaving(0, record)
    }

    /// The same where so many places have to be left for others.
    pub fn send_leaving(&mut self, places: usize, record: [u64; N]) -> Option<bool> {
        // Acquire: the receiver is done with the slots before its head.
        let used = self
            .tail
            .wrapping_sub(self.theirs.load(self.layout.head, Ordering::Acquire));
        if used >= self.layout.count.saturating_sub(places) as u64 {
            return None;
        }
        let slot = self.layout.slot(self.tail, N);
        for (at, word) in record.into_iter().enumerate() {
            self.mine.store(slot + 8 * at, word, Ordering::Relaxed);
        }
        let before = self.tail;
        self.tail = self.tail.wrapping_add(1);
        // Release: the record is written before it belongs to the receiver.
        self.mine.store(self.layout.tail, self.tail, Ordering::Release);
        // With the receiver's fence: either it sees this record, or we see that it has taken everything before.
        fence(Ordering::SeqCst);
        Some(self.theirs.load(self.layout.head, Ordering::Relaxed) == before)
    }
}

/// The end that empties a ring of records of `N` words.
pub struct RingReceiver<M, T, const N: usize> {
    mine: M,
    theirs: T,
    layout: Layout,
    head: u64,
    nonsense: u64,
}

impl<M: WordsMut, T: Words, const N: usize> RingReceiver<M, T, N> {
    /// An empty ring in regions that are all zero.
    pub fn new(mine: M, theirs: T, layout: Layout) -> Self {
        RingReceiver {
            mine,
            theirs,
            layout,
            head: 0,
            nonsense: 0,
        }
    }

    /// Takes the oldest record, whatever it is.
    pub fn receive(&mut self) -> Option<[u64; N]> {
        // With the sender's fence: see there.
        fence(Ordering::SeqCst);
        // Acquire: the record before the tail is written.
        let tail = self.theirs.load(self.layout.tail, Ordering::Acquire);
        let ready = tail.wrapping_sub(self.head);
        if ready == 0 {
            return None;
        }
        if ready > self.layout.count as u64 {
            // What is in the slots belongs to no position: all of it is lost, and both go on from where the sender says that it is.
            self.nonsense += 1;
            self.publish(tail);
            return None;
        }
        let slot = self.layout.slot(self.head, N);
        let record = std::array::from_fn(|at| self.theirs.load(slot + 8 * at, Ordering::Relaxed));
        self.publish(self.head.wrapping_add(1));
        Some(record)
    }

    /// How often the sender's number was one that cannot be.
    pub fn nonsense(&self) -> u64 {
        self.nonsense
    }

    fn publish(&mut self, head: u64) {
        self.head = head;
        // Release: the record is copied before the slot belongs to the sender.
        self.mine.store(self.layout.head, head, Ordering::Release);
    }
}
