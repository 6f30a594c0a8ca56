//! `patronus-engine devices`: which network cards the machine has, what they are bound to, and what is missing before DPDK can drive them. Only
//! reads, by any user; called by the main thread, which prints the report and ends.

use std::fmt::Write;
use std::fs;
use std::path::Path;

/// Class of a PCI device that is a network controller (PCI code and ID assignment, 02h).
const NETWORK: &str = "0x02";

/// Drivers that leave a device to programs.
const FOR_PROGRAMS: [&str; 3] = ["vfio-pci", "uio_pci_generic", "igb_uio"];

/// Mebibytes of huge pages that are enough for one engine's packets and DPDK's own tables.
const ENOUGH: u64 = 256;

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

/// What is there and what to do, for the system whose root directory this is.
pub fn report(root: &Path) -> String {
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
    let advice = advice(&nics, &pages, iommu);
    let _ = writeln!(text, "what to do:");
    advice.iter().for_each(|advice| {
        let _ = writeln!(text, "  {advice}");
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

/// One line for each thing that stands between the machine and DPDK.
fn advice(nics: &[Nic], pages: &[HugePages], iommu: bool) -> Vec<String> {
    let mut advice = Vec::new();
    let free: u64 = pages.iter().map(|pages| pages.kib * pages.free / 1024).sum();
    if free < ENOUGH {
        advice.push(format!(
            "{free} MiB of huge pages are free and an engine wants about {ENOUGH}: `sysctl -w vm.nr_hugepages=512`, or `hugepages=512` on the kernel's command line"
        ));
    }
    if !iommu && !nics.is_empty() {
        advice.push(
            "without an IOMMU a card can write anywhere: turn it on in the firmware and start the kernel with intel_iommu=on or amd_iommu=on; \
             else bind cards to uio_pci_generic in place of vfio-pci"
                .to_owned(),
        );
    }
    for nic in nics {
        let ours = nic
            .driver
            .as_deref()
            .is_some_and(|driver| FOR_PROGRAMS.contains(&driver));
        if ours {
            continue;
        }
        let driver = if iommu { "vfio-pci" } else { "uio_pci_generic" };
        let taken = match nic.interfaces.as_slice() {
            [] => String::new(),
            names => format!("; the host loses {}", names.join(" ")),
        };
        advice.push(format!(
            "to use {}: `scripts/dpdk-bind --driver {driver} {}`{taken}",
            nic.address, nic.address
        ));
    }
    if advice.is_empty() {
        advice.push("nothing: DPDK can use what is bound".to_owned());
    }
    advice
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
