//! Link addresses of next hops, found and kept by the kernel: ARP and neighbour discovery stay the host's.
//!
//! [`Neighbours`] belongs to the slow path. It has a neighbour resolved by an entry in the host's table that is marked as used and, from
//! Linux 5.16 on, as managed, so that the kernel checks it for as long as we want it; and it hears by rtnetlink what became of it.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use super::follow::{Follow, Table, Told};
use super::message::{
    Asker, MESSAGE_HEADER, Message, NDA_DST, NDA_LLADDR, NEIGHBOUR_HEADER, NLM_F_ACK, NLM_F_CREATE,
    NLM_F_REQUEST, Request, family, find_attribute, half, ip_address, word,
};

/// Neighbours that may be wanted at a time.
pub const NEIGHBOURS_MAX: usize = 1 << 16;

const NDA_FLAGS_EXT: u16 = 15;
/// Flags of an entry: have it resolved now; it is somebody's for whom we answer; keep it resolved.
const NTF_USE: u8 = 1;
const NTF_PROXY: u8 = 8;
const NTF_EXT_MANAGED: u32 = 1;
/// States of an entry (linux/neighbour.h).
const NUD_FAILED: u16 = 0x20;
const NUD_NOARP: u16 = 0x40;
const NUD_PERMANENT: u16 = 0x80;
/// States in which the link address is to be used: reachable, stale, delay, probe, noarp, permanent.
const NUD_VALID: u16 = 0x02 | 0x04 | 0x08 | 0x10 | NUD_NOARP | NUD_PERMANENT;

/// What the kernel knows of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbour {
    /// Nothing yet, or nothing any more.
    Unknown,
    /// Its Ethernet address.
    Known([u8; 6]),
    /// It does not answer. From Linux 5.16 on the kernel tries again by itself; before, by the next [`ask`](Neighbours::ask).
    Failed,
}

/// A wanted neighbour is another one than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighbourEvent {
    /// The interface that it is on.
    pub ifindex: u32,
    /// Its address.
    pub address: IpAddr,
    /// What is known of it now.
    pub neighbour: Neighbour,
}

/// Follows the neighbours that are wanted, in the namespace it was made in.
#[derive(Debug)]
pub struct Neighbours {
    follow: Follow,
    asker: Asker,
    wanted: Wanted,
}

#[derive(Debug, Default)]
struct Wanted {
    /// What was told of each, and in which round.
    known: HashMap<(u32, IpAddr), (Neighbour, u32)>,
    /// How often the whole table was begun.
    round: u32,
}

const TABLES: &[Table] = &[(libc::RTM_GETNEIGH, NEIGHBOUR_HEADER)];

impl Neighbours {
    /// Wants none yet. Takes no rights; [`ask`](Neighbours::ask) takes CAP_NET_ADMIN.
    pub fn new() -> io::Result<Neighbours> {
        Ok(Neighbours {
            follow: Follow::new(libc::RTMGRP_NEIGH, TABLES)?,
            asker: Asker::new()?,
            wanted: Wanted::default(),
        })
    }

