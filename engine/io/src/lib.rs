//! Ports: where the engine takes and gives packets.
//!
//! A [`Port`] belongs to one worker thread, which asks it for bursts and hands bursts to it. Whatever makes moving many
//! packets cheap (several datagrams per system call, segmentation offload, coalescing) happens inside the port; the stages only see single
//! packets. A port never waits, but for a bounded moment when the system is out of buffers, and every packet that it cannot move
//! is counted under a name in its [`PortCounters`].

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrayvec::ArrayVec;
use patronus_mem::{Burst, FrameCache, Unfinished};

pub mod afpacket;
mod bpf;
#[cfg(feature = "dpdk")]
pub mod dpdk;
pub mod exception;
mod ioctl;
pub mod ip;
pub mod loopback;
pub mod netlink;
pub mod nics;
pub mod offload;
pub mod packet;
pub mod schedule;
mod scratch;
pub mod signal;
pub mod solicit;
mod sys;
pub mod tun;
pub mod udp;
pub mod wan;
pub mod xdp;

/// File descriptors of a port at most: a UDP port has two for each address family, and a queue of AF_XDP is one more.
pub const PORT_FDS: usize = 5;

/// Why a port cannot be used any more. What concerns single packets is a counter instead.
#[derive(Debug)]
pub enum PortError {
    /// The device was deleted.
    Gone,
    /// The system refused the port as a whole.
    Io(io::Error),
}

impl fmt::Display for PortError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PortError::Gone => f.write_str("the device was deleted"),
            PortError::Io(error) => write!(f, "input or output failed: {error}"),
        }
    }
}

impl std::error::Error for PortError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            PortError::Gone => None,
            PortError::Io(error) => Some(error),
        }
    }
}

impl From<io::Error> for PortError {
    fn from(error: io::Error) -> PortError {
        PortError::Io(error)
    }
}

/// Where a worker takes and gives packets. All calls come from the worker's thread.
pub trait Port {
    /// Appends what has arrived to `burst`, up to its room, in order of arrival within a flow. Returns how many packets; 0 means
    /// that nothing is there now: before that, the port may hold packets that [`wait_fds`](Port::wait_fds) do not show.
    /// Frames come from `frames`.
    fn rx_burst(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Result<usize, PortError>;

    /// Sends all packets of `burst`, in order within a path. The burst is empty afterwards, its frames are back in `frames` (or
    /// on the other side); what could not be sent is a counted drop.
    fn tx_burst(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Result<(), PortError>;

    /// The same for datagrams that nobody on the way may cut up, so that they show what passes (DF; RFC 8899, section 3). What is too long for the way
    /// vanishes. Rare: it may cost system calls of its own. A port that is no network's sends them as any.
    fn tx_whole(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Result<(), PortError> {
        self.tx_burst(frames, burst)
    }

    /// What to wait on, readable when [`rx_burst`](Port::rx_burst) may find packets. Level-triggered; a port without
    /// descriptors is polled.
    fn wait_fds(&self) -> ArrayVec<BorrowedFd<'_>, PORT_FDS> {
        ArrayVec::new()
    }

    /// Whether [`rx_burst`](Port::rx_burst) would return packets that the port has taken from the system already, so that
    /// no descriptor tells of them.
    fn has_pending(&self) -> bool {
        false
    }

    /// An own address that the kernel no longer takes as a source, if one was met since the last call: whoever answers
    /// from it should forget it. None for ports that have no addresses.
    fn take_stale_source(&mut self) -> Option<IpAddr> {
        None
    }

    /// Whether packets may [leave](patronus_mem::PktBuf::leave_unfinished) these checksums to the port, because the device makes them.
    fn finishes(&self, _unfinished: Unfinished) -> bool {
        false
    }

    /// What the port has done. Anyone may read it at any time.
    fn counters(&self) -> &Arc<PortCounters>;
}

/// A count with one writer at a time, readable by any thread.
#[derive(Debug, Default, zerocopy::FromBytes)]
#[repr(transparent)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Goes on from `n`. Only the counter's one writer calls this.
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// Adds `n`. Only the counter's one writer calls this: the addition is not atomic, which makes it as cheap as that of a plain
    /// integer.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0
            .store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// The current value.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! port_counters {
    ($($(#[$doc:meta])* $name:ident),* ; drops $($(#[$drop_doc:meta])* $drop:ident),* $(,)?) => {
        /// What a port has done. The port is the only writer.
        #[derive(Debug, Default)]
        pub struct PortCounters {
            $($(#[$doc])* pub $name: Counter,)*
            $($(#[$drop_doc])* pub $drop: Counter,)*
        }

        impl PortCounters {
            /// Every counter with its name.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
                [$((stringify!($name), self.$name.get()),)* $((stringify!($drop), self.$drop.get()),)*].into_iter()
            }

            /// The counters of packets that disappeared, with their names: the reasons.
            pub fn drops(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
                [$((stringify!($drop), self.$drop.get()),)*].into_iter()
            }
        }
    };
}

port_counters! {
    /// Packets received and handed on.
    rx_packets,
    /// Bytes of those packets.
    rx_bytes,
    /// System calls (or polls of a ring) that received at least one packet.
    rx_calls,
    /// Packets handed to the system.
    tx_packets,
    /// Bytes of those packets.
    tx_bytes,
    /// System calls (or pushes of a burst into a ring) that sent at least one packet.
    tx_calls;
    drops
    /// Received, but no frame was free.
    rx_no_frame,
    /// Received, but it is no packet: truncated, longer than any frame, or with a header that contradicts itself.
    rx_malformed,
    /// Received, and for the host, which had no time for it: too much waits already.
    punt_no_room,
    /// Not sent: the system (or the ring) had no room, also after a short wait.
    tx_no_buffer,
    /// Not sent: no route, no such address, or no outer address at all.
    tx_unreachable,
    /// Not sent: longer than the path or the device takes.
    tx_too_big,
    /// Not sent: a local rule (a firewall, a routing rule) forbids it.
    tx_forbidden,
    /// Not sent: the device is down.
    tx_down,
    /// Not sent, for another reason.
    tx_error,
}
