//! One path: what is heard on it, what the other side says about it, and when the next probe is due.
//!
//! No clock and no I/O: it is told the time and what arrives. docs/wire.md, section 7, says what both sides have to agree on.

use std::sync::Arc;

use patronus_abi::channel::SAMPLES;
use patronus_crypto::timers::{LULL, Traffic};
use patronus_crypto::{Duration, Time};

use super::stalls::Stalls;
use super::{FLOOR, Probing};
use crate::path::{PathName, PathReport, PathState, PathWhy};
use crate::remote::message::{INTERVALS, Probe};

/// So many of the other side's intervals without anything are silence.
const SILENT_AFTER: u32 = 3;
/// And so many times the jitter more, which counts as [`JITTER_MIN`] at least.
const JITTERS: u32 = 4;
const JITTER_MIN: Duration = Duration::from_millis(1);
/// So many probes in a row make a path heard again that was silent.
const RETURN_AFTER: u8 = 3;
/// So many probes follow quickly when something is heard, or has got a session, on a path that is not up.
const EAGER: u8 = 20;
/// How often a path that is not up is probed otherwise: first, and at last.
const BACKOFF: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// The other side has said for this long that it hears nothing on a new path that we hear.
const DEAF_AFTER: Duration = Duration::from_secs(3);
/// Probes that may be sent at the other side's wish without one having been heard for each.
const CREDIT: u8 = 20;
/// No two probes on a path follow each other sooner.
const SPACING: Duration = Duration::from_millis(1);
/// Probes on a path in a second that are listened to, and questions about sizes: twice what comes at the shortest interval.
const PROBES_PER_SECOND: u16 = 2 * (1000 / FLOOR.as_millis()) as u16;

/// A path comes up so many times in a second, and is down for the rest of it: each time all workers think about where packets go, the slow path about classes, and control
/// is told. Whether a path is up is the other side's to say, and may change with each of its probes.
const RETURNS_PER_SECOND: u8 = 4;

/// What was said in the newest probe that was heard.
#[derive(Clone, Copy)]
struct Theirs {
    sequence: u32,
    time: Time,
    heard_at: Time,
    interval: Duration,
    wanted: Duration,
    jitter: Duration,
    /// Datagrams that had been sent to us, and that we had received.
    sent: u64,
    received: u64,
    /// Of ours: the time in the newest probe that they had heard, and datagrams sent and received until then.
    echo: Time,
    echo_sent: u64,
    echo_received: u64,
}

/// What is known of a path, and when what is due.
pub(super) struct Live {
    pub state: PathState,
    pub why: PathWhy,
    since: Time,
    /// There is a session to send in.
    has_session: bool,
    /// We hear the path, since then.
    pub hears: bool,
    hears_since: Time,
    /// When something was heard again after silence; the greatest: not yet. What they heard of us before says nothing of now.
    again_at: Time,
    /// They say that they do, as of this time of theirs.
    they_hear: bool,
    they_said: Time,
    theirs: Option<Theirs>,
    /// When anything authentic was last heard.
    pub heard_at: Time,
    /// Probes heard in a row.
    streak: u8,
    /// When to look whether it is silent.
    pub look_at: Time,
    /// When the next probe is due.
    pub send_at: Time,
    sent_at: Time,
    sequence: u32,
    /// How soon probes follow each other, and what was last said about that, since when.
    pace: Duration,
    said: Duration,
    said_since: Time,
    /// Probes that still follow quickly.
    eager: u8,
    /// Until then it is suspect by our control.
    suspect_until: Time,
    /// Probes that may still be sent because they wish for it: one for each that was heard.
    credit: u8,
    backoff: Duration,
    /// A packet of a host.
    carried_at: Option<Time>,
    /// In which second probes were counted last, and how many.
    second: u64,
    probes: u16,
    /// The same for when it came up.
    up_second: u64,
    ups: u8,
    jitter: Duration,
    lateness: Duration,
    rtt: Option<u32>,
    rtt_min: Option<u32>,
    samples: u64,
    recent: [u32; SAMPLES],
    probes_sent: u64,
    probes_received: u64,
}

/// How soon the next probes are to follow, by what is asked of the path.
pub(super) struct Pace {
    /// What the path needs.
    pub wanted: Duration,
    /// What it gets until it is clear whether it is up.
    pub quick: Duration,
}

