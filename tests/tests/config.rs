//! Sites from files: a hub and two branches, each an engine with a TOML file, and what SIGHUP changes.

use patronus_netns::{
    Config, Daemon, DaemonOptions, Keys, Kind, Namespace, Peer, PeerStatus, Process, RUNTIME_DIR, Site,
    prepare_runtime_dir, unique_name,
};
use patronus_tests::{Flow, LIMIT, Need, engine_program, eventually, may_run, ping, tcp};
use rustix::process::Signal;
use std::fmt::Write;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

const PORT: u16 = 51820;

/// A folder with a site's file and key that goes when the test ends.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("patronus-{name}"));
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join("site.toml")
    }

    fn write(&self, text: &str) {
        fs::write(self.file(), text).unwrap();
    }

    fn key(&self, name: &str, key: &str, mode: u32) {
        let path = self.0.join(name);
        fs::write(&path, key).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A site with a file. (Processes go before namespaces.)
struct Branch {
    process: Option<Process>,
    site: Site,
    folder: Folder,
}

impl Branch {
    /// A namespace and a key, and nothing that runs yet.
    fn new(number: u8) -> Branch {
        let interface = unique_name("pn");
        let folder = Folder::new(&interface);
        let keys = Keys::generate().unwrap();
        folder.key("site.key", &keys.private, 0o600);
        let site = Site {
            daemon: None,
            namespace: Namespace::new("site").unwrap(),
            interface,
            keys: Some(keys),
            outer: SocketAddr::new(Ipv4Addr::new(192, 0, number, 1).into(), PORT),
            inner_v4: Ipv4Addr::new(10, 66, number, 1),
            inner_v6: Ipv6Addr::new(0xfd00, 0x66, number.into(), 0, 0, 0, 0, 1),
        };
        Branch {
            process: None,
            site,
            folder,
        }
    }

    fn write(&self, more: &str) {
        let interface = &self.site.interface;
        self.folder.write(&format!(
            "[site]\nprivate_key_file = 'site.key'\nlisten_port = {PORT}\n[engine]\ninterface = '{interface}'\n{more}"
        ));
    }

    fn start(&mut self) {
        self.start_with(&[]);
    }

    fn start_with(&mut self, more: &[&str]) {
        prepare_runtime_dir().unwrap();
        let mut command = Command::new(engine_program());
        command.args(more);
        command.args(["--foreground", "--config"]).arg(self.folder.file());
        let process = self.process.insert(self.site.namespace.spawn(command).unwrap());
        let socket = Path::new(RUNTIME_DIR).join(format!("{}.sock", self.site.interface));
        assert!(eventually(|| socket.exists()), "{}", process.log());
        let namespace = &self.site.namespace;
        let interface = &self.site.interface;
        namespace.ip(&format!("link set {interface} up")).unwrap();
        namespace
            .address(interface, &format!("{}/32", self.site.inner_v4))
            .unwrap();
        namespace
            .address(interface, &format!("{}/128", self.site.inner_v6))
            .unwrap();
        namespace
            .ip(&format!("route add 10.66.0.0/16 dev {interface}"))
            .unwrap();
        namespace
            .ip(&format!("-6 route add fd00:66::/32 dev {interface}"))
            .unwrap();
    }

    /// As a peer of another site's file.
    fn as_peer(&self, name: &str, endpoint: Option<SocketAddr>, networks: &[&str]) -> String {
        let key = &self.site.keys.as_ref().unwrap().public;
        let mut text =
            format!("[[peer]]\nname = '{name}'\npublic_key = '{key}'\nallowed_ips = {networks:?}\n");
        if let Some(endpoint) = endpoint {
            writeln!(text, "endpoint = '{endpoint}'").unwrap();
        }
        text
    }

    /// Reads the file again, and waits until `said` stands in what it says.
    fn reload(&mut self, said: &str) {
        let process = self.process.as_mut().unwrap();
        let before = process.log().len();
        process.signal(Signal::HUP);
        let heard = eventually(|| process.log()[before..].contains(said));
        assert!(heard, "no {said:?} in:\n{}", process.log());
    }

    fn log(&self) -> String {
        self.process.as_ref().unwrap().log()
    }

    fn peers(&self) -> Vec<PeerStatus> {
        PeerStatus::all(&self.site.namespace, &self.site.interface).unwrap()
    }

    fn answers(&self, address: &str) -> bool {
        let said = ping(&self.site.namespace, &format!("-c 1 -W 1 {address}")).unwrap();
        said.contains(" 0% packet loss")
    }
}

const A_NETS: &[&str] = &["10.66.1.0/24", "fd00:66:1::/48"];
const B_NETS: &[&str] = &["10.66.2.0/24", "fd00:66:2::/48"];

/// A hub (site 3) between two branches (1 and 2). `rules` are the hub's; `b_too`: the hub knows the second branch from the start.
fn star(rules: &str, b_too: bool) -> (Branch, Branch, Branch) {
    let (mut hub, mut a, mut b) = (Branch::new(3), Branch::new(1), Branch::new(2));
    for (branch, number) in [(&a, 1), (&b, 2)] {
        let near = format!("to{number}");
        let hub = &hub.site.namespace;
        hub.veth(&near, &branch.site.namespace, "wan", 1500).unwrap();
        hub.address(&near, &format!("192.0.{number}.254/24")).unwrap();
        branch
            .site
            .namespace
            .address("wan", &format!("192.0.{number}.1/24"))
            .unwrap();
    }
    let known = if b_too {
        b.as_peer("b", None, B_NETS)
    } else {
        String::new()
    };
    hub.write(&format!("{}{known}{rules}", a.as_peer("a", None, A_NETS)));
    hub.start();
    for (branch, number) in [(&mut a, 1), (&mut b, 2)] {
        let at: IpAddr = Ipv4Addr::new(192, 0, number, 254).into();
        let all = ["10.66.0.0/16", "fd00:66::/32"];
        branch.write(&hub.as_peer("hub", Some(SocketAddr::new(at, PORT)), &all));
        branch.start();
    }
    (hub, a, b)
}

const DROP_PINGS_TO_B: &str = "[[policy]]\ndst = '10.66.2.0/24'\nprotocol = 'icmp'\naction = 'drop'\n";

/// The hub's engine sends on from one tunnel to the other by itself, and drops what a policy says.
#[test]
fn a_hub_with_policies_between_two_branches() {
    if !may_run(&[]) {
        return;
    }
    let (hub, a, b) = star(DROP_PINGS_TO_B, true);
    let forwards = hub
        .site
        .namespace
        .exec("cat", &["/proc/sys/net/ipv4/ip_forward"])
        .unwrap();
    assert_eq!(forwards.trim(), "0", "the kernel is no router here");
    assert!(eventually(|| a.answers("10.66.3.1")), "{}", hub.log());
    assert!(eventually(|| b.answers("fd00:66:3::1")), "{}", hub.log());
    for v6 in [false, true] {
        tcp(&a.site, &b.site, v6, 2_000_000).unwrap();
        tcp(&b.site, &hub.site, v6, 2_000_000).unwrap();
    }
    assert!(!a.answers("10.66.2.1"), "dropped by the policy");
    assert!(a.answers("fd00:66:2::1"), "not asked by the policy");
    let peers = hub.peers();
    assert_eq!(peers.len(), 2);
    assert!(peers.iter().all(|peer| peer.latest_handshake > 0));
    let lent = Flow::start(&a.site, &b.site, false, Duration::from_millis(1)).unwrap();
    let received = lent.run_for(Duration::from_secs(1));
    assert_eq!((received.lost(), received.in_order()), (0, true));
}

#[test]
fn reading_the_file_again_adds_and_moves_without_losing_a_packet() {
    if !may_run(&[]) {
        return;
    }
    let (mut hub, a, b) = star("[[policy]]\nsrc = '10.66.99.0/24'\naction = 'drop'\n", false);
    assert!(eventually(|| a.answers("10.66.3.1")), "{}", hub.log());
    assert!(!b.answers("10.66.3.1"), "nobody knows it yet");
    let flow = Flow::start(&a.site, &hub.site, false, Duration::from_millis(1)).unwrap();
    let handshake = hub.peers()[0].latest_handshake;

    hub.write(&format!(
        "{}{}[[policy]]\nsrc = '10.66.98.0/24'\naction = 'drop'\n",
        a.as_peer("a", None, A_NETS),
        b.as_peer("b", None, B_NETS)
    ));
    hub.reload("it is in force");
    for line in [
        "peer b: added",
        "peer b: +10.66.2.0/24",
        "policies: 1 before, 1 now",
    ] {
        assert!(hub.log().contains(line), "no {line:?} in\n{}", hub.log());
    }
    assert!(!hub.log().contains("peer a:"), "{}", hub.log());
    assert!(eventually(|| b.answers("10.66.3.1")), "{}", hub.log());

    // One network that both have, and that belongs to the one and then to the other.
    for branch in [&a, &b] {
        let site = &branch.site;
        site.namespace.address(&site.interface, "10.66.7.1/32").unwrap();
    }
    let with_seven = |first: bool, hub: &Branch| {
        let nets = |own: &[&'static str], seven: bool| {
            let more = seven.then_some("10.66.7.0/24");
            own.iter().copied().chain(more).collect::<Vec<_>>()
        };
        hub.write(&format!(
            "{}{}[[policy]]\nsrc = '10.66.98.0/24'\naction = 'drop'\n",
            a.as_peer("a", None, &nets(A_NETS, first)),
            b.as_peer("b", None, &nets(B_NETS, !first))
        ));
    };
    with_seven(true, &hub);
    hub.reload("peer a: +10.66.7.0/24");
    assert!(eventually(|| hub.answers("10.66.7.1")), "{}", hub.log());
    let seven: IpAddr = Ipv4Addr::new(10, 66, 7, 1).into();
    let moving = Flow::between(
        (&hub.site.namespace, hub.site.inner(false)),
        &[(&a.site.namespace, seven), (&b.site.namespace, seven)],
        Duration::from_millis(1),
    )
    .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    with_seven(false, &hub);
    hub.reload("peer b: +10.66.7.0/24");
    let moved = moving.run_for(Duration::from_millis(500));
    assert_eq!((moved.lost(), moved.duplicated()), (0, false));
    assert!(
        moved.numbers.iter().all(|numbers| !numbers.is_empty()),
        "both got some"
    );

    let received = flow.finish();
    assert_eq!(
        (received.lost(), received.in_order()),
        (0, true),
        "of {}",
        received.sent
    );
    let key = &a.site.keys.as_ref().unwrap().public;
    let peers = hub.peers();
    let same = peers.iter().find(|peer| peer.public == *key).unwrap();
    assert_eq!(same.latest_handshake, handshake, "the session of before");
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    if !may_run(&[]) {
        return;
    }
    let (mut hub, a, _b) = star(DROP_PINGS_TO_B, true);
    assert!(eventually(|| a.answers("10.66.3.1")), "{}", hub.log());
    let before = |hub: &Branch| -> Vec<(String, Vec<String>)> {
        let peers = hub.peers().into_iter();
        peers.map(|peer| (peer.public, peer.allowed_ips)).collect()
    };
    let (peers, text) = (before(&hub), fs::read_to_string(hub.folder.file()).unwrap());
    let flow = Flow::start(&a.site, &hub.site, false, Duration::from_millis(1)).unwrap();
    let file = hub.folder.file();
    let refused = [
        (
            text.replace("action = 'drop'", "action = 'dorp'"),
            format!("{}:17:10: unknown word `dorp`", file.display()),
        ),
        (
            text.replace("[engine]", "[engine]\nworkers = 2"),
            "[engine] cannot be changed while the engine runs".to_owned(),
        ),
        (
            format!("{text}[[route]]\nprefix = '10.9.0.0/16'\nvia = 'c'\n"),
            "there is no peer and no LAN named `c`".to_owned(),
        ),
    ];
    for (wrong, expected) in refused {
        hub.folder.write(&wrong);
        hub.reload("the one of before stays in force");
        assert!(hub.log().contains(&expected), "no {expected:?} in\n{}", hub.log());
        assert_eq!(before(&hub), peers);
    }
    hub.folder.write(&text);
    hub.folder.key(
        "site.key",
        &hub.site.keys.as_ref().unwrap().private.clone(),
        0o644,
    );
    hub.reload("others may use it (mode 0644)");
    fs::remove_file(&file).unwrap();
    hub.reload("No such file or directory");
    hub.folder.key(
        "site.key",
        &hub.site.keys.as_ref().unwrap().private.clone(),
        0o600,
    );
    hub.folder.write(&text);
    hub.reload("nothing has changed");
    let received = flow.finish();
    assert_eq!(received.lost(), 0, "of {}", received.sent);
}

/// An Ethernet LAN past the kernel: to a neighbour that the file names, and to one that the kernel has to find.
#[test]
fn an_ethernet_lan_behind_the_hub() {
    an_ethernet_lan("port = 'af_xdp'", "");
}

#[test]
fn an_ethernet_lan_over_packet_sockets() {
    an_ethernet_lan("port = 'af_packet'", "");
}

/// With two workers and one receive queue there is no AF_XDP.
#[test]
fn an_ethernet_lan_is_taken_as_it_can_be_had() {
    an_ethernet_lan("", "");
    an_ethernet_lan("", "workers = 2\n");
}

/// `port` and `engine` are lines of the file's.
fn an_ethernet_lan(port: &str, engine: &str) {
    if !may_run(&[Need::Root]) {
        return;
    }
    let (mut hub, a, _b) = star(DROP_PINGS_TO_B, true);
    let office = Namespace::new("office").unwrap();
    let namespace = &hub.site.namespace;
    namespace.veth("lan", &office, "eth0", 1500).unwrap();
    namespace.address("lan", "192.168.9.1/24").unwrap();
    namespace.sysctl("net.ipv4.ip_forward", "1").unwrap();
    office.ip("link set eth0 address 02:00:00:00:09:02").unwrap();
    office.address("eth0", "192.168.9.2/24").unwrap();
    office.address("eth0", "192.168.9.3/24").unwrap();
    office.ip("route add default via 192.168.9.1").unwrap();
    hub.process.take();
    let nets = ["10.66.0.0/16", "fd00:66::/32", "192.168.9.0/24"];
    let at = SocketAddr::new(Ipv4Addr::new(192, 0, 1, 254).into(), PORT);
    let mut a = a;
    a.write(&hub.as_peer("hub", Some(at), &nets));
    a.reload("peer hub: +192.168.9.0/24");
    a.site
        .namespace
        .ip(&format!("route add 192.168.9.0/24 dev {}", a.site.interface))
        .unwrap();
    hub.write(&format!(
        "{engine}{}[[lan]]\nname = 'office'\n{port}\ninterface = 'lan'\nnetworks = ['192.168.9.0/24']\n\
         neighbours = [{{ address = '192.168.9.2', mac = '02:00:00:00:09:02' }}]\n",
        a.as_peer("a", None, A_NETS)
    ));
    hub.start();
    let office_reaches = |address: &str| {
        let said = ping(&office, &format!("-c 1 -W 1 {address}")).unwrap();
        said.contains(" 0% packet loss")
    };
    assert!(eventually(|| a.answers("192.168.9.2")), "{}", hub.log());
    assert!(office_reaches("10.66.1.1"), "{}", hub.log());
    assert!(
        office_reaches("192.168.9.1"),
        "the host still has its own address"
    );
    assert!(
        eventually(|| a.answers("192.168.9.3")),
        "by the kernel, which finds it"
    );
    // The packets of the first were sent past the kernel, those to the second were not.
    let said = Command::new(engine_program())
        .args(["--stats", &hub.site.interface])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let counter = |name: &str| -> u64 {
        let line = said
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.unwrap_or_else(|| panic!("no {name} in\n{said}"))
            .parse()
            .unwrap()
    };
    let both = |what: &str| match engine {
        "" => counter(&format!("lan.queue0.{what}")),
        _ => counter(&format!("lan.queue0.{what}")) + counter(&format!("lan.queue1.{what}")),
    };
    assert!(both("tx_packets") >= 2 && both("rx_packets") >= 3, "{said}");
    let why = "LAN lan is used through packet sockets (af_packet), because AF_XDP cannot be had: \
               LAN interface lan has 1 receive queues and there are 2 workers";
    assert_eq!(hub.log().contains(why), !engine.is_empty(), "{}", hub.log());
}

/// A counter of an engine's.
fn counter(branch: &Branch, name: &str) -> u64 {
    let said = Command::new(engine_program())
        .args(["--stats", &branch.site.interface])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let mut lines = said.lines();
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    value
        .unwrap_or_else(|| panic!("no {name} in\n{said}"))
        .parse()
        .unwrap()
}

/// A host on a LAN of `branch`'s, whose interface there is `lan`, in network 192.168.`number`.0/24.
fn host_behind(branch: &Branch, number: u8) -> Site {
    let host = Site {
        daemon: None,
        namespace: Namespace::new("host").unwrap(),
        interface: "eth0".to_owned(),
        keys: None,
        outer: SocketAddr::new(Ipv4Addr::new(192, 168, number, 2).into(), PORT),
        inner_v4: Ipv4Addr::new(192, 168, number, 2),
        inner_v6: Ipv6Addr::new(0xfd00, 0x77, number.into(), 0, 0, 0, 0, 2),
    };
    let namespace = &branch.site.namespace;
    namespace.veth("lan", &host.namespace, "eth0", 1500).unwrap();
    namespace
        .address("lan", &format!("192.168.{number}.1/24"))
        .unwrap();
    namespace
        .address("lan", &format!("fd00:77:{number}::1/64"))
        .unwrap();
    let inside = &host.namespace;
    inside.address("eth0", &format!("192.168.{number}.2/24")).unwrap();
    inside.address("eth0", &format!("192.168.{number}.3/24")).unwrap();
    inside
        .address("eth0", &format!("fd00:77:{number}::2/64"))
        .unwrap();
    inside
        .ip(&format!("route add default via 192.168.{number}.1"))
        .unwrap();
    inside
        .ip(&format!("-6 route add default via fd00:77:{number}::1"))
        .unwrap();
    host
}

/// Two sites, each with a LAN of which the file says no more than the interface: an AF_XDP one and one of packet sockets.
fn two_lans() -> (Branch, Branch, Site, Site) {
    let (mut hub, mut a) = (Branch::new(3), Branch::new(1));
    let namespace = &hub.site.namespace;
    namespace.veth("to1", &a.site.namespace, "wan", 1500).unwrap();
    namespace.address("to1", "192.0.1.254/24").unwrap();
    a.site.namespace.address("wan", "192.0.1.1/24").unwrap();
    let (office, home) = (host_behind(&hub, 9), host_behind(&a, 8));
    let lan = |port| format!("[[lan]]\nname = 'inside'\nport = '{port}'\ninterface = 'lan'\n");
    let at_a = a.as_peer("a", None, &["10.66.1.0/24", "192.168.8.0/24", "fd00:77:8::/64"]);
    hub.write(&format!(
        "{at_a}{}[[route]]\nprefix = '172.16.0.0/24'\nvia = '192.168.9.3'\n",
        lan("af_xdp").replace("interface", "networks = ['192.168.9.0/24']\ninterface")
    ));
    let at: IpAddr = Ipv4Addr::new(192, 0, 1, 254).into();
    let nets = [
        "10.66.3.0/24",
        "192.168.9.0/24",
        "172.16.0.0/24",
        "fd00:77:9::/64",
    ];
    let at_hub = hub.as_peer("hub", Some(SocketAddr::new(at, PORT)), &nets);
    a.write(&format!("{at_hub}{}", lan("af_packet")));
    for (branch, far) in [(&mut hub, 8), (&mut a, 9)] {
        branch.start();
        let way = format!("route add 192.168.{far}.0/24 dev {}", branch.site.interface);
        branch.site.namespace.ip(&way).unwrap();
    }
    (hub, a, office, home)
}

fn reaches(host: &Site, arguments: &str) -> bool {
    let said = ping(&host.namespace, arguments).unwrap();
    said.contains(" 0% packet loss")
}

#[test]
fn neighbours_are_found_by_the_hosts_kernels() {
    if !may_run(&[Need::Root]) {
        return;
    }
    let (hub, a, office, home) = two_lans();
    let logs = || {
        let stats = [&hub, &a].map(|branch| {
            let mut command = Command::new(engine_program());
            let output = command
                .args(["--stats", &branch.site.interface])
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            let some = said.lines().filter(|line| !line.ends_with("=0"));
            some.collect::<Vec<_>>().join("\n")
        });
        format!("{}\n{}\n{}", hub.log(), a.log(), stats.join("\n--\n"))
    };
    let forwards = hub
        .site
        .namespace
        .exec("cat", &["/proc/sys/net/ipv4/ip_forward"])
        .unwrap();
    assert_eq!(forwards.trim(), "0", "the kernel is no router here");
    assert!(eventually(|| reaches(&home, "-c 1 -W 1 10.66.3.1")), "{}", logs());
    assert!(
        eventually(|| reaches(&office, "-c 1 -W 1 10.66.1.1")),
        "{}",
        logs()
    );
    // The first packet waits for its receiver to be found.
    assert!(reaches(&home, "-c 1 -W 4 192.168.9.2"), "{}", logs());
    assert!(reaches(&office, "-c 1 -W 4 192.168.8.3"), "{}", logs());
    assert!(
        eventually(|| reaches(&home, "-c 1 -W 1 fd00:77:9::2")),
        "{}",
        logs()
    );
    tcp(&home, &office, false, 2_000_000).unwrap();
    tcp(&office, &home, true, 2_000_000).unwrap();
    let flow = Flow::start(&home, &office, false, Duration::from_millis(1)).unwrap();
    let received = flow.run_for(Duration::from_secs(1));
    assert_eq!((received.lost(), received.in_order()), (0, true));

    // A next hop of a route, which has the network behind it.
    office.namespace.address("lo", "172.16.0.1/32").unwrap();
    assert!(
        eventually(|| reaches(&home, "-c 1 -W 1 172.16.0.1")),
        "{}",
        logs()
    );

    // Another link address, as when the machine was replaced.
    office
        .namespace
        .sysctl("net.ipv4.conf.eth0.arp_notify", "1")
        .unwrap();
    office.namespace.ip("link set eth0 down").unwrap();
    office
        .namespace
        .ip("link set eth0 address 02:00:00:00:77:77")
        .unwrap();
    office.namespace.ip("link set eth0 up").unwrap();
    office
        .namespace
        .ip("route replace default via 192.168.9.1")
        .unwrap();
    assert!(
        eventually(|| reaches(&home, "-c 1 -W 1 192.168.9.2")),
        "{}",
        logs()
    );
    assert!(
        eventually(|| reaches(&home, "-c 1 -W 1 172.16.0.1")),
        "{}",
        logs()
    );
    assert!(hub.log().contains("LAN lan is down"), "{}", hub.log());
    assert!(hub.log().contains("LAN lan runs again"), "{}", hub.log());

    // Nobody there: its sender is told.
    let said = ping(&home.namespace, "-c 8 -i 1 -W 1 192.168.9.77").unwrap();
    assert!(said.contains("Destination Host Unreachable"), "{said}");
    assert!(counter(&hub, "worker0.drop.neighbour-silent") > 0);

    // The LAN of one engine goes; the rest of both goes on.
    hub.site.namespace.ip("link del lan").unwrap();
    let gone = "LAN lan cannot be used any more";
    assert!(eventually(|| hub.log().contains(gone)), "{}", hub.log());
    assert!(reaches(&home, "-c 1 -W 4 10.66.3.1"), "{}", logs());
    assert_eq!(hub.log().matches(gone).count(), 1, "said once");
}

/// Makes the LAN's interface of a branch, and its host's end, which [`host_behind`] made first and somebody has deleted.
fn make_again(branch: &Branch, host: &Site, number: u8) {
    let namespace = &branch.site.namespace;
    namespace.veth("lan", &host.namespace, "eth0", 1500).unwrap();
    namespace
        .address("lan", &format!("192.168.{number}.1/24"))
        .unwrap();
    let inside = &host.namespace;
    inside.address("eth0", &format!("192.168.{number}.2/24")).unwrap();
    inside
        .ip(&format!("route add default via 192.168.{number}.1"))
        .unwrap();
}

/// A site with one or two LANs, the first of which comes and goes, and a branch that is always there.
fn lans_come_and_go(port: &str, engine: &str) {
    if !may_run(&[Need::Root]) {
        return;
    }
    let (mut hub, mut a) = (Branch::new(3), Branch::new(1));
    let namespace = &hub.site.namespace;
    namespace.veth("to1", &a.site.namespace, "wan", 1500).unwrap();
    namespace.address("to1", "192.0.1.254/24").unwrap();
    a.site.namespace.address("wan", "192.0.1.1/24").unwrap();
    let office = host_behind(&hub, 9);
    namespace.ip("link del lan").unwrap();
    let other = Namespace::new("other").unwrap();
    namespace.veth("steady", &other, "eth0", 1500).unwrap();
    namespace.address("steady", "192.168.7.1/24").unwrap();
    other.address("eth0", "192.168.7.2/24").unwrap();
    other.ip("route add default via 192.168.7.1").unwrap();
    let lan = |name: &str, port: &str| format!("[[lan]]\nname = '{name}'\n{port}\ninterface = '{name}'\n");
    hub.write(&format!(
        "{engine}{}{}{}",
        a.as_peer("a", None, A_NETS),
        lan("lan", port),
        lan("steady", port)
    ));
    let nets = ["10.66.3.0/24", "192.168.0.0/16"];
    let at: SocketAddr = "192.0.1.254:51820".parse().unwrap();
    a.write(&hub.as_peer("hub", Some(at), &nets));
    hub.start();
    a.start();
    let way = format!("route add 192.168.0.0/16 dev {}", a.site.interface);
    a.site.namespace.ip(&way).unwrap();

    // At the start it is not there; the rest works.
    assert!(eventually(|| a.answers("192.168.7.2")), "{}", hub.log());
    let missing = "LAN lan does not run";
    assert!(hub.log().contains(missing), "{}", hub.log());
    assert!(!a.answers("192.168.9.2"));
    let steady = Site {
        daemon: None,
        namespace: other,
        interface: "eth0".to_owned(),
        keys: None,
        outer: SocketAddr::new(Ipv4Addr::new(192, 168, 7, 2).into(), PORT),
        inner_v4: Ipv4Addr::new(192, 168, 7, 2),
        inner_v6: Ipv6Addr::UNSPECIFIED,
    };
    let flow = Flow::start(&a.site, &steady, false, Duration::from_millis(2)).unwrap();
    for round in 0..3 {
        make_again(&hub, &office, 9);
        assert!(eventually(|| a.answers("192.168.9.2")), "{round}: {}", hub.log());
        assert!(reaches(&office, "-c 1 -W 2 10.66.1.1"), "{round}: {}", hub.log());
        assert!(reaches(&office, "-c 1 -W 2 192.168.9.1"), "the host's own");
        let there = || hub.log().matches("LAN lan is there").count() == round + 1;
        assert!(eventually(there), "{round}: {}", hub.log());
        // An address of the host's that came while the engine ran: the program leaves what is for it to the host.
        namespace_of(&hub).address("lan", "192.168.9.100/24").unwrap();
        let to_host = || reaches(&office, "-c 1 -W 1 192.168.9.100");
        assert!(eventually(to_host), "{round}: {}", hub.log());
        assert!(reaches(&office, "-c 3 -i 0.2 -W 1 192.168.9.100"));
        let (count, own) = (hosts_pings(&hub), 5);
        assert!(reaches(&office, &format!("-c {own} -i 0.2 -W 1 192.168.9.100")));
        assert_eq!(hosts_pings(&hub) - count, own, "each is handled once");
        namespace_of(&hub).ip("link del lan").unwrap();
        let lost = || hub.log().matches("LAN lan cannot be used any more").count() == round + 1;
        assert!(eventually(lost), "{round}: {}", hub.log());
        assert!(a.answers("192.168.7.2"), "{round}: {}", hub.log());
    }
    assert_eq!(hub.log().matches(missing).count(), 1, "{}", hub.log());
    let received = flow.finish();
    assert_eq!(
        (received.lost(), received.in_order()),
        (0, true),
        "the other port was not disturbed"
    );
    // Without the process that takes interfaces, what is taken stays so.
    signal(keeper_of(&hub), Signal::KILL);
    let ended = "the process that takes interfaces has ended";
    assert!(eventually(|| hub.log().contains(ended)), "{}", hub.log());
    assert!(a.answers("192.168.7.2") && reaches(&steady, "-c 2 -i 0.2 -W 2 10.66.1.1"));
    assert_eq!(hub.log().matches(ended).count(), 1, "{}", hub.log());
    let workers = if engine.is_empty() { 1 } else { 2 };
    let received = (0..workers).map(|at| counter(&hub, &format!("lan.queue{at}.rx_packets")));
    // Three lives with some pings each.
    let received: Vec<u64> = received.collect();
    assert!(received.iter().sum::<u64>() >= 6, "counters go on: {received:?}");
}

/// The process beside the engine that takes interfaces.
fn keeper_of(branch: &Branch) -> u32 {
    let pid = branch.process.as_ref().unwrap().pid();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let is_keeper = |pid: &&str| {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline"));
        line.is_ok_and(|line| line.contains("--interface-keeper"))
    };
    let keeper = children.split_whitespace().find(is_keeper);
    keeper.unwrap().parse().unwrap()
}

fn signal(pid: u32, signal: Signal) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

fn namespace_of(branch: &Branch) -> &Namespace {
    &branch.site.namespace
}

/// Echo requests that the host's kernel has answered.
fn hosts_pings(branch: &Branch) -> u64 {
    let said = branch.site.namespace.exec("cat", &["/proc/net/snmp"]).unwrap();
    let mut lines = said.lines().filter_map(|line| line.strip_prefix("Icmp:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let mut both = names.split_whitespace().zip(values.split_whitespace());
    both.find(|(name, _)| *name == "InEchos")
        .unwrap()
        .1
        .parse()
        .unwrap()
}

#[test]
fn lans_by_af_xdp_come_and_go() {
    lans_come_and_go("port = 'af_xdp'", "");
}

/// What was taken is gone before the engine hears of it: it is no reason to take the next one in another way, or to wait.
#[test]
fn a_lan_that_is_another_one_by_the_time_it_is_taken() {
    if !may_run(&[Need::Root]) {
        return;
    }
    let mut hub = Branch::new(3);
    let office = host_behind(&hub, 9);
    namespace_of(&hub).ip("link del lan").unwrap();
    hub.write("[[lan]]\nname = 'lan'\ninterface = 'lan'\n");
    hub.start();
    let is_missing = || hub.log().contains("LAN lan does not run");
    assert!(eventually(is_missing), "{}", hub.log());
    let (engine, keeper) = (hub.process.as_ref().unwrap().pid(), keeper_of(&hub));
    signal(keeper, Signal::STOP);
    make_again(&hub, &office, 9);
    // The engine asks at the latest a second after the answer before.
    std::thread::sleep(Duration::from_millis(1500));
    signal(engine, Signal::STOP);
    signal(keeper, Signal::CONT);
    let has_program = || {
        let shown = namespace_of(&hub).exec("ip", &["link", "show", "lan"]);
        shown.unwrap().contains("prog/xdp")
    };
    assert!(eventually(has_program), "{}", hub.log());
    namespace_of(&hub).ip("link del lan").unwrap();
    make_again(&hub, &office, 9);
    signal(engine, Signal::CONT);
    let is_there = || hub.log().contains("LAN lan is there");
    assert!(eventually(is_there), "{}", hub.log());
    assert!(has_program() && !hub.log().contains("af_packet"), "{}", hub.log());
    // What the keeper could not tell the program that was gone concerns nobody.
    assert!(!hub.log().contains("may not reach"), "{}", hub.log());
}

/// Only AF_XDP needs the right to lock memory later.
#[test]
fn the_right_to_lock_memory_is_kept_for_af_xdp_alone() {
    if !may_run(&[Need::Root]) {
        return;
    }
    const IPC_LOCK: u64 = 1 << 14;
    for (port, kept) in [("af_packet", 0), ("af_xdp", IPC_LOCK)] {
        let mut branch = Branch::new(4);
        branch.write(&format!(
            "[[lan]]\nname = 'office'\ninterface = 'lan'\nport = '{port}'\n"
        ));
        prepare_runtime_dir().unwrap();
        let mut command = Command::new("sh");
        let program = engine_program().to_str().unwrap();
        let limited = "ulimit -l 262144; exec setpriv --bounding-set -sys_resource --inh-caps -all";
        let script = format!("{limited} {program} --foreground --config \"$0\"");
        command.args(["-c", &script]).arg(branch.folder.file());
        let process = branch
            .process
            .insert(branch.site.namespace.spawn(command).unwrap());
        let socket = Path::new(RUNTIME_DIR).join(format!("{}.sock", branch.site.interface));
        assert!(eventually(|| socket.exists()), "{}", process.log());
        let filtered = || {
            let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                line.unwrap().trim().to_owned()
            };
            (field("Seccomp:") == "2").then(|| u64::from_str_radix(&field("CapPrm:"), 16).unwrap())
        };
        assert!(eventually(|| filtered().is_some()), "{}", process.log());
        assert_eq!(filtered().unwrap() & IPC_LOCK, kept, "{port}");
    }
}

#[test]
fn lans_by_packet_sockets_come_and_go() {
    lans_come_and_go("port = 'af_packet'", "workers = 2\n");
}

/// Runs the engine to its end.
fn run(arguments: &[&str], file: &Path) -> Output {
    let mut command = Command::new(engine_program());
    command.args(arguments).arg(file);
    command.output().unwrap()
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    if !may_run(&[]) {
        return;
    }
    let site = Branch::new(9);
    site.write("");
    site.folder.key(
        "site.key",
        "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\n",
        0o644,
    );
    for arguments in [
        &["--foreground", "--config"][..],
        &["--config"],
        &["--check-config"],
    ] {
        let output = run(arguments, &site.folder.file());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{said}");
        assert!(said.contains("mode 0644") && said.contains("chmod 600"), "{said}");
        assert!(!said.contains("yAnz"), "{said}");
    }
}

/// Every example can be run as it stands, once its keys are there.
#[test]
fn examples_are_right() {
    if !may_run(&[]) {
        return;
    }
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/examples");
    let mut count = 0;
    for entry in fs::read_dir(examples).unwrap() {
        let path = entry.unwrap().path();
        let folder = Folder::new(&unique_name("ex"));
        for key in ["site.key", "hub.psk", "laptop.psk"] {
            folder.key(key, &Keys::generate().unwrap().private, 0o600);
        }
        folder.write(&fs::read_to_string(&path).unwrap());
        let output = run(&["--check-config"], &folder.file());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        count += 1;
        // All that can be wrong with the file itself has been looked at by then.
        if said.contains("this engine was built without DPDK") {
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.contains("port = \"dpdk\""), "{}: {said}", path.display());
            continue;
        }
        assert!(output.status.success(), "{}: {said}", path.display());
        assert!(String::from_utf8_lossy(&output.stdout).contains("nothing is wrong"));
    }
    assert!(count >= 8, "{count} examples");
}

/// Whoever starts a site in the background waits for its output to end: no process of it may keep that open.
#[test]
fn a_site_in_the_background_lets_go_of_its_output() {
    if !may_run(&[Need::Root]) {
        return;
    }
    let branch = Branch::new(4);
    branch.write("[[lan]]\nname = 'office'\ninterface = 'lan'\n");
    prepare_runtime_dir().unwrap();
    let mut command = Command::new(engine_program());
    command.arg("--config").arg(branch.folder.file());
    let namespace = &branch.site.namespace;
    let (sender, receiver) = std::sync::mpsc::channel();
    let started = namespace.run(|| {
        use std::process::Stdio;
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        std::thread::spawn(move || sender.send(child.wait_with_output()));
        std::io::Result::Ok(())
    });
    started.unwrap().unwrap();
    let output = receiver.recv_timeout(LIMIT);
    // Ends the engine, whatever came of it.
    let socket = Path::new(RUNTIME_DIR).join(format!("{}.sock", branch.site.interface));
    let there = socket.exists();
    let _ = fs::remove_file(&socket);
    let output = output.expect("it has ended").unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && there, "{said}");
    assert!(said.contains("LAN lan does not run"), "{said}");
}

