//! Paths in the channel: their names, what the engine reports of them, control's orders of them, and which it suspects. Where they lie in memory: [`channel`](crate::channel), which has all
//! of this among its own.
//!
//! Values in, records out, and back: no threads, no system calls.

use alloc::vec::Vec;
use core::fmt;

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use crate::blob::{UNKNOWN, zero};
use crate::channel::{Command, OrderRecord, PathRecord, SuspectRecord};

/// Paths towards a remote at most.
pub const PATHS_MAX: usize = 64;
/// Round trips that are kept of a path, the last ones.
pub const SAMPLES: usize = 16;

/// Paths to a remote that are suspect at once, at most: faster probes are for finding out, not for watching everything.
pub const SUSPECTS_MAX: usize = 4;
/// A path is suspect for so many milliseconds at most, unless that is said again: whoever said it may be gone.
pub const SUSPECT_MAX: u32 = 10_000;

/// Words of a path in the table.
pub const PATH_WORDS: usize = size_of::<PathRecord>() / 8;

/// A path between two links.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathName {
    /// The number of our link, 1 to 15.
    pub local: u8,
    /// The number of the remote's.
    pub remote: u8,
}

/// A path in an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ranked {
    /// Which one.
    pub path: PathName,
    /// 0: it does not do what the class needs, and is used if none does that is up. Others: it does; with weighted flows its share.
    pub grade: u8,
}

/// What a path is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PathState {
    /// Both sides hear each other.
    Up,
    /// They do not.
    Down,
    /// It is new: nothing has been heard yet.
    #[default]
    Unknown,
}

/// Why a path is up or down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PathWhy {
    /// It is new.
    #[default]
    New,
    /// Both sides hear each other.
    Heard,
    /// We hear nothing on it.
    Silent,
    /// The remote says that it hears nothing on it.
    NotHeard,
    /// There is no session.
    NoSession,
    /// Our link is gone.
    LinkGone,
}

/// Why flows move from one path to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveWhy {
    /// The path that they were on is down.
    Down,
    /// A better one, or the only one, is up.
    Up,
    /// Control says so.
    Order,
}

/// Why the session with a stock peer goes by another link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkWhy {
    /// It went by none before.
    First,
    /// The link that it went by is gone, or has no carrier.
    LinkGone,
    /// There is no route to the peer by it.
    NoRoute,
    /// The gateway there does not answer.
    GatewaySilent,
    /// Pings through the tunnel are not answered.
    PingLost,
    /// Nothing was heard there.
    NotHeard,
    /// The other one is better and has worked for long enough.
    Preferred,
    /// The peer was heard there.
    Heard,
}

/// A path, as the engine knows it. Times are nanoseconds of CLOCK_BOOTTIME, durations microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the record's fields say it")]
pub struct PathReport {
    pub remote: [u8; 32],
    pub path: PathName,
    pub state: PathState,
    pub why: PathWhy,
    pub since: u64,
    pub mtu: Option<u16>,
    pub in_use: bool,
    pub interval: Option<u32>,
    pub remote_interval: Option<u32>,
    pub rtt: Option<u32>,
    pub rtt_min: Option<u32>,
    pub jitter_in: u32,
    pub jitter_out: u32,
    pub in_sent: u64,
    pub in_received: u64,
    pub out_sent: u64,
    pub out_received: u64,
    pub sent_bytes: u64,
    pub received_bytes: u64,
    pub probes_sent: u64,
    pub probes_received: u64,
    /// Round trips measured so far; number n stands in `recent` at n modulo [`SAMPLES`].
    pub samples: u64,
    pub recent: [u32; SAMPLES],
}

