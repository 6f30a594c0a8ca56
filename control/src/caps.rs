//! Data caps: how much has gone by links that may carry so much a month, and which of them have carried all of it.
//!
//! What counts is what the kernel counts of a link's interface, both ways, whoever it is of: that is what a provider charges for. Its counters go on while this process does not
//! run, so nothing is missed then; what a machine forgets that loses its power is the last [`WRITTEN_EVERY`]. Months begin at 0:00 UTC on a day that the file says.
//!
//! [`Count`] is a plain value, fed with readings and months. [`Caps`] is the main thread's: it reads, keeps the counts in the state folder, and says what is used up. Threads of
//! connections look at the [`Usage`]s, behind a lock that is held while they are copied.

use std::collections::HashMap;
use std::fs;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use patronus_config::Config;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::confirmation::boot_id;
use crate::keep::Keeper;

/// How often counters are read.
const EVERY: Duration = Duration::from_secs(1);
/// How often counts are written down, if nothing has happened.
const WRITTEN_EVERY: Duration = Duration::from_secs(60);
/// Of a hundred parts so many are used: somebody should know.
const NEARLY: u64 = 80;
/// Seconds from 1970 to 2025: a clock that says less has not been set since the machine was booted.
const SET: u64 = 1_735_689_600;
/// The counters of interfaces of this process's network namespace (proc_pid_net(5)).
const COUNTERS: &str = "/proc/self/net/dev";
/// The name of the file.
const NAME: &str = "caps";
const DAY: u64 = 86_400;
/// Links that there can be.
const LINKS_MAX: usize = 15;
/// The last month of the year 9999.
const MONTH_MAX: u32 = 12 * 9999 + 11;

/// How much of a cap is used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// The link's number.
    pub link: u8,
    /// Its interface.
    pub interface: String,
    /// Bytes this month.
    pub used: u64,
    /// Bytes that may be.
    pub cap: u64,
    /// When it begins anew, seconds from 1970.
    pub begins_anew: u64,
}

impl Usage {
    /// Nothing is left.
    pub fn is_used_up(&self) -> bool {
        self.used >= self.cap
    }

    /// Little is left, or nothing.
    pub fn is_nearly(&self) -> bool {
        u128::from(self.used) * 100 >= u128::from(self.cap) * u128::from(NEARLY)
    }
}

/// What has been counted of a link, as it is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// The link's number.
    link: u8,
    /// The interface that it was.
    interface: String,
    /// The month, counted from the year 0.
    month: u32,
    /// Bytes in it.
    used: u64,
    /// What the interface's counters said last.
    counter: Option<u64>,
    /// In which run of the machine, as random(4) has it.
    boot: String,
}

impl Count {
    /// Takes what the interface's counters say, if it is there, and the month, if the clock is set.
    fn take(&mut self, reading: Option<u64>, month: Option<u32>, boot: &str) {
        if let Some(month) = month.filter(|month| *month != self.month) {
            // A clock that was put back begins no month anew.
            if month > self.month {
                self.used = 0;
            }
            self.month = month;
        }
        let Some(reading) = reading else { return };
        let before = self.counter.replace(reading);
        let new = match before {
            // Nobody knows what of it is of this month.
            None => 0,
            Some(before) if self.boot == boot && before <= reading => reading - before,
            // The machine has been booted, or the interface made anew: it has counted from 0.
            Some(_) => reading,
        };
        self.used = self.used.saturating_add(new);
        boot.clone_into(&mut self.boot);
    }
}

/// What everybody may look at.
#[derive(Clone, Default)]
pub struct Usages(Arc<Mutex<Vec<Usage>>>);

impl Usages {
    /// By the links' numbers.
    pub fn get(&self) -> Vec<Usage> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn put(&self, usages: Vec<Usage>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = usages;
    }
}

/// A cap, as the site's file has it.
struct Limit {
    link: u8,
    interface: String,
    cap: u64,
    day: u64,
}

/// The main thread's part.
pub struct Caps {
    limits: Vec<Limit>,
    counts: Vec<Count>,
    usages: Usages,
    boot: String,
    look_at: Instant,
    written_at: Option<Instant>,
}

impl Caps {
    /// With what was counted before.
    pub fn new(keeper: &Keeper) -> Caps {
        let mut counts: Vec<Count> = keeper.read(NAME).unwrap_or_default();
        counts.retain(|count| (1..=LINKS_MAX).contains(&count.link.into()) && count.month <= MONTH_MAX);
        counts.truncate(LINKS_MAX);
        Caps {
            limits: Vec::new(),
            counts,
            usages: Usages::default(),
            boot: boot_id(),
            look_at: Instant::now(),
            written_at: None,
        }
    }

    /// What others look at.
    pub fn usages(&self) -> &Usages {
        &self.usages
    }

    /// What is to be in force from now on. What was counted of a link goes on to be, whatever its interface is; what goes by while it has no cap does not count.
    pub fn configure(&mut self, config: &Config) {
        let limit = |link: &patronus_config::Link| {
            Some(Limit {
                link: link.id.get_ref().get() as u8,
                interface: link.interface.get_ref().as_str().to_owned(),
                cap: link.data_cap.as_ref()?.get_ref().0,
                day: link.data_cap_day.as_ref().map_or(1, |day| day.get_ref().get()),
            })
        };
        self.limits = config.links.iter().filter_map(limit).collect();
        self.limits.sort_unstable_by_key(|limit| limit.link);
        let is_limited = |link: u8| self.limits.iter().any(|limit| limit.link == link);
        for count in self.counts.iter_mut().filter(|count| !is_limited(count.link)) {
            count.counter = None;
        }
        self.look_at = Instant::now();
    }

