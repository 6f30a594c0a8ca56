//! Whether somebody has to be woken: the part of going to sleep that two threads have to agree on.
//!
//! The sleeper says that it goes to sleep, looks at its queues once more, and only then sleeps; whoever fills a queue looks for
//! that word afterwards. This is Dekker's pattern: each writes one place and then reads the other's, and the sequentially
//! consistent fences between make sure that at least one of the two sees the other. How the sleeper sleeps and how it is
//! called is the caller's affair.

use crate::facade::{AtomicBool, Ordering, fence};

/// Belongs to one sleeper; anybody may ring.
pub struct Bell {
    asleep: AtomicBool,
}

impl Bell {
    /// The sleeper is awake.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Bell {
        Bell {
            asleep: AtomicBool::new(false),
        }
    }

    /// By the sleeper, before it looks at its queues for the last time.
    #[inline]
    pub fn lie_down(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// By the sleeper, when it is up again or has found something after all.
    #[inline]
    pub fn get_up(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// By anybody, after filling a queue of the sleeper's. True for one of those who ring while it sleeps: that one has to call it.
    #[inline]
    #[must_use]
    pub fn ring(&self) -> bool {
        fence(Ordering::SeqCst);
        self.ring_early()
    }

    /// The same for who rings properly a little later: without the fence, which waits until everything written before has reached the other
    /// cores, it may miss a sleeper who is only just lying down.
    #[inline]
    #[must_use]
    pub fn ring_early(&self) -> bool {
        self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed)
    }
}
