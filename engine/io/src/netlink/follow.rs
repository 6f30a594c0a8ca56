//! Keeps up with one kind of thing that the kernel has a table of: hears every change, and reads the whole table at the start and whenever
//! changes were missed. What reads through it ends up with what the kernel has.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::message::{
    BUFFER, Message, Messages, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
    READS_MAX, Request, next_sequence, open, receive, send, word,
};

/// A table to read: the kind of the request, and the bytes of its header.
pub(super) type Table = (u16, usize);

pub(super) enum Told<'a> {
    /// From here on everything is told once more.
    Begin,
    /// Something is so, or has changed.
    Message(Message<'a>),
    /// Everything was told. What was not is no more.
    Complete,
}

#[derive(Debug)]
pub(super) struct Follow {
    socket: OwnedFd,
    buffer: Box<[u8]>,
    progress: Progress,
}

#[derive(Debug)]
struct Progress {
    tables: &'static [Table],
    /// Which table is being read.
    reading: Option<usize>,
    /// Of the request for it.
    sequence: u32,
    /// Changes were missed: all has to be read again.
    lost: bool,
}

impl Follow {
    /// Hears changes from now on, of these groups (RTMGRP_*). The tables are read once something was missed, or when asked for.
    pub(super) fn new(groups: libc::c_int, tables: &'static [Table]) -> io::Result<Follow> {
        Ok(Follow {
            socket: open(groups as u32)?,
            buffer: vec![0; BUFFER].into(),
            progress: Progress {
                tables,
                reading: None,
                sequence: 0,
                lost: false,
            },
        })
    }

    /// The next reads tell everything.
    pub(super) fn read_all_again(&mut self) {
        self.progress.lost = true;
    }

    /// Whether everything that was asked for has been told.
    pub(super) fn is_complete(&self) -> bool {
        self.progress.reading.is_none() && !self.progress.lost
    }

    /// Tells what there is, without waiting; the descriptor stays readable if that was not all.
    pub(super) fn read(&mut self, tell: &mut dyn FnMut(Told<'_>)) -> io::Result<()> {
        for _ in 0..READS_MAX {
            match receive(&self.socket, &mut self.buffer) {
                Ok(datagram) => {
                    for message in Messages(datagram) {
                        self.progress.take(&self.socket, message, tell)?;
                    }
                }
                // Both mean that messages are lost.
                Err(Errno::NOBUFS | Errno::MSGSIZE) => self.progress.lost = true,
                Err(Errno::INTR) => {}
                // Asked any sooner, the answer would find the socket's buffer full.
                Err(Errno::AGAIN) if self.progress.lost => {
                    self.progress.lost = false;
                    tell(Told::Begin);
                    self.progress.ask(&self.socket, 0)?;
                }
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

impl AsFd for Follow {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Progress {
    /// Asks for a table. A socket reads one at a time.
    fn ask(&mut self, socket: &OwnedFd, table: usize) -> io::Result<()> {
        self.sequence = next_sequence(self.sequence);
        let (kind, header) = self.tables[table];
        let mut request = Request::new(kind, NLM_F_REQUEST | NLM_F_DUMP, header);
        request.number(self.sequence);
        self.reading = Some(table);
        send(socket, &request)
    }

    fn take(
        &mut self,
        socket: &OwnedFd,
        message: Message<'_>,
        tell: &mut dyn FnMut(Told<'_>),
    ) -> io::Result<()> {
        let asked = self.reading.filter(|_| message.sequence == self.sequence);
        if asked.is_some() && message.flags & NLM_F_DUMP_INTR != 0 {
            self.lost = true;
        }
        match (message.kind, asked) {
            (NLMSG_DONE | NLMSG_ERROR, Some(table)) => {
                self.reading = None;
                match word(message.body, 0).map_or(0, |error| (error as i32).wrapping_neg()) {
                    0 if table + 1 < self.tables.len() => return self.ask(socket, table + 1),
                    // Otherwise it begins again.
                    0 if !self.lost => tell(Told::Complete),
                    0 => {}
                    error => return Err(io::Error::from_raw_os_error(error)),
                }
            }
            (NLMSG_DONE | NLMSG_ERROR, None) => {}
            _ => tell(Told::Message(message)),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message with this kind, flags and number, and an error of 0.
    fn message(kind: u16, flags: u16, sequence: u32) -> Message<'static> {
        Message {
            kind,
            flags,
            sequence,
            body: &[0; 16],
        }
    }

    /// What is told of messages while a table is read, with number 7.
    fn told(messages: &[Message<'_>]) -> (Vec<&'static str>, Progress) {
        let socket = open(0).expect("a socket");
        let mut progress = Progress {
            tables: &[(libc::RTM_GETADDR, 8)],
            reading: Some(0),
            sequence: 7,
            lost: false,
        };
        let mut all = Vec::new();
        for message in messages {
            let mut tell = |told: Told<'_>| {
                all.push(match told {
                    Told::Begin => "begin",
                    Told::Message(_) => "message",
                    Told::Complete => "complete",
                });
            };
            progress.take(&socket, *message, &mut tell).expect("taken");
        }
        (all, progress)
    }

    #[test]
    fn only_the_answer_to_the_last_question_completes() {
        let address = message(libc::RTM_NEWADDR, 0, 7);
        let (all, progress) = told(&[message(NLMSG_DONE, 0, 6), address, message(NLMSG_DONE, 0, 7)]);
        assert_eq!(all, ["message", "complete"]);
        assert!(progress.reading.is_none() && !progress.lost);
    }

    #[test]
    fn a_table_that_changed_while_it_was_read_is_read_again() {
        let torn = message(libc::RTM_NEWADDR, NLM_F_DUMP_INTR, 7);
        let (all, progress) = told(&[torn, message(NLMSG_DONE, 0, 7)]);
        assert_eq!(all, ["message"]);
        assert!(progress.lost);
    }

    #[test]
    fn an_error_of_the_answer_is_told() {
        let mut progress = Progress {
            tables: &[(libc::RTM_GETADDR, 8)],
            reading: Some(0),
            sequence: 7,
            lost: false,
        };
        let refused = Message {
            body: &(-libc::EPERM).to_ne_bytes(),
            ..message(NLMSG_ERROR, 0, 7)
        };
        let socket = open(0).expect("a socket");
        let error = progress.take(&socket, refused, &mut |_| {}).expect_err("refused");
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    }
}
