//! The programs that people run, for measurements of whole sites.

use patronus_netns::{Error, Kind, Result};
use std::path::PathBuf;

/// Where the programs are.
pub struct Programs {
    pub engine: PathBuf,
    pub control: PathBuf,
    pub patronus: PathBuf,
}

impl Programs {
    /// The engine that was named, else the one that is found, and the others beside it.
    pub fn find(engine: Option<PathBuf>) -> Result<Programs> {
        let engine = engine.or_else(|| Kind::Engine.find());
        Programs::beside(engine.ok_or_else(|| Error::new("patronus-engine is not built: --engine PATH"))?)
    }

    /// Those beside the engine's.
    fn beside(engine: PathBuf) -> Result<Programs> {
        let [control, patronus] = ["patronus-control", "patronus"].map(|name| engine.with_file_name(name));
        if let Some(missing) = [&engine, &control, &patronus]
            .into_iter()
            .find(|file| !file.is_file())
        {
            return Err(Error::new(format!(
                "{} is not built: cargo build --release --workspace",
                missing.display()
            )));
        }
        Ok(Programs {
            engine,
            control,
            patronus,
        })
    }
}
