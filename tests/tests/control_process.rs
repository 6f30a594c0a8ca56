//! A site under its control process, with the programs that people run: what happens to packets when the control process dies, who holds keys, and who may do what.

use patronus_control::client::Client;
use patronus_control::message::Code;
use patronus_engine::control::{Control as EngineEnd, User};
use patronus_netns::{
    Config, Daemon, DaemonOptions, Keys, Kind, Namespace, Peer, Process, Site, prepare_runtime_dir,
    unique_name,
};
use patronus_tests::{
    Edge, Flow, LIMIT, Memory, cli_program, control_program, engine_options, engine_program, eventually,
    may_run, ping, uapi_value,
};
use rustix::process::Signal;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

const PORT: u16 = 51820;
/// Something to route by, so that there may be more without a restart.
const ROUTE: &str = "[[route]]\nprefix = '10.8.0.0/16'\nvia = 'discard'\n";

/// A site: a namespace, an engine, a control process, and a folder with everything else. (Processes go before what they need.)
struct Managed {
    control: Process,
    engine: Process,
    site: Site,
    folder: PathBuf,
}

impl Managed {
    /// Starts both, with `more` in the file, and waits until the engine has it in force.
    fn start(more: &str) -> Managed {
        prepare_runtime_dir().unwrap();
        let interface = unique_name("pn");
        let folder = std::env::temp_dir().join(format!("patronus-managed-{interface}"));
        fs::create_dir_all(folder.join("state")).unwrap();
        let keys = Keys::generate().unwrap();
        fs::write(folder.join("site.key"), &keys.private).unwrap();
        fs::set_permissions(folder.join("site.key"), PermissionsExt::from_mode(0o600)).unwrap();
        let namespace = Namespace::new("site").unwrap();
        let text = format!(
            "[site]\nprivate_key_file = 'site.key'\nlisten_port = {PORT}\n[engine]\ninterface = '{interface}'\n{more}\n"
        );
        fs::write(folder.join("site.toml"), text).unwrap();
        let engine = spawn_engine(&namespace, &folder);
        let control = spawn_control(&namespace, &folder);
        let site = Site {
            daemon: None,
            namespace,
            interface,
            keys: Some(keys),
            outer: SocketAddr::new(Ipv4Addr::new(192, 0, 2, 1).into(), PORT),
            inner_v4: Ipv4Addr::new(10, 88, 0, 1),
            inner_v6: Ipv6Addr::new(0xfd00, 0x88, 0, 0, 0, 0, 0, 1),
        };
        let managed = Managed {
            control,
            engine,
            site,
            folder,
        };
        assert!(
            eventually(|| managed.generation() > 0),
            "{}{}",
            managed.engine.log(),
            managed.control.log()
        );
        managed
    }

    /// What `patronus` says.
    fn patronus(&self, words: &str) -> Output {
        let mut command = Command::new(cli_program());
        command.arg("--socket").arg(self.folder.join("control.sock"));
        command.args(words.split_whitespace());
        self.site.namespace.run(|| command.output()).unwrap().unwrap()
    }

    /// The same, as text, for what must succeed.
    fn said(&self, words: &str) -> String {
        let output = self.patronus(words);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let wrong = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{words}: {text}{wrong}{}",
            self.control.log()
        );
        text
    }

    /// A number in the JSON of the summary; 0 if there is none.
    fn generation(&self) -> u64 {
        let output = self.patronus("--json show");
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("\"generation\": "));
        line.and_then(|number| number.trim_end_matches(',').parse().ok())
            .unwrap_or(0)
    }

    fn paths_up(&self) -> usize {
        let shown = self.said("--json show paths");
        shown.matches("\"state\": \"up\"").count()
    }

    fn edit(&self, change: impl FnOnce(String) -> String) {
        let path = self.folder.join("site.toml");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, change(text)).unwrap();
    }

    fn kill_control(&mut self) {
        self.control.signal(Signal::KILL);
        assert!(self.control.wait(LIMIT).is_some());
    }

    fn start_control(&mut self) {
        self.control = spawn_control(&self.site.namespace, &self.folder);
        let log = |managed: &Managed| managed.control.log();
        assert!(
            eventually(|| self.patronus("show").status.success()),
            "{}",
            log(self)
        );
    }

    fn raise(&self) {
        let (namespace, interface) = (&self.site.namespace, &self.site.interface);
        namespace.ip(&format!("link set {interface} up")).unwrap();
        namespace
            .address(interface, &format!("{}/24", self.site.inner_v4))
            .unwrap();
    }
}

