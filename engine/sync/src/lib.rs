//! What the threads of the engine share, and the proofs that it is safe to share.
//!
//! | | written by | read by | who waits |
//! |---|---|---|---|
//! | [`ring()`] | one producer | one consumer | nobody: full and empty are answers |
//! | [`Published`] | one publisher | any number of readers | only the publisher, and only to free memory |
//! | [`SeqLock`] | one writer | anybody | nobody: a reader that is disturbed is told so |
//! | [`RingSender`], [`RingReceiver`] | one process | one other, which is not believed | nobody |
//! | [`Segment`] | this process | others, read-only | nobody |
//! | [`Bell`] | anybody | one sleeper | the sleeper, which is the point |
//!
//! Everything is built on the names in [`facade`], so that the same code runs on the processor and, with
//! `--cfg loom`, under loom, which tries the interleavings and reorderings that the C11 memory model allows:
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p patronus-sync --release --test loom
//! ```
//!
//! This package holds unsafe code so that its users need none. Who may call what is in the types: what only one thread may do takes
//! `&mut self`, and its handle can be sent but not copied. (A [`Bell`] holds nothing that could be damaged and trusts its users.)

mod bell;
mod facade;
#[cfg(not(loom))]
mod placed;
mod qsbr;
#[cfg(not(loom))]
mod region;
mod ring;
mod seqlock;
mod shared_ring;

pub use bell::Bell;
#[cfg(not(loom))]
pub use placed::{Placed, Segment};
pub use qsbr::{Domain, DomainId, Grace, Published, Publisher, Reader, publish};
#[cfg(not(loom))]
pub use region::{Region, RegionReader, create};
pub use ring::{Consumer, Drain, Producer, ring};
pub use seqlock::{SeqLock, SeqWriter};
pub use shared_ring::{Layout, RingReceiver, RingSender, Words, WordsMut};
