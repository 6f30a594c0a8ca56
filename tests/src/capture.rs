//! What is on the wire of a namespace, seen by a packet socket.

use patronus_netns::{Namespace, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, eth, recv, socket_with, sockopt};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Instant;

/// A UDP datagram that passed an interface of the namespace: outer and inner ones alike, as they were sent or received.
#[derive(Clone, Debug)]
pub struct Datagram {
    /// When it was read from the packet socket.
    pub at: Instant,
    /// From where.
    pub source: SocketAddr,
    /// Where to.
    pub target: SocketAddr,
    /// The IPv4 type of service or IPv6 traffic class: DSCP and ECN.
    pub tos: u8,
    /// The IPv4 "don't fragment" flag.
    pub dont_fragment: bool,
    /// What is behind the UDP header, as far as it fits the first fragment.
    pub payload: Vec<u8>,
}

/// What a WireGuard message is, by its first four bytes and its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Handshake initiation.
    Initiation,
    /// Handshake response.
    Response,
    /// Cookie reply.
    Cookie,
    /// Data of no bytes.
    Keepalive,
    /// Data.
    Data,
    /// Something else.
    Other,
}

impl Datagram {
    /// What kind of WireGuard message it looks like.
    pub fn kind(&self) -> Kind {
        let word = self.payload.first_chunk().map(|word| u32::from_le_bytes(*word));
        match (word, self.payload.len()) {
            (Some(1), 148) => Kind::Initiation,
            (Some(2), 92) => Kind::Response,
            (Some(3), 64) => Kind::Cookie,
            (Some(4), 32) => Kind::Keepalive,
            (Some(4), 33..) => Kind::Data,
            _ => Kind::Other,
        }
    }
}

/// A running capture. Not for heavy traffic: every packet of the namespace is copied.
pub struct Capture {
    tap: Arc<Tap>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Captures all UDP datagrams in `namespace` from now on.
    pub fn start(namespace: &Namespace) -> Result<Capture> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let open = || socket_with(AddressFamily::PACKET, SocketType::DGRAM, flags, Some(eth::ALL));
        let socket = namespace.run(open)??;
        let _ = sockopt::set_socket_recv_buffer_size_force(&socket, 8 << 20);
        let tap = Arc::new(Tap {
            socket,
            seen: Mutex::default(),
        });
        let stop = Arc::new(AtomicBool::new(false));
        let (collected, until) = (Arc::clone(&tap), Arc::clone(&stop));
        let thread = std::thread::spawn(move || collected.collect(&until));
        Ok(Capture {
            tap,
            stop,
            thread: Some(thread),
        })
    }

    /// Everything that was sent or received before this call.
    pub fn seen(&self) -> Vec<Datagram> {
        self.tap.drained().clone()
    }

    /// How many datagrams so far meet the condition.
    pub fn count(&self, condition: impl Fn(&Datagram) -> bool) -> usize {
        let seen = self.tap.drained();
        seen.iter().filter(|datagram| condition(datagram)).count()
    }

    /// Forgets what was seen so far.
    pub fn clear(&self) {
        self.tap.drained().clear();
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The packet socket and what came out of it. The thread keeps it from overflowing; who asks takes the rest out himself,
/// because the kernel has put a packet there before its sender's call returns.
struct Tap {
    socket: OwnedFd,
    seen: Mutex<Vec<Datagram>>,
}

impl Tap {
    fn drained(&self) -> MutexGuard<'_, Vec<Datagram>> {
        let mut buffer = vec![0; 1 << 17];
        let mut seen = self.seen.lock().expect("nobody panics with the lock");
        while let Ok((length, _)) = recv(&self.socket, &mut buffer[..], RecvFlags::empty()) {
            seen.extend(parse(&buffer[..length]));
        }
        seen
    }

    fn collect(&self, stop: &AtomicBool) {
        let pause = Timespec {
            tv_sec: 0,
            tv_nsec: 20_000_000,
        };
        while !stop.load(Ordering::Relaxed) {
            let _ = poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&pause));
            drop(self.drained());
        }
    }
}

fn parse(packet: &[u8]) -> Option<Datagram> {
    let (source, target, tos, dont_fragment, udp): (IpAddr, IpAddr, u8, bool, &[u8]) =
        match packet.first()? >> 4 {
            4 => {
                let later_fragment = u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff != 0;
                if *packet.get(9)? != 17 || later_fragment {
                    return None;
                }
                let [source, target] =
                    [12, 16].map(|at| packet.get(at..)?.first_chunk::<4>().copied().map(Ipv4Addr::from));
                let header = usize::from(packet[0] & 15) * 4;
                (
                    source?.into(),
                    target?.into(),
                    packet[1],
                    packet[6] & 0x40 != 0,
                    packet.get(header..)?,
                )
            }
            6 => {
                if *packet.get(6)? != 17 {
                    return None;
                }
                let [source, target] =
                    [8, 24].map(|at| packet.get(at..)?.first_chunk::<16>().copied().map(Ipv6Addr::from));
                let tos = packet[0] << 4 | packet[1] >> 4;
                (source?.into(), target?.into(), tos, false, packet.get(40..)?)
            }
            _ => return None,
        };
    let port = |at: usize| Some(u16::from_be_bytes([*udp.get(at)?, *udp.get(at + 1)?]));
    Some(Datagram {
        at: Instant::now(),
        source: SocketAddr::new(source, port(0)?),
        target: SocketAddr::new(target, port(2)?),
        tos,
        dont_fragment,
        payload: udp.get(8..)?.to_vec(),
    })
}
