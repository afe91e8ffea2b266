//! The input and the result of a comparison, as data. Serialised, the result is the JSON that scripts
//! rely on (`docs/compare.md`).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::collective::MatchedCollectives;
use crate::kernel::{Family, short_name};
use crate::labels::Labels;
use crate::period::Period;
use crate::printable::printable;
use crate::profile::RankProfile;
use crate::rank::RankId;
use crate::split::{Part, Split};
use crate::stats::{KindStats, RankStats, gap_of, kernel_table};
use crate::step::{StepKind, StepSource};
use crate::trace::Activities;
use crate::verdict::Verdict;

/// What is compared: the input of [`compare()`](crate::compare()).
#[derive(Debug, Default)]
pub struct ComparisonInput {
    /// The ranks of the capture.
    pub profiles: Vec<RankProfile>,
    /// The same ranks at a time without trouble, whose constant differences are taken out; may be empty.
    pub baseline: Vec<RankProfile>,
    /// The same ranks at a time without trouble, which only tell what changed since; may be empty.
    pub reference: Vec<RankProfile>,
    /// What is suspected beforehand, if anything; the verdict confirms or refutes that.
    pub suspect: Option<Suspect>,
    /// Remarks about the reading: files left out, ranks assumed.
    pub notes: Vec<String>,
    /// Ranks whose files could not be read.
    pub unreadable: Vec<RankId>,
    /// See [`Profiles::period_kernel`](crate::Profiles).
    pub period_kernel: Option<String>,
}

/// What is suspected before the traces are read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Suspect {
    /// The rank.
    pub rank: Labels,
    /// Whether it is said to have less to do than its peers, instead of more or of being slower.
    pub has_less: bool,
}

/// The longest time between two windows of one capture, nanoseconds: clocks of hosts differ, but not
/// by this much.
const MAX_APART_NS: i64 = 60_000_000_000;

impl ComparisonInput {
    /// Why the windows cannot be of one capture, if they are too far apart in time.
    pub(crate) fn mixed_captures(&self) -> Option<String> {
        let busy = || self.profiles.iter().filter(|p| p.rows > 0);
        let (end, ended) = busy().map(|p| (p.epoch_ns.saturating_add(p.window.1), p.rank)).min()?;
        let (start, started) = busy().map(|p| (p.epoch_ns.saturating_add(p.window.0), p.rank)).max()?;
        let apart = start.saturating_sub(end);
        (apart > MAX_APART_NS).then(|| {
            format!(
                "the window of {started} begins {:.0} minutes after that of {ended} ended: these are hardly of one capture",
                apart as f64 / 60e9
            )
        })
    }

    /// Why the steps of the ranks are no common measure, if different kernels delimit them: so it is where
    /// summaries of ranks without annotations were not made together.
    pub(crate) fn mixed_periods(&self) -> Option<String> {
        let periods: BTreeSet<&Period> = self.profiles.iter().filter_map(|p| p.period.as_ref()).collect();
        (periods.len() > 1).then(|| {
            let names: Vec<String> =
                periods.into_iter().map(|p| format!("{} x {}", p.runs, short_name(&p.kernel))).collect();
            format!(
                "the steps were found by the period of different kernels ({}): summarise these ranks together, or compare their traces",
                names.join(", ")
            )
        })
    }

    /// The same ranks at a time without trouble.
    pub(crate) fn before(&self) -> &[RankProfile] {
        if self.baseline.is_empty() { &self.reference } else { &self.baseline }
    }

    /// The work of each rank per step over that of its baseline for the same kinds of steps; `None` without
    /// one, or where the baseline lacks too many of them.
    pub(crate) fn work_over_baseline(&self, stats: &[RankStats]) -> Vec<Option<f64>> {
        self.profiles
            .iter()
            .zip(stats)
            .map(|(p, now)| {
                let before = self.baseline.iter().find(|b| b.rank == p.rank)?;
                now.work_over(&RankStats::new(before))
            })
            .collect()
    }
}

/// One rank's line of the report.
#[derive(Clone, Debug, Serialize)]
pub struct RankLine {
    /// The rank.
    pub rank: RankId,
    /// Steps in its window.
    pub steps: usize,
    /// How the steps were found.
    pub steps_from: StepSource,
    /// Length of the window, milliseconds.
    pub window_ms: f64,
    /// When the window began, seconds since the Unix epoch (or since the profile began).
    pub window_start_s: f64,
    /// Time in which any kernel ran, as a union of intervals, milliseconds in total.
    pub busy_ms: f64,
    /// The same per step.
    pub busy_ms_per_step: f64,
    /// The same without communication: this is compared.
    pub work_ms_per_step: f64,
    /// Wall time without any kernel, per step.
    pub host_gap_ms_per_step: f64,
    /// From the start of a step to that of the next, milliseconds.
    pub wall_ms_per_step: f64,
    /// Where that goes; the parts add up to it.
    pub split_ms_per_step: Split,
    /// Launches by the host per step: a CUDA graph is one.
    pub host_launches_per_step: f64,
    /// What its profiler recorded beside kernels.
    pub activities: Activities,
    /// Work beyond the median of the peers, per step.
    pub gap_ms_per_step: Option<f64>,
    /// Requests in a batch, mean.
    pub requests_mean: Option<f64>,
    /// Share of steps that are prefill.
    pub extend_share: f64,
    /// Kernel launches per step.
    pub launches_per_step: f64,
    /// By kind of step.
    pub kinds: BTreeMap<StepKind, KindLine>,
    /// Milliseconds per step by family.
    pub families_ms_per_step: BTreeMap<Family, f64>,
    /// Work per step over that of the baseline; `null` without one.
    pub work_over_baseline: Option<f64>,
    /// Whether a part of its file is missing.
    pub partial: bool,
    /// Remarks about its file.
    pub notes: Vec<String>,
}

