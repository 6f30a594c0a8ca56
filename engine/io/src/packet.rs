//! Packet sockets: whole frames put into an interface, past the host's own network stack (packet(7)). The bench sends through one
//! as a router does that forwards.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// A socket that sends frames, link header included, through an interface, and receives nothing. Needs `CAP_NET_RAW` in the
/// calling thread's network namespace.
pub fn sender(ifindex: u32) -> io::Result<OwnedFd> {
    let socket =
        rustix::net::socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    // SAFETY: struct sockaddr_ll is plain numbers, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as libc::c_ushort;
    address.sll_ifindex = ifindex.try_into().map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the pointer and the length describe `address`, which lives until the call returns.
    let rc = unsafe {
        libc::bind(
            socket.as_fd().as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    match rc {
        0 => Ok(socket),
        _ => Err(io::Error::last_os_error()),
    }
}
