//! A device as an exception path sees it; and the link of devices that are interfaces of the kernel's, of which DPDK's driver knows nothing.

use std::io;
use std::sync::Arc;

use super::Device;
use crate::exception::Nic;
use crate::ioctl;

/// The driver whose devices are interfaces of the kernel's.
const PACKET_SOCKETS: &str = "net_af_packet";

/// Whether an interface of the kernel's has a carrier, in the namespace in which its device was opened.
#[derive(Debug)]
pub(super) struct KernelLink {
    control: ioctl::Control,
    interface: String,
}

impl KernelLink {
    /// That of a device with this driver and these arguments; `None` for all that say themselves whether their link is up.
    pub(super) fn of(driver: &str, arguments: &str) -> Option<KernelLink> {
        if driver != PACKET_SOCKETS {
            return None;
        }
        let mut arguments = arguments.split(',');
        let interface = arguments.find_map(|argument| argument.strip_prefix("iface="))?;
        Some(KernelLink {
            control: ioctl::Control::new().ok()?,
            interface: interface.to_owned(),
        })
    }

    pub(super) fn is_up(&self) -> bool {
        self.control.is_running(&self.interface).unwrap_or(false)
    }
}

impl Nic for Arc<Device> {
    fn mac(&self) -> [u8; 6] {
        self.info().mac
    }

    fn mtu(&self) -> u32 {
        self.mtu.into()
    }

    /// Not beyond the one that the device was opened with: its queues were made for packets of that size.
    fn set_mtu(&self, mtu: u32) -> io::Result<()> {
        let fits = u16::try_from(mtu).ok().filter(|mtu| *mtu <= self.mtu);
        let Some(mtu) = fits else {
            let why = format!("the device was opened for packets of up to {} bytes", self.mtu);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        };
        match self.change_mtu(mtu) {
            // It goes on taking larger packets than the host sends, which harms nobody.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTSUP | libc::EBUSY)) => Ok(()),
            done => done,
        }
    }

    fn is_up(&self) -> bool {
        self.look_at_link()
    }
}
