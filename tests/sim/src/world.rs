//! A run: sites, the network, traffic and faults, and what must hold meanwhile and afterwards.
//!
//! Three parts. *Faults*: steps in which hosts send, things go wrong, and some time passes. *Recovery*: everything that was broken is mended,
//! and traffic must flow again in bounded time, then without any loss. *End*: nothing is left behind.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;

use patronus_abi::site::{Class, Mode};
use patronus_crypto::messages::{self, DataHeader, Kind};
use patronus_crypto::{Duration, LinkId, PublicKey, Random, Time};
use patronus_engine::channel::HANDSHAKE_QUEUE;
use patronus_engine::probe::Probing;
use patronus_engine::remote::message::LinkInfo;
use patronus_engine::stats::DropReason;
use patronus_mem::{Arena, ArenaConfig, FrameCache};

use crate::book::Book;
use crate::clock::VirtualClock;
use crate::network::{Eavesdropper, Network};
use crate::packet::{self, Tag, Way};
use crate::rng::Seeded;
use crate::site::{Net, PeerPlan, Sent, Site, SitePlan, UDP_PORT, own_address, private_key};
use crate::trace::Trace;
use crate::{Failure, Options, START, Summary};

/// Rounds after which sites that still have something to do never come to rest.
const RESTLESS: usize = 20_000;
/// Datagrams that land in a round, so that they find room.
const LANDING: usize = 128;
/// How long it may take until traffic flows again: a sender finds after 15 s of silence that a session is dead, and then calls, by each link in
/// turn, every 5 s and a third at most. With two links on each side that have to be tried, and one call that was on its way already.
const RECOVERY: Duration = Duration::from_secs(15 + 5 * 6);
/// How long a session's keys are kept without traffic: three times REJECT_AFTER_TIME, and a little for the timers.
const FORGOTTEN: Duration = Duration::from_secs(3 * 180 + 120);
/// After so long without traffic no session is used that was made in bad weather. Its two ends may be of different age, by as much as a stall, and
/// what is sent by the younger one in its last moments is lost: REJECT_AFTER_TIME, the longest stall, and a little.
/// A stock peer makes one when its session goes back to the link that it had left, which is held for 30 s.
const OUTDATED: Duration = Duration::from_secs(180 + 30 + 20 + 10);
/// How often paths are probed: a run has so much time in it that more would be most of what happens.
const PROBING: Probing = Probing {
    interval: Duration::from_secs(1),
    idle: Duration::from_secs(5),
    rate: 1000,
};
/// Paths between two sites of three links each.
const PATHS_MAX: usize = 9;
/// Probes on a path in an interval at most: its own, and those that tell that others are heard again or no more, which takes three intervals each time.
const PROBES_OF_A_PATH: u64 = 4;
/// And so many more, because sessions were made meanwhile.
const PROBES_AT_ONCE: u64 = 4;
/// Packets of each flow that must arrive after the recovery, all of them.
const PROOF: usize = 40;

/// Arenas live for ever, so runs of one process use them one after another.
static ARENAS: Mutex<Vec<&'static Arena>> = Mutex::new(Vec::new());

pub(crate) fn borrow_arena() -> &'static Arena {
    let free = ARENAS.lock().ok().and_then(|mut arenas| arenas.pop());
    free.unwrap_or_else(|| {
        let config = ArenaConfig {
            frames: 8192,
            jumbo_frames: 128,
        };
        Arena::new(&config).expect("memory for frames")
    })
}

/// Gives an arena back, with every frame; or says how many are missing.
pub(crate) fn give_back(arena: &'static Arena) -> Result<(), String> {
    if arena.free_frames() != arena.frames() {
        let lost = arena.frames() - arena.free_frames();
        return Err(format!("frames: {lost} were lost"));
    }
    if let Ok(mut arenas) = ARENAS.lock() {
        arenas.push(arena);
    }
    Ok(())
}

/// What a seed decides before anything happens.
#[derive(Debug)]
struct Conditions {
    in_order: bool,
    nat: bool,
    churn: bool,
    /// All sites are remotes of each other.
    lanes: bool,
}

