//! To the kernel: finds the packets of a burst that may leave as one super-packet.
//!
//! As the kernel's own receive offload does, packets of several flows may lie between each other:
//! the [`Planner`] keeps a bounded number of super-packets open and gives each packet to the one that
//! it continues. Order inside a flow is never changed: a packet that does not continue its flow's
//! open super-packet closes it. A packet is merged only when cutting the super-packet again gives the
//! same bytes, and only after its checksums were found valid, because the kernel will not look again.

use arrayvec::ArrayVec;
use patronus_mem::BURST_MAX;

use super::{
    Gso, SUPER_MAX, TCP_ACK, TCP_CHECKSUM, TCP_FLAGS, TCP_PSH, UDP_CHECKSUM, VNET_HEADER, VnetHeader,
};
use crate::ip::{self, IPV4_HEADER, IPV6_HEADER, PROTO_TCP, PROTO_UDP, Packet, Sum, TCP_HEADER, UDP_HEADER};

/// Super-packets that can be open at once; the oldest closes when another one is needed. A burst of
/// 64 packets from more flows than this has little to merge.
const OPEN_MAX: usize = 16;

/// Longest headers that are merged: IPv6 and a TCP header with all its options.
pub const HEADERS_MAX: usize = IPV6_HEADER + 60;

/// End of a list of packets.
const NONE: u8 = u8::MAX;

/// What the kernel takes from us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepts {
    /// TCP super-packets.
    pub tcp: bool,
    /// UDP super-packets (Linux 6.2).
    pub udp: bool,
}

/// What was learned from the headers of a packet that could be part of a super-packet.
#[derive(Clone, Copy)]
struct Candidate {
    /// Mixes ports and addresses; equal within a flow, and rarely between flows.
    tag: u64,
    tcp: bool,
    v4: bool,
    /// Where the TCP or UDP header starts, and where the payload does.
    transport: u8,
    payload: u8,
    /// Whole packet's length in bytes.
    len: u16,
    seq: u32,
    /// Ends the super-packet that it is part of.
    push: bool,
}

impl Candidate {
    fn payload_len(&self) -> u16 {
        self.len - u16::from(self.payload)
    }
}

/// What can be said of a packet at a glance.
enum Glance {
    /// May start or continue a super-packet.
    Candidate(Candidate),
    /// Goes alone, but belongs to a flow that may have an open super-packet.
    Flow(u64),
    /// Goes alone; its flow cannot be told (fragments, IP options, extension headers).
    Unknown,
    /// Goes alone and has no part in any TCP or UDP flow.
    Alone,
}

/// One write to the kernel: a packet, or several that make a super-packet.
#[derive(Clone, Copy)]
struct Group {
    first: Candidate,
    head: u8,
    tail: u8,
    count: u8,
    /// Bytes of the super-packet so far.
    len: usize,
    /// What the next packet must have: its sequence number and IPv4 identification.
    seq: u32,
    /// Step between the IPv4 identifications, known once there are two packets.
    id_step: Option<u16>,
    push: bool,
    /// The first packet's checksums: not looked at before there is a second.
    verified: bool,
}

/// Decides which packets of a burst leave together. Reused from burst to burst.
pub struct Planner {
    accepts: Accepts,
    groups: ArrayVec<Group, BURST_MAX>,
    /// Groups that still take packets, oldest first, and beside them their tags.
    open: ArrayVec<u8, OPEN_MAX>,
    tags: ArrayVec<u64, OPEN_MAX>,
    /// For each packet the one after it in its group.
    next: [u8; BURST_MAX],
}

impl Planner {
    /// A planner for a kernel that takes what `accepts` says.
    pub fn new(accepts: Accepts) -> Planner {
        Planner {
            accepts,
            groups: ArrayVec::new(),
            open: ArrayVec::new(),
            tags: ArrayVec::new(),
            next: [NONE; BURST_MAX],
        }
    }

    /// What the planner merges.
    pub fn accepts(&self) -> Accepts {
        self.accepts
    }

    /// Stops merging a kind that the kernel turned out not to take.
    pub fn refuse(&mut self, gso: Gso) {
        match gso {
            Gso::TcpV4 | Gso::TcpV6 => self.accepts.tcp = false,
            Gso::Udp => self.accepts.udp = false,
            Gso::None | Gso::Other(_) => {}
        }
    }

