//! Since when: the posterior of the second in which a factor departed.
//!
//! Two shapes are laid over the recent past: a step, and a ramp that grows to the present. Amplitudes are
//! summed out over a grid; a break of age `a` has prior density `1/(1 + a)`, since nobody knows the scale of
//! its age. Levels at which the past before the break may have been, where another trouble has left it
//! beside the usual one, are summed out as well: else seconds of such a wake would outweigh the first ones of
//! what is found. The onset is the posterior's median, its `±` reaches from there to the 4 % and 96 % points.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Where a trouble began.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Onset {
    /// When, in seconds.
    pub at: f64,
    /// How far off that may be: the truth lies within in nine of ten cases.
    pub error: f64,
}

/// How likely slow growth is beforehand, against a step.
const RAMP_PRIOR: f64 = 0.5;
/// What the interval leaves out on either side.
const LEFT_OUT: f64 = 0.04;
/// Seconds are whole here, so no onset is known better than this.
const HALF_A_SECOND: f64 = 0.5;

/// One past second: the log-likelihood ratio of "departed by `amplitude`" against "as usual".
pub trait Course {
    /// How many seconds there are, oldest first.
    fn seconds(&self) -> usize;
    /// The log-likelihood ratio of second `i` having departed by the share `part` (0 to 1) of an amplitude, from a
    /// level.
    fn gain(&self, i: usize, level: usize, amplitude: usize, part: f64) -> f64;
    /// Which amplitudes are tried beside a level.
    fn amplitudes(&self, level: usize) -> Range<usize>;
    /// How many levels of the time before are tried; the first one is the usual one.
    fn levels(&self) -> usize {
        1
    }
    /// The log-likelihood ratio of second `i` being at a level.
    fn rest(&self, _i: usize, _level: usize) -> f64 {
        0.0
    }
}

/// Finds the onset in `course`, whose last second ends at `end`. `blur` is how long a report takes (half
/// of it is added to the error). `None` if there is nothing.
pub fn locate(course: &impl Course, end: f64, blur: f64) -> Option<Onset> {
    let n = course.seconds();
    if n == 0 {
        return None;
    }
    let most = (0..course.levels()).map(|level| course.amplitudes(level).len()).sum::<usize>();
    let mut scores = vec![Vec::with_capacity(2 * most); n];
    for level in 0..course.levels() {
        // What the seconds before each one tell.
        let mut before = vec![0.0; n];
        (1..n).for_each(|i| before[i] = before[i - 1] + course.rest(i - 1, level));
        for amplitude in course.amplitudes(level) {
            let mut step = 0.0;
            for i in (0..n).rev() {
                step += course.gain(i, level, amplitude, 1.0);
                scores[i].push(before[i] + step + (1.0 - RAMP_PRIOR).ln());
                let length = (n - i) as f64;
                if length >= 8.0 {
                    let part = |j: usize| ((j - i) as f64 + 0.5) / length;
                    let ramp: f64 = (i..n).map(|j| course.gain(j, level, amplitude, part(j))).sum();
                    scores[i].push(before[i] + ramp + RAMP_PRIOR.ln());
                }
            }
        }
    }
    let most = scores.iter().flatten().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores
        .iter()
        .enumerate()
        .map(|(i, s)| s.iter().map(|x| (x - most).exp()).sum::<f64>() / ((n - i) as f64 + 1.0))
        .collect();
    let whole: f64 = weights.iter().sum();
    let quantile = |q: f64| {
        let mut sum = 0.0;
        for (i, w) in weights.iter().enumerate() {
            if sum + w >= q * whole {
                // Break `i` is anywhere within half a second of the second's beginning.
                return end - (n - i) as f64 - HALF_A_SECOND + (q * whole - sum) / w;
            }
            sum += w;
        }
        end
    };
    let (early, at, late) = (quantile(LEFT_OUT), quantile(0.5), quantile(1.0 - LEFT_OUT));
    let error = (at - early).max(late - at).max(HALF_A_SECOND) + 0.5 * blur;
    Some(Onset { at, error })
}

/// Counts of the ranks in question among the group's, per second.
pub struct Counts {
    /// Theirs and the group's.
    pub seconds: Vec<(f64, f64)>,
    /// Their usual share.
    pub usual: f64,
    /// Whether they get more.
    pub is_high: bool,
    /// The noise, in binomial variances.
    pub dispersion: f64,
}

/// How much of the others' requests a rank gains, or of its own it loses.
const GAINED: [f64; 8] = [0.05, 0.1, 0.17, 0.25, 0.35, 0.5, 0.65, 0.85];
const LOST: [f64; 6] = [0.2, 0.35, 0.5, 0.7, 0.9, 0.995];

