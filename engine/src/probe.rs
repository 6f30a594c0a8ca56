//! Probes: whether paths are up, how long a round trip takes on each, and what is lost.
//!
//! Belongs to one worker, the one that owns lane 0 of every path, and is called on its thread: a worker is never away for long, as the slow path is during a large
//! reload. It does no I/O: it is told the time and what arrives, says which probes are due, and writes what it finds out on the
//! remotes' [`PathBoard`]s, where all workers see it with their next packet. The slow path reads the same boards, and is told of changes.
//!
//! * [`live`]: one path
//! * [`stalls`]: when this worker was away, or the remote's, which is no silence
//! * [`deadlines`]: which remote is due first
//! * [`shares`]: how many probes each remote gets when there are not enough for all
//!
//! How large a packet a path lets pass is found out beside that ([`pmtu`](crate::pmtu)), while the path is up.

mod deadlines;
mod live;
mod shares;
mod stalls;

use std::sync::Arc;

use arrayvec::ArrayVec;
use patronus_abi::channel::SUSPECTS_MAX;
use patronus_abi::site;
use patronus_crypto::timers::Traffic;
use patronus_crypto::{Duration, PeerId, Time};
use patronus_mem::BURST_MAX;

use self::deadlines::Deadlines;
use self::live::{Lanes, Live, Pace, Said};
use self::shares::{Need, Shares};
use self::stalls::{Absence, Stalls};
use crate::path::{PathBoard, PathName, PathReport, PathState, PathWhy};
use crate::pmtu::{Conditions, PathMtu};
use crate::remote::message::{Probe, Size};
use crate::stats::DropReason;

/// The worker that probes: the one that owns lane 0 of every path.
pub const PROBER: usize = 0;
/// The shortest interval between probes on a path.
pub const FLOOR: Duration = Duration::from_millis(5);
/// Remotes that are looked after in a turn.
const REMOTES_PER_TURN: usize = BURST_MAX;
/// How many times sooner probes follow each other on a path that is suspect, if that is no sooner than [`FLOOR`].
const SUSPECT_FACTOR: u32 = 10;
/// What a remote that packets of hosts go to or come from counts beside one without when there are not enough probes for all: as much as it is probed more often by default.
const IN_USE: u64 = 20;
/// How soon a path is looked at again that may be silent because the whole remote is.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// How often paths are probed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Probing {
    /// On paths of a remote that packets of hosts go to or come from, unless they are metered.
    pub interval: Duration,
    /// On the others.
    pub idle: Duration,
    /// Probes that are sent in a second on all paths together: when it would be more, each remote has its share, and the intervals of those that need more grow.
    pub rate: u32,
}

impl Default for Probing {
    fn default() -> Self {
        site::Probing::default().into()
    }
}

impl From<site::Probing> for Probing {
    fn from(told: site::Probing) -> Probing {
        Probing {
            interval: Duration::from_micros(told.interval_us.into()),
            idle: Duration::from_micros(told.idle_us.into()),
            rate: told.rate,
        }
    }
}

/// Paths to a remote that are to be probed faster for a while, and no others.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Suspects {
    /// Which ones.
    pub paths: ArrayVec<PathName, SUSPECTS_MAX>,
    /// Until then.
    pub until: Time,
}

/// A path is in another state than before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PathChange {
    /// Towards which remote.
    pub remote: PeerId,
    /// Which one.
    pub path: PathName,
    /// What it was.
    pub before: PathState,
    /// What it is now.
    pub state: PathState,
    /// Why.
    pub why: PathWhy,
    /// Since when.
    pub at: Time,
    /// For how long nothing had been heard on it then.
    pub silence: Duration,
}

/// The paths of a remote, for who probes them. The slow path makes it, so that the worker allocates nothing, and gets it back when there is another one.
pub struct ProbeSet {
    board: Arc<PathBoard>,
    /// In the board's order.
    paths: Box<[ProbedPath]>,
    absence: Absence,
    /// For phases of probes.
    random: u64,
    /// What its paths need, in probes in a thousand seconds: as long as nothing is wrong, and how much more those do that are suspect.
    need: Need,
    extra: Need,
}

