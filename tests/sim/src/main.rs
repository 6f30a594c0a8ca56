//! `patronus-sim`: runs seeds of the simulator, and one again that has failed.

use std::process::ExitCode;
use std::time::Instant;

use patronus_sim::{Failure, Options, Summary, run, steered};

const HELP: &str = "\
The engine on a simulated network, with faults that a seed decides (docs/simulator.md).

  patronus-sim [--steering] --seed N [--steps M] [--trace]
  patronus-sim [--steering] --seeds A..B [--steps M]

  --seed N      run this seed
  --seeds A..B  run the seeds from A up to and without B, and stop at the first that fails
  --steering    those of how packets are steered, not those of the world
  --steps M     steps with faults (default: as many as the seed says, 20 to 59; of steering 15 to 34)
  --trace       print every event as it happens
";

struct Asked {
    first: u64,
    end: u64,
    options: Options,
    steering: bool,
}

impl Asked {
    fn run(&self, seed: u64) -> Result<Summary, Failure> {
        match self.steering {
            true => steered::run(seed, &self.options),
            false => run(seed, &self.options),
        }
    }
}

fn main() -> ExitCode {
    match read_arguments() {
        Ok(Some(asked)) => run_all(&asked),
        Ok(None) => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        Err(said) => {
            eprintln!("patronus-sim: {said}; try --help");
            ExitCode::from(2)
        }
    }
}

fn read_arguments() -> Result<Option<Asked>, String> {
    use lexopt::prelude::*;
    let mut parser = lexopt::Parser::from_env();
    let (mut seeds, mut options, mut steering) = (None, Options::default(), false);
    let said = |error: lexopt::Error| error.to_string();
    while let Some(argument) = parser.next().map_err(said)? {
        match argument {
            Long("help") | Short('h') => return Ok(None),
            Long("steering") => steering = true,
            Long("trace") => options.trace = true,
            Long("steps") => options.steps = Some(number("--steps", parser.value().map_err(said)?)? as usize),
            Long("seed") => {
                let seed = number("--seed", parser.value().map_err(said)?)?;
                seeds = Some((seed, seed + 1));
            }
            Long("seeds") => seeds = Some(range(parser.value().map_err(said)?)?),
            other => return Err(other.unexpected().to_string()),
        }
    }
    let (first, end) = seeds.ok_or("no seed: say --seed N or --seeds A..B")?;
    Ok(Some(Asked {
        first,
        end,
        options,
        steering,
    }))
}

fn number(option: &str, value: std::ffi::OsString) -> Result<u64, String> {
    let text = value.to_string_lossy();
    let number = text.parse().ok().filter(|number| *number < u64::MAX);
    number.ok_or_else(|| format!("{option} {text}: a number from 0 to 18446744073709551614 is expected"))
}

fn range(value: std::ffi::OsString) -> Result<(u64, u64), String> {
    let text = value.to_string_lossy().into_owned();
    let ends = text
        .split_once("..")
        .and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    let range = ends.filter(|(first, end)| first < end);
    range.ok_or_else(|| format!("--seeds {text}: two numbers A..B are expected, A less than B"))
}

fn run_all(asked: &Asked) -> ExitCode {
    let begun = Instant::now();
    let mut sum = Summary::default();
    for seed in asked.first..asked.end {
        match asked.run(seed) {
            Ok(summary) => sum.add(&summary),
            Err(failure) => {
                let steps = asked
                    .options
                    .steps
                    .map_or(String::new(), |steps| format!(" --steps {steps}"));
                println!(
                    "seed {seed} failed after {} seeds:\n{failure}",
                    seed - asked.first
                );
                let which = if asked.steering { " --steering" } else { "" };
                println!("again: patronus-sim{which} --seed {seed}{steps} --trace");
                return ExitCode::FAILURE;
            }
        }
    }
    let took = begun.elapsed().as_secs_f64();
    println!(
        "seeds {}..{} passed in {took:.1} s: {sum}",
        asked.first, asked.end
    );
    ExitCode::SUCCESS
}
