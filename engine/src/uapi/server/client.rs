//! One connection to the userspace API's socket.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use patronus_crypto::Time;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{self, RecvFlags, SendFlags};
use zeroize::Zeroize;

use super::{MAX_LINE, READ_BUDGET, UapiDevice};
use crate::uapi::format::Reply;
use crate::uapi::parse::{Limits, SetParser};
use crate::uapi::question::Question;

/// Bytes received and not yet understood, at most. More than [`MAX_LINE`].
const INBOX: usize = 64 << 10;

/// Bytes of a request to observe, at most.
const OBSERVE_MAX: usize = 8192;

/// From the name of an endpoint's zone to an interface index.
type Zones<'a> = &'a dyn Fn(&str) -> Option<u32>;

/// What a connection waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wants {
    /// Bytes to come.
    Read,
    /// Room for the rest of a reply, or, when there is none, its next turn.
    Write,
    /// Nothing: it is over.
    Nothing,
}

impl Wants {
    pub(super) fn events(self) -> EventFlags {
        match self {
            Wants::Read => EventFlags::IN,
            Wants::Write => EventFlags::OUT,
            Wants::Nothing => EventFlags::empty(),
        }
    }
}

/// What the next line belongs to.
enum Operation {
    /// None: it has to be `get=1`, a question or `set=1`.
    None,
    /// A `get=1`: the blank line.
    Get,
    /// A question, which is ours alone: the blank line.
    Ask(Question),
    /// A `set=1`: one of its lines, or the blank one.
    Set(Box<SetParser>),
    /// An `observe=` or `ask=`, which are ours alone: one of its lines, or the blank one.
    Observe(String),
    /// All of it: the connection is no longer the server's.
    Handed(String),
}

/// A connection, the operation that it is sending and the reply that it is being sent.
pub(super) struct Client {
    connection: OwnedFd,
    limits: Limits,
    operation: Operation,
    inbox: Inbox,
    /// What is being sent and how many bytes of it have been.
    reply: Option<(Reply, usize)>,
    /// The connection ends as soon as there is nothing left to send.
    closing: bool,
    /// Neither `get=1`, whose answer holds keys, nor `set=1`.
    asks_only: bool,
    wants: Wants,
    last_progress: Time,
}

impl Client {
    pub(super) fn new(connection: OwnedFd, limits: Limits, asks_only: bool, now: Time) -> Self {
        Client {
            connection,
            limits,
            operation: Operation::None,
            inbox: Inbox::new(),
            reply: None,
            closing: false,
            asks_only,
            wants: Wants::Read,
            last_progress: now,
        }
    }

    /// One that is being answered, and nothing else.
    pub(super) fn answered(connection: OwnedFd, reply: Reply, now: Time) -> Self {
        Client {
            reply: Some((reply, 0)),
            closing: true,
            wants: Wants::Write,
            ..Client::new(connection, Limits::default(), true, now)
        }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }

    pub(super) fn wants(&self) -> Wants {
        self.wants
    }

    /// When a byte was last received or sent.
    pub(super) fn last_progress(&self) -> Time {
        self.last_progress
    }

    /// Goes on for as long as the connection allows, up to one operation and [`READ_BUDGET`] bytes.
    pub(super) fn service(&mut self, device: &mut dyn UapiDevice, zones: Zones<'_>, now: Time) -> Wants {
        self.wants = self.advance(device, zones, now).unwrap_or(Wants::Nothing);
        self.wants
    }

    fn advance(&mut self, device: &mut dyn UapiDevice, zones: Zones<'_>, now: Time) -> Result<Wants, Errno> {
        let mut budget = READ_BUDGET;
        let mut served = false;
        loop {
            if self.reply.is_some() {
                served = true;
                if !self.send_reply(now)? {
                    return Ok(Wants::Write);
                }
            }
            if self.closing || matches!(self.operation, Operation::Handed(_)) {
                return Ok(Wants::Nothing);
            }
            if let Some(len) = self.inbox.line_len() {
                if served {
                    return Ok(Wants::Write);
                }
                self.line(len, device, zones);
            } else if self.inbox.len() > MAX_LINE {
                self.refuse(Errno::INVAL);
            } else if budget == 0 {
                return Ok(Wants::Read);
            } else {
                match self.inbox.receive(&self.connection, budget) {
                    Ok(0) => self.end_of_input(),
                    Ok(received) => {
                        budget -= received;
                        self.last_progress = now;
                    }
                    Err(Errno::AGAIN) => return Ok(Wants::Read),
                    Err(errno) => return Err(errno),
                }
            }
        }
    }

