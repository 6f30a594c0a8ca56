//! Next hops and own addresses over a veth pair whose other end is another host: a namespace of its own with its own kernel addresses.
//! What needs privileges is skipped, with a word, where there are none.

mod common;

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use common::{OURS, ifindex, ip, readable, run};
use patronus_io::netlink::{AddressEvent, Addresses, Neighbour, NeighbourEvent, Neighbours, Prefix};
use patronus_io::solicit::{Solicitation, Solicitor};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
const THEIRS: [u8; 6] = [2, 0, 0, 0, 0, 0xb];

/// Runs a test beside a veth pair, the other end of which is in a namespace that the test's `ip -n` does not know by name: it is reached
/// by the number of a process in it.
fn with_neighbour(test: impl FnOnce(&dyn Fn(&str)) + Send + 'static) {
    common::in_namespace(|| {
        common::veth();
        // Neighbour discovery asks from a link-local address.
        ip("addr add fe80::a/64 dev va nodad");
        // A process that does nothing holds the other namespace open.
        let mut holder = std::process::Command::new("unshare")
            .args(["-n", "sleep", "60"])
            .spawn()
            .expect("run unshare");
        let pid = holder.id();
        wait_for_other_namespace(pid);
        ip(&format!("link set vb netns {pid}"));
        let there = |args: &str| run("nsenter", &format!("-t {pid} -n ip {args}"));
        there("link set vb address 02:00:00:00:00:0b");
        there("addr add 192.0.2.9/24 dev vb");
        there("addr add 2001:db8::9/64 dev vb nodad");
        there("link set vb up");
        quick_to_fail();
        test(&there);
        holder.kill().expect("our own child");
        holder.wait().expect("its end");
    });
}

