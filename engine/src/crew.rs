//! The workers of an engine, and the rings through which they hand packets to each other.
//!
//! Each worker owns one [`Crew`]. From any worker to any other leads a ring of its own, so each has one writer and one reader. A packet changes hands
//! at most for two reasons: its flow belongs to another worker (a LAN port's queues do not spread flows as the workers do), or its
//! session does. What is handed over in a burst its worker sees at the burst's end, and is woken once;
//! a full ring is a counted drop and never a wait.

use std::io;
use std::sync::Arc;

use patronus_crypto::PeerId;
use patronus_mem::{Arena, BURST_MAX, Burst, PktBuf};
use patronus_sync::{Consumer, Producer, ring};

use crate::channel::ToWorker;
use crate::flow::HashedKey;
use crate::observe::View;
use crate::route::{Aim, Bound, Parsed};
use crate::stats::{Lap, Stage, WorkerStats};
use crate::wg::{Claim, Claimed};

/// Packets that may wait for one worker, in the rings from all others together.
pub const HANDOFF_MAX: usize = 2048;

/// What is left to do with a packet that changes hands, and what the worker that hands it over has found out: the other one neither looks at
/// the packet again for that, nor has to wait for it to come before it can begin.
#[derive(Clone, Copy, Debug)]
pub enum Handing {
    /// An inner packet whose flow is the receiver's, from an Ethernet port or from a TUN.
    Route {
        /// From an Ethernet port.
        ethernet: bool,
        /// The flow.
        flow: HashedKey,
    },
    /// An inner packet that the allowed-ips give to a peer of the receiver's.
    Encap,
    /// An inner packet that a router gives to this peer of the receiver's.
    Seal(Aim),
    /// A datagram of a session of the receiver's.
    Decap(Claim),
}

/// Packets that another worker has handed over, by what is left to do. Order matters within a flow only, and the packets of a flow have the same
/// left to do.
#[derive(Default)]
pub struct Taken {
    /// To be routed; from a TUN.
    pub from_tun: Parsed,
    /// To be routed; from an Ethernet port.
    pub from_ethernet: Parsed,
    /// To be sealed for whom the allowed-ips say.
    pub encap: Burst,
    /// To be sealed for whom the router said.
    pub seal: Bound,
    /// To be opened.
    pub decap: Claimed,
}

impl Taken {
    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.from_tun.is_empty()
            && self.from_ethernet.is_empty()
            && self.encap.is_empty()
            && self.seal.packets.is_empty()
            && self.decap.is_empty()
    }

    /// The packets, and as what an observer is to look at them.
    pub fn packets_mut(&mut self) -> [(&mut Burst, View); 5] {
        [
            (self.from_tun.packets_mut(), View::Ip),
            (self.from_ethernet.packets_mut(), View::Ip),
            (&mut self.encap, View::Ip),
            (&mut self.seal.packets, View::Ip),
            (self.decap.packets_mut(), View::Received),
        ]
    }
}

struct Handed {
    packet: PktBuf,
    left: Handing,
}

/// Another worker, seen from this one.
struct Colleague {
    number: usize,
    to: Producer<Handed>,
    from: Consumer<Handed>,
    /// Something was handed over, and it was not made sure yet that it is awake.
    owed: bool,
}

/// One worker's place among all workers.
pub struct Crew {
    inboxes: Vec<Arc<ToWorker>>,
    me: usize,
    others: Vec<Colleague>,
    /// Something is in the rings that nobody sees yet.
    handing: bool,
    places: Places,
}

/// Which worker owns which session: by its number, or where it was placed.
#[derive(Clone, Default)]
pub struct Places(Vec<Option<u8>>);

impl Places {
    /// Says to which worker a session belongs; `None`: to the one that its number says.
    pub fn set(&mut self, peer: PeerId, worker: Option<u8>) {
        let at = peer.0 as usize;
        if self.0.len() <= at {
            self.0.resize((at + 1).next_power_of_two(), None);
        }
        self.0[at] = worker;
    }

    /// Which of `workers` workers owns `peer`.
    #[inline]
    pub fn owner(&self, peer: PeerId, workers: usize) -> usize {
        match self.0.get(peer.0 as usize) {
            Some(Some(worker)) => usize::from(*worker),
            // In 32 bits: this is asked for every packet, and a division of 64 takes longer.
            _ => (peer.0 % workers as u32) as usize,
        }
    }
}

