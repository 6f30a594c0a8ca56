//! Tags: which of two sites' sessions a handshake is for.
//!
//! A site has one static key and, towards another site of its own, one session for each lane besides the base session. A tag
//! names the lane in the low 16 bits of the initiation's timestamp, where a stock peer sees nothing but a time (docs/wire.md, section 2).

use std::fmt;

use crate::PublicKey;

/// A WAN link of a site: 1 to 15, given by its configuration.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(u8);

impl LinkId {
    /// The highest number of a link.
    pub const MAX: u8 = 15;

    /// The link with this number, if it is one.
    pub const fn new(number: u8) -> Option<LinkId> {
        if number >= 1 && number <= Self::MAX {
            Some(LinkId(number))
        } else {
            None
        }
    }

    /// Its number.
    pub const fn number(self) -> u8 {
        self.0
    }
}

impl fmt::Debug for LinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "link {}", self.0)
    }
}

/// A way between two sites: a link of ours and a link of theirs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Path {
    /// Ours.
    pub local: LinkId,
    /// Theirs.
    pub remote: LinkId,
}

/// The name of one lane of one path between two sites, the same on both: four bits for the link of the site whose public key is
/// smaller, four for the other's, eight for the lane's number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(u16);

impl Tag {
    /// The tag of a lane of a path between the sites with these keys.
    pub fn new(own: &PublicKey, remote: &PublicKey, path: Path, lane: u8) -> Tag {
        let (x, y) = match own < remote {
            true => (path.local, path.remote),
            false => (path.remote, path.local),
        };
        Tag(u16::from(x.0) << 12 | u16::from(y.0) << 8 | u16::from(lane))
    }

    /// The tag with these bits. `None`: they name no lane, because a link is missing. All zero is the base session's.
    pub fn from_bits(bits: u16) -> Option<Tag> {
        let has_links = bits >> 12 != 0 && bits >> 8 & 0xf != 0;
        has_links.then_some(Tag(bits))
    }

    /// As it stands in a timestamp.
    pub fn bits(self) -> u16 {
        self.0
    }

    /// The path, as the site with the key `own` sees it.
    pub fn path(self, own: &PublicKey, remote: &PublicKey) -> Path {
        let x = LinkId((self.0 >> 12) as u8);
        let y = LinkId((self.0 >> 8 & 0xf) as u8);
        match own < remote {
            true => Path { local: x, remote: y },
            false => Path { local: y, remote: x },
        }
    }

    /// The lane's number.
    pub fn lane(self) -> u8 {
        self.0 as u8
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: PublicKey = PublicKey([1; 32]);
    const LARGE: PublicKey = PublicKey([2; 32]);

    fn path(local: u8, remote: u8) -> Path {
        Path {
            local: LinkId::new(local).unwrap(),
            remote: LinkId::new(remote).unwrap(),
        }
    }

    #[test]
    fn both_sites_have_the_same_name_for_a_lane() {
        let ours = Tag::new(&SMALL, &LARGE, path(3, 9), 7);
        assert_eq!(ours.bits(), 0x3907);
        assert_eq!(Tag::new(&LARGE, &SMALL, path(9, 3), 7), ours);
        assert_eq!(ours.path(&SMALL, &LARGE), path(3, 9));
        assert_eq!(ours.path(&LARGE, &SMALL), path(9, 3));
        assert_eq!(ours.lane(), 7);
    }

    #[test]
    fn a_tag_names_two_links() {
        for bits in [0x0000, 0x0001, 0x1000, 0x0100, 0x00ff, 0xf0ff, 0x0fff] {
            assert_eq!(Tag::from_bits(bits), None, "{bits:04x}");
        }
        for bits in [0x1100, 0xffff, 0x1f01] {
            assert_eq!(Tag::from_bits(bits).map(Tag::bits), Some(bits));
        }
    }

    #[test]
    fn links_are_1_to_15() {
        assert_eq!(LinkId::new(0), None);
        assert_eq!(LinkId::new(16), None);
        assert_eq!(LinkId::new(15).map(LinkId::number), Some(15));
    }
}
