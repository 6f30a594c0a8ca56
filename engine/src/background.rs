//! Going to the background: the process starts itself again and waits until that one is ready.
//!
//! Not a fork: a fork copies one thread of a process and whatever the others were doing. The new process begins from
//! the beginning, says on its standard output when the interface is there, and only then is the first one done.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::process::{Command, ExitCode, Stdio};

use rustix::fd::AsFd;
use rustix::stdio::{dup2_stderr, dup2_stdout};

/// What the background process writes when it is ready.
const READY: &[u8; 6] = b"ready\n";

/// Starts the background process with `arguments` and waits for it to be ready or to fail.
pub fn start(arguments: &[OsString]) -> ExitCode {
    let spawned = std::env::current_exe().and_then(|program| {
        Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .current_dir("/")
            .spawn()
    });
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            eprintln!("patronus-engine: cannot start the background process: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut said = [0; READY.len()];
    // Fails when the other side ends before it is ready.
    let heard = child
        .stdout
        .take()
        .is_some_and(|mut stdout| stdout.read_exact(&mut said).is_ok());
    if heard && said == *READY {
        return ExitCode::SUCCESS;
    }
    // It has said on standard error why.
    let _ = child.wait();
    ExitCode::FAILURE
}

/// In the background process: leaves the terminal, tells the first process, and gives up its output.
///
/// Messages still go to standard error if the user asked for them by LOG_LEVEL.
pub fn ready(null: impl AsFd) {
    // Fails only for a process that leads a group already, and then there is nothing to leave.
    let _ = rustix::process::setsid();
    let mut stdout = std::io::stdout();
    let _ = stdout.write_all(READY).and_then(|()| stdout.flush());
    let _ = dup2_stdout(&null);
    if std::env::var_os("LOG_LEVEL").is_none_or(|level| level == "silent") {
        let _ = dup2_stderr(&null);
    }
}
