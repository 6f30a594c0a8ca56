//! Who is where on the networks that an Ethernet LAN is part of: link addresses, and the packets that wait for one.
//!
//! The slow path has the host's kernel find neighbours and publishes what it says as a [`NeighbourTable`], which is part of a
//! [`Snapshot`](crate::snapshot::Snapshot) and never changes; workers look into it. Of what a worker writes, that a neighbour is in use, only the last value
//! counts. Packets to somebody who is being looked for wait with the worker: the newest to each neighbour (RFC 1122, section 2.3.2.2), few in all.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrayvec::ArrayVec;
use patronus_crypto::{Duration, Time};
use patronus_io::ip::Version;
use patronus_mem::PktBuf;
use patronus_observe::Point;

use crate::ethernet::{self, LinkAddresses};
use crate::observe::{Seen, View};
use crate::stats::DropReason;
use crate::wg::Context;

/// Packets that wait with one worker at most.
pub const HELD_MAX: usize = 32;
/// A packet waits for this long at most: by then the kernel has asked three times, a second apart.
const HELD_FOR: Duration = Duration::from_secs(4);

/// Through which LAN port, and whom.
pub type Place = (u16, IpAddr);

/// What is known of a neighbour.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Whereabouts {
    /// It is being looked for.
    Sought,
    /// At this link address.
    At([u8; 6]),
    /// It does not answer.
    Silent,
}

/// A neighbour of the table.
#[derive(Clone, Debug)]
pub struct Neighbour {
    /// Where it is.
    pub whereabouts: Whereabouts,
    /// Packets went there since somebody last set this to false.
    pub used: Arc<AtomicBool>,
}

/// All neighbours that somebody has asked for.
pub type NeighbourTable = HashMap<Place, Neighbour>;

/// What has become of a packet.
pub enum Addressed {
    /// It has its link header.
    Ready(PktBuf),
    /// It waits, or another one has taken its place.
    Held,
    /// Its receiver does not answer.
    Silent(PktBuf),
}

struct Held {
    to: Place,
    /// The port's own link address.
    own: [u8; 6],
    packet: PktBuf,
    since: Time,
}

/// The packets that wait with one worker.
#[derive(Default)]
pub struct Waiting(ArrayVec<Held, HELD_MAX>);

impl Waiting {
    /// Gives an IP packet its link header, or keeps it until it is known where its receiver is and asks the slow path for that.
    pub fn address(
        &mut self,
        cx: &mut Context<'_>,
        table: &NeighbourTable,
        to: Place,
        own: [u8; 6],
        packet: PktBuf,
    ) -> Addressed {
        match table.get(&to) {
            Some(neighbour) => {
                // Written only where it changes: the line is shared with other workers.
                if !neighbour.used.load(Ordering::Relaxed) {
                    neighbour.used.store(true, Ordering::Relaxed);
                }
                match neighbour.whereabouts {
                    Whereabouts::At(mac) => Addressed::Ready(dress(packet, to, own, mac)),
                    Whereabouts::Silent => Addressed::Silent(packet),
                    Whereabouts::Sought => self.hold(cx, to, own, packet, false),
                }
            }
            None => self.hold(cx, to, own, packet, true),
        }
    }

    /// `asks`: nobody has asked for the neighbour yet, as far as the table goes.
    #[cold]
    fn hold(
        &mut self,
        cx: &mut Context<'_>,
        to: Place,
        own: [u8; 6],
        mut packet: PktBuf,
        asks: bool,
    ) -> Addressed {
        self.expire(cx);
        if let Some(observing) = &mut cx.observing {
            observing.see(&mut packet, &Seen::at(Point::Hold, View::Ip, to.0.into()));
        }
        let since = cx.now;
        if let Some(held) = self.0.iter_mut().find(|held| held.to == to) {
            cx.discard(
                DropReason::NeighbourUnknown,
                std::mem::replace(&mut held.packet, packet),
            );
        } else if self.0.is_full() {
            cx.discard(DropReason::NeighbourUnknown, packet);
        } else {
            self.0.push(Held {
                to,
                own,
                packet,
                since,
            });
            // With the queue full it is as if the question had been lost: the packet waits and goes, a later one asks again.
            if asks && cx.slow.neighbours.push(to).is_ok() {
                cx.wake_slow = true;
            }
        }
        Addressed::Held
    }

    /// Drops what has waited for too long.
    fn expire(&mut self, cx: &mut Context<'_>) {
        let mut at = 0;
        while at < self.0.len() {
            if cx.now.since(self.0[at].since) < HELD_FOR {
                at += 1;
            } else {
                let held = self.0.remove(at);
                cx.discard(DropReason::NeighbourUnknown, held.packet);
            }
        }
    }

    /// The packets whose receivers the table now says something about, in the order in which they came, and their ports.
    pub fn answered(
        &mut self,
        cx: &mut Context<'_>,
        table: &NeighbourTable,
    ) -> ArrayVec<(u16, Addressed), HELD_MAX> {
        self.expire(cx);
        let (mut answered, mut waiting) = (ArrayVec::new(), ArrayVec::new());
        for held in self.0.drain(..) {
            match table.get(&held.to).map(|neighbour| neighbour.whereabouts) {
                Some(Whereabouts::At(mac)) => {
                    let packet = dress(held.packet, held.to, held.own, mac);
                    answered.push((held.to.0, Addressed::Ready(packet)));
                }
                Some(Whereabouts::Silent) => answered.push((held.to.0, Addressed::Silent(held.packet))),
                Some(Whereabouts::Sought) | None => waiting.push(held),
            }
        }
        self.0 = waiting;
        answered
    }
}

fn dress(mut packet: PktBuf, to: Place, own: [u8; 6], mac: [u8; 6]) -> PktBuf {
    let mut addresses: LinkAddresses = [0; 12];
    addresses[..6].copy_from_slice(&mac);
    addresses[6..].copy_from_slice(&own);
    let version = if to.1.is_ipv6() { Version::V6 } else { Version::V4 };
    ethernet::dress(&mut packet, &addresses, version);
    packet
}
