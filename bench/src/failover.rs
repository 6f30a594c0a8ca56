//! `patronus-bench failover`: two sites with several links, and faults on the link that carries a stream of a thousand datagrams a second: how long nothing
//! arrives, how soon it goes by another link, what is lost and what comes twice, and what moves for no reason. How it is measured: docs/failover.md.

pub mod course;
pub mod rig;
mod stock;
pub mod stream;
mod unseen;

use crate::machine;
use course::{Course, Fault, Ground, Trial};
use patronus_netns::{Error, Result};
use rig::{Rig, Setup, Wire};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;
use stock::Stock;

/// The time between probes if a site's file says nothing.
const DEFAULT_PROBE_MS: u64 = 50;
/// The class of the stream.
const CLASS: &str = "stream";
/// The class's limits where the fault is to break them: a round trip, and a part of a hundred.
const LIMITS: &str = "latency = '60ms'\nloss = '1%'\nhold = '2s'\n";

/// How long a path that was left has to be good, where the stream is to go back.
const HOLD: &str = "hold = '5s'\n";

/// What can be told to `failover`.
#[derive(clap::Args)]
pub struct Options {
    /// Scenarios, with commas: blackout, one-way, brownout-loss, brownout-delay, brownout-probes, return, fault-free, stock-peer.
    #[arg(long, value_delimiter = ',', default_value = "blackout,one-way")]
    scenario: Vec<String>,
    /// Modes of the stream's class, with commas: pinned, duplicate, and the others of docs/config.md. Of stock-peer: carrier, gateway,
    /// ping: by what the dead link is known [default: pinned; all three].
    #[arg(long, value_delimiter = ',')]
    mode: Vec<String>,
    /// Times between probes, milliseconds, with commas.
    #[arg(long, value_delimiter = ',', default_value = "50")]
    probe_ms: Vec<u64>,
    /// Faults of each scenario.
    #[arg(long, default_value_t = 200)]
    runs: u32,
    /// How long fault-free lasts, minutes.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Links of each site.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=15))]
    links: u8,
    /// Delay of each link, one way, milliseconds.
    #[arg(long, default_value_t = 5)]
    delay_ms: u64,
    /// Engines alone, without the control process.
    #[arg(long)]
    no_control: bool,
    /// Where chance begins.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    seed: u64,
    /// The engine; patronus-control and patronus lie beside it [default: $PATRONUS_ENGINE, else beside this program].
    #[arg(long, value_name = "PATH")]
    engine: Option<PathBuf>,
    /// Writes the rows as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Adds to the rows that are in that file.
    #[arg(long, requires = "json")]
    add: bool,
    /// Adds the rows of these files to those of the other, prints the table, and measures nothing.
    #[arg(long, value_name = "FILE", num_args = 1.., requires = "json")]
    merge: Vec<PathBuf>,
    /// Prints the table of a file of rows, and measures nothing.
    #[arg(long, value_name = "FILE")]
    table: Option<PathBuf>,
}

