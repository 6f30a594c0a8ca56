//! NICs that DPDK drives, as the rest of the engine sees them, which need not know whether DPDK was built in: see docs/dpdk.md and docs/adr/0024.
//!
//! [`Nics`] belongs to whoever owns the configuration: the main thread at the start and the slow path, which is the same thread, later. It opens devices, makes the interface
//! that stands for each in the kernel ([`exception`](crate::exception)), and takes devices again that have gone and come back. A worker has one queue of each NIC, which is there
//! whether the device is or not: a *seat*, into which the owner puts a pair of the device's queues, and out of which he asks for it back. Without the feature `dpdk` there are no
//! [`Nics`].

use std::fmt;

use crate::wan::AnyQueue;

#[cfg(not(feature = "dpdk"))]
mod absent;
#[cfg(feature = "dpdk")]
mod driven;
#[cfg(feature = "dpdk")]
mod seat;

#[cfg(not(feature = "dpdk"))]
pub use absent::Nics;
#[cfg(feature = "dpdk")]
pub use driven::Nics;

/// Whether DPDK was built in.
pub const BUILT_IN: bool = cfg!(feature = "dpdk");

/// Frames that a worker's queues of a NIC may hold: as many as its rings have places, and those to the host and back.
pub const QUEUE_FRAMES: usize = 2 * DESCRIPTORS as usize + 2 * crate::exception::RING;

/// Packets that a queue holds in each direction, where the driver leaves the choice.
const DESCRIPTORS: u16 = 1024;

/// How DPDK runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NicsConfig {
    /// Mebibytes for what drivers need besides packets.
    pub memory_mib: u32,
    /// That memory is on huge pages.
    pub huge_pages: bool,
    /// Their size, mebibytes: so many of these have to be free. None: whichever there are.
    pub huge_page_mib: Option<u32>,
    /// Pairs of queues of each NIC: one for each worker.
    pub workers: u16,
    /// The NICs.
    pub nics: Vec<NicConfig>,
}

/// A NIC.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NicConfig {
    /// The interface that stands for it in the kernel, and is made for that.
    pub interface: String,
    /// A PCI address with its domain, or a virtual device's name and arguments.
    pub device: String,
    /// Bytes of its largest packet, without the Ethernet header.
    pub mtu: u16,
}

impl NicConfig {
    /// Whether it is a card, by its PCI address; otherwise a virtual device.
    pub fn is_card(&self) -> bool {
        self.device.contains(':') && !self.device.contains(',')
    }
}

/// A queue of a NIC for each worker. They have the engine's frames alone; the others go to the host, but only while somebody polls them.
pub type NicQueues = Vec<AnyQueue>;

/// What has become of a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NicEvent {
    /// It is there.
    Opened,
    /// It is not there, or what it stands on is not: for this reason.
    Missing(String),
    /// It cannot be used, for this reason.
    Refused(String),
    /// It was there and is not any more.
    Lost,
}

/// Why there are no NICs.
#[derive(Debug)]
pub enum NicsError {
    /// DPDK was not built in.
    NotBuiltIn,
    /// It does not start, or a NIC cannot be had.
    Refused(String),
}

impl fmt::Display for NicsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NicsError::NotBuiltIn => f.write_str(
                "this engine was built without DPDK (cargo feature `dpdk`): build it with `--features dpdk` (docs/dpdk.md), or use another `port`",
            ),
            NicsError::Refused(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for NicsError {}
