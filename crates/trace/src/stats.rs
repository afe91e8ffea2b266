//! The statistics that a verdict rests on: the work of each rank per step, by kind of step, family
//! and kernel, and the difference of one rank from the median of its peers. All means are per step,
//! because a window of fixed length holds fewer steps of a rank that has more to do in each.

use std::collections::{BTreeMap, HashMap};

use crate::kernel::Family;
use crate::profile::RankProfile;
use crate::split::Split;
use crate::step::{MIN_STEPS, StepKind};

/// Two mixes of steps are compared by the kinds that they have in common, where those are this part of the steps.
const COMMON: f64 = 0.8;

/// One kind of step on one rank.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct KindStats {
    /// The number of steps.
    pub steps: usize,
    /// Work (time in which any kernel but communication ran), milliseconds per step.
    pub work_ms: f64,
    /// Standard error of that mean, milliseconds.
    pub error_ms: f64,
    /// Requests per step, if known.
    pub requests: Option<f64>,
    /// Tokens per step, if known.
    pub tokens: Option<f64>,
    /// Launches per step.
    pub launches: f64,
}

/// One rank, per step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RankStats {
    /// The number of steps.
    pub steps: usize,
    /// Time in which any kernel ran, milliseconds per step.
    pub busy_ms: f64,
    /// Time in which any kernel but communication ran, milliseconds per step.
    pub work_ms: f64,
    /// Standard error of `work_ms`, milliseconds.
    pub error_ms: f64,
    /// From the start of a step to that of the next, milliseconds.
    pub wall_ms: f64,
    /// Where a step's wall time goes.
    pub split: Split,
    /// Kernels per step.
    pub launches: f64,
    /// Launches by the host per step.
    pub host_launches: f64,
    /// Requests per step, if known.
    pub requests: Option<f64>,
    /// The share of steps that are prefill.
    pub extend_share: f64,
    /// By kind of step.
    pub kinds: BTreeMap<StepKind, KindStats>,
    /// Kernel time by family, milliseconds per step.
    pub families: BTreeMap<Family, f64>,
}

impl RankStats {
    /// The statistics of a rank.
    pub fn new(p: &RankProfile) -> Self {
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
            .map(|kind| (kind, kind_stats(p, kind, launches[kind as usize])))
            .collect();
        Self {
            steps: p.steps.len(),
            busy_ms: p.steps.iter().map(|s| s.busy_ns as f64 / 1e6).sum::<f64>() / n,
            work_ms: mean(&work).unwrap_or(0.0),
            error_ms: standard_error(&work),
            wall_ms: p.steps.iter().map(|s| s.wall_ns as f64 / 1e6).sum::<f64>() / n,
            split: Split::of(&p.steps),
            launches: launches.iter().sum::<u64>() as f64 / n,
            host_launches: p.steps.iter().map(|s| f64::from(s.launches)).sum::<f64>() / n,
            requests: mean(&p.steps.iter().filter_map(|s| s.requests.map(f64::from)).collect::<Vec<_>>()),
            extend_share: p.count(StepKind::Extend) as f64 / n,
            kinds,
            families,
        }
    }

    /// The work per step of the kinds in `mix`, in its proportions; `None` where too many of its steps are of
    /// kinds that this rank has not done.
    pub fn work_of_mix(&self, mix: &BTreeMap<StepKind, KindStats>) -> Option<f64> {
        let (mut work, mut known, mut all) = (0.0, 0.0, 0.0);
        for (kind, of_mix) in mix {
            let steps = of_mix.steps as f64;
            all += steps;
            if let Some(own) = self.kinds.get(kind) {
                known += steps;
                work += steps * own.work_ms;
            }
        }
        (known > 0.0 && known >= COMMON * all).then(|| work / known)
    }

    /// How many times the work per step is that of `before`, for the kinds of steps that both did and in the
    /// proportions of this rank: more prefills are no slower GPU.
    pub fn work_over(&self, before: &Self) -> Option<f64> {
        let common = self.kinds.iter().filter(|(kind, _)| before.kinds.contains_key(kind));
        let common: BTreeMap<StepKind, KindStats> = common.map(|(kind, stats)| (*kind, *stats)).collect();
        let was = before.work_of_mix(&self.kinds).filter(|was| *was > 0.0)?;
        Some(self.work_of_mix(&common)? / was)
    }
}

fn kind_stats(p: &RankProfile, kind: StepKind, launches: u64) -> KindStats {
    let of = || p.steps.iter().filter(move |s| s.kind == kind);
    let work: Vec<f64> = of().map(|s| s.work_ns as f64 / 1e6).collect();
    KindStats {
        steps: work.len(),
        work_ms: mean(&work).unwrap_or(0.0),
        error_ms: standard_error(&work),
        requests: mean(&of().filter_map(|s| s.requests.map(f64::from)).collect::<Vec<_>>()),
        tokens: mean(&of().filter_map(|s| s.tokens.map(f64::from)).collect::<Vec<_>>()),
        launches: launches as f64 / work.len().max(1) as f64,
    }
}

