//! Since when ranks departed, by what a channel keeps of the recent past.

use std::ops::Range;

use super::{Channel, PACE, PRESSURE, Past, WORK};
use crate::factor::bins::Bin;
use crate::factor::evidence::{Factor, Side};
use crate::factor::onset::{Counts, Logs, Onset, locate};
use crate::factor::speed::{Pending, Speed};
use crate::factor::work::Work;

/// No onset is looked for longer ago than this, in seconds.
const ONSET_REACH: i64 = 220;
/// An onset's baseline is what was until so many seconds before it was found, where that is known.
const BEFORE: i64 = 60;
/// Inferred counts of neighbouring seconds share the error of one report: so many tell as much as one.
const INFERRED_MEMORY: f64 = 1.5;
/// For an onset no counts are believed to be more regular than this: what departs may be less so.
const LEAST_ONSET_DISPERSION: f64 = 0.6;

impl Channel {
    /// Since when `ranks` departed in `factor` by `test`, as far as `past` goes back. With it come the newest second,
    /// and each rank's stretch under way.
    pub fn onset(
        &self,
        test: Option<usize>,
        factor: Factor,
        (side, ranks): (Side, &[usize]),
        past: &Past,
        (newest, pending): (i64, &[Pending]),
    ) -> Option<Onset> {
        let &Past { since, ref busy, is_unsettled } = past;
        let from = since.max(self.bins.oldest()).max(newest - ONSET_REACH);
        let seconds = from..newest + 1;
        let rank = *ranks.first()?;
        let peers: Vec<usize> =
            (0..self.known.share.usual.len()).filter(|r| *r != rank && !busy.contains(r)).collect();
        let speed_of = |speed: &Speed, side: Side, seconds: Range<i64>| {
            self.speed_onset(speed, side, (rank, &peers), seconds, (pending, is_unsettled))
        };
        match (factor, test) {
            (Factor::Share | Factor::Speed, Some(PRESSURE)) => {
                let by_share = self.share_onset(side, ranks, busy, seconds.clone());
                let by_pace = speed_of(&self.known.pace, side.opposite(), seconds);
                let (own, other) =
                    if factor == Factor::Share { (by_share?, by_pace) } else { (by_pace?, by_share) };
                // They tell of the same onset: where they do not agree, neither is as sure as it says.
                let apart = other.map_or(0.0, |o| (o.at - own.at).abs().min(o.error + own.error));
                Some(Onset { error: own.error.max(apart), ..own })
            }
            (Factor::Share, _) => self.share_onset(side, ranks, busy, seconds),
            (_, Some(PACE)) => speed_of(&self.known.pace, Side::Low, seconds),
            (Factor::Speed, _) => {
                let by_work = speed_of(&self.known.speed, side, seconds.clone());
                let by_stay = self.stay_onset(side, (rank, &peers), seconds, is_unsettled);
                // Who knows better since when is believed.
                by_work.into_iter().chain(by_stay).min_by(|a, b| a.error.total_cmp(&b.error))
            }
            (Factor::Work, _) => {
                let end = newest as f64 + 1.0;
                let work = if test != Some(WORK) { &self.known.misses } else { &self.known.work };
                let logs = seconds.map(|s| self.work_of(work, rank, s)).collect();
                locate(&Logs { seconds: logs, is_high: side == Side::High, is_unsettled }, end, 0.5)
            }
            (Factor::Room | Factor::Stuck, _) => None,
        }
    }

    fn share_onset(&self, side: Side, ranks: &[usize], busy: &[usize], seconds: Range<i64>) -> Option<Onset> {
        let all: Vec<usize> = (0..self.known.share.usual.len()).filter(|r| !busy.contains(r)).collect();
        let end = seconds.end as f64;
        let theirs = |s: i64| ranks.iter().map(|r| self.bins.get(*r, s).arrivals).sum::<f64>();
        let group = |s: i64| all.iter().map(|r| self.bins.get(*r, s).arrivals).sum::<f64>();
        let seconds: Vec<(f64, f64)> = seconds.map(|s| (theirs(s), group(s))).collect();
        let share = |ranks: &[usize]| ranks.iter().map(|r| self.known.share.usual[*r]).sum::<f64>();
        let mut usual = share(ranks) / share(&all).max(1e-9);
        if self.quality.is_inferred && seconds.len() as i64 >= 2 * BEFORE {
            // Inferred shares wander: what was usual just before counts.
            let older = &seconds[..seconds.len() - BEFORE as usize];
            let (x, n) = older.iter().fold((0.0, 0.0), |(x, n), s| (x + s.0, n + s.1));
            usual = if n > 0.0 { x / n } else { usual };
        }
        let usual = usual.clamp(0.002, 0.98);
        let windows = if self.quality.is_inferred { 3..8 } else { 3..4 };
        let noise =
            |r: &usize| windows.clone().map(|w| self.known.share.dispersion(*r, w, 0.0)).fold(0.0, f64::max);
        let memory = if self.quality.is_inferred { INFERRED_MEMORY } else { 1.0 };
        let dispersion = memory * ranks.iter().map(noise).fold(LEAST_ONSET_DISPERSION, f64::max);
        locate(
            &Counts { seconds, usual, is_high: side == Side::High, dispersion },
            end,
            2.0 * self.known.share.staleness,
        )
    }

