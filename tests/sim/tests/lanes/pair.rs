//! Two sites and the links between them, whose delays, cuts and NATs a test decides.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixDatagram;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use patronus_crypto::messages::{self, Kind as Message};
use patronus_crypto::{Duration, LinkId, PeerId, Tag as LaneTag, Time};
use patronus_engine::channel::HANDSHAKE_QUEUE;
use patronus_engine::log::{Level, Log};
use patronus_engine::probe::Probing;
use patronus_engine::remote::message::LinkInfo;
use patronus_io::ip::{IPV4_HEADER, PROTO_ICMP};
use patronus_mem::{Arena, ArenaConfig, FrameCache};
use patronus_sim::START;
use patronus_sim::clock::VirtualClock;
use patronus_sim::network::Datagram;
use patronus_sim::packet::{self, Known, Tag, Way};
use patronus_sim::rng::Seeded;
use patronus_sim::site::{PeerPlan, Site, SitePlan, UDP_PORT, own_address, owner_of, private_key};

pub const A: usize = 0;
pub const B: usize = 1;
/// UDP port that a NAT gives out first.
const NAT_PORT: u16 = 40_000;

pub fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// What a site is in one of these tests.
#[derive(Clone)]
pub struct Kind {
    pub workers: usize,
    /// Group of each link, and whether it is behind a NAT.
    pub links: Vec<(u8, bool)>,
    /// It knows the other one as a remote.
    pub remote: bool,
    /// Peers that it may have.
    pub peers: usize,
    /// How often it probes paths.
    pub probing: Probing,
}

pub fn kind(workers: usize, links: usize) -> Kind {
    Kind {
        workers,
        links: (0..links).map(|link| (link as u8, false)).collect(),
        remote: true,
        peers: 64,
        probing: Probing {
            interval: ms(500),
            ..Probing::default()
        },
    }
}

/// Whether somebody withholds what a site sends by one of its links.
type Withholds = Box<dyn Fn(usize, usize, &[u8]) -> bool>;

/// Two sites and the links between them.
pub struct Pair {
    pub now: Time,
    pub clock: VirtualClock,
    frames: FrameCache,
    kinds: [Kind; 2],
    pub sites: Vec<Site>,
    flying: Vec<(Time, usize, usize, Datagram)>,
    /// One way, by link of the sender and of the receiver.
    pub delay: Box<dyn Fn(usize, usize) -> Duration>,
    /// Links of site A that lose everything, and say nothing.
    pub dead: BTreeSet<usize>,
    /// Whom a link behind a NAT has sent to.
    mapped: BTreeSet<(usize, usize, SocketAddr)>,
    /// The port that NATs give out.
    nat_port: u16,
    /// Data messages sent, by site and link.
    pub carried: HashMap<(usize, usize), u64>,
    pub delivered: [Vec<Tag>; 2],
    /// The first halves of packets that were cut in two, by site and what their pieces have in common.
    halves: BTreeMap<(usize, [u8; 11]), Vec<u8>>,
    starts: u64,
    log: Log,
    /// What somebody on the way withholds: what a site sends.
    pub withheld: Withholds,
    /// Every initiation that he has heard: to which site, by which of its links.
    pub heard: Vec<(usize, usize, Datagram)>,
}

fn arena() -> &'static Arena {
    static ARENA: OnceLock<&'static Arena> = OnceLock::new();
    ARENA.get_or_init(|| {
        let config = ArenaConfig {
            frames: 1 << 16,
            jumbo_frames: 16,
        };
        Arena::new(&config).unwrap()
    })
}

impl Pair {
    pub fn new(a: Kind, b: Kind) -> Pair {
        Pair::with_log(a, b, Log::new("sim", Level::Silent))
    }

