//! Sites of every kind.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use patronus_abi::Prefix;
use patronus_abi::site::*;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

/// The least that there can be.
pub fn empty() -> Site {
    Site {
        engine: Engine {
            interface: "wg0".into(),
            workers: 1,
            cores: vec![],
            spin_ms: 0,
            aead: None,
            offload: true,
            flows: 65_536,
            routes: 4096,
        },
        dpdk: Dpdk::DEFAULT,
        listen_port: 0,
        fwmark: 0,
        links: vec![],
        peers: vec![],
        lans: vec![],
        routes: vec![],
        policies: vec![],
        classes: vec![Class::default()],
        probing: Probing::default(),
        host: Host::default(),
    }
}

fn network(text: &str) -> Prefix {
    let (addr, len) = text.split_once('/').unwrap();
    Prefix::new(addr.parse().unwrap(), len.parse().unwrap()).unwrap()
}

fn device(name: &str) -> Device {
    Device {
        name: name.into(),
        mtu: 1500,
    }
}

/// One with something of everything.
pub fn sample() -> Site {
    let link = |id, interface: &str, port, endpoint: Option<&str>| Link {
        id,
        interface: interface.into(),
        port,
        device: (port == LinkPort::Dpdk).then(|| device("net_memif0,role=server,id=0")),
        group: id,
        metered: id == 2,
        behind_nat: id == 2,
        endpoint: endpoint.map(|at| at.parse().unwrap()),
        cost: 10 * u16::from(id),
        rate_up: 20_000_000 * u64::from(id == 1),
        rate_down: 100_000_000 * u64::from(id == 1),
    };
    let peer = |n: u8, name: Option<&str>| Peer {
        name: name.map(Into::into),
        public_key: [n; 32],
        has_psk: n == 1,
        is_remote: n == 2,
        endpoint: (n == 2).then(|| "[2001:db8::2]:51820".parse().unwrap()),
        keepalive: (n == 1).then_some(25),
        ping: (n == 1).then_some(Ping {
            address: [10, 1, 0, 1].into(),
            interval_ms: 200,
        }),
        allowed_ips: vec![Prefix::new([10, n, 0, 0].into(), 16).unwrap()],
    };
    Site {
        engine: Engine {
            cores: vec![0, 1],
            aead: Some("rustcrypto".into()),
            workers: 2,
            ..empty().engine
        },
        dpdk: Dpdk {
            memory_mib: 1024,
            huge_pages: true,
            huge_page_mib: Some(1024),
        },
        listen_port: 51820,
        fwmark: 5,
        links: vec![
            link(1, "eth0", LinkPort::AfXdp, Some("198.51.100.1:51820")),
            link(2, "wwan0", LinkPort::Udp, None),
            link(3, "wan3", LinkPort::Dpdk, None),
        ],
        peers: vec![peer(1, Some("branch")), peer(2, None)],
        lans: vec![
            Lan {
                name: "host".into(),
                port: LanPort::Tun,
                interface: None,
                device: None,
                networks: vec![network("10.0.0.0/24")],
                neighbours: vec![],
            },
            Lan {
                name: "office".into(),
                port: LanPort::AfPacket,
                interface: Some("eth1".into()),
                device: None,
                networks: vec![network("10.0.1.0/24"), network("2001:db8:1::/64")],
                neighbours: vec![([10, 0, 1, 9].into(), [2, 0, 0, 0, 0, 9])],
            },
            Lan {
                name: "servers".into(),
                port: LanPort::Dpdk,
                interface: Some("lan2".into()),
                device: Some(Device {
                    mtu: 9000,
                    ..device("0000:03:00.0")
                }),
                networks: vec![],
                neighbours: vec![],
            },
        ],
        routes: vec![Route {
            prefix: network("192.0.2.0/24"),
            hops: vec![
                Hop::Peer(0),
                Hop::Neighbour(1, [10, 0, 1, 9].into()),
                Hop::Host,
                Hop::Discard,
            ],
        }],
        policies: vec![Policy {
            name: Some("no-telnet".into()),
            src: Some(network("10.0.0.0/8")),
            dst: None,
            protocol: Some(6),
            src_ports: None,
            dst_ports: Some(23..=23),
            dscps: Some(1 << 46),
            action: Action::Route,
            class: 1,
        }],
        classes: vec![
            Class::default(),
            Class {
                name: "voice".into(),
                mode: Mode::Duplicate,
                latency_us: Some(150_000),
                jitter_us: Some(30_000),
                loss_ppm: Some(0),
                hold_ms: 60_000,
                sticky: Sticky::Source,
                dscp: OuterDscp::Set(46),
            },
        ],
        probing: Probing {
            interval_us: 20_000,
            idle_us: 2_000_000,
            rate: 5000,
        },
        host: Host {
            addresses: vec![HostAddress {
                addr: [10, 1, 0, 1].into(),
                len: 24,
            }],
            mtu: Some(1380),
            routes: true,
        },
    }
}