/// What the next probe says about when others come.
pub(super) struct Said {
    /// Ours follow within this.
    pub interval: Duration,
    /// Theirs are to.
    pub wanted: Duration,
}

/// What is sent and received in the lanes of a path.
pub(super) struct Lanes<'a>(pub &'a [Arc<Traffic>]);

impl Lanes<'_> {
    fn sent(&self) -> u64 {
        self.0.iter().map(|lane| lane.sent_messages()).sum()
    }

    fn received(&self) -> u64 {
        self.0.iter().map(|lane| lane.received_messages()).sum()
    }

    fn last_received(&self) -> Option<Time> {
        self.0.iter().filter_map(|lane| lane.last_received()).max()
    }

    fn last_carried(&self) -> Option<Time> {
        self.0.iter().filter_map(|lane| lane.last_carried()).max()
    }
}

impl Live {
    /// A path that nothing is known of. The first probe waits for a session, but for this long at most.
    pub fn new(now: Time, phase: Duration) -> Live {
        Live {
            state: PathState::Unknown,
            why: PathWhy::New,
            since: now,
            has_session: false,
            hears: false,
            hears_since: now,
            again_at: Time(0),
            they_hear: false,
            they_said: Time(0),
            theirs: None,
            heard_at: now,
            streak: 0,
            look_at: Time(u64::MAX),
            send_at: now.after(phase),
            sent_at: Time(0),
            sequence: 0,
            pace: BACKOFF,
            said: BACKOFF,
            said_since: now,
            eager: 0,
            suspect_until: Time(0),
            credit: 0,
            backoff: BACKOFF,
            carried_at: None,
            second: 0,
            probes: 0,
            up_second: 0,
            ups: 0,
            jitter: Duration::ZERO,
            lateness: Duration::ZERO,
            rtt: None,
            rtt_min: None,
            samples: 0,
            recent: [0; SAMPLES],
            probes_sent: 0,
            probes_received: 0,
        }
    }

    /// When this path has to be looked at.
    pub fn deadline(&self) -> Time {
        self.send_at.min(self.look_at)
    }

    /// The smoothed round trip, if one was measured.
    pub fn rtt(&self) -> Option<Duration> {
        self.rtt.map(|micros| Duration::from_micros(micros.into()))
    }

    /// Whether packets of hosts went by it lately.
    pub fn is_used(&self, now: Time) -> bool {
        self.carried_at.is_some_and(|at| now.since(at) < LULL)
    }

    /// Whether another probe, or another question about a size, may be listened to.
    pub fn may_speak(&mut self, now: Time) -> bool {
        let second = now.0 / 1_000_000_000;
        if self.second != second {
            (self.second, self.probes) = (second, 0);
        }
        let may = self.probes < PROBES_PER_SECOND;
        self.probes += u16::from(may);
        may
    }

    /// There is a session, or another one: what is not up can be tried at once.
    pub fn opened(&mut self, now: Time) {
        self.has_session = true;
        if self.state != PathState::Up {
            self.hurry(now);
        }
    }

    /// The sessions are gone: who is there now may be somebody who knows nothing of us.
    pub fn erased(&mut self) {
        self.has_session = false;
        self.hears = false;
        self.they_hear = false;
        self.they_said = Time(0);
        self.theirs = None;
        self.streak = 0;
        self.look_at = Time(u64::MAX);
    }

    /// Whether it is heard and probed less often than that.
    pub fn is_slower_than(&self, interval: Duration) -> bool {
        self.hears && self.pace > interval
    }

    /// The next probe goes out at once.
    pub fn announce(&mut self, now: Time) {
        let soonest = now.max(self.sent_at.after(SPACING));
        self.send_at = self.send_at.min(soonest);
    }

    /// Until then the path is suspect.
    pub fn suspect(&mut self, now: Time, until: Time) {
        let begins = self.suspect_until <= now && until > now;
        self.suspect_until = until;
        if begins && self.state == PathState::Up {
            self.announce(now);
        }
    }

