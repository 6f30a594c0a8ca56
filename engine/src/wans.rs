//! WAN links by AF_XDP: the interfaces whose WireGuard datagrams go past the kernel's network stack.
//!
//! Taken by the [keeper](crate::keeper), at the start and whenever the interface is another one; the slow path's, which lends the queues to the workers' ports
//! and says to the program which UDP port and addresses are ours. A link that cannot be taken works by its UDP sockets.

use std::fmt;
use std::io;

use patronus_io::wan::QueuePlace;
use patronus_io::xdp::{Names, XdpPort};

use crate::keeper::Guard;

/// The program and the queues of a link.
pub struct XdpLink {
    /// The interface that they are on. One of the same name that comes later is another one.
    pub ifindex: u32,
    /// What the program takes.
    pub names: Names,
    /// By worker.
    pub queues: Vec<QueuePlace<XdpPort>>,
    /// The program.
    pub guard: Guard,
}

/// Why a link cannot have AF_XDP.
#[derive(Debug)]
pub enum WanError {
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
