//! What is shown: what the control process knows and what the engine answers, put together. Values for JSON, which the command line turns into text.
//!
//! Called on the threads of connections. The engine is asked anew each time; nothing here waits for the main thread.

mod quality;

use std::collections::hash_map::Entry as Place;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use patronus_config::value::PublicKey;
use patronus_config::{Config, Peer as Configured, Warning};
use patronus_observe::Request;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::answers::{Group, groups, key};
use crate::caps::{self, Usage};
use crate::engine;
use crate::flows::{self, Flow};
use crate::history::{self, Happened};
use crate::known::Known;
use crate::message::{Code, Failure, FlowFilter, Topic};
use crate::why::{self, Device, State, Tunnel};

pub use quality::{HISTORY, Health, Measured, Window};

/// The whole in a few lines.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Summary {
    /// The site's file.
    pub file: PathBuf,
    /// Name of the TUN.
    pub interface: String,
    /// Whether an engine is attached.
    pub engine: bool,
    /// How often something was told to it and taken.
    pub generation: u64,
    /// The site's public key, once there is an engine.
    pub public_key: Option<String>,
    /// UDP port.
    pub listen_port: u64,
    /// Tunnels that there are.
    pub tunnels: usize,
    /// Those with a session.
    pub tunnels_up: usize,
    /// How long what is in force can be confirmed, seconds.
    pub confirm_within: Option<u64>,
    /// What somebody should know.
    pub notes: Vec<String>,
}

/// A tunnel.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Peer {
    /// What the file calls it.
    pub name: Option<String>,
    /// Who it is.
    pub public_key: String,
    /// It is a site of our own.
    pub remote: bool,
    /// Where it is.
    pub endpoint: Option<SocketAddr>,
    /// `up`, `idle` or `down`.
    pub state: String,
    /// Why it is not up.
    pub why: Option<String>,
    /// How long ago the last handshake was, seconds.
    pub handshake_age: Option<u64>,
    /// Bytes sent, as they are on the wire under UDP.
    pub sent_bytes: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Its networks.
    pub allowed_ips: Vec<String>,
}

/// A session on a path.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Lane {
    /// The remote's name or key.
    pub remote: String,
    /// Our link.
    pub local_link: u64,
    /// Its link.
    pub remote_link: u64,
    /// Its number on that path.
    pub lane: u64,
    /// Where it is.
    pub endpoint: Option<SocketAddr>,
    /// Whether there is a session.
    pub up: bool,
    /// How long ago the last handshake was, seconds.
    pub handshake_age: Option<u64>,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Bytes received.
    pub received_bytes: u64,
}

/// A path to a remote: the sum of its lanes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RemotePath {
    /// The remote's name or key.
    pub remote: String,
    /// Our link.
    pub local_link: u64,
    /// Its link.
    pub remote_link: u64,
    /// Lanes that there are.
    pub lanes: u64,
    /// Those with a session.
    pub lanes_up: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// How it is; none: the engine has not said anything of it yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// What was measured in the last ten seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lately: Option<Window>,
}

/// A prefix.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Route {
    /// Which.
    pub prefix: String,
    /// Where it leads.
    pub via: Vec<String>,
    /// It is a routing protocol's, and not the file's.
    pub dynamic: bool,
}

/// A WAN attachment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Link {
    /// Its number.
    pub id: u64,
    /// Its interface.
    pub interface: String,
    /// How its datagrams are taken: `udp` or `af_xdp`.
    pub port: String,
    /// It is up and has a carrier, and there are sockets.
    pub running: bool,
    /// It has routes for IPv4.
    pub leads_v4: bool,
    /// It has routes for IPv6.
    pub leads_v6: bool,
    /// How much of its data cap is used, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Data>,
}

/// How much of a data cap is used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Data {
    /// Bytes this month.
    pub used_bytes: u64,
    /// Bytes that may be.
    pub cap_bytes: u64,
    /// When it begins anew, seconds from 1970.
    pub begins_anew: u64,
}

