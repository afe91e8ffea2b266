//! Share: requests that come to a rank, against its own usual share of the group's.
//!
//! Given the group's sum, a rank's count is binomial behind a random router, tighter behind round robin,
//! wider with sessions. The statistic is the binomial deviance (better in the tails than a z-score)
//! over the dispersion that this site shows in windows of that length.

use serde::{Deserialize, Serialize};

use crate::factor::bins::{Bins, Sums};
use crate::factor::evidence::{Evidence, Grid, Side, WINDOWS, measured};
use crate::factor::spread::Dispersion;

/// Fewer requests in a window than this tell nothing.
const FEWEST: f64 = 8.0;
/// Not every round robin is perfect to the last request: no dispersion is taken to be less.
const LEAST_DISPERSION: f64 = 0.1;
/// A departure of less than this (on the logarithm) is no trouble, however sure.
const MATERIAL: f64 = 0.15;
/// Ratios of which that is certain without their logarithm: somewhat within `exp(-MATERIAL)..exp(MATERIAL)`.
const IMMATERIAL: std::ops::Range<f64> = 0.861..1.161;
/// A young site's noise is taken to be at least nominal for so many seconds; shares are remembered for so many.
const YOUNG: f64 = 60.0;
const MEMORY: f64 = 1800.0;
/// Shares that a trouble has changed for good may go back for so many seconds of health, a day.
const GOES_BACK_WITHIN: f64 = 86_400.0;
/// A share is uneven if it differs from an even one by this (on the logarithm, 1.5 times).
const UNEVEN: f64 = 0.4;
/// Requests, shared evenly, that stand for what is known before the first.
const PRIOR: f64 = 20.0;
/// The deviance from which on shares were others than usual, over a whole trouble.
const MOVED: f64 = 4.5;
/// A rank that is sent nothing any more still gets this part of its usual requests (what was under way), one
/// that is merely sent less this part at least ...
const NOTHING: f64 = 0.02;
const LITTLE: f64 = 0.2;
/// ... and the first is believed once it is so many times as likely: the rank that is sent more is the one
/// that is slow for its users.
const ODDS: f64 = 20.0;
/// One second moves a share by no more than so many standard deviations of its noise.
const MOST_SURPRISE: f64 = 3.0;

/// What is known of the ranks' shares.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// Each rank's usual share; they add up to 1.
    pub usual: Vec<f64>,
    /// How stale a count may be, in seconds: what came since the last report is missing at a window's end
    /// and too many at its beginning. 0 where each request is seen.
    pub staleness: f64,
    /// Seconds that taught them.
    pub seconds: f64,
    /// Requests that they rest on.
    pub requests: f64,
    /// The group's usual requests a second.
    pub rate: f64,
    /// Dispersion per window: of all ranks together, and of each.
    pub pooled: Vec<Dispersion>,
    /// `own[rank][window]`.
    pub own: Vec<Vec<Dispersion>>,
    /// The shares that were usual before a trouble that has lasted became usual.
    #[serde(default)]
    before: Option<Before>,
}

/// The shares that were usual before a trouble that has lasted became usual.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Before {
    usual: Vec<f64>,
    /// How many seconds had taught the shares by then.
    at: f64,
}

/// What [`Share::examine`] saw: the evidence of each rank, and what to learn from.
#[derive(Clone, Debug)]
pub struct Examination {
    /// Per rank.
    pub evidence: Vec<Evidence>,
    /// Signed roots of the deviances.
    pub roots: Grid,
    /// How many times as many requests as usual came to the group, by window.
    pub crowding: [f64; WINDOWS.len()],
    /// Requests that came to the group, by window.
    pub totals: [f64; WINDOWS.len()],
    /// Whether requests may have been counted twice, by window.
    pub is_in_doubt: [bool; WINDOWS.len()],
    /// The largest deviance of a rank's material departure, by window.
    pub most: [f64; WINDOWS.len()],
}

impl Share {
    /// For `ranks` ranks, of which nothing is known, counted with this staleness in seconds.
    pub fn new(ranks: usize, staleness: f64) -> Self {
        Self {
            usual: vec![1.0 / ranks as f64; ranks],
            staleness,
            seconds: 0.0,
            requests: PRIOR,
            rate: 0.0,
            pooled: vec![Dispersion::default(); WINDOWS.len()],
            own: vec![vec![Dispersion::default(); WINDOWS.len()]; ranks],
            before: None,
        }
    }

