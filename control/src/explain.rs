//! Why a class goes by a path, why not by the others, and what becomes of a flow.
//!
//! Called on the threads of connections. What is said of paths is what their judges have decided by; nothing is judged anew here. A flow is followed by the policies of the site in
//! force and the engine's routes, the way a packet would be.

use std::net::IpAddr;

use patronus_abi::Prefix;
use patronus_abi::channel::{PathName, PathState};
use patronus_abi::site::{Class, Hop, Mode, Policy, Site};
use patronus_config::matching::Protocol;
use serde::{Deserialize, Serialize};

use crate::answers::{Group, key};
use crate::decisions::{Lately, Limit, part, seconds};
use crate::history::boot_time;
use crate::message::Flow;
use crate::quality::judge::{Entry, Judge, Links, Why};
use crate::quality::verdict::{Broken, Fault, What};
use crate::quality::{Quality, Remote};

/// Answers to a question about every remote at most; who wants more names one.
pub const ANSWERS_MAX: usize = 256;

/// By which path a class goes to a remote, and why. Times are seconds, losses are parts of one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// The remote's name or key.
    pub remote: String,
    /// The class.
    pub class: String,
    /// How it uses the paths: `pinned`, `active_backup`, `lowest_latency`, `weighted`, `duplicate`.
    pub mode: String,
    /// What it asks of them.
    pub limits: Limits,
    /// How long a path that was left has to be good before it is used again.
    pub hold: f64,
    /// The first path; none: none has been up.
    pub path: Option<String>,
    /// All paths that its flows are spread over, or each packet goes by, the first one among them.
    #[serde(default)]
    pub over: Vec<String>,
    /// Since when, seconds ago.
    pub age: Option<f64>,
    /// Why, in a word: what led away from the one before, or to this one.
    pub why: Option<String>,
    /// The same for people.
    pub text: String,
    /// All paths in their order.
    pub paths: Vec<Candidate>,
}

/// What a class asks of a path. What is none is not asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Round trip at most.
    pub latency: Option<f64>,
    /// Jitter at most.
    pub jitter: Option<f64>,
    /// Loss each way at most.
    pub loss: Option<f64>,
}

/// A path in the order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Which one.
    pub path: String,
    /// `up`, `down` or `unknown`.
    pub state: String,
    /// It does what the class needs.
    pub good: bool,
    /// Why it is not the one, in a word; none: it is.
    pub why: Option<String>,
    /// The same for people.
    pub text: String,
    /// The limit that it does not keep now.
    pub limit: Option<Limit>,
    /// How long it will not be used even if nothing more happens.
    pub held: Option<f64>,
    /// What was measured of it.
    pub measured: Lately,
}

/// What becomes of a flow.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Fate {
    /// `tunnel`, `lan`, `host`, `drop` or `nowhere`.
    pub goes: String,
    /// The policy that decides; none: no policy asks for it.
    pub policy: Option<String>,
    /// Policies that may be meant: they ask for what is not known of the flow.
    pub perhaps: Vec<String>,
    /// The network of the route.
    pub route: Option<String>,
    /// Where it leads; if there are several, the flow goes by one of them.
    pub via: Vec<String>,
    /// The class, if it goes by a tunnel.
    pub class: Option<String>,
    /// By which paths, if it goes to remotes.
    pub choices: Vec<Choice>,
    /// The path of this very flow: that its packets take, or the next one will. None: the engine was not asked, and its class goes by several.
    #[serde(default)]
    pub path: Option<String>,
    /// What the engine says; none: it was not asked, because not all of the flow is known, or does not answer.
    pub engine: Option<InEngine>,
}

/// A flow as the engine has it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InEngine {
    /// Where it goes, in the engine's word.
    pub goes: String,
    /// The worker.
    pub worker: Option<u64>,
    /// The policy.
    pub policy: Option<String>,
    /// The class.
    pub class: Option<String>,
    /// The remote or peer.
    pub remote: Option<String>,
    /// The path that its packets take.
    pub path: Option<String>,
    /// The other one, if each takes two.
    pub second: Option<String>,
    /// The path that it will go back to, in a pause or when its turn comes.
    pub home: Option<String>,
    /// For how long it has been on its path.
    pub age: Option<f64>,
    /// How long ago its last packet came; none: the engine remembers no packet of it.
    pub idle: Option<f64>,
}

