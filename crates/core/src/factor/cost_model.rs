//! The work clock: seconds that a busy rank should have needed for what it did.
//!
//! One cost model for all ranks of a target, linear in steps, decoded tokens, KV read, prefills and prompt
//! tokens, fitted online by recursive least squares on relative errors, with non-negative coefficients
//! (Lawson and Hanson 1974): no work makes a rank faster.

use serde::{Deserialize, Serialize};

/// Number of features.
pub const FEATURES: usize = 5;
/// Decode steps, decoded tokens (steps x batch), KV read (steps x tokens held), prefills (or admissions),
/// prompt tokens. Any unit, as long as it stays the same.
pub type Features = [f64; FEATURES];

/// The decoding in `did`.
pub fn decoding_of(did: &Features) -> Features {
    [did[0], did[1], did[2], 0.0, 0.0]
}

/// Stretches are forgotten at this rate, each: some two thousand count.
const KEEP: f64 = 0.9995;
/// Solved again after so many stretches.
const SOLVE_EVERY: u32 = 20;
/// So many stretches make a first model.
const FEWEST: f64 = 40.0;
/// A ridge relative to the diagonal, which settles what the data do not tell apart.
const RIDGE: f64 = 1e-4;
/// A stretch that took more than this many times as long as the model says, or as much less, teaches
/// nothing: an incident, a pause.
const MOST_OFF: f64 = 6.0;

/// So many of those in a row, of two ranks at least, are no incident: another model, or another interval of the log.
const MOST_REFUSED: u32 = 200;

/// The cost model and what it was fitted from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CostModel {
    /// The normal equations: features x features, features x 1.
    pub normal: [[f64; FEATURES]; FEATURES],
    pub right: Features,
    /// Stretches that they rest on (forgotten with time), and since the last solution.
    pub count: f64,
    pub unsolved: u32,
    /// Seconds a feature.
    pub cost: Option<Features>,
    /// Stretches in a row that taught nothing.
    #[serde(skip)]
    refused: Refused,
}

/// Stretches in a row that taught nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Refused {
    count: u32,
    /// The rank of the last one.
    rank: usize,
    /// Whether there were others of another rank.
    is_of_several: bool,
}

impl Refused {
    /// One more.
    fn and(self, rank: usize) -> Self {
        let is_another = self.count > 0 && self.rank != rank;
        Self { count: self.count.saturating_add(1), rank, is_of_several: self.is_of_several || is_another }
    }
}

impl Default for CostModel {
    fn default() -> Self {
        Self {
            normal: [[0.0; FEATURES]; FEATURES],
            right: [0.0; FEATURES],
            count: 0.0,
            unsolved: 0,
            cost: None,
            refused: Refused::default(),
        }
    }
}

impl CostModel {
    /// Seconds that `did` should take; `None` until the model is known.
    pub fn needed(&self, did: &Features) -> Option<f64> {
        let cost = self.cost?;
        Some(did.iter().zip(cost).map(|(d, c)| d * c).sum())
    }

    /// Learns that `did` took `seconds` on `rank`, which usually takes `usual` times what the model says.
    pub fn learn(&mut self, rank: usize, did: &Features, seconds: f64, usual: f64) {
        let seconds = seconds / usual;
        if seconds <= 0.0 || did.iter().any(|d| !d.is_finite() || *d < 0.0) {
            return;
        }
        if let Some(needed) = self.needed(did)
            && (needed > MOST_OFF * seconds || seconds > MOST_OFF * needed)
        {
            self.refused = self.refused.and(rank);
            if self.refused.count < MOST_REFUSED || !self.refused.is_of_several {
                return;
            }
            *self = Self::default();
        }
        self.refused = Refused::default();
        let x = did.map(|d| d / seconds);
        // What was never done has no part in the equations: of decoding alone, prompts.
        let is_known = |i: &usize| x[*i] != 0.0 || self.normal[*i][*i] != 0.0;
        let known = (0..FEATURES).rfind(is_known).map_or(0, |last| last + 1);
        for i in 0..known {
            for j in i..known {
                let sum = self.normal[i][j] * KEEP + x[i] * x[j];
                (self.normal[i][j], self.normal[j][i]) = (sum, sum);
            }
            self.right[i] = self.right[i] * KEEP + x[i];
        }
        self.count = self.count * KEEP + 1.0;
        self.unsolved += 1;
        if self.unsolved >= SOLVE_EVERY && self.count >= FEWEST {
            self.unsolved = 0;
            self.cost = self.solve();
        }
    }

