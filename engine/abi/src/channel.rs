//! What the engine and the control process share while control is attached: where what stands in their shared memory, and what they say over the socket beside it.
//!
//! ```text
//!              socket (SEQPACKET): hello and descriptors ->, <- publish and descriptors of keys, bells both ways
//!  engine  --  control region      control writes: two slots for blobs, the ring of commands, how far it has read events
//!              event region        engine writes:  the ring of events, how far it has read commands
//!              statistics segment  engine writes, everybody may read: a directory and counters
//! ```
//!
//! Each region has one side that writes and is made anew for every control that attaches. Nothing in the other side's region is believed: records are
//! copied out by words and then looked at, positions are taken modulo the ring.
//!
//! Values in, records out, and back: no threads, no system calls. The rings themselves are in `patronus_sync`.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::ABI_VERSION;
use crate::blob::{BLOB_MAX, UNKNOWN, Wrong, zero};
pub use crate::path::{
    LinkWhy, MoveWhy, PATH_WORDS, PATHS_MAX, PathName, PathReport, PathState, PathWhy, Ranked, SAMPLES,
    SUSPECT_MAX, SUSPECTS_MAX,
};
use crate::path::{ORDER, SUSPECT};
use crate::prefix::Prefix;
use crate::record::{AddrRecord, PrefixRecord, records};

/// What a hello begins with.
pub const HELLO_MAGIC: [u8; 8] = *b"PATRCHAN";
/// What the control region begins with.
pub const CONTROL_MAGIC: [u8; 8] = *b"PATRCTRL";
/// What the event region begins with.
pub const EVENT_MAGIC: [u8; 8] = *b"PATREVNT";
/// What the statistics segment begins with.
pub const STATS_MAGIC: [u8; 8] = *b"PATRSTAT";

/// Descriptors in a packet at most (`SCM_MAX_FD` of the kernel).
pub const DESCRIPTORS_MAX: usize = 253;
/// Bytes of a packet at most.
pub const PACKET_MAX: usize = 512;
/// Next hops of a dynamic route at most.
pub const DYNAMIC_HOPS_MAX: usize = 4;
/// Bytes of the text of an event at most.
pub const EVENT_TEXT_MAX: usize = 200;
/// Where in both regions what stands there is, bytes.
pub mod place {
    use super::{BLOB_MAX, CommandRecord, EventRecord};

    /// In the control region: how many commands control has put in, modulo 2^64.
    pub const COMMAND_TAIL: usize = 64;
    /// In the control region: how many events control has taken out.
    pub const EVENT_HEAD: usize = 128;
    /// In the control region: the ring of commands.
    pub const COMMANDS: usize = 4096;
    /// Commands in the ring at most.
    pub const COMMAND_COUNT: usize = 4096;
    /// In the control region: the slots for blobs.
    pub const SLOTS: usize = 1 << 20;
    /// Slots.
    pub const SLOT_COUNT: usize = 2;
    /// Bytes of a slot.
    pub const SLOT: usize = BLOB_MAX;
    /// Bytes of the control region. What is not written takes no memory.
    pub const CONTROL_LEN: usize = SLOTS + SLOT_COUNT * SLOT;
    /// Bytes of the control region that are mapped: the slots are read and written as a file.
    pub const CONTROL_MAPPED: usize = SLOTS;

    /// In the event region: how many commands the engine has taken out.
    pub const COMMAND_HEAD: usize = 64;
    /// In the event region: how many events the engine has put in.
    pub const EVENT_TAIL: usize = 128;
    /// In the event region: events that found the ring full.
    pub const EVENTS_LOST: usize = 192;
    /// In the event region: the ring of events.
    pub const EVENTS: usize = 4096;
    /// Events in the ring at most.
    pub const EVENT_COUNT: usize = 1024;
    /// Bytes of the event region.
    pub const EVENT_LEN: usize = EVENTS + EVENT_COUNT * size_of::<EventRecord>();

    const _: () = assert!(COMMANDS + COMMAND_COUNT * size_of::<CommandRecord>() <= SLOTS);

