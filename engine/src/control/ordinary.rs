//! Whether a file can be read without waiting for anybody: what control passes as a key's may lie on a file system that answers when it likes, or never.
//!
//! On the slow path's thread, which is not to hang. What a file is, is asked for without asking its file system (`AT_STATX_DONT_SYNC`). File systems on block devices
//! are the machine's own. Of the others it takes a question to know, and that one may hang: a thread of its own asks it, once for each file system, and who
//! does not answer in time is never asked again.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::mpsc;
use std::time::Duration;

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, FileType, StatxFlags, fstatfs, statx};

/// How long a file system may take to say what it is: the slow path waits for so long, once for each.
const PATIENCE: Duration = Duration::from_millis(100);
/// File systems without a block device that are known at a time. More than a machine has.
const KNOWN_MAX: usize = 64;

/// Those of them that ask nobody (linux/magic.h; of ZFS and bcachefs their own).
const LOCAL: [i64; 6] = [
    0x0102_1994, // tmpfs
    0x8584_58f6, // ramfs
    0x9123_683e, // btrfs
    0x794c_7630, // overlayfs
    0x2fc1_2fc1, // ZFS
    0xca45_1a4e, // bcachefs
];

/// What is known of file systems, by their device numbers.
#[derive(Default)]
pub struct FileSystems(BTreeMap<(u32, u32), bool>);

impl FileSystems {
    /// The file behind a descriptor, if it is an ordinary one that can be read without waiting.
    pub fn ordinary(&mut self, fd: OwnedFd) -> io::Result<File> {
        self.ordinary_if(fd, |fd| Ok(fstatfs(&fd)?.f_type))
    }

    /// The same with whoever asks a file system for its kind.
    fn ordinary_if(
        &mut self,
        fd: OwnedFd,
        kind: impl FnOnce(OwnedFd) -> io::Result<i64> + Send + 'static,
    ) -> io::Result<File> {
        let invalid = |what| io::Error::new(io::ErrorKind::InvalidInput, what);
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let found = statx(&fd, c"", flags, StatxFlags::TYPE)?;
        if FileType::from_raw_mode(found.stx_mode.into()) != FileType::RegularFile {
            return Err(invalid("not an ordinary file"));
        }
        let device = (found.stx_dev_major, found.stx_dev_minor);
        // Without a block device the first number is 0.
        let is_local = device.0 != 0 || self.is_local(device, &fd, kind)?;
        match is_local {
            true => Ok(File::from(fd)),
            false => Err(invalid(
                "on a file system that may have to ask somebody, and wait for an answer: use a local one",
            )),
        }
    }

    fn is_local(
        &mut self,
        device: (u32, u32),
        fd: &OwnedFd,
        kind: impl FnOnce(OwnedFd) -> io::Result<i64> + Send + 'static,
    ) -> io::Result<bool> {
        if let Some(known) = self.0.get(&device) {
            return Ok(*known);
        }
        if self.0.len() == KNOWN_MAX {
            return Ok(false);
        }
        let asked = rustix::io::fcntl_dupfd_cloexec(fd, 0)?;
        let (tell, told) = mpsc::sync_channel(1);
        let asks = move || {
            let kind = kind(asked);
            // Who does not wait any more has taken it for one that hangs.
            let _ = tell.send(kind.is_ok_and(|kind| LOCAL.contains(&kind)));
        };
        std::thread::Builder::new()
            .name("fstatfs".to_owned())
            .spawn(asks)?;
        let is_local = told.recv_timeout(PATIENCE).unwrap_or(false);
        self.0.insert(device, is_local);
        Ok(is_local)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn opened(path: &str) -> OwnedFd {
        File::open(path).expect("it is there").into()
    }

    #[test]
    fn ordinary_files_of_local_file_systems_are_taken() {
        let mut systems = FileSystems::default();
        let own = std::env::current_exe().expect("a program");
        systems
            .ordinary(File::open(own).expect("ours").into())
            .expect("on a local file system");
        for other in ["/dev/null", "/dev", "/proc/self/status"] {
            systems.ordinary(opened(other)).expect_err(other);
        }
    }

    #[test]
    fn a_file_system_that_hangs_is_asked_once() {
        let mut systems = FileSystems::default();
        let hangs = |_| {
            std::thread::sleep(Duration::from_secs(5));
            Ok(LOCAL[0])
        };
        // A memfd has no block device.
        let file = || rustix::fs::memfd_create("a file", rustix::fs::MemfdFlags::CLOEXEC).expect("memory");
        let begun = Instant::now();
        systems
            .ordinary_if(file(), hangs)
            .expect_err("it does not answer");
        for _ in 0..1000 {
            systems
                .ordinary_if(file(), |_| unreachable!("never asked again"))
                .expect_err("it did not answer");
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "nobody waits for it");
        let mut others = FileSystems::default();
        others.ordinary(file()).expect("memory is local");
    }
}