    /// Understands the first line of the inbox, `len` bytes long.
    fn line(&mut self, len: usize, device: &mut dyn UapiDevice, zones: Zones<'_>) {
        let line = self.inbox.line(len);
        match &mut self.operation {
            Operation::None => match line {
                b"get=1" | b"set=1" if self.asks_only => self.refuse(Errno::PERM),
                b"get=1" => self.operation = Operation::Get,
                b"observe=trace" | b"observe=capture" => {
                    self.operation = Operation::Observe(text(line).unwrap_or_default());
                }
                b"set=1" => self.operation = Operation::Set(Box::new(SetParser::new(self.limits))),
                b"ask=why" | b"ask=flows" => {
                    self.operation = Operation::Observe(text(line).unwrap_or_default());
                }
                line => match Question::of_line(line) {
                    Some(question) => self.operation = Operation::Ask(question),
                    None => self.refuse(Errno::INVAL),
                },
            },
            Operation::Get if line.is_empty() => {
                let mut reply = Reply::new();
                device.get(&mut reply);
                self.answer(reply, Ok(()));
            }
            Operation::Ask(question) if line.is_empty() => {
                let mut reply = Reply::new();
                device.tell(*question, &mut reply);
                self.answer(reply, Ok(()));
            }
            Operation::Observe(lines) if line.is_empty() => {
                self.operation = Operation::Handed(std::mem::take(lines));
            }
            Operation::Observe(lines) => match text(line) {
                Some(line) if lines.len() + line.len() < OBSERVE_MAX => {
                    lines.push('\n');
                    lines.push_str(&line);
                }
                _ => self.refuse(Errno::INVAL),
            },
            Operation::Get | Operation::Ask(_) | Operation::Handed(_) => self.refuse(Errno::INVAL),
            Operation::Set(_) if line.is_empty() => {
                let Operation::Set(parser) = std::mem::replace(&mut self.operation, Operation::None) else {
                    return;
                };
                let result = parser.finish().and_then(|request| device.set(request));
                self.answer(Reply::new(), result);
            }
            // The parser remembers its error. The rest is still read, so that the client can finish
            // writing and then finds the answer.
            Operation::Set(parser) => {
                if parser.line_with_zones(line, zones).is_err() && parser.exhausted() {
                    self.refuse(Errno::TOOBIG);
                }
            }
        }
        self.inbox.consume(len + 1);
    }

    /// The request that ended this client, if it was one to observe, and its connection.
    pub(super) fn into_observe(self) -> Option<(String, OwnedFd)> {
        match self.operation {
            Operation::Handed(request) => Some((request, self.connection)),
            _ => None,
        }
    }

    fn answer(&mut self, mut reply: Reply, result: Result<(), Errno>) {
        reply.end(result);
        self.reply = Some((reply, 0));
        self.operation = Operation::None;
    }

    /// Answers with an error after which the next operation's beginning cannot be told.
    fn refuse(&mut self, errno: Errno) {
        self.answer(Reply::new(), Err(errno));
        self.closing = true;
    }

    fn end_of_input(&mut self) {
        if matches!(self.operation, Operation::None) && self.inbox.len() == 0 {
            self.closing = true;
        } else {
            self.refuse(Errno::INVAL);
        }
    }

    /// Sends what the connection takes. True when that was everything.
    fn send_reply(&mut self, now: Time) -> Result<bool, Errno> {
        while let Some((reply, sent)) = &mut self.reply {
            let rest = &reply.as_bytes()[*sent..];
            if rest.is_empty() {
                self.reply = None;
                break;
            }
            match net::send(&self.connection, rest, SendFlags::NOSIGNAL) {
                Ok(n) => {
                    *sent += n;
                    self.last_progress = now;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(errno) => return Err(errno),
            }
        }
        Ok(true)
    }
}

fn text(line: &[u8]) -> Option<String> {
    String::from_utf8(line.to_vec()).ok()
}

/// What was received and is not understood yet. Bytes that have been understood are wiped.
struct Inbox {
    /// Zero outside of `begin..end`.
    buffer: Box<[u8]>,
    begin: usize,
    end: usize,
}

impl Inbox {
    fn new() -> Self {
        Inbox {
            buffer: vec![0; INBOX].into(),
            begin: 0,
            end: 0,
        }
    }

    fn len(&self) -> usize {
        self.end - self.begin
    }

    /// Length of the first line without its line feed, if all of it is there.
    fn line_len(&self) -> Option<usize> {
        self.buffer[self.begin..self.end]
            .iter()
            .take(MAX_LINE + 1)
            .position(|&b| b == b'\n')
    }

    /// The first `len` bytes.
    fn line(&self, len: usize) -> &[u8] {
        &self.buffer[self.begin..self.begin + len]
    }

    /// Wipes the first `len` bytes.
    fn consume(&mut self, len: usize) {
        self.buffer[self.begin..self.begin + len].zeroize();
        self.begin += len;
    }

    /// Receives up to `most` bytes behind what is there; 0 at the end of input. To be called with at most a line in the inbox.
    fn receive(&mut self, connection: &OwnedFd, most: usize) -> Result<usize, Errno> {
        if self.begin > 0 {
            self.buffer.copy_within(self.begin..self.end, 0);
            let len = self.len();
            self.buffer[len..self.end].zeroize();
            (self.begin, self.end) = (0, len);
        }
        let most = most.min(self.buffer.len() - self.end);
        let room = &mut self.buffer[self.end..self.end + most];
        let received = loop {
            match net::recv(connection, &mut *room, RecvFlags::empty()) {
                Err(Errno::INTR) => {}
                result => break result?.0,
            }
        };
        self.end += received;
        Ok(received)
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.buffer.zeroize();
    }
}
