//! The table of paths in the statistics segment: what is known of each path towards a remote, for whoever attaches.
//!
//! The layout is in [`patronus_abi::channel`]. The slow path copies there what workers have written on the boards ([`path`](crate::path)), each record under its sequence number,
//! in rounds: what was not set in a round is gone, and its record is free. Belongs to the slow path's thread.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use patronus_abi::channel::{PATH_WORDS, PathName, PathReport, place};
use patronus_sync::{Placed, Segment};

use super::directory::Head;

type Records = [[AtomicU64; PATH_WORDS]; place::PATH_COUNT];

/// A path, by the remote's key and its name.
type Key = ([u8; 32], PathName);

/// The records, and whose they are.
pub struct PathTable {
    head: Placed<Head>,
    records: Placed<Records>,
    /// By path: the record, and the round in which it was set last.
    paths: BTreeMap<Key, (usize, u64)>,
    free: Vec<usize>,
    used: usize,
    round: u64,
}

impl PathTable {
    /// An empty table at the beginning of this segment. `None` if it is too short.
    pub(super) fn new(head: Placed<Head>, mut segment: Segment) -> Option<PathTable> {
        let (records, _) = segment.place()?;
        Some(PathTable {
            head,
            records,
            paths: BTreeMap::new(),
            free: Vec::new(),
            used: 0,
            round: 0,
        })
    }

    /// Whether no path is shown.
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// Shows a path. One that finds no room is not shown: so many paths nobody has.
    pub fn set(&mut self, report: &PathReport) {
        let key = (report.remote, report.path);
        let known = self.paths.get(&key).map(|(record, _)| *record);
        let Some(record) = known.or_else(|| self.next_record()) else {
            return;
        };
        self.paths.insert(key, (record, self.round));
        self.change(record, &report.record(0).words());
    }

    /// Ends a round: what was not set in it is gone.
    pub fn end_round(&mut self) {
        let round = self.round;
        let gone = self.paths.extract_if(.., |_, (_, last)| *last != round);
        let gone: Vec<usize> = gone.map(|(_, (record, _))| record).collect();
        gone.iter()
            .for_each(|record| self.change(*record, &[0; PATH_WORDS]));
        self.free.extend(gone);
        self.round += 1;
    }

    fn next_record(&mut self) -> Option<usize> {
        self.free.pop().or_else(|| {
            let next = (self.used < place::PATH_COUNT).then_some(self.used)?;
            self.used += 1;
            Some(next)
        })
    }

    /// Replaces a record, whatever the words say of its sequence number.
    fn change(&mut self, record: usize, words: &[u64; PATH_WORDS]) {
        let [sequence, rest @ ..] = &self.records[record];
        let before = sequence.load(Ordering::Relaxed);
        sequence.store(before + 1, Ordering::Relaxed);
        // Whoever reads one of the words below, and has an acquire fence after it, sees the odd number or a later one.
        fence(Ordering::Release);
        for (to, word) in rest.iter().zip(&words[1..]) {
            to.store(*word, Ordering::Relaxed);
        }
        // Release: whoever sees the even number sees the rest.
        sequence.store(before + 2, Ordering::Release);
        // Release: whoever sees so many records sees them written.
        self.head[place::PATHS_USED / 8].store(self.used as u64, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use patronus_abi::channel::{PathRecord, PathState, PathWhy, SAMPLES};

    use super::super::Directory;
    use super::*;

    fn report(remote: u8, local: u8) -> PathReport {
        PathReport {
            remote: [remote; 32],
            path: PathName { local, remote: 1 },
            state: PathState::Up,
            why: PathWhy::Heard,
            since: 7,
            mtu: None,
            in_use: true,
            interval: Some(50_000),
            remote_interval: None,
            rtt: None,
            rtt_min: None,
            jitter_in: 0,
            jitter_out: 0,
            in_sent: 1,
            in_received: 2,
            out_sent: 3,
            out_received: 4,
            sent_bytes: 5,
            received_bytes: 6,
            probes_sent: 7,
            probes_received: 8,
            samples: 0,
            recent: [0; SAMPLES],
        }
    }

    fn shown(table: &PathTable) -> Vec<PathReport> {
        let used = table.head[place::PATHS_USED / 8].load(Ordering::Acquire) as usize;
        let records = table.records[..used].iter();
        let words = records.map(|words| words.each_ref().map(|word| word.load(Ordering::Relaxed)));
        words
            .inspect(|words| assert!(words[0].is_multiple_of(2)))
            .filter_map(PathRecord::read)
            .collect()
    }

    #[test]
    fn what_is_shown_is_what_was_set_in_the_last_round() {
        let (segment, _fd) = Segment::create("test", place::STATS_LEN).unwrap();
        let mut table = Directory::new(segment).unwrap().take_paths().unwrap();
        assert_eq!(shown(&table), []);
        let (one, two, three) = (report(1, 1), report(1, 2), report(2, 1));
        [&one, &two].into_iter().for_each(|report| table.set(report));
        table.end_round();
        assert_eq!(shown(&table), [one, two]);
        let newer = PathReport { since: 8, ..one };
        table.set(&newer);
        table.end_round();
        assert_eq!(shown(&table), [newer], "the other one is gone");
        table.set(&newer);
        table.set(&three);
        assert_eq!(shown(&table), [newer, three], "in its place");
        (1..=200u8).for_each(|remote| (1..=15).for_each(|local| table.set(&report(remote, local))));
        assert_eq!(shown(&table).len(), 3000);
    }
}