/// Packets between two hosts, all with the same addresses and ports.
struct Flow {
    from: usize,
    to: usize,
    way: Way,
    queue: usize,
    sequence: u32,
}

/// Everything that there is.
pub struct World {
    rng: Seeded,
    kind: Conditions,
    seed: u64,
    now: Time,
    clock: VirtualClock,
    arena: &'static Arena,
    frames: FrameCache,
    sites: Vec<Site>,
    /// Restarts of each site.
    lives: Vec<u64>,
    network: Network,
    listener: Eavesdropper,
    /// What each site had lost when it was last at rest.
    gone: Vec<u64>,
    flows: Vec<Flow>,
    book: Book,
    trace: Trace,
    keys: Vec<PublicKey>,
    /// Sender, its life, receiver's index, counter: a key and a nonce.
    nonces: HashSet<(usize, u64, u32, u64)>,
    restarts: u64,
    /// Sessions of lanes that there were when everything was mended.
    in_lanes: u64,
    steps: usize,
}

impl World {
    /// The world that a seed makes.
    pub fn new(seed: u64, options: &Options) -> World {
        let mut rng = Seeded(seed);
        let in_order = rng.chance(25);
        let kind = Conditions {
            in_order,
            nat: !in_order && rng.chance(60),
            churn: !in_order && rng.chance(60),
            lanes: rng.chance(50),
        };
        let (arena, clock) = (borrow_arena(), VirtualClock::new());
        let count = rng.one_of(&[2, 2, 3, 4]);
        let mut sites = Vec::new();
        for number in 0..count {
            let mut plan = SitePlan {
                number,
                // A flow that goes from one lane to another keeps its place only if the same worker has both.
                workers: match in_order && kind.lanes {
                    true => 1,
                    false => rng.one_of(&[1, 1, 2, 3]),
                },
                links: if in_order { 1 } else { rng.one_of(&[1, 1, 2, 3]) },
                mtu: rng.one_of(&[1420, 1420, 1280, 8900]),
                router: rng.chance(25) && !kind.churn,
                bound: false,
                // A site that cannot have all its lanes at times.
                peers: rng.one_of(&[8, 128]),
                handshakes: HANDSHAKE_QUEUE,
                probing: PROBING,
            };
            plan.bound = plan.links > 1 || kind.lanes;
            sites.push(Site::start(
                &plan,
                private_key(seed, number),
                arena,
                &clock,
                rng.fork(),
            ));
        }
        let key = |site: &Site| site.core.device().public_key().expect("every site has a key");
        let keys = sites.iter().map(key).collect();
        let book = Book::new(in_order);
        let mut world = World {
            kind,
            seed,
            now: START,
            clock,
            arena,
            frames: FrameCache::new(arena),
            lives: vec![0; count],
            gone: vec![0; count],
            sites,
            network: Network::new(rng.fork(), in_order),
            listener: Eavesdropper::default(),
            flows: Vec::new(),
            book,
            trace: Trace::new(options.trace),
            keys,
            nonces: HashSet::new(),
            restarts: 0,
            in_lanes: 0,
            steps: options.steps.unwrap_or_else(|| rng.pick(20..60)),
            rng,
        };
        (0..count).for_each(|site| world.configure(site));
        world.make_flows();
        world
    }

    /// Runs to the end.
    pub fn run(mut self) -> Result<Summary, Failure> {
        let plans: Vec<_> = self.sites.iter().map(|site| site.plan.clone()).collect();
        let kind = format!("{:?} {plans:?}", self.kind);
        self.note(format_args!("{kind}"));
        let mut step = 0;
        match self.live(&mut step) {
            Ok(recovery) => self
                .end(recovery)
                .map_err(|(what, events)| Failure { step, what, events }),
            Err(what) => Err(Failure {
                step,
                what,
                events: self.trace.last(),
            }),
        }
    }

    fn live(&mut self, step: &mut usize) -> Result<Duration, String> {
        for _ in 0..self.steps {
            *step += 1;
            self.traffic();
            self.faults();
            let pause = self.pause();
            self.pass(pause)?;
        }
        self.mend();
        let took = self.recover()?;
        self.pass(OUTDATED)?;
        self.in_lanes = self.sites.iter().map(Site::open_lanes).sum();
        self.prove()?;
        self.forget()?;
        Ok(took)
    }