impl PathReport {
    /// Of a path of which nothing is known yet.
    pub const fn new(remote: [u8; 32], path: PathName) -> PathReport {
        PathReport {
            remote,
            path,
            state: PathState::Unknown,
            why: PathWhy::New,
            since: 0,
            mtu: None,
            in_use: false,
            interval: None,
            remote_interval: None,
            rtt: None,
            rtt_min: None,
            jitter_in: 0,
            jitter_out: 0,
            in_sent: 0,
            in_received: 0,
            out_sent: 0,
            out_received: 0,
            sent_bytes: 0,
            received_bytes: 0,
            probes_sent: 0,
            probes_received: 0,
            samples: 0,
            recent: [0; SAMPLES],
        }
    }
}

/// The kind of an order among commands.
pub(crate) const ORDER: u8 = 4;

impl OrderRecord {
    pub(crate) fn of(remote: &[u8; 32], class: u8, paths: &[Ranked]) -> Option<OrderRecord> {
        let mut record = OrderRecord {
            kind: ORDER,
            paths: paths.len() as u8,
            class,
            zero: [0; 29],
            remote: *remote,
            order: [[0; 2]; PATHS_MAX],
        };
        for (at, ranked) in paths.iter().enumerate() {
            *record.order.get_mut(at)? = [ranked.path.byte(), ranked.grade];
        }
        Some(record)
    }

    pub(crate) fn read(&self) -> Result<Command, &'static str> {
        zero(&self.zero)?;
        let (order, unused) = self.order.split_at_checked(self.paths.into()).ok_or(UNKNOWN)?;
        zero(unused.as_flattened())?;
        let mut paths = Vec::with_capacity(order.len());
        for [name, grade] in order {
            let path = PathName::read(*name).ok_or(UNKNOWN)?;
            if paths.iter().any(|ranked: &Ranked| ranked.path == path) {
                return Err("an order that has a path twice");
            }
            paths.push(Ranked { path, grade: *grade });
        }
        Ok(Command::Order {
            remote: self.remote,
            class: self.class,
            paths,
        })
    }
}

/// The kind of suspicion among commands.
pub(crate) const SUSPECT: u8 = 6;

impl SuspectRecord {
    pub(crate) fn of(remote: &[u8; 32], paths: &[PathName], length: u32) -> Option<SuspectRecord> {
        let mut record = SuspectRecord {
            kind: SUSPECT,
            paths: paths.len() as u8,
            zero: [0; 2],
            length: length.into(),
            names: [0; SUSPECTS_MAX],
            more: [0; 4],
            remote: *remote,
            rest: [U64::ZERO; 18],
        };
        for (at, path) in paths.iter().enumerate() {
            *record.names.get_mut(at)? = path.byte();
        }
        Some(record)
    }

    pub(crate) fn read(&self) -> Result<Command, &'static str> {
        zero(&self.zero)?;
        zero(&self.more)?;
        zero(self.rest.as_bytes())?;
        let (names, unused) = self.names.split_at_checked(self.paths.into()).ok_or(UNKNOWN)?;
        zero(unused)?;
        let mut paths = Vec::with_capacity(names.len());
        for name in names {
            let path = PathName::read(*name).ok_or(UNKNOWN)?;
            if paths.contains(&path) {
                return Err("a path that is suspect twice");
            }
            paths.push(path);
        }
        match self.length.get() {
            length @ 0..=SUSPECT_MAX => Ok(Command::Suspect {
                remote: self.remote,
                paths,
                length,
            }),
            _ => Err("a path that is suspect for too long"),
        }
    }
}

impl PathName {
    /// As a byte.
    pub const fn byte(self) -> u8 {
        self.local << 4 | self.remote & 15
    }

    /// The path that this byte names; `None`: there is no link 0.
    pub fn read(byte: u8) -> Option<PathName> {
        let (local, remote) = (byte >> 4, byte & 15);
        (local != 0 && remote != 0).then_some(PathName { local, remote })
    }
}

impl fmt::Display for PathName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.local, self.remote)
    }
}

