//! The few system calls for which there is no safe wrapper: several datagrams at once, and integer socket options.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Sets an integer socket option.
pub(crate) fn set_option(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the pointer and the length describe `value`, which lives until the call returns.
    let rc = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sets a socket option that is eight words, as a filter of ICMPv6 types is.
pub(crate) fn set_option_words(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: &[u32; 8],
) -> io::Result<()> {
    // SAFETY: the pointer and the length describe `value`, which lives until the call returns.
    let rc = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            size_of_val(value) as libc::socklen_t,
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// An integer socket option.
pub(crate) fn get_option(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the pointers describe `value` and its length, which live until the call returns.
    let rc = unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut len) };
    match rc {
        0 => Ok(value),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Receives into the messages, without waiting. Returns how many were filled; never interrupted by a signal.
///
/// # Safety
/// The pointers in every header are valid for the lengths beside them, to be written, until the call returns.
pub(crate) unsafe fn recvmmsg(fd: BorrowedFd<'_>, headers: &mut [libc::mmsghdr]) -> io::Result<usize> {
    loop {
        // SAFETY: the slice describes the headers; the caller vouches for what they point to.
        let n = unsafe {
            libc::recvmmsg(
                fd.as_raw_fd(),
                headers.as_mut_ptr(),
                headers.len() as libc::c_uint,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        if let Some(n) = counted(n)? {
            return Ok(n);
        }
    }
}

/// Sends the messages, without waiting. Returns how many were sent, from the front, at least one; an error is that of the first one. Never
/// interrupted by a signal.
///
/// # Safety
/// The pointers in every header are valid for the lengths beside them, to be read, until the call returns.
pub(crate) unsafe fn send_messages(fd: BorrowedFd<'_>, headers: &mut [libc::mmsghdr]) -> io::Result<usize> {
    loop {
        let n = match headers {
            // Often there is but one, and the call for one is shorter.
            [one] => {
                // SAFETY: the header is borrowed; the caller vouches for what it points to.
                let bytes = unsafe { libc::sendmsg(fd.as_raw_fd(), &one.msg_hdr, libc::MSG_DONTWAIT) };
                if bytes < 0 { -1 } else { 1 }
            }
            // SAFETY: the slice describes the headers; the caller vouches for what they point to.
            _ => unsafe {
                libc::sendmmsg(
                    fd.as_raw_fd(),
                    headers.as_mut_ptr(),
                    headers.len() as libc::c_uint,
                    libc::MSG_DONTWAIT as _,
                )
            },
        };
        match counted(n)? {
            Some(0) => return Err(io::ErrorKind::WriteZero.into()),
            Some(n) => return Ok(n),
            None => {}
        }
    }
}

/// What a call returned: a count, an error, or `None` if a signal interrupted it.
fn counted(n: libc::c_int) -> io::Result<Option<usize>> {
    match usize::try_from(n) {
        Ok(n) => Ok(Some(n)),
        Err(_) => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(None),
            error => Err(error),
        },
    }
}

/// Waits until the socket can send, one millisecond at most.
pub(crate) fn wait_writable(fd: &impl AsFd) {
    let limit = Timespec {
        tv_sec: 0,
        tv_nsec: 1_000_000,
    };
    // However this ends, the caller tries once more and then counts a drop.
    let _ = poll(&mut [PollFd::new(fd, PollFlags::OUT)], Some(&limit));
}
