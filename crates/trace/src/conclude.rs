//! From what was judged of comparable ranks to the verdict on the whole capture: missing and idle
//! ranks, the baseline, causes, confidence, and the sentence that people read first.

use crate::compare::Study;
use crate::evidence::{self, Figures};
use crate::judge::Judged;
use crate::kernel::Family;
use crate::labels::Labels;
use crate::rank::{Axis, Rank};
use crate::step::RankProfile;
use crate::table::over_baseline;
use crate::trace::{StepSource, Who};
use crate::verdict::{Cause, Confidence, Kind, Ms, Verdict};

/// All that a verdict is concluded from.
pub struct Conclusion<'a> {
    /// What is compared.
    pub study: &'a Study,
    /// Every rank's figures.
    pub figures: &'a [Figures],
    /// Ranks without work, by place.
    pub idle: &'a [usize],
    /// All others.
    pub active: &'a [usize],
    /// Ranks that should be there and are not.
    pub missing: &'a [Who],
}

impl Conclusion<'_> {
    /// The verdict on the whole capture, from what was judged of the `members` that tell most.
    pub fn verdict(&self, judged: Option<&Judged>, members: &[usize]) -> Verdict {
        if self.study.profiles.iter().all(|p| p.rows == 0) {
            return self.insufficient("none of the traces has a kernel: was the GPU profiled?".into());
        }
        if let Some(why) = self.study.mixed() {
            return self.insufficient(why);
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
        let stop = if why.ends_with('?') { "" } else { "." };
        let sentence = format!("The traces do not tell: {why}{stop}");
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
        if (j.usual - 1.0).abs() > 0.02 {
            reasons.push(format!(
                "in the baseline it needed {:.2} times the ranks' median already, which is taken out of its gap",
                1.0 / j.usual
            ));
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
        v.sentence = sentence_of(&v, who, j.reasons.last());
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

/// `doubt` is what speaks against any kind, where the kind says so.
fn sentence_of(v: &Verdict, who: Who, doubt: Option<&String>) -> String {
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
            let why = doubt.map(String::as_str).unwrap_or("the evidence is contradictory");
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
pub fn confirms(v: &Verdict, suspect: Option<&Labels>) -> Option<bool> {
    let suspect = suspect?;
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
