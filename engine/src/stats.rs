//! What the engine counts: packets, bursts and cycles per stage, and a name for every packet that disappears.
//!
//! Each worker owns one [`WorkerStats`] and is its only writer, so counting is a load, an add and a store without a
//! bus lock; the slow path reads the same cells when somebody asks. Under control they lie in memory that other processes may read
//! ([`Directory`]), so that nobody has to be asked.

pub mod directory;
pub mod paths;

use std::fmt::Write;
use std::mem::offset_of;

pub use patronus_io::Counter;
use patronus_mem::cycles;
pub use patronus_sync::Placed;
use zerocopy::FromBytes;

use crate::steer::Moved;

pub use self::directory::Directory;
pub use self::paths::PathTable;

macro_rules! named {
    ($(#[$doc:meta])* $vis:vis enum $name:ident { $($(#[$vdoc:meta])* $variant:ident => $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        $vis enum $name { $($(#[$vdoc])* $variant,)* }

        impl $name {
            /// Every value, in the order of the counters.
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];

            /// The name under which it is counted and shown.
            pub const fn name(self) -> &'static str {
                match self { $($name::$variant => $text,)* }
            }
        }
    };
}

named! {
    /// Why a packet went no further.
    pub enum DropReason {
        /// From the TUN: neither IPv4 nor IPv6, or shorter than its header says.
        EncapNotIp => "encap-not-ip",
        /// From the TUN: no peer has the destination among its allowed-ips.
        EncapNoPeer => "encap-no-peer",
        /// From the TUN: the peer has no endpoint and has not called yet.
        EncapNoEndpoint => "encap-no-endpoint",
        /// From the TUN: a datagram that we sent to the peer, because the route to its endpoint leads into the tunnel.
        EncapLoop => "encap-routing-loop",
        /// Into a tunnel: longer than it takes, and not to be cut up; its sender is told.
        EncapTooBig => "encap-too-big",
        /// Into a tunnel: longer than it takes, and there were not as many frames free as it has fragments.
        FragmentNoFrame => "fragment-no-frame",
        /// From the TUN: the interface is down, so there is no UDP socket; or the link is.
        EncapDown => "encap-interface-down",
        /// A datagram to a link that is in a drill.
        DrillSent => "drill-sent",
        /// A datagram from a link that is in a drill.
        DrillReceived => "drill-received",
        /// From the network or another LAN port: the LAN port is gone.
        LanGone => "lan-gone",
        /// Waiting for a handshake: the oldest of 128 packets made room for a newer one.
        StagedOverflow => "staged-overflow",
        /// Waiting for a handshake that was given up, or whose peer was removed.
        StagedPurged => "staged-purged",
        /// Waiting for a handshake: no frame of the right size was free.
        StagedNoFrame => "staged-no-frame",
        /// From the network: not a WireGuard message (type, reserved bytes or length).
        DecapNotWireguard => "decap-not-wireguard",
        /// From the network: the receiver index belongs to no session.
        DecapUnknownIndex => "decap-unknown-index",
        /// From the network: the session is too old or its counter is used up.
        DecapExpired => "decap-expired",
        /// From the network: the authentication tag is wrong.
        DecapBadTag => "decap-bad-tag",
        /// From the network: the counter was seen before or has left the replay window.
        DecapReplay => "decap-replay",
        /// From the network, authenticated: neither IPv4 nor IPv6.
        DecapNotIp => "decap-not-ip",
        /// From the network, authenticated: the inner packet is longer than what arrived, or shorter than its header.
        DecapBadLength => "decap-bad-length",
        /// From the network, authenticated: the source address is not the sending peer's.
        DecapSource => "decap-source-not-allowed",
        /// From a remote: the second of a packet that goes twice, or one too late to tell.
        DecapDoubled => "decap-second-of-two",
        /// From the network, authenticated: congestion was marked on a packet whose inner header cannot carry the mark (RFC 6040).
        DecapCongestion => "decap-congestion-not-ect",
        /// From the network: a handshake message found the slow path's queue full.
        HandshakeQueueFull => "handshake-queue-full",
        /// From a remote: a control message that is too long, or found the slow path's queue full.
        ControlQueueFull => "control-queue-full",
        /// From a remote: more control messages within a second than it may send.
        ControlFlood => "control-flood",
        /// From a remote, in a lane: a probe whose length or fields cannot be.
        ProbeMalformed => "probe-malformed",
        /// From a remote, in a lane: a probe, but it is no path's lane 0.
        ProbeUnknownPath => "probe-unknown-path",
        /// From a remote, in a lane: more probes within a second than a path may have.
        ProbeFlood => "probe-flood",
        /// The ring to the worker that owns the flow or the session was full.
        HandoffFull => "handoff-full",
        /// From a LAN: an Ethernet frame without content.
        EthernetRunt => "ethernet-runt",
        /// From a LAN: an Ethernet frame with a VLAN tag, which belongs to another port.
        EthernetVlan => "ethernet-vlan",
        /// From a LAN: an Ethernet frame of another protocol than IP.
        EthernetNotIp => "ethernet-not-ip",
        /// From a LAN: an Ethernet frame to all or to a group, which no router sends on.
        EthernetGroup => "ethernet-group",
        /// To be routed: neither IPv4 nor IPv6.
        RouteNotIp => "route-not-ip",
        /// To be routed: shorter than its header says, or with a header that cannot be followed.
        RouteBadLength => "route-bad-length",
        /// To be routed: from or to an address that no router forwards.
        RouteMartian => "route-martian",
        /// To be routed: a policy says that it goes nowhere.
        RoutePolicy => "route-policy",
        /// To be routed: no route to the destination.
        RouteNone => "route-none",
        /// To be routed: the route says that it goes nowhere.
        RouteDiscard => "route-discard",
        /// To be routed: the time to live has run out.
        RouteTtl => "route-ttl",
        /// To be routed: nobody has said yet where the next hop or the receiver on the LAN is, and another packet waits for that in its place,
        /// or it has waited in vain.
        NeighbourUnknown => "neighbour-unknown",
        /// To be routed: the next hop, or the receiver on the LAN, does not answer.
        NeighbourSilent => "neighbour-silent",
        /// To be routed: longer than the next hop takes.
        RouteTooBig => "route-too-big",
    }
}

