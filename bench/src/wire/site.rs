//! Two sites with an Ethernet LAN each: a host on the first one's LAN sends, a host on the second one's receives, and the sites' subject is
//! in between. Everything is a veth; the hosts' ends belong to the generator ([`super::traffic`]).

use crate::folder::Folder;
use patronus_io::netlink::Addresses;
use patronus_netns::{
    Config, Daemon, DaemonOptions, Error, Keys, Kind, Namespace, Peer, Process, RUNTIME_DIR, Result,
    cpu_time, prepare_runtime_dir, unique_name,
};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// How a site takes the packets of its LAN and what it does with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The hosts' ends are one veth: what the generator alone costs.
    Direct,
    /// The sites' kernels forward, without a tunnel.
    Forwarded,
    /// A daemon with a TUN; the kernel forwards between LAN and TUN.
    Tun(Kind, &'static [&'static str]),
    /// Our engine with a LAN port and a WAN port of these kinds, and these lines in `[engine]`.
    Ports(&'static str, &'static str, &'static str),
}

/// A subject: its name in tables, rows and options, and what it is.
pub const SUBJECTS: [(&str, Way); 9] = [
    ("direct", Way::Direct),
    ("no-tunnel", Way::Forwarded),
    ("af_xdp", Way::Ports("af_xdp", "af_xdp", "")),
    ("single", Way::Ports("af_xdp", "udp", "offload = false\n")),
    ("socket", Way::Ports("af_xdp", "udp", "")),
    ("af_packet", Way::Ports("af_packet", "udp", "")),
    ("tun-af_xdp", Way::Tun(Kind::Engine, &["--link", "path,af_xdp"])),
    ("tun-single", Way::Tun(Kind::Engine, &["--no-wan-offload"])),
    ("wireguard-go", Way::Tun(Kind::WireguardGo, &[])),
];

const PORT: u16 = 51820;
const WAN: &str = "path";
const LAN: &str = "lan";
/// The hosts' end.
const HOST: &str = "eth0";
/// How long a site may take to be ready.
const READY: Duration = Duration::from_secs(10);

/// A host beside a site.
pub struct Host {
    /// Where it is.
    pub namespace: Namespace,
    /// Its interface's number.
    pub ifindex: u32,
    /// Its link address.
    pub mac: [u8; 6],
    /// Its address.
    pub ip: Ipv4Addr,
}

/// What is between the hosts. (Processes go before namespaces.)
pub struct Rig {
    daemons: Vec<Daemon>,
    engines: Vec<Process>,
    _folders: Vec<Folder>,
    _sites: Vec<Namespace>,
    /// Sends.
    pub near: Host,
    /// Receives.
    pub far: Host,
    /// Link address that the near host sends to.
    pub gateway: [u8; 6],
}

/// A site while it is built.
struct Site {
    namespace: Namespace,
    number: u8,
    interface: String,
    keys: Keys,
}

impl Rig {
    /// Builds it and starts what is to be measured, by `engine` where that is ours.
    pub fn up(way: Way, engine: Option<&Path>) -> Result<Rig> {
        let hosts = [Namespace::new("near")?, Namespace::new("far")?];
        if way == Way::Direct {
            hosts[0].veth(HOST, &hosts[1], HOST, 1500)?;
            let [near, far] = hosts;
            let (near, far) = (Host::new(near, 1)?, Host::new(far, 2)?);
            let gateway = far.mac;
            return Ok(Rig {
                daemons: Vec::new(),
                engines: Vec::new(),
                _folders: Vec::new(),
                _sites: Vec::new(),
                near,
                far,
                gateway,
            });
        }
        let sites = [Site::new(1)?, Site::new(2)?];
        sites[0].namespace.veth(WAN, &sites[1].namespace, WAN, 1500)?;
        let [near, far] = hosts;
        let near = sites[0].with_host(near)?;
        let far = sites[1].with_host(far)?;
        let (mut daemons, mut engines, mut folders) = (Vec::new(), Vec::new(), Vec::new());
        for (site, other) in [(&sites[0], &sites[1]), (&sites[1], &sites[0])] {
            match way {
                Way::Direct => {}
                Way::Forwarded => {
                    let next = other.outer().ip();
                    site.forward(&format!("route add {} via {next}", other.lan_net()))?;
                }
                Way::Tun(kind, args) => daemons.push(site.with_tun(other, kind, args, engine)?),
                Way::Ports(lan, wan, lines) => {
                    let program = engine.ok_or_else(|| Error::new("patronus-engine is not built"))?;
                    let (process, folder) = site.with_file(other, (lan, wan, lines), program)?;
                    engines.push(process);
                    folders.push(folder);
                }
            }
        }
        let gateway = interface(&sites[0].namespace, LAN)?.1;
        Ok(Rig {
            daemons,
            engines,
            _folders: folders,
            _sites: sites.map(|site| site.namespace).into(),
            near,
            far,
            gateway,
        })
    }

