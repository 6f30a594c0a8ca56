//! A bounded ring from one thread to one other.
//!
//! The producer owns `tail`, the consumer owns `head`; each reads the other's only when what it remembers of it says full or
//! empty. Both count up for ever and wrap; their difference is the number of values in the ring, so no slot is
//! wasted. A burst costs one store that the other side can see.

use std::mem::MaybeUninit;

use crossbeam_utils::CachePadded;

use crate::facade::{Arc, AtomicUsize, Ordering, UnsafeCell};

/// So many slots before they are written, or read, they are asked for: the other core had them last, and each would be waited for by itself.
const AHEAD: usize = 16;

struct Shared<T> {
    /// The next slot to take from; only the consumer writes it.
    head: CachePadded<AtomicUsize>,
    /// The next slot to fill; only the producer writes it.
    tail: CachePadded<AtomicUsize>,
    /// A power of two of them. Those from `head` to `tail` hold values.
    slots: Box<[UnsafeCell<MaybeUninit<T>>]>,
}

// SAFETY: a slot is reached by the producer while it is outside `head..tail` and by the consumer while it is inside, and the
// release stores of both bounds hand it over; values cross threads, so they have to be Send.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

/// Asks the processor for a line, to be read or to be written. It changes nothing but time.
#[inline(always)]
fn prefetch<const WRITE: bool, T>(at: *const T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a prefetch of any address has no effect that a program can see; a processor that has none for writing does nothing.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        match WRITE {
            true => {
                std::arch::asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly))
            }
            false => _mm_prefetch::<_MM_HINT_T0>(at.cast()),
        }
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = at;
}

impl<T> Shared<T> {
    #[inline]
    fn slot(&self, at: usize) -> &UnsafeCell<MaybeUninit<T>> {
        &self.slots[at & (self.slots.len() - 1)]
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // Both handles are gone, and with them everything that could run at the same time.
        let tail = self.tail.load(Ordering::Relaxed);
        let mut at = self.head.load(Ordering::Relaxed);
        while at != tail {
            // SAFETY: slots from head to tail hold values, and this is the only reference.
            self.slot(at)
                .with_mut(|slot| unsafe { (*slot).assume_init_drop() });
            at = at.wrapping_add(1);
        }
    }
}

/// The end that fills a [`ring()`].
pub struct Producer<T> {
    shared: Arc<Shared<T>>,
    tail: usize,
    /// The tail that the consumer may see: what was put in since is not out yet.
    published: usize,
    /// The consumer's head when it was last looked at: the ring is at most as full as this says.
    head_seen: usize,
}

/// The end that empties a [`ring()`].
pub struct Consumer<T> {
    shared: Arc<Shared<T>>,
    head: usize,
    /// The producer's tail when it was last looked at: there is at least as much to take as this says.
    tail_seen: usize,
}

/// A ring with room for `capacity` values, rounded up to a power of two.
///
/// # Panics
///
/// If `capacity` is 0 or more than a quarter of the address space.
pub fn ring<T: Send>(capacity: usize) -> (Producer<T>, Consumer<T>) {
    assert!(capacity > 0 && capacity <= 1 << (usize::BITS - 2));
    let slots = (0..capacity.next_power_of_two())
        .map(|_| UnsafeCell::new(MaybeUninit::uninit()))
        .collect();
    let shared = Arc::new(Shared {
        head: CachePadded::new(AtomicUsize::new(0)),
        tail: CachePadded::new(AtomicUsize::new(0)),
        slots,
    });
    (
        Producer {
            shared: Arc::clone(&shared),
            tail: 0,
            published: 0,
            head_seen: 0,
        },
        Consumer {
            shared,
            head: 0,
            tail_seen: 0,
        },
    )
}

impl<T: Send> Producer<T> {
    /// How many values the ring holds at most.
    pub fn capacity(&self) -> usize {
        self.shared.slots.len()
    }

    /// How many values are sure to fit. Looks at the consumer's progress only if fewer than `wanted` fit without.
    #[inline]
    pub fn room(&mut self, wanted: usize) -> usize {
        let mut room = self.capacity() - self.tail.wrapping_sub(self.head_seen);
        if room < wanted {
            // Acquire: the consumer is done with the slots before `head`.
            self.head_seen = self.shared.head.load(Ordering::Acquire);
            room = self.capacity() - self.tail.wrapping_sub(self.head_seen);
        }
        debug_assert!(room <= self.capacity(), "head never passes tail");
        room
    }

