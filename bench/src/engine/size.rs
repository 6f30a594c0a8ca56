//! Sizes of packets: one for all, or a mix as on the internet.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// Seven small packets, four middling ones and a large one, as far apart as they go: the usual IMIX, with the largest packet that a tunnel takes.
const IMIX: [usize; 12] = [64, 576, 64, 64, 576, 64, 1420, 64, 576, 64, 64, 576];

/// The shortest packet that is made.
const SHORTEST: usize = 40;

/// Bytes of the inner packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Size {
    /// All have as many.
    Bytes(usize),
    /// 64, 576 and 1,420, in the ratio 7 to 4 to 1.
    Imix,
}

impl Size {
    /// The sizes of packets that come one after the other, over and over.
    pub fn cycle(self) -> Vec<usize> {
        match self {
            Size::Bytes(bytes) => vec![bytes],
            Size::Imix => IMIX.to_vec(),
        }
    }

    /// That of one packet of them.
    pub fn of(self, packet: usize) -> usize {
        match self {
            Size::Bytes(bytes) => bytes,
            Size::Imix => IMIX[packet % IMIX.len()],
        }
    }

    /// Bytes of the first packets.
    pub fn sum(self, packets: usize) -> usize {
        (0..packets).map(|packet| self.of(packet)).sum()
    }

    /// What `text` says: bytes within these bounds, or `imix`.
    pub fn parse(text: &str, bounds: RangeInclusive<usize>) -> Result<Size, String> {
        match text.parse() {
            _ if text == "imix" => Ok(Size::Imix),
            Ok(bytes) if bounds.contains(&bytes) => Ok(Size::Bytes(bytes)),
            _ => Err(format!(
                "a packet has {} to {} bytes, or `imix` for a mix",
                bounds.start(),
                bounds.end()
            )),
        }
    }

    /// Mean number of bytes.
    pub fn mean(self) -> f64 {
        let sizes = self.cycle().len();
        self.sum(sizes) as f64 / sizes as f64
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        Size::parse(text, SHORTEST..=patronus_mem::SMALL_MAX)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Size::Bytes(bytes) => bytes.fmt(f),
            Size::Imix => f.pad("imix"),
        }
    }
}

/// A number, or `"imix"`.
impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Size::Bytes(bytes) => serializer.serialize_u64(*bytes as u64),
            Size::Imix => serializer.serialize_str("imix"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mix_is_seven_to_four_to_one() {
        let count = |size| Size::Imix.cycle().into_iter().filter(|s| *s == size).count();
        assert_eq!([64, 576, 1420].map(count), [7, 4, 1]);
        assert_eq!(Size::Imix.sum(24) as f64, 24.0 * Size::Imix.mean());
    }

    #[test]
    fn sizes_that_no_packet_has_are_refused() {
        assert_eq!("imix".parse(), Ok(Size::Imix));
        assert_eq!("64".parse(), Ok(Size::Bytes(64)));
        for text in ["39", "100000", "-1", "big", ""] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
