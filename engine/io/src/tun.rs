//! The TUN device: where the host's own packets enter and leave the engine.
//!
//! [`Tun::create`] is called once by the binary, before privileges are dropped. The [`TunDevice`] goes
//! to the slow-path thread, each [`TunPort`] to the worker that owns it.
//!
//! The device is opened with a virtio-net header, so that the kernel hands over TCP and UDP
//! super-packets of up to 64 KiB instead of packets, and takes them: that is what makes a TUN fast (a
//! read costs the same whatever its size).
//!
//! How many packets a super-packet stands for is the kernel's choice. Limiting it
//! (`IFLA_GSO_MAX_SEGS`) to the 45 that fit one UDP send when sealed makes a local TCP cut its
//! super-packets to that size, which gained nothing; but what is forwarded arrives with up to 47
//! from somebody else's TCP, and the kernel then takes each of those apart before we see it: 1 packet
//! a read instead of 46, and 2.3 to 2.8 Gb/s instead of 3.8 to 4.2 from one device to another.
//!
//! Sources: Linux `include/uapi/linux/if_tun.h`,
//! Documentation/networking/tuntap.rst.

mod port;

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};

use crate::offload::VNET_HEADER;
use crate::offload::coalesce::Accepts;
use crate::{ioctl, netlink};

pub use port::TunPort;

/// Longest name of a network interface, in bytes (Linux `IFNAMSIZ` without the closing zero).
pub const NAME_MAX: usize = 15;

/// How to make a TUN device.
#[derive(Clone, Debug)]
pub struct TunConfig<'a> {
    /// Name of the interface, at most [`NAME_MAX`] bytes. A `%d` in it is replaced by the kernel.
    pub name: &'a str,
    /// Queues, one for each worker; the kernel spreads flows over them.
    pub queues: usize,
    /// Largest packet in bytes, or what the kernel gives (1,500).
    pub mtu: Option<u32>,
    /// Packets that the kernel queues towards us. The kernel's default of 500 overflows within one
    /// time slice of a sender; 4,000 does not.
    pub txqueuelen: u32,
    /// Exchange super-packets with the kernel.
    pub offload: bool,
    /// The interface outlives its ports. One that is there already is taken, and its MTU left as it is.
    pub persistent: bool,
}

impl Default for TunConfig<'_> {
    fn default() -> Self {
        TunConfig {
            name: "wg%d",
            queues: 1,
            mtu: None,
            txqueuelen: 4000,
            offload: true,
            persistent: false,
        }
    }
}

/// Makes TUN devices.
#[derive(Debug)]
pub enum Tun {}

impl Tun {
    /// Creates the interface and one port for each of its queues. The interface is down and lives
    /// until the last port is dropped, or until [`remove`](Tun::remove) if it is persistent.
    ///
    /// Errors of the system come back with their kind and number: `NotFound` when there is no
    /// `/dev/net/tun`, `PermissionDenied` without `CAP_NET_ADMIN`, `ResourceBusy` when another process
    /// holds the device, `AlreadyExists` when an interface of another kind has the name, and
    /// `InvalidInput` for a name that cannot be one.
    pub fn create(config: &TunConfig<'_>) -> io::Result<(TunDevice, Vec<TunPort>)> {
        check_name(config.name)?;
        // Whoever takes it again may have another number of queues, which the kernel allows only in this mode.
        let several = config.queues > 1 || config.persistent;
        let control = ioctl::Control::new()?;
        let was_there = config.persistent && control.index(config.name).is_ok();
        let first = open_queue()?;
        let name =
            ioctl::attach(&first, config.name, several).map_err(|e| explain(e, &control, config.name))?;
        if config.persistent {
            ioctl::set_persistent(&first, true)?;
        }
        let mut queues = vec![first];
        while queues.len() < config.queues {
            let queue = open_queue()?;
            ioctl::attach(&queue, &name, several)?;
            queues.push(queue);
        }
        let mut ports = Vec::with_capacity(queues.len());
        for queue in queues {
            ioctl::set_vnet_header(&queue, VNET_HEADER as libc::c_int)?;
            let accepts = if config.offload {
                offer_offloads(&queue)?
            } else {
                no_offloads(&queue)?
            };
            ports.push(TunPort::new(queue, accepts));
        }
        let device = TunDevice {
            ifindex: control.index(&name)?,
            name,
            control,
        };
        netlink::set_txqueuelen(device.ifindex, config.txqueuelen)?;
        if let Some(mtu) = config.mtu.filter(|_| !was_there) {
            device.set_mtu(mtu)?;
        }
        Ok((device, ports))
    }

