//! Paths between two sites of our own: what dies without a word is noticed at both ends, left, and used again when it is back.

use patronus_netns::{Hop, Keys, Namespace};
use patronus_tests::{
    Edge, LIMIT, Need, SCHED_FIFO, engine_program, eventually, hop_plan, may_run, on_busy_cores, ping, uapi,
    worker_policies,
};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

/// How often paths are probed here, with traffic or without.
const INTERVAL: Duration = Duration::from_millis(100);

/// Two engines, and two links between them.
struct Sites {
    a: (Namespace, Edge),
    b: (Namespace, Edge),
    hops: [Hop; 2],
}

fn text(other: &Keys, endpoint: Ipv4Addr, nets: &str, interval: Duration) -> String {
    let link = |id: u8| format!("[[link]]\nid = {id}\ninterface = 'up{id}'\ngroup = {id}\n");
    format!(
        "workers = 2\n[probe]\ninterval = '{0}ms'\nidle = '{0}ms'\n{1}{2}[[remote]]\nname = 'other'\npublic_key = '{3}'\nendpoint = '{endpoint}:51820'\nallowed_ips = ['{nets}']\n",
        interval.as_millis(),
        link(1),
        link(2),
        other.public.trim(),
    )
}

impl Sites {
    fn up() -> Sites {
        Sites::up_by(INTERVAL, || Command::new(engine_program()))
    }

    /// With this time between probes, and both engines run by such a command.
    fn up_by(interval: Duration, command: impl Fn() -> Command) -> Sites {
        let (a, b) = (Namespace::new("a").unwrap(), Namespace::new("b").unwrap());
        let hops = [1, 2].map(|link: u8| {
            let name = format!("up{link}");
            let hop = Hop::between(&a, &name, &b, &name, 1500, &hop_plan(&["delay 5ms"])).unwrap();
            a.address(&name, &format!("198.18.{link}.1/24")).unwrap();
            b.address(&name, &format!("198.18.{link}.2/24")).unwrap();
            hop
        });
        let keys = [Keys::generate().unwrap(), Keys::generate().unwrap()];
        let start = |namespace: &Namespace, own: usize, number: u8| {
            let endpoint = Ipv4Addr::new(198, 18, 1, 3 - number);
            let file = text(
                &keys[1 - own],
                endpoint,
                &format!("10.66.{}.0/24", 3 - number),
                interval,
            );
            let edge = Edge::start_by(namespace, &keys[own], command(), &file).unwrap();
            let address = format!("10.66.{number}.1/16");
            namespace.address(edge.interface(), &address).unwrap();
            edge
        };
        let (at_a, at_b) = (start(&a, 0, 1), start(&b, 1, 2));
        Sites {
            a: (a, at_a),
            b: (b, at_b),
            hops,
        }
    }

    /// What both say of the path over these links.
    fn states(&self, link: u8) -> [String; 2] {
        [&self.a, &self.b].map(|(_, edge)| path(edge, link).remove("state").unwrap_or_default())
    }

    #[track_caller]
    fn become_so(&self, expected: [[&str; 2]; 2]) {
        let are = || [1, 2].map(|link| self.states(link));
        assert!(
            eventually(|| are() == expected.map(|states| states.map(str::to_owned))),
            "{:?}\n{}\n{}",
            are(),
            self.a.1.log(),
            self.b.1.log()
        );
    }

    fn get_through(&self) -> bool {
        let answers = |from: &Namespace, to: &str| {
            ping(from, &format!("-c 3 -W 2 {to}")).is_ok_and(|said| said.contains(" 0% packet loss"))
        };
        answers(&self.a.0, "10.66.2.1") && answers(&self.b.0, "10.66.1.1")
    }
}

