//! Paths that swallow large packets without a word: what goes through a tunnel over them fits, or comes in pieces.

use patronus_netns::{Hop, Keys, Namespace};
use patronus_tests::{Edge, LIMIT, Need, OUTER, eventually, hop_plan, host_on, may_run, ping};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// Two sites with a host behind each, and a hop between them. The sites' own hosts are behind their TUNs.
struct Sites {
    hop: Hop,
    edges: [Edge; 2],
    sites: [Namespace; 2],
    hosts: [Namespace; 2],
}

/// Where packets go: from the first site's host, or a host on its LAN, to the same of the other site.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Of {
    Tun,
    Lan,
}

fn outer(v6: bool, site: u8) -> IpAddr {
    match v6 {
        false => Ipv4Addr::new(192, 0, 2, site).into(),
        true => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, site.into()).into(),
    }
}

impl Sites {
    /// `kind`: what the sites are to each other; `port`: of their links.
    fn up(v6_outer: bool, kind: &str, port: &str, hop: &[&str]) -> Sites {
        let sites = [(); 2].map(|()| Namespace::new("site").unwrap());
        let hop = Hop::between(&sites[0], OUTER, &sites[1], OUTER, 1500, &hop_plan(hop)).unwrap();
        for (site, number) in sites.iter().zip(1..) {
            let len = if v6_outer { 64 } else { 24 };
            let address = format!("{}/{len}", outer(v6_outer, number));
            site.address(OUTER, &address).unwrap();
        }
        let hosts = [1, 2].map(|number| host_on(&sites[usize::from(number) - 1], "lan", number, 1).unwrap());
        let keys = [(); 2].map(|()| Keys::generate().unwrap());
        let edges = [1u8, 2].map(|number| {
            let other = 3 - number;
            let endpoint = std::net::SocketAddr::new(outer(v6_outer, other), 51820);
            let text = format!(
                "[[link]]\nid = 1\ninterface = '{OUTER}'\nport = '{port}'\n\
                 [[lan]]\nname = 'inside'\nport = 'af_packet'\ninterface = 'lan'\n\
                 [[{kind}]]\nname = 'other'\npublic_key = '{}'\nendpoint = '{endpoint}'\n\
                 allowed_ips = ['192.168.{other}.0/24', 'fd00:{other}::/64', '10.99.0.{other}/32', 'fd99::{other}/128']\n",
                keys[usize::from(other) - 1].public
            );
            let site = &sites[usize::from(number) - 1];
            let edge = Edge::start(site, &keys[usize::from(number) - 1], &text).unwrap();
            let tun = edge.interface();
            site.ip(&format!("link set {tun} mtu 1420")).unwrap();
            site.address(tun, &format!("10.99.0.{number}/24")).unwrap();
            site.address(tun, &format!("fd99::{number}/64")).unwrap();
            edge
        });
        let sites = Sites {
            hop,
            edges,
            sites,
            hosts,
        };
        for of in [Of::Tun, Of::Lan] {
            for v6 in [false, true] {
                let reaches = || sites.ping(of, v6, "-c 1 -W 1").contains(" 0% packet loss");
                assert!(eventually(reaches), "{of:?}, IPv6: {v6}: {}", sites.log());
            }
        }
        sites
    }

    fn log(&self) -> String {
        self.edges.iter().map(Edge::log).collect()
    }

    fn host(&self, of: Of, site: usize) -> &Namespace {
        match of {
            Of::Tun => &self.sites[site],
            Of::Lan => &self.hosts[site],
        }
    }

    /// The address there.
    fn address(of: Of, v6: bool, site: usize) -> IpAddr {
        let number = site as u8 + 1;
        match (of, v6) {
            (Of::Tun, false) => Ipv4Addr::new(10, 99, 0, number).into(),
            (Of::Tun, true) => Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, number.into()).into(),
            (Of::Lan, false) => Ipv4Addr::new(192, 168, number, 2).into(),
            (Of::Lan, true) => Ipv6Addr::new(0xfd00, number.into(), 0, 0, 0, 0, 0, 2).into(),
        }
    }

    fn ping(&self, of: Of, v6: bool, arguments: &str) -> String {
        let to = Sites::address(of, v6, 1);
        ping(self.host(of, 0), &format!("{arguments} {to}")).unwrap()
    }

    /// A connection from the first site to the other one.
    fn connect(&self, of: Of, v6: bool) -> (TcpStream, TcpStream) {
        let to = (Sites::address(of, v6, 1), 0);
        let listener = self.host(of, 1).run(|| TcpListener::bind(to)).unwrap().unwrap();
        let to = listener.local_addr().unwrap();
        let connect = || TcpStream::connect_timeout(&to, LIMIT);
        let near = self.host(of, 0).run(connect).unwrap().unwrap();
        let (far, _) = listener.accept().unwrap();
        for stream in [&near, &far] {
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            stream.set_write_timeout(Some(LIMIT)).unwrap();
        }
        (near, far)
    }

    /// What all workers of both sites have counted.
    fn sum(&self, counter: &str) -> u64 {
        self.edges
            .iter()
            .map(|edge| edge.stats().unwrap().sum(counter))
            .sum()
    }
}

