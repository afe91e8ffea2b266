//! From the diagnosis of one group of ranks to the verdict on the whole capture: missing and idle
//! ranks, the baseline, causes, confidence, and the sentence that people read first.

use crate::comparison::{ComparisonInput, Suspect};
use crate::diagnosis::Diagnosis;
use crate::host::HostFinding;
use crate::kernel::Family;
use crate::ms::Ms;
use crate::profile::RankProfile;
use crate::rank::{Axis, Rank, RankId};
use crate::split::{Split, StepSplit};
use crate::stats::{RankStats, kernel_table, median};
use crate::step::{MIN_STEPS, StepKind, StepSource};
use crate::verdict::{Cause, Confidence, Kind, Place, Verdict};

use super::sentence;

/// A rank is starved when its peers' batches are this many times its own.
const STARVED: f64 = 5.0;
/// Peers with fewer requests in their batches have little to do themselves.
const STARVED_PEERS: f64 = 8.0;

/// A rank whose steps take so many times as long as its peers', and so many milliseconds longer, is not like them.
const SLOWER: f64 = 2.0;
const SLOWER_MS: f64 = 1.0;

/// Everything that the verdict is concluded from.
pub struct Conclusion<'a> {
    pub input: &'a ComparisonInput,
    /// Of each rank, in the order of the profiles.
    pub stats: &'a [RankStats],
    /// Indices of ranks without work.
    pub idle: &'a [usize],
    /// Indices of all others.
    pub active: &'a [usize],
    /// Ranks that should be there but are not.
    pub missing: &'a [RankId],
}

