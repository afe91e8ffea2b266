//! Probes one server once, as the background probe does continuously, and takes a manual window:
//! what `skewtrap doctor` needs without a running agent.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::capture::{CaptureStore, Taken, take};
use super::cost::Meter;
use super::plan::TargetPlan;
use super::window::{Links, Status, TargetHandle, follow};
use crate::act::state::StateError;
use crate::clock::Clock;
use crate::http::{Server, body};
use crate::observe::{artifact, profile_lines, server};
use skewtrap_core::capture::admit::CapturePlan;
use skewtrap_core::capture::facts::{Facts, Folder, ServerKind};
use skewtrap_core::capture::stall::UsualIntervals;
use skewtrap_core::capture::window::{SettlingTime, WindowPhase};
use skewtrap_core::finding::Finding;
use skewtrap_core::incident::{CaptureOutcome, Incident, Record};
use skewtrap_core::rule::Severity;
use skewtrap_core::signal::fields::Fields;
use skewtrap_core::signal::log_reader::{Arrival, LogReader};
use skewtrap_core::signal::metrics::Metrics;
use skewtrap_core::signal::{catalog, iteration_stats};
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;

/// What an answer may take.
const LIMIT: Duration = Duration::from_secs(10);
/// So many `/health` answers make a usual latency to compare the last one with.
const HEALTHS: usize = 3;

/// What was found.
#[derive(Debug)]
pub struct Examined {
    /// The facts, as pre-flight takes them.
    pub facts: Facts,
    /// Why it is unknown what the server is, if so.
    pub info_error: Option<String>,
    /// Why it is unknown what its ranks do, if so.
    pub loads_error: Option<String>,
    /// Why its log cannot be read, if so.
    pub log_error: Option<String>,
    /// By how much the last stamp of its log differs from when that was written, where that cannot be right.
    pub log_stamps: Option<String>,
}

/// Probes the server.
pub async fn examine(
    asked: &Server,
    handle: &TargetPlan,
    (log, zone): (Option<&Path>, &TimeZone),
    clock: Clock,
) -> Examined {
    let mut facts = Facts { sees_log: handle.sees_log, ..Facts::default() };
    for _ in 0..HEALTHS {
        let answered = server::health(asked).await.answered();
        facts.health.answered(answered, clock.now());
    }
    // Only SGLang has a list of its ranks' loads: elsewhere what is at /metrics tells how many there are, and
    // which work.
    let engines = read_engines(asked).await;
    let info_error = match server::facts(asked, engines.len().try_into().unwrap_or(u16::MAX).max(1)).await {
        Ok(info) => {
            facts.server = Some(info);
            None
        }
        Err(error) => Some(error.to_string()),
    };
    let log_error = match log {
        Some(log) => {
            let why = read_log(&mut facts, log, clock).await.err();
            why.map(|e| format!("{}: {e}", log.display()))
        }
        None => None,
    };
    let log_stamps = log.and_then(|log| stamps_of(log, zone));
    for path in &handle.folders {
        let seen = artifact::room(&handle.paths.agent_view(path));
        facts.folder_seen(Folder { server_path: path.clone(), seen, at: clock.now() });
    }
    // Last: nothing else goes stale within seconds.
    let is_sglang = facts.server.as_ref().is_some_and(|s| s.engine == ServerKind::Sglang);
    let loads_error = if facts.server.is_some() && !is_sglang && !engines.is_empty() {
        let now = clock.now();
        engines.into_iter().for_each(|(rank, busy)| facts.rank_seen(rank, busy, now));
        None
    } else {
        read_loads(&mut facts, asked, clock).await.err().map(|e| e.to_string())
    };
    Examined { facts, info_error, loads_error, log_error, log_stamps }
}

/// So much of a log's end has a line with a stamp.
const LOG_END: u64 = 64 << 10;

/// When a log was written last is known of its file: the last stamp must agree.
fn stamps_of(log: &Path, zone: &TimeZone) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let found = file.metadata().ok()?;
    let written = found.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    file.seek(SeekFrom::Start(found.len().saturating_sub(LOG_END))).ok()?;
    let mut end = Vec::new();
    file.take(LOG_END).read_to_end(&mut end).ok()?;
    let mut reader = LogReader::new(zone.clone());
    for line in end.split(|byte| *byte == b'\n') {
        reader.read(line, Arrival::Live(Time::from_epoch_s(written.as_secs_f64())));
    }
    reader.disagreement()
}

