//! A site in plain values: what an engine is to be and to do, without the secrets.
//!
//! Peers and LANs are named by their place in the lists, so that nothing here depends on numbers that an engine gives them.

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};
use core::ops::RangeInclusive;

use crate::blob::BlobError;
use crate::device::check_device;
use crate::prefix::Prefix;

pub use crate::device::{Device, Dpdk};

/// Links at most: their numbers have four bits on the wire, and 0 is none.
pub const LINKS_MAX: usize = 15;
/// LANs at most, the TUN among them: it has its place whether it stands there or not.
pub const LANS_MAX: usize = 16;
/// Peers at most.
pub const PEERS_MAX: usize = 1 << 16;
/// Networks of all peers together at most.
pub const ALLOWED_IPS_MAX: usize = 1 << 20;
/// Networks, and neighbours, of all LANs together at most.
pub const LAN_ENTRIES_MAX: usize = 1 << 16;
/// Routes, and prefixes that there may be room for, at most.
pub const ROUTES_MAX: usize = 1 << 20;
/// Prefixes that there is room for at least.
pub const ROUTES_MIN: usize = 64;
/// Flows that a worker remembers at least.
pub const FLOWS_MIN: usize = 1 << 10;
/// And at most.
pub const FLOWS_MAX: usize = 1 << 22;
/// Policies at most.
pub const POLICIES_MAX: usize = 1 << 16;
/// Next hops of a route or a policy at most.
pub const HOPS_MAX: usize = 64;
/// Classes at most, the one of what comes under no other among them.
pub const CLASSES_MAX: usize = 16;
/// What a class can ask for at most, microseconds.
pub const LIMIT_MAX_US: u32 = 60_000_000;
/// All packets, in parts per million: no loss is more.
pub const LOSS_MAX_PPM: u32 = 1_000_000;
/// How long flows keep away from a path at most, milliseconds.
pub const HOLD_MAX_MS: u32 = 24 * 3_600_000;
/// How often a path is probed that carries something, microseconds.
pub const PROBE_INTERVAL_US: RangeInclusive<u32> = 5_000..=1_000_000;
/// And one that carries nothing, at the rarest.
pub const PROBE_IDLE_MAX_US: u32 = 10_000_000;
/// Probes that an engine sends in a second, however many paths it has.
pub const PROBE_RATE: RangeInclusive<u32> = 100..=1_000_000;
/// Addresses of the host at the TUN at most.
pub const ADDRESSES_MAX: usize = 64;
/// Bytes of a packet of the TUN's at the longest.
pub const TUN_MTU: RangeInclusive<u16> = 1280..=9216;
/// Packet threads, and cores to pin them to, at most.
pub const WORKERS_MAX: usize = 64;
/// Bytes of a name at most.
pub const NAME_MAX: usize = 63;
/// Bytes of an interface's name at most (`IFNAMSIZ` of if.h, less the zero).
pub const INTERFACE_MAX: usize = 15;
/// How often a peer can be pinged at most, milliseconds between two.
pub const PING_MIN_MS: u16 = 100;
/// And at least.
pub const PING_MAX_MS: u16 = 60_000;
/// The longest that a worker looks for work before it sleeps, milliseconds.
pub const SPIN_MAX_MS: u32 = 1000;

/// A site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// How its engine runs; none of this changes while it does.
    pub engine: Engine,
    /// How DPDK runs, where ports want it; this does not change either.
    pub dpdk: Dpdk,
    /// UDP port to listen on; 0: any that is free.
    pub listen_port: u16,
    /// Mark of outgoing packets (SO_MARK, socket(7)); 0 for none.
    pub fwmark: u32,
    /// WAN attachments. None: whatever the host's routes say.
    pub links: Vec<Link>,
    /// Whom it talks to.
    pub peers: Vec<Peer>,
    /// What is attached on the inside.
    pub lans: Vec<Lan>,
    /// Where packets go, beside what allowed-ips say. The last of equal prefixes counts.
    pub routes: Vec<Route>,
    /// What becomes of which flows; the first that matches decides.
    pub policies: Vec<Policy>,
    /// What kinds of traffic need of a path, 1 to [`CLASSES_MAX`]; policies have their places. The first is [`Class::DEFAULT`]: it has what comes
    /// under no policy, and under none that names a class.
    pub classes: Vec<Class>,
    /// How paths are probed.
    pub probing: Probing,
    /// What the host gets at the TUN.
    pub host: Host,
}

