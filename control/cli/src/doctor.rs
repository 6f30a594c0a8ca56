//! `doctor`: what keeps a site from working, or from working well, and what to do about it. It changes nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use patronus_config::Config;
use patronus_io::netlink::RouteQuery;
use rustix::process::{Resource, getrlimit};
use serde::Serialize;
use serde_json::json;

use crate::output::{Outcome, Output, Table, Wrong, escaped};

/// Outer headers of a data packet over IPv4, and over IPv6: IP, UDP, WireGuard.
const OVERHEAD: [u32; 2] = [60, 80];
/// The first Linux whose TUN takes UDP segmentation offload.
const KERNEL: (u32, u32) = (6, 2);
/// Bytes of a socket buffer that hold what comes in a few milliseconds at 10 Gb/s.
const BUFFER: u64 = 8 << 20;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Grade {
    /// As it should be.
    Good,
    /// It works, and could be better.
    Warning,
    /// It does not work like this.
    Bad,
}

/// What was looked at.
#[derive(Serialize)]
struct Finding {
    what: &'static str,
    grade: Grade,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

impl Finding {
    fn good(what: &'static str, found: impl Into<String>) -> Finding {
        Finding {
            what,
            grade: Grade::Good,
            found: found.into(),
            fix: None,
        }
    }