    pub fn with_log(a: Kind, b: Kind, log: Log) -> Pair {
        let mut pair = Pair {
            now: START,
            clock: VirtualClock::new(),
            frames: FrameCache::new(arena()),
            kinds: [a, b],
            sites: Vec::new(),
            flying: Vec::new(),
            delay: Box::new(|_, _| ms(20)),
            dead: BTreeSet::new(),
            mapped: BTreeSet::new(),
            nat_port: NAT_PORT,
            carried: HashMap::new(),
            delivered: [Vec::new(), Vec::new()],
            halves: BTreeMap::new(),
            starts: 0,
            log,
            withheld: Box::new(|_, _, _| false),
            heard: Vec::new(),
        };
        for number in [A, B] {
            let site = pair.start(number);
            pair.sites.push(site);
        }
        for number in [A, B] {
            pair.introduce(number);
        }
        pair
    }

    fn start(&mut self, number: usize) -> Site {
        self.starts += 1;
        let kind = &self.kinds[number];
        let plan = SitePlan {
            number,
            workers: kind.workers,
            links: kind.links.len(),
            mtu: 1420,
            router: false,
            bound: true,
            peers: kind.peers,
            handshakes: HANDSHAKE_QUEUE,
            probing: kind.probing,
        };
        let rng = Seeded(self.starts);
        let key = private_key(7, number);
        let mut site = Site::start_with_log(&plan, key, arena(), &self.clock, rng, self.log.clone());
        for (at, (group, behind_nat)) in kind.links.iter().enumerate() {
            let info = link_info(number, at, *group, *behind_nat);
            site.core.describe_link(at, Some(info));
        }
        site
    }

    /// A link of a site is another one from now on: its traffic costs money.
    pub fn replace_link(&mut self, number: usize, at: usize) {
        let (group, behind_nat) = self.kinds[number].links[at];
        let info = LinkInfo {
            metered: true,
            ..link_info(number, at, group, behind_nat)
        };
        self.sites[number].core.describe_link(at, Some(info));
    }

    pub fn introduce(&mut self, number: usize) {
        let other = 1 - number;
        let key = self.sites[other].core.device().public_key().unwrap();
        // The base session calls the first link that can be called.
        let links = &self.kinds[other].links;
        let callable = links.iter().position(|(_, behind_nat)| !behind_nat);
        let plan = PeerPlan {
            key,
            endpoint: callable.map(|link| SocketAddr::new(own_address(other, link, false), UDP_PORT)),
            psk: [3; 32],
            keepalive: 0,
        };
        let site = &mut self.sites[number];
        site.set_peer(other, &plan);
        site.allow(other, other as u16);
        let id = site.peers[&other];
        if self.kinds[number].remote {
            site.core.make_remote(id);
        }
    }

    pub fn restart(&mut self, number: usize) {
        self.sites[number] = self.start(number);
        self.introduce(number);
        self.mapped.retain(|(site, ..)| *site != number);
    }

    pub fn base(&self, number: usize) -> PeerId {
        self.sites[number].peers[&(1 - number)]
    }

    /// The lanes of a site that have had a handshake since `since`.
    pub fn open_lanes(&self, number: usize, since: Duration) -> BTreeMap<LaneTag, PeerId> {
        let site = &self.sites[number];
        let then = 1_780_000_000 + since.as_secs();
        let is_open = |id: &PeerId| {
            let last = site.core.device().last_handshake(*id);
            last.is_some_and(|at| at.secs >= then)
        };
        site.core
            .lanes(self.base(number))
            .filter(|(_, id)| is_open(id))
            .collect()
    }

    pub fn run(&mut self, d: Duration) {
        let end = self.now.after(d);
        loop {
            self.settle();
            let landing = self.flying.iter().map(|(at, ..)| *at).min();
            let deadlines = self.sites.iter().filter_map(|site| site.core.next_deadline());
            let probes = self.sites.iter().filter_map(Site::worker_deadline);
            let next = landing.into_iter().chain(deadlines).chain(probes).min();
            match next.filter(|next| *next <= end) {
                Some(next) => self.now = self.now.max(next),
                None => break,
            }
            self.clock.set(self.now);
        }
        self.now = end;
        self.clock.set(end);
    }

