//! Two sites and several paths between them, all of which but one may be noisy, deaf in one direction, come and go, or be seen elsewhere by a NAT: how packets are steered meanwhile.
//!
//! [`world`](crate::world) lets go wrong whatever can, and looks at what arrives. Here less goes wrong, so that there is more to be sure of: which paths are good is known, and
//! that holds for every packet that leaves a site ([`watch`]).
//!
//! * [`roads`]: the paths, and what is wrong with them
//! * `faults`: what goes wrong, and when
//! * [`watch`]: what must hold
//! * [`governor`]: the control process of a site

mod faults;
pub mod governor;
pub mod roads;
pub mod watch;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use patronus_abi::channel::Event;
use patronus_abi::site::{Class, Mode, Sticky};
use patronus_crypto::messages::{self, Kind};
use patronus_crypto::{Duration, LinkId, PeerId, Time};
use patronus_engine::channel::HANDSHAKE_QUEUE;
use patronus_engine::probe::{FLOOR, Probing};
use patronus_engine::remote::message::LinkInfo;
use patronus_mem::{Arena, FrameCache};

use self::governor::Governor;
use self::roads::{CALM, PROVEN, Road};
use self::watch::{Duty, Paces, Watch};
use crate::clock::VirtualClock;
use crate::network::Datagram;
use crate::packet::{self, Known, Tag, Way};
use crate::rng::Seeded;
use crate::site::{PeerPlan, Sent, Site, SitePlan, UDP_PORT, own_address, owner_of, private_key};
use crate::trace::Trace;
use crate::world::{borrow_arena, give_back};
use crate::{Failure, Options, START, Summary};

/// Packets of hosts have lengths that are one of these apart, so that a datagram tells of which flow it is. No probe and no hello is so long, no question about a size so short; and
/// with the header of those that go twice they are padded to the same length.
const SHORTEST: usize = 200;
const APART: usize = 16;
/// What the tunnel adds to a packet that is padded by 8.
const AROUND: usize = 40;
/// Flows in each direction.
const FLOWS: usize = 4;
/// How often each of them sends.
const PACE: Duration = Duration::from_millis(200);
/// Until all lanes are there.
const WARM_UP: Duration = Duration::from_secs(30);
/// Rounds after which sites that still have something to do never come to rest.
const RESTLESS: usize = 10_000;

/// What a seed decides before anything happens.
#[derive(Debug)]
struct Conditions {
    /// Site 0 is behind NATs.
    nat: bool,
    /// The path that never has trouble.
    spared: Option<usize>,
    probing: Probing,
    /// Of each site.
    classes: [Class; 2],
    /// Of each link of a site: its cost, and whether it is metered.
    links: [Vec<(u16, bool)>; 2],
}

/// A run.
pub struct Steered {
    rng: Seeded,
    seed: u64,
    kind: Conditions,
    now: Time,
    clock: VirtualClock,
    arena: &'static Arena,
    frames: FrameCache,
    sites: Vec<Site>,
    governors: [Option<Governor>; 2],
    /// Sites that go on with the last order of a control process that is gone.
    orphaned: [bool; 2],
    roads: Vec<Road>,
    /// Of each path, whether one of its links is.
    metered: Vec<bool>,
    /// UDP ports under which the links of site 0 are seen.
    ports: Vec<u16>,
    /// By when they arrive, and a number that no two have.
    flying: BTreeMap<(Time, u64), (usize, usize, Datagram)>,
    carried: u64,
    watch: Watch,
    /// When hosts send next, and until when they are quiet.
    sends_at: Time,
    quiet_until: Time,
    sequence: u32,
    /// When the packets that leave now were sent.
    sent_at: Option<Time>,
    trace: Trace,
    steps: usize,
    summary: Summary,
}

/// Runs a seed.
pub fn run(seed: u64, options: &Options) -> Result<Summary, Failure> {
    crate::guarded(|| Steered::new(seed, options).run())
}

