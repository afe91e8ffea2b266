//! What a window captured: the files, the rank of each, and whether they are usable.

use serde::{Deserialize, Serialize};

use skewtrap_trace::labels::Labels;
use skewtrap_trace::time::Time;

/// What a window captured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Captured {
    /// By what it captured.
    pub means: CaptureKind,
    /// When the start was sent.
    pub started_at: Time,
    /// Seconds from the firing, or from when it had got worse, to the start request.
    pub start_delay_s: f64,
    /// Seconds that the window was open.
    pub open_s: f64,
    /// Seconds of serving that the window and its export cost, as far as the agent can tell.
    pub stall_s: f64,
    /// Seconds of the longest silence of one rank among them, where it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub longest_stall_s: Option<f64>,
    /// Seconds that it had been predicted to be; `None` where nobody could tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted_stall_s: Option<f64>,
    /// Seconds below which a silence of a rank could not be seen, where no rank's export could: then a `stall_s` of 0
    /// says nothing of shorter ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unseen_stall_below_s: Option<f64>,
    /// Whether the files are usable.
    pub quality: Quality,
    pub files: Vec<CapturedFile>,
    /// Ranks whose file was expected and is missing.
    pub missing: Vec<Labels>,
    /// Ranks that had no work while the window was open.
    pub idle: Vec<Labels>,
    /// Whether the agent cannot see the files; then they are where `files` says, on the server.
    pub remote: bool,
    /// Sentences a reader of the capture should know (a partial file, an environment inside a report).
    pub notes: Vec<String>,
}

/// By what a window captures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CaptureKind {
    /// The engine's own profiler, over HTTP.
    #[default]
    Http,
    /// The same, where nsys writes the report.
    CudaProfilerApi,
    /// An Nsight Systems session.
    Nsys,
    /// A program of the user's.
    Command,
}

impl CaptureKind {
    /// As in JSON: `cuda_profiler_api`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::CudaProfilerApi => "cuda_profiler_api",
            Self::Nsys => "nsys",
            Self::Command => "command",
        }
    }
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
    /// The rank that wrote it.
    pub rank: Option<Labels>,
    /// Whether its stream ends as it should.
    pub whole: bool,
}
