//! One capture as the agent's loop sees it: a task that takes it, reports how far it is, and compares
//! the ranks of the files.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{CaptureStore, Taken, take};
use crate::act::bundle::{Bundles, gathered_of};
use crate::act::state::StateError;
use crate::agent::cost::Meter;
use crate::agent::plan::host;
use crate::agent::pool::{HeldLease, Wanted};
use crate::agent::window::{Links, Status, TargetHandle, WindowSignal};
use crate::agent::{AgentEvent, Samples, compare, report};
use crate::observe::trace::TraceError;
use skewtrap_core::capture::admit::{CaptureMethod, CapturePlan};
use skewtrap_core::capture::captured::{CaptureKind, CapturedFile};
use skewtrap_core::capture::governor::AttemptEnd;
use skewtrap_core::capture::refusal::Refusal;
use skewtrap_core::capture::window::{SettlingTime, WindowPhase};
use skewtrap_core::fleet::gather::{self, WindowManifest};
use skewtrap_core::fleet::lease::{START_WITHIN, WindowEnd};
use skewtrap_core::incident::{CaptureOutcome, Incident, Record, StoredCapture, VerdictNote};
use skewtrap_core::watch::WindowEvent;
use skewtrap_trace::rank::Rank;
use skewtrap_trace::verdict::{Confidence, Kind};

/// How long the disk may take to say what the windows before cost.
const LEDGER_LIMIT: Duration = Duration::from_secs(1);

/// What it needs.
#[derive(Debug)]
pub struct Task {
    /// Its incident, as it is in the core when the capture begins.
    pub incident: Incident,
    /// The receivers that its rule names.
    pub notify: Vec<Arc<str>>,
    /// What is to be done.
    pub plan: CapturePlan,
    /// Its server.
    pub handle: TargetHandle,
    /// Where captures are stored.
    pub store: CaptureStore,
    /// What measures its cost.
    pub meter: Meter,
    /// The agent's loop.
    pub tx: mpsc::Sender<AgentEvent>,
}

impl Task {
    /// Runs it to its end.
    pub async fn run(self, signals: mpsc::Receiver<WindowSignal>, cancel: CancellationToken) {
        let lease = match self.lease().await {
            Ok(lease) => lease,
            Err(refusal) => return self.refused(refusal).await,
        };
        let record = self.record().await;
        let settling = SettlingTime::opened(self.store.clock.now());
        let (status, seen) = watch::channel(Status { phase: WindowPhase::Starting, settling });
        let phases = tokio::spawn(report_phases(self.incident.id.clone(), seen, self.tx.clone()));
        let meter = self.meter.clone();
        let links = Links { signals, status, meter, cancel, lease: lease.clone() };
        let manifest = self.manifest();
        if let (Some(pool), Some(manifest)) = (&self.store.pool, &manifest) {
            pool.announce(manifest).await;
        }
        let evidence = evidence(self.incident.clone(), self.tx.clone());
        let (store, handle, plan) = (self.store.clone(), self.handle.clone(), self.plan.clone());
        // A task of its own: even if it panics, the loop learns that the window is over.
        let taking = async move { take(&store, &handle, &plan, &record, evidence, links).await };
        let taken = tokio::spawn(taking).await;
        phases.abort();
        self.give_back(lease, &taken).await;
        match taken {
            Ok(Ok(Taken::LeftOpen)) => {
                // As in `ended`.
                let _ = self.tx.send(AgentEvent::LeftOpen { incident: self.incident.id.clone() }).await;
            }
            Ok(Ok(Taken::Stored { capture, problem })) => {
                if let Some(problem) = &problem {
                    tracing::error!(incident = &*self.incident.id, "{problem}");
                }
                let outcome = capture.outcome.clone();
                self.ended(capture).await;
                if outcome.is_comparable() {
                    let gathered = self.gathered(manifest, &outcome).await;
                    self.compare(outcome, gathered).await;
                }
            }
            // A window of that agent's is over in a moment, and this one may open then.
            Ok(Err(StateError::Leased { process, until, .. })) => {
                let left = until.since(self.store.clock.now());
                self.refused(Refusal::OtherAgent { process, left }).await;
            }
            Ok(Err(error)) => self.failed(format!("{error}; nothing was sent to the server"), None).await,
            Err(panic) => {
                let why =
                    format!("the capture's task failed ({panic}); its window is stopped at its deadline");
                tracing::error!(incident = &*self.incident.id, "{why}");
                self.failed(why.clone(), Some(why)).await;
            }
        }
    }

