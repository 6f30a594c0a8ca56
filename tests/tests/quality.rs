//! Paths as the control process judges them, over the real socket: holds that outlive it, data caps, and what it says of flows.

use patronus_netns::{Hop, Keys, Namespace, Process, prepare_runtime_dir, unique_name};
use patronus_tests::{
    Edge, LIMIT, cli_program, control_program, engine_program, eventually, hop_plan, may_run, ping, uapi,
};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// Two sites with two links between them. At the first one an engine and a control process, at the other an engine that is called. (Processes go before what they need.)
struct Sites {
    control: Process,
    engine: Process,
    other: Edge,
    a: Namespace,
    _b: Namespace,
    hops: [Hop; 2],
    interface: String,
    folder: PathBuf,
}

impl Sites {
    /// `links` are more keys of each of the links, `more` are more tables of the first site's file.
    fn up(links: [&str; 2], more: &str) -> Sites {
        prepare_runtime_dir().unwrap();
        let (a, b) = (Namespace::new("a").unwrap(), Namespace::new("b").unwrap());
        let hops = [1, 2].map(|link: u8| {
            let name = format!("up{link}");
            let hop = Hop::between(&a, &name, &b, &name, 1500, &hop_plan(&["delay 5ms"])).unwrap();
            a.address(&name, &format!("198.18.{link}.1/24")).unwrap();
            b.address(&name, &format!("198.18.{link}.2/24")).unwrap();
            hop
        });
        let keys = [Keys::generate().unwrap(), Keys::generate().unwrap()];
        let probing = "[probe]\ninterval = '50ms'\nidle = '100ms'\n";
        let remote = |of: usize, net: u8, more: &str| {
            format!(
                "[[remote]]\nname = 'other'\npublic_key = '{}'\nallowed_ips = ['10.66.{net}.0/24']\n{more}",
                keys[of].public.trim()
            )
        };
        let link = |id: usize, more: &str| {
            format!("[[link]]\nid = {id}\ninterface = 'up{id}'\ngroup = {id}\n{more}")
        };
        let of_b = format!("{probing}{}{}{}", link(1, ""), link(2, ""), remote(0, 1, ""));
        let other = Edge::start(&b, &keys[1], &of_b).unwrap();
        b.address(other.interface(), "10.66.2.1/16").unwrap();

        let interface = unique_name("pn");
        let folder = std::env::temp_dir().join(format!("patronus-quality-{interface}"));
        fs::create_dir_all(folder.join("state")).unwrap();
        fs::write(folder.join("site.key"), &keys[0].private).unwrap();
        fs::set_permissions(folder.join("site.key"), PermissionsExt::from_mode(0o600)).unwrap();
        let calls = format!("endpoint = '{}:51820'\n", Ipv4Addr::new(198, 18, 1, 2));
        let text = format!(
            "[site]\nprivate_key_file = 'site.key'\nlisten_port = 51820\n[engine]\ninterface = '{interface}'\n{probing}{}{}{}{more}",
            link(1, links[0]),
            link(2, links[1]),
            remote(1, 2, &calls),
        );
        fs::write(folder.join("site.toml"), text).unwrap();
        let mut engine = Command::new(engine_program());
        engine
            .arg("--foreground")
            .arg("--control")
            .arg(folder.join("engine.sock"));
        let engine = a.spawn(engine).unwrap();
        let control = a.spawn(control_command(&folder)).unwrap();
        let sites = Sites {
            control,
            engine,
            other,
            a,
            _b: b,
            hops,
            interface,
            folder,
        };
        let is_up = || sites.ask("show")["generation"].as_u64() > Some(0);
        assert!(eventually(is_up), "{}{}", sites.control.log(), sites.engine.log());
        sites.a.ip(&format!("link set {} up", sites.interface)).unwrap();
        sites.a.address(&sites.interface, "10.66.1.1/16").unwrap();
        let states = || ["1-1", "2-2"].map(|path| sites.candidate(path)["state"] == "up");
        assert!(
            eventually(|| states() == [true; 2]),
            "{}\n{}",
            sites.said("why other"),
            sites.engine.log()
        );
        sites
    }

    fn cli(&self, words: &str) -> Command {
        let mut command = Command::new(cli_program());
        command.arg("--socket").arg(self.folder.join("control.sock"));
        command.args(words.split_whitespace());
        command
    }

    /// What `patronus` says, as text.
    fn said(&self, words: &str) -> String {
        let output = self.a.run(|| self.cli(words).output()).unwrap().unwrap();
        let wrong = String::from_utf8_lossy(&output.stderr).into_owned();
        String::from_utf8_lossy(&output.stdout).into_owned() + &wrong
    }

    /// The same as JSON; null if it is none.
    fn ask(&self, words: &str) -> Value {
        serde_json::from_str(&self.said(&format!("--json {words}"))).unwrap_or_default()
    }

    /// How class `default` goes.
    fn choice(&self) -> Value {
        let told = self.ask("why other default");
        told.pointer("/choices/0").cloned().unwrap_or_default()
    }