    /// In the statistics segment: entries of the directory that have ever been used.
    pub const ENTRIES: usize = 64;
    /// In the statistics segment: when the counters that are copied were copied last, nanoseconds of CLOCK_BOOTTIME.
    pub const COPIED_AT: usize = 72;
    /// In the statistics segment: records of the table of paths that have ever been used.
    pub const PATHS_USED: usize = 80;
    /// In the statistics segment: the directory.
    pub const DIRECTORY: usize = 4096;
    /// Entries of the directory at most.
    pub const ENTRY_COUNT: usize = 1 << 18;
    /// In the statistics segment: the counters, of 8 bytes each.
    pub const COUNTERS: usize = DIRECTORY + ENTRY_COUNT * size_of::<super::EntryRecord>();
    /// Bytes for counters.
    pub const COUNTERS_LEN: usize = 4 << 20;
    /// In the statistics segment: the table of paths.
    pub const PATHS: usize = COUNTERS + COUNTERS_LEN;
    /// Paths in the table at most.
    pub const PATH_COUNT: usize = 1 << 14;
    /// Bytes of the statistics segment. What is not written takes no memory.
    pub const STATS_LEN: usize = PATHS + PATH_COUNT * size_of::<super::PathRecord>();
}

/// Every place with its name, for the description of the layout.
pub const PLACES: &[(&str, usize)] = &[
    ("control region: COMMAND_TAIL", place::COMMAND_TAIL),
    ("control region: EVENT_HEAD", place::EVENT_HEAD),
    ("control region: COMMANDS", place::COMMANDS),
    (
        "control region: commands in the ring (COMMAND_COUNT)",
        place::COMMAND_COUNT,
    ),
    ("control region: SLOTS", place::SLOTS),
    ("control region: slots (SLOT_COUNT)", place::SLOT_COUNT),
    ("control region: bytes of a slot (SLOT)", place::SLOT),
    ("control region: bytes (CONTROL_LEN)", place::CONTROL_LEN),
    ("event region: COMMAND_HEAD", place::COMMAND_HEAD),
    ("event region: EVENT_TAIL", place::EVENT_TAIL),
    ("event region: EVENTS_LOST", place::EVENTS_LOST),
    ("event region: EVENTS", place::EVENTS),
    (
        "event region: events in the ring (EVENT_COUNT)",
        place::EVENT_COUNT,
    ),
    ("event region: bytes (EVENT_LEN)", place::EVENT_LEN),
    ("statistics segment: ENTRIES", place::ENTRIES),
    ("statistics segment: COPIED_AT", place::COPIED_AT),
    ("statistics segment: PATHS_USED", place::PATHS_USED),
    ("statistics segment: DIRECTORY", place::DIRECTORY),
    ("statistics segment: entries (ENTRY_COUNT)", place::ENTRY_COUNT),
    ("statistics segment: COUNTERS", place::COUNTERS),
    (
        "statistics segment: bytes of counters (COUNTERS_LEN)",
        place::COUNTERS_LEN,
    ),
    ("statistics segment: PATHS", place::PATHS),
    ("statistics segment: paths (PATH_COUNT)", place::PATH_COUNT),
    ("statistics segment: bytes (STATS_LEN)", place::STATS_LEN),
];

/// Kinds of [`PacketRecord`]s.
pub mod packet {
    /// From control: apply the blob in this slot. The first of its keys come along.
    pub const PUBLISH: u32 = 1;
    /// From control: more keys of it.
    pub const KEYS: u32 = 2;
    /// From either: there is something in a ring.
    pub const BELL: u32 = 3;
}

