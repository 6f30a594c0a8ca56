//! Who of many gets how much of what is not enough for all: nobody gets more than it needs, and among those that get less each has the same for its weight
//! (max-min fairness: D. Bertsekas, R. Gallager, "Data Networks", section 6.5.2).
//!
//! Belongs to the worker that probes, as [`Prober`](super::Prober) does. Needs are kept in classes of a quarter of a power of two each, so that a change costs nothing to speak of whatever the number of those that share.

/// Classes of needs: four to each power of two.
const CLASSES: usize = 4 * u64::BITS as usize;

/// What one of them needs, and how much it counts beside others.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Need {
    /// In the unit of what is shared.
    pub rate: u64,
    /// Above 0 if something is needed.
    pub weight: u64,
}

impl Need {
    /// What it needs for its weight, in fractions fine enough.
    fn relative(self) -> u64 {
        (self.rate << Shares::FRACTION) / self.weight.max(1)
    }

    fn add(&mut self, other: Need) {
        self.rate += other.rate;
        self.weight += other.weight;
    }

    fn take_away(&mut self, other: Need) {
        self.rate -= other.rate;
        self.weight -= other.weight;
    }
}

/// What all of them need.
pub struct Shares {
    classes: [Need; CLASSES],
    all: Need,
    /// What there was to share when this was worked out: for a weight of 1, in the fractions of [`Need::relative`].
    level: Option<(u64, u64)>,
}

impl Default for Shares {
    fn default() -> Self {
        Shares {
            classes: [Need::default(); CLASSES],
            all: Need::default(),
            level: None,
        }
    }
}

impl Shares {
    const FRACTION: u32 = 10;

    /// What all need together.
    pub fn needed(&self) -> u64 {
        self.all.rate
    }

    /// One of them needs something else than before.
    pub fn change(&mut self, before: &mut Need, after: Need) {
        if *before == after {
            return;
        }
        self.classes[class_of(before.relative())].take_away(*before);
        self.classes[class_of(after.relative())].add(after);
        self.all.take_away(*before);
        self.all.add(after);
        self.level = None;
        *before = after;
    }

    /// What one gets of what there is.
    pub fn grant(&mut self, need: Need, there_is: u64) -> u64 {
        if self.all.rate <= there_is {
            return need.rate;
        }
        let level = match self.level {
            Some((of, level)) if of == there_is => level,
            _ => self.find_level(there_is),
        };
        self.level = Some((there_is, level));
        let most = (u128::from(level) * u128::from(need.weight)) >> Shares::FRACTION;
        need.rate.min(u64::try_from(most).unwrap_or(u64::MAX))
    }

    /// Serves those who need least for their weight, until what is left is too little for the next ones.
    fn find_level(&self, there_is: u64) -> u64 {
        let mut left = Need {
            rate: there_is,
            weight: self.all.weight,
        };
        for (class, needs) in self.classes.iter().enumerate() {
            let behind = (left.rate.checked_sub(needs.rate)).map(|rate| Need {
                rate,
                weight: left.weight - needs.weight,
            });
            match behind {
                Some(behind) if behind.relative() >= most_of(class) => left = behind,
                _ if needs.weight == 0 => {}
                _ => break,
            }
        }
        left.relative()
    }
}

fn class_of(need: u64) -> usize {
    let need = need.max(4);
    let power = need.ilog2();
    4 * power as usize + (need >> (power - 2) & 3) as usize
}

/// No need of this class is as much.
fn most_of(class: usize) -> u64 {
    let (power, quarter) = (class as u32 / 4, class as u64 % 4);
    1u64.checked_shl(power).map_or(u64::MAX, |whole| {
        whole.saturating_add((whole / 4).saturating_mul(quarter + 1))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn need() -> impl Strategy<Value = Need> {
        let rates = prop_oneof![Just(0), 1000..2000u64, 1..10_000_000u64];
        (rates, prop_oneof![Just(1u64), Just(20)]).prop_map(|(rate, weight)| Need { rate, weight })
    }

    /// Gives everybody a little more for as long as there is something.
    fn poured(needs: &[Need], mut there_is: f64) -> Vec<f64> {
        let mut got = vec![0.0; needs.len()];
        loop {
            let hungry: Vec<usize> = (0..needs.len())
                .filter(|at| got[*at] + 1e-6 < needs[*at].rate as f64)
                .collect();
            let weight: f64 = hungry.iter().map(|at| needs[*at].weight as f64).sum();
            if hungry.is_empty() || there_is < 1e-3 {
                return got;
            }
            let lacks = |at: &usize| (needs[*at].rate as f64 - got[*at]) / needs[*at].weight as f64;
            let step = hungry
                .iter()
                .map(lacks)
                .fold(there_is / weight, |least, lack| least.min(lack));
            for at in hungry {
                got[at] += step * needs[at].weight as f64;
                there_is -= step * needs[at].weight as f64;
            }
        }
    }

    proptest! {
        #[test]
        fn shares_are_fair(changes in prop::collection::vec((0..12usize, need()), 1..60), there_is in 1000..20_000_000u64) {
            let (mut shares, mut needs) = (Shares::default(), [Need::default(); 12]);
            for (at, need) in changes {
                shares.change(&mut needs[at], need);
            }
            let got: Vec<u64> = needs.iter().map(|need| shares.grant(*need, there_is)).collect();
            let total: u64 = got.iter().sum();
            let needed: u64 = needs.iter().map(|need| need.rate).sum();
            prop_assert!(total <= there_is.max(1), "no more than there is");
            prop_assert_eq!(needed, shares.needed());
            if needed <= there_is {
                prop_assert!(got.iter().zip(&needs).all(|(got, need)| *got == need.rate));
            }
            // Classes are a quarter of a power of two: nobody lacks more than that.
            for (at, fair) in poured(&needs, there_is as f64).into_iter().enumerate() {
                prop_assert!(got[at] as f64 <= fair * 1.001 + 1.0, "{} of {fair}: {needs:?}", got[at]);
                prop_assert!(got[at] as f64 >= fair * 0.79 - 1.0, "{} of {fair}: {needs:?}", got[at]);
            }
        }
    }

    #[test]
    fn who_needs_little_gets_it() {
        let mut shares = Shares::default();
        let mut needs = [(60, 1), (10_000, 1), (10_000, 1)].map(|(rate, weight)| Need { rate, weight });
        for need in &mut needs {
            shares.change(&mut Need::default(), *need);
        }
        assert_eq!(needs.map(|need| shares.grant(need, 1060)), [60, 500, 500]);
        shares.change(&mut needs[1], Need::default());
        assert_eq!(needs.map(|need| shares.grant(need, 1060)), [60, 0, 1000]);
    }
}
