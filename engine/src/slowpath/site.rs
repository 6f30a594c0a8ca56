//! A site as it comes: at the start, and again on SIGHUP or from control.
//!
//! What it says becomes a request like one over the UAPI and takes the same way. Only what differs from what is in force is in it, so the
//! sessions of peers that stay as they are never notice. Nothing is changed unless everything can be.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use patronus_abi::Site as Told;
use patronus_abi::site::{Class, Host, Link};
use patronus_crypto::{Duration, LinkId, PeerId, PublicKey};
use patronus_io::netlink::{AddressEvent, Addresses};

use super::SlowPath;
use super::core::{PINGED_MAX, PingPlan};
use crate::allowedips::Prefix;
use crate::plan::{Builder, Wanted};
use crate::remote::message::LinkInfo;
use crate::rib::Rib;
use crate::site::{Own, Rules, Site, cannot_change};
use crate::standby::Rank;
use crate::uapi::parse::AllowedIpChange;
use crate::uapi::{SetPeer, SetRequest};

/// How soon to look whether workers have gone on to the next snapshot.
const ROUTING_PAUSE: Duration = Duration::from_millis(1);

/// How often something is sent to a remote whose file says nothing else, seconds.
const REMOTE_KEEPALIVE: u16 = 25;

/// What the slow path knows of routing.
pub struct Routing {
    /// Keeps what the workers look at.
    pub builder: Builder,
    /// What the site says.
    rules: Rules,
    /// What is the host's own.
    pub(super) own: Own,
    /// What control says beside it.
    pub(super) rib: Rib,
}

impl Routing {
    /// Nothing is routed yet.
    pub fn new(builder: Builder) -> Routing {
        Routing {
            rib: Rib::new(builder.routes_limit()),
            builder,
            rules: Rules::default(),
            own: Own::default(),
        }
    }

    /// What workers are to route by, but for dynamic routes. To a default route among those yields the one to the host that is there whatever the site says.
    fn wanted(
        &self,
        allowed_ips: &[(Prefix, PeerId)],
        peer: impl Fn(&PublicKey) -> Option<PeerId>,
    ) -> Wanted {
        let mut wanted = self.rules.wanted(allowed_ips.iter().copied(), &self.own, peer);
        wanted.routes.retain(|prefix, _| {
            let said = || self.rules.routes.iter().any(|(other, _)| other == prefix);
            let allowed = || allowed_ips.iter().any(|(other, _)| other == prefix);
            prefix.cidr() > 0 || self.rib.best(prefix).is_none() || said() || allowed()
        });
        wanted
    }
}

/// A peer's networks that differ.
struct Moved {
    gained: Vec<Prefix>,
    lost: Vec<Prefix>,
}

impl SlowPath {
    /// Configures an engine that has just been put together.
    pub fn begin_with(&mut self, site: Box<Site>) -> Result<(), String> {
        self.follow_addresses();
        self.adopt(site).map(|_| ())
    }

    /// Takes what the reader has sent, and says what has come of it.
    pub(super) fn take_reloaded(&mut self) {
        let Some(read) = self.reader.as_mut().and_then(|reader| reader.take()) else {
            return;
        };
        match read.and_then(|site| self.adopt(Box::new(site))) {
            Ok(changes) if changes.is_empty() => {
                let log = self.core.log();
                log.notice(format_args!("configuration read again: nothing has changed"));
            }
            Ok(changes) => {
                for change in changes {
                    self.core.log().notice(format_args!("{change}"));
                }
                self.core
                    .log()
                    .notice(format_args!("configuration read again: it is in force"));
            }
            Err(error) => {
                self.core.log().error(format_args!("{error}"));
                self.core.log().error(format_args!(
                    "configuration read again: the one of before stays in force"
                ));
            }
        }
    }