    /// Groups `packets`; the result is read with [`Planner::groups`]. Packets beyond the first
    /// `BURST_MAX` are not looked at.
    pub fn plan(&mut self, packets: &[&[u8]]) {
        self.groups.clear();
        self.shut_all();
        for (index, packet) in packets.iter().take(BURST_MAX).enumerate() {
            self.next[index] = NONE;
            match glance(packet, self.accepts) {
                Glance::Candidate(candidate) => self.place(index as u8, candidate, packets),
                Glance::Flow(tag) => {
                    if let Some(at) = self.find(tag) {
                        self.shut(at);
                    }
                    self.alone(index as u8);
                }
                Glance::Unknown => {
                    self.shut_all();
                    self.alone(index as u8);
                }
                Glance::Alone => self.alone(index as u8),
            }
        }
    }

    /// How many writes the plan has.
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// The packets of write number `group`, in order, as indices into the planned slice.
    pub fn members(&self, group: usize) -> impl Iterator<Item = usize> + '_ {
        let mut at = self.groups.get(group).map_or(NONE, |g| g.head);
        std::iter::from_fn(move || {
            let here = usize::from(at);
            at = *self.next.get(here)?;
            Some(here)
        })
    }

    /// How many packets write number `group` has.
    pub fn count(&self, group: usize) -> usize {
        self.groups.get(group).map_or(0, |g| usize::from(g.count))
    }

    /// For a write of several packets: what precedes their payloads, virtio-net header and rewritten
    /// packet headers in one piece, and how many bytes of headers each of the packets has.
    pub fn super_headers(&self, group: usize, packets: &[&[u8]]) -> Option<SuperHeaders> {
        let group = self.groups.get(group).filter(|g| g.count > 1)?;
        SuperHeaders::build(group, packets.get(usize::from(group.head))?)
    }

    fn alone(&mut self, index: u8) {
        // The candidate is never read: the group is not open.
        let first = Candidate {
            tag: 0,
            tcp: false,
            v4: false,
            transport: 0,
            payload: 0,
            len: 0,
            seq: 0,
            push: true,
        };
        self.begin(index, first, false);
    }

    fn begin(&mut self, index: u8, first: Candidate, open: bool) {
        let group = Group {
            first,
            head: index,
            tail: index,
            count: 1,
            len: usize::from(first.len),
            seq: first
                .seq
                .wrapping_add(u32::from(first.len - u16::from(first.payload))),
            id_step: None,
            push: first.push,
            verified: false,
        };
        if open {
            if self.open.is_full() {
                self.shut(0);
            }
            self.open.push(self.groups.len() as u8);
            self.tags.push(first.tag);
        }
        // At most one group a packet, and at most BURST_MAX packets.
        self.groups.push(group);
    }

    /// Which of the open groups has this tag: at most one, because another packet of the flow either
    /// joins it or closes it.
    fn find(&self, tag: u64) -> Option<usize> {
        self.tags.iter().position(|open| *open == tag)
    }

    fn shut_all(&mut self) {
        self.open.clear();
        self.tags.clear();
    }

    /// Closes the group at a place in the list of open ones.
    fn shut(&mut self, at: usize) {
        self.open.remove(at);
        self.tags.remove(at);
    }

    /// Gives a candidate to the open group of its flow, or opens one.
    fn place(&mut self, index: u8, candidate: Candidate, packets: &[&[u8]]) {
        if let Some(at) = self.find(candidate.tag) {
            let group = &mut self.groups[usize::from(self.open[at])];
            if group.append(index, &candidate, packets) {
                self.next[usize::from(group.tail)] = index;
                group.tail = index;
                // The last packet of a super-packet is the one that is shorter or pushes.
                if candidate.push || candidate.payload_len() < group.first.payload_len() {
                    self.shut(at);
                }
                return;
            }
            self.shut(at);
        }
        self.begin(index, candidate, !candidate.push);
    }
}

impl Group {
    /// Takes one more packet if it continues the super-packet; the caller links it in.
    fn append(&mut self, index: u8, candidate: &Candidate, packets: &[&[u8]]) -> bool {
        let first = packets[usize::from(self.head)];
        let packet = packets[usize::from(index)];
        let payload = candidate.payload_len();
        let fits = candidate.payload == self.first.payload
            && payload <= self.first.payload_len()
            && self.len + usize::from(payload) <= SUPER_MAX
            && (!candidate.tcp || candidate.seq == self.seq);
        if !fits || !same_flow(first, packet, &self.first) || !self.id_follows(first, packet) {
            return false;
        }
        self.verified = self.verified || checksums_valid(first, &self.first);
        if !self.verified || !checksums_valid(packet, candidate) {
            return false;
        }
        if self.first.v4 {
            self.id_step = Some(id_of(packet).wrapping_sub(id_of(first)) / u16::from(self.count));
        }
        self.count += 1;
        self.len += usize::from(payload);
        self.seq = self.seq.wrapping_add(u32::from(payload));
        self.push = candidate.push;
        true
    }

