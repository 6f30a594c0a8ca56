//! What a class asks of a path. Stand-in until the blob has classes.
#![allow(missing_docs, reason = "stands in for what the blob will have")]

pub const SECOND: u64 = 1_000_000_000;

/// How the flows of a class use the paths to a remote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    #[default]
    Pinned,
    ActiveBackup,
    LowestLatency,
    Weighted,
    Duplicate,
}

/// What a kind of traffic needs of a path. What is none is not asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Class {
    pub name: String,
    pub mode: Mode,
    pub latency_us: Option<u32>,
    pub jitter_us: Option<u32>,
    pub loss_ppm: Option<u32>,
    pub hold_ms: u32,
}
