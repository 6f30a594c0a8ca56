//! What the packet engine is told, as bytes: a whole site in one blob, and what passes between engine and control beside it.
//!
//! Whoever knows what a site is to be (the control process, over shared memory; a process that reads a file) makes a
//! [`Site`], [`encode`]s it and passes the bytes on. The engine believes nothing of them: [`decode`] looks at everything before anybody
//! acts on it, and what comes out names nothing that is not there. No secret is in a blob: private and pre-shared keys go beside it.
//!
//! * [`site`]: the values; [`device`]: those that concern DPDK
//! * [`blob`]: from values to bytes and back, and why bytes are refused
//! * [`channel`]: what the engine and the control process share: packets, rings, statistics; `path`: paths in it
//! * `record`: the layout, sizes asserted at compile time; [docs/abi.md](../../../docs/abi.md) is made from it
//!
//! Plain functions over slices: no threads, no system calls. What is shared between processes is a copy of bytes, never a structure
//! that both look at.
#![forbid(unsafe_code)]
#![no_std]

extern crate alloc;

pub mod blob;
pub mod channel;
pub mod device;
mod path;
mod prefix;
mod record;
pub mod site;

pub use blob::{BLOB_MAX, BlobError, content, decode, encode};
pub use prefix::Prefix;
pub use record::{BLOB, Described, DescribedField};
pub use site::Site;

/// The number of this layout. Another layout has another number; a test holds the bytes of a sample against it.
pub const ABI_VERSION: u32 = 7;
