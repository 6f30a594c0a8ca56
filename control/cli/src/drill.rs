//! `failover-test`: a drill on the user's own links. For a while nothing goes by one of them, and what becomes of its paths and flows is told.
//!
//! The engine does it: it drops what comes from the link and what is to go to it, and judges the silence as it always does; nothing is pretended but the cut. What is told is what
//! the control process has written down meanwhile, and what the engine has counted.

use std::path::Path;
use std::time::{Duration, Instant};

use patronus_control::client::Client;
use patronus_control::decisions::Record;
use patronus_control::message::{Order, Topic};
use patronus_control::view::{Drop, Link};
use serde::Serialize;

use crate::ask::connect;
use crate::options::Drill;
use crate::output::{Outcome, Output, Table, Wrong, escaped};
use crate::show::read;

/// How often the log is looked at: often enough that no look finds more than it can be told of, and that the connection is not taken for a forgotten one.
const LOOK: Duration = Duration::from_millis(250);
/// How long paths may take to be up again: one that has been down for long is probed every 5 s, and wants three probes in a row.
const BACK: Duration = Duration::from_secs(40);
/// Records of the log that are asked for at once.
const RECORDS: usize = 1000;

/// What came of it. Times are seconds since the drill began.
#[derive(Debug, Default, Serialize)]
struct Report {
    link: u64,
    interface: String,
    seconds: u32,
    paths: Vec<Noticed>,
    moves: Vec<Moved>,
    /// Datagrams that the engine did not send and did not take, probes among them.
    dropped_sent: u64,
    dropped_received: u64,
}

/// A path over the link.
#[derive(Debug, Serialize)]
struct Noticed {
    remote: String,
    path: String,
    why: String,
    down_after: f64,
    /// None: it was not, as long as was waited for it.
    up_after: Option<f64>,
}

/// Flows of a class that went by another path.
#[derive(Debug, Serialize)]
struct Moved {
    remote: String,
    class: String,
    from: Option<String>,
    to: Option<String>,
    after: f64,
    why: String,
}

/// Runs the drill and tells.
pub fn drill(output: Output, socket: &Path, options: &Drill) -> Outcome {
    let mut client = connect(socket)?;
    let link = find(&mut client, &options.link)?;
    let mut log = Log::default();
    log.read(&mut client)?;
    log.records.clear();
    let before = dropped(&mut client)?;
    let order = Order::Drill {
        link: link.id as u8,
        seconds: options.seconds,
    };
    let begun = client.ask(order)?["at"].as_f64().unwrap_or_default();
    if !output.json {
        let said =
            "Ctrl-C ends this command and not the drill; `patronus failover-test --link LINK --end` does";
        eprintln!(
            "nothing goes by link {} ({}) for {} s; {said}",
            link.id,
            escaped(&link.interface),
            options.seconds
        );
    }
    let over = Instant::now() + Duration::from_secs(options.seconds.into());
    while Instant::now() < over {
        std::thread::sleep(LOOK.min(over.saturating_duration_since(Instant::now())));
        log.read(&mut client)?;
    }
    let after = dropped(&mut client)?;
    let report = |records: &[Record]| Report {
        link: link.id,
        interface: link.interface.clone(),
        seconds: options.seconds,
        dropped_sent: after.0.saturating_sub(before.0),
        dropped_received: after.1.saturating_sub(before.1),
        ..told(records, link.id, begun)
    };
    loop {
        log.read(&mut client)?;
        let report = report(&log.records);
        let all_back = report.paths.iter().all(|path| path.up_after.is_some());
        if all_back || over.elapsed() > BACK {
            return output.print(&report, text(&report));
        }
        std::thread::sleep(LOOK);
    }
}

/// `failover-test --end`.
pub fn end(output: Output, socket: &Path, options: &Drill) -> Outcome {
    let mut client = connect(socket)?;
    let link = find(&mut client, &options.link)?;
    let done = client.ask(Order::Drill {
        link: link.id as u8,
        seconds: 0,
    })?;
    output.print(&done, "the drill is over\n")
}

/// The link of this name or number.
fn find(client: &mut Client, wanted: &str) -> Result<Link, Wrong> {
    let what = Topic::Links;
    let links: Vec<Link> = read(&client.ask(Order::Show { what })?)?;
    let names: Vec<String> = links.iter().map(|link| link.interface.clone()).collect();
    let is_it = |link: &Link| link.interface == wanted || link.id.to_string() == wanted;
    links.into_iter().find(is_it).ok_or_else(|| {
        let said = match names.is_empty() {
            true => "this site has no links".to_owned(),
            false => format!("there are: {}", names.join(", ")),
        };
        Wrong::failed(format!("there is no link {wanted}")).hint(said)
    })
}

/// What has been read of the decision log.
#[derive(Default)]
struct Log {
    records: Vec<Record>,
    last: u64,
}

