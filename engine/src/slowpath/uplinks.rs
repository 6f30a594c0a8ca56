//! The WAN links: their interfaces, and the UDP sockets on each.
//!
//! Without links, the sockets are on no interface in particular and the host's routes say where datagrams leave. With links, each has sockets of its
//! own that are bound to its interface, so that datagrams leave by that link's default route, whatever the others' metrics are. Its source
//! address and gateway are the kernel's to follow; whether it is there at all is heard by rtnetlink.
//! What that means for peers and sessions is the core's ([`Core`](super::Core)).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use patronus_crypto::{Duration, PeerId, Time};
use patronus_io::netlink::Addresses;
use patronus_io::nics::{NicEvent, Nics};
use patronus_io::udp::{UdpConfig, UdpSender, UdpSockets};
use patronus_io::wan::{AnyQueue, BorrowedQueue, Link, LinkPort, QueuePlace, WayFinder, Ways, ways};
use patronus_io::xdp::{NAMES_MAX, Take};
use patronus_io::{Port, PortCounters};
use patronus_mem::{Arena, Burst, Outer};
use rustix::fd::BorrowedFd;

use super::SlowPath;
use super::core::Sockets;
use super::opening::Retry;
use crate::channel::Families;
use crate::clock;
use crate::keeper::{Place, Said, Taken};
use crate::lans::say_how;
use crate::log::Log;
use crate::wans::{Chooser, QueueLink};

/// Somebody on the internet: addresses of documentation (RFC 5737, RFC 3849), to which default routes lead.
const ANYBODY_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const ANYBODY_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// Between two polls of a NIC's queues that no worker has.
const IDLE_POLL: Duration = Duration::from_millis(1);

/// Peers that are asked for where there is no default route.
const PEERS_ASKED_FOR: usize = 64;

/// One WAN link, or the place of the sockets that are on none.
pub struct Uplink {
    /// Its interface; `None`: wherever the host's routes lead.
    interface: Option<String>,
    /// What makes its datagrams pass by the kernel's network stack, if they are to.
    taking: Option<Taking>,
    /// That the interface does not run has been said.
    told: bool,
    /// It has no route to any peer, as was said.
    is_dead_end: bool,
    /// It was there when somebody looked last.
    was_there: bool,
}

/// A link that is to have queues.
struct Taking {
    /// Who the keeper knows it as; none for a NIC, which has its queues for good.
    place: Option<Place>,
    /// Its queues; none while its interface cannot be taken. They may be on an interface that is not there any more.
    link: Option<QueueLink>,
    retry: Retry,
}

/// The sockets of a link. There while the interface runs and the UDP port could be had.
pub(super) struct LinkSockets {
    sockets: UdpSockets,
    sender: UdpSender,
    /// Of each worker's newest port, by name.
    counters: Vec<(String, Arc<PortCounters>)>,
    /// In front of those names.
    prefix: String,
    xdp: Option<ByQueue>,
}

/// What makes a link's ports AF_XDP ones.
struct ByQueue {
    link: Link,
    /// By worker, until its port has it.
    queues: Vec<Option<(BorrowedQueue<AnyQueue>, Ways)>>,
    /// Find the ways for the workers' ports.
    finders: Vec<WayFinder>,
}

impl ByQueue {
    /// For all of these queues or none: what the program takes reaches nobody where there is no port.
    fn new(link: Link, places: &[QueuePlace<AnyQueue>]) -> Option<ByQueue> {
        let mut by_queue = ByQueue {
            link,
            queues: Vec::new(),
            finders: Vec::new(),
        };
        for place in places {
            let (ways, finder) = ways(link).ok()?;
            by_queue.queues.push(Some((place.borrow()?, ways)));
            by_queue.finders.push(finder);
        }
        Some(by_queue)
    }
}

