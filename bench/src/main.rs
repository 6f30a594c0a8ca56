//! Measurements of Patronus and its peers, side by side on one machine. Run by people and by the gates; see
//! docs/performance.md for what the figures mean.
#![forbid(unsafe_code)]

mod aead;
mod comeback;
mod config;
mod demo;
mod engine;
mod failover;
mod folder;
mod goals;
mod instructions;
mod load;
mod machine;
mod peers;
mod plot;
mod programs;
mod reading;
mod reload;
mod report;
mod sandbox;
mod search;
mod soak;
mod subject;
mod tests_of;
mod wire;

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
    /// Two sites under control, reloaded a thousand times under traffic, beside traffic without reloads.
    Reload(reload::Options),
    /// Two sites under control whose engines are killed in turn: how long until there is traffic again.
    Comeback(comeback::Options),
    /// A path fails or gets worse under a stream: how long until packets arrive again, what was lost, and what moved for no reason.
    Failover(failover::Options),
    /// The engine's stages alone on one core, beside the AEAD alone.
    Engine(engine::Options),
    /// One end of the tunnel of `engine --port net_memif`, which starts it.
    #[command(hide = true)]
    TunnelEnd(engine::End),
    /// Two sites with Ethernet LANs over veths: AF_XDP, packet sockets and UDP sockets side by side, by our own generator.
    Wire(Box<wire::Options>),
    /// Every ChaCha20-Poly1305 side by side: ours, and those of libraries.
    Aead(aead::Options),
    /// From a site's file to its blob, step by step, with many peers and routes.
    Config(config::Options),
    /// Instructions a packet, counted by callgrind (Debian's valgrind).
    Instructions(instructions::Options),
}

fn main() -> ExitCode {
    let command = Arguments::parse().command;
    let sandboxed = |run: &dyn Fn() -> patronus_netns::Result<()>| sandbox::enter().and_then(|()| run());
    let result = match &command {
        Command::Peers(options) => sandboxed(&|| peers::run(options)),
        Command::Demo(options) => sandboxed(&|| demo::run(options)),
        Command::Soak(options) => sandboxed(&|| soak::run(options)),
        Command::Reload(options) => sandboxed(&|| reload::run(options)),
        Command::Comeback(options) => sandboxed(&|| comeback::run(options)),
        Command::Failover(options) => sandboxed(&|| failover::run(options)),
        Command::Engine(options) => sandboxed(&|| engine::run(options)),
        Command::TunnelEnd(options) => engine::end(options),
        Command::Wire(options) => sandboxed(&|| wire::run(options)),
        // These send nothing anywhere. The last is to be counted alone.
        Command::Aead(options) => aead::run(options),
        Command::Config(options) => config::run(options),
        Command::Instructions(options) => instructions::run(options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("patronus-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