impl Drop for Managed {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn spawn_engine(namespace: &Namespace, folder: &Path) -> Process {
    let mut command = Command::new(engine_program());
    command
        .arg("--foreground")
        .arg("--control")
        .arg(folder.join("engine.sock"));
    namespace.spawn(command).unwrap()
}

fn spawn_control(namespace: &Namespace, folder: &Path) -> Process {
    namespace.spawn(control_command(folder)).unwrap()
}

fn control_command(folder: &Path) -> Command {
    let mut command = Command::new(control_program());
    command.arg("--site").arg(folder.join("site.toml"));
    command.arg("--engine").arg(folder.join("engine.sock"));
    command.arg("--socket").arg(folder.join("control.sock"));
    command.arg("--state").arg(folder.join("state"));
    command
}

/// A managed site and a plain one with a tunnel between them that works.
fn with_peer() -> (Managed, Site) {
    let keys = Keys::generate().unwrap();
    let managed = Managed::start(&format!(
        "[[peer]]\nname = 'other'\npublic_key = '{}'\nallowed_ips = ['10.88.0.2/32']\n\
         [[policy]]\nname = 'no-telnet'\nprotocol = 'tcp'\ndst_ports = 23\naction = 'drop'",
        keys.public
    ));
    let mut other = Site {
        daemon: None,
        namespace: Namespace::new("other").unwrap(),
        interface: unique_name("pn"),
        keys: Some(keys),
        outer: SocketAddr::new(Ipv4Addr::new(192, 0, 2, 2).into(), PORT),
        inner_v4: Ipv4Addr::new(10, 88, 0, 2),
        inner_v6: Ipv6Addr::new(0xfd00, 0x88, 0, 0, 0, 0, 0, 2),
    };
    let namespace = &managed.site.namespace;
    namespace.veth("path", &other.namespace, "path", 1500).unwrap();
    namespace.address("path", "192.0.2.1/24").unwrap();
    other.namespace.address("path", "192.0.2.2/24").unwrap();
    let options: DaemonOptions = engine_options(&[]);
    let daemon = Daemon::start(&other.namespace, Kind::Engine, &other.interface, &options).unwrap();
    let own = other.keys.as_ref().unwrap();
    let config = Config {
        private: own.private.clone(),
        listen_port: Some(PORT),
        fwmark: None,
        peers: vec![Peer {
            public: managed.site.keys.as_ref().unwrap().public.clone(),
            preshared: None,
            endpoint: Some(managed.site.outer),
            allowed_ips: vec!["10.88.0.1/32".to_owned()],
            keepalive: None,
        }],
    };
    daemon.setconf(&config).unwrap();
    other.daemon = Some(daemon);
    other
        .namespace
        .ip(&format!("link set {} up", other.interface))
        .unwrap();
    other.namespace.address(&other.interface, "10.88.0.2/24").unwrap();
    managed.raise();
    let arrived = || {
        ping(&other.namespace, "-c 1 -W 1 10.88.0.1")
            .unwrap()
            .contains(" 1 received")
    };
    // Only the other side can call, and it begins anew 15 s after the first packet that nobody answered (WireGuard paper, section 6.5): just longer than
    // `eventually` waits.
    assert!(
        eventually(arrived) || eventually(arrived),
        "{}{}",
        managed.engine.log(),
        managed.control.log()
    );
    (managed, other)
}

/// The table of the architecture, its first two lines: the control process dies, and comes back, and no packet is lost for that.
#[test]
fn the_death_and_the_return_of_control_lose_no_packet() {
    if !may_run(&[]) {
        return;
    }
    let (mut managed, other) = with_peer();
    let before = managed.generation();
    let flow = Flow::start(&other, &managed.site, false, Duration::from_millis(2)).unwrap();
    managed.kill_control();
    std::thread::sleep(Duration::from_millis(300));
    managed.start_control();
    assert!(
        eventually(|| managed.generation() == before),
        "nothing was published again"
    );
    std::thread::sleep(Duration::from_millis(300));
    let received = flow.finish();
    assert_eq!(received.lost(), 0, "{received:?}");
    assert!(
        managed.control.log().contains("has what is wanted"),
        "{}",
        managed.control.log()
    );
}

/// An engine that comes in the place of one that was killed is told everything again.
#[test]
fn an_engine_that_comes_back_is_told_again() {
    if !may_run(&[]) {
        return;
    }
    let (mut managed, other) = with_peer();
    managed.engine.signal(Signal::KILL);
    assert!(managed.engine.wait(LIMIT).is_some());
    assert!(
        eventually(|| managed.generation() == 0),
        "that it is gone is known"
    );
    let shown = managed.patronus("show peers");
    assert_eq!(shown.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&shown.stderr).contains("the engine is not running"));
    managed.engine = spawn_engine(&managed.site.namespace, &managed.folder);
    let arrived = || {
        ping(&other.namespace, "-c 1 -W 1 10.88.0.1")
            .unwrap()
            .contains(" 1 received")
    };
    assert!(
        eventually(arrived),
        "{}{}",
        managed.engine.log(),
        managed.control.log()
    );
    let _ = managed.said("show peers");
}

