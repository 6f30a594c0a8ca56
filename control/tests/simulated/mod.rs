//! Paths with troubles, an engine that probes them and follows orders, and the invariants of steering.

use std::collections::HashMap;

use patronus_abi::channel::{
    PathName, PathReport, PathState, PathWhy, Ranked, SAMPLES, SUSPECT_MAX, SUSPECTS_MAX,
};
use patronus_control::quality::judge::{Judge, Links, Why};
use patronus_control::quality::suspects::Suspicion;
use patronus_control::quality::verdict::Fault;
use patronus_control::quality::{Class, Quality, Wanted};

pub const MILLI: u64 = 1_000_000;
pub const SECOND: u64 = 1_000 * MILLI;
/// The step of time.
const STEP: u64 = 10 * MILLI;
/// How often a side probes a path, and one that is suspect; each probe comes up to an eighth of that early.
const PROBE: u64 = 50 * MILLI;
const QUICK: u64 = 5 * MILLI;
/// Probes that are sent at the other side's wish without one having been heard for each.
const CREDIT: u32 = 20;
/// How often the engine copies what its workers know into the table, and control reads that.
const TURN: u64 = 100 * MILLI;
/// Silence after which a path is down, and hearing after which it is up.
const SILENT: u64 = 160 * MILLI;
const HEARD: u64 = 150 * MILLI;
const REMOTE: [u8; 32] = [7; 32];

/// SplitMix64 (Steele, Lea and Flood, 2014).
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// Above 0, at most 1.
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    pub fn exponential(&mut self, mean: u64) -> u64 {
        (-self.unit().ln() * mean as f64) as u64
    }
}

/// What is wrong with a path.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Trouble {
    None,
    /// So much more delay towards the remote, nanoseconds.
    Delay(u64),
    /// Of a million packets, so many are lost: towards us, towards the remote.
    Loss(u32, u32),
    /// Both, as a brown-out has it: more delay towards the remote, loss both ways.
    DelayAndLoss(u64, u32),
    /// Delays vary by so much, nanoseconds.
    Jitter(u64),
    /// Nothing passes.
    Down,
}

impl Trouble {
    pub fn random(rng: &mut Rng) -> Trouble {
        let ppm = [1_000, 8_000, 12_000, 30_000, 200_000];
        let mut loss = || ppm[rng.below(5) as usize];
        let (inward, outward) = (loss(), loss());
        match rng.below(8) {
            0 => Trouble::Delay((20 + rng.below(300)) * MILLI),
            1 => Trouble::Loss(inward, 0),
            2 => Trouble::Loss(0, outward),
            3 => Trouble::Jitter((10 + rng.below(100)) * MILLI),
            4 => Trouble::Down,
            _ => Trouble::None,
        }
    }
}

/// One direction of a path.
struct Way {
    delay: u64,
    sent: u64,
    received: u64,
    /// Packets until the next is lost.
    until_loss: u64,
    ppm: u32,
    /// Nothing passes until then.
    burst_until: u64,
    last_transit: u64,
    jitter: f64,
}

impl Way {
    fn new(delay: u64) -> Way {
        Way {
            delay,
            sent: 0,
            received: 0,
            until_loss: u64::MAX,
            ppm: 0,
            burst_until: 0,
            last_transit: 0,
            jitter: 0.0,
        }
    }

    fn lose(&mut self, ppm: u32, rng: &mut Rng) {
        self.ppm = ppm;
        self.until_loss = match ppm {
            0 => u64::MAX,
            ppm => (rng.unit().ln() / (1.0 - f64::from(ppm) / 1e6).ln()) as u64,
        };
    }

    /// A packet; whether it arrives.
    fn packet(&mut self, now: u64, passes: bool, rng: &mut Rng) -> bool {
        self.sent += 1;
        if self.until_loss == 0 {
            self.lose(self.ppm, rng);
            return false;
        }
        self.until_loss -= 1;
        let arrives = passes && now >= self.burst_until;
        self.received += u64::from(arrives);
        arrives
    }

