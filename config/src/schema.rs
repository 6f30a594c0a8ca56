//! What can stand in the file.

use std::path::{Path, PathBuf};

use patronus_abi::device::{MTU_MAX, MTU_MIN};
use patronus_abi::site::{FLOWS_MAX, FLOWS_MIN, ROUTES_MAX, ROUTES_MIN};
use serde::Deserialize;
use toml::Spanned;

use crate::matching::{Dscp, Name, OneOrMore, Ports, Protocol, Via};
use crate::number::Number;
use crate::services::{Bgp, Control, Metrics};
use crate::steering::{Class, Probe};
use crate::value::{
    DataCap, Device, Endpoint, HostAddress, InterfaceName, Mac, Mebibytes, Millis, Network, PublicKey, Rate,
};
use crate::warning::{Warning, Warnings};

/// A whole configuration.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// This site.
    pub site: Site,
    /// How its engine runs.
    #[serde(default)]
    pub engine: Engine,
    /// How DPDK runs, if a port wants it.
    #[serde(default)]
    pub dpdk: Dpdk,
    /// Its WAN attachments. None: whatever the host's routes say.
    #[serde(default, rename = "link")]
    pub links: Vec<Link>,
    /// Whom it talks to: any WireGuard implementation.
    #[serde(default, rename = "peer")]
    pub peers: Vec<Peer>,
    /// Sites of our own, which have this one among their remotes. In the end they are among the [`peers`](Config::peers).
    #[serde(default, rename = "remote")]
    pub(crate) remotes: Vec<Peer>,
    /// What is attached on the inside. The host, behind the TUN, always is.
    #[serde(default, rename = "lan")]
    pub lans: Vec<Lan>,
    /// Where packets go, beside what the peers' allowed-ips say.
    #[serde(default, rename = "route")]
    pub routes: Vec<Route>,
    /// What becomes of which flows; the first that matches decides.
    #[serde(default, rename = "policy")]
    pub policies: Vec<Policy>,
    /// What kinds of traffic need of a path.
    #[serde(default, rename = "class")]
    pub classes: Vec<Class>,
    /// How the paths to remotes are probed.
    #[serde(default)]
    pub probe: Probe,
    /// Routes by BGP.
    pub bgp: Option<Spanned<Bgp>>,
    /// Metrics over HTTP. None: nobody listens.
    pub metrics: Option<Metrics>,
    /// How the control process is reached.
    #[serde(default)]
    pub control: Control,
    /// What is not wrong, and should be looked at all the same.
    #[serde(skip)]
    pub(crate) warnings: Warnings,
}

/// This site.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Site {
    /// The file with its private key, as `patronus keygen` makes it; for its owner's eyes only.
    pub private_key_file: PathBuf,
    /// UDP port to listen on; 0: any that is free.
    #[serde(default)]
    pub listen_port: Number<0, 65535>,
    /// Mark of outgoing packets (SO_MARK, socket(7)); 0 for none.
    #[serde(default)]
    pub fwmark: Number<0, 4_294_967_295>,
    /// The host's addresses at the TUN, which the engine sets. None: they are the host's own business.
    #[serde(default)]
    pub addresses: Vec<Spanned<HostAddress>>,
    /// The TUN's longest packet. None: 1,420 bytes at first, and then what somebody sets.
    pub mtu: Option<Spanned<Mtu>>,
    /// What is allowed to peers is routed into the TUN on the host.
    #[serde(default = "no")]
    pub routes: Spanned<bool>,
}

fn no() -> Spanned<bool> {
    Spanned::new(0..0, false)
}

/// Packet threads.
pub type Workers = Number<1, 64>;
/// The number of a core.
pub type Core = Number<0, 1023>;
/// Flows that a worker remembers.
pub type Flows = Number<{ FLOWS_MIN as u64 }, { FLOWS_MAX as u64 }>;
/// Prefixes that are routed by.
pub type Routes = Number<{ ROUTES_MIN as u64 }, { ROUTES_MAX as u64 }>;
/// Bytes of a device's largest packet.
pub type Mtu = Number<{ MTU_MIN as u64 }, { MTU_MAX as u64 }>;
/// A link's number.
pub type LinkId = Number<1, 15>;
/// The day of the month on which a link's data cap begins anew: one that every month has.
pub type CapDay = Number<1, 28>;
/// What a link costs, in whatever unit.
pub type Cost = Number<0, 65535>;

