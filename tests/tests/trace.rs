//! Traces and captures of a running engine: who asks, what he is told, and what tshark makes of it.

use patronus_netns::{Keys, Kind, Namespace, Process, Tunnel};
use patronus_tests::{
    Edge, LIMIT, Need, engine_program, eventually, host_on, may_run, ping, sites, tcp, uapi,
};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

/// A tunnel between the engine under test and a stock peer.
fn tunnel() -> Tunnel {
    let tunnel = sites(Kind::Engine, Kind::WireguardGo).up().unwrap();
    tunnel.probe(false, LIMIT).unwrap();
    tunnel
}

fn ask(namespace: &Namespace, arguments: &[&str]) -> Process {
    let mut command = Command::new(engine_program());
    command.args(arguments);
    namespace.spawn(command).unwrap()
}

/// Runs while `traffic` makes packets, and gives what it has said when it has ended by itself.
fn told(namespace: &Namespace, arguments: &[&str], mut traffic: impl FnMut()) -> String {
    let mut asking = ask(namespace, arguments);
    assert!(
        eventually(|| {
            traffic();
            asking.ended().is_some()
        }),
        "{}",
        asking.log()
    );
    asking.log()
}

/// The lines of the story in which `word` is.
fn story<'a>(text: &'a str, word: &str) -> Vec<&'a str> {
    let lines: Vec<&str> = text.lines().collect();
    let at = lines.iter().position(|line| line.contains(word));
    let at = at.unwrap_or_else(|| panic!("no {word} in\n{text}"));
    let is_step = |line: &&&str| line.starts_with(' ');
    let steps = lines[at + 1..].iter().take_while(is_step).copied();
    [lines[at]].into_iter().chain(steps).collect()
}

fn points(story: &[&str]) -> Vec<String> {
    let word = |line: &&str| line.split_whitespace().nth(2).unwrap().to_owned();
    story[1..].iter().map(word).collect()
}

#[test]
fn a_trace_shows_each_point_of_a_ping() {
    if !may_run(&[Need::Daemon(Kind::WireguardGo)]) {
        return;
    }
    let tunnel = tunnel();
    let (a, interface) = (&tunnel.a.namespace, &*tunnel.a.interface);
    let trace = [
        "--trace",
        interface,
        "--packets",
        "2",
        "icmp",
        "and",
        "host",
        "10.77.0.2",
    ];
    let text = told(a, &trace, || {
        ping(a, "-c 1 -W 1 10.77.0.2").unwrap();
    });
    let out = story(&text, "10.77.0.1 > 10.77.0.2, ICMP, 84 bytes");
    assert_eq!(points(&out), ["lan-rx", "encap", "wan-tx"], "{text}");
    let key = &tunnel.b.keys.as_ref().unwrap().public;
    assert!(out[2].contains(&format!("sealed for {key}")), "{text}");
    assert!(out[3].contains(&tunnel.b.outer.to_string()), "{text}");
    let back = story(&text, "10.77.0.2 > 10.77.0.1, ICMP");
    assert_eq!(points(&back), ["wan-rx", "decap", "lan-tx"], "{text}");
    assert!(text.contains("patronus-engine: 2 packets"), "{text}");

    // Only one peer's; another one is nobody's.
    let peer = [
        "--trace",
        interface,
        "--packets",
        "1",
        "outbound",
        "and",
        "peer",
        &key[..10],
    ];
    let text = told(a, &peer, || {
        ping(a, "-c 1 -W 1 10.77.0.2").unwrap();
    });
    assert_eq!(
        points(&story(&text, "10.77.0.1 > 10.77.0.2")),
        ["lan-rx", "encap", "wan-tx"]
    );
    let wrong = ask(a, &["--trace", interface, "peer", "nobody"]);
    assert!(
        eventually(|| wrong
            .log()
            .contains("filter, column 6: no peer has a public key that begins so")),
        "{}",
        wrong.log()
    );
}