impl Steered {
    /// The two sites that a seed makes.
    pub fn new(seed: u64, options: &Options) -> Steered {
        // Other numbers than those of the same seed's world.
        let mut rng = Seeded(seed ^ 0x5351_7eed_0000_0000);
        let count = rng.one_of(&[2, 2, 3]);
        let is_meshed = count == 2 && rng.chance(30);
        let all = (0..count).flat_map(|a| (0..count).map(move |b| [a, b]));
        let ends = all.filter(|[a, b]| is_meshed || a == b);
        let mut roads: Vec<Road> = ends.map(|ends| Road::new(&mut rng, ends)).collect();
        let workers = [0, 1].map(|_| rng.one_of(&[1, 1, 2, 3]));
        let kind = Conditions::random(&mut rng, count, roads.len());
        for road in &mut roads {
            road.longest = road.longest.max(SHORTEST);
            road.judged = kind.is_loss_judged();
        }
        let is_metered = |road: &Road| [0, 1].iter().any(|site| kind.links[*site][road.links[*site]].1);
        let metered = roads.iter().map(is_metered).collect();
        let (arena, clock) = (borrow_arena(), VirtualClock::new());
        let mut sites = Vec::new();
        for number in [0, 1] {
            let plan = SitePlan {
                number,
                workers: workers[number],
                links: count,
                mtu: 1420,
                router: false,
                bound: true,
                peers: 128,
                handshakes: HANDSHAKE_QUEUE,
                probing: kind.probing,
            };
            let key = private_key(seed, number);
            sites.push(Site::start(&plan, key, arena, &clock, rng.fork()));
        }
        let rate = Duration::from_secs(1) * roads.len() as u32 / kind.probing.rate;
        let duties = [0, 1].map(|site: usize| Duty {
            mode: kind.classes[site].mode,
            hold: Duration::from_millis(kind.classes[site].hold_ms.into()),
        });
        let (interval, idle) = (kind.probing.interval.max(rate), kind.probing.idle.max(rate));
        let mut run = Steered {
            seed,
            now: START,
            clock,
            arena,
            frames: FrameCache::new(arena),
            sites,
            governors: [None, None],
            orphaned: [false; 2],
            roads,
            metered,
            ports: vec![UDP_PORT; count],
            flying: BTreeMap::new(),
            carried: 0,
            watch: Watch::new(
                START.after(WARM_UP),
                duties,
                Paces {
                    interval,
                    idle,
                    quick: (kind.probing.interval / 10).max(FLOOR),
                    most: kind.probing.rate,
                },
            ),
            sends_at: START,
            quiet_until: START,
            sequence: 0,
            sent_at: None,
            trace: Trace::new(options.trace),
            steps: options.steps.unwrap_or_else(|| rng.pick(15..35)),
            summary: Summary::default(),
            kind,
            rng,
        };
        (0..2).for_each(|site| run.configure(site));
        for site in [0, 1] {
            if run.rng.chance(75) {
                run.govern(site);
            }
        }
        run
    }

    /// Runs to the end.
    pub fn run(mut self) -> Result<Summary, Failure> {
        let plans: Vec<_> = self.sites.iter().map(|site| site.plan.clone()).collect();
        let kind = format!("{:?} {:?} {plans:?}", self.kind, self.roads);
        self.note(format_args!("{kind}"));
        let mut step = 0;
        let lived = self.live(&mut step);
        let events = self.trace.last();
        let (arena, mut summary) = (self.arena, self.summary);
        summary.virtual_time = self.now.since(START);
        summary.certain = self.watch.certain;
        summary.tempted = self.watch.tempted;
        summary.held = self.watch.held;
        summary.doubled = self.watch.doubled;
        drop(self);
        let done = lived.and_then(|()| give_back(arena));
        done.map(|()| summary)
            .map_err(|what| Failure { step, what, events })
    }

    fn live(&mut self, step: &mut usize) -> Result<(), String> {
        self.pass(WARM_UP)?;
        for _ in 0..self.steps {
            *step += 1;
            self.faults();
            let pause = Duration::from_millis(self.rng.pick(200..6000) as u64);
            self.pass(pause)?;
        }
        *step += 1;
        self.mend();
        let proof = if self.kind.is_loss_judged() {
            PROVEN
        } else {
            Duration::ZERO
        };
        self.pass(CALM + proof + Duration::from_secs(25))?;
        self.check_homes()?;
        self.check_sizes()
    }

