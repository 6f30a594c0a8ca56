//! WAN links over a NIC's queue, whoever drives the NIC: the engine's datagrams as whole frames, past the kernel's network stack.
//!
//! [`LinkPort`] is the port of a WAN link over a [`Queue`], in the place of [`UdpPort`](crate::udp::UdpPort): the stages see no difference. What goes by the queue needs a *way*,
//! which the slow path finds out ([`WayFinder`]) and the worker uses ([`Ways`]).

mod header;
mod port;
mod way;

pub use port::{AnyQueue, BorrowedQueue, LinkPort, Queue, QueuePlace};
pub use way::{Link, WayFinder, Ways, ways};