/// Reloads, each of which changes a policy, a peer and a route: no packet of another peer is lost, no session begins anew.
#[test]
fn reloads_lose_no_packet() {
    const RELOADS: usize = 100;
    if !may_run(&[]) {
        return;
    }
    let (managed, other) = with_peer();
    let text = fs::read_to_string(managed.folder.join("site.toml")).unwrap();
    let keys = [Keys::generate().unwrap(), Keys::generate().unwrap()];
    let handshake = || uapi_value(&managed.site.interface, "last_handshake_time_nsec").unwrap();
    let before = handshake();
    let flow = Flow::start(&other, &managed.site, false, Duration::from_millis(1)).unwrap();
    for number in 0..RELOADS {
        let more = format!(
            "[[peer]]\npublic_key = '{}'\nallowed_ips = ['10.90.0.0/24']\n[[route]]\nprefix = '10.91.{number}.0/24'\nvia = 'other'\n\
             [[policy]]\nprotocol = 'udp'\ndst_ports = {}\naction = 'drop'\n",
            keys[number % 2].public,
            10 + number % 7
        );
        managed.edit(|_| format!("{text}{more}"));
        managed.said("apply");
    }
    let received = flow.finish();
    assert_eq!(received.lost(), 0, "of {}", received.sent);
    assert!(received.in_order());
    assert_eq!(handshake(), before, "the session is the same");
}

/// What is applied and not confirmed is gone after its time, also when the control process dies meanwhile, and does not come back with it.
#[test]
fn what_is_not_confirmed_goes_back_after_controls_death_too() {
    if !may_run(&[]) {
        return;
    }
    let (mut managed, _other) = with_peer();
    managed.edit(|text| text.replace("dst_ports = 23", "dst_ports = 24"));
    assert!(managed.said("plan").contains("dst_ports 23 -> 24"));
    assert!(managed.said("apply --confirm 3s").contains("confirm within 3 s"));
    assert_eq!(managed.said("plan"), "nothing changes\n");
    managed.kill_control();
    managed.start_control();
    assert!(
        managed.said("show").contains("confirm     within"),
        "it still can be confirmed"
    );
    assert!(
        eventually(|| managed.said("show").contains("not confirmed")),
        "{}",
        managed.control.log()
    );
    assert!(
        managed.said("plan").contains("dst_ports 23 -> 24"),
        "what was before is in force"
    );
    managed.kill_control();
    managed.start_control();
    assert!(
        managed.said("show").contains("not confirmed"),
        "a restart does not bring it back"
    );
    assert!(managed.said("plan").contains("dst_ports 23 -> 24"));
    managed.said("apply --confirm 60s");
    managed.said("confirm");
    managed.kill_control();
    managed.start_control();
    assert_eq!(managed.said("plan"), "nothing changes\n");
    assert!(!managed.said("show").contains("note"), "{}", managed.said("show"));
}

/// What cannot be had back is wanted all the same: the engine that comes is not told again what was not confirmed. And what would take a restart to go back from
/// is not tried.
#[test]
fn what_cannot_go_back_is_not_kept() {
    if !may_run(&[]) {
        return;
    }
    let (managed, _other) = with_peer();
    managed.edit(|text| text.replace("[engine]\n", "[engine]\nworkers = 2\n"));
    let output = managed.patronus("apply --restart --confirm 60s");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("cannot be tried"), "{said}");
    managed.edit(|text| {
        text.replace("workers = 2\n", "")
            .replace("dst_ports = 23", "dst_ports = 24")
    });
    managed.said("apply --confirm 60s");
    let key = managed.folder.join("site.key");
    let hidden = managed.folder.join("hidden.key");
    std::fs::rename(&key, &hidden).expect("a folder of ours");
    let output = managed.patronus("rollback");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("site.toml:") && said.contains("there is no such file"),
        "at the line that names it: {said}"
    );
    assert!(managed.said("plan").contains("dst_ports 23 -> 24"));
    std::fs::rename(&hidden, &key).expect("a folder of ours");
}

