//! `check`: what is wrong with a site's file, and what should be looked at.

use std::fmt::Write as _;
use std::path::Path;

use patronus_config::{Config, key_file};
use patronus_io::netlink::RouteQuery;
use serde_json::json;

use crate::output::{Outcome, Output, Wrong, escaped};

/// `patronus check`.
pub fn check(output: Output, file: &Path) -> Outcome {
    let config = patronus_config::load(file).map_err(|error| Wrong::config(&error))?;
    for key in config.key_files() {
        let opened =
            key_file::open_regular(key).map_err(|error| key_file::KeyError::Io(key.to_owned(), error));
        let checked = opened.and_then(|opened| key_file::check_open(&opened, key));
        checked.map_err(|error| wrong_key(&error.to_string()))?;
    }
    let mut notes: Vec<String> = config.warnings().iter().map(ToString::to_string).collect();
    notes.extend(missing(&config));
    let said = format!(
        "{}: nothing is wrong; tunnels {}, links {}, LANs {}, routes {}, policies {}\n",
        file.display(),
        config.peers.len(),
        config.links.len(),
        config.lans.len(),
        config.routes.len(),
        config.policies.len()
    );
    let mut text = escaped(&said);
    for note in &notes {
        let _ = writeln!(text, "{}", output.warn(&format!("note: {}", escaped(note))));
    }
    output.print(&json!({ "file": file, "ok": true, "notes": notes }), text)
}

fn wrong_key(message: &str) -> Wrong {
    patronus_control::message::Failure::new(patronus_control::message::Code::BadConfig, message).into()
}

/// Interfaces that are not there: they may come, so they are no error.
fn missing(config: &Config) -> Vec<String> {
    let links = config.links.iter().map(|link| link.interface.get_ref().as_str());
    let lans = config.lans.iter().filter_map(|lan| lan.interface.as_ref());
    let all = links.chain(lans.map(|name| name.get_ref().as_str()));
    let Ok(routes) = RouteQuery::new() else {
        return Vec::new();
    };
    let missing = all.filter(|name| matches!(routes.running(name), Ok(None)));
    missing
        .map(|name| format!("interface {name} is not there, or has no carrier"))
        .collect()
}
