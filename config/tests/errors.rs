//! What is said about files that are wrong: where, what, and what to do.

mod files;

use std::path::Path;

use patronus_config::{load, parse};

const KEY: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";

/// What is said of a file that begins well.
fn said(more: &str) -> String {
    let text = format!("[site]\nprivate_key_file = \"site.key\"\n{more}");
    parse(&text).expect_err("something is wrong").to_string()
}

#[track_caller]
fn says(more: &str, expected: &str) {
    let said = said(more);
    assert_eq!(said, expected.trim_start_matches('\n').trim_end(), "\n{said}\n");
}

#[test]
fn a_misspelt_key_is_named_with_the_nearest_one() {
    says(
        "lisen_port = 51820",
        r"
3:1: unknown key `lisen_port`
  |
3 | lisen_port = 51820
  | ^^^^^^^^^^ did you mean `listen_port`?
",
    );
}

#[test]
fn a_secret_in_the_file_is_not_repeated() {
    let key = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";
    for (text, name) in [
        (format!("private_key = '{key}'"), "private_key"),
        (format!("[[peer]]\npreshared_key = '{key}'"), "preshared_key"),
        (format!("private_key = {key}"), "private_key"),
    ] {
        let said = said(&text);
        assert!(!said.contains("yAnz"), "{said}");
        assert!(said.contains(&format!("{name} = (not shown)")), "{said}");
    }
    let said = said(&format!("private_key = '{key}'"));
    assert!(
        said.contains("keys stand in files of their own: `private_key_file`"),
        "{said}"
    );
}

#[test]
fn a_key_that_is_like_no_other_is_told_what_there_is() {
    says(
        "colour = 'green'",
        r"
3:1: unknown key `colour`
  |
3 | colour = 'green'
  | ^^^^^^ known here: private_key_file, listen_port, fwmark, addresses, mtu, routes
",
    );
}

#[test]
fn values_say_what_they_should_have_been() {
    let peer = |line: &str| format!("[[peer]]\npublic_key = '{KEY}'\n{line}");
    for (text, column, said_of_it) in [
        (
            peer("endpoint = '198.51.100.1'"),
            12,
            "`198.51.100.1`: expected an address and a UDP port, such as 198.51.100.1:51820 or [2001:db8::1]:51820",
        ),
        (
            peer("allowed_ips = ['10.1.0.0/16', '10.2.0.1/16']"),
            31,
            "`10.2.0.1/16`: expected a network, with no bit set behind the prefix",
        ),
        (
            peer("keepalive = '25'"),
            13,
            "`25`: expected a whole number and a unit: \"50ms\", \"25s\", \"2m\" or \"1h\"",
        ),
        (
            peer("keepalive = 25"),
            13,
            "invalid type: integer `25`, expected a duration with its unit, such as \"25s\" or \"50ms\"",
        ),
        (
            "[[peer]]\n\npublic_key = 'xTIB'".to_owned(),
            14,
            "`xTIB`: expected a key as `wg pubkey` prints it: 44 characters, the last one `=`",
        ),
        (
            "[[link]]\nid = 1\ninterface = 'eth0/1'".to_owned(),
            13,
            "`eth0/1`: expected an interface's name: 1 to 15 characters without spaces, slashes or colons",
        ),
    ] {
        let said = said(&text);
        let first = said.lines().next().unwrap();
        assert_eq!(first, format!("5:{column}: {said_of_it}"), "\n{said}\n");
    }
}

#[test]
fn numbers_have_their_range() {
    says(
        "[engine]\nworkers = 65",
        r"
4:11: `65`: expected a whole number from 1 to 64
  |
4 | workers = 65
  |           ^^ for example: workers = 2
",
    );
    says(
        "[[link]]\nid = 16\ninterface = 'eth0'",
        r"
4:6: `16`: expected a whole number from 1 to 15
  |
4 | id = 16
  |      ^^ for example: id = 1
",
    );
    says(
        &format!("[[peer]]\npublic_key = '{KEY}'\nkeepalive = '1500ms'"),
        r"
5:13: keepalives are sent every 1 to 65535 whole seconds
  |
5 | keepalive = '1500ms'
  |             ^^^^^^^^ 25s suits most NATs
",
    );
}