/// A file that is wrong changes nothing, and a control process that starts with it goes on with what was in force.
#[test]
fn a_wrong_file_changes_nothing() {
    if !may_run(&[]) {
        return;
    }
    let (mut managed, other) = with_peer();
    managed.edit(|text| text.replace("dst_ports", "dst_prots"));
    let refused = managed.patronus("apply");
    assert_eq!(refused.status.code(), Some(3));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        said.contains("unknown key `dst_prots`") && said.contains("did you mean `dst_ports`?"),
        "{said}"
    );
    managed.kill_control();
    managed.start_control();
    let arrived = ping(&other.namespace, "-c 1 -W 2 10.88.0.1").unwrap();
    assert!(arrived.contains(" 1 received"), "{arrived}");
    assert!(
        managed.said("show").contains("the file has changed"),
        "{}",
        managed.said("show")
    );
}

/// Control opens key files and passes them on; a key is never in its memory, nor is it in what the engine answers to it.
#[test]
fn control_never_holds_a_key() {
    if !may_run(&[]) {
        return;
    }
    let (managed, other) = with_peer();
    for what in [
        "show",
        "show peers",
        "show stages",
        "apply",
        "reload",
        "--json show peers",
    ] {
        managed.said(what);
    }
    let memory = Memory::of(managed.control.pid()).unwrap();
    let public = &other.keys.as_ref().unwrap().public;
    assert!(
        memory.count(public.as_bytes()) > 0,
        "the scan finds what is there"
    );
    let private = &managed.site.keys.as_ref().unwrap().private;
    let raw = decode(private);
    for secret in [private.as_bytes().to_vec(), raw.to_vec(), hex(&raw).into_bytes()] {
        assert_eq!(memory.count(&secret), 0);
    }
}

/// Why a tunnel is not up is said in a line.
#[test]
fn why_a_tunnel_is_not_up() {
    if !may_run(&[]) {
        return;
    }
    let (peer, silent) = (Keys::generate().unwrap(), Keys::generate().unwrap());
    let managed = Managed::start(&format!(
        "[[peer]]\nname = 'calls'\npublic_key = '{}'\nallowed_ips = ['10.88.0.2/32']\n\
         [[peer]]\nname = 'far'\npublic_key = '{}'\nendpoint = '198.51.100.7:1'\nallowed_ips = ['10.88.0.3/32']\nkeepalive = '5s'",
        peer.public, silent.public
    ));
    let says = |text: &str| eventually(|| managed.said("show peers").contains(text));
    assert!(says(&format!(
        "far: interface {0} is down: `ip link set {0} up`",
        managed.site.interface
    )));
    managed.raise();
    assert!(
        says("calls: it has to call, and has not yet"),
        "{}",
        managed.said("show peers")
    );
    assert!(
        says("far: no route to 198.51.100.7"),
        "{}",
        managed.said("show peers")
    );
    let namespace = &managed.site.namespace;
    let nowhere = Namespace::new("nowhere").unwrap();
    namespace.veth("path", &nowhere, "path", 1500).unwrap();
    namespace.address("path", "198.51.100.1/24").unwrap();
    assert!(
        says("far: no reply from 198.51.100.7:1 after"),
        "{}",
        managed.said("show peers")
    );
}

/// What systemd is told: that it serves, that it is alive, and when it reads its file again.
#[test]
fn systemd_is_told() {
    if !may_run(&[]) {
        return;
    }
    let mut managed = Managed::start("");
    let path = managed.folder.join("notify.sock");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    managed.kill_control();
    let mut command = control_command(&managed.folder);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000");
    managed.control = managed.site.namespace.spawn(command).unwrap();
    let wait_for = |word: &str| {
        let mut message = [0; 500];
        // Others come in between: how it is, and that it is alive.
        for _ in 0..100 {
            let len = socket
                .recv(&mut message)
                .unwrap_or_else(|error| panic!("no {word}: {error}"));
            let text = String::from_utf8_lossy(&message[..len]).into_owned();
            if text.lines().any(|line| line == word) {
                return text;
            }
        }
        panic!("no {word}");
    };
    wait_for("READY=1");
    wait_for("WATCHDOG=1");
    wait_for("WATCHDOG=1");
    managed.control.signal(Signal::HUP);
    assert!(wait_for("RELOADING=1").contains("\nMONOTONIC_USEC="));
    wait_for("READY=1");
    managed.control.signal(Signal::TERM);
    wait_for("STOPPING=1");
    assert!(managed.control.wait(LIMIT).is_some_and(|status| status.success()));
}

