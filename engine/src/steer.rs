//! Steering: which path towards a remote a packet takes, and the copies of those that take two (docs/steering.md).
//!
//! Flows of a class are spread over [`BUCKETS`] buckets by a keyed hash, and a bucket, not a flow, is on a path: no memory for each flow, and a decision takes one look at a
//! bucket. Three things say where a bucket belongs: what control thinks of the paths ([`Order`]), which of them are up (a word that all workers share), and the class's
//! [`Manner`]. A bucket's *home* is worked out when one of these changes, for all buckets of the class at once; a packet compares two bytes.
//!
//! A bucket that is not at home moves at once if its path is down, or poor while there is a good one. Otherwise it waits for a pause between its packets in which none can be
//! overtaken, or for its turn within [`RETURN`]: then what comes back comes back bit by bit.
//!
//! * [`Order`]: which path comes first
//! * [`Doubles`]: the copies
//!
//! The slow path makes a [`Steering`] for each worker and remote, with all its memory, and sends it with the paths. It is that worker's own from then on; nothing is shared.

mod doubles;
mod order;

use std::net::IpAddr;
use std::sync::Arc;

use arrayvec::ArrayVec;
use patronus_abi::channel::{PATHS_MAX, PathName};
use patronus_abi::site::{CLASSES_MAX, Class, Mode, OuterDscp, Sticky};
use patronus_crypto::{Duration, PeerId, Time};
use patronus_io::ip::FlowKey;

pub use self::doubles::Doubles;
pub use self::order::{Order, Standing};
use crate::flow::HashKeys;
use crate::path::{PathBoard, PathLanes};

/// Buckets of a class.
pub const BUCKETS: usize = 256;
/// A bucket that had no packet for so long may move: longer than most paths' delays differ.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// Within this time all buckets move that wait for a pause in vain.
pub const RETURN: Duration = Duration::from_secs(4);
/// Nanoseconds of a unit of a bucket's time, as a power of two: a little more than a millisecond.
const COARSE_BITS: u32 = 20;
/// A bucket that has had no packet yet is on no path.
const NOWHERE: u8 = u8::MAX;

/// How packets of a class are steered.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Manner {
    /// How its flows use the paths.
    pub mode: Mode,
    /// Which packets stay together.
    pub sticky: Sticky,
    /// The DSCP of its datagrams.
    pub dscp: OuterDscp,
}

/// The manners of all classes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Manners([Manner; CLASSES_MAX]);

impl Manners {
    /// Those of a site's classes.
    pub fn of(classes: &[Class]) -> Manners {
        let mut all = Manners::default();
        for (manner, class) in all.0.iter_mut().zip(classes) {
            *manner = Manner {
                mode: class.mode,
                sticky: class.sticky,
                dscp: class.dscp,
            };
        }
        all
    }

    /// Whether packets of any class go twice.
    pub fn double(&self) -> bool {
        self.0.iter().any(|manner| manner.mode == Mode::Duplicate)
    }

    /// That of a class; of a class that is not there, the plain one.
    #[inline]
    pub fn get(&self, class: u8) -> Manner {
        self.0[usize::from(class) % CLASSES_MAX]
    }
}

/// The outer traffic class of a packet with this inner one: the class's DSCP, and the packet's ECN field (RFC 6040, section 4.1). Without a DSCP an observer learns
/// nothing of what is inside.
#[inline]
pub fn outer_tos(dscp: OuterDscp, inner: u8) -> u8 {
    const ECN: u8 = 3;
    match dscp {
        OuterDscp::None => inner & ECN,
        OuterDscp::Copy => inner,
        OuterDscp::Set(dscp) => dscp << 2 | inner & ECN,
    }
}

/// The bucket of a flow with this hash. Other bits than those that choose the flow's worker and its next hop.
#[inline]
pub fn bucket_of(hash: u64) -> u8 {
    (hash >> 40) as u8
}

