//! What our vector kernels have to show against ring and ipsec-mb, and whether they do. Ratios of medians within one run.

use super::table::{find, heading, ratio};
use super::{Op, Row};
use crate::engine::size::Size;
use crate::goals::{Goal, Outcome};

/// The bursts that are judged.
pub const BURST: usize = 32;
/// Times as fast as ring of what is as fast: 3 % are noise.
pub const NO_SLOWER: f64 = 0.97;

/// Times as fast: what is asked for, and what is hoped for.
struct Bar {
    size: Size,
    least: f64,
    hoped: Option<f64>,
}

const fn bar(size: Size, least: f64, hoped: f64) -> Bar {
    Bar {
        size,
        least,
        hoped: Some(hoped),
    }
}

const AVX512: &[&str] = &["ours-avx512"];
const AVX2: &[&str] = &["ours-avx2"];
const RING: &[&str] = &["ring"];
/// Whichever of its interfaces is faster.
const IPSEC_MB: &[&str] = &["ipsec-mb", "ipsec-mb-direct"];

const AVX512_TO_RING: [Bar; 6] = [
    bar(Size::Bytes(64), 4.5, 5.5),
    bar(Size::Bytes(256), 3.0, 3.6),
    bar(Size::Bytes(512), 2.6, 3.0),
    bar(Size::Bytes(1024), 2.3, 2.6),
    bar(Size::Bytes(1420), 2.1, 2.4),
    bar(Size::Imix, 2.4, 2.7),
];

const AVX512_TO_IPSEC_MB: [Bar; 2] = [
    Bar {
        size: Size::Bytes(64),
        least: 3.0,
        hoped: None,
    },
    bar(Size::Bytes(1420), 1.2, 1.4),
];

/// At least these with AVX2; at other sizes no slower, of which [`NO_SLOWER`] says what noise is.
const AVX2_TO_RING: [Bar; 2] = [
    Bar {
        size: Size::Bytes(64),
        least: 2.0,
        hoped: None,
    },
    Bar {
        size: Size::Bytes(128),
        least: 1.4,
        hoped: None,
    },
];

/// Every goal that the rows allow to judge.
pub fn judge(rows: &[Row]) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for op in [Op::Seal, Op::Open] {
        for bar in &AVX512_TO_RING {
            outcomes.extend(against(rows, op, AVX512, RING, bar));
        }
        for bar in &AVX512_TO_IPSEC_MB {
            outcomes.extend(against(rows, op, AVX512, IPSEC_MB, bar));
        }
        for bar in &AVX2_TO_RING {
            outcomes.extend(against(rows, op, AVX2, RING, bar));
        }
        let others = rows
            .iter()
            .filter(|row| row.op == op && row.burst == BURST && row.backend == AVX2[0])
            .filter(|row| AVX2_TO_RING.iter().all(|bar| bar.size != row.size));
        for row in others {
            let bar = Bar {
                size: row.size,
                least: NO_SLOWER,
                hoped: None,
            };
            outcomes.extend(against(rows, op, AVX2, RING, &bar));
        }
    }
    outcomes
}

/// The faster of `ours` against the fastest of `theirs`.
fn against(rows: &[Row], op: Op, ours: &[&str], theirs: &[&str], bar: &Bar) -> Option<Outcome> {
    let best = |names: &[&str]| {
        let rows = names
            .iter()
            .filter_map(|name| find(rows, name, op, bar.size, BURST));
        rows.min_by(|a, b| a.ns_per_packet.total_cmp(&b.ns_per_packet))
    };
    let (ours, theirs) = (best(ours)?, best(theirs)?);
    let value = ratio(rows, &ours.backend, &theirs.backend, op, bar.size, BURST)?;
    let hoped = bar.hoped.map_or(String::new(), |hoped| {
        let verdict = if value >= hoped { "reached" } else { "missed" };
        format!("; goal {hoped} {verdict}")
    });
    Some(Outcome {
        what: format!("{}, {}: {}", op.name(), heading(bar.size), ours.backend),
        detail: format!(
            "{:.1} ns, {} {:.1} ns{hoped}",
            ours.ns_per_packet, theirs.backend, theirs.ns_per_packet
        ),
        value,
        goal: Goal::AtLeast(bar.least),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(backend: &str, size: Size, ns: f64) -> Row {
        Row {
            backend: backend.to_owned(),
            op: Op::Seal,
            size,
            burst: BURST,
            ns_per_packet: ns,
            ns_per_packet_min: ns,
            gb_per_s: 0.0,
        }
    }

    #[test]
    fn ours_are_compared_with_ring_and_with_the_better_of_ipsec_mb() {
        let size = Size::Bytes(64);
        let outcomes = judge(&[
            row("ours-avx512", size, 40.0),
            row("ring", size, 200.0),
            row("ipsec-mb", size, 150.0),
            row("ipsec-mb-direct", size, 100.0),
        ]);
        assert_eq!(outcomes.iter().map(|o| o.value).collect::<Vec<_>>(), [5.0, 2.5]);
        assert_eq!(
            outcomes.iter().map(Outcome::reached).collect::<Vec<_>>(),
            [true, false]
        );
        assert!(
            outcomes[0].detail.contains("goal 5.5 missed"),
            "{}",
            outcomes[0].detail
        );
    }

    #[test]
    fn avx2_is_never_slower_than_ring() {
        let outcomes = judge(&[
            row("ours-avx2", Size::Bytes(128), 100.0),
            row("ours-avx2", Size::Bytes(8900), 5200.0),
            row("ring", Size::Bytes(128), 150.0),
            row("ring", Size::Bytes(8900), 5000.0),
        ]);
        assert_eq!(
            outcomes.iter().map(Outcome::reached).collect::<Vec<_>>(),
            [true, false]
        );
    }

    #[test]
    fn without_a_yardstick_nothing_is_judged() {
        assert!(judge(&[row("ours-avx512", Size::Bytes(64), 40.0)]).is_empty());
    }
}
