//! Follows one interface closely; of everything else it only says that something changed, which is when source addresses learned from
//! packets may have become wrong. Belongs to the slow-path thread, which waits for the descriptor and reads [`LinkEvent`]s.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::message::{
    Asker, BUFFER, LINK_HEADER, Messages, NLM_F_ACK, NLM_F_REQUEST, READS_MAX, Request, find_attribute, open,
    receive, send, word,
};

const RTM_GETLINK: u16 = libc::RTM_GETLINK;
const IFLA_MTU: u16 = 4;
const IFLA_TXQLEN: u16 = 13;
const IFLA_NEW_NETNSID: u16 = 45;

/// A change that concerns a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// The interface was set up.
    Up,
    /// The interface was set down.
    Down,
    /// The interface has this MTU, in bytes.
    Mtu(u32),
    /// The interface was deleted.
    Gone,
    /// The interface went to another network namespace: it lives on, but nothing more is heard of it.
    Moved,
    /// A route, an address, or another interface changed, or so much happened that some of it was
    /// not heard.
    RouteOrAddressChanged,
}

/// Follows one interface, and changes of routes and addresses, in the namespace it was made in.
#[derive(Debug)]
pub struct LinkWatch {
    socket: OwnedFd,
    buffer: Box<[u8]>,
    seen: Seen,
    /// Messages were lost, so the interface's state has to be asked for.
    lost: bool,
}

impl LinkWatch {
    /// Starts watching. The first events that are read tell the interface's present state.
    pub fn new(ifindex: u32) -> io::Result<LinkWatch> {
        let groups = libc::RTMGRP_LINK
            | libc::RTMGRP_IPV4_IFADDR
            | libc::RTMGRP_IPV6_IFADDR
            | libc::RTMGRP_IPV4_ROUTE
            | libc::RTMGRP_IPV6_ROUTE;
        let watch = LinkWatch {
            socket: open(groups as u32)?,
            buffer: vec![0; BUFFER].into(),
            seen: Seen {
                ifindex,
                up: None,
                mtu: None,
                changed: false,
            },
            lost: false,
        };
        watch.ask()?;
        Ok(watch)
    }