    /// Whether the IPv4 identification lets the packet be cut off again: counting up by one, as
    /// every cutter numbers them; or all the same under DF, where the field means nothing (RFC 6864).
    fn id_follows(&self, first: &[u8], packet: &[u8]) -> bool {
        if !self.first.v4 {
            return true;
        }
        let distance = id_of(packet).wrapping_sub(id_of(first));
        let counts_up = distance == u16::from(self.count) && self.id_step != Some(0);
        let constant = distance == 0 && self.id_step != Some(1) && first[6] & 0x40 != 0;
        counts_up || constant
    }

    fn gso(&self) -> Gso {
        match (self.first.tcp, self.first.v4) {
            (true, true) => Gso::TcpV4,
            (true, false) => Gso::TcpV6,
            (false, _) => Gso::Udp,
        }
    }
}

/// The front of a super-packet: what is written before the payloads.
pub struct SuperHeaders {
    bytes: [u8; VNET_HEADER + HEADERS_MAX],
    headers: usize,
    total: usize,
    /// What kind of super-packet this is.
    pub gso: Gso,
}

impl SuperHeaders {
    /// The bytes to write first.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..VNET_HEADER + self.headers]
    }

    /// Bytes of headers at the front of each of the packets; what follows is payload.
    pub fn skip(&self) -> usize {
        self.headers
    }

    /// Bytes of the super-packet, without the virtio-net header.
    pub fn total(&self) -> usize {
        self.total
    }

    fn build(group: &Group, first: &[u8]) -> Option<SuperHeaders> {
        let (transport, headers) = (
            usize::from(group.first.transport),
            usize::from(group.first.payload),
        );
        let vnet = VnetHeader {
            needs_csum: true,
            gso: group.gso(),
            hdr_len: headers as u16,
            gso_size: group.first.payload_len(),
            csum_start: transport as u16,
            csum_offset: if group.first.tcp {
                TCP_CHECKSUM
            } else {
                UDP_CHECKSUM
            } as u16,
        };
        let mut built = SuperHeaders {
            bytes: [0; VNET_HEADER + HEADERS_MAX],
            headers,
            total: group.len,
            gso: vnet.gso,
        };
        built.bytes[..VNET_HEADER].copy_from_slice(&vnet.encode());
        let packet = built.bytes.get_mut(VNET_HEADER..VNET_HEADER + headers)?;
        packet.copy_from_slice(first.get(..headers)?);
        let (ip_header, header) = packet.split_at_mut(transport);
        let transport_len = group.len - transport;
        let pseudo = pseudo_sum(ip_header, &group.first, transport_len).partial();
        if group.first.v4 {
            ip_header[2..4].copy_from_slice(&(group.len as u16).to_be_bytes());
            ip_header[10..12].fill(0);
            let sum = Sum::of(ip_header).checksum();
            ip_header[10..12].copy_from_slice(&sum);
        } else {
            ip_header[4..6].copy_from_slice(&(transport_len as u16).to_be_bytes());
        }
        if group.first.tcp {
            if group.push {
                header[TCP_FLAGS] |= TCP_PSH;
            }
            header[TCP_CHECKSUM..TCP_CHECKSUM + 2].copy_from_slice(&pseudo);
        } else {
            header[4..6].copy_from_slice(&(transport_len as u16).to_be_bytes());
            header[UDP_CHECKSUM..UDP_CHECKSUM + 2].copy_from_slice(&pseudo);
        }
        Some(built)
    }
}

fn id_of(packet: &[u8]) -> u16 {
    ip::be16(packet, 4)
}

fn pseudo_sum(packet: &[u8], candidate: &Candidate, transport_len: usize) -> Sum {
    let addresses = if candidate.v4 {
        &packet[12..20]
    } else {
        &packet[8..40]
    };
    ip::pseudo_sum(
        addresses,
        if candidate.tcp { PROTO_TCP } else { PROTO_UDP },
        transport_len,
    )
}

