//! Which frames of a NIC are the engine's: what the program of an AF_XDP port (`xdp/program.rs`) says in the kernel, for ports that have no kernel before them.
//!
//! A [`Rule`] belongs to whoever owns the configuration, each [`Sieve`] to a worker, who looks for a newer rule once for each burst.

use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrayvec::ArrayVec;
use patronus_sync::{SeqLock, SeqWriter};

use crate::ip::{IPV4_HEADER, IPV6_HEADER, PROTO_UDP, UDP_HEADER};
use crate::xdp::{NAMES_MAX, Take};

/// UDP ports that a rule names at most.
pub const PORTS_MAX: usize = 4;

const ETHERNET: usize = 14;
/// Bytes that a rule for each family looks at.
const V4: usize = ETHERNET + IPV4_HEADER;
const V6: usize = ETHERNET + IPV6_HEADER;

/// A rule as words: its kind with the link address, the UDP ports, two words for each address (RFC 4291, section 2.5.5.2 for IPv4; none: 0).
const WORDS: usize = 2 + 2 * NAMES_MAX;
const DATAGRAMS: u64 = 1 << 48;
const TRANSIT: u64 = 2 << 48;

/// What the sieves of a NIC's workers take.
pub struct Rule {
    words: SeqWriter<WORDS>,
    version: Arc<AtomicU64>,
    sieve: SeqLock<WORDS>,
}

impl Rule {
    /// Takes nothing: everything is the host's.
    #[expect(
        clippy::new_without_default,
        reason = "no value of its kind is like another one"
    )]
    pub fn new() -> Rule {
        let (words, sieve) = SeqLock::new([0; WORDS]);
        Rule {
            words,
            version: Arc::default(),
            sieve,
        }
    }

    /// A sieve that goes by it. It takes nothing before it was [refreshed](Sieve::refresh).
    pub fn sieve(&self) -> Sieve {
        Sieve {
            words: self.sieve.clone(),
            version: Arc::clone(&self.version),
            seen: u64::MAX,
            kind: Kind::Nothing,
            v4: ArrayVec::new(),
            v6: ArrayVec::new(),
        }
    }

    /// Takes nothing from now on.
    pub fn clear(&mut self) {
        self.write([0; WORDS]);
    }

    /// Takes this from now on. An error, and no change, if there are more than [`NAMES_MAX`] addresses or [`PORTS_MAX`] UDP ports.
    pub fn set(&mut self, take: &Take) -> io::Result<()> {
        let mut words = [0; WORDS];
        let addresses = match take {
            Take::Datagrams { addresses, ports } => {
                check(ports.len(), PORTS_MAX, "UDP ports")?;
                words[0] = DATAGRAMS;
                words[1] = ports.iter().fold(0, |all, port| all << 16 | u64::from(*port));
                addresses
            }
            Take::Transit { mac, addresses } => {
                let [a, b, c, d, e, f] = *mac;
                words[0] = TRANSIT | u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
                addresses
            }
        };
        check(addresses.len(), NAMES_MAX, "addresses")?;
        for (place, address) in words[2..].chunks_exact_mut(2).zip(addresses) {
            let bits = match address {
                IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
                IpAddr::V6(ip) => ip.to_bits(),
            };
            place.copy_from_slice(&[(bits >> 64) as u64, bits as u64]);
        }
        self.write(words);
        Ok(())
    }

    fn write(&mut self, words: [u64; WORDS]) {
        self.words.write(words);
        // Release: who sees the number sees the words, or newer ones.
        self.version.fetch_add(1, Ordering::Release);
    }
}

fn check(count: usize, most: usize, what: &str) -> io::Result<()> {
    if count <= most {
        return Ok(());
    }
    let why = format!("{count} {what} on an interface, at most {most} are possible");
    Err(io::Error::new(io::ErrorKind::InvalidInput, why))
}

#[derive(Clone, Copy)]
enum Kind {
    Nothing,
    Datagrams([u16; PORTS_MAX]),
    Transit([u8; 6]),
}

/// Tells the engine's frames from the host's.
pub struct Sieve {
    words: SeqLock<WORDS>,
    version: Arc<AtomicU64>,
    /// Of the rule that the rest is from.
    seen: u64,
    kind: Kind,
    v4: ArrayVec<[u8; 4], NAMES_MAX>,
    v6: ArrayVec<[u8; 16], NAMES_MAX>,
}

