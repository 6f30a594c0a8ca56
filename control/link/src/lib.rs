//! Control's end of the channel to the packet engine: attach, publish sites, send commands, hear events, read counters, ask questions.
//!
//! ```no_run
//! # use std::path::Path;
//! # fn main() -> Result<(), patronus_link::LinkError> {
//! # let (site, key): (patronus_abi::Site, std::fs::File) = todo();
//! # fn todo() -> (patronus_abi::Site, std::fs::File) { unreachable!() }
//! use std::os::fd::AsFd;
//! use patronus_link::{Link, content_of};
//!
//! let (mut link, attached) = Link::attach(Path::new("/run/patronus/engine.sock"))?;
//! if attached.content != content_of(&site)? {
//!     link.publish(&site, attached.generation + 1, &[key.as_fd()])?;
//! }
//! let mut events = Vec::new();
//! link.events(&mut events);
//! # Ok(()) }
//! ```
//!
//! What is shared and how stands in [`patronus_abi::channel`] and docs/abi.md. Nothing here waits for the engine but [`Link::attach`], which waits for its hello, and
//! [`Link::publish`], when so many keys go along that the socket is full; both give up after [`PATIENCE`]. One thread owns a [`Link`]; [`Statistics`] can be cloned and sent.
//! What the engine has written is not believed either: a mad engine costs wrong answers, never a crash.
#![forbid(unsafe_code)]

mod socket;
mod statistics;

use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use patronus_abi::blob::HEADER_LEN;
use patronus_abi::channel::{
    COMMAND_WORDS, DESCRIPTORS_MAX, EVENT_WORDS, HELLO_MAGIC, HelloRecord, PacketRecord, packet, place,
};
use patronus_abi::{ABI_VERSION, BLOB_MAX, BlobError, Site, content, encode};
use patronus_sync::{Layout, Region, RegionReader, RingReceiver, RingSender, Words};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

pub use patronus_abi::channel::{Command, DRILL_MAX, Event, NextHop};
pub use statistics::{Statistics, Value};

/// Bytes of an answer of the query socket at most: twice what all peers and prefixes that there may be take.
pub const ANSWER_MAX: usize = 256 << 20;

/// How long the engine may take to answer what it answers at once.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// An engine that this process is attached to. It goes on with what it has when this is dropped.
pub struct Link {
    socket: OwnedFd,
    slots: OwnedFd,
    slot: usize,
    commands: Sender,
    events: Receiver,
    theirs: RegionReader,
    lost: u64,
    statistics: Statistics,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

type Sender = RingSender<Region, RegionReader, COMMAND_WORDS>;
type Receiver = RingReceiver<Region, RegionReader, EVENT_WORDS>;

/// What the engine was doing when control attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Drawn when the engine started: another one has forgotten everything, dynamic routes and generations.
    pub boot: [u8; 16],
    /// Of the site in force; 0 if there is none.
    pub generation: u64,
    /// [`content_of`] the site in force; zeros if there is none.
    pub content: [u8; 32],
}

/// What was lost since the last look: then everything that was learnt from events has to be asked for again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[must_use]
pub struct Lost {
    /// Events that found the ring full.
    pub events: u64,
    /// The engine is gone.
    pub engine: bool,
}

/// The ring of commands is full, and the engine will empty it: try again a little later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the engine's ring of commands is full")
    }
}

impl std::error::Error for Full {}

