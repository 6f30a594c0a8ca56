//! An engine that runs from a site's file, and hosts on its Ethernet LANs.

use crate::control::stats_of;
use crate::{LIMIT, Stats, engine_program, eventually};
use patronus_netns::{Keys, Namespace, Process, RUNTIME_DIR, Result, prepare_runtime_dir, unique_name};
use rustix::process::Signal;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

/// An engine with a file. (The process goes before what it needs.)
pub struct Edge {
    process: Process,
    interface: String,
    _folder: Folder,
}

impl Edge {
    /// Starts an engine in `namespace`; `text` is what its file has beside the key, the UDP port and the TUN's name: first what is missing in
    /// `[engine]`, then the other tables.
    pub fn start(namespace: &Namespace, keys: &Keys, text: &str) -> Result<Edge> {
        Edge::start_with(namespace, keys, &[], text)
    }

    /// The same with more arguments.
    pub fn start_with(namespace: &Namespace, keys: &Keys, args: &[&str], text: &str) -> Result<Edge> {
        let mut command = Command::new(engine_program());
        command.args(args);
        Edge::start_by(namespace, keys, command, text)
    }

    /// The same by a command that runs the engine with the arguments that it gets.
    pub fn start_by(namespace: &Namespace, keys: &Keys, command: Command, text: &str) -> Result<Edge> {
        let edge = Edge::begin(namespace, keys, command, text)?;
        let socket = Path::new(RUNTIME_DIR).join(format!("{}.sock", edge.interface));
        assert!(eventually(|| socket.exists()), "{}", edge.log());
        namespace.ip(&format!("link set {} up", edge.interface))?;
        Ok(edge)
    }

    /// The same for one that does not start: what it says.
    pub fn refusal(namespace: &Namespace, keys: &Keys, text: &str) -> Result<String> {
        let mut edge = Edge::begin(namespace, keys, Command::new(engine_program()), text)?;
        let status = edge.process.wait(LIMIT);
        assert!(
            status.is_some_and(|status| !status.success()),
            "{status:?}: {}",
            edge.log()
        );
        Ok(edge.log())
    }

    fn begin(namespace: &Namespace, keys: &Keys, mut command: Command, text: &str) -> Result<Edge> {
        let interface = unique_name("pn");
        let folder = Folder::new(&interface)?;
        let key = folder.0.join("site.key");
        fs::write(&key, &keys.private)?;
        fs::set_permissions(&key, PermissionsExt::from_mode(0o600))?;
        let file = folder.0.join("site.toml");
        fs::write(
            &file,
            format!(
                "[site]\nprivate_key_file = 'site.key'\nlisten_port = 51820\n[engine]\ninterface = '{interface}'\n{text}"
            ),
        )?;
        prepare_runtime_dir()?;
        command.args(["--foreground", "--config"]).arg(file);
        Ok(Edge {
            process: namespace.spawn(command)?,
            interface,
            _folder: folder,
        })
    }

    /// Its counters.
    pub fn stats(&self) -> Result<Stats> {
        stats_of(&self.interface)
    }

    /// Kills it, so that it can leave nothing in order.
    pub fn kill(&mut self) {
        self.process.signal(Signal::KILL);
        let _ = self.process.wait(LIMIT);
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The name of its TUN.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// What it has said.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.ended().is_none()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.ended()
    }
}

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Result<Folder> {
        let path = std::env::temp_dir().join(format!("patronus-edge-{name}"));
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A host behind interface `lan` of an edge's namespace, in the networks 192.168.`number`.0/24 and fd00:`number`::/64: the edge has the first
/// address, the host the second one and a default route. The veth has so many queues.
pub fn host_on(edge: &Namespace, lan: &str, number: u8, queues: u32) -> Result<Namespace> {
    let host = Namespace::new("host")?;
    edge.veth_with_queues(lan, &host, "eth0", 1500, queues)?;
    edge.address(lan, &format!("192.168.{number}.1/24"))?;
    edge.address(lan, &format!("fd00:{number}::1/64"))?;
    host.address("eth0", &format!("192.168.{number}.2/24"))?;
    host.address("eth0", &format!("fd00:{number}::2/64"))?;
    host.ip(&format!("route add default via 192.168.{number}.1"))?;
    host.ip(&format!("-6 route add default via fd00:{number}::1"))?;
    Ok(host)
}
