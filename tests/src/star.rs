//! A hub with several peers.

use crate::engine_options;
use crate::lab::OUTER;
use patronus_netns::{Config, Daemon, DaemonOptions, Keys, Kind, Namespace, Peer, Result, Site, unique_name};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

/// The engine in the middle, a veth to each spoke, each spoke a peer of the hub. The spokes reach one another through
/// the hub, which forwards.
pub struct Star {
    /// The hub. Its inner addresses end in 254 (fe).
    pub hub: Site,
    /// The spokes, in the order of their kinds. Their inner addresses end in 1, 2, and so on.
    pub spokes: Vec<Site>,
}

/// A spoke's plan: what runs there, and the networks beside its own address that the hub routes to it.
pub type Spoke<'a> = (Kind, &'a [&'a str]);

const PORT: u16 = 51820;

impl Star {
    /// Builds it. `args` are more arguments for the engines.
    pub fn up(plan: &[Spoke<'_>], args: &[&str]) -> Result<Star> {
        let mut hub = site(Namespace::new("hub")?, Kind::Engine, 254, args)?;
        let mut spokes = Vec::new();
        let mut peers = Vec::new();
        for (number, (kind, more)) in (1u8..).zip(plan) {
            let mut spoke = site(Namespace::new("spoke")?, *kind, number, args)?;
            let near = format!("{OUTER}{number}");
            hub.namespace.veth(&near, &spoke.namespace, OUTER, 1500)?;
            let at = |host| Ipv4Addr::new(192, 0, number, host);
            hub.namespace.address(&near, &format!("{}/24", at(254)))?;
            spoke.namespace.address(OUTER, &format!("{}/24", at(1)))?;
            spoke.outer = SocketAddr::new(at(1).into(), PORT);
            let mut allowed = vec![
                format!("{}/32", spoke.inner_v4),
                format!("{}/128", spoke.inner_v6),
            ];
            allowed.extend(more.iter().map(|network| (*network).to_owned()));
            peers.push(peer_of(&spoke, allowed));
            let everything = vec!["10.0.0.0/8".to_owned(), "fd00::/16".to_owned()];
            hub.outer = SocketAddr::new(at(254).into(), PORT);
            configure(&mut spoke, vec![peer_of(&hub, everything)])?;
            spokes.push(spoke);
        }
        hub.namespace.sysctl("net.ipv4.ip_forward", "1")?;
        hub.namespace.sysctl("net.ipv6.conf.all.forwarding", "1")?;
        configure(&mut hub, peers)?;
        Ok(Star { hub, spokes })
    }
}

fn site(namespace: Namespace, kind: Kind, number: u8, args: &[&str]) -> Result<Site> {
    let options = match kind {
        Kind::Engine => engine_options(args),
        _ => DaemonOptions::default(),
    };
    let interface = unique_name("pn");
    let daemon = Daemon::start(&namespace, kind, &interface, &options)?;
    Ok(Site {
        daemon: Some(daemon),
        namespace,
        interface,
        keys: Some(Keys::generate()?),
        outer: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), PORT),
        inner_v4: Ipv4Addr::new(10, 88, 0, number),
        inner_v6: Ipv6Addr::new(0xfd00, 0x88, 0, 0, 0, 0, 0, number.into()),
    })
}

fn peer_of(site: &Site, allowed_ips: Vec<String>) -> Peer {
    Peer {
        public: site.keys.as_ref().expect("every site has keys").public.clone(),
        endpoint: Some(site.outer),
        allowed_ips,
        ..Peer::default()
    }
}

fn configure(site: &mut Site, peers: Vec<Peer>) -> Result<()> {
    let config = Config {
        private: site.keys.as_ref().expect("every site has keys").private.clone(),
        listen_port: Some(PORT),
        fwmark: None,
        peers,
    };
    site.daemon()?.setconf(&config)?;
    let (namespace, interface) = (&site.namespace, &site.interface);
    namespace.ip(&format!("link set {interface} mtu 1420 up"))?;
    namespace.address(interface, &format!("{}/32", site.inner_v4))?;
    namespace.address(interface, &format!("{}/128", site.inner_v6))?;
    namespace.ip(&format!("route add 10.0.0.0/8 dev {interface}"))?;
    namespace.ip(&format!("-6 route add fd00::/16 dev {interface}"))?;
    Ok(())
}
