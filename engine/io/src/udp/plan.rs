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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    struct Packet {
        outer: Outer,
        len: usize,
    }

    fn path(n: usize, tos: u8) -> Outer {
        // Two of them differ only in the source address.
        let mut outer = Outer::new(([192, 0, 2, n as u8 / 2 * 2], 51820).into());
        if n % 2 == 1 {
            outer.set_local(Some([198, 51, 100, 1].into()), 0);
        }
        outer.set_tos(tos);
        outer
    }

    fn packet() -> impl Strategy<Value = Packet> {
        let len = prop_oneof![
            6 => Just(1452_usize), 3 => Just(96), 1 => Just(0), 2 => 1..2000_usize, 1 => Just(65507), 1 => Just(70000), 1 => 20000..40000_usize,
        ];
        let tos = prop_oneof![8 => Just(0_u8), 1 => Just(0x88), 1 => Just(3)];
        (0..5_usize, tos, len).prop_map(|(n, tos, len)| Packet {
            outer: path(n, tos),
            len,
        })
    }

    /// The messages as lists of packets.
    fn group(plan: &mut Plan, burst: &[Packet], segment: bool) -> Vec<Vec<usize>> {
        plan.clear();
        for (index, packet) in burst.iter().enumerate() {
            plan.add(index, &packet.outer, packet.len, segment);
        }
        plan.messages()
            .iter()
            .map(|message| plan.packets(message).collect())
            .collect()
    }

    /// How the kernel would cut a message again.
    fn kernel_cuts(total: usize, segment: usize) -> Vec<usize> {
        let mut cuts = vec![segment; total / segment];
        cuts.extend(Some(total % segment).filter(|rest| *rest > 0));
        cuts
    }

    /// The fewest messages for packets of one path, one after the other.
    fn greedy(lens: &[usize]) -> usize {
        let (mut messages, mut segment, mut total, mut count) = (0, 0, 0, 0);
        for len in lens {
            let fits = count > 0 && *len > 0 && *len <= segment && total + len <= 65507 && count < 64;
            if fits && total == segment * count {
                total += len;
                count += 1;
            } else {
                messages += 1;
                (segment, total, count) = (*len, *len, 1);
            }
        }
        messages
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn c46_messages_are_cut_back_into_the_burst(burst in prop::collection::vec(packet(), 0..=BURST_MAX)) {
            let mut plan = Plan::new();
            let messages = group(&mut plan, &burst, true);
            let mut seen: Vec<usize> = messages.concat();
            seen.sort_unstable();
            prop_assert!(seen.into_iter().eq(0..burst.len()), "every packet once");

            for (message, plan) in messages.iter().zip(plan.messages()) {
                let lens: Vec<usize> = message.iter().map(|n| burst[*n].len).collect();
                let total: usize = lens.iter().sum();
                prop_assert!(message.iter().all(|n| burst[*n].outer == plan.outer));
                prop_assert_eq!((message.len(), total), (usize::from(plan.packets), plan.bytes as usize));
                if message.len() > 1 {
                    prop_assert!(total <= MESSAGE_MAX && message.len() <= SEGMENTS_MAX);
                    prop_assert_eq!(kernel_cuts(total, usize::from(plan.segment)), lens);
                }
            }
            // Order is kept per remote address and port, whatever source or DSCP.
            for remote in burst.iter().map(|packet| packet.outer.remote()) {
                let to_remote = |n: &usize| burst[*n].outer.remote() == remote;
                let sent: Vec<usize> = messages.concat().into_iter().filter(to_remote).collect();
                prop_assert!(sent.is_sorted(), "{sent:?}");
            }
        }

        #[test]
        fn one_path_takes_the_fewest_messages(lens in prop::collection::vec(packet(), 0..=BURST_MAX)) {
            let burst: Vec<Packet> = lens.into_iter().map(|packet| Packet { outer: path(0, 0), ..packet }).collect();
            let lens: Vec<usize> = burst.iter().map(|packet| packet.len).collect();
            prop_assert_eq!(group(&mut Plan::new(), &burst, true).len(), greedy(&lens));
        }

        #[test]
        fn without_segmentation_every_packet_goes_alone(burst in prop::collection::vec(packet(), 0..=BURST_MAX)) {
            let messages = group(&mut Plan::new(), &burst, false);
            prop_assert!(messages.into_iter().eq((0..burst.len()).map(|n| vec![n])));
        }
    }

    #[test]
    fn interleaved_paths_are_grouped() {
        let burst: Vec<_> = (0..60)
            .map(|n| Packet {
                outer: path(n % 3 * 2, 0),
                len: 1000,
            })
            .collect();
        let messages = group(&mut Plan::new(), &burst, true);
        assert_eq!(messages.len(), 3);
        assert_eq!(messages[1], (0..20).map(|n| 3 * n + 1).collect::<Vec<_>>());
    }

    #[test]
    fn refused_segment_is_remembered_for_a_while() {
        let mut plan = Plan::new();
        let burst = |len| {
            vec![
                Packet {
                    outer: path(0, 0),
                    len
                };
                4
            ]
        };
        plan.refuse_segment(&path(0, 0), 1400);
        plan.refuse_segment(&path(0, 0), 1450);
        assert_eq!(group(&mut plan, &burst(1400), true).len(), 4);
        assert_eq!(group(&mut plan, &burst(1399), true).len(), 1);
        let elsewhere = vec![
            Packet {
                outer: path(2, 0),
                len: 1400
            };
            4
        ];
        assert_eq!(group(&mut plan, &elsewhere, true).len(), 1);
        (0..LIMIT_LIFE).for_each(|_| plan.clear());
        assert_eq!(group(&mut plan, &burst(1400), true).len(), 1);
    }
}