    /// When to [look](Self::look).
    pub fn again_at(&self) -> Option<Instant> {
        (!self.limits.is_empty()).then_some(self.look_at)
    }

    /// Counts, if that is due. Of every link with a cap: whether that is used up.
    pub fn look(&mut self, keeper: &Keeper) -> Option<Vec<(u8, bool)>> {
        if self.look_at > Instant::now() {
            return None;
        }
        self.look_at = Instant::now() + EVERY;
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = since_1970.map_or(0, |now| now.as_secs());
        let text = match self.limits.is_empty() {
            true => String::new(),
            false => fs::read_to_string(COUNTERS).unwrap_or_default(),
        };
        let has_happened = self.count(now, &counters(&text));
        if has_happened || self.written_at.is_none_or(|at| at.elapsed() >= WRITTEN_EVERY) {
            self.write(keeper);
        }
        let usages = self.usages.get();
        Some(
            usages
                .iter()
                .map(|usage| (usage.link, usage.is_used_up()))
                .collect(),
        )
    }

    /// Writes the counts down.
    pub fn write(&mut self, keeper: &Keeper) {
        if !self.counts.is_empty() {
            keeper.put(NAME, &self.counts);
        }
        self.written_at = Some(Instant::now());
    }

    /// Whether there is something to be said.
    fn count(&mut self, now: u64, counters: &HashMap<&str, u64>) -> bool {
        let before = self.usages.get();
        let mut usages = Vec::new();
        let mut has_happened = false;
        for limit in &self.limits {
            let at = self.counts.iter().position(|count| count.link == limit.link);
            let at = at.unwrap_or_else(|| {
                self.counts.push(Count {
                    link: limit.link,
                    ..Count::default()
                });
                self.counts.len() - 1
            });
            let count = &mut self.counts[at];
            if count.interface != limit.interface {
                limit.interface.clone_into(&mut count.interface);
                count.counter = None;
            }
            let month = (now >= SET).then(|| month_of(now, limit.day));
            count.take(counters.get(limit.interface.as_str()).copied(), month, &self.boot);
            let usage = Usage {
                link: limit.link,
                interface: limit.interface.clone(),
                used: count.used,
                cap: limit.cap,
                begins_anew: begin_of(count.month + 1, limit.day),
            };
            let before = before.iter().find(|before| before.link == usage.link);
            has_happened |= say(before, &usage);
            usages.push(usage);
        }
        self.usages.put(usages);
        has_happened
    }
}

/// Logs what somebody should know and does not.
fn say(before: Option<&Usage>, now: &Usage) -> bool {
    let was = before.map(|before| (before.is_nearly(), before.is_used_up()));
    let is = (now.is_nearly(), now.is_used_up());
    if was.unwrap_or_default() == is {
        return false;
    }
    let Usage {
        link,
        interface,
        used,
        cap,
        ..
    } = now;
    match is {
        (_, true) => warn!(
            link,
            interface, used, cap, "the data cap is used up: the link is the last resort until it begins anew"
        ),
        (true, false) => warn!(link, interface, used, cap, "{NEARLY} % of the data cap is used"),
        (false, false) => info!(
            link,
            interface, used, cap, "there is enough of the data cap again"
        ),
    }
    true
}

/// Bytes that interfaces have received and sent, by their names, of a text as /proc/net/dev has it.
fn counters(text: &str) -> HashMap<&str, u64> {
    let line = |line| {
        let (name, values): (&str, &str) = str::split_once(line, ':')?;
        let mut values = values.split_ascii_whitespace();
        let received: u64 = values.next()?.parse().ok()?;
        let sent: u64 = values.nth(7)?.parse().ok()?;
        Some((name.trim(), received.saturating_add(sent)))
    };
    text.lines().filter_map(line).collect()
}

/// The month in which these seconds from 1970 are, if months begin on this day: counted from the year 0.
fn month_of(now: u64, day: u64) -> u32 {
    let (months, of_month) = civil(now / DAY);
    months - u32::from(of_month < day)
}

/// When a month begins, seconds from 1970.
fn begin_of(month: u32, day: u64) -> u64 {
    // A month has 30.4369 days in the mean, and the calendar is never ten days from that. None before 1970 is asked for.
    let mean = u64::from(month.saturating_sub(12 * 1970)) * 30_436_875 / 1_000_000;
    let mut days = mean.saturating_sub(10);
    while civil(days).0 < month {
        days += 1;
    }
    (days + day - 1) * DAY
}

/// The month, counted from the year 0, and the day in it, of a day counted from 1970 (H. Hinnant, "chrono-compatible low-level date algorithms", `civil_from_days`).
fn civil(days: u64) -> (u32, u64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    // The year begins in March.
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    ((12 * (400 * era + year) + month + 2) as u32, day)
}

/// A date of these seconds from 1970: `2026-12-01`.
pub fn date(at: u64) -> String {
    let (months, day) = civil(at / DAY);
    format!("{:04}-{:02}-{day:02}", months / 12, months % 12 + 1)
}

#[cfg(test)]
mod tests;
