//! What a comparison says, as data: the verdict and the tables behind it. Serialised, it is the
//! JSON that scripts rely on (`docs/compare.md`).

use std::collections::BTreeMap;

use serde::Serialize;

use crate::collective::Matched;
use crate::compare::Study;
use crate::evidence::{self, Figures, KindFigures};
use crate::kernel::{Family, short_name};
use crate::step::RankProfile;
use crate::trace::{StepKind, StepSource, Who};
use crate::verdict::Verdict;

/// One rank's line of the report.
#[derive(Clone, Debug, Serialize)]
pub struct RankLine {
    /// Whose.
    pub rank: Who,
    /// Steps in its window.
    pub steps: usize,
    /// How they were told apart.
    pub steps_from: StepSource,
    /// Length of the window, milliseconds.
    pub window_ms: f64,
    /// When the window began, seconds since the Unix epoch (or since the profile began).
    pub window_start_s: f64,
    /// Time in which any kernel ran, as a union, milliseconds in all.
    pub busy_ms: f64,
    /// The same per step.
    pub busy_ms_per_step: f64,
    /// Without communication: what is compared.
    pub work_ms_per_step: f64,
    /// Wall time without any kernel, per step.
    pub host_gap_ms_per_step: f64,
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
    /// Work per step against the baseline's; `null` without one.
    pub work_over_baseline: Option<f64>,
    /// Whether a part of its file is missing.
    pub partial: bool,
    /// What to know about its file.
    pub notes: Vec<String>,
}

/// One kind of step of one rank.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct KindLine {
    /// How many.
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

impl From<&KindFigures> for KindLine {
    fn from(k: &KindFigures) -> Self {
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
    /// What it costs the culprit (without one, the rank with most) beyond its peers' median.
    pub gap_ms_per_step: f64,
}

/// Everything a report says.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// The verdict.
    pub verdict: Verdict,
    /// The ranks, in their order.
    pub ranks: Vec<RankLine>,
    /// The kernels that differ most.
    pub kernels: Vec<KernelLine>,
    /// Collectives and who waits in them; `null` where none could be matched.
    pub collectives: Option<Matched>,
    /// Ranks that should be there and are not.
    pub missing: Vec<Who>,
    /// Share of kernel time in kernels that no family knows.
    pub unknown_share: f64,
    /// The kernel whose period told the steps, where no annotation did.
    pub period_kernel: Option<String>,
    /// What else to know.
    pub notes: Vec<String>,
}

impl Comparison {
    /// The ranks to list, in their order; of more than `most` the culprit and those with the most work.
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

    /// What a reader must know about the figures, a line each.
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
        let both =
            |r: &RankLine| r.kinds.contains_key(&StepKind::Extend) && r.kinds.contains_key(&StepKind::Decode);
        if self.ranks.iter().any(both) {
            lines.push(
                "prefill and decode steps are compared separately; figures per step are over both".into(),
            );
        }
        lines
    }

    /// The culprit, a rank in the middle and the best one: whom to look at.
    pub fn telling_ranks(&self) -> Vec<Who> {
        let mut order: Vec<&RankLine> = self.ranks.iter().filter(|r| r.steps > 0).collect();
        order.sort_by(|a, b| b.work_ms_per_step.total_cmp(&a.work_ms_per_step));
        let culprit = self.verdict.rank.filter(|w| order.iter().any(|r| r.rank == *w));
        let mut chosen: Vec<Who> = culprit.or(order.first().map(|r| r.rank)).into_iter().collect();
        for at in [order.len() / 2, order.len().saturating_sub(1)] {
            match order.get(at) {
                Some(line) if !chosen.contains(&line.rank) => chosen.push(line.rank),
                _ => {}
            }
        }
        chosen
    }
}

/// Work per step over the baseline's, by rank; `None` without one.
pub fn over_baseline(study: &Study, figures: &[Figures]) -> Vec<Option<f64>> {
    study
        .profiles
        .iter()
        .zip(figures)
        .map(|(p, f)| {
            let before = study.baseline.iter().find(|b| b.who == p.who)?;
            let work = evidence::figures_of(before).work_ms;
            (work > 0.0).then_some(f.work_ms / work)
        })
        .collect()
}

