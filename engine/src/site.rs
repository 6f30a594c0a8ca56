//! A site from its file: the file's words become what the engine's parts take.
//!
//! The one place where the configuration's types are known. From here on there are requests as the UAPI has them ([`SetRequest`](crate::uapi::SetRequest)), an
//! engine's set-up ([`engine::Config`]) and routing [`Rules`] in plain values. Read at the start by the main thread, and again by
//! the slow path, which gets the files from the [`reader`](crate::reader).

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use patronus_config::matching::{OneOrMore, Ports, Via as Word};
use patronus_config::value::Network;
use patronus_config::{Action, Config, HOST, Lan, LinkPort, Peer, Policy, PortKind, Spanned, key_file};
use patronus_crypto::{PeerId, PublicKey};
use patronus_mem::Secret;

use crate::allowedips::Prefix;
use crate::classify::Match;
use crate::engine;
use crate::lans::{EthernetConfig, PortChoice};
use crate::plan::{Verdict, Via, Wanted};
use crate::uapi::parse::clamp;

/// A site's file and the keys that it names.
pub struct Site {
    path: PathBuf,
    config: Config,
    private_key: Secret<32>,
    /// By peer.
    psks: Vec<Option<Secret<32>>>,
}

/// A next hop by who it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Target {
    /// The peer with this key.
    Peer(PublicKey),
    /// What is behind this LAN port; on Ethernet the neighbour with this address.
    Lan(u16, Option<IpAddr>),
    /// Whom the packet is for, on this Ethernet LAN.
    Connected(u16),
    /// Nowhere.
    Discard,
}

/// What is the host's own.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Own {
    /// Its addresses on the TUN and on the LANs.
    pub addresses: Vec<IpAddr>,
    /// The networks that it is on with them, and by which LAN port.
    pub connected: Vec<(Prefix, u16)>,
}

/// What a site routes by, beside its peers' allowed-ips.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rules {
    /// Prefixes and their next hops. The last of equal ones counts.
    pub routes: Vec<(Prefix, Vec<Target>)>,
    /// The first that a flow comes under has the last word.
    pub policies: Vec<(Match, Verdict<Target>)>,
}

impl Site {
    /// Reads a site's file and its keys.
    pub fn load(path: &Path) -> Result<Site, String> {
        let text = patronus_config::read(path).map_err(|error| error.to_string())?;
        let config = patronus_config::parse_file(path, &text).map_err(|error| error.to_string())?;
        let mut keys = Keys::default();
        for file in config.key_files() {
            keys.take(file, key_file::open_regular(file))?;
        }
        Site::assemble(path, config, keys)
    }

