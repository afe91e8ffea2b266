//! What a capture may request, and whether it may open a window at all.
//!
//! `admit` decides. Behind it, in the order of a window's life: `facts` about the server,
//! `preflight` over them, `governor` for the limits, `plan` for the request (with `risk`),
//! `window` while it is open, `verify` for its files, `stall` for its cost, `size` and `sizing` for
//! what the next may cost, `keep` for what is deleted. `refusal` has every reason why not.

pub mod admit;
pub mod captured;
pub mod engine;
pub mod facts;
pub mod governor;
pub mod keep;
pub mod line;
pub mod nsys;
pub mod path_map;
pub mod plan;
pub mod preflight;
pub mod prior;
pub mod refusal;
pub mod risk;
pub mod size;
pub mod sizing;
pub mod stall;
pub mod verify;
pub mod window;

use std::time::Duration;

use serde::Serialize;

/// What a rule captures when it fires.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum CaptureSpec {
    /// Nothing: record and notify only.
    #[default]
    None,
    /// A window of the engine's own profiler, over HTTP.
    Http(HttpWindow),
    /// A window of an Nsight Systems session that already wraps the server.
    Nsys(NsysWindow),
    /// SGLang's `CUDA_PROFILER` activity, for servers under `nsys --capture-range=cudaProfilerApi`.
    CudaProfilerApi(HttpWindow),
    /// A program of the user's.
    Command(CommandWindow),
}

impl CaptureSpec {
    /// Its name in YAML: `http`.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Http(_) => "http",
            Self::Nsys(_) => "nsys",
            Self::CudaProfilerApi(_) => "cuda_profiler_api",
            Self::Command(_) => "command",
        }
    }
}

/// How often a rule may open a window.
#[derive(Clone, Debug)]
pub struct Limits {
    /// At least this long between two windows.
    pub cooldown: Duration,
    /// At most this many ...
    pub captures: u32,
    /// ... in any stretch of this length.
    pub per: Duration,
}

/// A window of the engine's profiler. The fields are those of the profile API (docs/engines.md); `None`
/// means the agent's safe default.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpWindow {
    /// The server's view of the folder; declared by the operator.
    pub output_dir: Option<String>,
    /// Forward steps per rank; `None` for as many as [`Self::max_stall`] allows.
    pub num_steps: Option<u32>,
    /// How long the slowest rank may be silent. `None`: [`size::DEFAULT_MAX_STALL`] where the steps are
    /// not given either, and no limit where they are.
    pub max_stall: Option<Duration>,
    /// The same where the slowest rank's host is slow, which writes several times as slowly. `None`: no more than
    /// elsewhere.
    pub max_stall_slow_host: Option<Duration>,
    /// `CPU`, `GPU`, `MEM`, `RPD`, `CUDA_PROFILER`.
    pub activities: Option<Vec<String>>,
    /// Whether a second window with CPU activity is asked for where the first one blames a host.
    pub escalates: bool,
    /// Python stacks: slow and large.
    pub with_stack: bool,
    /// Tensor shapes: larger.
    pub record_shapes: bool,
    /// Separate files for prefill and decode.
    pub profile_by_stage: bool,
    pub profile_stages: Option<Vec<String>>,
    /// Front part of the file names.
    pub profile_prefix: Option<String>,
    /// Middle part of the file names.
    pub profile_id: Option<String>,
    /// KV aggregates in the step names (SGLang 0.5.23).
    pub detailed_annotations: bool,
    /// One merged file, made by the agent after verification; never sent.
    pub merge_profiles: bool,
    /// Passed on only with `accept_risk: [start_step]`.
    pub start_step: Option<u64>,
    /// Wait this long, check whether the rule still fires, then start.
    pub warmup: Duration,
    /// Ends when the rule clears instead of after `num_steps` (which is then a ceiling).
    pub until_cleared: bool,
    /// `/stop_profile` is called at the latest then.
    pub deadline: Duration,
    /// Named risks that the operator accepts.
    pub accept_risk: Vec<String>,
}

impl Default for HttpWindow {
    /// As many steps as the default stall allows, no stacks, no shapes: the window that costs least.
    fn default() -> Self {
        Self {
            output_dir: None,
            num_steps: None,
            max_stall: None,
            max_stall_slow_host: None,
            activities: None,
            escalates: false,
            with_stack: false,
            record_shapes: false,
            profile_by_stage: false,
            profile_stages: None,
            profile_prefix: None,
            profile_id: None,
            detailed_annotations: false,
            merge_profiles: false,
            start_step: None,
            warmup: Duration::ZERO,
            until_cleared: false,
            deadline: plan::DEFAULT_DEADLINE,
            accept_risk: Vec::new(),
        }
    }
}

/// A window of an Nsight Systems session.
#[derive(Clone, Debug, PartialEq)]
pub struct NsysWindow {
    pub session: NsysSession,
    /// How long.
    pub duration: Duration,
    /// Extra arguments of `nsys start`.
    pub args: Vec<String>,
    /// Named risks that the operator accepts.
    pub accept_risk: Vec<String>,
}

/// Which Nsight Systems session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NsysSession {
    /// The one whose nsys process is an ancestor of the process that listens on the target's port.
    #[default]
    OfTarget,
    /// By name or id.
    Named(String),
}

/// A program of the user's.
#[derive(Clone, Debug, PartialEq)]
pub struct CommandWindow {
    /// Program and arguments, with `{incident}`, `{rank}`, `{output_dir}` replaced; no shell.
    pub argv: Vec<String>,
    /// Killed as a process group then.
    pub time_limit: Duration,
}
