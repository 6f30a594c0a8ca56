//! Paths and their quality as text, for `show`, `why` and `top`. What was not measured is a dash.

use patronus_control::view::{Health, Measured, RemotePath, Window};

use crate::output::Table;
use crate::show::bytes;

/// What stands of each path in front of everything else that is said of it.
pub const COMMON: [&str; 10] = [
    "REMOTE",
    "PATH",
    "STATE",
    "FOR",
    "RTT",
    "P99",
    "JITTER IN",
    "OUT",
    "LOSS IN",
    "OUT",
];

/// The same of this one.
pub fn common(remote: &str, links: [u64; 2], health: &Health, lately: &Window) -> [String; 10] {
    let [state, age] = state(health);
    [
        remote.to_owned(),
        format!("{}-{}", links[0], links[1]),
        state,
        age,
        millis(lately.rtt_p50),
        millis(lately.rtt_p99),
        millis(lately.jitter_in),
        millis(lately.jitter_out),
        percent(lately.loss_in),
        percent(lately.loss_out),
    ]
}

/// `patronus show paths`.
pub fn paths(paths: Vec<RemotePath>) -> String {
    let more = ["MTU", "LANES UP", "SENT", "RECEIVED", "CLASSES"];
    let mut table = Table::new(&[&COMMON[..], &more].concat());
    for path in paths {
        let lately = path.lately.unwrap_or_default();
        let health = path.health.unwrap_or_default();
        let links = [path.local_link, path.remote_link];
        let row = common(&path.remote, links, &health, &lately);
        table.row(row.into_iter().chain([
            health.mtu.map_or_else(none, |mtu| mtu.to_string()),
            format!("{} of {}", path.lanes_up, path.lanes),
            bytes(path.sent_bytes),
            bytes(path.received_bytes),
            classes(&health),
        ]));
    }
    table.to_string()
}

/// `patronus show quality`: each window of each path.
pub fn quality(paths: Vec<Measured>) -> String {
    let mut table = Table::new(&[
        "REMOTE",
        "PATH",
        "STATE",
        "WINDOW",
        "SAMPLES",
        "RTT",
        "P95",
        "P99",
        "JITTER IN",
        "OUT",
        "PACKETS IN",
        "LOSS",
        "PACKETS OUT",
        "LOSS",
    ]);
    for path in paths {
        for window in &path.windows {
            let count = |packets: Option<u32>| packets.map_or_else(none, |packets| packets.to_string());
            let missed = match window.missed {
                0 => String::new(),
                missed => format!(" ({missed} not seen)"),
            };
            table.row([
                path.remote.clone(),
                format!("{}-{}", path.local_link, path.remote_link),
                path.health.state.clone(),
                format!("{} s", window.seconds),
                format!("{}{missed}", window.samples),
                millis(window.rtt_p50),
                millis(window.rtt_p95),
                millis(window.rtt_p99),
                millis(window.jitter_in),
                millis(window.jitter_out),
                count(window.packets_in),
                percent(window.loss_in),
                count(window.packets_out),
                percent(window.loss_out),
            ]);
        }
    }
    table.to_string()
}

/// A path's state, with why it is not up, and for how long.
fn state(health: &Health) -> [String; 2] {
    if health.state.is_empty() {
        return [none(), none()];
    }
    let state = match health.state.as_str() {
        "up" => "up".to_owned(),
        state => format!("{state}: {}", health.why),
    };
    [state, age(health.state_age)]
}

/// The classes that go by a path.
pub fn classes(health: &Health) -> String {
    match health.classes.is_empty() {
        true => none(),
        false => health.classes.join(","),
    }
}

/// For what was not measured.
pub fn none() -> String {
    "-".to_owned()
}

/// Milliseconds, from seconds.
pub fn millis(seconds: Option<f64>) -> String {
    seconds.map_or_else(none, |seconds| format!("{:.1} ms", seconds * 1e3))
}

/// Parts of a hundred, from a part of one.
pub fn percent(part: Option<f64>) -> String {
    part.map_or_else(none, |part| format!("{:.2} %", part * 100.0))
}

/// A time that has passed, in its largest unit.
pub fn age(seconds: f64) -> String {
    match seconds as u64 {
        seconds @ 0..=119 => format!("{seconds} s"),
        seconds @ 120..=7199 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_measured_is_a_dash() {
        let path = RemotePath {
            remote: "hub".to_owned(),
            local_link: 1,
            remote_link: 2,
            ..RemotePath::default()
        };
        let text = paths(vec![path]);
        let row = text.lines().nth(1).expect("a row");
        let words: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(words.join(" "), "hub 1-2 - - - - - - - - - 0 of 0 0 B 0 B -");
        assert_eq!(millis(Some(0.0231)), "23.1 ms");
        assert_eq!(percent(Some(0.021)), "2.10 %");
        assert_eq!(age(7300.0), "2 h");
    }
}
