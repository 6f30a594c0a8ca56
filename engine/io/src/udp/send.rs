//! Sending: a burst becomes messages ([`plan`](super::plan)), all of which go out in as few calls as possible. Whatever the
//! kernel refuses is tried in the next simpler way, and counted when there is none.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use arrayvec::ArrayVec;
use patronus_mem::{BURST_MAX, Burst, Outer};

use super::message::{Control, Name};
use super::path::PathSocket;
use super::plan::{Message, Plan};
use super::socket::{self, Pair};
use crate::scratch::Scratch;
use crate::{PortCounters, sys};

/// Packets up to this length that share a message are copied one behind the other: for the kernel one more vector costs more than
/// copying so few bytes costs us.
const PACKED_MAX: usize = 512;

/// Refused source addresses that are remembered until they are asked for.
const STALE_SOURCES: usize = 4;

pub(super) struct Transmitter {
    plan: Plan,
    names: Box<[Name; BURST_MAX]>,
    controls: Box<[Control; BURST_MAX]>,
    headers: Headers,
    /// The short packets of messages of several.
    packed: Scratch,
    /// For each header its message in the plan.
    order: ArrayVec<u8, BURST_MAX>,
    /// For each family, whether the kernel segments.
    segments: [bool; 2],
    stale: ArrayVec<IpAddr, STALE_SOURCES>,
}

/// The arguments of the system call. The pointers are written before each burst and not used after it.
struct Headers {
    messages: Box<[libc::mmsghdr; BURST_MAX]>,
    vectors: Box<[libc::iovec; BURST_MAX]>,
}

// SAFETY: the pointers are dead between bursts.
unsafe impl Send for Headers {}

/// What became of the messages of the connected path.
struct OverPath {
    /// Those before this number in the plan have gone.
    until: usize,
    /// Whether the connection should be given up.
    broken: bool,
}

/// What an error may mean.
enum Refused {
    /// It says nothing about this message: try again.
    Again,
    /// The system has no room at the moment.
    NoRoom,
    /// No way there; perhaps only not from that source address.
    Source,
    /// Segments that are too long for the path, or a source address that is not ours.
    SegmentOrSource,
    /// The device cannot segment.
    NoSegments,
    /// There is no way to send this.
    Final,
}

fn classify(error: &io::Error) -> Refused {
    match error.raw_os_error() {
        // ECONNREFUSED is an earlier datagram's fate.
        Some(libc::ECONNREFUSED | libc::EINTR) => Refused::Again,
        Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => Refused::NoRoom,
        Some(libc::EADDRNOTAVAIL | libc::ENETUNREACH | libc::EHOSTUNREACH) => Refused::Source,
        Some(libc::EINVAL | libc::EMSGSIZE) => Refused::SegmentOrSource,
        Some(libc::EIO) => Refused::NoSegments,
        _ => Refused::Final,
    }
}

fn count_drop(counters: &PortCounters, error: &io::Error, packets: u64) {
    let counter = match error.raw_os_error() {
        Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => &counters.tx_no_buffer,
        Some(libc::EMSGSIZE) => &counters.tx_too_big,
        Some(libc::EPERM | libc::EACCES) => &counters.tx_forbidden,
        Some(libc::ENETDOWN) => &counters.tx_down,
        Some(
            libc::ENETUNREACH
            | libc::EHOSTUNREACH
            | libc::EADDRNOTAVAIL
            | libc::EAFNOSUPPORT
            | libc::EINVAL
            | libc::ENONET
            | libc::EHOSTDOWN,
        ) => &counters.tx_unreachable,
        _ => &counters.tx_error,
    };
    counter.add(packets);
}

/// What the kernel shall read.
fn vector(data: &[u8]) -> libc::iovec {
    libc::iovec {
        iov_base: data.as_ptr().cast_mut().cast(),
        iov_len: data.len(),
    }
}

/// Copies the packets one behind the other; together they are as long as `all`.
fn pack<'a>(packets: impl Iterator<Item = &'a [u8]>, mut all: &mut [u8]) {
    for data in packets {
        let (space, rest) = all.split_at_mut(data.len());
        space.copy_from_slice(data);
        all = rest;
    }
}

