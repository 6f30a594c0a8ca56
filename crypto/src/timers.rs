//! Timers of a peer: what has been sent and received, and what is due because of it.
//!
//! Cut in two along the threads. [`Traffic`] is written by the peer's worker with every packet and costs it a few stores. The other
//! half belongs to the slow path, which looks at the traffic when a deadline comes and not before: it then acts, or finds
//! that there was traffic meanwhile and sets the deadline anew. A peer that is silent has no deadline and costs nothing.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use crate::timeouts::Timeouts;
use crate::{Duration, PeerId, Time};

/// Whether the worker has to call the slow path, because a timer started that nobody watches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a timer that started would never be looked at"]
pub enum Wake {
    /// Nothing to do.
    No,
    /// [`Device::watch`](crate::Device::watch) has to be called for the peer. Said once: the call must not get lost.
    Due,
}

/// A lane that carries no packet of a host for this long is not in use.
pub const LULL: Duration = Duration::from_secs(10);

/// What the data path tells the timers. One per peer, shared by its worker and the slow path.
///
/// Only the worker calls [`sent`](Self::sent), [`received`](Self::received) and the tallies, and only for authenticated data messages; the slow path
/// accounts for handshakes itself. Times are boot-time nanoseconds, 0 for "none".
#[derive(Default)]
#[repr(C, align(64))]
pub struct Traffic {
    /// When data was first sent that nothing has been received since.
    unanswered_since: AtomicU64,
    /// When data was first received that nothing has been sent since.
    owed_since: AtomicU64,
    last_data_received: AtomicU64,
    last_sent: AtomicU64,
    last_received: AtomicU64,
    received_bytes: AtomicU64,
    sent_bytes: AtomicU64,
    /// Whether the slow path has a deadline for the two times at the top.
    watched: AtomicBool,
    // Written by the slow path.
    handshake_received_bytes: AtomicU64,
    handshake_sent_bytes: AtomicU64,
    // Written by the worker, for lanes only: who has thousands of peers saves the cache line.
    sent_messages: AtomicU64,
    received_messages: AtomicU64,
    last_carried: AtomicU64,
}

impl Traffic {
    /// Messages were sent to the peer under a session's key: `bytes` of UDP payload in all. `data`: at least one was not an empty
    /// keepalive. Once per burst is enough.
    #[inline]
    pub fn sent(&self, now: Time, bytes: u64, data: bool) -> Wake {
        let now = now.0.max(1);
        self.last_sent.store(now, Ordering::Relaxed);
        add(&self.sent_bytes, bytes);
        let owed = self.owed_since.load(Ordering::Relaxed);
        let unanswered = self.unanswered_since.load(Ordering::Relaxed);
        let mut wake = Wake::No;
        if owed != 0 {
            // A keepalive answers what came before its timer started; what came after that starts the timer again.
            let more = !data && self.last_data_received.load(Ordering::Relaxed) > owed;
            self.owed_since
                .store(if more { now } else { 0 }, Ordering::Relaxed);
            if more {
                wake = self.wake_unless_watched();
            }
        }
        if data && unanswered == 0 {
            self.unanswered_since.store(now, Ordering::Relaxed);
            wake = self.wake_if_just_armed();
        } else if unanswered != 0 {
            wake = self.wake_unless_watched();
        }
        wake
    }

    /// Authenticated messages were received from the peer: `bytes` of UDP payload in all. `data`: at least one was not an empty
    /// keepalive. Once per burst is enough.
    #[inline]
    pub fn received(&self, now: Time, bytes: u64, data: bool) -> Wake {
        let now = now.0.max(1);
        self.last_received.store(now, Ordering::Relaxed);
        add(&self.received_bytes, bytes);
        if self.unanswered_since.load(Ordering::Relaxed) != 0 {
            self.unanswered_since.store(0, Ordering::Relaxed);
        }
        if data {
            self.last_data_received.store(now, Ordering::Relaxed);
        }
        match self.owed_since.load(Ordering::Relaxed) {
            0 if data => {
                self.owed_since.store(now, Ordering::Relaxed);
                self.wake_if_just_armed()
            }
            0 => Wake::No,
            _ => self.wake_unless_watched(),
        }
    }

    /// So many messages were sent in a lane. `carried`: packets of hosts were among them. True if they are the first for [`LULL`].
    #[inline]
    pub fn tally_sent(&self, now: Time, messages: u64, carried: bool) -> bool {
        add(&self.sent_messages, messages);
        carried && self.carry(now)
    }