    /// Puts a site together from its file and all its keys.
    pub fn assemble(path: &Path, config: Config, keys: Keys) -> Result<Site, String> {
        let mut keys = keys.0.into_iter();
        let missing = || "a key file is missing".to_owned();
        let private_key = clamp(keys.next().ok_or_else(missing)?);
        let mut psks = Vec::new();
        for peer in &config.peers {
            psks.push(match peer.preshared_key_file {
                Some(_) => Some(keys.next().ok_or_else(missing)?),
                None => None,
            });
        }
        Ok(Site {
            path: path.to_owned(),
            config,
            private_key,
            psks,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What stands in it.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The site's private key, as X25519 has it.
    pub fn private_key(&self) -> &Secret<32> {
        &self.private_key
    }

    /// A peer's pre-shared key, by its place in the file.
    pub fn psk(&self, peer: usize) -> Option<&Secret<32>> {
        self.psks[peer].as_ref()
    }

    /// The public key of the peer in this place.
    pub fn public_key(&self, peer: usize) -> PublicKey {
        PublicKey(self.config.peers[peer].public_key.get_ref().0)
    }

    /// How to run the engine; what the file does not say is as in `defaults`.
    pub fn engine(&self, defaults: engine::Config) -> engine::Config {
        let engine = &self.config.engine;
        let links = self.config.links.iter();
        engine::Config {
            name: engine.interface.as_str().to_owned(),
            workers: engine.workers.get() as usize,
            cores: engine
                .cores
                .iter()
                .map(|core| core.get_ref().get() as usize)
                .collect(),
            spin: (*engine.spin.get_ref()).into(),
            links: links
                .map(|link| link.interface.get_ref().as_str().to_owned())
                .collect(),
            af_xdp: self.xdp_links(),
            aead: engine.aead.as_ref().map(|aead| aead.get_ref().clone()),
            offload: engine.offload,
            remotes: self.config.has_remotes(),
            ethernet: self.ethernet().filter_map(|(lan, _)| port(lan)).collect(),
            router: self.config.routes_packets().then(|| engine::RouterConfig {
                flows: engine.flows.get() as usize,
                routes: engine.routes.get() as usize,
            }),
            ..defaults
        }
    }

    fn xdp_links(&self) -> Vec<String> {
        let links = self.config.links.iter();
        links
            .filter(|link| link.port == LinkPort::AfXdp)
            .map(|link| link.interface.get_ref().as_str().to_owned())
            .collect()
    }

    /// What it routes by.
    pub fn rules(&self) -> Rules {
        let mut rules = Rules::default();
        let tun = self.tun().map(|lan| (lan, Target::Lan(0, None)));
        let ethernet = self.ethernet().map(|(lan, at)| (lan, Target::Connected(at)));
        for (lan, target) in tun.into_iter().chain(ethernet) {
            for network in &lan.networks {
                rules.routes.push((prefix(network.get_ref()), vec![target]));
            }
        }
        for (lan, address, _) in self.neighbours() {
            let whole = if address.is_ipv4() { 32 } else { 128 };
            let host = Prefix::new(address, whole).expect("all bits of the family");
            rules.routes.push((host, vec![Target::Lan(lan, Some(address))]));
        }
        for route in &self.config.routes {
            let targets = self.targets(route.via.get_ref());
            rules.routes.push((prefix(route.prefix.get_ref()), targets));
        }
        for policy in &self.config.policies {
            let verdict = match (policy.action.get_ref(), &policy.via) {
                (Action::Via, Some(via)) => Verdict::Via(self.targets(via.get_ref())),
                (Action::Drop, _) => Verdict::Drop,
                (Action::Route | Action::Via, _) => Verdict::Route,
            };
            rules.policies.push((matching(policy), verdict));
        }
        rules
    }

    /// The networks of each peer; `number` says which a peer has, by its place.
    pub fn allowed_ips(&self, number: impl Fn(usize) -> PeerId) -> Vec<(Prefix, PeerId)> {
        let peers = self.config.peers.iter().enumerate();
        let each = |(at, peer): (usize, &Peer)| {
            let (networks, id) = (peer.allowed_ips.iter(), number(at));
            networks
                .map(|network| (prefix(network.get_ref()), id))
                .collect::<Vec<_>>()
        };
        peers.flat_map(each).collect()
    }

    /// What there is in it, in a line.
    pub fn summary(&self) -> String {
        let config = &self.config;
        format!(
            "{} peers, {} links, {} LANs, {} routes, {} policies; nothing is wrong",
            config.peers.len(),
            config.links.len(),
            config.lans.len(),
            config.routes.len(),
            config.policies.len()
        )
    }

    /// Who is known to be on which Ethernet LAN, at which Ethernet address.
    pub fn neighbours(&self) -> Vec<(u16, IpAddr, [u8; 6])> {
        let each = |(lan, at): (&Lan, u16)| {
            let list = lan.neighbours.iter();
            list.map(move |n| (at, *n.address.get_ref(), n.mac.0))
                .collect::<Vec<_>>()
        };
        self.ethernet().flat_map(each).collect()
    }

    /// The Ethernet LANs and their places among the LAN ports: behind the TUN, in the order of the file.
    fn ethernet(&self) -> impl Iterator<Item = (&Lan, u16)> {
        let lans = self.config.lans.iter();
        lans.filter(|lan| lan.is_ethernet()).zip(1..)
    }

    fn tun(&self) -> Option<&Lan> {
        let mut lans = self.config.lans.iter();
        lans.find(|lan| !lan.is_ethernet())
    }

    fn targets(&self, words: &OneOrMore<Word>) -> Vec<Target> {
        words.0.iter().map(|word| self.target(word.get_ref())).collect()
    }

    /// Whom a word of the file means; that it means somebody has been checked.
    fn target(&self, word: &Word) -> Target {
        match word {
            Word::Discard => Target::Discard,
            Word::Named(wanted) => {
                let host = self.tun().map_or(HOST, |lan| lan.name.get_ref().as_str());
                if wanted == host {
                    return Target::Lan(0, None);
                }
                let named = |peer: &&Peer| {
                    let name = peer.name.as_ref();
                    name.is_some_and(|name| name.get_ref().as_str() == wanted)
                };
                let peer = self.config.peers.iter().find(named);
                peer.map_or(Target::Discard, |peer| {
                    Target::Peer(PublicKey(peer.public_key.get_ref().0))
                })
            }
            Word::Neighbour(address) => {
                let there = |lan: &Lan| {
                    let known = lan.neighbours.iter().any(|n| n.address.get_ref() == address);
                    known || lan.networks.iter().any(|n| n.get_ref().contains(*address))
                };
                let lan = self.ethernet().find(|(lan, _)| there(lan));
                lan.map_or(Target::Discard, |(_, at)| Target::Lan(at, Some(*address)))
            }
        }
    }
}

impl Rules {
    /// What workers are to route by, in numbers: to the host what nobody else has, to each peer its allowed-ips, to the LANs the networks that the
    /// host is on, to the host its own addresses, and then what these rules say, which has the last word about a prefix.
    pub fn wanted(
        &self,
        allowed_ips: impl IntoIterator<Item = (Prefix, PeerId)>,
        own: &Own,
        peer: impl Fn(&PublicKey) -> Option<PeerId>,
    ) -> Wanted {
        let host = || vec![Via::Lan(0, None)];
        let via = |target: &Target| match target {
            Target::Peer(key) => peer(key).map_or(Via::Discard, Via::Tunnel),
            Target::Lan(lan, neighbour) => Via::Lan(*lan, *neighbour),
            Target::Connected(lan) => Via::Connected(*lan),
            Target::Discard => Via::Discard,
        };
        let vias = |targets: &[Target]| targets.iter().map(via).collect();
        let mut routes = BTreeMap::new();
        let everything = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let everything = everything.map(|addr: IpAddr| Prefix::new(addr, 0));
        routes.extend(everything.into_iter().flatten().map(|prefix| (prefix, host())));
        let tunnels = allowed_ips.into_iter();
        routes.extend(tunnels.map(|(prefix, id)| (prefix, vec![Via::Tunnel(id)])));
        let whole = |addr: &IpAddr| Prefix::new(*addr, if addr.is_ipv4() { 32 } else { 128 });
        let connected = own.connected.iter();
        routes.extend(connected.map(|(prefix, lan)| (*prefix, vec![Via::Connected(*lan)])));
        let own = own.addresses.iter();
        routes.extend(own.filter_map(whole).map(|prefix| (prefix, host())));
        routes.extend(
            self.routes
                .iter()
                .map(|(prefix, targets)| (*prefix, vias(targets))),
        );
        let policies = self.policies.iter().map(|(matching, verdict)| {
            let verdict = match verdict {
                Verdict::Route => Verdict::Route,
                Verdict::Drop => Verdict::Drop,
                Verdict::Via(targets) => Verdict::Via(vias(targets)),
            };
            (matching.clone(), verdict)
        });
        Wanted {
            routes,
            policies: policies.collect(),
        }
    }
}

/// The keys that a file names, in its order.
#[derive(Default)]
pub struct Keys(Vec<Secret<32>>);

impl Keys {
    /// Reads the next one from its file, which may not have been there to open.
    pub fn take(&mut self, path: &Path, file: io::Result<File>) -> Result<(), String> {
        let file = file.map_err(|error| key_file::KeyError::Io(path.to_owned(), error));
        let key = file.and_then(|file| key_file::read_open(file, path));
        self.0.push(key.map_err(|error| error.to_string())?);
        Ok(())
    }

    /// How many have been read.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

/// The port of an Ethernet LAN.
fn port(lan: &Lan) -> Option<EthernetConfig> {
    let port = match lan.port.as_ref().map(Spanned::get_ref) {
        None => PortChoice::Any,
        Some(PortKind::AfXdp) => PortChoice::AfXdp,
        Some(PortKind::AfPacket) => PortChoice::AfPacket,
        Some(PortKind::Tun) => return None,
    };
    let interface = lan.interface.as_ref()?.get_ref().as_str().to_owned();
    Some(EthernetConfig { interface, port })
}

/// A network of the file's as a prefix.
pub fn prefix(network: &Network) -> Prefix {
    Prefix::new(network.addr, network.len).expect("a network's length is one of its family's")
}

fn matching(policy: &Policy) -> Match {
    let network = |network: &Option<Spanned<Network>>| network.as_ref().map(|n| prefix(n.get_ref()));
    let ports = |ports: &Option<Spanned<Ports>>| ports.as_ref().map(|p| p.get_ref().0.clone());
    let dscps = policy
        .dscp
        .0
        .iter()
        .fold(0u64, |set, dscp| set | 1 << dscp.get_ref().0);
    Match {
        src: network(&policy.src),
        dst: network(&policy.dst),
        protocol: policy.protocol.as_ref().map(|protocol| protocol.get_ref().0),
        src_ports: ports(&policy.src_ports),
        dst_ports: ports(&policy.dst_ports),
        dscps: (dscps != 0).then_some(dscps),
    }
}
