//! The socket that control attaches to: where it stands and whom it lets in.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Gid, Mode, Uid};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 8;

/// Who may attach beside root and the user that the engine runs as.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct User {
    uid: Option<u32>,
    gid: Option<u32>,
}

/// What somebody at the other end of a connection is to the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rank {
    /// Root, or the engine's own user.
    Own,
    /// The control process's user.
    Control,
}

impl User {
    /// Who is at the other end, if it is anybody that is known.
    pub fn rank(&self, connection: BorrowedFd<'_>) -> Option<Rank> {
        let other = net::sockopt::socket_peercred(connection).ok()?;
        let (uid, gid) = (other.uid.as_raw(), other.gid.as_raw());
        let own = rustix::process::geteuid().as_raw();
        let is_control = self.uid == Some(uid) || self.gid == Some(gid);
        match uid == 0 || uid == own {
            true => Some(Rank::Own),
            false => is_control.then_some(Rank::Control),
        }
    }

    /// Whether this is anybody.
    pub fn is_somebody(&self) -> bool {
        *self != User::default()
    }

    /// The user of this name in a file like passwd(5), and everybody with its group. Numbers, `UID:GID`, need not stand there.
    pub fn named(name: &str, passwd: &str) -> Option<User> {
        let of = |uid: &str, gid: &str| {
            Some(User {
                uid: Some(uid.parse().ok()?),
                gid: Some(gid.parse().ok()?),
            })
        };
        if let Some((uid, gid)) = name.split_once(':') {
            return of(uid, gid);
        }
        passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next()? == name).then(|| of(fields.nth(1)?, fields.next()?))?
        })
    }
}

/// The listening socket. Its file goes with it, if it is still this one.
pub struct Listener {
    socket: OwnedFd,
    path: PathBuf,
    file: (u64, u64),
    user: User,
}

impl Listener {
    /// Listens at `path`, mode 0660 with the group of `user`. A socket there that nobody listens to is replaced.
    ///
    /// # Errors
    /// `AddrInUse` if somebody listens there, `AlreadyExists` if it is no socket.
    pub fn bind(path: &Path, user: User) -> io::Result<Listener> {
        remove_stale(path)?;
        let socket = socket()?;
        // Under another name first: nobody finds it before it has its mode and group, and listens.
        let unready = path.with_extension("new");
        let _ = std::fs::remove_file(&unready);
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        net::bind(&socket, &SocketAddrUnix::new(&unready)?)?;
        net::listen(&socket, BACKLOG)?;
        if let Some(gid) = user.gid {
            rustix::fs::chown(&unready, None::<Uid>, Some(Gid::from_raw(gid)))?;
        }
        let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::WGRP;
        rustix::fs::chmod(&unready, mode)?;
        std::fs::rename(&unready, path)?;
        let meta = std::fs::symlink_metadata(path)?;
        Ok(Listener {
            socket,
            path: path.to_owned(),
            file: (meta.dev(), meta.ino()),
            user,
        })
    }

    /// The next connection that waits.
    pub fn accept(&self) -> Option<OwnedFd> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        net::accept_with(&self.socket, flags).ok()
    }

    /// Who may attach beside root and the engine's own user.
    pub fn user(&self) -> User {
        self.user
    }

    /// Whether who is at the other end may be control.
    pub fn lets_in(&self, connection: BorrowedFd<'_>) -> bool {
        self.user.rank(connection).is_some()
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let here = std::fs::symlink_metadata(&self.path).map(|meta| (meta.dev(), meta.ino()));
        if here.is_ok_and(|here| here == self.file) {
            // The next engine replaces one that was left behind.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        flags,
        None,
    )?)
}

/// Removes a socket that nobody listens to any more.
fn remove_stale(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    let meta = match std::fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !meta.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it is not a socket"));
    }
    match net::connect(&socket()?, &SocketAddrUnix::new(path)?) {
        Err(Errno::CONNREFUSED) => std::fs::remove_file(path),
        // A listener whose queue is full says AGAIN; of another type, PROTOTYPE. They are alive.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => Err(Errno::ADDRINUSE.into()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_by_name_and_by_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\npatronus:x:998:997::/:/sbin/nologin\nbad:x:1\n";
        let user = |uid, gid| {
            Some(User {
                uid: Some(uid),
                gid: Some(gid),
            })
        };
        assert_eq!(User::named("patronus", passwd), user(998, 997));
        assert_eq!(User::named("12:34", passwd), user(12, 34));
        for nobody in ["nobody", "bad", "12:", ":", "x", ""] {
            assert_eq!(User::named(nobody, passwd), None, "{nobody}");
        }
    }
}
