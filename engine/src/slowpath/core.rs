//! The slow path without the system: the protocol's slow half ([`Device`]), the peers and their allowed-ips, and what workers are told and
//! tell. No socket, no interface, no file: time and randomness are passed in, and datagrams leave by [`Sockets`].
//!
//! Owned by whoever runs the slow path, on one thread: in the engine [`SlowPath`](super::SlowPath), which adds the TUN, the kernel's
//! interfaces, the UDP sockets and the UAPI; in a simulator the simulator. The order of a turn is the owner's: notices, handshake messages,
//! timers, and at its end [`flush`](Core::flush).
//!
//! * this file: what comes in, and what the protocol asks for
//! * `news`: what people may want to know of it
//! * `paths`: what is known of paths to remotes
//! * `peers`: peers and allowed-ips, as they are configured
//! * `remotes`: sites of our own, and the lanes towards them
//! * `classes`: in which order packets to them use the paths
//! * `ways`: the links, and by which of them a peer is reached
//! * `standby`: when a stock peer's session goes over to another link

mod classes;
mod news;
mod paths;
mod peers;
mod remotes;
mod standby;
mod ways;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;

use patronus_crypto::messages::{self, Kind};
use patronus_crypto::{Device, Now, Output, Outputs, PeerId, Random, Time, To};
use patronus_mem::{Outer, Secret};

use self::classes::Classes;
pub use self::news::News;
use self::paths::Said;
pub use self::peers::{ALLOWED_IPS_MAX, Peer, peer_numbers};
pub use self::remotes::Lane;
use self::remotes::Remotes;
use self::standby::Standbys;
pub use self::standby::{GatewayUse, PINGED_MAX, PeerMoved, PingPlan, Way};
use self::ways::Link;
pub use self::ways::Sockets;
use super::Workers;
use crate::allowedips::AllowedIpsConfig;
use crate::channel::{Command, Families, HandshakeMessage, Notice, ToSlowPath};
use crate::clock::Clock;
use crate::log::Log;

/// Outer DSCP of handshake messages: AF41, ECN not capable, as Linux sends them.
const HANDSHAKE_TOS: u8 = 0x88;
/// Handshake messages worked off in a turn, so that a flood of them leaves time for timers and requests.
const HANDSHAKES_PER_TURN: usize = 64;

/// What the core is made from.
pub struct CoreParts {
    /// The protocol's slow half.
    pub device: Device,
    /// The workers' notices and handshake messages.
    pub inbox: Arc<ToSlowPath>,
    /// The workers.
    pub workers: Workers,
    /// Real or simulated time.
    pub clock: Box<dyn Clock>,
    /// Real or simulated randomness.
    pub random: Box<dyn Random + Send>,
    /// Where messages for people go.
    pub log: Log,
    /// Peers that there may be.
    pub max_peers: usize,
    /// Places for links.
    pub links: usize,
}

/// The part of the slow path that makes no system calls. `S`: the sockets of a link.
pub struct Core<S> {
    device: Device,
    inbox: Arc<ToSlowPath>,
    workers: Workers,
    clock: Box<dyn Clock>,
    random: Box<dyn Random + Send>,
    log: Log,
    max_peers: usize,
    /// None where a link has no sockets.
    links: Vec<Option<Link<S>>>,
    /// What each link has routes for, whether it has sockets or not.
    sends: Vec<Families>,
    /// Where a peer is that was heard by a link that is said to have no routes for its family, since somebody asked.
    heard_unled: Option<IpAddr>,
    peers: Vec<Option<Peer>>,
    remotes: Remotes,
    classes: Classes,
    standbys: Standbys,
    allowed_ips: AllowedIpsConfig,
    /// The workers' routing table is older than `allowed_ips`.
    routes_changed: bool,
    /// They have become newer since somebody asked.
    routes_published: bool,
    /// Removed peers whose numbers are not free yet.
    leaving: usize,
    /// Numbers are not free when the worker has let go of them, but when whoever routes by them has.
    keeps_numbers: bool,
    /// Those of them that the workers have let go of.
    departed: Vec<PeerId>,
    news: News,
    said_of_paths: Said,
    outputs: Outputs,
}

impl<S: Sockets> Core<S> {
    /// A core that knows no peer and has no sockets.
    pub fn new(parts: CoreParts) -> Self {
        Core {
            device: parts.device,
            inbox: parts.inbox,
            workers: parts.workers,
            clock: parts.clock,
            random: parts.random,
            log: parts.log,
            max_peers: parts.max_peers,
            links: (0..parts.links).map(|_| None).collect(),
            sends: vec![Families::BOTH; parts.links],
            heard_unled: None,
            peers: Vec::new(),
            remotes: Remotes::new(parts.links),
            classes: Classes::new(),
            standbys: Standbys::new(parts.links),
            allowed_ips: AllowedIpsConfig::new(),
            routes_changed: false,
            routes_published: false,
            leaving: 0,
            keeps_numbers: false,
            departed: Vec::new(),
            news: News::default(),
            said_of_paths: Said::default(),
            outputs: Outputs::default(),
        }
    }

