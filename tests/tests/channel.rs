//! Engines under control: what is published, what is refused, and what becomes of the traffic when either end is gone.

use patronus_abi::Prefix;
use patronus_config::value::PublicKey;
use patronus_link::{Command, Event, Link, LinkError, NextHop, content_of};
use patronus_netns::{Keys, Namespace};
use patronus_tests::{Controlled, Flow, Random, answer, eventually, may_run, ping};
use rustix::process::Signal;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// Two engines under control, a network between them, and a tunnel over that.
struct Pair {
    a: End,
    b: End,
}

struct End {
    engine: Controlled,
    namespace: Namespace,
    link: Option<Link>,
    number: u8,
}

impl End {
    fn new(number: u8) -> End {
        let namespace = Namespace::new("site").unwrap();
        End {
            engine: Controlled::start(&namespace).unwrap(),
            namespace,
            link: None,
            number,
        }
    }

    fn inner(&self) -> IpAddr {
        Ipv4Addr::new(10, 66, self.number, 1).into()
    }

    /// The other as a peer of this one's file.
    fn text(&self, other: &End, more: &str) -> String {
        let (key, number) = (&other.engine.keys.public, other.number);
        format!(
            "[[peer]]\npublic_key = '{key}'\nallowed_ips = ['10.66.{number}.0/24']\nendpoint = '192.0.2.{number}:51820'\n{more}"
        )
    }

    /// Publishes a site with the other as its peer.
    fn publish(&mut self, text: &str, generation: u64) -> Event {
        let site = self.engine.site(text);
        let engine = &self.engine;
        let link = self.link.get_or_insert_with(|| engine.attach().unwrap());
        engine.publish(link, &site, generation)
    }

    /// Brings the interface up. What is said of it here stays when the engine goes.
    fn set_up(&self) {
        let interface = &self.engine.interface;
        self.namespace.ip(&format!("link set {interface} up")).unwrap();
        self.namespace
            .address(interface, &format!("{}/32", self.inner()))
            .unwrap();
        self.namespace
            .ip(&format!("route add 10.66.0.0/16 dev {interface}"))
            .unwrap();
    }

    fn stat(&self, name: &str) -> u64 {
        let text = patronus_link::query(&self.engine.uapi(), "stats").unwrap();
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        value.expect("a counter").parse().unwrap()
    }
}

fn is_applied(event: &Event, number: u64) -> bool {
    matches!(event, Event::Applied { generation, .. } if *generation == number)
}

impl Pair {
    fn up() -> Pair {
        Pair::up_with("")
    }

    /// With more in the first one's file.
    fn up_with(more: &str) -> Pair {
        let (mut a, mut b) = (End::new(1), End::new(2));
        a.namespace.veth("wan", &b.namespace, "wan", 1500).unwrap();
        a.namespace.address("wan", "192.0.2.1/24").unwrap();
        b.namespace.address("wan", "192.0.2.2/24").unwrap();
        let (to_a, to_b) = (a.text(&b, more), b.text(&a, ""));
        let said = a.publish(&to_a, 1);
        assert!(is_applied(&said, 1), "{said:?}");
        let said = b.publish(&to_b, 1);
        assert!(is_applied(&said, 1), "{said:?}");
        a.set_up();
        b.set_up();
        let pair = Pair { a, b };
        assert!(eventually(|| pair.answers()), "{}", pair.a.engine.process.log());
        pair
    }

    fn answers(&self) -> bool {
        let said = ping(&self.a.namespace, "-c 1 -W 1 10.66.2.1").unwrap();
        said.contains(" 0% packet loss")
    }

    /// Datagrams from the first to the second, one each millisecond.
    fn flow(&self) -> Flow {
        let to = (&self.b.namespace, self.b.inner());
        Flow::between(
            (&self.a.namespace, self.a.inner()),
            &[to],
            Duration::from_millis(1),
        )
        .unwrap()
    }
}

