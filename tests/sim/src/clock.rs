//! The virtual clock, which only the simulator moves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use patronus_crypto::{Now, Time, WallClock};
use patronus_engine::clock::Clock;

use crate::START;

/// The wall clock at [`START`].
const WALL: u64 = 1_780_000_000;

/// One clock for every site.
#[derive(Clone)]
pub struct VirtualClock(Arc<AtomicU64>);

impl VirtualClock {
    /// A clock that shows [`START`].
    pub fn new() -> VirtualClock {
        VirtualClock(Arc::new(AtomicU64::new(START.0)))
    }

    /// Sets it.
    pub fn set(&self, to: Time) {
        self.0.store(to.0, Ordering::Relaxed);
    }
}

impl Default for VirtualClock {
    fn default() -> Self {
        VirtualClock::new()
    }
}

impl Clock for VirtualClock {
    fn mono(&self) -> Time {
        Time(self.0.load(Ordering::Relaxed))
    }

    fn now(&self) -> Now {
        let mono = self.mono();
        let since = mono.since(START);
        let wall = WallClock {
            secs: WALL + since.as_secs(),
            nanos: since.subsec_nanos(),
        };
        Now { mono, wall }
    }
}
