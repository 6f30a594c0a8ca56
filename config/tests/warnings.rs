//! What is not wrong and said something of; classes, services and their values.

use patronus_config::steering::built_in;
use patronus_config::value::{Loss, Millis, Rate};
use patronus_config::{Config, parse};

fn parsed(more: &str) -> Config {
    let text = format!("[site]\nprivate_key_file = 'site.key'\n{more}");
    parse(&text).unwrap_or_else(|error| panic!("{error}"))
}

fn refused(more: &str) -> String {
    let text = format!("[site]\nprivate_key_file = 'site.key'\n{more}");
    parse(&text).expect_err("something is wrong").to_string()
}

#[test]
fn what_is_used_is_not_warned_of() {
    let link = "[[link]]\nid = 1\ninterface = 'eth0'\nrate_up = '10Mbps'\nrate_down = '1Gbps'\ncost = 3\n";
    let class = "[[class]]\nname = 'backup'\nmode = 'active_backup'\nloss = '0.3%'\n";
    let policy = "[[policy]]\naction = 'route'\nclass = 'backup'\n";
    let rest = "[probe]\ninterval = '20ms'\n[metrics]\n[control]\ngroup = 'wheel'";
    let config = parsed(&format!("{link}{class}{policy}{rest}"));
    assert!(config.warnings().is_empty());
}

#[test]
fn metrics_for_everybody_are_warned_of() {
    let config = parsed("[metrics]\nlisten = '0.0.0.0:9586'");
    let said = config.warnings()[0].to_string();
    assert!(
        said.starts_with("4:10: everybody who reaches this address"),
        "{said}"
    );
}

#[test]
fn classes_and_services_are_checked() {
    for (text, expected, hint) in [
        (
            "[[class]]\nname = 'voice'\nlatency = 50",
            "5:11: ",
            "such as \"25s\" or \"50ms\"",
        ),
        (
            "[[class]]\nname = 'voice'\nlatency = '0ms'",
            "5:11: expected a duration from \"1ms\" to \"1m\"",
            "leave out",
        ),
        (
            "[[class]]\nname = 'voice'\nhold = '25h'",
            "5:8: expected a duration from \"0ms\" to \"24h\"",
            "30s",
        ),
        (
            "[[class]]\nname = 'voice'\nloss = '101%'",
            "5:8: ",
            "\"0%\" to \"100%\"",
        ),
        (
            "[[class]]\nname = 'voice'\nmode = 'pined'",
            "5:8: unknown word `pined`",
            "did you mean `pinned`?",
        ),
        (
            "[[class]]\nname = 'a'\n[[class]]\nname = 'a'",
            "6:8: another class has this name",
            "line 4",
        ),
        (
            "[[policy]]\naction = 'route'\nclass = 'voise'",
            "5:9: there is no class named `voise`",
            "did you mean `voice`?",
        ),
        (
            "[[policy]]\naction = 'drop'\nclass = 'voice'",
            "5:9: what is dropped needs no path",
            "leave this line out",
        ),
        (
            "[[link]]\nid = 1\ninterface = 'eth0'\nrate_up = '100'",
            "6:11: ",
            "\"100Mbps\"",
        ),
        (
            "[[class]]\nname = 'voice'\nsticky = 'address'",
            "5:10: unknown word `address`",
            "known here: flow, source",
        ),
        (
            "[probe]\ninterval = '4ms'",
            "4:12: expected a duration from \"5ms\" to \"1s\"",
            "50ms",
        ),
        (
            "[probe]\ninterval = '500ms'\nidle = '400ms'",
            "5:8: expected a duration from `interval`, which is \"500ms\", to \"10s\"",
            "1s",
        ),
        (
            "[probe]\nidle = '11s'",
            "4:8: expected a duration from `interval`",
            "1s",
        ),
        (
            "[probe]\nrate = 99",
            "4:8: `99`: expected a whole number from 100 to 1000000",
            "for example: rate = 5000",
        ),
        ("[metrics]\nlisten = '9586'", "4:10: ", "127.0.0.1:9586"),
        (
            "[metrics]\nport = 9586",
            "4:1: unknown key `port`",
            "known here: listen",
        ),
        ("[control]\ngroup = '0x'", "4:9: ", "a group of users"),
    ] {
        let said = refused(text);
        assert!(
            said.starts_with(expected) && said.contains(hint),
            "\n{said}\n{hint}"
        );
    }
}

