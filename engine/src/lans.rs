//! Ethernet LANs: interfaces whose frames the workers take, by AF_XDP past the kernel's network stack or else by packet sockets; and NICs that DPDK drives.
//!
//! Which they are is configured and does not change. The [keeper](crate::keeper) takes the interfaces, at the start and whenever one comes back; the slow
//! path gives the ports to the workers. NICs are opened by the slow path itself ([`Nics`](patronus_io::nics::Nics)).

use std::fmt;
use std::io;

use patronus_io::nics::NicConfig;
use patronus_io::xdp::XdpMode;

use crate::log::Log;

/// How the frames of an interface are taken and given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PortChoice {
    /// By AF_XDP where that can be had, else by packet sockets.
    Any,
    /// By AF_XDP.
    AfXdp,
    /// By packet sockets.
    AfPacket,
}

impl PortChoice {
    /// For the command line of the keeper.
    pub fn name(self) -> &'static str {
        match self {
            PortChoice::Any => "any",
            PortChoice::AfXdp => "af_xdp",
            PortChoice::AfPacket => "af_packet",
        }
    }

    /// The reverse.
    pub fn by_name(name: &str) -> Option<PortChoice> {
        let all = [PortChoice::Any, PortChoice::AfXdp, PortChoice::AfPacket];
        all.into_iter().find(|choice| choice.name() == name)
    }
}

/// An interface that is to be a LAN.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EthernetConfig {
    /// Its name.
    pub interface: String,
    /// How its frames are taken and given.
    pub port: PortChoice,
}

/// What an Ethernet LAN is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LanConfig {
    /// An interface of the kernel's.
    Interface(EthernetConfig),
    /// A NIC that DPDK drives. In its place the host has an interface.
    Nic(NicConfig),
}

impl LanConfig {
    /// The name of its interface.
    pub fn interface(&self) -> &str {
        match self {
            LanConfig::Interface(config) => &config.interface,
            LanConfig::Nic(nic) => &nic.interface,
        }
    }
}

/// Says which AF_XDP an interface got: a driver that cannot run the program costs the host a packet buffer for every frame, which somebody who
/// chose the interface for speed has to know.
pub fn say_how(log: &Log, what: &str, name: &str, mode: XdpMode, queues: usize) {
    let said = format_args!(
        "{what} {name} is used through AF_XDP: its program runs {mode}, the kernel copies packets (copy mode), receive queues: {queues}"
    );
    match mode {
        XdpMode::Native => log.verbose(said),
        XdpMode::Generic => log.notice(said),
    }
}

/// Why an interface cannot be a LAN.
#[derive(Debug)]
pub enum LanError {
    /// It is no Ethernet.
    NoAddress(String),
    /// It has so many queues, which each want a worker, and there are so many workers.
    Queues(String, usize, usize),
    /// The system refused this.
    System(String, &'static str, io::Error),
}

impl fmt::Display for LanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LanError::NoAddress(name) => write!(f, "LAN interface {name} is no Ethernet"),
            LanError::Queues(name, queues, workers) => write!(
                f,
                "LAN interface {name} has {queues} receive queues and there are {workers} workers: for AF_XDP each needs one of its own; \
                 `ethtool -L {name} combined {workers}`, or `workers = {queues}` in [engine], or `port = \"af_packet\"`"
            ),
            LanError::System(name, what, error) => write!(f, "LAN interface {name}: cannot {what}: {error}"),
        }
    }
}

impl std::error::Error for LanError {}
