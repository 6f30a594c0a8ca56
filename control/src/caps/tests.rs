//! Counts over restarts, months and clocks that are wrong. With a link: tests/tests/quality.rs.

use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

const GB: u64 = 1_000_000_000;
/// 2026-11-29.
const NOW: u64 = 1_795_910_400;

fn config(text: &str) -> Config {
    let text = format!(
        "[site]\nprivate_key_file = 'k'\n[[link]]\nid = 1\ninterface = 'eth0'\n[[link]]\nid = 2\ninterface = 'wwan0'\n{text}"
    );
    patronus_config::parse(&text).expect("a site")
}

/// A state folder.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("patronus-caps-{name}-{}", std::process::id()));
        fs::create_dir(&path).expect("a folder");
        Folder(path)
    }

    /// A process that counts, and what writes for it.
    fn caps(&self, text: &str) -> (Caps, Keeper) {
        let (keeper, writer) = Keeper::open(&self.0);
        writer.start().expect("a thread");
        let mut caps = Caps::new(&keeper);
        caps.configure(&config(text));
        (caps, keeper)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn used(caps: &Caps) -> u64 {
    caps.usages.get()[0].used
}

#[test]
fn what_goes_by_a_link_is_counted_until_a_month_begins() {
    let folder = Folder::new("month");
    let (mut caps, _) = folder.caps("data_cap = '20GB'\n");
    let mut at = |now, counter| {
        caps.count(now, &HashMap::from([("wwan0", counter), ("eth0", 7 * GB)]));
        let usage = caps.usages.get().remove(0);
        assert_eq!(usage.link, 2);
        (usage.used / GB, usage.is_nearly(), usage.is_used_up())
    };
    assert_eq!(
        at(NOW, 5 * GB),
        (0, false, false),
        "what was before is of no month that is known"
    );
    assert_eq!(at(NOW + 1, 20 * GB), (15, false, false));
    assert_eq!(at(NOW + 2, 21 * GB), (16, true, false));
    assert_eq!(at(NOW + 3, 25 * GB), (20, true, true));
    // The interface was made anew.
    assert_eq!(at(NOW + 4, GB), (21, true, true));
    let december = begin_of(12 * 2026 + 11, 1);
    assert_eq!(at(december - 1, GB), (21, true, true));
    assert_eq!(at(december, 2 * GB), (1, false, false));
}

#[test]
fn a_restart_forgets_nothing() {
    let folder = Folder::new("restart");
    let text = "data_cap = '20GB'\ndata_cap_day = 15\n";
    let (mut caps, keeper) = folder.caps(text);
    caps.count(NOW, &HashMap::from([("wwan0", GB)]));
    caps.count(NOW, &HashMap::from([("wwan0", 4 * GB)]));
    caps.write(&keeper);
    keeper.finish(Duration::from_secs(30));
    // What went by meanwhile counts.
    let (mut caps, keeper) = folder.caps(text);
    caps.count(NOW + 60, &HashMap::from([("wwan0", 6 * GB)]));
    assert_eq!(used(&caps), 5 * GB);
    caps.write(&keeper);
    keeper.finish(Duration::from_secs(30));
    // The machine was booted.
    let (mut caps, _) = folder.caps(text);
    caps.boot = "another".to_owned();
    caps.count(NOW + 120, &HashMap::from([("wwan0", 7 * GB)]));
    assert_eq!(used(&caps), 12 * GB);
    assert_eq!(date(caps.usages.get()[0].begins_anew), "2026-12-15");
    // Another interface has other counters.
    caps.limits[0].interface = "wwan1".to_owned();
    caps.count(NOW + 180, &HashMap::from([("wwan1", 50 * GB)]));
    assert_eq!(used(&caps), 12 * GB);
}

#[test]
fn what_goes_by_without_a_cap_does_not_count() {
    let folder = Folder::new("without");
    let (mut caps, _) = folder.caps("data_cap = '20GB'\n");
    let at = |caps: &mut Caps, counter| {
        caps.count(NOW, &HashMap::from([("wwan0", counter)]));
        used(caps) / GB
    };
    assert_eq!((at(&mut caps, GB), at(&mut caps, 3 * GB)), (0, 2));
    caps.configure(&config(""));
    caps.configure(&config("data_cap = '20GB'\n"));
    assert_eq!((at(&mut caps, 40 * GB), at(&mut caps, 41 * GB)), (2, 3));
}

#[test]
fn a_clock_that_is_wrong_forgets_nothing() {
    let folder = Folder::new("clock");
    let (mut caps, _) = folder.caps("data_cap = '20GB'\n");
    let mut at = |now, counter| {
        caps.count(now, &HashMap::from([("wwan0", counter)]));
        used(&caps)
    };
    at(NOW, 0);
    assert_eq!(at(NOW, GB), GB);
    // Not set yet, as after the boot of a machine without a battery; and once it is.
    assert_eq!(at(60, 2 * GB), 2 * GB);
    assert_eq!(at(NOW + 100, 3 * GB), 3 * GB);
    // Put back by a year.
    assert_eq!(at(NOW - 365 * DAY, 4 * GB), 4 * GB);
}

#[test]
fn interfaces_have_their_counters() {
    let text = "Inter-|   Receive                                                |  Transmit\n \
                face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
                lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0\n \
                wwan0: 12345     67    0    0    0     0          0         0     55     8    0    0    0     0       0          0\n nonsense: 1 2\n";
    let found = counters(text);
    assert_eq!(found.get("wwan0"), Some(&12_400));
    assert_eq!(found.get("nonsense"), None);
    assert_eq!(found.len(), 2);
}

#[test]
fn months_are_those_of_the_calendar() {
    // 2024-02-29 23:59:59, and a second later.
    assert_eq!(month_of(1_709_251_199, 1), 12 * 2024 + 1);
    assert_eq!(month_of(1_709_251_200, 1), 12 * 2024 + 2);
    assert_eq!(month_of(1_709_251_200, 15), 12 * 2024 + 1);
    assert_eq!(date(1_709_251_199), "2024-02-29");
    assert_eq!(date(NOW), "2026-11-29");
    assert_eq!(date(begin_of(12 * 2027, 28)), "2027-01-28");
}

proptest! {
    #[test]
    fn a_month_begins_when_the_one_before_ends(now in SET..4_000_000_000, day in 1u64..=28) {
        let month = month_of(now, day);
        let (begin, end) = (begin_of(month, day), begin_of(month + 1, day));
        prop_assert!(begin <= now && now < end);
        prop_assert!((28 * DAY..=31 * DAY).contains(&(end - begin)));
        prop_assert_eq!(month_of(begin, day), month);
        prop_assert_eq!(month_of(end - 1, day), month);
    }

    #[test]
    fn nothing_that_is_kept_panics(text in "[ -~]{0,80}", used: u64, counter: u64, month in 0..=MONTH_MAX) {
        counters(&text);
        let mut count = Count { used, counter: Some(counter), month, ..Count::default() };
        count.take(Some(u64::MAX), Some(24_000), "boot");
        prop_assert!(count.used == u64::MAX || month < 24_000);
        prop_assert_eq!(count.month, 24_000);
    }
}