/// Why there is no link, or not any more.
#[derive(Debug)]
pub enum LinkError {
    /// No engine listens there.
    NotThere,
    /// The engine does not want this process, for this reason.
    Refused(String),
    /// The engine is of another release.
    Abi {
        /// Its version of the layout.
        theirs: u32,
        /// This process's.
        ours: u32,
    },
    /// The site does not become a blob.
    Site(BlobError),
    /// So many keys were given instead of as many as the site has.
    Keys {
        /// Given.
        given: usize,
        /// That the site has.
        wanted: usize,
    },
    /// What came was nothing that an engine says.
    Nonsense,
    /// The system refuses.
    Io(io::Error),
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LinkError::NotThere => {
                f.write_str("no engine listens there: start it with `patronus-engine --control`")
            }
            LinkError::Refused(why) => write!(f, "the engine refuses: {why}"),
            LinkError::Abi { theirs, ours } => write!(
                f,
                "the engine speaks version {theirs} of the channel, and this is {ours}: engine and control have to be of the same release; install both, restart the engine"
            ),
            LinkError::Site(error) => write!(f, "the site cannot be told to the engine: {error}"),
            LinkError::Keys { given, wanted } => {
                write!(f, "{given} descriptors of keys: the site has {wanted}")
            }
            LinkError::Nonsense => f.write_str("what listens there is no engine"),
            LinkError::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for LinkError {}

impl From<io::Error> for LinkError {
    fn from(error: io::Error) -> LinkError {
        LinkError::Io(error)
    }
}

impl From<Errno> for LinkError {
    fn from(errno: Errno) -> LinkError {
        LinkError::Io(errno.into())
    }
}

/// What tells a site from others, as the engine reports of the one in force. Keys are not in it: a site with a key file of other content looks the same.
pub fn content_of(site: &Site) -> Result<[u8; 32], LinkError> {
    Ok(content(&encode(site, 0).map_err(LinkError::Site)?))
}

impl Link {
    /// Attaches to the engine that listens at `path`. One process at a time can.
    pub fn attach(path: &Path) -> Result<(Link, Attached), LinkError> {
        let socket = socket::connect(path)?;
        let (hello, fds) = socket::receive(&socket, PATIENCE)?;
        let (record, text) = HelloRecord::read_from_prefix(&hello).map_err(|_| LinkError::Nonsense)?;
        if record.magic != HELLO_MAGIC {
            return Err(LinkError::Nonsense);
        }
        let (theirs, ours) = (record.abi.get(), ABI_VERSION);
        if theirs != ours {
            return Err(LinkError::Abi { theirs, ours });
        }
        if !text.is_empty() {
            return Err(LinkError::Refused(String::from_utf8_lossy(text).into_owned()));
        }
        let [slots, events, statistics]: [OwnedFd; 3] = fds.try_into().map_err(|_| LinkError::Nonsense)?;
        let attached = Attached {
            boot: record.boot,
            generation: record.generation.get(),
            content: record.content,
        };
        Ok((Link::over(socket, slots, &events, statistics)?, attached))
    }

    fn over(socket: OwnedFd, slots: OwnedFd, events: &OwnedFd, statistics: OwnedFd) -> io::Result<Link> {
        let mine = Region::map(&slots, place::CONTROL_MAPPED)?;
        let theirs = RegionReader::map(events, place::EVENT_LEN)?;
        theirs.fault_in();
        let commands = Layout {
            tail: place::COMMAND_TAIL,
            head: place::COMMAND_HEAD,
            slots: place::COMMANDS,
            count: place::COMMAND_COUNT,
        };
        let events = Layout {
            tail: place::EVENT_TAIL,
            head: place::EVENT_HEAD,
            slots: place::EVENTS,
            count: place::EVENT_COUNT,
        };
        Ok(Link {
            socket,
            slots,
            slot: 0,
            commands: RingSender::new(mine.clone(), theirs.clone(), commands),
            events: RingReceiver::new(mine, theirs.clone(), events),
            theirs,
            lost: 0,
            statistics: Statistics::new(statistics)?,
        })
    }

