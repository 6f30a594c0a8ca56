//! Many sizes: that there is none at which the engine's AEAD is slower than ring.

use super::backend::Backend;
use super::goals::NO_SLOWER;
use super::packets::Packets;
use super::table::{YARDSTICK, ratio};
use super::{Cell, Op, Options, Row, measure};
use crate::engine::size::Size;
use crate::goals::{Goal, Outcome};

/// How many sizes, and between which, bytes.
const SIZES: usize = 40;
const SMALLEST: f64 = 16.0;
const LARGEST: f64 = 9000.0;
const BURSTS: [usize; 2] = [1, 32];

/// Sizes with equal ratios between neighbours, so that few are multiples of anything.
fn sizes() -> [usize; SIZES] {
    let step = (LARGEST / SMALLEST).powf(1.0 / (SIZES - 1) as f64);
    std::array::from_fn(|at| (SMALLEST * step.powi(at as i32)).round() as usize)
}

/// Measures all of them, and names the worst.
pub fn run(options: &Options, backends: &mut [Box<dyn Backend>], packets: &mut Packets) -> Vec<Row> {
    let mut rows = Vec::new();
    let ours = backends[0].name();
    println!("\ntimes as fast as {YARDSTICK}: {ours}\n");
    println!("| size | seal, burst 1 | open, burst 1 | seal, burst 32 | open, burst 32 |");
    println!("|---|---|---|---|---|");
    for size in sizes().map(Size::Bytes) {
        for burst in BURSTS {
            rows.extend(measure(backends, packets, Cell { size, burst }, options.rounds));
        }
        let cells = BURSTS.iter().flat_map(|burst| {
            let times = [Op::Seal, Op::Open].map(|op| ratio(&rows, ours, YARDSTICK, op, size, *burst));
            times.map(|times| times.map_or("-".to_owned(), |times| format!("{times:.2}")))
        });
        println!("| {size} | {} |", cells.collect::<Vec<_>>().join(" | "));
    }
    println!();
    for burst in BURSTS {
        if let Some(outcome) = worst(&rows, ours, burst) {
            println!("{}", outcome.line());
        }
    }
    rows
}

/// The size and direction with the lowest ratio.
fn worst(rows: &[Row], ours: &str, burst: usize) -> Option<Outcome> {
    let mine = rows
        .iter()
        .filter(|row| row.backend == ours && row.burst == burst);
    let ratios = mine.filter_map(|row| Some((row, ratio(rows, ours, YARDSTICK, row.op, row.size, burst)?)));
    let (row, value) = ratios.min_by(|a, b| a.1.total_cmp(&b.1))?;
    Some(Outcome {
        what: format!("worst of {SIZES} sizes, bursts of {burst}"),
        detail: format!("{} {} B: {:.1} ns", row.op.name(), row.size, row.ns_per_packet),
        value,
        goal: Goal::AtLeast(NO_SLOWER),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_span_the_range_and_differ() {
        let sizes = sizes();
        assert_eq!((sizes[0], sizes[SIZES - 1]), (16, 9000));
        assert!(sizes.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn the_worst_is_named() {
        let row = |backend: &str, op, size, ns_per_packet| Row {
            backend: backend.to_owned(),
            op,
            size: Size::Bytes(size),
            burst: 1,
            ns_per_packet,
            ns_per_packet_min: ns_per_packet,
            gb_per_s: 0.0,
        };
        let rows = [
            row("ours", Op::Seal, 16, 100.0),
            row("ring", Op::Seal, 16, 200.0),
            row("ours", Op::Open, 40, 100.0),
            row("ring", Op::Open, 40, 90.0),
        ];
        let outcome = worst(&rows, "ours", 1).unwrap();
        assert_eq!((outcome.value, outcome.reached()), (0.9, false));
        assert!(outcome.detail.starts_with("open 40 B"), "{}", outcome.detail);
    }
}