#[test]
fn ranges_are_told_in_numbers_and_not_in_types_of_ours() {
    for (text, expected) in [
        (
            "[engine]\nworkers = -1",
            "4:11: `-1`: expected a whole number from 1 to 64",
        ),
        (
            "[engine]\nworkers = '2'",
            "4:11: invalid type: string \"2\", expected a whole number from 1 to 64",
        ),
        (
            "[engine]\ncores = [0, 1024]",
            "4:13: `1024`: expected a whole number from 0 to 1023",
        ),
        ("[engine]\ncores = [1, 1]", "4:13: this core stands here twice"),
        (
            "[engine]\nspin = '2s'",
            "4:8: expected a duration from \"0ms\" to \"1s\"",
        ),
        (
            "[engine]\naead = 'rot13'",
            "4:8: there is no cryptography backend `rot13`",
        ),
        (
            "listen_port = 65536",
            "3:15: `65536`: expected a whole number from 0 to 65535",
        ),
        (
            "fwmark = 4294967296",
            "3:10: `4294967296`: expected a whole number from 0 to 4294967295",
        ),
        (
            "[[link]]\nid = -3\ninterface = 'a'",
            "4:6: `-3`: expected a whole number from 1 to 15",
        ),
    ] {
        let said = said(text);
        assert_eq!(said.lines().next().unwrap(), expected, "\n{said}\n");
    }
}

/// A peer, an Ethernet LAN, and more.
fn routed(more: &str) -> String {
    format!(
        "[[peer]]\nname = 'hub'\npublic_key = '{KEY}'\n[[lan]]\nname = 'office'\nport = 'af_xdp'\n\
         interface = 'eth1'\nnetworks = ['192.0.2.0/24']\n{more}"
    )
}

#[test]
fn routes_and_policies_name_what_there_is() {
    for (text, expected, hint) in [
        (
            "[[route]]\nprefix = '10.0.0.0/8'\nvia = 'hob'",
            "13:7: there is no peer and no LAN named `hob`",
            "did you mean `hub`?",
        ),
        (
            "[[route]]\nprefix = '10.0.0.0/8'\nvia = ['hub', 'nowhere']",
            "13:15: there is no peer and no LAN named `nowhere`",
            "known here: host, hub, discard",
        ),
        (
            "[[route]]\nprefix = '10.0.0.0/8'\nvia = 'office'",
            "13:7: to whom on LAN `office`? expected the address of a neighbour there",
            "need no route",
        ),
        (
            "[[route]]\nprefix = '10.0.0.0/8'\nvia = '198.51.100.1'",
            "13:7: 198.51.100.1 is on no LAN",
            "`networks` of an Ethernet LAN",
        ),
        (
            "[[route]]\nprefix = '10.0.0.0/8'\nvia = []",
            "13:7: expected 1 to 64 next hops",
            "",
        ),
        (
            "[[policy]]\naction = 'dorp'",
            "12:10: unknown word `dorp`",
            "did you mean `drop`?",
        ),
        (
            "[[policy]]\naction = 'via'",
            "12:10: where to? this action needs a `via`",
            "",
        ),
        (
            "[[policy]]\naction = 'drop'\nvia = 'hub'",
            "13:7: only a policy with `action = \"via\"` says where packets go",
            "",
        ),
        (
            "[[policy]]\nsrc = '10.0.0.0/8'\ndst = 'fd00::/8'\naction = 'drop'",
            "13:7: `src` and `dst` are of different address families: no packet has both",
            "",
        ),
        (
            "[[policy]]\nprotocol = 'icmp'\ndst_ports = 7\naction = 'drop'",
            "12:12: packets of this protocol have no ports",
            "",
        ),
        (
            "[[policy]]\ndst_ports = '9-7'\naction = 'drop'",
            "12:13: `9-7`: expected a port from 0 to 65535, or a range such as \"1024-65535\"",
            "",
        ),
        (
            "[[policy]]\ndscp = ['ef', 64]\naction = 'drop'",
            "12:15: `64`: expected a DSCP: a name such as \"ef\", or a number from 0 to 63",
            "",
        ),
        (
            "[[lan]]\nname = 'hub'\nport = 'tun'",
            "12:8: another peer or LAN has this name",
            "the first is in line 4",
        ),
        (
            "[[lan]]\nname = 'b'\nport = 'af_xdp'",
            "13:8: an Ethernet LAN needs to know its `interface`",
            "`port = \"tun\"` is the host",
        ),
        (
            "[[lan]]\nname = 'b'\nport = 'af_xpd'",
            "13:8: unknown word `af_xpd`",
            "did you mean `af_xdp`?",
        ),
        (
            "[[lan]]\nname = 'b'",
            "12:8: an Ethernet LAN needs to know its `interface`",
            "`port = \"tun\"` is the host",
        ),
        (
            "[[lan]]\nname = 'b'\nport = 'af_xdp'\ninterface = 'eth1'",
            "14:13: another link or LAN has this interface",
            "the first is in line 9",
        ),
        (
            "neighbours = [{ address = '192.0.2.9', mac = '01:00:5e:00:00:01' }]",
            "11:46: `01:00:5e:00:00:01`: expected the Ethernet address of one station, such as 02:00:5e:10:00:01",
            "",
        ),
    ] {
        let said = said(&routed(text));
        assert_eq!(said.lines().next().unwrap(), expected, "\n{said}\n");
        assert!(said.contains(hint), "{hint}\n{said}\n");
    }
}

