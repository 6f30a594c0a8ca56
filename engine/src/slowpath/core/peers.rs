//! Peers and allowed-ips, as the UAPI changes them, or whoever else configures an interface.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use patronus_crypto::{PeerId, PublicKey};
use patronus_mem::Outer;

use super::standby::Standing;
use super::{Core, Lane, Sockets};
use crate::allowedips::{AllowedIpsConfig, Prefix};
use crate::channel::Command;
use crate::uapi::{Errno, SetPeer, SetRequest};
use crate::wg::PeerSlot;

/// Allowed-ips that an interface may have.
pub const ALLOWED_IPS_MAX: usize = 1 << 20;

/// Numbers for `max_peers` peers. A removed peer's number is not free before its worker has let go of it; with twice as
/// many, all peers can be replaced in one request.
pub const fn peer_numbers(max_peers: usize) -> usize {
    2 * max_peers
}

/// What the slow path knows of a peer beside the protocol's state.
pub struct Peer {
    /// Who it is.
    pub key: PublicKey,
    /// Where it is, as its worker last said or the configuration has it.
    pub endpoint: Outer,
    /// Initiations since the last session: each goes by another link.
    pub tries: usize,
    /// It has one, as was told last.
    pub(super) has_session: bool,
    /// What it is, if it is a lane towards a remote and no peer.
    pub lane: Option<Box<Lane>>,
    /// Where it is was said by who configured it: it can be called.
    pub(super) is_called: bool,
    /// By which links it is reached, if it is a stock peer and there are several.
    pub(super) standing: Option<Box<Standing>>,
}

impl<S: Sockets> Core<S> {
    /// The peer of that number.
    pub fn peer(&self, id: PeerId) -> Option<&Peer> {
        self.peers.get(id.0 as usize)?.as_ref()
    }

    pub(super) fn peer_mut(&mut self, id: PeerId) -> Option<&mut Peer> {
        self.peers.get_mut(id.0 as usize)?.as_mut()
    }

    /// The peers that there are, without lanes.
    pub fn peers(&self) -> impl Iterator<Item = (PeerId, &Peer)> {
        let all = (0..).map(PeerId).zip(&self.peers);
        all.filter_map(|(id, peer)| Some((id, peer.as_ref()?)))
            .filter(|(_, peer)| peer.lane.is_none())
    }

    /// The peers that there are, lanes among them.
    pub fn all_peers(&self) -> impl Iterator<Item = &Peer> {
        self.peers.iter().flatten()
    }

    /// Numbers that peers have or had: all are below this.
    pub fn numbers(&self) -> usize {
        self.peers.len()
    }

    /// Who has which prefixes.
    pub fn allowed_ips(&self) -> &AllowedIpsConfig {
        &self.allowed_ips
    }

    /// Refuses a request for which there is no room: more peers, or more allowed-ips, than the limits, or more
    /// numbers than are free while the workers still know removed peers by theirs.
    pub fn check_room(&self, request: &SetRequest) -> Result<(), Errno> {
        let known = self.peers().count();
        let lanes = self.remotes.lanes();
        let (mut left, mut added, mut emptied) = (known, 0, HashSet::new());
        // What is there in the end, by key: a key may come several times.
        let mut there = HashMap::new();
        if request.replace_peers {
            left = 0;
            emptied.extend((0..self.peers.len() as u32).map(PeerId));
        }
        for change in &request.peers {
            let id = self.device.peer(&change.public_key);
            let was = there.get(&change.public_key).copied();
            let was = was.unwrap_or(id.is_some() && !request.replace_peers);
            let is = !change.remove && (was || !change.update_only);
            there.insert(change.public_key, is);
            match (was, is) {
                (false, true) => added += 1,
                (true, false) => left = left.saturating_sub(1),
                _ => {}
            }
            if change.remove || change.replace_allowed_ips {
                emptied.extend(id);
            }
        }
        let prefixes_left = self.allowed_ips.len()
            - emptied
                .iter()
                .map(|id| self.allowed_ips.of_peer(*id).count())
                .sum::<usize>();
        let lines = request.peers.iter().flat_map(|peer| &peer.allowed_ips);
        let prefixes = lines.filter(|ip| {
            let owner = Prefix::new(ip.addr, ip.cidr).and_then(|prefix| self.allowed_ips.owner(prefix));
            !ip.remove && owner.is_none_or(|owner| emptied.contains(&owner))
        });
        let fits = left + added <= self.max_peers
            && self.leaving + known + lanes + added <= peer_numbers(self.max_peers)
            && prefixes_left + prefixes.count() <= ALLOWED_IPS_MAX;
        if fits { Ok(()) } else { Err(Errno::NOSPC) }
    }

