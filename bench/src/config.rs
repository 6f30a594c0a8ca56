//! `patronus-bench config`: from a site's file to its blob, and from the blob to what an engine knows, step by step.
//!
//! A file with as many peers and routes as wanted is written to a temporary folder and read again in every round; figures are medians over the
//! rounds. Sends nothing anywhere.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use patronus_netns::{Error, Result};
use serde::Serialize;

use crate::machine;
use crate::report::median;

/// Options of `patronus-bench config`.
#[derive(clap::Args)]
pub struct Options {
    /// Peers, each with one network.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    peers: u32,
    /// Routes, each over one of the peers.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(0..=500_000))]
    routes: u32,
    /// Rounds; figures are medians over them.
    #[arg(long, default_value_t = 11)]
    rounds: usize,
    /// Writes the rows as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A step and what it takes.
#[derive(Serialize)]
struct Row {
    step: &'static str,
    /// Median over the rounds.
    ms: f64,
    ms_min: f64,
}

/// What each step of a round took.
type Round = [(&'static str, Duration); 6];

/// Measures, and prints a table.
pub fn run(options: &Options) -> Result<()> {
    let folder = std::env::temp_dir().join(format!("patronus-bench-config-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let measured = measure(options, &folder.join("site.toml"));
    fs::remove_dir_all(&folder)?;
    let (bytes, rounds) = measured?;
    for (name, value) in machine::processor() {
        println!("{name}: {value}");
    }
    println!(
        "{} peers, {} routes: {:.1} MB of TOML; {} rounds",
        options.peers,
        options.routes,
        bytes as f64 / 1e6,
        options.rounds
    );
    let rows = rows(&rounds);
    for row in &rows {
        println!("{:<32} {:>9.2} ms (least {:.2})", row.step, row.ms, row.ms_min);
    }
    if let Some(path) = &options.json {
        fs::write(
            path,
            serde_json::to_string_pretty(&rows).map_err(std::io::Error::from)?,
        )?;
    }
    Ok(())
}

fn measure(options: &Options, path: &std::path::Path) -> Result<(usize, Vec<Round>)> {
    let text = file(options, "host");
    let bytes = text.len();
    // One route goes elsewhere: differences are looked for among equal things, as after most edits.
    let edited =
        patronus_config::parse(&file(options, "discard")).map_err(|error| Error::new(error.to_string()))?;
    fs::write(path, text)?;
    let rounds: Result<Vec<Round>> = (0..options.rounds.max(1)).map(|_| round(path, &edited)).collect();
    Ok((bytes, rounds?))
}

fn round(path: &std::path::Path, edited: &patronus_config::Config) -> Result<Round> {
    let other = |error: &dyn std::fmt::Display| Error::new(error.to_string());
    let mut last = Instant::now();
    let mut step = |name| {
        let before = std::mem::replace(&mut last, Instant::now());
        (name, last - before)
    };
    let text = patronus_config::read(path).map_err(|error| other(&error))?;
    let read = step("read the file");
    let config = patronus_config::parse(&text).map_err(|error| other(&error))?;
    let parsed = step("parse and check it");
    let site = config.compile();
    let compiled = step("compile it");
    let blob = patronus_abi::encode(&site, 1).map_err(|error| other(&error))?;
    let encoded = step("encode the blob");
    let plan = patronus_config::diff(&config, edited);
    let differs = step("the difference to an edited one");
    let decoded = patronus_abi::decode(&blob).map_err(|error| other(&error))?;
    let decode = step("decode the blob (the engine's)");
    if plan.changes.len() != 1 || decoded.0 != site {
        return Err(Error::new("the difference or the blob is not what it should be"));
    }
    Ok([read, parsed, compiled, encoded, differs, decode])
}

/// The steps, and those from the file to the blob together.
fn rows(rounds: &[Round]) -> Vec<Row> {
    const TO_BLOB: usize = 4;
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    let row = |step, values: Vec<f64>| Row {
        step,
        ms_min: values.iter().copied().fold(f64::INFINITY, f64::min),
        ms: median(values).unwrap_or_default(),
    };
    let Some(first) = rounds.first() else {
        return Vec::new();
    };
    let steps = first.iter().enumerate();
    let steps = steps.map(|(at, (step, _))| row(step, rounds.iter().map(|round| ms(round[at].1)).collect()));
    let whole = |round: &Round| round[..TO_BLOB].iter().map(|(_, took)| ms(*took)).sum();
    let mut all: Vec<Row> = steps.collect();
    all.insert(
        TO_BLOB,
        row("from the file to the blob", rounds.iter().map(whole).collect()),
    );
    all
}

/// A site's file. One route leads to `elsewhere`.
fn file(options: &Options, elsewhere: &str) -> String {
    let mut to =
        "[site]\nprivate_key_file = \"site.key\"\nlisten_port = 51820\n\n[engine]\nroutes = 1048576\n"
            .to_owned();
    let mut add = |text: std::fmt::Arguments<'_>| to.write_fmt(text).expect("a String takes everything");
    for peer in 0..options.peers {
        let [_, b, c, d] = peer.to_be_bytes();
        let key = patronus_config::value::PublicKey(std::array::from_fn(|at| [b, c, d, at as u8][at % 4]));
        add(format_args!(
            "\n[[peer]]\nname = \"site{peer}\"\npublic_key = \"{key}\"\nendpoint = \"198.51.{c}.{d}:51820\"\n\
             allowed_ips = [\"10.{c}.{d}.0/24\"]\nkeepalive = \"25s\"\n"
        ));
    }
    for route in 0..options.routes {
        let [_, b, c, d] = route.to_be_bytes();
        let peer = route % options.peers;
        add(format_args!(
            "\n[[route]]\nprefix = \"{}.{c}.{d}.0/24\"\nvia = \"site{peer}\"\n",
            20 + b
        ));
    }
    add(format_args!(
        "\n[[route]]\nprefix = \"192.0.2.0/24\"\nvia = \"{elsewhere}\"\n"
    ));
    to
}
