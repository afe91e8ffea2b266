//! What a verdict says: the kind of difference, its confidence and its causes.

use serde::{Deserialize, Serialize};

use crate::kernel::Family;
use crate::ms::Ms;
use crate::operator::Operator;
use crate::printable::{LIMIT, printable};
use crate::rank::RankId;
use crate::since::Since;
use crate::split::StepSplit;

/// What kind of difference between the ranks was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// One rank was given more to do.
    UnevenWork,
    /// One rank does the same work more slowly.
    SlowRank,
    /// All ranks are slower than in the baseline.
    AllSlow,
    /// One rank has no work.
    IdleTail,
    /// No difference beyond noise.
    NoFinding,
    /// The traces do not allow a verdict.
    InsufficientEvidence,
}

impl Kind {
    /// The name in JSON and in notifications.
    pub const fn name(self) -> &'static str {
        match self {
            Self::UnevenWork => "uneven_work",
            Self::SlowRank => "slow_rank",
            Self::AllSlow => "all_slow",
            Self::IdleTail => "idle_tail",
            Self::NoFinding => "no_finding",
            Self::InsufficientEvidence => "insufficient_evidence",
        }
    }

    /// The name for people.
    pub const fn title(self) -> &'static str {
        match self {
            Self::UnevenWork => "uneven work",
            Self::SlowRank => "slow rank",
            Self::AllSlow => "all ranks slow",
            Self::IdleTail => "idle rank",
            Self::NoFinding => "no finding",
            Self::InsufficientEvidence => "insufficient evidence",
        }
    }
}

/// How much the evidence carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Confidence {
    /// Much is missing or contradictory: read the reasons first.
    Low,
    /// One or two pieces of evidence are missing.
    Medium,
    /// Independent evidence agrees.
    High,
}

impl Confidence {
    /// The name in JSON and for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }

    /// The confidence that is left after this number of doubts.
    pub const fn after_doubts(doubts: usize) -> Self {
        match doubts {
            0 => Self::High,
            1 | 2 => Self::Medium,
            _ => Self::Low,
        }
    }
}

/// What of a rank is slow, or has more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// Its kernels.
    Gpu,
    /// What launches them: the engine's process.
    Host,
}

/// One family's part in the gap.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cause {
    /// The family.
    pub family: Family,
    /// The kernel of it that differs most.
    pub kernel: String,
    /// The family's share of the gap, 0 to 1 (above 1 where other families save time).
    pub share: f64,
    /// The kernel's own share of the gap.
    pub kernel_share: f64,
    /// What the family costs beyond the peers, milliseconds per step.
    pub gap_ms_per_step: f64,
}

/// What comparing the ranks found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// The kind of difference.
    pub kind: Kind,
    /// The culprit; `null` when there is none.
    pub rank: Option<RankId>,
    /// Where the cause is; `null` when there is no culprit.
    pub by: Option<Place>,
    /// Its GPU work per step beyond the median of its peers, milliseconds; by its host, the host time
    /// beyond what its work accounts for.
    pub lost_ms_per_step: Option<f64>,
    /// Its wall time per step without any kernel, milliseconds.
    pub host_gap_ms_per_step: Option<f64>,
    /// What of that its launches account for at its peers' pace, milliseconds.
    pub host_expected_ms_per_step: Option<f64>,
    /// Where its steps take longer than its peers'.
    pub step: Option<StepSplit>,
    /// How far the evidence supports it.
    pub confidence: Confidence,
    /// Where its host loses the time, if the trace has CPU rows that tell it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operator: Option<Operator>,
    /// Families by their share of the gap, the largest first.
    pub causes: Vec<Cause>,
    /// The share of the gap that families of known kernels explain.
    pub explained_share: Option<f64>,
    /// The loss as a share of what the peers need: of their GPU work; by its host, of their step.
    pub lost_share: Option<f64>,
    /// Other ranks that stand out, the largest gap first.
    pub also: Vec<RankId>,
    /// Whether it confirms the suspicion that was given; `null` without one, or if the evidence does
    /// not tell.
    pub confirms: Option<bool>,
    /// The verdict in a sentence.
    pub sentence: String,
    /// What changed since the baseline, where there is one to compare with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since_baseline: Option<Since>,
    /// What speaks for it and against it.
    pub reasons: Vec<String>,
}

impl Verdict {
    /// The reasons that the sentence does not contain already, and the other ranks that stand out.
    pub fn points(&self) -> Vec<String> {
        let mut points: Vec<String> =
            self.reasons.iter().filter(|r| !self.sentence.contains(r.as_str())).cloned().collect();
        if self.rank.is_some() && !self.also.is_empty() {
            let names: Vec<String> = self.also.iter().map(RankId::to_string).collect();
            let stand = if names.len() == 1 { "stands" } else { "stand" };
            points.push(format!("{} {stand} out, too", names.join(", ")));
        }
        points
    }

    /// Whether a host is blamed, so that operators of the host may tell more.
    pub fn blames_a_host(&self) -> bool {
        self.kind == Kind::SlowRank && self.by == Some(Place::Host)
    }

    /// Names the operator in which the blamed host loses its time.
    pub fn name_operator(&mut self, operator: Operator) {
        let (name, own, peers) = (&operator.name, operator.ms_per_step, operator.peers_ms_per_step);
        // "It" is the host time of the sentence itself, so what changed since the baseline comes last.
        let since = self.since_baseline.as_ref().map(Since::sentence).unwrap_or_default();
        let own_words = self.sentence.strip_suffix(&since).unwrap_or(&self.sentence).trim_end();
        let told = format!(
            "{own_words} Most of it is in `{}`: {} a step, {} on its peers. {since}",
            printable(name, LIMIT),
            Ms(own),
            Ms(peers)
        );
        self.sentence = told.trim_end().to_owned();
        self.operator = Some(operator);
    }

    /// Tells what changed since the baseline.
    pub(crate) fn tell_since(&mut self, since: Since) {
        self.sentence = format!("{} {}", self.sentence.trim_end(), since.sentence());
        self.since_baseline = Some(since);
    }

    /// A verdict without a culprit.
    pub(crate) fn without_rank(kind: Kind, confidence: Confidence, sentence: String) -> Self {
        Self {
            kind,
            rank: None,
            by: None,
            lost_ms_per_step: None,
            host_gap_ms_per_step: None,
            host_expected_ms_per_step: None,
            step: None,
            confidence,
            operator: None,
            causes: Vec::new(),
            explained_share: None,
            lost_share: None,
            also: Vec::new(),
            confirms: None,
            sentence,
            since_baseline: None,
            reasons: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_confidences_are_read_back_from_their_names() {
        for kind in [
            Kind::UnevenWork,
            Kind::SlowRank,
            Kind::AllSlow,
            Kind::IdleTail,
            Kind::NoFinding,
            Kind::InsufficientEvidence,
        ] {
            let json = format!("{:?}", kind.name());
            assert_eq!(serde_json::to_string(&kind).expect("it serialises"), json);
            assert_eq!(serde_json::from_str::<Kind>(&json).expect("it is read back"), kind);
        }
        for confidence in [Confidence::Low, Confidence::Medium, Confidence::High] {
            let json = format!("{:?}", confidence.name());
            assert_eq!(serde_json::to_string(&confidence).expect("it serialises"), json);
            assert_eq!(serde_json::from_str::<Confidence>(&json).expect("it is read back"), confidence);
        }
    }
}