    fn note(&mut self, event: std::fmt::Arguments<'_>) {
        self.trace.note(self.now, event);
    }

    // Configuration.

    fn base(&self, site: usize) -> PeerId {
        self.sites[site].peers[&(1 - site)]
    }

    /// Tells a site everything that it is to know, as after its start.
    fn configure(&mut self, number: usize) {
        let own = &self.kind.links[number];
        let costs: Vec<(u8, u16)> = (1..).zip(own.iter().map(|(cost, _)| *cost)).collect();
        let core = &mut self.sites[number].core;
        core.set_classes(&[self.kind.classes[number].clone()], costs);
        for link in 0..own.len() {
            let behind_nat = self.kind.nat && number == 0;
            let IpAddr::V4(v4) = own_address(number, link, false) else {
                unreachable!("asked for IPv4");
            };
            let is_meshed = self.roads.len() > own.len();
            let info = LinkInfo {
                id: LinkId::new(link as u8 + 1).expect("few links"),
                group: if is_meshed { 0 } else { link as u8 },
                metered: own[link].1,
                behind_nat,
                incarnation: 0,
                has_v4: true,
                has_v6: false,
                port: UDP_PORT,
                v4: Some(v4).filter(|_| !behind_nat),
                v6: None,
            };
            self.sites[number].core.describe_link(link, Some(info));
        }
        let other = 1 - number;
        let callable = other == 1 || !self.kind.nat;
        let plan = PeerPlan {
            key: self.sites[other]
                .core
                .device()
                .public_key()
                .expect("every site has a key"),
            endpoint: callable
                .then(|| SocketAddr::new(own_address(other, self.spared_link(other), false), UDP_PORT)),
            psk: [3; 32],
            keepalive: 0,
        };
        let site = &mut self.sites[number];
        site.set_peer(other, &plan);
        site.allow(other, other as u16);
        site.make_remote(other);
    }

    fn spared_link(&self, site: usize) -> usize {
        self.kind.spared.map_or(0, |at| self.roads[at].links[site])
    }

    /// Control is started beside a site's engine.
    fn govern(&mut self, number: usize) {
        let (class, links) = (&self.kind.classes[number], &self.kind.links[number]);
        self.governors[number] = Some(Governor::new(self.now, class, links));
        self.watch.govern(number, Some(self.now));
    }

    // Traffic.

    fn traffic(&mut self) -> Result<(), String> {
        self.look_back()?;
        self.sends_at = self.now.after(PACE);
        if self.now < self.quiet_until {
            self.watch.used_since = self.now;
            return Ok(());
        }
        self.sequence += 1;
        for from in [0, 1] {
            for flow in 0..FLOWS {
                let host = |site: usize| IpAddr::from([10, site as u8, 0, 1 + flow as u8]);
                let way = Way {
                    src: host(from),
                    dst: host(1 - from),
                    port: 1000 + flow as u16,
                    ttl: 64,
                    ecn: 0,
                };
                let tag = self.tag(from, flow);
                let packet = packet::build(&way, tag, SHORTEST + APART * flow);
                let queue = flow % self.sites[from].plan.workers;
                self.summary.sent += u64::from(self.sites[from].offer(queue, &packet, &mut self.frames));
            }
        }
        self.sent_at = Some(self.now);
        Ok(())
    }

    fn tag(&self, from: usize, flow: usize) -> Tag {
        Tag {
            origin: from as u8,
            flow: flow as u16,
            sequence: self.sequence,
        }
    }

    /// The packets that were sent last have left by now, but for what a worker that was away has in its queues.
    fn look_back(&mut self) -> Result<(), String> {
        let Some(sent) = self.sent_at.take() else {
            return Ok(());
        };
        for from in [0, 1] {
            let undisturbed = self.sites[from]
                .stalled
                .iter()
                .all(|until| until.after(PACE) <= sent);
            for flow in 0..FLOWS {
                let tag = self.tag(from, flow);
                self.watch.has_left(from, tag, sent, &self.roads, undisturbed)?;
            }
        }
        Ok(())
    }

