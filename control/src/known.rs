//! What the main thread knows, for the threads that show it: replaced as a whole whenever something changes, so that nobody looks at half a change and
//! nobody waits for the main thread.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use patronus_config::Config;
use patronus_link::Statistics;

use crate::caps::Usages;
use crate::decisions::Decisions;
use crate::history::History;
use crate::paths::Shared;

/// What there is to know.
#[derive(Clone, Default)]
pub struct Known {
    /// The site's file.
    pub file: PathBuf,
    /// What is in force, or will be as soon as there is an engine.
    pub config: Option<Arc<Config>>,
    /// The text that it comes from.
    pub text: Option<Arc<str>>,
    /// The engine that is attached.
    pub engine: Option<Attachment>,
    /// Until when what is in force has to be confirmed.
    pub confirm_by: Option<Instant>,
    /// The site's file was not confirmed: what was in force before is so again.
    pub gone_back: bool,
    /// Why the engine does not have what is to be in force.
    pub refused: Option<String>,
    /// What has happened lately.
    pub history: Arc<History>,
    /// How good paths are.
    pub quality: Shared,
    /// What was decided.
    pub decisions: Arc<Decisions>,
    /// How much has gone by links with a data cap.
    pub usages: Usages,
    /// How often something was applied since this process has been running.
    pub applied: u64,
    /// How often the engine refused something.
    pub refusals: u64,
}

/// An engine that is attached.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// Drawn when it started.
    pub boot: [u8; 16],
    /// Of the site that it has in force; 0: none.
    pub generation: u64,
    /// Its counters.
    pub statistics: Statistics,
}

/// Where it is published.
#[derive(Default)]
pub struct Board(RwLock<Arc<Known>>);

impl Board {
    /// The newest.
    pub fn get(&self) -> Arc<Known> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on.
    pub fn put(&self, known: Known) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(known);
    }
}
