//! A site from a blob: what the engine is told becomes what its parts take.
//!
//! The one place where the types of [`patronus_abi`] are known. From here on there are requests as the UAPI has them ([`SetRequest`](crate::uapi::SetRequest)), an
//! engine's set-up ([`engine::Config`]) and routing [`Rules`] in plain values. A file is compiled into a blob and takes the same way as one
//! that somebody else has made: at the start in the main thread, and again in the slow path, which gets it from the [`reader`](crate::reader) or from
//! [`control`](crate::control).

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use patronus_abi::Site as Told;
use patronus_abi::site::{Action, Device, Hop, Lan, LanPort, Link, LinkPort, Peer, Policy};
use patronus_abi::{BlobError, decode, encode};
use patronus_config::key_file;
use patronus_crypto::{Duration, PeerId, PublicKey};
use patronus_io::nics::{self, NicConfig};
use patronus_mem::Secret;

use crate::allowedips::Prefix;
use crate::classify::Match;
use crate::engine;
use crate::lans::{EthernetConfig, LanConfig, PortChoice};
use crate::plan::{Ruled, Verdict, Via, Wanted};
use crate::uapi::parse::clamp;

/// A site, its secrets, and where both come from.
pub struct Site {
    path: PathBuf,
    generation: u64,
    told: Told,
    private_key: Secret<32>,
    /// By peer.
    psks: Vec<Option<Secret<32>>>,
    /// What should be looked at in its file.
    warnings: Vec<String>,
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
    pub policies: Vec<Ruled<Target>>,
}

impl Site {
    /// Reads a site's file and its keys.
    pub fn load(path: &Path) -> Result<Site, String> {
        let text = patronus_config::read(path).map_err(|error| error.to_string())?;
        let config = patronus_config::parse_file(path, &text).map_err(|error| error.to_string())?;
        if let Some(error) = config.without_dpdk(&text).filter(|_| !nics::BUILT_IN) {
            return Err(error.in_file(path).to_string());
        }
        let mut keys = Keys::default();
        for file in config.key_files() {
            keys.take(file, key_file::open_regular(file))?;
        }
        let blob = encode(&config.compile(), 1).map_err(|error| refused(path, &error))?;
        let mut site = Site::assemble(path, &blob, keys)?;
        site.warnings = config.warnings().iter().map(ToString::to_string).collect();
        Ok(site)
    }

    /// Puts a site together from its blob and all its keys. `path` is what messages call it.
    pub fn assemble(path: &Path, blob: &[u8], keys: Keys) -> Result<Site, String> {
        let (told, generation) = decode(blob).map_err(|error| refused(path, &error))?;
        if keys.0.len() != told.secrets() {
            let (count, wanted) = (keys.0.len(), told.secrets());
            return Err(format!(
                "{}: {count} keys came with it instead of {wanted}",
                path.display()
            ));
        }
        let mut keys = keys.0.into_iter();
        let mut next = || keys.next().expect("counted");
        let private_key = clamp(next());
        let psks = told.peers.iter().map(|peer| peer.has_psk.then(&mut next));
        Ok(Site {
            path: path.to_owned(),
            generation,
            psks: psks.collect(),
            told,
            private_key,
            warnings: Vec::new(),
        })
    }

    /// Says on standard error what is not wrong with its file, and should be looked at.
    pub fn warn(&self) {
        for warning in &self.warnings {
            eprintln!("patronus-engine: warning: {warning}");
        }
    }

    /// Where it comes from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which one it is of those that its maker has made.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What the engine is told of it.
    pub fn told(&self) -> &Told {
        &self.told
    }

    /// The site's private key, as X25519 has it.
    pub fn private_key(&self) -> &Secret<32> {
        &self.private_key
    }

    /// A peer's pre-shared key, by its place among the peers.
    pub fn psk(&self, peer: usize) -> Option<&Secret<32>> {
        self.psks[peer].as_ref()
    }

    /// The public key of the peer in this place.
    pub fn public_key(&self, peer: usize) -> PublicKey {
        PublicKey(self.told.peers[peer].public_key)
    }

