//! What must hold of steering, looked at with every datagram and whenever both sites are at rest.

use std::collections::{BTreeMap, HashSet};

use patronus_abi::channel::{Event, PathName, PathState};
use patronus_abi::site::Mode;
use patronus_crypto::{Duration, Time};

use super::roads::{CALM, DELAY_MAX, Road};
use crate::packet::Tag;
use crate::site::Site;

/// A path that was silent is silent after three intervals and four times the jitter, and after as long again if others are late as well.
const INTERVALS: u32 = 3;
const JITTERS: u32 = 4;
/// Jitter counts as this at least; where packets were late, and workers away, it may be this.
const SMOOTH: Duration = Duration::from_millis(3);
const ROUGH: Duration = Duration::from_millis(300);
/// What is between two looks of control's, and of a worker's.
const SLACK: Duration = Duration::from_millis(250);
/// A lane on which nothing has been heard for 15 s is not sent by, however good its path is, until a call is answered, which is made again every 5 s.
const LANES: Duration = Duration::from_secs(25);
/// How long a packet is under way at most.
const ARRIVES: Duration = Duration::from_secs(2);
/// Probes of a path beside those in its intervals: those that follow quickly when it gets a session or is heard again, and some that announce.
const EAGER: f64 = 24.0;

/// What a site is to do.
#[derive(Clone, Copy, Debug)]
pub struct Duty {
    /// How its flows use the paths.
    pub mode: Mode,
    /// How long a path that was left is not returned to.
    pub hold: Duration,
}

/// How often paths are probed.
#[derive(Clone, Copy, Debug)]
pub struct Paces {
    /// Those that are used.
    pub interval: Duration,
    /// Others.
    pub idle: Duration,
    /// Those that are suspect.
    pub quick: Duration,
    /// Probes of a site in a second.
    pub most: u32,
}

/// What is known of a site.
#[derive(Default)]
struct Known {
    /// Which paths are up, by its events.
    up: BTreeMap<PathName, bool>,
    /// By which path flows go first, by its events.
    first: Option<PathName>,
    /// Since when paths are poor by the order that is in force, while others are good and up.
    poor: BTreeMap<PathName, Time>,
    /// Since when control judges its paths, without a break.
    governed_since: Option<Time>,
    /// By flow: the path of the last packet, and those of the packet that is on its way out.
    last: BTreeMap<u16, usize>,
    leaving: BTreeMap<u16, Vec<usize>>,
    /// Packets that must arrive, and until when.
    due: Vec<(Time, Tag)>,
    received: HashSet<Tag>,
    /// Probes beyond those that its intervals allow, as of then.
    excess: f64,
    counted: u64,
    counted_at: Time,
    /// How many paths its control has asked it to probe faster, and until when.
    suspects: (usize, Time),
}

/// What must hold of two sites.
pub struct Watch {
    duties: [Duty; 2],
    paces: Paces,
    sites: [Known; 2],
    /// When something happened last after which anything may.
    pub disturbed_at: Time,
    /// When all lanes must be there.
    begins: Time,
    /// Since when hosts have been sending all the time.
    pub used_since: Time,
    /// When a worker or a slow path was away, and until when.
    stalls: Vec<(Time, Time)>,
    /// Packets that were looked at because a good path was there for them.
    pub certain: u64,
    /// Packets that might have gone by a path that everybody knew was dead.
    pub tempted: u64,
    /// Packets that might have returned within the hold.
    pub held: u64,
    /// Packets seen to go twice.
    pub doubled: u64,
}

impl Watch {
    /// Two sites, from `begins` on; nothing was wrong before.
    pub fn new(begins: Time, duties: [Duty; 2], paces: Paces) -> Watch {
        Watch {
            duties,
            paces,
            sites: [Known::default(), Known::default()],
            disturbed_at: Time(0),
            used_since: begins,
            begins,
            stalls: Vec::new(),
            certain: 0,
            tempted: 0,
            held: 0,
            doubled: 0,
        }
    }

    /// Whether nothing has happened for so long that everything must be as it should be.
    fn is_settled(&self, now: Time) -> bool {
        self.begins <= now && self.disturbed_at.after(CALM) <= now
    }

