//! Control messages: what two sites of our own say to each other inside their sessions (docs/wire.md, section 3).
//!
//! A control message is the content of a data packet, like an inner packet, and begins with a nibble that no IP packet begins with. A
//! stock peer would drop it as not IP. What is not understood here is dropped under a name and changes nothing.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;

use arrayvec::ArrayVec;
use patronus_crypto::{Duration, LinkId, Time};

use crate::path::PATHS_MAX;

/// The first byte: a nibble that is no IP version, and the version of these messages.
const FIRST: u8 = 0x11;
const HELLO: u8 = 1;
const HELLO_ACK: u8 = 2;
const PROBE: u8 = 3;
const HEADER: usize = 4;
const BOOT: usize = 16;
const HELLO_FIXED: usize = HEADER + BOOT + 8;
const LINK: usize = 28;
const ACK: usize = HEADER + BOOT + 4;
const PROBE_FIXED: usize = 68;
const SIZE: u8 = 4;
const SIZE_ACK: u8 = 5;
const SIZE_LEN: usize = 10;

/// Links of a site at most.
pub const LINKS_MAX: usize = LinkId::MAX as usize;
/// Workers of a site at most.
pub const WORKERS_MAX: u8 = 64;
/// The longest message, bytes.
pub const CONTROL_MAX: usize = HELLO_FIXED + LINKS_MAX * LINK;

const HEARD: u8 = 1 << 0;
const USED: u8 = 1 << 1;

const METERED: u8 = 1 << 0;
const BEHIND_NAT: u8 = 1 << 1;
const HAS_V4: u8 = 1 << 2;
const HAS_V6: u8 = 1 << 3;

/// What a probe may say about how often probes come.
pub const INTERVALS: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(60);

/// A message as it is sent.
pub type Bytes = ArrayVec<u8, CONTROL_MAX>;

/// Drawn when a site begins to know a remote: who has another one has forgotten everything.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct BootId(pub [u8; BOOT]);

/// What a site says about one of its links.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkInfo {
    /// Its number.
    pub id: LinkId,
    /// Paths lead between links of the same group only.
    pub group: u8,
    /// Traffic costs money.
    pub metered: bool,
    /// Nobody can call it: it is behind a NAT or a firewall.
    pub behind_nat: bool,
    /// It has IPv4.
    pub has_v4: bool,
    /// It has IPv6.
    pub has_v6: bool,
    /// Goes up whenever the link has been away or is another one than before: its lanes are made anew on both sides.
    pub incarnation: u16,
    /// UDP port that it can be called on.
    pub port: u16,
    /// Where it can be called over IPv4.
    pub v4: Option<Ipv4Addr>,
    /// Where it can be called over IPv6.
    pub v6: Option<Ipv6Addr>,
}

impl LinkInfo {
    /// Where it can be called from a link with these address families, IPv6 first.
    pub fn endpoints(&self, v4: bool, v6: bool) -> ArrayVec<SocketAddr, 2> {
        let mut endpoints = ArrayVec::new();
        if self.behind_nat {
            return endpoints;
        }
        let six = self.v6.filter(|_| v6).map(|ip| SocketAddr::from((ip, self.port)));
        let four = self.v4.filter(|_| v4).map(|ip| SocketAddr::from((ip, self.port)));
        endpoints.extend(six.into_iter().chain(four));
        endpoints
    }
}

/// "This is me": sent in the base session until it is acknowledged, and after every change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// Which start of the engine.
    pub boot: BootId,
    /// Goes up with every change.
    pub generation: u32,
    /// 1 to [`WORKERS_MAX`].
    pub workers: u8,
    /// Each number once.
    pub links: ArrayVec<LinkInfo, LINKS_MAX>,
}

/// "I am here": sent in lane 0 of a path at intervals, by both sides alike. Each says what it has heard from the other.
///
/// Times are the sender's own, of a clock that nobody else has; they are compared with each other and with nothing else.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Probe {
    /// One more than in the last probe on this path; it wraps.
    pub sequence: u32,
    /// When it was sent.
    pub time: Time,
    /// The time in the newest probe that was heard on this path; none yet: 0.
    pub echo: Time,
    /// How long ago that was heard.
    pub hold: Duration,
    /// The next one comes within this time, as long as the path is heard.
    pub interval: Duration,
    /// How often the sender wants to hear one.
    pub wanted: Duration,
    /// The jitter of what the sender hears (RFC 3550, section 6.4.1).
    pub jitter: Duration,
    /// Datagrams that the sender has sent on this path so far, in all lanes, this one included.
    pub sent: u64,
    /// What `sent` was in the newest probe that was heard.
    pub echo_sent: u64,
    /// How many datagrams had been received on this path when that was heard.
    pub echo_received: u64,
    /// The sender hears this path.
    pub heard: bool,
    /// The sender has sent packets of hosts on this path lately.
    pub used: bool,
    /// The paths towards the receiver that the sender does not hear: the upper byte of their tags.
    pub unheard: ArrayVec<u8, PATHS_MAX>,
}