    fn settle(&mut self) {
        for _ in 0..10_000 {
            let mut busy = self.land();
            for number in [A, B] {
                let before = self.sites[number].pulse();
                for worker in 0..self.sites[number].workers.len() {
                    assert!(self.sites[number].worker_turn(worker, self.now));
                }
                self.sites[number].slow_turn(&mut self.frames).unwrap();
                busy |= self.collect(number) || self.sites[number].pulse() != before;
            }
            if !busy {
                return;
            }
        }
        panic!("the sites never come to rest");
    }

    fn collect(&mut self, number: usize) -> bool {
        for packet in self.sites[number].delivered(&mut self.frames).unwrap() {
            if let Some(answer) = answer_to_ping(&packet) {
                assert!(self.sites[number].offer(0, &answer, &mut self.frames));
                continue;
            }
            let Some(packet) = self.whole(number, packet) else {
                continue;
            };
            match packet::recognize(&packet) {
                Known::Tagged(tag) => self.delivered[number].push(tag),
                other => panic!("{other:?}"),
            }
        }
        let sent = self.sites[number].sent(&mut self.frames);
        let some = !sent.is_empty();
        for sent in sent {
            let to = sent.outer.remote().expect("an address");
            let mut from = SocketAddr::new(own_address(number, sent.link, false), UDP_PORT);
            if self.kinds[number].links[sent.link].1 {
                self.mapped.insert((number, sent.link, to));
                from.set_port(self.nat_port);
            }
            if sent.bytes[0] == 4 {
                *self.carried.entry((number, sent.link)).or_default() += 1;
            }
            let (other, link) = owner_of(to.ip()).expect("an address of a site");
            let behind_nat = self.kinds[other].links[link].1;
            let passes_nat =
                !behind_nat || to.port() == self.nat_port && self.mapped.contains(&(other, link, from));
            let link_of_a = if number == A { sent.link } else { link };
            if !passes_nat || self.dead.contains(&link_of_a) {
                continue;
            }
            let datagram = Datagram {
                from,
                to,
                tos: sent.outer.tos(),
                bytes: sent.bytes,
                genuine: true,
            };
            if messages::kind(&datagram.bytes) == Ok(Message::Initiation) {
                self.heard.push((other, link, datagram.clone()));
            }
            if (self.withheld)(number, sent.link, &datagram.bytes) {
                continue;
            }
            let at = self.now.after((self.delay)(sent.link, link));
            self.flying.push((at, other, link, datagram));
        }
        some
    }

    /// A packet, or of one that was cut in two what both make together, once there are both.
    fn whole(&mut self, site: usize, packet: Vec<u8>) -> Option<Vec<u8>> {
        let Some(half) = packet::fragment(&packet) else {
            return Some(packet);
        };
        let of = (site, half.whole);
        if half.offset == 0 {
            assert!(!half.last && self.halves.insert(of, half.payload.to_vec()).is_none());
            return None;
        }
        let mut payload = self.halves.remove(&of).expect("the first half comes first");
        assert!(half.last && half.offset == payload.len());
        payload.extend(half.payload);
        Some(packet::put_together(half.header, &payload))
    }

    /// NATs forget whom they let in, and give out another port.
    pub fn rebind(&mut self) {
        self.mapped.clear();
        self.nat_port += 1;
    }

    /// Delivers what somebody has heard.
    pub fn repeat(&mut self, (site, link, datagram): (usize, usize, Datagram)) {
        self.flying.push((self.now, site, link, datagram));
        self.settle();
    }

    fn land(&mut self) -> bool {
        let now = self.now;
        let landed: Vec<_> = self.flying.extract_if(.., |(at, ..)| *at <= now).collect();
        let some = !landed.is_empty();
        for (_, site, link, datagram) in landed {
            self.sites[site].arrive(link, &datagram, &mut self.frames);
        }
        some
    }

    /// A packet of a flow, from a host of `from` to one of the other site.
    pub fn send(&mut self, from: usize, flow: u16, sequence: u32) {
        self.send_long(from, flow, sequence, 100);
    }

