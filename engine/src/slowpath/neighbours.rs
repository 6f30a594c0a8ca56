//! Neighbours on Ethernet LANs, as the host's kernel finds and keeps them.
//!
//! Two kinds: next hops that routes name are wanted as long as a route does, and are asked for again while they are unknown. Who is on a connected network
//! is asked for when the first packet to it waits with a worker, and is forgotten when no packet has gone there for a while or when the
//! kernel forgets it. Both are bounded: whoever sends to all addresses of a network makes us look for some at a time only.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use patronus_crypto::{Duration, Time};
use patronus_io::netlink::{Neighbour as Found, NeighbourEvent, Neighbours};

use super::SlowPath;
use crate::allowedips::Prefix;
use crate::channel::Command;
use crate::log::Log;
use crate::neighbour::{Neighbour, NeighbourTable, Place, Whereabouts};
use crate::plan::Builder;
use crate::site::Own;

/// Neighbours on connected networks that are known at a time.
pub const KNOWN_MAX: usize = 4096;
/// Of them those who are being looked for: a scan of a network gets no more of the kernel's table.
const SOUGHT_MAX: usize = 256;
/// Questions that are taken in a turn.
const QUESTIONS_PER_TURN: usize = 64;
/// How often next hops that are unknown are asked for, and neighbours in use looked at.
const LOOK: Duration = Duration::from_secs(1);
/// A neighbour to whom no packet went for this long is forgotten.
const IDLE: Duration = Duration::from_secs(60);
/// One that does not answer is forgotten sooner, and asked for again by the next packet.
const SILENT: Duration = Duration::from_secs(10);
/// Who is sought for this long does not answer, whatever the kernel says: it gives up after three seconds.
const SOUGHT: Duration = Duration::from_secs(5);

/// A neighbour on a connected network.
struct Known {
    whereabouts: Whereabouts,
    /// Since when that is so.
    since: Time,
    /// Set by workers.
    used: Arc<AtomicBool>,
    /// When it was last found to be set.
    used_at: Time,
}

/// All neighbours of the engine's LANs.
pub struct Neighbourhood {
    kernel: Neighbours,
    /// The interface of each LAN port; none of the TUN, and while there is none.
    interfaces: Vec<Option<u32>>,
    /// Those that the file says are not asked for.
    fixed: HashSet<Place>,
    next_hops: BTreeSet<Place>,
    /// Next hops that do not answer, as was said.
    silent: BTreeSet<Place>,
    known: HashMap<Place, Known>,
    changed: bool,
    look_at: Option<Time>,
}

impl Neighbourhood {
    /// Nobody is wanted yet. `interfaces` are the numbers of the LAN ports' interfaces, by place; none for the TUN, and where there is none yet.
    pub fn new(interfaces: Vec<Option<u32>>) -> io::Result<Neighbourhood> {
        Ok(Neighbourhood {
            kernel: Neighbours::new()?,
            interfaces,
            fixed: HashSet::new(),
            next_hops: BTreeSet::new(),
            silent: BTreeSet::new(),
            known: HashMap::new(),
            changed: false,
            look_at: None,
        })
    }

    /// The LAN ports that are Ethernet, and their interfaces.
    pub fn interfaces(&self) -> impl Iterator<Item = (u16, u32)> {
        let places = (0u16..).zip(&self.interfaces);
        places.filter_map(|(lan, ifindex)| Some((lan, (*ifindex)?)))
    }

    /// A LAN port has this interface from now on; none: it has lost it. Whoever was found there before has to be found again.
    pub(super) fn set_interface(&mut self, lan: u16, ifindex: Option<u32>, builder: &mut Builder) {
        let Some(interface) = self.interfaces.get_mut(usize::from(lan)) else {
            return;
        };
        *interface = ifindex;
        self.known.retain(|place, _| place.0 != lan);
        self.changed = true;
        for place in self.next_hops.iter().filter(|place| place.0 == lan) {
            builder.set_neighbour(place.0, place.1, None);
        }
        // At once: what waits for them is waiting.
        self.look_at = None;
    }

    /// These are where the file says.
    pub fn set_fixed(&mut self, fixed: impl Iterator<Item = Place>) {
        self.fixed = fixed.collect();
    }

    fn interface(&self, lan: u16) -> Option<u32> {
        *self.interfaces.get(usize::from(lan))?
    }

