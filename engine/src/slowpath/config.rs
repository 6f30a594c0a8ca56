//! The interface's configuration, as the UAPI shows and changes it.
//!
//! A request that reaches this point was understood to its last line. What can fail (a busy UDP port, too many peers)
//! is tried before anything is changed.

use patronus_crypto::PeerId;
use patronus_crypto::timers::Traffic;
use patronus_io::udp::{UdpConfig, UdpSockets};

use rustix::fd::OwnedFd;

use super::SlowPath;
use crate::uapi::{Errno, PeerView, Question, Reply, SetRequest, UapiDevice};

/// New sockets: the link's place, its interface, and they.
type Bound = Vec<(usize, u32, UdpSockets)>;

impl UapiDevice for SlowPath {
    fn get(&mut self, reply: &mut Reply) {
        let device = self.core.device();
        reply.interface(device.private_key(), self.udp.port, self.udp.fwmark);
        for (id, peer) in self.core.peers() {
            // With its lanes: what is sent and received in them is the peer's as well.
            let sessions: Vec<PeerId> = device.lanes(id).map(|(_, lane)| lane).chain([id]).collect();
            let sum = |of: fn(&Traffic) -> u64| sessions.iter().map(|id| of(device.traffic(*id))).sum();
            let handshakes = sessions.iter().filter_map(|id| device.last_handshake(*id));
            let view = PeerView {
                public_key: peer.key,
                preshared_key: device.psk(id),
                endpoint: peer.endpoint.remote(),
                last_handshake: handshakes.max_by_key(|at| (at.secs, at.nanos)),
                tx_bytes: sum(Traffic::sent_bytes),
                rx_bytes: sum(Traffic::received_bytes),
                persistent_keepalive: device.persistent_keepalive(id),
            };
            let allowed_ips = self.core.allowed_ips().of_peer(id);
            reply.peer(&view, allowed_ips.map(|p| (p.addr(), p.cidr())));
        }
    }

    fn tell(&mut self, question: Question, out: &mut Reply) {
        self.answer(question, out);
    }

    fn observe(&mut self, request: &str, connection: OwnedFd) {
        match request.starts_with("ask=") {
            true => self.begin_query(request, connection),
            false => self.begin_observation(request, connection),
        }
    }

    fn set(&mut self, request: SetRequest) -> Result<(), Errno> {
        // What control says would be undone, and nobody would know why.
        match self.control {
            Some(_) => Err(Errno::PERM),
            None => self.carry_out(request),
        }
    }
}

impl SlowPath {
    /// Applies a request, whole or not at all.
    pub(super) fn carry_out(&mut self, request: SetRequest) -> Result<(), Errno> {
        self.core.check_room(&request)?;
        let sockets = self.bind_if_wanted(&request)?;
        if let Some(mark) = request.fwmark {
            self.set_fwmark(mark)?;
        }
        match sockets {
            Some(bound) if !bound.is_empty() => self.reopen(bound),
            _ => self.udp.port = request.listen_port.unwrap_or(self.udp.port),
        }
        self.core.apply(request);
        // Other peers: they may be where a link leads.
        self.follow_routes();
        Ok(())
    }

    /// New sockets, if the interface is up and the request names another UDP port, or any while there are none.
    fn bind_if_wanted(&self, request: &SetRequest) -> Result<Option<Bound>, Errno> {
        match request.listen_port {
            Some(port) if self.link_up && (!self.core.is_open() || port != self.udp.port) => {
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
        self.name_links();
        self.core.forget_sources();
        Ok(())
    }
}