    /// CPU time of the sites' daemons so far; `None` where there are none.
    pub fn cpu(&self) -> Result<Option<Duration>> {
        let daemons = self.daemons.iter().map(Daemon::pid);
        let pids: Vec<u32> = daemons.chain(self.engines.iter().map(Process::pid)).collect();
        if pids.is_empty() {
            return Ok(None);
        }
        pids.into_iter().map(cpu_time).sum::<Result<Duration>>().map(Some)
    }

    /// What the engines said.
    pub fn log(&self) -> String {
        self.engines.iter().map(Process::log).collect()
    }
}

impl Host {
    fn new(namespace: Namespace, number: u8) -> Result<Host> {
        let ip = Ipv4Addr::new(10, number, 0, 2);
        namespace.address(HOST, &format!("{ip}/24"))?;
        let (ifindex, mac) = interface(&namespace, HOST)?;
        Ok(Host {
            namespace,
            ifindex,
            mac,
            ip,
        })
    }
}

impl Site {
    fn new(number: u8) -> Result<Site> {
        let namespace = Namespace::new("site")?;
        Ok(Site {
            namespace,
            number,
            interface: unique_name("pn"),
            keys: Keys::generate()?,
        })
    }

    fn outer(&self) -> SocketAddr {
        SocketAddr::new(Ipv4Addr::new(192, 0, 2, self.number).into(), PORT)
    }

    fn lan_net(&self) -> String {
        format!("10.{}.0.0/24", self.number)
    }

    /// Joins a host to this site's LAN, and gives the site its addresses.
    fn with_host(&self, host: Namespace) -> Result<Host> {
        self.namespace.veth(LAN, &host, HOST, 1500)?;
        self.namespace
            .address(LAN, &format!("10.{}.0.1/24", self.number))?;
        self.namespace
            .address(WAN, &format!("{}/24", self.outer().ip()))?;
        let host = Host::new(host, self.number)?;
        host.namespace
            .ip(&format!("route add default via 10.{}.0.1", self.number))?;
        Ok(host)
    }

    /// Makes the kernel a router, with one more route.
    fn forward(&self, route: &str) -> Result<()> {
        self.namespace.sysctl("net.ipv4.ip_forward", "1")?;
        self.namespace.ip(route)?;
        Ok(())
    }

    fn with_tun(&self, other: &Site, kind: Kind, args: &[&str], engine: Option<&Path>) -> Result<Daemon> {
        let ours = kind == Kind::Engine;
        let options = DaemonOptions {
            program: engine.filter(|_| ours).map(Path::to_owned),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            env: Vec::new(),
        };
        let daemon = Daemon::start(&self.namespace, kind, &self.interface, &options)?;
        daemon.setconf(&Config {
            private: self.keys.private.clone(),
            listen_port: Some(PORT),
            fwmark: None,
            peers: vec![Peer {
                public: other.keys.public.clone(),
                endpoint: Some(other.outer()),
                allowed_ips: vec![other.lan_net()],
                ..Peer::default()
            }],
        })?;
        self.namespace
            .ip(&format!("link set {} mtu 1420 up", self.interface))?;
        self.forward(&format!("route add {} dev {}", other.lan_net(), self.interface))?;
        Ok(daemon)
    }

    /// Our engine, whose file has what is to be measured.
    fn with_file(
        &self,
        other: &Site,
        (lan, wan, lines): (&str, &str, &str),
        program: &Path,
    ) -> Result<(Process, Folder)> {
        let folder = Folder::new(&self.interface)?;
        folder.write("site.key", &self.keys.private)?;
        let (own, there) = (self.lan_net(), other.lan_net());
        let file = folder.write(
            "site.toml",
            &format!(
                "[site]\nprivate_key_file = 'site.key'\nlisten_port = {PORT}\n\
                 [engine]\ninterface = '{}'\n{lines}\
                 [[link]]\nid = 1\ninterface = '{WAN}'\nport = '{wan}'\n\
                 [[lan]]\nname = 'inside'\nport = '{lan}'\ninterface = '{LAN}'\nnetworks = ['{own}']\n\
                 [[peer]]\nname = 'other'\npublic_key = '{}'\nendpoint = '{}'\nallowed_ips = ['{there}']\n",
                self.interface,
                other.keys.public,
                other.outer()
            ),
        )?;
        prepare_runtime_dir()?;
        let mut command = Command::new(program);
        command.args(["--foreground", "--config"]).arg(file);
        let mut process = self.namespace.spawn(command)?;
        let socket = Path::new(RUNTIME_DIR).join(format!("{}.sock", self.interface));
        let start = Instant::now();
        while !socket.exists() {
            if process.ended().is_some() || start.elapsed() > READY {
                return Err(Error::new(format!("the engine is not ready: {}", process.log())));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.namespace.ip(&format!("link set {} up", self.interface))?;
        Ok((process, folder))
    }
}

/// An interface's number and link address.
fn interface(namespace: &Namespace, name: &str) -> Result<(u32, [u8; 6])> {
    let found = namespace.run(|| {
        let ifindex = nix::net::if_::if_nametoindex(name)?;
        let mac = Addresses::new()?.interface(ifindex).and_then(|found| found.mac);
        Ok::<_, std::io::Error>(mac.map(|mac| (ifindex, mac)))
    })??;
    found.ok_or_else(|| Error::new(format!("{name} has no link address")))
}