#[test]
fn prefixes_have_to_fit_where_they_are_routed_by() {
    let networks: Vec<String> = (0..64).map(|n| format!("'10.{n}.0.0/16'")).collect();
    let text = format!(
        "[engine]\nroutes = 64\n[[peer]]\nname = 'hub'\npublic_key = '{KEY}'\nallowed_ips = [{}]\n",
        networks.join(", ")
    );
    let fits = format!("[site]\nprivate_key_file = 'k'\n{text}");
    parse(&fits).expect("without a router there is nothing to fit into");
    let said = said(&format!("{text}[[route]]\nprefix = '0.0.0.0/0'\nvia = 'hub'"));
    assert!(said.starts_with("10:10: there is room for 64 prefixes"), "{said}");
}

#[test]
fn what_stands_twice_is_shown_with_the_first() {
    says(
        "[[link]]\nid = 1\ninterface = 'eth0'\n[[link]]\nid = 1\ninterface = 'eth1'",
        r"
7:6: another link has this id
  |
7 | id = 1
  |      ^ the first is in line 4
",
    );
    let twice = format!("[[peer]]\npublic_key = '{KEY}'\nallowed_ips = ['10.0.0.0/8', '10.0.0.0/8']");
    assert!(said(&twice).starts_with("5:30: this network stands here twice"));
    let twice = format!("[[peer]]\npublic_key = '{KEY}'\n[[peer]]\npublic_key = '{KEY}'");
    assert!(said(&twice).starts_with("6:14: another peer has this public key"));
    let twice = "[[link]]\nid = 1\ninterface = 'eth0'\n[[link]]\nid = 2\ninterface = 'eth0'";
    assert!(said(twice).starts_with("8:13: another link or LAN has this interface"));
}

#[test]
fn what_is_missing_is_named() {
    let said = parse("[engine]\nworkers = 1").unwrap_err().to_string();
    assert!(said.contains("the table [site] is missing"), "{said}");
    let said = parse("[site]\nlisten_port = 1").unwrap_err();
    assert!(
        said.to_string().contains("the key `private_key_file` is missing"),
        "{said}"
    );
    assert_eq!(said.place(), Some((1, 1)));
}

#[test]
fn what_is_no_toml_is_shown() {
    let error = parse("[site]\nprivate_key_file = site.key").unwrap_err();
    assert_eq!(error.place().map(|(line, _)| line), Some(2), "{error}");
}

#[test]
fn tabs_and_letters_of_other_scripts_do_not_move_the_mark() {
    says(
        "\t# Größe\n\t\u{3b1} = 1",
        "
4:2: invalid unquoted key, expected letters, numbers, `-`, `_`
  |
4 | \t\u{3b1} = 1
  | \t^ docs/config.md explains every table and key
",
    );
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let error = load(Path::new("/nowhere/site.toml")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "/nowhere/site.toml: No such file or directory (os error 2)"
    );
    assert_eq!(error.place(), None);
}