    /// Looks at all windows of `sums`. `full` is the last second in which a rank had no room. Where arrivals are
    /// `inferred`, those admitted are as many as were taken to have finished.
    pub fn examine(&self, sums: &Sums, full: Option<i64>, is_inferred: bool) -> Examination {
        let ranks = self.usual.len();
        let mut roots = Grid::new(WINDOWS.len(), ranks);
        let (mut crowding, mut totals) = ([1.0; WINDOWS.len()], [0.0; WINDOWS.len()]);
        let is_in_doubt = WINDOWS.map(|window| full.is_some_and(|full| full > sums.newest - window));
        let mut best = vec![Evidence::NONE; ranks];
        let mut most = [0.0f64; WINDOWS.len()];
        let group = |s: i64| (0..ranks).map(|r| sums.bins.get(r, s).arrivals.abs()).sum::<f64>();
        let last = group(sums.newest);
        for (w, window, sum) in sums.windows() {
            let total: f64 = sum.iter().map(|x| x.arrivals.max(0.0)).sum();
            totals[w] = total;
            if self.rate > 0.0 {
                crowding[w] = total / (self.rate * window as f64);
            }
            if total < FEWEST {
                continue;
            }
            let ends = (group(sums.newest + 1 - window), last);
            // How many finished is a guess, and as uncertain as they are many, however few come at the same
            // time: after a burst the difference of both is small and its error is not.
            let finished = if is_inferred { sum.iter().map(|x| x.admitted).sum() } else { 0.0 };
            let unsure = (finished - total).max(0.0);
            let roots = roots.row_mut(w);
            for r in 0..ranks {
                let x = sum[r].arrivals.max(0.0);
                let expected = total * self.usual[r];
                let square = 2.0
                    * binomial_deviance(x, total, self.usual[r])
                    * self.fresh_part(r, total, unsure, ends);
                roots[r] = square.sqrt().copysign(x - expected);
                let ratio = (x + 0.5) / (expected + 0.5);
                if IMMATERIAL.contains(&ratio) {
                    continue;
                }
                let effect = ratio.ln();
                if effect.abs() < MATERIAL {
                    continue;
                }
                let side = if x > expected { Side::High } else { Side::Low };
                let deviance = 0.5 * square / self.noise(r, w, total, is_in_doubt[w]);
                most[w] = most[w].max(deviance);
                best[r] = best[r].or(Evidence { deviance, side, effect, window });
            }
        }
        Examination { evidence: best, roots, crowding, totals, is_in_doubt, most }
    }

    /// Learns from what was seen in a healthy second. `is_usual` says that its requests are believed to be
    /// shared as usual: else it teaches the noise alone, which a few seconds do not move far.
    pub fn learn(&mut self, bins: &Bins, newest: i64, roots: &Grid, is_usual: bool) {
        self.seconds += 1.0;
        if self.seconds > 0.5 * YOUNG {
            for (w, roots) in roots.rows().enumerate() {
                self.pooled[w].learn_together(measured(roots).map(|z| z * z));
                let ranks = roots.iter().zip(&mut self.own).filter(|(z, _)| !z.is_nan());
                ranks.for_each(|(z, own)| own[w].learn(z * z));
            }
        }
        let counts: Vec<f64> = (0..self.usual.len()).map(|r| bins.get(r, newest).arrivals.max(0.0)).collect();
        let total: f64 = counts.iter().sum();
        // The last second may lack its end.
        let whole: f64 = (0..self.usual.len()).map(|r| bins.get(r, newest - 1).arrivals.max(0.0)).sum();
        self.rate += (whole - self.rate) / self.seconds.min(MEMORY);
        if total <= 0.0 || !is_usual {
            return;
        }
        let weight = total / (self.requests + total);
        for (p, x) in self.usual.iter_mut().zip(&counts) {
            let most = MOST_SURPRISE * (*p * (1.0 - *p) / total).sqrt() + 1.0 / total;
            *p = (*p + weight * (x / total - *p).clamp(-most, most)).max(1e-4);
        }
        let sum: f64 = self.usual.iter().sum();
        self.usual.iter_mut().for_each(|p| *p /= sum);
        self.requests = self.requests * (1.0 - 1.0 / MEMORY) + total;
    }