/// One path of them.
pub struct ProbedPath {
    /// Which one.
    pub name: PathName,
    /// What it is called in messages: the upper byte of its tags.
    pub wire: u8,
    /// Its lane 0, if it has one.
    pub lane: Option<PeerId>,
    /// Traffic costs money on our link or on theirs.
    pub metered: bool,
    /// What goes by all of its lanes.
    pub traffic: Box<[Arc<Traffic>]>,
    live: Live,
    mtu: PathMtu,
    /// What it adds to the rate of probes, in a thousand seconds, and how much more while it is suspect.
    share: u64,
    extra: u64,
}

impl ProbedPath {
    /// A path that nothing is known of yet.
    pub fn new(
        name: PathName,
        wire: u8,
        lane: Option<PeerId>,
        metered: bool,
        traffic: Box<[Arc<Traffic>]>,
    ) -> ProbedPath {
        ProbedPath {
            name,
            wire,
            lane,
            metered,
            traffic,
            live: Live::new(Time(0), Duration::ZERO),
            mtu: PathMtu::new(0),
            share: 0,
            extra: 0,
        }
    }

    fn deadline(&self) -> Time {
        let live = self.live.deadline();
        self.mtu.next_deadline().map_or(live, |at| live.min(at))
    }

    fn report(&self, now: Time) -> PathReport {
        PathReport {
            mtu: self.mtu.mtu(),
            ..self.live.report(now, self.name)
        }
    }

    /// Tells the search for the MTU how the path is.
    fn observe(&mut self, now: Time) {
        self.mtu.observe(Conditions {
            rtt: self.live.rtt(),
            in_use: self.live.is_used(now),
        });
    }
}

impl ProbeSet {
    /// The paths of this board, in its order. `random`: any number.
    pub fn new(board: Arc<PathBoard>, paths: Box<[ProbedPath]>, random: u64) -> ProbeSet {
        debug_assert_eq!(board.pulses().len(), paths.len());
        ProbeSet {
            board,
            paths,
            absence: Absence::default(),
            random: random | 1,
            need: Need::default(),
            extra: Need::default(),
        }
    }

    /// What its paths need: always, and for suspicion.
    fn needs(&self, now: Time) -> (Need, Need) {
        let sum = |of: fn(&ProbedPath) -> u64| self.paths.iter().map(of).sum();
        let (rate, extra) = (sum(|path| path.share), sum(|path| path.extra));
        let weight = if self.is_used(now) { IN_USE } else { 1 };
        (
            Need { rate, weight },
            Need {
                rate: extra,
                weight: u64::from(extra > 0),
            },
        )
    }

    fn deadline(&self) -> Option<Time> {
        self.paths.iter().map(ProbedPath::deadline).min()
    }