records! { CHANNEL:
    /// The beginning of each region.
    RegionRecord, 16 {
        /// Which one.
        magic: [u8; 8],
        /// [`ABI_VERSION`].
        abi: U32,
        zero: U32,
    }

    /// What the engine says first to who connects. Behind it is text if it does not want him: why. Otherwise three descriptors come along: of the control region,
    /// the event region and the statistics segment. Magic and version stand where they are in every version.
    HelloRecord, 72 {
        /// [`HELLO_MAGIC`].
        magic: [u8; 8],
        /// [`ABI_VERSION`].
        abi: U32,
        zero: U32,
        /// Drawn when this engine started.
        boot: [u8; 16],
        /// Of the blob that is in force; 0: none.
        generation: U64,
        /// [`content`](crate::content) of that blob; zeros if there is none.
        content: [u8; 32],
    }

    /// Everything else that is said over the socket.
    PacketRecord, 24 {
        /// See [`packet`].
        kind: U32,
        /// Which slot the blob is in.
        slot: U32,
        /// Its generation.
        generation: U64,
        /// How many keys belong to it.
        keys: U32,
        zero: U32,
    }

    /// A next hop of a dynamic route. What its kind does not need is zero.
    DynamicHopRecord, 40 {
        /// 0: nowhere; 1: a peer; 2: the host; 3: a neighbour on a LAN.
        kind: u8,
        zero: [u8; 5],
        /// The LAN, by its place among the LANs of the blob.
        lan: U16,
        /// The peer's public key, or the neighbour's address as in AddrRecord.
        bytes: [u8; 32],
    }

    /// A command. What its kind does not need is zero.
    CommandRecord, 192 {
        /// 1: a dynamic route is there; 2: it is there no more; 3: those of other epochs are there no more.
        kind: u8,
        /// Next hops.
        hops: u8,
        /// Whose route it is.
        owner: U16,
        /// Which life of its owner it is of.
        epoch: U32,
        /// Of several owners' routes with this prefix the lowest one counts.
        preference: U32,
        prefix: PrefixRecord,
        zero: [u8; 2],
        to: [DynamicHopRecord; DYNAMIC_HOPS_MAX],
    }

    /// An order of paths: the command of kind 4, in place of CommandRecord. What is not needed is zero.
    OrderRecord, 192 {
        /// 4.
        kind: u8,
        /// Paths in the order.
        paths: u8,
        /// Whose flows.
        class: u8,
        zero: [u8; 29],
        /// The remote's public key.
        remote: [u8; 32],
        /// For each path its name and its grade. A name is the local link's number times 16 and the remote link's.
        order: [[u8; 2]; PATHS_MAX],
    }

    /// A drill: the command of kind 5, in place of CommandRecord.
    DrillRecord, 192 {
        /// 5.
        kind: u8,
        /// The link's number.
        link: u8,
        zero: [u8; 2],
        /// For how long, milliseconds; 0: it is over.
        length: U32,
        rest: [U64; 23],
    }

    /// Paths that are to be watched more closely: the command of kind 6, in place of CommandRecord. What is not needed is zero.
    SuspectRecord, 192 {
        /// 6.
        kind: u8,
        /// How many paths; those of before are suspect no more.
        paths: u8,
        zero: [u8; 2],
        /// For how long, milliseconds.
        length: U32,
        /// Their names: the local link's number times 16 and the remote link's.
        names: [u8; SUSPECTS_MAX],
        more: [u8; 4],
        /// The remote's public key.
        remote: [u8; 32],
        rest: [U64; 18],
    }

    /// An event. What its kind does not need is zero.
    EventRecord, 256 {
        /// 1: applied; 2: refused; 3: commands refused; 4: a path is up or down; 5: flows move; 6: a session; 7: a link; 8: a peer is elsewhere; 9: a stock peer's session goes by another link.
        kind: U16,
        /// Bytes of text.
        text_len: U16,
        /// Of kinds 4 to 9: four numbers that their kind says.
        detail: [u8; 4],
        /// Of kinds 4 to 9: when, nanoseconds of CLOCK_BOOTTIME.
        generation: U64,
        /// How many: changes, commands, or flows' places.
        count: U64,
        /// The site's public key, or that of the peer.
        key: [u8; 32],
        text: [u8; EVENT_TEXT_MAX],
    }

    /// A path in the table of paths. While the sequence number is odd it is being changed. Pairs of counters are as of one moment: differences between
    /// two readings say what was lost meanwhile.
    PathRecord, 256 {
        sequence: U64,
        /// The remote's public key.
        remote: [u8; 32],
        /// Numbers of our link and of the remote's; 0: the record is free.
        links: [u8; 2],
        /// 1: up; 2: down; 3: nothing known yet.
        state: u8,
        /// Why it is in that state, see PathWhy.
        why: u8,
        /// The largest inner packet that is known to pass, bytes; 0: not known.
        mtu: U16,
        /// 1: packets go by it now.
        in_use: u8,
        zero: u8,
        /// Since when it is in that state, nanoseconds of CLOCK_BOOTTIME.
        since: U64,
        /// How often we send a probe and the remote does, microseconds; 0: not known.
        interval: U32,
        remote_interval: U32,
        /// Round trip: a moving average and the shortest, microseconds; 0: not measured.
        rtt: U32,
        rtt_min: U32,
        /// Jitter (RFC 3550, section 6.4.1) towards us and towards the remote, microseconds.
        jitter_in: U32,
        jitter_out: U32,
        /// Packets that the remote had sent when it sent its last probe, and that we had received when that came.
        in_sent: U64,
        in_received: U64,
        /// Packets that we had sent when we sent the last probe that the remote has heard, and that it had received then.
        out_sent: U64,
        out_received: U64,
        /// Bytes of datagrams sent and received so far.
        sent_bytes: U64,
        received_bytes: U64,
        /// Probes sent and received so far.
        probes_sent: U64,
        probes_received: U64,
        /// Round trips measured so far.
        samples: U64,
        /// The last of them, microseconds: number n stands at n modulo 16.
        recent: [U32; SAMPLES],
        rest: [U64; 5],
    }

    /// An entry of the statistics' directory. While the sequence number is odd it is being changed.
    EntryRecord, 192 {
        sequence: U64,
        /// The counter's place in the segment, bytes; 0: none, the entry is free.
        offset: U32,
        /// 0: a counter, which only grows; 1: a value at this moment.
        kind: u8,
        /// Bytes of the name.
        name_len: u8,
        /// Bytes of the labels.
        labels_len: u8,
        zero: u8,
        /// As in the Prometheus text format, without a prefix.
        name: [u8; 56],
        /// As in the Prometheus text format: `worker="0",reason="route-none"`.
        labels: [u8; 120],
    }
}