impl InEngine {
    /// From an answer to `ask=why`.
    pub fn of(answer: &Group, called: impl Fn(&[u8; 32]) -> String) -> InEngine {
        let text = |name: &str| answer.text(name).map(str::to_owned);
        let millis = |name: &str| answer.parsed::<u64>(name).map(|millis| millis as f64 / 1e3);
        let path = text("path");
        InEngine {
            goes: text("exit").unwrap_or_default(),
            worker: answer.parsed("worker"),
            policy: text("policy"),
            class: text("class"),
            remote: answer.text("peer").and_then(key).map(|key| called(&key)),
            second: text("second"),
            home: text("home").filter(|home| path.as_ref() != Some(home)),
            path,
            age: millis("since_ms"),
            idle: millis("idle_ms"),
        }
    }
}

impl Fate {
    /// With what the engine says of the flow, if it was asked.
    pub fn in_engine(mut self, engine: Option<InEngine>) -> Fate {
        let of_flow = engine
            .as_ref()
            .and_then(|now| now.path.clone().or_else(|| now.home.clone()));
        let of_class = match &self.choices[..] {
            [choice] if choice.over.len() == 1 => choice.path.clone(),
            _ => None,
        };
        self.path = of_flow.or(of_class);
        self.engine = engine;
        self
    }
}

/// The question to the engine, if all of the flow is known that tells it from others.
pub fn question(flow: &Flow) -> Option<String> {
    let protocol = flow.protocol?;
    let [from, to] = match Protocol(protocol).has_ports() {
        true => [flow.src_port?, flow.dst_port?],
        false => [0; 2],
    };
    let (src, dst, dscp) = (flow.src, flow.dst, flow.dscp.unwrap_or(0));
    Some(format!(
        "ask=why\nsrc={src}\ndst={dst}\nprotocol={protocol}\nsrc_port={from}\ndst_port={to}\ndscp={dscp}"
    ))
}

/// The choice of a class for a remote.
pub fn choice(quality: &Quality, remote: &Remote, class: usize, called: String) -> Option<Choice> {
    let of = quality.classes().get(class)?;
    let judge = remote.judge_of(class)?;
    let now = boot_time();
    let first = judge.first();
    let ago = |at: u64| now.saturating_sub(at) as f64 / 1e9;
    Some(Choice {
        remote: called,
        class: of.name.clone(),
        mode: word(of.mode).to_owned(),
        limits: Limits {
            latency: of.latency_us.map(seconds),
            jitter: of.jitter_us.map(seconds),
            loss: of.loss_ppm.map(part),
        },
        hold: f64::from(of.hold_ms) / 1e3,
        path: first.map(|(path, ..)| path.to_string()),
        over: judge.used(of.mode).map(|path| path.to_string()).collect(),
        age: first.map(|(_, since, _)| ago(since)),
        why: first.map(|(.., why)| why.word().to_owned()),
        text: first.map_or_else(|| "no path has been up yet".to_owned(), |(.., why)| reason(why)),
        paths: judge
            .order()
            .map(|entry| candidate(of, judge, remote, entry, now))
            .collect(),
    })
}

fn candidate(class: &Class, judge: &Judge, remote: &Remote, entry: &Entry, now: u64) -> Candidate {
    let hold = u64::from(class.hold_ms) * 1_000_000;
    let last = entry.bad_at.max(entry.left_at);
    let is_good = entry.poor.is_none();
    let left = |at: Option<u64>| {
        let left = (at? + hold).checked_sub(now)?;
        Some(left as f64 / 1e9).filter(|left| *left > 0.0)
    };
    let held = match is_good {
        true => left(entry.passed_at),
        false => left(last),
    };
    let first = judge.first().map(|(path, ..)| path);
    let is_first = first == Some(entry.path);
    let first = judge.order().find(|other| Some(other.path) == first);
    let is_used = !is_first && judge.used(class.mode).any(|path| path == entry.path);
    let (why, text) = match is_used {
        true => used_too(entry, class.mode),
        false => why_not(entry, first.filter(|_| !is_first), class.mode, held),
    };
    Candidate {
        path: entry.path.to_string(),
        state: entry.state.word().to_owned(),
        good: is_good,
        why: (!is_first).then(|| why.to_owned()),
        text,
        limit: match entry.fault {
            Some(Fault::Broken(broken)) => Some(Limit::of(&broken)),
            _ => None,
        },
        held,
        measured: remote.measured(entry.path).map(Lately::of).unwrap_or_default(),
    }
}