    /// Xorshift (Marsaglia 2003): only when probes are sent depends on it.
    fn draw(&mut self) -> u8 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 32) as u8
    }

    /// Whether packets of hosts go to or come from the remote.
    fn is_used(&self, now: Time) -> bool {
        self.paths.iter().any(|path| path.live.is_used(now))
    }

    /// Judges all paths by what was heard until now.
    fn judge(&mut self, now: Time, stalls: &Stalls) -> bool {
        for path in &mut self.paths {
            path.live.refresh(&Lanes(&path.traffic));
        }
        self.hear_remote(stalls);
        let mut fell_silent = false;
        for at in 0..self.paths.len() {
            if !self.paths[at].live.hears || self.paths[at].live.look_at > now {
                continue;
            }
            let silent_at = self.silent_at(at, now, stalls);
            let soonest = if self.absence.lasts(now) {
                now.after(LOOK_AGAIN)
            } else {
                now
            };
            let live = &mut self.paths[at].live;
            if silent_at <= now {
                live.fall_silent();
                fell_silent = true;
            } else {
                live.look_at = silent_at.max(soonest);
            }
        }
        fell_silent
    }

    /// When a path is silent, as far as is known. While nothing at all is heard of a remote from which something should have come, it is the remote that is away, most likely
    /// its worker, and a move would be of no use: that time does not count, up to as much as is waited for anyway.
    fn silent_at(&self, at: usize, now: Time, stalls: &Stalls) -> Time {
        let live = &self.paths[at].live;
        let absence = self.absence.since(live.sent_before(), now, stalls);
        live.silent_at(stalls).after(absence.min(live.patience()))
    }

    /// Takes note of when the remote was heard last, and from when on it is away if it is not heard again: two paths are late then, one of which was not when it was heard
    /// last. One path alone says nothing about the remote, nor do those that have been late for so long that they may be dead.
    fn hear_remote(&mut self, stalls: &Stalls) {
        let hearing = self.paths.iter().map(|path| &path.live).filter(|live| live.hears);
        let last = hearing.clone().map(|live| live.heard_at).max();
        let Some(last) = last.filter(|last| *last > self.absence.heard_at()) else {
            return;
        };
        const NEVER: Time = Time(u64::MAX);
        let (mut first, mut second, mut next) = (NEVER, NEVER, NEVER);
        for due in hearing
            .filter(|live| live.missed_at() >= last)
            .map(Live::expected_at)
        {
            second = second.min(first.max(due));
            first = first.min(due);
            if due >= last {
                next = next.min(due);
            }
        }
        self.absence.heard(last, second.max(next), stalls);
    }

    /// Makes the states what follows from what is known, writes them on the board, and says what has changed. Whoever is told that we hear a path no more hears it by the
    /// others at once.
    fn settle(&mut self, remote: PeerId, now: Time, tell: &mut impl FnMut(PathChange)) {
        for (at, path) in self.paths.iter_mut().enumerate() {
            let before = path.live.state;
            if path.live.settle(now) {
                let is_up = path.live.state == PathState::Up;
                self.board.set_up(at, is_up);
                match is_up {
                    true => path.mtu.up(now),
                    false => path.mtu.down(),
                }
                tell(PathChange {
                    remote,
                    path: path.name,
                    before,
                    state: path.live.state,
                    why: path.live.why,
                    at: now,
                    silence: now.since(path.live.heard_at),
                });
                self.board.pulses()[at].write(&path.report(now));
            }
        }
        self.share_mtu();
    }

    /// Writes on the board what passes by every path that is up and of which that is known.
    fn share_mtu(&self) {
        let up = self.paths.iter().filter(|path| path.live.state == PathState::Up);
        self.board.set_mtu(up.filter_map(|path| path.mtu.mtu()).min());
    }

    /// Probes go out at once on every path that we hear.
    fn announce(&mut self, now: Time) {
        let heard = self.paths.iter_mut().filter(|path| path.live.hears);
        heard.for_each(|path| path.live.announce(now));
    }
}

/// A probe that is due: of which remote, and on the path in which place.
pub type Due = (PeerId, u8);

/// One worker's probes.
#[derive(Default)]
pub struct Prober {
    probing: Probing,
    /// By remote.
    remotes: Vec<Option<Box<ProbeSet>>>,
    deadlines: Deadlines,
    stalls: Stalls,
    /// When the worker looked last.
    looked_at: Time,
    /// What the remotes' paths need, and what more for suspicion, in probes in a thousand seconds.
    needs: Shares,
    extras: Shares,
    /// The longest packets that there are.
    mtu_max: u16,
    /// Sizes that are to be asked for.
    sizes: ArrayVec<(PeerId, Size), BURST_MAX>,
}

impl Prober {
    /// Packets are of this many bytes at most from now on.
    pub fn set_mtu_max(&mut self, now: Time, max: u16) {
        self.mtu_max = max;
        let sets = self.remotes.iter_mut().enumerate();
        for (remote, set) in sets.filter_map(|(remote, set)| Some((remote, set.as_mut()?))) {
            set.paths.iter_mut().for_each(|path| path.mtu.set_max(now, max));
            set.share_mtu();
            self.deadlines.set(remote as u32, set.deadline());
        }
    }

    /// How often paths are probed from now on.
    pub fn set_probing(&mut self, probing: Probing) {
        self.probing = probing;
    }

    /// When there is something to do.
    #[inline]
    pub fn next_deadline(&self) -> Option<Time> {
        self.deadlines.first().map(|(at, _)| at)
    }

    /// How much too late the worker may be without the other sides taking it for silence: they wait for three intervals.
    #[inline]
    pub fn bearable(&self) -> Duration {
        self.probing.interval / 2
    }

    /// The worker begins a turn. If it should have been here before, it was away.
    #[inline]
    pub fn begin_turn(&mut self, now: Time) {
        if let Some(due) = self.next_deadline().filter(|due| *due < now) {
            self.stalls.note(due.max(self.looked_at), now);
        }
        self.looked_at = now;
    }

