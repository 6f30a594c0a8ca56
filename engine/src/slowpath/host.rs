//! What the host gets at the TUN, where the site says so: addresses, the longest packet, and routes to what is allowed to peers. Everything else that
//! somebody has set there stays.
//!
//! The kernel keeps with each address and route who has set it, so the engine that comes next on a TUN that stayed finds what there is and goes on from
//! there. A bounded number is set in a turn of the slow path. What cannot be set is said, and tried again when the interface is set up again.

use std::collections::{BTreeSet, VecDeque};
use std::io;

use patronus_abi::site::Host;
use patronus_crypto::{Duration, Time};
use patronus_io::netlink::{HostPrefix, OwnSettings};

use super::SlowPath;
use crate::log::Log;
use crate::site::Site;

/// Addresses and routes that are set in a turn: each takes a call or two to the kernel.
const STEPS_PER_TURN: usize = 256;
/// When to go on after such a turn.
const PAUSE: Duration = Duration::from_millis(1);
/// Routes that are told of one by one when they cannot be set.
const TOLD: usize = 4;

/// What is to be set, or is.
#[derive(Clone, Default, PartialEq, Eq)]
struct Settings {
    addresses: BTreeSet<HostPrefix>,
    routes: BTreeSet<HostPrefix>,
}

enum Step {
    AddAddress(HostPrefix),
    RemoveAddress(HostPrefix),
    AddRoute(HostPrefix),
    RemoveRoute(HostPrefix),
}

/// The host's side of the TUN.
pub(super) struct HostSide {
    settings: OwnSettings,
    wanted: Settings,
    steps: VecDeque<Step>,
    /// Addresses go first: with them the kernel takes others of their network and routes, so it is looked again what there is.
    look_again: bool,
    /// Addresses and routes that could not be set since the last plan.
    failed: usize,
}

impl HostSide {
    fn new(ifindex: u32) -> io::Result<HostSide> {
        Ok(HostSide {
            settings: OwnSettings::new(ifindex)?,
            wanted: Settings::default(),
            steps: VecDeque::new(),
            look_again: false,
            failed: 0,
        })
    }

    /// Looks what is there, and what it takes to get to what is wanted.
    fn plan(&mut self) -> io::Result<()> {
        self.failed = 0;
        let gone = self.look()?;
        self.look_again = !gone.is_empty();
        if self.look_again {
            self.steps = gone.into_iter().map(Step::RemoveAddress).collect();
        }
        Ok(())
    }

    /// The same without the addresses that are not wanted any more, which come back.
    fn look(&mut self) -> io::Result<Vec<HostPrefix>> {
        let wanted = &self.wanted;
        let there = Settings {
            addresses: self.settings.addresses()?,
            routes: self.settings.routes()?,
        };
        let less = |all: &BTreeSet<HostPrefix>, without: &BTreeSet<HostPrefix>| -> Vec<HostPrefix> {
            all.difference(without).copied().collect()
        };
        let steps = (less(&there.routes, &wanted.routes)
            .into_iter()
            .map(Step::RemoveRoute))
        .chain(
            less(&wanted.addresses, &there.addresses)
                .into_iter()
                .map(Step::AddAddress),
        )
        .chain(
            less(&wanted.routes, &there.routes)
                .into_iter()
                .map(Step::AddRoute),
        );
        self.steps = steps.collect();
        Ok(less(&there.addresses, &wanted.addresses))
    }

    /// Goes on. True if there is more to do.
    fn advance(&mut self, log: &Log) -> io::Result<bool> {
        for _ in 0..STEPS_PER_TURN {
            let Some(step) = self.steps.pop_front() else { break };
            let settings = &self.settings;
            let (said, what, done) = match step {
                Step::AddAddress(at) => ("set address", at, settings.add_address(at)),
                Step::RemoveAddress(at) => ("remove address", at, settings.remove_address(at)),
                Step::AddRoute(to) => ("route", to, settings.add_route(to)),
                Step::RemoveRoute(to) => ("remove the route to", to, settings.remove_route(to)),
            };
            if let Err(error) = done {
                self.failed += 1;
                if self.failed <= TOLD {
                    tell(log, said, what, &error);
                }
            }
        }
        if self.steps.is_empty() && std::mem::take(&mut self.look_again) {
            // What could not be removed is not tried again: that was said.
            self.look()?;
        }
        if self.steps.is_empty() && self.failed > TOLD {
            let more = std::mem::take(&mut self.failed) - TOLD;
            log.error(format_args!("nor {more} more addresses or routes at the TUN"));
        }
        Ok(!self.steps.is_empty())
    }
}