    /// Does what a site's file says, or nothing. Returns what has changed, a line each.
    pub(super) fn adopt(&mut self, site: Box<Site>) -> Result<Vec<String>, String> {
        let mut changes = Vec::new();
        if let Some(before) = &self.site {
            refuse_fixed(before, &site)?;
        }
        let request = self.differences(&site, &mut changes);
        note_host(self.site.as_deref(), &site, &mut changes);
        let rules = site.rules();
        if let Some(routing) = &self.routing {
            // New peers have no numbers yet; for the room that is needed it does not matter which.
            let wanted = rules.wanted(site.allowed_ips(|_| PeerId(0)), &routing.own, |_| Some(PeerId(0)));
            let checked = routing.builder.check(&wanted);
            checked.map_err(|error| format!("{}: {error}", site.path().display()))?;
            note_rules(&routing.rules, &rules, &mut changes);
        }
        let device = self.core.device();
        let mut changed = request.peers.iter();
        let other_peers = changed.any(|peer| peer.remove || device.peer(&peer.public_key).is_none());
        let neighbours = site.neighbours();
        let gone = self
            .site
            .as_ref()
            .map(|before| before.neighbours())
            .unwrap_or_default();
        let routing = self.routing.as_mut();
        let before = routing.map(|routing| std::mem::replace(&mut routing.rules, rules));
        if let Err(errno) = self.carry_out(request) {
            if let Some((routing, before)) = self.routing.as_mut().zip(before) {
                routing.rules = before;
            }
            return Err(format!("{}: {errno}", site.path().display()));
        }
        if let Some(all) = &mut self.neighbourhood {
            all.set_fixed(neighbours.iter().map(|(lan, address, _)| (*lan, *address)));
        }
        if let Some(routing) = &mut self.routing {
            for (lan, address, _) in gone {
                if !neighbours.iter().any(|new| (new.0, new.1) == (lan, address)) {
                    routing.builder.set_neighbour(lan, address, None);
                }
            }
        }
        self.want_routes();
        if other_peers {
            self.place_dynamic_routes();
        }
        let costs = site.told().links.iter().map(|link| (link.id, link.cost));
        self.core.set_classes(&site.told().classes, costs);
        for at in (0..site.told().peers.len()).filter(|at| site.told().peers[*at].is_remote) {
            if let Some(id) = self.core.device().peer(&site.public_key(at)) {
                self.core.make_remote(id);
            }
        }
        let told = site.told().probing;
        let probing = self.site.as_ref().map(|before| before.told().probing);
        if probing != Some(told) {
            self.core.set_probing(told.into());
        }
        if probing.is_some_and(|before| before != told) {
            changes.push(format!(
                "probes: every {} ms, every {} ms without traffic, {} a second at most",
                told.interval_us / 1000,
                told.idle_us / 1000,
                told.rate
            ));
        }
        let links = site.told().links.iter();
        let ranks = links.map(|link| Rank {
            metered: link.metered,
            cost: link.cost.into(),
            id: link.id,
        });
        self.core.set_ranks(ranks.collect());
        if let Some(before) = &self.site {
            note_steering(before.told(), site.told(), &mut changes);
        }
        self.site = Some(site);
        self.place_fixed();
        self.describe_links();
        self.want_host();
        self.set_pings();
        Ok(changes)
    }

    /// What it takes to get from what is in force to what the file says.
    fn differences(&self, site: &Site, changes: &mut Vec<String>) -> SetRequest {
        let told = site.told();
        let mut request = SetRequest::default();
        let device = self.core.device();
        if device
            .private_key()
            .is_none_or(|key| **key != **site.private_key())
        {
            request.private_key = Some(Some(site.private_key().clone()));
            changes.push("private key: another one".to_owned());
        }
        let port = told.listen_port;
        // 0 is any, and any it is already.
        let same = self
            .site
            .as_ref()
            .is_some_and(|site| site.told().listen_port == 0);
        if port != self.udp.port && !(port == 0 && same) {
            request.listen_port = Some(port);
            changes.push(format!("listen_port: {} -> {port}", self.udp.port));
        }
        let mark = told.fwmark;
        if mark != self.udp.fwmark {
            request.fwmark = Some(mark);
            changes.push(format!("fwmark: {} -> {mark}", self.udp.fwmark));
        }
        let stays: HashSet<PublicKey> = (0..told.peers.len()).map(|at| site.public_key(at)).collect();
        let peers = self.core.peers().map(|(_, peer)| peer);
        for peer in peers.filter(|peer| !stays.contains(&peer.key)) {
            let mut change = SetPeer::new(peer.key);
            change.remove = true;
            request.peers.push(change);
            changes.push(format!("peer {:?}: removed", peer.key));
        }
        // First what peers lose, so that what moves from one to another stays with the other.
        let mut gains = Vec::new();
        for at in 0..told.peers.len() {
            let (lose, gain) = self.peer_differences(site, at, changes);
            request.peers.extend(lose);
            gains.extend(gain);
        }
        request.peers.extend(gains);
        request
    }