    fn speed_onset(
        &self,
        speed: &Speed,
        side: Side,
        (rank, peers): (usize, &[usize]),
        seconds: Range<i64>,
        (pending, is_unsettled): (&[Pending], bool),
    ) -> Option<Onset> {
        let late = speed.clock.of_pending(&pending[rank]);
        let spent_on_it = pending[rank].spent;
        let end = seconds.end as f64;
        let mut blur = 1.0f64;
        let mut logs = Vec::new();
        for s in seconds {
            let bin = self.bins.get(rank, s);
            let is_pending =
                late > 0.0 && spent_on_it > late && s as f64 + 0.5 > end - spent_on_it && bin.spent < 0.3;
            if is_pending {
                blur = blur.max(spent_on_it.min(2.0));
            }
            let (needed, spent) = if is_pending {
                (late / spent_on_it, 1.0)
            } else {
                (speed.needed(&bin, speed.shared(&self.bins_at(s))), bin.spent)
            };
            logs.push(match departure(speed, rank, needed, spent) {
                // As in the test itself: what its peers show as well is not its own.
                Some(own) => {
                    (weaker(own, self.peers_departure(speed, peers, s)), speed.noise(rank).powi(2) / spent)
                }
                None => (0.0, f64::INFINITY),
            });
        }
        if logs.len() as i64 >= 2 * BEFORE {
            // A cost model is never quite right: what was usual just before counts.
            let older = logs[..logs.len() - BEFORE as usize].iter().filter(|l| l.1.is_finite());
            let mut older: Vec<f64> = older.map(|l| l.0).collect();
            older.sort_by(f64::total_cmp);
            let middle = older.get(older.len() / 2).copied().unwrap_or(0.0);
            logs.iter_mut().for_each(|l| l.0 -= middle);
        }
        locate(&Logs { seconds: logs, is_high: side == Side::High, is_unsettled }, end, blur)
    }

    /// Since when requests stay longer on a rank that has little to do.
    fn stay_onset(
        &self,
        side: Side,
        (rank, peers): (usize, &[usize]),
        seconds: Range<i64>,
        is_unsettled: bool,
    ) -> Option<Onset> {
        let residence = &self.known.residence;
        if side != Side::Low || !residence.is_light(rank) {
            return None;
        }
        let of = |r: usize, s: i64| residence.departure_in(r, &self.bins.get(r, s));
        let end = seconds.end as f64;
        let logs = seconds.map(|s| {
            let Some((own, variance)) = of(rank, s) else { return (0.0, f64::INFINITY) };
            let mut others: Vec<f64> = peers.iter().filter_map(|r| of(*r, s)).map(|(log, _)| log).collect();
            others.sort_by(f64::total_cmp);
            let others = others.get(others.len() / 2).copied().unwrap_or(0.0);
            (weaker(own, others), variance * residence.dispersion())
        });
        locate(&Logs { seconds: logs.collect(), is_high: true, is_unsettled }, end, 0.5)
    }

    /// The bins of all ranks in a second.
    fn bins_at(&self, second: i64) -> Vec<Bin> {
        (0..self.known.share.usual.len()).map(|r| self.bins.get(r, second)).collect()
    }

    /// How far the middle one of `peers` departed from its usual speed in a second, where one was busy.
    fn peers_departure(&self, speed: &Speed, peers: &[usize], second: i64) -> f64 {
        let bins = self.bins_at(second);
        let shared = speed.shared(&bins);
        let of = |r: usize| departure(speed, r, speed.needed(&bins[r], shared), bins[r].spent);
        let mut peers: Vec<f64> = peers.iter().filter_map(|r| of(*r)).collect();
        peers.sort_by(f64::total_cmp);
        peers.get(peers.len() / 2).copied().unwrap_or(0.0)
    }

    /// The logarithm of tokens a request beyond the usual, and its variance.
    fn work_of(&self, work: &Work, rank: usize, second: i64) -> (f64, f64) {
        let mean = |r: usize| {
            let (mut sum, mut n) = (0.0, 0.0);
            for s in second - 30..second {
                let b = self.bins.get(r, s);
                (sum, n) = (sum + work.of(&b), n + b.admitted);
            }
            (n > 0.0).then(|| sum / n)
        };
        let peers: Vec<f64> = (0..work.usual.len()).filter(|r| *r != rank).filter_map(mean).collect();
        let bin = self.bins.get(rank, second);
        if bin.admitted <= 0.0 || peers.is_empty() {
            return (0.0, f64::INFINITY);
        }
        let others = peers.iter().sum::<f64>() / peers.len() as f64;
        (
            work.of(&bin) / bin.admitted - others - work.usual[rank],
            work.pooled[0].variance.max(0.3) / bin.admitted,
        )
    }
}

/// The logarithm of needed over spent beyond the usual of `rank`; `None` where it was hardly busy.
fn departure(speed: &Speed, rank: usize, needed: f64, spent: f64) -> Option<f64> {
    (spent > 0.2 && needed > 0.0).then(|| (needed / spent).ln() - speed.usual[rank])
}

/// The weaker one of a departure from the usual and of one from what `peers` show; 0 where they disagree.
fn weaker(own: f64, peers: f64) -> f64 {
    let against = own - peers;
    if own * against <= 0.0 { 0.0 } else { own.abs().min(against.abs()).copysign(own) }
}