fn tell(log: &Log, said: &str, what: HostPrefix, error: &io::Error) {
    let HostPrefix { addr, len } = what;
    match error.kind() {
        io::ErrorKind::AlreadyExists => log.error(format_args!(
            "the host has another route to {addr}/{len}, which stays: remove it, or leave out `routes`"
        )),
        _ => log.error(format_args!("cannot {said} {addr}/{len} at the TUN: {error}")),
    }
}

/// What a site wants to be set. Networks that an address is on are routed by the kernel itself.
fn wanted(site: &Site) -> Settings {
    let told = site.told();
    let addresses = &told.host.addresses;
    let networks: Vec<_> = addresses.iter().filter_map(|address| address.network()).collect();
    let allowed = told.peers.iter().flat_map(|peer| &peer.allowed_ips);
    let allowed = allowed.filter(|prefix| prefix.cidr() > 0 && told.host.routes);
    let is_on_link = |prefix: &patronus_abi::Prefix| {
        let around = |network: &patronus_abi::Prefix| {
            network.cidr() <= prefix.cidr() && network.contains(prefix.addr())
        };
        networks.iter().any(around)
    };
    let routes = allowed.filter(|prefix| !is_on_link(prefix));
    Settings {
        addresses: addresses
            .iter()
            .map(|at| HostPrefix {
                addr: at.addr,
                len: at.len,
            })
            .collect(),
        routes: routes
            .map(|to| HostPrefix {
                addr: to.addr(),
                len: to.cidr(),
            })
            .collect(),
    }
}

impl SlowPath {
    /// Begins to set what the site that is in force says, where it says something or another one did.
    pub(super) fn want_host(&mut self) {
        let Some(site) = &self.site else { return };
        let host = &site.told().host;
        let wanted = wanted(site);
        if *host == Host::default() && self.host.is_none() {
            return;
        }
        if let Some(mtu) = host.mtu
            && !matches!(self.tun.mtu(), Ok(now) if now == u32::from(mtu))
            && let Err(error) = self.tun.set_mtu(mtu.into())
        {
            let log = self.core.log();
            log.error(format_args!("cannot set the TUN's MTU to {mtu}: {error}"));
        }
        let sets_up = !host.addresses.is_empty() || host.routes;
        if let Err(error) = self.set_host(wanted, sets_up) {
            let log = self.core.log();
            log.error(format_args!(
                "cannot set addresses and routes at the TUN: {error}"
            ));
        }
    }

    fn set_host(&mut self, wanted: Settings, sets_up: bool) -> io::Result<()> {
        let first = self.host.is_none();
        let side = match &mut self.host {
            Some(side) => side,
            none => none.insert(HostSide::new(self.tun.ifindex())?),
        };
        let other = std::mem::replace(&mut side.wanted, wanted) != side.wanted;
        if !first && !other {
            return Ok(());
        }
        if sets_up {
            side.settings.set_up()?;
        }
        side.plan()?;
        self.host_again_at = Some(self.core.mono());
        Ok(())
    }

    /// The interface was set up: with it went down, its routes and its IPv6 addresses have gone.
    pub(super) fn renew_host(&mut self) {
        let Some(side) = &mut self.host else { return };
        match side.plan() {
            Ok(()) => self.host_again_at = Some(self.core.mono()),
            Err(error) => unseen(self.core.log(), &error),
        }
    }

    /// Goes on with what is to be set.
    pub(super) fn tend_host(&mut self, now: Time) {
        if self.host_again_at.is_none_or(|at| at > now) {
            return;
        }
        let Some(side) = &mut self.host else { return };
        let log = self.core.log();
        let more = side.advance(log).unwrap_or_else(|error| {
            unseen(log, &error);
            false
        });
        self.host_again_at = more.then(|| now.after(PAUSE));
    }
}

fn unseen(log: &Log, error: &io::Error) {
    log.error(format_args!(
        "cannot see addresses and routes at the TUN: {error}"
    ));
}
