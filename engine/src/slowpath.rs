//! The slow path: handshakes, timers, keys, configuration and everything else that is not a packet in a session.
//!
//! One thread, asleep unless something happens. It owns the protocol's slow half ([`Device`]), the configuration and the
//! sockets' life; workers get what they need by [`Command`] and tell what they see by [`Notice`]. No worker waits for it.
//!
//! A turn of the loop: notices of workers, handshake messages, timers, the interface's state, requests over the UAPI,
//! then the commands that found a worker's queue full.

mod config;
mod links;
mod uplinks;

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use patronus_crypto::messages::{self, Kind};
use patronus_crypto::{Device, Duration, Output, Outputs, PeerId, Random, Refusal, Time, To};
use patronus_io::PortCounters;
use patronus_io::netlink::{LinkEvent, LinkWatch, RouteQuery};
use patronus_io::tun::TunDevice;
use patronus_io::udp::{UdpConfig, UdpSender};
use patronus_mem::Outer;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};

use self::config::Peer;
pub use self::config::peer_numbers;
pub use self::links::Workers;
pub use self::uplinks::{Uplink, uplinks};
use crate::allowedips::AllowedIpsConfig;
use crate::channel::{Command, HandshakeMessage, Notice, ToSlowPath};
use crate::clock::Clock;
use crate::log::Log;
use crate::stats::WorkerStats;
use crate::uapi::UapiServer;

/// Outer DSCP of handshake messages: AF41, ECN not capable, as Linux sends them.
const HANDSHAKE_TOS: u8 = 0x88;
/// Handshake messages worked off in a turn, so that a flood of them leaves time for timers and requests.
const HANDSHAKES_PER_TURN: usize = 64;
/// How soon to try again when the UDP port is taken.
const BIND_RETRY: Duration = Duration::from_secs(1);
/// How long after a change of routes or addresses the peers' source addresses are looked at: changes come in crowds.
const SOURCE_GRACE: Duration = Duration::from_millis(200);
/// Source addresses looked at in a turn, and the pause to the next turn, so that routes that change all the time leave time for
/// the rest.
const SOURCES_PER_TURN: usize = 256;
const SOURCE_PAUSE: Duration = Duration::from_millis(8);
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
    pub stats: Vec<Arc<WorkerStats>>,
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
    /// The WAN links.
    pub uplinks: Vec<Uplink>,
    /// `/dev/null`, opened while that was still possible.
    pub null: OwnedFd,
}

/// The slow path's state.
pub struct SlowPath {
    device: Device,
    tun: TunDevice,
    watch: LinkWatch,
    routes: RouteQuery,
    uapi: Option<UapiServer>,
    signals: OwnedFd,
    inbox: Arc<ToSlowPath>,
    workers: Workers,
    stats: Vec<Arc<WorkerStats>>,
    clock: Box<dyn Clock>,
    random: Box<dyn Random + Send>,
    log: Log,
    tun_counters: Vec<(String, Arc<PortCounters>)>,
    null: OwnedFd,
    max_peers: usize,
    udp: UdpConfig,
    /// Whether the interface is up, as its administrator set it.
    link_up: bool,
    /// With sockets while the interface is up and they could be had.
    uplinks: Vec<Uplink>,
    peers: Vec<Option<Peer>>,
    allowed_ips: AllowedIpsConfig,
    /// The workers' routing table is older than `allowed_ips`.
    routes_changed: bool,
    /// Removed peers that their worker has not let go of yet.
    leaving: usize,
    check_sources_at: Option<Time>,
    /// The peer whose source address is looked at next, and how many there still are to look at. A change during a round makes it
    /// longer and does not begin it anew: under constant change the last peers would never have their turn.
    check_sources_from: usize,
    check_sources_left: usize,
    bind_again_at: Option<Time>,
    told_unbound: bool,
    told_unlocked: bool,
    told_clock: bool,
    outputs: Outputs,
    ended: Option<Ended>,
}

impl SlowPath {
    /// A slow path that knows no peer.
    pub fn new(parts: Parts) -> Self {
        SlowPath {
            device: parts.device,
            tun: parts.tun,
            watch: parts.watch,
            routes: parts.routes,
            uapi: Some(parts.uapi),
            signals: parts.signals,
            inbox: parts.inbox,
            workers: parts.workers,
            stats: parts.stats,
            clock: parts.clock,
            random: parts.random,
            log: parts.log,
            tun_counters: parts.ports,
            null: parts.null,
            max_peers: parts.max_peers,
            udp: parts.udp,
            link_up: false,
            check_sources_at: None,
            check_sources_from: 0,
            check_sources_left: 0,
            bind_again_at: None,
            told_unbound: false,
            told_unlocked: false,
            told_clock: false,
            leaving: 0,
            routes_changed: false,
            uplinks: parts.uplinks,
            peers: Vec::new(),
            allowed_ips: AllowedIpsConfig::new(),
            outputs: Outputs::default(),
            ended: None,
        }
    }

