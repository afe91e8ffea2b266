//! The bound of a test, from the tail of its own statistic on this site and a budget of false alarms.
//!
//! Peaks over a high threshold, as in SPOT (Siffer et al. 2017), with two differences. The statistic is a
//! deviance (half a squared normal deviate), whose tail is exponential if the noise is what the test
//! takes it for: so the shape of the Pareto distribution is fixed at 0 and only its scale is learned,
//! with a prior; a free shape from a few dozen peaks extrapolates wildly. And exceedances come in runs,
//! so runs are counted, not seconds (Leadbetter 1983).

use serde::{Deserialize, Serialize};

/// The threshold: this share of all seconds lies above it.
const ABOVE: f64 = 0.02;
/// Exceedances that are this close are one run, in seconds.
const RUN_GAP: f64 = 20.0;
/// The prior: so many runs, with this mean excess. Twice that of normal noise, because a young
/// site is not known to have normal noise.
const PRIOR_RUNS: f64 = 8.0;
const PRIOR_EXCESS: f64 = 2.0;
/// The prior's threshold and how often it is exceeded (runs a second).
const PRIOR_LEVEL: f64 = 6.0;
const PRIOR_RATE: f64 = 0.01;
/// A prior of seconds for the rate.
const PRIOR_SECONDS: f64 = 600.0;
/// An excess counts for no more than so many times the mean excess: an incident must not teach.
const MOST_EXCESS: f64 = 4.0;
/// One that was told, which may well be a trouble and says little of noise then, for no more than twice that.
const MOST_TOLD: f64 = 2.0;
/// Runs and seconds are forgotten with this time constant, in seconds, so that a new mix can teach.
const MEMORY: f64 = 6.0 * 3600.0;
/// Each firing beyond so many (within [`MEMORY`]) raises the bound by this share: feedback from what the
/// bound costs, as in adaptive conformal inference (Gibbs and Candes 2021), for tails that no fit foresees.
const FREE_FIRINGS: f64 = 3.0;
const RAISE: f64 = 0.15;
/// A firing that a person called noise raises the bound by this share, so many at most, and is forgotten with
/// this time constant, in seconds.
const NOISE_RAISE: f64 = 0.2;
const MOST_NOISE: f64 = 4.0;
const MARK_MEMORY: f64 = 7.0 * 86_400.0;
/// No bound is below this deviance (3.5 standard deviations).
pub const LEAST_BOUND: f64 = 6.1;

/// What is known of a test's tail.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tail {
    /// The threshold, as a deviance.
    pub level: f64,
    /// Seconds that were learned from (forgotten with time).
    pub seconds: f64,
    /// Runs of exceedances (forgotten with time).
    pub runs: f64,
    /// The sum of their excesses.
    pub excess: f64,
    /// Firings (forgotten with time).
    pub firings: f64,
    /// Firings that people called noise (forgotten with time).
    #[serde(default)]
    pub noise: f64,
    /// The run under way: its highest excess, and seconds since its last exceedance.
    pub run: Option<(f64, f64)>,
}

impl Default for Tail {
    fn default() -> Self {
        Self { level: PRIOR_LEVEL, seconds: 0.0, runs: 0.0, excess: 0.0, firings: 0.0, noise: 0.0, run: None }
    }
}

impl Tail {
    /// Learns from one healthy second's statistic.
    pub fn learn(&mut self, deviance: f64) {
        let keep = 1.0 - 1.0 / MEMORY;
        self.seconds = self.seconds * keep + 1.0;
        self.runs *= keep;
        self.excess *= keep;
        self.firings *= keep;
        self.noise *= 1.0 - 1.0 / MARK_MEMORY;
        let step = (20.0 / (self.seconds + 20.0)).max(0.1);
        let up = deviance > self.level;
        self.level = (self.level + step * if up { 1.0 - ABOVE } else { -ABOVE }).max(1.0);
        let over = deviance - self.level;
        self.run = match self.run {
            None if over > 0.0 => Some((over, 0.0)),
            Some((most, _)) if over > 0.0 => Some((most.max(over), 0.0)),
            Some((most, since)) if since < RUN_GAP => Some((most, since + 1.0)),
            Some((most, _)) => {
                self.runs += 1.0;
                self.excess += most.min(MOST_EXCESS * self.mean_excess());
                None
            }
            None => None,
        };
    }

    /// An incident begins: what follows is no healthy second. If `own` test fired, the firing is a run, but tells
    /// little of how far runs of noise reach: three troubles in the first minutes of a server, where few runs are
    /// known, would else double its bound. A test that fires again and again raises its own bound.
    pub fn fired(&mut self, own: bool, deviance: f64) {
        self.run = None;
        if own {
            self.runs += 1.0;
            self.excess += (deviance - self.level).clamp(0.0, MOST_TOLD * self.mean_excess());
            self.firings += 1.0;
        }
    }

    /// A firing was worth a look: it is no cost of the bound. `by` is 1, or -1 where that is taken back. What
    /// is left of it after so many seconds goes.
    pub fn useful(&mut self, excess: f64, by: f64, age: f64) {
        let by = by * (-age.max(0.0) / MEMORY).exp();
        self.firings = (self.firings - by).max(0.0);
        self.runs = (self.runs - by).max(0.0);
        self.excess = (self.excess - by * excess.clamp(0.0, MOST_TOLD * self.mean_excess())).max(0.0);
    }

