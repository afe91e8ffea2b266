//! Ranks of one capture to a [`Comparison`]: who may be compared with whom, the verdict, and the
//! tables behind it. Serialised, a comparison is the JSON that scripts rely on (`docs/compare.md`).

use std::collections::BTreeMap;

use serde::Serialize;

use crate::decide::incident::{Finding, VerdictNote};
use crate::decide::signal::rank::{Axis, Rank};
use crate::explain::collective::Matched;
use crate::explain::evidence::{self, Figures, KindFigures};
use crate::explain::judge::{Judged, judge};
use crate::explain::kernel::Family;
use crate::explain::step::RankProfile;
use crate::explain::trace::{StepKind, StepSource, Who};
use crate::explain::verdict::{Cause, Confidence, Kind, Ms, Verdict};

/// What is compared.
#[derive(Debug, Default)]
pub struct Study {
    /// The capture's ranks.
    pub profiles: Vec<RankProfile>,
    /// The same ranks at a time when all was well; may be empty.
    pub baseline: Vec<RankProfile>,
    /// What fired the rule.
    pub hypothesis: Option<Finding>,
    /// What readers found worth saying: files left out, ranks assumed.
    pub notes: Vec<String>,
    /// Ranks whose files could not be read.
    pub unreadable: Vec<Who>,
    /// Kernel that told the steps, where nothing else did.
    pub period_kernel: Option<String>,
}

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
    /// The part that notifications carry.
    pub fn note(&self) -> VerdictNote {
        let v = &self.verdict;
        VerdictNote {
            kind: v.kind.name().into(),
            rank: v.rank.map(Who::labels),
            sentence: v.sentence.clone(),
            lost_ms_per_step: v.lost_ms_per_step,
            confidence: v.confidence.name().into(),
            confirms: v.confirms,
        }
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

/// Compares the ranks of a capture.
pub fn compare(study: &Study) -> Comparison {
    let figures: Vec<Figures> = study.profiles.iter().map(evidence::figures_of).collect();
    let usual = usual_factors(study, &figures);
    let missing = missing_ranks(study);
    let idle: Vec<usize> = (0..figures.len()).filter(|&i| is_idle(&study.profiles, &figures, i)).collect();
    let active: Vec<usize> = (0..figures.len()).filter(|i| !idle.contains(i)).collect();
    let (judged, members) = judge_groups(study, &figures, &usual, &active);
    let mut verdict =
        Conclusion { study, figures: &figures, idle: &idle, active: &active, missing: &missing }
            .verdict(judged.as_ref(), &members);
    verdict.confirms = confirms(&verdict, study.hypothesis.as_ref());
    report(study, verdict, &figures, judged.and_then(|j| j.matched), missing)
}

/// The axes on which ranks differ: names need no other.
pub fn telling_axes(ranks: &[Who]) -> Vec<Axis> {
    let ranks: Vec<Rank> = ranks.iter().filter_map(|w| rank_of(*w)).collect();
    Axis::ALL.into_iter().filter(|&a| ranks.iter().any(|r| r.get(a) != ranks[0].get(a))).collect()
}

/// A rank named only by `axes`: `TP0 DP2` of ranks that are all TP0 is `DP2`. Without axes it stays.
pub fn named_by(who: Who, axes: &[Axis]) -> Who {
    match who {
        Who::Rank(rank) if !axes.is_empty() => Who::Rank(
            rank.iter().filter(|(a, _)| axes.contains(a)).fold(Rank::NONE, |r, (a, i)| r.with(a, i)),
        ),
        other => other,
    }
}

fn rank_of(who: Who) -> Option<Rank> {
    match who {
        Who::Rank(rank) => Some(rank),
        Who::Pid(_) => None,
    }
}

/// What takes a rank's constant difference out: the baseline's median over its own, or 1.
fn usual_factors(study: &Study, figures: &[Figures]) -> Vec<f64> {
    let before: Vec<Option<f64>> = study
        .profiles
        .iter()
        .map(|p| study.baseline.iter().find(|b| b.who == p.who).map(|b| evidence::figures_of(b).work_ms))
        .collect();
    let typical = evidence::median(&before.iter().flatten().copied().collect::<Vec<_>>());
    figures
        .iter()
        .zip(before)
        .map(|(_, own)| match (typical, own) {
            (Some(t), Some(o)) if o > 0.0 && t > 0.0 => t / o,
            _ => 1.0,
        })
        .collect()
}

/// A whole file without work: no kernels, or only batches without requests.
fn is_idle(profiles: &[RankProfile], figures: &[Figures], at: usize) -> bool {
    let p = &profiles[at];
    if p.partial {
        return false;
    }
    let rows: Vec<f64> = profiles.iter().map(|p| p.rows as f64).collect();
    let no_batches = !p.steps.is_empty() && p.steps.iter().all(|s| s.kind == StepKind::Idle);
    let next_to_nothing =
        (p.rows as f64) < 0.01 * evidence::median(&rows).unwrap_or(0.0) && figures[at].steps < 2;
    p.rows == 0 || no_batches || next_to_nothing
}

/// Ranks that the others' numbers, or the size of the world, say there are.
fn missing_ranks(study: &Study) -> Vec<Who> {
    let profiles = &study.profiles;
    let ranks: Vec<Rank> = profiles.iter().filter_map(|p| rank_of(p.who)).collect();
    let varying = telling_axes(&profiles.iter().map(|p| p.who).collect::<Vec<_>>());
    let [axis] = varying.as_slice() else { return study.unreadable.clone() };
    let world = profiles.iter().filter_map(|p| p.world_size).max().unwrap_or(0);
    let highest = ranks.iter().filter_map(|r| r.get(*axis)).max().map_or(0, |m| u32::from(m) + 1);
    let until = u16::try_from(world.min(4096).max(highest)).unwrap_or(u16::MAX);
    (0..until)
        .filter(|i| !ranks.iter().any(|r| r.get(*axis) == Some(*i)))
        .map(|i| Who::Rank(Rank::NONE.with(*axis, i)))
        .collect()
}

/// Judges every set of ranks that may be compared, and returns the most telling one's result with
/// the places of its members.
fn judge_groups(
    study: &Study,
    figures: &[Figures],
    usual: &[f64],
    active: &[usize],
) -> (Option<Judged>, Vec<usize>) {
    if study.profiles.iter().any(|p| p.source == StepSource::PerSecond && p.rows > 0) {
        return (None, Vec::new());
    }
    let mut best: Option<(Judged, Vec<usize>)> = None;
    for members in groups_of(study, figures, active) {
        if members.len() < 2 {
            continue;
        }
        let profiles: Vec<&RankProfile> = members.iter().map(|&i| &study.profiles[i]).collect();
        let some_figures: Vec<&Figures> = members.iter().map(|&i| &figures[i]).collect();
        let factors: Vec<f64> = members.iter().map(|&i| usual[i]).collect();
        let judged = judge(&profiles, &some_figures, &factors);
        let better = best.as_ref().is_none_or(|(b, _)| weight_of(&judged) > weight_of(b));
        if better {
            best = Some((judged, members));
        }
    }
    best.map_or((None, Vec::new()), |(j, m)| (Some(j), m))
}

/// A finding outweighs a doubt, and a doubt outweighs "nothing found".
fn weight_of(j: &Judged) -> f64 {
    match j.kind {
        Kind::NoFinding => 0.0,
        Kind::InsufficientEvidence => 1.0,
        _ => 2.0 + j.gap.relative(),
    }
}

/// Sets of ranks that run the same layers: one pipeline stage; of several DP replicas with several
/// ranks each, the ranks inside each replica, and one representative rank of every replica.
fn groups_of(study: &Study, figures: &[Figures], active: &[usize]) -> Vec<Vec<usize>> {
    let mut stages: BTreeMap<Option<u16>, Vec<usize>> = BTreeMap::new();
    for &i in active {
        stages.entry(study.profiles[i].who.get(Axis::Pp)).or_default().push(i);
    }
    let mut groups = Vec::new();
    for members in stages.into_values() {
        let mut replicas: BTreeMap<Option<u16>, Vec<usize>> = BTreeMap::new();
        for &i in &members {
            replicas.entry(study.profiles[i].who.get(Axis::Dp)).or_default().push(i);
        }
        if replicas.len() < 2 || replicas.len() == members.len() {
            groups.push(members);
            continue;
        }
        let middle = |ranks: &Vec<usize>| {
            let mut order = ranks.clone();
            order.sort_by(|&a, &b| figures[a].work_ms.total_cmp(&figures[b].work_ms));
            order[order.len() / 2]
        };
        groups.push(replicas.values().map(middle).collect());
        groups.extend(replicas.into_values());
    }
    groups
}

/// All that a verdict is concluded from.
struct Conclusion<'a> {
    study: &'a Study,
    figures: &'a [Figures],
    idle: &'a [usize],
    active: &'a [usize],
    missing: &'a [Who],
}

