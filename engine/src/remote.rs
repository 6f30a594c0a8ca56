//! Remotes: sites of our own, and the lanes towards them.
//!
//! A [`Remote`] is what the slow path keeps about one such site beside its base session: what both have said about themselves, which lanes
//! follow from that, and which of them want opening. It does nothing itself: it is told what happens and the time, and says what is to be done
//! ([`Action`]). docs/wire.md, sections 3 and 4, says what both sides have to agree on.
//!
//! * `message`: what they say to each other
//! * `known`: all of them, and who is due next

pub mod known;
pub mod message;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use arrayvec::ArrayVec;
use patronus_crypto::{Duration, Path, PublicKey, Tag, Time};

use crate::path::PATHS_MAX;

use self::message::{BootId, Control, Hello, LINKS_MAX, LinkInfo};

/// Lanes of one path at most.
pub const LANES_PER_PATH: u8 = 16;
/// How soon a hello is repeated that was not acknowledged, how often, and how soon after that.
const HELLO_INTERVAL: Duration = Duration::from_secs(1);
const HELLO_TRIES: u32 = 5;
const HELLO_PAUSE: Duration = Duration::from_secs(60);
/// What a remote says of itself may change this often.
const CHANGE_INTERVAL: Duration = Duration::from_secs(1);
/// Time between the initiations for a remote's lanes.
const OPEN_SPACING: Duration = Duration::from_millis(50);
/// The side that does not open a lane opens it all the same after this.
const OPEN_INSTEAD: Duration = Duration::from_secs(10);
/// When a lane is tried again whose handshake was given up.
const OPEN_AGAIN: Duration = Duration::from_secs(30);

/// What we are.
#[derive(Clone, Debug)]
pub struct Own {
    /// Our public key.
    pub key: PublicKey,
    /// What we say of ourselves; the boot id is each remote's own.
    pub hello: Hello,
}

/// One lane, as it follows from what both sides are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LanePlan {
    /// Its name.
    pub tag: Tag,
    /// The links that it goes between.
    pub path: Path,
    /// Which of our workers has it.
    pub worker: usize,
    /// We open it; otherwise the remote does.
    pub opener: bool,
    /// Where the remote's link can be called, the preferred one first. None: it calls.
    pub endpoints: ArrayVec<SocketAddr, 2>,
    /// Traffic costs money on one of the links.
    pub metered: bool,
    /// Which incarnations of our link and of the remote's.
    pub incarnations: (u16, u16),
}

/// What is to be done about a remote.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Send this in the base session.
    Send(Control),
    /// There is such a lane from now on.
    Add(Box<LanePlan>),
    /// The base session is to be renewed.
    RenewBase,
    /// There is no such lane any more.
    Remove(Tag),
    /// Begin a handshake for the lane.
    Open(Tag),
    /// The remote has been started anew: the sessions of all lanes are worth nothing any more.
    EraseLanes,
    /// The remote has answered no hello: it has a base session only, until it does.
    Unanswered,
    /// So many paths have no lanes, because there are too many.
    TooManyPaths(usize),
}

#[derive(Debug)]
struct Lane {
    plan: LanePlan,
    /// There is a session.
    open: bool,
    /// When to begin a handshake; none while one is on its way or there is a session, or if the remote has to call.
    open_at: Option<Time>,
}

/// One remote.
#[derive(Debug)]
pub struct Remote {
    key: PublicKey,
    /// Who we are to it: drawn when we began to know it.
    boot: BootId,
    theirs: Option<Hello>,
    /// When the newest session was made in which it said that it is that one.
    heard_in: Time,
    /// When that became another one.
    changed_at: Option<Time>,
    /// It has acknowledged a hello at some time.
    answers: bool,
    /// That it does not answer has been said.
    told: bool,
    /// There is a base session.
    connected: bool,
    /// They know us as we are.
    acknowledged: bool,
    /// Hellos sent since something changed.
    tries: u32,
    hello_at: Option<Time>,
    /// When to renew the base session.
    renew_at: Option<Time>,
    lanes: BTreeMap<Tag, Lane>,
    /// No initiation for a lane before this.
    next_open: Time,
}

