//! The impairment hop in namespaces: what it says that it does is what packets meet; then a tunnel through it.

use patronus_netns::{Hop, Kind, Namespace, probe};
use patronus_tests::{
    Capture, LIMIT, MessageKind, Need, OUTER, endpoint_of, eventually, hop_plan, may_run, ping, sites, stats,
    tcp,
};
use std::net::UdpSocket;
use std::time::{Duration, Instant};

/// Two namespaces, 192.0.2.1 and 192.0.2.2, and the hop between them.
struct Pair {
    hop: Hop,
    a: Namespace,
    b: Namespace,
}

impl Pair {
    fn up(args: &[&str]) -> Pair {
        let (a, b) = (Namespace::new("a").unwrap(), Namespace::new("b").unwrap());
        let hop = Hop::between(&a, OUTER, &b, OUTER, 1500, &hop_plan(args)).unwrap();
        for (namespace, number) in [(&a, 1), (&b, 2)] {
            namespace.address(OUTER, &format!("192.0.2.{number}/24")).unwrap();
            namespace
                .address(OUTER, &format!("2001:db8::{number}/64"))
                .unwrap();
        }
        let pair = Pair { hop, a, b };
        // Whoever asks for a link address does it before anything is counted.
        for target in ["192.0.2.2", "2001:db8::2"] {
            let said = ping(&pair.a, &format!("-c 1 -W 5 {target}")).unwrap();
            assert!(said.contains(" 1 received"), "{said}");
        }
        pair
    }

    fn sockets(&self) -> (UdpSocket, UdpSocket) {
        let bind = |namespace: &Namespace, address: &'static str| {
            let socket = namespace.run(|| UdpSocket::bind(address)).unwrap().unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
            socket
        };
        (bind(&self.a, "192.0.2.1:1000"), bind(&self.b, "192.0.2.2:2000"))
    }

    fn command(&mut self, command: &str) {
        self.hop.command(command).unwrap();
    }

    /// How much a counter grows while `work` is done.
    fn growth(&mut self, name: &str, work: impl FnOnce(&Pair)) -> u64 {
        let before = self.hop.counters().unwrap().get(name);
        work(self);
        self.hop.counters().unwrap().get(name) - before
    }
}

impl Drop for Pair {
    /// However a test ends, nothing is unaccounted for.
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let counters = self.hop.counters().unwrap();
        for direction in ["a->b", "b->a"] {
            assert!(counters.balance(direction), "{counters:?}");
            assert_eq!(counters.get(&format!("{direction}.missed")), 0);
        }
    }
}

/// Sends numbered datagrams with pauses, so that no queue but the hop's own can overflow; gives the numbers that arrive, in order.
fn numbers(pair: &Pair, count: u32, length: usize) -> Vec<u32> {
    let (near, far) = pair.sockets();
    let mut arrived = Vec::new();
    let mut buffer = [0; 2048];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..count {
                let mut datagram = vec![0; length];
                datagram[..4].copy_from_slice(&number.to_le_bytes());
                near.send_to(&datagram, "192.0.2.2:2000").unwrap();
                if number % 10 == 9 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        while let Ok((_, _)) = far.recv_from(&mut buffer) {
            arrived.push(u32::from_le_bytes(*buffer.first_chunk().unwrap()));
        }
    });
    arrived
}

/// One datagram there, and whether it arrives.
fn arrives(from: &UdpSocket, to: &UdpSocket, length: usize) -> bool {
    let sent = vec![7; length];
    from.send_to(&sent, to.local_addr().unwrap()).unwrap();
    let mut buffer = [0; 2048];
    to.recv_from(&mut buffer).is_ok_and(|(n, _)| buffer[..n] == sent)
}

#[test]
fn delay_is_what_was_asked_for() {
    if !may_run(&[]) {
        return;
    }
    let mut pair = Pair::up(&["a->b delay 30ms", "b->a delay 10ms"]);
    let least = |pair: &Pair| {
        let said = ping(&pair.a, "-c 10 -i 0.05 -q 192.0.2.2").unwrap();
        let times = said.split(" = ").nth(1).unwrap_or_else(|| panic!("{said}"));
        times.split('/').next().unwrap().parse::<f64>().unwrap()
    };
    let round_trip = least(&pair);
    // The least of ten: the machine may be busy now and then, but nothing may be early.
    assert!((40.0..50.0).contains(&round_trip), "{round_trip} ms");
    pair.command("delay off");
    let round_trip = least(&pair);
    assert!(round_trip < 10.0, "{round_trip} ms");
}