    /// Removes a persistent interface that nobody serves: `ResourceBusy` if somebody does with as many queues as there may be, `NotFound` if there is none. One that is served
    /// goes when its last port is dropped.
    pub fn remove(name: &str) -> io::Result<()> {
        check_name(name)?;
        let control = ioctl::Control::new()?;
        control.index(name).map_err(|_| io::ErrorKind::NotFound)?;
        let queue = open_queue()?;
        ioctl::attach(&queue, name, true).map_err(|e| explain(e, &control, name))?;
        ioctl::set_persistent(&queue, false)
    }
}

/// The interface as a whole: its name, index, size and state. Any thread may own it.
#[derive(Debug)]
pub struct TunDevice {
    name: String,
    ifindex: u32,
    control: ioctl::Control,
}

impl TunDevice {
    /// The name that the interface was created with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The interface's index in the namespace that it was created in.
    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// Largest packet, in bytes.
    pub fn mtu(&self) -> io::Result<u32> {
        self.control.mtu(&self.current_name()?)
    }

    /// Sets the largest packet, in bytes.
    pub fn set_mtu(&self, mtu: u32) -> io::Result<()> {
        self.control.set_mtu(&self.current_name()?, mtu)
    }

    /// Whether the interface is up, as its administrator set it.
    pub fn is_up(&self) -> io::Result<bool> {
        self.control.is_up(&self.current_name()?)
    }

    /// The interface may have been renamed meanwhile.
    fn current_name(&self) -> io::Result<String> {
        self.control.name(self.ifindex)
    }
}

pub(crate) fn open_queue() -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::open("/dev/net/tun", flags, Mode::empty())?)
}

/// Asks for all that the kernel has; UDP super-packets came with Linux 6.2, the rest is older than
/// anything that we run on.
fn offer_offloads(queue: &OwnedFd) -> io::Result<Accepts> {
    let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    let udp = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    if ioctl::set_offload(queue, tcp | udp).is_ok() {
        return Ok(Accepts { tcp: true, udp: true });
    }
    if ioctl::set_offload(queue, tcp).is_ok() {
        return Ok(Accepts {
            tcp: true,
            udp: false,
        });
    }
    no_offloads(queue)
}

fn no_offloads(queue: &OwnedFd) -> io::Result<Accepts> {
    ioctl::set_offload(queue, 0)?;
    Ok(Accepts {
        tcp: false,
        udp: false,
    })
}

/// The kernel's own rules for names (`dev_valid_name`), so that a bad one is told apart from other
/// reasons for "invalid argument".
pub(crate) fn check_name(name: &str) -> io::Result<()> {
    let bad = |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    if name.is_empty() {
        return bad("the interface name is empty");
    }
    if name.len() > NAME_MAX {
        return bad("the interface name is longer than 15 bytes");
    }
    if name == "." || name == ".." {
        return bad("the interface name is a directory");
    }
    if name
        .bytes()
        .any(|b| matches!(b, b'/' | b':') || b.is_ascii_whitespace() || b.is_ascii_control() || b == 0xa0)
    {
        return bad("the interface name contains '/', ':', white space or a control character");
    }
    Ok(())
}

/// "Invalid argument" for a good name means that the name belongs to another kind of interface.
fn explain(error: io::Error, control: &ioctl::Control, name: &str) -> io::Error {
    if error.raw_os_error() == Some(libc::EINVAL) && control.index(name).is_ok() {
        return io::Error::from_raw_os_error(libc::EEXIST);
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_kernels_rules() {
        for good in ["wg0", "a", "wg%d", "patronus-hub-01", "wg.100", "..."] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "sixteen-bytes-xx",
            "a/b",
            "a b",
            "a\tb",
            "a:b",
            ".",
            "..",
            "a\0b",
            "a\nb",
        ] {
            let error = check_name(bad).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{bad:?}");
        }
    }
}
