//! Arithmetic modulo 2^130 - 5, a number in each place of a register: in limbs of 44 bits for the 52-bit multiplier, of 26 bits for the
//! 32-bit one.
//!
//! Limbs are *loose*: a few bits longer than their share, so that sums need no carrying. Products are summed up unreduced, and reduced once.

use crate::vector::{Multiply52, WIDE, Wide};

/// Numbers side by side, and what Poly1305 does with them.
pub(crate) trait Field: Copy {
    /// The registers below.
    type Wide: Wide;
    /// Loose limbs.
    type Number: Copy;
    /// A number prepared to be multiplied by.
    type Factor: Copy;
    /// A sum of products, not yet reduced.
    type Sum: Copy;
    /// Whether four factors and all else fit into few enough registers for a long text to gain by them.
    const FOUR: bool;

    fn wide(self) -> Self::Wide;
    fn zero(self) -> Self::Number;
    /// 128 bits each, and at 2^128 the lowest bit of `top`.
    fn number(self, low: WideOf<Self>, high: WideOf<Self>, top: WideOf<Self>) -> Self::Number;
    fn add(self, a: Self::Number, b: Self::Number) -> Self::Number;
    fn select(self, mask: u8, a: Self::Number, b: Self::Number) -> Self::Number;
    fn factor(self, number: Self::Number) -> Self::Factor;
    fn nothing(self) -> Self::Sum;
    /// At most four products may be summed up.
    fn add_product(self, sum: Self::Sum, a: Self::Number, b: &Self::Factor) -> Self::Sum;
    fn reduce(self, sum: Self::Sum) -> Self::Number;
    /// The numbers as limbs of 44 bits, loose.
    fn export(self, number: Self::Number) -> [[u64; 3]; WIDE];

    #[inline(always)]
    fn multiply(self, a: Self::Number, b: &Self::Factor) -> Self::Number {
        self.reduce(self.add_product(self.nothing(), a, b))
    }
}

/// A register of a field.
pub(crate) type WideOf<F> = <<F as Field>::Wide as Wide>::W;

#[inline(always)]
fn times5<S: Wide>(s: S, limb: S::W) -> S::W {
    s.plus(limb, s.left::<2>(limb))
}

#[inline(always)]
fn times20<S: Wide>(s: S, limb: S::W) -> S::W {
    s.plus(s.left::<4>(limb), s.left::<2>(limb))
}

/// Carries what a limb of 26 bits has too much into another one.
#[inline(always)]
fn carry26<S: Wide>(s: S, h: &mut [S::W; 5], from: usize, to: usize) {
    let over = s.right::<26>(h[from]);
    h[from] = s.and(h[from], s.wide((1 << 26) - 1));
    // From the top it comes back in at the bottom, five times.
    let over = if to == 0 { times5(s, over) } else { over };
    h[to] = s.plus(h[to], over);
}

/// Three limbs of 44 bits.
#[derive(Clone, Copy)]
pub(crate) struct Limbs44<S>(pub(crate) S);

#[derive(Clone, Copy)]
pub(crate) struct Factor44<W> {
    limbs: [W; 3],
    /// 20 times the upper two: what they count as past 2^130, which is 2^132 in limbs.
    round: [W; 2],
}

#[derive(Clone, Copy)]
pub(crate) struct Sum44<W> {
    /// The low 52 bits of products, at each limb.
    low: [W; 3],
    /// The high 52 bits, which are worth 2^8 of the next limb.
    high: [W; 3],
}

impl<S: Multiply52> Field for Limbs44<S> {
    type Wide = S;
    type Number = [S::W; 3];
    type Factor = Factor44<S::W>;
    type Sum = Sum44<S::W>;
    const FOUR: bool = true;

    #[inline(always)]
    fn wide(self) -> S {
        self.0
    }

    #[inline(always)]
    fn zero(self) -> [S::W; 3] {
        [self.0.wide(0); 3]
    }

    #[inline(always)]
    fn number(self, low: S::W, high: S::W, top: S::W) -> [S::W; 3] {
        let s = self.0;
        let mask = s.wide((1 << 44) - 1);
        [
            s.and(low, mask),
            s.and(s.or(s.right::<44>(low), s.left::<20>(high)), mask),
            s.or(s.right::<24>(high), s.left::<40>(top)),
        ]
    }

    #[inline(always)]
    fn add(self, a: [S::W; 3], b: [S::W; 3]) -> [S::W; 3] {
        let s = self.0;
        [s.plus(a[0], b[0]), s.plus(a[1], b[1]), s.plus(a[2], b[2])]
    }

    #[inline(always)]
    fn select(self, mask: u8, a: [S::W; 3], b: [S::W; 3]) -> [S::W; 3] {
        let s = self.0;
        [
            s.select(mask, a[0], b[0]),
            s.select(mask, a[1], b[1]),
            s.select(mask, a[2], b[2]),
        ]
    }

    #[inline(always)]
    fn factor(self, number: [S::W; 3]) -> Factor44<S::W> {
        let s = self.0;
        Factor44 {
            limbs: number,
            round: [times20(s, number[1]), times20(s, number[2])],
        }
    }

    #[inline(always)]
    fn nothing(self) -> Sum44<S::W> {
        let zero = [self.0.wide(0); 3];
        Sum44 {
            low: zero,
            high: zero,
        }
    }

