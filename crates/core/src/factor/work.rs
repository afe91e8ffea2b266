//! Work: tokens a request, as logarithms (prompts have heavy tails, their logarithms do not), against the
//! rank's own usual difference from its peers.

use serde::{Deserialize, Serialize};

use crate::factor::bins::{Bin, Bins};
use crate::factor::evidence::{Evidence, Side, WINDOWS, medians_of_peers};
use crate::factor::spread::Dispersion;

/// Fewer admissions in a window than this tell nothing.
const FEWEST: f64 = 6.0;
/// The nominal standard deviation of the logarithm of one request's tokens.
const NOMINAL: f64 = 1.0;
/// The least dispersion believed, as variance.
const LEAST_DISPERSION: f64 = 0.05;
/// More work than usual by less than this (on the logarithm, 1.5 times) is no trouble.
const MATERIAL: f64 = 0.4;
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

/// What [`Work::examine`] saw: the evidence of each rank, and what to learn from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// Per rank.
    pub evidence: Vec<Evidence>,
    /// Normalised departures by window and rank; more is more work.
    pub roots: Vec<Vec<Option<f64>>>,
    latest: Vec<Option<f64>>,
}

impl Work {
    /// For `ranks` ranks, of which nothing is known, counting `tokens`.
    pub fn new(ranks: usize, tokens: Tokens) -> Self {
        Self {
            usual: vec![0.0; ranks],
            seconds: 0.0,
            pooled: vec![Dispersion::default(); WINDOWS.len()],
            tokens,
        }
    }

    /// Looks at all windows that end with `newest` and begin at `since` or later.
    pub fn examine(&self, bins: &Bins, newest: i64, since: i64) -> Seen {
        let ranks = self.usual.len();
        let mut roots = vec![vec![None; ranks]; WINDOWS.len()];
        let mut latest = vec![None; ranks];
        let mut best = vec![Evidence::NONE; ranks];
        let mut sums = vec![(0.0, 0.0); ranks];
        let mut from = newest + 1;
        for (w, window) in WINDOWS.iter().enumerate() {
            if newest + 1 - window < since.max(bins.oldest()) {
                continue;
            }
            while from > newest + 1 - window {
                from -= 1;
                for (r, sum) in sums.iter_mut().enumerate() {
                    let bin = bins.get(r, from);
                    *sum = (sum.0 + self.of(&bin), sum.1 + bin.admitted);
                }
            }
            let means: Vec<Option<f64>> =
                sums.iter().map(|(work, n)| (*n >= FEWEST).then(|| work / n)).collect();
            let peers = medians_of_peers(&means);
            for r in 0..ranks {
                let (Some(own), Some(others)) = (means[r], peers[r]) else { continue };
                let difference = own - others;
                if *window == WINDOWS[5] {
                    latest[r] = Some(difference);
                }
                let departure = difference - self.usual[r];
                let square = departure.powi(2) * sums[r].1 / NOMINAL.powi(2);
                roots[w][r] = Some(square.sqrt().copysign(departure) / self.dispersion(w).sqrt());
                // Less work a request is nobody's trouble.
                if departure < MATERIAL {
                    continue;
                }
                let deviance = 0.5 * square / self.dispersion(w);
                best[r] =
                    best[r].or(Evidence { deviance, side: Side::High, effect: departure, window: *window });
            }
        }
        Seen { evidence: best, roots, latest }
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

    /// Learns from what was seen in a healthy second.
    pub fn learn(&mut self, seen: &Seen) {
        self.seconds += 1.0;
        for (w, roots) in seen.roots.iter().enumerate() {
            let now = self.dispersion(w);
            self.pooled[w].learn_together(roots.iter().flatten().map(|z| z * z * now));
        }
        let step = STEP.max(1.0 / (self.seconds + 30.0));
        for (usual, latest) in self.usual.iter_mut().zip(&seen.latest) {
            if let Some(latest) = latest {
                *usual += (latest - *usual).clamp(-step, step);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let seen = work.examine(&bins, s, 0);
            let found = &seen.evidence;
            if s < 300 {
                work.learn(&seen);
            } else if s == 305 {
                assert!(found[1].deviance > 20.0 && found[1].side == Side::High, "{found:?}");
                assert!(found[0].deviance < 5.0);
            }
        }
    }
}