    /// RFC 3550, section 6.4.1.
    fn transit(&mut self, transit: u64) {
        let difference = transit.abs_diff(self.last_transit) as f64;
        if self.last_transit > 0 {
            self.jitter += (difference - self.jitter) / 16.0;
        }
        self.last_transit = transit;
    }
}

/// A probe, and what it tells.
#[derive(Clone, Copy, Default)]
struct Probe {
    sent_at: u64,
    transit: u64,
    /// Packets sent in its direction until then, itself included, and those of them that arrive.
    pair: (u64, u64),
    /// Faster ones are wanted.
    wanted: bool,
    jitter: f64,
    /// The newest one that its sender has heard.
    echo_at: u64,
    echo_transit: u64,
    echo_pair: (u64, u64),
}

/// One end of a path: 0 is ours, 1 the remote's.
#[derive(Default)]
struct End {
    next_probe: u64,
    /// Control wants faster ones until then.
    suspect_until: u64,
    credit: u32,
    heard: Probe,
}

impl End {
    /// Until the next probe.
    fn pace(&mut self, now: u64, rng: &mut Rng) -> u64 {
        let is_suspect = self.suspect_until > now;
        let is_wanted = self.heard.wanted && self.credit > 0;
        if is_wanted && !is_suspect {
            self.credit -= 1;
        }
        let pace = if is_suspect || is_wanted { QUICK } else { PROBE };
        pace - pace / 8 * rng.below(256) / 256
    }
}

struct Path {
    report: PathReport,
    /// Towards us, and towards the remote.
    ways: [Way; 2],
    ends: [End; 2],
    /// By the end that they go to.
    under_way: [Vec<Probe>; 2],
    trouble: Trouble,
    /// When its last or next change of state is due, as the engine sees it.
    changes_at: Option<u64>,
    rate: u32,
    owed: u32,
    /// What it loses when nothing is wrong, parts per million each way.
    usual: u32,
    probes: u64,
}

impl Path {
    /// Loss that every path has unless said otherwise, parts per million.
    const RARE: u32 = 20;

    fn step(&mut self, now: u64, rng: &mut Rng) {
        let passes = self.trouble != Trouble::Down;
        self.change(now, passes);
        // Traffic both ways.
        self.owed += self.rate * (STEP / MILLI) as u32;
        while self.owed >= 1000 {
            self.owed -= 1000;
            for way in &mut self.ways {
                way.packet(now, passes, rng);
            }
        }
        // Now and then a queue overflows for a moment.
        if rng.below(60_000) == 0 {
            self.ways[rng.below(2) as usize].burst_until = now + 20 * MILLI;
        }
        for end in 0..2 {
            while self.ends[end].next_probe <= now {
                self.probe(end, passes, rng);
            }
        }
        for end in 0..2 {
            self.hear(end, now);
        }
    }

    /// An end sends a probe.
    fn probe(&mut self, from: usize, passes: bool, rng: &mut Rng) {
        let (to, end) = (1 - from, &mut self.ends[from]);
        let at = end.next_probe;
        end.next_probe += end.pace(at, rng);
        self.probes += 1;
        let mut varied = rng.exponential(2 * MILLI);
        if rng.below(600) == 0 {
            varied += rng.below(250 * MILLI);
        }
        if let Trouble::Jitter(by) = self.trouble {
            varied += rng.below(2 * by);
        }
        let more = match (self.trouble, to) {
            (Trouble::Delay(more) | Trouble::DelayAndLoss(more, _), 1) => more,
            _ => 0,
        };
        let way = &mut self.ways[to];
        let transit = way.delay + more + varied;
        let arrives = way.packet(at, passes, rng);
        let (end, pair) = (&self.ends[from], (way.sent, way.received));
        if arrives {
            self.under_way[to].push(Probe {
                sent_at: at,
                transit,
                pair,
                wanted: end.suspect_until > at,
                jitter: self.ways[from].jitter,
                echo_at: end.heard.sent_at,
                echo_transit: end.heard.transit,
                echo_pair: end.heard.pair,
            });
        }
        self.report.probes_sent += u64::from(from == 0);
    }