/// What happens to the wire.
#[derive(Clone, Copy, Debug)]
struct Scenario {
    name: &'static str,
    fault: Happening,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Happening {
    /// Nothing more goes through.
    Cut(&'static str),
    /// It gets worse by so much loss, or so much delay from a to b, than the class bears.
    Loss(&'static str),
    Delay(u64),
    /// It gets worse by so much loss, and only probes and a packet now and then show it.
    Unseen(&'static str),
    /// It fails, and the stream goes back to it.
    Return,
    Nothing,
    /// The way to a stock peer by one of the links is dead: what is dead is the mode's name.
    Stock,
}

const SCENARIOS: [Scenario; 8] = [
    Scenario {
        name: "blackout",
        fault: Happening::Cut("cut"),
    },
    Scenario {
        name: "one-way",
        fault: Happening::Cut("cut a->b"),
    },
    Scenario {
        name: "brownout-loss",
        fault: Happening::Loss("2%"),
    },
    Scenario {
        name: "brownout-delay",
        fault: Happening::Delay(80),
    },
    Scenario {
        name: "brownout-probes",
        fault: Happening::Unseen("2%"),
    },
    Scenario {
        name: "return",
        fault: Happening::Return,
    },
    Scenario {
        name: "fault-free",
        fault: Happening::Nothing,
    },
    Scenario {
        name: "stock-peer",
        fault: Happening::Stock,
    },
];

/// How long streams may take to come back: longer than the 15 s after which WireGuard's own timers look for a peer, and their tries.
const BACK: Duration = Duration::from_secs(45);
/// How long they may take to leave a link that got worse.
const LEFT: Duration = Duration::from_secs(20);
/// How long they may take to come back to a link that has been mended.
const RETURN: Duration = Duration::from_secs(40);

/// By what a dead link to a stock peer is known: the mode, what dies, and the peer's keys in the site's file.
const KNOWN_BY: [(&str, &str, &str); 3] = [
    ("carrier", "carrier", ""),
    ("gateway", "gateway", ""),
    ("ping", "path", "ping = '10.88.0.2'\nping_interval = '200ms'\n"),
];

impl Happening {
    /// As commands for a wire that has this delay.
    fn fault(self, mode: &str, delay_ms: u64) -> Option<Fault> {
        let dies = KNOWN_BY
            .iter()
            .find(|known| known.0 == mode)
            .map_or(mode, |known| known.1);
        let (begin, end) = match self {
            Happening::Cut(cut) => (cut.to_owned(), "mend".to_owned()),
            Happening::Return => ("cut".to_owned(), "mend".to_owned()),
            Happening::Loss(share) | Happening::Unseen(share) => {
                (format!("loss {share}"), "loss off".to_owned())
            }
            Happening::Delay(more) => (
                format!("a->b delay {}ms", delay_ms + more),
                format!("a->b delay {delay_ms}ms"),
            ),
            Happening::Stock => (dies.to_owned(), format!("{dies} back")),
            Happening::Nothing => return None,
        };
        Some(Fault {
            begin,
            end,
            silences: !self.browns(),
            limit: if self.browns() { LEFT } else { BACK },
            returns: (self == Happening::Return).then_some(RETURN),
        })
    }

    /// Whether packets still go through.
    fn browns(self) -> bool {
        matches!(
            self,
            Happening::Loss(_) | Happening::Delay(_) | Happening::Unseen(_)
        )
    }

    /// Of the times between probes those that make a difference: a stock peer is not probed.
    fn probes(self, wanted: &[u64]) -> &[u64] {
        match self {
            Happening::Stock => &[0],
            _ => wanted,
        }
    }

    /// The modes that it has if nobody says which.
    fn modes(self) -> Vec<String> {
        match self {
            Happening::Stock => KNOWN_BY.map(|known| known.0.to_owned()).into(),
            _ => vec!["pinned".to_owned()],
        }
    }
}

/// One line of the table: a scenario's faults under one setting. Times are in milliseconds.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
struct Row {
    scenario: String,
    mode: String,
    /// 0: there are no probes.
    probe_ms: u64,
    control: bool,
    links: u8,
    delay_ms: u64,
    runs: usize,
    /// The longest silence at a receiver around a fault.
    gap_ms_p50: Option<f64>,
    gap_ms_p99: Option<f64>,
    gap_ms_max: Option<f64>,
    /// From a brown-out until the stream had left the link.
    moved_ms_p50: Option<f64>,
    moved_ms_p95: Option<f64>,
    /// Brown-outs that it has not left.
    stayed: usize,
    /// From the end of a fault until the stream was back on the link.
    #[serde(default)]
    returned_ms_p50: Option<f64>,
    #[serde(default)]
    returned_ms_max: Option<f64>,
    /// Datagrams of all runs together, both ways.
    lost: u64,
    duplicated: u64,
    false_moves: u64,
    /// Of fault-free.
    minutes: Option<f64>,
    gaps_ms: Vec<f64>,
    moves_ms: Vec<f64>,
    #[serde(default)]
    returns_ms: Vec<f64>,
}

/// Runs it, prints the table and writes the rows.
pub fn run(options: &Options) -> Result<()> {
    if let Some(path) = &options.table {
        println!("{}", table(&read(path)?));
        return Ok(());
    }
    if !options.merge.is_empty() {
        let json = options.json.as_deref().expect("clap requires it");
        let rows = merged(json, &options.merge)?;
        write(json, &rows)?;
        println!("{}", table(&rows));
        return Ok(());
    }
    for (name, value) in machine::settings() {
        println!("{name}: {value}");
    }
    let mut rows = match (&options.json, options.add) {
        (Some(path), true) if path.exists() => read(path)?,
        _ => Vec::new(),
    };
    for wanted in &options.scenario {
        let known = SCENARIOS.iter().find(|scenario| scenario.name == wanted);
        let names = SCENARIOS.map(|scenario| scenario.name).join(", ");
        let scenario =
            known.ok_or_else(|| Error::new(format!("no such scenario: {wanted} (there are: {names})")))?;
        let default = scenario.fault.modes();
        for mode in if options.mode.is_empty() {
            &default
        } else {
            &options.mode
        } {
            for probe_ms in scenario.fault.probes(&options.probe_ms) {
                let (row, failed) = measure(options, scenario, mode, *probe_ms)?;
                merge(&mut rows, row);
                if let Some(path) = &options.json {
                    write(path, &rows)?;
                }
                failed.map_or(Ok(()), Err)?;
            }
        }
    }
    println!("\n{}", table(&rows));
    Ok(())
}

/// A scenario under one setting: the row, and what has ended it early, if something has.
fn measure(
    options: &Options,
    scenario: &Scenario,
    mode: &str,
    probe_ms: u64,
) -> Result<(Row, Option<Error>)> {
    let fault = scenario.fault.fault(mode, options.delay_ms);
    // A machine that is busy breaks no limit of a class that has none.
    let limits = match scenario.fault {
        Happening::Return => HOLD,
        fault if fault.browns() => LIMITS,
        _ => "",
    };
    let setup = Setup {
        wires: (1..=options.links)
            .map(|number| wire(number, options.delay_ms, scenario.fault))
            .collect(),
        control: !options.no_control,
        probe: (probe_ms != DEFAULT_PROBE_MS).then(|| Duration::from_millis(probe_ms)),
        class: (CLASS, format!("mode = '{mode}'\n{limits}")),
        more: String::new(),
    };
    let place = format!("{} {mode} {probe_ms} ms", scenario.name);
    eprintln!("{place}: {} links, control {}", options.links, setup.control);
    let engine = options.engine.clone();
    let ground: Box<dyn Ground> = match (scenario.fault, &fault) {
        (Happening::Unseen(_), Some(fault)) => {
            let (trials, failed) = unseen::trials(&mut Rig::up(&setup, engine)?, fault, CLASS, options.runs);
            return Ok((row(options, scenario, mode, probe_ms, &trials), failed));
        }
        (Happening::Stock, _) => {
            let known = KNOWN_BY.iter().find(|known| known.0 == mode);
            let (.., ping) =
                known.ok_or_else(|| Error::new(format!("stock-peer by {mode}: carrier, gateway, ping")))?;
            Box::new(Stock::up(options.links, ping, engine)?)
        }
        _ => Box::new(Rig::up(&setup, engine)?),
    };
    let mut course = Course::start(ground, options.seed)?;
    let Some(fault) = fault else {
        let _hogs = Hogs::start()?;
        let quiet = course.quiet(Duration::from_secs_f64(options.minutes * 60.0))?;
        return Ok((row(options, scenario, mode, probe_ms, &[quiet]), None));
    };
    let (mut trials, mut failed) = (Vec::new(), None);
    for number in 1..=options.runs {
        match course.trial(&fault) {
            Ok(trial) => trials.push(trial),
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
        eprintln!("{place}: {number} of {}: {:?}", options.runs, trials.last());
    }
    Ok((row(options, scenario, mode, probe_ms, &trials), failed))
}

fn row(options: &Options, scenario: &Scenario, mode: &str, probe_ms: u64, trials: &[Trial]) -> Row {
    let mut row = Row {
        scenario: scenario.name.to_owned(),
        mode: mode.to_owned(),
        probe_ms,
        control: !options.no_control && scenario.fault != Happening::Stock,
        links: options.links,
        delay_ms: options.delay_ms,
        minutes: (scenario.fault == Happening::Nothing).then_some(options.minutes),
        ..Row::default()
    };
    trials
        .iter()
        .for_each(|trial| row.add(trial, scenario.fault.browns()));
    row.sum_up();
    row
}

fn wire(number: u8, delay_ms: u64, fault: Happening) -> Wire {
    // Where the stream is to go back, it has to prefer one.
    let keys = match fault {
        Happening::Return => format!("cost = {number}\n"),
        _ => String::new(),
    };
    Wire {
        name: format!("link{number}"),
        impaired: vec![format!("delay {delay_ms}ms")],
        keys,
    }
}

impl Row {
    fn add(&mut self, trial: &Trial, browns: bool) {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        self.runs += 1;
        self.gaps_ms.extend(trial.gap.map(ms));
        if browns {
            self.moves_ms.extend(trial.moved.map(ms));
            self.stayed += usize::from(trial.moved.is_none());
        }
        self.returns_ms.extend(trial.returned.map(ms));
        self.lost += trial.lost;
        self.duplicated += trial.duplicated;
        self.false_moves += trial.false_moves;
    }

    /// The figures of the samples that there are.
    fn sum_up(&mut self) {
        let gaps = |part| quantile(&self.gaps_ms, part);
        (self.gap_ms_p50, self.gap_ms_p99, self.gap_ms_max) = (gaps(0.5), gaps(0.99), gaps(1.0));
        self.moved_ms_p50 = quantile(&self.moves_ms, 0.5);
        self.moved_ms_p95 = quantile(&self.moves_ms, 0.95);
        self.returned_ms_p50 = quantile(&self.returns_ms, 0.5);
        self.returned_ms_max = quantile(&self.returns_ms, 1.0);
    }

    /// Whether the other one is of the same setting.
    fn is_like(&self, other: &Row) -> bool {
        let of = |row: &Row| (row.probe_ms, row.control, row.links, row.delay_ms);
        (&self.scenario, &self.mode) == (&other.scenario, &other.mode) && of(self) == of(other)
    }
}

/// The smallest value that so large a part of them does not exceed.
fn quantile(values: &[f64], part: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (part * sorted.len() as f64).ceil() as usize;
    sorted.get(at.saturating_sub(1)).copied()
}

/// Adds a row to the one of the same setting, or to the rows.
fn merge(rows: &mut Vec<Row>, row: Row) {
    let Some(old) = rows.iter_mut().find(|old| old.is_like(&row)) else {
        rows.push(row);
        return;
    };
    old.runs += row.runs;
    old.gaps_ms.extend(&row.gaps_ms);
    old.moves_ms.extend(&row.moves_ms);
    old.returns_ms.extend(&row.returns_ms);
    old.stayed += row.stayed;
    old.lost += row.lost;
    old.duplicated += row.duplicated;
    old.false_moves += row.false_moves;
    old.minutes = old.minutes.zip(row.minutes).map(|(one, other)| one + other);
    old.sum_up();
}

/// The rows of a file, if there is one, and those of others.
fn merged(path: &Path, others: &[PathBuf]) -> Result<Vec<Row>> {
    let mut rows = if path.exists() { read(path)? } else { Vec::new() };
    for other in others {
        read(other)?.into_iter().for_each(|row| merge(&mut rows, row));
    }
    Ok(rows)
}

fn read(path: &Path) -> Result<Vec<Row>> {
    let wrong = |error: &dyn std::fmt::Display| Error::new(format!("{}: {error}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| wrong(&error))?;
    serde_json::from_str(&text).map_err(|error| wrong(&error))
}

fn write(path: &Path, rows: &[Row]) -> Result<()> {
    let lines: serde_json::Result<Vec<String>> = rows.iter().map(serde_json::to_string).collect();
    let lines = lines.map_err(|error| Error::new(error.to_string()))?;
    std::fs::write(path, format!("[\n{}\n]\n", lines.join(",\n")))
        .map_err(|error| Error::new(format!("{}: {error}", path.display())))
}

/// The table, as Markdown.
fn table(rows: &[Row]) -> String {
    let mut remarks = String::new();
    let mut text = "| scenario | mode | probes every, ms | control | faults | gap p50, ms | p99 | longest | moved p50, ms | p95 | \
         lost | twice | false moves |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|\n"
        .to_owned();
    for row in rows {
        let known = |value: Option<f64>| value.map_or("-".to_owned(), |ms| format!("{ms:.0}"));
        let runs = match row.minutes {
            Some(minutes) => format!("{minutes:.1} min"),
            None => row.runs.to_string(),
        };
        text += &format!(
            "| {} | {} | {} | {} | {runs} | {} | {} | {} | {} | {} | {} | {} | {} |\n",
            row.scenario,
            row.mode,
            Some(row.probe_ms)
                .filter(|ms| *ms > 0)
                .map_or("-".to_owned(), |ms| ms.to_string()),
            if row.control { "yes" } else { "no" },
            known(row.gap_ms_p50),
            known(row.gap_ms_p99),
            known(row.gap_ms_max),
            known(row.moved_ms_p50),
            known(row.moved_ms_p95),
            row.lost,
            row.duplicated,
            row.false_moves
        );
        if row.stayed > 0 {
            remarks += &format!(
                "\n{} ({} ms): {} were not left in time\n",
                row.scenario, row.probe_ms, row.stayed
            );
        }
        if let (Some(half), Some(longest)) = (row.returned_ms_p50, row.returned_ms_max) {
            remarks += &format!(
                "\n{}: back {:.1} s after the end at p50, {:.1} s at the longest ({} of {})\n",
                row.scenario,
                half / 1e3,
                longest / 1e3,
                row.returns_ms.len(),
                row.runs
            );
        }
    }
    text + &remarks
}

/// A busy thread for every core, at the priority of any other.
struct Hogs {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Hogs {
    fn start() -> Result<Hogs> {
        let stop: Arc<AtomicBool> = Arc::default();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = (0..cores).map(|_| {
            let stop = stop.clone();
            let busy = move || {
                while !stop.load(Relaxed) {
                    std::hint::spin_loop();
                }
            };
            std::thread::Builder::new().name("hog".to_owned()).spawn(busy)
        });
        let threads = threads.collect::<std::io::Result<_>>()?;
        Ok(Hogs { stop, threads })
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(gaps: &[f64], moves: &[f64]) -> Row {
        let mut row = Row {
            scenario: "blackout".to_owned(),
            mode: "pinned".to_owned(),
            probe_ms: 50,
            runs: gaps.len(),
            gaps_ms: gaps.to_vec(),
            moves_ms: moves.to_vec(),
            lost: 3,
            ..Row::default()
        };
        row.sum_up();
        row
    }

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!(quantile(&values, 0.5), Some(100.0));
        assert_eq!(quantile(&values, 0.99), Some(198.0));
        assert_eq!(quantile(&values, 1.0), Some(200.0));
        assert_eq!(quantile(&[7.0], 0.01), Some(7.0));
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn rows_of_several_files_come_together() {
        let file =
            |name: &str| std::env::temp_dir().join(format!("patronus-rows-{name}-{}", std::process::id()));
        let [whole, part] = ["whole", "part"].map(file);
        write(&part, &[row(&[1.0], &[]), row(&[2.0], &[])]).unwrap();
        let rows = merged(&whole, std::slice::from_ref(&part)).unwrap();
        assert_eq!((rows.len(), rows[0].runs), (1, 2), "there need not be one yet");
        write(&whole, &rows).unwrap();
        let rows = merged(&whole, &[part.clone(), part.clone()]).unwrap();
        assert_eq!((rows.len(), rows[0].runs, rows[0].gap_ms_max), (1, 6, Some(2.0)));
        for path in [whole, part] {
            std::fs::remove_file(path).unwrap();
        }
    }

    #[test]
    fn slices_of_a_setting_become_one_row() {
        let mut rows = vec![row(&[1.0, 2.0], &[])];
        merge(&mut rows, row(&[3.0], &[]));
        merge(
            &mut rows,
            Row {
                probe_ms: 10,
                ..row(&[9.0], &[])
            },
        );
        assert_eq!(rows.len(), 2);
        assert_eq!(
            (rows[0].runs, rows[0].lost, rows[0].gap_ms_max),
            (3, 6, Some(3.0))
        );
        let text = table(&rows);
        assert!(
            text.contains("| blackout | pinned | 50 | no | 3 | 2 | 3 | 3 | - | - | 6 | 0 | 0 |"),
            "{text}"
        );
    }
}
