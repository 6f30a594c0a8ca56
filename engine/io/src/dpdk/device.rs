//! A NIC, or what DPDK makes look like one: opened and looked at by whoever owns the configuration.

use std::ffi::{CStr, CString, c_char};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use patronus_dpdk_sys as sys;
use patronus_mem::FrameCache;

use super::nic::KernelLink;
use super::{Dpdk, DpdkError, DpdkPort, check};

/// Drivers that look for packets behind mbufs' headers, where ours are not.
const OWN_MEMORY: [&str; 1] = ["net_af_xdp"];

/// Bytes of the Ethernet header and a VLAN tag, which an MTU does not count.
const LINK_HEADER: usize = 18;

/// Bursts that are taken from a device at most before it is closed.
const DRAIN_MAX: usize = 4096;

/// How a device is opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceConfig {
    /// A PCI address with its domain (`0000:03:00.0`), or the name of a virtual device, which begins with its driver's, and its arguments
    /// (`net_memif0,role=client`).
    pub device: String,
    /// Pairs of queues. Flows are spread over them if the device can do that; else everything comes by the first.
    pub queues: u16,
    /// Packets that a queue holds in each direction, where the driver leaves the choice.
    pub descriptors: u16,
    /// Bytes of the largest packet, without the Ethernet header.
    pub mtu: u16,
    /// Takes frames for other Ethernet addresses as well.
    pub promiscuous: bool,
}

impl DeviceConfig {
    /// A device with one pair of queues and Ethernet's usual MTU.
    pub fn new(device: impl Into<String>) -> DeviceConfig {
        DeviceConfig {
            device: device.into(),
            queues: 1,
            descriptors: 1024,
            mtu: 1500,
            promiscuous: false,
        }
    }
}

/// What a device is and can do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceInfo {
    /// DPDK's name for it.
    pub name: String,
    /// Its driver.
    pub driver: String,
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// Pairs of queues at most.
    pub queues: u16,
    /// The smallest and the largest MTU.
    pub mtu: [u16; 2],
    /// The NUMA node that it is at, if the system says so.
    pub numa: Option<u32>,
    /// It spreads flows over queues.
    pub hashes: bool,
    /// It looks at the checksums of IPv4 headers, UDP and TCP that arrive.
    pub rx_checksums: [bool; 3],
    /// It makes them.
    pub tx_checksums: [bool; 3],
    /// It takes packets to send that are in several frames.
    pub tx_segments: bool,
}

/// The state of a device's link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkState {
    /// There is a carrier.
    pub up: bool,
    /// Megabits a second, if known.
    pub mbps: Option<u32>,
    /// Both directions at once.
    pub full_duplex: bool,
}

/// What a driver has counted since the device was opened; a driver need not count everything.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Statistics {
    /// Packets received.
    pub rx_packets: u64,
    /// Packets that nobody took in time.
    pub rx_missed: u64,
    /// Packets that arrived damaged.
    pub rx_errors: u64,
    /// Packets for which no frame was free.
    pub rx_no_frame: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Packets that the device failed to send.
    pub tx_errors: u64,
}

/// An open device. It is closed when this and all its ports are dropped.
pub struct Device {
    dpdk: &'static Dpdk,
    /// As it was asked for, without arguments.
    name: String,
    bus: Bus,
    pub(super) port: u16,
    info: DeviceInfo,
    /// Bytes of a frame at most.
    pub(super) longest: usize,
    /// It was told to take packets in several frames.
    pub(super) segments: bool,
    /// The MTU that it was opened with, bytes.
    pub(super) mtu: u16,
    /// Of a device that is an interface of the kernel's.
    kernel: Option<KernelLink>,
    /// What its ports know of the link.
    pub(super) up: AtomicBool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Bus {
    Pci,
    Virtual,
}

impl Bus {
    fn of(device: &str) -> Bus {
        // As 0000:03:00.0; no driver's name has a colon.
        match device.contains(':') {
            true => Bus::Pci,
            false => Bus::Virtual,
        }
    }

    fn name(self) -> &'static CStr {
        match self {
            Bus::Pci => c"pci",
            Bus::Virtual => c"vdev",
        }
    }
}

impl Dpdk {
    /// Opens a device. Returns it, and a port for each pair of queues.
    pub fn open(&'static self, config: &DeviceConfig) -> Result<(Arc<Device>, Vec<DpdkPort>), DpdkError> {
        let _control = self.lock();
        let (name, arguments) = config.device.split_once(',').unwrap_or((&config.device, ""));
        let bus = Bus::of(name);
        let port = attach(bus, name, arguments)?;
        let detach = |error| {
            detach(bus, name);
            error
        };
        let info = info(name, port).map_err(detach)?;
        let segments = check_limits(name, &info, config).map_err(detach)?;
        setup(name, port, config).map_err(|error| {
            // SAFETY: the port exists and nobody else knows of it.
            unsafe { sys::pd_close(port) };
            detach(error)
        })?;
        let kernel = KernelLink::of(&info.driver, arguments);
        let device = Arc::new(Device {
            dpdk: self,
            mtu: config.mtu,
            kernel,
            name: name.to_owned(),
            bus,
            port,
            info,
            longest: usize::from(config.mtu) + LINK_HEADER,
            segments,
            up: AtomicBool::new(false),
        });
        device.note_link();
        let ports = (0..config.queues).map(|queue| DpdkPort::new(Arc::clone(&device), queue, self.arena));
        let ports = ports.collect();
        Ok((device, ports))
    }
}

