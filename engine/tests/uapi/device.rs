//! A device that keeps its configuration in memory and moves no packet.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;

use patronus_crypto::{PeerId, PublicKey, WallClock};
use patronus_engine::allowedips::{AllowedIpsConfig, Prefix};
use patronus_engine::uapi::{Errno, PeerView, Question, Reply, SetPeer, SetRequest, UapiDevice};
use patronus_mem::Secret;

#[derive(Default)]
pub struct Peer {
    pub id: Option<PeerId>,
    pub preshared_key: Option<Secret<32>>,
    pub endpoint: Option<SocketAddr>,
    pub persistent_keepalive: u16,
    pub last_handshake: Option<WallClock>,
    pub tx_bytes: u64,
    pub rx_bytes: u64,
}

#[derive(Default)]
pub struct MemoryDevice {
    pub private_key: Option<Secret<32>>,
    pub listen_port: u16,
    pub fwmark: u32,
    pub peers: BTreeMap<PublicKey, Peer>,
    pub allowed_ips: AllowedIpsConfig,
    /// Peers ever added: the next one's number.
    pub added: u32,
    /// Requests received.
    pub sets: usize,
    /// The answer to every request, which is then not applied.
    pub refuse: Option<Errno>,
}

impl MemoryDevice {
    /// The whole state as the text that `wg` would get.
    pub fn text(&mut self) -> String {
        let mut reply = Reply::new();
        self.get(&mut reply);
        String::from_utf8(reply.as_bytes().to_vec()).expect("text")
    }

    fn set_peer(&mut self, change: SetPeer) {
        if change.remove {
            if let Some(id) = self.peers.remove(&change.public_key).and_then(|peer| peer.id) {
                self.allowed_ips.remove_peer(id);
            }
            return;
        }
        if change.update_only && !self.peers.contains_key(&change.public_key) {
            return;
        }
        let peer = self.peers.entry(change.public_key).or_default();
        let id = *peer.id.get_or_insert_with(|| {
            self.added += 1;
            PeerId(self.added - 1)
        });
        if let Some(key) = change.preshared_key {
            peer.preshared_key = key;
        }
        peer.endpoint = change.endpoint.or(peer.endpoint);
        peer.persistent_keepalive = change.persistent_keepalive.unwrap_or(peer.persistent_keepalive);
        if change.replace_allowed_ips {
            self.allowed_ips.remove_peer(id);
        }
        for change in change.allowed_ips {
            let prefix = Prefix::new(change.addr, change.cidr).expect("the parser has checked it");
            if change.remove {
                self.allowed_ips.remove(prefix, id);
            } else {
                self.allowed_ips.insert(prefix, id);
            }
        }
    }
}

impl UapiDevice for MemoryDevice {
    fn get(&mut self, out: &mut Reply) {
        out.interface(self.private_key.as_ref(), self.listen_port, self.fwmark);
        for (public_key, peer) in &self.peers {
            let view = PeerView {
                public_key: *public_key,
                preshared_key: peer.preshared_key.as_ref(),
                endpoint: peer.endpoint,
                last_handshake: peer.last_handshake,
                tx_bytes: peer.tx_bytes,
                rx_bytes: peer.rx_bytes,
                persistent_keepalive: peer.persistent_keepalive,
            };
            let prefixes = peer.id.into_iter().flat_map(|id| self.allowed_ips.of_peer(id));
            out.peer(&view, prefixes.map(|prefix| (prefix.addr(), prefix.cidr())));
        }
    }

    fn tell(&mut self, question: Question, out: &mut Reply) {
        let text = match question {
            Question::Stats => "counted=42\n",
            _ => "other=1\n",
        };
        out.write_str(text).expect("memory");
    }

    fn set(&mut self, request: SetRequest) -> Result<(), Errno> {
        self.sets += 1;
        if let Some(errno) = self.refuse {
            return Err(errno);
        }
        if let Some(key) = request.private_key {
            self.private_key = key;
        }
        self.listen_port = request.listen_port.unwrap_or(self.listen_port);
        self.fwmark = request.fwmark.unwrap_or(self.fwmark);
        if request.replace_peers {
            self.peers.clear();
            self.allowed_ips = AllowedIpsConfig::new();
        }
        for change in request.peers {
            self.set_peer(change);
        }
        Ok(())
    }
}
