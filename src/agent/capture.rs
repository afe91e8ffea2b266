//! Takes one window from its grant to the verdict: drives it, keeps its files, books what it cost,
//! compares its ranks. A task of its own; whatever becomes of it, the window is bounded elsewhere.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};

use super::Inbox;
use super::archive::{Archive, Filed, Job};
use super::clock::Clock;
use super::window::{self, Links, Outcome, Site, Status};
use super::{compare, report};
use crate::act::state::State;
use crate::decide::capture::admit::{Grant, Means};
use crate::decide::capture::governor::AttemptEnd;
use crate::decide::capture::window::{Blind, Phase};
use crate::decide::incident::{CaptureOutcome, Captured, Finding, Incident, Quality, Record};
use crate::decide::watch::WindowNews;

/// What a capture needs.
#[derive(Debug)]
pub struct Task {
    /// Its incident, as it stood when it fired.
    pub incident: Incident,
    /// What was granted.
    pub grant: Grant,
    /// Its server.
    pub site: Site,
    /// The state.
    pub state: State,
    /// The clock.
    pub clock: Clock,
    /// The bundles.
    pub archive: Archive,
    /// The agent's loop.
    pub tx: mpsc::Sender<Inbox>,
}

impl Task {
    /// Runs it to its end.
    pub async fn run(
        self,
        heard: mpsc::Receiver<window::Heard>,
        cancel: tokio_util::sync::CancellationToken,
    ) {
        let record = Record::new(self.state.agent().clone(), self.incident.clone());
        let (status, seen) =
            watch::channel(Status { phase: Phase::Starting, blind: Blind::opened(self.clock.now()) });
        let teller = tokio::spawn(tell_phases(self.incident.id.clone(), seen, self.tx.clone()));
        let links = Links { heard, status, cancel };
        let outcome = match &self.grant.means {
            Means::Http(request) => {
                window::open(
                    &self.site,
                    request,
                    &self.grant.attempt,
                    &record,
                    &self.state,
                    self.clock,
                    links,
                )
                .await
            }
            other => {
                window::open_other(
                    &self.site,
                    other,
                    &self.grant.attempt,
                    &record,
                    &self.state,
                    self.clock,
                    links,
                )
                .await
            }
        };
        teller.abort();
        match outcome {
            Ok(outcome) => self.finish(record, outcome).await,
            Err(error) => {
                let why = format!("{error}; nothing was sent to the server");
                let end = AttemptEnd {
                    at: self.clock.now(),
                    stalled: std::time::Duration::ZERO,
                    bytes: 0,
                    unproven: None,
                };
                self.over(CaptureOutcome::Failed { why, captured: None }, end, None).await;
            }
        }
    }

    async fn finish(self, mut record: Record, outcome: Outcome) {
        let captured = captured_of(&self, &outcome);
        let end = AttemptEnd {
            at: self.clock.now(),
            stalled: outcome.stalled,
            bytes: outcome.artifacts.iter().map(|a| a.size).sum(),
            unproven: outcome.ending.unproven.clone(),
        };
        if let Err(error) = self.state.end(&self.grant.attempt.id, &end) {
            tracing::error!("{error}");
        }
        let mut result = match (&outcome.ending.failure, captured.quality) {
            (Some(failure), _) => {
                CaptureOutcome::Failed { why: failure.to_string(), captured: Some(captured) }
            }
            (None, Quality::Broken) => CaptureOutcome::Failed {
                why: "the window was opened and closed, and no usable file came; see the server's log".into(),
                captured: Some(captured),
            },
            (None, _) => CaptureOutcome::Done(captured),
        };
        record.incident.capture = result.clone();
        record.exchanges = outcome.exchanges;
        let filed = self.file(record, outcome.artifacts).await;
        if let (CaptureOutcome::Done(c) | CaptureOutcome::Failed { captured: Some(c), .. }, Some(filed)) =
            (&mut result, &filed)
        {
            c.files.clone_from(&filed.files);
        }
        let usable =
            matches!(&result, CaptureOutcome::Done(c) if c.quality != Quality::Unseen && !c.files.is_empty());
        let (tx, id, finding) = (self.tx.clone(), self.incident.id.clone(), self.incident.finding.clone());
        let path = filed.map(|f| f.path);
        self.over(result, end, path.as_ref().map(|p| p.display().to_string())).await;
        if let (true, Some(path)) = (usable, path) {
            compare_bundle(tx, id, finding, path).await;
        }
    }

