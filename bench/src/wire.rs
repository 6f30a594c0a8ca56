//! `patronus-bench wire`: two sites with Ethernet LANs, from one LAN to the other, frames of our own generator's at both ends. What the
//! engine's ports cost beside each other, with nothing of the host's in between, and beside the kernel's forwarding and wireguard-go.

mod site;
mod traffic;

use crate::goals::{Goal, Outcome};
use crate::load::udp::Trial;
use crate::machine::{self, Unused};
use crate::report::{figure, median};
use crate::search::{self, Effort, Start, Verdict};
use clap::Args;
use hdrhistogram::Histogram;
use patronus_netns::{Error, Kind, Result};
use serde::Serialize;
use site::{Rig, SUBJECTS, Way};
use std::path::PathBuf;
use std::time::Duration;
use traffic::{Generator, Offer};

/// Loss that counts as none.
const ALLOWANCE: f64 = 0.0001;
/// How long a rig may take until packets get through.
const PROBE: Duration = Duration::from_secs(10);
/// Packets a second at which the latency of a quiet line is measured.
const QUIET: f64 = 1000.0;
/// Where the first search begins, packets a second.
const FIRST: f64 = 150_000.0;

/// Options of `patronus-bench wire`.
#[derive(Args)]
pub struct Options {
    /// Subjects, with commas: direct, no-tunnel, af_xdp, single, socket, af_packet, tun-af_xdp, tun-single, wireguard-go [default: all].
    #[arg(long, value_delimiter = ',')]
    subjects: Option<Vec<String>>,
    /// Tests, with commas: cpu (at --rate), rate (the highest without loss), latency (quiet and at --rate) [default: all].
    #[arg(long, value_delimiter = ',')]
    tests: Option<Vec<String>>,
    /// Sizes of IP packets, bytes, with commas.
    #[arg(long, value_delimiter = ',', default_values_t = [64, 1400])]
    sizes: Vec<usize>,
    /// Packets a second that cpu and latency are measured at.
    #[arg(long, default_value_t = 80_000.0)]
    rate: f64,
    /// Rounds; figures are medians over them.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Length of a trial, seconds.
    #[arg(long, default_value_t = 3.0)]
    trial: f64,
    /// Trials at a rate, all of which must be free of loss.
    #[arg(long, default_value_t = 3)]
    trials: u32,
    /// Our engine [default: $PATRONUS_ENGINE, else beside this program].
    #[arg(long, value_name = "PATH")]
    engine: Option<PathBuf>,
    /// Writes the rows as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What is measured of a subject at a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Test {
    Cpu,
    Rate,
    Latency,
}

const TESTS: [(&str, Test); 3] = [
    ("cpu", Test::Cpu),
    ("rate", Test::Rate),
    ("latency", Test::Latency),
];

/// What one test showed once. `None`: not measured by it.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    pps: Option<f64>,
    loss: Option<f64>,
    daemons_us: Option<f64>,
    machine_us: Option<f64>,
    quiet_p50_us: Option<f64>,
    quiet_p99_us: Option<f64>,
    lat_p50_us: Option<f64>,
    lat_p99_us: Option<f64>,
    generator_limited: bool,
}

/// One line: a test of a subject, medians over the rounds. `None` is `null`.
#[derive(Clone, Debug, Default, Serialize)]
struct Row {
    subject: &'static str,
    test: &'static str,
    /// IP packets, bytes.
    size: usize,
    /// Packets a second that arrived.
    pps: Option<f64>,
    /// Part of the packets lost.
    loss: Option<f64>,
    /// CPU of both sites' daemons, microseconds a packet delivered.
    daemons_cpu_us_per_packet: Option<f64>,
    /// CPU of the whole machine, generator included, microseconds a packet delivered.
    machine_cpu_us_per_packet: Option<f64>,
    /// From source to sink, one way, at 1,000 packets a second, microseconds.
    quiet_p50_us: Option<f64>,
    quiet_p99_us: Option<f64>,
    /// The same at the rate of `--rate`.
    lat_p50_us: Option<f64>,
    lat_p99_us: Option<f64>,
    rounds: usize,
    /// Least and greatest value of the test's own figure over the rounds.
    min: Option<f64>,
    max: Option<f64>,
    /// In half of the rounds or more, the generator was the limit and not the subject.
    generator_limited: bool,
}