/// How the engine runs. None of this can be changed while it does.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Engine {
    /// Name of the TUN.
    pub interface: InterfaceName,
    /// Packet threads, 1 to 64.
    pub workers: Workers,
    /// Cores to pin them to, in turn. Empty: the scheduler decides.
    pub cores: Vec<Spanned<Core>>,
    /// How long a worker looks for work before it sleeps.
    pub spin: Spanned<Millis>,
    /// Cryptography backend. None: the default.
    pub aead: Option<Spanned<String>>,
    /// Segmentation and checksum offload.
    pub offload: bool,
    /// Flows that each worker remembers, where there is something to route by.
    pub flows: Flows,
    /// Prefixes that there may be, those of the peers among them.
    pub routes: Routes,
}

impl Default for Engine {
    fn default() -> Engine {
        Engine {
            interface: InterfaceName::default(),
            workers: const { Workers::new(1).unwrap() },
            cores: Vec::new(),
            spin: Spanned::new(0..0, Millis::default()),
            aead: None,
            offload: true,
            flows: const { Flows::new(65_536).unwrap() },
            routes: const { Routes::new(4096).unwrap() },
        }
    }
}

/// How a link's datagrams are taken and given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkPort {
    /// UDP sockets.
    #[default]
    Udp,
    /// The interface's queues, past the kernel's network stack, and UDP sockets for the rest.
    AfXdp,
    /// A NIC that DPDK drives, and UDP sockets for the rest.
    Dpdk,
}

/// How DPDK runs. None of this can be changed while it does.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dpdk {
    /// For what drivers need besides packets.
    pub memory: Spanned<Mebibytes>,
    /// That memory is on huge pages.
    pub huge_pages: bool,
    /// Their size. None: whichever the system has.
    pub huge_page_size: Option<Spanned<Mebibytes>>,
}

impl Default for Dpdk {
    fn default() -> Dpdk {
        Dpdk {
            memory: Spanned::new(0..0, Mebibytes::default()),
            huge_pages: true,
            huge_page_size: None,
        }
    }
}

/// One WAN attachment of the site.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// 1 to 15, for good: paths are named by it on both sides.
    pub id: Spanned<LinkId>,
    /// The network interface that it is; with DPDK, the one that the host gets in its place.
    pub interface: Spanned<InterfaceName>,
    /// How its datagrams are taken and given.
    #[serde(default)]
    pub port: LinkPort,
    /// What DPDK drives, if that is how.
    pub device: Option<Spanned<Device>>,
    /// The device's. None: Ethernet's usual one.
    pub mtu: Option<Spanned<Mtu>>,
    /// Paths to remotes lead between links of the same group.
    #[serde(default)]
    pub group: Number<0, 255>,
    /// Traffic costs money.
    #[serde(default)]
    pub metered: bool,
    /// Nobody can call it: it is behind a NAT or a firewall.
    #[serde(default)]
    pub behind_nat: bool,
    /// Where remotes can call it. None: at its interface's own addresses.
    pub endpoint: Option<Endpoint>,
    /// What it carries away from the site.
    pub rate_up: Option<Spanned<Rate>>,
    /// What it carries towards the site.
    pub rate_down: Option<Spanned<Rate>>,
    /// Of paths that are good enough, those of the lowest cost are used.
    #[serde(default)]
    pub cost: Cost,
    /// Bytes that may go by it in a month, both ways together. None: it has no such limit.
    pub data_cap: Option<Spanned<DataCap>>,
    /// The day on which the month begins. None: the first.
    pub data_cap_day: Option<Spanned<CapDay>>,
}

/// A peer.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// What messages and routes call it. None: messages have the start of its key, and routes do not name it.
    pub name: Option<Spanned<Name>>,
    /// Its public key.
    pub public_key: Spanned<PublicKey>,
    /// The file with the pre-shared key, as `wg genpsk` makes it.
    pub preshared_key_file: Option<PathBuf>,
    /// Where it is. None: it calls us.
    pub endpoint: Option<Endpoint>,
    /// The networks behind it.
    #[serde(default)]
    pub allowed_ips: Vec<Spanned<Network>>,
    /// How often to send something, so that firewalls and NAT on the way keep their state. None: never.
    pub keepalive: Option<Spanned<Millis>>,
    /// Somebody behind it who answers pings, so that its session leaves a link by which it is not reached. None: nobody is pinged.
    pub ping: Option<Spanned<std::net::IpAddr>>,
    /// How often. None: every second.
    pub ping_interval: Option<Spanned<Millis>>,
    /// It is a site of our own.
    #[serde(skip)]
    pub is_remote: bool,
}

/// What stands behind a LAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PortKind {
    /// The host, behind the TUN.
    Tun,
    /// An Ethernet interface, past the kernel's network stack.
    AfXdp,
    /// An Ethernet interface, through packet sockets.
    AfPacket,
    /// A NIC that DPDK drives.
    Dpdk,
}