/// The bucket of a source: all packets from one address of IPv4, or from one /64, have the same.
pub fn bucket_of_source(keys: &HashKeys, source: IpAddr) -> u8 {
    let key = match source {
        IpAddr::V4(ip) => FlowKey::v4(ip.octets(), [0; 4], 0, 0, 0),
        IpAddr::V6(ip) => {
            let subnet = (ip.to_bits() >> 64 << 64).to_be_bytes();
            FlowKey::v6(subnet, [0; 16], 0, 0, 0)
        }
    };
    bucket_of(keys.hash(&key))
}

/// Why a bucket went from one path to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moved {
    /// Its path was down.
    Down,
    /// Its path was poor, and there was a good one.
    Poor,
    /// There was a better path, and a pause in which to go there.
    Pause,
    /// There was a better path, no pause came, and it was its turn.
    Turn,
    /// There was no lane to send by on its path; that is so for one packet.
    Lane,
}

impl Moved {
    /// All of them.
    pub const ALL: [Moved; 5] = [Moved::Down, Moved::Poor, Moved::Pause, Moved::Turn, Moved::Lane];

    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Moved::Down => "down",
            Moved::Poor => "poor",
            Moved::Pause => "pause",
            Moved::Turn => "turn",
            Moved::Lane => "lane",
        }
    }
}

/// By which lane a packet leaves, and whether that is another path than the one before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chosen {
    /// The lane.
    pub lane: PeerId,
    /// Why it is another path.
    pub moved: Option<Moved>,
}

/// Where a bucket is.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// The lane that its packets take.
    lane: PeerId,
    /// When its last packet came, and when it came to its path, in units of 2^[`COARSE_BITS`] ns; they wrap.
    seen: u32,
    since: u32,
    /// The place of its path, and of the one that it belongs to.
    path: u8,
    home: u8,
}

const EMPTY: Bucket = Bucket {
    lane: PeerId(u32::MAX),
    seen: 0,
    since: 0,
    path: NOWHERE,
    home: 0,
};

const fn coarse(time: Time) -> u32 {
    (time.0 >> COARSE_BITS) as u32
}

/// One class.
struct Table {
    order: Box<Order>,
    mode: Mode,
    /// Homes are those while these paths were up; none: they are not known.
    known: Option<u64>,
    /// When buckets were last given another home.
    since: Time,
    buckets: [Bucket; BUCKETS],
}

/// Where buckets of a class belong.
struct Homes {
    /// The first path.
    first: u8,
    /// Those over which buckets are spread.
    spread: u64,
    /// By their weights.
    is_weighted: bool,
    /// Who is on a path stays there.
    stay: bool,
}

impl Homes {
    /// Where a bucket belongs that is on this path.
    fn of(&self, bucket: u8, path: u8, order: &Order, tags: &[u8]) -> u8 {
        match path {
            stays if self.stay && stays != NOWHERE => stays,
            _ if self.spread.is_power_of_two() => self.first,
            _ => rendezvous(bucket, self.spread, tags, |path| match self.is_weighted {
                true => order.weights[path],
                false => 1,
            }),
        }
    }
}

/// What a bucket is doing, for whoever asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Told {
    /// The place of its path; none: it has had no packet.
    pub path: Option<u8>,
    /// The place of the path that it belongs to, which its next packet takes if it has had none; none: this worker has no lane on those that are up.
    pub home: Option<u8>,
    /// Whether a packet takes two.
    pub second: Option<u8>,
    /// How long it has been on its path, to a millisecond.
    pub since: Duration,
    /// And how long ago its last packet came.
    pub seen: Duration,
}

/// How one worker steers packets towards one remote.
pub struct Steering {
    tables: Box<[Table]>,
    /// By place: the paths among which nothing is to be preferred to this one.
    equals: Box<[u64]>,
    /// Both sides' names of the paths, by place.
    tags: Box<[u8]>,
    /// Paths on which this worker has a lane.
    with_lanes: u64,
    keys: Arc<HashKeys>,
    /// Of which classes this is; those of others do not take over from it.
    classes: u32,
    doubles: Box<[Doubles]>,
    /// The numbers of the lanes, by the lanes' ids.
    numbers: Box<[(PeerId, u8)]>,
}

