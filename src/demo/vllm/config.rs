//! The configuration of the double: its release and its faults.

use std::time::Duration;

use crate::demo::exchange::HttpFault;
use crate::demo::load::LoadTrack;
use crate::demo::trace::ExportLaw;

/// A release that the double can play.
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
    /// All releases.
    pub const ALL: [Self; 3] = [Self::V0_11, Self::V0_19, Self::V0_33];

    /// The version string of the server.
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
    /// The release.
    pub version: Version,
    /// Data-parallel engines behind this API server.
    pub dp: u16,
    pub load: LoadTrack,
    /// The profile folder, which is set at launch; without it there are no profile routes.
    pub profiler_dir: Option<String>,
    /// `max_iterations` of the launch configuration.
    pub max_iterations: Option<u64>,
    /// `--api-key`: guards `/v1`, and nothing else.
    pub api_key: Option<String>,
    /// `VLLM_LOG_STATS_INTERVAL`.
    pub log_interval: Duration,
    /// Duration of a flush for each recorded iteration.
    pub flush_per_step: Duration,
    /// In its place: flushes that take as long as their files are large.
    pub export: Option<ExportLaw>,
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
            export: None,
            faults: Faults::default(),
        }
    }
}

/// The faults of a double; none by default.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Faults of the connection.
    pub http: Vec<HttpFault>,
    /// Engines that never write their file.
    pub missing: Vec<u16>,
    /// Engines whose file is cut off.
    pub truncated: Vec<u16>,
    /// Every flush takes this much longer.
    pub slow_flush: Duration,
    /// Before 0.33, a stop without a window kills the engine (torch segfaults) instead of a 500.
    pub stop_without_start_kills: bool,
}
