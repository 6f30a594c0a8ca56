//! The layout of a blob: a header, and behind it the sections without gaps, in the order of [`Header::counts`].
//!
//! All numbers are little-endian, nothing is aligned, unused bytes are zero. Lists that belong to a record (a peer's networks, a route's next
//! hops, names) are not pointed to: a record says how many, and takes them from their section in order. So every byte of a blob belongs to
//! exactly one thing, and a site has exactly one blob.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What a blob begins with.
pub const MAGIC: [u8; 8] = *b"PATRSITE";

/// A record of a section.
pub trait Record: FromBytes + IntoBytes + Immutable + KnownLayout + Unaligned + Copy {}
impl<T: FromBytes + IntoBytes + Immutable + KnownLayout + Unaligned + Copy> Record for T {}

/// What docs/abi.md says of a record.
pub struct Described {
    /// Its name here.
    pub name: &'static str,
    /// What it is, a line each.
    pub about: &'static [&'static str],
    /// Bytes.
    pub size: usize,
    /// Its fields in order.
    pub fields: &'static [DescribedField],
}

/// A field of a record.
pub struct DescribedField {
    /// Its name here.
    pub name: &'static str,
    /// Its type here.
    pub kind: &'static str,
    /// Where it begins, bytes.
    pub offset: usize,
    /// What it is, a line each.
    pub about: &'static [&'static str],
}

