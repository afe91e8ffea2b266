//! What requests that are told together say of each one.
//!
//! A line, or two polls of a counter, tell how many requests were admitted and their tokens together. The logarithm of
//! the mean of several is more than the mean of their logarithms (Jensen 1906), and scatters less: for lognormal
//! tokens of log-variance `v`, the mean of `n` is about lognormal with log-variance `w = ln(1 + (exp(v) - 1) / n)`, and
//! its logarithm lies `(v - w) / 2` higher than that of one (Fenton 1960). With `v = 1.2`, a rank whose requests wait
//! and are admitted eight at a time would seem to get requests half as heavy again. A factor on all tokens, which is
//! what the test on them looks for, moves the logarithm by as much whatever `n` is. So what `n` adds is taken back.
//! Only `v` is learned, from those that are told alone; until enough of them were heard it is taken to be small, and
//! little is taken back.
//!
//! That a line of several scatters less than that many lines, though more than their mean, is left to the dispersion:
//! weights by inverse variances (Cochran 1937) found long prompts 1 to 3 s later.
//! Means and variances that are learned for each `n` were tried and not taken: `n` says something of the tokens. Where
//! room is short a long prompt waits until it is admitted alone, and a batch that is full has few long ones or many
//! short ones. Over all lines that evens out; within those of one `n` it does not.

use serde::{Deserialize, Serialize};

use crate::factor::spread::Dispersion;

/// The variance of the logarithm of one request's tokens is taken to be this until it is known, and no less; more than
/// that is not believed.
const LEAST: f64 = 0.01;
const MOST: f64 = 4.0;
/// The usual logarithm of all ranks together moves by so much of a departure, a line, and by so much at most.
const LEVEL_GAIN: f64 = 0.01;
const LEVEL_STEP: f64 = 0.02;

/// The scatter of one request's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Batches {
    /// Of the logarithm.
    spread: Dispersion,
    /// The usual logarithm on a rank like the others.
    level: Option<f64>,
}

impl Default for Batches {
    fn default() -> Self {
        Self { spread: Dispersion { variance: LEAST, seconds: 0.0 }, level: None }
    }
}

impl Batches {
    /// From the logarithm of the mean tokens of `together` requests, that of one.
    pub fn of_one(&self, together: f64, logarithm: f64) -> f64 {
        logarithm - 0.5 * (self.variance() - self.variance_of(together))
    }

    /// Learns from the logarithm of tokens a request, less what is usual for its rank.
    pub fn learn(&mut self, together: f64, logarithm: f64) {
        if together > 1.0 {
            return;
        }
        let level = self.level.get_or_insert(logarithm);
        let departure = logarithm - *level;
        *level += (LEVEL_GAIN * departure).clamp(-LEVEL_STEP, LEVEL_STEP);
        self.spread.learn(departure * departure);
    }

    fn variance(&self) -> f64 {
        self.spread.variance.clamp(LEAST, MOST)
    }

    /// The variance of the logarithm of the mean of `together` requests.
    fn variance_of(&self, together: f64) -> f64 {
        (self.variance().exp_m1() / together.max(1.0)).ln_1p()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_rng::TestRng;

    /// Learned from requests whose tokens have that log-deviation, some of them told alone.
    fn learned(log_deviation: f64) -> (Batches, TestRng) {
        let (mut batches, mut rng) = (Batches::default(), TestRng(11));
        for i in 0..20_000u32 {
            let together = 1 + i % 3;
            batches.learn(f64::from(together), mean_of(&mut rng, together, log_deviation));
        }
        (batches, rng)
    }

    /// The logarithm of the mean tokens of `n` requests.
    fn mean_of(rng: &mut TestRng, n: u32, log_deviation: f64) -> f64 {
        let sum: f64 = (0..n).map(|_| (6.0 + log_deviation * rng.normal()).exp()).sum();
        (sum / f64::from(n)).ln()
    }

    #[test]
    fn the_logarithm_of_a_mean_is_told_as_that_of_one_request() {
        for log_deviation in [0.3, 0.7, 1.1] {
            let (batches, mut rng) = learned(log_deviation);
            for n in [1, 2, 4, 8, 32] {
                let one = |_| batches.of_one(f64::from(n), mean_of(&mut rng, n, log_deviation));
                let off = (0..4_000).map(one).sum::<f64>() / 4_000.0 - 6.0;
                assert!(off.abs() < 0.1, "{n} at {log_deviation}: off by {off:.2}");
            }
        }
    }

    #[test]
    fn before_anything_is_known_of_the_scatter_nothing_is_taken_back() {
        let off = Batches::default().of_one(8.0, 6.5) - 6.5;
        assert!(off.abs() < 0.01, "{off}");
    }
}