/// The counters of a port.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Port {
    /// Its name.
    pub port: String,
    /// By name.
    pub counters: BTreeMap<String, u64>,
}

/// Packets that went no further.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Drop {
    /// Why.
    pub reason: String,
    /// How many.
    pub packets: u64,
}

/// A step of a packet's way, all workers together.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Stage {
    /// Its name.
    pub stage: String,
    /// Packets.
    pub packets: u64,
    /// Bursts that held at least one.
    pub bursts: u64,
    /// Cycles of the time stamp counter.
    pub cycles: u64,
}

/// Something that has happened.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Event {
    /// How long ago, seconds.
    pub age: f64,
    /// `session`, `endpoint`, `link`, `path`, `flows` or `lost`.
    pub what: String,
    /// The peer's name or key, or the link's interface.
    pub who: String,
    /// In words.
    pub text: String,
}

/// Everything that can be shown comes from here.
pub struct Viewer<'a> {
    known: &'a Known,
    config: &'a Config,
    /// By their keys: there may be tens of thousands.
    configured: HashMap<[u8; 32], &'a Configured>,
    uapi: PathBuf,
    now: u64,
}

impl<'a> Viewer<'a> {
    /// `uapi_dir` is where the engine's query socket is.
    pub fn new(known: &'a Known, uapi_dir: &Path) -> Result<Viewer<'a>, Failure> {
        let config = known.config.as_deref();
        let config = config.ok_or_else(|| Failure::new(Code::NoEngine, "nothing is in force yet"))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Ok(Viewer {
            known,
            config,
            configured: config
                .peers
                .iter()
                .map(|peer| (peer.public_key.get_ref().0, peer))
                .collect(),
            uapi: uapi_dir.join(format!("{}.sock", config.engine.interface.as_str())),
            now: now.map_or(0, |now| now.as_secs()),
        })
    }

    /// Name of the TUN.
    pub fn interface(&self) -> &str {
        self.config.engine.interface.as_str()
    }

    /// Seconds from 1970 to now.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// The value for that topic.
    pub fn show(&self, topic: Topic) -> Result<Value, Failure> {
        let value = match topic {
            Topic::Summary => serde_json::to_value(self.summary()),
            Topic::Peers => serde_json::to_value(self.peers()?),
            Topic::Remotes => {
                let remotes = self.peers()?.into_iter().filter(|peer| peer.remote);
                serde_json::to_value(remotes.collect::<Vec<_>>())
            }
            Topic::Lanes => serde_json::to_value(self.lanes()?),
            Topic::Paths => serde_json::to_value(self.with_quality(paths(self.lanes()?))),
            Topic::Routes => serde_json::to_value(self.routes()?),
            Topic::Links => serde_json::to_value(self.links()?),
            Topic::Ports => serde_json::to_value(ports(&self.ask("stats")?)),
            Topic::Drops => serde_json::to_value(drops(&self.ask("stats")?)),
            Topic::Stages => serde_json::to_value(stages(&self.ask("stats")?)),
            Topic::Memory => serde_json::to_value(self.memory()?),
            Topic::Events => serde_json::to_value(self.events()),
            Topic::Quality => serde_json::to_value(self.quality(None)?),
            Topic::Flows => return self.show_flows(&FlowFilter::default()),
        };
        value.map_err(|error| Failure::new(Code::System, error.to_string()))
    }

    fn ask(&self, what: &str) -> Result<String, Failure> {
        self.need_engine()?;
        engine::ask(&self.uapi, what).map_err(|error| self.silent(&error))
    }

    /// The flows that workers remember, as far as they are wanted.
    pub fn show_flows(&self, filter: &FlowFilter) -> Result<Value, Failure> {
        let filter = flows::Filter::of(filter)?;
        self.need_engine()?;
        let text = engine::flows(&self.uapi, flows::ASKED_MAX).map_err(|error| self.silent(&error))?;
        let (_, groups) = groups(&text, "flow");
        let all: Vec<Flow> = groups
            .iter()
            .filter_map(|group| Flow::of(group, &|key| self.called(key)))
            .collect();
        let complete = all.len() < flows::ASKED_MAX;
        let flows: Vec<&Flow> = all.iter().filter(|flow| filter.takes(flow)).collect();
        let value =
            serde_json::to_value(flows).map_err(|error| Failure::new(Code::System, error.to_string()))?;
        Ok(json!({ "flows": value, "complete": complete }))
    }

    /// Asks the engine for packets. The answer is to be had by the descriptor, on which nothing else can be asked any more.
    pub fn observe(&self, request: &Request) -> Result<OwnedFd, Failure> {
        self.need_engine()?;
        engine::observe(&self.uapi, request).map_err(|error| self.silent(&error))
    }

    fn need_engine(&self) -> Result<(), Failure> {
        match self.known.engine {
            Some(_) => Ok(()),
            None => Err(Failure::new(Code::NoEngine, "the engine is not running")
                .hint("`systemctl status patronus-engine` says why")),
        }
    }

    fn silent(&self, error: &io::Error) -> Failure {
        let said = format!("the engine does not answer at {}: {error}", self.uapi.display());
        Failure::new(Code::NoEngine, said)
    }

    fn summary(&self) -> Summary {
        let known = self.known;
        let peers = self.device_and_peers();
        let (device, peers) = peers.unwrap_or_default();
        let left = |at: std::time::Instant| at.saturating_duration_since(Instant::now()).as_secs();
        Summary {
            file: known.file.clone(),
            interface: self.config.engine.interface.as_str().to_owned(),
            engine: known.engine.is_some(),
            generation: known.engine.as_ref().map_or(0, |engine| engine.generation),
            public_key: device
                .text("public_key")
                .and_then(key)
                .map(|key| PublicKey(key).to_string()),
            listen_port: device.number("listen_port"),
            tunnels: self.config.peers.len(),
            tunnels_up: peers.iter().filter(|peer| peer.state == "up").count(),
            confirm_within: known.confirm_by.map(left),
            notes: self.notes(),
        }
    }

    /// What somebody should know.
    fn notes(&self) -> Vec<String> {
        let known = self.known;
        let mut notes = Vec::new();
        if known.engine.is_none() {
            notes.push("the engine is not running".to_owned());
        }
        if let Some(why) = &known.refused {
            notes.push(format!("the engine does not have what the file says: {why}"));
        }
        if known.gone_back {
            notes.push(
                "the file was applied and not confirmed: what was in force before is so again".to_owned(),
            );
        }
        let file = patronus_config::read(&known.file).ok();
        if !known.gone_back && file.as_deref() != known.text.as_deref() {
            notes.push("the file has changed since it was applied: see `patronus plan`".to_owned());
        }
        let usages = known.usages.get();
        notes.extend(usages.iter().filter(|usage| usage.is_nearly()).map(used));
        notes.extend(self.config.warnings().iter().map(note));
        notes
    }

    fn peers(&self) -> Result<Vec<Peer>, Failure> {
        Ok(self.device_and_peers()?.1)
    }

    fn device_and_peers(&self) -> Result<(Group, Vec<Peer>), Failure> {
        let (head, peers) = groups(&self.ask("peers")?, "peer");
        let (counters, _) = groups(&self.ask("stats")?, "");
        let device = Device {
            interface: head.text("interface").unwrap_or_default().to_owned(),
            up: head.is("up"),
            open: head.is("open"),
            other_key: counters.number("handshake.handshake_mac1"),
            unknown_peer: counters.number("handshake.initiation_unknown_peer"),
            old_timestamp: counters.number("handshake.initiation_old_timestamp"),
        };
        let peers = peers.iter().filter_map(|peer| self.peer(&device, peer)).collect();
        Ok((head, peers))
    }

    fn peer(&self, device: &Device, group: &Group) -> Option<Peer> {
        let key = key(group.text("peer")?)?;
        let handshake_age = self.age(group);
        let tunnel = Tunnel {
            endpoint: group.endpoint(),
            unrouted: group.text("routed") == Some("0"),
            tries: group.number("tries"),
            handshake_age,
            keepalive: group.number("keepalive") > 0,
        };
        let (state, why) = why::state(device, &tunnel);
        let state = match state {
            State::Up => "up",
            State::Idle => "idle",
            State::Down => "down",
        };
        Some(Peer {
            name: self.configured(&key).and_then(name),
            public_key: PublicKey(key).to_string(),
            remote: group.is("remote"),
            endpoint: tunnel.endpoint,
            state: state.to_owned(),
            why,
            handshake_age,
            sent_bytes: group.number("sent_bytes"),
            received_bytes: group.number("received_bytes"),
            allowed_ips: group.all("allowed_ip").map(str::to_owned).collect(),
        })
    }

    fn lanes(&self) -> Result<Vec<Lane>, Failure> {
        let (_, lanes) = groups(&self.ask("lanes")?, "lane");
        Ok(lanes.iter().filter_map(|lane| self.lane(lane)).collect())
    }

    fn lane(&self, group: &Group) -> Option<Lane> {
        let words: Vec<&str> = group.text("lane")?.split(' ').collect();
        let [remote, local, far, number] = words[..] else {
            return None;
        };
        let handshake_age = self.age(group);
        Some(Lane {
            remote: self.called(&key(remote)?),
            local_link: local.parse().ok()?,
            remote_link: far.parse().ok()?,
            lane: number.parse().ok()?,
            endpoint: group.endpoint(),
            up: handshake_age.is_some_and(|age| age < why::SESSION),
            handshake_age,
            sent_bytes: group.number("sent_bytes"),
            received_bytes: group.number("received_bytes"),
        })
    }

    fn routes(&self) -> Result<Vec<Route>, Failure> {
        let (_, routes) = groups(&self.ask("routes")?, "route");
        let route = |group: &Group| {
            Some(Route {
                prefix: group.text("route")?.to_owned(),
                via: group.all("via").map(|via| self.via(via)).collect(),
                dynamic: group.is("dynamic"),
            })
        };
        Ok(routes.iter().filter_map(route).collect())
    }

    /// A next hop in the file's words.
    fn via(&self, text: &str) -> String {
        let words: Vec<&str> = text.split(' ').collect();
        match words[..] {
            ["peer", hex] => key(hex).map_or_else(|| text.to_owned(), |key| self.called(&key)),
            ["lan", at] => self.lan(at),
            ["lan", at, address] => format!("{address} on {}", self.lan(at)),
            _ => text.to_owned(),
        }
    }

    /// The Ethernet LAN in that place among the LAN ports.
    fn lan(&self, at: &str) -> String {
        let place: Option<usize> = at.parse().ok();
        let ethernet = self.config.lans.iter().filter(|lan| lan.is_ethernet());
        let found = place.and_then(|place| ethernet.clone().nth(place.checked_sub(1)?));
        found.map_or_else(
            || format!("lan {at}"),
            |lan| lan.name.get_ref().as_str().to_owned(),
        )
    }

    fn links(&self) -> Result<Vec<Link>, Failure> {
        let (_, links) = groups(&self.ask("links")?, "link");
        // The engine has them in the order of their numbers, however they stand in the file.
        let mut ids: Vec<u64> = self
            .config
            .links
            .iter()
            .map(|link| link.id.get_ref().get())
            .collect();
        ids.sort_unstable();
        let usages = self.known.usages.get();
        let data = |id: u64| {
            let usage = usages.iter().find(|usage| u64::from(usage.link) == id)?;
            Some(Data {
                used_bytes: usage.used,
                cap_bytes: usage.cap,
                begins_anew: usage.begins_anew,
            })
        };
        let link = |group: &Group| {
            let place: usize = group.parsed("link")?;
            let id = ids.get(place).copied().unwrap_or(0);
            Some(Link {
                id,
                data: data(id),
                interface: group.text("interface").unwrap_or_default().to_owned(),
                port: group.text("port").unwrap_or_default().to_owned(),
                running: group.is("running"),
                leads_v4: group.is("leads_v4"),
                leads_v6: group.is("leads_v6"),
            })
        };
        Ok(links.iter().filter_map(link).collect())
    }

    fn memory(&self) -> Result<BTreeMap<String, u64>, Failure> {
        let (lines, _) = groups(&self.ask("memory")?, "");
        let lines = lines
            .lines()
            .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)));
        Ok(lines.collect())
    }

    fn events(&self) -> Vec<Event> {
        let now = history::boot_time();
        let kept = self.known.history.get();
        let event = |happened: Happened| {
            let (at, words) = match happened {
                Happened::Event(event) => {
                    let class_of = |class| history::class_of(self.config, class);
                    let words = history::words(&event, &|key| self.called(key), &class_of)?;
                    (event.at()?, words)
                }
                Happened::Lost { at, events } => {
                    let text = format!("{events} events there was no room for");
                    (at, ("lost", String::new(), text))
                }
            };
            let (what, who, text) = words;
            Some(Event {
                age: now.saturating_sub(at) as f64 / 1e9,
                what: what.to_owned(),
                who,
                text,
            })
        };
        kept.into_iter().filter_map(event).collect()
    }

    fn age(&self, group: &Group) -> Option<u64> {
        match group.number("last_handshake") {
            0 => None,
            at => Some(self.now.saturating_sub(at)),
        }
    }

    fn configured(&self, key: &[u8; 32]) -> Option<&Configured> {
        self.configured.get(key).copied()
    }

    /// The name of a peer, or else its key.
    fn called(&self, key: &[u8; 32]) -> String {
        let named = self.configured(key).and_then(name);
        named.unwrap_or_else(|| PublicKey(*key).to_string())
    }
}

