//! What a file becomes for an engine.

use patronus_abi::Prefix;
use patronus_abi::site::{
    Action, Class, Device, Dpdk, Hop, LanPort, LinkPort, Mode, OuterDscp, Probing, Sticky,
};
use patronus_abi::{decode, encode};
use patronus_config::parse;

const FILE: &str = r#"
[site]
private_key_file = "site.key"
listen_port = 51820
fwmark = 7

[engine]
workers = 2
cores = [0, 1]
spin = "3ms"

[[link]]
id = 3
interface = "eth0"
port = "af_xdp"
group = 1
metered = true

[[lan]]
name = "office"
interface = "eth1"
networks = ["10.9.0.0/24"]
neighbours = [{ address = "192.0.2.7", mac = "02:00:00:00:00:07" }]

[dpdk]
memory = "1GiB"
huge_page_size = "2MiB"

[[lan]]
name = "servers"
interface = "lan2"
port = "dpdk"
device = "net_memif0,role=server,socket=/run/servers.sock"
mtu = 9000

[[lan]]
name = "inside"
port = "tun"
networks = ["10.8.0.0/24"]

[[peer]]
name = "berlin"
public_key = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0="
preshared_key_file = "berlin.psk"
allowed_ips = ["10.1.0.0/16"]
keepalive = "25s"

[[remote]]
name = "paris"
public_key = "gN65BkIKy1eCE9pP1wdc8ROUtkHLF2PfAqYdyYBz6EA="
endpoint = "[2001:db8::1]:51820"
allowed_ips = ["fd00:2::/32"]

[[route]]
prefix = "10.0.0.0/8"
via = ["paris", "inside", "10.9.0.5", "192.0.2.7", "discard"]

[[policy]]
name = "calls"
protocol = "udp"
dst_ports = "1024-2047"
dscp = ["ef", 0]
action = "via"
via = "berlin"
"#;

#[test]
fn names_become_places() {
    let site = parse(FILE).unwrap().compile();
    // Remotes stand behind the peers, and a LAN's place is the file's.
    let peers = site.peers.iter();
    let peers: Vec<_> = peers.map(|peer| (peer.name.as_deref(), peer.is_remote)).collect();
    assert_eq!(peers, [(Some("berlin"), false), (Some("paris"), true)]);
    let hops = [
        Hop::Peer(1),
        Hop::Host,
        Hop::Neighbour(0, [10, 9, 0, 5].into()),
        Hop::Neighbour(0, [192, 0, 2, 7].into()),
        Hop::Discard,
    ];
    assert_eq!(site.routes[0].hops, hops);
    assert_eq!(site.policies[0].action, Action::Via(vec![Hop::Peer(0)]));
}

#[test]
fn units_become_numbers() {
    let site = parse(FILE).unwrap().compile();
    assert_eq!((site.listen_port, site.fwmark), (51820, 7));
    assert_eq!((site.engine.spin_ms, site.engine.workers), (3, 2));
    assert_eq!(site.engine.cores, [0, 1]);
    let link = &site.links[0];
    assert_eq!(
        (link.id, link.port, link.group, link.metered),
        (3, LinkPort::AfXdp, 1, true)
    );
    assert_eq!(site.lans[0].port, LanPort::Any);
    assert_eq!(
        site.lans[0].neighbours,
        [([192, 0, 2, 7].into(), [2, 0, 0, 0, 0, 7])]
    );
    assert_eq!(
        (site.lans[2].port, site.lans[2].interface.as_ref()),
        (LanPort::Tun, None)
    );
    let servers = &site.lans[1];
    let device = Device {
        name: "net_memif0,role=server,socket=/run/servers.sock".into(),
        mtu: 9000,
    };
    assert_eq!(
        (servers.port, servers.device.as_ref()),
        (LanPort::Dpdk, Some(&device))
    );
    let dpdk = Dpdk {
        memory_mib: 1024,
        huge_pages: true,
        huge_page_mib: Some(2),
    };
    assert_eq!(site.dpdk, dpdk);
    let berlin = &site.peers[0];
    assert_eq!((berlin.has_psk, berlin.keepalive), (true, Some(25)));
    assert_eq!(
        berlin.allowed_ips,
        [Prefix::new([10, 1, 0, 0].into(), 16).unwrap()]
    );
    let policy = &site.policies[0];
    assert_eq!(
        (policy.protocol, policy.dst_ports.clone()),
        (Some(17), Some(1024..=2047))
    );
    assert_eq!(policy.dscps, Some(1 << 46 | 1));
    assert_eq!(site.secrets(), 2);
}

