//! `up` and `down`: both processes in the foreground, and the end of whatever runs.
//!
//! `up` starts the two programs beside its own, starts one again that ends by itself, and ends both on Ctrl-C. Who is to be ended by `down` is found by
//! asking the kernel who listens at the sockets: no file holds a process id that could have become somebody else's.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use patronus_io::signal;
use patronus_io::tun::Tun;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::json;

use crate::options::Up;
use crate::output::{Outcome, Output, Wrong};

/// How long a process may take to end when it was asked to.
const LEAVE: Duration = Duration::from_secs(5);
/// The pause before a program that has ended by itself is started again.
const AGAIN: Duration = Duration::from_secs(1);
/// How often it is looked at whether one has ended.
const LOOK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// Where the sockets are, beside the control process's.
struct Places {
    folder: PathBuf,
    control: PathBuf,
}

impl Places {
    fn new(control: &Path) -> Places {
        Places {
            folder: control.parent().unwrap_or(Path::new("/")).to_owned(),
            control: control.to_owned(),
        }
    }

    fn engine(&self) -> PathBuf {
        self.folder.join("engine.sock")
    }

    fn up(&self) -> PathBuf {
        self.folder.join("up.sock")
    }

    fn state(&self) -> PathBuf {
        self.folder.join("up-state")
    }
}

/// A program that is kept running.
struct Kept {
    command: Command,
    name: &'static str,
    child: Option<Child>,
    again_at: Instant,
}

impl Kept {
    fn new(name: &'static str, arguments: &[&dyn AsRef<std::ffi::OsStr>]) -> Result<Kept, Wrong> {
        let mut command = Command::new(beside(name)?);
        command.args(arguments.iter().map(|argument| argument.as_ref()));
        Ok(Kept {
            command,
            name,
            child: None,
            again_at: Instant::now(),
        })
    }

    /// Starts it if it does not run. An error is one that does not pass by itself.
    fn tend(&mut self) -> Result<(), Wrong> {
        if let Some(child) = &mut self.child {
            match child.try_wait() {
                Ok(None) => return Ok(()),
                Ok(Some(status)) => eprintln!(
                    "patronus: {} has ended ({status}): it is started again",
                    self.name
                ),
                Err(error) => return Err(Wrong::failed(format!("{}: {error}", self.name))),
            }
            self.child = None;
            self.again_at = Instant::now() + AGAIN;
        }
        if Instant::now() >= self.again_at {
            let started = self.command.spawn();
            let child = started
                .map_err(|error| Wrong::failed(format!("{} cannot be started: {error}", self.name)))?;
            self.child = Some(child);
        }
        Ok(())
    }

    fn end(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        let pid = Pid::from_raw(child.id() as i32);
        let signal = |signal| pid.map(|pid| kill_process(pid, signal));
        signal(Signal::TERM);
        let until = Instant::now() + LEAVE;
        while Instant::now() < until && matches!(child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(10));
        }
        // Ours and not waited for yet: its id is nobody else's.
        if matches!(child.try_wait(), Ok(None)) {
            signal(Signal::KILL);
        }
        let _ = child.wait();
    }
}

/// The program of that name in the folder of this one.
fn beside(name: &str) -> Result<PathBuf, Wrong> {
    let own = std::env::current_exe().map_err(|error| Wrong::failed(error.to_string()))?;
    let path = own.with_file_name(name);
    match path.is_file() {
        true => Ok(path),
        false => {
            Err(Wrong::failed(format!("{} is missing", path.display())).hint("install it beside `patronus`"))
        }
    }
}

/// `patronus up`.
pub fn up(socket: &Path, options: &Up) -> Outcome {
    let file = &options.site.file;
    let config = patronus_config::load(file).map_err(|error| Wrong::config(&error))?;
    let file = std::path::absolute(file).map_err(|error| Wrong::failed(error.to_string()))?;
    let places = Places::new(socket);
    let signals = signal::termination().map_err(|error| Wrong::failed(error.to_string()))?;
    make(&places.folder, 0o755)?;
    make(&places.state(), 0o700)?;
    let _alone = alone(&places)?;
    let engine = places.engine();
    let mut kept = [
        Kept::new("patronus-engine", &[&"--foreground", &"--control", &engine])?,
        Kept::new(
            "patronus-control",
            &[
                &"--site",
                &file,
                &"--engine",
                &engine,
                &"--socket",
                &places.control,
                &"--state",
                &places.state(),
            ],
        )?,
    ];
    eprintln!("patronus: {} is up; Ctrl-C ends it", file.display());
    let ended = keep(&signals, &mut kept);
    // Control first: it has nothing to do once the engine is gone.
    kept.iter_mut().rev().for_each(Kept::end);
    clean(&places, Some(config.engine.interface.as_str()));
    ended
}

