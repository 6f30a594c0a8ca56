//! The impairment hop: a link that is bad in a controlled way, for tests, measurements and drills on kernels without netem.
//!
//! ```text
//!  interface a --Receiver--> wire   what the sender's kernel left undone: checksum, segmentation
//!                            nat    UDP ports (and address) of one direction, if asked
//!                            Link   Impair::offer -> lost, or when it leaves; DelayQueue until then
//!              --send------> interface b          and the same from b to a
//! ```
//!
//! * [`model`]: which packet is lost, late, early, doubled or damaged. No sockets, no clock: a simulator uses it with a virtual one.
//! * [`link`](mod@link): the model and the packets under way, bounded.
//! * [`script`]: what people write, with errors that say where.
//! * [`nat`]: a UDP NAT that can be told to forget its ports.
//! * [`wire`], [`bridge`]: the frames, the sockets, and the loop of the one thread that there is.
//!
//! The program is `patronus-hop`; `patronus_netns::Hop` puts it between two namespaces. docs/impairment.md says what each word of a
//! script does.
#![forbid(unsafe_code)]

pub mod bridge;
pub mod dice;
pub mod link;
pub mod model;
pub mod nat;
pub mod script;
pub mod settings;
pub mod wire;

/// Nanoseconds on a clock that never goes back.
pub type Time = u64;

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the first interface to the second.
    AToB,
    /// From the second interface to the first.
    BToA,
}

impl Direction {
    /// Both, in the order of [`Direction::index`].
    pub const BOTH: [Direction; 2] = [Direction::AToB, Direction::BToA];

    /// 0 or 1: the number of the interface that it comes from.
    pub fn index(self) -> usize {
        match self {
            Direction::AToB => 0,
            Direction::BToA => 1,
        }
    }

    /// As scripts and counters write it.
    pub fn name(self) -> &'static str {
        match self {
            Direction::AToB => "a->b",
            Direction::BToA => "b->a",
        }
    }

    /// The way back.
    pub fn other(self) -> Direction {
        match self {
            Direction::AToB => Direction::BToA,
            Direction::BToA => Direction::AToB,
        }
    }
}
