//! WAN links: a site with two uplinks, each with a default route of its own, and a peer behind the routers of both.

use patronus_netns::{
    Config, Daemon, DaemonOptions, Keys, Kind, Namespace, Peer, Result, Site, probe, unique_name,
};
use patronus_tests::{
    Capture, Datagram, LIMIT, MessageKind, endpoint_of, engine_options, eventually, may_run, stats,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

const PORT: u16 = 51820;

/// Site `a` with interfaces `up1` and `up2`, behind the router's `down1` and `down2`; site `b` behind its `far`.
struct Uplinks {
    a: Site,
    b: Site,
    router: Namespace,
    v6: bool,
}

/// An address in network 1 or 2 (the uplinks) or 3 (the peer's).
fn outer(v6: bool, network: u8, host: u8) -> IpAddr {
    match v6 {
        false => Ipv4Addr::new(198, 18, network, host).into(),
        true => Ipv6Addr::new(0x2001, 0xdb8, 0, network.into(), 0, 0, 0, host.into()).into(),
    }
}

fn site(namespace: Namespace, kind: Kind, number: u8, options: &DaemonOptions, at: IpAddr) -> Result<Site> {
    let interface = unique_name("pn");
    let daemon = Daemon::start(&namespace, kind, &interface, options)?;
    Ok(Site {
        daemon: Some(daemon),
        namespace,
        interface,
        keys: Some(Keys::generate()?),
        outer: SocketAddr::new(at, PORT),
        inner_v4: Ipv4Addr::new(10, 99, 0, number),
        inner_v6: Ipv6Addr::new(0xfd00, 0x99, 0, 0, 0, 0, 0, number.into()),
    })
}

fn configure(site: &Site, peer: &Site, endpoint: Option<SocketAddr>) -> Result<()> {
    let peer = Peer {
        public: peer.keys.as_ref().expect("keys").public.clone(),
        preshared: None,
        endpoint,
        allowed_ips: vec![format!("{}/32", peer.inner_v4), format!("{}/128", peer.inner_v6)],
        keepalive: None,
    };
    site.daemon.as_ref().expect("a daemon").setconf(&Config {
        private: site.keys.as_ref().expect("keys").private.clone(),
        listen_port: Some(PORT),
        fwmark: None,
        peers: vec![peer],
    })?;
    site.namespace
        .ip(&format!("link set {} mtu 1420 up", site.interface))?;
    site.namespace
        .address(&site.interface, &format!("{}/24", site.inner_v4))?;
    site.namespace
        .address(&site.interface, &format!("{}/64", site.inner_v6))
}

impl Uplinks {
    /// `far` is what runs at `b`; `links` are more links of `a`, `args` more arguments for the engines.
    fn up(v6: bool, far: Kind, links: &[&str], args: &[&str]) -> Result<Uplinks> {
        let (a, b, router) = (
            Namespace::new("a")?,
            Namespace::new("b")?,
            Namespace::new("router")?,
        );
        let (length, family) = if v6 { (64, "-6 ") } else { (24, "") };
        router.sysctl("net.ipv4.ip_forward", "1")?;
        router.sysctl("net.ipv6.conf.all.forwarding", "1")?;
        // The kernel would drop what arrives by the link whose route is not the best one.
        a.sysctl("net.ipv4.conf.all.rp_filter", "0")?;
        a.sysctl("net.ipv4.conf.default.rp_filter", "0")?;
        for network in [1, 2] {
            a.veth(&format!("up{network}"), &router, &format!("down{network}"), 1500)?;
            a.address(
                &format!("up{network}"),
                &format!("{}/{length}", outer(v6, network, 1)),
            )?;
            router.address(
                &format!("down{network}"),
                &format!("{}/{length}", outer(v6, network, 254)),
            )?;
            let gateway = outer(v6, network, 254);
            let metric = 100 * u32::from(network);
            a.ip(&format!(
                "{family}route add default via {gateway} dev up{network} metric {metric}"
            ))?;
        }
        b.veth("far", &router, "near", 1500)?;
        b.address("far", &format!("{}/{length}", outer(v6, 3, 1)))?;
        router.address("near", &format!("{}/{length}", outer(v6, 3, 254)))?;
        b.ip(&format!("{family}route add default via {}", outer(v6, 3, 254)))?;
        let links = ["up1", "up2"]
            .iter()
            .chain(links)
            .flat_map(|link| ["--link", *link]);
        let options = engine_options(&links.chain(args.iter().copied()).collect::<Vec<_>>());
        let a = site(a, Kind::Engine, 1, &options, outer(v6, 1, 1))?;
        let options = match far {
            Kind::Engine => engine_options(args),
            _ => DaemonOptions::default(),
        };
        let b = site(b, far, 2, &options, outer(v6, 3, 1))?;
        configure(&a, &b, Some(b.outer))?;
        configure(&b, &a, None)?;
        Ok(Uplinks { a, b, router, v6 })
    }

    /// What `a` sends from its address in this network.
    fn from(&self, network: u8) -> impl Fn(&Datagram) -> bool {
        let source = outer(self.v6, network, 1);
        move |datagram| datagram.source.ip() == source
    }

    fn cut(&self, network: u8) {
        self.router.ip(&format!("link set down{network} down")).unwrap();
    }

    fn mend(&self, network: u8) {
        let down = format!("down{network}");
        self.router.ip(&format!("link set {down} up")).unwrap();
        if self.v6 {
            // Went with the interface.
            let gateway = format!("{}/64", outer(true, network, 254));
            self.router.address(&down, &gateway).unwrap();
        }
    }

    fn at_a(&self) -> &Daemon {
        self.a.daemon.as_ref().unwrap()
    }

    fn at_b(&self) -> &Daemon {
        self.b.daemon.as_ref().unwrap()
    }
}

/// The tunnel uses one link, goes over to the other within the time of a few packets when the carrier is lost, and needs no handshake for it.
fn a_lost_carrier_moves_the_tunnel(v6: bool, far: Kind) {
    let net = Uplinks::up(v6, far, &[], &[]).unwrap();
    let capture = Capture::start(&net.b.namespace).unwrap();
    probe(&net.a, &net.b, false, 100, LIMIT).unwrap();
    probe(&net.a, &net.b, true, 100, LIMIT).unwrap();
    assert!(capture.count(net.from(1)) > 0);
    assert_eq!(capture.count(net.from(2)), 0, "one link at a time");

    capture.clear();
    net.cut(1);
    let gap = probe(&net.a, &net.b, false, 100, LIMIT).unwrap();
    assert!(capture.count(net.from(2)) > 0);
    assert_eq!(capture.count(|d| d.kind() == MessageKind::Initiation), 0);
    assert!(gap < Duration::from_secs(2), "{gap:?}");
    let moved = SocketAddr::new(outer(v6, 2, 1), PORT);
    assert!(
        eventually(|| endpoint_of(net.at_b()) == Some(moved)),
        "the peer follows"
    );

    // Nothing was sent from `a` for that: what comes from `b` finds it.
    probe(&net.b, &net.a, false, 100, LIMIT).unwrap();

    // The first link comes back: the tunnel stays where it is, and has it when the second one goes.
    net.mend(1);
    assert!(eventually(
        || stats(net.at_a()).is_ok_and(|all| all.has("up1.udp0.tx_packets"))
    ));
    capture.clear();
    net.cut(2);
    probe(&net.a, &net.b, false, 100, LIMIT).unwrap();
    assert!(capture.count(net.from(1)) > 0);
}

#[test]
fn a_lost_carrier_moves_the_tunnel_v4() {
    if !may_run(&[]) {
        return;
    }
    a_lost_carrier_moves_the_tunnel(false, Kind::Engine);
}

#[test]
fn a_lost_carrier_moves_the_tunnel_v6() {
    if !may_run(&[]) {
        return;
    }
    a_lost_carrier_moves_the_tunnel(true, Kind::Engine);
}

/// The same with an implementation that knows nothing of links.
#[test]
fn a_stock_peer_follows() {
    if !may_run(&[patronus_tests::Need::Daemon(Kind::WireguardGo)]) {
        return;
    }
    a_lost_carrier_moves_the_tunnel(false, Kind::WireguardGo);
}

/// Nothing says that the path is dead: the handshake that the silence brings about finds the other link.
#[test]
fn a_dead_path_is_left_by_the_next_handshake() {
    if !may_run(&[]) {
        return;
    }
    let net = Uplinks::up(false, Kind::Engine, &[], &["--test-timer-divisor", "10"]).unwrap();
    probe(&net.a, &net.b, false, 100, LIMIT).unwrap();
    let hole = "table inet hole {\n chain through {\n type filter hook forward priority 0;\n iifname down1 drop\n oifname down1 drop\n }\n}\n";
    net.router
        .exec_with_input("nft", &["-f", "-"], hole.as_bytes())
        .unwrap();
    let capture = Capture::start(&net.b.namespace).unwrap();
    probe(&net.a, &net.b, false, 100, LIMIT).unwrap();
    // When silence began is not known: the first packets may have left something unanswered.
    let by_second = capture.seen().into_iter().find(net.from(2));
    let by_second = by_second.expect("something came by the other link");
    assert_eq!(by_second.kind(), MessageKind::Initiation, "{}", net.at_a().log());
    let moved = SocketAddr::new(outer(false, 2, 1), PORT);
    assert!(eventually(|| endpoint_of(net.at_b()) == Some(moved)));
}

/// A link that is not there when the engine starts is used when it comes.
#[test]
fn a_link_may_come_later() {
    if !may_run(&[]) {
        return;
    }
    let net = Uplinks::up(false, Kind::Engine, &["later"], &[]).unwrap();
    net.cut(1);
    net.cut(2);
    assert!(eventually(
        || stats(net.at_a()).is_ok_and(|all| all.sum(".tx_packets") == 0)
    ));
    net.a.namespace.veth("later", &net.router, "down4", 1500).unwrap();
    net.a.namespace.address("later", "198.18.4.1/24").unwrap();
    net.router.address("down4", "198.18.4.254/24").unwrap();
    net.a
        .namespace
        .ip("route add default via 198.18.4.254 dev later metric 50")
        .unwrap();
    probe(&net.a, &net.b, false, 100, LIMIT).unwrap();
    assert_eq!(
        endpoint_of(net.at_b()),
        Some(SocketAddr::new(Ipv4Addr::new(198, 18, 4, 1).into(), PORT))
    );
}

/// The interface of a link by AF_XDP is not there when the engine starts, comes, is deleted and made again: it is AF_XDP each time, and its counters go on.
#[test]
fn an_af_xdp_link_may_be_made_again() {
    if !may_run(&[]) {
        return;
    }
    let net = Uplinks::up(false, Kind::Engine, &["later,af_xdp"], &[]).unwrap();
    net.cut(1);
    net.cut(2);
    let mut by_queue = 0;
    for _ in 0..3 {
        net.a.namespace.veth("later", &net.router, "down4", 1500).unwrap();
        net.a.namespace.address("later", "198.18.4.1/24").unwrap();
        net.router.address("down4", "198.18.4.254/24").unwrap();
        let way = "route add default via 198.18.4.254 dev later metric 50";
        net.a.namespace.ip(way).unwrap();
        probe(&net.a, &net.b, false, 100, LIMIT).unwrap();
        let sent = || stats(net.at_a()).unwrap();
        let before = by_queue;
        let goes_by_queue = || {
            probe(&net.a, &net.b, false, 100, LIMIT).unwrap();
            by_queue = match sent().has("later.queue0.tx_packets") {
                true => sent().sum("later.queue0.tx_packets"),
                false => 0,
            };
            by_queue > before + 10
        };
        assert!(eventually(goes_by_queue), "{:?}", sent());
        net.a.namespace.ip("link del later").unwrap();
        let log = || net.a.daemon.as_ref().unwrap().log();
        assert!(eventually(|| log().contains("link later does not run")));
        assert!(
            sent().sum("later.queue0.tx_packets") >= by_queue,
            "they do not vanish"
        );
        by_queue = sent().sum("later.queue0.tx_packets");
    }
}

/// A link that has a carrier and loses its route: the other one is used at once, and it is said once.
fn a_lost_route_moves_the_tunnel(v6: bool) {
    if !may_run(&[]) {
        return;
    }
    let net = Uplinks::up(v6, Kind::Engine, &[], &[]).unwrap();
    probe(&net.a, &net.b, false, 100, LIMIT).unwrap();
    let family = if v6 { "-6 " } else { "" };
    let default = |what: &str, network: u8| {
        let gateway = outer(v6, network, 254);
        let metric = 100 * u32::from(network);
        let route = format!("{family}route {what} default via {gateway} dev up{network} metric {metric}");
        net.a.namespace.ip(&route).unwrap();
    };
    let at = |network| {
        move |there: Option<SocketAddr>| there == Some(SocketAddr::new(outer(v6, network, 1), PORT))
    };
    assert!(at(1)(endpoint_of(net.at_b())));
    for network in [1, 2, 1] {
        default("del", network);
        let other = 3 - network;
        assert!(eventually(|| at(other)(endpoint_of(net.at_b()))), "{network}");
        let gap = probe(&net.a, &net.b, false, 100, LIMIT).unwrap();
        // No handshake had to find it: that would have been after 15 seconds.
        assert!(gap < Duration::from_secs(5), "{gap:?}");
        default("add", network);
    }
    let log = net.a.daemon.as_ref().unwrap().log();
    assert_eq!(
        log.matches("link up1 has a carrier and no route").count(),
        2,
        "{log}"
    );
    assert_eq!(
        log.matches("link up2 has a carrier and no route").count(),
        1,
        "{log}"
    );
}

#[test]
fn a_lost_route_moves_the_tunnel_v4() {
    a_lost_route_moves_the_tunnel(false);
}

#[test]
fn a_lost_route_moves_the_tunnel_v6() {
    a_lost_route_moves_the_tunnel(true);
}
