//! The picture: a panel a test, a bar a subject, ours in colour; the range over the rounds as a thin line.

use crate::report::{Row, caption, figure};
use crate::subject::{AF_XDP, NO_TUNNEL, OURS, SINGLE, SPIN};
use crate::tests_of::Test;
use std::fmt::Write;

const PANEL_WIDTH: f64 = 430.0;
const COLUMNS: usize = 3;
const MARGIN: f64 = 24.0;
const HEADER: f64 = 74.0;
const TITLE: f64 = 48.0;
const BAR: f64 = 24.0;
const LABELS: f64 = 122.0;
/// Room for the figure behind the longest bar.
const FIGURES: f64 = 62.0;

/// The SVG of a run. `subtitle` is the machine and the number of rounds.
pub fn svg(rows: &[Row], subtitle: &str) -> String {
    let panels: Vec<(Test, Vec<&Row>)> = Test::ALL
        .into_iter()
        .map(|test| {
            (
                test,
                rows.iter()
                    .filter(|row| row.test == test.name() && row.value().is_some())
                    .collect(),
            )
        })
        .filter(|(_, rows): &(Test, Vec<&Row>)| rows.iter().any(|row| row.peer != NO_TUNNEL))
        .collect();
    let bars = panels
        .iter()
        .map(|(_, rows)| bars_of(rows).len())
        .max()
        .unwrap_or(0);
    let panel_height = TITLE + bars as f64 * BAR + 34.0;
    let lines = panels.len().div_ceil(COLUMNS);
    let (width, height) = (
        MARGIN * 2.0 + PANEL_WIDTH * COLUMNS as f64,
        HEADER + panel_height * lines as f64 + MARGIN,
    );
    let mut out = String::new();
    let _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" font-family=\"system-ui, 'DejaVu Sans', sans-serif\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>"
    );
    text(
        &mut out,
        (MARGIN, 32.0),
        "font-size=\"20\" font-weight=\"600\" fill=\"#1a1a1a\"",
        "Userspace WireGuard, side by side",
    );
    text(
        &mut out,
        (MARGIN, 54.0),
        "font-size=\"13\" fill=\"#555555\"",
        subtitle,
    );
    for (number, (test, rows)) in panels.iter().enumerate() {
        let x = MARGIN + (number % COLUMNS) as f64 * PANEL_WIDTH;
        let y = HEADER + (number / COLUMNS) as f64 * panel_height;
        panel(&mut out, (x, y), *test, rows);
    }
    out += "</svg>\n";
    out
}

/// The run without a tunnel would dwarf the others: it is a remark, not a bar.
fn bars_of<'a>(rows: &[&'a Row]) -> Vec<&'a Row> {
    rows.iter().copied().filter(|row| row.peer != NO_TUNNEL).collect()
}

fn panel(out: &mut String, (x, y): (f64, f64), test: Test, rows: &[&Row]) {
    let (title, unit, factor) = caption(test);
    let better = if matches!(test, Test::Tcp(_) | Test::Highest(_)) {
        "more is better"
    } else {
        "less is better"
    };
    text(
        out,
        (x, y + 16.0),
        "font-size=\"14\" font-weight=\"600\" fill=\"#1a1a1a\"",
        title,
    );
    let plain = rows.iter().find(|row| row.peer == NO_TUNNEL);
    let remark = plain.map_or(String::new(), |row| {
        format!(
            "; without a tunnel {}",
            figure(row.value().map(|value| value * factor))
        )
    });
    text(
        out,
        (x, y + 33.0),
        "font-size=\"12\" fill=\"#666666\"",
        &format!("{unit}, {better}{remark}"),
    );
    let bars = bars_of(rows);
    let top = |row: &&Row| row.max.or(row.value()).unwrap_or(0.0);
    let greatest = bars.iter().map(top).fold(f64::MIN_POSITIVE, f64::max);
    let scale = (PANEL_WIDTH - LABELS - FIGURES - MARGIN) / greatest;
    for (number, row) in bars.iter().enumerate() {
        bar(out, (x, y + TITLE + number as f64 * BAR), row, scale, factor);
    }
    let (axis, bottom) = (x + LABELS, y + TITLE + bars.len() as f64 * BAR);
    let _ = writeln!(
        out,
        "<path d=\"M{axis:.1} {:.1}V{bottom:.1}\" stroke=\"#999999\"/>",
        y + TITLE - 2.0
    );
}

fn bar(out: &mut String, (x, y): (f64, f64), row: &Row, scale: f64, factor: f64) {
    let ours = [OURS, SPIN, AF_XDP, SINGLE].contains(&row.peer.as_str());
    let (fill, weight) = match (row.peer.as_str(), ours) {
        (OURS, _) => ("#0b6bcb", "700"),
        (_, true) => ("#6aa9e9", "700"),
        _ => ("#b9c0c8", "400"),
    };
    let (left, middle, value) = (x + LABELS, y + BAR / 2.0, row.value().unwrap_or(0.0));
    let label = format!("font-size=\"12\" text-anchor=\"end\" font-weight=\"{weight}\" fill=\"#1a1a1a\"");
    text(out, (left - 7.0, middle + 4.0), &label, &row.peer);
    let length = value * scale;
    let _ = writeln!(
        out,
        "<rect x=\"{left:.1}\" y=\"{:.1}\" width=\"{length:.1}\" height=\"{:.1}\" fill=\"{fill}\"/>",
        y + 3.0,
        BAR - 7.0
    );
    let (low, high) = (row.min.unwrap_or(value) * scale, row.max.unwrap_or(value) * scale);
    if high - low > 1.0 {
        let _ = writeln!(
            out,
            "<path d=\"M{:.1} {middle:.1}H{:.1}M{:.1} {:.1}v6M{:.1} {:.1}v6\" stroke=\"#333333\"/>",
            left + low,
            left + high,
            left + low,
            middle - 3.0,
            left + high,
            middle - 3.0
        );
    }
    let end = left + length.max(high) + 6.0;
    let style = format!("font-size=\"12\" font-weight=\"{weight}\" fill=\"#1a1a1a\"");
    text(out, (end, middle + 4.0), &style, &figure(Some(value * factor)));
}

/// A text whose baseline begins, or as its style says ends, there.
pub fn text(out: &mut String, (x, y): (f64, f64), style: &str, content: &str) {
    let safe = content
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" {style}>{safe}</text>");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests_of::Sample;

    #[test]
    fn a_bar_for_each_subject_but_the_run_without_tunnel() {
        let sample = |mbps| Sample {
            mbps: Some(mbps),
            ..Sample::default()
        };
        let rows: Vec<Row> = [(NO_TUNNEL, 20_000.0), (OURS, 4000.0), ("gotatun", 1000.0)]
            .into_iter()
            .map(|(peer, mbps)| {
                Row::new(
                    peer,
                    Test::Tcp(1),
                    &[sample(mbps), sample(mbps * 1.1), sample(mbps)],
                )
            })
            .collect();
        let picture = svg(&rows, "a < b & c");
        assert_eq!(picture.matches("<rect").count(), 1 + 2, "{picture}");
        assert!(picture.contains("without a tunnel 20000"));
        assert!(picture.contains("a &lt; b &amp; c"));
        assert!(picture.contains("fill=\"#0b6bcb\""));
    }

    #[test]
    fn nothing_measured_is_still_a_picture() {
        assert!(svg(&[], "").ends_with("</svg>\n"));
    }
}
