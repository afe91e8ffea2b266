//! The figures that a verdict rests on: each rank's work per step, by kind of step, family and
//! kernel, and how one rank differs from the median of its peers. All means are per step, because
//! a window of fixed time shows fewer kernels on the rank that has more to do.

use std::collections::{BTreeMap, HashMap};

use crate::kernel::Family;
use crate::step::RankProfile;
use crate::trace::StepKind;

/// The fewest steps of a kind from which a mean is taken.
pub const MIN_STEPS: usize = 3;

/// Mean and spread of one kind of step on one rank.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct KindFigures {
    /// How many steps.
    pub steps: usize,
    /// Work (busy without communication), milliseconds per step.
    pub work_ms: f64,
    /// Standard error of that mean, milliseconds.
    pub error_ms: f64,
    /// Requests per step, where told.
    pub requests: Option<f64>,
    /// Tokens per step, where told.
    pub tokens: Option<f64>,
    /// Launches per step.
    pub launches: f64,
}

/// One rank's figures per step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// Steps in all.
    pub steps: usize,
    /// Milliseconds per step when any kernel ran.
    pub busy_ms: f64,
    /// Milliseconds per step when any kernel but communication ran.
    pub work_ms: f64,
    /// Standard error of `work_ms`.
    pub error_ms: f64,
    /// Milliseconds per step from its start to the next one's.
    pub wall_ms: f64,
    /// Launches per step.
    pub launches: f64,
    /// Requests per step, where told.
    pub requests: Option<f64>,
    /// The share of steps that are prefill.
    pub extend_share: f64,
    /// By kind of step.
    pub kinds: BTreeMap<StepKind, KindFigures>,
    /// Milliseconds per step by family.
    pub families: BTreeMap<Family, f64>,
}

/// The figures of a rank.
pub fn figures_of(p: &RankProfile) -> Figures {
    let n = p.steps.len().max(1) as f64;
    let work: Vec<f64> = p.steps.iter().map(|s| s.work_ns as f64 / 1e6).collect();
    let mut families = BTreeMap::new();
    let mut launches = [0u64; 4];
    for k in &p.kernels {
        *families.entry(k.family).or_insert(0.0) += k.total().time_ns as f64 / 1e6 / n;
        k.by_kind.iter().zip(&mut launches).for_each(|(c, l)| *l += c.launches);
    }
    let kinds = StepKind::ALL
        .into_iter()
        .filter(|&kind| p.count(kind) > 0)
        .map(|kind| (kind, kind_figures(p, kind, launches[kind as usize])))
        .collect();
    Figures {
        steps: p.steps.len(),
        busy_ms: p.steps.iter().map(|s| s.busy_ns as f64 / 1e6).sum::<f64>() / n,
        work_ms: mean(&work).unwrap_or(0.0),
        error_ms: error_of(&work),
        wall_ms: p.steps.iter().map(|s| s.wall_ns as f64 / 1e6).sum::<f64>() / n,
        launches: launches.iter().sum::<u64>() as f64 / n,
        requests: mean(&p.steps.iter().filter_map(|s| s.requests.map(f64::from)).collect::<Vec<_>>()),
        extend_share: p.count(StepKind::Extend) as f64 / n,
        kinds,
        families,
    }
}

fn kind_figures(p: &RankProfile, kind: StepKind, launches: u64) -> KindFigures {
    let of = || p.steps.iter().filter(move |s| s.kind == kind);
    let work: Vec<f64> = of().map(|s| s.work_ns as f64 / 1e6).collect();
    KindFigures {
        steps: work.len(),
        work_ms: mean(&work).unwrap_or(0.0),
        error_ms: error_of(&work),
        requests: mean(&of().filter_map(|s| s.requests.map(f64::from)).collect::<Vec<_>>()),
        tokens: mean(&of().filter_map(|s| s.tokens.map(f64::from)).collect::<Vec<_>>()),
        launches: launches as f64 / work.len().max(1) as f64,
    }
}

