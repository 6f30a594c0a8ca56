//! What is said of network cards, and how they are bound, on trees of files that look like a machine's /sys.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use patronus_engine::devices::report;

/// A root directory that goes with its owner.
struct Machine(PathBuf);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Machine {
    fn new(name: &str) -> Machine {
        let root = std::env::temp_dir().join(format!("patronus-devices-{name}-{}", std::process::id()));
        let machine = Machine(root);
        machine.write("sys/bus/pci/drivers_probe", "");
        machine
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, text).expect("a file");
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.0.join(path)).expect("a file")
    }

    fn huge_pages(&self, total: u64, free: u64) {
        self.write(
            "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
            &format!("{total}\n"),
        );
        self.write(
            "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages",
            &format!("{free}\n"),
        );
    }

    fn driver(&self, name: &str) {
        self.write(&format!("sys/bus/pci/drivers/{name}/unbind"), "");
    }

    fn card(&self, address: &str, driver: Option<&str>, interface: Option<&str>) {
        let at = format!("sys/bus/pci/devices/{address}");
        for (file, text) in [
            ("class", "0x020000\n"),
            ("vendor", "0x8086\n"),
            ("device", "0x1572\n"),
            ("numa_node", "1\n"),
            ("driver_override", ""),
        ] {
            self.write(&format!("{at}/{file}"), text);
        }
        if let Some(driver) = driver {
            self.driver(driver);
            let target = Path::new("../../drivers").join(driver);
            symlink(target, self.0.join(&at).join("driver")).expect("a link");
        }
        if let Some(interface) = interface {
            self.write(&format!("{at}/net/{interface}/mtu"), "1500\n");
        }
    }

    fn bind(&self, arguments: &[&str]) -> Output {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/dpdk-bind");
        Command::new(script)
            .args(arguments)
            .env("PATRONUS_SYSFS", self.0.join("sys"))
            .env("PATRONUS_RUN", self.0.join("run"))
            .output()
            .expect("the script runs")
    }
}

#[test]
fn a_machine_that_is_not_ready_is_told_what_to_do() {
    let machine = Machine::new("bare");
    machine.huge_pages(0, 0);
    machine.card("0000:03:00.0", Some("i40e"), Some("eth7"));
    machine.write("sys/bus/pci/devices/0000:00:01.0/class", "0x060100\n");
    let said = report(&machine.0);
    for word in [
        "2 MiB each: 0, of which 0 are free",
        "IOMMU: off",
        "0000:03:00.0  8086:1572  driver i40e  NUMA node 1  IOMMU group none  interface eth7",
        "sysctl -w vm.nr_hugepages=512",
        "intel_iommu=on",
        "scripts/dpdk-bind --driver uio_pci_generic 0000:03:00.0",
        "the host loses eth7",
    ] {
        assert!(said.contains(word), "{word} is missing in:\n{said}");
    }
    assert!(!said.contains("0000:00:01.0"), "no network card:\n{said}");
}

#[test]
fn a_machine_that_is_ready_is_told_so() {
    let machine = Machine::new("ready");
    machine.huge_pages(512, 300);
    machine.card("0000:03:00.0", Some("vfio-pci"), None);
    machine.write("sys/kernel/iommu_groups/7/type", "DMA\n");
    let said = report(&machine.0);
    assert!(said.contains("IOMMU: on"), "{said}");
    assert!(said.ends_with("nothing: DPDK can use what is bound\n"), "{said}");
    let nothing = Machine::new("nothing");
    let said = report(&nothing.0);
    assert!(said.contains("none on PCI"), "{said}");
}

#[test]
fn a_card_is_bound_and_given_back() {
    let machine = Machine::new("bind");
    machine.card("0000:03:00.0", Some("i40e"), None);
    machine.driver("vfio-pci");
    let done = machine.bind(&["0000:03:00.0"]);
    assert!(done.status.success(), "{done:?}");
    let card = "sys/bus/pci/devices/0000:03:00.0";
    assert_eq!(machine.read("sys/bus/pci/drivers/i40e/unbind"), "0000:03:00.0\n");
    assert_eq!(machine.read(&format!("{card}/driver_override")), "vfio-pci\n");
    assert_eq!(machine.read("sys/bus/pci/drivers_probe"), "0000:03:00.0\n");
    let undone = machine.bind(&["--undo"]);
    assert!(undone.status.success(), "{undone:?}");
    assert!(String::from_utf8_lossy(&undone.stdout).contains("back to i40e"));
    assert_eq!(machine.read(&format!("{card}/driver_override")), "\n");
    let again = machine.bind(&["--undo"]);
    assert!(!again.status.success(), "nothing is left to undo");
}

#[test]
fn what_cannot_be_bound_is_refused_before_anything_is_touched() {
    let machine = Machine::new("refused");
    machine.card("0000:03:00.0", Some("i40e"), None);
    machine.driver("vfio-pci");
    machine.write("sys/bus/pci/devices/0000:00:01.0/class", "0x060100\n");
    for (arguments, word) in [
        (&["0000:03:00.0", "0000:09:00.0"][..], "there is no PCI device"),
        (&["0000:00:01.0"], "no network card"),
        (&["eth0"], "no PCI address"),
        (&["--driver", "i40e", "0000:03:00.0"], "does not leave devices"),
        (&["--undo", "0000:03:00.0"], "was not bound"),
        (&[], "which devices"),
    ] {
        let refused = machine.bind(arguments);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && said.contains(word), "{said}");
    }
    assert_eq!(machine.read("sys/bus/pci/drivers/i40e/unbind"), "");
}