    /// The same of so many bytes.
    pub fn send_long(&mut self, from: usize, flow: u16, sequence: u32, len: usize) {
        let host = |site: usize| IpAddr::from([10, site as u8, 0, 9]);
        let way = Way {
            src: host(from),
            dst: host(1 - from),
            port: 1000 + flow,
            ttl: 64,
            ecn: 0,
        };
        let tag = Tag {
            origin: from as u8,
            flow,
            sequence,
        };
        self.offer(from, flow, &packet::build(&way, tag, len));
    }

    /// A packet of a flow as it is.
    pub fn offer(&mut self, from: usize, flow: u16, packet: &[u8]) {
        let queue = usize::from(flow) % self.kinds[from].workers;
        assert!(self.sites[from].offer(queue, packet, &mut self.frames));
    }

    /// Some packets of many flows in both directions; every one arrives, and each flow in order.
    #[track_caller]
    pub fn exchange(&mut self) {
        self.delivered = [Vec::new(), Vec::new()];
        for sequence in 0..20 {
            for flow in 0..32 {
                for from in [A, B] {
                    self.send(from, flow, sequence);
                }
            }
            self.run(ms(5));
        }
        self.run(secs(1));
        for site in [A, B] {
            let mut next = [0; 32];
            for tag in &self.delivered[site] {
                assert_eq!(tag.sequence, next[usize::from(tag.flow)], "flow {}", tag.flow);
                next[usize::from(tag.flow)] += 1;
            }
            assert_eq!(next, [20; 32], "at site {site}");
        }
    }

    /// The links of a site that data messages left by since the last call, keepalives and all.
    pub fn used(&mut self, number: usize, at_least: u64) -> Vec<usize> {
        let carried = std::mem::take(&mut self.carried);
        let of_site = carried
            .into_iter()
            .filter(|((site, _), n)| *site == number && *n >= at_least);
        let mut links: Vec<usize> = of_site.map(|((_, link), _)| link).collect();
        links.sort_unstable();
        links
    }
}

fn link_info(number: usize, at: usize, group: u8, behind_nat: bool) -> LinkInfo {
    let IpAddr::V4(v4) = own_address(number, at, false) else {
        unreachable!("asked for IPv4");
    };
    LinkInfo {
        id: LinkId::new(at as u8 + 1).unwrap(),
        group,
        metered: false,
        behind_nat,
        incarnation: 0,
        has_v4: true,
        has_v6: false,
        port: UDP_PORT,
        v4: Some(v4).filter(|_| !behind_nat),
        v6: None,
    }
}

/// What a host says to an IPv4 ping. (The check sum of an echo is that of its answer but for the type, which nobody here looks at.)
fn answer_to_ping(packet: &[u8]) -> Option<Vec<u8>> {
    const ECHO: u8 = 8;
    if packet[9] != PROTO_ICMP || packet[IPV4_HEADER] != ECHO {
        return None;
    }
    let mut answer = packet.to_vec();
    answer[12..16].copy_from_slice(&packet[16..20]);
    answer[16..20].copy_from_slice(&packet[12..16]);
    answer[IPV4_HEADER] = 0;
    Some(answer)
}

/// A log, and what is told people by it, one message each.
pub fn listen() -> (Log, UnixDatagram) {
    static EARS: AtomicUsize = AtomicUsize::new(0);
    let number = EARS.fetch_add(1, Ordering::Relaxed);
    let name = format!("patronus-lanes-{}-{number}", std::process::id());
    let path = std::env::temp_dir().join(name);
    let ear = UnixDatagram::bind(&path).unwrap();
    ear.set_nonblocking(true).unwrap();
    let mut log = Log::new("sim", Level::Error);
    log.add_system_log(&path);
    std::fs::remove_file(&path).unwrap();
    (log, ear)
}

/// What people were told since the last call.
pub fn hear(ear: &UnixDatagram) -> Vec<String> {
    let mut line = [0; 300];
    let lines = std::iter::from_fn(|| {
        let len = ear.recv(&mut line).ok()?;
        Some(String::from_utf8_lossy(&line[..len]).into_owned())
    });
    lines.collect()
}