impl Remote {
    /// The site with this public key, of which nothing is known yet.
    pub fn new(key: PublicKey, boot: BootId) -> Remote {
        Remote {
            key,
            boot,
            theirs: None,
            heard_in: Time::default(),
            changed_at: None,
            answers: false,
            told: false,
            connected: false,
            acknowledged: false,
            tries: 0,
            hello_at: None,
            renew_at: None,
            lanes: BTreeMap::new(),
            next_open: Time::default(),
        }
    }

    /// Its lanes.
    pub fn lanes(&self) -> impl Iterator<Item = &LanePlan> {
        self.lanes.values().map(|lane| &lane.plan)
    }

    /// When [`poll`](Self::poll) has to be called next.
    pub fn next_deadline(&self) -> Option<Time> {
        let lanes = self.lanes.values().filter(|_| self.acknowledged);
        let lane = lanes.filter_map(|lane| lane.open_at).min();
        let lane = lane.map(|at| at.max(self.next_open));
        let hello = self.hello_at.filter(|_| self.connected);
        lane.into_iter().chain(hello).chain(self.renew_at).min()
    }

    /// There is a new base session. Whoever has never answered a hello is asked no sooner because of a session that is renewed: stock peers do
    /// that every two minutes.
    pub fn base_session(&mut self, now: Time) {
        let is_renewed = std::mem::replace(&mut self.connected, true);
        let goes_on = is_renewed && !self.answers && self.hello_at.is_some();
        if !self.acknowledged && !goes_on {
            self.ask(now);
        }
    }

    /// We have begun its session, which is renewed at that time unless another one was made by then, or the remote has, whose business that is then. A base session
    /// carries keepalives only, and where these are always the other side's nothing else would renew it before it dies.
    pub fn renew_base(&mut self, at: Option<Time>) {
        self.renew_at = at;
    }

    /// It was asked as often as it takes to be sure, and has never answered.
    fn seems_stock(&self) -> bool {
        self.tries >= HELLO_TRIES && !self.answers
    }

    /// The base session is over without a new one. Lanes that are open stay so.
    pub fn base_lost(&mut self) {
        self.connected = false;
        self.renew_at = None;
    }

    /// What we are has changed.
    pub fn own_changed(&mut self, own: &Own, now: Time, out: &mut Vec<Action>) {
        self.acknowledged = false;
        self.ask(now);
        self.agree(own, now, out);
    }

    /// The remote says something in a base session that was made at the time `session`.
    pub fn take(&mut self, own: &Own, now: Time, session: Time, message: Control, out: &mut Vec<Action>) {
        match message {
            Control::Hello(hello) => self.take_hello(own, now, session, *hello, out),
            Control::HelloAck(boot, generation) => {
                if (boot, generation) == (self.boot, own.hello.generation) {
                    self.acknowledged = true;
                    self.answers = true;
                    self.told = false;
                    self.hello_at = None;
                }
            }
        }
    }

    fn take_hello(&mut self, own: &Own, now: Time, session: Time, hello: Hello, out: &mut Vec<Action>) {
        let known = self.theirs.as_ref();
        if known.is_some_and(|known| known.boot != hello.boot) && session <= self.heard_in {
            // Who starts anew makes a session anew: this one says what it was before, and somebody has withheld it until now.
            return;
        }
        let is_news = self.theirs.as_ref() != Some(&hello);
        if is_news && self.changed_at.is_some_and(|at| now.since(at) < CHANGE_INTERVAL) {
            // It repeats what is not acknowledged. Whoever changes all the time costs us little.
            return;
        }
        if let Some(known) = &self.theirs {
            if known.boot != hello.boot {
                // It has forgotten us.
                out.push(Action::EraseLanes);
                self.lanes.values_mut().for_each(|lane| lane.open = false);
                self.acknowledged = false;
                self.ask(now);
            } else if hello.generation < known.generation {
                // Overtaken on its way by a newer one.
                return;
            }
        }
        self.heard_in = self.heard_in.max(session);
        let reply = Control::HelloAck(hello.boot, hello.generation);
        out.push(Action::Send(reply));
        if !self.acknowledged && self.seems_stock() {
            self.ask(now);
        }
        if is_news {
            self.changed_at = Some(now);
            self.theirs = Some(hello);
            self.agree(own, now, out);
        }
    }

