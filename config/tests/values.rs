//! Values, and files that are right.

use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;

use patronus_config::key_file;
use patronus_config::value::{Endpoint, InterfaceName, Mac, Millis, Network, PublicKey};
use patronus_config::{Action, load, parse};
use proptest::prelude::*;

/// A folder that goes when the test ends.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("patronus-config-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn file(&self, name: &str, mode: u32, text: &str) -> PathBuf {
        let path = self.0.join(name);
        let mut options = std::fs::OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&path)
            .unwrap();
        file.write_all(text.as_bytes()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const WHOLE: &str = r#"
[site]
private_key_file = "site.key"
listen_port = 51820
fwmark = 7

[engine]
interface = "pat0"
workers = 2
cores = [0, 1]
spin = "3ms"
aead = "aws-lc"
offload = false

[[link]]
id = 1
interface = "eth0"

[[link]]
id = 4
interface = "wwan0"

[[peer]]
name = "hub"
public_key = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
preshared_key_file = "/etc/keys/hub.psk"
endpoint = "[2001:db8::1]:51820"
allowed_ips = ["10.0.0.0/8", "fd00::/8", "192.0.2.1"]
keepalive = "25s"

[[peer]]
public_key = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0="
"#;

#[test]
fn a_whole_file_is_understood() {
    let folder = Folder::new("whole");
    let path = folder.file("site.toml", 0o644, WHOLE);
    let config = load(&path).unwrap();
    assert_eq!(
        config.site.private_key_file,
        folder.0.join("site.key"),
        "beside the file"
    );
    assert_eq!(
        (config.site.listen_port.get(), config.site.fwmark.get()),
        (51820, 7)
    );
    let engine = &config.engine;
    assert_eq!((engine.interface.as_str(), engine.workers.get()), ("pat0", 2));
    let cores: Vec<u64> = engine.cores.iter().map(|core| core.get_ref().get()).collect();
    assert_eq!(
        (&cores[..], *engine.spin.get_ref(), engine.offload),
        (&[0, 1][..], Millis(3), false)
    );
    assert_eq!(engine.aead.as_ref().map(|a| a.get_ref().as_str()), Some("aws-lc"));
    let links: Vec<_> = config
        .links
        .iter()
        .map(|l| (l.id.get_ref().get(), l.interface.get_ref().as_str()))
        .collect();
    assert_eq!(links, [(1, "eth0"), (4, "wwan0")]);
    let hub = &config.peers[0];
    assert_eq!(hub.name.as_ref().map(|n| n.get_ref().as_str()), Some("hub"));
    assert_eq!(
        hub.preshared_key_file.as_deref(),
        Some("/etc/keys/hub.psk".as_ref())
    );
    assert_eq!(
        hub.endpoint.map(|e| e.0.to_string()).as_deref(),
        Some("[2001:db8::1]:51820")
    );
    let networks: Vec<String> = hub.allowed_ips.iter().map(|n| n.get_ref().to_string()).collect();
    assert_eq!(networks, ["10.0.0.0/8", "fd00::/8", "192.0.2.1/32"]);
    assert_eq!(hub.keepalive.as_ref().map(|k| *k.get_ref()), Some(Millis(25_000)));
    assert!(config.peers[1].allowed_ips.is_empty());
}

#[test]
fn the_least_that_can_stand_there() {
    let config = parse("[site]\nprivate_key_file = 'k'").unwrap();
    assert_eq!(
        (config.engine.interface.as_str(), config.engine.workers.get()),
        ("wg0", 1)
    );
    assert!(config.engine.offload && config.links.is_empty() && config.peers.is_empty());
}

#[test]
fn durations() {
    for (text, millis) in [
        ("0ms", 0),
        ("50ms", 50),
        ("25s", 25_000),
        ("25 s", 25_000),
        ("2m", 120_000),
        ("1h", 3_600_000),
    ] {
        assert_eq!(text.parse(), Ok(Millis(millis)), "{text}");
    }
    for text in [
        "",
        "s",
        "25",
        "-1s",
        "1.5s",
        "1d",
        "99999999999999999999s",
        "18446744073709551615h",
    ] {
        assert!(text.parse::<Millis>().is_err(), "{text}");
    }
}

#[test]
fn networks() {
    for (text, shown) in [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("::/0", "::/0"),
        ("2001:db8::1", "2001:db8::1/128"),
    ] {
        assert_eq!(text.parse::<Network>().unwrap().to_string(), shown);
    }
    for text in [
        "10.0.0.0/33",
        "::/129",
        "10.0.0.1/8",
        "::1/0",
        "10.0.0/8",
        "10.0.0.0/",
        "/8",
        "10.0.0.0/-1",
        "10.0.0.0/+8",
        "hub/8",
    ] {
        assert!(text.parse::<Network>().is_err(), "{text}");
    }
}

#[test]
fn endpoints_and_names() {
    for text in [
        "0.0.0.0:1",
        "224.0.0.1:1",
        "192.0.2.1:0",
        "192.0.2.1:65536",
        "hub:51820",
        "[::]:1",
    ] {
        assert!(text.parse::<Endpoint>().is_err(), "{text}");
    }
    assert!("192.0.2.1:51820".parse::<Endpoint>().is_ok());
    for text in [
        "",
        ".",
        "..",
        "a/b",
        "a:b",
        "a b",
        "sixteen-letters-",
        "\u{e9}th0",
    ] {
        assert!(text.parse::<InterfaceName>().is_err(), "{text}");
    }
    assert_eq!(
        "fifteen-letters".parse::<InterfaceName>().unwrap().as_str(),
        "fifteen-letters"
    );
}

#[test]
fn key_files_are_for_their_owner() {
    const TEXT: &str = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\n";
    let folder = Folder::new("keys");
    let key = key_file::read(&folder.file("good", 0o600, TEXT)).unwrap();
    assert_eq!((key[0], key[31]), (0xc8, 0x69));
    assert!(key_file::read(&folder.file("group", 0o640, TEXT.trim_end())).is_ok());
    for mode in [0o604, 0o620, 0o644, 0o660, 0o666] {
        let path = folder.file("open", mode, TEXT);
        let said = key_file::read(&path).unwrap_err().to_string();
        let path = path.display();
        assert_eq!(
            said,
            format!("key file {path}: others may use it (mode {mode:04o}): `chmod 600 {path}`")
        );
    }
    for text in [
        "",
        "hello\n",
        &TEXT[1..],
        &format!("{TEXT}{TEXT}"),
        &format!("x{TEXT}"),
        &TEXT.replace('=', "A"),
    ] {
        let said = key_file::read(&folder.file("bad", 0o600, text))
            .unwrap_err()
            .to_string();
        assert!(said.contains("expected a key in base64"), "{said}");
    }
    let said = key_file::read(&folder.0.join("none")).unwrap_err().to_string();
    assert!(said.ends_with("No such file or directory (os error 2)"), "{said}");
}

/// A key that cannot be used is shown where the file names it.
#[test]
fn key_files_are_shown_where_they_are_named() {
    let folder = Folder::new("named");
    let text = format!(
        "[site]\nprivate_key_file = 'site.key'\n[[peer]]\npublic_key = '{}'\npreshared_key_file = 'a.psk'\n",
        "A".repeat(43) + "="
    );
    let path = folder.file("site.toml", 0o644, &text);
    let config = load(&path).unwrap();
    let said = |at: usize| {
        let file = config.key_files().nth(at).unwrap();
        key_file::read(file)
            .unwrap_err()
            .in_file(&path, &text)
            .to_string()
    };
    let named = path.display();
    let none = said(0);
    assert!(
        none.starts_with(&format!("{named}:2:20: there is no such file\n")),
        "{none}"
    );
    assert!(none.contains("^^^^^^^^^^ `patronus keygen "), "{none}");
    folder.file("a.psk", 0o644, "");
    let open = said(1);
    assert!(
        open.starts_with(&format!("{named}:5:22: others may use this file (mode 0644)\n")),
        "{open}"
    );
    assert!(open.contains("`chmod 600 "), "{open}");
    folder.file("a.psk", 0o600, "hello");
    assert!(said(1).contains("something else than a key"));
}

#[test]
fn key_files_of_others_and_what_is_no_file_are_refused() {
    let folder = Folder::new("owners");
    let said = key_file::read(&folder.0).unwrap_err().to_string();
    assert!(said.ends_with("not an ordinary file"), "{said}");
    // A FIFO that nobody writes to would be waited for, for ever.
    let fifo = folder.0.join("fifo");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    let said = key_file::read(&fifo).unwrap_err().to_string();
    assert!(said.ends_with("not an ordinary file"), "{said}");
    let said = load(&fifo).unwrap_err().to_string();
    assert!(said.ends_with("not an ordinary file"), "{said}");
    let path = folder.file("foreign", 0o600, "");
    // Only root can give files away; where we are not root there is nothing to see.
    if std::os::unix::fs::chown(&path, Some(4242), None).is_ok() {
        let said = key_file::read(&path).unwrap_err().to_string();
        assert!(said.contains("belongs to user 4242"), "{said}");
    }
}

#[test]
fn what_is_routed_by_is_understood() {
    let text = r#"
[site]
private_key_file = "site.key"
[engine]
flows = 4096
routes = 100
[[peer]]
name = "hub"
public_key = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
[[lan]]
name = "desk"
port = "tun"
networks = ["192.168.7.0/24"]
[[lan]]
name = "office"
port = "af_xdp"
interface = "eth1"
networks = ["192.0.2.0/24"]
neighbours = [{ address = "192.0.2.9", mac = "02:00:00:00:00:09" }]
[[route]]
prefix = "10.0.0.0/8"
via = ["hub", "192.0.2.1"]
[[route]]
prefix = "10.9.0.0/16"
via = "discard"
[[policy]]
name = "voice"
src = "192.0.2.0/24"
protocol = "udp"
dst_ports = "10000-20000"
dscp = ["ef", 34, "cs5"]
action = "via"
via = "hub"
[[policy]]
protocol = 47
src_ports = 53
action = "drop"
"#;
    // A protocol without ports, so: only with the line left out.
    assert!(parse(text).is_err());
    let config = parse(&text.replace("src_ports = 53\n", "")).unwrap();
    assert!(config.routes_packets());
    assert_eq!(
        (config.engine.flows.get(), config.engine.routes.get()),
        (4096, 100)
    );
    assert_eq!(config.lans[1].neighbours[0].mac, Mac([2, 0, 0, 0, 0, 9]));
    let via = |at: usize| -> Vec<String> {
        let list = &config.routes[at].via.get_ref().0;
        list.iter().map(|via| via.get_ref().to_string()).collect()
    };
    assert_eq!(
        (via(0), via(1)),
        (
            vec!["hub".to_owned(), "192.0.2.1".to_owned()],
            vec!["discard".to_owned()]
        )
    );
    let voice = &config.policies[0];
    assert_eq!(voice.dst_ports.as_ref().unwrap().get_ref().0, 10000..=20000);
    let dscps: Vec<u8> = voice.dscp.0.iter().map(|dscp| dscp.get_ref().0).collect();
    assert_eq!(dscps, [46, 34, 40]);
    assert_eq!(*voice.action.get_ref(), Action::Via);
    assert_eq!(config.policies[1].protocol.as_ref().unwrap().get_ref().0, 47);
    // Nothing but peers: no router.
    assert!(
        !parse("[site]\nprivate_key_file = 'k'\n[[lan]]\nname = 'me'\nport = 'tun'")
            .unwrap()
            .routes_packets()
    );
}

proptest! {
    #[test]
    fn keys_come_back_as_they_were(bytes: [u8; 32]) {
        let key = PublicKey(bytes);
        prop_assert_eq!(key.to_string().parse(), Ok(key));
    }

    #[test]
    fn networks_come_back_as_they_were(bits: u128, len in 0..=128u8, v4: bool) {
        let len = if v4 { len % 33 } else { len };
        let text = if v4 {
            let mask = u32::MAX.unbounded_shl(u32::from(32 - len));
            format!("{}/{len}", std::net::Ipv4Addr::from_bits(bits as u32 & mask))
        } else {
            let mask = u128::MAX.unbounded_shl(u32::from(128 - len));
            format!("{}/{len}", std::net::Ipv6Addr::from_bits(bits & mask))
        };
        prop_assert_eq!(text.parse::<Network>().map(|n| n.to_string()), Ok(text));
    }

    /// The network around an address is written like it, with nothing behind the prefix; and no address is longer than itself.
    #[test]
    fn networks_around_addresses(bits: u128, len: u8, v4: bool) {
        let addr: std::net::IpAddr = if v4 { (bits as u32).to_be_bytes().into() } else { bits.to_be_bytes().into() };
        let width = if v4 { 32 } else { 128 };
        match Network::around(addr, len) {
            Some(network) => {
                prop_assert!(len <= width);
                prop_assert_eq!(network.to_string().parse(), Ok(network));
                let at = |addr: std::net::IpAddr| match addr {
                    std::net::IpAddr::V4(ip) => u128::from(ip.to_bits()),
                    std::net::IpAddr::V6(ip) => ip.to_bits(),
                };
                prop_assert_eq!((at(addr) ^ at(network.addr)).checked_shr((width - len).into()).unwrap_or(0), 0);
            }
            None => prop_assert!(len > width),
        }
    }

    /// Whatever stands in a file: an answer, and a place within the file.
    #[test]
    fn no_text_is_too_strange(text in "[\\[\\]a-z_=\"'{}., \n\t0-9#\u{e9}-]{0,200}") {
        if let Err(error) = parse(&text) {
            if let Some((line, column)) = error.place() {
                prop_assert!(line <= text.matches('\n').count() + 1 && column >= 1);
            }
            let _ = error.to_string();
        }
    }

    #[test]
    fn no_change_to_a_good_file_is_too_strange(at in 0..WHOLE.len(), with in "[\\[\\]a-z=\"'\n0-9]{0,3}", cut in 0..20usize) {
        let end = (at + cut).min(WHOLE.len());
        let text = format!("{}{with}{}", &WHOLE[..at], &WHOLE[end..]);
        if let Err(error) = parse(&text) {
            let _ = error.to_string();
        }
    }
}

#[test]
fn addresses_of_the_host() {
    use patronus_config::value::HostAddress;
    let read = |text: &str| {
        text.parse::<HostAddress>()
            .ok()
            .map(|address| address.to_string())
    };
    assert_eq!(read("10.1.0.1/24").as_deref(), Some("10.1.0.1/24"));
    assert_eq!(read("10.1.0.1").as_deref(), Some("10.1.0.1/32"));
    assert_eq!(read("fd00::1/64").as_deref(), Some("fd00::1/64"));
    for wrong in [
        "10.1.0.1/33",
        "fd00::1/129",
        "10.1.0.1/+1",
        "10.1.0.1/",
        "0.0.0.0/8",
        "224.0.0.1/4",
        "host",
        "",
    ] {
        assert_eq!(read(wrong), None, "{wrong}");
    }
    let site = |addresses: &str| format!("[site]\nprivate_key_file = 'k'\naddresses = [{addresses}]\n");
    let twice = parse(&site("'10.1.0.1/24', '10.1.0.1/16'"))
        .expect_err("twice")
        .to_string();
    assert!(twice.contains("this address stands there twice"), "{twice}");
    let many: Vec<String> = (1..=65).map(|n| format!("'10.1.0.{n}/24'")).collect();
    let many = parse(&site(&many.join(","))).expect_err("too many").to_string();
    assert!(many.contains("at most 64 addresses"), "{many}");
}