/// The engine is set up by the first site, goes over to the next one, and stays with it when what comes then cannot be.
#[test]
fn sites_are_applied_or_refused_with_a_reason() {
    if !may_run(&[]) {
        return;
    }
    let mut pair = Pair::up();
    let before = pair.a.text(&pair.b, "");
    let flow = pair.flow();
    let more = format!(
        "[[peer]]\npublic_key = '{}'\nallowed_ips = ['10.99.0.0/16']\n",
        Keys::generate().unwrap().public
    );
    let said = pair.a.publish(&format!("{before}{more}"), 2);
    assert!(is_applied(&said, 2), "{said:?}");
    // Another number of workers cannot be had.
    let said = pair.a.publish(&format!("workers = 2\n{before}"), 3);
    let Event::Refused {
        generation: 3,
        reason,
    } = said
    else {
        panic!("{said:?}")
    };
    assert!(reason.contains("restart"), "{reason}");
    // A key file that others may read.
    let key = pair.a.engine.folder().join("site.key");
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let said = pair.a.publish(&before, 4);
    assert!(
        matches!(&said, Event::Refused { generation: 4, reason } if reason.contains("others may use it")),
        "{said:?}"
    );
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let said = pair.a.publish(&before, 5);
    assert!(is_applied(&said, 5), "{said:?}");
    let received = flow.run_for(Duration::from_millis(300));
    assert_eq!(received.lost(), 0);
    assert_eq!(
        (pair.a.stat("control.sites"), pair.a.stat("control.blobs")),
        (1, 1)
    );
    // `wg` may look, and not change anything.
    let said = pair
        .a
        .namespace
        .exec("wg", &["set", &pair.a.engine.interface, "listen-port", "1"]);
    assert!(said.unwrap_err().to_string().contains("not permitted"));
    assert!(
        pair.a
            .namespace
            .exec("wg", &["show", &pair.a.engine.interface])
            .is_ok()
    );
}

/// One control at a time; the next one finds what is in force.
#[test]
fn the_next_control_finds_what_is_in_force() {
    if !may_run(&[]) {
        return;
    }
    let mut pair = Pair::up();
    let path = pair.a.engine.socket();
    assert!(matches!(Link::attach(&path), Err(LinkError::Refused(_))));
    drop(pair.a.link.take());
    let (_link, attached) = Link::attach(&path).unwrap();
    let site = pair.a.engine.site(&pair.a.text(&pair.b, ""));
    assert_eq!(attached.generation, 1);
    assert_eq!(attached.content, content_of(&site.compile()).unwrap());
    assert_eq!(pair.a.stat("control.seconds"), 1);
}

/// Counters are read where they are counted, and what is copied there follows; both stand still when the engine is gone.
#[test]
fn counters_are_read_without_asking() {
    if !may_run(&[]) {
        return;
    }
    let mut pair = Pair::up();
    let statistics = pair.a.link.as_ref().unwrap().statistics();
    let of = |name: &str, labels: &str| {
        let mut values = statistics.values();
        let found = values.find(|value| value.name == name && value.labels.contains(labels));
        found.map(|value| value.value)
    };
    let sealed = || of("stage_packets_total", "stage=\"encap\"").unwrap();
    let before = sealed();
    for _ in 0..10 {
        assert!(pair.answers());
    }
    assert!(sealed() >= before + 10);
    assert_eq!(sealed(), pair.a.stat("worker0.stage.encap.packets"));
    let key = pair.b.engine.keys.public.clone();
    let sent = || of("sent_bytes_total", &key).unwrap_or(0);
    assert!(eventually(|| sent() >= 10 * 128), "{}", sent());
    assert!(of("port_tx_packets_total", "tun0").unwrap() >= 10);
    assert_eq!(of("peers", ""), Some(1));
    // A peer that is gone is not shown.
    let key = Keys::generate().unwrap().public;
    let text = format!("{}[[peer]]\npublic_key = '{key}'\n", pair.a.text(&pair.b, ""));
    assert!(is_applied(&pair.a.publish(&text, 2), 2));
    assert!(eventually(|| of("sent_bytes_total", &key).is_some()));
    let text = pair.a.text(&pair.b, "");
    assert!(is_applied(&pair.a.publish(&text, 3), 3));
    assert!(eventually(|| of("sent_bytes_total", &key).is_none()));
    pair.a.engine.process.signal(Signal::KILL);
    assert!(eventually(|| pair.a.engine.process.ended().is_some()));
    assert!(sealed() >= before + 10);
}

