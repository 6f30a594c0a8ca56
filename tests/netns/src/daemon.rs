//! WireGuard daemons: ours and the peers we test and measure against, started in the foreground.

use crate::command::run_to_end;
use crate::{Config, Error, Namespace, PeerStatus, Process, Result};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Where every daemon makes its control socket, `NAME.sock`.
pub const RUNTIME_DIR: &str = "/var/run/wireguard";
/// How long a daemon may take from its start to the answer to the first `wg show`.
const READY: Duration = Duration::from_secs(10);

/// A WireGuard implementation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// No daemon and no tunnel: the veth itself carries the inner addresses.
    Plain,
    /// Ours.
    Engine,
    /// wireguard-go as the distribution ships it.
    WireguardGo,
    /// A newer wireguard-go, with offloads, got by scripts/install-peers.
    WireguardGoNew,
    /// boringtun-cli from crates.io.
    Boringtun,
    /// gotatun-cli from crates.io.
    Gotatun,
}

impl Kind {
    /// Every daemon.
    pub const ALL: [Kind; 5] = [
        Kind::Engine,
        Kind::WireguardGo,
        Kind::WireguardGoNew,
        Kind::Boringtun,
        Kind::Gotatun,
    ];

    /// The name in options and reports.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Plain => "no-tunnel",
            Kind::Engine => "patronus-engine",
            Kind::WireguardGo => "wireguard-go",
            Kind::WireguardGoNew => "wireguard-go-new",
            Kind::Boringtun => "boringtun-cli",
            Kind::Gotatun => "gotatun-cli",
        }
    }

    /// The kind of that [`Kind::name`].
    pub fn by_name(name: &str) -> Option<Kind> {
        [Kind::Plain]
            .into_iter()
            .chain(Kind::ALL)
            .find(|kind| kind.name() == name)
    }

    /// The file name of its program.
    fn program(self) -> &'static str {
        match self {
            Kind::Gotatun => "gotatun",
            other => other.name(),
        }
    }

    /// The environment variable that says where its program is.
    pub fn env_var(self) -> &'static str {
        match self {
            Kind::Plain => "",
            Kind::Engine => "PATRONUS_ENGINE",
            Kind::WireguardGo => "PATRONUS_WIREGUARD_GO",
            Kind::WireguardGoNew => "PATRONUS_WIREGUARD_GO_NEW",
            Kind::Boringtun => "PATRONUS_BORINGTUN",
            Kind::Gotatun => "PATRONUS_GOTATUN",
        }
    }

    /// Its program: by the environment variable, else (ours) beside the running program in the target directory, else in
    /// the cache of scripts/install-peers, else in PATH. `None`: not installed.
    pub fn find(self) -> Option<PathBuf> {
        if self == Kind::Plain {
            return None;
        }
        if let Some(path) = std::env::var_os(self.env_var()).filter(|path| !path.is_empty()) {
            return Some(PathBuf::from(path));
        }
        let built = if self == Kind::Engine {
            target_dirs()
        } else {
            Vec::new()
        };
        let path = std::env::var_os("PATH").unwrap_or_default();
        let places = built
            .into_iter()
            .chain(peers_dir())
            .chain(std::env::split_paths(&path));
        places
            .map(|dir| dir.join(self.program()))
            .find(|file| file.is_file())
    }

    /// The program's version, in one line: of the package that it was unpacked from (a file `PROGRAM.version` beside
    /// it), else what it says itself.
    pub fn version(self, program: &Path) -> String {
        let mut noted = program.as_os_str().to_owned();
        noted.push(".version");
        if let Ok(text) = std::fs::read_to_string(noted) {
            return text.trim().to_owned();
        }
        let mut command = Command::new(program);
        command.arg("--version");
        let said = run_to_end(command, b"").unwrap_or_default();
        said.lines()
            .find(|line| line.contains(char::is_numeric))
            .unwrap_or("unknown")
            .trim()
            .to_owned()
    }

    /// The command that runs it in the foreground.
    fn command(self, program: &Path, interface: &str) -> Command {
        let mut command = Command::new(program);
        match self {
            Kind::Plain => unreachable!("no daemon to start"),
            Kind::Engine => command.arg("--foreground"),
            Kind::WireguardGo | Kind::WireguardGoNew => command.arg("-f").env("LOG_LEVEL", "error"),
            // Both would give their capabilities away when run by sudo.
            Kind::Boringtun | Kind::Gotatun => command.args([
                "--foreground",
                "--verbosity",
                "error",
                "--disable-drop-privileges",
            ]),
        };
        command.arg(interface);
        command
    }
}

/// `target/debug` and `target/release` of a running test or bench, its own profile first.
pub(crate) fn target_dirs() -> Vec<PathBuf> {
    let Ok(exe) = std::env::current_exe() else {
        return Vec::new();
    };
    let own = exe
        .ancestors()
        .skip(1)
        .find(|dir| !dir.ends_with("deps") && !dir.ends_with("examples"));
    let Some(own) = own else { return Vec::new() };
    let mut dirs = vec![own.to_owned()];
    if let Some(target) = own.parent() {
        dirs.extend(["release", "debug"].map(|profile| target.join(profile)));
    }
    dirs
}

/// Where scripts/install-peers puts the peers' programs.
fn peers_dir() -> Option<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(home)?;
    Some(cache.join("patronus/peers/bin"))
}

