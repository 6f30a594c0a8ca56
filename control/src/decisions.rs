//! The decision log: which path a class goes by since when, and why; which paths are up, down, good and poor.
//!
//! A record for each move of a class and each change of a path, in memory ([`KEPT`] of them) and on disk: lines of JSON in `decisions.jsonl` in the state folder and, of what was
//! before, in `decisions.1.jsonl`, [`FILE_MAX`] bytes each, mode 0640. What is on disk is there again after a restart of this process.
//!
//! The main thread adds records and never waits for the disk: a thread of the log's own writes them. What it is too slow for, and what the disk refuses, is counted. Threads of connections read
//! what is in memory.
//!
//! A remote can have its paths go up and down as often as it sends probes. So that it does not push out what was decided about others, [`BURST`] records are taken of one remote at a
//! time, and then one a second; how many there were beyond that stands in the next one (`left_out`).

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::quality::verdict::{Broken, What};
use crate::quality::window::Measured;

/// Records in memory at most.
pub const KEPT: usize = 4096;
/// Bytes of a file at most.
pub const FILE_MAX: u64 = 8 << 20;
/// Records of an answer, unless somebody wants fewer or more, and at most.
pub const ANSWER: usize = 100;
/// See [`ANSWER`].
pub const ANSWER_MAX: usize = 1000;
/// Records of one remote at a time at most: with many paths and classes the end of a line makes some hundred.
pub const BURST: u32 = 500;
/// Remotes that are told apart for that. Those beyond them count as one.
const REMOTES: usize = KEPT;
/// Records on their way to the disk at most.
const QUEUE: usize = KEPT;

/// A decision, or what made it necessary. Times are seconds, losses are parts of one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Counted from 1.
    pub sequence: u64,
    /// When: seconds from 1970.
    pub at: f64,
    /// `moved`: a class goes by another path; `poor`, `good`: a path is so for a class; `up`, `down`: a path is so.
    pub kind: String,
    /// The remote's name or key.
    pub remote: String,
    /// The class, if it concerns one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// The path, unless it is a move.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The path before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The path now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Why, in a word.
    pub why: String,
    /// The limit that is not kept, if it is for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Limit>,
    /// What was measured of the path, or of the one before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Lately>,
    /// What was measured of the path now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured_to: Option<Lately>,
    /// Records of this remote before this one for which there was no room.
    #[serde(default, skip_serializing_if = "is_none")]
    pub left_out: u64,
}

fn is_none(count: &u64) -> bool {
    *count == 0
}

/// A limit that is not kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Limit {
    /// Of what: `latency`, `jitter-in`, `jitter-out`, `loss-in`, `loss-out`.
    pub of: String,
    /// What was measured: seconds, or a part of one.
    pub measured: f64,
    /// What may be.
    pub limit: f64,
    /// Over how many seconds.
    pub seconds: u32,
}

/// What was measured over the last seconds. What is not there was not measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lately {
    /// Round trip: the median of the last second, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt: Option<f64>,
    /// Jitter towards us, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter_in: Option<f64>,
    /// Jitter towards the remote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter_out: Option<f64>,
    /// Lost packets towards us over ten seconds, a part of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_in: Option<f64>,
    /// Lost packets towards the remote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_out: Option<f64>,
}

impl Limit {
    /// In seconds and parts of one.
    pub fn of(broken: &Broken) -> Limit {
        let is_loss = matches!(broken.what, What::LossIn | What::LossOut);
        let value = |value: u32| if is_loss { part(value) } else { seconds(value) };
        Limit {
            of: broken.what.word().to_owned(),
            measured: value(broken.measured),
            limit: value(broken.limit),
            seconds: broken.seconds,
        }
    }
}

impl Lately {
    /// In seconds and parts of one.
    pub fn of(measured: &Measured) -> Lately {
        let loss = measured.ten.map(|ten| ten.ppm().map(part));
        Lately {
            rtt: measured.rtt.map(seconds),
            jitter_in: measured.jitter.inward.map(seconds),
            jitter_out: measured.jitter.outward.map(seconds),
            loss_in: loss.inward,
            loss_out: loss.outward,
        }
    }
}

/// From microseconds.
pub fn seconds(micros: u32) -> f64 {
    f64::from(micros) / 1e6
}