macro_rules! records {
    ($all:ident: $($(#[doc = $doc:literal])* $name:ident, $size:literal { $($(#[doc = $fdoc:literal])* $field:ident: $type:ty,)* })*) => {
        $(
            $(#[doc = $doc])*
            #[allow(missing_docs, reason = "names and types say it; docs/abi.md has them all")]
            #[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
            #[repr(C)]
            pub struct $name { $($(#[doc = $fdoc])* pub $field: $type,)* }
            const _: () = assert!(size_of::<$name>() == $size);
        )*

        /// The records of this part of the layout, for its description.
        pub const $all: &[$crate::record::Described] = &[$($crate::record::Described {
            name: stringify!($name),
            about: &[$($doc),*],
            size: $size,
            fields: &[$($crate::record::DescribedField {
                name: stringify!($field),
                kind: stringify!($type),
                offset: core::mem::offset_of!($name, $field),
                about: &[$($fdoc),*],
            }),*],
        }),*];
    };
}
pub(crate) use records;

/// Sections: cores, links, peers, allowed-ips, LANs, networks of LANs, neighbours, routes, policies, classes, addresses, next hops, text.
pub const SECTIONS: usize = 13;

records! { BLOB:
    /// The beginning of a blob.
    Header, 130 {
        /// [`MAGIC`].
        magic: [u8; 8],
        /// [`ABI_VERSION`](crate::ABI_VERSION).
        abi: U32,
        /// CRC-32 (ISO-HDLC, as of zlib) of all that follows this field.
        crc: U32,
        /// Bytes of the blob.
        len: U64,
        /// Counted by who makes blobs, from 1.
        generation: U64,
        /// What there is once.
        site: SiteRecord,
        /// Records of each section; of the text, bytes.
        counts: [U32; SECTIONS],
    }

    /// What there is once.
    SiteRecord, 46 {
        fwmark: U32,
        spin_ms: U32,
        flows: U32,
        routes: U32,
        /// Mebibytes.
        dpdk_memory: U32,
        /// Mebibytes; 0: whichever the system has.
        dpdk_huge_page: U32,
        /// Of paths that carry something, microseconds.
        probe_interval: U32,
        /// Of paths that carry nothing, microseconds.
        probe_idle: U32,
        /// Probes a second at most.
        probe_rate: U32,
        listen_port: U16,
        workers: U16,
        /// The TUN's; 0: as it is.
        tun_mtu: U16,
        /// 1: offload; 2: DPDK does without huge pages; 4: allowed-ips are routed into the TUN.
        flags: u8,
        /// Bytes of the TUN's name in the text.
        interface: u8,
        /// Bytes of the backend's name in the text; 0: the default.
        aead: u8,
        zero: u8,
    }

    /// An address. IPv4: its four bytes, then zeros.
    AddrRecord, 17 {
        /// 4, 6, or 0 for none.
        family: u8,
        bytes: [u8; 16],
    }

    /// A network.
    PrefixRecord, 18 {
        addr: AddrRecord,
        len: u8,
    }

    /// An address of the host's at the TUN, and the bits of the prefix of its network.
    AddressRecord, 18 {
        addr: AddrRecord,
        len: u8,
    }

    /// Address, UDP port and, for IPv6, scope.
    EndpointRecord, 24 {
        addr: AddrRecord,
        zero: u8,
        port: U16,
        scope: U32,
    }

    /// A link.
    LinkRecord, 50 {
        endpoint: EndpointRecord,
        id: u8,
        group: u8,
        /// 0: UDP sockets; 1: AF_XDP; 2: DPDK.
        port: u8,
        /// 1: metered; 2: behind a NAT.
        flags: u8,
        /// Bytes of the interface's name in the text.
        interface: u8,
        /// Bytes of the device's name in the text; 0: none.
        device: u8,
        /// The device's; 0: there is none.
        mtu: U16,
        cost: U16,
        /// Bits per second; 0: not known.
        rate_up: U64,
        /// Bits per second; 0: not known.
        rate_down: U64,
    }

    /// A peer.
    PeerRecord, 84 {
        public_key: [u8; 32],
        endpoint: EndpointRecord,
        /// Of the section of allowed-ips.
        allowed_ips: U32,
        /// Seconds; 0: none.
        keepalive: U16,
        /// 1: a remote; 2: has a pre-shared key.
        flags: u8,
        /// Bytes of the text; 0: none.
        name: u8,
        /// Whom to ping behind it.
        ping: AddrRecord,
        zero: u8,
        /// How often, milliseconds; 0: not at all.
        ping_interval: U16,
    }

    /// A LAN.
    LanRecord, 16 {
        networks: U32,
        neighbours: U32,
        /// 0: the TUN; 1: any Ethernet; 2: AF_XDP; 3: packet sockets; 4: DPDK.
        port: u8,
        /// Bytes of the text.
        name: u8,
        /// Bytes of the text; 0: none.
        interface: u8,
        /// Bytes of the device's name in the text; 0: none.
        device: u8,
        /// The device's; 0: there is none.
        mtu: U16,
        zero: [u8; 2],
    }

    /// Somebody on a LAN.
    NeighbourRecord, 24 {
        addr: AddrRecord,
        mac: [u8; 6],
        zero: u8,
    }

    /// A next hop. What its kind does not need is zero.
    HopRecord, 24 {
        peer: U32,
        lan: U16,
        /// 0: nowhere; 1: a peer; 2: the host; 3: a neighbour.
        kind: u8,
        addr: AddrRecord,
    }

    /// A route.
    RouteRecord, 20 {
        prefix: PrefixRecord,
        /// Of the section of next hops.
        hops: u8,
        zero: u8,
    }

    /// A policy. What is not asked is zero.
    PolicyRecord, 60 {
        src: PrefixRecord,
        dst: PrefixRecord,
        src_ports: [U16; 2],
        dst_ports: [U16; 2],
        dscps: U64,
        protocol: u8,
        /// 1: asks for a protocol; 2: for source ports; 4: for destination ports.
        flags: u8,
        /// 0: route; 1: drop; 2: by the next hops.
        action: u8,
        /// Of the section of next hops.
        hops: u8,
        /// Bytes of the text; 0: none.
        name: u8,
        /// Its place among the classes.
        class: u8,
        zero: [u8; 2],
    }

    /// A class. A limit that is not asked is zero.
    ClassRecord, 20 {
        /// Microseconds.
        latency: U32,
        /// Microseconds.
        jitter: U32,
        /// Parts per million.
        loss: U32,
        /// Milliseconds.
        hold: U32,
        /// 0: pinned; 1: active_backup; 2: lowest_latency; 3: weighted; 4: duplicate.
        mode: u8,
        /// 1: limits the latency; 2: the jitter; 4: the loss; 8: packets of a source stay together, not only those of a flow.
        flags: u8,
        /// 0: datagrams have none; 1: the packet's own; 64 and more: this one, and 64.
        dscp: u8,
        /// Bytes of the text.
        name: u8,
    }
}
