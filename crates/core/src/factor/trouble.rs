//! One trouble, one incident: what the tests say, joined over ranks, factors and time.

use serde::{Deserialize, Serialize};

use crate::factor::evidence::{Factor, Side};
use crate::factor::impact::Impact;
use crate::factor::onset::Onset;

/// A trouble under way, or one that is over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trouble {
    /// Counts up from 1.
    pub id: u64,
    /// The factor that departed first: the cause, as far as anything here can tell.
    pub factor: Factor,
    pub side: Side,
    /// The ranks to blame, the first one first.
    pub ranks: Vec<usize>,
    /// Since when.
    pub onset: Option<Onset>,
    pub fired: f64,
    /// The statistic as of now, over as many seconds as it was found in, and the bound that it passed, as deviances.
    pub deviance: f64,
    pub bound: f64,
    /// The logarithm of what is over what should be, where the test measures that.
    pub effect: Option<f64>,
    /// The seconds that it was seen in.
    pub window: i64,
    /// What it costs.
    #[serde(rename = "harm")]
    pub impact: Impact,
    /// What departed, in order: who, in what, on which side, from when on it was seen.
    pub symptoms: Vec<Symptom>,
    /// How often the blame moved.
    pub reblamed: u32,
}

/// Something that departed during an incident.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Symptom {
    pub rank: usize,
    pub factor: Factor,
    pub side: Side,
    /// When it was first seen.
    pub seen: f64,
}

/// What happened in a step.
#[derive(Clone, Debug, PartialEq)]
pub enum TroubleChange {
    /// A trouble was found.
    Fired(Trouble),
    /// More ranks of the same trouble.
    Joined(Trouble),
    /// Another rank is to blame after all.
    Reblamed(Trouble),
    /// The same trouble again, soon after it had cleared: no new incident.
    Returned(Trouble),
    /// It is over.
    Cleared(Trouble),
    /// It has been like this for so long that it is what is usual now.
    Standing(Trouble),
}

impl TroubleChange {
    /// The incident as it is now.
    pub fn trouble(&self) -> &Trouble {
        match self {
            Self::Fired(i)
            | Self::Joined(i)
            | Self::Reblamed(i)
            | Self::Returned(i)
            | Self::Cleared(i)
            | Self::Standing(i) => i,
        }
    }
}
