//! A thousand sites and their hub: real slow paths, workers and stages, on a network that loses nothing, in ticks of 10 ms.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{IpAddr, SocketAddr};

use patronus_crypto::messages::{self, Kind};
use patronus_crypto::{Duration, LinkId, Refusal, Time};
use patronus_engine::channel::{CONTROL_QUEUE, HANDSHAKE_QUEUE, NOTICE_QUEUE};
use patronus_engine::probe::Probing;
use patronus_engine::remote::message::LinkInfo;
use patronus_engine::stats::DropReason;
use patronus_mem::{Arena, ArenaConfig, FrameCache};
use patronus_sim::START;
use patronus_sim::clock::VirtualClock;
use patronus_sim::network::Datagram;
use patronus_sim::packet::{self, Known, Tag, Way};
use patronus_sim::rng::Seeded;
use patronus_sim::site::{Net, PeerPlan, Site, SitePlan, UDP_PORT, own_address, owner_of, private_key};

const SITES: usize = 1000;
const HUB: usize = 0;
/// The network of the first site behind the hub's own.
const FIRST_NET: Net = 256;
/// One way.
const DELAY: Duration = Duration::from_millis(20);
/// A turn of the hub's slow path in each: 64 messages, at about 150 us for a handshake.
const TICK: Duration = Duration::from_millis(10);
/// Datagrams that land at once, so that they find room in a socket.
const LANDING: usize = 128;
/// Sites that share an arena: none of them holds more than a packet or two.
const ARENA_SHARE: usize = 16;

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// The most that ever waited for the hub's slow path.
#[derive(Default, Debug)]
struct Peaks {
    handshakes: usize,
    controls: usize,
    notices: usize,
}

struct Fleet {
    now: Time,
    clock: VirtualClock,
    frames: FrameCache,
    arenas: Vec<&'static Arena>,
    /// The hub, and the others around it.
    sites: Vec<Site>,
    /// By arrival, then as sent; what it is stands beside.
    flying: BinaryHeap<Reverse<(Time, usize)>>,
    datagrams: Vec<Option<Datagram>>,
    /// By site: packets that came to it, or at the hub from it.
    delivered: [Vec<u32>; 2],
    peaks: Peaks,
    /// Initiations to the hub, as somebody on the way has heard them.
    heard: Vec<Datagram>,
    sequence: u32,
    starts: u64,
}

fn arena(frames: usize) -> &'static Arena {
    let jumbo_frames = 1;
    Arena::new(&ArenaConfig { frames, jumbo_frames }).unwrap()
}

impl Fleet {
    fn new() -> Fleet {
        let clock = VirtualClock::new();
        let mut fleet = Fleet {
            now: START,
            clock,
            frames: FrameCache::new(arena(1 << 15)),
            arenas: (0..=SITES / ARENA_SHARE)
                .map(|_| arena(4 * ARENA_SHARE))
                .collect(),
            sites: Vec::new(),
            flying: BinaryHeap::new(),
            datagrams: Vec::new(),
            delivered: [vec![0; SITES + 1], vec![0; SITES + 1]],
            peaks: Peaks::default(),
            heard: Vec::new(),
            sequence: 0,
            starts: 0,
        };
        for number in HUB..=SITES {
            let site = fleet.start(number);
            fleet.sites.push(site);
        }
        (HUB..=SITES).for_each(|number| fleet.introduce(number));
        fleet
    }

    fn start(&mut self, number: usize) -> Site {
        let is_hub = number == HUB;
        let plan = SitePlan {
            number,
            workers: if is_hub { 2 } else { 1 },
            links: 1,
            mtu: 1420,
            router: false,
            bound: true,
            // A hub of two workers has two lanes to each site.
            peers: if is_hub { 2 * SITES } else { 2 },
            handshakes: if is_hub { HANDSHAKE_QUEUE } else { 16 },
            probing: Probing::default(),
        };
        let arena = match is_hub {
            true => self.frames.arena(),
            false => self.arenas[number / ARENA_SHARE],
        };
        self.starts += 1;
        let mut site = Site::start(
            &plan,
            private_key(1, number),
            arena,
            &self.clock,
            Seeded(self.starts),
        );
        let IpAddr::V4(v4) = own_address(number, 0, false) else {
            unreachable!("asked for IPv4");
        };
        let info = LinkInfo {
            id: LinkId::new(1).unwrap(),
            group: 0,
            metered: false,
            behind_nat: !is_hub,
            incarnation: 0,
            has_v4: true,
            has_v6: false,
            port: UDP_PORT,
            v4: Some(v4).filter(|_| is_hub),
            v6: None,
        };
        site.core.describe_link(0, Some(info));
        site
    }

