//! What is said of network cards, and how they are bound, on trees of files that look like a machine's /sys.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use patronus_engine::devices::{Wanted, report};

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
            .env("PATRONUS_ENGINE", env!("CARGO_BIN_EXE_patronus-engine"))
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
    let said = report(&machine.0, None);
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
    let said = report(&machine.0, None);
    assert!(said.contains("IOMMU: on"), "{said}");
    assert!(said.ends_with("nothing: DPDK can use what is bound\n"), "{said}");
    let nothing = Machine::new("nothing");
    let said = report(&nothing.0, None);
    assert!(said.contains("none on PCI"), "{said}");
}

/// A site's file with two cards, one of which is not there, and two virtual devices. Its keys are not there either.
fn file(machine: &Machine) -> PathBuf {
    machine.write(
        "site.toml",
        "[site]\nprivate_key_file = 'site.key'\n[dpdk]\nmemory = '1GiB'\n\
         [[link]]\nid = 1\ninterface = 'wan0'\nport = 'dpdk'\ndevice = '0000:03:00.0'\n\
         [[link]]\nid = 2\ninterface = 'wan1'\nport = 'dpdk'\ndevice = '0000:09:00.0'\n\
         [[lan]]\nname = 'office'\ninterface = 'lan0'\nport = 'dpdk'\ndevice = 'net_af_packet0,iface=eth9'\n\
         [[lan]]\nname = 'guests'\ninterface = 'lan1'\nport = 'dpdk'\ndevice = 'net_memif0,role=server'\n",
    );
    machine.0.join("site.toml")
}

#[test]
fn what_a_file_names_is_told_what_to_do_about() {
    let machine = Machine::new("file");
    machine.huge_pages(512, 300);
    machine.card("0000:03:00.0", Some("i40e"), Some("eth7"));
    machine.card("0000:04:00.0", Some("i40e"), Some("eth8"));
    machine.write("sys/kernel/iommu_groups/7/type", "DMA\n");
    let path = file(&machine);
    let wanted = Wanted::load(&path).expect("a file");
    assert_eq!(wanted.addresses(), "0000:03:00.0\n0000:09:00.0\n");
    let said = report(&machine.0, Some(&wanted));
    let bind = format!(
        "bind 0000:03:00.0: `scripts/dpdk-bind --config {}`; the host loses eth7",
        path.display()
    );
    for word in [
        "600 MiB of huge pages are free and an engine wants about 1216",
        "link 1 (wan0): 0000:03:00.0: bound to i40e\n",
        "link 2 (wan1): 0000:09:00.0: there is no such network card\n",
        "LAN office (lan0): net_af_packet0,iface=eth9: interface eth9 of the host, which is not there\n",
        "LAN guests (lan1): net_memif0,role=server: virtual, nothing to bind\n",
        &bind,
        "`lspci -D`",
        "make interface eth9",
    ] {
        assert!(said.contains(word), "{word} is missing in:\n{said}");
    }
    assert!(
        !said.contains("to use 0000:04:00.0"),
        "the file does not name it:\n{said}"
    );
    let built_in = patronus_io::nics::BUILT_IN;
    assert_eq!(said.contains("built without DPDK"), !built_in, "{said}");
}

#[test]
fn what_a_file_names_is_bound_and_given_back() {
    let machine = Machine::new("bind-file");
    machine.card("0000:03:00.0", Some("i40e"), None);
    machine.card("0000:04:00.0", Some("i40e"), None);
    machine.driver("vfio-pci");
    let path = file(&machine);
    let path = path.to_str().expect("text");
    let refused = machine.bind(&["--config", path]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && said.contains("no PCI device 0000:09:00.0"),
        "{said}"
    );
    assert_eq!(machine.read("sys/bus/pci/drivers/i40e/unbind"), "");
    machine.card("0000:09:00.0", None, None);
    let done = machine.bind(&["--config", path]);
    assert!(done.status.success(), "{done:?}");
    for address in ["0000:03:00.0", "0000:09:00.0"] {
        let driver = machine.read(&format!("sys/bus/pci/devices/{address}/driver_override"));
        assert_eq!(driver, "vfio-pci\n");
    }
    let other = machine.read("sys/bus/pci/devices/0000:04:00.0/driver_override");
    assert_eq!(other, "", "the file does not name it");
    let undone = machine.bind(&["--undo", "--config", path]);
    assert!(undone.status.success(), "{undone:?}");
    assert!(String::from_utf8_lossy(&undone.stdout).contains("0000:03:00.0: back to i40e"));
    let again = machine.bind(&["--undo", "--config", path]);
    assert!(
        String::from_utf8_lossy(&again.stdout).contains("nothing to do"),
        "{again:?}"
    );
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
