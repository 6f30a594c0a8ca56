//! Ports over DPDK of a running engine, from its file (docs/dpdk.md): LANs and links over a kernel's interface and over memory shared with another engine, the host's share of
//! their packets, and devices that go and come back.
//!
//! They need an engine that was built with DPDK: `scripts/test dpdk` builds one and runs them. With PATRONUS_DPDK_NO_HUGE=1 everything runs without huge pages.

use patronus_netns::{
    Config, Daemon, DaemonOptions, Keys, Kind, Namespace, Peer, Process, Site, probe, unique_name,
};
use patronus_tests::{Edge, Flow, LIMIT, Need, eventually, may_run, ping, tcp};
use std::fs::Permissions;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

const PORT: u16 = 51820;

/// What a file says of DPDK, and of a device on the kernel's interface `nic`.
fn dpdk() -> String {
    let huge = std::env::var_os("PATRONUS_DPDK_NO_HUGE").is_none() && free_huge_pages() >= 150;
    format!("[dpdk]\nhuge_pages = {huge}\n")
}

fn free_huge_pages() -> u32 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("HugePages_Free:"));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

fn over(nic: &str, queues: u32) -> String {
    format!(
        "port = 'dpdk'\ndevice = 'net_af_packet0,iface={nic},qpairs={queues},blocksz=28672,framesz=1792,framecnt=512'\n"
    )
}

/// A veth pair whose end `nic` here is a NIC: nothing of the kernel's answers there.
fn nic(here: &Namespace, nic: &str, other: &Namespace, there: &str) {
    here.veth(nic, other, there, 1500).unwrap();
    // What packet sockets have taken the kernel sees as well.
    let rules = format!(
        "table netdev {nic} {{\n}}\ndelete table netdev {nic}\n\
         table netdev {nic} {{\nchain every {{\ntype filter hook ingress device {nic} priority 0; policy drop;\n}}\n}}\n"
    );
    here.exec_with_input("nft", &["-f", "-"], rules.as_bytes())
        .unwrap();
    here.ip(&format!("link set {nic} addrgenmode none")).unwrap();
    here.ip(&format!("address flush dev {nic}")).unwrap();
    // Packet sockets of DPDK's cut super-packets off.
    other.ip(&format!("link set {there} gso_max_segs 1")).unwrap();
}

fn site(namespace: Namespace, number: u8) -> Site {
    Site {
        daemon: None,
        namespace,
        interface: unique_name("pn"),
        keys: None,
        outer: SocketAddr::new(Ipv4Addr::new(192, 0, 2, number).into(), PORT),
        inner_v4: Ipv4Addr::new(192, 168, number, 2),
        inner_v6: Ipv6Addr::new(0xfd00, number.into(), 0, 0, 0, 0, 0, 2),
    }
}

fn networks(number: u8) -> [String; 2] {
    [format!("192.168.{number}.0/24"), format!("fd00:{number}::/64")]
}

fn peer(key: &str, endpoint: Option<SocketAddr>, number: u8) -> String {
    let endpoint = endpoint.map_or(String::new(), |at| format!("endpoint = '{at}'\n"));
    format!(
        "[[peer]]\npublic_key = '{key}'\nallowed_ips = {:?}\n{endpoint}",
        networks(number)
    )
}

/// A stock peer at 192.0.2.2 with the networks of number 2 behind it, that calls nobody.
fn stock_peer(namespace: Namespace, keys: &Keys, other: &Keys) -> Site {
    let mut site = site(namespace, 2);
    let daemon = Daemon::start(
        &site.namespace,
        Kind::WireguardGo,
        &site.interface,
        &DaemonOptions::default(),
    )
    .unwrap();
    daemon
        .setconf(&Config {
            private: keys.private.clone(),
            listen_port: Some(PORT),
            fwmark: None,
            peers: vec![Peer {
                public: other.public.clone(),
                allowed_ips: networks(1).to_vec(),
                ..Peer::default()
            }],
        })
        .unwrap();
    site.daemon = Some(daemon);
    let name = &site.interface;
    site.namespace
        .ip(&format!("link set {name} mtu 1420 up"))
        .unwrap();
    let inner = [format!("{}/24", site.inner_v4), format!("{}/64", site.inner_v6)];
    for address in inner {
        site.namespace.address(name, &address).unwrap();
    }
    for network in networks(1) {
        site.namespace
            .ip(&format!("route add {network} dev {name}"))
            .unwrap();
    }
    site
}

