//! By which of our links the session with a stock peer goes, and when it goes over to another one.
//!
//! A stock WireGuard peer has one session, and answers to where it heard us last. So the session is on one link at a time while the others
//! stand by, and it moves when we send by another one. This is the judgement of one peer: what is known of the links goes in, moves come out.
//! No I/O; the time is passed in. The slow path's core owns one for each peer ([`core`](crate::slowpath::core)) and asks it on its thread, so control may be
//! down. [`asking`] counts missed answers, [`echo`] makes the pings.
//!
//! The rules, which the tests hold against every sequence of events:
//!
//! * The first link is the best by its rank among those that work.
//! * A link that does not work is left at once, if there is one that does. Without a better one, nothing moves.
//! * A link on which the peer does not answer is left for one on which it has not failed to. Which ones failed is remembered for the hold, twice as
//!   long after each time in a row.
//! * For a peer that calls us, the link by which it was heard last counts as the best: without need it is never called from elsewhere.
//! * Back to a better rank only when that link has worked for the hold without a break, and the session has been away from it for as long.

pub mod asking;
pub mod echo;

pub use patronus_abi::channel::LinkWhy as Why;
use patronus_crypto::{Duration, Time};

/// How long a link has to have worked before a session goes back to it.
pub const HOLD: Duration = Duration::from_secs(30);
/// Within this time after a move something must have been heard by the new link, if there is a session.
pub const CONFIRM: Duration = Duration::from_secs(4);
/// After a move, when to say again that we are here, in case the first time got lost; and when to ask for an answer by a handshake.
const NUDGES: [Duration; 2] = [Duration::from_millis(200), Duration::from_millis(500)];
const CALL: Duration = Duration::from_secs(1);
/// The hold doubles at most this often for a link where the peer fails to answer again and again.
const DOUBLINGS: u32 = 5;
/// And this often while it answers nowhere: then a try costs nothing.
const DOUBLINGS_IN_NEED: u32 = 2;

/// How much a link is wanted: least first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Rank {
    /// Its traffic costs money: last.
    pub metered: bool,
    /// Its cost, by its owner's word.
    pub cost: u32,
    /// Its number.
    pub id: u8,
}

/// What is known of a link, as far as one peer goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Health {
    /// Nothing speaks against it.
    Good,
    /// The host to which packets go first does not answer.
    GatewaySilent,
    /// There is no route to the peer.
    NoRoute,
    /// There is no such interface, or it is down or has no carrier.
    Gone,
}

/// A session goes over to another link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Move {
    /// The place of the link before; none: it was on none.
    pub from: Option<usize>,
    /// And that of the link now.
    pub to: usize,
    /// Why.
    pub why: Why,
}

/// Why a session goes by another link, as people are told.
pub const fn sentence(why: Why) -> &'static str {
    match why {
        Why::First => "it was on none",
        Why::LinkGone => "that is gone, or has no carrier",
        Why::NoRoute => "there is no route to the peer",
        Why::GatewaySilent => "the gateway does not answer",
        Why::PingLost => "pings are not answered",
        Why::NotHeard => "nothing was heard there",
        Why::Preferred => "it is the better one and has worked for long enough",
        Why::Heard => "the peer was heard there",
    }
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Send by another link from now on, and let the peer hear it at once.
    Move(Move),
    /// Let the peer hear where we are once more.
    Nudge,
    /// Ask for an answer: a handshake.
    Call,
}

#[derive(Debug)]
struct Place {
    rank: Rank,
    health: Health,
    /// Since when it has worked without a break, or the session has been away from it, whichever is later.
    rested: Time,
    /// When the peer last failed to answer there, and how we know.
    failed: Option<(Time, Why)>,
    /// How often in a row.
    failures: u32,
}

/// A move whose end has not been heard of.
#[derive(Clone, Copy, Debug)]
struct Unheard {
    since: Time,
    nudges: usize,
    called: bool,
}

/// The links of a peer's session.
#[derive(Debug)]
pub struct Standby {
    places: Vec<Place>,
    current: Option<usize>,
    /// Since when it is that one.
    since: Time,
    unheard: Option<Unheard>,
    /// Here the peer was heard last: for one that calls us the best of all, since nobody knows whether it can be called from elsewhere. (A NAT lets in who was called lately.)
    home: Option<usize>,
    calls_us: bool,
    hold: Duration,
}

impl Standby {
    /// On no link yet; all links are gone.
    pub fn new(ranks: &[Rank], hold: Duration, now: Time) -> Standby {
        let place = |rank: &Rank| Place {
            rank: *rank,
            health: Health::Gone,
            rested: now,
            failed: None,
            failures: 0,
        };
        Standby {
            places: ranks.iter().map(place).collect(),
            current: None,
            since: now,
            unheard: None,
            home: None,
            calls_us: true,
            hold,
        }
    }

    /// The place of the link that it is on.
    pub fn current(&self) -> Option<usize> {
        self.current
    }

    /// Whether the peer failed to answer on the link that it is on.
    pub fn has_failed(&self) -> bool {
        self.current.is_some_and(|at| self.places[at].failed.is_some())
    }

    /// The links are wanted as much as this from now on.
    pub fn set_ranks(&mut self, ranks: &[Rank]) {
        self.places
            .iter_mut()
            .zip(ranks)
            .for_each(|(place, rank)| place.rank = *rank);
    }

    /// Whether the peer calls us; otherwise we know where it is and call it.
    pub fn set_calls_us(&mut self, calls_us: bool) {
        self.calls_us = calls_us;
    }

