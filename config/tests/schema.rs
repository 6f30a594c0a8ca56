//! That what editors are told is what the parser takes, and what docs/config.md says.

mod files;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use files::file;
use patronus_config::keys::{Key, Kind, TABLES, Table, Without};
use patronus_config::plan::Process;
use patronus_config::{Config, diff, json_schema, parse};
use proptest::prelude::*;
use regex::Regex;
use serde_json::Value;

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn schema() -> Value {
    serde_json::from_str(&json_schema()).expect("the schema is JSON")
}

/// What the schema says of a value, as far as ours goes: JSON Schema, draft 7. Nothing if all is well.
fn complaint(schema: &Value, value: &Value, at: &str) -> Option<String> {
    let known = [
        "$schema",
        "title",
        "description",
        "default",
        "type",
        "properties",
        "required",
        "additionalProperties",
        "items",
        "maxItems",
        "enum",
        "pattern",
        "minimum",
        "maximum",
        "anyOf",
    ];
    for (keyword, said) in schema.as_object().expect("a schema is an object") {
        assert!(
            known.contains(&keyword.as_str()),
            "{keyword}: not understood here"
        );
        let is_right = match keyword.as_str() {
            "type" => match said.as_str().unwrap() {
                "object" => value.is_object(),
                "array" => value.is_array(),
                "string" => value.is_string(),
                "boolean" => value.is_boolean(),
                "integer" => value.is_i64() || value.is_u64(),
                other => panic!("{other}"),
            },
            "required" => said
                .as_array()
                .unwrap()
                .iter()
                .all(|key| value.get(key.as_str().unwrap()).is_some()),
            "additionalProperties" => {
                let known = schema["properties"].as_object().unwrap();
                value
                    .as_object()
                    .is_none_or(|keys| keys.keys().all(|key| known.contains_key(key)))
            }
            "maxItems" => value
                .as_array()
                .is_none_or(|list| list.len() as u64 <= said.as_u64().unwrap()),
            "enum" => said.as_array().unwrap().contains(value),
            "pattern" => {
                let pattern = Regex::new(said.as_str().unwrap()).expect("a pattern");
                value.as_str().is_none_or(|text| pattern.is_match(text))
            }
            "minimum" => value
                .as_i64()
                .is_none_or(|number| number >= said.as_i64().unwrap()),
            "maximum" => value
                .as_i64()
                .is_none_or(|number| number <= said.as_i64().unwrap()),
            "anyOf" => said
                .as_array()
                .unwrap()
                .iter()
                .any(|one| complaint(one, value, at).is_none()),
            _ => true,
        };
        if !is_right {
            return Some(format!("{at}: {keyword} {said}, and there is {value}"));
        }
    }
    let keys = value.as_object().into_iter().flatten();
    let mut inner = keys
        .filter_map(|(key, value)| complaint(schema["properties"].get(key)?, value, &format!("{at}.{key}")));
    let items = value
        .as_array()
        .filter(|_| schema.get("items").is_some())
        .into_iter()
        .flatten();
    let mut items = items.filter_map(|item| complaint(&schema["items"], item, at));
    inner.next().or_else(|| items.next())
}

fn complains(text: &str) -> Option<String> {
    let value: toml::Table = toml::from_str(text).unwrap();
    complaint(&schema(), &serde_json::to_value(&value).unwrap(), "file")
}

#[test]
fn the_file_for_editors_is_up_to_date() {
    let kept = fs::read_to_string(here().join("site.schema.json")).unwrap_or_default();
    assert!(
        kept == json_schema(),
        "run: cargo run -p patronus-config --example schema"
    );
}

#[test]
fn examples_are_right_by_the_schema() {
    let mut count = 0;
    for entry in fs::read_dir(here().join("examples")).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(
            complains(&fs::read_to_string(&path).unwrap()),
            None,
            "{}",
            path.display()
        );
        count += 1;
    }
    assert!(count >= 7);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn whatever_the_parser_takes_the_schema_takes(bytes in prop::collection::vec(any::<u8>(), 0..160)) {
        let text = file(&bytes);
        parse(&text).unwrap();
        prop_assert_eq!(complains(&text), None);
    }
}

