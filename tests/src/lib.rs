//! What the whole-system tests share: what they need to run, the engine's program, two sites with it, traffic, captures
//! of what is on the wire, and the memory of a running engine.
//!
//! Called by the tests in `tests/`, each of which makes namespaces and daemons of its own and drops them by guards.
//! A test begins with [`may_run`]; where something is missing it says what and passes, unless `PATRONUS_REQUIRE_ALL=1`.
#![forbid(unsafe_code)]

mod capture;
mod control;
mod controlled;
mod edge;
mod handshake;
mod lab;
mod memory;
mod needs;
mod program;
mod raw;
mod scheduling;
mod star;
mod terminal;
mod traffic;
mod transcript;

pub use capture::{Capture, Datagram, Kind as MessageKind};
pub use control::{Stats, background_pid, stats, uapi, uapi_value};
pub use controlled::{Controlled, answer};
pub use edge::{Edge, host_on};
pub use handshake::Initiations;
pub use lab::{LIMIT, OUTER, divided, endpoint_of, engine_options, eventually, hop_plan, sites};
pub use memory::Memory;
pub use needs::{Need, may_run};
pub use program::{cli_program, control_program, engine_program, hop_program};
pub use raw::{Random, RawControl};
pub use scheduling::{SCHED_BATCH, SCHED_FIFO, SCHED_OTHER, on_busy_cores, worker_policies};
pub use star::{Spoke, Star};
pub use terminal::{Terminal, cable};
pub use traffic::{Flow, Received, Stream, ping, tcp};
pub use transcript::Transcript;