/// What the engine sets for the host at the TUN, beside what others have set there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Its addresses there, at most [`ADDRESSES_MAX`].
    pub addresses: Vec<HostAddress>,
    /// The longest packet, bytes: [`TUN_MTU`]. None: as it is.
    pub mtu: Option<u16>,
    /// What is allowed to peers is routed there, but for default routes.
    pub routes: bool,
}

/// An address of the host's, and the network that it is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostAddress {
    /// The address.
    pub addr: IpAddr,
    /// Bits of the network's prefix.
    pub len: u8,
}

impl HostAddress {
    /// The network. None: no address is so long.
    pub fn network(&self) -> Option<Prefix> {
        Prefix::new(self.addr, self.len)
    }
}

/// How an engine runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Engine {
    /// Name of the TUN.
    pub interface: String,
    /// Packet threads, 1 to [`WORKERS_MAX`].
    pub workers: u16,
    /// Cores to pin them to, in turn. Empty: the scheduler decides.
    pub cores: Vec<u16>,
    /// How long a worker looks for work before it sleeps, milliseconds.
    pub spin_ms: u32,
    /// Cryptography backend. None: the default.
    pub aead: Option<String>,
    /// Segmentation and checksum offload.
    pub offload: bool,
    /// Flows that each worker remembers, where there is something to route by: [`FLOWS_MIN`] to [`FLOWS_MAX`].
    pub flows: u32,
    /// Prefixes that there may be, those of the peers among them: [`ROUTES_MIN`] to [`ROUTES_MAX`].
    pub routes: u32,
}

/// How a link's datagrams are taken and given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkPort {
    /// UDP sockets.
    Udp,
    /// AF_XDP, and UDP sockets for the rest.
    AfXdp,
    /// A NIC that DPDK drives, and UDP sockets for the rest.
    Dpdk,
}

/// One WAN attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// 1 to 15.
    pub id: u8,
    /// The network interface that it is; with DPDK, the one that the host has in its place.
    pub interface: String,
    /// How its datagrams are taken and given.
    pub port: LinkPort,
    /// What DPDK drives, if that is how.
    pub device: Option<Device>,
    /// Paths to remotes lead between links of the same group.
    pub group: u8,
    /// Traffic costs money.
    pub metered: bool,
    /// Nobody can call it.
    pub behind_nat: bool,
    /// Where remotes can call it. None: at its interface's own addresses.
    pub endpoint: Option<SocketAddr>,
    /// Of paths that are good enough, those over the links of the lowest cost are used.
    pub cost: u16,
    /// What it carries away from the site, bits per second; 0: not known.
    pub rate_up: u64,
    /// What it carries towards the site, bits per second; 0: not known.
    pub rate_down: u64,
}

/// A peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// What messages call it.
    pub name: Option<String>,
    /// Its public key.
    pub public_key: [u8; 32],
    /// A pre-shared key comes beside the blob.
    pub has_psk: bool,
    /// It is a site of our own.
    pub is_remote: bool,
    /// Where it is. None: it calls us.
    pub endpoint: Option<SocketAddr>,
    /// How often to send something, seconds. None: what is usual for such a peer.
    pub keepalive: Option<u16>,
    /// Whom to ping through the tunnel, so as to know by which link the peer is reached. None of a remote.
    pub ping: Option<Ping>,
    /// The networks behind it.
    pub allowed_ips: Vec<Prefix>,
}

/// A ping through the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ping {
    /// Somebody behind the peer.
    pub address: IpAddr,
    /// How often, milliseconds: [`PING_MIN_MS`] to [`PING_MAX_MS`].
    pub interval_ms: u16,
}

/// What stands behind a LAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LanPort {
    /// The host, behind the TUN.
    Tun,
    /// An Ethernet interface, by AF_XDP where that can be had and packet sockets elsewhere.
    Any,
    /// An Ethernet interface, by AF_XDP.
    AfXdp,
    /// An Ethernet interface, by packet sockets.
    AfPacket,
    /// A NIC that DPDK drives.
    Dpdk,
}

