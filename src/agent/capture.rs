//! Takes one capture from its grant to its bundle, in an order that survives `kill -9` anywhere:
//! the attempt is in the state before the start is sent, the files and the record are in the bundle
//! before the state forgets the window. What a dead agent left between two of these steps,
//! [`find`] and [`close`] finish.

mod recover;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use tracing::error;

pub use self::recover::{Found, Known, close, find};

use crate::act::bundle::Bundles;
use crate::act::merge::merge;
use crate::act::state::{State, StateError};
use crate::agent::clock::Clock;
use crate::agent::window::{self, Links, Outcome, TargetHandle};
use crate::agent::{command, nsys};
use crate::observe::artifact::inspect;
use skewtrap_core::capture::admit::{CaptureMethod, CapturePlan};
use skewtrap_core::capture::captured::{Captured, CapturedFile, Quality};
use skewtrap_core::capture::facts::ServerKind;
use skewtrap_core::capture::governor::AttemptEnd;
use skewtrap_core::capture::verify::{Artifact, Verdict};
use skewtrap_core::capture::window::Failure;
use skewtrap_core::incident::{CaptureOutcome, Exchange, IncidentState, Record};
use skewtrap_trace::labels::Labels;
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;

/// What captures are kept with.
#[derive(Clone, Debug)]
pub struct CaptureStore {
    /// Attempts and open windows.
    pub state: State,
    /// Where bundles go.
    pub bundles: Bundles,
    /// Where `now` comes from.
    pub clock: Clock,
}

/// What came of a capture, whatever took it.
#[derive(Debug, Default)]
pub struct CaptureResult {
    /// `http`, `cuda_profiler_api`, `nsys`, `command`.
    pub means: &'static str,
    /// A sentence; `None` when it went as planned.
    pub failure: Option<String>,
    /// Why something may still run; `None` when nothing does.
    pub unproven: Option<String>,
    /// What a reader should know.
    pub notes: Vec<String>,
    /// What was sent or run.
    pub exchanges: Vec<Exchange>,
    /// The files, read to their ends.
    pub artifacts: Vec<Artifact>,
    /// What they amount to.
    pub verdict: Verdict,
    /// Where the files are when the agent cannot see them: the server's view.
    pub remote: Option<String>,
    /// When it began.
    pub sent_at: Time,
    /// How long it was open.
    pub open: Duration,
    /// Serving that it cost.
    pub stalled: Duration,
    /// Which process was which rank.
    pub processes: BTreeMap<u32, Labels>,
    /// The agent ends before its window was proven closed: the next one closes it.
    pub left_open: bool,
}

/// A capture, done and kept.
#[derive(Debug)]
pub struct StoredCapture {
    /// The incident's record as it is in the bundle.
    pub record: Record,
    /// What it cost, as it is in the state.
    pub end: AttemptEnd,
    /// What could not be written: the capture is done, its bundle is not.
    pub trouble: Option<String>,
    /// The window is left to the next agent; nobody is told yet.
    pub left_open: bool,
}

/// Takes the capture of `grant` for the incident of `record`, whose evidence goes into the bundle.
///
/// # Errors
/// The state could not be written; then nothing was sent.
pub async fn take(
    desk: &CaptureStore,
    site: &TargetHandle,
    grant: &CapturePlan,
    mut record: Record,
    evidence: impl Future<Output = Vec<u8>>,
    links: Links,
) -> Result<StoredCapture, StateError> {
    record.incident.capture = CaptureOutcome::Open { since: desk.clock.now() };
    record.incident.bundle = Some(desk.bundles.path(&record.incident.id).display().to_string());
    // The window goes first; the bundle is made while the server works on the request.
    let (came, made) = tokio::join!(
        capture(desk, site, grant, &record, links),
        make_bundle(desk.bundles.clone(), record.clone(), evidence)
    );
    let came = came?;
    let merged = match &grant.means {
        CaptureMethod::Http(request) if request.merges => {
            Some(request.marks.id.clone().unwrap_or_else(|| grant.attempt.mark()))
        }
        _ => None,
    };
    let keeping =
        Finalizer { desk: desk.clone(), attempt: grant.attempt.id.clone(), record, came, merged, made };
    Ok(keeping.keep().await)
}

