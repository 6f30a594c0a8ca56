//! What one direction of the link does to packets. Written by scripts, read by [`crate::model`]. Plain values.

use crate::dice::Chance;

/// Everything that can be set for a direction. The default is a perfect link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// How late packets are.
    pub delay: Delay,
    /// How packets are lost.
    pub loss: Loss,
    /// How fast bytes go through; `None` is without limit.
    pub rate: Option<Rate>,
    /// Packets that later ones overtake.
    pub reorder: Option<Reorder>,
    /// Packets that come twice.
    pub duplicate: Chance,
    /// Packets with one bit turned over.
    pub corrupt: Chance,
    /// The longest IP packet that goes through, bytes; longer ones vanish without a word.
    pub mtu: Option<u32>,
    /// Nothing goes through.
    pub cut: bool,
}

/// A fixed delay, and what varies around it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delay {
    /// Nanoseconds.
    pub fixed: u64,
    /// Half the width of the even distribution, or the standard deviation of the normal one, nanoseconds.
    pub jitter: u64,
    /// How the jitter is distributed.
    pub shape: Shape,
}

/// A distribution of jitter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    /// Evenly from `fixed - jitter` to `fixed + jitter`.
    #[default]
    Uniform,
    /// Normally around `fixed`; no delay is below zero.
    Normal,
}

/// How packets are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Each on its own.
    Independent(Chance),
    /// In bursts (the model of Gilbert and Elliott): before each packet the link may change between good and bad.
    Bursts {
        /// From good to bad.
        enter: Chance,
        /// From bad to good.
        leave: Chance,
        /// Loss while bad.
        bad: Chance,
        /// Loss while good.
        good: Chance,
    },
}

impl Default for Loss {
    fn default() -> Loss {
        Loss::Independent(Chance::NEVER)
    }
}

/// A bottleneck and its queue. What has no room in the queue is dropped at its tail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Bits of whole frames a second, without preamble and check sequence; at least 1.
    pub bits_per_second: u64,
    /// Bytes that may wait, the frame that is being sent among them. One frame may always wait.
    pub queue_bytes: u64,
    /// Frames that may wait; at least 1.
    pub queue_packets: u32,
}

/// Packets that are held back and do not make later ones wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reorder {
    /// Which.
    pub chance: Chance,
    /// How long beyond the delay, nanoseconds.
    pub by: u64,
}
