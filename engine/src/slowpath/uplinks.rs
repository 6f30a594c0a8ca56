//! The WAN links: their interfaces, and the UDP sockets on each.
//!
//! Without links, the sockets are on no interface in particular and the host's routes say where datagrams leave. With links, each has sockets of its
//! own that are bound to its interface, so that datagrams leave by that link's default route, whatever the others' metrics are. Its source
//! address and gateway are the kernel's to follow; whether it is there at all is heard by rtnetlink.
//!
//! A session is bound to no link. It is where the peer was heard last; while it is nowhere, initiations go by each link in turn.

use std::io;
use std::sync::Arc;

use patronus_crypto::PeerId;
use patronus_io::udp::{UdpConfig, UdpSender, UdpSockets};
use patronus_io::{Port, PortCounters};
use patronus_mem::Outer;

use super::SlowPath;
use crate::channel::{Command, WanPort};

/// One WAN link, or the place of the sockets that are on none.
pub struct Uplink {
    /// Its interface; `None`: wherever the host's routes lead.
    interface: Option<String>,
    /// There while the interface runs and the UDP port could be had.
    open: Option<Open>,
    /// That the interface does not run has been said.
    told: bool,
}

struct Open {
    ifindex: u32,
    sockets: UdpSockets,
    sender: UdpSender,
    counters: Vec<(String, Arc<PortCounters>)>,
}

/// The places for the sockets on these interfaces; a single place for those on none if there are none.
pub fn uplinks(interfaces: &[String]) -> Vec<Uplink> {
    let place = |interface| Uplink {
        interface,
        open: None,
        told: false,
    };
    if interfaces.is_empty() {
        vec![place(None)]
    } else {
        interfaces.iter().cloned().map(Some).map(place).collect()
    }
}

impl Uplink {
    fn ifindex(&self) -> Option<u32> {
        self.open.as_ref().map(|open| open.ifindex)
    }

    /// Whether what goes to an endpoint of that interface leaves here.
    fn leads_to(&self, ifindex: u32) -> bool {
        self.ifindex()
            .is_some_and(|own| own == 0 || ifindex == 0 || own == ifindex)
    }
}

impl SlowPath {
    /// Whether there are sockets at all.
    pub(super) fn is_open(&self) -> bool {
        self.uplinks.iter().any(|uplink| uplink.open.is_some())
    }

    /// Where the sockets of a link have to be: on the interface that it has now. `None` if that does not run.
    fn wanted_ifindex(&self, at: usize) -> io::Result<Option<u32>> {
        match &self.uplinks[at].interface {
            None => Ok(Some(0)),
            Some(name) => self.routes.running(name),
        }
    }

    /// Sockets for every link that runs, on another UDP port or with another mark.
    pub(super) fn bind_every_link(&self, config: &UdpConfig) -> io::Result<Vec<(usize, u32, UdpSockets)>> {
        let (mut bound, mut config) = (Vec::new(), *config);
        for at in 0..self.uplinks.len() {
            if let Some(ifindex) = self.wanted_ifindex(at)? {
                config.ifindex = ifindex;
                let sockets = UdpSockets::bind(&config)?;
                // The first one may have chosen it.
                config.port = sockets.port();
                bound.push((at, ifindex, sockets));
            }
        }
        Ok(bound)
    }

    /// Opens the sockets of every link that runs and has none, and closes those of links that do not run any more. An error if some
    /// could not be opened: the UDP port is still held by the sockets of a moment ago, which a worker has not given back yet, or by another process.
    pub(super) fn follow_links(&mut self) -> io::Result<()> {
        let mut result = Ok(());
        for at in 0..self.uplinks.len() {
            let wanted = match self.wanted_ifindex(at) {
                Ok(wanted) => wanted,
                Err(error) => {
                    // Who cannot be asked has not said that it is gone.
                    result = Err(error);
                    continue;
                }
            };
            if wanted.is_none() {
                self.tell_missing(at);
            }
            if wanted == self.uplinks[at].ifindex() {
                continue;
            }
            self.close_link(at);
            let Some(ifindex) = wanted else { continue };
            match UdpSockets::bind(&UdpConfig { ifindex, ..self.udp }) {
                Ok(sockets) => self.use_sockets(at, ifindex, sockets),
                Err(error) => result = Err(error),
            }
        }
        result
    }

    /// Says once that a link is missing.
    fn tell_missing(&mut self, at: usize) {
        let uplink = &mut self.uplinks[at];
        if let Some(interface) = &uplink.interface
            && !std::mem::replace(&mut uplink.told, true)
        {
            self.log.error(format_args!(
                "link {interface} does not run: there is no such interface, or it is down or has no carrier; it is used as soon as it does"
            ));
        }
    }