/// Small and large packets, both ways, in both families.
fn exchange(a: &Site, b: &Site) {
    for v6 in [false, true] {
        probe(a, b, v6, 32, LIMIT).unwrap();
        tcp(a, b, v6, 1 << 20).unwrap();
        tcp(b, a, v6, 1 << 20).unwrap();
    }
    let said = ping(&a.namespace, &format!("-c 3 -i 0.2 -s 1300 {}", b.inner_v4)).unwrap();
    assert!(said.contains(" 0% packet loss"), "{said}");
}

/// Until packets go through again.
fn recovers(a: &Site, b: &Site) {
    probe(a, b, false, 32, LIMIT).unwrap();
    probe(b, a, true, 32, LIMIT).unwrap();
}

/// Sets the interface up that the engine makes, with these addresses.
fn raise(edge: &Edge, namespace: &Namespace, interface: &str, addresses: &[&str]) {
    let up = format!("link set {interface} up");
    assert!(
        eventually(|| namespace.ip(&up).is_ok()),
        "there is no {interface}: {}",
        edge.log()
    );
    for address in addresses {
        namespace.address(interface, address).unwrap();
    }
}

const ROUTER: [&str; 2] = ["192.168.1.1/24", "fd00:1::1/64"];

/// A host on an engine's LAN over DPDK, and a stock peer behind its UDP socket. (What runs goes before namespaces.)
struct Office {
    edge: Edge,
    host: Site,
    peer: Site,
    namespace: Namespace,
}

/// The network at the other end of `nic`, whose default route is the engine.
fn join(office: &Namespace, host: &Namespace) {
    nic(office, "nic", host, "eth0");
    for (address, router) in [("192.168.1.2/24", "192.168.1.1"), ("fd00:1::2/64", "fd00:1::1")] {
        host.address("eth0", address).unwrap();
        let family = if router.contains(':') { "-6 " } else { "" };
        host.ip(&format!("{family}route add default via {router}"))
            .unwrap();
    }
}

fn office(workers: u32) -> Office {
    let (namespace, host) = (Namespace::new("edge").unwrap(), Namespace::new("host").unwrap());
    let (ours, theirs) = (Keys::generate().unwrap(), Keys::generate().unwrap());
    join(&namespace, &host);
    let far = Namespace::new("peer").unwrap();
    namespace.veth("path", &far, "path", 1500).unwrap();
    namespace.address("path", "192.0.2.1/24").unwrap();
    far.address("path", "192.0.2.2/24").unwrap();
    let peer_site = stock_peer(far, &theirs, &ours);
    let text = format!(
        "workers = {workers}\n{}[[lan]]\nname = 'office'\ninterface = 'lan0'\n{}{}",
        dpdk(),
        over("nic", workers),
        peer(&theirs.public, Some(peer_site.outer), 2)
    );
    let edge = Edge::start(&namespace, &ours, &text).unwrap();
    raise(&edge, &namespace, "lan0", &ROUTER);
    Office {
        edge,
        host: site(host, 1),
        peer: peer_site,
        namespace,
    }
}

#[test]
fn a_lan_reaches_a_stock_peer() {
    if !may_run(&[Need::Dpdk, Need::Daemon(Kind::WireguardGo)]) {
        return;
    }
    let office = office(1);
    exchange(&office.host, &office.peer);
    let flow = Flow::start(&office.host, &office.peer, false, Duration::from_micros(500)).unwrap();
    let received = flow.run_for(Duration::from_secs(1));
    assert!(received.sent > 200 && !received.duplicated(), "{received:?}");
    // A busy machine may drop some of them in the kernel's rings.
    assert!(
        received.lost() * 10 < received.sent,
        "{} of {}",
        received.lost(),
        received.sent
    );
    let stats = office.edge.stats().unwrap();
    for count in ["lan0.queue0.rx_packets", "lan0.queue0.tx_packets"] {
        assert!(stats.sum(count) > 500, "{count}: {stats:?}");
    }
}

