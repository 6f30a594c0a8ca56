//! What the engine counts: packets and bursts per stage, and a name for every packet that disappears.
//!
//! Each worker owns one [`WorkerStats`] and is its only writer, so counting is a load, an add and a store without a
//! bus lock; the slow path reads the same cells when somebody asks.

use std::fmt::Write;

pub use patronus_io::Counter;

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
        /// From the TUN: the interface is down, so there is no UDP socket.
        EncapDown => "encap-interface-down",
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
        /// From the network, authenticated: congestion was marked on a packet whose inner header cannot carry the mark (RFC 6040).
        DecapCongestion => "decap-congestion-not-ect",
        /// From the network: a handshake message found the slow path's queue full.
        HandshakeQueueFull => "handshake-queue-full",
        /// The owning worker's hand-off ring was full.
        HandoffFull => "handoff-full",
    }
}

named! {
    /// A step of the packet's way, each of which works on whole bursts.
    pub enum Stage {
        /// Packets taken from the TUN.
        TunRx => "tun-rx",
        /// Inner packets sealed into datagrams.
        Encap => "encap",
        /// Datagrams given to the UDP sockets.
        UdpTx => "udp-tx",
        /// Datagrams taken from the UDP sockets.
        UdpRx => "udp-rx",
        /// Datagrams opened into inner packets.
        Decap => "decap",
        /// Inner packets given to the TUN.
        TunTx => "tun-tx",
        /// Packets passed to the worker that owns their peer.
        Handoff => "handoff",
    }
}

/// Packets and bursts that a stage has seen.
#[derive(Default)]
pub struct StageCounters {
    /// Packets.
    pub packets: Counter,
    /// Bursts that held at least one packet.
    pub bursts: Counter,
}

/// The counters of one worker.
#[derive(Default)]
pub struct WorkerStats {
    stages: [StageCounters; Stage::ALL.len()],
    drops: [Counter; DropReason::ALL.len()],
    /// Authenticated packets without content.
    pub keepalives_received: Counter,
    /// ICMP errors sent back into the TUN.
    pub icmp_sent: Counter,
    /// Times the worker went to sleep for want of work.
    pub sleeps: Counter,
}

impl WorkerStats {
    /// Counts a burst of `packets` at `stage`; an empty burst is none.
    pub fn burst(&self, stage: Stage, packets: usize) {
        if packets > 0 {
            let counters = &self.stages[stage as usize];
            counters.packets.add(packets as u64);
            counters.bursts.add(1);
        }
    }

    /// Counts one dropped packet.
    pub fn drop(&self, reason: DropReason) {
        self.drop_many(reason, 1);
    }

    /// Counts `n` dropped packets.
    pub fn drop_many(&self, reason: DropReason, n: usize) {
        self.drops[reason as usize].add(n as u64);
    }

    /// Packets dropped for `reason` so far.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize].get()
    }

    /// The counters of `stage`.
    pub fn stage(&self, stage: Stage) -> &StageCounters {
        &self.stages[stage as usize]
    }

    /// Packets taken from the ports so far.
    pub fn received(&self) -> u64 {
        self.stage(Stage::TunRx).packets.get() + self.stage(Stage::UdpRx).packets.get()
    }

    /// Appends the counters as `name=value` lines, each name behind `prefix`.
    pub fn write(&self, prefix: &str, out: &mut impl Write) {
        for &stage in Stage::ALL {
            let c = self.stage(stage);
            let _ = writeln!(out, "{prefix}stage.{}.packets={}", stage.name(), c.packets.get());
            let _ = writeln!(out, "{prefix}stage.{}.bursts={}", stage.name(), c.bursts.get());
        }
        for &reason in DropReason::ALL {
            let _ = writeln!(out, "{prefix}drop.{}={}", reason.name(), self.dropped(reason));
        }
        let _ = writeln!(
            out,
            "{prefix}keepalives-received={}",
            self.keepalives_received.get()
        );
        let _ = writeln!(out, "{prefix}icmp-sent={}", self.icmp_sent.get());
        let _ = writeln!(out, "{prefix}sleeps={}", self.sleeps.get());
    }
}
