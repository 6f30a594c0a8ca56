//! The authoritative map from prefixes to peers, on the slow-path thread.

use std::collections::{BTreeMap, BTreeSet};

use patronus_crypto::PeerId;

use super::{AllowedIps, Prefix};

/// Who owns which prefix. A prefix has one owner at most; everything costs the logarithm of the number of prefixes, and a
/// peer's removal that times its own.
#[derive(Default, Clone, Debug)]
pub struct AllowedIpsConfig {
    owners: BTreeMap<Prefix, PeerId>,
    of_peer: BTreeSet<(PeerId, Prefix)>,
}

impl AllowedIpsConfig {
    /// Nobody owns anything.
    pub fn new() -> Self {
        AllowedIpsConfig::default()
    }

    /// Number of prefixes of all peers.
    pub fn len(&self) -> usize {
        self.owners.len()
    }

    /// Whether nobody owns anything.
    pub fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }

    /// Gives `prefix` to `peer` and returns whose it was. In between it belongs to no third state: it is either the old
    /// owner's or the new one's.
    pub fn insert(&mut self, prefix: Prefix, peer: PeerId) -> Option<PeerId> {
        let old = self.owners.insert(prefix, peer);
        if let Some(old) = old {
            self.of_peer.remove(&(old, prefix));
        }
        self.of_peer.insert((peer, prefix));
        old
    }

    /// Takes `prefix` from `peer`; false, and nothing changed, if it is not this peer's.
    pub fn remove(&mut self, prefix: Prefix, peer: PeerId) -> bool {
        let owned = self.of_peer.remove(&(peer, prefix));
        if owned {
            self.owners.remove(&prefix);
        }
        owned
    }

    /// Takes everything from `peer` and returns how many prefixes that were.
    pub fn remove_peer(&mut self, peer: PeerId) -> usize {
        let prefixes: Vec<Prefix> = self.of_peer(peer).collect();
        for prefix in &prefixes {
            self.remove(*prefix, peer);
        }
        prefixes.len()
    }

    /// Whose exactly this prefix is, not looking at shorter ones.
    pub fn owner(&self, prefix: Prefix) -> Option<PeerId> {
        self.owners.get(&prefix).copied()
    }

    /// The prefixes of `peer` in order: IPv4 first, then by address, then by length.
    pub fn of_peer(&self, peer: PeerId) -> impl Iterator<Item = Prefix> + '_ {
        self.of_peer
            .range((peer, Prefix::FIRST)..)
            .take_while(move |(owner, _)| *owner == peer)
            .map(|(_, prefix)| *prefix)
    }

    /// Every prefix and its owner, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Prefix, PeerId)> + '_ {
        self.owners.iter().map(|(prefix, peer)| (*prefix, *peer))
    }

    /// The table for the workers.
    pub fn compile(&self) -> AllowedIps {
        AllowedIps::build(
            self.iter()
                .map(|(prefix, peer)| (prefix.addr(), prefix.cidr(), peer)),
        )
    }
}
