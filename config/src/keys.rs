//! Every key that can stand in a file: what it takes, what it is without being there, and an example.
//!
//! What editors are told ([`schema`](crate::schema_for_editors)) and what an error gives as an example comes from here. That it is what the
//! parser takes, key by key, with its default and with whether it can change while the engine runs, is tested (`config/tests/schema.rs`);
//! so are the tables of docs/config.md.

/// What a value looks like.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// A whole number from the first to the second.
    Whole(u64, u64),
    /// One of these words.
    Words(&'static [&'static str]),
    /// A text of this pattern.
    Text(&'static str),
    /// A text of this pattern, or a whole number up to this.
    TextOrWhole(&'static str, u64),
    /// A list.
    List(&'static Kind),
    /// One, or a list of at least one and at most so many.
    OneOrMore(&'static Kind, usize),
    /// A list of tables with these keys.
    Tables(&'static [Key]),
}

/// A key.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// What stands before the `=`.
    pub name: &'static str,
    /// What stands behind it.
    pub kind: Kind,
    /// What it is if it does not stand there.
    pub without: Without,
    /// A value as it stands in a file, other than the default.
    pub example: &'static str,
    /// Whether it can change while the engine runs.
    pub reloads: bool,
    /// What it is.
    pub says: &'static str,
}

/// What a key is if it does not stand there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Without {
    /// It has to.
    Needed,
    /// Nothing, or what other keys say.
    Nothing,
    /// This, as it would stand there.
    Default(&'static str),
}

/// A table of the file.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// Its name.
    pub name: &'static str,
    /// There may be several, in double brackets.
    pub several: bool,
    /// Its keys, in the order in which they are explained.
    pub keys: &'static [Key],
    /// What it is.
    pub says: &'static str,
}

use Kind::{Bool, List, OneOrMore, Tables, Text, TextOrWhole, Whole, Words};
use Without::{Default, Needed, Nothing};

const PATH: Kind = Text(r"^.+$");
const DURATION: Kind = Text(r"^[0-9]+ *(ms|s|m|h)$");
const RATE: Kind = Text(r"^[0-9]*[1-9][0-9]* *(kbps|Mbps|Gbps)$");
const DATA_CAP: Kind = Text(r"^[0-9]*[1-9][0-9]* *(MB|GB|TB)$");
const MEMORY: Kind = Text(r"^[0-9]+ *(MiB|GiB)$");
const DEVICE: Kind = Text(r"^[!-~]{1,255}$");
const MTU: Kind = Whole(1280, 9216);
const LOSS: Kind = Text(r"^[0-9]{1,3}(\.[0-9]{1,3})? *%$");
const NAME: Kind = Text(r"^[A-Za-z0-9_.-]{1,63}$");
const GROUP: Kind = Text(r"^[A-Za-z_][A-Za-z0-9_.-]{0,31}$");
const INTERFACE: Kind = Text(r"^[!-.0-9;-~]{1,15}$");
const PUBLIC_KEY: Kind = Text(r"^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$");
const ADDRESS: Kind = Text(r"^([0-9.]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*)$");
const NETWORK: Kind = Text(r"^([0-9.]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*)(/[0-9]{1,3})?$");
const ENDPOINT: Kind = Text(r"^([0-9.]+|\[[0-9A-Fa-f:.]+(%[0-9]+)?\]):[0-9]{1,5}$");
const MAC: Kind = Text(r"^[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}$");
const VIA: Kind = Text(r"^([A-Za-z0-9_.-]{1,63}|[0-9A-Fa-f:.]+)$");
const PORTS: Kind = TextOrWhole(r"^[0-9]{1,5} *(- *[0-9]{1,5})?$", 65535);
const PROTOCOL: Kind = TextOrWhole(r"^(tcp|udp|icmp|icmpv6|gre|esp|ospf|sctp)$", 255);
const DSCP: Kind = TextOrWhole(r"^(be|ef|cs[0-7]|af[1-4][1-3])$", 63);
const OUTER_DSCP: Kind = TextOrWhole(r"^(copy|be|ef|cs[0-7]|af[1-4][1-3])$", 63);

const fn key(
    name: &'static str,
    kind: Kind,
    without: Without,
    example: &'static str,
    says: &'static str,
) -> Key {
    Key {
        name,
        kind,
        without,
        example,
        reloads: true,
        says,
    }
}

impl Key {
    /// It cannot change while the engine runs.
    const fn fixed(mut self) -> Key {
        self.reloads = false;
        self
    }
}

#[rustfmt::skip]
const SITE: &[Key] = &[
    key("private_key_file", PATH, Needed, r#""site.key""#, "The file with the site's private key, as `patronus keygen` writes it: mode 0600 or 0640."),
    key("listen_port", Whole(0, 65535), Default("0"), "51820", "UDP port to listen on; 0: any that is free."),
    key("fwmark", Whole(0, 4_294_967_295), Default("0"), "51820", "Mark of outgoing packets; 0: none."),
    key("addresses", List(&NETWORK), Default("[]"), r#"["10.1.0.1/24"]"#, "The host's addresses at the TUN, with the prefix of the network that they are on. The engine sets them and sets the TUN up; none: they are the host's own business."),
    key("mtu", MTU, Nothing, "1380", "The TUN's longest packet; without it 1420 at first, and then what somebody sets."),
    key("routes", Bool, Default("false"), "true", "The engine routes what is allowed to peers into the TUN on the host, but for default routes, and sets the TUN up."),
];

#[rustfmt::skip]
const ENGINE: &[Key] = &[
    key("interface", INTERFACE, Default(r#""wg0""#), r#""wg1""#, "The name of the TUN.").fixed(),
    key("workers", Whole(1, 64), Default("1"), "2", "Packet threads.").fixed(),
    key("cores", List(&Whole(0, 1023)), Default("[]"), "[2, 3]", "The cores of the workers, in turn; none: not pinned.").fixed(),
    key("spin", DURATION, Default(r#""0ms""#), r#""3ms""#, "How long a worker looks for work before it sleeps, up to 1s.").fixed(),
    key("aead", Words(&crate::check::AEADS), Nothing, r#""aws-lc""#, "Cryptography backend; none: the first that the processor can run.").fixed(),
    key("offload", Bool, Default("true"), "false", "Segmentation and checksum offload.").fixed(),
    key("flows", Whole(1024, 4_194_304), Default("65536"), "131072", "Flows that each worker remembers; 72 bytes each.").fixed(),
    key("routes", Whole(64, 1_048_576), Default("4096"), "200000", "Prefixes that there may be, allowed-ips among them; about 3 KiB each.").fixed(),
];

#[rustfmt::skip]
const DPDK: &[Key] = &[
    key("memory", MEMORY, Default(r#""64MiB""#), r#""128MiB""#, "For what drivers need besides packets.").fixed(),
    key("huge_pages", Bool, Default("true"), "false", "That memory is on huge pages.").fixed(),
    key("huge_page_size", MEMORY, Nothing, r#""2MiB""#, "Their size; none: whichever the system has.").fixed(),
];

#[rustfmt::skip]
const LINK: &[Key] = &[
    key("id", Whole(1, 15), Needed, "1", "Its number, for good: both sides name paths by it.").fixed(),
    key("interface", INTERFACE, Needed, r#""eth0""#, "The network interface.").fixed(),
    key("port", Words(&["udp", "af_xdp", "dpdk"]), Default(r#""udp""#), r#""af_xdp""#, "How its datagrams are taken and given.").fixed(),
    key("device", DEVICE, Nothing, r#""0000:03:00.0""#, "What DPDK drives, with port `dpdk`: a PCI address, or a virtual device and its arguments.").fixed(),
    key("mtu", MTU, Nothing, "9000", "The MTU of DPDK's device; elsewhere the interface has it.").fixed(),
    key("group", Whole(0, 255), Default("0"), "1", "Paths to remotes lead between links of the same group.").fixed(),
    key("metered", Bool, Default("false"), "true", "Traffic costs money.").fixed(),
    key("behind_nat", Bool, Default("false"), "true", "Nobody can call it.").fixed(),
    key("endpoint", ENDPOINT, Nothing, r#""198.51.100.9:51820""#, "Where remotes can call it, if not at the interface's own addresses.").fixed(),
    key("rate_up", RATE, Nothing, r#""20Mbps""#, "What it carries away from the site."),
    key("rate_down", RATE, Nothing, r#""100Mbps""#, "What it carries towards the site."),
    key("cost", Whole(0, 65535), Default("0"), "10", "Of paths that are good enough, those of the lowest cost are used."),
    key("data_cap", DATA_CAP, Nothing, r#""20GB""#, "What may go by it in a month, both ways together; the link is metered, and the last resort once it is used up."),
    key("data_cap_day", Whole(1, 28), Nothing, "15", "The day on which the month of `data_cap` begins, at 0:00 UTC; without it the first."),
];

#[rustfmt::skip]
const PEER: &[Key] = &[
    key("name", NAME, Nothing, r#""berlin""#, "What routes and messages call it."),
    key("public_key", PUBLIC_KEY, Needed, r#""TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=""#, "Its public key, as `wg pubkey` prints it."),
    key("preshared_key_file", PATH, Nothing, r#""berlin.psk""#, "The file with the pre-shared key, as `wg genpsk` writes it: mode 0600 or 0640."),
    key("endpoint", ENDPOINT, Nothing, r#""198.51.100.1:51820""#, "Where it is; none: it calls us."),
    key("allowed_ips", List(&NETWORK), Default("[]"), r#"["10.1.0.0/16", "fd00:1::/32"]"#, "The networks behind it: accepted from it, and routed to it."),
    key("keepalive", DURATION, Nothing, r#""25s""#, "How often to send something so that NATs keep their state: 1s to 65535s."),
    key("ping", ADDRESS, Nothing, r#""10.1.0.1""#, "Somebody behind it who answers pings, so that its session leaves a link by which it is not reached."),
    key("ping_interval", DURATION, Nothing, r#""200ms""#, "How often: 100ms to 60s, and well above a third of the round trip; without it 1s."),
];

/// Whether a remote is reached is known by probes.
const REMOTE: &[Key] = PEER.split_at(PEER.len() - 2).0;

#[rustfmt::skip]
const NEIGHBOUR: &[Key] = &[
    key("address", ADDRESS, Needed, r#""10.1.0.2""#, "Its address."),
    key("mac", MAC, Needed, r#""02:00:5e:10:00:01""#, "Its Ethernet address."),
];

#[rustfmt::skip]
const LAN: &[Key] = &[
    key("name", NAME, Needed, r#""office""#, "What routes call it."),
    key("port", Words(&["tun", "af_xdp", "af_packet", "dpdk"]), Nothing, r#""af_xdp""#, "How its packets are taken and given; none: AF_XDP if it can be had, else packet sockets.").fixed(),
    key("interface", INTERFACE, Nothing, r#""eth1""#, "The Ethernet interface; the TUN's is the engine's.").fixed(),
    key("device", DEVICE, Nothing, r#""0000:03:00.0""#, "What DPDK drives, with port `dpdk`: a PCI address, or a virtual device and its arguments.").fixed(),
    key("mtu", MTU, Nothing, "9000", "The MTU of DPDK's device; elsewhere the interface has it.").fixed(),
    key("networks", List(&NETWORK), Default("[]"), r#"["10.1.0.0/24"]"#, "What is there, beside the networks of the interface's own addresses."),
    key("neighbours", Tables(NEIGHBOUR), Default("[]"), r#"[{ address = "10.1.0.2", mac = "02:00:5e:10:00:01" }]"#, "Who is at which Ethernet address, without asking."),
];

#[rustfmt::skip]
const ROUTE: &[Key] = &[
    key("prefix", NETWORK, Needed, r#""10.0.0.0/8""#, "Where packets are going."),
    key("via", OneOrMore(&VIA, 64), Needed, r#""host""#, "A peer's name, `host`, a neighbour's address or `discard`; of several, each flow goes by one."),
];

#[rustfmt::skip]
const POLICY: &[Key] = &[
    key("name", NAME, Nothing, r#""no-telnet""#, "What messages call it."),
    key("src", NETWORK, Nothing, r#""10.1.0.0/16""#, "Where packets come from."),
    key("dst", NETWORK, Nothing, r#""10.2.0.0/16""#, "Where they are going."),
    key("protocol", PROTOCOL, Nothing, r#""tcp""#, "Their protocol, by name or number."),
    key("src_ports", PORTS, Nothing, r#""1024-65535""#, "The UDP or TCP port that they come from: one, or a range."),
    key("dst_ports", PORTS, Nothing, "23", "The UDP or TCP port that they go to: one, or a range."),
    key("dscp", OneOrMore(&DSCP, 64), Nothing, r#"["ef", "cs5"]"#, "Their DSCP: any of these."),
    key("action", Words(&["route", "drop", "via"]), Needed, r#""drop""#, "What becomes of them."),
    key("via", OneOrMore(&VIA, 64), Nothing, r#""host""#, "Where they go next, with action `via`."),
    key("class", NAME, Nothing, r#""voice""#, "What they need of a path; none: class `default`."),
];

#[rustfmt::skip]
const CLASS: &[Key] = &[
    key("name", NAME, Needed, r#""backup""#, "What policies call it. `voice`, `video`, `interactive` and `bulk` are there without it, and `default`, of what comes under no other."),
    key("latency", DURATION, Nothing, r#""150ms""#, "Round trip at most: 1ms to 1m."),
    key("jitter", DURATION, Nothing, r#""30ms""#, "Variation of the delay at most: 1ms to 1m."),
    key("loss", LOSS, Nothing, r#""0.5%""#, "Lost packets at most, each way."),
    key("mode", Words(&["pinned", "active_backup", "duplicate", "weighted", "lowest_latency"]), Default(r#""pinned""#), r#""duplicate""#, "How its flows use the paths."),
    key("hold", DURATION, Default(r#""30s""#), r#""1m""#, "How long a path that was left has to be good before flows go back, up to 24h."),
    key("sticky", Words(&["flow", "source"]), Default(r#""flow""#), r#""source""#, "Which packets stay together: those of a flow, or all of a source address."),
    key("dscp", OUTER_DSCP, Nothing, r#""copy""#, "The DSCP of the datagrams on the outside: `copy`, or one; none: 0."),
];

#[rustfmt::skip]
const PROBE: &[Key] = &[
    key("interval", DURATION, Default(r#""50ms""#), r#""20ms""#, "How often a path to a remote is probed that packets go to: 5ms to 1s."),
    key("idle", DURATION, Default(r#""1s""#), r#""5s""#, "How often one is that none go to: from `interval` to 10s."),
    key("rate", Whole(100, 1_000_000), Default("20000"), "5000", "Probes of the engine in a second at most; with more paths each is probed less often."),
];

#[rustfmt::skip]
const BGP_NEIGHBOUR: &[Key] = &[
    key("address", ADDRESS, Needed, r#""10.3.0.254""#, "Its address."),
    key("asn", Whole(1, 4_294_967_294), Needed, "65001", "Its autonomous system."),
    key("password_file", PATH, Nothing, r#""bgp.password""#, "The file with the password of the TCP session."),
];

#[rustfmt::skip]
const BGP: &[Key] = &[
    key("asn", Whole(1, 4_294_967_294), Needed, "65010", "This site's autonomous system."),
    key("router_id", Text(r"^[0-9]{1,3}(\.[0-9]{1,3}){3}$"), Needed, r#""10.3.0.1""#, "What it is called among routers."),
    key("announce", List(&NETWORK), Default("[]"), r#"["10.3.0.0/16"]"#, "What it tells its neighbours of, beside what its LANs have."),
    key("neighbour", Tables(BGP_NEIGHBOUR), Default("[]"), r#"[{ address = "10.3.0.254", asn = 65001 }]"#, "Whom it talks to."),
];

#[rustfmt::skip]
const METRICS: &[Key] = &[
    key("listen", ENDPOINT, Default(r#""127.0.0.1:9586""#), r#""[::1]:9586""#, "Where to answer over HTTP.").fixed()];

#[rustfmt::skip]
const CONTROL: &[Key] = &[
    key("socket", PATH, Default(r#""/run/patronus/control.sock""#), r#""/run/patronus/berlin.sock""#, "The socket for the command line.").fixed(),
    key("group", GROUP, Default(r#""patronus""#), r#""netdev""#, "Whose members may look at everything but packets and decisions.").fixed(),
    key("admin_group", GROUP, Default(r#""patronus-admin""#), r#""sudo""#, "Whose members may change things and look at packets and decisions, beside root.").fixed(),
    key("engine_socket", PATH, Default(r#""/run/patronus/engine.sock""#), r#""/run/patronus/berlin-engine.sock""#, "The engine's socket.").fixed(),
];

const fn table(name: &'static str, several: bool, keys: &'static [Key], says: &'static str) -> Table {
    Table {
        name,
        several,
        keys,
        says,
    }
}

/// All tables, in the order in which they are explained.
pub const TABLES: [Table; 14] = [
    table("site", false, SITE, "This site."),
    table(
        "engine",
        false,
        ENGINE,
        "How the engine runs. None of it changes while it does.",
    ),
    table("dpdk", false, DPDK, "How DPDK runs, where ports are over it."),
    table("link", true, LINK, "A WAN attachment."),
    table(
        "peer",
        true,
        PEER,
        "Whom the site talks to: any WireGuard implementation.",
    ),
    table(
        "remote",
        true,
        REMOTE,
        "A site of our own, which has this one among its remotes.",
    ),
    table("lan", true, LAN, "What is on the inside."),
    table(
        "route",
        true,
        ROUTE,
        "Where packets go, beside what allowed-ips say.",
    ),
    table(
        "policy",
        true,
        POLICY,
        "What becomes of which flows; the first that matches decides.",
    ),
    table("class", true, CLASS, "What a kind of traffic needs of a path."),
    table("probe", false, PROBE, "How the paths to remotes are probed."),
    table(
        "bgp",
        false,
        BGP,
        "Routes by BGP. Refused: this release does not speak it.",
    ),
    table(
        "metrics",
        false,
        METRICS,
        "Metrics for Prometheus; without this table nobody listens.",
    ),
    table("control", false, CONTROL, "How the control process is reached."),
];

/// The key of this name in this table, which may be one within a table (`bgp.neighbour`).
pub(crate) fn find(table: &str, name: &str) -> Option<&'static Key> {
    let (outer, inner) = table
        .split_once('.')
        .map_or((table, None), |(outer, inner)| (outer, Some(inner)));
    let mut keys = TABLES.iter().find(|table| table.name == outer)?.keys;
    if let Some(inner) = inner {
        match keys.iter().find(|key| key.name == inner)?.kind {
            Tables(within) => keys = within,
            _ => return None,
        }
    }
    keys.iter().find(|key| key.name == name)
}
