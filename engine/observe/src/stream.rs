//! The asking end of the query socket: sends a request, reads what is told.
//!
//! The engine's workers tell what they see independently; records come out of here in the order of time, as far as [`SETTLED`] allows, and only
//! those of packets that the filter is about.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use zerocopy::IntoBytes;

use crate::head::Head;
use crate::record::{Matched, Point, RECORD, Record};
use crate::request::{Request, SNAP_MAX};

/// No record comes this much later than one that was made after it, nanoseconds.
const SETTLED: u64 = 5_000_000;
/// How long nothing has to come until all is there.
const QUIET: Duration = Duration::from_millis(20);
/// Bytes of a head at most.
const HEAD_MAX: usize = 1 << 16;
/// Packets of which it is not known yet whether they are meant.
const HELD_MAX: usize = 1 << 16;

/// Why the engine tells nothing.
#[derive(Debug)]
pub enum Refused {
    /// It says so, in a sentence.
    Engine(String),
    /// What answers is no engine, or one of another release.
    Unknown,
    /// The socket failed.
    Io(io::Error),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Engine(why) => f.write_str(why),
            Refused::Unknown => {
                f.write_str("what answers is not patronus-engine, or one of another release: use the tools that came with it")
            }
            Refused::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Refused {}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Refused {
        Refused::Io(error)
    }
}

/// What comes out of a stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A packet at a point of its way, and as many of its bytes as were asked for.
    Seen(Record, Vec<u8>),
    /// For the moment there is nothing: a good time to write out what there was.
    Quiet,
    /// It is over; so many records found no room.
    End(u64),
}

/// A trace or a capture that is on. It ends when this is dropped.
pub struct Stream {
    socket: UnixStream,
    head: Head,
    bytes: Vec<u8>,
    unsettled: Unsettled,
    /// Settled and not given out, last first.
    ready: Vec<(Record, Vec<u8>)>,
    lost: u64,
    over: bool,
}

impl Stream {
    /// Asks the engine behind this query socket.
    ///
    /// # Errors
    /// If it does not answer, or refuses.
    pub fn begin(path: &Path, request: &Request) -> Result<Stream, Refused> {
        let mut socket = UnixStream::connect(path)?;
        socket.write_all(request.to_string().as_bytes())?;
        Stream::over(socket)
    }

    /// What comes over a connection to an engine, on which somebody has asked.
    ///
    /// # Errors
    /// If it does not answer, or refuses.
    pub fn over(mut socket: UnixStream) -> Result<Stream, Refused> {
        let (head, bytes) = read_head(&mut socket)?;
        socket.set_read_timeout(Some(QUIET))?;
        Ok(Stream {
            socket,
            head,
            bytes,
            unsettled: Unsettled::default(),
            ready: Vec::new(),
            lost: 0,
            over: false,
        })
    }

    /// The names of what records give numbers of.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Asks the engine to end it; what was seen until then still comes.
    pub fn stop(&self) -> io::Result<()> {
        self.socket.shutdown(Shutdown::Write)
    }

    /// Waits for what comes next, a fraction of a second at most.
    ///
    /// # Errors
    /// If the engine has gone, or says what nobody understands.
    pub fn wait(&mut self) -> io::Result<Event> {
        loop {
            if let Some((record, data)) = self.ready.pop() {
                return Ok(Event::Seen(record, data));
            }
            if self.over {
                return Ok(Event::End(self.lost));
            }
            let quiet = !self.receive()?;
            self.settle(quiet || self.over);
            if quiet && self.ready.is_empty() && !self.over {
                return Ok(Event::Quiet);
            }
        }
    }

    /// True if something came.
    fn receive(&mut self) -> io::Result<bool> {
        let mut room = [0; 1 << 16];
        match self.socket.read(&mut room) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => self.bytes.extend(&room[..n]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Ok(false);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(true),
            Err(error) => return Err(error),
        }
        let mut used = 0;
        while let Some((record, len)) = whole(&self.bytes[used..])? {
            self.lost = self.lost.max(record.lost);
            if record.point == Point::End as u8 {
                self.over = true;
                break;
            }
            let data = self.bytes[used + RECORD..used + len].to_vec();
            self.unsettled.add(record, data);
            used += len;
        }
        self.bytes.drain(..used);
        Ok(true)
    }

    fn settle(&mut self, all: bool) {
        self.ready = self.unsettled.take(all);
        self.ready.reverse();
    }
}

/// The record at the front, and how long it is with its bytes, if all of it is there.
fn whole(bytes: &[u8]) -> io::Result<Option<(Record, usize)>> {
    let Some(front) = bytes.get(..RECORD) else {
        return Ok(None);
    };
    let mut record = Record::NONE;
    record.as_mut_bytes().copy_from_slice(front);
    if record.captured > SNAP_MAX || Point::of(record.point).is_none() {
        return Err(io::Error::new(
            ErrorKind::InvalidData,
            "no record that this release knows",
        ));
    }
    let len = RECORD + record.captured as usize;
    Ok((bytes.len() >= len).then_some((record, len)))
}