/// A file with one table that has what it needs, but for this key, and this line more. Tables within one: `table.inner`.
fn with_line(table: &Table, within: Option<&Key>, without: &str, line: &str) -> String {
    let mut text = String::new();
    if table.name != "site" {
        text.push_str("[site]\nprivate_key_file = 'site.key'\n");
    }
    if table.name == "remote" {
        text.push_str("[[link]]\nid = 9\ninterface = 'wan'\n");
    }
    let header = match within {
        Some(inner) => {
            text.push_str(&needed(table, ""));
            format!("[[{}.{}]]\n", table.name, inner.name)
        }
        None => String::new(),
    };
    match within {
        None => text.push_str(&needed(table, without)),
        Some(inner) => {
            text.push_str(&header);
            text.push_str(&lines(keys_within(inner), without));
        }
    }
    // What some keys need beside them.
    let beside = match (table.name, without) {
        ("policy", "src_ports" | "dst_ports") => "protocol = 'udp'\n",
        ("policy", "class") => {
            return text.replace("'drop'", "'route'").replace("\"drop\"", "\"route\"") + line + "\n";
        }
        ("policy", "via") => return text.replace("\"drop\"", "\"via\"") + line + "\n",
        ("lan", "interface") | ("bgp", _) => "",
        ("peer", "ping") => "allowed_ips = [\"10.1.0.0/16\"]\n",
        ("peer", "ping_interval") => "allowed_ips = [\"10.1.0.0/16\"]\nping = \"10.1.0.1\"\n",
        ("link", "device") => "port = \"dpdk\"\n",
        ("link", "mtu") => "port = \"dpdk\"\ndevice = \"0000:03:00.0\"\n",
        // Which it is then anyway.
        ("link", "data_cap") => "metered = true\n",
        ("link", "data_cap_day") => "metered = true\ndata_cap = \"20GB\"\n",
        ("lan", "device") => "interface = \"lan0\"\nport = \"dpdk\"\n",
        ("lan", "mtu") => "interface = \"lan0\"\nport = \"dpdk\"\ndevice = \"0000:03:00.0\"\n",
        ("lan", _) if within.is_none() => "interface = 'eth1'\n",
        _ => "",
    };
    text + beside + line + "\n"
}

fn needed(table: &Table, without: &str) -> String {
    let header = if table.several {
        format!("[[{}]]\n", table.name)
    } else {
        format!("[{}]\n", table.name)
    };
    let interface = if table.name == "lan" && without.is_empty() {
        "interface = 'eth1'\n"
    } else {
        ""
    };
    header + &lines(table.keys, without) + interface
}

fn lines(keys: &[Key], without: &str) -> String {
    let needed = keys
        .iter()
        .filter(|key| key.without == Without::Needed && key.name != without);
    needed
        .map(|key| format!("{} = {}\n", key.name, key.example))
        .collect()
}

fn keys_within(key: &Key) -> &'static [Key] {
    match key.kind {
        Kind::Tables(keys) => keys,
        _ => panic!("{} has no tables", key.name),
    }
}

/// Each table and its keys, and those of tables within.
fn all() -> Vec<(&'static Table, Option<&'static Key>, &'static [Key])> {
    let mut all = Vec::new();
    for table in &TABLES {
        all.push((table, None, table.keys));
        let inner = table
            .keys
            .iter()
            .filter(|key| matches!(key.kind, Kind::Tables(_)));
        all.extend(inner.map(|key| (table, Some(key), keys_within(key))));
    }
    all
}

