//! What comes from the keeper, at the start and later: interfaces of LANs, and queues of links; and what becomes of the NICs that DPDK drives.

use std::io;
use std::sync::Arc;

use patronus_crypto::{Duration, Time};
use patronus_io::exception::Exception;
use patronus_io::nics::Nics;
use patronus_mem::Arena;

use super::lans::{EthernetLan, Unusable};
use super::{SlowPath, Uplink};
use crate::clock;
use crate::keeper::{Keeper, Place, Said};
use crate::log::Log;

/// How often an interface that is not there is asked for. News of interfaces come sooner; this is for those that were missed.
const MISSING_RETRY: Duration = Duration::from_secs(1);
/// How soon one that was refused is tried again. To put a program on an interface takes some drivers' links down for a moment.
const REFUSED_RETRY: Duration = Duration::from_secs(30);

/// When to ask for an interface again, and what was said of it.
#[derive(Default)]
pub(super) struct Retry {
    asked: bool,
    /// None: at once.
    again_at: Option<Time>,
    /// Refused, so that news of interfaces are no reason to ask.
    refused: bool,
    said: String,
}

impl Retry {
    /// Whether to ask now; then it has been.
    pub(super) fn is_due(&mut self, now: Time) -> bool {
        let due = !self.asked && self.again_at.is_none_or(|at| at <= now);
        self.asked |= due;
        due
    }

    /// When to look again; `None` while an answer is waited for.
    pub(super) fn next(&self) -> Option<Time> {
        self.again_at.filter(|_| !self.asked)
    }

    /// It is there.
    pub(super) fn done(&mut self) {
        (self.asked, self.refused, self.again_at) = (false, false, None);
    }

    /// It was lost.
    pub(super) fn now(&mut self) {
        self.done();
        self.said.clear();
    }

    /// Some interface is another one.
    pub(super) fn soon(&mut self) {
        if !self.refused {
            self.again_at = None;
        }
    }

    pub(super) fn missing(&mut self, now: Time) {
        (self.asked, self.refused) = (false, false);
        self.again_at = Some(now.after(MISSING_RETRY));
    }

    pub(super) fn refused(&mut self, now: Time) {
        (self.asked, self.refused) = (false, true);
        self.again_at = Some(now.after(REFUSED_RETRY));
    }

    /// Whether this has not been said last.
    pub(super) fn is_news(&mut self, why: &str) -> bool {
        let news = self.said != why;
        why.clone_into(&mut self.said);
        news
    }
}

/// What is opened at the start.
pub struct Opening {
    /// Takes interfaces, if there are any to take.
    pub keeper: Option<Keeper>,
    /// Those that DPDK drives, if there are any.
    pub nics: Option<Nics>,
    /// Where packets are.
    pub arena: &'static Arena,
    /// By place among the LAN ports, from the second on.
    pub lans: Vec<EthernetLan>,
    /// The WAN links.
    pub uplinks: Vec<Uplink>,
}

impl Opening {
    /// Takes everything that is there. An error is why something that is there cannot be a LAN.
    pub fn open_all(&mut self, log: &Log) -> Result<(), String> {
        for at in 0..self.lans.len() {
            if let Some(place) = self.lans[at].place() {
                self.open_lan(at, place, log)?;
            }
        }
        for at in 0..self.uplinks.len() {
            let Some(place) = self.uplinks[at].place() else {
                continue;
            };
            self.ask(place);
            match self.hear(log)? {
                Said::Taken(_, taken) => self.uplinks[at].take(taken, self.arena, log),
                Said::Refused(_, why) => self.uplinks[at].say_refused(&why, log),
                _ => {}
            }
        }
        Ok(())
    }

    /// Gives the NICs' queues to the LANs and links that are to have them.
    pub fn use_nics(&mut self, mut nics: Nics) {
        for lan in &mut self.lans {
            lan.sit(&mut nics);
        }
        for uplink in &mut self.uplinks {
            uplink.sit(&mut nics);
        }
        self.nics = Some(nics);
    }

    /// Has the host's share of the NICs' packets move from now on, on threads of their own.
    pub fn run_nics(&mut self, log: &Log) -> io::Result<()> {
        let Some(nics) = &mut self.nics else { return Ok(()) };
        let log = log.clone();
        nics.run(clock::instant, move |_, event| say_of_host(&log, &event))
    }

    fn open_lan(&mut self, at: usize, place: Place, log: &Log) -> Result<(), String> {
        self.ask(place);
        loop {
            let said = self.hear(log)?;
            let lan = &mut self.lans[at];
            match said {
                Said::Taken(place, taken) => match lan.open(place, taken, self.arena, log) {
                    Ok(()) => return Ok(()),
                    Err(Unusable::Gone) => {
                        lan.say_missing(log);
                        return Ok(());
                    }
                    Err(Unusable::Unless(instead, why)) => {
                        lan.say_instead(&why, log);
                        self.ask(instead);
                    }
                    Err(Unusable::Refused(why)) => return Err(why),
                },
                Said::Instead(_, why) => lan.say_instead(&why, log),
                Said::Refused(_, why) => return Err(why),
                _ => {
                    lan.say_missing(log);
                    return Ok(());
                }
            }
        }
    }