/// What a path is used for that is not the first.
fn used_too(entry: &Entry, mode: Mode) -> (&'static str, String) {
    match mode {
        Mode::Duplicate => ("second", "each packet goes by it as well".to_owned()),
        Mode::Weighted => {
            let weight = entry.links.weight.max(1);
            ("share", format!("good: has its share, weight {weight}"))
        }
        _ => (
            "share",
            "good, and as cheap as the first: has its share of the flows".to_owned(),
        ),
    }
}

/// Why a path is not the first, or what is to be said of the one that is.
fn why_not(entry: &Entry, first: Option<&Entry>, mode: Mode, held: Option<f64>) -> (&'static str, String) {
    match (entry.fault, entry.poor) {
        (Some(fault @ Fault::Down(_)), _) => return ("down", fault_text(fault)),
        (Some(fault), _) => return (fault.word(), fault_text(fault)),
        (None, Some(last)) => {
            let left = held.map_or_else(String::new, |left| format!("; {left:.0} s of the hold are left"));
            return ("hold", format!("good again after: {}{left}", fault_text(last)));
        }
        (None, None) => {}
    }
    if entry.state != PathState::Up {
        return ("new", "nothing has been heard on it yet".to_owned());
    }
    let Some(first) = first else {
        return ("first", "good".to_owned());
    };
    let (ours, theirs): (Links, Links) = (entry.links, first.links);
    if mode != Mode::LowestLatency && ours.cost != theirs.cost {
        let text = format!("good, but costs {} and the first {}", ours.cost, theirs.cost);
        return ("cost", text);
    }
    if mode != Mode::LowestLatency && ours.metered && !theirs.metered {
        return ("metered", "good, but metered".to_owned());
    }
    if let Some(left) = held {
        let text = format!("good; was passed, and {left:.0} s of the hold are left");
        return ("hold", text);
    }
    ("slower", "good, but not clearly faster than the first".to_owned())
}

/// Why a path is the first.
fn reason(why: Why) -> String {
    match why {
        Why::First => "it was the best when there was a choice for the first time".to_owned(),
        Why::Fault(fault) => format!("the one before: {}", fault_text(fault)),
        Why::Gone => "the one before is not there any more".to_owned(),
        Why::Good => "it is good, and better than the one before".to_owned(),
        Why::Cheaper => "it is good again or new, and costs less than the one before".to_owned(),
        Why::Faster(before, now) => format!(
            "its round trip was {}, that of the one before {}",
            millis(now),
            millis(before)
        ),
    }
}

fn fault_text(fault: Fault) -> String {
    match fault {
        Fault::Cap => "the data cap of its link is used up".to_owned(),
        Fault::Down(why) => format!("down: {}", why.word()),
        Fault::Broken(broken) => broken_text(&broken),
    }
}

/// A limit that is not kept, in words: `loss-in 2.1 % in 1 s, limit 1 %`.
fn broken_text(broken: &Broken) -> String {
    let value = |value: u32| match broken.what {
        What::LossIn | What::LossOut => percent(value),
        _ => millis(value),
    };
    format!(
        "{} {} in {} s, limit {}",
        broken.what.word(),
        value(broken.measured),
        broken.seconds,
        value(broken.limit)
    )
}

fn millis(micros: u32) -> String {
    format!("{:.1} ms", f64::from(micros) / 1e3)
}

fn percent(ppm: u32) -> String {
    format!("{:.2} %", f64::from(ppm) / 1e4)
}

/// The word for a mode, as in the site's file.
pub fn word(mode: Mode) -> &'static str {
    match mode {
        Mode::Pinned => "pinned",
        Mode::ActiveBackup => "active_backup",
        Mode::LowestLatency => "lowest_latency",
        Mode::Weighted => "weighted",
        Mode::Duplicate => "duplicate",
    }
}

