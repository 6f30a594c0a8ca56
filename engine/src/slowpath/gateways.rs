//! The links' gateways: whether they are there, for stock peers whose session could go by another link.
//!
//! The kernel asks a gateway that it has known for a while only when packets go there and nothing comes back that it understands, and takes many seconds to
//! give up. So each gateway is asked beside it ([`Solicitor`]), often while a session goes there, now and then while one could. One that has answered before
//! and misses [`MISSES`] answers is silent; so is one that the kernel has given up. Who never answers and is not asked for by the kernel
//! either, as on a point-to-point link, is taken to be there; and so is one through which packets come.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use patronus_crypto::{Duration, PeerId, Time};
use patronus_io::netlink::{Neighbour, Neighbours};
use patronus_io::solicit::{Solicitation, Solicitor};

use super::SlowPath;
use super::core::{GatewayUse, Way};
use crate::log::Log;
use crate::standby::asking::{Asking, MISSES};
use crate::standby::sentence;

/// How often a gateway is asked that a session goes by: three misses in a row are known within 0.8 s.
const IN_USE: Duration = Duration::from_millis(200);
/// And one that a session might go by.
const IN_RESERVE: Duration = Duration::from_secs(1);
/// Packets that came through a gateway this lately show that it is there.
const HEARD_LATELY: Duration = Duration::from_millis(600);
/// Gateways that are watched at most; of others nothing is known.
const WATCHED_MAX: usize = 64;

struct Watched {
    used: GatewayUse,
    ifindex: u32,
    asking: Asking,
    /// The kernel has given it up.
    failed: bool,
    /// What was said of it.
    silent: bool,
}

/// All gateways that are watched.
pub(super) struct Gateways {
    /// By link. None where there is no right to ask: then only the kernel's word counts.
    solicitors: Vec<Option<Solicitor>>,
    /// Which interface each is on.
    on: Vec<u32>,
    kernel: Neighbours,
    watched: BTreeMap<(usize, IpAddr), Watched>,
    /// Somebody may have answered.
    pub(super) called: bool,
    told_limit: bool,
}

impl Gateways {
    /// For these links, none of which is there yet.
    pub(super) fn new(solicitors: Vec<Option<Solicitor>>) -> std::io::Result<Gateways> {
        Ok(Gateways {
            on: vec![0; solicitors.len()],
            solicitors,
            kernel: Neighbours::new()?,
            watched: BTreeMap::new(),
            called: false,
            told_limit: false,
        })
    }

    /// These are to be watched from now on. Returns those that are not any more and were silent.
    fn watch(
        &mut self,
        mut wanted: BTreeMap<(usize, IpAddr), GatewayUse>,
        ifindex: impl Fn(usize) -> Option<u32>,
        now: Time,
        log: &Log,
    ) -> Vec<(usize, IpAddr)> {
        if wanted.len() > WATCHED_MAX && !std::mem::replace(&mut self.told_limit, true) {
            log.error(format_args!(
                "{} gateways lead to peers: {WATCHED_MAX} of them are watched, which is the limit",
                wanted.len()
            ));
        }
        while wanted.len() > WATCHED_MAX {
            wanted.pop_last();
        }
        let (kernel, mut cleared) = (&mut self.kernel, Vec::new());
        self.watched.retain(|(at, gateway), watched| {
            let stays = wanted.contains_key(&(*at, *gateway)) && ifindex(*at) == Some(watched.ifindex);
            if !stays {
                // With its interface gone there is nothing to let go of.
                let _ = kernel.forget(watched.ifindex, *gateway);
                cleared.extend(watched.silent.then_some((*at, *gateway)));
            }
            stays
        });
        for ((at, gateway), used) in wanted {
            let Some(ifindex) = ifindex(at) else { continue };
            let interval = if used.in_use { IN_USE } else { IN_RESERVE };
            let watched = self.watched.entry((at, gateway)).or_insert_with(|| {
                let known = self.kernel.ask(ifindex, gateway);
                Watched {
                    used,
                    ifindex,
                    asking: Asking::new(interval, now),
                    failed: known.is_ok_and(|known| known == Neighbour::Failed),
                    silent: false,
                }
            });
            watched.used = used;
            watched.asking.set_interval(interval, now);
        }
        cleared
    }