    /// Whether an imbalance of `rank` ends by `effect`, the logarithm of its share over the usual one: one
    /// that is told to stand (`is_told`) or that was there before anybody watched, as long as nobody knows
    /// what is usual; or one that has lasted until it was usual. A rank that has had an uneven share for long
    /// is in trouble without it, too.
    pub fn evens_out(&self, rank: usize, effect: f64, is_told: bool) -> bool {
        let comes_nearer =
            |apart: f64, least: f64| apart.abs() > least && (apart + effect).abs() < apart.abs();
        let uneven = (self.usual[rank] * self.usual.len() as f64).ln();
        if (is_told || self.seconds < MEMORY) && comes_nearer(uneven, UNEVEN) {
            return true;
        }
        let before = self.before.as_ref().filter(|before| self.seconds - before.at < GOES_BACK_WITHIN);
        before.is_some_and(|before| comes_nearer((self.usual[rank] / before.usual[rank]).ln(), MATERIAL))
    }

    /// What has been usual until now is what the ranks go back to, should the trouble that is usual from now
    /// on end after all.
    pub fn remember_usual(&mut self) {
        self.before = Some(Before { usual: self.usual.clone(), at: self.seconds });
    }

    /// Whether `counts` of many seconds are of other shares than the usual ones: by a material part, beyond
    /// three standard deviations of requests that are sent one by one. Where sessions wander by more than
    /// that, requests do move.
    pub fn have_moved(&self, counts: &[f64]) -> bool {
        let total: f64 = counts.iter().sum();
        counts.iter().enumerate().any(|(rank, x)| {
            let usual = self.usual[rank];
            let effect = ((x + 0.5) / (total * usual + 0.5)).ln();
            effect.abs() >= MATERIAL && binomial_deviance(*x, total, usual) >= MOVED
        })
    }

    /// Takes these counts of requests for what is usual: little rests on them yet.
    pub fn relearn(&mut self, counts: &[f64]) {
        let total: f64 = counts.iter().sum();
        let even = PRIOR / counts.len() as f64;
        self.requests = total + PRIOR;
        for (usual, count) in self.usual.iter_mut().zip(counts) {
            *usual = (count + even) / self.requests;
        }
    }

    /// The part of a count's variance that is that of chance among `total`, given the group's requests in the window's
    /// first and last second, and how many more than those are `unsure`.
    fn fresh_part(&self, rank: usize, total: f64, unsure: f64, ends: (f64, f64)) -> f64 {
        let p = self.usual[rank];
        let stale = (self.staleness * p).powi(2) * (ends.0.powi(2) + ends.1.powi(2));
        let binomial = total * p * (1.0 - p);
        binomial / (binomial + stale + unsure * p * (1.0 - p))
    }

    /// The same where counts may be in doubt: a rank without room puts running requests back into its queue, where they
    /// look like new ones, and how many is a matter of chance. No router makes that more regular than it is.
    pub fn noise(&self, rank: usize, w: usize, total: f64, is_in_doubt: bool) -> f64 {
        self.dispersion(rank, w, total).max(if is_in_doubt { 1.0 } else { 0.0 })
    }

    /// Which part of the variance of a count among `total` is its own: the usual share rests on requests, too.
    pub fn known_part(&self, total: f64) -> f64 {
        1.0 / (1.0 + total / self.requests)
    }

    /// The variance, in binomial ones, of a count among `total` in window `w`.
    pub fn dispersion(&self, rank: usize, w: usize, total: f64) -> f64 {
        let known = if self.seconds > YOUNG { LEAST_DISPERSION } else { 1.0 };
        let noise = self.pooled[w].variance.max(self.own[rank][w].variance).max(known);
        noise / self.known_part(total)
    }
}

/// The log-likelihood of `x` of `n` with its own share over that with share `p`, half a request nearer to
/// what was expected (Yates).
pub fn binomial_deviance(x: f64, n: f64, p: f64) -> f64 {
    let expected = n * p;
    let x = if x > expected { (x - 0.5).max(expected) } else { (x + 0.5).min(expected) };
    let part = |a: f64, b: f64| if a <= 0.0 { 0.0 } else { a * (a / b).ln() };
    (part(x, expected) + part(n - x, n - expected)).max(0.0)
}