impl Conclusion<'_> {
    fn verdict(&self, judged: Option<&Judged>, members: &[usize]) -> Verdict {
        if self.study.profiles.iter().all(|p| p.rows == 0) {
            return self.insufficient("none of the traces has a kernel: was the GPU profiled?".into());
        }
        match judged {
            Some(j) if j.at.is_some() => self.about_rank(j, members),
            _ if !self.idle.is_empty() && self.idle.len() < self.study.profiles.len() => self.idle_tail(judged),
            None if self.study.profiles.len() < 2 => {
                self.all_slow().unwrap_or_else(|| self.insufficient("one rank alone has no peers to compare it with".into()))
            }
            None if self.study.profiles.iter().any(|p| p.source == StepSource::PerSecond) => self.insufficient(
                "nothing tells the steps apart: no annotation, and no kernel that all ranks run in proportion".into(),
            ),
            None => self.all_slow().unwrap_or_else(|| {
                self.insufficient("no two ranks run the same layers; give a baseline of the same ranks".into())
            }),
            Some(j) => self.all_slow().unwrap_or_else(|| self.nothing(j)),
        }
    }

    fn insufficient(&self, why: String) -> Verdict {
        let sentence = format!("The traces do not tell: {why}.");
        let mut v = Verdict::without_rank(Kind::InsufficientEvidence, Confidence::Low, sentence);
        v.reasons.push(why);
        v
    }

    fn nothing(&self, j: &Judged) -> Verdict {
        if j.kind == Kind::InsufficientEvidence {
            let mut v = self.insufficient(j.reasons.first().cloned().unwrap_or_default());
            v.reasons = j.reasons.clone();
            return v;
        }
        if !self.missing.is_empty() {
            let names = list(self.missing);
            return self
                .insufficient(format!("the ranks that are here do not differ, but {names} is missing"));
        }
        if self.study.profiles.iter().any(|p| p.partial) {
            return self.insufficient("what is readable does not differ, but a file ends too early".into());
        }
        let works: Vec<f64> = self.active.iter().map(|&i| self.figures[i].work_ms).collect();
        let typical = Ms(evidence::median(&works).unwrap_or(0.0));
        let steps = self.active.iter().map(|&i| self.figures[i].steps).min().unwrap_or(0);
        let confidence = if steps >= 8 { Confidence::High } else { Confidence::Medium };
        let sentence = format!("No rank stands out: all need about {typical} of GPU work per step.");
        Verdict::without_rank(Kind::NoFinding, confidence, sentence)
    }

    fn idle_tail(&self, judged: Option<&Judged>) -> Verdict {
        let names: Vec<Who> = self.idle.iter().map(|&i| self.study.profiles[i].who).collect();
        if judged.is_some_and(|j| j.kind == Kind::InsufficientEvidence) && self.active.len() > 1 {
            let why = judged.and_then(|j| j.reasons.first().cloned()).unwrap_or_default();
            let mut v = self.insufficient(why);
            v.reasons.push(format!("{} had no work in the window", list(&names)));
            return v;
        }
        let sentence = format!("{} had no work while its peers were busy.", list(&names));
        let confidence = if names.len() == 1 { Confidence::High } else { Confidence::Medium };
        let mut v = Verdict::without_rank(Kind::IdleTail, confidence, sentence);
        v.rank = names.first().copied();
        v.also = names.get(1..).unwrap_or_default().to_vec();
        v
    }

    /// Every rank slower than its own baseline by a share that no noise explains.
    fn all_slow(&self) -> Option<Verdict> {
        let ratios = over_baseline(self.study, self.figures);
        let known: Option<Vec<f64>> = self.active.iter().map(|&i| ratios[i]).collect();
        let known = known.filter(|k| !k.is_empty() && k.iter().all(|r| *r >= 1.1))?;
        let typical = evidence::median(&known)?;
        let sentence = format!(
            "Every rank needs more GPU time per step than in the baseline, about {typical:.2} times."
        );
        let mut v = Verdict::without_rank(Kind::AllSlow, Confidence::Medium, sentence);
        let (low, high) = known.iter().fold((f64::MAX, f64::MIN), |(l, h), r| (l.min(*r), h.max(*r)));
        v.reasons.push(format!("work per step over the baseline's: {low:.2} to {high:.2}"));
        if high / low <= 1.1 && self.active.iter().all(|&i| self.figures[i].steps >= 8) {
            v.confidence = Confidence::High;
        }
        if let Some(grown) = self.batches_grew() {
            v.confidence = Confidence::Low;
            v.reasons.push(format!("but batches are {grown:.1} times the baseline's, which may explain it"));
        }
        Some(v)
    }

    fn batches_grew(&self) -> Option<f64> {
        let grown: Vec<f64> = self
            .active
            .iter()
            .filter_map(|&i| {
                let before = self.study.baseline.iter().find(|b| b.who == self.study.profiles[i].who)?;
                Some(self.figures[i].requests? / evidence::figures_of(before).requests.filter(|r| *r > 0.0)?)
            })
            .collect();
        evidence::median(&grown).filter(|g| *g >= 1.2)
    }

    fn about_rank(&self, j: &Judged, members: &[usize]) -> Verdict {
        let place = members[j.at.unwrap_or(0)];
        let who = self.blamed(place, members);
        let f = &self.figures[place];
        let causes = self.causes(j, members);
        let known: f64 = causes.iter().filter(|c| c.family != Family::Other).map(|c| c.share).sum();
        let explained = (known.min(1.0) * 100.0).round() / 100.0;
        let mut doubts = j.doubts;
        let mut reasons = j.reasons.clone();
        if explained < 0.8 {
            doubts += 1;
            reasons.push(format!(
                "families of known kernels explain only {:.0} % of the gap",
                explained * 100.0
            ));
        }
        if !self.missing.is_empty() {
            doubts += 1;
            reasons.push(format!("{} is missing", list(self.missing)));
        }
        if !self.idle.is_empty() {
            let names: Vec<Who> = self.idle.iter().map(|&i| self.study.profiles[i].who).collect();
            reasons.push(format!("{} had no work in the window", list(&names)));
        }
        let confidence = match j.kind {
            Kind::InsufficientEvidence => Confidence::Low,
            _ => Confidence::after(doubts),
        };
        let declined = j.kind == Kind::InsufficientEvidence;
        let mut v = Verdict {
            kind: j.kind,
            rank: (!declined).then_some(who),
            lost_ms_per_step: Some(j.gap.ms),
            host_gap_ms_per_step: Some(f.wall_ms - f.busy_ms),
            confidence,
            causes,
            explained_share: Some(explained),
            lost_share: Some(j.gap.relative()),
            also: j.also.iter().map(|&i| self.study.profiles[members[i]].who).collect(),
            confirms: None,
            sentence: String::new(),
            reasons,
        };
        v.sentence = sentence_of(&v, who);
        v
    }

    /// The rank, or its whole replica when replicas were compared.
    fn blamed(&self, place: usize, members: &[usize]) -> Who {
        let who = self.study.profiles[place].who;
        let replicas = members.len() < self.active.len()
            && members.iter().any(|&i| self.study.profiles[i].who.get(Axis::Dp) != who.get(Axis::Dp));
        match who.get(Axis::Dp).filter(|_| replicas) {
            Some(dp) => Who::Rank(Rank::dp(dp)),
            None => who,
        }
    }

    fn causes(&self, j: &Judged, members: &[usize]) -> Vec<Cause> {
        let profiles: Vec<&RankProfile> = members.iter().map(|&i| &self.study.profiles[i]).collect();
        let kernels = evidence::kernel_gaps(&profiles, j.at.unwrap_or(0));
        let mut causes: Vec<Cause> = j
            .gap
            .families
            .iter()
            .filter(|(family, ms)| **family != Family::Communication && **ms > 0.02 * j.gap.ms)
            .map(|(&family, &ms)| {
                let worst = kernels
                    .iter()
                    .filter(|((f, _), _)| *f == family)
                    .max_by(|a, b| a.1.total_cmp(b.1).then_with(|| b.0.1.cmp(&a.0.1)));
                Cause {
                    family,
                    kernel: worst.map_or_else(String::new, |((_, name), _)| name.clone()),
                    share: ms / j.gap.ms,
                    kernel_share: worst.map_or(0.0, |(_, ms)| ms / j.gap.ms),
                    gap_ms_per_step: ms,
                }
            })
            .collect();
        causes.sort_by(|a, b| b.share.total_cmp(&a.share));
        causes
    }
}

