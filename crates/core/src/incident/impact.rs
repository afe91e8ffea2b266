//! What clients notice of an incident: how the whole server does now, beside how it did before the onset.

use serde::{Deserialize, Serialize};

use crate::finding::MemberValue;
use skewtrap_trace::time::Time;

/// A number of the whole server before the onset and in the last seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BeforeAndNow {
    /// The mean over the seconds up to the onset.
    pub before: f64,
    /// The mean over the last seconds.
    pub now: f64,
}

/// What clients notice. What no source tells is absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Impact {
    pub at: Time,
    /// Tokens that all ranks generate together, a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_s: Option<BeforeAndNow>,
    /// Mean seconds until a request has its first token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_token_s: Option<BeforeAndNow>,
    /// Requests that wait for a place in a batch, on all ranks together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_reqs: Option<BeforeAndNow>,
    /// What the members of the finding show now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<MemberValue>,
}