impl Sockets for LinkSockets {
    fn worker_port(&mut self, worker: usize) -> Box<dyn Port + Send> {
        let port = self.sockets.worker_port(worker);
        let name = format!("{}udp{worker}", self.prefix);
        self.counters.push((name, Arc::clone(port.counters())));
        let Some(xdp) = &mut self.xdp else {
            return Box::new(port);
        };
        let Some((queue, ways)) = xdp.queues[worker].take() else {
            return Box::new(port);
        };
        let port = LinkPort::new(queue, port, ways, xdp.link.ifindex);
        let [queue, _] = port.parts();
        let name = format!("{}queue{worker}", self.prefix);
        self.counters.push((name, Arc::clone(queue)));
        Box::new(port)
    }

    fn send(&self, outer: &Outer, datagram: &[u8]) -> io::Result<()> {
        self.sender.send(outer, datagram)
    }
}

/// The places for the sockets on these interfaces; a single place for those on none if there are none. `xdp` are those of them that are to
/// have AF_XDP.
pub fn uplinks(interfaces: &[String], xdp: &[String]) -> Vec<Uplink> {
    let place = |interface| Uplink {
        interface,
        taking: None,
        told: false,
        is_dead_end: false,
        was_there: false,
    };
    if interfaces.is_empty() {
        return vec![place(None)];
    }
    let mut places: Vec<Uplink> = interfaces.iter().cloned().map(Some).map(place).collect();
    let taken = places.iter_mut().filter(|uplink| {
        let interface = uplink.interface.as_ref();
        interface.is_some_and(|interface| xdp.contains(interface))
    });
    for (uplink, at) in taken.zip(0..) {
        uplink.taking = Some(Taking {
            place: Some(Place::Link(at)),
            link: None,
            retry: Retry::default(),
        });
    }
    places
}

impl Uplink {
    /// What it is, for people.
    pub(super) fn tell(&self, line: &mut dyn FnMut(&str, &str)) {
        if let Some(interface) = &self.interface {
            line("interface", interface);
        }
        let by_queue = self.taking.as_ref().is_some_and(|taking| taking.link.is_some());
        line("port", if by_queue { "af_xdp" } else { "udp" });
    }

    /// Its interface's name, if it is on one, and has come or gone since the last look.
    pub(super) fn look(&mut self, is_there: bool) -> Option<&str> {
        let before = std::mem::replace(&mut self.was_there, is_there);
        self.name().filter(|_| before != is_there)
    }

    /// What the keeper knows it by, if it is to have AF_XDP.
    pub(super) fn place(&self) -> Option<Place> {
        self.taking.as_ref().and_then(|taking| taking.place)
    }

    /// Its interface's name, if it is on one.
    pub(super) fn name(&self) -> Option<&str> {
        self.interface.as_deref()
    }

    /// Takes the queues of its NIC, if it is one.
    pub(super) fn sit(&mut self, nics: &mut Nics) {
        let Some(nic) = self.name().and_then(|name| nics.number(name)) else {
            return;
        };
        let queues = nics.take_queues(nic).into_iter();
        self.taking = Some(Taking {
            place: None,
            link: Some(QueueLink {
                ifindex: nics.ifindex(nic),
                chooser: Chooser::Nic(nic),
                queues: queues.map(QueuePlace::new).collect(),
                guard: None,
            }),
            retry: Retry::default(),
        });
    }

    /// Says what has become of its NIC's device. Whether it runs is heard of its interface.
    pub(super) fn say_nic(&self, event: &NicEvent, log: &Log) {
        let Some(name) = &self.interface else { return };
        match event {
            NicEvent::Opened => log.verbose(format_args!("link {name}: its device is there")),
            NicEvent::Missing(why) => log.error(format_args!(
                "link {name} does not run: {why}; it is used as soon as it does"
            )),
            NicEvent::Lost => log.error(format_args!(
                "link {name}: its device is gone; the rest goes on, and it is used again as soon as it is there"
            )),
            NicEvent::Refused(why) => log.error(format_args!("link {name}: {why}; it is tried again")),
        }
    }