    /// Takes the paths towards a remote, and gives back those of before. What is known of a path stays known.
    pub fn follow(&mut self, now: Time, remote: PeerId, mut set: Box<ProbeSet>) -> Option<Box<ProbeSet>> {
        let at = remote.0 as usize;
        if self.remotes.len() <= at {
            self.remotes.resize_with(at + 1, || None);
        }
        let mut old = self.remotes[at].take();
        for place in 0..set.paths.len() {
            let early = set.draw();
            let path = &mut set.paths[place];
            let same = old.iter_mut().flat_map(|old| old.paths.iter_mut());
            let mut same = same.filter(|old| old.name == path.name && old.lane == path.lane);
            match same.next() {
                Some(same) => {
                    std::mem::swap(&mut path.live, &mut same.live);
                    std::mem::swap(&mut path.mtu, &mut same.mtu);
                    (path.share, path.extra) = (same.share, same.extra);
                }
                None => {
                    path.live = Live::new(now, self.probing.idle / 256 * u32::from(early));
                    path.mtu = PathMtu::new(self.mtu_max);
                }
            }
            set.board.set_up(place, path.live.state == PathState::Up);
            set.board.pulses()[place].write(&path.report(now));
        }
        if let Some(old) = &mut old {
            std::mem::swap(&mut set.absence, &mut old.absence);
        }
        set.share_mtu();
        if let Some(old) = &mut old {
            self.needs.change(&mut old.need, Need::default());
            self.extras.change(&mut old.extra, Need::default());
        }
        self.count(now, &mut set);
        self.deadlines.set(remote.0, set.deadline());
        self.remotes[at] = Some(set);
        old
    }

    /// Judges what is due to be judged, and says which probes are to be sent now, as far as there is room for them; each of those has to be
    /// asked for by [`next`](Self::next), and what size is to be asked for by [`next_size`](Self::next_size). `may_send`: whether a lane has a session.
    pub fn due(
        &mut self,
        now: Time,
        may_send: impl Fn(PeerId) -> bool,
        mut tell: impl FnMut(PathChange),
        out: &mut ArrayVec<Due, BURST_MAX>,
    ) {
        for _ in 0..REMOTES_PER_TURN {
            let Some((_, number)) = self.deadlines.first().filter(|(at, _)| *at <= now) else {
                return;
            };
            let Some(set) = self.remotes.get_mut(number as usize).and_then(Option::as_mut) else {
                self.deadlines.set(number, None);
                continue;
            };
            let remote = PeerId(number);
            if set.judge(now, &self.stalls) {
                set.announce(now);
            }
            let mut is_full = false;
            let mut next = Time(u64::MAX);
            for (place, path) in set.paths.iter_mut().enumerate() {
                path.observe(now);
                if path.mtu.next_deadline().is_some_and(|at| at <= now) && !self.sizes.is_full() {
                    // What there is no session for is lost, like a datagram.
                    let lane = path.lane.filter(|lane| may_send(*lane));
                    self.sizes
                        .extend(path.mtu.poll(now).and_then(|size| Some((lane?, size))));
                }
                if let Some(at) = path.mtu.next_deadline() {
                    next = next.min(at);
                    is_full |= at <= now;
                }
                let is_due = path.live.send_at <= now;
                if is_due && !path.lane.is_some_and(&may_send) {
                    path.live.put_off(now);
                    path.extra = 0;
                } else if is_due && out.try_push((remote, place as u8)).is_err() {
                    is_full = true;
                } else if is_due {
                    // Set anew when it is written.
                    next = next.min(path.live.look_at);
                    continue;
                }
                next = next.min(path.live.deadline());
            }
            set.settle(remote, now, &mut tell);
            let (_, extra) = set.needs(now);
            self.extras.change(&mut set.extra, extra);
            self.deadlines.set(number, Some(next));
            if is_full {
                return;
            }
        }
    }

