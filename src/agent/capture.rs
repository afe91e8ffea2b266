//! Takes one capture from its plan to its bundle, in an order that survives `kill -9` anywhere: the
//! attempt is in the state before the start is sent, the files are in the bundle before the state
//! forgets the window, and the state knows what was captured until the incident that the core makes of
//! it is in the bundle and its message in the outbox. What a dead agent left between two of these
//! steps, [`find`] and [`close`] finish.
//!
//! A capture never changes its incident: it gives a [`StoredCapture`], and the core does the rest.

mod command;
pub mod nsys;
mod recover;
pub mod task;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use tracing::error;

pub use self::recover::{Found, close, find, without_server};

use crate::act::bundle::{Bundles, Evidence};
use crate::act::merge::merge;
use crate::act::state::{State, StateError};
use crate::agent::pool::Pool;
use crate::agent::window::{self, Links, Outcome, TargetHandle};
use crate::clock::Clock;
use crate::observe::artifact::inspect;
use skewtrap_core::capture::admit::{CaptureMethod, CapturePlan};
use skewtrap_core::capture::captured::{CaptureKind, Captured, CapturedFile, Quality};
use skewtrap_core::capture::facts::ServerKind;
use skewtrap_core::capture::governor::{AttemptEnd, Harm};
use skewtrap_core::capture::plan::StartRequest;
use skewtrap_core::capture::size::PastWindow;
use skewtrap_core::capture::verify::{Artifact, FileVerification};
use skewtrap_core::capture::window::Failure;
use skewtrap_core::incident::{CaptureOutcome, Exchange, Record, StoredCapture};
use skewtrap_core::message::counted;
use skewtrap_trace::labels::Labels;
use skewtrap_trace::printable::printable;
use skewtrap_trace::rank::Rank;
use skewtrap_trace::time::Time;

/// A sentence about a capture is cut off behind so many bytes.
const LONGEST_SENTENCE: usize = 2048;

/// Where captures are stored.
#[derive(Clone, Debug)]
pub struct CaptureStore {
    /// Attempts and open windows.
    pub state: State,
    /// Where bundles go.
    pub bundles: Bundles,
    /// Where `now` comes from.
    pub clock: Clock,
    /// The lease of the pool, where one is configured.
    pub pool: Option<Pool>,
}

/// The result of a capture, by whatever means.
#[derive(Debug, Default)]
pub struct CaptureResult {
    /// By what it captured.
    pub means: CaptureKind,
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
    pub verdict: FileVerification,
    /// Where the files are when the agent cannot see them: the server's view.
    pub remote: Option<String>,
    /// When it began.
    pub sent_at: Time,
    /// How long it was open.
    pub open: Duration,
    /// Serving that it cost.
    pub stalled: Duration,
    /// The longest silence of one rank, where it was measured.
    pub longest: Option<Duration>,
    pub predicted: Option<Duration>,
    /// Silences shorter than this could not be seen, where no rank's export is seen.
    pub unseen_below: Option<Duration>,
    /// Whether the server went away in it.
    pub has_died: bool,
    /// What it teaches about the cost of windows.
    pub past: Option<PastWindow>,
    /// Which process was which rank.
    pub processes: BTreeMap<u32, Labels>,
    /// The agent ends before its window was proven closed: the next one closes it.
    pub left_open: bool,
}

impl CaptureResult {
    /// Its sentences hold what programs and servers answered, and people read them in terminals and messages.
    fn cleaned(self) -> Self {
        let clean = |text: String| printable(&text, LONGEST_SENTENCE).into_owned();
        Self {
            failure: self.failure.map(clean),
            unproven: self.unproven.map(clean),
            notes: self.notes.into_iter().map(clean).collect(),
            ..self
        }
    }

    /// Books what a capture cost whose export is in no rank, and what of it could not be seen.
    fn book(&mut self, links: &Links) {
        self.stalled = links.stalled();
        self.longest = Some(links.meter.longest()).filter(|longest| !longest.is_zero());
        self.unseen_below = Some(links.meter.unseen_below());
    }

    /// Of an attempt that is in the state and of which nothing was sent.
    fn never_sent(means: CaptureKind, why: impl ToString, at: Time) -> Self {
        Self { means, failure: Some(why.to_string()), sent_at: at, ..Self::default() }
    }
}

/// The result of a capture that was begun.
#[derive(Debug)]
pub enum Taken {
    /// It is over, and what it brought is stored.
    Stored {
        /// What it captured and how it ended, as it is in the state.
        capture: Box<StoredCapture>,
        /// What could not be written: the capture is done, its bundle is not.
        problem: Option<String>,
    },
    /// The agent ends before the window was proven closed. The state has it, and the next agent
    /// closes it; until then nothing is reported.
    LeftOpen,
}