/// Something on the inside.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lan {
    /// What routes and messages call it.
    pub name: Spanned<Name>,
    /// How its packets are taken and given. None: `af_xdp` where that can be had, else `af_packet`.
    pub port: Option<Spanned<PortKind>>,
    /// The Ethernet interface that it is, with DPDK the one that the host gets in its place. The TUN's is the engine's.
    pub interface: Option<Spanned<InterfaceName>>,
    /// What DPDK drives, if that is how.
    pub device: Option<Spanned<Device>>,
    /// The device's. None: Ethernet's usual one.
    pub mtu: Option<Spanned<Mtu>>,
    /// The networks that are there.
    #[serde(default)]
    pub networks: Vec<Spanned<Network>>,
    /// Who is there, at which Ethernet address.
    #[serde(default)]
    pub neighbours: Vec<Neighbour>,
}

/// Somebody on an Ethernet LAN.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Neighbour {
    /// Its address.
    pub address: Spanned<std::net::IpAddr>,
    /// Its Ethernet address.
    pub mac: Mac,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Where packets are going.
    pub prefix: Spanned<Network>,
    /// Where they go next; several: each flow by one of them.
    pub via: Spanned<OneOrMore<Via>>,
}

/// What becomes of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It goes where the routes say.
    Route,
    /// It goes nowhere.
    Drop,
    /// It goes where the policy says, whatever the routes say.
    Via,
}

/// Which flows, and what becomes of them. What is not there is not asked.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// What messages call it. None: its place in the file.
    pub name: Option<Spanned<Name>>,
    /// Where its packets come from.
    pub src: Option<Spanned<Network>>,
    /// Where they are going.
    pub dst: Option<Spanned<Network>>,
    /// Their protocol.
    pub protocol: Option<Spanned<Protocol>>,
    /// The UDP or TCP port that they come from.
    pub src_ports: Option<Spanned<Ports>>,
    /// The UDP or TCP port that they go to.
    pub dst_ports: Option<Spanned<Ports>>,
    /// Their DSCP: any of these. None: whichever.
    #[serde(default)]
    pub dscp: OneOrMore<Dscp>,
    /// What becomes of them.
    pub action: Spanned<Action>,
    /// Where they go next, if the action is "via".
    pub via: Option<Spanned<OneOrMore<Via>>>,
    /// What they need of a path.
    pub class: Option<Spanned<Name>>,
}

impl Link {
    /// Whether its traffic costs money: what has a data cap does.
    pub fn is_metered(&self) -> bool {
        self.metered || self.data_cap.is_some()
    }
}

impl Lan {
    /// Whether it is an Ethernet interface; otherwise it is the TUN.
    pub fn is_ethernet(&self) -> bool {
        self.port.as_ref().map(Spanned::get_ref) != Some(&PortKind::Tun)
    }
}

impl Config {
    /// Whether there is anything to route by, so that workers need a router.
    pub fn routes_packets(&self) -> bool {
        let lan_networks = self
            .lans
            .iter()
            .any(|lan| lan.is_ethernet() || !lan.networks.is_empty());
        lan_networks || !self.routes.is_empty() || !self.policies.is_empty()
    }

    /// What is not wrong, and should be looked at all the same.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings.0
    }

    /// What DPDK is to drive: the links' devices, then the LANs'.
    pub fn devices(&self) -> impl Iterator<Item = &Spanned<Device>> {
        let links = self.links.iter().filter_map(|link| link.device.as_ref());
        links.chain(self.lans.iter().filter_map(|lan| lan.device.as_ref()))
    }

    /// Puts the remotes among the peers, behind them.
    pub(crate) fn gather_remotes(&mut self) {
        let remotes = self.remotes.drain(..);
        self.peers.extend(remotes.map(|remote| Peer {
            is_remote: true,
            ..remote
        }));
    }

    /// The files with keys, the site's own first.
    pub fn key_files(&self) -> impl Iterator<Item = &Path> {
        let psks = self
            .peers
            .iter()
            .filter_map(|peer| peer.preshared_key_file.as_deref());
        std::iter::once(self.site.private_key_file.as_path()).chain(psks)
    }

    /// Makes paths that are relative begin at `folder`.
    pub(crate) fn resolve_paths(&mut self, folder: &Path) {
        let keys = self
            .peers
            .iter_mut()
            .filter_map(|peer| peer.preshared_key_file.as_mut());
        let bgp = self.bgp.iter_mut().flat_map(|bgp| &mut bgp.get_mut().neighbours);
        let passwords = bgp.filter_map(|neighbour| neighbour.password_file.as_mut());
        let control = &mut self.control;
        let own = [
            &mut self.site.private_key_file,
            &mut control.socket,
            &mut control.engine_socket,
        ];
        for path in keys.chain(passwords).chain(own) {
            *path = folder.join(&*path);
        }
    }
}
