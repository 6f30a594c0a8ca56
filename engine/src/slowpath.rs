//! The slow path: handshakes, timers, keys, configuration and everything else that is not a packet in a session.
//!
//! One thread, asleep unless something happens. It owns the protocol's slow half ([`Device`]), the configuration and the
//! sockets' life; workers get what they need by [`Command`] and tell what they see by [`Notice`]. No worker waits for it.
//!
//! A turn of the loop: notices of workers, handshake messages, timers, the interface's state, requests over the UAPI,
//! then the commands that found a worker's queue full.

mod config;
mod links;

use std::collections::VecDeque;
use std::sync::Arc;

use patronus_crypto::{Device, Output, Outputs, PeerId, Random, To};
use patronus_io::netlink::{LinkEvent, LinkWatch};
use patronus_io::tun::TunDevice;
use patronus_io::udp::{UdpConfig, UdpSender, UdpSockets};
use patronus_io::{Port, PortCounters};
use patronus_mem::Outer;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};

use self::config::Peer;
pub use self::links::Workers;
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
/// How soon to look again when a worker's command queue was full.
const BACKLOG_RETRY: std::time::Duration = std::time::Duration::from_millis(1);

/// Why the engine ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// The interface was deleted.
    InterfaceGone,
    /// Somebody removed the UAPI socket.
    SocketRemoved,
    /// A signal asked for it.
    Signal,
}

/// What the slow path is made from.
pub struct Parts {
    /// The protocol's slow half.
    pub device: Device,
    /// The TUN, for its name and MTU.
    pub tun: TunDevice,
    /// What happens to interfaces, routes and addresses.
    pub watch: LinkWatch,
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
    /// `/dev/null`, opened while that was still possible.
    pub null: OwnedFd,
}

