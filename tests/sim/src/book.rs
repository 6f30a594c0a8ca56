//! What hosts have sent and received, and what must never be.

use std::collections::{HashMap, HashSet};

use crate::packet::{self, Fragment, Known, Tag};
use crate::site::{Site, net_of};

/// Where a packet too short for a tag came from.
struct Short {
    origin: usize,
}

/// The beginning of a packet of which pieces have come, in order.
struct Pieces {
    header: [u8; 20],
    payload: Vec<u8>,
}

/// Everything that hosts sent and received.
#[derive(Default)]
pub struct Book {
    /// Packets sent.
    pub sent: u64,
    /// Packets delivered.
    pub received: u64,
    /// Errors delivered.
    pub errors: u64,
    /// Whether flows have to keep their order.
    in_order: bool,
    seen: HashSet<Tag>,
    /// The next sequence that may come, by flow and receiver.
    next: HashMap<(u16, usize), u32>,
    short: HashMap<Vec<u8>, Short>,
    /// Newest delivery by flow.
    newest: HashMap<u16, u32>,
    /// By receiver, packets that are not whole yet.
    pieces: HashMap<(usize, [u8; 11]), Pieces>,
    /// Packets put together from pieces.
    pub put_together: u64,
}

impl Book {
    /// An empty book; whether the network keeps the order of what it does not lose.
    pub fn new(in_order: bool) -> Book {
        Book {
            in_order,
            ..Book::default()
        }
    }

    /// From now on flows keep their order in any network.
    pub fn demand_order(&mut self) {
        self.in_order = true;
    }

    /// Notes a packet that a host of site `origin` sends.
    pub fn send(&mut self, origin: usize, packet: &[u8]) {
        self.sent += 1;
        if packet::recognize(packet) == Known::Short {
            self.short.insert(packet::lasting(packet), Short { origin });
        }
    }

    /// Whether a packet of this flow, that one or a later one, has arrived.
    pub fn has_arrived(&self, flow: u16, sequence: u32) -> bool {
        self.newest.get(&flow).is_some_and(|newest| *newest >= sequence)
    }

    /// Whether just this packet has arrived.
    pub fn has_seen(&self, tag: Tag) -> bool {
        self.seen.contains(&tag)
    }

    /// Checks a packet that the host of `site` receives.
    pub fn receive(&mut self, site: &Site, bytes: &[u8]) -> Result<(), String> {
        let Some(fragment) = packet::fragment(bytes) else {
            return self.receive_whole(site, bytes);
        };
        match self.put_together(site.plan.number, &fragment) {
            Some(whole) => self.receive_whole(site, &whole),
            None => Ok(()),
        }
    }

    /// Puts a piece to those before it; the packet, if it was the last one. Pieces that are out of order are as good as lost.
    fn put_together(&mut self, site: usize, fragment: &Fragment<'_>) -> Option<Vec<u8>> {
        let place = (site, fragment.whole);
        if fragment.offset == 0 {
            let begun = Pieces {
                header: fragment.header,
                payload: Vec::new(),
            };
            self.pieces.insert(place, begun);
        }
        let pieces = self.pieces.get_mut(&place)?;
        if pieces.payload.len() != fragment.offset {
            return None;
        }
        pieces.payload.extend(fragment.payload);
        if !fragment.last {
            return None;
        }
        let pieces = self.pieces.remove(&place)?;
        self.put_together += 1;
        Some(packet::put_together(pieces.header, &pieces.payload))
    }

    fn receive_whole(&mut self, site: &Site, bytes: &[u8]) -> Result<(), String> {
        let origin = match packet::recognize(bytes) {
            Known::Broken(why) => {
                return Err(format!("delivery: {why}: {:02x?}", &bytes[..bytes.len().min(64)]));
            }
            Known::Icmp => {
                self.errors += 1;
                return Ok(());
            }
            Known::Short => match self.short.remove(&packet::lasting(bytes)) {
                Some(short) => short.origin,
                None => return Err(format!("delivery: twice, altered or invented: {bytes:02x?}")),
            },
            Known::Tagged(tag) => {
                self.receive_tagged(site.plan.number, tag)?;
                tag.origin.into()
            }
        };
        self.received += 1;
        let (src, dst) = packet::addresses(bytes);
        let number = site.plan.number;
        if origin == number {
            return Err(format!("delivery: {src} -> {dst} came back to where it was sent"));
        }
        match net_of(src) {
            Some(net) if site.may_come_from(net, origin) => Ok(()),
            _ => Err(format!(
                "allowed-ips: site {number} delivered a packet from {src}, which site {origin} sent: {:?}",
                site.claims
            )),
        }
    }

    fn receive_tagged(&mut self, number: usize, tag: Tag) -> Result<(), String> {
        if !self.seen.insert(tag) {
            return Err(format!("delivery: twice: {tag:?} at site {number}"));
        }
        let next = self.next.entry((tag.flow, number)).or_default();
        if self.in_order && tag.sequence < *next {
            return Err(format!("order: {tag:?} after {} at site {number}", *next - 1));
        }
        *next = tag.sequence + 1;
        let newest = self.newest.entry(tag.flow).or_default();
        *newest = tag.sequence.max(*newest);
        Ok(())
    }
}
