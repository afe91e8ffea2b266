//! What an agent before this one left: windows that are still open are closed, captures are compared and told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::{error, warn};

use super::archive::Job;
use super::capture::task::compared;
use super::capture::{Found, Taken, close, without_server};
use super::cost::Meter;
use super::window::TargetHandle;
use super::{Agent, AgentEvent, Closing};
use crate::act::state::{OpenMethod, WindowRow};
use skewtrap_core::capture::captured::CaptureKind;
use skewtrap_core::capture::window::WindowPhase;
use skewtrap_core::incident::{Record, VerdictNote};
use skewtrap_core::message::Update;
use skewtrap_core::signal::sample::TargetId;
use skewtrap_core::watch::{self, Effect, Event, WindowEvent};

impl Agent {
    /// Whether an incident that an agent before this one left is under way here. One that was over may come back,
    /// but whatever is still to be told of it is told.
    fn goes_on(&self, record: &Record) -> bool {
        self.watch.incident(&record.incident.id).is_some_and(|incident| incident.resolved_at.is_none())
    }

    /// Reports what an agent before this one left finished, and closes the windows that it left open,
    /// each by a task of its own.
    pub(super) fn recover(
        &mut self,
        found: Found,
        known: &BTreeMap<String, TargetHandle>,
        effects: &mut Vec<Effect>,
    ) {
        for open in self.watch.kept_incidents() {
            self.notifier.goes_on(&open.incident);
        }
        for record in found.finished {
            // Also where it is resolved: the verdict is put on the incident that the core has, which may come back.
            self.watch.adopt_capture_result(&record.incident, effects);
            match self.goes_on(&record) {
                false => self.report_closed(record),
                true => {
                    if record.incident.verdict.is_none() && record.incident.capture.is_comparable() {
                        self.compare_recovered(record);
                    }
                }
            }
        }
        let is_over = |record: &Record| !self.goes_on(record);
        let mut over: Vec<_> = found.open.into_iter().filter(is_over).collect();
        for record in &mut over {
            let silenced_until = self.silenced_until(record);
            let bundles = self.store.bundles.clone();
            self.notifier.send_left(record, silenced_until, self.clock, move |incident| {
                if let Err(error) = bundles.update(incident) {
                    error!("{error}");
                }
            });
        }
        for record in found.uncompared {
            // Its verdict is put on the incident that was just told to be over.
            let told = over.iter().find(|told| told.incident.id == record.incident.id);
            self.compare_recovered(told.cloned().unwrap_or(record));
        }
        for (window, record) in found.left {
            let (id, target) = (window.incident.clone(), window.target.clone());
            warn!(
                incident = id,
                "an agent before this one left a window open on {target}; it is closed first"
            );
            self.left_behind(&window);
            let meter = Meter::of_before(self.clock, window.sent_at);
            let place = self.targets.iter().find(|s| *s.name == *target).map(|handle| handle.target);
            let closing = Closing { target: place, meter: meter.clone(), metered_to: self.clock.now() };
            self.closing.insert(id.clone(), closing);
            let (tx, store) = (self.tx.clone(), self.store.clone());
            let known = known.get(&target).cloned().or_else(|| self.without_server(&window));
            let cancel = self.windows.child_token();
            self.supervisor.once("window left behind", async move {
                match tokio::spawn(close(store, known, window, record.clone(), (meter, cancel))).await {
                    // The loop is gone only when the agent ends.
                    Ok(taken) => {
                        let record = Box::new(record);
                        drop(tx.send(AgentEvent::Recovered { record, taken }).await);
                    }
                    Err(panic) => {
                        error!(
                            incident = id,
                            "closing the window failed ({panic}); no other opens on {target} until a restart"
                        );
                    }
                }
            });
        }
    }

    /// What was opened on this machine is closed without its server.
    fn without_server(&self, window: &WindowRow) -> Option<TargetHandle> {
        let needs_server = matches!(window.method, OpenMethod::Http(_));
        (!needs_server).then(|| without_server(&window.target, &self.no_server))
    }

