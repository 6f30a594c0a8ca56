//! From values to bytes and back.
//!
//! [`encode`] and [`decode`] check the same things, one before and the other after: what cannot be decoded is never made. A site has one
//! blob, and [`decode`] takes no other bytes for it, so that two that differ are two sites (or generations).

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::net::{IpAddr, SocketAddr, SocketAddrV6};
use core::ops::RangeInclusive;

use blake2::{Blake2s256, Digest};
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, IntoBytes};

use crate::ABI_VERSION;
use crate::prefix::Prefix;
use crate::record::*;
use crate::site::*;

/// Bytes of a blob at most.
pub const BLOB_MAX: usize = 128 << 20;

/// Bytes of a blob's beginning, which who publishes one writes last.
pub const HEADER_LEN: usize = size_of::<Header>();

/// Where in it the length of the blob stands, 8 bytes.
pub const LENGTH_AT: usize = core::mem::offset_of!(Header, len);

/// Where what the CRC covers begins.
const COVERED: usize = 16;

/// Why bytes are not taken for a site, or a site does not become bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlobError {
    /// Shorter or longer than it says, or than any can be.
    Length(usize),
    /// Does not begin as a blob does.
    Magic,
    /// Of another version of the layout: this one.
    Abi(u32),
    /// Torn or damaged: the check sum is another.
    Crc,
    /// More than there may be.
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        limit: usize,
    },
    /// A value that has no meaning.
    Value {
        /// Of what.
        what: &'static str,
        /// Its place among its like.
        at: usize,
        /// What is wrong.
        why: &'static str,
    },
}

impl BlobError {
    pub(crate) fn value(what: &'static str, at: usize, why: &'static str) -> BlobError {
        BlobError::Value { what, at, why }
    }
}

impl fmt::Display for BlobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BlobError::Length(len) => write!(f, "{len} bytes, which is not what the site has"),
            BlobError::Magic => f.write_str("not a site"),
            BlobError::Abi(abi) => write!(
                f,
                "made for version {abi} of the layout, and this is {ABI_VERSION}: engine and control have to be of the same release"
            ),
            BlobError::Crc => f.write_str("torn or damaged: the check sum is wrong"),
            BlobError::TooMany { what, count, limit } => {
                write!(f, "{count} {what}, at most {limit} are possible")
            }
            BlobError::Value { what, at, why } => write!(f, "{what} {at}: {why}"),
        }
    }
}

impl core::error::Error for BlobError {}

/// The sections of a blob that is being made.
#[derive(Default)]
struct Writer {
    cores: Vec<U16>,
    links: Vec<LinkRecord>,
    peers: Vec<PeerRecord>,
    allowed_ips: Vec<PrefixRecord>,
    lans: Vec<LanRecord>,
    networks: Vec<PrefixRecord>,
    neighbours: Vec<NeighbourRecord>,
    routes: Vec<RouteRecord>,
    policies: Vec<PolicyRecord>,
    classes: Vec<ClassRecord>,
    addresses: Vec<AddressRecord>,
    hops: Vec<HopRecord>,
    text: Vec<u8>,
}

/// The blob of `site`, the `generation`th that is made.
pub fn encode(site: &Site, generation: u64) -> Result<Vec<u8>, BlobError> {
    site.check()?;
    let mut to = Writer::default();
    let engine = &site.engine;
    let header = SiteRecord {
        fwmark: site.fwmark.into(),
        spin_ms: engine.spin_ms.into(),
        flows: engine.flows.into(),
        routes: engine.routes.into(),
        dpdk_memory: site.dpdk.memory_mib.into(),
        dpdk_huge_page: site.dpdk.huge_page_mib.unwrap_or(0).into(),
        probe_interval: site.probing.interval_us.into(),
        probe_idle: site.probing.idle_us.into(),
        probe_rate: site.probing.rate.into(),
        listen_port: site.listen_port.into(),
        workers: engine.workers.into(),
        tun_mtu: site.host.mtu.unwrap_or(0).into(),
        flags: u8::from(engine.offload)
            | u8::from(!site.dpdk.huge_pages) << 1
            | u8::from(site.host.routes) << 2,
        interface: to.text(&engine.interface),
        aead: to.text_of(engine.aead.as_ref()),
        zero: 0,
    };
    to.cores = engine.cores.iter().map(|core| U16::new(*core)).collect();
    site.links.iter().for_each(|link| to.link(link));
    site.peers.iter().for_each(|peer| to.peer(peer));
    site.lans.iter().for_each(|lan| to.lan(lan));
    site.routes.iter().for_each(|route| to.route(route));
    site.policies.iter().for_each(|policy| to.policy(policy));
    site.classes.iter().for_each(|class| to.class(class));
    let addresses = site.host.addresses.iter().map(|address| AddressRecord {
        addr: AddrRecord::of(Some(address.addr)),
        len: address.len,
    });
    to.addresses = addresses.collect();
    to.finish(header, generation)
}

