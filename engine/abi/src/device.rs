//! What DPDK is told: how it runs, and which devices it drives.

use alloc::string::String;

/// Bytes of a DPDK device at most, its arguments included.
pub const DEVICE_MAX: usize = 255;
/// Bytes of a virtual DPDK device's name at most (`RTE_DEV_NAME_MAX_LEN`, less the zero).
pub const DEVICE_NAME_MAX: usize = 63;
/// The smallest MTU of a device: every IPv6 link has one of this (RFC 8200, section 5).
pub const MTU_MIN: u16 = 1280;
/// The largest MTU of a device, with which Ethernet's jumbo frames end.
pub const MTU_MAX: u16 = 9216;
/// Mebibytes that DPDK gets at most.
pub const DPDK_MEMORY_MAX: u32 = 1 << 16;
/// Mebibytes that DPDK gets at least: with less it does not start.
pub const DPDK_MEMORY_MIN: u32 = 16;
/// What DPDK gets unless told otherwise.
pub const DPDK_MEMORY: u32 = 64;
/// Sizes of huge pages that can be asked for, mebibytes.
pub const HUGE_PAGES_MIB: [u32; 2] = [2, 1024];

/// How DPDK runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dpdk {
    /// Mebibytes for what drivers need besides packets: [`DPDK_MEMORY_MIN`] to [`DPDK_MEMORY_MAX`].
    pub memory_mib: u32,
    /// That memory is on huge pages.
    pub huge_pages: bool,
    /// Their size, one of [`HUGE_PAGES_MIB`]. None: whichever the system has.
    pub huge_page_mib: Option<u32>,
}

/// A device that DPDK drives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// A PCI address with its domain, or a virtual device's name and arguments.
    pub name: String,
    /// Bytes of its largest packet without the Ethernet header, [`MTU_MIN`] to [`MTU_MAX`].
    pub mtu: u16,
}

impl Dpdk {
    /// As it is unless told otherwise.
    pub const DEFAULT: Dpdk = Dpdk {
        memory_mib: DPDK_MEMORY,
        huge_pages: true,
        huge_page_mib: None,
    };

    pub(crate) fn check(&self) -> Result<(), &'static str> {
        if !(DPDK_MEMORY_MIN..=DPDK_MEMORY_MAX).contains(&self.memory_mib) {
            return Err("its memory");
        }
        match self.huge_page_mib {
            Some(mib) if !self.huge_pages || !HUGE_PAGES_MIB.contains(&mib) => {
                Err("a size of huge pages that there are not")
            }
            _ => Ok(()),
        }
    }
}

impl Device {
    /// What two devices cannot both have: the PCI address, or the virtual device's name.
    pub fn key(&self) -> &str {
        Device::key_of(&self.name)
    }

    /// The same of a name that is not a device's yet.
    pub fn key_of(name: &str) -> &str {
        name.split_once(',').map_or(name, |(key, _)| key)
    }

    /// Whether it is a card on PCI; otherwise a virtual device.
    pub fn is_pci(&self) -> bool {
        self.key().contains(':')
    }
}

/// Whether a port has a device where it wants one, and that can be one.
pub(crate) fn check_device(device: Option<&Device>, is_wanted: bool) -> Result<(), &'static str> {
    let Some(device) = device else {
        return match is_wanted {
            true => Err("DPDK without a device"),
            false => Ok(()),
        };
    };
    if !is_wanted {
        return Err("a device for what is not DPDK's");
    }
    if !(MTU_MIN..=MTU_MAX).contains(&device.mtu) {
        return Err("the MTU of a device");
    }
    if is_device(&device.name) {
        Ok(())
    } else {
        Err("a device that is neither a PCI address nor the name of a virtual device with its arguments")
    }
}

/// Whether this is a device as DPDK can have one: a PCI address with its domain, such as `0000:03:00.0`, or a virtual network device's name with its
/// arguments, such as `net_memif0,role=server`.
pub fn is_device(text: &str) -> bool {
    let (name, arguments) = match text.split_once(',') {
        Some((name, arguments)) => (name, Some(arguments)),
        None => (text, None),
    };
    if name.contains(':') {
        return arguments.is_none() && is_pci_address(name.as_bytes());
    }
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    let is_name = name.strip_prefix("net_").is_some_and(|rest| !rest.is_empty())
        && name.len() <= DEVICE_NAME_MAX
        && name.bytes().all(plain);
    let is_argument = |argument: &str| {
        let (key, value) = argument.split_once('=').unwrap_or((argument, "1"));
        let key_fits = !key.is_empty()
            && key
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
        // DPDK reads quotation marks and brackets as lists.
        let plain = |b: u8| b.is_ascii_graphic() && !b"\"'[](){}\\".contains(&b);
        key_fits && !value.is_empty() && value.bytes().all(plain)
    };
    is_name && text.len() <= DEVICE_MAX && arguments.is_none_or(|all| all.split(',').all(is_argument))
}

/// As `0000:03:00.0`: domain, bus, device (5 bits), function (3 bits).
fn is_pci_address(text: &[u8]) -> bool {
    const FORM: &[u8; 12] = b"xxxx:xx:xx.x";
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    let fits = |(b, form): (&u8, &u8)| if *form == b'x' { hex(*b) } else { b == form };
    text.len() == FORM.len()
        && text.iter().zip(FORM).all(fits)
        && matches!(text[8], b'0' | b'1')
        && (b'0'..=b'7').contains(&text[11])
}
