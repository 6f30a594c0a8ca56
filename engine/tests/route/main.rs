//! Workers that route: between LAN ports, and into and out of tunnels.

#[path = "../common/mod.rs"]
mod common;

mod crew;
mod forwarding;
mod oracle;
mod rig;