/// Something on the inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lan {
    /// What messages call it.
    pub name: String,
    /// How its packets are taken and given.
    pub port: LanPort,
    /// The Ethernet interface that it is, with DPDK the one that the host has in its place; none for the TUN.
    pub interface: Option<String>,
    /// What DPDK drives, if that is how.
    pub device: Option<Device>,
    /// The networks that are there.
    pub networks: Vec<Prefix>,
    /// Who is known to be there, at which Ethernet address.
    pub neighbours: Vec<(IpAddr, [u8; 6])>,
}

/// Where packets go next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// To the peer in this place.
    Peer(u32),
    /// To the host, behind the TUN.
    Host,
    /// To the neighbour with this address on the LAN in this place, which is Ethernet.
    Neighbour(u16, IpAddr),
    /// Nowhere.
    Discard,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where packets are going.
    pub prefix: Prefix,
    /// Where they go next: each flow by one of these, 1 to [`HOPS_MAX`].
    pub hops: Vec<Hop>,
}

/// What becomes of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// It goes where the routes say.
    Route,
    /// It goes nowhere.
    Drop,
    /// It goes by one of these, 1 to [`HOPS_MAX`], whatever the routes say.
    Via(Vec<Hop>),
}

/// Which flows, and what becomes of them. What is none is not asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What messages call it.
    pub name: Option<String>,
    /// Source addresses.
    pub src: Option<Prefix>,
    /// Destination addresses.
    pub dst: Option<Prefix>,
    /// IP protocol.
    pub protocol: Option<u8>,
    /// Source ports of UDP or TCP.
    pub src_ports: Option<RangeInclusive<u16>>,
    /// Destination ports of UDP or TCP.
    pub dst_ports: Option<RangeInclusive<u16>>,
    /// Bit n: DSCP n (RFC 2474).
    pub dscps: Option<u64>,
    /// What becomes of them.
    pub action: Action,
    /// What they need of a path, by its place among the classes.
    pub class: u8,
}

/// How the flows of a class use the paths to a remote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Each flow by one path, which it leaves in a pause between its packets.
    #[default]
    Pinned,
    /// All flows by the first path that is good enough.
    ActiveBackup,
    /// The same, and the first is the one with the shortest round trip.
    LowestLatency,
    /// Flows in proportion to the weights of the paths.
    Weighted,
    /// Each packet by two paths; the second to arrive is thrown away.
    Duplicate,
}

/// Which packets of a class stay together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sticky {
    /// Those of a flow.
    #[default]
    Flow,
    /// Those of a source: of an address of IPv4, or of 64 bits of one of IPv6.
    Source,
}

/// What DSCP (RFC 2474) the datagrams of a class have on the outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OuterDscp {
    /// 0.
    #[default]
    None,
    /// The packet's own.
    Copy,
    /// This one, 0 to 63.
    Set(u8),
}

/// What a kind of traffic needs of a path. What is none is not asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// What messages call it.
    pub name: String,
    /// How its flows use the paths.
    pub mode: Mode,
    /// Round trip at most, microseconds, 1 to [`LIMIT_MAX_US`].
    pub latency_us: Option<u32>,
    /// Variation of the delay at most, microseconds, 1 to [`LIMIT_MAX_US`].
    pub jitter_us: Option<u32>,
    /// Lost packets at most, each way, parts per million.
    pub loss_ppm: Option<u32>,
    /// How long a path that was left has to be good before flows go back, milliseconds, up to [`HOLD_MAX_MS`].
    pub hold_ms: u32,
    /// Which packets stay together.
    pub sticky: Sticky,
    /// DSCP of its datagrams.
    pub dscp: OuterDscp,
}

/// How paths are probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probing {
    /// How often one that carries something, microseconds: [`PROBE_INTERVAL_US`].
    pub interval_us: u32,
    /// How often one that does not, microseconds: not more often than that, and at least every [`PROBE_IDLE_MAX_US`].
    pub idle_us: u32,
    /// Probes of the engine in a second at most: [`PROBE_RATE`].
    pub rate: u32,
}

impl Class {
    /// What the first class is called.
    pub const DEFAULT: &str = "default";
}

/// The first class, unless somebody says otherwise of it.
impl Default for Class {
    fn default() -> Class {
        Class {
            name: Class::DEFAULT.into(),
            mode: Mode::Pinned,
            latency_us: None,
            jitter_us: None,
            loss_ppm: None,
            hold_ms: 30_000,
            sticky: Sticky::Flow,
            dscp: OuterDscp::None,
        }
    }
}

