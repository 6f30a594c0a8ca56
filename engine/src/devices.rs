//! `patronus-engine devices`: which network cards the machine has, what they are bound to, and what is missing before DPDK can drive them: all of them, or what a site's
//! file names. Only reads, by any user; called by the main thread, which prints the report and ends.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use patronus_abi::device::{DPDK_MEMORY, Device};
use patronus_io::nics;

/// Class of a PCI device that is a network controller (PCI code and ID assignment, 02h).
const NETWORK: &str = "0x02";

/// Drivers that leave a device to programs.
const FOR_PROGRAMS: [&str; 3] = ["vfio-pci", "uio_pci_generic", "igb_uio"];

/// Mebibytes of huge pages that are enough for one engine's packets.
const FOR_PACKETS: u64 = 192;

/// Drivers of virtual devices that are interfaces of the kernel's.
const OVER_INTERFACES: [&str; 2] = ["net_af_packet", "net_pcap"];

/// A network card, as the kernel shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Nic {
    address: String,
    /// Vendor and device, as in `8086:1572`.
    id: String,
    driver: Option<String>,
    /// Its interfaces of the host.
    interfaces: Vec<String>,
    numa: Option<u32>,
    iommu_group: Option<String>,
}

/// Pages of one size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct HugePages {
    kib: u64,
    total: u64,
    free: u64,
}

/// What a site's file wants of DPDK.
pub struct Wanted {
    file: PathBuf,
    memory_mib: u64,
    huge_pages: bool,
    /// What each port is, and its device.
    ports: Vec<(String, Device)>,
}

impl Wanted {
    /// Reads it from the file. Keys need not be there.
    pub fn load(file: &Path) -> Result<Wanted, String> {
        let site = patronus_config::load(file).map_err(|error| error.to_string())?;
        let site = site.compile();
        let links = site.links.iter().map(|link| {
            let what = format!("link {} ({})", link.id, link.interface);
            (what, link.device.clone())
        });
        let lans = site.lans.iter().map(|lan| {
            let interface = lan.interface.as_deref().unwrap_or_default();
            (format!("LAN {} ({interface})", lan.name), lan.device.clone())
        });
        let ports = links.chain(lans);
        Ok(Wanted {
            file: file.to_owned(),
            memory_mib: site.dpdk.memory_mib.into(),
            huge_pages: site.dpdk.huge_pages,
            ports: ports.filter_map(|(what, device)| Some((what, device?))).collect(),
        })
    }

    /// The PCI addresses that are to be bound, a line each.
    pub fn addresses(&self) -> String {
        let cards = self.ports.iter().filter(|(_, device)| device.is_pci());
        cards.map(|(_, device)| format!("{}\n", device.name)).collect()
    }

    /// What each of its devices is, and what there is to do about it.
    fn describe(&self, root: &Path, nics: &[Nic], iommu: bool) -> (String, Vec<String>) {
        let (mut text, mut advice) = (String::new(), Vec::new());
        let _ = writeln!(text, "devices of {}:", self.file.display());
        if self.ports.is_empty() {
            let _ = writeln!(text, "  none: no port has `port = \"dpdk\"`");
        }
        for (what, device) in &self.ports {
            let (state, todo) = match device.is_pci() {
                true => self.card(nics.iter().find(|nic| nic.address == device.name), device, iommu),
                false => virtual_device(root, device),
            };
            let _ = writeln!(text, "  {what}: {}: {state}", device.name);
            advice.extend(todo);
        }
        if !self.ports.is_empty() && !nics::BUILT_IN {
            advice.push(
                "this engine was built without DPDK: `cargo build --release -p patronus-engine --features dpdk` (docs/dpdk.md)".to_owned(),
            );
        }
        (text, advice)
    }

    fn card(&self, nic: Option<&Nic>, device: &Device, iommu: bool) -> (String, Option<String>) {
        let address = &device.name;
        let Some(nic) = nic else {
            let todo = format!(
                "find the address of the card that {address} was to be: `lspci -D`, or the list above"
            );
            return ("there is no such network card".to_owned(), Some(todo));
        };
        let state = match &nic.driver {
            None => "bound to no driver".to_owned(),
            Some(driver) => format!("bound to {driver}"),
        };
        if nic.is_for_programs() {
            return (format!("{state}, ready"), None);
        }
        let file = self.file.display();
        let todo = format!(
            "bind {address}: `scripts/dpdk-bind{} --config {file}`{}",
            driver_option(iommu),
            nic.loss()
        );
        (state, Some(todo))
    }
}