    /// `/dev/null`, for standard streams that are no longer wanted.
    pub fn null(&self) -> BorrowedFd<'_> {
        self.null.as_fd()
    }

    /// Runs until the interface or the socket is gone or a signal comes, then stops the workers.
    pub fn run(mut self) -> Ended {
        if self.tun.is_up().unwrap_or(false) {
            self.interface_up();
        }
        loop {
            self.take_notices();
            self.take_handshakes();
            self.run_timers();
            self.run_chores();
            self.watch_interface();
            self.serve_uapi();
            let backlog = !self.workers.flush();
            if let Some(ended) = self.ended {
                self.workers.stop(&self.inbox);
                return ended;
            }
            self.sleep(backlog);
        }
    }

    fn take_notices(&mut self) {
        while let Some(notice) = self.inbox.notices.pop() {
            match notice {
                Notice::WantHandshake(peer) => {
                    let now = self.clock.now();
                    self.device
                        .want_handshake(peer, &now, &mut *self.random, &mut self.outputs);
                    self.carry_out(None);
                }
                Notice::KeyConfirmed(peer) => {
                    let now = self.clock.now();
                    self.device.key_confirmed(peer, &now);
                }
                Notice::Watch(peer) => self.device.watch(peer),
                Notice::Endpoint(peer, endpoint) => {
                    if let Some(peer) = self.peer_mut(peer) {
                        peer.endpoint = endpoint;
                    }
                }
                Notice::Retired(keypair) => {
                    self.workers.forget_index(keypair.peer, keypair.local_index);
                    self.device.retire(keypair);
                }
                Notice::Slot(slot) => {
                    self.leaving -= 1;
                    self.device.release(slot.id);
                }
                Notice::Routes(routes) => drop(routes),
                Notice::Wan(port) => {
                    drop(port);
                    self.bind();
                }
                Notice::LanGone(_, None) => self.end(Ended::InterfaceGone),
                Notice::LanGone(_, Some(error)) | Notice::Failed(error) => {
                    self.log
                        .error(format_args!("the interface cannot be used any more: {error}"));
                    self.end(Ended::TunFailed);
                }
            }
        }
    }

    fn take_handshakes(&mut self) {
        for _ in 0..HANDSHAKES_PER_TURN {
            let queued = self.inbox.handshakes.len();
            let Some(message) = self.inbox.handshakes.pop() else {
                return;
            };
            if !self.is_open() {
                // It was on its way when the interface went down.
                continue;
            }
            let Some(from) = message.outer.remote() else {
                continue;
            };
            let now = self.clock.now();
            self.device.receive(
                &now,
                &from,
                &message.bytes,
                queued,
                &mut *self.random,
                &mut self.outputs,
            );
            self.carry_out(Some(&message));
        }
    }

    fn run_timers(&mut self) {
        let now = self.clock.now();
        if self.device.next_deadline().is_some_and(|at| at <= now.mono) {
            self.device.poll(&now, &mut *self.random, &mut self.outputs);
            self.carry_out(None);
        }
    }

    /// Does what the protocol asked for. `message` is the datagram that caused it, if one did.
    fn carry_out(&mut self, message: Option<&HandshakeMessage>) {
        let mut outputs = std::mem::take(&mut self.outputs);
        // A session must be with its worker before the message leaves that lets the other side use it.
        let mut sends = VecDeque::new();
        for output in outputs.drain() {
            match output {
                Output::Send { to, msg, handshake } => sends.push_back((to, msg, handshake)),
                other => self.obey(other, message),
            }
        }
        for (to, bytes, handshake) in sends {
            self.send(to, &bytes, if handshake { HANDSHAKE_TOS } else { 0 }, message);
        }
        self.outputs = outputs;
        self.publish_routes();
    }

    fn obey(&mut self, output: Output, message: Option<&HandshakeMessage>) {
        match output {
            Output::Send { .. } => unreachable!("sent by the caller"),
            Output::MoveEndpoint { peer } => {
                let Some(message) = message else { return };
                let mut endpoint = message.outer;
                endpoint.set_tos(0);
                self.move_endpoint(peer, endpoint);
            }
            Output::Challenged { peer } => self.repeat_way(peer),
            Output::Install { peer, keypair } => {
                if let Some(state) = self.peer_mut(peer) {
                    state.tries = 0;
                }
                self.log
                    .verbose(format_args!("{}: new session", self.peer_name(peer)));
                self.workers.add_index(peer, keypair.local_index);
                self.workers.tell_owner(peer, Command::Install(keypair));
            }
            Output::Keepalive { peer } => self.workers.tell_owner(peer, Command::Keepalive(peer)),
            Output::ClearSource { peer } => self.forget_source(peer),
            Output::DropStaged { peer } => {
                self.log.verbose(format_args!(
                    "{}: no answer, handshake given up",
                    self.peer_name(peer)
                ));
                self.workers.tell_owner(peer, Command::DropStaged(peer));
            }
            Output::EraseKeys { peer } => self.workers.tell_owner(peer, Command::EraseKeys(peer)),
            Output::ExpireSending { peer } => self.workers.tell_owner(peer, Command::ExpireSending(peer)),
            Output::PeerGone { peer } => self.forget_peer(peer),
        }
    }

    /// Sends a handshake message. What the network does not take is lost like any datagram; the retransmission covers it.
    fn send(&mut self, to: To, bytes: &[u8], tos: u8, message: Option<&HandshakeMessage>) {
        let way = match to {
            To::Peer(peer) if messages::kind(bytes) == Ok(Kind::Initiation) => self.next_way(peer),
            To::Peer(peer) => self.peer(peer).map(|p| p.endpoint).and_then(|e| self.way(e)),
            To::Source => message.and_then(|m| self.way(m.outer)),
        };
        let Some((mut outer, sender)) = way.filter(|(outer, _)| outer.remote().is_some()) else {
            return;
        };
        outer.set_tos(tos);
        if let Err(error) = sender.send(&outer, bytes) {
            self.log
                .verbose(format_args!("handshake message not sent: {error}"));
        }
    }

    fn way(&self, endpoint: Outer) -> Option<(Outer, UdpSender)> {
        Some((endpoint, self.sender(&endpoint)?.clone()))
    }

    fn move_endpoint(&mut self, peer: PeerId, endpoint: Outer) {
        if let Some(state) = self.peer_mut(peer).filter(|state| state.endpoint != endpoint) {
            state.endpoint = endpoint;
            self.workers.tell_owner(peer, Command::Endpoint(peer, endpoint));
        }
    }

    fn watch_interface(&mut self) {
        let mut events = Vec::new();
        if let Err(error) = self.watch.read(&mut events) {
            self.log
                .error(format_args!("no news of interfaces and routes: {error}"));
        }
        for event in events {
            match event {
                LinkEvent::Up => self.interface_up(),
                LinkEvent::Down => self.interface_down(),
                LinkEvent::Mtu(mtu) => self.workers.tell_all(|| Command::Mtu(mtu as usize)),
                LinkEvent::Gone => self.end(Ended::InterfaceGone),
                // Into another network namespace, the usual way to give a container nothing but a tunnel. Nothing more is
                // heard of it, so it counts as up from here on; the sockets stay in this namespace.
                LinkEvent::Moved => self.interface_up(),
                LinkEvent::RouteOrAddressChanged => {
                    if self.has_links() {
                        self.bind();
                    }
                    let soon = self.clock.mono().after(SOURCE_GRACE);
                    self.check_sources_at.get_or_insert(soon);
                    self.check_sources_left = self.peers.len();
                }
            }
        }
    }

    /// What is due by the clock, beside the protocol's timers.
    fn run_chores(&mut self) {
        let now = self.clock.mono();
        if self.check_sources_at.is_some_and(|at| at <= now) {
            self.check_sources_at = self.check_sources().then(|| now.after(SOURCE_PAUSE));
        }
        if self.bind_again_at.is_some_and(|at| at <= now) {
            self.bind();
        }
        if !self.told_clock && self.device.counters().get(Refusal::ClockAhead) > 0 {
            self.told_clock = true;
            self.log.error(format_args!(
                "the wall clock is more than 30 days ahead of where it should be: handshakes sent now could make the key \
                 unusable once it is right again; if it is right now, set the interface down and up"
            ));
        }
        if !self.told_unlocked && !patronus_mem::secrets_locked() {
            self.told_unlocked = true;
            self.log.error(format_args!(
                "key memory could not be locked and may be swapped out: raise the limit with `ulimit -l` or LimitMEMLOCK="
            ));
        }
    }

    /// Looks at some peers' source addresses and forgets those that are gone, or with which the way to the peer no longer is the
    /// interface where the peer was heard (as Linux does before each send). True if there are more peers to look at.
    fn check_sources(&mut self) -> bool {
        let count = self.check_sources_left.min(SOURCES_PER_TURN);
        self.check_sources_left -= count;
        for _ in 0..count {
            let id = PeerId((self.check_sources_from % self.peers.len()) as u32);
            self.check_sources_from = id.0 as usize + 1;
            let Some(endpoint) = self.peer(id).map(|peer| peer.endpoint) else {
                continue;
            };
            let (Some(remote), Some(local)) = (endpoint.remote(), endpoint.local()) else {
                continue;
            };
            let bound = self.has_links().then_some(endpoint.ifindex());
            let egress = self.routes.egress(local, remote.ip(), self.udp.fwmark, bound);
            if !egress.is_ok_and(|interface| interface == Some(endpoint.ifindex())) {
                self.forget_source(id);
            }
        }
        self.check_sources_left > 0
    }

    /// Forgets from which of our addresses a peer was answered; the kernel chooses anew.
    fn forget_source(&mut self, id: PeerId) {
        if let Some(peer) = self.peer_mut(id) {
            peer.endpoint.forget_source();
            self.workers.tell_owner(id, Command::ClearSource(Some(id)));
        }
    }

    /// Forgets from which of our addresses each peer was answered: the route may be another one now.
    fn forget_sources(&mut self) {
        for peer in self.peers.iter_mut().flatten() {
            peer.endpoint.forget_source();
        }
        self.workers.tell_all(|| Command::ClearSource(None));
    }

    fn interface_up(&mut self) {
        self.link_up = true;
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
                    self.log.error(format_args!(
                        "cannot listen on UDP port {port}: {error}; trying again, or choose another one with `wg set`"
                    ));
                }
                self.bind_again_at = Some(self.clock.mono().after(BIND_RETRY));
            }
        }
        self.begin_if_open();
    }

    /// Begins to work when the first sockets are there. Links that come and go afterwards end nothing: sessions wait for the next one.
    fn begin_if_open(&mut self) {
        if self.device.is_up() || !self.is_open() {
            return;
        }
        // Whoever sets the interface up has looked at the clock, or it is boot time and nobody can.
        self.device.trust_clock(&self.clock.now());
        self.device.set_up(true, &mut self.outputs);
        self.carry_out(None);
        self.log
            .verbose(format_args!("interface up, UDP port {}", self.udp.port));
    }

    fn interface_down(&mut self) {
        self.link_up = false;
        self.close_links();
        if self.device.is_up() {
            self.device.set_up(false, &mut self.outputs);
            self.carry_out(None);
            self.log.verbose(format_args!("interface down"));
        }
    }

    fn serve_uapi(&mut self) {
        let now = self.clock.mono();
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
        self.inbox.waker.announce_sleep();
        let idle = self.inbox.notices.is_empty() && self.inbox.handshakes.is_empty();
        let timeout = if idle { timeout } else { Some(Timespec::default()) };
        let Some(uapi) = &self.uapi else { return };
        let mut fds = [
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::from_borrowed_fd(self.inbox.waker.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.watch.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(uapi.fd(), PollFlags::IN),
        ];
        // An interruption is as good as an event: the next turn looks at everything.
        let _ = poll(&mut fds, timeout.as_ref());
        let [signalled, called] = [0, 1].map(|i: usize| !fds[i].revents().is_empty());
        self.inbox.waker.awake(called);
        if signalled {
            self.end(Ended::Signal);
        }
    }

    /// How long there is nothing to do by the clock; `None`: for ever.
    fn timeout(&self, backlog: bool) -> Option<Timespec> {
        let now = self.clock.mono();
        let retry = backlog.then(|| now.after(BACKLOG_RETRY));
        let uapi = self.uapi.as_ref().and_then(UapiServer::next_deadline);
        let deadlines = [
            self.device.next_deadline(),
            uapi,
            self.check_sources_at,
            self.bind_again_at,
            retry,
        ];
        let next = deadlines.into_iter().flatten().min()?;
        Timespec::try_from(next.since(now)).ok()
    }

    fn peer(&self, id: PeerId) -> Option<&Peer> {
        self.peers.get(id.0 as usize)?.as_ref()
    }

    fn peer_mut(&mut self, id: PeerId) -> Option<&mut Peer> {
        self.peers.get_mut(id.0 as usize)?.as_mut()
    }
}