    /// Puts a link's questions on the interface that it has now.
    fn follow(&mut self, at: usize, ifindex: u32, log: &Log) {
        let on = &mut self.on[at];
        if *on == ifindex {
            return;
        }
        if let Some(solicitor) = &mut self.solicitors[at] {
            match solicitor.set_interface(ifindex) {
                Ok(()) => *on = ifindex,
                Err(error) => log.verbose(format_args!("cannot ask for the gateway of a link: {error}")),
            }
        }
    }

    /// Takes what was answered, and what the kernel says.
    fn hear(&mut self, now: Time, log: &Log) {
        if std::mem::take(&mut self.called) || self.watched.values().any(|one| one.asking.is_waiting()) {
            for (at, solicitor) in self.solicitors.iter().enumerate() {
                let mut answers = Vec::new();
                solicitor
                    .iter()
                    .for_each(|solicitor| solicitor.read(&mut answers));
                for from in answers {
                    if let Some(watched) = self.watched.get_mut(&(at, from)) {
                        watched.asking.answered_any(now);
                        watched.failed = false;
                    }
                }
            }
        }
        let mut events = Vec::new();
        if let Err(error) = self.kernel.read(&mut events) {
            log.error(format_args!("cannot follow gateways: {error}"));
        }
        for event in events {
            let at = |key: &(usize, IpAddr), watched: &Watched| {
                key.1 == event.address && watched.ifindex == event.ifindex
            };
            for (_, watched) in self.watched.iter_mut().filter(|(key, watched)| at(key, watched)) {
                watched.failed = event.neighbour == Neighbour::Failed;
            }
        }
    }
}

impl Watched {
    /// Whether a question is due, and whether the one before had no answer. It counts even where nobody can ask it, so that the next one is due later and the kernel's word
    /// is believed after as many.
    fn ask(&mut self, now: Time) -> Option<bool> {
        let missed = self.asking.is_waiting();
        self.asking.poll(now).map(|_| missed)
    }

    /// Packets have come through it: what was not answered until now does not count. Whether it answers nobody knows any better.
    fn heard_through(&mut self) {
        self.asking.forget();
    }

    fn is_silent(&mut self, now: Time) -> bool {
        let given_up = self.failed && self.asking.open() >= MISSES;
        self.asking.is_lost(now) && self.asking.is_known() || given_up
    }
}

impl SlowPath {
    /// Asks the gateways and tells the core which do not answer.
    pub(super) fn tend_gateways(&mut self) {
        let Some(mut gateways) = self.gateways.take() else {
            return;
        };
        let now = self.core.mono();
        if let Some(wanted) = self.core.take_gateways() {
            let core = &self.core;
            let cleared = gateways.watch(wanted, |at| core.ifindex(at), now, core.log());
            for (at, gateway) in cleared {
                self.core.set_gateway_silent(at, gateway, false);
            }
        }
        gateways.hear(now, self.core.log());
        let places: Vec<(usize, IpAddr)> = gateways.watched.keys().copied().collect();
        for (at, gateway) in places {
            self.ask_gateway(&mut gateways, at, gateway, now);
            let Some(watched) = gateways.watched.get_mut(&(at, gateway)) else {
                continue;
            };
            let since = Time(now.0.saturating_sub(HEARD_LATELY.as_nanos() as u64));
            let silent = watched.is_silent(now);
            if silent && !watched.silent && self.core.was_heard_through(at, gateway, since) {
                watched.heard_through();
            } else if std::mem::replace(&mut watched.silent, silent) != silent {
                self.core.set_gateway_silent(at, gateway, silent);
                self.tell_gateway(at, gateway, silent);
            }
        }
        let deadlines = gateways
            .watched
            .values()
            .map(|watched| watched.asking.deadline(now));
        self.gateways_again_at = deadlines.flatten().min();
        self.gateways = Some(gateways);
    }

