//! A standing imbalance: one that was there before anything could be compared, so that every test takes it for
//! what is usual. Ten minutes of health say who bears more than its part, and by which factor.

use super::bins::Bins;
use super::evidence::{Factor, Side};
use super::impact::{Load, estimate};

/// Over so many seconds loads are averaged; before that nothing is said.
const SPAN: f64 = 600.0;
/// An imbalance is worth telling from this impact on, as firings are by default ...
const WORTH: f64 = 0.05;
/// ... and is over below this one.
const OVER: f64 = 0.025;
/// A factor explains it if it departs from its peers' mean by this much (on the logarithm, 10 %), more than chance does
/// in ten minutes ...
const DEPARTS: f64 = 0.1;
/// ... and by this part of what the load does: queues answer far more than in proportion.
const EXPLAINS: f64 = 0.1;
/// On a group with fewer requests a rank than this, on the mean, nothing hurts.
const BUSY: f64 = 1.0;

/// What one rank bore and did, averaged.
#[derive(Clone, Copy, Debug, Default)]
struct MemberAverages {
    load: Load,
    arrivals: f64,
    work: f64,
    admitted: f64,
    needed: f64,
    spent: f64,
}

#[derive(Clone, Debug)]
pub struct Standing {
    means: Vec<MemberAverages>,
    seconds: f64,
    /// The end of the first second that was compared, and the last one.
    first: Option<i64>,
    last: i64,
    told: Option<(usize, Side)>,
}

/// A rank that has borne more, or less, than its part for as long as can be told.
#[derive(Clone, Debug, PartialEq)]
pub struct Uneven {
    pub rank: usize,
    /// Whether it bears more or less.
    pub side: Side,
    /// Why: the factor that departs the most that way.
    pub factor: Factor,
    /// How many times its peers' mean that factor is (for speed: the time for the same work).
    pub times: f64,
    /// Since when the ranks are compared.
    pub since: f64,
    /// Every rank's requests, running and waiting, on the mean.
    pub loads: Vec<f64>,
    /// The share of all requests that would be better off.
    pub impact: f64,
    /// From which impact on it is told.
    pub worth: f64,
}

impl Standing {
    pub fn new(ranks: usize) -> Self {
        let means = vec![MemberAverages::default(); ranks];
        Self { means, seconds: 0.0, first: None, last: i64::MIN, told: None }
    }

    /// Compares the ranks from now on: what a trouble that has become usual left is not from before anything
    /// was compared.
    pub fn begin_anew(&mut self) {
        *self = Self { last: self.last, ..Self::new(self.means.len()) };
    }

    /// Whether ranks were compared for long enough to say anything.
    pub fn is_known(&self) -> bool {
        self.seconds >= SPAN
    }

    /// Whether an imbalance stands.
    pub fn is_told(&self) -> bool {
        self.told.is_some()
    }

    /// Whose imbalance stands.
    pub fn told_of(&self) -> Option<usize> {
        self.told.map(|(rank, _)| rank)
    }

    /// Takes in a second, at whose end the ranks bore `loads`.
    pub fn note(&mut self, bins: &Bins, second: i64, loads: &[Load]) {
        if second <= self.last {
            return;
        }
        self.first.get_or_insert(second + 1);
        (self.last, self.seconds) = (second, self.seconds + 1.0);
        let gain = 1.0 / self.seconds.min(SPAN);
        for (rank, (mean, load)) in self.means.iter_mut().zip(loads).enumerate() {
            let bin = bins.get(rank, second);
            let to = |mean: &mut f64, value: f64| *mean += gain * (value - *mean);
            to(&mut mean.load.running, load.running);
            to(&mut mean.load.waiting, load.waiting);
            mean.load.kv_usage = load.kv_usage;
            to(&mut mean.arrivals, bin.arrivals.max(0.0));
            to(&mut mean.work, bin.work);
            to(&mut mean.admitted, bin.admitted);
            to(&mut mean.needed, bin.needed);
            to(&mut mean.spent, bin.spent);
        }
        self.told = self.find().map(|found| (found.rank, found.side));
    }

    /// The imbalance that stands, if one does.
    pub fn uneven(&self) -> Option<Uneven> {
        self.told.and_then(|_| self.find())
    }