/// "An inner packet of so many bytes would make a datagram as long as this one", or that such a one has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Size {
    /// Comes back in the acknowledgement.
    pub id: u32,
    /// Of the inner packet, bytes; 0: of none, the datagram is no longer than it takes to say this.
    pub size: u16,
}

/// What is said about sizes in a lane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sizing {
    /// To be acknowledged.
    Ask(Size),
    /// The acknowledgement.
    Ack(Size),
}

/// A message of the base session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Control {
    /// "This is me."
    Hello(Box<Hello>),
    /// "I know that you are this one, as of that generation."
    HelloAck(BootId, u32),
}

/// Why a message was dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unknown {
    /// Of another version, or of a type that this version does not have: a newer engine's.
    Kind,
    /// Its length contradicts itself.
    Length,
    /// A field has a value that it cannot have.
    Value,
}

/// Whether the content of a packet is a control message of any version.
#[inline]
pub fn is_control(content: &[u8]) -> bool {
    content.first().is_some_and(|first| first >> 4 == FIRST >> 4)
}

impl Control {
    /// As it is sent. Padding follows it.
    pub fn encode(&self) -> Bytes {
        let mut bytes = Bytes::new();
        match self {
            Control::Hello(hello) => {
                let len = HELLO_FIXED + hello.links.len() * LINK;
                header(&mut bytes, HELLO, len);
                bytes.extend(hello.boot.0);
                bytes.extend(hello.generation.to_le_bytes());
                bytes.extend([hello.workers, hello.links.len() as u8, 0, 0]);
                hello.links.iter().for_each(|link| link.encode(&mut bytes));
            }
            Control::HelloAck(boot, generation) => {
                header(&mut bytes, HELLO_ACK, ACK);
                bytes.extend(boot.0);
                bytes.extend(generation.to_le_bytes());
            }
        }
        bytes
    }

    /// Understands the content of a packet, padding included.
    pub fn decode(content: &[u8]) -> Result<Control, Unknown> {
        let Some(([first, kind, low, high], _)) = content.split_first_chunk::<HEADER>() else {
            return Err(Unknown::Length);
        };
        if *first != FIRST {
            return Err(Unknown::Kind);
        }
        let len = usize::from(u16::from_le_bytes([*low, *high]));
        let message = content.get(HEADER..len).ok_or(Unknown::Length)?;
        match *kind {
            HELLO => Hello::decode(message).map(|hello| Control::Hello(Box::new(hello))),
            HELLO_ACK => {
                let (boot, rest) = message.split_first_chunk().ok_or(Unknown::Length)?;
                let generation = rest.try_into().map_err(|_| Unknown::Length)?;
                Ok(Control::HelloAck(BootId(*boot), u32::from_le_bytes(generation)))
            }
            _ => Err(Unknown::Kind),
        }
    }
}

/// Bytes that stand in front of an inner packet that goes twice.
pub const DOUBLED: usize = 8;
const DOUBLED_KIND: u8 = 6;

/// What stands in front of an inner packet of `len` bytes that goes twice, the `sequence`th by lanes of one number.
pub fn doubled(len: usize, sequence: u32) -> [u8; DOUBLED] {
    let [low, high] = ((DOUBLED + len) as u16).to_le_bytes();
    let [a, b, c, d] = sequence.to_le_bytes();
    [FIRST, DOUBLED_KIND, low, high, a, b, c, d]
}

/// Whether the content of a packet is an inner packet that goes twice.
#[inline]
pub fn is_doubled(content: &[u8]) -> bool {
    content.starts_with(&[FIRST, DOUBLED_KIND])
}