    /// The lane has got a number, later than the others.
    pub fn added(&mut self, tag: Tag, now: Time) {
        if let Some(lane) = self.lanes.get_mut(&tag) {
            lane.begin(now);
        }
    }

    /// A session of the lane was made.
    pub fn opened(&mut self, tag: Tag) {
        if let Some(lane) = self.lanes.get_mut(&tag) {
            lane.open = true;
            lane.open_at = None;
        }
    }

    /// The lane's handshake was given up, or its session is over without a new one.
    pub fn lost(&mut self, tag: Tag, now: Time) {
        if let Some(lane) = self.lanes.get_mut(&tag) {
            lane.open = false;
            lane.open_at = lane.plan.may_open().then(|| now.after(OPEN_AGAIN));
        }
    }

    /// Does what is due.
    pub fn poll(&mut self, own: &Own, now: Time, out: &mut Vec<Action>) {
        if self.connected && self.hello_at.is_some_and(|at| at <= now) {
            let hello = Hello {
                boot: self.boot,
                ..own.hello.clone()
            };
            out.push(Action::Send(Control::Hello(Box::new(hello))));
            self.tries += 1;
            if self.seems_stock() && !std::mem::replace(&mut self.told, true) {
                out.push(Action::Unanswered);
            }
            let pause = match self.tries < HELLO_TRIES {
                true => HELLO_INTERVAL,
                false => HELLO_PAUSE,
            };
            self.hello_at = Some(now.after(pause));
        }
        if self.renew_at.take_if(|at| *at <= now).is_some() {
            out.push(Action::RenewBase);
        }
        // Who does not know us yet knows none of the lanes.
        if self.next_open > now || !self.acknowledged {
            return;
        }
        let due = self.lanes.values_mut().filter(|lane| lane.open_at.is_some());
        // One lane of each path first.
        let first = due.min_by_key(|lane| (lane.open_at, lane.plan.tag.lane()));
        if let Some(lane) = first.filter(|lane| lane.open_at <= Some(now)) {
            lane.open_at = None;
            self.next_open = now.after(OPEN_SPACING);
            out.push(Action::Open(lane.plan.tag));
        }
    }

    fn ask(&mut self, now: Time) {
        self.tries = 0;
        self.hello_at = Some(now);
    }

    /// Makes the lanes what they have to be by what both sides are now.
    fn agree(&mut self, own: &Own, now: Time, out: &mut Vec<Action>) {
        let Some(theirs) = &self.theirs else { return };
        let (plans, left_out) = lanes(own, &self.key, theirs);
        if left_out > 0 {
            out.push(Action::TooManyPaths(left_out));
        }
        let plans: BTreeMap<Tag, LanePlan> = plans.into_iter().map(|plan| (plan.tag, plan)).collect();
        self.lanes.retain(|tag, lane| {
            let stays = plans.get(tag).is_some_and(|plan| plan.is_same_as(&lane.plan));
            if !stays {
                out.push(Action::Remove(*tag));
            }
            stays
        });
        for (tag, plan) in plans {
            let lane = self.lanes.entry(tag).or_insert_with(|| {
                out.push(Action::Add(Box::new(plan.clone())));
                Lane {
                    plan: plan.clone(),
                    open: false,
                    open_at: None,
                }
            });
            lane.plan = plan;
            if !lane.open {
                lane.begin(now);
            }
        }
    }
}

impl Lane {
    /// It is to be opened: now, or later if that is the other side's part.
    fn begin(&mut self, now: Time) {
        let wait = match self.plan.opener {
            true => Duration::ZERO,
            false => OPEN_INSTEAD,
        };
        self.open_at = self.plan.may_open().then(|| now.after(wait));
    }
}

impl LanePlan {
    fn may_open(&self) -> bool {
        !self.endpoints.is_empty()
    }