#[test]
fn losses_are_counted_and_repeat() {
    if !may_run(&[]) {
        return;
    }
    let mut pair = Pair::up(&["--seed", "5"]);
    pair.command("a->b loss burst 2% 25%");
    let mut runs = Vec::new();
    // Nothing but the datagrams may count: no neighbour is looked for, and IPv6 is silent.
    pair.a
        .sysctl(&format!("net.ipv6.conf.{OUTER}.disable_ipv6"), "1")
        .unwrap();
    let neighbour = format!(
        "neigh replace 192.0.2.2 dev {OUTER} nud permanent lladdr {}",
        mac(&pair.b)
    );
    pair.a.ip(&neighbour).unwrap();
    for _ in 0..2 {
        pair.command("seed 5");
        let mut arrived = Vec::new();
        let lost = pair.growth("a->b.lost", |pair| arrived = numbers(pair, 1000, 100));
        assert_eq!(arrived.len() as u64 + lost, 1000);
        assert!((10..200).contains(&lost), "{lost}");
        runs.push(arrived);
    }
    assert_eq!(runs[0], runs[1]);
}

fn mac(namespace: &Namespace) -> String {
    let said = namespace.ip(&format!("-o link show {OUTER}")).unwrap();
    let mut words = said.split_whitespace().skip_while(|word| *word != "link/ether");
    words.nth(1).unwrap().to_owned()
}

#[test]
fn a_rate_holds_and_its_queue_is_bounded() {
    if !may_run(&[]) {
        return;
    }
    let mut pair = Pair::up(&[]);
    // 1,000 bytes a frame: 2 ms each.
    pair.command("a->b rate 4Mbit queue 20kB");
    let (near, far) = pair.sockets();
    let payload = [0; 1000 - 42];
    let start = Instant::now();
    let dropped = pair.growth("a->b.dropped_queue", |_| {
        for _ in 0..100 {
            near.send_to(&payload, "192.0.2.2:2000").unwrap();
        }
        let mut buffer = [0; 2048];
        let mut arrived = 0u32;
        let mut last = start.elapsed();
        while far.recv_from(&mut buffer).is_ok() {
            arrived += 1;
            last = start.elapsed();
        }
        // As long as the first 100 take to be sent, more than 20 may find room.
        assert!((20..100).contains(&arrived), "{arrived}");
        assert!(
            last >= Duration::from_millis(2) * arrived,
            "{arrived} frames in {last:?}"
        );
    });
    assert!(dropped > 0, "{dropped}");
}

#[test]
fn too_long_packets_vanish_also_out_of_super_packets() {
    if !may_run(&[]) {
        return;
    }
    let mut pair = Pair::up(&["mtu 1400"]);
    let (near, far) = pair.sockets();
    let dropped = pair.growth("a->b.dropped_mtu", |_| {
        assert!(arrives(&near, &far, 1400 - 28));
        assert!(!arrives(&near, &far, 1400 - 27));
    });
    assert_eq!(dropped, 1);
}

#[test]
fn one_direction_is_cut_and_mended() {
    if !may_run(&[]) {
        return;
    }
    let mut pair = Pair::up(&[]);
    let (near, far) = pair.sockets();
    pair.command("cut a->b");
    assert!(!arrives(&near, &far, 10));
    assert!(arrives(&far, &near, 10));
    pair.command("mend");
    assert!(arrives(&near, &far, 10));
    pair.command("cut");
    assert!(!arrives(&far, &near, 10));
    pair.command("clear");
    assert!(arrives(&far, &near, 10));
}

#[test]
fn doubles_and_overtaking_arrive_so() {
    if !may_run(&[]) {
        return;
    }
    let mut pair = Pair::up(&[]);
    pair.command("a->b duplicate 100%");
    let arrived = numbers(&pair, 100, 100);
    let twice: Vec<u32> = (0..100).flat_map(|number| [number, number]).collect();
    assert_eq!(arrived, twice);
    pair.command("clear");
    pair.command("a->b reorder 10% by 20ms");
    let mut arrived = Vec::new();
    let reordered = pair.growth("a->b.reordered", |pair| arrived = numbers(pair, 300, 100));
    assert!(reordered > 5 && !arrived.is_sorted());
    arrived.sort_unstable();
    assert_eq!(arrived, (0..300).collect::<Vec<_>>());
}

#[test]
fn damage_is_found_by_checksums() {
    if !may_run(&[]) {
        return;
    }
    let mut pair = Pair::up(&[]);
    pair.command("a->b corrupt 100%");
    let (near, far) = pair.sockets();
    let corrupted = pair.growth("a->b.corrupted", |_| {
        for _ in 0..20 {
            near.send_to(&[0; 500], "192.0.2.2:2000").unwrap();
        }
        assert!(far.recv_from(&mut [0; 1000]).is_err(), "one bit went unnoticed");
    });
    assert!(corrupted >= 20);
}

#[test]
fn scripts_run_and_errors_are_said() {
    if !may_run(&[]) {
        return;
    }
    let mut pair = Pair::up(&["at 600s cut"]);
    let error = pair.hop.command("a->b los 5%").unwrap_err().to_string();
    assert!(
        error.contains("column 6") && error.contains("did you mean `loss`"),
        "{error}"
    );
    // At once: that time is over.
    pair.command("at 1ns cut a->b");
    let (near, far) = pair.sockets();
    assert!(!arrives(&near, &far, 10));
    pair.command("mend");
    let mut wrong = Hop::between(&pair.a, "x", &pair.b, "x", 1500, &hop_plan(&["delay"])).err();
    let said = wrong.take().expect("refused").to_string();
    assert!(said.contains("expected a delay, such as 20ms"), "{said}");
}