    fn ask_gateway(&self, gateways: &mut Gateways, at: usize, gateway: IpAddr, now: Time) {
        let ifindex = self.core.ifindex(at);
        if let Some(ifindex) = ifindex {
            gateways.follow(at, ifindex, self.core.log());
        }
        let Some(watched) = gateways.watched.get_mut(&(at, gateway)) else {
            return;
        };
        let Some(missed) = watched.ask(now) else {
            return;
        };
        let Some(ifindex) = ifindex else {
            return watched.asking.forget();
        };
        let Some(solicitor) = &gateways.solicitors[at] else {
            return;
        };
        let interface = self.addresses.as_ref().and_then(|all| all.interface(ifindex));
        // Without a link address nobody there has one.
        let Some(mac) = interface.and_then(|interface| interface.mac) else {
            return watched.asking.forget();
        };
        // Once without an answer everybody is asked: it may have another link address by now.
        let known = self.routes.neighbour(ifindex, gateway).ok().flatten();
        let question = Solicitation {
            target: gateway,
            source: watched.used.source,
            mac,
            known: known.filter(|_| !missed),
        };
        if let Err(error) = solicitor.ask(&question) {
            let log = self.core.log();
            log.verbose(format_args!("cannot ask for gateway {gateway}: {error}"));
        }
    }

    fn tell_gateway(&self, at: usize, gateway: IpAddr, silent: bool) {
        let name = self.uplinks[at].name().unwrap_or_default();
        let log = self.core.log();
        match silent {
            true => log.error(format_args!(
                "link {name}: its gateway {gateway} does not answer; sessions with stock peers take other links, if there are any"
            )),
            false => log.notice(format_args!("link {name}: its gateway {gateway} answers")),
        }
    }

    /// Looks how a peer is reached by each link.
    pub(super) fn look_for_ways(&mut self, id: PeerId, remote: IpAddr) {
        let ways = (0..self.uplinks.len()).map(|at| {
            let Some(ifindex) = self.core.ifindex(at) else {
                return Way::UNKNOWN;
            };
            let mark = self.udp.fwmark;
            // Who cannot be asked has not said that there is none.
            let routed = self.routes.leads_to(remote, ifindex, mark).unwrap_or(true);
            let hop = self.routes.next_hop(None, remote, Some(ifindex), mark);
            let hop = hop.ok().flatten().filter(|hop| routed && hop.ifindex == ifindex);
            Way {
                routed,
                gateway: hop.map(|hop| (hop.address, hop.source)),
            }
        });
        let ways = ways.collect();
        self.core.set_ways(id, ways);
    }

    /// Tells when a gateway has answered or the kernel has something to say of one.
    pub(super) fn gateway_fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.gateways.iter().flat_map(|gateways| {
            let solicitors = gateways.solicitors.iter().flatten();
            solicitors
                .flat_map(Solicitor::fds)
                .chain(std::iter::once(gateways.kernel.as_fd()))
        })
    }

    /// Says to people which sessions have gone over to other links.
    pub(super) fn tell_moves(&mut self) {
        for moved in self.core.take_moves() {
            let name = |at: usize| self.uplinks[at].name().unwrap_or("?");
            let (to, why) = (name(moved.moved.to), sentence(moved.moved.why));
            let log = self.core.log();
            match moved.moved.from {
                Some(from) => log.notice(format_args!(
                    "peer {:?}: its session goes by link {to} and no more by {}: {why}",
                    moved.peer,
                    name(from)
                )),
                None => log.verbose(format_args!(
                    "peer {:?}: its session goes by link {to}",
                    moved.peer
                )),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_cannot_be_asked_is_silent_by_the_kernels_word_alone() {
        let start = Time::from_secs(1);
        let mut watched = Watched {
            used: GatewayUse {
                source: None,
                in_use: true,
            },
            ifindex: 1,
            asking: Asking::new(IN_USE, start),
            failed: false,
            silent: false,
        };
        let mut silent = |failed: bool, heard: bool, from: u32| {
            watched.failed = failed;
            for n in from..from + 10 {
                let now = start.after(IN_USE * n);
                assert!(watched.ask(now).is_some());
                let next = watched.asking.deadline(now);
                assert!(next.is_some_and(|next| next > now), "nothing is due all the time");
                if heard && watched.is_silent(now) {
                    watched.heard_through();
                }
            }
            watched.is_silent(start.after(IN_USE * (from + 9)))
        };
        assert!(!silent(false, false, 0));
        assert!(silent(true, false, 10));
        assert!(!silent(true, true, 20), "packets come");
        assert!(!silent(false, false, 30), "it has never answered");
    }
}
