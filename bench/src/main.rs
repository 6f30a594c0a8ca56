//! Measurements of Patronus and its peers, side by side on one machine. Run by people and by the gates; see
//! docs/performance.md for what the figures mean.
#![forbid(unsafe_code)]

mod demo;
mod engine;
mod goals;
mod load;
mod machine;
mod peers;
mod plot;
mod report;
mod sandbox;
mod search;
mod soak;
mod subject;
mod tests_of;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Measurements of Patronus and its peers.
#[derive(Parser)]
#[command(name = "patronus-bench", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Side by side in one run, alternating: no tunnel, ours, and the WireGuard daemons that are installed
    /// (scripts/install-peers).
    Peers(Box<peers::Options>),
    /// A short look at one tunnel (scripts/demo).
    Demo(demo::Options),
    /// A long run with frequent rekeys (scripts/soak).
    Soak(soak::Options),
    /// The engine's stages alone on one core, beside the AEAD alone.
    Engine(engine::Options),
}

fn main() -> ExitCode {
    let command = Arguments::parse().command;
    let run = || match &command {
        Command::Peers(options) => peers::run(options),
        Command::Demo(options) => demo::run(options),
        Command::Soak(options) => soak::run(options),
        Command::Engine(options) => engine::run(options),
    };
    match sandbox::enter().and_then(|()| run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("patronus-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
