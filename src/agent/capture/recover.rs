//! Finishes at start what an agent before this one left undone. Bundles at once; windows each by a
//! task of its own beside the loop, for an export may take minutes, and the watching must not wait.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::{CaptureResult, CaptureStore, Finalizer, StoredCapture, came_of};
use crate::act::state::{OpenMethod, OpenWindow};
use crate::agent::cost::Meter;
use crate::agent::examine::follow;
use crate::agent::window::{self, Links, Status, TargetHandle};
use crate::agent::{command, nsys};
use crate::observe::artifact::inspect;
use crate::observe::profile_lines;
use skewtrap_core::capture::facts::ServerKind;
use skewtrap_core::capture::governor::AttemptEnd;
use skewtrap_core::capture::stall::Habits;
use skewtrap_core::capture::window::{Distrust, WindowPhase};
use skewtrap_core::incident::{CaptureOutcome, Record};
use skewtrap_core::message::LONGEST_ALERT;
use skewtrap_trace::time::Time;

/// A server as closing a window needs it.
#[derive(Clone, Debug)]
pub struct Known {
    /// The server.
    pub site: TargetHandle,
    /// Its log, where it is a file.
    pub log: Option<PathBuf>,
}

/// What was found at start.
#[derive(Debug, Default)]
pub struct Found {
    /// Incidents that are finished now and that people are to be told of; each is remembered until
    /// [`crate::act::state::State::forget`] says that the message is in the outbox.
    pub told: Vec<Record>,
    /// Windows that are, or may be, open, with their records: to be closed.
    pub left: Vec<(OpenWindow, Record)>,
    /// Other incidents that were not over when that agent ended, nor so long ago that every receiver
    /// has forgotten them.
    pub open: Vec<Record>,
}

/// Completes what needs no server, and finds what does.
///
/// # Errors
/// The state or the folder of the bundles cannot be read.
pub fn find(desk: &CaptureStore) -> anyhow::Result<Found> {
    let kept = desk.state.unfinished_incidents()?;
    for recovered in desk.bundles.recover(&kept)? {
        warn!(?recovered, "a bundle was half written");
    }
    let mut records: std::collections::BTreeMap<_, _> =
        kept.into_iter().map(|r| (r.incident.id.clone(), r)).collect();
    let mut found = Found::default();
    for window in desk.state.open_windows()? {
        let record = records.remove(&*window.incident);
        match record {
            Some(record) if matches!(record.incident.capture, CaptureOutcome::Open { .. }) => {
                let record = with_end(desk, record);
                found.left.push((window, record));
            }
            // Its bundle was written; only the state did not know yet.
            Some(record) => {
                desk.state.end(&window.attempt, &end_of(&record, desk.clock.now()))?;
                found.told.push(complete(desk, record));
            }
            None => {
                let unproven = Some("its incident is not in the state".to_owned());
                let end = AttemptEnd { at: desk.clock.now(), stalled: Duration::ZERO, bytes: 0, unproven };
                desk.state.end(&window.attempt, &end)?;
            }
        }
    }
    // What is left here was kept, and nobody was told of it yet.
    for mut record in records.into_values() {
        if matches!(record.incident.capture, CaptureOutcome::Open { .. }) {
            let why = "the agent died during this capture, and its window was closed at its deadline".into();
            record.incident.capture = CaptureOutcome::Failed { why, captured: None };
        }
        found.told.push(complete(desk, record));
    }
    let ids = found.told.iter().chain(found.left.iter().map(|(_, record)| record));
    let ids: BTreeSet<_> = ids.map(|record| record.incident.id.clone()).collect();
    found.open = desk.bundles.open_since(desk.clock.now() - LONGEST_ALERT);
    found.open.retain(|record| !ids.contains(&record.incident.id));
    Ok(found)
}

/// What the state keeps of a window is older than its bundle: the rule may have cleared meanwhile.
fn with_end(desk: &CaptureStore, mut record: Record) -> Record {
    if let Some(end) = desk.bundles.read(&record.incident.id).and_then(|there| there.incident.resolved_at) {
        record.incident.resolve(end);
    }
    record
}

/// Brings a bundle up to what the state knows; one that knows more (a verdict, its end) stays. Gives
/// what the bundle has now.
fn complete(desk: &CaptureStore, record: Record) -> Record {
    let record = with_end(desk, record);
    let written = match desk.bundles.read(&record.incident.id) {
        Some(there)
            if there.incident.window() >= record.incident.window()
                && !matches!(there.incident.capture, CaptureOutcome::Open { .. }) =>
        {
            return there;
        }
        Some(_) => desk.bundles.write(&record),
        None => desk.bundles.create(&record, b"").map(|_| ()),
    };
    if let Err(error) = written {
        error!(%error, "an incident's bundle could not be completed");
    }
    record
}