    /// Wants a neighbour from now on, and has the kernel look for it. What is known already is the result; every change comes by
    /// [`read`](Neighbours::read). Asking again has it looked for again, which only kernels before 5.16 need: every
    /// few seconds for those in use. An entry that somebody made by hand is used as it is.
    ///
    /// Fails if the interface is not there, or if more than [`NEIGHBOURS_MAX`] are wanted.
    pub fn ask(&mut self, ifindex: u32, address: IpAddr) -> io::Result<Neighbour> {
        let known = &mut self.wanted.known;
        if known.len() == NEIGHBOURS_MAX && !known.contains_key(&(ifindex, address)) {
            let why =
                format!("{NEIGHBOURS_MAX} neighbours are wanted already, which is the limit; forget some");
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, why));
        }
        let entry = self.entry(ifindex, address)?;
        // Using an entry that is fixed would make it one that expires.
        if !entry.as_ref().is_some_and(Entry::is_fixed) {
            self.asker.order(used(ifindex, address, NTF_EXT_MANAGED))?;
        }
        let neighbour = entry.map_or(Neighbour::Unknown, |entry| entry.neighbour());
        let round = self.wanted.round;
        self.wanted.known.insert((ifindex, address), (neighbour, round));
        Ok(neighbour)
    }

    /// Wants a neighbour no longer: the kernel may forget it.
    pub fn forget(&mut self, ifindex: u32, address: IpAddr) -> io::Result<()> {
        if self.wanted.known.remove(&(ifindex, address)).is_none() {
            return Ok(());
        }
        match self.entry(ifindex, address)? {
            Some(entry) if !entry.is_fixed() => self.asker.order(used(ifindex, address, 0)),
            _ => Ok(()),
        }
    }

    /// What is known of a neighbour; `None` if it is not wanted.
    pub fn get(&self, ifindex: u32, address: IpAddr) -> Option<Neighbour> {
        let (neighbour, _) = self.wanted.known.get(&(ifindex, address))?;
        Some(*neighbour)
    }

    /// Reads what has become of those that are wanted, without waiting, and appends it to `events`; the descriptor stays readable if that
    /// was not all. What the kernel had no room to tell is found in its table.
    pub fn read(&mut self, events: &mut Vec<NeighbourEvent>) -> io::Result<()> {
        let wanted = &mut self.wanted;
        self.follow.read(&mut |told| match told {
            Told::Begin => wanted.round = wanted.round.wrapping_add(1),
            Told::Message(message) => {
                if let Some(entry) = Entry::read(&message) {
                    events.extend(wanted.note(&entry));
                }
            }
            Told::Complete => wanted.miss_the_rest(events),
        })
    }

    fn entry(&self, ifindex: u32, address: IpAddr) -> io::Result<Option<Entry>> {
        let mut buffer = [0; 2048];
        let answer = self.asker.ask(question(ifindex, address), &mut buffer)?;
        Ok(Entry::read(&answer))
    }
}

impl AsFd for Neighbours {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.follow.as_fd()
    }
}

impl Wanted {
    /// Takes in what an entry says; an event if that is news of a neighbour that is wanted.
    fn note(&mut self, entry: &Entry) -> Option<NeighbourEvent> {
        let (known, round) = self.known.get_mut(&(entry.ifindex, entry.address))?;
        *round = self.round;
        let now = match entry.neighbour() {
            // The kernel is trying again.
            Neighbour::Unknown if *known == Neighbour::Failed && !entry.gone => Neighbour::Failed,
            now => now,
        };
        (std::mem::replace(known, now) != now).then_some(NeighbourEvent {
            ifindex: entry.ifindex,
            address: entry.address,
            neighbour: now,
        })
    }

    /// What was not in the kernel's table is unknown.
    fn miss_the_rest(&mut self, events: &mut Vec<NeighbourEvent>) {
        for (&(ifindex, address), (known, round)) in &mut self.known {
            if *round != self.round && std::mem::replace(known, Neighbour::Unknown) != Neighbour::Unknown {
                events.push(NeighbourEvent {
                    ifindex,
                    address,
                    neighbour: Neighbour::Unknown,
                });
            }
        }
    }
}

/// An entry of the kernel's neighbour table.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) ifindex: u32,
    pub(super) address: IpAddr,
    state: u16,
    mac: Option<[u8; 6]>,
    gone: bool,
}

impl Entry {
    /// `None` if the message is about something else.
    pub(super) fn read(message: &Message<'_>) -> Option<Entry> {
        let gone = match message.kind {
            libc::RTM_NEWNEIGH => false,
            libc::RTM_DELNEIGH => true,
            _ => return None,
        };
        let attributes = message.body.get(NEIGHBOUR_HEADER..)?;
        let flags = *message.body.get(10)?;
        let entry = Entry {
            ifindex: word(message.body, 4)?,
            address: find_attribute(attributes, NDA_DST).and_then(ip_address)?,
            state: half(message.body, 8)?,
            mac: find_attribute(attributes, NDA_LLADDR).and_then(|mac| mac.try_into().ok()),
            gone,
        };
        (flags & NTF_PROXY == 0).then_some(entry)
    }

    /// The Ethernet address, if it is to be used.
    pub(super) fn link_address(&self) -> Option<[u8; 6]> {
        self.mac.filter(|_| !self.gone && self.state & NUD_VALID != 0)
    }

    fn neighbour(&self) -> Neighbour {
        match self.link_address() {
            Some(mac) => Neighbour::Known(mac),
            None if !self.gone && self.state & NUD_FAILED != 0 => Neighbour::Failed,
            None => Neighbour::Unknown,
        }
    }

    /// Made by hand, or of an interface that asks nobody.
    fn is_fixed(&self) -> bool {
        self.state & (NUD_PERMANENT | NUD_NOARP) != 0
    }
}

/// Asks for one entry.
pub(super) fn question(ifindex: u32, address: IpAddr) -> Request {
    about(libc::RTM_GETNEIGH, NLM_F_REQUEST, ifindex, address)
}

