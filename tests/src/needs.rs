//! Whether a test can run on this machine.

use patronus_netns::{Kind, Namespace};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// Something that a test cannot do without, beside namespaces, TUN devices and `wg`.
#[derive(Clone, Copy, Debug)]
pub enum Need {
    /// A daemon to talk to. Ours is built where it is missing, see [`crate::engine_program`].
    Daemon(Kind),
    /// A program in PATH.
    Tool(&'static str),
    /// The real root, who may become another user.
    Root,
    /// An engine that was built with DPDK, and DPDK's drivers.
    Dpdk,
}

/// True if everything is there. Otherwise says what is missing; with `PATRONUS_REQUIRE_ALL=1`, as a failure.
pub fn may_run(needs: &[Need]) -> bool {
    let missing = basics().clone().or_else(|| needs.iter().find_map(lacks));
    let Some(missing) = missing else { return true };
    let required = std::env::var_os("PATRONUS_REQUIRE_ALL").is_some_and(|value| value == "1");
    assert!(!required, "required, but missing: {missing}");
    eprintln!("skipped: {missing}");
    false
}

fn lacks(need: &Need) -> Option<String> {
    match *need {
        Need::Daemon(Kind::Engine | Kind::Plain) => None,
        Need::Daemon(kind) => kind
            .find()
            .is_none()
            .then(|| format!("{} (scripts/install-peers)", kind.name())),
        Need::Tool(name) => (!in_path(name)).then(|| format!("the program {name}")),
        Need::Dpdk => lacks_dpdk().clone(),
        Need::Root => {
            // Inside a user namespace the other ids are not mapped.
            let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
            let whole = map.split_whitespace().nth(2) == Some("4294967295");
            (!whole).then(|| "root outside a user namespace".to_owned())
        }
    }
}

/// What is missing for ports over DPDK, looked for once.
fn lacks_dpdk() -> &'static Option<String> {
    static MISSING: OnceLock<Option<String>> = OnceLock::new();
    MISSING.get_or_init(|| {
        let version = Command::new(crate::engine_program()).arg("--version").output();
        let is_built_in = version.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("DPDK"));
        (!is_built_in).then(|| {
            "DPDK: `scripts/test dpdk` installs it, builds patronus-engine with `--features dpdk` and runs these tests with that".to_owned()
        })
    })
}

/// What every test needs, looked for once.
fn basics() -> &'static Option<String> {
    static MISSING: OnceLock<Option<String>> = OnceLock::new();
    MISSING.get_or_init(|| {
        if !Path::new("/dev/net/tun").exists() {
            return Some("/dev/net/tun (modprobe tun)".to_owned());
        }
        let tool = ["wg", "ip", "nft", "ping", "setpriv"]
            .into_iter()
            .find(|name| !in_path(name));
        tool.map(|name| format!("the program {name}"))
            .or_else(|| Namespace::new("try").err().map(|error| error.to_string()))
    })
}

fn in_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(name).is_file())
}