    /// How to run the engine; what the site does not say is as in `defaults`.
    pub fn engine(&self, defaults: engine::Config) -> engine::Config {
        let engine = &self.told.engine;
        let links = self.told.links.iter();
        let by_xdp = links.clone().filter(|link| link.port == LinkPort::AfXdp);
        let by_nic = links
            .clone()
            .filter_map(|link| nic(&link.interface, link.device.as_ref()));
        engine::Config {
            name: engine.interface.clone(),
            workers: engine.workers.into(),
            cores: engine.cores.iter().map(|core| usize::from(*core)).collect(),
            spin: Duration::from_millis(engine.spin_ms.into()),
            links: links.map(|link| link.interface.clone()).collect(),
            af_xdp: by_xdp.map(|link| link.interface.clone()).collect(),
            nic_links: by_nic.collect(),
            aead: engine.aead.clone(),
            offload: engine.offload,
            remotes: self.told.has_remotes(),
            dpdk: engine::DpdkConfig {
                memory_mib: self.told.dpdk.memory_mib,
                huge_pages: self.told.dpdk.huge_pages,
                huge_page_mib: self.told.dpdk.huge_page_mib,
            },
            ethernet: self.ethernet().filter_map(|(lan, _)| port(lan)).collect(),
            router: self.told.routes_packets().then_some(engine::RouterConfig {
                flows: engine.flows as usize,
                routes: engine.routes as usize,
            }),
            ..defaults
        }
    }

    /// What it routes by.
    pub fn rules(&self) -> Rules {
        let mut rules = Rules::default();
        let tun = self.told.lans.iter().find(|lan| !lan.is_ethernet());
        let tun = tun.map(|lan| (lan, Target::Lan(0, None)));
        let ethernet = self.ethernet().map(|(lan, at)| (lan, Target::Connected(at)));
        for (lan, target) in tun.into_iter().chain(ethernet) {
            let networks = lan.networks.iter();
            rules
                .routes
                .extend(networks.map(|network| (*network, vec![target])));
        }
        for (lan, address, _) in self.neighbours() {
            let whole = if address.is_ipv4() { 32 } else { 128 };
            let host = Prefix::new(address, whole).expect("all bits of the family");
            rules.routes.push((host, vec![Target::Lan(lan, Some(address))]));
        }
        let routes = self.told.routes.iter();
        rules
            .routes
            .extend(routes.map(|route| (route.prefix, self.targets(&route.hops))));
        let policies = self.told.policies.iter().map(|policy| {
            let verdict = match &policy.action {
                Action::Via(hops) => Verdict::Via(self.targets(hops)),
                Action::Drop => Verdict::Drop,
                Action::Route => Verdict::Route,
            };
            Ruled {
                matching: matching(policy),
                class: policy.class,
                verdict,
            }
        });
        rules.policies.extend(policies);
        rules
    }

    /// The networks of each peer; `number` says which a peer has, by its place.
    pub fn allowed_ips(&self, number: impl Fn(usize) -> PeerId) -> Vec<(Prefix, PeerId)> {
        let peers = self.told.peers.iter().enumerate();
        let each = |(at, peer): (usize, &Peer)| {
            let (networks, id) = (peer.allowed_ips.iter(), number(at));
            networks.map(|network| (*network, id)).collect::<Vec<_>>()
        };
        peers.flat_map(each).collect()
    }

    /// What there is in it, in a line.
    pub fn summary(&self) -> String {
        let told = &self.told;
        format!(
            "{} peers, {} links, {} LANs, {} routes, {} policies; nothing is wrong",
            told.peers.len(),
            told.links.len(),
            told.lans.len(),
            told.routes.len(),
            told.policies.len()
        )
    }

    /// Who is known to be on which Ethernet LAN, at which Ethernet address.
    pub fn neighbours(&self) -> Vec<(u16, IpAddr, [u8; 6])> {
        let each = |(lan, at): (&Lan, u16)| {
            let list = lan.neighbours.iter();
            list.map(move |(address, mac)| (at, *address, *mac))
                .collect::<Vec<_>>()
        };
        self.ethernet().flat_map(each).collect()
    }

    /// The Ethernet LANs and their places among the LAN ports: behind the TUN, in the site's order.
    fn ethernet(&self) -> impl Iterator<Item = (&Lan, u16)> {
        let lans = self.told.lans.iter();
        lans.filter(|lan| lan.is_ethernet()).zip(1..)
    }

    fn targets(&self, hops: &[Hop]) -> Vec<Target> {
        hops.iter().map(|hop| self.target(hop)).collect()
    }