    /// Next hops are these from now on.
    fn want(&mut self, wanted: BTreeSet<Place>, builder: &mut Builder, log: &Log) {
        let wanted: BTreeSet<Place> = wanted
            .difference(&self.fixed.iter().copied().collect())
            .copied()
            .collect();
        if wanted == self.next_hops {
            return;
        }
        let before = std::mem::replace(&mut self.next_hops, wanted);
        let gone: Vec<Place> = before.difference(&self.next_hops).copied().collect();
        for place in gone {
            self.silent.remove(&place);
            if !self.fixed.contains(&place) {
                builder.set_neighbour(place.0, place.1, None);
            }
            self.let_go(place);
        }
        let new: Vec<Place> = self.next_hops.difference(&before).copied().collect();
        for place in new {
            self.ask_next_hop(place, builder, log);
        }
    }

    fn ask_next_hop(&mut self, place: Place, builder: &mut Builder, log: &Log) {
        let Some(ifindex) = self.interface(place.0) else {
            return;
        };
        match self.kernel.ask(ifindex, place.1) {
            Ok(found) => self.next_hop_is(place, found, builder, log),
            Err(error) => log.verbose(format_args!("cannot ask for neighbour {}: {error}", place.1)),
        }
    }

    fn next_hop_is(&mut self, place: Place, found: Found, builder: &mut Builder, log: &Log) {
        let mac = match usable(found) {
            Whereabouts::At(mac) => Some(mac),
            Whereabouts::Sought | Whereabouts::Silent => None,
        };
        builder.set_neighbour(place.0, place.1, mac);
        if mac.is_some() && self.silent.remove(&place) {
            log.notice(format_args!("next hop {} answers again", place.1));
        } else if found == Found::Failed && self.silent.insert(place) {
            log.error(format_args!(
                "next hop {} does not answer: what goes there takes other next hops of its route, or is dropped",
                place.1
            ));
        }
    }

    /// A packet waits for this neighbour.
    fn seek(&mut self, place: Place, now: Time, log: &Log) {
        let Some(ifindex) = self.interface(place.0) else {
            return;
        };
        let sought = |known: &&Known| known.whereabouts == Whereabouts::Sought;
        if self.known.contains_key(&place)
            || self.known.len() == KNOWN_MAX
            || self.known.values().filter(sought).count() == SOUGHT_MAX
        {
            return;
        }
        let whereabouts = match self.kernel.ask(ifindex, place.1) {
            Ok(found) => usable(found),
            Err(error) => {
                log.verbose(format_args!("cannot ask for neighbour {}: {error}", place.1));
                Whereabouts::Silent
            }
        };
        self.known.insert(
            place,
            Known {
                whereabouts,
                since: now,
                used: Arc::default(),
                used_at: now,
            },
        );
        self.changed = true;
    }

    /// What the kernel has said.
    fn follow(&mut self, now: Time, builder: &mut Builder, log: &Log) {
        let mut events = Vec::new();
        if let Err(error) = self.kernel.read(&mut events) {
            log.error(format_args!("cannot follow neighbours: {error}"));
        }
        for NeighbourEvent {
            ifindex,
            address,
            neighbour,
        } in events
        {
            let Some((lan, _)) = self.interfaces().find(|(_, on)| *on == ifindex) else {
                continue;
            };
            let place = (lan, address);
            if self.next_hops.contains(&place) {
                self.next_hop_is(place, neighbour, builder, log);
            }
            let Some(known) = self.known.get_mut(&place) else {
                continue;
            };
            if neighbour == Found::Unknown {
                self.forget(place);
            } else {
                (known.whereabouts, known.since) = (usable(neighbour), now);
                self.changed = true;
            }
        }
    }

    /// Once in a while: asks for next hops that are unknown, and forgets who is not in use.
    fn look(&mut self, now: Time, builder: &mut Builder, log: &Log) {
        let unknown = |place: &&Place| {
            let known = self
                .interface(place.0)
                .and_then(|on| self.kernel.get(on, place.1));
            matches!(known, None | Some(Found::Unknown))
        };
        let unknown: Vec<Place> = self.next_hops.iter().filter(unknown).copied().collect();
        for place in unknown {
            self.ask_next_hop(place, builder, log);
        }
        let mut gone = Vec::new();
        for (place, known) in &mut self.known {
            if known.used.swap(false, Ordering::Relaxed) {
                known.used_at = now;
            }
            let age = now.since(known.since);
            if known.whereabouts == Whereabouts::Sought && age >= SOUGHT {
                (known.whereabouts, known.since) = (Whereabouts::Silent, now);
                self.changed = true;
            } else if known.whereabouts == Whereabouts::Silent && age >= SILENT
                || now.since(known.used_at) >= IDLE
            {
                gone.push(*place);
            }
        }
        gone.into_iter().for_each(|place| self.forget(place));
    }