impl Transmitter {
    pub(super) fn new(offload: bool) -> Transmitter {
        Transmitter {
            plan: Plan::new(),
            names: Box::new([Name::EMPTY; BURST_MAX]),
            controls: Box::new([Control::EMPTY; BURST_MAX]),
            headers: Headers {
                // SAFETY: both are plain structures of integers and pointers, for which zero is a value.
                messages: Box::new(unsafe { std::mem::zeroed() }),
                // SAFETY: as above.
                vectors: Box::new(unsafe { std::mem::zeroed() }),
            },
            packed: Scratch::new(BURST_MAX * PACKED_MAX),
            order: ArrayVec::new(),
            segments: [offload; 2],
            stale: ArrayVec::new(),
        }
    }

    pub(super) fn take_stale_source(&mut self) -> Option<IpAddr> {
        self.stale.pop()
    }

    pub(super) fn segments(&self, ipv6: bool) -> bool {
        self.segments[usize::from(ipv6)]
    }

    /// Sends the burst's packets; they stay in the burst for the caller to free.
    pub(super) fn transmit(
        &mut self,
        sockets: &Pair,
        path: &mut PathSocket,
        burst: &Burst,
        counters: &PortCounters,
    ) {
        self.plan.clear();
        for (index, pkt) in burst.iter().enumerate() {
            let outer = pkt.outer();
            if outer.is_none() || sockets.of(outer.is_ipv6()).is_none() {
                counters.tx_unreachable.add(1);
                continue;
            }
            self.plan.add(
                index,
                outer,
                pkt.len(),
                self.segments[usize::from(outer.is_ipv6())],
            );
        }
        let over_path = self.send_over_path(path, burst, counters);
        for ipv6 in [false, true] {
            let Some(listener) = sockets.of(ipv6) else {
                continue;
            };
            let select = |index, outer: &Outer| {
                let gone = index < over_path.until && path.of(outer).is_some();
                outer.is_ipv6() == ipv6 && !gone
            };
            if self.point_headers(burst, true, select) > 0 {
                self.send_all(listener, burst, counters);
            }
        }
        // Only now: until here the connection tells which messages have gone already.
        if over_path.broken {
            path.disconnect();
        }
        for message in self.plan.messages() {
            if let Some(listener) = sockets.of(message.outer.is_ipv6()) {
                path.note(listener, &message.outer);
            }
        }
    }

    /// Sends the messages of the connected path until one is refused. What refuses it may be the connection or an error
    /// that an earlier datagram met on its way, so it and those behind it are left to the listener.
    fn send_over_path(&mut self, path: &PathSocket, burst: &Burst, counters: &PortCounters) -> OverPath {
        let mut over_path = OverPath {
            until: usize::MAX,
            broken: false,
        };
        let Some(socket) = path.connected() else {
            return over_path;
        };
        if self.point_headers(burst, false, |_, outer| path.of(outer).is_some()) > 0
            && let Err((refused, error)) = self.send_from(0, socket, &mut Patience::new(), counters)
        {
            over_path.until = usize::from(self.order[refused]);
            over_path.broken = !matches!(classify(&error), Refused::NoRoom);
        }
        over_path
    }

    /// Writes a header for every message that `select` chooses by its number and path, with its addresses if `addressed`: a
    /// connected socket has its own. Returns how many there are.
    fn point_headers(
        &mut self,
        burst: &Burst,
        addressed: bool,
        select: impl Fn(usize, &Outer) -> bool,
    ) -> usize {
        self.order.clear();
        let mut vectors = 0;
        let mut packed = &mut self.packed[..];
        for (index, message) in self.plan.messages().iter().enumerate() {
            let Some(remote) = message.outer.remote().filter(|_| select(index, &message.outer)) else {
                continue;
            };
            let at = self.order.len();
            let first_vector = vectors;
            let packets = self.plan.packets(message).map(|packet| burst[packet].data());
            if message.packets > 1 && usize::from(message.segment) <= PACKED_MAX {
                let all;
                (all, packed) = packed.split_at_mut(message.bytes as usize);
                pack(packets, all);
                self.headers.vectors[vectors] = vector(all);
                vectors += 1;
            } else {
                for data in packets {
                    self.headers.vectors[vectors] = vector(data);
                    vectors += 1;
                }
            }
            let header = &mut self.headers.messages[at].msg_hdr;
            (header.msg_name, header.msg_namelen) = (std::ptr::null_mut(), 0);
            if addressed {
                header.msg_namelen = self.names[at].set(remote) as _;
                header.msg_name = self.names[at].0.as_mut_ptr().cast();
            }
            header.msg_iov = self.headers.vectors[first_vector..].as_mut_ptr();
            header.msg_iovlen = (vectors - first_vector) as _;
            let segment = if message.packets > 1 { message.segment } else { 0 };
            // For IPv6 only this says that the address is not ours any more: the kernel does not look at a connected socket's.
            let source = addressed || message.outer.is_ipv6();
            header.msg_controllen = self.controls[at].set(&message.outer, source, segment) as _;
            header.msg_control = self.controls[at].0.as_mut_ptr().cast();
            self.order.push(index as u8);
        }
        self.order.len()
    }