    fn target(&self, hop: &Hop) -> Target {
        match *hop {
            Hop::Discard => Target::Discard,
            Hop::Host => Target::Lan(0, None),
            Hop::Peer(at) => Target::Peer(self.public_key(at as usize)),
            Hop::Neighbour(lan, address) => {
                let before = self.told.lans.iter().take(usize::from(lan));
                let port = 1 + before.filter(|lan| lan.is_ethernet()).count();
                Target::Lan(port as u16, Some(address))
            }
        }
    }
}

/// What differs between two sites and cannot while an engine runs. `patronus_config::diff` says the same to people beforehand.
pub fn cannot_change(was: &Told, is: &Told) -> Option<&'static str> {
    let ports = |site: &Told| -> Vec<_> {
        let lans = site.lans.iter();
        lans.map(|lan| (lan.port, lan.interface.clone(), lan.device.clone()))
            .collect()
    };
    let is_remote = |site: &Told| -> BTreeMap<[u8; 32], bool> {
        let peers = site.peers.iter();
        peers.map(|peer| (peer.public_key, peer.is_remote)).collect()
    };
    let (before, now) = (is_remote(was), is_remote(is));
    let turned = |(key, is_remote): (&[u8; 32], &bool)| now.get(key).is_some_and(|now| now != is_remote);
    if before.iter().any(turned) {
        Some("whether a peer is a [[remote]]")
    } else if is.has_remotes() && !was.has_remotes() {
        Some("that there are no [[remote]]s")
    } else if was.engine != is.engine {
        Some("[engine]")
    } else if was.dpdk != is.dpdk {
        Some("[dpdk]")
    } else if fixed(&was.links) != fixed(&is.links) {
        Some("[[link]]")
    } else if ports(was) != ports(is) {
        Some("the interfaces of [[lan]]")
    } else if is.routes_packets() && !was.routes_packets() {
        Some("whether there is anything to route by")
    } else {
        None
    }
}

/// Links without what can change while an engine runs.
fn fixed(links: &[Link]) -> Vec<Link> {
    let fixed = |link: &Link| Link {
        cost: 0,
        rate_up: 0,
        rate_down: 0,
        ..link.clone()
    };
    links.iter().map(fixed).collect()
}

fn refused(path: &Path, error: &BlobError) -> String {
    format!("{}: {error}", path.display())
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
        let policies = self.policies.iter().map(|ruled| Ruled {
            matching: ruled.matching.clone(),
            class: ruled.class,
            verdict: match &ruled.verdict {
                Verdict::Route => Verdict::Route,
                Verdict::Drop => Verdict::Drop,
                Verdict::Via(targets) => Verdict::Via(vias(targets)),
            },
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
    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads the next one from its file, which may not have been there to open.
    pub fn take(&mut self, path: &Path, file: io::Result<File>) -> Result<(), String> {
        let file = file.map_err(|error| key_file::KeyError::Io(path.to_owned(), error));
        let key = file.and_then(|file| key_file::read_open(file, path));
        self.0.push(key.map_err(|error| error.to_string())?);
        Ok(())
    }
}

/// What an Ethernet LAN is.
fn port(lan: &Lan) -> Option<LanConfig> {
    let interface = lan.interface.clone()?;
    let port = match lan.port {
        LanPort::Any => PortChoice::Any,
        LanPort::AfXdp => PortChoice::AfXdp,
        LanPort::AfPacket => PortChoice::AfPacket,
        LanPort::Dpdk => return nic(&interface, lan.device.as_ref()).map(LanConfig::Nic),
        LanPort::Tun => return None,
    };
    Some(LanConfig::Interface(EthernetConfig { interface, port }))
}

/// What a port over DPDK is.
fn nic(interface: &str, device: Option<&Device>) -> Option<NicConfig> {
    device.map(|device| NicConfig {
        interface: interface.to_owned(),
        device: device.name.clone(),
        mtu: device.mtu,
    })
}

fn matching(policy: &Policy) -> Match {
    Match {
        src: policy.src,
        dst: policy.dst,
        protocol: policy.protocol,
        src_ports: policy.src_ports.clone(),
        dst_ports: policy.dst_ports.clone(),
        dscps: policy.dscps,
    }
}