    fn note(&mut self, event: std::fmt::Arguments<'_>) {
        self.trace.note(self.now, event);
    }

    // Configuration.

    /// Who knows whom: site 0 everybody, the others site 0, and each other where no NAT is in between.
    fn neighbours(&self, site: usize) -> Vec<usize> {
        let all = 0..self.sites.len();
        let meshed = !self.kind.nat;
        all.filter(|&other| other != site && (meshed || site == 0 || other == 0))
            .collect()
    }

    /// Tells a site everything that it is to know, as after its start.
    fn configure(&mut self, site: usize) {
        if self.kind.lanes {
            self.classify(site);
            (0..self.sites[site].plan.links).for_each(|link| self.describe(site, link));
        }
        for other in self.neighbours(site) {
            self.introduce(site, other);
        }
        self.sites[site].publish_routes();
    }

    /// How flows use paths, and what links cost. None go twice: that is looked at where it is known which paths are good ([`steered`](crate::steered)).
    fn classify(&mut self, site: usize) {
        let modes = [
            Mode::Pinned,
            Mode::ActiveBackup,
            Mode::LowestLatency,
            Mode::Weighted,
        ];
        let class = Class {
            mode: self.rng.one_of(&modes),
            ..Class::default()
        };
        let costs: Vec<(u8, u16)> = (1..=self.sites[site].plan.links as u8)
            .map(|link| (link, self.rng.one_of(&[0, 0, 10])))
            .collect();
        self.sites[site].core.set_classes(&[class], costs);
    }

    /// What a link says of itself to remotes; which of them are in the same group changes with every start.
    fn describe(&mut self, site: usize, link: usize) {
        let behind_nat = self.kind.nat && site != 0;
        let [v4, v6] = [false, true].map(|ipv6| own_address(site, link, ipv6));
        let (IpAddr::V4(v4), IpAddr::V6(v6)) = (v4, v6) else {
            unreachable!("one of each family");
        };
        // Another family is another path, as for the base session.
        let has_v6 = !self.kind.in_order && self.rng.chance(50);
        let info = LinkInfo {
            id: LinkId::new(link as u8 + 1).expect("few links"),
            group: if self.kind.in_order {
                0
            } else {
                self.rng.pick(0..2) as u8
            },
            metered: !self.kind.in_order && self.rng.chance(20),
            behind_nat,
            incarnation: 0,
            has_v4: true,
            has_v6,
            port: UDP_PORT,
            v4: Some(v4).filter(|_| !behind_nat),
            v6: Some(v6).filter(|_| has_v6 && !behind_nat),
        };
        self.sites[site].core.describe_link(link, Some(info));
    }

    fn introduce(&mut self, site: usize, other: usize) {
        let mut psk = [0; 32];
        let (low, high) = (site.min(other) as u64, site.max(other) as u64);
        if (low + high + self.seed).is_multiple_of(2) {
            Seeded(self.seed ^ low << 8 ^ high).fill(&mut psk);
        }
        let link = self.rng.pick(0..self.sites[other].plan.links);
        // Who is behind a NAT can be called only where he called from.
        let known = other == 0 || !self.kind.nat;
        // Another family is another path, and its datagrams may come into another queue: order is kept on one path only.
        let ipv6 = match self.kind.in_order {
            true => (low ^ high ^ self.seed).is_multiple_of(3),
            false => self.rng.chance(30),
        };
        let plan = PeerPlan {
            key: self.keys[other],
            endpoint: known.then(|| SocketAddr::new(own_address(other, link, ipv6), UDP_PORT)),
            psk,
            keepalive: match self.kind.lanes {
                true => 25,
                false if self.rng.chance(20) => 25,
                false => 0,
            },
        };
        self.sites[site].set_peer(other, &plan);
        self.sites[site].allow(other, other as Net);
        if self.kind.lanes {
            self.sites[site].make_remote(other);
        }
    }

