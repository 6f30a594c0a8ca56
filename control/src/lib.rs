//! The control process: knows what a site is to be, and tells the engine, which forwards packets by itself.
//!
//! * [`control`]: the main thread, with [`engine`], [`site_file`], [`confirmation`]
//! * [`message`], [`frame`], [`client`], [`server`], [`caller`], [`handler`], [`wake`]: the control socket
//! * [`view`], [`why`], [`explain`], [`answers`], [`known`]: what is shown
//! * [`quality`], [`paths`], [`decisions`]: how good paths are, by which of them each class goes, and why; [`caps`]: how much may still go by a link
//! * [`keep`]: files that have to survive
//! * [`metrics`], [`http`]: Prometheus; [`notify`]: systemd
//!
//! It has no rights beyond reading the site's file and opening its key files, which it never reads.

#![forbid(unsafe_code)]

pub mod answers;
pub mod caller;
pub mod caps;
pub mod client;
pub mod confirmation;
pub mod control;
pub mod decisions;
pub mod engine;
pub mod explain;
pub mod flows;
pub mod frame;
pub mod handler;
pub mod history;
pub mod http;
pub mod keep;
pub mod known;
pub mod message;
pub mod metrics;
pub mod notify;
pub mod paths;
pub mod quality;
pub mod server;
pub mod site_file;
pub mod view;
pub mod wake;
pub mod why;
