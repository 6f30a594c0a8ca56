//! NICs that DPDK drives, as the rest of the engine sees them, which need not know whether DPDK was built in: see docs/dpdk.md and docs/adr/0024.
//!
//! [`Nics`] belongs to whoever owns the configuration: the main thread at the start and the slow path, which is the same thread, later. It opens NICs, follows their links, and
//! takes them again when they have gone and come back. A worker has one port of each NIC, which is there whether the NIC is or not: a *seat*, into which the owner puts
//! a pair of the NIC's queues, and out of which he asks for it back. Without the feature `dpdk` there is no [`Nics`] that could have a NIC.

use std::fmt;

use crate::Port;

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

/// Frames that a pair of a NIC's queues may hold: as many as its rings have places.
pub const QUEUE_FRAMES: usize = 2 * DESCRIPTORS as usize;

/// Packets that a queue holds in each direction, where the driver leaves the choice.
const DESCRIPTORS: u16 = 1024;

/// How DPDK runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NicsConfig {
    /// Mebibytes for what drivers need besides packets.
    pub memory_mib: u32,
    /// That memory is on huge pages.
    pub huge_pages: bool,
    /// Pairs of queues of each NIC: one for each worker.
    pub workers: u16,
    /// The NICs.
    pub nics: Vec<NicConfig>,
}

/// A NIC.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NicConfig {
    /// A PCI address with its domain, or a virtual device's name and arguments.
    pub device: String,
    /// Bytes of its largest packet, without the Ethernet header.
    pub mtu: u16,
}

/// A worker's port of a NIC, for each worker.
pub type NicPorts = Vec<Box<dyn Port + Send>>;

/// What has become of a NIC.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NicEvent {
    /// It is there: its link address, and the MTU.
    Opened([u8; 6], u16),
    /// It is not there, or what it stands on is not: for this reason.
    Missing(String),
    /// It cannot be used, for this reason.
    Refused(String),
    /// It was there and is not any more.
    Lost,
    /// It has a carrier, or has none.
    Link(bool),
}

/// Why there are no NICs.
#[derive(Debug)]
pub enum NicsError {
    /// DPDK was not built in.
    NotBuiltIn,
    /// It does not start, or a NIC is refused.
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