impl Writer {
    fn finish(self, site: SiteRecord, generation: u64) -> Result<Vec<u8>, BlobError> {
        let sections: [&[u8]; SECTIONS] = [
            self.cores.as_bytes(),
            self.links.as_bytes(),
            self.peers.as_bytes(),
            self.allowed_ips.as_bytes(),
            self.lans.as_bytes(),
            self.networks.as_bytes(),
            self.neighbours.as_bytes(),
            self.routes.as_bytes(),
            self.policies.as_bytes(),
            self.classes.as_bytes(),
            self.addresses.as_bytes(),
            self.hops.as_bytes(),
            &self.text,
        ];
        let counts = [
            self.cores.len(),
            self.links.len(),
            self.peers.len(),
            self.allowed_ips.len(),
            self.lans.len(),
            self.networks.len(),
            self.neighbours.len(),
            self.routes.len(),
            self.policies.len(),
            self.classes.len(),
            self.addresses.len(),
            self.hops.len(),
            self.text.len(),
        ];
        let len = size_of::<Header>() + sections.iter().map(|section| section.len()).sum::<usize>();
        if len > BLOB_MAX {
            return Err(BlobError::Length(len));
        }
        let header = Header {
            magic: MAGIC,
            abi: ABI_VERSION.into(),
            crc: 0.into(),
            len: (len as u64).into(),
            generation: generation.into(),
            site,
            counts: counts.map(|count| U32::new(count as u32)),
        };
        let mut blob = Vec::with_capacity(len);
        blob.extend_from_slice(header.as_bytes());
        sections
            .iter()
            .for_each(|section| blob.extend_from_slice(section));
        seal(&mut blob);
        Ok(blob)
    }

    fn text(&mut self, text: &str) -> u8 {
        self.text.extend_from_slice(text.as_bytes());
        text.len() as u8
    }

    fn text_of(&mut self, text: Option<&String>) -> u8 {
        text.map_or(0, |text| self.text(text))
    }

    fn link(&mut self, link: &Link) {
        let record = LinkRecord {
            endpoint: EndpointRecord::of(link.endpoint),
            id: link.id,
            group: link.group,
            port: match link.port {
                LinkPort::Udp => 0,
                LinkPort::AfXdp => 1,
                LinkPort::Dpdk => 2,
            },
            flags: u8::from(link.metered) | u8::from(link.behind_nat) << 1,
            interface: self.text(&link.interface),
            device: self.text_of(link.device.as_ref().map(|device| &device.name)),
            mtu: mtu(&link.device),
            cost: link.cost.into(),
            rate_up: link.rate_up.into(),
            rate_down: link.rate_down.into(),
        };
        self.links.push(record);
    }

    fn peer(&mut self, peer: &Peer) {
        let record = PeerRecord {
            public_key: peer.public_key,
            endpoint: EndpointRecord::of(peer.endpoint),
            allowed_ips: (peer.allowed_ips.len() as u32).into(),
            keepalive: peer.keepalive.unwrap_or(0).into(),
            flags: u8::from(peer.is_remote) | u8::from(peer.has_psk) << 1,
            name: self.text_of(peer.name.as_ref()),
            ping: AddrRecord::of(peer.ping.map(|ping| ping.address)),
            zero: 0,
            ping_interval: peer.ping.map_or(0, |ping| ping.interval_ms).into(),
        };
        self.peers.push(record);
        let networks = peer.allowed_ips.iter().map(PrefixRecord::of);
        self.allowed_ips.extend(networks);
    }

