//! Whether ranks wait for each other: under DP attention they share every step, so that the prompts of one take the
//! time of all.
//!
//! A rank that is on its own spends what its work needs, however many prompts are in it. Where ranks step together, all
//! spend the same time, and those with more prompts than the others have needed more of it. So the slope of
//! needed over spent on the prompts, across the ranks of one and the same second, is 0 or 1, or between where steps are
//! shared in part; it is learned by least squares, and says which part of its peers' prompts a rank waits for.

use serde::{Deserialize, Serialize};

/// The sums are forgotten with this time constant, in seconds.
const MEMORY: f64 = 3600.0;
/// So much spread of prompts (squared seconds a second) stands for what is known before: that ranks are on their own.
const PRIOR: f64 = 0.5;
/// A smaller slope is an error of the cost model, and taken for none.
const LEAST: f64 = 0.2;
/// Prompts are waited for once: a larger slope is of something else (ranks that share a GPU, one of which is slow).
const MOST: f64 = 1.3;

/// The regression's sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Waits {
    /// Of prompts times needed over spent, each less its mean over the ranks.
    together: f64,
    /// Of prompts squared.
    prompts: f64,
}

/// What to learn from a second: the terms of both sums.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Term(f64, f64);

impl Term {
    /// From ranks that were busy in one window: seconds of prompts a second, and needed over spent.
    pub fn of(ranks: impl Iterator<Item = (f64, f64)> + Clone) -> Self {
        let (mut n, mut x, mut y) = (0.0, 0.0, 0.0);
        for (prompts, ratio) in ranks.clone() {
            (n, x, y) = (n + 1.0, x + prompts, y + ratio);
        }
        if n < 2.0 {
            return Self::default();
        }
        let (x, y) = (x / n, y / n);
        ranks.fold(Self::default(), |Self(together, squares), (prompts, ratio)| {
            Self(together + (prompts - x) * (ratio - y), squares + (prompts - x).powi(2))
        })
    }
}

impl Waits {
    /// Learns from a healthy second.
    pub fn learn(&mut self, Term(together, prompts): Term) {
        let keep = 1.0 - 1.0 / MEMORY;
        self.together = self.together * keep + together;
        self.prompts = self.prompts * keep + prompts;
    }

    /// The part of its peers' prompts that a rank waits for, 0 to 1.
    pub fn part(&self) -> f64 {
        let slope = self.together / (self.prompts + PRIOR);
        if slope < LEAST || self.together > MOST * self.prompts { 0.0 } else { slope.min(1.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_rng::TestRng;

    /// The part after an hour of four ranks whose prompts take up to a fifth of the time; `ratio` gives needed over
    /// spent of one from its prompts and those of all.
    fn learned(ratio: impl Fn(f64, f64) -> f64) -> f64 {
        let (mut waits, mut rng) = (Waits::default(), TestRng(3));
        for _ in 0..3_600 {
            let prompts: [f64; 4] = std::array::from_fn(|_| 0.2 * rng.uniform());
            let all = prompts.iter().sum();
            let noise = 0.04 * (rng.uniform() - 0.5);
            waits.learn(Term::of(prompts.into_iter().map(|p| (p, ratio(p, all) + noise))));
        }
        waits.part()
    }

    #[test]
    fn ranks_that_share_their_steps_wait_for_each_others_prompts() {
        let part = learned(|own, all| (0.6 + own) / (0.6 + all));
        assert!((0.6..=1.0).contains(&part), "{part}");
    }

    #[test]
    fn ranks_on_their_own_wait_for_nobody_though_the_model_overrates_prompts() {
        assert_eq!(learned(|_, _| 1.0), 0.0);
        assert_eq!(learned(|own, _| 1.0 + 0.1 * own), 0.0);
    }

    #[test]
    fn what_departs_by_more_than_the_prompts_take_is_no_waiting() {
        assert_eq!(learned(|own, _| 0.6 + 3.0 * own), 0.0);
    }

    #[test]
    fn one_busy_rank_alone_teaches_nothing() {
        assert_eq!(Term::of([(0.3, 0.9)].into_iter()), Term::default());
    }
}
