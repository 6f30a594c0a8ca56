//! Stock peers behind two of our links: the one session goes over to the other link when carrier, gateway or inner pings are lost, and back
//! when the better link has worked for long enough. The peers are the real daemons; nobody tells them anything.
//!
//! No figure here is a goal: each test prints how long the traffic was silent, and `PATRONUS_RUNS=20` repeats what it measures.

use patronus_netns::{
    Config, Daemon, DaemonOptions, Keys, Kind, Namespace, Peer, Result, Site, probe, unique_name,
};
use patronus_tests::{Capture, Edge, LIMIT, MessageKind, Need, Stream, endpoint_of, eventually, may_run};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

const PORT: u16 = 51820;
/// Far above what is promised (docs/stock-peers.md), far below the 15 s after which WireGuard looks by itself.
const SOON: Duration = Duration::from_secs(6);
/// With this, the hold is 3 s.
const HURRIED: &[&str] = &["--test-timer-divisor", "10"];

/// Site `a` with two uplinks, behind the router's `down1` and `down2`; site `b`, the peer, behind its `near`. (The engine goes before its namespace.)
struct Net {
    edge: Edge,
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

fn with_length(v6: bool, network: u8, host: u8) -> String {
    format!("{}/{}", outer(v6, network, host), if v6 { 64 } else { 24 })
}

fn site(label: &str, number: u8, at: IpAddr) -> Result<Site> {
    Ok(Site {
        daemon: None,
        namespace: Namespace::new(label)?,
        interface: unique_name("pn"),
        keys: Some(Keys::generate()?),
        outer: SocketAddr::new(at, PORT),
        inner_v4: Ipv4Addr::new(10, 99, 0, number),
        inner_v6: Ipv6Addr::new(0xfd00, 0x99, 0, 0, 0, 0, 0, number.into()),
    })
}

fn raise(site: &Site) -> Result<()> {
    let (namespace, interface) = (&site.namespace, &site.interface);
    namespace.ip(&format!("link set {interface} mtu 1420 up"))?;
    namespace.address(interface, &format!("{}/24", site.inner_v4))?;
    namespace.address(interface, &format!("{}/64", site.inner_v6))
}

fn public(site: &Site) -> &str {
    &site.keys.as_ref().expect("keys").public
}

/// What says where a peer runs, beside the first link being better.
#[derive(Clone, Copy)]
struct Plan<'a> {
    kind: Kind,
    v6: bool,
    /// More keys of the peer's.
    ping: &'a str,
    args: &'a [&'a str],
}

const PLAN: Plan<'_> = Plan {
    kind: Kind::WireguardGo,
    v6: false,
    ping: "",
    args: &[],
};

const PING: &str = "ping = '10.99.0.2'\nping_interval = '200ms'\n";

impl Net {
    fn up(plan: Plan<'_>) -> Net {
        let net = Net::build(plan).unwrap();
        probe(&net.a, &net.b, false, 100, LIMIT)
            .unwrap_or_else(|error| panic!("{error}: {}", net.edge.log()));
        assert_eq!(net.link(), Some(1), "{}", net.edge.log());
        net
    }

