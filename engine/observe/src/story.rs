//! A trace for people: the records of one packet, in order, with a line for each.

use std::collections::HashMap;
use std::fmt::{self, Write};

use base64ct::{Base64, Encoding};

use crate::head::Head;
use crate::record::{Exit, Point, Record};

/// Stories that are told at a time: who begins more than that ends the oldest.
const OPEN_MAX: usize = 4096;

/// A key as `wg` writes it.
pub fn key(key: &[u8; 32]) -> String {
    Base64::encode_string(key)
}

/// What has happened to a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Story {
    /// What was told about it, in order.
    pub records: Vec<Record>,
}

/// A point of a packet's way, as it is shown.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// The point's name.
    pub point: &'static str,
    /// Nanoseconds since the first one.
    pub after: u64,
    /// What was decided there, in words.
    pub verdict: String,
}

/// Puts records together to stories.
#[derive(Default)]
pub struct Stories {
    open: HashMap<u32, Story>,
}

impl Stories {
    /// Takes a record, in the order of time, and returns the stories that are over by that.
    pub fn add(&mut self, record: Record) -> Vec<Story> {
        let mut over = Vec::new();
        let point = Point::of(record.point);
        if matches!(point, Some(Point::LanRx | Point::WanRx)) {
            // The frame holds another packet now: what became of the one before, nobody has told.
            over.extend(self.open.remove(&record.frame));
        }
        let story = self
            .open
            .entry(record.frame)
            .or_insert_with(|| Story { records: Vec::new() });
        story.records.push(record);
        if matches!(
            point,
            Some(Point::LanTx | Point::WanTx | Point::Drop | Point::SlowPath)
        ) {
            over.extend(self.open.remove(&record.frame));
        }
        if self.open.len() > OPEN_MAX {
            let oldest = self.open.values().min_by_key(|story| story.records[0].time);
            let oldest = oldest.map(|story| story.records[0].frame);
            over.extend(oldest.and_then(|frame| self.open.remove(&frame)));
        }
        over
    }

    /// The stories that nobody told the end of.
    pub fn end(self) -> Vec<Story> {
        let mut rest: Vec<Story> = self.open.into_values().collect();
        rest.sort_by_key(|story| story.records[0].time);
        rest
    }
}

impl Story {
    /// Whose packet it is: the first record that knows its addresses.
    fn named(&self) -> &Record {
        let known = self.records.iter().find(|record| record.src.get().is_some());
        known.unwrap_or(&self.records[0])
    }

    /// One line: which packet.
    pub fn title(&self, head: &Head) -> String {
        let (first, named) = (&self.records[0], self.named());
        let time = first.time.wrapping_add(head.wall_offset);
        let mut text = format!("{}.{:09} ", time / 1_000_000_000, time % 1_000_000_000);
        let end = |ip: Option<std::net::IpAddr>, port: u16| match (ip, port) {
            (Some(ip), 0) => ip.to_string(),
            (Some(ip), port) => std::net::SocketAddr::new(ip, port).to_string(),
            (None, _) => "?".to_owned(),
        };
        let (from, to) = (
            end(named.src.get(), named.src_port),
            end(named.dst.get(), named.dst_port),
        );
        let protocol = match named.protocol {
            1 => "ICMP".to_owned(),
            6 => "TCP".to_owned(),
            17 => "UDP".to_owned(),
            58 => "ICMPv6".to_owned(),
            other => format!("protocol {other}"),
        };
        let _ = match named.src.get() {
            Some(_) => write!(text, "{from} > {to}, {protocol}, {} bytes", named.length),
            None => match named.endpoint() {
                Some(endpoint) if named.inbound != 0 => {
                    write!(text, "from {endpoint}, {} bytes", named.length)
                }
                Some(endpoint) => write!(text, "to {endpoint}, {} bytes", named.length),
                None => write!(text, "no IP packet, {} bytes", named.length),
            },
        };
        text
    }

    /// A line for each point.
    pub fn steps(&self, head: &Head) -> Vec<Step> {
        let first = self.records[0].time;
        let step = |record: &Record| Step {
            point: Point::of(record.point).map_or("?", Point::name),
            after: record.time.saturating_sub(first),
            verdict: verdict(record, head),
        };
        self.records.iter().map(step).collect()
    }

    /// All of it, for a terminal.
    pub fn text(&self, head: &Head) -> String {
        let mut text = self.title(head);
        for Step {
            point,
            after,
            verdict,
        } in self.steps(head)
        {
            let _ = write!(
                text,
                "\n{:>12.3} us  {point:<10} {verdict}",
                after as f64 / 1000.0
            );
        }
        if let Some(last) = self.records.last()
            && !matches!(
                Point::of(last.point),
                Some(Point::LanTx | Point::WanTx | Point::Drop | Point::SlowPath)
            )
        {
            text.push_str("\n                 (no more was seen of it)");
        }
        text
    }
}