    /// The lease of the pool, where there is one.
    async fn lease(&self) -> Result<Option<HeldLease>, Refusal> {
        let Some(pool) = &self.store.pool else { return Ok(None) };
        let (attempt, method) = (&self.plan.attempt, &self.plan.method);
        let ranks = match method {
            CaptureMethod::Http(request) => request.ranks.busy.len() + request.ranks.idle.len(),
            CaptureMethod::Nsys(_) | CaptureMethod::Command(_) => 1,
        };
        let (state, target) = (self.store.state.clone(), attempt.target.clone());
        let known =
            crate::world::blocking(move || state.ledger().map(|ledger| ledger.estimate(&target, ranks)));
        // A disk that hangs does not open a window; what it knows is asked for a moment.
        let known = tokio::time::timeout(LEDGER_LIMIT, known).await.ok().and_then(Result::ok);
        let before = known.and_then(Result::ok).unwrap_or_default();
        let instance = self.handle.instance.as_deref();
        pool.take(Wanted { attempt, method, instance, before }).await
    }

    /// Says to the pool how the window ended. One that is left open is told by the agent that closes it.
    async fn give_back(
        &self,
        lease: Option<HeldLease>,
        taken: &Result<Result<Taken, StateError>, tokio::task::JoinError>,
    ) {
        let (Some(pool), Some(lease)) = (&self.store.pool, lease) else { return };
        let end = match taken {
            Ok(Ok(Taken::LeftOpen)) => return,
            Ok(Ok(Taken::Stored { capture, .. })) => end_of(capture),
            Ok(Err(_)) => WindowEnd::default(),
            Err(panic) => {
                let why = format!("the capture's task failed ({panic})");
                WindowEnd { was_sent: true, unproven: Some(why), ..WindowEnd::default() }
            }
        };
        pool.give_back(&lease, end).await;
    }

    /// The record of its incident: of one that was captured before, with what that brought.
    async fn record(&self) -> Record {
        let path = self.store.bundles.path(&self.incident.id).display().to_string();
        let incident = Incident { bundle: Some(path), ..self.incident.clone() };
        let (agent, notify) = (self.store.state.agent().clone(), self.notify.clone());
        let new = Record::new(agent, incident.clone()).notifying(notify.clone());
        if self.incident.earlier.is_empty() {
            return new;
        }
        let (bundles, id) = (self.store.bundles.clone(), self.incident.id.clone());
        let known = crate::world::blocking(move || bundles.read(&id)).await.ok().flatten();
        // Its bundle may have been evicted meanwhile.
        known.map_or(new, |known| Record { incident, notify, ..known })
    }

    /// It is not opened now, and may be asked for again.
    async fn refused(&self, refusal: Refusal) {
        let event = WindowEvent::Refused(Box::new(refusal));
        // As in `ended`.
        let _ = self.tx.send(AgentEvent::Window { incident: self.incident.id.clone(), event }).await;
    }

    async fn failed(&self, why: String, unproven: Option<String>) {
        let end = AttemptEnd { at: self.store.clock.now(), unproven, ..AttemptEnd::default() };
        self.ended(Box::new(StoredCapture::failed(why, end))).await;
    }

