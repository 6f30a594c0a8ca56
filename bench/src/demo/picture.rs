//! The picture of the story: goodput, round trip, loss and the links over time, the troubles as bands, the moves as numbered lines, and below what
//! they were for.

use super::record::{Move, Record, STEP, Step};
use crate::failover::stream::INTERVAL;
use crate::plot::text;
use std::fmt::Write;
use std::time::Duration;

const WIDTH: f64 = 1080.0;
const LEFT: f64 = 96.0;
const RIGHT: f64 = 28.0;
const PLOT: f64 = WIDTH - LEFT - RIGHT;
/// Where the markers of moves stand, and where the first panel begins.
const MARKERS: f64 = 82.0;
const TOP: f64 = 118.0;
/// Between panels; each has its title there.
const GAP: f64 = 34.0;
const ROW: f64 = 30.0;
const LINE: f64 = 19.0;
/// Moves so close to each other share a marker.
const TOGETHER: Duration = Duration::from_millis(1500);

const COLOURS: [&str; 4] = ["#0b6bcb", "#b8621b", "#2b8a3e", "#7048a8"];
const CUT: &str = "#e03131";
const BAD: &str = "#f08c00";

/// Where time and values are on the paper.
#[derive(Clone, Copy)]
struct Panel {
    top: f64,
    height: f64,
    /// Seconds from left to right.
    seconds: f64,
    /// The value at the upper edge.
    highest: f64,
}

impl Panel {
    fn x(self, at: Duration) -> f64 {
        LEFT + (at.as_secs_f64() / self.seconds).min(1.0) * PLOT
    }

    fn y(self, value: f64) -> f64 {
        self.top + self.height * (1.0 - (value / self.highest).clamp(0.0, 1.0))
    }

    fn bottom(self) -> f64 {
        self.top + self.height
    }

    fn below(self, height: f64, highest: f64) -> Panel {
        Panel {
            top: self.bottom() + GAP,
            height,
            highest,
            ..self
        }
    }
}

/// The SVG. `subtitle` is one line about the run.
pub fn svg(record: &Record, subtitle: &str) -> String {
    let seconds = (STEP * record.steps.len().max(1) as u32).as_secs_f64();
    let most = |value: fn(&Step) -> f64| record.steps.iter().map(value).fold(0.0, f64::max);
    let goodput = Panel {
        top: TOP,
        height: 130.0,
        seconds,
        highest: nice(most(Record::goodput)),
    };
    let round_trip = goodput.below(130.0, nice(most(|step| milliseconds(step).unwrap_or(0.0))));
    let lost = round_trip.below(46.0, 100.0);
    let links = lost.below(ROW * record.links.len() as f64, 1.0);
    let groups = groups(&record.moves);
    let list = links.bottom() + 62.0;
    let height = list + LINE * (record.moves.len().max(1) + 1) as f64 + 14.0;
    let mut out = String::new();
    let _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"system-ui, 'DejaVu Sans', sans-serif\">\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>"
    );
    let title = "font-size=\"20\" font-weight=\"600\" fill=\"#1a1a1a\"";
    text(
        &mut out,
        (24.0, 32.0),
        title,
        "Three links: a cut and a brown-out under live traffic",
    );
    text(
        &mut out,
        (24.0, 54.0),
        "font-size=\"13\" fill=\"#555555\"",
        subtitle,
    );
    bands(&mut out, record, goodput, lost);
    frame(&mut out, goodput, "TCP goodput, Mbit/s");
    line(
        &mut out,
        record,
        goodput,
        |step| Some(Record::goodput(step)),
        COLOURS[0],
    );
    frame(
        &mut out,
        round_trip,
        "round trip of the 1 kHz stream, ms (median of each 0.1 s; gaps: nothing came)",
    );
    line(&mut out, record, round_trip, milliseconds, COLOURS[3]);
    frame(&mut out, lost, "datagrams of the stream lost, % of each 0.1 s");
    losses(&mut out, record, lost);
    rows(&mut out, record, links);
    seconds_axis(&mut out, links);
    for (number, group) in groups.iter().enumerate() {
        marker(&mut out, (goodput.x(group[0].at), links.bottom()), number + 1);
    }
    let mut at = list;
    if groups.is_empty() {
        text(
            &mut out,
            (24.0, at),
            "font-size=\"12\" fill=\"#1a1a1a\"",
            "nothing moved",
        );
        at += LINE;
    }
    for (number, group) in groups.iter().enumerate() {
        for each in *group {
            disc(&mut out, (33.0, at - 4.0), number + 1);
            let style = "font-size=\"12\" text-anchor=\"end\" fill=\"#1a1a1a\"";
            text(
                &mut out,
                (92.0, at),
                style,
                &format!("{:.2} s", each.at.as_secs_f64()),
            );
            text(
                &mut out,
                (104.0, at),
                "font-size=\"12\" fill=\"#1a1a1a\"",
                &each.says,
            );
            at += LINE;
        }
    }
    let note =
        "flows leave a path that is down or poor at once; to a better one they go in a pause, or within 4 s";
    text(
        &mut out,
        (24.0, at + 4.0),
        "font-size=\"12\" font-style=\"italic\" fill=\"#555555\"",
        note,
    );
    out += "</svg>\n";
    out
}