    /// What is said of a path.
    fn candidate(&self, path: &str) -> Value {
        let mut choice = self.choice();
        let all = choice["paths"]
            .as_array_mut()
            .map(std::mem::take)
            .unwrap_or_default();
        all.into_iter()
            .find(|one| one["path"] == path)
            .unwrap_or_default()
    }

    #[track_caller]
    fn goes_by(&self, path: &str) {
        let goes = || self.choice()["path"] == path;
        assert!(
            eventually(goes),
            "{}\n{}",
            self.said("why other"),
            self.control.log()
        );
    }

    fn kill_control(&mut self) {
        self.control.signal(Signal::KILL);
        assert!(self.control.wait(LIMIT).is_some());
        self.control = self.a.spawn(control_command(&self.folder)).unwrap();
        assert!(
            eventually(|| !self.choice()["path"].is_null()),
            "{}",
            self.control.log()
        );
    }

    fn apply(&self, change: impl FnOnce(String) -> String) {
        let file = self.folder.join("site.toml");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, change(text)).unwrap();
        let said = self.said("apply");
        assert!(said.starts_with('~'), "{said}");
    }
}

impl Drop for Sites {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn control_command(folder: &std::path::Path) -> Command {
    let mut command = Command::new(control_program());
    command.arg("--site").arg(folder.join("site.toml"));
    command.arg("--engine").arg(folder.join("engine.sock"));
    command.arg("--socket").arg(folder.join("control.sock"));
    command.arg("--state").arg(folder.join("state"));
    command
}

/// A path that has just been left is not used again because the control process was started anew.
#[test]
fn a_hold_outlives_the_control_process() {
    if !may_run(&[]) {
        return;
    }
    let costs = ["cost = 1\n", "cost = 10\n"];
    let mut sites = Sites::up(costs, "[[class]]\nname = 'default'\nhold = '1h'\n");
    sites.goes_by("1-1");
    sites.hops[0].command("cut").unwrap();
    sites.goes_by("2-2");
    sites.hops[0].command("mend").unwrap();
    let is_held = |sites: &Sites| {
        let path = sites.candidate("1-1");
        path["state"] == "up" && path["why"] == "hold"
    };
    assert!(eventually(|| is_held(&sites)), "{}", sites.said("why other"));
    // Written down a second later at most.
    let file = sites.folder.join("state/holds.json");
    let is_written = || {
        let text = fs::read_to_string(&file).unwrap_or_default();
        let kept: Value = serde_json::from_str(&text).unwrap_or_default();
        let class = &kept["remotes"][0]["classes"][0];
        class["first"]["links"][0] == 2 && class["paths"][0]["is_bad"] == false
    };
    assert!(eventually(is_written), "{:?}", fs::read_to_string(&file));
    for _ in 0..2 {
        sites.kill_control();
        // It judges after a second, and would go back then.
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(sites.choice()["path"], "2-2", "{}", sites.said("why other"));
        assert!(is_held(&sites), "{}", sites.said("why other"));
    }
    // Of another engine it says nothing.
    let text = fs::read_to_string(&file).unwrap();
    let mut kept: Value = serde_json::from_str(&text).unwrap();
    kept["engine"][0] = Value::from(kept["engine"][0].as_u64().unwrap() ^ 1);
    sites.control.signal(Signal::KILL);
    assert!(sites.control.wait(LIMIT).is_some());
    fs::write(&file, kept.to_string()).unwrap();
    sites.control = sites.a.spawn(control_command(&sites.folder)).unwrap();
    sites.goes_by("1-1");
}

/// A link that has carried what it may is the last resort, also for the next control process, until there is more to use.
#[test]
fn a_link_whose_cap_is_used_up_is_the_last_resort() {
    if !may_run(&[]) {
        return;
    }
    let mut sites = Sites::up(
        ["cost = 1\ndata_cap = '3MB'\n", "cost = 10\nmetered = true\n"],
        "",
    );
    sites.goes_by("1-1");
    let used = |sites: &Sites| {
        sites.ask("show links")[0]["data"]["used_bytes"]
            .as_u64()
            .unwrap_or(0)
    };
    // By which link the answers come is up to the other site.
    assert!(ping(&sites.a, "-c 2500 -i 0.002 -s 1300 -q 10.66.2.1").is_ok());
    sites.goes_by("2-2");
    assert!(used(&sites) >= 3_000_000, "{}", sites.said("show links"));
    assert_eq!(sites.choice()["why"], "cap");
    let decisions = sites.ask("why other default")["decisions"].take();
    let is_said = |one: &Value| one["kind"] == "moved" && one["why"] == "cap" && one["to"] == "2-2";
    assert!(decisions.as_array().unwrap().iter().any(is_said), "{decisions}");
    assert!(
        sites.said("show").contains("of its data cap is used"),
        "{}",
        sites.said("show")
    );
    assert!(
        sites.said("top --once").contains("% used"),
        "{}",
        sites.said("top --once")
    );
    assert!(
        sites.control.log().contains("the data cap is used up"),
        "{}",
        sites.control.log()
    );
    // Nothing else is up.
    sites.hops[1].command("cut").unwrap();
    sites.goes_by("1-1");
    sites.hops[1].command("mend").unwrap();
    sites.goes_by("2-2");
    // Counts are written down each minute, and counters go on: nothing is forgotten.
    let before = used(&sites);
    sites.kill_control();
    assert!(
        eventually(|| used(&sites) >= before),
        "{}",
        sites.said("show links")
    );
    std::thread::sleep(Duration::from_secs(3));
    sites.goes_by("2-2");
    assert_eq!(
        sites.candidate("1-1")["why"],
        "cap",
        "{}",
        sites.said("why other")
    );
    sites.apply(|text| text.replace("3MB", "5GB"));
    let is_free = || sites.candidate("1-1")["good"] == true;
    assert!(eventually(is_free), "{}", sites.said("why other"));
}

/// Flows of a class that goes by several paths are on one each, and that one is named.
#[test]
fn why_names_the_path_of_this_flow() {
    if !may_run(&[]) {
        return;
    }
    // Something to route by: without a router no flow is remembered.
    let policy = "[[policy]]\nname = 'no-telnet'\nprotocol = 'tcp'\ndst_ports = 23\naction = 'drop'\n";
    let sites = Sites::up(["", ""], policy);
    let is_spread = || {
        sites.choice()["over"]
            .as_array()
            .is_some_and(|over| over.len() == 2)
    };
    assert!(eventually(is_spread), "{}", sites.said("why other"));
    assert!(sites.said("why other").contains("flows are spread over paths"));
    let ports = 4000..4024u16;
    let sockets: Vec<UdpSocket> = ports
        .clone()
        .map(|port| {
            sites
                .a
                .run(|| UdpSocket::bind(("10.66.1.1", port)))
                .unwrap()
                .unwrap()
        })
        .collect();
    let send = || {
        sockets.iter().for_each(|socket| {
            let _ = socket.send_to(&[7; 200], "10.66.2.1:5060");
        });
    };
    send();
    let flows = || {
        let mut all = sites.ask("show flows --address 10.66.2.1 --port 5060");
        all["flows"]
            .as_array_mut()
            .map(std::mem::take)
            .unwrap_or_default()
    };
    let all_have_paths = || {
        send();
        let flows = flows();
        flows.len() == sockets.len() && flows.iter().all(|flow| flow["path"].is_string())
    };
    assert!(eventually(all_have_paths), "{:?}", flows());
    let flows = flows();
    let path_of = |port: u16| {
        let flow = flows.iter().find(|flow| flow["src_port"] == port).unwrap();
        assert!(flow["bytes"].as_u64() >= Some(228), "{flow}");
        flow["path"].as_str().unwrap().to_owned()
    };
    let mut seen = std::collections::BTreeSet::new();
    for port in ports {
        let words = format!("why 10.66.1.1 10.66.2.1 udp {port} 5060");
        let fate = sites.ask(&words);
        let path = path_of(port);
        assert_eq!(fate["path"], path.as_str(), "{fate}");
        assert_eq!(fate["engine"]["path"], path.as_str());
        assert!(
            sites
                .said(&words)
                .contains(&format!("now     by path {path} for"))
        );
        seen.insert(path);
    }
    assert_eq!(seen.len(), 2, "{seen:?}");
    let fate = sites.ask("why 10.66.1.1 10.66.2.1 udp - 5060");
    assert!(fate["path"].is_null() && fate["engine"].is_null(), "{fate}");
    let dropped = sites.ask("why 10.66.1.1 10.66.2.1 tcp 4000 23");
    assert_eq!(
        (&dropped["goes"], &dropped["policy"]),
        (&"drop".into(), &"no-telnet".into())
    );
    assert!(
        sites.said("top --once").contains("GOES TO"),
        "{}",
        sites.said("top --once")
    );
    assert!(sites.said("show flows --port 70000").contains("70000"));
}

/// A site that is called has a route to who calls, as soon as he has.
#[test]
fn a_link_has_a_route_to_who_calls() {
    if !may_run(&[]) {
        return;
    }
    let sites = Sites::up(["", ""], "");
    let leads = || {
        let said = uapi(sites.other.interface(), "get=links\n\n").unwrap_or_default();
        said.lines().filter(|line| *line == "leads_v4=1").count()
    };
    assert!(
        eventually(|| leads() == 2),
        "{:?}",
        uapi(sites.other.interface(), "get=links\n\n")
    );
}

/// What was measured before the engine was gone is not told as if it were so.
#[test]
fn without_an_engine_there_are_no_paths() {
    if !may_run(&[]) {
        return;
    }
    let mut sites = Sites::up(["", ""], "");
    sites.engine.signal(Signal::KILL);
    assert!(sites.engine.wait(LIMIT).is_some());
    assert!(eventually(|| sites.ask("show")["engine"] == false));
    for words in [
        "show paths",
        "show quality",
        "top --once",
        "why other",
        "show flows",
    ] {
        assert!(
            sites.said(words).contains("the engine is not running"),
            "{words}: {}",
            sites.said(words)
        );
    }
}