    /// Some flows for each pair of sites, in both directions.
    fn make_flows(&mut self) {
        for from in 0..self.sites.len() {
            for to in self.neighbours(from) {
                for number in 0..3 {
                    let ipv6 = number == 1;
                    let queue = self.rng.pick(0..self.sites[from].plan.workers);
                    let (router, peer_router) = (self.sites[from].plan.router, self.sites[to].plan.router);
                    let way = Way {
                        src: host(from, number, ipv6),
                        dst: host(to, number, ipv6),
                        port: 1000 + number as u16,
                        // The third flow's packets die at a router.
                        ttl: if number == 2 && (router || peer_router) {
                            1
                        } else {
                            64
                        },
                        ecn: self.rng.one_of(&[0, 2, 1]),
                    };
                    let sequence = 0;
                    self.flows.push(Flow {
                        from,
                        to,
                        way,
                        queue,
                        sequence,
                    });
                }
            }
        }
    }

    // Traffic.

    fn traffic(&mut self) {
        for _ in 0..self.rng.pick(0..6) {
            let flow = self.rng.pick(0..self.flows.len());
            let burst = if self.rng.chance(4) {
                self.rng.pick(100..200)
            } else {
                self.rng.pick(1..16)
            };
            for _ in 0..burst {
                let len = self.length(flow);
                self.send(flow, len);
            }
        }
        if self.rng.chance(20) {
            self.lie();
        }
        if self.rng.chance(10) {
            let site = self.rng.pick(0..self.sites.len());
            let mut garbage = vec![0; self.rng.pick(0..120)];
            self.rng.fill(&mut garbage);
            if let Some(first) = garbage.first_mut() {
                // Of neither version, so that it cannot be a packet by chance.
                *first |= 0x80;
            }
            self.offer(site, 0, &garbage);
        }
    }

    /// A length for a packet of a flow: any up to the MTU, now and then beyond.
    fn length(&mut self, flow: usize) -> usize {
        let way = self.flows[flow].way;
        let least = packet::header_len(way.src);
        match self.rng.pick(0..20) {
            0 => self.rng.pick(least..packet::tagged_len(way.src)),
            1 => self.rng.pick(1400..9000),
            _ => self.rng.pick(packet::tagged_len(way.src)..1281),
        }
    }

    /// Sends the next packet of a flow.
    fn send(&mut self, flow: usize, len: usize) -> Tag {
        let flow_number = flow as u16;
        let Flow {
            from,
            way,
            queue,
            sequence,
            ..
        } = &mut self.flows[flow];
        let tag = Tag {
            origin: *from as u8,
            flow: flow_number,
            sequence: *sequence,
        };
        *sequence += 1;
        let mut way = *way;
        if len < packet::tagged_len(way.src) {
            way.src = numbered(way.src, tag);
        }
        let (from, queue) = (*from, *queue);
        let packet = packet::build(&way, tag, len);
        self.offer(from, queue, &packet);
        tag
    }

    /// A host sends under an address of another site's.
    fn lie(&mut self) {
        let flow = self.rng.pick(0..self.flows.len());
        let other = self.rng.pick(0..self.sites.len() + 1);
        let Flow { from, way, .. } = &self.flows[flow];
        let (from, mut way) = (*from, *way);
        if other == from {
            return;
        }
        way.src = host(other, 7, way.src.is_ipv6());
        let tag = Tag {
            origin: from as u8,
            flow: flow as u16 | 0x8000,
            sequence: self.rng.word() as u32,
        };
        let packet = packet::build(&way, tag, 200);
        self.offer(from, 0, &packet);
    }

    fn offer(&mut self, site: usize, queue: usize, packet: &[u8]) {
        if self.sites[site].offer(queue, packet, &mut self.frames) {
            self.book.send(site, packet);
        }
    }

    // Faults.