    /// The next probe on a path, sent at `now`, and in which lane. `None`: there is no such path.
    pub fn next(&mut self, (remote, place): Due, now: Time) -> Option<(PeerId, Probe)> {
        let set = self.remotes.get_mut(remote.0 as usize)?.as_mut()?;
        let (in_use, early) = (set.is_used(now), set.draw());
        let path = set.paths.get_mut(usize::from(place))?;
        let pace = Pace {
            wanted: path.live.wanted(now, &self.probing, path.metered, in_use),
            quick: self.probing.interval,
        };
        let interval = path.live.plan(&pace);
        let (wish, quick) = path.live.quicker(now, self.probing.suspect(path.metered));
        path.share = per_thousand_seconds(interval);
        let extra = |pace| per_thousand_seconds(pace).saturating_sub(per_thousand_seconds(interval));
        path.extra = quick.map_or(0, extra);
        let (need, more) = set.needs(now);
        self.needs.change(&mut set.need, need);
        self.extras.change(&mut set.extra, more);
        let may = u64::from(self.probing.rate.max(1)) * 1000;
        let granted = self.needs.grant(need, may);
        let may = may.saturating_sub(self.needs.needed());
        let granted_more = self.extras.grant(more, may);
        let path = &mut set.paths[usize::from(place)];
        let stretched = |pace| stretched(pace, need.rate, granted);
        let quicker =
            |pace| hastened(interval, pace, more.rate, granted_more).filter(|pace| *pace < interval);
        let wish = wish.and_then(quicker);
        let said = Said {
            interval: stretched(interval),
            wanted: wish.unwrap_or_else(|| stretched(pace.wanted)),
        };
        let quick = quick.and_then(quicker);
        let mut probe = path.live.next(now, &said, quick, &Lanes(&path.traffic), early);
        let unheard = set.paths.iter();
        let unheard = unheard.filter(|path| path.live.state == PathState::Down && !path.live.hears);
        probe.unheard = unheard.map(|path| path.wire).collect();
        let path = &set.paths[usize::from(place)];
        set.board.pulses()[usize::from(place)].write(&path.report(now));
        self.deadlines.set(remote.0, set.deadline());
        Some((path.lane?, probe))
    }

    /// Counts what the paths of a remote need.
    fn count(&mut self, now: Time, set: &mut ProbeSet) {
        let (need, extra) = set.needs(now);
        self.needs.change(&mut set.need, need);
        self.extras.change(&mut set.extra, extra);
    }

    /// Some paths to a remote are suspect: both sides probe them faster for a while. Those that were before are no more.
    pub fn suspect(&mut self, now: Time, remote: PeerId, suspects: &Suspects) {
        let Some(Some(set)) = self.remotes.get_mut(remote.0 as usize) else {
            return;
        };
        for path in &mut set.paths {
            let is_suspect = suspects.paths.contains(&path.name);
            let until = if is_suspect { suspects.until } else { Time(0) };
            path.live.suspect(now, until);
        }
        self.deadlines.set(remote.0, set.deadline());
    }

    /// A probe was heard in this lane of a remote, behind so many datagrams of its burst that its lane has not counted yet.
    pub fn hear(
        &mut self,
        now: Time,
        (remote, lane): (PeerId, PeerId),
        probe: &Probe,
        uncounted: u64,
        mut tell: impl FnMut(PathChange),
    ) -> Result<(), DropReason> {
        let set = self.remotes.get_mut(remote.0 as usize).and_then(Option::as_mut);
        let set = set.ok_or(DropReason::ProbeUnknownPath)?;
        let place = set.paths.iter().position(|path| path.lane == Some(lane));
        let place = place.ok_or(DropReason::ProbeUnknownPath)?;
        let path = &mut set.paths[place];
        if !path.live.may_speak(now) {
            return Err(DropReason::ProbeFlood);
        }
        let begins = path.live.take(
            now,
            probe,
            &Lanes(&path.traffic),
            uncounted,
            self.probing.interval,
        );
        if path.live.hears {
            path.live.look_at = path.live.silent_at(&self.stalls);
        }
        set.hear_remote(&self.stalls);
        for wire in &probe.unheard {
            let named = set.paths.iter_mut().filter(|path| path.wire == *wire);
            named.for_each(|path| path.live.hear_of(probe.time, false));
        }
        if begins {
            set.announce(now);
        }
        set.settle(remote, now, &mut tell);
        let path = &set.paths[place];
        set.board.pulses()[place].write(&path.report(now));
        self.deadlines.set(remote.0, set.deadline());
        Ok(())
    }

