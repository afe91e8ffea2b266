//! Residence: how long requests stay on a rank that has little to do, against its own usual and against its peers now.
//!
//! A rank that is idle for most of the time tells next to nothing of its speed: its steps are few, and between two
//! reports it may have rested. But requests that are alone on a rank stay for as long as the rank needs for them, and
//! by Little's law (L = lambda W, 1961) that is what a rank holds over what comes to it. What it holds is seen by
//! those who come: arrivals of a Poisson process see time averages (Wolff, "Poisson arrivals see time averages",
//! Operations Research 30, 1982), and where they do not, their usual bias cancels. Where many run at once, how long
//! they stay follows from who else is there, which is chance: so nothing is said of ranks that usually hold more than
//! a few, nor while their peers do.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::factor::bins::{Bin, Bins, Sums};
use crate::factor::evidence::{Evidence, Grid, PeerMedians, Side, WINDOWS, measured};
use crate::factor::spread::Dispersion;

/// Fewer requests in a window than this tell nothing, ...
const FEWEST: f64 = 8.0;
/// ... and what is usual rests on so many at least.
const FEWEST_KNOWN: f64 = 50.0;
/// A rank has little to do if a request finds no more than so many others on it.
const LIGHT: f64 = 4.0;
/// A stay that is longer by less than this (on the logarithm, 2.5 times) is no trouble: requests that are longer, or
/// come together, do as much.
const MATERIAL: f64 = 0.9;
/// Of the requests of a rank that is hardly used, in each of which another one is met by chance, the logarithm of the
/// mean stay has this variance, divided by their number: of the number held at a moment, which stays for one stay.
const NOMINAL: f64 = 2.0;
/// Half a request, so that none is no infinity.
const HALF: f64 = 0.5;
/// Usual stays are remembered for so many seconds.
const MEMORY: f64 = 1800.0;

/// What a rank usually gets and holds, a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Usual {
    /// Requests a second.
    came: f64,
    /// Requests that those found, together.
    met: f64,
    /// Pairs of requests within the same second, each counted from both sides.
    #[serde(default)]
    pairs: f64,
}

impl Usual {
    /// How crowded requests come, a second: those that come at once find each other, however short they stay.
    fn crowding(&self) -> f64 {
        self.came.powi(2).max(self.pairs)
    }
}

/// What is known of how long requests stay.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Residence {
    usual: Vec<Usual>,
    /// Seconds that taught it.
    seconds: f64,
    /// Dispersion per window, of all ranks together.
    pooled: Vec<Dispersion>,
}

/// What [`Residence::examine`] saw.
#[derive(Clone, Debug)]
pub struct Examination {
    /// The evidence of each rank, as less speed.
    pub evidence: Vec<Evidence>,
    /// Normalised departures; more is a longer stay.
    pub roots: Grid,
}

impl Residence {
    /// For `ranks` ranks, of which nothing is known.
    pub fn new(ranks: usize) -> Self {
        Self {
            usual: vec![Usual::default(); ranks],
            seconds: 0.0,
            pooled: vec![Dispersion::default(); WINDOWS.len()],
        }
    }

    /// Whether it is of so many ranks; what an agent before this one saved may know nothing of stays.
    pub fn is_of(&self, ranks: usize) -> bool {
        self.usual.len() == ranks
    }