    fn forget(&mut self, place: Place) {
        self.known.remove(&place);
        self.changed = true;
        if !self.next_hops.contains(&place) {
            self.let_go(place);
        }
    }

    /// The kernel need not keep it for us. With its interface gone there is nothing to let go of.
    fn let_go(&mut self, place: Place) {
        if let Some(ifindex) = self.interface(place.0)
            && !self.known.contains_key(&place)
        {
            let _ = self.kernel.forget(ifindex, place.1);
        }
    }

    fn table(&self) -> NeighbourTable {
        let entry = |(place, known): (&Place, &Known)| {
            let neighbour = Neighbour {
                whereabouts: known.whereabouts,
                used: Arc::clone(&known.used),
            };
            (*place, neighbour)
        };
        self.known.iter().map(entry).collect()
    }

    fn is_empty(&self) -> bool {
        self.known.is_empty() && self.next_hops.is_empty()
    }
}

/// What packets can be sent by. A link address of several stations, as for a network's broadcast address, is none: a router does not send to all
/// (RFC 2644).
fn usable(found: Found) -> Whereabouts {
    match found {
        Found::Known(mac) if mac[0] & 1 == 0 => Whereabouts::At(mac),
        Found::Known(_) | Found::Failed => Whereabouts::Silent,
        Found::Unknown => Whereabouts::Sought,
    }
}

impl SlowPath {
    /// Asks for neighbours, hears what has become of them, and tells the builder.
    pub(super) fn tend_neighbours(&mut self) {
        let now = self.core.mono();
        let (Some(routing), Some(all)) = (&mut self.routing, &mut self.neighbourhood) else {
            return;
        };
        let (builder, log) = (&mut routing.builder, self.core.log());
        all.want(builder.next_hops(), builder, log);
        for _ in 0..QUESTIONS_PER_TURN {
            let Some(place) = self.core.inbox().neighbours.pop() else {
                break;
            };
            if !routing.own.addresses.contains(&place.1) {
                all.seek(place, now, log);
            }
        }
        all.follow(now, builder, log);
        if all.look_at.is_none_or(|at| at <= now) {
            all.look(now, builder, log);
            all.look_at = Some(now.after(LOOK));
        }
        if std::mem::take(&mut all.changed) {
            builder.set_table(all.table());
        }
    }

    /// Has workers look at what waits, once they see what is known now.
    pub(super) fn tell_of_neighbours(&mut self) {
        if let Some(routing) = &mut self.routing
            && routing.builder.take_table_published()
        {
            self.core.tell_all(|| Command::Neighbours);
        }
    }

    /// When neighbours are to be looked at again.
    pub(super) fn neighbours_deadline(&self) -> Option<Time> {
        let all = self.neighbourhood.as_ref()?;
        all.look_at.filter(|_| !all.is_empty())
    }

    /// Tells when the kernel has something to say of neighbours.
    pub(super) fn neighbours_fd(&self) -> Option<BorrowedFd<'_>> {
        self.neighbourhood.as_ref().map(|all| all.kernel.as_fd())
    }

    /// What the host has on the TUN and on the LANs.
    pub(super) fn own(&self) -> Own {
        let mut own = Own::default();
        let Some(addresses) = &self.addresses else {
            return own;
        };
        let on_tun = addresses.on(self.tun.ifindex());
        own.addresses.extend(on_tun.map(|prefix| prefix.address));
        let lans = self.neighbourhood.iter().flat_map(Neighbourhood::interfaces);
        for (lan, ifindex) in lans {
            for on in addresses.on(ifindex).filter(|on| !is_link_local(on.address)) {
                own.addresses.push(on.address);
                let network = Prefix::new(on.address, on.len);
                own.connected.extend(network.map(|network| (network, lan)));
            }
        }
        own
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}
