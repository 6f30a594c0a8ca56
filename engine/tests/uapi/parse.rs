//! The parser of `set=1`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use patronus_crypto::PublicKey;
use patronus_engine::uapi::{AllowedIpChange, Errno, Limits, SetParser, SetPeer, SetRequest};
use proptest::prelude::*;

fn parse_limited(text: &str, limits: Limits) -> Result<SetRequest, Errno> {
    let mut parser = SetParser::new(limits);
    for line in text.lines() {
        let _ = parser.line(line.as_bytes());
    }
    parser.finish()
}

fn parse(text: &str) -> SetRequest {
    parse_limited(text, Limits::default()).expect("a good request")
}

fn error(text: &str) -> Errno {
    parse_limited(text, Limits::default())
        .err()
        .expect("a bad request")
}

/// The only peer of a request whose lines follow the public key.
fn peer(lines: &str) -> SetPeer {
    let mut request = parse(&format!("public_key={}\n{lines}", "1b".repeat(32)));
    assert_eq!(request.peers.len(), 1);
    request.peers.pop().expect("a peer")
}

fn key(byte: u8) -> String {
    format!("{byte:02x}").repeat(32)
}

fn allowed(remove: bool, addr: &str, cidr: u8) -> AllowedIpChange {
    AllowedIpChange {
        remove,
        addr: addr.parse().expect("an address"),
        cidr,
    }
}

#[test]
fn c79_every_key_of_a_request() {
    let request = parse(&format!(
        "private_key={}\nlisten_port=51820\nfwmark=4294967295\nreplace_peers=true\n\
         public_key={}\nupdate_only=true\npreshared_key={}\nendpoint=192.0.2.1:51820\npersistent_keepalive_interval=25\n\
         replace_allowed_ips=true\nallowed_ip=10.1.2.3/8\nallowed_ip=-2001:db8::1/32\nprotocol_version=1\n\
         public_key={}\nremove=true\n",
        key(0x40),
        key(0xaa),
        key(0xbb),
        key(0xcc),
    ));
    assert_eq!(
        **request
            .private_key
            .as_ref()
            .expect("set")
            .as_ref()
            .expect("not cleared"),
        [0x40; 32]
    );
    assert_eq!(request.listen_port, Some(51820));
    assert_eq!(request.fwmark, Some(u32::MAX));
    assert!(request.replace_peers);
    let [first, second] = &request.peers[..] else {
        panic!("two peers")
    };
    assert_eq!(first.public_key, PublicKey([0xaa; 32]));
    assert!(first.update_only && !first.remove && first.replace_allowed_ips);
    assert_eq!(
        **first
            .preshared_key
            .as_ref()
            .expect("set")
            .as_ref()
            .expect("not cleared"),
        [0xbb; 32]
    );
    assert_eq!(
        first.endpoint,
        Some("192.0.2.1:51820".parse().expect("an endpoint"))
    );
    assert_eq!(first.persistent_keepalive, Some(25));
    assert_eq!(
        first.allowed_ips,
        [allowed(false, "10.0.0.0", 8), allowed(true, "2001:db8::", 32)]
    );
    assert_eq!(second.public_key, PublicKey([0xcc; 32]));
    assert!(second.remove && !second.update_only);
}

#[test]
fn c79_an_empty_request_changes_nothing() {
    let request = parse("");
    assert!(request.private_key.is_none() && request.listen_port.is_none() && request.fwmark.is_none());
    assert!(!request.replace_peers && request.peers.is_empty());
    let peer = peer("");
    assert!(!peer.remove && !peer.update_only && !peer.replace_allowed_ips && peer.allowed_ips.is_empty());
    assert!(peer.preshared_key.is_none() && peer.endpoint.is_none() && peer.persistent_keepalive.is_none());
}

#[test]
fn c79_keys_of_zeros_clear() {
    let text = format!(
        "private_key={0}\npublic_key={1}\npreshared_key={0}",
        key(0),
        key(1)
    );
    let request = parse(&text);
    assert!(matches!(request.private_key, Some(None)));
    assert!(matches!(request.peers[0].preshared_key, Some(None)));
}

#[test]
fn c79_hex_digits_of_either_case() {
    let request = parse(&format!(
        "private_key={}\npublic_key={}",
        "4E".repeat(32),
        "aB".repeat(32)
    ));
    assert_eq!(
        **request
            .private_key
            .as_ref()
            .expect("set")
            .as_ref()
            .expect("not cleared"),
        {
            let mut clamped = [0x4e; 32];
            clamped[0] = 0x48;
            clamped
        }
    );
    assert_eq!(request.peers[0].public_key, PublicKey([0xab; 32]));
}