/// What a [`Steering`] is made from.
pub struct Plan<'a> {
    /// The paths of the board, by place.
    pub paths: &'a [(PathName, Standing)],
    /// The worker's lanes of each.
    pub lanes: &'a [PathLanes],
    /// The order of each class.
    pub orders: Vec<Order>,
    /// Their manners.
    pub manners: &'a Manners,
    /// Which classes they are.
    pub classes: u32,
    /// Keys of the hash, the same for all of a worker's remotes or not.
    pub keys: Arc<HashKeys>,
}

impl Steering {
    /// With all the memory that it will need.
    pub fn new(plan: Plan<'_>) -> Steering {
        let Plan { paths, lanes, .. } = plan;
        let equals = |(_, standing): &(PathName, Standing)| {
            let all = paths.iter().enumerate();
            let equal = all.filter(|(_, (_, other))| standing.is_equal(other));
            equal.fold(0, |set, (at, _)| set | 1 << at)
        };
        let table = |(order, class): (Order, u8)| Table {
            order: Box::new(order),
            mode: plan.manners.get(class).mode,
            known: None,
            since: Time::default(),
            buckets: [EMPTY; BUCKETS],
        };
        let each = || lanes.iter().flat_map(|path| path.lanes.iter().zip(&path.numbers));
        let mut numbers: Vec<(PeerId, u8)> = each().map(|(id, number)| (*id, *number)).collect();
        numbers.sort_unstable();
        let mut doubled: Vec<u8> = numbers.iter().map(|(_, number)| *number).collect();
        doubled.sort_unstable();
        doubled.dedup();
        let some = lanes
            .iter()
            .enumerate()
            .filter(|(_, path)| !path.lanes.is_empty());
        Steering {
            tables: plan.orders.into_iter().zip(0..).map(table).collect(),
            equals: paths.iter().map(equals).collect(),
            tags: paths.iter().map(|(_, standing)| standing.tag).collect(),
            with_lanes: some.fold(0, |set, (at, _)| set | 1 << at),
            keys: plan.keys,
            classes: plan.classes,
            doubles: doubled.into_iter().map(Doubles::new).collect(),
            numbers: numbers.into(),
        }
    }

    /// The keys by which flows are spread over buckets.
    pub fn keys(&self) -> &HashKeys {
        &self.keys
    }

    /// The lane of a packet of this class and bucket; `None`: none can be sent by. While paths are up, no lane of another path is one: packets would be lost there
    /// that another worker's lane carries.
    #[inline]
    pub fn choose(
        &mut self,
        (class, at): (u8, u8),
        now: Time,
        board: &PathBoard,
        lanes: &[PathLanes],
        may_carry: impl Fn(PeerId) -> bool,
    ) -> Option<Chosen> {
        let up = board.up();
        let class = usize::from(class);
        let class = if class < self.tables.len() { class } else { 0 };
        let table = self.tables.get_mut(class)?;
        let bucket = &mut table.buckets[usize::from(at)];
        if table.known == Some(up) && bucket.path == bucket.home && may_carry(bucket.lane) {
            bucket.seen = coarse(now);
            return Some(Chosen {
                lane: bucket.lane,
                moved: None,
            });
        }
        self.reconsider((class, at), now, board, lanes, &may_carry)
    }