    /// Whether what was asked in this lane of a remote about a size may be answered. Questions and probes of a path have one share: acknowledgements leave by a queue that all
    /// remotes share, and whoever asks all the time is not to fill it.
    pub fn may_ask(&mut self, now: Time, remote: PeerId, lane: PeerId) -> Result<(), DropReason> {
        let set = self.remotes.get_mut(remote.0 as usize).and_then(Option::as_mut);
        let mut paths = set.into_iter().flat_map(|set| set.paths.iter_mut());
        let path = paths.find(|path| path.lane == Some(lane));
        let path = path.ok_or(DropReason::ProbeUnknownPath)?;
        path.live
            .may_speak(now)
            .then_some(())
            .ok_or(DropReason::ProbeFlood)
    }

    /// A size to ask for now, and in which lane.
    pub fn next_size(&mut self) -> Option<(PeerId, Size)> {
        self.sizes.pop()
    }

    /// It was acknowledged in this lane of a remote that a size has passed.
    pub fn take_size(&mut self, now: Time, remote: PeerId, lane: PeerId, size: Size) {
        self.change(remote, lane, |path| path.mtu.take(now, size));
        if let Some(Some(set)) = self.remotes.get(remote.0 as usize) {
            set.share_mtu();
        }
    }

    /// A session was made in this lane of a remote.
    pub fn opened(&mut self, now: Time, remote: PeerId, lane: PeerId) {
        self.change(remote, lane, |path| path.live.opened(now));
    }

    /// Packets of hosts go to or come from a remote, the first ones for a while: both sides are to probe more often from now on, not after the next probe.
    pub fn used(&mut self, now: Time, remote: PeerId) {
        let Some(Some(set)) = self.remotes.get_mut(remote.0 as usize) else {
            return;
        };
        for path in &mut set.paths {
            path.live.refresh(&Lanes(&path.traffic));
            if path.live.is_slower_than(self.probing.interval) && (!path.metered || path.live.is_used(now)) {
                path.live.announce(now);
            }
        }
        self.deadlines.set(remote.0, set.deadline());
    }

    /// The sessions of this lane of a remote are gone.
    pub fn erased(&mut self, now: Time, remote: PeerId, lane: PeerId, mut tell: impl FnMut(PathChange)) {
        self.change(remote, lane, |path| path.live.erased());
        if let Some(Some(set)) = self.remotes.get_mut(remote.0 as usize) {
            set.settle(remote, now, &mut tell);
        }
    }

    fn change(&mut self, remote: PeerId, lane: PeerId, change: impl FnOnce(&mut ProbedPath)) {
        let Some(Some(set)) = self.remotes.get_mut(remote.0 as usize) else {
            return;
        };
        if let Some(path) = set.paths.iter_mut().find(|path| path.lane == Some(lane)) {
            change(path);
            self.deadlines.set(remote.0, set.deadline());
        }
    }
}

impl Probing {
    /// How soon probes may follow each other on a path that is suspect. Where each is paid for, no sooner than where packets go.
    fn suspect(&self, metered: bool) -> Duration {
        match metered {
            true => self.interval,
            false => (self.interval / SUSPECT_FACTOR).max(FLOOR),
        }
    }
}

/// What an interval means in probes.
fn per_thousand_seconds(interval: Duration) -> u64 {
    let probes = Duration::from_secs(1000).as_nanos() / interval.as_nanos().max(1);
    probes as u64
}

/// An interval of a remote whose paths need so many probes, and get so many.
fn stretched(interval: Duration, need: u64, granted: u64) -> Duration {
    if need <= granted {
        return interval;
    }
    let nanos = interval.as_nanos() * u128::from(need) / u128::from(granted.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// An interval with so much of what is to come to it as the remote gets for suspicion, where all of that would make it `quick`.
fn hastened(interval: Duration, quick: Duration, need: u64, granted: u64) -> Option<Duration> {
    if need <= granted {
        return Some(quick);
    }
    let usual = per_thousand_seconds(interval);
    let more = per_thousand_seconds(quick).saturating_sub(usual);
    let gets = u128::from(more) * u128::from(granted) / u128::from(need);
    let nanos = Duration::from_secs(1000)
        .as_nanos()
        .checked_div(u128::from(usual) + gets)?;
    Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
}