impl Conclusion<'_> {
    /// The verdict on the whole capture, from the most significant diagnosis, of the group `members`.
    pub fn verdict(&self, diagnosis: Option<&Diagnosis>, members: &[usize]) -> Verdict {
        if self.input.profiles.iter().all(|p| p.rows == 0) {
            return self.without_kernels();
        }
        if let Some(why) = self.input.mixed_captures().or_else(|| self.input.mixed_periods()) {
            return self.insufficient(why);
        }
        match diagnosis {
            Some(d) if d.outlier.is_some() => self.about_rank(d, members),
            _ if !self.idle.is_empty() && self.idle.len() < self.input.profiles.len() => {
                self.idle_tail(diagnosis)
            }
            None if self.input.profiles.len() < 2 => {
                let alone = "one rank alone has no peers to compare it with";
                self.all_slow().unwrap_or_else(|| self.insufficient(alone.into()))
            }
            None if self.input.profiles.iter().any(|p| p.source == StepSource::PerSecond) => {
                let unknown_steps = "nothing tells the steps apart: no annotation, and no kernel that all ranks run in proportion";
                self.insufficient(unknown_steps.into())
            }
            None => self.all_slow().unwrap_or_else(|| {
                self.insufficient(
                    "no two ranks run the same layers; give a baseline of the same ranks".into(),
                )
            }),
            Some(d) => {
                self.all_slow().or_else(|| self.starved(members)).unwrap_or_else(|| self.no_finding(d))
            }
        }
    }

    /// The verdict on traces without any kernel, as servers on CPUs give them: their annotations tell only
    /// who had steps to run.
    fn without_kernels(&self) -> Verdict {
        let profiles = &self.input.profiles;
        let idle: Vec<RankId> =
            profiles.iter().filter(|p| p.steps.is_empty() && !p.partial).map(|p| p.rank).collect();
        let busy = profiles.iter().filter(|p| p.steps.len() >= MIN_STEPS).count();
        if idle.is_empty() || busy == 0 || idle.len() + busy < profiles.len() {
            return self.insufficient("none of the traces has a kernel: was the GPU profiled?".into());
        }
        let sentence = format!("{} had no step to run while its peers were busy.", list(&idle));
        let mut v = Verdict::without_rank(Kind::IdleTail, Confidence::Medium, sentence);
        v.rank = idle.first().copied();
        v.also = idle.get(1..).unwrap_or_default().to_vec();
        v.reasons.push("there are no kernels in the traces, only annotated steps of the CPU".into());
        v
    }

    fn insufficient(&self, why: String) -> Verdict {
        let stop = if why.ends_with('?') { "" } else { "." };
        let sentence = format!("The traces do not tell: {why}{stop}");
        let mut v = Verdict::without_rank(Kind::InsufficientEvidence, Confidence::Low, sentence);
        v.reasons.push(why);
        v
    }

    fn no_finding(&self, diagnosis: &Diagnosis) -> Verdict {
        if diagnosis.kind == Kind::InsufficientEvidence {
            let mut v = self.insufficient(diagnosis.reasons.first().cloned().unwrap_or_default());
            v.reasons = diagnosis.reasons.clone();
            return v;
        }
        if !self.missing.is_empty() {
            let missing = are_missing(self.missing);
            return self.insufficient(format!("the ranks that are here do not differ, but {missing}"));
        }
        if self.input.profiles.iter().any(|p| p.partial) {
            return self.insufficient("what is readable does not differ, but a file ends too early".into());
        }
        if let Some(why) = self.slower_by_host() {
            return self.insufficient(why);
        }
        let works: Vec<f64> = self.active.iter().map(|&i| self.stats[i].work_ms).collect();
        let typical = Ms(median(&works).unwrap_or(0.0));
        let steps = self.active.iter().map(|&i| self.stats[i].steps).min().unwrap_or(0);
        let confidence = if steps >= 8 { Confidence::High } else { Confidence::Medium };
        let sentence = format!("No rank stands out: all need about {typical} of GPU work per step.");
        Verdict::without_rank(Kind::NoFinding, confidence, sentence)
    }

    /// Where the steps of one rank take a multiple of its peers' by time without any kernel: people lose that time,
    /// whatever the GPUs' work says.
    fn slower_by_host(&self) -> Option<String> {
        self.longest_by_host().map(|told| format!("the GPUs have alike work, but {told}"))
    }

    fn longest_by_host(&self) -> Option<String> {
        let step_ms = |i: usize| self.stats[i].split.work + self.stats[i].split.host;
        let slowest = *self.active.iter().max_by(|a, b| step_ms(**a).total_cmp(&step_ms(**b)))?;
        let peers: Vec<f64> = self.active.iter().filter(|&&i| i != slowest).map(|&i| step_ms(i)).collect();
        let (mine, typical) = (step_ms(slowest), median(&peers)?);
        let is_slower = mine >= SLOWER * typical && mine - typical >= SLOWER_MS;
        let rank = self.input.profiles[slowest].rank;
        is_slower.then(|| {
            format!(
                "a step of {rank} takes {}, {:.1} times its peers', by time in which no kernel runs",
                Ms(mine),
                mine / typical
            )
        })
    }

    fn idle_tail(&self, diagnosis: Option<&Diagnosis>) -> Verdict {
        let names: Vec<RankId> = self.idle.iter().map(|&i| self.input.profiles[i].rank).collect();
        if diagnosis.is_some_and(|d| d.kind == Kind::InsufficientEvidence) && self.active.len() > 1 {
            let why = diagnosis.and_then(|d| d.reasons.first().cloned()).unwrap_or_default();
            let mut v = self.insufficient(why);
            v.reasons.push(format!("{} had no work in the window", list(&names)));
            return v;
        }
        let sentence = format!("{} had no work while its peers were busy.", list(&names));
        // A few steps of one request say little of where requests go.
        let peers = || self.active.iter().map(|&i| &self.stats[i]);
        let are_busy = peers().any(|p| p.steps >= MIN_STEPS && p.requests.is_none_or(|n| n >= STARVED_PEERS));
        let sure = names.len() == 1 && are_busy && self.missing.is_empty();
        let confidence = if sure { Confidence::High } else { Confidence::Medium };
        let mut v = Verdict::without_rank(Kind::IdleTail, confidence, sentence);
        v.rank = names.first().copied();
        v.also = names.get(1..).unwrap_or_default().to_vec();
        v
    }

    /// The verdict that a rank has next to no work: its decode batches are a fifth of its peers' or less.
    fn starved(&self, members: &[usize]) -> Option<Verdict> {
        let batch = |i: usize| self.stats[i].kinds.get(&StepKind::Decode).and_then(|k| k.requests);
        let (at, mine) =
            members.iter().filter_map(|&i| Some((i, batch(i)?))).min_by(|a, b| a.1.total_cmp(&b.1))?;
        let peers: Vec<f64> = members
            .iter()
            .filter(|&&i| i != at && self.stats[i].steps >= MIN_STEPS)
            .filter_map(|&i| batch(i))
            .collect();
        let typical = median(&peers).filter(|t| *t >= STARVED_PEERS && *t >= STARVED * mine)?;
        let rank = self.input.profiles[at].rank;
        let sentence = format!(
            "{rank} idles for want of requests: {mine:.0} in its batches, {typical:.0} in its peers'."
        );
        let sure = peers.len() >= 2 && self.missing.is_empty() && !self.input.profiles[at].partial;
        let confidence = if sure { Confidence::High } else { Confidence::Medium };
        let mut v = Verdict::without_rank(Kind::IdleTail, confidence, sentence);
        v.rank = Some(rank);
        v.step = Some(self.step_split(at, members));
        Some(v)
    }

    /// The verdict that every rank is slower than its own baseline, by a share that no noise explains.
    fn all_slow(&self) -> Option<Verdict> {
        let ratios = self.input.work_over_baseline(self.stats);
        let known: Option<Vec<f64>> = self.active.iter().map(|&i| ratios[i]).collect();
        let known = known.filter(|k| !k.is_empty() && k.iter().all(|r| *r >= 1.1))?;
        let typical = median(&known)?;
        let sentence = format!(
            "Every rank needs more GPU time per step than in the baseline, about {typical:.2} times."
        );
        let mut v = Verdict::without_rank(Kind::AllSlow, Confidence::Medium, sentence);
        let (low, high) = known.iter().fold((f64::MAX, f64::MIN), |(l, h), r| (l.min(*r), h.max(*r)));
        v.reasons.push(format!("work per step over the baseline's: {low:.2} to {high:.2}"));
        if high / low <= 1.1 && self.active.iter().all(|&i| self.stats[i].steps >= 8) {
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
                let before = self.input.baseline.iter().find(|b| b.rank == self.input.profiles[i].rank)?;
                Some(self.stats[i].requests? / RankStats::new(before).requests.filter(|r| *r > 0.0)?)
            })
            .collect();
        median(&grown).filter(|g| *g >= 1.2)
    }

    fn about_rank(&self, diagnosis: &Diagnosis, members: &[usize]) -> Verdict {
        let outlier = members[diagnosis.outlier.unwrap_or(0)];
        let rank = self.culprit(outlier, members);
        let f = &self.stats[outlier];
        let causes = if diagnosis.by_host { Vec::new() } else { self.causes(diagnosis, members) };
        let known: f64 = causes.iter().filter(|c| c.family != Family::Other).map(|c| c.share).sum();
        let explained = (!diagnosis.by_host).then_some((known.min(1.0) * 100.0).round() / 100.0);
        let (doubts, reasons) = self.doubts_and_reasons(diagnosis, explained);
        let confidence = match diagnosis.kind {
            Kind::InsufficientEvidence => Confidence::Low,
            _ => Confidence::after_doubts(doubts),
        };
        let declined = diagnosis.kind == Kind::InsufficientEvidence;
        let step = self.step_split(outlier, members);
        let (by, lost_ms, lost_share) = match diagnosis.host.filter(|_| diagnosis.by_host) {
            Some(host) => (Place::Host, host.beyond_ms(), host.beyond_ms() / step.peers_wall_ms.max(1e-9)),
            None => (Place::Gpu, diagnosis.gap.ms, diagnosis.gap.relative()),
        };
        let mut v = Verdict {
            kind: diagnosis.kind,
            rank: (!declined).then_some(rank),
            by: Some(by),
            lost_ms_per_step: Some(lost_ms),
            host_gap_ms_per_step: Some(f.wall_ms - f.busy_ms),
            host_expected_ms_per_step: diagnosis.host.map(|h| h.expected_ms),
            step: Some(step),
            confidence,
            operator: None,
            causes,
            explained_share: explained,
            lost_share: Some(lost_share),
            also: diagnosis.also.iter().map(|&i| self.input.profiles[members[i]].rank).collect(),
            confirms: None,
            sentence: String::new(),
            since_baseline: None,
            reasons,
        };
        let told = sentence::SentenceInput {
            work_ms: diagnosis.gap.ms,
            batches: self.batches(outlier, members),
            doubt: diagnosis.reasons.last(),
            too_few: diagnosis.too_few,
        };
        v.sentence = sentence::of(&v, rank, told);
        if declined && diagnosis.too_few.is_some() {
            // The other reasons speak of "its" batches and host, so who is meant comes first.
            let longest = self.longest_by_host().map_or_else(String::new, |told| format!("{told}; "));
            let seen = sentence::seen(&v, rank);
            v.reasons.insert(0, format!("so few steps are no finding, and show this: {longest}{seen}"));
        }
        v
    }

    /// What is missing for full confidence, and what the verdict rests on. `explained` is the share of the
    /// gap that families of known kernels account for.
    fn doubts_and_reasons(&self, diagnosis: &Diagnosis, explained: Option<f64>) -> (usize, Vec<String>) {
        let mut doubts = diagnosis.doubts;
        let mut reasons = diagnosis.reasons.clone();
        if let Some(explained) = explained.filter(|e| *e < 0.8) {
            doubts += 1;
            reasons.push(format!(
                "families of known kernels explain only {:.0} % of the gap",
                explained * 100.0
            ));
        }
        if !self.missing.is_empty() {
            doubts += 1;
            reasons.push(are_missing(self.missing));
        }
        if (diagnosis.baseline_factor - 1.0).abs() > 0.02 {
            reasons.push(format!(
                "in the baseline it needed {:.2} times the ranks' median already, which is taken out of its gap",
                1.0 / diagnosis.baseline_factor
            ));
        }
        if !self.idle.is_empty() {
            let names: Vec<RankId> = self.idle.iter().map(|&i| self.input.profiles[i].rank).collect();
            reasons.push(format!("{} had no work in the window", list(&names)));
        }
        if let Some(host) =
            diagnosis.host.filter(|h| !diagnosis.by_host && h.finding == HostFinding::OfItsWork)
        {
            reasons.push(format!(
                "its host takes {:.1} times as long as its launches account for at its peers' pace, which its larger batches explain",
                host.ratio
            ));
        }
        (doubts, reasons)
    }

    /// The mean requests of the batches of rank `outlier`, and the median of its peers', where the steps tell them.
    fn batches(&self, outlier: usize, members: &[usize]) -> Option<(f64, f64)> {
        let peers = members.iter().filter(|i| **i != outlier);
        let theirs: Vec<f64> = peers.filter_map(|&i| self.stats[i].requests).collect();
        self.stats[outlier].requests.zip(median(&theirs))
    }

    /// Where the steps of rank `outlier` take longer than those of its peers.
    fn step_split(&self, outlier: usize, members: &[usize]) -> StepSplit {
        let peers = |of: &dyn Fn(&Split) -> f64| {
            let others: Vec<f64> =
                members.iter().filter(|i| **i != outlier).map(|&i| of(&self.stats[i].split)).collect();
            median(&others).unwrap_or(0.0)
        };
        let typical = Split::from_parts(|part| peers(&|s| s.part(part)));
        let steps = &self.input.profiles[outlier].steps;
        StepSplit::new(self.stats[outlier].split, typical, peers(&Split::wall), steps)
    }

    /// The outlier, or its whole replica where replicas were compared.
    fn culprit(&self, outlier: usize, members: &[usize]) -> RankId {
        let rank = self.input.profiles[outlier].rank;
        let replicas = members.len() < self.active.len()
            && members.iter().any(|&i| self.input.profiles[i].rank.get(Axis::Dp) != rank.get(Axis::Dp));
        match rank.get(Axis::Dp).filter(|_| replicas) {
            Some(dp) => RankId::Rank(Rank::dp(dp)),
            None => rank,
        }
    }

    fn causes(&self, diagnosis: &Diagnosis, members: &[usize]) -> Vec<Cause> {
        let profiles: Vec<&RankProfile> = members.iter().map(|&i| &self.input.profiles[i]).collect();
        let outlier = diagnosis.outlier.unwrap_or(0);
        let kernels = kernel_table(&profiles);
        let mut causes: Vec<Cause> = diagnosis
            .gap
            .families
            .iter()
            .filter(|(family, ms)| **family != Family::Communication && **ms > 0.02 * diagnosis.gap.ms)
            .map(|(&family, &ms)| {
                let worst = kernels
                    .iter()
                    .filter(|((f, _), _)| *f == family)
                    .map(|((_, name), row)| (*name, row.gap_ms(outlier)))
                    .max_by(|a, b| a.1.total_cmp(&b.1).then_with(|| b.0.cmp(a.0)));
                Cause {
                    family,
                    kernel: worst.map_or_else(String::new, |(name, _)| name.to_owned()),
                    share: ms / diagnosis.gap.ms,
                    kernel_share: worst.map_or(0.0, |(_, ms)| ms / diagnosis.gap.ms),
                    gap_ms_per_step: ms,
                }
            })
            .collect();
        causes.sort_by(|a, b| b.share.total_cmp(&a.share));
        causes
    }
}

