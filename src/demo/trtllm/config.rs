//! The configuration of the double of TensorRT-LLM: its shape and its faults.

use std::time::Duration;

use crate::demo::exchange::HttpFault;
use crate::demo::load::LoadTrack;

/// The double's whole configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// How many ranks step together.
    pub ranks: u16,
    /// Whether each is an attention-DP rank, with requests of its own.
    pub attention_dp: bool,
    /// The load; without attention DP that of rank 0 is the engine's.
    pub load: LoadTrack,
    /// Whether it runs the PyTorch backend; other backends answer profile calls and do nothing.
    pub has_profiler: bool,
    /// `enable_iter_perf_stats`.
    pub has_stats: bool,
    /// Duration of an export for each recorded iteration.
    pub export_per_step: Duration,
    pub faults: Faults,
}

impl Config {
    /// A healthy server with so many attention-DP ranks as `load` has.
    pub fn new(ranks: u16, load: LoadTrack) -> Self {
        Self {
            ranks,
            attention_dp: true,
            load,
            has_profiler: true,
            has_stats: true,
            export_per_step: Duration::from_millis(40),
            faults: Faults::default(),
        }
    }
}

/// The faults of a double; none by default.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Faults of the connection.
    pub http: Vec<HttpFault>,
    /// Ranks that never write their file.
    pub missing: Vec<u16>,
    /// Ranks whose file is cut off.
    pub truncated: Vec<u16>,
    /// Ranks that write their file so much later than the others.
    pub late: Vec<(u16, Duration)>,
    /// A start is answered with success and `"success": false`.
    pub start_errs: bool,
    /// The loop of the executor never gets to the stop: that is answered with success after 30 s all the same.
    pub ignores_stop: bool,
}