    fn lan(&mut self, lan: &Lan) {
        let record = LanRecord {
            networks: (lan.networks.len() as u32).into(),
            neighbours: (lan.neighbours.len() as u32).into(),
            port: match lan.port {
                LanPort::Tun => 0,
                LanPort::Any => 1,
                LanPort::AfXdp => 2,
                LanPort::AfPacket => 3,
                LanPort::Dpdk => 4,
            },
            name: self.text(&lan.name),
            interface: self.text_of(lan.interface.as_ref()),
            device: self.text_of(lan.device.as_ref().map(|device| &device.name)),
            mtu: mtu(&lan.device),
            zero: [0; 2],
        };
        self.lans.push(record);
        self.networks.extend(lan.networks.iter().map(PrefixRecord::of));
        let neighbours = lan.neighbours.iter().map(|(addr, mac)| NeighbourRecord {
            addr: AddrRecord::of(Some(*addr)),
            mac: *mac,
            zero: 0,
        });
        self.neighbours.extend(neighbours);
    }

    fn hops(&mut self, hops: &[Hop]) -> u8 {
        self.hops.extend(hops.iter().map(HopRecord::of));
        hops.len() as u8
    }

    fn route(&mut self, route: &Route) {
        let record = RouteRecord {
            prefix: PrefixRecord::of(&route.prefix),
            hops: self.hops(&route.hops),
            zero: 0,
        };
        self.routes.push(record);
    }

    fn policy(&mut self, policy: &Policy) {
        let prefix = |prefix: &Option<Prefix>| prefix.as_ref().map_or(PrefixRecord::NONE, PrefixRecord::of);
        let ports = |ports: &Option<RangeInclusive<u16>>| {
            let ends = ports
                .as_ref()
                .map_or([0; 2], |ports| [*ports.start(), *ports.end()]);
            ends.map(U16::new)
        };
        let (action, hops) = match &policy.action {
            Action::Route => (0, 0),
            Action::Drop => (1, 0),
            Action::Via(hops) => (2, self.hops(hops)),
        };
        let record = PolicyRecord {
            src: prefix(&policy.src),
            dst: prefix(&policy.dst),
            src_ports: ports(&policy.src_ports),
            dst_ports: ports(&policy.dst_ports),
            dscps: policy.dscps.unwrap_or(0).into(),
            protocol: policy.protocol.unwrap_or(0),
            flags: u8::from(policy.protocol.is_some())
                | u8::from(policy.src_ports.is_some()) << 1
                | u8::from(policy.dst_ports.is_some()) << 2,
            action,
            hops,
            name: self.text_of(policy.name.as_ref()),
            class: policy.class,
            zero: [0; 2],
        };
        self.policies.push(record);
    }

    fn class(&mut self, class: &Class) {
        let limit = |limit: Option<u32>| U32::new(limit.unwrap_or(0));
        let record = ClassRecord {
            latency: limit(class.latency_us),
            jitter: limit(class.jitter_us),
            loss: limit(class.loss_ppm),
            hold: class.hold_ms.into(),
            mode: match class.mode {
                Mode::Pinned => 0,
                Mode::ActiveBackup => 1,
                Mode::LowestLatency => 2,
                Mode::Weighted => 3,
                Mode::Duplicate => 4,
            },
            flags: u8::from(class.latency_us.is_some())
                | u8::from(class.jitter_us.is_some()) << 1
                | u8::from(class.loss_ppm.is_some()) << 2
                | u8::from(class.sticky == Sticky::Source) << 3,
            dscp: match class.dscp {
                OuterDscp::None => 0,
                OuterDscp::Copy => 1,
                OuterDscp::Set(dscp) => 64 | dscp,
            },
            name: self.text(&class.name),
        };
        self.classes.push(record);
    }
}

/// A device's MTU; 0 without one.
fn mtu(device: &Option<Device>) -> U16 {
    device.as_ref().map_or(0, |device| device.mtu).into()
}

/// Writes the check sum into a blob. For those who make one, and for tests that damage one and want to be believed.
pub fn seal(blob: &mut [u8]) {
    let Some((head, covered)) = blob.split_at_mut_checked(COVERED) else {
        return;
    };
    head[COVERED - 4..].copy_from_slice(&crc32fast::hash(covered).to_le_bytes());
}

/// What tells the site of a blob from another one, whatever their generations: BLAKE2s-256 (RFC 7693) of the bytes behind the generation.
/// Of what is no blob, of no bytes.
pub fn content(blob: &[u8]) -> [u8; 32] {
    let behind = core::mem::offset_of!(Header, site);
    Blake2s256::digest(blob.get(behind..).unwrap_or_default()).into()
}

