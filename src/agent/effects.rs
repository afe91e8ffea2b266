//! Carries out what the core asks for. Nothing here waits for the network or reads a large file.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::{error, info, warn};

use super::archive::{Job, Samples};
use super::capture::task::Task;
use super::cost::Meter;
use super::startup::handle_of;
use super::window::WindowSignal;
use super::{Agent, EVIDENCE_ROOM, Running, SIGNALS};
use skewtrap_core::amount::Bytes;
use skewtrap_core::capture::admit::CapturePlan;
use skewtrap_core::capture::stall::usual_intervals;
use skewtrap_core::incident::{CaptureOutcome, Incident, Record};
use skewtrap_core::message::Update;
use skewtrap_core::rule::Change;
use skewtrap_core::signal::sample::TargetId;
use skewtrap_core::watch::{Effect, SERVER_DIED};
use skewtrap_trace::time::Time;

/// How far before the onset the evidence of a bundle reaches.
const BEFORE: Duration = Duration::from_secs(120);
/// How far back samples are read to learn the usual intervals of the ranks.
const USUAL_SPAN: Duration = Duration::from_secs(120);
/// A sample may arrive this long after it was true.
const LATE: Duration = Duration::from_secs(10);

impl Agent {
    pub(super) fn carry_out(&mut self, effects: &mut Vec<Effect>) {
        for effect in effects.drain(..) {
            (self.on_effect)(&effect);
            match effect {
                Effect::Start { incident, target, plan, receivers } => {
                    self.start(*incident, target, *plan, receivers);
                }
                Effect::Changed { change, capture, why } => {
                    self.changed(&change, capture.word(), why.as_deref())
                }
                Effect::Cleared { incident } => self.signal(&incident, WindowSignal::Cleared),
                Effect::Refused { incident, rule, reason, why } => {
                    info!(incident = &*incident, rule = &*rule, reason = reason.word(), "no capture: {why}");
                    self.metrics.refusal(&rule, reason.word());
                }
                Effect::Over { rule, target, firing, at } => {
                    // Without it what fires after a restart would be taken for the same.
                    self.store.state.later(move |state| state.end_firing(&rule, &target, &firing, at));
                }
                Effect::ProfileLine { incident, rank, line } => {
                    self.signal(&incident, WindowSignal::Line { rank, line })
                }
                Effect::Dying { target, line } => {
                    error!(target = self.target_name(target), "the server's log says that it dies: {line}");
                    self.signal_all(target, &WindowSignal::Dying(line));
                }
                Effect::Restarted { target, why } => {
                    warn!(target = self.target_name(target), "the server was started anew: {why}");
                    self.signal_all(target, &WindowSignal::Gone(why));
                    let (name, now) = (self.target_name(target).to_owned(), self.clock.now());
                    self.store.state.write_until_done(move |state| state.release(now, Some(&name)));
                }
                Effect::Notify { incident, update, only_edits, receivers } => {
                    self.notify(*incident, update, only_edits, &receivers);
                }
                // The archive ends only with the agent.
                Effect::Store { incident } => drop(self.archive.send(Job::Update(incident))),
                Effect::SourceProblem { message, is_over: true, .. } => info!("{message}"),
                Effect::SourceProblem { message, .. } => warn!("{message}"),
            }
        }
    }

    /// The attempt is written to the state by the task, before it sends anything.
    fn start(&mut self, incident: Incident, target: TargetId, plan: CapturePlan, notify: Vec<Arc<str>>) {
        let (Some(known), Some(facts)) = (self.targets.get(usize::from(target.0)), self.watch.facts(target))
        else {
            return;
        };
        let (mut handle, now) = (handle_of(known, &self.no_server), self.clock.now());
        handle.instance = facts.server.as_ref().map(|server| server.instance.clone());
        handle.sizes = facts.server.as_ref().map(|server| server.sizes).unwrap_or_default();
        let usual = usual_intervals(self.watch.store().load_reports(target, now - USUAL_SPAN));
        let meter = Meter::new(self.clock, facts.health.median().unwrap_or_default(), usual);
        let (signals, received) = mpsc::channel(SIGNALS);
        let means = plan.method.means();
        let running = Running { signals, target, means, meter: meter.clone(), metered_to: now };
        self.running.insert(incident.id.clone(), running);
        let task =
            Task { incident, notify, plan, handle, store: self.store.clone(), meter, tx: self.tx.clone() };
        self.supervisor.once("window", task.run(received, self.windows.child_token()));
    }