    /// Reads what has happened, without waiting, and appends it to `events` in order.
    /// [`LinkEvent::RouteOrAddressChanged`] occurs at most once, at the end.
    pub fn read(&mut self, events: &mut Vec<LinkEvent>) -> io::Result<()> {
        self.seen.changed = false;
        for _ in 0..READS_MAX {
            match receive(&self.socket, &mut self.buffer) {
                Ok(message) => self.seen.read_all(message, &mut |event| events.push(event)),
                // Both mean that messages are lost.
                Err(Errno::NOBUFS | Errno::MSGSIZE) => {
                    self.seen.changed = true;
                    self.lost = true;
                }
                Err(Errno::INTR) => {}
                // Asked any sooner, the answer would find the socket's buffer full.
                Err(Errno::AGAIN) if self.lost => {
                    self.lost = false;
                    self.ask()?;
                }
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        if self.seen.changed {
            events.push(LinkEvent::RouteOrAddressChanged);
        }
        Ok(())
    }

    /// Asks for the interface's state; the answer comes among the events.
    fn ask(&self) -> io::Result<()> {
        send(
            &self.socket,
            &Request::link(RTM_GETLINK, NLM_F_REQUEST, self.seen.ifindex),
        )
    }
}

impl AsFd for LinkWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Sets how many packets an interface's queue holds. The ioctl for the same needs rights over the whole machine; this needs
/// them over the network namespace only.
pub fn set_txqueuelen(ifindex: u32, packets: u32) -> io::Result<()> {
    let mut request = Request::link(libc::RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK, ifindex);
    request.attribute(IFLA_TXQLEN, &packets.to_ne_bytes());
    Asker::new()?.order(request)
}

/// What is known of the watched interface.
#[derive(Debug)]
struct Seen {
    ifindex: u32,
    up: Option<bool>,
    mtu: Option<u32>,
    changed: bool,
}

impl Seen {
    /// Reads all messages of one datagram.
    fn read_all(&mut self, datagram: &[u8], emit: &mut dyn FnMut(LinkEvent)) {
        for message in Messages(datagram) {
            match message.kind {
                libc::RTM_NEWLINK | libc::RTM_DELLINK => self.read_link(message.kind, message.body, emit),
                libc::RTM_NEWADDR | libc::RTM_DELADDR | libc::RTM_NEWROUTE | libc::RTM_DELROUTE => {
                    self.changed = true;
                }
                // The answer to our question about an interface that is no more.
                _ if message.error() == Some(libc::ENODEV) => emit(LinkEvent::Gone),
                _ => {}
            }
        }
    }

    fn read_link(&mut self, kind: u16, body: &[u8], emit: &mut dyn FnMut(LinkEvent)) {
        let (Some(attributes), Some(ifindex), Some(flags)) =
            (body.get(LINK_HEADER..), word(body, 4), word(body, 8))
        else {
            return;
        };
        // Other families tell of a bridge's ports or of IPv6 settings, not of the link itself.
        if body[0] != libc::AF_UNSPEC as u8 {
            return;
        }
        if ifindex != self.ifindex {
            // Routes vanish with their interface without being told one by one.
            self.changed = true;
            return;
        }
        if kind == libc::RTM_DELLINK {
            let moved = find_attribute(attributes, IFLA_NEW_NETNSID).is_some();
            emit(if moved { LinkEvent::Moved } else { LinkEvent::Gone });
            return;
        }
        let up = flags & libc::IFF_UP as u32 != 0;
        if self.up.replace(up) != Some(up) {
            emit(if up { LinkEvent::Up } else { LinkEvent::Down });
        }
        if let Some(mtu) = find_attribute(attributes, IFLA_MTU).and_then(|value| word(value, 0))
            && self.mtu.replace(mtu) != Some(mtu)
        {
            emit(LinkEvent::Mtu(mtu));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::MESSAGE_HEADER;
    use super::*;
    use proptest::prelude::*;

    /// A message about interface 7: kind, family, flags, and an attribute each for MTU and `more`.
    fn link(kind: u16, family: u8, flags: u32, mtu: u32, more: Option<u16>) -> Vec<u8> {
        let mut bytes = vec![0; MESSAGE_HEADER + LINK_HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[16] = family;
        bytes[20..24].copy_from_slice(&7u32.to_ne_bytes());
        bytes[24..28].copy_from_slice(&flags.to_ne_bytes());
        // An attribute of odd length first: a name.
        bytes.extend([7, 0, 3, 0, b'w', b'g', 0, 0]);
        bytes.extend([8u16.to_ne_bytes(), IFLA_MTU.to_ne_bytes()].concat());
        bytes.extend(mtu.to_ne_bytes());
        if let Some(more) = more {
            bytes.extend([8u16.to_ne_bytes(), more.to_ne_bytes(), [0, 0], [0, 0]].concat());
        }
        let len = bytes.len() as u32;
        bytes[..4].copy_from_slice(&len.to_ne_bytes());
        bytes
    }

    fn seen() -> Seen {
        Seen {
            ifindex: 7,
            up: None,
            mtu: None,
            changed: false,
        }
    }

    fn read(seen: &mut Seen, datagram: &[u8]) -> Vec<LinkEvent> {
        let mut events = Vec::new();
        seen.read_all(datagram, &mut |event| events.push(event));
        events
    }

    const UP: u32 = libc::IFF_UP as u32;
    const BRIDGE: u8 = libc::AF_BRIDGE as u8;

    #[test]
    fn only_changes_are_told() {
        let mut seen = seen();
        let both = [link(16, 0, 0, 1420, None), link(16, 0, UP, 1420, None)].concat();
        assert_eq!(
            read(&mut seen, &both),
            [LinkEvent::Down, LinkEvent::Mtu(1420), LinkEvent::Up]
        );
        assert_eq!(read(&mut seen, &link(16, 0, UP, 1420, None)), []);
        assert_eq!(
            read(&mut seen, &link(16, 0, UP, 1300, None)),
            [LinkEvent::Mtu(1300)]
        );
        assert!(!seen.changed);
    }

    #[test]
    fn deletion_is_told_apart_from_what_looks_like_it() {
        assert_eq!(read(&mut seen(), &link(17, 0, 0, 1420, None)), [LinkEvent::Gone]);
        assert_eq!(
            read(&mut seen(), &link(17, 0, 0, 1420, Some(IFLA_NEW_NETNSID))),
            [LinkEvent::Moved]
        );
        assert_eq!(
            read(&mut seen(), &link(17, BRIDGE, 0, 1420, None)),
            [],
            "left a bridge"
        );
        let mut other = Seen { ifindex: 8, ..seen() };
        assert_eq!(read(&mut other, &link(17, 0, 0, 1420, None)), []);
        assert!(other.changed, "another interface's routes went with it");
    }

    #[test]
    fn messages_that_are_cut_off_are_not_read() {
        let whole = link(16, 0, UP, 1420, None);
        for len in 0..whole.len() {
            assert_eq!(read(&mut seen(), &whole[..len]), [], "{len}");
        }
        // The header is whole but declares less than the interface's part.
        for declared in 0..(MESSAGE_HEADER + LINK_HEADER) as u32 {
            let mut short = whole.clone();
            short[..4].copy_from_slice(&declared.to_ne_bytes());
            assert_eq!(read(&mut seen(), &short), [], "{declared}");
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..400),
            kind in 16..30u8, fit: bool, family: bool,
        ) {
            let len = bytes.len() as u32;
            if bytes.len() > 24 {
                bytes[4..6].copy_from_slice(&[kind, 0]);
                bytes[20..24].copy_from_slice(&7u32.to_ne_bytes());
                if fit { bytes[..4].copy_from_slice(&len.to_ne_bytes()) }
                if family { bytes[16] = 0 }
            }
            read(&mut seen(), &bytes);
        }
    }
}
