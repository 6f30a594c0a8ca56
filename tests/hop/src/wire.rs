//! Frames as they would be on a wire: what the sender's kernel left to a network card (checksum, segmentation, VLAN tag) is done here, so
//! that every packet is met and impaired on its own, and so that damage shows.
//!
//! Called by [`crate::bridge`] on its one thread. The buffers of frames are used again.

use patronus_io::ip::Malformed;
use patronus_io::offload::Gso;
use patronus_io::offload::split::{SuperPacket, complete_checksum};
use patronus_io::packet::Received;

use crate::link::Packet;

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Bytes of a VLAN tag.
const TAG: usize = 4;
/// Where the tag stands.
const TAG_AT: usize = 12;
/// Buffers that are kept for later.
const SPARE_MAX: usize = 4096;
/// A buffer of more bytes is not kept.
const SPARE_LEN_MAX: usize = 4096;

/// A complete frame.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    bytes: Vec<u8>,
    /// Bytes in front of the network layer's packet.
    link: usize,
}

impl Frame {
    /// From the link header on.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The same, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Packet for Frame {
    fn frame_len(&self) -> usize {
        self.bytes.len()
    }

    fn ip_len(&self) -> usize {
        self.bytes.len().saturating_sub(self.link)
    }

    fn copy(&self) -> Frame {
        Frame {
            bytes: self.bytes.clone(),
            link: self.link,
        }
    }

    fn flip(&mut self, bit: u64) {
        let bits = self.ip_len() as u64 * 8;
        if let Some(bit) = bit.checked_rem(bits) {
            self.bytes[self.link + (bit / 8) as usize] ^= 1 << (bit % 8);
        }
    }
}

/// Buffers that were used before.
#[derive(Default)]
pub struct Pool(Vec<Vec<u8>>);

impl Pool {
    /// Takes a frame's buffer back.
    pub fn put(&mut self, frame: Frame) {
        if self.0.len() < SPARE_MAX && frame.bytes.capacity() <= SPARE_LEN_MAX {
            self.0.push(frame.bytes);
        }
    }

    fn frame(&mut self, header: &[u8], tag: Option<[u8; TAG]>, len: usize) -> Frame {
        let mut bytes = self.0.pop().unwrap_or_default();
        bytes.clear();
        let at = header.len().min(TAG_AT);
        bytes.extend_from_slice(&header[..at]);
        bytes.extend_from_slice(tag.as_ref().map_or(&[], |tag| &tag[..]));
        bytes.extend_from_slice(&header[at..]);
        let link = bytes.len();
        bytes.resize(link + len, 0);
        Frame { bytes, link }
    }
}

/// Hands every packet that `bytes` stand for to `each`, complete.
pub fn complete(
    received: &Received,
    bytes: &mut [u8],
    pool: &mut Pool,
    mut each: impl FnMut(Frame, &mut Pool),
) -> Result<(), Malformed> {
    if received.cut_off || bytes.len() < ETHERNET {
        return Err(Malformed::Truncated);
    }
    if received.vnet.gso == Gso::None {
        if received.vnet.needs_csum {
            complete_checksum(&received.vnet, bytes)?;
        }
        let (header, packet) = bytes.split_at(ETHERNET);
        let mut frame = pool.frame(header, received.vlan, packet.len());
        let link = frame.link;
        frame.bytes[link..].copy_from_slice(packet);
        each(frame, pool);
        return Ok(());
    }
    let (header, packet) = bytes.split_at(ETHERNET);
    let mut rest = SuperPacket::parse(&received.vnet, packet)?;
    // At most 64 Ki packets of one byte: the super-packet's length bounds it.
    while rest.remaining() > 0 {
        let mut frame = pool.frame(header, received.vlan, rest.next_len());
        let link = frame.link;
        rest.write_next(packet, &mut frame.bytes[link..]);
        each(frame, pool);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bit_behind_the_link_header_is_turned_over() {
        let mut pool = Pool::default();
        let mut frame = pool.frame(&[7; ETHERNET], Some([0x81, 0, 0, 5]), 3);
        assert_eq!((frame.frame_len(), frame.ip_len()), (ETHERNET + TAG + 3, 3));
        assert_eq!(frame.bytes()[TAG_AT..TAG_AT + TAG], [0x81, 0, 0, 5]);
        frame.flip(24 + 9);
        assert_eq!(frame.bytes()[ETHERNET + TAG..], [0, 2, 0]);
        pool.put(frame);
        let mut empty = pool.frame(&[7; ETHERNET], None, 0);
        empty.flip(5);
        assert_eq!(empty.bytes(), [7; ETHERNET], "the buffer is as new");
    }
}