    #[cold]
    #[inline(never)]
    fn reconsider(
        &mut self,
        (class, at): (usize, u8),
        now: Time,
        board: &PathBoard,
        lanes: &[PathLanes],
        may_carry: &dyn Fn(PeerId) -> bool,
    ) -> Option<Chosen> {
        let up = board.up();
        let Some(usable) = self.usable(up) else {
            self.tables[class].known = None;
            return None;
        };
        if self.tables[class].known != Some(up) {
            self.settle(class, now, up);
        }
        let table = &mut self.tables[class];
        let bucket = &mut table.buckets[usize::from(at)];
        let due = table.since.after(Duration::from_nanos(
            RETURN.as_nanos() as u64 / BUCKETS as u64 * u64::from(at),
        ));
        let quiet = coarse(now).wrapping_sub(bucket.seen);
        let is_in = |set: u64, path: u8| path < PATHS_MAX as u8 && set & 1 << path != 0;
        let moved = if bucket.path == bucket.home {
            None
        } else if bucket.path == NOWHERE {
            Some(None)
        } else if !is_in(usable, bucket.path) {
            Some(Some(Moved::Down))
        } else if is_in(table.order.good, bucket.home) && !is_in(table.order.good, bucket.path) {
            Some(Some(Moved::Poor))
        } else if table.mode == Mode::Duplicate || quiet > pause(board, bucket.path, bucket.home) {
            Some(Some(Moved::Pause))
        } else {
            (due <= now).then_some(Some(Moved::Turn))
        };
        bucket.seen = coarse(now);
        if moved.is_some() {
            (bucket.path, bucket.since) = (bucket.home, coarse(now));
            bucket.lane = nth_lane(lanes, bucket.path, at)?;
        }
        if may_carry(bucket.lane) {
            let (lane, moved) = (bucket.lane, moved.flatten());
            return Some(Chosen { lane, moved });
        }
        let on_path = lanes
            .get(usize::from(bucket.path))
            .map_or(&[][..], |path| &path.lanes);
        if let Some(lane) = on_path.iter().find(|lane| may_carry(**lane)) {
            bucket.lane = *lane;
            let (lane, moved) = (bucket.lane, moved.flatten());
            return Some(Chosen { lane, moved });
        }
        self.any_lane(class, usable, lanes, may_carry)
    }

    /// A lane of another path, the first in the order that has one.
    fn any_lane(
        &self,
        class: usize,
        usable: u64,
        lanes: &[PathLanes],
        may_carry: &dyn Fn(PeerId) -> bool,
    ) -> Option<Chosen> {
        let rank = self.tables[class].order.rank.iter();
        let paths = rank.filter(|at| usable & 1 << **at != 0);
        let mut lanes = paths
            .filter_map(|at| lanes.get(usize::from(*at)))
            .flat_map(|path| &path.lanes);
        lanes.find(|lane| may_carry(**lane)).map(|lane| Chosen {
            lane: *lane,
            moved: Some(Moved::Lane),
        })
    }

    /// A lane on the first path of the order that is up, if there is one, whether it can be sent by at the moment or not.
    pub fn lane_to_come(&self, class: u8, up: u64, lanes: &[PathLanes]) -> Option<PeerId> {
        let table = self.tables.get(usize::from(class)).or(self.tables.first())?;
        let first = table.order.first(up & self.with_lanes)?;
        lanes.get(usize::from(first))?.lanes.first().copied()
    }

    /// The paths that packets can take from this worker while these are up: with none up, all. `None`: all of those that are up are other workers'.
    fn usable(&self, up: u64) -> Option<u64> {
        match (up, up & self.with_lanes) {
            (0, _) => Some(self.with_lanes),
            (_, 0) => None,
            (_, usable) => Some(usable),
        }
    }

    /// Gives all buckets of a class their homes. With no path up they stay where they are.
    fn settle(&mut self, class: usize, now: Time, up: u64) {
        self.tables[class].known = Some(up);
        let Some(homes) = self.homes(class, up) else {
            return;
        };
        let Steering { tables, tags, .. } = self;
        let Table {
            order,
            since,
            buckets,
            ..
        } = &mut tables[class];
        let mut changed = false;
        for (at, bucket) in (0..=u8::MAX).zip(buckets) {
            let home = homes.of(at, bucket.path, order, tags);
            changed |= bucket.home != home;
            bucket.home = home;
        }
        if changed {
            *since = now;
        }
    }

