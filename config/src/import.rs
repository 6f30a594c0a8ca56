//! From a wg-quick file (wg-quick(8), wg(8)) to a site's file.
//!
//! Called by the command line's `import`. What our file has no word for is not lost silently: a note says what it was and what to do instead.
//! Secrets go into key files of their own; neither the file, nor a note, nor an error repeats one.

use std::collections::{HashMap, HashSet};
use std::fmt::{self, Write};
use std::net::IpAddr;

use zeroize::Zeroizing;

use crate::error::{Error, nearest, plain, without_keys};
use crate::matching::Name;
use crate::value::{Endpoint, InterfaceName, Network, PublicKey};

/// What has become of a wg-quick file.
#[derive(Debug)]
pub struct Imported {
    /// The site's file.
    pub toml: String,
    /// The files with keys that it names, to be written beside it with mode 0600.
    pub key_files: Vec<KeyFile>,
    /// What could not be carried over, and what to do instead.
    pub notes: Vec<String>,
}

/// A file with a key.
pub struct KeyFile {
    /// What it is called.
    pub name: String,
    /// What it holds.
    pub text: Zeroizing<String>,
}

impl fmt::Debug for KeyFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyFile")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

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
/// Keys whose values are not repeated.
const SECRET_KEYS: [&str; 2] = ["PrivateKey", "PresharedKey"];
/// What people and programs write before a name in a comment.
const NAME_MARKS: [&str; 6] = ["friendly_name", "name", "client", "begin_peer", "peer", "device"];
/// A comment of more words is no name.
const NAME_WORDS: usize = 3;

/// A line `Key = Value`, and where the value is.
struct Line<'a> {
    text: &'a str,
    /// As [`INTERFACE_KEYS`] or [`PEER_KEYS`] write it.
    key: &'static str,
    value: &'a str,
    /// Where the value begins.
    at: usize,
}

#[derive(Default)]
struct Interface<'a> {
    private_key: Option<&'a str>,
    listen_port: Option<u16>,
    fwmark: Option<u32>,
    addresses: Vec<String>,
    dns: Vec<String>,
    mtu: Option<u16>,
    table: Option<&'a str>,
    /// What is run when, with the interface's name.
    commands: Vec<(&'static str, String)>,
    saves: bool,
}

#[derive(Default)]
struct Peer<'a> {
    comments: Vec<&'a str>,
    public_key: Option<PublicKey>,
    psk: Option<&'a str>,
    allowed_ips: Vec<Network>,
    endpoint: Option<Endpoint>,
    /// An endpoint that has a name instead of an address.
    host: Option<&'a str>,
    keepalive: Option<u16>,
    /// Where its section begins.
    at: usize,
}

