//! Two sites with several links, each pair of links joined by an impairment hop, and the programs that people run at both.

use super::course::Ground;
use super::stream::PORT as STREAM_PORT;
use crate::folder::Folder;
use crate::programs::Programs;
use crate::subject::MTU;
use patronus_netns::{
    Error, Hop, HopPlan, Keys, Namespace, Process, RUNTIME_DIR, Result, Site, prepare_runtime_dir, probe,
    unique_name,
};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const PORT: u16 = 51820;
/// How long the sites may take until what they are to have is there.
pub const READY: Duration = Duration::from_secs(40);
/// How often somebody who waits looks.
const LOOK: Duration = Duration::from_millis(50);
/// A pair of links, the same at both sites.
#[derive(Clone, Debug)]
pub struct Wire {
    /// The interfaces' name.
    pub name: String,
    /// What the hop does from the start, both ways.
    pub impaired: Vec<String>,
    /// More keys of `[[link]]`, a line each.
    pub keys: String,
}

/// What the sites are like.
#[derive(Clone, Debug)]
pub struct Setup {
    pub wires: Vec<Wire>,
    /// With the control process.
    pub control: bool,
    /// The time between probes, where it is not what it is without being said.
    pub probe: Option<Duration>,
    /// The class of the stream, and its keys, a line each.
    pub class: (&'static str, String),
    /// More tables of the file.
    pub more: String,
}

/// A site's processes and files.
pub struct Managed {
    control: Option<Process>,
    engine: Process,
    interface: String,
    folder: Folder,
}

/// The sites, what runs there, and the wires between them. (What goes first stands first.)
pub struct Rig {
    pub managed: [Managed; 2],
    pub hops: Vec<Hop>,
    pub sites: [Site; 2],
}

impl Rig {
    /// Builds it, and waits until every path carries packets.
    pub fn up(setup: &Setup, engine: Option<std::path::PathBuf>) -> Result<Rig> {
        let programs = Programs::find(engine)?;
        prepare_runtime_dir()?;
        let sites = [site(1)?, site(2)?];
        let hops = setup
            .wires
            .iter()
            .zip(1..)
            .map(|(wire, number)| join(&sites, wire, number));
        let hops = hops.collect::<Result<Vec<Hop>>>()?;
        let managed = [
            Managed::start(&sites[0], &sites[1], setup, &programs)?,
            Managed::start(&sites[1], &sites[0], setup, &programs)?,
        ];
        let rig = Rig { managed, hops, sites };
        rig.wait("the interfaces", || {
            rig.sites.iter().all(|site| raise(site).is_ok())
        })?;
        probe(&rig.sites[0], &rig.sites[1], false, 32, READY).map_err(|error| rig.told(&error))?;
        rig.wait_for_paths()?;
        Ok(rig)
    }

    /// Until all paths are up, as both sites see them.
    pub fn wait_for_paths(&self) -> Result<()> {
        let paths = self.hops.len();
        self.wait("all paths", || (0..2).all(|at| self.paths_up(at) >= paths))
    }

    /// Paths of a site that are up, by its engine.
    fn paths_up(&self, at: usize) -> usize {
        let said = ask(&self.managed[at].interface, "paths").unwrap_or_default();
        said.lines().filter(|line| *line == "state=up").count()
    }