impl Sieve {
    /// Looks whether there is another rule.
    #[inline]
    pub fn refresh(&mut self) {
        let version = self.version.load(Ordering::Acquire);
        if version != self.seen {
            self.take_over(version);
        }
    }

    #[cold]
    fn take_over(&mut self, version: u64) {
        // It is being changed: the next burst sees it.
        let Some(words) = self.words.read() else { return };
        self.seen = version;
        self.kind = match words[0] & (DATAGRAMS | TRANSIT) {
            DATAGRAMS => Kind::Datagrams(std::array::from_fn(|at| (words[1] >> (16 * at)) as u16)),
            TRANSIT => {
                let [_, _, mac @ ..] = words[0].to_be_bytes();
                Kind::Transit(mac)
            }
            _ => Kind::Nothing,
        };
        self.v4.clear();
        self.v6.clear();
        for pair in words[2..].chunks_exact(2) {
            let address = Ipv6Addr::from_bits(u128::from(pair[0]) << 64 | u128::from(pair[1]));
            match address.to_ipv4_mapped() {
                Some(ip) => self.v4.push(ip.octets()),
                None if address.is_unspecified() => {}
                None => self.v6.push(address.octets()),
            }
        }
    }

    /// Whether a frame is the engine's.
    #[inline]
    pub fn takes(&self, frame: &[u8]) -> bool {
        let Some(head) = frame.first_chunk::<V4>() else {
            return false;
        };
        match (self.kind, [head[12], head[13]]) {
            (Kind::Datagrams(ports), [0x08, 0x00]) => self.is_datagram_v4(head, frame, &ports),
            (Kind::Datagrams(ports), [0x86, 0xdd]) => self.is_datagram_v6(frame, &ports),
            (Kind::Transit(mac), [0x08, 0x00]) => head.starts_with(&mac) && self.is_transit_v4(head),
            (Kind::Transit(mac), [0x86, 0xdd]) => head.starts_with(&mac) && self.is_transit_v6(frame),
            _ => false,
        }
    }

    /// UDP in one piece and without options, to us.
    #[inline]
    fn is_datagram_v4(&self, head: &[u8; V4], frame: &[u8], ports: &[u16; PORTS_MAX]) -> bool {
        let fragment = u16::from_be_bytes([head[20], head[21]]) & 0x3fff;
        let whole = head[14] == 0x45 && fragment == 0 && head[23] == PROTO_UDP;
        whole && self.v4.contains(&tail(head)) && is_to(frame, V4, ports)
    }

    #[inline]
    fn is_datagram_v6(&self, frame: &[u8], ports: &[u16; PORTS_MAX]) -> bool {
        let Some(head) = frame.first_chunk::<V6>() else {
            return false;
        };
        head[20] == PROTO_UDP && self.v6.contains(&tail(head)) && is_to(frame, V6, ports)
    }

    #[inline]
    fn is_transit_v4(&self, head: &[u8; V4]) -> bool {
        let to: [u8; 4] = tail(head);
        // Multicast, reserved and broadcast: 224.0.0.0 and up; link-local: 169.254.0.0/16 (RFC 3927).
        to[0] < 224 && !to.starts_with(&[169, 254]) && !self.v4.contains(&to)
    }

    #[inline]
    fn is_transit_v6(&self, frame: &[u8]) -> bool {
        let Some(head) = frame.first_chunk::<V6>() else {
            return false;
        };
        let to: [u8; 16] = tail(head);
        // Multicast: ff00::/8; link-local: fe80::/10 (RFC 4291).
        to[0] != 0xff && !(to[0] == 0xfe && to[1] & 0xc0 == 0x80) && !self.v6.contains(&to)
    }
}

/// The destination address, which both families' headers end with.
#[inline]
fn tail<const N: usize>(head: &[u8]) -> [u8; N] {
    *head.last_chunk().expect("a header is longer than its last field")
}

/// Whether a UDP header stands at `at` that leads to one of the ports.
#[inline]
fn is_to(frame: &[u8], at: usize, ports: &[u16; PORTS_MAX]) -> bool {
    let Some(udp) = frame.get(at..at + UDP_HEADER) else {
        return false;
    };
    let port = u16::from_be_bytes([udp[2], udp[3]]);
    // 0 stands for no port.
    port != 0 && ports.contains(&port)
}