/// Each has a pair of the device's queues; the kernel, which stands for a card's hash here, spreads flows over them.
#[test]
fn several_workers_share_a_device() {
    if !may_run(&[Need::Dpdk, Need::Daemon(Kind::WireguardGo)]) {
        return;
    }
    let office = office(2);
    exchange(&office.host, &office.peer);
    let both_have_some = || {
        tcp(&office.host, &office.peer, false, 10_000).unwrap();
        let stats = office.edge.stats().unwrap();
        let received = |queue| stats.sum(&format!("lan0.queue{queue}.rx_packets"));
        received(0) > 0 && received(1) > 0
    };
    assert!(eventually(both_have_some), "{:?}", office.edge.stats());
}

/// What is for the host itself is the host's, as on any interface.
#[test]
fn the_host_keeps_what_is_its_own() {
    if !may_run(&[Need::Dpdk, Need::Daemon(Kind::WireguardGo)]) {
        return;
    }
    let office = office(1);
    for address in ["192.168.1.1", "fd00:1::1"] {
        let answered = || {
            let said = ping(&office.host.namespace, &format!("-c 1 -W 1 {address}")).unwrap();
            said.contains(" 0% packet loss") && !said.contains("DUP")
        };
        assert!(eventually(answered), "{address}: {}", office.edge.log());
    }
    // An address that comes later, too.
    office.namespace.address("lan0", "192.168.1.77/24").unwrap();
    let answered = || {
        let said = ping(&office.host.namespace, "-c 1 -W 1 192.168.1.77").unwrap();
        said.contains(" 0% packet loss")
    };
    assert!(eventually(answered), "{}", office.edge.log());
    let stats = office.edge.stats().unwrap();
    assert!(stats.sum("lan0.host.tx_packets") > 3, "{stats:?}");
}

/// FRR's zebra and bgpd in a namespace, with files of their own.
struct Frr {
    _daemons: [Process; 2],
    folder: PathBuf,
}

impl Frr {
    const BGPD: &str = "/usr/lib/frr/bgpd";
    const ZEBRA: &str = "/usr/lib/frr/zebra";

    /// A router of this autonomous system at this address that announces a network to a neighbour.
    fn start(
        namespace: &Namespace,
        number: u32,
        address: &str,
        network: &str,
        neighbour: (&str, u32),
    ) -> Frr {
        let folder = std::env::temp_dir().join(unique_name("frr"));
        std::fs::create_dir(&folder).unwrap();
        // They become a user of their own.
        std::fs::set_permissions(&folder, Permissions::from_mode(0o777)).unwrap();
        let (to, other) = neighbour;
        // Hold times are the default, three minutes: what goes sooner went with the carrier.
        let bgp = format!(
            "router bgp {number}\n bgp router-id {address}\n no bgp ebgp-requires-policy\n no bgp network import-check\n \
             neighbor {to} remote-as {other}\n neighbor {to} timers connect 1\n \
             address-family ipv4 unicast\n  network {network}\n exit-address-family\n"
        );
        let daemon = |program: &str, name: &str, config: &str| {
            let file = |end: &str| folder.join(format!("{name}.{end}"));
            std::fs::write(file("conf"), config).unwrap();
            let mut command = Command::new(program);
            // Without a port for terminals.
            command.args(["-P", "0", "--vty_socket"]).arg(&folder);
            command.arg("-z").arg(folder.join("zserv"));
            command.arg(format!("--log=file:{}", file("log").display()));
            command.arg("-f").arg(file("conf")).arg("-i").arg(file("pid"));
            namespace.spawn(command).unwrap()
        };
        let zebra = daemon(Frr::ZEBRA, "zebra", "");
        assert!(
            eventually(|| folder.join("zserv").exists()),
            "zebra does not start"
        );
        Frr {
            _daemons: [zebra, daemon(Frr::BGPD, "bgpd", &bgp)],
            folder,
        }
    }
}

impl Frr {
    fn log(&self) -> String {
        ["zebra.log", "bgpd.log"]
            .map(|name| std::fs::read_to_string(self.folder.join(name)).unwrap_or_default())
            .concat()
    }
}

