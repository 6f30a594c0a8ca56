//! Allowed-ips: which peer an inner address belongs to.
//!
//! [`AllowedIpsConfig`] is the truth, owned by the slow-path thread and changed by the userspace API. After a change it is compiled
//! into an immutable [`AllowedIps`], which the workers consult for every packet: by destination to choose the peer, by
//! source to check that the peer may speak for it. A worker goes from one table to the next at once, so that a prefix
//! that moves between peers never belongs to both or to neither.

mod config;
mod guide;
mod table;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use config::AllowedIpsConfig;
pub use table::AllowedIps;

/// A network: an address whose host bits are zero, and the length of its prefix. Ordered by family, then address,
/// then length, so that a prefix comes before all that it contains.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Prefix {
    addr: IpAddr,
    cidr: u8,
}

impl Prefix {
    /// The network of length `cidr` that `addr` is in; `None` if the length is more than the family has.
    pub fn new(addr: IpAddr, cidr: u8) -> Option<Self> {
        let addr = match addr {
            IpAddr::V4(ip) if cidr <= 32 => {
                let mask = u32::MAX.unbounded_shl(u32::from(32 - cidr));
                IpAddr::V4(Ipv4Addr::from_bits(ip.to_bits() & mask))
            }
            IpAddr::V6(ip) if cidr <= 128 => {
                let mask = u128::MAX.unbounded_shl(u32::from(128 - cidr));
                IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & mask))
            }
            _ => return None,
        };
        Some(Prefix { addr, cidr })
    }

    /// The first address of the network.
    pub fn addr(&self) -> IpAddr {
        self.addr
    }

    /// The length of the prefix in bits.
    pub fn cidr(&self) -> u8 {
        self.cidr
    }
}
