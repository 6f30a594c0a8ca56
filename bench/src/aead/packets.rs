//! The packets that are sealed and opened: as the engine has them, in frames of an arena behind a data message's header, each of another
//! session than its neighbours.

use patronus_crypto::aead::TAG;
use patronus_crypto::messages::HEADER;
use patronus_mem::{Arena, ArenaConfig, FrameCache, PktBuf, Secret};
use patronus_netns::{Error, Result};

use super::backend::Backend;
use super::{Cell, Op};

/// Sessions that the packets are of, one after the other. Also as many packets as there are at least: with those of 1,420 bytes they fill a
/// first-level cache, and are far from filling a second.
pub const SESSIONS: usize = 32;

/// What every byte of a text is.
const FILLING: u8 = 0x5a;

/// Packets of one cell.
pub struct Packets {
    frames: FrameCache,
    packets: Vec<PktBuf>,
}

/// The key of a session. Not random: nothing is secret here, and every key is another one.
pub fn key(session: usize) -> [u8; 32] {
    std::array::from_fn(|at| (session as u8).wrapping_mul(151) ^ (at as u8).wrapping_mul(37))
}

/// The same in locked memory, where the engine has it.
pub fn secret(session: usize) -> Secret<32> {
    Secret::new(&mut key(session))
}

/// The packet's counter.
pub fn counter(packet: usize) -> u64 {
    packet as u64 + 1
}

/// The nonce of the packet with this counter (WireGuard paper, section 5.4.6).
pub fn nonce(counter: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    nonce
}

/// Text and tag.
pub fn sealed(packet: &mut PktBuf) -> &mut [u8] {
    &mut packet.data_mut()[HEADER..]
}

impl Packets {
    /// None yet.
    pub fn new() -> Result<Packets> {
        let arena = Arena::new(&ArenaConfig {
            frames: 4096,
            jumbo_frames: 1024,
        });
        let arena = arena.map_err(|e| Error::new(format!("memory for packets: {e}")))?;
        Ok(Packets {
            frames: FrameCache::new(arena),
            packets: Vec::new(),
        })
    }

    /// How many there are: a number of whole bursts.
    pub fn len(&self) -> usize {
        self.packets.len()
    }

    /// Fresh texts, for as many bursts as it takes to have every session.
    pub fn fill(&mut self, cell: Cell) {
        self.packets.drain(..).for_each(|packet| self.frames.free(packet));
        for number in 0..SESSIONS.next_multiple_of(cell.burst) {
            let sealed = cell.size.of(number) + TAG;
            let mut packet = self.frames.alloc_for(HEADER + sealed).expect("a frame");
            packet.append(HEADER + sealed).fill(FILLING);
            self.packets.push(packet);
        }
    }

    /// Seals or opens every packet, by the burst. Returns how many failed.
    pub fn work(&mut self, backend: &mut dyn Backend, op: Op, burst: usize) -> usize {
        let mut bad = 0;
        for (number, packets) in self.packets.chunks_mut(burst).enumerate() {
            bad += backend.work(op, number * burst, packets);
        }
        bad
    }

    /// What stands in the packets.
    pub fn bytes(&mut self) -> Vec<Vec<u8>> {
        self.packets.iter_mut().map(|p| sealed(p).to_vec()).collect()
    }

    /// Whether every text is what it was at first.
    pub fn are_plain(&mut self) -> bool {
        self.packets.iter_mut().all(|packet| {
            let (text, _) = sealed(packet).split_last_chunk::<TAG>().expect("a tag");
            text.iter().all(|byte| *byte == FILLING)
        })
    }

    /// Turns a bit in one packet.
    pub fn forge(&mut self, packet: usize, bit: usize) {
        let bytes = sealed(&mut self.packets[packet]);
        bytes[bit / 8 % bytes.len()] ^= 1 << (bit % 8);
    }
}