/// That little is left of a data cap, in a line.
fn used(usage: &Usage) -> String {
    let Usage {
        link,
        interface,
        used,
        cap,
        begins_anew,
    } = usage;
    let part = u128::from(*used) * 100 / u128::from((*cap).max(1));
    let so = match usage.is_used_up() {
        true => "the link is the last resort until it",
        false => "it",
    };
    let begins_anew = caps::date(*begins_anew);
    format!("link {link} ({interface}): {part} % of its data cap is used; {so} begins anew on {begins_anew}")
}

/// A warning of the file that is in force, in a line.
fn note(warning: &Warning) -> String {
    let at = warning.place();
    let at = at.map_or_else(String::new, |(line, column)| {
        format!("line {line}, column {column}: ")
    });
    let hint = warning
        .hint()
        .map_or_else(String::new, |hint| format!(" ({hint})"));
    format!("{at}{}{hint}", warning.message())
}

fn name(peer: &Configured) -> Option<String> {
    peer.name.as_ref().map(|name| name.get_ref().as_str().to_owned())
}

/// Paths by their first lanes, each with the sums of its own.
fn paths(lanes: Vec<Lane>) -> Vec<RemotePath> {
    let mut paths: Vec<RemotePath> = Vec::new();
    let mut places: HashMap<(String, u64, u64), usize> = HashMap::new();
    for lane in lanes {
        let place = places.entry((lane.remote, lane.local_link, lane.remote_link));
        let at = match place {
            Place::Occupied(at) => *at.get(),
            Place::Vacant(place) => {
                let (remote, local_link, remote_link) = place.key().clone();
                paths.push(RemotePath {
                    remote,
                    local_link,
                    remote_link,
                    ..RemotePath::default()
                });
                *place.insert(paths.len() - 1)
            }
        };
        let path = &mut paths[at];
        path.lanes += 1;
        path.lanes_up += u64::from(lane.up);
        path.sent_bytes += lane.sent_bytes;
        path.received_bytes += lane.received_bytes;
    }
    paths
}

