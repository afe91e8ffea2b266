//! Speed: seconds that a rank needs for the same work, by the work clock ([`crate::factor::cost_model`]), against its
//! own usual and against its peers now.
//!
//! Both must hold: a rank that is slower than usual while all are is a slower server; one that is slower
//! than its peers as always is a slower machine. So the control of what happens to all is the peers'
//! median, of the same window.

use serde::{Deserialize, Serialize};

use crate::factor::bins::{Bin, Sums};
use crate::factor::evidence::{Evidence, Grid, PeerMedians, Side, WINDOWS, measured};
use crate::factor::spread::{Dispersion, MEDIAN_OF_SQUARE};
use crate::factor::waits::{Term, Waits};

/// Windows longer than this (in seconds) are left to slow machines.
pub const WINDOW_COUNT: usize = 9;
/// No noise is taken to be less than this share of the nominal, as variance.
const LEAST_DISPERSION: f64 = 0.04;
/// Nor a window's error less than this: what the cost model does not know.
const MODEL_ERROR: f64 = 0.03;
/// Slower by less than this (on the logarithm, 20 %) is no trouble, however sure.
const MATERIAL: f64 = 0.18;
/// So much of a window must have been measured.
const LEAST_MEASURED: f64 = 0.4;
/// Where that is so of no peer (they have little to do), the peers are what they were in so many seconds at least.
const LEAST_OF_PEER: f64 = 0.5;
/// Variances grow with crowding to this power, where arrivals are only inferred.
const CROWDING_POWER: f64 = 2.0;
/// Where work is guessed, its noise comes and goes (a crowd, a server near saturation), for all ranks alike: what their
/// peers show now counts beside what was learned, which weighs as much as so many of them.
const USUAL_PEERS: f64 = 4.0;
/// Fewer than so many peers do not tell that: one of them is slow, and the others are measured by it. Of a
/// few it is not believed to be more than so many times as much, as variance: half of a small group may be
/// slow.
const LEAST_PEERS: f64 = 3.0;
const FEW_PEERS: f64 = 6.0;
const MOST_SCATTER_OF_FEW: f64 = 4.0;
/// A rank's usual speed moves by no more than this a second.
const STEP: f64 = 0.002;
/// In its first few busy seconds a rank cannot depart from its usual speed at all. Then that is known to
/// within this (on the logarithm, a factor of 1.2), and better with the root of their number, until after so
/// many it is taken to be as good as the cost model. A rank with little to do takes minutes to be busy for
/// that long.
const LEAST_KNOWN: f64 = 5.0;
const UNKNOWN_ERROR: f64 = 0.2;
const UNKNOWN: f64 = 30.0;
/// Seconds until the noise counts as known.
const YOUNG: f64 = 60.0;

/// What all ranks have in common (on the logarithm) is the model's own error, which it mends as long as it is no more.
const COMMON: f64 = 0.4;
/// Whether ranks wait for each other is learned in this window (8 s), from those that were busy for this part of it.
const WAITS_WINDOW: usize = 4;
const WAITS_MEASURED: f64 = 0.8;

/// A stretch of work under way: the seconds that it will have needed at most when it is over, for all of it
/// and for decoding alone, and those that it has taken already. All zero where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pending {
    /// For all that will have been done.
    pub needed: f64,
    /// For decoding alone.
    pub decoding: f64,
    /// Already.
    pub spent: f64,
}

/// What is known of the ranks' speeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// The logarithm of each rank's usual ratio of needed to spent seconds.
    pub usual: Vec<f64>,
    /// Which needed seconds are looked at.
    pub clock: WorkKind,
    /// The nominal standard deviation of the logarithm of a busy second's ratio.
    pub nominal: f64,
    /// Seconds that taught them, per rank.
    pub seconds: Vec<f64>,
    /// Dispersion per window, of all ranks together and of each (`own[rank][window]`).
    pub pooled: Vec<Dispersion>,
    pub own: Vec<Vec<Dispersion>>,
    /// Which part of its peers' prompts a rank waits for.
    #[serde(default)]
    pub waits: Waits,
}

/// Which needed seconds are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WorkKind {
    /// For all that was done: what is left is how fast a rank is.
    All,
    /// For decoding alone: what is left is also the time that prompts took.
    Decoding,
}

impl WorkKind {
    /// Those of `bin`.
    pub fn of(self, bin: &Bin) -> f64 {
        match self {
            Self::All => bin.needed,
            Self::Decoding => bin.decoding,
        }
    }