impl Log {
    /// Reads what is new.
    fn read(&mut self, client: &mut Client) -> Result<(), Wrong> {
        let order = Order::Decisions {
            remote: None,
            class: None,
            after: self.last,
            count: Some(RECORDS),
        };
        let new: Vec<Record> = read(&client.ask(order)?)?;
        self.last = new.last().map_or(self.last, |record| record.sequence);
        self.records.extend(new);
        Ok(())
    }
}

/// Datagrams that drills have dropped so far: that were to be sent, and that came.
fn dropped(client: &mut Client) -> Result<(u64, u64), Wrong> {
    let what = Topic::Drops;
    let drops: Vec<Drop> = read(&client.ask(Order::Show { what })?)?;
    let of = |reason| {
        drops
            .iter()
            .find(|drop| drop.reason == reason)
            .map_or(0, |drop| drop.packets)
    };
    Ok((of("drill-sent"), of("drill-received")))
}

/// What the log says of the link's paths, and of flows, since this moment.
fn told(records: &[Record], link: u64, begun: f64) -> Report {
    let mut report = Report::default();
    let ours = format!("{link}-");
    for record in records {
        let after = record.at - begun;
        let path = record.path.as_deref().filter(|path| path.starts_with(&ours));
        let known = report
            .paths
            .iter_mut()
            .find(|one| one.remote == record.remote && Some(&*one.path) == path);
        match (record.kind.as_str(), path, known) {
            ("down", Some(path), None) => report.paths.push(Noticed {
                remote: record.remote.clone(),
                path: path.to_owned(),
                why: record.why.clone(),
                down_after: after,
                up_after: None,
            }),
            ("up", Some(_), Some(known)) => known.up_after = known.up_after.or(Some(after)),
            ("moved", ..) => report.moves.push(Moved {
                remote: record.remote.clone(),
                class: record.class.clone().unwrap_or_default(),
                from: record.from.clone(),
                to: record.to.clone(),
                after,
                why: record.why.clone(),
            }),
            _ => {}
        }
    }
    report
}

fn text(report: &Report) -> String {
    let seconds = |value: f64| format!("{value:.2} s");
    if report.paths.is_empty() {
        return format!(
            "link {} ({}) has no path to a remote that was up and went down: nothing to tell\n",
            report.link,
            escaped(&report.interface)
        );
    }
    let mut paths = Table::new(&["REMOTE", "PATH", "DOWN AFTER", "WHY", "UP AGAIN AFTER"]);
    for path in &report.paths {
        let down = path.down_after;
        let up = path.up_after.map_or_else(|| "not yet".to_owned(), seconds);
        let (remote, path, why) = (path.remote.clone(), path.path.clone(), path.why.clone());
        paths.row([remote, path, seconds(down), why, up]);
    }
    let mut moves = Table::new(&["REMOTE", "CLASS", "FROM", "TO", "AFTER", "WHY"]);
    let named = |path: &Option<String>| path.clone().unwrap_or_else(|| "-".to_owned());
    for moved in &report.moves {
        let (remote, class, why) = (moved.remote.clone(), moved.class.clone(), moved.why.clone());
        let (from, to) = (named(&moved.from), named(&moved.to));
        moves.row([remote, class, from, to, seconds(moved.after), why]);
    }
    let moves = match report.moves.is_empty() {
        true => "no class has moved\n".to_owned(),
        false => moves.to_string(),
    };
    format!(
        "{paths}{moves}packets lost: {} sent, {} received, probes among them\n",
        report.dropped_sent, report.dropped_received
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(at: f64, kind: &str, path: Option<&str>, moved: Option<(&str, &str)>) -> Record {
        Record {
            at,
            kind: kind.to_owned(),
            remote: "paris".to_owned(),
            class: moved.map(|_| "voice".to_owned()),
            path: path.map(str::to_owned),
            from: moved.map(|moved| moved.0.to_owned()),
            to: moved.map(|moved| moved.1.to_owned()),
            why: "down".to_owned(),
            ..Record::default()
        }
    }

    #[test]
    fn what_the_log_says_of_the_link_is_told() {
        let records = [
            record(100.25, "down", Some("1-1"), None),
            record(100.26, "down", Some("11-1"), None),
            record(100.27, "moved", None, Some(("1-1", "2-2"))),
            record(111.5, "up", Some("1-1"), None),
            record(120.0, "up", Some("1-1"), None),
        ];
        let report = told(&records, 1, 100.0);
        assert_eq!(report.paths.len(), 1, "{report:?}");
        assert_eq!(
            (report.paths[0].down_after, report.paths[0].up_after),
            (0.25, Some(11.5))
        );
        assert_eq!(report.moves.len(), 1);
        let text = text(&report);
        for word in ["paris", "1-1", "0.25 s", "11.50 s", "voice", "2-2", "0.27 s"] {
            assert!(text.contains(word), "{word}: {text}");
        }
    }

    #[test]
    fn a_path_that_stays_down_is_said_to() {
        let report = told(&[record(100.5, "down", Some("3-1"), None)], 3, 100.0);
        assert_eq!(report.paths[0].up_after, None);
        assert!(text(&report).contains("not yet"));
        assert!(text(&Report::default()).contains("nothing to tell"));
    }
}