fn name() -> impl Strategy<Value = String> {
    "[a-z0-9_.-]{1,63}"
}

fn prefix() -> impl Strategy<Value = Prefix> {
    (any::<IpAddr>(), 0u8..=128).prop_map(|(addr, len)| {
        let most = if addr.is_ipv4() { 32 } else { 128 };
        Prefix::new(addr, len.min(most)).unwrap()
    })
}

fn endpoint() -> impl Strategy<Value = SocketAddr> {
    let v4 = (any::<[u8; 4]>(), 1u16..).prop_map(|(ip, port)| (ip, port).into());
    let v6 = (any::<[u8; 16]>(), 1u16.., any::<u32>())
        .prop_map(|(ip, port, scope)| SocketAddrV6::new(ip.into(), port, 0, scope).into());
    prop_oneof![v4, v6].prop_filter("somebody can be there", |at: &SocketAddr| {
        !at.ip().is_unspecified() && !at.ip().is_multicast()
    })
}

fn dpdk() -> impl Strategy<Value = Dpdk> {
    let huge_page = prop_oneof![
        Just((false, None)),
        Just((true, None)),
        Just((true, Some(2))),
        Just((true, Some(1024)))
    ];
    (16u32..=1 << 16, huge_page).prop_map(|(memory_mib, (huge_pages, huge_page_mib))| Dpdk {
        memory_mib,
        huge_pages,
        huge_page_mib,
    })
}

/// A device with this number, so that no two are the same.
fn any_device(number: u8) -> impl Strategy<Value = Device> {
    let name = prop_oneof![
        Just(format!("0000:{number:02x}:00.0")),
        "[a-z]{1,10}".prop_map(move |driver| format!("net_{driver}{number},iface=eth0,copy")),
    ];
    (name, 1280u16..=9216).prop_map(|(name, mtu)| Device { name, mtu })
}

fn engine() -> impl Strategy<Value = Engine> {
    (
        "tun[a-z0-9.-]{0,12}",
        1u16..=64,
        vec(any::<u16>(), 0..5),
        0..=SPIN_MAX_MS,
        option::of(name()),
        any::<bool>(),
        (1u32 << 10..=1 << 22, 64u32..=1 << 20),
    )
        .prop_map(
            |(interface, workers, cores, spin_ms, aead, offload, (flows, routes))| Engine {
                interface,
                workers,
                cores,
                spin_ms,
                aead,
                offload,
                flows,
                routes,
            },
        )
}