    /// The ranks may have given samples: the meters of the windows on their server take them in.
    pub(super) fn update_meters(&mut self) {
        let now = self.clock.now();
        for running in self.running.values_mut() {
            running.meter.record_samples(self.watch.store().load_reports(running.target, running.metered_to));
            running.metered_to = now - LATE;
        }
        for closing in self.closing.values_mut() {
            let Some(target) = closing.target else { continue };
            closing.meter.record_samples(self.watch.store().load_reports(target, closing.metered_to));
            closing.metered_to = now - LATE;
        }
    }

    fn changed(&self, change: &Change, capture: &str, why: Option<&str>) {
        let (rule, state) = (&*change.rule.name, change.state.word());
        info!(target = change.target.as_deref(), rule, state, "{}", change.text(capture, why));
        if change.is_transition() {
            self.metrics.transition(&change.rule.name, change.state);
        }
    }

    fn notify(&mut self, incident: Incident, update: Update, only_edits: bool, receivers: &[Arc<str>]) {
        // Before the message: an agent after this one must not tell it again, and must know when it is over.
        let begins_or_ends = matches!(update, Update::Fired | Update::Resolved | Update::Returned);
        self.save_ongoing_of(&incident.target, begins_or_ends && incident.trouble.is_some());
        match only_edits {
            true => self.notifier.edit(&incident, update, receivers, self.clock),
            false => self.notifier.send(&incident, update, receivers, self.clock),
        }
        // Its incident is nothing else, and has no bundle yet.
        let begins_with_death = update == Update::Died && *incident.rule == *SERVER_DIED;
        let waits = self.running.contains_key(&incident.id);
        // The result: with it the state may forget the capture, and not before, or a kill would lose it.
        let job = if matches!(update, Update::Captured | Update::Verdict) {
            self.notifier.reported(&incident.id);
            Job::Captured(Box::new(incident))
        } else if (matches!(update, Update::Fired | Update::Refused) || begins_with_death) && !waits {
            // Where the pool refused the window for which its bundle was left to the capture, that is made now.
            // As long as nothing can be written nothing is held for it.
            let evidence = match &self.awaited {
                None => self.evidence(&incident, incident.finding.onset),
                Some(_) => Samples::default(),
            };
            let record =
                Record::new(self.store.state.agent().clone(), incident).notifying(receivers.to_vec());
            let record = Box::new(record);
            Job::Create { record, evidence }
        } else {
            Job::Update(Box::new(incident))
        };
        // The archive ends only with the agent.
        let _ = self.archive.send(job);
    }

    /// The group's samples from two minutes before the onset on; they are written as text elsewhere. None where too
    /// many wait to be written already, since a disk that hangs may never take them.
    pub(super) fn evidence(&self, incident: &Incident, onset: Time) -> Samples {
        let seen = self.watch.evidence(incident, onset - BEFORE);
        let Some(held) = self.evidence_room.try_hold(Samples::bytes_of(&seen)) else {
            warn!(
                incident = &*incident.id,
                "its bundle will have no evidence.jsonl: {} of samples wait to be written already; look at the disk of incident_dir",
                Bytes(EVIDENCE_ROOM as u64)
            );
            return Samples::default();
        };
        Samples { catalog: self.watch.store().catalog().clone(), seen, held }
    }

    pub(super) fn signal(&self, incident: &str, signal: WindowSignal) {
        if let Some(running) = self.running.get(incident) {
            running.pass(incident, signal);
        }
    }

    fn signal_all(&self, target: TargetId, signal: &WindowSignal) {
        for (incident, running) in self.running.iter().filter(|(_, r)| r.target == target) {
            running.pass(incident, signal.clone());
        }
    }

    fn target_name(&self, target: TargetId) -> &str {
        self.targets.get(usize::from(target.0)).map_or("server", |s| &s.name)
    }

    /// A window of ours ended.
    pub(super) fn window_over(&mut self, incident: &str, outcome: &CaptureOutcome, stalled: Duration) {
        let running = self.running.remove(incident);
        if let (Some(known), Some(running)) = (self.watch.incident(incident), running) {
            self.metrics.capture(&known.rule, running.means.word(), outcome.word());
            self.metrics.stall(&known.target, stalled.as_secs_f64());
            outcome.captured().inspect(|captured| self.metrics.silence(&known.target, captured));
        }
        // Its files may leave too little room for the next one.
        self.make_room();
    }
}
