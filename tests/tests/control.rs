//! The control socket with the real `wg` and `wg-quick`: every subcommand, large configurations, live changes.

use patronus_netns::{
    Config, Daemon, Keys, Kind, Namespace, Peer, RUNTIME_DIR, Site, preshared_key, probe, unique_name,
};
use patronus_tests::{
    Capture, Flow, LIMIT, MessageKind, Need, background_pid, engine_options, engine_program, eventually,
    may_run, sites, uapi, uapi_value,
};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

fn daemon(site: &Site) -> &Daemon {
    site.daemon
        .as_ref()
        .expect("every site of these tests has a daemon")
}

/// An engine without a peer.
fn lone() -> (Namespace, Daemon) {
    let namespace = Namespace::new("lone").unwrap();
    let options = engine_options(&[]);
    let daemon = Daemon::start(&namespace, Kind::Engine, &unique_name("pn"), &options).unwrap();
    (namespace, daemon)
}

/// `wg` with these words, and what it says.
fn wg(namespace: &Namespace, words: &str) -> String {
    namespace
        .exec("wg", &words.split_whitespace().collect::<Vec<_>>())
        .unwrap()
}

fn wg_with_file(namespace: &Namespace, words: &str, file: &str) {
    let words = words.split_whitespace().collect::<Vec<_>>();
    namespace.exec_with_input("wg", &words, file.as_bytes()).unwrap();
}

#[test]
fn c78_every_subcommand_of_wg() {
    if !may_run(&[]) {
        return;
    }
    let (namespace, daemon) = lone();
    let name = daemon.interface();
    let keys = Keys::generate().unwrap();
    let [first, second] = [(); 2].map(|()| Keys::generate().unwrap().public);
    let psk = preshared_key().unwrap();

    // show, of an interface that has nothing yet
    let shown = wg(&namespace, &format!("show {name}"));
    assert!(shown.contains(&format!("interface: {name}")), "{shown}");
    assert!(wg(&namespace, "show interfaces").contains(name));
    // set
    wg_with_file(
        &namespace,
        &format!("set {name} listen-port 7654 fwmark 0x51 private-key /dev/stdin"),
        &keys.private,
    );
    wg_with_file(
        &namespace,
        &format!(
            "set {name} peer {first} preshared-key /dev/stdin endpoint [fe80::1%lo]:9 persistent-keepalive 25 \
             allowed-ips 10.0.0.0/8,fd00::/8"
        ),
        &psk,
    );
    let ask = |what: &str| wg(&namespace, &format!("show {name} {what}")).trim().to_owned();
    assert_eq!(ask("public-key"), keys.public);
    assert_eq!(ask("private-key"), keys.private);
    assert_eq!(ask("listen-port"), "7654");
    assert_eq!(ask("fwmark"), "0x51");
    assert_eq!(ask("peers"), first);
    assert_eq!(ask("preshared-keys"), format!("{first}\t{psk}"));
    assert_eq!(ask("endpoints"), format!("{first}\t[fe80::1%lo]:9"));
    assert_eq!(ask("allowed-ips"), format!("{first}\t10.0.0.0/8 fd00::/8"));
    assert_eq!(ask("persistent-keepalive"), format!("{first}\t25"));
    assert_eq!(ask("latest-handshakes"), format!("{first}\t0"));
    assert_eq!(ask("transfer"), format!("{first}\t0\t0"));
    // showconf gives what setconf takes
    let conf = wg(&namespace, &format!("showconf {name}"));
    for line in [
        "ListenPort = 7654",
        "FwMark = 0x51",
        &format!("PrivateKey = {}", keys.private),
        &format!("PublicKey = {first}"),
        &format!("PresharedKey = {psk}"),
        "PersistentKeepalive = 25",
    ] {
        assert!(conf.contains(line), "{line} is not in {conf}");
    }
    // addconf adds and changes
    let more = format!("[Peer]\nPublicKey = {second}\nAllowedIPs = 192.168.0.0/16\n");
    wg_with_file(&namespace, &format!("addconf {name} /dev/stdin"), &more);
    assert_eq!(ask("peers").lines().count(), 2);
    // syncconf makes it what the file says
    wg_with_file(&namespace, &format!("syncconf {name} /dev/stdin"), &conf);
    assert_eq!(ask("peers"), first);
    assert_eq!(ask("preshared-keys"), format!("{first}\t{psk}"));
    // setconf replaces everything
    let bare = format!(
        "[Interface]\nPrivateKey = {}\n[Peer]\nPublicKey = {second}\n",
        keys.private
    );
    wg_with_file(&namespace, &format!("setconf {name} /dev/stdin"), &bare);
    assert_eq!(ask("peers"), second);
    assert_eq!(ask("allowed-ips"), format!("{second}\t(none)"));
    assert_eq!(ask("fwmark"), "off");
    // and the keys go
    wg_with_file(&namespace, &format!("setconf {name} /dev/stdin"), &conf);
    wg(
        &namespace,
        &format!("set {name} peer {first} preshared-key /dev/null"),
    );
    assert_eq!(ask("preshared-keys"), format!("{first}\t(none)"));
    wg(&namespace, &format!("set {name} peer {first} remove"));
    assert_eq!(ask("peers"), "");
    wg(&namespace, &format!("set {name} private-key /dev/null"));
    assert_eq!(ask("private-key"), "(none)");
}

