//! The thread of an exception path: the one that calls the kernel for the host's packets.
//!
//! It sleeps while neither side has anything, but looks a few times a second at the NIC's link and the host interface's MTU, for which nobody calls it.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use patronus_mem::{Arena, FrameCache, PktBuf};
use patronus_sync::{Bell, Consumer, Producer, ring};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::split::Call;
use super::{HostInterface, HostSide, RING};
use crate::PortCounters;

/// Packets in each direction between two looks at the other one.
const PACKETS_PER_TURN: usize = 16;
/// Between two looks at link and MTU.
const FOLLOW_EVERY: Duration = Duration::from_millis(50);
/// When to try again what the worker, or the arena, had no room for.
const AGAIN: Duration = Duration::from_millis(1);
/// Bytes of the largest frame: an IP packet of 65,535 and its Ethernet header with two VLAN tags.
const FRAME_MAX: usize = 65_535 + 22;

/// The NIC that a host interface stands for, as the thread of its exception path sees it.
pub trait Nic: Send {
    /// Its link address.
    fn mac(&self) -> [u8; 6];
    /// Bytes of the largest packet behind the Ethernet header.
    fn mtu(&self) -> u32;
    /// Another one, that an administrator has set on the host interface. An error: it stays as it is.
    fn set_mtu(&self, mtu: u32) -> io::Result<()>;
    /// Whether its link is up.
    fn is_up(&self) -> bool;
}

/// What happens to a host interface, for a log.
#[derive(Debug)]
pub enum Exception {
    /// The NIC's link is up or down, and the carrier with it.
    Carrier(bool),
    /// The NIC has the MTU that was set on the host interface.
    Mtu(u32),
    /// It cannot have this one, for this reason: the host interface has this other one again.
    MtuRefused(u32, io::Error, u32),
    /// Somebody deleted the host interface: the host is cut off from the NIC.
    Gone,
}

/// The exception path of one NIC, before anybody runs it. With it goes the host interface.
pub struct ExceptionPath {
    host: HostInterface,
    nic: Box<dyn Nic>,
    /// Of the workers' ends: what they punt, and what they send for the host.
    from_nic: Vec<Consumer<PktBuf>>,
    to_nic: Producer<PktBuf>,
    arena: &'static Arena,
    call: Arc<Call>,
}

impl ExceptionPath {
    /// Makes the host interface of a NIC with so many queues. Returns also the ends for the workers' ports, by queue. Needs CAP_NET_ADMIN.
    pub fn create(
        name: &str,
        nic: Box<dyn Nic>,
        queues: usize,
        arena: &'static Arena,
    ) -> io::Result<(ExceptionPath, Vec<HostSide>)> {
        let call = Arc::new(Call {
            bell: Bell::new(),
            fd: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
            stop: AtomicBool::new(false),
        });
        let host = HostInterface::create(name, nic.mac(), nic.mtu())?;
        let (to_nic, from_host) = ring(RING);
        let mut from_host = Some(from_host);
        let (mut from_nic, mut sides) = (Vec::new(), Vec::new());
        for _ in 0..queues {
            let (to_host, punted) = ring(RING);
            from_nic.push(punted);
            sides.push(HostSide {
                to_host,
                from_host: from_host.take(),
                call: Arc::clone(&call),
            });
        }
        let path = ExceptionPath {
            host,
            nic,
            from_nic,
            to_nic,
            arena,
            call,
        };
        Ok((path, sides))
    }

    /// The host interface.
    pub fn host(&self) -> &HostInterface {
        &self.host
    }

    /// Runs it on a thread of its own, which looks at the time by `now` and says by `say` what happens. Changing an MTU back needs CAP_NET_ADMIN.
    pub fn start(
        self,
        now: fn() -> Instant,
        say: impl FnMut(Exception) + Send + 'static,
    ) -> io::Result<RunningPath> {
        let counters = Arc::<PortCounters>::default();
        let call = Arc::clone(&self.call);
        let pump = Pump {
            mtu: self.nic.mtu(),
            mac: self.nic.mac(),
            carrier: false,
            host: self.host,
            nic: self.nic,
            from_nic: self.from_nic,
            to_nic: self.to_nic,
            due: now(),
            now,
            frames: FrameCache::new(self.arena),
            buffer: vec![0; FRAME_MAX].into(),
            counters: Arc::clone(&counters),
            call: self.call,
        };
        let thread = std::thread::Builder::new().name("exception".to_owned());
        let thread = thread.spawn(move || pump.run(say))?;
        Ok(RunningPath {
            call,
            counters,
            thread: Some(thread),
        })
    }
}

/// An exception path that runs until this is dropped; the host interface goes with it.
pub struct RunningPath {
    call: Arc<Call>,
    counters: Arc<PortCounters>,
    /// None only while it is dropped.
    thread: Option<JoinHandle<()>>,
}

impl RunningPath {
    /// What was received from the host and handed to it, and what was not.
    pub fn counters(&self) -> &Arc<PortCounters> {
        &self.counters
    }
}

