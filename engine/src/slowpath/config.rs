//! The interface's configuration, as the UAPI shows and changes it.
//!
//! A request that reaches this point was understood to its last line. What can fail (a busy UDP port, too many peers)
//! is tried before anything is changed.

use std::collections::{HashMap, HashSet};
use std::fmt::{self, Write};
use std::sync::Arc;

use patronus_crypto::{PeerId, PublicKey};
use patronus_io::udp::{UdpConfig, UdpSockets};
use patronus_mem::Outer;

use super::SlowPath;
use crate::allowedips::Prefix;
use crate::channel::Command;
use crate::uapi::{Errno, PeerView, Reply, SetPeer, SetRequest, UapiDevice};
use crate::wg::PeerSlot;

/// Allowed-ips that an interface may have.
pub const ALLOWED_IPS_MAX: usize = 1 << 20;

/// Numbers for `max_peers` peers. A removed peer's number is not free before its worker has let go of it; with twice as
/// many, all peers can be replaced in one request.
pub const fn peer_numbers(max_peers: usize) -> usize {
    2 * max_peers
}

/// New sockets: the link's place, its interface, and they.
type Bound = Vec<(usize, u32, UdpSockets)>;

/// What the slow path knows of a peer beside the protocol's state.
pub struct Peer {
    /// Who it is.
    pub key: PublicKey,
    /// Where it is, as its worker last said or the configuration has it.
    pub endpoint: Outer,
    /// Initiations since the last session: each goes by another link.
    pub tries: usize,
}

impl UapiDevice for SlowPath {
    fn get(&mut self, reply: &mut Reply) {
        reply.interface(self.device.private_key(), self.udp.port, self.udp.fwmark);
        for (i, peer) in self.peers.iter().enumerate() {
            let Some(peer) = peer else { continue };
            let id = PeerId(i as u32);
            let traffic = self.device.traffic(id);
            let view = PeerView {
                public_key: peer.key,
                preshared_key: self.device.psk(id),
                endpoint: peer.endpoint.remote(),
                last_handshake: self.device.last_handshake(id),
                tx_bytes: traffic.sent_bytes(),
                rx_bytes: traffic.received_bytes(),
                persistent_keepalive: self.device.persistent_keepalive(id),
            };
            reply.peer(&view, self.allowed_ips.of_peer(id).map(|p| (p.addr(), p.cidr())));
        }
    }

    fn stats(&mut self, out: &mut Reply) {
        for (i, stats) in self.stats.iter().enumerate() {
            stats.write(&format!("worker{i}."), out);
        }
        for (refusal, value) in self.device.counters().iter() {
            // Writing into memory cannot fail.
            let _ = writeln!(out, "handshake.{}={value}", refusal.name());
        }
        for (name, counters) in self.tun_counters.iter().chain(self.link_counters()) {
            for (counter, value) in counters.named() {
                let _ = writeln!(out, "{name}.{counter}={value}");
            }
        }
    }

    fn set(&mut self, request: SetRequest) -> Result<(), Errno> {
        self.check_room(&request)?;
        let sockets = self.bind_if_wanted(&request)?;
        if let Some(mark) = request.fwmark {
            self.set_fwmark(mark)?;
        }
        match sockets {
            Some(bound) if !bound.is_empty() => self.reopen(bound),
            _ => self.udp.port = request.listen_port.unwrap_or(self.udp.port),
        }
        if let Some(key) = request.private_key {
            self.device.set_private_key(key, &mut self.outputs);
            self.carry_out(None);
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
        Ok(())
    }
}

impl SlowPath {
    /// Refuses a request for which there is no room: more peers, or more allowed-ips, than the limits, or more
    /// numbers than are free while the workers still know removed peers by theirs.
    fn check_room(&self, request: &SetRequest) -> Result<(), Errno> {
        let known = self.known_peers();
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
            && self.leaving + known + added <= peer_numbers(self.max_peers)
            && prefixes_left + prefixes.count() <= ALLOWED_IPS_MAX;
        if fits { Ok(()) } else { Err(Errno::NOSPC) }
    }

    fn known_peers(&self) -> usize {
        self.peers.iter().flatten().count()
    }

    /// New sockets, if the interface is up and the request names another UDP port, or any while there are none.
    fn bind_if_wanted(&self, request: &SetRequest) -> Result<Option<Bound>, Errno> {
        match request.listen_port {
            Some(port) if self.link_up && (!self.is_open() || port != self.udp.port) => {
                let fwmark = request.fwmark.unwrap_or(self.udp.fwmark);
                let config = UdpConfig {
                    port,
                    fwmark,
                    ..self.udp
                };
                let bound = self.bind_every_link(&config);
                bound
                    .map(Some)
                    .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
            }
            _ => Ok(None),
        }
    }

    /// Goes over to other sockets.
    fn reopen(&mut self, bound: Bound) {
        let is_bound = |at: &usize| bound.iter().any(|(other, ..)| other == at);
        // Their interfaces do not run any more, and their UDP port is the old one.
        let left: Vec<usize> = (0..self.uplinks.len()).filter(|at| !is_bound(at)).collect();
        left.into_iter().for_each(|at| self.close_link(at));
        for (at, ifindex, sockets) in bound {
            self.use_sockets(at, ifindex, sockets);
        }
        self.begin_if_open();
    }

    fn set_fwmark(&mut self, mark: u32) -> Result<(), Errno> {
        self.mark_links(mark)
            .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
        self.udp.fwmark = mark;
        self.forget_sources();
        Ok(())
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
        }
    }

    fn add_peer(&mut self, key: PublicKey) -> Option<PeerId> {
        let id = self.device.add_peer(key).ok()?;
        let at = id.0 as usize;
        if self.peers.len() <= at {
            self.peers.resize_with(at + 1, || None);
        }
        self.peers[at] = Some(Peer {
            key,
            endpoint: Outer::NONE,
            tries: 0,
        });
        Some(id)
    }

    /// Gives a new peer to its worker.
    fn introduce(&mut self, id: PeerId) {
        let Some(peer) = self.peer(id) else { return };
        let slot = PeerSlot::new(id, Arc::clone(self.device.traffic(id)), peer.endpoint);
        self.workers.tell_owner(id, Command::AddPeer(Box::new(slot)));
    }

    /// Removes a peer altogether, if it is there.
    fn remove_peer(&mut self, id: PeerId) {
        self.device.remove_peer(id);
        self.forget_peer(id);
    }

    /// Forgets what the slow path and the worker know of a peer that the protocol has removed.
    pub(super) fn forget_peer(&mut self, id: PeerId) {
        if self.peers.get_mut(id.0 as usize).and_then(Option::take).is_some() {
            self.routes_changed |= self.allowed_ips.remove_peer(id) > 0;
            self.leaving += 1;
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
