//! What can go wrong with DPDK, and what to do about it.

use std::fmt;
use std::io;

/// Why DPDK or a device of it cannot be used.
#[derive(Debug)]
pub enum DpdkError {
    /// It was started before.
    Again,
    /// It does not start, with huge pages or without.
    Start(io::Error, bool),
    /// The packets' memory cannot be used by it.
    Memory(io::Error),
    /// Packets have to be on huge pages for devices that know only physical addresses.
    Pages,
    /// A name with a zero byte in it.
    Name,
    /// There is no such PCI device.
    NoDevice(String),
    /// A PCI device that a driver of the kernel's has, or none at all.
    Bound(String, Option<String>),
    /// DPDK has no driver for a device, or the driver refused it.
    Attach(String, io::Error),
    /// A driver that keeps packets where ours are not.
    Driver(String, String),
    /// A device has so many queues, and so many are wanted.
    Queues(String, u16, u16),
    /// The smallest and largest MTU of a device, and the one that is wanted.
    Mtu(String, [u16; 2], u16),
    /// A device refused this.
    Device(String, String, io::Error),
}

impl fmt::Display for DpdkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DpdkError::Again => f.write_str("DPDK was started before in this process, and can be only once"),
            DpdkError::Start(error, true) => write!(
                f,
                "DPDK does not start: {error}; its own lines above say more. Are there free huge pages (grep HugePages_Free /proc/meminfo; \
                 `sysctl vm.nr_hugepages=512` makes 1 GiB), and may this user have them (root, or a hugetlbfs mount of its own)?"
            ),
            DpdkError::Start(error, false) => {
                write!(f, "DPDK does not start: {error}; its own lines above say more")
            }
            DpdkError::Memory(error) => write!(f, "DPDK cannot use the memory for packets: {error}"),
            DpdkError::Pages => f.write_str(
                "these NICs know only physical addresses (no IOMMU), so packets have to be on huge pages, and there are too few free ones: \
                 `sysctl vm.nr_hugepages=512`, or start the machine with an IOMMU (intel_iommu=on or amd_iommu=on) and bind the NICs to vfio-pci",
            ),
            DpdkError::Name => f.write_str("a device's name has a zero byte in it"),
            DpdkError::NoDevice(name) => write!(
                f,
                "there is no PCI device {name}: `lspci -D` shows their addresses; a virtual device's name begins with its driver's, as in net_memif0"
            ),
            DpdkError::Bound(name, Some(driver)) => write!(
                f,
                "PCI device {name} is the kernel's (driver {driver}): bind it to vfio-pci with scripts/dpdk-bind"
            ),
            DpdkError::Bound(name, None) => write!(
                f,
                "PCI device {name} is bound to no driver: bind it to vfio-pci with scripts/dpdk-bind"
            ),
            DpdkError::Attach(name, error) if error.kind() == io::ErrorKind::ResourceBusy => write!(
                f,
                "device {name} is in use: another process has it, or it is named twice"
            ),
            DpdkError::Attach(name, error) => write!(
                f,
                "DPDK cannot use device {name}: {error}. Either it has no driver for it (is the package with the driver installed?), or the \
                 driver refused its arguments"
            ),
            DpdkError::Driver(name, driver) => write!(
                f,
                "device {name}: the driver {driver} wants packets in memory of its own; for AF_XDP use the engine's own port, `port = \"af_xdp\"`"
            ),
            DpdkError::Queues(name, most, wanted) => write!(
                f,
                "device {name} has {most} pairs of queues and there are {wanted} workers, which each need one: set fewer workers"
            ),
            DpdkError::Mtu(name, [least, most], wanted) => {
                write!(f, "device {name} takes MTUs from {least} to {most} bytes and not {wanted}")
            }
            DpdkError::Device(name, what, error) => {
                write!(f, "device {name}: cannot {what}: {error}")?;
                match error.kind() {
                    io::ErrorKind::OutOfMemory => f.write_str("; give DPDK more memory, or the arena more frames"),
                    io::ErrorKind::ResourceBusy => f.write_str("; another process has it"),
                    _ => Ok(()),
                }
            }
        }
    }
}

impl std::error::Error for DpdkError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            DpdkError::Start(error, _)
            | DpdkError::Memory(error)
            | DpdkError::Attach(_, error)
            | DpdkError::Device(_, _, error) => Some(error),
            _ => None,
        }
    }
}