    /// The shortest window in which less of it than usual is a trouble, in seconds: a few prompts that come
    /// together stop decoding for some.
    fn shortest(self) -> i64 {
        match self {
            Self::All => 0,
            Self::Decoding => 6,
        }
    }

    /// The largest departure that is believed: a rank that decodes nothing while it works on prompts is not
    /// infinitely slow.
    fn most(self) -> f64 {
        match self {
            Self::All => f64::INFINITY,
            Self::Decoding => 1.4,
        }
    }

    /// Those of a stretch under way.
    pub fn of_pending(self, pending: &Pending) -> f64 {
        match self {
            Self::All => pending.needed,
            Self::Decoding => pending.decoding,
        }
    }
}

/// Prompts that ranks wait for, in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Shared {
    part: f64,
    all: f64,
}

/// What [`Speed::examine`] saw.
#[derive(Clone, Debug)]
pub struct Examination {
    /// The evidence of each rank.
    pub evidence: Vec<Evidence>,
    /// What to learn from.
    pub training: TrainingSample,
    /// How much each rank's ratio differs from its peers' most, over the windows that were measured.
    pub effects: Vec<f64>,
}

/// What to learn from a second.
#[derive(Clone, Debug)]
pub struct TrainingSample {
    /// Normalised departures; more is faster.
    pub roots: Grid,
    /// Each rank's ratio in the latest finished second, NaN where it was not measured.
    latest: Vec<f64>,
    waits: Term,
}

impl Speed {
    /// For `ranks` ranks, of which nothing is known but the nominal noise of a busy second.
    pub fn new(ranks: usize, nominal: f64, clock: WorkKind) -> Self {
        Self {
            usual: vec![0.0; ranks],
            nominal,
            clock,
            seconds: vec![0.0; ranks],
            pooled: vec![Dispersion::default(); WINDOW_COUNT],
            own: vec![vec![Dispersion::default(); WINDOW_COUNT]; ranks],
            waits: Waits::default(),
        }
    }

    /// What the prompts of all ranks, of which `bins` are, take of the time of each.
    pub fn shared(&self, bins: &[Bin]) -> Shared {
        let part = if self.clock == WorkKind::All { self.waits.part() } else { 0.0 };
        let all = if part > 0.0 { bins.iter().map(|bin| bin.prompts).sum() } else { 0.0 };
        Shared { part, all }
    }

    /// What a rank needed: for its own work, and for that of others as far as it waits for them.
    pub fn needed(&self, bin: &Bin, shared: Shared) -> f64 {
        self.clock.of(bin) + shared.part * (shared.all - bin.prompts).max(0.0)
    }