/// Classes that go by this path to a remote, alone or beside others.
pub fn classes_on(quality: &Quality, remote: &Remote, path: PathName) -> Vec<String> {
    let classes = quality.classes().iter().enumerate();
    let on = classes.filter(|(at, class)| {
        let judge = remote.judge_of(*at);
        judge.is_some_and(|judge| judge.used(class.mode).any(|used| used == path))
    });
    on.map(|(_, class)| class.name.clone()).collect()
}

/// Whether a policy asks for this flow. None: it asks for something that is not known of it.
fn asks(policy: &Policy, flow: &Flow) -> Option<bool> {
    let contains = |prefix: &Option<Prefix>, address| prefix.is_none_or(|prefix| prefix.contains(address));
    if !contains(&policy.src, flow.src) || !contains(&policy.dst, flow.dst) {
        return Some(false);
    }
    let port = |ports: &Option<std::ops::RangeInclusive<u16>>, port: Option<u16>| match ports {
        None => Some(true),
        Some(ports) => port.map(|port| ports.contains(&port)),
    };
    let answers = [
        match policy.protocol {
            None => Some(true),
            Some(protocol) => flow.protocol.map(|known| known == protocol),
        },
        port(&policy.src_ports, flow.src_port),
        port(&policy.dst_ports, flow.dst_port),
        match policy.dscps {
            None => Some(true),
            Some(dscps) => flow.dscp.map(|dscp| dscps >> (dscp & 63) & 1 == 1),
        },
    ];
    match answers {
        answers if answers.contains(&Some(false)) => Some(false),
        answers if answers.contains(&None) => None,
        _ => Some(true),
    }
}

/// The policy that decides, and those that would if they were sure.
pub fn policy_of<'a>(site: &'a Site, flow: &Flow) -> (Option<&'a Policy>, Vec<&'a Policy>) {
    let mut perhaps = Vec::new();
    for policy in &site.policies {
        match asks(policy, flow) {
            Some(true) => return (Some(policy), perhaps),
            Some(false) => {}
            None => perhaps.push(policy),
        }
    }
    (None, perhaps)
}

/// The longest of the engine's routes that has the address, and where it leads; routes as the engine writes them.
pub fn route_of<'a>(
    routes: impl Iterator<Item = (&'a str, Vec<&'a str>)>,
    address: IpAddr,
) -> Option<(&'a str, Vec<&'a str>)> {
    let mut best: Option<(u8, &str, Vec<&str>)> = None;
    for (text, via) in routes {
        let Some(prefix) = network(text) else { continue };
        let len = prefix.cidr();
        if prefix.contains(address) && best.as_ref().is_none_or(|(most, ..)| len >= *most) {
            best = Some((len, text, via));
        }
    }
    best.map(|(_, text, via)| (text, via))
}

fn network(text: &str) -> Option<Prefix> {
    let (address, len) = text.split_once('/')?;
    Prefix::new(address.parse().ok()?, len.parse().ok()?)
}

/// Where a policy sends a flow, in the engine's words.
pub fn hops_of(site: &Site, hops: &[Hop]) -> Vec<String> {
    let word = |hop: &Hop| match hop {
        Hop::Discard => "discard".to_owned(),
        Hop::Host => "host".to_owned(),
        Hop::Peer(at) => site
            .peers
            .get(*at as usize)
            .map_or_else(String::new, |peer| format!("peer {}", hex(&peer.public_key))),
        Hop::Neighbour(lan, address) => {
            // By its place among the Ethernet ones.
            let up_to = site.lans.iter().take(usize::from(*lan) + 1);
            let place = up_to.filter(|lan| lan.is_ethernet()).count();
            format!("lan {place} {address}")
        }
    };
    hops.iter().map(word).collect()
}

