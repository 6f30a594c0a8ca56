//! Where in a sorted list of addresses a lookup begins to compare.
//!
//! A stage cuts the span from its first to its last address into equal parts, about as many as addresses: an address's part
//! is a subtraction and a shift. A part in which few addresses lie leads to them, one with many to a stage of its own: prefixes
//! lie in clusters, 10.0.0.0/8 beside 192.168.0.0/16, and each cluster then has a stage. After [`STAGES`] of them, which
//! takes lengths chosen to do so, the list is searched by halves: the cost is bounded whatever the prefixes are.

/// Addresses that are compared at once.
pub(super) const NEAR: usize = 8;

/// Stages that a lookup goes through at most.
const STAGES: usize = 3;

/// An address as a number.
pub(super) trait Address: Copy + Ord {
    const ZERO: Self;
    const MAX: Self;
    /// The address after this one, unless it is the last.
    fn next(self) -> Option<Self>;
    /// How many parts of `1 << shift` addresses lie between this and a later address; many are cut down to the most that a `u32` holds.
    fn parts_to(self, later: Self, shift: u32) -> u32;
    /// The shift that cuts the span to a later address into at most `1 << bits` parts.
    fn shift_for(self, later: Self, bits: u32) -> u32;
}

macro_rules! address {
    ($type:ty) => {
        impl Address for $type {
            const ZERO: Self = 0;
            const MAX: Self = <$type>::MAX;
            fn next(self) -> Option<Self> {
                self.checked_add(1)
            }
            #[inline]
            fn parts_to(self, later: Self, shift: u32) -> u32 {
                u32::try_from((later - self) >> shift).unwrap_or(u32::MAX)
            }
            fn shift_for(self, later: Self, bits: u32) -> u32 {
                (<$type>::BITS - (later - self).leading_zeros()).saturating_sub(bits)
            }
        }
    };
}
address!(u32);
address!(u128);

/// What an address's part says.
enum Part {
    /// The range is this one or one of the next [`NEAR`].
    Near(u32),
    /// Another stage knows.
    Stage(u32),
    /// Too many are left.
    Search,
}

/// The same in four bytes, of which the caches hold more: the highest number is the search, the upper half are stages.
#[derive(Clone, Copy)]
struct Packed(u32);

impl Packed {
    const STAGES: u32 = 1 << 31;

    fn pack(part: Part) -> Self {
        Packed(match part {
            Part::Near(from) => {
                assert!(from < Self::STAGES, "no configuration has as many prefixes");
                from
            }
            Part::Stage(stage) => Self::STAGES | stage,
            Part::Search => u32::MAX,
        })
    }

    #[inline]
    fn unpack(self) -> Part {
        if self.0 < Self::STAGES {
            Part::Near(self.0)
        } else if self.0 < u32::MAX {
            Part::Stage(self.0 - Self::STAGES)
        } else {
            Part::Search
        }
    }
}

/// A cluster of addresses.
#[derive(Clone, Copy)]
struct Stage<K> {
    /// The first of them.
    base: K,
    shift: u32,
    /// The range that ends where the first begins.
    before: u32,
    /// Where its parts stand, and how many there are beyond the first.
    parts: u32,
    last: u32,
}

/// A guess for every address.
pub(super) struct Guide<K> {
    /// The first one is for all addresses.
    stages: Box<[Stage<K>]>,
    parts: Box<[Packed]>,
}

impl<K: Address> Guide<K> {
    /// For the ranges that begin at these addresses, ascending from zero.
    pub fn build(starts: &[K]) -> Self {
        let mut builder = Builder {
            starts,
            stages: Vec::new(),
            parts: Vec::new(),
        };
        builder.stage(0, starts.len() - 1, 1);
        Guide {
            stages: builder.stages.into(),
            parts: builder.parts.into(),
        }
    }

    /// The range of an address, of those that the guide was built for, with [`NEAR`] times the highest address behind them: at least the last one
    /// for what belongs to the last one.
    #[inline]
    pub fn range(&self, starts: &[K], addr: K) -> usize {
        let mut stage = &self.stages[0];
        for _ in 0..STAGES {
            if addr < stage.base {
                return stage.before as usize;
            }
            let part = stage.base.parts_to(addr, stage.shift).min(stage.last);
            match self.parts[(stage.parts + part) as usize].unpack() {
                Part::Near(from) => return from as usize + not_above(&starts[from as usize + 1..], addr),
                Part::Stage(next) => stage = &self.stages[next as usize],
                Part::Search => break,
            }
        }
        starts.partition_point(|start| *start <= addr) - 1
    }

    pub fn memory(&self) -> usize {
        size_of_val(&*self.stages) + size_of_val(&*self.parts)
    }
}

/// How many of the next few addresses are not above this one.
#[inline]
fn not_above<K: Address>(starts: &[K], addr: K) -> usize {
    // Counted in 32 bits: as wide as the addresses of IPv4, so that four of them are counted at once.
    let near = starts[..NEAR].iter();
    near.map(|start| u32::from(*start <= addr)).sum::<u32>() as usize
}

struct Builder<'a, K> {
    starts: &'a [K],
    stages: Vec<Stage<K>>,
    parts: Vec<Packed>,
}

impl<K: Address> Builder<'_, K> {
    /// Adds a stage for the ranges behind `before` up to `last`, and those that it needs in turn; says which one it is.
    fn stage(&mut self, before: usize, last: usize, depth: usize) -> u32 {
        let keys = &self.starts[before + 1..=last];
        let base = keys.first().copied().unwrap_or(K::MAX);
        let bits = keys.len().max(1).next_power_of_two().trailing_zeros();
        let shift = keys.last().map_or(0, |end| base.shift_for(*end, bits));
        let count = keys.last().map_or(1, |end| base.parts_to(*end, shift) + 1);
        let (stage, parts) = (self.stages.len(), self.parts.len());
        self.stages.push(Stage {
            base,
            shift,
            before: before as u32,
            parts: parts as u32,
            last: count - 1,
        });
        self.parts
            .resize(parts + count as usize, Packed::pack(Part::Search));
        let mut from = before;
        for part in 0..count {
            let inside = self.starts[from + 1..=last].iter();
            let to = from
                + inside
                    .take_while(|key| base.parts_to(**key, shift) == part)
                    .count();
            self.parts[parts + part as usize] = Packed::pack(if to - from <= NEAR {
                Part::Near(from as u32)
            } else if depth < STAGES {
                Part::Stage(self.stage(from, to, depth + 1))
            } else {
                Part::Search
            });
            from = to;
        }
        stage as u32
    }
}
