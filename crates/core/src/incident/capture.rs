//! The outcome of capturing an incident.

use serde::{Deserialize, Serialize};

use crate::capture::captured::{Captured, Quality};
use crate::capture::refusal::{Reason, Refusal};
use skewtrap_trace::time::Time;

/// The outcome of capturing an incident: refused, under way, done or failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum CaptureOutcome {
    /// The rule captures nothing.
    None,
    /// A recording is replayed: this is where a window would have opened.
    WouldStart,
    /// It was refused, and why.
    Refused(Refused),
    /// A window is being taken.
    Open {
        since: Time,
        /// How large it is, what it is predicted to cost, and what it cannot show.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expects: Option<String>,
    },
    /// Files were captured.
    Done(Captured),
    /// A window was opened, or tried to be, and failed.
    Failed {
        /// A sentence with what to do.
        why: String,
        /// What it captured nevertheless.
        captured: Option<Captured>,
    },
}

impl CaptureOutcome {
    /// What it captured, even if it failed.
    pub const fn captured(&self) -> Option<&Captured> {
        match self {
            Self::Done(captured) | Self::Failed { captured: Some(captured), .. } => Some(captured),
            _ => None,
        }
    }

    /// Whether its ranks can be compared: there are files, and the agent sees them.
    pub fn is_comparable(&self) -> bool {
        matches!(self, Self::Done(c) if c.quality != Quality::Unseen && !c.files.is_empty())
    }

    /// Why there was none, where it was refused.
    pub const fn refused(&self) -> Option<&Refused> {
        if let Self::Refused(refused) = self { Some(refused) } else { None }
    }

    /// How far it is.
    pub const fn state(&self) -> CaptureState {
        match self {
            Self::None => CaptureState::None,
            Self::WouldStart => CaptureState::WouldStart,
            Self::Refused(_) => CaptureState::Refused,
            Self::Open { .. } => CaptureState::Open,
            Self::Done(_) => CaptureState::Done,
            Self::Failed { .. } => CaptureState::Failed,
        }
    }

    /// The same as a word: `done`.
    pub const fn word(&self) -> &'static str {
        self.state().word()
    }
}

/// How far a capture is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaptureState {
    /// Nothing is captured.
    None,
    /// Whether the incident is worth a window is decided in a moment.
    Undecided,
    /// A window would have opened here, in a recording.
    WouldStart,
    Refused,
    /// A window is being taken.
    Open,
    /// Files were captured, or in a recording would have been already.
    Done,
    /// A window failed.
    Failed,
}

impl CaptureState {
    /// The word of the JSON, and of the replay format: `none|undecided|would_start|refused|open|done|failed`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Undecided => "undecided",
            Self::WouldStart => "would_start",
            Self::Refused => "refused",
            Self::Open => "open",
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }
}

/// Why a capture was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// A word for machines: `cooldown`.
    #[serde(default)]
    pub reason: Reason,
    /// A sentence that says what would help.
    pub why: String,
}

impl From<&Refusal> for Refused {
    fn from(refusal: &Refusal) -> Self {
        Self { reason: refusal.reason(), why: refusal.to_string() }
    }
}