    /// Looks at the windows of `sums`. `pending` is what each rank's stretch under way adds: needed at most,
    /// and spent already. `crowding` is how many times as many requests as usual came in each window: what
    /// is not known of prompts is as many times as much. `is_guessed` says that all work is.
    pub fn examine(
        &self,
        sums: &Sums,
        pending: &[Pending],
        crowding: &[f64],
        is_guessed: bool,
    ) -> Examination {
        let ranks = self.usual.len();
        let mut roots = Grid::new(WINDOW_COUNT, ranks);
        let mut effects = vec![0.0f64; ranks];
        let mut best = vec![Evidence::NONE; ranks];
        // A stretch under way counts only against its rank: it can still become slower, not faster. When
        // all are late (a log that stalls), nobody is.
        let under_way = |r: usize| (self.clock.of_pending(&pending[r]), pending[r].spent);
        let is_late = |r: usize| under_way(r).1 > under_way(r).0;
        let is_any_late = (0..ranks).any(is_late);
        let (mut plain, mut late) = (vec![(f64::NAN, 0.0); ranks], Vec::new());
        let (mut peers, mut late_medians) = (PeerMedians::default(), PeerMedians::default());
        let mut scatter = PeerMedians::default();
        let mut ratios = Vec::with_capacity(ranks);
        let mut waits = Term::default();
        for (w, window, sum) in sums.windows().take(WINDOW_COUNT) {
            let length = window as f64;
            let calm = crowding.get(w).map_or(1.0, |c| c.max(1.0).powf(-CROWDING_POWER));
            // The logarithm less what is usual, NaN where too little was measured; and what it rests on.
            let ratio = |r: usize, needed: f64, spent: f64| {
                let is_known = spent > LEAST_MEASURED * length && needed > 0.0;
                let ratio = if is_known { (needed / spent).ln() - self.usual[r] } else { f64::NAN };
                (ratio, spent.min(length) * calm)
            };
            let shared = self.shared(sum);
            for (r, plain) in plain.iter_mut().enumerate() {
                *plain = ratio(r, self.needed(&sum[r], shared), sum[r].spent);
            }
            if window == WINDOWS[WAITS_WINDOW] && self.clock == WorkKind::All {
                let busy = sum.iter().filter(|bin| bin.spent > WAITS_MEASURED * length);
                waits = Term::of(busy.map(|bin| (bin.prompts / length, bin.needed / bin.spent)));
            }
            ratios.clear();
            ratios.extend(plain.iter().map(|x| x.0));
            let peers = peers.of(&ratios);
            let mut late_peers: &[f64] = &[];
            if is_any_late {
                late.clear();
                late.extend((0..ranks).map(|r| {
                    let (needed, spent) = under_way(r);
                    if !is_late(r) {
                        return plain[r];
                    }
                    let part = (length / spent).min(1.0);
                    ratio(r, self.needed(&sum[r], shared) + needed * part, sum[r].spent + spent * part)
                }));
                ratios.clear();
                ratios.extend(late.iter().map(|x| x.0));
                late_peers = late_medians.of(&ratios);
            }
            let roots = roots.row_mut(w);
            ratios.clear();
            if is_guessed {
                let square = |(r, (own, spent)): (usize, &(f64, f64))| {
                    ((own - peers[r]) / self.nominal).powi(2) * spent / self.dispersion(r, w)
                };
                ratios.extend(plain.iter().enumerate().map(square));
            }
            let scatter = scatter.of(&ratios);
            let seen = (measured(&ratios).count() as f64 - 1.0).max(0.0);
            // How many times as much as usual its peers scatter now, by the middle one of them.
            let noise_now = |r: usize| match scatter.get(r) {
                Some(middle) if seen >= LEAST_PEERS && !middle.is_nan() => {
                    let most = if seen < FEW_PEERS { MOST_SCATTER_OF_FEW } else { f64::INFINITY };
                    let times = (USUAL_PEERS + seen * middle / MEDIAN_OF_SQUARE) / (USUAL_PEERS + seen);
                    times.clamp(1.0, most)
                }
                _ => 1.0,
            };
            for r in 0..ranks {
                let (own, spent) = plain[r];
                if own.is_nan() && !is_late(r) {
                    continue;
                }
                let of_busy_peers = Some((peers[r], f64::INFINITY)).filter(|(others, _)| !others.is_nan());
                let found = of_busy_peers.or_else(|| self.of_idle_peers(sum, shared, r));
                let Some((others, rests_on)) = found else { continue };
                // Too little data to learn from.
                if !own.is_nan() && rests_on.is_infinite() {
                    let effect = own - others;
                    if effect.abs() > effects[r].abs() {
                        effects[r] = effect;
                    }
                    roots[r] = effect * spent.sqrt() / self.nominal;
                }
                let slower = is_late(r) && !late[r].0.is_nan() && (own.is_nan() || late[r].0 < own);
                let (own, spent) = if slower { late[r] } else { plain[r] };
                let others = match late_peers.get(r) {
                    Some(late) if slower && !late.is_nan() => *late,
                    _ => others,
                };
                let departure = own.max(own - others);
                if own.is_nan()
                    || departure > -MATERIAL
                    || self.seconds[r] < LEAST_KNOWN
                    || window < self.clock.shortest()
                {
                    continue;
                }
                let departure = departure.max(-self.clock.most());
                let noise = self.dispersion(r, w) * self.nominal.powi(2) * noise_now(r);
                let known = self.seconds[r];
                let of_usual = match known < UNKNOWN {
                    true => UNKNOWN_ERROR.powi(2) * LEAST_KNOWN / known,
                    false => MODEL_ERROR.powi(2),
                };
                let variance = noise / spent + noise / rests_on + of_usual;
                let deviance = 0.5 * departure.powi(2) / variance;
                best[r] = best[r].or(Evidence { deviance, side: Side::Low, effect: departure, window });
            }
        }
        let last: Vec<Bin> = (0..ranks).map(|r| sums.bins.get(r, sums.newest - 1)).collect();
        let shared = self.shared(&last);
        let latest = |r: usize| {
            let bin = last[r];
            let needed = self.needed(&bin, shared);
            if bin.spent > 0.3 && needed > 0.0 { (needed / bin.spent).ln() } else { f64::NAN }
        };
        let latest = (0..ranks).map(latest).collect();
        Examination { evidence: best, training: TrainingSample { roots, latest, waits }, effects }
    }

