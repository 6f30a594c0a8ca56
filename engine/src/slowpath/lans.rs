//! The interfaces of Ethernet LANs: taken at the start or as soon as they are there, given up when they vanish, and taken again. Each event is said once, by name.
//!
//! A port of an interface that is down goes on by itself when that is up again. One whose interface has been deleted is lost; what comes later under the same
//! name is another interface, which the [keeper](crate::keeper) takes.

use std::io;
use std::sync::Arc;

use patronus_crypto::Time;
use patronus_io::Port;
use patronus_io::netlink::{AddressEvent, Interface};
use patronus_io::nics::{NicEvent, Nics};
use patronus_io::xdp::Take;
use patronus_mem::Arena;
use rustix::io::Errno;

use super::SlowPath;
use super::opening::Retry;
use crate::channel::Command;
use crate::keeper::{Guard, LanPorts, Place, Taken};
use crate::lans::{LanConfig, PortChoice, say_how};
use crate::log::Log;
use crate::plan::Lan;
use crate::worker::LanPort;

/// What routes know of an interface that is not there. Nothing is sent by it.
const ABSENT: Lan = Lan {
    mac: Some([0; 6]),
    mtu: 1500,
};

/// What there is of an interface that was taken, or of a NIC.
struct Open {
    ifindex: u32,
    lan: Lan,
    /// By worker, until the workers have them.
    ports: LanPorts,
    /// That it does not run has been said.
    down: bool,
    _guard: Option<Guard>,
}

/// Who takes a LAN.
enum Source {
    /// The keeper, who knows it by this number; chosen in this way.
    Keeper(u8, PortChoice),
    /// The slow path, as a NIC with this MTU.
    Nic(u16),
}

/// Why the ports of an interface that was taken cannot be opened.
pub(super) enum Unusable {
    /// It was deleted or put down meanwhile.
    Gone,
    /// For this reason; but this can be asked for.
    Unless(Place, String),
    /// For this reason.
    Refused(String),
}

/// An Ethernet LAN.
pub struct EthernetLan {
    interface: String,
    source: Source,
    /// None while its interface is not there.
    open: Option<Open>,
    /// Its device is there, if it is a NIC.
    nic_is_there: bool,
    /// That its NIC could not be told of the host's addresses has been said.
    behind: bool,
    pub(super) retry: Retry,
    /// That it was lost has been said.
    missed: bool,
}

impl EthernetLan {
    /// All of them, in their order. None has an interface yet.
    pub fn all(configs: &[LanConfig]) -> Vec<EthernetLan> {
        let mut kept = 0..;
        let source = |config: &LanConfig| match config {
            LanConfig::Interface(config) => Source::Keeper(kept.next().unwrap_or_default(), config.port),
            LanConfig::Nic(nic) => Source::Nic(nic.mtu),
        };
        let sources: Vec<Source> = configs.iter().map(source).collect();
        let new = |(config, source): (&LanConfig, Source)| EthernetLan {
            interface: config.interface().to_owned(),
            source,
            open: None,
            nic_is_there: false,
            behind: false,
            retry: Retry::default(),
            missed: false,
        };
        configs.iter().zip(sources).map(new).collect()
    }

    /// The name of its interface.
    pub(super) fn name(&self) -> &str {
        &self.interface
    }

    /// What the keeper knows it by, if he takes it.
    pub(super) fn place(&self) -> Option<Place> {
        match self.source {
            Source::Keeper(at, _) => Some(Place::Lan(at)),
            Source::Nic(_) => None,
        }
    }

    /// Its interface's number, if that is there.
    pub fn ifindex(&self) -> Option<u32> {
        self.open.as_ref().map(|open| open.ifindex)
    }

    /// Whether somebody can be reached by it.
    fn is_there(&self) -> bool {
        match self.source {
            Source::Keeper(..) => self.open.is_some(),
            Source::Nic(_) => self.nic_is_there,
        }
    }

    /// Takes the queues of its NIC, whose device need not be there.
    pub(super) fn sit(&mut self, nics: &mut Nics) {
        let Source::Nic(mtu) = self.source else { return };
        let Some(nic) = nics.number(&self.interface) else {
            return;
        };
        let queues = nics.take_queues(nic).into_iter();
        self.open = Some(Open {
            ifindex: nics.ifindex(nic),
            lan: Lan {
                mac: Some(nics.mac(nic)),
                mtu,
            },
            ports: queues.map(|queue| queue as Box<dyn Port + Send>).collect(),
            down: false,
            _guard: None,
        });
    }