/// Metrics: names as WireGuard exporters have them, and the engine's counters.
#[test]
fn metrics_are_scraped() {
    if !may_run(&[]) {
        return;
    }
    let keys = Keys::generate().unwrap();
    let managed = Managed::start(&format!(
        "[[peer]]\nname = 'branch'\npublic_key = '{}'\nallowed_ips = ['10.88.0.2/32']\n[metrics]\nlisten = '127.0.0.1:9586'",
        keys.public
    ));
    let scrape = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect("127.0.0.1:9586")?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        Ok(page)
    };
    let page = managed.site.namespace.run(scrape).unwrap().unwrap();
    let labels = format!(
        "{{interface=\"{}\",public_key=\"{}\",allowed_ips=\"10.88.0.2/32\",friendly_name=\"branch\"}} 0\n",
        managed.site.interface, keys.public
    );
    for name in [
        "wireguard_sent_bytes_total",
        "wireguard_received_bytes_total",
        "wireguard_latest_handshake_seconds",
    ] {
        assert!(page.contains(&format!("{name}{labels}")), "{name}: {page}");
    }
    assert!(page.contains("\npatronus_engine_attached 1\n"), "{page}");
    assert!(page.contains("worker=\"0\""), "the engine's own counters: {page}");
}

fn decode(base64: &str) -> [u8; 32] {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bits = base64
        .bytes()
        .filter_map(|c| DIGITS.iter().position(|digit| *digit == c));
    let mut key = [0; 32];
    let (mut held, mut count, mut at) = (0u32, 0, 0);
    while at < key.len() {
        held = held << 6 | bits.next().unwrap() as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            key[at] = (held >> count) as u8;
            at += 1;
        }
    }
    key
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An administrator sees packets without being able to open the engine's socket: control asks, and hands the connection over.
#[test]
fn packets_are_asked_for_through_control() {
    if !may_run(&[]) {
        return;
    }
    let (managed, _other) = with_peer();
    let trace = std::thread::scope(|scope| {
        let traced = scope.spawn(|| managed.said("--json trace --packets 1 icmp"));
        while !traced.is_finished() {
            let _ = ping(&managed.site.namespace, "-c 1 -W 1 10.88.0.2");
        }
        traced.join().unwrap()
    });
    assert!(trace.contains("\"point\":\"lan-rx\""), "{trace}");
    assert!(
        managed.control.log().contains("observe=trace"),
        "{}",
        managed.control.log()
    );
    // What comes with the descriptor is this and nothing else.
    let mut client = Client::connect(&managed.folder.join("control.sock")).unwrap();
    let wrong = client.observe("get=1\n\n".to_owned()).unwrap_err();
    assert_eq!(wrong.code, Code::BadRequest);
    let mut connection =
        std::os::unix::net::UnixStream::from(client.observe("observe=trace\n\n".to_owned()).unwrap());
    connection.write_all(b"get=1\n\n").unwrap();
    connection.shutdown(std::net::Shutdown::Write).unwrap();
    let mut said = Vec::new();
    connection.read_to_end(&mut said).unwrap();
    assert!(!String::from_utf8_lossy(&said).contains("private_key"));
}

/// Warnings of the file reach the log and the summary, also after a reload by a signal.
#[test]
fn warnings_of_the_file_are_shown() {
    if !may_run(&[]) {
        return;
    }
    const SAID: &str = "everybody who reaches this address can read the metrics";
    let mut managed = Managed::start("");
    assert!(!managed.said("show").contains(SAID));
    managed.edit(|text| text + "[metrics]\nlisten = '192.0.2.77:9586'\n");
    managed.control.signal(Signal::HUP);
    assert!(
        eventually(|| managed.said("show").contains(SAID)),
        "{}",
        managed.said("show")
    );
    assert!(managed.control.log().contains(SAID), "{}", managed.control.log());
}

/// What is tried and cannot be understood after an update does not keep the control process from starting.
#[test]
fn a_tried_text_that_is_none_any_more_is_given_up() {
    if !may_run(&[]) {
        return;
    }
    let mut managed = Managed::start(ROUTE);
    managed.edit(|text| text + "[[route]]\nprefix = '10.9.0.0/16'\nvia = 'discard'\n");
    managed.said("apply --confirm 10m");
    managed.kill_control();
    let record = managed.folder.join("state/applied.json");
    let text = fs::read_to_string(&record).unwrap();
    assert!(text.contains("discard"));
    // In JSON a line's end is `\n`.
    let (right, wrong) = (r"10.9.0.0/16'\nvia", r"10.9.0.0/16'\nby");
    assert!(text.contains(right), "{text}");
    fs::write(&record, text.replace(right, wrong)).unwrap();
    managed.start_control();
    assert!(
        managed.control.log().contains("cannot be understood any more"),
        "{}",
        managed.control.log()
    );
    assert!(
        managed.said("show").contains("not confirmed"),
        "{}",
        managed.said("show")
    );
    let routes = managed.said("show routes");
    assert!(!routes.contains("10.9.0.0"), "{routes}");
}

