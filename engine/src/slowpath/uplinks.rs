//! The WAN links: their interfaces, and the UDP sockets on each.
//!
//! Without links, the sockets are on no interface in particular and the host's routes say where datagrams leave. With links, each has sockets of its
//! own that are bound to its interface, so that datagrams leave by that link's default route, whatever the others' metrics are. Its source
//! address and gateway are the kernel's to follow; whether it is there at all is heard by rtnetlink.
//! What that means for peers and sessions is the core's ([`Core`](super::Core)).

use std::io;
use std::sync::Arc;

use patronus_io::udp::{UdpConfig, UdpSender, UdpSockets};
use patronus_io::{Port, PortCounters};
use patronus_mem::Outer;

use super::SlowPath;
use super::core::Sockets;

/// One WAN link, or the place of the sockets that are on none.
pub struct Uplink {
    /// Its interface; `None`: wherever the host's routes lead.
    interface: Option<String>,
    /// That the interface does not run has been said.
    told: bool,
}

/// The sockets of a link. There while the interface runs and the UDP port could be had.
pub(super) struct LinkSockets {
    sockets: UdpSockets,
    sender: UdpSender,
    /// Of each worker's port, by name.
    counters: Vec<(String, Arc<PortCounters>)>,
    /// In front of those names.
    prefix: String,
}

impl Sockets for LinkSockets {
    fn worker_port(&mut self, worker: usize) -> Box<dyn Port + Send> {
        let port = self.sockets.worker_port(worker);
        let name = format!("{}udp{worker}", self.prefix);
        self.counters.push((name, Arc::clone(port.counters())));
        Box::new(port)
    }

    fn send(&self, outer: &Outer, datagram: &[u8]) -> io::Result<()> {
        self.sender.send(outer, datagram)
    }
}

/// The places for the sockets on these interfaces; a single place for those on none if there are none.
pub fn uplinks(interfaces: &[String]) -> Vec<Uplink> {
    let place = |interface| Uplink {
        interface,
        told: false,
    };
    if interfaces.is_empty() {
        vec![place(None)]
    } else {
        interfaces.iter().cloned().map(Some).map(place).collect()
    }
}

impl SlowPath {
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
            if wanted == self.core.ifindex(at) {
                continue;
            }
            self.core.close_link(at);
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
            self.core.log().error(format_args!(
                "link {interface} does not run: there is no such interface, or it is down or has no carrier; it is used as soon as it does"
            ));
        }
    }

    /// Gives every worker its share of a link's new sockets. The old ones are closed once every worker has let go of them.
    pub(super) fn use_sockets(&mut self, at: usize, ifindex: u32, sockets: UdpSockets) {
        self.udp.port = sockets.port();
        let uplink = &mut self.uplinks[at];
        uplink.told = false;
        let sockets = LinkSockets {
            sender: sockets.sender(),
            sockets,
            counters: Vec::new(),
            prefix: uplink
                .interface
                .as_ref()
                .map_or(String::new(), |name| format!("{name}.")),
        };
        self.core.open_link(at, ifindex, sockets);
        if let Some(interface) = &uplink.interface {
            self.core.log().verbose(format_args!("link {interface} is there"));
        }
    }

    /// Marks what leaves from now on.
    pub(super) fn mark_links(&self, mark: u32) -> io::Result<()> {
        self.core
            .sockets()
            .try_for_each(|link| link.sockets.set_fwmark(mark))
    }

    /// The counters of every link's sockets, by name.
    pub(super) fn link_counters(&self) -> impl Iterator<Item = &(String, Arc<PortCounters>)> {
        self.core.sockets().flat_map(|link| &link.counters)
    }

    /// Whether sockets are bound to interfaces.
    pub(super) fn has_links(&self) -> bool {
        self.uplinks.iter().any(|uplink| uplink.interface.is_some())
    }
}