fn verdict(record: &Record, head: &Head) -> String {
    let place = record.place;
    match Point::of(record.point) {
        Some(Point::LanRx) => format!("from {}, worker {}", Shown(head.lan(place)), record.worker),
        Some(Point::LanTx) => format!("to {}", Shown(head.lan(place))),
        Some(Point::WanRx) => format!(
            "from {} on {}, worker {}",
            Endpoint(record),
            Shown(head.link(place)),
            record.worker
        ),
        Some(Point::WanTx) => format!(
            "to {} by {}, {} bytes",
            Endpoint(record),
            Shown(head.link(place)),
            record.length
        ),
        Some(Point::Route) => routed(record, head),
        Some(Point::Hold) => format!("waits for its next hop on {} to be found", Shown(head.lan(place))),
        Some(Point::Stage) => format!("waits for a session with {}", Peer(record)),
        Some(Point::Encap) => format!("sealed for {}", Peer(record)),
        Some(Point::Decap) => format!("opened, from {}", Peer(record)),
        Some(Point::TakeOver) => format!("by worker {}, from worker {place}", record.worker),
        Some(Point::SlowPath) => "a handshake message".to_owned(),
        Some(Point::Drop) if record.peer != crate::NO_PEER => {
            format!("{}, {}", head.reason(record.reason), Peer(record))
        }
        Some(Point::Drop) => head.reason(record.reason).to_owned(),
        Some(Point::End) | None => String::new(),
    }
}

fn routed(record: &Record, head: &Head) -> String {
    let by = match (record.policy, record.group) {
        (0, 0) => "no policy".to_owned(),
        (0, group) => format!("no policy, next-hop group {group}"),
        (policy, 0) => format!("policy {policy}"),
        (policy, group) => format!("policy {policy}, next-hop group {group}"),
    };
    let lan = Shown(head.lan(record.place));
    let to = match Exit::of(record.exit) {
        Some(Exit::Tunnel) => format!("into the tunnel to {}", Peer(record)),
        Some(Exit::Lan) => format!("to a next hop on {lan}"),
        Some(Exit::Neighbour) => format!("to its receiver on {lan}"),
        Some(Exit::Unreachable) => "nobody knows where its next hop is".to_owned(),
        Some(Exit::Discard) => "nowhere, says the route".to_owned(),
        Some(Exit::Policy) => "nowhere, says the policy".to_owned(),
        Some(Exit::NoRoute) => "no route".to_owned(),
        Some(Exit::None) | None => "?".to_owned(),
    };
    format!("{by}: {to}")
}

/// A name, safe for a terminal.
struct Shown<'a>(&'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.escape_debug().fmt(f)
    }
}

struct Endpoint<'a>(&'a Record);

impl fmt::Display for Endpoint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.endpoint() {
            Some(endpoint) => endpoint.fmt(f),
            None => f.write_str("nobody"),
        }
    }
}

struct Peer<'a>(&'a Record);

impl fmt::Display for Peer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.key {
            // Removed since.
            key if key == [0; 32] => write!(f, "peer number {}", self.0.peer)?,
            bytes => f.write_str(&key(&bytes))?,
        }
        match self.0.lane {
            [0, 0, _] => Ok(()),
            [local, remote, lane] => write!(f, ", link {local} to link {remote}, lane {lane}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::head::Port;

    fn head() -> Head {
        let port = |name: &str| Port {
            name: name.to_owned(),
            ethernet: false,
        };
        Head {
            lans: vec![port("wg0")],
            links: vec![port("eth\u{1b}0")],
            reasons: vec!["route-policy".to_owned()],
            ..Head::default()
        }
    }

    fn record(point: Point, frame: u32, time: u64) -> Record {
        Record {
            point: point as u8,
            frame,
            time,
            ..Record::NONE
        }
    }

    #[test]
    fn a_story_has_a_beginning_and_an_end() {
        let mut stories = Stories::default();
        assert!(stories.add(record(Point::LanRx, 1, 0)).is_empty());
        assert!(stories.add(record(Point::LanRx, 2, 10)).is_empty());
        assert!(stories.add(record(Point::Encap, 1, 20)).is_empty());
        let [one] = &stories.add(record(Point::WanTx, 1, 1500))[..] else {
            panic!("the first is over")
        };
        assert_eq!(one.records.len(), 3);
        let text = one.text(&head());
        assert!(
            text.contains("1.500 us  wan-tx     to nobody by eth\\u{1b}0"),
            "{text}"
        );
        let [two] = &stories.add(record(Point::WanRx, 2, 2000))[..] else {
            panic!("the frame has another packet")
        };
        assert!(two.text(&head()).contains("no more was seen"));
        let [three] = &stories.end()[..] else {
            panic!("one is left")
        };
        assert_eq!(three.records[0].time, 2000);
    }

    #[test]
    fn a_verdict_is_in_words() {
        let head = head();
        let base = record(Point::Route, 1, 0);
        let dropped = Record {
            policy: 3,
            exit: Exit::Policy as u8,
            ..base
        };
        assert_eq!(verdict(&dropped, &head), "policy 3: nowhere, says the policy");
        let tunnel = Record {
            group: 2,
            exit: Exit::Tunnel as u8,
            peer: 5,
            key: [1; 32],
            lane: [1, 2, 0],
            ..base
        };
        assert_eq!(
            verdict(&tunnel, &head),
            "no policy, next-hop group 2: into the tunnel to AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=, link 1 to link 2, lane 0"
        );
        assert_eq!(verdict(&record(Point::Drop, 1, 0), &head), "route-policy");
    }
}