named! {
    /// A step of the packet's way, each of which works on whole bursts.
    pub enum Stage {
        /// Packets taken from the LAN ports: the TUN, Ethernet.
        LanRx => "lan-rx",
        /// Inner packets sorted by where they leave.
        Route => "route",
        /// Inner packets sealed into datagrams.
        Encap => "encap",
        /// Datagrams given to the WAN ports: the UDP sockets.
        WanTx => "wan-tx",
        /// Datagrams taken from the WAN ports.
        WanRx => "wan-rx",
        /// Datagrams opened into inner packets.
        Decap => "decap",
        /// Inner packets given to the LAN ports.
        LanTx => "lan-tx",
        /// Packets passed to the worker that owns their flow or session.
        Handoff => "handoff",
    }
}

/// Since when a stage has been at work on a burst.
#[derive(Clone, Copy)]
pub struct Lap(u64);

impl Lap {
    /// Now.
    #[inline]
    pub fn start() -> Lap {
        Lap(cycles())
    }
}

/// What a stage has done.
#[derive(Default, FromBytes)]
#[repr(C)]
pub struct StageCounters {
    /// Packets.
    pub packets: Counter,
    /// Bursts that held at least one packet.
    pub bursts: Counter,
    /// Cycles of the processor's time stamp counter spent on those bursts.
    pub cycles: Counter,
}

/// One counter for each drop reason.
#[derive(FromBytes)]
#[repr(transparent)]
struct Drops([Counter; DropReason::ALL.len()]);

impl Default for Drops {
    fn default() -> Self {
        Drops(std::array::from_fn(|_| Counter::default()))
    }
}

