//! The recorded incident of the demo: an overload of DP2 on a real server with four ranks, replayed by
//! a double. `data/README.md` says what really happened.

use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;

use flate2::read::GzDecoder;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::demo::load::LoadTrack;
use crate::demo::sglang::{Config, Version, World};
use crate::demo::shell::{self, RunningDouble, Stage};
use crate::demo::trace::ExportLaw;
use skewtrap_trace::time::Time;

const LOG: &[u8] = include_bytes!("data/server.stamped.log.gz");
const LOADS: &[u8] = include_bytes!("data/loads.jsonl.gz");
const TRACES: [&[u8]; 4] = [
    include_bytes!("data/skew/dp0.trace.json.gz"),
    include_bytes!("data/skew/dp1.trace.json.gz"),
    include_bytes!("data/skew/dp2.trace.json.gz"),
    include_bytes!("data/skew/dp3.trace.json.gz"),
];

/// Start of the recording: its first line.
pub const BEGIN: f64 = 1_795_492_086.0;
/// The true onset: from here on DP2 gets seven times the weight of its peers.
pub const ONSET: f64 = 1_795_492_121.330_7;
/// End of the recording.
pub const END: f64 = 1_795_492_199.2;

/// What a step with GPU rows wrote on the recorded server, and what a megabyte cost each of its ranks.
const MEASURED_BYTES_PER_STEP: f64 = 10_000.0;
const MEASURED_S_PER_MB: [f64; 4] = [1.1; 4];

/// The recorded server.
pub(super) fn config() -> io::Result<Config> {
    let loads = unpack(LOADS)?;
    let mut config = Config::new(Version::V0_5_16, 4, LoadTrack::recorded(&loads)?);
    config.recorded_loads = Some(bodies(&loads)?);
    config.recorded_log = Some(log_lines(&unpack(LOG)?));
    config.export.law =
        Some(ExportLaw { bytes_per_step: MEASURED_BYTES_PER_STEP, s_per_mb: MEASURED_S_PER_MB.into() });
    config.recorded_traces = Some(TRACES.iter().map(|t| Arc::from(*t)).collect());
    Ok(config)
}

/// The recorded server at [`BEGIN`].
///
/// # Errors
/// The embedded recording is damaged.
pub fn world() -> io::Result<World> {
    Ok(World::new(config()?, Time::from_epoch_s(BEGIN)))
}

/// Replays the incident behind a local port, `speed` times as fast as it happened, with the log in
/// `out_dir/server.log`. [`RunningDouble::clock`] tells the recorded time.
///
/// # Errors
/// No free port, the log cannot be written, or the recording is damaged.
pub async fn start(out_dir: &Path, speed: f64) -> io::Result<RunningDouble> {
    let stage = Stage {
        begin: Time::from_epoch_s(BEGIN),
        speed,
        log_path: out_dir.join("server.log"),
        port: 0,
        end: Some(Time::from_epoch_s(END)),
    };
    shell::start(world()?, stage).await
}

fn unpack(gzip: &[u8]) -> io::Result<String> {
    let mut text = String::new();
    GzDecoder::new(gzip).read_to_string(&mut text)?;
    Ok(text)
}

/// Reads a log in which each line begins with its arrival time and a tab.
pub fn log_lines(text: &str) -> Arc<[(Time, String)]> {
    let stamped = |line: &str| {
        let (at, line) = line.split_once('\t')?;
        Some((Time::from_epoch_s(at.parse().ok()?), line.to_owned()))
    };
    text.lines().filter_map(stamped).collect()
}

#[derive(Deserialize)]
struct Page<'a> {
    t: f64,
    #[serde(borrow)]
    body: &'a RawValue,
}

fn bodies(lines: &str) -> serde_json::Result<Arc<[(Time, String)]>> {
    let body = |line: &str| {
        let page: Page<'_> = serde_json::from_slice(line.as_bytes())?;
        Ok((Time::from_epoch_s(page.t), page.body.get().to_owned()))
    };
    lines.lines().map(body).collect()
}