    /// How soon probes are to follow each other because the path is suspect, no sooner than `soonest`: what we wish for ourselves, and what we do, which is what they
    /// wish for as well. Who wishes for more than it sends itself could have us send to anybody whose address it forges.
    pub fn quicker(&self, now: Time, soonest: Duration) -> (Option<Duration>, Option<Duration>) {
        if self.state != PathState::Up {
            return (None, None);
        }
        let ours = (self.suspect_until > now).then_some(soonest);
        let theirs = self.theirs.filter(|theirs| theirs.wanted < theirs.interval);
        let theirs = theirs.filter(|_| self.credit > 0);
        let theirs = theirs.map(|theirs| theirs.wanted.max(soonest));
        (ours, ours.into_iter().chain(theirs).min())
    }

    fn hurry(&mut self, now: Time) {
        self.eager = EAGER;
        self.backoff = BACKOFF;
        self.announce(now);
    }

    /// A probe was heard, behind so many datagrams of its burst that the lanes have not counted yet. True if we hear the path from now on.
    pub fn take(
        &mut self,
        now: Time,
        probe: &Probe,
        lanes: &Lanes<'_>,
        uncounted: u64,
        quick: Duration,
    ) -> bool {
        self.probes_received += 1;
        let before = self.theirs;
        if before.is_some_and(|before| probe.time <= before.time) {
            // Overtaken on its way.
            return false;
        }
        self.credit = self.credit.saturating_add(1).min(CREDIT);
        let follows = before.is_some_and(|before| probe.sequence == before.sequence.wrapping_add(1));
        if let Some(before) = before {
            self.measure_arrival(now, probe, &before, follows);
        }
        self.measure_round_trip(now, probe, before.map(|before| before.echo));
        let has_heard_more = before.is_none_or(|before| probe.echo > before.echo) && probe.echo.0 != 0;
        self.theirs = Some(Theirs {
            sequence: probe.sequence,
            time: probe.time,
            heard_at: now,
            interval: probe.interval,
            wanted: probe.wanted,
            jitter: probe.jitter,
            sent: probe.sent,
            received: lanes.received() + uncounted,
            echo: probe.echo,
            echo_sent: probe.echo_sent,
            echo_received: probe.echo_received,
        });
        let is_new_wish = before.is_none_or(|before| probe.wanted < before.wanted);
        if is_new_wish && probe.wanted < probe.interval && self.state == PathState::Up {
            self.announce(now);
        }
        self.heard_at = now;
        self.streak = if follows { self.streak.saturating_add(1) } else { 1 };
        self.hear_of(probe.time, probe.heard);
        let enough = if self.state == PathState::Unknown {
            1
        } else {
            RETURN_AFTER
        };
        if !self.hears {
            self.again_at = self.again_at.min(now);
        }
        let begins = !self.hears && self.streak >= enough;
        if begins {
            (self.hears, self.hears_since) = (true, now);
        }
        if !self.hears || !self.they_hear && has_heard_more {
            // Something gets through: it may all be well soon.
            (self.eager, self.backoff) = (EAGER, BACKOFF);
            self.send_at = self.send_at.min(self.sent_at.after(quick)).max(now);
        }
        begins
    }

    /// They say whether they hear this path, at this time of theirs.
    pub fn hear_of(&mut self, time: Time, heard: bool) {
        if time >= self.they_said {
            (self.they_said, self.they_hear) = (time, heard);
        }
    }

    /// RFC 3550, section 6.4.1, and by how much the next probe is later than was said.
    fn measure_arrival(&mut self, now: Time, probe: &Probe, before: &Theirs, follows: bool) {
        let (arrived, sent) = (now.since(before.heard_at), probe.time.since(before.time));
        self.jitter = moved(self.jitter, arrived.abs_diff(sent), 16);
        if follows {
            self.lateness = moved(self.lateness, arrived.saturating_sub(before.interval), 8);
        }
    }

    fn measure_round_trip(&mut self, now: Time, probe: &Probe, known: Option<Time>) {
        let is_new = probe.echo.0 != 0 && known != Some(probe.echo);
        if !is_new || probe.echo > self.sent_at {
            return;
        }
        let rtt = now.since(probe.echo).saturating_sub(probe.hold);
        let rtt = micros(rtt).max(1);
        self.recent[(self.samples % SAMPLES as u64) as usize] = rtt;
        self.samples += 1;
        self.rtt_min = Some(self.rtt_min.map_or(rtt, |least| least.min(rtt)));
        // As TCP's smoothed round trip: RFC 6298, section 2.
        let smoothed = self
            .rtt
            .map_or(rtt.into(), |mean| (7 * u64::from(mean) + u64::from(rtt)) / 8);
        self.rtt = Some(smoothed as u32);
    }

