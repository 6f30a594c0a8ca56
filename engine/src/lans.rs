//! Ethernet LANs: interfaces whose queues the workers read, past the kernel's network stack (AF_XDP).
//!
//! Made by the main thread at the start, while that is still allowed; the ports go to the workers and the programs to the slow path, which
//! keeps them on their interfaces as long as the engine runs.

use std::fmt;
use std::io;

use patronus_io::netlink::{Addresses, RouteQuery, receive_queues};
use patronus_io::xdp::{Take, XdpPort, XdpProgram};
use patronus_mem::{Arena, FrameCache};

use crate::plan::Lan;

/// An interface, and a port of it for each worker.
pub struct EthernetLan {
    /// Its interface's name.
    pub name: String,
    /// What stands on the interface.
    pub program: XdpProgram,
    /// By worker.
    pub ports: Vec<XdpPort>,
    /// What routes have to know of it.
    pub lan: Lan,
}

/// Why an interface cannot be a LAN.
#[derive(Debug)]
pub enum LanError {
    /// There is none, or it is down.
    NotRunning(String),
    /// It has so many queues, which each want a worker, and there are so many workers.
    Queues(String, usize, usize),
    /// It has no Ethernet address.
    NoAddress(String),
    /// The system refused this.
    System(String, &'static str, io::Error),
}

impl fmt::Display for LanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LanError::NotRunning(name) => write!(
                f,
                "LAN interface {name} does not run: there is no such interface, or it is down or has no carrier"
            ),
            LanError::Queues(name, queues, workers) => write!(
                f,
                "LAN interface {name} has {queues} receive queues and there are {workers} workers: each needs one of its own; \
                 `ethtool -L {name} combined {workers}`, or `workers = {queues}` in [engine]"
            ),
            LanError::NoAddress(name) => write!(f, "LAN interface {name} is no Ethernet"),
            LanError::System(name, what, error) => write!(f, "LAN interface {name}: cannot {what}: {error}"),
        }
    }
}

impl std::error::Error for LanError {}

/// Takes over what an interface brings for other hosts. What is for the host's own addresses stays the host's.
pub fn open(
    name: &str,
    workers: usize,
    routes: &RouteQuery,
    addresses: &Addresses,
    arena: &'static Arena,
) -> Result<EthernetLan, LanError> {
    let system = |what| move |error| LanError::System(name.to_owned(), what, error);
    let running = routes.running(name).map_err(system("ask for it"))?;
    let ifindex = running.ok_or_else(|| LanError::NotRunning(name.to_owned()))?;
    let ethernet = addresses.interface(ifindex);
    let mac = ethernet.and_then(|ethernet| ethernet.mac);
    let (Some(ethernet), Some(mac)) = (ethernet, mac) else {
        return Err(LanError::NoAddress(name.to_owned()));
    };
    let queues = receive_queues(name).unwrap_or(ethernet.queues) as usize;
    if queues != workers {
        return Err(LanError::Queues(name.to_owned(), queues, workers));
    }
    let take = Take::Transit {
        mac,
        addresses: addresses.on(ifindex).map(|prefix| prefix.address).collect(),
    };
    let program = XdpProgram::attach(ifindex, queues as u32, &take).map_err(system("attach a program"))?;
    let mut frames = FrameCache::new(arena);
    let ports = (0..queues as u32).map(|queue| program.port(queue, &mut frames));
    let ports = ports.collect::<io::Result<_>>().map_err(system("open a queue"))?;
    Ok(EthernetLan {
        name: name.to_owned(),
        program,
        ports,
        lan: Lan {
            mac: Some(mac),
            mtu: ethernet.mtu.min(u16::MAX.into()) as u16,
        },
    })
}
