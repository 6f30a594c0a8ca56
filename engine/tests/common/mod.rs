//! Sites on a virtual network: real workers on loopback ports, the slow path's core as the engine runs it, and sockets that are queues.
//! One virtual clock and seeded randomness: a test runs the same way each time.
//!
//! The far ends of the ports are the test's: what the driver puts into a TUN's end is what a host sends, what comes out is
//! what a host receives, and datagrams cross [`Net::wire`], which may lose, copy and delay them. [`Net::finish`]
//! checks what must hold whatever was done: every packet is accounted for, no frame and no index is lost, no nonce was used twice.
#![allow(dead_code, reason = "every test binary uses another part")]

pub mod packet;
pub mod port;

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use patronus_crypto::aead::{self, Aead, Job};
use patronus_crypto::messages::{self, DATA_MIN, DataHeader, HEADER, Kind, TAG};
use patronus_crypto::{Device, Duration, Limits, Now, PeerId, PublicKey, Random, Time, WallClock, x25519};
use patronus_engine::channel::{Command, Notice, ToSlowPath};
use patronus_engine::clock::Clock;
use patronus_engine::crew::Crew;
use patronus_engine::crew::Places;
use patronus_engine::log::{Level, Log};
use patronus_engine::slowpath::{Core, CoreParts, Sockets, Workers, peer_numbers};
use patronus_engine::stats::{DropReason, Stage};
use patronus_engine::uapi::{AllowedIpChange, SetPeer, SetRequest};
use patronus_engine::wg::Wg;
use patronus_engine::worker::{IdleLadder, LanPort, Parts, Worker};
use patronus_io::Port;
use patronus_io::loopback::LoopbackPort;
use patronus_mem::{Arena, ArenaConfig, Burst, FrameCache, Outer, Secret};

/// The virtual clock starts here: long after boot, so that subtraction has room.
pub const START: Time = Time::from_secs(1_000_000);
/// The wall clock at [`START`].
const WALL: u64 = 1_780_000_000;
/// Outer DSCP and ECN of handshake messages.
pub const HANDSHAKE_TOS: u8 = 0x88;
/// What keys are hidden behind where a test keeps a copy, so that a search of the memory does not find that.
pub const MASK: u8 = 0xa5;
/// Most payload of a datagram over IPv4.
const UDP_MAX: usize = 65535 - 20 - 8;
/// Datagrams that arrive at a time, so that they find frames.
const LANDING: usize = 256;
/// Turns after which sites that still have something to do never come to rest.
const RESTLESS: usize = 20_000;

pub const A: usize = 0;
pub const B: usize = 1;
pub const C: usize = 2;

pub fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Random bytes that a seed determines (SplitMix64).
#[derive(Clone)]
pub struct Seeded(pub u64);

impl Random for Seeded {
    fn fill(&mut self, buf: &mut [u8]) {
        for chunk in buf.chunks_mut(8) {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            chunk.copy_from_slice(&z.to_le_bytes()[..chunk.len()]);
        }
    }
}

impl Seeded {
    /// A number from `range`.
    pub fn pick(&mut self, range: std::ops::Range<usize>) -> usize {
        range.start + self.below((range.end - range.start) as u32) as usize
    }

    /// True `percent` times in a hundred.
    pub fn chance(&mut self, percent: u32) -> bool {
        self.below(100) < percent
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.fill(&mut bytes);
        bytes
    }
}

/// The private key of a site.
fn private_key(seed: u64) -> Secret<32> {
    Secret::with(|key| Seeded(seed.wrapping_mul(0x1234_5678_9abc_def1)).fill(key))
}

/// The virtual clock.
#[derive(Clone)]
pub struct VirtualClock(Arc<AtomicU64>);

impl Clock for VirtualClock {
    fn mono(&self) -> Time {
        Time(self.0.load(Ordering::Relaxed))
    }

    fn now(&self) -> Now {
        now_at(self.mono())
    }
}

fn now_at(mono: Time) -> Now {
    let since = mono.since(START);
    let wall = WallClock {
        secs: WALL + since.as_secs(),
        nanos: since.subsec_nanos(),
    };
    Now { mono, wall }
}

/// Arenas live for ever, so tests of one process use them one after another.
static ARENAS: Mutex<Vec<&'static Arena>> = Mutex::new(Vec::new());

