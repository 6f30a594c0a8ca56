//! The page of metrics: the Prometheus text format (<https://prometheus.io/docs/instrumenting/exposition_formats/>, version 0.0.4), in base units.
//!
//! Tunnels have the names that WireGuard exporters give them, so that existing dashboards go on: `wireguard_sent_bytes_total`,
//! `wireguard_received_bytes_total`, `wireguard_latest_handshake_seconds`, with the labels `interface`, `public_key`, `allowed_ips`, `friendly_name`.
//! What the engine counts is read where it counts it, without asking it, and called `patronus_` and its own name. Labels come from the file and
//! the engine's directory: there are as many as there are peers, links, workers and reasons.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::path::Path;

use patronus_abi::channel::{PathName, PathReport, PathState};

use crate::caps::Usage;
use crate::decisions::{part, seconds};
use crate::history::boot_time;
use crate::known::Known;
use crate::message::Topic;
use crate::quality::window::{Counted, EachWay, Summary};
use crate::view::{Peer, Viewer};

/// The page, as it is now.
pub fn page(known: &Known, uapi_dir: &Path) -> String {
    let mut page = Page::default();
    let attached = u8::from(known.engine.is_some());
    let pending = u8::from(known.confirm_by.is_some());
    page.one(
        "patronus_engine_attached",
        "gauge",
        "Whether an engine is attached.",
        attached,
    );
    page.one(
        "patronus_confirmation_pending",
        "gauge",
        "Whether what is in force has to be confirmed.",
        pending,
    );
    page.one(
        "patronus_applied_total",
        "counter",
        "Sites put in force since the control process started.",
        known.applied,
    );
    page.one(
        "patronus_refused_total",
        "counter",
        "Sites that the engine refused.",
        known.refusals,
    );
    if let Some(engine) = &known.engine {
        page.one(
            "patronus_generation",
            "gauge",
            "Number of the site that the engine has in force.",
            engine.generation,
        );
        page.counters(engine.statistics.values().map(|value| {
            let kind = if value.is_counter { "counter" } else { "gauge" };
            (value.name, value.labels, kind, value.value)
        }));
    }
    page.tunnels(known, uapi_dir);
    page.paths(known, uapi_dir);
    page.caps(known);
    page.one(
        "patronus_decisions_unwritten_total",
        "counter",
        "Decisions that were not written to disk because it was too slow, or full.",
        known.decisions.unwritten(),
    );
    page.text
}

/// Metrics of one name.
struct Family {
    kind: &'static str,
    /// Labels and value.
    lines: Vec<(String, u64)>,
}

#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing into memory cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.head(name, kind, help);
        let _ = writeln!(self.text, "{name} {value}");
    }

    /// What the engine counts, those of a name together.
    fn counters(&mut self, values: impl Iterator<Item = (String, String, &'static str, u64)>) {
        let mut families: BTreeMap<String, Family> = BTreeMap::new();
        for (name, labels, kind, value) in values {
            // The directory is the engine's: what is no name is left out.
            if is_name(&name) && !labels.contains(['\n', '{', '}']) {
                let family = families.entry(name).or_insert_with(|| Family {
                    kind,
                    lines: Vec::new(),
                });
                family.lines.push((labels, value));
            }
        }
        for (name, Family { kind, lines }) in families {
            let _ = writeln!(self.text, "# TYPE patronus_{name} {kind}");
            for (labels, value) in lines {
                let _ = match labels.is_empty() {
                    true => writeln!(self.text, "patronus_{name} {value}"),
                    false => writeln!(self.text, "patronus_{name}{{{labels}}} {value}"),
                };
            }
        }
    }

    fn tunnels(&mut self, known: &Known, uapi_dir: &Path) {
        let Ok(viewer) = Viewer::new(known, uapi_dir) else {
            return;
        };
        let Some(peers) = viewer.show(Topic::Peers).ok() else {
            return;
        };
        let Ok(peers) = serde_json::from_value::<Vec<Peer>>(peers) else {
            return;
        };
        let (interface, now) = (viewer.interface(), viewer.now());
        let told = |peer| (labels(interface, &peer), Tunnel { peer, now });
        let told: Vec<(String, Tunnel)> = peers.into_iter().map(told).collect();
        self.families(&OF_TUNNELS, &told);
    }

    /// Paths to remotes. What was not measured in the last ten seconds has no line, and without an engine nothing has.
    fn paths(&mut self, known: &Known, uapi_dir: &Path) {
        let Ok(viewer) = Viewer::new(known, uapi_dir) else {
            return;
        };
        let now = boot_time();
        let paths = viewer.each_path(|_, _, path, called| {
            let lately = path.window.summary(now, 10);
            let report = path.report;
            (path_labels(called, report.path), PathValues { report, lately })
        });
        self.families(&OF_PATHS, &paths);
    }

    /// Links with a data cap.
    fn caps(&mut self, known: &Known) {
        let usages = known.usages.get().into_iter();
        let labels = |usage: &Usage| {
            let (link, interface) = (usage.link, quoted(&usage.interface));
            format!("link=\"{link}\",interface=\"{interface}\"")
        };
        let usages: Vec<(String, Usage)> = usages.map(|usage| (labels(&usage), usage)).collect();
        self.families(&OF_CAPS, &usages);
    }

    /// What families have to say of each of these, with the labels that it has; nothing at all where there are none.
    fn families<T>(&mut self, families: &[FamilyOf<T>], all: &[(String, T)]) {
        if all.is_empty() {
            return;
        }
        for family in families {
            let name = family.name;
            self.head(name, family.kind, family.help);
            for (labels, one) in all {
                let mut line = |more: &str, value: f64| {
                    let comma = if more.is_empty() { "" } else { "," };
                    let _ = writeln!(self.text, "{name}{{{labels}{comma}{more}}} {value}");
                };
                (family.of)(one, &mut line);
            }
        }
    }
}

