//! The slow path under control: sites that are published, and what becomes of them.

use base64ct::{Base64, Encoding};
use patronus_abi::Prefix;
use patronus_abi::channel::{Command, Event, NextHop};
use patronus_abi::site::Lan;
use patronus_crypto::timers::Traffic;
use patronus_crypto::{Duration, PeerId, PublicKey, Time};

use super::SlowPath;
use crate::channel::{Command as DataCommand, Drill};
use crate::control::{Control, Published};
use crate::engine::Controlled;
use crate::plan::Via;
use crate::stats::directory::Name;

/// Commands that are carried out in a turn.
const COMMANDS_PER_TURN: usize = 1024;
/// Drills that begin or end in a second: each is for people, and has a line in the log.
const DRILLS_PER_SECOND: u32 = 4;
/// Prefixes that a sweep looks at in a turn.
const SWEPT_PER_TURN: usize = 1024;
/// How often counters that are not counted where others can read them are copied there.
const COPY_PAUSE: Duration = Duration::from_secs(1);

/// What is copied of a port, in the order of its counters (`patronus_io::PortCounters::named`).
const OF_PORTS: &[Name] = &[
    ("port_rx_packets_total", true),
    ("port_rx_bytes_total", true),
    ("port_rx_calls_total", true),
    ("port_tx_packets_total", true),
    ("port_tx_bytes_total", true),
    ("port_tx_calls_total", true),
    ("port_rx_no_frame_total", true),
    ("port_rx_malformed_total", true),
    ("port_tx_no_buffer_total", true),
    ("port_tx_unreachable_total", true),
    ("port_tx_too_big_total", true),
    ("port_tx_forbidden_total", true),
    ("port_tx_down_total", true),
    ("port_tx_error_total", true),
];
/// What is copied of a peer, as exporters for WireGuard call it.
const OF_PEERS: &[Name] = &[
    ("sent_bytes_total", true),
    ("received_bytes_total", true),
    ("latest_handshake_seconds", false),
];
/// What is copied of the handshakes that were refused, by the reason.
const OF_HANDSHAKES: &[Name] = &[("handshakes_refused_total", true)];
/// What is copied of what control did that was refused, by the reason.
const OF_CONTROL: &[Name] = &[("control_refused_total", true)];
/// What is copied of the whole.
const OF_ENGINE: &[Name] = &[
    ("peers", false),
    ("dynamic_routes", false),
    ("statistics_without_room_total", true),
];

/// How many drills began or ended in which second.
#[derive(Default)]
pub(super) struct Drills {
    second: u64,
    count: u32,
}

impl Drills {
    fn may_be(&mut self, now: Time) -> bool {
        let second = now.0 / 1_000_000_000;
        if self.second != second {
            (self.second, self.count) = (second, 0);
        }
        self.count = self.count.saturating_add(1);
        self.count <= DRILLS_PER_SECOND
    }
}

impl SlowPath {
    /// Configures an engine that has just been put together as control has said.
    pub fn begin_under(&mut self, controlled: Controlled) -> Result<(), String> {
        let Controlled {
            mut control,
            site,
            content,
            ..
        } = controlled;
        let generation = site.generation();
        match self.begin_with(site) {
            Ok(()) => {
                control.applied(generation, content, 0, self.own_key());
                self.control = Some(control);
                Ok(())
            }
            Err(error) => {
                control.refused(generation, error.clone());
                Err(error)
            }
        }
    }

    /// Does what control asks for.
    pub(super) fn serve_control(&mut self) {
        // Taken out for the call: what is published is applied by this very object.
        let Some(mut control) = self.control.take() else {
            return;
        };
        control.service();
        if let Some(Published {
            generation,
            content,
            site,
        }) = control.take_published()
        {
            match site.and_then(|site| self.adopt(site)) {
                Ok(changes) => {
                    for change in &changes {
                        self.core.log().notice(format_args!("{change}"));
                    }
                    let log = self.core.log();
                    log.notice(format_args!("generation {generation} is in force"));
                    control.applied(generation, content, changes.len(), self.own_key());
                }
                Err(error) => {
                    let log = self.core.log();
                    log.error(format_args!("{error}"));
                    log.error(format_args!(
                        "generation {generation} is refused: the one of before stays in force"
                    ));
                    control.refused(generation, error);
                }
            }
        }
        self.take_commands(&mut control);
        self.control = Some(control);
    }

    /// Tells control what has happened in this turn. Without one, nobody wants to know.
    pub(super) fn tell_news(&mut self) {
        let mut news = self.core.take_news();
        self.look_at_links(&mut news.events);
        let Some(control) = &mut self.control else { return };
        news.events.iter().for_each(|event| control.tell(event));
        if news.lost > 0 {
            control.leave_unsaid(news.lost);
        }
    }

