//! The packet engine: a userspace WireGuard data plane and its slow path.
//!
//! The way of a packet, step by step. With one TUN, as a drop-in for WireGuard:
//!
//! ```text
//!  TUN --rx_burst--> worker::outbound
//!                      wg::encap   allowed-ips(destination) -> peer -> session -> counter
//!                                  header, padding, one AEAD call per burst
//!                    --tx_burst--> WAN         no session yet: staged, and the slow path asked for one
//!
//!  WAN --rx_burst--> worker::inbound
//!                      wg::decap   receiver index -> session; one AEAD call per burst;
//!                                  replay window -> roaming -> length -> allowed-ips(source)
//!                    --tx_burst--> TUN         handshake messages: to the slow path's queue
//! ```
//!
//! With a router (several LAN ports; Ethernet), between the two:
//!
//! ```text
//!  LAN --rx_burst--> worker::outbound
//!                      ethernet    link header off
//!                      route       flow -> policies; destination -> FIB -> next hop; time to live
//!                        |-- a tunnel --> wg::encap --> WAN
//!                        `-- a LAN port --> ethernet --tx_burst--> LAN
//!  WAN --rx_burst--> worker::inbound --> wg::decap --> route, as above
//! ```
//!
//! A packet whose flow or session is another worker's goes to that worker's ring ([`crew`]). Beside the workers:
//!
//! ```text
//!  slow path         handshakes, cookies, timers (`patronus_crypto::Device`), UAPI, interface state
//!                    --Command--> worker --Notice--> slow path
//! ```
//!
//! Where to read on:
//!
//! * [`worker`]: the loop of a pinned or floating thread, and how it sleeps; beside it `worker::outbound` and `worker::inbound`, the two ways above step by step, and
//!   `worker::ports`, by which packets leave; [`courtesy`]: whom it may interrupt when it wakes.
//! * [`wg`], [`route`], [`ethernet`]: the stages between the ports, on whole bursts.
//! * [`flow`], [`classify`], [`fib`], [`snapshot`], [`neighbour`]: what a router looks at.
//! * [`remote`]: sites of our own, and which lanes there are towards them; [`path`]: which paths are up, and what is known of them; [`probe`]:
//!   who finds that out; [`steer`]: which path a packet takes.
//! * [`slowpath`]: the one other thread; [`slowpath::core`]: the part of it that needs no system, which the simulator runs too.
//! * [`channel`]: what workers and the slow path say to each other; [`crew`]: what workers hand to each other.
//! * [`standby`]: by which of our links the session with a stock peer goes.
//! * [`observe`]: traces and captures; [`explain`]: why a flow goes where it goes.
//! * [`stats`]: a name for each packet that goes no further, cycles for each stage.
//! * [`site`], [`reader`]: the configuration file, at the start and again; [`plan`]: keeps what routers look at in step with it.
//! * [`control`]: the same from the control process, and what it is told.
//! * [`rib`]: dynamic routes, beside the site's.
//! * [`keeper`]: takes interfaces for [`lans`] and [`wans`], at the start and when they come back.
//! * [`engine`]: puts it together.
//!
//! Segmentation offload lives in the ports (`patronus_io`), so every stage here sees single packets in frames of their own.
#![forbid(unsafe_code)]

pub mod allowedips;
mod beside;
pub mod channel;
pub mod classify;
pub mod clock;
pub mod control;
pub mod courtesy;
pub mod crew;
pub mod devices;
pub mod engine;
pub mod ethernet;
pub mod explain;
pub mod fib;
pub mod flow;
pub mod fragment;
pub mod icmp;
pub mod keeper;
pub mod lans;
pub mod log;
pub mod mss;
pub mod neighbour;
pub mod observe;
pub mod path;
pub mod plan;
pub mod pmtu;
pub mod probe;
pub mod reader;
pub mod remote;
pub mod rib;
pub mod route;
pub mod sandbox;
pub mod site;
pub mod slowpath;
pub mod snapshot;
pub mod standby;
pub mod stats;
pub mod steer;
pub mod uapi;
pub mod wans;
pub mod wg;
pub mod worker;
