//! A NIC's queue as a worker's port: the engine's frames go on, the others are punted to the host, and the host's own go out between.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use patronus_mem::{BURST_MAX, Burst, FrameCache, PktBuf};
use patronus_sync::{Bell, Consumer, Producer};

use super::INJECTED_MAX;
use super::sieve::Sieve;
use crate::offload::split::complete_unfinished_frame;
use crate::wan::Queue;
use crate::{Port, PortCounters, PortError};

/// How the thread of an exception path is called.
pub(super) struct Call {
    pub bell: Bell,
    /// Readable when it was called.
    pub fd: OwnedFd,
    /// It shall end.
    pub stop: AtomicBool,
}

impl Call {
    /// Wakes the thread if it sleeps.
    #[inline]
    pub fn ring(&self) {
        if self.bell.ring() {
            self.wake();
        }
    }

    #[cold]
    pub fn wake(&self) {
        // A counter that is full is readable already.
        let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }

    pub fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// A worker's ends of an exception path.
pub struct HostSide {
    pub(super) to_host: Producer<PktBuf>,
    /// The first queue's worker sends for the host.
    pub(super) from_host: Option<Consumer<PktBuf>>,
    pub(super) call: Arc<Call>,
}

/// One queue of a NIC that stands for a host interface as well. The queue has no descriptors: it is polled, and what the host sends is looked for at each poll.
pub struct SplitPort<P> {
    queue: P,
    sieve: Sieve,
    host: HostSide,
    unfinished: bool,
    /// What the host sends; empty between calls.
    injected: Burst,
}

const _: () = assert!(INJECTED_MAX <= BURST_MAX && BURST_MAX <= 64);

impl<P: Port> SplitPort<P> {
    /// The port over a polled queue.
    pub fn new(queue: P, sieve: Sieve, host: HostSide) -> SplitPort<P> {
        debug_assert!(
            queue.wait_fds().is_empty(),
            "nobody would be woken for the host's packets"
        );
        SplitPort {
            queue,
            sieve,
            host,
            unfinished: false,
            injected: Burst::new(),
        }
    }

    /// With `unfinished`, the port completes checksums of what arrives: a kernel that sends frames to a veth leaves them to a wire that never comes, and DPDK's packet
    /// sockets do not say so.
    #[must_use]
    pub fn with_unfinished_checksums(self, unfinished: bool) -> SplitPort<P> {
        let mut port = self;
        port.unfinished = unfinished;
        port
    }

    /// Punts what is not the engine's of the packets from `from` on.
    fn sort(&mut self, frames: &mut FrameCache, burst: &mut Burst, from: usize) {
        let mut punted = 0u64;
        for (at, pkt) in burst.iter_mut().enumerate().skip(from) {
            if self.unfinished {
                complete_unfinished_frame(pkt.data_mut());
            }
            punted |= u64::from(!self.sieve.takes(pkt.data())) << at;
        }
        if punted != 0 {
            self.punt(frames, burst, punted);
        }
    }

    #[cold]
    fn punt(&mut self, frames: &mut FrameCache, burst: &mut Burst, punted: u64) {
        let mut kept = Burst::new();
        for (at, pkt) in burst.drain(..).enumerate() {
            if punted >> at & 1 == 0 {
                kept.push(pkt);
            } else if let Err(pkt) = self.host.to_host.put(pkt) {
                self.queue.counters().punt_no_room.add(1);
                frames.free(pkt);
            }
        }
        *burst = kept;
        self.host.to_host.publish();
        self.host.call.ring();
    }

    /// Sends what the host sends.
    #[inline]
    fn inject(&mut self, frames: &mut FrameCache) -> Result<(), PortError> {
        let Some(from_host) = &mut self.host.from_host else {
            return Ok(());
        };
        if from_host.ready(1) == 0 {
            return Ok(());
        }
        let host = from_host.drain(INJECTED_MAX);
        host.for_each(|pkt| self.injected.push(pkt));
        self.queue.tx_burst(frames, &mut self.injected)
    }
}

impl<P: Port> Port for SplitPort<P> {
    fn rx_burst(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Result<usize, PortError> {
        let before = burst.len();
        self.sieve.refresh();
        self.queue.rx_burst(frames, burst)?;
        if burst.len() > before {
            self.sort(frames, burst, before);
        }
        self.inject(frames)?;
        Ok(burst.len() - before)
    }

    fn tx_burst(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Result<(), PortError> {
        self.queue.tx_burst(frames, burst)
    }

    fn has_pending(&self) -> bool {
        self.queue.has_pending()
    }

    fn take_stale_source(&mut self) -> Option<IpAddr> {
        self.queue.take_stale_source()
    }

    fn counters(&self) -> &Arc<PortCounters> {
        self.queue.counters()
    }
}

impl<P: Port> Queue for SplitPort<P> {
    fn takes(&self, pkt: &PktBuf) -> bool {
        !pkt.is_empty()
    }

    fn is_polled(&self) -> bool {
        true
    }
}
