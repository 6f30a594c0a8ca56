//! The engine's end of the channel to the control process: who may attach, what is published, what is said back.
//!
//! Under control ([`Control`]) an engine has no file. It listens on a socket of packets, is set up by the first site that control publishes, and goes on with what it has
//! when control is gone; the next control finds out from the hello what is in force. The layout of all that is shared is in [`patronus_abi::channel`].
//!
//! Every control gets regions of its own, made when it attaches: nothing that an earlier one has left, or still holds, can mean anything in them. What control writes is
//! believed nowhere. A blob is copied out of its slot before it is looked at, by `pread`: no memory is shared that a decoder reads. Positions and commands of
//! the ring are checked where they are read. What is refused is counted.
//!
//! * [`listen`]: the socket's place, and whom it lets in
//! * [`channel`]: one attached control
//! * [`ordinary`]: which of its files are read
//!
//! Belongs to the main thread until the engine is set up, then to the slow path's, which never waits for control: each turn takes a bounded number of packets and
//! commands, and what cannot be sent at once is dropped (a bell) or ends the channel (a hello).

pub mod channel;
mod listen;
mod ordinary;

use std::fmt;
use std::io;
use std::path::Path;

use patronus_abi::channel::{Command, Event, place};
use patronus_sync::Segment;
use rustix::event::{PollFd, PollFlags, epoll, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};

pub use self::channel::{Channel, Published};
pub use self::listen::{Listener, Rank, User};
use self::ordinary::FileSystems;
use crate::log::Log;

/// Packets that are taken in a turn of the slow path.
const PACKETS_PER_TURN: usize = 64;
/// Connections that are looked at in a turn.
const ACCEPTED_PER_TURN: usize = 4;

/// What control did that was refused, by the reason. Shown as `control.NAME`.
#[derive(Clone, Copy, Default, Debug)]
pub struct Refusals {
    /// Connections of users that may not attach.
    pub strangers: u64,
    /// Connections while another control was attached.
    pub seconds: u64,
    /// Packets that mean nothing; each has ended its channel.
    pub packets: u64,
    /// Blobs that are none, or whose keys could not be had.
    pub blobs: u64,
    /// Sites that cannot be had.
    pub sites: u64,
    /// Commands that mean nothing, or could not be carried out.
    pub commands: u64,
    /// Positions in the ring of commands that cannot be.
    pub positions: u64,
}

impl Refusals {
    /// Each with its name.
    pub fn named(&self) -> [(&'static str, u64); 7] {
        [
            ("strangers", self.strangers),
            ("seconds", self.seconds),
            ("packets", self.packets),
            ("blobs", self.blobs),
            ("sites", self.sites),
            ("commands", self.commands),
            ("positions", self.positions),
        ]
    }
}

/// The socket that control attaches to, and who is attached.
pub struct Control {
    listener: Listener,
    /// Readable when there is something to do.
    epoll: OwnedFd,
    hello: channel::InForce,
    channel: Option<Channel>,
    systems: FileSystems,
    /// Has connected, and it is not clear yet whether control is gone.
    waiting: Option<OwnedFd>,
    published: Option<Published>,
    statistics: OwnedFd,
    refusals: Refusals,
    /// What was published last is no blob.
    blob_refused: bool,
    /// Commands refused that control was not told of yet, and why the last of them was.
    untold: Option<(u64, &'static str)>,
    /// There may be more to take than the last turn has taken.
    more: bool,
}

impl Control {
    /// Who may attach beside root and the engine's own user.
    pub fn user(&self) -> User {
        self.listener.user()
    }

    /// Listens at `path`, where `user` may attach beside root and the user that this process runs as. `boot` is random. What comes back beside it is the memory of
    /// the statistics, which everybody who attaches may read.
    pub fn bind(path: &Path, user: User, boot: [u8; 16]) -> io::Result<(Control, Segment)> {
        let listener = Listener::bind(path, user)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let data = epoll::EventData::new_u64(0);
        epoll::add(&epoll, listener.as_fd(), data, epoll::EventFlags::IN)?;
        let (segment, statistics) = Segment::create("patronus-statistics", place::STATS_LEN)?;
        let control = Control {
            listener,
            epoll,
            hello: channel::InForce::nothing(boot),
            channel: None,
            systems: FileSystems::default(),
            waiting: None,
            published: None,
            statistics,
            refusals: Refusals::default(),
            blob_refused: false,
            untold: None,
            more: false,
        };
        Ok((control, segment))
    }

    /// Waits until control has published a site. What is no site is refused, and waited for the next one.
    pub fn wait_for_site(&mut self, log: &Log) -> io::Result<Published> {
        loop {
            self.service();
            match self.take_published() {
                Some(Published {
                    generation,
                    site: Err(reason),
                    ..
                }) => {
                    log.error(format_args!("{reason}"));
                    self.refused(generation, reason);
                }
                Some(published) => return Ok(published),
                None if self.more => {}
                None => match poll(&mut [PollFd::new(&self.epoll, PollFlags::IN)], None) {
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(errno) => return Err(errno.into()),
                },
            }
        }
    }

