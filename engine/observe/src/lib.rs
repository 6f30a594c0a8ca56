//! Traces and captures of the packet engine, apart from the packets' way through it: how one is asked for, and how to read what comes back.
//!
//! Used by both ends. The engine parses a [`Request`] and its [`Filter`], tests packets against the filter on its workers, and sends
//! [`Record`]s; whoever asked (the command line, control, a test) writes a [`Request`], reads the [`Head`] and the records
//! from a [`Stream`], and makes of them the text of a trace ([`Stories`]) or a pcapng file ([`Pcapng`]).
//!
//! Nothing here is shared between threads. The protocol is in `docs/trace.md`.
#![forbid(unsafe_code)]

mod filter;
mod head;
mod pcapng;
mod record;
mod request;
mod run;
mod story;
mod stream;

pub use filter::{FILTER_MAX, Filter, FilterError, Headers, Subject};
pub use head::{Head, Port};
pub use pcapng::Pcapng;
pub use record::{Address, Exit, Form, Matched, NO_PEER, Point, RECORD, Record};
pub use request::{BYTES_MAX, Kind, PACKETS_MAX, Request, RequestError, SNAP_MAX, Sides};
pub use run::{Total, capture, create, trace};
pub use story::{Step, Stories, Story, key as key_text};
pub use stream::{Event, Refused, Stream};
