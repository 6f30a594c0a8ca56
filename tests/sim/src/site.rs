//! One engine: its workers, the slow path's core, and the far ends of all their ports.
//!
//! Everything between the ports is the engine's own code. What the engine gets from a kernel is here: queues for ports, and links that come
//! and go. A restart makes a new `Site` of the same [`Plan`](SitePlan).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use crossbeam_queue::ArrayQueue;
use patronus_abi::channel::{Event, PathState};
use patronus_crypto::{Device, Duration, Limits, PeerId, PublicKey, Random, Time, aead, x25519};
use patronus_engine::channel::{Notice, ToSlowPath};
use patronus_engine::clock::Clock;
use patronus_engine::crew::Crew;
use patronus_engine::fib::{self, FibWriterV4, FibWriterV6, Group};
use patronus_engine::flow::HashKeys;
use patronus_engine::log::{Level, Log};
use patronus_engine::probe::Probing;
use patronus_engine::route::{Router, Rules};
use patronus_engine::slowpath::{Core, CoreParts, Sockets, Workers, peer_numbers};
use patronus_engine::snapshot::{self, Exit, Hop, Snapshot};
use patronus_engine::stats::{DropReason, Stage};
use patronus_engine::uapi::{AllowedIpChange, SetPeer, SetRequest};
use patronus_engine::wg::Wg;
use patronus_engine::worker::{IdleLadder, LanPort, Parts, Worker};
use patronus_io::Port;
use patronus_io::loopback::LoopbackPort;
use patronus_mem::{Arena, Burst, FrameCache, Outer, Secret};
use patronus_sync::{Domain, Publisher, publish};

use crate::clock::VirtualClock;
use crate::network::Datagram;
use crate::rng::Seeded;

/// Packets of all peers that may wait in a worker.
const STAGED_LIMIT: usize = 200;
/// Packets that a port holds in each direction.
const RING: usize = 512;
/// The UDP port of every site.
pub const UDP_PORT: u16 = 51820;
/// Flows that a router remembers: few, so that there are too many.
const FLOWS: usize = 64;
/// Link addresses of what a router sends into its LAN.
const LAN_ADDRESSES: [u8; 12] = [2, 0, 0, 0, 1, 1, 2, 0, 0, 0, 0, 1];

/// What a site is, restarts or not.
#[derive(Clone, Debug)]
pub struct SitePlan {
    /// Which one.
    pub number: usize,
    /// Workers.
    pub workers: usize,
    /// Links.
    pub links: usize,
    /// The tunnel's MTU.
    pub mtu: usize,
    /// With an Ethernet LAN and a router, instead of a TUN.
    pub router: bool,
    /// Its links are bound to their interfaces, as those that have lanes are.
    pub bound: bool,
    /// Peers that it may have.
    pub peers: usize,
    /// Handshake messages that may wait for its slow path.
    pub handshakes: usize,
    /// How often paths are probed.
    pub probing: Probing,
}

/// What a site is told about a peer.
#[derive(Clone, Debug)]
pub struct PeerPlan {
    /// Its public key.
    pub key: PublicKey,
    /// Where it is.
    pub endpoint: Option<SocketAddr>,
    /// The pre-shared key.
    pub psk: [u8; 32],
    /// Seconds between keepalives; 0: none.
    pub keepalive: u16,
}

/// A prefix: the network of a site, or one that wanders.
pub type Net = u16;

/// The prefixes of a network.
pub fn prefixes(net: Net) -> Vec<(IpAddr, u8)> {
    match net {
        0..200 => vec![
            (IpAddr::from([10, net as u8, 0, 0]), 16),
            (IpAddr::from([0xfd00, net, 0, 0, 0, 0, 0, 0]), 32),
        ],
        200..256 => vec![(IpAddr::from([10, 200, (net - 200) as u8, 0]), 24)],
        _ => vec![(IpAddr::from([172, 16 + (net >> 8) as u8, net as u8, 0]), 24)],
    }
}

