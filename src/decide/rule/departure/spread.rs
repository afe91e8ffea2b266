//! How widely the smoothed courses of normal members scatter, and how far out one of them is.

use super::{COURSES, LOAD, SPEED, TOKENS};

/// A spread is never taken to be less, however even the group has been: smaller differences do not
/// matter. Roots of counts; logarithms, so a fiftieth is two in a hundred.
const LEAST: [f64; COURSES] = [0.2, 0.03, 0.02];
/// At least this share of the tokens' variance is their own and not the load's.
const LEAST_OWN: f64 = 0.1;

/// Covariances of the smoothed courses at one scale: load, tokens, speed, load with tokens.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spread {
    own: [f64; COURSES],
    load_tokens: f64,
}

/// What one member shows at one scale, in standard deviations.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// Of its load alone.
    pub load: f64,
    /// Of load and tokens together (Mahalanobis).
    pub load_and_tokens: f64,
    /// Of its speed alone; negative when slow.
    pub speed: f64,
    /// Of all together, squared.
    pub total: f64,
}

impl Spread {
    /// How far out `s` is, with each course's variance taken to be `inflated` times larger.
    pub fn measure(&self, s: &[f64; COURSES], inflated: &[f64; COURSES]) -> Seen {
        let has = |c: usize| self.own[c] > 0.0;
        let scale = |c: usize, variance: f64| 1.0 / (variance.max(LEAST[c] * LEAST[c]) * inflated[c]).sqrt();
        let [load, tokens, speed] = self.own;
        let a = s[LOAD] * scale(LOAD, load);
        let slope = self.load_tokens / load.max(1e-9);
        let own = (tokens - slope * self.load_tokens).max(LEAST_OWN * tokens);
        let b = if has(TOKENS) { (s[TOKENS] - slope * s[LOAD]) * scale(TOKENS, own) } else { 0.0 };
        let c = if has(SPEED) { s[SPEED] * scale(SPEED, speed) } else { 0.0 };
        Seen { load: a, load_and_tokens: a.hypot(b), speed: c, total: a * a + b * b + c * c }
    }

    /// Takes the members' values but those of `without`; `share` turns their sums into variances.
    pub fn learn<'a>(
        &mut self,
        smooth: impl Iterator<Item = &'a [f64; COURSES]>,
        without: usize,
        share: f64,
        weight: f64,
    ) {
        let mut seen = Self::default();
        for (_, s) in smooth.enumerate().filter(|(m, _)| *m != without) {
            (0..COURSES).for_each(|c| seen.own[c] += s[c] * s[c]);
            seen.load_tokens += s[LOAD] * s[TOKENS];
        }
        (0..COURSES).for_each(|c| self.own[c] += weight * (seen.own[c] * share - self.own[c]));
        self.load_tokens += weight * (seen.load_tokens * share - self.load_tokens);
    }
}
