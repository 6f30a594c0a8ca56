//! Processes beside the engine: of the same program, started by the main thread before rights are given up, each with a socket of packets to the engine as its
//! standard input. What they do is in [`reader`](crate::reader) and [`keeper`](crate::keeper).

use std::ffi::OsStr;
use std::io;
use std::process::{Command, Stdio};

use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

/// Starts one, with the rights of this process; the engine's end of its socket.
pub fn start(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    Command::new(std::env::current_exe()?)
        .args(arguments)
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .spawn()?;
    Ok(ours)
}