fn borrow_arena() -> &'static Arena {
    let free = ARENAS.lock().unwrap().pop();
    free.unwrap_or_else(|| {
        let config = ArenaConfig {
            frames: FRAMES.load(Ordering::Relaxed),
            jumbo_frames: 64,
        };
        Arena::new(&config).unwrap()
    })
}

/// Frames of an arena that is made from now on.
pub static FRAMES: AtomicUsize = AtomicUsize::new(4096);

/// How a site is made.
#[derive(Clone)]
pub struct Setup {
    pub workers: usize,
    pub mtu: usize,
    /// Packets of all peers that may wait in one worker.
    pub staged_limit: usize,
    pub max_peers: usize,
    pub limits: Limits,
    pub aead: &'static dyn Aead,
    /// Packets that each loopback port holds in each direction.
    pub ring: usize,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            workers: 1,
            mtu: 1420,
            staged_limit: 1024,
            max_peers: 16,
            limits: Limits::default(),
            aead: aead::default(),
            ring: 1024,
        }
    }
}

/// A datagram on its way or delivered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Datagram {
    pub at: Time,
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub tos: u8,
    pub bytes: Vec<u8>,
}

impl Datagram {
    pub fn kind(&self) -> Kind {
        messages::kind(&self.bytes).expect("sites send nothing malformed")
    }

    pub fn is_keepalive(&self) -> bool {
        self.kind() == Kind::Data && self.bytes.len() == DATA_MIN
    }

    /// A data message that carries a packet.
    pub fn is_data(&self) -> bool {
        self.kind() == Kind::Data && !self.is_keepalive()
    }

    pub fn header(&self) -> DataHeader {
        assert_eq!(self.kind(), Kind::Data);
        DataHeader::read(self.bytes.first_chunk().unwrap())
    }
}

/// A session that a site has or had, with its keys, so that a test can speak for the other side.
#[derive(Clone)]
pub struct SessionKeys {
    pub peer: PeerId,
    pub local_index: u32,
    pub remote_index: u32,
    pub initiator: bool,
    /// Behind [`MASK`].
    pub send: [u8; 32],
    /// Behind [`MASK`].
    pub receive: [u8; 32],
}

/// What went into and came out of a site's ports, as seen from outside.
#[derive(Default, Clone, Copy, Debug)]
pub struct Counts {
    pub tun_in: u64,
    pub tun_out: u64,
    pub wan_in: u64,
    pub wan_out: u64,
    /// Keepalives among `wan_out`.
    pub keepalives_out: u64,
    /// Messages that reached the slow path, among `wan_in`.
    pub handshakes: u64,
    /// Datagrams that were in a socket's queue when it was closed, among `wan_in`.
    pub closed: u64,
}

/// What the workers told the slow path, by kind.
#[derive(Default, Clone, Copy, PartialEq, Eq, Debug)]
pub struct Noticed {
    pub want_handshake: u64,
    pub confirmed: u64,
    pub watch: u64,
    pub endpoint: u64,
    pub retired: u64,
    pub slots: u64,
}

type Outbox = Arc<Mutex<Vec<(Outer, Vec<u8>)>>>;

/// A link's sockets: a loopback port for each worker, and where handshake messages are left.
pub struct Queues {
    ports: Vec<Option<Box<dyn Port + Send>>>,
    outbox: Outbox,
}

impl Sockets for Queues {
    fn worker_port(&mut self, worker: usize) -> Box<dyn Port + Send> {
        self.ports[worker].take().expect("asked for once")
    }

    fn send(&self, outer: &Outer, datagram: &[u8]) -> std::io::Result<()> {
        self.outbox.lock().unwrap().push((*outer, datagram.to_vec()));
        Ok(())
    }
}

/// One engine.
pub struct Site {
    pub number: usize,
    pub addr: SocketAddr,
    pub core: Core<Queues>,
    pub workers: Vec<Worker>,
    pub inbox: Arc<ToSlowPath>,
    /// What came out of the TUN, in order.
    pub delivered: Vec<Vec<u8>>,
    pub sessions: Vec<SessionKeys>,
    pub counts: Counts,
    pub noticed: Noticed,
    pub up: bool,
    /// Calls the driver leaves out, so that a test has them to itself.
    pub slow_path_asleep: bool,
    /// Where the next session goes instead of to its worker.
    pub hold_install: Option<Arc<Mutex<Option<Command>>>>,
    /// Handshake messages that the slow path has sent and the network has not seen yet.
    outbox: Outbox,
    hosts: Vec<LoopbackPort>,
    wans: Vec<LoopbackPort>,
    ring: usize,
}