/// Checked like everything, and then refused: a site whose routes never come would not do its work.
#[test]
fn bgp_is_refused_when_nothing_else_is_wrong_with_it() {
    let good = "[bgp]\nasn = 65010\nrouter_id = '10.3.0.1'\nannounce = ['10.3.0.0/16']\n\
                [[bgp.neighbour]]\naddress = '10.3.0.254'\nasn = 65001\npassword_file = 'bgp.password'\n";
    let said = refused(good);
    assert!(
        said.starts_with("3:1: [bgp] is understood, but this release does not speak BGP"),
        "{said}"
    );
    for (what, with, expected) in [
        (
            "65001",
            "0",
            "9:7: `0`: expected a whole number from 1 to 4294967294",
        ),
        ("'10.3.0.1'", "'10.3.0'", "5:13: "),
        ("router_id", "routerid", "did you mean `router_id`?"),
    ] {
        let said = refused(&good.replace(what, with));
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn rates_and_losses() {
    for (text, bits) in [
        ("64kbps", 64_000),
        ("100 Mbps", 100_000_000),
        ("10Gbps", 10_000_000_000),
    ] {
        assert_eq!(text.parse(), Ok(Rate(bits)), "{text}");
        assert_eq!(Rate(bits).to_string().parse(), Ok(Rate(bits)));
    }
    for text in [
        "",
        "100",
        "0Mbps",
        "1.5Mbps",
        "100mbps",
        "100MBps",
        "-1Gbps",
        "99999999999999999999Gbps",
    ] {
        assert!(text.parse::<Rate>().is_err(), "{text}");
    }
    for (text, loss, shown) in [
        ("1%", 1000, "1%"),
        ("0.3%", 300, "0.3%"),
        ("0.125 %", 125, "0.125%"),
        ("100%", 100_000, "100%"),
    ] {
        assert_eq!(text.parse(), Ok(Loss(loss)), "{text}");
        assert_eq!(Loss(loss).to_string(), shown);
    }
    for text in [
        "",
        "1",
        "%",
        ".5%",
        "1.%",
        "0.1234%",
        "100.001%",
        "-1%",
        "1e1%",
        "999999999999%",
    ] {
        assert!(text.parse::<Loss>().is_err(), "{text}");
    }
    for (millis, shown) in [
        (0, "0ms"),
        (1500, "1500ms"),
        (25_000, "25s"),
        (120_000, "2m"),
        (7_200_000, "2h"),
    ] {
        assert_eq!(Millis(millis).to_string(), shown);
    }
}

#[test]
fn classes_that_are_built_in_can_be_named() {
    for class in built_in() {
        let name = class.name.get_ref().as_str();
        let config = parsed(&format!("[[policy]]\naction = 'route'\nclass = '{name}'"));
        assert!(config.warnings().is_empty());
        assert!(class.latency.is_none_or(|latency| latency.get_ref().0 >= 1));
    }
}

#[test]
fn classes_have_a_limit() {
    let classes = |count: usize| -> String {
        let each = |at| format!("[[class]]\nname = 'c{at}'\n");
        (0..count).map(each).collect()
    };
    let named = "[[policy]]\naction = 'route'\nclass = 'voice'\n";
    parsed(&classes(15));
    parsed(&format!("{}{named}{named}", classes(14)));
    parsed(&format!("{}[[class]]\nname = 'default'\n", classes(15)));
    for text in [classes(16), format!("{}{named}", classes(15))] {
        let said = refused(&text);
        assert!(said.contains("at most 16 classes are possible"), "{said}");
    }
}
