//! What a rule found when it fired: whom it blames, since when, on which side, and by which numbers;
//! with the words for statistics and sides that rules, findings and messages share.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::signal::sample::ShownBy;
use skewtrap_trace::labels::Labels;
use skewtrap_trace::time::Time;

/// What a rule found when it fired.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// The estimated onset.
    pub onset: Time,
    /// How far off that may be, in seconds.
    pub onset_error_s: f64,
    /// The blamed member: `{"dp_rank": 2}`.
    pub rank: Labels,
    /// On which side it left its peers.
    pub side: Side,
    /// The statistic that crossed its bound.
    pub statistic: Statistic,
    /// The signal that it summarises, by its name in rules (`load`).
    pub signal: Arc<str>,
    /// The value of the statistic when the rule fired.
    pub value: f64,
    /// The bound it crossed.
    pub bound: f64,
    /// Every member's value of the signal at that time, in the order of their labels.
    pub members: Vec<MemberValue>,
    /// The numbers that show it, in a sentence.
    pub evidence: Option<String>,
    /// The blamed member's sample nearest to the onset.
    #[serde(default)]
    pub shown_by: Option<ShownBy>,
}

/// One member's value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemberValue {
    /// `{"dp_rank": 2}`.
    pub rank: Labels,
    /// In the signal's unit.
    pub value: f64,
    /// Whether it went silent.
    pub stale: bool,
}

/// The side on which a member left its peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Above its peers.
    High,
    /// Below its peers.
    Low,
    /// Either.
    Both,
}

impl Side {
    /// `high`, `low` or `both`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Low => "low",
            Self::Both => "both",
        }
    }
}

/// One number per group and time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Statistic {
    /// The load-imbalance factor: 1 when even, n when one of n ranks has everything.
    MaxOverMean,
    /// 1 when even, 0 when a rank is idle.
    MinOverMean,
    /// In the signal's unit; 0 when even.
    MaxMinusMin,
    /// Coefficient of variation: population standard deviation over mean; 0 when even, sqrt(n-1) when
    /// one of n has everything.
    Cv,
    /// Gini coefficient: 0 when even, 1 - 1/n when one of n has everything.
    Gini,
    /// Jain's fairness index: 1 when even, 1/n when one of n has everything.
    Jain,
    /// 1 - mean/max: the share of the group's capacity that waits for its fullest rank; 0 when even.
    LostShare,
    /// The largest distance from the median in units of 1.4826 times the median absolute deviation.
    RobustZ,
    /// The member nearest to crossing the bound: some member is beyond it.
    AnyMember,
    /// The member farthest from crossing the bound: every member is beyond it.
    AllMembers,
    /// How far a member's course (its load, its tokens, its speed) has departed from its peers', in
    /// standard deviations of what is usual in this group; it remembers, see `departure`.
    Departure,
    /// None of these: what version 0.1 wrote into the finding of an incident that somebody asked for, and
    /// what a word that this version does not know is read as. No rule has it.
    #[serde(other, rename = "asked")]
    Other,
}

impl Statistic {
    /// Every statistic that a rule can have, in the order of the documentation.
    pub const ALL: [Self; 11] = [
        Self::MaxOverMean,
        Self::MinOverMean,
        Self::MaxMinusMin,
        Self::Cv,
        Self::Gini,
        Self::Jain,
        Self::LostShare,
        Self::RobustZ,
        Self::AnyMember,
        Self::AllMembers,
        Self::Departure,
    ];

    /// As in YAML and JSON: `max_over_mean`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::MaxOverMean => "max_over_mean",
            Self::MinOverMean => "min_over_mean",
            Self::MaxMinusMin => "max_minus_min",
            Self::Cv => "cv",
            Self::Gini => "gini",
            Self::Jain => "jain",
            Self::LostShare => "lost_share",
            Self::RobustZ => "robust_z",
            Self::AnyMember => "any_member",
            Self::AllMembers => "all_members",
            Self::Departure => "departure",
            Self::Other => "asked",
        }
    }
}

impl fmt::Display for Statistic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statistic_is_read_by_its_word_and_a_word_of_another_version_is_none_of_them() {
        for statistic in Statistic::ALL {
            let word = format!("\"{}\"", statistic.name());
            assert_eq!(serde_json::to_string(&statistic).unwrap(), word);
            assert_eq!(serde_json::from_str::<Statistic>(&word).unwrap(), statistic);
        }
        for word in ["\"asked\"", "\"\"", "\"kurtosis\""] {
            assert_eq!(serde_json::from_str::<Statistic>(word).unwrap(), Statistic::Other, "{word}");
        }
    }
}
