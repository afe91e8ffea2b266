//! What came of an incident's wish to capture.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::decide::capture::refusal::Refusal;
use crate::decide::labels::Labels;
use crate::decide::time::Time;

/// What came of the wish to capture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum CaptureOutcome {
    /// The rule captures nothing.
    None,
    /// A recording is replayed: this is where a window would have opened.
    WouldStart,
    /// Not now, and why.
    Refused(Refused),
    /// A window is being taken.
    Open {
        /// Since when.
        since: Time,
    },
    /// Files came.
    Done(Captured),
    /// A window was asked for and failed.
    Failed {
        /// A sentence with what to do.
        why: String,
        /// What came of it all the same.
        captured: Option<Captured>,
    },
}

impl CaptureOutcome {
    /// What it brought, also where it failed.
    pub const fn captured(&self) -> Option<&Captured> {
        match self {
            Self::Done(captured) | Self::Failed { captured: Some(captured), .. } => Some(captured),
            _ => None,
        }
    }

    /// Whether the ranks of what it brought can be compared: files came, and the agent sees them.
    pub fn is_comparable(&self) -> bool {
        matches!(self, Self::Done(c) if c.quality != Quality::Unseen && !c.files.is_empty())
    }

    /// Why there was none, where it was refused.
    pub const fn refused(&self) -> Option<&Refused> {
        if let Self::Refused(refused) = self { Some(refused) } else { None }
    }

    /// The word of the replay format: `none|would_start|refused|open|done|failed`.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::WouldStart => "would_start",
            Self::Refused(_) => "refused",
            Self::Open { .. } => "open",
            Self::Done(_) => "done",
            Self::Failed { .. } => "failed",
        }
    }
}

/// Why a capture was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// A word for machines: `cooldown`.
    #[serde(default)]
    pub reason: Arc<str>,
    /// A sentence with what would mend it.
    pub why: String,
}

impl From<&Refusal> for Refused {
    fn from(refusal: &Refusal) -> Self {
        Self { reason: refusal.word().into(), why: refusal.to_string() }
    }
}

/// What a window brought.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Captured {
    /// `http`, `nsys`, `cuda_profiler_api`, `command`.
    pub means: Arc<str>,
    /// When the start was sent.
    pub started_at: Time,
    /// Seconds from the firing, or from when it had got worse, to the start request.
    pub start_delay_s: f64,
    /// Seconds that the window was open.
    pub open_s: f64,
    /// Seconds of serving that the window and its export cost, as far as the agent can tell.
    pub stall_s: f64,
    /// Whether the files are usable.
    pub quality: Quality,
    /// The files.
    pub files: Vec<CapturedFile>,
    /// Ranks whose file was expected and did not come.
    pub missing: Vec<Labels>,
    /// Ranks that had no work while the window was open.
    pub idle: Vec<Labels>,
    /// Whether the agent cannot see the files; then they are where `files` says, on the server.
    pub remote: bool,
    /// Sentences a reader of the capture should know (a partial file, an environment inside a report).
    pub notes: Vec<String>,
}

/// Whether captured files are usable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quality {
    /// Every expected rank's file is there and whole.
    Usable,
    /// Some are.
    Partial,
    /// None is.
    #[default]
    Broken,
    /// The agent cannot see them.
    Unseen,
}

/// One file of a capture.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CapturedFile {
    /// Inside the bundle when relative, else where it was left.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Hex; empty when the agent cannot read the file.
    pub sha256: String,
    /// Inode number where the file was left in place.
    pub inode: Option<u64>,
    /// Whose.
    pub rank: Option<Labels>,
    /// Whether its stream ends as it should.
    pub whole: bool,
}