/// The counters of ports: what is nobody else's.
pub fn ports(stats: &str) -> Vec<Port> {
    let mut ports: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
    for (name, value) in numbers(stats) {
        let others = ["worker", "handshake.", "remote."];
        if let Some((port, counter)) = name.rsplit_once('.')
            && !others.iter().any(|prefix| name.starts_with(prefix))
        {
            ports
                .entry(port.to_owned())
                .or_default()
                .insert(counter.to_owned(), value);
        }
    }
    let ports = ports.into_iter().map(|(port, counters)| Port { port, counters });
    ports.collect()
}

/// Packets that went no further, all workers together; reasons that never happened are left out.
pub fn drops(stats: &str) -> Vec<Drop> {
    let mut drops: BTreeMap<&str, u64> = BTreeMap::new();
    for (name, value) in numbers(stats) {
        if let Some(("drop", reason)) = of_worker(name).and_then(|(_, rest)| rest.split_once('.')) {
            *drops.entry(reason).or_default() += value;
        }
    }
    let drops = drops.into_iter().filter(|(_, packets)| *packets > 0);
    let drops = drops.map(|(reason, packets)| Drop {
        reason: reason.to_owned(),
        packets,
    });
    drops.collect()
}

/// The stages in the order of a packet's way, all workers together.
pub fn stages(stats: &str) -> Vec<Stage> {
    let mut stages: Vec<Stage> = Vec::new();
    for (name, value) in numbers(stats) {
        let parts = of_worker(name).and_then(|(_, rest)| rest.strip_prefix("stage.")?.split_once('.'));
        let Some((stage, counter)) = parts else { continue };
        let at = stages
            .iter()
            .position(|known| known.stage == stage)
            .unwrap_or_else(|| {
                stages.push(Stage {
                    stage: stage.to_owned(),
                    ..Stage::default()
                });
                stages.len() - 1
            });
        match counter {
            "packets" => stages[at].packets += value,
            "bursts" => stages[at].bursts += value,
            "cycles" => stages[at].cycles += value,
            _ => {}
        }
    }
    stages
}