    /// What a peer loses, and everything else about it.
    fn peer_differences(
        &self,
        site: &Site,
        at: usize,
        changes: &mut Vec<String>,
    ) -> (Option<SetPeer>, Option<SetPeer>) {
        let (peer, key) = (&site.told().peers[at], site.public_key(at));
        let device = self.core.device();
        let known = device.peer(&key);
        let name = peer.name.clone().unwrap_or_else(|| format!("{key:?}"));
        let mut say = |what: String| changes.push(format!("peer {name}: {what}"));
        let (mut lose, mut gain) = (SetPeer::new(key), SetPeer::new(key));
        if known.is_none() {
            say("added".to_owned());
        }
        let psk = known.and_then(|id| device.psk(id));
        if psk.map(|key| **key) != site.psk(at).map(|key| **key) {
            gain.preshared_key = Some(site.psk(at).cloned());
            say("another preshared key".to_owned());
        }
        // Where it was heard meanwhile counts more than what the file has said all the time.
        let said = known.and_then(|_| self.endpoint_before(&key));
        if let Some(endpoint) = peer.endpoint.filter(|endpoint| said != Some(*endpoint)) {
            gain.endpoint = Some(endpoint);
            say(format!("endpoint {endpoint}"));
        }
        let default = if peer.is_remote { REMOTE_KEEPALIVE } else { 0 };
        let keepalive = peer.keepalive.unwrap_or(default);
        if known.map_or(0, |id| device.persistent_keepalive(id)) != keepalive {
            gain.persistent_keepalive = Some(keepalive);
            say(format!("keepalive {keepalive} s"));
        }
        let moved = self.moved(known, peer.allowed_ips.iter().copied());
        for prefix in &moved.lost {
            lose.allowed_ips.push(allowed_ip(*prefix, true));
            say(format!("-{}/{}", prefix.addr(), prefix.cidr()));
        }
        for prefix in &moved.gained {
            gain.allowed_ips.push(allowed_ip(*prefix, false));
            say(format!("+{}/{}", prefix.addr(), prefix.cidr()));
        }
        let changed = known.is_none()
            || gain.preshared_key.is_some()
            || gain.endpoint.is_some()
            || gain.persistent_keepalive.is_some()
            || !gain.allowed_ips.is_empty();
        (
            (!lose.allowed_ips.is_empty()).then_some(lose),
            changed.then_some(gain),
        )
    }

    fn moved(&self, known: Option<PeerId>, wanted: impl Iterator<Item = Prefix>) -> Moved {
        let wanted: BTreeSet<Prefix> = wanted.collect();
        let has: BTreeSet<Prefix> = known
            .map(|id| self.core.allowed_ips().of_peer(id).collect())
            .unwrap_or_default();
        Moved {
            gained: wanted.difference(&has).copied().collect(),
            lost: has.difference(&wanted).copied().collect(),
        }
    }

    fn endpoint_before(&self, key: &PublicKey) -> Option<std::net::SocketAddr> {
        let site = self.site.as_ref()?;
        let at = (0..site.told().peers.len()).find(|at| site.public_key(*at) == *key)?;
        site.told().peers[at].endpoint
    }

    /// Tells the builder what is to be routed by now.
    pub(super) fn want_routes(&mut self) {
        let Some(routing) = &mut self.routing else { return };
        let device = self.core.device();
        let allowed_ips: Vec<(Prefix, PeerId)> = self.core.allowed_ips().iter().collect();
        let wanted = routing.wanted(&allowed_ips, |key| device.peer(key));
        if let Err(error) = routing.builder.want(wanted) {
            self.core.log().error(format_args!(
                "the routes stay as they are, and peers may not get what is theirs: {error}"
            ));
        }
    }

