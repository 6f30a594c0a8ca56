//! Fuzz targets: one module for each parser, with the property that must hold for every input (`check`) and inputs
//! from which to start (`seeds`).
//!
//! `scripts/fuzz run TARGET` searches with cargo-fuzz for as long as it is told to. `scripts/fuzz replay` runs the tests
//! of this package: the seeds, the inputs kept in `regressions`, and a fixed sequence of mutations of both, the same on every
//! machine.
#![forbid(unsafe_code)]

pub mod coalesce;
pub mod handshake;
pub mod ip;
pub mod messages;
pub mod mutate;
pub mod packets;
pub mod split;
pub mod uapi;

/// A target: its name, its property, and inputs to start from.
pub struct Target {
    /// As in `scripts/fuzz run NAME`.
    pub name: &'static str,
    /// Panics if the property does not hold.
    pub check: fn(&[u8]),
    /// Inputs to start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Mutations in a replay.
    pub mutations: usize,
}

/// Every target.
pub const TARGETS: &[Target] = &[
    Target {
        name: "messages",
        check: messages::check,
        seeds: messages::seeds,
        mutations: 50_000,
    },
    Target {
        name: "handshake",
        check: handshake::check,
        seeds: handshake::seeds,
        mutations: 5_000,
    },
    Target {
        name: "ip",
        check: ip::check,
        seeds: ip::seeds,
        mutations: 50_000,
    },
    Target {
        name: "split",
        check: split::check,
        seeds: split::seeds,
        mutations: 20_000,
    },
    Target {
        name: "coalesce",
        check: coalesce::check,
        seeds: coalesce::seeds,
        mutations: 20_000,
    },
    Target {
        name: "uapi",
        check: uapi::check,
        seeds: uapi::seeds,
        mutations: 50_000,
    },
];