    /// Which links have come and gone since the last look.
    fn look_at_links(&mut self, events: &mut Vec<Event>) {
        let at = self.core.mono().0;
        let told = self.site.as_ref().map(|site| &site.told().links[..]);
        for (place, uplink) in self.uplinks.iter_mut().enumerate() {
            let up = self.core.ifindex(place).is_some();
            let number = told.and_then(|links| links.get(place)).map(|link| link.id);
            events.extend(uplink.look(up).map(|name| Event::Link {
                at,
                link: number.unwrap_or(0),
                up,
                name: name.to_owned(),
            }));
        }
    }

    fn take_commands(&mut self, control: &mut Control) {
        let mut left = COMMANDS_PER_TURN;
        // What workers do not take would grow here without bound: it stays in the ring.
        while left > 0
            && self.core.workers_keep_up()
            && let Some(command) = control.take_command()
        {
            left -= 1;
            if let Err(why) = command.and_then(|command| self.obey(command)) {
                control.refuse_command(why);
            }
        }
        self.commands_wait = !self.core.workers_keep_up();
        if left == 0 || self.go_on_sweeping() {
            control.come_again();
        }
        if let Some(routing) = &mut self.routing {
            for _ in 0..routing.builder.take_unplaced() {
                control.refuse_command("the table of routes has no room: raise `routes` in [engine]");
            }
        }
        control.tell_of_commands();
    }

