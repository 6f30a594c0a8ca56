//! Two sites: a namespace each, a path between them (a veth; a NAT router or a hop in the middle) and a tunnel over it.

use crate::{
    Config, Daemon, DaemonOptions, Error, Hop, HopPlan, Keys, Kind, Namespace, NatTimeouts, Peer, Result,
    masquerade, preshared_key, unique_name,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// The plan of two sites; [`TwoSites::up`] builds it.
#[derive(Clone, Debug)]
pub struct TwoSites {
    /// What runs at site a.
    pub kind_a: Kind,
    /// What runs at site b.
    pub kind_b: Kind,
    /// How it is started at site a.
    pub options_a: DaemonOptions,
    /// How it is started at site b.
    pub options_b: DaemonOptions,
    /// MTU of the tunnel interfaces (with [`Kind::Plain`]: of the veth).
    pub mtu: u32,
    /// MTU of the path.
    pub outer_mtu: u32,
    /// The tunnel runs over IPv6.
    pub v6_outer: bool,
    /// With a pre-shared key.
    pub psk: bool,
    /// Site a is behind a NAT router, so that b learns a's endpoint from its packets.
    pub nat: Option<NatTimeouts>,
    /// A hop in the path, at site a's end of it: its direction a->b leaves site a.
    pub hop: Option<HopPlan>,
    /// Persistent keepalive at site a, seconds.
    pub keepalive_a: Option<u16>,
    /// Persistent keepalive at site b, seconds.
    pub keepalive_b: Option<u16>,
}

impl TwoSites {
    /// Two sites with an MTU of 1420, over IPv4, without pre-shared key.
    pub fn new(kind_a: Kind, kind_b: Kind) -> TwoSites {
        TwoSites {
            kind_a,
            kind_b,
            options_a: DaemonOptions::default(),
            options_b: DaemonOptions::default(),
            mtu: 1420,
            outer_mtu: 1500,
            v6_outer: false,
            psk: false,
            nat: None,
            hop: None,
            keepalive_a: None,
            keepalive_b: None,
        }
    }

    /// Builds it: when this returns, both interfaces are up and packets can be sent (the handshake comes with the first).
    pub fn up(&self) -> Result<Tunnel> {
        let (ns_a, ns_b) = (Namespace::new("a")?, Namespace::new("b")?);
        if (self.kind_a == Kind::Plain) != (self.kind_b == Kind::Plain) {
            return Err(Error::new("no tunnel at one site only"));
        }
        let plain = self.kind_a == Kind::Plain;
        let outer_mtu = if plain { self.mtu } else { self.outer_mtu };
        let Path {
            outer: [outer_a, outer_b],
            router,
            hop,
        } = self.path(&ns_a, &ns_b, outer_mtu)?;
        let site = |namespace, number, outer, interface: &str| Site {
            namespace,
            daemon: None,
            interface: interface.to_owned(),
            keys: None,
            outer: SocketAddr::new(outer, if plain { 0 } else { 51820 }),
            inner_v4: Ipv4Addr::new(10, 77, 0, number),
            inner_v6: Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, u16::from(number)),
        };
        let names = if plain {
            [PATH.to_owned(), PATH.to_owned()]
        } else {
            [(); 2].map(|()| unique_name("pn"))
        };
        let a = site(ns_a, 1, outer_a, &names[0]);
        let b = site(ns_b, 2, outer_b, &names[1]);
        let mut tunnel = Tunnel { hop, a, b, router };
        if !plain {
            self.start(&mut tunnel)?;
        }
        tunnel.a.raise(self.mtu)?;
        tunnel.b.raise(self.mtu)?;
        Ok(tunnel)
    }

    /// The path between the sites, and the outer addresses (RFC 5737 and RFC 3849 documentation networks).
    fn path(&self, a: &Namespace, b: &Namespace, mtu: u32) -> Result<Path> {
        let net = |left: bool, host: u16| -> (IpAddr, &str) {
            match (self.v6_outer, left) {
                (false, true) => (Ipv4Addr::new(192, 0, 2, host as u8).into(), "/24"),
                (false, false) => (Ipv4Addr::new(198, 51, 100, host as u8).into(), "/24"),
                (true, side) => (
                    Ipv6Addr::new(0x2001, 0xdb8, 0, u16::from(!side), 0, 0, 0, host).into(),
                    "/64",
                ),
            }
        };
        let add = |ns: &Namespace, interface: &str, (ip, length): (IpAddr, &str)| {
            ns.address(interface, &format!("{ip}{length}"))
        };
        let join = |other: &Namespace, there: &str| match &self.hop {
            Some(plan) => Hop::between(a, PATH, other, there, mtu, plan).map(Some),
            None => a.veth(PATH, other, there, mtu).map(|()| None),
        };
        let Some(timeouts) = self.nat else {
            let hop = join(b, PATH)?;
            add(a, PATH, net(true, 1))?;
            add(b, PATH, net(true, 2))?;
            return Ok(Path {
                outer: [net(true, 1).0, net(true, 2).0],
                router: None,
                hop,
            });
        };
        let router = Namespace::new("router")?;
        let hop = join(&router, "inside")?;
        b.veth(PATH, &router, "outside", mtu)?;
        add(a, PATH, net(true, 2))?;
        add(&router, "inside", net(true, 1))?;
        add(&router, "outside", net(false, 1))?;
        add(b, PATH, net(false, 2))?;
        a.ip(&format!("route add default via {}", net(true, 1).0))?;
        masquerade(&router, "outside", timeouts)?;
        Ok(Path {
            outer: [net(true, 2).0, net(false, 2).0],
            router: Some(router),
            hop,
        })
    }

    fn start(&self, tunnel: &mut Tunnel) -> Result<()> {
        let keys = [Keys::generate()?, Keys::generate()?];
        let psk = if self.psk { Some(preshared_key()?) } else { None };
        let inner = |site: &Site| vec![format!("{}/32", site.inner_v4), format!("{}/128", site.inner_v6)];
        let peer_a = Peer {
            public: keys[0].public.clone(),
            preshared: psk.clone(),
            endpoint: self.nat.is_none().then_some(tunnel.a.outer),
            allowed_ips: inner(&tunnel.a),
            keepalive: self.keepalive_b,
        };
        let peer_b = Peer {
            public: keys[1].public.clone(),
            preshared: psk,
            endpoint: Some(tunnel.b.outer),
            allowed_ips: inner(&tunnel.b),
            keepalive: self.keepalive_a,
        };
        let [keys_a, keys_b] = keys;
        tunnel.a.start(self.kind_a, &self.options_a, keys_a, peer_b)?;
        tunnel.b.start(self.kind_b, &self.options_b, keys_b, peer_a)
    }
}