/// How the rank at `at` differs from its peers.
#[derive(Clone, Debug, Default)]
pub struct Gap {
    /// Its work per step beyond the median of its peers, milliseconds.
    pub ms: f64,
    /// The median of its peers, milliseconds.
    pub peers_ms: f64,
    /// The same, comparing only steps of one kind with each other, at this rank's mix.
    pub within_ms: Option<f64>,
    /// How many times the noise (the peers' spread, the error of the means) `within_ms` is.
    pub beyond_noise: f64,
    /// Gap by family, milliseconds per step; negative where it spends less.
    pub families: BTreeMap<Family, f64>,
}

impl Gap {
    /// As a share of the peers' work.
    pub fn relative(&self) -> f64 {
        self.ms / self.peers_ms.max(1e-9)
    }

    /// The share of the peers' work, steps of one kind compared with each other only.
    pub fn relative_within(&self) -> Option<f64> {
        self.within_ms.map(|ms| ms / self.peers_ms.max(1e-9))
    }
}

/// The gap of one rank against all others. `usual` is what each rank's work is multiplied by to
/// take its constant difference out (1 without a baseline).
pub fn gap_of(figures: &[&Figures], at: usize, usual: &[f64]) -> Gap {
    let peers = || (0..figures.len()).filter(move |&i| i != at);
    let work = |i: usize| figures[i].work_ms * usual[i];
    let peers_work: Vec<f64> = peers().map(work).collect();
    let peers_ms = median(&peers_work).unwrap_or(0.0);
    let mut gap = Gap { ms: work(at) - peers_ms, peers_ms, ..Gap::default() };
    within(figures, at, usual, &mut gap);
    for family in Family::ALL {
        let cost = |i: usize| figures[i].families.get(&family).copied().unwrap_or(0.0) * usual[i];
        let others = median(&peers().map(cost).collect::<Vec<_>>()).unwrap_or(0.0);
        gap.families.insert(family, cost(at) - others);
    }
    gap
}

/// Compares kinds of steps one by one, where the rank and at least half of its peers have enough
/// of them, and weighs them by this rank's own mix.
fn within(figures: &[&Figures], at: usize, usual: &[f64], gap: &mut Gap) {
    let me = figures[at];
    let (mut sum, mut noise, mut weight) = (0.0, 0.0, 0.0);
    for (kind, mine) in me.kinds.iter().filter(|(_, k)| k.steps >= MIN_STEPS) {
        let peers: Vec<(f64, f64)> = (0..figures.len())
            .filter(|&i| i != at)
            .filter_map(|i| figures[i].kinds.get(kind).filter(|k| k.steps >= MIN_STEPS).map(|k| (i, k)))
            .map(|(i, k)| (k.work_ms * usual[i], k.error_ms * usual[i]))
            .collect();
        if peers.is_empty() || peers.len() * 2 < figures.len() - 1 {
            continue;
        }
        let works: Vec<f64> = peers.iter().map(|p| p.0).collect();
        let typical = median(&works).unwrap_or(0.0);
        let spread =
            1.4826 * median(&works.iter().map(|w| (w - typical).abs()).collect::<Vec<_>>()).unwrap_or(0.0);
        let errors = median(&peers.iter().map(|p| p.1).collect::<Vec<_>>()).unwrap_or(0.0);
        let share = mine.steps as f64;
        sum += share * (mine.work_ms * usual[at] - typical);
        noise += share * spread.max(mine.error_ms * usual[at]).max(errors).max(0.015 * typical);
        weight += share;
    }
    if weight > 0.0 {
        gap.within_ms = Some(sum / weight);
        gap.beyond_noise = sum / noise.max(1e-12);
    }
}

/// What one kernel costs the rank beyond its peers, milliseconds per step.
pub fn kernel_gaps(profiles: &[&RankProfile], at: usize) -> HashMap<(Family, String), f64> {
    let mut by_rank: HashMap<(Family, &str), Vec<f64>> = HashMap::new();
    for (i, p) in profiles.iter().enumerate() {
        let n = p.steps.len().max(1) as f64;
        for k in &p.kernels {
            let cell =
                by_rank.entry((k.family, k.short.as_str())).or_insert_with(|| vec![0.0; profiles.len()]);
            cell[i] += k.total().time_ns as f64 / 1e6 / n;
        }
    }
    by_rank
        .into_iter()
        .map(|((family, name), cost)| {
            let others: Vec<f64> = (0..cost.len()).filter(|&i| i != at).map(|i| cost[i]).collect();
            ((family, name.to_owned()), cost[at] - median(&others).unwrap_or(0.0))
        })
        .collect()
}

