//! The reader: a process beside the engine that may still open files, and does so for nobody but it.
//!
//! After set-up the engine opens no file any more (`sandbox`). So that its configuration can be read again on SIGHUP, a process of the same
//! program is started beforehand. The engine can tell it one thing: again. It then reads the one file whose name it was started with, compiles
//! it, and sends the blob ([`patronus_abi`]) and a descriptor of each key file that stands in it. Which files are opened is therefore up to whoever may
//! write the configuration, and never to whoever has taken the engine over. Keys do not pass through the reader's memory.
//!
//! Between the two is a socket of packets: a byte from the engine; back `S` and the site's blob, in pieces, then for each key file in the file's
//! order `K` with its name and a descriptor; `E` and why instead of what cannot be had; and `.` at the end. The reader ends when the engine does.
//!
//! [`serve`] is that process. [`Reader`] is the engine's end, on the slow-path thread, which never waits for it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use patronus_abi::{BLOB_MAX, encode};
use patronus_config::{Config, key_file};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

use crate::site::{Keys, Site};
use crate::{beside, sandbox};

/// The option that makes a process of this program a reader. Its value is the file.
pub const OPTION: &str = "--config-reader";

/// Bytes of a packet at most.
const PACKET: usize = 32 << 10;
/// Packets that are taken in a turn of the slow path.
const PACKETS_PER_TURN: usize = 64;

const SITE: u8 = b'S';
const KEY: u8 = b'K';
const ERROR: u8 = b'E';
const END: u8 = b'.';

/// The engine's end.
pub struct Reader {
    socket: OwnedFd,
    path: PathBuf,
    /// What has arrived of the present answer; none if nothing was asked.
    answer: Option<Answer>,
    /// Asked again meanwhile.
    again: bool,
}

#[derive(Default)]
struct Answer {
    blob: Vec<u8>,
    keys: Keys,
    /// The first thing that was wrong.
    error: Option<String>,
}

impl Reader {
    /// Starts the process. It takes the descriptors and rights of this one, so this is called before they are given up.
    pub fn start(path: &Path) -> io::Result<Reader> {
        Ok(Reader {
            socket: beside::start([OsStr::new(OPTION), path.as_os_str()])?,
            path: path.to_owned(),
            answer: None,
            again: false,
        })
    }

    /// Asks for the file. What it says comes from [`take`](Reader::take).
    pub fn ask(&mut self) {
        if self.answer.is_some() {
            self.again = true;
            return;
        }
        self.answer = Some(Answer::default());
        // What has become of the reader is found when its answer is read.
        let _ = rustix::net::send(&self.socket, b"?", SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }

    /// Takes what has arrived, without waiting. The site, or why there is none, once that was all.
    pub fn take(&mut self) -> Option<Result<Site, String>> {
        for _ in 0..PACKETS_PER_TURN {
            let mut packet = [0; PACKET];
            let (len, fd) = match receive(self.socket.as_fd(), &mut packet) {
                Ok(received) => received,
                Err(Errno::AGAIN | Errno::INTR) => return None,
                Err(_) => (0, None),
            };
            let Some(answer) = &mut self.answer else {
                continue;
            };
            match packet[..len].split_first() {
                Some((&END, _)) => {
                    let answer = self.answer.take().unwrap_or_default();
                    if std::mem::take(&mut self.again) {
                        self.ask();
                    }
                    return Some(answer.finish(&self.path));
                }
                Some((kind, content)) => answer.add(*kind, content, fd),
                None => {
                    self.answer = None;
                    return Some(Err(
                        "the process that reads it has ended: restart the engine".to_owned()
                    ));
                }
            }
        }
        None
    }
}

impl AsFd for Reader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Answer {
    fn add(&mut self, kind: u8, content: &[u8], fd: Option<OwnedFd>) {
        let wrong = match (kind, fd) {
            // What is longer is refused when it is looked at.
            (SITE, _) if self.blob.len() > BLOB_MAX => Ok(()),
            (SITE, _) => {
                self.blob.extend_from_slice(content);
                Ok(())
            }
            (KEY, Some(fd)) => {
                let name = Path::new(OsStr::from_bytes(content));
                self.keys.take(name, Ok(File::from(fd)))
            }
            _ => Err(String::from_utf8_lossy(content).into_owned()),
        };
        if let (Err(why), None) = (wrong, &self.error) {
            self.error = Some(why);
        }
    }

    fn finish(self, path: &Path) -> Result<Site, String> {
        match self.error {
            Some(error) => Err(error),
            None => Site::assemble(path, &self.blob, self.keys),
        }
    }
}

fn receive(socket: BorrowedFd<'_>, packet: &mut [u8]) -> Result<(usize, Option<OwnedFd>), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(packet)], &mut ancillary, flags)?;
    let mut fds = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let fd = fds.next().and_then(|mut fds| fds.next());
    Ok((received.bytes, fd))
}

/// Serves the engine at the other end of standard input, until it ends. An error is why not.
pub fn serve(path: &Path) -> Result<(), String> {
    sandbox::drop_reader_privileges().map_err(|error| error.to_string())?;
    sandbox::leave_standard_error().map_err(|error| error.to_string())?;
    sandbox::filter_reader_system_calls().map_err(|error| error.to_string())?;
    let socket = io::stdin();
    let mut question = [0; 1];
    // The engine has read the first one itself.
    for generation in 2.. {
        loop {
            match rustix::net::recv(&socket, &mut question, RecvFlags::empty()) {
                Ok((0, _)) => return Ok(()),
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        if answer(socket.as_fd(), path, generation).is_err() {
            // Nobody is there any more to hear it.
            break;
        }
    }
    Ok(())
}

/// Sends the site and its keys, or why that cannot be.
fn answer(socket: BorrowedFd<'_>, path: &Path, generation: u64) -> Result<(), Errno> {
    match compile(path, generation) {
        Ok((config, blob)) => {
            for piece in blob.chunks(PACKET - 1) {
                send(socket, SITE, piece, None)?;
            }
            send_keys(socket, &config)?;
        }
        Err(error) => send(socket, ERROR, error.as_bytes(), None)?,
    }
    send(socket, END, b"", None)
}

fn compile(path: &Path, generation: u64) -> Result<(Config, Vec<u8>), String> {
    let config = patronus_config::load(path).map_err(|error| error.to_string())?;
    for warning in config.warnings() {
        eprintln!("patronus-engine: warning: {warning}");
    }
    let blob = encode(&config.compile(), generation);
    let blob = blob.map_err(|error| format!("{}: {error}", path.display()))?;
    Ok((config, blob))
}

fn send_keys(socket: BorrowedFd<'_>, config: &Config) -> Result<(), Errno> {
    for file in config.key_files() {
        match key_file::open_regular(file) {
            Ok(opened) => send(socket, KEY, file.as_os_str().as_bytes(), Some(opened.as_fd()))?,
            Err(error) => {
                let error = key_file::KeyError::Io(file.to_owned(), error);
                send(socket, ERROR, error.to_string().as_bytes(), None)?;
            }
        }
    }
    Ok(())
}

fn send(socket: BorrowedFd<'_>, kind: u8, content: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [fd.unwrap_or(socket)];
    if fd.is_some() {
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    }
    let packet = [IoSlice::new(std::slice::from_ref(&kind)), IoSlice::new(content)];
    rustix::net::sendmsg(socket, &packet, &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}