/// Lists, tables and words as people write them.
#[test]
fn values_of_the_wrong_form_are_told_what_is_expected() {
    let lan = "[[lan]]\nname = 'office'\ninterface = 'eth1'\n";
    let link = "[[link]]\nid = 1\ninterface = 'eth0'\n";
    let own = "[engine]\ninterface = 'wg7'\n";
    for (text, place, expected) in [
        (
            format!("{lan}networks = '10.1.0.0/16'"),
            "6:12",
            "expected a list: `[` values",
        ),
        (
            format!("{lan}neighbours = ['10.1.0.2']"),
            "6:15",
            "expected `{ address = ",
        ),
        (
            format!("{lan}neighbours = [{{ address = '10.1.0.2/24', mac = '02:00:00:00:09:01' }}]"),
            "6:27",
            "expected an address without a prefix, such as 10.1.0.2",
        ),
        (
            lan.replace("[[lan]]", "[lan]"),
            "3:1",
            "each in double brackets\n  |\n3 | [lan]\n  | ^^^^^ [[lan]]",
        ),
        (
            lan.replace("name = 'office'\n", ""),
            "3:1",
            "the key `name` is missing",
        ),
        (
            lan.replace("interface", "iface"),
            "5:1",
            "known here: name, port, interface, device, mtu, networks, neighbours",
        ),
        (
            format!("[[peer]]\npublic_key = '{KEY}'\nname = 'host'"),
            "5:8",
            "`host` is what routes call the host behind the TUN",
        ),
        (
            lan.replace("office", "host"),
            "4:8",
            "`host` is what routes call the host behind the TUN",
        ),
        (
            format!("{link}port = 51820"),
            "6:8",
            "expected a word in quotation marks",
        ),
        (format!("{link}metered = 'yes'"), "6:11", "expected true or false"),
        (
            format!("{link}data_cap_day = 5"),
            "6:16",
            "this is the day of a `data_cap`, and there is none",
        ),
        (
            format!("{link}data_cap = '20GB'\ndata_cap_day = 31"),
            "7:16",
            "1 to 28",
        ),
        (
            format!("{link}port = 'dpdk'\ndevice = '0000:03:00.0'\ndata_cap = '20GB'"),
            "8:12",
            "nobody counts what goes by a card that DPDK drives",
        ),
        (link.replace("[[link]]", "[link]"), "3:1", "[[link]]"),
        (
            format!("{own}{}", link.replace("eth0", "wg7")),
            "7:13",
            "this is the name of the engine's TUN",
        ),
    ] {
        let said = said(&text);
        assert!(
            said.starts_with(&format!("{place}: ")) && said.contains(expected),
            "{text}\n{said}"
        );
    }
}

/// What was meant is guessed where it can be, and shown by example elsewhere.
#[test]
fn values_that_are_nearly_right_are_put_right() {
    let peer = |line: &str| format!("[[peer]]\npublic_key = '{KEY}'\n{line}");
    for (text, hint) in [
        (peer("allowed_ips = ['10.2.3.4/16']"), "did you mean \"10.2.0.0/16\"?"),
        (peer("allowed_ips = ['10.2.0.0/255.255.0.0']"), "did you mean \"10.2.0.0/16\"?"),
        (peer("allowed_ips = ['fd00::1/64']"), "did you mean \"fd00::/64\"?"),
        (peer("allowed_ips = ['hub']"), "for example: allowed_ips = [\"10.1.0.0/16\", \"fd00:1::/32\"]"),
        (peer("endpoint = '198.51.100.1'"), "with a UDP port: \"198.51.100.1:51820\""),
        (peer("endpoint = '2001:db8::1'"), "with a UDP port: \"[2001:db8::1]:51820\""),
        (peer("endpoint = 'vpn.example.org:51820'"), "names are not looked up"),
        (peer("keepalive = '25'"), "did you mean \"25s\"?"),
        (peer("keepalive = '2min'"), "did you mean \"2m\"?"),
        (peer("keepalive = 25"), "for example: keepalive = \"25s\""),
        (peer("name = 'Branch 7'"), "did you mean \"Branch-7\"?"),
        ("[[link]]\nid = 1\ninterface = 'e'\nrate_up = '100mbit/s'".to_owned(), "did you mean \"100Mbps\"?"),
        ("[[link]]\nid = 1\ninterface = 'e'\ndata_cap = '20 gb'".to_owned(), "did you mean \"20GB\"?"),
        ("[[class]]\nname = 'a'\nloss = '0.5'".to_owned(), "did you mean \"0.5%\"?"),
        ("[metrics]\nlisten = ':9586'".to_owned(), "with an address: \"127.0.0.1:9586\""),
        (
            "[[lan]]\nname = 'a'\ninterface = 'e'\nneighbours = [{ address = '10.0.0.1', mac = '02-00-00-00-00-07' }]".to_owned(),
            "did you mean \"02:00:00:00:00:07\"?",
        ),
        ("[[peer]]\nname = 'hub'".to_owned(), "for example: public_key = \"TrMv"),
        ("[[route]]\nprefix = '10.0.0.0/8'\nvia = true".to_owned(), "for example: via = \"host\""),
        ("[engine]\naead = aws-lc".to_owned(), "for example: aead = \"aws-lc\""),
    ] {
        let said = said(&text);
        assert!(said.ends_with(hint) || said.contains(&format!("^ {hint}")), "{hint}\n{said}");
    }
}