    /// The middle ratio of the peers of a rank that have been busy for less of a window than is measured, and the
    /// seconds that it rests on; `None` where they did nothing.
    fn of_idle_peers(&self, sum: &[Bin], shared: Shared, rank: usize) -> Option<(f64, f64)> {
        let is_known =
            |r: usize| r != rank && sum[r].spent >= LEAST_OF_PEER && self.needed(&sum[r], shared) > 0.0;
        let ratio = |r: usize| (self.needed(&sum[r], shared) / sum[r].spent).ln() - self.usual[r];
        let ratios: Vec<f64> =
            (0..sum.len()).map(|r| if is_known(r) { ratio(r) } else { f64::NAN }).collect();
        let middle = PeerMedians::default().of(&ratios)[rank];
        let spent = (0..sum.len()).filter(|r| is_known(*r)).map(|r| sum[r].spent).sum();
        (!middle.is_nan()).then_some((middle, spent))
    }

    /// Whether a rank's usual speed and noise are known.
    pub fn known(&self, rank: usize) -> bool {
        self.seconds[rank] > YOUNG
    }

    /// Learns from what was seen in a healthy second.
    pub fn learn(&mut self, training: &TrainingSample) {
        self.waits.learn(training.waits);
        for (w, roots) in training.roots.rows().enumerate() {
            self.pooled[w].learn_together(measured(roots).map(|z| z * z));
            let ranks = roots.iter().zip(&mut self.own).filter(|(z, _)| !z.is_nan());
            ranks.for_each(|(z, own)| own[w].learn(z * z));
        }
        for (r, latest) in training.latest.iter().enumerate().filter(|(_, latest)| !latest.is_nan()) {
            self.seconds[r] += 1.0;
            let step = STEP.max(0.3 / self.seconds[r]);
            self.usual[r] += (latest - self.usual[r]).clamp(-step, step);
        }
    }

    /// What `ranks` show in `sums` is their usual speed from now on.
    pub fn take_for_usual(&mut self, ranks: &[usize], sums: &[Bin]) {
        let shared = self.shared(sums);
        for &rank in ranks {
            let (needed, spent) = (self.needed(&sums[rank], shared), sums[rank].spent);
            if spent >= LEAST_KNOWN && needed > 0.0 {
                (self.usual[rank], self.seconds[rank]) = ((needed / spent).ln(), spent);
            }
        }
    }

    /// Learns the noise alone, of the ranks that are not `slow`.
    pub fn learn_noise(&mut self, training: &TrainingSample, slow: impl Fn(usize) -> bool) {
        for (roots, pooled) in training.roots.rows().zip(&mut self.pooled) {
            let of_peers = roots.iter().enumerate().filter(|(rank, z)| !slow(*rank) && !z.is_nan());
            pooled.learn_together(of_peers.map(|(_, z)| z * z));
        }
    }

    /// How many times as long as the model says this rank usually takes: what the model learns from is freed
    /// of it. What all have in common is the model's own error; where that does not go away it would come
    /// back, and again, without end, so what is beyond [`COMMON`] is left in.
    pub fn usual_factor(&self, rank: usize) -> f64 {
        let known = || self.usual.iter().zip(&self.seconds).filter(|(_, seconds)| **seconds > 0.0);
        let common = known().map(|(usual, _)| usual).sum::<f64>() / known().count().max(1) as f64;
        let left_in = common - common.clamp(-COMMON, COMMON);
        if self.seconds[rank] > 0.0 { (left_in - self.usual[rank]).exp() } else { 1.0 }
    }

    /// The variance of a busy second's ratio in window `w`, in nominal ones.
    pub fn dispersion(&self, rank: usize, w: usize) -> f64 {
        let least = if self.seconds[rank] > YOUNG { LEAST_DISPERSION } else { 1.0 };
        self.pooled[w].variance.max(self.own[rank][w].variance).max(least)
    }