/// What `wg` never sends: refused with a number, and nothing of the request applied.
#[test]
fn c80_r44_malformed_requests_change_nothing() {
    if !may_run(&[]) {
        return;
    }
    let (_namespace, daemon) = lone();
    let name = daemon.interface();
    let key = "01".repeat(32);
    let good = format!("set=1\nprivate_key={key}\nlisten_port=5555\nfwmark=7\n\n");
    assert!(uapi(name, &good).unwrap().ends_with("errno=0\n\n"));
    let before = uapi(name, "get=1\n\n").unwrap();
    let peer = format!("public_key={}\n", "02".repeat(32));
    let bad = [
        "fwmark=9\nunknown=1\n".to_owned(),
        "fwmark=9\nlisten_port=65536\n".to_owned(),
        "fwmark=9\nprivate_key=zz\n".to_owned(),
        format!("fwmark=9\n{peer}allowed_ip=10.0.0.0/33\n"),
        format!("fwmark=9\n{peer}endpoint=10.0.0.1\n"),
        format!("fwmark=9\n{peer}preshared_key={}\n", "0".repeat(63)),
        format!("fwmark=9\n{peer}persistent_keepalive_interval=65536\n"),
        format!("fwmark=9\n{peer}protocol_version=2\n"),
        format!("fwmark=9\n{peer}fwmark=10\n"),
        "fwmark=9\nno equals sign\n".to_owned(),
        format!("fwmark=9\n{}=1\n", "x".repeat(10_000)),
    ];
    for request in bad {
        let answer = uapi(name, &format!("set=1\n{request}\n"));
        // A line that is too long may also end in a closed connection.
        let refused = answer.is_ok_and(|a| a.contains("errno=") && !a.contains("errno=0"));
        assert!(refused || request.len() > 4096, "{request}");
        assert_eq!(
            uapi(name, "get=1\n\n").unwrap(),
            before,
            "{request} left something"
        );
    }
    // Cut off in the middle, not finished, or not even text.
    for request in [
        "set=1\nfwmark=9\n",
        "set=1\nfwma",
        "get",
        "\n",
        "\0\u{7f}\n\n",
        "",
    ] {
        let _ = uapi(name, request);
        assert_eq!(uapi(name, "get=1\n\n").unwrap(), before);
    }
}

/// As `wg` and the daemons it knows write them.
#[test]
fn c79_forms_of_keys_endpoints_and_prefixes() {
    if !may_run(&[]) {
        return;
    }
    let (_namespace, daemon) = lone();
    let name = daemon.interface();
    let set = |lines: &str| {
        let answer = uapi(name, &format!("set=1\n{lines}\n")).unwrap();
        assert_eq!(answer, "errno=0\n\n", "{lines}");
    };
    let key = format!("public_key={}\n", "ab".repeat(32));
    set(&format!(
        "{key}protocol_version=1\nendpoint=[2001:db8::1]:51820\nallowed_ip=10.1.2.3/8\n\
         allowed_ip=2001:db8::9/32\nallowed_ip=0.0.0.0/0\npersistent_keepalive_interval=7\n"
    ));
    let shown = uapi(name, "get=1\n\n").unwrap();
    for line in [
        key.trim(),
        "endpoint=[2001:db8::1]:51820",
        "allowed_ip=10.0.0.0/8",
        "allowed_ip=2001:db8::/32",
        "allowed_ip=0.0.0.0/0",
        "persistent_keepalive_interval=7",
        "last_handshake_time_sec=0",
        "last_handshake_time_nsec=0",
        "rx_bytes=0",
        "tx_bytes=0",
        "protocol_version=1",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "no {line} in {shown}");
    }
    // Taking one prefix away; updating one who is not there.
    set(&format!("{key}allowed_ip=-10.0.0.0/8\n"));
    assert!(!uapi(name, "get=1\n\n").unwrap().contains("allowed_ip=10.0.0.0/8"));
    set(&format!("public_key={}\nupdate_only=true\n", "cd".repeat(32)));
    assert!(!uapi(name, "get=1\n\n").unwrap().contains(&"cd".repeat(32)));
    set(&format!(
        "{key}replace_allowed_ips=true\nallowed_ip=10.9.0.0/16\n"
    ));
    let shown = uapi(name, "get=1\n\n").unwrap();
    assert_eq!(shown.matches("allowed_ip=").count(), 1);
    set(&format!("{key}remove=true\n"));
    assert!(!uapi(name, "get=1\n\n").unwrap().contains("public_key="));
}