/// Enumerations that are numbers in the layout, from 1 on.
macro_rules! numbered {
    ($($kind:ident: $($name:ident = $number:literal $word:literal),*;)*) => {$(
        impl $kind {
            /// As a number.
            pub const fn number(self) -> u8 {
                match self { $($kind::$name => $number),* }
            }

            /// What this number means, if it means something.
            pub const fn read(number: u8) -> Option<$kind> {
                match number { $($number => Some($kind::$name),)* _ => None }
            }

            /// The word for it.
            pub const fn word(self) -> &'static str {
                match self { $($kind::$name => $word),* }
            }
        }
    )*};
}

numbered! {
    PathState: Up = 1 "up", Down = 2 "down", Unknown = 3 "unknown";
    PathWhy: New = 1 "new", Heard = 2 "heard", Silent = 3 "silent", NotHeard = 4 "not-heard", NoSession = 5 "no-session", LinkGone = 6 "link-gone";
    MoveWhy: Down = 1 "down", Up = 2 "up", Order = 3 "order";
    LinkWhy: First = 1 "first", LinkGone = 2 "link-gone", NoRoute = 3 "no-route", GatewaySilent = 4 "gateway-silent", PingLost = 5 "ping-lost", NotHeard = 6 "not-heard", Preferred = 7 "preferred", Heard = 8 "heard";
}

impl PathReport {
    /// As a record, with this sequence number.
    pub fn record(&self, sequence: u64) -> PathRecord {
        let known = |value: Option<u32>| U32::new(value.unwrap_or(0));
        PathRecord {
            sequence: sequence.into(),
            remote: self.remote,
            links: [self.path.local, self.path.remote],
            state: self.state.number(),
            why: self.why.number(),
            mtu: self.mtu.unwrap_or(0).into(),
            in_use: self.in_use.into(),
            zero: 0,
            since: self.since.into(),
            interval: known(self.interval),
            remote_interval: known(self.remote_interval),
            rtt: known(self.rtt),
            rtt_min: known(self.rtt_min),
            jitter_in: self.jitter_in.into(),
            jitter_out: self.jitter_out.into(),
            in_sent: self.in_sent.into(),
            in_received: self.in_received.into(),
            out_sent: self.out_sent.into(),
            out_received: self.out_received.into(),
            sent_bytes: self.sent_bytes.into(),
            received_bytes: self.received_bytes.into(),
            probes_sent: self.probes_sent.into(),
            probes_received: self.probes_received.into(),
            samples: self.samples.into(),
            recent: self.recent.map(U32::new),
            rest: [U64::ZERO; 5],
        }
    }
}

impl PathRecord {
    /// As words.
    pub fn words(self) -> [u64; PATH_WORDS] {
        zerocopy::transmute!(self)
    }

    /// The path in these words; `None`: the record is free, or is none.
    pub fn read(words: [u64; PATH_WORDS]) -> Option<PathReport> {
        let record: PathRecord = zerocopy::transmute!(words);
        let known = |value: U32| Some(value.get()).filter(|value| *value != 0);
        let [local, remote] = record.links;
        let path = PathName::read(local << 4 | remote & 15).filter(|_| local < 16 && remote < 16)?;
        Some(PathReport {
            remote: record.remote,
            path,
            state: PathState::read(record.state)?,
            why: PathWhy::read(record.why)?,
            since: record.since.get(),
            mtu: Some(record.mtu.get()).filter(|mtu| *mtu != 0),
            in_use: record.in_use == 1,
            interval: known(record.interval),
            remote_interval: known(record.remote_interval),
            rtt: known(record.rtt),
            rtt_min: known(record.rtt_min),
            jitter_in: record.jitter_in.get(),
            jitter_out: record.jitter_out.get(),
            in_sent: record.in_sent.get(),
            in_received: record.in_received.get(),
            out_sent: record.out_sent.get(),
            out_received: record.out_received.get(),
            sent_bytes: record.sent_bytes.get(),
            received_bytes: record.received_bytes.get(),
            probes_sent: record.probes_sent.get(),
            probes_received: record.probes_received.get(),
            samples: record.samples.get(),
            recent: record.recent.map(U32::get),
        })
    }
}