    /// Paths that everybody must know as good.
    fn calm(&self, roads: &[Road], now: Time) -> Vec<usize> {
        let calm = |at: &usize| roads[*at].is_calm(now) && self.is_settled(now);
        (0..roads.len()).filter(calm).collect()
    }

    /// A worker or a slow path is away.
    pub fn stall(&mut self, now: Time, until: Time) {
        self.stalls.push((now, until));
    }

    fn stalled(&self, since: Time) -> Duration {
        let later = self.stalls.iter().filter(|(_, until)| *until > since);
        later.map(|(from, until)| until.since(*from)).sum()
    }

    /// A site is started anew.
    pub fn restart(&mut self, number: usize, now: Time) {
        let received = std::mem::take(&mut self.sites[number].received);
        self.sites[number] = Known {
            received,
            counted_at: now,
            ..Known::default()
        };
    }

    /// Control judges the paths of a site from now on, or no more.
    pub fn govern(&mut self, number: usize, since: Option<Time>) {
        self.sites[number].governed_since = since;
    }

    /// Control has asked a site to probe so many paths faster, which the other one then does too.
    pub fn suspect(&mut self, number: usize, paths: usize, until: Time) {
        let (before, then) = self.sites[number].suspects;
        // Those of before are suspect no more, but the other side may not have heard of it.
        let still = if then > until || until.since(then) < Duration::from_secs(2) {
            before
        } else {
            0
        };
        self.sites[number].suspects = (paths.max(still), until);
    }

    /// How long after a path is dead both sites must have left it.
    fn bound(&self, road: &Road, metered: bool, dead: Time) -> Duration {
        let settling = self.paces.idle * 4 + Duration::from_secs(1);
        let is_used = self.used_since.after(settling) <= dead;
        let interval = match is_used && !metered {
            true => self.paces.interval,
            false => self.paces.idle,
        };
        let then = Time(dead.0.saturating_sub(60_000_000_000));
        let is_smooth = road.was_smooth(dead) && self.stalled(then).is_zero() && is_used;
        let jitter = if is_smooth { SMOOTH } else { ROUGH };
        (interval * INTERVALS + jitter * JITTERS) * 2 + DELAY_MAX * 2 + self.stalled(dead) + SLACK
    }

    /// A packet of a flow leaves a site by a path.
    pub fn leaves(
        &mut self,
        (number, site): (usize, &Site),
        flow: u16,
        at: usize,
        roads: &[Road],
        metered: &[bool],
        now: Time,
    ) -> Result<(), String> {
        self.note_poor(number, site, roads, now);
        let calm = self.calm(roads, now);
        let road = &roads[at];
        let duty = self.duties[number];
        let has_other = calm.iter().any(|other| *other != at);
        let whose = || {
            format!(
                "flow {flow} of site {number} by path {at} of links {:?}",
                road.links
            )
        };
        if let Some(dead) = road.dead_since(now).filter(|_| has_other) {
            let (silence, bound) = (now.since(dead), self.bound(road, metered[at], dead));
            self.tempted += u64::from(silence > self.paces.interval);
            if silence > bound {
                return Err(format!(
                    "dead: {}, which has been dead for {silence:?}, {bound:?} at most",
                    whose()
                ));
            }
        }
        let name = PathName {
            local: road.links[number] as u8 + 1,
            remote: road.links[1 - number] as u8 + 1,
        };
        let known = &self.sites[number];
        if duty.mode != Mode::Duplicate
            && let Some(since) = known.poor.get(&name)
            && now.since(*since) > SLACK * 2 + self.stalled(*since)
        {
            return Err(format!("poor: {}, for {:?}", whose(), now.since(*since)));
        }
        if duty.mode != Mode::Duplicate
            && has_other
            && let Some((from, to)) = road.outage
            && known.governed_since.is_some_and(|since| since < from)
            && to.since(from) > self.bound(road, metered[at], from)
            && calm
                .iter()
                .any(|other| *other != at && roads[*other].is_calm_for(from, CALM))
            && self.disturbed_at < from
        {
            let after = now.since(to);
            if after + SLACK < duty.hold && road.dead_since(now).is_none() {
                return Err(format!(
                    "hold: {}, {after:?} after it was back, hold {:?}",
                    whose(),
                    duty.hold
                ));
            }
        }
        let is_calm = |at: usize| calm.contains(&at);
        let is_shaken =
            duty.mode == Mode::LowestLatency && !self.stalled(Time(now.0 - CALM.as_nanos() as u64)).is_zero();
        // Flows are spread over the paths that are equal to the first, and control does not know which links of the other side are metered: the next one may have other equals.
        let is_unequal = |last: usize| duty.mode == Mode::Pinned && metered[last] != metered[at];
        let known = &mut self.sites[number];
        if duty.mode != Mode::Duplicate
            && let Some(last) = known.last.insert(flow, at)
            && last != at
            && is_calm(last)
            && is_calm(at)
            && !is_shaken
            && !is_unequal(last)
        {
            return Err(format!(
                "moved: {}, and by path {last} before; nothing is wrong with either",
                whose()
            ));
        }
        known.leaving.entry(flow).or_default().push(at);
        let is_held = |road: &Road| road.outage.is_some_and(|(_, to)| now.since(to) < duty.hold);
        self.held += u64::from(has_other && roads.iter().any(is_held));
        Ok(())
    }