/// Takes the capture of `plan` for the incident of `record`, whose evidence goes into the bundle.
///
/// # Errors
/// The state could not be written; then nothing was sent.
pub async fn take(
    store: &CaptureStore,
    handle: &TargetHandle,
    plan: &CapturePlan,
    record: &Record,
    evidence: impl Future<Output: Evidence + Send + 'static>,
    links: Links,
) -> Result<Taken, StateError> {
    // The window goes first; the bundle is made while the server works on the request.
    let (result, begun) = tokio::join!(
        capture(store, handle, plan, record, links),
        begin_bundle(store.bundles.clone(), record.clone(), evidence)
    );
    let result = result?;
    let merged = match &plan.method {
        CaptureMethod::Http(request) if request.merges => {
            Some(request.marks.id.clone().unwrap_or_else(|| plan.attempt.mark()))
        }
        _ => None,
    };
    let problem = begun.err();
    let (attempt, record) = (plan.attempt.id.clone(), record.clone());
    let finalizer = Finalizer { store: store.clone(), attempt, record, result, merged, problem };
    Ok(finalizer.run().await)
}

async fn capture(
    store: &CaptureStore,
    handle: &TargetHandle,
    plan: &CapturePlan,
    record: &Record,
    links: Links,
) -> Result<CaptureResult, StateError> {
    match &plan.method {
        CaptureMethod::Http(request) => {
            let (at, lease) = (store.clock.now(), links.lease.clone());
            let opened =
                window::open(handle, request, &plan.attempt, record, &store.state, store.clock, links)
                    .await?;
            let mut result = opened.map_or_else(
                |unsent| CaptureResult::never_sent(CaptureKind::Http, unsent, at),
                |outcome| result_of(outcome, request),
            );
            result.notes.extend(lease.and_then(|lease| lease.note()));
            Ok(result)
        }
        CaptureMethod::Nsys(spec) => nsys::capture(store, handle, spec, &plan.attempt, record, links).await,
        CaptureMethod::Command(spec) => {
            command::capture(store, &handle.server, spec, &plan.attempt, record, links).await
        }
    }
}

async fn begin_bundle(
    bundles: Bundles,
    record: Record,
    evidence: impl Future<Output: Evidence + Send + 'static>,
) -> Result<(), String> {
    let evidence = evidence.await;
    let begun = crate::world::blocking(move || bundles.create(&record, &evidence)).await;
    match begun {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(panic) => Err(format!("the bundle was not made: {panic}")),
    }
}

fn result_of(outcome: Outcome, request: &StartRequest) -> CaptureResult {
    let writes_files = request.writes_files;
    let mut notes = outcome.ending.notes;
    if outcome.recovered.is_none() && outcome.ending.failure.is_none() {
        notes.push(window::NOT_RECOVERED.into());
    }
    if !writes_files {
        notes.push("nsys writes the report of this window, where its own -o says".into());
    }
    CaptureResult {
        means: if writes_files { CaptureKind::Http } else { CaptureKind::CudaProfilerApi },
        has_died: matches!(outcome.ending.failure, Some(Failure::ServerGone { .. })),
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
        longest: Some(outcome.longest),
        predicted: request.sizing.as_deref().and_then(|sizing| sizing.predicted),
        unseen_below: None,
        past: outcome.past,
        processes: BTreeMap::new(),
    }
}

/// A capture that is over, to be stored.
struct Finalizer {
    store: CaptureStore,
    attempt: String,
    /// The record of its incident as it was when the capture began.
    record: Record,
    result: CaptureResult,
    /// The name of the merged trace, where one is to be made.
    merged: Option<String>,
    /// Why the bundle could not be begun.
    problem: Option<String>,
}

impl Finalizer {
    /// Runs on a thread of its own: files are moved and synced, traces are merged.
    async fn run(self) -> Taken {
        let (store, attempt, incident) =
            (self.store.clone(), self.attempt.clone(), self.record.incident.id.clone());
        let taken = crate::world::blocking(move || self.run_now()).await;
        taken.unwrap_or_else(|panic| {
            let why = format!("the capture could not be stored: {panic}");
            error!("{why}");
            let unproven = Some(why.clone());
            let end = AttemptEnd { at: store.clock.now(), unproven, ..AttemptEnd::default() };
            let capture = Box::new(StoredCapture::failed(why.clone(), end));
            let booked = store.state.finish(&attempt, &incident, &capture);
            if booked.is_err() {
                store.state.finish_later(&attempt, &incident, &capture);
            }
            let problem = Some(booked.err().map_or(why, |e| e.to_string()));
            Taken::Stored { capture, problem }
        })
    }

