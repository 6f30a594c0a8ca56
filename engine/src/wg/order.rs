//! In which order the packets of a burst leave: those that may share a send stand next to each other.
//!
//! Runs on a worker, between routing and numbering, so that counters on the wire still go up by one. The kernel takes a row of
//! datagrams to one address in one call (UDP_SEGMENT) only if all but the last are equally long; packets of many flows, or
//! data between acknowledgements of the other direction, rarely are. Packets of one flow never pass each other, and
//! nothing passes a fragment, whose flow cannot be told.

use arrayvec::ArrayVec;
use patronus_crypto::PeerId;
use patronus_io::ip::Packet;
use patronus_mem::BURST_MAX;

/// Flows are told apart by so many bits. Two that look like one are only kept in order needlessly.
const FLOW_BITS: u32 = 8;
/// Rows that a packet may choose from. Bursts of more sizes gain nothing by looking further.
const REACH: usize = 16;

/// What packets of one send have in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Likeness(u64);

impl Likeness {
    /// To the same peer, of the same length once padded, with the same ECN field.
    pub(super) fn new(peer: PeerId, padded_len: usize, ecn: u8) -> Self {
        debug_assert!(padded_len < 1 << 24);
        Likeness(u64::from(peer.0) << 32 | (padded_len as u64) << 8 | u64::from(ecn))
    }

    /// The lower eight bits of the peer's number.
    fn peer(self) -> usize {
        (self.0 >> 32) as usize & 0xff
    }
}

/// Positions of packets in the burst, in the order in which they are to leave.
pub(super) type Order = ArrayVec<u8, BURST_MAX>;

/// Rows of like packets, as few as the order within each flow allows; all packets of a flow go to one peer. `flow(i)` is asked only if packets differ; `None`: packet
/// `i` keeps its place. `None`: they stay as they came.
pub(super) fn arrange(packets: &[Likeness], mut flow: impl FnMut(usize) -> Option<Flow>) -> Option<Order> {
    if packets.windows(2).all(|pair| pair[0] == pair[1]) {
        return None;
    }
    let lone = Lone::among(packets);
    let mut rows = ArrayVec::<Likeness, BURST_MAX>::new();
    let mut row_of = ArrayVec::<u8, BURST_MAX>::new();
    // The row that the newest packet of each flow is in, and the one behind which nothing may go forward any more.
    let (mut newest, mut barrier) = ([0; 1 << FLOW_BITS], 0);
    for (i, likeness) in packets.iter().enumerate() {
        // The only one to its peer: like no other, and of a flow of its own.
        if lone.has(*likeness) {
            row_of.push(rows.len() as u8);
            rows.push(*likeness);
            continue;
        }
        let flow = flow(i);
        let from = flow.map_or(rows.len(), |flow| barrier.max(newest[usize::from(flow.0)]));
        let found = rows[from..].iter().take(REACH).position(|row| row == likeness);
        let row = found.map_or(rows.len(), |at| from + at);
        if row == rows.len() {
            rows.push(*likeness);
        }
        match flow {
            Some(flow) => newest[usize::from(flow.0)] = row,
            None => barrier = row,
        }
        row_of.push(row as u8);
    }
    if rows.len() == packets.len() {
        return None;
    }
    Some(by_row(&row_of, rows.len()))
}

/// Which peers have one packet in a burst, as far as eight bits of their numbers tell.
struct Lone([u8; 256]);

impl Lone {
    fn among(packets: &[Likeness]) -> Lone {
        let mut counts = [0; 256];
        packets.iter().for_each(|packet| counts[packet.peer()] += 1);
        Lone(counts)
    }

    fn has(&self, packet: Likeness) -> bool {
        self.0[packet.peer()] == 1
    }
}

/// A counting sort: the packets of row 0, in the order of their arrival, then those of row 1, and so on. There are fewer rows than packets.
fn by_row(row_of: &[u8], rows: usize) -> Order {
    debug_assert!(rows < row_of.len());
    let mut place = [0; BURST_MAX];
    for row in row_of {
        place[usize::from(*row) + 1] += 1;
    }
    for row in 0..rows {
        place[row + 1] += place[row];
    }
    let mut order = [0; BURST_MAX];
    for (i, row) in row_of.iter().enumerate() {
        let place = &mut place[usize::from(*row)];
        order[*place] = i as u8;
        *place += 1;
    }
    order[..row_of.len()].iter().copied().collect()
}

/// A flow, as far as [`FLOW_BITS`] bits of a hash tell. The hash is not seeded: nothing but speed depends on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Flow(u8);