    fn build(plan: Plan<'_>) -> Result<Net> {
        let v6 = plan.v6;
        let (mut a, mut b) = (site("a", 1, outer(v6, 1, 1))?, site("b", 2, outer(v6, 3, 1))?);
        let router = Namespace::new("router")?;
        router.sysctl("net.ipv4.ip_forward", "1")?;
        router.sysctl("net.ipv6.conf.all.forwarding", "1")?;
        // The kernel would drop what arrives by the link whose route is not the best one.
        a.namespace.sysctl("net.ipv4.conf.all.rp_filter", "0")?;
        a.namespace.sysctl("net.ipv4.conf.default.rp_filter", "0")?;
        let family = if v6 { "-6 " } else { "" };
        for network in [1, 2] {
            let (up, down) = (format!("up{network}"), format!("down{network}"));
            a.namespace.veth(&up, &router, &down, 1500)?;
            a.namespace.address(&up, &with_length(v6, network, 1))?;
            router.address(&down, &with_length(v6, network, 254))?;
            let (gateway, metric) = (outer(v6, network, 254), 100 * u32::from(network));
            a.namespace.ip(&format!(
                "{family}route add default via {gateway} dev {up} metric {metric}"
            ))?;
        }
        b.namespace.veth("far", &router, "near", 1500)?;
        b.namespace.address("far", &with_length(v6, 3, 1))?;
        router.address("near", &with_length(v6, 3, 254))?;
        b.namespace
            .ip(&format!("{family}route add default via {}", outer(v6, 3, 254)))?;
        let options = match plan.kind {
            Kind::Boringtun => DaemonOptions {
                // A connected socket would not hear us from another address.
                args: vec!["--disable-connected-udp".to_owned()],
                ..DaemonOptions::default()
            },
            _ => DaemonOptions::default(),
        };
        let daemon = Daemon::start(&b.namespace, plan.kind, &b.interface, &options)?;
        daemon.setconf(&Config {
            private: b.keys.as_ref().expect("keys").private.clone(),
            listen_port: Some(PORT),
            fwmark: None,
            peers: vec![Peer {
                public: public(&a).to_owned(),
                allowed_ips: vec![format!("{}/32", a.inner_v4), format!("{}/128", a.inner_v6)],
                ..Peer::default()
            }],
        })?;
        b.daemon = Some(daemon);
        raise(&b)?;
        let links = [1, 2]
            .map(|id| format!("[[link]]\nid = {id}\ninterface = 'up{id}'\n"))
            .concat();
        let text = format!(
            "{links}[[peer]]\nname = 'stock'\npublic_key = '{}'\nendpoint = '{}'\nallowed_ips = ['{}/32', '{}/128']\n{}",
            public(&b),
            b.outer,
            b.inner_v4,
            b.inner_v6,
            plan.ping
        );
        let edge = Edge::start_with(&a.namespace, a.keys.as_ref().expect("keys"), plan.args, &text)?;
        a.interface = edge.interface().to_owned();
        raise(&a)?;
        Ok(Net {
            edge,
            a,
            b,
            router,
            v6,
        })
    }

    /// The link that the peer answers to.
    fn link(&self) -> Option<u8> {
        let at = endpoint_of(self.b.daemon.as_ref()?)?.ip();
        [1, 2]
            .into_iter()
            .find(|network| outer(self.v6, *network, 1) == at)
    }

    fn is_on(&self, link: u8) -> bool {
        eventually(|| self.link() == Some(link))
    }

    fn router(&self, commands: &[String]) {
        for command in commands {
            let family = if self.v6 { "-6 " } else { "" };
            self.router.ip(&format!("{family}{command}")).unwrap();
        }
    }

    /// The router forwards nothing any more by this link, in either direction, and is still there.
    fn path(&self, link: u8, there: bool) {
        let what = if there { "del" } else { "add" };
        let network = with_length(self.v6, link, 0);
        self.router(&[
            format!("rule {what} pref 10{link} iif down{link} blackhole"),
            format!("rule {what} pref 10{link} to {network} blackhole"),
        ]);
    }

    /// It is not there any more, either. The carrier stays.
    fn gateway(&self, link: u8, there: bool) {
        self.path(link, there);
        let address = with_length(self.v6, link, 254);
        match there {
            true => self.router.address(&format!("down{link}"), &address).unwrap(),
            false => self.router(&[format!("address flush dev down{link}")]),
        }
    }

    fn carrier(&self, link: u8, there: bool) {
        let state = if there { "up" } else { "down" };
        self.router.ip(&format!("link set down{link} {state}")).unwrap();
        if there && self.v6 {
            // Went with the interface.
            let address = with_length(true, link, 254);
            self.router.address(&format!("down{link}"), &address).unwrap();
        }
    }

    /// Until both gateways have been asked and have answered: who never has is not missed.
    fn wait_for_gateways(&self) {
        std::thread::sleep(Duration::from_millis(500));
    }

    /// How long the traffic is silent when this happens to the first link, in both directions.
    /// The how-manieth run it is says at which moment between two questions.
    fn silence_of(&self, run: u64, fault: impl FnOnce(&Net)) -> Duration {
        let stream = Stream::start([&self.a, &self.b], false, Duration::from_millis(1)).unwrap();
        // The kernel tells of carriers once a second at most, and the links have just come up.
        std::thread::sleep(Duration::from_millis(1200 + run * 37 % 200));
        let since = Instant::now();
        fault(self);
        assert!(self.is_on(2), "the peer follows: {}", self.edge.log());
        std::thread::sleep(Duration::from_millis(500));
        stream.silences(since).into_iter().max().unwrap()
    }
}

