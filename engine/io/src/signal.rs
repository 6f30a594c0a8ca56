//! Signals as a descriptor, so that the slow path meets them in its poll loop like everything else.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::ptr;

/// What a signal asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asked {
    /// SIGHUP: to read the configuration again.
    Reload,
    /// SIGINT, SIGTERM: to end.
    End,
}

/// Takes one signal that has come from the descriptor that [`termination`] made; none if there is none.
pub fn take(signals: impl AsFd) -> Option<Asked> {
    // A struct signalfd_siginfo, which begins with the signal's number.
    let mut info = [0; size_of::<libc::signalfd_siginfo>()];
    rustix::io::read(signals, &mut info).ok()?;
    let number = info.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes));
    Some(if number == Some(libc::SIGHUP) {
        Asked::Reload
    } else {
        Asked::End
    })
}

/// Blocks SIGINT, SIGTERM and SIGHUP in this thread and those it spawns from now on, and returns a descriptor that is readable
/// once one of them has come. To be called before the first thread is spawned.
pub fn termination() -> io::Result<OwnedFd> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set it is given, and cannot fail for a valid pointer.
    let mut set = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    };
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: `set` is an initialised set and `signal` a valid signal number.
        unsafe { libc::sigaddset(&mut set, signal) };
    }
    // SAFETY: `set` is initialised; the old mask is not asked for.
    let error = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, ptr::null_mut()) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    // SAFETY: `set` is initialised, -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