/// Makes /var/run/wireguard. In a user namespace of our own (`unshare -Urnm`), where /run belongs to a root that we are
/// not, a private tmpfs is mounted over /run first.
pub fn prepare_runtime_dir() -> Result<()> {
    static PREPARED: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    let prepare = || {
        if writable_runtime_dir() {
            return Ok(());
        }
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "mode=0755", "patronus", "/run"]);
        let mounted = run_to_end(mount, b"").map_err(|e| format!("{RUNTIME_DIR} is not ours to write: {e}"));
        mounted?;
        if writable_runtime_dir() {
            Ok(())
        } else {
            Err(format!("cannot make {RUNTIME_DIR}"))
        }
    };
    PREPARED.get_or_init(prepare).clone().map_err(Error::new)
}

fn writable_runtime_dir() -> bool {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(RUNTIME_DIR);
    made.is_ok() && rustix::fs::access(RUNTIME_DIR, rustix::fs::Access::WRITE_OK).is_ok()
}

/// How to start a daemon, where the defaults of its kind are not wanted.
#[derive(Clone, Debug, Default)]
pub struct DaemonOptions {
    /// The program; default: [`Kind::find`].
    pub program: Option<PathBuf>,
    /// More arguments, before the interface's name.
    pub args: Vec<String>,
    /// More environment variables.
    pub env: Vec<(String, String)>,
}

/// A running daemon with its interface. Dropping it ends the process and removes the socket that it left.
pub struct Daemon {
    kind: Kind,
    interface: String,
    namespace: Namespace,
    process: Process,
}

impl Daemon {
    /// Starts a daemon of `kind` for `interface` (a name that is unique on the machine: the control sockets of all
    /// namespaces share one directory, see [`crate::unique_name`]) and waits until `wg show` works.
    pub fn start(
        namespace: &Namespace,
        kind: Kind,
        interface: &str,
        options: &DaemonOptions,
    ) -> Result<Daemon> {
        prepare_runtime_dir()?;
        let program = options.program.clone().or_else(|| kind.find());
        let program = program.ok_or_else(|| {
            Error::new(format!(
                "{} is not installed (scripts/install-peers; ${})",
                kind.name(),
                kind.env_var()
            ))
        })?;
        let mut command = with_args(kind.command(&program, interface), &options.args);
        command.envs(options.env.iter().map(|(key, value)| (key, value)));
        let process = namespace.spawn(command)?;
        let mut daemon = Daemon {
            kind,
            interface: interface.to_owned(),
            namespace: namespace.clone(),
            process,
        };
        daemon.wait_ready()?;
        Ok(daemon)
    }

    fn wait_ready(&mut self) -> Result<()> {
        let start = Instant::now();
        loop {
            if self.socket().exists() && self.namespace.exec("wg", &["show", &self.interface]).is_ok() {
                return Ok(());
            }
            let ended = self.process.ended();
            if ended.is_some() || start.elapsed() > READY {
                let name = self.kind.name();
                return Err(Error::new(format!(
                    "{name} is not ready ({ended:?}): {}",
                    self.process.log()
                )));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Which implementation it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The interface's name.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// Its control socket.
    pub fn socket(&self) -> PathBuf {
        Path::new(RUNTIME_DIR).join(format!("{}.sock", self.interface))
    }

    /// What it has said.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// The process: id, log, signals.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Replaces its configuration (`wg setconf`).
    pub fn setconf(&self, config: &Config) -> Result<()> {
        config.apply(&self.namespace, &self.interface)
    }

    /// `wg set INTERFACE` with the words of `arguments`.
    pub fn set(&self, arguments: &str) -> Result<()> {
        let words = ["set", &self.interface]
            .into_iter()
            .chain(arguments.split_whitespace());
        self.namespace.exec("wg", &words.collect::<Vec<_>>())?;
        Ok(())
    }

    /// Its peers, as `wg show` lists them.
    pub fn peers(&self) -> Result<Vec<PeerStatus>> {
        PeerStatus::all(&self.namespace, &self.interface)
    }

    /// CPU time of all its threads so far, see [`cpu_time`].
    pub fn cpu_time(&self) -> Result<Duration> {
        cpu_time(self.pid())
    }

    /// Ends it and gives its status.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        let status = self.process.stop();
        // Some leave it behind when they are ended by a signal. The name is unique to this daemon.
        let _ = std::fs::remove_file(self.socket());
        status
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

/// CPU time of all threads of a process so far, from the scheduler's clock (first field of
/// /proc/PID/task/TID/schedstat: nanoseconds on a CPU). Threads that have ended are not counted.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"))?;
    let mut total = 0u64;
    for task in tasks {
        // A thread may end between the listing and the reading.
        let Ok(text) = std::fs::read_to_string(task?.path().join("schedstat")) else {
            continue;
        };
        total += text
            .split(' ')
            .next()
            .and_then(|field| field.parse::<u64>().ok())
            .unwrap_or(0);
    }
    Ok(Duration::from_nanos(total))
}

/// Puts `more` in front of the last argument, which is the interface's name.
fn with_args(command: Command, more: &[String]) -> Command {
    let mut args: Vec<OsString> = command.get_args().map(OsString::from).collect();
    let interface = args.pop();
    let mut whole = Command::new(command.get_program());
    whole.args(args).args(more).args(interface);
    for (key, value) in command.get_envs() {
        if let Some(value) = value {
            whole.env(key, value);
        }
    }
    whole
}
