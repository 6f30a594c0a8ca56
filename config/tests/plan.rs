//! Differences between files, in words.

mod files;

use std::collections::BTreeMap;

use files::{KEYS, file};
use patronus_abi::Site;
use patronus_config::plan::{Kind, Plan, Process};
use patronus_config::{Config, diff, parse};
use proptest::prelude::*;

fn plan(old: &str, new: &str) -> Plan {
    let begin = "[site]\nprivate_key_file = 'site.key'\n";
    let parse = |text: &str| parse(&format!("{begin}{text}")).unwrap_or_else(|error| panic!("{error}"));
    diff(&parse(old), &parse(new))
}

#[track_caller]
fn says(old: &str, new: &str, expected: &[&str]) {
    let said = plan(old, new).to_string();
    assert_eq!(said.lines().collect::<Vec<_>>(), expected, "\n{said}");
}

#[test]
fn what_comes_goes_and_changes_is_told_by_its_name() {
    let hub = format!("[[peer]]\nname = 'hub'\npublic_key = '{}'\n", KEYS[0]);
    let branch = format!("[[peer]]\nname = 'branch'\npublic_key = '{}'\n", KEYS[1]);
    let networks = "allowed_ips = ['10.1.0.0/16', '10.2.0.0/16']\n";
    let line = format!(
        "+ peer branch (public_key {}, allowed_ips 10.1.0.0/16 10.2.0.0/16)",
        KEYS[1]
    );
    says(&hub, &format!("{hub}{branch}{networks}"), &[&line]);
    says(
        &format!("{hub}{branch}{networks}"),
        &hub,
        &[&line.replacen('+', "-", 1)],
    );
    let other = "allowed_ips = ['10.3.0.0/16', '10.2.0.0/16']\nendpoint = '192.0.2.1:7'\n";
    let line = "~ peer branch: endpoint none -> 192.0.2.1:7, allowed_ips +10.3.0.0/16 -10.1.0.0/16";
    says(
        &format!("{branch}{networks}"),
        &format!("{branch}{other}"),
        &[line],
    );
    says(
        &branch,
        &branch.replace("branch", "annex"),
        &["~ peer annex: name branch -> annex"],
    );
    let nameless = branch.replace("name = 'branch'\n", "");
    says(
        &nameless,
        &format!("{nameless}keepalive = '25s'"),
        &["~ peer TrMvSoP4: keepalive none -> 25s"],
    );
    let route = "[[route]]\nprefix = '10.0.0.0/8'\nvia = 'host'\n";
    let other = "[[route]]\nprefix = '10.0.0.0/8'\nvia = ['host', 'discard']\n";
    says(route, other, &["~ route 10.0.0.0/8: via host -> host discard"]);
    let new = "! metrics is new (listen 127.0.0.1:9586) needs a restart of the control process";
    says("", "[metrics]", &[new]);
    says("[metrics]", "", &[&new.replace("is new", "goes")]);
    says(
        "[metrics]",
        "[metrics]\nlisten = '[::1]:1'",
        &["! metrics.listen 127.0.0.1:9586 -> [::1]:1 needs a restart of the control process"],
    );
    says("", "listen_port = 51820", &["~ site.listen_port 0 -> 51820"]);
}

#[test]
fn policies_are_told_with_their_place() {
    let telnet = "[[policy]]\nname = 'no-telnet'\nprotocol = 'tcp'\ndst_ports = 23\naction = 'drop'\n";
    let calls = "[[policy]]\nname = 'calls'\ndscp = 'ef'\naction = 'route'\n";
    let rest = "[[policy]]\naction = 'drop'\n";
    says(
        telnet,
        &telnet.replace("drop", "route"),
        &["~ policy no-telnet: action drop -> route"],
    );
    says(
        &format!("{calls}{rest}"),
        &format!("{calls}{telnet}{rest}"),
        &["+ policy no-telnet (2 of 3, protocol tcp, dst_ports 23, action drop)"],
    );
    says(
        &format!("{calls}{telnet}{rest}"),
        &format!("{telnet}{calls}{rest}"),
        &["~ policy.order calls before no-telnet -> no-telnet before calls"],
    );
    says(&format!("{calls}{rest}"), calls, &["- policy #2 (action drop)"]);
    says(
        &format!("{calls}{rest}{rest}"),
        &format!("{calls}{rest}"),
        &["- policy #3 (action drop)"],
    );
}