/// The sections of a blob, each less what has been taken from it.
struct Sections<'a> {
    cores: &'a [U16],
    links: &'a [LinkRecord],
    peers: &'a [PeerRecord],
    allowed_ips: &'a [PrefixRecord],
    lans: &'a [LanRecord],
    networks: &'a [PrefixRecord],
    neighbours: &'a [NeighbourRecord],
    routes: &'a [RouteRecord],
    policies: &'a [PolicyRecord],
    classes: &'a [ClassRecord],
    addresses: &'a [AddressRecord],
    hops: &'a [HopRecord],
    text: &'a [u8],
}

/// What is wrong with a record.
pub(crate) type Wrong = &'static str;

const MISSING: Wrong = "more belongs to it than is there";
pub(crate) const UNKNOWN: Wrong = "a value that this version does not know";

/// The site in these bytes and its generation, if they are the blob of one.
pub fn decode(blob: &[u8]) -> Result<(Site, u64), BlobError> {
    let length = || BlobError::Length(blob.len());
    let (header, mut rest) = Header::ref_from_prefix(blob).map_err(|_| length())?;
    if header.magic != MAGIC {
        return Err(BlobError::Magic);
    }
    if header.abi.get() != ABI_VERSION {
        return Err(BlobError::Abi(header.abi.get()));
    }
    if blob.len() > BLOB_MAX || header.len.get() != blob.len() as u64 {
        return Err(length());
    }
    if header.crc.get() != crc32fast::hash(&blob[COVERED..]) {
        return Err(BlobError::Crc);
    }
    let counts = header.counts.map(|count| count.get() as usize);
    // Before anything is made of records: that takes up to ten times their length.
    check_counts(&counts)?;
    let mut from = Sections::of(&mut rest, counts).ok_or_else(length)?;
    if !rest.is_empty() {
        return Err(length());
    }
    let site = from.site(&header.site)?;
    from.end()?;
    site.check()?;
    Ok((site, header.generation.get()))
}

/// The first `count` of what is left.
fn section<'a, T: Record>(rest: &mut &'a [u8], count: usize) -> Option<&'a [T]> {
    let (records, behind) = <[T]>::ref_from_prefix_with_elems(rest, count).ok()?;
    *rest = behind;
    Some(records)
}

/// Takes the first `count` records.
fn take<'a, T>(from: &mut &'a [T], count: usize) -> Result<&'a [T], Wrong> {
    let (taken, left) = from.split_at_checked(count).ok_or(MISSING)?;
    *from = left;
    Ok(taken)
}

/// Reads each record of a section.
fn all<T: Copy, V>(
    what: &'static str,
    records: &[T],
    mut read: impl FnMut(T) -> Result<V, Wrong>,
) -> Result<Vec<V>, BlobError> {
    let records = records.iter().enumerate();
    records
        .map(|(at, record)| read(*record).map_err(|why| BlobError::value(what, at, why)))
        .collect()
}

