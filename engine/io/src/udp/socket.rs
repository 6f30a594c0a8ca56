//! Opening and binding the sockets: both families on one UDP port, and path sockets that join them there later.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with, sockopt};

use super::UdpConfig;
use crate::sys;

/// How often another free port is tried when one that is free for IPv4 is taken for IPv6.
const PORT_TRIES: usize = 100;

/// The two sockets of one worker. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    v4: Option<Arc<OwnedFd>>,
    v6: Option<Arc<OwnedFd>>,
}

impl Pair {
    /// The socket of a family, if there is one.
    #[inline]
    pub(super) fn of(&self, ipv6: bool) -> Option<&OwnedFd> {
        if ipv6 {
            self.v6.as_deref()
        } else {
            self.v4.as_deref()
        }
    }

    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [&self.v4, &self.v6].into_iter().flatten().map(|fd| fd.as_fd())
    }
}

/// Opens the path sockets of a worker, which are bound when they are wanted: none if there are several workers.
pub(super) fn open_paths(config: &UdpConfig) -> io::Result<Pair> {
    if config.workers > 1 {
        return Ok(Pair { v4: None, v6: None });
    }
    let open = |ipv6| if_supported(open(config, ipv6)).map(|socket| socket.map(Arc::new));
    Ok(Pair {
        v4: open(false)?,
        v6: open(true)?,
    })
}

/// Binds `socket` to the UDP port of `listener`, of the same family.
pub(super) fn join_port(listener: &OwnedFd, socket: &OwnedFd) -> io::Result<()> {
    let mut address = local_address(listener)?;
    address.set_ip(any(address.is_ipv6()));
    // Both must agree to share; afterwards no stranger may join.
    let agree = |shared| {
        share_port(listener.as_fd(), shared)?;
        share_port(socket.as_fd(), shared)
    };
    let bound = agree(true).and_then(|()| Ok(bind(socket, &address)?));
    agree(false)?;
    bound
}

/// Binds the sockets of all workers; returns them and the UDP port.
pub(super) fn bind_all(config: &UdpConfig) -> io::Result<(Vec<Pair>, u16)> {
    let (first, port) = bind_first(config)?;
    if config.workers > 1 {
        // Only now: a socket that may share its port would also share it with a stranger's. Bound alone first, a
        // port that is in use is an error.
        first.fds().try_for_each(|fd| share_port(fd, true))?;
    }
    let mut workers = vec![first];
    while workers.len() < config.workers {
        let another = |present: bool, ipv6| match present {
            true => open_bound(config, ipv6, port, true).map(|socket| Some(Arc::new(socket))),
            false => Ok(None),
        };
        workers.push(Pair {
            v4: another(workers[0].v4.is_some(), false)?,
            v6: another(workers[0].v6.is_some(), true)?,
        });
    }
    Ok((workers, port))
}

/// Binds the first worker's sockets: IPv4 first, then IPv6 to the same port.
fn bind_first(config: &UdpConfig) -> io::Result<(Pair, u16)> {
    let mut tries = 0;
    loop {
        let v4 = if_supported(open_bound(config, false, config.port, false))?;
        let port = v4.as_ref().map_or(Ok(config.port), local_port)?;
        match if_supported(open_bound(config, true, port, false)) {
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse && config.port == 0 && tries < PORT_TRIES =>
            {
                tries += 1;
            }
            Err(error) => return Err(error),
            Ok(v6) => {
                let Some(any) = v4.as_ref().or(v6.as_ref()) else {
                    return Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT));
                };
                let port = local_port(any)?;
                return Ok((
                    Pair {
                        v4: v4.map(Arc::new),
                        v6: v6.map(Arc::new),
                    },
                    port,
                ));
            }
        }
    }
}

