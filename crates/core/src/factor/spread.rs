//! Dispersion learned by its median: half of all seconds would have to be wrong to teach it.
//!
//! A statistic that should have variance 1 has another one on this site: less behind round robin, more
//! with sessions. Its squares' median is tracked by stochastic approximation (Robbins and Monro 1951) on
//! the logarithm, so an incident of any size moves it no faster than a step a second.

use serde::{Deserialize, Serialize};

/// The median of the square of a standard normal variable.
pub const MEDIAN_OF_SQUARE: f64 = 0.4549;
/// A step a second, on the logarithm: a factor of e in 200 s at most.
const GAIN: f64 = 0.005;
/// `exp(GAIN)` and `exp(-GAIN)`: nearly every step of a detector is one of these, hundreds a second.
const UP: f64 = 1.005012520859401;
const DOWN: f64 = 0.9950124791926823;
/// While young it steps faster: by 1/seconds, until that is less than `GAIN`.
const YOUNG_GAIN: f64 = 0.05;

/// A learned dispersion: the variance of something that nominally has variance 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dispersion {
    pub variance: f64,
    /// Seconds that taught it.
    pub seconds: f64,
}

impl Default for Dispersion {
    fn default() -> Self {
        Self { variance: 1.0, seconds: 0.0 }
    }
}

impl Dispersion {
    /// Learns from one value whose square is `square`, nominally 1.
    pub fn learn(&mut self, square: f64) {
        self.learn_together([square].into_iter());
    }

    /// Learns from the same second of several ranks: one step, as far as they agree.
    pub fn learn_together(&mut self, squares: impl Iterator<Item = f64>) {
        let bound = MEDIAN_OF_SQUARE * self.variance;
        let (up, all) = squares.fold((0.0, 0.0), |(u, n), s| (u + f64::from(u8::from(s > bound)), n + 1.0));
        if all == 0.0 {
            return;
        }
        self.seconds += 1.0;
        let gain = GAIN.max((1.0 / self.seconds).min(YOUNG_GAIN));
        let direction = 2.0 * up / all - 1.0;
        let factor = match () {
            () if gain == GAIN && direction == 1.0 => UP,
            () if gain == GAIN && direction == -1.0 => DOWN,
            () => (gain * direction).exp(),
        };
        self.variance = (self.variance * factor).clamp(1e-4, 1e4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_steps_are_those_of_the_gain() {
        assert!((UP / GAIN.exp() - 1.0).abs() < 1e-15 && (DOWN / (-GAIN).exp() - 1.0).abs() < 1e-15);
    }

    #[test]
    fn a_minute_of_an_incident_moves_it_by_a_third_at_most() {
        let mut d = Dispersion { variance: 1.0, seconds: 1e4 };
        (0..60).for_each(|_| d.learn(1e6));
        assert!(d.variance < 1.36);
    }

    #[test]
    fn it_finds_the_variance_of_what_is_narrower_than_expected() {
        let mut d = Dispersion::default();
        // Squares of a normal variable with variance 0.2, at nine quantiles.
        let squares = [0.0158, 0.0642, 0.1485, 0.275, 0.4549, 0.708, 1.074, 1.642, 2.706];
        (0..4000).for_each(|i| d.learn(0.2 * squares[(i * 5) % 9]));
        assert!((d.variance - 0.2).abs() < 0.03, "{}", d.variance);
    }
}
