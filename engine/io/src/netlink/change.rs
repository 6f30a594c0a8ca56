//! Says which neighbours changed, and whether routes did, for who asks the kernel anew when something has changed.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::message::{BUFFER, Messages, READS_MAX, open, receive};
use super::neighbour::Entry;

/// Rules of both families: groups 8 and 19.
const RTMGRP_RULES: libc::c_int = 1 << 7 | 1 << 18;

/// Hears of neighbours, routes and addresses that change, in the namespace it was made in.
#[derive(Debug)]
pub struct NeighbourWatch {
    socket: OwnedFd,
    buffer: Box<[u8]>,
}

/// What has changed.
#[derive(Debug, Default)]
pub struct NeighbourChanges {
    /// Neighbours by interface and address.
    pub neighbours: Vec<(u32, IpAddr)>,
    /// A route, an address or an interface, or so much that some of it was not heard.
    pub routes: bool,
}

impl NeighbourWatch {
    /// Starts listening.
    pub fn new() -> io::Result<NeighbourWatch> {
        let groups = RTMGRP_RULES
            | libc::RTMGRP_NEIGH
            | libc::RTMGRP_LINK
            | libc::RTMGRP_IPV4_IFADDR
            | libc::RTMGRP_IPV6_IFADDR
            | libc::RTMGRP_IPV4_ROUTE
            | libc::RTMGRP_IPV6_ROUTE;
        Ok(NeighbourWatch {
            socket: open(groups as u32)?,
            buffer: vec![0; BUFFER].into(),
        })
    }

    /// Reads what has happened, without waiting; the descriptor stays readable if that was not all.
    pub fn read(&mut self) -> io::Result<NeighbourChanges> {
        let mut changes = NeighbourChanges::default();
        for _ in 0..READS_MAX {
            match receive(&self.socket, &mut self.buffer) {
                Ok(datagram) => {
                    for message in Messages(datagram) {
                        match Entry::read(&message) {
                            Some(entry) => changes.neighbours.push((entry.ifindex, entry.address)),
                            None if is_about_neighbours(message.kind) => {}
                            None => changes.routes = true,
                        }
                    }
                }
                Err(Errno::NOBUFS | Errno::MSGSIZE) => changes.routes = true,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(changes)
    }
}

impl AsFd for NeighbourWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn is_about_neighbours(kind: u16) -> bool {
    matches!(kind, libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH)
}