/// 65,000 networks of one peer: set and listed by `wg`, and looked up.
#[test]
fn c80_r38_65000_allowed_ips_on_one_peer() {
    if !may_run(&[]) {
        return;
    }
    let tunnel = sites(Kind::Engine, Kind::Engine).up().unwrap();
    let a = daemon(&tunnel.a);
    let peer = &tunnel.b.keys.as_ref().unwrap().public;
    let networks: Vec<String> = (0..65_000u32)
        .map(|i| match i % 5 {
            0 => format!("fd01:{:x}:{:x}::/48", i >> 8, i & 255),
            _ => format!("100.{}.{}.{}/32", 64 + (i >> 16), i >> 8 & 255, i & 255),
        })
        .collect();
    let mut config = Config {
        private: tunnel.a.keys.as_ref().unwrap().private.clone(),
        listen_port: Some(51820),
        fwmark: None,
        peers: vec![Peer {
            public: peer.clone(),
            endpoint: Some(tunnel.b.outer),
            allowed_ips: networks.clone(),
            ..Peer::default()
        }],
    };
    config.peers[0].allowed_ips.push("10.77.0.2/32".to_owned());
    let start = Instant::now();
    a.setconf(&config).unwrap();
    let set = start.elapsed();
    let start = Instant::now();
    let shown = &a.peers().unwrap()[0];
    let listed = start.elapsed();
    println!("65,001 allowed-ips: set in {set:?}, listed in {listed:?}");
    assert_eq!(shown.allowed_ips.len(), 65_001);
    tunnel.probe(false, LIMIT).unwrap();
    // All taken away again.
    config.peers[0].allowed_ips.truncate(0);
    a.setconf(&config).unwrap();
    assert_eq!(a.peers().unwrap()[0].allowed_ips.len(), 0);
}

/// 10,000 peers, one of whom is real.
#[test]
fn c80_c67_10000_peers() {
    if !may_run(&[]) {
        return;
    }
    let tunnel = sites(Kind::Engine, Kind::Engine).up().unwrap();
    let a = daemon(&tunnel.a);
    let mut request = String::from("set=1\n");
    for i in 0..10_000u32 {
        // Any 32 bytes are a public key.
        let _ = writeln!(request, "public_key={:056x}{i:08x}", 0xab);
        let _ = writeln!(request, "endpoint=198.51.100.{}:{}", i & 255, 1000 + i);
        let _ = writeln!(request, "persistent_keepalive_interval=0");
        let _ = writeln!(request, "allowed_ip=100.64.{}.{}/32", i >> 8, i & 255);
        let _ = writeln!(request, "allowed_ip=fd02::{i:x}/128");
    }
    request.push('\n');
    let start = Instant::now();
    assert_eq!(uapi(a.interface(), &request).unwrap(), "errno=0\n\n");
    let set = start.elapsed();
    let start = Instant::now();
    let listed_peers = a.peers().unwrap();
    let listed = start.elapsed();
    println!("10,001 peers: set in {set:?}, listed in {listed:?}");
    assert_eq!(listed_peers.len(), 10_001);
    tunnel.probe(false, LIMIT).unwrap();
    let start = Instant::now();
    let config = a_config(&tunnel.a, &tunnel.b);
    config.apply(&tunnel.a.namespace, a.interface()).unwrap();
    println!("replaced by one peer in {:?}", start.elapsed());
    assert_eq!(a.peers().unwrap().len(), 1);
    tunnel.probe(true, LIMIT).unwrap();
}

