//! The `set=1` request: lines of `key=value` into a [`SetRequest`].
//!
//! Sans-IO: [`server`](super::server) feeds it a line at a time on the slow-path thread, the fuzzer and the tests do the same. Nothing is
//! applied here, so a request that turns out bad on its last line has changed nothing.
//!
//! What a line may say follows wireguard-go: the interface's keys come before the first `public_key`, a key that is
//! repeated overrides the earlier one, hex digits may be of either case, and anything unknown is refused.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use patronus_crypto::PublicKey;
use patronus_mem::Secret;
use rustix::io::Errno;

use crate::allowedips::Prefix;

/// What one request may hold at most.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Bytes of all lines, with their line ends.
    pub bytes: usize,
    /// `public_key` lines.
    pub peers: usize,
    /// `allowed_ip` lines of all peers together.
    pub allowed_ips: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            bytes: 64 << 20,
            peers: 1 << 17,
            allowed_ips: 1 << 20,
        }
    }
}

/// A whole, valid `set=1` request. `None` means "leave as it is".
#[derive(Default)]
pub struct SetRequest {
    /// The interface's own private key, clamped; `Some(None)` clears it.
    pub private_key: Option<Option<Secret<32>>>,
    /// UDP port to listen on; 0 lets the kernel choose.
    pub listen_port: Option<u16>,
    /// Mark of outgoing packets; 0 clears it.
    pub fwmark: Option<u32>,
    /// Remove every peer before `peers` are looked at.
    pub replace_peers: bool,
    /// Changes to peers, to be applied in this order; a public key may come more than once.
    pub peers: Vec<SetPeer>,
}

/// The changes to one peer.
pub struct SetPeer {
    /// Which peer. It is added if it is not there yet, unless `remove` or `update_only` is set.
    pub public_key: PublicKey,
    /// Remove the peer. All the other fields are at their defaults then.
    pub remove: bool,
    /// Do nothing if there is no such peer.
    pub update_only: bool,
    /// The pre-shared key; `Some(None)` clears it.
    pub preshared_key: Option<Option<Secret<32>>>,
    /// Where the peer is. An IPv4-mapped address has become the IPv4 address.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between keepalives, 0 is off.
    pub persistent_keepalive: Option<u16>,
    /// Take all allowed-ips from the peer before `allowed_ips` are looked at.
    pub replace_allowed_ips: bool,
    /// Changes to the allowed-ips, to be applied in this order.
    pub allowed_ips: Vec<AllowedIpChange>,
}

impl SetPeer {
    /// No change to that peer; it is added if it is not there yet.
    pub fn new(public_key: PublicKey) -> Self {
        SetPeer {
            public_key,
            remove: false,
            update_only: false,
            preshared_key: None,
            endpoint: None,
            persistent_keepalive: None,
            replace_allowed_ips: false,
            allowed_ips: Vec::new(),
        }
    }
}

/// One `allowed_ip` line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AllowedIpChange {
    /// Take the prefix from this peer if the peer has it (the line's value began with `-`), instead of giving it to the peer.
    pub remove: bool,
    /// The network, host bits zero.
    pub addr: IpAddr,
    /// Length of the prefix: at most 32 or 128 as the family has it.
    pub cidr: u8,
}

/// Reads the lines that follow `set=1`, up to and without the blank one.
pub struct SetParser {
    limits: Limits,
    bytes: usize,
    allowed_ips: usize,
    state: Result<SetRequest, Errno>,
}

impl SetParser {
    /// A parser that has seen no line.
    pub fn new(limits: Limits) -> Self {
        SetParser {
            limits,
            bytes: 0,
            allowed_ips: 0,
            state: Ok(SetRequest::default()),
        }
    }

    /// Reads one line, given without its line feed. Once a line was bad, its error is the answer to every further one and
    /// what was understood before it is gone.
    ///
    /// An endpoint's zone (`fe80::1%3`) has to be a number; [`line_with_zones`](Self::line_with_zones) takes names too.
    pub fn line(&mut self, line: &[u8]) -> Result<(), Errno> {
        self.line_with_zones(line, &|_| None)
    }