    /// How long nothing may be heard.
    pub fn patience(&self) -> Duration {
        let interval = self.their_interval();
        let jitter = self.jitter.max(self.lateness).max(JITTER_MIN);
        interval * SILENT_AFTER + jitter * JITTERS
    }

    /// When the path is silent if nothing more is heard.
    pub fn silent_at(&self, stalls: &Stalls) -> Time {
        let patience = self.patience() + stalls.since(self.heard_at);
        self.heard_at.after(patience)
    }

    /// Since when it matters whether the remote was away: what was on its way when it was heard last had been sent before.
    pub fn sent_before(&self) -> Time {
        let rtt = self.rtt().unwrap_or_default();
        Time(self.heard_at.0.saturating_sub(rtt.as_nanos() as u64))
    }

    /// When the next probe should have come.
    pub fn expected_at(&self) -> Time {
        self.heard_at.after(self.their_interval())
    }

    /// When one more should have come.
    pub fn missed_at(&self) -> Time {
        self.heard_at.after(self.their_interval() * 2)
    }

    fn their_interval(&self) -> Duration {
        self.theirs.map_or(BACKOFF, |theirs| theirs.interval)
    }

    /// Looks what the lanes have received since.
    pub fn refresh(&mut self, lanes: &Lanes<'_>) {
        self.carried_at = lanes.last_carried();
        if self.hears
            && let Some(at) = lanes.last_received()
        {
            self.heard_at = self.heard_at.max(at);
        }
    }

    /// Nothing is heard any more.
    pub fn fall_silent(&mut self) {
        self.hears = false;
        self.again_at = Time(u64::MAX);
        self.streak = 0;
        self.eager = 0;
        self.backoff = BACKOFF;
        self.look_at = Time(u64::MAX);
    }

    /// Makes the state what follows from what is known. True if it is another one.
    pub fn settle(&mut self, now: Time) -> bool {
        let is_deaf = self.hears && now.since(self.hears_since) > DEAF_AFTER;
        let is_up = self.hears && self.they_hear && self.has_session && self.is_answered();
        let (state, why) = match (self.state, is_up) {
            (PathState::Up, true) => return false,
            (_, true) if !self.may_return(now) => return false,
            (_, true) => (PathState::Up, PathWhy::Heard),
            (PathState::Up, false) if !self.has_session => (PathState::Down, PathWhy::NoSession),
            (PathState::Up, false) if !self.hears => (PathState::Down, PathWhy::Silent),
            (PathState::Up, false) => (PathState::Down, PathWhy::NotHeard),
            (PathState::Unknown, false) if is_deaf => (PathState::Down, PathWhy::NotHeard),
            (_, false) => return false,
        };
        (self.state, self.why, self.since) = (state, why, now);
        self.backoff = BACKOFF;
        true
    }

    /// Whether they have heard something that we have sent since the path was silent. That they say that they hear it may be old: on a path that is down probes are rare, and missed late.
    fn is_answered(&self) -> bool {
        self.state == PathState::Up || self.theirs.is_none_or(|theirs| theirs.echo >= self.again_at)
    }

    /// Whether it has not come up too often in this second.
    fn may_return(&mut self, now: Time) -> bool {
        let second = now.0 / 1_000_000_000;
        if self.up_second != second {
            (self.up_second, self.ups) = (second, 0);
        }
        let may = self.ups < RETURNS_PER_SECOND;
        self.ups += u8::from(may);
        may
    }

    /// How soon the probe behind the next one has to follow that, if nothing stretches it. Asked once for each.
    pub fn plan(&mut self, pace: &Pace) -> Duration {
        if self.state == PathState::Up {
            // Who asks for more than it sends itself could have us send to anybody whose address it forges.
            let theirs = self
                .theirs
                .map_or(pace.wanted, |theirs| theirs.wanted.max(theirs.interval));
            return pace.wanted.min(theirs).max(FLOOR);
        }
        if self.eager > 0 {
            self.eager -= 1;
            return pace.quick;
        }
        let interval = self.backoff.max(pace.wanted);
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        interval
    }

