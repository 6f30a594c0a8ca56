//! `up` and `down`: both processes in the foreground, and the end of whatever runs.
//!
//! `up` starts the two programs beside its own, starts one again that ends by itself, and ends both on Ctrl-C. Who is to be ended by `down` is found by
//! asking the kernel who listens at the sockets: no file holds a process id that could have become somebody else's.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use patronus_config::value::InterfaceName;
use patronus_control::confirmation::Store;
use patronus_io::signal;
use patronus_io::tun::Tun;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::json;

use crate::check;
use crate::options::{SITE, Up};
use crate::output::{Outcome, Output, Wrong};

/// How long a process may take to end when it was asked to.
const LEAVE: Duration = Duration::from_secs(5);
/// The pause before a program that has ended by itself is started again.
const AGAIN: Duration = Duration::from_secs(1);
/// A program that ends sooner than this after its start has not come up.
const QUICK: Duration = Duration::from_secs(5);
/// How often in a row that may happen.
const QUICK_MAX: u32 = 5;
/// How often it is looked at whether one has ended.
const LOOK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// Where engines answer questions, each at a socket with the name of its interface.
pub const UAPI: &str = "/var/run/wireguard";
/// The mode of the folder of sockets, if it is not there yet.
const FOLDER_MODE: u32 = 0o755;

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
    started: Instant,
    again_at: Instant,
    /// How often in a row it has ended soon after its start.
    quick: u32,
}

impl Kept {
    fn new(name: &'static str, arguments: &[&dyn AsRef<std::ffi::OsStr>]) -> Result<Kept, Wrong> {
        let mut command = Command::new(beside(name)?);
        command.args(arguments.iter().map(|argument| argument.as_ref()));
        // As the unit of the control process has it: one heap for all threads.
        command.env("MALLOC_ARENA_MAX", "1");
        Ok(Kept {
            command,
            name,
            child: None,
            started: Instant::now(),
            again_at: Instant::now(),
            quick: 0,
        })
    }