    fn message(&self, at: usize) -> Message {
        self.plan.messages()[usize::from(self.order[at])]
    }

    /// Sends the messages that the headers describe, each as well as the kernel lets us.
    fn send_all(&mut self, socket: &OwnedFd, burst: &Burst, counters: &PortCounters) {
        let mut patience = Patience::new();
        let mut at = 0;
        while let Err((refused, error)) = self.send_from(at, socket, &mut patience, counters) {
            self.send_otherwise(socket, burst, refused, error, &mut patience, counters);
            at = refused + 1;
        }
    }

    /// Sends the messages that the headers describe, from number `at` on, until one is refused: its number and why.
    fn send_from(
        &mut self,
        mut at: usize,
        socket: &OwnedFd,
        patience: &mut Patience,
        counters: &PortCounters,
    ) -> Result<(), (usize, io::Error)> {
        while at < self.order.len() {
            // SAFETY: `point_headers` has just set the first `order.len()` headers to buffers of `self` and to packets of
            // a burst that is borrowed until all are sent; the kernel only reads them.
            match unsafe {
                sys::send_messages(socket.as_fd(), &mut self.headers.messages[at..self.order.len()])
            } {
                Ok(sent) => {
                    counters.tx_calls.add(1);
                    for sent in at..at + sent {
                        let message = self.message(sent);
                        counters.tx_packets.add(u64::from(message.packets));
                        counters.tx_bytes.add(u64::from(message.bytes));
                    }
                    at += sent;
                }
                Err(error) if patience.retry(socket, &error) => {}
                Err(error) => return Err((at, error)),
            }
        }
        Ok(())
    }

    /// Sends message `at`, which the kernel refused as it is, in the next simpler way: packet by packet, and without its source
    /// address if it is that.
    #[cold]
    fn send_otherwise(
        &mut self,
        socket: &OwnedFd,
        burst: &Burst,
        at: usize,
        error: io::Error,
        patience: &mut Patience,
        counters: &PortCounters,
    ) {
        let message = self.message(at);
        let several = message.packets > 1;
        let source = message.outer.local();
        match classify(&error) {
            Refused::Source if source.is_some() => {}
            Refused::SegmentOrSource if several || source.is_some() => {}
            Refused::NoSegments if several => {
                self.segments[usize::from(message.outer.is_ipv6())] = false;
            }
            _ => return count_drop(counters, &error, u64::from(message.packets)),
        }
        let (mut as_it_is, mut without_source) = (false, false);
        for packet in self.plan.packets(&message) {
            let data = burst[packet].data();
            match send_patiently(socket, &message.outer, data, patience) {
                Ok(with_source) => {
                    counters.tx_calls.add(1);
                    counters.tx_packets.add(1);
                    counters.tx_bytes.add(data.len() as u64);
                    as_it_is |= with_source;
                    without_source |= !with_source;
                }
                Err(error) => count_drop(counters, &error, 1),
            }
        }
        if as_it_is && several && matches!(classify(&error), Refused::SegmentOrSource) {
            self.plan.refuse_segment(&message.outer, message.segment);
        }
        if let Some(source) = source.filter(|ip| without_source && !self.stale.contains(ip)) {
            // If the list is full, the address is refused and reported another time.
            let _ = self.stale.try_push(source);
        }
    }
}

/// How often an error that may pass is answered by another try: a burst waits once and tries again a few times.
struct Patience {
    waited: bool,
    again: u8,
}

impl Patience {
    const AGAIN: u8 = 8;

    fn new() -> Patience {
        Patience {
            waited: false,
            again: Patience::AGAIN,
        }
    }

    /// True if the same call should be made again; waits if the system has no room.
    fn retry(&mut self, socket: &OwnedFd, error: &io::Error) -> bool {
        match classify(error) {
            Refused::Again if self.again > 0 => {
                self.again -= 1;
                true
            }
            Refused::NoRoom if !self.waited => {
                self.waited = true;
                sys::wait_writable(socket);
                true
            }
            _ => false,
        }
    }
}