    fn faults(&mut self) {
        if self.rng.chance(12) {
            self.network.change_weather();
            self.note(format_args!("the weather changes"));
        }
        if self.rng.chance(15) {
            self.stall();
        }
        if self.rng.chance(4) {
            let site = self.rng.pick(0..self.sites.len());
            self.restart(site);
        }
        if self.rng.chance(10) {
            self.switch_link();
        }
        if self.kind.nat && self.rng.chance(12) {
            self.rebind();
        }
        if self.kind.churn && self.rng.chance(15) {
            self.churn();
        }
        if self.kind.lanes && !self.kind.in_order && self.rng.chance(8) {
            self.change_link();
        }
        if self.rng.chance(30) {
            for _ in 0..self.rng.pick(1..10) {
                if let Some(datagram) = self.listener.repeat(&mut self.rng) {
                    let at = self.now.after(Duration::from_millis(self.rng.pick(0..30) as u64));
                    self.network.launch(at, datagram);
                }
            }
        }
    }

    /// A worker or a slow path does not run for a while.
    fn stall(&mut self) {
        let site = self.rng.pick(0..self.sites.len());
        let actor = self.rng.pick(0..self.sites[site].stalled.len());
        let time = match self.rng.pick(0..5) {
            0 => self.rng.pick(1000..20_000),
            _ => self.rng.pick(1..500),
        };
        let until = &mut self.sites[site].stalled[actor];
        *until = self.now.after(Duration::from_millis(time as u64)).max(*until);
        self.note(format_args!("site {site}: actor {actor} stalls for {time} ms"));
    }

    /// A site's process ends, and a new one starts.
    fn restart(&mut self, site: usize) {
        self.restarts += 1;
        self.lives[site] += 1;
        self.note(format_args!("site {site} restarts"));
        let plan = self.sites[site].plan.clone();
        let key = private_key(self.seed, site);
        self.sites[site] = Site::start(&plan, key, self.arena, &self.clock, self.rng.fork());
        self.gone[site] = 0;
        self.listener.settle(site, false);
        self.configure(site);
    }

    /// A link of several goes down, or comes back.
    fn switch_link(&mut self) {
        let site = self.rng.pick(0..self.sites.len());
        let link = self.rng.pick(0..self.sites[site].links.len());
        if self.kind.in_order || self.sites[site].plan.links == 1 {
            return;
        }
        let up = self.sites[site].links[link].up;
        match up {
            true => self.sites[site].close_link(link),
            false => self.sites[site].open_link(link),
        }
        self.note(format_args!(
            "site {site}: link {link} {}",
            if up { "down" } else { "up" }
        ));
    }

    /// A link is taken out of a site's file, or comes into it again, perhaps as another one.
    fn change_link(&mut self) {
        let site = self.rng.pick(0..self.sites.len());
        let link = self.rng.pick(0..self.sites[site].plan.links);
        match self.rng.chance(30) {
            true => self.sites[site].core.describe_link(link, None),
            false => self.describe(site, link),
        }
        self.note(format_args!("site {site}: link {link} says something else"));
    }

    /// A NAT forgets a branch and gives it another UDP port.
    fn rebind(&mut self) {
        let site = self.rng.pick(1..self.sites.len());
        let link = self.rng.pick(0..self.sites[site].plan.links);
        let port = self.rng.pick(1024..65_536) as u16;
        self.network.rebind(site, link, port);
        self.note(format_args!(
            "site {site}: link {link} is seen as port {port} now"
        ));
    }

    /// Somebody changes a site's configuration.
    fn churn(&mut self) {
        let site = self.rng.pick(0..self.sites.len());
        let neighbours = self.neighbours(site);
        let other = self.rng.one_of(&neighbours);
        match self.rng.pick(0..3) {
            0 => {
                self.sites[site].remove_peer(other);
                self.note(format_args!("site {site} forgets site {other}"));
            }
            1 => {
                self.introduce(site, other);
                self.note(format_args!("site {site} is told about site {other}"));
            }
            // A network wanders to that peer, who may be the wrong one: its own, or one of nobody's.
            _ => {
                let net = self.rng.one_of(&[200, 201, other as Net, neighbours[0] as Net]);
                self.sites[site].allow(other, net);
                self.note(format_args!(
                    "site {site} looks for network {net} at site {other}"
                ));
            }
        }
    }

    // Time.

    fn pause(&mut self) -> Duration {
        let millis = match self.rng.pick(0..20) {
            0 => self.rng.pick(20_000..250_000),
            1..4 => self.rng.pick(1000..20_000),
            4..7 => 0,
            _ => self.rng.pick(0..200),
        };
        Duration::from_millis(millis as u64)
    }

