//! One capture as the loop sees it: a task that takes it, tells how far it is, and compares the
//! ranks of what came.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::capture::{self, CaptureStore, StoredCapture};
use super::cost::Meter;
use super::window::{Links, Status, TargetHandle, WindowSignal};
use super::{AgentEvent, compare, report};
use crate::act::bundle::traces_of;
use skewtrap_core::capture::admit::CapturePlan;
use skewtrap_core::capture::governor::AttemptEnd;
use skewtrap_core::capture::window::{Distrust, WindowPhase};
use skewtrap_core::incident::{CaptureOutcome, Incident, Record, VerdictNote};
use skewtrap_core::watch::WindowNews;

/// What it needs.
#[derive(Debug)]
pub struct Task {
    /// Its incident, as it stood when it fired.
    pub incident: Incident,
    /// The receivers that its rule names.
    pub notify: Vec<Arc<str>>,
    /// What was granted.
    pub grant: CapturePlan,
    /// Its server.
    pub site: TargetHandle,
    /// What captures are kept with.
    pub desk: CaptureStore,
    /// What measures its cost.
    pub meter: Meter,
    /// The agent's loop.
    pub tx: mpsc::Sender<AgentEvent>,
}

impl Task {
    /// Runs it to its end.
    pub async fn run(self, heard: mpsc::Receiver<WindowSignal>, cancel: CancellationToken) {
        let record = self.record().await;
        let blind = Distrust::opened(self.desk.clock.now());
        let (status, seen) = watch::channel(Status { phase: WindowPhase::Starting, blind });
        let teller = tokio::spawn(tell_phases(self.incident.id.clone(), seen, self.tx.clone()));
        let links = Links { heard, status, meter: self.meter.clone(), cancel };
        let evidence = evidence(self.incident.clone(), self.tx.clone());
        let (desk, site, grant) = (self.desk.clone(), self.site.clone(), self.grant.clone());
        // A task of its own: whatever becomes of it, the loop hears that the window is over.
        let taking = async move { capture::take(&desk, &site, &grant, record, evidence, links).await };
        let kept = tokio::spawn(taking).await;
        teller.abort();
        match kept {
            Ok(Ok(kept)) if kept.left_open => {
                // As below. The state has it, and the next agent closes it.
                let _ = self.tx.send(AgentEvent::LeftOpen { incident: self.incident.id.clone() }).await;
            }
            Ok(Ok(kept)) => self.finish(kept).await,
            Ok(Err(error)) => self.failed(format!("{error}; nothing was sent to the server"), None).await,
            Err(panic) => {
                let why =
                    format!("the capture's task failed ({panic}); its window is stopped at its deadline");
                tracing::error!(incident = &*self.incident.id, "{why}");
                self.failed(why.clone(), Some(why)).await;
            }
        }
    }

    /// What is known of the incident so far: of one that was captured before, what that brought.
    async fn record(&self) -> Record {
        let (agent, notify) = (self.desk.state.agent().clone(), self.notify.clone());
        let new = Record::new(agent, self.incident.clone()).told_to(notify.clone());
        if self.incident.earlier.is_empty() {
            return new;
        }
        let (bundles, id) = (self.desk.bundles.clone(), self.incident.id.clone());
        let kept = tokio::task::spawn_blocking(move || bundles.read(&id)).await.ok().flatten();
        // Its bundle may have been evicted meanwhile.
        kept.map_or(new, |kept| Record { incident: self.incident.clone(), notify, ..kept })
    }

    async fn failed(&self, why: String, unproven: Option<String>) {
        let outcome = CaptureOutcome::Failed { why, captured: None };
        let end = AttemptEnd { at: self.desk.clock.now(), stalled: Duration::ZERO, bytes: 0, unproven };
        self.over(outcome, end, None).await;
    }

    async fn finish(self, kept: StoredCapture) {
        if let Some(trouble) = &kept.trouble {
            tracing::error!(incident = &*self.incident.id, "{trouble}");
        }
        let bundle = self.desk.bundles.path(&self.incident.id);
        let outcome = kept.record.incident.capture;
        let is_comparable = outcome.is_comparable();
        self.over(outcome, kept.end, Some(bundle.display().to_string())).await;
        if is_comparable {
            self.compare(bundle).await;
        }
    }

    async fn over(&self, outcome: CaptureOutcome, end: AttemptEnd, bundle: Option<String>) {
        let news = WindowNews::Ended { outcome: Box::new(outcome), end };
        // The loop is gone only when the agent ends; the state and the bundle have it all.
        let _ = self.tx.send(AgentEvent::Window { incident: self.incident.id.clone(), news, bundle }).await;
    }

    async fn compare(self, bundle: PathBuf) {
        let (incident, window) = (self.incident.id.clone(), self.incident.window());
        let compared = tokio::task::spawn_blocking(move || compare_now(&bundle, &self.incident)).await;
        let told = match compared {
            Ok(Ok(note)) => AgentEvent::Compared { incident, window, note },
            Ok(Err(error)) => {
                tracing::warn!(incident = &*incident, "its ranks could not be compared: {error:#}");
                AgentEvent::NotCompared { incident }
            }
            Err(error) => {
                tracing::error!(incident = &*incident, "comparing its ranks failed: {error}");
                AgentEvent::NotCompared { incident }
            }
        };
        // As above: the report lies in the bundle.
        let _ = self.tx.send(told).await;
    }
}

/// Asks the loop for the evidence only after the request is on its way.
async fn evidence(incident: Incident, tx: mpsc::Sender<AgentEvent>) -> Vec<u8> {
    let (answer, answered) = oneshot::channel();
    let since = incident.worse_of(incident.window()).map_or(incident.finding.onset, |worse| worse.at);
    match tx.send(AgentEvent::Evidence { incident: Box::new(incident), since, answer }).await {
        Ok(()) => match answered.await {
            Ok(samples) => tokio::task::spawn_blocking(move || samples.lines()).await.unwrap_or_default(),
            Err(_) => Vec::new(),
        },
        Err(_) => Vec::new(),
    }
}

async fn tell_phases(incident: Arc<str>, mut seen: watch::Receiver<Status>, tx: mpsc::Sender<AgentEvent>) {
    let mut last = None;
    loop {
        let phase = seen.borrow_and_update().phase;
        if last != Some(phase) {
            last = Some(phase);
            let news = WindowNews::Entered(phase);
            if tx.send(AgentEvent::Window { incident: incident.clone(), news, bundle: None }).await.is_err() {
                return;
            }
        }
        if seen.changed().await.is_err() {
            return;
        }
    }
}

/// Compares the ranks of an incident's last capture and writes the reports into its bundle.
fn compare_now(bundle: &Path, incident: &Incident) -> anyhow::Result<VerdictNote> {
    let window = incident.window();
    let request = compare::CompareRequest {
        paths: vec![bundle.join(traces_of(window))],
        suspect: Some(incident.finding.rank.clone()),
        ..compare::CompareRequest::default()
    };
    let compared = compare::run(&request, &|_| {})?;
    report::write(bundle, window, &compared)?;
    Ok(VerdictNote::from(&compared.comparison))
}