    /// So many authenticated messages were received in a lane. `carried`: packets of hosts were among them. True if they are the first for [`LULL`].
    #[inline]
    pub fn tally_received(&self, now: Time, messages: u64, carried: bool) -> bool {
        add(&self.received_messages, messages);
        carried && self.carry(now)
    }

    #[inline]
    fn carry(&self, now: Time) -> bool {
        let last = Time(self.last_carried.load(Ordering::Relaxed));
        self.last_carried.store(now.0.max(1), Ordering::Relaxed);
        last.0 == 0 || now.since(last) > LULL
    }

    /// Data messages sent in a lane.
    pub fn sent_messages(&self) -> u64 {
        self.sent_messages.load(Ordering::Relaxed)
    }

    /// Authenticated data messages received in a lane.
    pub fn received_messages(&self) -> u64 {
        self.received_messages.load(Ordering::Relaxed)
    }

    /// When a packet of a host was last sent or received in a lane.
    pub fn last_carried(&self) -> Option<Time> {
        let at = self.last_carried.load(Ordering::Relaxed);
        (at != 0).then_some(Time(at))
    }

    /// When an authenticated data message was last received.
    pub fn last_received(&self) -> Option<Time> {
        let at = self.last_received.load(Ordering::Relaxed);
        (at != 0).then_some(Time(at))
    }

    /// Bytes of UDP payload received from the peer in authentic messages, handshakes included.
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes.load(Ordering::Relaxed) + self.handshake_received_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of UDP payload sent to the peer, handshakes included.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed) + self.handshake_sent_bytes.load(Ordering::Relaxed)
    }

    /// A timer went from stopped to running. Paired with the fence in [`stop_watching`](Self::stop_watching): either the slow path
    /// sees the timer before it stops watching, or we see that it has stopped.
    fn wake_if_just_armed(&self) -> Wake {
        fence(Ordering::SeqCst);
        self.wake_unless_watched()
    }

    /// Due once: from then on the slow path is as good as watching, because its notice is never lost.
    #[inline]
    fn wake_unless_watched(&self) -> Wake {
        if self.watched.load(Ordering::Relaxed) || self.watched.swap(true, Ordering::Relaxed) {
            Wake::No
        } else {
            Wake::Due
        }
    }

    fn armed(&self) -> bool {
        self.unanswered_since.load(Ordering::Relaxed) != 0 || self.owed_since.load(Ordering::Relaxed) != 0
    }

    /// The slow path has no deadline for this peer any more, unless this returns false: then a timer was started meanwhile.
    fn stop_watching(&self) -> bool {
        self.watched.store(false, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let idle = !self.armed();
        if !idle {
            self.watched.store(true, Ordering::Relaxed);
        }
        idle
    }

    /// A handshake message was sent: it answers what the peer sent us.
    pub(crate) fn handshake_sent(&self, bytes: usize) {
        self.handshake_sent_bytes
            .fetch_add(bytes as u64, Ordering::Relaxed);
        stop(&self.owed_since);
    }

    /// An authentic handshake message was received: it answers what we sent.
    pub(crate) fn handshake_received(&self, bytes: usize) {
        self.handshake_received_bytes
            .fetch_add(bytes as u64, Ordering::Relaxed);
        stop(&self.unanswered_since);
    }
}

/// Adds to a counter that nobody else writes.
#[inline]
fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