    fn left_behind(&mut self, window: &WindowRow) {
        let Some(handle) = self.targets.iter().find(|s| *s.name == *window.target) else { return };
        let (marks, means, deadline) = match &window.method {
            OpenMethod::Http(request) => (Some(request.marks.clone()), request.means(), request.deadline),
            OpenMethod::Nsys { .. } => (None, CaptureKind::Nsys, Duration::ZERO),
            OpenMethod::Command { .. } => (None, CaptureKind::Command, Duration::ZERO),
        };
        let (incident, since) = (Arc::from(window.incident.as_str()), window.sent_at);
        let open = watch::OpenWindow { incident, marks, means, phase: WindowPhase::Unknown, since, deadline };
        let (target, attempt): (TargetId, _) = (handle.target, window.attempt.clone());
        let event = Event::LeftBehind { target, attempt, window: open };
        self.watch.handle(event, self.clock.now(), &mut Vec::new());
    }

    /// A window of an agent before this one is closed.
    pub(super) fn recovered(&mut self, mut record: Record, taken: Taken, effects: &mut Vec<Effect>) {
        self.closing.remove(&*record.incident.id);
        let Taken::Stored { capture, problem } = taken else { return };
        let incident = record.incident.id.clone();
        if let Some(problem) = &problem {
            error!(incident = &*incident, "{problem}");
        }
        self.metrics.stall(&record.incident.target, capture.end.stalled.as_secs_f64());
        capture.outcome.captured().inspect(|c| self.metrics.silence(&record.incident.target, c));
        record.incident.captured(&capture);
        let is_comparable = record.incident.capture.is_comparable();
        let event = WindowEvent::Ended(capture);
        let goes_on = self.watch.incident(&incident).is_some();
        self.watch.handle(Event::Window { incident, event }, self.clock.now(), effects);
        if !goes_on {
            // The core, which books the attempt and trusts the server again, does not know this incident.
            self.report_closed(record);
        } else if is_comparable {
            self.compare_recovered(record);
        }
        self.make_room();
    }

    fn report_closed(&mut self, mut record: Record) {
        warn!(
            incident = &*record.incident.id,
            "a window was left open by an agent before this one; it is closed"
        );
        let silenced_until = self.silenced_until(&record);
        self.notifier.send_recovered(&mut record, silenced_until, self.clock);
        self.notifier.reported(&record.incident.id);
        // The archive ends only with the agent.
        let _ = self.archive.send(Job::Captured(Box::new(record.incident.clone())));
        if record.incident.verdict.is_none() && record.incident.capture.is_comparable() {
            self.compare_recovered(record);
        }
    }

    /// Its ranks are compared like those of any other capture.
    fn compare_recovered(&self, record: Record) {
        let (tx, bundles) = (self.tx.clone(), self.store.bundles.clone());
        self.supervisor.once("comparison", async move {
            match compared(&bundles, record.incident.clone()).await {
                // The loop is gone only when the agent ends; the report lies in the bundle.
                Some(note) => {
                    let record = Box::new(record);
                    drop(tx.send(AgentEvent::RecoveredCompared { record, note }).await);
                }
                None => not_compared(&tx, record).await,
            }
        });
    }

    /// What comparing them said: told, and kept in the bundle. No core follows that incident any more.
    pub(super) fn recovered_verdict(
        &mut self,
        mut record: Record,
        note: VerdictNote,
        effects: &mut Vec<Effect>,
    ) {
        if self.watch.incident(&record.incident.id).is_some() {
            let (incident, window) = (record.incident.id.clone(), record.incident.window());
            let event = Event::Compared { incident, window, note };
            return self.watch.handle(event, self.clock.now(), effects);
        }
        record.incident.conclude(record.incident.window(), note);
        self.notifier.send(&record.incident, Update::Verdict, &record.notify, self.clock);
        // As above.
        let _ = self.archive.send(Job::Update(Box::new(record.incident)));
    }
}

/// An incident that goes on is told of its capture without a verdict.
async fn not_compared(tx: &mpsc::Sender<AgentEvent>, record: Record) {
    // The loop is gone only when the agent ends.
    let _ = tx.send(AgentEvent::NotCompared { incident: record.incident.id }).await;
}
