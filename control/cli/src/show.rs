//! `show`: what the control process answers, as text.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use patronus_control::caps::date;
use patronus_control::message::{FlowFilter, Order, Topic};
use patronus_control::view::{Data, Drop, Event, Lane, Link, Peer, Port, Route, Stage, Summary};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::ask::connect;
use crate::flows;
use crate::options::Flows;
use crate::output::{Outcome, Output, Table, Wrong, escaped};
use crate::paths;

/// `patronus show`.
pub fn show(output: Output, socket: &Path, what: Topic, wanted: &Flows) -> Outcome {
    let shown = connect(socket)?.ask(order(what, wanted)?)?;
    if output.json {
        return output.print(&shown, "");
    }
    let text = match what {
        Topic::Summary => summary(output, &read(&shown)?),
        Topic::Peers | Topic::Remotes => peers(&read::<Vec<Peer>>(&shown)?),
        Topic::Lanes => lanes(read(&shown)?),
        Topic::Paths => paths::paths(read(&shown)?),
        Topic::Quality => paths::quality(read(&shown)?),
        Topic::Routes => routes(read(&shown)?),
        Topic::Links => links(read(&shown)?),
        Topic::Ports => ports(read(&shown)?),
        Topic::Drops => drops(read(&shown)?),
        Topic::Stages => stages(read(&shown)?),
        Topic::Memory => memory(&read(&shown)?),
        Topic::Events => events(read(&shown)?),
        Topic::Flows => flows::all(&read(&shown)?),
    };
    output.print(&shown, text)
}

fn order(what: Topic, wanted: &Flows) -> Result<Order, Wrong> {
    let filter = FlowFilter {
        address: wanted.address.map(|network| network.to_string()),
        port: wanted.port,
        class: wanted.class.clone(),
    };
    match (what, filter == FlowFilter::default()) {
        (Topic::Flows, _) => Ok(Order::Flows(filter)),
        (_, true) => Ok(Order::Show { what }),
        (_, false) => Err(Wrong::usage("--address, --port and --class are for `show flows`")),
    }
}

/// An answer as what it should be.
pub fn read<T: DeserializeOwned>(value: &Value) -> Result<T, Wrong> {
    T::deserialize(value).map_err(|error| {
        Wrong::failed(format!("the control process answers something else: {error}"))
            .hint("do both programs have the same version?")
    })
}

fn summary(output: Output, summary: &Summary) -> String {
    let engine = match summary.engine {
        true => output.good("running"),
        false => output.bad("not running"),
    };
    let tunnels = format!("{} of {} up", summary.tunnels_up, summary.tunnels);
    let tunnels = match summary.tunnels_up == summary.tunnels {
        true => output.good(&tunnels),
        false => output.warn(&tunnels),
    };
    let mut text = format!(
        "site        {}\ninterface   {}\nengine      {engine}\ntunnels     {tunnels}\n",
        escaped(&summary.file.to_string_lossy()),
        escaped(&summary.interface)
    );
    if let Some(key) = &summary.public_key {
        let _ = writeln!(text, "public key  {}", escaped(key));
    }
    if summary.listen_port != 0 {
        let _ = writeln!(text, "UDP port    {}", summary.listen_port);
    }
    if let Some(seconds) = summary.confirm_within {
        let said = format!("confirm     within {seconds} s with `patronus confirm`, or it goes back\n");
        text.push_str(&output.warn(&said));
    }
    for note in &summary.notes {
        let said = format!("note        {}\n", escaped(note));
        text.push_str(&output.warn(&said));
    }
    text
}

fn peers(peers: &[Peer]) -> String {
    let mut table = Table::new(&[
        "NAME",
        "STATE",
        "ENDPOINT",
        "HANDSHAKE",
        "SENT",
        "RECEIVED",
        "NETWORKS",
    ]);
    for peer in peers {
        table.row([
            called(peer),
            peer.state.clone(),
            peer.endpoint
                .map_or("-".to_owned(), |endpoint| endpoint.to_string()),
            ago(peer.handshake_age),
            bytes(peer.sent_bytes),
            bytes(peer.received_bytes),
            peer.allowed_ips.join(","),
        ]);
    }
    let mut text = table.to_string();
    for peer in peers {
        if let Some(why) = &peer.why {
            let _ = writeln!(text, "{}: {}", escaped(&called(peer)), escaped(why));
        }
    }
    text
}

/// The name, or the beginning of the key.
fn called(peer: &Peer) -> String {
    let start = || peer.public_key.chars().take(8).chain("..".chars()).collect();
    peer.name.clone().unwrap_or_else(start)
}

fn lanes(lanes: Vec<Lane>) -> String {
    let mut table = Table::new(&[
        "REMOTE",
        "PATH",
        "LANE",
        "STATE",
        "ENDPOINT",
        "HANDSHAKE",
        "SENT",
        "RECEIVED",
    ]);
    for lane in lanes {
        table.row([
            lane.remote,
            format!("{}-{}", lane.local_link, lane.remote_link),
            lane.lane.to_string(),
            up(lane.up),
            lane.endpoint
                .map_or("-".to_owned(), |endpoint| endpoint.to_string()),
            ago(lane.handshake_age),
            bytes(lane.sent_bytes),
            bytes(lane.received_bytes),
        ]);
    }
    table.to_string()
}