/// The network of an address.
pub fn net_of(ip: IpAddr) -> Option<Net> {
    match ip {
        IpAddr::V4(ip) => match ip.octets() {
            [10, 200, net, _] => Some(200 + Net::from(net)),
            [10, net, _, _] => Some(net.into()),
            [172, high, low, _] => Some(Net::from_be_bytes([high - 16, low])),
            _ => None,
        },
        IpAddr::V6(ip) => (ip.segments()[0] == 0xfd00).then(|| ip.segments()[1]),
    }
}

/// What a site has sent to the network: from which link.
pub struct Sent {
    /// Its place.
    pub link: usize,
    /// Where to, and from where.
    pub outer: Outer,
    /// The datagram.
    pub bytes: Vec<u8>,
}

type Outbox = Arc<Mutex<Vec<Sent>>>;

/// The sockets of a link.
pub struct Queues {
    link: usize,
    ports: Vec<Option<LoopbackPort>>,
    outbox: Outbox,
}

impl Sockets for Queues {
    fn worker_port(&mut self, worker: usize) -> Box<dyn Port + Send> {
        Box::new(self.ports[worker].take().expect("asked for once"))
    }

    fn send(&self, outer: &Outer, datagram: &[u8]) -> std::io::Result<()> {
        let sent = Sent {
            link: self.link,
            outer: *outer,
            bytes: datagram.to_vec(),
        };
        self.outbox.lock().expect("one thread").push(sent);
        Ok(())
    }
}

/// A link, from outside.
pub struct LinkState {
    /// Whether the interface runs.
    pub up: bool,
    /// The far ends of the workers' sockets.
    far: Vec<LoopbackPort>,
}

/// What went into and came out of a site's ports.
#[derive(Default, Clone, Copy, Debug)]
pub struct Counts {
    lan_in: u64,
    lan_out: u64,
    wan_in: u64,
    wan_out: u64,
    /// Among `wan_out`.
    keepalives_out: u64,
    /// Among `wan_in`.
    handshakes: u64,
    /// Datagrams in the queues of sockets that were closed, among `wan_in`.
    closed: u64,
    /// Copies, damaged ones and forgeries among `wan_in`.
    strange: u64,
    /// Lost by ports that were closed.
    lost: u64,
    /// Notices that the slow path has worked off.
    notices: u64,
    /// Commands that workers have taken.
    commands: u64,
}

struct Routes {
    domain: Domain,
    publisher: Publisher<Snapshot>,
    v4: FibWriterV4,
    v6: FibWriterV6,
    keys: [u64; 7],
    epoch: u32,
    known: BTreeMap<Net, u32>,
}

/// One running engine.
pub struct Site {
    /// What it is.
    pub plan: SitePlan,
    /// The slow path.
    pub core: Core<Queues>,
    /// The workers.
    pub workers: Vec<Worker>,
    /// By place.
    pub links: Vec<LinkState>,
    /// Counted from outside.
    pub counts: Counts,
    /// Until when each worker, and behind them the slow path, does not run.
    pub stalled: Vec<Time>,
    /// By the number of the site that the peer is.
    pub peers: BTreeMap<usize, PeerId>,
    /// Which networks belong to which site, as this one was told last.
    pub claims: BTreeMap<Net, usize>,
    /// What may still count, because not every worker has been at work since it changed.
    pub stale_claims: Vec<(Net, usize)>,
    inbox: Arc<ToSlowPath>,
    hosts: Vec<LoopbackPort>,
    /// Far ends of sockets that were closed, with their link: workers may still send there.
    closing: Vec<(usize, LoopbackPort)>,
    outbox: Outbox,
    routes: Option<Routes>,
}

/// A site's private key.
pub fn private_key(seed: u64, number: usize) -> Secret<32> {
    Secret::with(|key| Seeded(seed ^ (number as u64 + 1).wrapping_mul(0x1234_5678_9abc_def1)).fill(key))
}

/// The interface of a link; 0: the socket is not bound to any.
fn ifindex(plan: &SitePlan, link: usize) -> u32 {
    if plan.bound { link as u32 + 1 } else { 0 }
}