/// One kind of step of one rank.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct KindLine {
    /// The number of steps.
    pub steps: usize,
    /// Work per step, milliseconds.
    pub work_ms_per_step: f64,
    /// Requests in a batch, mean.
    pub requests_mean: Option<f64>,
    /// Tokens in a batch, mean.
    pub tokens_mean: Option<f64>,
    /// Kernel launches per step.
    pub launches_per_step: f64,
}

impl From<&KindStats> for KindLine {
    fn from(k: &KindStats) -> Self {
        Self {
            steps: k.steps,
            work_ms_per_step: k.work_ms,
            requests_mean: k.requests,
            tokens_mean: k.tokens,
            launches_per_step: k.launches,
        }
    }
}

/// One kernel's line of the report.
#[derive(Clone, Debug, Serialize)]
pub struct KernelLine {
    /// Its family.
    pub family: Family,
    /// Its short name.
    pub kernel: String,
    /// Milliseconds per step, in the order of `ranks`.
    pub ms_per_step: Vec<f64>,
    /// Launches per step, in the order of `ranks`.
    pub launches_per_step: Vec<f64>,
    /// What it costs the culprit (without one, the rank with most) beyond the median of its peers.
    pub gap_ms_per_step: f64,
}

/// The result of a comparison: the content of every report.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// The verdict.
    pub verdict: Verdict,
    /// The ranks, in their order.
    pub ranks: Vec<RankLine>,
    /// The kernels that differ most.
    pub kernels: Vec<KernelLine>,
    /// Collectives, and who waits in them; `null` if they could not be matched.
    pub collectives: Option<MatchedCollectives>,
    /// Ranks that should be there but are not.
    pub missing: Vec<RankId>,
    /// Share of kernel time in kernels of unknown family.
    pub unknown_share: f64,
    /// The kernel whose period delimits the steps, where there are no annotations.
    pub period_kernel: Option<String>,
    /// Remarks.
    pub notes: Vec<String>,
}

/// The most bytes of a note.
const LONGEST_NOTE: usize = 4096;

/// Notes name files, and whoever writes into a folder names its files.
fn shown(notes: &[String]) -> Vec<String> {
    notes.iter().map(|note| printable(note, LONGEST_NOTE).into_owned()).collect()
}

impl Comparison {
    /// The ranks to list: all in their order, or of more than `most` the culprit and those with the
    /// most work.
    pub fn listed(&self, most: usize) -> Vec<&RankLine> {
        let mut lines: Vec<&RankLine> = self.ranks.iter().collect();
        if lines.len() > most {
            let is_peer = |r: &RankLine| Some(r.rank) != self.verdict.rank;
            let by_work = |a: &RankLine, b: &RankLine| b.work_ms_per_step.total_cmp(&a.work_ms_per_step);
            lines.sort_by(|a, b| is_peer(a).cmp(&is_peer(b)).then(by_work(a, b)));
            lines.truncate(most);
        }
        lines
    }

    /// Whether any rank has a baseline.
    pub fn has_baseline(&self) -> bool {
        self.ranks.iter().any(|r| r.work_over_baseline.is_some())
    }

    /// What a reader must know about the figures, a sentence each.
    pub fn remarks(&self) -> Vec<String> {
        let mut lines = self.notes.clone();
        if let Some(kernel) = &self.period_kernel {
            lines.push(format!("no step annotations: a step is a period of {}", short_name(kernel)));
        }
        if self.ranks.iter().any(|r| r.steps_from == StepSource::PerSecond && r.steps > 0) {
            lines.push("steps could not be told apart: each window counts as one step".into());
        }
        if self.unknown_share > 0.01 {
            let percent = self.unknown_share * 100.0;
            lines.push(format!("{percent:.0} % of the kernel time is in kernels that no family knows"));
        }
        for r in &self.ranks {
            lines.extend(r.notes.iter().map(|n| format!("{}: {n}", r.rank)));
        }
        lines.extend(self.about_activities());
        let both =
            |r: &RankLine| r.kinds.contains_key(&StepKind::Extend) && r.kinds.contains_key(&StepKind::Decode);
        if self.ranks.iter().any(both) {
            lines.push(
                "prefill and decode steps are compared separately; figures per step are over both".into(),
            );
        }
        lines
    }

