//! The statistics segment: counters that other processes read where they are counted, and a directory that says what is where.
//!
//! The layout is in [`patronus_abi::channel`]. Workers count in it ([`Directory::worker`]). What is counted elsewhere, by ports that come and go and by the protocol, is
//! copied there by the slow path now and then ([`Directory::set`]), which also takes away what is gone. An entry of the directory is changed under a sequence number,
//! odd as long as it is being changed, so a reader takes no entry for another one's; a counter's place is used again, but by then its entry has another number.
//!
//! Belongs to the main thread at the start, then to the slow path's. Whoever reads has only the file, and cannot write.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use patronus_abi::channel::{EntryRecord, RegionRecord, STATS_MAGIC, place};
use patronus_io::Counter;
use patronus_sync::{Placed, Segment};

use super::WorkerStats;
use super::paths::PathTable;

/// Words of an entry.
const WORDS: usize = size_of::<EntryRecord>() / 8;
/// Where in an entry its sequence number is.
const SEQUENCE: usize = 0;

pub(super) type Head = [AtomicU64; place::DIRECTORY / 8];
type Entries = [[AtomicU64; WORDS]; place::ENTRY_COUNT];

/// The name of a counter, and whether it only grows.
pub type Name = (&'static str, bool);

/// A counter of our own in the segment.
struct Cell {
    entry: usize,
    offset: usize,
    value: Placed<Counter>,
}

/// The directory, and what is in the segment.
pub struct Directory {
    segment: Segment,
    /// Until somebody takes it.
    paths: Option<PathTable>,
    head: Placed<Head>,
    entries: Placed<Entries>,
    used: usize,
    /// What is copied, by its labels, and the round in which it was there last.
    copied: HashMap<String, (Vec<Cell>, u64)>,
    /// Entries and places that nobody has.
    free: Vec<Cell>,
    round: u64,
    refused: u64,
}

impl Directory {
    /// An empty directory in a segment of which nothing is given away yet. `None` if it is too short.
    pub fn new(mut segment: Segment) -> Option<Directory> {
        let (head, _) = segment.place::<Head>()?;
        segment.skip_to(place::DIRECTORY);
        let (entries, _) = segment.place::<Entries>()?;
        segment.skip_to(place::COUNTERS);
        let paths = PathTable::new(head.clone(), segment.split_off(place::PATHS))?;
        for (to, word) in head.iter().zip(RegionRecord::new(STATS_MAGIC).words()) {
            to.store(word, Ordering::Relaxed);
        }
        Some(Directory {
            segment,
            paths: Some(paths),
            head,
            entries,
            used: 0,
            copied: HashMap::new(),
            free: Vec::new(),
            round: 0,
            refused: 0,
        })
    }

    /// Counters for a worker to count in; elsewhere if there is no room.
    pub fn worker(&mut self, number: usize) -> Placed<WorkerStats> {
        let Some((stats, at)) = self.segment.place::<WorkerStats>() else {
            self.refused += 1;
            return Placed::default();
        };
        for (name, label, offset) in WorkerStats::places() {
            let mut labels = format!("worker=\"{number}\"");
            if let Some((label, value)) = label {
                labels.push_str(&format!(",{label}=\"{value}\""));
            }
            match self.next_entry() {
                Some(entry) => self.describe(entry, (name, true), &labels, at + offset),
                None => self.refused += 1,
            }
        }
        stats
    }

    /// The table of paths, once.
    pub fn take_paths(&mut self) -> Option<PathTable> {
        self.paths.take()
    }

    /// What could not be shown for want of room.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Copies what belongs to these labels, which always has these names.
    pub fn set(&mut self, labels: &str, names: &[Name], values: impl IntoIterator<Item = u64>) {
        if !self.copied.contains_key(labels) {
            let cells: Vec<Cell> = names.iter().map_while(|name| self.cell(*name, labels)).collect();
            self.refused += (names.len() - cells.len()) as u64;
            self.copied.insert(labels.to_owned(), (cells, 0));
        }
        if let Some((cells, round)) = self.copied.get_mut(labels) {
            *round = self.round;
            for (cell, value) in cells.iter().zip(values) {
                cell.value.set(value);
            }
        }
    }

    /// Ends a round of copies at this time, nanoseconds of CLOCK_BOOTTIME: what was not set in it is gone.
    pub fn end_round(&mut self, now: u64) {
        let round = self.round;
        let gone = self.copied.extract_if(|_, (_, last)| *last != round);
        let gone: Vec<Cell> = gone.flat_map(|(_, (cells, _))| cells).collect();
        for cell in &gone {
            self.change(cell.entry, &[0; WORDS]);
        }
        self.free.extend(gone);
        self.round += 1;
        self.head[place::COPIED_AT / 8].store(now, Ordering::Relaxed);
    }

    /// A counter with this name.
    fn cell(&mut self, name: Name, labels: &str) -> Option<Cell> {
        let cell = match self.free.pop() {
            Some(cell) => {
                cell.value.set(0);
                cell
            }
            None => {
                let (value, offset) = self.segment.place()?;
                let entry = self.next_entry()?;
                Cell { entry, offset, value }
            }
        };
        self.describe(cell.entry, name, labels, cell.offset);
        Some(cell)
    }

    fn next_entry(&mut self) -> Option<usize> {
        (self.used < place::ENTRY_COUNT).then(|| {
            self.used += 1;
            self.used - 1
        })
    }

    fn describe(&mut self, entry: usize, (name, is_counter): Name, labels: &str, offset: usize) {
        let mut record = EntryRecord::default_at(offset as u32, is_counter);
        record.say(name, labels);
        self.change(entry, &record.words());
        // Release: whoever sees so many entries sees them written.
        let entries = &self.head[place::ENTRIES / 8];
        let seen = entries.load(Ordering::Relaxed).max(entry as u64 + 1);
        entries.store(seen, Ordering::Release);
    }

    /// Replaces an entry, whatever the words say of its sequence number.
    fn change(&mut self, entry: usize, words: &[u64; WORDS]) {
        let entry = &self.entries[entry];
        let before = entry[SEQUENCE].load(Ordering::Relaxed);
        entry[SEQUENCE].store(before + 1, Ordering::Relaxed);
        // Whoever reads one of the words below, and has an acquire fence after it, sees the odd number or a later one.
        fence(Ordering::Release);
        for (to, word) in entry.iter().zip(words).skip(1) {
            to.store(*word, Ordering::Relaxed);
        }
        // Release: whoever sees the even number sees the rest.
        entry[SEQUENCE].store(before + 2, Ordering::Release);
    }
}
