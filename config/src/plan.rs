//! What has to be done to get from one configuration to another: in words, and for programs.
//!
//! Called before a file is applied, by whoever shows the difference or has to know whether an engine that runs can take it. Things are
//! told apart by what they are to the engine (a peer by its key, a link by its number, a route by its prefix), and called what the file
//! calls them.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::Hash;

use serde::Serialize;

use crate::Spanned;
use crate::describe::{self, Keys, Shown};
use crate::schema::{Config, Lan, Peer, Policy};

/// What is told of a list before it becomes too long to read.
const TOLD: usize = 4;

/// What happens to a thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// It was not there before.
    Added,
    /// It is not there any more.
    Removed,
    /// It says something else.
    Changed,
}

/// Who has to be started again before something is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Process {
    /// The engine, with all its sessions.
    Engine,
    /// The control process; packets do not notice.
    Control,
}

/// One key that says something else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyChange {
    /// The key.
    pub key: &'static str,
    /// What it said; none if nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// What it says; none if nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// Of a key with several values in no order: those that come.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gained: Vec<String>,
    /// And those that go.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<String>,
}

/// One thing that is another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// What happens to it.
    pub kind: Kind,
    /// The table that it has in the file: `peer`, `engine`.
    pub table: &'static str,
    /// What it is called; none if there is only one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it says; if it was there before, what it says now.
    pub keys: Vec<KeyChange>,
    /// Who has to be started again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart: Option<Process>,
    /// All of this in a line.
    pub words: String,
}

/// Why something has to be started again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Restart {
    /// What has to.
    pub process: Process,
    /// Because of what.
    pub why: String,
}

/// The difference between two configurations.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// What differs.
    pub changes: Vec<Change>,
    /// Why something has to be started again; empty if what runs can take all of it.
    pub needs_restart: Vec<Restart>,
}

impl Plan {
    /// Whether there is no difference.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Whether this has to be started again before everything is in force.
    pub fn restarts(&self, process: Process) -> bool {
        self.needs_restart
            .iter()
            .any(|restart| restart.process == process)
    }

    fn push(&mut self, change: Change) {
        if let Some(process) = change.restart {
            let why = change.said();
            self.needs_restart.push(Restart { process, why });
        }
        self.changes.push(change);
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Process::Engine => "the engine",
            Process::Control => "the control process",
        })
    }
}

/// A line for each change, in the order of the file's tables; nothing if there is none.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.changes
            .iter()
            .try_for_each(|change| writeln!(f, "{}", change.words))
    }
}

/// What it takes to get from `old` to `new`. What the key files hold is not looked at.
pub fn diff(old: &Config, new: &Config) -> Plan {
    let mut plan = Plan::default();
    single(
        &mut plan,
        "site",
        &describe::site(&old.site),
        &describe::site(&new.site),
    );
    single(
        &mut plan,
        "engine",
        &describe::engine(&old.engine),
        &describe::engine(&new.engine),
    );
    single(
        &mut plan,
        "dpdk",
        &describe::dpdk(&old.dpdk),
        &describe::dpdk(&new.dpdk),
    );
    let keyed = Table {
        name: "link",
        key: |link: &crate::Link| link.id.get_ref().get(),
        called: |link: &crate::Link| link.id.get_ref().get().to_string(),
        describe: describe::link,
    };
    keyed.compare(&mut plan, &old.links, &new.links);
    peers(&mut plan, old, new);
    lans(&mut plan, &old.lans, &new.lans);
    let keyed = Table {
        name: "route",
        key: |route: &crate::Route| *route.prefix.get_ref(),
        called: |route: &crate::Route| route.prefix.get_ref().to_string(),
        describe: describe::route,
    };
    keyed.compare(&mut plan, &old.routes, &new.routes);
    policies(&mut plan, &old.policies, &new.policies);
    let keyed = Table {
        name: "class",
        key: |class: &crate::steering::Class| class.name.get_ref().clone(),
        called: |class: &crate::steering::Class| class.name.get_ref().as_str().to_owned(),
        describe: describe::class,
    };
    keyed.compare(&mut plan, &old.classes, &new.classes);
    single(
        &mut plan,
        "probe",
        &describe::probe(&old.probe),
        &describe::probe(&new.probe),
    );
    let (was, is) = (old.bgp.as_ref(), new.bgp.as_ref());
    let described = |bgp: &Spanned<crate::services::Bgp>| describe::bgp(bgp.get_ref());
    optional(&mut plan, "bgp", was.map(described), is.map(described));
    let (was, is) = (old.metrics.as_ref(), new.metrics.as_ref());
    optional(
        &mut plan,
        "metrics",
        was.map(describe::metrics),
        is.map(describe::metrics),
    );
    single(
        &mut plan,
        "control",
        &describe::control(&old.control),
        &describe::control(&new.control),
    );
    if new.routes_packets() && !old.routes_packets() {
        let why = "there is something to route by, which there was not before".to_owned();
        let process = Process::Engine;
        plan.needs_restart.push(Restart { process, why });
    }
    plan
}

