//! The engine, as the main thread sees it: attached, or looked for again and again.
//!
//! All of what the channel to it is made of is behind this: nothing else here knows `patronus_link`, but for [`ask`], [`request`] and [`observe`].

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use patronus_abi::Site;
use patronus_link::{Attached, Command, Event, Link, LinkError, Statistics};
use patronus_observe::Request;
use tracing::{info, warn};

/// How soon an engine is looked for again, at first and at most.
const FIRST: Duration = Duration::from_millis(10);
const LAST: Duration = Duration::from_secs(1);

/// The engine.
pub struct Engine {
    socket: PathBuf,
    link: Option<Link>,
    again_at: Instant,
    pause: Duration,
    /// Why it could not be attached to, as was said last.
    said: Option<String>,
}

impl Engine {
    /// The engine at this socket, which is looked for at once.
    pub fn new(socket: &Path) -> Engine {
        Engine {
            socket: socket.to_owned(),
            link: None,
            again_at: Instant::now(),
            pause: FIRST,
            said: None,
        }
    }

    /// Whether there is one.
    pub fn is_attached(&self) -> bool {
        self.link.is_some()
    }

    /// Readable when there are events, or it has gone.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.link.as_ref().map(AsFd::as_fd)
    }

    /// When to call [`attach`](Self::attach).
    pub fn again_at(&self) -> Option<Instant> {
        self.link.is_none().then_some(self.again_at)
    }

    /// Looks for an engine, if that is due.
    pub fn attach(&mut self) -> Option<Attached> {
        if self.link.is_some() || Instant::now() < self.again_at {
            return None;
        }
        match Link::attach(&self.socket) {
            Ok((link, attached)) => {
                info!(generation = attached.generation, "attached to an engine");
                self.link = Some(link);
                self.pause = FIRST;
                self.said = None;
                Some(attached)
            }
            Err(error) => {
                self.say(&error);
                self.again_at = Instant::now() + self.pause;
                self.pause = (2 * self.pause).min(LAST);
                None
            }
        }
    }

    /// Says why there is no engine, once.
    fn say(&mut self, error: &LinkError) {
        let text = error.to_string();
        if self.said.as_ref() != Some(&text) {
            warn!(socket = %self.socket.display(), "no engine: {text}");
            self.said = Some(text);
        }
    }

    /// Tells it what the site is to be.
    pub fn publish(&mut self, site: &Site, generation: u64, keys: &[File]) -> Result<(), String> {
        let link = self.link.as_mut().ok_or("no engine is attached")?;
        let keys: Vec<BorrowedFd<'_>> = keys.iter().map(AsFd::as_fd).collect();
        let published = link.publish(site, generation, &keys);
        published.map_err(|error| {
            let text = error.to_string();
            self.lose(&text);
            text
        })
    }

    /// What it has said, and how much of it there was no room for.
    pub fn events(&mut self, into: &mut Vec<Event>) -> u64 {
        let Some(link) = &mut self.link else { return 0 };
        let lost = link.events(into);
        if lost.events > 0 {
            let events = lost.events;
            warn!(events, "the engine had more to say than there was room for");
        }
        if lost.engine {
            self.lose("its end of the channel is closed");
        }
        lost.events
    }

    /// Has it do something. Whether there was room for that.
    pub fn command(&mut self, command: &Command) -> bool {
        let link = self.link.as_mut();
        link.is_some_and(|link| link.command(command).is_ok())
    }

    /// Its counters.
    pub fn statistics(&self) -> Option<Statistics> {
        self.link.as_ref().map(Link::statistics)
    }

    /// Lets go of it, to look for it again.
    pub fn lose(&mut self, why: &str) {
        warn!("the engine is gone: {why}");
        self.link = None;
        self.again_at = Instant::now();
    }
}

/// Asks an engine's query socket a question of several lines. Waits for the answer, and not for ever.
pub fn request(socket: &Path, lines: &str) -> io::Result<String> {
    patronus_link::ask(socket, lines)
}

/// Asks an engine's query socket. Waits for the answer, and not for ever.
pub fn ask(socket: &Path, what: &str) -> io::Result<String> {
    patronus_link::query(socket, what)
}

/// Asks an engine's query socket for the flows that its workers remember, so many at most.
pub fn flows(socket: &Path, most: usize) -> io::Result<String> {
    patronus_link::ask(socket, &format!("ask=flows\nmost={most}"))
}

/// Asks an engine's query socket for packets. What comes back is for whoever has the descriptor; the engine takes no other question on it.
pub fn observe(socket: &Path, request: &Request) -> io::Result<OwnedFd> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_write_timeout(Some(patronus_link::PATIENCE))?;
    stream.write_all(request.to_string().as_bytes())?;
    Ok(stream.into())
}