/// Its sequence number, and its length without padding, what stands in front included; `None`: its length cannot be.
pub fn read_doubled(content: &[u8]) -> Option<(u32, usize)> {
    let [_, _, low, high, sequence @ ..] = *content.first_chunk::<DOUBLED>()?;
    let len = usize::from(u16::from_le_bytes([low, high]));
    let fits = (DOUBLED..=content.len()).contains(&len);
    fits.then_some((u32::from_le_bytes(sequence), len))
}

fn header(bytes: &mut Bytes, kind: u8, len: usize) {
    let [low, high] = (len as u16).to_le_bytes();
    bytes.extend([FIRST, kind, low, high]);
}

/// Whether the content of a packet is a probe, if it is a control message.
#[inline]
pub fn is_probe(content: &[u8]) -> bool {
    content.starts_with(&[FIRST, PROBE])
}

impl Probe {
    /// As it is sent. Padding follows it.
    pub fn encode(&self) -> Bytes {
        let mut bytes = Bytes::new();
        header(&mut bytes, PROBE, PROBE_FIXED + self.unheard.len());
        bytes.extend(self.sequence.to_le_bytes());
        bytes.extend(self.time.0.to_le_bytes());
        bytes.extend(self.echo.0.to_le_bytes());
        for duration in [self.hold, self.interval, self.wanted, self.jitter] {
            bytes.extend(micros(duration).to_le_bytes());
        }
        for count in [self.sent, self.echo_sent, self.echo_received] {
            bytes.extend(count.to_le_bytes());
        }
        let flags = (u8::from(self.heard) * HEARD) | (u8::from(self.used) * USED);
        bytes.extend([flags, self.unheard.len() as u8, 0, 0]);
        bytes.extend(self.unheard.iter().copied());
        bytes
    }

    /// Understands the content of a packet, padding included.
    pub fn decode(content: &[u8]) -> Result<Probe, Unknown> {
        if !is_probe(content) {
            return Err(Unknown::Kind);
        }
        let fixed = content.first_chunk::<PROBE_FIXED>().ok_or(Unknown::Length)?;
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| fixed[at + i]));
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| fixed[at + i]));
        let micros_at = |at: usize| Duration::from_micros(u32_at(at).into());
        let (len, count) = (
            usize::from(u16::from_le_bytes([fixed[2], fixed[3]])),
            usize::from(fixed[65]),
        );
        if len != PROBE_FIXED + count {
            return Err(Unknown::Length);
        }
        let unheard = content.get(PROBE_FIXED..len).ok_or(Unknown::Length)?;
        let (interval, wanted) = (micros_at(28), micros_at(32));
        let is_possible = INTERVALS.contains(&interval) && INTERVALS.contains(&wanted);
        Ok(Probe {
            sequence: u32_at(4),
            time: Time(u64_at(8)),
            echo: Time(u64_at(16)),
            hold: micros_at(24),
            interval,
            wanted,
            jitter: micros_at(36),
            sent: u64_at(40),
            echo_sent: u64_at(48),
            echo_received: u64_at(56),
            heard: fixed[64] & HEARD != 0,
            used: fixed[64] & USED != 0,
            unheard: unheard
                .try_into()
                .ok()
                .filter(|_| is_possible)
                .ok_or(Unknown::Value)?,
        })
    }
}

/// Whether the content of a packet is about sizes, if it is a control message.
#[inline]
pub fn is_sizing(content: &[u8]) -> bool {
    matches!(content, [FIRST, SIZE | SIZE_ACK, ..])
}

/// Whether that is a question.
pub fn is_question(content: &[u8]) -> bool {
    matches!(content, [FIRST, SIZE, ..])
}

impl Sizing {
    /// As it is sent. What follows it is zero: so much of it that a question has the length that it is about.
    pub fn encode(&self) -> Bytes {
        let mut bytes = Bytes::new();
        let (kind, Size { id, size }) = match *self {
            Sizing::Ask(size) => (SIZE, size),
            Sizing::Ack(size) => (SIZE_ACK, size),
        };
        header(&mut bytes, kind, SIZE_LEN);
        bytes.extend(id.to_le_bytes());
        bytes.extend(size.to_le_bytes());
        bytes
    }

