//! Which packets of a burst go into which message: packets to one path whose lengths allow it become one message that the
//! kernel cuts again (UDP_SEGMENT, udp(7)). Pure, safe code.
//!
//! A message is a row of packets of equal length, of which the last may be shorter. Packets to different paths may be
//! interleaved in the burst; each path's packets keep their order.

use arrayvec::ArrayVec;
use patronus_mem::{BURST_MAX, Outer};

/// Packets in a message at most: what every kernel since 4.18 takes.
pub(super) const SEGMENTS_MAX: usize = 64;

/// Bytes in a message at most: a UDP payload that fits an IPv4 packet.
const MESSAGE_MAX: usize = 65507;

/// Entries of the table of paths, a power of two. A collision only makes two messages out of one.
const SLOTS: usize = 64;

/// Bursts after which a path's segment limit is forgotten and tried again: a path's MTU may grow.
const LIMIT_LIFE: u32 = 1 << 16;

const NONE: u8 = u8::MAX;
const _: () = assert!(BURST_MAX <= NONE as usize);

/// One message: a linked list of packets of the burst.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message {
    /// Where it goes: the same for all its packets.
    pub(super) outer: Outer,
    /// Length of its packets but the last, in bytes.
    pub(super) segment: u16,
    /// Packets in it.
    pub(super) packets: u8,
    /// Whether another packet may be added.
    open: bool,
    first: u8,
    last: u8,
    /// Length of all its packets, in bytes.
    pub(super) bytes: u32,
}

impl Message {
    fn takes(&self, outer: &Outer, len: usize) -> bool {
        self.open
            && len > 0
            && len <= usize::from(self.segment)
            && self.bytes as usize + len <= MESSAGE_MAX
            && self.outer == *outer
    }
}

/// How a burst is sent. Kept from burst to burst so that nothing is allocated.
pub(super) struct Plan {
    messages: ArrayVec<Message, BURST_MAX>,
    /// For each packet the next one of its message.
    next: [u8; BURST_MAX],
    /// For each path the newest message; only that one may grow, so that order is kept.
    newest: [u8; SLOTS],
    /// For each path the longest segment that the kernel was not yet seen to refuse.
    limit: [u16; SLOTS],
    limits_age: u32,
}

impl Plan {
    pub(super) fn new() -> Plan {
        Plan {
            messages: ArrayVec::new(),
            next: [NONE; BURST_MAX],
            newest: [NONE; SLOTS],
            limit: [u16::MAX; SLOTS],
            limits_age: 0,
        }
    }

    /// Begins a new burst.
    pub(super) fn clear(&mut self) {
        self.messages.clear();
        self.newest = [NONE; SLOTS];
        self.limits_age += 1;
        if self.limits_age == LIMIT_LIFE {
            self.limits_age = 0;
            self.limit = [u16::MAX; SLOTS];
        }
    }

    /// Adds packet `index` of the burst, `len` bytes long. With `segment` false it becomes a message of its own.
    pub(super) fn add(&mut self, index: usize, outer: &Outer, len: usize, segment: bool) {
        let slot = outer.path_hash() as usize % SLOTS;
        let index = index as u8;
        self.next[usize::from(index)] = NONE;
        if let Some(message) = self.messages.get_mut(usize::from(self.newest[slot]))
            && message.takes(outer, len)
        {
            self.next[usize::from(message.last)] = index;
            message.last = index;
            message.packets += 1;
            message.bytes += len as u32;
            message.open = len == usize::from(message.segment) && usize::from(message.packets) < SEGMENTS_MAX;
            return;
        }
        self.newest[slot] = self.messages.len() as u8;
        // What is too long for any datagram is not grouped and refused by the kernel.
        let size = u16::try_from(len).unwrap_or(u16::MAX);
        self.messages.push(Message {
            outer: *outer,
            segment: size,
            packets: 1,
            open: segment && size <= self.limit[slot],
            first: index,
            last: index,
            bytes: len as u32,
        });
    }

    /// The messages, in an order that keeps each path's order.
    pub(super) fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// The packets of a message, in order.
    pub(super) fn packets(&self, message: &Message) -> impl Iterator<Item = usize> + '_ {
        let first = (message.first != NONE).then_some(usize::from(message.first));
        std::iter::successors(first, |at| match self.next[*at] {
            NONE => None,
            next => Some(usize::from(next)),
        })
    }

    /// Remembers that the kernel refused segments of this length on this path: packets as long go singly for a while.
    pub(super) fn refuse_segment(&mut self, outer: &Outer, segment: u16) {
        let limit = &mut self.limit[outer.path_hash() as usize % SLOTS];
        *limit = (*limit).min(segment.saturating_sub(1));
    }
}