/// What a virtual device is, and what there is to do about it.
fn virtual_device(root: &Path, device: &Device) -> (String, Option<String>) {
    let mut arguments = device.name.split(',').skip(1);
    let interface = arguments.find_map(|argument| argument.strip_prefix("iface="));
    let over = OVER_INTERFACES
        .iter()
        .any(|driver| device.name.starts_with(driver));
    match interface.filter(|_| over) {
        None => ("virtual, nothing to bind".to_owned(), None),
        Some(name) if root.join("sys/class/net").join(name).exists() => {
            (format!("interface {name} of the host, which keeps it"), None)
        }
        Some(name) => (
            format!("interface {name} of the host, which is not there"),
            Some(format!("make interface {name}, or name another one")),
        ),
    }
}

/// What to tell the script that binds.
fn driver_option(iommu: bool) -> &'static str {
    if iommu { "" } else { " --driver uio_pci_generic" }
}

/// What is there and what to do, for the system whose root directory this is: with all cards, or with what a site's file names.
pub fn report(root: &Path, wanted: Option<&Wanted>) -> String {
    let (nics, pages) = (nics(root), huge_pages(root));
    let iommu = has_entries(&root.join("sys/kernel/iommu_groups"));
    let mut text = String::new();
    let _ = writeln!(text, "huge pages:");
    if pages.is_empty() {
        let _ = writeln!(text, "  the kernel has none");
    }
    for HugePages { kib, total, free } in &pages {
        let _ = writeln!(
            text,
            "  {} MiB each: {total}, of which {free} are free",
            kib / 1024
        );
    }
    let _ = writeln!(text, "IOMMU: {}", if iommu { "on" } else { "off, or none" });
    let _ = writeln!(text, "network cards:");
    if nics.is_empty() {
        let _ = writeln!(text, "  none on PCI");
    }
    for nic in &nics {
        let _ = writeln!(text, "  {}", line(nic));
    }
    let mut todo = match wanted {
        Some(wanted) if !wanted.huge_pages => Vec::new(),
        _ => lacking_pages(&pages, wanted),
    };
    let wants_cards = wanted.is_none_or(|wanted| !wanted.addresses().is_empty());
    todo.extend(lacking_iommu(&nics, iommu).filter(|_| wants_cards));
    match wanted {
        None => todo.extend(nics.iter().filter_map(|nic| to_use(nic, iommu))),
        Some(wanted) => {
            let (said, advice) = wanted.describe(root, &nics, iommu);
            text.push_str(&said);
            todo.extend(advice);
        }
    }
    if todo.is_empty() {
        todo.push("nothing: DPDK can use what is bound".to_owned());
    }
    let _ = writeln!(text, "what to do:");
    todo.iter().for_each(|line| {
        let _ = writeln!(text, "  {line}");
    });
    text
}

fn line(nic: &Nic) -> String {
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "none".to_owned());
    let mut line = format!(
        "{}  {}  driver {}  NUMA node {}  IOMMU group {}",
        nic.address,
        nic.id,
        or_none(&nic.driver),
        or_none(&nic.numa.map(|node| node.to_string())),
        or_none(&nic.iommu_group),
    );
    if !nic.interfaces.is_empty() {
        let _ = write!(line, "  interface {}", nic.interfaces.join(" "));
    }
    line
}

/// What there is to do about too few huge pages.
fn lacking_pages(pages: &[HugePages], wanted: Option<&Wanted>) -> Vec<String> {
    let tables = wanted.map_or(DPDK_MEMORY.into(), |wanted| wanted.memory_mib);
    let enough = FOR_PACKETS + tables;
    let free: u64 = pages.iter().map(|pages| pages.kib * pages.free / 1024).sum();
    if free >= enough {
        return Vec::new();
    }
    // Pages of 2 MiB, so twice as much: also for a second engine.
    let count = enough.next_multiple_of(256).max(512);
    vec![format!(
        "{free} MiB of huge pages are free and an engine wants about {enough}: `sysctl -w vm.nr_hugepages={count}`, or `hugepages={count}` on the kernel's command line"
    )]
}

