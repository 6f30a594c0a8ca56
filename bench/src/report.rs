//! Medians over the rounds, the table for people and the rows for programs.

use crate::tests_of::{Packets, Sample, Test};
use serde::Serialize;

/// One line of the report: a test of a subject, medians over the rounds. `None` is `null`: not measured by this test.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Row {
    /// The subject.
    pub peer: String,
    /// The test.
    pub test: &'static str,
    /// Goodput, megabits of payload a second.
    pub mbps: Option<f64>,
    /// Packets a second.
    pub pps: Option<f64>,
    /// Part of the packets lost.
    pub loss: Option<f64>,
    /// CPU of both daemons, seconds per 10^9 bytes of payload.
    pub daemon_cpu_s_per_gb: Option<f64>,
    /// CPU of both daemons, microseconds per packet delivered.
    pub daemon_cpu_us_per_packet: Option<f64>,
    /// CPU of the whole machine, generator and sink included, microseconds per packet delivered.
    pub machine_cpu_us_per_packet: Option<f64>,
    /// Round trip, median, microseconds.
    pub rtt_p50_us: Option<f64>,
    /// Round trip, 99th percentile, microseconds.
    pub rtt_p99_us: Option<f64>,
    /// CPU of both daemons on an idle tunnel, percent of one core.
    pub idle_cpu_percent: Option<f64>,
    /// How many rounds the medians are of.
    pub rounds: usize,
    /// Least value over the rounds of the test's own figure, [`headline`].
    pub min: Option<f64>,
    /// Greatest value of it.
    pub max: Option<f64>,
    /// In half of the rounds or more, the generator was the limit and not the subject.
    pub generator_limited: bool,
}

/// Median; of an even number, the mean of the two in the middle. `None` of nothing.
pub fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 0 => Some((values[middle - 1] + values[middle]) / 2.0),
        _ => Some(values[middle]),
    }
}

/// The figure that a test is about.
fn headline(test: Test, sample: &Sample) -> Option<f64> {
    match test {
        Test::Tcp(_) => sample.mbps,
        Test::Highest(_) => sample.pps,
        Test::Common => sample.cpu_us_per_packet,
        Test::RttIdle | Test::RttLoaded => sample.rtt_p50_us,
        Test::Idle => sample.idle_percent,
    }
}

impl Row {
    /// Medians of `samples`.
    pub fn new(peer: &str, test: Test, samples: &[Sample]) -> Row {
        let of = |field: fn(&Sample) -> Option<f64>| median(samples.iter().filter_map(field));
        let heads = || samples.iter().filter_map(|sample| headline(test, sample));
        let limited = samples.iter().filter(|sample| sample.generator_limited).count();
        Row {
            peer: peer.to_owned(),
            test: test.name(),
            mbps: of(|s| s.mbps),
            pps: of(|s| s.pps),
            loss: of(|s| s.loss),
            daemon_cpu_s_per_gb: of(|s| s.cpu_s_per_gb),
            daemon_cpu_us_per_packet: of(|s| s.cpu_us_per_packet),
            machine_cpu_us_per_packet: of(|s| s.machine_us_per_packet),
            rtt_p50_us: of(|s| s.rtt_p50_us),
            rtt_p99_us: of(|s| s.rtt_p99_us),
            idle_cpu_percent: of(|s| s.idle_percent),
            rounds: samples.len(),
            min: heads().reduce(f64::min),
            max: heads().reduce(f64::max),
            generator_limited: limited > 0 && limited * 2 >= samples.len(),
        }
    }

    /// The test's own figure.
    pub fn value(&self) -> Option<f64> {
        match Test::by_name(self.test)? {
            Test::Tcp(_) => self.mbps,
            Test::Highest(_) => self.pps,
            Test::Common => self.daemon_cpu_us_per_packet,
            Test::RttIdle | Test::RttLoaded => self.rtt_p50_us,
            Test::Idle => self.idle_cpu_percent,
        }
    }
}

/// The rows as JSON, an array, one row a line.
pub fn json(rows: &[Row]) -> serde_json::Result<String> {
    let lines: serde_json::Result<Vec<String>> = rows.iter().map(serde_json::to_string).collect();
    Ok(format!("[\n{}\n]\n", lines?.join(",\n")))
}

/// A title and a figure's unit for people: what is shown, unit, factor from the row's figure.
pub fn caption(test: Test) -> (&'static str, &'static str, f64) {
    match test {
        Test::Tcp(1) => ("TCP, 1 stream", "Mb/s", 1.0),
        Test::Tcp(_) => ("TCP, 4 streams", "Mb/s", 1.0),
        Test::Highest(Packets::Small) => ("UDP 64 B, highest loss-free rate", "kpps", 1e-3),
        Test::Highest(Packets::Large) => ("UDP 1,400 B, highest loss-free rate", "kpps", 1e-3),
        Test::Highest(Packets::Mixed) => ("UDP mix 7:4:1, highest loss-free rate", "kpps", 1e-3),
        Test::Highest(Packets::MixedFlow) => {
            ("UDP mix 7:4:1 in one flow, highest loss-free rate", "kpps", 1e-3)
        }
        Test::Common => ("UDP 64 B at 80 kpps, daemons' CPU", "\u{b5}s/packet", 1.0),
        Test::RttIdle => ("Round trip, idle, p50", "\u{b5}s", 1.0),
        Test::RttLoaded => ("Round trip beside paced TCP, p50", "\u{b5}s", 1.0),
        Test::Idle => ("Idle tunnel, daemons' CPU", "% of a core", 1.0),
    }
}

