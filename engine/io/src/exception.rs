//! The exception path: what a NIC brings that is the host's and not the engine's, and what the host sends by that NIC.
//!
//! A NIC that user space drives is gone for the kernel. A [`HostInterface`], which is a TAP device, stands for it there, so that ARP, neighbour discovery, DHCP,
//! routing protocols and SSH go on as before. Three parts work at it:
//!
//! * A [`Sieve`] says of each frame whether it is the engine's: by the same rules as the program of an AF_XDP port ([`Take`]). Whoever owns the
//!   configuration has its [`Rule`] and changes it; the sieve belongs to a worker.
//! * A [`SplitPort`] is the worker's port: the NIC's queue with the sieve behind it. What is not the engine's it punts, by a ring; what the host sends it finds in another
//!   one. It makes no system call but, for a burst with something for a sleeper, one that wakes him.
//! * An [`ExceptionPath`] is a thread for each NIC that reads and writes the host interface, one system call a packet, and sees to it that carrier and MTU agree.
//!
//! So the host's traffic costs a worker a few moves of pointers, [`INJECTED_MAX`] packets of the host's at most for each of the NIC's bursts, and frames as many as the
//! rings hold ([`RING`]) and no more: what the host has no time for is dropped as `punt_no_room`, and what the worker has no time for waits in the
//! host interface's queue, where the kernel drops what is too much.
//!
//! Sharing is sound because a packet has one owner, who passes it on by a ring with one producer and one consumer.

mod interface;
mod path;
mod sieve;
mod split;

pub use crate::xdp::{NAMES_MAX, Take};
pub use interface::HostInterface;
pub use path::{Exception, ExceptionPath, Nic, RunningPath};
pub use sieve::{PORTS_MAX, Rule, Sieve};
pub use split::{HostSide, SplitPort};

/// Packets that wait in each direction between a worker and the thread of an exception path.
pub const RING: usize = 256;

/// Packets of the host's that a worker sends for each burst that it asks its NIC for.
pub const INJECTED_MAX: usize = 16;
