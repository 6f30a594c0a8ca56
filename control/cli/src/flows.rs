//! Flows as text, for `show flows` and `top`: where they go, and how fast.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use patronus_control::flows::Flow;
use serde::Deserialize;

use crate::output::Table;
use crate::paths::none;
use crate::show::bytes;

/// What is answered about flows.
#[derive(Debug, Default, Deserialize)]
pub struct Shown {
    /// Those that were found.
    pub flows: Vec<Flow>,
    /// There are no more.
    pub complete: bool,
}

/// What tells a flow from others, that of another worker among them.
type Key = (IpAddr, IpAddr, u8, u16, u16, u8, u64);

/// Flows as they were a while ago, so that what has come since is known.
#[derive(Debug, Default)]
pub struct Rates {
    before: Option<Look>,
}

/// What a look found: bytes by flow, and whether that were all flows.
#[derive(Debug)]
struct Look {
    at: Instant,
    bytes: HashMap<Key, u64>,
    complete: bool,
}

/// A flow, and how many bytes it has in a second.
#[derive(Debug)]
pub struct Busy {
    /// The flow.
    pub flow: Flow,
    /// None: it has not been looked at twice, and may not be new.
    pub rate: Option<u64>,
}

impl Rates {
    /// The busiest flows first; those that are looked at for the first time by how lately they had a packet.
    pub fn take(&mut self, now: Instant, shown: Shown) -> Vec<Busy> {
        let Shown { flows, complete } = shown;
        let look = Look {
            at: now,
            bytes: flows.iter().map(|flow| (key(flow), flow.bytes)).collect(),
            complete,
        };
        let before = self.before.replace(look);
        let rate = |flow: &Flow| {
            let before = before.as_ref()?;
            let seconds = now.saturating_duration_since(before.at).as_secs_f64();
            let new = match before.bytes.get(&key(flow)) {
                Some(bytes) => flow.bytes.saturating_sub(*bytes),
                None if before.complete => flow.bytes,
                None => return None,
            };
            (seconds > 0.0).then(|| (new as f64 / seconds) as u64)
        };
        let busy = |flow: Flow| Busy {
            rate: rate(&flow),
            flow,
        };
        let mut all: Vec<Busy> = flows.into_iter().map(busy).collect();
        let idle = |busy: &Busy| busy.flow.idle.unwrap_or(f64::MAX);
        all.sort_by(|a, b| b.rate.cmp(&a.rate).then(idle(a).total_cmp(&idle(b))));
        all
    }
}

fn key(flow: &Flow) -> Key {
    (
        flow.src,
        flow.dst,
        flow.protocol,
        flow.src_port,
        flow.dst_port,
        flow.dscp,
        flow.worker,
    )
}

/// Classes and paths with what goes by them, the most first: flows that had a packet in the last second or have a rate, and their bytes.
pub fn by_class_and_path(busy: &[Busy]) -> Table {
    let mut sums: HashMap<(&str, &str, &str), (usize, u64)> = HashMap::new();
    for Busy { flow, rate } in busy {
        let path = flow.path.as_deref().unwrap_or("-");
        let to = flow.peer.as_deref().unwrap_or(&flow.exit);
        let sum = sums.entry((&flow.class, to, path)).or_default();
        sum.0 += usize::from(rate.is_some_and(|rate| rate > 0));
        sum.1 += rate.unwrap_or(0);
    }
    let mut sums: Vec<_> = sums.into_iter().collect();
    sums.sort_unstable_by_key(|(names, (_, rate))| (std::cmp::Reverse(*rate), *names));
    let mut table = Table::new(&["CLASS", "GOES TO", "PATH", "FLOWS", "RATE"]);
    for ((class, to, path), (count, rate)) in sums {
        table.row([
            class.to_owned(),
            to.to_owned(),
            path.to_owned(),
            count.to_string(),
            format!("{}/s", bytes(rate)),
        ]);
    }
    table
}

/// The flows one by one.
pub fn busiest(busy: &[Busy]) -> Table {
    let mut table = Table::new(&[&["RATE"], &COMMON[..]].concat());
    for Busy { flow, rate } in busy {
        let rate = rate.map_or_else(none, |rate| format!("{}/s", bytes(rate)));
        table.row(std::iter::once(rate).chain(row(flow)));
    }
    table
}