impl Drop for RunningPath {
    fn drop(&mut self) {
        self.call.stop.store(true, Ordering::Relaxed);
        self.call.wake();
        // A panic of its own was said on the standard error output.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The thread and all that it owns.
struct Pump {
    host: HostInterface,
    nic: Box<dyn Nic>,
    from_nic: Vec<Consumer<PktBuf>>,
    to_nic: Producer<PktBuf>,
    /// What the host interface has been told, or what the NIC has.
    carrier: bool,
    mtu: u32,
    mac: [u8; 6],
    /// When to look at both again.
    due: Instant,
    now: fn() -> Instant,
    frames: FrameCache,
    buffer: Box<[u8]>,
    counters: Arc<PortCounters>,
    call: Arc<Call>,
}

/// What a turn has come to.
#[derive(PartialEq, Eq)]
enum Turn {
    /// There may be more.
    Busy,
    /// Nobody has anything.
    Idle,
    /// The host has something, and there is no room for it.
    Full,
    /// The host interface was deleted.
    Gone,
}

impl Pump {
    fn run(mut self, mut say: impl FnMut(Exception)) {
        while !self.call.is_over() {
            let now = (self.now)();
            if now >= self.due {
                self.follow(&mut say);
                self.due = now + FOLLOW_EVERY;
            }
            match self.turn() {
                Turn::Busy => {}
                Turn::Idle => self.sleep(now, true),
                Turn::Full => self.sleep(now, false),
                Turn::Gone => return say(Exception::Gone),
            }
        }
    }

    /// Makes link address, carrier and MTU of the two ends agree.
    fn follow(&mut self, say: &mut impl FnMut(Exception)) {
        // Before the carrier: a device that comes may have another one than the one before.
        let mac = self.nic.mac();
        if mac != self.mac && self.host.set_mac(mac).is_ok() {
            self.mac = mac;
        }
        let up = self.nic.is_up();
        if up != self.carrier && self.host.set_carrier(up).is_ok() {
            self.carrier = up;
            say(Exception::Carrier(up));
        }
        // Not to be found: it is gone, or in another namespace where we do not look.
        let Ok(wanted) = self.host.mtu() else { return };
        if wanted == self.mtu {
            return;
        }
        match self.nic.set_mtu(wanted) {
            Ok(()) => {
                self.mtu = wanted;
                say(Exception::Mtu(wanted));
            }
            Err(error) => {
                if self.host.set_mtu(self.mtu).is_ok() {
                    say(Exception::MtuRefused(wanted, error, self.mtu));
                }
            }
        }
    }

    /// A few packets each way.
    fn turn(&mut self) -> Turn {
        let mut turn = Turn::Idle;
        for at in 0..self.from_nic.len() {
            for _ in 0..PACKETS_PER_TURN {
                let Some(pkt) = self.from_nic[at].pop() else { break };
                turn = Turn::Busy;
                self.deliver(pkt);
            }
        }
        for _ in 0..PACKETS_PER_TURN {
            match self.fetch() {
                Turn::Busy => turn = Turn::Busy,
                Turn::Gone => return Turn::Gone,
                Turn::Full if turn == Turn::Idle => return Turn::Full,
                Turn::Full | Turn::Idle => break,
            }
        }
        turn
    }

    /// A packet for the host.
    fn deliver(&mut self, pkt: PktBuf) {
        let counters = &self.counters;
        match self.host.write(pkt.data()) {
            Ok(()) => {
                counters.tx_calls.add(1);
                counters.tx_packets.add(1);
                counters.tx_bytes.add(pkt.len() as u64);
            }
            // The interface is down; or has no carrier.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => counters.tx_down.add(1),
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => counters.tx_no_buffer.add(1),
            Err(_) => counters.tx_error.add(1),
        }
        self.frames.free(pkt);
    }

    /// A packet of the host's.
    fn fetch(&mut self) -> Turn {
        if self.to_nic.room(1) == 0 {
            return Turn::Full;
        }
        let len = match self.host.read(&mut self.buffer) {
            Ok(len) => len,
            Err(error) if error.raw_os_error() == Some(libc::EBADFD) => return Turn::Gone,
            Err(_) => return Turn::Idle,
        };
        let counters = &self.counters;
        let Some(mut pkt) = self.frames.alloc_for(len) else {
            counters.rx_no_frame.add(1);
            return Turn::Full;
        };
        pkt.append(len).copy_from_slice(&self.buffer[..len]);
        counters.rx_calls.add(1);
        counters.rx_packets.add(1);
        counters.rx_bytes.add(len as u64);
        match self.to_nic.push(pkt) {
            Ok(()) => Turn::Busy,
            Err(pkt) => {
                self.frames.free(pkt);
                Turn::Full
            }
        }
    }

    /// Waits until somebody calls, the host sends if that is to be looked at, or there is something to look at.
    fn sleep(&mut self, now: Instant, host: bool) {
        // Nobody else could use what a sleeper has.
        self.frames.flush();
        self.call.bell.lie_down();
        let punted = self.from_nic.iter_mut().any(|ring| ring.ready(1) > 0);
        if !punted && !self.call.is_over() {
            let until = self.due.saturating_duration_since(now);
            let limit = if host { until } else { until.min(AGAIN) };
            let limit = Timespec::try_from(limit).unwrap_or_default();
            let mut fds = [
                PollFd::new(&self.call.fd, PollFlags::IN),
                PollFd::from_borrowed_fd(self.host.as_fd(), PollFlags::IN),
            ];
            let fds = &mut fds[..if host { 2 } else { 1 }];
            if poll(fds, Some(&limit)).is_ok_and(|ready| ready > 0) {
                let mut count = [0; 8];
                // Nothing to read: the host it was.
                let _ = rustix::io::read(&self.call.fd, &mut count);
            }
        }
        self.call.bell.get_up();
    }
}