/// The counters of one worker. On cache lines of their own: the next ones are another worker's.
#[derive(Default, FromBytes)]
#[repr(C, align(64))]
pub struct WorkerStats {
    stages: [StageCounters; Stage::ALL.len()],
    drops: Drops,
    /// Authenticated packets without content.
    pub keepalives_received: Counter,
    /// Control messages sent to remotes.
    pub controls_sent: Counter,
    /// Control messages of remotes passed to the slow path.
    pub controls_received: Counter,
    /// Probes sent.
    pub probes_sent: Counter,
    /// Probes received and listened to.
    pub probes_received: Counter,
    /// Inner pings sent to peers.
    pub pings_sent: Counter,
    /// Peers' answers to them, passed to the slow path.
    pub ping_answers_received: Counter,
    /// ICMP errors about packets that went no further.
    pub icmp_sent: Counter,
    /// Packets that were cut up because they are longer than their tunnel takes.
    pub fragmented: Counter,
    /// What became of those.
    pub fragments: Counter,
    /// Beginnings of TCP connections that asked for longer segments than fit the tunnel.
    pub mss_clamped: Counter,
    /// Messages about sizes sent to remotes: questions and acknowledgements.
    pub sizes_sent: Counter,
    /// Those received from them.
    pub sizes_received: Counter,
    /// Packets of flows that found no place in the flow table, so that each is classified.
    pub flows_unremembered: Counter,
    /// Times the worker went to sleep for want of work.
    pub sleeps: Counter,
    /// Times that the worker began to run in real time.
    pub realtime: Counter,
    /// Packets that went twice.
    pub doubled: Counter,
    /// Packets that went once for want of room, though their class says twice.
    pub undoubled: Counter,
    /// Buckets that went to another path, by why.
    moves: Moves,
}

/// One counter for each reason to move.
#[derive(FromBytes)]
#[repr(transparent)]
struct Moves([Counter; Moved::ALL.len()]);

impl Default for Moves {
    fn default() -> Self {
        Moves(std::array::from_fn(|_| Counter::default()))
    }
}

impl WorkerStats {
    /// Counts a burst of `packets` at `stage` that took from `lap` until now; an empty burst is none.
    #[inline]
    pub fn burst(&self, stage: Stage, packets: usize, lap: Lap) {
        if packets > 0 {
            let counters = &self.stages[stage as usize];
            counters.packets.add(packets as u64);
            counters.bursts.add(1);
            // Another core's counter may be a little behind.
            counters.cycles.add(cycles().saturating_sub(lap.0));
        }
    }

    /// Counts one dropped packet.
    pub fn drop(&self, reason: DropReason) {
        self.drop_many(reason, 1);
    }

    /// Counts `n` dropped packets.
    pub fn drop_many(&self, reason: DropReason, n: usize) {
        self.drops.0[reason as usize].add(n as u64);
    }