    // Time.

    fn pass(&mut self, time: Duration) -> Result<(), String> {
        let end = self.now.after(time);
        loop {
            self.tend()?;
            self.settle()?;
            let next = self.next_event().filter(|next| *next <= end);
            let at_end = next.is_none();
            self.now = next.unwrap_or(end);
            self.clock.set(self.now);
            if at_end {
                return Ok(());
            }
        }
    }

    fn next_event(&self) -> Option<Time> {
        let sites = self.sites.iter();
        let deadlines = sites.clone().flat_map(|site| {
            let slow = site
                .core
                .next_deadline()
                .filter(|_| site.stalled[site.workers.len()] <= self.now);
            let workers = site.workers.iter().zip(&site.stalled);
            let workers = workers.filter(|(_, until)| **until <= self.now);
            slow.into_iter()
                .chain(workers.filter_map(|(worker, _)| worker.next_deadline()))
                .collect::<Vec<_>>()
        });
        let stalls = sites.flat_map(|site| site.stalled.iter().copied());
        let governors = self.governors.iter().flatten().map(|governor| governor.next);
        let roads = self.roads.iter().filter_map(Road::next_change);
        let arrival = self.flying.keys().next().map(|(at, _)| *at);
        let all = deadlines.chain(stalls).chain(governors).chain(roads);
        let all = all.chain(arrival).chain([self.sends_at]);
        all.filter(|at| *at > self.now).min()
    }

    /// What happens outside of the sites.
    fn tend(&mut self) -> Result<(), String> {
        for at in 0..self.roads.len() {
            let was_unplugged = self.roads[at].is_unplugged();
            self.roads[at].tend(self.now);
            if was_unplugged && !self.roads[at].is_unplugged() {
                for (site, link) in self.roads[at].links.into_iter().enumerate() {
                    self.sites[site].open_link(link);
                }
            }
        }
        if self.sends_at <= self.now {
            self.traffic()?;
        }
        Ok(())
    }

    /// Lets everybody do what is to be done now.
    fn settle(&mut self) -> Result<(), String> {
        for _ in 0..RESTLESS {
            let before: u64 = self.sites.iter().map(Site::pulse).fold(0, u64::wrapping_add);
            let landed = self.land();
            let mut actors: Vec<(usize, usize)> = Vec::new();
            for (number, site) in self.sites.iter().enumerate() {
                let awake = (0..site.stalled.len()).filter(|actor| site.stalled[*actor] <= self.now);
                actors.extend(awake.map(|actor| (number, actor)));
            }
            self.rng.shuffle(&mut actors);
            for (site, actor) in actors {
                self.turn(site, actor)?;
            }
            for site in [0, 1] {
                if self.sites[site].stalled.iter().all(|until| *until <= self.now) {
                    self.slow_turn(site)?;
                }
            }
            let after = self.sites.iter().map(Site::pulse).fold(0, u64::wrapping_add);
            if !landed && before == after {
                return self.watch.rest(&self.sites, &self.roads, self.now);
            }
        }
        Err("liveness: the sites never come to rest".to_owned())
    }

    fn turn(&mut self, number: usize, actor: usize) -> Result<(), String> {
        match actor < self.sites[number].workers.len() {
            true if !self.sites[number].worker_turn(actor, self.now) => {
                return Err("a worker ended by itself".to_owned());
            }
            true => {}
            false => self.slow_turn(number)?,
        }
        for packet in self.sites[number].delivered(&mut self.frames)? {
            match packet::recognize(&packet) {
                Known::Tagged(tag) => self.watch.arrives(number, tag)?,
                // A peer of which it is not known yet what it is gets pings.
                Known::Icmp => continue,
                other => return Err(format!("delivery: {other:?} at site {number}")),
            }
            self.summary.received += 1;
        }
        for sent in self.sites[number].sent(&mut self.frames) {
            self.transmit(number, sent)?;
        }
        Ok(())
    }