    /// The sites know where the hub is; it does not know where they are.
    fn introduce(&mut self, number: usize) {
        let others = if number == HUB { 1..=SITES } else { HUB..=HUB };
        for other in others {
            let key = self.sites[other].core.device().public_key().unwrap();
            let plan = PeerPlan {
                key,
                endpoint: (other == HUB).then(|| SocketAddr::new(own_address(HUB, 0, false), UDP_PORT)),
                psk: [3; 32],
                keepalive: 25,
            };
            let site = &mut self.sites[number];
            site.set_peer(other, &plan);
            site.allow(other, net(other));
            let id = site.peers[&other];
            site.core.make_remote(id);
        }
    }

    fn restart_hub(&mut self) {
        self.sites[HUB] = self.start(HUB);
        self.introduce(HUB);
        self.delivered = [vec![0; SITES + 1], vec![0; SITES + 1]];
        self.peaks = Peaks::default();
    }

    fn tick(&mut self) {
        self.now = self.now.after(TICK);
        self.clock.set(self.now);
        let mut busy: Vec<bool> = self
            .sites
            .iter()
            .map(|site| {
                let due = site
                    .core
                    .next_deadline()
                    .into_iter()
                    .chain(site.worker_deadline());
                due.min().is_some_and(|at| at <= self.now)
            })
            .collect();
        while self.land(&mut busy) {
            self.work(HUB);
        }
        (1..=SITES)
            .filter(|&site| busy[site])
            .for_each(|site| while self.turn(site) {});
        let inbox = self.sites[HUB].core.inbox();
        let peaks = &mut self.peaks;
        peaks.handshakes = peaks.handshakes.max(inbox.handshakes.len());
        peaks.controls = peaks.controls.max(inbox.controls.len());
        peaks.notices = peaks.notices.max(inbox.notices.len());
        self.turn(HUB);
        self.work(HUB);
        self.collect(HUB);
    }

    /// Some datagrams arrive. True if there are more.
    fn land(&mut self, busy: &mut [bool]) -> bool {
        for _ in 0..LANDING {
            let Some(Reverse((_, number))) = self
                .flying
                .peek()
                .copied()
                .filter(|Reverse((at, _))| *at <= self.now)
            else {
                return false;
            };
            self.flying.pop();
            let datagram = self.datagrams[number].take().expect("lands once");
            let Some((site, link)) = owner_of(datagram.to.ip()).filter(|(site, _)| *site <= SITES) else {
                continue;
            };
            busy[site] = true;
            assert!(self.sites[site].arrive(link, &datagram, &mut self.frames));
        }
        true
    }

    /// Lets the workers of a site do all that they have to.
    fn work(&mut self, number: usize) {
        let site = &mut self.sites[number];
        loop {
            let before = site.pulse();
            for worker in 0..site.workers.len() {
                assert!(site.worker_turn(worker, self.now));
            }
            if site.pulse() == before {
                return;
            }
        }
    }

    /// A turn of everybody in a site. False if there was nothing to do.
    fn turn(&mut self, number: usize) -> bool {
        let before = self.sites[number].pulse();
        self.work(number);
        self.sites[number].slow_turn(&mut self.frames).unwrap();
        self.collect(number);
        self.sites[number].pulse() != before
    }

    fn collect(&mut self, number: usize) {
        for packet in self.sites[number].delivered(&mut self.frames).unwrap() {
            let Known::Tagged(tag) = packet::recognize(&packet) else {
                panic!("not what a host has sent: {packet:02x?}");
            };
            self.delivered[usize::from(number != HUB)][usize::from(tag.flow)] += 1;
        }
        for sent in self.sites[number].sent(&mut self.frames) {
            let datagram = Datagram {
                from: SocketAddr::new(own_address(number, sent.link, false), UDP_PORT),
                to: sent.outer.remote().expect("an address"),
                tos: sent.outer.tos(),
                bytes: sent.bytes,
                genuine: true,
            };
            if messages::kind(&datagram.bytes) == Ok(Kind::Initiation) {
                self.heard.push(datagram.clone());
            }
            self.launch(datagram);
        }
    }

    fn launch(&mut self, datagram: Datagram) {
        self.flying
            .push(Reverse((self.now.after(DELAY), self.datagrams.len())));
        self.datagrams.push(Some(datagram));
    }

