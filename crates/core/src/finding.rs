//! What a rule found when it fired: whom it blames, since when, on which side, by which numbers.

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
    /// Its standard error in seconds.
    pub onset_error_s: f64,
    /// The blamed member: `{"dp_rank": 2}`.
    pub rank: Labels,
    /// On which side it left its peers.
    pub side: Side,
    /// The statistic that crossed its bound (`max_over_mean`).
    pub statistic: Arc<str>,
    /// The signal it summarises (`load`).
    pub signal: Arc<str>,
    /// Its value.
    pub value: f64,
    /// The bound it crossed.
    pub bound: f64,
    /// Every member's value at that time, in the order of the members.
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
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Above.
    High,
    /// Below.
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