    /// An end hears what has arrived.
    fn hear(&mut self, at: usize, now: u64) {
        while let Some(next) = self.under_way[at]
            .iter()
            .position(|probe| probe.sent_at + probe.transit <= now)
        {
            let probe = self.under_way[at].swap_remove(next);
            let (end, way) = (&mut self.ends[at], &mut self.ways[at]);
            self.report.probes_received += u64::from(at == 0);
            if probe.sent_at <= end.heard.sent_at {
                // Overtaken on its way.
                continue;
            }
            way.transit(probe.transit);
            end.credit = (end.credit + 1).min(CREDIT);
            if probe.wanted && !end.heard.wanted {
                end.next_probe = end.next_probe.min(now);
            }
            let before = std::mem::replace(&mut end.heard, probe);
            if at == 0 {
                let report = &mut self.report;
                (report.in_sent, report.in_received) = probe.pair;
                (report.out_sent, report.out_received) = probe.echo_pair;
                (report.jitter_in, report.jitter_out) =
                    ((way.jitter / 1000.0) as u32, (probe.jitter / 1000.0) as u32);
                if probe.echo_at > before.echo_at {
                    let rtt = (probe.transit + probe.echo_transit) / 1000;
                    report.recent[(report.samples % SAMPLES as u64) as usize] = rtt as u32;
                    report.samples += 1;
                }
            }
        }
    }

    /// As the engine does what control says.
    fn suspect(&mut self, now: u64, suspicion: &Suspicion) {
        let is_suspect = suspicion.paths.contains(&self.report.path);
        let ours = &mut self.ends[0];
        if is_suspect && ours.suspect_until <= now {
            ours.next_probe = ours.next_probe.min(now);
        }
        let length = u64::from(suspicion.length) * MILLI;
        ours.suspect_until = if is_suspect { now + length } else { 0 };
    }

    fn change(&mut self, now: u64, passes: bool) {
        let is_up = self.report.state == PathState::Up;
        if passes == is_up {
            self.changes_at = None;
            return;
        }
        let at = *self
            .changes_at
            .get_or_insert(now + if passes { HEARD } else { SILENT });
        if now >= at {
            self.report.since = now;
            (self.report.state, self.report.why) = match passes {
                true => (PathState::Up, PathWhy::Heard),
                false => (PathState::Down, PathWhy::Silent),
            };
            self.changes_at = None;
        }
    }
}

/// What a class has been through.
#[derive(Default)]
struct Steered {
    order: Vec<Ranked>,
    chosen: Option<PathName>,
    /// When the class was taken from a path that was down or poor.
    left: HashMap<PathName, u64>,
}

/// A remote, its paths, an engine and the quality of control.
pub struct Site {
    now: u64,
    rng: Rng,
    paths: Vec<Path>,
    classes: Vec<Class>,
    steered: Vec<Steered>,
    table: Vec<PathReport>,
    quality: Quality,
    copy_at: u64,
    read_at: u64,
    pub moves: u64,
    pub forced: u64,
    pub last_move: String,
}

/// Milliseconds, and parts per million; 0: no limit.
pub fn class(name: &str, latency: u32, jitter: u32, loss: u32) -> Class {
    let limit = |value: u32| Some(value).filter(|value| *value > 0);
    Class {
        name: name.to_owned(),
        latency_us: limit(latency * 1000),
        jitter_us: limit(jitter * 1000),
        loss_ppm: limit(loss),
        hold_ms: 30_000,
        ..Class::default()
    }
}