/// A next hop, named so that it means the same in every snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextHop {
    /// Nowhere.
    Discard,
    /// The peer with this public key. Nowhere as long as there is none.
    Peer([u8; 32]),
    /// The host.
    Host,
    /// The neighbour with this address on the LAN in this place.
    Neighbour(u16, IpAddr),
}

/// From control to the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// A route, beside those of the configuration. What its owner said of this prefix before is forgotten.
    RouteAdd {
        /// To which network.
        prefix: Prefix,
        /// Who says so.
        owner: u16,
        /// In which of its lives.
        epoch: u32,
        /// Of several owners' routes with this prefix the lowest one counts; then the lowest owner.
        preference: u32,
        /// 1 to [`DYNAMIC_HOPS_MAX`]; each flow goes by one of them.
        hops: Vec<NextHop>,
    },
    /// The owner has no route to this network any more.
    RouteDel {
        /// To which network.
        prefix: Prefix,
        /// Whose.
        owner: u16,
    },
    /// The owner has said everything again: what it said in another life is void.
    Sweep {
        /// Whose routes.
        owner: u16,
        /// The life that counts.
        epoch: u32,
    },
    /// By which paths flows of a class go to a remote: the first that is up and good.
    Order {
        /// The remote's public key.
        remote: [u8; 32],
        /// The number of the class.
        class: u8,
        /// Each path once, the best first, [`PATHS_MAX`] at most. One that is not there comes last, and is poor.
        paths: Vec<Ranked>,
    },
    /// For a while nothing goes by a link, as if it were cut: to see what becomes of its flows.
    Drill {
        /// The link's number.
        link: u8,
        /// For how long, milliseconds, [`DRILL_MAX`] at most; 0: a drill is over.
        length: u32,
    },
    /// For a while these paths to a remote are probed faster: what was measured of them is too little to judge by. Those that were suspect before are no more.
    Suspect {
        /// The remote's public key.
        remote: [u8; 32],
        /// Each path once, [`SUSPECTS_MAX`] at most.
        paths: Vec<PathName>,
        /// For how long, milliseconds, [`SUSPECT_MAX`] at most.
        length: u32,
    },
}

