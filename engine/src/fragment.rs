//! Inner IPv4 packets that are too long for their tunnel, cut into fragments before they are sealed (RFC 791, section 3.2).
//!
//! Called by a worker for the packets whose senders allow it. Who is behind the tunnel puts them together again; the datagrams outside stay whole,
//! so that the other end needs no memory for pieces of what it cannot check yet.

use arrayvec::ArrayVec;
use patronus_io::ip::{IPV4_HEADER, Packet, Sum};
use patronus_mem::{BURST_MAX, Burst, FrameCache, PktBuf};

use crate::remote::message::DOUBLED;
use crate::snapshot::MTU_MIN;

/// The least that fragments may be long: with what stands in front of those that go twice, what every link of IPv6 takes.
pub const LEAST: usize = MTU_MIN as usize - DOUBLED;
/// The longest IPv4 header, bytes.
const HEADER_MAX: usize = 60;
/// Payload of a fragment, and where it belongs, are counted in eights.
const UNIT: usize = 8;
const MORE: u16 = 1 << 13;
const OFFSET: u16 = MORE - 1;
/// The bit of an option that is in every fragment, not only in the first (RFC 791, section 3.1).
const COPIED: u8 = 1 << 7;

// The longest packet there is fits a burst.
const _: () = assert!((u16::MAX as usize).div_ceil((LEAST - HEADER_MAX) / UNIT * UNIT) <= BURST_MAX);

/// Why a packet was not cut up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Uncut {
    /// Its header is damaged: whoever made it good again would hide that.
    Damaged,
    /// No frame is free.
    NoFrame,
}

/// Puts fragments of an IPv4 packet, none longer than `mtu` bytes, into `fragments`, which is empty. The packet may be a fragment itself, and is not looked at
/// behind the length that its header says. Its own frame holds the first fragment, and each other one takes a frame of the cache.
///
/// # Panics
///
/// If the MTU is below [`LEAST`], or the packet fits it.
#[cold]
pub fn cut(
    frames: &mut FrameCache,
    mut packet: PktBuf,
    mtu: usize,
    fragments: &mut Burst,
) -> Result<(), (Uncut, PktBuf)> {
    assert!(mtu >= LEAST && fragments.is_empty());
    let Some((header, total)) = measure(packet.data()) else {
        return Err((Uncut::Damaged, packet));
    };
    assert!(total > mtu);
    let step = (mtu - header.len()) / UNIT * UNIT;
    let mut rest = Burst::new();
    for bytes in packet.data()[header.len()..total].chunks(step).skip(1) {
        match frames.alloc_for(header.len() + bytes.len()) {
            Some(frame) => rest.push(frame),
            None => {
                rest.clear_into(frames);
                return Err((Uncut::NoFrame, packet));
            }
        }
    }
    let later = without_first_options(&header);
    let payload = &packet.data()[header.len()..total];
    let pieces = rest.len();
    for (piece, (frame, bytes)) in (1..).zip(rest.iter_mut().zip(payload.chunks(step).skip(1))) {
        let whole = frame.append(later.len() + bytes.len());
        let (head, body) = whole.split_at_mut(later.len());
        head.copy_from_slice(&later);
        body.copy_from_slice(bytes);
        let place = Place {
            units: piece * step / UNIT,
            last: piece == pieces,
        };
        place.write(head, bytes.len());
        frame.set_mark(packet.mark());
    }
    packet.truncate(header.len() + step);
    let first = Place {
        units: 0,
        last: false,
    };
    first.write(&mut packet.data_mut()[..header.len()], step);
    fragments.push(packet);
    rest.drain(..).for_each(|fragment| fragments.push(fragment));
    Ok(())
}

/// The header of an IPv4 packet and its whole length, if it verifies.
fn measure(bytes: &[u8]) -> Option<(ArrayVec<u8, HEADER_MAX>, usize)> {
    let packet = Packet::parse(bytes).ok()?;
    let header: ArrayVec<u8, HEADER_MAX> = bytes[..packet.header_len()].try_into().ok()?;
    Sum::of(&header)
        .is_valid()
        .then_some((header, packet.total_len()))
}