    /// As [`line`](Self::line), and `zone_index` turns the name of an endpoint's zone into an interface index.
    pub fn line_with_zones(
        &mut self,
        line: &[u8],
        zone_index: &dyn Fn(&str) -> Option<u32>,
    ) -> Result<(), Errno> {
        let result = self.understand(line, zone_index);
        if let Err(errno) = result {
            self.state = Err(errno);
        }
        result
    }

    /// Whether the lines so far, good or bad, have more bytes than the limit.
    pub fn exhausted(&self) -> bool {
        self.bytes > self.limits.bytes
    }

    /// The request, if every line was good.
    pub fn finish(self) -> Result<SetRequest, Errno> {
        self.state
    }

    fn understand(&mut self, line: &[u8], zone_index: &dyn Fn(&str) -> Option<u32>) -> Result<(), Errno> {
        self.bytes = self.bytes.saturating_add(line.len() + 1);
        let request = self.state.as_mut().map_err(|errno| *errno)?;
        if self.bytes > self.limits.bytes {
            return Err(Errno::TOOBIG);
        }
        let equals = line.iter().position(|&b| b == b'=').ok_or(Errno::PROTO)?;
        let (key, value) = (&line[..equals], &line[equals + 1..]);

        if key == b"public_key" {
            let mut public_key = PublicKey([0; 32]);
            hex_key(value, &mut public_key.0)?;
            if request.peers.len() == self.limits.peers {
                return Err(Errno::TOOBIG);
            }
            request.peers.push(SetPeer::new(public_key));
            return Ok(());
        }
        match request.peers.last_mut() {
            None => interface_line(request, key, value),
            Some(peer) => {
                if key == b"allowed_ip" {
                    self.allowed_ips += 1;
                    if self.allowed_ips > self.limits.allowed_ips {
                        return Err(Errno::TOOBIG);
                    }
                }
                peer_line(peer, key, value, zone_index)
            }
        }
    }
}

/// A line before the first `public_key`.
fn interface_line(request: &mut SetRequest, key: &[u8], value: &[u8]) -> Result<(), Errno> {
    match key {
        b"private_key" => request.private_key = Some(secret(value)?.map(clamp)),
        b"listen_port" => request.listen_port = Some(number(value)?),
        b"fwmark" => request.fwmark = Some(number(value)?),
        b"replace_peers" => request.replace_peers = only_true(value)?,
        _ => return Err(Errno::INVAL),
    }
    Ok(())
}

/// A line after a `public_key`.
fn peer_line(
    peer: &mut SetPeer,
    key: &[u8],
    value: &[u8],
    zone_index: &dyn Fn(&str) -> Option<u32>,
) -> Result<(), Errno> {
    match key {
        b"remove" => {
            *peer = SetPeer {
                remove: only_true(value)?,
                ..SetPeer::new(peer.public_key)
            };
            return Ok(());
        }
        b"update_only" => peer.update_only = only_true(value)?,
        b"preshared_key" => peer.preshared_key = Some(secret(value)?),
        b"endpoint" => peer.endpoint = Some(endpoint(value, zone_index)?),
        b"persistent_keepalive_interval" => peer.persistent_keepalive = Some(number(value)?),
        b"replace_allowed_ips" => {
            peer.replace_allowed_ips = only_true(value)?;
            peer.allowed_ips.clear();
        }
        b"allowed_ip" => peer.allowed_ips.push(allowed_ip(value)?),
        b"protocol_version" if value == b"1" => {}
        _ => return Err(Errno::INVAL),
    }
    if peer.remove {
        // The line is held to the rules and says nothing: the peer is gone.
        *peer = SetPeer {
            remove: true,
            ..SetPeer::new(peer.public_key)
        };
    }
    Ok(())
}