/// TCP over the plain link, with super-packets and checksums that the kernel leaves to a card: each packet on its own, every byte right.
#[test]
fn offloads_are_finished() {
    if !may_run(&[]) {
        return;
    }
    let mut plan = sites(Kind::Plain, Kind::Plain);
    plan.mtu = 1500;
    plan.hop = Some(hop_plan(&["mtu 1500", "a->b delay 2ms jitter 1ms"]));
    let mut tunnel = plan.up().unwrap();
    for v6 in [false, true] {
        tunnel.probe(v6, LIMIT).unwrap();
        tcp(&tunnel.a, &tunnel.b, v6, 2_000_000).unwrap();
        tcp(&tunnel.b, &tunnel.a, v6, 2_000_000).unwrap();
    }
    let counters = tunnel.hop().unwrap().counters().unwrap();
    assert_eq!(
        counters.get("a->b.dropped_mtu") + counters.get("b->a.dropped_mtu"),
        0
    );
    assert_eq!(
        counters.get("a->b.dropped_malformed") + counters.get("b->a.dropped_malformed"),
        0
    );
    assert!(
        counters.get("a->b.packets") > 2 * 2_000_000 / 1500,
        "{counters:?}"
    );
}

/// A NAT gives the tunnel another UDP port: the peer follows, and no handshake is needed.
fn rebound(near: Kind, far: Kind, v6_outer: bool) {
    if !may_run(&[Need::Daemon(near), Need::Daemon(far)]) {
        return;
    }
    let mut plan = sites(near, far);
    plan.v6_outer = v6_outer;
    plan.hop = Some(hop_plan(&["nat a->b"]));
    let mut tunnel = plan.up().unwrap();
    tunnel.probe(false, LIMIT).unwrap();
    let endpoint = |tunnel: &patronus_netns::Tunnel| endpoint_of(tunnel.b.daemon.as_ref().unwrap());
    let before = endpoint(&tunnel).unwrap();
    assert_eq!(before.ip(), tunnel.a.outer.ip());
    assert_ne!(before.port(), tunnel.a.outer.port());
    let capture = Capture::start(&tunnel.b.namespace).unwrap();
    tunnel.hop().unwrap().command("rebind").unwrap();
    tunnel.probe(false, LIMIT).unwrap();
    let after = endpoint(&tunnel).unwrap();
    assert_eq!(after.ip(), before.ip());
    assert_ne!(after.port(), before.port());
    assert_eq!(
        capture.count(|datagram| datagram.kind() == MessageKind::Initiation),
        0
    );
    probe(&tunnel.b, &tunnel.a, false, 100, LIMIT).unwrap();
}

#[test]
fn c59_a_rebound_nat_is_followed_by_the_engine() {
    rebound(Kind::Engine, Kind::Engine, false);
}

#[test]
fn c59_a_rebound_nat_is_followed_by_the_engine_v6() {
    rebound(Kind::WireguardGo, Kind::Engine, true);
}

#[test]
fn c59_a_rebound_nat_is_followed_by_wireguard_go() {
    rebound(Kind::Engine, Kind::WireguardGo, false);
}

/// Another source address too, which the hop answers for.
#[test]
fn c59_a_nat_with_an_address_of_its_own() {
    if !may_run(&[]) {
        return;
    }
    let mut plan = sites(Kind::Engine, Kind::Engine);
    plan.hop = Some(hop_plan(&["nat a->b address 192.0.2.77"]));
    let tunnel = plan.up().unwrap();
    tunnel.probe(false, LIMIT).unwrap();
    let seen = endpoint_of(tunnel.b.daemon.as_ref().unwrap()).unwrap();
    assert_eq!(seen.ip().to_string(), "192.0.2.77");
}

/// Every datagram comes twice: the replay window lets each through once.
#[test]
fn c31_doubled_datagrams_are_dropped_by_the_replay_window() {
    if !may_run(&[]) {
        return;
    }
    let mut plan = sites(Kind::Engine, Kind::Engine);
    plan.hop = Some(hop_plan(&[]));
    let mut tunnel = plan.up().unwrap();
    tunnel.probe(false, LIMIT).unwrap();
    tunnel.hop().unwrap().command("a->b duplicate 100%").unwrap();
    let flow = patronus_tests::Flow::start(&tunnel.a, &tunnel.b, false, Duration::from_millis(1)).unwrap();
    let received = flow.run_for(Duration::from_secs(1));
    assert_eq!(
        (received.lost(), received.duplicated()),
        (0, false),
        "{} sent",
        received.sent
    );
    let daemon = tunnel.b.daemon.as_ref().unwrap();
    assert!(eventually(
        || stats(daemon).is_ok_and(|all| all.sum("decap-replay") >= received.sent)
    ));
}
