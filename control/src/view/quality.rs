//! Paths and their quality, as they are shown: what was measured, by which of them classes go, and why.

use std::collections::HashMap;

use patronus_abi::channel::PathState;
use patronus_abi::site::Action;
use patronus_config::value::PublicKey;
use serde::{Deserialize, Serialize};

use super::{RemotePath, Viewer, name};
use crate::answers::{groups, key};
use crate::caps::Usage;
use crate::decisions::{ANSWER, Asked, Record, part, seconds};
use crate::engine;
use crate::explain::{self, ANSWERS_MAX, Choice, Fate};
use crate::history::boot_time;
use crate::message::{Code, Failure, Flow};
use crate::quality::window::{Counted, Summary};
use crate::quality::{Path, Quality, Remote};

/// Seconds of the windows that are shown.
pub const WINDOWS: [u32; 3] = [1, 10, 60];
/// Paths that are told of at once with all that was measured: an answer has room for 8 MiB, and one of them takes 2 KiB at most.
const QUALITY_MAX: usize = 3000;
/// Seconds of history.
pub const HISTORY: usize = 60;

/// What was measured of a path. Times are seconds, losses parts of one; what is not there was not measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The remote's name or key.
    pub remote: String,
    /// Our link.
    pub local_link: u64,
    /// Its link.
    pub remote_link: u64,
    /// How it is.
    #[serde(flatten)]
    pub health: Health,
    /// Its windows: the last second, ten and sixty.
    pub windows: Vec<Window>,
    /// Medians of the round trips of the last seconds, the oldest first.
    pub history: Vec<Option<f64>>,
}

/// How a path is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// `up`, `down` or `unknown`.
    pub state: String,
    /// Why.
    pub why: String,
    /// For how long.
    pub state_age: f64,
    /// Classes that go by it.
    pub classes: Vec<String>,
    /// The largest inner packet that is known to pass, bytes.
    pub mtu: Option<u16>,
    /// How often we probe it.
    pub interval: Option<f64>,
    /// How often the remote does.
    pub remote_interval: Option<f64>,
    /// Bytes sent in the last second.
    pub sent_rate: Option<u64>,
    /// Bytes received.
    pub received_rate: Option<u64>,
    /// The part of our link's data cap that is used, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_used: Option<f64>,
}

/// A window.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// How long it is.
    pub seconds: u32,
    /// Round trips that were seen.
    pub samples: usize,
    /// Round trips that were measured by the engine and not seen here.
    pub missed: u64,
    /// Half of the round trips were no longer.
    pub rtt_p50: Option<f64>,
    /// Of a hundred, 95 were no longer.
    pub rtt_p95: Option<f64>,
    /// Of a hundred, 99.
    pub rtt_p99: Option<f64>,
    /// Jitter towards us.
    pub jitter_in: Option<f64>,
    /// Jitter towards the remote.
    pub jitter_out: Option<f64>,
    /// Packets that the remote sent.
    pub packets_in: Option<u32>,
    /// The part of them that was lost.
    pub loss_in: Option<f64>,
    /// Packets that we sent.
    pub packets_out: Option<u32>,
    /// The part of them that was lost.
    pub loss_out: Option<f64>,
}

impl Window {
    fn of(seconds_of: u32, summary: &Summary) -> Window {
        let sent = summary.packets.map(|packets| packets.map(|packets| packets.sent));
        let loss = summary
            .packets
            .map(|packets| packets.and_then(Counted::ppm).map(part));
        Window {
            seconds: seconds_of,
            samples: summary.samples,
            missed: summary.missed,
            rtt_p50: summary.p50.map(seconds),
            rtt_p95: summary.p95.map(seconds),
            rtt_p99: summary.p99.map(seconds),
            jitter_in: summary.jitter.inward.map(seconds),
            jitter_out: summary.jitter.outward.map(seconds),
            packets_in: sent.inward,
            loss_in: loss.inward,
            packets_out: sent.outward,
            loss_out: loss.outward,
        }
    }
}