/// From the engine to control.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The blob of this generation is in force.
    Applied {
        /// Which one.
        generation: u64,
        /// How much has changed.
        changes: u64,
        /// The site's own.
        public_key: [u8; 32],
    },
    /// It is not, and the one of before is.
    Refused {
        /// Which one.
        generation: u64,
        /// Why.
        reason: String,
    },
    /// Some commands were not carried out.
    CommandsRefused {
        /// How many since the last event of this kind.
        count: u64,
        /// Why the last of them was not.
        reason: String,
    },
    /// A path is in another state than before.
    PathState {
        /// When, nanoseconds of CLOCK_BOOTTIME.
        at: u64,
        /// The remote's public key.
        remote: [u8; 32],
        /// Which one.
        path: PathName,
        /// What it is now.
        state: PathState,
        /// Why.
        why: PathWhy,
    },
    /// New flows of a class go by another path than before.
    Moved {
        /// When, nanoseconds of CLOCK_BOOTTIME.
        at: u64,
        /// The remote's public key.
        remote: [u8; 32],
        /// Whose flows.
        class: u8,
        /// The path before; none: there was none.
        from: Option<PathName>,
        /// The path now.
        to: Option<PathName>,
        /// Why.
        why: MoveWhy,
    },
    /// There is a session with a peer where there was none, or there is none any more.
    Session {
        /// When, nanoseconds of CLOCK_BOOTTIME.
        at: u64,
        /// The peer's public key.
        peer: [u8; 32],
        /// The path of its lane; none: the base session.
        lane: Option<(PathName, u8)>,
        /// There is one; otherwise it is over, and no other one was made.
        up: bool,
    },
    /// A peer is heard from another address or UDP port than before.
    Endpoint {
        /// When, nanoseconds of CLOCK_BOOTTIME.
        at: u64,
        /// The peer's public key.
        peer: [u8; 32],
        /// The path of its lane; none: the base session.
        lane: Option<(PathName, u8)>,
        /// Where it is now.
        to: SocketAddr,
    },
    /// The session with a stock peer goes by another link of ours than before.
    PeerMoved {
        /// When, nanoseconds of CLOCK_BOOTTIME.
        at: u64,
        /// The peer's public key.
        peer: [u8; 32],
        /// The number of the link before; none: it went by none.
        from: Option<u8>,
        /// The number of the link now.
        to: u8,
        /// Why.
        why: LinkWhy,
    },
    /// A link is there or gone.
    Link {
        /// When, nanoseconds of CLOCK_BOOTTIME.
        at: u64,
        /// Its number; 0: it has none.
        link: u8,
        /// It is there.
        up: bool,
        /// What it is called.
        name: String,
    },
    /// Of a kind that this version does not know.
    Unknown(u16),
}

/// A drill lasts so many milliseconds at most: whoever ordered it may be behind the link, and cannot end it.
pub const DRILL_MAX: u32 = 60_000;
/// Words of a command in the ring.
pub const COMMAND_WORDS: usize = size_of::<CommandRecord>() / 8;
/// Words of an event in the ring.
pub const EVENT_WORDS: usize = size_of::<EventRecord>() / 8;
impl RegionRecord {
    /// The beginning of this region.
    pub fn new(magic: [u8; 8]) -> RegionRecord {
        RegionRecord {
            magic,
            abi: ABI_VERSION.into(),
            zero: 0.into(),
        }
    }

    /// As words.
    pub fn words(self) -> [u64; 2] {
        zerocopy::transmute!(self)
    }
}

impl PacketRecord {
    /// A packet that says no more than its kind.
    pub fn of(kind: u32) -> PacketRecord {
        PacketRecord {
            kind: kind.into(),
            slot: 0.into(),
            generation: 0.into(),
            keys: 0.into(),
            zero: 0.into(),
        }
    }
}

impl DynamicHopRecord {
    const NONE: DynamicHopRecord = DynamicHopRecord {
        kind: 0,
        zero: [0; 5],
        lan: U16::ZERO,
        bytes: [0; 32],
    };