    /// Where buckets of a class belong while these paths are up; `None`: there is no path for them.
    fn homes(&self, class: usize, up: u64) -> Option<Homes> {
        let usable = self.usable(up)?;
        let table = &self.tables[class];
        let good = table.order.good & usable;
        let among = if good != 0 { good } else { usable };
        let first = table.order.first(among)?;
        let spread = match table.mode {
            Mode::Pinned if good != 0 => among & self.equals[usize::from(first)],
            Mode::Weighted if good != 0 => among,
            _ => 1 << first,
        };
        Some(Homes {
            first,
            spread,
            is_weighted: table.mode == Mode::Weighted,
            stay: up == 0,
        })
    }

    /// Takes another order for a class; the one of before comes back.
    pub fn set_order(&mut self, class: u8, order: Box<Order>) -> Box<Order> {
        match self.tables.get_mut(usize::from(class)) {
            Some(table) => {
                table.known = None;
                std::mem::replace(&mut table.order, order)
            }
            None => order,
        }
    }

    /// Takes over what was known of the same remote: where buckets are, and which packets have come twice. `from` and `to` are the paths of before and of now.
    pub fn take_over(&mut self, before: &mut Steering, from: &[PathLanes], to: &[PathLanes]) {
        let is_known = |number: u8| before.doubles.iter().any(|known| known.number == number);
        if self.doubles.iter().all(|doubles| is_known(doubles.number)) {
            // Also those whose lanes are gone: they go on where they were when there are some again.
            std::mem::swap(&mut self.doubles, &mut before.doubles);
        } else {
            for doubles in &mut self.doubles {
                let mut known = before.doubles.iter_mut();
                if let Some(known) = known.find(|known| known.number == doubles.number) {
                    std::mem::swap(doubles, known);
                }
            }
        }
        if self.classes != before.classes {
            return;
        }
        let place = |name: PathName| to.iter().position(|path| path.name == name);
        let places: ArrayVec<Option<usize>, PATHS_MAX> =
            from.iter().take(PATHS_MAX).map(|path| place(path.name)).collect();
        for (table, known) in self.tables.iter_mut().zip(&before.tables) {
            table.since = known.since;
            for (at, (bucket, was)) in table.buckets.iter_mut().zip(&known.buckets).enumerate() {
                let Some(Some(path)) = places.get(usize::from(was.path)) else {
                    continue;
                };
                let lanes = &to[*path].lanes;
                let lane = match lanes.contains(&was.lane) {
                    true => Some(was.lane),
                    false => nth_lane(to, *path as u8, at as u8),
                };
                let Some(lane) = lane else { continue };
                *bucket = Bucket {
                    lane,
                    path: *path as u8,
                    home: *path as u8,
                    ..*was
                };
            }
        }
    }

    /// The second lane of a packet that goes twice: with the number of the first, on the next path of the order that is up. And the packet's sequence number.
    pub fn double(
        &mut self,
        class: u8,
        lane: PeerId,
        up: u64,
        lanes: &[PathLanes],
        may_carry: impl Fn(PeerId) -> bool,
    ) -> Option<(u32, Option<PeerId>)> {
        let number = self.number(lane)?;
        let doubles = self.doubles.iter_mut().find(|doubles| doubles.number == number)?;
        let sequence = doubles.take_next();
        let rank = self
            .tables
            .get(usize::from(class))
            .map_or(&[][..], |table| &table.order.rank);
        let others = rank.iter().filter(|at| up & 1 << **at != 0);
        let others = others.filter_map(|at| lanes.get(usize::from(*at)));
        let mut others = others.filter(|path| !path.lanes.contains(&lane));
        let second = others.find_map(|path| {
            let at = path.numbers.iter().position(|other| *other == number)?;
            Some(path.lanes[at]).filter(|lane| may_carry(*lane))
        });
        Some((sequence, second))
    }