impl Site {
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.workers.iter().map(|w| w.stats().dropped(reason)).sum()
    }

    /// Every reason for which packets were dropped, and how many.
    pub fn drops(&self) -> Vec<(DropReason, u64)> {
        let all = DropReason::ALL.iter().map(|&r| (r, self.dropped(r)));
        all.filter(|&(_, n)| n > 0).collect()
    }

    pub fn stage(&self, stage: Stage) -> u64 {
        self.workers
            .iter()
            .map(|w| w.stats().stage(stage).packets.get())
            .sum()
    }

    pub fn staged(&self) -> usize {
        self.workers.iter().map(|w| w.wg().staged()).sum()
    }

    pub fn keepalives_received(&self) -> u64 {
        self.workers
            .iter()
            .map(|w| w.stats().keepalives_received.get())
            .sum()
    }

    pub fn icmp_sent(&self) -> u64 {
        self.workers.iter().map(|w| w.stats().icmp_sent.get()).sum()
    }

    /// Fragments beyond the first of each packet that was cut up.
    pub fn cut_off(&self) -> u64 {
        let stats = self.workers.iter().map(Worker::stats);
        stats
            .map(|stats| stats.fragments.get() - stats.fragmented.get())
            .sum()
    }

    /// Where the peer is, as the slow path knows it.
    pub fn endpoint(&self, peer: PeerId) -> Option<SocketAddr> {
        self.outer(peer).remote()
    }

    /// Where the peer is, and from which of our addresses it is answered.
    pub fn outer(&self, peer: PeerId) -> Outer {
        self.core.peer(peer).expect("a peer of this site").endpoint
    }

    /// Carries out a request of the configuration's.
    pub fn set(&mut self, request: SetRequest) {
        self.core.check_room(&request).expect("there is room");
        self.core.apply(request);
    }

    /// Changes a peer.
    pub fn set_peer(&mut self, peer: PeerId, change: impl FnOnce(&mut SetPeer)) {
        let key = self.core.peer(peer).expect("a peer of this site").key;
        self.set_peer_of(key, change);
    }

    fn set_peer_of(&mut self, key: PublicKey, change: impl FnOnce(&mut SetPeer)) {
        let mut peer = SetPeer::new(key);
        change(&mut peer);
        let peers = vec![peer];
        self.set(SetRequest {
            peers,
            ..SetRequest::default()
        });
    }

    /// New sockets, one for each worker.
    fn open(&mut self) {
        let pairs = (0..self.workers.len()).map(|_| LoopbackPort::pair(self.ring));
        let (near, far): (Vec<_>, Vec<_>) = pairs.unzip();
        self.wans = far;
        let boxed = |port| Some(Box::new(port) as Box<dyn Port + Send>);
        self.open_with(near.into_iter().map(boxed).collect());
    }

    fn open_with(&mut self, ports: Vec<Option<Box<dyn Port + Send>>>) {
        let outbox = Arc::clone(&self.outbox);
        self.core.open_link(0, 0, Queues { ports, outbox });
        self.core.begin_if_open();
    }

    /// Notes sessions on their way to the workers, and keeps the next one back if a test wants it.
    fn tap(&mut self) {
        for worker in &self.workers {
            let commands = &worker.inbox().commands;
            for _ in 0..commands.len() {
                let command = commands.pop().expect("nobody else takes any");
                if let Command::Install(keypair) = &command
                    && !self.sessions.iter().any(|s| s.local_index == keypair.local_index)
                {
                    self.sessions.push(SessionKeys {
                        peer: keypair.peer,
                        local_index: keypair.local_index,
                        remote_index: keypair.remote_index,
                        initiator: keypair.initiator,
                        send: masked(keypair.send_key()),
                        receive: masked(keypair.receive_key()),
                    });
                    if let Some(hold) = self.hold_install.take() {
                        *hold.lock().unwrap() = Some(command);
                        continue;
                    }
                }
                assert!(commands.push(command).is_ok(), "there was room for it");
            }
        }
    }

    /// Whether something is still on its way inside the site.
    fn is_busy(&mut self) -> bool {
        let slow_path = !self.inbox.is_empty();
        let called = self.workers.iter_mut().any(Worker::is_called);
        let unread = self.stage(Stage::LanRx) != self.counts.tun_in
            || self.up && self.stage(Stage::WanRx) + self.counts.closed != self.counts.wan_in;
        let workers = (called || unread) && self.inbox.has_room();
        workers || slow_path && !self.slow_path_asleep
    }

    /// Packets in are packets out, dropped under a name, or still waiting.
    fn check_accounts(&self) {
        let counts = &self.counts;
        let drops: u64 = self.drops().iter().map(|&(_, n)| n).sum();
        let lost_in_ports: u64 = self
            .workers
            .iter()
            .flat_map(Worker::ports)
            .flat_map(|port| port.counters().drops().map(|(_, n)| n).collect::<Vec<_>>())
            .sum();
        let appeared =
            counts.tun_in + counts.wan_in + counts.keepalives_out + self.icmp_sent() + self.cut_off();
        let left = counts.tun_out + counts.wan_out + counts.handshakes + self.keepalives_received();
        let answers = self
            .workers
            .iter()
            .map(|worker| worker.stats().ping_answers_received.get());
        let left = left + answers.sum::<u64>();
        let stayed = self.staged() as u64 + counts.closed + lost_in_ports;
        assert_eq!(
            appeared,
            left + stayed + drops,
            "site {}: {counts:?}, {} staged, {lost_in_ports} lost in ports, dropped: {:?}",
            self.number,
            self.staged(),
            self.drops()
        );
    }
}

