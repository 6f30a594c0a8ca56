//! `patronus-bench peers`: every test with every subject in turn, round after round.

use crate::goals;
use crate::machine;
use crate::plot;
use crate::report::{self, Row, figure, median};
use crate::subject::{MTU, NO_TUNNEL, Subject};
use crate::tests_of::{Known, Lengths, Sample, Test, measure};
use clap::Args;
use patronus_netns::{Error, Result};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Part of the slowest subject's TCP rate that loaded round trips are measured beside.
const PACE: f64 = 0.8;

/// Load before a run that spoils it.
const BUSY: f64 = 0.7;

/// Options of `patronus-bench peers`.
#[derive(Args)]
pub struct Options {
    /// Subjects, with commas [default: all that are installed; also: patronus-af-xdp, patronus-single, patronus-aws-lc, boringtun-1t].
    #[arg(long, value_delimiter = ',')]
    subjects: Option<Vec<String>>,
    /// Tests, with commas: tcp1, tcp4, udp64, udp1400, udpmix, udp64-80k, rtt-idle, rtt-loaded, idle-cpu [default: all].
    #[arg(long, value_delimiter = ',')]
    tests: Option<Vec<String>>,
    /// Rounds; figures are medians over them [default: 5; with --quick 1].
    #[arg(long)]
    rounds: Option<u32>,
    /// Short trials: to see that everything works, not to compare.
    #[arg(long)]
    quick: bool,
    /// Our engine [default: $PATRONUS_ENGINE, else beside this program].
    #[arg(long, value_name = "PATH")]
    engine: Option<PathBuf>,
    /// Adds the subject patronus-spin: our engine with these arguments (in all tests but the search for loss-free rates).
    #[arg(long, value_name = "ARGUMENTS", allow_hyphen_values = true)]
    engine_args: Option<String>,
    /// Writes the rows as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draws the medians.
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Rate of the TCP beside which loaded round trips are measured, Mb/s [default: 80 % of the slowest subject's].
    #[arg(long, value_name = "MBPS")]
    pace: Option<f64>,
    /// Sets the machine's net.core.rmem_max and wmem_max to 4 MiB first; otherwise they are only shown.
    #[arg(long)]
    set_sysctls: bool,
    /// TCP congestion control of the generators [default: the machine's].
    #[arg(long, value_name = "NAME")]
    congestion: Option<String>,
    /// Length of a trial of paced UDP, seconds [default: 5].
    #[arg(long, value_name = "SECONDS")]
    trial: Option<f64>,
    /// Trials at a rate, all of which must be free of loss [default: 3].
    #[arg(long)]
    trials: Option<u32>,
    /// Length of a TCP measurement, seconds [default: 5].
    #[arg(long, value_name = "SECONDS")]
    tcp: Option<f64>,
}

impl Options {
    fn lengths(&self) -> Result<Lengths> {
        let mut lengths = if self.quick {
            Lengths::quick()
        } else {
            Lengths::full()
        };
        let seconds = |value: f64| {
            Duration::try_from_secs_f64(value).map_err(|e| Error::new(format!("{value} seconds: {e}")))
        };
        lengths.trial = self.trial.map_or(Ok(lengths.trial), seconds)?;
        lengths.tcp = self.tcp.map_or(Ok(lengths.tcp), seconds)?;
        lengths.trials = self.trials.unwrap_or(lengths.trials).max(1);
        Ok(lengths)
    }

    fn tests(&self) -> Result<Vec<Test>> {
        let Some(names) = &self.tests else {
            return Ok(Test::ALL.to_vec());
        };
        let known = |name: &String| {
            let all = Test::every().map(Test::name).collect::<Vec<_>>().join(", ");
            Test::by_name(name).ok_or_else(|| Error::new(format!("no such test: {name} (there are: {all})")))
        };
        let wanted = names.iter().map(known).collect::<Result<Vec<Test>>>()?;
        Ok(Test::every().filter(|test| wanted.contains(test)).collect())
    }
}

/// Runs it and writes what was asked for.
pub fn run(options: &Options) -> Result<()> {
    let (subjects, left_out) = Subject::choose(
        options.subjects.as_deref(),
        options.engine.clone(),
        options.engine_args.as_deref(),
        options.congestion.as_deref(),
    )?;
    if options.set_sysctls {
        machine::set_sysctls()?;
    }
    let rounds = options.rounds.unwrap_or(if options.quick { 1 } else { 5 }).max(1);
    let mut bench = Bench::new(subjects, options.tests()?, options.lengths()?, options.pace);
    bench.announce(rounds, &left_out);
    for round in 1..=rounds {
        bench.round(round, rounds);
        // A run of an hour that is cut short keeps its rounds.
        bench.write(options)?;
    }
    bench.conclude(&left_out);
    Ok(())
}

/// A run and what it has found so far.
struct Bench {
    subjects: Vec<Subject>,
    tests: Vec<Test>,
    lengths: Lengths,
    pace: Option<f64>,
    found: Vec<(usize, Test, Sample)>,
    failures: Vec<String>,
}

impl Bench {
    fn new(subjects: Vec<Subject>, tests: Vec<Test>, lengths: Lengths, pace: Option<f64>) -> Bench {
        Bench {
            subjects,
            tests,
            lengths,
            pace,
            found: Vec::new(),
            failures: Vec::new(),
        }
    }

