//! What the kernel says about interfaces, addresses, routes and neighbours (rtnetlink), and what it is asked for.
//!
//! All of this belongs to threads that may wait a little, the slow path above all: a [`LinkWatch`] follows one interface, [`Addresses`] knows
//! what is the host's own, [`Neighbours`] has next hops resolved by the kernel, a [`RouteQuery`] asks single questions, and
//! [`OwnSettings`] gives an interface addresses and routes. Each has
//! sockets of its own and is used by one thread at a time. Nothing here goes to a worker but what it says.
//!
//! Sources: RFC 3549; Linux `include/uapi/linux/{netlink,rtnetlink,if_link,if_addr,neighbour}.h`.

mod address;
mod change;
mod follow;
mod interface;
mod link;
mod message;
mod neighbour;
mod own;
mod route;

pub use address::{ADDRESSES_MAX, AddressEvent, Addresses, Interface, Prefix};
pub use change::{NeighbourChanges, NeighbourWatch};
pub use interface::{is_veth, receive_queues};
pub use link::{LinkEvent, LinkWatch, set_txqueuelen};
pub use neighbour::{NEIGHBOURS_MAX, Neighbour, NeighbourEvent, Neighbours};
pub use own::{HostPrefix, OwnSettings};
pub use route::{NextHop, RouteQuery};