    /// The next probe, when this is to be said, and probes follow sooner than that if `quick`; without what is said of other paths. The one after it comes by
    /// `early`/256 of an eighth of the interval earlier, so that probes of several paths do not come together for ever (RFC 5880, section 6.8.7).
    pub fn next(
        &mut self,
        now: Time,
        said: &Said,
        quick: Option<Duration>,
        lanes: &Lanes<'_>,
        early: u8,
    ) -> Probe {
        let interval = said.interval.clamp(*INTERVALS.start(), *INTERVALS.end());
        if interval != self.said {
            (self.said, self.said_since) = (interval, now);
        }
        // A slower pace holds from when they have heard of it: until then they would miss probes.
        let is_known = self.theirs.is_some_and(|theirs| theirs.echo >= self.said_since);
        if interval <= self.pace || is_known || self.state != PathState::Up {
            self.pace = interval;
        }
        if quick.is_some() && self.suspect_until <= now {
            self.credit = self.credit.saturating_sub(1);
        }
        // What is said stays: silence is judged by it, and is not found sooner on a path that loses.
        let pace = quick.map_or(self.pace, |quick| quick.min(self.pace));
        self.send_at = now.after(pace - pace / 8 * u32::from(early) / 256);
        self.sent_at = now;
        self.has_session = true;
        self.sequence = self.sequence.wrapping_add(1);
        self.probes_sent += 1;
        let theirs = self.theirs;
        Probe {
            sequence: self.sequence,
            time: now,
            echo: theirs.map_or(Time(0), |theirs| theirs.time),
            hold: theirs.map_or(Duration::ZERO, |theirs| now.since(theirs.heard_at)),
            interval,
            wanted: said.wanted.clamp(*INTERVALS.start(), *INTERVALS.end()),
            jitter: self.jitter,
            sent: lanes.sent() + 1,
            echo_sent: theirs.map_or(0, |theirs| theirs.sent),
            echo_received: theirs.map_or(0, |theirs| theirs.received),
            heard: self.hears,
            used: self.is_used(now),
            unheard: Default::default(),
        }
    }

    /// Nothing could be sent: there is no session. It is looked for again after a while.
    pub fn put_off(&mut self, now: Time) {
        self.has_session = false;
        self.send_at = now.after(BACKOFF);
    }

    /// What is known of it. Whose it is, its MTU and its bytes are not known here.
    pub fn report(&self, now: Time, path: PathName) -> PathReport {
        let theirs = self.theirs;
        let interval = (self.probes_sent > 0).then_some(self.said);
        PathReport {
            remote: [0; 32],
            path,
            state: self.state,
            why: self.why,
            since: self.since.0,
            mtu: None,
            in_use: self.is_used(now),
            interval: interval.map(micros),
            remote_interval: theirs.map(|theirs| micros(theirs.interval)),
            rtt: self.rtt,
            rtt_min: self.rtt_min,
            jitter_in: micros(self.jitter),
            jitter_out: theirs.map_or(0, |theirs| micros(theirs.jitter)),
            in_sent: theirs.map_or(0, |theirs| theirs.sent),
            in_received: theirs.map_or(0, |theirs| theirs.received),
            out_sent: theirs.map_or(0, |theirs| theirs.echo_sent),
            out_received: theirs.map_or(0, |theirs| theirs.echo_received),
            sent_bytes: 0,
            received_bytes: 0,
            probes_sent: self.probes_sent,
            probes_received: self.probes_received,
            samples: self.samples,
            recent: self.recent,
        }
    }

    /// How often it is probed by its own needs.
    pub fn wanted(&self, now: Time, probing: &Probing, metered: bool, in_use: bool) -> Duration {
        match in_use && (!metered || self.is_used(now)) {
            true => probing.interval,
            false => probing.idle,
        }
    }
}

/// A moving average after one more value, which counts as one in `weight`.
fn moved(mean: Duration, value: Duration, weight: u32) -> Duration {
    // In two steps: durations have no sign.
    mean - mean / weight + value / weight
}

fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}
