//! The userspace API: its parser, its socket, and the real `wg` against it.

mod device;
mod format;
mod malformed;
mod memory;
mod parse;
mod server;
mod wg;
