//! What no single value shows of ports over DPDK: a device where there is none to drive, one that two ports have, memory that cannot be had.

use std::collections::HashMap;
use std::ops::Range;

use patronus_abi::device::{DPDK_MEMORY_MAX, DPDK_MEMORY_MIN, HUGE_PAGES_MIB};
use patronus_abi::site;
use toml::Spanned;

use crate::error::Error;
use crate::schema::{Config, LinkPort, Mtu, PortKind};
use crate::value::Device;

/// DPDK's drivers that keep packets where ours are not, and what to use instead.
const UNUSABLE: [(&str, &str); 1] = [("net_af_xdp", "the engine has its own: `port = \"af_xdp\"`")];

pub(crate) fn check(text: &str, config: &Config) -> Result<(), Error> {
    for link in &config.links {
        let is_dpdk = link.port == LinkPort::Dpdk;
        check_port(text, is_dpdk, link.interface.span(), &link.device, &link.mtu)?;
    }
    for lan in &config.lans {
        let is_dpdk = lan.port.as_ref().map(Spanned::get_ref) == Some(&PortKind::Dpdk);
        check_port(text, is_dpdk, lan.name.span(), &lan.device, &lan.mtu)?;
    }
    let mut seen = HashMap::new();
    for device in config.devices() {
        let name = device.get_ref().key();
        if let Some(first) = seen.insert(name, device.span().start) {
            let line = text[..first].matches('\n').count() + 1;
            let said = format!("another port has the device `{name}`");
            return Err(
                Error::at(text, device.span(), said).with_hint(format!("the first is in line {line}"))
            );
        }
    }
    check_memory(text, config)
}

/// `place` is where to point to if something is missing.
fn check_port(
    text: &str,
    is_dpdk: bool,
    place: Range<usize>,
    device: &Option<Spanned<Device>>,
    mtu: &Option<Spanned<Mtu>>,
) -> Result<(), Error> {
    match (is_dpdk, device, mtu) {
        (true, None, _) => {
            let said = "with `port = \"dpdk\"` this needs to know its `device`";
            let hint = "a PCI address such as \"0000:03:00.0\": `patronus-engine devices` shows them";
            Err(Error::at(text, place, said).with_hint(hint))
        }
        (true, Some(device), _) => {
            let unusable = UNUSABLE
                .iter()
                .find(|(driver, _)| device.get_ref().key().starts_with(driver));
            unusable.map_or(Ok(()), |(driver, instead)| {
                let said = format!("the driver {driver} keeps packets where the engine's are not");
                Err(Error::at(text, device.span(), said).with_hint(*instead))
            })
        }
        (false, Some(device), _) => {
            let said = "only a port with `port = \"dpdk\"` has a device";
            Err(Error::at(text, device.span(), said).with_hint("else it is the `interface` that says which"))
        }
        (false, None, Some(mtu)) => {
            let said = "only a port with `port = \"dpdk\"` has its MTU here";
            Err(Error::at(text, mtu.span(), said)
                .with_hint("set the interface's: `ip link set INTERFACE mtu ...`"))
        }
        (false, None, None) => Ok(()),
    }
}

fn check_memory(text: &str, config: &Config) -> Result<(), Error> {
    let dpdk = &config.dpdk;
    let memory = dpdk.memory.get_ref().0;
    if !(DPDK_MEMORY_MIN..=DPDK_MEMORY_MAX).contains(&memory) {
        let most = DPDK_MEMORY_MAX / 1024;
        let said = format!("expected {DPDK_MEMORY_MIN}MiB to {most}GiB");
        return Err(Error::at(text, dpdk.memory.span(), said).with_hint("64MiB is enough for most"));
    }
    match &dpdk.huge_page_size {
        Some(size) if !dpdk.huge_pages => {
            let said = "with `huge_pages = false` there are none that could have a size";
            Err(Error::at(text, size.span(), said).with_hint("leave one of the two lines out"))
        }
        Some(size) if !HUGE_PAGES_MIB.contains(&size.get_ref().0) => {
            let said = "huge pages have 2MiB or 1GiB";
            Err(Error::at(text, size.span(), said))
        }
        _ => Ok(()),
    }
}

impl Device {
    /// The PCI address, or the virtual device's name without its arguments.
    pub fn key(&self) -> &str {
        site::Device::key_of(self.as_str())
    }
}

impl Config {
    /// What to say of a file with a port over DPDK to an engine that has none. `text` is the file's.
    pub fn without_dpdk(&self, text: &str) -> Option<Error> {
        let said = "this engine was built without DPDK (cargo feature `dpdk`)";
        let hint = "build it with `--features dpdk` (docs/dpdk.md), or use another `port`";
        self.devices()
            .next()
            .map(|device| Error::at(text, device.span(), said).with_hint(hint))
    }
}
