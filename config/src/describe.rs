//! What stands in a file, key by key and in words: what differences are told in.
//!
//! Every table is taken apart completely, so that a key that is added to one does not compile until it is here too.

use std::fmt::Display;
use std::path::Path;

use crate::Spanned;
use crate::compile::MTU;
use crate::error::plain;
use crate::matching::{Name, OneOrMore};
use crate::schema::{
    Action, Dpdk, Engine, Lan, Link, LinkPort, Mtu, Neighbour, Peer, Policy, PortKind, Route, Site,
};
use crate::services::{Bgp, BgpNeighbour, Control, Metrics};
use crate::steering::{Class, Probe};
use crate::value::Device;

/// What a key says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    /// Nothing: it does not stand there, and has no default.
    Absent,
    /// This.
    Word(String),
    /// All of these, in no order.
    Set(Vec<String>),
}

pub(crate) type Keys = Vec<(&'static str, Shown)>;

fn word(value: impl Display) -> Shown {
    Shown::Word(plain(&value.to_string()))
}

fn maybe<T: Display>(value: Option<T>) -> Shown {
    value.map_or(Shown::Absent, word)
}

fn spanned<T: Display>(value: &Option<Spanned<T>>) -> Shown {
    maybe(value.as_ref().map(Spanned::get_ref))
}

fn path(path: &Path) -> Shown {
    word(path.display())
}

fn name(name: &Option<Spanned<Name>>) -> Shown {
    maybe(name.as_ref().map(|name| name.get_ref().as_str()))
}

fn set<T: Display>(values: &[Spanned<T>]) -> Shown {
    let values = values.iter().map(|value| value.get_ref().to_string());
    Shown::Set(values.collect())
}

fn list<T: Display>(values: &[Spanned<T>]) -> Shown {
    let values: Vec<String> = values.iter().map(|value| value.get_ref().to_string()).collect();
    match values.is_empty() {
        true => Shown::Absent,
        false => word(values.join(" ")),
    }
}

/// The MTU of a device, if there is one: without the key it has Ethernet's.
fn of_device(device: &Option<Spanned<Device>>, mtu: &Option<Spanned<Mtu>>) -> Shown {
    let mtu = mtu.as_ref().map_or(u64::from(MTU), |mtu| mtu.get_ref().get());
    maybe(device.as_ref().map(|_| mtu))
}

pub(crate) fn site(of: &Site) -> Keys {
    let Site {
        private_key_file,
        listen_port,
        fwmark,
        addresses,
        mtu,
        routes,
    } = of;
    vec![
        ("private_key_file", path(private_key_file)),
        ("listen_port", word(listen_port.get())),
        ("fwmark", word(fwmark.get())),
        ("addresses", set(addresses)),
        ("mtu", spanned(mtu)),
        ("routes", word(routes.get_ref())),
    ]
}

pub(crate) fn engine(of: &Engine) -> Keys {
    let Engine {
        interface,
        workers,
        cores,
        spin,
        aead,
        offload,
        flows,
        routes,
    } = of;
    vec![
        ("interface", word(interface.as_str())),
        ("workers", word(workers.get())),
        ("cores", list(cores)),
        ("spin", word(spin.get_ref())),
        ("aead", spanned(aead)),
        ("offload", word(offload)),
        ("flows", word(flows.get())),
        ("routes", word(routes.get())),
    ]
}

pub(crate) fn dpdk(of: &Dpdk) -> Keys {
    let Dpdk {
        memory,
        huge_pages,
        huge_page_size,
    } = of;
    vec![
        ("memory", word(memory.get_ref())),
        ("huge_pages", word(huge_pages)),
        ("huge_page_size", spanned(huge_page_size)),
    ]
}

pub(crate) fn link(of: &Link) -> Keys {
    let Link {
        id,
        interface,
        port,
        device,
        mtu,
        group,
        metered,
        behind_nat,
        endpoint,
        rate_up,
        rate_down,
        cost,
        data_cap,
        data_cap_day,
    } = of;
    // A cap makes it metered: that takes a restart, and is said.
    let metered = *metered || data_cap.is_some();
    let port = match port {
        LinkPort::Udp => "udp",
        LinkPort::AfXdp => "af_xdp",
        LinkPort::Dpdk => "dpdk",
    };
    vec![
        ("id", word(id.get_ref().get())),
        ("interface", word(interface.get_ref().as_str())),
        ("port", word(port)),
        (
            "device",
            maybe(device.as_ref().map(|device| device.get_ref().as_str())),
        ),
        ("mtu", of_device(device, mtu)),
        ("group", word(group.get())),
        ("metered", word(metered)),
        ("behind_nat", word(behind_nat)),
        ("endpoint", maybe(endpoint.map(|at| at.0))),
        ("rate_up", spanned(rate_up)),
        ("rate_down", spanned(rate_down)),
        ("cost", word(cost.get())),
        ("data_cap", spanned(data_cap)),
        (
            "data_cap_day",
            maybe(data_cap_day.as_ref().map(|day| day.get_ref().get())),
        ),
    ]
}

pub(crate) fn peer(of: &Peer) -> Keys {
    let Peer {
        name: called,
        public_key,
        preshared_key_file,
        endpoint,
        allowed_ips,
        keepalive,
        ping,
        ping_interval,
        is_remote,
    } = of;
    vec![
        ("name", name(called)),
        ("public_key", word(public_key.get_ref())),
        ("remote", word(is_remote)),
        (
            "preshared_key_file",
            preshared_key_file.as_deref().map_or(Shown::Absent, path),
        ),
        ("endpoint", maybe(endpoint.map(|at| at.0))),
        ("allowed_ips", set(allowed_ips)),
        ("keepalive", spanned(keepalive)),
        ("ping", spanned(ping)),
        ("ping_interval", spanned(ping_interval)),
    ]
}

pub(crate) fn lan(of: &Lan) -> Keys {
    let Lan {
        name,
        port,
        interface,
        device,
        mtu,
        networks,
        neighbours,
    } = of;
    let port = port.as_ref().map(|port| match port.get_ref() {
        PortKind::Tun => "tun",
        PortKind::AfXdp => "af_xdp",
        PortKind::AfPacket => "af_packet",
        PortKind::Dpdk => "dpdk",
    });
    // The TUN has the same interface whether it is named or not.
    let interface = interface.as_ref().filter(|_| of.is_ethernet());
    let neighbours = neighbours
        .iter()
        .map(|Neighbour { address, mac }| format!("{} at {mac}", address.get_ref()));
    vec![
        ("name", word(name.get_ref().as_str())),
        ("port", maybe(port)),
        ("interface", maybe(interface.map(|name| name.get_ref().as_str()))),
        (
            "device",
            maybe(device.as_ref().map(|device| device.get_ref().as_str())),
        ),
        ("mtu", of_device(device, mtu)),
        ("networks", set(networks)),
        ("neighbours", Shown::Set(neighbours.collect())),
    ]
}

pub(crate) fn route(of: &Route) -> Keys {
    let Route { prefix, via } = of;
    vec![
        ("prefix", word(prefix.get_ref())),
        ("via", list(&via.get_ref().0)),
    ]
}

pub(crate) fn policy(of: &Policy) -> Keys {
    let Policy {
        name: called,
        src,
        dst,
        protocol,
        src_ports,
        dst_ports,
        dscp,
        action,
        via,
        class,
    } = of;
    let action = match action.get_ref() {
        Action::Route => "route",
        Action::Drop => "drop",
        Action::Via => "via",
    };
    let OneOrMore(dscps) = dscp;
    vec![
        ("name", name(called)),
        ("src", spanned(src)),
        ("dst", spanned(dst)),
        ("protocol", spanned(protocol)),
        ("src_ports", spanned(src_ports)),
        ("dst_ports", spanned(dst_ports)),
        ("dscp", set(dscps)),
        ("action", word(action)),
        (
            "via",
            via.as_ref().map_or(Shown::Absent, |via| list(&via.get_ref().0)),
        ),
        ("class", name(class)),
    ]
}

pub(crate) fn class(of: &Class) -> Keys {
    let Class {
        name,
        latency,
        jitter,
        loss,
        mode,
        hold,
        sticky,
        dscp,
    } = of;
    vec![
        ("name", word(name.get_ref().as_str())),
        ("latency", spanned(latency)),
        ("jitter", spanned(jitter)),
        ("loss", spanned(loss)),
        ("mode", word(mode.word())),
        ("hold", word(hold.get_ref())),
        ("sticky", word(sticky.word())),
        ("dscp", maybe(dscp.as_ref())),
    ]
}

pub(crate) fn probe(of: &Probe) -> Keys {
    let Probe { interval, idle, rate } = of;
    vec![
        ("interval", word(interval.get_ref())),
        ("idle", word(idle.get_ref())),
        ("rate", word(rate.get())),
    ]
}

pub(crate) fn metrics(of: &Metrics) -> Keys {
    let Metrics { listen } = of;
    vec![("listen", word(listen.get_ref().0))]
}

pub(crate) fn control(of: &Control) -> Keys {
    let Control {
        socket,
        group,
        admin_group,
        engine_socket,
    } = of;
    vec![
        ("socket", path(socket)),
        ("group", word(group.as_str())),
        ("admin_group", word(admin_group.as_str())),
        ("engine_socket", path(engine_socket)),
    ]
}

pub(crate) fn bgp(of: &Bgp) -> Keys {
    let Bgp {
        asn,
        router_id,
        announce,
        neighbours,
    } = of;
    let neighbours = neighbours.iter().map(|neighbour| {
        let BgpNeighbour {
            address,
            asn,
            password_file,
        } = neighbour;
        let password = password_file
            .as_deref()
            .map(|file| format!(" with the password in {}", file.display()));
        plain(&format!(
            "{} (AS {}){}",
            address.get_ref(),
            asn.get(),
            password.unwrap_or_default()
        ))
    });
    vec![
        ("asn", word(asn.get())),
        ("router_id", word(router_id)),
        ("announce", set(announce)),
        ("neighbour", Shown::Set(neighbours.collect())),
    ]
}
