//! From wg-quick files: as generators and people write them, and whatever else.

use std::fs;
use std::path::Path;

use patronus_abi::site::Peer;
use patronus_config::{Imported, import_wg_quick, parse};
use proptest::prelude::*;

const SECRET: &str = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";
const PSK: &str = "FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE=";
const PUBLIC: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";

fn import(file: &str) -> Imported {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/wg-quick")
        .join(file);
    import_wg_quick(&fs::read_to_string(path).unwrap(), "wg7").unwrap_or_else(|error| panic!("{error}"))
}

fn key_files(imported: &Imported) -> Vec<(&str, &str)> {
    let files = imported.key_files.iter();
    files
        .map(|file| (file.name.as_str(), file.text.trim_end()))
        .collect()
}

#[test]
fn a_server_as_an_installer_writes_it() {
    let imported = import("server.conf");
    let expected = r#"[site]
private_key_file = "wg7.key"
listen_port = 59123
addresses = ["10.66.66.1/24", "fd42:42:42::1/64"]
routes = true

[engine]
interface = "wg7"

# Client laptop
[[peer]]
name = "laptop"
public_key = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
preshared_key_file = "wg7-laptop.psk"
allowed_ips = ["10.66.66.2/32", "fd42:42:42::2/128"]

# Client phone of Anna
[[peer]]
name = "phone-of-Anna"
public_key = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0="
preshared_key_file = "wg7-phone-of-Anna.psk"
allowed_ips = ["10.66.66.3/32", "fd42:42:42::3/128"]
"#;
    assert_eq!(imported.toml, expected, "\n{}", imported.toml);
    assert_eq!(
        key_files(&imported),
        [
            ("wg7.key", SECRET),
            ("wg7-laptop.psk", PSK),
            (
                "wg7-phone-of-Anna.psk",
                "AAAAhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE="
            ),
        ]
    );
    assert_eq!(
        imported.notes,
        [
            "PostUp: no command is run from this file; a systemd unit has ExecStartPost for it: \
             iptables -I INPUT -p udp --dport 59123 -j ACCEPT",
            "PostUp: no command is run from this file; a systemd unit has ExecStartPost for it: \
             iptables -t nat -A POSTROUTING -o eth0 -j MASQUERADE",
            "PostDown: no command is run from this file; a systemd unit has ExecStopPost for it: \
             iptables -t nat -D POSTROUTING -o eth0 -j MASQUERADE",
        ]
    );
}

#[test]
fn a_client_as_a_provider_writes_it() {
    let imported = import("provider.conf");
    let site = parse(&imported.toml).unwrap().compile();
    assert_eq!(
        site.peers[0].endpoint,
        Some("198.51.100.66:51820".parse().unwrap())
    );
    assert!(
        imported.toml.contains("allowed_ips = [\"0.0.0.0/0\", \"::/0\"]"),
        "{}",
        imported.toml
    );
    let notes = imported.notes.join("\n");
    assert!(
        notes.contains("resolvectl dns wg7 10.64.0.1; resolvectl domain wg7 corp.example"),
        "{notes}"
    );
    // As wg-quick does by itself.
    assert_eq!(site.fwmark, 51820);
    assert!(
        notes.contains("ip rule add not fwmark 51820 table 51820"),
        "{notes}"
    );
}

#[test]
fn every_key_however_it_is_written() {
    let imported = import("everything.conf");
    let expected = r#"[site]
private_key_file = "wg7.key"
fwmark = 51820
addresses = ["192.168.77.5/32"]
mtu = 1380

[engine]
interface = "wg7"

# office
[[peer]]
name = "office"
public_key = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
# endpoint = the address of vpn.example.org:51820
allowed_ips = ["192.168.0.0/16", "fd00::/8"]
keepalive = "25s"

# friendly_name=office
[[peer]]
name = "office-2"
public_key = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0="
endpoint = "[2001:db8::7]:443"
allowed_ips = ["10.0.0.0/8"]
"#;
    assert_eq!(imported.toml, expected, "\n{}", imported.toml);
    let notes = imported.notes.join("\n");
    for note in [
        "some AllowedIPs are a later peer's too",
        "ip route add 192.168.0.0/16 dev wg7 table 1234",
        "ExecStartPre for it: echo up wg7",
        "SaveConfig: this file is never written",
        "names are not looked up: write the address of vpn.example.org:51820",
    ] {
        assert!(notes.contains(note), "{note}\n{notes}");
    }
}

