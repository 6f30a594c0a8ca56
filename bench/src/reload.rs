//! `patronus-bench reload`: what a thousand reloads cost the packets of a site that is in use. Two sites, each under its control process; UDP at half
//! of what gets through without loss, in turn without reloads and with reloads of both sites.

pub mod pair;

use crate::load::udp::{Flow, Trial};
use crate::machine;
use crate::programs::Programs;
use crate::reading::{MEMORY_TOLERANCE, Reading};
use crate::tests_of::{Lengths, Test, highest};
use pair::Managed;
use patronus_netns::{Error, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Loss below this is called none: the sender and the receiver share the cores with everything else.
const LOSS_FLOOR: f64 = 1e-5;
/// A session is renewed after 120 s (REKEY_AFTER_TIME of WireGuard, section 6.1). One that is younger when another takes its place was reset.
const RENEWAL: Duration = Duration::from_secs(119);
/// Reloads before memory is read for the first time: whoever reloads for the first time makes the room for a second site beside the one in force.
const FIRST: usize = 20;

/// What `reload` can be told.
#[derive(clap::Args)]
pub struct Options {
    /// The engine; patronus-control and patronus lie beside it [default: $PATRONUS_ENGINE, else beside this program].
    #[arg(long, value_name = "PATH")]
    engine: Option<PathBuf>,
    /// Reloads of each site.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    reloads: u32,
    /// Traffic without reloads, and as long with them, seconds.
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// Pieces that each of the two is cut into; they alternate.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Traffic: udp64, udp1400, udpmix (64, 576 and 1,400 bytes, 7:4:1).
    #[arg(long, default_value = "udpmix")]
    traffic: String,
    /// Packets a second [default: half of the loss-free rate, which is looked for].
    #[arg(long)]
    rate: Option<f64>,
    /// Writes the figures as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// One of the two kinds of time, all its pieces together.
#[derive(Default, Serialize)]
struct Phase {
    seconds: f64,
    sent: u64,
    received: u64,
    /// Part of the packets lost.
    loss: f64,
    /// Handshakes of both sites' sessions with each other: one every 120 s.
    handshakes: u32,
    /// Those that took the place of a session before its time.
    sessions_reset: u32,
    /// Packets that the engines dropped, by site and reason.
    drops: BTreeMap<String, u64>,
}

/// Resident memory of a process, KiB: after the first reloads, and after all.
#[derive(Serialize)]
struct Memory {
    process: String,
    before: u64,
    after: u64,
    /// Part by which it grew.
    growth: f64,
}

/// From `patronus apply` to its answer, milliseconds.
#[derive(Default, Serialize)]
struct Times {
    count: usize,
    /// Begun while traffic was sent.
    under_traffic: usize,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

/// Everything that a run showed.
#[derive(Serialize)]
struct Report {
    traffic: String,
    /// The loss-free rate, packets a second; `null` if the rate was given.
    loss_free_pps: Option<f64>,
    /// Packets a second that were sent.
    pps: f64,
    without: Phase,
    with: Phase,
    reloads: Times,
    memory: Vec<Memory>,
}

/// Both sites and what is known about them.
struct Bench {
    programs: Programs,
    sites: [Managed; 2],
    /// When each site's session was made.
    sessions: [Duration; 2],
    /// Reloads so far.
    reloads: usize,
    times: Vec<Duration>,
    under_traffic: usize,
}

/// Runs it, prints the table and judges.
pub fn run(options: &Options) -> Result<()> {
    let known = Test::by_name(&options.traffic);
    let Some(Test::Highest(packets)) = known else {
        return Err(Error::new(format!(
            "--traffic {}: udp64, udp1400 or udpmix",
            options.traffic
        )));
    };
    let piece = Duration::try_from_secs_f64(options.seconds / f64::from(options.rounds))
        .map_err(|e| Error::new(format!("--seconds {}: {e}", options.seconds)))?;
    let programs = Programs::find(options.engine.clone())?;
    for (name, value) in machine::settings() {
        println!("{name}: {value}");
    }
    let (tunnel, sites) = pair::up(&programs)?;
    let loss_free = match options.rate {
        Some(_) => None,
        None => highest(&tunnel, packets, &search(), None)?.pps,
    };
    let pps = options.rate.or(loss_free.map(|pps| pps / 2.0)).unwrap_or(0.0);
    if pps < 1.0 {
        return Err(Error::new("no rate is free of loss"));
    }
    let mut bench = Bench {
        sessions: [sites[0].handshake()?, sites[1].handshake()?],
        programs,
        sites,
        reloads: 0,
        times: Vec::new(),
        under_traffic: 0,
    };
    let mut flow = Flow::new(&tunnel)?;
    let mut send = |length| flow.trial(packets.mix(), pps, length, None);
    send(Duration::from_secs(2))?;
    bench.reload(FIRST, Duration::ZERO)?;
    (bench.times, bench.under_traffic) = (Vec::new(), 0);
    let memory = bench.memory()?;
    let (mut without, mut with) = (Phase::default(), Phase::default());
    for round in 0..options.rounds {
        let share = |n: u32| (options.reloads * n / options.rounds) as usize;
        bench.phase(&mut without, 0, || send(piece), piece)?;
        let reloads = share(round + 1) - share(round);
        bench.phase(&mut with, reloads, || send(piece), piece)?;
        eprintln!("round {} of {}", round + 1, options.rounds);
    }
    let report = Report {
        traffic: options.traffic.clone(),
        loss_free_pps: loss_free,
        pps,
        without,
        with,
        reloads: times(&mut bench.times, bench.under_traffic),
        memory: grown(memory, bench.memory()?),
    };
    println!("{}", table(&report));
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&report).map_err(|e| Error::new(e.to_string()))?;
        std::fs::write(path, text + "\n").map_err(|e| Error::new(format!("{}: {e}", path.display())))?;
    }
    let problems = judge(&report);
    if problems.is_empty() {
        Ok(())
    } else {
        Err(Error::new(problems.join("; ")))
    }
}

/// How long the search's trials are.
fn search() -> Lengths {
    Lengths {
        trial: Duration::from_secs(3),
        trials: 2,
        ..Lengths::full()
    }
}

impl Bench {
    /// A piece of time with traffic, and so many reloads of each site in it.
    fn phase(
        &mut self,
        phase: &mut Phase,
        reloads: usize,
        send: impl FnOnce() -> Result<Trial>,
        length: Duration,
    ) -> Result<()> {
        let before = self.readings()?;
        let (trial, events) = std::thread::scope(|scope| {
            let reloader = scope.spawn(|| self.reload(reloads, length));
            let trial = send();
            let events = reloader
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (trial, events)
        });
        phase.add(&trial?, events?);
        let last = self.look()?;
        phase.handshakes += last.0;
        phase.sessions_reset += last.1;
        let after = self.readings()?;
        for (site, (before, after)) in ["a", "b"].into_iter().zip(before.iter().zip(&after)) {
            if !after.has_drop_counters() {
                return Err(Error::new("the engine shows no drop counters"));
            }
            for (name, more) in after.drops_since(before) {
                *phase.drops.entry(format!("{site}.{name}")).or_default() += more;
            }
        }
        Ok(())
    }

    /// Reloads both sites so many times, spread over `length`; gives handshakes and resets meanwhile.
    fn reload(&mut self, count: usize, length: Duration) -> Result<(u32, u32)> {
        let (start, mut events) = (Instant::now(), (0, 0));
        for done in 0..count {
            let due = length.mul_f64(done as f64 / count as f64);
            std::thread::sleep(due.saturating_sub(start.elapsed()));
            if start.elapsed() < length {
                self.under_traffic += 1;
            }
            for site in &self.sites {
                self.times.push(site.reload(&self.programs, self.reloads)?);
            }
            self.reloads += 1;
            let (handshakes, resets) = self.look()?;
            events = (events.0 + handshakes, events.1 + resets);
        }
        Ok(events)
    }

    /// Looks at the age of the sessions; gives how many are other ones than before, and how many of these came too early.
    fn look(&mut self) -> Result<(u32, u32)> {
        let (mut handshakes, mut resets) = (0, 0);
        for (site, session) in self.sites.iter().zip(&mut self.sessions) {
            let now = site.handshake()?;
            if now != *session {
                handshakes += 1;
                resets += u32::from(now.saturating_sub(*session) < RENEWAL);
                *session = now;
            }
        }
        Ok((handshakes, resets))
    }

    fn readings(&self) -> Result<Vec<Reading>> {
        let each = self.sites.iter().map(|site| site.reading(&self.programs));
        each.collect()
    }

    /// Resident memory of the processes, KiB.
    fn memory(&self) -> Result<Vec<(String, u64)>> {
        let mut all = Vec::new();
        for (name, site) in ["a", "b"].into_iter().zip(&self.sites) {
            all.push((format!("engine {name}"), site.reading(&self.programs)?.resident));
            all.push((format!("control {name}"), site.control_resident()?));
        }
        Ok(all)
    }
}

impl Phase {
    fn add(&mut self, trial: &Trial, (handshakes, resets): (u32, u32)) {
        self.seconds += trial.seconds;
        self.sent += trial.sent;
        self.received += trial.received;
        self.loss = 1.0 - self.received as f64 / self.sent.max(1) as f64;
        self.handshakes += handshakes;
        self.sessions_reset += resets;
    }
}

fn times(times: &mut [Duration], under_traffic: usize) -> Times {
    times.sort_unstable();
    let at = |quantile: f64| {
        let rank = (times.len() as f64 * quantile).ceil() as usize;
        let time = times.get(rank.max(1) - 1);
        time.map_or(0.0, |time| time.as_secs_f64() * 1e3)
    };
    Times {
        count: times.len(),
        under_traffic: under_traffic * 2,
        p50_ms: at(0.5),
        p99_ms: at(0.99),
        max_ms: at(1.0),
    }
}

fn grown(before: Vec<(String, u64)>, after: Vec<(String, u64)>) -> Vec<Memory> {
    let pairs = before.into_iter().zip(after);
    let memory = pairs.map(|((process, before), (_, after))| Memory {
        process,
        before,
        after,
        growth: after as f64 / before.max(1) as f64 - 1.0,
    });
    memory.collect()
}

/// The table, as Markdown.
fn table(report: &Report) -> String {
    let rate = match report.loss_free_pps {
        Some(most) => format!("half of the loss-free {most:.0}"),
        None => "as told".to_owned(),
    };
    let mut text = format!(
        "\n{}, {:.0} packets a second ({rate})\n\n| | without reloads | with reloads |\n|---|---|---|\n",
        report.traffic, report.pps
    );
    let phases = [&report.without, &report.with];
    let mut row = |name: &str, cell: &dyn Fn(&Phase) -> String| {
        let [without, with] = phases.map(cell);
        text.push_str(&format!("| {name} | {without} | {with} |\n"));
    };
    row("seconds", &|p| format!("{:.1}", p.seconds));
    row("packets sent", &|p| p.sent.to_string());
    row("packets lost", &|p| (p.sent - p.received.min(p.sent)).to_string());
    row("loss, %", &|p| format!("{:.5}", p.loss * 100.0));
    row("dropped by the engines", &|p| {
        p.drops.values().sum::<u64>().to_string()
    });
    row("handshakes", &|p| p.handshakes.to_string());
    row("sessions reset", &|p| p.sessions_reset.to_string());
    let times = &report.reloads;
    text.push_str(&format!(
        "\n{} reloads, {} of them under traffic: p50 {:.1}, p99 {:.1}, longest {:.1} ms\n",
        times.count, times.under_traffic, times.p50_ms, times.p99_ms, times.max_ms
    ));
    for (name, count) in phases.into_iter().flat_map(|phase| &phase.drops) {
        text.push_str(&format!("dropped: {name} {count}\n"));
    }
    for of in &report.memory {
        text.push_str(&format!(
            "resident, {}: {} KiB, then {} KiB ({:+.2} %)\n",
            of.process,
            of.before,
            of.after,
            of.growth * 100.0
        ));
    }
    text
}

/// What is not as it must be.
fn judge(report: &Report) -> Vec<String> {
    let mut problems = Vec::new();
    for (name, more) in &report.with.drops {
        problems.push(format!("{name} rose by {more}"));
    }
    if report.with.loss > report.without.loss.max(LOSS_FLOOR) {
        problems.push("more loss with reloads than without".to_owned());
    }
    if report.with.sessions_reset > 0 {
        problems.push(format!("{} sessions were reset", report.with.sessions_reset));
    }
    if report.reloads.under_traffic < report.reloads.count {
        problems.push("reloads took longer than the traffic: more --seconds".to_owned());
    }
    // Of the engines: the control process is a fifth of the size, and what it grows by once is more than 2 % of that.
    let engines = report.memory.iter().filter(|of| of.process.starts_with("engine"));
    for of in engines.filter(|of| of.growth.abs() > MEMORY_TOLERANCE) {
        problems.push(format!("{} grew by {:.1} %", of.process, of.growth * 100.0));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let phase = || Phase {
            seconds: 1.0,
            sent: 1_000_000,
            received: 999_999,
            loss: 1e-6,
            ..Phase::default()
        };
        Report {
            traffic: "udp64".to_owned(),
            loss_free_pps: Some(200_000.0),
            pps: 100_000.0,
            without: phase(),
            with: phase(),
            reloads: times(&mut [3, 1, 2].map(Duration::from_millis), 1),
            memory: grown(
                vec![("engine a".to_owned(), 1000)],
                vec![("engine a".to_owned(), 1019)],
            ),
        }
    }

    #[test]
    fn whatever_is_wrong_is_told() {
        let wrong = |change: fn(&mut Report)| {
            let mut report = report();
            report.reloads.under_traffic = report.reloads.count;
            change(&mut report);
            judge(&report).join("; ")
        };
        assert_eq!(wrong(|_| ()), "");
        assert!(wrong(|r| r.with.loss = 2e-5).contains("more loss"));
        assert!(wrong(|r| r.with.sessions_reset = 1).contains("reset"));
        assert!(wrong(|r| r.memory[0].growth = 0.021).contains("engine a grew by 2.1 %"));
        assert_eq!(wrong(|r| r.memory[0].process = "control a".to_owned()), "");
        assert!(wrong(|r| r.reloads.under_traffic = 0).contains("longer than the traffic"));
        let dropped = |r: &mut Report| {
            r.with.drops.insert("a.w.drop.x".to_owned(), 2);
        };
        assert!(wrong(dropped).contains("a.w.drop.x rose by 2"));
    }

    #[test]
    fn table_has_everything() {
        let text = table(&report());
        assert!(
            text.contains("100000 packets a second (half of the loss-free 200000)"),
            "{text}"
        );
        assert!(text.contains("| packets lost | 1 | 1 |"), "{text}");
        assert!(text.contains("3 reloads, 2 of them under traffic: p50 2.0, p99 3.0, longest 3.0 ms"));
        assert!(
            text.contains("resident, engine a: 1000 KiB, then 1019 KiB (+1.90 %)"),
            "{text}"
        );
    }
}