    /// Understands the content of a packet, all that follows the message included.
    pub fn decode(content: &[u8]) -> Result<Sizing, Unknown> {
        if !is_sizing(content) {
            return Err(Unknown::Kind);
        }
        let message = content.first_chunk::<SIZE_LEN>().ok_or(Unknown::Length)?;
        let [_, kind, len_low, len_high, id @ .., low, high] = *message;
        let size = Size {
            id: u32::from_le_bytes(id),
            size: u16::from_le_bytes([low, high]),
        };
        if usize::from(u16::from_le_bytes([len_low, len_high])) != SIZE_LEN {
            return Err(Unknown::Length);
        }
        match kind {
            SIZE if content.len() < size.size.into() => Err(Unknown::Length),
            SIZE => Ok(Sizing::Ask(size)),
            _ => Ok(Sizing::Ack(size)),
        }
    }
}

/// As many microseconds as fit.
fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

impl Hello {
    /// What follows the header.
    fn decode(message: &[u8]) -> Result<Hello, Unknown> {
        let (boot, rest) = message.split_first_chunk().ok_or(Unknown::Length)?;
        let (generation, rest) = rest.split_first_chunk().ok_or(Unknown::Length)?;
        let ([workers, count, _, _], rest) = rest.split_first_chunk().ok_or(Unknown::Length)?;
        let (entries, more) = rest.as_chunks::<LINK>();
        if !more.is_empty() || entries.len() != usize::from(*count) {
            return Err(Unknown::Length);
        }
        if *workers == 0 || *workers > WORKERS_MAX || entries.len() > LINKS_MAX {
            return Err(Unknown::Value);
        }
        let mut links = ArrayVec::<LinkInfo, LINKS_MAX>::new();
        for entry in entries {
            let link = LinkInfo::decode(entry)?;
            if links.iter().any(|other| other.id == link.id) {
                return Err(Unknown::Value);
            }
            links.push(link);
        }
        Ok(Hello {
            boot: BootId(*boot),
            generation: u32::from_le_bytes(*generation),
            workers: *workers,
            links,
        })
    }
}

impl LinkInfo {
    fn encode(&self, bytes: &mut Bytes) {
        let flag = |is: bool, bit: u8| if is { bit } else { 0 };
        let flags = flag(self.metered, METERED)
            | flag(self.behind_nat, BEHIND_NAT)
            | flag(self.has_v4, HAS_V4)
            | flag(self.has_v6, HAS_V6);
        bytes.extend([self.id.number(), self.group, flags, 0]);
        bytes.extend(self.port.to_le_bytes());
        bytes.extend(self.incarnation.to_le_bytes());
        bytes.extend(self.v4.unwrap_or(Ipv4Addr::UNSPECIFIED).octets());
        bytes.extend(self.v6.unwrap_or(Ipv6Addr::UNSPECIFIED).octets());
    }