#[test]
fn what_needs_a_restart_says_so() {
    let one = "[[link]]\nid = 1\ninterface = 'eth0'\n";
    let two = "[[link]]\nid = 2\ninterface = 'eth1'\n";
    says(
        "",
        "[engine]\nworkers = 2",
        &["! engine.workers 1 -> 2 needs a restart of the engine"],
    );
    says(
        one,
        &format!("{two}{one}"),
        &[
            "! link 2 is new (interface eth1, port udp, group 0, metered false, behind_nat false, cost 0) needs a restart of the engine",
        ],
    );
    says(&format!("{one}{two}"), &format!("{two}{one}"), &[]);
    says(
        one,
        &format!("{one}group = 1\ncost = 3"),
        &["! link 1: group 0 -> 1, cost 0 -> 3 needs a restart of the engine"],
    );
    says(one, &format!("{one}cost = 3"), &["~ link 1: cost 0 -> 3"]);
    says(
        "",
        "[control]\nsocket = '/run/c'",
        &["! control.socket /run/patronus/control.sock -> /run/c needs a restart of the control process"],
    );
    let peer = format!("[[peer]]\nname = 'hub'\npublic_key = '{}'\n", KEYS[0]);
    let turned = plan(
        &format!("{one}{peer}"),
        &format!("{one}{}", peer.replace("peer", "remote")),
    );
    assert_eq!(
        turned.changes[0].words,
        "! remote hub: remote false -> true needs a restart of the engine"
    );
    let why: Vec<&str> = turned
        .needs_restart
        .iter()
        .map(|restart| restart.why.as_str())
        .collect();
    assert_eq!(
        why,
        [
            "remote hub: remote false -> true",
            "there is a [[remote]], which there was not before"
        ]
    );
    let routed = plan("", "[[route]]\nprefix = '10.0.0.0/8'\nvia = 'host'");
    assert!(routed.restarts(Process::Engine) && !routed.restarts(Process::Control));
    assert_eq!(routed.changes[0].kind, Kind::Added);
    let office = "[[lan]]\nname = 'office'\ninterface = 'eth5'\n";
    let lab = "[[lan]]\nname = 'lab'\ninterface = 'eth6'\n";
    says(
        office,
        &office.replace("office", "desk"),
        &["~ lan desk: name office -> desk"],
    );
    says(
        &format!("{office}{lab}"),
        &format!("{lab}{office}"),
        &["! lan.order office before lab -> lab before office needs a restart of the engine"],
    );
}

#[test]
fn programs_get_the_same() {
    let peer = format!("[[peer]]\nname = 'hub'\npublic_key = '{}'\n", KEYS[0]);
    let plan = plan(
        &peer,
        &format!("{peer}allowed_ips = ['10.0.0.0/8']\n[engine]\nworkers = 2"),
    );
    let json = serde_json::to_value(&plan).unwrap();
    let expected = serde_json::json!({
        "changes": [
            {
                "kind": "changed", "table": "engine",
                "keys": [{ "key": "workers", "before": "1", "after": "2" }],
                "restart": "engine",
                "words": "! engine.workers 1 -> 2 needs a restart of the engine",
            },
            {
                "kind": "changed", "table": "peer", "name": "hub",
                "keys": [{ "key": "allowed_ips", "gained": ["10.0.0.0/8"] }],
                "words": "~ peer hub: allowed_ips +10.0.0.0/8",
            },
        ],
        "needs_restart": [{ "process": "engine", "why": "engine.workers 1 -> 2" }],
    });
    assert_eq!(json, expected);
}

/// What an engine is told, with everything in an order of its own that has none in the file.
fn sorted(config: &Config) -> (Site, BTreeMap<Vec<u8>, String>) {
    let mut site = config.compile();
    let key = |at: u32| site.peers[at as usize].public_key;
    let mut hops = BTreeMap::new();
    for route in &site.routes {
        let named = route.hops.iter().map(|hop| match hop {
            patronus_abi::site::Hop::Peer(at) => format!("{:?}", key(*at)),
            other => format!("{other:?}"),
        });
        hops.insert(format!("{:?}", route.prefix).into_bytes(), named.collect());
    }
    for (at, policy) in site.policies.iter_mut().enumerate() {
        if let patronus_abi::site::Action::Via(list) = &mut policy.action {
            let named = list.iter().map(|hop| match hop {
                patronus_abi::site::Hop::Peer(at) => format!("{:?}", site.peers[*at as usize].public_key),
                other => format!("{other:?}"),
            });
            hops.insert(vec![at as u8], named.collect());
            list.clear();
        }
    }
    site.routes.clear();
    site.peers.sort_by_key(|peer| peer.public_key);
    site.peers.iter_mut().for_each(|peer| peer.allowed_ips.sort());
    site.lans.iter_mut().for_each(|lan| lan.networks.sort());
    (site, hops)
}