    /// Puts one value in, or gives it back if the ring is full. The consumer does not see it before it is [published](Producer::publish).
    #[inline(always)]
    pub fn put(&mut self, value: T) -> Result<(), T> {
        if self.room(1) == 0 {
            return Err(value);
        }
        if self.tail == self.published {
            // The consumer looks there; by the time that these values are published it is here.
            prefetch::<true, _>(&raw const *self.shared.tail);
        }
        prefetch::<true, _>(self.shared.slot(self.tail.wrapping_add(AHEAD)));
        self.write(value);
        Ok(())
    }

    /// Lets the consumer see, all at once, what was put in. Returns how many values that are.
    #[inline]
    pub fn publish(&mut self) -> usize {
        let count = self.tail.wrapping_sub(self.published);
        if count > 0 {
            self.published = self.tail;
            // Release: the slots are written before they belong to the consumer.
            self.shared.tail.store(self.tail, Ordering::Release);
        }
        count
    }

    /// Puts one value in and publishes it, or gives it back if the ring is full.
    #[inline]
    pub fn push(&mut self, value: T) -> Result<(), T> {
        self.put(value)?;
        self.publish();
        Ok(())
    }

    /// Puts in as many of the `values` as fit and leaves the others in the iterator. The consumer sees all of them at once.
    /// Returns how many went in.
    #[inline]
    pub fn push_some<I: ExactSizeIterator<Item = T>>(&mut self, values: &mut I) -> usize {
        let fitting = self.room(values.len()).min(values.len());
        let before = self.tail;
        // An iterator may be shorter than it said.
        for value in values.take(fitting) {
            self.write(value);
        }
        self.publish();
        self.tail.wrapping_sub(before)
    }

    #[inline(always)]
    fn write(&mut self, value: T) {
        let slot = self.shared.slot(self.tail);
        // SAFETY: `room` found this slot outside `head..tail`, so the consumer does not touch it, and what it may once have held was
        // moved out.
        slot.with_mut(|slot| unsafe { (*slot).write(value) });
        self.tail = self.tail.wrapping_add(1);
    }
}

impl<T> Drop for Producer<T> {
    fn drop(&mut self) {
        // What was put in and never published is the consumer's all the same, or nobody would drop it.
        self.shared.tail.store(self.tail, Ordering::Release);
    }
}

impl<T: Send> Consumer<T> {
    /// How many values are sure to be there. Looks at the producer's progress only if there are fewer than `wanted` without.
    #[inline]
    pub fn ready(&mut self, wanted: usize) -> usize {
        let mut ready = self.tail_seen.wrapping_sub(self.head);
        if ready < wanted {
            // Acquire: the slots before `tail` are written.
            self.tail_seen = self.shared.tail.load(Ordering::Acquire);
            ready = self.tail_seen.wrapping_sub(self.head);
        }
        debug_assert!(ready <= self.shared.slots.len(), "head never passes tail");
        ready
    }

    /// Takes the oldest value.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        self.drain(1).next()
    }

    /// Takes up to `max` of the oldest values. The producer has their room again when the iterator is dropped.
    #[inline]
    pub fn drain(&mut self, max: usize) -> Drain<'_, T> {
        let left = self.ready(max).min(max);
        let start = self.head;
        Drain {
            ring: self,
            left,
            start,
        }
    }

    #[inline]
    fn publish(&self) {
        // Release: the values are moved out before the slots belong to the producer.
        self.shared.head.store(self.head, Ordering::Release);
    }
}

impl<T> Drop for Consumer<T> {
    fn drop(&mut self) {
        // A leaked `Drain` has taken values that were not published.
        self.shared.head.store(self.head, Ordering::Release);
    }
}

/// Values on their way out of a [`Consumer`]. What is not taken stays in the ring.
pub struct Drain<'a, T: Send> {
    ring: &'a mut Consumer<T>,
    left: usize,
    /// The consumer's head when this began.
    start: usize,
}

impl<T: Send> Iterator for Drain<'_, T> {
    type Item = T;

    #[inline]
    fn next(&mut self) -> Option<T> {
        self.left = self.left.checked_sub(1)?;
        if self.left >= AHEAD {
            prefetch::<false, _>(self.ring.shared.slot(self.ring.head.wrapping_add(AHEAD)));
        }
        let slot = self.ring.shared.slot(self.ring.head);
        // SAFETY: `ready` found this slot inside `head..tail`; moving `head` on makes this the only time that it is read.
        let value = slot.with_mut(|slot| unsafe { (*slot).assume_init_read() });
        self.ring.head = self.ring.head.wrapping_add(1);
        Some(value)
    }

    #[inline]
    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl<T: Send> ExactSizeIterator for Drain<'_, T> {}

impl<T: Send> Drop for Drain<'_, T> {
    #[inline]
    fn drop(&mut self) {
        // The line of the number is the producer's as well: not touched for nothing.
        if self.ring.head != self.start {
            self.ring.publish();
        }
    }
}