async fn capture(
    desk: &CaptureStore,
    site: &TargetHandle,
    grant: &CapturePlan,
    record: &Record,
    links: Links,
) -> Result<CaptureResult, StateError> {
    match &grant.means {
        CaptureMethod::Http(request) => {
            let opened =
                window::open(site, request, &grant.attempt, record, &desk.state, desk.clock, links).await?;
            Ok(came_of(opened, request.writes_files))
        }
        CaptureMethod::Nsys(spec) => nsys::capture(desk, site, spec, &grant.attempt, record, links).await,
        CaptureMethod::Command(spec) => {
            command::capture(desk, &site.server, spec, &grant.attempt, record, links).await
        }
    }
}

async fn make_bundle(
    bundles: Bundles,
    record: Record,
    evidence: impl Future<Output = Vec<u8>>,
) -> Option<String> {
    let evidence = evidence.await;
    let made = tokio::task::spawn_blocking(move || bundles.create(&record, &evidence)).await;
    match made {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(panic) => Some(format!("the bundle was not made: {panic}")),
    }
}

fn came_of(outcome: Outcome, writes_files: bool) -> CaptureResult {
    let mut notes = outcome.ending.notes;
    if outcome.recovered.is_none() && outcome.ending.failure.is_none() {
        notes.push(window::NOT_RECOVERED.into());
    }
    if !writes_files {
        notes.push("nsys writes the report of this window, where its own -o says".into());
    }
    CaptureResult {
        means: if writes_files { "http" } else { "cuda_profiler_api" },
        left_open: outcome.ending.failure == Some(Failure::Cancelled),
        failure: outcome.ending.failure.map(|f| f.to_string()),
        unproven: outcome.ending.unproven,
        notes,
        exchanges: outcome.exchanges,
        artifacts: outcome.artifacts,
        verdict: outcome.verdict,
        remote: outcome
            .remote
            .then(|| outcome.folder.unwrap_or_else(|| "the folder that the server was launched with".into())),
        sent_at: outcome.sent_at,
        open: outcome.open,
        stalled: outcome.stalled,
        processes: BTreeMap::new(),
    }
}

/// A capture that is over, to be kept.
struct Finalizer {
    desk: CaptureStore,
    attempt: String,
    record: Record,
    came: CaptureResult,
    /// The name of the merged trace, where one is wished for.
    merged: Option<String>,
    /// Why the bundle could not be made so far.
    made: Option<String>,
}

impl Finalizer {
    /// Keeps it, on a thread of its own: files are moved and synced, traces are merged.
    async fn keep(self) -> StoredCapture {
        let (desk, attempt, record) = (self.desk.clone(), self.attempt.clone(), self.record.clone());
        let kept = tokio::task::spawn_blocking(move || self.keep_now()).await;
        kept.unwrap_or_else(|panic| {
            let trouble = format!("the capture could not be kept: {panic}");
            error!("{trouble}");
            let unproven = Some(trouble.clone());
            let end = AttemptEnd { at: desk.clock.now(), stalled: Duration::ZERO, bytes: 0, unproven };
            let booked = desk.state.end(&attempt, &end);
            let mut record = record;
            record.incident.capture = CaptureOutcome::Failed { why: trouble.clone(), captured: None };
            let trouble = Some(booked.err().map_or(trouble, |e| e.to_string()));
            StoredCapture { record, end, trouble, left_open: false }
        })
    }