/// Takes labels beside those that a thing has anyway, and a value.
type Line<'a> = &'a mut dyn FnMut(&str, f64);

/// Metrics of one name, about things of one kind.
struct FamilyOf<T> {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    of: fn(&T, Line<'_>),
}

/// What is told of a tunnel.
struct Tunnel {
    peer: Peer,
    /// Seconds from 1970.
    now: u64,
}

const OF_TUNNELS: [FamilyOf<Tunnel>; 4] = [
    FamilyOf {
        name: "wireguard_sent_bytes_total",
        kind: "counter",
        help: "Bytes sent to the peer.",
        of: |tunnel, line| line("", tunnel.peer.sent_bytes as f64),
    },
    FamilyOf {
        name: "wireguard_received_bytes_total",
        kind: "counter",
        help: "Bytes received from the peer.",
        of: |tunnel, line| line("", tunnel.peer.received_bytes as f64),
    },
    FamilyOf {
        name: "wireguard_latest_handshake_seconds",
        kind: "gauge",
        help: "Seconds from 1970 to the last handshake; 0: never.",
        of: |tunnel, line| {
            let at = tunnel
                .peer
                .handshake_age
                .map(|age| tunnel.now.saturating_sub(age));
            line("", at.unwrap_or(0) as f64);
        },
    },
    FamilyOf {
        name: "patronus_tunnel_up",
        kind: "gauge",
        help: "Whether there is a session.",
        of: |tunnel, line| line("", f64::from(u8::from(tunnel.peer.state == "up"))),
    },
];

/// What is told of a path.
struct PathValues {
    report: PathReport,
    lately: Summary,
}

const OF_PATHS: [FamilyOf<PathValues>; 8] = [
    FamilyOf {
        name: "patronus_path_up",
        kind: "gauge",
        help: "Whether both sides hear each other.",
        of: |path, line| line("", f64::from(u8::from(path.report.state == PathState::Up))),
    },
    FamilyOf {
        name: "patronus_path_rtt_seconds",
        kind: "gauge",
        help: "Round trip of the last 10 seconds.",
        of: |path, line| {
            let of = &path.lately;
            for (quantile, rtt) in [("0.5", of.p50), ("0.95", of.p95), ("0.99", of.p99)] {
                if let Some(rtt) = rtt {
                    line(&format!("quantile=\"{quantile}\""), seconds(rtt));
                }
            }
        },
    },
    FamilyOf {
        name: "patronus_path_jitter_seconds",
        kind: "gauge",
        help: "Jitter (RFC 3550) of the last 10 seconds.",
        of: |path, line| each_way(path.lately.jitter, line, |jitter| jitter.map(seconds)),
    },
    FamilyOf {
        name: "patronus_path_loss_ratio",
        kind: "gauge",
        help: "Part of the packets of the last 10 seconds that was lost.",
        of: |path, line| {
            let lost = |packets: Option<Counted>| packets.and_then(Counted::ppm).map(part);
            each_way(path.lately.packets, line, lost);
        },
    },
    FamilyOf {
        name: "patronus_path_bytes_total",
        kind: "counter",
        help: "Bytes of datagrams.",
        of: |path, line| counted(path.report.received_bytes, path.report.sent_bytes, line),
    },
    FamilyOf {
        name: "patronus_path_packets_sent_total",
        kind: "counter",
        help: "Packets that one side sent, as far as the other has told; see patronus_path_packets_received_total.",
        of: |path, line| counted(path.report.in_sent, path.report.out_sent, line),
    },
    FamilyOf {
        name: "patronus_path_packets_received_total",
        kind: "counter",
        help: "Those that had arrived by then: the difference was lost.",
        of: |path, line| counted(path.report.in_received, path.report.out_received, line),
    },
    FamilyOf {
        name: "patronus_path_mtu_bytes",
        kind: "gauge",
        help: "The largest inner packet that is known to pass.",
        of: |path, line| path.report.mtu.into_iter().for_each(|mtu| line("", mtu.into())),
    },
];

const OF_CAPS: [FamilyOf<Usage>; 2] = [
    FamilyOf {
        name: "patronus_link_data_used_bytes",
        kind: "gauge",
        help: "Bytes that have gone by the link this month, both ways.",
        of: |usage, line| line("", usage.used as f64),
    },
    FamilyOf {
        name: "patronus_link_data_cap_bytes",
        kind: "gauge",
        help: "Bytes that may go by the link in a month.",
        of: |usage, line| line("", usage.cap as f64),
    },
];

/// Towards us, and towards the remote.
const IN: &str = "direction=\"in\"";
const OUT: &str = "direction=\"out\"";

fn each_way<T>(each: EachWay<T>, line: Line<'_>, value: impl Fn(T) -> Option<f64>) {
    for (way, one) in [(IN, each.inward), (OUT, each.outward)] {
        value(one).into_iter().for_each(|value| line(way, value));
    }
}

fn counted(inward: u64, outward: u64, line: Line<'_>) {
    line(IN, inward as f64);
    line(OUT, outward as f64);
}

fn path_labels(remote: &str, path: PathName) -> String {
    let (local, far) = (path.local, path.remote);
    format!(
        "remote=\"{}\",local_link=\"{local}\",remote_link=\"{far}\"",
        quoted(remote)
    )
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn labels(interface: &str, peer: &Peer) -> String {
    format!(
        "interface=\"{}\",public_key=\"{}\",allowed_ips=\"{}\",friendly_name=\"{}\"",
        quoted(interface),
        quoted(&peer.public_key),
        quoted(&peer.allowed_ips.join(",")),
        quoted(peer.name.as_deref().unwrap_or_default())
    )
}

/// A label's value: backslash, quotation mark and line feed are escaped.
fn quoted(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_without_an_engine_says_so() {
        let page = page(&Known::default(), Path::new("/nonexistent"));
        assert!(page.contains("\npatronus_engine_attached 0\n"), "{page}");
        assert!(!page.contains("wireguard_"));
    }

    #[test]
    fn counters_of_a_name_stand_together_and_nonsense_is_left_out() {
        let mut page = Page::default();
        let value = |name: &str, labels: &str, value| (name.to_owned(), labels.to_owned(), "counter", value);
        page.counters(
            [
                value("drops_total", "worker=\"0\"", 1),
                value("sleeps_total", "", 2),
                value("drops_total", "worker=\"1\"", 3),
                value("evil name", "", 4),
                value("evil_total", "x=\"\"} 1\n", 5),
            ]
            .into_iter(),
        );
        assert_eq!(
            page.text,
            "# TYPE patronus_drops_total counter\npatronus_drops_total{worker=\"0\"} 1\npatronus_drops_total{worker=\"1\"} 3\n\
             # TYPE patronus_sleeps_total counter\npatronus_sleeps_total 2\n"
        );
    }

    #[test]
    fn label_values_are_escaped() {
        assert_eq!(quoted("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