impl Health {
    fn of(quality: &Quality, remote: &Remote, path: &Path, now: u64, usages: &[Usage]) -> Health {
        let report = &path.report;
        let rate = path.window.rate();
        let usage = usages.iter().find(|usage| usage.link == report.path.local);
        Health {
            state: report.state.word().to_owned(),
            why: report.why.word().to_owned(),
            state_age: now.saturating_sub(report.since) as f64 / 1e9,
            classes: explain::classes_on(quality, remote, report.path),
            mtu: report.mtu,
            interval: report.interval.map(seconds),
            remote_interval: report.remote_interval.map(seconds),
            sent_rate: rate.outward,
            received_rate: rate.inward,
            data_used: usage.map(|usage| usage.used as f64 / usage.cap as f64),
        }
    }
}

impl Viewer<'_> {
    /// What was measured of the paths to a remote, or of every path, by remotes and paths. Of more than [`QUALITY_MAX`] those are told that are not up, and then the first.
    pub fn quality(&self, remote: Option<&str>) -> Result<Vec<Measured>, Failure> {
        self.need_engine()?;
        let remotes = match remote {
            Some(remote) => vec![(remote.to_owned(), self.key_of(remote)?)],
            None => self.some_remotes(),
        };
        let usages = self.known.usages.get();
        Ok(self.each_path_to(remotes, |quality, remote, path, called| {
            let (now, report) = (boot_time(), &path.report);
            let window = |length| Window::of(length, &path.window.summary(now, length));
            let history = path.window.history(now, HISTORY);
            Measured {
                remote: called.to_owned(),
                local_link: report.path.local.into(),
                remote_link: report.path.remote.into(),
                health: Health::of(quality, remote, path, now, &usages),
                windows: WINDOWS.map(window).to_vec(),
                history: history.into_iter().map(|rtt| rtt.map(seconds)).collect(),
            }
        }))
    }

    /// Adds to paths what was measured of them in the last ten seconds. One that has no lanes yet comes behind those that have.
    pub(super) fn with_quality(&self, mut paths: Vec<RemotePath>) -> Vec<RemotePath> {
        let place = |path: &RemotePath| (path.remote.clone(), path.local_link, path.remote_link);
        let places = paths.iter().enumerate().map(|(at, path)| (place(path), at));
        let places: HashMap<_, _> = places.collect();
        let usages = self.known.usages.get();
        let measured = self.each_path(|quality, remote, path, called| {
            let (now, report) = (boot_time(), &path.report);
            RemotePath {
                remote: called.to_owned(),
                local_link: report.path.local.into(),
                remote_link: report.path.remote.into(),
                health: Some(Health::of(quality, remote, path, now, &usages)),
                lately: Some(Window::of(10, &path.window.summary(now, 10))),
                ..RemotePath::default()
            }
        });
        for path in measured {
            match places.get(&place(&path)) {
                Some(at) => (paths[*at].health, paths[*at].lately) = (path.health, path.lately),
                None => paths.push(path),
            }
        }
        paths
    }

    /// What `of` says of each path. The main thread is never kept longer than one remote takes.
    /// Without an engine there are no paths: what was measured of them is of another time.
    pub(crate) fn each_path<T>(&self, of: impl Fn(&Quality, &Remote, &Path, &str) -> T) -> Vec<T> {
        match self.known.engine {
            Some(_) => self.each_path_to(self.remotes(), of),
            None => Vec::new(),
        }
    }

    fn each_path_to<T>(
        &self,
        remotes: Vec<(String, [u8; 32])>,
        of: impl Fn(&Quality, &Remote, &Path, &str) -> T,
    ) -> Vec<T> {
        let mut all = Vec::new();
        for (called, key) in remotes {
            let quality = self.known.quality.lock();
            let Some(remote) = quality.remote(&key) else {
                continue;
            };
            let mut paths: Vec<&Path> = remote.paths().iter().collect();
            paths.sort_unstable_by_key(|path| path.report.path);
            all.extend(paths.into_iter().map(|path| of(&quality, remote, path, &called)));
        }
        all
    }

    /// Those that there are paths to, by their names.
    fn remotes(&self) -> Vec<(String, [u8; 32])> {
        let keys: Vec<[u8; 32]> = self.known.quality.lock().remotes().copied().collect();
        let mut remotes: Vec<_> = keys.into_iter().map(|key| (self.called(&key), key)).collect();
        remotes.sort_unstable();
        remotes
    }

    /// As many of them as have no more than [`QUALITY_MAX`] paths together, by their names: those with a path that is not up before the others.
    fn some_remotes(&self) -> Vec<(String, [u8; 32])> {
        let remotes = self.remotes().into_iter().map(|(called, key)| {
            let quality = self.known.quality.lock();
            let paths = quality.remote(&key).map_or(&[][..], Remote::paths);
            let is_up = paths.iter().all(|path| path.report.state == PathState::Up);
            (is_up, called, key, paths.len())
        });
        let mut remotes: Vec<_> = remotes.collect();
        remotes.sort();
        let mut paths = 0;
        remotes.retain(|(.., count)| {
            paths += count;
            paths <= QUALITY_MAX
        });
        let mut remotes: Vec<_> = remotes
            .into_iter()
            .map(|(_, called, key, _)| (called, key))
            .collect();
        remotes.sort_unstable();
        remotes
    }

    /// By which paths classes go, and why.
    pub fn why(&self, remote: Option<&str>, class: Option<&str>) -> Result<Vec<Choice>, Failure> {
        self.need_engine()?;
        let remotes = match remote {
            Some(remote) => vec![(remote.to_owned(), self.key_of(remote)?)],
            None => self.remotes(),
        };
        let mut choices = Vec::new();
        for (called, key) in remotes {
            let quality = self.known.quality.lock();
            let place = |class: &str| quality.classes().iter().position(|known| known.name == class);
            let wanted = match class {
                None => 0..quality.classes().len(),
                Some(class) => {
                    let at = place(class).ok_or_else(|| {
                        let names: Vec<&str> = quality
                            .classes()
                            .iter()
                            .map(|class| class.name.as_str())
                            .collect();
                        unknown(format!("no class in use is named {class}")).hint(format!(
                            "there are: {}; those that are built in count if a policy names them",
                            names.join(", ")
                        ))
                    })?;
                    at..at + 1
                }
            };
            match quality.remote(&key) {
                Some(found) => choices.extend(
                    wanted.filter_map(|class| explain::choice(&quality, found, class, self.called(&key))),
                ),
                None if remote.is_some() => {
                    let said = format!("there are no paths to {called}");
                    return Err(unknown(said).hint("`patronus show remotes` says how its tunnel is"));
                }
                None => {}
            }
            if choices.len() >= ANSWERS_MAX {
                choices.truncate(ANSWERS_MAX);
                break;
            }
        }
        Ok(choices)
    }

    /// The key of the remote of this name or key.
    fn key_of(&self, remote: &str) -> Result<[u8; 32], Failure> {
        let key: Option<PublicKey> = remote.parse().ok();
        let mut peers = self.config.peers.iter();
        let found = peers.find(|peer| {
            let key = key.as_ref().map(|key| key.0);
            name(peer).as_deref() == Some(remote) || key == Some(peer.public_key.get_ref().0)
        });
        let found = found.ok_or_else(|| {
            if remote.starts_with(|c: char| c.is_ascii_digit()) && remote.contains('.') {
                return unknown(format!("`{remote}` is neither a remote nor an address"))
                    .hint("a flow is two addresses: `patronus why 10.1.0.5 10.2.0.7`");
            }
            unknown(format!("there is no remote named {remote}"))
                .hint("`patronus show remotes` has all of them")
        })?;
        Ok(found.public_key.get_ref().0)
    }

    /// What becomes of a flow, and where it is now.
    pub fn why_flow(&self, flow: &Flow) -> Result<Fate, Failure> {
        if flow.src.is_ipv4() != flow.dst.is_ipv4() {
            let said = "source and destination have to be of one address family";
            return Err(Failure::new(Code::BadRequest, said));
        }
        let fate = self.judged_flow(flow)?;
        let asked = explain::question(flow).filter(|_| self.known.engine.is_some());
        let answer = asked.and_then(|lines| engine::request(&self.uapi, &lines).ok());
        // An engine that does not answer has the same policies and routes.
        let engine = answer.and_then(|text| {
            let (_, told) = groups(&text, "flow");
            let told = told.first()?;
            Some(explain::InEngine::of(told, |key| self.called(key)))
        });
        Ok(fate.in_engine(engine))
    }

    /// The same by the policies in force and the engine's routes.
    fn judged_flow(&self, flow: &Flow) -> Result<Fate, Failure> {
        let site = self.config.compile();
        let (policy, perhaps) = explain::policy_of(&site, flow);
        let called = |policy: &patronus_abi::site::Policy| {
            let at = site.policies.iter().position(|known| std::ptr::eq(known, policy));
            policy
                .name
                .clone()
                .unwrap_or_else(|| format!("number {}", at.map_or(0, |at| at + 1)))
        };
        let mut fate = Fate {
            policy: policy.map(called),
            perhaps: perhaps.into_iter().map(called).collect(),
            ..Fate::default()
        };
        let hops = match policy.map(|policy| &policy.action) {
            Some(Action::Drop) => {
                fate.goes = "drop".to_owned();
                return Ok(fate);
            }
            Some(Action::Via(hops)) => explain::hops_of(&site, hops),
            Some(Action::Route) | None => {
                let text = self.ask("routes")?;
                let (_, routes) = groups(&text, "route");
                let routes = routes
                    .iter()
                    .filter_map(|group| Some((group.text("route")?, group.all("via").collect::<Vec<_>>())));
                let found = explain::route_of(routes, flow.dst);
                fate.route = found.as_ref().map(|(route, _)| (*route).to_owned());
                let hops = found.map_or(Vec::new(), |(_, via)| via);
                hops.into_iter().map(str::to_owned).collect()
            }
        };
        fate.via = hops.iter().map(|hop| self.via(hop)).collect();
        let class = policy.map_or(0, |policy| usize::from(policy.class));
        self.follow(&mut fate, &hops, class, &site.classes[class].name)?;
        Ok(fate)
    }

    /// Where next hops, in the engine's words, lead a flow of this class.
    fn follow(&self, fate: &mut Fate, hops: &[String], class: usize, called: &str) -> Result<(), Failure> {
        fate.goes = match hops.first().map(|hop| hop.split(' ').next().unwrap_or_default()) {
            None | Some("discard") => "nowhere",
            Some("peer") => "tunnel",
            Some("host") => "host",
            Some(_) => "lan",
        }
        .to_owned();
        for key in hops.iter().filter_map(|hop| key(hop.strip_prefix("peer ")?)) {
            fate.class = Some(called.to_owned());
            let quality = self.known.quality.lock();
            let remote = quality.remote(&key);
            fate.choices.extend(
                remote.and_then(|remote| explain::choice(&quality, remote, class, self.called(&key))),
            );
        }
        Ok(())
    }

    /// What was decided lately.
    pub fn decisions(
        &self,
        remote: Option<&str>,
        class: Option<&str>,
        after: u64,
        count: Option<usize>,
    ) -> Result<Vec<Record>, Failure> {
        let called = match remote {
            Some(remote) => Some(self.called(&self.key_of(remote)?)),
            None => None,
        };
        Ok(self.known.decisions.last(&Asked {
            remote: called.as_deref(),
            class,
            after,
            count: count.unwrap_or(ANSWER),
        }))
    }
}

fn unknown(said: String) -> Failure {
    Failure::new(Code::BadRequest, said)
}