impl<'a> Sections<'a> {
    fn of(rest: &mut &'a [u8], counts: [usize; SECTIONS]) -> Option<Sections<'a>> {
        Some(Sections {
            cores: section(rest, counts[0])?,
            links: section(rest, counts[1])?,
            peers: section(rest, counts[2])?,
            allowed_ips: section(rest, counts[3])?,
            lans: section(rest, counts[4])?,
            networks: section(rest, counts[5])?,
            neighbours: section(rest, counts[6])?,
            routes: section(rest, counts[7])?,
            policies: section(rest, counts[8])?,
            classes: section(rest, counts[9])?,
            addresses: section(rest, counts[10])?,
            hops: section(rest, counts[11])?,
            text: section(rest, counts[12])?,
        })
    }

    /// Refuses what belongs to nothing.
    fn end(&self) -> Result<(), BlobError> {
        let left = [
            ("allowed-ips", self.allowed_ips.len()),
            ("networks of LANs", self.networks.len()),
            ("neighbours", self.neighbours.len()),
            ("next hops", self.hops.len()),
            ("bytes of text", self.text.len()),
        ];
        match left.into_iter().find(|(_, count)| *count > 0) {
            Some((what, count)) => Err(BlobError::TooMany {
                what,
                count,
                limit: 0,
            }),
            None => Ok(()),
        }
    }

    /// In the order in which the writer puts things into the text.
    fn site(&mut self, record: &SiteRecord) -> Result<Site, BlobError> {
        let engine = self.engine(record);
        let (links, peers, lans) = (self.links, self.peers, self.lans);
        let (routes, policies, classes) = (self.routes, self.policies, self.classes);
        Ok(Site {
            engine: engine.map_err(|why| BlobError::value("engine", 0, why))?,
            dpdk: Dpdk {
                memory_mib: record.dpdk_memory.get(),
                huge_pages: record.flags & 2 == 0,
                huge_page_mib: Some(record.dpdk_huge_page.get()).filter(|mib| *mib != 0),
            },
            listen_port: record.listen_port.get(),
            fwmark: record.fwmark.get(),
            links: all("link", links, |link| self.link(link))?,
            peers: all("peer", peers, |peer| self.peer(peer))?,
            lans: all("LAN", lans, |lan| self.lan(lan))?,
            routes: all("route", routes, |route| self.route(route))?,
            policies: all("policy", policies, |policy| self.policy(policy))?,
            classes: all("class", classes, |class| self.class(class))?,
            probing: Probing {
                interval_us: record.probe_interval.get(),
                idle_us: record.probe_idle.get(),
                rate: record.probe_rate.get(),
            },
            host: self.host(record)?,
        })
    }

    fn engine(&mut self, record: &SiteRecord) -> Result<Engine, Wrong> {
        let interface = self.text(record.interface)?;
        let [offload, _no_huge_pages, _routes] = bits(record.flags)?;
        zero(&[record.zero])?;
        Ok(Engine {
            interface,
            workers: record.workers.get(),
            cores: self.cores.iter().map(|core| core.get()).collect(),
            spin_ms: record.spin_ms.get(),
            aead: self.text_if(record.aead)?,
            offload,
            flows: record.flows.get(),
            routes: record.routes.get(),
        })
    }

    fn host(&self, record: &SiteRecord) -> Result<Host, BlobError> {
        let address = |record: AddressRecord| {
            Ok(HostAddress {
                addr: record.addr.read()?.ok_or(MISSING)?,
                len: record.len,
            })
        };
        Ok(Host {
            addresses: all("address", self.addresses, address)?,
            mtu: Some(record.tun_mtu.get()).filter(|mtu| *mtu != 0),
            routes: record.flags & 4 != 0,
        })
    }

    fn text(&mut self, len: u8) -> Result<String, Wrong> {
        let bytes = take(&mut self.text, len.into())?;
        String::from_utf8(bytes.into()).map_err(|_| "text that is not UTF-8")
    }

    fn text_if(&mut self, len: u8) -> Result<Option<String>, Wrong> {
        Ok(Some(self.text(len)?).filter(|text| !text.is_empty()))
    }

    fn device(&mut self, name: u8, mtu: U16) -> Result<Option<Device>, Wrong> {
        match (self.text_if(name)?, mtu.get()) {
            (Some(name), mtu) => Ok(Some(Device { name, mtu })),
            (None, 0) => Ok(None),
            (None, _) => Err(UNKNOWN),
        }
    }

    fn link(&mut self, record: LinkRecord) -> Result<Link, Wrong> {
        let [metered, behind_nat] = bits(record.flags)?;
        Ok(Link {
            id: record.id,
            interface: self.text(record.interface)?,
            port: match record.port {
                0 => LinkPort::Udp,
                1 => LinkPort::AfXdp,
                2 => LinkPort::Dpdk,
                _ => return Err(UNKNOWN),
            },
            device: self.device(record.device, record.mtu)?,
            group: record.group,
            metered,
            behind_nat,
            endpoint: record.endpoint.read()?,
            cost: record.cost.get(),
            rate_up: record.rate_up.get(),
            rate_down: record.rate_down.get(),
        })
    }

    fn peer(&mut self, record: PeerRecord) -> Result<Peer, Wrong> {
        let [is_remote, has_psk] = bits(record.flags)?;
        zero(&[record.zero])?;
        let allowed_ips = take(&mut self.allowed_ips, record.allowed_ips.get() as usize)?;
        Ok(Peer {
            name: self.text_if(record.name)?,
            public_key: record.public_key,
            has_psk,
            is_remote,
            endpoint: record.endpoint.read()?,
            keepalive: Some(record.keepalive.get()).filter(|seconds| *seconds != 0),
            ping: match (record.ping.read()?, record.ping_interval.get()) {
                (Some(address), interval_ms) => Some(Ping { address, interval_ms }),
                (None, 0) => None,
                (None, _) => return Err(UNKNOWN),
            },
            allowed_ips: prefixes(allowed_ips)?,
        })
    }

    fn lan(&mut self, record: LanRecord) -> Result<Lan, Wrong> {
        zero(&record.zero)?;
        let networks = take(&mut self.networks, record.networks.get() as usize)?;
        let neighbours = take(&mut self.neighbours, record.neighbours.get() as usize)?;
        let neighbour = |record: &NeighbourRecord| {
            zero(&[record.zero])?;
            Ok((record.addr.read()?.ok_or(MISSING)?, record.mac))
        };
        Ok(Lan {
            name: self.text(record.name)?,
            port: match record.port {
                0 => LanPort::Tun,
                1 => LanPort::Any,
                2 => LanPort::AfXdp,
                3 => LanPort::AfPacket,
                4 => LanPort::Dpdk,
                _ => return Err(UNKNOWN),
            },
            interface: self.text_if(record.interface)?,
            device: self.device(record.device, record.mtu)?,
            networks: prefixes(networks)?,
            neighbours: neighbours.iter().map(neighbour).collect::<Result<_, Wrong>>()?,
        })
    }

    fn hops(&mut self, count: u8) -> Result<Vec<Hop>, Wrong> {
        let hops = take(&mut self.hops, count.into())?;
        hops.iter().map(HopRecord::read).collect()
    }

    fn route(&mut self, record: RouteRecord) -> Result<Route, Wrong> {
        zero(&[record.zero])?;
        Ok(Route {
            prefix: record.prefix.read()?.ok_or(MISSING)?,
            hops: self.hops(record.hops)?,
        })
    }

    fn policy(&mut self, record: PolicyRecord) -> Result<Policy, Wrong> {
        let [protocol, src_ports, dst_ports] = bits(record.flags)?;
        zero(&record.zero)?;
        let action = match (record.action, self.hops(record.hops)?) {
            (0, hops) if hops.is_empty() => Action::Route,
            (1, hops) if hops.is_empty() => Action::Drop,
            (2, hops) => Action::Via(hops),
            _ => return Err(UNKNOWN),
        };
        let ports = |is_asked: bool, ends: [U16; 2]| match (is_asked, ends.map(U16::get)) {
            (true, [first, last]) => Ok(Some(first..=last)),
            (false, [0, 0]) => Ok(None),
            (false, _) => Err(UNKNOWN),
        };
        if !protocol {
            zero(&[record.protocol])?;
        }
        Ok(Policy {
            name: self.text_if(record.name)?,
            src: record.src.read()?,
            dst: record.dst.read()?,
            protocol: protocol.then_some(record.protocol),
            src_ports: ports(src_ports, record.src_ports)?,
            dst_ports: ports(dst_ports, record.dst_ports)?,
            dscps: Some(record.dscps.get()).filter(|dscps| *dscps != 0),
            action,
            class: record.class,
        })
    }

    fn class(&mut self, record: ClassRecord) -> Result<Class, Wrong> {
        let [latency, jitter, loss, source] = bits(record.flags)?;
        let limit = |is_asked: bool, limit: U32| match (is_asked, limit.get()) {
            (true, limit) => Ok(Some(limit)),
            (false, 0) => Ok(None),
            (false, _) => Err(UNKNOWN),
        };
        Ok(Class {
            name: self.text(record.name)?,
            mode: match record.mode {
                0 => Mode::Pinned,
                1 => Mode::ActiveBackup,
                2 => Mode::LowestLatency,
                3 => Mode::Weighted,
                4 => Mode::Duplicate,
                _ => return Err(UNKNOWN),
            },
            latency_us: limit(latency, record.latency)?,
            jitter_us: limit(jitter, record.jitter)?,
            loss_ppm: limit(loss, record.loss)?,
            hold_ms: record.hold.get(),
            sticky: if source { Sticky::Source } else { Sticky::Flow },
            dscp: match record.dscp {
                0 => OuterDscp::None,
                1 => OuterDscp::Copy,
                dscp @ 64..128 => OuterDscp::Set(dscp - 64),
                _ => return Err(UNKNOWN),
            },
        })
    }
}

/// The lowest bits, of which no others may be set.
fn bits<const N: usize>(flags: u8) -> Result<[bool; N], Wrong> {
    if flags >> N != 0 {
        return Err(UNKNOWN);
    }
    Ok(core::array::from_fn(|bit| flags >> bit & 1 != 0))
}

pub(crate) fn zero(unused: &[u8]) -> Result<(), Wrong> {
    if unused.iter().any(|byte| *byte != 0) {
        return Err(UNKNOWN);
    }
    Ok(())
}

fn prefixes(records: &[PrefixRecord]) -> Result<Vec<Prefix>, Wrong> {
    let read = |record: &PrefixRecord| record.read()?.ok_or(MISSING);
    records.iter().map(read).collect()
}

impl AddrRecord {
    pub(crate) fn of(addr: Option<IpAddr>) -> AddrRecord {
        let mut bytes = [0; 16];
        let family = match addr {
            None => 0,
            Some(IpAddr::V4(ip)) => {
                bytes[..4].copy_from_slice(&ip.octets());
                4
            }
            Some(IpAddr::V6(ip)) => {
                bytes = ip.octets();
                6
            }
        };
        AddrRecord { family, bytes }
    }