/// A terminal shows what is wrong, and does nothing else with it.
#[test]
fn nothing_in_a_file_acts_on_a_terminal() {
    for text in [
        "fwmark = '\u{1b}]0;owned\u{7}'",
        "# \u{1b}[2J",
        "'\\u001b[31m' = 1",
        "[[peer]]\nname = \"\\u001b[31mred\\u001f\"",
        "[[peer]]\nname = 'a\u{202e}b'",
        "[[route]]\nprefix = '10.0.0.0/8'\nvia = \"\\u0007\"",
    ] {
        let said = said(text);
        let acts = said
            .chars()
            .find(|c| (c.is_control() && *c != '\n') || *c == '\u{202e}');
        assert_eq!(acts, None, "{said:?}");
    }
}

/// Of a line that is longer than any screen, the part around the place is shown.
#[test]
fn a_long_line_is_cut_around_the_place() {
    let networks: Vec<String> = (0..2000)
        .map(|n| format!("'10.{}.{}.0/24'", n / 256, n % 256))
        .collect();
    let text = format!(
        "[[peer]]\npublic_key = '{KEY}'\nallowed_ips = [{}]",
        networks.join(", ")
    );
    let bad = text.replace("'10.4.0.0/24'", "'10.4.0.1/24'");
    let said = said(&bad);
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines.iter().all(|line| line.chars().count() < 250), "{said}");
    let at = lines[3].find('^').unwrap();
    let marked = &lines[2][at..at + lines[3].matches('^').count()];
    assert_eq!(marked, "'10.4.0.1/24'", "{said}");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(3000))]

    /// Whatever is wrong with a file that was right: a place in it, the line, marks, and a hint.
    #[test]
    fn every_error_has_a_place_and_a_hint(
        bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..160),
        at in 0..4000usize,
        cut in 0..6usize,
        with in "[a-z0-9\\[\\]='\"{}., \n#/:%-]{0,3}",
    ) {
        let good = files::file(&bytes);
        let at = at % good.len();
        let end = (at + cut).min(good.len());
        let text = format!("{}{with}{}", &good[..at], &good[end..]);
        if let Err(error) = parse(&text) {
            let (line, column) = error.place().expect("a place");
            let there = text.lines().nth(line - 1).unwrap_or_default();
            proptest::prop_assert!(column <= there.chars().count() + 1, "{}", error);
            proptest::prop_assert!(error.hint().is_some_and(|hint| !hint.is_empty()), "{}", error);
            proptest::prop_assert!(error.to_string().contains('^'));
        }
    }
}