    /// Least squares with non-negative coefficients: the most negative is taken out until none is.
    fn solve(&self) -> Option<Features> {
        let mut all = [0; FEATURES];
        let mut count = 0;
        for i in (0..FEATURES).filter(|i| self.normal[*i][*i] > 0.0) {
            all[count] = i;
            count += 1;
        }
        while count > 0 {
            let active = &all[..count];
            let solution = self.solve_for(active)?;
            let worst = (0..count).min_by(|a, b| solution[*a].total_cmp(&solution[*b]))?;
            if solution[worst] >= 0.0 {
                let mut cost = [0.0; FEATURES];
                active.iter().zip(&solution).for_each(|(i, c)| cost[*i] = *c);
                return Some(cost);
            }
            all.copy_within(worst + 1..count, worst);
            count -= 1;
        }
        None
    }

    /// Gaussian elimination on the scaled normal equations of the `active` features, whose places the
    /// solution has.
    fn solve_for(&self, active: &[usize]) -> Option<Features> {
        let n = active.len();
        let mut scale = [0.0; FEATURES];
        scale.iter_mut().zip(active).for_each(|(s, i)| *s = self.normal[*i][*i].sqrt());
        let mut m = [[0.0; FEATURES + 1]; FEATURES];
        for i in 0..n {
            for j in 0..n {
                m[i][j] = self.normal[active[i]][active[j]] / (scale[i] * scale[j]);
            }
            m[i][i] += RIDGE;
            m[i][n] = self.right[active[i]] / scale[i];
        }
        for i in 0..n {
            let pivot = (i..n).max_by(|a, b| m[*a][i].abs().total_cmp(&m[*b][i].abs()))?;
            m.swap(i, pivot);
            if m[i][i].abs() < 1e-12 {
                return None;
            }
            for j in i + 1..n {
                let f = m[j][i] / m[i][i];
                let (done, rest) = m.split_at_mut(j);
                rest[0][i..=n].iter_mut().zip(&done[i][i..=n]).for_each(|(x, y)| *x -= f * y);
            }
        }
        let mut x = [0.0; FEATURES];
        for i in (0..n).rev() {
            let known: f64 = (i + 1..n).map(|j| m[i][j] * x[j]).sum();
            x[i] = (m[i][n] - known) / m[i][i];
        }
        x.iter_mut().zip(&scale).take(n).for_each(|(v, s)| *v /= s);
        Some(x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_finds_the_cost_of_steps_and_of_prompt_tokens() {
        let mut clock = CostModel::default();
        for i in 0..400u32 {
            let did = [1.0, f64::from(i % 17), 0.0, f64::from(i % 3), f64::from((i * 37) % 911)];
            let seconds = 0.3 + 0.01 * did[1] + 0.02 * did[3] + 4e-4 * did[4];
            clock.learn(0, &did, seconds, 1.0);
        }
        let needed = clock.needed(&[1.0, 10.0, 0.0, 2.0, 500.0]).unwrap();
        assert!((needed - 0.64).abs() < 0.01, "{needed}");
    }

    #[test]
    fn a_stretch_that_took_ten_times_as_long_does_not_teach() {
        let mut clock = CostModel::default();
        (0..200).for_each(|_| clock.learn(0, &[1.0, 0.0, 0.0, 0.0, 0.0], 1.0, 1.0));
        let before = clock.clone();
        clock.learn(0, &[1.0, 0.0, 0.0, 0.0, 0.0], 10.0, 1.0);
        assert_eq!((before.normal, before.cost), (clock.normal, clock.cost));
    }

    /// The seconds that a stretch needs after 400 that took a second each, and 400 more that took a fortieth,
    /// of so many ranks in turn.
    fn needed_after_a_change(ranks: usize) -> f64 {
        let mut clock = CostModel::default();
        let did = [1.0, 20.0, 0.0, 0.0, 0.0];
        (0..400).for_each(|i| clock.learn(i % 4, &did, 1.0, 1.0));
        (0..400).for_each(|i| clock.learn(i % ranks, &did, 0.025, 1.0));
        clock.needed(&did).unwrap()
    }

    #[test]
    fn it_is_learned_anew_once_it_is_far_off_for_several_ranks() {
        let needed = needed_after_a_change(2);
        assert!((needed / 0.025 - 1.0).abs() < 0.1, "{needed}");
        let needed = needed_after_a_change(1);
        assert!((needed - 1.0).abs() < 0.1, "one rank that is much slower is no other model: {needed}");
    }
}