/// What is between the sites, and their addresses on it.
struct Path {
    outer: [IpAddr; 2],
    router: Option<Namespace>,
    hop: Option<Hop>,
}

/// The veth's name in both sites.
const PATH: &str = "path";

/// One end of a tunnel.
pub struct Site {
    /// The daemon; `None` with [`Kind::Plain`]. (Dropped before the namespace.)
    pub daemon: Option<Daemon>,
    /// Its namespace.
    pub namespace: Namespace,
    /// The tunnel interface (with [`Kind::Plain`]: the veth).
    pub interface: String,
    /// The daemon's key pair; `None` with [`Kind::Plain`].
    pub keys: Option<Keys>,
    /// Address and port of the daemon on the path.
    pub outer: SocketAddr,
    /// Address in the tunnel.
    pub inner_v4: Ipv4Addr,
    /// Address in the tunnel.
    pub inner_v6: Ipv6Addr,
}

impl Site {
    fn start(&mut self, kind: Kind, options: &DaemonOptions, keys: Keys, peer: Peer) -> Result<()> {
        let daemon = Daemon::start(&self.namespace, kind, &self.interface, options)?;
        daemon.setconf(&Config {
            private: keys.private.clone(),
            listen_port: Some(self.outer.port()),
            fwmark: None,
            peers: vec![peer],
        })?;
        self.daemon = Some(daemon);
        self.keys = Some(keys);
        Ok(())
    }

    fn raise(&self, mtu: u32) -> Result<()> {
        self.namespace
            .ip(&format!("link set {} mtu {mtu} up", self.interface))?;
        self.namespace
            .address(&self.interface, &format!("{}/24", self.inner_v4))?;
        self.namespace
            .address(&self.interface, &format!("{}/64", self.inner_v6))
    }

    /// The address in the tunnel, of the wanted version.
    pub fn inner(&self, v6: bool) -> IpAddr {
        if v6 {
            self.inner_v6.into()
        } else {
            self.inner_v4.into()
        }
    }

    /// The daemon; an error where there is none.
    pub fn daemon(&mut self) -> Result<&mut Daemon> {
        self.daemon
            .as_mut()
            .ok_or_else(|| Error::new("no daemon at this site"))
    }
}

/// Two sites that are up.
pub struct Tunnel {
    /// The hop in the path, if there is one.
    pub hop: Option<Hop>,
    /// Site a, behind the router if there is one.
    pub a: Site,
    /// Site b.
    pub b: Site,
    /// The router between them.
    pub router: Option<Namespace>,
}

impl Tunnel {
    /// The hop; an error where there is none.
    pub fn hop(&mut self) -> Result<&mut Hop> {
        self.hop.as_mut().ok_or_else(|| Error::new("no hop in this path"))
    }

    /// Sends a datagram from a to b and back, repeatedly, until one makes it or `limit` is over; gives the time that it
    /// took from the first attempt (so, on a new tunnel, with the handshake).
    pub fn probe(&self, v6: bool, limit: Duration) -> Result<Duration> {
        probe(&self.a, &self.b, v6, 32, limit)
    }
}

/// As [`Tunnel::probe`], from any site to any other, with a payload of `length` bytes.
pub fn probe(from: &Site, to: &Site, v6: bool, length: usize, limit: Duration) -> Result<Duration> {
    let bind = |site: &Site| {
        site.namespace
            .run(|| UdpSocket::bind((site.inner(v6), 0)))?
            .map_err(Error::from)
    };
    let (near, far) = (bind(from)?, bind(to)?);
    let step = Duration::from_millis(20);
    near.set_read_timeout(Some(step))?;
    far.set_read_timeout(Some(step))?;
    let target = far.local_addr()?;
    let sent: Vec<u8> = (0..length).map(|i| (i as u8).wrapping_mul(31)).collect();
    let mut buffer = vec![0; length + 1];
    let start = Instant::now();
    while start.elapsed() < limit {
        // A daemon that has no session yet may refuse; the next attempt follows.
        let _ = near.send_to(&sent, target);
        let Ok((n, source)) = far.recv_from(&mut buffer) else {
            continue;
        };
        let _ = far.send_to(&buffer[..n], source);
        if near
            .recv_from(&mut buffer)
            .is_ok_and(|(n, _)| buffer[..n] == sent)
        {
            return Ok(start.elapsed());
        }
    }
    let (from, to) = (from.namespace.name(), to.namespace.name());
    Err(Error::new(format!(
        "nothing of {length} bytes from {from} to {to} and back within {limit:?}"
    )))
}