    /// The packet of a flow that was sent at `sent` has left a site by all paths that it takes. `undisturbed`: its workers were there.
    pub fn has_left(
        &mut self,
        number: usize,
        tag: Tag,
        sent: Time,
        roads: &[Road],
        undisturbed: bool,
    ) -> Result<(), String> {
        let calm = self.calm(roads, sent);
        let mode = self.duties[number].mode;
        let known = &mut self.sites[number];
        let by = known.leaving.remove(&tag.flow).unwrap_or_default();
        if !undisturbed || calm.is_empty() {
            return Ok(());
        }
        let is_doubled = by.len() == 2 && by[0] != by[1];
        let is_right = match mode {
            Mode::Duplicate if calm.len() > 1 => is_doubled,
            Mode::Duplicate => by.len() == 1 || is_doubled,
            _ => by.len() == 1,
        };
        self.doubled += u64::from(is_doubled);
        if !is_right {
            return Err(format!(
                "copies: {tag:?} left by paths {by:?}, mode {mode:?}, good ones {calm:?}"
            ));
        }
        // Of two copies by the only two paths that there are, one goes by the good one.
        if by.iter().any(|at| calm.contains(at)) || mode == Mode::Duplicate && roads.len() == 2 {
            self.certain += 1;
            known.due.push((sent.after(ARRIVES), tag));
        }
        Ok(())
    }

    /// A packet has arrived at a site.
    pub fn arrives(&mut self, number: usize, tag: Tag) -> Result<(), String> {
        match self.sites[number].received.insert(tag) {
            true => Ok(()),
            false => Err(format!("twice: {tag:?} at site {number}")),
        }
    }

    /// Both sites are at rest.
    pub fn rest(&mut self, sites: &[Site], roads: &[Road], now: Time) -> Result<(), String> {
        self.find_lost(now)?;
        for (number, site) in sites.iter().enumerate() {
            if site.stalled.iter().all(|until| *until <= now) {
                self.compare(number, site)?;
                self.note_poor(number, site, roads, now);
            }
            self.count_probes(number, site, now)?;
        }
        self.stalls.retain(|(_, until)| until.after(CALM * 2) > now);
        Ok(())
    }

    fn find_lost(&mut self, now: Time) -> Result<(), String> {
        for number in [0, 1] {
            let settled = self.disturbed_at;
            let received = &self.sites[1 - number].received;
            let mut due = std::mem::take(&mut self.sites[number].due);
            // What was under way when everything changed may be lost.
            due.retain(|(until, tag)| settled.after(ARRIVES) <= *until && !received.contains(tag));
            if let Some((_, tag)) = due.iter().find(|(until, _)| *until <= now) {
                return Err(format!(
                    "loss: {tag:?} of site {number} went by a good path and did not arrive"
                ));
            }
            self.sites[number].due = due;
        }
        Ok(())
    }

    /// Takes what an engine says.
    pub fn hear(&mut self, number: usize, event: &Event) {
        let known = &mut self.sites[number];
        match event {
            Event::PathState { path, state, .. } => {
                known.up.insert(*path, *state == PathState::Up);
                // Its neighbours announce that, and it may be tried quickly.
                known.excess -= EAGER;
            }
            Event::Moved { to, .. } => known.first = *to,
            Event::Session { .. } => known.excess -= EAGER,
            _ => {}
        }
    }