    /// Files into the bundle, then the list of them, then all of it with the end into the state.
    fn run_now(self) -> Taken {
        let Self { store, attempt, record, result, merged, mut problem } = self;
        let result = result.cleaned();
        if result.left_open {
            return Taken::LeftOpen;
        }
        let (incident, window) = (record.incident.id.clone(), record.incident.window());
        if !store.bundles.path(&incident).is_dir() {
            problem = store.bundles.create(&record, b"").err().map(|e| e.to_string());
        }
        let mut files = store.bundles.adopt(&incident, window, &result.artifacts).unwrap_or_else(|e| {
            problem.get_or_insert(e.to_string());
            result.artifacts.iter().map(|a| a.captured(a.path.clone(), true)).collect()
        });
        if let Some(name) = merged {
            match merge_traces(&store, &incident, &files, &name) {
                Ok((file, left_out)) => {
                    files.push(file);
                    problem =
                        problem.or_else(|| Some(format!("the merged trace lacks {}", left_out.first()?)));
                }
                Err(e) => drop(problem.get_or_insert(format!("the traces were not merged: {e}"))),
            }
        }
        let harm = Harm::of(result.has_died, result.predicted, result.longest.unwrap_or_default());
        let suspended = harm.as_ref().map(|harm| {
            format!("windows on this server are suspended until `skewtrap resume`: {}", harm.why)
        });
        let end = AttemptEnd {
            at: store.clock.now(),
            stalled: result.stalled,
            bytes: files.iter().map(|f| f.size).sum(),
            unproven: result.unproven.clone(),
            cost: result.past,
            harm,
        };
        let mut capture = StoredCapture {
            end,
            bundle: Some(store.bundles.path(&incident).display().to_string()),
            exchanges: result.exchanges.clone(),
            processes: result.processes.clone(),
            outcome: outcome_of(record.incident.requested_at(), result, files.clone()),
            files,
        };
        let left = capture.files.iter().filter(|file| file.inode.is_some()).count();
        let left = (left > 0).then(|| {
            format!(
                "{} could not be moved into the bundle and {} where the server wrote {}",
                counted(left, "file"),
                if left == 1 { "stays" } else { "stay" },
                if left == 1 { "it" } else { "them" }
            )
        });
        for told in problem.iter().chain(&suspended).chain(&left) {
            note(&mut capture.outcome, told);
        }
        if let Err(e) = store.bundles.add_files(&incident, &capture) {
            // It is reported even though it is not in the bundle.
            note(&mut capture.outcome, problem.get_or_insert(e.to_string()));
        }
        if let Err(e) = store.state.finish(&attempt, &incident, &capture) {
            error!(error = %e, "the end of the window is not in the state yet; it is written as soon as the disk takes it");
            store.state.finish_later(&attempt, &incident, &capture);
            problem.get_or_insert(e.to_string());
        }
        Taken::Stored { capture: Box::new(capture), problem }
    }
}

/// `merge_profiles`, done here: `merged-<profile_id>.trace.json.gz` beside the record, where no
/// comparison takes it for a rank's. Gives it, and what it lacks.
fn merge_traces(
    store: &CaptureStore,
    incident: &str,
    files: &[CapturedFile],
    name: &str,
) -> std::io::Result<(CapturedFile, Vec<String>)> {
    let bundle = store.bundles.path(incident);
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
fn note(outcome: &mut CaptureOutcome, problem: &str) {
    match outcome {
        CaptureOutcome::Done(captured) | CaptureOutcome::Failed { captured: Some(captured), .. }
            if !captured.notes.iter().any(|n| n == problem) =>
        {
            captured.notes.push(problem.to_owned());
        }
        CaptureOutcome::Failed { why, captured: None } if !why.contains(problem) => {
            *why = format!("{why}; {problem}");
        }
        _ => {}
    }
}

fn outcome_of(requested_at: Time, result: CaptureResult, files: Vec<CapturedFile>) -> CaptureOutcome {
    let labels = |ranks: &[Rank]| ranks.iter().map(|r| r.labels()).collect();
    let mut notes = result.notes;
    for rank in &result.verdict.cut {
        notes.push(format!("the file of {rank} is cut off"));
    }
    if let Some(place) = &result.remote {
        notes.push(format!("the agent cannot see the files: they are on the server, in {place}"));
    }
    let captured = Captured {
        means: result.means,
        started_at: result.sent_at,
        start_delay_s: result.sent_at.since(requested_at).as_secs_f64(),
        open_s: result.open.as_secs_f64(),
        stall_s: result.stalled.as_secs_f64(),
        longest_stall_s: result.longest.map(|longest| longest.as_secs_f64()),
        predicted_stall_s: result.predicted.map(|predicted| predicted.as_secs_f64()),
        unseen_stall_below_s: result.unseen_below.map(|below| below.as_secs_f64()),
        quality: result.verdict.quality,
        files,
        missing: labels(&result.verdict.missing),
        idle: labels(&result.verdict.idle),
        remote: result.remote.is_some(),
        notes,
    };
    match (result.failure, captured.quality) {
        (None, Quality::Broken) => {
            let why =
                "the window went as planned, but no whole file came of it; the server's log may say why"
                    .into();
            CaptureOutcome::Failed { why, captured: Some(captured) }
        }
        (None, _) => CaptureOutcome::Done(captured),
        (Some(why), _) => {
            CaptureOutcome::Failed { why, captured: (!captured.files.is_empty()).then_some(captured) }
        }
    }
}