async fn read_log(facts: &mut Facts, log: &Path, clock: Clock) -> std::io::Result<()> {
    // When each line came is not known. A window that was closed long ago does not matter, an open one does.
    for (rank, line) in profile_lines::recent(log, None).await?.0 {
        facts.profile_line(rank, &line, clock.now() - Duration::from_secs(3600));
    }
    Ok(())
}

/// The ranks of a metrics page, or of TensorRT-LLM's iteration statistics in its place, and whether they have
/// work; none where there is neither.
async fn read_engines(asked: &Server) -> Vec<(Rank, bool)> {
    let answer = asked.get("/metrics").timeout(Duration::from_secs(10)).send().await;
    let Some(answer) = answer.ok().filter(|a| a.status().is_success()) else { return Vec::new() };
    let Ok(page) = answer.bytes().await else { return Vec::new() };
    let of = |fields: &Fields, signal| fields.get(signal).unwrap_or(0.0);
    let is_busy = |f: &Fields| of(f, catalog::RUNNING_REQS) + of(f, catalog::QUEUE_REQS) > 0.0;
    if let Some(loads) = iteration_stats::read(&page) {
        return loads.ranks.iter().map(|load| (load.rank, is_busy(&load.fields))).collect();
    }
    let mut metrics = Metrics::default();
    if metrics.read(&page).is_err() {
        return Vec::new();
    }
    metrics.ranks().map(|(rank, fields)| (rank, is_busy(fields))).collect()
}

async fn read_loads(facts: &mut Facts, asked: &Server, clock: Clock) -> anyhow::Result<()> {
    let ask = |path| asked.get(path).timeout(LIMIT).send();
    let is_missing = |answer: &reqwest::Result<reqwest::Response>| {
        answer.as_ref().is_ok_and(|a| a.status().as_u16() == 404)
    };
    let answer = server::first_loads_path(0, ask, is_missing).await.1?;
    anyhow::ensure!(answer.status().is_success(), "it answered {}", answer.status().as_u16());
    let now = clock.now();
    let answer = body::read(answer, body::LOADS, LIMIT).await?;
    for load in iteration_stats::read_loads(&answer)?.ranks {
        let of = |signal| load.fields.get(signal).unwrap_or(0.0);
        let busy = of(catalog::RUNNING_REQS) + of(catalog::QUEUE_REQS) > 0.0;
        facts.rank_seen(load.rank, busy, now - load.age);
    }
    Ok(())
}

/// Takes a window without a running agent: the log is read here. `usual_health` is the usual time of `/health`.
/// Gives its outcome, which is in its bundle then.
///
/// # Errors
/// The state could not be written; then nothing was sent.
pub async fn take_one(
    store: &CaptureStore,
    handle: &TargetHandle,
    log: Option<PathBuf>,
    plan: &CapturePlan,
    usual_health: Duration,
    cancel: CancellationToken,
) -> Result<CaptureOutcome, StateError> {
    let (sender, signals) = mpsc::channel(1024);
    let reader = log.map(|log| {
        let from = std::fs::metadata(&log).map_or(0, |m| m.len());
        tokio::spawn(follow(log, from, sender))
    });
    let status = Status { phase: WindowPhase::Starting, settling: SettlingTime::opened(store.clock.now()) };
    let meter = Meter::new(store.clock, usual_health, UsualIntervals::new());
    let links = Links { signals, status: watch::Sender::new(status), meter, cancel, lease: None };
    let mut record = Record::new(store.state.agent().clone(), incident_of(store, plan));
    let taken = take(store, handle, plan, &record, std::future::ready(Vec::new()), links).await;
    if let Some(reader) = reader {
        reader.abort();
    }
    match taken? {
        Taken::Stored { capture, .. } => {
            record.incident.captured(&capture);
            if let Err(error) = store.bundles.update(record.incident.clone()) {
                tracing::error!("{error}");
            }
        }
        // Without its incident no later agent would close it.
        Taken::LeftOpen => return Ok(record.incident.capture),
    }
    store.state.delete_incident(&record.incident.id)?;
    Ok(record.incident.capture)
}

fn incident_of(store: &CaptureStore, plan: &CapturePlan) -> Incident {
    let now = store.clock.now();
    let finding = Finding::requested(now, None);
    let of = |text: &str| Arc::from(text);
    let (id, rule, target) = (of(&plan.attempt.incident), of(&plan.attempt.rule), of(&plan.attempt.target));
    Incident {
        about: Some("a one-step window that `skewtrap doctor` was asked to take".into()),
        severity: Severity::Info,
        resolved_at: Some(now),
        capture: CaptureOutcome::Open { since: now, expects: None },
        ..Incident::new(id, rule, target, now, finding)
    }
}