/// Routes by commands: beside the site's, which do not touch them, and there until somebody takes them away.
#[test]
fn dynamic_routes_stay_until_they_are_swept() {
    if !may_run(&[]) {
        return;
    }
    let mut pair = Pair::up();
    let text = |pair: &Pair, more: &str| {
        let text = pair.a.text(&pair.b, more);
        text.replace("'10.66.2.0/24'", "'10.66.2.0/24', '10.67.0.0/16'")
    };
    let rule = "[[policy]]\nname = 'none'\ndst = '10.99.0.0/16'\naction = 'drop'\n";
    // A site that routes has to be set up as one.
    pair.a.link = None;
    let (interface, namespace) = (pair.a.engine.interface.clone(), pair.a.namespace.clone());
    pair.a.engine.process.signal(Signal::KILL);
    assert!(eventually(|| pair.a.engine.process.ended().is_some()));
    pair.a.engine.start_again().unwrap();
    let said = pair.a.publish(&text(&pair, rule), 1);
    assert!(is_applied(&said, 1), "{said:?}");
    namespace
        .ip(&format!("route add 10.67.0.0/16 dev {interface}"))
        .unwrap();
    pair.b.namespace.address("lo", "10.67.5.1/32").unwrap();
    let answers = || {
        ping(&namespace, "-c 1 -W 1 10.67.5.1")
            .unwrap()
            .contains(" 0% packet loss")
    };
    assert!(eventually(answers), "by the prefix of the configuration");
    let prefix = Prefix::new(Ipv4Addr::new(10, 67, 5, 0).into(), 24).unwrap();
    let add = |epoch| Command::RouteAdd {
        prefix,
        owner: 1,
        epoch,
        preference: 20,
        hops: vec![NextHop::Discard],
    };
    let discarded = |pair: &Pair| pair.a.stat("worker0.drop.route-discard");
    pair.a.link.as_mut().unwrap().command(&add(1)).unwrap();
    assert!(eventually(|| {
        answers();
        discarded(&pair) > 0
    }));
    // Neither control's death nor another site changes it.
    pair.a.link = None;
    assert!(!answers());
    let said = pair.a.publish(
        &text(
            &pair,
            &format!("{rule}[[policy]]\nname = 'two'\ndst = '10.98.0.0/16'\naction = 'drop'\n"),
        ),
        2,
    );
    assert!(is_applied(&said, 2), "{said:?}");
    assert!(!answers());
    let link = pair.a.link.as_mut().unwrap();
    // Said again in another life, and not swept with it.
    link.command(&add(2)).unwrap();
    link.command(&Command::Sweep { owner: 1, epoch: 2 }).unwrap();
    assert!(!answers());
    let link = pair.a.link.as_mut().unwrap();
    link.command(&Command::Sweep { owner: 1, epoch: 3 }).unwrap();
    assert!(eventually(answers));
    // What cannot be is told.
    let link = pair.a.link.as_mut().unwrap();
    let lan = NextHop::Neighbour(3, Ipv4Addr::new(10, 0, 0, 1).into());
    let Command::RouteAdd {
        owner,
        epoch,
        preference,
        ..
    } = add(4)
    else {
        unreachable!("it is one")
    };
    let hops = vec![lan];
    link.command(&Command::RouteAdd {
        prefix,
        owner,
        epoch,
        preference,
        hops,
    })
    .unwrap();
    let said = answer(link);
    assert!(
        matches!(&said, Event::CommandsRefused { count: 1, reason } if reason.contains("LAN")),
        "{said:?}"
    );
}

/// Drills are for people, and each has a line in the log: a control that has gone mad does not fill it.
#[test]
fn drills_without_end_are_refused() {
    if !may_run(&[]) {
        return;
    }
    let mut end = End::new(1);
    let link = "[[link]]\nid = 1\ninterface = 'up1'\n";
    let said = end.publish(link, 1);
    assert!(is_applied(&said, 1), "{said:?}");
    let link = end.link.as_mut().unwrap();
    let drill = |length| Command::Drill { link: 1, length };
    link.command(&drill(1000)).unwrap();
    link.command(&drill(0)).unwrap();
    const MANY: u64 = 2000;
    for _ in 0..MANY {
        link.command(&drill(1)).unwrap();
    }
    let (mut refused, mut events) = (0, Vec::new());
    let all_heard = || {
        let _ = link.events(&mut events);
        for event in events.drain(..) {
            if let Event::CommandsRefused { count, reason } = event {
                assert!(reason.contains("more drills"), "{reason}");
                refused += count;
            }
        }
        refused > MANY / 2
    };
    assert!(eventually(all_heard), "{refused} refused");
    let lines = end.engine.process.log().matches("drill").count();
    assert!((2..100).contains(&lines), "{lines} lines");
}