/// `DP1`, `DP1 and DP3`, `DP1, DP3 and 6 more`.
fn list(names: &[RankId]) -> String {
    match names {
        [] => String::new(),
        [one] => one.to_string(),
        [a, b] => format!("{a} and {b}"),
        [a, b, rest @ ..] => format!("{a}, {b} and {} more", rest.len()),
    }
}

fn are_missing(ranks: &[RankId]) -> String {
    format!("{} {} missing", list(ranks), if ranks.len() == 1 { "is" } else { "are" })
}

/// Whether the verdict confirms the suspicion. A verdict about the suspected rank confirms it, one
/// about another rank, or about none, refutes it; `None` where the evidence does not tell. Of a rank that
/// is said to have less to do, a verdict that it has more refutes that, and one that a peer has more, which
/// may be the other side of it, does not tell; nor does, of one that is said to have more or to be slow, that
/// any is idle.
pub fn confirms(v: &Verdict, suspect: Option<&Suspect>) -> Option<bool> {
    let suspect = suspect?;
    match (v.kind, v.rank) {
        (Kind::InsufficientEvidence, _) => None,
        (kind, Some(rank)) => {
            let labels = rank.labels();
            let mut shared =
                suspect.rank.0.iter().filter_map(|(k, s)| Some((s, labels.0.get(k)?))).peekable();
            shared.peek()?;
            let is_it = shared.all(|(a, b)| a == b);
            match (kind, suspect.has_less) {
                (Kind::UnevenWork, true) => is_it.then_some(false),
                (Kind::IdleTail, false) => None,
                _ => Some(is_it),
            }
        }
        (_, None) => Some(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kind: Kind, dp: Option<u16>) -> Verdict {
        let rank = dp.map(|dp| RankId::Rank(Rank::dp(dp)));
        Verdict { rank, ..Verdict::without_rank(kind, Confidence::High, String::new()) }
    }

    #[test]
    fn a_verdict_confirms_a_suspicion_of_the_same_rank_and_the_same_side() {
        let more = Suspect { rank: Rank::dp(1).labels(), has_less: false };
        let less = Suspect { has_less: true, ..more.clone() };
        for (verdict, with_more, with_less) in [
            (of(Kind::UnevenWork, Some(1)), Some(true), Some(false)),
            (of(Kind::UnevenWork, Some(0)), Some(false), None),
            (of(Kind::IdleTail, Some(1)), None, Some(true)),
            (of(Kind::IdleTail, Some(0)), None, Some(false)),
            (of(Kind::SlowRank, Some(1)), Some(true), Some(true)),
            (of(Kind::SlowRank, Some(0)), Some(false), Some(false)),
            (of(Kind::NoFinding, None), Some(false), Some(false)),
            (of(Kind::InsufficientEvidence, Some(1)), None, None),
        ] {
            let told = (confirms(&verdict, Some(&more)), confirms(&verdict, Some(&less)));
            assert_eq!(told, (with_more, with_less), "{verdict:?}");
        }
        assert_eq!(confirms(&of(Kind::UnevenWork, Some(1)), None), None);
        let elsewhere = Suspect { rank: Rank::default().labels(), has_less: false };
        assert_eq!(confirms(&of(Kind::UnevenWork, Some(1)), Some(&elsewhere)), None, "no axis in common");
    }
}
