//! Work: tokens a request, as logarithms (prompts have heavy tails, their logarithms do not), against the
//! rank's own usual difference from its peers.

use serde::{Deserialize, Serialize};

use crate::factor::batches::Batches;
use crate::factor::bins::{Bin, Sums};
use crate::factor::evidence::{Evidence, Grid, PeerMedians, Side, WINDOWS, measured};
use crate::factor::spread::Dispersion;

/// Fewer admissions in a window than this tell nothing.
const FEWEST: f64 = 6.0;
/// The nominal standard deviation of the logarithm of one request's tokens.
const NOMINAL: f64 = 1.0;
/// The least dispersion believed, as variance.
const LEAST_DISPERSION: f64 = 0.05;
/// More work than usual by less than this (on the logarithm, 1.5 times) is no trouble ...
const MATERIAL: f64 = 0.4;
/// ... or 1.8 times, where it is inferred from what running requests hold: few of them that stay for long move that
/// for as long, however many others come and go.
const MATERIAL_HELD: f64 = 0.6;
/// A rank's usual difference moves by no more than this a second.
const STEP: f64 = 0.002;
/// Seconds until the noise counts as known.
const YOUNG: f64 = 60.0;

/// What is known of the work a request brings to each rank.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Work {
    /// Each rank's usual difference from its peers.
    pub usual: Vec<f64>,
    /// Seconds that taught them.
    pub seconds: f64,
    /// Dispersion per window, of all ranks together.
    pub pooled: Vec<Dispersion>,
    /// What requests that are told together say of each.
    #[serde(default)]
    pub batches: Batches,
    tokens: Tokens,
}

/// Which tokens of a request are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tokens {
    /// All of its prompt: a hot prefix, long prompts.
    All,
    /// Those not found in the cache: sessions sent where their past is not.
    Computed,
}

/// What [`Work::examine`] saw.
#[derive(Clone, Debug)]
pub struct Examination {
    /// The evidence of each rank.
    pub evidence: Vec<Evidence>,
    /// What to learn from.
    pub training: TrainingSample,
}

/// What to learn from a second.
#[derive(Clone, Debug)]
pub struct TrainingSample {
    /// Normalised departures; more is more work.
    roots: Grid,
    /// Each rank's difference from its peers, NaN where it is not known.
    latest: Vec<f64>,
}

impl Work {
    /// For `ranks` ranks, of which nothing is known, counting `tokens`.
    pub fn new(ranks: usize, tokens: Tokens) -> Self {
        Self {
            usual: vec![0.0; ranks],
            seconds: 0.0,
            pooled: vec![Dispersion::default(); WINDOWS.len()],
            batches: Batches::default(),
            tokens,
        }
    }

    /// Looks at all windows of `sums`, whose tokens may be those that running requests hold.
    pub fn examine(&self, sums: &Sums, is_held: bool) -> Examination {
        let ranks = self.usual.len();
        let mut roots = Grid::new(WINDOWS.len(), ranks);
        let mut latest = vec![f64::NAN; ranks];
        let mut best = vec![Evidence::NONE; ranks];
        let mut means = vec![f64::NAN; ranks];
        let mut peers = PeerMedians::default();
        let material = if is_held { MATERIAL_HELD } else { MATERIAL };
        for (w, window, sum) in sums.windows() {
            for (mean, sum) in means.iter_mut().zip(sum) {
                *mean = self.mean(sum);
            }
            let peers = peers.of(&means);
            // The peers' middle rests on their requests as the rank's mean does on its own.
            let error = |r: usize| if means[r].is_nan() { 0.0 } else { sum[r].admitted.recip() };
            let (all, known) = ((0..ranks).map(error).sum::<f64>(), measured(&means).count() as f64);
            let dispersion = self.dispersion(w);
            let noise = dispersion.sqrt();
            let roots = roots.row_mut(w);
            for r in 0..ranks {
                let difference = means[r] - peers[r];
                if difference.is_nan() {
                    continue;
                }
                if window == WINDOWS[5] {
                    latest[r] = difference;
                }
                let departure = difference - self.usual[r];
                let of_peers = (all - error(r)) / (known - 1.0).max(1.0).powi(2);
                let square = departure.powi(2) / (error(r) + of_peers) / NOMINAL.powi(2);
                roots[r] = square.sqrt().copysign(departure) / noise;
                // Less work a request is nobody's trouble.
                if departure < material {
                    continue;
                }
                let deviance = 0.5 * square / dispersion;
                best[r] = best[r].or(Evidence { deviance, side: Side::High, effect: departure, window });
            }
        }
        Examination { evidence: best, training: TrainingSample { roots, latest } }
    }

