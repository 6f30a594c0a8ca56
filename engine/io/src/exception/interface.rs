//! The TAP device that stands for a NIC in the kernel. Made by the main thread, which still has the rights; used by the thread of its exception path.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::{ioctl, tun};

/// An Ethernet interface of the kernel's whose wire is in our hands. It goes when this is dropped, also by dying, and its addresses and routes with it.
#[derive(Debug)]
pub struct HostInterface {
    queue: OwnedFd,
    name: String,
    ifindex: u32,
    control: ioctl::Control,
}

impl HostInterface {
    /// Makes the interface: down, without a carrier, with this link address, and an MTU in bytes. Needs CAP_NET_ADMIN.
    ///
    /// Errors of the system come back with their kind and number: `ResourceBusy` when there is an interface of that name, `NotFound` when there is no
    /// `/dev/net/tun`, `PermissionDenied` without the right, and `InvalidInput` for a name or link address that cannot be one.
    pub fn create(name: &str, mac: [u8; 6], mtu: u32) -> io::Result<HostInterface> {
        tun::check_name(name)?;
        let (control, queue) = (ioctl::Control::new()?, tun::open_queue()?);
        let name = ioctl::attach_tap(&queue, name)?;
        // Before anybody can set it up: until the NIC's link is known there is none.
        ioctl::set_carrier(&queue, false)?;
        ioctl::set_mac(&queue, mac)?;
        let interface = HostInterface {
            queue,
            ifindex: control.index(&name)?,
            name,
            control,
        };
        interface.set_mtu(mtu)?;
        Ok(interface)
    }

    /// The name that it was made with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its number in the namespace that it was made in.
    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// Bytes of the largest packet behind the Ethernet header.
    pub fn mtu(&self) -> io::Result<u32> {
        self.control.mtu(&self.control.name(self.ifindex)?)
    }

    /// Sets that. Needs CAP_NET_ADMIN.
    pub fn set_mtu(&self, mtu: u32) -> io::Result<()> {
        self.control.set_mtu(&self.control.name(self.ifindex)?, mtu)
    }

    /// Whether there is a carrier. Without one the kernel takes its routes for dead.
    pub fn set_carrier(&self, carrier: bool) -> io::Result<()> {
        ioctl::set_carrier(&self.queue, carrier)
    }

    /// Gives it another link address. Needs CAP_NET_ADMIN.
    pub fn set_mac(&self, mac: [u8; 6]) -> io::Result<()> {
        ioctl::set_mac(&self.queue, mac)
    }

    /// The next frame that the host sends, without waiting: how many bytes.
    pub fn read(&self, frame: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.queue, frame)?)
    }

    /// A frame that arrives at the host.
    pub fn write(&self, frame: &[u8]) -> io::Result<()> {
        Ok(rustix::io::write(&self.queue, frame).map(drop)?)
    }
}

impl AsFd for HostInterface {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}
