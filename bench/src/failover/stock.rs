//! A site with several uplinks, each behind a router that has the peer on its other side; the peer is wireguard-go, which knows nothing of links.

use super::course::Ground;
use super::rig::{READY, keys, raise, site};
use crate::folder::Folder;
use crate::programs::Programs;
use patronus_netns::{
    Config, Daemon, DaemonOptions, Error, Kind, Namespace, Peer, Process, RUNTIME_DIR, Result, Site,
    prepare_runtime_dir, probe,
};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const PORT: u16 = 51820;
/// The number of the peer's network; those of the uplinks begin with 1.
const FAR: u8 = 200;
/// Columns of /proc/net/dev behind the name (proc_pid_net(5)): packets received and sent.
const RECEIVED: usize = 1;
const SENT: usize = 9;

/// The site, the peer, and the router between them. (What goes first stands first.)
pub struct Stock {
    engine: Process,
    sites: [Site; 2],
    router: Namespace,
    links: u8,
    _folder: Folder,
}

impl Stock {
    /// Builds it and gets a packet through; `ping` are the keys of the peer that say whom to ask whether it is there.
    pub fn up(links: u8, ping: &str, engine: Option<PathBuf>) -> Result<Stock> {
        let programs = Programs::find(engine)?;
        prepare_runtime_dir()?;
        let mut sites = [site(1)?, site(2)?];
        let router = Namespace::new("router")?;
        router.sysctl("net.ipv4.ip_forward", "1")?;
        let a = &sites[0].namespace;
        // The kernel would drop what arrives by a link whose route is not the best one.
        a.sysctl("net.ipv4.conf.all.rp_filter", "0")?;
        a.sysctl("net.ipv4.conf.default.rp_filter", "0")?;
        for link in 1..=links {
            join(a, &format!("up{link}"), &router, &format!("down{link}"), link)?;
            let metric = 100 + u32::from(link);
            a.ip(&format!(
                "route add default via {} dev up{link} metric {metric}",
                outer(link, 254)
            ))?;
        }
        let b = &sites[1].namespace;
        join(b, "far", &router, "near", FAR)?;
        b.ip(&format!("route add default via {}", outer(FAR, 254)))?;
        let far = SocketAddr::new(outer(FAR, 1).into(), PORT);
        sites[1].daemon = Some(peer(&sites[1], &sites[0])?);
        let folder = Folder::new(&sites[0].interface)?;
        folder.write("site.key", &keys(&sites[0])?.private)?;
        let file = folder.write("site.toml", &file(&sites, links, far, ping)?)?;
        let mut command = Command::new(&programs.engine);
        command.args(["--foreground", "--config"]).arg(file);
        let engine = sites[0].namespace.spawn(command)?;
        let stock = Stock {
            engine,
            sites,
            router,
            links,
            _folder: folder,
        };
        let start = Instant::now();
        while stock.sites.iter().any(|site| raise(site).is_err()) {
            if start.elapsed() > READY {
                return Err(stock.told(&Error::new("no interface")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        probe(&stock.sites[0], &stock.sites[1], false, 32, READY).map_err(|error| stock.told(&error))?;
        Ok(stock)
    }
}

fn outer(network: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 18, network, host)
}

fn join(site: &Namespace, here: &str, router: &Namespace, there: &str, network: u8) -> Result<()> {
    site.veth(here, router, there, 1500)?;
    site.address(here, &format!("{}/24", outer(network, 1)))?;
    router.address(there, &format!("{}/24", outer(network, 254)))
}

/// The peer's daemon, which is called.
fn peer(b: &Site, a: &Site) -> Result<Daemon> {
    let daemon = Daemon::start(
        &b.namespace,
        Kind::WireguardGo,
        &b.interface,
        &DaemonOptions::default(),
    )?;
    daemon.setconf(&Config {
        private: keys(b)?.private.clone(),
        listen_port: Some(PORT),
        fwmark: None,
        peers: vec![Peer {
            public: keys(a)?.public.clone(),
            allowed_ips: vec![format!("{}/32", a.inner_v4)],
            ..Peer::default()
        }],
    })?;
    Ok(daemon)
}

fn file(sites: &[Site; 2], links: u8, far: SocketAddr, ping: &str) -> Result<String> {
    let [a, b] = sites;
    let uplinks = (1..=links).map(|id| format!("[[link]]\nid = {id}\ninterface = 'up{id}'\n"));
    Ok(format!(
        "[site]\nprivate_key_file = 'site.key'\nlisten_port = {PORT}\n[engine]\ninterface = '{}'\n{}\
         [[peer]]\nname = 'stock'\npublic_key = '{}'\nendpoint = '{far}'\nallowed_ips = ['{}/32']\n{ping}",
        a.interface,
        uplinks.collect::<String>(),
        keys(b)?.public,
        b.inner_v4
    ))
}

impl Ground for Stock {
    fn sites(&self) -> &[Site; 2] {
        &self.sites
    }

    fn packets(&mut self) -> Result<Vec<[u64; 2]>> {
        // Of the reading thread, which is in the namespace.
        let text = self.sites[0]
            .namespace
            .run(|| std::fs::read_to_string("/proc/thread-self/net/dev"))??;
        Ok((1..=self.links)
            .map(|link| counts(&text, &format!("up{link}")))
            .collect())
    }

    fn command(&mut self, wire: usize, command: &str) -> Result<()> {
        let link = wire + 1;
        let through = [
            format!("pref {link} iif down{link} blackhole"),
            format!("pref {link} to {}/24 blackhole", outer(link as u8, 0)),
        ];
        let commands = match command {
            "carrier" => vec![format!("link set down{link} down")],
            "carrier back" => vec![format!("link set down{link} up")],
            // The router forwards nothing, and is still there.
            "path" => through.map(|rule| format!("rule add {rule}")).into(),
            "path back" => through.map(|rule| format!("rule del {rule}")).into(),
            // It answers no question for its address either.
            "gateway" => [
                &[format!("link set down{link} arp off")][..],
                &through.map(|rule| format!("rule add {rule}")),
            ]
            .concat(),
            "gateway back" => [
                &[format!("link set down{link} arp on")][..],
                &through.map(|rule| format!("rule del {rule}")),
            ]
            .concat(),
            other => return Err(Error::new(format!("no such fault: {other}"))),
        };
        commands
            .iter()
            .try_for_each(|command| self.router.ip(command).map(|_| ()))
    }

    fn has_recovered(&mut self) -> bool {
        // Links without a session have nothing to recover.
        true
    }

    fn told(&self, error: &Error) -> Error {
        Error::new(format!("{error}\n{}", self.engine.log()))
    }
}

/// Packets sent and received by an interface.
fn counts(text: &str, interface: &str) -> [u64; 2] {
    let lines = text.lines().filter_map(|line| line.trim_start().split_once(':'));
    let line = lines
        .filter(|(name, _)| *name == interface)
        .map(|(_, counts)| counts)
        .next();
    let column = |at| line.and_then(|line| line.split_whitespace().nth(at)?.parse().ok());
    [SENT, RECEIVED].map(|at| column(at).unwrap_or(0))
}

impl Drop for Stock {
    fn drop(&mut self) {
        let _ = self.engine.stop();
        // It stays when the engine is gone, and holds nothing up: the namespace goes too.
        let name = format!("{}.sock", self.sites[0].interface);
        let _ = std::fs::remove_file(Path::new(RUNTIME_DIR).join(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_found_by_interface() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs\n \
                    up1: 100 7 0 0 0 0 0 0 200 9 0 0 0 0 0 0\n  up11: 1 2 0 0 0 0 0 0 3 4 0 0 0 0 0 0\n";
        assert_eq!(counts(text, "up1"), [9, 7]);
        assert_eq!(counts(text, "up11"), [4, 2]);
        assert_eq!(counts(text, "up2"), [0, 0]);
    }
}