    async fn ended(&self, capture: Box<StoredCapture>) {
        let event = WindowEvent::Ended(capture);
        // The loop is gone only when the agent ends; the state has it all.
        let _ = self.tx.send(AgentEvent::Window { incident: self.incident.id.clone(), event }).await;
    }

    /// What the agents of other nodes are told of the window.
    fn manifest(&self) -> Option<WindowManifest> {
        let CaptureMethod::Http(request) = &self.plan.method else { return None };
        let dir = request.marks.dir.clone().or_else(|| request.folder.clone());
        let dir = dir.or_else(|| self.handle.default_dir.clone()).filter(|_| request.writes_files)?;
        let expected = request.ranks.busy.iter().chain(&request.ranks.idle);
        Some(WindowManifest {
            window: gather::VERSION,
            incident: self.incident.id.to_string(),
            mark: self.plan.attempt.mark(),
            target: self.handle.target.clone(),
            host: host(),
            engine: request.engine,
            dir,
            marks: request.marks.clone(),
            expected: expected.map(|rank| rank.labels()).collect(),
            collect_s: (START_WITHIN + request.deadline + gather::EXPORT).as_secs_f64(),
        })
    }

    /// What the agents of other nodes brought of the ranks that have no file here: sentences about those of which
    /// nothing came.
    async fn gathered(&self, manifest: Option<WindowManifest>, outcome: &CaptureOutcome) -> Vec<String> {
        let (Some(pool), Some(manifest)) = (&self.store.pool, manifest) else { return Vec::new() };
        let Some(captured) = outcome.captured().filter(|captured| !captured.missing.is_empty()) else {
            return Vec::new();
        };
        let missing: Vec<Rank> = captured.missing.iter().filter_map(Rank::from_labels).collect();
        let here = manifest.ranks().into_iter().filter(|rank| !missing.contains(rank)).collect();
        let folder = gathered_of(&self.store.bundles.path(&self.incident.id), self.incident.window());
        let until = tokio::time::Instant::now() + gather::EXPORT;
        let gathered = pool.gather(&manifest, here, folder, until).await;
        gathered.map_or_else(Vec::new, |gathered| gathered.notes())
    }

    async fn compare(self, outcome: CaptureOutcome, notes: Vec<String>) {
        let (incident, window) = (self.incident.id.clone(), self.incident.window());
        let bundles = self.store.bundles.clone();
        // The core's own incident is somewhere else by now: the report is of this capture.
        let captured = Incident { capture: outcome, ..self.incident };
        let event = match compared(&bundles, captured).await {
            Some(mut note) => {
                for lost in &notes {
                    tracing::warn!(incident = &*incident, "{lost}");
                    note.sentence = format!("{} {lost}.", note.sentence.trim_end());
                }
                AgentEvent::Compared { incident, window, note }
            }
            None => AgentEvent::NotCompared { incident },
        };
        // As in `ended`: the report lies in the bundle.
        let _ = self.tx.send(event).await;
    }
}

/// What the pool is told of a capture.
pub(super) fn end_of(capture: &StoredCapture) -> WindowEnd {
    WindowEnd {
        was_sent: !capture.exchanges.is_empty() || capture.end.unproven.is_some(),
        stall_s: capture.end.stalled.as_secs_f64(),
        bytes: capture.end.bytes,
        unproven: capture.end.unproven.clone(),
    }
}

/// Asks the loop for the evidence only after the request is on its way.
async fn evidence(incident: Incident, tx: mpsc::Sender<AgentEvent>) -> Samples {
    let (answer, answered) = oneshot::channel();
    let since = incident.worse_of(incident.window()).map_or(incident.finding.onset, |worse| worse.at);
    match tx.send(AgentEvent::Evidence { incident: Box::new(incident), since, answer }).await {
        Ok(()) => answered.await.unwrap_or_default(),
        Err(_) => Samples::default(),
    }
}