    /// Whether a session of the other one can go on. Both sides have to come to the same answer.
    fn is_same_as(&self, other: &LanePlan) -> bool {
        self == other
    }
}

/// The lanes between two sites, in the order in which they are to be opened: first one of each path. And how many paths have none, because there are more than
/// [`PATHS_MAX`]: both sites leave out the same ones.
fn lanes(own: &Own, key: &PublicKey, theirs: &Hello) -> (Vec<LanePlan>, usize) {
    let workers = own.hello.workers.max(theirs.workers).min(LANES_PER_PATH);
    let mut paths = paths(own, key, theirs);
    paths.sort_unstable_by_key(|plan| plan.tag);
    let left_out = paths.len().saturating_sub(PATHS_MAX);
    paths.truncate(PATHS_MAX);
    let plans = (0..workers).flat_map(|lane| {
        paths.iter().map(move |first| LanePlan {
            tag: Tag::new(&own.key, key, first.path, lane),
            worker: usize::from(lane) % usize::from(own.hello.workers),
            ..first.clone()
        })
    });
    (plans.collect(), left_out)
}

/// The first lane of each path between two sites.
fn paths(own: &Own, key: &PublicKey, theirs: &Hello) -> Vec<LanePlan> {
    let mut plans = Vec::new();
    for local in &own.hello.links {
        for remote in theirs.links.iter().filter(|remote| remote.group == local.group) {
            let path = Path {
                local: local.id,
                remote: remote.id,
            };
            let there = remote.endpoints(local.has_v4, local.has_v6);
            let here = local.endpoints(remote.has_v4, remote.has_v6);
            let opener = match (there.is_empty(), here.is_empty()) {
                // Neither can call the other.
                (true, true) => continue,
                (false, false) => own.key < *key,
                (callable_here, _) => !callable_here,
            };
            plans.push(LanePlan {
                tag: Tag::new(&own.key, key, path, 0),
                path,
                worker: 0,
                opener,
                endpoints: there,
                metered: local.metered || remote.metered,
                incarnations: (local.incarnation, remote.incarnation),
            });
        }
    }
    plans
}

