//! What stands in a wg-quick file, as `wg` understands it.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;

use super::{Given, Interface, Peer};
use crate::error::{Error, nearest, plain, without_keys};
use crate::value::{Network, PublicKey};

const INTERFACE_KEYS: [&str; 12] = [
    "PrivateKey",
    "ListenPort",
    "FwMark",
    "Address",
    "DNS",
    "MTU",
    "Table",
    "PreUp",
    "PostUp",
    "PreDown",
    "PostDown",
    "SaveConfig",
];
const PEER_KEYS: [&str; 5] = [
    "PublicKey",
    "PresharedKey",
    "AllowedIPs",
    "Endpoint",
    "PersistentKeepalive",
];

/// A line `Key = Value`, and where the value is.
struct Line<'a> {
    text: &'a str,
    /// As [`INTERFACE_KEYS`] or [`PEER_KEYS`] write it.
    key: &'static str,
    value: &'a str,
    /// Where the value begins.
    at: usize,
}

/// What stands in this file; `name` is the interface's.
pub(super) fn read<'a>(text: &'a str, name: &str) -> Result<Given<'a>, Error> {
    let mut reader = Reader {
        text,
        interface: Interface::default(),
        seen_interface: false,
        peers: Vec::new(),
        comments: Vec::new(),
        notes: Vec::new(),
    };
    reader.read(name)?;
    let peers = reader.merge();
    Ok(Given {
        interface: reader.interface,
        peers,
        notes: reader.notes,
    })
}

struct Reader<'a> {
    text: &'a str,
    interface: Interface<'a>,
    seen_interface: bool,
    peers: Vec<Peer<'a>>,
    /// Those that may belong to the next section.
    comments: Vec<&'a str>,
    notes: Vec<String>,
}

impl<'a> Reader<'a> {
    fn error(&self, at: usize, len: usize, said: impl Into<String>) -> Error {
        Error::at(self.text, at..at + len, said)
    }

    fn read(&mut self, name: &str) -> Result<(), Error> {
        let mut at = 0;
        let mut in_peer = None;
        for line in self.text.split_inclusive('\n') {
            let begin = at;
            at += line.len();
            let (code, comment) = line
                .split_once('#')
                .map_or((line, None), |(code, comment)| (code, Some(comment)));
            let code_at = begin + code.len() - code.trim_start().len();
            let code = code.trim();
            if let Some(comment) = comment.map(|comment| comment.trim_matches(['#', ' ', '\t', '\r', '\n'])) {
                match in_peer {
                    // Behind the header and before the first key it belongs to this peer.
                    Some(true) if self.is_untouched() => self.last_peer().comments.push(comment),
                    _ if code.is_empty() => self.comments.push(comment),
                    _ => {}
                }
            }
            if code.is_empty() {
                if comment.is_none() {
                    self.comments.clear();
                }
                continue;
            }
            if code.starts_with('[') {
                in_peer = Some(self.header(code, code_at)?);
                continue;
            }
            let line = self.line(code, code_at, in_peer)?;
            self.comments.clear();
            match in_peer {
                Some(true) => self.peer_line(&line)?,
                _ => self.interface_line(&line, name)?,
            }
        }
        if self.seen_interface {
            return Ok(());
        }
        let said = "this is no wg-quick file: it has no [Interface]";
        Err(self
            .error(0, 0, said)
            .with_hint("expected [Interface], and below it `PrivateKey = ...`"))
    }

