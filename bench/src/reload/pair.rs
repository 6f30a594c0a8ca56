//! Two sites with a tunnel between them, each an engine under a control process, with the programs that people run.

use crate::folder::Folder;
use crate::programs::Programs;
use crate::reading::{Reading, resident_of};
use crate::subject::MTU;
use patronus_netns::{
    Error, Keys, Namespace, Process, RUNTIME_DIR, Result, Site, Tunnel, prepare_runtime_dir, unique_name,
};
use rustix::process::Signal;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const PORT: u16 = 51820;
const WAN: &str = "path";
/// How long a site may take until its engine has what control wants.
const READY: Duration = Duration::from_secs(10);

/// A site's processes and files.
pub struct Managed {
    control: Process,
    engine: Process,
    namespace: Namespace,
    interface: String,
    folder: Folder,
    /// The file without what reloads change.
    base: String,
    /// Whom each reload removes and adds in turn.
    strangers: [Keys; 2],
}

/// Builds both sites and gets a packet through.
pub fn up(programs: &Programs) -> Result<(Tunnel, [Managed; 2])> {
    prepare_runtime_dir()?;
    let sites = [site(1)?, site(2)?];
    sites[0].namespace.veth(WAN, &sites[1].namespace, WAN, 1500)?;
    for site in &sites {
        site.namespace.address(WAN, &format!("{}/24", site.outer.ip()))?;
    }
    let managed = [
        Managed::start(&sites[0], &sites[1], programs)?,
        Managed::start(&sites[1], &sites[0], programs)?,
    ];
    for site in &sites {
        raise(site)?;
    }
    let [a, b] = sites;
    let tunnel = Tunnel {
        hop: None,
        a,
        b,
        router: None,
    };
    tunnel.probe(false, READY)?;
    Ok((tunnel, managed))
}

fn site(number: u8) -> Result<Site> {
    Ok(Site {
        daemon: None,
        namespace: Namespace::new("site")?,
        interface: unique_name("pn"),
        keys: Some(Keys::generate()?),
        outer: SocketAddr::new(Ipv4Addr::new(192, 0, 2, number).into(), PORT),
        inner_v4: Ipv4Addr::new(10, 88, 0, number),
        inner_v6: Ipv6Addr::new(0xfd00, 0x88, 0, 0, 0, 0, 0, number.into()),
    })
}

/// The TUN with its address, without the kernel's search for IPv6 routers: those packets belong to no peer and would be counted as drops.
fn raise(site: &Site) -> Result<()> {
    let name = &site.interface;
    site.namespace
        .sysctl(&format!("net.ipv6.conf.{name}.disable_ipv6"), "1")?;
    site.namespace.ip(&format!("link set {name} mtu {MTU} up"))?;
    site.namespace.address(name, &format!("{}/24", site.inner_v4))
}

fn keys(site: &Site) -> Result<&Keys> {
    site.keys
        .as_ref()
        .ok_or_else(|| Error::new("a site without keys"))
}

fn spawn_engine(namespace: &Namespace, folder: &Folder, programs: &Programs) -> Result<Process> {
    let mut engine = Command::new(&programs.engine);
    engine
        .args(["--foreground", "--control"])
        .arg(folder.file("engine.sock"));
    namespace.spawn(engine)
}

impl Managed {
    /// Ends the engine as a crash would.
    pub fn kill_engine(&mut self) -> Result<()> {
        self.engine.signal(Signal::KILL);
        match self.engine.wait(READY) {
            Some(_) => Ok(()),
            None => Err(Error::new("the engine does not end")),
        }
    }

    /// Starts another one in its place.
    pub fn start_engine(&mut self, programs: &Programs) -> Result<()> {
        self.engine = spawn_engine(&self.namespace, &self.folder, programs)?;
        Ok(())
    }