impl Site {
    /// So many paths, the first the cheapest, each with so many packets a second beside probes.
    pub fn new(seed: u64, classes: Vec<Class>, paths: u8, rate: u32) -> Site {
        let mut rng = Rng::new(seed);
        let mut links = [Links::default(); 16];
        let paths = (1..=paths).map(|local| {
            links[usize::from(local)].cost = u16::from(local);
            // 10 to 35 ms each way, not the same.
            let mut way = || {
                let mut way = Way::new(10 * MILLI + rng.below(25 * MILLI));
                way.lose(Path::RARE, &mut rng);
                way
            };
            let ways = [way(), way()];
            Path {
                report: fresh(PathName { local, remote: 1 }),
                ways,
                ends: [0; 2].map(|_| End {
                    next_probe: SECOND + rng.below(PROBE),
                    ..End::default()
                }),
                under_way: [const { Vec::new() }; 2],
                trouble: Trouble::None,
                changes_at: None,
                rate,
                owed: 0,
                usual: Path::RARE,
                probes: 0,
            }
        });
        let paths: Vec<Path> = paths.collect();
        let mut quality = Quality::default();
        quality.configure(Wanted {
            classes: classes.clone(),
            links,
        });
        Site {
            now: SECOND,
            copy_at: SECOND + rng.below(TURN),
            read_at: SECOND + rng.below(TURN),
            rng,
            paths,
            steered: classes.iter().map(|_| Steered::default()).collect(),
            classes,
            table: Vec::new(),
            quality,
            moves: 0,
            forced: 0,
            last_move: String::new(),
        }
    }

    pub fn now(&self) -> u64 {
        self.now
    }

    pub fn path(&self, at: usize) -> PathName {
        self.paths[at].report.path
    }

    pub fn chosen(&self, class: usize) -> Option<PathName> {
        self.steered[class].chosen
    }

    pub fn trouble(&mut self, path: PathName, trouble: Trouble) {
        let found = self.paths.iter_mut().find(|known| known.report.path == path);
        let found = found.expect("a path");
        found.trouble = trouble;
        let (inward, outward) = match trouble {
            Trouble::Loss(inward, outward) => (inward, outward),
            Trouble::DelayAndLoss(_, ppm) => (ppm, ppm),
            _ => (0, 0),
        };
        found.ways[0].lose(found.usual + inward, &mut self.rng);
        found.ways[1].lose(found.usual + outward, &mut self.rng);
    }

    /// All paths lose so many of a million packets each way when nothing is wrong.
    pub fn lose(&mut self, ppm: u32) {
        for path in &mut self.paths {
            path.usual = ppm;
            path.ways.iter_mut().for_each(|way| way.lose(ppm, &mut self.rng));
        }
    }

    /// Probes sent by either side until now.
    pub fn probes(&self) -> u64 {
        self.paths.iter().map(|path| path.probes).sum()
    }

    /// How many packets a second there are on a path beside probes from now on.
    pub fn rate(&mut self, path: PathName, rate: u32) {
        let found = self.paths.iter_mut().find(|known| known.report.path == path);
        found.expect("a path").rate = rate;
    }

    pub fn run(&mut self, time: u64) {
        let end = self.now + time;
        while self.now < end {
            self.step();
        }
    }

    pub fn step(&mut self) {
        self.now += STEP;
        let now = self.now;
        let mut is_told = false;
        for path in &mut self.paths {
            let before = path.report.state;
            path.step(now, &mut self.rng);
            let (state, why) = (path.report.state, path.report.why);
            if state != before {
                self.quality.note(now, &REMOTE, path.report.path, state, why);
                is_told = true;
            }
        }
        if self.copy_at <= now {
            self.copy_at += TURN;
            self.table = self.paths.iter().map(|path| path.report).collect();
        }
        let is_due = self.read_at <= now;
        if is_due {
            self.read_at += TURN;
            self.quality.take(now, self.table.iter().copied());
        }
        if is_due || is_told {
            self.quality.judge(now, is_due);
            let steered = &mut self.steered;
            self.quality.order(now, |order| {
                steered[usize::from(order.class)].order = order.paths;
                true
            });
        }
        if is_due {
            let paths = &mut self.paths;
            self.quality.suspect(now, |suspicion| {
                assert!(suspicion.paths.len() <= SUSPECTS_MAX && suspicion.length <= SUSPECT_MAX);
                for path in &mut *paths {
                    path.suspect(now, &suspicion);
                }
                true
            });
        }
        self.steer();
    }

