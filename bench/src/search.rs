//! The search for the highest loss-free rate, on a grid of 5 % steps. Pure: the trials are a function passed in.

/// From one rate of the grid to the next.
const STEP: f64 = 1.05;
/// Lowest rate of the grid, packets a second.
const LOWEST: f64 = 1000.0;
/// Highest step: about 2 million packets a second.
pub const TOP: u32 = 156;
/// First stride away from the start, in steps.
const STRIDE: u32 = 4;

/// Packets a second at a step of the grid.
pub fn rate(step: u32) -> f64 {
    LOWEST * STEP.powi(step as i32)
}

/// The step nearest to `pps`.
pub fn nearest_step(pps: f64) -> u32 {
    ((pps / LOWEST).ln() / STEP.ln())
        .clamp(0.0, f64::from(TOP))
        .round() as u32
}

/// What trials at one rate showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Loss within the allowance.
    Clean,
    /// More loss.
    Lossy,
    /// The generator could not offer the rate.
    Limited,
}

/// How thoroughly to try a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// One short trial.
    Screen,
    /// All trials at full length.
    Confirm,
}

/// Where a search ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The highest clean step; `None`: even the lowest rate loses packets.
    pub step: Option<u32>,
    /// The next step failed because of the generator, so that the subject may be better than this.
    pub generator_limited: bool,
}

/// Where a search begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Nobody knows: screen outwards from this step first.
    Around(u32),
    /// An earlier search ended here: confirm at once. Short trials are kinder, and would lead all the way down again.
    At(u32),
}

/// Finds the highest clean step: screens outwards from the start in growing strides and bisects, unless it is known, then confirms,
/// down until a step is clean and, if the first was, up until one is not.
pub fn highest_clean<E>(
    start: Start,
    mut attempt: impl FnMut(u32, Effort) -> Result<Verdict, E>,
) -> Result<Found, E> {
    let mut step = match start {
        Start::Around(step) => bisect(step.min(TOP), |step| attempt(step, Effort::Screen))?,
        Start::At(step) => step.min(TOP),
    };
    let mut above = attempt(step, Effort::Confirm)?;
    if above == Verdict::Clean {
        while step < TOP {
            above = attempt(step + 1, Effort::Confirm)?;
            if above != Verdict::Clean {
                break;
            }
            step += 1;
        }
        return Ok(Found {
            step: Some(step),
            generator_limited: above == Verdict::Limited,
        });
    }
    while step > 0 {
        step -= 1;
        let verdict = attempt(step, Effort::Confirm)?;
        if verdict == Verdict::Clean {
            return Ok(Found {
                step: Some(step),
                generator_limited: above == Verdict::Limited,
            });
        }
        above = verdict;
    }
    Ok(Found {
        step: None,
        generator_limited: above == Verdict::Limited,
    })
}

/// The highest step that passes next to one that fails, near `start`; 0 if none passes.
fn bisect<E>(start: u32, mut screen: impl FnMut(u32) -> Result<Verdict, E>) -> Result<u32, E> {
    let mut passes = |step| Ok(screen(step)? == Verdict::Clean);
    let mut stride = STRIDE;
    let (mut low, mut high);
    if passes(start)? {
        (low, high) = (start, start.saturating_add(stride).min(TOP));
        while high > low && passes(high)? {
            stride *= 2;
            (low, high) = (high, (high + stride).min(TOP));
        }
    } else {
        (high, low) = (start, start.saturating_sub(stride));
        while low < high && !passes(low)? {
            stride *= 2;
            (high, low) = (low, low.saturating_sub(stride));
        }
    }
    while high > low + 1 {
        let middle = low + (high - low) / 2;
        if passes(middle)? {
            low = middle
        } else {
            high = middle
        }
    }
    Ok(low)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    fn search(start: Start, mut verdict: impl FnMut(u32, Effort) -> Verdict) -> (Found, usize) {
        let mut attempts = 0;
        let found = highest_clean::<Infallible>(start, |step, effort| {
            assert!(step <= TOP);
            attempts += 1;
            assert!(attempts < 400, "endless");
            Ok(verdict(step, effort))
        });
        (found.unwrap(), attempts)
    }

    #[test]
    fn finds_the_edge_from_anywhere() {
        for edge in 0..=TOP {
            for start in [0, 1, 50, 80, 100, TOP] {
                let sharp = |step, _| {
                    if step <= edge {
                        Verdict::Clean
                    } else {
                        Verdict::Lossy
                    }
                };
                let (found, attempts) = search(Start::Around(start), sharp);
                assert_eq!(
                    found,
                    Found {
                        step: Some(edge),
                        generator_limited: false
                    }
                );
                assert!(attempts <= 18, "{attempts} attempts from {start} to {edge}");
                let (again, attempts) = search(Start::At(start), sharp);
                assert_eq!(again, found);
                // Each step on the way, and the one above the edge if it is tried.
                let beyond = u32::from(start <= edge && edge < TOP);
                assert_eq!(attempts as u32, start.abs_diff(edge) + 1 + beyond);
            }
        }
    }

    #[test]
    fn confirmation_has_the_last_word() {
        // Short trials are too kind, or too strict.
        for (screened, confirmed) in [(90, 84), (80, 83)] {
            let limit = |effort| {
                if effort == Effort::Screen {
                    screened
                } else {
                    confirmed
                }
            };
            let soft = |step, effort| {
                if step <= limit(effort) {
                    Verdict::Clean
                } else {
                    Verdict::Lossy
                }
            };
            assert_eq!(search(Start::Around(70), soft).0.step, Some(confirmed));
        }
    }

    #[test]
    fn a_limited_generator_is_told() {
        let limited = |step, _| {
            if step <= 60 {
                Verdict::Clean
            } else {
                Verdict::Limited
            }
        };
        assert_eq!(
            search(Start::Around(70), limited).0,
            Found {
                step: Some(60),
                generator_limited: true
            }
        );
    }

    #[test]
    fn nothing_is_clean() {
        assert_eq!(
            search(Start::Around(70), |_, _| Verdict::Lossy).0,
            Found {
                step: None,
                generator_limited: false
            }
        );
    }

    #[test]
    fn grid_is_five_percent() {
        assert!((rate(11) / rate(10) - 1.05).abs() < 1e-9);
        assert_eq!(
            [0.98, 0.999, 1.02].map(|part| nearest_step(rate(40) * part)),
            [40; 3]
        );
        assert!(rate(TOP) > 2e6 && nearest_step(1e12) == TOP && nearest_step(1.0) == 0);
    }
}