/// Decides about a datagram: the delays after which copies of it arrive; none if it is lost.
pub type Wire = Box<dyn FnMut(&Datagram) -> Vec<Duration>>;

/// Sites, the clock, and what is on its way between them.
pub struct Net {
    pub now: Time,
    pub sites: Vec<Site>,
    /// Everything that was sent, lost or not.
    pub log: Vec<Datagram>,
    pub wire: Wire,
    /// Datagrams and the time of their arrival.
    pub flying: Vec<(Time, Datagram)>,
    pub arena: &'static Arena,
    /// Keep copies of datagrams in `log`; off for long runs.
    pub logging: bool,
    clock: Arc<AtomicU64>,
    pub frames: FrameCache,
    /// Receiver's address, index and counter of every data message: a pair of key and nonce.
    nonces: HashSet<(SocketAddr, u32, u64)>,
    finished: bool,
}

/// A wire on which everything arrives, in order.
pub fn perfect(latency: Duration) -> Wire {
    Box::new(move |_| vec![latency])
}

impl Net {
    pub fn empty() -> Net {
        let arena = borrow_arena();
        Net {
            now: START,
            sites: Vec::new(),
            log: Vec::new(),
            wire: perfect(ms(20)),
            flying: Vec::new(),
            arena,
            logging: true,
            clock: Arc::new(AtomicU64::new(START.0)),
            frames: FrameCache::new(arena),
            nonces: HashSet::new(),
            finished: false,
        }
    }

    /// Two sites that know each other, both up.
    pub fn pair() -> Net {
        Net::pair_with(&Setup::default())
    }

    pub fn pair_with(setup: &Setup) -> Net {
        let mut net = Net::empty();
        net.add_site(setup);
        net.add_site(setup);
        net.introduce(A, B);
        net.introduce(B, A);
        net
    }

    /// One site in the middle and `branches` around it, which know it and which it knows.
    pub fn star(branches: usize, setup: &Setup) -> Net {
        let mut net = Net::empty();
        net.add_site(setup);
        for branch in 1..=branches {
            net.add_site(&Setup::default());
            net.introduce(A, branch);
            net.introduce(branch, A);
        }
        net
    }

