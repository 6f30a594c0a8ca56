//! `patronus-bench soak`: a long run with a rekey every 20 seconds against an equal one without rekeys. Called by
//! scripts/soak.
//!
//! Rekeys are made frequent by the engine's test option that divides the protocol's times (120 s / 6). The run without
//! is cut into pieces that end before the first rekey is due, each with a new tunnel.

use crate::demo::throughput::first_answer;
use crate::load::tcp::{self, Streams};
use crate::load::udp::{Flow, Mix, Trial};
use crate::reading::{MEMORY_TOLERANCE, Reading};
use crate::subject::{OURS, Subject};
use patronus_netns::{Error, Result, Site, Tunnel};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What the protocol's times are divided by.
const DIVISOR: &str = "6";
/// Length of a piece without rekey: less than REKEY_AFTER_TIME with the handshake and the start of the traffic.
const PIECE: Duration = Duration::from_secs(100);
/// Traffic before counters and memory are read for the first time.
const WARM_UP: Duration = Duration::from_secs(20);
/// A session older than this at the end of the run with rekeys was not renewed in time: 20 s, and the retry's time.
const REKEY_MAX_AGE: Duration = Duration::from_secs(30);
/// UDP packets of 1,400 bytes a second.
const RATE: f64 = 10_000.0;
/// Bits a second of a TCP stream beside them, whose acknowledgements are the traffic in the other direction.
const TCP_PACE: f64 = 200e6;
/// Loss below this is called none: the sender and the receiver share the cores with everything else.
const LOSS_FLOOR: f64 = 1e-5;

/// What `soak` can be told.
#[derive(clap::Args)]
pub struct Options {
    /// The engine; default: the one beside this program.
    #[arg(long, value_name = "PATH")]
    engine: Option<PathBuf>,
    /// Length of each of the two runs.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    minutes: u32,
}

/// Runs both and judges.
pub fn run(options: &Options) -> Result<()> {
    let length = Duration::from_secs(60) * options.minutes;
    let wanted = [OURS.to_owned()];
    let (subjects, _) = Subject::choose(Some(&wanted), options.engine.clone(), None, None)?;
    let plain = subjects
        .into_iter()
        .next()
        .ok_or_else(|| Error::new("patronus-engine is not built: --engine PATH"))?;
    let program = plain.options.program.clone().unwrap_or_default();
    let mut rekeying = plain.clone();
    rekeying
        .options
        .args
        .extend(["--test-timer-divisor", DIVISOR].map(str::to_owned));

    let mut without = Trial::default();
    let mut left = length;
    while !left.is_zero() {
        let piece = left.min(PIECE);
        let (tunnel, _) = first_answer(&plain)?;
        without.add(&traffic(&tunnel, piece)?);
        left -= piece;
    }
    println!("without rekeys: {}", describe(&without));

    let (tunnel, _) = first_answer(&rekeying)?;
    quiet(&tunnel)?;
    traffic(&tunnel, WARM_UP)?;
    let before = both(&tunnel, &program)?;
    let with = traffic(&tunnel, length)?;
    let after = both(&tunnel, &program)?;
    println!("with a rekey every 20 s: {}", describe(&with));

    let mut problems = Vec::new();
    let age = session_age(&tunnel.a)?;
    if age > REKEY_MAX_AGE {
        problems.push(format!(
            "the session is {} s old: no rekey took place",
            age.as_secs()
        ));
    }
    if with.loss() > without.loss().max(LOSS_FLOOR) {
        problems.push("more loss with rekeys than without".to_owned());
    }
    for (site, (before, after)) in ["a", "b"].into_iter().zip(before.iter().zip(&after)) {
        judge(site, before, after, &mut problems);
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(Error::new(problems.join("; ")))
    }
}

/// Keeps the kernel from looking for IPv6 routers behind the tunnels: those packets belong to no peer and would be counted
/// as drops.
fn quiet(tunnel: &Tunnel) -> Result<()> {
    for site in [&tunnel.a, &tunnel.b] {
        let key = format!("net.ipv6.conf.{}.router_solicitations", site.interface);
        site.namespace.sysctl(&key, "0")?;
    }
    Ok(())
}

/// How long ago the site's last handshake was.
fn session_age(site: &Site) -> Result<Duration> {
    let daemon = site.daemon.as_ref().ok_or_else(|| Error::new("no daemon"))?;
    let last = daemon.peers()?.first().map_or(0, |peer| peer.latest_handshake);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(now.saturating_sub(Duration::from_secs(last)))
}

fn describe(trial: &Trial) -> String {
    let lost = trial.sent - trial.received;
    format!(
        "{} of {} UDP packets lost ({:.5} %) in {:.0} s",
        lost,
        trial.sent,
        trial.loss() * 100.0,
        trial.seconds
    )
}

/// Both kinds of traffic for `duration`; gives the UDP packets' fate.
fn traffic(tunnel: &Tunnel, duration: Duration) -> Result<Trial> {
    let _tcp = Streams::start(
        tunnel,
        tcp::Kind {
            count: 1,
            pace: Some(TCP_PACE),
            congestion: None,
        },
    )?;
    Flow::new(tunnel)?.trial(Mix::LARGE, RATE, duration, None)
}

fn both(tunnel: &Tunnel, engine: &Path) -> Result<[Reading; 2]> {
    Ok([read(&tunnel.a, engine)?, read(&tunnel.b, engine)?])
}

fn read(site: &Site, engine: &Path) -> Result<Reading> {
    let daemon = site.daemon.as_ref().ok_or_else(|| Error::new("no daemon"))?;
    Reading::take(&site.namespace, &site.interface, daemon.pid(), engine)
}

/// Adds what is wrong with an engine after the run.
fn judge(site: &str, before: &Reading, after: &Reading, problems: &mut Vec<String>) {
    for (name, more) in after.drops_since(before) {
        problems.push(format!("site {site}: {name} rose by {more}"));
    }
    if !after.has_drop_counters() {
        problems.push(format!("site {site}: the engine shows no drop counters"));
    }
    let change = after.growth_since(before);
    println!(
        "site {site}: resident {} KiB, then {} KiB ({:+.2} %)",
        before.resident,
        after.resident,
        change * 100.0
    );
    if change.abs() > MEMORY_TOLERANCE {
        problems.push(format!(
            "site {site}: resident memory changed by {:+.1} %",
            change * 100.0
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reading::reading;

    #[test]
    fn quiet_engine_passes() {
        let mut problems = Vec::new();
        let text = "worker0.drop.decap-replay=3\nworker0.sleeps=9\n";
        judge("a", &reading(text, 1000), &reading(text, 1019), &mut problems);
        assert!(problems.is_empty(), "{problems:?}");
    }

    #[test]
    fn new_drops_growth_and_missing_counters_are_told() {
        let told = |before: &str, after: &str, resident| {
            let mut problems = Vec::new();
            judge(
                "a",
                &reading(before, 1000),
                &reading(after, resident),
                &mut problems,
            );
            problems.join("; ")
        };
        assert!(told("w.drop.x=3\n", "w.drop.x=4\n", 1000).contains("w.drop.x rose by 1"));
        assert!(told("w.drop.x=3\n", "w.drop.x=3\n", 1021).contains("resident"));
        assert!(told("", "", 1000).contains("no drop counters"));
    }
}