/// How the same kernels ran on a rank and on its peers, launch by launch.
#[derive(Clone, Copy, Debug, Default)]
pub struct SameCalls {
    /// The factor by which launches of kernels that hardly grow with work take longer.
    pub steady: Option<f64>,
    /// The factor over all kernels.
    pub all: Option<f64>,
    /// The share of time in kernels whose factor is within a tenth of `all`.
    pub agreeing: f64,
    /// The factor between the grids, where the traces tell them.
    pub grid: Option<f64>,
}

/// Nanoseconds of a launch, of all of them, and blocks of a launch.
type Launches = (f64, f64, f64);

/// Compares kernels of the same full name in steps of the same kind.
pub fn same_calls(profiles: &[&RankProfile], at: usize) -> SameCalls {
    let mut peers: HashMap<(&str, usize), Vec<Launches>> = HashMap::new();
    for (_, p) in profiles.iter().enumerate().filter(|(i, _)| *i != at) {
        for k in p.kernels.iter().filter(|k| k.family != Family::Communication) {
            for (kind, c) in k.by_kind.iter().enumerate().filter(|(_, c)| c.launches >= MIN_STEPS as u64) {
                let each = c.time_ns as f64 / c.launches as f64;
                peers.entry((k.name.as_str(), kind)).or_default().push((each, c.time_ns as f64, k.blocks));
            }
        }
    }
    let mut rows = Vec::new();
    for k in profiles[at].kernels.iter().filter(|k| k.family != Family::Communication) {
        for (kind, c) in k.by_kind.iter().enumerate().filter(|(_, c)| c.launches >= MIN_STEPS as u64) {
            let Some(others) = peers.get(&(k.name.as_str(), kind)) else { continue };
            let of =
                |f: fn(&Launches) -> f64| median(&others.iter().map(f).collect::<Vec<_>>()).unwrap_or(0.0);
            let (each, weight, blocks) = (of(|o| o.0), of(|o| o.1), of(|o| o.2));
            let factor = c.time_ns as f64 / c.launches as f64 / each.max(1.0);
            let grid = (blocks > 0.0 && k.blocks > 0.0).then(|| k.blocks / blocks);
            rows.push((factor, weight, grid, k.family.grows_with_work()));
        }
    }
    let factors = |keep: &dyn Fn(bool) -> bool| -> Option<f64> {
        weighted_median(rows.iter().filter(|r| keep(r.3)).map(|r| (r.0, r.1)).collect())
    };
    let all = factors(&|_| true);
    let total: f64 = rows.iter().map(|r| r.1).sum();
    let near = all.map_or(0.0, |f| rows.iter().filter(|r| (r.0 / f - 1.0).abs() <= 0.1).map(|r| r.1).sum());
    SameCalls {
        steady: factors(&|grows| !grows),
        all,
        agreeing: near / f64::max(total, 1.0),
        grid: weighted_median(rows.iter().filter_map(|r| Some((r.2?, r.1))).collect()),
    }
}

/// The middle value; of an even number the mean of the two.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    (n > 0).then(|| (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0)
}

fn weighted_median(mut values: Vec<(f64, f64)>) -> Option<f64> {
    values.sort_by(|a, b| a.0.total_cmp(&b.0));
    let half: f64 = values.iter().map(|v| v.1).sum::<f64>() / 2.0;
    let mut sum = 0.0;
    values
        .into_iter()
        .find(|v| {
            sum += v.1;
            sum >= half
        })
        .map(|v| v.0)
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// The standard error of the mean.
fn error_of(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    let Some(mean) = mean(values).filter(|_| n >= 2.0) else { return 0.0 };
    (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0) / n).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_ignore_what_is_no_number() {
        assert_eq!(median(&[3.0, f64::NAN, 1.0]), Some(2.0));
        assert_eq!(median(&[]), None);
        assert_eq!(weighted_median(vec![(1.0, 1.0), (2.0, 5.0), (9.0, 1.0)]), Some(2.0));
    }
}
