//! Lanes between two engines: the real workers and the real slow path, on links whose delays, cuts and NATs a test decides.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixDatagram;
use std::sync::OnceLock;

use patronus_crypto::{Duration, LinkId, PeerId, PublicKey, Tag as LaneTag, Time};
use patronus_engine::channel::HANDSHAKE_QUEUE;
use patronus_engine::log::{Level, Log};
use patronus_engine::remote::message::LinkInfo;
use patronus_engine::stats::DropReason;
use patronus_mem::{Arena, ArenaConfig, FrameCache};
use patronus_sim::START;
use patronus_sim::clock::VirtualClock;
use patronus_sim::network::Datagram;
use patronus_sim::packet::{self, Known, Tag, Way};
use patronus_sim::rng::Seeded;
use patronus_sim::site::{PeerPlan, Site, SitePlan, UDP_PORT, own_address, owner_of, private_key};

const A: usize = 0;
const B: usize = 1;
/// UDP port that a NAT gives out.
const NAT_PORT: u16 = 40_000;

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// What a site is in one of these tests.
#[derive(Clone)]
struct Kind {
    workers: usize,
    /// Group of each link, and whether it is behind a NAT.
    links: Vec<(u8, bool)>,
    /// It knows the other one as a remote.
    remote: bool,
    /// Peers that it may have.
    peers: usize,
}

fn kind(workers: usize, links: usize) -> Kind {
    Kind {
        workers,
        links: (0..links).map(|link| (link as u8, false)).collect(),
        remote: true,
        peers: 64,
    }
}

/// Two sites and the links between them.
struct Pair {
    now: Time,
    clock: VirtualClock,
    frames: FrameCache,
    kinds: [Kind; 2],
    sites: Vec<Site>,
    flying: Vec<(Time, usize, usize, Datagram)>,
    /// One way, by link of the sender and of the receiver.
    delay: Box<dyn Fn(usize, usize) -> Duration>,
    /// Links of site A that lose everything, and say nothing.
    dead: BTreeSet<usize>,
    /// Whom a link behind a NAT has sent to.
    mapped: BTreeSet<(usize, usize, SocketAddr)>,
    /// Data messages sent, by site and link.
    carried: HashMap<(usize, usize), u64>,
    delivered: [Vec<Tag>; 2],
    starts: u64,
    log: Log,
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
    fn new(a: Kind, b: Kind) -> Pair {
        Pair::with_log(a, b, Log::new("sim", Level::Silent))
    }