    /// Files into the bundle, then the record, then the end into the state.
    fn keep_now(self) -> StoredCapture {
        let Self { desk, attempt, mut record, came, merged, made } = self;
        if came.left_open {
            let (stalled, unproven) = (came.stalled, came.unproven);
            let end = AttemptEnd { at: desk.clock.now(), stalled, bytes: 0, unproven };
            return StoredCapture { record, end, trouble: made, left_open: true };
        }
        let (incident, window) = (record.incident.id.clone(), record.incident.window());
        let mut trouble = made;
        if !desk.bundles.path(&incident).is_dir() {
            trouble = desk.bundles.create(&record, b"").err().map(|e| e.to_string());
        }
        let mut files = desk.bundles.adopt(&incident, window, &came.artifacts).unwrap_or_else(|e| {
            trouble.get_or_insert(e.to_string());
            came.artifacts.iter().map(|a| a.captured(a.path.clone(), true)).collect()
        });
        if let Some(name) = merged {
            match merge_traces(&desk, &incident, &files, &name) {
                Ok((file, left_out)) => {
                    files.push(file);
                    trouble =
                        trouble.or_else(|| Some(format!("the merged trace lacks {}", left_out.first()?)));
                }
                Err(e) => drop(trouble.get_or_insert(format!("the traces were not merged: {e}"))),
            }
        }
        let end = AttemptEnd {
            at: desk.clock.now(),
            stalled: came.stalled,
            bytes: files.iter().map(|f| f.size).sum(),
            unproven: came.unproven.clone(),
        };
        record.exchanges.extend(came.exchanges.iter().cloned());
        record.processes.extend(came.processes.clone());
        record.files.extend(files.iter().cloned());
        record.incident.capture = outcome_of(&record, came, files);
        if matches!(record.incident.capture, CaptureOutcome::Done(_))
            && record.incident.state != IncidentState::Resolved
        {
            record.incident.state = IncidentState::Captured;
        }
        if let Some(trouble) = &trouble {
            note(&mut record.incident.capture, trouble);
        }
        if let Err(e) = desk.bundles.write(&record) {
            // It is told all the same, though the bundle does not know.
            note(&mut record.incident.capture, trouble.get_or_insert(e.to_string()));
        }
        let booked = desk.state.save_incident(&record).and_then(|()| desk.state.end(&attempt, &end));
        if let Err(e) = booked {
            error!(error = %e, "the end of the window is not in the state; it will be looked at again at the next start");
            trouble.get_or_insert(e.to_string());
        }
        StoredCapture { record, end, trouble, left_open: false }
    }
}

/// `merge_profiles`, done here: `merged-<profile_id>.trace.json.gz` beside the record, where no
/// comparison takes it for a rank's. Gives it, and what it lacks.
fn merge_traces(
    desk: &CaptureStore,
    incident: &str,
    files: &[CapturedFile],
    name: &str,
) -> std::io::Result<(CapturedFile, Vec<String>)> {
    let bundle = desk.bundles.path(incident);
    let file = format!("merged-{name}.trace.json.gz");
    let whole = files.iter().filter(|f| f.whole);
    let parts: Vec<(String, PathBuf)> =
        whole.filter_map(|f| Some((f.rank.as_ref()?.to_string(), bundle.join(&f.path)))).collect();
    let target = bundle.join(&file);
    let merged = merge(&parts, &target)?;
    let artifact = inspect(&target, ServerKind::Sglang)?;
    Ok((CapturedFile { rank: None, ..artifact.captured(file, false) }, merged.left_out))
}

/// A reader of the capture should know this too.
fn note(outcome: &mut CaptureOutcome, trouble: &str) {
    match outcome {
        CaptureOutcome::Done(captured) | CaptureOutcome::Failed { captured: Some(captured), .. }
            if !captured.notes.iter().any(|n| n == trouble) =>
        {
            captured.notes.push(trouble.to_owned());
        }
        CaptureOutcome::Failed { why, captured: None } if !why.contains(trouble) => {
            *why = format!("{why}; {trouble}");
        }
        _ => {}
    }
}

fn outcome_of(record: &Record, came: CaptureResult, files: Vec<CapturedFile>) -> CaptureOutcome {
    let labels = |ranks: &[Rank]| ranks.iter().map(|r| r.labels()).collect();
    let mut notes = came.notes;
    for rank in &came.verdict.cut {
        notes.push(format!("the file of {rank} is cut off"));
    }
    if let Some(place) = &came.remote {
        notes.push(format!("the agent cannot see the files: they are on the server, in {place}"));
    }
    let captured = Captured {
        means: came.means.into(),
        started_at: came.sent_at,
        start_delay_s: came.sent_at.since(record.incident.wished_at()).as_secs_f64(),
        open_s: came.open.as_secs_f64(),
        stall_s: came.stalled.as_secs_f64(),
        quality: came.verdict.quality,
        files,
        missing: labels(&came.verdict.missing),
        idle: labels(&came.verdict.idle),
        remote: came.remote.is_some(),
        notes,
    };
    match (came.failure, captured.quality) {
        (None, Quality::Broken) => {
            let why =
                "the window went as planned, but no whole file came; the server's log may say why".into();
            CaptureOutcome::Failed { why, captured: Some(captured) }
        }
        (None, _) => CaptureOutcome::Done(captured),
        (Some(why), _) => {
            CaptureOutcome::Failed { why, captured: (!captured.files.is_empty()).then_some(captured) }
        }
    }
}
