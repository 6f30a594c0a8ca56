//! What no single value shows: numbers out of range, things that stand twice, names that nobody has.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::ops::Range;
use std::time::Duration;

use patronus_abi::Prefix;
use patronus_abi::site::{
    ADDRESSES_MAX, CLASSES_MAX, Class, HOLD_MAX_MS, LIMIT_MAX_US, PING_MAX_MS, PING_MIN_MS,
    PROBE_IDLE_MAX_US, PROBE_INTERVAL_US,
};
use toml::Spanned;

use crate::dpdk;
use crate::error::{Error, nearest};
use crate::matching::{Name, OneOrMore, Via};
use crate::on_link::OnLink;
use crate::schema::{Action, Config, Lan, Link, LinkPort, Peer, Policy};
use crate::steering::{BUILT_IN, class_names};

/// Seconds between keepalives at most: 16 bits, as everywhere with WireGuard.
const KEEPALIVE_MAX: u64 = u16::MAX as u64;
/// Longer than this a worker never looks for work.
const SPIN_MAX: Duration = Duration::from_secs(1);
/// What a class can ask for at most, milliseconds.
const LIMIT_MAX: u64 = LIMIT_MAX_US as u64 / 1000;
/// And how long flows keep away from a path at most.
const HOLD_MAX: u64 = HOLD_MAX_MS as u64;
/// The cryptography backends of the engine. Whether the processor has what one of them needs is the engine's to say.
pub const AEADS: [&str; 6] = [
    "ours-avx512",
    "ours-avx512-noifma",
    "ours-avx2",
    "ours-portable",
    "aws-lc",
    "rustcrypto",
];
/// What the host behind the TUN is called, if the file says nothing else.
pub const HOST: &str = "host";
/// Next hops that flows are spread over at most.
const HOPS_MAX: usize = 64;
/// LAN ports of an engine at most, the TUN among them.
const LANS_MAX: usize = 16;
/// Policies at most.
const POLICIES_MAX: usize = 65_536;

pub(crate) fn check(text: &str, config: &Config) -> Result<(), Error> {
    check_engine(text, config)?;
    check_addresses(text, config)?;
    let ids = config.links.iter().map(|link| &link.id);
    once(text, ids, "another link has this id")?;
    if let Some(remote) = config.peers.iter().find(|peer| peer.is_remote)
        && config.links.is_empty()
    {
        let said = "a remote is reached over links, and there is no [[link]]";
        return Err(Error::at(text, remote.public_key.span(), said)
            .with_hint("name the WAN interfaces in [[link]]s, or make it a [[peer]]"));
    }
    config.links.iter().try_for_each(|link| check_cap(text, link))?;
    check_lans(text, config)?;
    dpdk::check(text, config)?;
    check_peers(text, config)?;
    check_room(text, config)?;
    let prefixes = config.routes.iter().map(|route| &route.prefix);
    once(text, prefixes, "another route has this prefix")?;
    let names = Names::of(config);
    for route in &config.routes {
        names.check(text, &route.via)?;
    }
    let policies = config.policies.iter().filter_map(|policy| policy.name.as_ref());
    once(text, policies, "another policy has this name")?;
    config
        .policies
        .iter()
        .try_for_each(|policy| check_policy(text, &names, policy))?;
    check_classes(text, config)?;
    check_probe(text, config)?;
    check_bgp(text, config)
}

fn check_addresses(text: &str, config: &Config) -> Result<(), Error> {
    let mut seen = HashSet::new();
    for (at, address) in config.site.addresses.iter().enumerate() {
        if at == ADDRESSES_MAX {
            let said = format!("at most {ADDRESSES_MAX} addresses are possible");
            return Err(Error::at(text, address.span(), said));
        }
        if !seen.insert(address.get_ref().addr) {
            return Err(Error::at(text, address.span(), "this address stands there twice"));
        }
    }
    Ok(())
}