    /// Gives every worker its share of a link's new sockets. The old ones are closed once every worker has let go of them.
    pub(super) fn use_sockets(&mut self, at: usize, ifindex: u32, sockets: UdpSockets) {
        self.udp.port = sockets.port();
        let uplink = &mut self.uplinks[at];
        let mut counters = Vec::new();
        self.workers.each(|i| {
            let port = sockets.worker_port(i);
            let name = match &uplink.interface {
                None => format!("udp{i}"),
                Some(interface) => format!("{interface}.udp{i}"),
            };
            counters.push((name, Arc::clone(port.counters())));
            let port = Box::new(port);
            Command::Wan(at, Some(WanPort { ifindex, port }))
        });
        uplink.told = false;
        uplink.open = Some(Open {
            ifindex,
            sender: sockets.sender(),
            sockets,
            counters,
        });
        if let Some(interface) = &uplink.interface {
            self.log.verbose(format_args!("link {interface} is there"));
        }
    }

    /// Closes the sockets of a link, if it has any. Peers that were heard there are sent to by another one from now on.
    pub(super) fn close_link(&mut self, at: usize) {
        let Some(open) = self.uplinks[at].open.take() else {
            return;
        };
        self.workers.tell_all(|| Command::Wan(at, None));
        if self.uplinks[at].interface.is_none() {
            return;
        }
        self.workers.tell_all(|| Command::LeaveLink(open.ifindex));
        let now = self.clock.now().wall.secs;
        for at in 0..self.peers.len() {
            let id = PeerId(at as u32);
            let Some(peer) = self.peer_mut(id).filter(|p| p.endpoint.ifindex() == open.ifindex) else {
                continue;
            };
            peer.endpoint.leave_link();
            // So that the peer hears at once where we are now, and not only when we have something to say.
            let last = self.device.last_handshake(id).map_or(0, |at| at.secs);
            if now.saturating_sub(last) < self.device.timeouts().reject_after_time.as_secs() {
                self.workers.tell_owner(id, Command::Keepalive(id));
            }
        }
    }

    /// Closes the sockets of every link.
    pub(super) fn close_links(&mut self) {
        (0..self.uplinks.len()).for_each(|at| self.close_link(at));
    }

    /// Marks what leaves from now on.
    pub(super) fn mark_links(&self, mark: u32) -> io::Result<()> {
        let mut open = self.uplinks.iter().filter_map(|uplink| uplink.open.as_ref());
        open.try_for_each(|open| open.sockets.set_fwmark(mark))
    }

    /// The counters of every link's sockets, by name.
    pub(super) fn link_counters(&self) -> impl Iterator<Item = &(String, Arc<PortCounters>)> {
        let open = self.uplinks.iter().filter_map(|uplink| uplink.open.as_ref());
        open.flat_map(|open| &open.counters)
    }

    /// Whether sockets are bound to interfaces.
    pub(super) fn has_links(&self) -> bool {
        self.uplinks.iter().any(|uplink| uplink.interface.is_some())
    }

    /// What sends to this endpoint.
    pub(super) fn sender(&self, endpoint: &Outer) -> Option<&UdpSender> {
        let leads_there = |uplink: &&Uplink| uplink.leads_to(endpoint.ifindex());
        let open = self.uplinks.iter().find(leads_there)?.open.as_ref()?;
        Some(&open.sender)
    }

    /// The next initiation goes the way of the last one: the peer has asked for a cookie, which is good for the address that it saw.
    pub(super) fn repeat_way(&mut self, id: PeerId) {
        if let Some(peer) = self.peer_mut(id) {
            peer.tries = peer.tries.saturating_sub(1);
        }
    }

    /// The way of the next initiation to a peer: where it was heard first, then by each link in turn until it answers.
    pub(super) fn next_way(&mut self, id: PeerId) -> Option<(Outer, UdpSender)> {
        let peer = self.peers.get_mut(id.0 as usize)?.as_mut()?;
        let tries = peer.tries;
        peer.tries += 1;
        let mut endpoint = peer.endpoint;
        let open: Vec<&Open> = self.uplinks.iter().filter_map(|u| u.open.as_ref()).collect();
        let is_own = |open: &&Open| open.ifindex == 0 || open.ifindex == endpoint.ifindex();
        let own = open.iter().position(is_own);
        let at = (own.unwrap_or(0) + tries).checked_rem(open.len())?;
        if own != Some(at) {
            endpoint.leave_link();
        }
        Some((endpoint, open[at].sender.clone()))
    }
}