/// Frames are used again at once: what is told of one packet must not be taken for another's.
#[test]
fn a_trace_of_much_mixes_nothing_up() {
    if !may_run(&[]) {
        return;
    }
    let mut plan = sites(Kind::Engine, Kind::Engine);
    plan.options_a = patronus_tests::engine_options(&["--workers", "2"]);
    let tunnel = plan.up().unwrap();
    tunnel.probe(false, LIMIT).unwrap();
    let (a, interface) = (&tunnel.a.namespace, &*tunnel.a.interface);
    let text = told(a, &["--trace", interface, "--packets", "400", "tcp"], || {
        tcp(&tunnel.a, &tunnel.b, false, 1_000_000).unwrap();
    });
    let mut stories = 0;
    for title in text.lines().filter(|line| line.contains(", TCP, ")) {
        stories += 1;
        let points = points(&story(&text, title));
        let points: Vec<&str> = points
            .iter()
            .map(String::as_str)
            .filter(|point| *point != "take-over")
            .collect();
        let whole = [["lan-rx", "encap", "wan-tx"], ["wan-rx", "decap", "lan-tx"]];
        // The one worker may begin while a packet of the other is on its way to it.
        let came_before = stories < 20 && points == whole[0][1..];
        assert!(
            came_before || whole.iter().any(|whole| points == whole),
            "{title} {points:?}"
        );
    }
    assert_eq!(stories, 400);
    assert!(
        text.contains("patronus-engine: 400 packets") && !text.contains("no room"),
        "{text}"
    );
}

#[test]
fn one_at_a_time_and_only_what_can_be_understood() {
    if !may_run(&[]) {
        return;
    }
    let tunnel = sites(Kind::Engine, Kind::Engine).up().unwrap();
    let (a, interface) = (&tunnel.a.namespace, &*tunnel.a.interface);
    let wrong = ask(a, &["--trace", interface, "udp", "port", "http"]);
    assert!(
        eventually(|| wrong.log().contains("filter, column 10: expected a port")),
        "{}",
        wrong.log()
    );
    let answer = uapi(interface, "observe=trace\nfilter=udp and or\n\n").unwrap();
    assert!(
        answer.contains("error=filter, column 9") && answer.contains("errno=22"),
        "{answer}"
    );
    let answer = uapi(interface, "observe=capture\nsnap=0\n\n").unwrap();
    assert!(
        answer.contains("error=snap: a number from 1 to 65535"),
        "{answer}"
    );
    // The first one stays on until it is ended.
    let file = File::new(interface);
    let mut first = ask(a, &["--capture", interface, "--write", file.path()]);
    assert!(eventually(|| file.has_begun()), "{}", first.log());
    let busy = || uapi(interface, "observe=trace\n\n").is_ok_and(|answer| answer.contains("errno=16"));
    assert!(busy(), "{}", first.log());
    let ended = first.stop().unwrap();
    assert!(ended.success(), "{}", first.log());
    assert!(eventually(|| !busy()));
    tunnel.probe(false, LIMIT).unwrap();
}

/// A file that goes when the test ends.
struct File(PathBuf);

impl File {
    fn new(name: &str) -> File {
        File(std::env::temp_dir().join(format!("patronus-{name}.pcapng")))
    }