    fn find(&self) -> Option<Uneven> {
        let borne = |m: &MemberAverages| m.load.running + m.load.waiting;
        let loads: Vec<f64> = self.means.iter().map(borne).collect();
        let total: f64 = loads.iter().sum();
        if !self.is_known() || total < BUSY * loads.len() as f64 {
            return None;
        }
        let apart = |rank: usize| log_ratio(&loads, rank);
        let most = (0..loads.len()).max_by(|a, b| apart(*a).abs().total_cmp(&apart(*b).abs()));
        let rank = self.told.map(|told| told.0).or(most)?;
        let side = if apart(rank) > 0.0 { Side::High } else { Side::Low };
        let all: Vec<Load> = self.means.iter().map(|m| m.load).collect();
        let impact = estimate(&all, &[rank], false).share;
        let worth = if self.told.is_some() { OVER } else { WORTH };
        if impact < worth || self.told.is_some_and(|told| told.1 != side) {
            return None;
        }
        let sign = apart(rank).signum();
        let of = |what: fn(&MemberAverages) -> f64| {
            let values: Vec<f64> = self.means.iter().map(what).collect();
            log_ratio(&values, rank)
        };
        let per = |what: f64, of: f64| if of > 0.0 { what / of } else { 0.0 };
        // Tokens a request are kept as logarithms.
        let tokens = |m: &MemberAverages| if m.admitted > 0.0 { (m.work / m.admitted).exp() } else { 0.0 };
        let factors = [
            (Factor::Share, of(|m| m.arrivals)),
            (Factor::Work, self.of_ratio(rank, tokens)),
            (Factor::Speed, self.of_ratio(rank, |m| per(m.spent, m.needed))),
        ];
        let (factor, by) = factors.into_iter().max_by(|a, b| (sign * a.1).total_cmp(&(sign * b.1)))?;
        // What made it was known when it was told, and may be at its bound now.
        let is_explained = self.told.is_some() || sign * by >= DEPARTS.max(EXPLAINS * apart(rank).abs());
        let since = self.first? as f64;
        is_explained.then(|| Uneven {
            rank,
            side,
            factor,
            times: by.exp(),
            since,
            loads,
            impact,
            worth: WORTH,
        })
    }

    /// The same of a ratio, which is not known of a rank that did nothing.
    fn of_ratio(&self, rank: usize, what: impl Fn(&MemberAverages) -> f64) -> f64 {
        let values: Vec<f64> = self.means.iter().map(what).collect();
        if values.iter().all(|v| *v > 0.0) { log_ratio(&values, rank) } else { 0.0 }
    }
}

/// The logarithm of a rank's value over its peers' mean.
fn log_ratio(values: &[f64], rank: usize) -> f64 {
    let peers = values.iter().sum::<f64>() - values[rank];
    let mean = peers / (values.len() - 1).max(1) as f64;
    ((values[rank] + 1e-3) / (mean + 1e-3)).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many minutes of four ranks, of which rank 1 is different.
    fn after(minutes: i64, odd: (f64, f64, f64), load: f64) -> Standing {
        let (mut bins, mut standing) = (Bins::new(4, 0), Standing::new(4));
        play(&mut standing, &mut bins, (0, minutes * 60), odd, load);
        standing
    }

    fn play(
        standing: &mut Standing,
        bins: &mut Bins,
        (from, to): (i64, i64),
        (arrivals, work, spent): (f64, f64, f64),
        load: f64,
    ) {
        for second in from..to {
            for rank in 0..4 {
                let is_odd = rank == 1;
                bins.at(rank, second as f64 + 0.5, |bin| {
                    bin.arrivals = if is_odd { arrivals } else { 8.0 };
                    bin.admitted = 8.0;
                    bin.work = 8.0 * if is_odd { work } else { 1000.0_f64 }.ln();
                    bin.needed = 1.0;
                    bin.spent = if is_odd { spent } else { 1.0 };
                });
            }
            bins.advance(second);
            let of =
                |rank| Load { running: if rank == 1 { load } else { 20.0 }, waiting: 0.0, kv_usage: None };
            standing.note(bins, second, &[0, 1, 2, 3].map(of));
        }
    }

    fn told(standing: &Standing) -> Option<(usize, Side, Factor)> {
        standing.uneven().map(|u| (u.rank, u.side, u.factor))
    }

    #[test]
    fn a_rank_that_was_always_slower_or_sent_more_or_less_is_told_once_ten_minutes_say_so() {
        let slow = (8.0, 1000.0, 1.4);
        assert_eq!(told(&after(9, slow, 30.0)), None);
        let standing = after(11, slow, 30.0);
        assert_eq!(told(&standing), Some((1, Side::High, Factor::Speed)));
        let uneven = standing.uneven().expect("it is told");
        assert!((1.35..1.45).contains(&uneven.times) && uneven.since == 1.0, "{uneven:?}");
        assert_eq!(told(&after(11, (14.0, 1000.0, 1.0), 36.0)), Some((1, Side::High, Factor::Share)));
        assert_eq!(told(&after(11, (0.0, 1000.0, 1.0), 0.0)), Some((1, Side::Low, Factor::Share)));
        let heavy = after(11, (8.0, 2000.0, 1.0), 36.0);
        assert_eq!(told(&heavy), Some((1, Side::High, Factor::Work)));
        assert!((heavy.uneven().expect("it is told").times - 2.0).abs() < 0.01);
    }

    #[test]
    fn neither_a_load_without_a_factor_nor_a_factor_without_harm_is_told() {
        assert_eq!(told(&after(30, (8.0, 1000.0, 1.0), 36.0)), None);
        assert_eq!(told(&after(30, (8.0, 1000.0, 1.4), 22.0)), None);
    }

    #[test]
    fn what_stands_is_over_once_the_load_is_even_again_and_not_at_the_first_better_minute() {
        let (mut bins, mut standing) = (Bins::new(4, 0), Standing::new(4));
        play(&mut standing, &mut bins, (0, 660), (8.0, 1000.0, 1.4), 30.0);
        play(&mut standing, &mut bins, (660, 720), (8.0, 1000.0, 1.4), 26.0);
        assert!(standing.uneven().is_some());
        play(&mut standing, &mut bins, (720, 2520), (8.0, 1000.0, 1.0), 20.0);
        assert!(standing.is_known() && standing.uneven().is_none());
    }
}
