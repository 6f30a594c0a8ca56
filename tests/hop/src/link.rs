//! One direction with the packets that are under way in it: the model, a queue by time, and counters.
//!
//! Called by [`crate::bridge`] on its one thread; a simulator uses it with packets of its own and a virtual clock. What is under way is
//! bounded in packets and bytes.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;

use crate::Time;
use crate::model::{Drop, Impair, Pass, Verdict};
use crate::settings::Settings;

/// Packets that can be under way in a direction.
pub const PACKETS_MAX: usize = 1 << 16;
/// Bytes that can be under way in a direction.
pub const BYTES_MAX: usize = 128 << 20;

/// What a link carries.
pub trait Packet: Sized {
    /// Bytes with the link header.
    fn frame_len(&self) -> usize;
    /// Bytes without it.
    fn ip_len(&self) -> usize;
    /// Another one with the same content.
    fn copy(&self) -> Self;
    /// Turns over one bit behind the link header: that of this number, modulo how many there are.
    fn flip(&mut self, bit: u64);
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// What happened in one direction. At any time `packets + duplicated` is the sum of `sent`, `waiting` (which
        /// [`Link::waiting`] says) and the reasons: `lost`, `dropped_*` and `cut`.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// Every counter with its name.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name)),*].into_iter()
            }
        }
    };
}

counters! {
    /// Packets that came, super-packets already cut up.
    packets,
    /// Bytes of those packets with their link headers.
    bytes,
    /// Packets that went on.
    sent,
    /// Bytes of those packets with their link headers.
    sent_bytes,
    /// Lost by chance.
    lost,
    /// No room in front of the bottleneck.
    dropped_queue,
    /// Longer than the MTU.
    dropped_mtu,
    /// Came, or was under way, while the direction was cut.
    cut,
    /// No mapping of the NAT, or nothing that it can map.
    dropped_nat,
    /// More under way than fits: [`PACKETS_MAX`] and [`BYTES_MAX`].
    dropped_full,
    /// Not what it claims to be, so that it cannot be cut up or completed.
    dropped_malformed,
    /// Refused by the interface on the other side: longer than its MTU, down, or out of buffers.
    dropped_send,
    /// Second copies that were made.
    duplicated,
    /// Packets that were held back so that later ones could overtake.
    reordered,
    /// Packets in which a bit was turned over.
    corrupted,
}

impl Counters {
    /// All packets that went no further.
    pub fn dropped(&self) -> u64 {
        self.lost
            + self.dropped_queue
            + self.dropped_mtu
            + self.cut
            + self.dropped_nat
            + self.dropped_full
            + self.dropped_malformed
            + self.dropped_send
    }
}

/// One direction of a link.
pub struct Link<P> {
    impair: Impair,
    under_way: BinaryHeap<Reverse<Entry<P>>>,
    bytes: usize,
    /// Packets that were put under way so far: those of the same time leave in this order.
    sequence: u64,
    /// What happened. Drops before and behind the link are counted here by whoever meets them.
    pub counters: Counters,
}

struct Entry<P> {
    at: Time,
    sequence: u64,
    packet: P,
}

impl<P: Packet> Link<P> {
    /// A perfect link: `direction` is its number.
    pub fn new(seed: u64, direction: usize) -> Link<P> {
        Link {
            impair: Impair::new(seed, direction),
            under_way: BinaryHeap::new(),
            bytes: 0,
            sequence: 0,
            counters: Counters::default(),
        }
    }

    /// What is set.
    pub fn settings(&self) -> &Settings {
        self.impair.settings()
    }

    /// Sets what holds from now on.
    pub fn set(&mut self, settings: Settings) {
        self.impair.set(settings);
    }

    /// Begins the sequences of chance anew.
    pub fn seed(&mut self, seed: u64, direction: usize) {
        self.impair.seed(seed, direction);
    }

    /// Counts a packet that came. Each is then offered, or counted under a reason.
    pub fn came(&mut self, frame: usize) {
        self.counters.packets += 1;
        self.counters.bytes += frame as u64;
    }

    /// Takes a packet that came. Gives it back if it goes no further.
    pub fn offer(&mut self, now: Time, packet: P) -> Option<P> {
        match self.impair.offer(now, packet.frame_len(), packet.ip_len()) {
            Verdict::Drop(reason) => {
                *self.counter_of(reason) += 1;
                Some(packet)
            }
            Verdict::Pass(pass) => self.carry(pass, packet),
        }
    }

    fn carry(&mut self, pass: Pass, mut packet: P) -> Option<P> {
        if !self.has_room(packet.frame_len()) {
            self.counters.dropped_full += 1;
            return Some(packet);
        }
        if let Some(bit) = pass.flip {
            packet.flip(bit);
            self.counters.corrupted += 1;
        }
        self.counters.reordered += u64::from(pass.held_back);
        let copy = pass.twice.then(|| packet.copy());
        self.push(pass.at, packet);
        if let Some(copy) = copy {
            self.counters.duplicated += 1;
            if !self.has_room(copy.frame_len()) {
                self.counters.dropped_full += 1;
                return Some(copy);
            }
            self.push(pass.at, copy);
        }
        None
    }

    fn has_room(&self, frame: usize) -> bool {
        self.under_way.len() < PACKETS_MAX && self.bytes + frame <= BYTES_MAX
    }

    fn push(&mut self, at: Time, packet: P) {
        self.bytes += packet.frame_len();
        let sequence = self.sequence;
        self.sequence += 1;
        self.under_way.push(Reverse(Entry { at, sequence, packet }));
    }

    /// When the next packet leaves, if there is one.
    pub fn next_at(&self) -> Option<Time> {
        self.under_way.peek().map(|Reverse(entry)| entry.at)
    }

    /// The next packet that has to leave by `now`, and when it should have. What leaves while the direction is cut is counted so.
    pub fn take(&mut self, now: Time) -> Option<Leaving<P>> {
        self.next_at().filter(|at| *at <= now)?;
        let Reverse(Entry { at, packet, .. }) = self.under_way.pop()?;
        self.bytes -= packet.frame_len();
        if self.impair.is_cut() {
            self.counters.cut += 1;
            return Some(Leaving::Cut(packet));
        }
        Some(Leaving::On(at, packet))
    }

    /// Packets under way.
    pub fn waiting(&self) -> usize {
        self.under_way.len()
    }

    fn counter_of(&mut self, reason: Drop) -> &mut u64 {
        match reason {
            Drop::Cut => &mut self.counters.cut,
            Drop::Mtu => &mut self.counters.dropped_mtu,
            Drop::Lost => &mut self.counters.lost,
            Drop::Queue => &mut self.counters.dropped_queue,
        }
    }
}

/// A packet whose time has come.
#[derive(Debug, PartialEq, Eq)]
pub enum Leaving<P> {
    /// It goes on; it was to leave at this time.
    On(Time, P),
    /// The direction is cut.
    Cut(P),
}

impl<P> Ord for Entry<P> {
    fn cmp(&self, other: &Entry<P>) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

impl<P> PartialOrd for Entry<P> {
    fn partial_cmp(&self, other: &Entry<P>) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<P> PartialEq for Entry<P> {
    fn eq(&self, other: &Entry<P>) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<P> Eq for Entry<P> {}

impl<P> fmt::Debug for Link<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("impair", &self.impair)
            .field("waiting", &self.under_way.len())
            .field("counters", &self.counters)
            .finish()
    }
}
