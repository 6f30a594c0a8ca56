//! Runs this program in a mount namespace of its own with a private /run, so that the daemons' control sockets meet
//! nobody else's and leave nothing behind; without root, in a user namespace, where the kernel allows it.

use patronus_netns::{Error, Result};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Set inside.
const INSIDE: &str = "PATRONUS_BENCH_INSIDE";

/// Starts the program again inside and does not return, or returns at once when it is inside already.
pub fn enter() -> Result<()> {
    if std::env::var_os(INSIDE).is_some() {
        return Ok(());
    }
    let mut inside = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        eprintln!("patronus-bench: not root: using an unprivileged user namespace");
        // Network too: rights over devices are rights over the network namespace's owner.
        inside.args(["--user", "--map-root-user", "--net"]);
    }
    inside.args([
        "--mount",
        "sh",
        "-c",
        "mount -t tmpfs -o mode=0755 tmpfs /run && exec \"$0\" \"$@\"",
    ]);
    inside
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1");
    let error = inside.exec();
    Err(Error::new(format!("unshare (package util-linux): {error}")))
}