impl Flow {
    /// The flow of a packet; `None` for fragments and for packets whose headers cannot be followed.
    pub(super) fn of(packet: &Packet<'_>) -> Option<Self> {
        const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
        let key = packet.flow();
        if !key.is_whole() {
            return None;
        }
        let hash = key
            .words()
            .iter()
            .fold(0u64, |hash, word| (hash.rotate_left(29) ^ word).wrapping_mul(ODD));
        Some(Flow((hash >> (64 - FLOW_BITS)) as u8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rows(packets: &[Likeness], order: &Order) -> usize {
        let in_order: Vec<_> = order.iter().map(|i| packets[usize::from(*i)]).collect();
        1 + in_order.windows(2).filter(|pair| pair[0] != pair[1]).count()
    }

    fn arranged(packets: &[(u64, Option<u8>)]) -> (Vec<Likeness>, Order) {
        let likeness: Vec<_> = packets.iter().map(|(size, _)| Likeness(*size)).collect();
        let order = arrange(&likeness, |i| packets[i].1.map(Flow));
        let as_they_came = || (0..packets.len() as u8).collect();
        (likeness, order.unwrap_or_else(as_they_came))
    }

    proptest! {
        #[test]
        fn order_within_flows_is_kept(
            packets in prop::collection::vec((0..5_u64, prop::option::weighted(0.95, 0..4_u8)), 1..=BURST_MAX),
        ) {
            let (likeness, order) = arranged(&packets);
            let mut all: Vec<u8> = order.to_vec();
            all.sort_unstable();
            prop_assert!(all.into_iter().eq(0..packets.len() as u8), "every packet once");
            for (at, i) in order.iter().enumerate() {
                for j in &order[at + 1..] {
                    let (one, other) = (packets[usize::from(*i)].1, packets[usize::from(*j)].1);
                    let tied = one.is_none() || other.is_none() || one == other;
                    prop_assert!(i < j || !tied, "{j} passed by {i}");
                }
            }
            let as_they_came: Order = (0..packets.len() as u8).collect();
            prop_assert!(rows(&likeness, &order) <= rows(&likeness, &as_they_came));
        }
    }

    #[test]
    fn flows_of_one_size_each_make_a_row_each() {
        let sizes = [64, 576, 64, 64, 576, 64, 1400, 64, 576, 64, 64, 576];
        let packets: Vec<_> = (0..60)
            .map(|i| sizes[i % 12])
            .map(|size| (size, Some((size / 100) as u8)))
            .collect();
        let (likeness, order) = arranged(&packets);
        assert_eq!(rows(&likeness, &order), 3);
    }

    #[test]
    fn one_flow_stays_as_it_is() {
        let packets: Vec<_> = (0..40).map(|i| (i % 3, Some(7))).collect();
        let (_, order) = arranged(&packets);
        assert!(order.iter().copied().eq(0..40));
    }

    #[test]
    fn acknowledgements_leave_the_data_whole() {
        let packets: Vec<_> = (0..64)
            .map(|i| {
                if i % 5 == 4 {
                    (80, Some(1))
                } else {
                    (1420, Some(2))
                }
            })
            .collect();
        let (likeness, order) = arranged(&packets);
        assert_eq!(rows(&likeness, &order), 2);
    }

    #[test]
    fn nothing_passes_a_fragment() {
        let packets = [
            (1, Some(1)),
            (2, Some(2)),
            (3, None),
            (1, Some(3)),
            (2, Some(4)),
            (1, Some(3)),
        ];
        let (_, order) = arranged(&packets);
        assert_eq!(order.as_slice(), [0, 1, 2, 3, 5, 4]);
    }

    #[test]
    fn likeness_is_peer_length_and_ecn() {
        let one = Likeness::new(PeerId(1), 1420, 0);
        assert_eq!(one, Likeness::new(PeerId(1), 1420, 0));
        assert_ne!(one, Likeness::new(PeerId(2), 1420, 0));
        assert_ne!(one, Likeness::new(PeerId(1), 1404, 0));
        assert_ne!(one, Likeness::new(PeerId(1), 1420, 2));
    }

    #[test]
    fn flow_is_the_five_tuple_and_no_fragment_has_one() {
        let udp = |src: u8, port: u8, flags: u8| {
            let mut packet = [0; 28];
            packet[0] = 0x45;
            packet[3] = 28;
            packet[6] = flags;
            packet[9] = 17;
            packet[15] = src;
            packet[21] = port;
            Flow::of(&Packet::parse(&packet).expect("a whole header"))
        };
        assert_eq!(udp(1, 2, 0), udp(1, 2, 0x40));
        assert_ne!(udp(1, 2, 0), udp(1, 3, 0));
        assert_ne!(udp(1, 2, 0), udp(2, 2, 0));
        assert_eq!(udp(1, 2, 0x20), None);
    }
}
