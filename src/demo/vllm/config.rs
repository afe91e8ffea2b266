//! Which vLLM the double plays, and what goes wrong with it.

use std::time::Duration;

use crate::demo::exchange::HttpFault;
use crate::demo::load::LoadTrack;

/// A release whose differences the double knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// Profiling by environment variable; a second start starts torch again.
    V0_11,
    /// `--profiler-config`; a second start is ignored.
    V0_19,
    /// Bodies with a prefix and bounds; a second start is 409.
    V0_33,
}

impl Version {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::V0_11, Self::V0_19, Self::V0_33];

    /// As the server says it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::V0_11 => "0.11.0",
            Self::V0_19 => "0.19.0",
            Self::V0_33 => "0.33.0",
        }
    }
}

/// The double's whole configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which release.
    pub version: Version,
    /// Data-parallel engines behind this API server.
    pub dp: u16,
    /// The work.
    pub load: LoadTrack,
    /// The folder that profiling was configured with at launch; without it the API is not there.
    pub profiler_dir: Option<String>,
    /// `max_iterations` of the launch configuration.
    pub max_iterations: Option<u64>,
    /// `--api-key`: guards `/v1`, and nothing else.
    pub api_key: Option<String>,
    /// `VLLM_LOG_STATS_INTERVAL`.
    pub log_interval: Duration,
    /// What a flush takes for each iteration recorded.
    pub flush_per_step: Duration,
    /// What goes wrong.
    pub faults: Faults,
}

impl Config {
    /// A healthy server of `version` with `dp` engines under `load` that writes traces to `profiler_dir`.
    pub fn new(version: Version, dp: u16, load: LoadTrack, profiler_dir: Option<&str>) -> Self {
        Self {
            version,
            dp,
            load,
            profiler_dir: profiler_dir.map(str::to_owned),
            max_iterations: None,
            api_key: None,
            log_interval: Duration::from_secs(10),
            flush_per_step: Duration::from_millis(40),
            faults: Faults::default(),
        }
    }
}

/// What goes wrong. Nothing by default.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// On the way between client and server.
    pub http: Vec<HttpFault>,
    /// Engines whose file never comes.
    pub missing: Vec<u16>,
    /// Engines whose file ends in the middle.
    pub truncated: Vec<u16>,
    /// Every flush takes this much longer.
    pub slow_flush: Duration,
    /// Before 0.33, a stop without a window kills the engine (torch segfaults) instead of a 500.
    pub stop_without_start_kills: bool,
}