    /// As the engine: the first that is good and up, or else the first that is up.
    fn steer(&mut self) {
        for class in 0..self.steered.len() {
            let order = &self.steered[class].order;
            let is_up = |ranked: &&Ranked| {
                let path = self.paths.iter().find(|path| path.report.path == ranked.path);
                path.is_some_and(|path| path.report.state == PathState::Up)
            };
            let mut up = order.iter().filter(is_up);
            let good = up.clone().find(|ranked| ranked.grade > 0);
            let Some(to) = good.or_else(|| up.next()).copied() else {
                continue;
            };
            let from = self.steered[class].chosen;
            if from != Some(to.path) {
                self.moved(class, from, to);
            }
        }
    }

    fn moved(&mut self, class: usize, from: Option<PathName>, to: Ranked) {
        let now = self.now;
        let hold = u64::from(self.classes[class].hold_ms) * MILLI;
        self.steered[class].chosen = Some(to.path);
        let steered = &self.steered[class];
        let Some(from) = from else { return };
        self.moves += 1;
        let state_of = |path| {
            let path = self.paths.iter().find(|known| known.report.path == path);
            path.expect("a path").report.state
        };
        let was_up = state_of(from) == PathState::Up;
        let grade = steered.order.iter().find(|ranked| ranked.path == from);
        let was_good = was_up && grade.is_some_and(|ranked| ranked.grade > 0);
        self.last_move = format!(
            "class {class} at {} ms: {from} ({}) to {} ({}), {:?}",
            now / MILLI,
            grade.map_or(0, |ranked| ranked.grade),
            to.path,
            to.grade,
            self.why(class)
        );
        // No return within the hold, but where nothing else is up.
        let returned = steered.left.get(&to.path).is_some_and(|at| now - at < hold);
        if returned {
            let is_held = |path| steered.left.get(path).is_some_and(|at| now - at < hold);
            let mut others = steered.order.iter().filter(|ranked| ranked.path != to.path);
            let is_other_up =
                others.any(|other| state_of(other.path) == PathState::Up && !is_held(&other.path));
            assert!(
                !was_up && to.grade == 0 && !is_other_up,
                "back within the hold: {} {:?}",
                self.last_move,
                steered.order
            );
            self.forced += 1;
        }
        // What is used as good keeps every limit at that moment, the loss of ten seconds among them.
        if was_up && to.grade > 0 {
            let judge = self.judge(class).expect("a judge");
            let fault = judge
                .order()
                .find(|entry| entry.path == to.path)
                .map(|entry| entry.fault);
            assert_eq!(fault, Some(None), "{}", self.last_move);
        }
        // No move without a better path.
        if was_up {
            let is_better = to.grade > 0 || self.is_less_bad(class, to.path, from);
            assert!(is_better, "moved for nothing: {}", self.last_move);
        }
        if !was_good {
            self.steered[class].left.insert(from, now);
        }
    }

    /// Why control has that path first.
    fn why(&self, class: usize) -> Option<Why> {
        self.judge(class)?.first().map(|(_, _, why)| why)
    }

    pub fn judge(&self, class: usize) -> Option<&Judge> {
        self.quality.remote(&REMOTE)?.judge_of(class)
    }

    fn is_less_bad(&self, class: usize, this: PathName, than: PathName) -> bool {
        let judge = self.judge(class).expect("a judge");
        let fault = |path| {
            judge
                .order()
                .find(|entry| entry.path == path)
                .and_then(|entry| entry.fault)
        };
        match (fault(this), fault(than)) {
            (None, Some(_)) => true,
            (Some(Fault::Broken(this)), Some(Fault::Broken(than))) => {
                this.badness() * 10 < than.badness() * 9
            }
            _ => false,
        }
    }
}

fn fresh(path: PathName) -> PathReport {
    PathReport {
        state: PathState::Up,
        why: PathWhy::Heard,
        in_use: true,
        interval: Some(50_000),
        remote_interval: Some(50_000),
        ..PathReport::new(REMOTE, path)
    }
}