/// Stops a timer that the worker may start at the same time. If it does so in just that instant, the packet that started it
/// is treated as having come a moment earlier.
fn stop(timer: &AtomicU64) {
    let seen = timer.load(Ordering::Relaxed);
    if seen != 0 {
        // Failure means that the worker was faster, and its value counts.
        let _ = timer.compare_exchange(seen, 0, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// What a deadline asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Due {
    /// Send the initiation again, or give up.
    Retransmit,
    /// Nothing came back for what we sent: a new handshake.
    NewHandshake,
    /// Data came in and nothing went out: an empty packet.
    Keepalive,
    /// The interval set by the user passed without a packet either way.
    PersistentKeepalive,
    /// No new session for three key lifetimes: erase everything.
    Erase,
}

/// The slow path's half of a peer's timers.
#[derive(Default)]
pub(crate) struct PeerTimers {
    pub(crate) retransmit_at: Option<Time>,
    pub(crate) erase_at: Option<Time>,
    /// Retries of the handshake in progress.
    pub(crate) attempts: u32,
    /// Interval of persistent keepalives; zero for none.
    pub(crate) persistent: Duration,
    /// From when the interval counts, as far as the slow path knows: the last handshake message either way, or the last persistent
    /// keepalive asked for. `None`: one is due at once.
    persistent_from: Option<Time>,
    /// The start of the new-handshake timer that `unanswered_jitter` was drawn for.
    unanswered_seen: u64,
    unanswered_jitter: Duration,
    /// The start of the keepalive timer that a keepalive was asked for, and when. It is not asked for twice.
    keepalive_asked: Option<(u64, Time)>,
}

impl PeerTimers {
    /// A handshake message went either way at `now`.
    pub(crate) fn handshake_traversed(&mut self, now: Time) {
        self.persistent_from = Some(now);
    }

    /// Makes a persistent keepalive due at once.
    pub(crate) fn persistent_at_once(&mut self) {
        self.persistent_from = None;
    }

    /// Stops everything, as when the interface goes down.
    pub(crate) fn stop(&mut self, traffic: &Traffic) {
        self.retransmit_at = None;
        self.erase_at = None;
        self.attempts = 0;
        self.persistent_from = None;
        self.keepalive_asked = None;
        stop(&traffic.unanswered_since);
        stop(&traffic.owed_since);
    }

    /// The next deadline. Starts or stops watching the traffic accordingly. `jitter` draws one random delay.
    ///
    /// While we watch, the worker starts timers without telling us. None of them can run out sooner than a keepalive timer
    /// that starts now, so we look again by then at the latest.
    pub(crate) fn next(
        &mut self,
        traffic: &Traffic,
        times: &Timeouts,
        now: Time,
        jitter: &mut dyn FnMut() -> Duration,
    ) -> Option<Time> {
        traffic.watched.store(true, Ordering::Relaxed);
        let watched = match self.next_of_traffic(traffic, times, jitter) {
            None if !traffic.stop_watching() => self.next_of_traffic(traffic, times, jitter),
            deadline => deadline,
        };
        let look = watched.map(|deadline| deadline.min(now.after(times.keepalive_timeout)));
        [
            self.retransmit_at,
            self.erase_at,
            self.next_persistent(traffic),
            look,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// What is due at `now`; to be called until it returns `None`. Every call either says what to do and moves that
    /// deadline, or finds nothing.
    pub(crate) fn take_due(
        &mut self,
        traffic: &Traffic,
        times: &Timeouts,
        now: Time,
        jitter: &mut dyn FnMut() -> Duration,
    ) -> Option<Due> {
        let due = |at: Option<Time>| at.is_some_and(|at| at <= now);
        if due(self.erase_at) {
            self.erase_at = None;
            return Some(Due::Erase);
        }
        if due(self.retransmit_at) {
            self.retransmit_at = None;
            return Some(Due::Retransmit);
        }
        if due(self.new_handshake_at(traffic, times, jitter)) {
            stop(&traffic.unanswered_since);
            return Some(Due::NewHandshake);
        }
        if due(self.keepalive_at(traffic, times)) {
            let owed = traffic.owed_since.load(Ordering::Relaxed);
            if self
                .keepalive_asked
                .is_none_or(|(asked_for, _)| asked_for != owed)
            {
                self.keepalive_asked = Some((owed, now));
                return Some(Due::Keepalive);
            }
            // Asked for, and never sent: there was no session to send it in.
            stop(&traffic.owed_since);
        }
        if due(self.next_persistent(traffic)) {
            self.persistent_from = Some(now);
            return Some(Due::PersistentKeepalive);
        }
        None
    }

    /// The keepalive that is owed need not be sent any more: the peer is given up.
    pub(crate) fn stop_keepalive(&mut self, traffic: &Traffic) {
        stop(&traffic.owed_since);
    }

    fn next_of_traffic(
        &mut self,
        traffic: &Traffic,
        times: &Timeouts,
        jitter: &mut dyn FnMut() -> Duration,
    ) -> Option<Time> {
        let deadlines = [
            self.new_handshake_at(traffic, times, jitter),
            self.keepalive_at(traffic, times),
        ];
        deadlines.into_iter().flatten().min()
    }

    /// Counted from the first packet that nothing answered, not from the last.
    fn new_handshake_at(
        &mut self,
        traffic: &Traffic,
        times: &Timeouts,
        jitter: &mut dyn FnMut() -> Duration,
    ) -> Option<Time> {
        let since = traffic.unanswered_since.load(Ordering::Relaxed);
        if since == 0 {
            return None;
        }
        if since != self.unanswered_seen {
            self.unanswered_seen = since;
            self.unanswered_jitter = jitter();
        }
        Some(
            Time(since)
                .after(times.new_handshake_after())
                .after(self.unanswered_jitter),
        )
    }

    fn keepalive_at(&self, traffic: &Traffic, times: &Timeouts) -> Option<Time> {
        let since = traffic.owed_since.load(Ordering::Relaxed);
        let from = match self.keepalive_asked {
            _ if since == 0 => return None,
            Some((asked_for, at)) if asked_for == since => at,
            _ => Time(since),
        };
        Some(from.after(times.keepalive_timeout))
    }

    fn next_persistent(&self, traffic: &Traffic) -> Option<Time> {
        if self.persistent.is_zero() {
            return None;
        }
        let Some(from) = self.persistent_from else {
            return Some(Time(0));
        };
        let sent = Time(traffic.last_sent.load(Ordering::Relaxed));
        let received = Time(traffic.last_received.load(Ordering::Relaxed));
        Some(from.max(sent).max(received).after(self.persistent))
    }
}

/// The next deadline of every peer: a binary heap that knows where each peer stands in it, so that a peer has one place
/// and changing it is cheap.
#[derive(Default)]
pub(crate) struct Schedule {
    heap: Vec<(Time, PeerId)>,
    /// Where each peer stands in the heap, by its number; [`ABSENT`] if it has no deadline.
    places: Vec<u32>,
}

const ABSENT: u32 = u32::MAX;

impl Schedule {
    /// Makes room for peers with numbers below `peers`.
    pub(crate) fn reserve(&mut self, peers: usize) {
        let peers = peers.max(self.places.len());
        self.places.resize(peers, ABSENT);
        self.heap.reserve(peers.saturating_sub(self.heap.len()));
    }

    /// The earliest deadline and whose it is.
    pub(crate) fn first(&self) -> Option<(Time, PeerId)> {
        self.heap.first().copied()
    }

    /// Sets or takes away the deadline of `peer`, for which there must be room.
    pub(crate) fn set(&mut self, peer: PeerId, deadline: Option<Time>) {
        let place = self.places[peer.0 as usize];
        match (place, deadline) {
            (ABSENT, None) => {}
            (ABSENT, Some(at)) => {
                self.heap.push((at, peer));
                self.settle(self.heap.len() - 1);
            }
            (place, Some(at)) => {
                self.heap[place as usize].0 = at;
                self.settle(place as usize);
            }
            (place, None) => {
                self.places[peer.0 as usize] = ABSENT;
                self.heap.swap_remove(place as usize);
                if (place as usize) < self.heap.len() {
                    self.settle(place as usize);
                }
            }
        }
    }

    /// Moves the entry at `place`, the only one that may be out of order, to where it belongs.
    fn settle(&mut self, mut place: usize) {
        while place > 0 && self.heap[place].0 < self.heap[(place - 1) / 2].0 {
            place = self.swap(place, (place - 1) / 2);
        }
        loop {
            let children = (2 * place + 1)..(2 * place + 3).min(self.heap.len());
            let Some(least) = children.min_by_key(|&child| self.heap[child].0) else {
                break;
            };
            if self.heap[place].0 <= self.heap[least].0 {
                break;
            }
            place = self.swap(place, least);
        }
        self.places[self.heap[place].1.0 as usize] = place as u32;
    }

    /// Swaps two entries; returns where the first one is now. The second one's place is up to date, the first one's not yet.
    fn swap(&mut self, from: usize, to: usize) -> usize {
        self.heap.swap(from, to);
        self.places[self.heap[from].1.0 as usize] = from as u32;
        to
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const NOW: Time = Time::from_secs(1000);

    fn no_jitter() -> Duration {
        Duration::ZERO
    }

    #[test]
    fn c55_handshake_messages_count_for_the_persistent_keepalive() {
        let traffic = Traffic::default();
        let mut timers = PeerTimers {
            persistent: Duration::from_secs(25),
            ..PeerTimers::default()
        };
        assert_eq!(
            timers.next_persistent(&traffic),
            Some(Time(0)),
            "the first at once"
        );
        timers.handshake_traversed(NOW);
        assert_eq!(timers.next_persistent(&traffic), Some(Time::from_secs(1025)));
    }

    #[test]
    fn what_is_stopped_is_never_due() {
        let (traffic, times) = (Traffic::default(), Timeouts::protocol());
        let mut timers = PeerTimers {
            retransmit_at: Some(NOW),
            erase_at: Some(NOW),
            attempts: 3,
            ..PeerTimers::default()
        };
        timers.handshake_traversed(NOW);
        let _ = traffic.received(NOW, 100, true);
        assert_eq!(
            timers.keepalive_at(&traffic, &times),
            Some(NOW.after(times.keepalive_timeout))
        );
        traffic.unanswered_since.store(NOW.0, Ordering::Relaxed);
        timers.stop(&traffic);
        assert_eq!((timers.attempts, timers.persistent_from), (0, None));
        assert_eq!(timers.next(&traffic, &times, NOW, &mut no_jitter), None);
        let later = Time::from_secs(5000);
        assert_eq!(timers.take_due(&traffic, &times, later, &mut no_jitter), None);
    }

    #[test]
    fn a_keepalive_that_is_not_owed_any_more_is_never_due() {
        let (traffic, times) = (Traffic::default(), Timeouts::protocol());
        let mut timers = PeerTimers::default();
        let _ = traffic.received(NOW, 100, true);
        assert!(timers.keepalive_at(&traffic, &times).is_some());
        timers.stop_keepalive(&traffic);
        assert_eq!(timers.keepalive_at(&traffic, &times), None);
    }

    /// The worker starts a timer while the slow path decides that there is nothing to watch: one of the two notices.
    #[test]
    fn no_timer_starts_unwatched() {
        let times = Timeouts::protocol();
        for _ in 0..2000 {
            let (traffic, mut timers) = (Traffic::default(), PeerTimers::default());
            traffic.watched.store(true, Ordering::Relaxed);
            let start = std::sync::Barrier::new(2);
            let (wake, deadline) = std::thread::scope(|scope| {
                let worker = scope.spawn(|| {
                    start.wait();
                    traffic.sent(NOW, 100, true)
                });
                start.wait();
                let deadline = timers.next(&traffic, &times, NOW, &mut no_jitter);
                (worker.join().unwrap(), deadline)
            });
            assert!(wake == Wake::Due || deadline.is_some(), "{wake:?}, {deadline:?}");
        }
    }

    proptest! {
        /// Against a plain list of who is due when.
        #[test]
        fn the_schedule_knows_who_is_first(
            changes in prop::collection::vec((0..24u32, prop::option::of(0..40u64)), 0..200),
        ) {
            let mut schedule = Schedule::default();
            let mut list = BTreeMap::new();
            schedule.reserve(8);
            schedule.reserve(24);
            for (peer, at) in changes {
                schedule.set(PeerId(peer), at.map(Time));
                match at {
                    Some(at) => drop(list.insert(peer, at)),
                    None => drop(list.remove(&peer)),
                }
                let first = schedule.first();
                prop_assert_eq!(first.map(|(at, _)| at.0), list.values().min().copied());
                if let Some((at, peer)) = first {
                    prop_assert_eq!(list.get(&peer.0), Some(&at.0));
                }
            }
            while let Some((at, peer)) = schedule.first() {
                prop_assert_eq!(list.remove(&peer.0), Some(at.0));
                schedule.set(peer, None);
            }
            prop_assert!(list.is_empty());
        }
    }

    #[test]
    fn a_timer_that_is_started_while_watching_ends_is_seen() {
        let traffic = Traffic::default();
        traffic.watched.store(true, Ordering::Relaxed);
        assert!(traffic.stop_watching());
        assert!(!traffic.watched.load(Ordering::Relaxed));
        assert_eq!(traffic.sent(Time(5), 1, true), Wake::Due);
        assert!(!traffic.stop_watching(), "it has started");
        assert!(traffic.watched.load(Ordering::Relaxed));
        stop(&traffic.unanswered_since);
        assert!(traffic.stop_watching());
    }

    /// The worker starts a timer on one thread while the slow path stops watching on another: whatever the interleaving, the
    /// timer is watched afterwards or the worker was told to say so.
    #[test]
    fn no_timer_is_forgotten_between_the_threads() {
        let barrier = std::sync::Barrier::new(2);
        let traffic = Traffic::default();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..5_000 {
                    barrier.wait();
                    let _ = traffic.stop_watching();
                    barrier.wait();
                }
            });
            for n in 1..=5_000 {
                stop(&traffic.unanswered_since);
                traffic.watched.store(true, Ordering::Relaxed);
                barrier.wait();
                let wake = traffic.sent(Time(n), 1, true);
                barrier.wait();
                assert!(
                    wake == Wake::Due || traffic.watched.load(Ordering::Relaxed),
                    "round {n}"
                );
            }
        });
    }
}