    /// The protocol's slow half.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Where workers leave what is for the slow path.
    pub fn inbox(&self) -> &Arc<ToSlowPath> {
        &self.inbox
    }

    /// Where messages for people go.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// The time, for timers.
    pub fn mono(&self) -> Time {
        self.clock.mono()
    }

    /// The time, by both clocks.
    pub fn now(&self) -> Now {
        self.clock.now()
    }

    /// When there is something to do by the protocol's timers.
    pub fn next_deadline(&self) -> Option<Time> {
        let protocol = self.device.next_deadline();
        let others = self.remotes_deadline().into_iter().chain(self.standby_deadline());
        protocol.into_iter().chain(others).min()
    }

    /// Every worker is told that.
    pub fn tell_all(&mut self, command: impl FnMut() -> Command) {
        self.workers.tell_all(command);
    }

    /// Every worker is told something of its own.
    pub fn tell_each(&mut self, command: impl FnMut(usize) -> Command) {
        self.workers.each(command);
    }

    /// Tells one worker something.
    pub fn tell_worker(&mut self, worker: usize, command: Command) {
        self.workers.tell(worker, command);
    }

    /// Whether workers take what they are told.
    pub fn workers_keep_up(&self) -> bool {
        self.workers.keep_up()
    }

    /// Moves commands that wait into the workers' queues and wakes whom they concern. False if some still wait.
    pub fn flush(&mut self) -> bool {
        self.workers.flush()
    }

    /// Ends the workers and waits for their threads.
    pub fn stop_workers(&mut self) {
        self.workers.stop(&self.inbox);
    }

