//! The impairment hop (`patronus-hop`, docs/impairment.md) between two namespaces: a namespace in the middle, a veth to each, and the
//! program that joins them and takes commands.

use crate::daemon::target_dirs;
use crate::{Error, Namespace, Process, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{ChildStdin, ChildStdout, Command};
use std::time::{Duration, Instant};

/// How long the program may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// The interfaces of the namespace in the middle.
const ENDS: [&str; 2] = ["side-a", "side-b"];
/// The environment variable that says where the program is.
const ENV_VAR: &str = "PATRONUS_HOP";

/// How to start a hop.
#[derive(Clone, Debug, Default)]
pub struct HopPlan {
    /// The program; default: `$PATRONUS_HOP`, else beside the running program in the target directory.
    pub program: Option<PathBuf>,
    /// More arguments: options, and commands that hold from the start.
    pub args: Vec<String>,
}

impl HopPlan {
    fn find(&self) -> Result<PathBuf> {
        let named = std::env::var_os(ENV_VAR).filter(|path| !path.is_empty());
        let given = self.program.clone().or(named.map(PathBuf::from));
        let built = || target_dirs().into_iter().map(|dir| dir.join("patronus-hop"));
        given
            .or_else(|| built().find(|file| file.is_file()))
            .ok_or_else(|| {
                Error::new(format!(
                    "patronus-hop is not built (cargo build --release -p patronus-hop; ${ENV_VAR})"
                ))
            })
    }
}

/// A running hop. Dropping it ends the program and the link; the interfaces go with their namespaces.
pub struct Hop {
    process: Process,
    input: ChildStdin,
    output: ChildStdout,
    /// What was read behind the last whole line.
    partial: Vec<u8>,
    /// The namespace in the middle.
    pub namespace: Namespace,
}

impl Hop {
    /// Makes a link of the given MTU between interface `here` in one namespace and `there` in another, both of which it makes. Its
    /// direction a->b goes from `here` to `there`.
    pub fn between(
        one: &Namespace,
        here: &str,
        other: &Namespace,
        there: &str,
        mtu: u32,
        plan: &HopPlan,
    ) -> Result<Hop> {
        let program = plan.find()?;
        let namespace = Namespace::new("hop")?;
        // The middle is a wire: it says nothing of its own.
        let _ = namespace.sysctl("net.ipv6.conf.default.disable_ipv6", "1");
        one.veth(here, &namespace, ENDS[0], mtu)?;
        other.veth(there, &namespace, ENDS[1], mtu)?;
        let mut command = Command::new(program);
        // Options may stand anywhere, commands only behind the interfaces.
        command.args(ENDS).args(&plan.args);
        let (process, input, output) = Process::start_talking(&namespace, command)?;
        let mut hop = Hop {
            process,
            input,
            output,
            partial: Vec::new(),
            namespace,
        };
        match hop.line()?.as_str() {
            "ready" => Ok(hop),
            other => Err(Error::new(format!("patronus-hop says {other:?}, not `ready`"))),
        }
    }

    /// Gives a command (docs/impairment.md), which holds when this returns. Gives what the program says beside `ok`.
    pub fn command(&mut self, command: &str) -> Result<String> {
        writeln!(self.input, "{command}")?;
        let mut said = String::new();
        loop {
            let line = self.line()?;
            if line == "ok" {
                return Ok(said);
            }
            if let Some(error) = line.strip_prefix("error: ") {
                return Err(Error::new(format!("{command}: {error}")));
            }
            said += &line;
            said.push('\n');
        }
    }

    /// What happened so far.
    pub fn counters(&mut self) -> Result<Counters> {
        let said = self.command("show")?;
        let counters = said.lines().filter_map(|line| {
            let (name, value) = line.split_once('=')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Ok(Counters(counters.collect()))
    }

    /// The program: id, log, signals.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The next line that the program says.
    fn line(&mut self) -> Result<String> {
        let start = Instant::now();
        loop {
            if let Some(end) = self.partial.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.partial.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            let left = ANSWER.saturating_sub(start.elapsed());
            let limit = Timespec::try_from(left).map_err(|e| Error::new(e.to_string()))?;
            if poll(&mut [PollFd::new(&self.output, PollFlags::IN)], Some(&limit))? == 0 {
                return Err(Error::new(format!(
                    "patronus-hop does not answer within {ANSWER:?}"
                )));
            }
            let mut buffer = [0; 4096];
            let count = self.output.read(&mut buffer)?;
            if count == 0 {
                let status = self.process.wait(ANSWER);
                let log = self.process.log();
                return Err(Error::new(format!(
                    "patronus-hop ended ({status:?}): {}",
                    log.trim()
                )));
            }
            self.partial.extend_from_slice(&buffer[..count]);
        }
    }
}

/// Counters of a hop, by `DIRECTION.NAME`.
#[derive(Clone, Debug)]
pub struct Counters(BTreeMap<String, u64>);

impl Counters {
    /// One of them, such as `a->b.lost`.
    ///
    /// # Panics
    /// There is none of that name.
    pub fn get(&self, name: &str) -> u64 {
        match self.0.get(name) {
            Some(value) => *value,
            None => panic!("the hop has no counter {name}: {self:?}"),
        }
    }

    /// Packets of a direction (`a->b`) that went no further, for whatever reason.
    pub fn dropped(&self, direction: &str) -> u64 {
        let reasons = ["lost", "cut"].map(|name| format!("{direction}.{name}"));
        let prefix = format!("{direction}.dropped_");
        let counts = |name: &&String| name.starts_with(&prefix) || reasons.contains(name);
        self.0.keys().filter(counts).map(|name| self.0[name]).sum()
    }

    /// Whether every packet of a direction is accounted for: what came and was doubled is what was sent, waits, or was dropped.
    pub fn balance(&self, direction: &str) -> bool {
        let get = |name: &str| self.get(&format!("{direction}.{name}"));
        get("packets") + get("duplicated") == get("sent") + get("waiting") + self.dropped(direction)
    }
}