    /// A packet between the hosts of a site and of the hub.
    fn send(&mut self, from: usize, to: usize) {
        self.sequence += 1;
        let tag = Tag {
            origin: u8::from(from != HUB),
            flow: from.max(to) as u16,
            sequence: self.sequence,
        };
        let way = Way {
            src: host(from),
            dst: host(to),
            port: 1000,
            ttl: 64,
            ecn: 0,
        };
        let packet = packet::build(&way, tag, 100);
        let queue = to % self.sites[from].workers.len();
        if !self.sites[from].offer(queue, &packet, &mut self.frames) {
            panic!("no room");
        }
        self.work(from);
        self.collect(from);
    }

    /// Somebody repeats initiations that he has heard, from an address of his own: to the hub they look sound, until it computes.
    fn flood(&mut self, messages: usize) {
        for at in 0..messages.min(self.heard.len()) {
            let mut datagram = self.heard[at].clone();
            datagram.from = SocketAddr::from(([203, 0, 113, 1], 1));
            self.launch(datagram);
        }
    }

    /// Every site sends a packet each second. How many seconds it took until a packet of each was through, and one to each.
    fn until_all_are_heard(&mut self, flooded: bool) -> u64 {
        for second in 1..=120 {
            (1..=SITES).for_each(|site| self.send(site, HUB));
            // The hub's hosts answer whom they have heard.
            let heard: Vec<usize> = (1..=SITES).filter(|&site| self.delivered[0][site] > 0).collect();
            heard.into_iter().for_each(|site| self.send(HUB, site));
            if flooded {
                self.flood(FLOOD);
            }
            self.run(secs(1));
            if self.delivered.iter().all(|of| of[1..].iter().all(|n| *n > 0)) {
                return second;
            }
        }
        let silent = self.delivered[0][1..].iter().filter(|n| **n == 0).count();
        panic!("{silent} sites are not heard");
    }

    fn run(&mut self, time: Duration) {
        let end = self.now.after(time);
        while self.now < end {
            self.tick();
        }
    }

    /// Sites that have a lane whose handshake was completed since then.
    fn with_lanes(&self, since: Time) -> usize {
        let then = 1_780_000_000 + since.since(START).as_secs();
        let has_lane = |site: &&Site| {
            site.core.lanes(site.peers[&HUB]).any(|(_, lane)| {
                let last = site.core.device().last_handshake(lane);
                last.is_some_and(|at| at.secs >= then)
            })
        };
        self.sites[1..].iter().filter(has_lane).count()
    }

    fn refused(&self, why: Refusal) -> u64 {
        self.sites[HUB].core.device().counters().get(why)
    }
}

/// Initiations repeated each second: more than make a hub count itself as under load.
const FLOOD: usize = 600;

fn net(site: usize) -> Net {
    if site == HUB { 0 } else { FIRST_NET + site as Net }
}

fn host(site: usize) -> IpAddr {
    match net(site) {
        0 => IpAddr::from([10, 0, 0, 9]),
        net => IpAddr::from([172, 16 + (net >> 8) as u8, net as u8, 9]),
    }
}

/// All sites lose their hub in the same moment, and notice it in the same third of a second. The hub that comes back knows nobody's address,
/// counts itself as under load all the time, because somebody repeats old initiations, and asks everyone for a cookie.
#[test]
fn a_thousand_sites_come_back_to_a_restarted_hub() {
    let mut fleet = Fleet::new();
    let first = fleet.until_all_are_heard(false);
    fleet.run(secs(30));
    assert_eq!(fleet.with_lanes(START), SITES);
    println!("all connected after {first} s, {:?}", fleet.peaks);

    fleet.restart_hub();
    let then = fleet.now;
    let took = fleet.until_all_are_heard(true);
    let asked = fleet.refused(Refusal::CookieRequired);
    println!(
        "again after {took} s, {asked} asked for a cookie, {:?}",
        fleet.peaks
    );
    // 15 s until the silence is noticed, 5 s until the cookie is used, and a second try of those who were unlucky.
    assert!(took <= 15 + 5 + 6, "{took} s");
    let repeated = took * FLOOD as u64;
    assert!(
        asked >= repeated + SITES as u64,
        "everyone was asked for a cookie"
    );
    for _ in 0..20 {
        fleet.flood(FLOOD);
        fleet.run(secs(1));
    }
    assert_eq!(fleet.with_lanes(then), SITES, "lanes are made in spite of it");

    let hub = &fleet.sites[HUB];
    assert!((512..HANDSHAKE_QUEUE).contains(&fleet.peaks.handshakes));
    assert!(fleet.peaks.controls < CONTROL_QUEUE && fleet.peaks.notices < NOTICE_QUEUE);
    assert_eq!(hub.dropped(DropReason::HandshakeQueueFull), 0);
    assert_eq!(hub.dropped(DropReason::ControlQueueFull), 0);
    assert_eq!(fleet.refused(Refusal::TooManySources), 0);
}