    fn of(hop: &NextHop) -> DynamicHopRecord {
        let mut record = DynamicHopRecord::NONE;
        match hop {
            NextHop::Discard => {}
            NextHop::Peer(key) => {
                record.kind = 1;
                record.bytes = *key;
            }
            NextHop::Host => record.kind = 2,
            NextHop::Neighbour(lan, address) => {
                record.kind = 3;
                record.lan = (*lan).into();
                record.bytes[..size_of::<AddrRecord>()]
                    .copy_from_slice(AddrRecord::of(Some(*address)).as_bytes());
            }
        }
        record
    }

    fn read(&self) -> Result<NextHop, Wrong> {
        zero(&self.zero)?;
        if self.kind != 3 {
            zero(self.lan.as_bytes())?;
        }
        match self.kind {
            0 => zero(&self.bytes).map(|()| NextHop::Discard),
            1 => Ok(NextHop::Peer(self.bytes)),
            2 => zero(&self.bytes).map(|()| NextHop::Host),
            3 => {
                let (address, behind) = AddrRecord::read_from_prefix(&self.bytes).map_err(|_| UNKNOWN)?;
                zero(behind)?;
                Ok(NextHop::Neighbour(
                    self.lan.get(),
                    address.read()?.ok_or(UNKNOWN)?,
                ))
            }
            _ => Err(UNKNOWN),
        }
    }
}

impl Command {
    /// As words of the ring. `None`: a route with no next hop, or too many of what there is room for.
    pub fn words(&self) -> Option<[u64; COMMAND_WORDS]> {
        if let Command::Order { remote, class, paths } = self {
            return OrderRecord::of(remote, *class, paths).map(|record| zerocopy::transmute!(record));
        }
        if let Command::Drill { link, length } = *self {
            return Some(zerocopy::transmute!(DrillRecord::of(link, length)));
        }
        if let Command::Suspect {
            remote,
            paths,
            length,
        } = self
        {
            return SuspectRecord::of(remote, paths, *length).map(|record| zerocopy::transmute!(record));
        }
        let (kind, owner, epoch) = match *self {
            Command::RouteAdd { owner, epoch, .. } => (1, owner, epoch),
            Command::RouteDel { owner, .. } => (2, owner, 0),
            Command::Sweep { owner, epoch } => (3, owner, epoch),
            Command::Order { .. } | Command::Drill { .. } | Command::Suspect { .. } => return None,
        };
        let mut record = CommandRecord {
            kind,
            hops: 0,
            owner: owner.into(),
            epoch: epoch.into(),
            preference: 0.into(),
            prefix: PrefixRecord::NONE,
            zero: [0; 2],
            to: [DynamicHopRecord::NONE; DYNAMIC_HOPS_MAX],
        };
        match self {
            Command::RouteAdd {
                prefix,
                preference,
                hops,
                ..
            } => {
                if hops.is_empty() || hops.len() > DYNAMIC_HOPS_MAX {
                    return None;
                }
                record.prefix = PrefixRecord::of(prefix);
                record.preference = (*preference).into();
                record.hops = hops.len() as u8;
                for (to, hop) in record.to.iter_mut().zip(hops) {
                    *to = DynamicHopRecord::of(hop);
                }
            }
            Command::RouteDel { prefix, .. } => record.prefix = PrefixRecord::of(prefix),
            Command::Sweep { .. }
            | Command::Order { .. }
            | Command::Drill { .. }
            | Command::Suspect { .. } => {}
        }
        Some(zerocopy::transmute!(record))
    }

    /// The command in these words, or why they are none.
    pub fn read(words: [u64; COMMAND_WORDS]) -> Result<Command, &'static str> {
        let record: CommandRecord = zerocopy::transmute!(words);
        if record.kind == ORDER {
            let record: OrderRecord = zerocopy::transmute!(words);
            return record.read();
        }
        if record.kind == DRILL {
            let record: DrillRecord = zerocopy::transmute!(words);
            return record.read();
        }
        if record.kind == SUSPECT {
            let record: SuspectRecord = zerocopy::transmute!(words);
            return record.read();
        }
        zero(&record.zero)?;
        let (owner, epoch, preference) = (record.owner.get(), record.epoch.get(), record.preference.get());
        let count = usize::from(record.hops);
        let (to, unused) = record.to.split_at_checked(count).ok_or(UNKNOWN)?;
        unused.iter().try_for_each(|hop| zero(hop.as_bytes()))?;
        let hops: Vec<NextHop> = to
            .iter()
            .map(DynamicHopRecord::read)
            .collect::<Result<_, Wrong>>()?;
        match (record.kind, record.prefix.read()?, count) {
            (1, Some(prefix), 1..) => Ok(Command::RouteAdd {
                prefix,
                owner,
                epoch,
                preference,
                hops,
            }),
            (2, Some(prefix), 0) if epoch == 0 && preference == 0 => Ok(Command::RouteDel { prefix, owner }),
            (3, None, 0) if preference == 0 => Ok(Command::Sweep { owner, epoch }),
            _ => Err(UNKNOWN),
        }
    }
}