/// Finds a device, or makes a virtual one, and asks for its port.
fn attach(bus: Bus, name: &str, arguments: &str) -> Result<u16, DpdkError> {
    let text = |text: &str| CString::new(text).map_err(|_| DpdkError::Name);
    let (device, arguments) = (text(name)?, text(arguments)?);
    let mut port = 0;
    // SAFETY: a string and a number that live until the call returns.
    let find = |port: &mut u16| check(unsafe { sys::pd_find(device.as_ptr(), port) });
    if find(&mut port).is_ok() {
        return match bus {
            // Found at the start, as it was allowed to be.
            Bus::Pci => Ok(port),
            Bus::Virtual => Err(DpdkError::Attach(
                name.to_owned(),
                std::io::ErrorKind::ResourceBusy.into(),
            )),
        };
    }
    if bus == Bus::Pci {
        is_free(name)?;
    }
    // SAFETY: strings that live until the call returns; the caller has the lock.
    check(unsafe { sys::pd_attach(bus.name().as_ptr(), device.as_ptr(), arguments.as_ptr()) })
        .and_then(|()| find(&mut port))
        .map_err(|error| DpdkError::Attach(name.to_owned(), error))?;
    Ok(port)
}

fn detach(bus: Bus, name: &str) {
    if bus == Bus::Virtual
        && let Ok(name) = CString::new(name)
    {
        // SAFETY: strings that live until the call returns; the caller has the lock. A device that is gone already cannot be given up.
        unsafe { sys::pd_detach(bus.name().as_ptr(), name.as_ptr()) };
    }
}

/// Whether a PCI device is there and the kernel leaves it to us.
fn is_free(address: &str) -> Result<(), DpdkError> {
    let path = Path::new("/sys/bus/pci/devices").join(address);
    if !path.exists() {
        return Err(DpdkError::NoDevice(address.to_owned()));
    }
    let driver = std::fs::read_link(path.join("driver")).ok();
    let driver = driver.and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
    match driver.as_deref() {
        Some("vfio-pci" | "uio_pci_generic" | "igb_uio") => Ok(()),
        _ => Err(DpdkError::Bound(address.to_owned(), driver)),
    }
}

/// Whether the device can do what is wanted. Returns whether it has to send packets that are in several frames.
fn check_limits(name: &str, info: &DeviceInfo, config: &DeviceConfig) -> Result<bool, DpdkError> {
    if OWN_MEMORY.contains(&info.driver.as_str()) {
        return Err(DpdkError::Driver(name.to_owned(), info.driver.clone()));
    }
    if !(1..=info.queues).contains(&config.queues) {
        return Err(DpdkError::Queues(name.to_owned(), info.queues, config.queues));
    }
    if !(info.mtu[0]..=info.mtu[1]).contains(&config.mtu) {
        return Err(DpdkError::Mtu(name.to_owned(), info.mtu, config.mtu));
    }
    Ok(info.tx_segments && usize::from(config.mtu) + LINK_HEADER > patronus_mem::SMALL_MAX)
}

fn setup(name: &str, port: u16, config: &DeviceConfig) -> Result<(), DpdkError> {
    let mut setup = sys::Setup {
        queues: config.queues,
        descriptors: config.descriptors,
        mtu: config.mtu,
        promiscuous: config.promiscuous.into(),
    };
    let mut step: *const c_char = c"begin".as_ptr();
    // SAFETY: the port exists, the caller has the lock, and the pointers are to values that live until the call returns.
    let rc = unsafe { sys::pd_setup(port, &mut setup, &mut step) };
    check(rc).map_err(|error| {
        // SAFETY: the shim sets it to a constant of its own.
        let step = unsafe { CStr::from_ptr(step) }.to_string_lossy().into_owned();
        DpdkError::Device(name.to_owned(), step, error)
    })
}

fn info(name: &str, port: u16) -> Result<DeviceInfo, DpdkError> {
    // SAFETY: the struct is plain numbers, for which zero is a value.
    let mut found: sys::Info = unsafe { std::mem::zeroed() };
    // SAFETY: the port exists, and the pointer is to a value that lives until the call returns.
    check(unsafe { sys::pd_info(port, &mut found) })
        .map_err(|error| DpdkError::Device(name.to_owned(), "say what it can do".to_owned(), error))?;
    let checksums =
        |bits: u32| [sys::OFFLOAD_IPV4, sys::OFFLOAD_UDP, sys::OFFLOAD_TCP].map(|bit| bits & bit != 0);
    Ok(DeviceInfo {
        name: string(&found.name),
        driver: string(&found.driver),
        mac: found.mac,
        queues: found.max_queues,
        mtu: [found.min_mtu, found.max_mtu],
        numa: found.numa.try_into().ok(),
        hashes: found.hashes != 0,
        rx_checksums: checksums(found.rx_offloads),
        tx_checksums: checksums(found.tx_offloads),
        tx_segments: found.tx_offloads & sys::OFFLOAD_SEGMENTS != 0,
    })
}

