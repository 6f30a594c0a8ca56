//! The listening socket as a file: where it may stand, what it may replace, and when it is removed.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, inotify};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 16;

/// Bytes of an interface's name, without the final zero (IFNAMSIZ - 1).
const NAME_MAX: usize = 15;

/// A listening socket and the place of its file. Dropping it removes the file, if it is still this one.
pub(super) struct BoundSocket {
    listener: OwnedFd,
    dir: OwnedFd,
    file_name: String,
    file: FileId,
    watch: Option<OwnedFd>,
}

/// Tells a file from another one that took its name.
#[derive(Clone, Copy, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

impl BoundSocket {
    pub(super) fn bind(dir_path: &Path, name: &str) -> io::Result<Self> {
        check_name(name)?;
        let file_name = format!("{name}.sock");
        let path = dir_path.join(&file_name);
        let dir = open_dir(dir_path)?;
        // Between the look at a stale socket and its removal, another engine could put a live one in its place. The lock
        // ends with this function.
        let lock = open_dir(dir_path)?;
        fs::flock(&lock, FlockOperation::LockExclusive)?;
        remove_stale(&dir, &path, &file_name)?;

        let listener = listen_at(&dir, dir_path, &file_name)?;
        let file = socket_file(&dir, &file_name)?.ok_or(io::ErrorKind::NotFound)?;
        Ok(BoundSocket {
            listener,
            dir,
            file_name,
            file,
            watch: watch(dir_path),
        })
    }

    /// Lets everybody connect: who is at the other end decides.
    pub(super) fn open_to_all(&self) -> io::Result<()> {
        let read_write = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::WGRP | Mode::ROTH | Mode::WOTH;
        Ok(fs::chmodat(
            &self.dir,
            &self.file_name,
            read_write,
            AtFlags::empty(),
        )?)
    }

    pub(super) fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Readable after anything was removed from the directory. `None` if the system has no inotify instance left.
    pub(super) fn watch(&self) -> Option<BorrowedFd<'_>> {
        self.watch.as_ref().map(AsFd::as_fd)
    }

    /// Forgets what the watch has seen.
    pub(super) fn drain_watch(&self) {
        if let Some(watch) = &self.watch {
            let mut buffer = [const { MaybeUninit::uninit() }; 4096];
            let mut events = inotify::Reader::new(watch, &mut buffer);
            while events.next().is_ok() {}
        }
    }

    /// Whether the file is there and still this socket's. A failure to look counts as yes.
    pub(super) fn is_in_place(&self) -> bool {
        match fs::statat(&self.dir, &self.file_name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => FileId::of(&stat) == self.file,
            Err(errno) => errno != Errno::NOENT,
        }
    }

    /// The next connection that waits, if there is one.
    pub(super) fn accept(&self) -> Result<Option<OwnedFd>, Errno> {
        loop {
            match net::accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(connection) => return Ok(Some(connection)),
                Err(Errno::AGAIN) => return Ok(None),
                // The connection ended before it was accepted.
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        if self.is_in_place() {
            // Nothing can be done about a failure; the next engine finds a stale socket and replaces it.
            let _ = fs::unlinkat(&self.dir, &self.file_name, AtFlags::empty());
        }
    }
}

impl FileId {
    fn of(stat: &fs::Stat) -> Self {
        FileId {
            device: stat.st_dev,
            inode: stat.st_ino,
        }
    }
}

fn check_name(name: &str) -> io::Result<()> {
    let graphic = name.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
    if name.is_empty() || name.len() > NAME_MAX || !graphic || name == "." || name == ".." {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not the name of an interface",
        ));
    }
    Ok(())
}

/// Opens the directory, creating it if need be, and makes sure that nobody else can take the place of our file. Its parents are the system's:
/// `/var/run` is a symbolic link on most, only the last component must not be one.
///
/// It belongs to this user, or to root, who may let a group make files there beside his own, none of which can remove another's (a sticky directory): so an engine without root's rights
/// and WireGuards that have them share the directory that `wg` looks into.
fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    match fs::mkdirat(CWD, path, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = fs::openat(CWD, path, flags, Mode::empty())?;
    let stat = fs::fstat(&dir)?;
    let mode = Mode::from_raw_mode(stat.st_mode);
    let is_trusted = [0, rustix::process::geteuid().as_raw()].contains(&stat.st_uid);
    let is_sticky_group = stat.st_uid == 0 && mode.contains(Mode::SVTX);
    let others_write = mode.contains(Mode::WOTH) || (mode.contains(Mode::WGRP) && !is_sticky_group);
    if !is_trusted || others_write {
        let message = format!(
            "{} belongs to another user or others may write to it",
            path.display()
        );
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
    }
    Ok(dir)
}

/// The socket with this name, if there is one; an error if something else has the name.
fn socket_file(dir: &OwnedFd, file_name: &str) -> io::Result<Option<FileId>> {
    let stat = match fs::statat(dir, file_name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            format!("{file_name} is not a socket"),
        ));
    }
    Ok(Some(FileId::of(&stat)))
}

/// Removes a socket that nobody listens to any more.
fn remove_stale(dir: &OwnedFd, path: &Path, file_name: &str) -> io::Result<()> {
    if socket_file(dir, file_name)?.is_none() {
        return Ok(());
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match net::connect(&probe, &SocketAddrUnix::new(path)?) {
        Err(Errno::CONNREFUSED) => Ok(fs::unlinkat(dir, file_name, AtFlags::empty())?),
        Err(Errno::NOENT) => Ok(()),
        // A listener whose queue is full says AGAIN; it is alive.
        Ok(()) | Err(Errno::AGAIN) => Err(Errno::ADDRINUSE.into()),
        Err(errno) => Err(errno.into()),
    }
}

/// A socket that listens, in its place. Bound under another name and renamed once it listens: to `wg`, a socket that
/// refuses a connection is one left behind, which it removes.
fn listen_at(dir: &OwnedFd, dir_path: &Path, file_name: &str) -> io::Result<OwnedFd> {
    let unready = format!(".{file_name}.new");
    match fs::unlinkat(dir, &unready, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let listener = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // The file gets the mode of the unbound socket: there is no moment at which others could connect.
    fs::fchmod(&listener, Mode::RUSR | Mode::WUSR)?;
    net::bind(&listener, &SocketAddrUnix::new(dir_path.join(&unready))?)?;
    net::listen(&listener, BACKLOG)?;
    fs::renameat(dir, &unready, dir, file_name)?;
    Ok(listener)
}

/// A watch on everything that can take the file away. An event is only a hint to look.
fn watch(dir_path: &Path) -> Option<OwnedFd> {
    use inotify::{CreateFlags, WatchFlags};
    let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok()?;
    let events = WatchFlags::DELETE
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVED_FROM
        | WatchFlags::MOVED_TO
        | WatchFlags::ONLYDIR
        | WatchFlags::DONT_FOLLOW;
    inotify::add_watch(&watch, dir_path, events).ok()?;
    Some(watch)
}