/// What a request takes away makes room for what it brings, and what is there already needs none.
#[test]
fn c80_room_is_counted_at_the_end_of_a_request() {
    if !may_run(&[]) {
        return;
    }
    let (_namespace, daemon) = lone();
    let ask = |request: &str| uapi(daemon.interface(), request).unwrap();
    let peers = |kind: u32, more: &str| -> String {
        (0..40_000)
            .map(|i| format!("public_key={kind:056x}{i:08x}\n{more}"))
            .collect()
    };
    assert_eq!(ask(&format!("set=1\n{}\n", peers(1, ""))), "errno=0\n\n");
    let others = format!("set=1\n{}{}\n", peers(1, "remove=true\n"), peers(2, ""));
    assert_eq!(ask(&others), "errno=0\n\n");
    assert_eq!(daemon.peers().unwrap().len(), 40_000);
    // Without taking any away there is no room for as many more, and nothing changes.
    assert_ne!(ask(&format!("set=1\n{}\n", peers(3, ""))), "errno=0\n\n");
    assert_eq!(daemon.peers().unwrap().len(), 40_000);
    // More than half of the allowed-ips that there may be, as `wg syncconf` sends them: twice the same.
    let mut request = format!(
        "set=1\nreplace_peers=true\npublic_key={:064x}\nreplace_allowed_ips=true\n",
        4
    );
    for i in 0..550_000 {
        let _ = writeln!(request, "allowed_ip=fd03::{:x}:{:x}/128", i >> 16, i & 0xffff);
    }
    request.push('\n');
    assert_eq!(ask(&request), "errno=0\n\n");
    assert_eq!(ask(&request.replace("replace_peers=true\n", "")), "errno=0\n\n");
    let again = request
        .replace("replace_peers=true\n", "")
        .replace("replace_allowed_ips=true\n", "");
    assert_eq!(ask(&again), "errno=0\n\n");
}

/// The configuration that a site of two has.
fn a_config(site: &Site, other: &Site) -> Config {
    Config {
        private: site.keys.as_ref().unwrap().private.clone(),
        listen_port: Some(51820),
        fwmark: None,
        peers: vec![Peer {
            public: other.keys.as_ref().unwrap().public.clone(),
            endpoint: Some(other.outer),
            allowed_ips: vec![
                format!("{}/32", other.inner_v4),
                format!("{}/128", other.inner_v6),
            ],
            ..Peer::default()
        }],
    }
}

/// Zero before the first handshake, then the time of day; sent and received the right way round.
#[test]
fn c81_r25_r36_r39_handshake_time_and_transfer() {
    if !may_run(&[]) {
        return;
    }
    let tunnel = sites(Kind::Engine, Kind::Engine).up().unwrap();
    let status = |site: &Site| daemon(site).peers().unwrap().remove(0);
    assert_eq!(status(&tunnel.a).latest_handshake, 0);
    tunnel.probe(false, LIMIT).unwrap();
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    for site in [&tunnel.a, &tunnel.b] {
        let at = status(site).latest_handshake;
        assert!(at.abs_diff(now) <= 10, "{at} at {now}");
    }
    // 100 kB in one direction only.
    let (before_a, before_b) = (status(&tunnel.a), status(&tunnel.b));
    let near = tunnel
        .a
        .namespace
        .run(|| std::net::UdpSocket::bind("10.77.0.1:0"));
    let near = near.unwrap().unwrap();
    let _far = tunnel
        .b
        .namespace
        .run(|| std::net::UdpSocket::bind("10.77.0.2:7000"));
    for _ in 0..100 {
        near.send_to(&[0; 1000], "10.77.0.2:7000").unwrap();
    }
    let sent = || status(&tunnel.a).tx_bytes - before_a.tx_bytes;
    let arrived = || status(&tunnel.b).rx_bytes - before_b.rx_bytes;
    assert!(eventually(|| arrived() >= 100_000), "{}", arrived());
    assert!(sent() >= 100_000);
    assert!(status(&tunnel.a).rx_bytes - before_a.rx_bytes < 10_000);
}

