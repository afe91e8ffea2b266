//! Requests finished a token generated, where a server tells only what runs now.
//!
//! In a healthy group a rank that generates more tokens than its peers finishes more requests, so its
//! load grows less: the slope of growth against tokens, both less the group's mean (bursts come to all),
//! is minus the wanted ratio. Behind a router that looks at load it also absorbs that a loaded rank is
//! sent less, which is as well: then it is the best linear forecast of the growth.

use serde::{Deserialize, Serialize};

/// Seconds of memory of the regression.
const MEMORY: f64 = 1800.0;
/// Prior: 300 tokens a request, as if so much had been seen.
const PRIOR_RATIO: f64 = 1.0 / 300.0;
const PRIOR_WEIGHT: f64 = 30.0;
/// Growth and tokens are summed over so many seconds: reports are up to a second or two stale.
const BLOCK: f64 = 4.0;
/// Blocks of one time differ by no more than this factor in their seconds: by when each rank was read.
const MOST_UNEVEN: f64 = 1.6;

/// The ratio and what it was learned from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Turnover {
    /// Sums of `-growth x tokens` and of `tokens x tokens`, each less the group's mean.
    pub cross: f64,
    pub square: f64,
    /// Mean of the squared tokens, which gives the prior its unit.
    pub scale: f64,
    /// Per rank, the block under way: growth, tokens, seconds.
    block: Vec<(f64, f64, f64)>,
}

impl Turnover {
    /// For `ranks` ranks.
    pub fn new(ranks: usize) -> Self {
        Self { cross: 0.0, square: 0.0, scale: 0.0, block: vec![(0.0, 0.0, 0.0); ranks] }
    }

    /// Finished requests a token.
    pub fn ratio(&self) -> f64 {
        let prior = PRIOR_WEIGHT * self.scale;
        let ratio = (self.cross + prior * PRIOR_RATIO) / (self.square + prior).max(1e-9);
        if self.scale > 0.0 { ratio.clamp(1.0 / 20_000.0, 0.2) } else { PRIOR_RATIO }
    }

    /// Adds one rank's growth of load and its tokens over `seconds`; a full block of all ranks teaches.
    pub fn learn(&mut self, rank: usize, growth: f64, tokens: f64, seconds: f64) {
        let b = &mut self.block[rank];
        *b = (b.0 + growth, b.1 + tokens, b.2 + seconds);
        if self.block.iter().any(|b| b.2 < BLOCK) {
            return;
        }
        // Ranks without work tell nothing: blocks of different lengths cannot be compared.
        let seconds = || self.block.iter().map(|b| b.2);
        if seconds().fold(0.0, f64::max) > MOST_UNEVEN * seconds().fold(f64::INFINITY, f64::min) {
            self.block.fill((0.0, 0.0, 0.0));
            return;
        }
        let n = self.block.len() as f64;
        let mean = self.block.iter().fold((0.0, 0.0), |m, b| (m.0 + b.0 / n, m.1 + b.1 / n));
        let keep = 1.0 - BLOCK / MEMORY;
        self.cross *= keep;
        self.square *= keep;
        for b in &self.block {
            self.cross -= (b.0 - mean.0) * (b.1 - mean.1);
            self.square += (b.1 - mean.1).powi(2);
        }
        let spread = self.block.iter().map(|b| (b.1 - mean.1).powi(2)).sum::<f64>() / n;
        self.scale += (spread - self.scale) * if self.scale > 0.0 { BLOCK / MEMORY } else { 1.0 };
        self.block.fill((0.0, 0.0, 0.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_that_was_idle_for_half_an_hour_does_not_spoil_what_is_known() {
        let mut turnover = Turnover::new(2);
        let second = |turnover: &mut Turnover, i: u32, is_second_busy: bool| {
            let more = f64::from(i % 7) * 40.0;
            for (rank, tokens) in [(0, 500.0 + more), (1, 500.0)] {
                if rank == 0 || is_second_busy {
                    turnover.learn(rank, 3.0 - tokens / 150.0, tokens, 1.0);
                }
            }
        };
        (0..2000).for_each(|i| second(&mut turnover, i, true));
        (0..1800).for_each(|i| second(&mut turnover, i, false));
        let before = turnover.ratio();
        (0..40).for_each(|i| second(&mut turnover, i, true));
        assert!((turnover.ratio() / before - 1.0).abs() < 0.02, "{}", 1.0 / turnover.ratio());
    }

    #[test]
    fn it_finds_how_many_tokens_a_request_takes() {
        let mut turnover = Turnover::new(2);
        for i in 0..2000u32 {
            let more = f64::from(i % 7) * 40.0;
            for (rank, tokens) in [(0, 500.0 + more), (1, 500.0)] {
                turnover.learn(rank, 3.0 - tokens / 150.0, tokens, 1.0);
            }
        }
        assert!((1.0 / turnover.ratio() - 150.0).abs() < 10.0, "{}", 1.0 / turnover.ratio());
    }
}
