//! A process inside a namespace, with its output kept, ended by its id when the guard goes.

use crate::{Error, Namespace, Result};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long a process may take to leave after SIGTERM.
const LEAVE: Duration = Duration::from_secs(3);
/// The most output that [`Process::log`] gives: its last bytes.
const LOG_MAX: u64 = 256 * 1024;

/// A running process. Dropping it sends SIGTERM and, if that does not end it within three seconds, SIGKILL.
pub struct Process {
    child: Child,
    program: String,
    output: File,
    ended: Option<ExitStatus>,
    _home: Namespace,
}

impl Process {
    pub(crate) fn start(home: &Namespace, command: Command) -> Result<Process> {
        Process::start_with(home, command, false)
    }

    /// As `start`, with pipes to its standard input and from its standard output. The log has its standard error only.
    pub(crate) fn start_talking(
        home: &Namespace,
        command: Command,
    ) -> Result<(Process, ChildStdin, ChildStdout)> {
        let mut process = Process::start_with(home, command, true)?;
        let pipes = process.child.stdin.take().zip(process.child.stdout.take());
        let (input, output) = pipes.ok_or_else(|| Error::new("a child without pipes"))?;
        Ok((process, input, output))
    }

    fn start_with(home: &Namespace, command: Command, talking: bool) -> Result<Process> {
        let program = command.get_program().to_string_lossy().into_owned();
        let output = File::from(memfd_create("output", MemfdFlags::CLOEXEC)?);
        let mut wrapped = with_death_signal(&command);
        wrapped.stderr(output.try_clone()?);
        if talking {
            wrapped.stdin(Stdio::piped()).stdout(Stdio::piped());
        } else {
            wrapped.stdin(Stdio::null()).stdout(output.try_clone()?);
        }
        let child = home.spawn_child(wrapped).map_err(|e| Error::io(&program, e))?;
        Ok(Process {
            child,
            program,
            output,
            ended: None,
            _home: home.clone(),
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything that it wrote to standard output and standard error (the last 256 KiB).
    pub fn log(&self) -> String {
        let length = self.output.metadata().map_or(0, |m| m.len());
        let start = length.saturating_sub(LOG_MAX);
        let mut text = vec![0; (length - start) as usize];
        let read = self.output.read_at(&mut text, start).unwrap_or(0);
        String::from_utf8_lossy(&text[..read]).into_owned()
    }

    /// Its status, once it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    /// Sends a signal; nothing if it has ended.
    pub fn signal(&mut self, signal: Signal) {
        if self.ended().is_none()
            && let Some(pid) = Pid::from_raw(self.pid() as i32)
        {
            // It is still our child, so the id cannot have been given to another process.
            let _ = kill_process(pid, signal);
        }
    }

    /// Waits until it ends by itself; `None` if it does not within `limit`.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let start = Instant::now();
        loop {
            let ended = self.ended();
            if ended.is_some() || start.elapsed() >= limit {
                return ended;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends it: SIGTERM, then SIGKILL. Gives its status.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM);
        if let Some(status) = self.wait(LEAVE) {
            return Ok(status);
        }
        self.signal(Signal::KILL);
        self.wait(LEAVE)
            .ok_or_else(|| Error::new(format!("{} ({}) survives SIGKILL", self.program, self.pid())))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

/// The same command, run by `setpriv`, which asks the kernel for a SIGTERM at the parent's death and becomes the program
/// (same process id). A test that is killed thus leaves no process behind.
fn with_death_signal(command: &Command) -> Command {
    let mut wrapped = Command::new("setpriv");
    wrapped
        .args(["--pdeathsig", "TERM", "--"])
        .arg(command.get_program())
        .args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(key, value),
            None => wrapped.env_remove(key),
        };
    }
    if let Some(directory) = command.get_current_dir() {
        wrapped.current_dir(directory);
    }
    wrapped
}