    fn with_log(a: Kind, b: Kind, log: Log) -> Pair {
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
            carried: HashMap::new(),
            delivered: [Vec::new(), Vec::new()],
            starts: 0,
            log,
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
        };
        let rng = Seeded(self.starts);
        let key = private_key(7, number);
        let mut site = Site::start_with_log(&plan, key, arena(), &self.clock, rng, self.log.clone());
        for (at, (group, behind_nat)) in kind.links.iter().enumerate() {
            let IpAddr::V4(v4) = own_address(number, at, false) else {
                unreachable!("asked for IPv4");
            };
            let info = LinkInfo {
                id: LinkId::new(at as u8 + 1).unwrap(),
                group: *group,
                metered: false,
                behind_nat: *behind_nat,
                incarnation: 0,
                has_v4: true,
                has_v6: false,
                port: UDP_PORT,
                v4: Some(v4).filter(|_| !behind_nat),
                v6: None,
            };
            site.core.describe_link(at, Some(info));
        }
        site
    }

    fn introduce(&mut self, number: usize) {
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

    fn restart(&mut self, number: usize) {
        self.sites[number] = self.start(number);
        self.introduce(number);
        self.mapped.retain(|(site, ..)| *site != number);
    }

    fn base(&self, number: usize) -> PeerId {
        self.sites[number].peers[&(1 - number)]
    }

    /// The lanes of a site that have had a handshake since `since`.
    fn open_lanes(&self, number: usize, since: Duration) -> BTreeMap<LaneTag, PeerId> {
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

    fn run(&mut self, d: Duration) {
        let end = self.now.after(d);
        loop {
            self.settle();
            let landing = self.flying.iter().map(|(at, ..)| *at).min();
            let deadlines = self.sites.iter().filter_map(|site| site.core.next_deadline());
            let next = landing.into_iter().chain(deadlines).min();
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
                for worker in &mut self.sites[number].workers {
                    assert!(worker.step(self.now));
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
                from.set_port(NAT_PORT);
            }
            if sent.bytes[0] == 4 {
                *self.carried.entry((number, sent.link)).or_default() += 1;
            }
            let (other, link) = owner_of(to.ip()).expect("an address of a site");
            let behind_nat = self.kinds[other].links[link].1;
            let passes_nat =
                !behind_nat || to.port() == NAT_PORT && self.mapped.contains(&(other, link, from));
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
            let at = self.now.after((self.delay)(sent.link, link));
            self.flying.push((at, other, link, datagram));
        }
        some
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
    fn send(&mut self, from: usize, flow: u16, sequence: u32) {
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
        let packet = packet::build(&way, tag, 100);
        let queue = usize::from(flow) % self.kinds[from].workers;
        assert!(self.sites[from].offer(queue, &packet, &mut self.frames));
    }

    /// Some packets of many flows in both directions; every one arrives, and each flow in order.
    #[track_caller]
    fn exchange(&mut self) {
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
    fn used(&mut self, number: usize, at_least: u64) -> Vec<usize> {
        let carried = std::mem::take(&mut self.carried);
        let of_site = carried
            .into_iter()
            .filter(|((site, _), n)| *site == number && *n >= at_least);
        let mut links: Vec<usize> = of_site.map(|((_, link), _)| link).collect();
        links.sort_unstable();
        links
    }
}

#[test]
fn lanes_of_every_path_open_by_themselves_and_carry() {
    for workers in [(1, 1), (2, 2), (1, 3), (3, 2)] {
        let mut pair = Pair::new(kind(workers.0, 2), kind(workers.1, 2));
        pair.run(secs(5));
        let lanes = 2 * workers.0.max(workers.1);
        let [at_a, at_b] = [A, B].map(|site| pair.open_lanes(site, Duration::ZERO));
        assert_eq!(at_a.len(), lanes, "{workers:?}");
        assert!(at_a.keys().eq(at_b.keys()), "the same ones");
        pair.carried.clear();
        pair.exchange();
        assert_eq!(pair.used(A, 100), [0, 1], "flows are spread over both links");
        // An hour later they are still there: rekeyed, kept alive.
        pair.run(secs(3600));
        let [at_a, at_b] = [A, B].map(|site| pair.open_lanes(site, secs(3400)));
        assert_eq!((at_a.len(), at_b.len()), (lanes, lanes));
        pair.exchange();
    }
}

/// The links between all groups: four paths whose delays differ by 200 ms, so that one session over all of them would lose what its
/// window has left behind. 60,000 packets of each direction, in 0.3 s.
#[test]
fn unequal_paths_drop_nothing_as_too_old() {
    let four = Kind {
        links: vec![(1, false), (1, false)],
        ..kind(2, 2)
    };
    let mut pair = Pair::new(four.clone(), four);
    pair.delay = Box::new(|here, there| match (here, there) {
        (0, 0) => ms(10),
        (0, _) => ms(75),
        (_, 0) => ms(140),
        _ => ms(210),
    });
    pair.run(secs(10));
    assert_eq!(pair.open_lanes(A, Duration::ZERO).len(), 8);
    pair.carried.clear();
    for sequence in 0..600 {
        for flow in 0..100 {
            pair.send(A, flow, sequence);
            pair.send(B, flow, sequence);
        }
        pair.run(Duration::from_micros(500));
    }
    pair.run(secs(2));
    for site in [A, B] {
        assert_eq!(pair.delivered[site].len(), 60_000);
        assert_eq!(pair.sites[site].dropped(DropReason::DecapReplay), 0);
        let mut next = [0; 100];
        for tag in &pair.delivered[site] {
            assert_eq!(
                tag.sequence,
                next[usize::from(tag.flow)],
                "in order within each flow"
            );
            next[usize::from(tag.flow)] += 1;
        }
    }
    assert_eq!(pair.used(A, 10_000), [0, 1]);
}

#[test]
fn a_link_that_goes_and_comes_back() {
    let mut pair = Pair::new(kind(2, 2), kind(1, 2));
    pair.run(secs(5));
    pair.sites[A].close_link(0);
    pair.run(ms(100));
    pair.carried.clear();
    pair.exchange();
    assert_eq!(pair.used(A, 1), [1]);
    pair.run(secs(2));
    for site in [A, B] {
        assert_eq!(pair.sites[site].core.lanes(pair.base(site)).count(), 2, "{site}");
    }
    let then = pair.now.since(START);
    pair.sites[A].open_link(0);
    pair.run(secs(15));
    assert_eq!(pair.sites[A].core.lanes(pair.base(A)).count(), 4);
    assert_eq!(pair.open_lanes(A, then).len(), 2, "those of that link are new");
    pair.exchange();
    assert_eq!(pair.used(A, 100), [0, 1]);
}

#[test]
fn either_side_starts_anew() {
    for restarted in [A, B] {
        let mut pair = Pair::new(kind(2, 2), kind(2, 2));
        pair.run(secs(5));
        pair.exchange();
        pair.restart(restarted);
        let then = pair.now.since(START);
        pair.run(secs(20));
        for site in [A, B] {
            assert_eq!(pair.open_lanes(site, then).len(), 4, "site {site} of {restarted}");
        }
        pair.exchange();
    }
}

/// Whoever removes the other and adds it again has forgotten everything about it, without having been started anew.
#[test]
fn a_site_that_forgets_the_other_is_told_again() {
    for forgetful in [A, B] {
        let mut pair = Pair::new(kind(2, 2), kind(1, 2));
        pair.run(secs(5));
        pair.sites[forgetful].remove_peer(1 - forgetful);
        pair.run(ms(500));
        pair.introduce(forgetful);
        let then = pair.now.since(START);
        pair.run(secs(20));
        for site in [A, B] {
            assert_eq!(pair.open_lanes(site, then).len(), 4, "site {site} of {forgetful}");
        }
        pair.exchange();
    }
}

/// A link that is away for a moment: the one side has lost its sessions, and the other one does not go on in them.
#[test]
fn a_link_that_flaps_leaves_no_half_open_lane() {
    for side in [A, B] {
        let mut pair = Pair::new(kind(1, 2), kind(2, 2));
        pair.run(secs(5));
        let then = pair.now.since(START);
        pair.sites[side].close_link(1);
        pair.sites[side].open_link(1);
        pair.run(secs(3));
        for site in [A, B] {
            assert_eq!(pair.open_lanes(site, then).len(), 2, "site {site}");
        }
        pair.exchange();
    }
}

#[test]
fn who_is_behind_a_nat_calls() {
    let natted = Kind {
        links: vec![(0, true), (1, false)],
        ..kind(1, 2)
    };
    for natted_side in [A, B] {
        let mut kinds = [kind(1, 2), kind(1, 2)];
        kinds[natted_side] = natted.clone();
        let [a, b] = kinds;
        let mut pair = Pair::new(a, b);
        pair.run(secs(20));
        assert_eq!(pair.open_lanes(A, Duration::ZERO).len(), 2, "{natted_side}");
        pair.exchange();
    }
    // Between two that cannot be called there is no path; by the other link there is.
    let mut pair = Pair::new(natted.clone(), natted);
    pair.run(secs(20));
    assert_eq!(pair.sites[A].core.lanes(pair.base(A)).count(), 1);
    assert_eq!(pair.open_lanes(A, Duration::ZERO).len(), 1);
    pair.exchange();
}

/// Configured as a remote on one side only, it is a peer like any other.
#[test]
fn a_stock_peer_has_a_base_session_and_no_lane() {
    let stock = Kind {
        remote: false,
        ..kind(1, 2)
    };
    let mut pair = Pair::new(kind(1, 2), stock);
    pair.run(secs(30));
    pair.exchange();
    assert_eq!(pair.sites[A].core.lanes(pair.base(A)).count(), 0);
    assert!(
        pair.sites[B].dropped(DropReason::DecapNotIp) >= 5,
        "hellos, and nothing else"
    );
    assert_eq!(pair.sites[B].core.device().counters().total(), 0);
}

/// A link that loses everything without a word: what is sent by it is lost until the silence is noticed, and then goes by the other one.
#[test]
fn a_silent_path_is_left() {
    let mut pair = Pair::new(kind(1, 2), kind(1, 2));
    pair.run(secs(5));
    pair.exchange();
    pair.dead.insert(1);
    let keep_sending = |pair: &mut Pair, seconds: u64| {
        for sequence in 0..seconds * 10 {
            for flow in 0..32 {
                pair.send(A, flow, sequence as u32);
                pair.send(B, flow, sequence as u32);
            }
            pair.run(ms(100));
        }
    };
    keep_sending(&mut pair, 20);
    pair.run(secs(1));
    pair.exchange();
    // It comes back, and is used again.
    pair.dead.clear();
    keep_sending(&mut pair, 60);
    pair.run(secs(1));
    pair.carried.clear();
    pair.exchange();
    assert_eq!(pair.used(A, 100), [0, 1]);
}

/// What an engine tells people, one message each.
fn listen(log: &mut Log) -> UnixDatagram {
    let path = std::env::temp_dir().join(format!("patronus-lanes-{}", std::process::id()));
    let ear = UnixDatagram::bind(&path).unwrap();
    ear.set_nonblocking(true).unwrap();
    log.add_system_log(&path);
    std::fs::remove_file(&path).unwrap();
    ear
}

/// Half of the numbers are kept for peers. Lanes that found none are told of once, and added when others go.
#[test]
fn lanes_without_a_number_wait_for_one() {
    let mut log = Log::new("sim", Level::Error);
    let ear = listen(&mut log);
    let said = || (0..).map_while(|_| ear.recv(&mut [0; 300]).ok()).count();
    let short = Kind {
        peers: 2,
        ..kind(2, 2)
    };
    let mut pair = Pair::with_log(short, kind(2, 2), log);
    pair.run(secs(20));
    let lanes = |pair: &Pair, site: usize| pair.sites[site].core.lanes(pair.base(site)).count();
    assert_eq!([A, B].map(|site| lanes(&pair, site)), [2, 4]);
    assert_eq!(pair.open_lanes(A, Duration::ZERO).len(), 2);
    assert_eq!(said(), 1, "of two lanes");
    pair.exchange();
    // A second peer finds its number.
    let stranger = PeerPlan {
        key: PublicKey([7; 32]),
        endpoint: None,
        psk: [0; 32],
        keepalive: 0,
    };
    pair.sites[A].set_peer(7, &stranger);
    // The path whose lanes have numbers goes: those of the other one take them.
    pair.sites[A].close_link(0);
    pair.run(secs(20));
    assert_eq!(lanes(&pair, A), 2);
    let then = pair.now.since(START);
    pair.run(secs(300));
    assert_eq!(pair.open_lanes(A, then).len(), 2, "alive");
    assert_eq!(said(), 0);
    pair.exchange();
}

/// A remote that has more to say than its share is not listened to for a moment; the others are, and it is later.
#[test]
fn a_remote_that_talks_too_much_has_a_share() {
    let mut pair = Pair::new(kind(2, 2), kind(2, 2));
    pair.run(secs(5));
    for _ in 0..100 {
        pair.sites[B].close_link(1);
        pair.sites[B].open_link(1);
        pair.run(ms(1));
    }
    pair.run(ms(30));
    assert!(pair.sites[A].dropped(DropReason::ControlFlood) >= 50);
    let then = pair.now.since(START);
    pair.run(secs(20));
    assert_eq!(pair.open_lanes(A, then).len(), 2, "those of the link");
    pair.exchange();
}