async fn report_phases(incident: Arc<str>, mut seen: watch::Receiver<Status>, tx: mpsc::Sender<AgentEvent>) {
    let mut last = None;
    loop {
        let phase = seen.borrow_and_update().phase;
        if last != Some(phase) {
            last = Some(phase);
            let event = WindowEvent::Entered(phase);
            if tx.send(AgentEvent::Window { incident: incident.clone(), event }).await.is_err() {
                return;
            }
        }
        if seen.changed().await.is_err() {
            return;
        }
    }
}

/// Compares the ranks of an incident's last capture and writes the reports into its bundle; `None` where that fails,
/// and the log says why.
pub async fn compared(bundles: &Bundles, incident: Incident) -> Option<VerdictNote> {
    let (bundles, id) = (bundles.clone(), incident.id.clone());
    // It reads large files.
    match crate::world::blocking(move || compare_now(&bundles, &incident)).await {
        Ok(Ok(note)) => Some(note),
        Ok(Err(error)) => {
            tracing::warn!(incident = &*id, "its ranks could not be compared: {error:#}");
            None
        }
        Err(panic) => {
            tracing::error!(incident = &*id, "comparing its ranks failed: {panic}");
            None
        }
    }
}

fn compare_now(bundles: &Bundles, incident: &Incident) -> anyhow::Result<VerdictNote> {
    let (window, bundle) = (incident.window(), &bundles.path(&incident.id));
    // A baseline is judged by itself.
    let known = if incident.is_baseline {
        Vec::new()
    } else {
        bundles.baselines(&incident.target, incident.fired_at)
    };
    let reference = |known: &Incident| compare::ranks_of(&bundles.path(&known.id), 1, files_of(known));
    let request = compare::CompareRequest {
        paths: compare::ranks_of(bundle, window, files_of(incident)),
        reference: known.first().map(|r| reference(&r.incident)).unwrap_or_default(),
        suspect: Some(incident.finding.suspect()),
        ..compare::CompareRequest::default()
    };
    let compared = match compare::run(&request, &|_| {}) {
        // A program may leave anything; of a profiler's files whoever reads the incident is told.
        // A verdict without a culprit would make it a baseline.
        Err(error)
            if !incident.is_baseline
                && incident.capture.captured().is_some_and(|c| c.means != CaptureKind::Command) =>
        {
            tracing::warn!(incident = &*incident.id, "its ranks could not be compared: {error}");
            return Ok(no_verdict(&error));
        }
        compared => compared?,
    };
    report::write(bundle, window, &compared, Some(incident))?;
    let suspect = request.suspect.filter(|suspect| !suspect.rank.0.is_empty());
    let mut note = VerdictNote::held_against(&compared.comparison, suspect);
    if incident.is_baseline {
        keep_as_baseline(bundles, incident, &mut note)?;
    }
    Ok(note)
}

fn files_of(incident: &Incident) -> &[CapturedFile] {
    incident.capture.captured().map_or(&[], |captured| &captured.files)
}

/// What is told where the ranks of a capture could not be compared.
fn no_verdict(error: &TraceError) -> VerdictNote {
    VerdictNote {
        kind: Kind::InsufficientEvidence,
        rank: None,
        by: None,
        sentence: format!("The ranks could not be compared: {error}."),
        lost_ms_per_step: None,
        confidence: Confidence::Low,
        confirms: None,
        suspect: None,
    }
}

/// The bundle of a baseline is not deleted until there is a newer one; a capture in which a rank stands out is none.
fn keep_as_baseline(bundles: &Bundles, incident: &Incident, note: &mut VerdictNote) -> anyhow::Result<()> {
    let judged = Incident { verdict: Some(note.clone()), ..incident.clone() };
    let is_kept = judged.serves_as_baseline();
    note.sentence.push_str(if is_kept {
        " Later captures of this server are compared with this one."
    } else {
        " It is no baseline: take one when no rank stands out."
    });
    if is_kept {
        bundles.keep_baseline(incident)?;
    }
    Ok(())
}