/// The header of every fragment but the first: of the options only those that say so.
fn without_first_options(header: &[u8]) -> ArrayVec<u8, HEADER_MAX> {
    let (fixed, mut options) = header.split_at(IPV4_HEADER);
    let mut later: ArrayVec<u8, HEADER_MAX> = fixed.iter().copied().collect();
    loop {
        options = match *options {
            // End of the list, or what cannot be followed.
            [] | [0, ..] | [_] => break,
            [1, ref rest @ ..] => rest,
            [kind, len, ..] => {
                let Some((option, rest)) = options.split_at_checked(len.into()).filter(|_| len >= 2) else {
                    break;
                };
                if kind & COPIED != 0 {
                    later.extend(option.iter().copied());
                }
                rest
            }
        }
    }
    while later.len() % 4 != 0 {
        later.push(0);
    }
    later[0] = 0x40 | (later.len() / 4) as u8;
    later
}

/// Where a fragment belongs in the packet that is cut up.
struct Place {
    /// Payload before it, in eights.
    units: usize,
    last: bool,
}

impl Place {
    /// Writes it into a copy of the packet's header, before a payload of `len` bytes.
    fn write(&self, header: &mut [u8], len: usize) {
        let total = (header.len() + len) as u16;
        header[2..4].copy_from_slice(&total.to_be_bytes());
        let old = u16::from_be_bytes([header[6], header[7]]);
        // The packet may be a fragment: then its last one is followed by others as well. Beyond the longest packet nobody puts them together.
        let offset = (old & OFFSET).wrapping_add(self.units as u16) & OFFSET;
        let more = if self.last { old & MORE } else { MORE };
        let word = old & !(MORE | OFFSET) | more | offset;
        header[6..8].copy_from_slice(&word.to_be_bytes());
        header[10..12].fill(0);
        let sum = Sum::of(header).checksum();
        header[10..12].copy_from_slice(&sum);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, MutexGuard, OnceLock};

    use patronus_io::ip::PROTO_UDP;
    use patronus_mem::{Arena, ArenaConfig};
    use proptest::prelude::*;

    use super::*;

    /// An arena lives for ever, so all tests share one, in turn. The turn comes first: it is dropped last, when all frames are back.
    fn frames() -> (MutexGuard<'static, ()>, FrameCache) {
        static ARENA: OnceLock<&Arena> = OnceLock::new();
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let arena = ARENA.get_or_init(|| {
            let config = ArenaConfig {
                frames: 64,
                jumbo_frames: 40,
            };
            Arena::new(&config).unwrap()
        });
        (turn, FrameCache::new(arena))
    }