/// What `--stats` says of the lanes of a site: by name, the data bytes sent and when the last handshake was.
fn lanes(branch: &Branch) -> Vec<(String, u64)> {
    let said = Command::new(engine_program())
        .args(["--stats", &branch.site.interface])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let value = |name: &str| -> u64 {
        let line = said
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.and_then(|value| value.parse().ok()).unwrap_or(0)
    };
    let names = said
        .lines()
        .filter_map(|line| line.split_once(".last-handshake="));
    let open = names.filter(|(_, at)| *at != "0");
    open.map(|(name, _)| (name.to_owned(), value(&format!("{name}.sent-bytes"))))
        .collect()
}

/// Two sites of our own with two links each: a lane on each path for each worker, traffic over all of them; a link that is gone takes its
/// lanes along and no more than what was on its way, and brings them back.
#[test]
fn two_remotes_with_two_links_each() {
    if !may_run(&[]) {
        return;
    }
    let (mut a, mut b) = (Branch::new(1), Branch::new(2));
    for link in [1, 2] {
        let (from, to) = (&a.site.namespace, &b.site.namespace);
        let name = format!("up{link}");
        from.veth(&name, to, &name, 1500).unwrap();
        from.address(&name, &format!("198.18.{link}.1/24")).unwrap();
        to.address(&name, &format!("198.18.{link}.2/24")).unwrap();
    }
    let links =
        "[[link]]\nid = 1\ninterface = 'up1'\ngroup = 1\n[[link]]\nid = 2\ninterface = 'up2'\ngroup = 2\n";
    for (site, other, at, nets) in [(&a, &b, 2, B_NETS), (&b, &a, 1, A_NETS)] {
        let endpoint = SocketAddr::new(Ipv4Addr::new(198, 18, 1, at).into(), PORT);
        let remote = other.as_peer("other", Some(endpoint), nets);
        let remote = remote.replace("[[peer]]", "[[remote]]");
        site.write(&format!("workers = 2\n{links}{remote}"));
    }
    a.start();
    b.start();
    for site in [&a, &b] {
        let there = eventually(|| lanes(site).len() == 4);
        assert!(there, "{:?}\n{}", lanes(site), site.log());
    }
    // So many that all of them choose one path once in 32,768 runs.
    let flows: Vec<Flow> = (0..16)
        .map(|_| Flow::start(&a.site, &b.site, false, Duration::from_millis(5)).unwrap())
        .collect();
    std::thread::sleep(Duration::from_secs(1));
    let used = lanes(&a).into_iter().filter(|(_, bytes)| *bytes > 20_000);
    let used: Vec<String> = used.map(|(name, _)| name).collect();
    for path in ["link1-link1", "link2-link2"] {
        assert!(used.iter().any(|name| name.contains(path)), "{:?}", lanes(&a));
    }
    let peers = a.peers();
    assert_eq!(peers.len(), 1, "lanes are no peers");
    // Without a carrier.
    b.site.namespace.ip("link set up1 down").unwrap();
    assert!(eventually(|| lanes(&a).len() == 2 && lanes(&b).len() == 2));
    std::thread::sleep(Duration::from_secs(1));
    b.site.namespace.ip("link set up1 up").unwrap();
    assert!(
        eventually(|| lanes(&a).len() == 4),
        "{:?}\n{}",
        lanes(&a),
        a.log()
    );
    std::thread::sleep(Duration::from_millis(500));
    for flow in flows {
        let received = flow.finish();
        assert!(
            received.lost() <= received.sent / 20,
            "{} of {}",
            received.lost(),
            received.sent
        );
    }
    for v6 in [false, true] {
        tcp(&a.site, &b.site, v6, 2_000_000).unwrap();
    }
    assert!(a.answers("10.66.2.1"), "{}", a.log());
}