fn milliseconds(step: &Step) -> Option<f64> {
    step.round_trip.map(|time| time.as_secs_f64() * 1e3)
}

/// Moves that share a marker.
fn groups(moves: &[Move]) -> Vec<&[Move]> {
    moves
        .chunk_by(|one, next| next.at.saturating_sub(one.at) < TOGETHER)
        .collect()
}

/// The next round number above it.
fn nice(value: f64) -> f64 {
    let unit = 10f64.powf(value.max(1.0).log10().floor());
    let steps = [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0].map(|step| step * unit);
    steps
        .into_iter()
        .find(|step| *step >= value * 1.05)
        .unwrap_or(15.0 * unit)
}

/// Title, border and the scale at the left.
fn frame(out: &mut String, panel: Panel, title: &str) {
    text(
        out,
        (LEFT, panel.top - 8.0),
        "font-size=\"12\" font-weight=\"600\" fill=\"#333333\"",
        title,
    );
    let parts = if panel.height > 60.0 { 4 } else { 2 };
    for part in 0..=parts {
        let value = panel.highest * f64::from(part) / f64::from(parts);
        let y = panel.y(value);
        let _ = writeln!(out, "<path d=\"M{LEFT} {y:.1}h{PLOT}\" stroke=\"#dddddd\"/>");
        let label = "font-size=\"11\" text-anchor=\"end\" fill=\"#555555\"";
        text(out, (LEFT - 8.0, y + 4.0), label, &number(value));
    }
    let _ = writeln!(
        out,
        "<rect x=\"{LEFT}\" y=\"{:.1}\" width=\"{PLOT}\" height=\"{:.1}\" fill=\"none\" stroke=\"#999999\"/>",
        panel.top, panel.height
    );
}

fn number(value: f64) -> String {
    if value.fract().abs() < 1e-9 {
        format!("{value:.0}")
    } else {
        format!("{value:.1}")
    }
}

/// A line through the steps that have a value.
fn line(out: &mut String, record: &Record, panel: Panel, value: impl Fn(&Step) -> Option<f64>, colour: &str) {
    let mut path = String::new();
    let mut pen_down = false;
    for (step, number) in record.steps.iter().zip(0u32..) {
        let Some(value) = value(step) else {
            pen_down = false;
            continue;
        };
        let word = if pen_down { 'L' } else { 'M' };
        let _ = write!(
            path,
            "{word}{:.1} {:.1}",
            panel.x(STEP * number + STEP / 2),
            panel.y(value)
        );
        pen_down = true;
    }
    let _ = writeln!(
        out,
        "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.8\" stroke-linejoin=\"round\"/>"
    );
}

fn losses(out: &mut String, record: &Record, panel: Panel) {
    let sent = STEP.as_nanos() as f64 / INTERVAL.as_nanos() as f64;
    let width = panel.x(STEP) - panel.x(Duration::ZERO);
    for (step, number) in record.steps.iter().zip(0u32..).filter(|(step, _)| step.lost > 0) {
        let y = panel.y(step.lost as f64 / sent * 100.0).min(panel.bottom() - 1.5);
        let _ = writeln!(
            out,
            "<rect x=\"{:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{:.1}\" fill=\"{CUT}\"/>",
            panel.x(STEP * number),
            panel.bottom() - y
        );
    }
}

/// The troubles behind all panels.
fn bands(out: &mut String, record: &Record, first: Panel, last: Panel) {
    for trouble in &record.troubles {
        let (from, to) = (first.x(trouble.from), first.x(trouble.to));
        let colour = if trouble.cut { CUT } else { BAD };
        let _ = writeln!(
            out,
            "<rect x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{colour}\" fill-opacity=\"0.07\"/>",
            first.top,
            to - from,
            last.bottom() - first.top
        );
    }
}