/// Lays the report out.
pub fn report(
    study: &Study,
    verdict: Verdict,
    figures: &[Figures],
    collectives: Option<Matched>,
    missing: Vec<Who>,
) -> Comparison {
    let ratios = over_baseline(study, figures);
    let all: Vec<&Figures> = figures.iter().collect();
    let ones = vec![1.0; figures.len()];
    let lines = study.profiles.iter().enumerate().map(|(i, p)| {
        let f = &figures[i];
        let peers = figures.len() > 1 && f.steps > 0;
        RankLine {
            rank: p.who,
            steps: f.steps,
            steps_from: p.source,
            window_ms: p.window_ns() as f64 / 1e6,
            window_start_s: (p.epoch_ns + p.window.0) as f64 / 1e9,
            busy_ms: p.busy_ns as f64 / 1e6,
            busy_ms_per_step: f.busy_ms,
            work_ms_per_step: f.work_ms,
            host_gap_ms_per_step: f.wall_ms - f.busy_ms,
            gap_ms_per_step: peers.then(|| evidence::gap_of(&all, i, &ones).ms),
            requests_mean: f.requests,
            extend_share: f.extend_share,
            launches_per_step: f.launches,
            kinds: f.kinds.iter().map(|(k, v)| (*k, KindLine::from(v))).collect(),
            families_ms_per_step: f.families.clone(),
            work_over_baseline: ratios[i],
            partial: p.partial,
            notes: p.notes.clone(),
        }
    });
    let ranks: Vec<RankLine> = lines.collect();
    let (mut unknown, mut total) = (0.0, 0.0);
    for f in figures {
        unknown += f.families.get(&Family::Other).copied().unwrap_or(0.0);
        total += f.families.values().sum::<f64>();
    }
    Comparison {
        kernels: kernel_lines(&study.profiles, verdict.rank),
        verdict,
        ranks,
        collectives,
        missing,
        unknown_share: if total > 0.0 { unknown / total } else { 0.0 },
        period_kernel: study.period_kernel.clone(),
        notes: study.notes.clone(),
    }
}

/// The kernels that differ most, at most 24.
fn kernel_lines(profiles: &[RankProfile], culprit: Option<Who>) -> Vec<KernelLine> {
    let n = profiles.len();
    /// Milliseconds and launches per step, by rank.
    type Cells = (Vec<f64>, Vec<f64>);
    let mut table: BTreeMap<(Family, &str), Cells> = BTreeMap::new();
    for (i, p) in profiles.iter().enumerate() {
        let steps = p.steps.len().max(1) as f64;
        for k in &p.kernels {
            let cell = table.entry((k.family, &k.short)).or_insert_with(|| (vec![0.0; n], vec![0.0; n]));
            cell.0[i] += k.total().time_ns as f64 / 1e6 / steps;
            cell.1[i] += k.total().launches as f64 / steps;
        }
    }
    let at = profiles.iter().position(|p| Some(p.who) == culprit);
    let mut lines: Vec<KernelLine> = table
        .into_iter()
        .map(|((family, kernel), (ms, launches))| {
            let most = at.unwrap_or_else(|| (0..n).max_by(|&a, &b| ms[a].total_cmp(&ms[b])).unwrap_or(0));
            let others: Vec<f64> = (0..n).filter(|&i| i != most).map(|i| ms[i]).collect();
            let gap_ms_per_step = ms[most] - evidence::median(&others).unwrap_or(0.0);
            KernelLine {
                family,
                kernel: kernel.to_owned(),
                ms_per_step: ms,
                launches_per_step: launches,
                gap_ms_per_step,
            }
        })
        .collect();
    lines.sort_by(|a, b| b.gap_ms_per_step.abs().total_cmp(&a.gap_ms_per_step.abs()));
    lines.truncate(24);
    lines
}