fn check_cap(text: &str, link: &Link) -> Result<(), Error> {
    match (&link.data_cap, &link.data_cap_day) {
        (None, Some(day)) => {
            let said = "this is the day of a `data_cap`, and there is none";
            Err(Error::at(text, day.span(), said)
                .with_hint("leave this line out, or say how much: data_cap = \"20GB\""))
        }
        (Some(cap), _) if link.port == LinkPort::Dpdk => {
            let said = "nobody counts what goes by a card that DPDK drives";
            Err(Error::at(text, cap.span(), said).with_hint("port = \"udp\" or \"af_xdp\""))
        }
        _ => Ok(()),
    }
}

fn check_classes(text: &str, config: &Config) -> Result<(), Error> {
    let names = config.classes.iter().map(|class| &class.name);
    once(text, names, "another class has this name")?;
    let own = config.classes.iter().map(|class| class.name.get_ref().as_str());
    let known: Vec<&str> = own.chain(BUILT_IN).chain([Class::DEFAULT]).collect();
    for policy in &config.policies {
        let Some(class) = &policy.class else { continue };
        let name = class.get_ref().as_str();
        if !known.contains(&name) {
            let said = format!("there is no class named `{name}`");
            return Err(Error::at(text, class.span(), said).with_hint(nearest(name, &known)));
        }
        if *policy.action.get_ref() == Action::Drop {
            let said = "what is dropped needs no path, and so no class";
            return Err(Error::at(text, class.span(), said).with_hint("leave this line out"));
        }
    }
    for class in &config.classes {
        for limit in [&class.latency, &class.jitter].into_iter().flatten() {
            if !(1..=LIMIT_MAX).contains(&limit.get_ref().0) {
                let said = "expected a duration from \"1ms\" to \"1m\"";
                return Err(
                    Error::at(text, limit.span(), said).with_hint("leave out what need not be limited")
                );
            }
        }
        if class.hold.get_ref().0 > HOLD_MAX {
            let said = "expected a duration from \"0ms\" to \"24h\"";
            return Err(Error::at(text, class.hold.span(), said).with_hint("30s suits most"));
        }
    }
    match class_names(config).nth(CLASSES_MAX) {
        Some(_) => {
            let said = format!(
                "at most {CLASSES_MAX} classes are possible: `{}`, those of [[class]], and those that are built in and named by a policy",
                Class::DEFAULT
            );
            let last = config.classes.last().expect("there are more than are built in");
            Err(Error::at(text, last.name.span(), said))
        }
        None => Ok(()),
    }
}

fn check_probe(text: &str, config: &Config) -> Result<(), Error> {
    let (interval, idle) = (&config.probe.interval, &config.probe.idle);
    let micros = |millis: u64| u32::try_from(millis.saturating_mul(1000)).unwrap_or(u32::MAX);
    if !PROBE_INTERVAL_US.contains(&micros(interval.get_ref().0)) {
        let said = "expected a duration from \"5ms\" to \"1s\"";
        return Err(Error::at(text, interval.span(), said).with_hint("50ms suits most"));
    }
    if !(micros(interval.get_ref().0)..=PROBE_IDLE_MAX_US).contains(&micros(idle.get_ref().0)) {
        let said = format!(
            "expected a duration from `interval`, which is \"{}\", to \"10s\"",
            interval.get_ref()
        );
        let place = if idle.span().is_empty() { interval } else { idle };
        return Err(Error::at(text, place.span(), said).with_hint("1s suits most"));
    }
    Ok(())
}

/// BGP is understood and checked like everything; then it is refused. A site that has it and learns nothing would not do its work.
fn check_bgp(text: &str, config: &Config) -> Result<(), Error> {
    let Some(bgp) = &config.bgp else { return Ok(()) };
    let inner = bgp.get_ref();
    once(text, inner.announce.iter(), "this network stands here twice")?;
    let addresses = inner.neighbours.iter().map(|neighbour| &neighbour.address);
    once(text, addresses, "another neighbour has this address")?;
    let said = "[bgp] is understood, but this release does not speak BGP: no route would be learned";
    Err(Error::at(text, bgp.span(), said).with_hint("take it out, and write [[route]]s"))
}