    async fn file(
        &self,
        record: Record,
        files: Vec<crate::decide::capture::verify::Artifact>,
    ) -> Option<Filed> {
        let (ask, asked) = oneshot::channel();
        let since = self.incident.finding.onset;
        let question = Inbox::Evidence { incident: self.incident.clone(), since, answer: ask };
        let evidence = match self.tx.send(question).await {
            Ok(()) => asked.await.unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        let (done, filed) = oneshot::channel();
        let job = Job::Create { record: Box::new(record), evidence, files, done: Some(done) };
        self.archive.send(job).ok()?;
        filed.await.ok().flatten()
    }

    async fn over(&self, outcome: CaptureOutcome, end: AttemptEnd, bundle: Option<String>) {
        let news = WindowNews::Ended { outcome, end };
        // The loop is gone only when the agent ends; the state and the bundle have it all.
        let _ = self.tx.send(Inbox::Window { incident: self.incident.id.clone(), news, bundle }).await;
    }
}

async fn tell_phases(incident: Arc<str>, mut seen: watch::Receiver<Status>, tx: mpsc::Sender<Inbox>) {
    let mut last = None;
    loop {
        let phase = seen.borrow_and_update().phase;
        if last != Some(phase) {
            last = Some(phase);
            let news = WindowNews::Entered(phase);
            if tx.send(Inbox::Window { incident: incident.clone(), news, bundle: None }).await.is_err() {
                return;
            }
        }
        if seen.changed().await.is_err() {
            return;
        }
    }
}

fn captured_of(task: &Task, outcome: &Outcome) -> Captured {
    let labels = |ranks: &[crate::decide::signal::rank::Rank]| ranks.iter().map(|r| r.labels()).collect();
    let mut notes = outcome.ending.notes.clone();
    if let Means::Http(request) = &task.grant.means {
        notes.extend(request.notes.iter().cloned());
    }
    if outcome.remote
        && let Some(folder) = &outcome.folder
    {
        notes.push(format!(
            "the files are on the server, in {folder}: the agent does not see that folder (path_map)"
        ));
    }
    if outcome.recovered.is_none() {
        notes.push("30 s after the window the server did not answer /health as it used to".into());
    }
    Captured {
        means: match &task.grant.means {
            Means::Http(_) => "http".into(),
            Means::Nsys(_) => "nsys".into(),
            Means::Command(_) => "command".into(),
        },
        started_at: outcome.sent_at,
        start_delay_s: outcome.sent_at.since(task.incident.fired_at).as_secs_f64(),
        open_s: outcome.open.as_secs_f64(),
        stall_s: outcome.stalled.as_secs_f64(),
        quality: outcome.verdict.quality,
        files: Vec::new(),
        missing: labels(&outcome.verdict.missing),
        idle: labels(&outcome.verdict.idle),
        remote: outcome.remote,
        notes,
    }
}

/// Compares the ranks of a bundle and writes `report.json` and `report.html` into it.
async fn compare_bundle(
    tx: mpsc::Sender<Inbox>,
    incident: Arc<str>,
    finding: Finding,
    bundle: std::path::PathBuf,
) {
    let compared = tokio::task::spawn_blocking(move || compare_now(&bundle, finding)).await;
    let note = match compared {
        Ok(Ok(note)) => note,
        Ok(Err(error)) => {
            return tracing::warn!(incident = &*incident, "its ranks could not be compared: {error:#}");
        }
        Err(error) => return tracing::error!(incident = &*incident, "comparing its ranks failed: {error}"),
    };
    // As above: the report lies in the bundle.
    let _ = tx.send(Inbox::Compared { incident, note }).await;
}

fn compare_now(bundle: &Path, finding: Finding) -> anyhow::Result<crate::decide::incident::VerdictNote> {
    let request = compare::Request {
        paths: vec![bundle.to_owned()],
        hypothesis: Some(finding),
        ..compare::Request::default()
    };
    let compared = compare::run(&request, &|_| {})?;
    report::write(bundle, &compared)?;
    Ok(compared.comparison.note())
}