    /// A site without peers, up. Its outer address is 192.0.2.N, its inner networks are 10.N.0.0/16 and fd00:N::/32.
    pub fn add_site(&mut self, setup: &Setup) -> usize {
        let number = self.sites.len();
        let inbox = Arc::new(ToSlowPath::new(setup.workers).unwrap());
        let crews = Crew::assemble(setup.workers).unwrap();
        let inboxes = crews[0].inboxes().to_vec();
        let mut rng = Seeded(1000 + number as u64);
        let (mut hosts, mut workers) = (Vec::new(), Vec::new());
        for crew in crews {
            let (tun, host) = LoopbackPort::pair(setup.ring);
            workers.push(Worker::new(Parts {
                wg: Wg::new(
                    setup.aead,
                    peer_numbers(setup.max_peers),
                    setup.mtu,
                    setup.staged_limit,
                ),
                lans: vec![Some(LanPort {
                    port: Box::new(tun),
                    ethernet: false,
                })],
                wans: vec![None],
                router: None,
                frames: FrameCache::new(self.arena),
                crew,
                stats: Default::default(),
                slow: Arc::clone(&inbox),
                clock: Box::new(VirtualClock(Arc::clone(&self.clock))),
                idle: IdleLadder { spin: secs(0) },
            }));
            hosts.push(host);
        }
        let limits = Limits {
            max_peers: peer_numbers(setup.max_peers) as u32,
            ..setup.limits
        };
        let device = Device::new(limits, x25519::default(), now_at(self.now), &mut rng);
        let mut core = Core::new(CoreParts {
            device,
            inbox: Arc::clone(&inbox),
            workers: Workers::new(&inboxes, Vec::new()),
            clock: Box::new(VirtualClock(Arc::clone(&self.clock))),
            random: Box::new(rng),
            log: Log::new("test", Level::Silent),
            max_peers: setup.max_peers,
            links: 1,
        });
        core.set_private_key(Some(private_key(number as u64 + 1)));
        let mut site = Site {
            number,
            addr: SocketAddr::new(IpAddr::from([192, 0, 2, number as u8 + 1]), 51820),
            core,
            workers,
            inbox,
            delivered: Vec::new(),
            sessions: Vec::new(),
            counts: Counts::default(),
            noticed: Noticed::default(),
            up: true,
            slow_path_asleep: false,
            hold_install: None,
            outbox: Outbox::default(),
            hosts,
            wans: Vec::new(),
            ring: setup.ring,
        };
        site.open();
        self.sites.push(site);
        number
    }

    /// Makes site `to` a peer of `site`, with its endpoint and its inner networks.
    pub fn introduce(&mut self, site: usize, to: usize) -> PeerId {
        let (key, addr) = (self.key(to), self.sites[to].addr);
        let peer = self.add_peer(site, key, Some(addr));
        let number = to as u8;
        self.allow(site, peer, IpAddr::from([10, number, 0, 0]), 16);
        self.allow(
            site,
            peer,
            IpAddr::from([0xfd00, u16::from(number), 0, 0, 0, 0, 0, 0]),
            32,
        );
        peer
    }

    pub fn key(&self, site: usize) -> PublicKey {
        self.sites[site].core.device().public_key().unwrap()
    }

    pub fn add_peer(&mut self, site: usize, key: PublicKey, endpoint: Option<SocketAddr>) -> PeerId {
        let site = &mut self.sites[site];
        assert_eq!(site.core.device().peer(&key), None);
        site.set_peer_of(key, |change| change.endpoint = endpoint);
        site.core.device().peer(&key).expect("there was room")
    }

    pub fn remove_peer(&mut self, site: usize, peer: PeerId) {
        self.sites[site].set_peer(peer, |change| change.remove = true);
    }

    /// Gives a prefix to a peer.
    pub fn allow(&mut self, site: usize, peer: PeerId, addr: IpAddr, cidr: u8) {
        let remove = false;
        self.sites[site].set_peer(peer, |change| {
            change.allowed_ips.push(AllowedIpChange { addr, cidr, remove })
        });
    }

    /// The peer of `site` that is site `other`.
    pub fn peer(&self, site: usize, other: usize) -> PeerId {
        self.sites[site].core.device().peer(&self.key(other)).unwrap()
    }

    /// A command to the worker of `peer`, which obeys it in its next turn.
    pub fn command(&mut self, site: usize, peer: PeerId, command: Command) {
        let workers = &self.sites[site].workers;
        let inbox = workers[Places::default().owner(peer, workers.len())].inbox();
        assert!(inbox.commands.push(command).is_ok(), "the queue is full");
    }

    /// Puts a packet into a TUN queue of the site.
    pub fn offer_on(&mut self, site: usize, queue: usize, packet: &[u8]) {
        let mut frame = self.frames.alloc_for(packet.len()).expect("a frame");
        frame.append(packet.len()).copy_from_slice(packet);
        let mut burst = Burst::new();
        burst.push(frame);
        let site = &mut self.sites[site];
        site.hosts[queue].tx_burst(&mut self.frames, &mut burst).unwrap();
        assert_eq!(
            site.hosts[queue].counters().tx_no_buffer.get(),
            0,
            "the TUN queue is full"
        );
        site.counts.tun_in += 1;
    }