    /// The standard deviation of one busy second's ratio, for the onset.
    pub fn noise(&self, rank: usize) -> f64 {
        self.nominal * self.dispersion(rank, 1).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::factor::bins::Bins;
    use crate::test_rng::TestRng;

    fn run(seconds: i64, ratio: impl Fn(usize, i64) -> f64) -> Vec<Evidence> {
        let mut bins = Bins::new(3, 0);
        let mut speed = Speed::new(3, 0.1, WorkKind::All);
        let mut last = Vec::new();
        for s in 0..seconds {
            (0..3).for_each(|r| bins.at(r, s as f64, |b| (b.needed, b.spent) = (ratio(r, s), 1.0)));
            let seen = speed.examine(&bins.sums(s, 0), &[Pending::default(); 3], &[], false);
            if s < 300 {
                speed.learn(&seen.training);
            }
            last = seen.evidence;
        }
        last
    }

    #[test]
    fn where_work_is_guessed_a_rank_is_measured_by_what_its_peers_scatter_now() {
        let (mut bins, mut rng) = (Bins::new(8, 0), TestRng(7));
        let mut speed = Speed::new(8, 0.3, WorkKind::All);
        let examine = |speed: &Speed, bins: &Bins, s: i64, is_guessed: bool| {
            speed.examine(&bins.sums(s, 0), &[Pending::default(); 8], &[], is_guessed)
        };
        for s in 0..300 {
            (0..8).for_each(|r| {
                bins.at(r, s as f64, |b| (b.needed, b.spent) = (f64::exp(0.1 * rng.normal()), 1.0))
            });
            let training = examine(&speed, &bins, s, true).training;
            speed.learn(&training);
        }
        // A rank takes twice as long: among peers as usual, and among peers that scatter ten times as much for once.
        let deviance = |noise: f64, is_guessed: bool| {
            let mut bins = bins.clone();
            let logs = [-2.0, -0.7 / noise, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5].map(|log| noise * log);
            for s in 300..306 {
                (0..8).for_each(|r| bins.at(r, s as f64, |b| (b.needed, b.spent) = (logs[r].exp(), 1.0)));
            }
            examine(&speed, &bins, 305, is_guessed).evidence[1].deviance
        };
        assert!(deviance(0.01, true) > 20.0, "{}", deviance(0.01, true));
        assert!(deviance(1.0, false) > 20.0, "{}", deviance(1.0, false));
        assert!(deviance(1.0, true) < 0.4 * deviance(1.0, false), "{}", deviance(1.0, true));
    }

    #[test]
    fn where_work_is_guessed_a_slow_rank_departs_beside_one_peer_and_two_beside_two() {
        for (ranks, slow) in [(2, 1), (3, 1), (4, 2)] {
            let (mut bins, mut rng) = (Bins::new(ranks, 0), TestRng(7));
            let mut speed = Speed::new(ranks, 0.3, WorkKind::All);
            let none = vec![Pending::default(); ranks];
            let mut last = Vec::new();
            for s in 0..332 {
                for r in 0..ranks {
                    let takes = if r < slow && s >= 300 { 4.0 } else { 1.0 };
                    let needed = f64::exp(0.2 * rng.normal()) / takes;
                    bins.at(r, s as f64, |b| (b.needed, b.spent) = (needed, 1.0));
                }
                let seen = speed.examine(&bins.sums(s, 0), &none, &[], true);
                if s < 300 {
                    speed.learn(&seen.training);
                }
                last = seen.evidence;
            }
            assert!(last[..slow].iter().all(|e| e.deviance > 30.0), "{ranks} {last:?}");
        }
    }

    #[test]
    fn noise_is_learned_of_the_peers_of_a_slow_rank_and_nothing_else_is() {
        let mut rng = TestRng(7);
        let mut bins = Bins::new(5, 0);
        let mut speed = Speed::new(5, 0.1, WorkKind::All);
        let (mut quiet, mut usual) = (0.0, Vec::new());
        for s in 0..240 {
            let scatter = if s < 120 { 0.02 } else { 0.3 };
            for rank in 0..5 {
                let slow: f64 = if rank == 4 && s >= 120 { 0.2 } else { 1.0 };
                let needed = slow * f64::exp(scatter * rng.normal());
                bins.at(rank, s as f64, |b| (b.needed, b.spent) = (needed, 1.0));
            }
            let seen = speed.examine(&bins.sums(s, 0), &[Pending::default(); 5], &[], false);
            match s {
                ..120 => {
                    speed.learn(&seen.training);
                    (quiet, usual) = (speed.dispersion(0, 1), speed.usual.clone());
                }
                _ => speed.learn_noise(&seen.training, |rank| rank == 4),
            }
        }
        assert!(speed.dispersion(0, 1) > 1.5 * quiet, "{} {quiet}", speed.dispersion(0, 1));
        assert_eq!(speed.usual, usual);
    }

    #[test]
    fn a_rank_that_takes_twice_as_long_departs_within_four_seconds() {
        let e = run(304, |r, s| if r == 1 && s >= 300 { 0.5 } else { 1.0 });
        assert!(e[1].deviance > 50.0, "{e:?}");
        assert_eq!((e[0].deviance, e[2].deviance), (0.0, 0.0));
    }

    /// Two ranks with little to do, until one needs so many seconds for half a second's work, and the other so many for
    /// a fifth of one.
    fn beside_an_idle_peer(mine: f64, its: f64, pending: Pending) -> Vec<Evidence> {
        let mut bins = Bins::new(2, 0);
        let mut speed = Speed::new(2, 0.1, WorkKind::All);
        for s in 0..300 {
            (0..2).for_each(|r| bins.at(r, s as f64, |b| (b.needed, b.spent) = (0.35, 0.35)));
            let seen = speed.examine(&bins.sums(s, 0), &[Pending::default(); 2], &[], false);
            speed.learn(&seen.training);
        }
        for s in 300..308 {
            bins.at(0, s as f64, |b| (b.needed, b.spent) = (0.5, mine));
            bins.at(1, s as f64, |b| (b.needed, b.spent) = (0.2, its));
        }
        speed.examine(&bins.sums(307, 0), &[pending, Pending::default()], &[], false).evidence
    }

    #[test]
    fn a_rank_that_becomes_slow_beside_a_peer_with_little_to_do_departs() {
        let e = beside_an_idle_peer(1.0, 0.2, Pending::default());
        assert!(e[0].deviance > 10.0 && e[0].side == Side::Low, "{e:?}");
        assert_eq!(e[1].deviance, 0.0);
        for under_way in [Pending::default(), Pending { needed: 1.0, decoding: 1.0, spent: 2.0 }] {
            let slower_server = beside_an_idle_peer(1.0, 0.39, under_way);
            let most = slower_server.iter().map(|e| e.deviance).fold(0.0, f64::max);
            // Windows that begin before it weigh the busier rank's slow seconds more.
            assert!(most < 0.3 * e[0].deviance, "{slower_server:?} {e:?}");
        }
    }

    #[test]
    fn a_rank_that_was_always_slower_does_not_depart() {
        let e = run(400, |r, _| if r == 1 { 0.7 } else { 1.0 });
        assert_eq!(e[1].deviance, 0.0);
    }

    #[test]
    fn nobody_departs_when_all_slow_down() {
        let e = run(310, |_, s| if s >= 300 { 0.5 } else { 1.0 });
        assert!(e.iter().all(|e| e.deviance == 0.0));
    }

    #[test]
    fn a_rank_without_prompts_that_waits_for_those_of_its_peers_is_not_slow() {
        let (mut bins, mut rng) = (Bins::new(4, 0), TestRng(5));
        let mut speed = Speed::new(4, 0.1, WorkKind::All);
        let mut without_waits = speed.clone();
        for s in 0..1_220_i64 {
            // All take the time of decoding and of everybody's prompts; in the end one rank has none.
            let mut prompts: [f64; 4] = std::array::from_fn(|_| 0.2 * rng.uniform());
            if s >= 1_200 {
                prompts = [0.2, 0.2, 0.0, 0.2];
            }
            let spent = 0.4 + prompts.iter().sum::<f64>();
            for (r, prompts) in prompts.iter().map(|p| p / spent).enumerate() {
                let needed = 0.4 / spent + prompts;
                bins.at(r, s as f64, |b| (b.needed, b.prompts, b.spent) = (needed, prompts, 1.0));
            }
            for speed in [&mut speed, &mut without_waits] {
                let seen = speed.examine(&bins.sums(s, 0), &[Pending::default(); 4], &[], false);
                if s < 1_200 {
                    speed.learn(&seen.training);
                }
            }
            without_waits.waits = Waits::default();
        }
        let deviance = |speed: &Speed| {
            speed.examine(&bins.sums(1_219, 0), &[Pending::default(); 4], &[], false).evidence[2].deviance
        };
        assert!(deviance(&without_waits) > 20.0, "{}", deviance(&without_waits));
        assert_eq!(deviance(&speed), 0.0);
    }
}
