//! From a file's words to what an engine takes: names become places in lists, units become numbers.
//!
//! Called by whoever passes a site on to an engine. What parsed has been checked, so nothing can go wrong here.

use std::collections::HashMap;
use std::time::Duration;

use patronus_abi::{Prefix, Site, site};

use crate::check::HOST;
use crate::matching::{Name, OneOrMore, Ports, Via};
use crate::on_link::OnLink;
use crate::schema::{Action, Config, Dpdk, Engine, Lan, Link, LinkPort, Mtu, Peer, Policy, PortKind};
use crate::steering::{self, OuterDscp, Probe, built_in, class_names};
use crate::value::{Device, Millis, Network};
use crate::{Number, Spanned};

/// Bytes of a device's largest packet, if the file says nothing else: Ethernet's.
pub(crate) const MTU: u16 = 1500;

impl Config {
    /// The site that the file describes, without its secrets: those are in its [`key_files`](Config::key_files).
    pub fn compile(&self) -> Site {
        let places = Places::of(self);
        // In which order links stand in the file means nothing.
        let mut links: Vec<site::Link> = self.links.iter().map(link).collect();
        links.sort_unstable_by_key(|link| link.id);
        Site {
            engine: engine(&self.engine),
            dpdk: dpdk(&self.dpdk),
            listen_port: self.site.listen_port.get() as u16,
            fwmark: self.site.fwmark.get() as u32,
            links,
            host: host(&self.site),
            peers: self.peers.iter().map(peer).collect(),
            lans: self.lans.iter().map(lan).collect(),
            routes: self.routes.iter().map(|route| places.route(route)).collect(),
            policies: self.policies.iter().map(|policy| places.policy(policy)).collect(),
            classes: class_names(self).map(|name| self.class(name)).collect(),
            probing: probing(&self.probe),
        }
    }
}

impl Config {
    /// The name of the class that has this number in the [compiled](Config::compile) site.
    pub fn class_name(&self, number: u8) -> Option<&str> {
        class_names(self).nth(number.into())
    }

    /// The class of this name: the file's, or the one that is built in.
    fn class(&self, name: &str) -> site::Class {
        let is_it = |class: &&steering::Class| class.name.get_ref().as_str() == name;
        let own = self.classes.iter().find(is_it).map(class);
        own.or_else(|| built_in().iter().find(is_it).map(class))
            .unwrap_or_default()
    }
}

/// Where in their lists those are whom routes and policies name.
struct Places<'a> {
    host: &'a str,
    peers: HashMap<&'a str, u32>,
    on_link: OnLink,
    classes: Vec<&'a str>,
}