/// Who has to be started again before another value of this key is in force.
fn restart_for(table: &str, key: &str) -> Option<Process> {
    let fixed = match (table, key) {
        ("engine" | "dpdk", _) => true,
        ("link", "rate_up" | "rate_down" | "cost" | "data_cap" | "data_cap_day") => false,
        ("link", _) => true,
        ("peer" | "remote", "remote") => true,
        ("lan", "port" | "interface" | "device" | "mtu" | "order") => true,
        ("control" | "metrics", _) => return Some(Process::Control),
        _ => false,
    };
    fixed.then_some(Process::Engine)
}

/// Tables of one name: how they are told apart, called and taken apart.
struct Table<K, C, D> {
    name: &'static str,
    key: K,
    called: C,
    describe: D,
}

impl<K, C, D> Table<K, C, D> {
    fn compare<T, I>(&self, plan: &mut Plan, old: &[T], new: &[T])
    where
        T: PartialEq,
        I: Eq + Hash,
        K: Fn(&T) -> I,
        C: Fn(&T) -> String,
        D: Fn(&T) -> Keys,
    {
        let whole = |kind, one: &T| {
            let fixed = ["link", "lan"].contains(&self.name);
            let restart = fixed.then_some(Process::Engine);
            Change::whole(
                kind,
                self.name,
                Some((self.called)(one)),
                &(self.describe)(one),
                restart,
            )
        };
        let before: HashMap<I, &T> = old.iter().map(|one| ((self.key)(one), one)).collect();
        let after: HashSet<I> = new.iter().map(&self.key).collect();
        for gone in old.iter().filter(|one| !after.contains(&(self.key)(one))) {
            plan.push(whole(Kind::Removed, gone));
        }
        for one in new {
            match before.get(&(self.key)(one)) {
                None => plan.push(whole(Kind::Added, one)),
                Some(was) if *was == one => {}
                Some(was) => {
                    let keys = between(&(self.describe)(was), &(self.describe)(one));
                    if !keys.is_empty() {
                        plan.push(Change::of_keys(self.name, Some((self.called)(one)), keys));
                    }
                }
            }
        }
    }
}

/// A peer by its name, or by the start of its key.
fn called(peer: &Peer) -> String {
    match &peer.name {
        Some(name) => name.get_ref().as_str().to_owned(),
        None => peer.public_key.get_ref().to_string()[..8].to_owned(),
    }
}

fn peers(plan: &mut Plan, old: &Config, new: &Config) {
    let remotes = |config: &Config| config.peers.iter().any(|peer| peer.is_remote);
    let now = new
        .peers
        .iter()
        .map(|peer| (peer.public_key.get_ref(), peer.is_remote));
    let now: HashMap<_, bool> = now.collect();
    // One that has become the other is told among those that it is now.
    let is_now = |peer: &Peer| {
        now.get(peer.public_key.get_ref())
            .copied()
            .unwrap_or(peer.is_remote)
    };
    for (name, is_remote) in [("peer", false), ("remote", true)] {
        let was: Vec<&Peer> = old
            .peers
            .iter()
            .filter(|peer| is_now(peer) == is_remote)
            .collect();
        let is: Vec<&Peer> = new
            .peers
            .iter()
            .filter(|peer| peer.is_remote == is_remote)
            .collect();
        let keyed = Table {
            name,
            key: |peer: &&Peer| *peer.public_key.get_ref(),
            called: |peer: &&Peer| called(peer),
            describe: |peer: &&Peer| describe::peer(peer),
        };
        keyed.compare(plan, &was, &is);
    }
    if remotes(new) && !remotes(old) {
        let why = "there is a [[remote]], which there was not before".to_owned();
        let process = Process::Engine;
        plan.needs_restart.push(Restart { process, why });
    }
}

fn lans(plan: &mut Plan, old: &[Lan], new: &[Lan]) {
    fn interface(lan: &Lan) -> Option<&str> {
        let interface = lan.interface.as_ref().filter(|_| lan.is_ethernet());
        interface.map(|name| name.get_ref().as_str())
    }
    let keyed = Table {
        name: "lan",
        key: |lan: &Lan| interface(lan).map(str::to_owned),
        called: |lan: &Lan| lan.name.get_ref().as_str().to_owned(),
        describe: describe::lan,
    };
    keyed.compare(plan, old, new);
    let name = |lan: &Lan| lan.name.get_ref().as_str().to_owned();
    order(plan, "lan", (old, new), interface, name);
}