fn sentence_of(v: &Verdict, who: Who) -> String {
    let lost = Ms(v.lost_ms_per_step.unwrap_or(0.0));
    let percent = v.lost_share.unwrap_or(0.0) * 100.0;
    let does = match v.kind {
        Kind::UnevenWork => {
            format!("{who} has more to do than its peers: {lost} of GPU work per step beyond their median")
        }
        Kind::SlowRank => {
            format!("{who} is slower than its peers at the same work: {lost} per step beyond their median")
        }
        _ => {
            let why = v.reasons.last().map(String::as_str).unwrap_or("the evidence is contradictory");
            return format!("{who} stands out by {lost} per step, but the traces do not tell why: {why}.");
        }
    };
    match v.causes.first() {
        Some(c) => format!(
            "{does} (+{percent:.0} %), {:.0} % of it in {} ({}).",
            c.share.min(1.0) * 100.0,
            c.family.name(),
            c.kernel
        ),
        None => format!("{does} (+{percent:.0} %)."),
    }
}

/// `DP1`, `DP1 and DP3`, `DP1, DP3 and 6 more`.
fn list(names: &[Who]) -> String {
    match names {
        [] => String::new(),
        [one] => one.to_string(),
        [a, b] => format!("{a} and {b}"),
        [a, b, rest @ ..] => format!("{a}, {b} and {} more", rest.len()),
    }
}

/// Whether the verdict bears out what fired the rule. A rule blames a rank for its load: a verdict
/// about the same rank confirms, one about another, or about none, refutes.
fn confirms(v: &Verdict, hypothesis: Option<&Finding>) -> Option<bool> {
    let suspect = &hypothesis?.rank;
    match (v.kind, v.rank) {
        (Kind::InsufficientEvidence, _) => None,
        (_, Some(who)) => {
            let labels = who.labels();
            let shared: Vec<_> = suspect.0.iter().filter_map(|(k, s)| Some((s, labels.0.get(k)?))).collect();
            if shared.is_empty() { None } else { Some(shared.iter().all(|(a, b)| a == b)) }
        }
        (_, None) => Some(false),
    }
}

fn over_baseline(study: &Study, figures: &[Figures]) -> Vec<Option<f64>> {
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

fn report(
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
    let mut table: BTreeMap<(Family, &str), (Vec<f64>, Vec<f64>)> = BTreeMap::new();
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
