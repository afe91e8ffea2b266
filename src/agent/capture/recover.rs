//! Finishes at start what an agent before this one left undone.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::{Came, Desk, Kept, came_of, keep};
use crate::act::state::{OpenMeans, OpenWindow};
use crate::agent::window::{self, Links, Site, Status};
use crate::agent::{command, nsys};
use crate::decide::capture::governor::AttemptEnd;
use crate::decide::capture::window::{Blind, Phase};
use crate::decide::incident::{CaptureOutcome, Record};
use crate::decide::time::Time;
use crate::observe::profile_lines;

/// A server as [`recover`] needs it.
#[derive(Clone, Debug)]
pub struct Known {
    /// The server.
    pub site: Site,
    /// Its log, where it is a file.
    pub log: Option<PathBuf>,
}

/// Finishes what an agent before this one left undone: closes its windows, completes its bundles.
/// Gives the records of the incidents that people are to be told of; each is remembered until
/// [`crate::act::state::State::forget`] says that the message is in the outbox.
///
/// # Errors
/// The state or the folder of the bundles cannot be read.
pub async fn recover(
    desk: &Desk,
    known: &BTreeMap<String, Known>,
    cancel: &CancellationToken,
) -> anyhow::Result<Vec<Record>> {
    let kept = desk.state.records()?;
    for recovered in desk.bundles.recover(&kept)? {
        warn!(?recovered, "a bundle was half written");
    }
    let mut records: BTreeMap<_, _> = kept.into_iter().map(|r| (r.incident.id.clone(), r)).collect();
    let mut changed = Vec::new();
    for window in desk.state.open_windows()? {
        let record = records.remove(&*window.incident);
        match record {
            Some(record) if matches!(record.incident.capture, CaptureOutcome::Open { .. }) => {
                changed.push(close(desk, known, window, record, cancel).await.record);
            }
            // Its bundle was written; only the state did not know yet.
            Some(record) => {
                desk.state.end(&window.attempt, &end_of(&record, desk.clock.now()))?;
                complete(desk, &record);
                changed.push(record);
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
        complete(desk, &record);
        changed.push(record);
    }
    Ok(changed)
}

/// Brings a bundle up to what the state knows; one that knows more (a verdict, its end) stays.
fn complete(desk: &Desk, record: &Record) {
    let written = match desk.bundles.read(&record.incident.id) {
        Some(there) if !matches!(there.incident.capture, CaptureOutcome::Open { .. }) => return,
        Some(_) => desk.bundles.write(record),
        None => desk.bundles.create(record, b"").map(|_| ()),
    };
    if let Err(error) = written {
        error!(%error, "an incident's bundle could not be completed");
    }
}

fn end_of(record: &Record, now: Time) -> AttemptEnd {
    let stalled = match &record.incident.capture {
        CaptureOutcome::Done(captured) | CaptureOutcome::Failed { captured: Some(captured), .. } => {
            Duration::try_from_secs_f64(captured.stall_s).unwrap_or_default()
        }
        _ => Duration::ZERO,
    };
    AttemptEnd { at: now, stalled, bytes: record.files.iter().map(|f| f.size).sum(), unproven: None }
}

async fn close(
    desk: &Desk,
    known: &BTreeMap<String, Known>,
    window: OpenWindow,
    record: Record,
    cancel: &CancellationToken,
) -> Kept {
    let attempt = window.attempt.clone();
    let Some(Known { site, log }) = known.get(&window.target) else {
        let why = format!("no target is called {} any more, so its window cannot be closed", window.target);
        let came = Came {
            means: "http",
            failure: Some(why.clone()),
            unproven: Some(why),
            sent_at: window.sent_at,
            ..Came::default()
        };
        return keep(desk, &attempt, record, came);
    };
    let came = match window.means.clone() {
        OpenMeans::Http(request) => {
            let lines = log.as_deref().map(profile_lines::recent).and_then(Result::ok).unwrap_or_default();
            let moved = desk.bundles.traces(&record.incident.id);
            let links = lonely_links(window.sent_at, cancel);
            let desk = (&desk.state, desk.clock);
            let outcome = window::resume(site, &request, window, lines, moved, desk, links).await;
            came_of(outcome, request.writes_files)
        }
        OpenMeans::Nsys { session, name } => {
            nsys::close(&site.nsys, &window, &session, &name, desk.clock.now()).await
        }
        OpenMeans::Command { group } => command::close(&window, group, window.sent_at),
    };
    keep(desk, &attempt, record, came)
}

/// Links to nobody: at recovery the rest of the agent is not there yet.
fn lonely_links(from: Time, cancel: &CancellationToken) -> Links {
    let (_, heard) = tokio::sync::mpsc::channel(1);
    let status = Status { phase: Phase::Unknown, blind: Blind::opened(from) };
    Links { heard, status: watch::Sender::new(status), cancel: cancel.clone() }
}