    /// A packet with these options, flags and offset.
    fn packet(options: &[u8], word: u16, payload: usize) -> Vec<u8> {
        let header = IPV4_HEADER + options.len();
        let mut packet = vec![0; header];
        packet[0] = 0x40 | (header / 4) as u8;
        packet[1] = 0xb9;
        packet[2..4].copy_from_slice(&((header + payload) as u16).to_be_bytes());
        packet[4..6].copy_from_slice(&[0xab, 0xcd]);
        packet[6..8].copy_from_slice(&word.to_be_bytes());
        (packet[8], packet[9]) = (63, PROTO_UDP);
        packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 1, 0, 1]);
        packet[20..].copy_from_slice(options);
        let sum = Sum::of(&packet).checksum();
        packet[10..12].copy_from_slice(&sum);
        packet.extend((0..payload).map(|n| (n * 31 + n / 251) as u8));
        packet
    }

    fn cut_up(frames: &mut FrameCache, bytes: &[u8], mtu: usize) -> Result<Vec<Vec<u8>>, Uncut> {
        let mut frame = frames.alloc_for(bytes.len()).unwrap();
        frame.append(bytes.len()).copy_from_slice(bytes);
        let mut fragments = Burst::new();
        let result = cut(frames, frame, mtu, &mut fragments);
        let bytes = fragments
            .iter()
            .map(|fragment| fragment.data().to_vec())
            .collect();
        fragments.clear_into(frames);
        result.map(|()| bytes).map_err(|(why, packet)| {
            frames.free(packet);
            why
        })
    }

    /// Puts fragments together, as a receiver does: all of them in place, each byte once.
    fn together(fragments: &[Vec<u8>]) -> (Vec<u8>, usize, bool) {
        let place = |bytes: &[u8]| u16::from_be_bytes([bytes[6], bytes[7]]);
        let mut all = Vec::new();
        let start = usize::from(place(&fragments[0]) & OFFSET) * UNIT;
        for (at, fragment) in fragments.iter().enumerate() {
            let parsed = Packet::parse(fragment).unwrap();
            assert_eq!(parsed.total_len(), fragment.len());
            let header = &fragment[..parsed.header_len()];
            assert!(Sum::of(header).is_valid());
            assert_eq!(usize::from(place(fragment) & OFFSET) * UNIT, start + all.len());
            assert!(at + 1 == fragments.len() || place(fragment) & MORE != 0);
            all.extend(&fragment[header.len()..]);
        }
        (all, start, place(fragments.last().unwrap()) & MORE != 0)
    }

    #[test]
    fn fragments_are_these() {
        let (_turn, mut frames) = frames();
        let whole = packet(&[], 0, 1401);
        let fragments = cut_up(&mut frames, &whole, 1280).unwrap();
        let lens: Vec<_> = fragments.iter().map(Vec::len).collect();
        // 1,260 bytes of payload are not a multiple of eight.
        assert_eq!(lens, [20 + 1256, 20 + 145]);
        assert_eq!(fragments[0][6..8], [0x20, 0]);
        assert_eq!(fragments[1][6..8], [0, 157]);
        for fragment in &fragments {
            // Type of service, identification, time to live, protocol, addresses.
            for field in [1..2, 4..6, 8..10, 12..20] {
                assert_eq!(fragment[field.clone()], whole[field]);
            }
        }
    }

    #[test]
    fn options_are_copied_that_say_so() {
        let (_turn, mut frames) = frames();
        // Record route (7), not copied; no operation; stream identifier (136), copied; end.
        let options = [7, 3, 4, 1, 136, 4, 0x12, 0x34, 0, 0, 0, 0];
        let fragments = cut_up(&mut frames, &packet(&options, 0, 3000), 1280).unwrap();
        assert_eq!(fragments[0][20..32], options);
        for later in &fragments[1..] {
            assert_eq!((later[0], &later[20..24]), (0x46, &[136, 4, 0x12, 0x34][..]));
        }
        assert_eq!(together(&fragments).0.len(), 3000);
        // A list that cannot be followed ends there.
        for broken in [[136, 0, 0, 0], [136, 9, 0, 0], [1, 1, 1, 136]] {
            let fragments = cut_up(&mut frames, &packet(&broken, 0, 3000), 1280).unwrap();
            assert_eq!(fragments[1][0], 0x45);
            assert_eq!(together(&fragments).0.len(), 3000);
        }
    }

    #[test]
    fn a_damaged_header_stays_damaged() {
        let (_turn, mut frames) = frames();
        let mut damaged = packet(&[], 0, 3000);
        damaged[13] ^= 1;
        assert_eq!(cut_up(&mut frames, &damaged, 1280), Err(Uncut::Damaged));
    }

    #[test]
    fn without_frames_nothing_is_lost_but_the_packet() {
        let (turn, mut frames) = frames();
        let mut held = Burst::new();
        for _ in 0..60 {
            held.push(frames.alloc().unwrap());
        }
        assert_eq!(
            cut_up(&mut frames, &packet(&[], 0, 60_000), 1280),
            Err(Uncut::NoFrame)
        );
        held.clear_into(&mut frames);
        assert_eq!(
            cut_up(&mut frames, &packet(&[], 0, 60_000), 1280).unwrap().len(),
            48
        );
        let arena = frames.arena();
        drop(frames);
        assert_eq!(arena.free_frames(), arena.frames());
        drop(turn);
    }

    proptest! {
        #[test]
        fn put_together_they_are_the_packet(
            payload in 1300..65_000usize, mtu in 1280..9000usize, words in 0..=10usize, offset in 0..50u16, more: bool, behind in 0..16usize,
        ) {
            let (_turn, mut frames) = frames();
            // Options that fill: copied, of two bytes each.
            let options = [130, 2].repeat(words * 2);
            let payload = payload.min(65_535 - 20 - options.len());
            let whole = packet(&options, offset | if more { MORE } else { 0 }, payload);
            prop_assume!(whole.len() > mtu);
            let mut bytes = whole.clone();
            bytes.extend(vec![0xee; behind.min(65_535 - whole.len())]);
            let fragments = cut_up(&mut frames, &bytes, mtu).unwrap();
            prop_assert!(fragments.iter().all(|fragment| fragment.len() <= mtu));
            let (all, start, followed) = together(&fragments);
            prop_assert_eq!(&all[..], &whole[20 + options.len()..]);
            prop_assert_eq!((start, followed), (usize::from(offset) * UNIT, more));
            // No more of them than it takes.
            let step = (mtu - 20 - options.len()) / UNIT * UNIT;
            prop_assert_eq!(fragments.len(), payload.div_ceil(step));
        }
    }
}