/// Has an entry resolved, and kept so or not.
fn used(ifindex: u32, address: IpAddr, extended: u32) -> Request {
    let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE;
    let mut request = about(libc::RTM_NEWNEIGH, flags, ifindex, address);
    request.put(MESSAGE_HEADER + 10, &[NTF_USE]);
    request.attribute(NDA_FLAGS_EXT, &extended.to_ne_bytes());
    request
}

fn about(kind: u16, flags: u16, ifindex: u32, address: IpAddr) -> Request {
    let mut request = Request::new(kind, flags, NEIGHBOUR_HEADER);
    request.put(MESSAGE_HEADER, &[family(address)]);
    request.put(MESSAGE_HEADER + 4, &ifindex.to_ne_bytes());
    request.address(NDA_DST, address);
    request
}

#[cfg(test)]
mod tests {
    use super::super::message::Messages;
    use super::*;
    use proptest::prelude::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
    const REACHABLE: u16 = 2;
    const INCOMPLETE: u16 = 1;

    fn ip() -> IpAddr {
        "192.0.2.9".parse().expect("an address")
    }

    fn entry(state: u16, mac: Option<[u8; 6]>, gone: bool) -> Entry {
        Entry {
            ifindex: 3,
            address: ip(),
            state,
            mac,
            gone,
        }
    }

    fn wanted(neighbour: Neighbour) -> Wanted {
        Wanted {
            known: HashMap::from([((3, ip()), (neighbour, 0))]),
            round: 0,
        }
    }

    #[test]
    fn states_are_told_once_and_only_of_what_is_wanted() {
        use Neighbour::{Failed, Known, Unknown};
        let other = [2, 0, 0, 0, 0, 8];
        for (before, entry, told) in [
            (Unknown, entry(REACHABLE, Some(MAC), false), Some(Known(MAC))),
            (Known(MAC), entry(REACHABLE, Some(MAC), false), None),
            (Known(other), entry(REACHABLE, Some(MAC), false), Some(Known(MAC))),
            (Known(MAC), entry(NUD_FAILED, Some(MAC), false), Some(Failed)),
            (Failed, entry(INCOMPLETE, None, false), None),
            (Failed, entry(NUD_FAILED, None, true), Some(Unknown)),
            (Known(MAC), entry(REACHABLE, Some(MAC), true), Some(Unknown)),
            (Known(MAC), entry(NUD_NOARP, None, false), Some(Unknown)),
        ] {
            let event = wanted(before).note(&entry);
            assert_eq!(event.map(|e| e.neighbour), told, "{before:?} {entry:?}");
        }
        let mut elsewhere = entry(REACHABLE, Some(MAC), false);
        elsewhere.ifindex = 4;
        assert_eq!(wanted(Unknown).note(&elsewhere), None);
    }

    #[test]
    fn what_a_whole_table_does_not_have_is_unknown() {
        let mut all = wanted(Neighbour::Known(MAC));
        let mut events = Vec::new();
        all.round = 1;
        all.note(&entry(REACHABLE, Some(MAC), false));
        all.miss_the_rest(&mut events);
        assert_eq!(events, [], "it was there");
        all.round = 2;
        all.miss_the_rest(&mut events);
        assert_eq!(
            events.iter().map(|e| e.neighbour).collect::<Vec<_>>(),
            [Neighbour::Unknown]
        );
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..200), gone: bool, fit: bool,
        ) {
            let len = bytes.len() as u32;
            if bytes.len() > 16 {
                let kind = if gone { libc::RTM_DELNEIGH } else { libc::RTM_NEWNEIGH };
                bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
                if fit { bytes[..4].copy_from_slice(&len.to_ne_bytes()) }
            }
            for message in Messages(&bytes) {
                if let Some(entry) = Entry::read(&message) {
                    wanted(Neighbour::Unknown).note(&entry);
                }
            }
        }

        #[test]
        fn what_is_written_is_read(v6: bool, ifindex: u32, octets: [u8; 16]) {
            let address = if v6 { IpAddr::from(octets) } else { IpAddr::from([octets[0], octets[1], octets[2], octets[3]]) };
            let request = used(ifindex, address, NTF_EXT_MANAGED);
            let message = Messages(request.bytes()).next().expect("a message");
            let entry = Entry::read(&message).expect("an entry");
            prop_assert_eq!((entry.ifindex, entry.address, entry.mac), (ifindex, address, None));
        }
    }
}