    /// Lets time pass, from one event to the next.
    fn pass(&mut self, time: Duration) -> Result<(), String> {
        let end = self.now.after(time);
        let probes: Vec<u64> = self.sites.iter().map(|site| site.probes().0).collect();
        self.settle()?;
        while let Some(next) = self.next_event().filter(|next| *next <= end) {
            self.advance(next);
            self.settle()?;
        }
        self.advance(end);
        self.settle()?;
        for (site, before) in self.sites.iter().zip(probes) {
            let (sent, paths) = (site.probes().0 - before, PATHS_MAX * (self.sites.len() - 1));
            let intervals = time.div_duration_f64(PROBING.interval) as u64 + PROBES_AT_ONCE;
            if sent > paths as u64 * PROBES_OF_A_PATH * intervals {
                return Err(format!(
                    "probes: site {} sent {sent} in {time:?}",
                    site.plan.number
                ));
            }
        }
        self.rest()
    }

    fn advance(&mut self, to: Time) {
        self.now = to;
        self.clock.set(to);
    }

    fn next_event(&self) -> Option<Time> {
        let arrival = self.network.next_arrival();
        let slow = self
            .sites
            .iter()
            .filter(|site| site.stalled[site.workers.len()] <= self.now);
        let deadlines = slow.filter_map(|site| site.core.next_deadline());
        let workers = self
            .sites
            .iter()
            .flat_map(|site| site.workers.iter().zip(&site.stalled));
        let awake = workers.filter(|(_, stalled)| **stalled <= self.now);
        let probes = awake.filter_map(|(worker, _)| worker.next_deadline());
        let stalls = self.sites.iter().flat_map(|site| site.stalled.iter().copied());
        let all = arrival.into_iter().chain(deadlines).chain(stalls).chain(probes);
        all.filter(|at| *at > self.now).min()
    }

    /// Does everything that is due now, in an order that nobody knows, until nothing is left to do.
    fn settle(&mut self) -> Result<(), String> {
        for _ in 0..RESTLESS {
            let before = self.pulse();
            let landed = self.land();
            let mut actors: Vec<(usize, usize)> = Vec::new();
            for (number, site) in self.sites.iter().enumerate() {
                let awake = (0..site.stalled.len()).filter(|&actor| site.stalled[actor] <= self.now);
                actors.extend(awake.map(|actor| (number, actor)));
            }
            self.rng.shuffle(&mut actors);
            for (site, actor) in actors {
                self.turn(site, actor)?;
            }
            if !landed && self.pulse() == before {
                return Ok(());
            }
        }
        Err("liveness: the sites never come to rest".to_owned())
    }

    fn pulse(&self) -> u64 {
        let sites = self.sites.iter().map(Site::pulse);
        sites.fold(self.nonces.len() as u64, u64::wrapping_add)
    }

    fn land(&mut self) -> bool {
        let mut landed = false;
        for _ in 0..LANDING {
            let Some((site, link, datagram)) = self.network.land(self.now) else {
                break;
            };
            landed = true;
            let given = self.sites[site].arrive(link, &datagram, &mut self.frames);
            if given && messages::kind(&datagram.bytes) == Ok(Kind::Data) {
                self.listener.hear(site, &datagram);
            }
        }
        landed
    }

    /// A turn of a worker, or of the slow path, which comes behind the workers.
    fn turn(&mut self, number: usize, actor: usize) -> Result<(), String> {
        let now = self.now;
        let site = &mut self.sites[number];
        match actor < site.workers.len() {
            true if !site.worker_turn(actor, now) => return Err("a worker ended by itself".to_owned()),
            true => {}
            false => site.slow_turn(&mut self.frames)?,
        }
        for packet in site.delivered(&mut self.frames)? {
            self.book.receive(&self.sites[number], &packet)?;
        }
        for sent in self.sites[number].sent(&mut self.frames) {
            self.transmit(number, sent)?;
        }
        Ok(())
    }

