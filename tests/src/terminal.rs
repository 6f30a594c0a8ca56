//! A terminal at a machine of its own: a shell that keeps its folder and its jobs from one command to the next, in network and mount namespaces where /run and /etc are
//! its own. So that what a document tells people to type can be typed.

use crate::{cli_program, control_program, engine_program};
use patronus_netns::{Error, Result};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

/// How long a command may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// What no command prints.
const MARK: &str = "-----patronus-test-mark-----";

/// A shell. Dropping it ends it and everything that was started in it.
pub struct Terminal {
    shell: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Terminal {
    /// A machine that nobody else can see. Its shell begins in `folder`, where it keeps what it needs.
    pub fn open(name: &str, folder: &Path) -> Result<Terminal> {
        let etc = folder.join(format!(".{name}-etc"));
        let mut unshare = Command::new("unshare");
        // In a process namespace, all that is started goes when the shell does.
        unshare.args([
            "--net",
            "--mount",
            "--uts",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ]);
        unshare.args(["sh", "-c", SETUP, "sh"]).arg(&etc).arg(name);
        unshare
            .current_dir(folder)
            .env("PATH", path()?)
            .env("NO_COLOR", "1");
        let mut shell = unshare.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let pipes = shell.stdin.take().zip(shell.stdout.take());
        let (input, output) = pipes.ok_or_else(|| Error::new("a shell without pipes"))?;
        let mut terminal = Terminal {
            shell,
            input,
            lines: read(output),
        };
        terminal.run("true")?;
        Ok(terminal)
    }

    /// The shell's process, which names its namespaces: the only child of `unshare`.
    pub fn pid(&self) -> Result<u32> {
        let unshare = self.shell.id();
        let children = std::fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children"))?;
        let pid = children
            .split_whitespace()
            .next()
            .and_then(|pid| pid.parse().ok());
        pid.ok_or_else(|| Error::new("the shell has ended"))
    }

    /// Types a command and gives what it prints, on both streams, and its exit status.
    pub fn run(&mut self, command: &str) -> Result<(String, i32)> {
        // In braces and not in a subshell: what it changes stays changed.
        writeln!(self.input, "{{ {command}\n}} 2>&1 </dev/null; echo \"{MARK}$?\"")?;
        let mut text = String::new();
        loop {
            let line = self.lines.recv_timeout(PATIENCE);
            let line = line.map_err(|_| Error::new(format!("`{command}` does not end; so far: {text}")))?;
            // Behind whatever had no line end.
            if let Some((rest, status)) = line.split_once(MARK) {
                text.push_str(rest);
                return Ok((text, status.trim().parse().unwrap_or(-1)));
            }
            text.push_str(&line);
        }
    }

    /// The same for a command that must succeed.
    pub fn expect(&mut self, command: &str) -> Result<String> {
        match self.run(command)? {
            (text, 0) => Ok(text),
            (text, status) => Err(Error::new(format!("`{command}` ends with {status}: {text}"))),
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Its whole process namespace goes with it.
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

/// A cable between two machines, with an interface of this name at each.
pub fn cable(a: &Terminal, a_name: &str, b: &Terminal, b_name: &str) -> Result<()> {
    let (a, b) = (a.pid()?, b.pid()?);
    let script = format!(
        "ip link add {a_name} netns {a} type veth peer name {b_name} netns {b} && \
         nsenter -t {a} -n ip link set {a_name} up && nsenter -t {b} -n ip link set {b_name} up"
    );
    let done = Command::new("sh").args(["-c", &script]).output()?;
    match done.status.success() {
        true => Ok(()),
        false => Err(Error::new(String::from_utf8_lossy(&done.stderr).into_owned())),
    }
}

/// What the shell does first: a copy of /etc in the place of /etc, an empty /run, and itself.
const SETUP: &str = "mount --make-rprivate / && mkdir \"$1\" && cp -a /etc/. \"$1\" && mount --bind \"$1\" /etc && \
    mount -t tmpfs -o mode=755 tmpfs /run && mount -t sysfs sysfs /sys && hostname \"$2\" && ip link set lo up && exec sh";

/// The three programs in one folder, in front of the others.
fn path() -> Result<std::ffi::OsString> {
    let cli = cli_program();
    let folder = cli.parent().map(PathBuf::from).unwrap_or_default();
    for program in [engine_program(), control_program()] {
        if program.parent() != Some(&folder) {
            let said = format!("{} is not beside {}", program.display(), cli.display());
            return Err(Error::new(said));
        }
    }
    let others = std::env::var_os("PATH").unwrap_or_default();
    let all = std::iter::once(folder).chain(std::env::split_paths(&others));
    std::env::join_paths(all).map_err(|error| Error::new(error.to_string()))
}

/// Reads lines on a thread of its own, so that a command that never ends can be given up.
fn read(output: ChildStdout) -> Receiver<String> {
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        let mut output = BufReader::new(output);
        let mut bytes = Vec::new();
        while output.read_until(b'\n', &mut bytes).is_ok_and(|read| read > 0) {
            let line = String::from_utf8_lossy(&bytes).into_owned();
            bytes.clear();
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}
