//! The slow path: handshakes, timers, keys, configuration and everything else that is not a packet in a session.
//!
//! One thread, asleep unless something happens. It owns the protocol's slow half ([`Device`]), the configuration and the
//! sockets' life; workers get what they need by [`Command`] and tell what they see by [`Notice`]. No worker waits for it.
//!
//! What needs no system call is the [`core`], which the simulator and tests run as well. Here is the rest: the TUN and its state,
//! the kernel's interfaces and routes, UDP sockets, the UAPI socket, signals, and the thread's sleep.
//!
//! A turn of the loop: notices of workers, handshake messages, timers, the interface's state, requests over the UAPI,
//! then the commands that found a worker's queue full.

mod answers;
mod config;
mod controlled;
pub mod core;
mod gateways;
mod host;
mod lans;
mod ledger;
mod links;
mod neighbours;
mod observe;
mod opening;
mod paths;
mod query;
mod site;
mod uplinks;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use patronus_crypto::{Device, Duration, PeerId, Random, Refusal, Time};
use patronus_io::PortCounters;
use patronus_io::netlink::{Addresses, LinkEvent, LinkWatch, RouteQuery};
use patronus_io::nics::Nics;
use patronus_io::signal::{self, Asked};
use patronus_io::solicit::Solicitor;
use patronus_io::tun::TunDevice;
use patronus_io::udp::UdpConfig;
use patronus_mem::{Arena, FrameCache};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::net::SendFlags;

use self::controlled::Drills;
pub use self::core::{Core, CoreParts, Sockets, peer_numbers};
use self::gateways::Gateways;
use self::host::HostSide;
pub use self::lans::EthernetLan;
use self::ledger::Ledger;
pub use self::links::Workers;
pub use self::neighbours::Neighbourhood;
use self::observe::Observation;
pub use self::opening::Opening;
use self::paths::Shown;
use self::query::Pending;
use self::site::Routing;
use self::uplinks::LinkSockets;
pub use self::uplinks::{Uplink, uplinks};
use crate::channel::{Command, Notice, ToSlowPath};
use crate::clock::Clock;
use crate::control::Control;
use crate::keeper::Keeper;
use crate::log::Log;
use crate::plan::Builder;
use crate::reader::Reader;
use crate::site::Site;
use crate::stats::{Directory, Placed, WorkerStats};
use crate::uapi::{Reply, UapiServer};

/// How soon to try again when the UDP port is taken.
const BIND_RETRY: Duration = Duration::from_secs(1);
/// How long after a change of routes or addresses the peers' source addresses are looked at: changes come in crowds.
const SOURCE_GRACE: Duration = Duration::from_millis(200);
/// Source addresses looked at in a turn, and the pause to the next turn, so that routes that change all the time leave time for
/// the rest.
const SOURCES_PER_TURN: usize = 256;
const SOURCE_PAUSE: Duration = Duration::from_millis(8);
/// How soon to ask for routes again because somebody was heard where there are said to be none: thousands may be heard at once.
const ROUTES_PAUSE: Duration = Duration::from_secs(1);
/// How soon to look again at peers after one has left a link.
const LINK_LEFT: Duration = Duration::from_secs(1);
/// How soon to look again when a worker's command queue was full.
const BACKLOG_RETRY: Duration = Duration::from_millis(1);

/// Why the engine ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// The interface was deleted.
    InterfaceGone,
    /// The interface could not be read any more, or not waited for.
    TunFailed,
    /// Somebody removed the UAPI socket.
    SocketRemoved,
    /// A signal asked for it.
    Signal,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Ended::InterfaceGone => "the interface was deleted",
            Ended::TunFailed => "the interface failed",
            Ended::SocketRemoved => "the socket was removed",
            Ended::Signal => "a signal asked for it",
        })
    }
}