fn links() -> impl Strategy<Value = Vec<Link>> {
    let port = prop_oneof![Just(LinkPort::Udp), Just(LinkPort::AfXdp), Just(LinkPort::Dpdk)];
    let link = (
        port,
        any::<[bool; 2]>(),
        any::<u8>(),
        option::of(endpoint()),
        any_device(0),
        any::<(u16, u64, u64)>(),
    );
    vec(link, 0..4).prop_map(|links| {
        let links = links.into_iter().zip(1..);
        links
            .map(
                |((port, [metered, behind_nat], group, endpoint, device, (cost, up, down)), id)| Link {
                    id,
                    interface: format!("wan{id}"),
                    port,
                    device: (port == LinkPort::Dpdk).then(|| numbered(device, id)),
                    group,
                    metered,
                    behind_nat,
                    endpoint,
                    cost,
                    rate_up: up,
                    rate_down: down,
                },
            )
            .collect()
    })
}

/// The device under a number of its own.
fn numbered(device: Device, number: u8) -> Device {
    Device {
        name: device
            .name
            .replace("0000:00", &format!("0000:{number:02x}"))
            .replace("0,iface", &format!("{number},iface")),
        ..device
    }
}

fn peers() -> impl Strategy<Value = Vec<Peer>> {
    let peer = (
        option::of(name()),
        any::<[bool; 2]>(),
        option::of(endpoint()),
        option::of(1u16..),
        vec(prefix(), 0..4),
        option::of((any::<IpAddr>(), PING_MIN_MS..=PING_MAX_MS)),
    );
    vec(peer, 1..6).prop_map(|peers| {
        let peers = peers.into_iter().zip(0..);
        peers
            .map(
                |((name, [has_psk, is_remote], endpoint, keepalive, allowed_ips, ping), n)| Peer {
                    name,
                    public_key: [n; 32],
                    has_psk,
                    is_remote,
                    endpoint,
                    keepalive,
                    ping: ping
                        .filter(|_| !is_remote)
                        .map(|(address, interval_ms)| Ping { address, interval_ms }),
                    allowed_ips,
                },
            )
            .collect()
    })
}

fn lans() -> impl Strategy<Value = Vec<Lan>> {
    let neighbour =
        (any::<IpAddr>(), any::<[u8; 5]>()).prop_map(|(addr, [a, b, c, d, e])| (addr, [2, a, b, c, d, e]));
    let port = prop_oneof![
        Just(LanPort::Any),
        Just(LanPort::AfXdp),
        Just(LanPort::AfPacket),
        Just(LanPort::Dpdk)
    ];
    let ethernet = (
        name(),
        port,
        any_device(0),
        vec(prefix(), 0..3),
        vec(neighbour, 0..3),
    )
        .prop_map(|(name, port, device, networks, neighbours)| Lan {
            name,
            port,
            interface: Some("lan".into()),
            device: (port == LanPort::Dpdk).then_some(device),
            networks,
            neighbours,
        });
    let tun = (name(), vec(prefix(), 0..3)).prop_map(|(name, networks)| Lan {
        name,
        port: LanPort::Tun,
        interface: None,
        device: None,
        networks,
        neighbours: vec![],
    });
    (vec(ethernet, 1..4), option::of(tun)).prop_map(|(mut lans, tun)| {
        for (lan, number) in lans.iter_mut().zip(0x80..) {
            lan.interface = Some(format!("lan{number}"));
            lan.device = lan.device.take().map(|device| numbered(device, number));
        }
        lans.extend(tun);
        lans
    })
}

/// To what is there whatever else is: the first peer, the first LAN.
fn hops() -> impl Strategy<Value = Vec<Hop>> {
    let hop = prop_oneof![
        Just(Hop::Discard),
        Just(Hop::Host),
        Just(Hop::Peer(0)),
        any::<IpAddr>().prop_map(|addr| Hop::Neighbour(0, addr)),
    ];
    vec(hop, 1..5)
}