/// What there is to do about a missing IOMMU.
fn lacking_iommu(nics: &[Nic], iommu: bool) -> Option<String> {
    (!iommu && !nics.is_empty()).then(|| {
        "without an IOMMU a card can write anywhere: turn it on in the firmware and start the kernel with intel_iommu=on or amd_iommu=on; \
         else bind cards to uio_pci_generic in place of vfio-pci"
            .to_owned()
    })
}

/// What there is to do before DPDK can use a card.
fn to_use(nic: &Nic, iommu: bool) -> Option<String> {
    (!nic.is_for_programs()).then(|| {
        let driver = if iommu { "vfio-pci" } else { "uio_pci_generic" };
        format!(
            "to use {}: `scripts/dpdk-bind --driver {driver} {}`{}",
            nic.address,
            nic.address,
            nic.loss()
        )
    })
}

impl Nic {
    /// Whether its driver leaves it to programs.
    fn is_for_programs(&self) -> bool {
        let driver = self.driver.as_deref();
        driver.is_some_and(|driver| FOR_PROGRAMS.contains(&driver))
    }

    /// What the host loses with it.
    fn loss(&self) -> String {
        match self.interfaces.as_slice() {
            [] => String::new(),
            names => format!("; the host loses {}", names.join(" ")),
        }
    }
}

fn nics(root: &Path) -> Vec<Nic> {
    let mut nics: Vec<Nic> = entries(&root.join("sys/bus/pci/devices"))
        .into_iter()
        .filter_map(|address| nic(root, address))
        .collect();
    nics.sort_by(|a, b| a.address.cmp(&b.address));
    nics
}

fn nic(root: &Path, address: String) -> Option<Nic> {
    let at = root.join("sys/bus/pci/devices").join(&address);
    if !read(&at.join("class"))?.starts_with(NETWORK) {
        return None;
    }
    let hex = |file: &str| read(&at.join(file)).map(|id| id.trim_start_matches("0x").to_owned());
    Some(Nic {
        id: format!(
            "{}:{}",
            hex("vendor").unwrap_or_default(),
            hex("device").unwrap_or_default()
        ),
        driver: link(&at.join("driver")),
        interfaces: interfaces(&at),
        // -1 is a machine without nodes.
        numa: read(&at.join("numa_node")).and_then(|node| node.parse().ok()),
        iommu_group: link(&at.join("iommu_group")),
        address,
    })
}

/// The host's interfaces of a card: below it, or below the virtio device that it is.
fn interfaces(card: &Path) -> Vec<String> {
    let below = entries(card)
        .into_iter()
        .filter(|name| name.starts_with("virtio"));
    let folders = below.map(|name| card.join(name).join("net"));
    let mut names: Vec<String> = std::iter::once(card.join("net"))
        .chain(folders)
        .flat_map(|folder| entries(&folder))
        .collect();
    names.sort();
    names
}

fn huge_pages(root: &Path) -> Vec<HugePages> {
    let folder = root.join("sys/kernel/mm/hugepages");
    let mut pages: Vec<HugePages> = entries(&folder)
        .iter()
        .filter_map(|name| {
            let number = |file: &str| read(&folder.join(name).join(file))?.parse().ok();
            Some(HugePages {
                kib: name
                    .strip_prefix("hugepages-")?
                    .strip_suffix("kB")?
                    .parse()
                    .ok()?,
                total: number("nr_hugepages")?,
                free: number("free_hugepages")?,
            })
        })
        .collect();
    pages.sort_by_key(|pages| pages.kib);
    pages
}

/// A file's text without the end of its line.
fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path)
        .ok()
        .map(|text| text.trim_end().to_owned())
}

/// The name of what a link leads to.
fn link(path: &Path) -> Option<String> {
    let target = fs::read_link(path).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}

/// Names in a folder; none if there is none.
fn entries(path: &Path) -> Vec<String> {
    let found = fs::read_dir(path).into_iter().flatten().flatten();
    found
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

fn has_entries(path: &Path) -> bool {
    !entries(path).is_empty()
}
