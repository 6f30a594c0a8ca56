//! A few words that one thread changes and others read as a whole, without either waiting.
//!
//! The sequence number is odd while the words change. A reader that sees the same even number before and after has a copy of
//! one moment (H.-J. Boehm, "Can seqlocks get along with programming language memory models?", MSPC 2012, section 4:
//! words as relaxed atomics between fences, so that no read is a data race).

use crate::facade::{Arc, AtomicU64, Ordering, fence};

struct Shared<const N: usize> {
    sequence: AtomicU64,
    words: [AtomicU64; N],
}

/// What readers hold.
pub struct SeqLock<const N: usize>(Arc<Shared<N>>);

/// What the one writer holds.
pub struct SeqWriter<const N: usize>(Arc<Shared<N>>);

impl<const N: usize> SeqLock<N> {
    /// `words`, and the one handle that changes them.
    pub fn new(words: [u64; N]) -> (SeqWriter<N>, SeqLock<N>) {
        let shared = Arc::new(Shared {
            sequence: AtomicU64::new(0),
            words: words.map(AtomicU64::new),
        });
        (SeqWriter(Arc::clone(&shared)), SeqLock(shared))
    }

    /// All words as they were at one moment; `None` if they were being changed meanwhile. The caller decides how often to try again.
    #[inline]
    pub fn read(&self) -> Option<[u64; N]> {
        let Shared { sequence, words } = &*self.0;
        // Acquire: the words are read after this, and at least as new as this number.
        let before = sequence.load(Ordering::Acquire);
        if !before.is_multiple_of(2) {
            return None;
        }
        let copy = std::array::from_fn(|at| words[at].load(Ordering::Relaxed));
        // A word of a later write, if one was read, makes the number of that write visible here.
        fence(Ordering::Acquire);
        (sequence.load(Ordering::Relaxed) == before).then_some(copy)
    }
}

impl<const N: usize> Clone for SeqLock<N> {
    fn clone(&self) -> Self {
        SeqLock(Arc::clone(&self.0))
    }
}

impl<const N: usize> SeqWriter<N> {
    /// Replaces all words.
    #[inline]
    pub fn write(&mut self, words: [u64; N]) {
        let shared = &*self.0;
        let before = shared.sequence.load(Ordering::Relaxed);
        debug_assert!(before.is_multiple_of(2), "there is one writer");
        shared.sequence.store(before + 1, Ordering::Relaxed);
        // Whoever reads one of the words below, and has an acquire fence after it, sees the odd number or a later one.
        fence(Ordering::Release);
        for (word, value) in shared.words.iter().zip(words) {
            word.store(value, Ordering::Relaxed);
        }
        // Release: whoever sees the even number sees all words.
        shared.sequence.store(before + 2, Ordering::Release);
    }
}
