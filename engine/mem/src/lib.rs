//! Memory of the data plane: packet frames that are never allocated after start-up, and locked memory for keys.
//!
//! Packets: an [`Arena`] is made once and lives as long as the process. Every thread that touches packets has a
//! [`FrameCache`] over it, takes [`PktBuf`]s from the cache and gives them back to it. A [`Burst`] is what ports and
//! stages hand to each other.
//!
//! Tables: a [`Table`] is an array on huge pages, for what is looked up at random.
//!
//! Keys: a [`Secret`] keeps its bytes in pages that are locked in memory, kept out of core dumps, wiped in a forked child, and
//! zeroed when the secret is dropped.
//!
//! This package holds unsafe code so that its users need none: whatever safe code does with these types, a frame has
//! exactly one owner and no slice reaches outside its frame.

mod arena;
mod burst;
mod lent;
mod map;
mod outer;
mod pktbuf;
mod processor;
mod secret;
mod table;

pub use arena::{Arena, ArenaConfig, FrameCache};
pub use burst::Burst;
pub use lent::{Annex, FrameRegion, Lent, RawPacket};
pub use outer::Outer;
pub use pktbuf::{PktBuf, Unfinished};
pub use processor::{cycles, prefetch, prefetch_write};
pub use secret::{Secret, lock_secrets_ahead, reserve_secrets, secrets_len, secrets_locked, wipe_stack};
pub use table::Table;

/// Packets in a [`Burst`] at most: what a port returns at once and a stage works on at once.
pub const BURST_MAX: usize = 64;

/// Bytes that a fresh frame keeps free before the packet, for headers that later stages put in front.
pub const HEADROOM: usize = 128;

/// Bytes that stay free behind [`SMALL_MAX`] (or [`JUMBO_MAX`]) bytes of packet: up to 15 of padding and the 16 of an
/// authentication tag, rounded up to a cache line.
pub const TAILROOM: usize = 64;

/// Bytes of a small frame, headroom and tailroom included.
pub const FRAME: usize = 2048;

/// Largest packet, in bytes, that a small frame takes with headroom and tailroom to spare.
pub const SMALL_MAX: usize = FRAME - HEADROOM - TAILROOM;

/// Largest packet, in bytes, that a jumbo frame takes with headroom and tailroom to spare: the largest IP packet.
pub const JUMBO_MAX: usize = 65535;