/// Sends so many bytes, which have to arrive.
fn transfer((near, far): (&mut TcpStream, &mut TcpStream), bytes: usize) {
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| near.write_all(&vec![7; bytes]).unwrap());
        let mut arrived = vec![0; bytes];
        far.read_exact(&mut arrived)
            .unwrap_or_else(|error| panic!("after {:?}: {error}", start.elapsed()));
        assert!(arrived.iter().all(|byte| *byte == 7));
    });
}

/// A path that has always taken 1,400 bytes.
fn everything_fits(v6_outer: bool, port: &str) {
    let mut sites = Sites::up(v6_outer, "remote", port, &["mtu 1400"]);
    // 60 or 80 bytes outside, and a multiple of 16 inside.
    let mtu = if v6_outer { 1312 } else { 1328 };
    for of in [Of::Tun, Of::Lan] {
        for v6 in [false, true] {
            let (mut near, mut far) = sites.connect(of, v6);
            transfer((&mut near, &mut far), 1 << 20);
            transfer((&mut far, &mut near), 1 << 20);
        }
    }
    // The search is over by now, and what is sent is no longer than what passes.
    let longer = |header: usize| format!("-c 3 -i 0.2 -W 2 -s {}", mtu + 1 - header - 8);
    let fits = |header: usize| format!("-c 3 -i 0.2 -W 2 -s {}", mtu - header - 8);
    for of in [Of::Tun, Of::Lan] {
        for (v6, header) in [(false, 20), (true, 40)] {
            let said = sites.ping(of, v6, &format!("-M do {}", fits(header)));
            assert!(said.contains(" 0% packet loss"), "{of:?}: {said}");
            let said = sites.ping(of, v6, &format!("-M do {}", longer(header)));
            let told = [format!("mtu = {mtu}"), format!("mtu={mtu}")];
            assert!(
                told.iter().any(|told| said.contains(told)),
                "{of:?}, IPv6 {v6}: {said}"
            );
        }
    }
    // Routes remember what they were told: another host has to be asked for the others. A packet that may be cut up arrives.
    for of in [Of::Tun, Of::Lan] {
        sites.host(of, 0).ip("route flush cache").unwrap();
        let said = sites.ping(of, false, &format!("-M dont {}", longer(20)));
        assert!(said.contains(" 0% packet loss"), "{of:?}: {said}");
    }
    assert!(
        sites.sum(".fragmented") >= 6,
        "{:?}",
        sites.edges[0].stats().unwrap()
    );
    assert!(sites.sum(".mss-clamped") >= 4);
    assert!(sites.sum(".drop.encap-too-big") >= 2);
    // Nothing but what asks for sizes was swallowed.
    let swallowed = |sites: &mut Sites| {
        let counters = sites.hop.counters().unwrap();
        counters.get("a->b.dropped_mtu") + counters.get("b->a.dropped_mtu")
    };
    let before = (swallowed(&mut sites), sites.sum(".sizes-sent"));
    let (mut near, mut far) = sites.connect(Of::Lan, false);
    transfer((&mut near, &mut far), 4 << 20);
    let after = (swallowed(&mut sites), sites.sum(".sizes-sent"));
    assert!(after.0 - before.0 <= after.1 - before.1, "{before:?} {after:?}");
}

#[test]
fn everything_fits_over_ipv4() {
    if may_run(&[Need::Root]) {
        everything_fits(false, "udp");
    }
}

#[test]
fn everything_fits_over_ipv6() {
    if may_run(&[Need::Root]) {
        everything_fits(true, "udp");
    }
}

#[test]
fn everything_fits_over_af_xdp() {
    if may_run(&[Need::Root]) {
        everything_fits(false, "af_xdp");
    }
}

/// A connection goes on over a path that begins to swallow what it has let pass.
#[test]
fn a_connection_survives_a_path_that_gets_shorter() {
    if !may_run(&[Need::Root]) {
        return;
    }
    let mut sites = Sites::up(false, "remote", "udp", &[]);
    let mut streams = [Of::Tun, Of::Lan].map(|of| sites.connect(of, false));
    for (near, far) in &mut streams {
        transfer((near, far), 1 << 20);
    }
    let longest = format!("-c 1 -W 1 -M do -s {}", 1420 - 28);
    let said = sites.ping(Of::Lan, false, &longest);
    assert!(said.contains(" 0% packet loss"), "{said}");
    sites.hop.command("mtu 1370").unwrap();
    for (near, far) in &mut streams {
        transfer((near, far), 1 << 20);
        transfer((far, near), 1 << 20);
    }
    sites.hop.command("mtu off").unwrap();
    let again = || {
        sites
            .ping(Of::Lan, true, "-c 1 -W 1 -M do -s 1372")
            .contains(" 0% packet loss")
    };
    let start = Instant::now();
    while !again() {
        assert!(start.elapsed() < Duration::from_secs(40), "{}", sites.log());
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// What the tests above are about: between stock peers large packets vanish.
#[test]
fn a_peer_that_knows_nothing_of_sizes_loses_what_is_too_long() {
    if !may_run(&[Need::Root]) {
        return;
    }
    let sites = Sites::up(false, "peer", "udp", &["mtu 1400"]);
    let said = sites.ping(Of::Lan, false, "-c 3 -i 0.2 -W 1 -M dont -s 1372");
    assert!(said.contains(" 100% packet loss"), "{said}");
}
