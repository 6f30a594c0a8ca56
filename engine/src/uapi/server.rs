//! The userspace API's socket: `/var/run/wireguard/NAME.sock` and the clients connected to it.
//!
//! Driven by the slow-path thread: [`UapiServer::fd`] becomes readable when there is something to do, and
//! [`UapiServer::service`] does it without ever waiting. Handshakes run on the same thread, so one call does a bounded
//! amount of work for each client: it reads at most [`READ_BUDGET`] bytes and performs one operation.
//!
//! A client may send any number of operations over one connection. Those that say nothing sensible are told so and, where the next
//! operation's beginning can no longer be told, disconnected.

mod client;
mod socket;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use patronus_crypto::Time;
use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::io::Errno;

use self::client::{Client, Wants};
use self::socket::BoundSocket;
use super::format::Reply;
use super::parse::{Limits, SetRequest};
use super::question::Question;
use crate::control::{Rank, User};

/// Connections served at a time. More wait in the socket's queue until one of them ends.
pub const MAX_CLIENTS: usize = 16;

/// Longest line, in bytes without its line feed. The longest that means anything has fewer than 100.
pub const MAX_LINE: usize = 4096;

/// A client that neither sends nor takes a byte for so long is disconnected.
pub const STALL: Duration = Duration::from_secs(30);

/// Bytes taken from one client in one call of [`UapiServer::service`], before the others get their turn.
pub const READ_BUDGET: usize = 256 << 10;

/// How long no connection is accepted after one could not be, as when file descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// How often the socket file is looked for when the system has no inotify to give.
const REMOVAL_CHECK: Duration = Duration::from_secs(1);

/// What the userspace API asks of the engine.
pub trait UapiDevice {
    /// Writes the interface's lines and then each peer's.
    fn get(&mut self, out: &mut Reply);

    /// Answers a question in `name=value` lines.
    fn tell(&mut self, question: Question, out: &mut Reply);

    /// Begins a trace or a capture, or to answer what takes longer, or says why not, on a connection that is the device's from now on. The request has no empty line at its end.
    fn observe(&mut self, _request: &str, _connection: OwnedFd) {}

    /// Applies a request, whole or not at all.
    fn set(&mut self, request: SetRequest) -> Result<(), Errno>;
}

/// What has become of a connection that waited.
enum Taken {
    Client(Box<Client>),
    HungUp,
    /// None waited.
    Nobody,
}

/// Events in the set that are not about a client, which has its slot's number.
const LISTENER: u64 = MAX_CLIENTS as u64;
const REMOVAL: u64 = LISTENER + 1;

/// The socket and its clients.
pub struct UapiServer {
    socket: BoundSocket,
    epoll: OwnedFd,
    clients: [Option<Client>; MAX_CLIENTS],
    /// Whether the set tells about connections that wait.
    accepting: bool,
    accept_again: Option<Time>,
    limits: Limits,
    next_removal_check: Time,
    removed: bool,
    /// Who may ask questions, and nothing else, beside root and the engine's own user.
    guests: Option<User>,
}

impl UapiServer {
    /// Listens on `dir/name.sock`, mode 0600, and creates `dir` with mode 0700 if it is not there.
    ///
    /// # Errors
    /// `AddrInUse` if another process listens there. `InvalidInput` if `name` cannot be an interface's. `PermissionDenied` if
    /// `dir` belongs to another user than this one and root, or others may write to it (but a group to root's, if it is sticky), `NotADirectory` if it is a symbolic link, and `AlreadyExists` if
    /// what stands in the socket's place is not a socket: none of these is ever followed, replaced or repaired.
    pub fn bind(dir: &Path, name: &str) -> io::Result<Self> {
        let socket = BoundSocket::bind(dir, name)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(
            &epoll,
            socket.listener(),
            EventData::new_u64(LISTENER),
            EventFlags::IN,
        )?;
        if let Some(watch) = socket.watch() {
            epoll::add(&epoll, watch, EventData::new_u64(REMOVAL), EventFlags::IN)?;
        }
        Ok(UapiServer {
            socket,
            epoll,
            clients: Default::default(),
            accepting: true,
            accept_again: None,
            limits: Limits::default(),
            next_removal_check: Time::default(),
            removed: false,
            guests: None,
        })
    }

    /// Lets this user ask questions, whose answers hold no secret key. From now on anybody can connect, and whoever is neither root, the engine's own user
    /// nor this one is hung up on.
    pub fn admit(&mut self, guests: User) -> io::Result<()> {
        self.socket.open_to_all()?;
        self.guests = Some(guests);
        Ok(())
    }

    /// Replaces the limits on a request, for connections that are yet to come.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Readable whenever [`service`](Self::service) has something to do.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// When [`service`](Self::service) is to be called though [`fd`](Self::fd) is not readable.
    pub fn next_deadline(&self) -> Option<Time> {
        let stalls = self
            .clients
            .iter()
            .flatten()
            .map(|client| client.last_progress().after(STALL));
        let check = self.socket.watch().is_none().then_some(self.next_removal_check);
        stalls.chain(check).chain(self.accept_again).min()
    }