impl Drop for Frr {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// The host's routing daemon speaks by the interface that stands for the device.
#[test]
fn a_routing_daemon_speaks_by_the_device() {
    if !may_run(&[Need::Dpdk, Need::Root, Need::Tool(Frr::BGPD)]) {
        return;
    }
    let (namespace, host) = (Namespace::new("edge").unwrap(), Namespace::new("host").unwrap());
    join(&namespace, &host);
    let text = format!(
        "{}[[lan]]\nname = 'office'\ninterface = 'lan0'\n{}",
        dpdk(),
        over("nic", 1)
    );
    let edge = Edge::start(&namespace, &Keys::generate().unwrap(), &text).unwrap();
    raise(&edge, &namespace, "lan0", &ROUTER);
    let (ours, theirs) = ("192.168.1.1", "192.168.1.2");
    let near = Frr::start(&namespace, 65001, ours, "10.9.0.0/16", (theirs, 65002));
    let far = Frr::start(&host, 65002, theirs, "10.8.0.0/16", (ours, 65001));
    let learned = |namespace: &Namespace, network: &str, via: &str| {
        let routes = namespace.ip("route show proto bgp").unwrap();
        routes
            .lines()
            .any(|route| route.starts_with(network) && route.contains(via))
    };
    for round in ["first", "again"] {
        let there = || learned(&namespace, "10.8.0.0/16", "via 192.168.1.2 dev lan0");
        let here = || learned(&host, "10.9.0.0/16", "via 192.168.1.1 dev eth0");
        assert!(
            eventually(|| there() && here()),
            "{round}: {}{}{}",
            edge.log(),
            near.log(),
            far.log()
        );
        host.ip("link set eth0 down").unwrap();
        assert!(eventually(|| !there()), "{round}: {}", near.log());
        host.ip("link set eth0 up").unwrap();
    }
}

#[test]
fn a_device_may_vanish_and_come_back() {
    if !may_run(&[Need::Dpdk, Need::Daemon(Kind::WireguardGo)]) {
        return;
    }
    let mut office = office(1);
    exchange(&office.host, &office.peer);
    for round in 1..=2 {
        office.namespace.ip("link del nic").unwrap();
        let has_no_carrier = || {
            let said = office.namespace.ip("-o link show lan0").unwrap();
            said.contains("NO-CARRIER")
        };
        assert!(eventually(has_no_carrier), "{}", office.edge.log());
        join(&office.namespace, &office.host.namespace);
        let log = || office.edge.log();
        assert!(
            eventually(|| log().matches("lan0 is there").count() == round),
            "{}",
            log()
        );
        recovers(&office.host, &office.peer);
        assert!(office.edge.runs(), "{}", office.edge.log());
    }
    exchange(&office.host, &office.peer);
}

/// The engine may start before the device is there.
#[test]
fn a_device_may_come_later() {
    if !may_run(&[Need::Dpdk]) {
        return;
    }
    let (namespace, host) = (Namespace::new("edge").unwrap(), Namespace::new("host").unwrap());
    let text = format!(
        "{}[[lan]]\nname = 'office'\ninterface = 'lan0'\n{}",
        dpdk(),
        over("nic", 1)
    );
    let edge = Edge::start(&namespace, &Keys::generate().unwrap(), &text).unwrap();
    raise(&edge, &namespace, "lan0", &ROUTER);
    assert!(eventually(|| edge
        .log()
        .contains("LAN lan0 does not run: there is no interface nic")));
    join(&namespace, &host);
    let answered = || {
        let said = ping(&host, "-c 1 -W 1 192.168.1.1").unwrap();
        said.contains(" 0% packet loss")
    };
    assert!(eventually(answered), "{}", edge.log());
}

/// What cannot be had is said before anything runs, with what to do.
#[test]
fn what_cannot_be_had_is_refused() {
    if !may_run(&[Need::Dpdk]) {
        return;
    }
    let namespace = Namespace::new("edge").unwrap();
    let lan = |device: &str| {
        format!("[[lan]]\nname = 'a'\ninterface = 'lan0'\nport = 'dpdk'\ndevice = '{device}'\n")
    };
    namespace.ip("link add lan0 type veth peer name other").unwrap();
    let no_huge = "[dpdk]\nhuge_pages = false\n";
    for (text, word) in [
        (
            format!("{no_huge}{}", lan("net_nonesuch0")),
            "lan0: DPDK cannot use device net_nonesuch0",
        ),
        (
            format!("{no_huge}{}", lan("ffff:ff:1f.7")),
            "there is no PCI device ffff:ff:1f.7",
        ),
        (
            format!("{no_huge}{}", lan("net_null0")),
            "there is an interface lan0 already",
        ),
        (
            format!(
                "[dpdk]\nhuge_page_size = '1GiB'\nmemory = '64GiB'\n{}",
                lan("net_null0")
            ),
            "DPDK wants 64 huge pages of 1GiB and",
        ),
    ] {
        let said = Edge::refusal(&namespace, &Keys::generate().unwrap(), &text).unwrap();
        assert!(said.contains(word), "{word} is missing in: {said}");
    }
}

/// An engine with a link over DPDK, the host behind its TUN, and a stock peer on the link.
fn with_link() -> (Edge, Site, Site) {
    let (namespace, far) = (Namespace::new("edge").unwrap(), Namespace::new("peer").unwrap());
    let (ours, theirs) = (Keys::generate().unwrap(), Keys::generate().unwrap());
    nic(&namespace, "nic", &far, "path");
    far.address("path", "192.0.2.2/24").unwrap();
    let peer_site = stock_peer(far, &theirs, &ours);
    let text = format!(
        "{}[[link]]\nid = 1\ninterface = 'wan0'\n{}{}",
        dpdk(),
        over("nic", 1),
        peer(&theirs.public, Some(peer_site.outer), 2)
    );
    let edge = Edge::start(&namespace, &ours, &text).unwrap();
    let host = on_tun(&edge, namespace, 1);
    (edge, host, peer_site)
}

/// The tunnel itself goes over DPDK.
#[test]
fn a_link_reaches_a_stock_peer() {
    if !may_run(&[Need::Dpdk, Need::Daemon(Kind::WireguardGo)]) {
        return;
    }
    let (edge, host, peer_site) = with_link();
    wan_up(&edge, &host.namespace, 1);
    exchange(&host, &peer_site);
    let stats = edge.stats().unwrap();
    for count in ["wan0.queue0.rx_packets", "wan0.queue0.tx_packets"] {
        assert!(stats.sum(count) > 500, "{count}: {stats:?}\n{}", edge.log());
    }
}

/// While another process has the UDP port, no worker has the device's queue.
#[test]
fn the_host_is_reached_while_a_link_has_no_sockets() {
    if !may_run(&[Need::Dpdk, Need::Daemon(Kind::WireguardGo)]) {
        return;
    }
    let (edge, host, peer_site) = with_link();
    let bind = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT));
    let holder = host.namespace.run(bind).unwrap().unwrap();
    wan_up(&edge, &host.namespace, 1);
    assert!(
        eventually(|| edge.log().contains("cannot listen on UDP port 51820")),
        "{}",
        edge.log()
    );
    let pinged = |options: &str| {
        let said = ping(&peer_site.namespace, &format!("{options} 192.0.2.1")).unwrap();
        said.contains(" 0% packet loss")
    };
    assert!(eventually(|| pinged("-c 1 -W 1")), "{}", edge.log());
    assert!(pinged("-c 50 -i 0.02"), "{}", edge.log());
    drop(holder);
    exchange(&host, &peer_site);
    let stats = edge.stats().unwrap();
    for count in ["wan0.queue0.rx_packets", "wan0.queue0.tx_packets"] {
        assert!(stats.sum(count) > 500, "{count}: {stats:?}\n{}", edge.log());
    }
    assert!(pinged("-c 50 -i 0.02"), "{}", edge.log());
}