    /// Starts it if it does not run. An error is one that does not pass by itself.
    fn tend(&mut self) -> Result<(), Wrong> {
        if let Some(child) = &mut self.child {
            match child.try_wait() {
                Ok(None) => return Ok(()),
                Ok(Some(status)) => {
                    let name = self.name;
                    self.quick = match self.started.elapsed() < QUICK {
                        true => self.quick + 1,
                        false => 0,
                    };
                    if self.quick == QUICK_MAX {
                        self.child = None;
                        let said =
                            format!("{name} has ended {QUICK_MAX} times soon after its start ({status})");
                        return Err(Wrong::failed(said)
                            .hint("it has said why, above; `patronus doctor` may know what to do"));
                    }
                    eprintln!("patronus: {name} has ended ({status}): it is started again");
                }
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
            self.started = Instant::now();
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
    let config = check::load(file)?;
    let file = std::path::absolute(file).map_err(|error| Wrong::failed(error.to_string()))?;
    let places = Places::new(socket);
    let signals = signal::termination().map_err(|error| Wrong::failed(error.to_string()))?;
    make(&places.folder, FOLDER_MODE)?;
    make(&places.state(), 0o700)?;
    let _locked = lock(&places.folder)?;
    let _alone = alone(&places)?;
    let ended = run(&places, &file, &signals);
    // It may be another one by now than the file said at the start.
    let interface = recorded_interface(&places, &file);
    clean(
        &places,
        interface.as_deref().or(Some(config.engine.interface.as_str())),
    );
    ended
}

fn run(places: &Places, file: &Path, signals: &OwnedFd) -> Outcome {
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
    let ended = keep(signals, &mut kept);
    // Control first: it has nothing to do once the engine is gone.
    kept.iter_mut().rev().for_each(Kept::end);
    ended
}

fn keep(signals: &OwnedFd, kept: &mut [Kept]) -> Outcome {
    let hang_up_is_ignored = ignores_hang_up(&fs::read_to_string("/proc/self/status").unwrap_or_default());
    loop {
        for program in &mut *kept {
            program.tend()?;
        }
        // Whether it was interrupted or time is over: the next turn looks again.
        let _ = poll(&mut [PollFd::new(signals, PollFlags::IN)], Some(&LOOK));
        match signal::take(signals) {
            Some(signal::Asked::End) => return Ok(()),
            // The terminal has hung up. With `nohup` that was wanted.
            Some(signal::Asked::Reload) if !hang_up_is_ignored => return Ok(()),
            Some(signal::Asked::Reload) | None => {}
        }
    }
}

/// Whether SIGHUP is ignored by whom this text of /proc/PID/status is about (proc(5)): its bit is the lowest one.
fn ignores_hang_up(status: &str) -> bool {
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask & 1 != 0)
}

/// Locks the folder: of two that begin at the same time, one finds it locked. It is free again when this process ends, however it does.
fn lock(folder: &Path) -> Result<OwnedFd, Wrong> {
    let wrong = |error: rustix::io::Errno| Wrong::failed(format!("{}: {error}", folder.display()));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::open(folder, flags, Mode::empty()).map_err(wrong)?;
    match flock(&opened, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(opened),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(Wrong::failed("a site runs already, or is being started").hint("`patronus down` ends it"))
        }
        Err(error) => Err(wrong(error)),
    }
}

/// Makes a folder, or takes the one that is there, if it is our own: in that of the package others may make files.
fn make(folder: &Path, mode: u32) -> Result<(), Wrong> {
    let made = fs::DirBuilder::new().recursive(true).mode(mode).create(folder);
    let meta = made.and_then(|()| fs::symlink_metadata(folder));
    let meta = meta
        .map_err(|error| Wrong::failed(format!("{}: {error}", folder.display())).hint("run this as root"))?;
    match meta.is_dir() && meta.uid() == rustix::process::geteuid().as_raw() {
        true => Ok(()),
        false => Err(
            Wrong::failed(format!("{}: not a folder of this user", folder.display()))
                .hint("run this as root; if you do, remove it: somebody else has made it"),
        ),
    }
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
    let interface = interface_in_force(socket).or_else(|| recorded_interface(&places, Path::new(SITE)));
    let mut ended = Vec::new();
    // The one that would start the others again comes first.
    let sockets = [
        ("patronus up", places.up(), SocketType::STREAM),
        ("patronus-control", places.control.clone(), SocketType::STREAM),
        ("patronus-engine", places.engine(), SocketType::SEQPACKET),
    ];
    for (name, socket, kind) in sockets {
        if let Some(pid) = listener(&socket, kind) {
            match unit_of(&fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default()) {
                // Ended by itself it would be started again.
                Some(unit) => systemctl("stop", unit)?,
                None => end(name, pid)?,
            }
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
    interface_in(&summary)
}

/// The interface's name in a summary. Whoever answers may not be believed by root: what cannot be a name is none.
pub fn interface_in(summary: &serde_json::Value) -> Option<String> {
    let name: Result<InterfaceName, _> = summary["interface"].as_str()?.parse();
    name.ok().map(|name| name.as_str().to_owned())
}

/// The interface of the site that the control process of `patronus up` has on record, also when it was killed.
fn recorded_interface(places: &Places, file: &Path) -> Option<String> {
    let record = Store::new(&places.state()).read().ok()??;
    let tried = record.tried.filter(|tried| tried.until.is_some());
    let text = tried.map_or(record.applied, |tried| tried.text);
    let config = patronus_config::parse_file(file, &text).ok()?;
    Some(config.engine.interface.as_str().to_owned())
}

/// The unit of ours that a process belongs to, in the text of its /proc/PID/cgroup (cgroups(7)).
fn unit_of(cgroup: &str) -> Option<&str> {
    let mut parts = cgroup.lines().flat_map(|line| line.trim_end().split('/'));
    parts.find(|part| part.starts_with("patronus-") && part.ends_with(".service"))
}

fn systemctl(verb: &str, unit: &str) -> Outcome {
    match Command::new("systemctl").args([verb, unit]).output() {
        Ok(done) if done.status.success() => Ok(()),
        Ok(done) => Err(Wrong::failed(
            String::from_utf8_lossy(&done.stderr).trim().to_owned(),
        )),
        Err(error) => Err(Wrong::failed(format!("systemctl: {error}"))),
    }
}

/// The process that listens at a socket, as the kernel says. A symbolic link is not followed: whoever may make one there could have us end anybody's process.
fn listener(path: &Path, kind: SocketType) -> Option<Pid> {
    let this = rustix::fs::open(
        path,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .ok()?;
    let path = format!("/proc/self/fd/{}", this.as_raw_fd());
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

/// Removes a TUN that nobody serves, and the query socket of an engine that was killed.
pub fn remove_interface(interface: &str) {
    // Gone already is as good.
    let _ = Tun::remove(interface);
    let socket = Path::new(UAPI).join(format!("{interface}.sock"));
    if UnixStream::connect(&socket).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused) {
        let _ = fs::remove_file(&socket);
    }
}

/// Removes what is left: the TUN, which stays on purpose when an engine dies, sockets and the record.
fn clean(places: &Places, interface: Option<&str>) {
    if let Some(interface) = interface {
        remove_interface(interface);
    }
    for socket in [places.up(), places.engine(), places.control.clone()] {
        let _ = fs::remove_file(socket);
    }
    let _ = fs::remove_dir_all(places.state());
    // Only if `up` has made it: the units cannot start without that of the package. Nor if anything of anybody else's is in it.
    if fs::symlink_metadata(&places.folder).is_ok_and(|meta| meta.mode() & 0o7777 == FOLDER_MODE) {
        let _ = fs::remove_dir(&places.folder);
    }
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
    systemctl("restart", "patronus-engine.service")
        .map_err(|wrong| wrong.hint("restart patronus-engine by hand"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_of_a_unit_is_known_by_its_cgroup() {
        let unit = |name| format!("0::/system.slice/{name}\n");
        assert_eq!(
            unit_of(&unit("patronus-control.service")),
            Some("patronus-control.service")
        );
        for other in [
            "ssh.service",
            "patronus-engine.scope",
            "user@0.service/patronus-up.scope",
        ] {
            assert_eq!(unit_of(&unit(other)), None, "{other}");
        }
        assert_eq!(unit_of(""), None);
    }

    #[test]
    fn what_cannot_be_an_interface_is_not_removed() {
        let named = |name| interface_in(&json!({ "interface": name }));
        assert_eq!(named("patronus0").as_deref(), Some("patronus0"));
        for name in ["../control", "", "a/b", "sixteen-letters-x", "."] {
            assert_eq!(named(name), None, "{name}");
        }
    }

    #[test]
    fn of_two_that_begin_one_finds_it_locked() {
        let folder = std::env::temp_dir().join(format!("patronus-lock-{}", std::process::id()));
        make(&folder, FOLDER_MODE).expect("a folder");
        let first = lock(&folder).expect("nobody has it");
        let second = lock(&folder).expect_err("the first has it");
        assert!(second.failure.message.contains("runs already"), "{second:?}");
        drop(first);
        lock(&folder).expect("nobody has it any more");
        fs::remove_dir(&folder).expect("made above");
    }

    #[test]
    fn what_does_not_come_up_is_given_up() {
        let mut kept = Kept {
            command: Command::new("false"),
            name: "false",
            child: None,
            started: Instant::now(),
            again_at: Instant::now(),
            quick: 0,
        };
        let mut starts = 0;
        let wrong = loop {
            kept.again_at = Instant::now();
            starts += u32::from(kept.child.is_none());
            assert!(starts <= QUICK_MAX, "started again and again");
            if let Err(wrong) = kept.tend() {
                break wrong;
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        assert_eq!(starts, QUICK_MAX);
        assert!(
            wrong.failure.message.contains("soon after its start"),
            "{wrong:?}"
        );
    }

    #[test]
    fn hang_up_is_the_lowest_bit() {
        assert!(ignores_hang_up("Name:\tx\nSigIgn:\t0000000000001001\n"));
        assert!(!ignores_hang_up("Name:\tx\nSigIgn:\t0000000000001000\n"));
        assert!(!ignores_hang_up(""));
    }

    #[test]
    fn the_listener_behind_a_symbolic_link_is_nobody() {
        let folder = std::env::temp_dir().join(format!("patronus-listener-{}", std::process::id()));
        fs::create_dir(&folder).expect("a folder");
        let (socket, link) = (folder.join("a.sock"), folder.join("b.sock"));
        let _listens = UnixListener::bind(&socket).expect("a folder of ours");
        std::os::unix::fs::symlink(&socket, &link).expect("a folder of ours");
        let own = Some(rustix::process::getpid());
        assert_eq!(listener(&socket, SocketType::STREAM), own);
        assert_eq!(listener(&link, SocketType::STREAM), None);
        fs::remove_dir_all(&folder).expect("made above");
    }

    #[test]
    fn only_the_folder_that_up_has_made_goes() {
        use std::os::unix::fs::PermissionsExt;
        let folder = std::env::temp_dir().join(format!("patronus-clean-{}", std::process::id()));
        let places = Places::new(&folder.join("control.sock"));
        for (mode, stays) in [(0o1775, true), (FOLDER_MODE, false)] {
            make(&folder, FOLDER_MODE).expect("a folder");
            fs::set_permissions(&folder, PermissionsExt::from_mode(mode)).expect("ours");
            make(&places.state(), 0o700).expect("a folder");
            clean(&places, None);
            assert_eq!(folder.exists(), stays, "{mode:o}");
        }
    }

    #[test]
    fn a_link_is_no_folder_of_ours() {
        let link = std::env::temp_dir().join(format!("patronus-link-{}", std::process::id()));
        std::os::unix::fs::symlink(std::env::temp_dir(), &link).expect("a name of ours");
        make(&link, 0o700).expect_err("a symbolic link");
        fs::remove_file(&link).expect("made above");
    }
}
