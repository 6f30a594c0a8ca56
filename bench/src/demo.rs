//! `patronus-bench demo`: what Patronus does, in about a minute. Called by scripts/demo, which makes the namespaces' outer walls.

mod picture;
mod record;
mod story;
pub mod throughput;

use patronus_netns::Result;
use std::path::PathBuf;

/// What `demo` can be told.
#[derive(clap::Args)]
pub struct Options {
    /// The engine to show; patronus-control and patronus lie beside it [default: the one beside this program].
    #[arg(long, value_name = "PATH")]
    engine: Option<PathBuf>,
    /// A few seconds: does it work at all.
    #[arg(long)]
    quick: bool,
    /// How fast a tunnel is, beside wireguard-go, in place of how it fails over.
    #[arg(long)]
    throughput: bool,
    /// Where the picture goes [default: patronus-demo.svg].
    #[arg(long, value_name = "FILE", overrides_with = "svg")]
    svg: Option<PathBuf>,
}

/// Runs it and prints what is to be seen.
pub fn run(options: &Options) -> Result<()> {
    match options.throughput {
        true => throughput::run(options),
        false => story::run(options),
    }
}