/// Measures as often as `PATRONUS_RUNS` says, once without it.
fn measure(what: &str, plan: Plan<'_>, why: &str, fault: impl Fn(&Net)) {
    if !may_run(&[Need::Daemon(plan.kind)]) {
        return;
    }
    let runs = std::env::var("PATRONUS_RUNS")
        .ok()
        .and_then(|runs| runs.parse().ok());
    let mut silences = Vec::new();
    for run in 0..runs.unwrap_or(1) {
        let net = Net::up(plan);
        let capture = Capture::start(&net.b.namespace).unwrap();
        let silence = net.silence_of(run, &fault);
        assert!(silence < SOON, "{silence:?}: {}", net.edge.log());
        let initiations = capture.count(|datagram| datagram.kind() == MessageKind::Initiation);
        assert_eq!(initiations, 0, "the session went along: {}", net.edge.log());
        assert!(net.edge.log().contains(why), "{}", net.edge.log());
        silences.push(silence.as_millis());
    }
    silences.sort_unstable();
    println!("{what}: silent for {silences:?} ms");
}

#[test]
fn carrier_lost_v4() {
    measure("carrier", PLAN, "by link up2 and no more by up1", |net| {
        net.carrier(1, false)
    });
}

#[test]
fn carrier_lost_v6() {
    let plan = Plan { v6: true, ..PLAN };
    measure("carrier, IPv6", plan, "by link up2 and no more by up1", |net| {
        net.carrier(1, false)
    });
}

#[test]
fn gateway_lost_v4() {
    measure("gateway", PLAN, "the gateway does not answer", |net| {
        net.gateway(1, false)
    });
}

#[test]
fn gateway_lost_v6() {
    let plan = Plan { v6: true, ..PLAN };
    measure("gateway, IPv6", plan, "the gateway does not answer", |net| {
        net.gateway(1, false)
    });
}

/// The path beyond the gateway is cut, which nobody but the pings finds out.
#[test]
fn pings_lost_v4() {
    let plan = Plan { ping: PING, ..PLAN };
    measure("3 pings at 200 ms", plan, "pings are not answered", |net| {
        net.path(1, false)
    });
}

#[test]
fn pings_lost_v6() {
    let plan = Plan {
        ping: "ping = 'fd00:99::2'\nping_interval = '200ms'\n",
        v6: true,
        ..PLAN
    };
    measure("3 pings at 200 ms, IPv6", plan, "pings are not answered", |net| {
        net.path(1, false)
    });
}

/// boringtun is no other than wireguard-go for that.
#[test]
fn gateway_lost_with_boringtun() {
    let plan = Plan {
        kind: Kind::Boringtun,
        ..PLAN
    };
    measure("gateway, boringtun", plan, "the gateway does not answer", |net| {
        net.gateway(1, false)
    });
}

/// Without a word from the first link but that it has worked for the hold, the session goes back; before that it stays, and no packet is lost for the
/// way back.
#[test]
fn the_better_link_is_returned_to() {
    if !may_run(&[Need::Daemon(Kind::WireguardGo)]) {
        return;
    }
    let net = Net::up(Plan {
        args: HURRIED,
        ..PLAN
    });
    net.wait_for_gateways();
    net.gateway(1, false);
    assert!(net.is_on(2), "{}", net.edge.log());
    let mended = Instant::now();
    net.gateway(1, true);
    assert!(net.is_on(1), "{}", net.edge.log());
    // A tenth of 30 s; asked for its gateway once a second.
    assert!(
        mended.elapsed() >= Duration::from_millis(2900),
        "{:?}",
        mended.elapsed()
    );
    assert!(
        net.edge
            .log()
            .contains("by link up1 and no more by up2: it is the better one"),
        "{}",
        net.edge.log()
    );
    probe(&net.b, &net.a, false, 100, LIMIT).unwrap();
}