/// As the engine makes it, but perhaps with less room for handshake messages.
fn inbox(plan: &SitePlan) -> ToSlowPath {
    ToSlowPath {
        handshakes: ArrayQueue::new(plan.handshakes),
        ..ToSlowPath::new(plan.workers).expect("a descriptor")
    }
}

impl Site {
    /// Starts an engine that tells nobody anything: every link up, no peer yet.
    pub fn start(
        plan: &SitePlan,
        key: Secret<32>,
        arena: &'static Arena,
        clock: &VirtualClock,
        rng: Seeded,
    ) -> Site {
        Site::start_with_log(plan, key, arena, clock, rng, Log::new("sim", Level::Silent))
    }

    /// The same with somebody who hears what it tells people.
    pub fn start_with_log(
        plan: &SitePlan,
        key: Secret<32>,
        arena: &'static Arena,
        clock: &VirtualClock,
        mut rng: Seeded,
        log: Log,
    ) -> Site {
        let inbox = Arc::new(inbox(plan));
        let crews = Crew::assemble(plan.workers).expect("a descriptor");
        let inboxes = crews[0].inboxes().to_vec();
        let (mut routes, mut routers) = (None, Vec::new());
        if plan.router {
            let (made, of_workers) = Routes::new(plan.workers, &mut rng);
            (routes, routers) = (Some(made), of_workers);
        }
        let mut routers = routers.into_iter();
        let (mut hosts, mut workers) = (Vec::new(), Vec::new());
        for crew in crews {
            let (near, far) = LoopbackPort::pair(RING);
            hosts.push(far);
            workers.push(Worker::new(Parts {
                wg: Wg::new(aead::default(), peer_numbers(plan.peers), plan.mtu, STAGED_LIMIT),
                lans: vec![Some(LanPort {
                    port: Box::new(near),
                    ethernet: plan.router,
                })],
                wans: (0..plan.links).map(|_| None).collect(),
                router: routers.next(),
                frames: FrameCache::new(arena),
                crew,
                stats: Default::default(),
                slow: Arc::clone(&inbox),
                clock: Box::new(clock.clone()),
                idle: IdleLadder { spin: Duration::ZERO },
            }));
        }
        let limits = Limits {
            max_peers: peer_numbers(plan.peers) as u32,
            ..Limits::default()
        };
        let mut core = Core::new(CoreParts {
            device: Device::new(limits, x25519::default(), clock.now(), &mut rng),
            inbox: Arc::clone(&inbox),
            workers: Workers::new(&inboxes, Vec::new()),
            clock: Box::new(clock.clone()),
            random: Box::new(rng),
            log,
            max_peers: plan.peers,
            links: plan.links,
        });
        core.set_private_key(Some(key));
        core.set_probing(plan.probing);
        let mut site = Site {
            plan: plan.clone(),
            core,
            stalled: vec![Time(0); workers.len() + 1],
            workers,
            links: Vec::new(),
            counts: Counts::default(),
            peers: BTreeMap::new(),
            claims: BTreeMap::new(),
            stale_claims: Vec::new(),
            inbox,
            hosts,
            closing: Vec::new(),
            outbox: Outbox::default(),
            routes,
        };
        for _ in 0..plan.links {
            let (up, far) = (false, Vec::new());
            site.links.push(LinkState { up, far });
        }
        (0..plan.links).for_each(|link| site.open_link(link));
        site
    }

    /// Brings a link up, if it is down.
    pub fn open_link(&mut self, link: usize) {
        if self.links[link].up {
            return;
        }
        let (near, far): (Vec<_>, Vec<_>) = self.workers.iter().map(|_| LoopbackPort::pair(RING)).unzip();
        self.links[link] = LinkState { up: true, far };
        let sockets = Queues {
            link,
            ports: near.into_iter().map(Some).collect(),
            outbox: Arc::clone(&self.outbox),
        };
        self.core.open_link(link, ifindex(&self.plan, link), sockets);
        self.core.begin_if_open();
    }