    /// What has become of its NIC.
    fn hear_nic(&mut self, event: &NicEvent, log: &Log) {
        let name = &self.interface;
        self.nic_is_there = *event == NicEvent::Opened;
        match event {
            NicEvent::Opened => {
                if std::mem::take(&mut self.missed) {
                    log.notice(format_args!("LAN {name} is there"));
                }
            }
            NicEvent::Lost => {
                self.missed = true;
                log.error(format_args!(
                    "LAN {name} cannot be used any more: its device is gone; the rest goes on, and it is used again as soon as it is there"
                ));
            }
            NicEvent::Missing(why) => {
                if !std::mem::replace(&mut self.missed, true) {
                    log.error(format_args!(
                        "LAN {name} does not run: {why}; it is used as soon as it does"
                    ));
                }
            }
            NicEvent::Refused(why) => self.say_refused(&format!("LAN {name}: {why}"), log),
        }
    }

    /// What routes have to know of it.
    pub fn lan(&self) -> Lan {
        self.open.as_ref().map_or(ABSENT, |open| open.lan)
    }

    /// Its interface was taken: opens the ports.
    pub(super) fn open(
        &mut self,
        place: Place,
        taken: Taken,
        arena: &'static Arena,
        log: &Log,
    ) -> Result<(), Unusable> {
        let (ifindex, lan, mode) = (taken.ifindex, taken.lan, taken.mode());
        let opened = taken.into_lan(arena);
        let (guard, ports) = opened.map_err(|error| self.unusable(place, &error))?;
        if let Some(mode) = mode {
            say_how(log, "LAN", &self.interface, mode, ports.len());
        }
        self.open = Some(Open {
            ifindex,
            lan,
            ports,
            down: false,
            _guard: Some(guard),
        });
        self.retry.done();
        Ok(())
    }

    fn unusable(&self, place: Place, error: &io::Error) -> Unusable {
        if let Some(Errno::NODEV | Errno::NETDOWN) = Errno::from_io_error(error) {
            return Unusable::Gone;
        }
        let name = &self.interface;
        let why = format!("LAN interface {name}: cannot use a queue: {error}");
        match (place, &self.source) {
            (Place::Lan(at), Source::Keeper(_, PortChoice::Any)) => {
                Unusable::Unless(Place::LanByPackets(at), why)
            }
            _ => Unusable::Refused(why),
        }
    }

    /// Says why it is used in another way than first tried.
    pub(super) fn say_instead(&mut self, why: &str, log: &Log) {
        if self.retry.is_news(why) {
            log.notice(format_args!(
                "LAN {} is used through packet sockets (af_packet), because AF_XDP cannot be had: {why}",
                self.interface
            ));
        }
    }

    pub(super) fn say_missing(&mut self, log: &Log) {
        if !std::mem::replace(&mut self.missed, true) {
            log.error(format_args!(
                "LAN {} does not run: there is no such interface, or it is down or has no carrier; it is used as soon as it does",
                self.interface
            ));
        }
    }

    pub(super) fn say_refused(&mut self, why: &str, log: &Log) {
        if self.retry.is_news(why) {
            log.error(format_args!("{why}; it is tried again"));
        }
    }

    pub(super) fn say_behind(&self, why: &str, log: &Log) {
        log.error(format_args!(
            "LAN {}: the host's addresses there have changed, and what is for them may not reach the host: {why}",
            self.interface
        ));
    }

    /// The counters of its ports, by worker, by name.
    pub(super) fn counters(&self) -> impl Iterator<Item = (String, Arc<patronus_io::PortCounters>)> {
        let ports = self.open.iter().flat_map(|open| &open.ports).enumerate();
        let name = &self.interface;
        ports.map(move |(at, port)| (format!("{name}.queue{at}"), Arc::clone(port.counters())))
    }

    /// Lets go of the interface, which cannot be used any more for this reason. False if there was none.
    fn lose(&mut self, why: &str, log: &Log) -> bool {
        if self.open.take().is_none() {
            return false;
        }
        self.retry.now();
        self.missed = true;
        log.error(format_args!(
            "LAN {} cannot be used any more: {why}; the rest goes on, and it is used again as soon as it is there",
            self.interface
        ));
        true
    }

