//! Time and randomness as the protocol sees them: values that the caller passes in.

pub use std::time::Duration;

/// Nanoseconds of `CLOCK_BOOTTIME`: it goes on while the machine sleeps, so a key that aged during a suspend is old on
/// resume, and it never steps with the wall clock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Time(pub u64);

impl Time {
    /// `secs` seconds after boot.
    pub const fn from_secs(secs: u64) -> Self {
        Time(secs * 1_000_000_000)
    }

    /// The time elapsed since `earlier`; zero if `earlier` is in the future, as a clock that is read on two cores
    /// may make it seem.
    pub const fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// This time and `d` more, at most the end of time.
    pub const fn after(self, d: Duration) -> Time {
        Time(self.0.saturating_add(d.as_nanos() as u64))
    }
}

/// Unix time, as the wall clock shows it. Used for TAI64N timestamps and nothing else.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct WallClock {
    /// Seconds since 1970-01-01 UTC.
    pub secs: u64,
    /// Nanoseconds within the second.
    pub nanos: u32,
}

/// The moment at which something happens, on both clocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Now {
    /// Boot time, for every timer.
    pub mono: Time,
    /// Wall-clock time, for TAI64N.
    pub wall: WallClock,
}

/// A source of random bytes fit for keys. The engine passes the kernel's generator, a simulator a seeded one.
pub trait Random {
    /// Fills `buf` with random bytes.
    fn fill(&mut self, buf: &mut [u8]);

    /// A uniform 32-bit number.
    fn u32(&mut self) -> u32 {
        let mut b = [0; 4];
        self.fill(&mut b);
        u32::from_le_bytes(b)
    }

    /// A number below `n`, near enough to uniform for jitter (not for keys). Zero if `n` is zero.
    fn below(&mut self, n: u32) -> u32 {
        ((u64::from(self.u32()) * u64::from(n)) >> 32) as u32
    }
}