    /// Checks a datagram of a site's and gives it to the network.
    fn transmit(&mut self, number: usize, sent: Sent) -> Result<(), String> {
        let Sent { link, outer, bytes } = sent;
        let Some(to) = outer.remote() else {
            return Err(format!("site {number} sent to nowhere"));
        };
        match messages::kind(&bytes) {
            Ok(Kind::Data) => {
                let header = bytes.first_chunk().expect("longer than its header");
                let DataHeader { receiver, counter } = DataHeader::read(header);
                if !self
                    .nonces
                    .insert((number, self.lives[number], receiver, counter))
                {
                    return Err(format!(
                        "nonce: site {number} used index {receiver:#x} and counter {counter} twice"
                    ));
                }
            }
            Ok(_) => {}
            Err(_) => return Err(format!("site {number} sent what is no message")),
        }
        if Eavesdropper::is_his(to) {
            return Err(format!(
                "endpoint: site {number} sends to {to}, who only repeated what others sent"
            ));
        }
        if let Some(local) = outer.local()
            && !self.sites[number].is_own(link, local)
        {
            return Err(format!(
                "endpoint: site {number} sends by link {link} from {local}"
            ));
        }
        if self.sites[number].links[link].up {
            self.network.send(self.now, number, link, to, outer.tos(), bytes);
        }
        Ok(())
    }

    /// What must hold whenever a site is at rest.
    fn rest(&mut self) -> Result<(), String> {
        for number in 0..self.sites.len() {
            let site = &mut self.sites[number];
            if site.stalled.iter().any(|until| *until > self.now) || !site.is_at_rest() {
                continue;
            }
            site.check().map_err(|what| format!("site {number}: {what}"))?;
            let gone = site.gone();
            self.listener.settle(number, gone == self.gone[number]);
            self.gone[number] = gone;
        }
        Ok(())
    }

    // Recovery.

    /// Mends everything: fair weather, every link, everyone awake, everyone told what he is to know.
    fn mend(&mut self) {
        self.note(format_args!("everything is mended"));
        self.network.clear_up();
        for site in 0..self.sites.len() {
            self.sites[site].stalled.fill(self.now);
            for link in 0..self.sites[site].plan.links {
                self.sites[site].open_link(link);
                if self.kind.lanes {
                    self.describe(site, link);
                }
            }
            for other in self.neighbours(site) {
                if !self.sites[site].peers.contains_key(&other) {
                    self.introduce(site, other);
                }
                self.sites[site].allow(other, other as Net);
            }
        }
    }

    /// Flows whose packets get through when nothing is wrong.
    fn sound_flows(&self) -> Vec<usize> {
        let sound = |flow: &usize| self.flows[*flow].way.ttl > 1;
        (0..self.flows.len()).filter(sound).collect()
    }

    /// Sends a packet a second in every flow until each has got one through. How long that took.
    fn recover(&mut self) -> Result<Duration, String> {
        let begun = self.now;
        let mut first = BTreeMap::new();
        loop {
            for flow in self.sound_flows() {
                let tag = self.send(flow, 200);
                first.entry(flow).or_insert(tag.sequence);
            }
            self.pass(Duration::from_secs(1))?;
            let arrived = |(flow, sequence): (&usize, &u32)| self.book.has_arrived(*flow as u16, *sequence);
            let took = self.now.since(begun);
            if first.iter().all(arrived) {
                self.note(format_args!("traffic flows again after {} s", took.as_secs()));
                return Ok(took);
            }
            if took > RECOVERY {
                let late = first
                    .iter()
                    .find(|late| !arrived(*late))
                    .map_or(0, |(flow, _)| *flow);
                let Flow { from, to, .. } = &self.flows[late];
                return Err(format!(
                    "liveness: nothing from site {from} to site {to} in {took:?} of fair weather"
                ));
            }
        }
    }

