//! What a file becomes for an engine.

use patronus_abi::Prefix;
use patronus_abi::site::{Action, Device, Dpdk, Hop, LanPort, LinkPort};
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