    /// Takes a link down, as its interface does.
    pub fn close_link(&mut self, link: usize) {
        self.links[link].up = false;
        let far = std::mem::take(&mut self.links[link].far);
        self.closing.extend(far.into_iter().map(|port| (link, port)));
        self.core.close_link(link);
    }

    fn set(&mut self, peers: Vec<SetPeer>) {
        let request = SetRequest {
            peers,
            ..SetRequest::default()
        };
        self.core.check_room(&request).expect("there is room");
        self.core.apply(request);
    }

    /// Adds a peer, or changes what is known of it.
    pub fn set_peer(&mut self, other: usize, plan: &PeerPlan) {
        let mut change = SetPeer::new(plan.key);
        change.endpoint = plan.endpoint;
        change.preshared_key = Some(Some(Secret::with(|psk| psk.copy_from_slice(&plan.psk))));
        change.persistent_keepalive = Some(plan.keepalive);
        self.set(vec![change]);
        let id = self.core.device().peer(&plan.key).expect("there was room");
        self.peers.insert(other, id);
    }

    /// Takes a peer for a site of our own.
    pub fn make_remote(&mut self, other: usize) {
        self.core.make_remote(self.peers[&other]);
    }

    /// Lanes whose handshake was completed at some time.
    pub fn open_lanes(&self) -> u64 {
        let lanes = self.peers.values().flat_map(|base| self.core.lanes(*base));
        let open = lanes.filter(|(_, lane)| self.core.device().last_handshake(*lane).is_some());
        open.count() as u64
    }

    /// Removes a peer, and with it the networks that were its.
    pub fn remove_peer(&mut self, other: usize) {
        let Some(id) = self.peers.remove(&other) else {
            return;
        };
        let mut change = SetPeer::new(self.core.peer(id).expect("a peer of this site").key);
        change.remove = true;
        self.set(vec![change]);
        let gone = self.claims.extract_if(.., |_, owner| *owner == other);
        self.stale_claims.extend(gone);
    }

    /// No keepalives for that peer any more.
    pub fn quiet(&mut self, other: usize) {
        let Some(&id) = self.peers.get(&other) else { return };
        let mut change = SetPeer::new(self.core.peer(id).expect("a peer of this site").key);
        change.persistent_keepalive = Some(0);
        self.set(vec![change]);
    }

    /// Gives a network to a peer, whoever had it.
    pub fn allow(&mut self, other: usize, net: Net) {
        let Some(&id) = self.peers.get(&other) else { return };
        let mut change = SetPeer::new(self.core.peer(id).expect("a peer of this site").key);
        change.update_only = true;
        change.allowed_ips = prefixes(net)
            .into_iter()
            .map(|(addr, cidr)| AllowedIpChange {
                remove: false,
                addr,
                cidr,
            })
            .collect();
        self.set(vec![change]);
        if let Some(before) = self.claims.insert(net, other) {
            self.stale_claims.push((net, before));
        }
    }

    /// Whether what comes from this network may come from that site.
    pub fn may_come_from(&self, net: Net, other: usize) -> bool {
        self.claims.get(&net) == Some(&other) || self.stale_claims.contains(&(net, other))
    }

    /// Makes the router's tables fit the peers, where there is a router.
    pub fn publish_routes(&mut self) {
        let (own, mtu) = (self.plan.number, self.plan.mtu);
        if let Some(routes) = &mut self.routes {
            routes.publish(own, mtu, &self.peers, &self.claims, self.workers.len());
        }
    }

    /// A turn of a worker. False if it has ended.
    pub fn worker_turn(&mut self, worker: usize, now: Time) -> bool {
        let worker = &mut self.workers[worker];
        let waited = worker.inbox().commands.len();
        let goes_on = worker.step(now);
        self.counts.commands += waited.saturating_sub(worker.inbox().commands.len()) as u64;
        goes_on
    }