/// syncconf with a changed configuration: the peer that stays notices nothing.
#[test]
fn c83_syncconf_keeps_sessions() {
    if !may_run(&[]) {
        return;
    }
    let tunnel = sites(Kind::Engine, Kind::Engine).up().unwrap();
    tunnel.probe(false, LIMIT).unwrap();
    let capture = Capture::start(&tunnel.a.namespace).unwrap();
    let flow = Flow::start(&tunnel.a, &tunnel.b, false, Duration::from_millis(1)).unwrap();
    let mut config = a_config(&tunnel.a, &tunnel.b);
    for round in 0..10u8 {
        config.peers.truncate(1);
        config.peers.push(Peer {
            public: Keys::generate().unwrap().public,
            allowed_ips: vec![format!("10.99.{round}.0/24")],
            ..Peer::default()
        });
        let name = tunnel.a.interface.as_str();
        let words = ["syncconf", name, "/dev/stdin"];
        let text = config.to_text();
        tunnel
            .a
            .namespace
            .exec_with_input("wg", &words, text.as_bytes())
            .unwrap();
        assert_eq!(daemon(&tunnel.a).peers().unwrap().len(), 2);
    }
    let received = flow.finish();
    assert!(received.sent > 10);
    assert_eq!(received.lost(), 0);
    assert_eq!(capture.count(|d| d.kind() == MessageKind::Initiation), 0);
}

/// A new private key: the old session sends no more, and with the new one the handshake works at once.
#[test]
fn c18_new_private_key_works_at_once() {
    if !may_run(&[]) {
        return;
    }
    let tunnel = sites(Kind::Engine, Kind::Engine).up().unwrap();
    tunnel.probe(false, LIMIT).unwrap();
    let (old, new) = (tunnel.a.keys.as_ref().unwrap(), Keys::generate().unwrap());
    let (a, b) = (&tunnel.a, &tunnel.b);
    b.namespace
        .exec(
            "wg",
            &[
                "set",
                &b.interface,
                "peer",
                &new.public,
                "allowed-ips",
                "10.77.0.1/32,fd00:77::1/128",
            ],
        )
        .unwrap();
    wg_with_file(
        &a.namespace,
        &format!("set {} private-key /dev/stdin", a.interface),
        &new.private,
    );
    let took = tunnel.probe(false, LIMIT).unwrap();
    assert!(took < Duration::from_secs(4), "{took:?}: only at the next retry");
    let peers = daemon(b).peers().unwrap();
    let of = |key: &str| peers.iter().find(|peer| peer.public == key).unwrap();
    assert!(of(&new.public).latest_handshake > 0);
    assert!(of(&old.public).allowed_ips.is_empty());
    // Back again, as a person would: initiations of one peer that come faster than 50 a second count as a flood.
    std::thread::sleep(Duration::from_millis(100));
    daemon(b)
        .set(&format!(
            "peer {} allowed-ips 10.77.0.1/32,fd00:77::1/128",
            old.public
        ))
        .unwrap();
    wg_with_file(
        &a.namespace,
        &format!("set {} private-key /dev/stdin", a.interface),
        &old.private,
    );
    let took = tunnel.probe(true, LIMIT).unwrap();
    assert!(took < Duration::from_secs(4), "{took:?}");
}

/// A peer with our own public key is never there, whichever comes first.
#[test]
fn c18_own_key_is_no_peer() {
    if !may_run(&[]) {
        return;
    }
    let (namespace, daemon) = lone();
    let name = daemon.interface();
    let keys = Keys::generate().unwrap();
    daemon
        .set(&format!("peer {} allowed-ips 10.0.0.0/8", keys.public))
        .unwrap();
    assert_eq!(daemon.peers().unwrap().len(), 1);
    wg_with_file(
        &namespace,
        &format!("set {name} private-key /dev/stdin"),
        &keys.private,
    );
    assert_eq!(daemon.peers().unwrap(), []);
    daemon
        .set(&format!("peer {} allowed-ips 10.0.0.0/8", keys.public))
        .unwrap();
    assert_eq!(daemon.peers().unwrap(), []);
}

/// Peers come and go while handshakes with them and packets to them are under way.
#[test]
fn c69_r41_r49_peers_removed_under_traffic() {
    if !may_run(&[]) {
        return;
    }
    let tunnel = sites(Kind::Engine, Kind::Engine).up().unwrap();
    let (a, b) = (daemon(&tunnel.a), &tunnel.b);
    let flow = Flow::start(&tunnel.a, b, false, Duration::from_millis(1)).unwrap();
    let back = Flow::start(b, &tunnel.a, false, Duration::from_millis(1)).unwrap();
    let key = &b.keys.as_ref().unwrap().public;
    for round in 0..20 {
        a.set(&format!("peer {key} remove")).unwrap();
        a.set(&format!(
            "peer {key} endpoint {} allowed-ips 10.77.0.2/32,fd00:77::2/128",
            b.outer
        ))
        .unwrap();
        // Sometimes before the handshake, sometimes in the middle of it, sometimes after.
        std::thread::sleep(Duration::from_millis(round * 3));
    }
    drop((flow.finish(), back.finish()));
    probe(&tunnel.a, b, false, 100, LIMIT).unwrap();
    probe(b, &tunnel.a, true, 100, LIMIT).unwrap();
}