/// The key shown by `wg show` is then the one in use, as with the kernel's.
#[test]
fn c79_a_private_key_is_clamped_and_a_preshared_key_is_not() {
    let request = parse(&format!(
        "private_key={0}\npublic_key={0}\npreshared_key={0}",
        key(0xff)
    ));
    let private_key = request.private_key.expect("set").expect("not cleared");
    assert_eq!(
        (private_key[0], private_key[1], private_key[31]),
        (0xf8, 0xff, 0x7f)
    );
    assert_eq!(
        **request.peers[0]
            .preshared_key
            .as_ref()
            .expect("set")
            .as_ref()
            .expect("not cleared"),
        [0xff; 32]
    );
}

#[test]
fn c79_of_repeated_keys_the_last_wins() {
    let request = parse(&format!(
        "listen_port=1\nlisten_port=2\nprivate_key={}\nprivate_key={}",
        key(0x48),
        key(0)
    ));
    assert_eq!(request.listen_port, Some(2));
    assert!(matches!(request.private_key, Some(None)));
    let peer = peer(
        "endpoint=1.1.1.1:1\nendpoint=[2001:db8::2]:2\npersistent_keepalive_interval=5\npersistent_keepalive_interval=0",
    );
    assert_eq!(
        peer.endpoint,
        Some("[2001:db8::2]:2".parse().expect("an endpoint"))
    );
    assert_eq!(peer.persistent_keepalive, Some(0));
}

/// Lines take effect in their order: what was allowed before `replace_allowed_ips` is replaced as well.
#[test]
fn c79_replacing_allowed_ips_forgets_those_before() {
    let peer = peer("allowed_ip=10.0.0.0/8\nreplace_allowed_ips=true\nallowed_ip=11.0.0.0/8");
    assert!(peer.replace_allowed_ips);
    assert_eq!(peer.allowed_ips, [allowed(false, "11.0.0.0", 8)]);
}

#[test]
fn c79_a_removed_peer_has_no_other_change() {
    for lines in [
        "remove=true\nallowed_ip=10.0.0.0/8\nendpoint=1.1.1.1:1\nupdate_only=true",
        "allowed_ip=10.0.0.0/8\nendpoint=1.1.1.1:1\nupdate_only=true\nremove=true",
    ] {
        let peer = peer(lines);
        assert!(peer.remove && !peer.update_only && peer.allowed_ips.is_empty() && peer.endpoint.is_none());
    }
    assert_eq!(
        error(&format!(
            "public_key={}\nremove=true\nallowed_ip=10.0.0.0/33",
            key(1)
        )),
        Errno::INVAL
    );
}

#[test]
fn c79_a_peer_may_come_twice() {
    let request = parse(&format!(
        "public_key={0}\nremove=true\npublic_key={0}\nallowed_ip=10.0.0.0/8",
        key(1)
    ));
    assert_eq!(request.peers.len(), 2);
    assert!(request.peers[0].remove && !request.peers[1].remove);
}

#[test]
fn c79_endpoints() {
    let endpoint = |text: &str| peer(&format!("endpoint={text}")).endpoint.expect("set");
    let same = [
        "192.0.2.1:1",
        "0.0.0.0:0",
        "255.255.255.255:65535",
        "[::1]:51820",
        "[2001:db8::1]:9",
        "[fe80::1%7]:9",
    ];
    for text in same {
        assert_eq!(
            endpoint(text),
            text.parse::<SocketAddr>().expect("an endpoint"),
            "{text}"
        );
        assert_eq!(endpoint(text).to_string(), text);
    }
    // Our IPv6 socket does not reach IPv4.
    assert_eq!(endpoint("[::ffff:192.0.2.1]:9").to_string(), "192.0.2.1:9");
}

#[test]
fn c79_a_zone_may_have_a_name() {
    let line = b"endpoint=[fe80::1%wan0]:9";
    let start = || {
        let mut parser = SetParser::new(Limits::default());
        parser
            .line(format!("public_key={}", key(1)).as_bytes())
            .expect("a key");
        parser
    };
    let mut parser = start();
    parser
        .line_with_zones(line, &|name| (name == "wan0").then_some(42))
        .expect("a known zone");
    let request = parser.finish().expect("a good request");
    assert_eq!(
        request.peers[0].endpoint,
        Some("[fe80::1%42]:9".parse().expect("an endpoint"))
    );
    assert_eq!(start().line_with_zones(line, &|_| None), Err(Errno::INVAL));
    assert_eq!(start().line(line), Err(Errno::INVAL));
}

