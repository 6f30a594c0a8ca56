//! The few `ioctl` requests behind TUN and TAP devices. Nothing else of theirs is unsafe.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// Of a TAP device whether it has a carrier (linux/if_tun.h).
const TUNSETCARRIER: libc::c_ulong = 0x4004_54e2;

/// Makes `queue` a queue of the TUN device `name`, which is created if there is none, and returns the
/// device's name as the kernel completed it.
pub fn attach(queue: &OwnedFd, name: &str, several: bool) -> io::Result<String> {
    let mut flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if several {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    set_interface(queue, name, flags)
}

/// Makes `queue` the one queue of a new TAP device: whole frames with nothing in front. A device that is there already is refused.
pub fn attach_tap(queue: &OwnedFd, name: &str) -> io::Result<String> {
    set_interface(queue, name, libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_TUN_EXCL)
}

fn set_interface(queue: &OwnedFd, name: &str, flags: libc::c_int) -> io::Result<String> {
    let mut request = request_for(name)?;
    // The kernel reads the bits, not a number: the narrowing keeps all sixteen.
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes a struct ifreq, which `request` is, and keeps no pointer.
    check(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETIFF, &mut request) })?;
    Ok(name_of(&request))
}

/// Says whether the device outlives its queues.
pub fn set_persistent(queue: &OwnedFd, persistent: bool) -> io::Result<()> {
    // SAFETY: TUNSETPERSIST takes its argument by value and touches no memory of ours.
    check(unsafe {
        libc::ioctl(
            queue.as_raw_fd(),
            libc::TUNSETPERSIST,
            libc::c_ulong::from(persistent),
        )
    })
}

/// Sets the length of the virtio-net header, in bytes.
pub fn set_vnet_header(queue: &OwnedFd, len: libc::c_int) -> io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads an int.
    check(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETVNETHDRSZ, &len) })
}

/// Tells the kernel which `TUN_F_*` super-packets we take.
pub fn set_offload(queue: &OwnedFd, offloads: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value and touches no memory of ours.
    check(unsafe {
        libc::ioctl(
            queue.as_raw_fd(),
            libc::TUNSETOFFLOAD,
            libc::c_ulong::from(offloads),
        )
    })
}

/// Sets the Ethernet address of a TAP device.
pub fn set_mac(queue: &OwnedFd, mac: [u8; 6]) -> io::Result<()> {
    let mut request = request_for("")?;
    let mut address = libc::sockaddr {
        sa_family: libc::ARPHRD_ETHER,
        sa_data: [0; 14],
    };
    for (to, from) in address.sa_data.iter_mut().zip(mac) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_hwaddr = address;
    // SAFETY: on a queue of a TAP device SIOCSIFHWADDR reads a struct ifreq, which `request` is, whatever name is in it.
    check(unsafe { libc::ioctl(queue.as_raw_fd(), libc::SIOCSIFHWADDR as libc::Ioctl, &request) })
}

/// Says whether a TAP device has a carrier.
pub fn set_carrier(queue: &OwnedFd, carrier: bool) -> io::Result<()> {
    let carrier = libc::c_int::from(carrier);
    // SAFETY: TUNSETCARRIER reads an int.
    check(unsafe { libc::ioctl(queue.as_raw_fd(), TUNSETCARRIER as libc::Ioctl, &carrier) })
}

/// A socket for requests about interfaces, bound to the network namespace that it was made in.
#[derive(Debug)]
pub struct Control {
    socket: OwnedFd,
}

impl Control {
    pub fn new() -> io::Result<Control> {
        let (kind, flags) = (SocketType::DGRAM, SocketFlags::CLOEXEC);
        // A kernel without IPv4 answers the same requests on an IPv6 socket.
        let socket = rustix::net::socket_with(AddressFamily::INET, kind, flags, None)
            .or_else(|_| rustix::net::socket_with(AddressFamily::INET6, kind, flags, None))?;
        Ok(Control { socket })
    }

    pub fn index(&self, name: &str) -> io::Result<u32> {
        let request = self.ask(libc::SIOCGIFINDEX, request_for(name)?)?;
        // SAFETY: SIOCGIFINDEX succeeded, so the kernel filled in this field.
        Ok(unsafe { request.ifr_ifru.ifru_ifindex } as u32)
    }

    pub fn name(&self, ifindex: u32) -> io::Result<String> {
        let mut request = request_for("")?;
        request.ifr_ifru.ifru_ifindex = ifindex as libc::c_int;
        Ok(name_of(&self.ask(libc::SIOCGIFNAME, request)?))
    }

    pub fn mtu(&self, name: &str) -> io::Result<u32> {
        let request = self.ask(libc::SIOCGIFMTU, request_for(name)?)?;
        // SAFETY: SIOCGIFMTU succeeded, so the kernel filled in this field.
        Ok(unsafe { request.ifr_ifru.ifru_mtu } as u32)
    }

    pub fn set_mtu(&self, name: &str, mtu: u32) -> io::Result<()> {
        let mut request = request_for(name)?;
        request.ifr_ifru.ifru_mtu = mtu.try_into().unwrap_or(libc::c_int::MAX);
        self.ask(libc::SIOCSIFMTU, request).map(drop)
    }

    pub fn is_up(&self, name: &str) -> io::Result<bool> {
        Ok(self.flags(name)? & libc::IFF_UP != 0)
    }

    /// Whether it is up and has a carrier.
    #[cfg(feature = "dpdk")]
    pub fn is_running(&self, name: &str) -> io::Result<bool> {
        Ok(self.flags(name)? & libc::IFF_RUNNING != 0)
    }

    fn flags(&self, name: &str) -> io::Result<libc::c_int> {
        let request = self.ask(libc::SIOCGIFFLAGS, request_for(name)?)?;
        // SAFETY: SIOCGIFFLAGS succeeded, so the kernel filled in this field.
        Ok(libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags }))
    }

    /// One request; `what` is one of the SIOC requests above, all of which take a struct ifreq.
    fn ask(&self, what: libc::c_ulong, mut request: libc::ifreq) -> io::Result<libc::ifreq> {
        // The request number is an int in some C libraries and a long in others.
        let what = what as libc::Ioctl;
        // SAFETY: `what` reads and writes a struct ifreq, which `request` is, and keeps no pointer.
        check(unsafe { libc::ioctl(self.socket.as_fd().as_raw_fd(), what, &mut request) })?;
        Ok(request)
    }
}

fn request_for(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: struct ifreq is plain numbers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn name_of(request: &libc::ifreq) -> String {
    let bytes: Vec<u8> = request
        .ifr_name
        .iter()
        .map(|c| *c as u8)
        .take_while(|b| *b != 0)
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