    /// Settings and an estimate.
    fn announce(&self, rounds: u32, left_out: &[String]) {
        for (name, value) in machine::settings() {
            println!("{name}: {value}");
        }
        println!("tunnel mtu: {MTU}; path mtu: 1500 (without a tunnel {MTU}); veth between two namespaces");
        println!("packet sizes are those of the IP packets in the tunnel; GB are 10^9 bytes of payload");
        if let Some(congestion) = self
            .subjects
            .first()
            .and_then(|subject| subject.congestion.as_ref())
        {
            println!("congestion control of the generators: {congestion}");
        }
        for subject in &self.subjects {
            println!("{}", subject.describe());
        }
        for reason in left_out {
            println!("left out: {reason}");
        }
        if machine::load() > BUSY {
            println!("warning: the machine is busy with something else: these figures will not mean much");
        }
        let lengths = &self.lengths;
        println!(
            "{rounds} rounds; TCP {:?} after {:?}; trials of UDP {} x {:?}",
            lengths.tcp, lengths.warm_up, lengths.trials, lengths.trial
        );
        let times = self.subjects.iter().flat_map(|subject| {
            let taken = self.tests.iter().filter(|test| subject.takes(**test));
            taken.map(|test| test.estimate(&self.lengths))
        });
        let whole = times.sum::<Duration>() * rounds;
        println!("this takes about {} minutes\n", whole.as_secs().div_ceil(60));
    }

    /// Every test with every subject, once, in turn.
    fn round(&mut self, round: u32, rounds: u32) {
        for test in self.tests.clone() {
            for number in 0..self.subjects.len() {
                let subject = self.subjects[number].clone();
                if !subject.takes(test) {
                    continue;
                }
                let start = Instant::now();
                let outcome = self
                    .known(number, test)
                    .and_then(|known| measure(test, &subject, &self.lengths, known));
                let seconds = start.elapsed().as_secs();
                let place = format!("{round}/{rounds} {:<10} {:<16}", test.name(), subject.name);
                match outcome {
                    Ok(sample) => {
                        let row = Row::new(&subject.name, test, &[sample]);
                        let (_, unit, factor) = report::caption(test);
                        let value = figure(row.value().map(|value| value * factor));
                        eprintln!("{place} {value:>8} {unit} ({seconds} s)");
                        self.found.push((number, test, sample));
                    }
                    Err(error) => {
                        eprintln!("{place} failed: {error}");
                        self.failures.push(format!(
                            "round {round}, {}, {}: {error}",
                            test.name(),
                            subject.name
                        ));
                    }
                }
            }
        }
    }

    /// The figures of a subject in a test, so far.
    fn samples(&self, subject: usize, test: Test) -> Vec<Sample> {
        let mine = self
            .found
            .iter()
            .filter(|found| found.0 == subject && found.1 == test);
        mine.map(|found| found.2).collect()
    }

    fn known(&mut self, subject: usize, test: Test) -> Result<Known> {
        let rates = self.samples(subject, test);
        let near_pps = median(
            rates
                .iter()
                .filter_map(|sample| sample.pps)
                .filter(|pps| *pps > 0.0),
        );
        let pace_mbps = if test == Test::RttLoaded {
            self.pace()?
        } else {
            0.0
        };
        Ok(Known { near_pps, pace_mbps })
    }

    /// The same for all subjects and rounds: from the first round's TCP, or measured now if that is not in the run.
    fn pace(&mut self) -> Result<f64> {
        if let Some(pace) = self.pace {
            return Ok(pace);
        }
        let mut slowest: Option<f64> = None;
        for number in (0..self.subjects.len()).filter(|n| self.subjects[*n].name != NO_TUNNEL) {
            let subject = &self.subjects[number];
            let known = Known {
                near_pps: None,
                pace_mbps: 0.0,
            };
            let first = self.samples(number, Test::Tcp(1)).first().copied();
            // A subject that fails is reported by its own test.
            let sample = first.map_or_else(|| measure(Test::Tcp(1), subject, &self.lengths, known), Ok);
            let rate = sample.ok().and_then(|sample| sample.mbps);
            slowest = slowest.into_iter().chain(rate).reduce(f64::min);
        }
        let pace = PACE * slowest.ok_or_else(|| Error::new("no subject's TCP rate is known (--pace)"))?;
        eprintln!("round trips are measured beside TCP of {pace:.0} Mb/s");
        self.pace = Some(pace);
        Ok(pace)
    }

    fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for test in &self.tests {
            for (number, subject) in self.subjects.iter().enumerate() {
                let samples = self.samples(number, *test);
                if !samples.is_empty() {
                    rows.push(Row::new(&subject.name, *test, &samples));
                }
            }
        }
        rows
    }

    fn write(&self, options: &Options) -> Result<()> {
        let rows = self.rows();
        let write = |path: &PathBuf, text: String| {
            std::fs::write(path, text).map_err(|e| Error::new(format!("{}: {e}", path.display())))
        };
        if let Some(path) = &options.json {
            let text = report::json(&rows).map_err(|e| Error::new(e.to_string()))?;
            write(path, text)?;
        }
        if let Some(path) = &options.plot {
            let rounds = match rows.iter().map(|row| row.rounds).max() {
                Some(rounds) if rounds > 1 => format!("medians and ranges of {rounds} rounds"),
                _ => "one round".to_owned(),
            };
            write(
                path,
                plot::svg(&rows, &format!("{}; {rounds}", machine::summary())),
            )?;
        }
        Ok(())
    }

    /// The table, then the goals.
    fn conclude(&self, left_out: &[String]) {
        let rows = self.rows();
        println!("{}", report::table(&rows));
        for reason in left_out {
            println!("left out: {reason}");
        }
        for failure in &self.failures {
            println!("failed: {failure}");
        }
        let outcomes = goals::judge(&rows);
        if !outcomes.is_empty() {
            println!("\nGoals: ours against the best peer's\n");
        }
        for outcome in &outcomes {
            println!("{}", outcome.line());
        }
    }
}