/// 64 hex digits into a key, in place: a key that is returned by value leaves copies on the stack.
fn hex_key(value: &[u8], key: &mut [u8; 32]) -> Result<(), Errno> {
    if value.len() != 64 {
        return Err(Errno::INVAL);
    }
    for (byte, digits) in key.iter_mut().zip(value.chunks_exact(2)) {
        *byte = hex_digit(digits[0])? << 4 | hex_digit(digits[1])?;
    }
    Ok(())
}

fn hex_digit(digit: u8) -> Result<u8, Errno> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        b'A'..=b'F' => Ok(digit - b'A' + 10),
        _ => Err(Errno::INVAL),
    }
}

/// A secret key; all zeros stand for none.
fn secret(value: &[u8]) -> Result<Option<Secret<32>>, Errno> {
    let mut key = Secret::zeroed();
    hex_key(value, &mut key)?;
    let any_bit = key.iter().fold(0, |bits, byte| bits | byte) != 0;
    Ok(any_bit.then_some(key))
}

/// RFC 7748, section 5: what X25519 does to a scalar anyway, done here so that the key shown is the key in use.
pub(crate) fn clamp(mut key: Secret<32>) -> Secret<32> {
    key[0] &= 248;
    key[31] = (key[31] & 127) | 64;
    key
}

/// A decimal number that fits: digits only, neither sign nor space.
fn number<T: std::str::FromStr>(value: &[u8]) -> Result<T, Errno> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(Errno::INVAL);
    }
    text(value)?.parse().map_err(|_| Errno::INVAL)
}

fn only_true(value: &[u8]) -> Result<bool, Errno> {
    if value == b"true" {
        Ok(true)
    } else {
        Err(Errno::INVAL)
    }
}

fn text(value: &[u8]) -> Result<&str, Errno> {
    std::str::from_utf8(value).map_err(|_| Errno::INVAL)
}

/// `1.2.3.4:51820`, `[2001:db8::1]:51820` or `[fe80::1%eth0]:51820`.
fn endpoint(value: &[u8], zone_index: &dyn Fn(&str) -> Option<u32>) -> Result<SocketAddr, Errno> {
    let value = text(value)?;
    let (host, port) = value.rsplit_once(':').ok_or(Errno::INVAL)?;
    let port = number(port.as_bytes())?;
    let Some(host) = host.strip_prefix('[') else {
        let ip = host.parse().map_err(|_| Errno::INVAL)?;
        return Ok(SocketAddr::V4(SocketAddrV4::new(ip, port)));
    };
    let host = host.strip_suffix(']').ok_or(Errno::INVAL)?;
    let (host, scope) = match host.split_once('%') {
        None => (host, 0),
        Some((host, zone)) => (
            host,
            number(zone.as_bytes())
                .ok()
                .or_else(|| zone_index(zone))
                .ok_or(Errno::INVAL)?,
        ),
    };
    let ip: Ipv6Addr = host.parse().map_err(|_| Errno::INVAL)?;
    Ok(match ip.to_ipv4_mapped() {
        // Our IPv6 socket is for IPv6 only, so a mapped address could never be reached as it stands.
        Some(ip) => SocketAddr::V4(SocketAddrV4::new(ip, port)),
        None => SocketAddr::V6(SocketAddrV6::new(ip, port, 0, scope)),
    })
}

/// `10.0.0.0/8`, `2001:db8::/32`, with `-` in front to take it away.
fn allowed_ip(value: &[u8]) -> Result<AllowedIpChange, Errno> {
    let value = text(value)?;
    let (remove, value) = match value.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let (addr, cidr) = value.split_once('/').ok_or(Errno::INVAL)?;
    let addr = addr.parse().map_err(|_| Errno::INVAL)?;
    let prefix = Prefix::new(addr, number(cidr.as_bytes())?).ok_or(Errno::INVAL)?;
    Ok(AllowedIpChange {
        remove,
        addr: prefix.addr(),
        cidr: prefix.cidr(),
    })
}