/// The gateways of both links are silent: nothing moves, and when one is back the session is there.
#[test]
fn without_a_better_link_the_session_stays() {
    if !may_run(&[Need::Daemon(Kind::WireguardGo)]) {
        return;
    }
    let net = Net::up(PLAN);
    net.wait_for_gateways();
    net.gateway(2, false);
    let log = || net.edge.log();
    assert!(
        eventually(|| log().contains("link up2: its gateway")),
        "{}",
        log()
    );
    net.gateway(1, false);
    assert!(
        eventually(|| log().contains("link up1: its gateway")),
        "{}",
        log()
    );
    std::thread::sleep(Duration::from_secs(1));
    assert!(!log().contains("no more by up1"), "{}", log());
    net.gateway(2, true);
    assert!(net.is_on(2), "{}", log());
    probe(&net.b, &net.a, false, 100, LIMIT).unwrap();
}

/// Pings are answered nowhere: each link is tried once, then the session stays where it is and the pings become few. When the peer is back, all is well.
#[test]
fn pings_lost_everywhere_move_the_session_once() {
    if !may_run(&[Need::Daemon(Kind::WireguardGo)]) {
        return;
    }
    let net = Net::up(Plan { ping: PING, ..PLAN });
    let log = || net.edge.log();
    let answers = || net.edge.stats().unwrap().sum("ping-answers-received");
    assert!(eventually(|| answers() > 3));
    net.path(1, false);
    net.path(2, false);
    assert!(
        eventually(|| log().contains("by link up2 and no more by up1: pings")),
        "{}",
        log()
    );
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(log().matches("its session goes by").count(), 1, "{}", log());
    let sent = || net.edge.stats().unwrap().sum("pings-sent");
    let before = sent();
    std::thread::sleep(Duration::from_secs(3));
    let pings = sent() - before;
    assert!((1..=5).contains(&pings), "{pings} in 3 s");
    net.path(2, true);
    probe(&net.b, &net.a, false, 100, LIMIT).unwrap();
    assert!(net.is_on(2), "{}", log());
    assert_eq!(log().matches("its session goes by").count(), 1, "{}", log());
}

/// Pings under traffic, with nothing wrong: nothing moves, and nobody but the engine sees an answer.
#[test]
fn without_a_fault_nothing_moves() {
    if !may_run(&[Need::Daemon(Kind::WireguardGo)]) {
        return;
    }
    let net = Net::up(Plan { ping: PING, ..PLAN });
    let stream = Stream::start([&net.a, &net.b], false, Duration::from_millis(1)).unwrap();
    let since = Instant::now();
    std::thread::sleep(Duration::from_secs(10));
    let silences = stream.silences(since);
    let log = net.edge.log();
    assert!(
        !log.contains("no more by") && !log.contains("does not answer"),
        "{log}"
    );
    let stats = net.edge.stats().unwrap();
    let (sent, answered) = (stats.sum("pings-sent"), stats.sum("ping-answers-received"));
    assert!(sent > 20 && answered + 2 >= sent, "{answered} of {sent}");
    println!("no fault: silent for {silences:?} at most");
}

/// The address of the session's link is another one, as after a DHCP lease that was not renewed: the peer hears of it at once, without a word of traffic.
fn another_address(v6: bool, pause: Duration) {
    if !may_run(&[Need::Daemon(Kind::WireguardGo)]) {
        return;
    }
    let net = Net::up(Plan { v6, ..PLAN });
    let a = &net.a.namespace;
    let old = with_length(v6, 1, 1);
    a.ip(&format!("address del {old} dev up1")).unwrap();
    std::thread::sleep(pause);
    a.address("up1", &with_length(v6, 1, 77)).unwrap();
    let family = if v6 { "-6 " } else { "" };
    let gateway = outer(v6, 1, 254);
    // It went with the address, or not.
    let _ = a.ip(&format!(
        "{family}route add default via {gateway} dev up1 metric 100"
    ));
    let moved = || endpoint_of(net.b.daemon.as_ref().unwrap()).map(|at| at.ip());
    assert!(eventually(
        || moved() == Some(outer(v6, 1, 77)) || moved() == Some(outer(v6, 2, 1))
    ));
    probe(&net.b, &net.a, false, 100, LIMIT).unwrap();
}

#[test]
fn another_address_is_told_v4() {
    another_address(false, Duration::ZERO);
}

#[test]
fn another_address_is_told_v6() {
    another_address(true, Duration::ZERO);
}

#[test]
fn another_address_after_a_while_is_told() {
    another_address(false, Duration::from_secs(2));
}
