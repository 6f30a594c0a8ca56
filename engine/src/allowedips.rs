//! Allowed-ips: which peer an inner address belongs to.
//!
//! [`AllowedIpsConfig`] is the truth, owned by the slow-path thread and changed by the userspace API. After a change it is compiled
//! into an immutable [`AllowedIps`], which the workers consult for every packet: by destination to choose the peer, by
//! source to check that the peer may speak for it. A worker goes from one table to the next at once, so that a prefix
//! that moves between peers never belongs to both or to neither.

mod config;
mod guide;
mod table;

pub use patronus_abi::Prefix;

pub use config::AllowedIpsConfig;
pub use table::AllowedIps;
