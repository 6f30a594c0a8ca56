//! Who is on which Ethernet LAN: asked for every next hop that is an address, by the checks and by the compiler.
//!
//! A look-up for each length of prefix that there is, however many networks have it.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use crate::schema::Lan;
use crate::value::Network;

/// By place among the LANs.
#[derive(Default)]
pub(crate) struct OnLink {
    hosts: HashMap<IpAddr, usize>,
    networks: HashMap<Network, usize>,
    lengths: BTreeSet<u8>,
}

impl OnLink {
    pub fn of(lans: &[Lan]) -> OnLink {
        let mut all = OnLink::default();
        for (at, lan) in lans.iter().enumerate().filter(|(_, lan)| lan.is_ethernet()) {
            for neighbour in &lan.neighbours {
                all.hosts.entry(*neighbour.address.get_ref()).or_insert(at);
            }
            for network in &lan.networks {
                all.networks.entry(*network.get_ref()).or_insert(at);
                all.lengths.insert(network.get_ref().len);
            }
        }
        all
    }

    /// The first LAN that this address is on.
    pub fn lan(&self, address: IpAddr) -> Option<usize> {
        let networks = self.lengths.iter();
        let networks = networks.filter_map(|len| self.networks.get(&Network::around(address, *len)?));
        networks.chain(self.hosts.get(&address)).min().copied()
    }
}