/// Makes a site's file from the text of a wg-quick file. `name` is what the interface is to be called, which is what such a file is called without
/// `.conf`.
pub fn import_wg_quick(text: &str, name: &str) -> Result<Imported, Error> {
    let interface: InterfaceName = name.parse().map_err(|expected: crate::value::Expected| {
        Error::nowhere(expected.instead_of(name, None)).with_hint("say how the interface is to be called")
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader = Reader {
        text,
        interface: Interface::default(),
        seen_interface: false,
        peers: Vec::new(),
        comments: Vec::new(),
        notes: Vec::new(),
    };
    reader.read(interface.as_str()).map_err(Error::without_keys)?;
    reader.merge();
    let toml = reader.write(interface.as_str());
    let imported = Imported {
        key_files: reader.key_files(interface.as_str()),
        toml,
        notes: reader.notes_in_words(interface.as_str()),
    };
    crate::parse(&imported.toml).map(|_| imported)
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

    /// As `wg setconf` takes it: of what stands there twice, the last counts.
    fn merge(&mut self) {
        let mut places: HashMap<PublicKey, usize> = HashMap::new();
        let mut merged: Vec<Peer<'a>> = Vec::new();
        for peer in std::mem::take(&mut self.peers) {
            let Some(key) = peer.public_key else {
                let line = self.text[..peer.at].matches('\n').count() + 1;
                self.notes.push(format!(
                    "line {line}: a [Peer] without a PublicKey is nobody: left out"
                ));
                continue;
            };
            if let Some(at) = places.get(&key) {
                let before = &mut merged[*at];
                self.notes.push(format!(
                    "peer {key} stands there twice: the second takes the place of the first"
                ));
                let comments = std::mem::take(&mut before.comments);
                *before = Peer {
                    endpoint: peer.endpoint.or(before.endpoint),
                    host: peer.host.or(before.host),
                    psk: peer.psk.or(before.psk),
                    keepalive: peer.keepalive.or(before.keepalive),
                    comments: comments.into_iter().chain(peer.comments).collect(),
                    ..peer
                };
                continue;
            }
            places.insert(key, merged.len());
            merged.push(peer);
        }
        let mut taken = HashSet::new();
        for peer in merged.iter_mut().rev() {
            let mut own = HashSet::new();
            peer.allowed_ips.retain(|network| own.insert(*network));
            peer.allowed_ips.retain(|network| taken.insert(*network));
            if peer.allowed_ips.len() < own.len() {
                let key = peer.public_key.expect("those without were left out");
                self.notes.push(format!(
                    "peer {key}: some AllowedIPs are a later peer's too, which has them"
                ));
            }
        }
        self.peers = merged;
    }

    /// What each peer is called: by a comment, and never twice.
    fn names(&self) -> Vec<Option<String>> {
        let mut taken: HashSet<String> = HashSet::from([crate::HOST.to_owned()]);
        let mut names = Vec::new();
        for peer in &self.peers {
            let name = peer.comments.iter().find_map(|comment| name_in(comment));
            let free = name.and_then(|name| {
                let more = (2..1000).map(|n| format!("{name}-{n}"));
                let mut all = std::iter::once(name.clone()).chain(more);
                all.find(|name| name.parse::<Name>().is_ok() && !taken.contains(name))
            });
            taken.extend(free.clone());
            names.push(free);
        }
        names
    }

    fn psk_file(interface: &str, name: Option<&String>, at: usize) -> String {
        let peer = name.cloned().unwrap_or_else(|| format!("peer{}", at + 1));
        format!("{interface}-{peer}.psk")
    }

    fn key_files(&self, interface: &str) -> Vec<KeyFile> {
        let file = |name: String, key: &str| KeyFile {
            name,
            text: Zeroizing::new(format!("{key}\n")),
        };
        let own = self
            .interface
            .private_key
            .map(|key| file(format!("{interface}.key"), key));
        let peers = self.peers.iter().zip(self.names()).enumerate();
        let psks = peers.filter_map(|(at, (peer, name))| {
            Some(file(Self::psk_file(interface, name.as_ref(), at), peer.psk?))
        });
        own.into_iter().chain(psks).collect()
    }

    fn write(&self, name: &str) -> String {
        let mut to = format!("[site]\nprivate_key_file = \"{name}.key\"\n");
        let mut add = |line: fmt::Arguments<'_>| to.write_fmt(line).expect("a String takes everything");
        if let Some(port) = self.interface.listen_port {
            add(format_args!("listen_port = {port}\n"));
        }
        if let Some(mark) = self.interface.fwmark.filter(|mark| *mark != 0) {
            add(format_args!("fwmark = {mark}\n"));
        }
        add(format_args!("\n[engine]\ninterface = \"{name}\"\n"));
        for (at, (peer, called)) in self.peers.iter().zip(self.names()).enumerate() {
            add(format_args!("\n"));
            for comment in peer.comments.iter().filter(|comment| is_harmless(comment)) {
                add(format_args!("# {}\n", plain(comment)));
            }
            add(format_args!("[[peer]]\n"));
            if let Some(called) = &called {
                add(format_args!("name = \"{called}\"\n"));
            }
            let key = peer.public_key.expect("those without were left out");
            add(format_args!("public_key = \"{key}\"\n"));
            if peer.psk.is_some() {
                let file = Self::psk_file(name, called.as_ref(), at);
                add(format_args!("preshared_key_file = \"{file}\"\n"));
            }
            match (peer.endpoint, peer.host) {
                (Some(endpoint), _) => add(format_args!("endpoint = \"{}\"\n", endpoint.0)),
                (None, Some(host)) => add(format_args!("# endpoint = the address of {host}\n")),
                (None, None) => {}
            }
            let networks: Vec<String> = peer
                .allowed_ips
                .iter()
                .map(|network| format!("\"{network}\""))
                .collect();
            if !networks.is_empty() {
                add(format_args!("allowed_ips = [{}]\n", networks.join(", ")));
            }
            if let Some(every) = peer.keepalive {
                add(format_args!("keepalive = \"{every}s\"\n"));
            }
        }
        to
    }

    fn notes_in_words(&mut self, name: &str) -> Vec<String> {
        let mut notes = std::mem::take(&mut self.notes);
        let interface = &self.interface;
        if interface.private_key.is_none() {
            notes.push(format!(
                "there is no PrivateKey: put it into {name}.key, mode 0600"
            ));
        }
        for address in &interface.addresses {
            notes.push(format!(
                "Address: addresses are the host's own: ip address add {address} dev {name}"
            ));
        }
        if let Some(mtu) = interface.mtu {
            notes.push(format!(
                "MTU: it is the interface's own: ip link set {name} mtu {mtu}"
            ));
        }
        if !interface.dns.is_empty() {
            let (servers, domains): (Vec<&String>, Vec<&String>) = interface
                .dns
                .iter()
                .partition(|dns| dns.parse::<IpAddr>().is_ok());
            let join = |list: Vec<&String>| list.into_iter().cloned().collect::<Vec<_>>().join(" ");
            let mut said = format!(
                "DNS: names are the host's own business: resolvectl dns {name} {}",
                join(servers)
            );
            if !domains.is_empty() {
                said.push_str(&format!("; resolvectl domain {name} {}", join(domains)));
            }
            notes.push(said);
        }
        notes.extend(self.route_notes(name));
        for (when, command) in &interface.commands {
            let unit = match *when {
                "PreUp" => "ExecStartPre",
                "PostUp" => "ExecStartPost",
                "PreDown" => "ExecStop",
                _ => "ExecStopPost",
            };
            notes.push(format!(
                "{when}: no command is run from this file; a systemd unit has {unit} for it: {command}"
            ));
        }
        if interface.saves {
            notes.push("SaveConfig: this file is never written by the program: what is set by `wg` is gone after a reload".to_owned());
        }
        for peer in &self.peers {
            if let (None, Some(host)) = (peer.endpoint, peer.host) {
                let key = peer.public_key.expect("those without were left out");
                notes.push(format!("Endpoint of peer {key}: names are not looked up: write the address of {host} into `endpoint`"));
            }
        }
        notes
    }

    /// wg-quick routes allowed-ips into the interface; here the host's routes are the host's own.
    fn route_notes(&self, name: &str) -> Vec<String> {
        let (table, rules) = match self.interface.table {
            Some(off) if off.eq_ignore_ascii_case("off") => return Vec::new(),
            Some(auto) if auto.eq_ignore_ascii_case("auto") => (String::new(), true),
            Some(table) => (format!(" table {table}"), false),
            None => (String::new(), true),
        };
        let networks: Vec<&Network> = self.peers.iter().flat_map(|peer| &peer.allowed_ips).collect();
        let (all, some): (Vec<&Network>, Vec<&Network>) = networks
            .into_iter()
            .partition(|network| network.len == 0 && rules);
        let mut notes = Vec::new();
        if !some.is_empty() {
            let routes: Vec<String> = some
                .iter()
                .take(8)
                .map(|network| format!("ip route add {network} dev {name}{table}"))
                .collect();
            let more = some.len().saturating_sub(8);
            let more = if more > 0 {
                format!("; and {more} more")
            } else {
                String::new()
            };
            notes.push(format!(
                "the host's routes into {name} are the host's own: {}{more}",
                routes.join("; ")
            ));
        }
        if !all.is_empty() {
            notes.push(format!(
                "the host's default route into {name} is the host's own; so that datagrams do not go there too: set `fwmark = 51820` in [site], \
                 then ip route add default dev {name} table 51820; ip rule add not fwmark 51820 table 51820; \
                 ip rule add table main suppress_prefixlength 0 (and the same with ip -6)"
            ));
        }
        notes
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

/// The name in a comment: behind a mark that says so, or if it is short.
fn name_in(comment: &str) -> Option<String> {
    if !is_harmless(comment) {
        return None;
    }
    let lower = comment.to_ascii_lowercase();
    let marked = NAME_MARKS.iter().find_map(|mark| {
        let behind = comment.get(mark.len()..).filter(|_| lower.starts_with(mark))?;
        behind
            .starts_with(['=', ':', ' '])
            .then(|| behind.trim_matches(['=', ':', ' ']))
    });
    let said = marked.unwrap_or(comment);
    if said.split_whitespace().count() > NAME_WORDS || said.contains('=') {
        return None;
    }
    let letter = |c: char| {
        if c.is_ascii_alphanumeric() || "-_.".contains(c) {
            c
        } else {
            '-'
        }
    };
    let name: String = said.chars().map(letter).take(60).collect();
    let name = name.trim_matches(['-', '.']).to_owned();
    (!name.is_empty() && name.bytes().any(|b| b.is_ascii_alphanumeric())).then_some(name)
}

/// Whether a comment can be repeated: one that has been a line with a key is not.
fn is_harmless(comment: &str) -> bool {
    let mut words = comment.split(|c: char| c.is_whitespace() || c == '=' || c == ':');
    let is_secret = SECRET_KEYS
        .iter()
        .any(|key| comment.to_ascii_lowercase().contains(&key.to_ascii_lowercase()));
    !is_secret && !words.any(|word| word.len() >= 40)
}