/// `None` if the kernel does not have the address family, or has it switched off.
fn if_supported(socket: io::Result<OwnedFd>) -> io::Result<Option<OwnedFd>> {
    match socket {
        Ok(socket) => Ok(Some(socket)),
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn local_port(socket: &OwnedFd) -> io::Result<u16> {
    Ok(local_address(socket)?.port())
}

/// Where a socket is bound, or what a connected one sends from.
pub(super) fn local_address(socket: &OwnedFd) -> io::Result<SocketAddr> {
    Ok(SocketAddr::try_from(getsockname(socket)?)?)
}

fn any(ipv6: bool) -> IpAddr {
    match ipv6 {
        false => Ipv4Addr::UNSPECIFIED.into(),
        true => Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn share_port(fd: BorrowedFd<'_>, shared: bool) -> io::Result<()> {
    Ok(sockopt::set_socket_reuseport(fd, shared)?)
}

/// Opens one socket and binds it.
fn open_bound(config: &UdpConfig, ipv6: bool, port: u16, shared: bool) -> io::Result<OwnedFd> {
    let socket = open(config, ipv6)?;
    if shared {
        share_port(socket.as_fd(), true)?;
    }
    bind(&socket, &SocketAddr::new(any(ipv6), port))?;
    Ok(socket)
}

/// Opens one socket.
fn open(config: &UdpConfig, ipv6: bool) -> io::Result<OwnedFd> {
    let family = if ipv6 {
        AddressFamily::INET6
    } else {
        AddressFamily::INET
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::DGRAM, flags, None)?;
    let fd = socket.as_fd();
    if ipv6 {
        sockopt::set_ipv6_v6only(fd, true)?;
    }
    if config.ifindex != 0 {
        let index = config.ifindex.cast_signed();
        sys::set_option(fd, libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, index)?;
    }
    set_buffers(fd, config.buffer_bytes)?;
    set_ip_options(fd, ipv6)?;
    if config.fwmark != 0 {
        set_fwmark(fd, config.fwmark)?;
    }
    if config.offload {
        // A kernel without it delivers single datagrams.
        let _ = sys::set_option(fd, libc::SOL_UDP, libc::UDP_GRO, 1);
    }
    Ok(socket)
}

/// Sets both buffers, beyond the system's limit where we may.
fn set_buffers(fd: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
    // The kernel doubles the value and keeps it in an int.
    let bytes = bytes.min(i32::MAX as usize / 2);
    if sockopt::set_socket_recv_buffer_size_force(fd, bytes).is_err() {
        sockopt::set_socket_recv_buffer_size(fd, bytes)?;
    }
    let size = bytes as libc::c_int;
    if sys::set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, size).is_err() {
        sockopt::set_socket_send_buffer_size(fd, bytes)?;
    }
    Ok(())
}

/// Asks for the own address and the DSCP byte of every datagram, and sends with DF clear as the kernel's WireGuard does.
fn set_ip_options(fd: BorrowedFd<'_>, ipv6: bool) -> io::Result<()> {
    let (level, options) = match ipv6 {
        false => (
            libc::IPPROTO_IP,
            [
                (libc::IP_PKTINFO, 1),
                (libc::IP_RECVTOS, 1),
                (libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT),
            ],
        ),
        true => (
            libc::IPPROTO_IPV6,
            [
                (libc::IPV6_RECVPKTINFO, 1),
                (libc::IPV6_RECVTCLASS, 1),
                (libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT),
            ],
        ),
    };
    options
        .into_iter()
        .try_for_each(|(name, value)| sys::set_option(fd, level, name, value))
}

/// Whether routers may cut up what is sent from now on. If not, only the MTU of the interface bounds it, and not what the kernel believes about the path.
pub(super) fn set_whole(fd: BorrowedFd<'_>, ipv6: bool, whole: bool) -> io::Result<()> {
    let (level, name, value) = match (ipv6, whole) {
        (false, false) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT),
        (false, true) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE),
        (true, false) => (
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_DONT,
        ),
        (true, true) => (
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_PROBE,
        ),
    };
    sys::set_option(fd, level, name, value)
}

/// Sets the mark of outgoing packets.
pub(super) fn set_fwmark(fd: BorrowedFd<'_>, fwmark: u32) -> io::Result<()> {
    sys::set_option(fd, libc::SOL_SOCKET, libc::SO_MARK, fwmark.cast_signed())
}
