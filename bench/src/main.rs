//! Measurements of Patronus and its peers, side by side on one machine. Run by people and by the gates; see
//! docs/performance.md for what the figures mean.
#![forbid(unsafe_code)]

mod goals;
mod load;
mod machine;
mod peers;
mod plot;
mod report;
mod sandbox;
mod search;
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
    Peers(peers::Options),
}

fn main() -> ExitCode {
    let Command::Peers(options) = Arguments::parse().command;
    match sandbox::enter().and_then(|()| peers::run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("patronus-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