    /// Whether the socket's file was removed or replaced: the sign to exit.
    pub fn removed(&self) -> bool {
        self.removed
    }

    /// Does what there is to do now.
    pub fn service(&mut self, device: &mut dyn UapiDevice, now: Time) {
        let mut events = [Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(0),
        }; MAX_CLIENTS + 2];
        // The set is ours and valid; an interrupted call is made again since the set stays readable.
        let ready = epoll::wait(&self.epoll, &mut events, Some(&Default::default())).unwrap_or(0);
        let mut listener_ready = false;
        for event in &events[..ready] {
            match event.data.u64() {
                LISTENER => listener_ready = true,
                REMOVAL => self.check_removal(now),
                slot => self.serve(slot as usize, device, now),
            }
        }
        self.drop_stalled(now);
        if self.socket.watch().is_none() && now >= self.next_removal_check {
            self.check_removal(now);
        }
        // Last, so that no event of a client that has gone is taken for one of its successor in the slot.
        if listener_ready {
            self.accept(now);
        }
        self.pause_or_resume_accepting(now);
    }

    fn serve(&mut self, slot: usize, device: &mut dyn UapiDevice, now: Time) {
        let Some(client) = self.clients.get_mut(slot).and_then(Option::as_mut) else {
            return;
        };
        let listener = self.socket.listener();
        let zone_index = |zone: &str| rustix::net::netdevice::name_to_index(listener, zone).ok();
        let before = client.wants();
        let after = client.service(device, &zone_index, now);
        let registered = match after {
            Wants::Nothing => false,
            wants if wants == before => true,
            wants => epoll::modify(
                &self.epoll,
                client.fd(),
                EventData::new_u64(slot as u64),
                wants.events(),
            )
            .is_ok(),
        };
        if !registered
            && let Some((request, connection)) = self.clients[slot].take().and_then(Client::into_observe)
        {
            let _ = epoll::delete(&self.epoll, &connection);
            device.observe(&request, connection);
        }
    }

    /// Sends an answer on a connection that was [observed](UapiDevice::observe) away, and ends it. With all places taken it is hung up on.
    pub fn answer(&mut self, connection: OwnedFd, reply: Reply, now: Time) {
        let Some(slot) = self.clients.iter().position(Option::is_none) else {
            return;
        };
        let client = Client::answered(connection, reply, now);
        let data = EventData::new_u64(slot as u64);
        if epoll::add(&self.epoll, client.fd(), data, client.wants().events()).is_ok() {
            self.clients[slot] = Some(client);
        }
    }

    fn drop_stalled(&mut self, now: Time) {
        for slot in &mut self.clients {
            if slot
                .as_ref()
                .is_some_and(|client| now.since(client.last_progress()) >= STALL)
            {
                *slot = None;
            }
        }
    }

    fn accept(&mut self, now: Time) {
        while let Some(slot) = self.clients.iter().position(Option::is_none) {
            let accepted = self.socket.accept().and_then(|connection| {
                let Some(connection) = connection else {
                    return Ok(Taken::Nobody);
                };
                let asks_only = match self.guests.map(|guests| guests.rank(connection.as_fd())) {
                    // The socket's mode has let in nobody else.
                    None | Some(Some(Rank::Own)) => false,
                    Some(Some(Rank::Control)) => true,
                    Some(None) => return Ok(Taken::HungUp),
                };
                let client = Client::new(connection, self.limits, asks_only, now);
                let data = EventData::new_u64(slot as u64);
                epoll::add(&self.epoll, client.fd(), data, client.wants().events())?;
                Ok(Taken::Client(Box::new(client)))
            });
            match accepted {
                Ok(Taken::Client(client)) => self.clients[slot] = Some(*client),
                Ok(Taken::HungUp) => {}
                Ok(Taken::Nobody) => return,
                Err(_) => {
                    self.accept_again = Some(now.after(ACCEPT_PAUSE));
                    return;
                }
            }
        }
    }

    /// With every slot taken, or no file descriptor left, a connection that waits would keep the set readable for nothing.
    fn pause_or_resume_accepting(&mut self, now: Time) {
        self.accept_again = self.accept_again.filter(|again| *again > now);
        let accepting = self.accept_again.is_none() && self.clients.iter().any(Option::is_none);
        if accepting != self.accepting {
            let flags = if accepting {
                EventFlags::IN
            } else {
                EventFlags::empty()
            };
            let data = EventData::new_u64(LISTENER);
            if epoll::modify(&self.epoll, self.socket.listener(), data, flags).is_ok() {
                self.accepting = accepting;
            }
        }
    }

    fn check_removal(&mut self, now: Time) {
        self.next_removal_check = now.after(REMOVAL_CHECK);
        self.socket.drain_watch();
        self.removed |= !self.socket.is_in_place();
    }
}