impl Crew {
    /// The places of `workers` workers, in order.
    pub fn assemble(workers: usize) -> io::Result<Vec<Crew>> {
        let inboxes: Vec<_> = (0..workers)
            .map(|_| ToWorker::new().map(Arc::new))
            .collect::<io::Result<_>>()?;
        let capacity = (HANDOFF_MAX / workers.max(2)).max(BURST_MAX);
        let mut rings: Vec<Vec<_>> = (0..workers)
            .map(|from| {
                (0..workers)
                    .map(|to| (from != to).then(|| ring(capacity)).unzip())
                    .collect()
            })
            .collect();
        let mut colleague = |me: usize, number: usize| {
            let (to, from) = (rings[me][number].0.take()?, rings[number][me].1.take()?);
            Some(Colleague {
                number,
                to,
                from,
                owed: false,
            })
        };
        let place = |me| Crew {
            inboxes: inboxes.clone(),
            me,
            others: (0..workers).filter_map(|number| colleague(me, number)).collect(),
            handing: false,
            places: Places::default(),
        };
        Ok((0..workers).map(place).collect())
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.inboxes.len()
    }

    /// This worker's number.
    pub fn me(&self) -> usize {
        self.me
    }

    /// The inboxes of all workers.
    pub fn inboxes(&self) -> &[Arc<ToWorker>] {
        &self.inboxes
    }

    /// This worker's inbox.
    pub fn inbox(&self) -> &Arc<ToWorker> {
        &self.inboxes[self.me]
    }

    /// The other worker that owns `peer`; `None`: this one does.
    #[inline]
    pub fn other_owner(&self, peer: PeerId) -> Option<usize> {
        let owner = self.places.owner(peer, self.workers());
        Some(owner).filter(|owner| *owner != self.me)
    }

    /// Takes note of which worker a session belongs to.
    pub fn place(&mut self, peer: PeerId, worker: Option<u8>) {
        debug_assert!(worker.is_none_or(|worker| usize::from(worker) < self.workers()));
        self.places.set(peer, worker);
    }

    /// Hands a packet to another worker, which sees it once the crew is [flushed](Crew::flush). It comes back if the ring is full.
    ///
    /// # Panics
    ///
    /// If `worker` is this one, or there is no such worker.
    #[inline(always)]
    pub fn hand_over(&mut self, worker: usize, packet: PktBuf, left: Handing) -> Result<(), PktBuf> {
        let at = if worker < self.me { worker } else { worker - 1 };
        let colleague = &mut self.others[at];
        assert!(colleague.number == worker, "to another worker");
        self.handing = true;
        let put = colleague.to.put(Handed { packet, left });
        put.map_err(|refused| refused.packet)
    }

    /// Lets the other workers see what was handed over, and wakes those who are surely asleep; at the end of the turn [`wake`](Crew::wake) follows.
    #[inline]
    pub fn flush(&mut self, stats: &WorkerStats) {
        if !std::mem::take(&mut self.handing) {
            return;
        }
        let (lap, mut all) = (Lap::start(), 0);
        for other in &mut self.others {
            let handed = other.to.publish();
            if handed > 0 {
                self.inboxes[other.number].waker.wake_early();
                other.owed = true;
                all += handed;
            }
        }
        stats.burst(Stage::Handoff, all, lap);
    }

    /// Wakes all to whom something was handed over since this was last called. Before the worker may sleep itself, and at the end of each turn: the
    /// fence in it is worth some packets.
    #[inline]
    pub fn wake(&mut self) {
        for other in &mut self.others {
            if std::mem::take(&mut other.owed) {
                self.inboxes[other.number].waker.wake();
            }
        }
    }

    /// Whether another worker has handed something over.
    pub fn has_handed(&mut self) -> bool {
        self.others.iter_mut().any(|other| other.from.ready(1) > 0)
    }

    /// Takes up to a burst of what worker `number` has handed over, and asks for all packets at once: they are in the other core's cache, and each
    /// would be waited for by itself. False if that was nothing.
    pub fn take(&mut self, number: usize, taken: &mut Taken, arena: &Arena) -> bool {
        let at = if number < self.me {
            number
        } else {
            number.wrapping_sub(1)
        };
        let Some(other) = self.others.get_mut(at).filter(|other| other.number == number) else {
            return false;
        };
        let handed = other.from.drain(BURST_MAX);
        let some = handed.len() > 0;
        for Handed { packet, left } in handed {
            arena.prefetch(&packet);
            match left {
                Handing::Route { ethernet: true, flow } => taken.from_ethernet.push(packet, flow),
                Handing::Route {
                    ethernet: false,
                    flow,
                } => taken.from_tun.push(packet, flow),
                Handing::Encap => taken.encap.push(packet),
                Handing::Seal(aim) => taken.seal.push(packet, aim),
                Handing::Decap(claim) => taken.decap.push(packet, claim),
            }
        }
        some
    }
}
