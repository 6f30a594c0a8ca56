//! What becomes of it: a site's file, files with keys, and notes.

use std::collections::HashSet;
use std::fmt::{self, Write};
use std::net::IpAddr;

use patronus_abi::site::TUN_MTU;
use zeroize::Zeroizing;

use super::{Given, Imported, Interface, KeyFile, Peer, SECRET_KEYS};
use crate::error::plain;
use crate::matching::Name;
use crate::value::{Network, PublicKey};

/// What people and programs write before a name in a comment.
const NAME_MARKS: [&str; 6] = ["friendly_name", "name", "client", "begin_peer", "peer", "device"];
/// A comment of more words is no name.
const NAME_WORDS: usize = 3;
/// Routes that a note tells at most.
const ROUTES_TOLD: usize = 8;
/// The mark and the table that wg-quick takes where the default route leads into the interface.
const DEFAULT_ROUTE: u32 = 51820;

/// The text of a file that grows.
struct File(String);

impl File {
    fn add(&mut self, line: fmt::Arguments<'_>) {
        self.0.write_fmt(line).expect("a String takes everything");
        self.0.push('\n');
    }
}

impl Given<'_> {
    /// All of it; `name` is the interface's.
    pub(super) fn write(mut self, name: &str) -> Imported {
        let names = self.names();
        let mut key_files = Vec::new();
        let mut keep = |name: String, key: &str| {
            let text = Zeroizing::new(format!("{key}\n"));
            key_files.push(KeyFile { name, text });
        };
        if let Some(key) = self.interface.private_key {
            keep(format!("{name}.key"), key);
        }
        let mut to = self.site(name);
        let named: HashSet<&String> = names.iter().flatten().collect();
        let unnamed = (1..).map(|n| format!("peer{n}"));
        let mut unnamed = unnamed.filter(|name| !named.contains(name));
        for ((key, peer), called) in self.peers.iter().zip(&names) {
            let psk = peer.psk.and_then(|psk| {
                let called = called.clone().or_else(|| unnamed.next())?;
                let file = format!("{name}-{called}.psk");
                keep(file.clone(), psk);
                Some(file)
            });
            peer.write(&mut to, key, called.as_deref(), psk.as_deref());
        }
        Imported {
            toml: to.0,
            key_files,
            notes: self.all_notes(name),
        }
    }

    /// What each peer is called: by a comment, and never twice.
    fn names(&self) -> Vec<Option<String>> {
        let mut taken: HashSet<String> = HashSet::from([crate::HOST.to_owned()]);
        let mut names = Vec::new();
        for (_, peer) in &self.peers {
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

    fn site(&self, name: &str) -> File {
        let mut to = File(String::new());
        to.add(format_args!("[site]\nprivate_key_file = \"{name}.key\""));
        if let Some(port) = self.interface.listen_port {
            to.add(format_args!("listen_port = {port}"));
        }
        // As wg-quick sets it by itself.
        let default = self.leads_everywhere().then_some(DEFAULT_ROUTE);
        if let Some(mark) = self.interface.fwmark.or(default).filter(|mark| *mark != 0) {
            to.add(format_args!("fwmark = {mark}"));
        }
        let addresses = self.interface.addresses.iter();
        let addresses: Vec<String> = addresses.map(|address| format!("\"{address}\"")).collect();
        if !addresses.is_empty() {
            to.add(format_args!("addresses = [{}]", addresses.join(", ")));
        }
        if let Some(mtu) = self.interface.mtu.filter(|mtu| TUN_MTU.contains(mtu)) {
            to.add(format_args!("mtu = {mtu}"));
        }
        if self.is_routed() {
            to.add(format_args!("routes = true"));
        }
        to.add(format_args!("\n[engine]\ninterface = \"{name}\""));
        to
    }

    /// Whether allowed-ips are routed in the main table, as wg-quick does unless it is told something else.
    fn is_routed(&self) -> bool {
        let mut networks = self.peers.iter().flat_map(|(_, peer)| &peer.allowed_ips);
        self.table().is_some_and(|table| table.is_empty()) && networks.any(|network| network.len > 0)
    }

    fn all_notes(&mut self, name: &str) -> Vec<String> {
        let mut notes = std::mem::take(&mut self.notes);
        let interface = &self.interface;
        interface.note_host(name, &mut notes);
        notes.extend(self.route_notes(name));
        for (when, command) in &interface.commands {
            let unit = match *when {
                "PreUp" => "ExecStartPre",
                "PostUp" => "ExecStartPost",
                "PreDown" => "ExecStop",
                _ => "ExecStopPost",
            };
            let said = "no command is run from this file; a systemd unit has";
            notes.push(format!("{when}: {said} {unit} for it: {command}"));
        }
        if interface.saves {
            let said =
                "this file is never written by the program: what is set by `wg` is gone after a reload";
            notes.push(format!("SaveConfig: {said}"));
        }
        for (key, peer) in &self.peers {
            if let (None, Some(host)) = (peer.endpoint, peer.host) {
                let said = "names are not looked up: write the address of";
                notes.push(format!("Endpoint of peer {key}: {said} {host} into `endpoint`"));
            }
        }
        notes
    }

    /// The table for routes into the interface, as `ip route` has it; nothing if there are to be none.
    fn table(&self) -> Option<String> {
        match self.interface.table {
            Some(off) if off.eq_ignore_ascii_case("off") => None,
            Some(table) if !table.eq_ignore_ascii_case("auto") => Some(format!(" table {table}")),
            _ => Some(String::new()),
        }
    }

    /// Whether wg-quick would lead everything that has no other route into the interface.
    fn leads_everywhere(&self) -> bool {
        let mut networks = self.peers.iter().flat_map(|(_, peer)| &peer.allowed_ips);
        self.table().is_some_and(|table| table.is_empty()) && networks.any(|network| network.len == 0)
    }

    /// wg-quick routes allowed-ips into the interface; here the host's routes are the host's own.
    fn route_notes(&self, name: &str) -> Vec<String> {
        let Some(table) = self.table() else {
            return Vec::new();
        };
        let mut notes = Vec::new();
        let networks = self.peers.iter().flat_map(|(_, peer)| &peer.allowed_ips);
        let everywhere = self.leads_everywhere();
        let some: Vec<&Network> = networks.filter(|_| !table.is_empty()).collect();
        let routes = some.iter().take(ROUTES_TOLD);
        let routes: Vec<String> = routes
            .map(|network| format!("ip route add {network} dev {name}{table}"))
            .collect();
        if !routes.is_empty() {
            let more = match some.len() - routes.len() {
                0 => String::new(),
                more => format!("; and {more} more"),
            };
            let routes = routes.join("; ");
            notes.push(format!(
                "the host's routes into {name} are the host's own: {routes}{more}"
            ));
        }
        if everywhere {
            let mark = self.interface.fwmark.unwrap_or(DEFAULT_ROUTE);
            notes.push(format!(
                "the host's default route into {name} is the host's own: ip route add default dev {name} table {mark}; \
                 ip rule add not fwmark {mark} table {mark}; ip rule add table main suppress_prefixlength 0 (and the same with ip -6)"
            ));
        }
        notes
    }
}

impl Interface<'_> {
    /// What the host does for the interface.
    fn note_host(&self, name: &str, notes: &mut Vec<String>) {
        if self.private_key.is_none() {
            notes.push(format!(
                "there is no PrivateKey: put it into {name}.key, mode 0600"
            ));
        }
        if let Some(mtu) = self.mtu.filter(|mtu| !TUN_MTU.contains(mtu)) {
            let said = "it is not one that `mtu` takes";
            notes.push(format!("MTU: {said}: ip link set {name} mtu {mtu}"));
        }
        let of = |is_server: bool| -> Vec<&str> {
            let dns = self.dns.iter().map(String::as_str);
            dns.filter(|dns| dns.parse::<IpAddr>().is_ok() == is_server)
                .collect()
        };
        let commands = [("dns", of(true)), ("domain", of(false))];
        let commands = commands.iter().filter(|(_, list)| !list.is_empty());
        let commands: Vec<String> = commands
            .map(|(what, list)| format!("resolvectl {what} {name} {}", list.join(" ")))
            .collect();
        if !commands.is_empty() {
            let said = "names are the host's own business";
            notes.push(format!("DNS: {said}: {}", commands.join("; ")));
        }
    }
}

impl Peer<'_> {
    fn write(&self, to: &mut File, key: &PublicKey, called: Option<&str>, psk_file: Option<&str>) {
        to.add(format_args!(""));
        for comment in self.comments.iter().filter(|comment| is_harmless(comment)) {
            to.add(format_args!("# {}", plain(comment)));
        }
        to.add(format_args!("[[peer]]"));
        if let Some(called) = called {
            to.add(format_args!("name = \"{called}\""));
        }
        to.add(format_args!("public_key = \"{key}\""));
        if let Some(file) = psk_file {
            to.add(format_args!("preshared_key_file = \"{file}\""));
        }
        match (self.endpoint, self.host) {
            (Some(endpoint), _) => to.add(format_args!("endpoint = \"{}\"", endpoint.0)),
            (None, Some(host)) => to.add(format_args!("# endpoint = the address of {host}")),
            (None, None) => {}
        }
        let networks = self.allowed_ips.iter().map(|network| format!("\"{network}\""));
        let networks: Vec<String> = networks.collect();
        if !networks.is_empty() {
            to.add(format_args!("allowed_ips = [{}]", networks.join(", ")));
        }
        if let Some(every) = self.keepalive {
            to.add(format_args!("keepalive = \"{every}s\""));
        }
    }
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