const DRILL: u8 = 5;

impl DrillRecord {
    fn of(link: u8, length: u32) -> DrillRecord {
        DrillRecord {
            kind: DRILL,
            link,
            zero: [0; 2],
            length: length.into(),
            rest: [U64::ZERO; 23],
        }
    }

    fn read(&self) -> Result<Command, &'static str> {
        zero(&self.zero)?;
        zero(self.rest.as_bytes())?;
        let (link, length) = (self.link, self.length.get());
        match link {
            1..16 if length <= DRILL_MAX => Ok(Command::Drill { link, length }),
            _ => Err("a drill of no link, or of more than a minute"),
        }
    }
}

impl Event {
    /// When it happened, nanoseconds of CLOCK_BOOTTIME. None: it is an answer.
    pub fn at(&self) -> Option<u64> {
        match self {
            Event::PathState { at, .. }
            | Event::Moved { at, .. }
            | Event::Session { at, .. }
            | Event::Endpoint { at, .. }
            | Event::PeerMoved { at, .. }
            | Event::Link { at, .. } => Some(*at),
            Event::Applied { .. }
            | Event::Refused { .. }
            | Event::CommandsRefused { .. }
            | Event::Unknown(_) => None,
        }
    }

    /// As words of the ring. Text that is too long is cut.
    pub fn words(&self) -> [u64; EVENT_WORDS] {
        let mut record = EventRecord {
            kind: 0.into(),
            text_len: 0.into(),
            detail: [0; 4],
            generation: 0.into(),
            count: 0.into(),
            key: [0; 32],
            text: [0; EVENT_TEXT_MAX],
        };
        match self {
            Event::Applied {
                generation,
                changes,
                public_key,
            } => {
                record.kind = 1.into();
                record.generation = (*generation).into();
                record.count = (*changes).into();
                record.key = *public_key;
            }
            Event::Refused { generation, reason } => {
                record.kind = 2.into();
                record.generation = (*generation).into();
                record.say(reason);
            }
            Event::CommandsRefused { count, reason } => {
                record.kind = 3.into();
                record.count = (*count).into();
                record.say(reason);
            }
            Event::PathState {
                at,
                remote,
                path,
                state,
                why,
            } => {
                record.note(4, *at, remote);
                record.detail = [path.byte(), state.number(), why.number(), 0];
            }
            Event::Moved {
                at,
                remote,
                class,
                from,
                to,
                why,
            } => {
                record.note(5, *at, remote);
                let name = |path: &Option<PathName>| path.map_or(0, PathName::byte);
                record.detail = [*class, name(from), name(to), why.number()];
            }
            Event::Session { at, peer, lane, up } => {
                record.note(6, *at, peer);
                let [path, number] = lane_bytes(*lane);
                record.detail = [path, number, u8::from(*up), 0];
            }
            Event::Endpoint { at, peer, lane, to } => {
                record.note(8, *at, peer);
                let [path, number] = lane_bytes(*lane);
                record.detail = [path, number, 0, 0];
                record.say(&to.to_string());
            }
            Event::PeerMoved {
                at,
                peer,
                from,
                to,
                why,
            } => {
                record.note(9, *at, peer);
                record.detail = [from.unwrap_or(0), *to, why.number(), 0];
            }
            Event::Link { at, link, up, name } => {
                record.note(7, *at, &[0; 32]);
                record.detail = [*link, u8::from(*up), 0, 0];
                record.say(name);
            }
            Event::Unknown(kind) => record.kind = (*kind).into(),
        }
        zerocopy::transmute!(record)
    }