/// An engine of another release, as far as anybody can tell.
#[test]
fn another_abi_is_refused_with_what_to_do() {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let path = std::env::temp_dir().join(format!("patronus-abi-{}.sock", std::process::id()));
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    rustix::net::bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    rustix::net::listen(&socket, 1).unwrap();
    let engine = std::thread::spawn(move || {
        let connection = rustix::net::accept(&socket).unwrap();
        let mut hello = [0; 100];
        hello[..8].copy_from_slice(b"PATRCHAN");
        hello[8] = 250;
        rustix::io::write(&connection, &hello).unwrap();
    });
    let refused = Link::attach(&path).unwrap_err();
    std::fs::remove_file(&path).unwrap();
    engine.join().unwrap();
    assert!(matches!(refused, LinkError::Abi { theirs: 250, .. }), "{refused}");
    assert!(refused.to_string().contains("restart the engine"));
}

/// Torn writes and bytes at random in the slots, under traffic: refused with a reason, and the site of before goes on.
#[test]
fn torn_and_random_snapshots_are_refused() {
    if !may_run(&[]) {
        return;
    }
    let mut pair = Pair::up();
    let flow = pair.flow();
    let site = pair.a.engine.site(&pair.a.text(&pair.b, "")).compile();
    let good = patronus_abi::encode(&site, 2).unwrap();
    let key = std::fs::File::open(pair.a.engine.folder().join("site.key")).unwrap();
    let mut random = Random::new(1);
    let link = pair.a.link.as_mut().unwrap();
    let mut refused = 0;
    for round in 0..200 {
        let mut blob = good.clone();
        match round % 4 {
            0 => blob.truncate(random.below(blob.len())),
            1 => {
                let at = random.below(blob.len());
                blob[at] ^= 1 << random.below(8);
            }
            2 => blob[32..].fill_with(|| random.next() as u8),
            _ => blob[8] = blob[8].wrapping_add(1),
        }
        link.publish_blob(&blob, 2, &[key.as_fd()]).unwrap();
        let Event::Refused {
            generation: 2,
            reason,
        } = answer(link)
        else {
            panic!("round {round} is in force")
        };
        let of_the_blob = reason.starts_with("the published site");
        assert!(of_the_blob, "{reason}");
        refused += 1;
    }
    assert_eq!(pair.a.stat("control.blobs"), refused);
    let received = flow.finish();
    assert!(received.sent > 100);
    assert_eq!(received.lost(), 0);
}

/// Killed under traffic: nobody notices, and the next one neither.
#[test]
fn control_goes_and_comes_back_and_no_packet_is_lost() {
    if !may_run(&[]) {
        return;
    }
    let mut pair = Pair::up();
    let flow = pair.flow();
    let text = pair.a.text(&pair.b, "");
    for generation in 2..7 {
        std::thread::sleep(Duration::from_millis(50));
        drop(pair.a.link.take());
        std::thread::sleep(Duration::from_millis(50));
        let said = pair.a.publish(&text, generation);
        assert!(matches!(said, Event::Applied { changes: 0, .. }), "{said:?}");
    }
    let received = flow.finish();
    assert!(received.sent > 200, "{}", received.sent);
    assert_eq!(received.lost(), 0);
}

/// Where the process that the next test kills finds its engine.
const VICTIM: &str = "PATRONUS_TEST_CONTROL";

/// Not a test: a control process to be killed, which publishes and sends commands without an end. Run without its variable it does nothing.
#[test]
fn plays_control() {
    let Some(socket) = std::env::var_os(VICTIM) else {
        return;
    };
    let socket = std::path::PathBuf::from(socket);
    let file = socket.with_file_name("site.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let site = patronus_config::parse_file(&file, &text).unwrap().compile();
    let key = std::fs::File::open(socket.with_file_name("site.key")).unwrap();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(30) {
        let Ok((mut link, attached)) = Link::attach(&socket) else {
            continue;
        };
        for generation in attached.generation + 1.. {
            link.publish(&site, generation, &[key.as_fd()]).unwrap();
            for owner in 0..100 {
                let _ = link.command(&Command::Sweep { owner, epoch: 1 });
            }
            answer(&mut link);
        }
    }
}

/// `kill -9` in the middle of whatever it is doing, again and again.
#[test]
fn control_is_killed_in_the_middle_and_no_packet_is_lost() {
    if !may_run(&[]) {
        return;
    }
    let mut pair = Pair::up();
    let text = pair.a.text(&pair.b, "");
    let interface = &pair.a.engine.interface;
    let file = format!(
        "[site]\nprivate_key_file = 'site.key'\nlisten_port = 51820\n[engine]\ninterface = '{interface}'\n{text}"
    );
    std::fs::write(pair.a.engine.folder().join("site.toml"), file).unwrap();
    pair.a.link = None;
    let flow = pair.flow();
    for round in 0..10 {
        let mut control = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "plays_control"])
            .env(VICTIM, pair.a.engine.socket())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(100 + 7 * round));
        control.kill().unwrap();
        control.wait().unwrap();
    }
    let said = pair.a.publish(&text, u64::MAX);
    assert!(matches!(said, Event::Applied { changes: 0, .. }), "{said:?}");
    let received = flow.finish();
    let sites = pair.a.engine.process.log().matches("is in force").count();
    println!(
        "{sites} sites in {} datagrams' time, {} lost",
        received.sent,
        received.lost()
    );
    assert!(sites > 20, "{}", pair.a.engine.process.log());
    assert_eq!(received.lost(), 0);
}