    /// The variance of one request's logarithm in window `w`, in nominal ones.
    pub fn dispersion(&self, w: usize) -> f64 {
        self.pooled[w].variance.max(if self.seconds > YOUNG { LEAST_DISPERSION } else { 1.0 })
    }

    /// The sum of the logarithms in `bin`.
    pub fn of(&self, bin: &Bin) -> f64 {
        match self.tokens {
            Tokens::All => bin.work,
            Tokens::Computed => bin.computed,
        }
    }

    /// The mean logarithm of a request's tokens in `sum`; NaN where too few came to tell.
    fn mean(&self, sum: &Bin) -> f64 {
        if sum.admitted >= FEWEST { self.of(sum) / sum.admitted } else { f64::NAN }
    }

    /// Learns how the tokens of a request scatter, from the logarithm of those of so many that `rank` told `together`.
    pub fn hear(&mut self, rank: usize, together: f64, logarithm: f64) {
        self.batches.learn(together, logarithm - self.usual[rank]);
    }

    /// What the requests of `ranks` bring in `sums` is usual from now on.
    pub fn take_for_usual(&mut self, ranks: &[usize], sums: &[Bin]) {
        let means: Vec<f64> = sums.iter().map(|sum| self.mean(sum)).collect();
        let mut peers = PeerMedians::default();
        let peers = peers.of(&means);
        for &rank in ranks {
            let difference = means[rank] - peers[rank];
            if !difference.is_nan() {
                self.usual[rank] = difference;
            }
        }
    }

    /// Learns from what was seen in a healthy second.
    pub fn learn(&mut self, training: &TrainingSample) {
        self.seconds += 1.0;
        for (w, roots) in training.roots.rows().enumerate() {
            let now = self.dispersion(w);
            self.pooled[w].learn_together(measured(roots).map(|z| z * z * now));
        }
        let step = STEP.max(1.0 / (self.seconds + 30.0));
        let known = self.usual.iter_mut().zip(&training.latest).filter(|(_, latest)| !latest.is_nan());
        known.for_each(|(usual, latest)| *usual += (latest - *usual).clamp(-step, step));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::factor::bins::Bins;

    #[test]
    fn a_rank_whose_prompts_become_seven_times_as_long_departs() {
        let mut bins = Bins::new(4, 0);
        let mut work = Work::new(4, Tokens::All);
        for s in 0..306i64 {
            for r in 0..4 {
                let log = 6.0
                    + ((s * 7 + r as i64 * 3) % 11) as f64 / 5.0
                    + if r == 1 && s >= 300 { 2.0 } else { 0.0 };
                bins.at(r, s as f64, |b| (b.work, b.admitted) = (8.0 * log, 8.0));
            }
            let seen = work.examine(&bins.sums(s, 0), false);
            let found = &seen.evidence;
            if s < 300 {
                work.learn(&seen.training);
            } else if s == 305 {
                assert!(found[1].deviance > 20.0 && found[1].side == Side::High, "{found:?}");
                assert!(found[0].deviance < 5.0);
            }
        }
    }

    #[test]
    fn half_as_much_again_is_material_where_requests_are_counted_and_not_where_they_are_held() {
        let mut bins = Bins::new(4, 0);
        let mut work = Work::new(4, Tokens::All);
        for s in 0..400i64 {
            for r in 0..4 {
                let log = if r == 1 && s >= 300 { 6.5 } else { 6.0 } + ((s + r as i64) % 5) as f64 / 50.0;
                bins.at(r, s as f64, |b| (b.work, b.admitted) = (8.0 * log, 8.0));
            }
            let sums = bins.sums(s, 0);
            if s < 300 {
                let training = work.examine(&sums, false).training;
                work.learn(&training);
            } else if s == 399 {
                assert!(work.examine(&sums, false).evidence[1].deviance > 50.0);
                assert_eq!(work.examine(&sums, true).evidence[1].deviance, 0.0);
            }
        }
    }
}