struct Subject {
    name: &'static str,
    way: Way,
}

struct Bench {
    subjects: Vec<Subject>,
    tests: Vec<(&'static str, Test)>,
    sizes: Vec<usize>,
    rate: f64,
    trial: Duration,
    trials: u32,
    engine: Option<PathBuf>,
    found: Vec<(&'static str, Test, usize, Sample)>,
    failures: Vec<String>,
}

/// Runs it and writes what was asked for.
pub fn run(options: &Options) -> Result<()> {
    let mut bench = Bench::new(options)?;
    for (name, value) in machine::settings() {
        println!("{name}: {value}");
    }
    println!(
        "two sites, veths, MTU 1500; sizes are those of the IP packets on the LANs; {} rounds, trials of {:?}\n",
        options.rounds.max(1),
        bench.trial
    );
    for round in 1..=options.rounds.max(1) {
        bench.round(round);
        if let Some(path) = &options.json {
            let lines: serde_json::Result<Vec<String>> =
                bench.rows().iter().map(serde_json::to_string).collect();
            let lines = lines.map_err(|e| Error::new(e.to_string()))?;
            std::fs::write(path, format!("[\n{}\n]\n", lines.join(",\n")))
                .map_err(|e| Error::new(format!("{}: {e}", path.display())))?;
        }
    }
    let rows = bench.rows();
    println!("{}", table(&rows));
    for failure in &bench.failures {
        println!("failed: {failure}");
    }
    for outcome in judge(&rows) {
        println!("{}", outcome.line());
    }
    Ok(())
}

/// Those of `known` that were asked for, or all.
fn choose<T: Copy>(
    what: &str,
    known: &[(&'static str, T)],
    wanted: Option<&[String]>,
) -> Result<Vec<(&'static str, T)>> {
    let Some(wanted) = wanted else {
        return Ok(known.to_vec());
    };
    if let Some(name) = wanted
        .iter()
        .find(|name| !known.iter().any(|k| k.0 == name.as_str()))
    {
        let all: Vec<&str> = known.iter().map(|k| k.0).collect();
        return Err(Error::new(format!(
            "no such {what}: {name} (there are: {})",
            all.join(", ")
        )));
    }
    let asked = |k: &&(&'static str, T)| wanted.iter().any(|name| name == k.0);
    Ok(known.iter().filter(asked).copied().collect())
}

impl Bench {
    fn new(options: &Options) -> Result<Bench> {
        if let Some(size) = options.sizes.iter().find(|size| !(48..=1420).contains(*size)) {
            return Err(Error::new(format!("--sizes {size}: from 48 to 1420 bytes")));
        }
        let trial = Duration::try_from_secs_f64(options.trial)
            .map_err(|e| Error::new(format!("--trial {}: {e}", options.trial)))?;
        let engine = options.engine.clone().or_else(|| Kind::Engine.find());
        let mut subjects = Vec::new();
        for (name, way) in choose("subject", &SUBJECTS, options.subjects.as_deref())? {
            match way {
                Way::Tun(kind, _) if kind != Kind::Engine && kind.find().is_none() => {
                    println!("left out: {name} is not installed (scripts/install-peers)");
                }
                _ => subjects.push(Subject { name, way }),
            }
        }
        Ok(Bench {
            subjects,
            tests: choose("test", &TESTS, options.tests.as_deref())?,
            sizes: options.sizes.clone(),
            rate: options.rate,
            trial,
            trials: options.trials.max(1),
            engine,
            found: Vec::new(),
            failures: Vec::new(),
        })
    }

    /// Every test with every subject and size, once, in turn.
    fn round(&mut self, round: u32) {
        for (test_name, test) in self.tests.clone() {
            for size in self.sizes.clone() {
                for at in 0..self.subjects.len() {
                    let name = self.subjects[at].name;
                    let place = format!("{round} {test_name:<8} {size:>5} {name:<14}");
                    match self.measure(&self.subjects[at], test, size) {
                        Ok(sample) => {
                            eprintln!("{place} {}", figure(headline(test, &sample)));
                            self.found.push((name, test, size, sample));
                        }
                        Err(error) => {
                            eprintln!("{place} failed: {error}");
                            self.failures.push(format!("{place}: {error}"));
                        }
                    }
                }
            }
        }
    }

    fn measure(&self, subject: &Subject, test: Test, size: usize) -> Result<Sample> {
        let rig = Rig::up(subject.way, self.engine.as_deref())?;
        let mut generator = Generator::new(&rig)?;
        let probed = generator.probe(PROBE);
        probed.map_err(|error| Error::new(format!("{error}; {}", rig.log())))?;
        let offer = Offer {
            size,
            pps: self.rate,
            duration: self.trial,
            timed: false,
        };
        match test {
            Test::Cpu => cpu(&rig, &mut generator, offer),
            Test::Latency => latency(&mut generator, offer),
            Test::Rate => self.highest(&mut generator, offer, self.near(subject.name, size)),
        }
    }

    /// The rate of the round before.
    fn near(&self, subject: &str, size: usize) -> Option<f64> {
        let mine = self.found.iter().rev();
        let mut mine = mine.filter(|found| found.0 == subject && found.1 == Test::Rate && found.2 == size);
        mine.find_map(|found| found.3.pps.filter(|pps| *pps > 0.0))
    }

    fn highest(&self, generator: &mut Generator, offer: Offer, near: Option<f64>) -> Result<Sample> {
        let start = match near {
            Some(pps) => Start::At(search::nearest_step(pps)),
            None => Start::Around(search::nearest_step(FIRST)),
        };
        let mut best = 0.0;
        let found = search::highest_clean(start, |step, effort| {
            let offer = Offer {
                pps: search::rate(step),
                duration: match effort {
                    Effort::Screen => self.trial / 4,
                    Effort::Confirm => self.trial,
                },
                ..offer
            };
            let count = if effort == Effort::Screen { 1 } else { self.trials };
            let mut total = Trial::default();
            for _ in 0..count {
                let (trial, _) = generator.trial(offer)?;
                total.add(&trial);
                if trial.loss() > ALLOWANCE && trial.sink_drops == 0 {
                    return Ok(Verdict::Lossy);
                } else if trial.generator_limited() {
                    return Ok(Verdict::Limited);
                }
            }
            if effort == Effort::Confirm {
                best = total.pps();
            }
            Ok::<_, Error>(Verdict::Clean)
        })?;
        Ok(Sample {
            pps: Some(found.step.map_or(0.0, |_| best)),
            generator_limited: found.generator_limited,
            ..Sample::default()
        })
    }

    fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for (name, test) in &self.tests {
            for size in &self.sizes {
                for subject in &self.subjects {
                    let mine = |found: &&(&str, Test, usize, Sample)| {
                        (found.0, found.1, found.2) == (subject.name, *test, *size)
                    };
                    let samples: Vec<Sample> = self.found.iter().filter(mine).map(|found| found.3).collect();
                    if !samples.is_empty() {
                        rows.push(Row::new(subject.name, (name, *test), *size, &samples));
                    }
                }
            }
        }
        rows
    }
}

fn cpu(rig: &Rig, generator: &mut Generator, offer: Offer) -> Result<Sample> {
    let warm = Offer {
        duration: offer.duration / 4,
        ..offer
    };
    generator.trial(warm)?;
    let (before, unused) = (rig.cpu()?, Unused::now());
    let (trial, _) = generator.trial(offer)?;
    let used = unused.used_since();
    let daemons = rig
        .cpu()?
        .zip(before)
        .map(|(after, before)| after.saturating_sub(before));
    let a_packet = |time: Duration| time.as_secs_f64() * 1e6 / trial.received.max(1) as f64;
    Ok(Sample {
        pps: Some(trial.pps()),
        loss: Some(trial.loss()),
        daemons_us: daemons.map(a_packet),
        machine_us: Some(a_packet(used)),
        generator_limited: trial.generator_limited(),
        ..Sample::default()
    })
}

fn latency(generator: &mut Generator, offer: Offer) -> Result<Sample> {
    let timed = Offer { timed: true, ..offer };
    let (_, quiet) = generator.trial(Offer { pps: QUIET, ..timed })?;
    let (trial, times) = generator.trial(timed)?;
    let micros = |times: &Histogram<u64>, quantile| Some(times.value_at_quantile(quantile) as f64 / 1000.0);
    Ok(Sample {
        pps: Some(trial.pps()),
        loss: Some(trial.loss()),
        quiet_p50_us: micros(&quiet, 0.5),
        quiet_p99_us: micros(&quiet, 0.99),
        lat_p50_us: micros(&times, 0.5),
        lat_p99_us: micros(&times, 0.99),
        generator_limited: trial.generator_limited(),
        ..Sample::default()
    })
}

/// The figure that a test is about.
fn headline(test: Test, sample: &Sample) -> Option<f64> {
    match test {
        Test::Cpu => sample.daemons_us.or(sample.machine_us),
        Test::Rate => sample.pps.map(|pps| pps / 1e3),
        Test::Latency => sample.lat_p50_us,
    }
}

impl Row {
    fn new(
        subject: &'static str,
        (name, test): (&'static str, Test),
        size: usize,
        samples: &[Sample],
    ) -> Row {
        let of = |field: fn(&Sample) -> Option<f64>| median(samples.iter().filter_map(field));
        let heads = || samples.iter().filter_map(|sample| headline(test, sample));
        let limited = samples.iter().filter(|sample| sample.generator_limited).count();
        Row {
            subject,
            test: name,
            size,
            pps: of(|s| s.pps),
            loss: of(|s| s.loss),
            daemons_cpu_us_per_packet: of(|s| s.daemons_us),
            machine_cpu_us_per_packet: of(|s| s.machine_us),
            quiet_p50_us: of(|s| s.quiet_p50_us),
            quiet_p99_us: of(|s| s.quiet_p99_us),
            lat_p50_us: of(|s| s.lat_p50_us),
            lat_p99_us: of(|s| s.lat_p99_us),
            rounds: samples.len(),
            min: heads().reduce(f64::min),
            max: heads().reduce(f64::max),
            generator_limited: limited > 0 && limited * 2 >= samples.len(),
        }
    }
}

/// The table, as Markdown: a section a test and size, a line a subject.
fn table(rows: &[Row]) -> String {
    let mut text = String::new();
    for (name, test) in TESTS {
        let mut sizes: Vec<usize> = rows.iter().map(|row| row.size).collect();
        sizes.dedup();
        sizes.sort_unstable();
        sizes.dedup();
        for size in sizes {
            let of_test = rows.iter().filter(|row| row.test == name && row.size == size);
            let lines: Vec<String> = of_test.map(|row| line(test, row)).collect();
            if !lines.is_empty() {
                text += &format!("\n{name}, {size} B\n\n{}\n{}\n", head(test), lines.join("\n"));
            }
        }
    }
    if rows.iter().any(|row| row.generator_limited) {
        text += "\n* the generator was the limit\n";
    }
    text
}

fn head(test: Test) -> &'static str {
    match test {
        Test::Cpu => {
            "| | daemons' \u{b5}s/packet (min to max) | machine's \u{b5}s/packet | kpps | loss % |\n|---|---|---|---|---|"
        }
        Test::Rate => "| | highest without loss, kpps (min to max) |\n|---|---|",
        Test::Latency => {
            "| | \u{b5}s at the rate, p50 (min to max) | p99 | \u{b5}s quiet, p50 | p99 | loss % |\n|---|---|---|---|---|---|"
        }
    }
}

fn line(test: Test, row: &Row) -> String {
    let mark = if row.generator_limited { " *" } else { "" };
    let own = |value: Option<f64>| {
        format!(
            "{} ({} to {}){mark}",
            figure(value),
            figure(row.min),
            figure(row.max)
        )
    };
    let kpps = row.pps.map(|pps| pps / 1e3);
    let loss = row
        .loss
        .map_or("-".to_owned(), |loss| format!("{:.4}", loss * 100.0));
    let cells = match test {
        Test::Cpu => vec![
            own(row.daemons_cpu_us_per_packet),
            figure(row.machine_cpu_us_per_packet),
            figure(kpps),
            loss,
        ],
        Test::Rate => vec![own(kpps)],
        Test::Latency => vec![
            own(row.lat_p50_us),
            figure(row.lat_p99_us),
            figure(row.quiet_p50_us),
            figure(row.quiet_p99_us),
            loss,
        ],
    };
    format!("| {:<12} | {} |", row.subject, cells.join(" | "))
}

/// AF_XDP against our own socket without segmentation offload, at 64 bytes: between Ethernet LANs, and behind a TUN. What the kernel does in
/// another's time is in the machine's CPU beyond what the generator costs alone.
fn judge(rows: &[Row]) -> Vec<Outcome> {
    type Figure = fn(&Row) -> Option<f64>;
    let figure_of = |subject: &str, figure: Figure| {
        let mut cpu = rows.iter().filter(|row| row.test == "cpu" && row.size == 64);
        figure(cpu.find(|row| row.subject == subject)?)
    };
    let daemons: Figure = |row| row.daemons_cpu_us_per_packet;
    let machine: Figure = |row| row.machine_cpu_us_per_packet;
    let alone = figure_of("direct", machine);
    let beyond = |subject| Some(figure_of(subject, machine)? - alone?);
    let outcome = |what: &str, queue: Option<f64>, socket: Option<f64>| {
        let (queue, socket) = queue.zip(socket.filter(|value| *value > 0.0))?;
        Some(Outcome {
            what: what.to_owned(),
            detail: format!("AF_XDP {queue:.2}, socket {socket:.2} \u{b5}s a packet"),
            value: queue / socket,
            goal: Goal::AtMost(0.7),
        })
    };
    let all = [
        outcome(
            "WAN of Ethernet LANs: daemons' CPU",
            figure_of("af_xdp", daemons),
            figure_of("single", daemons),
        ),
        outcome(
            "WAN of Ethernet LANs: all CPU",
            beyond("af_xdp"),
            beyond("single"),
        ),
        outcome(
            "WAN behind a TUN: daemons' CPU",
            figure_of("tun-af_xdp", daemons),
            figure_of("tun-single", daemons),
        ),
        outcome(
            "WAN behind a TUN: all CPU",
            beyond("tun-af_xdp"),
            beyond("tun-single"),
        ),
        outcome(
            "af_xdp against wireguard-go: all CPU",
            beyond("af_xdp"),
            beyond("wireguard-go"),
        ),
    ];
    all.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(subject: &'static str, daemons: Option<f64>, machine: f64) -> Row {
        Row {
            subject,
            test: "cpu",
            size: 64,
            daemons_cpu_us_per_packet: daemons,
            machine_cpu_us_per_packet: Some(machine),
            ..Row::default()
        }
    }

    #[test]
    fn af_xdp_is_judged_against_the_socket_beyond_the_generator() {
        let rows = [
            row("direct", None, 2.0),
            row("af_xdp", Some(3.0), 5.0),
            row("single", Some(6.0), 6.0),
        ];
        let outcomes = judge(&rows);
        assert_eq!(outcomes.iter().map(|o| o.value).collect::<Vec<_>>(), [0.5, 0.75]);
        assert_eq!(
            outcomes.iter().map(Outcome::reached).collect::<Vec<_>>(),
            [true, false]
        );
        assert!(judge(&rows[..2]).is_empty());
    }

    #[test]
    fn rows_and_table_have_what_was_measured() {
        let sample = Sample {
            pps: Some(80_000.0),
            loss: Some(0.0),
            daemons_us: Some(1.5),
            machine_us: Some(3.0),
            ..Sample::default()
        };
        let row = Row::new("af_xdp", ("cpu", Test::Cpu), 64, &[sample, sample]);
        let text = table(std::slice::from_ref(&row));
        assert!(text.contains("cpu, 64 B"), "{text}");
        assert!(
            text.contains("| af_xdp       | 1.50 (1.50 to 1.50) | 3.00 | 80.0 | 0.0000 |"),
            "{text}"
        );
        let parsed: serde_json::Value = serde_json::from_str(&serde_json::to_string(&row).unwrap()).unwrap();
        assert_eq!(
            (parsed["size"].as_u64(), parsed["rounds"].as_u64()),
            (Some(64), Some(2))
        );
        assert!(parsed["lat_p50_us"].is_null());
    }

    #[test]
    fn unknown_names_are_an_error() {
        let wanted = ["af_xdp", "nonesuch"].map(str::to_owned);
        assert!(choose("subject", &SUBJECTS, Some(&wanted)).is_err());
        assert_eq!(choose("subject", &SUBJECTS, Some(&wanted[..1])).unwrap().len(), 1);
        assert_eq!(choose("test", &TESTS, None).unwrap().len(), 3);
    }
}