    /// Wants `site` to be in force, under this number; `keys` are descriptors of its key files, the site's own first and then one for each peer that has a pre-shared
    /// key, in the peers' order. Whether it is comes as [`Event::Applied`] or [`Event::Refused`]; publish nothing before that.
    pub fn publish(
        &mut self,
        site: &Site,
        generation: u64,
        keys: &[BorrowedFd<'_>],
    ) -> Result<(), LinkError> {
        let (given, wanted) = (keys.len(), site.secrets());
        if given != wanted {
            return Err(LinkError::Keys { given, wanted });
        }
        let blob = encode(site, generation).map_err(LinkError::Site)?;
        self.publish_blob(&blob, generation, keys)
    }

    /// The same for bytes that may be anything.
    pub fn publish_blob(
        &mut self,
        blob: &[u8],
        generation: u64,
        keys: &[BorrowedFd<'_>],
    ) -> Result<(), LinkError> {
        if blob.len() > BLOB_MAX {
            return Err(LinkError::Site(BlobError::Length(blob.len())));
        }
        let at = (place::SLOTS + self.slot * place::SLOT) as u64;
        let (head, body) = blob.split_at(blob.len().min(HEADER_LEN));
        // Void as long as it is being written.
        socket::write(&self.slots, &[0; HEADER_LEN], at)?;
        socket::write(&self.slots, body, at + head.len() as u64)?;
        socket::write(&self.slots, head, at)?;
        let mut packet = PacketRecord::of(packet::PUBLISH);
        packet.slot = (self.slot as u32).into();
        packet.generation = generation.into();
        packet.keys = (keys.len() as u32).into();
        self.slot = (self.slot + 1) % place::SLOT_COUNT;
        let (first, more) = keys.split_at(keys.len().min(DESCRIPTORS_MAX));
        socket::send(&self.socket, packet.as_bytes(), first, PATIENCE)?;
        for some in more.chunks(DESCRIPTORS_MAX) {
            let packet = PacketRecord::of(packet::KEYS);
            socket::send(&self.socket, packet.as_bytes(), some, PATIENCE)?;
        }
        Ok(())
    }

    /// Sends a command.
    ///
    /// # Errors
    /// [`Full`] if the engine has not yet taken as many as the ring holds (4,096).
    ///
    /// # Panics
    /// If a route has no next hop or more than 4.
    pub fn command(&mut self, command: &Command) -> Result<(), Full> {
        let words = command.words().expect("a route has 1 to 4 next hops");
        if self.commands.send(words).ok_or(Full)? {
            let bell = PacketRecord::of(packet::BELL);
            // If there is no room for it, others lie there that will be heard; if the engine is gone, `events` says so.
            let _ = socket::send(&self.socket, bell.as_bytes(), &[], Duration::ZERO);
        }
        Ok(())
    }

    /// Takes the events that there are, without waiting, and says what was lost.
    pub fn events(&mut self, into: &mut Vec<Event>) -> Lost {
        // First: what is put into the ring after this rings again.
        let engine = !socket::drain(&self.socket);
        let nonsense = self.events.nonsense();
        // Bounded, whatever the engine does meanwhile.
        for _ in 0..place::EVENT_COUNT {
            let Some(words) = self.events.receive() else { break };
            into.push(Event::read(words));
        }
        let lost = self.theirs.load(place::EVENTS_LOST, Ordering::Relaxed);
        let nonsense = self.events.nonsense() - nonsense;
        let events = lost.wrapping_sub(self.lost).saturating_add(nonsense);
        self.lost = lost;
        Lost { events, engine }
    }

    /// The engine's counters.
    pub fn statistics(&self) -> Statistics {
        self.statistics.clone()
    }
}

/// Readable when there are events, or the engine is gone.
impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Asks the engine a question over its query socket, the one that `wg` speaks: `stats`, or `1` for what `wg` wants to know, keys among it. The answer in lines `name=value`,
/// without its end.
///
/// # Errors
/// `InvalidData` if the engine does not know the question, or the answer is longer than [`ANSWER_MAX`]; `TimedOut` if it is not there within [`PATIENCE`].
pub fn query(path: &Path, what: &str) -> io::Result<String> {
    ask(path, &format!("get={what}"))
}

/// The same for a question of several lines, such as `ask=flows`.
///
/// # Errors
/// As [`query`].
pub fn ask(path: &Path, question: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{question}\n\n").as_bytes())?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let text = read_answer(stream)?;
    match text.strip_suffix("errno=0\n\n") {
        Some(answer) => Ok(answer.to_owned()),
        None => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "the engine does not answer `{}`",
                question.lines().next().unwrap_or_default()
            ),
        )),
    }
}

/// What comes until the end, within its time and length: the engine is not believed to end.
fn read_answer(mut stream: UnixStream) -> io::Result<String> {
    let until = Instant::now() + PATIENCE;
    let mut answer = Vec::new();
    let mut some = vec![0; 64 << 10];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut some) {
            Ok(0) => break,
            Ok(more) if answer.len() + more <= ANSWER_MAX => answer.extend_from_slice(&some[..more]),
            Ok(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the engine's answer does not end",
                ));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    String::from_utf8(answer).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An engine that goes on talking must not have control go on listening.
    #[test]
    fn an_answer_that_does_not_end_is_given_up() {
        let (here, mut there) = UnixStream::pair().expect("a pair");
        let talks = std::thread::spawn(move || {
            let some = [b'a'; 64 << 10];
            while there.write_all(&some).is_ok() {}
        });
        read_answer(here).expect_err("it does not end");
        talks.join().expect("ends when nobody listens");
    }
}