    /// A turn of the slow path, in the order in which the engine's thread does it.
    pub fn slow_turn(&mut self, frames: &mut FrameCache) -> Result<(), String> {
        while let Some(notice) = self.inbox.notices.pop() {
            self.counts.notices += 1;
            match self.core.hear(notice) {
                None => {}
                Some(Notice::Wan(mut port)) => {
                    let mut burst = Burst::new();
                    while port.rx_burst(frames, &mut burst).is_ok_and(|count| count > 0) {
                        self.counts.closed += burst.len() as u64;
                        burst.clear_into(frames);
                    }
                    self.counts.lost += port.counters().drops().map(|(_, count)| count).sum::<u64>();
                }
                Some(_) => return Err("a worker gave a LAN port up".to_owned()),
            }
        }
        self.counts.handshakes += self.core.take_handshakes() as u64;
        self.core.run_timers();
        self.core.flush();
        Ok(())
    }

    /// Puts a packet into a queue of the LAN. False if the queue was full.
    pub fn offer(&mut self, queue: usize, packet: &[u8], frames: &mut FrameCache) -> bool {
        let host = &mut self.hosts[queue];
        let given = if self.plan.router {
            let kind: [u8; 2] = if packet.first().is_some_and(|first| first >> 4 == 6) {
                [0x86, 0xdd]
            } else {
                [8, 0]
            };
            let mut frame = vec![0x54; 12];
            frame.extend(kind);
            frame.extend(packet);
            // The shortest frame there is, without its checksum.
            frame.resize(frame.len().max(60), 0);
            put(host, &frame, Outer::NONE, frames)
        } else {
            put(host, packet, Outer::NONE, frames)
        };
        self.counts.lan_in += u64::from(given);
        given
    }

    /// Puts a datagram into a socket. False if there is none or it is full.
    pub fn arrive(&mut self, link: usize, datagram: &Datagram, frames: &mut FrameCache) -> bool {
        let far = &mut self.links[link].far;
        if far.is_empty() {
            return false;
        }
        let queue = queue_of(datagram.from, far.len());
        let mut outer = Outer::new(datagram.from);
        outer.set_local(Some(datagram.to.ip()), ifindex(&self.plan, link).max(1));
        outer.set_tos(datagram.tos);
        let given = put(&mut far[queue], &datagram.bytes, outer, frames);
        self.counts.wan_in += u64::from(given);
        self.counts.strange += u64::from(given && !datagram.genuine);
        given
    }

    /// Takes what the LAN has received: IP packets.
    pub fn delivered(&mut self, frames: &mut FrameCache) -> Result<Vec<Vec<u8>>, String> {
        let mut all = Vec::new();
        let mut burst = Burst::new();
        for host in &mut self.hosts {
            while host.rx_burst(frames, &mut burst).is_ok_and(|count| count > 0) {
                self.counts.lan_out += burst.len() as u64;
                all.extend(burst.iter().map(|packet| packet.data().to_vec()));
                burst.clear_into(frames);
            }
        }
        if self.plan.router {
            for frame in &mut all {
                if frame.len() < 14 || frame[..12] != LAN_ADDRESSES {
                    return Err("a frame with a wrong link header came out of a LAN port".to_owned());
                }
                frame.drain(..14);
            }
        }
        Ok(all)
    }

    /// Takes what was given to the network.
    pub fn sent(&mut self, frames: &mut FrameCache) -> Vec<Sent> {
        let mut all = std::mem::take(&mut *self.outbox.lock().expect("one thread"));
        let mut burst = Burst::new();
        let open = self.links.iter_mut().enumerate();
        let open = open.flat_map(|(link, state)| state.far.iter_mut().map(move |port| (link, port)));
        let closing = self.closing.iter_mut().map(|(link, port)| (*link, port));
        for (link, port) in open.chain(closing) {
            while port.rx_burst(frames, &mut burst).is_ok_and(|count| count > 0) {
                for packet in burst.iter() {
                    self.counts.wan_out += 1;
                    self.counts.keepalives_out +=
                        u64::from(packet.len() == patronus_crypto::messages::DATA_MIN);
                    let (outer, bytes) = (*packet.outer(), packet.data().to_vec());
                    all.push(Sent { link, outer, bytes });
                }
                burst.clear_into(frames);
            }
        }
        all
    }