/// Which ranks left, if what they left is one even rest: the smallest set, on one side, without which the
/// others keep to their usual proportions. `sums` are counts of one window.
///
/// A share that one rank gains all others lose, so each of them departs; the cause is who is needed to
/// explain the rest. Two ranks that gain and two that lose explain each other: then those that gain, unless
/// the others surely get nothing `now`, in the later part of the window: its beginning may be from before.
pub fn culprits(
    sums: &[f64],
    now: &[f64],
    usual: &[f64],
    dispersion: f64,
    enough: f64,
) -> (Side, Vec<usize>) {
    let all: f64 = sums.iter().map(|x| x.max(0.0)).sum();
    let ratio = |r: usize| (sums[r].max(0.0) + 0.5) / (usual[r] * all + 0.5);
    let mut order: Vec<usize> = (0..sums.len()).collect();
    order.sort_by(|a, b| ratio(*b).total_cmp(&ratio(*a)));
    let rest = |kept: &[usize]| {
        let total: f64 = kept.iter().map(|r| sums[*r].max(0.0)).sum();
        let share: f64 = kept.iter().map(|r| usual[*r]).sum();
        kept.iter().map(|r| binomial_deviance(sums[*r].max(0.0), total, usual[*r] / share)).sum::<f64>()
            / dispersion
    };
    let n = order.len();
    let half = (n / 2).max(1);
    let mut best = (Side::High, vec![order[0]], f64::INFINITY);
    for k in 1..=half {
        let (high, low) = (rest(&order[k..]), rest(&order[..n - k]));
        // What is left of n - k - 1 degrees of freedom by chance, and then some.
        let by_chance = 0.5 * (n - k) as f64 + enough;
        let starved = order[n - k..]
            .iter()
            .all(|r| gets_nothing(now, usual, *r, dispersion) || gets_nothing(sums, usual, *r, dispersion));
        // Halves explain each other: how even each is in itself says nothing of which of them departed.
        let is_lower = 2 * k < n && low < high - 1.0;
        let is_low = is_lower || (starved && low <= high + 1.0);
        let (side, left) = if is_low { (Side::Low, low) } else { (Side::High, high) };
        // The one that departs the most comes first.
        let set: Vec<usize> =
            if is_low { order[n - k..].iter().rev().copied().collect() } else { order[..k].to_vec() };
        if left < best.2 - enough {
            best = (side, set, left);
        }
        if left <= by_chance {
            break;
        }
    }
    (best.0, best.1)
}

