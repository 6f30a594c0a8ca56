//! WAN links over queues of an interface (AF_XDP) or a NIC (DPDK): those whose WireGuard datagrams go past the kernel's network stack.
//!
//! Taken by the [keeper](crate::keeper), at the start and whenever the interface is another one; the slow path's, which lends the queues to the workers' ports
//! and says to the program which UDP port and addresses are ours. A link that cannot be taken works by its UDP sockets.

use std::fmt;
use std::io;

use patronus_io::wan::{AnyQueue, QueuePlace};
use patronus_io::xdp::Names;

use crate::keeper::Guard;

/// Who says which frames of a link's queues are the engine's.
pub enum Chooser {
    /// A program.
    Program(Names),
    /// A NIC by its number: the queues themselves.
    Nic(usize),
}

/// The queues of a link.
pub struct QueueLink {
    /// The interface that they are on. One of the same name that comes later is another one.
    pub ifindex: u32,
    /// What chooses frames.
    pub chooser: Chooser,
    /// By worker.
    pub queues: Vec<QueuePlace<AnyQueue>>,
    /// The program, if there is one.
    pub guard: Option<Guard>,
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
