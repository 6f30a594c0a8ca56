//! The tables for people.

use super::{Op, Row};
use crate::engine::size::Size;

/// What everything is compared with.
pub const YARDSTICK: &str = "ring";

/// A line an implementation, a column a size: `median (least) times`, the last how many times as fast as ring.
pub fn print(rows: &[Row], op: Op, sizes: &[Size]) {
    let Some(burst) = rows.first().map(|row| row.burst) else {
        return;
    };
    println!(
        "\n{}, bursts of {burst}: ns a packet, median (least), times as fast as {YARDSTICK}\n",
        op.name()
    );
    let heads: Vec<String> = sizes.iter().map(|size| heading(*size)).collect();
    println!("| backend | {} |", heads.join(" | "));
    println!("|---|{}", "---|".repeat(sizes.len()));
    let of_op: Vec<&Row> = rows.iter().filter(|row| row.op == op).collect();
    let first = of_op.first().map(|row| row.size);
    for name in of_op
        .iter()
        .filter(|row| Some(row.size) == first)
        .map(|row| &row.backend)
    {
        let cells = sizes.iter().map(|size| cell(rows, name, op, *size, burst));
        println!("| {name} | {} |", cells.collect::<Vec<_>>().join(" | "));
    }
}

/// A size as people read it.
pub fn heading(size: Size) -> String {
    match size {
        Size::Bytes(bytes) => format!("{bytes} B"),
        Size::Imix => "IMIX".to_owned(),
    }
}

fn cell(rows: &[Row], backend: &str, op: Op, size: Size, burst: usize) -> String {
    let Some(row) = find(rows, backend, op, size, burst) else {
        return "-".to_owned();
    };
    let places = usize::from(row.ns_per_packet < 100.0);
    let times = ratio(rows, backend, YARDSTICK, op, size, burst);
    format!(
        "{:.places$} ({:.places$}){}",
        row.ns_per_packet,
        row.ns_per_packet_min,
        times.map_or(String::new(), |times| format!(" {times:.2}x"))
    )
}

/// The row of one implementation.
pub fn find<'a>(rows: &'a [Row], backend: &str, op: Op, size: Size, burst: usize) -> Option<&'a Row> {
    rows.iter()
        .find(|row| row.backend == backend && row.op == op && row.size == size && row.burst == burst)
}

/// How many times as fast as another one it is.
pub fn ratio(rows: &[Row], backend: &str, other: &str, op: Op, size: Size, burst: usize) -> Option<f64> {
    let ns = |name| find(rows, name, op, size, burst).map(|row| row.ns_per_packet);
    Some(ns(other)? / ns(backend)?)
}