    /// Puts a packet into the first TUN queue.
    pub fn offer(&mut self, site: usize, packet: &[u8]) {
        self.offer_on(site, 0, packet);
    }

    /// Sends a packet from the host behind `site`, and lets everything happen that happens at once.
    pub fn send(&mut self, site: usize, packet: &[u8]) {
        self.offer(site, packet);
        self.settle();
    }

    /// Puts a datagram into a socket of the site, as if it had just arrived. Nobody looks at it before the next [`settle`](Net::settle).
    pub fn inject_on(&mut self, site: usize, queue: usize, datagram: &Datagram) {
        let mut frame = self.frames.alloc_for(datagram.bytes.len()).expect("a frame");
        frame
            .append(datagram.bytes.len())
            .copy_from_slice(&datagram.bytes);
        let mut outer = Outer::new(datagram.from);
        outer.set_local(Some(datagram.to.ip()), 1);
        outer.set_tos(datagram.tos);
        *frame.outer_mut() = outer;
        let mut burst = Burst::new();
        burst.push(frame);
        let site = &mut self.sites[site];
        site.wans[queue].tx_burst(&mut self.frames, &mut burst).unwrap();
        assert_eq!(
            site.wans[queue].counters().tx_no_buffer.get(),
            0,
            "the socket is full"
        );
        site.counts.wan_in += 1;
    }

    /// Hands bytes to a site as a datagram from `from`, and lets everything happen that happens at once.
    pub fn inject(&mut self, site: usize, from: SocketAddr, bytes: &[u8]) {
        let datagram = Datagram {
            at: self.now,
            from,
            to: self.sites[site].addr,
            tos: 0,
            bytes: bytes.to_vec(),
        };
        self.inject_on(site, 0, &datagram);
        self.settle();
    }

    /// A data message as the peer of that session would send it to `site`. `text` is sealed as it is, without padding.
    pub fn forge(&self, site: usize, session: usize, counter: u64, text: &[u8]) -> Vec<u8> {
        let session = &self.sites[site].sessions[session];
        seal(&session.receive, session.local_index, counter, text)
    }

    /// The plaintext, padding included, of a data message that `site` sent in one of its sessions.
    pub fn reveal(&self, site: usize, datagram: &Datagram) -> Vec<u8> {
        let header = datagram.header();
        let session = self.sites[site]
            .sessions
            .iter()
            .find(|s| s.remote_index == header.receiver)
            .expect("a session of this site");
        let mut text = datagram.bytes[HEADER..].to_vec();
        let key = unmasked(&session.send);
        let mut jobs = [Job::new(&key, header.counter, &mut text)];
        aead::default().open(&mut jobs);
        assert!(jobs[0].ok, "sealed under the session's key");
        text.truncate(text.len() - TAG);
        text
    }

    /// What a site sent, in order.
    pub fn sent(&self, site: usize) -> impl Iterator<Item = &Datagram> {
        let from = self.sites[site].addr;
        self.log.iter().filter(move |d| d.from == from)
    }

    pub fn count(&self, site: usize, kind: Kind) -> usize {
        self.sent(site).filter(|d| d.kind() == kind).count()
    }