fn end_of(record: &Record, now: Time) -> AttemptEnd {
    let (stalled, bytes) = record.incident.capture.captured().map_or((Duration::ZERO, 0), |captured| {
        let stalled = Duration::try_from_secs_f64(captured.stall_s).unwrap_or_default();
        (stalled, captured.files.iter().map(|f| f.size).sum())
    });
    AttemptEnd { at: now, stalled, bytes, unproven: None }
}

/// Closes one window that an agent before this one left behind, on the server that is `known` by
/// its target's name.
pub async fn close(
    desk: CaptureStore,
    known: Option<Known>,
    window: OpenWindow,
    record: Record,
    cancel: CancellationToken,
) -> StoredCapture {
    let attempt = window.attempt.clone();
    let came = match known {
        None => nowhere(&window),
        Some(known) => closed(&desk, known, window, &record, cancel).await,
    };
    let (merged, made) = (None, None);
    Finalizer { desk, attempt, record, came, merged, made }.keep().await
}

fn nowhere(window: &OpenWindow) -> CaptureResult {
    let why = format!("no target is called {} any more, so its window cannot be closed", window.target);
    let (failure, unproven) = (Some(why.clone()), Some(why));
    CaptureResult { means: "http", failure, unproven, sent_at: window.sent_at, ..CaptureResult::default() }
}

async fn closed(
    desk: &CaptureStore,
    Known { site, log }: Known,
    window: OpenWindow,
    record: &Record,
    cancel: CancellationToken,
) -> CaptureResult {
    match window.method.clone() {
        OpenMethod::Http(request) => {
            let (lines, end) = log.as_deref().map(recent).unwrap_or_default();
            let moved = desk.bundles.traces(&record.incident.id, record.incident.window());
            // What it costs is measured by /health alone, without a habit: nothing was seen yet.
            let meter = Meter::new(desk.clock, Duration::ZERO, Habits::new());
            let status = Status { phase: WindowPhase::Unknown, blind: Distrust::opened(window.sent_at) };
            let (tell, heard) = mpsc::channel(1024);
            let reader = log.map(|log| tokio::spawn(follow(log, end, tell)));
            let links = Links { heard, status: watch::Sender::new(status), meter, cancel };
            let state = (&desk.state, desk.clock);
            let outcome = window::resume(&site, &request, window, lines, moved, state, links).await;
            reader.inspect(tokio::task::JoinHandle::abort);
            came_of(outcome, request.writes_files)
        }
        OpenMethod::Nsys { .. } => {
            let output = nsys::output_of(desk, &window.incident, record.incident.window());
            let came = nsys::close(&site.nsys, &window, &output, desk.clock.now()).await;
            with_scratched(desk, came, record).await
        }
        OpenMethod::Command { group } => {
            let came = command::close(&window, group, window.sent_at);
            with_scratched(desk, came, record).await
        }
    }
}

/// What the dead agent's window had written so far is kept with the rest.
async fn with_scratched(desk: &CaptureStore, mut came: CaptureResult, record: &Record) -> CaptureResult {
    let known: Vec<String> = came.artifacts.iter().map(|a| a.path.clone()).collect();
    let (bundles, incident) = (desk.bundles.clone(), record.incident.id.clone());
    let window = record.incident.window();
    let read = tokio::task::spawn_blocking(move || -> Vec<_> {
        let files = bundles.scratched(&incident, window).into_iter();
        let new = files.filter(|f| !known.iter().any(|k| Path::new(k) == f));
        new.filter_map(|f| inspect(&f, ServerKind::Sglang).ok()).collect()
    });
    // A read that panics leaves them to go into the bundle unlisted.
    came.artifacts.extend(read.await.unwrap_or_default());
    came
}

type Lines = Vec<(skewtrap_trace::rank::Rank, skewtrap_core::capture::line::ProfileLine)>;

/// What a log said lately, and where it ends; nothing where it cannot be read.
fn recent(log: &Path) -> (Lines, u64) {
    profile_lines::recent(log).unwrap_or_else(|error| {
        warn!(log = %log.display(), %error, "the log cannot be read for what became of a window");
        Default::default()
    })
}