    /// This is known of a link now.
    pub fn set_health(&mut self, at: usize, health: Health, now: Time) {
        let place = &mut self.places[at];
        if std::mem::replace(&mut place.health, health) != health {
            place.rested = now;
            if health == Health::Gone {
                // What comes back may be another network.
                (place.failed, place.failures) = (None, 0);
            }
        }
    }

    /// The peer was heard by this link: that is where it thinks we are.
    pub fn heard(&mut self, at: usize, now: Time) -> Option<Move> {
        self.unheard = None;
        self.home = Some(at);
        if self.current == Some(at) {
            return None;
        }
        self.places[at].failed = None;
        Some(self.go(at, Why::Heard, now))
    }

    /// The session was moved and there are keys to be heard by: something is to be heard.
    pub fn expect(&mut self, now: Time) {
        self.unheard = Some(Unheard {
            since: now,
            nudges: 0,
            called: false,
        });
    }

    /// The peer does not answer pings any more by the link that the session is on.
    pub fn ping_lost(&mut self, now: Time) {
        self.fail(Why::PingLost, now);
    }

    /// It does.
    pub fn ping_answered(&mut self) {
        self.unheard = None;
        if let Some(at) = self.current {
            self.places[at].failed = None;
        }
    }

    fn fail(&mut self, why: Why, now: Time) {
        self.unheard = None;
        let Some(at) = self.current else { return };
        let was_good = now.since(self.since) >= self.hold;
        let place = &mut self.places[at];
        if place.failed.is_none() {
            place.failures = if was_good {
                1
            } else {
                place.failures.saturating_add(1)
            };
        }
        place.failed = Some((now, why));
    }

    /// What is to be done now. Asked until there is nothing.
    pub fn poll(&mut self, now: Time) -> Option<Step> {
        if let Some(unheard) = &mut self.unheard {
            let (age, nudges) = (now.since(unheard.since), unheard.nudges);
            if age >= CONFIRM {
                self.fail(Why::NotHeard, now);
            } else if age >= CALL && !unheard.called {
                unheard.called = true;
                return Some(Step::Call);
            } else if NUDGES.get(nudges).is_some_and(|at| age >= *at) {
                unheard.nudges += 1;
                return Some(Step::Nudge);
            }
        }
        let (to, why) = self.choose(now)?;
        Some(Step::Move(self.go(to, why, now)))
    }

    /// When there is something to do, if nothing happens before.
    pub fn deadline(&self, now: Time) -> Option<Time> {
        let unheard = self.unheard.map(|unheard| {
            let nudge = NUDGES.get(unheard.nudges).copied();
            let call = (!unheard.called).then_some(CALL);
            let next = nudge.into_iter().chain(call).min().unwrap_or(CONFIRM);
            unheard.since.after(next)
        });
        let others = (0..self.places.len()).filter(|at| Some(*at) != self.current && self.works(*at));
        let ready = others.map(|at| match self.has_failed() {
            true => self.forgiven(at),
            false => self.forgiven(at).max(self.places[at].rested.after(self.hold)),
        });
        unheard.into_iter().chain(ready.filter(|at| *at > now)).min()
    }

    /// When a failure of the peer's counts no longer.
    fn forgiven(&self, at: usize) -> Time {
        let place = &self.places[at];
        let Some((failed, _)) = place.failed else {
            return Time(0);
        };
        let doublings = if self.has_failed() {
            DOUBLINGS_IN_NEED
        } else {
            DOUBLINGS
        };
        let times = 1 << place.failures.saturating_sub(1).min(doublings);
        failed.after(self.hold * times)
    }

    /// Whether it may be gone to: it works, and the peer has not failed to answer there lately.
    fn is_fit(&self, at: usize, now: Time) -> bool {
        self.works(at) && self.forgiven(at) <= now
    }

    fn works(&self, at: usize) -> bool {
        self.places[at].health == Health::Good
    }

    /// The best by rank of those other than the current one.
    fn best(&self, may: impl Fn(usize) -> bool) -> Option<usize> {
        let others = (0..self.places.len()).filter(|at| Some(*at) != self.current && may(*at));
        others.min_by_key(|at| self.wish(*at))
    }

    /// How much a link is wanted, least first.
    fn wish(&self, at: usize) -> (bool, Rank) {
        (!(self.calls_us && self.home == Some(at)), self.places[at].rank)
    }

    fn choose(&self, now: Time) -> Option<(usize, Why)> {
        let fit = || self.best(|at| self.is_fit(at, now));
        let Some(current) = self.current else {
            let to = fit().or_else(|| self.best(|at| self.works(at)))?;
            return Some((to, Why::First));
        };
        let place = &self.places[current];
        let why = match (place.health, place.failed) {
            (Health::Gone, _) => Why::LinkGone,
            (Health::NoRoute, _) => Why::NoRoute,
            (Health::GatewaySilent, _) => Why::GatewaySilent,
            (Health::Good, Some((_, why))) => return Some((fit()?, why)),
            (Health::Good, None) => {
                let is_rested = |at: usize| self.places[at].rested.after(self.hold) <= now;
                let better = |at: usize| self.wish(at) < self.wish(current);
                let to = self.best(|at| better(at) && self.is_fit(at, now) && is_rested(at))?;
                return Some((to, Why::Preferred));
            }
        };
        let to = fit().or_else(|| self.best(|at| self.works(at)))?;
        Some((to, why))
    }

    fn go(&mut self, to: usize, why: Why, now: Time) -> Move {
        let from = self.current.replace(to);
        if let Some(from) = from {
            self.places[from].rested = now;
        }
        self.since = now;
        self.unheard = None;
        // A new try begins with a clean slate; how often it went wrong is remembered.
        self.places[to].failed = None;
        Move { from, to, why }
    }
}