/// `patronus show flows`.
pub fn all(shown: &Shown) -> String {
    if shown.flows.is_empty() && shown.complete {
        return "no flows; a site without Ethernet LANs, networks, routes and policies remembers none\n"
            .to_owned();
    }
    let mut table = Table::new(&[&COMMON[..], &["BYTES"]].concat());
    for flow in &shown.flows {
        table.row(row(flow).into_iter().chain([bytes(flow.bytes)]));
    }
    let mut text = table.to_string();
    if !shown.complete {
        text.push_str(
            "there are more: the engine tells of 1,000 at a time, and these were looked for among them\n",
        );
    }
    text
}

const COMMON: [&str; 7] = ["FROM", "TO", "PROTOCOL", "CLASS", "IDLE", "GOES TO", "PATH"];

fn row(flow: &Flow) -> [String; 7] {
    let at = |ip: IpAddr, port: u16| match port {
        0 => ip.to_string(),
        port => SocketAddr::new(ip, port).to_string(),
    };
    let protocol = match flow.protocol {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmpv6".to_owned(),
        other => other.to_string(),
    };
    [
        at(flow.src, flow.src_port),
        at(flow.dst, flow.dst_port),
        protocol,
        flow.class.clone(),
        flow.idle.map_or_else(none, |idle| format!("{idle:.0} s")),
        flow.peer.clone().unwrap_or_else(|| flow.exit.clone()),
        flow.path.clone().unwrap_or_else(none),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn flow(port: u16, bytes: u64, path: &str) -> Flow {
        Flow {
            src: [10, 1, 0, 5].into(),
            dst: [10, 2, 0, 7].into(),
            protocol: 17,
            src_port: port,
            dst_port: 5060,
            dscp: 0,
            worker: 0,
            idle: Some(0.1),
            bytes,
            policy: None,
            class: "voice".to_owned(),
            exit: "tunnel".to_owned(),
            peer: Some("hub".to_owned()),
            path: Some(path.to_owned()),
        }
    }

    #[test]
    fn that_there_are_no_flows_is_said() {
        let mut shown = Shown {
            flows: Vec::new(),
            complete: true,
        };
        assert!(all(&shown).starts_with("no flows"));
        shown.complete = false;
        assert!(all(&shown).contains("there are more"));
    }

    #[test]
    fn the_busiest_flows_are_first_and_sums_are_by_class_and_path() {
        let mut rates = Rates::default();
        let start = Instant::now();
        let shown = |flows, complete| Shown { flows, complete };
        let first = rates.take(
            start,
            shown(vec![flow(1, 1000, "1-1"), flow(2, 5000, "2-2")], true),
        );
        assert!(first.iter().all(|busy| busy.rate.is_none()));
        let later = start + Duration::from_secs(2);
        let flows = vec![flow(2, 5000, "2-2"), flow(1, 9000, "1-1"), flow(3, 600, "2-2")];
        let busy = rates.take(later, shown(flows, false));
        let told: Vec<(u16, Option<u64>)> = busy.iter().map(|busy| (busy.flow.src_port, busy.rate)).collect();
        assert_eq!(told, [(1, Some(4000)), (3, Some(300)), (2, Some(0))]);
        // There were more before than were told of: 4 may be an old one.
        let last = rates.take(
            later + Duration::from_secs(1),
            shown(vec![flow(4, 7000, "1-1")], true),
        );
        assert_eq!(last[0].rate, None);
        let text = by_class_and_path(&busy).to_string();
        let rows: Vec<String> = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            rows,
            [
                "CLASS GOES TO PATH FLOWS RATE",
                "voice hub 1-1 1 4.0 kB/s",
                "voice hub 2-2 1 300 B/s"
            ]
        );
        assert!(
            busiest(&busy)
                .to_string()
                .lines()
                .nth(1)
                .is_some_and(|line| line.starts_with("4.0 kB/s  10.1.0.5:1"))
        );
    }
}
