//! The data path on real workers: what two and more sites do with packets, hosts, an attacker and a bad network.

#[path = "../common/mod.rs"]
mod common;

mod decap;
mod drill;
mod encap;
mod endpoint;
mod hostile;
mod icmp;
mod mtu;
mod removal;
mod session;
mod shares;
mod simulation;
mod staging;
mod workers;