impl Default for Probing {
    fn default() -> Probing {
        Probing {
            interval_us: 50_000,
            idle_us: 1_000_000,
            rate: 20_000,
        }
    }
}

impl Lan {
    /// Whether it is an Ethernet interface; otherwise it is the TUN.
    pub fn is_ethernet(&self) -> bool {
        self.port != LanPort::Tun
    }
}

impl Site {
    /// Whether there is anything to route by, so that workers need a router.
    pub fn routes_packets(&self) -> bool {
        let mut lans = self.lans.iter();
        lans.any(|lan| lan.is_ethernet() || !lan.networks.is_empty())
            || !self.routes.is_empty()
            || !self.policies.is_empty()
    }

    /// Whether some peers are sites of our own.
    pub fn has_remotes(&self) -> bool {
        self.peers.iter().any(|peer| peer.is_remote)
    }

    /// Secrets that go beside the blob: the private key, and those shared with peers.
    pub fn secrets(&self) -> usize {
        1 + self.peers.iter().filter(|peer| peer.has_psk).count()
    }

    /// How many there are of what has a limit.
    fn counts(&self) -> [usize; LIMITS.len()] {
        let (peers, lans) = (self.peers.iter(), self.lans.iter());
        [
            self.engine.cores.len(),
            self.links.len(),
            self.peers.len(),
            peers.map(|peer| peer.allowed_ips.len()).sum(),
            self.lans.len(),
            lans.clone().map(|lan| lan.networks.len()).sum(),
            lans.map(|lan| lan.neighbours.len()).sum(),
            self.routes.len(),
            self.policies.len(),
            self.classes.len(),
            self.host.addresses.len(),
        ]
    }

    /// Checks what no layout shows: limits, names, and that everything that is named is there. Holds for what is encoded and for what is
    /// decoded.
    pub(crate) fn check(&self) -> Result<(), BlobError> {
        self.check_engine()
            .map_err(|why| BlobError::value("engine", 0, why))?;
        self.dpdk
            .check()
            .map_err(|why| BlobError::value("DPDK", 0, why))?;
        check_counts(&self.counts())?;
        each("link", &self.links, Link::check)?;
        once("link", self.links.iter().map(|link| link.id))?;
        each("peer", &self.peers, Peer::check)?;
        once("peer", self.peers.iter().map(|peer| peer.public_key))?;
        if let Some(at) = self.peers.iter().position(|peer| peer.is_remote)
            && self.links.is_empty()
        {
            return Err(BlobError::value(
                "peer",
                at,
                "a remote, which is reached over links, and there is none",
            ));
        }
        each("LAN", &self.lans, Lan::check)?;
        let tuns = self.lans.iter().filter(|lan| !lan.is_ethernet()).count();
        most("TUNs among the LANs", tuns, 1)?;
        most("LANs beside the TUN", self.lans.len() - tuns, LANS_MAX - 1)?;
        once("interface", self.interfaces())?;
        once("device", self.devices().map(|device| device.key()))?;
        self.probing
            .check()
            .map_err(|why| BlobError::value("probing", 0, why))?;
        each("class", &self.classes, Class::check)?;
        once("class", self.classes.iter().map(|class| &class.name))?;
        if self
            .classes
            .first()
            .is_none_or(|class| class.name != Class::DEFAULT)
        {
            return Err(BlobError::value("class", 0, "the first is called `default`"));
        }
        each("address", &self.host.addresses, |address| {
            address.network().map(drop).ok_or("more bits than an address has")
        })?;
        once("address", self.host.addresses.iter().map(|address| address.addr))?;
        if self.host.mtu.is_some_and(|mtu| !TUN_MTU.contains(&mtu)) {
            return Err(BlobError::value("TUN", 0, "its longest packet"));
        }
        each("route", &self.routes, |route| self.check_hops(&route.hops))?;
        each("policy", &self.policies, |policy| self.check_policy(policy))
    }

    /// The names of interfaces: the TUN's, the links', the LANs'.
    fn interfaces(&self) -> impl Iterator<Item = &str> {
        let links = self.links.iter().map(|link| link.interface.as_str());
        let lans = self.lans.iter().filter_map(|lan| lan.interface.as_deref());
        core::iter::once(self.engine.interface.as_str())
            .chain(links)
            .chain(lans)
    }