    /// Its interface is like this now.
    fn is(&mut self, now: Interface, log: &Log) {
        let (name, Some(open)) = (&self.interface, &mut self.open) else {
            return;
        };
        if now.mac.is_some() {
            open.lan = Lan {
                mac: now.mac,
                mtu: now.mtu.min(u16::MAX.into()) as u16,
            };
        }
        match (open.down, now.running) {
            (false, false) => log.error(format_args!(
                "LAN {name} is down or has no carrier; it is used again as soon as it runs"
            )),
            (true, true) => log.notice(format_args!("LAN {name} runs again")),
            (true, false) | (false, true) => {}
        }
        open.down = !now.running;
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
            let at = self.lans.iter().position(|lan| lan.ifindex() == Some(ifindex));
            match (at, now) {
                (Some(at), None) => self.lose_lan(at, "its interface is not there any more"),
                (Some(at), Some(now)) => {
                    let lan = &mut self.lans[at];
                    lan.is(now, self.core.log());
                    let lan = lan.lan();
                    if let Some(routing) = &mut self.routing {
                        routing.builder.set_lan(at as u16 + 1, lan);
                    }
                }
                // It may be one that is waited for.
                (None, Some(_)) => self.lans.iter_mut().for_each(|lan| lan.retry.soon()),
                (None, None) => {}
            }
        }
    }

    /// The interface of a LAN cannot be used any more: nobody is reached by it until it is there again.
    pub(super) fn lose_lan(&mut self, at: usize, why: &str) {
        let log = self.core.log();
        if self.lans.get_mut(at).is_none_or(|lan| !lan.lose(why, log)) {
            return;
        }
        self.core.tell_all(|| Command::Lan(at + 1, None));
        self.move_neighbours(at, None);
    }

    /// Gives the workers the ports of a LAN whose interface was taken.
    pub(super) fn begin_lan(&mut self, at: usize) {
        let lan = &mut self.lans[at];
        self.counters.add_all(lan.counters());
        let Some(open) = &mut lan.open else { return };
        let mut ports = std::mem::take(&mut open.ports).into_iter();
        let (ifindex, now) = (open.ifindex, open.lan);
        self.core.tell_each(|_| {
            let port = ports.next();
            Command::Lan(at + 1, port.map(|port| LanPort { port, ethernet: true }))
        });
        if let Some(routing) = &mut self.routing {
            routing.builder.set_lan(at as u16 + 1, now);
        }
        self.move_neighbours(at, Some(ifindex));
        let lan = &mut self.lans[at];
        if lan.is_there() && std::mem::take(&mut lan.missed) {
            let log = self.core.log();
            log.notice(format_args!("LAN {} is there", lan.interface));
        }
    }

    /// What has become of a NIC's device.
    pub(super) fn hear_of_nic(&mut self, nic: usize, event: &NicEvent) {
        let Some(nics) = &self.nics else { return };
        let is_it = |interface: &str| nics.number(interface) == Some(nic);
        let log = self.core.log();
        let lan = self.lans.iter_mut().find(|lan| is_it(&lan.interface));
        lan.into_iter().for_each(|lan| lan.hear_nic(event, log));
        let uplink = self
            .uplinks
            .iter()
            .find(|uplink| uplink.name().is_some_and(is_it));
        uplink.into_iter().for_each(|uplink| uplink.say_nic(event, log));
        self.place_fixed();
    }

    /// Says to the NICs of LANs which frames are the engine's: those to us for others, but not for the host's own addresses there.
    pub(super) fn name_lans(&mut self) {
        let (Some(nics), Some(addresses)) = (&mut self.nics, &self.addresses) else {
            return;
        };
        for lan in &mut self.lans {
            let (Some(open), Source::Nic(_)) = (&lan.open, &lan.source) else {
                continue;
            };
            let Some(nic) = nics.number(&lan.interface) else {
                continue;
            };
            let take = Take::Transit {
                mac: nics.mac(nic),
                addresses: addresses.on(open.ifindex).map(|prefix| prefix.address).collect(),
            };
            match nics.set(nic, Some(take)) {
                Ok(()) => lan.behind = false,
                Err(why) if !std::mem::replace(&mut lan.behind, true) => {
                    lan.say_behind(&why.to_string(), self.core.log());
                }
                Err(_) => {}
            }
        }
    }

    /// Neighbours of a LAN are looked for on this interface from now on.
    fn move_neighbours(&mut self, at: usize, ifindex: Option<u32>) {
        let lan = at as u16 + 1;
        if let (Some(routing), Some(all)) = (&mut self.routing, &mut self.neighbourhood) {
            all.set_interface(lan, ifindex, &mut routing.builder);
        }
        self.place_fixed();
    }

    /// Tells the builder where the neighbours are that the file names: nowhere, while their LAN is not there.
    pub(super) fn place_fixed(&mut self) {
        let (Some(routing), Some(site)) = (&mut self.routing, &self.site) else {
            return;
        };
        for (lan, address, mac) in site.neighbours() {
            let is_there = self
                .lans
                .get(usize::from(lan).wrapping_sub(1))
                .is_some_and(EthernetLan::is_there);
            routing
                .builder
                .set_neighbour(lan, address, is_there.then_some(mac));
        }
    }

    /// Asks for the LANs that are not there, as often as that makes sense. When the next one is due.
    pub(super) fn ask_for_lans(&mut self, now: Time) -> Option<Time> {
        let Some(keeper) = &self.keeper else { return None };
        let mut next = None;
        for lan in self.lans.iter_mut().filter(|lan| lan.open.is_none()) {
            let Some(place) = lan.place() else { continue };
            if lan.retry.is_due(now) {
                keeper.ask(place);
            }
            next = lan.retry.next().into_iter().chain(next).min();
        }
        next
    }
}
