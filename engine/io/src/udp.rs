//! The tunnel's UDP sockets: one for IPv4 and one for IPv6 on the same UDP port, for each worker.
//!
//! [`UdpSockets`] is made by whoever owns the configuration. Every worker takes its [`UdpPort`]; the slow path takes a
//! [`UdpSender`], which sends single datagrams from the same sockets.
//!
//! A port receives many datagrams per system call, lets the kernel coalesce (UDP_GRO, udp(7)) and cuts the trains into
//! packets; it sends a burst with as few calls as possible and lets the kernel segment (UDP_SEGMENT). The path that it sends to most has
//! a connected socket of its own ([`path`]), which costs the kernel less. The own address is kept with each packet on
//! receive and used as source on send (IP_PKTINFO, RFC 3542), so that an answer leaves from the address that was called.

mod message;
mod path;
mod plan;
mod receive;
mod send;
mod socket;

use std::io;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use arrayvec::ArrayVec;
use patronus_mem::{Burst, FrameCache, Outer};

use crate::{PORT_FDS, Port, PortCounters, PortError};
use path::PathSocket;
use receive::Receiver;
use send::Transmitter;
use socket::Pair;

/// What the sockets should be like.
#[derive(Clone, Copy, Debug)]
pub struct UdpConfig {
    /// UDP port, the same for both families; 0 takes any that is free in both.
    pub port: u16,
    /// The interface that datagrams arrive at and leave by, whatever the routes say (SO_BINDTOIFINDEX, Linux 5.0); 0: any.
    pub ifindex: u32,
    /// Sockets of each family, one per worker. With more than one the kernel spreads flows over them.
    pub workers: usize,
    /// Mark of outgoing packets (SO_MARK, socket(7)); 0 for none. Another value needs CAP_NET_ADMIN.
    pub fwmark: u32,
    /// Size of each socket's receive and send buffer, in bytes. Without privileges the system's limit counts.
    pub buffer_bytes: usize,
    /// Segmentation offload on send and coalescing on receive, where the kernel has them.
    pub offload: bool,
}

/// The bound sockets of all workers. Each is closed when this value, its port and all senders are dropped.
#[derive(Debug)]
pub struct UdpSockets {
    workers: Vec<WorkerSockets>,
    port: u16,
    offload: bool,
}

/// The sockets of one worker.
#[derive(Clone, Debug)]
struct WorkerSockets {
    /// Those that serve everyone.
    listeners: Pair,
    /// Those for the worker's busiest path.
    paths: Pair,
}

impl UdpSockets {
    /// Binds the sockets. A family that the kernel does not have is left out; both missing is an error.
    pub fn bind(config: &UdpConfig) -> io::Result<UdpSockets> {
        let (listeners, port) = socket::bind_all(config)?;
        let with_paths = |listeners| {
            Ok(WorkerSockets {
                listeners,
                paths: socket::open_paths(config)?,
            })
        };
        let workers = listeners.into_iter().map(with_paths).collect::<io::Result<_>>()?;
        Ok(UdpSockets {
            workers,
            port,
            offload: config.offload,
        })
    }

    /// The UDP port that the sockets are bound to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Marks outgoing packets from now on; 0 for none.
    pub fn set_fwmark(&self, fwmark: u32) -> io::Result<()> {
        self.workers
            .iter()
            .flat_map(|worker| worker.listeners.fds().chain(worker.paths.fds()))
            .try_for_each(|fd| socket::set_fwmark(fd, fwmark))
    }

    /// The port of worker `worker`, with counters from 0. Two ports of the same worker would share its sockets.
    ///
    /// # Panics
    /// If there is no such worker.
    pub fn worker_port(&self, worker: usize) -> UdpPort {
        UdpPort::new(self.workers[worker].clone(), self.offload)
    }

    /// For the slow path: sends single datagrams from the first worker's sockets.
    pub fn sender(&self) -> UdpSender {
        UdpSender {
            sockets: self.workers[0].listeners.clone(),
        }
    }
}

/// One worker's sockets.
pub struct UdpPort {
    sockets: Pair,
    path: PathSocket,
    receiver: Receiver,
    transmitter: Transmitter,
    counters: Arc<PortCounters>,
}

impl UdpPort {
    fn new(sockets: WorkerSockets, offload: bool) -> UdpPort {
        UdpPort {
            sockets: sockets.listeners,
            path: PathSocket::new(sockets.paths),
            receiver: Receiver::new(),
            transmitter: Transmitter::new(offload),
            counters: Arc::default(),
        }
    }

    /// True if the kernel still segments what goes to that family.
    pub fn segments(&self, ipv6: bool) -> bool {
        self.transmitter.segments(ipv6)
    }
}

impl Port for UdpPort {
    fn rx_burst(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Result<usize, PortError> {
        let [v4, v6] = [false, true].map(|ipv6| (self.sockets.of(ipv6), self.path.receiving(ipv6)));
        let receiving = [v4.0, v6.0, v4.1, v6.1];
        self.receiver
            .receive(&receiving, frames, burst, &self.counters)
            .map_err(PortError::Io)
    }

    fn tx_burst(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Result<(), PortError> {
        self.transmitter
            .transmit(&self.sockets, &mut self.path, burst, &self.counters);
        burst.clear_into(frames);
        Ok(())
    }

    fn tx_whole(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Result<(), PortError> {
        send::send_whole(&self.sockets, burst, &self.counters);
        burst.clear_into(frames);
        Ok(())
    }

    fn wait_fds(&self) -> ArrayVec<BorrowedFd<'_>, PORT_FDS> {
        // Those that are not bound yet never wake anyone.
        self.sockets.fds().chain(self.path.sockets().fds()).collect()
    }

    fn has_pending(&self) -> bool {
        self.receiver.has_pending()
    }

    /// The packets went out without that address. Several are given one by one.
    fn take_stale_source(&mut self) -> Option<IpAddr> {
        self.transmitter.take_stale_source()
    }

    fn counters(&self) -> &Arc<PortCounters> {
        &self.counters
    }
}

/// Sends single datagrams from a worker's sockets, from any thread.
#[derive(Clone, Debug)]
pub struct UdpSender {
    sockets: Pair,
}

impl UdpSender {
    /// Sends `datagram` to the remote address, from the own address if one is set (without it if the kernel refuses it) and
    /// with the DSCP and ECN byte. Waits one millisecond at most.
    pub fn send(&self, outer: &Outer, datagram: &[u8]) -> io::Result<()> {
        let socket = self.sockets.of(outer.is_ipv6()).filter(|_| !outer.is_none());
        let socket = socket.ok_or(io::ErrorKind::NetworkUnreachable)?;
        send::send_single(socket, outer, datagram)
    }
}