    /// Whether a socket's own address is one of that link's; see [`own_address`].
    pub fn is_own(&self, link: usize, local: IpAddr) -> bool {
        local == own_address(self.plan.number, link, local.is_ipv6())
    }

    /// Something that changes whenever a packet or a message moves inside.
    pub fn pulse(&self) -> u64 {
        let stages = [
            Stage::LanRx,
            Stage::WanRx,
            Stage::Handoff,
            Stage::WanTx,
            Stage::LanTx,
        ];
        let moved: u64 = stages.iter().map(|&stage| self.stage(stage)).sum();
        let commands: usize = self
            .workers
            .iter()
            .map(|worker| worker.inbox().commands.len())
            .sum();
        let queued = self.inbox.notices.len() + self.inbox.handshakes.len() + commands;
        // Behind a queue that is full there may be more, which takes the place of what a worker has taken.
        let taken = self.counts.notices + self.counts.handshakes + self.counts.commands;
        moved + taken + 1_000_003 * queued as u64
    }

    /// Probes sent so far, and paths that there are.
    pub fn probes(&self) -> (u64, usize) {
        let sent = self.workers.iter().map(|worker| worker.stats().probes_sent.get());
        let boards = self.peers.values().filter_map(|base| self.core.board(*base));
        (sent.sum(), boards.map(|board| board.pulses().len()).sum())
    }

    /// Paths that have gone down since the last call.
    pub fn downs(&mut self) -> Vec<Event> {
        let is_down = |event: &Event| {
            matches!(
                event,
                Event::PathState {
                    state: PathState::Down,
                    ..
                }
            )
        };
        let news = self.core.take_news().events;
        news.into_iter().filter(is_down).collect()
    }

    /// When a worker has something to do that nobody wakes it for.
    pub fn worker_deadline(&self) -> Option<Time> {
        self.workers.iter().filter_map(Worker::next_deadline).min()
    }

    fn stage(&self, stage: Stage) -> u64 {
        let of = |worker: &Worker| worker.stats().stage(stage).packets.get();
        self.workers.iter().map(of).sum()
    }