impl<'a> Places<'a> {
    fn of(config: &'a Config) -> Places<'a> {
        let tun = config.lans.iter().find(|lan| !lan.is_ethernet());
        let named = |(at, peer): (usize, &'a Peer)| {
            let name = peer.name.as_ref()?;
            Some((name.get_ref().as_str(), at as u32))
        };
        Places {
            host: tun.map_or(HOST, |lan| lan.name.get_ref().as_str()),
            peers: config.peers.iter().enumerate().filter_map(named).collect(),
            on_link: OnLink::of(&config.lans),
            classes: class_names(config).collect(),
        }
    }

    fn route(&self, route: &crate::Route) -> site::Route {
        site::Route {
            prefix: prefix(route.prefix.get_ref()),
            hops: self.hops(route.via.get_ref()),
        }
    }

    fn policy(&self, policy: &Policy) -> site::Policy {
        let network = |network: &Option<Spanned<Network>>| network.as_ref().map(|n| prefix(n.get_ref()));
        let ports = |ports: &Option<Spanned<Ports>>| ports.as_ref().map(|p| p.get_ref().0.clone());
        let dscps = policy.dscp.0.iter().map(|dscp| 1u64 << dscp.get_ref().0);
        let dscps = dscps.fold(0, |set, bit| set | bit);
        site::Policy {
            name: policy.name.as_ref().map(name),
            src: network(&policy.src),
            dst: network(&policy.dst),
            protocol: policy.protocol.as_ref().map(|protocol| protocol.get_ref().0),
            src_ports: ports(&policy.src_ports),
            dst_ports: ports(&policy.dst_ports),
            dscps: (dscps != 0).then_some(dscps),
            action: match (policy.action.get_ref(), &policy.via) {
                (Action::Via, Some(via)) => site::Action::Via(self.hops(via.get_ref())),
                (Action::Drop, _) => site::Action::Drop,
                (Action::Route | Action::Via, _) => site::Action::Route,
            },
            class: policy
                .class
                .as_ref()
                .map_or(0, |class| self.class(class.get_ref())),
        }
    }

    /// A class's number; that it is there has been checked.
    fn class(&self, name: &Name) -> u8 {
        let at = self.classes.iter().position(|class| *class == name.as_str());
        at.unwrap_or(0) as u8
    }

    fn hops(&self, words: &OneOrMore<Via>) -> Vec<site::Hop> {
        words.0.iter().map(|word| self.hop(word.get_ref())).collect()
    }

    /// Whom a word of the file means; that it means somebody has been checked.
    fn hop(&self, word: &Via) -> site::Hop {
        match word {
            Via::Discard => site::Hop::Discard,
            Via::Named(name) if name == self.host => site::Hop::Host,
            Via::Named(name) => {
                let peer = self.peers.get(name.as_str());
                peer.map_or(site::Hop::Discard, |at| site::Hop::Peer(*at))
            }
            Via::Neighbour(address) => {
                let lan = self.on_link.lan(*address);
                lan.map_or(site::Hop::Discard, |at| site::Hop::Neighbour(at as u16, *address))
            }
        }
    }
}

fn engine(engine: &Engine) -> site::Engine {
    let spin: Duration = (*engine.spin.get_ref()).into();
    let cores = engine.cores.iter().map(|core| core.get_ref().get() as u16);
    site::Engine {
        interface: engine.interface.as_str().to_owned(),
        workers: engine.workers.get() as u16,
        cores: cores.collect(),
        spin_ms: spin.as_millis() as u32,
        aead: engine.aead.as_ref().map(|aead| aead.get_ref().clone()),
        offload: engine.offload,
        flows: whole(engine.flows),
        routes: whole(engine.routes),
    }
}

fn host(site: &crate::Site) -> site::Host {
    let addresses = site.addresses.iter().map(|address| site::HostAddress {
        addr: address.get_ref().addr,
        len: address.get_ref().len,
    });
    site::Host {
        addresses: addresses.collect(),
        mtu: site.mtu.as_ref().map(|mtu| mtu.get_ref().get() as u16),
        routes: *site.routes.get_ref(),
    }
}

fn dpdk(dpdk: &Dpdk) -> site::Dpdk {
    site::Dpdk {
        memory_mib: dpdk.memory.get_ref().0,
        huge_pages: dpdk.huge_pages,
        huge_page_mib: dpdk.huge_page_size.as_ref().map(|size| size.get_ref().0),
    }
}

fn device(device: &Option<Spanned<Device>>, mtu: &Option<Spanned<Mtu>>) -> Option<site::Device> {
    device.as_ref().map(|device| site::Device {
        name: device.get_ref().as_str().to_owned(),
        mtu: mtu.as_ref().map_or(MTU, |mtu| mtu.get_ref().get() as u16),
    })
}

fn whole<const MIN: u64, const MAX: u64>(number: Number<MIN, MAX>) -> u32 {
    const { assert!(MAX <= u32::MAX as u64) }
    number.get() as u32
}

fn link(link: &Link) -> site::Link {
    site::Link {
        id: link.id.get_ref().get() as u8,
        interface: link.interface.get_ref().as_str().to_owned(),
        port: match link.port {
            LinkPort::Udp => site::LinkPort::Udp,
            LinkPort::AfXdp => site::LinkPort::AfXdp,
            LinkPort::Dpdk => site::LinkPort::Dpdk,
        },
        device: device(&link.device, &link.mtu),
        group: link.group.get() as u8,
        metered: link.is_metered(),
        behind_nat: link.behind_nat,
        endpoint: link.endpoint.map(|endpoint| endpoint.0),
        cost: link.cost.get() as u16,
        rate_up: link.rate_up.as_ref().map_or(0, |rate| rate.get_ref().0),
        rate_down: link.rate_down.as_ref().map_or(0, |rate| rate.get_ref().0),
    }
}

fn class(class: &steering::Class) -> site::Class {
    let micros = |limit: &Option<Spanned<Millis>>| limit.as_ref().map(|limit| micros(limit.get_ref()));
    site::Class {
        name: name(&class.name),
        mode: match class.mode {
            steering::Mode::Pinned => site::Mode::Pinned,
            steering::Mode::ActiveBackup => site::Mode::ActiveBackup,
            steering::Mode::Duplicate => site::Mode::Duplicate,
            steering::Mode::Weighted => site::Mode::Weighted,
            steering::Mode::LowestLatency => site::Mode::LowestLatency,
        },
        latency_us: micros(&class.latency),
        jitter_us: micros(&class.jitter),
        // From thousandths of a percent.
        loss_ppm: class.loss.as_ref().map(|loss| loss.get_ref().0 * 10),
        hold_ms: class.hold.get_ref().0 as u32,
        sticky: match class.sticky {
            steering::Sticky::Flow => site::Sticky::Flow,
            steering::Sticky::Source => site::Sticky::Source,
        },
        dscp: match class.dscp {
            None => site::OuterDscp::None,
            Some(OuterDscp::Copy) => site::OuterDscp::Copy,
            Some(OuterDscp::Set(dscp)) => site::OuterDscp::Set(dscp.0),
        },
    }
}

fn probing(probe: &Probe) -> site::Probing {
    site::Probing {
        interval_us: micros(probe.interval.get_ref()),
        idle_us: micros(probe.idle.get_ref()),
        rate: whole(probe.rate),
    }
}

/// How often somebody is pinged, if nothing else is said.
const PING_INTERVAL_MS: u16 = 1000;

fn micros(millis: &Millis) -> u32 {
    (millis.0 * 1000) as u32
}

fn peer(peer: &Peer) -> site::Peer {
    let keepalive = peer.keepalive.as_ref();
    site::Peer {
        name: peer.name.as_ref().map(name),
        public_key: peer.public_key.get_ref().0,
        has_psk: peer.preshared_key_file.is_some(),
        is_remote: peer.is_remote,
        endpoint: peer.endpoint.map(|endpoint| endpoint.0),
        keepalive: keepalive.map(|every| (every.get_ref().0 / 1000) as u16),
        ping: peer.ping.as_ref().map(|address| site::Ping {
            address: *address.get_ref(),
            interval_ms: peer
                .ping_interval
                .as_ref()
                .map_or(PING_INTERVAL_MS, |every| every.get_ref().0 as u16),
        }),
        allowed_ips: networks(&peer.allowed_ips),
    }
}

fn lan(lan: &Lan) -> site::Lan {
    let interface = lan.interface.as_ref().filter(|_| lan.is_ethernet());
    let neighbours = lan.neighbours.iter();
    site::Lan {
        name: name(&lan.name),
        port: match lan.port.as_ref().map(Spanned::get_ref) {
            None => site::LanPort::Any,
            Some(PortKind::Tun) => site::LanPort::Tun,
            Some(PortKind::AfXdp) => site::LanPort::AfXdp,
            Some(PortKind::AfPacket) => site::LanPort::AfPacket,
            Some(PortKind::Dpdk) => site::LanPort::Dpdk,
        },
        interface: interface.map(|name| name.get_ref().as_str().to_owned()),
        device: device(&lan.device, &lan.mtu),
        networks: networks(&lan.networks),
        neighbours: neighbours.map(|n| (*n.address.get_ref(), n.mac.0)).collect(),
    }
}

fn name(name: &Spanned<Name>) -> String {
    name.get_ref().as_str().to_owned()
}

fn networks(networks: &[Spanned<Network>]) -> Vec<Prefix> {
    networks.iter().map(|network| prefix(network.get_ref())).collect()
}

fn prefix(network: &Network) -> Prefix {
    Prefix::new(network.addr, network.len).expect("a network's length is one of its family's")
}