/// A remote that is really a stock peer: the base session works both ways, in spite of the hellos, which are few; people are told once.
fn a_remote_that_is_a_stock_peer(kind: Kind) {
    if !may_run(&[Need::Daemon(kind)]) {
        return;
    }
    let mut a = Branch::new(1);
    let namespace = Namespace::new("stock").unwrap();
    a.site.namespace.veth("up1", &namespace, "far", 1500).unwrap();
    a.site.namespace.address("up1", "198.18.1.1/24").unwrap();
    namespace.address("far", "198.18.1.2/24").unwrap();
    let interface = unique_name("pn");
    let daemon = Daemon::start(&namespace, kind, &interface, &DaemonOptions::default()).unwrap();
    let keys = Keys::generate().unwrap();
    let b = Branch::new(2);
    let mut b_site = Site {
        daemon: Some(daemon),
        namespace,
        interface,
        keys: Some(keys),
        outer: "198.18.1.2:51820".parse().unwrap(),
        inner_v4: b.site.inner_v4,
        inner_v6: b.site.inner_v6,
    };
    let key = &b_site.keys.as_ref().unwrap().public;
    a.write(&format!(
        "[[link]]\nid = 1\ninterface = 'up1'\n[[remote]]\nname = 'other'\npublic_key = '{key}'\n\
         allowed_ips = {B_NETS:?}\nendpoint = '198.18.1.2:51820'\n"
    ));
    a.start_with(&["--test-timer-divisor", "40"]);
    b_site
        .daemon
        .as_ref()
        .unwrap()
        .setconf(&Config {
            private: b_site.keys.as_ref().unwrap().private.clone(),
            listen_port: Some(PORT),
            fwmark: None,
            peers: vec![Peer {
                public: a.site.keys.as_ref().unwrap().public.clone(),
                preshared: None,
                endpoint: None,
                allowed_ips: A_NETS.iter().map(|net| (*net).to_owned()).collect(),
                keepalive: None,
            }],
        })
        .unwrap();
    let (inside, name) = (&b_site.namespace, &b_site.interface);
    inside.ip(&format!("link set {name} mtu 1420 up")).unwrap();
    inside.address(name, &format!("{}/32", b_site.inner_v4)).unwrap();
    inside.ip(&format!("route add 10.66.0.0/16 dev {name}")).unwrap();
    assert!(eventually(|| a.answers("10.66.2.1")), "{}", a.log());
    let begun = std::time::Instant::now();
    let flow = Flow::start(&a.site, &b_site, false, Duration::from_millis(5)).unwrap();
    let warning = "answers no hello";
    assert!(eventually(|| a.log().contains(warning)), "{}", a.log());
    assert!(begun.elapsed() < Duration::from_secs(30));
    // Sessions are renewed meanwhile, every three seconds here.
    std::thread::sleep(Duration::from_secs(10));
    let received = flow.finish();
    assert!(
        received.lost() <= received.sent / 100,
        "{} of {}",
        received.lost(),
        received.sent
    );
    tcp(&a.site, &b_site, false, 2_000_000).unwrap();
    tcp(&b_site, &a.site, false, 2_000_000).unwrap();
    assert_eq!(a.log().matches(warning).count(), 1, "{}", a.log());
    assert_eq!(lanes(&a), [], "the base session only");
    assert_eq!(
        counter(&a, "worker0.controls-sent"),
        5,
        "the next one after a minute"
    );
    b_site.daemon.take();
}

#[test]
fn a_remote_that_is_wireguard_go() {
    a_remote_that_is_a_stock_peer(Kind::WireguardGo);
}

#[test]
fn a_remote_that_is_boringtun() {
    a_remote_that_is_a_stock_peer(Kind::Boringtun);
}

#[test]
fn a_remote_without_links_is_refused() {
    let branch = Branch::new(9);
    let other = Branch::new(8);
    branch.write(
        &other
            .as_peer("other", None, B_NETS)
            .replace("[[peer]]", "[[remote]]"),
    );
    let output = Command::new(engine_program())
        .arg("--check-config")
        .arg(branch.folder.file())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(
        said.contains("there is no [[link]]") && said.contains("site.toml:"),
        "{said}"
    );
}