    /// Packets dropped for this reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.workers
            .iter()
            .map(|worker| worker.stats().dropped(reason))
            .sum()
    }

    /// Packets and messages that were dropped for whatever reason, or whose socket was closed before they were read.
    pub fn gone(&self) -> u64 {
        let drops: u64 = DropReason::ALL.iter().map(|&reason| self.dropped(reason)).sum();
        drops + self.counts.closed + self.core.device().counters().total()
    }

    /// Packets that wait for sessions.
    pub fn staged(&self) -> usize {
        self.workers.iter().map(|worker| worker.wg().staged()).sum()
    }

    /// Errors that it has told hosts.
    pub fn icmp_sent(&self) -> u64 {
        self.workers
            .iter()
            .map(|worker| worker.stats().icmp_sent.get())
            .sum()
    }

    /// Whether nothing is on its way inside.
    pub fn is_at_rest(&mut self) -> bool {
        let queued = !self.inbox.notices.is_empty() || !self.inbox.handshakes.is_empty();
        !queued
            && !self.workers.iter_mut().any(Worker::is_called)
            && self.stage(Stage::LanRx) == self.counts.lan_in
            && self.stage(Stage::WanRx) + self.counts.closed == self.counts.wan_in
    }

    /// For a site at rest: packets in are packets out, dropped under a name, or still waiting; and limits hold.
    pub fn check(&mut self) -> Result<(), String> {
        self.stale_claims.clear();
        self.closing.clear();
        let c = &self.counts;
        let drops: u64 = DropReason::ALL.iter().map(|&reason| self.dropped(reason)).sum();
        let in_ports = self.workers.iter().flat_map(Worker::ports);
        let in_ports: u64 = in_ports
            .map(|port| port.counters().drops().map(|(_, n)| n).sum::<u64>())
            .sum();
        let stats = self.workers.iter().map(Worker::stats);
        let keepalives_in: u64 = stats.map(|stats| stats.keepalives_received.get()).sum();
        let stats = self.workers.iter().map(Worker::stats);
        let (controls_out, controls_in) = stats.fold((0, 0), |(sent, received), stats| {
            (
                sent + stats.controls_sent.get()
                    + stats.probes_sent.get()
                    + stats.sizes_sent.get()
                    + stats.pings_sent.get(),
                received
                    + stats.controls_received.get()
                    + stats.probes_received.get()
                    + stats.sizes_received.get()
                    + stats.ping_answers_received.get(),
            )
        });
        let stats = self.workers.iter().map(Worker::stats);
        let cut_off: u64 = stats
            .map(|stats| stats.fragments.get() - stats.fragmented.get())
            .sum();
        let appeared = c.lan_in + c.wan_in + c.keepalives_out + controls_out + self.icmp_sent() + cut_off;
        let left = c.lan_out + c.wan_out + c.handshakes + keepalives_in + controls_in;
        let stayed = self.staged() as u64 + c.closed + c.lost + in_ports;
        // A keepalive that found no link is a drop that never appeared.
        let unsent = (left + stayed + drops).checked_sub(appeared);
        if unsent.is_none_or(|unsent| unsent > self.dropped(DropReason::EncapDown)) {
            let named = DropReason::ALL
                .iter()
                .map(|&reason| (reason.name(), self.dropped(reason)));
            let named: Vec<_> = named.filter(|(_, count)| *count > 0).collect();
            return Err(format!(
                "accounts: {appeared} packets appeared, {left} left, {stayed} stayed, {drops} were dropped: {c:?}, {named:?}"
            ));
        }
        if self
            .workers
            .iter()
            .any(|worker| worker.wg().staged() > STAGED_LIMIT)
        {
            return Err("limits: more packets wait than may".to_owned());
        }
        // What nobody copied, damaged or forged is neither a replay nor wrong.
        let refused = [
            DropReason::DecapReplay,
            DropReason::DecapBadTag,
            DropReason::DecapNotWireguard,
        ];
        let refused: u64 = refused.iter().map(|&reason| self.dropped(reason)).sum();
        if refused > self.counts.strange {
            let strange = self.counts.strange;
            return Err(format!(
                "refusal: {refused} datagrams as copies or not authentic, {strange} were"
            ));
        }
        let device = self.core.device();
        let numbers = self.core.numbers();
        if device.indices_in_use() > 7 * numbers {
            return Err(format!(
                "limits: {} indices for {numbers} peers",
                device.indices_in_use()
            ));
        }
        Ok(())
    }
}

/// Our own address on a link.
pub fn own_address(site: usize, link: usize, ipv6: bool) -> IpAddr {
    let (site, link) = (site as u16, link as u8 + 1);
    let [high, low] = site.to_be_bytes();
    match ipv6 {
        false => IpAddr::from([100, 64 + high, low, link]),
        true => IpAddr::from([0x2001, 0xdb8, site, 0, 0, 0, 0, link.into()]),
    }
}

/// Whose address that is: site and link.
pub fn owner_of(ip: IpAddr) -> Option<(usize, usize)> {
    match ip {
        IpAddr::V4(ip) => match ip.octets() {
            [100, high @ 64..128, low, link] if link > 0 => {
                Some((u16::from_be_bytes([high - 64, low]).into(), usize::from(link) - 1))
            }
            _ => None,
        },
        IpAddr::V6(ip) => match ip.segments() {
            [0x2001, 0xdb8, site, .., link] if link > 0 => Some((site.into(), usize::from(link) - 1)),
            _ => None,
        },
    }
}