    pub(crate) fn read(&self) -> Result<Option<IpAddr>, Wrong> {
        let (v4, behind) = self.bytes.split_first_chunk::<4>().expect("16 bytes");
        match self.family {
            0 => zero(&self.bytes).map(|()| None),
            4 => zero(behind).map(|()| Some((*v4).into())),
            6 => Ok(Some(self.bytes.into())),
            _ => Err(UNKNOWN),
        }
    }
}

impl PrefixRecord {
    pub(crate) const NONE: PrefixRecord = PrefixRecord {
        addr: AddrRecord {
            family: 0,
            bytes: [0; 16],
        },
        len: 0,
    };

    pub(crate) fn of(prefix: &Prefix) -> PrefixRecord {
        PrefixRecord {
            addr: AddrRecord::of(Some(prefix.addr())),
            len: prefix.cidr(),
        }
    }

    pub(crate) fn read(&self) -> Result<Option<Prefix>, Wrong> {
        let Some(addr) = self.addr.read()? else {
            return zero(&[self.len]).map(|()| None);
        };
        let prefix = Prefix::new(addr, self.len).ok_or("a prefix that is longer than an address")?;
        if prefix.addr() == addr {
            Ok(Some(prefix))
        } else {
            Err("a network with bits set behind the prefix")
        }
    }
}

impl EndpointRecord {
    fn of(endpoint: Option<SocketAddr>) -> EndpointRecord {
        let scope = match endpoint {
            Some(SocketAddr::V6(at)) => at.scope_id(),
            _ => 0,
        };
        EndpointRecord {
            addr: AddrRecord::of(endpoint.map(|at| at.ip())),
            zero: 0,
            port: endpoint.map_or(0, |at| at.port()).into(),
            scope: scope.into(),
        }
    }

