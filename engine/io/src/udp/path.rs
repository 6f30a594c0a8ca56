//! The path socket: beside the sockets that serve everyone, a connected one for the path that this worker sends to most.
//!
//! For every datagram through a socket that is not connected the kernel looks up the route, on send and on receive, and
//! checks the source address; through a connected one (connect(2), udp(7)) it uses the route that it found last while that is valid.
//! A client has one peer, and a busy path is busy for many messages in a row, so one path at a time is enough.
//!
//! The path socket is bound to the same UDP port as the others. The kernel prefers it for datagrams of its path and passes
//! it over for all others; while it is bound and not connected it may be given any other as well, in place of the listener. Every datagram
//! names its own addresses, so the receiver does not care where it came in. With several workers that would take
//! the others' share, so only a single worker has path sockets.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use patronus_mem::Outer;

use super::socket::{self, Pair};

/// So many messages in a row to a path, and none to the connected one, give it the path socket.
const STREAK: u32 = 64;

/// The path to which the socket could not be connected last is tried again after so many messages in a row.
const RETRY: u32 = 1 << 16;

pub(super) struct PathSocket {
    /// One for each family, because the family of a socket is for life. Bound when first wanted.
    sockets: Pair,
    bound: [bool; 2],
    /// The path that one of them is connected to.
    connected: Option<Outer>,
    /// The path of the last message to another one, and how many there were in a row.
    candidate: Outer,
    streak: u32,
    /// The path to which the socket could not be connected last.
    refused: Outer,
}

impl PathSocket {
    pub(super) fn new(sockets: Pair) -> PathSocket {
        PathSocket {
            sockets,
            bound: [false; 2],
            connected: None,
            candidate: Outer::NONE,
            streak: 0,
            refused: Outer::NONE,
        }
    }

    /// The socket, if it is connected.
    pub(super) fn connected(&self) -> Option<&OwnedFd> {
        self.sockets.of(self.connected?.is_ipv6())
    }

    /// The socket, if it is connected to that path.
    #[inline]
    pub(super) fn of(&self, outer: &Outer) -> Option<&OwnedFd> {
        self.connected
            .filter(|path| path.same_path(outer))
            .and_then(|path| self.sockets.of(path.is_ipv6()))
    }

    /// What may have received something: nothing can come in before the socket is bound.
    #[inline]
    pub(super) fn receiving(&self, ipv6: bool) -> Option<&OwnedFd> {
        self.sockets.of(ipv6).filter(|_| self.bound[usize::from(ipv6)])
    }

    pub(super) fn sockets(&self) -> &Pair {
        &self.sockets
    }

    /// A message went to `outer`. The last of a long streak to another path than the connected one gives that path the
    /// socket; `listener` is the one that serves everyone in that family.
    #[inline]
    pub(super) fn note(&mut self, listener: &OwnedFd, outer: &Outer) {
        if self.of(outer).is_some() {
            self.streak = 0;
            return;
        }
        if !outer.same_path(&self.candidate) {
            (self.candidate, self.streak) = (*outer, 0);
        }
        self.streak += 1;
        if self.streak == STREAK && !self.refused.same_path(outer) {
            self.connect(listener, outer);
        } else if self.streak == RETRY {
            (self.streak, self.refused) = (0, Outer::NONE);
        }
    }

    /// Gives `outer` the socket, if the kernel answers that path from the same address on its own: a source that is not the
    /// kernel's choice must be said with every datagram. A path without a known source stays with the listener,
    /// where the kernel may choose another one at any time.
    #[cold]
    fn connect(&mut self, listener: &OwnedFd, outer: &Outer) {
        let ipv6 = outer.is_ipv6();
        let (Some(remote), Some(local)) = (outer.remote(), outer.local()) else {
            return;
        };
        if is_link_local(local) || is_link_local(remote.ip()) {
            return;
        }
        self.disconnect();
        let Some(socket) = self.sockets.of(ipv6) else {
            return;
        };
        let bound = &mut self.bound[usize::from(ipv6)];
        *bound = *bound || socket::join_port(listener, socket).is_ok();
        if *bound && rustix::net::connect(socket, &remote).is_ok() {
            self.connected = Some(*outer);
            if socket::local_address(socket).map(|own| own.ip()).ok() != Some(local) {
                self.disconnect();
            }
        }
        self.refused = match self.connected {
            Some(_) => Outer::NONE,
            None => *outer,
        };
    }

    /// Everything goes through the listeners again.
    #[cold]
    pub(super) fn disconnect(&mut self) {
        let Some(path) = self.connected.take() else { return };
        if let Some(socket) = self.sockets.of(path.is_ipv6()) {
            // A socket that stays connected only serves a path that nothing is sent to through it.
            let _ = rustix::net::connect_unspec(socket);
        }
    }
}

/// Whether it means nothing without an interface.
fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}
