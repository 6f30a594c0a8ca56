//! `check`: what is wrong with a site's file, and what should be looked at.

use std::fmt::Write as _;
use std::path::Path;

use patronus_config::{Config, key_file};
use patronus_io::netlink::RouteQuery;
use serde_json::json;

use crate::output::{Outcome, Output, Wrong, escaped};

/// `patronus check`.
pub fn check(output: Output, file: &Path) -> Outcome {
    let config = load(file)?;
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

/// A site's file whose key files can be used.
pub fn load(file: &Path) -> Result<Config, Wrong> {
    let text = patronus_config::read(file).map_err(|error| {
        let is_there = file.symlink_metadata().is_ok();
        let wrong = Wrong::config(&error);
        match is_there {
            true => wrong,
            false => wrong.hint("`patronus init` makes one"),
        }
    })?;
    let config = patronus_config::parse_file(file, &text).map_err(|error| Wrong::config(&error))?;
    for key in config.key_files() {
        key_file::open(key).map_err(|error| Wrong::config(&error.in_file(file, &text)))?;
    }
    Ok(config)
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