    /// Looks at the windows of `sums`. A rank of which `is_explained` says that it is sent more, or heavier requests,
    /// is not slow.
    pub fn examine(&self, sums: &Sums, is_explained: impl Fn(usize) -> bool) -> Examination {
        let ranks = self.usual.len();
        let mut roots = Grid::new(WINDOWS.len(), ranks);
        let mut best = vec![Evidence::NONE; ranks];
        let mut peers = PeerMedians::default();
        let (mut logs, mut variances) = (vec![f64::NAN; ranks], vec![f64::NAN; ranks]);
        for (w, window, sum) in sums.windows() {
            for (r, bin) in sum.iter().enumerate() {
                let is_told = bin.admitted >= FEWEST && self.is_light(r);
                let departure = is_told.then(|| {
                    let usual = self.usual[r];
                    let crowding = (bin.admitted.powi(2) / window as f64).max(sums.pairs(w, r));
                    self.departure(r, bin, crowding * usual.met / usual.crowding())
                });
                (logs[r], variances[r]) = departure.unwrap_or((f64::NAN, f64::NAN));
            }
            let others = peers.of(&logs);
            let dispersion = self.pooled[w].variance.max(1.0);
            let roots = roots.row_mut(w);
            for r in 0..ranks {
                let effect = logs[r] - others[r];
                if effect.is_nan() {
                    continue;
                }
                let is_peer = |p: &usize| *p != r && !variances[*p].is_nan();
                let peers = || (0..ranks).filter(is_peer);
                let count = peers().count() as f64;
                let variance = variances[r] + peers().map(|p| variances[p]).sum::<f64>() / count.powi(2);
                roots[r] = effect / variance.sqrt();
                // The weaker one of "against its own usual" and "against its peers now", as of a speed.
                let departure = effect.min(logs[r]);
                if departure < MATERIAL || is_explained(r) || !peers().any(|p| holds_little(&sum[p])) {
                    continue;
                }
                let deviance = 0.5 * departure.powi(2) / (variance * dispersion);
                best[r] = best[r].or(Evidence { deviance, side: Side::Low, effect: -departure, window });
            }
        }
        Examination { evidence: best, roots }
    }

    /// The logarithm of how many times as long as usual the requests of `bin` stayed, with its variance,
    /// where they should have found so many others.
    fn departure(&self, rank: usize, bin: &Bin, expected: f64) -> (f64, f64) {
        let known = self.usual[rank].came * self.seconds.min(MEMORY);
        let variance = NOMINAL / bin.admitted + NOMINAL / known + 1.0 / (expected + HALF);
        (((bin.met + HALF) / (expected + HALF)).ln(), variance)
    }

    /// The same of a second alone, in which as many came as usual: its own few do not tell a rate. `None` of
    /// a rank that usually has much to do, or of which too little is known.
    pub fn departure_in(&self, rank: usize, second: &Bin) -> Option<(f64, f64)> {
        let Usual { came, met, .. } = self.usual[rank];
        (second.admitted > 0.0 && self.is_light(rank))
            .then(|| self.departure(rank, second, second.admitted * met / came.max(1e-9)))
    }

    /// Whether a rank usually has so little to do that requests stay for as long as it needs for them.
    pub fn is_light(&self, rank: usize) -> bool {
        let Usual { came, met, .. } = self.usual[rank];
        came * self.seconds.min(MEMORY) >= FEWEST_KNOWN && met > 0.0 && met <= LIGHT * came
    }

    /// In how many seconds half as many requests again usually come as tell how long they stay.
    pub fn seconds_for_enough(&self, rank: usize) -> f64 {
        1.5 * FEWEST / self.usual[rank].came.max(1e-9)
    }

    /// Whether so many `admitted` requests of a rank tell how long they stay.
    pub fn is_measured(&self, rank: usize, admitted: f64) -> bool {
        admitted >= FEWEST && self.is_light(rank)
    }

    /// The noise beyond the nominal one, for the onset.
    pub fn dispersion(&self) -> f64 {
        self.pooled[0].variance.max(1.0)
    }

    /// How long the requests of `ranks` stay in the `seconds` of `bins` is usual from now on.
    pub fn take_for_usual(&mut self, ranks: &[usize], bins: &Bins, seconds: RangeInclusive<i64>) {
        let length = (seconds.end() - seconds.start() + 1) as f64;
        for &rank in ranks {
            let sum = bins.sum(rank, seconds.clone());
            // They come as crowded as they are many: with the old crowding fewer ones would seem to stay longer.
            let pairs: f64 = seconds.clone().map(|second| bins.get(rank, second).pairs()).sum();
            self.usual[rank] =
                Usual { came: sum.admitted / length, met: sum.met / length, pairs: pairs / length };
        }
    }

