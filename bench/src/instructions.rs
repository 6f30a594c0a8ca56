//! Instructions a packet, counted by callgrind: what the engine does beside the AEAD, on no particular processor, the same on every run. A change
//! that makes it do more is seen here, however noisy the machine.
//!
//! Two runs of different length are subtracted from each other, so that starting and stopping do not count. The AEAD does nothing here, and
//! the making of packets is counted with them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::ValueEnum;
use patronus_netns::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::engine::pipelines::{self, Pipeline};

/// Sizes of the inner packets, bytes.
const SIZES: [usize; 2] = [64, 1420];
/// Bursts of the shorter run; the longer one has [`LONGER`] times as many.
const BURSTS: usize = 50;
const LONGER: usize = 3;
/// How far from the baseline a figure may be, as a part of it.
const TOLERANCE: f64 = 0.05;
/// The compiler that made this program.
const COMPILER: &str = env!("PATRONUS_RUSTC");

/// Options of `patronus-bench instructions`.
#[derive(clap::Args)]
pub struct Options {
    /// Compares with the figures in this file: an error if one differs by more than 5 %, or if they are another compiler's.
    #[arg(long, value_name = "FILE", conflicts_with = "write")]
    check: Option<PathBuf>,
    /// Writes the figures to this file.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    #[command(flatten)]
    alone: Alone,
}

/// What is run under callgrind: one pipeline, without any words.
#[derive(clap::Args)]
struct Alone {
    #[arg(long, value_enum, hide = true, requires = "bursts")]
    pipeline: Option<Pipeline>,
    #[arg(long, hide = true, default_value_t = SIZES[0])]
    size: usize,
    #[arg(long, hide = true)]
    bursts: Option<usize>,
}

/// Figures, and what they depend on.
#[derive(Serialize, Deserialize)]
struct Baseline {
    compiler: String,
    /// Instructions a packet by pipeline and size.
    instructions: BTreeMap<String, f64>,
}

/// Counts, prints, and writes or compares.
pub fn run(options: &Options) -> Result<()> {
    if let (Some(pipeline), Some(bursts)) = (options.alone.pipeline, options.alone.bursts) {
        println!(
            "packets {}",
            pipelines::run(pipeline, options.alone.size, bursts)?
        );
        return Ok(());
    }
    let before = options.check.as_deref().map(read).transpose()?;
    println!("instructions a packet beside the AEAD ({COMPILER})\n");
    println!("pipeline     size  instructions  baseline");
    let mut now = Baseline {
        compiler: COMPILER.to_owned(),
        instructions: BTreeMap::new(),
    };
    let mut wrong = Vec::new();
    for pipeline in Pipeline::value_variants() {
        for size in SIZES {
            let name = format!("{} {size}", pipeline.name());
            let count = a_packet(*pipeline, size)?;
            let expected = before.as_ref().and_then(|b| b.instructions.get(&name).copied());
            let beside = expected.map(|e| format!("{e:8.1} ({:+.1} %)", 100.0 * (count / e - 1.0)));
            println!("{name:<18} {count:11.1}  {}", beside.unwrap_or_default());
            if before.is_some() && !expected.is_some_and(|e| (count / e - 1.0).abs() <= TOLERANCE) {
                wrong.push(name.clone());
            }
            now.instructions.insert(name, (10.0 * count).round() / 10.0);
        }
    }
    if let Some(path) = &options.write {
        let text = serde_json::to_string_pretty(&now).map_err(|e| Error::new(e.to_string()))?;
        std::fs::write(path, text + "\n").map_err(|e| Error::new(format!("{}: {e}", path.display())))?;
    }
    match (&options.check, wrong.is_empty()) {
        (Some(path), false) => Err(Error::new(format!(
            "more than {:.0} % from {1}: {2}. If that is meant: `patronus-bench instructions --write {1}`, and say why in the commit",
            100.0 * TOLERANCE,
            path.display(),
            wrong.join(", "),
        ))),
        _ => Ok(()),
    }
}

fn read(path: &Path) -> Result<Baseline> {
    let failed = |e: String| Error::new(format!("{}: {e}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
    let baseline: Baseline = serde_json::from_str(&text).map_err(|e| failed(e.to_string()))?;
    if baseline.compiler != COMPILER {
        return Err(failed(format!(
            "its figures are {}'s and this is {COMPILER}'s work: count with the former, or write new ones with --write",
            baseline.compiler
        )));
    }
    Ok(baseline)
}

fn a_packet(pipeline: Pipeline, size: usize) -> Result<f64> {
    let (few, many) = (
        count(pipeline, size, BURSTS)?,
        count(pipeline, size, LONGER * BURSTS)?,
    );
    let packets = many.packets.saturating_sub(few.packets).max(1);
    Ok(many.instructions.saturating_sub(few.instructions) as f64 / packets as f64)
}

struct Counted {
    instructions: u64,
    packets: u64,
}

/// Runs this program under callgrind.
fn count(pipeline: Pipeline, size: usize, bursts: usize) -> Result<Counted> {
    let program = std::env::current_exe().map_err(|e| Error::new(format!("own path: {e}")))?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args(["instructions", "--pipeline", pipeline.name()])
        .args(["--size", &size.to_string(), "--bursts", &bursts.to_string()])
        .output()
        .map_err(|e| Error::new(format!("valgrind: {e} (Debian's package valgrind has it)")))?;
    let (said, told) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    let number = |text: &str, label: &str| {
        let (_, rest) = text.split_once(label)?;
        rest.split_whitespace().next()?.parse().ok()
    };
    match (number(&told, "Collected : "), number(&said, "packets ")) {
        (Some(instructions), Some(packets)) if output.status.success() => Ok(Counted {
            instructions,
            packets,
        }),
        _ => Err(Error::new(format!(
            "callgrind ({}) does not say what it has counted:\n{told}",
            output.status
        ))),
    }
}
