//! What judging paths costs: `cargo run --release -p patronus-control --example judge -- [PATHS] [REMOTES]`.
//!
//! A table of that many paths, all of them probed 20,000 times a second together (what an engine's cap allows), is read and judged for 5 classes as the control process does it every
//! 100 ms. Printed is the part of those 100 ms that a turn takes, and what a path has in memory.

use std::time::{Duration, Instant};

use patronus_abi::channel::{
    PATH_WORDS, PathName, PathRecord, PathReport, PathState, PathWhy, SAMPLES, place,
};
use patronus_control::quality::judge::Links;
use patronus_control::quality::{Class, EVERY, Quality, Wanted};
use patronus_link::Statistics;
use patronus_sync::{Region, WordsMut};
use std::sync::atomic::Ordering;

/// Probes of an engine in a second.
const PROBES: u64 = 20_000;
/// Turns that are measured: enough for every window to be full.
const TURNS: u64 = 700;

fn main() {
    let mut given = std::env::args()
        .skip(1)
        .map(|text| text.parse().expect("a number"));
    let paths: u64 = given.next().unwrap_or(9_000);
    let remotes: u64 = given.next().unwrap_or(1_000);
    let (region, fd) = Region::create("judge", place::STATS_LEN).expect("memory");
    let table = Statistics::new(fd).expect("memory");
    let mut reports: Vec<PathReport> = (0..paths).map(|number| report(number, remotes)).collect();
    let mut quality = Quality::default();
    quality.configure(Wanted {
        classes: (0..5).map(class).collect(),
        links: [Links::default(); 16],
    });
    let mut times = Vec::new();
    let (mut orders, before) = (0, resident());
    for turn in 1..=TURNS {
        for (number, report) in reports.iter_mut().enumerate() {
            // Each path has its probes in turn.
            let due = |turn: u64| (turn * PROBES / 10 + number as u64) / paths;
            for _ in due(turn - 1)..due(turn) {
                probe(report, turn);
            }
            write(&region, number, report);
        }
        region.store(place::PATHS_USED, paths, Ordering::Release);
        let now = 1_000_000_000 + turn * 100_000_000;
        let begin = Instant::now();
        quality.take(now, table.paths());
        quality.judge(now, true);
        quality.order(now, |_| {
            orders += 1;
            true
        });
        times.push(begin.elapsed());
    }
    let later = &mut times[TURNS as usize / 2..];
    later.sort_unstable();
    let part = |time: Duration| 100.0 * time.as_secs_f64() / EVERY.as_secs_f64();
    println!(
        "{paths} paths to {remotes} remotes, 5 classes: a turn takes {:.1} % of its interval (median; 99 of 100: {:.1} %), {} bytes a path, {orders} orders",
        part(later[later.len() / 2]),
        part(later[later.len() * 99 / 100]),
        (resident().saturating_sub(before)) / paths,
    );
}

fn class(number: u32) -> Class {
    Class {
        name: format!("class{number}"),
        latency_us: (number > 0).then_some(200_000),
        jitter_us: (number > 1).then_some(30_000),
        loss_ppm: (number > 0).then_some(10_000),
        ..Class::default()
    }
}

fn report(number: u64, remotes: u64) -> PathReport {
    let mut remote = [0; 32];
    remote[..8].copy_from_slice(&(number % remotes).to_le_bytes());
    let link = (number / remotes % 15) as u8 + 1;
    PathReport {
        state: PathState::Up,
        why: PathWhy::Heard,
        since: 1,
        in_use: true,
        ..PathReport::new(
            remote,
            PathName {
                local: link,
                remote: (number / remotes / 15 % 15) as u8 + 1,
            },
        )
    }
}

fn probe(report: &mut PathReport, turn: u64) {
    let rtt = 20_000 + (turn * 7919 + report.samples * 104_729) % 5_000;
    report.recent[(report.samples % SAMPLES as u64) as usize] = rtt as u32;
    report.samples += 1;
    report.probes_received += 1;
    report.in_sent += 1;
    report.in_received += 1;
    report.out_sent += 1;
    report.out_received += 1;
    report.jitter_in = (turn % 5_000) as u32;
    report.jitter_out = report.jitter_in;
}

fn write(region: &Region, number: usize, report: &PathReport) {
    let at = place::PATHS + number * size_of::<PathRecord>();
    let words: [u64; PATH_WORDS] = report.record(2).words();
    for (word, value) in words.into_iter().enumerate() {
        region.store(at + 8 * word, value, Ordering::Relaxed);
    }
}

/// Bytes of memory that the process has.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}