    /// Packets dropped for `reason` so far.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops.0[reason as usize].get()
    }

    /// Counts a bucket that went to another path.
    pub fn moved(&self, why: Moved) {
        self.moves.0[why as usize].add(1);
    }

    /// Buckets that went to another path so far, and packets that did by themselves ([`Moved::Lane`]).
    pub fn moves(&self, why: Moved) -> u64 {
        self.moves.0[why as usize].get()
    }

    /// The counters of `stage`.
    pub fn stage(&self, stage: Stage) -> &StageCounters {
        &self.stages[stage as usize]
    }

    /// Packets taken from the ports so far.
    pub fn received(&self) -> u64 {
        self.stage(Stage::LanRx).packets.get() + self.stage(Stage::WanRx).packets.get()
    }

    /// Every counter: what it counts, a label, and where in this it is, bytes.
    pub fn places() -> impl Iterator<Item = (&'static str, Option<(&'static str, &'static str)>, usize)> {
        let stages = Stage::ALL.iter().enumerate().flat_map(|(at, stage)| {
            let first = offset_of!(WorkerStats, stages) + at * size_of::<StageCounters>();
            let label = Some(("stage", stage.name()));
            [
                (
                    "stage_packets_total",
                    label,
                    first + offset_of!(StageCounters, packets),
                ),
                (
                    "stage_bursts_total",
                    label,
                    first + offset_of!(StageCounters, bursts),
                ),
                (
                    "stage_cycles_total",
                    label,
                    first + offset_of!(StageCounters, cycles),
                ),
            ]
        });
        let drops = DropReason::ALL.iter().enumerate().map(|(at, reason)| {
            let place = offset_of!(WorkerStats, drops) + at * size_of::<Counter>();
            ("dropped_packets_total", Some(("reason", reason.name())), place)
        });
        let others = [
            (
                "keepalives_received_total",
                offset_of!(WorkerStats, keepalives_received),
            ),
            ("controls_sent_total", offset_of!(WorkerStats, controls_sent)),
            (
                "controls_received_total",
                offset_of!(WorkerStats, controls_received),
            ),
            ("probes_sent_total", offset_of!(WorkerStats, probes_sent)),
            ("probes_received_total", offset_of!(WorkerStats, probes_received)),
            ("pings_sent_total", offset_of!(WorkerStats, pings_sent)),
            (
                "ping_answers_received_total",
                offset_of!(WorkerStats, ping_answers_received),
            ),
            ("icmp_sent_total", offset_of!(WorkerStats, icmp_sent)),
            ("fragmented_packets_total", offset_of!(WorkerStats, fragmented)),
            ("fragments_total", offset_of!(WorkerStats, fragments)),
            ("mss_clamped_total", offset_of!(WorkerStats, mss_clamped)),
            ("sizes_sent_total", offset_of!(WorkerStats, sizes_sent)),
            ("sizes_received_total", offset_of!(WorkerStats, sizes_received)),
            (
                "flows_unremembered_total",
                offset_of!(WorkerStats, flows_unremembered),
            ),
            ("worker_sleeps_total", offset_of!(WorkerStats, sleeps)),
            ("worker_realtime_total", offset_of!(WorkerStats, realtime)),
            ("doubled_packets_total", offset_of!(WorkerStats, doubled)),
            ("undoubled_packets_total", offset_of!(WorkerStats, undoubled)),
        ];
        let others = others.map(|(name, place)| (name, None, place));
        let moves = Moved::ALL.iter().enumerate().map(|(at, why)| {
            let place = offset_of!(WorkerStats, moves) + at * size_of::<Counter>();
            ("bucket_moves_total", Some(("reason", why.word())), place)
        });
        stages.chain(drops).chain(others).chain(moves)
    }

    /// Appends the counters as `name=value` lines, each name behind `prefix`.
    pub fn write(&self, prefix: &str, out: &mut impl Write) {
        for &stage in Stage::ALL {
            let c = self.stage(stage);
            let _ = writeln!(out, "{prefix}stage.{}.packets={}", stage.name(), c.packets.get());
            let _ = writeln!(out, "{prefix}stage.{}.bursts={}", stage.name(), c.bursts.get());
            let _ = writeln!(out, "{prefix}stage.{}.cycles={}", stage.name(), c.cycles.get());
        }
        for &reason in DropReason::ALL {
            let _ = writeln!(out, "{prefix}drop.{}={}", reason.name(), self.dropped(reason));
        }
        let _ = writeln!(
            out,
            "{prefix}keepalives-received={}",
            self.keepalives_received.get()
        );
        let _ = writeln!(out, "{prefix}controls-sent={}", self.controls_sent.get());
        let _ = writeln!(out, "{prefix}controls-received={}", self.controls_received.get());
        let _ = writeln!(out, "{prefix}probes-sent={}", self.probes_sent.get());
        let _ = writeln!(out, "{prefix}probes-received={}", self.probes_received.get());
        let _ = writeln!(out, "{prefix}pings-sent={}", self.pings_sent.get());
        let _ = writeln!(
            out,
            "{prefix}ping-answers-received={}",
            self.ping_answers_received.get()
        );
        let _ = writeln!(out, "{prefix}icmp-sent={}", self.icmp_sent.get());
        let _ = writeln!(out, "{prefix}fragmented={}", self.fragmented.get());
        let _ = writeln!(out, "{prefix}fragments={}", self.fragments.get());
        let _ = writeln!(out, "{prefix}mss-clamped={}", self.mss_clamped.get());
        let _ = writeln!(out, "{prefix}sizes-sent={}", self.sizes_sent.get());
        let _ = writeln!(out, "{prefix}sizes-received={}", self.sizes_received.get());
        let _ = writeln!(
            out,
            "{prefix}flows-unremembered={}",
            self.flows_unremembered.get()
        );
        let _ = writeln!(out, "{prefix}sleeps={}", self.sleeps.get());
        let _ = writeln!(out, "{prefix}realtime={}", self.realtime.get());
        let _ = writeln!(out, "{prefix}doubled={}", self.doubled.get());
        let _ = writeln!(out, "{prefix}undoubled={}", self.undoubled.get());
        for why in Moved::ALL {
            let _ = writeln!(out, "{prefix}moves.{}={}", why.word(), self.moves(why));
        }
    }
}