/// From parts per million.
pub fn part(ppm: u32) -> f64 {
    f64::from(ppm) / 1e6
}

/// Which records are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked<'a> {
    /// Of this remote only.
    pub remote: Option<&'a str>,
    /// Of this class only, and of paths as such.
    pub class: Option<&'a str>,
    /// With higher numbers than this one only.
    pub after: u64,
    /// The last so many.
    pub count: usize,
}

/// The log.
#[derive(Debug, Default)]
pub struct Decisions {
    memory: Mutex<Memory>,
    disk: Option<SyncSender<String>>,
    unwritten: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct Memory {
    records: VecDeque<Record>,
    last: u64,
    rooms: HashMap<String, Room>,
}

/// What there is room for of a remote.
#[derive(Debug)]
struct Room {
    /// Records, at this time.
    records: f64,
    at: f64,
    left_out: u64,
}

impl Room {
    /// Goes on to another time. A clock that was set back adds nothing.
    fn pass(&mut self, at: f64) {
        let passed = (at - self.at).max(0.0);
        self.records = (self.records + passed).min(BURST.into());
        self.at = at;
    }

    /// Nothing of it need be remembered.
    fn is_whole(&mut self, at: f64) -> bool {
        self.pass(at);
        self.left_out == 0 && self.records >= BURST.into()
    }
}

impl Decisions {
    /// The log in this folder, which is there, and what writes it.
    pub fn open(folder: &Path) -> (Decisions, Writer) {
        let files = Files::new(folder);
        let mut memory = Memory::default();
        for file in [&files.before, &files.now] {
            if let Err(error) = memory.read(file)
                && error.kind() != io::ErrorKind::NotFound
            {
                warn!(%error, file = %file.display(), "what was decided before cannot be read");
            }
        }
        let (disk, lines) = sync_channel(QUEUE);
        let log = Decisions {
            memory: Mutex::new(memory),
            disk: Some(disk),
            unwritten: Arc::default(),
        };
        let unwritten = Arc::clone(&log.unwritten);
        let writer = Writer {
            files,
            lines,
            unwritten,
        };
        (log, writer)
    }