fn check_engine(text: &str, config: &Config) -> Result<(), Error> {
    let engine = &config.engine;
    once(text, engine.cores.iter(), "this core stands here twice")?;
    if Duration::from(*engine.spin.get_ref()) > SPIN_MAX {
        let said = "expected a duration from \"0ms\" to \"1s\"";
        return Err(Error::at(text, engine.spin.span(), said)
            .with_hint("a worker that looks for work uses its core entirely"));
    }
    match &engine.aead {
        Some(aead) if !AEADS.contains(&aead.get_ref().as_str()) => {
            let said = format!("there is no cryptography backend `{}`", aead.get_ref());
            Err(Error::at(text, aead.span(), said).with_hint(nearest(aead.get_ref(), &AEADS)))
        }
        _ => Ok(()),
    }
}

fn check_lans(text: &str, config: &Config) -> Result<(), Error> {
    let links = config.links.iter().map(|link| &link.interface);
    let lans = config.lans.iter().filter_map(|lan| lan.interface.as_ref());
    once(text, links.chain(lans), "another link or LAN has this interface")?;
    let networks = config.lans.iter().flat_map(|lan| &lan.networks);
    once(text, networks, "this network stands here twice")?;
    let mut tuns = config.lans.iter().filter(|lan| !lan.is_ethernet());
    if let (Some(_), Some(second)) = (tuns.next(), tuns.next()) {
        let said = "there is one TUN, and another LAN is it already";
        return Err(Error::at(text, second.name.span(), said));
    }
    let own = config.engine.interface.as_str();
    let is_own = |link: &&Link| link.interface.get_ref().as_str() == own;
    if let Some(link) = config.links.iter().find(is_own) {
        let said = "this is the name of the engine's TUN, which the link carries";
        return Err(Error::at(text, link.interface.span(), said).with_hint("see [engine] interface"));
    }
    for lan in &config.lans {
        match (lan.is_ethernet(), &lan.interface) {
            (true, _) if lan.name.get_ref().as_str() == HOST => {
                let said = format!("`{HOST}` is what routes call the host behind the TUN");
                return Err(Error::at(text, lan.name.span(), said).with_hint("choose another name"));
            }
            (true, None) => {
                let said = "an Ethernet LAN needs to know its `interface`";
                let at = lan.port.as_ref().map_or(lan.name.span(), Spanned::span);
                return Err(Error::at(text, at, said).with_hint("`port = \"tun\"` is the host"));
            }
            (true, Some(name)) if name.get_ref().as_str() == own => {
                let said = "this is the name of the engine's TUN";
                return Err(Error::at(text, name.span(), said).with_hint("see [engine] interface"));
            }
            (false, Some(name)) if name.get_ref().as_str() != own => {
                let said = format!("the TUN's interface is `{own}`");
                return Err(Error::at(text, name.span(), said).with_hint("leave this line out"));
            }
            _ => {}
        }
        check_neighbours(text, lan)?;
    }
    match config
        .lans
        .iter()
        .filter(|lan| lan.is_ethernet())
        .nth(LANS_MAX - 1)
    {
        Some(lan) => {
            let said = format!("at most {} LANs beside the TUN are possible", LANS_MAX - 1);
            Err(Error::at(text, lan.name.span(), said))
        }
        None => Ok(()),
    }
}

fn check_neighbours(text: &str, lan: &Lan) -> Result<(), Error> {
    let addresses = lan.neighbours.iter().map(|neighbour| &neighbour.address);
    once(text, addresses, "another neighbour has this address")?;
    match lan.neighbours.first() {
        Some(first) if !lan.is_ethernet() => {
            let said = "neighbours are on Ethernet, and this LAN is the TUN";
            Err(Error::at(text, first.address.span(), said))
        }
        _ => Ok(()),
    }
}