#[test]
fn what_is_wrong_is_shown_where_it_is_and_without_secrets() {
    for (text, expected, hint) in [
        ("", "1:1: this is no wg-quick file", "expected [Interface]"),
        ("PrivateKey = x", "1:1: this line is in no section", "[Interface]"),
        (
            "[Interfaces]",
            "1:1: unknown section `[Interfaces]`",
            "[Interface], [Peer]",
        ),
        (
            "[Interface]\nPrivatKey = {SECRET}",
            "2:1: unknown key `PrivatKey`",
            "did you mean `PrivateKey`?",
        ),
        (
            "[Interface]\nPrivateKey {SECRET}",
            "2:1: expected `Key = Value`",
            "wg-quick(8)",
        ),
        (
            "[Interface] PrivateKey = {SECRET}",
            "1:1: behind `[Interface]` the line has to end",
            "known here",
        ),
        (
            "[Interface]\n{SECRET} = PrivateKey",
            "2:1: unknown key `(not shown)",
            "",
        ),
        (
            "[Interface]\nPrivateKey = {SECRET}x",
            "2:14: PrivateKey: expected a key in base64",
            "wg genkey",
        ),
        (
            "[Interface]\n  ListenPort = 65536",
            "2:16: `65536`: expected a UDP port",
            "wg-quick(8)",
        ),
        (
            "[Interface]\nDNS = 10.0.0.1, a b",
            "2:17: `a b`: expected a name server's address, or a domain",
            "",
        ),
        (
            "[Interface]\n[Peer]\nPublicKey = abc",
            "3:13: `abc`: expected a key",
            "wg pubkey",
        ),
        (
            "[Interface]\n[Peer]\nAllowedIPs = 10.0.0.0/8, 10.0.0.0/33",
            "3:26: `10.0.0.0/33`: expected a network",
            "",
        ),
        (
            "[Interface]\n[Peer]\nEndpoint = 1.2.3.4",
            "3:12: `1.2.3.4`: expected an address",
            "vpn.example.org",
        ),
        (
            "[Interface]\n[Peer]\nAddress = 1.2.3.4",
            "3:1: unknown key `Address`",
            "known here: PublicKey",
        ),
    ] {
        let error = import_wg_quick(&text.replace("{SECRET}", SECRET), "wg0").expect_err(text);
        let said = error.to_string();
        assert!(said.starts_with(expected), "{expected}\n{said}");
        assert!(said.contains(hint), "{hint}\n{said}");
        assert!(!said.contains("yAnz"), "{said}");
    }
    let said = import_wg_quick("[Interface]", "../wg0").unwrap_err().to_string();
    assert!(
        said.starts_with("`../wg0`: expected an interface's name"),
        "{said}"
    );
}

/// A wg-quick file and the peers in it.
#[derive(Clone, Debug)]
struct Case {
    text: String,
    peers: Vec<Peer>,
    psks: usize,
}

fn keyword(word: &str, upper: bool) -> String {
    if upper {
        word.to_ascii_uppercase()
    } else {
        word.to_owned()
    }
}

prop_compose! {
    fn peer(at: u8)(
        key: [u8; 31],
        has_psk: bool,
        endpoint in prop::option::of((any::<[u8; 4]>(), 1..=u16::MAX)),
        networks in prop::collection::btree_set((any::<u16>(), 8..=24u8), 0..4),
        keepalive in prop::option::of(0..=u16::MAX),
        comment in prop::option::of("[A-Za-z0-9 #=:._-]{0,30}"),
        upper: bool,
        space in "[ \t]{0,2}",
    ) -> (String, Peer) {
        let mut public_key = [at; 32];
        public_key[1..].copy_from_slice(&key);
        let shown = patronus_config::value::PublicKey(public_key);
        let mut lines = vec![format!("{}{space}={space}{shown}", keyword("PublicKey", upper))];
        if has_psk {
            lines.push(format!("{}={PSK}", keyword("PresharedKey", upper)));
        }
        // Of addresses at which nobody can be our file has none.
        let endpoint = endpoint.map(|(ip, port)| std::net::SocketAddr::from(([10, ip[1], ip[2], ip[3]], port)));
        lines.extend(endpoint.map(|endpoint| format!("Endpoint{space}={space}{endpoint}")));
        let mut allowed_ips: Vec<patronus_abi::Prefix> = Vec::new();
        for (bits, len) in networks {
            let [a, b] = bits.to_be_bytes();
            let addr = std::net::Ipv4Addr::new(at, a, b, 77);
            lines.push(format!("AllowedIPs ={space}{addr}/{len}"));
            let prefix = patronus_abi::Prefix::new(addr.into(), len).unwrap();
            if !allowed_ips.contains(&prefix) {
                allowed_ips.push(prefix);
            }
        }
        lines.extend(keepalive.map(|every| format!("PersistentKeepalive = {every}")));
        let comment = comment.map(|comment| format!("# {comment}\n")).unwrap_or_default();
        let text = format!("{comment}[Peer]\n{}\n\n", lines.join("\n"));
        let peer = Peer {
            name: None,
            public_key,
            has_psk,
            is_remote: false,
            endpoint,
            keepalive: keepalive.filter(|every| *every > 0),
            ping: None,
            allowed_ips,
        };
        (text, peer)
    }
}