    /// Carries out what a request says about the private key and peers. There is room for it, that was [checked](Core::check_room).
    pub fn apply(&mut self, request: SetRequest) {
        if let Some(key) = request.private_key {
            self.set_private_key(key);
        }
        if request.replace_peers {
            for id in (0..self.peers.len() as u32).map(PeerId) {
                self.remove_peer(id);
            }
        }
        for change in request.peers {
            self.change_peer(change);
        }
        self.publish_routes();
    }

    fn change_peer(&mut self, change: SetPeer) {
        let known = self.device.peer(&change.public_key);
        if change.remove {
            if let Some(id) = known {
                self.remove_peer(id);
            }
            return;
        }
        let (id, new) = match known {
            Some(id) => (id, false),
            None if change.update_only => return,
            None => match self.add_peer(change.public_key) {
                Some(id) => (id, true),
                // Our own key: Linux ignores it without a word. There is room, that was checked.
                None => return,
            },
        };
        if let Some(psk) = change.preshared_key {
            self.device.set_psk(id, psk);
        }
        if let Some(addr) = change.endpoint {
            let mut endpoint = Outer::new(addr);
            // The same again is no reason to leave the link that it was heard on.
            if let Some(known) = self
                .peer(id)
                .filter(|known| known.endpoint.remote() == Some(addr))
            {
                endpoint.set_local(None, known.endpoint.ifindex());
            }
            self.move_endpoint(id, endpoint);
            if let Some(peer) = self.peer_mut(id) {
                peer.is_called = true;
            }
            self.ways_changed(id);
        }
        if change.replace_allowed_ips {
            self.routes_changed |= self.allowed_ips.remove_peer(id) > 0;
        }
        for ip in &change.allowed_ips {
            let Some(prefix) = Prefix::new(ip.addr, ip.cidr) else {
                continue;
            };
            self.routes_changed |= if ip.remove {
                self.allowed_ips.remove(prefix, id)
            } else {
                self.allowed_ips.insert(prefix, id) != Some(id)
            };
        }
        if new {
            self.introduce(id);
        }
        if let Some(secs) = change.persistent_keepalive {
            self.device.set_persistent_keepalive(id, secs);
        }
    }

    /// Gives the workers the routing table, if theirs is out of date.
    pub(super) fn publish_routes(&mut self) {
        if std::mem::take(&mut self.routes_changed) {
            let routes = Arc::new(self.allowed_ips.compile());
            self.workers.tell_all(|| Command::Routes(Arc::clone(&routes)));
            self.routes_published = true;
        }
    }

    fn add_peer(&mut self, key: PublicKey) -> Option<PeerId> {
        let id = self.device.add_peer(key).ok()?;
        self.put_peer(
            id,
            Peer {
                key,
                endpoint: Outer::NONE,
                tries: 0,
                has_session: false,
                lane: None,
                is_called: false,
                standing: None,
            },
        );
        Some(id)
    }

    pub(super) fn put_peer(&mut self, id: PeerId, peer: Peer) {
        let at = id.0 as usize;
        if self.peers.len() <= at {
            self.peers.resize_with(at + 1, || None);
        }
        self.peers[at] = Some(peer);
    }

    /// Gives a new peer to its worker.
    fn introduce(&mut self, id: PeerId) {
        let Some(peer) = self.peer(id) else { return };
        let slot = PeerSlot::new(id, Arc::clone(self.device.traffic(id)), peer.endpoint);
        self.workers.tell_owner(id, Command::AddPeer(Box::new(slot)));
        self.stand_by(id);
    }

    /// Removes a peer altogether, if it is there.
    fn remove_peer(&mut self, id: PeerId) {
        if self.peer(id).is_none_or(|peer| peer.lane.is_some()) {
            return;
        }
        self.close_lanes(id, false);
        self.device.remove_peer(id);
        self.forget_peer(id);
    }

    /// Forgets what the slow path and the worker know of a peer that the protocol has removed.
    pub(super) fn forget_peer(&mut self, id: PeerId) {
        self.note_session(id, false);
        self.stand_down(id);
        if let Some(gone) = self.peers.get_mut(id.0 as usize).and_then(Option::take) {
            self.routes_changed |= self.allowed_ips.remove_peer(id) > 0;
            self.leaving += 1;
            self.remotes.forget(id, gone.lane.is_some());
            self.classes.forget(id);
            self.workers.tell_owner(id, Command::RemovePeer(id));
        }
    }

    /// A peer's name in messages: the start of its key.
    pub(super) fn peer_name(&self, id: PeerId) -> PeerName {
        PeerName(self.peer(id).map(|p| p.key))
    }
}

/// How a peer is called in messages.
pub struct PeerName(Option<PublicKey>);

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(key) => write!(f, "peer {key:?}"),
            None => f.write_str("removed peer"),
        }
    }
}