#[test]
fn c79_allowed_ips_of_every_length() {
    for cidr in 0..=32 {
        let peer = peer(&format!("allowed_ip=255.255.255.255/{cidr}"));
        let masked = Ipv4Addr::from_bits(!u32::MAX.unbounded_shr(cidr.into()));
        assert_eq!(
            peer.allowed_ips,
            [AllowedIpChange {
                remove: false,
                addr: IpAddr::V4(masked),
                cidr
            }]
        );
    }
    for cidr in 0..=128 {
        let peer = peer(&format!(
            "allowed_ip=-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/{cidr}"
        ));
        let masked = Ipv6Addr::from_bits(!u128::MAX.unbounded_shr(cidr.into()));
        assert_eq!(
            peer.allowed_ips,
            [AllowedIpChange {
                remove: true,
                addr: IpAddr::V6(masked),
                cidr
            }]
        );
    }
}

/// A key of any length but 64 digits is refused, whatever the digits: no buffer can overflow.
#[test]
fn r48_keys_of_wrong_lengths() {
    for name in ["private_key", "public_key"] {
        for len in (0..200).filter(|len| *len != 64) {
            assert_eq!(
                error(&format!("{name}={}", "a".repeat(len))),
                Errno::INVAL,
                "{name} of {len}"
            );
        }
        for wrong in ["g", "=", "+", "-", " ", "\u{e9}", "\0"] {
            let key = format!("{}{wrong}", "a".repeat(64 - wrong.len()));
            assert_eq!(
                error(&format!("{name}={key}")),
                Errno::INVAL,
                "{name} with {wrong:?}"
            );
        }
    }
    // As `wg` takes it from people: base64.
    assert_eq!(
        error("private_key=yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="),
        Errno::INVAL
    );
}

#[test]
fn r44_a_peers_lines_need_a_peer() {
    let lines = [
        "remove=true",
        "update_only=true",
        "preshared_key=0000000000000000000000000000000000000000000000000000000000000000",
        "endpoint=1.1.1.1:1",
        "persistent_keepalive_interval=1",
        "replace_allowed_ips=true",
        "allowed_ip=10.0.0.0/8",
        "protocol_version=1",
    ];
    for line in lines {
        assert_eq!(error(line), Errno::INVAL, "{line}");
        peer(line);
    }
}

#[test]
fn c80_after_a_bad_line_nothing_is_left() {
    let mut parser = SetParser::new(Limits::default());
    assert_eq!(parser.line(b"listen_port=1"), Ok(()));
    assert_eq!(parser.line(b"no_such_key=1"), Err(Errno::INVAL));
    assert_eq!(parser.line(b"listen_port=2"), Err(Errno::INVAL));
    assert_eq!(
        parser.line(b"no equals sign"),
        Err(Errno::INVAL),
        "the first error stays"
    );
    assert_eq!(parser.finish().err(), Some(Errno::INVAL));
}

#[test]
fn c80_limits() {
    let limits = Limits {
        bytes: 200,
        peers: 2,
        allowed_ips: 3,
    };
    let check = |text: &str| parse_limited(text, limits).map(|_| ());
    let peer = format!("public_key={}\n", key(1));
    assert_eq!(check(&peer.repeat(2)), Ok(()));
    assert_eq!(check(&peer.repeat(3)), Err(Errno::TOOBIG));
    let allowed = "allowed_ip=::/0\n";
    assert_eq!(check(&format!("{peer}{}", allowed.repeat(3))), Ok(()));
    assert_eq!(check(&format!("{peer}{}", allowed.repeat(4))), Err(Errno::TOOBIG));
    assert_eq!(check(&"fwmark=01\n".repeat(20)), Ok(()), "200 bytes");
    assert_eq!(
        check(&format!("{}fwmark=001\n", "fwmark=01\n".repeat(19))),
        Err(Errno::TOOBIG),
        "201 bytes"
    );
}