/// What the slow path is made from.
pub struct Parts {
    /// The protocol's slow half.
    pub device: Device,
    /// The TUN, for its name and MTU.
    pub tun: TunDevice,
    /// What happens to interfaces, routes and addresses.
    pub watch: LinkWatch,
    /// For asking where packets to a peer leave.
    pub routes: RouteQuery,
    /// The UAPI socket.
    pub uapi: UapiServer,
    /// Readable when the process was asked to end.
    pub signals: OwnedFd,
    /// The workers' notices and handshake messages.
    pub inbox: Arc<ToSlowPath>,
    /// The workers.
    pub workers: Workers,
    /// The workers' counters.
    pub stats: Vec<Placed<WorkerStats>>,
    /// Real or simulated time.
    pub clock: Box<dyn Clock>,
    /// Real or simulated randomness.
    pub random: Box<dyn Random + Send>,
    /// Where messages for people go.
    pub log: Log,
    /// Peers that there may be.
    pub max_peers: usize,
    /// The counters of the TUN's queues, by name.
    pub ports: Vec<(String, Arc<PortCounters>)>,
    /// How to make the UDP sockets; the port in it is the configured one.
    pub udp: UdpConfig,
    /// LANs and links, and who takes their interfaces.
    pub opening: Opening,
    /// `/dev/null`, opened while that was still possible.
    pub null: OwnedFd,
    /// Keeps what the workers' routers look at, if they have any.
    pub builder: Option<Builder>,
    /// The host's own addresses, where packets are routed or there are remotes.
    pub addresses: Option<Addresses>,
    /// Who is on the Ethernet LANs, if there are any.
    pub neighbourhood: Option<Neighbourhood>,
    /// Ask for the gateways of the links, by link, where there are several and that may be done.
    pub solicitors: Vec<Option<Solicitor>>,
    /// Reads the site's file again, if there is one.
    pub reader: Option<Reader>,
    /// Shows counters to other processes, under control.
    pub directory: Option<Directory>,
}

/// The slow path's state.
pub struct SlowPath {
    /// Everything that needs no system call.
    core: Core<LinkSockets>,
    tun: TunDevice,
    watch: LinkWatch,
    routes: RouteQuery,
    uapi: Option<UapiServer>,
    signals: OwnedFd,
    stats: Vec<Placed<WorkerStats>>,
    counters: Ledger,
    null: OwnedFd,
    udp: UdpConfig,
    /// Whether the interface is up, as its administrator set it.
    link_up: bool,
    /// The interface of each link of the core's.
    uplinks: Vec<Uplink>,
    check_sources_at: Option<Time>,
    /// The peer whose source address is looked at next, and how many there still are to look at. A change during a round makes it
    /// longer and does not begin it anew: under constant change the last peers would never have their turn.
    check_sources_from: usize,
    check_sources_left: usize,
    /// A peer has left a link. What was on its way there may have brought it back.
    check_sources_again: bool,
    /// Interfaces that have got an address since the last round.
    readdressed: BTreeSet<u32>,
    /// Before this nobody asks for routes again because of who was heard.
    routes_asked_at: Option<Time>,
    bind_again_at: Option<Time>,
    told_unbound: bool,
    told_unlocked: bool,
    told_clock: bool,
    ended: Option<Ended>,
    routing: Option<Routing>,
    addresses: Option<Addresses>,
    route_again_at: Option<Time>,
    neighbourhood: Option<Neighbourhood>,
    /// The Ethernet LANs, by place among the LAN ports, from the second on.
    lans: Vec<EthernetLan>,
    /// Takes their interfaces, and those of links by AF_XDP.
    keeper: Option<Keeper>,
    ask_again_at: Option<Time>,
    /// Those that DPDK drives.
    nics: Option<Nics>,
    nics_again_at: Option<Time>,
    /// When to poll the queues of theirs that no worker has.
    idle_again_at: Option<Time>,
    idle_frames: FrameCache,
    arena: &'static Arena,
    ways_again_at: Option<Time>,
    /// Watches the links' gateways, if there are several links.
    gateways: Option<Gateways>,
    gateways_again_at: Option<Time>,
    reader: Option<Reader>,
    /// Where control attaches, if this engine is under control.
    control: Option<Control>,
    /// Shows counters to other processes.
    directory: Option<Directory>,
    /// When to copy those that are counted elsewhere.
    copy_again_at: Option<Time>,
    /// Shows paths to other processes.
    shown_paths: Option<Shown>,
    /// What the host has at the TUN by us, if a site says so.
    host: Option<HostSide>,
    host_again_at: Option<Time>,
    /// The one that is in force.
    site: Option<Box<Site>>,
    /// The trace or the capture that is on.
    observation: Option<Observation>,
    /// How many there were; it wraps.
    observations: u16,
    /// Questions that workers are answering.
    queries: Vec<Pending>,
    /// How many were asked.
    asked: u64,
    /// Commands of control stay in their ring until workers have taken others.
    commands_wait: bool,
    drills: Drills,
}

