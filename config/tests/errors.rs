//! What is said about files that are wrong: where, what, and what to do.

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
  | ^^^^^^ known here: private_key_file, listen_port, fwmark
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
4:11: 65 workers: 1 to 64 are possible
  |
4 | workers = 65
  |           ^^
",
    );
    says(
        "[[link]]\nid = 16\ninterface = 'eth0'",
        r"
4:6: a link's id is a number from 1 to 15
  |
4 | id = 16
  |      ^^ it stays the link's name for good, so do not count anew
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
    assert!(said(twice).starts_with("8:13: another link has this interface"));
}

#[test]
fn what_is_missing_is_named() {
    let said = parse("[engine]\nworkers = 1").unwrap_err().to_string();
    assert!(said.contains("missing field `site`"), "{said}");
    let said = parse("[site]\nlisten_port = 1").unwrap_err();
    assert!(
        said.to_string().contains("missing field `private_key_file`"),
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
  | \t^
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