fn key_files(config: &Config) -> Vec<&std::path::Path> {
    let mut files: Vec<_> = config.key_files().collect();
    files.sort();
    files
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn between_equal_files_there_is_nothing(bytes in prop::collection::vec(any::<u8>(), 0..160)) {
        let config = parse(&file(&bytes)).unwrap();
        let plan = diff(&config, &config.clone());
        prop_assert!(plan.is_empty() && plan.needs_restart.is_empty(), "{}", plan);
    }

    /// What an engine is told differs if and only if something is named, up to what an engine is not told.
    #[test]
    fn every_difference_is_named(
        bytes in prop::collection::vec(any::<u8>(), 120..160),
        at in prop::collection::vec((0..160usize, any::<u8>()), 1..3),
    ) {
        let mut other = bytes.clone();
        for (at, byte) in at {
            if let Some(there) = other.get_mut(at) {
                *there = byte;
            }
        }
        let (old, new) = (parse(&file(&bytes)).unwrap(), parse(&file(&other)).unwrap());
        let (plan, back) = (diff(&old, &new), diff(&new, &old));
        prop_assert_eq!(plan.is_empty(), back.is_empty());
        let same = sorted(&old) == sorted(&new) && key_files(&old) == key_files(&new);
        prop_assert!(same || !plan.is_empty(), "\n{}\n{}", file(&bytes), file(&other));
        let untold = ["metrics", "control"];
        // Control counts what goes by links.
        let of_engine = |change: &patronus_config::plan::Change| {
            !untold.contains(&change.table) && !change.words.contains("data_cap")
        };
        prop_assert!(!same || !plan.changes.iter().any(of_engine), "{}", plan);
        for change in &plan.changes {
            prop_assert!(!change.words.contains('\n'));
        }
        // Those that went and those that came are the same the other way round.
        let count = |plan: &Plan, kind: Kind| plan.changes.iter().filter(|change| change.kind == kind).count();
        prop_assert_eq!(count(&plan, Kind::Added), count(&back, Kind::Removed));
        prop_assert_eq!(count(&plan, Kind::Changed), count(&back, Kind::Changed));
        named_one_by_one(&old, &new, &plan)?;
    }
}

/// Each peer, route and link that differs has a line of its own.
fn named_one_by_one(old: &Config, new: &Config, plan: &Plan) -> Result<(), TestCaseError> {
    let lines = |tables: &[&str], kind: Kind| {
        let changes = plan.changes.iter();
        changes
            .filter(|change| tables.contains(&change.table) && change.kind == kind)
            .count()
    };
    let peer = |config: &Config, key: &str| {
        config
            .peers
            .iter()
            .find(|peer| peer.public_key.get_ref().to_string() == key)
            .cloned()
    };
    let differ = |was: &Option<patronus_config::Peer>, is: &Option<patronus_config::Peer>| match (was, is) {
        (Some(was), Some(is)) => {
            let (mut was, mut is) = (was.clone(), is.clone());
            was.allowed_ips.sort();
            is.allowed_ips.sort();
            was != is
        }
        _ => false,
    };
    let both = KEYS.map(|key| (peer(old, key), peer(new, key)));
    let changed = both.iter().filter(|(was, is)| differ(was, is)).count();
    let added = both
        .iter()
        .filter(|(was, is)| was.is_none() && is.is_some())
        .count();
    prop_assert_eq!(lines(&["peer", "remote"], Kind::Changed), changed, "{}", plan);
    prop_assert_eq!(lines(&["peer", "remote"], Kind::Added), added, "{}", plan);
    let route = |config: &Config| -> BTreeMap<_, _> {
        let routes = config.routes.iter();
        routes
            .map(|route| (*route.prefix.get_ref(), route.clone()))
            .collect()
    };
    let (was, is) = (route(old), route(new));
    let changed = was
        .iter()
        .filter(|(prefix, route)| is.get(prefix).is_some_and(|now| now != *route))
        .count();
    prop_assert_eq!(lines(&["route"], Kind::Changed), changed, "{}", plan);
    Ok(())
}
