//! Chance that repeats: a number from a seed, a packet's ordinal and what it is for, and from nothing else. So whether packet 1,000 is
//! lost does not depend on whether packets were also delayed, or on when anything happened.
//!
//! Called by [`crate::model`] and [`crate::nat`]; values without state.

/// What a number is for. Each has its own sequence.
#[derive(Clone, Copy, Debug)]
pub enum Purpose {
    /// Whether a packet is lost.
    Loss = 1,
    /// Whether a burst of losses begins or ends.
    Burst,
    /// How much later or earlier than the fixed delay; two more follow.
    Jitter,
    /// The second third of a normal deviate.
    JitterMore,
    /// The last third of it.
    JitterMost,
    /// Whether a packet is held back.
    Reorder,
    /// Whether a packet comes twice.
    Duplicate,
    /// Whether a bit is turned over.
    Corrupt,
    /// Which one.
    Bit,
    /// A UDP port of the NAT.
    Port,
}

/// The numbers of one direction.
#[derive(Clone, Copy, Debug)]
pub struct Dice(u64);

impl Dice {
    /// For a seed and the number of the direction.
    pub fn new(seed: u64, direction: usize) -> Dice {
        Dice(mix(mix(seed) ^ direction as u64))
    }

    /// The number of a packet for a purpose.
    pub fn roll(self, ordinal: u64, purpose: Purpose) -> u64 {
        mix(mix(self.0 ^ ordinal) ^ purpose as u64)
    }
}

/// The output function of SplitMix64 (Steele, Lea and Flood, 2014), behind one step of its counter.
fn mix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A probability in billionths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chance(u32);

impl Chance {
    /// It always happens.
    pub const ALWAYS: Chance = Chance(1_000_000_000);
    /// It never happens.
    pub const NEVER: Chance = Chance(0);

    /// From billionths; more than a billion of them are [`Chance::ALWAYS`].
    pub fn billionths(parts: u32) -> Chance {
        Chance(parts.min(Chance::ALWAYS.0))
    }

    /// As a fraction of one.
    pub fn fraction(self) -> f64 {
        f64::from(self.0) / 1e9
    }

    /// Whether a number from [`Dice::roll`] means that it happens.
    pub fn hits(self, roll: u64) -> bool {
        below(roll, 1_000_000_000) < u64::from(self.0)
    }
}

/// A number below `end`, evenly from all 64 bits of `roll`.
pub fn below(roll: u64, end: u64) -> u64 {
    ((u128::from(roll) * u128::from(end)) >> 64) as u64
}

/// A normal deviate in thousandths of its standard deviation, from three rolls: the sum of twelve even numbers less its mean, so within
/// six deviations and the same on every machine.
pub fn normal(rolls: [u64; 3]) -> i64 {
    let quarters = rolls
        .iter()
        .flat_map(|roll| (0..4).map(move |i| (roll >> (16 * i)) & 0xffff));
    let sum: u64 = quarters.sum();
    // Twelve even numbers below 1 have the variance 12 / 12 and the mean 6.
    (sum as i64 * 1000 + 6 * 1000) / 65536 - 6 * 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_differ_by_seed_direction_ordinal_and_purpose() {
        let base = Dice::new(1, 0).roll(1, Purpose::Loss);
        let others = [
            Dice::new(2, 0).roll(1, Purpose::Loss),
            Dice::new(1, 1).roll(1, Purpose::Loss),
            Dice::new(1, 0).roll(2, Purpose::Loss),
            Dice::new(1, 0).roll(1, Purpose::Burst),
        ];
        assert!(others.iter().all(|other| *other != base), "{others:?}");
        assert_eq!(base, Dice::new(1, 0).roll(1, Purpose::Loss));
    }

    #[test]
    fn the_ends_of_chance_are_never_and_always() {
        for roll in [0, 1, u64::MAX / 2, u64::MAX] {
            assert!(Chance::ALWAYS.hits(roll) && !Chance::NEVER.hits(roll));
        }
    }

    #[test]
    fn normal_deviates_have_mean_and_deviation() {
        let dice = Dice::new(7, 0);
        let purposes = [Purpose::Jitter, Purpose::JitterMore, Purpose::JitterMost];
        let deviates: Vec<f64> = (0..100_000)
            .map(|i| normal(purposes.map(|p| dice.roll(i, p))) as f64 / 1000.0)
            .collect();
        let mean = deviates.iter().sum::<f64>() / 1e5;
        let variance = deviates.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / 1e5;
        // Five standard errors: 1 / sqrt(n) for the mean, sqrt(2 / n) for the variance.
        assert!(mean.abs() < 0.016, "{mean}");
        assert!((variance - 1.0).abs() < 0.023, "{variance}");
        let within = deviates.iter().filter(|d| d.abs() < 1.0).count();
        assert!((67_000..69_600).contains(&within), "{within}");
    }
}