    /// Routes what is for the host's own addresses to the host and what is on the networks of its LANs there, and tells remotes where our links are.
    pub(super) fn follow_addresses(&mut self) {
        let Some(addresses) = &mut self.addresses else {
            return;
        };
        let mut events = Vec::new();
        if let Err(error) = addresses.read(&mut events) {
            let log = self.core.log();
            return log.error(format_args!("cannot follow the host's addresses: {error}"));
        }
        if !events.is_empty() {
            self.name_links();
            self.name_lans();
            self.describe_links();
            self.follow_lans(&events);
            let added = events.iter().filter_map(|event| match event {
                AddressEvent::Added(prefix) => Some(prefix.ifindex),
                _ => None,
            });
            self.readdressed.extend(added);
            self.set_pings();
        }
        let own = self.own();
        let Some(routing) = &mut self.routing else { return };
        if own != routing.own {
            routing.own = own;
            self.want_routes();
        }
    }

    /// Tells the core whom to ping behind which peer: from our address on the TUN, or else on a LAN, if there is one.
    fn set_pings(&mut self) {
        let own = self.own().addresses;
        let Some(site) = &self.site else { return };
        for (at, peer) in site.told().peers.iter().enumerate() {
            let Some(id) = self.core.device().peer(&site.public_key(at)) else {
                continue;
            };
            let plan = peer.ping.and_then(|ping| {
                let of_family = |ip: &&IpAddr| ip.is_ipv4() == ping.address.is_ipv4();
                Some(PingPlan {
                    from: *own.iter().find(of_family)?,
                    to: ping.address,
                    interval: Duration::from_millis(ping.interval_ms.into()),
                })
            });
            if !self.core.set_ping(id, plan) {
                self.core.log().error(format_args!(
                    "peer {:?} is not pinged: {PINGED_MAX} others are, which is the limit",
                    site.public_key(at)
                ));
            }
        }
    }

    /// Tells when addresses may have changed.
    pub(super) fn addresses_fd(&self) -> Option<BorrowedFd<'_>> {
        self.addresses.as_ref().map(Addresses::as_fd)
    }

    /// Tells the core what each link says of itself to remotes.
    pub(super) fn describe_links(&mut self) {
        let (Some(site), Some(addresses)) = (&self.site, &self.addresses) else {
            return;
        };
        let links = site.told().links.iter().enumerate();
        let described: Vec<_> = links
            .map(|(at, link)| {
                let ifindex = self.core.ifindex(at);
                let own: Vec<IpAddr> = ifindex
                    .map(|ifindex| addresses.on(ifindex).map(|prefix| prefix.address).collect())
                    .unwrap_or_default();
                (at, describe(link, self.udp.port, &own))
            })
            .collect();
        for (at, info) in described {
            self.core.describe_link(at, Some(info));
        }
    }

    /// Goes on with what waits for workers. A removed peer's number may be used again once nobody can come across it.
    pub(super) fn tend_routing(&mut self) {
        let Some(routing) = &mut self.routing else { return };
        for peer in self.core.take_departed() {
            routing.builder.leave(peer);
        }
        if self.core.take_routes_published() {
            self.want_routes();
        }
        let Some(routing) = &mut self.routing else { return };
        if !routing.builder.is_busy() {
            self.route_again_at = None;
            return;
        }
        for peer in routing.builder.advance() {
            self.core.release(peer);
        }
        let soon = self.core.mono().after(ROUTING_PAUSE);
        self.route_again_at = routing.builder.is_busy().then_some(soon);
    }
}

