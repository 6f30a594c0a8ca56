//! What netlink does not tell of an interface: how many queues it uses (ethtool, `ETHTOOL_GCHANNELS`), and whose driver it has
//! (`ETHTOOL_GDRVINFO`). Asked by the main thread at the start.

use std::io;
use std::os::fd::AsRawFd;

use rustix::net::{AddressFamily, SocketType};

/// `struct ethtool_channels` (linux/ethtool.h).
#[repr(C)]
#[derive(Default)]
struct Channels {
    cmd: u32,
    max: [u32; 4],
    receive: u32,
    transmit: u32,
    other: u32,
    combined: u32,
}

const ETHTOOL_GCHANNELS: u32 = 0x3c;

/// `struct ethtool_drvinfo` (linux/ethtool.h).
#[repr(C)]
struct DriverInfo {
    cmd: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}

const ETHTOOL_GDRVINFO: u32 = 0x3;

/// The receive queues that an interface uses. An error: its driver does not say; it uses all that it has.
pub fn receive_queues(name: &str) -> io::Result<u32> {
    let mut channels = Channels {
        cmd: ETHTOOL_GCHANNELS,
        ..Channels::default()
    };
    // SAFETY: this command writes a structure of this type.
    unsafe { ask(name, &mut channels)? };
    match channels.receive + channels.combined {
        0 => Err(io::ErrorKind::Unsupported.into()),
        queues => Ok(queues),
    }
}

/// Whether an interface is an end of a veth pair, so that its frames come from a kernel and not off a wire.
pub fn is_veth(name: &str) -> io::Result<bool> {
    let mut info = DriverInfo {
        cmd: ETHTOOL_GDRVINFO,
        driver: [0; 32],
        rest: [0; 160],
    };
    // SAFETY: as above.
    unsafe { ask(name, &mut info)? };
    Ok(info.driver.starts_with(b"veth\0"))
}

/// Asks the driver of an interface.
///
/// # Safety
///
/// `question` begins with a command of ethtool's that reads and writes no more than a `T`.
unsafe fn ask<T>(name: &str, question: &mut T) -> io::Result<()> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    // SAFETY: all zeros are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut *question).cast();
    // SAFETY: the request names an interface and points to what this command writes; both live until the call returns.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