    fn decode(entry: &[u8; LINK]) -> Result<LinkInfo, Unknown> {
        let [
            id,
            group,
            flags,
            _,
            low,
            high,
            inc_low,
            inc_high,
            a,
            b,
            c,
            d,
            v6 @ ..,
        ] = *entry;
        let (v4, v6) = (Ipv4Addr::new(a, b, c, d), Ipv6Addr::from(v6));
        // Addresses that no link can be called at would be called all the same.
        let no_host = v4.is_multicast() || v4.is_broadcast() || v4.is_loopback();
        let no_host = no_host || v6.to_ipv4_mapped().is_some();
        if no_host || v6.is_multicast() || v6.is_loopback() || v6.is_unicast_link_local() {
            return Err(Unknown::Value);
        }
        Ok(LinkInfo {
            id: LinkId::new(id).ok_or(Unknown::Value)?,
            group,
            metered: flags & METERED != 0,
            behind_nat: flags & BEHIND_NAT != 0,
            has_v4: flags & HAS_V4 != 0,
            has_v6: flags & HAS_V6 != 0,
            incarnation: u16::from_le_bytes([inc_low, inc_high]),
            port: u16::from_le_bytes([low, high]),
            v4: Some(v4).filter(|ip| !ip.is_unspecified()),
            v6: Some(v6).filter(|ip| !ip.is_unspecified()),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hello() -> Hello {
        let link = LinkInfo {
            id: LinkId::new(3).unwrap(),
            group: 7,
            metered: true,
            behind_nat: false,
            has_v4: true,
            has_v6: true,
            incarnation: 0x0506,
            port: 51820,
            v4: Some(Ipv4Addr::new(192, 0, 2, 1)),
            v6: Some("2001:db8::1".parse().unwrap()),
        };
        let other = LinkInfo {
            id: LinkId::new(15).unwrap(),
            group: 0,
            metered: false,
            behind_nat: true,
            has_v6: false,
            incarnation: 0,
            v4: None,
            v6: None,
            port: 0,
            ..link
        };
        Hello {
            boot: BootId(std::array::from_fn(|at| at as u8)),
            generation: 0x0102_0304,
            workers: 4,
            links: [link, other].into_iter().collect(),
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The vectors of docs/wire.md, section 3.
    #[test]
    fn messages_are_these_bytes() {
        let hello = Control::Hello(Box::new(hello()));
        let expected = "11015400\
            000102030405060708090a0b0c0d0e0f\
            0403020104020000\
            03070d006cca0605c000020120010db8000000000000000000000001\
            0f0006000000000000000000000000000000000000000000000000 00";
        assert_eq!(hex(&hello.encode()), expected.replace(' ', ""));
        let ack = Control::HelloAck(BootId([0xaa; 16]), 5);
        let expected = format!("11021800{}05000000", "aa".repeat(16));
        assert_eq!(hex(&ack.encode()), expected);
        for message in [hello, ack] {
            let mut bytes = message.encode().to_vec();
            assert_eq!(Control::decode(&bytes), Ok(message.clone()));
            bytes.extend([0; 15]);
            assert_eq!(Control::decode(&bytes), Ok(message), "padding is no part of it");
        }
    }

    fn probe() -> Probe {
        Probe {
            sequence: 0x0102_0304,
            time: Time(0x1122_3344_5566_7788),
            echo: Time(0x99aa_bbcc_ddee_ff00),
            hold: Duration::from_micros(1000),
            interval: Duration::from_millis(50),
            wanted: Duration::from_secs(1),
            jitter: Duration::from_micros(77),
            sent: 1000,
            echo_sent: 900,
            echo_received: 890,
            heard: true,
            used: true,
            unheard: [0x12, 0x31].into_iter().collect(),
        }
    }

    /// The vector of docs/wire.md, section 3.
    #[test]
    fn a_probe_is_these_bytes() {
        let expected = "11034600 04030201 8877665544332211 00ffeeddccbbaa99 e8030000 50c30000 40420f00 4d000000\
            e803000000000000 8403000000000000 7a03000000000000 03020000 1231";
        let mut bytes = probe().encode().to_vec();
        assert_eq!(hex(&bytes), expected.replace(' ', ""));
        bytes.extend([0; 10]);
        assert_eq!(Probe::decode(&bytes), Ok(probe()), "padding is no part of it");
        assert!(is_probe(&bytes) && is_control(&bytes));
        assert_eq!(
            Control::decode(&bytes),
            Err(Unknown::Kind),
            "not of the base session"
        );
    }

    /// The vectors of docs/wire.md, section 8.
    #[test]
    fn sizes_are_these_bytes() {
        let size = Size {
            id: 0x0102_0304,
            size: 1420,
        };
        for (message, expected) in [
            (Sizing::Ask(size), "11040a00040302018c05"),
            (Sizing::Ack(size), "11050a00040302018c05"),
        ] {
            let mut bytes = message.encode().to_vec();
            assert_eq!(hex(&bytes), expected);
            bytes.resize(1420, 0);
            assert_eq!(Sizing::decode(&bytes), Ok(message));
            assert!(is_sizing(&bytes) && is_control(&bytes) && !is_probe(&bytes));
            assert_eq!(Control::decode(&bytes), Err(Unknown::Kind));
        }
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        let size = Size { id: 1, size: 100 };
        let mut bytes = Sizing::Ask(size).encode().to_vec();
        bytes.resize(99, 0);
        assert_eq!(
            Sizing::decode(&bytes),
            Err(Unknown::Length),
            "not as long as it is about"
        );
        bytes.push(0);
        assert_eq!(Sizing::decode(&bytes), Ok(Sizing::Ask(size)));
        for (at, value, why) in [
            (0, 0x12, Unknown::Kind),
            (1, 6, Unknown::Kind),
            (2, 9, Unknown::Length),
            (3, 1, Unknown::Length),
        ] {
            let mut wrong = bytes.clone();
            wrong[at] = value;
            assert_eq!(Sizing::decode(&wrong), Err(why), "{at}");
        }
        for len in 2..10 {
            assert_eq!(Sizing::decode(&bytes[..len]), Err(Unknown::Length), "{len} bytes");
        }
    }

    #[test]
    fn a_probe_that_cannot_be_is_refused() {
        let good = probe().encode();
        let with = |at: usize, value: u8| {
            let mut bytes = good.to_vec();
            bytes[at] = value;
            Probe::decode(&bytes).err()
        };
        assert_eq!(with(0, 0x12), Some(Unknown::Kind));
        assert_eq!(with(1, 4), Some(Unknown::Kind));
        for (at, value) in [(2, 0x45), (2, 0x47), (3, 1), (65, 1), (65, 3), (65, 65)] {
            assert_eq!(with(at, value), Some(Unknown::Length), "{at}");
        }
        // An interval of 80 us, of 60 s and more; the same wanted.
        for (at, value) in [(29, 0), (31, 4), (35, 4)] {
            assert_eq!(with(at, value), Some(Unknown::Value), "{at}");
        }
        assert_eq!(with(64, 0xff), None, "flags that are not known yet");
        for len in 4..good.len() {
            assert_eq!(Probe::decode(&good[..len]), Err(Unknown::Length), "{len} bytes");
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let good = Control::Hello(Box::new(hello())).encode();
        let with = |at: usize, value: u8| {
            let mut bytes = good.to_vec();
            bytes[at] = value;
            Control::decode(&bytes).expect_err("refused")
        };
        assert_eq!(with(0, 0x12), Unknown::Kind, "another version");
        assert_eq!(with(1, 9), Unknown::Kind);
        assert_eq!(with(2, 0x55), Unknown::Length, "longer than what is there");
        assert_eq!(with(2, 0x53), Unknown::Length);
        assert_eq!(with(2, 3), Unknown::Length, "shorter than its header");
        assert_eq!(with(25, 3), Unknown::Length, "so many links are not there");
        for (at, value) in [
            (24, 0),
            (24, 65),
            (28, 0),
            (28, 16),
            (28, 15),
            (36, 224),
            (40, 0xff),
        ] {
            assert_eq!(with(at, value), Unknown::Value, "{at}");
        }
        for len in 0..good.len() {
            assert_eq!(Control::decode(&good[..len]), Err(Unknown::Length), "{len} bytes");
        }
    }

    #[test]
    fn a_full_table_fits() {
        let mut full = hello();
        let link = full.links[0];
        full.links = (1..=15)
            .map(|id| LinkInfo {
                id: LinkId::new(id).unwrap(),
                ..link
            })
            .collect();
        let bytes = Control::Hello(Box::new(full.clone())).encode();
        assert_eq!(bytes.len(), CONTROL_MAX);
        assert_eq!(Control::decode(&bytes), Ok(Control::Hello(Box::new(full))));
    }

    #[test]
    fn no_ip_packet_is_a_control_message() {
        for first in 0..=255u8 {
            assert_eq!(is_control(&[first]), first >> 4 == 1);
        }
        assert!(!is_control(&[]));
    }

    proptest! {
        #[test]
        fn any_bytes_are_understood_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..600), kind in 0..7u8) {
            let mut bytes = bytes;
            let _ = (Control::decode(&bytes), Probe::decode(&bytes), Sizing::decode(&bytes));
            if bytes.len() > 4 {
                bytes[0] = FIRST;
                bytes[1] = kind;
                let len = (bytes.len() as u16).to_le_bytes();
                bytes[2..4].copy_from_slice(&len);
                if let Ok(message) = Control::decode(&bytes) {
                    let again = message.encode();
                    prop_assert_eq!(Control::decode(&again), Ok(message));
                }
                if let Ok(message) = Probe::decode(&bytes) {
                    prop_assert_eq!(Probe::decode(&message.encode()), Ok(message));
                }
            }
        }
    }

    /// docs/wire.md, section 6.
    #[test]
    fn packets_that_go_twice_begin_as_the_document_says() {
        let header = doubled(28, 0x0102_0304);
        assert_eq!(header, [0x11, 6, 0x24, 0, 4, 3, 2, 1]);
        let mut content = header.to_vec();
        content.extend([0x45; 28]);
        // And padding.
        content.extend([0; 12]);
        assert!(is_doubled(&content) && is_control(&content));
        assert_eq!(read_doubled(&content), Some((0x0102_0304, 36)));
        assert_eq!(Control::decode(&content), Err(Unknown::Kind));
        for (at, value) in [(2, 49), (2, 7), (3, 1)] {
            let mut wrong = content.clone();
            wrong[at] = value;
            assert_eq!(read_doubled(&wrong), None, "{at}: {value}");
        }
        assert_eq!(read_doubled(&content[..7]), None);
    }
}