    fn start(site: &Site, other: &Site, programs: &Programs) -> Result<Managed> {
        let interface = site.interface.clone();
        let folder = Folder::new(&interface)?;
        folder.write("site.key", &keys(site)?.private)?;
        std::fs::create_dir(folder.file("state"))?;
        let base = format!(
            "[site]\nprivate_key_file = 'site.key'\nlisten_port = {PORT}\n[engine]\ninterface = '{interface}'\n\
             [[peer]]\nname = 'other'\npublic_key = '{}'\nendpoint = '{}'\nallowed_ips = ['{}/32']\n\
             [[policy]]\nname = 'no-telnet'\nprotocol = 'tcp'\ndst_ports = 23\naction = 'drop'\n",
            keys(other)?.public,
            other.outer,
            other.inner_v4
        );
        folder.write("site.toml", &base)?;
        let engine = spawn_engine(&site.namespace, &folder, programs)?;
        let mut control = Command::new(&programs.control);
        // As its unit has it.
        control.env("MALLOC_ARENA_MAX", "1");
        for (option, file) in [
            ("--site", "site.toml"),
            ("--engine", "engine.sock"),
            ("--socket", "control.sock"),
            ("--state", "state"),
        ] {
            control.arg(option).arg(folder.file(file));
        }
        let managed = Managed {
            control: site.namespace.spawn(control)?,
            engine,
            namespace: site.namespace.clone(),
            interface,
            folder,
            base,
            strangers: [Keys::generate()?, Keys::generate()?],
        };
        managed.wait(programs)?;
        Ok(managed)
    }

    /// Until the engine has the site.
    fn wait(&self, programs: &Programs) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < READY {
            if self.handshake().is_ok() && self.patronus(programs, "show").is_ok() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err(Error::new(format!(
            "a site is not ready: {}{}",
            self.engine.log(),
            self.control.log()
        )))
    }

    fn patronus(&self, programs: &Programs, word: &str) -> Result<()> {
        let mut command = Command::new(&programs.patronus);
        command
            .arg("--socket")
            .arg(self.folder.file("control.sock"))
            .arg(word);
        let output = command.output()?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(Error::new(format!(
            "patronus {word}: {said}{}",
            self.control.log()
        )))
    }

    /// Changes the file (another peer, another route, another policy than the reload before) and applies it; gives the time from the command to its
    /// answer.
    pub fn reload(&self, programs: &Programs, number: usize) -> Result<Duration> {
        let more = format!(
            "[[peer]]\npublic_key = '{}'\nallowed_ips = ['10.90.0.0/24']\n\
             [[route]]\nprefix = '10.91.{}.0/24'\nvia = 'other'\n\
             [[policy]]\nprotocol = 'udp'\ndst_ports = {}\naction = 'drop'\n",
            self.strangers[number % 2].public,
            number % 251,
            10 + number % 7
        );
        self.folder.write("site.toml", &format!("{}{more}", self.base))?;
        let begun = Instant::now();
        self.patronus(programs, "apply")?;
        Ok(begun.elapsed())
    }

    /// When the session with the other site was made, by the wall clock; zero if there is none.
    pub fn handshake(&self) -> Result<Duration> {
        let path = Path::new(RUNTIME_DIR).join(format!("{}.sock", self.interface));
        let mut stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(READY))?;
        stream.write_all(b"get=1\n\n")?;
        stream.shutdown(Shutdown::Write)?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        if !text.contains("public_key=") {
            return Err(Error::new("the engine has no peer"));
        }
        Ok(last_handshake(&text))
    }

    /// Counters and memory of the engine.
    pub fn reading(&self, programs: &Programs) -> Result<Reading> {
        Reading::take(
            &self.namespace,
            &self.interface,
            self.engine.pid(),
            &programs.engine,
        )
    }

    /// Resident memory of the control process, KiB.
    pub fn control_resident(&self) -> Result<u64> {
        resident_of(self.control.pid())
    }
}

impl Drop for Managed {
    fn drop(&mut self) {
        let _ = self.control.stop();
        let _ = self.engine.stop();
        // It stays when the engine is gone, and holds nothing up: the namespace goes too.
        let _ = std::fs::remove_file(Path::new(RUNTIME_DIR).join(format!("{}.sock", self.interface)));
    }
}

/// The latest handshake of all peers in an answer to `get=1`.
fn last_handshake(text: &str) -> Duration {
    let mut latest = Duration::ZERO;
    let mut secs = 0;
    for line in text.lines() {
        if let Some(value) = line.strip_prefix("last_handshake_time_sec=") {
            secs = value.parse().unwrap_or(0);
        } else if let Some(value) = line.strip_prefix("last_handshake_time_nsec=") {
            latest = latest.max(Duration::new(secs, value.parse().unwrap_or(0)));
        }
    }
    latest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_handshake_is_found() {
        let text = "public_key=00\nlast_handshake_time_sec=5\nlast_handshake_time_nsec=7\npublic_key=01\n\
            last_handshake_time_sec=0\nlast_handshake_time_nsec=0\nerrno=0\n";
        assert_eq!(last_handshake(text), Duration::new(5, 7));
        assert_eq!(last_handshake("errno=0\n"), Duration::ZERO);
    }
}