/// [bgp] is refused whatever it says, when nothing else is wrong: that is taken for "understood" here.
fn parsed(text: &str) -> Result<Option<Config>, String> {
    match parse(text) {
        Ok(config) => Ok(Some(config)),
        Err(error) if error.message().contains("does not speak BGP") => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// The parser says which keys it knows, in a hint.
#[test]
fn the_parser_knows_the_same_keys() {
    for (table, within, keys) in all() {
        let text = with_line(table, within, "zzzzzzzz", "zzzzzzzz = 1");
        let error = parse(&text).unwrap_err();
        let known = error.hint().and_then(|hint| hint.strip_prefix("known here: "));
        let mut known: BTreeSet<&str> = known.unwrap_or_else(|| panic!("{error}")).split(", ").collect();
        if table.name == "remote" {
            // Understood, to be refused with the reason.
            known.retain(|key| !key.starts_with("ping"));
        }
        let ours: BTreeSet<&str> = keys.iter().map(|key| key.name).collect();
        assert_eq!(known, ours, "{}", table.name);
    }
    let error = parse("[zzzzzzzz]\n").unwrap_err();
    let known: BTreeSet<&str> = error
        .hint()
        .unwrap()
        .strip_prefix("known here: ")
        .unwrap()
        .split(", ")
        .collect();
    assert_eq!(known, TABLES.iter().map(|table| table.name).collect());
}

/// Examples are understood, what is needed is missed, and a default changes nothing.
#[test]
fn the_parser_takes_examples_and_defaults() {
    for (table, within, keys) in all() {
        for key in keys {
            let place = format!("{}.{}", table.name, key.name);
            let line = format!("{} = {}", key.name, key.example);
            let text = with_line(table, within, key.name, &line);
            let with = parsed(&text).unwrap_or_else(|error| panic!("{place}: {error}\n{text}"));
            assert_eq!(complains(&text), None, "{place}");
            let text = with_line(table, within, key.name, "");
            match key.without {
                Without::Needed => {
                    let said = parsed(&text).expect_err(&place);
                    assert!(said.contains("is missing"), "{place}: {said}");
                }
                Without::Nothing => {}
                Without::Default(value) => {
                    let without = parsed(&text).unwrap_or_else(|error| panic!("{place}: {error}"));
                    let line = format!("{} = {value}", key.name);
                    let text = with_line(table, within, key.name, &line);
                    let default = parsed(&text).unwrap_or_else(|error| panic!("{place}: {error}"));
                    assert_eq!(default, without, "{place}");
                    assert!(
                        with.is_none() || with != default,
                        "{place}: the example is the default"
                    );
                }
            }
        }
    }
}

/// What is said to change while the engine runs is what differences say.
#[test]
fn restarts_are_those_of_differences() {
    for table in TABLES.iter().filter(|table| table.name != "bgp") {
        for key in table.keys.iter().filter(|key| key.without != Without::Needed) {
            let place = format!("{}.{}", table.name, key.name);
            // Without these the file is not right.
            if matches!(
                (table.name, key.name),
                ("lan", "interface") | ("policy", "via") | (_, "device")
            ) {
                continue;
            }
            let with = with_line(table, None, key.name, &format!("{} = {}", key.name, key.example));
            let without = with_line(table, None, key.name, "");
            let with = parse(&with).unwrap_or_else(|error| panic!("{place}: {error}"));
            let without = parse(&without).unwrap_or_else(|error| panic!("{place}: {error}"));
            let plan = diff(&without, &with);
            assert!(!plan.is_empty(), "{place} is not told");
            let restarts = plan.changes.iter().any(|change| change.restart.is_some());
            assert_eq!(restarts, !key.reloads, "{place}\n{plan}");
            assert!(
                key.reloads || ["control", "metrics"].contains(&table.name) || plan.restarts(Process::Engine),
                "{place}"
            );
        }
    }
}

/// The tables of docs/config.md have these keys, in this order, with these defaults.
#[test]
fn the_document_says_the_same() {
    let text = fs::read_to_string(here().join("../docs/config.md")).unwrap();
    for table in TABLES.iter().filter(|table| table.name != "remote") {
        let heading = if table.several {
            format!("## [[{}]]", table.name)
        } else {
            format!("## [{}]", table.name)
        };
        let section = text
            .split("\n## ")
            .find(|section| heading[3..] == *section.lines().next().unwrap_or_default());
        let section = section.unwrap_or_else(|| panic!("{heading} is missing"));
        let rows = section.lines().filter(|line| line.starts_with("| `"));
        let cells = |row: &'_ str| -> Vec<String> {
            let row = row.trim_start_matches('|');
            row.split('|').map(|cell| cell.trim().to_owned()).collect()
        };
        // Tables of keys have six columns, and a cell behind the last line.
        let rows: Vec<Vec<String>> = rows.map(cells).filter(|row| row.len() == 7).collect();
        // `src`, `dst`: what is said of both.
        let named: Vec<(&str, &Vec<String>)> = rows
            .iter()
            .flat_map(|row| row[0].split(", ").map(move |name| (name.trim_matches('`'), row)))
            .collect();
        let names: Vec<&str> = named.iter().map(|(name, _)| *name).collect();
        let keys: Vec<&str> = table.keys.iter().map(|key| key.name).collect();
        assert_eq!(names, keys, "{heading}");
        for (key, (_, row)) in table.keys.iter().zip(&named) {
            let place = format!("{heading} {}: {row:?}", key.name);
            match key.without {
                Without::Needed => assert!(row[2].starts_with("needed"), "{place}"),
                Without::Default("[]") => assert!(row[2].starts_with("none"), "{place}"),
                Without::Default(value) => {
                    let is_it = [value.to_owned(), format!("`{value}`")]
                        .iter()
                        .any(|value| row[2].starts_with(value));
                    assert!(is_it, "{place}");
                }
                Without::Nothing => assert!(!row[2].is_empty() && row[2] != "needed", "{place}"),
            }
            let reloads = if key.reloads { "yes" } else { "no" };
            assert_eq!(row[4], reloads, "{place}");
        }
    }
}

/// And so does the table of classes that are built in.
#[test]
fn the_document_has_the_built_in_classes() {
    let text = fs::read_to_string(here().join("../docs/config.md")).unwrap();
    for class in patronus_config::steering::built_in() {
        let shown = |limit: Option<String>| limit.map_or("any".to_owned(), |limit| format!("`\"{limit}\"`"));
        let row = format!(
            "| `{}` | {} | {} | {} |",
            class.name.get_ref().as_str(),
            shown(class.latency.map(|limit| limit.get_ref().to_string())),
            shown(class.jitter.map(|limit| limit.get_ref().to_string())),
            shown(class.loss.map(|limit| limit.get_ref().to_string())),
        );
        assert!(text.contains(&row), "{row}");
    }
}

#[test]
fn what_is_wrong_is_seen_by_an_editor() {
    let site = "[site]\nprivate_key_file = 'k'\n";
    for (text, expected) in [
        ("[engine]\nworkers = 65", "maximum"),
        ("[engine]\nworkers = '2'", "type"),
        ("[engine]\nspin = '5'", "pattern"),
        ("[engine]\nworker = 1", "additionalProperties"),
        ("[[peer]]\nname = 'hub'", "required"),
        ("[[peer]]\npublic_key = 'xTIB'", "pattern"),
        ("[[policy]]\naction = 'dorp'", "enum"),
        ("[[policy]]\naction = 'drop'\ndscp = 64", "anyOf"),
        ("[[route]]\nprefix = '10.0.0.0/8'\nvia = true", "anyOf"),
        ("[link]\nid = 1", "type"),
    ] {
        let said = complains(&format!("{site}{text}")).unwrap_or_else(|| panic!("{text}"));
        assert!(said.contains(&format!(": {expected} ")), "{text}: {said}");
    }
}
