//! The packet engine: a userspace WireGuard data plane and its slow path.
//!
//! The way of a packet, step by step:
//!
//! ```text
//!  TUN --rx_burst--> worker::outbound
//!                      wg::encap   allowed-ips(destination) -> peer -> session -> counter
//!                                  header, padding, one AEAD call per burst
//!                    --tx_burst--> UDP         no session yet: staged, and the slow path asked for one
//!
//!  UDP --rx_burst--> worker::inbound
//!                      wg::decap   receiver index -> session; one AEAD call per burst;
//!                                  replay window -> roaming -> length -> allowed-ips(source)
//!                    --tx_burst--> TUN         handshake messages: to the slow path's queue
//!
//!  slow path         handshakes, cookies, timers (`patronus_crypto::Device`), UAPI, interface state
//!                    --Command--> worker --Notice--> slow path
//! ```
//!
//! Where to read on:
//!
//! * [`worker`]: the loop of a pinned or floating thread, and how it sleeps; [`courtesy`]: whom it may interrupt when it wakes.
//! * [`wg`]: the stages between the ports, on whole bursts.
//! * [`slowpath`]: the one other thread.
//! * [`channel`]: all that the threads share.
//! * [`stats`]: a name for each packet that goes no further.
//! * [`engine`]: puts it together.
//!
//! Segmentation offload lives in the ports (`patronus_io`), so every stage here sees single packets in frames of their own.
#![forbid(unsafe_code)]

pub mod allowedips;
pub mod channel;
pub mod classify;
pub mod clock;
pub mod courtesy;
pub mod crew;
pub mod engine;
pub mod ethernet;
pub mod fib;
pub mod flow;
pub mod icmp;
pub mod log;
pub mod route;
pub mod sandbox;
pub mod slowpath;
pub mod snapshot;
pub mod stats;
pub mod uapi;
pub mod wg;
pub mod worker;