fn policy() -> impl Strategy<Value = Policy> {
    let ports = || option::of(any::<[u16; 2]>().prop_map(|[a, b]| a.min(b)..=a.max(b)));
    let action = prop_oneof![
        Just(Action::Route),
        Just(Action::Drop),
        hops().prop_map(Action::Via)
    ];
    let dscps = option::of(1u64..);
    let networks = (option::of(prefix()), option::of(prefix()));
    (
        option::of(name()),
        networks,
        any::<Option<u8>>(),
        ports(),
        ports(),
        dscps,
        action,
    )
        .prop_map(
            |(name, (src, dst), protocol, src_ports, dst_ports, dscps, action)| Policy {
                name,
                src,
                dst,
                protocol,
                src_ports,
                dst_ports,
                dscps,
                action,
                class: 0,
            },
        )
}

fn classes() -> impl Strategy<Value = Vec<Class>> {
    let mode = prop_oneof![
        Just(Mode::Pinned),
        Just(Mode::ActiveBackup),
        Just(Mode::LowestLatency),
        Just(Mode::Weighted),
        Just(Mode::Duplicate)
    ];
    let dscp = prop_oneof![
        Just(OuterDscp::None),
        Just(OuterDscp::Copy),
        (0u8..64).prop_map(OuterDscp::Set)
    ];
    let limit = || option::of(1..=LIMIT_MAX_US);
    let rest = (option::of(0..=LOSS_MAX_PPM), 0..=HOLD_MAX_MS, any::<bool>());
    let class =
        (mode, dscp, limit(), limit(), rest).prop_map(|(mode, dscp, latency_us, jitter_us, rest)| Class {
            name: Class::DEFAULT.into(),
            mode,
            latency_us,
            jitter_us,
            loss_ppm: rest.0,
            hold_ms: rest.1,
            sticky: if rest.2 { Sticky::Source } else { Sticky::Flow },
            dscp,
        });
    vec(class, 1..=CLASSES_MAX).prop_map(|mut classes| {
        for (class, number) in classes.iter_mut().zip(0..).skip(1) {
            class.name = format!("class{number}");
        }
        classes
    })
}

fn probing() -> impl Strategy<Value = Probing> {
    let idle = |interval_us| (Just(interval_us), interval_us..=PROBE_IDLE_MAX_US, PROBE_RATE);
    let all = PROBE_INTERVAL_US.prop_flat_map(idle);
    all.prop_map(|(interval_us, idle_us, rate)| Probing {
        interval_us,
        idle_us,
        rate,
    })
}

fn host() -> impl Strategy<Value = Host> {
    let address = (any::<IpAddr>(), 0u8..=128).prop_map(|(addr, len)| HostAddress {
        addr,
        len: len.min(if addr.is_ipv4() { 32 } else { 128 }),
    });
    let addresses = prop::collection::btree_map(any::<u8>(), address, 0..4);
    (addresses, option::of(TUN_MTU), any::<bool>()).prop_map(|(addresses, mtu, routes)| {
        let mut addresses: Vec<HostAddress> = addresses.into_values().collect();
        addresses.sort();
        addresses.dedup_by_key(|address| address.addr);
        Host {
            addresses,
            mtu,
            routes,
        }
    })
}

/// Any site.
pub fn site() -> impl Strategy<Value = Site> {
    let route = (prefix(), hops()).prop_map(|(prefix, hops)| Route { prefix, hops });
    let rules = (vec(route, 0..4), vec(policy(), 0..4));
    let engine = (engine(), dpdk(), probing(), classes(), host());
    (engine, any::<(u16, u32)>(), links(), peers(), lans(), rules).prop_map(
        |((engine, dpdk, probing, classes, host), (listen_port, fwmark), links, mut peers, lans, rules)| {
            let (routes, mut policies) = rules;
            for (policy, at) in policies.iter_mut().zip(1..) {
                policy.class = (classes.len() - 1).min(at) as u8;
            }
            // Remotes are reached over links.
            peers
                .iter_mut()
                .for_each(|peer| peer.is_remote &= !links.is_empty());
            Site {
                engine,
                dpdk,
                listen_port,
                fwmark,
                links,
                peers,
                lans,
                routes,
                policies,
                classes,
                probing,
                host,
            }
        },
    )
}
