//! What is the host's own: IP addresses with their prefixes, and the interfaces' link addresses. A router has to know both: what is
//! for the host itself stays with the host, and frames leave with the interface's address.
//!
//! [`Addresses`] belongs to the slow path.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use super::follow::{Follow, Table, Told};
use super::message::{ADDRESS_HEADER, LINK_HEADER, Message, READS_MAX, find_attribute, ip_address, word};

/// Addresses, and interfaces, that a host may have.
pub const ADDRESSES_MAX: usize = 4096;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFLA_ADDRESS: u16 = 1;
const IFLA_MTU: u16 = 4;
const IFLA_NUM_RX_QUEUES: u16 = 32;
/// An interface that is up and has a carrier (IFF_UP and IFF_RUNNING, netdevice(7)).
const RUNNING: u32 = libc::IFF_UP as u32 | libc::IFF_RUNNING as u32;

/// An address of the host's, and how much of it is the network's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix {
    /// The interface that it is on.
    pub ifindex: u32,
    /// The host's own address.
    pub address: IpAddr,
    /// Bits of the network.
    pub len: u8,
}

/// What is known of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its Ethernet address, if it has one.
    pub mac: Option<[u8; 6]>,
    /// Longest IP packet, bytes.
    pub mtu: u32,
    /// It is up and has a carrier.
    pub running: bool,
    /// Receive queues that it was made with; it may use fewer ([`receive_queues`](super::receive_queues)).
    pub queues: u32,
}

/// Something of the host's is another than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressEvent {
    /// The host has this address.
    Added(Prefix),
    /// The host has this address no longer.
    Removed(Prefix),
    /// The interface with this number is like this.
    Interface(u32, Interface),
    /// The interface with this number is gone, or in another namespace.
    Gone(u32),
}

/// Follows addresses and interfaces of the namespace it was made in.
#[derive(Debug)]
pub struct Addresses {
    follow: Follow,
    own: Own,
}

#[derive(Debug, Default)]
struct Own {
    /// In which round each was told last.
    addresses: BTreeMap<Prefix, u32>,
    interfaces: BTreeMap<u32, (Interface, u32)>,
    /// How often the whole tables were begun.
    round: u32,
    full: bool,
}

const TABLES: &[Table] = &[
    (libc::RTM_GETLINK, LINK_HEADER),
    (libc::RTM_GETADDR, ADDRESS_HEADER),
];

impl Addresses {
    /// Knows everything at once; later reads tell what changes. Takes no rights.
    pub fn new() -> io::Result<Addresses> {
        let groups = libc::RTMGRP_LINK | libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR;
        let mut addresses = Addresses {
            follow: Follow::new(groups, TABLES)?,
            own: Own::default(),
        };
        addresses.follow.read_all_again();
        let mut events = Vec::new();
        // The kernel answers as it is read. A table that never stops changing is completed by later reads.
        for _ in 0..READS_MAX {
            addresses.read(&mut events)?;
            events.clear();
            if addresses.follow.is_complete() {
                break;
            }
        }
        Ok(addresses)
    }

    /// All addresses of the host.
    pub fn all(&self) -> impl Iterator<Item = Prefix> + '_ {
        self.own.addresses.keys().copied()
    }

    /// Those of one interface.
    pub fn on(&self, ifindex: u32) -> impl Iterator<Item = Prefix> + '_ {
        self.all().filter(move |prefix| prefix.ifindex == ifindex)
    }

    /// What is known of an interface; `None` if it is not there.
    pub fn interface(&self, ifindex: u32) -> Option<Interface> {
        self.own.interfaces.get(&ifindex).map(|(interface, _)| *interface)
    }

    /// Reads what has changed, without waiting, and appends it to `events`; the descriptor stays readable if that was not all. What the
    /// kernel had no room to tell is found in its tables. Fails if the host has more than [`ADDRESSES_MAX`].
    pub fn read(&mut self, events: &mut Vec<AddressEvent>) -> io::Result<()> {
        let own = &mut self.own;
        self.follow.read(&mut |told| match told {
            Told::Begin => own.round = own.round.wrapping_add(1),
            Told::Message(message) => own.note(&message, events),
            Told::Complete => own.miss_the_rest(events),
        })?;
        if !std::mem::take(&mut own.full) {
            return Ok(());
        }
        self.follow.read_all_again();
        let why = format!(
            "this host has more than {ADDRESSES_MAX} addresses or interfaces; a router knows no more than that"
        );
        Err(io::Error::new(io::ErrorKind::QuotaExceeded, why))
    }
}

impl AsFd for Addresses {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.follow.as_fd()
    }
}

impl Own {
    fn note(&mut self, message: &Message<'_>, events: &mut Vec<AddressEvent>) {
        match message.kind {
            libc::RTM_NEWADDR => {
                if let Some(prefix) = read_address(message.body) {
                    self.has(prefix, events);
                }
            }
            libc::RTM_DELADDR => {
                let prefix = read_address(message.body).filter(|p| self.addresses.remove(p).is_some());
                events.extend(prefix.map(AddressEvent::Removed));
            }
            libc::RTM_NEWLINK => {
                if let Some((ifindex, interface)) = read_interface(message.body) {
                    self.has_interface(ifindex, interface, events);
                }
            }
            libc::RTM_DELLINK => {
                let gone =
                    read_interface(message.body).filter(|(at, _)| self.interfaces.remove(at).is_some());
                events.extend(gone.map(|(ifindex, _)| AddressEvent::Gone(ifindex)));
            }
            _ => {}
        }
    }