fn check_peers(text: &str, config: &Config) -> Result<(), Error> {
    once(
        text,
        config.peers.iter().map(|peer| &peer.public_key),
        "another peer has this public key",
    )?;
    let peers = config.peers.iter().filter_map(|peer| peer.name.as_ref());
    let names = peers.chain(config.lans.iter().map(|lan| &lan.name));
    once(text, names, "another peer or LAN has this name")?;
    let is_host = |name: &&Spanned<Name>| name.get_ref().as_str() == HOST;
    let mut peers = config.peers.iter().filter_map(|peer| peer.name.as_ref());
    if let Some(name) = peers.find(is_host) {
        let said = format!("`{HOST}` is what routes call the host behind the TUN");
        return Err(Error::at(text, name.span(), said).with_hint("choose another name"));
    }
    let networks = config.peers.iter().flat_map(|peer| &peer.allowed_ips);
    once(text, networks, "this network stands here twice")?;
    for keepalive in config.peers.iter().filter_map(|peer| peer.keepalive.as_ref()) {
        let millis = keepalive.get_ref().0;
        if millis % 1000 != 0 || !(1..=KEEPALIVE_MAX).contains(&(millis / 1000)) {
            let said = format!("keepalives are sent every 1 to {KEEPALIVE_MAX} whole seconds");
            return Err(Error::at(text, keepalive.span(), said).with_hint("25s suits most NATs"));
        }
    }
    config.peers.iter().try_for_each(|peer| check_ping(text, peer))
}

fn check_ping(text: &str, peer: &Peer) -> Result<(), Error> {
    if let Some(interval) = &peer.ping_interval {
        let millis = interval.get_ref().0;
        if !(PING_MIN_MS.into()..=PING_MAX_MS.into()).contains(&millis) {
            let said = "expected a duration from \"100ms\" to \"60s\"";
            return Err(
                Error::at(text, interval.span(), said).with_hint("200ms finds a loss within a second")
            );
        }
        if peer.ping.is_none() {
            let said = "nobody is pinged";
            return Err(Error::at(text, interval.span(), said).with_hint("say whom: `ping`"));
        }
    }
    let Some(ping) = &peer.ping else { return Ok(()) };
    if peer.is_remote {
        let said = "whether a [[remote]] is reached is known by probes: nobody behind it is pinged";
        return Err(Error::at(text, ping.span(), said).with_hint("take the line out"));
    }
    let networks = peer.allowed_ips.iter().map(Spanned::get_ref);
    let mut networks = networks.filter_map(|network| Prefix::new(network.addr, network.len));
    if networks.any(|network| network.contains(*ping.get_ref())) {
        return Ok(());
    }
    let said = "this address is in none of the peer's `allowed_ips`: its answers would not be accepted";
    Err(Error::at(text, ping.span(), said)
        .with_hint("name an address behind the peer, or its own inside the tunnel"))
}

/// Refuses the first prefix and the first policy for which there is no room.
fn check_room(text: &str, config: &Config) -> Result<(), Error> {
    if !config.routes_packets() {
        return Ok(());
    }
    let limit = config.engine.routes.get() as usize;
    let allowed = config.peers.iter().flat_map(|peer| &peer.allowed_ips);
    let lans = config.lans.iter().flat_map(|lan| &lan.networks);
    let routes = config.routes.iter().map(|route| &route.prefix);
    if let Some(over) = allowed.chain(lans).chain(routes).nth(limit) {
        let said = format!("there is room for {limit} prefixes");
        return Err(Error::at(text, over.span(), said).with_hint("raise `routes` in [engine]"));
    }
    match config.policies.get(POLICIES_MAX) {
        Some(over) => {
            let said = format!("at most {POLICIES_MAX} policies are possible");
            Err(Error::at(text, over.action.span(), said))
        }
        None => Ok(()),
    }
}