/// A string of C's in an array.
fn string(bytes: &[c_char; sys::NAME]) -> String {
    let bytes = bytes.iter().take_while(|byte| **byte != 0);
    String::from_utf8_lossy(&bytes.map(|byte| *byte as u8).collect::<Vec<_>>()).into_owned()
}

impl Device {
    /// What it is and can do.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// Its link. A driver that cannot say so has one that is up.
    pub fn link(&self) -> LinkState {
        let _control = self.dpdk.lock();
        self.ask_for_link()
    }

    /// The caller has the lock.
    fn ask_for_link(&self) -> LinkState {
        let mut found = sys::Link::default();
        // SAFETY: the port exists as long as this, and the pointer is to a value that lives until the call returns.
        let known = check(unsafe { sys::pd_link(self.port, &mut found) }).is_ok();
        let carrier = self.kernel.as_ref().is_none_or(KernelLink::is_up);
        LinkState {
            up: carrier && (!known || found.up != 0),
            mbps: Some(found.mbps).filter(|mbps| *mbps > 0),
            full_duplex: found.full_duplex != 0,
        }
    }

    /// Whether frames come with checksums that nobody has completed: from a veth's other end, which leaves them to a wire that never comes.
    pub fn has_unfinished_checksums(&self) -> bool {
        self.kernel.is_some()
    }

    /// Has the driver take larger or smaller packets than before.
    pub(super) fn change_mtu(&self, mtu: u16) -> std::io::Result<()> {
        let _control = self.dpdk.lock();
        // SAFETY: the port exists as long as this.
        check(unsafe { sys::pd_set_mtu(self.port, mtu) })
    }

    /// Looks whether there is a carrier, for the ports: they do not send without. Called by workers and exception paths, which do not wait: while
    /// somebody else has DPDK open or change a device, the link is as it was.
    pub fn look_at_link(&self) -> bool {
        let Some(_control) = self.dpdk.try_lock() else {
            return self.up.load(Ordering::Relaxed);
        };
        self.note_link()
    }

    /// The caller has the lock.
    fn note_link(&self) -> bool {
        let up = self.ask_for_link().up;
        self.up.store(up, Ordering::Relaxed);
        up
    }

    /// Whether its driver has said that it is gone.
    pub fn is_removed(&self) -> bool {
        // SAFETY: the function reads a flag.
        unsafe { sys::pd_is_removed(self.port) != 0 }
    }

    /// What its driver has counted.
    pub fn statistics(&self) -> Statistics {
        let mut found = sys::Stats::default();
        let _control = self.dpdk.lock();
        // SAFETY: as for `link`. If the driver counts nothing, these are zeros.
        let _ = check(unsafe { sys::pd_stats(self.port, &mut found) });
        Statistics {
            rx_packets: found.rx_packets,
            rx_missed: found.rx_missed,
            rx_errors: found.rx_errors,
            rx_no_frame: found.rx_no_frame,
            tx_packets: found.tx_packets,
            tx_errors: found.tx_errors,
        }
    }

    /// Takes what still arrives, so that nothing is left in a ring that closing it would forget.
    pub(super) fn drain(&self, queue: u16) {
        let mut frames = FrameCache::new(self.dpdk.arena);
        for _ in 0..DRAIN_MAX {
            if !super::port::drain((self.port, queue), self.dpdk.arena, &mut frames) {
                break;
            }
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _control = self.dpdk.lock();
        // SAFETY: the port exists, and all ports of its queues are gone.
        unsafe { sys::pd_close(self.port) };
        detach(self.bus, &self.name);
    }
}

#[cfg(test)]
mod tests {
    use patronus_mem::{Arena, ArenaConfig};

    use super::*;
    use crate::dpdk::Options;

    #[test]
    fn who_looks_at_the_link_keeps_out_of_others_calls() {
        let config = ArenaConfig {
            frames: 4096,
            jumbo_frames: 2,
        };
        let options = Options {
            huge_pages: false,
            ..Options::default()
        };
        let dpdk = Dpdk::start(&options, Arena::new(&config).unwrap()).unwrap();
        let (device, _ports) = dpdk.open(&DeviceConfig::new("net_null0")).unwrap();
        device.up.store(false, Ordering::Relaxed);
        let control = dpdk.lock();
        assert!(!device.look_at_link(), "as it was");
        drop(control);
        assert!(device.look_at_link(), "as it is");
    }
}