fn routes(routes: Vec<Route>) -> String {
    let mut table = Table::new(&["PREFIX", "FROM", "VIA"]);
    for route in routes {
        let from = if route.dynamic { "protocol" } else { "file" };
        table.row([route.prefix, from.to_owned(), route.via.join(", ")]);
    }
    table.to_string()
}

fn links(links: Vec<Link>) -> String {
    let has_caps = links.iter().any(|link| link.data.is_some());
    let headings = ["LINK", "INTERFACE", "PORT", "STATE", "IPV4", "IPV6", "DATA CAP"];
    let mut table = Table::new(&headings[..headings.len() - usize::from(!has_caps)]);
    let route = |leads| if leads { "route" } else { "no route" }.to_owned();
    for link in links {
        let state = up(link.running);
        let (v4, v6) = (route(link.leads_v4), route(link.leads_v6));
        let row = [link.id.to_string(), link.interface, link.port, state, v4, v6];
        let data = has_caps.then(|| link.data.as_ref().map_or("-".to_owned(), data));
        table.row(row.into_iter().chain(data));
    }
    table.to_string()
}

/// How much of a data cap is used, and until when that counts.
fn data(data: &Data) -> String {
    let (used, cap) = (bytes(data.used_bytes), bytes(data.cap_bytes));
    format!("{used} of {cap}, anew on {}", date(data.begins_anew))
}

fn ports(ports: Vec<Port>) -> String {
    let mut table = Table::new(&["PORT", "COUNTER", "VALUE"]);
    for port in ports {
        for (counter, value) in port.counters.into_iter().filter(|(_, value)| *value > 0) {
            table.row([port.port.clone(), counter, value.to_string()]);
        }
    }
    table.to_string()
}

fn drops(drops: Vec<Drop>) -> String {
    if drops.is_empty() {
        return "no packet was dropped\n".to_owned();
    }
    let mut table = Table::new(&["REASON", "PACKETS"]);
    for drop in drops {
        table.row([drop.reason, drop.packets.to_string()]);
    }
    table.to_string()
}

fn stages(stages: Vec<Stage>) -> String {
    let mut table = Table::new(&["STAGE", "PACKETS", "BURSTS", "PACKETS/BURST", "CYCLES/PACKET"]);
    let ratio = |a: u64, b: u64| {
        if b == 0 {
            "-".to_owned()
        } else {
            format!("{:.1}", a as f64 / b as f64)
        }
    };
    for stage in stages {
        table.row([
            stage.stage,
            stage.packets.to_string(),
            stage.bursts.to_string(),
            ratio(stage.packets, stage.bursts),
            ratio(stage.cycles, stage.packets),
        ]);
    }
    table.to_string()
}

fn memory(values: &BTreeMap<String, u64>) -> String {
    let mut table = Table::new(&["WHAT", "VALUE"]);
    for (name, value) in values {
        table.row([name.replace('_', " "), value.to_string()]);
    }
    table.to_string()
}

fn events(events: Vec<Event>) -> String {
    let mut table = Table::new(&["WHEN", "WHAT", "WHO", "HAPPENED"]);
    for event in events {
        table.row([ago(Some(event.age as u64)), event.what, event.who, event.text]);
    }
    table.to_string()
}

fn up(up: bool) -> String {
    if up { "up" } else { "down" }.to_owned()
}

fn ago(seconds: Option<u64>) -> String {
    match seconds {
        None => "never".to_owned(),
        Some(seconds @ 0..=119) => format!("{seconds} s ago"),
        Some(seconds @ 120..=7199) => format!("{} min ago", seconds / 60),
        Some(seconds) => format!("{} h ago", seconds / 3600),
    }
}

/// Three figures and a unit, in powers of ten.
pub fn bytes(bytes: u64) -> String {
    let units = [
        (1_000_000_000_000, "TB"),
        (1_000_000_000, "GB"),
        (1_000_000, "MB"),
        (1000, "kB"),
    ];
    match units.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_for_people() {
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1500), "1.5 kB");
        assert_eq!(bytes(2_340_000_000), "2.3 GB");
        assert_eq!(ago(None), "never");
        assert_eq!(ago(Some(119)), "119 s ago");
        assert_eq!(ago(Some(120)), "2 min ago");
        assert_eq!(ago(Some(7200)), "2 h ago");
    }

    #[test]
    fn a_data_cap_is_shown_where_there_is_one() {
        let link = |id, data| Link {
            id,
            interface: format!("wan{id}"),
            port: "udp".to_owned(),
            running: true,
            leads_v4: true,
            leads_v6: false,
            data,
        };
        assert!(!links(vec![link(1, None)]).contains("CAP"));
        let data = Data {
            used_bytes: 16_200_000_000,
            cap_bytes: 20_000_000_000,
            begins_anew: 1_796_083_200,
        };
        let text = links(vec![link(1, None), link(2, Some(data))]);
        let rows: Vec<&str> = text.lines().collect();
        assert!(rows[1].ends_with("no route  -"), "{text}");
        assert!(
            rows[2].ends_with("16.2 GB of 20.0 GB, anew on 2026-12-01"),
            "{text}"
        );
    }
}