    /// What the profiler's own weight means for host time, and which activity would show more.
    fn about_activities(&self) -> Option<String> {
        let busy = || self.ranks.iter().filter(|r| r.steps > 0);
        let first = busy().next()?.activities;
        if busy().any(|r| r.activities != first) {
            return Some("the ranks were profiled with different activities, which slow their hosts differently: their host time is compared with that of ranks under the same ones only".into());
        }
        if first.cpu {
            return Some("recording CPU activity makes host gaps two to four times as long; windows of kernels alone show the host time that clients see".into());
        }
        let host = self.verdict.step.is_some_and(|s| s.largest == Part::Host && s.relative() >= 0.15);
        host.then(|| "which operator or call takes the host time is not in a window of kernels alone: a window with CPU activity would show it".into())
    }

    /// The ranks to look at side by side: the culprit, one in the middle and the one with the least work.
    pub fn representative_ranks(&self) -> Vec<RankId> {
        let mut order: Vec<&RankLine> = self.ranks.iter().filter(|r| r.steps > 0).collect();
        order.sort_by(|a, b| b.work_ms_per_step.total_cmp(&a.work_ms_per_step));
        let culprit = self.verdict.rank.filter(|w| order.iter().any(|r| r.rank == *w));
        let mut chosen: Vec<RankId> = culprit.or(order.first().map(|r| r.rank)).into_iter().collect();
        for at in [order.len() / 2, order.len().saturating_sub(1)] {
            match order.get(at) {
                Some(line) if !chosen.contains(&line.rank) => chosen.push(line.rank),
                _ => {}
            }
        }
        chosen
    }
}

impl Comparison {
    /// Lays out the tables of a verdict.
    pub(crate) fn new(
        input: &ComparisonInput,
        verdict: Verdict,
        stats: &[RankStats],
        collectives: Option<MatchedCollectives>,
        missing: Vec<RankId>,
    ) -> Self {
        let ratios = input.work_over_baseline(stats);
        let all: Vec<&RankStats> = stats.iter().collect();
        let factors = vec![1.0; stats.len()];
        let lines = input.profiles.iter().enumerate().map(|(i, p)| {
            let f = &stats[i];
            let peers = stats.len() > 1 && f.steps > 0;
            RankLine {
                rank: p.rank,
                steps: f.steps,
                steps_from: p.source,
                window_ms: p.window_ns() as f64 / 1e6,
                window_start_s: (p.epoch_ns + p.window.0) as f64 / 1e9,
                busy_ms: p.busy_ns as f64 / 1e6,
                busy_ms_per_step: f.busy_ms,
                work_ms_per_step: f.work_ms,
                host_gap_ms_per_step: f.wall_ms - f.busy_ms,
                wall_ms_per_step: f.wall_ms,
                split_ms_per_step: f.split,
                host_launches_per_step: f.host_launches,
                activities: p.activities,
                gap_ms_per_step: peers.then(|| gap_of(&all, i, &factors).ms),
                requests_mean: f.requests,
                extend_share: f.extend_share,
                launches_per_step: f.launches,
                kinds: f.kinds.iter().map(|(k, v)| (*k, KindLine::from(v))).collect(),
                families_ms_per_step: f.families.clone(),
                work_over_baseline: ratios[i],
                partial: p.partial,
                notes: shown(&p.notes),
            }
        });
        let ranks: Vec<RankLine> = lines.collect();
        let (mut unknown, mut total) = (0.0, 0.0);
        for f in stats {
            unknown += f.families.get(&Family::Other).copied().unwrap_or(0.0);
            total += f.families.values().sum::<f64>();
        }
        Self {
            kernels: kernel_lines(&input.profiles, verdict.rank),
            verdict,
            ranks,
            collectives,
            missing,
            unknown_share: if total > 0.0 { unknown / total } else { 0.0 },
            period_kernel: input.period_kernel.clone(),
            notes: shown(&input.notes),
        }
    }
}

/// The kernels that differ most, at most 24.
fn kernel_lines(profiles: &[RankProfile], culprit: Option<RankId>) -> Vec<KernelLine> {
    let culprit = profiles.iter().position(|p| Some(p.rank) == culprit);
    let all: Vec<&RankProfile> = profiles.iter().collect();
    let mut lines: Vec<KernelLine> = kernel_table(&all)
        .into_iter()
        .map(|((family, kernel), row)| {
            let most = (0..profiles.len()).max_by(|&a, &b| row.ms[a].total_cmp(&row.ms[b]));
            KernelLine {
                family,
                kernel: kernel.to_owned(),
                gap_ms_per_step: row.gap_ms(culprit.or(most).unwrap_or(0)),
                ms_per_step: row.ms,
                launches_per_step: row.launches,
            }
        })
        .collect();
    lines.sort_by(|a, b| b.gap_ms_per_step.abs().total_cmp(&a.gap_ms_per_step.abs()));
    lines.truncate(24);
    lines
}