    /// Takes what a worker says. What is not the protocol's comes back: ports that are gone or have been replaced.
    pub fn hear(&mut self, notice: Notice) -> Option<Notice> {
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
                self.note_session(peer, true);
                self.remote_session(peer, false);
            }
            Notice::Watch(peer) => self.device.watch(peer),
            Notice::Endpoint(peer, endpoint) => {
                // Without an address of ours it is what the worker was told.
                let by_itself = endpoint.local().is_some();
                if self.standby_heard(peer, endpoint.ifindex(), by_itself) {
                    self.note_unled(endpoint);
                    self.note_endpoint(peer, endpoint.remote());
                    if let Some(state) = self.peer_mut(peer) {
                        let before = std::mem::replace(&mut state.endpoint, endpoint);
                        self.siblings_follow(peer, before, endpoint);
                    }
                }
            }
            Notice::Retired(keypair) => {
                self.workers.forget_index(keypair.peer, keypair.local_index);
                self.device.retire(keypair);
            }
            Notice::Slot(slot) => {
                let is_lane = slot.tunnel() != slot.id;
                if is_lane {
                    self.workers.place(slot.id, None);
                }
                // Nobody routes by a lane's number.
                match self.keeps_numbers && !is_lane {
                    true => self.departed.push(slot.id),
                    false => self.release(slot.id),
                }
            }
            Notice::Routes(routes) => drop(routes),
            Notice::Paths(paths) => drop(paths),
            Notice::Probe(set) => drop(set),
            Notice::Order(order) => drop(order),
            Notice::Observer(observer) => drop(observer),
            Notice::Told(_) | Notice::Wan(_) | Notice::Lan(_) | Notice::LanGone(..) | Notice::Failed(_) => {
                return Some(notice);
            }
        }
        None
    }

    /// From now on the owner says when removed peers' numbers are free, because packets are routed by them.
    pub fn keep_numbers(&mut self) {
        self.keeps_numbers = true;
    }

    /// Removed peers that the workers have let go of since the last call.
    pub fn take_departed(&mut self) -> Vec<PeerId> {
        std::mem::take(&mut self.departed)
    }

    /// A removed peer's number may be used again.
    pub fn release(&mut self, peer: PeerId) {
        self.leaving -= 1;
        self.device.release(peer);
        self.remotes.number_freed();
    }

    /// Whether allowed-ips have changed since the last call.
    pub fn take_routes_published(&mut self) -> bool {
        std::mem::take(&mut self.routes_published)
    }

    /// Works off control messages, changes of paths and handshake messages, as many as belong into a turn. How many of the latter there were.
    pub fn take_handshakes(&mut self) -> usize {
        self.take_controls();
        self.take_path_changes();
        for taken in 0..HANDSHAKES_PER_TURN {
            let queued = self.inbox.handshakes.len();
            let Some(message) = self.inbox.handshakes.pop() else {
                return taken;
            };
            // Without sockets: it was on its way when the interface went down.
            if let Some(from) = message.outer.remote().filter(|_| self.is_open()) {
                let now = self.clock.now();
                let link = self.link_id(message.outer.ifindex());
                self.device.receive_on(
                    link,
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
        HANDSHAKES_PER_TURN
    }

    /// Does what is due by the protocol's timers.
    pub fn run_timers(&mut self) {
        let now = self.clock.now();
        if self.device.next_deadline().is_some_and(|at| at <= now.mono) {
            self.device.poll(&now, &mut *self.random, &mut self.outputs);
            self.carry_out(None);
        }
        self.poll_remotes(now.mono);
        self.tend_standbys();
        self.carry_out(None);
    }

    /// Sets the private key, or takes it away.
    pub fn set_private_key(&mut self, key: Option<Secret<32>>) {
        if !key.as_ref().is_some_and(|key| self.device.has_private_key(key)) {
            self.close_all_lanes();
        }
        self.device.set_private_key(key, &mut self.outputs);
        self.carry_out(None);
    }

    /// Begins to work when the first sockets are there; true if it did. Links that come and go afterwards end nothing: sessions wait for the
    /// next one.
    pub fn begin_if_open(&mut self) -> bool {
        if self.device.is_up() || !self.is_open() {
            return false;
        }
        // Whoever sets the interface up has looked at the clock, or it is boot time and nobody can.
        self.device.trust_clock(&self.clock.now());
        self.set_up(true);
        true
    }

    /// Closes the sockets and ends every session; true if it was at work.
    pub fn end(&mut self) -> bool {
        self.close_links();
        let was_up = self.device.is_up();
        self.set_up(false);
        was_up
    }

    fn set_up(&mut self, up: bool) {
        self.device.set_up(up, &mut self.outputs);
        self.carry_out(None);
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
        debug_assert!(self.outputs.is_empty(), "nothing that is asked for asks for more");
        self.outputs = outputs;
        self.publish_routes();
    }

    fn obey(&mut self, output: Output, message: Option<&HandshakeMessage>) {
        match output {
            Output::Send { .. } => unreachable!("sent by the caller"),
            Output::MoveEndpoint { peer } => {
                let Some(message) = message else { return };
                if !self.is_on_own_link(peer, message.outer.ifindex()) {
                    return;
                }
                let mut endpoint = message.outer;
                endpoint.set_tos(0);
                self.note_endpoint(peer, endpoint.remote());
                self.note_unled(endpoint);
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
                // One that the other side began may be somebody's repetition: it counts when it is confirmed.
                let is_known_there = keypair.initiator;
                self.workers.tell_owner(peer, Command::Install(keypair));
                if is_known_there {
                    self.note_session(peer, true);
                    self.remote_session(peer, true);
                }
            }
            Output::Keepalive { peer } => self.workers.tell_owner(peer, Command::Keepalive(peer)),
            Output::ClearSource { peer } => {
                self.forget_source(peer);
                self.lane_silent(peer);
            }
            Output::DropStaged { peer } => {
                self.log.verbose(format_args!(
                    "{}: no answer, handshake given up",
                    self.peer_name(peer)
                ));
                self.workers.tell_owner(peer, Command::DropStaged(peer));
                self.note_session(peer, false);
                self.remote_lost(peer);
            }
            Output::EraseKeys { peer } => {
                self.workers.tell_owner(peer, Command::EraseKeys(peer));
                self.note_session(peer, false);
                self.remote_lost(peer);
            }
            Output::ExpireSending { peer } => self.workers.tell_owner(peer, Command::ExpireSending(peer)),
            Output::PeerGone { peer } => self.forget_peer(peer),
        }
    }

    /// Sends a handshake message. What the network does not take is lost like any datagram; the retransmission covers it.
    fn send(&mut self, to: To, bytes: &[u8], tos: u8, message: Option<&HandshakeMessage>) {
        let way = match to {
            To::Peer(peer) if messages::kind(bytes) == Ok(Kind::Initiation) => self.next_way(peer),
            To::Peer(peer) => self.peer(peer).and_then(|peer| self.way(peer.endpoint)),
            To::Source => message.and_then(|message| self.way(message.outer)),
        };
        let Some((mut outer, sockets)) = way.filter(|(outer, _)| outer.remote().is_some()) else {
            return;
        };
        outer.set_tos(tos);
        if let Err(error) = sockets.send(&outer, bytes) {
            self.log
                .verbose(format_args!("handshake message not sent: {error}"));
        }
    }

    fn move_endpoint(&mut self, peer: PeerId, endpoint: Outer) {
        if let Some(state) = self.peer_mut(peer).filter(|state| state.endpoint != endpoint) {
            state.endpoint = endpoint;
            self.workers.tell_owner(peer, Command::Endpoint(peer, endpoint));
        }
    }
}