/// Killed under traffic: nothing leaves in clear, and the next one goes on.
#[test]
fn an_engine_that_is_killed_fails_closed_and_comes_back() {
    if !may_run(&[]) {
        return;
    }
    let mut pair = Pair::up();
    let text = pair.a.text(&pair.b, "");
    let capture = patronus_tests::Capture::start(&pair.b.namespace).unwrap();
    let flow = pair.flow();
    std::thread::sleep(Duration::from_millis(200));
    pair.a.engine.process.signal(Signal::KILL);
    assert!(eventually(|| pair.a.engine.process.ended().is_some()));
    std::thread::sleep(Duration::from_millis(300));
    let mut events = Vec::new();
    assert!(pair.a.link.take().unwrap().events(&mut events).engine);
    capture.clear();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(
        capture.count(|_| true),
        0,
        "nothing at all leaves without an engine"
    );
    pair.a.engine.start_again().unwrap();
    let started = Instant::now();
    let said = pair.a.publish(&text, 1);
    assert!(is_applied(&said, 1), "{said:?}");
    let inner = pair.b.inner();
    assert!(eventually(|| capture.count(|d| d.target.ip() == inner) > 0));
    println!("traffic again {:?} after the engine's start", started.elapsed());
    let received = flow.finish();
    assert!(received.lost() > 0 && received.in_order());
    // What was captured is either inside of the second site, or sealed.
    let wan = |d: &patronus_tests::Datagram| d.source.ip() != pair.a.inner();
    let sealed = |d: &patronus_tests::Datagram| d.kind() != patronus_tests::MessageKind::Other;
    assert_eq!(capture.count(|d| wan(d) && !sealed(d)), 0);
}

/// What becomes of sessions, peers' endpoints and links is told, and nothing else of them.
#[test]
fn sessions_endpoints_and_links_are_told() {
    if !may_run(&[]) {
        return;
    }
    const LINK: &str = "[[link]]\nid = 3\ninterface = 'wan'\n";
    let mut pair = Pair::up_with(LINK);
    let other: PublicKey = pair.b.engine.keys.public.parse().unwrap();
    let (mut link, mut all) = (pair.a.link.take().unwrap(), Vec::new());
    let mut told = |wanted: &dyn Fn(&Event) -> bool| {
        eventually(|| {
            assert_eq!(link.events(&mut all).events, 0);
            all.iter().any(wanted)
        })
    };
    let session = |event: &Event, is_up| matches!(event, Event::Session { peer, lane: None, up, .. } if *peer == other.0 && *up == is_up);
    let wan = |event: &Event, is_up| matches!(event, Event::Link { link: 3, name, up, .. } if name == "wan" && *up == is_up);
    assert!(told(&|event| session(event, true)));
    assert!(told(&|event| wan(event, true)));
    pair.b.namespace.ip("addr del 192.0.2.2/24 dev wan").unwrap();
    pair.b.namespace.address("wan", "192.0.2.3/24").unwrap();
    let to = "192.0.2.3:51820".parse().unwrap();
    assert!(told(&|event| {
        let _ = ping(&pair.b.namespace, "-c 1 -W 1 10.66.1.1");
        matches!(event, Event::Endpoint { peer, to: now, .. } if *peer == other.0 && *now == to)
    }));
    pair.a.namespace.ip("link set wan down").unwrap();
    assert!(told(&|event| wan(event, false)));
    let site = pair.a.engine.site(LINK);
    let said = pair.a.engine.publish(&mut link, &site, 2);
    assert!(is_applied(&said, 2), "{said:?}");
    let log = pair.a.engine.process.log();
    assert_eq!(
        all.iter().filter(|event| session(event, true)).count(),
        1,
        "{log}"
    );
}