/// An engine that is lost while it is told something has not applied it.
#[test]
fn what_a_lost_engine_was_told_is_not_applied() {
    if !may_run(&[]) {
        return;
    }
    let mut managed = Managed::start(ROUTE);
    let _ = managed.engine.stop();
    assert!(eventually(|| managed.said("show").contains("not running")));
    let record = || {
        let text = fs::read_to_string(managed.folder.join("state/applied.json")).unwrap();
        // Behind it stands which engine was told which keys.
        text.split("\"told\"").next().unwrap().to_owned()
    };
    let before = record();
    let path = managed.folder.join("engine.sock");
    let _ = fs::remove_file(&path);
    // Its end of the channel, which takes the first site and is gone with the second.
    let (mut engine, _segment) = EngineEnd::bind(&path, User::default(), [7; 16]).unwrap();
    let mut next = || {
        let start = std::time::Instant::now();
        while start.elapsed() < LIMIT {
            engine.service();
            if let Some(published) = engine.take_published() {
                return published;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("nothing was published: {}", managed.control.log());
    };
    let first = next();
    engine.applied(first.generation, first.content, 0, [0; 32]);
    managed.edit(|text| text + "[[route]]\nprefix = '10.9.0.0/16'\nvia = 'discard'\n");
    let output = std::thread::scope(|scope| {
        let applying = scope.spawn(|| managed.patronus("apply"));
        let start = std::time::Instant::now();
        while engine.take_published().is_none() && start.elapsed() < LIMIT {
            engine.service();
        }
        drop(engine);
        applying.join().unwrap()
    });
    let wrong = String::from_utf8_lossy(&output.stderr);
    assert!(wrong.contains("the engine was lost while it was told"), "{wrong}");
    assert_eq!(output.status.code(), Some(4));
    assert_eq!(record(), before);
    assert!(
        managed.said("show").contains("patronus plan"),
        "the file is not in force"
    );
}

/// What the site says of the TUN is set there, stays while the engine restarts, and goes when the file says so; what others have set stays.
#[test]
fn addresses_and_routes_at_the_tun() {
    if !may_run(&[]) {
        return;
    }
    let key = Keys::generate().unwrap().public;
    let allowed = "'10.89.0.2/32', '10.90.0.0/16', '10.91.0.0/16', 'fd00:90::/32', '0.0.0.0/0'";
    let peer = format!("[[peer]]\npublic_key = '{key}'\nallowed_ips = [{allowed}]\n");
    let mut managed = Managed::start(&peer);
    let (namespace, interface) = (managed.site.namespace.clone(), managed.site.interface.clone());
    let ip = |words: &str| namespace.ip(words).unwrap();
    let addresses = || ip(&format!("-br address show dev {interface}"));
    let routes =
        || ip(&format!("route show dev {interface}")) + &ip(&format!("-6 route show dev {interface}"));
    assert!(
        !addresses().contains("10.89"),
        "nothing is set unless the file says so"
    );
    ip("tuntap add dev other mode tun");
    ip("link set other up");
    ip("route add 10.91.0.0/16 dev other");
    ip(&format!("address add 10.99.0.1/32 dev {interface}"));
    let line = "addresses = ['10.89.0.1/24', 'fd00:89::1/64']\nmtu = 1380\nroutes = true\n[engine]";
    managed.edit(|text| text.replace("[engine]", line));
    let said = managed.said("apply");
    assert!(said.contains("addresses +10.89.0.1/24"), "{said}");
    let wanted = ["10.90.0.0/16", "fd00:90::/32", "10.89.0.0/24"];
    let all_there = || wanted.iter().all(|network| routes().contains(network));
    assert!(eventually(all_there), "{}{}", routes(), managed.engine.log());
    let there = addresses();
    assert!(
        there.contains("10.89.0.1/24") && there.contains("fd00:89::1/64"),
        "{there}"
    );
    assert!(there.contains("10.99.0.1/32"), "{there}");
    assert!(
        !routes().contains("default") && !routes().contains("10.89.0.2"),
        "{}",
        routes()
    );
    assert!(
        !routes().contains("10.91.0.0"),
        "somebody else has that route: {}",
        routes()
    );
    assert!(
        managed.engine.log().contains("another route to 10.91.0.0/16"),
        "{}",
        managed.engine.log()
    );
    assert!(
        managed.said("show").contains("no default route"),
        "{}",
        managed.said("show")
    );
    assert!(ip(&format!("link show dev {interface}")).contains("mtu 1380"));
    // Down and up again: the kernel has thrown the routes away.
    ip(&format!("link set {interface} down"));
    assert!(eventually(|| !routes().contains("10.90.0.0/16")));
    ip(&format!("link set {interface} up"));
    assert!(eventually(all_there), "{}", routes());
    // The engine dies: everything stays, and the next one finds it.
    managed.engine.signal(Signal::KILL);
    assert!(managed.engine.wait(LIMIT).is_some());
    assert!(all_there(), "{}", routes());
    managed.engine = spawn_engine(&namespace, &managed.folder);
    assert!(eventually(
        || managed.said("show").contains("running") && !managed.said("show").contains("not running")
    ));
    managed.edit(|text| {
        text.replace("addresses = ['10.89.0.1/24', ", "addresses = [")
            .replace("'10.90.0.0/16', ", "")
    });
    managed.said("apply");
    assert!(
        eventually(|| !addresses().contains("10.89.0.1") && !routes().contains("10.90.0.0")),
        "{}",
        routes()
    );
    let there = addresses();
    assert!(
        there.contains("fd00:89::1/64") && there.contains("10.99.0.1/32"),
        "{there}"
    );
    managed.edit(|text| {
        text.replace("routes = true", "routes = false")
            .replace("'fd00:89::1/64'", "")
    });
    managed.said("apply");
    assert!(
        eventually(|| !routes().contains("fd00:90::") && !addresses().contains("fd00:89::1")),
        "{}",
        routes()
    );
    assert!(addresses().contains("10.99.0.1/32"));
}

/// With the last address of its family the kernel takes an interface's routes away, and with the first one of a network the others there: what is wanted is there all the same.
#[test]
fn another_address_at_the_tun_leaves_everything_else() {
    if !may_run(&[]) {
        return;
    }
    let key = Keys::generate().unwrap().public;
    let allowed = "'10.90.0.0/16', 'fd00:90::/32'";
    let peer = format!("[[peer]]\npublic_key = '{key}'\nallowed_ips = [{allowed}]\n");
    let managed = Managed::start(&peer);
    let (namespace, interface) = (managed.site.namespace.clone(), managed.site.interface.clone());
    let ip = |words: &str| namespace.ip(words).unwrap();
    let there = |addresses: &[&str]| {
        let shown = ip(&format!("-4 -o address show dev {interface}"));
        let routes = ip(&format!("route show dev {interface}"));
        shown.lines().count() == addresses.len()
            && addresses.iter().all(|address| shown.contains(address))
            && routes.contains("10.90.0.0/16")
    };
    let mut line = "[engine]".to_owned();
    for addresses in [
        &["10.89.0.1/24"][..],
        &["10.89.0.2/24"],
        &["10.89.0.2/24", "10.89.0.3/24", "10.88.0.1/24"],
        &["10.89.0.3/24", "10.87.0.1/32"],
        &["10.87.0.1/32"],
    ] {
        let next = format!("addresses = {addresses:?}\nroutes = true\n[engine]");
        managed.edit(|text| text.replace(&line, &next));
        line = next;
        managed.said("apply");
        assert!(
            eventually(|| there(addresses)),
            "{addresses:?}: {}{}{}",
            ip(&format!("-4 -o address show dev {interface}")),
            ip(&format!("route show dev {interface}")),
            managed.engine.log()
        );
    }
}

/// A key file that is another one while there is no control process is told by the next one, though the site is the same.
#[test]
fn another_key_is_noticed_by_the_next_control() {
    if !may_run(&[]) {
        return;
    }
    let mut managed = Managed::start("");
    let before = managed.generation();
    managed.kill_control();
    managed.start_control();
    assert!(
        eventually(|| managed.generation() == before),
        "nothing has changed"
    );
    managed.kill_control();
    let keys = Keys::generate().unwrap();
    fs::write(managed.folder.join("site.key"), &keys.private).unwrap();
    managed.start_control();
    assert!(
        eventually(|| managed.said("show").contains(&keys.public)),
        "{}{}",
        managed.said("show"),
        managed.control.log()
    );
}

/// A managed site with `more` in its file, and two links to a site of our own, whose paths are up.
fn with_remote(more: &str) -> (Managed, Edge) {
    let other = Keys::generate().unwrap();
    let tables = |key: &str, net: &str| {
        let link = |id: u8| format!("[[link]]\nid = {id}\ninterface = 'up{id}'\ngroup = {id}\n");
        format!(
            "[probe]\ninterval = '100ms'\nidle = '100ms'\n{}{}[[remote]]\nname = 'other'\npublic_key = '{}'\nallowed_ips = ['{net}']\n",
            link(1),
            link(2),
            key.trim()
        )
    };
    let managed = Managed::start(&format!("{}{more}", tables(&other.public, "10.88.0.2/32")));
    let far = Namespace::new("far").unwrap();
    for link in [1, 2] {
        let name = format!("up{link}");
        managed.site.namespace.veth(&name, &far, &name, 1500).unwrap();
        managed
            .site
            .namespace
            .address(&name, &format!("198.18.{link}.1/24"))
            .unwrap();
        far.address(&name, &format!("198.18.{link}.2/24")).unwrap();
    }
    let own = managed.site.keys.as_ref().unwrap();
    let file = tables(&own.public, "10.88.0.1/32") + "endpoint = '198.18.1.1:51820'\n";
    let edge = Edge::start(&far, &other, &file).unwrap();
    far.address(edge.interface(), "10.88.0.2/24").unwrap();
    managed.raise();
    assert!(
        eventually(|| managed.paths_up() == 2),
        "{}",
        managed.said("show paths")
    );
    (managed, edge)
}

/// An engine that refuses what is wanted has other classes than control, and those have other numbers: it is told no order by them.
#[test]
fn an_engine_that_refuses_is_told_no_orders() {
    if !may_run(&[]) {
        return;
    }
    let policy = "[[policy]]\nprotocol = 'udp'\naction = 'route'\nclass = 'voice'\n";
    let (mut managed, _other) = with_remote(policy);
    let has_chosen =
        |managed: &Managed, class: &str| managed.said(&format!("why other {class}")).contains("the one:");
    assert!(
        eventually(|| has_chosen(&managed, "voice")),
        "{}",
        managed.said("why other")
    );
    managed.kill_control();
    managed.edit(|text| {
        text.replace("[engine]\n", "[engine]\nworkers = 2\n")
            + "[[class]]\nname = 'alpha'\nmode = 'duplicate'\n"
    });
    managed.start_control();
    assert!(
        eventually(|| has_chosen(&managed, "alpha")),
        "{}",
        managed.said("why other")
    );
    // Orders go out a second after paths were seen first.
    std::thread::sleep(Duration::from_secs(2));
    let log = managed.control.log();
    assert!(log.contains("the engine refuses"), "{log}");
    assert!(!log.contains("commands were refused"), "{log}");
}

/// Two links to a site of our own. One of them is in a drill: its path is noticed to be down and packets go by the other one, what was dropped is counted, and it is back afterwards.
#[test]
fn a_drill_cuts_a_link_and_tells_what_became_of_it() {
    if !may_run(&[]) {
        return;
    }
    let (managed, _other) = with_remote("");
    let said = managed.said("--json failover-test --link up1 --for 1s");
    let told: serde_json::Value = serde_json::from_str(&said).unwrap();
    let path = &told["paths"][0];
    assert_eq!(told["paths"].as_array().map(Vec::len), Some(1), "{said}");
    assert_eq!(path["path"], "1-1", "{said}");
    // Either end may be the first to notice.
    assert!(path["why"] == "silent" || path["why"] == "not-heard", "{said}");
    assert!(path["down_after"].as_f64() < path["up_after"].as_f64(), "{said}");
    assert!(path["down_after"].as_f64() > Some(0.0), "{said}");
    assert!(told["dropped_sent"].as_u64() > Some(0), "{said}");
    assert_eq!(managed.paths_up(), 2);

    let refused = managed.patronus("failover-test --link up9");
    let wrong = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && wrong.contains("there are: up1, up2"),
        "{wrong}"
    );
    assert_eq!(
        managed
            .patronus("failover-test --link up1 --for 61s")
            .status
            .code(),
        Some(2)
    );
}

/// The flows that workers remember, and those of them that somebody wants to see.
#[test]
fn flows_are_shown() {
    if !may_run(&[]) {
        return;
    }
    let (managed, _other) = with_peer();
    let shown = |words: &str| {
        let _ = ping(&managed.site.namespace, "-c 1 -W 1 10.88.0.2");
        managed.said(&format!("show flows {words}"))
    };
    assert!(eventually(|| shown("").contains("10.88.0.2")), "{}", shown(""));
    let line = shown("--address 10.88.0.2/32");
    assert!(line.contains("icmp") && line.contains("other"), "{line}");
    for nobody in ["--address 10.77.0.0/16", "--port 443", "--class voice"] {
        assert!(!shown(nobody).contains("10.88"), "{nobody}");
    }
    let wrong = managed.patronus("show peers --port 443");
    assert_eq!(wrong.status.code(), Some(2));
}