fn keep(signals: &OwnedFd, kept: &mut [Kept]) -> Outcome {
    loop {
        for program in &mut *kept {
            program.tend()?;
        }
        // Whether it was interrupted or time is over: the next turn looks again.
        let _ = poll(&mut [PollFd::new(signals, PollFlags::IN)], Some(&LOOK));
        match signal::take(signals) {
            Some(signal::Asked::End) => return Ok(()),
            Some(signal::Asked::Reload) | None => {}
        }
    }
}

fn make(folder: &Path, mode: u32) -> Result<(), Wrong> {
    let made = fs::DirBuilder::new().recursive(true).mode(mode).create(folder);
    made.map_err(|error| Wrong::failed(format!("{}: {error}", folder.display())).hint("run this as root"))
}

/// Listens at a socket that says who has started everything, unless somebody else does.
fn alone(places: &Places) -> Result<UnixListener, Wrong> {
    for socket in [places.up(), places.control.clone()] {
        if UnixStream::connect(&socket).is_ok() {
            return Err(Wrong::failed(format!(
                "a site runs already: somebody listens at {}",
                socket.display()
            ))
            .hint("`patronus down` ends it"));
        }
    }
    let path = places.up();
    let _ = fs::remove_file(&path);
    UnixListener::bind(&path).map_err(|error| Wrong::failed(format!("{}: {error}", path.display())))
}

/// `patronus down`.
pub fn down(output: Output, socket: &Path) -> Outcome {
    let places = Places::new(socket);
    let interface = interface_in_force(socket);
    let mut ended = Vec::new();
    // The one that would start the others again comes first.
    let sockets = [
        ("patronus up", places.up(), SocketType::STREAM),
        ("patronus-control", places.control.clone(), SocketType::STREAM),
        ("patronus-engine", places.engine(), SocketType::SEQPACKET),
    ];
    for (name, socket, kind) in sockets {
        if let Some(pid) = listener(&socket, kind) {
            end(name, pid)?;
            ended.push(name);
        }
    }
    clean(&places, interface.as_deref());
    let said = match ended.is_empty() {
        true => "nothing was running\n".to_owned(),
        false => format!("ended {}\n", ended.join(", ")),
    };
    output.print(&json!({ "ended": ended }), said)
}

fn interface_in_force(socket: &Path) -> Option<String> {
    use patronus_control::message::{Order, Topic};
    let mut client = patronus_control::client::Client::connect(socket).ok()?;
    let what = Topic::Summary;
    let summary = client.ask(Order::Show { what }).ok()?;
    summary["interface"].as_str().map(str::to_owned)
}

/// The process that listens at a socket, as the kernel says.
fn listener(path: &Path, kind: SocketType) -> Option<Pid> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None).ok()?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path).ok()?).ok()?;
    let peer = rustix::net::sockopt::socket_peercred(&socket).ok()?;
    Some(peer.pid)
}

fn end(name: &str, pid: Pid) -> Result<(), Wrong> {
    let wrong =
        |error: rustix::io::Errno| Wrong::failed(format!("{name} ({pid:?}) cannot be ended: {error}"));
    match kill_process(pid, Signal::TERM) {
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        sent => sent.map_err(wrong)?,
    }
    let until = Instant::now() + 3 * LEAVE;
    while Instant::now() < until {
        if test_kill_process(pid).is_err() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err(Wrong::failed(format!("{name} does not end")))
}

/// Removes what is left: the TUN, which stays on purpose when an engine dies, sockets and the record.
fn clean(places: &Places, interface: Option<&str>) {
    if let Some(interface) = interface {
        // Gone already is as good.
        let _ = Tun::remove(interface);
    }
    for socket in [places.up(), places.engine(), places.control.clone()] {
        let _ = fs::remove_file(socket);
    }
    let _ = fs::remove_dir_all(places.state());
    // Only if nothing of anybody else's is in it.
    let _ = fs::remove_dir(&places.folder);
}

/// Has the engine started again by whoever keeps it running.
pub fn restart_engine(socket: &Path) -> Outcome {
    let places = Places::new(socket);
    let pid = listener(&places.engine(), SocketType::SEQPACKET);
    if listener(&places.up(), SocketType::STREAM).is_some()
        && let Some(pid) = pid
    {
        return end("patronus-engine", pid);
    }
    let restarted = Command::new("systemctl")
        .args(["restart", "patronus-engine.service"])
        .output();
    match restarted {
        Ok(done) if done.status.success() => Ok(()),
        Ok(done) => Err(Wrong::failed(
            String::from_utf8_lossy(&done.stderr).trim().to_owned(),
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(Wrong::failed("nobody is known who starts the engine again")
                .hint("restart patronus-engine by hand"))
        }
        Err(error) => Err(Wrong::failed(format!("systemctl: {error}"))),
    }
}
