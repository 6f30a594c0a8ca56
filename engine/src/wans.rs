//! WAN links by AF_XDP: the interfaces whose WireGuard datagrams go past the kernel's network stack.
//!
//! Opened by the main thread at the start, while that is still allowed; from then on the slow path's, which lends the queues to the workers' ports
//! and says to the program which UDP port and addresses are ours. A link that cannot be opened works by its UDP sockets.

use std::fmt;
use std::io;

use patronus_io::netlink::{Addresses, RouteQuery, receive_queues};
use patronus_io::xdp::{Names, QueuePlace, XdpMode, XdpProgram};
use patronus_mem::{Arena, FrameCache};

/// Frames that each queue may hold, in both directions.
pub const FRAMES: usize = 4096;

/// The program and the queues of a link.
pub struct XdpLink {
    /// The interface that they are on. One of the same name that comes later is another one.
    pub ifindex: u32,
    /// What the program takes.
    pub names: Names,
    /// By worker.
    pub queues: Vec<QueuePlace>,
    /// Goes from the interface when this is dropped.
    program: XdpProgram,
}

impl XdpLink {
    /// Where its program runs.
    pub fn mode(&self) -> XdpMode {
        self.program.mode()
    }
}

/// Why a link cannot have AF_XDP.
#[derive(Debug)]
pub enum WanError {
    /// There is no such interface, or it is down.
    NotRunning,
    /// It is no Ethernet.
    NoAddress,
    /// It has so many queues, which each want a worker, and there are so many workers.
    Queues(usize, usize),
    /// The system refused this.
    System(&'static str, io::Error),
}

impl fmt::Display for WanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WanError::NotRunning => {
                f.write_str("it does not run; start the engine again when it is up and has a carrier")
            }
            WanError::NoAddress => f.write_str("it is no Ethernet; leave `af_xdp` away"),
            WanError::Queues(queues, workers) => write!(
                f,
                "it has {queues} receive queues and there are {workers} workers; make them equal with \
                 `ethtool -L INTERFACE combined {workers}` or with {queues} workers"
            ),
            WanError::System(what, error) if error.kind() == io::ErrorKind::PermissionDenied => write!(
                f,
                "cannot {what}: {error}; it takes root, or CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF"
            ),
            WanError::System(what, error) => write!(
                f,
                "cannot {what}: {error}; another program may have the interface (`ip link show` names it)"
            ),
        }
    }
}

impl std::error::Error for WanError {}

/// Opens the queues of a link, a queue for each worker. Nothing arrives by them until the names are set.
pub fn open(
    name: &str,
    workers: usize,
    routes: &RouteQuery,
    addresses: &Addresses,
    arena: &'static Arena,
) -> Result<XdpLink, WanError> {
    let system = |what| move |error| WanError::System(what, error);
    let running = routes.running(name).map_err(system("ask for it"))?;
    let ifindex = running.ok_or(WanError::NotRunning)?;
    let ethernet = addresses.interface(ifindex).ok_or(WanError::NotRunning)?;
    ethernet.mac.ok_or(WanError::NoAddress)?;
    let queues = receive_queues(name).unwrap_or(ethernet.queues) as usize;
    if queues != workers {
        return Err(WanError::Queues(queues, workers));
    }
    let (program, names) =
        XdpProgram::attach_named(ifindex, queues as u32).map_err(system("attach a program"))?;
    let mut frames = FrameCache::new(arena);
    let ports = (0..queues as u32).map(|queue| program.port(queue, &mut frames).map(QueuePlace::new));
    Ok(XdpLink {
        ifindex,
        names,
        queues: ports.collect::<io::Result<_>>().map_err(system("open a queue"))?,
        program,
    })
}