    /// Whether a packet that goes twice and came by this lane is the first of its two; `None`: the lane is not one of ours.
    pub fn accept(&mut self, lane: PeerId, sequence: u32) -> Option<bool> {
        let number = self.number(lane)?;
        let doubles = self.doubles.iter_mut().find(|doubles| doubles.number == number)?;
        Some(doubles.accept(sequence))
    }

    /// The remote has been started anew: its sequence numbers begin anew.
    pub fn forget_doubles(&mut self) {
        self.doubles.iter_mut().for_each(Doubles::forget);
    }

    fn number(&self, lane: PeerId) -> Option<u8> {
        let at = self.numbers.binary_search_by_key(&lane, |(id, _)| *id).ok()?;
        Some(self.numbers[at].1)
    }

    /// What a bucket is doing. Changes nothing, and is right for a bucket that no packet has come for since paths or orders were others.
    pub fn tell(&self, class: u8, at: u8, now: Time, up: u64) -> Option<Told> {
        let table = self.tables.get(usize::from(class))?;
        let bucket = &table.buckets[usize::from(at)];
        let path = Some(bucket.path).filter(|path| *path != NOWHERE);
        let homes = self.homes(class.into(), up);
        let home = homes.map(|homes| homes.of(at, bucket.path, &table.order, &self.tags));
        let passed = |since: u32| {
            let units = coarse(now).wrapping_sub(since);
            Duration::from_nanos(u64::from(units) << COARSE_BITS)
        };
        // Copies go by the first paths that are up, whatever was before.
        let second = || {
            let others = table.order.rank.iter().copied();
            let mut others = others.filter(|at| up & 1 << at != 0 && Some(*at) != home);
            others.next()
        };
        Some(Told {
            path,
            home,
            second: (table.mode == Mode::Duplicate).then(second).flatten(),
            since: passed(bucket.since),
            seen: passed(bucket.seen),
        })
    }
}

/// A worker's lane of a path for this bucket.
fn nth_lane(lanes: &[PathLanes], path: u8, bucket: u8) -> Option<PeerId> {
    let lanes = &lanes.get(usize::from(path))?.lanes;
    let at = usize::from(bucket).checked_rem(lanes.len())?;
    Some(lanes[at])
}

/// For how long a bucket has had no packet before it may go from one path to the other, in its own units: twice as long as their round trips differ, so that what is under
/// way on the slower one arrives before what comes next.
fn pause(board: &PathBoard, from: u8, to: u8) -> u32 {
    let rtt = |path: u8| board.pulses().get(usize::from(path))?.rtt();
    let differ = match (rtt(from), rtt(to)) {
        (Some(from), Some(to)) => u64::from(from.saturating_sub(to)) * 2,
        _ => 0,
    };
    let pause = PAUSE_MIN.max(Duration::from_micros(differ));
    (pause.as_nanos() as u64 >> COARSE_BITS) as u32 + 1
}

/// The path of a bucket among these: each path has a number for each bucket that looks random, stretched by its weight, and the highest counts (rendezvous hashing: D. Thaler,
/// C. Ravishankar, "Using Name-Based Mappings to Increase Hit Rates", 1998). When a path comes or goes, no bucket changes from one of the others to another of them.
fn rendezvous(bucket: u8, among: u64, tags: &[u8], weight: impl Fn(usize) -> u8) -> u8 {
    let score = |path: usize| {
        let drawn = mix(u64::from(bucket) << 8 | u64::from(tags[path]));
        // From above 0 up to 1.
        let drawn = ((drawn >> 11) as f64 + 1.0) / (1u64 << 53) as f64;
        f64::from(weight(path).max(1)) / -drawn.ln().min(-f64::MIN_POSITIVE)
    };
    let paths = (0..tags.len()).filter(|path| among & 1 << path != 0);
    let best = paths
        .map(|path| (score(path), path))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    best.map_or(0, |(_, path)| path as u8)
}

/// Spreads a number over 64 bits (the finalizer of MurmurHash3).
fn mix(mut x: u64) -> u64 {
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ x >> 33
}