/// Which of `queues` queues a kernel puts datagrams from there into.
fn queue_of(from: SocketAddr, queues: usize) -> usize {
    let ip = match from.ip() {
        IpAddr::V4(ip) => u64::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip) as u64,
    };
    (Seeded(ip ^ u64::from(from.port()) << 32).word() % queues as u64) as usize
}

fn put(port: &mut LoopbackPort, bytes: &[u8], outer: Outer, frames: &mut FrameCache) -> bool {
    let Some(mut frame) = frames.alloc_for(bytes.len()) else {
        return false;
    };
    frame.append(bytes.len()).copy_from_slice(bytes);
    *frame.outer_mut() = outer;
    let mut burst = Burst::new();
    burst.push(frame);
    let refused = port.counters().tx_no_buffer.get();
    port.tx_burst(frames, &mut burst).is_ok() && port.counters().tx_no_buffer.get() == refused
}

impl Routes {
    fn new(workers: usize, rng: &mut Seeded) -> (Routes, Vec<Router>) {
        let keys = [(); 7].map(|()| rng.word());
        let (domain, readers) = Domain::new(workers);
        let plan = snapshot::Plan {
            epoch: 1,
            lans: vec![true],
            spread_over: workers,
            ..snapshot::Plan::default()
        };
        let snapshot = Snapshot::compile(&plan, HashKeys::new(keys)).expect("a plan without groups");
        let (publisher, published) = publish(&domain, Box::new(snapshot));
        let limits = fib::Limits {
            routes: 64,
            nodes: 512,
        };
        let v4 = FibWriterV4::new(&domain, limits).expect("memory");
        let v6 = FibWriterV6::new(&domain, limits).expect("memory");
        let routers = readers.into_iter().map(|reader| {
            let rules = Rules {
                snapshot: published.clone(),
                v4: Arc::clone(v4.fib()),
                v6: Arc::clone(v6.fib()),
                reader,
            };
            Router::new(FLOWS, HashKeys::new(keys), rules).expect("memory")
        });
        let routers = routers.collect();
        let routes = Routes {
            domain,
            publisher,
            v4,
            v6,
            keys,
            epoch: 1,
            known: BTreeMap::new(),
        };
        (routes, routers)
    }

    /// Group N + 1 leads to site N: its own LAN, or the tunnel of that peer.
    fn publish(
        &mut self,
        own: usize,
        mtu: usize,
        peers: &BTreeMap<usize, PeerId>,
        claims: &BTreeMap<Net, usize>,
        workers: usize,
    ) {
        let last = peers.keys().copied().max().unwrap_or(0).max(own);
        let hop = |site: usize| Hop {
            exit: match peers.get(&site) {
                _ if site == own => Exit::Lan(0, Some(LAN_ADDRESSES)),
                Some(&id) => Exit::Tunnel(id),
                None => Exit::Discard,
            },
            mtu: if site == own { 9000 } else { mtu as u16 },
        };
        self.epoch += 1;
        let plan = snapshot::Plan {
            epoch: self.epoch,
            groups: (0..=last).map(|site| vec![hop(site)]).collect(),
            lans: vec![true],
            spread_over: workers,
            ..snapshot::Plan::default()
        };
        let snapshot = Snapshot::compile(&plan, HashKeys::new(self.keys)).expect("a plan of known ports");
        self.publisher.replace(&mut self.domain, Box::new(snapshot));
        let wanted = claims
            .iter()
            .map(|(net, site)| (*net, *site))
            .chain([(own as Net, own)]);
        for (net, site) in wanted {
            let group = site as u32 + 1;
            if self.known.insert(net, group) == Some(group) {
                continue;
            }
            let group = Group::new(group).expect("not 0");
            for (prefix, len) in prefixes(net) {
                match prefix {
                    IpAddr::V4(ip) => drop(
                        self.v4
                            .insert(&self.domain, ip.octets(), len, group)
                            .expect("room"),
                    ),
                    IpAddr::V6(ip) => drop(
                        self.v6
                            .insert(&self.domain, ip.octets(), len, group)
                            .expect("room"),
                    ),
                }
            }
        }
    }
}