    fn ask(&self, place: Place) {
        self.keeper.iter().for_each(|keeper| keeper.ask(place));
    }

    /// The keeper's next word about what was asked. What it says of its own accord is passed on.
    fn hear(&mut self, log: &Log) -> Result<Said, String> {
        loop {
            match self.keeper.as_mut().and_then(Keeper::wait) {
                Some(Said::Behind(Place::Lan(at), why)) => {
                    let lan = self.lans.iter().find(|lan| lan.place() == Some(Place::Lan(at)));
                    lan.into_iter().for_each(|lan| lan.say_behind(&why, log));
                }
                Some(Said::Ended) | None => {
                    return Err("the process that takes interfaces does not answer".to_owned());
                }
                Some(said) => return Ok(said),
            }
        }
    }
}

/// What happens to a NIC's interface that its carrier, which is heard by rtnetlink, does not tell.
fn say_of_host(log: &Log, event: &Exception) {
    match event {
        Exception::Carrier(_) => {}
        Exception::Mtu(mtu) => log.verbose(format_args!("a NIC's MTU is {mtu} now")),
        Exception::MtuRefused(wanted, why, now) => log.error(format_args!(
            "a NIC cannot have an MTU of {wanted}: {why}; its interface has {now} again"
        )),
        Exception::Gone => log.error(format_args!(
            "the interface of a NIC was deleted: the host is cut off from it until the engine is restarted"
        )),
    }
}

impl SlowPath {
    /// Hears what has become of interfaces, and asks for those that are missing.
    pub(super) fn tend_interfaces(&mut self) {
        while let Some(said) = self.keeper.as_mut().and_then(Keeper::take) {
            self.hear_keeper(said);
        }
        let now = self.core.mono();
        let [lans, links] = [self.ask_for_lans(now), self.ask_for_links(now)];
        self.ask_again_at = lans.into_iter().chain(links).min();
        self.tend_nics(now);
    }

    /// Keeps the counters of what NICs bring to the host, and take from it.
    pub(super) fn count_hosts(&mut self) {
        let Some(nics) = &self.nics else { return };
        let lans = self.lans.iter().map(EthernetLan::name);
        for name in lans.chain(self.uplinks.iter().filter_map(Uplink::name)) {
            let counters = nics.number(name).and_then(|nic| nics.host_counters(nic));
            let named = counters.map(|counters| (format!("{name}.host"), Arc::clone(counters)));
            self.counters.add_all(named.into_iter());
        }
    }

    /// Looks after NICs. Nobody tells of them, so this happens by the clock.
    fn tend_nics(&mut self, now: Time) {
        self.poll_idle_queues(now);
        if self.nics_again_at.is_some_and(|at| now < at) {
            return;
        }
        let Some(nics) = &mut self.nics else { return };
        let (mut events, instant) = (Vec::new(), clock::instant());
        let due = nics.tend(instant, |nic, event| events.push((nic, event)));
        self.nics_again_at = Some(now.after(due.saturating_duration_since(instant)));
        for (nic, event) in events {
            self.hear_of_nic(nic, &event);
        }
        self.name_lans();
    }

    fn hear_keeper(&mut self, said: Said) {
        let place = match &said {
            Said::Taken(place, _)
            | Said::Missing(place)
            | Said::Refused(place, _)
            | Said::Instead(place, _)
            | Said::Behind(place, _) => *place,
            Said::Ended => {
                return self.core.log().error(format_args!(
                    "the process that takes interfaces has ended: restart the engine if one vanishes or comes back"
                ));
            }
        };
        match place {
            Place::Lan(at) | Place::LanByPackets(at) => {
                let lan = self
                    .lans
                    .iter()
                    .position(|lan| lan.place() == Some(Place::Lan(at)));
                if let Some(at) = lan {
                    self.hear_of_lan(at, said);
                }
            }
            Place::Link(_) => self.hear_of_link(place, said),
        }
    }

    fn hear_of_lan(&mut self, at: usize, said: Said) {
        let (now, log) = (self.core.mono(), self.core.log());
        let Some(lan) = self.lans.get_mut(at) else { return };
        match said {
            Said::Taken(place, taken) => match lan.open(place, taken, self.arena, log) {
                Ok(()) => self.begin_lan(at),
                Err(Unusable::Gone) => lan.retry.missing(now),
                Err(Unusable::Unless(instead, why)) => {
                    lan.say_instead(&why, log);
                    self.keeper.iter().for_each(|keeper| keeper.ask(instead));
                }
                Err(Unusable::Refused(why)) => {
                    lan.retry.refused(now);
                    lan.say_refused(&why, log);
                }
            },
            Said::Missing(_) => {
                lan.retry.missing(now);
                lan.say_missing(log);
            }
            Said::Refused(_, why) => {
                lan.retry.refused(now);
                lan.say_refused(&why, log);
            }
            Said::Instead(_, why) => lan.say_instead(&why, log),
            Said::Behind(_, why) => lan.say_behind(&why, log),
            Said::Ended => {}
        }
    }
}