prop_compose! {
    fn case()(
        port in prop::option::of(any::<u16>()),
        peers in (peer(20), peer(21), peer(22)),
        count in 0..4usize,
    ) -> Case {
        let mut text = format!("[Interface]\nPrivateKey = {SECRET}\n");
        text.extend(port.map(|port| format!("ListenPort = {port}\n")));
        let peers: Vec<(String, Peer)> = [peers.0, peers.1, peers.2].into_iter().take(count).collect();
        text.push('\n');
        text.extend(peers.iter().map(|(text, _)| text.as_str()));
        let psks = peers.iter().filter(|(_, peer)| peer.has_psk).count();
        Case { text, peers: peers.into_iter().map(|(_, peer)| peer).collect(), psks }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// What `wg` understands of a file is what an engine is told.
    #[test]
    fn peers_come_over_as_they_are(case in case()) {
        let imported = import_wg_quick(&case.text, "wg0").unwrap();
        let site = parse(&imported.toml).unwrap().compile();
        let unnamed = site.peers.into_iter().map(|peer| Peer { name: None, ..peer });
        prop_assert_eq!(unnamed.collect::<Vec<_>>(), case.peers);
        prop_assert_eq!(imported.key_files.len(), 1 + case.psks);
        let names: std::collections::BTreeSet<&str> = imported.key_files.iter().map(|file| file.name.as_str()).collect();
        prop_assert_eq!(names.len(), 1 + case.psks);
        let all = format!("{}{:?}{:?}", imported.toml, imported.notes, imported.key_files);
        prop_assert!(!all.contains(SECRET) && !all.contains(PSK));
    }

    /// Whatever becomes of a file on its way: an answer, no secret in it, and what is made of it can be read.
    #[test]
    fn no_file_is_too_strange(
        case in case(),
        at in any::<prop::sample::Index>(),
        cut in 0..30usize,
        with in "[\\[\\]a-zA-Z=\"'\n0-9#,/:. \u{1b}\u{e9}-]{0,8}",
    ) {
        let chars: Vec<char> = case.text.chars().collect();
        let at = at.index(chars.len());
        let end = (at + cut).min(chars.len());
        let text: String = chars[..at].iter().copied().chain(with.chars()).chain(chars[end..].iter().copied()).collect();
        match import_wg_quick(&text, "wg0") {
            Ok(imported) => {
                parse(&imported.toml).unwrap();
                let said = format!("{}{}", imported.toml, imported.notes.join("\n"));
                prop_assert!(!said.contains(&SECRET[..43]) && !said.contains('\u{1b}'), "{}", said);
            }
            Err(error) => {
                let said = error.to_string();
                prop_assert!(error.place().is_some() && error.hint().is_some(), "{}", said);
                prop_assert!(!said.contains(&SECRET[..43]) && !said.contains(&PSK[..43]) && !said.contains('\u{1b}'), "{}", said);
            }
        }
    }

    #[test]
    fn no_text_is_too_strange(text in "(\\[Interface\\]|\\[Peer\\]|\n|=|#|,|PublicKey|AllowedIPs|Endpoint|\\PC){0,60}") {
        let _ = import_wg_quick(&text, "wg0").map_err(|error| error.to_string());
    }
}

/// Each key has a file of its own, whatever its peer is called.
#[test]
fn key_files_are_called_differently() {
    let peers = [
        ("# peer1", PUBLIC),
        ("", "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0="),
    ];
    let peers =
        peers.map(|(comment, key)| format!("\n{comment}\n[Peer]\nPublicKey = {key}\nPresharedKey = {PSK}\n"));
    let text = format!("[Interface]\nPrivateKey = {SECRET}\n{}", peers.concat());
    let imported = import_wg_quick(&text, "wg0").unwrap();
    let names: Vec<&str> = key_files(&imported).iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["wg0.key", "wg0-peer1.psk", "wg0-peer2.psk"]);
}

/// A command may have a key in it, and a comment may be a line that had one.
#[test]
fn keys_where_nobody_looks_for_them_are_not_repeated() {
    let text = format!(
        "[Interface]\nPrivateKey = {SECRET}\nPostUp = wg set %i private-key <(echo {PSK})\n\n# PrivateKey was {PSK}\n# {PSK}\n[Peer]\nPublicKey = {PUBLIC}\n"
    );
    let imported = import_wg_quick(&text, "wg0").unwrap();
    let said = format!("{}{}", imported.toml, imported.notes.join("\n"));
    assert!(
        said.contains("wg set wg0 private-key <(echo (not shown)"),
        "{said}"
    );
    assert!(!said.contains(&PSK[..43]), "{said}");
}

#[test]
fn what_stands_there_twice_counts_as_for_wg() {
    let peer = |lines: &str| format!("[Peer]\nPublicKey = {PUBLIC}\n{lines}\n");
    let text = format!(
        "[Interface]\nPrivateKey = {SECRET}\n{}{}",
        peer("AllowedIPs = 10.1.0.0/16\nEndpoint = 192.0.2.1:1"),
        peer("AllowedIPs = 10.2.0.0/16")
    );
    let imported = import_wg_quick(&text, "wg0").unwrap();
    let site = parse(&imported.toml).unwrap().compile();
    assert_eq!(site.peers.len(), 1);
    assert_eq!(site.peers[0].endpoint, Some("192.0.2.1:1".parse().unwrap()));
    assert_eq!(
        site.peers[0].allowed_ips,
        [patronus_abi::Prefix::new([10, 2, 0, 0].into(), 16).unwrap()]
    );
    assert!(
        imported.notes[0].contains("stands there twice"),
        "{:?}",
        imported.notes
    );
}