impl Course for Counts {
    fn seconds(&self) -> usize {
        self.seconds.len()
    }
    fn amplitudes(&self, _level: usize) -> Range<usize> {
        0..if self.is_high { GAINED.len() } else { LOST.len() }
    }
    fn gain(&self, i: usize, _level: usize, amplitude: usize, part: f64) -> f64 {
        let (x, n) = self.seconds[i];
        // Inferred counts may be negative; cut off, they would lean to one side.
        let p = self.usual;
        let q = if self.is_high {
            p + (1.0 - p) * GAINED[amplitude] * part
        } else {
            p * (1.0 - LOST[amplitude] * part)
        };
        (x * (q / p).ln() + (n - x) * ((1.0 - q) / (1.0 - p)).ln()) / self.dispersion
    }
}

/// A logarithm per second, 0 as usual, with its variance; infinite where nothing was measured.
pub struct Logs {
    /// Values and variances.
    pub seconds: Vec<(f64, f64)>,
    /// Whether it grows.
    pub is_high: bool,
    /// Whether the past may be the wake of another trouble, and its level another one than the usual.
    pub is_unsettled: bool,
}

const LOG_STEPS: [f64; 8] = [0.15, 0.25, 0.4, 0.55, 0.75, 1.0, 1.5, 2.5];
/// Levels of the time before, on the side of the departure: only there could they be taken for its beginning.
const LOG_LEVELS: [f64; 10] = [0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.45, 0.55];

impl Logs {
    /// The log-likelihood ratio of second `i` being at `departure`, on the side in question.
    fn at(&self, i: usize, departure: f64) -> f64 {
        let (x, variance) = self.seconds[i];
        if !variance.is_finite() {
            return 0.0;
        }
        let m = if self.is_high { departure } else { -departure };
        // Tails are heavier than normal: no second tells more than four standard deviations do.
        let limit = 4.0 * variance.sqrt();
        let fit = |e: f64| e.abs().min(limit).powi(2);
        (fit(x) - fit(x - m)) / (2.0 * variance)
    }
}

impl Course for Logs {
    fn seconds(&self) -> usize {
        self.seconds.len()
    }
    fn amplitudes(&self, level: usize) -> Range<usize> {
        // A level is no more than half of what departs: one that does not change is where it began.
        LOG_STEPS.partition_point(|step| *step < LOG_LEVELS[level])..LOG_STEPS.len()
    }
    fn levels(&self) -> usize {
        if self.is_unsettled { LOG_LEVELS.len() } else { 1 }
    }
    fn rest(&self, i: usize, level: usize) -> f64 {
        self.at(i, LOG_LEVELS[level])
    }
    fn gain(&self, i: usize, level: usize, amplitude: usize, part: f64) -> f64 {
        self.at(i, LOG_LEVELS[level] + LOG_STEPS[amplitude] * part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_of_counts_is_found_to_the_second() {
        let seconds = (0..60).map(|s| if s < 55 { (8.0, 32.0) } else { (20.0, 32.0) }).collect();
        let onset =
            locate(&Counts { seconds, usual: 0.25, is_high: true, dispersion: 1.0 }, 60.0, 0.0).unwrap();
        assert!((onset.at - 55.0).abs() < 0.6 && onset.error < 2.0, "{onset:?}");
    }

    #[test]
    fn a_ramp_is_known_less_well_and_says_so() {
        let seconds = (0..90).map(|s| (8.0 + f64::from((s - 50).max(0)) * 0.2, 32.0)).collect();
        let onset =
            locate(&Counts { seconds, usual: 0.25, is_high: true, dispersion: 1.0 }, 90.0, 0.0).unwrap();
        assert!((onset.at - 50.0).abs() <= onset.error && onset.error > 3.0, "{onset:?}");
    }

    #[test]
    fn what_a_trouble_before_has_left_is_not_the_beginning_of_this_one() {
        // A fifth slower for 18 seconds of a wake, then three times slower for two.
        let slow = |s: i32| if s < 18 { -0.2 } else { -1.1 };
        let noise = |s: i32| 0.08 * (f64::from(s) * 2.4).sin();
        let onset = |is_unsettled| {
            let seconds = (0..20).map(|s| (slow(s) + noise(s), 0.01)).collect();
            locate(&Logs { seconds, is_high: false, is_unsettled }, 20.0, 0.5).unwrap()
        };
        let (settled, unsettled) = (onset(false), onset(true));
        assert!(settled.at < 4.0, "as if nothing had been before: {settled:?}");
        assert!((unsettled.at - 18.0).abs() <= 1.0 && unsettled.error < 1.5, "{unsettled:?}");
    }

    #[test]
    fn what_begins_right_after_a_trouble_and_stays_as_it_is_began_there() {
        let noise = |s: i32| 0.08 * (f64::from(s) * 2.4).sin();
        let seconds = (0..20).map(|s| (if s < 6 { 0.0 } else { -0.5 } + noise(s), 0.01)).collect();
        let onset = locate(&Logs { seconds, is_high: false, is_unsettled: true }, 20.0, 0.5).unwrap();
        assert!((onset.at - 6.0).abs() <= 1.0 && onset.error < 1.5, "{onset:?}");
    }
}