    /// A turn of the slow path, and of control behind it.
    fn slow_turn(&mut self, number: usize) -> Result<(), String> {
        self.sites[number].slow_turn(&mut self.frames)?;
        let has_news = self.take_news(number)?;
        let base = self.base(number);
        let Some(governor) = &mut self.governors[number] else {
            return Ok(());
        };
        if has_news || governor.next <= self.now {
            let (changes, suspects) = governor.turn(self.now, &mut self.sites[number], base);
            if let Some((count, until)) = suspects {
                self.watch.suspect(number, count, until);
            }
            for change in changes {
                self.note(format_args!("site {number}: control: {:?}", change.kind));
            }
            self.sites[number].core.flush();
            self.take_news(number)?;
        }
        Ok(())
    }

    /// What an engine says. True if that was something.
    fn take_news(&mut self, number: usize) -> Result<bool, String> {
        let news = self.sites[number].core.take_news();
        if news.lost > 0 {
            return Err(format!(
                "told: {} events of site {number} found no room",
                news.lost
            ));
        }
        for event in &news.events {
            self.watch.hear(number, event);
            if let Some(governor) = &mut self.governors[number] {
                governor.hear(event);
            }
            match event {
                Event::PathState { path, state, why, .. } => {
                    self.note(format_args!(
                        "site {number}: path {path} {}: {}",
                        state.word(),
                        why.word()
                    ));
                }
                Event::Moved { from, to, why, .. } => {
                    self.note(format_args!("site {number}: from {from:?} to {to:?}: {why:?}"));
                }
                _ => {}
            }
        }
        Ok(!news.events.is_empty())
    }

    fn transmit(&mut self, number: usize, sent: Sent) -> Result<(), String> {
        let Sent { link, outer, bytes } = sent;
        let to = outer.remote().ok_or("a datagram to nowhere")?;
        let Some((other, far)) = owner_of(to.ip()).filter(|(other, _)| *other != number) else {
            return Err(format!("site {number} sends to {to}"));
        };
        let ends = if number == 0 { [link, far] } else { [far, link] };
        let Some(at) = self.roads.iter().position(|road| road.links == ends) else {
            // The base session is on no path in particular.
            return Ok(());
        };
        if !self.sites[number].links[link].up {
            return Ok(());
        }
        let len = bytes.len();
        if messages::kind(&bytes) == Ok(Kind::Data) {
            self.summary.datagrams += 1;
            let over = len
                .checked_sub(SHORTEST + AROUND)
                .filter(|over| over % APART == 0);
            if let Some(flow) = over.map(|over| over / APART).filter(|flow| *flow < FLOWS) {
                let (roads, metered) = (&self.roads, &self.metered);
                self.watch.leaves(
                    (number, &self.sites[number]),
                    flow as u16,
                    at,
                    roads,
                    metered,
                    self.now,
                )?;
            }
        }
        let port = if number == 0 { self.ports[link] } else { UDP_PORT };
        let datagram = Datagram {
            from: SocketAddr::new(own_address(number, link, false), port),
            to,
            tos: outer.tos(),
            bytes,
            genuine: true,
        };
        match self.roads[at].carry(self.now, number, len, &mut self.rng) {
            Some(arrives) => {
                self.carried += 1;
                self.flying
                    .insert((arrives, self.carried), (other, far, datagram));
            }
            None => self.summary.harmed += 1,
        }
        Ok(())
    }

    fn land(&mut self) -> bool {
        let mut landed = false;
        while let Some(first) = self
            .flying
            .first_entry()
            .filter(|first| first.key().0 <= self.now)
        {
            let (site, link, datagram) = first.remove();
            let port = if site == 0 { self.ports[link] } else { UDP_PORT };
            if datagram.to.port() == port {
                landed |= self.sites[site].arrive(link, &datagram, &mut self.frames);
            }
        }
        landed
    }

    // After a long calm.

    /// Flows go by the paths that they belong to.
    fn check_homes(&self) -> Result<(), String> {
        for site in [0, 1] {
            let homes = self.homes(site);
            if let Some((flow, at)) = self.watch.last(site).find(|(_, at)| !homes.contains(at)) {
                return Err(format!(
                    "homes: flow {flow} of site {site} goes by path {at} and not by one of {homes:?}"
                ));
            }
        }
        Ok(())
    }