    /// Its interface was taken.
    pub(super) fn take(&mut self, taken: Taken, arena: &'static Arena, log: &Log) {
        let Some(taking) = &mut self.taking else { return };
        // The one before is on an interface that is gone.
        taking.link = None;
        let mode = taken.mode();
        match taken.into_link(arena) {
            Ok(link) => {
                if let (Some(name), Some(mode)) = (&self.interface, mode) {
                    say_how(log, "link", name, mode, link.queues.len());
                }
                taking.link = Some(link);
                taking.retry.now();
            }
            Err(error) => self.say_refused(&format!("cannot use a queue: {error}"), log),
        }
    }

    /// Says that it works by its UDP socket, and why.
    pub(super) fn say_refused(&mut self, why: &str, log: &Log) {
        if let (Some(taking), Some(name)) = (&mut self.taking, &self.interface)
            && taking.retry.is_news(why)
        {
            log.error(format_args!(
                "link {name} works by its UDP socket, not by AF_XDP: {why}"
            ));
        }
    }

    fn xdp(&self) -> Option<&QueueLink> {
        self.taking.as_ref().and_then(|taking| taking.link.as_ref())
    }

    /// Where frames leave, if the interface is the one that the queues are on.
    fn link(&self, ifindex: u32, addresses: &Addresses, udp: &UdpConfig) -> Option<Link> {
        let xdp = self.xdp().filter(|xdp| xdp.ifindex == ifindex)?;
        let interface = addresses.interface(xdp.ifindex)?;
        Some(Link {
            ifindex,
            mac: interface.mac?,
            mtu: interface.mtu as usize,
            udp_port: udp.port,
            fwmark: udp.fwmark,
        })
    }

    /// The queues for new ports: all of them, or none while some worker still has one.
    fn by_queue(&self, link: Link) -> Option<ByQueue> {
        let xdp = self.xdp()?;
        let all = xdp.queues.iter().all(QueuePlace::is_full);
        all.then(|| ByQueue::new(link, &xdp.queues)).flatten()
    }
}

