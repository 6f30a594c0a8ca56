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
    page.one(
        "patronus_decisions_unwritten_total",
        "counter",
        "Decisions that were not written to disk because it was too slow, or full.",
        known.decisions.unwritten(),
    );
    page.text
}

/// What is told of a path.
struct PathValues {
    labels: String,
    report: PathReport,
    lately: Summary,
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
        let interface = viewer.interface();
        let now = viewer.now();
        let labels: Vec<String> = peers.iter().map(|peer| labels(interface, peer)).collect();
        let mut family = |name: &str, kind, help, of: &dyn Fn(&Peer) -> u64| {
            self.head(name, kind, help);
            for (peer, labels) in peers.iter().zip(&labels) {
                let _ = writeln!(self.text, "{name}{{{labels}}} {}", of(peer));
            }
        };
        family(
            "wireguard_sent_bytes_total",
            "counter",
            "Bytes sent to the peer.",
            &|peer| peer.sent_bytes,
        );
        family(
            "wireguard_received_bytes_total",
            "counter",
            "Bytes received from the peer.",
            &|peer| peer.received_bytes,
        );
        let handshake = |peer: &Peer| peer.handshake_age.map_or(0, |age| now.saturating_sub(age));
        let help = "Seconds from 1970 to the last handshake; 0: never.";
        family("wireguard_latest_handshake_seconds", "gauge", help, &handshake);
        family(
            "patronus_tunnel_up",
            "gauge",
            "Whether there is a session.",
            &|peer| u64::from(peer.state == "up"),
        );
    }
}

impl Page {
    /// Paths to remotes. What was not measured in the last ten seconds has no line.
    fn paths(&mut self, known: &Known, uapi_dir: &Path) {
        let Ok(viewer) = Viewer::new(known, uapi_dir) else {
            return;
        };
        let now = boot_time();
        let paths = viewer.each_path(|_, _, path, called| PathValues {
            labels: path_labels(called, path.report.path),
            report: path.report,
            lately: path.window.summary(now, 10),
        });
        if paths.is_empty() {
            return;
        }
        let help = "Whether both sides hear each other.";
        self.each("patronus_path_up", "gauge", help, &paths, |path, line| {
            line("", f64::from(u8::from(path.report.state == PathState::Up)));
        });
        let help = "Round trip of the last 10 seconds.";
        self.each(
            "patronus_path_rtt_seconds",
            "gauge",
            help,
            &paths,
            |path, line| {
                let of = &path.lately;
                for (quantile, rtt) in [("0.5", of.p50), ("0.95", of.p95), ("0.99", of.p99)] {
                    if let Some(rtt) = rtt {
                        line(&format!("quantile=\"{quantile}\""), seconds(rtt));
                    }
                }
            },
        );
        let help = "Jitter (RFC 3550) of the last 10 seconds.";
        self.each(
            "patronus_path_jitter_seconds",
            "gauge",
            help,
            &paths,
            |path, line| {
                for (way, jitter) in ways(path.lately.jitter) {
                    jitter.into_iter().for_each(|jitter| line(way, seconds(jitter)));
                }
            },
        );
        let help = "Part of the packets of the last 10 seconds that was lost.";
        self.each("patronus_path_loss_ratio", "gauge", help, &paths, |path, line| {
            for (way, packets) in ways(path.lately.packets) {
                let ppm = packets.and_then(Counted::ppm);
                ppm.into_iter().for_each(|ppm| line(way, part(ppm)));
            }
        });
        let help = "Bytes of datagrams.";
        self.each(
            "patronus_path_bytes_total",
            "counter",
            help,
            &paths,
            |path, line| {
                line(IN, path.report.received_bytes as f64);
                line(OUT, path.report.sent_bytes as f64);
            },
        );
        let help = "Packets that one side sent, as far as the other has told; see patronus_path_packets_received_total.";
        self.each(
            "patronus_path_packets_sent_total",
            "counter",
            help,
            &paths,
            |path, line| {
                line(IN, path.report.in_sent as f64);
                line(OUT, path.report.out_sent as f64);
            },
        );
        let help = "Those that had arrived by then: the difference was lost.";
        self.each(
            "patronus_path_packets_received_total",
            "counter",
            help,
            &paths,
            |path, line| {
                line(IN, path.report.in_received as f64);
                line(OUT, path.report.out_received as f64);
            },
        );
        let help = "The largest inner packet that is known to pass.";
        self.each("patronus_path_mtu_bytes", "gauge", help, &paths, |path, line| {
            path.report.mtu.into_iter().for_each(|mtu| line("", mtu.into()));
        });
    }

    /// A family with what `of` has to say of each path: labels beside the path's own, and a value.
    fn each(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        paths: &[PathValues],
        of: impl Fn(&PathValues, &mut dyn FnMut(&str, f64)),
    ) {
        self.head(name, kind, help);
        for path in paths {
            let mut line = |labels: &str, value: f64| {
                let comma = if labels.is_empty() { "" } else { "," };
                let _ = writeln!(self.text, "{name}{{{}{comma}{labels}}} {value}", path.labels);
            };
            of(path, &mut line);
        }
    }
}

/// Towards us, and towards the remote.
const IN: &str = "direction=\"in\"";
const OUT: &str = "direction=\"out\"";

fn ways<T>(each: EachWay<T>) -> [(&'static str, T); 2] {
    [(IN, each.inward), (OUT, each.outward)]
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