fn hex(key: &[u8; 32]) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answers::groups;

    fn site(text: &str) -> Site {
        let text = format!("[site]\nprivate_key_file = 'k'\n{text}");
        let config = patronus_config::parse_file(std::path::Path::new("site.toml"), &text);
        config.expect("a site").compile()
    }

    fn flow(src: &str, dst: &str) -> Flow {
        Flow {
            src: src.parse().expect("an address"),
            dst: dst.parse().expect("an address"),
            protocol: None,
            src_port: None,
            dst_port: None,
            dscp: None,
        }
    }

    #[test]
    fn the_first_policy_that_is_sure_decides_and_unsure_ones_are_named() {
        let site = site(
            "[[policy]]\nname = 'calls'\nprotocol = 'udp'\ndst_ports = '5060-5070'\naction = 'route'\nclass = 'voice'\n\
             [[policy]]\nname = 'guests'\nsrc = '10.9.0.0/16'\naction = 'drop'\n",
        );
        let names = |flow: &Flow| {
            let (policy, perhaps) = policy_of(&site, flow);
            let name = |policy: &Policy| policy.name.clone().unwrap_or_default();
            (
                policy.map(name),
                perhaps.into_iter().map(name).collect::<Vec<_>>(),
            )
        };
        let mut call = flow("10.9.0.1", "10.2.0.1");
        let (calls, guests) = ("calls".to_owned(), "guests".to_owned());
        assert_eq!(names(&call), (Some(guests.clone()), vec![calls.clone()]));
        (call.protocol, call.dst_port) = (Some(17), Some(5060));
        assert_eq!(names(&call), (Some(calls), vec![]));
        call.protocol = Some(6);
        assert_eq!(names(&call), (Some(guests), vec![]));
        assert_eq!(names(&flow("10.1.0.1", "10.2.0.1")).0, None);
    }

    #[test]
    fn the_longest_route_counts() {
        let routes = [
            ("0.0.0.0/0", vec!["host"]),
            ("10.2.0.0/16", vec!["peer aa", "peer bb"]),
            ("::/0", vec!["discard"]),
            ("nonsense", vec!["host"]),
        ];
        let via = |address: &str| {
            let routes = routes.iter().cloned();
            route_of(routes, address.parse().expect("an address")).map(|(route, _)| route)
        };
        assert_eq!(via("10.2.3.4"), Some("10.2.0.0/16"));
        assert_eq!(via("10.3.3.4"), Some("0.0.0.0/0"));
        assert_eq!(via("fd00::1"), Some("::/0"));
        assert!(route_of(routes[1..2].iter().cloned(), "192.0.2.1".parse().expect("one")).is_none());
    }

    #[test]
    fn the_engine_is_asked_for_whole_flows_only() {
        let mut asked = flow("10.1.0.5", "10.2.0.7");
        assert_eq!(question(&asked), None);
        asked.protocol = Some(1);
        assert!(question(&asked).is_some_and(|text| text.contains("protocol=1\nsrc_port=0")));
        (asked.protocol, asked.src_port) = (Some(17), Some(4000));
        assert_eq!(question(&asked), None);
        asked.dst_port = Some(5060);
        let text = "ask=why\nsrc=10.1.0.5\ndst=10.2.0.7\nprotocol=17\nsrc_port=4000\ndst_port=5060\ndscp=0";
        assert_eq!(question(&asked).as_deref(), Some(text));
        let answer = "flow=10.1.0.5 10.2.0.7 17 4000 5060 0\nworker=1\nidle_ms=1500\nclass=voice\nexit=tunnel\n\
                      path=2-1\nhome=1-1\nsince_ms=34000\n";
        let (_, told) = groups(answer, "flow");
        let now = InEngine::of(&told[0], |_| String::new());
        assert_eq!(
            (now.path.as_deref(), now.home.as_deref()),
            (Some("2-1"), Some("1-1"))
        );
        assert_eq!((now.age, now.idle, now.worker), (Some(34.0), Some(1.5), Some(1)));
    }

    #[test]
    fn why_and_why_not_are_told_with_what_was_measured() {
        let broken = Broken {
            what: What::LossIn,
            measured: 21_000,
            limit: 10_000,
            seconds: 1,
            seen: 0,
        };
        let text = "loss-in 2.10 % in 1 s, limit 1.00 %";
        assert_eq!(broken_text(&broken), text);
        assert_eq!(
            reason(Why::Fault(Fault::Broken(broken))),
            format!("the one before: {text}")
        );
        let faster = reason(Why::Faster(50_000, 30_000));
        assert_eq!(
            faster,
            "its round trip was 30.0 ms, that of the one before 50.0 ms"
        );
    }
}