/// A configuration file for wg-quick, in a directory of its own, and what it started.
struct Quick {
    namespace: Namespace,
    interface: String,
    file: PathBuf,
}

impl Quick {
    fn new(namespace: &Namespace, text: &str) -> Quick {
        let interface = unique_name("pn");
        let dir = std::env::temp_dir().join(format!("patronus-{interface}"));
        std::fs::create_dir(&dir).unwrap();
        let file = dir.join(format!("{interface}.conf"));
        std::fs::write(&file, text).unwrap();
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
        Quick {
            namespace: namespace.clone(),
            interface,
            file,
        }
    }

    fn run(&self, verb: &str) -> patronus_netns::Result<String> {
        let script = format!(
            "WG_QUICK_USERSPACE_IMPLEMENTATION={} exec wg-quick {verb} {} 2>&1",
            engine_program().display(),
            self.file.display()
        );
        self.namespace.exec("sh", &["-c", &script])
    }

    fn socket(&self) -> PathBuf {
        Path::new(RUNTIME_DIR).join(format!("{}.sock", self.interface))
    }
}

impl Drop for Quick {
    fn drop(&mut self) {
        // Ends an engine that a failed test left: it goes when its socket goes.
        let _ = std::fs::remove_file(self.socket());
        if let Some(dir) = self.file.parent() {
            let _ = std::fs::remove_dir_all(dir);
        }
    }
}

/// A tunnel for everything, as people have it: default routes of both versions, mark, pre-shared key, hooks.
#[test]
fn c78_wg_quick_full_tunnel_up_and_down() {
    if !may_run(&[Need::Tool("wg-quick"), Need::Root]) {
        return;
    }
    let mut tunnel = sites(Kind::Engine, Kind::Engine).up().unwrap();
    let keys = tunnel.a.keys.take().unwrap();
    // Site a's own engine makes room.
    tunnel.a.daemon = None;
    let outer = tunnel.b.outer;
    let text = format!(
        "[Interface]\nPrivateKey = {}\nAddress = 10.77.0.1/32, fd00:77::1/128\nMTU = 1400\n\
         PostUp = ip route add 198.51.100.0/24 dev %i\n\n[Peer]\nPublicKey = {}\nEndpoint = {outer}\n\
         AllowedIPs = 0.0.0.0/0, ::/0\nPersistentKeepalive = 25\n",
        keys.private,
        tunnel.b.keys.as_ref().unwrap().public
    );
    let quick = Quick::new(&tunnel.a.namespace, &text);
    let said = quick.run("up").unwrap();
    assert!(quick.socket().exists(), "{said}");
    let pid = background_pid(&quick.interface).expect("the engine is in the background");
    tunnel.a.interface = quick.interface.clone();
    tunnel.probe(false, LIMIT).unwrap();
    tunnel.probe(true, LIMIT).unwrap();
    let link = tunnel
        .a
        .namespace
        .ip(&format!("link show {}", quick.interface))
        .unwrap();
    assert!(link.contains("mtu 1400"), "{link}");
    // Everything goes in, the tunnel's own packets do not (they bear the mark).
    let route = tunnel.a.namespace.ip("route get 203.0.113.9").unwrap();
    assert!(route.contains(&quick.interface), "{route}");
    assert_ne!(uapi_value(&quick.interface, "fwmark").unwrap(), "0");
    let strip = quick.run("strip").unwrap();
    assert!(strip.contains("PrivateKey") && !strip.contains("Address"));

    let said = quick.run("down").unwrap();
    let gone = || !Path::new(&format!("/proc/{pid}")).exists() && !quick.socket().exists();
    assert!(eventually(gone), "{said}");
    let rules = tunnel.a.namespace.ip("rule").unwrap();
    assert!(!rules.contains("fwmark"), "{rules}");
    // And once more.
    quick.run("up").unwrap();
    tunnel.probe(false, LIMIT).unwrap();
    quick.run("down").unwrap();
    assert!(eventually(|| !quick.socket().exists()));
}