impl SlowPath {
    /// A slow path that knows no peer.
    pub fn new(parts: Parts) -> Self {
        let gateways = match parts.solicitors.is_empty() {
            true => Ok(None),
            false => Gateways::new(parts.solicitors).map(Some),
        };
        let gateways = gateways.unwrap_or_else(|error| {
            let log = &parts.log;
            log.error(format_args!("the links' gateways are not watched: {error}"));
            None
        });
        let mut core = Core::new(CoreParts {
            device: parts.device,
            inbox: parts.inbox,
            workers: parts.workers,
            clock: parts.clock,
            random: parts.random,
            log: parts.log,
            max_peers: parts.max_peers,
            links: parts.opening.uplinks.len(),
        });
        if parts.builder.is_some() {
            core.keep_numbers();
        }
        let mut directory = parts.directory;
        let shown_paths = directory.as_mut().and_then(Directory::take_paths).map(Shown::new);
        let mut counters = Ledger::default();
        counters.add_all(parts.ports.into_iter());
        let mut slow_path = SlowPath {
            core,
            tun: parts.tun,
            watch: parts.watch,
            routes: parts.routes,
            uapi: Some(parts.uapi),
            signals: parts.signals,
            stats: parts.stats,
            counters,
            null: parts.null,
            udp: parts.udp,
            link_up: false,
            uplinks: parts.opening.uplinks,
            check_sources_at: None,
            check_sources_from: 0,
            check_sources_left: 0,
            check_sources_again: false,
            readdressed: BTreeSet::new(),
            routes_asked_at: None,
            bind_again_at: None,
            told_unbound: false,
            told_unlocked: false,
            told_clock: false,
            ended: None,
            routing: parts.builder.map(Routing::new),
            addresses: parts.addresses,
            route_again_at: None,
            neighbourhood: parts.neighbourhood,
            lans: parts.opening.lans,
            keeper: parts.opening.keeper,
            ask_again_at: None,
            nics: parts.opening.nics,
            nics_again_at: None,
            idle_again_at: None,
            idle_frames: FrameCache::new(parts.opening.arena),
            arena: parts.opening.arena,
            ways_again_at: None,
            gateways,
            gateways_again_at: None,
            reader: parts.reader,
            control: None,
            directory,
            copy_again_at: None,
            shown_paths,
            host: None,
            host_again_at: None,
            site: None,
            observation: None,
            observations: 0,
            queries: Vec::new(),
            asked: 0,
            commands_wait: false,
            drills: Drills::default(),
        };
        let there = slow_path.lans.iter().enumerate();
        let there: Vec<usize> = there.filter_map(|(at, lan)| lan.ifindex().map(|_| at)).collect();
        there.into_iter().for_each(|at| slow_path.begin_lan(at));
        slow_path.count_hosts();
        slow_path
    }