/// Whether the counts of a window say that `rank` gets nothing any more rather than little, by the likelihood
/// ratio of the two rates: so few requests that none may come by chance say neither.
fn gets_nothing(sums: &[f64], usual: &[f64], rank: usize, dispersion: f64) -> bool {
    let expected = usual[rank] * sums.iter().map(|x| x.max(0.0)).sum::<f64>();
    let log_odds = (LITTLE - NOTHING) * expected - sums[rank].max(0.0) * (LITTLE / NOTHING).ln();
    log_odds / dispersion >= ODDS.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVEN: [f64; 4] = [0.25; 4];

    #[test]
    fn the_rank_that_gains_is_blamed_for_what_the_others_lose() {
        assert_eq!(
            culprits(&[12.0, 13.0, 60.0, 11.0], &[12.0, 13.0, 60.0, 11.0], &EVEN, 1.0, 4.0),
            (Side::High, vec![2])
        );
    }

    #[test]
    fn an_excluded_rank_is_blamed_for_what_the_others_gain() {
        assert_eq!(
            culprits(&[40.0, 0.0, 43.0, 41.0], &[40.0, 0.0, 43.0, 41.0], &EVEN, 1.0, 4.0),
            (Side::Low, vec![1])
        );
    }

    #[test]
    fn two_ranks_that_gain_are_both_named() {
        let (side, mut ranks) =
            culprits(&[150.0, 50.0, 52.0, 148.0], &[150.0, 50.0, 52.0, 148.0], &EVEN, 1.0, 4.0);
        ranks.sort_unstable();
        assert_eq!((side, ranks), (Side::High, vec![0, 3]));
    }

    #[test]
    fn two_ranks_that_gain_are_blamed_however_even_they_are_in_themselves() {
        let sums = [96.0, 52.0, 28.0, 96.0];
        let (side, mut ranks) = culprits(&sums, &sums, &EVEN, 1.0, 4.0);
        ranks.sort_unstable();
        assert_eq!((side, ranks), (Side::High, vec![0, 3]));
    }

    #[test]
    fn of_two_ranks_that_lose_the_one_that_loses_more_is_blamed_first() {
        let sums = [80.0, 78.0, 82.0, 81.0, 79.0, 80.0, 12.0, 0.0];
        assert_eq!(culprits(&sums, &sums, &[0.125; 8], 1.0, 4.0), (Side::Low, vec![7, 6]));
    }

    #[test]
    fn of_two_ranks_the_one_without_anything_is_starved() {
        assert_eq!(culprits(&[0.0, 64.0], &[0.0, 64.0], &[0.5, 0.5], 1.0, 4.0), (Side::Low, vec![0]));
        assert_eq!(culprits(&[16.0, 48.0], &[16.0, 48.0], &[0.5, 0.5], 1.0, 4.0), (Side::High, vec![1]));
    }

    #[test]
    fn of_two_ranks_the_one_that_is_sent_more_is_blamed_while_chance_may_have_left_the_other_without_any() {
        let of = |sums: [f64; 2], now: [f64; 2]| culprits(&sums, &now, &[0.5, 0.5], 1.0, 4.0);
        // Five of six are sent to the other one, and of the last ten none came here by chance.
        assert_eq!(of([4.0, 20.0], [0.0, 10.0]), (Side::High, vec![1]));
        assert_eq!(of([3.0, 27.0], [2.0, 26.0]), (Side::High, vec![1]), "a tenth is not nothing");
        assert_eq!(of([4.0, 50.0], [0.0, 40.0]), (Side::Low, vec![0]), "of forty it is not chance");
        assert_eq!(of([4.0, 110.0], [1.0, 100.0]), (Side::Low, vec![0]), "one straggler is as good as none");
    }

    #[test]
    fn a_rank_that_gets_nothing_any_more_is_starved_though_it_got_something_at_first() {
        let (sums, now) = ([14.0, 96.0], [0.0, 60.0]);
        assert_eq!(culprits(&sums, &now, &[0.5, 0.5], 1.0, 4.0), (Side::Low, vec![0]));
    }

    #[test]
    fn what_is_immaterial_without_a_logarithm_is_immaterial_by_it() {
        let std::ops::Range { start, end } = IMMATERIAL;
        assert!(start.ln().abs() < MATERIAL && end.ln().abs() < MATERIAL);
    }

    #[test]
    fn where_a_rank_has_no_room_requests_that_it_puts_back_are_no_share() {
        let deviance = |full: Option<i64>| {
            let (mut bins, mut share) = (Bins::new(4, 0), Share::new(4, 0.0));
            let mut most = 0.0f64;
            for s in 0..330 {
                // Eight come to each, and one put two back every second.
                let counts = if s < 300 { [8.0; 4] } else { [8.0, 8.0, 10.0, 8.0] };
                counts.iter().enumerate().for_each(|(r, c)| bins.at(r, s as f64 + 0.5, |b| b.arrivals += c));
                let seen = share.examine(&bins.sums(s, 0), full.map(|behind| s - behind), false);
                if s < 300 {
                    share.learn(&bins, s, &seen.roots, true);
                } else {
                    most = most.max(seen.evidence[2].deviance);
                }
            }
            most
        };
        let (unseen, seen, long_ago) = (deviance(None), deviance(Some(1)), deviance(Some(200)));
        assert!(unseen > 30.0 && seen < 6.0 && long_ago == unseen, "{unseen} {seen}");
    }

    #[test]
    fn a_steady_router_is_told_from_a_redirect_after_three_seconds() {
        let mut bins = Bins::new(4, 0);
        let mut share = Share::new(4, 0.0);
        for s in 0..303 {
            let counts = if s < 300 { [8.0; 4] } else { [4.0, 4.0, 20.0, 4.0] };
            counts.iter().enumerate().for_each(|(r, c)| bins.at(r, s as f64 + 0.5, |b| b.arrivals += c));
            let seen = share.examine(&bins.sums(s, 0), None, false);
            let found = &seen.evidence;
            if s < 300 {
                share.learn(&bins, s, &seen.roots, true);
                assert!(found.iter().all(|e| e.deviance < 1.0));
            } else if s == 302 {
                assert!(found[2].deviance > 30.0 && found[2].side == Side::High);
            }
        }
    }

    #[test]
    fn few_inferred_arrivals_beside_many_that_finished_tell_little() {
        let deviance = |is_inferred: bool, finished: f64| {
            let mut bins = Bins::new(4, 0);
            for s in 0..32 {
                for rank in 0..4 {
                    let came = if rank == 2 { 0.0 } else { 1.0 };
                    bins.at(rank, s as f64, |b| (b.arrivals, b.admitted) = (came, finished));
                }
            }
            let share = Share { requests: 1e4, ..Share::new(4, 0.0) };
            share.examine(&bins.sums(31, 0), None, is_inferred).evidence[2].deviance
        };
        assert!(deviance(false, 8.0) > 15.0, "{}", deviance(false, 8.0));
        assert_eq!(deviance(true, 0.75), deviance(false, 8.0), "as many come as finish");
        assert!(deviance(true, 8.0) < 4.0, "{}", deviance(true, 8.0));
    }
}