/// Reads what can be told without looking at the payload or at other packets.
#[inline]
fn glance(packet: &[u8], accepts: Accepts) -> Glance {
    let Ok(ip) = Packet::parse(packet) else {
        return Glance::Alone;
    };
    let v4 = ip.version() == ip::Version::V4;
    let (protocol, transport) = if v4 {
        (packet[9], IPV4_HEADER)
    } else {
        (packet[6], IPV6_HEADER)
    };
    if v4 && (ip.header_len() != IPV4_HEADER || ip::be16(packet, 6) & 0x3fff != 0) {
        return Glance::Unknown;
    }
    let tcp = match protocol {
        PROTO_TCP if accepts.tcp => true,
        PROTO_UDP if accepts.udp => false,
        PROTO_TCP | PROTO_UDP | ip::PROTO_ICMPV6 => return Glance::Alone,
        _ if v4 => return Glance::Alone,
        // TCP or UDP may follow behind an extension header.
        _ => return Glance::Unknown,
    };
    let header = &ip.bytes()[transport..];
    let (header_len, may_merge, seq, push) = match (tcp, header.first_chunk(), header.first_chunk()) {
        (true, Some(header), _) => glance_tcp(header),
        (false, _, Some(udp)) => (UDP_HEADER, udp_is_whole(udp, header.len()), 0, false),
        _ => return Glance::Alone,
    };
    let tag = flow_tag(packet, v4, tcp);
    // Something behind the IP packet or an empty payload cannot be part of a super-packet.
    if !may_merge || header_len >= header.len() || ip.total_len() != packet.len() || packet.len() > SUPER_MAX
    {
        return Glance::Flow(tag);
    }
    Glance::Candidate(Candidate {
        tag,
        tcp,
        v4,
        transport: transport as u8,
        payload: (transport + header_len) as u8,
        len: packet.len() as u16,
        seq,
        push,
    })
}

/// Header length, whether the flags allow merging, sequence number, and PSH.
#[inline]
fn glance_tcp(header: &[u8; TCP_HEADER]) -> (usize, bool, u32, bool) {
    let len = usize::from(header[12] >> 4) * 4;
    let flags = header[TCP_FLAGS];
    let seq = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
    let plain = len >= TCP_HEADER && flags & !TCP_PSH == TCP_ACK && header[12] & 0x0f == 0;
    (len, plain, seq, flags & TCP_PSH != 0)
}

/// Whether a datagram is as long as it says, and has a checksum.
#[inline]
fn udp_is_whole(header: &[u8; UDP_HEADER], len: usize) -> bool {
    usize::from(ip::be16(header, 4)) == len && header[UDP_CHECKSUM..] != [0, 0]
}

/// Ports and the low halves of the addresses. Only a first filter: [`same_flow`] compares in full,
/// and two flows that happen to share a tag merely close each other's super-packets.
#[inline]
fn flow_tag(packet: &[u8], v4: bool, tcp: bool) -> u64 {
    let word = |at: usize| match packet.get(at..at + 4) {
        Some(&[a, b, c, d]) => u64::from(u32::from_be_bytes([a, b, c, d])),
        _ => 0,
    };
    let (src, dst, ports) = if v4 { (12, 16, 20) } else { (20, 36, 40) };
    let addresses = word(src).rotate_left(7) ^ word(dst);
    ((word(ports) << 32) | addresses) ^ (u64::from(v4) << 63) ^ (u64::from(tcp) << 62)
}

/// Whether everything in the headers that must be equal is: all but lengths, checksums, IPv4
/// identification, TCP sequence number and PSH. Header lengths have been compared before.
#[inline]
fn same_flow(a: &[u8], b: &[u8], candidate: &Candidate) -> bool {
    // The ports stand right behind the addresses.
    let same = if candidate.v4 {
        match (a.first_chunk::<24>(), b.first_chunk::<24>()) {
            (Some(a), Some(b)) => a[..2] == b[..2] && a[6..10] == b[6..10] && a[12..] == b[12..],
            _ => false,
        }
    } else {
        match (a.first_chunk::<44>(), b.first_chunk::<44>()) {
            (Some(a), Some(b)) => a[..4] == b[..4] && a[6..] == b[6..],
            _ => false,
        }
    };
    let range = usize::from(candidate.transport)..usize::from(candidate.payload);
    same && (!candidate.tcp
        || match (a.get(range.clone()), b.get(range)) {
            (Some(a), Some(b)) => same_tcp(a, b),
            _ => false,
        })
}

#[inline]
fn same_tcp(a: &[u8], b: &[u8]) -> bool {
    match (
        a.split_first_chunk::<TCP_HEADER>(),
        b.split_first_chunk::<TCP_HEADER>(),
    ) {
        // Acknowledgement and header length; flags; window; urgent pointer; options.
        (Some((a, a_options)), Some((b, b_options))) => {
            a[8..13] == b[8..13]
                && (a[TCP_FLAGS] ^ b[TCP_FLAGS]) & !TCP_PSH == 0
                && a[14..16] == b[14..16]
                && a[18..] == b[18..]
                && a_options == b_options
        }
        _ => false,
    }
}

/// Verifies the IPv4 header's checksum and the transport's.
#[inline]
fn checksums_valid(packet: &[u8], candidate: &Candidate) -> bool {
    let header_valid = !candidate.v4
        || packet
            .first_chunk::<IPV4_HEADER>()
            .is_some_and(|header| Sum::of(header).is_valid());
    let rest = &packet[usize::from(candidate.transport)..];
    header_valid && (pseudo_sum(packet, candidate, rest.len()) + Sum::of(rest)).is_valid()
}