/// A row for each link: how many packets went by it, and what was done to it.
fn rows(out: &mut String, record: &Record, panel: Panel) {
    let title = "packets from a to b by link (height: packets/s; red: cut, orange: brown-out)";
    text(
        out,
        (LEFT, panel.top - 8.0),
        "font-size=\"12\" font-weight=\"600\" fill=\"#333333\"",
        title,
    );
    let most = record
        .steps
        .iter()
        .flat_map(|step| &step.packets)
        .max()
        .copied()
        .unwrap_or(0)
        .max(1);
    for (link, name) in record.links.iter().enumerate() {
        let row = Panel {
            top: panel.top + ROW * link as f64,
            height: ROW,
            highest: most as f64 * 1.1,
            ..panel
        };
        let label = "font-size=\"12\" text-anchor=\"end\" fill=\"#1a1a1a\"";
        text(out, (LEFT - 8.0, row.top + ROW / 2.0 + 4.0), label, name);
        for trouble in record.troubles.iter().filter(|trouble| trouble.link == link) {
            let colour = if trouble.cut { CUT } else { BAD };
            let (from, to) = (row.x(trouble.from), row.x(trouble.to));
            let _ = writeln!(
                out,
                "<rect x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{ROW}\" fill=\"{colour}\" fill-opacity=\"0.22\"/>",
                row.top,
                to - from
            );
        }
        let mut path = format!("M{LEFT} {:.1}", row.bottom());
        for (step, number) in record.steps.iter().zip(0u32..) {
            let packets = step.packets.get(link).copied().unwrap_or(0) as f64;
            let _ = write!(
                path,
                "L{:.1} {:.1}",
                row.x(STEP * number + STEP / 2),
                row.y(packets)
            );
        }
        let _ = writeln!(
            out,
            "<path d=\"{path}V{:.1}Z\" fill=\"{colour}\" fill-opacity=\"0.75\" stroke=\"none\"/>\n\
             <rect x=\"{LEFT}\" y=\"{:.1}\" width=\"{PLOT}\" height=\"{ROW}\" fill=\"none\" stroke=\"#bbbbbb\"/>",
            row.bottom(),
            row.top,
            colour = COLOURS[link % COLOURS.len()]
        );
        for trouble in record.troubles.iter().filter(|trouble| trouble.link == link) {
            let style = "font-size=\"11\" font-weight=\"600\" text-anchor=\"end\" fill=\"#7a1f1f\"";
            text(
                out,
                (row.x(trouble.to) - 5.0, row.top + 13.0),
                style,
                &trouble.says,
            );
        }
    }
}

fn seconds_axis(out: &mut String, panel: Panel) {
    let every = if panel.seconds > 25.0 { 5 } else { 1 };
    for second in (0..=panel.seconds as u64).step_by(every) {
        let x = panel.x(Duration::from_secs(second));
        let _ = writeln!(
            out,
            "<path d=\"M{x:.1} {:.1}v5\" stroke=\"#666666\"/>",
            panel.bottom()
        );
        let label = "font-size=\"11\" text-anchor=\"middle\" fill=\"#555555\"";
        text(out, (x, panel.bottom() + 18.0), label, &second.to_string());
    }
    let label = "font-size=\"12\" text-anchor=\"middle\" fill=\"#333333\"";
    text(out, (LEFT + PLOT / 2.0, panel.bottom() + 34.0), label, "time, s");
}

fn marker(out: &mut String, (x, bottom): (f64, f64), number: usize) {
    let _ = writeln!(
        out,
        "<path d=\"M{x:.1} {MARKERS:.1}V{bottom:.1}\" stroke=\"#1a1a1a\" stroke-width=\"1\" stroke-dasharray=\"3 3\"/>"
    );
    disc(out, (x, MARKERS), number);
}

fn disc(out: &mut String, (x, y): (f64, f64), number: usize) {
    let _ = writeln!(
        out,
        "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"8.5\" fill=\"#1a1a1a\"/>"
    );
    let style = "font-size=\"11\" font-weight=\"700\" text-anchor=\"middle\" fill=\"#ffffff\"";
    text(out, (x, y + 4.0), style, &number.to_string());
}

#[cfg(test)]
mod tests {
    use super::super::record::Trouble;
    use super::*;

    #[test]
    fn everything_that_happened_is_in_the_picture() {
        let at = Duration::from_millis;
        let step = |round_trip: Option<u64>, lost| Step {
            bytes: 300_000,
            packets: vec![100, 2],
            round_trip: round_trip.map(at),
            lost,
        };
        let record = Record {
            links: vec!["fibre".to_owned(), "cable <1>".to_owned()],
            steps: vec![step(Some(10), 0), step(None, 80), step(Some(24), 0)],
            troubles: vec![Trouble {
                link: 0,
                from: at(100),
                to: at(300),
                cut: true,
                says: "cut".to_owned(),
            }],
            moves: [(150, "voice"), (160, "files"), (4000, "voice again")]
                .map(|(ms, says)| Move {
                    at: at(ms),
                    says: says.to_owned(),
                })
                .into(),
        };
        let picture = svg(&record, "a test");
        for word in [
            "fibre",
            "cable &lt;1&gt;",
            ">cut<",
            "0.15 s",
            ">voice<",
            "0.16 s",
            ">files<",
            "4.00 s",
            ">voice again<",
        ] {
            assert!(picture.contains(word), "{word}: {picture}");
        }
        // Two moves at once share a marker: two of them, and three in the list.
        assert_eq!(picture.matches("<circle").count(), 2 + 3);
    }

    #[test]
    fn scales_end_at_round_numbers_above_the_values() {
        assert_eq!(
            [0.0, 24.0, 47.0, 97.0, 184.0].map(nice),
            [1.0, 30.0, 60.0, 150.0, 200.0]
        );
    }

    #[test]
    fn nothing_recorded_is_still_a_picture() {
        assert!(svg(&Record::default(), "").ends_with("</svg>\n"));
    }
}