    fn has(&mut self, prefix: Prefix, events: &mut Vec<AddressEvent>) {
        if self.addresses.len() == ADDRESSES_MAX && !self.addresses.contains_key(&prefix) {
            self.full = true;
        } else if self.addresses.insert(prefix, self.round).is_none() {
            events.push(AddressEvent::Added(prefix));
        }
    }

    fn has_interface(&mut self, ifindex: u32, now: Interface, events: &mut Vec<AddressEvent>) {
        if self.interfaces.len() == ADDRESSES_MAX && !self.interfaces.contains_key(&ifindex) {
            self.full = true;
            return;
        }
        let before = self.interfaces.insert(ifindex, (now, self.round));
        if before.is_none_or(|(before, _)| before != now) {
            events.push(AddressEvent::Interface(ifindex, now));
        }
    }

    /// What was not in the kernel's tables is gone.
    fn miss_the_rest(&mut self, events: &mut Vec<AddressEvent>) {
        let round = self.round;
        let is_old = |_: &Prefix, told: &mut u32| *told != round;
        let old = self.addresses.extract_if(.., is_old);
        events.extend(old.map(|(prefix, _)| AddressEvent::Removed(prefix)));
        let is_old = |_: &u32, (_, told): &mut (Interface, u32)| *told != round;
        let old = self.interfaces.extract_if(.., is_old);
        events.extend(old.map(|(ifindex, _)| AddressEvent::Gone(ifindex)));
    }
}

fn read_address(body: &[u8]) -> Option<Prefix> {
    let attributes = body.get(ADDRESS_HEADER..)?;
    let own = |kind| find_attribute(attributes, kind).and_then(ip_address);
    Some(Prefix {
        ifindex: word(body, 4)?,
        // With a peer's address on a point-to-point interface only the local one is ours.
        address: own(IFA_LOCAL).or_else(|| own(IFA_ADDRESS))?,
        len: *body.get(1)?,
    })
}

fn read_interface(body: &[u8]) -> Option<(u32, Interface)> {
    let attributes = body.get(LINK_HEADER..)?;
    // Other families tell of a bridge's ports or of IPv6 settings, not of the link itself.
    if body[0] != libc::AF_UNSPEC as u8 {
        return None;
    }
    let interface = Interface {
        mac: find_attribute(attributes, IFLA_ADDRESS).and_then(|mac| mac.try_into().ok()),
        mtu: find_attribute(attributes, IFLA_MTU).and_then(|value| word(value, 0))?,
        running: word(body, 8)? & RUNNING == RUNNING,
        queues: find_attribute(attributes, IFLA_NUM_RX_QUEUES)
            .and_then(|value| word(value, 0))
            .unwrap_or(1),
    };
    Some((word(body, 4)?, interface))
}

#[cfg(test)]
mod tests {
    use super::super::message::{MESSAGE_HEADER, Messages, Request};
    use super::*;
    use proptest::prelude::*;

    fn told(own: &mut Own, bytes: &[u8]) -> Vec<AddressEvent> {
        let mut events = Vec::new();
        Messages(bytes).for_each(|message| own.note(&message, &mut events));
        events
    }

    fn address(kind: u16, last: u16, peer: bool) -> Request {
        let mut request = Request::new(kind, 0, ADDRESS_HEADER);
        request.put(MESSAGE_HEADER, &[libc::AF_INET as u8, 24]);
        request.put(MESSAGE_HEADER + 4, &3u32.to_ne_bytes());
        let [high, low] = last.to_be_bytes();
        if peer {
            request.address(IFA_ADDRESS, [192, 0, 2, 99].into());
            request.address(IFA_LOCAL, [10, 0, high, low].into());
        } else {
            request.address(IFA_ADDRESS, [10, 0, high, low].into());
        }
        request
    }

    #[test]
    fn only_changes_are_told() {
        let mut own = Own::default();
        let prefix = Prefix {
            ifindex: 3,
            address: [10, 0, 0, 7].into(),
            len: 24,
        };
        for peer in [false, true] {
            let [new, del] =
                [libc::RTM_NEWADDR, libc::RTM_DELADDR].map(|kind| address(kind, 7, peer).bytes().to_vec());
            assert_eq!(told(&mut own, &new), [AddressEvent::Added(prefix)]);
            assert_eq!(told(&mut own, &new), []);
            assert_eq!(told(&mut own, &del), [AddressEvent::Removed(prefix)]);
            assert_eq!(told(&mut own, &del), []);
        }
    }

    #[test]
    fn what_whole_tables_do_not_have_is_gone_and_the_limit_is_said() {
        let mut own = Own::default();
        for n in 0..=ADDRESSES_MAX as u16 {
            assert!(!own.full);
            let added = told(&mut own, address(libc::RTM_NEWADDR, n, false).bytes()).len();
            assert_eq!(added, usize::from(usize::from(n) < ADDRESSES_MAX), "{n}");
        }
        assert!(own.full);
        own.round = 1;
        told(&mut own, address(libc::RTM_NEWADDR, 5, false).bytes());
        let mut events = Vec::new();
        own.miss_the_rest(&mut events);
        assert_eq!(events.len(), ADDRESSES_MAX - 1);
        assert_eq!(own.addresses.len(), 1);
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 16..22u8, fit: bool, family: bool,
        ) {
            let len = bytes.len() as u32;
            if bytes.len() > 16 {
                bytes[4..6].copy_from_slice(&[kind, 0]);
                if fit { bytes[..4].copy_from_slice(&len.to_ne_bytes()) }
                if family { bytes[16] = 0 }
            }
            told(&mut Own::default(), &bytes);
        }
    }
}
