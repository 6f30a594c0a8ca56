//! Network namespaces for tests and benches: namespaces, veth pairs, a NAT router, the impairment hop, WireGuard daemons of
//! every kind we compare with, and the two-site tunnel that most tests want.
//!
//! Called from test and bench threads only. Everything is a guard: what a value made (namespace, interface, process,
//! control socket) goes when the value is dropped, and nothing else does. Namespaces have no name in the file system, so
//! that a killed test leaves none behind; children get a signal when the process that started them dies.
//!
//! Needs `CAP_NET_ADMIN` and nothing more: as root, or unprivileged inside `unshare -Urnm`, where a private /run is
//! mounted on first use.
#![forbid(unsafe_code)]

mod command;
mod daemon;
mod hop;
mod namespace;
mod process;
mod router;
mod topology;
mod wireguard;

pub use command::Error;
pub use daemon::{Daemon, DaemonOptions, Kind, RUNTIME_DIR, cpu_time, prepare_runtime_dir};
pub use hop::{Counters, Hop, HopPlan};
pub use namespace::{Namespace, unique_name};
pub use process::Process;
pub use router::{NatTimeouts, masquerade};
pub use topology::{Site, Tunnel, TwoSites, probe};
pub use wireguard::{Config, Keys, Peer, PeerStatus, preshared_key};

/// What the functions of this package return.
pub type Result<T> = std::result::Result<T, Error>;