    /// `/dev/null`, for standard streams that are no longer wanted.
    pub fn null(&self) -> BorrowedFd<'_> {
        self.null.as_fd()
    }

    /// Runs until the interface or the socket is gone or a signal comes, then stops the workers.
    pub fn run(mut self) -> Ended {
        // Whether the interface is up is the first that `watch` tells. Asked beside it, the answers could come out of order.
        loop {
            self.take_notices();
            self.core.take_handshakes();
            self.core.run_timers();
            self.run_chores();
            self.watch_interface();
            self.serve_uapi();
            self.tend_observation();
            self.tend_queries();
            self.take_reloaded();
            self.serve_control();
            self.tell_news();
            self.copy_counters();
            self.show_paths();
            self.follow_addresses();
            self.tend_interfaces();
            self.tend_neighbours();
            self.tend_routing();
            self.tell_of_neighbours();
            self.find_ways();
            self.tend_gateways();
            self.tell_moves();
            let backlog = !self.core.flush() || self.commands_wait;
            if let Some(ended) = self.ended {
                self.core.stop_workers();
                return ended;
            }
            self.sleep(backlog);
        }
    }

    fn take_notices(&mut self) {
        while let Some(notice) = self.core.inbox().notices.pop() {
            match self.core.hear(notice) {
                Some(Notice::Wan(port)) => {
                    // A queue that it had is free again.
                    drop(port);
                    self.bind();
                    self.take_by_queue();
                }
                Some(Notice::Lan(port)) => drop(port),
                Some(Notice::Told(query)) => self.take_answer(*query),
                Some(Notice::LanGone(lan @ 1.., error)) => {
                    let why = error.map_or("it was deleted".to_owned(), |error| error.to_string());
                    self.lose_lan(lan - 1, &why);
                }
                Some(Notice::LanGone(_, None)) => self.end(Ended::InterfaceGone),
                Some(Notice::LanGone(_, Some(error)) | Notice::Failed(error)) => {
                    let log = self.core.log();
                    log.error(format_args!("the interface cannot be used any more: {error}"));
                    self.end(Ended::TunFailed);
                }
                _ => {}
            }
        }
    }

    fn watch_interface(&mut self) {
        let mut events = Vec::new();
        if let Err(error) = self.watch.read(&mut events) {
            self.core
                .log()
                .error(format_args!("no news of interfaces and routes: {error}"));
        }
        for event in events {
            match event {
                LinkEvent::Up => self.interface_up(),
                LinkEvent::Down => self.interface_down(),
                LinkEvent::Mtu(mtu) => {
                    self.core.tell_all(|| Command::Mtu(mtu as usize));
                    if let Some(routing) = &mut self.routing {
                        routing.builder.set_tunnel_mtu(mtu.min(u16::MAX.into()) as u16);
                    }
                }
                LinkEvent::Gone => self.end(Ended::InterfaceGone),
                // Into another network namespace, the usual way to give a container nothing but a tunnel. Nothing more is
                // heard of it, so it counts as up from here on; the sockets stay in this namespace.
                LinkEvent::Moved => self.interface_up(),
                LinkEvent::RouteOrAddressChanged => {
                    if self.has_links() {
                        self.bind();
                    }
                    let soon = self.core.mono().after(SOURCE_GRACE);
                    self.check_sources_at.get_or_insert(soon);
                    self.check_sources_left = self.core.numbers();
                }
            }
        }
    }

    /// What is due by the clock, beside the protocol's timers.
    fn run_chores(&mut self) {
        let now = self.core.mono();
        if self.core.take_ways_wanted() {
            self.check_sources_at = Some(now);
            self.check_sources_left = self.core.numbers();
        }
        if self.check_sources_at.is_some_and(|at| at <= now) {
            self.check_sources_at = self.check_sources().then(|| now.after(SOURCE_PAUSE));
            if self.check_sources_at.is_none() && std::mem::take(&mut self.check_sources_again) {
                self.check_sources_left = self.core.numbers();
                self.check_sources_at = Some(now.after(LINK_LEFT));
            }
        }
        if self.bind_again_at.is_some_and(|at| at <= now) {
            self.bind();
        }
        if self.core.has_heard_unled() && self.routes_asked_at.is_none_or(|at| at <= now) {
            self.routes_asked_at = Some(now.after(ROUTES_PAUSE));
            self.follow_routes();
        }
        self.tend_host(now);
        if !self.told_clock && self.core.device().counters().get(Refusal::ClockAhead) > 0 {
            self.told_clock = true;
            self.core.log().error(format_args!(
                "the wall clock is more than 30 days ahead of where it should be: handshakes sent now could make the key \
                 unusable once it is right again; if it is right now, set the interface down and up"
            ));
        }
        if !self.told_unlocked && !patronus_mem::secrets_locked() {
            self.told_unlocked = true;
            self.core.log().error(format_args!(
                "key memory could not be locked and may be swapped out: raise the limit with `ulimit -l` or LimitMEMLOCK="
            ));
        }
    }

    /// Looks at some peers' source addresses and forgets those that are gone, or with which the way to the peer no longer is the
    /// interface where the peer was heard (as Linux does before each send). Such a peer hears at once from where we send now; so does one that was
    /// told when there was no other address yet. True if there are more peers to look at.
    fn check_sources(&mut self) -> bool {
        let count = self.check_sources_left.min(SOURCES_PER_TURN);
        self.check_sources_left -= count;
        for _ in 0..count {
            let id = PeerId((self.check_sources_from % self.core.numbers()) as u32);
            self.check_sources_from = id.0 as usize + 1;
            let Some(endpoint) = self.core.peer(id).map(|peer| peer.endpoint) else {
                continue;
            };
            let Some(remote) = endpoint.remote() else { continue };
            if self.core.stands_by(id) {
                self.look_for_ways(id, remote.ip());
            } else if self.has_links() && self.leave_dead_end(id, endpoint.ifindex(), remote.ip()) {
                self.check_sources_again = true;
                continue;
            }
            let Some(local) = endpoint.local() else {
                if self.readdressed.contains(&endpoint.ifindex()) {
                    self.core.call(id);
                }
                continue;
            };
            let bound = self.has_links().then_some(endpoint.ifindex());
            let egress = self.routes.egress(local, remote.ip(), self.udp.fwmark, bound);
            if !egress.is_ok_and(|interface| interface == Some(endpoint.ifindex())) {
                self.core.forget_source(id);
                self.core.call(id);
            }
        }
        if self.check_sources_left == 0 {
            self.readdressed.clear();
        }
        self.check_sources_left > 0
    }

    fn interface_up(&mut self) {
        self.link_up = true;
        self.renew_host();
        self.bind();
    }

    /// Opens the UDP sockets that are wanted and not open, and closes those of links that are gone. Tried again later if the port is taken: by
    /// the sockets of a moment ago, which a worker has not given back yet, or by another process.
    fn bind(&mut self) {
        self.bind_again_at = None;
        if !self.link_up {
            return;
        }
        match self.follow_links() {
            Ok(()) => self.told_unbound = false,
            Err(error) => {
                if !std::mem::replace(&mut self.told_unbound, true) {
                    let port = self.udp.port;
                    self.core.log().error(format_args!(
                        "cannot listen on UDP port {port}: {error}; trying again, or choose another one with `wg set`"
                    ));
                }
                self.bind_again_at = Some(self.core.mono().after(BIND_RETRY));
            }
        }
        self.follow_routes();
        self.describe_links();
        self.begin_if_open();
    }

    fn begin_if_open(&mut self) {
        if self.core.begin_if_open() {
            let log = self.core.log();
            log.verbose(format_args!("interface up, UDP port {}", self.udp.port));
        }
    }

    fn interface_down(&mut self) {
        self.link_up = false;
        let ended = self.core.end();
        self.name_links();
        if ended {
            self.core.log().verbose(format_args!("interface down"));
        }
    }

    /// Sends an answer on a connection that the server has handed over.
    fn uapi_answer(&mut self, connection: OwnedFd, reply: Reply) {
        let now = self.core.mono();
        match &mut self.uapi {
            Some(uapi) => uapi.answer(connection, reply, now),
            // The server is at work, and this is a refusal, which is short.
            None => {
                let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
                let _ = rustix::net::send(&connection, reply.as_bytes(), flags);
            }
        }
    }

    fn serve_uapi(&mut self) {
        let now = self.core.mono();
        // Taken out for the call: the server asks this very object to carry the requests out.
        let Some(mut uapi) = self.uapi.take() else { return };
        uapi.service(self, now);
        if uapi.removed() {
            self.end(Ended::SocketRemoved);
        }
        self.uapi = Some(uapi);
    }

    fn end(&mut self, why: Ended) {
        self.ended.get_or_insert(why);
    }

    /// Until the next deadline, message, request or signal. With work at hand it only looks.
    fn sleep(&mut self, backlog: bool) {
        let timeout = self.timeout(backlog);
        self.core.inbox().waker.announce_sleep();
        let idle = self.core.inbox().is_empty();
        let busy = self.control.as_ref().is_some_and(Control::is_busy);
        let timeout = if idle && !busy {
            timeout
        } else {
            Some(Timespec::default())
        };
        let Some(uapi) = &self.uapi else { return };
        // Without a reader there is nothing to hear: the signals stand for it.
        let reader = self
            .reader
            .as_ref()
            .map_or(self.signals.as_fd(), |reader| reader.as_fd());
        let addresses = self.addresses_fd().unwrap_or(self.signals.as_fd());
        let neighbours = self.neighbours_fd().unwrap_or(self.signals.as_fd());
        let keeper = self.keeper.as_ref().and_then(Keeper::fd);
        let keeper = keeper.unwrap_or(self.signals.as_fd());
        let control = self.control.as_ref().map(Control::fd);
        let control = control.unwrap_or(self.signals.as_fd());
        let fixed = [
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::from_borrowed_fd(self.core.inbox().waker.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.watch.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(uapi.fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(reader, PollFlags::IN),
            PollFd::from_borrowed_fd(addresses, PollFlags::IN),
            PollFd::from_borrowed_fd(neighbours, PollFlags::IN),
            PollFd::from_borrowed_fd(keeper, PollFlags::IN),
            PollFd::from_borrowed_fd(control, PollFlags::IN),
        ];
        let ways = self
            .way_fds()
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        let gateways = self
            .gateway_fds()
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        let observation = self.observation_poll();
        let observation = observation.map(|(fd, wants)| PollFd::from_borrowed_fd(fd, wants));
        let from_gateways = fixed.len()..fixed.len() + self.gateway_fds().count();
        let mut fds: Vec<PollFd<'_>> = fixed
            .into_iter()
            .chain(gateways)
            .chain(ways)
            .chain(observation)
            .collect();
        // An interruption is as good as an event: the next turn looks at everything.
        let _ = poll(&mut fds, timeout.as_ref());
        let [signalled, called] = [0, 1].map(|i: usize| !fds[i].revents().is_empty());
        let gateways = fds[from_gateways].iter().any(|fd| !fd.revents().is_empty());
        self.core.inbox().waker.awake(called);
        if let Some(all) = &mut self.gateways {
            all.called |= gateways;
        }
        if signalled {
            self.take_signal();
        }
    }

    fn take_signal(&mut self) {
        match (signal::take(&self.signals), &mut self.reader) {
            (None, _) => {}
            (Some(Asked::Reload), Some(reader)) => reader.ask(),
            (Some(Asked::Reload), None) if self.control.is_some() => {
                let log = self.core.log();
                log.notice(format_args!("under control: the control process is what reloads"));
            }
            (Some(_), _) => self.end(Ended::Signal),
        }
    }

    /// How long there is nothing to do by the clock; `None`: for ever.
    fn timeout(&self, backlog: bool) -> Option<Timespec> {
        let now = self.core.mono();
        let retry = backlog.then(|| now.after(BACKLOG_RETRY));
        let uapi = self.uapi.as_ref().and_then(UapiServer::next_deadline);
        let deadlines = [
            self.core.next_deadline(),
            uapi,
            self.check_sources_at,
            self.bind_again_at,
            self.route_again_at,
            self.neighbours_deadline(),
            self.ways_again_at,
            self.gateways_again_at,
            self.ask_again_at,
            self.nics_again_at,
            self.idle_again_at,
            self.observation_deadline(),
            self.queries_deadline(),
            self.copy_again_at,
            self.paths_deadline(),
            self.host_again_at,
            retry,
        ];
        let next = deadlines.into_iter().flatten().min()?;
        Timespec::try_from(next.since(now)).ok()
    }
}
