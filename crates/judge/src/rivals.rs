//! Plainer detectors for comparison, on the loads that `/v1/loads` shows once a second: running and waiting
//! requests a rank. Each gives a score and a rank every second; one bound is held against the score.

/// A detector of levels: what the ranks' loads are now, to the score of the rank that stands out.
pub trait LevelDetector {
    fn name(&self) -> &'static str;
    /// The bounds that are tried.
    fn bounds(&self) -> Vec<f64>;
    fn score(&mut self, loads: &[f64]) -> (f64, usize);
}

/// All of them, fresh.
pub fn all() -> Vec<Box<dyn LevelDetector>> {
    vec![Box::new(MaxOverMean), Box::new(RobustZ), Box::new(Cusum::default())]
}

/// The rank with the highest score.
fn highest(scores: impl Iterator<Item = f64>) -> (f64, usize) {
    let mut best = (f64::NEG_INFINITY, 0);
    scores.enumerate().filter(|(_, s)| s.is_finite()).for_each(|(r, s)| {
        if s > best.0 {
            best = (s, r);
        }
    });
    best
}

/// The largest load over the mean one.
struct MaxOverMean;

impl LevelDetector for MaxOverMean {
    fn name(&self) -> &'static str {
        "max/mean"
    }
    fn bounds(&self) -> Vec<f64> {
        (0..14).map(|i| 1.2 + 0.2 * f64::from(i)).collect()
    }
    fn score(&mut self, loads: &[f64]) -> (f64, usize) {
        let mean = loads.iter().sum::<f64>() / loads.len() as f64;
        highest(loads.iter().map(|l| l / mean.max(1.0)))
    }
}

/// The distance from the ranks' median, in their median absolute deviation.
struct RobustZ;

impl LevelDetector for RobustZ {
    fn name(&self) -> &'static str {
        "robust z"
    }
    fn bounds(&self) -> Vec<f64> {
        [3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0].to_vec()
    }
    fn score(&mut self, loads: &[f64]) -> (f64, usize) {
        let median = median(loads.iter().copied());
        let spread = 1.4826 * median_of_distances(loads, median);
        highest(loads.iter().map(|l| (l - median).abs() / spread.max(1.0)))
    }
}

/// The sum of departures beyond half a standard deviation from what is usual for the rank (Page 1954), up or down; mean
/// and deviation are learned over half an hour.
#[derive(Default)]
struct Cusum {
    seconds: f64,
    ranks: Vec<Sum>,
}

#[derive(Clone, Copy, Default)]
struct Sum {
    mean: f64,
    square: f64,
    up: f64,
    down: f64,
}

impl LevelDetector for Cusum {
    fn name(&self) -> &'static str {
        "CUSUM"
    }
    fn bounds(&self) -> Vec<f64> {
        (0..12).map(|i| 5.0 * 1.6f64.powi(i)).collect()
    }
    fn score(&mut self, loads: &[f64]) -> (f64, usize) {
        self.ranks.resize(loads.len(), Sum::default());
        self.seconds += 1.0;
        let gain = 1.0 / self.seconds.min(1800.0);
        let mean = loads.iter().sum::<f64>() / loads.len() as f64;
        let scores: Vec<f64> = self
            .ranks
            .iter_mut()
            .zip(loads)
            .map(|(sum, load)| {
                let departs = (load - mean) / mean.max(1.0);
                let z = (departs - sum.mean) / (sum.square - sum.mean * sum.mean).max(1e-4).sqrt();
                sum.mean += gain * (departs - sum.mean);
                sum.square += gain * (departs * departs - sum.square);
                if self.seconds < 60.0 {
                    return 0.0;
                }
                sum.up = (sum.up + z - 0.5).max(0.0);
                sum.down = (sum.down - z - 0.5).max(0.0);
                sum.up.max(sum.down)
            })
            .collect();
        highest(scores.into_iter())
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut all: Vec<f64> = values.collect();
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(0.0)
}

fn median_of_distances(loads: &[f64], from: f64) -> f64 {
    median(loads.iter().map(|l| (l - from).abs()))
}