/// The difference of one rank from its peers.
#[derive(Clone, Debug, Default)]
pub struct Gap {
    /// Its work per step minus the median of its peers, milliseconds.
    pub ms: f64,
    /// The median of its peers' work per step, milliseconds.
    pub peers_ms: f64,
    /// Like `ms`, but only steps of one kind are compared with each other, weighted by this rank's own
    /// mix of kinds, milliseconds. `None` where no kind can be compared.
    pub within_ms: Option<f64>,
    /// `within_ms` in units of the noise (the spread of the peers, the error of the means).
    pub beyond_noise: f64,
    /// By family, milliseconds per step; negative where the rank spends less than its peers.
    pub families: BTreeMap<Family, f64>,
}

impl Gap {
    /// As a share of the peers' work.
    pub fn relative(&self) -> f64 {
        self.ms / self.peers_ms.max(1e-9)
    }

    /// `within_ms` as a share of the peers' work.
    pub fn relative_within(&self) -> Option<f64> {
        self.within_ms.map(|ms| ms / self.peers_ms.max(1e-9))
    }
}

/// The gap of rank `at` against all others. The work of each rank is multiplied by its entry of
/// `factors`, which takes a constant difference of the rank out (1 without a baseline).
pub fn gap_of(stats: &[&RankStats], at: usize, factors: &[f64]) -> Gap {
    let peers = || (0..stats.len()).filter(move |&i| i != at);
    let work = |i: usize| stats[i].work_ms * factors[i];
    let peers_work: Vec<f64> = peers().map(work).collect();
    let peers_ms = median(&peers_work).unwrap_or(0.0);
    let mut gap = Gap { ms: work(at) - peers_ms, peers_ms, ..Gap::default() };
    add_gap_within_kinds(stats, at, factors, &mut gap);
    for family in Family::ALL {
        let cost = |i: usize| stats[i].families.get(&family).copied().unwrap_or(0.0) * factors[i];
        let others = median(&peers().map(cost).collect::<Vec<_>>()).unwrap_or(0.0);
        gap.families.insert(family, cost(at) - others);
    }
    gap
}

/// Compares the kinds of steps one by one, where the rank and at least half of its peers have enough
/// steps, weighted by this rank's own mix.
fn add_gap_within_kinds(stats: &[&RankStats], at: usize, factors: &[f64], gap: &mut Gap) {
    let (mut sum, mut noise, mut weight) = (0.0, 0.0, 0.0);
    for (kind, mine) in stats[at].kinds.iter().filter(|(_, k)| k.steps >= MIN_STEPS) {
        let peers: Vec<(f64, f64)> = (0..stats.len())
            .filter(|&i| i != at)
            .filter_map(|i| stats[i].kinds.get(kind).filter(|k| k.steps >= MIN_STEPS).map(|k| (i, k)))
            .map(|(i, k)| (k.work_ms * factors[i], k.error_ms * factors[i]))
            .collect();
        if peers.is_empty() || peers.len() * 2 < stats.len() - 1 {
            continue;
        }
        let works: Vec<f64> = peers.iter().map(|p| p.0).collect();
        let typical = median(&works).unwrap_or(0.0);
        let spread =
            1.4826 * median(&works.iter().map(|w| (w - typical).abs()).collect::<Vec<_>>()).unwrap_or(0.0);
        let errors = median(&peers.iter().map(|p| p.1).collect::<Vec<_>>()).unwrap_or(0.0);
        let share = mine.steps as f64;
        sum += share * (mine.work_ms * factors[at] - typical);
        noise += share * spread.max(mine.error_ms * factors[at]).max(errors).max(0.015 * typical);
        weight += share;
    }
    if weight > 0.0 {
        gap.within_ms = Some(sum / weight);
        gap.beyond_noise = sum / noise.max(1e-12);
    }
}

/// One kernel on all ranks, in the order of the ranks.
#[derive(Clone, Debug)]
pub struct KernelRow {
    /// Milliseconds per step.
    pub ms: Vec<f64>,
    /// Launches per step.
    pub launches: Vec<f64>,
}

impl KernelRow {
    /// What it costs rank `at` beyond the median of the others, milliseconds per step.
    pub fn gap_ms(&self, at: usize) -> f64 {
        let others: Vec<f64> = (0..self.ms.len()).filter(|&i| i != at).map(|i| self.ms[i]).collect();
        self.ms[at] - median(&others).unwrap_or(0.0)
    }
}

/// The kernels of all ranks, by family and short name: kernels that differ in template arguments only
/// are added up.
pub fn kernel_table<'a>(profiles: &[&'a RankProfile]) -> BTreeMap<(Family, &'a str), KernelRow> {
    let ranks = profiles.len();
    let empty = || KernelRow { ms: vec![0.0; ranks], launches: vec![0.0; ranks] };
    let mut table = BTreeMap::new();
    for (i, p) in profiles.iter().enumerate() {
        let steps = p.steps.len().max(1) as f64;
        for k in &p.kernels {
            let row: &mut KernelRow = table.entry((k.family, k.short.as_str())).or_insert_with(empty);
            let total = k.total();
            row.ms[i] += total.time_ns as f64 / 1e6 / steps;
            row.launches[i] += total.launches as f64 / steps;
        }
    }
    table
}