/// What a link says of itself: where it can be called, by what its file says or by its interface's own addresses.
fn describe(link: &Link, port: u16, own: &[IpAddr]) -> LinkInfo {
    let usable = |ip: &&IpAddr| match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
    };
    let own: Vec<IpAddr> = own.iter().filter(usable).copied().collect();
    let told = link.endpoint;
    let callable: Vec<IpAddr> = told.map_or_else(|| own.clone(), |endpoint| vec![endpoint.ip()]);
    LinkInfo {
        id: LinkId::new(link.id).expect("1 to 15, as was checked"),
        group: link.group,
        metered: link.metered,
        behind_nat: link.behind_nat,
        incarnation: 0,
        has_v4: own.iter().any(IpAddr::is_ipv4),
        has_v6: own.iter().any(IpAddr::is_ipv6),
        port: told.map_or(port, |endpoint| endpoint.port()),
        v4: callable.iter().find_map(|ip| match ip {
            IpAddr::V4(ip) => Some(*ip),
            IpAddr::V6(_) => None,
        }),
        v6: callable.iter().find_map(|ip| match ip {
            IpAddr::V6(ip) => Some(*ip),
            IpAddr::V4(_) => None,
        }),
    }
}

fn allowed_ip(prefix: Prefix, remove: bool) -> AllowedIpChange {
    AllowedIpChange {
        remove,
        addr: prefix.addr(),
        cidr: prefix.cidr(),
    }
}

/// Refuses a site that differs in what cannot change while the engine runs.
/// What the host gets at the TUN, if that is something else than before.
fn note_host(before: Option<&Site>, now: &Site, changes: &mut Vec<String>) {
    let nothing = Host::default();
    let (before, now) = (
        before.map_or(&nothing, |site| &site.told().host),
        &now.told().host,
    );
    if before.addresses != now.addresses {
        let all = now.addresses.iter().map(|at| format!("{}/{}", at.addr, at.len));
        let all: Vec<String> = all.collect();
        changes.push(format!(
            "addresses: {}",
            if all.is_empty() {
                "none".to_owned()
            } else {
                all.join(" ")
            }
        ));
    }
    if let Some(mtu) = now.mtu.filter(|_| before.mtu != now.mtu) {
        changes.push(format!("mtu: {mtu}"));
    }
    if before.routes != now.routes {
        changes.push(format!("routes: {}", now.routes));
    }
}

fn refuse_fixed(before: &Site, now: &Site) -> Result<(), String> {
    match cannot_change(before.told(), now.told()) {
        Some(what) => Err(format!(
            "{}: {what} cannot be changed while the engine runs: restart it, or undo the change",
            now.path().display()
        )),
        None => Ok(()),
    }
}

/// Says how packets are steered in another way.
fn note_steering(was: &Told, is: &Told, changes: &mut Vec<String>) {
    for class in &is.classes {
        match was.classes.iter().find(|before| before.name == class.name) {
            None => changes.push(format!("class {}: added", class.name)),
            Some(before) if before != class => changes.push(format!("class {}: changed", class.name)),
            Some(_) => {}
        }
    }
    let stays = |class: &Class| is.classes.iter().any(|now| now.name == class.name);
    let gone = was.classes.iter().filter(|class| !stays(class));
    changes.extend(gone.map(|class| format!("class {}: removed", class.name)));
    for link in &is.links {
        let before = was.links.iter().find(|before| before.id == link.id);
        let told = |link: &Link| (link.cost, link.rate_up, link.rate_down);
        if before.is_some_and(|before| told(before) != told(link)) {
            changes.push(format!("link {}: another cost, or other rates", link.id));
        }
    }
}

/// Says how the rules differ.
fn note_rules(was: &Rules, is: &Rules, changes: &mut Vec<String>) {
    let by_prefix = |rules: &Rules| rules.routes.iter().cloned().collect::<HashMap<_, _>>();
    let (before, after) = (by_prefix(was), by_prefix(is));
    let mut prefixes: Vec<&Prefix> = before.keys().chain(after.keys()).collect();
    prefixes.sort_unstable();
    prefixes.dedup();
    for prefix in prefixes {
        let what = match (before.get(prefix), after.get(prefix)) {
            (None, _) => "added",
            (_, None) => "removed",
            (was, is) if was != is => "another next hop",
            _ => continue,
        };
        changes.push(format!("route {}/{}: {what}", prefix.addr(), prefix.cidr()));
    }
    if was.policies != is.policies {
        let (was, is) = (was.policies.len(), is.policies.len());
        changes.push(format!("policies: {was} before, {is} now, and not the same"));
    }
}