    /// Readable when there is something to do.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Whether there is something to do at once.
    pub fn is_busy(&self) -> bool {
        self.more || self.published.is_some()
    }

    /// Whether a control is attached.
    pub fn is_attached(&self) -> bool {
        self.channel.is_some()
    }

    /// What was refused so far.
    pub fn refusals(&self) -> Refusals {
        let positions = self.channel.as_ref().map_or(0, Channel::nonsense);
        Refusals {
            positions: self.refusals.positions + positions,
            ..self.refusals
        }
    }

    /// Takes what control has sent, and lets in who wants to be control.
    pub fn service(&mut self) {
        self.more = false;
        self.hear();
        if self.more {
            // The end of this control may be behind what it has said.
            return;
        }
        for _ in 0..ACCEPTED_PER_TURN {
            let Some(connection) = self.waiting.take().or_else(|| self.listener.accept()) else {
                return;
            };
            // Who was control when the last look was taken may be gone by now: then he went before this one came.
            self.hear();
            if self.more {
                self.waiting = Some(connection);
                return;
            }
            self.receive(connection);
        }
        self.more = true;
    }

    /// What was published, once all of it is there.
    pub fn take_published(&mut self) -> Option<Published> {
        self.published.take()
    }

    /// The next command, if there is one, or why what stands there is none.
    pub fn take_command(&mut self) -> Option<Result<Command, &'static str>> {
        self.channel.as_mut()?.command()
    }

    /// There is something to do at once.
    pub fn come_again(&mut self) {
        self.more = true;
    }

    /// A command was not carried out.
    pub fn refuse_command(&mut self, why: &'static str) {
        self.refusals.commands += 1;
        let before = self.untold.map_or(0, |(count, _)| count);
        self.untold = Some((before + 1, why));
    }

    /// Says what has become of commands. To be called when some were taken.
    pub fn tell_of_commands(&mut self) {
        if let Some((count, reason)) = self.untold.take() {
            let reason = reason.to_owned();
            self.tell(&Event::CommandsRefused { count, reason });
        }
    }

    /// What was published is in force.
    pub fn applied(&mut self, generation: u64, content: [u8; 32], changes: usize, public_key: [u8; 32]) {
        self.hello.set(generation, content);
        self.tell(&Event::Applied {
            generation,
            changes: changes as u64,
            public_key,
        });
    }

    /// What was published is not in force.
    pub fn refused(&mut self, generation: u64, reason: String) {
        // What is no blob was counted as that.
        self.refusals.sites += u64::from(!std::mem::take(&mut self.blob_refused));
        self.tell(&Event::Refused { generation, reason });
    }

    /// Says what has happened, if somebody listens.
    pub fn tell(&mut self, event: &Event) {
        if let Some(channel) = &mut self.channel {
            channel.tell(event);
        }
    }

    /// So much has happened that could not be said.
    pub fn leave_unsaid(&mut self, events: u64) {
        if let Some(channel) = &mut self.channel {
            channel.lose(events);
        }
    }

    /// Takes packets of the attached control.
    fn hear(&mut self) {
        for _ in 0..PACKETS_PER_TURN {
            // One site at a time: the next one waits in the socket.
            if self.published.is_some() {
                self.more = true;
                return;
            }
            let Some(channel) = &mut self.channel else { return };
            match channel.hear(&mut self.systems) {
                channel::Heard::Nothing => return,
                channel::Heard::Something => {}
                channel::Heard::Site(published) => {
                    self.blob_refused = published.site.is_err();
                    self.refusals.blobs += u64::from(self.blob_refused);
                    self.published = Some(published);
                }
                channel::Heard::Nonsense => {
                    self.refusals.packets += 1;
                    self.detach();
                }
                channel::Heard::Gone => self.detach(),
            }
        }
        self.more = true;
    }

    fn detach(&mut self) {
        if let Some(channel) = self.channel.take() {
            self.refusals.positions += channel.nonsense();
            // Closing the socket takes it out of the set.
        }
        self.untold = None;
    }

    /// Somebody wants to be control.
    fn receive(&mut self, connection: OwnedFd) {
        if !self.listener.lets_in(connection.as_fd()) {
            self.refusals.strangers += 1;
            return self.hello.turn_away(
                connection.as_fd(),
                "this user may not attach: run as root or as the engine's user, or start the engine with --control-user",
            );
        }
        if self.channel.is_some() {
            self.refusals.seconds += 1;
            return self.hello.turn_away(
                connection.as_fd(),
                "another control process is attached: end it first",
            );
        }
        let Ok(channel) = Channel::open(connection, &self.hello, self.statistics.as_fd()) else {
            return;
        };
        let data = epoll::EventData::new_u64(1);
        if epoll::add(&self.epoll, channel.as_fd(), data, epoll::EventFlags::IN).is_ok() {
            self.channel = Some(channel);
        }
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control").finish_non_exhaustive()
    }
}