    /// What DPDK drives: the links', then the LANs'.
    pub fn devices(&self) -> impl Iterator<Item = &Device> {
        let links = self.links.iter().filter_map(|link| link.device.as_ref());
        links.chain(self.lans.iter().filter_map(|lan| lan.device.as_ref()))
    }

    fn check_engine(&self) -> Result<(), &'static str> {
        let engine = &self.engine;
        check_interface(&engine.interface)?;
        check_name(engine.aead.as_deref())?;
        if !(1..=WORKERS_MAX).contains(&usize::from(engine.workers)) {
            return Err("the number of workers");
        }
        if engine.spin_ms > SPIN_MAX_MS {
            return Err("how long a worker looks for work");
        }
        if !(FLOWS_MIN..=FLOWS_MAX).contains(&(engine.flows as usize)) {
            return Err("the number of flows");
        }
        if !(ROUTES_MIN..=ROUTES_MAX).contains(&(engine.routes as usize)) {
            return Err("the number of prefixes");
        }
        Ok(())
    }

    fn check_policy(&self, policy: &Policy) -> Result<(), &'static str> {
        check_name(policy.name.as_deref())?;
        for ports in [&policy.src_ports, &policy.dst_ports] {
            if ports.as_ref().is_some_and(RangeInclusive::is_empty) {
                return Err("a range of UDP or TCP ports that ends before it begins");
            }
        }
        if policy.dscps == Some(0) {
            return Err("no DSCP at all");
        }
        if usize::from(policy.class) >= self.classes.len() {
            return Err("a class that is not there");
        }
        match &policy.action {
            Action::Via(hops) => self.check_hops(hops),
            Action::Route | Action::Drop => Ok(()),
        }
    }

    fn check_hops(&self, hops: &[Hop]) -> Result<(), &'static str> {
        if hops.is_empty() || hops.len() > HOPS_MAX {
            return Err("no next hop, or more than 64");
        }
        let is_there = |hop: &Hop| match hop {
            Hop::Peer(peer) => (*peer as usize) < self.peers.len(),
            Hop::Neighbour(lan, _) => {
                let lan = self.lans.get(usize::from(*lan));
                lan.is_some_and(Lan::is_ethernet)
            }
            Hop::Host | Hop::Discard => true,
        };
        if hops.iter().all(is_there) {
            Ok(())
        } else {
            Err("a next hop that is not there")
        }
    }
}

impl Link {
    fn check(&self) -> Result<(), &'static str> {
        if !(1..=LINKS_MAX).contains(&usize::from(self.id)) {
            return Err("an id that is not 1 to 15");
        }
        check_endpoint(self.endpoint)?;
        check_interface(&self.interface)?;
        check_device(self.device.as_ref(), self.port == LinkPort::Dpdk)
    }
}

impl Class {
    fn check(&self) -> Result<(), &'static str> {
        check_name(Some(&self.name))?;
        let within = |limit: Option<u32>| limit.is_none_or(|limit| (1..=LIMIT_MAX_US).contains(&limit));
        if !within(self.latency_us) || !within(self.jitter_us) {
            return Err("a limit that is not 1 microsecond to a minute");
        }
        if self.loss_ppm.is_some_and(|loss| loss > LOSS_MAX_PPM) {
            return Err("a loss of more than everything");
        }
        if self.hold_ms > HOLD_MAX_MS {
            return Err("flows that keep away for more than a day");
        }
        match self.dscp {
            OuterDscp::Set(64..) => Err("a DSCP of more than 63"),
            _ => Ok(()),
        }
    }
}

impl Probing {
    fn check(&self) -> Result<(), &'static str> {
        if !PROBE_INTERVAL_US.contains(&self.interval_us) {
            return Err("an interval that is not 5 ms to 1 s");
        }
        if !(self.interval_us..=PROBE_IDLE_MAX_US).contains(&self.idle_us) {
            return Err("an interval of idle paths that is shorter than that of others, or longer than 10 s");
        }
        if !PROBE_RATE.contains(&self.rate) {
            return Err("a rate that is not 100 to 1,000,000 a second");
        }
        Ok(())
    }
}