    /// Takes what was delivered to the host behind `site`.
    pub fn delivered(&mut self, site: usize) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.sites[site].delivered)
    }

    /// Sets up a session between A and B that both sides may use, with A as its initiator.
    pub fn connect(&mut self) {
        let hello = packet::between(A, B, 0xffff, 100);
        self.send(A, &hello);
        self.run(ms(200));
        assert_eq!(self.delivered(B), [hello]);
        self.log.clear();
    }

    /// Asks for a handshake with the only peer of `site`, as a worker would.
    pub fn want_handshake(&mut self, site: usize) {
        let peer = self.sites[site].core.peers().next().unwrap().0;
        self.sites[site].core.hear(Notice::WantHandshake(peer));
        self.settle();
    }

    /// Brings the interface up or down.
    pub fn set_up(&mut self, site: usize, up: bool) {
        let this = &mut self.sites[site];
        this.up = up;
        if up {
            this.open();
        } else {
            this.core.end();
        }
        self.settle();
    }

    /// Gives the only worker of `site` another socket, whose far end is `wan`.
    pub fn replace_wan(&mut self, site: usize, udp: Box<dyn Port + Send>, wan: LoopbackPort) {
        let this = &mut self.sites[site];
        assert_eq!(this.workers.len(), 1);
        this.wans = vec![wan];
        this.open_with(vec![Some(udp)]);
        self.settle();
    }

    pub fn advance(&mut self, d: Duration) {
        self.now = self.now.after(d);
        self.clock.store(self.now.0, Ordering::Relaxed);
    }

    /// Runs for `d`.
    pub fn run(&mut self, d: Duration) {
        let end = self.now.after(d);
        self.settle();
        loop {
            let landing = self.flying.iter().map(|(at, _)| *at).min();
            let awake = self.sites.iter().filter(|s| !s.slow_path_asleep);
            let deadline = awake.filter_map(|s| s.core.next_deadline()).min();
            match landing.into_iter().chain(deadline).min() {
                Some(next) if next <= end => {
                    self.advance(next.since(self.now));
                    self.settle();
                }
                _ => break,
            }
        }
        self.advance(end.since(self.now));
    }

    /// Does everything that is due now, until nothing is left to do.
    pub fn settle(&mut self) {
        for _ in 0..RESTLESS {
            let mut busy = self.land();
            for site in 0..self.sites.len() {
                busy |= self.turn(site);
            }
            if !busy {
                return;
            }
        }
        panic!("the sites never come to rest");
    }

    /// One turn of the site's slow path and of each of its workers. True if there was or is something to do.
    pub fn turn(&mut self, site: usize) -> bool {
        let mut busy = false;
        if !self.sites[site].slow_path_asleep {
            busy |= self.take_notices(site) | self.take_handshakes(site);
            let core = &mut self.sites[site].core;
            core.run_timers();
            busy |= !core.flush();
        }
        self.hand_out(site);
        self.sites[site].tap();
        let now = self.now;
        for worker in &mut self.sites[site].workers {
            assert!(worker.step(now), "no worker ends by itself");
        }
        busy | self.collect(site) | self.sites[site].is_busy()
    }

    /// What the slow path does while the workers run elsewhere, and what the world outside sees of them.
    pub fn slow_turn(&mut self, site: usize) {
        self.take_notices(site);
        self.take_handshakes(site);
        self.sites[site].core.flush();
        self.hand_out(site);
        self.collect(site);
    }

    /// Puts what has arrived into the sockets.
    fn land(&mut self) -> bool {
        let now = self.now;
        // In the order of arrival; of what arrives at the same time, in the order of sending.
        let mut landed: Vec<_> = self.flying.extract_if(.., |(at, _)| *at <= now).collect();
        landed.sort_by_key(|(at, _)| *at);
        let later = landed.split_off(landed.len().min(LANDING));
        self.flying.splice(0..0, later);
        for (_, datagram) in &landed {
            let to = self.sites.iter().position(|s| s.addr == datagram.to && s.up);
            if let Some(to) = to.filter(|_| datagram.bytes.len() <= UDP_MAX) {
                let queue = packet::hash(datagram.from) % self.sites[to].workers.len();
                self.inject_on(to, queue, datagram);
            }
        }
        !landed.is_empty()
    }

    /// Puts a datagram onto the wire.
    pub fn transmit(&mut self, datagram: Datagram) {
        if datagram.kind() == Kind::Data {
            let DataHeader { receiver, counter } = datagram.header();
            let fresh = self.nonces.insert((datagram.to, receiver, counter));
            assert!(fresh, "index {receiver:#x} and counter {counter} were used twice");
        }
        for delay in (self.wire)(&datagram) {
            self.flying.push((self.now.after(delay), datagram.clone()));
        }
        if self.logging {
            self.log.push(datagram);
        }
    }

    /// Takes what the workers gave to their ports.
    fn collect(&mut self, number: usize) -> bool {
        let mut sent = Vec::new();
        let site = &mut self.sites[number];
        let mut burst = Burst::new();
        for host in &mut site.hosts {
            while host.rx_burst(&mut self.frames, &mut burst).unwrap() > 0 {
                site.counts.tun_out += burst.len() as u64;
                site.delivered.extend(burst.iter().map(|p| p.data().to_vec()));
                burst.clear_into(&mut self.frames);
            }
        }
        for wan in &mut site.wans {
            while wan.rx_burst(&mut self.frames, &mut burst).unwrap() > 0 {
                site.counts.wan_out += burst.len() as u64;
                for packet in burst.iter() {
                    let outer = packet.outer();
                    sent.push(Datagram {
                        at: self.now,
                        from: site.addr,
                        to: outer.remote().expect("nothing is sent to nowhere"),
                        tos: outer.tos(),
                        bytes: packet.data().to_vec(),
                    });
                }
                burst.clear_into(&mut self.frames);
            }
        }
        let keepalives = sent.iter().filter(|d| d.is_keepalive()).count();
        site.counts.keepalives_out += keepalives as u64;
        let busy = !sent.is_empty();
        sent.into_iter().for_each(|datagram| self.transmit(datagram));
        busy
    }

    fn take_notices(&mut self, number: usize) -> bool {
        let mut busy = false;
        let site = &mut self.sites[number];
        while let Some(notice) = site.inbox.notices.pop() {
            busy = true;
            let noticed = &mut site.noticed;
            match &notice {
                Notice::WantHandshake(_) => noticed.want_handshake += 1,
                Notice::KeyConfirmed(_) => noticed.confirmed += 1,
                Notice::Watch(_) => noticed.watch += 1,
                Notice::Endpoint(..) => noticed.endpoint += 1,
                Notice::Retired(_) => noticed.retired += 1,
                Notice::Slot(_) => noticed.slots += 1,
                _ => {}
            }
            match site.core.hear(notice) {
                None => {}
                Some(Notice::Wan(mut port)) => {
                    let mut burst = Burst::new();
                    while port.rx_burst(&mut self.frames, &mut burst).unwrap() > 0 {
                        site.counts.closed += burst.len() as u64;
                        burst.clear_into(&mut self.frames);
                    }
                }
                Some(_) => panic!("a loopback TUN is never gone"),
            }
        }
        busy
    }

    fn take_handshakes(&mut self, number: usize) -> bool {
        let site = &mut self.sites[number];
        let taken = site.core.take_handshakes();
        site.counts.handshakes += taken as u64;
        taken > 0
    }

    /// Puts onto the wire what the slow path has sent.
    fn hand_out(&mut self, number: usize) {
        let sent = std::mem::take(&mut *self.sites[number].outbox.lock().unwrap());
        for (outer, bytes) in sent {
            self.transmit(Datagram {
                at: self.now,
                from: self.sites[number].addr,
                to: outer.remote().expect("nothing is sent to nowhere"),
                tos: outer.tos(),
                bytes,
            });
        }
    }

    /// Checks what must hold at the end of every test: packets in are packets out, dropped under a name or staged; when every
    /// peer is removed no index is left, and when everything is dropped every frame is back.
    pub fn finish(mut self) {
        self.finished = true;
        self.flying.clear();
        for site in &mut self.sites {
            site.slow_path_asleep = false;
        }
        self.settle();
        self.flying.clear();
        self.wire = Box::new(|_| Vec::new());
        for number in 0..self.sites.len() {
            self.sites[number].check_accounts();
            let peers: Vec<_> = self.sites[number].core.peers().map(|(id, _)| id).collect();
            peers.into_iter().for_each(|peer| self.remove_peer(number, peer));
            self.settle();
            let site = &self.sites[number];
            site.check_accounts();
            assert_eq!(site.staged(), 0, "a removed peer's packets do not wait");
            assert_eq!(
                site.core.device().indices_in_use(),
                0,
                "every index is free again"
            );
        }
        let arena = self.arena;
        drop(self);
        assert_eq!(arena.free_frames(), arena.frames(), "every frame is back");
        ARENAS.lock().unwrap().push(arena);
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        assert!(
            self.finished || std::thread::panicking(),
            "a test ends with Net::finish"
        );
    }
}

fn masked(key: &Secret<32>) -> [u8; 32] {
    std::array::from_fn(|n| key[n] ^ MASK)
}

fn unmasked(key: &[u8; 32]) -> Secret<32> {
    Secret::with(|out| {
        for (out, byte) in out.iter_mut().zip(key) {
            *out = byte ^ MASK;
        }
    })
}

/// A data message under a masked key.
pub fn seal(key: &[u8; 32], receiver: u32, counter: u64, text: &[u8]) -> Vec<u8> {
    let mut datagram = vec![0; HEADER + text.len() + TAG];
    let (header, sealed) = datagram.split_first_chunk_mut::<HEADER>().unwrap();
    DataHeader { receiver, counter }.write(header);
    sealed[..text.len()].copy_from_slice(text);
    let key = unmasked(key);
    let mut jobs = [Job::new(&key, counter, sealed)];
    aead::default().seal(&mut jobs);
    assert!(jobs[0].ok);
    datagram
}
