//! The configuration of the double: its release, the cost of its exports, and its faults.

use std::sync::Arc;
use std::time::Duration;

use crate::demo::exchange::HttpFault;
use crate::demo::load::LoadTrack;
use crate::demo::trace::ExportLaw;
use skewtrap_trace::time::Time;

/// A release that the double can play. Releases between two of them behave like the older one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// No `start_step`, no rank labels, no `/v1/loads`.
    V0_4_7,
    /// `start_step`; `/get_load` a list.
    V0_5_3,
    /// Prefixes and merging; `/v1/loads` that asks every rank; admin keys.
    V0_5_9,
    /// Caller-chosen ids; `/v1/loads` from a snapshot; exact step counts.
    V0_5_16,
    /// No `/get_load`.
    V0_5_23,
}

impl Version {
    /// All releases.
    pub const ALL: [Self; 5] = [Self::V0_4_7, Self::V0_5_3, Self::V0_5_9, Self::V0_5_16, Self::V0_5_23];

    /// The version string of the server.
    pub const fn text(self) -> &'static str {
        match self {
            Self::V0_4_7 => "0.4.7.post1",
            Self::V0_5_3 => "0.5.3",
            Self::V0_5_9 => "0.5.9",
            Self::V0_5_16 => "0.5.16",
            Self::V0_5_23 => "0.5.23",
        }
    }
}

/// The double's whole configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The release.
    pub version: Version,
    /// Data-parallel size.
    pub dp: u16,
    /// Tensor-parallel size of one replica; under DP attention of the whole engine.
    pub tp: u16,
    /// Whether all ranks step together and idle ones run IDLE batches.
    pub dp_attention: bool,
    pub load: LoadTrack,
    /// A recorded log (arrival and line), replayed instead of generated batch lines.
    pub recorded_log: Option<Arc<[(Time, String)]>>,
    /// Recorded answers of `/v1/loads`, served instead of generated ones.
    pub recorded_loads: Option<Arc<[(Time, String)]>>,
    /// What each rank's trace file holds, instead of a generated trace.
    pub recorded_traces: Option<Vec<Arc<[u8]>>>,
    /// The same of windows that record CPU activity, where they are others.
    pub recorded_cpu_traces: Option<Vec<Arc<[u8]>>>,
    /// `--api-key`.
    pub api_key: Option<String>,
    /// `--admin-api-key`.
    pub admin_api_key: Option<String>,
    /// `--enable-metrics`.
    pub enable_metrics: bool,
    /// `SGLANG_TORCH_PROFILER_DIR`, or `/tmp`: where traces go when a request names no folder.
    pub default_output_dir: String,
    /// `SGLANG_LOG_MS=1`.
    pub log_ms: bool,
    /// `SGLANG_PROFILE_V2=1`.
    pub profile_v2: bool,
    /// Decode batches between two log lines.
    pub decode_log_interval: u32,
    /// How long `/health` takes when all is well; also the interval at which it is tried again.
    pub health_takes: Duration,
    /// `--watchdog-timeout`: a rank without a step for so long is killed, and the server with it.
    pub watchdog: Duration,
    /// GB of weights of a rank, as `/server_info` reports them; a tiny model's by default.
    pub weights_gb: f64,
    /// The duration of exports.
    pub export: ExportCost,
    pub faults: Faults,
}

impl Config {
    /// A healthy server of `version` with `dp` replicas under `load`.
    pub fn new(version: Version, dp: u16, load: LoadTrack) -> Self {
        Self {
            version,
            dp,
            tp: 1,
            dp_attention: false,
            load,
            recorded_log: None,
            recorded_loads: None,
            recorded_traces: None,
            recorded_cpu_traces: None,
            api_key: None,
            admin_api_key: None,
            enable_metrics: true,
            default_output_dir: "/tmp".into(),
            log_ms: false,
            profile_v2: false,
            decode_log_interval: 40,
            health_takes: if version >= Version::V0_5_3 { Duration::from_secs(1) } else { Duration::ZERO },
            watchdog: Duration::from_secs(300),
            weights_gb: 0.01,
            export: ExportCost::default(),
            faults: Faults::default(),
        }
    }

    /// The tensor-parallel ranks that belong to data-parallel rank `dp`, each of which writes a file.
    pub fn tp_ranks(&self, dp: u16) -> std::ops::Range<u16> {
        if self.dp_attention {
            let each = (self.tp / self.dp).max(1);
            dp * each..(dp + 1) * each
        } else {
            0..self.tp
        }
    }
}

/// How long a rank is busy writing its trace; it does nothing else meanwhile. The defaults
/// reproduce what was measured (0.2 s for 20 steps of a small batch, 0.8 s for 20 of a large one,
/// 55.7 s for one idle second with stacks).
#[derive(Clone, Debug)]
pub struct ExportCost {
    /// Of every export.
    pub base: Duration,
    /// Of each step of an empty batch; a batch of 20 costs twice that, one of 40 three times.
    pub per_step: Duration,
    /// Factor when Python stacks are recorded.
    pub stacks: f64,
    /// Seconds for each second in which the rank idled with stacks on.
    pub idle_stacks: f64,
    /// Seconds for each second in which it idled without.
    pub idle: f64,
    /// Factor on the first rank when it merges the files of all.
    pub merge: f64,
    /// In place of the others: exports that take as long as their files are large.
    pub law: Option<ExportLaw>,
}

impl Default for ExportCost {
    fn default() -> Self {
        Self {
            base: Duration::from_millis(100),
            per_step: Duration::from_millis(6),
            stacks: 4.0,
            idle_stacks: 55.7,
            idle: 0.2,
            merge: 4.0,
            law: None,
        }
    }
}

impl Faults {
    /// How many times slower than usual the host of a rank is.
    pub fn slowness(&self, dp: u16) -> f64 {
        self.slow_host.iter().find(|(slow, _)| *slow == dp).map_or(1.0, |(_, times)| times.max(1.0))
    }
}

/// The faults of a double; none by default.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Faults of the connection.
    pub http: Vec<HttpFault>,
    /// Folders (and all below) that the server cannot write to: it dies at the export.
    pub unwritable: Vec<String>,
    /// The disk is full in the middle of an export: half a file, and the server dies.
    pub disk_full: bool,
    /// Ranks that report success but never write their file.
    pub missing: Vec<u16>,
    /// Ranks that report success but whose file is cut off.
    pub truncated: Vec<u16>,
    /// Ranks that hang: they take no step and no message, answer nothing and cannot be disarmed; what they
    /// said last stays on the pages, with its time.
    pub hung: Vec<u16>,
    /// Ranks that print no batch lines, though they work.
    pub silent: Vec<u16>,
    /// Ranks whose host is so many times slower than usual: their steps and their exports take longer.
    pub slow_host: Vec<(u16, f64)>,
    /// Every export takes this much longer.
    pub slow_export: Duration,
    /// The server is killed this long after a start, and comes back later.
    pub restart_after_start: Option<Duration>,
    /// How long it is down then.
    pub restart_takes: Duration,
    /// A second start over an open window makes torch raise: before 0.5.14 the server dies, later
    /// the answer is 500 and the open window is forgotten.
    pub torch_raises_on_second_start: bool,
}