    /// The paths that a flow of a site may be on when all are good.
    fn homes(&self, site: usize) -> Vec<usize> {
        let all = 0..self.roads.len();
        let is_judged = self.governors[site].is_some();
        let key = |at: usize| {
            let (cost, is_metered) = self.kind.links[site][self.roads[at].links[site]];
            match is_judged {
                true => (cost, u16::from(is_metered)),
                false => (u16::from(self.metered[at]), cost),
            }
        };
        let best = match self.kind.classes[site].mode {
            _ if self.orphaned[site] => return all.collect(),
            Mode::Weighted | Mode::Duplicate => return all.collect(),
            Mode::LowestLatency if is_judged => {
                let shortest = self.roads.iter().map(Road::round_trip).min().unwrap_or_default();
                // One of two that are about equally long may stay the first.
                let limit = shortest * 115 / 100 + Duration::from_millis(5);
                return all.filter(|at| self.roads[*at].round_trip() <= limit).collect();
            }
            _ => all.clone().map(key).min(),
        };
        let firsts: Vec<usize> = all.clone().filter(|at| Some(key(*at)) == best).collect();
        if self.kind.classes[site].mode != Mode::Pinned {
            return firsts;
        }
        // Control says which is the first, and knows of our links only which are metered. Flows are spread over those that are equal to it for the engine, which knows it of both ends.
        let standing = |at: usize| {
            (
                self.metered[at],
                self.kind.links[site][self.roads[at].links[site]].0,
            )
        };
        let is_equal = |at: &usize| firsts.iter().any(|first| standing(*first) == standing(*at));
        all.filter(is_equal).collect()
    }

    /// What the paths let pass is known.
    fn check_sizes(&self) -> Result<(), String> {
        for (number, site) in self.sites.iter().enumerate() {
            // Of paths that nobody uses it is asked every ten minutes only.
            let used = self.watch.last(number).map(|(_, at)| self.roads[at].longest);
            let longest = used.min().unwrap_or(usize::MAX);
            let base = self.base(number);
            let board = site.core.board(base).ok_or("sizes: no path")?;
            let known = board.mtu();
            if known.is_none_or(|mtu| usize::from(mtu) + 32 > longest.max(1280 + 32)) {
                let reports = site.core.path_reports(base);
                let each: Vec<_> = reports
                    .iter()
                    .map(|report| (report.path.to_string(), report.mtu))
                    .collect();
                return Err(format!(
                    "sizes: {known:?} of site {number}, and no more than {longest} pass: {each:?}"
                ));
            }
        }
        Ok(())
    }
}

impl Conditions {
    fn is_loss_judged(&self) -> bool {
        self.classes.iter().any(|class| class.loss_ppm.is_some())
    }

    fn random(rng: &mut Seeded, links: usize, roads: usize) -> Conditions {
        let interval = Duration::from_millis(rng.one_of(&[100, 200, 500]));
        let class = |rng: &mut Seeded| Class {
            mode: rng.one_of(&[
                Mode::Pinned,
                Mode::ActiveBackup,
                Mode::LowestLatency,
                Mode::Weighted,
                Mode::Duplicate,
                Mode::Duplicate,
            ]),
            loss_ppm: rng.chance(70).then_some(20_000),
            hold_ms: rng.one_of(&[3000, 8000, 12_000]),
            sticky: rng.one_of(&[Sticky::Flow, Sticky::Source]),
            ..Class::default()
        };
        let link = |rng: &mut Seeded| (rng.one_of(&[0, 0, 10, 20]), rng.chance(20));
        Conditions {
            nat: rng.chance(40),
            spared: rng.chance(85).then(|| rng.pick(0..roads)),
            probing: Probing {
                interval,
                idle: Duration::from_secs(1),
                rate: rng.one_of(&[20_000, 20_000, 20]),
            },
            classes: [class(rng), class(rng)],
            links: [0, 1].map(|_| (0..links).map(|_| link(rng)).collect()),
        }
    }
}
