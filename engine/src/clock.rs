//! The real clocks and the kernel's random generator, for the binary; a simulator brings its own.

use std::time::Instant;

use patronus_crypto::{Now, Random, Time, WallClock};
use rustix::rand::{GetRandomFlags, getrandom};
use rustix::time::{ClockId, clock_gettime};

/// Where the engine reads the time.
pub trait Clock: Send {
    /// Boot time, for timers: cheap, called once per burst.
    fn mono(&self) -> Time;
    /// Boot and wall time, for handshakes.
    fn now(&self) -> Now;
}

/// `CLOCK_BOOTTIME` and `CLOCK_REALTIME`.
#[derive(Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn mono(&self) -> Time {
        let t = clock_gettime(ClockId::Boottime);
        Time(t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64)
    }

    fn now(&self) -> Now {
        let t = clock_gettime(ClockId::Realtime);
        // A wall clock before 1970 is as good as one that was never set.
        let wall = WallClock {
            secs: t.tv_sec.max(0) as u64,
            nanos: t.tv_nsec as u32,
        };
        Now {
            mono: self.mono(),
            wall,
        }
    }
}

/// The present, for what takes the standard library's time.
pub fn instant() -> Instant {
    Instant::now()
}

/// `getrandom(2)`.
#[derive(Clone, Copy, Default)]
pub struct SystemRandom;

impl Random for SystemRandom {
    fn fill(&mut self, buf: &mut [u8]) {
        let mut filled = 0;
        while filled < buf.len() {
            // Blocks until the generator is seeded at boot; after that it fails only when interrupted by a signal.
            if let Ok(n) = getrandom(&mut buf[filled..], GetRandomFlags::empty()) {
                filled += n;
            }
        }
    }
}