/// What a site says of itself: its links in the order of their numbers, however they were configured.
pub fn hello(boot: BootId, generation: u32, workers: u8, links: &[LinkInfo]) -> Hello {
    let mut links: ArrayVec<LinkInfo, LINKS_MAX> = links.iter().copied().take(LINKS_MAX).collect();
    links.sort_unstable_by_key(|link| link.id);
    Hello {
        boot,
        generation,
        workers,
        links,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use patronus_crypto::LinkId;
    use proptest::prelude::*;

    use super::*;

    const SMALL: PublicKey = PublicKey([1; 32]);
    const LARGE: PublicKey = PublicKey([2; 32]);

    fn link(site: u8, id: u8, group: u8, behind_nat: bool, has_v4: bool, has_v6: bool) -> LinkInfo {
        LinkInfo {
            id: LinkId::new(id).unwrap(),
            group,
            metered: false,
            behind_nat,
            incarnation: 0,
            has_v4,
            has_v6,
            port: 51820,
            v4: has_v4.then(|| Ipv4Addr::new(192, 0, site, id)),
            v6: has_v6.then(|| Ipv6Addr::new(0x2001, 0xdb8, site.into(), 0, 0, 0, 0, id.into())),
        }
    }

    fn own(key: PublicKey, boot: u8, workers: u8, links: &[LinkInfo]) -> Own {
        let hello = hello(BootId([boot; 16]), 1, workers, links);
        Own { key, hello }
    }

    fn two_links(site: u8) -> Vec<LinkInfo> {
        (1..=2).map(|id| link(site, id, id, false, true, false)).collect()
    }

    const START: Time = Time::from_secs(1000);

    fn polled(remote: &mut Remote, own: &Own, now: Time) -> Vec<Action> {
        let mut out = Vec::new();
        remote.poll(own, now, &mut out);
        out
    }

    /// Lets two sites talk until neither has anything to say, and returns what each did besides talking.
    fn talk(sites: [(&Own, &mut Remote); 2], now: Time) -> [Vec<Action>; 2] {
        let mut done = [Vec::new(), Vec::new()];
        let mut mail: [Vec<Control>; 2] = [Vec::new(), Vec::new()];
        let [(own_a, a), (own_b, b)] = sites;
        for _ in 0..10 {
            for (me, (own, remote)) in [(own_a, &mut *a), (own_b, &mut *b)].into_iter().enumerate() {
                let mut out = Vec::new();
                for message in std::mem::take(&mut mail[me]) {
                    remote.take(own, now, now, message, &mut out);
                }
                if remote.hello_at.is_some_and(|at| at <= now) {
                    remote.poll(own, now, &mut out);
                }
                for action in out {
                    match action {
                        Action::Send(message) => mail[1 - me].push(message),
                        other => done[me].push(other),
                    }
                }
            }
        }
        done
    }

    fn tags(actions: &[Action]) -> Vec<Tag> {
        let added = actions.iter().filter_map(|action| match action {
            Action::Add(plan) => Some(plan.tag),
            _ => None,
        });
        added.collect()
    }

    #[test]
    fn two_sites_agree_and_the_one_with_the_smaller_key_opens() {
        let ours = own(SMALL, 1, 2, &two_links(1));
        let theirs = own(LARGE, 2, 1, &two_links(2));
        let (mut a, mut b) = (
            Remote::new(LARGE, ours.hello.boot),
            Remote::new(SMALL, theirs.hello.boot),
        );
        a.base_session(START);
        b.base_session(START);
        let [at_a, at_b] = talk([(&ours, &mut a), (&theirs, &mut b)], START);
        let (lanes_a, lanes_b) = (tags(&at_a), tags(&at_b));
        assert_eq!(lanes_a.len(), 4, "two paths with a lane for each of two workers");
        assert_eq!(lanes_a, lanes_b);
        assert!(a.acknowledged && b.acknowledged && a.hello_at.is_none());
        assert!(a.lanes().all(|plan| plan.opener));
        assert!(b.lanes().all(|plan| !plan.opener));
        let workers = |remote: &Remote| {
            let mut workers: Vec<_> = remote.lanes().map(|plan| plan.worker).collect();
            workers.sort_unstable();
            workers
        };
        assert_eq!(workers(&a), [0, 0, 1, 1]);
        assert_eq!(workers(&b), [0, 0, 0, 0]);
        // A opens them one by one; B would, much later.
        let opened = |remote: &mut Remote, own: &Own, from: u64| -> Vec<(u64, Tag)> {
            let times = (from..from + 1000).step_by(10);
            times
                .flat_map(|ms| {
                    let now = START.after(Duration::from_millis(ms));
                    polled(remote, own, now).into_iter().map(move |a| (ms, a))
                })
                .filter_map(|(ms, action)| match action {
                    Action::Open(tag) => Some((ms, tag)),
                    _ => None,
                })
                .collect()
        };
        let order = opened(&mut a, &ours, 0);
        assert_eq!(
            order.iter().map(|(ms, _)| *ms).collect::<Vec<_>>(),
            [0, 50, 100, 150]
        );
        assert_eq!(opened(&mut b, &theirs, 0), []);
        lanes_b[..3].iter().for_each(|&tag| b.opened(tag));
        let late = opened(&mut b, &theirs, 9_500);
        assert_eq!(late, [(10_000, lanes_b[3])]);
        assert_eq!(b.next_deadline(), None);
        // Given up, it is tried again.
        b.lost(lanes_b[3], START.after(Duration::from_secs(100)));
        assert_eq!(b.next_deadline(), Some(START.after(Duration::from_secs(130))));
    }

    #[test]
    fn who_answers_no_hello_is_asked_again_now_and_then() {
        let ours = own(SMALL, 1, 1, &two_links(1));
        let mut remote = Remote::new(LARGE, ours.hello.boot);
        remote.base_session(START);
        let mut sent = Vec::new();
        let mut told = 0;
        while let Some(at) = remote
            .next_deadline()
            .filter(|at| at.since(START) < Duration::from_secs(130))
        {
            // A stock peer renews its session.
            remote.base_session(at);
            for action in polled(&mut remote, &ours, at) {
                match action {
                    Action::Send(_) => sent.push(at.since(START).as_secs()),
                    Action::Unanswered => told += 1,
                    other => panic!("{other:?}"),
                }
            }
        }
        assert_eq!(sent, [0, 1, 2, 3, 4, 64, 124]);
        assert_eq!(told, 1);
        // It was lost and is there again: it may be another one.
        remote.base_lost();
        let later = START.after(Duration::from_secs(150));
        remote.base_session(later);
        assert_eq!(remote.next_deadline(), Some(later));
        for at in 0..HELLO_TRIES {
            let at = later.after(HELLO_INTERVAL * at);
            assert!(
                matches!(polled(&mut remote, &ours, at)[..], [Action::Send(_)]),
                "said once"
            );
        }
        // An acknowledgement of somebody we were before changes nothing.
        let mut out = Vec::new();
        let old = Control::HelloAck(BootId([9; 16]), 1);
        remote.take(&ours, START, START, old, &mut out);
        assert!(!remote.acknowledged);
        let new = Control::HelloAck(ours.hello.boot, 1);
        remote.take(&ours, START, START, new, &mut out);
        assert_eq!((remote.next_deadline(), out.len()), (None, 0));
    }

    #[test]
    fn a_restarted_remote_is_told_again_and_its_lanes_reopened() {
        let ours = own(SMALL, 1, 1, &two_links(1));
        let theirs = own(LARGE, 2, 1, &two_links(2));
        let (mut a, mut b) = (
            Remote::new(LARGE, ours.hello.boot),
            Remote::new(SMALL, theirs.hello.boot),
        );
        a.base_session(START);
        b.base_session(START);
        let [at_a, _] = talk([(&ours, &mut a), (&theirs, &mut b)], START);
        tags(&at_a).into_iter().for_each(|tag| a.opened(tag));
        assert_eq!(a.next_deadline(), None);
        let restarted = own(LARGE, 3, 1, &two_links(2));
        let mut b = Remote::new(SMALL, restarted.hello.boot);
        b.base_session(START);
        let soon = START.after(CHANGE_INTERVAL);
        let [at_a, at_b] = talk([(&ours, &mut a), (&restarted, &mut b)], soon);
        assert_eq!(at_a, [Action::EraseLanes]);
        assert_eq!(tags(&at_b).len(), 2);
        assert_eq!(a.next_deadline(), Some(soon), "they are opened again");
    }

    /// A hello of its life before last, in the session of that time: nothing is erased, nothing is acknowledged.
    #[test]
    fn a_hello_of_an_earlier_start_that_was_withheld_changes_nothing() {
        let ours = own(SMALL, 1, 1, &two_links(1));
        let said = |boot| Control::Hello(Box::new(own(LARGE, boot, 1, &two_links(2)).hello));
        let mut remote = Remote::new(LARGE, ours.hello.boot);
        let at = |secs: u64| START.after(Duration::from_secs(secs));
        let mut take = |now: u64, session: u64, boot| {
            let mut out = Vec::new();
            remote.take(&ours, at(now), at(session), said(boot), &mut out);
            out
        };
        assert_eq!(tags(&take(1, 0, 2)).len(), 2);
        // It restarts, with a session made then.
        assert_eq!(take(10, 9, 3)[0], Action::EraseLanes);
        assert_eq!(take(20, 0, 2), []);
        assert_eq!(take(21, 9, 2), [], "nor in the same session");
        let repeated = take(22, 9, 3);
        assert!(matches!(repeated[..], [Action::Send(Control::HelloAck(..))]));
        // In an older session than the newest, as itself: it is itself.
        assert_eq!(take(23, 0, 3).len(), 1);
        assert_eq!(take(30, 29, 4)[0], Action::EraseLanes);
    }

    /// A lane that gets its number later is opened then.
    #[test]
    fn a_lane_that_is_added_later_is_opened_then() {
        let ours = own(SMALL, 1, 1, &two_links(1));
        let theirs = own(LARGE, 2, 1, &two_links(2));
        let mut a = Remote::new(LARGE, ours.hello.boot);
        let mut b = Remote::new(SMALL, theirs.hello.boot);
        a.base_session(START);
        b.base_session(START);
        let [at_a, _] = talk([(&ours, &mut a), (&theirs, &mut b)], START);
        let tag = tags(&at_a)[0];
        assert_eq!(polled(&mut a, &ours, START), [Action::Open(tag)]);
        tags(&at_a).into_iter().skip(1).for_each(|tag| a.opened(tag));
        assert_eq!(a.next_deadline(), None);
        let later = START.after(Duration::from_secs(100));
        a.added(tag, later);
        assert_eq!(polled(&mut a, &ours, later), [Action::Open(tag)]);
        tags(&at_a).into_iter().for_each(|tag| b.opened(tag));
        b.added(tag, later);
        assert_eq!(b.next_deadline(), Some(later.after(OPEN_INSTEAD)));
    }

    #[test]
    fn a_link_that_goes_takes_its_lanes_along() {
        let mut ours = own(SMALL, 1, 1, &two_links(1));
        let theirs = own(LARGE, 2, 1, &two_links(2));
        let (mut a, mut b) = (
            Remote::new(LARGE, ours.hello.boot),
            Remote::new(SMALL, theirs.hello.boot),
        );
        a.base_session(START);
        b.base_session(START);
        let [at_a, _] = talk([(&ours, &mut a), (&theirs, &mut b)], START);
        let all = tags(&at_a);
        let gone = ours.hello.links.pop().unwrap();
        ours.hello.generation += 1;
        let mut out = Vec::new();
        let soon = START.after(CHANGE_INTERVAL);
        a.own_changed(&ours, soon, &mut out);
        assert_eq!(out, [Action::Remove(all[1])]);
        let [_, at_b] = talk([(&ours, &mut a), (&theirs, &mut b)], soon);
        assert_eq!(at_b, [Action::Remove(all[1])]);
        // An old hello that comes late does not bring it back.
        let mut late = ours.hello.clone();
        late.generation -= 1;
        late.links.push(gone);
        let mut out = Vec::new();
        let later = soon.after(CHANGE_INTERVAL);
        b.take(&theirs, later, later, Control::Hello(Box::new(late)), &mut out);
        assert_eq!((out.len(), b.lanes().count()), (0, 1));
        ours.hello.links.push(gone);
        ours.hello.generation += 1;
        a.own_changed(&ours, later, &mut out);
        let [_, at_b] = talk([(&ours, &mut a), (&theirs, &mut b)], later);
        assert_eq!(tags(&at_b), [all[1]]);
        // Changed again at once: not acted on, not acknowledged, and so repeated.
        let link = ours.hello.links.pop().unwrap();
        ours.hello.generation += 1;
        a.own_changed(&ours, later, &mut Vec::new());
        let [_, at_b] = talk([(&ours, &mut a), (&theirs, &mut b)], later);
        assert_eq!((at_b.len(), a.acknowledged), (0, false));
        let [_, at_b] = talk([(&ours, &mut a), (&theirs, &mut b)], later.after(CHANGE_INTERVAL));
        assert_eq!(
            (at_b, a.acknowledged),
            (vec![Action::Remove(all[1])], true),
            "{link:?}"
        );
    }

    /// An address that changes makes a new lane: its session would go on calling the old one.
    #[test]
    fn a_link_that_moves_is_another_lane() {
        let ours = own(SMALL, 1, 1, &two_links(1));
        let mut theirs = own(LARGE, 2, 1, &two_links(2));
        let (mut a, mut b) = (
            Remote::new(LARGE, ours.hello.boot),
            Remote::new(SMALL, theirs.hello.boot),
        );
        a.base_session(START);
        b.base_session(START);
        let [at_a, _] = talk([(&ours, &mut a), (&theirs, &mut b)], START);
        let all = tags(&at_a);
        theirs.hello.links[0].v4 = Some(Ipv4Addr::new(198, 51, 100, 1));
        theirs.hello.links[0].incarnation += 1;
        theirs.hello.generation += 1;
        let (soon, mut own) = (START.after(CHANGE_INTERVAL), Vec::new());
        b.own_changed(&theirs, soon, &mut own);
        let [at_a, _] = talk([(&ours, &mut a), (&theirs, &mut b)], soon);
        assert_eq!(at_a[0], Action::Remove(all[0]));
        assert_eq!(tags(&at_a), [all[0]]);
        assert_eq!(
            (own[0].clone(), tags(&own)),
            (Action::Remove(all[0]), vec![all[0]]),
            "on its own side too"
        );
    }

    fn any_links(site: u8) -> impl Strategy<Value = Vec<LinkInfo>> {
        let entry = (1..=15u8, 0..3u8, any::<bool>(), any::<bool>(), any::<bool>());
        prop::collection::vec(entry, 0..6).prop_map(move |entries| {
            let mut links: Vec<LinkInfo> = Vec::new();
            for (id, group, nat, v4, v6) in entries {
                if links.iter().all(|other| other.id.number() != id) {
                    links.push(link(site, id, group, nat, v4, v6));
                }
            }
            links
        })
    }

    proptest! {
        /// Whatever links they have: both know the same lanes, just one opens each, and who opens can call.
        #[test]
        fn both_sides_derive_the_same_lanes(
            a in any_links(1), b in any_links(2), workers in (1..20u8, 1..20u8), swapped in any::<bool>(),
        ) {
            let keys = if swapped { [LARGE, SMALL] } else { [SMALL, LARGE] };
            let (ours, theirs) = (own(keys[0], 1, workers.0, &a), own(keys[1], 2, workers.1, &b));
            let (mut here, left_out) = lanes(&ours, &keys[1], &theirs.hello);
            let (mut there, _) = lanes(&theirs, &keys[0], &ours.hello);
            here.sort_unstable_by_key(|plan| plan.tag);
            there.sort_unstable_by_key(|plan| plan.tag);
            prop_assert_eq!(here.len(), there.len());
            for (one, other) in here.iter().zip(&there) {
                prop_assert_eq!(one.tag, other.tag);
                prop_assert_eq!((one.path.local, one.path.remote), (other.path.remote, other.path.local));
                prop_assert!(one.opener != other.opener);
                let opener = if one.opener { one } else { other };
                prop_assert!(opener.may_open());
                prop_assert!(one.worker < usize::from(workers.0) && other.worker < usize::from(workers.1));
            }
            prop_assert!(here.windows(2).all(|pair| pair[0].tag < pair[1].tag), "each once");
            let pairs = a.iter().flat_map(|one| b.iter().map(move |other| (one, other)));
            let paths = pairs.filter(|(one, other)| {
                let family = one.has_v4 && other.has_v4 || one.has_v6 && other.has_v6;
                one.group == other.group && family && !(one.behind_nat && other.behind_nat)
            });
            let each = usize::from(workers.0.max(workers.1).min(16));
            prop_assert_eq!(here.len(), (paths.count() - left_out) * each);
            prop_assert_eq!(left_out, 0);
        }
    }
    /// More paths than have lanes: both sides leave out the same ones.
    #[test]
    fn both_sides_leave_out_the_same_paths() {
        let ours = own(
            SMALL,
            1,
            2,
            &(1..=9)
                .map(|id| link(1, id, 0, false, true, false))
                .collect::<Vec<_>>(),
        );
        let theirs = own(
            LARGE,
            2,
            1,
            &(1..=15)
                .map(|id| link(2, id, 0, false, true, false))
                .collect::<Vec<_>>(),
        );
        let sorted = |(plans, left_out): (Vec<LanePlan>, usize)| {
            let mut tags: Vec<Tag> = plans.iter().map(|plan| plan.tag).collect();
            tags.sort_unstable();
            (tags, left_out)
        };
        let here = sorted(lanes(&ours, &LARGE, &theirs.hello));
        assert_eq!((here.0.len(), here.1), (2 * PATHS_MAX, 9 * 15 - PATHS_MAX));
        assert_eq!(here, sorted(lanes(&theirs, &SMALL, &ours.hello)));
    }
}