fn policies(plan: &mut Plan, old: &[Policy], new: &[Policy]) {
    let (old, new) = (placed(old), placed(new));
    let of = new.len();
    let keyed = Table {
        name: "policy",
        key: |policy: &Placed<'_>| policy.id.clone(),
        called: |policy: &Placed<'_>| policy.name(),
        describe: |policy: &Placed<'_>| describe::policy(policy.policy),
    };
    keyed.compare(plan, &old, &new);
    // Where a new one stands decides what it does.
    let places: HashMap<String, usize> = new.iter().map(|one| (one.name(), one.at)).collect();
    for change in plan.changes.iter_mut().filter(|change| change.table == "policy") {
        let name = change.name.as_ref().filter(|_| change.kind == Kind::Added);
        if let Some(at) = name.and_then(|name| places.get(name)) {
            let place = format!(" ({} of {of}, ", at + 1);
            change.words = change.words.replacen(" (", &place, 1);
        }
    }
    let id = |policy: &Placed<'_>| policy.id.clone();
    order(plan, "policy", (&old, &new), id, Placed::name);
}

/// A policy, and what tells it from others: its name; one without is what it says, and the how-manieth that says it.
struct Placed<'a> {
    policy: &'a Policy,
    id: (String, usize),
    at: usize,
}

impl PartialEq for Placed<'_> {
    fn eq(&self, other: &Placed<'_>) -> bool {
        self.policy == other.policy
    }
}

impl Placed<'_> {
    fn name(&self) -> String {
        match &self.policy.name {
            Some(name) => name.get_ref().as_str().to_owned(),
            None => format!("#{}", self.at + 1),
        }
    }
}

fn placed(policies: &[Policy]) -> Vec<Placed<'_>> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut all = Vec::with_capacity(policies.len());
    for (at, policy) in policies.iter().enumerate() {
        let id = match &policy.name {
            Some(name) => (name.get_ref().as_str().to_owned(), 0),
            None => {
                let content = format!("{:?}", describe::policy(policy));
                let count = seen.entry(content.clone()).or_default();
                *count += 1;
                (content, *count)
            }
        };
        all.push(Placed { policy, id, at });
    }
    all
}

/// Says if those that stay stand in another order, where order counts.
fn order<'a, T, I: Eq + Hash>(
    plan: &mut Plan,
    table: &'static str,
    (old, new): (&'a [T], &'a [T]),
    id: impl Fn(&'a T) -> I,
    name: impl Fn(&T) -> String,
) {
    let before: HashMap<I, usize> = old.iter().enumerate().map(|(at, one)| (id(one), at)).collect();
    let stay = new.iter().filter_map(|one| Some((*before.get(&id(one))?, one)));
    let stay: Vec<(usize, &T)> = stay.collect();
    if let Some([(_, first), (_, second)]) = stay.array_windows().find(|[a, b]| a.0 > b.0) {
        let moved = KeyChange {
            key: "order",
            before: Some(format!("{} before {}", name(second), name(first))),
            after: Some(format!("{} before {}", name(first), name(second))),
            gained: Vec::new(),
            lost: Vec::new(),
        };
        plan.push(Change::of_keys(table, None, vec![moved]));
    }
}

fn single(plan: &mut Plan, table: &'static str, old: &Keys, new: &Keys) {
    for key in between(old, new) {
        plan.push(Change::of_keys(table, None, vec![key]));
    }
}

fn optional(plan: &mut Plan, table: &'static str, old: Option<Keys>, new: Option<Keys>) {
    let restart = |keys: &Keys| keys.iter().find_map(|(key, _)| restart_for(table, key));
    match (old, new) {
        (Some(old), Some(new)) => single(plan, table, &old, &new),
        (Some(old), None) => {
            let restart = restart(&old);
            plan.push(Change::whole(Kind::Removed, table, None, &old, restart));
        }
        (None, Some(new)) => {
            let restart = restart(&new);
            plan.push(Change::whole(Kind::Added, table, None, &new, restart));
        }
        (None, None) => {}
    }
}

/// The keys that differ.
fn between(old: &Keys, new: &Keys) -> Vec<KeyChange> {
    let both = old.iter().zip(new);
    let differ = both.filter(|(old, new)| old != new);
    differ
        .filter_map(|((key, was), (_, is))| KeyChange::of(key, was, is))
        .collect()
}