    #[inline(always)]
    fn add_product(self, sum: Sum44<S::W>, h: [S::W; 3], factor: &Factor44<S::W>) -> Sum44<S::W> {
        let s = self.0;
        let Sum44 { mut low, mut high } = sum;
        let (r, round) = (factor.limbs, factor.round);
        let by = [
            [r[0], r[1], r[2]],
            [round[1], r[0], r[1]],
            [round[0], round[1], r[0]],
        ];
        for n in 0..3 {
            for at in 0..3 {
                low[at] = s.low52(low[at], h[n], by[n][at]);
                high[at] = s.high52(high[at], h[n], by[n][at]);
            }
        }
        Sum44 { low, high }
    }

    #[inline(always)]
    fn reduce(self, sum: Sum44<S::W>) -> [S::W; 3] {
        let s = self.0;
        let Sum44 { low, high } = sum;
        let mask44 = s.wide((1 << 44) - 1);
        let mask42 = s.wide((1 << 42) - 1);
        let h1 = s.plus(s.plus(low[1], s.left::<8>(high[0])), s.right::<44>(low[0]));
        let h2 = s.plus(s.plus(low[2], s.left::<8>(high[1])), s.right::<44>(h1));
        let over = s.plus(s.left::<10>(high[2]), s.right::<42>(h2));
        let h0 = s.plus(s.plus(s.and(low[0], mask44), over), s.left::<2>(over));
        [
            s.and(h0, mask44),
            s.plus(s.and(h1, mask44), s.right::<44>(h0)),
            s.and(h2, mask42),
        ]
    }

    #[inline(always)]
    fn export(self, number: [S::W; 3]) -> [[u64; 3]; WIDE] {
        let mut limbs = [[0; WIDE]; 3];
        for (limbs, number) in limbs.iter_mut().zip(number) {
            self.0.wide_store(limbs, number);
        }
        std::array::from_fn(|lane| [limbs[0][lane], limbs[1][lane], limbs[2][lane]])
    }
}

/// Five limbs of 26 bits.
#[derive(Clone, Copy)]
pub(crate) struct Limbs26<S>(pub(crate) S);

#[derive(Clone, Copy)]
pub(crate) struct Factor26<W> {
    limbs: [W; 5],
    /// Five times the upper four: what they count as past 2^130.
    round: [W; 4],
}

impl<S: Wide> Field for Limbs26<S> {
    type Wide = S;
    type Number = [S::W; 5];
    type Factor = Factor26<S::W>;
    type Sum = [S::W; 5];
    const FOUR: bool = false;

    #[inline(always)]
    fn wide(self) -> S {
        self.0
    }

    #[inline(always)]
    fn zero(self) -> [S::W; 5] {
        [self.0.wide(0); 5]
    }

    #[inline(always)]
    fn number(self, low: S::W, high: S::W, top: S::W) -> [S::W; 5] {
        let s = self.0;
        let mask = s.wide((1 << 26) - 1);
        [
            s.and(low, mask),
            s.and(s.right::<26>(low), mask),
            s.and(s.or(s.right::<52>(low), s.left::<12>(high)), mask),
            s.and(s.right::<14>(high), mask),
            s.or(s.right::<40>(high), s.left::<24>(top)),
        ]
    }

    #[inline(always)]
    fn add(self, a: [S::W; 5], b: [S::W; 5]) -> [S::W; 5] {
        let mut sum = a;
        for n in 0..5 {
            sum[n] = self.0.plus(a[n], b[n]);
        }
        sum
    }

    #[inline(always)]
    fn select(self, mask: u8, a: [S::W; 5], b: [S::W; 5]) -> [S::W; 5] {
        let mut of = a;
        for n in 0..5 {
            of[n] = self.0.select(mask, a[n], b[n]);
        }
        of
    }

    #[inline(always)]
    fn factor(self, number: [S::W; 5]) -> Factor26<S::W> {
        let s = self.0;
        Factor26 {
            limbs: number,
            round: [
                times5(s, number[1]),
                times5(s, number[2]),
                times5(s, number[3]),
                times5(s, number[4]),
            ],
        }
    }

    #[inline(always)]
    fn nothing(self) -> [S::W; 5] {
        [self.0.wide(0); 5]
    }

    #[inline(always)]
    fn add_product(self, sum: [S::W; 5], h: [S::W; 5], factor: &Factor26<S::W>) -> [S::W; 5] {
        let s = self.0;
        let mut sum = sum;
        for n in 0..5 {
            for at in 0..5 {
                let by = if at >= n {
                    factor.limbs[at - n]
                } else {
                    factor.round[4 + at - n]
                };
                sum[at] = s.plus(sum[at], s.times(h[n], by));
            }
        }
        sum
    }

    #[inline(always)]
    fn reduce(self, sum: [S::W; 5]) -> [S::W; 5] {
        let s = self.0;
        let mut h = sum;
        // Two chains side by side.
        carry26(s, &mut h, 0, 1);
        carry26(s, &mut h, 3, 4);
        carry26(s, &mut h, 1, 2);
        carry26(s, &mut h, 4, 0);
        carry26(s, &mut h, 2, 3);
        carry26(s, &mut h, 0, 1);
        carry26(s, &mut h, 3, 4);
        h
    }

    #[inline(always)]
    fn export(self, number: [S::W; 5]) -> [[u64; 3]; WIDE] {
        let mut limbs = [[0; WIDE]; 5];
        for (limbs, number) in limbs.iter_mut().zip(number) {
            self.0.wide_store(limbs, number);
        }
        let mask = (1 << 44) - 1;
        std::array::from_fn(|lane| {
            let [a, b, c, d, e] = limbs.map(|limbs| u128::from(limbs[lane]));
            // The fifth begins at bit 104, which is bit 16 of the last one.
            let four = a + (b << 26) + (c << 52) + (d << 78);
            let top = (four >> 88) as u64 + ((e as u64) << 16);
            [four as u64 & mask, (four >> 44) as u64 & mask, top]
        })
    }
}