/// The host behind an engine's TUN, as a site.
fn on_tun(edge: &Edge, namespace: Namespace, number: u8) -> Site {
    let mut site = site(namespace, number);
    site.interface = edge.interface().to_owned();
    let inner = [format!("{}/24", site.inner_v4), format!("{}/64", site.inner_v6)];
    for address in inner {
        site.namespace.address(&site.interface, &address).unwrap();
    }
    for network in networks(3 - number) {
        let name = &site.interface;
        site.namespace
            .ip(&format!("route add {network} dev {name}"))
            .unwrap();
    }
    site
}

fn wan_up(edge: &Edge, namespace: &Namespace, number: u8) {
    raise(edge, namespace, "wan0", &[&format!("192.0.2.{number}/24")]);
}

/// Two engines, and between them nothing but memory that both share.
struct Pair {
    sites: [Site; 2],
    edges: [Option<Edge>; 2],
    keys: [Keys; 2],
    socket: PathBuf,
}

impl Pair {
    fn new() -> Pair {
        let socket = std::env::temp_dir().join(unique_name("memif"));
        let keys = [Keys::generate().unwrap(), Keys::generate().unwrap()];
        let sites = [1, 2].map(|number| site(Namespace::new("edge").unwrap(), number));
        let mut pair = Pair {
            sites,
            edges: [None, None],
            keys,
            socket,
        };
        pair.start(0);
        pair.start(1);
        pair
    }

