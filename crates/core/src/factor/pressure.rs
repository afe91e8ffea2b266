//! Pressure: share together with the pace of decoding.
//!
//! A rank that is sent more fills and decodes more slowly, for prompts take its time; one that is sent
//! nothing does neither; sessions sent where their past is not come in greater numbers and are computed
//! again; a slow rank fills while it decodes slowly. So a trouble moves both factors, while their noises
//! have little to do with each other, and their sum is tested as well, in units of their noises, with a
//! dispersion of its own that covers whatever those have in common (a linear discriminant, Fisher 1936,
//! with even weights). Most is gained where a server tells only what runs now, so that arrivals are
//! inferred, and behind routers that look at load or caches, which undo a part of every departure.

use serde::{Deserialize, Serialize};

use crate::factor::evidence::{Evidence, Grid, Side, WINDOWS, measured};
use crate::factor::spread::Dispersion;

/// Seconds until the noise counts as known.
const YOUNG: f64 = 60.0;
/// The variance of a sum of two independent unit noises, and the least one believed.
const NOMINAL: f64 = 2.0;
const LEAST: f64 = 1.0;

/// Neither factor alone may carry the sum: each has a test of its own.
const MOST: f64 = 7.0;

/// What is known of the noise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pressure {
    /// Dispersion per window, of all ranks together.
    pub pooled: Vec<Dispersion>,
}

/// What [`Pressure::examine`] saw: the evidence of each rank, and what to learn from.
#[derive(Clone, Debug)]
pub struct Examination {
    /// Per rank; `High` is more to do than usual.
    pub evidence: Vec<Evidence>,
    /// Whether share moved more than the other factor, per rank.
    pub is_share: Vec<bool>,
    /// Sums of both roots.
    pub roots: Grid,
}

impl Default for Pressure {
    fn default() -> Self {
        Self { pooled: vec![Dispersion { variance: NOMINAL, seconds: 0.0 }; WINDOWS.len()] }
    }
}

impl Pressure {
    /// Joins two factors in `windows` windows. `both` gives their roots in a window on a rank, in units of the
    /// noise, where more is more to do and NaN says that nothing was measured. `known` says which part of the noise of
    /// the first one that is in a window: the rest is what is not known yet of what is usual, of which the
    /// noise that is learned here knows nothing. `effects` says per rank how large the departure is, and
    /// whether it matters.
    pub fn examine(
        &self,
        windows: usize,
        both: impl Fn(usize, usize) -> (f64, f64),
        known: impl Fn(usize) -> f64,
        effects: &[Option<f64>],
    ) -> Examination {
        let ranks = effects.len();
        let mut seen = Examination {
            evidence: vec![Evidence::NONE; ranks],
            is_share: vec![true; ranks],
            roots: Grid::new(windows, ranks),
        };
        for (w, window) in WINDOWS.iter().copied().enumerate().take(windows) {
            let least = if self.pooled[w].seconds > YOUNG { LEAST } else { NOMINAL };
            let variance = self.pooled[w].variance.max(least);
            let certain = known(w).sqrt();
            let roots = seen.roots.row_mut(w);
            for (r, effect) in effects.iter().enumerate() {
                let (came, more) = both(w, r);
                if came.is_nan() || more.is_nan() {
                    continue;
                }
                let joined = |came: f64| came.clamp(-MOST, MOST) + more.clamp(-MOST, MOST);
                roots[r] = joined(came);
                let together = joined(came * certain);
                let deviance = 0.5 * together * together / variance;
                let Some(effect) = effect else { continue };
                if deviance > seen.evidence[r].deviance {
                    let side = if together > 0.0 { Side::High } else { Side::Low };
                    seen.evidence[r] = Evidence { deviance, side, effect: effect.copysign(together), window };
                    seen.is_share[r] = came.abs() >= more.abs();
                }
            }
        }
        seen
    }

    /// Learns from what was seen in a healthy second.
    pub fn learn(&mut self, roots: &Grid) {
        for (dispersion, roots) in self.pooled.iter_mut().zip(roots.rows()) {
            dispersion.learn_together(measured(roots).map(|z| z * z));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_departure_alone_makes_no_pressure_however_large() {
        let seen = Pressure::default().examine(1, |_, _| (0.0, 50.0), |_| 1.0, &[Some(0.5)]);
        assert!(seen.evidence[0].deviance < 12.5);
    }

    #[test]
    fn two_departures_of_five_deviations_make_one_of_seven() {
        let both = |_: usize, rank: usize| if rank == 1 { (5.0, 5.0) } else { (0.0, 0.0) };
        let seen = Pressure::default().examine(3, both, |_| 1.0, &[Some(0.0), Some(0.5)]);
        assert!((seen.evidence[1].deviance - 25.0).abs() < 1e-9);
        assert_eq!(seen.evidence[0].deviance, 0.0);
    }

    #[test]
    fn departures_that_pull_apart_are_no_pressure() {
        let seen = Pressure::default().examine(1, |_, _| (5.0, -5.0), |_| 1.0, &[Some(0.5)]);
        assert_eq!(seen.evidence[0].deviance, 0.0);
    }
}