/// Sends one datagram, again if the error may pass. True as for `send_datagram`.
fn send_patiently(socket: &OwnedFd, outer: &Outer, data: &[u8], patience: &mut Patience) -> io::Result<bool> {
    loop {
        match send_datagram(socket.as_fd(), outer, data) {
            Err(error) if patience.retry(socket, &error) => {}
            result => return result,
        }
    }
}

/// Sends datagrams, one by one, that nobody may cut up. The socket is as before afterwards: what the slow path sends by it meanwhile is short.
#[cold]
pub(super) fn send_whole(sockets: &Pair, burst: &Burst, counters: &PortCounters) {
    for pkt in burst {
        let outer = pkt.outer();
        let socket = sockets.of(outer.is_ipv6()).filter(|_| !outer.is_none());
        let Some(socket) = socket else {
            counters.tx_unreachable.add(1);
            continue;
        };
        let whole = |whole| socket::set_whole(socket.as_fd(), outer.is_ipv6(), whole);
        let sent = whole(true).and_then(|()| {
            let sent = send_patiently(socket, outer, pkt.data(), &mut Patience::new());
            whole(false).and(sent)
        });
        match sent {
            Ok(_) => {
                counters.tx_calls.add(1);
                counters.tx_packets.add(1);
                counters.tx_bytes.add(pkt.len() as u64);
            }
            Err(error) => count_drop(counters, &error, 1),
        }
    }
}

/// Sends one datagram for the slow path.
pub(super) fn send_single(socket: &OwnedFd, outer: &Outer, data: &[u8]) -> io::Result<()> {
    send_patiently(socket, outer, data, &mut Patience::new()).map(|_| ())
}

/// Sends one datagram, without its source address if the kernel refuses it with that. True if the source was used (or none is
/// set).
fn send_datagram(fd: BorrowedFd<'_>, outer: &Outer, data: &[u8]) -> io::Result<bool> {
    match send_as(fd, outer, true, data) {
        Err(error)
            if outer.local().is_some()
                && matches!(classify(&error), Refused::Source | Refused::SegmentOrSource) =>
        {
            send_as(fd, outer, false, data).map(|()| false)
        }
        result => result.map(|()| true),
    }
}