#[test]
fn c80_bytes_are_counted_after_an_error_too() {
    let mut parser = SetParser::new(Limits {
        bytes: 20,
        ..Limits::default()
    });
    assert_eq!(parser.line(b"nonsense"), Err(Errno::PROTO));
    assert!(!parser.exhausted());
    assert_eq!(parser.line(b"more nonsense"), Err(Errno::PROTO));
    assert!(parser.exhausted());
}

/// The lines of a request, in an order in which they mean the same again.
fn render(request: &SetRequest) -> String {
    let hex = |key: &[u8]| key.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let secret =
        |key: &Option<patronus_mem::Secret<32>>| hex(key.as_ref().map_or(&[0; 32][..], |key| &key[..]));
    let mut text = String::new();
    let mut line = |name: &str, value: String| text += &format!("{name}={value}\n");
    request
        .private_key
        .iter()
        .for_each(|key| line("private_key", secret(key)));
    request
        .listen_port
        .iter()
        .for_each(|port| line("listen_port", port.to_string()));
    request
        .fwmark
        .iter()
        .for_each(|mark| line("fwmark", mark.to_string()));
    if request.replace_peers {
        line("replace_peers", "true".into());
    }
    for peer in &request.peers {
        line("public_key", hex(&peer.public_key.0));
        for (name, set) in [
            ("remove", peer.remove),
            ("update_only", peer.update_only),
            ("replace_allowed_ips", peer.replace_allowed_ips),
        ] {
            if set {
                line(name, "true".into());
            }
        }
        peer.preshared_key
            .iter()
            .for_each(|key| line("preshared_key", secret(key)));
        peer.endpoint
            .iter()
            .for_each(|endpoint| line("endpoint", endpoint.to_string()));
        peer.persistent_keepalive
            .iter()
            .for_each(|secs| line("persistent_keepalive_interval", secs.to_string()));
        for change in &peer.allowed_ips {
            let sign = if change.remove { "-" } else { "" };
            line("allowed_ip", format!("{sign}{}/{}", change.addr, change.cidr));
        }
    }
    text
}

/// Lines that mean something, and lines that nearly do.
fn lines() -> impl Strategy<Value = String> {
    let key = any::<[u8; 32]>().prop_map(|key| key.iter().map(|b| format!("{b:02x}")).collect::<String>());
    let good = prop_oneof![
        key.clone().prop_map(|k| format!("public_key={k}")),
        key.clone().prop_map(|k| format!("private_key={k}")),
        key.prop_map(|k| format!("preshared_key={k}")),
        any::<u16>().prop_map(|n| format!("listen_port={n}")),
        any::<u32>().prop_map(|n| format!("fwmark={n}")),
        any::<u16>().prop_map(|n| format!("persistent_keepalive_interval={n}")),
        any::<SocketAddr>().prop_map(|a| format!("endpoint={a}")),
        (any::<bool>(), any::<IpAddr>(), 0u8..=32)
            .prop_map(|(remove, a, n)| format!("allowed_ip={}{a}/{n}", if remove { "-" } else { "" })),
        Just("replace_peers=true".to_owned()),
        Just("replace_allowed_ips=true".to_owned()),
        Just("update_only=true".to_owned()),
        Just("remove=true".to_owned()),
        Just("protocol_version=1".to_owned()),
    ];
    let bad = prop_oneof![
        ".{0,80}",
        "[a-z_]{0,30}=.{0,80}",
        "(allowed_ip|endpoint)=[-0-9a-f.:/%\\[\\]]{0,50}"
    ];
    prop_oneof![40 => good, 1 => bad]
}

proptest! {
    /// Whatever is accepted says the same when it is written down and read again. Nothing panics.
    #[test]
    fn c79_what_was_understood_is_understood_again(
        before in prop::collection::vec(lines(), 0..4),
        after in prop::collection::vec(lines(), 0..30),
    ) {
        let first = "public_key=1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b".to_owned();
        let in_their_place = |peer: bool| move |line: &&String| {
            let of_interface = ["private_key", "listen_port", "fwmark", "replace_peers"];
            of_interface.iter().any(|key| line.starts_with(key)) != peer
        };
        let before = before.iter().filter(in_their_place(false));
        let text: Vec<&str> =
            before.chain([&first]).chain(after.iter().filter(in_their_place(true))).map(String::as_str).collect();
        if let Ok(request) = parse_limited(&text.join("\n"), Limits::default()) {
            let text = render(&request);
            prop_assert_eq!(render(&parse(&text)), text);
        }
    }
}