impl Peer {
    fn check(&self) -> Result<(), &'static str> {
        if self.keepalive == Some(0) {
            return Err("a keepalive every 0 seconds");
        }
        match self.ping {
            Some(_) if self.is_remote => return Err("pings to a remote, of which there are probes"),
            Some(ping) if !(PING_MIN_MS..=PING_MAX_MS).contains(&ping.interval_ms) => {
                return Err("how often it is pinged");
            }
            _ => {}
        }
        check_endpoint(self.endpoint)?;
        check_name(self.name.as_deref())
    }
}

impl Lan {
    fn check(&self) -> Result<(), &'static str> {
        check_name(Some(&self.name))?;
        match &self.interface {
            Some(interface) if self.is_ethernet() => check_interface(interface)?,
            None if !self.is_ethernet() => {}
            _ => return Err("an Ethernet LAN has an interface, the TUN has none of its own"),
        }
        check_device(self.device.as_ref(), self.port == LanPort::Dpdk)?;
        if !self.is_ethernet() && !self.neighbours.is_empty() {
            return Err("neighbours of the TUN");
        }
        // The lowest bit of the first octet says that it is of several stations.
        let of_one = |mac: &[u8; 6]| mac[0] & 1 == 0 && *mac != [0; 6];
        if self.neighbours.iter().all(|(_, mac)| of_one(mac)) {
            Ok(())
        } else {
            Err("a neighbour with the Ethernet address of no single station")
        }
    }
}

fn each<T>(
    what: &'static str,
    all: &[T],
    check: impl Fn(&T) -> Result<(), &'static str>,
) -> Result<(), BlobError> {
    let mut all = all.iter().enumerate();
    all.try_for_each(|(at, one)| check(one).map_err(|why| BlobError::value(what, at, why)))
}

/// Refuses the second of two equal values.
fn once<T: Ord>(what: &'static str, values: impl Iterator<Item = T>) -> Result<(), BlobError> {
    let mut seen = BTreeSet::new();
    for (at, value) in values.enumerate() {
        if !seen.insert(value) {
            return Err(BlobError::value(what, at, "stands there twice"));
        }
    }
    Ok(())
}

/// What has a limit, in the order of the blob's sections.
pub(crate) const LIMITS: [(&str, usize); 11] = [
    ("cores", WORKERS_MAX),
    ("links", LINKS_MAX),
    ("peers", PEERS_MAX),
    ("allowed-ips", ALLOWED_IPS_MAX),
    ("LANs", LANS_MAX),
    ("networks of LANs", LAN_ENTRIES_MAX),
    ("neighbours", LAN_ENTRIES_MAX),
    ("routes", ROUTES_MAX),
    ("policies", POLICIES_MAX),
    ("classes", CLASSES_MAX),
    ("addresses", ADDRESSES_MAX),
];

/// Refuses more than there may be of anything.
pub(crate) fn check_counts(counts: &[usize]) -> Result<(), BlobError> {
    let mut all = counts.iter().zip(LIMITS);
    all.try_for_each(|(count, (what, limit))| most(what, *count, limit))
}

fn most(what: &'static str, count: usize, limit: usize) -> Result<(), BlobError> {
    if count > limit {
        return Err(BlobError::TooMany { what, count, limit });
    }
    Ok(())
}

fn check_endpoint(endpoint: Option<SocketAddr>) -> Result<(), &'static str> {
    match endpoint {
        Some(at) if at.port() == 0 || at.ip().is_unspecified() || at.ip().is_multicast() => {
            Err("an endpoint at which nobody can be")
        }
        _ => Ok(()),
    }
}

/// Names end up in messages, on terminals.
fn check_name(name: Option<&str>) -> Result<(), &'static str> {
    let Some(name) = name else { return Ok(()) };
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(plain) {
        Ok(())
    } else {
        Err("a name that is not 1 to 63 letters, digits, `-`, `_` and `.`")
    }
}

fn check_interface(name: &str) -> Result<(), &'static str> {
    let plain = |b: u8| b.is_ascii_graphic() && b != b'/' && b != b':';
    let fits = (1..=INTERFACE_MAX).contains(&name.len()) && name != "." && name != "..";
    if fits && name.bytes().all(plain) {
        Ok(())
    } else {
        Err("a name that no interface has")
    }
}
