//! `patronus-hop A B`: joins two interfaces by a link that is bad on command.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::process::ExitCode;

use patronus_hop::bridge::{self, Config};
use patronus_hop::script;

const HELP: &str = "\
patronus-hop A B [COMMAND]...    join the interfaces A and B, and do to packets what the commands say

      --script FILE      commands from a file, one a line
      --seed NUMBER      where chance begins (default 1): the same number loses the same packets
      --realtime         run before everything else (SCHED_FIFO): precise on a busy machine; needs CAP_SYS_NICE
      --version          print the version
  -h, --help             print this

Commands are given on the command line (each as one argument), in the file, and line by line on standard input while it
runs, each of which is answered by `ok` or `error: ...`:

  a->b delay 20ms jitter 5ms      loss 5%            loss burst 1% 25%      rate 10Mbit queue 64KiB
  reorder 1% by 10ms              duplicate 1%       corrupt 0.1%           mtu 1400
  cut a->b                        mend               nat a->b               rebind
  clear                           seed 7             show                   end
  at 4s cut a->b                  (4 seconds after the start)

Without a direction both are meant. docs/impairment.md says more. Needs CAP_NET_RAW; counters are printed at the end.
";

fn main() -> ExitCode {
    let config = match parse(std::env::args_os().skip(1)) {
        Ok(Some(config)) => config,
        Ok(None) => return ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("patronus-hop: {message}");
            return ExitCode::from(2);
        }
    };
    match bridge::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("patronus-hop: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Understands the command line; `None` if there is nothing to run.
fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Option<Config>, String> {
    use lexopt::prelude::*;
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut values = Vec::new();
    let mut text = String::new();
    let (mut seed, mut realtime) = (1, false);
    while let Some(argument) = parser.next().map_err(|e| e.to_string())? {
        match argument {
            Short('h') | Long("help") => {
                print!("{HELP}");
                return Ok(None);
            }
            Long("version") => {
                println!("patronus-hop {}", env!("CARGO_PKG_VERSION"));
                return Ok(None);
            }
            Long("script") => {
                let file = parser.value().map_err(|e| e.to_string())?;
                let read = std::fs::read_to_string(&file);
                text = read.map_err(|e| format!("cannot read {}: {e}", file.display()))?;
            }
            Long("seed") => {
                let value = parser.value().map_err(|e| e.to_string())?;
                let number = value.to_str().and_then(|text| text.parse().ok());
                seed = number.ok_or_else(|| format!("--seed takes a number, not `{}`", value.display()))?;
            }
            Long("realtime") => realtime = true,
            Value(value) => values.push(
                value
                    .into_string()
                    .map_err(|value| format!("`{}` is not text", value.display()))?,
            ),
            other => return Err(format!("{}; see --help", other.unexpected())),
        }
    }
    let mut values = values.into_iter();
    let (Some(a), Some(b)) = (values.next(), values.next()) else {
        return Err("which two interfaces? `patronus-hop A B`; see --help".to_owned());
    };
    let mut script = script::parse(&text).map_err(|errors| listed(&errors))?;
    for command in values {
        let parsed = script::parse_line(&command).map_err(|error| format!("`{command}`: {error}"))?;
        script.extend(parsed);
    }
    script.sort_by_key(|command| command.at.unwrap_or(0));
    Ok(Some(Config {
        interfaces: [a, b],
        seed,
        realtime,
        script,
    }))
}

fn listed(errors: &[script::Error]) -> String {
    let lines: Vec<String> = errors.iter().map(|error| error.to_string()).collect();
    format!("the script has mistakes:\n  {}", lines.join("\n  "))
}