/// A figure with as many places as it deserves.
pub fn figure(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(v) if v.abs() >= 100.0 => format!("{v:.0}"),
        Some(v) if v.abs() >= 10.0 => format!("{v:.1}"),
        Some(0.0) => "0".to_owned(),
        Some(v) => format!("{v:.2}"),
    }
}

/// The table, as Markdown: a section a test, a line a subject.
pub fn table(rows: &[Row]) -> String {
    let mut text = String::new();
    for test in Test::every() {
        let of_test: Vec<&Row> = rows.iter().filter(|row| row.test == test.name()).collect();
        if of_test.is_empty() {
            continue;
        }
        let (title, unit, factor) = caption(test);
        text += &format!("\n{title} ({})\n\n", test.name());
        let columns = columns(test);
        let heads: Vec<&str> = columns.iter().map(|column| column.0).collect();
        text += &format!("| {:<16} | {unit} (min to max) | {} |\n", "", heads.join(" | "));
        text += &format!("|{}|\n", "---|".repeat(columns.len() + 2).trim_end_matches('|'));
        for row in of_test {
            let scaled = |value: Option<f64>| figure(value.map(|v| v * factor));
            let mark = if row.generator_limited { " *" } else { "" };
            let cells: Vec<String> = columns.iter().map(|column| (column.1)(row)).collect();
            text += &format!(
                "| {:<16} | {} ({} to {}){mark} | {} |\n",
                row.peer,
                scaled(row.value()),
                scaled(row.min),
                scaled(row.max),
                cells.join(" | ")
            );
        }
    }
    if rows.iter().any(|row| row.generator_limited) {
        text += "\n* the generator was the limit\n";
    }
    text
}

type Column = (&'static str, fn(&Row) -> String);

/// The further columns of a test.
fn columns(test: Test) -> Vec<Column> {
    let per_gb: Column = ("CPU s/GB", |row| figure(row.daemon_cpu_s_per_gb));
    let per_packet: Column = ("CPU \u{b5}s/packet", |row| figure(row.daemon_cpu_us_per_packet));
    let mbps: Column = ("Mb/s", |row| figure(row.mbps));
    let loss: Column = ("loss %", |row| {
        row.loss
            .map_or("-".to_owned(), |loss| format!("{:.4}", loss * 100.0))
    });
    let p99: Column = ("p99 \u{b5}s", |row| figure(row.rtt_p99_us));
    let rounds: Column = ("rounds", |row| row.rounds.to_string());
    match test {
        Test::Tcp(_) => vec![per_gb, rounds],
        Test::Highest(_) => vec![mbps, per_gb, per_packet, loss, rounds],
        Test::Common => vec![
            ("machine's \u{b5}s/packet", |row| {
                figure(row.machine_cpu_us_per_packet)
            }),
            ("kpps", |row| figure(row.pps.map(|pps| pps / 1e3))),
            loss,
            rounds,
        ],
        Test::RttIdle => vec![p99, loss, rounds],
        Test::RttLoaded => vec![p99, ("TCP Mb/s", |row| figure(row.mbps)), rounds],
        Test::Idle => vec![rounds],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median([]), None);
        assert_eq!(median([3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn rows_carry_every_promised_field() {
        let sample = Sample {
            mbps: Some(5.0),
            ..Sample::default()
        };
        let row = Row::new("patronus", Test::Tcp(1), &[sample]);
        let text = json(&[row]).unwrap();
        let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
        let promised = [
            "peer",
            "test",
            "mbps",
            "pps",
            "loss",
            "daemon_cpu_s_per_gb",
            "daemon_cpu_us_per_packet",
            "machine_cpu_us_per_packet",
            "rtt_p50_us",
            "rtt_p99_us",
            "rounds",
            "min",
            "max",
        ];
        for field in promised {
            assert!(parsed[0].get(field).is_some(), "{field} is missing");
        }
        assert_eq!(parsed[0]["mbps"], 5.0);
        assert!(parsed[0]["pps"].is_null());
    }

    #[test]
    fn table_has_a_line_for_each_subject() {
        let sample = Sample {
            pps: Some(80_000.0),
            loss: Some(0.0),
            generator_limited: true,
            ..Sample::default()
        };
        let test = Test::Highest(Packets::Small);
        let rows = ["no-tunnel", "patronus"].map(|peer| Row::new(peer, test, &[sample, sample, sample]));
        let text = table(&rows);
        assert!(
            text.contains("| patronus         | 80.0 (80.0 to 80.0) * |"),
            "{text}"
        );
        assert!(text.contains("* the generator was the limit"));
    }
}
