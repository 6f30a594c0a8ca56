//! The cross-platform userspace API of WireGuard: the text protocol that `wg` speaks over
//! `/var/run/wireguard/NAME.sock` (<https://www.wireguard.com/xplatform/>).
//!
//! Four parts, all on the slow-path thread: [`parse`] turns the lines of a `set=1` into a [`SetRequest`] without
//! touching anything, [`format`](mod@format) writes the reply to a `get=1`, [`question`] says what else can be asked, and [`server`] owns the socket and its clients and asks
//! a [`UapiDevice`] to do what was requested.
//!
//! A request is applied whole or not at all: the device sees it only when its last line was found good. Text that may
//! hold keys is wiped as soon as it was understood or sent.

pub mod format;
pub mod parse;
pub mod question;
pub mod server;

pub use format::{PeerView, Reply};
pub use parse::{AllowedIpChange, Limits, SetParser, SetPeer, SetRequest};
pub use question::Question;
pub use rustix::io::Errno;
pub use server::{UapiDevice, UapiServer};