    /// Notes which paths are poor now, while others are good and up, and all of their lanes must be heard.
    fn note_poor(&mut self, number: usize, site: &Site, roads: &[Road], now: Time) {
        let base = site.peers[&(1 - number)];
        let (Some(board), Some((order, paths))) = (site.core.board(base), site.core.order_of(base, 0)) else {
            return;
        };
        let good = order.good();
        let is_heard = |path: &PathName| {
            let ends = [path.local, path.remote].map(|link| usize::from(link) - 1);
            let road = roads
                .iter()
                .find(|road| [road.links[number], road.links[1 - number]] == ends);
            road.is_some_and(|road| road.is_calm_for(now, LANES))
        };
        let mut better = paths.iter().enumerate();
        let is_better = self.disturbed_at.after(LANES) <= now
            && better.any(|(place, (path, _))| good & board.up() & 1 << place != 0 && is_heard(path));
        let known = &mut self.sites[number].poor;
        let poor = paths.iter().enumerate();
        let poor = poor.filter(|(place, _)| is_better && good & 1 << place == 0);
        let since = |path: &PathName| known.get(path).copied().unwrap_or(now);
        *known = poor.map(|(_, (path, _))| (*path, since(path))).collect();
    }

    /// What the engine says in events, in the table of paths and to its workers is the same.
    fn compare(&mut self, number: usize, site: &Site) -> Result<(), String> {
        let base = site.peers[&(1 - number)];
        let Some(board) = site.core.board(base) else {
            return Ok(());
        };
        let known = &mut self.sites[number];
        known.up.retain(|path, _| board.place(*path).is_some());
        for report in site.core.path_reports(base) {
            let path = report.path;
            let in_event = known.up.get(&path).copied().unwrap_or(false);
            let in_table = report.state == PathState::Up;
            let on_board = board.is_up(path);
            if in_event != in_table || in_table != on_board {
                return Err(format!(
                    "told: path {path} of site {number} is up: {in_event} in events, {in_table} in the table, {on_board} for workers"
                ));
            }
        }
        let Some((order, paths)) = site.core.order_of(base, 0) else {
            return Ok(());
        };
        if board.up() != 0 {
            let first = order.first(board.up()).map(|place| paths[usize::from(place)].0);
            if first != known.first {
                return Err(format!(
                    "told: flows of site {number} go by {first:?} first, and by {:?} in events",
                    known.first
                ));
            }
        }
        Ok(())
    }

    /// No more probes than the intervals allow, and those of paths that are suspect.
    fn count_probes(&mut self, number: usize, site: &Site, now: Time) -> Result<(), String> {
        let (sent, paths) = site.probes();
        let suspects = self.sites.iter().map(|known| known.suspects);
        let suspects = suspects.filter(|(_, until)| until.after(ARRIVES) > now);
        let suspects = suspects.map(|(count, _)| count).sum::<usize>().min(paths);
        let known = &mut self.sites[number];
        let usual = paths as f64 / self.paces.interval.as_secs_f64();
        let quicker = suspects as f64 / self.paces.quick.as_secs_f64();
        let most = f64::from(self.paces.most).max(usual);
        // A probe comes up to an eighth of its interval early.
        let rate = (usual + quicker).min(most) * 8.0 / 7.0;
        let allowed = now.since(known.counted_at).as_secs_f64() * rate;
        known.excess = (known.excess + (sent - known.counted) as f64 - allowed).max(-4.0 * EAGER);
        (known.counted, known.counted_at) = (sent, now);
        match known.excess > paths.max(1) as f64 * EAGER {
            false => Ok(()),
            true => Err(format!(
                "probes: site {number} has sent {} more than its {paths} paths need",
                known.excess as i64
            )),
        }
    }

    /// Everything has been well for long: the paths of the last packets.
    pub fn last(&self, number: usize) -> impl Iterator<Item = (u16, usize)> + '_ {
        self.sites[number].last.iter().map(|(flow, at)| (*flow, *at))
    }
}