impl KeyChange {
    fn of(key: &'static str, was: &Shown, is: &Shown) -> Option<KeyChange> {
        let (mut gained, mut lost) = (Vec::new(), Vec::new());
        let (mut before, mut after) = (None, None);
        match (was, is) {
            (Shown::Set(was), Shown::Set(is)) => {
                gained = less(is, was);
                lost = less(was, is);
                if gained.is_empty() && lost.is_empty() {
                    return None;
                }
            }
            _ => (before, after) = (was.word(), is.word()),
        }
        Some(KeyChange {
            key,
            before,
            after,
            gained,
            lost,
        })
    }
}

fn less(all: &[String], without: &[String]) -> Vec<String> {
    let without: HashSet<&String> = without.iter().collect();
    all.iter().filter(|one| !without.contains(one)).cloned().collect()
}

impl fmt::Display for KeyChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.key)?;
        for (sign, values) in [('+', &self.gained), ('-', &self.lost)] {
            for value in values.iter().take(TOLD) {
                write!(f, " {sign}{value}")?;
            }
            if values.len() > TOLD {
                write!(f, " {sign}{} more", values.len() - TOLD)?;
            }
        }
        if self.gained.is_empty() && self.lost.is_empty() {
            let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "none".to_owned());
            write!(f, " {} -> {}", shown(&self.before), shown(&self.after))?;
        }
        Ok(())
    }
}

impl Shown {
    fn word(&self) -> Option<String> {
        match self {
            Shown::Absent => None,
            Shown::Word(word) => Some(word.clone()),
            Shown::Set(values) => Some(told(values)),
        }
    }
}

fn told(values: &[String]) -> String {
    let mut said = values[..values.len().min(TOLD)].join(" ");
    if values.len() > TOLD {
        said.push_str(&format!(" and {} more", values.len() - TOLD));
    }
    said
}

impl Change {
    fn whole(
        kind: Kind,
        table: &'static str,
        name: Option<String>,
        keys: &Keys,
        restart: Option<Process>,
    ) -> Change {
        let said = keys.iter().filter(|(_, value)| match value {
            Shown::Absent => false,
            Shown::Set(values) => !values.is_empty(),
            Shown::Word(_) => true,
        });
        let keys = said.filter_map(|(key, value)| match kind {
            Kind::Removed => KeyChange::of(key, value, &Shown::Absent),
            _ => KeyChange::of(key, &Shown::Absent, value),
        });
        let mut change = Change {
            kind,
            table,
            name,
            keys: keys.collect(),
            restart,
            words: String::new(),
        };
        change.words = change.line();
        change
    }

    fn of_keys(table: &'static str, name: Option<String>, keys: Vec<KeyChange>) -> Change {
        let restart = keys.iter().find_map(|key| restart_for(table, key.key));
        let mut change = Change {
            kind: Kind::Changed,
            table,
            name,
            keys,
            restart,
            words: String::new(),
        };
        change.words = change.line();
        change
    }

    /// `+ peer branch (allowed_ips 10.1.0.0/16)`, `~ policy no-telnet: action drop -> route`,
    /// `! engine.workers 1 -> 2 needs a restart of the engine`.
    fn line(&self) -> String {
        let sign = match (self.kind, self.restart) {
            (_, Some(_)) => '!',
            (Kind::Added, None) => '+',
            (Kind::Removed, None) => '-',
            (Kind::Changed, None) => '~',
        };
        let restart = self
            .restart
            .map(|process| format!(" needs a restart of {process}"));
        format!("{sign} {}{}", self.said(), restart.unwrap_or_default())
    }

    /// The line without what it means for who runs.
    fn said(&self) -> String {
        let name = self
            .name
            .as_ref()
            .map(|name| format!(" {name}"))
            .unwrap_or_default();
        if self.kind == Kind::Changed {
            let keys: Vec<String> = self.keys.iter().map(KeyChange::to_string).collect();
            let behind = if name.is_empty() { "." } else { ": " };
            return format!("{}{name}{behind}{}", self.table, keys.join(", "));
        }
        let what = match (self.restart, self.kind) {
            (Some(_), Kind::Added) => " is new",
            (Some(_), _) => " goes",
            (None, _) => "",
        };
        let known = |key: &&KeyChange| self.name.is_some() && is_its_name(self.table, key.key);
        let shown = self.keys.iter().filter(|key| !known(key)).filter_map(|key| {
            let value = key.after.as_ref().or(key.before.as_ref())?;
            Some(format!("{} {value}", key.key))
        });
        let shown: Vec<String> = shown.collect();
        let shown = if shown.is_empty() {
            String::new()
        } else {
            format!(" ({})", shown.join(", "))
        };
        format!("{}{name}{what}{shown}", self.table)
    }
}

/// Whether the key is what a thing is called by, and need not be said again.
fn is_its_name(table: &str, key: &str) -> bool {
    matches!(
        (table, key),
        (_, "name") | ("link", "id") | ("route", "prefix") | ("peer" | "remote", "remote")
    )
}