/// What an engine says of the path over this link of both.
fn path(edge: &Edge, link: u8) -> BTreeMap<String, String> {
    let said = uapi(edge.interface(), "get=paths\n\n").unwrap_or_default();
    let mine = |line: &&str| line.ends_with(&format!(" {link} {link}"));
    let begin = said
        .lines()
        .skip_while(|line| !(line.starts_with("path=") && mine(line)));
    let lines = begin.skip(1).take_while(|line| !line.starts_with("path="));
    let values = lines.filter_map(|line| line.split_once('='));
    values
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// How long paths had been silent when they went down, as people were told.
fn silences(edge: &Edge) -> Vec<Duration> {
    let log = edge.log();
    let told = log.lines().filter_map(|line| {
        let (_, millis) = line.split_once("down, nothing heard for ")?;
        millis.trim_end_matches(" ms").parse().ok()
    });
    told.map(Duration::from_millis).collect()
}

#[test]
fn a_blackout_is_noticed_at_both_ends_and_what_is_left_is_used() {
    if !may_run(&[]) {
        return;
    }
    let mut sites = Sites::up();
    sites.become_so([["up", "up"], ["up", "up"]]);
    assert!(eventually(|| sites.get_through()));
    for edge in [&sites.a.1, &sites.b.1] {
        let known = path(edge, 1);
        let number = |name: &str| known.get(name).and_then(|value| value.parse::<u64>().ok());
        // 5 ms each way, and never less.
        assert!(number("rtt_min_us").is_some_and(|rtt| rtt >= 10_000), "{known:?}");
        assert!(number("probes_received").is_some_and(|count| count > 0));
        assert!(number("in_received") <= number("in_sent"), "{known:?}");
    }
    sites.hops[0].command("cut").unwrap();
    sites.become_so([["down", "down"], ["up", "up"]]);
    assert!(sites.get_through());
    for edge in [&sites.a.1, &sites.b.1] {
        for silence in silences(edge) {
            assert!(silence >= 3 * INTERVAL && silence < LIMIT, "{silence:?}");
        }
    }
    sites.hops[0].command("mend").unwrap();
    sites.become_so([["up", "up"], ["up", "up"]]);
    assert!(sites.get_through());
}

#[test]
fn a_path_that_is_dead_one_way_is_noticed_at_both_ends() {
    if !may_run(&[]) {
        return;
    }
    let mut sites = Sites::up();
    sites.become_so([["up", "up"], ["up", "up"]]);
    sites.hops[1].command("cut a->b").unwrap();
    sites.become_so([["up", "up"], ["down", "down"]]);
    assert_eq!(path(&sites.b.1, 2).remove("why").as_deref(), Some("silent"));
    assert_eq!(path(&sites.a.1, 2).remove("why").as_deref(), Some("not-heard"));
    assert!(sites.get_through());
    sites.hops[1].command("mend").unwrap();
    sites.become_so([["up", "up"], ["up", "up"]]);
}

/// A worker that others keep from probing in time runs in real time, unless that is not wanted; the one that does not probe never does.
#[test]
fn who_is_too_late_for_probes_runs_in_real_time() {
    if !may_run(&[Need::Root]) {
        return;
    }
    for (args, wanted) in [(&[][..], true), (&["--no-realtime"], false)] {
        let sites = Sites::up_by(Duration::from_millis(5), || {
            let mut command = Command::new(engine_program());
            command.args(args);
            command
        });
        sites.become_so([["up", "up"], ["up", "up"]]);
        on_busy_cores(3, || {
            let is_late = |edge: &Edge| edge.stats().unwrap().sum(".realtime") > 0;
            assert!(eventually(|| [&sites.a.1, &sites.b.1].map(is_late) == [true; 2]));
            let policies = worker_policies(sites.a.1.pid());
            assert_eq!(policies.contains(&SCHED_FIFO), wanted, "{args:?}: {policies:?}");
            assert!(policies.len() > 1 || !wanted, "{policies:?}");
        });
        let log = sites.a.1.log();
        assert!(!log.contains("real time"), "{log}");
    }
}

/// Without the right to it an engine says so and does what it can.
#[test]
fn without_the_right_to_real_time_probes_go_on() {
    if !may_run(&[Need::Root]) {
        return;
    }
    let sites = Sites::up_by(Duration::from_millis(5), || {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set", "-sys_nice,-sys_resource", "--inh-caps", "-all"]);
        command.arg(engine_program());
        command
    });
    sites.become_so([["up", "up"], ["up", "up"]]);
    on_busy_cores(3, || {
        let is_late = |edge: &Edge| edge.stats().unwrap().sum(".realtime") > 0;
        assert!(eventually(|| is_late(&sites.a.1)));
        assert!(!worker_policies(sites.a.1.pid()).contains(&SCHED_FIFO));
    });
    assert!(eventually(|| sites.get_through()));
    let log = sites.a.1.log();
    assert_eq!(
        log.matches("workers may not run in real time").count(),
        1,
        "{log}"
    );
}