    /// Adds a record, and numbers it, unless there are too many of its remote.
    pub fn add(&self, mut record: Record) {
        let mut memory = self.memory();
        let Some(left_out) = memory.admit(&record) else {
            return;
        };
        record.left_out = left_out;
        memory.last += 1;
        record.sequence = memory.last;
        let line = serde_json::to_string(&record).ok();
        memory.keep(record);
        drop(memory);
        let sent = self
            .disk
            .as_ref()
            .zip(line)
            .map(|(disk, line)| disk.try_send(line));
        if let Some(Err(_)) = sent {
            self.unwritten.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The records that are wanted, the oldest first.
    pub fn last(&self, asked: &Asked<'_>) -> Vec<Record> {
        let memory = self.memory();
        let newer = memory
            .records
            .iter()
            .rev()
            .take_while(|record| record.sequence > asked.after);
        let wanted = newer.filter(|record| asked.wants(record));
        let mut last: Vec<Record> = wanted.take(asked.count.min(ANSWER_MAX)).cloned().collect();
        last.reverse();
        last
    }

    /// Records that the disk was too slow for, or refused.
    pub fn unwritten(&self) -> u64 {
        self.unwritten.load(Ordering::Relaxed)
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Asked<'_> {
    fn wants(&self, record: &Record) -> bool {
        let class = record.class.as_deref();
        self.remote.is_none_or(|remote| record.remote == remote)
            && (class.is_none() || self.class.is_none_or(|wanted| class == Some(wanted)))
    }
}

impl Memory {
    /// Whether there is room for a record of its remote, and how many there were before it without.
    fn admit(&mut self, record: &Record) -> Option<u64> {
        let mut remote = record.remote.as_str();
        if !self.rooms.contains_key(remote) {
            self.rooms.retain(|_, room| !room.is_whole(record.at));
            if self.rooms.len() >= REMOTES {
                remote = "";
            }
        }
        let room = self.rooms.entry(remote.to_owned()).or_insert(Room {
            records: BURST.into(),
            at: record.at,
            left_out: 0,
        });
        room.pass(record.at);
        if room.records < 1.0 {
            room.left_out += 1;
            return None;
        }
        room.records -= 1.0;
        Some(std::mem::take(&mut room.left_out))
    }

    fn keep(&mut self, record: Record) {
        if self.records.len() == KEPT {
            self.records.pop_front();
        }
        self.records.push_back(record);
    }

    /// What a file holds. A line that is no record, cut off perhaps, is passed over.
    fn read(&mut self, file: &Path) -> io::Result<()> {
        for line in BufReader::new(File::open(file)?).split(b'\n') {
            if let Ok(record) = serde_json::from_slice::<Record>(&line?) {
                self.last = self.last.max(record.sequence);
                self.keep(record);
            }
        }
        Ok(())
    }
}

/// Writes what is added.
#[derive(Debug)]
pub struct Writer {
    files: Files,
    lines: Receiver<String>,
    unwritten: Arc<AtomicU64>,
}

impl Writer {
    /// Starts the log's thread, which ends with the log.
    pub fn start(self) -> io::Result<()> {
        let Writer {
            files,
            lines,
            unwritten,
        } = self;
        let thread = std::thread::Builder::new().name("decisions".to_owned());
        thread
            .spawn(move || files.write_all(&lines, &unwritten))
            .map(drop)
    }
}

/// The files, on the log's own thread.
#[derive(Debug)]
struct Files {
    now: PathBuf,
    before: PathBuf,
    open: Option<(File, u64)>,
    failed: bool,
}

impl Files {
    fn new(folder: &Path) -> Files {
        Files {
            now: folder.join("decisions.jsonl"),
            before: folder.join("decisions.1.jsonl"),
            open: None,
            failed: false,
        }
    }

    /// Until nobody adds anything any more.
    fn write_all(mut self, lines: &Receiver<String>, unwritten: &AtomicU64) {
        while let Ok(mut line) = lines.recv() {
            line.push('\n');
            let written = self.write(line.as_bytes());
            if let Err(error) = &written
                && !self.failed
            {
                warn!(%error, file = %self.now.display(), "decisions cannot be written down");
            }
            self.failed = written.is_err();
            unwritten.fetch_add(self.failed.into(), Ordering::Relaxed);
        }
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let more = line.len() as u64;
        let (mut file, mut len) = match self.open.take() {
            Some(open) => open,
            None => self.open()?,
        };
        if len + more > FILE_MAX {
            fs::rename(&self.now, &self.before)?;
            (file, len) = self.open()?;
        }
        file.write_all(line)?;
        self.open = Some((file, len + more));
        Ok(())
    }

    fn open(&self) -> io::Result<(File, u64)> {
        let mut options = OpenOptions::new();
        let options = options.read(true).append(true).create(true).mode(0o640);
        let mut file = options.open(&self.now)?;
        let mut len = file.metadata()?.len();
        let mut last = [b'\n'];
        if len > 0 {
            file.read_exact_at(&mut last, len - 1)?;
        }
        // A line that was cut off must not spoil the next one.
        if last != [b'\n'] {
            file.write_all(b"\n")?;
            len += 1;
        }
        Ok((file, len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, Instant};

    fn record(remote: &str, class: Option<&str>) -> Record {
        Record {
            kind: "moved".to_owned(),
            remote: remote.to_owned(),
            class: class.map(str::to_owned),
            why: "loss-in".to_owned(),
            limit: Some(Limit {
                of: "loss-in".to_owned(),
                measured: 0.021,
                limit: 0.01,
                seconds: 1,
            }),
            ..Record::default()
        }
    }

    fn all() -> Asked<'static> {
        Asked {
            count: usize::MAX,
            ..Asked::default()
        }
    }

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("patronus-{name}-{}", std::process::id()));
        fs::create_dir(&folder).expect("a folder");
        folder
    }

    /// Waits until the log's thread has written so many lines.
    fn lines(file: &Path, count: usize) -> String {
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            let text = fs::read_to_string(file).unwrap_or_default();
            if text.lines().count() >= count || Instant::now() > until {
                return text;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn memory_is_bounded_and_answers_are() {
        let log = Decisions::default();
        for number in 0..KEPT + 10 {
            let at = number as f64;
            let record = record("hub", Some("voice"));
            log.add(Record { at, ..record });
        }
        let last = log.last(&all());
        assert_eq!(last.len(), ANSWER_MAX);
        assert_eq!(last.last().map(|record| record.sequence), Some(KEPT as u64 + 10));
        assert_eq!(log.memory().records.len(), KEPT);
    }

    #[test]
    fn a_remote_does_not_push_out_what_was_decided_about_others() {
        let log = Decisions::default();
        log.add(record("hub", Some("voice")));
        let many = 2 * KEPT as u64;
        for number in 0..many {
            let at = number as f64 / many as f64;
            let record = record("mad", None);
            log.add(Record { at, ..record });
        }
        let of_hub = log.last(&Asked {
            remote: Some("hub"),
            ..all()
        });
        assert_eq!(of_hub.len(), 1);
        assert_eq!(log.memory().records.len(), 1 + BURST as usize);
        let add = |remote: &str, at: f64| {
            let record = record(remote, None);
            log.add(Record { at, ..record });
        };
        add("mad", 2.0);
        let last = log.last(&all()).pop().expect("it may speak again");
        assert_eq!(last.left_out, many - u64::from(BURST));
        // Of whom nothing was heard for long nothing is remembered; a clock that was set back is no obstacle.
        add("late", 1e9);
        assert_eq!(log.memory().rooms.len(), 1);
        add("branch", 1.0);
        (0..2 * REMOTES).for_each(|number| add(&number.to_string(), 2.0));
        assert_eq!(log.memory().rooms.len(), REMOTES + 1);
    }

    #[test]
    fn what_the_disk_refuses_is_counted() {
        let folder = folder("decisions-refused");
        let (log, writer) = Decisions::open(&folder);
        fs::remove_dir_all(&folder).expect("made above");
        writer.start().expect("a thread");
        log.add(record("hub", None));
        log.add(record("hub", None));
        let until = Instant::now() + Duration::from_secs(30);
        while log.unwritten() < 2 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(log.unwritten(), 2);
        assert_eq!(log.last(&all()).len(), 2, "in memory they are all the same");
    }

    #[test]
    fn who_asks_gets_what_he_asks_for() {
        let log = Decisions::default();
        log.add(record("hub", Some("voice")));
        log.add(record("hub", Some("video")));
        log.add(record("hub", None));
        log.add(record("branch", Some("voice")));
        let numbers = |asked: &Asked<'_>| -> Vec<u64> {
            log.last(asked).iter().map(|record| record.sequence).collect()
        };
        let asked = Asked {
            remote: Some("hub"),
            class: Some("voice"),
            ..all()
        };
        assert_eq!(numbers(&asked), [1, 3]);
        assert_eq!(numbers(&Asked { after: 2, ..all() }), [3, 4]);
        assert_eq!(numbers(&Asked { count: 1, ..all() }), [4]);
    }

    #[test]
    fn what_was_decided_is_there_after_a_restart() {
        let folder = folder("decisions");
        let (log, writer) = Decisions::open(&folder);
        writer.start().expect("a thread");
        log.add(record("hub", Some("voice")));
        log.add(record("a\nb", None));
        let file = folder.join("decisions.jsonl");
        let text = lines(&file, 2);
        assert_eq!(text.lines().count(), 2);
        let mode = fs::metadata(&file).expect("written").permissions().mode();
        assert_eq!(mode & 0o777 & !0o640, 0);
        // Cut off in the middle, as a machine does that loses its power.
        fs::write(&file, format!("{text}{{\"sequ")).expect("a file of ours");
        let (again, writer) = Decisions::open(&folder);
        writer.start().expect("a thread");
        let mut expected = record("hub", Some("voice"));
        expected.sequence = 1;
        assert_eq!(again.last(&all())[0], expected);
        again.add(record("hub", None));
        assert_eq!(again.last(&all()).last().map(|record| record.sequence), Some(3));
        assert!(lines(&file, 4).contains("\n{\"sequence\":3"));
        fs::remove_dir_all(&folder).expect("made above");
    }

    #[test]
    fn files_are_bounded() {
        let folder = folder("decision-files");
        let mut files = Files::new(&folder);
        let line = vec![b'x'; 1 << 20];
        for _ in 0..20 {
            files.write(&line).expect("a folder of ours");
        }
        let len = |file: &Path| fs::metadata(file).expect("written").len();
        assert!(len(&files.now) <= FILE_MAX && len(&files.before) <= FILE_MAX);
        assert_eq!(fs::read_dir(&folder).expect("a folder").count(), 2);
        fs::remove_dir_all(&folder).expect("made above");
    }
}