fn send_as(fd: BorrowedFd<'_>, outer: &Outer, source: bool, data: &[u8]) -> io::Result<()> {
    let remote = outer.remote().ok_or(io::ErrorKind::NetworkUnreachable)?;
    let mut name = Name::EMPTY;
    let mut control = Control::EMPTY;
    let mut vector = libc::iovec {
        iov_base: data.as_ptr().cast_mut().cast(),
        iov_len: data.len(),
    };
    // SAFETY: a plain structure of integers and pointers, for which zero is a value.
    let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
    let header = &mut message.msg_hdr;
    header.msg_namelen = name.set(remote) as _;
    header.msg_name = name.0.as_mut_ptr().cast();
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    header.msg_controllen = control.set(outer, source, 0) as _;
    header.msg_control = control.0.as_mut_ptr().cast();
    // SAFETY: the header points to local variables and to `data`, which is borrowed; the kernel only reads them.
    unsafe { sys::send_messages(fd, std::slice::from_mut(&mut message)) }.map(|_| ())
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Duration;

    use patronus_mem::{Arena, ArenaConfig, FrameCache};

    use super::super::{UdpConfig, UdpSockets};
    use super::*;

    /// Ten packets to one receiver, as one message, and what a kernel that answers `errno` to it makes of them.
    fn refused_with(errno: libc::c_int, local: Option<&str>) -> (Transmitter, PortCounters, usize) {
        let config = UdpConfig {
            ifindex: 0,
            port: 0,
            workers: 1,
            fwmark: 0,
            buffer_bytes: 1 << 20,
            offload: true,
        };
        let sockets = UdpSockets::bind(&config)
            .expect("sockets")
            .workers
            .remove(0)
            .listeners;
        let client = UdpSocket::bind("127.0.0.1:0").expect("client");
        client
            .set_read_timeout(Some(Duration::from_millis(200)))
            .expect("timeout");
        let mut outer = Outer::new(client.local_addr().expect("address"));
        outer.set_local(local.map(|ip| ip.parse().expect("address")), 0);

        let arena = Arena::new(&ArenaConfig {
            frames: 16,
            jumbo_frames: 0,
        })
        .expect("arena");
        let mut frames = FrameCache::new(arena);
        let mut burst = Burst::new();
        let (mut transmitter, counters) = (Transmitter::new(true), PortCounters::default());
        for n in 0..10 {
            let mut pkt = frames.alloc().expect("a frame");
            pkt.append(100).fill(n);
            *pkt.outer_mut() = outer;
            transmitter.plan.add(usize::from(n), &outer, 100, true);
            burst.push(pkt);
        }
        assert_eq!(transmitter.point_headers(&burst, true, |_, _| true), 1);
        let socket = sockets.of(false).expect("a socket");
        let error = io::Error::from_raw_os_error(errno);
        transmitter.send_otherwise(socket, &burst, 0, error, &mut Patience::new(), &counters);

        let mut arrived = 0;
        let mut data = [0; 200];
        while arrived < 10 && client.recv(&mut data).is_ok() {
            assert_eq!(data[..100], [arrived; 100], "in order");
            arrived += 1;
        }
        (transmitter, counters, arrived.into())
    }

    #[test]
    fn c72_eio_switches_segmentation_off_and_loses_nothing() {
        let (transmitter, counters, arrived) = refused_with(libc::EIO, None);
        assert_eq!(
            (arrived, counters.tx_packets.get(), counters.tx_bytes.get()),
            (10, 10, 1000)
        );
        assert!(!transmitter.segments(false) && transmitter.segments(true));
    }

    #[test]
    fn c72_refused_segment_size_goes_singly_and_is_remembered() {
        for errno in [libc::EINVAL, libc::EMSGSIZE] {
            for local in [None, Some("127.0.0.1")] {
                let (mut transmitter, counters, arrived) = refused_with(errno, local);
                assert_eq!((arrived, counters.tx_packets.get()), (10, 10));
                assert!(transmitter.segments(false) && transmitter.take_stale_source().is_none());
                let outer = transmitter.message(0).outer;
                transmitter.plan.clear();
                (0..10).for_each(|n| transmitter.plan.add(n, &outer, 100, true));
                assert_eq!(transmitter.plan.messages().len(), 10);
            }
        }
    }

    #[test]
    fn c60_refused_source_is_left_out() {
        for errno in [libc::EINVAL, libc::EADDRNOTAVAIL, libc::ENETUNREACH] {
            let (mut transmitter, counters, arrived) = refused_with(errno, Some("192.0.2.77"));
            assert_eq!((arrived, counters.tx_packets.get()), (10, 10));
            assert_eq!(transmitter.take_stale_source(), Some([192, 0, 2, 77].into()));
            assert_eq!(transmitter.take_stale_source(), None);
        }
    }

    #[test]
    fn c72_every_other_refusal_is_a_named_drop() {
        let cases = [
            (libc::EAGAIN, "tx_no_buffer"),
            (libc::ENOBUFS, "tx_no_buffer"),
            (libc::EPERM, "tx_forbidden"),
            (libc::EACCES, "tx_forbidden"),
            (libc::ENETUNREACH, "tx_unreachable"),
            (libc::EHOSTUNREACH, "tx_unreachable"),
            (libc::ENETDOWN, "tx_down"),
            (libc::EBADF, "tx_error"),
        ];
        for (errno, name) in cases {
            let (_, counters, arrived) = refused_with(errno, None);
            assert_eq!((arrived, counters.tx_packets.get()), (0, 0));
            let drops: Vec<_> = counters.drops().filter(|(_, value)| *value > 0).collect();
            assert_eq!(drops, [(name, 10)]);
        }
    }

    #[test]
    fn c72_patience_has_an_end() {
        let socket: OwnedFd = UdpSocket::bind("127.0.0.1:0").expect("socket").into();
        let mut patience = Patience::new();
        let error = |errno| io::Error::from_raw_os_error(errno);
        assert!(patience.retry(&socket, &error(libc::ENOBUFS)), "once");
        assert!(
            !patience.retry(&socket, &error(libc::EAGAIN)),
            "and no more in this burst"
        );
        let again = (0..100)
            .take_while(|_| patience.retry(&socket, &error(libc::ECONNREFUSED)))
            .count();
        assert_eq!(again, usize::from(Patience::AGAIN));
        assert!(!Patience::new().retry(&socket, &error(libc::EPERM)));
    }
}