/// The worker's number and the rest of a counter's name.
pub fn of_worker(name: &str) -> Option<(&str, &str)> {
    let (number, rest) = name.strip_prefix("worker")?.split_once('.')?;
    number
        .bytes()
        .all(|b| b.is_ascii_digit())
        .then_some((number, rest))
}

/// Lines with a number.
pub fn numbers(stats: &str) -> impl Iterator<Item = (&str, u64)> {
    let lines = stats.lines().filter_map(|line| line.split_once('='));
    lines.filter_map(|(name, value)| Some((name, value.parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATS: &str = "worker0.stage.lan-rx.packets=3\nworker0.stage.lan-rx.bursts=2\nworker0.stage.lan-rx.cycles=90\n\
                         worker0.drop.route-none=1\nworker0.drop.lan-gone=0\nworker0.sleeps=7\n\
                         worker1.stage.lan-rx.packets=4\nworker1.drop.route-none=2\n\
                         handshake.handshake_mac1=9\ncontrols-unknown=0\ntun0.rx-packets=5\neth0.udp0.rx-packets=6\nerrno=0\n";

    #[test]
    fn counters_of_workers_are_added_up() {
        let drops = drops(STATS);
        assert_eq!(drops.len(), 1);
        assert_eq!((drops[0].reason.as_str(), drops[0].packets), ("route-none", 3));
        let stages = stages(STATS);
        assert_eq!(stages.len(), 1);
        assert_eq!(
            (stages[0].packets, stages[0].bursts, stages[0].cycles),
            (7, 2, 90)
        );
    }

    #[test]
    fn ports_are_what_is_nobody_elses() {
        let ports = ports(STATS);
        let names: Vec<&str> = ports.iter().map(|port| port.port.as_str()).collect();
        assert_eq!(names, ["eth0.udp0", "tun0"]);
        assert_eq!(ports[0].counters["rx-packets"], 6);
    }
}