    /// What the control process of a site has decided, as it has written it down.
    pub fn decisions(&self, at: usize) -> Vec<Value> {
        let file = self.managed[at].folder.file("state/decisions.jsonl");
        let text = std::fs::read_to_string(file).unwrap_or_default();
        text.lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// Waits until it is so.
    pub fn wait(&self, what: &str, mut is_so: impl FnMut() -> bool) -> Result<()> {
        let start = Instant::now();
        while !is_so() {
            if start.elapsed() > READY {
                return Err(self.told(&Error::new(format!("{what}: not there within {READY:?}"))));
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}

/// The directions, as the hops call them.
const DIRECTIONS: [&str; 2] = ["a->b", "b->a"];

impl Ground for Rig {
    fn sites(&self) -> &[Site; 2] {
        &self.sites
    }

    fn packets(&mut self) -> Result<Vec<[u64; 2]>> {
        let hops = self.hops.iter_mut().map(|hop| {
            let counters = hop.counters()?;
            Ok(DIRECTIONS.map(|direction| counters.get(&format!("{direction}.packets"))))
        });
        hops.collect()
    }

    fn command(&mut self, wire: usize, command: &str) -> Result<()> {
        self.hops[wire].command(command).map(|_| ())
    }

    fn has_recovered(&mut self) -> bool {
        (0..2).all(|at| self.paths_up(at) >= self.hops.len())
    }

    fn told(&self, error: &Error) -> Error {
        let logs = self.managed.iter().map(Managed::log);
        Error::new(format!("{error}\n{}", logs.collect::<String>()))
    }
}

/// A site without anything that runs.
pub fn site(number: u8) -> Result<Site> {
    Ok(Site {
        daemon: None,
        namespace: Namespace::new("site")?,
        interface: unique_name("pn"),
        keys: Some(Keys::generate()?),
        outer: SocketAddr::new(outer(1, number).into(), PORT),
        inner_v4: Ipv4Addr::new(10, 88, 0, number),
        inner_v6: Ipv6Addr::new(0xfd00, 0x88, 0, 0, 0, 0, 0, number.into()),
    })
}

/// A site's address on a link.
fn outer(link: u8, site: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 18, link, site)
}

fn join(sites: &[Site; 2], wire: &Wire, number: u8) -> Result<Hop> {
    let [a, b] = [&sites[0].namespace, &sites[1].namespace];
    let mut plan = HopPlan::default();
    // As the stream's threads: where that is not allowed, the hop would not start.
    if std::thread::spawn(patronus_io::schedule::set_realtime)
        .join()
        .is_ok_and(|set| set.is_ok())
    {
        plan.args.push("--realtime".to_owned());
    }
    plan.args.extend(wire.impaired.iter().cloned());
    let hop = Hop::between(a, &wire.name, b, &wire.name, 1500, &plan)?;
    for (namespace, at) in [(a, 1), (b, 2)] {
        namespace.address(&wire.name, &format!("{}/24", outer(number, at)))?;
    }
    Ok(hop)
}

/// The TUN with its address, without the kernel's search for IPv6 routers, whose packets belong to no peer.
pub fn raise(site: &Site) -> Result<()> {
    let name = &site.interface;
    site.namespace
        .sysctl(&format!("net.ipv6.conf.{name}.disable_ipv6"), "1")?;
    site.namespace.ip(&format!("link set {name} mtu {MTU} up"))?;
    site.namespace
        .ip(&format!("address replace {}/24 dev {name}", site.inner_v4))?;
    Ok(())
}

/// The keys of a site, which has some.
pub fn keys(site: &Site) -> Result<&Keys> {
    site.keys
        .as_ref()
        .ok_or_else(|| Error::new("a site without keys"))
}

/// The site's file.
fn file(site: &Site, other: &Site, setup: &Setup) -> Result<String> {
    let mut text = format!(
        "[site]\nprivate_key_file = 'site.key'\nlisten_port = {PORT}\n[engine]\ninterface = '{}'\n",
        site.interface
    );
    if let Some(interval) = setup.probe {
        text += &format!("[probe]\ninterval = '{}ms'\n", interval.as_millis());
    }
    for (wire, id) in setup.wires.iter().zip(1..) {
        // A group of its own for each: no path leads from one wire into another.
        text += &format!(
            "[[link]]\nid = {id}\ninterface = '{}'\ngroup = {id}\n{}",
            wire.name, wire.keys
        );
    }
    text += &format!(
        "[[remote]]\nname = 'other'\npublic_key = '{}'\nendpoint = '{}'\nallowed_ips = ['{}/32']\n",
        keys(other)?.public,
        other.outer,
        other.inner_v4
    );
    let (class, keys) = &setup.class;
    text += &format!("[[class]]\nname = '{class}'\n{keys}");
    text += &format!(
        "[[policy]]\nname = '{class}'\nprotocol = 'udp'\ndst_ports = {STREAM_PORT}\naction = 'route'\nclass = '{class}'\n{}",
        setup.more
    );
    Ok(text)
}

impl Managed {
    fn start(site: &Site, other: &Site, setup: &Setup, programs: &Programs) -> Result<Managed> {
        let interface = site.interface.clone();
        let folder = Folder::new(&interface)?;
        folder.write("site.key", &keys(site)?.private)?;
        std::fs::create_dir(folder.file("state"))?;
        folder.write("site.toml", &file(site, other, setup)?)?;
        let mut engine = Command::new(&programs.engine);
        engine.arg("--foreground");
        match setup.control {
            true => engine.arg("--control").arg(folder.file("engine.sock")),
            false => engine.arg("--config").arg(folder.file("site.toml")),
        };
        let engine = site.namespace.spawn(engine)?;
        let mut control = Command::new(&programs.control);
        for (option, file) in [
            ("--site", "site.toml"),
            ("--engine", "engine.sock"),
            ("--socket", "control.sock"),
            ("--state", "state"),
        ] {
            control.arg(option).arg(folder.file(file));
        }
        let control = setup.control.then(|| site.namespace.spawn(control)).transpose()?;
        Ok(Managed {
            control,
            engine,
            interface,
            folder,
        })
    }

    fn log(&self) -> String {
        let control = self.control.as_ref().map_or_else(String::new, Process::log);
        self.engine.log() + &control
    }
}

impl Drop for Managed {
    fn drop(&mut self) {
        if let Some(control) = &mut self.control {
            let _ = control.stop();
        }
        let _ = self.engine.stop();
        // It stays when the engine is gone, and holds nothing up: the namespace goes too.
        let _ = std::fs::remove_file(Path::new(RUNTIME_DIR).join(format!("{}.sock", self.interface)));
    }
}

/// What the engine with this TUN answers to `get=WHAT`.
fn ask(interface: &str, what: &str) -> Result<String> {
    let mut stream = UnixStream::connect(Path::new(RUNTIME_DIR).join(format!("{interface}.sock")))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "get={what}\n\n")?;
    stream.shutdown(Shutdown::Write)?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    Ok(said)
}