    /// The event in these words. What is no text is not shown as such.
    pub fn read(words: [u64; EVENT_WORDS]) -> Event {
        let record: EventRecord = zerocopy::transmute!(words);
        let text = || {
            let len = usize::from(record.text_len.get()).min(EVENT_TEXT_MAX);
            String::from_utf8_lossy(&record.text[..len]).into_owned()
        };
        match record.kind.get() {
            1 => Event::Applied {
                generation: record.generation.get(),
                changes: record.count.get(),
                public_key: record.key,
            },
            2 => Event::Refused {
                generation: record.generation.get(),
                reason: text(),
            },
            3 => Event::CommandsRefused {
                count: record.count.get(),
                reason: text(),
            },
            kind => record.noted(text()).unwrap_or(Event::Unknown(kind)),
        }
    }
}

fn lane_bytes(lane: Option<(PathName, u8)>) -> [u8; 2] {
    lane.map_or([0; 2], |(path, number)| [path.byte(), number])
}

fn lane_of([path, number, ..]: [u8; 4]) -> Option<(PathName, u8)> {
    PathName::read(path).map(|path| (path, number))
}

impl EntryRecord {
    /// The entry of a counter in this place that only grows, or of a value that does not.
    pub fn default_at(offset: u32, is_counter: bool) -> EntryRecord {
        EntryRecord {
            sequence: 0.into(),
            offset: offset.into(),
            kind: u8::from(!is_counter),
            name_len: 0,
            labels_len: 0,
            zero: 0,
            name: [0; 56],
            labels: [0; 120],
        }
    }

    /// Gives it a name and labels, cut if they are too long.
    pub fn say(&mut self, name: &str, labels: &str) {
        let (name, labels) = (
            &name.as_bytes()[..name.floor_char_boundary(self.name.len())],
            &labels.as_bytes()[..labels.floor_char_boundary(self.labels.len())],
        );
        self.name[..name.len()].copy_from_slice(name);
        self.labels[..labels.len()].copy_from_slice(labels);
        (self.name_len, self.labels_len) = (name.len() as u8, labels.len() as u8);
    }

    /// As words.
    pub fn words(self) -> [u64; size_of::<EntryRecord>() / 8] {
        zerocopy::transmute!(self)
    }
}

impl EventRecord {
    fn note(&mut self, kind: u16, at: u64, key: &[u8; 32]) {
        self.kind = kind.into();
        self.generation = at.into();
        self.key = *key;
    }

    /// What was noted, if it means something.
    fn noted(&self, text: String) -> Option<Event> {
        let (at, key, detail) = (self.generation.get(), self.key, self.detail);
        match self.kind.get() {
            4 => Some(Event::PathState {
                at,
                remote: key,
                path: PathName::read(detail[0])?,
                state: PathState::read(detail[1])?,
                why: PathWhy::read(detail[2])?,
            }),
            5 => Some(Event::Moved {
                at,
                remote: key,
                class: detail[0],
                from: PathName::read(detail[1]),
                to: PathName::read(detail[2]),
                why: MoveWhy::read(detail[3])?,
            }),
            6 => Some(Event::Session {
                at,
                peer: key,
                lane: lane_of(detail),
                up: detail[2] == 1,
            }),
            7 => Some(Event::Link {
                at,
                link: detail[0],
                up: detail[1] == 1,
                name: text,
            }),
            8 => Some(Event::Endpoint {
                at,
                peer: key,
                lane: lane_of(detail),
                to: text.parse().ok()?,
            }),
            9 => Some(Event::PeerMoved {
                at,
                peer: key,
                from: Some(detail[0]).filter(|link| *link != 0),
                to: detail[1],
                why: LinkWhy::read(detail[2])?,
            }),
            _ => None,
        }
    }

    fn say(&mut self, text: &str) {
        let len = text.floor_char_boundary(EVENT_TEXT_MAX);
        self.text[..len].copy_from_slice(&text.as_bytes()[..len]);
        self.text_len = (len as u16).into();
    }
}