/// The slow path's state.
pub struct SlowPath {
    device: Device,
    tun: TunDevice,
    watch: LinkWatch,
    uapi: Option<UapiServer>,
    signals: OwnedFd,
    inbox: Arc<ToSlowPath>,
    workers: Workers,
    stats: Vec<Arc<WorkerStats>>,
    clock: Box<dyn Clock>,
    random: Box<dyn Random + Send>,
    log: Log,
    tun_counters: Vec<(String, Arc<PortCounters>)>,
    udp_counters: Vec<(String, Arc<PortCounters>)>,
    null: OwnedFd,
    max_peers: usize,
    udp: UdpConfig,
    up: bool,
    sockets: Option<(UdpSockets, UdpSender)>,
    peers: Vec<Option<Peer>>,
    allowed_ips: AllowedIpsConfig,
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
            uapi: Some(parts.uapi),
            signals: parts.signals,
            inbox: parts.inbox,
            workers: parts.workers,
            stats: parts.stats,
            clock: parts.clock,
            random: parts.random,
            log: parts.log,
            tun_counters: parts.ports,
            udp_counters: Vec::new(),
            null: parts.null,
            max_peers: parts.max_peers,
            udp: parts.udp,
            up: false,
            sockets: None,
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
            self.watch_interface();
            self.serve_uapi();
            let backlog = !self.workers.flush();
            if let Some(ended) = self.ended {
                self.workers.stop();
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
                Notice::Slot(slot) => self.device.release(slot.id),
                Notice::Routes(_) | Notice::Wan(_) => {
                    // Dropped here, off the data path.
                }
                Notice::TunGone => self.end(Ended::InterfaceGone),
            }
        }
    }

    fn take_handshakes(&mut self) {
        for _ in 0..HANDSHAKES_PER_TURN {
            let queued = self.inbox.handshakes.len();
            let Some(message) = self.inbox.handshakes.pop() else {
                return;
            };
            if !self.up {
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
                Output::Send { to, msg, .. } => sends.push_back((to, msg)),
                other => self.obey(other, message),
            }
        }
        for (to, bytes) in sends {
            self.send(to, &bytes, message);
        }
        self.outputs = outputs;
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
            Output::Install { peer, keypair } => {
                self.log
                    .verbose(format_args!("{}: new session", self.peer_name(peer)));
                self.workers.add_index(peer, keypair.local_index);
                self.workers.to_owner(peer, Command::Install(keypair));
            }
            Output::Keepalive { peer } => self.workers.to_owner(peer, Command::Keepalive(peer)),
            Output::ClearSource { peer } => {
                if let Some(state) = self.peer_mut(peer) {
                    state.endpoint.set_local(None, 0);
                    self.workers.to_owner(peer, Command::ClearSource(Some(peer)));
                }
            }
            Output::DropStaged { peer } => {
                self.log.verbose(format_args!(
                    "{}: no answer, handshake given up",
                    self.peer_name(peer)
                ));
                self.workers.to_owner(peer, Command::DropStaged(peer));
            }
            Output::EraseKeys { peer } => self.workers.to_owner(peer, Command::EraseKeys(peer)),
            Output::ExpireSending { peer } => self.workers.to_owner(peer, Command::ExpireSending(peer)),
            Output::PeerGone { peer } => self.forget_peer(peer),
        }
    }

    /// Sends a handshake message. What the network does not take is lost like any datagram; the retransmission covers it.
    fn send(&mut self, to: To, bytes: &[u8], message: Option<&HandshakeMessage>) {
        let outer = match to {
            To::Peer(peer) => self.peer(peer).map(|p| p.endpoint),
            To::Source => message.map(|m| m.outer),
        };
        let (Some(mut outer), Some((_, sender))) = (outer, &self.sockets) else {
            return;
        };
        if outer.remote().is_none() {
            return;
        }
        outer.set_tos(HANDSHAKE_TOS);
        if let Err(error) = sender.send(&outer, bytes) {
            self.log
                .verbose(format_args!("handshake message not sent: {error}"));
        }
    }

    fn move_endpoint(&mut self, peer: PeerId, endpoint: Outer) {
        if let Some(state) = self.peer_mut(peer) {
            if state.endpoint != endpoint {
                state.endpoint = endpoint;
                self.workers.to_owner(peer, Command::Endpoint(peer, endpoint));
            }
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
                LinkEvent::Up if !self.up => self.interface_up(),
                LinkEvent::Down if self.up => self.interface_down(),
                LinkEvent::Up | LinkEvent::Down => {}
                LinkEvent::Mtu(mtu) => self.workers.to_all(|| Command::Mtu(mtu as usize)),
                LinkEvent::Gone => self.end(Ended::InterfaceGone),
                // Into another network namespace, the usual way to give a container nothing but a tunnel. Nothing more is
                // heard of it, so it counts as up from here on; the sockets stay in this namespace.
                LinkEvent::Moved if !self.up => self.interface_up(),
                LinkEvent::Moved => {}
                LinkEvent::RouteOrAddressChanged => {
                    for peer in self.peers.iter_mut().flatten() {
                        peer.endpoint.set_local(None, 0);
                    }
                    self.workers.to_all(|| Command::ClearSource(None));
                }
            }
        }
    }

    fn interface_up(&mut self) {
        match UdpSockets::bind(&self.udp) {
            Ok(sockets) => self.use_sockets(sockets),
            Err(error) => {
                let port = self.udp.port;
                self.log.error(format_args!(
                    "cannot listen on UDP port {port}: {error}; choose another one with `wg set`"
                ));
                return;
            }
        }
        self.up = true;
        self.device.set_up(true, &mut self.outputs);
        self.carry_out(None);
        self.log
            .verbose(format_args!("interface up, UDP port {}", self.udp.port));
    }

    fn interface_down(&mut self) {
        self.up = false;
        self.device.set_up(false, &mut self.outputs);
        self.carry_out(None);
        self.workers.to_all(|| Command::Wan(None));
        self.sockets = None;
        self.log.verbose(format_args!("interface down"));
    }

    /// Gives every worker its share of new sockets. The old ones are closed once every worker has let go of them.
    fn use_sockets(&mut self, sockets: UdpSockets) {
        self.udp.port = sockets.port();
        let counters = &mut self.udp_counters;
        counters.clear();
        self.workers.each(|i| {
            let port = sockets.worker_port(i);
            counters.push((format!("udp{i}"), Arc::clone(port.counters())));
            Command::Wan(Some(Box::new(port)))
        });
        let sender = sockets.sender();
        self.sockets = Some((sockets, sender));
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

    /// Until the next deadline, message, request or signal.
    fn sleep(&mut self, backlog: bool) {
        let now = self.clock.mono();
        let uapi_deadline = self.uapi.as_ref().and_then(UapiServer::next_deadline);
        let mut until = self.device.next_deadline().into_iter().chain(uapi_deadline).min();
        if backlog {
            let retry = now.after(BACKLOG_RETRY);
            until = Some(until.map_or(retry, |at| at.min(retry)));
        }
        let timeout = until
            .map(|at| at.since(now))
            .and_then(|d| Timespec::try_from(d).ok());
        self.inbox.waker.announce_sleep();
        if self.inbox.notices.is_empty() && self.inbox.handshakes.is_empty() {
            let Some(uapi) = &self.uapi else { return };
            let mut fds = vec![
                PollFd::new(&self.signals, PollFlags::IN),
                PollFd::from_borrowed_fd(self.inbox.waker.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(self.watch.as_fd(), PollFlags::IN),
            ];
            fds.push(PollFd::from_borrowed_fd(uapi.fd(), PollFlags::IN));
            let _ = poll(&mut fds, timeout.as_ref());
            let signalled = !fds[0].revents().is_empty();
            if signalled {
                self.end(Ended::Signal);
            }
        }
        self.inbox.waker.awake();
    }

    fn peer(&self, id: PeerId) -> Option<&Peer> {
        self.peers.get(id.0 as usize)?.as_ref()
    }

    fn peer_mut(&mut self, id: PeerId) -> Option<&mut Peer> {
        self.peers.get_mut(id.0 as usize)?.as_mut()
    }
}