    fn wrong(what: &'static str, grade: Grade, found: impl Into<String>, fix: impl Into<String>) -> Finding {
        Finding {
            what,
            grade,
            found: found.into(),
            fix: Some(fix.into()),
        }
    }
}

/// `patronus doctor`.
pub fn doctor(output: Output, file: &Path) -> Outcome {
    let root = Path::new("/");
    let mut findings = vec![
        rights(),
        tun(root),
        kernel(root),
        clock(),
        memory(root),
        buffers(root),
    ];
    match patronus_config::load(file) {
        Ok(config) => findings.extend(of_site(root, &config)),
        Err(error) => {
            let fix = match file.symlink_metadata() {
                Ok(_) => format!("`patronus check {}`", file.display()),
                Err(_) => "`patronus init` makes one".to_owned(),
            };
            findings.push(Finding::wrong("site's file", Grade::Bad, error.message(), fix));
        }
    }
    let bad = findings
        .iter()
        .filter(|finding| finding.grade == Grade::Bad)
        .count();
    output.print(
        &json!({ "findings": findings, "bad": bad }),
        text(output, &findings),
    )?;
    match bad {
        0 => Ok(()),
        bad => Err(Wrong::failed(format!(
            "{bad} of {} keep it from working",
            findings.len()
        ))),
    }
}

fn text(output: Output, findings: &[Finding]) -> String {
    let mut table = Table::new(&["WHAT", "", "FOUND"]);
    for finding in findings {
        let grade = match finding.grade {
            Grade::Good => "ok",
            Grade::Warning => "!",
            Grade::Bad => "!!",
        };
        table.row([finding.what.to_owned(), grade.to_owned(), finding.found.clone()]);
    }
    let mut text = table.to_string();
    for finding in findings {
        if let Some(fix) = &finding.fix {
            let line = format!("{}: {}\n", finding.what, escaped(fix));
            text.push_str(&match finding.grade {
                Grade::Bad => output.bad(&line),
                _ => output.warn(&line),
            });
        }
    }
    text
}

fn rights() -> Finding {
    const WHAT: &str = "rights";
    match rustix::process::geteuid().is_root() {
        true => Finding::good(WHAT, "root: `patronus up` can be run"),
        false => Finding::wrong(
            WHAT,
            Grade::Warning,
            "not root",
            "`patronus up` needs root; the systemd units give the engine what it needs",
        ),
    }
}

fn tun(root: &Path) -> Finding {
    const WHAT: &str = "TUN";
    match root.join("dev/net/tun").exists() {
        true => Finding::good(WHAT, "/dev/net/tun is there"),
        false => Finding::wrong(
            WHAT,
            Grade::Bad,
            "/dev/net/tun is not there",
            "`modprobe tun`, or give the container the device",
        ),
    }
}

fn kernel(root: &Path) -> Finding {
    const WHAT: &str = "kernel";
    let release = read(root, "proc/sys/kernel/osrelease");
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    match version >= KERNEL {
        true => Finding::good(WHAT, format!("Linux {release}")),
        false => Finding::wrong(
            WHAT,
            Grade::Warning,
            format!("Linux {release}: its TUN takes no UDP segmentation offload"),
            "Linux 6.2 or newer makes UDP through the tunnel faster",
        ),
    }
}

/// Whether the clock is right. A responder takes no handshake that is older than the newest one it knows, so a clock that goes back keeps tunnels down.
fn clock() -> Finding {
    const WHAT: &str = "clock";
    let asked = Command::new("timedatectl")
        .args(["show", "-p", "NTPSynchronized", "--value"])
        .output();
    let said = asked.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    match said.as_deref() {
        Ok("yes") => Finding::good(WHAT, "synchronized"),
        Ok("no") => Finding::wrong(
            WHAT,
            Grade::Warning,
            "not synchronized",
            "`timedatectl set-ntp true`: a clock that goes back keeps tunnels from coming up",
        ),
        _ => Finding::good(WHAT, "nobody says whether it is synchronized"),
    }
}

fn memory(root: &Path) -> Finding {
    const WHAT: &str = "memory";
    let info = read(root, "proc/meminfo");
    let free = info.lines().find_map(|line| line.strip_prefix("HugePages_Free:"));
    let free: u64 = free.and_then(|number| number.trim().parse().ok()).unwrap_or(0);
    if free > 0 {
        return Finding::good(WHAT, format!("{free} free huge pages"));
    }
    match getrlimit(Resource::Memlock).current {
        Some(limit) if !rustix::process::geteuid().is_root() => Finding::wrong(
            WHAT,
            Grade::Warning,
            format!("no huge pages, and {} MiB may be locked", limit >> 20),
            "`sysctl -w vm.nr_hugepages=128`, or LimitMEMLOCK=infinity for the engine",
        ),
        _ => Finding::wrong(
            WHAT,
            Grade::Warning,
            "no huge pages: packets are in ordinary locked memory",
            "`sysctl -w vm.nr_hugepages=128` makes them a little faster",
        ),
    }
}

fn buffers(root: &Path) -> Finding {
    const WHAT: &str = "socket buffers";
    let limit: u64 = read(root, "proc/sys/net/core/rmem_max").parse().unwrap_or(0);
    // The engine has CAP_NET_ADMIN and may exceed the limit; in a user namespace it may not.
    match limit >= BUFFER || rustix::process::geteuid().is_root() {
        true => Finding::good(WHAT, "as large as the engine wants"),
        false => Finding::wrong(
            WHAT,
            Grade::Warning,
            format!("at most {} kiB without CAP_NET_ADMIN", limit >> 10),
            format!("`sysctl -w net.core.rmem_max={BUFFER}`"),
        ),
    }
}

fn of_site(root: &Path, config: &Config) -> Vec<Finding> {
    let mut findings = vec![cores(root, config), offload(config)];
    findings.extend(
        config
            .links
            .iter()
            .map(|link| link_state(link.interface.get_ref().as_str())),
    );
    findings.extend(
        config
            .links
            .iter()
            .map(|link| reverse_path(root, link.interface.get_ref().as_str())),
    );
    findings.push(forwarding(root));
    findings.extend(mtu(root, config));
    findings
}

fn cores(root: &Path, config: &Config) -> Finding {
    const WHAT: &str = "cores";
    let isolated = read(root, "sys/devices/system/cpu/isolated");
    match (config.engine.cores.is_empty(), isolated.is_empty()) {
        (true, _) => Finding::good(WHAT, "workers are not pinned: the scheduler decides"),
        (false, false) => Finding::good(WHAT, format!("workers are pinned; isolated cores: {isolated}")),
        (false, true) => Finding::wrong(
            WHAT,
            Grade::Warning,
            "workers are pinned to cores that others may use",
            "`isolcpus=` and `nohz_full=` on the kernel's command line keep others away",
        ),
    }
}

fn offload(config: &Config) -> Finding {
    const WHAT: &str = "offloads";
    match config.engine.offload {
        true => Finding::good(WHAT, "on"),
        false => Finding::wrong(
            WHAT,
            Grade::Warning,
            "off",
            "remove `offload = false` from [engine], unless something needs it",
        ),
    }
}

fn link_state(name: &str) -> Finding {
    const WHAT: &str = "link";
    match RouteQuery::new().and_then(|routes| routes.running(name)) {
        Ok(Some(_)) => Finding::good(WHAT, format!("{name} is up")),
        _ => Finding::wrong(
            WHAT,
            Grade::Bad,
            format!("{name} is not there, down or without a carrier"),
            format!("`ip link set {name} up`, plug it in, or correct `interface` in its [[link]]"),
        ),
    }
}

/// A strict filter drops what arrives by a link that is not the best route (RFC 3704, section 2.2). The higher of two settings counts, and 2 is loose.
fn reverse_path(root: &Path, name: &str) -> Finding {
    const WHAT: &str = "reverse path filter";
    let of = |name: &str| -> u32 {
        read(root, &format!("proc/sys/net/ipv4/conf/{name}/rp_filter"))
            .parse()
            .unwrap_or(0)
    };
    match of("all").max(of(name)) {
        1 => Finding::wrong(
            WHAT,
            Grade::Warning,
            format!("strict on {name}"),
            format!("`sysctl -w net.ipv4.conf.{name}.rp_filter=2`"),
        ),
        _ => Finding::good(WHAT, format!("not strict on {name}")),
    }
}

fn forwarding(root: &Path) -> Finding {
    const WHAT: &str = "forwarding";
    match read(root, "proc/sys/net/ipv4/ip_forward").as_str() {
        "1" => Finding::good(WHAT, "on"),
        _ => Finding::wrong(
            WHAT,
            Grade::Warning,
            "off: the host sends nothing on between its LANs and the tunnel",
            "`sysctl -w net.ipv4.ip_forward=1`, unless only this host uses the tunnel",
        ),
    }
}

/// Whether packets of the tunnel's MTU fit into what the kernel knows of the paths to the peers.
fn mtu(root: &Path, config: &Config) -> Vec<Finding> {
    const WHAT: &str = "MTU";
    let interface = config.engine.interface.as_str();
    let Ok(tunnel) = read(root, &format!("sys/class/net/{interface}/mtu")).parse::<u32>() else {
        return vec![Finding::good(WHAT, format!("{interface} is not there yet"))];
    };
    let Ok(routes) = RouteQuery::new() else {
        return Vec::new();
    };
    let mut findings = Vec::new();
    for peer in &config.peers {
        let Some(endpoint) = peer.endpoint else { continue };
        let to = endpoint.0.ip();
        let hop = routes.next_hop(None, to, None, config.site.fwmark.get() as u32);
        let Ok(Some(hop)) = hop else {
            findings.push(Finding::wrong(
                WHAT,
                Grade::Bad,
                format!("no route to {to}"),
                format!("`ip route get {to}`"),
            ));
            continue;
        };
        let path = hop
            .mtu
            .or_else(|| interface_mtu(root, hop.ifindex))
            .unwrap_or(1500);
        let passes = path.saturating_sub(OVERHEAD[usize::from(to.is_ipv6())]);
        let fits = passes / 16 * 16;
        findings.push(match (tunnel <= passes, peer.is_remote) {
            (true, _) => Finding::good(
                WHAT,
                format!("{tunnel} fits the path to {to}, which takes {path}"),
            ),
            // Its paths are tried out, and packets are made to fit.
            (false, true) => Finding::good(
                WHAT,
                format!("the path to {to} takes {path}: packets are made to fit {fits} in place of {tunnel}"),
            ),
            (false, false) => Finding::wrong(
                WHAT,
                Grade::Bad,
                format!(
                    "{tunnel} does not fit the path to {to}, which takes {path}: large packets disappear"
                ),
                format!("`ip link set {interface} mtu {fits}`"),
            ),
        });
    }
    findings
}

fn interface_mtu(root: &Path, ifindex: u32) -> Option<u32> {
    let folder: PathBuf = root.join("sys/class/net");
    let mut interfaces = fs::read_dir(folder).ok()?.filter_map(Result::ok);
    let found = interfaces.find(|entry| {
        let index = fs::read_to_string(entry.path().join("ifindex"));
        index.is_ok_and(|text| text.trim() == ifindex.to_string())
    })?;
    fs::read_to_string(found.path().join("mtu"))
        .ok()?
        .trim()
        .parse()
        .ok()
}

fn read(root: &Path, path: &str) -> String {
    let text = fs::read_to_string(root.join(path)).unwrap_or_default();
    text.trim().to_owned()
}