    fn obey(&mut self, command: Command) -> Result<(), &'static str> {
        let command = match command {
            Command::Order { remote, class, paths } => {
                let remote = self.core.device().peer(&PublicKey(remote));
                let remote = remote.ok_or("an order for what is no remote")?;
                return self.core.order_paths(remote, class, paths);
            }
            Command::Drill { link, length } => return self.drill(link, length),
            Command::Suspect {
                remote,
                paths,
                length,
            } => {
                let remote = self.core.device().peer(&PublicKey(remote));
                let remote = remote.ok_or("a suspicion of what is no remote")?;
                return self.core.suspect_paths(remote, &paths, length);
            }
            other => other,
        };
        let Some(routing) = &mut self.routing else {
            return Err("this site has nothing to route by");
        };
        match command {
            Command::RouteAdd {
                prefix,
                owner,
                epoch,
                preference,
                hops,
            } => {
                let lans = self
                    .site
                    .as_ref()
                    .map(|site| &site.told().lans[..])
                    .unwrap_or_default();
                let is_there = |hop: &NextHop| match hop {
                    NextHop::Neighbour(lan, _) => lans.get(usize::from(*lan)).is_some_and(Lan::is_ethernet),
                    _ => true,
                };
                if !hops.iter().all(is_there) {
                    return Err("a next hop on a LAN that is not there");
                }
                routing.rib.add(prefix, owner, epoch, preference, hops)?;
                self.place_dynamic(prefix)
            }
            Command::RouteDel { prefix, owner } => {
                routing.rib.delete(&prefix, owner);
                self.place_dynamic(prefix)
            }
            Command::Sweep { owner, epoch } => routing.rib.sweep(owner, epoch),
            Command::Order { .. } | Command::Drill { .. } | Command::Suspect { .. } => Ok(()),
        }
    }

    /// Has every worker treat a link as cut for so many milliseconds.
    fn drill(&mut self, link: u8, length: u32) -> Result<(), &'static str> {
        let links = self
            .site
            .as_ref()
            .map(|site| &site.told().links[..])
            .unwrap_or_default();
        let at = links.iter().position(|one| one.id == link);
        let wan = at.ok_or("a drill of a link that is not there")?;
        if !self.drills.may_be(self.core.mono()) {
            return Err("more drills in a second than people can want");
        }
        let name = &links[wan].interface;
        let log = self.core.log();
        match length {
            0 => log.notice(format_args!("the drill of link {link} ({name}) is over")),
            _ => log.notice(format_args!(
                "a drill: for {length} ms nothing goes by link {link} ({name})"
            )),
        }
        let until = self.core.mono().after(Duration::from_millis(length.into()));
        let drill = (length > 0).then_some(Drill { wan, until });
        self.core.tell_all(|| DataCommand::Drill(drill));
        Ok(())
    }

    /// Goes on with what was begun, and says whether there is more.
    fn go_on_sweeping(&mut self) -> bool {
        let Some(routing) = &mut self.routing else {
            return false;
        };
        for prefix in routing.rib.step(SWEPT_PER_TURN) {
            let placed = self.place_dynamic(prefix);
            debug_assert_eq!(placed, Ok(()), "its next hops were right when they came");
        }
        self.routing.as_ref().is_some_and(|routing| routing.rib.is_busy())
    }

    /// Looks all dynamic routes' next hops up again: peers are others.
    pub(super) fn place_dynamic_routes(&mut self) {
        let Some(routing) = &self.routing else { return };
        let all: Vec<Prefix> = routing.rib.prefixes().copied().collect();
        for prefix in all {
            // Ports of LANs stay as they are as long as the engine runs.
            let placed = self.place_dynamic(prefix);
            debug_assert_eq!(placed, Ok(()), "its next hops were right when they came");
        }
    }

    /// Makes the builder's dynamic route to this prefix what the RIB says.
    fn place_dynamic(&mut self, prefix: Prefix) -> Result<(), &'static str> {
        let (Some(routing), Some(site)) = (&mut self.routing, &self.site) else {
            return Ok(());
        };
        let device = self.core.device();
        let hops = routing.rib.best(&prefix);
        let vias: Option<Vec<Via>> = hops.map(|hops| {
            let via = |hop: &NextHop| via(hop, &site.told().lans, |key| device.peer(&PublicKey(*key)));
            let known: Vec<Via> = hops.iter().filter_map(via).collect();
            if known.is_empty() {
                vec![Via::Discard]
            } else {
                known
            }
        });
        let before = routing.builder.dynamic(&prefix);
        if before == vias.as_deref() {
            return Ok(());
        }
        let came_or_went = before.is_some() != vias.is_some();
        let changed = routing.builder.change(prefix, vias);
        changed.map_err(|_| "a next hop that cannot be")?;
        if prefix.cidr() == 0 && came_or_went {
            self.want_routes();
        }
        Ok(())
    }

    /// Copies what is not counted where other processes can read it, once a second while control is attached.
    pub(super) fn copy_counters(&mut self) {
        let now = self.core.mono();
        if !self.control.as_ref().is_some_and(Control::is_attached) {
            self.copy_again_at = None;
            return;
        }
        if self.copy_again_at.is_some_and(|at| at > now) {
            return;
        }
        self.copy_again_at = Some(now.after(COPY_PAUSE));
        let Some(mut to) = self.directory.take() else {
            return;
        };
        for (name, values) in self.counters.lines() {
            to.set(&format!("port=\"{name}\""), OF_PORTS, values);
        }
        let device = self.core.device();
        for (refusal, value) in device.counters().iter() {
            to.set(
                &format!("handshake=\"{}\"", refusal.name()),
                OF_HANDSHAKES,
                [value],
            );
        }
        let refusals = self.control.as_ref().map(Control::refusals).unwrap_or_default();
        for (name, value) in refusals.named() {
            to.set(&format!("control=\"{name}\""), OF_CONTROL, [value]);
        }
        let mut peers = 0;
        for (id, peer) in self.core.peers() {
            let sessions: Vec<PeerId> = device.lanes(id).map(|(_, lane)| lane).chain([id]).collect();
            let sum = |of: fn(&Traffic) -> u64| sessions.iter().map(|id| of(device.traffic(*id))).sum();
            let handshakes = sessions.iter().filter_map(|id| device.last_handshake(*id));
            let last = handshakes.map(|at| at.secs).max().unwrap_or(0);
            let mut key = [0; 44];
            let key = Base64::encode(&peer.key.0, &mut key).unwrap_or_default();
            let values = [sum(Traffic::sent_bytes), sum(Traffic::received_bytes), last];
            to.set(&format!("public_key=\"{key}\""), OF_PEERS, values);
            peers += 1;
        }
        let refused = to.refused();
        let routing = self.routing.as_ref();
        let dynamic = routing.map_or(0, |routing| routing.builder.dynamic_len());
        to.set("", OF_ENGINE, [peers, dynamic as u64, refused]);
        to.end_round(now.0);
        self.directory = Some(to);
    }

    /// The site's public key.
    fn own_key(&self) -> [u8; 32] {
        self.core.device().public_key().map_or([0; 32], |key| key.0)
    }
}

/// A next hop in the builder's terms; `None`: a peer that is not there.
fn via(hop: &NextHop, lans: &[Lan], peer: impl Fn(&[u8; 32]) -> Option<PeerId>) -> Option<Via> {
    Some(match hop {
        NextHop::Discard => Via::Discard,
        NextHop::Peer(key) => Via::Tunnel(peer(key)?),
        NextHop::Host => Via::Lan(0, None),
        NextHop::Neighbour(lan, address) => {
            let before = lans
                .iter()
                .take(usize::from(*lan))
                .filter(|lan| lan.is_ethernet());
            Via::Lan(1 + before.count() as u16, Some(*address))
        }
    })
}