/// What the file's checks let through, the blob's take: otherwise a file that `--check-config` praises is refused.
#[test]
fn whatever_parses_is_a_blob() {
    let folder = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/examples")).unwrap();
    let examples = folder.map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap());
    let examples: Vec<String> = examples.collect();
    for text in examples.iter().map(String::as_str).chain([FILE]) {
        let config = parse(text).unwrap();
        assert_eq!(config.warnings().len(), 0, "{:?}", config.warnings());
        let site = config.compile();
        let blob = encode(&site, 4).unwrap();
        assert_eq!(decode(&blob), Ok((site, 4)));
    }
}

/// Their numbers do not depend on where they stand in the file, and only those count that somebody uses or defines.
#[test]
fn classes_become_numbers() {
    let text = r#"
        [site]
        private_key_file = "site.key"
        [[policy]]
        action = "route"
        class = "voice"
        [[policy]]
        action = "route"
        class = "default"
        [[policy]]
        action = "route"
        class = "archive"
        [[policy]]
        action = "drop"
        [[class]]
        name = "archive"
        mode = "weighted"
        sticky = "source"
        dscp = "copy"
        loss = "0.125%"
        [[class]]
        name = "default"
        mode = "lowest_latency"
        jitter = "7ms"
        hold = "1m"
        dscp = "af11"
        [probe]
        interval = "20ms"
        idle = "2s"
        rate = 5000
    "#;
    let site = parse(text).unwrap().compile();
    let archive = Class {
        name: "archive".into(),
        mode: Mode::Weighted,
        loss_ppm: Some(1250),
        sticky: Sticky::Source,
        dscp: OuterDscp::Copy,
        ..Class::default()
    };
    let default = Class {
        mode: Mode::LowestLatency,
        jitter_us: Some(7000),
        hold_ms: 60_000,
        dscp: OuterDscp::Set(10),
        ..Class::default()
    };
    let voice = Class {
        name: "voice".into(),
        latency_us: Some(150_000),
        jitter_us: Some(30_000),
        loss_ppm: Some(10_000),
        ..Class::default()
    };
    assert_eq!(site.classes, [default, archive, voice]);
    let classes: Vec<u8> = site.policies.iter().map(|policy| policy.class).collect();
    assert_eq!(classes, [2, 0, 1, 0]);
    let probing = Probing {
        interval_us: 20_000,
        idle_us: 2_000_000,
        rate: 5000,
    };
    assert_eq!(site.probing, probing);
    let plain = parse("[site]\nprivate_key_file = 'site.key'").unwrap().compile();
    assert_eq!(
        (plain.classes, plain.probing),
        (vec![Class::default()], Probing::default())
    );
}

#[test]
fn costs_and_rates_of_links() {
    let link = "[[link]]\nid = 1\ninterface = 'eth0'\n";
    let told = |more: &str| {
        let text = format!("[site]\nprivate_key_file = 'site.key'\n{link}{more}");
        let site = parse(&text).unwrap().compile();
        (site.links[0].cost, site.links[0].rate_up, site.links[0].rate_down)
    };
    assert_eq!(told(""), (0, 0, 0));
    let more = "cost = 7\nrate_up = '64kbps'\nrate_down = '10Gbps'";
    assert_eq!(told(more), (7, 64_000, 10_000_000_000));
}

#[test]
fn what_has_a_data_cap_is_metered() {
    let link = "[[link]]\nid = 1\ninterface = 'eth0'\n";
    let told = |more: &str| {
        let text = format!("[site]\nprivate_key_file = 'site.key'\n{link}{more}");
        let config = parse(&text).unwrap();
        let cap = config.links[0].data_cap.as_ref().map(|cap| cap.get_ref().0);
        (cap, config.compile().links[0].metered)
    };
    assert_eq!(told(""), (None, false));
    assert_eq!(told("data_cap = '20GB'"), (Some(20_000_000_000), true));
    assert_eq!(
        told("data_cap = '500 MB'\ndata_cap_day = 28"),
        (Some(500_000_000), true)
    );
}
