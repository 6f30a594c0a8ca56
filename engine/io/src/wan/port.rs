//! The port of a WAN link over a NIC's queue: datagrams go past the kernel's network stack where that is possible, and through an ordinary UDP port where it is not.
//!
//! The ordinary one also reserves the UDP port, and takes what is left to the host: fragments, and packets with options. What cannot go out by the queue goes out by
//! it: paths whose way is not known yet, and datagrams that are too long for the path, which overtake shorter ones of their burst.

use std::net::IpAddr;
use std::ops::{Deref, DerefMut};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};

use arrayvec::ArrayVec;
use patronus_mem::{Burst, FrameCache, PktBuf, Unfinished};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::header;
use super::way::Ways;
use crate::udp::UdpPort;
use crate::{PORT_FDS, Port, PortCounters, PortError};

/// Bursts between two looks at the ordinary UDP port while the queue is never empty.
const KERNEL_EVERY: u32 = 8;
/// The same where the queue is polled, empty or not: a look is a system call, and what is left to the host is rare.
const KERNEL_EVERY_POLLS: u32 = 256;

/// A NIC's queue that carries a WAN link's frames: those with the engine's datagrams, and no others.
pub trait Queue: Port {
    /// Whether it can send this packet.
    fn takes(&self, pkt: &PktBuf) -> bool;

    /// Whether it has to be asked all the time, because no descriptor tells of what arrives.
    fn is_polled(&self) -> bool {
        false
    }
}

/// A queue whoever drives the NIC.
pub type AnyQueue = Box<dyn Queue + Send>;

impl Port for AnyQueue {
    fn rx_burst(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Result<usize, PortError> {
        (**self).rx_burst(frames, burst)
    }

    fn tx_burst(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Result<(), PortError> {
        (**self).tx_burst(frames, burst)
    }

    fn wait_fds(&self) -> ArrayVec<BorrowedFd<'_>, PORT_FDS> {
        (**self).wait_fds()
    }

    fn has_pending(&self) -> bool {
        (**self).has_pending()
    }

    fn take_stale_source(&mut self) -> Option<IpAddr> {
        (**self).take_stale_source()
    }

    fn finishes(&self, unfinished: Unfinished) -> bool {
        (**self).finishes(unfinished)
    }

    fn counters(&self) -> &Arc<PortCounters> {
        (**self).counters()
    }
}

impl Queue for AnyQueue {
    fn takes(&self, pkt: &PktBuf) -> bool {
        (**self).takes(pkt)
    }

    fn is_polled(&self) -> bool {
        (**self).is_polled()
    }
}

/// Where a queue is while no port has it. The slow path's, which may not open another one: a port comes and goes with its link.
pub struct QueuePlace<Q>(Arc<Mutex<Option<Q>>>);

impl<Q> Clone for QueuePlace<Q> {
    fn clone(&self) -> Self {
        QueuePlace(Arc::clone(&self.0))
    }
}

impl<Q> QueuePlace<Q> {
    /// The place of this queue, which is there.
    pub fn new(queue: Q) -> QueuePlace<Q> {
        QueuePlace(Arc::new(Mutex::new(Some(queue))))
    }

    /// Whether the queue is there.
    pub fn is_full(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Does something with the queue, if it is there.
    pub fn if_full<R>(&self, work: impl FnOnce(&mut Q) -> R) -> Option<R> {
        let mut place = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        place.as_mut().map(work)
    }

    /// The queue, if it is there.
    pub fn borrow(&self) -> Option<BorrowedQueue<Q>> {
        let queue = self.0.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some(BorrowedQueue {
            queue: Some(queue),
            place: self.clone(),
        })
    }
}

/// A queue that goes back to its place when this is dropped.
pub struct BorrowedQueue<Q> {
    /// None only while it is dropped.
    queue: Option<Q>,
    place: QueuePlace<Q>,
}

impl<Q> Deref for BorrowedQueue<Q> {
    type Target = Q;

    fn deref(&self) -> &Q {
        self.queue.as_ref().expect("there until the drop")
    }
}

impl<Q> DerefMut for BorrowedQueue<Q> {
    fn deref_mut(&mut self) -> &mut Q {
        self.queue.as_mut().expect("there until the drop")
    }
}

impl<Q> Drop for BorrowedQueue<Q> {
    fn drop(&mut self) {
        *self.place.0.lock().unwrap_or_else(PoisonError::into_inner) = self.queue.take();
    }
}

/// One worker's queue of a WAN link.
pub struct LinkPort<Q> {
    queue: BorrowedQueue<Q>,
    udp: UdpPort,
    ways: Ways,
    ifindex: u32,
    /// What leaves by the queue and through the kernel; empty between calls.
    by_queue: Burst,
    by_kernel: Burst,
    bursts: u32,
    counters: Arc<PortCounters>,
}

impl<Q: Queue> LinkPort<Q> {
    /// A port over a queue that lets the UDP port's datagrams through.
    pub fn new(queue: BorrowedQueue<Q>, udp: UdpPort, ways: Ways, ifindex: u32) -> LinkPort<Q> {
        LinkPort {
            queue,
            udp,
            ways,
            ifindex,
            by_queue: Burst::new(),
            by_kernel: Burst::new(),
            bursts: 0,
            counters: Arc::default(),
        }
    }