/// The same kernels on a rank and on its peers, per launch.
#[derive(Clone, Copy, Debug, Default)]
pub struct SameCalls {
    /// The factor by which launches take longer, over kernels whose cost hardly grows with the batch.
    pub steady: Option<f64>,
    /// The same factor over all kernels.
    pub all: Option<f64>,
    /// The share of kernel time in kernels whose own factor is within a tenth of `all`.
    pub agreeing: f64,
    /// The factor between the launch grids, if the traces have them.
    pub grid: Option<f64>,
    /// The same without matrix products, whose tiles hide the size of the batch.
    pub width: Option<f64>,
}

/// Nanoseconds of one launch, nanoseconds of all, and blocks of one launch.
type Launches = (f64, f64, f64);

/// Compares kernels of the same full name in steps of the same kind between rank `at` and the others.
pub fn same_calls(profiles: &[&RankProfile], at: usize) -> SameCalls {
    let mut peers: HashMap<(u64, usize), Vec<Launches>> = HashMap::new();
    for (_, p) in profiles.iter().enumerate().filter(|(i, _)| *i != at) {
        for k in p.kernels.iter().filter(|k| k.family != Family::Communication) {
            for (kind, c) in k.by_kind.iter().enumerate().filter(|(_, c)| c.launches >= MIN_STEPS as u64) {
                let each = c.time_ns as f64 / c.launches as f64;
                peers.entry((k.digest, kind)).or_default().push((each, c.time_ns as f64, k.blocks));
            }
        }
    }
    let mut rows = Vec::new();
    for k in profiles[at].kernels.iter().filter(|k| k.family != Family::Communication) {
        for (kind, c) in k.by_kind.iter().enumerate().filter(|(_, c)| c.launches >= MIN_STEPS as u64) {
            let Some(others) = peers.get(&(k.digest, kind)) else { continue };
            let of =
                |f: fn(&Launches) -> f64| median(&others.iter().map(f).collect::<Vec<_>>()).unwrap_or(0.0);
            let (each, weight, blocks) = (of(|o| o.0), of(|o| o.1), of(|o| o.2));
            let factor = c.time_ns as f64 / c.launches as f64 / each.max(1.0);
            let grid = (blocks > 0.0 && k.blocks > 0.0).then(|| k.blocks / blocks);
            rows.push((factor, weight, grid, k.family));
        }
    }
    let factors = |keep: &dyn Fn(Family) -> bool| -> Option<f64> {
        weighted_median(rows.iter().filter(|r| keep(r.3)).map(|r| (r.0, r.1)).collect())
    };
    let grids = |keep: &dyn Fn(Family) -> bool| -> Option<f64> {
        weighted_median(rows.iter().filter(|r| keep(r.3)).filter_map(|r| Some((r.2?, r.1))).collect())
    };
    let all = factors(&|_| true);
    let total: f64 = rows.iter().map(|r| r.1).sum();
    let near = all.map_or(0.0, |f| rows.iter().filter(|r| (r.0 / f - 1.0).abs() <= 0.1).map(|r| r.1).sum());
    SameCalls {
        steady: factors(&|f| !f.grows_with_work()),
        all,
        agreeing: near / f64::max(total, 1.0),
        grid: grids(&|_| true),
        width: grids(&|f| !matches!(f, Family::Gemm | Family::Moe)),
    }
}

/// The median of the finite values; of an even number of them the mean of the middle two.
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

pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// The standard error of the mean; 0 for fewer than two values.
fn standard_error(values: &[f64]) -> f64 {
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

    /// So many decode steps of a millisecond's work times `slow`, and so many prefills of ten.
    fn mixed(decodes: usize, prefills: usize, slow: f64) -> RankStats {
        let kind = |steps, work_ms| KindStats { steps, work_ms, ..KindStats::default() };
        let all = [(StepKind::Decode, kind(decodes, slow)), (StepKind::Extend, kind(prefills, 10.0 * slow))];
        RankStats { kinds: all.into_iter().filter(|(_, k)| k.steps > 0).collect(), ..RankStats::default() }
    }

    #[test]
    fn more_prefills_than_in_the_baseline_are_no_slower_gpu() {
        let before = mixed(45, 5, 1.0);
        assert_eq!(mixed(30, 20, 1.0).work_over(&before), Some(1.0));
        assert!((mixed(30, 20, 1.3).work_over(&before).unwrap() - 1.3).abs() < 1e-9);
        assert_eq!(mixed(30, 20, 1.0).work_over(&mixed(50, 0, 1.0)), None, "it did no prefill");
        assert_eq!(mixed(45, 5, 1.0).work_over(&mixed(50, 0, 1.0)), Some(1.0), "nearly all are decode steps");
    }
}
