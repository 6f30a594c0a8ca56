//! A network namespace, held open by a file descriptor and by one resident thread that starts its processes.

use crate::command::run_to_end;
use crate::{Error, Process, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace. Clones are handles to the same one; it goes with the last handle.
#[derive(Clone)]
pub struct Namespace(Arc<Inner>);

struct Inner {
    name: String,
    link: File,
    /// The resident thread lives in the namespace. Processes are started from it, because the signal that a child gets
    /// at its parent's death (`PR_SET_PDEATHSIG`) is bound to the thread that started it.
    resident: Option<(mpsc::Sender<Job>, JoinHandle<()>)>,
}

/// A name of at most 15 characters (the limit of interface names) that no other call in any process gives.
pub fn unique_name(prefix: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!(
        "{prefix}{:x}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    );
    assert!(name.len() <= 15, "interface name {name:?} is too long");
    name
}

impl Namespace {
    /// A new namespace with its loopback up and without waiting for duplicate IPv6 addresses. `label` is for messages.
    pub fn new(label: &str) -> Result<Namespace> {
        let link = create()?;
        let name = format!("{}-{label}", unique_name("pn"));
        let resident = start_resident(&name, &link)?;
        let namespace = Namespace(Arc::new(Inner {
            name,
            link,
            resident: Some(resident),
        }));
        namespace.ip("link set lo up")?;
        for scope in ["all", "default"] {
            // Absent where the kernel has no IPv6.
            let _ = namespace.sysctl(&format!("net.ipv6.conf.{scope}.accept_dad"), "0");
            let _ = namespace.sysctl(&format!("net.ipv6.conf.{scope}.dad_transmits"), "0");
        }
        Ok(namespace)
    }

    /// Name in messages.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// A path to the namespace that lives as long as this process holds it: for `nsenter --net=PATH` and
    /// `ip link set DEV netns PATH`.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            self.0.link.as_raw_fd()
        ))
    }

    /// Moves the calling thread into the namespace, for good.
    pub fn enter(&self) -> Result<()> {
        enter(&self.0.link).map_err(|e| Error::io(&format!("setns to {}", self.name()), e))
    }

    /// Runs `work` on a short-lived thread inside the namespace and gives its result. Sockets that it opens stay in the
    /// namespace wherever they are used later.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| self.enter().map(|()| work()));
            inside
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts a thread inside the namespace.
    pub fn spawn_thread<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<Result<T>>> {
        let home = self.clone();
        let builder = std::thread::Builder::new().name(name.to_owned());
        Ok(builder.spawn(move || home.enter().map(|()| work()))?)
    }

    /// Runs a program to its end inside the namespace and gives its standard output.
    pub fn exec(&self, program: &str, args: &[&str]) -> Result<String> {
        self.exec_with_input(program, args, b"")
    }

    /// As [`Namespace::exec`], with `input` on the program's standard input.
    pub fn exec_with_input(&self, program: &str, args: &[&str], input: &[u8]) -> Result<String> {
        let mut command = Command::new(program);
        command.args(args);
        self.run(|| run_to_end(command, input))?
    }

    /// `ip` with the words of `arguments`: `ns.ip("link set eth0 up")`.
    pub fn ip(&self, arguments: &str) -> Result<String> {
        self.exec("ip", &arguments.split_whitespace().collect::<Vec<_>>())
    }

    /// Starts a process inside the namespace; it is ended when the guard is dropped.
    pub fn spawn(&self, command: Command) -> Result<Process> {
        Process::start(self, command)
    }

    /// Sets a sysctl of the namespace, given with dots (`net.ipv4.ip_forward`).
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        let outcome = self.run(|| std::fs::write(&path, value))?;
        outcome.map_err(|e| Error::io(&format!("{}: {key} = {value}", self.name()), e))
    }

    /// A veth pair: `here` in this namespace, `there` in the other, both up with the given MTU.
    pub fn veth(&self, here: &str, other: &Namespace, there: &str, mtu: u32) -> Result<()> {
        self.veth_with_queues(here, other, there, mtu, 1)
    }

    /// As [`Namespace::veth`], with so many queues in each direction at both ends.
    pub fn veth_with_queues(
        &self,
        here: &str,
        other: &Namespace,
        there: &str,
        mtu: u32,
        queues: u32,
    ) -> Result<()> {
        let path = other.path();
        let path = path.display();
        let queues = format!("numrxqueues {queues} numtxqueues {queues}");
        self.ip(&format!(
            "link add {here} {queues} type veth peer name {there} {queues} netns {path}"
        ))?;
        self.ip(&format!("link set {here} mtu {mtu} up"))?;
        other.ip(&format!("link set {there} mtu {mtu} up"))?;
        Ok(())
    }

    /// Adds an address with its prefix length (`10.0.0.1/24`, `fd00::1/64`), usable at once.
    pub fn address(&self, interface: &str, address: &str) -> Result<()> {
        let nodad = if address.contains(':') { "nodad" } else { "" };
        self.ip(&format!("address add {address} dev {interface} {nodad}"))?;
        Ok(())
    }

    /// Starts `command` from the resident thread.
    pub(crate) fn spawn_child(&self, mut command: Command) -> std::io::Result<Child> {
        let (answer, started) = mpsc::sync_channel(1);
        let job: Job = Box::new(move || {
            let _ = answer.send(command.spawn());
        });
        let (jobs, _) = self
            .0
            .resident
            .as_ref()
            .expect("resident thread lives until drop");
        jobs.send(job).expect("resident thread takes jobs until drop");
        started.recv().expect("resident thread answers each job")
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some((jobs, thread)) = self.resident.take() {
            drop(jobs);
            let _ = thread.join();
        }
    }
}

fn enter(link: &File) -> rustix::io::Result<()> {
    move_into_link_name_space(link.as_fd(), Some(LinkNameSpaceType::Network))
}

/// A helper process makes the namespace and shows that it is there; `unshare` in a thread of ours is an unsafe function.
fn create() -> Result<File> {
    let mut helper = Command::new("unshare")
        .args(["--net", "sh", "-c", "echo ready; exec cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| Error::io("unshare (package util-linux)", e))?;
    let mut ready = [0u8; 6];
    let made = helper.stdout.as_mut().map(|pipe| pipe.read_exact(&mut ready));
    let link = match made {
        Some(Ok(())) => File::open(format!("/proc/{}/ns/net", helper.id())).map_err(Error::from),
        _ => Err(Error::new("")),
    };
    // The end of its input ends `cat`.
    let output = helper.wait_with_output()?;
    link.map_err(|e| {
        let said = String::from_utf8_lossy(&output.stderr);
        Error::new(format!(
            "cannot make a network namespace (root or `unshare -Urnm` needed): {} {e}",
            said.trim()
        ))
    })
}

fn start_resident(name: &str, link: &File) -> Result<(mpsc::Sender<Job>, JoinHandle<()>)> {
    let (jobs, queue) = mpsc::channel::<Job>();
    let (answer, entered) = mpsc::sync_channel(1);
    let link = link.try_clone()?;
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _ = answer.send(enter(&link));
        drop(link);
        for job in queue {
            job();
        }
    })?;
    entered.recv().map_err(|e| Error::io("resident thread", e))??;
    Ok((jobs, thread))
}