fn wait_for_other_namespace(pid: u32) {
    let own = std::fs::read_link("/proc/thread-self/ns/net").expect("a namespace");
    let end = Instant::now() + PATIENCE;
    while std::fs::read_link(format!("/proc/{pid}/ns/net")).expect("a namespace") == own {
        assert!(Instant::now() < end, "unshare takes too long");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Makes the kernel give up on neighbours sooner, so that tests are short.
fn quick_to_fail() {
    for version in ["ipv4", "ipv6"] {
        let file = format!("/proc/sys/net/{version}/neigh/va/retrans_time_ms");
        std::fs::write(file, "50").expect("a setting of this namespace");
    }
}

/// Reads until a neighbour is as expected.
fn wait_until(neighbours: &mut Neighbours, address: IpAddr, expected: Neighbour) {
    let end = Instant::now() + PATIENCE;
    let mut events = Vec::new();
    while neighbours.get(ifindex("va"), address) != Some(expected) {
        assert!(Instant::now() < end, "{address} is not {expected:?}: {events:?}");
        readable(neighbours.as_fd());
        neighbours.read(&mut events).expect("read");
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn neighbours_are_resolved_followed_and_kept() {
    with_neighbour(|there| {
        let mut neighbours = Neighbours::new().expect("neighbours");
        let va = ifindex("va");
        for at in ["192.0.2.9", "2001:db8::9"].map(address) {
            assert_eq!(neighbours.ask(va, at).expect("ask"), Neighbour::Unknown);
            wait_until(&mut neighbours, at, Neighbour::Known(THEIRS));
            assert_eq!(
                neighbours.ask(va, at).expect("ask"),
                Neighbour::Known(THEIRS),
                "known at once"
            );
        }
        let kept = std::process::Command::new("ip")
            .args(["neigh", "show", "dev", "va"])
            .output();
        let kept = String::from_utf8(kept.expect("run ip").stdout).expect("text");
        assert_eq!(kept.matches("managed").count(), 2, "{kept}");
        // Another link address, of which the neighbour tells on its own.
        there("link set vb down");
        there("link set vb address 02:00:00:00:00:0c");
        there("link set vb up");
        there("addr replace 2001:db8::9/64 dev vb nodad");
        // The carrier was gone, and with it the entries.
        for at in ["192.0.2.9", "2001:db8::9"].map(address) {
            let end = Instant::now() + PATIENCE;
            let moved = Neighbour::Known([2, 0, 0, 0, 0, 0xc]);
            while neighbours.get(va, at) != Some(moved) {
                assert!(Instant::now() < end, "{at}: {:?}", neighbours.get(va, at));
                if neighbours.get(va, at) == Some(Neighbour::Unknown) {
                    neighbours.ask(va, at).expect("ask");
                }
                readable(neighbours.as_fd());
                neighbours.read(&mut Vec::new()).expect("read");
            }
        }
        // Somebody says otherwise.
        ip("neigh replace 192.0.2.9 lladdr 02:00:00:00:00:0d dev va nud reachable");
        let other = Neighbour::Known([2, 0, 0, 0, 0, 0xd]);
        wait_until(&mut neighbours, address("192.0.2.9"), other);
        for at in ["192.0.2.9", "2001:db8::9"].map(address) {
            neighbours.forget(va, at).expect("forget");
            assert_eq!(neighbours.get(va, at), None);
        }
        let kept = std::process::Command::new("ip")
            .args(["neigh", "show", "dev", "va"])
            .output();
        let kept = String::from_utf8(kept.expect("run ip").stdout).expect("text");
        assert!(!kept.contains("managed"), "{kept}");
    });
}

/// Asks once, and says who has answered soon.
fn solicit(solicitor: &Solicitor, question: &Solicitation) -> Vec<IpAddr> {
    let mut answers = Vec::new();
    solicitor.ask(question).expect("ask");
    let end = Instant::now() + Duration::from_millis(300);
    while answers.is_empty() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(2));
        solicitor.read(&mut answers);
    }
    answers
}

#[test]
fn who_is_there_answers_and_nobody_else() {
    with_neighbour(|there| {
        let mut solicitor = Solicitor::new().expect("rights");
        let question = |target: &str, known| Solicitation {
            target: address(target),
            source: Some(address("192.0.2.1")),
            mac: common::OURS,
            known,
        };
        for round in 0..2 {
            solicitor.set_interface(ifindex("va")).expect("an interface");
            for target in ["192.0.2.9", "2001:db8::9"] {
                for known in [None, Some(THEIRS)] {
                    let answers = solicit(&solicitor, &question(target, known));
                    assert!(
                        answers.contains(&address(target)),
                        "{target} {known:?} {round}: {answers:?}"
                    );
                }
            }
            for target in ["192.0.2.8", "2001:db8::8"] {
                assert_eq!(
                    solicit(&solicitor, &question(target, None)),
                    [] as [IpAddr; 0],
                    "{target}"
                );
            }
            // The neighbour stays; its addresses do not.
            there("addr flush dev vb");
            for target in ["192.0.2.9", "2001:db8::9"] {
                let answers = solicit(&solicitor, &question(target, Some(THEIRS)));
                assert!(!answers.contains(&address(target)), "{target}: {answers:?}");
            }
            there("addr add 192.0.2.9/24 dev vb");
            there("addr add 2001:db8::9/64 dev vb nodad");
        }
    });
}

#[test]
fn who_does_not_answer_has_failed_until_it_does() {
    with_neighbour(|there| {
        let mut neighbours = Neighbours::new().expect("neighbours");
        for (at, add) in [
            ("192.0.2.77", "addr add 192.0.2.77/24 dev vb"),
            ("2001:db8::77", "addr add 2001:db8::77/64 dev vb nodad"),
        ] {
            let at = address(at);
            assert_eq!(
                neighbours.ask(ifindex("va"), at).expect("ask"),
                Neighbour::Unknown
            );
            wait_until(&mut neighbours, at, Neighbour::Failed);
            there(add);
            // Again by hand: how soon the kernel does so by itself is its own affair.
            neighbours.ask(ifindex("va"), at).expect("ask");
            wait_until(&mut neighbours, at, Neighbour::Known(THEIRS));
        }
    });
}

#[test]
fn entries_made_by_hand_are_left_as_they_are() {
    with_neighbour(|_| {
        let mut neighbours = Neighbours::new().expect("neighbours");
        let (va, at) = (ifindex("va"), address("192.0.2.50"));
        ip("neigh add 192.0.2.50 lladdr 02:00:00:00:00:50 dev va nud permanent");
        let fixed = Neighbour::Known([2, 0, 0, 0, 0, 0x50]);
        assert_eq!(neighbours.ask(va, at).expect("ask"), fixed);
        neighbours.forget(va, at).expect("forget");
        let shown = std::process::Command::new("ip")
            .args(["neigh", "show", "192.0.2.50", "dev", "va"])
            .output();
        let shown = String::from_utf8(shown.expect("run ip").stdout).expect("text");
        assert!(shown.contains("PERMANENT"), "{shown}");
        let error = neighbours.ask(9999, at).expect_err("no such interface");
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
        assert_eq!(neighbours.get(9999, at), None);
    });
}

/// Many changes, which nobody reads meanwhile.
fn flood(line: impl Fn(usize) -> String, times: usize) {
    use std::io::Write;
    let mut batch = std::process::Command::new("ip")
        .args(["-batch", "-"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .expect("run ip");
    let mut input = batch.stdin.take().expect("its input");
    for n in 0..times {
        writeln!(input, "{}", line(n)).expect("write");
    }
    drop(input);
    assert!(batch.wait().expect("its end").success());
}

#[test]
fn what_was_missed_is_read_from_the_tables() {
    with_neighbour(|_| {
        let mut neighbours = Neighbours::new().expect("neighbours");
        let mut addresses = Addresses::new().expect("addresses");
        let va = ifindex("va");
        let [stays, goes] = ["192.0.2.40", "192.0.2.41"].map(address);
        for at in [stays, goes] {
            ip(&format!(
                "neigh add {at} lladdr 02:00:00:00:00:40 dev va nud permanent"
            ));
            neighbours.ask(va, at).expect("ask");
        }
        neighbours.read(&mut Vec::new()).expect("read");
        // More than the sockets have room for; at the end one is gone and one is another.
        let line = |n| {
            format!(
                "neigh replace 192.0.2.40 lladdr 02:00:00:00:00:{:02x} dev va nud permanent",
                n % 251
            )
        };
        flood(line, 3000);
        ip("neigh del 192.0.2.41 dev va");
        ip("neigh replace 192.0.2.40 lladdr 02:00:00:00:00:ff dev va nud permanent");
        wait_until(&mut neighbours, stays, Neighbour::Known([2, 0, 0, 0, 0, 0xff]));
        wait_until(&mut neighbours, goes, Neighbour::Unknown);
        flood(
            |n| format!("addr {} 10.9.9.9/24 dev va", ["add", "del"][n % 2]),
            3000,
        );
        ip("addr add 10.9.9.10/24 dev va");
        ip("addr del 192.0.2.1/24 dev va");
        let mut events = Vec::new();
        let end = Instant::now() + PATIENCE;
        let own = |text| Prefix {
            ifindex: va,
            address: address(text),
            len: 24,
        };
        while !events.contains(&AddressEvent::Removed(own("192.0.2.1"))) {
            assert!(Instant::now() < end, "{events:?}");
            readable(addresses.as_fd());
            addresses.read(&mut events).expect("read");
        }
        let now: Vec<_> = addresses.on(va).filter(|p| p.address.is_ipv4()).collect();
        assert_eq!(now, [own("10.9.9.10")]);
    });
}

#[test]
fn own_addresses_are_known_and_followed() {
    common::in_namespace(|| {
        common::veth();
        let va = ifindex("va");
        let mut addresses = Addresses::new().expect("addresses");
        let prefix = |text, len| Prefix {
            ifindex: va,
            address: address(text),
            len,
        };
        let [v4, v6] = [prefix("192.0.2.1", 24), prefix("2001:db8::1", 64)];
        assert_eq!(addresses.on(va).collect::<Vec<_>>(), [v4, v6]);
        assert!(addresses.all().any(|p| p.address == address("127.0.0.1")));
        let interface = addresses.interface(va).expect("the interface");
        assert_eq!((interface.mac, interface.mtu), (Some(OURS), 1500));
        assert!(interface.running);
        let mut told = |change: &str, expected: &[AddressEvent]| {
            ip(change);
            let (mut events, end) = (Vec::new(), Instant::now() + PATIENCE);
            while !expected.iter().all(|event| events.contains(event)) {
                assert!(Instant::now() < end, "{change}: {events:?}, not {expected:?}");
                readable(addresses.as_fd());
                addresses.read(&mut events).expect("read");
            }
        };
        let third = prefix("198.51.100.7", 28);
        told("addr add 198.51.100.7/28 dev va", &[AddressEvent::Added(third)]);
        told("addr del 198.51.100.7/28 dev va", &[AddressEvent::Removed(third)]);
        told(
            "link set va address 02:00:00:00:00:77",
            &[AddressEvent::Interface(
                va,
                patronus_io::netlink::Interface {
                    mac: Some([2, 0, 0, 0, 0, 0x77]),
                    ..interface
                },
            )],
        );
        told(
            "link del va",
            &[
                AddressEvent::Removed(v4),
                AddressEvent::Removed(v6),
                AddressEvent::Gone(va),
            ],
        );
        assert_eq!(addresses.on(va).count(), 0);
        assert_eq!(addresses.interface(va), None);
    });
}

#[test]
fn nobody_hears_of_neighbours_that_nobody_wants() {
    common::in_namespace(|| {
        common::veth();
        let mut neighbours = Neighbours::new().expect("neighbours");
        let mut events: Vec<NeighbourEvent> = Vec::new();
        ip("neigh add 192.0.2.60 lladdr 02:00:00:00:00:60 dev va nud permanent");
        assert!(readable(neighbours.as_fd()));
        neighbours.read(&mut events).expect("read");
        assert_eq!(
            (events.len(), neighbours.get(ifindex("va"), address("192.0.2.60"))),
            (0, None)
        );
    });
}
