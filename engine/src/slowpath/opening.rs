//! What comes from the keeper, at the start and later: interfaces of LANs, and queues of links.

use patronus_crypto::{Duration, Time};
use patronus_mem::Arena;

use super::lans::EthernetLan;
use super::{SlowPath, Uplink};
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
        let Some(keeper) = &mut self.keeper else {
            return Ok(());
        };
        for (lan, at) in self.lans.iter_mut().zip(0..) {
            keeper.ask(Place::Lan(at));
            open_lan(keeper, lan, self.arena, log)?;
        }
        for uplink in &mut self.uplinks {
            let Some(place) = uplink.place() else { continue };
            keeper.ask(place);
            match keeper.wait() {
                Some(Said::Taken(_, taken)) => uplink.take(taken, self.arena, log),
                Some(Said::Refused(_, why)) => uplink.say_refused(&why, log),
                Some(Said::Missing(_)) => {}
                _ => return Err(no_keeper()),
            }
        }
        Ok(())
    }
}

fn open_lan(
    keeper: &mut Keeper,
    lan: &mut EthernetLan,
    arena: &'static Arena,
    log: &Log,
) -> Result<(), String> {
    loop {
        match keeper.wait() {
            Some(Said::Taken(place, taken)) => match lan.open(place, taken, arena, log) {
                Ok(()) => return Ok(()),
                Err((why, Some(instead))) => {
                    lan.say_instead(&why, log);
                    keeper.ask(instead);
                }
                Err((why, None)) => return Err(why),
            },
            Some(Said::Missing(_)) => {
                lan.say_missing(log);
                return Ok(());
            }
            Some(Said::Refused(_, why)) => return Err(why),
            Some(Said::Instead(_, why)) => lan.say_instead(&why, log),
            Some(Said::Behind(..)) => {}
            Some(Said::Ended) | None => return Err(no_keeper()),
        }
    }
}

fn no_keeper() -> String {
    "the process that takes interfaces does not answer".to_owned()
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
            Place::Lan(at) | Place::LanByPackets(at) => self.hear_of_lan(at.into(), said),
            Place::Link(_) => self.hear_of_link(place, said),
        }
    }

    fn hear_of_lan(&mut self, at: usize, said: Said) {
        let (now, log) = (self.core.mono(), self.core.log());
        let Some(lan) = self.lans.get_mut(at) else { return };
        match said {
            Said::Taken(place, taken) => match lan.open(place, taken, self.arena, log) {
                Ok(()) => self.begin_lan(at),
                Err((why, Some(instead))) => {
                    lan.say_instead(&why, log);
                    self.keeper.iter().for_each(|keeper| keeper.ask(instead));
                }
                Err((why, None)) => {
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