/// Says which datagrams of a link's queues are the engine's: those to this UDP port at these addresses, or none. More addresses than a NIC can be told go through the kernel.
fn choose(nics: &mut Option<Nics>, chooser: &Chooser, datagrams: Option<(u16, Vec<IpAddr>)>) {
    match (chooser, datagrams, nics) {
        (Chooser::Program(names), Some((port, own)), _) => names.set(port, own.into_iter()),
        (Chooser::Program(names), None, _) => names.clear(),
        (Chooser::Nic(nic), datagrams, Some(nics)) => {
            let take = datagrams.map(|(port, mut addresses)| {
                addresses.truncate(NAMES_MAX);
                Take::Datagrams {
                    addresses,
                    ports: vec![port],
                }
            });
            let _fits = nics.set(*nic, take);
        }
        (Chooser::Nic(_), _, None) => {}
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
            xdp: None,
        };
        self.core.open_link(at, ifindex, sockets);
        self.note_counters(at);
        let uplink = &self.uplinks[at];
        if let Some(interface) = &uplink.interface {
            self.core.log().verbose(format_args!("link {interface} is there"));
        }
        self.take_by_queue();
    }

    /// Gives the workers AF_XDP ports for the links whose queues are all free. Until then, and that is after every change of the UDP port,
    /// everything goes through the kernel.
    pub(super) fn take_by_queue(&mut self) {
        let Some(addresses) = &self.addresses else { return };
        for (at, uplink) in self.uplinks.iter().enumerate() {
            let Some(link) = self
                .core
                .ifindex(at)
                .and_then(|ifindex| uplink.link(ifindex, addresses, &self.udp))
            else {
                continue;
            };
            let Some(sockets) = self.core.sockets_mut(at).filter(|sockets| sockets.xdp.is_none()) else {
                continue;
            };
            sockets.xdp = uplink.by_queue(link);
            if sockets.xdp.is_some() {
                self.core.renew_ports(at);
                self.counters.add_all(
                    self.core
                        .sockets_mut(at)
                        .into_iter()
                        .flat_map(|s| s.counters.drain(..)),
                );
            }
        }
        self.name_links();
    }

    /// Tells the programs and the finders of ways what the links' addresses, MTU, mark and UDP port are.
    pub(super) fn name_links(&mut self) {
        let Some(addresses) = &self.addresses else { return };
        for (at, uplink) in self.uplinks.iter().enumerate() {
            let Some(xdp) = uplink.xdp() else { continue };
            let link = uplink.link(xdp.ifindex, addresses, &self.udp);
            let by_queue = self.core.sockets_mut(at).and_then(|sockets| sockets.xdp.as_mut());
            let (Some(by_queue), Some(link)) = (by_queue, link) else {
                choose(&mut self.nics, &xdp.chooser, None);
                continue;
            };
            if by_queue.link != link {
                by_queue.link = link;
                by_queue
                    .finders
                    .iter_mut()
                    .for_each(|finder| finder.set_link(link));
            }
            let own = addresses.on(xdp.ifindex).map(|prefix| prefix.address);
            choose(&mut self.nics, &xdp.chooser, Some((link.udp_port, own.collect())));
        }
    }

    /// Closes the sockets of a link, if it has any; its program leaves everything to the host.
    pub(super) fn close_link(&mut self, at: usize) {
        if let Some(xdp) = self.uplinks[at].xdp() {
            choose(&mut self.nics, &xdp.chooser, None);
        }
        self.core.close_link(at);
    }

    /// Polls the queues of NICs that no worker has, because their links are closed: the host still has its share of what arrives, DHCP before all.
    pub(super) fn poll_idle_queues(&mut self, now: Time) {
        let is_nic = |link: &&QueueLink| matches!(link.chooser, Chooser::Nic(_));
        let links = self.uplinks.iter().filter_map(Uplink::xdp).filter(is_nic);
        let (frames, mut are_idle) = (&mut self.idle_frames, false);
        for place in links.flat_map(|link| &link.queues) {
            let polled = place.if_full(|queue| {
                let mut burst = Burst::new();
                // What is wrong with a NIC is found where NICs are looked after.
                let _ = queue.rx_burst(frames, &mut burst);
                burst.clear_into(frames);
            });
            are_idle |= polled.is_some();
        }
        self.idle_again_at = are_idle.then(|| now.after(IDLE_POLL));
    }

    /// Answers the workers' questions for ways.
    pub(super) fn find_ways(&mut self) {
        let (now, instant) = (self.core.mono(), clock::instant());
        let mut next = None;
        for at in 0..self.uplinks.len() {
            let by_queue = self.core.sockets_mut(at).and_then(|sockets| sockets.xdp.as_mut());
            for finder in by_queue.into_iter().flat_map(|xdp| &mut xdp.finders) {
                let due = finder.serve(instant);
                next = due.into_iter().chain(next).min();
            }
        }
        self.ways_again_at = next.map(|due| now.after(due.saturating_duration_since(instant)));
    }

    /// Tells when a worker or the kernel has something to say about ways.
    pub(super) fn way_fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let by_queue = self.core.sockets().filter_map(|sockets| sockets.xdp.as_ref());
        by_queue.flat_map(|xdp| xdp.finders.iter().flat_map(WayFinder::wait_fds))
    }

    /// Marks what leaves from now on.
    pub(super) fn mark_links(&self, mark: u32) -> io::Result<()> {
        self.core
            .sockets()
            .try_for_each(|link| link.sockets.set_fwmark(mark))
    }

    /// Looks which links have routes to send by, and says once which have none for any peer that is known.
    pub(super) fn follow_routes(&mut self) {
        if !self.has_links() {
            return;
        }
        let heard = self.core.take_heard_unled();
        let known = self.core.all_peers().filter_map(|peer| peer.endpoint.remote());
        let known = heard.into_iter().chain(known.map(|remote| remote.ip()));
        let known: Vec<IpAddr> = known.take(PEERS_ASKED_FOR).collect();
        for at in 0..self.uplinks.len() {
            let Some(ifindex) = self.core.ifindex(at) else {
                continue;
            };
            let leads = |v6: bool, default: IpAddr| {
                let peers = known.iter().copied().filter(|ip| ip.is_ipv6() == v6);
                let mut all = std::iter::once(default).chain(peers);
                // Who cannot be asked has not said that there is none.
                all.any(|ip| self.routes.leads_to(ip, ifindex, self.udp.fwmark).unwrap_or(true))
            };
            let families = Families {
                v4: leads(false, ANYBODY_V4.into()),
                v6: leads(true, ANYBODY_V6.into()),
            };
            self.core.set_sends(at, families);
            let is_dead_end = families == Families::NONE && !known.is_empty();
            self.tell_dead_end(at, is_dead_end);
        }
    }

    fn tell_dead_end(&mut self, at: usize, is_dead_end: bool) {
        let uplink = &mut self.uplinks[at];
        let before = std::mem::replace(&mut uplink.is_dead_end, is_dead_end);
        if let (Some(name), false, true) = (&uplink.interface, before, is_dead_end) {
            self.core.log().error(format_args!(
                "link {name} has a carrier and no route to any peer: nothing is sent there by choice until it has one"
            ));
        }
    }

    /// If a link has no route to a peer that was heard there, and another one has, the peer goes over to that. True if so.
    pub(super) fn leave_dead_end(&mut self, id: PeerId, ifindex: u32, remote: IpAddr) -> bool {
        let leads = |ifindex| self.routes.leads_to(remote, ifindex, self.udp.fwmark);
        if ifindex == 0 || !matches!(leads(ifindex), Ok(false)) {
            return false;
        }
        let mut others = (0..self.uplinks.len()).filter_map(|at| self.core.ifindex(at));
        let another = others.any(|other| other != ifindex && matches!(leads(other), Ok(true)));
        if another {
            self.core.leave_link(id);
        }
        another
    }

    /// Keeps the counters of a link's new ports.
    fn note_counters(&mut self, at: usize) {
        let sockets = self.core.sockets_mut(at);
        let new = sockets.into_iter().flat_map(|sockets| sockets.counters.drain(..));
        self.counters.add_all(new);
    }

    /// Asks for the queues of links whose interface is another one than theirs, as often as that makes sense. When the next one is due.
    pub(super) fn ask_for_links(&mut self, now: Time) -> Option<Time> {
        let Some(keeper) = &self.keeper else { return None };
        let mut next = None;
        for (at, uplink) in self.uplinks.iter_mut().enumerate() {
            let Some(ifindex) = self.core.ifindex(at) else {
                continue;
            };
            let Some(taking) = &mut uplink.taking else {
                continue;
            };
            if taking.link.as_ref().is_some_and(|link| link.ifindex == ifindex) {
                continue;
            }
            let Some(place) = taking.place else { continue };
            if taking.retry.is_due(now) {
                keeper.ask(place);
            }
            next = taking.retry.next().into_iter().chain(next).min();
        }
        next
    }

    /// What has become of a link's interface.
    pub(super) fn hear_of_link(&mut self, place: Place, said: Said) {
        let (now, log) = (self.core.mono(), self.core.log());
        let found = self
            .uplinks
            .iter_mut()
            .find(|uplink| uplink.place() == Some(place));
        let Some(uplink) = found else { return };
        let is_missing = matches!(said, Said::Missing(_));
        match said {
            Said::Taken(_, taken) => uplink.take(taken, self.arena, log),
            Said::Refused(_, why) => uplink.say_refused(&why, log),
            _ => {}
        }
        if let Some(taking) = uplink.taking.as_mut().filter(|taking| taking.link.is_none()) {
            match is_missing {
                true => taking.retry.missing(now),
                false => taking.retry.refused(now),
            }
        }
        self.take_by_queue();
    }

    /// Whether sockets are bound to interfaces.
    pub(super) fn has_links(&self) -> bool {
        self.uplinks.iter().any(|uplink| uplink.interface.is_some())
    }
}