fn check_policy(text: &str, names: &Names<'_>, policy: &Policy) -> Result<(), Error> {
    if let (Some(src), Some(dst)) = (&policy.src, &policy.dst)
        && src.get_ref().addr.is_ipv4() != dst.get_ref().addr.is_ipv4()
    {
        let said = "`src` and `dst` are of different address families: no packet has both";
        return Err(Error::at(text, dst.span(), said));
    }
    if let Some(protocol) = policy.protocol.as_ref().filter(|p| !p.get_ref().has_ports())
        && (policy.src_ports.is_some() || policy.dst_ports.is_some())
    {
        let said = "packets of this protocol have no ports";
        return Err(Error::at(text, protocol.span(), said).with_hint("only \"tcp\" and \"udp\" do"));
    }
    match (policy.action.get_ref(), &policy.via) {
        (Action::Via, None) => {
            let said = "where to? this action needs a `via`";
            Err(Error::at(text, policy.action.span(), said))
        }
        (Action::Via, Some(via)) => names.check(text, via),
        (_, Some(via)) => {
            let said = "only a policy with `action = \"via\"` says where packets go";
            Err(Error::at(text, via.span(), said))
        }
        (_, None) => Ok(()),
    }
}

/// What routes and policies can name.
struct Names<'a> {
    /// A set: there may be as many routes as prefixes, and as many names as peers.
    named: HashSet<&'a str>,
    /// The LANs that packets cannot be sent to without saying to whom there.
    ethernet: Vec<&'a str>,
    on_link: OnLink,
}

impl<'a> Names<'a> {
    fn of(config: &'a Config) -> Names<'a> {
        let (ethernet, tun): (Vec<&Lan>, Vec<&Lan>) = config.lans.iter().partition(|lan| lan.is_ethernet());
        let host = tun.first().map_or(HOST, |lan| lan.name.get_ref().as_str());
        let peers = config.peers.iter().filter_map(|peer| peer.name.as_ref());
        let mut named: HashSet<&str> = peers.map(|name| name.get_ref().as_str()).collect();
        named.insert(host);
        Names {
            named,
            ethernet: ethernet.iter().map(|lan| lan.name.get_ref().as_str()).collect(),
            on_link: OnLink::of(&config.lans),
        }
    }

    fn check(&self, text: &str, vias: &Spanned<OneOrMore<Via>>) -> Result<(), Error> {
        let list = &vias.get_ref().0;
        if list.is_empty() || list.len() > HOPS_MAX {
            let said = format!("expected 1 to {HOPS_MAX} next hops");
            return Err(Error::at(text, vias.span(), said));
        }
        for via in list {
            let place = if via.span().is_empty() {
                vias.span()
            } else {
                via.span()
            };
            self.check_one(text, place, via.get_ref())?;
        }
        Ok(())
    }

    fn check_one(&self, text: &str, place: Range<usize>, via: &Via) -> Result<(), Error> {
        match via {
            Via::Discard => Ok(()),
            Via::Named(name) if self.named.contains(name.as_str()) => Ok(()),
            Via::Named(name) if self.ethernet.contains(&name.as_str()) => {
                let said = format!("to whom on LAN `{name}`? expected the address of a neighbour there");
                Err(Error::at(text, place, said).with_hint("hosts of its `networks` need no route"))
            }
            Via::Named(name) => {
                let mut known: Vec<&str> = self.named.iter().copied().collect();
                known.sort_unstable();
                known.push("discard");
                let said = format!("there is no peer and no LAN named `{name}`");
                Err(Error::at(text, place, said).with_hint(nearest(name, &known)))
            }
            Via::Neighbour(address) => {
                if self.on_link.lan(*address).is_some() {
                    return Ok(());
                }
                let said = format!("{address} is on no LAN");
                Err(Error::at(text, place, said).with_hint(
                    "it has to be in the `networks` of an Ethernet LAN, or among its `neighbours`",
                ))
            }
        }
    }
}

/// Refuses the second of two equal values, and says where the first one is.
fn once<'a, T: Eq + Hash + 'a>(
    text: &str,
    values: impl Iterator<Item = &'a Spanned<T>>,
    said: &str,
) -> Result<(), Error> {
    let mut seen = HashMap::new();
    for value in values {
        if let Some(first) = seen.insert(value.get_ref(), value.span().start) {
            let line = text[..first].matches('\n').count() + 1;
            return Err(Error::at(text, value.span(), said).with_hint(format!("the first is in line {line}")));
        }
    }
    Ok(())
}