    /// Whether the last peer has no key yet.
    fn is_untouched(&self) -> bool {
        let fresh = |peer: &Peer<'_>| {
            let nothing = peer.psk.is_none() && peer.endpoint.is_none() && peer.host.is_none();
            nothing && peer.public_key.is_none() && peer.allowed_ips.is_empty() && peer.keepalive.is_none()
        };
        self.peers.last().is_some_and(fresh)
    }

    fn last_peer(&mut self) -> &mut Peer<'a> {
        self.peers
            .last_mut()
            .expect("lines of a peer come behind its header")
    }

    /// Begins a section; says whether it is a peer's.
    fn header(&mut self, code: &str, at: usize) -> Result<bool, Error> {
        let comments = std::mem::take(&mut self.comments);
        match code.to_ascii_lowercase().as_str() {
            "[interface]" => {
                self.seen_interface = true;
                Ok(false)
            }
            "[peer]" => {
                self.peers.push(Peer {
                    comments,
                    at,
                    ..Peer::default()
                });
                Ok(true)
            }
            _ => {
                let name = code.split_inclusive(']').next().unwrap_or(code);
                let known = ["[interface]", "[peer]"]
                    .iter()
                    .any(|known| known.eq_ignore_ascii_case(name));
                let shown = without_keys(&plain(name));
                let said = if known {
                    format!("behind `{shown}` the line has to end")
                } else {
                    format!("unknown section `{shown}`")
                };
                let error = self.error(at, name.len(), said).hidden_always();
                Err(error.with_hint("known here: [Interface], [Peer]"))
            }
        }
    }

    fn line(&self, code: &'a str, at: usize, in_peer: Option<bool>) -> Result<Line<'a>, Error> {
        let known: &[&'static str] = match in_peer {
            Some(true) => &PEER_KEYS,
            Some(false) => &INTERFACE_KEYS,
            None => {
                let said = "this line is in no section";
                return Err(self
                    .error(at, code.len(), said)
                    .hidden_always()
                    .with_hint("expected [Interface] above it"));
            }
        };
        let pair = code.split_once('=');
        let Some((key, value)) = pair.filter(|(key, _)| !key.trim().contains(char::is_whitespace)) else {
            let said = "expected `Key = Value`";
            return Err(self
                .error(at, code.len(), said)
                .hidden_always()
                .with_hint("wg-quick(8) explains the keys"));
        };
        let Some(known_key) = known.iter().find(|known| known.eq_ignore_ascii_case(key.trim())) else {
            let said = format!("unknown key `{}`", without_keys(&plain(key.trim())));
            return Err(self
                .error(at, key.trim().len(), said)
                .hidden_always()
                .with_hint(nearest(key.trim(), known)));
        };
        let value_at = at + key.len() + 1 + (value.len() - value.trim_start().len());
        Ok(Line {
            text: self.text,
            key: known_key,
            value: value.trim(),
            at: value_at,
        })
    }

    fn interface_line(&mut self, line: &Line<'a>, name: &str) -> Result<(), Error> {
        let interface = &mut self.interface;
        let value = line.value;
        match line.key {
            "PrivateKey" => interface.private_key = Some(line.secret()?),
            "ListenPort" => {
                interface.listen_port =
                    Some(line.number(u16::MAX.into(), "a UDP port from 0 to 65535")? as u16)
            }
            "FwMark" if value.eq_ignore_ascii_case("off") => interface.fwmark = None,
            "FwMark" => {
                interface.fwmark =
                    Some(line.number(u32::MAX.into(), "a mark: a number, 0x and one, or `off`")? as u32)
            }
            "Address" => interface.addresses.extend(line.addresses()?),
            "DNS" => interface.dns.extend(line.names()?),
            "MTU" => interface.mtu = Some(line.number(65535, "an MTU from 0 to 65535")? as u16),
            "Table" => interface.table = Some(line.table()?),
            "SaveConfig" => interface.saves = value.eq_ignore_ascii_case("true"),
            _ => {
                let command = without_keys(&plain(&value.replace("%i", name)));
                interface.commands.push((line.key, command));
            }
        }
        Ok(())
    }

    fn peer_line(&mut self, line: &Line<'a>) -> Result<(), Error> {
        match line.key {
            "PublicKey" => {
                let key = line
                    .value
                    .parse()
                    .map_err(|expected| line.wrong(expected, "as `wg pubkey` prints it"))?;
                self.last_peer().public_key = Some(key);
            }
            "PresharedKey" => self.last_peer().psk = Some(line.secret()?),
            "AllowedIPs" => {
                for (at, text) in line.list() {
                    // A sign says what `wg set` is to do with it; in a file there is nothing to take away from.
                    let network = network(text.trim_start_matches('+'));
                    let wrong = || line.wrong_at(at, text, "expected a network such as 10.1.0.0/16");
                    let network = network.ok_or_else(wrong)?;
                    self.last_peer().allowed_ips.push(network);
                }
            }
            "Endpoint" => match line.value.parse() {
                Ok(endpoint) => self.last_peer().endpoint = Some(endpoint),
                Err(_) if is_host(line.value) => self.last_peer().host = Some(line.value),
                Err(expected) => {
                    return Err(line.wrong(
                        expected,
                        "an address or a name, and a UDP port: vpn.example.org:51820",
                    ));
                }
            },
            _ if line.value.eq_ignore_ascii_case("off") => self.last_peer().keepalive = None,
            _ => {
                let every = line.number(u16::MAX.into(), "seconds from 0 to 65535, or `off`")? as u16;
                self.last_peer().keepalive = Some(every).filter(|every| *every > 0);
            }
        }
        Ok(())
    }

    /// The peers as `wg setconf` takes them: of what stands there twice, the last counts.
    fn merge(&mut self) -> Vec<(PublicKey, Peer<'a>)> {
        let mut places: HashMap<PublicKey, usize> = HashMap::new();
        let mut merged: Vec<(PublicKey, Peer<'a>)> = Vec::new();
        for peer in std::mem::take(&mut self.peers) {
            let Some(key) = peer.public_key else {
                let line = self.text[..peer.at].matches('\n').count() + 1;
                let said = format!("line {line}: a [Peer] without a PublicKey is nobody: left out");
                self.notes.push(said);
                continue;
            };
            if let Some(at) = places.get(&key) {
                let said = format!("peer {key} stands there twice: the second takes the place of the first");
                self.notes.push(said);
                let before = std::mem::take(&mut merged[*at].1);
                merged[*at].1 = peer.instead_of(before);
            } else {
                places.insert(key, merged.len());
                merged.push((key, peer));
            }
        }
        let mut taken = HashSet::new();
        for (key, peer) in merged.iter_mut().rev() {
            let mut own = HashSet::new();
            peer.allowed_ips.retain(|network| own.insert(*network));
            peer.allowed_ips.retain(|network| taken.insert(*network));
            if peer.allowed_ips.len() < own.len() {
                let said = format!("peer {key}: some AllowedIPs are a later peer's too, which has them");
                self.notes.push(said);
            }
        }
        merged
    }
}

impl<'a> Peer<'a> {
    /// Networks are replaced, everything else stays if it is not said again.
    fn instead_of(self, before: Peer<'a>) -> Peer<'a> {
        let comments = before.comments.into_iter();
        Peer {
            endpoint: self.endpoint.or(before.endpoint),
            host: self.host.or(before.host),
            psk: self.psk.or(before.psk),
            keepalive: self.keepalive.or(before.keepalive),
            comments: comments.chain(self.comments).collect(),
            ..self
        }
    }
}

impl<'a> Line<'a> {
    fn wrong(&self, expected: impl fmt::Display, hint: &str) -> Error {
        self.wrong_at(self.at, self.value, expected).with_hint(hint)
    }

    fn wrong_at(&self, at: usize, value: &str, expected: impl fmt::Display) -> Error {
        let said = format!("`{}`: {expected}", without_keys(&plain(value)));
        Error::at(self.text, at..at + value.len(), said).with_hint("wg-quick(8) explains the keys")
    }

    /// A key in base64, which is not looked at further.
    fn secret(&self) -> Result<&'a str, Error> {
        if self.value.parse::<PublicKey>().is_ok() {
            return Ok(self.value);
        }
        let said = format!("{}: expected a key in base64, 44 characters", self.key);
        let error = Error::at(self.text, self.at..self.at + self.value.len(), said);
        Err(error
            .hidden_always()
            .with_hint("as `wg genkey` and `wg genpsk` write it"))
    }

    fn number(&self, most: u64, expected: &str) -> Result<u64, Error> {
        let digits = |text: &str, radix| {
            let plain = text.bytes().all(|b| b.is_ascii_hexdigit());
            u64::from_str_radix(text, radix).ok().filter(|_| plain)
        };
        let number = match self.value.strip_prefix("0x").filter(|_| self.key == "FwMark") {
            Some(hex) => digits(hex, 16),
            None => digits(self.value, 10),
        };
        number.filter(|number| *number <= most).ok_or_else(|| {
            self.wrong(
                format_args!("expected {expected}"),
                "wg-quick(8) explains the keys",
            )
        })
    }

    /// What stands between commas, and where.
    fn list(&self) -> impl Iterator<Item = (usize, &'a str)> + use<'a> {
        let (mut next, value) = (self.at, self.value);
        value.split(',').filter_map(move |part| {
            let at = next + (part.len() - part.trim_start().len());
            next += part.len() + 1;
            Some((at, part.trim())).filter(|(_, part)| !part.is_empty())
        })
    }

    fn addresses(&self) -> Result<Vec<String>, Error> {
        let mut addresses = Vec::new();
        for (at, text) in self.list() {
            let address =
                network(text).map(|network| (text.split('/').next().unwrap_or_default(), network.len));
            let (address, len) =
                address.ok_or_else(|| self.wrong_at(at, text, "expected an address such as 10.8.0.1/24"))?;
            addresses.push(format!("{address}/{len}"));
        }
        Ok(addresses)
    }

    /// Name servers, and domains to look for names in.
    fn names(&self) -> Result<Vec<String>, Error> {
        let letter = |b: u8| b.is_ascii_alphanumeric() || b"-_.:~".contains(&b);
        let mut names = Vec::new();
        for (at, text) in self.list() {
            if !text.bytes().all(letter) {
                return Err(self.wrong_at(at, text, "expected a name server's address, or a domain"));
            }
            names.push(without_keys(text));
        }
        Ok(names)
    }

    fn table(&self) -> Result<&'a str, Error> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if !self.value.is_empty() && self.value.bytes().all(plain) {
            return Ok(self.value);
        }
        Err(self.wrong(
            "expected `off`, `auto`, or a routing table's number or name",
            "wg-quick(8) explains the keys",
        ))
    }
}
/// A network as `wg` takes it: bits behind the prefix do not count.
fn network(text: &str) -> Option<Network> {
    let (addr, len) = text
        .split_once('/')
        .map_or((text, None), |(addr, len)| (addr, Some(len)));
    let addr: IpAddr = addr.parse().ok()?;
    let whole = if addr.is_ipv4() { 32 } else { 128 };
    let len = match len {
        Some(len) if len.bytes().all(|b| b.is_ascii_digit()) => len.parse().ok()?,
        Some(_) => return None,
        None => whole,
    };
    Network::around(addr, len)
}

/// Whether it is a host's name and a UDP port.
fn is_host(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && host.bytes().all(plain) && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}
