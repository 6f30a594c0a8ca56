//! The engine's counters, read where it counts them.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use patronus_abi::channel::{EntryRecord, PATH_WORDS, PathRecord, PathReport, place};
use patronus_sync::{RegionReader, Words};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};

/// Words of an entry of the directory.
const ENTRY_WORDS: usize = size_of::<EntryRecord>() / 8;

/// The engine's counters. They go on being readable when it is gone, and stand still then.
#[derive(Clone)]
pub struct Statistics {
    region: RegionReader,
    fd: Arc<OwnedFd>,
}

/// One counter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// What is counted, as in the Prometheus text format, without a prefix.
    pub name: String,
    /// Of what, as in the Prometheus text format, without braces.
    pub labels: String,
    /// Whether it only grows.
    pub is_counter: bool,
    /// How much.
    pub value: u64,
}

impl fmt::Debug for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Statistics").finish_non_exhaustive()
    }
}

impl Statistics {
    /// The counters in a segment, as [`Link::statistics`](crate::Link::statistics) has them.
    pub fn new(fd: OwnedFd) -> io::Result<Statistics> {
        Ok(Statistics {
            region: RegionReader::map(&fd, place::STATS_LEN)?,
            fd: Arc::new(fd),
        })
    }

    /// When those that are not counted in place were copied, nanoseconds of CLOCK_BOOTTIME; 0: never.
    pub fn copied_at(&self) -> u64 {
        self.region.load(place::COPIED_AT, Ordering::Relaxed)
    }

    /// All of them, each by itself as it is at this moment.
    pub fn values(&self) -> impl Iterator<Item = Value> + '_ {
        let entries = self.region.load(place::ENTRIES, Ordering::Acquire);
        let entries = entries.min(place::ENTRY_COUNT as u64) as usize;
        (0..entries).filter_map(|at| self.value(at))
    }

    /// The paths that there are towards remotes.
    pub fn paths(&self) -> impl Iterator<Item = PathReport> + '_ {
        let used = self.region.load(place::PATHS_USED, Ordering::Acquire);
        let used = used.min(place::PATH_COUNT as u64) as usize;
        (0..used).filter_map(|at| self.path(at))
    }

    /// `None`: the record is free, or is being changed.
    fn path(&self, at: usize) -> Option<PathReport> {
        let at = place::PATHS + at * size_of::<PathRecord>();
        let words: [u64; PATH_WORDS] = std::array::from_fn(|word| {
            // Acquire for the first, the sequence number: the others are read after it.
            self.region.load(at + 8 * word, Ordering::Acquire)
        });
        fence(Ordering::Acquire);
        let unchanged = self.region.load(at, Ordering::Relaxed) == words[0];
        (unchanged && words[0].is_multiple_of(2)).then(|| PathRecord::read(words))?
    }

    /// `None`: the entry is free, or is being changed.
    fn value(&self, at: usize) -> Option<Value> {
        let at = place::DIRECTORY + at * size_of::<EntryRecord>();
        let words: [u64; ENTRY_WORDS] = std::array::from_fn(|word| {
            // Acquire for the first, the sequence number: the others are read after it.
            self.region.load(at + 8 * word, Ordering::Acquire)
        });
        fence(Ordering::Acquire);
        let record: EntryRecord = zerocopy::transmute!(words);
        let (sequence, offset) = (record.sequence.get(), record.offset.get() as usize);
        let counters = place::COUNTERS..=place::STATS_LEN - 8;
        if sequence % 2 != 0 || !counters.contains(&offset) || !offset.is_multiple_of(8) {
            return None;
        }
        let value = self.region.load(offset, Ordering::Relaxed);
        fence(Ordering::Acquire);
        if self.region.load(at, Ordering::Relaxed) != words[0] {
            return None;
        }
        let text = |bytes: &[u8], len: u8| {
            String::from_utf8_lossy(&bytes[..usize::from(len).min(bytes.len())]).into_owned()
        };
        Some(Value {
            name: text(&record.name, record.name_len),
            labels: text(&record.labels, record.labels_len),
            is_counter: record.kind == 0,
            value,
        })
    }
}

/// To be passed on to who may read the counters as well.
impl AsFd for Statistics {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