    fn read(&self) -> Result<Option<SocketAddr>, Wrong> {
        zero(&[self.zero])?;
        let (port, scope) = (self.port.get(), self.scope.get());
        match self.addr.read()? {
            None if port == 0 && scope == 0 => Ok(None),
            Some(IpAddr::V4(ip)) if scope == 0 => Ok(Some((ip, port).into())),
            Some(IpAddr::V6(ip)) => Ok(Some(SocketAddrV6::new(ip, port, 0, scope).into())),
            _ => Err(UNKNOWN),
        }
    }
}

impl HopRecord {
    fn of(hop: &Hop) -> HopRecord {
        let (kind, peer, lan, addr) = match *hop {
            Hop::Discard => (0, 0, 0, None),
            Hop::Peer(peer) => (1, peer, 0, None),
            Hop::Host => (2, 0, 0, None),
            Hop::Neighbour(lan, addr) => (3, 0, lan, Some(addr)),
        };
        HopRecord {
            peer: peer.into(),
            lan: lan.into(),
            kind,
            addr: AddrRecord::of(addr),
        }
    }

    fn read(&self) -> Result<Hop, Wrong> {
        match (self.kind, self.peer.get(), self.lan.get(), self.addr.read()?) {
            (0, 0, 0, None) => Ok(Hop::Discard),
            (1, peer, 0, None) => Ok(Hop::Peer(peer)),
            (2, 0, 0, None) => Ok(Hop::Host),
            (3, 0, lan, Some(addr)) => Ok(Hop::Neighbour(lan, addr)),
            _ => Err(UNKNOWN),
        }
    }
}