    /// Everything that is sent now arrives, over more time than a session lives.
    fn prove(&mut self) -> Result<(), String> {
        self.book.demand_order();
        self.sites.iter_mut().for_each(|site| drop(site.downs()));
        let mut sent = Vec::new();
        let drops = self.drops();
        for _ in 0..PROOF {
            for flow in self.sound_flows() {
                let len = self.rng.pick(100..1200);
                sent.push(self.send(flow, len));
            }
            let pause = self.rng.pick(1..12_000) as u64;
            self.pass(Duration::from_millis(pause))?;
        }
        self.pass(Duration::from_secs(6))?;
        for site in &mut self.sites {
            if let Some(down) = site.downs().first() {
                let number = site.plan.number;
                return Err(format!("paths: in fair weather at site {number}: {down:?}"));
            }
        }
        match sent.iter().find(|tag| !self.book.has_seen(**tag)) {
            None => Ok(()),
            Some(tag) => Err(format!(
                "loss: {tag:?} did not arrive in fair weather; drops {drops:?} -> {:?}",
                self.drops()
            )),
        }
    }

    fn drops(&self) -> Vec<(&'static str, u64)> {
        let count = |reason: &DropReason| self.sites.iter().map(|site| site.dropped(*reason)).sum();
        let all = DropReason::ALL
            .iter()
            .map(|reason| (reason.name(), count(reason)));
        all.filter(|(_, count)| *count > 0).collect()
    }

    /// Without traffic every session is forgotten.
    fn forget(&mut self) -> Result<(), String> {
        if self.kind.lanes {
            // Remotes keep in touch for ever.
            return Ok(());
        }
        for site in 0..self.sites.len() {
            for other in self.neighbours(site) {
                self.sites[site].quiet(other);
            }
        }
        self.pass(FORGOTTEN)?;
        for site in &self.sites {
            let (number, left) = (site.plan.number, site.core.device().indices_in_use());
            if left > 0 {
                return Err(format!(
                    "sessions: site {number} still has {left} indices after {FORGOTTEN:?} without traffic"
                ));
            }
        }
        Ok(())
    }

    // End.

    /// Every peer goes, then every site; nothing is left behind.
    fn end(mut self, recovery: Duration) -> Result<Summary, (String, Vec<String>)> {
        let left = self.leave();
        let events = self.trace.last();
        let summary = Summary {
            sent: self.book.sent,
            received: self.book.received,
            put_together: self.book.put_together,
            errors: self.book.errors,
            datagrams: self.nonces.len() as u64,
            in_lanes: self.in_lanes,
            harmed: self.network.harmed,
            restarts: self.restarts,
            virtual_time: self.now.since(START),
            recovery,
            ..Summary::default()
        };
        if let Err(what) = left {
            return Err((what, events));
        }
        let arena = self.arena;
        drop(self);
        give_back(arena).map_err(|what| (what, events))?;
        Ok(summary)
    }

    fn leave(&mut self) -> Result<(), String> {
        for number in 0..self.sites.len() {
            (0..self.sites.len()).for_each(|other| self.sites[number].remove_peer(other));
        }
        self.pass(Duration::from_secs(1))?;
        for site in &mut self.sites {
            let number = site.plan.number;
            if !site.is_at_rest() || site.staged() > 0 || site.core.device().indices_in_use() > 0 {
                return Err(format!("end: something of its peers is left at site {number}"));
            }
        }
        Ok(())
    }
}

/// A host's address in the network of a site.
fn host(site: usize, number: usize, ipv6: bool) -> IpAddr {
    match ipv6 {
        false => IpAddr::from([10, site as u8, 0, number as u8 + 1]),
        true => IpAddr::from([0xfd00, site as u16, 0, 0, 0, 0, 0, number as u16 + 1]),
    }
}

/// An address of the same network for a packet without a tag, so that each is one of its kind.
fn numbered(ip: IpAddr, tag: Tag) -> IpAddr {
    let [a, b] = tag.flow.to_be_bytes();
    match ip {
        IpAddr::V4(ip) => {
            let [net, site, ..] = ip.octets();
            // The low half of the sequence stands in the header.
            IpAddr::from([net, site, b | 0x80, (tag.sequence >> 16) as u8])
        }
        IpAddr::V6(ip) => {
            let [net, site, ..] = ip.segments();
            let [high, low] = [(tag.sequence >> 16) as u16, tag.sequence as u16];
            IpAddr::from([net, site, 0, 0, u16::from_be_bytes([a, b]), 1, high, low])
        }
    }
}