    /// Starts one of the engines. The first listens.
    fn start(&mut self, at: usize) {
        let (role, other) = (["server", "client"][at], 1 - at);
        let socket = self.socket.display();
        let text = format!(
            "{}[[link]]\nid = 1\ninterface = 'wan0'\nport = 'dpdk'\n\
             device = 'net_memif0,role={role},id=0,socket={socket},socket-abstract=no'\n{}",
            dpdk(),
            peer(
                &self.keys[other].public,
                Some(self.sites[other].outer),
                other as u8 + 1
            )
        );
        let namespace = self.sites[at].namespace.clone();
        let edge = Edge::start(&namespace, &self.keys[at], &text).unwrap();
        self.sites[at] = on_tun(&edge, namespace.clone(), at as u8 + 1);
        wan_up(&edge, &namespace, at as u8 + 1);
        self.edges[at] = Some(edge);
    }

    fn kill(&mut self, at: usize) {
        let mut edge = self.edges[at].take().unwrap();
        edge.kill();
    }

    fn log(&self) -> String {
        let edges = self.edges.iter().flatten();
        edges.map(Edge::log).collect::<Vec<_>>().join("\n--\n")
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.edges = [None, None];
        let _ = std::fs::remove_file(&self.socket);
    }
}

#[test]
fn a_tunnel_goes_through_shared_memory() {
    if !may_run(&[Need::Dpdk]) {
        return;
    }
    let pair = Pair::new();
    let [a, b] = &pair.sites;
    exchange(a, b);
    let flow = Flow::start(a, b, false, Duration::from_micros(500)).unwrap();
    let received = flow.run_for(Duration::from_secs(1));
    assert!(received.sent > 200 && !received.duplicated(), "{received:?}");
    for edge in pair.edges.iter().flatten() {
        let stats = edge.stats().unwrap();
        for count in ["wan0.queue0.rx_packets", "wan0.queue0.tx_packets"] {
            assert!(stats.sum(count) > 500, "{count}: {stats:?}\n{}", pair.log());
        }
    }
}

/// Either engine may be killed, whoever listens; the other one goes on, and the tunnel too once it is there again.
#[test]
fn either_end_of_shared_memory_may_be_killed() {
    if !may_run(&[Need::Dpdk]) {
        return;
    }
    let mut pair = Pair::new();
    recovers(&pair.sites[0], &pair.sites[1]);
    for at in [1, 0] {
        pair.kill(at);
        let alive = pair.edges[1 - at].as_mut().unwrap();
        let carrier = |namespace: &Namespace| {
            let said = namespace.ip("-o link show wan0");
            said.is_ok_and(|said| !said.contains("NO-CARRIER"))
        };
        let namespace = pair.sites[1 - at].namespace.clone();
        let lost = eventually(|| !carrier(&namespace));
        assert!(
            lost && alive.runs(),
            "engine {at}, {:?}: {}",
            alive.ended(),
            alive.log()
        );
        pair.start(at);
        assert!(eventually(|| carrier(&namespace)), "{}", pair.log());
        // The other one has a session still that nobody knows any more.
        recovers(&pair.sites[at], &pair.sites[1 - at]);
    }
}