    /// Whether anything is in it yet.
    fn has_begun(&self) -> bool {
        fs::metadata(&self.0).is_ok_and(|file| file.len() > 0)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn tshark(file: &Path, arguments: &[&str]) -> String {
    let Output {
        stdout,
        stderr,
        status,
    } = Command::new("tshark")
        .args(["-n", "-r"])
        .arg(file)
        .args(arguments)
        .output()
        .unwrap();
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

#[test]
fn tshark_reads_a_capture_of_both_sides() {
    if !may_run(&[Need::Daemon(Kind::WireguardGo), Need::Tool("tshark")]) {
        return;
    }
    let tunnel = tunnel();
    let (a, interface) = (&tunnel.a.namespace, &*tunnel.a.interface);
    let file = File::new(interface);
    let mut asking = ask(a, &["--capture", interface, "--write", file.path()]);
    assert!(eventually(|| file.has_begun()), "{}", asking.log());
    let mode = fs::metadata(&file.0).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "it holds clear text");
    let said = ping(a, "-c 3 -i 0.1 -W 2 10.77.0.2").unwrap();
    assert!(said.contains(" 3 received"), "{said}");
    tcp(&tunnel.a, &tunnel.b, true, 200_000).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let ended = asking.stop().unwrap();
    assert!(ended.success(), "{}", asking.log());

    let fields = [
        "-T",
        "fields",
        "-e",
        "frame.interface_name",
        "-e",
        "ip.src",
        "-e",
        "ip.dst",
    ];
    let pings = tshark(&file.0, &[&["-Y", "icmp"], &fields[..]].concat());
    let lines: Vec<&str> = pings.lines().collect();
    assert_eq!(lines.len(), 6, "{pings}");
    assert_eq!(lines[0], format!("{interface}\t10.77.0.1\t10.77.0.2"), "{pings}");
    let outer = tshark(
        &file.0,
        &[
            "-Y",
            "wg.type == 4 && udp.port == 51820",
            "-T",
            "fields",
            "-e",
            "ip.src",
        ],
    );
    assert!(outer.lines().count() > 100, "{outer}");
    let ours = tunnel.a.outer.ip().to_string();
    assert!(
        outer.lines().any(|line| line == ours || line == "0.0.0.0"),
        "{outer}"
    );
    assert!(
        outer.lines().any(|line| line == tunnel.b.outer.ip().to_string()),
        "{outer}"
    );
    let inner = tshark(
        &file.0,
        &["-Y", "tcp && !_ws.malformed", "-T", "fields", "-e", "tcp.len"],
    );
    let bytes: usize = inner.lines().filter_map(|line| line.parse::<usize>().ok()).sum();
    assert!(bytes >= 200_000, "every byte of the transfer is in it: {bytes}");
    let order = tshark(&file.0, &["-Y", "frame.time_delta < 0"]);
    assert_eq!(order, "", "in the order of time");
}

#[test]
fn a_policys_drop_is_shown_with_its_reason() {
    if !may_run(&[Need::Tool("tshark")]) {
        return;
    }
    let edge = Namespace::new("edge").unwrap();
    let left = host_on(&edge, "left", 1, 1).unwrap();
    let _right = host_on(&edge, "right", 2, 1).unwrap();
    let lan = |name: &str| format!("[[lan]]\nname = '{name}'\nport = 'af_packet'\ninterface = '{name}'\n");
    let policies = "[[policy]]\nsrc = '192.168.77.0/24'\naction = 'drop'\n\
                    [[policy]]\ndst = '192.168.2.0/24'\nprotocol = 'udp'\naction = 'drop'\n";
    let text = format!("{}{}{policies}", lan("left"), lan("right"));
    let engine = Edge::start(&edge, &Keys::generate().unwrap(), &text).unwrap();
    let answers = || {
        ping(&left, "-c 1 -W 1 192.168.2.2")
            .unwrap()
            .contains(" 1 received")
    };
    assert!(eventually(answers), "{}", engine.log());
    let interface = engine.interface();
    let udp = || {
        let sender = left
            .run(|| std::net::UdpSocket::bind("192.168.1.2:0"))
            .unwrap()
            .unwrap();
        let _ = sender.send_to(b"hello", "192.168.2.2:9");
    };
    let text = told(
        &edge,
        &["--trace", interface, "--packets", "1", "udp", "dst", "port", "9"],
        udp,
    );
    let dropped = story(&text, "192.168.2.2:9, UDP");
    assert_eq!(points(&dropped), ["lan-rx", "route", "drop"], "{text}");
    assert!(dropped[1].contains("from left"), "{text}");
    assert!(
        dropped[2].contains("policy 2: nowhere, says the policy"),
        "{text}"
    );
    assert!(dropped[3].contains("route-policy"), "{text}");
    let text = told(
        &edge,
        &[
            "--trace",
            interface,
            "--packets",
            "1",
            "icmp",
            "and",
            "dst",
            "192.168.2.2",
        ],
        || {
            answers();
        },
    );
    let passed = story(&text, "192.168.1.2 > 192.168.2.2, ICMP");
    assert_eq!(points(&passed), ["lan-rx", "route", "lan-tx"], "{text}");
    assert!(passed[2].contains("to its receiver on right"), "{text}");

    let file = File::new(interface);
    told(
        &edge,
        &[
            "--capture",
            interface,
            "--write",
            file.path(),
            "--packets",
            "2",
            "udp",
            "port",
            "9",
        ],
        udp,
    );
    let comments = tshark(
        &file.0,
        &[
            "-T",
            "fields",
            "-e",
            "frame.interface_name",
            "-e",
            "frame.comment",
            "-e",
            "data",
        ],
    );
    let mut lines: Vec<&str> = comments.lines().collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        ["dropped\tdropped: route-policy\t68656c6c6f", "left\t\t68656c6c6f"],
        "{comments}"
    );
}