    /// Learns from what was seen in a healthy second.
    pub fn learn(&mut self, bins: &Bins, second: i64, roots: &Grid) {
        self.seconds += 1.0;
        for (dispersion, roots) in self.pooled.iter_mut().zip(roots.rows()) {
            dispersion.learn_together(measured(roots).map(|z| z * z));
        }
        let gain = 1.0 / self.seconds.min(MEMORY);
        for (rank, usual) in self.usual.iter_mut().enumerate() {
            let bin = bins.get(rank, second);
            usual.came += gain * (bin.admitted - usual.came);
            usual.met += gain * (bin.met - usual.met);
            usual.pairs += gain * (bin.pairs() - usual.pairs);
        }
    }
}

/// Whether the requests of `bin` found few others.
fn holds_little(bin: &Bin) -> bool {
    bin.met <= LIGHT * bin.admitted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_rng::TestRng;

    /// What `ranks` ranks show from second 120 on for fifteen seconds, after two healthy minutes with four requests a
    /// second, each of which stays for `stay(rank, second)` seconds.
    fn after(ranks: usize, rate: f64, stay: impl Fn(usize, i64) -> f64) -> (Residence, Vec<Evidence>) {
        let (mut bins, mut residence) = (Bins::new(ranks, 0), Residence::new(ranks));
        let mut rng = TestRng(11);
        let mut until: Vec<Vec<f64>> = vec![Vec::new(); ranks];
        let mut next = vec![0.0; ranks];
        let mut last = Vec::new();
        for s in 0..135_i64 {
            for r in 0..ranks {
                while next[r] < (s + 1) as f64 {
                    let at: f64 = next[r];
                    until[r].retain(|end| *end > at);
                    let met = until[r].len() as f64;
                    bins.at(r, at, |b| (b.admitted, b.met) = (b.admitted + 1.0, b.met + met));
                    until[r].push(at - stay(r, s) * rng.uniform().max(1e-9).ln());
                    next[r] -= rng.uniform().max(1e-9).ln() / rate;
                }
            }
            bins.advance(s);
            let seen = residence.examine(&bins.sums(s, 0), |_| false);
            match s {
                ..120 => residence.learn(&bins, s, &seen.roots),
                _ => last = seen.evidence,
            }
        }
        (residence, last)
    }

    #[test]
    fn a_rank_with_little_to_do_on_which_requests_stay_eight_times_as_long_departs() {
        let (_, found) = after(2, 4.0, |rank, s| if rank == 1 && s >= 120 { 2.0 } else { 0.25 });
        assert!(found[1].deviance > 8.0 && found[1].side == Side::Low && found[1].effect < -1.0, "{found:?}");
        assert_eq!(found[0].deviance, 0.0);
    }

    #[test]
    fn nobody_departs_while_requests_stay_longer_everywhere_or_by_half_or_always_did() {
        let all = |stays: fn(usize, i64) -> f64| after(2, 4.0, stays).1.iter().all(|e| e.deviance == 0.0);
        assert!(all(|_, s| if s >= 120 { 0.85 } else { 0.25 }));
        assert!(all(|rank, s| if rank == 1 && s >= 120 { 0.375 } else { 0.25 }));
        assert!(all(|rank, _| if rank == 1 { 0.75 } else { 0.25 }));
    }

    #[test]
    fn nothing_is_said_of_a_rank_that_usually_holds_many_nor_of_one_that_is_explained() {
        let (residence, found) = after(2, 8.0, |rank, s| if rank == 1 && s >= 120 { 4.0 } else { 1.0 });
        assert!(!residence.is_light(0) && !residence.is_light(1));
        assert!(found.iter().all(|e| e.deviance == 0.0), "{found:?}");
        let (mut bins, residence) = (Bins::new(2, 0), after(2, 4.0, |_, _| 0.25).0);
        for s in 0..8 {
            bins.at(0, f64::from(s), |b| (b.admitted, b.met) = (4.0, 4.0));
            bins.at(1, f64::from(s), |b| (b.admitted, b.met) = (4.0, 60.0));
        }
        let found = |is_explained: bool| residence.examine(&bins.sums(7, 0), |_| is_explained).evidence[1];
        assert!(found(false).deviance > 12.0, "{:?}", found(false));
        assert_eq!(found(true), Evidence::NONE);
    }

    #[test]
    fn half_as_many_requests_that_stay_as_long_are_not_slow_once_they_are_usual() {
        let (mut bins, mut residence) = (Bins::new(2, 0), after(2, 4.0, |_, _| 0.25).0);
        // Two a second instead of four find half as many others.
        for s in 0..128 {
            bins.at(0, f64::from(s), |b| (b.admitted, b.met) = (4.0, 4.0));
            bins.at(1, f64::from(s), |b| (b.admitted, b.met) = (2.0, 1.0));
        }
        residence.take_for_usual(&[1], &bins, 0..=119);
        let found = residence.examine(&bins.sums(127, 0), |_| false).evidence;
        assert_eq!(found[1], Evidence::NONE);
    }

    #[test]
    fn requests_that_a_client_sends_at_once_find_each_other_and_are_not_slow() {
        let (mut bins, residence) = (Bins::new(2, 0), after(2, 4.0, |_, _| 0.25).0);
        let mut found = |at_once: f64| {
            for s in 0..12 {
                bins.at(0, f64::from(s), |b| (b.admitted, b.met) = (4.0, 4.0));
                // Twelve a second for four seconds, or four in each: all stay for a quarter of a second ...
                let came = if s % 3 == 0 { at_once } else { 6.0 - 0.5 * at_once };
                bins.at(1, f64::from(s), |b| (b.admitted, b.met) = (came, 0.25 * came * came));
            }
            residence.examine(&bins.sums(11, 0), |_| false).evidence[1]
        };
        assert_eq!((found(12.0), found(4.0)), (Evidence::NONE, Evidence::NONE));
        // ... or for eight times as long.
        bins.at(1, 11.0, |b| (b.admitted, b.met) = (4.0, 200.0));
        assert!(residence.examine(&bins.sums(11, 0), |_| false).evidence[1].effect < -MATERIAL);
    }

    #[test]
    fn requests_that_always_come_eight_at_once_and_stay_four_times_as_long_now_are_slow() {
        let (mut bins, mut residence) = (Bins::new(2, 0), Residence::new(2));
        let mut found = Vec::new();
        for s in (0..136_i64).filter(|s| s % 4 == 0) {
            for rank in 0..2 {
                let stay = if rank == 1 && s >= 120 { 1.0 } else { 0.25 };
                bins.at(rank, s as f64, |b| (b.admitted, b.met) = (8.0, 64.0 * stay));
            }
            for second in s..s + 4 {
                bins.advance(second);
                let seen = residence.examine(&bins.sums(second, 0), |_| false);
                match second {
                    ..120 => residence.learn(&bins, second, &seen.roots),
                    _ => found = seen.evidence,
                }
            }
        }
        assert!(found[1].effect < -MATERIAL && found[0] == Evidence::NONE, "{found:?}");
    }

    #[test]
    fn nothing_is_said_while_the_peers_have_much_to_do() {
        let (mut bins, residence) = (Bins::new(2, 0), after(2, 4.0, |_, _| 0.25).0);
        for s in 0..8 {
            bins.at(0, f64::from(s), |b| (b.admitted, b.met) = (4.0, 20.0));
            bins.at(1, f64::from(s), |b| (b.admitted, b.met) = (4.0, 200.0));
        }
        assert_eq!(residence.examine(&bins.sums(7, 0), |_| false).evidence[1], Evidence::NONE);
    }
}