    /// A firing was noise. `by` is 1, or -1 where that is taken back.
    pub fn noise(&mut self, by: f64) {
        self.noise = (self.noise + by).clamp(0.0, MOST_NOISE);
    }

    /// The mean excess of a run, shrunk to the prior.
    pub fn mean_excess(&self) -> f64 {
        (PRIOR_RUNS * PRIOR_EXCESS + self.excess) / (PRIOR_RUNS + self.runs)
    }

    /// The deviance that healthy seconds exceed `per_day` times a day, if the tail is what was seen of it.
    pub fn bound(&self, per_day: f64) -> f64 {
        self.raised(self.wanted(per_day) * self.mean_excess())
    }

    /// The same where nothing but the runs so far tells how heavy the tail is: what the next one may be follows the
    /// predictive distribution of an exponential variable whose scale has a gamma prior, which is Pareto's (Lomax
    /// 1954) with as many degrees of freedom as there are runs. With few of them only a gross departure is beyond
    /// it; with many it is the exponential distribution again.
    pub fn cautious_bound(&self, per_day: f64) -> f64 {
        let runs = PRIOR_RUNS + self.runs;
        self.raised((self.wanted(per_day) / runs).exp_m1() * runs * self.mean_excess())
    }

    /// The logarithm of how many times as often as wanted the level is exceeded.
    fn wanted(&self, per_day: f64) -> f64 {
        let runs_a_second = (PRIOR_RATE * PRIOR_SECONDS + self.runs) / (PRIOR_SECONDS + self.seconds);
        (runs_a_second * 86_400.0 / per_day).ln().max(0.0)
    }

    /// The bound so far beyond the level, raised by what it has cost.
    fn raised(&self, beyond: f64) -> f64 {
        let paid = 1.0 + RAISE * (self.firings - FREE_FIRINGS).max(0.0);
        let called_noise = 1.0 + NOISE_RAISE * self.noise;
        ((self.level + beyond) * paid * called_noise).max(LEAST_BOUND)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_young_site_asks_for_a_gross_departure() {
        let z = (2.0 * Tail::default().bound(0.3)).sqrt();
        assert!((6.0..9.0).contains(&z), "{z}");
    }

    #[test]
    fn while_few_runs_are_known_a_cautious_bound_covers_what_their_scale_may_be() {
        let beyond = |runs: f64| {
            let tail = Tail { seconds: 100.0 * runs, runs, excess: runs, ..Tail::default() };
            (tail.cautious_bound(0.2) - tail.level) / (tail.bound(0.2) - tail.level)
        };
        assert!(beyond(3.0) > 1.3, "{}", beyond(3.0));
        assert!((1.0..1.03).contains(&beyond(300.0)), "{}", beyond(300.0));
    }

    #[test]
    fn an_exponential_tail_is_extrapolated_to_the_wanted_rate() {
        let mut tail = Tail::default();
        let mut x = 1u64;
        for _ in 0..40_000 {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let u = ((x >> 11) as f64 + 1.0) / (1u64 << 53) as f64;
            tail.learn(-u.ln());
        }
        // 86,400 / e^d = 1 a day.
        let exact = 86_400f64.ln();
        assert!((tail.bound(1.0) - exact).abs() < 2.0, "{} {exact}", tail.bound(1.0));
    }

    #[test]
    fn noise_raises_the_bound_no_more_than_so_far_and_is_forgotten() {
        let mut tail = Tail::default();
        let bound = tail.bound(1.0);
        tail.noise(1.0);
        assert!((tail.bound(1.0) / bound - 1.2).abs() < 1e-9);
        (0..20).for_each(|_| tail.noise(1.0));
        assert!((tail.bound(1.0) / bound - 1.8).abs() < 1e-9);
        (0..4 * 7 * 86_400).for_each(|_| tail.learn(0.0));
        assert!(tail.noise < 0.1, "{}", tail.noise);
    }

    #[test]
    fn useful_firings_cost_nothing() {
        let told = |is_useful: bool| {
            let mut tail = Tail::default();
            for _ in 0..6 {
                tail.fired(true, 30.0);
                if is_useful {
                    tail.useful(24.0, 1.0, 0.0);
                }
            }
            tail.bound(1.0)
        };
        assert!((told(true) - Tail::default().bound(1.0)).abs() < 1e-9);
        assert!(told(false) > 1.3 * told(true));
    }

    #[test]
    fn what_is_marked_a_day_later_takes_out_no_more_than_is_left_of_it() {
        let mut tail = Tail::default();
        (0..2).for_each(|_| tail.fired(true, 30.0));
        (0..86_400).for_each(|_| tail.learn(0.0));
        let before = tail.runs;
        tail.useful(24.0, 1.0, 86_400.0);
        assert!((tail.runs / before - 0.5).abs() < 0.01, "{} {before}", tail.runs);
    }

    #[test]
    fn three_troubles_on_a_young_server_raise_its_bound_by_a_third_at_most() {
        let mut tail = Tail::default();
        let before = tail.bound(0.2);
        (0..3).for_each(|_| tail.fired(true, 60.0));
        assert!((1.0..1.34).contains(&(tail.bound(0.2) / before)), "{} {before}", tail.bound(0.2));
    }

    #[test]
    fn a_smaller_budget_is_a_higher_bound() {
        let tail = Tail::default();
        assert!(tail.bound(0.2) > tail.bound(1.0) && tail.bound(1.0) > tail.bound(5.0));
    }
}