    /// The counters of the queue and of the ordinary UDP port, which say what became of the packets; those of the port itself
    /// tell what came by the queue and was whole.
    pub fn parts(&self) -> [&Arc<PortCounters>; 2] {
        [self.queue.counters(), self.udp.counters()]
    }

    fn by_queue(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Result<usize, PortError> {
        let before = burst.len();
        self.queue.rx_burst(frames, burst)?;
        let (ifindex, mut position, mut malformed) = (self.ifindex, 0, 0);
        burst.retain_or_free(frames, |pkt| {
            position += 1;
            let whole = position <= before || header::unwrap(pkt, ifindex);
            malformed += u64::from(!whole);
            whole
        });
        if malformed > 0 {
            self.queue.counters().rx_malformed.add(malformed);
        }
        let counters = &self.counters;
        let received = &burst.as_slice()[before..];
        if !received.is_empty() {
            counters.rx_calls.add(1);
            counters.rx_packets.add(received.len() as u64);
            counters
                .rx_bytes
                .add(received.iter().map(|pkt| pkt.len() as u64).sum());
        }
        Ok(received.len())
    }

    /// Whether the ordinary UDP port has anything: one system call in place of one for each of its sockets.
    fn kernel_has_some(&self) -> bool {
        if self.udp.has_pending() {
            return true;
        }
        let fds = self.udp.wait_fds();
        let mut fds: ArrayVec<PollFd<'_>, PORT_FDS> = fds
            .iter()
            .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
            .collect();
        // Interrupted: the next look finds it.
        poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }
}

impl<Q: Queue> Port for LinkPort<Q> {
    fn rx_burst(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Result<usize, PortError> {
        self.ways.listen();
        let received = self.by_queue(frames, burst)?;
        self.bursts = self.bursts.wrapping_add(1);
        let look = match self.queue.is_polled() {
            true => self.bursts.is_multiple_of(KERNEL_EVERY_POLLS),
            false => received == 0 || self.bursts.is_multiple_of(KERNEL_EVERY),
        };
        if look && burst.room() > 0 && self.kernel_has_some() {
            return Ok(received + self.udp.rx_burst(frames, burst)?);
        }
        Ok(received)
    }

    fn tx_burst(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Result<(), PortError> {
        self.ways.listen();
        // Asked each time: the device may be another one than a moment ago.
        let finishes = [Unfinished::UdpV4, Unfinished::UdpV6].map(|kind| self.queue.finishes(kind));
        for mut pkt in burst.drain(..) {
            let way = self.ways.to(pkt.outer()).filter(|_| self.queue.takes(&pkt));
            if way.is_some_and(|way| way.wrap(&mut pkt, finishes)) {
                self.by_queue.push(pkt);
            } else {
                self.by_kernel.push(pkt);
            }
        }
        // First: the one packet of a path that goes through the kernel to keep the neighbour checked is the path's first.
        let by_kernel = match self.by_kernel.is_empty() {
            true => Ok(()),
            false => self.udp.tx_burst(frames, &mut self.by_kernel),
        };
        let by_queue = match self.by_queue.is_empty() {
            true => Ok(()),
            false => self.queue.tx_burst(frames, &mut self.by_queue),
        };
        by_queue.and(by_kernel)
    }

    fn tx_whole(&mut self, frames: &mut FrameCache, burst: &mut Burst) -> Result<(), PortError> {
        self.ways.listen();
        for mut pkt in burst.drain(..) {
            let way = self.ways.to(pkt.outer()).filter(|_| self.queue.takes(&pkt));
            if way.is_some_and(|way| way.wrap(&mut pkt, [false; 2])) {
                header::keep_whole(&mut pkt);
                self.by_queue.push(pkt);
            } else {
                self.by_kernel.push(pkt);
            }
        }
        let by_kernel = self.udp.tx_whole(frames, &mut self.by_kernel);
        let by_queue = match self.by_queue.is_empty() {
            true => Ok(()),
            false => self.queue.tx_burst(frames, &mut self.by_queue),
        };
        by_queue.and(by_kernel)
    }

    /// None where the queue is polled, and the ordinary UDP port with it.
    fn wait_fds(&self) -> ArrayVec<BorrowedFd<'_>, PORT_FDS> {
        if self.queue.is_polled() {
            return ArrayVec::new();
        }
        let queue = self.queue.wait_fds();
        queue.into_iter().chain(self.udp.wait_fds()).collect()
    }

    fn has_pending(&self) -> bool {
        self.queue.has_pending() || self.udp.has_pending()
    }

    fn take_stale_source(&mut self) -> Option<IpAddr> {
        self.udp.take_stale_source()
    }

    fn counters(&self) -> &Arc<PortCounters> {
        &self.counters
    }
}