#[test]
fn devices_of_dpdk_are_named_rightly() {
    let lan = |lines: &str| format!("[[lan]]\nname = 'office'\ninterface = 'lan0'\nport = 'dpdk'\n{lines}");
    says(
        &lan(""),
        r#"
4:8: with `port = "dpdk"` this needs to know its `device`
  |
4 | name = 'office'
  |        ^^^^^^^^ a PCI address such as "0000:03:00.0": `patronus-engine devices` shows them
"#,
    );
    for (device, said_of_it) in [
        (
            "03:00.0",
            "expected a PCI address with its domain, as `lspci -D` shows it: 0000:03:00.0",
        ),
        (
            "0000:0A:00.0",
            "expected small letters, as DPDK has them: 0000:0a:00.0, net_memif0,role=server",
        ),
        (
            "eth0",
            "expected a PCI address such as 0000:03:00.0 (`ethtool -i INTERFACE` shows an interface's as bus-info), or a virtual device such \
             as net_memif0,role=server",
        ),
        (
            "net_memif0,socket=/run/a b",
            "expected a PCI address such as 0000:03:00.0, or a virtual device and its arguments, such as net_memif0,role=server: no spaces, \
             quotation marks or brackets, 255 characters at most",
        ),
    ] {
        let said = said(&lan(&format!("device = '{device}'")));
        let first = said.lines().next().unwrap();
        assert_eq!(first, format!("7:10: `{device}`: {said_of_it}"));
    }
    says(
        &lan(
            "device = 'net_memif0,id=1'\nmtu = 1500\n[[link]]\nid = 1\ninterface = 'wan0'\nport = 'dpdk'\ndevice = 'net_memif0,id=2'",
        ),
        r"
7:10: another port has the device `net_memif0`
  |
7 | device = 'net_memif0,id=1'
  |          ^^^^^^^^^^^^^^^^^ the first is in line 13
",
    );
    says(
        &lan("device = 'net_af_xdp0,iface=eth0'"),
        r#"
7:10: the driver net_af_xdp keeps packets where the engine's are not
  |
7 | device = 'net_af_xdp0,iface=eth0'
  |          ^^^^^^^^^^^^^^^^^^^^^^^^ the engine has its own: `port = "af_xdp"`
"#,
    );
    says(
        &lan("device = '0000:03:00.0'\nmtu = 900"),
        r"
8:7: `900`: expected a whole number from 1280 to 9216
  |
8 | mtu = 900
  |       ^^^ for example: mtu = 9000
",
    );
}

#[test]
fn what_belongs_to_dpdk_stands_nowhere_else() {
    let link = "[[link]]\nid = 1\ninterface = 'eth0'\n";
    says(
        &format!("{link}device = '0000:03:00.0'"),
        r#"
6:10: only a port with `port = "dpdk"` has a device
  |
6 | device = '0000:03:00.0'
  |          ^^^^^^^^^^^^^^ else it is the `interface` that says which
"#,
    );
    says(
        &format!("{link}mtu = 9000"),
        r#"
6:7: only a port with `port = "dpdk"` has its MTU here
  |
6 | mtu = 9000
  |       ^^^^ set the interface's: `ip link set INTERFACE mtu ...`
"#,
    );
}

#[test]
fn dpdks_memory_can_be_had() {
    says(
        "[dpdk]\nmemory = '4MiB'",
        r"
4:10: expected 16MiB to 64GiB
  |
4 | memory = '4MiB'
  |          ^^^^^^ 64MiB is enough for most
",
    );
    let said = said("[dpdk]\nmemory = '64'");
    assert!(
        said.contains("a whole number and a unit: \"64MiB\" or \"1GiB\""),
        "{said}"
    );
    says(
        "[dpdk]\nhuge_page_size = '4MiB'",
        r#"
4:18: huge pages have 2MiB or 1GiB
  |
4 | huge_page_size = '4MiB'
  |                  ^^^^^^ for example: huge_page_size = "2MiB"
"#,
    );
    says(
        "[dpdk]\nhuge_pages = false\nhuge_page_size = '2MiB'",
        r"
5:18: with `huge_pages = false` there are none that could have a size
  |
5 | huge_page_size = '2MiB'
  |                  ^^^^^^ leave one of the two lines out
",
    );
}

#[test]
fn an_engine_without_dpdk_says_so() {
    let text = "[site]\nprivate_key_file = 'site.key'\n[[lan]]\nname = 'a'\ninterface = 'a'\nport = 'dpdk'\ndevice = '0000:03:00.0'";
    let said = parse(text).unwrap().without_dpdk(text).unwrap().to_string();
    assert!(
        said.starts_with("7:10: this engine was built without DPDK (cargo feature `dpdk`)"),
        "{said}"
    );
    let without = "[site]\nprivate_key_file = 'site.key'";
    assert_eq!(parse(without).unwrap().without_dpdk(without), None);
}