/// Reads until the empty line. What came behind it is returned as well.
fn read_head(socket: &mut UnixStream) -> Result<(Head, Vec<u8>), Refused> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(2).position(|pair| pair == b"\n\n") {
            break at + 2;
        }
        let mut room = [0; 4096];
        match socket.read(&mut room)? {
            0 => return Err(Refused::Unknown),
            _ if bytes.len() > HEAD_MAX => return Err(Refused::Unknown),
            n => bytes.extend(&room[..n]),
        }
    };
    let rest = bytes.split_off(end);
    let text = String::from_utf8(bytes).map_err(|_| Refused::Unknown)?;
    let why = text.lines().find_map(|line| line.strip_prefix("error="));
    if let Some(why) = why {
        return Err(Refused::Engine(why.to_owned()));
    }
    let record = format!("record={RECORD}");
    if !text.lines().any(|line| line == record) || !text.lines().any(|line| line == "errno=0") {
        return Err(Refused::Unknown);
    }
    let mut head = Head::default();
    text.lines().for_each(|line| head.line(line));
    Ok((head, rest))
}

/// Records that others may still come before, and packets that may not be meant.
#[derive(Default)]
struct Unsettled {
    /// By time, and in the order in which they came.
    by_time: BTreeMap<(u64, u64), (Record, Vec<u8>)>,
    came: u64,
    newest: u64,
    /// By frame, what was seen of a packet of which it is not known whether it is meant.
    held: HashMap<u32, Vec<(Record, Vec<u8>)>>,
}

impl Unsettled {
    fn add(&mut self, record: Record, data: Vec<u8>) {
        self.newest = self.newest.max(record.time);
        self.came += 1;
        self.by_time.insert((record.time, self.came), (record, data));
    }

    /// What nothing can come before any more, or all.
    fn take(&mut self, all: bool) -> Vec<(Record, Vec<u8>)> {
        let later = match all {
            true => BTreeMap::new(),
            false => self.by_time.split_off(&(self.newest.saturating_sub(SETTLED), 0)),
        };
        let mut settled = Vec::new();
        for (record, data) in std::mem::replace(&mut self.by_time, later).into_values() {
            self.decide(record, data, &mut settled);
        }
        settled
    }

    fn decide(&mut self, record: Record, data: Vec<u8>, settled: &mut Vec<(Record, Vec<u8>)>) {
        let begins = matches!(Point::of(record.point), Some(Point::LanRx | Point::WanRx));
        if begins {
            self.held.remove(&record.frame);
        }
        match Matched::of(record.matched) {
            Some(Matched::Yes) => {
                settled.extend(self.held.remove(&record.frame).into_iter().flatten());
                settled.push((record, data));
            }
            Some(Matched::Maybe) => {
                if self.held.len() >= HELD_MAX {
                    let oldest = self.held.iter().min_by_key(|(_, held)| Reverse(held.len()));
                    let oldest = oldest.map(|(frame, _)| *frame);
                    oldest.and_then(|frame| self.held.remove(&frame));
                }
                self.held.entry(record.frame).or_default().push((record, data));
            }
            Some(Matched::No) | None => {
                self.held.remove(&record.frame);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(point: Point, matched: Matched, frame: u32, time: u64) -> Record {
        Record {
            point: point as u8,
            matched: matched as u8,
            frame,
            time,
            ..Record::NONE
        }
    }

    #[test]
    fn records_come_in_the_order_of_time() {
        let mut unsettled = Unsettled::default();
        for time in [3, 1, 2, SETTLED + 2] {
            unsettled.add(record(Point::Encap, Matched::Yes, 1, time), Vec::new());
        }
        let times = |taken: Vec<(Record, Vec<u8>)>| taken.iter().map(|(r, _)| r.time).collect::<Vec<_>>();
        assert_eq!(times(unsettled.take(false)), [1]);
        assert_eq!(times(unsettled.take(true)), [2, 3, SETTLED + 2]);
    }

    #[test]
    fn a_packet_is_shown_once_it_is_known_to_be_meant() {
        let mut unsettled = Unsettled::default();
        unsettled.add(record(Point::LanRx, Matched::Maybe, 1, 1), vec![1]);
        unsettled.add(record(Point::LanRx, Matched::Maybe, 2, 2), Vec::new());
        unsettled.add(record(Point::LanRx, Matched::Maybe, 3, 2), Vec::new());
        unsettled.add(record(Point::Encap, Matched::Yes, 1, 3), Vec::new());
        unsettled.add(record(Point::Encap, Matched::No, 2, 4), Vec::new());
        unsettled.add(record(Point::LanRx, Matched::Yes, 3, 5), Vec::new());
        let shown = unsettled.take(true);
        let shown: Vec<_> = shown
            .iter()
            .map(|(r, data)| (r.frame, r.time, data.len()))
            .collect();
        assert_eq!(shown, [(1, 1, 1), (1, 3, 0), (3, 5, 0)]);
        assert!(unsettled.held.is_empty());
    }

    #[test]
    fn half_a_record_waits_for_its_other_half() {
        let one = Record {
            captured: 3,
            point: Point::LanRx as u8,
            ..Record::NONE
        };
        let bytes = [one.as_bytes(), &[1, 2, 3]].concat();
        for len in 0..bytes.len() {
            assert_eq!(whole(&bytes[..len]).unwrap(), None);
        }
        assert_eq!(whole(&bytes).unwrap(), Some((one, RECORD + 3)));
        let mut strange = bytes;
        strange[std::mem::offset_of!(Record, point)] = 77;
        assert!(whole(&strange).is_err());
    }
}
