//! What becomes of the interfaces of Ethernet LANs: said once, by name.
//!
//! A port of an interface that is down goes on by itself when that is up again. One whose interface has been deleted is lost: to take it
//! again, also under the same name, takes rights that the process has given up.

use patronus_io::netlink::{AddressEvent, Interface};

use super::SlowPath;
use crate::log::Log;
use crate::plan::Lan;

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    Down,
    Gone,
}

/// The interface of an Ethernet LAN.
pub struct LanWatch {
    name: String,
    ifindex: u32,
    state: State,
}

impl LanWatch {
    /// The interface runs.
    pub fn new(name: String, ifindex: u32) -> LanWatch {
        LanWatch {
            name,
            ifindex,
            state: State::Running,
        }
    }

    /// The port cannot be used any more, for this reason.
    pub(super) fn gone(&mut self, why: &str, log: &Log) {
        if std::mem::replace(&mut self.state, State::Gone) != State::Gone {
            log.error(format_args!(
                "LAN {} cannot be used any more: {why}; the rest goes on, and a restart of the engine takes it again",
                self.name
            ));
        }
    }

    fn is(&mut self, now: Interface, log: &Log) {
        let name = &self.name;
        match (self.state, now.running) {
            (State::Running, false) => {
                self.state = State::Down;
                log.error(format_args!(
                    "LAN {name} is down or has no carrier; it is used again as soon as it runs"
                ));
            }
            (State::Down, true) => {
                self.state = State::Running;
                log.notice(format_args!("LAN {name} runs again"));
            }
            (State::Running | State::Down | State::Gone, _) => {}
        }
    }
}

impl SlowPath {
    /// Takes note of LANs that come up, go down or vanish, and of other link addresses and MTUs.
    pub(super) fn follow_lans(&mut self, events: &[AddressEvent]) {
        for event in events {
            let (ifindex, now) = match event {
                AddressEvent::Interface(ifindex, now) => (*ifindex, Some(*now)),
                AddressEvent::Gone(ifindex) => (*ifindex, None),
                AddressEvent::Added(_) | AddressEvent::Removed(_) => continue,
            };
            let mut lans = self.lans.iter_mut().zip(1u16..);
            let Some((lan, at)) = lans.find(|(lan, _)| lan.ifindex == ifindex) else {
                continue;
            };
            match now {
                None => lan.gone("its interface is not there any more", self.core.log()),
                Some(now) => lan.is(now, self.core.log()),
            }
            if let (Some(now), Some(routing)) = (now, &mut self.routing) {
                let mtu = now.mtu.min(u16::MAX.into()) as u16;
                let mac = now.mac;
                if mac.is_some() {
                    routing.builder.set_lan(at, Lan { mac, mtu });
                }
            }
        }
    }
}
